"""Everything of a machine's past in a stretch of time, as columns and as it stood at one moment: what an export reads.

Rule: what is damaged is bad here (`missing`), never a value that holds; and what held before it holds no longer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract import CODE_MASK, Bools, Codes, Floats, Ints, Quality
from edge_agent.records import Layout
from edge_agent.store import disk, rows, shelf, stretch
from edge_agent.store.reader import Reader, reading
from edge_agent.store.rows import LATE, Kept
from edge_agent.store.shelf import Piece, Position
from edge_agent.store.stretch import Placed, Stretch

ROWS_AT_ONCE = 5_000
"""Rows of the journal that are put together."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one machine that follow each other, as judged.

    ts: (rows,) int64 UTC µs. values: (rows, signals) float64. quality: (rows, signals) uint8, see contract.Quality, without
    flags. state: (rows,) int16, index into layout.states. seqs: (rows,) int64, 0: published nothing. late: (rows,) bool, of
    a past that was not judged.
    """

    layout: Layout
    epoch: str
    ts: Ints
    values: Floats
    quality: Codes
    state: Ints
    seqs: Ints
    late: Bools


@dataclass(frozen=True, slots=True)
class Lost:
    """Something that cannot be read, in its place: there may have been readings of these signals."""

    signals: frozenset[str]


class Moment:
    """The folder as it was when it was opened. Raises sqlite3.Error where a file cannot be read."""

    def __init__(self, reader: Reader, position: Position) -> None:
        self._reader, self._position = reader, position
        self.forget: Callable[[frozenset[str]], None] = lambda _signals: None
        """Called by `rows`, between those before and those after, where readings of these signals may be lost."""
        self._layouts = reader.layouts()
        self._whole: tuple[str, list[list[Piece]]] = "", []
        """A machine and all its pieces: `held` is asked for one signal after the other."""

    @property
    def left_out(self) -> int:
        """Rows that were damaged and left out."""
        return self._reader.left_out

    def layouts(self) -> list[Layout]:
        """Of all machines, the oldest first, each once."""
        return list(dict.fromkeys([*self._layouts.values(), *self._reader.layouts_of_journal().values()]))

    def reach(self) -> tuple[int, int] | None:
        """UTC µs of the first and the last row; None where there is none."""
        found = self._spans("min(ts_from), max(ts_to)")
        there = [each for each in found if each[0] is not None]
        return (min(each[0] for each in there), max(each[1] for each in there)) if there else None

    def days(self, day_us: int) -> set[int]:
        """The days (their numbers, of this length) in which rows may lie; all others have none."""
        short, long = f"ts_to - ts_from < {3 * day_us:d}", f"{shelf.TIMED} AND ts_to - ts_from >= {3 * day_us:d}"
        found = self._spans(f"DISTINCT ts_from / {day_us:d}, ts_to / {day_us:d}", day_us, short)
        days = {day for first, last in found for day in range(first, last + 1)}
        # A piece with rows of a clock that nobody had set reaches from 1970 to now, and between them is nothing; and so
        # does one, or a batch, that says so since it is damaged.
        stamps = [self._times(piece) for piece in self._pieces(None, long, ())]
        if self._reader.journal is not None and not self._reader.stamps().spans:
            for (number,) in self._reader.journal.execute(f"SELECT id FROM batches WHERE {long}").fetchall():  # noqa: S608 - ours
                items = self._reader.items(number) or ()
                stamps += [item.judged.frame.ts for item in items if isinstance(item, Kept)]
        return days.union(*(np.unique(ts // day_us).tolist() for ts in stamps))

    def _spans(self, columns: str, unit_us: int = 1, which: str = "TRUE") -> list[tuple[Any, ...]]:
        """columns: what to ask for, in these units. which: of pieces and batches, by what they say of their times."""
        found = []
        if self._reader.kept is not None:
            for table in ("axes", "blocks"):
                asked = f"SELECT {columns} FROM {table} WHERE rows > 0 AND {shelf.TIMED} AND {which}"  # noqa: S608 - ours
                found += self._reader.kept.execute(asked).fetchall()
        if self._reader.stamps().spans:  # its batches know the times before they were put right
            stamps = [judged.judged.frame.ts for _, judged in self._reader.frames(self._position)]
            found += [(int(ts.min()) // unit_us, int(ts.max()) // unit_us) for ts in stamps if len(ts)]
        elif self._reader.journal is not None:
            asked = f"SELECT {columns} FROM batches WHERE ts_to > 0 AND {shelf.TIMED} AND {which}"  # noqa: S608 - ours
            found += self._reader.journal.execute(asked).fetchall()
        return found

    def rows(self, machine: str, from_us: int, to_us: int) -> Iterator[Rows]:
        """All rows of from_us <= ts < to_us, in the order in which they were judged."""
        for whole in self._stretches(machine, from_us, to_us):
            if isinstance(whole, Lost):
                self.forget(whole.signals)
                continue
            axis = whole.axis
            inside = (axis.ts >= from_us) & (axis.ts < to_us)
            if inside.any():
                late = np.repeat((axis.flags & LATE) != 0, axis.counts)
                yield Rows(
                    whole.layout,
                    whole.epoch,
                    axis.ts[inside],
                    whole.values[inside],
                    (whole.quality[inside] & CODE_MASK).astype(np.uint8),
                    axis.state[inside].astype(np.int64),
                    axis.seqs[inside],
                    late[inside],
                )

    def held(self, machine: str, signal: str, before_us: int) -> float:
        """The value that stands at this time: that of the last reading before it; NaN where that was bad or may be lost, or none was."""
        for whole in self._backwards(machine, signal, before_us):
            if isinstance(whole, Lost):
                break
            column, axis = whole.layout.signals.index(signal), whole.axis
            late = np.repeat((axis.flags & LATE) != 0, axis.counts)
            quality = whole.quality[:, column] & CODE_MASK
            spoken = np.flatnonzero((quality != Quality.HOLD) & (axis.ts < before_us) & ~late)
            if len(spoken):
                good = quality[spoken[-1]] in (Quality.GOOD, Quality.UNCERTAIN)
                return float(whole.values[spoken[-1], column]) if good else float("nan")
        return float("nan")

    def watched(
        self, machine: str, signal: str, from_us: int, to_us: int, apart_us: int, most: int
    ) -> list[tuple[int, int]]:
        """From when to when rows of the machine with this signal followed each other no further apart than that.

        UTC µs, of the first and the last row of each run. [] where more than `most` pieces would have to be read.
        """
        pieces = self._pieces(machine, "ts_from < ? AND ts_to >= ?", (to_us, from_us))
        pieces = [each for each in pieces if signal in self._layouts[each.layout].signals]
        if len(pieces) > most:
            return []
        found = [self._times(piece) for piece in pieces]
        journal = self._of_journal(machine, from_us, to_us, signal)
        found += [whole.axis.ts for whole in journal if isinstance(whole, Stretch)]
        ts = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *found]))
        if not len(ts):
            return []
        ends = np.flatnonzero(np.diff(ts) > apart_us)
        firsts, lasts = ts[np.concatenate(([0], ends + 1))], ts[np.concatenate((ends, [len(ts) - 1]))]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))

    def _times(self, piece: Piece) -> Ints:
        """The stamps of a piece's rows; none where they cannot be read."""
        axis = self._reader.axis(piece.id, _table(piece))
        return np.empty(0, dtype=np.int64) if axis is None else axis.ts

    # --- where it lies ------------------------------------------------------------------------------------------------

    def _stretches(self, machine: str, from_us: int, to_us: int) -> Iterator[Stretch | Lost]:
        for these in _tangled(self._pieces(machine, "ts_from < ? AND ts_to >= ?", (to_us, from_us))):
            yield from self._in_order(these)
        yield from self._of_journal(machine, from_us, to_us)

    def _backwards(self, machine: str, signal: str, before_us: int) -> Iterator[Stretch | Lost]:
        """What has this signal before a time, the latest first; packed ones only where the index tells of a reading."""
        yield from reversed(list(self._of_journal(machine, 0, before_us, signal)))
        if self._whole[0] != machine:
            self._whole = machine, _tangled(self._pieces(machine, "TRUE", ()))
        number = self._number(machine, signal)
        for these in reversed(self._whole[1]):
            its = [
                piece
                for piece in these
                if piece.ts_from < before_us
                and signal in self._layouts[piece.layout].signals
                and not self._is_silent(piece, signal, number)
            ]
            yield from reversed(list(self._in_order(its, signal)))

    def _number(self, machine: str, signal: str) -> int:
        return 0 if self._reader.kept is None else shelf.read_signals(self._reader.kept).get((machine, signal), 0)

    def _is_silent(self, piece: Piece, signal: str, number: int) -> bool:
        """Whether the index says, and is sound, that a packed piece has no reading of a signal."""
        if not piece.chunks or self._reader.kept is None or not 0 < piece.id < shelf.AXES_MAX:
            return False
        chunk = shelf.chunk_id(piece.id, self._layouts[piece.layout].signals.index(signal))
        row = self._reader.kept.execute(
            "SELECT count, bad, ts_from, ts_to, low, high, total, sums FROM chunks WHERE id = ?", (chunk,)
        ).fetchone()
        if row is None or row[0] or row[1]:
            return False
        count, bad, ts_from, ts_to, low, high, total, sums = row
        return bool(sums == shelf.sums_checksum((number, ts_from, ts_to, count, bad, low, high, total)))

    def _pieces(self, machine: str | None, when: str, values: Sequence[int]) -> list[Piece]:
        """Of one machine or of all, in the order in which they were judged."""
        if (kept := self._reader.kept) is None:
            return []
        its = ",".join(str(number) for number, layout in self._layouts.items() if machine in (None, layout.machine))
        found = []
        for table in ("axes", "blocks"):
            asked = f"SELECT {shelf.PIECE} FROM {table} WHERE layout IN ({its}) AND {when}"  # noqa: S608 - ours
            found += [_placed(Piece(table == "axes", *row)) for row in kept.execute(asked, values)]
        found.sort(key=_begin)
        over = [piece for piece, after in pairwise(found) if piece.place_to >= after.place_from]
        wrong = {piece for piece in over if not self._is_sound(piece)}
        if not wrong:
            return found
        # All that such a piece reaches over would be read at once, and that may be years.
        sound = [piece for piece in found if piece not in wrong]
        return sorted([*sound, *(_between(piece, sound) for piece in wrong)], key=_begin)

    def _is_sound(self, piece: Piece) -> bool:
        row = self._reader.row(_table(piece), piece.id)
        return row is not None and rows.sound(row)

    def _in_order(self, pieces: Sequence[Piece], signal: str | None = None) -> Iterator[Stretch | Lost]:
        """Pieces that are tangled, frame by frame in the order in which they were judged; perhaps one signal only."""
        parts, lost = [], []
        for piece in pieces:
            names = self._layouts[piece.layout].signals
            part = self._read(piece) if signal is None else self._read(piece, names.index(signal))
            if part is None:
                lost.append((piece, names))
            else:
                parts.append(part)
        yield from parts if len(pieces) == len(parts) == 1 else _untangled(parts, lost)

    def _read(self, piece: Piece, *only: int) -> Stretch | None:
        """A piece of the history; perhaps only one of its columns, the others are bad then."""
        return self._reader.stretch(piece, self._layouts[piece.layout], only or None)

    def _of_journal(
        self, machine: str, from_us: int, to_us: int, signal: str | None = None
    ) -> Iterator[Stretch | Lost]:
        """What the history has not yet, put together."""
        waiting: list[Placed] = []
        key: tuple[str, Layout] | None = None
        count = 0
        for epoch, kept in self._judged(machine, from_us, to_us):
            if kept is not None and signal is not None and signal not in kept.layout.signals:
                continue
            now = None if kept is None else (epoch, kept.layout)
            if key is not None and (key != now or count >= ROWS_AT_ONCE):
                yield stretch.gathered(key[1], key[0], waiting)
                waiting, count = [], 0
            key = now
            if kept is None:
                yield Lost(
                    frozenset(name for each in self.layouts() if each.machine == machine for name in each.signals)
                )
            else:
                waiting.append(Placed(0, kept))
                count += len(kept.seqs)
        if key is not None:
            yield stretch.gathered(key[1], key[0], waiting)

    def _judged(self, machine: str, from_us: int, to_us: int) -> Iterator[tuple[str, Kept | None]]:
        """(epoch, frame) of what the history has not yet; None for a batch that is damaged."""
        for number, epoch in self._reader.batches(self._position, reach=(from_us, to_us)):
            items = self._reader.items(number, machine)
            if items is None:
                yield epoch, None
            else:
                yield from ((epoch, item) for item in items if isinstance(item, Kept))


