"""The history: what was journalled, moved into a file of its own and kept for as long as it is asked.

Rule 1: readings are moved, never copied: the history commits them together with how far it has come, and only then hears
the journal that they may go. Whatever ends the agent between two steps, nothing is lost and nothing stands twice.
Rule 2: nothing here runs on the loop's thread, and nothing waits for it: where the disk refuses, the journal keeps what
is due up to its own limit, and the next turn tries again.
"""

import asyncio
import contextlib
import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
import structlog

from edge_agent.contract import SECOND_US, Clock, Ints
from edge_agent.messages import topics as messages
from edge_agent.records import Command, Layout
from edge_agent.store import chunks, configured, disk, rows, shelf, stretch
from edge_agent.store.rows import Kept
from edge_agent.store.shelf import Piece, Position
from edge_agent.store.stamps import Stamps
from edge_agent.store.stretch import Axis, Placed, Stretch
from edge_agent.store.writer import Moving

log = structlog.get_logger(__name__)

MOVE_EVERY_S = 60.0
RETRY_S = 10.0
HOUR_US, DAY_US = 3_600 * SECOND_US, 86_400 * SECOND_US
ROWS_AN_HOUR = 360
"""A machine with fewer rows than this in an hour has a chunk a day."""
ROWS_MAX = 7_200
"""Rows of a chunk."""
CELLS_MAX = 500_000
"""Readings of a machine that are held in memory to be packed: its chunks have fewer rows where it has many signals."""
RUNS_MAX = 8
"""Where the hours of a machine's rows change more often than this (belated readings, a stepped clock), they are not cut
at them."""
BLOCKS_MAX = 400
"""Blocks of a machine that are packed anew although its chunk is not due."""
PACKED_SHARE = 10
"""A turn packs this part of what is ripe, and at least one: the minute after the hour is not the heaviest."""
FULL = 0.9
"""Of its size, where the oldest begin to go; the rest is for its log and for what is being written."""
AXES_AT_ONCE = 8
EVENTS_AT_ONCE = 2_000
VACUUM_PAGES = 500
FAULTS = (*disk.FAULTS, OSError)


class _JournalAway(Exception):
    """The journal cannot be read now: its own business, and the next turn asks again."""


class Journal(Protocol):
    """The store, as the history needs it."""

    epoch: str
    move_soon: asyncio.Event

    async def to_move(self, batch: int, seq: int) -> Moving: ...

    def moved(self, batch: int, seq: int) -> None: ...

    def keep_for_history(self) -> None: ...


class _Key(NamedTuple):
    """Whose blocks are packed together."""

    layout: int
    epoch: str


@dataclass(slots=True)
class _Open:
    """The blocks of a machine that are not packed yet. ts_from, ts_to: of their rows, µs; t_to: of the last, by the agent's clock."""

    blocks: int = 0
    rows: int = 0
    ts_from: int = 0
    ts_to: int = 0
    t_to: int = 0

    def add(self, count: int, ts_from: int, ts_to: int, t_to: int) -> None:
        if not (rows.are_whole(count, ts_from, ts_to, t_to) and ts_from >= 0 and ts_to < disk.NEVER_US):
            count = 0  # damaged, and nothing of it is believed; it goes with those beside it
        if count:
            self.t_to = max(self.t_to, t_to)
            self.ts_from = min(self.ts_from, ts_from) if self.rows else ts_from
            self.ts_to = max(self.ts_to, ts_to) if self.rows else ts_to
        self.blocks += 1
        self.rows += count


