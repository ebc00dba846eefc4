"""What the devices of a connection have taught: registers that they refuse, holes, and how much they give at once. Pure.

Rule 1: a lesson narrows what is asked together, or rests what was refused all alone; it never changes what a value is.
Rule 2: every lesson is forgotten after a rest, and learned anew if it still holds: twice as long each time, up to a day.
Times are monotonic µs inside, UTC µs in notes.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import uniform
from typing import Any, NamedTuple

import numpy as np

from drivers.modbus_map import WORDS_MAX, Item, Limits, Positions, Table
from edge_agent.contract import Bools, Ints

SECOND_US, DAY_US = 1_000_000, 86_400_000_000
REFUSED_REST_US, SHAPE_REST_US = SECOND_US, 60 * SECOND_US
"""The first rest. A device that is just starting refuses for a moment; to find a hole again costs a dozen requests."""
RETRIES_PER_READ = 2
"""Refused registers whose rest is over: each needs a request of its own."""
NOTES_MAX = 1_000_000


def rest_us(times: int, least_us: int, most_us: int) -> int:
    """How long to leave alone what has failed so many times: doubling, with a quarter of jitter."""
    return int(min(most_us, least_us << min(times, 30)) * uniform(0.75, 1.0))  # noqa: S311 (jitter)


class Place(NamedTuple):
    """Registers (or bits) of a device: [start, end)."""

    unit: int
    table: Table
    start: int
    end: int


def place_of(item: Item) -> Place:
    return Place(item.unit, item.table, item.start, item.start + item.width)


@dataclass(frozen=True, slots=True)
class Rest:
    """Learned so many times in a row; in force until then."""

    times: int
    until_us: int


@dataclass(frozen=True, slots=True)
class _Size:
    """The most registers (or bits) that a unit gives at once."""

    most: int
    rest: Rest


@dataclass(slots=True)
class Lessons:
    """For the items of one session. order, rank: see `modbus_map.address_order`. changed: notes are worth keeping anew."""

    items: Sequence[Item]
    order: Positions
    rank: Positions
    changed: bool = False
    _refused: dict[Place, Rest] = field(default_factory=dict)
    _holes: dict[Place, Rest] = field(default_factory=dict)
    _sizes: dict[tuple[int, bool], _Size] = field(default_factory=dict)
    _rests: Bools = field(init=False)
    """(items,) refused all alone, and not answered since."""
    _until_us: Ints = field(init=False)
    """(items,) when each of those may be asked again."""
    _segment: Ints | None = None
    _shapes_until_us: int = 2**62

    def __post_init__(self) -> None:
        self._lay_out()

    # ---------------------------------------------------------------------------------------------- what may be asked

    @property
    def refused_points(self) -> int:
        return int(self._rests.sum())

    def asked(self, due: Ints, now_us: int) -> Ints:
        """Of the due items those that may be asked now: without what rests, and of what has rested a few."""
        if now_us >= self._shapes_until_us:
            self._lay_out(now_us)
        if not self._rests.any():
            return due
        resting = self._rests[due]
        if not resting.any():
            return due
        again = np.flatnonzero(resting & (self._until_us[due] <= now_us))[:RETRIES_PER_READ]
        resting[again] = False
        return due[~resting]

    def limits(self, base: Limits) -> Limits:
        most = {key: size.most for key, size in self._sizes.items() if size.rest.until_us}
        return replace(base, units=most) if most else base

    @property
    def segment(self) -> Ints | None:
        """(items,) see `make_plan`: what may not share a block. None: everything may."""
        return self._segment

    def explained(self, block: Place) -> bool:
        """Whether what is known is reason enough for its refusal."""
        size = self._sizes.get((block.unit, block.table >= Table.HOLDING))
        if size is not None and size.rest.until_us and block.end - block.start > size.most:
            return True
        return any(
            rest.until_us and (at.unit, at.table) == block[:2] and at.start < block.end and block.start < at.end
            for known in (self._holes, self._refused)
            for at, rest in known.items()
        )

    # -------------------------------------------------------------------------------------------------- what is learned

    def refuse(self, points: Ints, now_us: int) -> None:
        """These were refused, each all alone (or as the whole of a table that the device does not have)."""
        for place in {place_of(self.items[i]) for i in points.tolist()}:
            self._refused[place] = _again(self._refused.get(place), now_us, REFUSED_REST_US)
        self._learned()

    def answered(self, points: Ints) -> bool:
        """These were answered. True when one had been refused: its device has changed, all of it may be asked anew."""
        back = points[self._rests[points]]
        if not len(back):
            return False
        units = {self.items[i].unit for i in back.tolist()}
        self._refused = {place: rest for place, rest in self._refused.items() if place.unit not in units}
        self._learned()
        return True

    def hole(self, at: Place, now_us: int) -> None:
        """A read across these is refused; each side by itself is not."""
        self._holes[at] = _again(self._holes.get(at), now_us, SHAPE_REST_US)
        self._learned()

    def size(self, unit: int, table: Table, most: int, now_us: int) -> None:
        """More than so many at once are refused."""
        key = unit, table >= Table.HOLDING
        before = self._sizes.get(key)
        self._sizes[key] = _Size(most, _again(before.rest if before else None, now_us, SHAPE_REST_US))
        self._learned()

    def _learned(self) -> None:
        self.changed = True
        self._lay_out()

    def retry(self, shapes: bool) -> None:
        """Everything refused may be asked again (a new connection); shapes: holes and sizes too (a reload)."""
        self._refused = {place: Rest(rest.times, 1) for place, rest in self._refused.items()}
        if shapes:
            self._holes = {place: Rest(rest.times, 0) for place, rest in self._holes.items()}
            self._sizes = {key: _Size(size.most, Rest(size.rest.times, 0)) for key, size in self._sizes.items()}
        self._lay_out()

    def _lay_out(self, now_us: int = 0) -> None:
        """What is known, as arrays over the items. Holes and sizes whose rest is over are in force no longer."""
        for place, rest in list(self._holes.items()):
            if 0 < rest.until_us <= now_us:
                self._holes[place] = Rest(rest.times, 0)
        for key, size in list(self._sizes.items()):
            if 0 < size.rest.until_us <= now_us:
                self._sizes[key] = _Size(size.most, Rest(size.rest.times, 0))
        in_force = [rest.until_us for rest in self._holes.values() if rest.until_us]
        in_force += [size.rest.until_us for size in self._sizes.values() if size.rest.until_us]
        self._shapes_until_us = min(in_force, default=2**62)
        rests = (
            [self._refused.get(place_of(item)) for item in self.items] if self._refused else [None] * len(self.items)
        )
        self._rests = np.array([rest is not None for rest in rests], dtype=np.bool_)
        self._until_us = np.array([rest.until_us if rest else 0 for rest in rests], dtype=np.int64)
        cut = np.zeros(len(self.items) + 1, dtype=np.int64)
        alone = self.rank[np.flatnonzero(self._rests)]
        cut[alone] = cut[alone + 1] = 1
        keys = [(item.unit, item.table, item.start) for item in (self.items[i] for i in self.order.tolist())]
        for place, rest in self._holes.items():
            if rest.until_us:
                cut[bisect_left(keys, (place.unit, place.table, place.end))] = 1
        self._segment = cut[:-1].cumsum()[self.rank] if cut.any() else None

    # ------------------------------------------------------------------------------------------------------------ notes

    def moved(self, items: Sequence[Item], order: Positions, rank: Positions) -> "Lessons":
        """What was learned, for other items of the same devices; all of it is asked again."""
        new = Lessons(items, order, rank, self.changed, self._refused, self._holes, self._sizes)
        new.retry(shapes=True)
        return new

    def notes(self, now_us: int, wall_us: int) -> bytes:
        """For the disk: what was learned, and until when it stays so."""

        def of(rest: Rest) -> list[int]:
            return [rest.times, wall_us + rest.until_us - now_us if rest.until_us else 0]

        plain = {
            "refused": [[*place, *of(rest)] for place, rest in self._refused.items()],
            "holes": [[*place, *of(rest)] for place, rest in self._holes.items()],
            "sizes": [[*key, size.most, *of(size.rest)] for key, size in self._sizes.items()],
        }
        return json.dumps(plain, separators=(",", ":")).encode()

    def recall(self, notes: bytes, now_us: int, wall_us: int) -> None:
        """Take up notes of an earlier life. Refused registers are asked again at once. Raises ValueError for no notes."""
        if len(notes) > NOTES_MAX:
            raise ValueError(f"{len(notes)} bytes of notes")

        def rest(times: Any, until: Any) -> Rest:
            if type(times) is not int or type(until) is not int or not 1 <= times <= 10_000:
                raise ValueError(f"{times!r} times until {until!r}")
            # A clock that was set must not make a rest of years.
            return Rest(times, now_us + min(until - wall_us, DAY_US) if until > wall_us else 0)

        try:
            plain = json.loads(notes)
            refused = {_place(each): rest(*each[4:]) for each in plain["refused"]}
            holes = {_place(each): rest(*each[4:]) for each in plain["holes"]}
            sizes = {
                (int(unit), bool(kind)): _Size(_most(most), rest(*about)) for unit, kind, most, *about in plain["sizes"]
            }
        except (KeyError, TypeError, IndexError, RecursionError) as error:
            raise ValueError(f"no notes: {error!r}") from error
        self._refused, self._holes, self._sizes = refused, holes, sizes
        self.retry(shapes=False)


def _again(before: Rest | None, now_us: int, least_us: int) -> Rest:
    times = before.times if before else 0
    return Rest(times + 1, now_us + rest_us(times, least_us, DAY_US))


def _place(numbers: Sequence[Any]) -> Place:
    if not all(type(number) is int for number in numbers[:4]):
        raise ValueError(f"{numbers!r} is no place")
    return Place(numbers[0], Table(numbers[1]), numbers[2], numbers[3])


def _most(most: Any) -> int:
    if type(most) is not int or not 1 <= most <= 16 * WORDS_MAX:
        raise ValueError(f"{most!r} registers at once")
    return most


# ------------------------------------------------------------------------------------------------------------- halves


class Halves(NamedTuple):
    """A refused block in two. gap: what lies between them and is read for nothing; None: they touch."""

    left: Ints
    right: Ints
    gap: Place | None


def halves(items: Sequence[Item], rank: Positions, points: Ints) -> Halves | None:
    """At the hole nearest the middle, or else between two values; None when all of them are one place."""
    by_rank = points[np.argsort(rank[points])]
    places = [place_of(items[i]) for i in by_rank.tolist()]
    ends = np.maximum.accumulate([place.end for place in places])
    starts = np.array([place.start for place in places])
    if (starts == starts[0]).all() and (ends == ends[0]).all():
        return None
    middle = (starts[0] + ends[-1]) / 2
    apart = np.flatnonzero(starts[1:] > ends[:-1]) + 1
    where = apart if len(apart) else np.flatnonzero(starts[1:] >= ends[:-1]) + 1
    if not len(where):
        where = np.arange(1, len(points))
    at = int(where[np.argmin(np.abs(starts[where] - middle))])
    first = places[0]
    gap = Place(first.unit, first.table, int(ends[at - 1]), int(starts[at])) if len(apart) else None
    return Halves(np.sort(by_rank[:at]), np.sort(by_rank[at:]), gap)
