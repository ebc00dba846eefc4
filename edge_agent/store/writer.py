"""The hand of the journal: what its commit thread does with the file.

Rule: a Writer is used in that thread only, but for its making and its end, between which nobody else has its connection.
What it has to know of the store it is given, and never looks it up there: the loop changes it meanwhile.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from edge_agent.records import Command, Layout
from edge_agent.store import disk, rows
from edge_agent.store.committed import Committed
from edge_agent.store.ranges import Intervals
from edge_agent.store.rows import Kept
from edge_agent.store.stamps import Stamps

ROW_OVERHEAD = 200
"""bytes on disk that a batch takes beside its frames."""
NOTICE_ROW = 60
"""bytes on disk that a notice takes beside its payload."""
SIZE = f"length(frames) + {ROW_OVERHEAD}"
"""bytes on disk of a batch. Not as its row says it (`bytes`): a damaged number would be counted with all others for ever."""
PAGES_A_COMMIT = 4
"""of the log that a commit takes beside its frames, about."""
NOTICES_A_MOVE = 2_000
WIDTHS = {"batches": 10, "notices": 5}
"""Columns beside the number."""


@dataclass(slots=True)
class Batch:
    """What waits for one commit, in the order in which it came. seq_to, t_us, wall_us: as they stood when it was closed."""

    items: list[Kept | Command] = field(default_factory=list)
    notices: list[Committed] = field(default_factory=list)
    snapshot: tuple[bytes, str] | None = None
    config: tuple[str, str] | None = None
    texts: dict[int, str] = field(default_factory=dict)
    number: int = 0
    size: int = 0
    """bytes of memory."""
    seq_from: int = 0
    seq_to: int = 0
    messages: int = 0
    t_us: int | None = None
    wall_us: int | None = None
    closed_us: int = 0
    """Monotonic."""
    drop_to: int = 0
    drop_warnings_to: int = 0
    """A number. drop_to: a batch."""
    written: bool = False


class Grown(NamedTuple):
    """bytes on disk, of readings and of notices; below 0: less than before."""

    readings: int
    told: int


class Done(NamedTuple):
    """What is done with. changes: see Intervals.take_changes. whole: all of it, where a snapshot was taken."""

    changes: dict[int, int | None]
    whole: Intervals | None


class Moving(NamedTuple):
    """What the history has not yet. batches, notices: rows of their tables. more: there is still more.

    stamps: what is known of the times of a clock that was not set; they are put right, or marked, on their way.
    """

    batches: list[tuple[Any, ...]]
    notices: list[tuple[Any, ...]]
    layouts: dict[int, Layout]
    stamps: Stamps
    more: bool


class Work(NamedTuple):
    """What goes in one transaction. layouts: all that the store knows. size: bytes of the readings on disk before it.

    moved: (batch, seq) up to which the history has all of it; None: there is no history.
    """

    batches: Sequence[Batch]
    state: disk.State
    done: Done | None
    layouts: dict[int, Layout]
    size: int
    moved: tuple[int, int] | None


class Writer:
    """One open file of the journal, for writing."""

    def __init__(self, folder: Path, opened: disk.Opened) -> None:
        self.db = opened.db
        self.judged_with: str | None = None
        """The configuration of the last snapshot that was written here."""
        self.doubt: sqlite3.Error | None = None
        """The disk has failed to sync what is committed: the file must be copied."""
        self._folder = folder
        self._written_layouts = set(opened.layouts)
        self._snapshot_seq = self._pruned_to = 0
        """Read of the file (`counted`)."""
        self._log_bytes = _log_size(folder)
        """About. With what earlier runs have left in it: one that is killed before it has filled the log would let it grow for ever."""

    def counted(self, known: disk.Counted) -> None:
        """What the file says of its last snapshot; before anything is written."""
        self._snapshot_seq, self._pruned_to = known.seq, known.pruned

    def over_limit(
        self, excess: int, oldest: tuple[int, int], done: Intervals, layouts: dict[int, Layout]
    ) -> tuple[int, int, int, int] | None:
        """(batch, seq, ts, ts): up to which batch and number readings must go, and from when to when those due reach.

        From the front. What the judge needs for a restart (newer than the snapshot) yields to the size only. oldest: by
        the wall clock and by the agent's own; what is too old must be so by both, since a wall clock may step by days.
        """
        snapshot = self._snapshot_batch()
        found = self.db.execute(
            f"SELECT id, seq_from, seq_to, {SIZE}, ts_from, ts_to, closed, messages FROM batches "  # noqa: S608 - ours
            "WHERE id < (SELECT max(id) FROM batches) ORDER BY id"
        )
        last, gone, seq_to, ts_from, ts_to = 0, 0, 0, 0, 0
        for number, first, end, size, from_ts, to_ts, closed, told in whole_numbers(found):
            old = closed < oldest[0] and number <= snapshot and self._agent_time(number, layouts) < oldest[1]
            if gone >= excess and not old:
                break
            last, gone = number, gone + size
            if told:
                seq_to = end
                if done.count(first, end) <= end - first:
                    ts_from, ts_to = ts_from or from_ts, to_ts
        return (last, seq_to, ts_from, ts_to) if last else None

    def oldest_warnings(self, excess: int) -> list[tuple[int, int]]:
        """(seq, closed) of so many bytes of them."""
        found: list[tuple[int, int]] = []
        told = "SELECT seq, closed, length(payload) FROM notices WHERE kind = 'warnings' ORDER BY seq"
        for seq, closed, size in whole_numbers(self.db.execute(told)):
            if excess <= 0:
                break
            found.append((seq, closed))
            excess -= size + NOTICE_ROW
        return found

    def to_move(
        self, after: tuple[int, int], reach: tuple[int, int], most: int, layouts: dict[int, Layout], stamps: Stamps
    ) -> Moving:
        """after: (batch, seq). reach: the last batch that there can be, and the first number that stays."""
        batches, size, until = [], 0, reach[1]
        asked = "SELECT id FROM batches WHERE id > ? AND id <= ? ORDER BY id"
        for (number,) in self.db.execute(asked, (after[0], reach[0])):
            row = self._row("batches", number)
            if rows.sound(row):
                if row[3] >= until:
                    break
                size += len(row[9])
            batches.append(row)
            if size >= most:
                break
        numbers = self.db.execute(
            "SELECT seq FROM notices WHERE seq > ? AND seq < ? ORDER BY seq LIMIT ?", (after[1], until, NOTICES_A_MOVE)
        ).fetchall()
        notices = [self._row("notices", seq) for (seq,) in numbers]
        return Moving(batches, notices, layouts, stamps, size >= most or len(notices) == NOTICES_A_MOVE)

    def _row(self, table: str, number: int) -> tuple[Any, ...]:
        """A row, read by itself: one that cannot be read has nothing but its number, is not sound, and holds up no other."""
        try:
            found = self.db.execute(f"SELECT * FROM {table} WHERE {disk.KEYS[table]} = ?", (number,)).fetchone()  # noqa: S608
        except disk.FAULTS as error:
            if not disk.is_damage(error):
                raise
            found = None
        return tuple(found) if found is not None else (number, *[None] * WIDTHS[table])

    def _agent_time(self, number: int, layouts: dict[int, Layout]) -> int:
        """The agent's clock at the last row of a batch; 0 where that cannot be read."""
        row = self.db.execute("SELECT frames FROM batches WHERE id = ?", (number,)).fetchone()
        with contextlib.suppress(*rows.UNREADABLE):
            items = [item for item in rows.unpacked(row[0], layouts) if isinstance(item, Kept) and len(item.seqs)]
            return int(items[-1].judged.frame.t[-1]) if items else 0
        return 0

    def write(self, work: Work) -> Grown:
        """One transaction. Returns by how many bytes all has grown."""
        batches, state, done, layouts = work.batches, work.state, work.done, work.layouts
        db = self.db
        with self._all_or_nothing():
            grown = sum(self.write_batch(batch, state) for batch in batches)
            fresh = [number for number in layouts if number not in self._written_layouts]
            db.executemany("INSERT INTO layouts VALUES (?, ?, ?, ?, ?)", [_layout_row(n, layouts[n]) for n in fresh])
            told = sum(len(each._bytes) + NOTICE_ROW for batch in batches for each in batch.notices)  # noqa: SLF001
            freed, told_freed = self._prune(max((batch.drop_to for batch in batches), default=0), done, work.moved)
            warnings_to = max((batch.drop_warnings_to for batch in batches), default=0)
            told_freed += _deleted_notices(db, "seq <= ? AND kind = 'warnings'", (warnings_to,)) if warnings_to else 0
            disk.put_state(db, state)
            if done is not None:
                disk.put_done(db, done.changes)
            if freed or (done is not None and done.whole is not None):
                counted = disk.Counted(state.last_batch, work.size + grown - freed, self._snapshot_seq, self._pruned_to)
                self._write_config(disk.COUNTED, orjson.dumps(counted).decode(), "")
        self._written_layouts.update(fresh)
        for batch in batches:
            batch.written = True
        # Before anybody hears of these numbers, so that an older copy of the file is always known.
        disk.write_marker(self._folder, state)
        self._log_bytes += grown + PAGES_A_COMMIT * disk.PAGE_BYTES
        if self._log_bytes >= disk.CHECKPOINT_BYTES:
            self._move_log()
        return Grown(grown - freed, told - told_freed)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A transaction; what is remembered of the file is as before when it fails."""
        before = self.judged_with, self._snapshot_seq, self._pruned_to
        try:
            with disk.transaction(self.db):
                yield
        except BaseException:
            self.judged_with, self._snapshot_seq, self._pruned_to = before
            raise

    def _move_log(self) -> None:
        """The log into the file. What was committed is so already; a file that cannot be synced is in doubt all the same."""
        try:
            if disk.checkpoint(self.db):
                self._log_bytes = 0
        except sqlite3.Error as error:
            if disk.is_unsynced(error):
                self.doubt = error

    def write_batch(self, batch: Batch, state: disk.State) -> int:
        """state: how far the store comes with all of them. A batch with a higher number is damaged, and no snapshot stands behind it."""
        db = self.db
        size = 0
        if batch.items:
            blob = rows.packed_batch(batch.items)
            size = len(blob) + ROW_OVERHEAD
            stamps = [item.judged.frame.ts for item in batch.items if isinstance(item, Kept) and len(item.seqs)]
            plain = (
                batch.number,
                state.epoch,
                batch.seq_from,
                batch.seq_to,
                batch.messages,
                size,
                min((int(ts[0]) for ts in stamps), default=0),
                max((int(ts[-1]) for ts in stamps), default=0),
                batch.wall_us or 0,
                blob,
            )
            # Or replace: a commit that failed on its last step may have been written all the same.
            db.execute("INSERT OR REPLACE INTO batches VALUES (?,?,?,?,?,?,?,?,?,?,?)", (*plain, rows.checksum(*plain)))
        db.executemany("INSERT OR REPLACE INTO notices VALUES (?,?,?,?,?,?)", [each.row() for each in batch.notices])
        if batch.snapshot is not None:
            asked = "SELECT ifnull(max(id), 0) FROM batches WHERE id <= ?"
            newest = db.execute(asked, (state.last_batch,)).fetchone()[0]
            judged, config = batch.snapshot
            row = (1, newest, judged, "")
            db.execute("INSERT OR REPLACE INTO snapshot VALUES (?,?,?,?,?)", (*row, rows.checksum(*row)))
            if config != self.judged_with:
                self._write_config(disk.JUDGED_WITH, config, "")
                self.judged_with = config
            self._snapshot_seq = batch.seq_to
        if batch.config is not None:
            self._write_config(disk.CONFIG, *batch.config)
        for row_of, text in batch.texts.items():
            self._write_config(row_of, text, "")
        return size

    def _write_config(self, row: int, text: str, sha: str) -> None:
        plain = (row, sha, text)
        self.db.execute("INSERT OR REPLACE INTO config VALUES (?,?,?,?)", (*plain, rows.checksum(*plain)))

    def _snapshot_batch(self) -> int:
        row = self.db.execute("SELECT batch FROM snapshot WHERE id = 1").fetchone()
        return int(row[0]) if row else 0

    def _prune(self, drop_to: int, done: Done | None, moved: tuple[int, int] | None) -> tuple[int, int]:
        """Delete what was delivered, is covered by a snapshot and lies in the history, and readings that had to yield.

        Returns the bytes freed, of readings and of notices.
        """
        db, snapshot = self.db, self._snapshot_batch()
        told = self._snapshot_seq
        if moved is not None:
            snapshot, told = min(snapshot, moved[0]), min(told, moved[1])
        freed = told_freed = 0
        for first, last in done.changes.items() if done is not None else ():
            if last is not None:
                # The numbers of events since the snapshot are needed when the journal is judged again.
                told_freed += _deleted_notices(db, "seq BETWEEN ? AND ?", (first, min(last, told)))
                freed += _deleted(
                    db,
                    "id BETWEEN ? AND ? AND messages > 0 AND seq_from >= ? AND seq_to <= ?",
                    (first_beyond(db, first - 1), min(snapshot, first_beyond(db, last)), first, last),
                )
        if done is not None and done.whole is not None:
            covered = self._prune_covered(snapshot, told, done.whole)
            freed, told_freed = freed + covered[0], told_freed + covered[1]
        if drop_to:
            freed += _deleted(db, "id <= ?", (drop_to,))
        return freed, told_freed

    def _prune_covered(self, snapshot: int, told: int, done: Intervals) -> tuple[int, int]:
        """What was delivered before this snapshot covered it. Returns as `_prune`."""
        db, freed = self.db, 0
        found = db.execute("SELECT seq, length(payload) + ? FROM notices WHERE seq <= ?", (NOTICE_ROW, told))
        gone = [(seq, size) for seq, size in whole_numbers(found) if seq in done]
        db.executemany("DELETE FROM notices WHERE seq = ?", [(seq,) for seq, _ in gone])
        found = db.execute(
            "SELECT id, seq_from, seq_to, messages FROM batches WHERE id > ? AND id <= ?", (self._pruned_to, snapshot)
        )
        for number, first, last, count in list(whole_numbers(found)):
            if not count or done.count(first, last) > last - first:
                freed += _deleted(db, "id = ?", (number,))
        # At a start the history has not said yet how far it has come, and all that waits would be looked at again.
        self._pruned_to = max(self._pruned_to, snapshot)
        return freed, sum(size for _, size in gone)


def _log_size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return (folder / f"{disk.FILE}-wal").stat().st_size
    return 0


def _layout_row(number: int, layout: Layout) -> tuple[Any, ...]:
    signals, states = orjson.dumps(layout.signals).decode(), orjson.dumps(layout.states).decode()
    return number, layout.machine, signals, states, rows.checksum(number, layout.machine, signals, states)


def whole_numbers(found: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Rows of whole numbers. Raises sqlite3.DatabaseError where one has something else: its file is damaged, and is mended."""
    for row in found:
        if not rows.are_whole(*row):
            raise sqlite3.DatabaseError("a row of the journal has something else where a number must be")
        yield row


