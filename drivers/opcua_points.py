"""What is known of each point of a session, as columns: its node, who tells of it, and its last reading. Pure.

Rule: a point is asked only when its node is known to be the variable that the configuration means (`known`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from drivers import opcua_decode as decode
from drivers import opcua_status as status
from drivers.opcua_settings import Address, NodeName, node_text, parse_node_id
from drivers.opcua_subscription import Told
from edge_agent.contract import SECOND_US, Bools, Codes, Floats, Ints, Point, Quality, Readings

NEVER_US, EVER_US = -(2**62), 2**62
TYPES = {
    1: "Boolean", 2: "SByte", 3: "Byte", 4: "Int16", 5: "UInt16", 6: "Int32", 7: "UInt32", 8: "Int64", 9: "UInt64",
    10: "Float", 11: "Double", 12: "String", 13: "DateTime", 14: "Guid", 15: "ByteString", 16: "XmlElement",
    17: "NodeId", 18: "ExpandedNodeId", 19: "StatusCode", 20: "QualifiedName", 21: "LocalizedText",
    22: "structure", 23: "DataValue", 24: "Variant", 25: "DiagnosticInfo",
}  # fmt: skip
"""Names of the variant types: OPC UA Part 6, 5.1.2."""
USUAL_US = 1_000_000
"""Where nobody said how often a point is read."""


@dataclass(slots=True)
class Points:
    """All arrays are (points,).

    known: the node was found and is the one that was meant. told: the server tells its changes. item: its number there.
    heard: its item has said its first word; until then nobody vouches for what was read before it was made.
    values, quality, ts, status, typed: the last reading; quality HOLD while there was none. news_us: monotonic µs of it.
    suspect_us: when a look showed another value than the server had told, NEVER_US: it did not.
    again: must be read once although the server tells its changes.
    """

    points: tuple[Point, ...]
    names: tuple[NodeName, ...]
    every: Ints
    """How often each is read, µs."""
    by_hand: Bools
    """An element of an array or a member of a structure: decoded one by one."""
    known: Bools
    told: Bools
    heard: Bools
    item: Ints
    again: Bools
    values: Floats
    quality: Codes
    ts: Ints
    status: npt.NDArray[np.uint32]
    typed: Codes
    news_us: Ints
    suspect_us: Ints
    words: dict[int, str] = field(default_factory=dict)
    """Of points that are not known: why."""

    def __len__(self) -> int:
        return len(self.points)

    def address(self, point: int) -> Address:
        settings: Address = self.points[point].settings
        return settings

    def every_us(self, point: int) -> int:
        return int(self.every[point])

    def note(self, at: Ints, column: decode.Column | Told, now_us: int) -> None:
        """Take readings as the last ones of these points; where a point occurs more than once, its last one."""
        self.values[at], self.quality[at], self.ts[at] = column.values, column.quality, column.ts
        self.status[at], self.typed[at] = column.status, column.typed
        self.news_us[at] = now_us
        self.suspect_us[at] = NEVER_US
        self.again[at] = False

    def last(self, at: Ints) -> decode.Column:
        """The last readings of these points, as they can be noted again."""
        return decode.Column(None, self.values[at], self.quality[at], self.ts[at], self.status[at], self.typed[at])

    def explain(self, point: int) -> str:
        """See contract.Session.explain."""
        if point in self.words:
            return self.words[point]
        code, quality = int(self.status[point]), int(self.quality[point])
        if code >= status.UNCERTAIN:
            advice = status.advice(code)
            return status.name(code) + (f": {advice}" if advice else "")
        match quality:
            case Quality.OTHER | Quality.MISSING:
                return unfit(int(self.typed[point]))
            case Quality.PRECISION:
                return "an integer beyond 2^53, which would be rounded"
            case Quality.NOT_A_NUMBER:
                return "the variable holds NaN or infinity"
            case Quality.CLOCK:
                return "the source's clock is more than an hour away from this one"
            case _:
                return ""


def unfit(typed: int) -> str:
    """Why a value of this type is no number."""
    if not typed:
        return "the variable holds no value"
    name = TYPES.get(typed & ~decode.ARRAY, f"type {typed & ~decode.ARRAY}")
    if typed & decode.ARRAY:
        return f"an array of {name}, not a number; `index` chooses an element"
    return f"a {name}, not a number" + ("; `member` chooses a number of it" if name == "structure" else "")


def points_of(points: Sequence[Point]) -> Points:
    """Points of which nothing is known yet."""
    n = len(points)
    by_hand = [point.settings.index is not None or point.settings.member is not None for point in points]
    return Points(
        points=tuple(points),
        names=tuple(parse_node_id(point.settings.address) for point in points),
        every=np.array([point.every_us or USUAL_US for point in points], np.int64),
        by_hand=np.array(by_hand, np.bool_),
        known=np.zeros(n, np.bool_),
        told=np.zeros(n, np.bool_),
        heard=np.zeros(n, np.bool_),
        item=np.full(n, -1, np.int64),
        again=np.zeros(n, np.bool_),
        values=np.full(n, np.nan),
        quality=np.full(n, Quality.HOLD, np.uint8),
        ts=np.zeros(n, np.int64),
        status=np.zeros(n, np.uint32),
        typed=np.zeros(n, np.uint8),
        news_us=np.full(n, NEVER_US, np.int64),
        suspect_us=np.full(n, NEVER_US, np.int64),
    )


def carried_over(old: Points, points: Sequence[Point]) -> tuple[Points, dict[int, int], list[int]]:
    """Other points over the same line: what is known of those that stay is kept.

    Returns them, the new place of each old one that stays, and the old ones that the server need tell no longer.
    """
    new = points_of(points)
    there = {(p.name, p.settings, p.every_us): place for place, p in enumerate(old.points)}
    moved: dict[int, int] = {}
    for place, point in enumerate(new.points):
        before = there.pop((point.name, point.settings, point.every_us), None)
        if before is not None:
            moved[before] = place
            if before in old.words:
                new.words[place] = old.words[before]
    was, now = np.array(list(moved), np.int64), np.array(list(moved.values()), np.int64)
    for each in fields(Points):
        if isinstance(array := getattr(new, each.name), np.ndarray):
            array[now] = getattr(old, each.name)[was]
    return new, moved, [place for place in np.flatnonzero(old.item >= 0).tolist() if place not in moved]


# --------------------------------------------------------------------------------------------------------------- rows


def rows_of(told: Iterable[Told], due: Ints, count: int, since_us: int) -> tuple[list[Readings], list[Told]]:
    """What was told as blocks of rows for these points, and what of it was for others.

    told: handles are points. count: of all points. since_us: monotonic, no row is older. A point that was told several
    times in one answer has as many rows, its last value in the last; rows come when the server says they were measured,
    between this answer and the one before.
    """
    place = np.full(count, -1, np.int64)
    place[due] = np.arange(len(due))
    blocks: list[Readings] = []
    others: list[Told] = []
    for each in told:
        at = place[each.handle]
        mine = at >= 0
        if not mine.all():
            others.append(each.only(~mine))
            each = each.only(mine)  # noqa: PLW2901
            at = at[mine]
        if len(at):
            blocks.append(_block(each, at, len(due), since_us))
            since_us = each.t_us
    return blocks, others


def _block(told: Told, at: Ints, width: int, since_us: int) -> Readings:
    row, rows = _row_numbers(at, width)
    values, quality = np.full((rows, width), np.nan), np.full((rows, width), Quality.HOLD, np.uint8)
    ts = np.full((rows, width), NEVER_US, np.int64)
    values[row, at], quality[row, at], ts[row, at] = told.values, told.quality, told.ts
    newest = ts.max(axis=1)
    ts = np.where(ts == NEVER_US, newest[:, np.newaxis], ts)
    t = np.clip(told.t_us - (newest[-1] - newest), min(since_us, told.t_us), told.t_us)
    return Readings(values, quality, ts, np.maximum.accumulate(t))


def _row_numbers(at: Ints, width: int) -> tuple[Ints, int]:
    """For each value its row, and how many rows there are: the last value of every point stands in the last row."""
    counts = np.bincount(at, minlength=width)
    rows = int(counts.max())
    if rows == 1:
        return np.zeros(len(at), np.int64), 1
    order = np.argsort(at, kind="stable")
    ends = np.cumsum(counts)
    from_the_end = np.empty(len(at), np.int64)
    from_the_end[order] = ends[at[order]] - 1 - np.arange(len(at))
    return rows - 1 - from_the_end, rows


def stacked(blocks: Sequence[Readings], now_us: int) -> Readings:
    """All rows in one; the last one is now."""
    t = np.concatenate([block.t for block in blocks if block.t is not None])
    t[-1] = now_us
    return Readings(
        np.concatenate([block.values for block in blocks]),
        np.concatenate([block.quality for block in blocks]),
        np.concatenate([block.ts for block in blocks]),
        np.maximum.accumulate(t),
    )


def merge(blocks: list[Readings], last: Readings, now: int, read: Bools) -> None:
    """Put how things stand into the last row, where nothing was told; a row of the past gets one after it.

    read: (due,) which of them were asked; what was told of them is older, and keeps its row.
    """
    tail = blocks[-1]
    free = tail.quality[-1] == Quality.HOLD
    if (tail.t is not None and now - int(tail.t[-1]) > SECOND_US) or (read & ~free).any():
        blocks.append(
            Readings(last.values[np.newaxis], last.quality[np.newaxis], last.ts[np.newaxis], np.array([now], np.int64))
        )
        return
    tail.values[-1, free], tail.quality[-1, free] = last.values[free], last.quality[free]
    fresh = free & (last.quality != Quality.HOLD)
    tail.ts[-1, fresh] = last.ts[fresh]


def columns(readings: Readings, chosen: Bools | Ints) -> Readings | None:
    """Some columns, and the rows in which they say something; None: none do."""
    assert readings.t is not None
    values, quality, ts = readings.values[:, chosen], readings.quality[:, chosen], readings.ts[:, chosen]
    rows = (quality != Quality.HOLD).any(axis=1)
    return Readings(values[rows], quality[rows], ts[rows], readings.t[rows]) if rows.any() else None


def spread(readings: Readings, at: Ints, width: int) -> Readings:
    """The same rows with a column for each point that is due."""
    rows = len(readings.values)
    values, quality = np.full((rows, width), np.nan), np.full((rows, width), Quality.HOLD, np.uint8)
    ts = np.repeat(readings.ts.max(axis=1)[:, np.newaxis], width, axis=1)
    values[:, at], quality[:, at], ts[:, at] = readings.values, readings.quality, readings.ts
    return Readings(values, quality, ts, readings.t)


def title(uris: Sequence[str], index: int, identifier: Any) -> str:
    """A node of the server in words, with its namespace's URI."""
    return node_text(uris[index] if 0 < index < len(uris) else None, index, identifier)
