"""Rows of one machine that follow each other, as columns: what the history keeps, and its way to bytes and back. Pure.

Rule 1: the frames that went in come out again, cut where they were cut and equal to the bit. Rule 2: the axis (times,
numbers, states) is read once for all columns, and a column without any other. Rule 3: what was stamped by a clock that
nobody had set comes here put right, or marked.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from edge_agent.contract import CODE_MASK, SECOND_US, Bools, Codes, Floats, Frame, Ints, Quality
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store import chunks
from edge_agent.store.rows import LATE, STAMPS, TICK, WORDS, Kept

Cells = npt.NDArray[np.void]

CELL_US = 300 * SECOND_US
"""Sums within a chunk are kept for each five minutes: a week is drawn without unpacking a reading."""
CELL_SHARE = 8
"""Cells with fewer readings than this are not worth their bytes: the readings are unpacked instead."""
CELLS = np.dtype([("cell", "<i8"), ("count", "<i4"), ("bad", "<i4"), ("low", "<f8"), ("high", "<f8"), ("total", "<f8")])
_HEAD = struct.Struct("<II")
"""Frames and rows."""
_QUICK = 1


class Placed(NamedTuple):
    """A frame with its place among all frames and commands of the history."""

    place: int
    kept: Kept


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """What the columns of a stretch share.

    places, counts: (frames,) int64, the place of each frame and how many rows it has. flags: (frames,) uint8, see rows.
    words: of each frame with the flag WORDS, JSON. t, ts: (rows,) int64 µs.
    seqs: (rows,) int64, 0: published nothing. state: (rows,) int16.
    """

    places: Ints
    counts: Ints
    flags: Codes
    words: tuple[bytes, ...]
    t: Ints
    ts: Ints
    seqs: Ints
    state: npt.NDArray[np.int16]

    @property
    def stamped(self) -> Bools:
        """(rows,): the rows of frames that say when each value was taken."""
        return np.repeat((self.flags & STAMPS) != 0, self.counts)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """values: (rows, signals) float64. quality: (rows, signals) uint8. at: (stamped rows, signals) int64."""

    layout: Layout
    epoch: str
    axis: Axis
    values: Floats
    quality: Codes
    at: Ints


class Column(NamedTuple):
    """One signal of a stretch. values, quality: (rows,). at: (stamped rows,)."""

    values: Floats
    quality: Codes
    at: Ints


@dataclass(frozen=True, slots=True)
class Sums:
    """What a trend needs of a column. count: good and uncertain readings; bad: rows that were bad.

    low, high, total: of those counted, NaN where none is. cells: the same for each five minutes, as bytes; empty: not kept.
    """

    count: int
    bad: int
    low: float
    high: float
    total: float
    cells: bytes


# --- frames -------------------------------------------------------------------------------------------------------------


def gathered(layout: Layout, epoch: str, frames: Sequence[Placed]) -> Stretch:
    """Frames of one layout and epoch, in order, as one stretch."""
    all_judged = [placed.kept.judged for placed in frames]
    its = [judged.frame for judged in all_judged]
    width = len(layout.signals)
    axis = Axis(
        np.array([placed.place for placed in frames], dtype=np.int64),
        np.array([len(frame.t) for frame in its], dtype=np.int64),
        np.array([_flags(frame) for frame in its], dtype=np.uint8),
        tuple(orjson.dumps(frame.words) for frame in its if frame.words is not None),
        _chained([frame.t for frame in its], np.int64),
        _chained([frame.ts for frame in its], np.int64),
        _chained([placed.kept.seqs for placed in frames], np.int64),
        _chained([judged.state for judged in all_judged], np.int16),
    )
    stamps = [frame.at for frame in its if frame.at is not None]
    return Stretch(
        layout,
        epoch,
        axis,
        _chained([frame.values for frame in its], np.float64, width),
        _chained([frame.quality for frame in its], np.uint8, width),
        _chained(stamps, np.int64, width),
    )


def joined(parts: Sequence[Stretch]) -> Stretch:
    """Stretches of one layout and epoch, in order, as one."""
    axes = [part.axis for part in parts]
    axis = Axis(
        _chained([each.places for each in axes], np.int64),
        _chained([each.counts for each in axes], np.int64),
        _chained([each.flags for each in axes], np.uint8),
        tuple(words for each in axes for words in each.words),
        _chained([each.t for each in axes], np.int64),
        _chained([each.ts for each in axes], np.int64),
        _chained([each.seqs for each in axes], np.int64),
        _chained([each.state for each in axes], np.int16),
    )
    width = len(parts[0].layout.signals)
    return Stretch(
        parts[0].layout,
        parts[0].epoch,
        axis,
        _chained([part.values for part in parts], np.float64, width),
        _chained([part.quality for part in parts], np.uint8, width),
        _chained([part.at for part in parts], np.int64, width),
    )


def cut(whole: Stretch, first: int, last: int) -> Stretch:
    """The frames first to last (not included) of a stretch."""
    axis = whole.axis
    edges = np.concatenate(([0], np.cumsum(axis.counts)))
    rows = slice(int(edges[first]), int(edges[last]))
    words = np.concatenate(([0], np.cumsum((axis.flags & WORDS) != 0)))
    stamps = np.concatenate(([0], np.cumsum(np.where((axis.flags & STAMPS) != 0, axis.counts, 0))))
    its = slice(first, last)
    part = Axis(
        axis.places[its],
        axis.counts[its],
        axis.flags[its],
        axis.words[int(words[first]) : int(words[last])],
        axis.t[rows],
        axis.ts[rows],
        axis.seqs[rows],
        axis.state[rows],
    )
    stamped = slice(int(stamps[first]), int(stamps[last]))
    return Stretch(whole.layout, whole.epoch, part, whole.values[rows], whole.quality[rows], whole.at[stamped])


def frames(whole: Stretch) -> Iterator[Placed]:
    """The frames that were gathered."""
    axis = whole.axis
    row = stamp = word = 0
    publish = axis.seqs != 0
    for place, count, flags in zip(axis.places.tolist(), axis.counts.tolist(), axis.flags.tolist(), strict=True):
        rows = slice(row, row + count)
        at = words = None
        if flags & STAMPS:
            at, stamp = whole.at[stamp : stamp + count], stamp + count
        if flags & WORDS:
            words, word = tuple(map(tuple, orjson.loads(axis.words[word]))), word + 1
        frame = Frame(
            whole.layout.machine,
            axis.t[rows],
            axis.ts[rows],
            whole.values[rows],
            whole.quality[rows],
            at,
            bool(flags & TICK),
            words,
            bool(flags & LATE),
        )
        row += count
        yield Placed(place, Kept(0, whole.layout, JudgedFrame(frame, axis.state[rows], publish[rows]), axis.seqs[rows]))


def _flags(frame: Frame) -> int:
    flags = (TICK if frame.tick else 0) | (LATE if frame.late else 0)
    return flags | (STAMPS if frame.at is not None else 0) | (WORDS if frame.words is not None else 0)


def _chained(
    parts: Sequence[npt.NDArray[np.generic]], dtype: type[np.generic], width: int | None = None
) -> npt.NDArray:  # type: ignore[type-arg]
    if not parts:
        return np.empty(0 if width is None else (0, width), dtype=dtype)
    return np.concatenate(parts).astype(dtype, copy=False)


# --- bytes --------------------------------------------------------------------------------------------------------------


def pack_axis(axis: Axis) -> bytes:
    told = axis.seqs != 0
    pieces = [
        _HEAD.pack(len(axis.places), len(axis.t)),
        chunks.pack_ints(axis.places),
        chunks.pack_ints(axis.counts),
        chunks.pack_codes(axis.flags),
        zlib.compress(chunks.joined(list(axis.words)), chunks.LEVEL) if axis.words else b"",
        chunks.pack_ints(axis.t),
        chunks.pack_ints(axis.ts - axis.t),
        chunks.pack_codes(told.view(np.uint8)),
        chunks.pack_ints(axis.seqs[told]),
        chunks.pack_ints(axis.state.astype(np.int64)),
    ]
    return chunks.joined(pieces)


def unpack_axis(blob: bytes) -> Axis:
    """Raises one of chunks.DAMAGED."""
    head, places, counts, flags, words, t, shift, told, seqs, state = chunks.parted(blob)
    number, rows = _HEAD.unpack(head)
    its_t = chunks.unpack_ints(t, rows)
    which = chunks.unpack_codes(told, rows) != 0
    its_seqs = np.zeros(rows, dtype=np.int64)
    its_seqs[which] = chunks.unpack_ints(seqs, int(np.count_nonzero(which)))
    return Axis(
        chunks.unpack_ints(places, number),
        chunks.unpack_ints(counts, number),
        chunks.unpack_codes(flags, number),
        tuple(chunks.parted(zlib.decompress(words))) if words else (),
        its_t,
        chunks.unpack_ints(shift, rows) + its_t,
        its_seqs,
        chunks.unpack_ints(state, rows).astype(np.int16),
    )


def pack_column(whole: Stretch, column: int) -> bytes:
    """One signal, as small as it gets."""
    quality = np.ascontiguousarray(whole.quality[:, column])
    values = np.ascontiguousarray(whole.values[:, column])
    shift = whole.at[:, column] - whole.axis.ts[whole.axis.stamped] if len(whole.at) else np.empty(0, dtype=np.int64)
    return chunks.joined(
        [chunks.pack_codes(quality), chunks.pack_floats(values, ~fresh(quality)), chunks.pack_ints(shift)]
    )


def unpack_column(blob: bytes, axis: Axis) -> Column:
    """Raises one of chunks.DAMAGED."""
    codes, floats, shift = chunks.parted(blob)
    rows = len(axis.t)
    quality = chunks.unpack_codes(codes, rows)
    values = chunks.unpack_floats(floats, rows, ~fresh(quality))
    if not shift:
        return Column(values, quality, np.empty(0, dtype=np.int64))
    stamps = axis.ts[axis.stamped]
    return Column(values, quality, stamps + chunks.unpack_ints(shift, len(stamps)))


def lost_column(axis: Axis) -> Column:
    """A signal whose chunk is damaged: nothing is known of it, and nothing holds."""
    rows, stamps = len(axis.t), axis.ts[axis.stamped]
    return Column(np.full(rows, np.nan), np.full(rows, Quality.MISSING, dtype=np.uint8), stamps)


def pack_block(whole: Stretch) -> bytes:
    """All of a stretch at once: quick, and small enough for an hour."""
    values = np.ascontiguousarray(whole.values.T).view(np.uint8).reshape(-1, 8)
    quality = np.ascontiguousarray(whole.quality.T).reshape(-1)
    return chunks.joined(
        [
            pack_axis(whole.axis),
            zlib.compress(np.ascontiguousarray(values.T).tobytes(), _QUICK),
            chunks.pack_codes(quality),
            zlib.compress(whole.at.tobytes(), _QUICK) if len(whole.at) else b"",
        ]
    )


def unpack_block(blob: bytes, layout: Layout, epoch: str) -> Stretch:
    """Raises one of chunks.DAMAGED."""
    head, floats, codes, stamps = chunks.parted(blob)
    axis, width = unpack_axis(head), len(layout.signals)
    rows = len(axis.t)
    planes = np.frombuffer(zlib.decompress(floats), dtype=np.uint8).reshape(8, rows * width)
    values = np.ascontiguousarray(planes.T).view(np.float64).reshape(width, rows).T
    quality = chunks.unpack_codes(codes, rows * width).reshape(width, rows).T
    at = np.frombuffer(zlib.decompress(stamps) if stamps else b"", dtype=np.int64).reshape(-1, width)
    return Stretch(layout, epoch, axis, values, quality, at)


def unpack_chunks(layout: Layout, epoch: str, axis: Axis, columns: Iterable[Column]) -> Stretch:
    """A stretch from its axis and all its columns."""
    its = list(columns)
    rows, width = len(axis.t), len(layout.signals)
    stamps = int(np.count_nonzero(axis.stamped))
    values, quality = np.empty((rows, width), order="F"), np.empty((rows, width), dtype=np.uint8, order="F")
    at = np.empty((stamps, width), dtype=np.int64)
    for i, column in enumerate(its):
        values[:, i], quality[:, i] = column.values, column.quality
        if stamps:
            at[:, i] = column.at
    return Stretch(layout, epoch, axis, values, quality, at)


# --- sums ---------------------------------------------------------------------------------------------------------------


def fresh(quality: Codes) -> Bools:
    """Where a reading came that may be counted: good, or uncertain."""
    code = quality & CODE_MASK
    return np.asarray((code == Quality.GOOD) | (code == Quality.UNCERTAIN))


def spoken(quality: Codes) -> Bools:
    """Where something came, good or bad."""
    return np.asarray((quality & CODE_MASK) != Quality.HOLD)


def sums_of(ts: Ints, values: Floats, quality: Codes) -> Sums:
    """All arguments (rows,)."""
    table = cells_of(ts, values, quality, CELL_US)
    count = int(table["count"].sum())
    kept = table.tobytes() if len(table) > 1 and len(table) * CELL_SHARE <= len(ts) else b""
    if not count:
        return Sums(0, int(table["bad"].sum()), np.nan, np.nan, np.nan, kept)
    some = table[table["count"] > 0]
    return Sums(
        count,
        int(table["bad"].sum()),
        float(some["low"].min()),
        float(some["high"].max()),
        float(some["total"].sum()),
        kept,
    )


def cells_of(ts: Ints, values: Floats, quality: Codes, step_us: int) -> Cells:
    """One row for each whole step of UTC in which there was something: see CELLS; low, high, total are NaN without count."""
    counted = fresh(quality) & np.isfinite(values)
    bad = (quality & CODE_MASK) > Quality.UNCERTAIN
    cell = ts // step_us
    if (np.diff(cell) < 0).any():
        order = np.argsort(cell, kind="stable")
        cell, counted, bad, values = cell[order], counted[order], bad[order], values[order]
    edges = np.flatnonzero(np.diff(cell, prepend=cell[:1] - 1)) if len(cell) else np.empty(0, dtype=np.intp)
    table = np.zeros(len(edges), dtype=CELLS)
    if not len(edges):
        return table
    table["cell"] = cell[edges]
    table["count"] = np.add.reduceat(counted, edges, dtype=np.int64)
    table["bad"] = np.add.reduceat(bad, edges, dtype=np.int64)
    none = table["count"] == 0
    for name, reduce, neutral in (("low", np.minimum, np.inf), ("high", np.maximum, -np.inf), ("total", np.add, 0.0)):
        with np.errstate(all="ignore"):
            table[name] = np.where(none, np.nan, reduce.reduceat(np.where(counted, values, neutral), edges))
    return table[(table["count"] > 0) | (table["bad"] > 0)]
