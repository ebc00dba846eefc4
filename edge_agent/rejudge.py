"""The agent's own past through the judge once more: what was taken is what was judged, and so is what comes out.

Rule 1: frames, acknowledgements and configurations come in the order in which the daemon had them; the judge is the same.
Rule 2: how many rows are judged at once changes nothing. Rule 3: memory does not grow with the length of the past.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge_agent import judge, snapshot
from edge_agent.contract import SECOND_US, Frame, Quality
from edge_agent.judge import JudgeState
from edge_agent.pipeline import removed
from edge_agent.plant import Machine, Plant
from edge_agent.records import SET_CLOCK, Command, Event, Layout
from edge_agent.store import configured
from edge_agent.store.past import Item
from edge_agent.store.rows import Kept

CELLS_MAX = 1_000_000
"""Readings that are judged at once, at most."""
HELD_US = 60 * SECOND_US
"""Events wait for so long for earlier ones of other machines, so that they come in the order of time however they are cut."""

Compile = Callable[[str], Plant]
"""From a configuration's text, as the past has it, to its plant. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class _Due:
    """An event and where it belongs: by the agent's clock, then as the configuration names the machines."""

    t: int
    machine: int
    number: int
    event: Event

    def __lt__(self, other: "_Due") -> bool:
        return (self.t, self.machine, self.number) < (other.t, other.machine, other.number)


