"""Which registers of one table can be read, found with few requests. Pure: it is told what became of each request.

Rule 1: first few single registers far apart, then everything around those that answer, to the last register.
Rule 2: a refused block is cut in halves; whether a hole, a seam or the device's block limit refused it is asked, not
supposed. Rule 3: requests and silences have a limit; what was found until then stands, and says that it is not all.
"""

from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from drivers.modbus_map import SPACE, WORDS_MAX, Table

BITS_MAX = 2000
"""Coils or discrete inputs in one read: Application Protocol 6.1."""
REQUESTS_MAX = 1500
SILENCES_MAX = 12
"""A device that keeps silent where it has nothing costs a timeout for each hole."""
DENSE_MAX = 250
"""So few registers are asked one by one where they refuse to be read together."""
LOOK_AHEAD = (1, 2, 4, 8, 16, 32)
"""Registers behind the end of a range that are tried: holes in a map are mostly small."""
FIRST, LAST = 0, 9999
LANDMARKS = (12_289, 16_385, 20_481, 30_001, 32_769, 40_001, 40_070, 49_153, 50_001, 60_001)
"""Beyond the usual range: where maps begin that count from 30001, 40001 (SunSpec) or in hexadecimal thousands."""
LANDMARK_SPAN, BEFORE = 1000, 16
"""Registers behind and before a landmark to which what lies there is followed."""
PAIR_PROBES = 25
"""Probes of two registers, for devices that give no half of a value; tried where single ones found nothing."""


class Reply(Enum):
    """What became of a request."""

    DATA = "data"
    REFUSED = "refused"
    """Exceptions 2, 3 and others: not this block."""
    ABSENT = "absent"
    """Exception 1: the device does not know the function."""
    SILENT = "silent"


class Span(NamedTuple):
    """A read of `size` registers (or bits) from `start` on."""

    start: int
    size: int

    @property
    def last(self) -> int:
        return self.start + self.size - 1


@dataclass(slots=True)
class Extent:
    """What is known of a table. ranges: readable, ascending; two that touch cannot be read in one request.

    block: the most that was read at once. limited: more is refused wherever it is asked. absent: there is no such table.
    pairs: only values of two registers are given. cut: why it is not all, '' when it is. open_end: it may go on behind
    the last register that was to be asked.
    """

    ranges: list[Span] = field(default_factory=list)
    block: int = 0
    limited: bool = False
    absent: bool = False
    pairs: bool = False
    cut: str = ""
    open_end: bool = False
    requests: int = 0

    @property
    def count(self) -> int:
        return sum(span.size for span in self.ranges)

    def blocks(self) -> list[Span]:
        """The reads that bring all of it."""
        most = max(self.block, 1)
        step = most - most % 4 if most >= 4 else most  # no value of up to four registers is torn, where starts are even
        return [
            Span(at, min(step, span.start + span.size - at))
            for span in self.ranges
            for at in range(span.start, span.start + span.size, step)
        ]


class Area(NamedTuple):
    """Where to look: probes in ascending order, and the last register to which what is found is followed."""

    first: int
    last: int
    probes: tuple[int, ...]


def areas(table: Table, wanted: Iterable[tuple[int, int]] = ()) -> tuple[Area, ...]:
    """Where to look in a table: what somebody wants (first, last), or else where devices usually have something."""
    wished = tuple(wanted)
    if wished:
        return tuple(Area(first, last, _probes(table, first, last)) for first, last in wished)
    usual = Area(FIRST, LAST, _probes(table, FIRST, LAST))
    if table < Table.HOLDING:
        return (usual,)
    beyond = [Area(mark - BEFORE, min(mark + LANDMARK_SPAN, SPACE) - 1, (mark,)) for mark in LANDMARKS]
    return (usual, *beyond)


