"""The journal: what was taken, judged and told, on disk before anybody hears of it. With `disk` and `writer` the one door of sqlite3.

Rule 1: committed means that the disk has it (WAL, synchronous=FULL). Only what is committed is published.
Rule 2: one counter `seq` for everything that is published; a number is given once and never to other bytes.
Rule 3: readings yield before warnings, gap records never; whatever yields becomes a gap record. The store never keeps the agent from
starting: what is damaged is moved aside, what can be read of it is kept, and the rest is counted and told; a disk that
takes nothing is asked again and again, and meanwhile all waits in memory, bounded and counted.

The frames of the journal are the outbox too: a delivered reading is a number in a set of ranges, not a row to delete.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import structlog

from edge_agent.contract import SECOND_US, Clock
from edge_agent.messages import topics as messages
from edge_agent.records import Command, Event, Gap, GapCause, JudgedFrame, Layout, Span
from edge_agent.store import disk, rows
from edge_agent.store.committed import Committed, Page
from edge_agent.store.ranges import Intervals
from edge_agent.store.rows import Kept
from edge_agent.store.stamps import Stamps
from edge_agent.store.writer import (
    NOTICE_ROW,
    SIZE,
    Batch,
    Done,
    Grown,
    Moving,
    Work,
    Writer,
    first_beyond,
    whole_numbers,
)

log = structlog.get_logger(__name__)

FILE, MARKER = disk.FILE, disk.MARKER
WAITING_MAX = 64_000_000
"""bytes of memory that wait for the disk; readings that come beyond that yield and are told as a gap."""
FRAME_OVERHEAD, NOTICE_OVERHEAD = 1_800, 800
"""bytes of memory that a frame and a notice take beside their numbers (objects, arrays' heads)."""
BATCHES_A_LOOK = 16
"""Batches that one look for the backlog unpacks: the loop has others to serve."""
TRANSACTION_MAX = 8_000_000
"""bytes of readings in one transaction: after a full disk the journal comes back in steps."""
RETRY_S, RETRY_MAX_S = 0.5, 4.0
"""After a commit that failed: doubled from failure to failure. So what waits is tried within 5 s of the disk's return."""
DONE_EVERY = 60
"""Commits after which what is delivered is written at the latest; until then the marker has it, which costs nothing."""
REOPENED_AFTER = 4
"""Commits that failed one after the other, after which the file is opened anew."""
AGE_LOOK_EVERY = 60
"""Commits between two looks for readings that are too old."""
MOVE_BYTES = 8_000_000
"""bytes of readings after which the history should take what is new; earlier where the buffer is small."""
TOLD_SINCE = "SELECT * FROM notices WHERE seq > ? AND kind = 'warnings' ORDER BY seq"
NEAR_US = 400 * 86_400 * SECOND_US
DROP_SHARE = 20
"""A twentieth of the limit goes at once, so that a long outage is a gap now and then and not one a second."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the last run left. items: frames and commands since the snapshot, in order.

    numbers: (epoch, seq) of the last event of each warning that was told since the snapshot, by its id.
    epoch: under which the items were judged (the ids of warnings have it in them); another than the store's where that
    is an older copy, or one that was restored.
    """

    snapshot: bytes | None
    config_json: str | None
    items: Iterator[JudgedFrame | Command]
    numbers: dict[str, tuple[str, int]]
    last_wall_us: int | None
    last_t_us: int | None
    epoch: str = ""


class Store:
    """The journal of one agent. `put` and all else belong to the loop's thread; commits happen in one of their own."""

    def __init__(self, folder: Path, clock: Clock, opened: disk.Opened, boot: str = "") -> None:
        self._folder, self._clock = folder, clock
        self._homeless, self._blind = bool(opened.fault), bool(opened.fault) and not opened.layouts
        """The disk has not let us open the file: `_db` is in memory, and nothing is committed. And nothing could be read."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self.epoch: str = opened.state.epoch
        self._next = opened.state.last_seq + 1
        self.last_committed = opened.state.last_seq
        self._last_batch = opened.state.last_batch
        self._t, self._wall = opened.state.last_t, opened.state.last_wall
        self._found = (self._wall, self._t)
        # All of it counts as changed: what only the marker knows is still to be written, and what it covers to be deleted.
        self._done = Intervals(opened.state.delivered)
        self._done_changed = self._done_soon = False
        """Something was delivered; and something was given up, which goes with the gap that tells of it."""
        self._done_waits = self._failures = 0
        """Commits since what is delivered was written; failed ones since one succeeded."""
        self._layouts: dict[str, tuple[int, Layout]] = {}
        self._use_known(opened.layouts)
        self._batch_at_start = self._last_batch
        self._config, self._texts = opened.config, dict(opened.texts)
        self._judged_with_found, _ = (self._texts.pop(row, None) for row in (disk.JUDGED_WITH, disk.COUNTED))
        self._begin_writing(opened)
        self._open = Batch()
        self._sealed: list[Batch] = []
        self._writing = self._waiting_bytes = 0
        """How many of them are being written; the memory of all."""
        self._lost_rows, self._lost_from, self._lost_to = 0, 0, 0
        self._wake, self.move_soon = asyncio.Event(), asyncio.Event()
        self._stopping = False
        self._broken: str | None = None
        self.fault: str | None = opened.fault or None
        self.fault_since_us = clock.wall_us()
        """UTC µs; only while there is a fault."""
        self.on_home: Callable[[disk.State, dict[str, tuple[str, int]]], None] = lambda *_: None
        """Called once when a disk that refused at start has come back: with the store as it was found, and the numbers
        that the events since the start have now, by the id of their warning."""
        self.max_size, self.max_age_us, self.commit_every_us = 2_000_000_000, 14 * 86_400 * SECOND_US, SECOND_US
        self.ends_of: Callable[[bytes | None, list[dict[str, Any]]], list[dict[str, Any]]] = lambda *_: []
        """Asked once when a file can be read of which nothing was known: its snapshot, the warnings that were told since;
        the ends of those that still stood. They are told first."""
        self.on_committed: list[Callable[[Sequence[Committed]], None]] = []
        self._told_bytes = self._unmoved_bytes = self.commits = 0
        """The first: of warnings and gap records on disk."""
        self._cache: tuple[int, list[Committed]] | None = None
        self._moved: tuple[int, int] | None = None
        """How far the history has come: (batch, seq). None: there is no history, and nothing waits for it."""
        self._begin_stamps(boot)
        if self._homeless:
            log.error("store_not_opened", fault=opened.fault)
        self._begin_reading(opened)
        if opened.gap is not None:
            self.put((), gaps=[opened.gap])

    def _begin_writing(self, opened: disk.Opened) -> None:
        self._writer = Writer(self._folder, opened)
        self._unsynced = self._stale = False
        """The disk has failed to sync the file, which is copied before anything is written; its connection has failed."""

    def _begin_stamps(self, boot: str) -> None:
        self.stamps, self._settled = Stamps(boot), Stamps(boot)
        """What is known of a clock that was not set; and what of that is on disk, which alone decides what leaves."""
        self._steps: list[tuple[int, int]] = []
        """Of the wall clock in this run: the number that was next, and by how much (µs) it stepped."""
        self._load_stamps()

    def _begin_reading(self, opened: disk.Opened) -> None:
        assert opened.reader is not None
        self._reader = opened.reader
        self._bytes = self._told_bytes = 0
        try:
            told = self._reader.execute("SELECT total(length(payload) + ?) FROM notices", (NOTICE_ROW,))
            self._told_bytes = int(told.fetchone()[0])
            counted = self._counted()
            self._writer.counted(counted)
            asked = f"SELECT total({SIZE}) FROM batches WHERE id > ?"  # noqa: S608 - ours
            newer = self._reader.execute(asked, (counted.batch,))
            self._bytes = counted.size + int(newer.fetchone()[0])
        except disk.FAULTS as error:
            self._unreadable(error)
        # Every number up to the last one is either done with or still here.
        self.pending_count = self.last_committed - self._done.count(1, self.last_committed)
        self._cache = None

    def _counted(self) -> disk.Counted:
        """What the last snapshot has counted; nothing where that is not to be had (then all is counted anew)."""
        row = self._reader.execute("SELECT * FROM config WHERE id = ?", (disk.COUNTED,)).fetchone()
        with contextlib.suppress(*rows.UNREADABLE):
            return disk.Counted(**orjson.loads(row[2])) if row is not None and rows.sound(row) else disk.Counted()
        return disk.Counted()

    # --- writing: the loop's thread -----------------------------------------------------------------------------------

    def limit(self, max_size: int, max_age_us: int, commit_every_us: int) -> None:
        """bytes, µs, µs: what may wait for the broker, and the most that a power cut may cost."""
        self.max_size, self.max_age_us, self.commit_every_us = max_size, max_age_us, commit_every_us

    def _use_known(self, layouts: Mapping[int, Layout]) -> None:
        """The layouts that the file has, by their numbers there."""
        self._known = dict(layouts)
        self._numbers_of = {layout: number for number, layout in layouts.items()}

    def use_layouts(self, layouts: Sequence[Layout]) -> None:
        """From now on frames of these machines have these columns."""
        for layout in layouts:
            self._layouts[layout.machine] = (self._number_of(layout), layout)

    def _number_of(self, layout: Layout) -> int:
        if layout not in self._numbers_of:
            number = self._numbers_of[layout] = max(self._known, default=0) + 1
            self._known[number] = layout
        return self._numbers_of[layout]

    def put(
        self,
        frames: Sequence[JudgedFrame],
        events: Sequence[Event] = (),
        commands: Sequence[Command] = (),
        gaps: Sequence[Gap] = (),
    ) -> list[Event]:
        """Take over what was judged; numbers are given here. Events, commands and gaps are committed at once.

        Returns the events, numbered.
        """
        wall = self._clock.wall_us()
        for judged in frames:
            self._put_frame(judged, wall)
        self._open.items += commands
        numbered = [replace(event, epoch=self.epoch, seq=self._number(1)) for event in events]
        for event in numbered:
            self._put_notice(event.seq, event.machine, "warnings", wall, messages.warning(event))
        for gap in gaps:
            seq = self._number(1)
            self._put_notice(seq, None, "gaps", wall, messages.gap(self.epoch, seq, gap))
        if events or commands or gaps:
            self._wake.set()
        return numbered

    def _put_notice(self, seq: int, machine: str | None, kind: str, wall: int, payload: bytes) -> None:
        """Warnings and gaps are never dropped here; what they take, readings have to yield."""
        now = self._clock.monotonic_us()
        self._open.notices.append(
            Committed(seq, machine, kind, wall, _bytes=payload, _stamps=self._settled, _since_us=now)
        )
        size = len(payload) + NOTICE_OVERHEAD
        self._open.size += size
        self._waiting_bytes += size

    def _put_frame(self, judged: JudgedFrame, wall: int) -> None:
        frame, batch = judged.frame, self._open
        count, width = frame.values.shape
        size = frame.values.size * (9 if frame.at is None else 17) + count * 26 + FRAME_OVERHEAD
        if self._waiting_bytes + size > WAITING_MAX:
            self._yield(judged)
            return
        number, layout = self._layouts[frame.machine]
        if width != len(layout.signals):
            raise ValueError(f"a frame of {frame.machine} has {width} columns, not {len(layout.signals)}")
        seqs = np.zeros(count, dtype=np.int64)
        told = int(np.count_nonzero(judged.publish))
        if told:
            first = self._number(told)
            seqs[judged.publish] = np.arange(first, first + told)
            batch.messages += told
        batch.items.append(Kept(number, layout, judged, seqs))
        batch.size += size
        self._waiting_bytes += size
        if count:
            self._t = max(self._t or 0, int(frame.t[-1]))
        self._wall = wall

    def _yield(self, judged: JudgedFrame) -> None:
        """The disk does not keep up: these readings are not kept, and that is told."""
        count = int(np.count_nonzero(judged.publish))
        if count:
            ts = judged.frame.ts[judged.publish]
            self._lost_from = min(self._lost_from, int(ts.min())) if self._lost_rows else int(ts.min())
            self._lost_to = max(self._lost_to, int(ts.max()))
            self._lost_rows += count

    def _number(self, count: int) -> int:
        """The first of so many numbers, given to what is open."""
        first, self._next = self._next, self._next + count
        self._open.seq_from = self._open.seq_from or first
        return first

    def put_snapshot(self, state: bytes, config_json: str) -> None:
        """The judge's state after everything that was put before; goes with the next commit, in its place."""
        # A disk that is full for hours needs only the last one, and the first of each other configuration: what follows
        # that was judged by it, and is again, should the end come before all of it is written.
        before = self._writer.judged_with or self._judged_with_found
        for number, batch in enumerate(self._sealed):
            if batch.snapshot is not None and batch.snapshot[1] != before:
                before = batch.snapshot[1]
            elif number >= self._writing:
                batch.snapshot = None
        self._open.snapshot = (state, config_json)
        self._seal()

    def _seal(self) -> None:
        batch = self._open
        about = batch.snapshot is not None or batch.config is not None or batch.texts
        if not (batch.items or batch.notices or batch.drop_to or batch.drop_warnings_to or about):
            return
        self._open = Batch()
        batch.seq_to = self._next - 1
        batch.t_us, batch.wall_us, batch.closed_us = self._t, self._wall, self._clock.monotonic_us()
        if batch.items:
            batch.number = self._last_batch = self._last_batch + 1
        self._sealed.append(batch)

    # --- a clock that nobody has set ----------------------------------------------------------------------------------

    def _load_stamps(self) -> None:
        """What the last run knew. A span that went on then ended with it, whatever the clock shows now."""
        self._settled.ask = self._hand_over
        self._stamps_on_disk = {row: self._texts.get(row, "") for row in (disk.STAMPS, disk.HANDED)}
        kept = self._stamps_on_disk.values()
        for each in (self.stamps, self._settled):
            with contextlib.suppress(*rows.UNREADABLE):
                each.take(*kept)
        if self.stamps.open is not None:
            self.stamps.end(self._wall or 0, self._next - 1)
            self._keep_stamps()

    def _keep_stamps(self) -> None:
        self.save_text(disk.STAMPS, self.stamps.text())
        self.save_text(disk.HANDED, self.stamps.handed_text())

    @property
    def floor_us(self) -> int | None:
        """The last time (UTC µs) that a set clock has shown: one that shows less is not set. None: nobody knows."""
        known = (self.stamps.floor_us, None if self.last_in_doubt else self._wall)
        return max((us for us in known if us is not None), default=None)

    @property
    def last_in_doubt(self) -> Span | None:
        """The span of a clock that was not set with which the last run ended; None: its clock was set then."""
        last = next(reversed(self.stamps.spans.values()), None)
        return last if last is not None and last.by_us is None and last.to_seq == self.last_committed else None

    def begin_unset(self, base_us: int, floor_us: int | None) -> int:
        """Nobody has set the clock: frames have the number that is returned from now on. base_us: wall minus monotonic.

        floor_us: the last time that a set clock has shown, None: unknown.
        """
        self.stamps.floor_us = floor_us
        span = self.stamps.begin(base_us, self._clock.wall_us(), self._t or 0, self._next)
        self._keep_stamps()
        log.warning("clock_not_set", shows=messages.to_utc(span.from_us), span=span.number)
        return span.number

    def end_unset(self, was_us: int) -> None:
        """That span is over. was_us: what its clock showed last."""
        self.stamps.end(was_us, self._next - 1)
        self._keep_stamps()

    def put_right(self, base_us: int, floor_us: int) -> list[Span]:
        """The clock is set, and this is wall minus monotonic: what waits leaves with the right stamps. The spans put right."""
        found = self.stamps.put_right(base_us)
        self.stamps.floor_us = floor_us
        self._keep_stamps()
        for span in found:
            log.info("stamps_put_right", span=span.number, by_s=round((span.by_us or 0) / SECOND_US, 3))
        return found

    def _hand_over(self, seq: int) -> None:
        """A message would leave whose stamp could still be put right: from the next commit on it is as it is."""
        if seq not in self.stamps.handed:
            self.stamps.hand_over(seq, self.last_committed)
            self.save_text(disk.HANDED, self.stamps.handed_text())

    def _settle_stamps(self, batches: Sequence[Batch]) -> bool:
        """Take over what these have written of stamps; whether they have."""
        kept = {row: text for batch in batches for row, text in batch.texts.items() if row in self._stamps_on_disk}
        if kept:
            self._stamps_on_disk |= kept
            self._settled.take(*self._stamps_on_disk.values())
        return bool(kept)

    def stepped(self, by_us: int, base_us: int) -> None:
        """The wall clock has stepped: what waits has waited as long as before. base_us: wall minus monotonic now."""
        self._steps.append((self._next, by_us))
        self.note_base(base_us)

    def note_base(self, base_us: int) -> int:
        """See Stamps.note_base; kept with the next commit. Called at start too: the last run may have ended before a step."""
        by = self.stamps.note_base(base_us)
        self._keep_stamps()
        return by

    def _closed_us(self, seq: int, closed: int) -> int:
        """A stamp of the store's own, as the wall clock of now would have given it."""
        now = self._clock.wall_us()
        for next_seq, by in self._steps:
            # One that lies in the future then was given under yet another clock.
            if seq < next_seq and closed + by <= now:
                closed += by
        return closed

    def _since_us(self, seq: int, closed: int) -> int:
        """The same as monotonic µs."""
        return self._clock.monotonic_us() - max(0, self._clock.wall_us() - self._closed_us(seq, closed))

    def delivered(self, seqs: Iterable[int]) -> None:
        """The broker has these; remembered with the next commit."""
        for seq in seqs:
            if 1 <= seq <= self.last_committed:
                self.pending_count -= self._done.add(seq)
                self._done_changed = True

    def keep_for_history(self) -> None:
        """From now on nothing that was delivered goes before the history has it."""
        self._moved = self._moved or (0, 0)

    def moved(self, batch: int, seq: int) -> None:
        """The history has on disk all batches and notices up to these."""
        self._moved = (batch, seq)

    async def to_move(self, batch: int, seq: int, most: int = MOVE_BYTES) -> Moving:
        """What follows on this batch and this number, about so many bytes. Raises one of disk.FAULTS."""
        self.move_soon.clear()
        self._unmoved_bytes = 0
        loop = asyncio.get_running_loop()
        stamps = self._settled.copy()
        # What may still come right stays here, unless for days nobody sets the clock.
        until = stamps.doubtful_from() if self._size < self.max_size // 2 else None
        if self._broken is not None:
            raise sqlite3.OperationalError(f"it is being mended: {self._broken}")
        try:
            # In the commit thread: nothing is read while a damaged file is put aside.
            return await loop.run_in_executor(
                self._thread,
                self._writer.to_move,
                (batch, seq),
                (self._last_batch, until or disk.NUMBER_MAX),
                most,
                dict(self._known),
                stamps,
            )
        except disk.FAULTS as error:
            self._unreadable(error)
            raise

    # --- committing ---------------------------------------------------------------------------------------------------

    async def run(self, stroke: Callable[[], None] = lambda: None) -> None:
        """Commit once per `commit_every`, at once when asked, until `stop`. stroke: called at each turn."""
        while not self._stopping:
            stroke()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.commit_every_us / SECOND_US):
                    await self._wake.wait()
            self._wake.clear()
            if not await self._commit():
                await asyncio.sleep(min(RETRY_S * 2 ** (self._failures - 1), RETRY_MAX_S))
                self._wake.set()
        while await self._commit() and (self._sealed or self._done_changed):
            pass

    async def stop(self) -> None:
        """Let `run` commit what waits and end."""
        self._stopping = True
        self._wake.set()

    async def _commit(self) -> bool:
        """Write what waits, in one transaction. False when the disk refused; everything is tried again."""
        loop = asyncio.get_running_loop()
        try:
            if self._homeless:
                await self._come_home()
            if self._broken is not None:
                await self._mend(self._broken)
            if self._lost_rows and self.fault is None:
                self._tell_lost(GapCause.OVERLOAD)
            await self._drop_over_limit()
            self._seal()
            if not self._sealed and not self._done_changed:
                return True
            batches = self._first_sealed()
            state, done = self._state(batches), self._changes(batches)
            if not batches and done is None:
                await loop.run_in_executor(self._thread, disk.write_marker, self._folder, state)
                self._done_changed = False
                return True
            self._writing = len(batches)
            try:
                work = Work(batches, state, done, dict(self._known), self._bytes, self._moved)
                grown = await loop.run_in_executor(self._thread, self._writer.write, work)
            except BaseException:
                self._take_back(done)
                raise
            finally:
                self._writing = 0
        except (*disk.FAULTS, OSError) as error:
            self._failed(error)
            return False
        self._committed(batches, state, grown)
        doubt, self._writer.doubt = self._writer.doubt, None
        if doubt is not None:
            self._failed(doubt)
        return doubt is None

    def _first_sealed(self) -> list[Batch]:
        taken, size = 0, 0
        for batch in self._sealed:
            if taken and size + batch.size > TRANSACTION_MAX:
                break
            taken, size = taken + 1, size + batch.size
        return self._sealed[:taken]

    def _state(self, batches: Sequence[Batch]) -> disk.State:
        """How far the store has come with these."""
        delivered = self._done.ranges(disk.MARKED_MAX + 1)
        if not batches:
            return disk.State(self.epoch, self.last_committed, self._last_batch, self._t, self._wall, delivered)
        last = batches[-1]
        number = max((batch.number for batch in batches), default=0)
        written = number or self._last_batch
        return disk.State(self.epoch, last.seq_to, written, last.t_us, last.wall_us, delivered)

    def _changes(self, batches: Sequence[Batch]) -> Done | None:
        """What is done with since it was written last; None: it need not be written now.

        It goes with the gap that tells of it: with the last batch. What was delivered may wait: the marker has it.
        """
        if len(batches) < len(self._sealed):
            return None
        self._done_waits += 1
        snapshot = any(batch.snapshot is not None for batch in batches)
        soon = self._done_soon or snapshot or self._done_waits >= DONE_EVERY or self._stopping
        if not soon and disk.fits_marker(self._state(batches)):
            return None
        self._done_changed = self._done_soon = False
        self._done_waits = 0
        return Done(self._done.take_changes(), self._done.copy() if snapshot else None)

    def _take_back(self, done: Done | None) -> None:
        if done is not None:
            self._done.give_back(done.changes)
            self._done_changed = self._done_soon = True

    def _committed(self, batches: Sequence[Batch], state: disk.State, grown: Grown) -> None:
        del self._sealed[: len(batches)]
        self._bytes, self._told_bytes = self._bytes + grown.readings, self._told_bytes + grown.told
        self._unmoved_bytes += sum(batch.size for batch in batches)
        if self._unmoved_bytes >= min(MOVE_BYTES, self.max_size // 4):
            self.move_soon.set()
        self._waiting_bytes -= sum(batch.size for batch in batches)
        self.commits += 1
        told = [each for batch in batches for each in self._messages(batch)]
        self.last_committed = state.last_seq
        self.pending_count += len(told)
        self._failures = 0
        if self.fault is not None:
            log.info("store_back", away_s=round((self._clock.wall_us() - self.fault_since_us) / SECOND_US, 1))
            self.fault = None
            if self._lost_rows:
                self._tell_lost(GapCause.DISK_FULL)
        if self._sealed:
            self._wake.set()
        if self._settle_stamps(batches) or told:
            for listener in list(self.on_committed):
                listener(told)

    def _messages(self, batch: Batch) -> list[Committed]:
        """What this batch has to tell, in the order of seq."""
        found = list(batch.notices)
        for item in batch.items:
            if not isinstance(item, Command):
                found += self._told(self.epoch, item, batch.wall_us or 0, batch.closed_us)
        return sorted(found, key=lambda each: each.seq)

    def _failed(self, error: Exception) -> None:
        reason = disk.said(error)
        self._failures += 1
        if self.fault is None:
            self.fault_since_us = self._clock.wall_us()
            log.error("store_failed", fault=reason, waiting_mb=self.waiting_mb)
        self.fault = reason
        if self._homeless:
            return  # nothing of the file is in use that could be mended
        self._unsynced = self._unsynced or disk.is_unsynced(error)
        damaged = not isinstance(error, OSError) and disk.is_damage(error)
        # A connection that has failed again and again may be what is wrong, but not where a full disk could refuse a new one.
        self._stale = not damaged and not disk.is_full(error) and self._failures >= REOPENED_AFTER
        if self._unsynced or damaged or self._stale:
            self._broken = self._broken or reason

    def _tell_lost(self, cause: GapCause) -> None:
        gap = Gap(cause, self._lost_rows, self._lost_from, self._lost_to)
        self._lost_rows = self._lost_to = 0
        self.put((), gaps=[gap])

    async def _come_home(self) -> None:
        """The disk has refused since the start: try again. What waits gets the numbers that follow those of the file."""
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(self._thread, self._reopened)
        self._reader.close()
        self._homeless = False
        self._begin_writing(opened)
        assert opened.reader is not None
        self._reader = opened.reader
        numbers = self._follow(opened, self._ends() if self._blind else [])
        self._begin_reading(opened)
        if opened.gap is not None:
            self.put((), gaps=[opened.gap])
        self.on_home(opened.state, numbers)

    def _reopened(self) -> disk.Opened:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return disk.open_file(self._folder, self._clock.wall_us())

    def _ends(self) -> list[dict[str, Any]]:
        try:
            row = self._reader.execute("SELECT * FROM snapshot WHERE id = 1").fetchone()
            told = self._reader.execute(TOLD_SINCE, (self._counted().seq,)).fetchall()
        except disk.FAULTS as error:
            self._unreadable(error)
            return []
        since = [messages.loads(each[4]) for each in told if rows.sound(each)]
        return self.ends_of(row[2] if row is not None and rows.sound(row) else None, since)

    def _first_notices(self, plain: Sequence[dict[str, Any]], state: disk.State) -> Batch:
        """A batch that follows the file and comes before all that waits."""
        wall, now = self._clock.wall_us(), self._clock.monotonic_us()
        batch = Batch(seq_from=state.last_seq + 1, seq_to=state.last_seq + len(plain), closed_us=now)
        batch.t_us, batch.wall_us = state.last_t, state.last_wall
        for seq, each in enumerate(plain, batch.seq_from):
            body = messages.renumbered(messages.dumps(each), state.epoch, seq)
            batch.notices.append(
                Committed(seq, each["machine"], "warnings", wall, _bytes=body, _stamps=self._settled, _since_us=now)
            )
            batch.size += len(body) + NOTICE_OVERHEAD
        self._waiting_bytes += batch.size
        return batch

    def _follow(self, opened: disk.Opened, ends: Sequence[dict[str, Any]]) -> dict[str, tuple[str, int]]:
        """Number anew what waits, so that it follows what the file has: nobody has heard of it yet. See `on_home`.

        ends: see `ends_of`.
        """
        state = opened.state
        seqs, batches = state.last_seq + len(ends) - self.last_committed, state.last_batch - self._batch_at_start
        self.epoch, self.last_committed = state.epoch, state.last_seq
        self._next, self._last_batch = self._next + seqs, self._last_batch + batches
        self._t, self._wall = max(self._t or 0, state.last_t or 0) or None, self._wall or state.last_wall
        self._done = Intervals(state.delivered)
        self._use_known(opened.layouts)
        self.use_layouts([layout for _, layout in self._layouts.values()])
        ours = (disk.JUDGED_WITH, disk.COUNTED)
        texts = {row: text for row, text in opened.texts.items() if row not in ours}
        self._config, self._texts = self._config or opened.config, {**texts, **self._texts}
        self._stamps_on_disk = {row: opened.texts.get(row, "") for row in (disk.STAMPS, disk.HANDED)}
        with contextlib.suppress(*rows.UNREADABLE):
            self._settled.take(*self._stamps_on_disk.values())
            found = Stamps(self.stamps.boot)
            found.take(*self._stamps_on_disk.values())
            self.stamps.follow(found, state.last_wall or 0, state.last_seq, seqs)
        self._keep_stamps()
        numbers: dict[str, tuple[str, int]] = {}
        for batch in (*self._sealed, self._open):
            batch.number += batches if batch.number else 0
            batch.seq_from += seqs if batch.seq_from else 0
            batch.seq_to += seqs
            batch.items = [self._renumbered(item, seqs) if isinstance(item, Kept) else item for item in batch.items]
            for notice in batch.notices:
                notice.seq += seqs
                notice._bytes = messages.renumbered(notice._bytes, self.epoch, notice.seq)  # noqa: SLF001 - our own noun
                if notice.kind == "warnings":
                    numbers[messages.loads(notice._bytes)["id"]] = (self.epoch, notice.seq)  # noqa: SLF001
        if ends:
            self._sealed.insert(0, self._first_notices(ends, state))
        return numbers

    def _renumbered(self, kept: Kept, by: int) -> Kept:
        seqs = np.where(kept.seqs > 0, kept.seqs + by, 0)
        return kept._replace(number=self._number_of(kept.layout), seqs=seqs)

    async def _mend(self, reason: str) -> None:
        """The file is damaged: go on with a new one that has all of it that can be read. Measuring goes on meanwhile."""
        self._reader.close()
        state = disk.State(self.epoch, self.last_committed, self._last_batch, self._t, self._wall, self._done.ranges())
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(self._thread, self._rebuild, reason, state)
        for first, last in opened.lost:
            self._done.add(first, last)
        self._done = Intervals(self._done.ranges())  # all of it is to be written
        self._done_changed, self._done_soon, self._broken = True, True, None
        self._begin_writing(opened)
        self._begin_reading(opened)
        self._open.config, self._open.texts = self._config, dict(self._texts)
        if opened.gap is not None:
            self.put((), gaps=[opened.gap])

    def _rebuild(self, reason: str, state: disk.State) -> disk.Opened:
        self._writer.db.close()
        if self._stale and not self._unsynced:
            opened = disk.open_file(self._folder, self._clock.wall_us())
            if (opened.state.epoch, opened.gap) == (state.epoch, None):
                return opened
            opened.db.close()
            assert opened.reader is not None
            opened.reader.close()
        opened = disk.rebuilt(self._folder, self._clock.wall_us(), reason, state, unsynced=self._unsynced)
        return disk.with_reader(self._folder, opened)

    async def _drop_over_limit(self) -> None:
        """The oldest readings that wait for the broker yield when they are too many or too old; warnings last."""
        over = self._size > self.max_size
        if not over and self.commits % AGE_LOOK_EVERY:
            return
        if self._told_bytes > self.max_size:
            await self._drop_warnings(self._told_bytes - self.max_size + self.max_size // DROP_SHARE)
        excess = self._size - self.max_size + self.max_size // DROP_SHARE if over else 0
        oldest = self._clock.wall_us() - self.max_age_us, (self._t or 0) - self.max_age_us
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._thread, self._writer.over_limit, excess, oldest, self._done.copy(), dict(self._known)
        )
        if found is None:
            return
        last, seq_to, ts_from, ts_to = found
        lost = self._forget(1, seq_to)
        self._open.drop_to = last
        if lost:
            count, wall = sum(b - a + 1 for a, b in lost), self._clock.wall_us()
            begin, end = (each if _is_time(each) else wall for each in (ts_from, ts_to))
            self.put((), gaps=[Gap(GapCause.BUFFER_LIMIT, count, begin, end, lost[0][0], lost[-1][1])])
            log.error("readings_dropped", cause="buffer_limit", rows=count)

    async def _drop_warnings(self, excess: int) -> None:
        """No reading is left that could make room, so the oldest warnings go; the gap names their numbers and counts no row.

        excess: bytes.
        """
        loop = asyncio.get_running_loop()
        oldest = await loop.run_in_executor(self._thread, self._writer.oldest_warnings, excess)
        lost = [(seq, closed) for seq, closed in oldest if self._done.add(seq)]
        if not oldest:
            return
        self._open.drop_warnings_to = oldest[-1][0]
        if lost:
            self.pending_count -= len(lost)
            self._done_changed = self._done_soon = True
            stamps = [closed for _, closed in lost if _is_time(closed)] or [self._clock.wall_us()]
            since, until = min(stamps), max(stamps)
            self.put((), gaps=[Gap(GapCause.BUFFER_LIMIT, 0, since, until, lost[0][0], lost[-1][0])])
            log.error("warnings_dropped", cause="buffer_limit", warnings=len(lost))

    def _forget(self, first: int, last: int) -> list[tuple[int, int]]:
        """Done with every reading of first..last that was still due; returns which. Warnings between them stay due."""
        notices = self._reader.execute("SELECT seq FROM notices WHERE seq BETWEEN ? AND ?", (first, last))
        kept = Intervals([*self._done.ranges(), *((seq, seq) for (seq,) in notices)])
        lost = list(kept.missing(first, last))
        for start, end in lost:
            self.pending_count -= self._done.add(start, end)
            self._done_changed = self._done_soon = True
        return lost

    # --- reading --------------------------------------------------------------------------------------------------------

    def pending(self, after_seq: int, limit: int) -> Page | None:
        """Committed messages after this number that were not delivered, in order. Damaged ones become a gap record.

        limit: at least 1. None: it cannot be said now (the file is being mended, the disk does not answer): ask again.
        """
        if self._broken is not None or self._homeless:
            return None
        try:
            start = max(after_seq, self._done.done_to)
            notices, readings = self._due_notices(start, limit), self._due_readings(start, limit)
        except disk.FAULTS as error:
            self._unreadable(error)
            return None
        reached = min(notices.reached, readings.reached)
        found = [each for each in (*notices.messages, *readings.messages) if each.seq <= reached]
        lacks = self.pending_count - len(found)
        if after_seq <= 0 and reached >= self.last_committed and lacks > 0:
            self._break(f"{lacks} messages are due and not there")
            return None
        found.sort(key=lambda each: each.seq)
        return Page(found[:limit], found[limit - 1].seq) if len(found) > limit else Page(found, reached)

    def _due_notices(self, after: int, limit: int) -> Page:
        found: list[Committed] = []
        damaged: list[tuple[Any, ...]] = []
        told = self._reader.execute(
            "SELECT * FROM notices WHERE seq > ? AND seq <= ? ORDER BY seq", (after, self.last_committed)
        )
        for row in told:
            if row[0] in self._done:
                continue
            if not rows.sound(row):
                damaged.append(row)
                continue
            seq, machine, kind, closed, payload, _ = row
            since = self._since_us(seq, closed)
            found.append(Committed(seq, machine, kind, closed, _bytes=payload, _stamps=self._settled, _since_us=since))
            if len(found) >= limit:
                break
        for seq, _, _, closed, *_ in damaged:
            log.error("notice_damaged", seq=seq)
            self.delivered((seq,))
            when = _near(closed, self._clock.wall_us())
            self.put((), gaps=[Gap(GapCause.DAMAGE, 0, when, when, seq, seq)])  # no row: what is counted is rows
        return Page(found, found[-1].seq if len(found) >= limit else self.last_committed)

    def _due_readings(self, after: int, limit: int) -> Page:
        batches = self._reader.execute(
            "SELECT id, seq_from, seq_to FROM batches WHERE id >= ? AND messages > 0 AND seq_to <= ? ORDER BY id",
            (first_beyond(self._reader, after), self.last_committed),
        )
        found: list[Committed] = []
        looked = 0
        for number, first, last in whole_numbers(batches):
            if self._done.count(first, last) <= last - first:
                found += [each for each in self._of_batch(number) if each.seq > after and each.seq not in self._done]
                looked += 1
                if len(found) >= limit or looked >= BATCHES_A_LOOK:
                    return Page(found, last)
        return Page(found, self.last_committed)

    def _of_batch(self, number: int) -> list[Committed]:
        if self._cache is not None and self._cache[0] == number:
            return self._cache[1]
        epoch, closed, items = self._batch(number)
        told = [each for item in items if isinstance(item, Kept) for each in self._told(epoch, item, closed)]
        self._cache = (number, told)
        return told

    def _told(self, epoch: str, kept: Kept, closed: int, since_us: int | None = None) -> Iterator[Committed]:
        """The messages of a frame. since_us: monotonic µs when they were closed, None: by the wall clock's `closed`."""
        machine, seqs = kept.layout.machine, kept.seqs.tolist()
        if since_us is None:
            since_us = self._since_us(max(seqs, default=0), closed)
        for row, seq in enumerate(seqs):
            if seq:
                yield Committed(
                    seq, machine, "measurements", closed, epoch, kept, row, _stamps=self._settled, _since_us=since_us
                )

    def _batch(self, number: int) -> tuple[str, int, list[Kept | Command]]:
        """(epoch, closed, items) of one batch; a damaged one is told as a gap and left out."""
        row = self._reader.execute("SELECT * FROM batches WHERE id = ?", (number,)).fetchone()
        if row is None:
            return "", 0, []
        if rows.sound(row):
            with contextlib.suppress(*rows.UNREADABLE):
                return row[1], row[8], rows.unpacked(row[9], self._known)
        self._give_up(row)
        return "", 0, []

    def _give_up(self, row: tuple[Any, ...]) -> None:
        """Tell of a damaged batch. Nothing of it is believed: what it had is what lies between its neighbours."""
        number, *_, ts_from, ts_to, _, _, _ = row
        log.error("batch_damaged", batch=number)
        before = self._reader.execute(
            "SELECT * FROM batches WHERE id < ? ORDER BY id DESC LIMIT 1", (number,)
        ).fetchone()
        after = self._reader.execute("SELECT * FROM batches WHERE id > ? ORDER BY id LIMIT 1", (number,)).fetchone()
        if not all(each is None or rows.sound(each) for each in (before, after)):
            self._break(f"batch {number} and its neighbours are damaged")
            return
        first = before[3] + 1 if before else 1
        last = after[2] - 1 if after and after[4] else after[3] if after else self.last_committed
        lost = self._forget(first, last)
        if lost:
            count = sum(b - a + 1 for a, b in lost)
            sane = (after or before or (self._clock.wall_us(),) * 9)[8]
            begin, end = _near(ts_from, sane), _near(ts_to, sane)
            self.put((), gaps=[Gap(GapCause.DAMAGE, count, begin, end, lost[0][0], lost[-1][1])])

    def _unreadable(self, error: Exception) -> None:
        if disk.is_damage(error):
            self._break(str(error))
        else:
            log.warning("store_not_read", fault=str(error))

    def _break(self, reason: str) -> None:
        """Mend at the next commit, which is now."""
        self._broken = self._broken or reason
        self._wake.set()

    @property
    def oldest_pending_us(self) -> int | None:
        """UTC µs when the oldest undelivered message was closed. Cheap: nothing is decoded."""
        if self.pending_count <= 0 or self._broken is not None or self._homeless:
            return None
        reach = (self._done.done_to, self.last_committed)
        try:
            notices = self._reader.execute(
                "SELECT seq, seq, closed FROM notices WHERE seq > ? AND seq <= ? ORDER BY seq", reach
            )
            batches = self._reader.execute(
                "SELECT seq_from, seq_to, closed FROM batches WHERE id >= ? AND messages > 0 AND seq_to <= ? ORDER BY id",
                (first_beyond(self._reader, reach[0]), reach[1]),
            )
            firsts = (self._first_due(notices), self._first_due(batches))
        except disk.FAULTS as error:
            self._unreadable(error)
            return None
        return min((closed for closed in firsts if closed is not None), default=None)

    def _first_due(self, found: Iterable[tuple[int, int, int]]) -> int | None:
        due = (
            (last, closed)
            for first, last, closed in whole_numbers(found)
            if self._done.count(first, last) <= last - first and _is_time(closed)
        )
        return next((self._closed_us(last, closed) for last, closed in due), None)

    @property
    def _size(self) -> int:
        """Bytes of all that `max_size` bounds."""
        return self._bytes + self._told_bytes

    @property
    def waiting_mb(self) -> float:
        """MB of memory that wait for the disk, of at most WAITING_MAX."""
        return round(self._waiting_bytes / 1e6, 1)

    @property
    def lost_rows(self) -> int:
        """Rows that have yielded since the disk refuses: told as a gap when it is back."""
        return self._lost_rows

    def status(self) -> dict[str, Any]:
        """For the health topic: messages that wait, the oldest of them, and the state of the disk."""
        oldest = self.oldest_pending_us
        return {
            "messages": max(0, self.pending_count),
            "oldest": None if oldest is None else messages.to_utc(oldest),
            "epoch": self.epoch,
            "seq": self.last_committed,
            "mb": round(self._size / 1e6, 3),
            "state": "ok" if self.fault is None else "failing",
            **({"reason": self.fault} if self.fault else {}),
        }

    def recovery(self) -> Recovery:
        """What the last run left; to be used before anything is put."""
        wall, t = self._found
        try:
            row = self._reader.execute("SELECT * FROM snapshot WHERE id = 1").fetchone()
        except disk.FAULTS as error:
            self._unreadable(error)
            row = None
        if row is None or not rows.sound(row):
            row = (1, 0, None, None, 0)
        # A release before the second format has kept the configuration in the snapshot's own row.
        text = row[3] if row[3] != "" else self._judged_with_found
        return Recovery(row[2], text, self._since(row[1]), self._numbers(), wall, t, self._judged_under(row[1]))

    def _judged_under(self, batch: int) -> str:
        """The epoch of what lies behind this batch: one, since a store that begins another takes a snapshot first."""
        try:
            found = self._reader.execute(
                "SELECT epoch FROM batches WHERE id > ? ORDER BY id LIMIT 1", (batch,)
            ).fetchone()
        except disk.FAULTS as error:
            self._unreadable(error)
            found = None
        return str(found[0]) if found and found[0] else self.epoch

    def _numbers(self) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        try:
            for row in self._reader.execute(TOLD_SINCE, (self._counted().seq,)):
                if rows.sound(row):
                    event = messages.loads(row[4])
                    found[event["id"]] = (event["epoch"], event["seq"])
        except disk.FAULTS as error:
            self._unreadable(error)
        return found

    def _since(self, batch: int) -> Iterator[JudgedFrame | Command]:
        try:
            found = self._reader.execute("SELECT id FROM batches WHERE id > ? ORDER BY id", (batch,)).fetchall()
        except disk.FAULTS as error:
            self._unreadable(error)
            return
        for (number,) in found:
            try:
                _, _, items = self._batch(number)
            except disk.FAULTS as error:
                self._unreadable(error)
                continue
            for item in items:
                yield item if isinstance(item, Command) else item.judged

    def save_config(self, text: str, sha: str) -> None:
        """Keep the configuration that is in force as the last good one; with the next commit."""
        if self._config != (text, sha):
            self._config = self._open.config = (text, sha)
            self._wake.set()

    def save_text(self, row: int, text: str, *, soon: bool = True) -> None:
        """Keep a small text, in words of the caller's, in the transaction of what was put last. row: of disk's table `config`.

        soon: at once; else when the next commit is due.
        """
        if self._texts.get(row, "") != text:
            self._texts[row] = self._open.texts[row] = text
            if soon:
                self._wake.set()

    def load_text(self, row: int) -> str:
        """'' when none was kept."""
        return self._texts.get(row, "")

    def load_config(self) -> tuple[str, str] | None:
        """(text, sha) of the last good configuration."""
        return self._config

    def close(self) -> None:
        """Write what still waits, if the disk will have it, and let go of the file."""
        self._thread.shutdown()
        self._reader.close()
        if self._homeless:
            log.error("readings_not_kept", cause="the disk refused until the end", waiting_mb=self.waiting_mb)
            return
        if self._unsynced:
            log.error("readings_not_kept", cause="the disk could not sync the journal", waiting_mb=self.waiting_mb)
            self._writer.db.close()
            return
        self._seal()
        # A cancelled commit may have been written all the same.
        self._sealed = [batch for batch in self._sealed if not batch.written]
        try:
            if self._sealed or self._done_changed:
                state, done = self._state(self._sealed), self._changes(self._sealed)
                self._writer.write(Work(self._sealed, state, done, self._known, self._bytes, self._moved))
        except disk.FAULTS as error:
            log.error("store_failed", fault=str(error))
        self._writer.db.close()


def _near(ts: Any, sane: int) -> int:
    """A stamp of a damaged row, if it can be true."""
    return ts if isinstance(ts, int) and abs(ts - sane) < NEAR_US else sane


def _is_time(us: int) -> bool:
    """Whether a stamp (UTC µs) of a row that may be damaged can be written down."""
    return 0 <= us < disk.NEVER_US


@contextmanager
def open_store(folder: Path, clock: Clock, progress: disk.Progress = lambda: None, boot: str = "") -> Iterator[Store]:
    """The store in this folder. One that cannot be read is moved aside, what can be saved of it is kept, the rest is told.

    progress: called while that takes long. boot: see clock.boot_id; '': nobody knows. A disk that refuses now (full,
    read-only, failing) is asked again while `run` runs. Raises OSError only where a person has to mend something first:
    see disk.never.
    """
    store = Store(folder, clock, disk.open_or_glimpse(folder, clock.wall_us(), progress), boot)
    with closing(store):
        yield store
