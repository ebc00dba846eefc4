"""The journal: what was taken, judged and told, on disk before anybody hears of it. The one door of sqlite3.

Rule 1: committed means that the disk has it (WAL, synchronous=FULL). Only what is committed is published.
Rule 2: one counter `seq` for everything that is published; a number is given once and never to other bytes.
Rule 3: readings yield before warnings; whatever yields becomes a gap record. The store never keeps the agent from
starting: what is damaged is moved aside, counted and told.

The frames of the journal are the outbox too: a delivered reading is a number in a set of ranges, not a row to delete.
"""

import asyncio
import secrets
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import structlog

from edge_agent.contract import SECOND_US, Clock, Frame, Ints
from edge_agent.messages import topics as messages
from edge_agent.records import Command, Event, Gap, GapCause, JudgedFrame, Layout
from edge_agent.store.ranges import Intervals

log = structlog.get_logger(__name__)

FILE = "journal.db"
MARKER = "journal.marker"
FORMAT = 1
BATCH_BYTES_MAX = 64_000_000
"""Readings that wait for the disk; more than this yields and is told as a gap."""
RETRY_S = 1.0
BUSY_S = 5.0
EPOCH_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
FRAME_HEAD = struct.Struct("<BIIIB")
"""Record type, layout, rows, signals, flags (1 tick, 2 own stamps)."""
COMMAND_HEAD = struct.Struct("<BI")
IS_FRAME, IS_COMMAND = 1, 2
TICK, STAMPS = 1, 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS layouts (id INTEGER PRIMARY KEY, machine TEXT, signals TEXT, states TEXT);
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, epoch TEXT, seq_from INTEGER, seq_to INTEGER, messages INTEGER, bytes INTEGER,
    ts_from INTEGER, ts_to INTEGER, closed INTEGER, crc INTEGER, frames BLOB);
CREATE TABLE IF NOT EXISTS notices (seq INTEGER PRIMARY KEY, kind TEXT, machine TEXT, closed INTEGER, payload BLOB);
CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY CHECK (id = 1), batch INTEGER, state BLOB, config TEXT);
CREATE TABLE IF NOT EXISTS config (id INTEGER PRIMARY KEY CHECK (id = 1), sha TEXT, text TEXT);
"""
Kept = tuple[Layout, JudgedFrame, Ints]
"""A frame with the meaning of its columns and the seq of each row (0: a row that publishes nothing)."""


@dataclass(slots=True)
class Committed:
    """One message that is on disk. kind: measurements, warnings or gaps. closed_us: UTC µs when its seq was given."""

    seq: int
    machine: str | None
    kind: str
    closed_us: int
    _epoch: str = ""
    _kept: Kept | None = None
    _row: int = 0
    _bytes: bytes = b""

    @property
    def topic(self) -> str:
        """Below the root."""
        return f"{self.machine}/{self.kind}" if self.machine is not None else self.kind

    def payload(self, late: bool) -> bytes:
        """The message, encoded when it is wanted; always the same bytes but for `late`."""
        if self._kept is None:
            plain = self._bytes
        else:
            layout, judged, _ = self._kept
            frame, row = judged.frame, self._row
            plain = messages.measurement(
                self._epoch,
                self.seq,
                layout,
                int(frame.ts[row]),
                int(judged.state[row]),
                frame.values[row],
                frame.quality[row],
                None if frame.at is None else frame.at[row],
            )
        return messages.late(plain) if late else plain


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the last run left. items: frames and commands since the snapshot, in order."""

    snapshot: bytes | None
    config_json: str | None
    items: Iterator[JudgedFrame | Command]
    last_wall_us: int | None
    last_t_us: int | None


@dataclass(slots=True)
class _Batch:
    """What waits for one commit, in the order in which it came. seq_to: the last number given when it was closed."""

    items: list[Kept | Command] = field(default_factory=list)
    notices: list[Committed] = field(default_factory=list)
    snapshot: tuple[bytes, str] | None = None
    size: int = 0
    seq_from: int = 0
    seq_to: int = 0
    messages: int = 0
    t_us: int = 0
    wall_us: int = 0
    drop_to: int = 0