def _probes(table: Table, first: int, last: int) -> tuple[int, ...]:
    """The first, then one more than each four, ten, fifty, hundred: it also hits maps that begin one earlier or later."""
    if last - first < DENSE_MAX:
        return tuple(range(first, last + 1))
    found = [first]
    for at in range(first + 1, last + 1):
        step = _step(table, at - first)
        if at % step == 1:
            found.append(at)
    return tuple(found)


def _step(table: Table, offset: int) -> int:
    if table < Table.HOLDING:
        return 100 if offset < 1000 else 1000
    return 4 if offset < 32 else 10 if offset < 100 else 50 if offset < 500 else 100


class _Enough(Exception):
    """The limit of requests or silences is reached."""


Steps = Generator[Span, Reply, None]
Answered = Generator[Span, Reply, bool]
Counted = Generator[Span, Reply, int]


@dataclass(slots=True)
class Survey:
    """`run` yields the next read to ask and is sent what became of it; `extent` is right at any moment.

    passed, planned: probes, for whoever wants to know how far it is.
    """

    table: Table
    where: tuple[Area, ...]
    extent: Extent = field(default_factory=Extent)
    passed: int = 0
    _size: int = 0
    _grain: int = 1
    _known: dict[Span, bool] = field(default_factory=dict)
    _replies: Counter[Reply] = field(default_factory=Counter)
    _silent_in_a_row: int = 0

    @property
    def planned(self) -> int:
        """Probes from the first to the last; what lies around hits comes on top."""
        return sum(len(area.probes) for area in self.where)

    def run(self) -> Steps:
        self._size = WORDS_MAX if self.table >= Table.HOLDING else BITS_MAX
        try:
            for number, area in enumerate(self.where):
                if number and self._all_of(self.where[0]):
                    break  # a device that has everything has this, too
                yield from self._area(area)
                if self.extent.absent:
                    break
            if (
                not self.extent.ranges
                and not self.extent.absent
                and self.table >= Table.HOLDING
                and self._replies[Reply.REFUSED]
            ):
                yield from self._pairs()
        except _Enough as enough:
            self.extent.cut = str(enough)
        self.passed = self.planned

    # ----------------------------------------------------------------------------------------------------- one area

    def _area(self, area: Area) -> Steps:
        """Probe by probe; what is around a hit is followed to its ends."""
        # Everything before it is decided.
        done = max(area.first, self.extent.ranges[-1].last + 1 if self.extent.ranges else 0)
        for probe in area.probes:
            if probe < done:
                self.passed += 1
                continue
            if (yield from self._probe(probe, area)):
                start = yield from self._left(probe, done)
                done = yield from self._right(start, probe, area.last + 1)
                done = yield from self._behind(done, area)
            if self.extent.absent:
                return
            self.passed += 1
        if self.extent.ranges and self.extent.ranges[-1].last == area.last < SPACE - 1:
            self.extent.open_end = True

    def _probe(self, probe: int, area: Area) -> Answered:
        """One register; the very first time a whole block, which most devices give."""
        whole = min(self._size, area.last + 1 - probe)
        if not self._replies and whole > 1 and (yield from self._ask(probe, whole)):
            return True
        return (yield from self._ask(probe, min(self._grain, whole)))

    def _behind(self, end: int, area: Area) -> Counted:
        """Look over small holes behind the end of a range, and at no probe over them; returns up to where all is decided."""
        stop = area.last + 1
        while True:
            ahead = {end + by * self._grain for by in LOOK_AHEAD if end + by * self._grain < stop}
            furthest = max(ahead, default=end)
            ahead |= {probe for probe in area.probes if end < probe < furthest}
            for probe in sorted(ahead):
                if (yield from self._ask(probe, self._grain)):
                    start = yield from self._left(probe, end + self._grain)
                    end = yield from self._right(start, probe, stop)
                    break
            else:
                return end

    def _all_of(self, area: Area) -> bool:
        return any(span.start <= area.first and span.last >= area.last for span in self.extent.ranges)

    def _pairs(self) -> Steps:
        """The same once more with two registers at a time."""
        self._grain = 2
        for area in self.where:
            even = tuple(dict.fromkeys(probe & ~1 for probe in area.probes if probe & ~1 >= area.first))[:PAIR_PROBES]
            yield from self._area(area._replace(probes=even))
        self.extent.pairs = bool(self.extent.ranges)

    # ------------------------------------------------------------------------------------------------------ growing

    def _left(self, at: int, floor: int) -> Counted:
        """The first register of the range that `at` lies in: ever larger steps down, then halves."""
        most, step = self._size, self._grain
        while at - floor >= self._grain:
            many = min(step, most, at - floor)
            if (yield from self._ask(at - many, many)):
                at, step = at - many, step * 2
                continue
            if many <= self._grain:
                break
            fits = yield from self._fitting(at, many, down=True)
            at -= fits
            if not fits or not (yield from self._ask(at - self._grain, self._grain)):
                break
            most = step = max(fits, self._grain)  # one more alone is readable: it was too much at once
        return at

    def _right(self, start: int, at: int, stop: int) -> Counted:
        """Follow a range up to its end; notes it, in pieces where they cannot be read together. Returns its end."""
        self._note(start, at + self._grain)
        while at < stop:
            many = min(self._size, stop - at)
            if (yield from self._ask(at, many)):
                at += many
                self._note(start, at)
                continue
            fits = yield from self._fitting(at, many)
            at += fits
            if not fits:
                break
            self._note(start, at)
            if at >= stop or not (yield from self._ask(at, min(self._grain, stop - at))):
                break
            if (yield from self._is_limit(at, fits, stop)):
                self._size = fits
                self.extent.limited = True
            else:
                start = at
                self._note(start, at + self._grain)
        return at

    def _fitting(self, at: int, refused: int, *, down: bool = False) -> Counted:
        """The most from `at` on (down: before it) that is answered, when `refused` is not: 0 when not even the least."""
        grain = self._grain
        if refused <= grain or not (yield from self._ask(at - grain if down else at, grain)):
            return 0
        low, high = 1, -(-refused // grain)
        while high - low > 1:
            middle = (low + high) // 2
            if (yield from self._ask(at - middle * grain if down else at, middle * grain)):
                low = middle
            else:
                high = middle
        return low * grain

    def _is_limit(self, at: int, fits: int, stop: int) -> Answered:
        """Both sides of `at` are readable, but not `fits` and one more: is that too much, or do they not belong together?"""
        if fits < self.extent.block:
            return False  # more than that was read elsewhere
        if fits > self._grain:
            return (yield from self._ask(at + self._grain - fits, fits))
        if at + 2 * self._grain > stop:
            return False
        return not (yield from self._ask(at, 2 * self._grain))

    def _note(self, start: int, end: int) -> None:
        """[start, end) is readable."""
        ranges = self.extent.ranges
        if ranges and ranges[-1].start == start:
            ranges.pop()
        ranges.append(Span(start, end - start))

    # ------------------------------------------------------------------------------------------------------- asking

    def _ask(self, start: int, count: int) -> Answered:
        """Whether these can be read together; what was asked before is not asked again."""
        span = Span(start, count)
        if span in self._known:
            return self._known[span]
        if self.extent.requests >= REQUESTS_MAX:
            raise _Enough(f"stopped after {REQUESTS_MAX} requests")
        self.extent.requests += 1
        reply = yield span
        self._replies[reply] += 1
        if reply is Reply.SILENT and self._replies[reply] >= SILENCES_MAX:
            raise _Enough(f"stopped after {SILENCES_MAX} requests without an answer")
        if reply is Reply.ABSENT and not self.extent.block:
            self.extent.absent = count == 1 or self.extent.absent
        good = reply is Reply.DATA
        if good:
            self.extent.block = max(self.extent.block, count)
        self._known[span] = good
        return good
