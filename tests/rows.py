"""One machine on which rows are played by hand: what was said is answered at once."""

from types import SimpleNamespace

import numpy as np

from edge_agent import judge
from edge_agent.contract import Frame, Quality
from edge_agent.records import Event, JudgedFrame
from tests import plants

T0, TS0 = 1_000 * plants.SECOND, 5_000 * plants.SECOND
"""The agent's clock and UTC at the first row."""
Cell = float | Quality | tuple[float, Quality]


class Machine:
    """Rows one second apart unless said. A cell is a good value, a quality without a value, or both."""

    def __init__(
        self, *signals: SimpleNamespace, states: dict[str, str] | None = None, settle: float = 0, language: str = "en"
    ) -> None:
        self.plant = plants.plant(plants.machine("m", *signals, states=states, settle=settle), language=language)
        self.state = judge.start(self.plant)
        self.t, self.ts = T0 - plants.SECOND, TS0 - plants.SECOND
        self.judged: JudgedFrame | None = None
        self.events: list[Event] = []

    def row(self, *cells: Cell, after: float = 1.0, at: list[int] | None = None) -> list[Event]:
        """The events of one more row. at: UTC µs of each value."""
        self.t, self.ts = self.t + round(after * plants.SECOND), self.ts + round(after * plants.SECOND)
        values, codes = zip(*map(_both, cells), strict=True)
        frame = Frame(
            "m",
            np.array([self.t], dtype=np.int64),
            np.array([self.ts], dtype=np.int64),
            np.array([values], dtype=np.float64),
            np.array([codes], dtype=np.uint8),
            None if at is None else np.array([at], dtype=np.int64),
        )
        self.state, judged = judge.step(self.plant, self.state, [frame], "k3f9")
        self.judged = judged.frames[0]
        self.events += judged.events
        return judged.events

    def says(self, *cells: Cell, after: float = 1.0) -> list[str]:
        """The same in short: `raised high`."""
        return [f"{event.event} {event.kind}" for event in self.row(*cells, after=after)]

    def play(self, *cells: Cell) -> list[tuple[str, float]]:
        """Rows of the only signal, one second apart: what was said and at which second."""
        start = len(self.events)
        for cell in cells:
            self.row(cell)
        return [(str(event.event), self.second(event.ts)) for event in self.events[start:]]

    def second(self, ts: int) -> float:
        """UTC µs as seconds since the first row."""
        return (ts - TS0) / plants.SECOND

    @property
    def quality(self) -> list[int]:
        """The qualities of the last row as judged."""
        assert self.judged is not None
        return [int(code) for code in self.judged.frame.quality[0]]

    @property
    def values(self) -> list[float]:
        assert self.judged is not None
        return [float(value) for value in self.judged.frame.values[0]]

    def publishes(self, *cells: Cell) -> bool:
        """Whether one more row becomes a measurement message."""
        self.row(*cells)
        assert self.judged is not None
        return bool(self.judged.publish[0])

    @property
    def operating_state(self) -> str | None:
        machine = self.plant.machines[0]
        return judge.mode_name(machine, int(self.state.mode[0]))

    def acknowledge(self, by: str = "Ada", comment: str = "") -> Event:
        """Somebody has seen the only standing warning."""
        (standing,) = judge.active(self.plant, self.state)["m"]
        self.state, event = judge.acknowledge(self.plant, self.state, standing.id, by, comment, self.ts + 1)
        return event


def _both(cell: Cell) -> tuple[float, int]:
    if isinstance(cell, tuple):
        return cell
    return (np.nan, cell) if isinstance(cell, Quality) else (cell, Quality.GOOD)