class Store:
    """The journal of one agent. `put` and all else belong to the loop's thread; commits happen in one of their own."""

    def __init__(self, folder: Path, clock: Clock, db: sqlite3.Connection, gaps: Sequence[Gap]) -> None:
        self._folder, self._clock, self._db = folder, clock, db
        # A connection of its own: a look at the backlog neither waits for a commit nor sees half of one.
        self._reader = sqlite3.connect(folder / FILE, timeout=BUSY_S, isolation_level=None)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        self.epoch: str = meta["epoch"]
        self._next = int(meta.get("last_seq", 0)) + 1
        self.last_committed = self._next - 1
        self._last_t: int | None = meta.get("last_t")
        self._last_wall: int | None = meta.get("last_wall")
        self._done = Intervals(orjson.loads(meta.get("delivered", "[]")))
        self._done_changed = False
        self._layouts: dict[str, tuple[int, Layout]] = {}
        self._known = {
            row[0]: Layout(row[1], tuple(orjson.loads(row[2])), tuple(orjson.loads(row[3])))
            for row in db.execute("SELECT id, machine, signals, states FROM layouts")
        }
        self._bytes = int(db.execute("SELECT total(bytes) FROM batches").fetchone()[0])
        # Every number up to the last one is either done with or still here.
        self.pending_count = self.last_committed - self._done.count(1, self.last_committed)
        self._open = _Batch()
        self._sealed: list[_Batch] = []
        self._waiting_bytes = 0
        self._lost_rows, self._lost_from, self._lost_to = 0, 0, 0
        self._wake = asyncio.Event()
        self._stopping = False
        self.fault: str | None = None
        self.max_size, self.max_age_us, self.commit_every_us = 2_000_000_000, 14 * 86_400 * SECOND_US, SECOND_US
        self.on_committed: list[Callable[[Sequence[Committed]], None]] = []
        self.commits = 0
        self._cache: tuple[int, list[Committed]] | None = None
        if gaps:
            self.put((), gaps=gaps)

    # --- writing: the loop's thread -----------------------------------------------------------------------------------

    def limit(self, max_size: int, max_age_us: int, commit_every_us: int) -> None:
        """bytes, µs, µs: what may wait for the broker, and the most that a power cut may cost."""
        self.max_size, self.max_age_us, self.commit_every_us = max_size, max_age_us, commit_every_us

    def use_layouts(self, layouts: Sequence[Layout]) -> None:
        """From now on frames of these machines have these columns."""
        known = {layout: number for number, layout in self._known.items()}
        for layout in layouts:
            number = known.get(layout)
            if number is None:
                number = max(self._known, default=0) + 1
                self._known[number] = layout
                known[layout] = number
            self._layouts[layout.machine] = (number, layout)

    def put(
        self,
        frames: Sequence[JudgedFrame],
        events: Sequence[Event] = (),
        commands: Sequence[Command] = (),
        gaps: Sequence[Gap] = (),
    ) -> None:
        """Take over what was judged; numbers are given here. Events, commands and gaps are committed at once."""
        batch, wall = self._open, self._clock.wall_us()
        for judged in frames:
            self._put_frame(batch, judged, wall)
        batch.items += commands
        for event in events:
            seq = self._number(batch)
            payload = messages.warning(self.epoch, seq, event)
            batch.notices.append(Committed(seq, event.machine, "warnings", wall, _bytes=payload))
        for gap in gaps:
            seq = self._number(batch)
            batch.notices.append(Committed(seq, None, "gaps", wall, _bytes=messages.gap(self.epoch, seq, gap)))
        if events or commands or gaps:
            self._wake.set()

    def _put_frame(self, batch: _Batch, judged: JudgedFrame, wall: int) -> None:
        frame = judged.frame
        rows = len(frame.t)
        size = frame.values.size * 9 + rows * 26
        if self._waiting_bytes + size > BATCH_BYTES_MAX:
            self._yield(judged)
            return
        seqs = np.zeros(rows, dtype=np.int64)
        told = int(np.count_nonzero(judged.publish))
        if told:
            seqs[judged.publish] = np.arange(self._next, self._next + told)
            if not batch.seq_from:
                batch.seq_from = self._next
            self._next += told
            batch.messages += told
        batch.items.append((self._layouts[frame.machine][1], judged, seqs))
        batch.size += size
        self._waiting_bytes += size
        if rows:
            batch.t_us = max(batch.t_us, int(frame.t[-1]))
        batch.wall_us = wall

    def _yield(self, judged: JudgedFrame) -> None:
        """The disk does not keep up: these readings are not kept, and that is told."""
        rows = int(np.count_nonzero(judged.publish))
        if rows:
            ts = judged.frame.ts[judged.publish]
            self._lost_from = int(ts.min()) if not self._lost_rows else min(self._lost_from, int(ts.min()))
            self._lost_to = max(self._lost_to, int(ts.max()))
            self._lost_rows += rows

    def _number(self, batch: _Batch) -> int:
        seq, self._next = self._next, self._next + 1
        if not batch.seq_from:
            batch.seq_from = seq
        return seq

    def put_snapshot(self, state: bytes, config_json: str) -> None:
        """The judge's state after everything that was put before; goes with the next commit, in its place."""
        self._open.snapshot = (state, config_json)
        self._seal()

    def _seal(self) -> None:
        batch, self._open = self._open, _Batch()
        batch.seq_to = self._next - 1
        if batch.items or batch.notices or batch.snapshot:
            self._sealed.append(batch)

    def delivered(self, seqs: Iterable[int]) -> None:
        """The broker has these; remembered with the next commit."""
        for seq in seqs:
            self.pending_count -= self._done.add(seq)
        self._done_changed = True

    # --- committing ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit once per `commit_every`, at once when asked, until `stop`."""
        while not self._stopping:
            try:
                async with asyncio.timeout(self.commit_every_us / SECOND_US):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._commit()
        await self._commit()

    async def stop(self) -> None:
        """Let `run` commit what waits and end."""
        self._stopping = True
        self._wake.set()

    async def _commit(self) -> None:
        if self._lost_rows and self.fault is None:
            cause = GapCause.OVERLOAD
            gap = Gap(cause, self._lost_rows, self._lost_from, self._lost_to)
            self._lost_rows = self._lost_to = 0
            self.put((), gaps=[gap])
        await self._drop_over_limit()
        self._seal()
        if not self._sealed and not self._done_changed:
            return
        batches, delivered = list(self._sealed), self._done.ranges()
        self._done_changed = False
        loop = asyncio.get_running_loop()
        try:
            freed = await loop.run_in_executor(self._thread, self._write, batches, delivered, self._done.done_to)
        except sqlite3.Error as error:
            self._done_changed = True
            self._failed(error)
            await asyncio.sleep(RETRY_S)
            return
        del self._sealed[: len(batches)]
        self._recovered()
        self._bytes += sum(batch.size for batch in batches) - freed
        self._waiting_bytes -= sum(batch.size for batch in batches)
        self.commits += 1
        told = [each for batch in batches for each in self._messages(batch)]
        if batches:
            self.last_committed = batches[-1].seq_to
        if told:
            self.pending_count += len(told)
            for listener in self.on_committed:
                listener(told)

    def _messages(self, batch: _Batch) -> list[Committed]:
        """What this batch has to tell, in the order of seq."""
        found = list(batch.notices)
        for item in batch.items:
            if not isinstance(item, Command):
                found += _rows(self.epoch, item, batch.wall_us)
        return sorted(found, key=lambda each: each.seq)

    def _failed(self, error: sqlite3.Error) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self.fault is None:
            log.error("store_failed", fault=reason, waiting_mb=round(self._waiting_bytes / 1e6, 1))
        self.fault = reason

    def _recovered(self) -> None:
        if self.fault is None:
            return
        log.info("store_back")
        self.fault = None
        if self._lost_rows:
            gap = Gap(GapCause.DISK_FULL, self._lost_rows, self._lost_from, self._lost_to)
            self._lost_rows = self._lost_to = 0
            self.put((), gaps=[gap])

    async def _drop_over_limit(self) -> None:
        """The oldest readings that wait for the broker yield when they are too many or too old."""
        oldest_allowed = self._clock.wall_us() - self.max_age_us
        if self._bytes <= self.max_size and self.commits % 60:
            return
        loop = asyncio.get_running_loop()
        try:
            dropped = await loop.run_in_executor(
                self._thread, self._over_limit, self._bytes - self.max_size, oldest_allowed, self._done.copy()
            )
        except sqlite3.Error as error:
            self._failed(error)
            return
        if dropped is None:
            return
        last, gap = dropped
        assert gap.from_seq is not None
        assert gap.to_seq is not None
        self._open.drop_to = last
        self.pending_count -= self._readings_between(gap.from_seq, gap.to_seq)
        self.put((), gaps=[gap])
        log.error("readings_dropped", cause="buffer_limit", rows=gap.count)

    def _readings_between(self, first: int, last: int) -> int:
        """Mark dropped readings as done with; warnings between them stay due."""
        notices = {
            row[0] for row in self._reader.execute("SELECT seq FROM notices WHERE seq BETWEEN ? AND ?", (first, last))
        }
        new, start = 0, first
        for stop in sorted(notices):
            new += self._done.add(start, stop - 1)
            start = stop + 1
        new += self._done.add(start, last)
        self._done_changed = True
        return new

    # --- the commit thread ----------------------------------------------------------------------------------------------

    def _over_limit(self, excess: int, oldest_allowed: int, done: Intervals) -> tuple[int, Gap] | None:
        """The last batch that must go, and what is lost with it: from the front, never beyond the newest snapshot."""
        newest = self._snapshot_batch()
        rows = self._db.execute(
            "SELECT id, seq_from, seq_to, bytes, ts_from, ts_to, closed FROM batches WHERE id <= ? ORDER BY id", (newest,)
        )
        last, gone, first_seq, last_seq, count, ts_from, ts_to = 0, 0, 0, 0, 0, 0, 0
        for number, seq_from, seq_to, size, from_ts, to_ts, closed in rows:
            if gone >= excess and closed >= oldest_allowed:
                break
            last, gone = number, gone + size
            if not seq_from:
                continue
            lost = seq_to - seq_from + 1 - done.count(seq_from, seq_to) - self._notices(seq_from, seq_to, done)
            if lost > 0:
                first_seq = first_seq or seq_from
                ts_from = ts_from or from_ts
                last_seq, ts_to, count = seq_to, to_ts, count + lost
        if not count:
            return None
        return last, Gap(GapCause.BUFFER_LIMIT, count, ts_from, ts_to, first_seq, last_seq)

    def _notices(self, first: int, last: int, done: Intervals) -> int:
        """Undelivered warnings and gaps between these numbers: they stay."""
        rows = self._db.execute("SELECT seq FROM notices WHERE seq BETWEEN ? AND ?", (first, last))
        return sum(1 for (seq,) in rows if seq not in done)

    def _write(self, batches: Sequence[_Batch], delivered: list[tuple[int, int]], done_to: int) -> int:
        """One transaction. Returns the bytes of readings that were freed."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            self._write_layouts()
            for batch in batches:
                self._write_batch(batch)
            freed = self._prune(batches, delivered, done_to)
            self._set("delivered", orjson.dumps(delivered).decode())
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return freed

    def _write_layouts(self) -> None:
        have = {row[0] for row in self._db.execute("SELECT id FROM layouts")}
        self._db.executemany(
            "INSERT INTO layouts VALUES (?, ?, ?, ?)",
            [
                (number, layout.machine, orjson.dumps(layout.signals).decode(), orjson.dumps(layout.states).decode())
                for number, layout in list(self._known.items())
                if number not in have
            ],
        )

    def _write_batch(self, batch: _Batch) -> None:
        db = self._db
        if batch.items:
            ids = {layout: number for number, layout in list(self._known.items())}
            blob = b"".join(_packed(item, ids) for item in batch.items)
            stamps = [item[1].frame.ts for item in batch.items if not isinstance(item, Command) and len(item[1].frame.ts)]
            db.execute(
                "INSERT INTO batches (epoch, seq_from, seq_to, messages, bytes, ts_from, ts_to, closed, crc, frames) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    self.epoch,
                    batch.seq_from if batch.messages else 0,
                    batch.seq_to,
                    batch.messages,
                    batch.size,
                    min((int(ts[0]) for ts in stamps), default=0),
                    max((int(ts[-1]) for ts in stamps), default=0),
                    batch.wall_us,
                    zlib.crc32(blob),
                    blob,
                ),
            )
            # t never decreases; a batch of commands alone has none.
            self._set("last_t", max(batch.t_us, self._get("last_t", 0)))
            self._set("last_wall", batch.wall_us or self._get("last_wall", 0))
        db.executemany(
            "INSERT INTO notices VALUES (?, ?, ?, ?, ?)",
            [(each.seq, each.kind, each.machine, each.closed_us, each._bytes) for each in batch.notices],
        )
        self._set("last_seq", batch.seq_to)
        if batch.snapshot is not None:
            # The newest batch is never deleted, so its number never comes again.
            newest = db.execute("SELECT ifnull(max(id), 0) FROM batches").fetchone()[0]
            db.execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?, ?)", (newest, *batch.snapshot))
            self._mark(batch.seq_to)

    def _set(self, key: str, value: int | str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _get(self, key: str, default: int) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else int(row[0])

    def _snapshot_batch(self) -> int:
        row = self._db.execute("SELECT batch FROM snapshot WHERE id = 1").fetchone()
        return int(row[0]) if row else 0

    def _prune(self, batches: Sequence[_Batch], delivered: list[tuple[int, int]], done_to: int) -> int:
        """Delete what was delivered and is covered by a snapshot, and what had to yield. The newest batch always stays."""
        db = self._db
        drop_to = max((batch.drop_to for batch in batches), default=0)
        newest = min(self._snapshot_batch(), db.execute("SELECT ifnull(max(id), 0) - 1 FROM batches").fetchone()[0])
        where = "WHERE id <= ? AND (seq_to <= ? OR id <= ?)"
        freed = db.execute(f"SELECT total(bytes) FROM batches {where}", (newest, done_to, drop_to)).fetchone()[0]  # noqa: S608
        if freed or drop_to:
            db.execute(f"DELETE FROM batches {where}", (newest, done_to, drop_to))  # noqa: S608
        db.executemany("DELETE FROM notices WHERE seq BETWEEN ? AND ?", delivered)
        return int(freed)

    def _mark(self, seq: int) -> None:
        """The marker beside the store: an older copy of the store is known by it."""
        marker = self._folder / MARKER
        fresh = marker.with_suffix(".new")
        try:
            fresh.write_bytes(orjson.dumps({"epoch": self.epoch, "seq": seq}))
            fresh.replace(marker)
        except OSError as error:
            log.warning("marker_not_written", fault=str(error))

    # --- reading --------------------------------------------------------------------------------------------------------

    def pending(self, after_seq: int, limit: int) -> list[Committed]:
        """Committed messages after this number that were not delivered, in order. Damaged ones become a gap record."""
        found: list[Committed] = []
        notices = self._reader.execute(
            "SELECT seq, machine, kind, closed, payload FROM notices WHERE seq > ? AND seq <= ? ORDER BY seq",
            (after_seq, self.last_committed),
        )
        for seq, machine, kind, closed, payload in notices:
            if seq not in self._done:
                found.append(Committed(seq, machine, kind, closed, _bytes=payload))
                if len(found) >= limit:
                    break
        rows = self._reader.execute(
            "SELECT id, epoch, seq_from, seq_to, closed FROM batches WHERE seq_to > ? AND messages > 0 ORDER BY id",
            (after_seq,),
        )
        readings: list[Committed] = []
        for number, epoch, seq_from, seq_to, closed in rows:
            if self._done.count(seq_from, seq_to) == seq_to - seq_from + 1:
                continue
            readings += [
                each
                for each in self._batch_messages(number, epoch, closed)
                if each.seq > after_seq and each.seq not in self._done
            ]
            if len(readings) >= limit:
                break
        return sorted(found + readings, key=lambda each: each.seq)[:limit]

    def _batch_messages(self, number: int, epoch: str, closed: int) -> list[Committed]:
        if self._cache is not None and self._cache[0] == number:
            return self._cache[1]
        told: list[Committed] = []
        for item in self._items(number):
            if not isinstance(item, Command):
                told += _rows(epoch, item, closed)
        self._cache = (number, told)
        return told

    def _items(self, number: int) -> list[Kept | Command]:
        """The contents of one batch; a damaged one is told as a gap and left out."""
        try:
            crc, blob, seq_from, seq_to, count, ts_from, ts_to = self._reader.execute(
                "SELECT crc, frames, seq_from, seq_to, messages, ts_from, ts_to FROM batches WHERE id = ?", (number,)
            ).fetchone()
            if zlib.crc32(blob) == crc:
                return _unpacked(blob, self._known)
        except (sqlite3.DatabaseError, struct.error, KeyError, ValueError) as error:
            log.error("batch_unreadable", batch=number, fault=str(error))
            return []
        log.error("batch_damaged", batch=number, rows=count)
        if count:
            self.pending_count -= self._readings_between(seq_from, seq_to)
            self.put((), gaps=[Gap(GapCause.DAMAGE, count, ts_from, ts_to, seq_from, seq_to)])
        return []

    @property
    def oldest_pending_us(self) -> int | None:
        """UTC µs when the oldest undelivered message was closed."""
        first = self.pending(0, 1) if self.pending_count > 0 else []
        return first[0].closed_us if first else None

    def status(self) -> dict[str, Any]:
        """For the health topic: messages that wait, the oldest of them, and the state of the disk."""
        oldest = self.oldest_pending_us
        return {
            "messages": max(0, self.pending_count),
            "oldest": None if oldest is None else messages.to_utc(oldest),
            "epoch": self.epoch,
            "seq": self.last_committed,
            "mb": round(self._bytes / 1e6, 3),
            "state": "ok" if self.fault is None else "failing",
            **({"reason": self.fault} if self.fault else {}),
        }

    def recovery(self) -> Recovery:
        """What the last run left; to be used before anything is put."""
        row = self._reader.execute("SELECT batch, state, config FROM snapshot WHERE id = 1").fetchone()
        batch, state, config = row or (0, None, None)
        return Recovery(state, config, self._since(batch), self._last_wall, self._last_t)

    def _since(self, batch: int) -> Iterator[JudgedFrame | Command]:
        numbers = [row[0] for row in self._reader.execute("SELECT id FROM batches WHERE id > ? ORDER BY id", (batch,))]
        for number in numbers:
            for item in self._items(number):
                yield item if isinstance(item, Command) else item[1]

    def save_config(self, text: str, sha: str) -> None:
        """Keep the configuration that is in force as the last good one."""
        if self.load_config() != (text, sha):
            self._reader.execute("INSERT OR REPLACE INTO config VALUES (1, ?, ?)", (sha, text))

    def load_config(self) -> tuple[str, str] | None:
        """(text, sha) of the last good configuration."""
        row = self._reader.execute("SELECT text, sha FROM config WHERE id = 1").fetchone()
        return None if row is None else (row[0], row[1])

    def close(self) -> None:
        """Keep what was delivered since the last commit, and let go of the file."""
        self._thread.shutdown()
        try:
            self._write([], self._done.ranges(), self._done.done_to)
        except sqlite3.Error as error:
            log.error("store_failed", fault=str(error))
        self._reader.close()
        self._db.close()


def _rows(epoch: str, kept: Kept, closed: int) -> Iterator[Committed]:
    machine = kept[0].machine
    for row, seq in enumerate(kept[2].tolist()):
        if seq:
            yield Committed(seq, machine, "measurements", closed, epoch, kept, row)


# --- bytes ------------------------------------------------------------------------------------------------------------


def _packed(item: Kept | Command, ids: dict[Layout, int]) -> bytes:
    if isinstance(item, Command):
        plain = orjson.dumps(asdict(item))
        return COMMAND_HEAD.pack(IS_COMMAND, len(plain)) + plain
    layout, judged, seqs = item
    frame = judged.frame
    flags = (TICK if frame.tick else 0) | (STAMPS if frame.at is not None else 0)
    head = FRAME_HEAD.pack(IS_FRAME, ids[layout], len(frame.t), frame.values.shape[1], flags)
    parts = [head, frame.t.tobytes(), frame.ts.tobytes(), seqs.tobytes(), judged.state.tobytes()]
    parts += [frame.values.tobytes(), frame.quality.tobytes()]
    if frame.at is not None:
        parts.append(frame.at.tobytes())
    return b"".join(parts)


def _unpacked(blob: bytes, layouts: dict[int, Layout]) -> list[Kept | Command]:
    """The items of a batch. Raises struct.error, KeyError or ValueError when the bytes make no sense."""
    found: list[Kept | Command] = []
    place = 0
    while place < len(blob):
        if blob[place] == IS_COMMAND:
            _, length = COMMAND_HEAD.unpack_from(blob, place)
            place += COMMAND_HEAD.size
            found.append(Command(**orjson.loads(blob[place : place + length])))
            place += length
            continue
        _, number, rows, width, flags = FRAME_HEAD.unpack_from(blob, place)
        place += FRAME_HEAD.size
        layout = layouts[number]
        if width != len(layout.signals):
            raise ValueError(f"a frame of {layout.machine} has {width} columns, not {len(layout.signals)}")
        t, place = _array(blob, place, np.int64, (rows,))
        ts, place = _array(blob, place, np.int64, (rows,))
        seqs, place = _array(blob, place, np.int64, (rows,))
        state, place = _array(blob, place, np.int16, (rows,))
        values, place = _array(blob, place, np.float64, (rows, width))
        quality, place = _array(blob, place, np.uint8, (rows, width))
        at = None
        if flags & STAMPS:
            at, place = _array(blob, place, np.int64, (rows, width))
        frame = Frame(layout.machine, t, ts, values, quality, at, bool(flags & TICK))
        found.append((layout, JudgedFrame(frame, state, seqs != 0), seqs))
    return found


def _array(blob: bytes, place: int, dtype: Any, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], int]:
    count = int(np.prod(shape))
    array = np.frombuffer(blob, dtype=dtype, count=count, offset=place).reshape(shape)
    return array, place + count * np.dtype(dtype).itemsize


# --- opening ------------------------------------------------------------------------------------------------------------


@contextmanager
def open_store(folder: Path, clock: Clock) -> Iterator[Store]:
    """The store in this folder. Never refuses: one that cannot be read is moved aside and a new one begins, which is told."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / FILE
    gaps: list[Gap] = []
    try:
        db = _connect(path, folder)
    except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error) and "not a database" not in str(error):
            raise OSError(f"{path}: {error}") from error
        wall = clock.wall_us()
        aside = folder / f"{FILE}.damaged-{wall // SECOND_US}"
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.replace(aside.with_name(aside.name + suffix))
        log.error("store_damaged", fault=str(error), kept_as=str(aside))
        (folder / MARKER).unlink(missing_ok=True)
        db = _connect(path, folder)
        gaps = [Gap(GapCause.DAMAGE, 0, wall, wall)]
    store = Store(folder, clock, db, gaps)
    with closing(store):
        yield store


