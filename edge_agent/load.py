"""How busy the lines of a configuration will be: its periods, and what its drivers say that a read takes. Pure.

Rule 1: the beats are the poller's: whole multiples of the periods, and what is due together is one read.
Rule 2: `share` is what would be needed, more than 1 when it cannot be had; `missed` is what comes of it then.
Rule 3: exact whatever the periods are, each set of periods that are due together counted by its frequency. Two things
are estimates: of more than PERIODS_MAX periods the slowest are counted as reads of their own, and connections of one
line are taken to wait for each other at every beat.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from edge_agent.clock import next_beat
from edge_agent.config import Config
from edge_agent.contract import SECOND_US, Foresees, LineCost, Need, Point
from edge_agent.plugins import Plugins
from edge_agent.poller import beats_between

BUSY, FULL = 0.8, 1.0
"""Shares of time: above the first an answer that comes late may cost a beat, above the second beats are always missed."""
PERIODS_MAX = 8
"""Periods of a connection whose coincidences are counted: 255 sets at most, each of which is planned."""
BEATS_WALKED = 10_000
"""Beats after one at which all is due, from which the share of missed ones is told."""
GROUPS_TRIED = 5
ROUND_S = (0.1, 0.2, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600)
MULTIPLES = (2, 3, 4, 5, 6, 8, 10)
"""Periods, and multiples of a line's shortest one, that are tried in place of that one."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A connection on its line. machines, every_us: of each of its points, in the order that `cost` knows."""

    name: str
    cost: LineCost
    machines: tuple[str, ...]
    every_us: tuple[int, ...]
    known: dict[tuple[int, ...], Need] = field(default_factory=dict)
    """What was worked out already, by the points that are due; the same for other periods."""

    @property
    def periods(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.every_us)))

    def need(self, periods: Sequence[int]) -> Need:
        """Of a beat at which these periods are due."""
        due = tuple(point for point, every in enumerate(self.every_us) if every in periods)
        if due not in self.known:
            self.known[due] = self.cost.need(np.array(due, dtype=np.int64)) if due else Need(0, 0)
        return self.known[due]


@dataclass(frozen=True, slots=True)
class DueSet:
    """Periods (µs) that are due together and no other with them. per_us: how often; until_us: the least time to the next
    beat after it.
    """

    periods: tuple[int, ...]
    per_us: Fraction
    until_us: int


def due_sets(periods: Sequence[int]) -> list[DueSet]:
    """Every set that occurs, of distinct periods in ascending order; see rule 3."""
    near, slow = periods[:PERIODS_MAX], periods[PERIODS_MAX:]
    masks = range(1 << len(near))
    members = [tuple(p for i, p in enumerate(near) if mask >> i & 1) for mask in masks]
    shared = [math.lcm(*chosen) for chosen in members]
    # How often at least these are due is 1/lcm; what is due with others besides is taken off, one period after the other.
    often = [Fraction(1, each) for each in shared]
    for i, mask in itertools.product(range(len(near)), masks):
        if not mask >> i & 1:
            often[mask] -= often[mask | 1 << i]
    found = [
        # Of a period that is not due, some beat follows as soon as their common divisor allows.
        DueSet(members[mask], often[mask], min(p if p in members[mask] else math.gcd(shared[mask], p) for p in near))
        for mask in masks[1:]
        if often[mask]
    ]
    if slow:
        found += [DueSet((p,), Fraction(1, p), periods[0]) for p in slow]
        found.append(DueSet(tuple(periods), Fraction(0), periods[0]))
    return found


@dataclass(frozen=True, slots=True)
class Weight:
    """What askers need of a line. share: of time, in the mean. busiest, within_us: the beat that is least likely to be
    over before the next one, and when that comes.
    """

    share: float
    requests_per_s: float
    busiest: Need
    within_us: int

    @property
    def worst(self) -> float:
        return self.busiest.busy_us / self.within_us

    def fits(self, share: float) -> bool:
        return self.share <= share and self.worst <= FULL