class History:
    """The history of one agent. `run` belongs to the loop; all that touches the disk happens in a thread of its own."""

    def __init__(self, folder: Path, clock: Clock, progress: disk.Progress = lambda: None) -> None:
        self._folder, self._clock, self._progress = folder, clock, progress
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._turning = asyncio.Lock()
        self.keep_us, self.max_size = 400 * DAY_US, 20_000_000_000
        self.fault: str | None = None
        self.written_bytes = 0
        """Of blocks and chunks, before sqlite adds to it."""
        self._cursor: tuple[int, int] | None = None
        # The thread's.
        self._db: sqlite3.Connection | None = None
        self._damaged: str | None = None
        self._layouts: dict[Layout, int] = {}
        self._signals: dict[tuple[str, str], int] = {}
        self._used_layout = self._used_signal = 0
        """The highest numbers that any row uses: what was damaged may have had one, and it gets no other meaning."""
        self._open: dict[_Key, _Open] = {}
        self._position = Position()
        self._size = 0
        self._oldest: int | None = None
        self._left_out = 0

    def limit(self, keep_us: int, max_size: int) -> None:
        """µs, bytes: how old and how large it may become."""
        self.keep_us, self.max_size = keep_us, max_size

    # --- the loop's thread --------------------------------------------------------------------------------------------

    async def run(self, journal: Journal, stroke: Callable[[], None] = lambda: None) -> None:
        """Move what is new once a minute, sooner when the journal asks, until cancelled. stroke: called at each turn."""
        journal.keep_for_history()
        while True:
            stroke()
            if not await self.turn(journal):
                await asyncio.sleep(RETRY_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOVE_EVERY_S):
                    await journal.move_soon.wait()

    async def turn(self, journal: Journal) -> bool:
        """Move all that is new, pack what is ripe, drop what is too old. False when the disk refused."""
        async with self._turning:
            try:
                await self._in_thread(self._opened)
                while await self._moved(journal):
                    pass
                for _ in range(await self._in_thread(self._ripe_count)):
                    await self._in_thread(self._pack_next)
                while await self._in_thread(self._bounded):
                    pass
            except _JournalAway as error:
                if self.fault is None:
                    log.warning("history_waits", fault=str(error))
                self.fault = f"the journal cannot be read: {error}"
                return False
            except FAULTS as error:
                self._failed(error)
                return False
            except Exception as error:  # noqa: BLE001 - told as a fault, see below
                # A bug, which would end the agent, and at its next start again: the plant is watched first. It is told
                # as long as it lasts, with all that helps to find it, and the journal keeps what it can.
                self._failed(error, bug=True)
                return False
        if self.fault is not None:
            log.info("history_back")
            self.fault = None
        return True

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _moved(self, journal: Journal) -> bool:
        """One step: read, commit here, tell the journal. True: there is more."""
        if self._cursor is None:
            # What this epoch has brought here already is not read again; of other epochs each batch is looked at.
            self._cursor = self._position.moved.get(journal.epoch, (0, 0))
        batch, seq = self._cursor
        try:
            found = await journal.to_move(batch, seq)
        except disk.FAULTS as error:
            raise _JournalAway(str(error)) from error
        if found.batches or found.notices:
            await self._in_thread(self._take, found, batch)
        batch = found.batches[-1][0] if found.batches else batch
        seq = found.notices[-1][0] if found.notices else seq
        self._cursor = (batch, seq)
        journal.moved(batch, seq)
        return found.more

    def _failed(self, error: Exception, *, bug: bool = False) -> None:
        reason = f"{type(error).__name__}: {error}" if bug else disk.said(error)
        if self.fault is None:
            log.error("history_failed", fault=reason, exc_info=bug)
        self.fault = reason
        if not bug and not isinstance(error, OSError) and disk.is_damage(error):
            self._damaged = reason

    def status(self) -> dict[str, Any]:
        """For health and status. oldest: of the readings that are packed; left_out: damaged rows; missing: batches."""
        oldest = self._oldest
        return {
            "state": "ok" if self.fault is None else "failing",
            "mb": round(self._size / 1e6, 3),
            "oldest": None if oldest is None else messages.to_utc(oldest),
            **({"left_out": self._left_out} if self._left_out else {}),
            **({"missing": self._position.missing} if self._position.missing else {}),
            **({"reason": self.fault} if self.fault else {}),
        }

    def close(self) -> None:
        """Let go of the file."""
        self._thread.shutdown()
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()

    # --- the thread: opening ------------------------------------------------------------------------------------------

    def _opened(self) -> None:
        """Open the file, or a damaged one anew. Raises OSError or sqlite3.Error."""
        if self._db is not None and self._damaged is None:
            return
        wall = self._clock.wall_us()
        if self._db is not None:
            self._db.close()
            self._db = None
            self._db = shelf.saved(self._folder, wall, self._damaged or "", self._progress)
        else:
            self._db = shelf.open_for_writing(self._folder, wall, self._progress)
        self._damaged = None
        self._position = shelf.read_position(self._db) or Position()
        self._cursor = None
        self._layouts = {layout: number for number, layout in shelf.read_layouts(self._db).items()}
        self._signals = shelf.read_signals(self._db)
        self._used_layout = max(self._highest("layout", table) for table in ("blocks", "axes"))
        self._used_signal = self._highest("signal", "chunks")
        self._open = {}
        for layout, epoch, *about in self._db.execute(
            "SELECT layout, epoch, rows, ts_from, ts_to, t_to FROM blocks ORDER BY id"
        ):
            self._open.setdefault(_Key(layout, epoch), _Open()).add(*about)
        self._measure()

    def _highest(self, column: str, table: str) -> int:
        """The highest number that a row uses; one that is damaged counts for nothing."""
        asked = f"SELECT max({column}) FROM {table}"  # noqa: S608 - names of our own
        (found,) = self._file.execute(asked).fetchone()
        if found is not None and not rows.are_whole(found):
            (found,) = self._file.execute(f"{asked} WHERE typeof({column}) = 'integer'").fetchone()
        return int(found or 0)

    def _measure(self) -> None:
        db = self._file
        self._size = self._used()
        row = db.execute(f"SELECT ts_from FROM axes WHERE {shelf.TIMED} ORDER BY id LIMIT 1").fetchone()  # noqa: S608 - ours
        self._oldest = min(
            [row[0]] if row else [each.ts_from for each in self._open.values() if each.rows], default=None
        )

    def _used(self) -> int:
        """How many bytes of the file hold something."""
        db = self._file
        pages, free, size = (
            db.execute(f"PRAGMA {each}").fetchone()[0] for each in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    @property
    def _file(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with disk.transaction(self._file):
            yield self._file

    # --- the thread: moving -------------------------------------------------------------------------------------------

    def _take(self, found: Moving, after: int) -> None:
        """One step of the move, in one transaction with how far it has come."""
        layouts, signals = self._layouts.copy(), self._signals.copy()
        try:
            with self._transaction() as db:
                position, added = self._put_batches(db, found, after)
                position = self._put_notices(db, found, position)
                shelf.put_position(db, position)
        except BaseException:
            self._layouts, self._signals = layouts, signals
            raise
        self._position = position
        for key, *about in added:
            self._open.setdefault(key, _Open()).add(*about)

    def _put_batches(
        self, db: sqlite3.Connection, found: Moving, after: int
    ) -> tuple[Position, list[tuple[_Key, int, int, int, int]]]:
        place, missing, moved = self._position.place, self._position.missing, dict(self._position.moved)
        groups: dict[tuple[str, Layout], list[Placed]] = {}
        last = found.batches[-1][0] if found.batches else 0
        for row in found.batches:
            number, epoch = row[0], row[1]
            had = self._position.has_batch(epoch, number)
            items = None if had else items_of(row, found.layouts, found.stamps)
            hole = number - _before(moved, epoch, number, after) - 1
            if after and items is not None and hole > 0:
                missing += hole
                log.error("history_misses_batches", batches=hole)
            after = number
            for item in items or ():
                if isinstance(item, Command):
                    self._put_command(db, place, epoch, item)
                else:
                    groups.setdefault((epoch, item.layout), []).append(Placed(place, item))
                place += 1
            if items is None and not had:
                missing += 1
                log.error("history_misses_batches", batches=1, damaged=number)
            if not had and (items is not None or epoch in moved):  # of a damaged one, where its epoch makes sense
                moved[epoch] = (number, moved.get(epoch, (0, 0))[1])
        added = [
            self._put_block(db, stretch.gathered(layout, epoch, frames), last)
            for (epoch, layout), frames in groups.items()
        ]
        return Position(place, moved, missing), added

    def _put_command(self, db: sqlite3.Connection, place: int, epoch: str, command: Command) -> None:
        text = 0
        if command.command == configured.CONFIGURE:
            text = self._put_text(db, configured.text_of(command))
            command = replace(command, arguments={**command.arguments, "config": ""})
        plain = orjson.dumps(asdict(command))
        shelf.put(db, "commands", (place, epoch, command.ts, command.t, text, plain))

    @staticmethod
    def _put_text(db: sqlite3.Connection, text: str) -> int:
        """The number of this text, which is kept once."""
        sha = hashlib.sha256(text.encode()).hexdigest()
        row = db.execute("SELECT id FROM texts WHERE sha = ?", (sha,)).fetchone()
        if row is None:
            # Not one that a command has whose text was damaged.
            row = db.execute(
                "SELECT max(ifnull((SELECT max(id) FROM texts), 0), ifnull((SELECT max(text) FROM commands), 0)) + 1"
            ).fetchone()
            shelf.put(db, "texts", (row[0], sha, zlib.compress(text.encode())))
        return int(row[0])

    def _put_block(self, db: sqlite3.Connection, part: Stretch, batch: int) -> tuple[_Key, int, int, int, int]:
        number = self._number_of(db, part.layout)
        blob = stretch.pack_block(part)
        about = _about(number, part)
        shelf.put(db, "blocks", (*about, batch, blob), numbered=True)
        self.written_bytes += len(blob)
        return _Key(number, part.epoch), *about[-4:]

    def _number_of(self, db: sqlite3.Connection, layout: Layout) -> int:
        number = self._layouts.get(layout)
        if number is None:
            number = self._layouts[layout] = max([self._used_layout, *self._layouts.values()]) + 1
            names, states = orjson.dumps(layout.signals).decode(), orjson.dumps(layout.states).decode()
            shelf.put(db, "layouts", (number, layout.machine, names, states))
        return number

    def _signal_of(self, db: sqlite3.Connection, machine: str, name: str) -> int:
        number = self._signals.get((machine, name))
        if number is None:
            number = self._signals[machine, name] = max([self._used_signal, *self._signals.values()]) + 1
            shelf.put(db, "signals", (number, machine, name))
        return number

    def _put_notices(self, db: sqlite3.Connection, found: Moving, position: Position) -> Position:
        moved = dict(position.moved)
        for row in found.notices:
            seq, machine, kind, closed, payload, _ = row
            epoch = epoch_of(row)
            if epoch is None:
                log.error("history_misses_notice", seq=seq)
            elif not self._position.has_seq(epoch, seq):
                right = found.stamps.right_notice(payload, seq)
                closed = closed_of(found.stamps, seq, closed)
                shelf.put(db, "events", (epoch, seq, machine, kind, closed, right), numbered=True)
                moved[epoch] = (moved.get(epoch, (0, 0))[0], seq)
        return replace(position, moved=moved)

    # --- the thread: packing ------------------------------------------------------------------------------------------

    def _ripe(self) -> list[_Key]:
        latest = self._latest()
        return [
            key for key, each in self._open.items() if self._is_left(key, latest) or _is_ripe(each, self._rows_max(key))
        ]

    def _latest(self) -> tuple[str, int]:
        """The epoch under which the store counts now, and the agent's clock at the last row of it."""
        epoch = next((key.epoch for key in reversed(self._open)), "")
        return epoch, max((each.t_to for key, each in self._open.items() if key.epoch == epoch), default=0)

    def _is_left(self, key: _Key, latest: tuple[str, int]) -> bool:
        """Whether nothing more comes to these: the store counts under another epoch by now, or the machine has other columns.

        What has not grown for a day counts as that; what comes all the same has a chunk of its own.
        """
        epoch, newest = latest
        its = self._open[key]
        return key.epoch != epoch or (its.rows > 0 and newest - its.t_to > DAY_US)

    def _ripe_count(self) -> int:
        """How many machines are packed in this turn."""
        ripe = len(self._ripe())
        return min(ripe, 1 + ripe // PACKED_SHARE)

    def _rows_max(self, key: _Key) -> int:
        layout = next((layout for layout, number in self._layouts.items() if number == key.layout), None)
        width = 1 if layout is None else max(1, len(layout.signals))
        return max(60, min(ROWS_MAX, CELLS_MAX // width))

    def _pack_next(self) -> None:
        """Blocks of one machine become chunks of its signals, in one transaction."""
        ripe = self._ripe()
        if not ripe:
            return
        key = max(ripe, key=lambda each: self._open[each].rows)
        layout = next((layout for layout, number in self._layouts.items() if number == key.layout), None)
        pieces, parts = self._blocks(key, layout)
        signals = self._signals.copy()
        try:
            self._put_packed(key, pieces, parts)
        except BaseException:
            self._signals = signals
            raise
        left = _Open()
        for about in self._file.execute(
            "SELECT rows, ts_from, ts_to, t_to FROM blocks WHERE layout = ? AND epoch = ?", (key.layout, key.epoch)
        ):
            left.add(*about)
        if left.blocks:
            self._open[key] = left
        else:
            del self._open[key]

    def _put_packed(self, key: _Key, pieces: list[Piece], parts: list[Stretch]) -> None:
        with self._transaction() as db:
            if parts:
                done, rest = self._cut(key, stretch.joined(parts))
                for part in done:
                    self._put_axis(db, key, part, pieces[-1].batch)
                if rest is not None:
                    self._put_block(db, rest, pieces[-1].batch)
            db.executemany("DELETE FROM blocks WHERE id = ?", [(piece.id,) for piece in pieces])

    def _blocks(self, key: _Key, layout: Layout | None) -> tuple[list[Piece], list[Stretch]]:
        """The blocks of a machine, in order, and what of them can be read."""
        pieces, parts, size = [], [], 0
        found = self._file.execute("SELECT id FROM blocks WHERE layout = ? ORDER BY place_to", (key.layout,)).fetchall()
        for (number,) in found:
            row = self._file.execute("SELECT * FROM blocks WHERE id = ?", (number,)).fetchone()
            piece = Piece(False, *row[:-2])
            if piece.epoch != key.epoch:
                continue
            pieces.append(piece)
            part = unpacked(row, layout)
            if part is None:
                self._left_out += 1
            else:
                parts.append(part)
                size += len(part.axis.ts)
            if size >= 2 * self._rows_max(key):
                break
        return pieces, parts

    def _cut(self, key: _Key, whole: Stretch) -> tuple[list[Stretch], Stretch | None]:
        """What becomes chunks, and what waits for the rest of its hour (or day)."""
        axis, most, each = whole.axis, self._rows_max(key), self._open[key]
        starts = np.cumsum(axis.counts) - axis.counts
        stamps = axis.ts[np.minimum(starts, len(axis.ts) - 1)] if len(axis.ts) else np.zeros_like(starts)
        unit = _unit(len(axis.ts), *_reach(axis.ts))
        edges = [0, *(np.flatnonzero(np.diff(stamps // unit)) + 1).tolist(), len(starts)]
        if len(edges) > RUNS_MAX + 2:
            edges = [0, len(starts)]
        parts = [
            stretch.cut(whole, first, last)
            for a, b in pairwise(edges)
            for first, last in _in_pieces(starts, a, b, most)
        ]
        whole_of_it = (
            len(edges) == 2 or each.rows >= most or each.blocks >= BLOCKS_MAX or self._is_left(key, self._latest())
        )
        return (parts, None) if whole_of_it else (parts[:-1], parts[-1])

    def _put_axis(self, db: sqlite3.Connection, key: _Key, part: Stretch, batch: int) -> None:
        # Not one that chunks have whose axis was damaged.
        highest, chunk = db.execute(
            "SELECT ifnull((SELECT max(id) FROM axes WHERE id < ?), 0), ifnull((SELECT max(id) FROM chunks), 0)",
            (shelf.AXES_MAX,),
        ).fetchone()
        number = max(highest, chunk >> shelf.COLUMN_BITS) + 1
        blob = stretch.pack_axis(part.axis)
        shelf.put(db, "axes", (number, *_about(key.layout, part), batch, blob))
        self.written_bytes += len(blob)
        ts_from, ts_to = _reach(part.axis.ts)
        for column, name in enumerate(part.layout.signals):
            blob = stretch.pack_column(part, column)
            sums = stretch.sums_of(part.axis.ts, part.values[:, column], part.quality[:, column])
            shelf.put_chunk(
                db,
                shelf.chunk_id(number, column),
                self._signal_of(db, part.layout.machine, name),
                ts_from,
                ts_to,
                sums,
                blob,
            )
            self.written_bytes += len(blob)

    # --- the thread: bounds -------------------------------------------------------------------------------------------

    def _bounded(self) -> bool:
        """Drop some of what is too old or too much. True: there is more to drop."""
        more = self._drop_old() or self._drop_excess()
        if not more:
            self._shrink()
            self._measure()
        return more

    def _drop_old(self) -> bool:
        """Too old by both clocks: a wall clock may step by years and back."""
        db = self._file
        newest = self._newest(db)
        before = self._clock.wall_us() - self.keep_us
        found = db.execute("SELECT id, ts_to, t_to FROM axes ORDER BY id LIMIT ?", (AXES_AT_ONCE * 4,)).fetchall()
        known = [row for row in found if rows.are_whole(*row)]
        old = [axis for axis, ts_to, t_to in known if ts_to < before and t_to < newest - self.keep_us]
        if old:
            # What lost its times is as old as what came after it.
            old += [row[0] for row in found if row[0] < old[-1] and not rows.are_whole(*row)]
            self._drop_axes(sorted(old)[:AXES_AT_ONCE])
            return True
        row = db.execute(f"SELECT ts_from FROM axes WHERE {shelf.TIMED} ORDER BY id LIMIT 1").fetchone()  # noqa: S608 - ours
        kept = [each.ts_from for each in self._open.values() if each.rows] + ([row[0]] if row else [])
        return self._drop_told(min([before, *kept]))

    @staticmethod
    def _newest(db: sqlite3.Connection) -> int:
        """The agent's clock at the last row that came here."""
        last = "ifnull((SELECT t_to FROM {} WHERE typeof(t_to) = 'integer' ORDER BY id DESC LIMIT 1), 0)"
        (newest,) = db.execute(f"SELECT max({last.format('axes')}, {last.format('blocks')})").fetchone()
        return int(newest)

    def _drop_excess(self) -> bool:
        db = self._file
        if self._used() <= self.max_size * FULL:
            return False
        axes = [axis for (axis,) in db.execute("SELECT id FROM axes ORDER BY id LIMIT ?", (AXES_AT_ONCE,))]
        if axes:
            self._drop_axes(axes)
            return True
        blocks = db.execute("SELECT id FROM blocks ORDER BY id LIMIT ?", (AXES_AT_ONCE * 4,)).fetchall()
        if blocks:
            with self._transaction():
                db.executemany("DELETE FROM blocks WHERE id = ?", blocks)
            return True
        return self._drop_told(None)

    def _drop_axes(self, axes: Sequence[int]) -> None:
        with self._transaction() as db:
            for axis in axes:
                if 0 < axis < shelf.AXES_MAX:
                    first = shelf.chunk_id(axis, 0)
                    db.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, first + shelf.COLUMNS_MAX - 1))
                db.execute("DELETE FROM axes WHERE id = ?", (axis,))
            place = self._first_place(db)
            # The configuration that was in force when the oldest readings were judged stays.
            db.execute(
                "DELETE FROM commands WHERE id < (SELECT max(id) FROM commands WHERE id <= ? AND text > 0)", (place,)
            )
            db.execute("DELETE FROM texts WHERE id NOT IN (SELECT text FROM commands)")

    def _first_place(self, db: sqlite3.Connection) -> int:
        """The place of the oldest frame that is here."""
        found = [self._position.place]
        for number in self._layouts.values():
            for table in ("axes", "blocks"):
                row = db.execute(
                    f"SELECT place_from FROM {table} WHERE layout = ? AND typeof(place_from) = 'integer' "  # noqa: S608 - ours
                    "ORDER BY place_to LIMIT 1",
                    (number,),
                ).fetchone()
                found += row or ()
        return min(found)

    def _drop_told(self, before: int | None) -> bool:
        """Events older than this by both clocks; the oldest whatever they are when None."""
        db = self._file
        if before is None:
            found = db.execute("SELECT id FROM events ORDER BY closed LIMIT ?", (EVENTS_AT_ONCE,)).fetchall()
        elif db.execute("SELECT 1 FROM events WHERE closed < ? LIMIT 1", (before,)).fetchone():
            epoch, seq = self._last_old(db)
            earlier = [] if not epoch else list(takewhile(lambda each: each != epoch, self._position.moved))
            marks = ",".join("?" * len(earlier))
            found = db.execute(
                f"SELECT id FROM events WHERE closed < ? AND (epoch = ? AND seq < ? OR epoch IN ({marks})) "  # noqa: S608
                "ORDER BY closed LIMIT ?",
                (before, epoch, seq, *earlier, EVENTS_AT_ONCE),
            ).fetchall()
        else:
            found = []
        if found:
            with self._transaction():
                db.executemany("DELETE FROM events WHERE id = ?", found)
        return bool(found)

    def _last_old(self, db: sqlite3.Connection) -> tuple[str, int]:
        """(epoch, seq) of the last reading that is too old by the agent's own clock; ("", 0) where nobody can tell.

        An event has a wall clock's time alone; its number says before which readings it came.
        """
        since = self._newest(db) - self.keep_us
        for table in ("axes", "blocks"):
            asked = f"SELECT * FROM {table} WHERE t_to >= ? ORDER BY id LIMIT ?"  # noqa: S608 - ours
            for row in db.execute(asked, (since, AXES_AT_ONCE)):
                axis = axis_of(row, in_block=table == "blocks")
                old = () if axis is None else axis.seqs[axis.t < since]
                if np.any(old):
                    return row[2], int(np.max(old))
        return "", 0

    def _shrink(self) -> None:
        """Give pages back where the file is larger than it may be now; else they wait for what comes."""
        db = self._file
        pages, size = (db.execute(f"PRAGMA {each}").fetchone()[0] for each in ("page_count", "page_size"))
        while pages * size > self.max_size:
            db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            (left,) = db.execute("PRAGMA page_count").fetchone()
            if left == pages:
                return
            pages = left


# --- rows ---------------------------------------------------------------------------------------------------------------


def unpacked(row: tuple[Any, ...], layout: Layout | None) -> Stretch | None:
    """The stretch of a row of `blocks`; None when it is damaged."""
    if layout is None or not rows.sound(row):
        return None
    with contextlib.suppress(*chunks.DAMAGED, *rows.UNREADABLE):
        return stretch.unpack_block(row[-2], layout, row[2])
    return None


def axis_of(row: tuple[Any, ...], *, in_block: bool) -> Axis | None:
    """The axis of a row of `axes` or `blocks`; None when it is damaged."""
    if rows.sound(row):
        with contextlib.suppress(*chunks.DAMAGED):
            return stretch.unpack_axis(chunks.parted(row[-2])[0] if in_block else row[-2])
    return None


def items_of(
    row: tuple[Any, ...], layouts: dict[int, Layout], stamps: Stamps, machine: str | None = None
) -> list[Kept | Command] | None:
    """What a batch of the journal holds, of one machine or all; None when it is damaged.

    Times of a clock that was not set are put right, also where the message has left with the wrong one, or marked.
    """
    if rows.sound(row):
        with contextlib.suppress(*rows.UNREADABLE):
            return [_righted(item, stamps) for item in rows.unpacked(row[9], layouts, machine)]
    return None


def _righted(item: Kept | Command, stamps: Stamps) -> Kept | Command:
    if isinstance(item, Command) or not item.judged.frame.unset:
        return item
    return item._replace(judged=replace(item.judged, frame=replace(stamps.right(item.judged.frame), unset=0)))


def stamps_of(journal: sqlite3.Connection) -> Stamps:
    """What a journal knows of the times of a clock that was not set."""
    found = Stamps("")
    row = journal.execute("SELECT * FROM config WHERE id = ?", (disk.STAMPS,)).fetchone()
    if row is not None and rows.sound(row):
        with contextlib.suppress(*rows.UNREADABLE):
            found.take(row[2], "")
    return found


def epoch_of(row: tuple[Any, ...]) -> str | None:
    """Under which a notice was numbered; None when it is damaged."""
    if not rows.sound(row):
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(messages.loads(row[4])["epoch"])
    return None


def closed_of(stamps: Stamps, seq: int, closed: int) -> int:
    """When a notice got its number, put right as its message is."""
    span = stamps.span_of(seq) if stamps.spans else None
    if span is None or not (span.from_us - SECOND_US <= closed and (span.to_us is None or closed <= span.to_us)):
        return closed
    return closed + (stamps.correction_us(span.number, seq) or 0)


def _before(moved: dict[str, tuple[int, int]], epoch: str, number: int, after: int) -> int:
    """The last batch before this one that came here, by now or before: what was let go since then is no hole.

    after: the one before it in the journal. One line of numbers goes on from epoch to epoch.
    """
    known = [moved[epoch]] if epoch in moved else moved.values()
    return max([after, *(batch for batch, _ in known if batch < number)])


def _reach(ts: Ints) -> tuple[int, int]:
    return (int(ts.min()), int(ts.max())) if len(ts) else (0, 0)


def _about(layout: int, part: Stretch) -> tuple[Any, ...]:
    """The columns of a row of `blocks` or `axes` from `layout` to `t_to`."""
    axis = part.axis
    t_to = int(axis.t[-1]) if len(axis.t) else 0
    return (layout, part.epoch, int(axis.places[0]), int(axis.places[-1]), len(axis.t), *_reach(axis.ts), t_to)


def _is_ripe(each: _Open, most: int) -> bool:
    if each.rows >= most or each.blocks >= BLOCKS_MAX:
        return True
    unit = _unit(each.rows, each.ts_from, each.ts_to)
    return each.rows > 0 and each.ts_from // unit != each.ts_to // unit


def _unit(count: int, ts_from: int, ts_to: int) -> int:
    """At whole multiples of how many µs so many rows are cut: an hour, or a day where they are few."""
    hours = ts_to // HOUR_US - ts_from // HOUR_US
    return HOUR_US if count >= ROWS_AN_HOUR * max(1, hours) else DAY_US


def _in_pieces(starts: Ints, first: int, last: int, most: int) -> Iterator[tuple[int, int]]:
    """Frames first to last in runs of about so many rows."""
    while first < last:
        end = int(np.searchsorted(starts, starts[first] + most, side="left"))
        end = min(max(end, first + 1), last)
        yield first, end
        first = end


@contextmanager
def open_history(folder: Path, clock: Clock, progress: disk.Progress = lambda: None) -> Iterator[History]:
    """The history in this folder. Its file is opened at the first turn, so that nothing of it delays a start."""
    history = History(folder, clock, progress)
    try:
        yield history
    finally:
        history.close()