def _connect(path: Path, folder: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=64)
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA busy_timeout=5000")
        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("database disk image is malformed")
        db.executescript(SCHEMA)
        _epoch(db, folder)
        # Read all that Store reads, so that what cannot be read is found here.
        for table in ("meta", "layouts", "snapshot", "config"):
            db.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - names of our own
    except BaseException:
        db.close()
        raise
    return db


def _epoch(db: sqlite3.Connection, folder: Path) -> None:
    """A store counts under its epoch; one that is new, or older than the marker beside it, begins another."""
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format {meta['format']} is not known to this version")
    marker = _marker(folder)
    mine, seq = meta.get("epoch"), int(meta.get("last_seq", 0))
    if mine is not None and (marker is None or (marker.get("epoch") == mine and int(marker.get("seq", 0)) <= seq)):
        return
    fresh = "".join(secrets.choice(EPOCH_LETTERS) for _ in range(6))
    beyond = int(marker.get("seq", 0)) if marker is not None and mine is not None else 0
    done = Intervals(orjson.loads(meta.get("delivered", "[]")))
    if beyond > seq:
        done.add(seq + 1, beyond)
        log.error("store_is_older_than_its_marker", seq=seq, marker=beyond, epoch=fresh)
    db.execute("BEGIN IMMEDIATE")
    for key, value in (
        ("format", FORMAT),
        ("epoch", fresh),
        ("last_seq", max(seq, beyond)),
        ("delivered", orjson.dumps(done.ranges()).decode()),
    ):
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    db.execute("COMMIT")


def _marker(folder: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads((folder / MARKER).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
