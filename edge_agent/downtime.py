"""What was due while the agent did not run: which beats have a row, and which have none.

Rule 1: a beat is a multiple of the period on the monotonic clock, so what was due is counted on that clock, machine by
machine from its own last row, whatever the wall clock shows; it is asked only after the host was started anew.
Rule 2: what is counted here ends at the very instant from which the pollers count.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edge_agent.judge import NEVER, JudgeState
from edge_agent.pipeline import stands_for_a_beat
from edge_agent.plant import Plant
from edge_agent.poller import Line, beats_between, periods_of, rows_due
from edge_agent.records import Gap, GapCause, JudgedFrame, Span


@dataclass(frozen=True, slots=True)
class Untold:
    """The host was started anew, and for how long nobody looked is told when somebody has set its clock.

    last_us: UTC of the last known time before. number: of the span in which the first run after it began.
    """

    last_us: int
    number: int


@dataclass(frozen=True, slots=True)
class Life:
    """One run of the agent. boot: of the host, empty when unknown. base_us: the agent's own clock minus the monotonic one.

    untold: what it could not tell, or took over from the run before.
    """

    boot: str
    base_us: int
    untold: Untold | None = None

    def text(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))


def life_of(text: str) -> Life | None:
    """What `text` gave; None where nothing was kept, or nothing that can be read."""
    try:
        plain = json.loads(text)
        life = Life(str(plain["boot"]), int(plain["base_us"]))
        left = plain.get("untold")
        return replace(life, untold=left and Untold(int(left["last_us"]), int(left["number"])))
    except (ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True, slots=True)
class Before:
    """How the last run ended. rows: by machine, the agent's time of its last row. wall_us: the wall clock at the last of all."""

    life: Life | None
    rows: Mapping[str, int]
    wall_us: int


def of_snapshot(plant: Plant, state: JudgeState) -> dict[str, int]:
    """By machine, the agent's time of its last row; machines without one are left out."""
    found = {machine.name: int(state.last_t[machine.index]) for machine in plant.machines}
    return {name: t for name, t in found.items() if t != NEVER}


def noted(items: Iterable[Any], rows: dict[str, int]) -> Iterator[Any]:
    """The same items; the last row of each machine is written into `rows`. A tick stands for no beat."""
    for item in items:
        if isinstance(item, JudgedFrame) and not item.frame.late and len(item.frame.t):
            frame = item.frame
            if stands_for_a_beat(frame):
                rows[frame.machine] = int(frame.t[-1])
        yield item


def _last_rows(before: Before, life: Life, now_us: int) -> dict[str, int] | None:
    """By machine, when its last row was on the monotonic clock of now; None where that clock has begun anew since."""
    known = before.life
    if known is None or not known.boot or known.boot != life.boot:
        return None
    last = {name: t - known.base_us for name, t in before.rows.items()}
    return last if all(us <= now_us for us in last.values()) else None


def is_countable(before: Before, life: Life, now_us: int) -> bool:
    """Whether the monotonic clock (µs) tells for how long nobody looked."""
    return _last_rows(before, life, now_us) is not None


def gap(lines: Sequence[Line], before: Before, life: Life, now_us: int, wall_us: int) -> Gap | None:
    """What was due and never taken, up to now (monotonic µs; wall_us: UTC). None: nothing.

    Its times are by the clock of now, also where nobody has set that: they are marked, and put right with the rest.
    """
    last = _last_rows(before, life, now_us)
    if last is None:
        return by_wall(lines, before.wall_us, wall_us)
    count = sum(
        beats_between(last[machine], now_us, periods)
        for line in lines
        for machine, periods in periods_of(line).items()
        if machine in last
    )
    passed_us = now_us - max(last.values(), default=now_us)
    return Gap(GapCause.RESTART, count, wall_us - passed_us, wall_us) if count else None


def by_wall(lines: Sequence[Line], from_us: int | None, until_us: int) -> Gap | None:
    """What was due and never taken in a time (UTC µs) of which only the wall clock tells. None: nothing, or nobody knows."""
    if from_us is None or until_us <= from_us:
        return None
    count = rows_due(lines, from_us, until_us)
    return Gap(GapCause.RESTART, count, from_us, until_us) if count else None


def stops_before(
    lines: Sequence[Line], last_us: int | None, right: Sequence[Span], until: int | None = None
) -> Iterator[Gap]:
    """What was never taken before each of these spans, whose stamps are known by now: a run that began while nobody had
    set the clock of a host that was started anew cannot tell, and may have ended before somebody did.

    last_us: UTC of the last time that a set clock has shown before. until: the number of the last span that a start began.
    """
    for span in right:  # in the order in which they were
        assert span.to_us is not None
        assert span.by_us is not None
        if gap := by_wall(lines, last_us, span.from_us + span.by_us):
            yield gap
        if span.number == until:
            return
        last_us = max(last_us or 0, span.to_us + span.by_us)