class Rejudged:
    """One run over a past. plant: of the configuration that is asked about.

    compile_text: for a past of several configurations, each judged by its own; None: all of it is judged by `plant`.
    epoch: stands in the ids of the events. rows: of one machine that are judged at once.
    """

    def __init__(self, plant: Plant, compile_text: Compile | None, epoch: str, rows: int) -> None:
        self._plant, self._compile, self._epoch, self._rows_max = plant, compile_text, epoch, rows
        self._state: JudgeState = judge.start(plant)
        self._text: str | None = None
        self._epochs: list[str] = []
        self._waiting: dict[str, list[Kept]] = {}
        self._cells = 0
        self._due: list[_Due] = []
        self._number = 0
        self._t = 0
        self.rows = 0
        """Rows that were judged."""
        self.notes: list[str] = []
        """What a person should know, in words."""

    def events(self, items: Iterator[Item]) -> Iterator[Event]:
        """Every event, in the order of the agent's clock."""
        for _, epoch, what in items:
            if epoch not in self._epochs:
                self._epochs.append(epoch)
            if isinstance(what, Command):
                self._judge()
                self._do(what)
            elif not what.judged.frame.late and len(what.judged.frame.t):
                self._gather(what)
            yield from self._ripe()
        self._judge()
        self._t += 2 * HELD_US
        yield from self._ripe()

    # --- frames -----------------------------------------------------------------------------------------------------------

    def _gather(self, kept: Kept) -> None:
        its = self._waiting.setdefault(kept.layout.machine, [])
        its.append(kept)
        self._cells += kept.judged.frame.values.size
        if len(its) >= self._rows_max or self._cells >= CELLS_MAX:
            self._judge()

    def _judge(self) -> None:
        waiting, self._waiting, self._cells = self._waiting, {}, 0
        frames = [frame for its in waiting.values() for frame in self._frames(its)]
        self._state, judged = judge.step(self._plant, self._state, frames, self._epoch)
        for frame in frames:
            self.rows += len(frame.t)
            self._t = max(self._t, int(frame.t[-1]))
        for event in judged.events:
            self._tell(event, event.t)

    def _frames(self, its: list[Kept]) -> Iterator[Frame]:
        """The frames of one machine, joined where they say the same things of their rows."""
        machine = self._plant.by_name.get(its[0].layout.machine)
        if machine is None:
            self._note(f"machine {its[0].layout.machine}: not in this configuration, left out")
            return
        run: list[Frame] = []
        for kept in its:
            frame = self._fitted(machine, kept)
            if run and (_kind(run[-1]) != _kind(frame)):
                yield _joined(run)
                run = []
            run.append(frame)
        yield _joined(run)

    def _fitted(self, machine: Machine, kept: Kept) -> Frame:
        """The frame with the columns of this configuration: a signal that it did not have says nothing."""
        frame, names = kept.judged.frame, [signal.name for signal in machine.signals]
        if list(kept.layout.signals) == names:
            return frame
        self._note(_difference(kept.layout, names))
        where = {name: place for place, name in enumerate(kept.layout.signals)}
        there = [where.get(name, -1) for name in names]
        lacks = np.array([place < 0 for place in there], dtype=np.bool_)
        values, quality = frame.values[:, there], frame.quality[:, there]
        values[:, lacks], quality[:, lacks] = np.nan, Quality.HOLD
        words = frame.words and tuple(tuple("" if i < 0 else row[i] for i in there) for row in frame.words)
        return replace(
            frame, values=values, quality=quality, at=None if frame.at is None else frame.at[:, there], words=words
        )

    # --- what people did --------------------------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        if command.command == configured.CONFIGURE:
            self._configure(command)
        elif command.command == SET_CLOCK:
            self._state = judge.repeat(self._plant, self._state, command)
        elif command.command == "acknowledge":
            try:
                self._state, event = judge.acknowledge(
                    self._plant, self._state, self._here(command.id), command.by, command.comment, command.ts
                )
            except (KeyError, ValueError):
                self._note("acknowledged warnings that did not stand here: left out")
                return
            self._tell(event, command.t)

    def _configure(self, command: Command) -> None:
        """Another configuration comes into force, as `pipeline.use` takes it over."""
        text = configured.text_of(command)
        if self._compile is None or not text or (configured.is_start(command) and text == self._text):
            return
        first, self._text = self._text is None, text
        try:
            plant = self._compile(text)
        except ValueError as error:
            self._note(f"an earlier configuration ({command.id}) cannot be used any more: {error}")
            return
        if first and not self.rows:
            self._plant, self._state = plant, judge.start(plant)
            return
        self._state, orphans = snapshot.migrate(self._plant, self._state, plant)
        self._plant = plant
        for event in orphans:
            self._tell(removed(event, command.ts, plant.language), command.t)

    def _here(self, warning: str) -> str:
        """The id of a warning here, which the daemon told under that of its own epoch."""
        for standing in self._state.standing.values():
            event = standing.event
            for epoch in self._epochs:
                if judge.warning_id(epoch, event.machine, event.signal, event.kind, standing.born) == warning:
                    return event.id
        return warning

    # --- events -----------------------------------------------------------------------------------------------------------

    def _tell(self, event: Event, t: int) -> None:
        machine = self._plant.by_name.get(event.machine)
        self._number += 1
        heapq.heappush(self._due, _Due(t, -1 if machine is None else machine.index, self._number, event))

    def _ripe(self) -> Iterator[Event]:
        while self._due and self._due[0].t < self._t - HELD_US:
            yield heapq.heappop(self._due).event

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _kind(frame: Frame) -> tuple[bool, bool, int]:
    """What all rows of one frame have in common."""
    return frame.at is None, frame.words is None, frame.unset


def _joined(run: list[Frame]) -> Frame:
    if len(run) == 1:
        return run[0]
    first = run[0]
    return Frame(
        first.machine,
        np.concatenate([frame.t for frame in run]),
        np.concatenate([frame.ts for frame in run]),
        np.concatenate([frame.values for frame in run]),
        np.concatenate([frame.quality for frame in run]),
        None if first.at is None else np.concatenate([frame.at for frame in run if frame.at is not None]),
        words=None if first.words is None else tuple(row for frame in run for row in frame.words or ()),
        unset=first.unset,
    )


def _difference(layout: Layout, names: list[str]) -> str:
    """In words, which signals the past has and this configuration has not, and the other way round."""
    gone = [name for name in layout.signals if name not in names]
    new = [name for name in names if name not in layout.signals]
    parts = [*([f"left out: {', '.join(gone)}"] if gone else []), *([f"never read: {', '.join(new)}"] if new else [])]
    return f"machine {layout.machine}: {'; '.join(parts) or 'its signals stood in another order'}"
