"""The two files of an agent's folder, read beside an agent that runs: what the history has, and what the journal still has.

Rule 1: nothing is written and nothing locked. Rule 2: the journal is looked at first, the history after it, each in one
transaction: what moves from the one to the other meanwhile is neither missed nor met twice. Rule 3: what is damaged is left
out and counted; where rows need a value all the same it is bad (`stretch.lost_column`), never one that holds.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.records import Command, Layout
from edge_agent.store import chunks, disk, history, rows, shelf, stretch
from edge_agent.store.rows import Kept
from edge_agent.store.shelf import NoHistory, Piece, Position
from edge_agent.store.stamps import Stamps
from edge_agent.store.stretch import Axis, Stretch


class Reader:
    """Looks into both files. One thread at a time. Raises sqlite3.Error where a file cannot be read."""

    def __init__(self, journal: sqlite3.Connection | None, kept: sqlite3.Connection | None) -> None:
        self.journal, self.kept = journal, kept
        for db in (journal, kept):
            if db is not None:
                db.text_factory = _text
        self.left_out = 0
        """Rows that were damaged and left out."""
        self._layouts: dict[int, Layout] | None = None
        self._guessed: Position | None = None
        self._of_journal: tuple[dict[int, Layout], Stamps] | None = None

    @contextmanager
    def look(self) -> Iterator[Position]:
        """Both files as they are at one moment, and how far the history had come. Short: their logs grow meanwhile."""
        with contextlib.ExitStack() as stack:
            for db in (self.journal, self.kept):
                if db is not None and not db.in_transaction:
                    self._layouts = self._of_journal = None
                    db.execute("BEGIN")
                    stack.callback(db.execute, "COMMIT")
                    db.execute("SELECT 1 FROM sqlite_master").fetchone()
            yield self._position()

    def _position(self) -> Position:
        """How far the history had come. Damaged: as its rows tell, else what is in both files would be met twice."""
        if self.kept is None:
            return Position()
        found = shelf.read_position(self.kept)
        if found is not None:
            return found
        if self._guessed is None:  # an agent that moves on writes it anew, so the rows tell the same until then
            self._guessed = shelf.guessed_position(self.kept)
            self.left_out += self._guessed != Position()
        return self._guessed

    # --- the history --------------------------------------------------------------------------------------------------

    def layouts(self) -> dict[int, Layout]:
        """Those of the history, by number, the oldest first."""
        if self.kept is None:
            return {}
        if self._layouts is None:
            self._layouts = shelf.read_layouts(self.kept)
        return self._layouts

    def row(self, table: str, number: int) -> tuple[Any, ...] | None:
        """A row of the history by its id; None when it is gone."""
        assert self.kept is not None
        found = self.kept.execute(f"SELECT * FROM {table} WHERE id = ?", (number,)).fetchone()  # noqa: S608 - ours
        return None if found is None else tuple(found)

    def axis(self, number: int, table: str = "axes") -> Axis | None:
        """What the columns of a packed piece share, or those of a block (table: `blocks`)."""
        row = self.row(table, number)
        found = None if row is None else history.axis_of(row, in_block=table == "blocks")
        self.left_out += row is not None and found is None
        return found

    def column(self, number: int, axis: Axis) -> stretch.Column | None:
        """What a chunk holds."""
        row = self.row("chunks", number)
        if row is not None and rows.sound(row):
            with contextlib.suppress(*chunks.DAMAGED):
                return stretch.unpack_column(row[-2], axis)
        self.left_out += 1
        return None

    def block(self, row: tuple[Any, ...] | None, layout: Layout) -> Stretch | None:
        """What a row of `blocks` holds."""
        found = None if row is None else history.unpacked(row, layout)
        self.left_out += row is not None and found is None
        return found

    def stretch(self, piece: Piece, layout: Layout, only: Collection[int] | None = None) -> Stretch | None:
        """A piece of the history, perhaps with some of its columns only: the others are bad then, as damaged ones are."""
        if not piece.chunks:
            return self.block(self.row("blocks", piece.id), layout)
        axis = self.axis(piece.id)
        if axis is None:
            return None
        columns = [stretch.lost_column(axis)] * len(layout.signals)
        for place in range(len(layout.signals)) if only is None else only:
            columns[place] = self.column(shelf.chunk_id(piece.id, place), axis) or columns[place]
        return stretch.unpack_chunks(layout, piece.epoch, axis, columns)

    # --- the journal --------------------------------------------------------------------------------------------------

    def layouts_of_journal(self) -> dict[int, Layout]:
        """Those of the journal, by its own numbers."""
        return self._meanings()[0]

    def stamps(self) -> Stamps:
        """What the journal knows of the times of a clock that was not set."""
        return self._meanings()[1]

    def _meanings(self) -> tuple[dict[int, Layout], Stamps]:
        if self._of_journal is None:
            layouts: dict[int, Layout] = {}
            for row in self.journal.execute("SELECT * FROM layouts") if self.journal is not None else ():
                with contextlib.suppress(*rows.UNREADABLE):
                    if rows.sound(row):
                        layouts[row[0]] = disk.to_layout(row)
            self._of_journal = layouts, Stamps("") if self.journal is None else history.stamps_of(self.journal)
        return self._of_journal

    def newest_batch(self) -> int:
        """The last batch as it is now: an agent that runs writes on, and a reader must end."""
        if self.journal is None:
            return 0
        return int(self.journal.execute("SELECT ifnull(max(id), 0) FROM batches").fetchone()[0])

    def batches(
        self, position: Position, after: int = 0, until: int | None = None, reach: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, str]]:
        """(number, epoch) of those that the history has not, after < number <= until.

        reach: only those that may have rows of reach[0] <= ts < reach[1], in UTC µs; all, where the clock was not set once:
        a batch knows the times before they were put right.
        """
        if self.journal is None:
            return
        asked = "SELECT id, epoch FROM batches WHERE id > ?"
        values = [after]
        if until is not None:
            asked, values = asked + " AND id <= ?", [*values, until]
        if reach is not None and not self.stamps().spans:
            asked, values = asked + " AND ts_to >= ? AND ts_from < ? AND ts_to > 0", [*values, *reach]
        for number, epoch in self.journal.execute(asked + " ORDER BY id", values):
            if not position.has_batch(epoch, number):
                yield number, epoch

    def items(self, number: int, machine: str | None = None) -> list[Kept | Command] | None:
        """What a batch holds, of one machine or all; nothing of one that has gone; None of one that is damaged."""
        assert self.journal is not None
        row = self.journal.execute("SELECT * FROM batches WHERE id = ?", (number,)).fetchone()
        if row is None:
            return []
        found = history.items_of(row, *self._meanings(), machine)
        self.left_out += found is None
        return found

    def frames(self, position: Position, machine: str | None = None) -> Iterator[tuple[str, Kept]]:
        """(epoch, frame) of what the history has not yet, of one machine or of all."""
        for number, epoch in self.batches(position):
            for item in self.items(number, machine) or ():
                if isinstance(item, Kept):
                    yield epoch, item


def _text(raw: bytes) -> str:
    """A text of a file. One that is none any more ends no query: it is another one, which the checksum of its row tells."""
    return raw.decode(errors="backslashreplace")


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """The files of an agent's data folder. Raises NoHistory when there are none, in words for a person."""
    if not (folder / disk.FILE).is_file() and not (folder / shelf.FILE).is_file():
        missing = f" (no {disk.FILE}, no {shelf.FILE})" if folder.is_dir() else ""
        raise NoHistory(f"{folder}: is not the data folder of an agent{missing}")
    with shelf.opened_for_reading(folder) as (journal, kept):
        yield Reader(journal, kept)