def _placed(piece: Piece) -> Piece:
    """A piece whose place is damaged, and is no number, may have stood anywhere."""
    if rows.are_whole(piece.place_from, piece.place_to, piece.ts_from):
        return piece
    return piece._replace(place_from=0, place_to=disk.NUMBER_MAX, ts_from=0)


def _between(piece: Piece, sound: Sequence[Piece]) -> Piece:
    """A piece that cannot be read, where it must have stood: pieces of a layout are packed in order, and blocks come after them."""
    its = [each for each in sound if each.layout == piece.layout]
    before = [each.place_to for each in its if each.chunks and (not piece.chunks or each.id < piece.id)]
    after = [each.place_from for each in its if piece.chunks and (not each.chunks or each.id > piece.id)]
    first, last = max(before, default=-1) + 1, min(after, default=disk.NUMBER_MAX) - 1
    return piece._replace(place_from=first, place_to=max(first, last))


def _begin(piece: Piece) -> int:
    return piece.place_from


def _table(piece: Piece) -> str:
    return "axes" if piece.chunks else "blocks"


def _tangled(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces in order, together where one begins before another ends: a reload was taken back within the hour."""
    found: list[list[Piece]] = []
    reached = 0
    for piece in pieces:
        if found and piece.place_from <= reached:
            found[-1].append(piece)
        else:
            found.append([piece])
        reached = max(reached, piece.place_to)
    return found


def _untangled(parts: Sequence[Stretch], lost: Sequence[tuple[Piece, Sequence[str]]]) -> Iterator[Stretch | Lost]:
    """All frames in order of their places, and what is lost wherever it may have had one."""

    def gone(after: int, before: int | None) -> Lost | None:
        its = [
            names for piece, names in lost if piece.place_to > after and (before is None or piece.place_from < before)
        ]
        return Lost(frozenset(name for names in its for name in names)) if its else None

    its = sorted(
        (place, number, frame)
        for number, part in enumerate(parts)
        for frame, place in enumerate(part.axis.places.tolist())
    )
    begin = reached = 0
    for i, (place, number, _) in enumerate(its):
        missing = gone(reached, place)
        if begin < i and (missing or number != its[begin][1]):
            yield stretch.cut(parts[its[begin][1]], its[begin][2], its[i - 1][2] + 1)
            begin = i
        if missing:
            yield missing
        reached = place
    if its:
        yield stretch.cut(parts[its[begin][1]], its[begin][2], its[-1][2] + 1)
    missing = gone(reached, None)
    if missing:
        yield missing


@contextmanager
def standing(folder: Path) -> Iterator[Moment]:
    """The folder of an agent, running or not, as it is now. Raises NoHistory in words for a person."""
    with reading(folder) as reader, reader.look() as position:
        yield Moment(reader, position)
