"""Everything of a machine's past in a stretch of time, as columns and as it stood at one moment: what an export reads.

Rule 1: the journal is looked at first, the history after it, each in one transaction: what moves from the one to the
other meanwhile is neither missed nor met twice. Rule 2: what is damaged is bad here (`missing`), never a value that holds.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract import CODE_MASK, Bools, Codes, Floats, Ints, Quality
from edge_agent.records import Layout
from edge_agent.store import chunks, disk, history, rows, shelf, stretch
from edge_agent.store.rows import LATE, Kept
from edge_agent.store.shelf import NoHistory, Piece, Position
from edge_agent.store.stamps import Stamps
from edge_agent.store.stretch import Axis, Placed, Stretch

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


class Moment:
    """The folder as it was when it was opened. Raises sqlite3.Error where a file cannot be read."""

    def __init__(self, kept: sqlite3.Connection | None, journal: sqlite3.Connection | None) -> None:
        self._kept, self._journal = kept, journal
        self.left_out = 0
        """Rows that were damaged and left out."""
        self._layouts: dict[int, Layout] = {}
        self._position = Position()
        if kept is not None:
            self._layouts = shelf.read_layouts(kept)
            self._position = shelf.read_position(kept) or Position()
        self._stamps = Stamps("") if journal is None else history.stamps_of(journal)
        self._new_layouts: dict[int, Layout] = {}
        for row in journal.execute("SELECT * FROM layouts") if journal is not None else ():
            with contextlib.suppress(*rows.UNREADABLE):
                self._new_layouts[row[0]] = disk.to_layout(row)

    def layouts(self) -> list[Layout]:
        """Of all machines, the oldest first, each once."""
        return list(dict.fromkeys([*self._layouts.values(), *self._new_layouts.values()]))

    def reach(self) -> tuple[int, int] | None:
        """UTC µs of the first and the last row; None where there is none."""
        found = self._spans("min(ts_from), max(ts_to)")
        there = [each for each in found if each[0] is not None]
        return (min(each[0] for each in there), max(each[1] for each in there)) if there else None

    def days(self, day_us: int) -> set[int]:
        """The days (their numbers, of this length) in which rows may lie; all others have none."""
        found = self._spans(f"DISTINCT ts_from / {day_us:d}, ts_to / {day_us:d}")
        return {day for first, last in found for day in range(first, last + 1)}

    def _spans(self, columns: str) -> list[tuple[Any, ...]]:
        found = []
        if self._kept is not None:
            for table in ("axes", "blocks"):
                found += self._kept.execute(f"SELECT {columns} FROM {table} WHERE rows > 0").fetchall()  # noqa: S608 - ours
        if self._journal is not None:
            found += self._journal.execute(f"SELECT {columns} FROM batches WHERE ts_to > 0").fetchall()  # noqa: S608
        return found

    def rows(self, machine: str, from_us: int, to_us: int) -> Iterator[Rows]:
        """All rows of from_us <= ts < to_us, in the order in which they were judged."""
        for whole in self._stretches(machine, from_us, to_us):
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
        """The value that stands at this time: that of the last reading before it; NaN where that was bad, or none was."""
        for whole in self._backwards(machine, signal, before_us):
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
        found += [whole.axis.ts for whole in self._of_journal(machine, from_us, to_us, signal)]
        ts = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *found]))
        if not len(ts):
            return []
        ends = np.flatnonzero(np.diff(ts) > apart_us)
        firsts, lasts = ts[np.concatenate(([0], ends + 1))], ts[np.concatenate((ends, [len(ts) - 1]))]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))

    def _times(self, piece: Piece) -> Ints:
        """The stamps of a piece's rows; none where they cannot be read."""
        assert self._kept is not None
        if not piece.chunks:
            part = self._read(piece)
            return np.empty(0, dtype=np.int64) if part is None else part.axis.ts
        row = self._kept.execute("SELECT * FROM axes WHERE id = ?", (piece.id,)).fetchone()
        if rows.sound(row):
            with contextlib.suppress(*chunks.DAMAGED):
                return stretch.unpack_axis(row[-2]).ts
        return np.empty(0, dtype=np.int64)

    # --- where it lies ------------------------------------------------------------------------------------------------

    def _stretches(self, machine: str, from_us: int, to_us: int) -> Iterator[Stretch]:
        for piece in self._pieces(machine, "ts_from < ? AND ts_to >= ?", (to_us, from_us)):
            whole = self._read(piece)
            if whole is not None:
                yield whole
        yield from self._of_journal(machine, from_us, to_us)

    def _backwards(self, machine: str, signal: str, before_us: int) -> Iterator[Stretch]:
        """What has this signal before a time, the latest first; packed ones only where the index tells of a reading."""
        yield from reversed(list(self._of_journal(machine, 0, before_us, signal)))
        found = self._pieces(machine, "ts_from < ?", (before_us,), ("blocks",))
        for piece in [*reversed(found), *self._speaking(machine, signal, before_us)]:
            layout = self._layouts[piece.layout]
            if signal in layout.signals:
                whole = self._read(piece, layout.signals.index(signal))
                if whole is not None:
                    yield whole

    def _speaking(self, machine: str, signal: str, before_us: int) -> Iterator[Piece]:
        """The packed pieces with a reading of a signal, the latest first."""
        if self._kept is None:
            return
        number = shelf.read_signals(self._kept).get((machine, signal), 0)
        found = self._kept.execute(
            "SELECT id FROM chunks INDEXED BY chunks_of_signal WHERE signal = ? AND ts_from < ? AND count + bad > 0 "
            "ORDER BY ts_from DESC",
            (number, before_us),
        )
        for (chunk,) in found:
            axis = chunk >> shelf.COLUMN_BITS
            for row in self._kept.execute(f"SELECT {shelf.PIECE} FROM axes WHERE id = ?", (axis,)):  # noqa: S608 - ours
                yield Piece(True, *row)

    def _pieces(
        self, machine: str, when: str, values: Sequence[int], tables: Sequence[str] = ("axes", "blocks")
    ) -> list[Piece]:
        """In the order in which they were judged."""
        if self._kept is None:
            return []
        its = ",".join(str(number) for number, layout in self._layouts.items() if layout.machine == machine)
        found = []
        for table in tables:
            asked = f"SELECT {shelf.PIECE} FROM {table} WHERE layout IN ({its}) AND {when}"  # noqa: S608 - ours
            found += [Piece(table == "axes", *row) for row in self._kept.execute(asked, values)]
        return sorted(found, key=lambda piece: piece.place_from)

    def _read(self, piece: Piece, only: int | None = None) -> Stretch | None:
        """A piece of the history; of its columns perhaps only one, the others are bad then."""
        assert self._kept is not None
        layout = self._layouts[piece.layout]
        table = "axes" if piece.chunks else "blocks"
        row = self._kept.execute(f"SELECT * FROM {table} WHERE id = ?", (piece.id,)).fetchone()  # noqa: S608 - ours
        if not piece.chunks:
            part = history.unpacked(row, layout)
            self.left_out += part is None
            return part
        if rows.sound(row):
            with contextlib.suppress(*chunks.DAMAGED):
                axis = stretch.unpack_axis(row[-2])
                wanted = range(len(layout.signals)) if only is None else (only,)
                columns = [_missing(axis)] * len(layout.signals)
                for column in wanted:
                    columns[column] = self._column(piece, column, axis)
                return stretch.unpack_chunks(layout, piece.epoch, axis, columns)
        self.left_out += 1
        return None

    def _column(self, piece: Piece, column: int, axis: Axis) -> stretch.Column:
        assert self._kept is not None
        row = self._kept.execute("SELECT * FROM chunks WHERE id = ?", (shelf.chunk_id(piece.id, column),)).fetchone()
        if row is not None and rows.sound(row):
            with contextlib.suppress(*chunks.DAMAGED):
                return stretch.unpack_column(row[-2], axis)
        self.left_out += 1
        return _missing(axis)

    def _of_journal(self, machine: str, from_us: int, to_us: int, signal: str | None = None) -> Iterator[Stretch]:
        """What the history has not yet, put together."""
        waiting: list[Placed] = []
        key: tuple[str, Layout] | None = None
        count = 0
        for epoch, kept in self._frames(machine, from_us, to_us):
            if signal is not None and signal not in kept.layout.signals:
                continue
            if waiting and key is not None and (key != (epoch, kept.layout) or count >= ROWS_AT_ONCE):
                yield stretch.gathered(key[1], key[0], waiting)
                waiting, count = [], 0
            key = (epoch, kept.layout)
            waiting.append(Placed(0, kept))
            count += len(kept.seqs)
        if waiting and key is not None:
            yield stretch.gathered(key[1], key[0], waiting)

    def _frames(self, machine: str, from_us: int, to_us: int) -> Iterator[tuple[str, Kept]]:
        if self._journal is None:
            return
        found = self._journal.execute(
            "SELECT id, epoch FROM batches WHERE ts_from < ? AND ts_to >= ? AND ts_to > 0 ORDER BY id", (to_us, from_us)
        ).fetchall()
        for number, epoch in found:
            if self._position.has_batch(epoch, number):
                continue
            row = self._journal.execute("SELECT * FROM batches WHERE id = ?", (number,)).fetchone()
            items = history.items_of(row, self._new_layouts, self._stamps)
            self.left_out += not items
            for item in items:
                if isinstance(item, Kept) and item.layout.machine == machine:
                    yield epoch, item


def _missing(axis: Axis) -> stretch.Column:
    """A signal whose chunk is damaged: it was not taken, as far as anybody can tell."""
    count, stamps = len(axis.t), axis.ts[axis.stamped]
    return stretch.Column(np.full(count, np.nan), np.full(count, Quality.MISSING, dtype=np.uint8), stamps)


@contextmanager
def standing(folder: Path) -> Iterator[Moment]:
    """The folder of an agent, running or not, as it is now. Raises NoHistory in words for a person."""
    if not (folder / disk.FILE).is_file() and not (folder / shelf.FILE).is_file():
        raise NoHistory(f"{folder}: is not the data directory of an agent (no {disk.FILE}, no {shelf.FILE})")
    with shelf.opened_for_reading(folder) as (journal, kept):
        # The journal first: what it no longer has then, the history has.
        for db in (journal, kept):
            if db is not None:
                _begin(db)
        yield Moment(kept, journal)


def _begin(db: sqlite3.Connection) -> None:
    """From now on this connection sees what is here now."""
    db.execute("BEGIN")
    db.execute("SELECT 1 FROM layouts LIMIT 1").fetchone()