def first_beyond(db: sqlite3.Connection, seq: int) -> int:
    """The first batch that may have a number above this one: numbers grow with batches. Cheap, however many there are."""
    # Two questions: one that asks for both looks at every row.
    (low,) = db.execute("SELECT ifnull(min(id), 0) FROM batches").fetchone()
    (high,) = db.execute("SELECT ifnull(max(id), 0) FROM batches").fetchone()
    while low < high:
        middle = (low + high) // 2
        number, last = db.execute(
            "SELECT id, seq_to FROM batches WHERE id >= ? ORDER BY id LIMIT 1", (middle,)
        ).fetchone()
        if isinstance(last, int) and last > seq:
            high = middle
        else:
            low = number + 1
    return int(low)


def _deleted(db: sqlite3.Connection, where: str, values: tuple[int, ...]) -> int:
    found = db.execute(f"SELECT total({SIZE}) FROM batches WHERE {where}", values).fetchone()[0]  # noqa: S608 - ours
    if found:
        db.execute(f"DELETE FROM batches WHERE {where}", values)  # noqa: S608
    return int(found)


def _deleted_notices(db: sqlite3.Connection, where: str, values: tuple[int, ...]) -> int:
    """Returns the bytes freed."""
    size = f"SELECT total(length(payload) + {NOTICE_ROW}) FROM notices WHERE {where}"  # noqa: S608 - ours
    found = db.execute(size, values).fetchone()[0]
    if found:
        db.execute(f"DELETE FROM notices WHERE {where}", values)  # noqa: S608
    return int(found)