def weighed(askers: Sequence[Asker]) -> Weight:
    """Askers of one line; those that ask at the same time take turns, request by request."""
    share = requests = 0.0
    beats: list[tuple[float, Need, int]] = []
    whole = [asker.need(asker.periods) for asker in askers]
    for asker in askers:
        others = [need for other, need in zip(askers, whole, strict=True) if other is not asker]
        for due in due_sets(asker.periods):
            own = asker.need(due.periods)
            share += float(due.per_us * own.busy_us)
            requests += float(due.per_us * own.requests * SECOND_US)
            waits = sum(min(each.busy_us, own.requests * each.busy_us // each.requests) for each in others)
            beats.append(((own.busy_us + waits) / due.until_us, Need(own.requests, own.busy_us + waits), due.until_us))
    _, busiest, within_us = max(beats, key=lambda beat: beat[0])
    return Weight(share, requests, busiest, within_us)


@dataclass(frozen=True, slots=True)
class Walk:
    """What the poller makes of it from a beat on at which all is due: beats taken and missed, time in use, time passed."""

    taken: int
    missed: int
    busy_us: int
    span_us: int


def walked(asker: Asker) -> Walk:
    """One cycle of the periods, or the first BEATS_WALKED beats that are taken."""
    periods, now_us, taken, busy_us = asker.periods, 0, 0, 0
    cycle_us = math.lcm(*periods)
    while now_us < cycle_us and taken < BEATS_WALKED:
        need_us = asker.need([p for p in periods if now_us % p == 0]).busy_us
        taken, busy_us = taken + 1, busy_us + need_us
        now_us = min(next_beat(now_us + need_us, p) for p in periods)
    return Walk(taken, beats_between(-1, now_us - 1, periods) - taken, busy_us, now_us)


@dataclass(frozen=True, slots=True)
class LineLoad:
    """A line as it will be. walk: None when connections share it, or no beat is missed."""

    askers: tuple[Asker, ...]
    weight: Weight
    walk: Walk | None

    @property
    def name(self) -> str:
        return " + ".join(asker.name for asker in self.askers)

    @property
    def cost(self) -> LineCost:
        return self.askers[0].cost

    @property
    def every_us(self) -> int:
        return min(asker.periods[0] for asker in self.askers)

    @property
    def missed(self) -> float | None:
        """The share of the beats that will be missed; None when it is not known."""
        if self.walk is not None:
            return self.walk.missed / (self.walk.missed + self.walk.taken)
        return 0.0 if self.weight.fits(FULL) else None


def predicted(config: Config, registry: Plugins) -> list[LineLoad]:
    """Every line of which something can be said, in the order of the configuration."""
    return [line_load(askers) for askers in _by_line(_askers(config, registry))]


def _askers(config: Config, registry: Plugins) -> Iterator[Asker]:
    for connection in config.connections.values():
        driver = registry.driver(connection.driver)
        polled = [
            (Point(f"{machine.name}.{signal.name}", signal.point), machine.name, signal.every_us)
            for machine in config.machines.values()
            for signal in machine.signals.values()
            if signal.connection == connection.name and signal.point is not None
        ]
        if not polled or not isinstance(driver, Foresees):
            continue
        points, machines, every_us = zip(*polled, strict=True)
        if (cost := driver.foresee(connection.settings, points)) is not None:
            yield Asker(connection.name, cost, machines, every_us)


def _by_line(askers: Iterable[Asker]) -> list[list[Asker]]:
    lines: dict[Hashable, list[Asker]] = {}
    for asker in askers:
        line = asker.cost.line
        lines.setdefault(("own", asker.name) if line is None else ("shared", line), []).append(asker)
    return list(lines.values())


def line_load(askers: Sequence[Asker]) -> LineLoad:
    weight = weighed(askers)
    alone = len(askers) == 1 and weight.worst > FULL
    return LineLoad(tuple(askers), weight, walked(askers[0]) if alone else None)


# ------------------------------------------------------------------------------------------------------- for people


def sentence(load: LineLoad) -> str | None:
    """`line-1: 62 % busy (…)`; None for a line that nobody need look at."""
    weight, every_us = load.weight, load.every_us
    if not load.cost.one_at_a_time and weight.fits(FULL):
        return None
    need = f"{_s(weight.share * every_us)} of each {_s(every_us)} {load.cost.words}"
    one_period = {period for asker in load.askers for period in asker.periods} == {every_us}
    number = _number(weight.requests_per_s * every_us / SECOND_US)
    count = f"{number} request{'s' if number != '1' else ''}"
    if one_period:
        return f"{load.name}: {_percent(weight.share)} busy ({need}, {count})"
    most = f"at most {_s(weight.busiest.busy_us)} in the {_s(weight.within_us)} to the next beat"
    return f"{load.name}: {_percent(weight.share)} busy (in the mean {need}, {count}; {most})"


def warning(load: LineLoad) -> str | None:
    """What will go wrong on this line, and what to do; None when nothing will."""
    weight, words = load.weight, load.cost.words
    if weight.fits(BUSY if load.cost.one_at_a_time else FULL):
        return None
    missed = "" if load.missed is None else f" ({_percent(load.missed)} of its beats)"
    if weight.share > FULL:
        every_us = load.every_us
        fault = (
            f"this needs {_s(weight.share * every_us)} in each {_s(every_us)} {words}: readings will be missed{missed}"
        )
    elif weight.worst > FULL:
        fault = (
            f"its fullest beat needs {_s(weight.busiest.busy_us)} {words}, and the next one comes after "
            f"{_s(weight.within_us)}: readings will be missed{missed}"
        )
    else:
        fault = f"{_percent(weight.share)} busy {words}: one answer that comes late may cost others their beat"
    return "; ".join([fault, *advice(load)])


def advice(load: LineLoad) -> Iterator[str]:
    """What takes the most, the change of periods that is enough and touches least, and the speed that is enough."""
    askers = load.askers
    groups = sorted(_groups(askers), key=lambda group: -group.share)
    if len(groups) > 1:
        in_mean = load.weight.share > FULL or load.weight.worst <= FULL
        most = groups[0] if in_mean else max(groups, key=lambda group: group.busy_us)
        yield f"{most.words} takes the most"
    slower = _slower(askers, groups)
    if slower is not None:
        yield slower
    for speeds in zip(*(asker.cost.faster() for asker in askers), strict=False):
        better = [replace(asker, cost=cost, known={}) for asker, cost in zip(askers, speeds, strict=True)]
        weight = weighed(better)
        if weight.fits(BUSY):
            yield f"{'or ' if slower else ''}set the line and its devices to {_rate(speeds[0])}: then {_then(weight)}"
            return


@dataclass(frozen=True, slots=True)
class _Group:
    """Points whose rate may be changed together. points: (asker, point). busy_us: what a read of them alone takes; share:
    of time, at their period.
    """

    words: str
    points: frozenset[tuple[int, int]]
    busy_us: int = 0
    share: float = 0.0


def _groups(askers: Sequence[Asker]) -> Iterator[_Group]:
    """The signals of each machine that have one period."""
    found: dict[tuple[int, str, int], list[int]] = {}
    for number, asker in enumerate(askers):
        for point, about in enumerate(zip(asker.machines, asker.every_us, strict=True)):
            found.setdefault((number, *about), []).append(point)
    for (number, machine, every_us), points in found.items():
        busy_us = askers[number].cost.need(np.array(points, dtype=np.int64)).busy_us
        words = f"{machine} ({_counted(len(points))} each {_s(every_us)})"
        yield _Group(words, frozenset((number, point) for point in points), busy_us, busy_us / every_us)


def _slower(askers: Sequence[Asker], groups: Sequence[_Group]) -> str | None:
    """In words: the fewest signals whose rate halved is enough, or else the shortest period that the line can keep."""
    periods: dict[int, set[tuple[int, int]]] = {}
    for number, asker in enumerate(askers):
        for point, every_us in enumerate(asker.every_us):
            periods.setdefault(every_us, set()).add((number, point))
    every = frozenset().union(*periods.values())
    tried = [
        *groups[:GROUPS_TRIED],
        *(_Group(f"all {_counted(len(p))} each {_s(every_us)}", frozenset(p)) for every_us, p in periods.items()),
        _Group(f"all {_counted(len(every))} of the line", every),
    ]
    tried.sort(key=lambda group: len(group.points))
    halved = [(group, weighed(_with_periods(askers, group.points, 2))) for group in tried]
    for share in (BUSY, FULL):
        for group, weight in halved:
            if weight.fits(share):
                return f"halve the rate of {group.words}: then {_then(weight)}"
    now_us = min(periods)
    longer = {round(each * SECOND_US) for each in ROUND_S} | {times * now_us for times in MULTIPLES}
    for every_us in sorted(each for each in longer if each > now_us):
        weight = weighed([_at_least(asker, every_us) for asker in askers])
        if weight.fits(BUSY):
            return f"read nothing more often than each {_s(every_us)}: then {_then(weight)}"
    return None


def _with_periods(askers: Sequence[Asker], points: frozenset[tuple[int, int]], times: int) -> list[Asker]:
    return [
        replace(
            asker,
            every_us=tuple(
                every * times if (number, point) in points else every for point, every in enumerate(asker.every_us)
            ),
        )
        for number, asker in enumerate(askers)
    ]


def _at_least(asker: Asker, shortest_us: int) -> Asker:
    return replace(asker, every_us=tuple(max(every, shortest_us) for every in asker.every_us))


def _then(weight: Weight) -> str:
    return f"{_percent(weight.share)} busy, {_s(weight.busiest.busy_us)} of {_s(weight.within_us)} at most"


def _rate(cost: LineCost) -> str:
    return cost.words.removeprefix("at ")


def _s(span_us: float) -> str:
    return f"{_number(span_us / SECOND_US)} s"


def _number(number: float) -> str:
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else "less than 1 %"


def _counted(count: int) -> str:
    return f"{count} signal{'s' if count != 1 else ''}"
