"""Reading the history and what is still only in the journal, beside an agent that runs or in the folder of one that stopped.

Rule 1: nothing is written and nothing locked: each look is short, and what moves from the journal to the history between
two looks is neither missed nor met twice. Rule 2: what is damaged is left out and counted, never guessed.
"""

import heapq
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from edge_agent.contract import SECOND_US, Codes, Floats, Ints
from edge_agent.records import Command, Layout
from edge_agent.store import disk, history, rows, shelf, stretch
from edge_agent.store.reader import Reader, reading
from edge_agent.store.rows import Kept
from edge_agent.store.shelf import NoHistory, Piece, Position
from edge_agent.store.stretch import CELL_US, CELLS, Cells, Stretch

MINUTE_US = 60 * SECOND_US
NICE_US = [
    *(s * SECOND_US for s in (1, 2, 5, 10, 15, 30)),
    *(m * MINUTE_US for m in (1, 2, 5, 10, 15, 20, 30)),
    *(h * 3_600 * SECOND_US for h in (1, 2, 3, 4, 6, 8, 12)),
]
"""Lengths of a trend's buckets below a day; above it, whole days. Sums within chunks fit into those of five minutes and more,
sums of chunks into those of an hour and more."""
DAY_US = 86_400 * SECOND_US
BATCHES_A_LOOK = 50
EVENTS_A_LOOK = 1_000
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Span:
    """A signal of the past. from_us, to_us: UTC µs of its first and last row, 0 where it has none yet."""

    machine: str
    signal: str
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Readings of one signal in the order in which they were judged, without HOLD.

    ts: (n,) int64 UTC µs of their rows. values: (n,) float64, NaN where bad. quality: (n,) uint8, see contract.Quality.
    """

    ts: Ints
    values: Floats
    quality: Codes


@dataclass(frozen=True, slots=True, eq=False)
class Trend:
    """One bucket for each whole step of UTC from the first to the last asked for, empty ones included.

    ts: (n,) int64 UTC µs where each bucket begins. step_us: their length. count: (n,) int64 readings good or uncertain;
    bad: (n,) int64 rows that were bad. low, high, mean: (n,) float64 of those counted, NaN where there is none.
    """

    ts: Ints
    step_us: int
    count: Ints
    bad: Ints
    low: Floats
    high: Floats
    mean: Floats


@dataclass(frozen=True, slots=True)
class Told:
    """A warning event or a gap as it was published (contract §2), but for `late`. closed_us: UTC µs when it got its seq."""

    epoch: str
    seq: int
    machine: str | None
    kind: str
    closed_us: int
    payload: bytes


class Item(NamedTuple):
    """Something that was judged, in its place. place: counts frames and commands of this history from 1.

    what: a frame as it was judged, with its layout and the seq of each row; or a command (`configured` for those that
    tell of a configuration).
    """

    place: int
    epoch: str
    what: Kept | Command


class Past:
    """Everything that an agent's folder knows of its past. One thread at a time."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def left_out(self) -> int:
        """Rows that were damaged and left out."""
        return self._reader.left_out

    # --- what there is ------------------------------------------------------------------------------------------------

    def signals(self) -> list[Span]:
        """Every signal that has a past, by machine and name."""
        found: dict[tuple[str, str], list[int]] = {}
        with self._reader.look() as position:
            for layout, first, last in (*self._packed_reach(), *self._recent_reach(position)):
                for name in layout.signals:
                    reach = found.setdefault((layout.machine, name), [first, last])
                    reach[:] = [min(first, reach[0]), max(last, reach[1])]
        return [Span(*key, *reach) for key, reach in sorted(found.items())]

    def _packed_reach(self) -> Iterator[tuple[Layout, int, int]]:
        """From when to when the chunks reach; all signals of a layout are packed together."""
        if (kept := self._reader.kept) is None:
            return
        for number, layout in self._reader.layouts().items():
            reach = [
                row
                for order in ("ASC", "DESC")
                for row in kept.execute(
                    f"SELECT ts_from, ts_to FROM axes WHERE layout = ? AND rows > 0 AND {shelf.TIMED} ORDER BY place_to {order} LIMIT 1",  # noqa: S608
                    (number,),
                )
            ]
            if reach:
                yield layout, reach[0][0], reach[1][1]

    def _recent_reach(self, position: Position) -> Iterator[tuple[Layout, int, int]]:
        if (kept := self._reader.kept) is not None:
            layouts = self._reader.layouts()
            for number, first, last in kept.execute(
                f"SELECT layout, min(ts_from), max(ts_to) FROM blocks WHERE rows > 0 AND {shelf.TIMED} GROUP BY layout"  # noqa: S608 - ours
            ):
                if number in layouts:
                    yield layouts[number], first, last
        for _, judged in self._reader.frames(position):
            ts = judged.judged.frame.ts
            if len(ts):
                yield judged.layout, int(ts.min()), int(ts.max())

    # --- one signal ---------------------------------------------------------------------------------------------------

    def readings(self, machine: str, signal: str, from_us: int, to_us: int) -> Series:
        """What was read of a signal in rows of from_us <= ts < to_us. Empty when nobody knows of it."""
        with self._reader.look() as position:
            parts = [
                _within(*part, from_us, to_us)
                for found in (
                    self._unpacked([row[0] for row in self._chunks(self._signal(machine, signal), from_us, to_us)]),
                    self._recent(machine, signal, from_us, to_us, position),
                )
                for part in found
            ]
        return Series(
            np.concatenate([np.empty(0, dtype=np.int64), *(part.ts for part in parts)]),
            np.concatenate([np.empty(0), *(part.values for part in parts)]),
            np.concatenate([np.empty(0, dtype=np.uint8), *(part.quality for part in parts)]),
        )

    def trend(self, machine: str, signal: str, from_us: int, to_us: int, points: int = 500) -> Trend:
        """At most points + 1 buckets whose length is a round one: see NICE_US. What the journal has is in it too."""
        step = step_for(from_us, to_us, points)
        first, last = from_us // step, max(from_us, to_us - 1) // step
        total = _Total(first, last - first + 1, step)
        reach = (first * step, (last + 1) * step)
        with self._reader.look() as position:
            for part in self._summed(self._signal(machine, signal), *reach, total):
                total.add(stretch.cells_of(*part, step))
            for part in self._recent(machine, signal, *reach, position):
                total.add(stretch.cells_of(*part, step))
        return total.trend()

    def _summed(self, number: int, from_us: int, to_us: int, total: "_Total") -> Iterator[tuple[Ints, Floats, Codes]]:
        """Add what the sums of chunks tell, and give what must be counted reading by reading: (ts, values, quality)."""
        step, asked, within = total.step, [], []
        for chunk, sums, *head in self._chunks(number, from_us, to_us):
            ts_from, ts_to, *about = head
            if shelf.sums_checksum((number, *head)) != sums:
                asked.append(chunk)
            elif ts_from // step == ts_to // step:
                total.add_one(ts_from // step, *about)
            else:
                within.append(chunk)
        tables = {} if step % CELL_US else {chunk: self._cells(chunk) for chunk in within}
        total.add_cells(np.frombuffer(b"".join(tables.values()), dtype=CELLS), step // CELL_US)
        yield from self._unpacked(sorted([*asked, *(chunk for chunk in within if not tables.get(chunk))]))

    def _cells(self, number: int) -> bytes:
        """The sums within a chunk, see CELLS; empty when there are none that are sound."""
        assert self._reader.kept is not None
        row = self._reader.kept.execute("SELECT cells FROM chunks WHERE id = ?", (number,)).fetchone()
        blob = row[0] if row else b""
        if (
            not isinstance(blob, bytes)
            or len(blob) <= _CRC.size
            or _CRC.unpack_from(blob)[0] != zlib.crc32(blob[_CRC.size :])
        ):
            return b""
        return bytes(blob[_CRC.size :])

    def _signal(self, machine: str, signal: str) -> int:
        """Its number; 0 when the history does not know it."""
        if (kept := self._reader.kept) is None:
            return 0
        row = kept.execute("SELECT id FROM signals WHERE machine = ? AND name = ?", (machine, signal)).fetchone()
        return int(row[0]) if row else 0

    def _chunks(self, number: int, from_us: int, to_us: int) -> list[tuple[Any, ...]]:
        """What the index tells of the chunks of a signal with rows of from_us <= ts < to_us, in the order of their axes:
        (id, checksum, ts_from, ts_to, count, bad, low, high, total).
        """
        if (kept := self._reader.kept) is None:
            return []
        found = kept.execute(
            "SELECT id, sums, ts_from, ts_to, count, bad, low, high, total FROM chunks INDEXED BY chunks_of_signal "
            "WHERE signal = ? AND ts_from < ? AND ts_to >= ?",
            (number, to_us, from_us),
        ).fetchall()
        return sorted(found)

    def _unpacked(self, numbers: list[int]) -> Iterator[tuple[Ints, Floats, Codes]]:
        for number in numbers:
            axis = self._reader.axis(number >> shelf.COLUMN_BITS)
            column = None if axis is None else self._reader.column(number, axis)
            if axis is not None and column is not None:
                yield axis.ts, column.values, column.quality

    def _recent(
        self, machine: str, signal: str, from_us: int, to_us: int, position: Position
    ) -> Iterator[tuple[Ints, Floats, Codes]]:
        """What is not packed yet: blocks of the history, and the journal."""
        if (kept := self._reader.kept) is not None:
            for number, layout in self._reader.layouts().items():
                if layout.machine != machine or signal not in layout.signals:
                    continue
                column = layout.signals.index(signal)
                found = kept.execute(
                    "SELECT * FROM blocks WHERE layout = ? AND ts_from < ? AND ts_to >= ? ORDER BY place_to",
                    (number, to_us, from_us),
                )
                for row in found:
                    part = self._reader.block(row, layout)
                    if part is not None:
                        yield part.axis.ts, part.values[:, column], part.quality[:, column]
        for _, judged in self._reader.frames(position, machine):
            if signal in judged.layout.signals:
                column, frame = judged.layout.signals.index(signal), judged.judged.frame
                yield frame.ts, frame.values[:, column], frame.quality[:, column]

    # --- what was told ------------------------------------------------------------------------------------------------

    def events(self, from_us: int, to_us: int, kinds: tuple[str, ...] = ("warnings", "gaps")) -> Iterator[Told]:
        """Warning events and gaps that got their number at from_us <= closed < to_us, in order of it."""
        with self._reader.look() as position:
            recent = list(self._recent_events(position))
        met = {(told.epoch, told.seq) for told in recent}
        for told in chain(self._kept_events(from_us, to_us, met), recent):
            if told.kind in kinds and from_us <= told.closed_us < to_us:
                yield told

    def _recent_events(self, position: Position) -> Iterator[Told]:
        """Those that the history has not yet."""
        if (journal := self._reader.journal) is None:
            return
        stamps = self._reader.stamps()
        for row in journal.execute("SELECT * FROM notices ORDER BY seq").fetchall():
            epoch = history.epoch_of(row)
            if epoch is None:
                self._reader.left_out += 1
            elif not position.has_seq(epoch, row[0]):
                seq, machine, kind, closed, payload, _ = row
                closed = history.closed_of(stamps, seq, closed)
                yield Told(epoch, seq, machine, kind, closed, stamps.right_notice(payload, seq))

    def _kept_events(self, from_us: int, to_us: int, met: set[tuple[str, int]]) -> Iterator[Told]:
        last = (from_us, 0)
        while (kept := self._reader.kept) is not None:
            found = kept.execute(
                "SELECT * FROM events WHERE (closed, id) > (?, ?) AND closed < ? ORDER BY closed, id LIMIT ?",
                (*last, to_us, EVENTS_A_LOOK),
            ).fetchall()
            for row in found:
                last = (row[5], row[0])
                if not rows.sound(row):
                    self._reader.left_out += 1
                elif (row[1], row[2]) not in met:  # moved since
                    yield Told(*row[1:7])
            if len(found) < EVENTS_A_LOOK:
                return

    def commands(self) -> list[Item]:
        """What people did and which configurations came into force, in their places among the frames."""
        with self._reader.look() as position:
            found = [] if self._reader.kept is None else list(self._commands(0, position.place - 1))
            place, batch, newest = position.place - 1, 0, self._reader.newest_batch()
            while True:
                items, batch = self._of_journal(place, batch, newest, position)
                if not items:
                    return found
                found += [item for item in items if isinstance(item.what, Command)]
                place += len(items)

    # --- everything, as it was judged -------------------------------------------------------------------------------------

    def frames(self, after: int = 0) -> Iterator[Item]:
        """Every frame and command in the order in which they were judged, up to now, from the place after this one on.

        Memory: one chunk of each machine.
        """
        items: list[Item] = []
        with self._reader.look() as position:
            newest, place, batch = self._reader.newest_batch(), min(after, position.place - 1), 0
        while True:
            with self._reader.look() as position:
                reached = position.place - 1
                if reached <= place:
                    items, batch = self._of_journal(place, batch, newest, position)
            if reached > place:  # at the beginning, and where the history has overtaken
                yield from self._of_history(place, reached)
                place, batch = reached, 0
                continue
            if not items:
                return
            place += len(items)
            yield from (item for item in items if item.place > after)

    def _of_history(self, after: int, until: int) -> Iterator[Item]:
        if self._reader.kept is None:
            return
        layouts = self._reader.layouts()
        streams = [self._of_layout(number, layout, after, until) for number, layout in layouts.items()]
        yield from heapq.merge(self._commands(after, until), *streams, key=_place)

    def _of_layout(self, number: int, layout: Layout, after: int, until: int) -> Iterator[Item]:
        """The frames of one layout. Blocks may become chunks meanwhile: places do not change by it."""
        while True:
            with self._reader.look():
                found = self._next_piece(number, after)
                if found is None:
                    return
                met, (after, table, its) = after, found
                part = self._part(table, its, layout)
            if part is None:
                continue
            for placed in stretch.frames(part):
                if placed.place > until:
                    return
                if placed.place > met:
                    yield Item(placed.place, part.epoch, placed.kept)

    def _next_piece(self, layout: int, after: int) -> tuple[int, str, int] | None:
        """(last place, table, id) as the index has them, whatever the row has suffered.

        Where the index itself is damaged nobody knows what would follow: that is raised.
        """
        assert self._reader.kept is not None
        found = []
        for table in ("axes", "blocks"):
            row = self._reader.kept.execute(
                # Up to the last number that there is: one that is damaged may be a text, which comes after all of them.
                f"SELECT place_to, id FROM {table} INDEXED BY {table}_in_order "  # noqa: S608 - names of our own
                "WHERE layout = ? AND place_to > ? AND place_to <= ? ORDER BY place_to LIMIT 1",
                (layout, after, disk.NUMBER_MAX),
            ).fetchone()
            if row is not None:
                found.append((row[0], table, row[1]))
        return min(found, default=None)

    def _part(self, table: str, number: int, layout: Layout) -> Stretch | None:
        """A piece of the history; None where it cannot be read."""
        assert self._reader.kept is not None
        try:
            row = self._reader.kept.execute(f"SELECT {shelf.PIECE} FROM {table} WHERE id = ?", (number,)).fetchone()  # noqa: S608
            if row is not None:
                return self._reader.stretch(Piece(table == "axes", *row), layout)
        except disk.FAULTS as error:
            if not disk.is_damage(error):
                raise
        self._reader.left_out += 1
        return None

    def _commands(self, after: int, until: int) -> Iterator[Item]:
        assert self._reader.kept is not None
        numbers = self._reader.kept.execute(
            "SELECT id FROM commands WHERE id > ? AND id <= ? ORDER BY id", (after, until)
        ).fetchall()
        for (number,) in numbers:
            row = self._reader.row("commands", number)
            if row is None:
                continue
            try:
                if not rows.sound(row):
                    raise ValueError("damaged")
                command = Command(**orjson.loads(row[5]))
                if row[4]:
                    command = replace(command, arguments={**command.arguments, "config": self._text(row[4])})
            except rows.UNREADABLE:
                self._reader.left_out += 1
                continue
            yield Item(number, row[1], command)

    def _text(self, number: int) -> str:
        """A configuration's text. Raises ValueError."""
        row = self._reader.row("texts", number)
        if row is None or not rows.sound(row):
            raise ValueError("damaged")
        try:
            return zlib.decompress(row[2]).decode()
        except zlib.error as error:
            raise ValueError(str(error)) from error

    # --- the journal --------------------------------------------------------------------------------------------------

    def _of_journal(self, place: int, after: int, until: int, position: Position) -> tuple[list[Item], int]:
        """Some batches that the history has not, as items from this place on, and the last batch."""
        items: list[Item] = []
        for looked, (number, epoch) in enumerate(self._reader.batches(position, after, until), start=1):
            items += (Item(place + len(items) + 1, epoch, what) for what in self._reader.items(number) or ())
            after = number
            if items and looked >= BATCHES_A_LOOK:
                break
        return items, after


class _Total:
    """The buckets of a trend while they are filled."""

    def __init__(self, first: int, count: int, step: int) -> None:
        self._first, self.step = first, step
        self._count, self._bad = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._low, self._high, self._sum = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count)

    def add_one(
        self, cell: int, count: int, bad: int, low: float | None, high: float | None, total: float | None
    ) -> None:
        place = cell - self._first
        if 0 <= place < len(self._count):
            self._count[place] += count
            self._bad[place] += bad
            if count and low is not None and high is not None and total is not None:
                self._low[place] = min(self._low[place], low)
                self._high[place] = max(self._high[place], high)
                self._sum[place] += total

    def add_cells(self, cells: Cells, share: int) -> None:
        """share: how many of these cells make a bucket."""
        self._put(cells, cells["cell"] // share - self._first)

    def add(self, cells: Cells) -> None:
        self._put(cells, cells["cell"] - self._first)

    def _put(self, cells: Cells, places: Ints) -> None:
        inside = (places >= 0) & (places < len(self._count))
        cells, places = cells[inside], places[inside]
        np.add.at(self._count, places, cells["count"])
        np.add.at(self._bad, places, cells["bad"])
        some = cells["count"] > 0
        cells, places = cells[some], places[some]
        np.minimum.at(self._low, places, cells["low"])
        np.maximum.at(self._high, places, cells["high"])
        np.add.at(self._sum, places, cells["total"])

    def trend(self) -> Trend:
        none = self._count == 0
        with np.errstate(all="ignore"):
            mean = np.where(none, np.nan, self._sum / self._count)
        ts = (self._first + np.arange(len(none), dtype=np.int64)) * self.step
        low, high = np.where(none, np.nan, self._low), np.where(none, np.nan, self._high)
        return Trend(ts, self.step, self._count, self._bad, low, high, mean)


def step_for(from_us: int, to_us: int, points: int) -> int:
    """The shortest round step of which at most so many (and one) cover this time."""
    least = max(1, -(-(to_us - from_us) // max(1, points)))
    for step in NICE_US:
        if step >= least:
            return step
    return -(-least // DAY_US) * DAY_US


def _within(ts: Ints, values: Floats, quality: Codes, from_us: int, to_us: int) -> Series:
    inside = (ts >= from_us) & (ts < to_us) & stretch.spoken(quality)
    return Series(ts[inside], values[inside], quality[inside])


def _place(item: Item) -> int:
    return item.place


UNREADABLE = (NoHistory, *disk.FAULTS)
"""What reading may raise."""


def words_of(error: Exception, folder: Path) -> str:
    """Why the past cannot be read, for a person."""
    if isinstance(error, NoHistory):
        return str(error)
    return f"{folder}: the store cannot be read: {error}"


@contextmanager
def open_past(folder: Path) -> Iterator[Past]:
    """The past that lies in an agent's data folder. Raises NoHistory when there is none, in words for a person."""
    with reading(folder) as reader:
        if reader.journal is None and reader.kept is None:
            raise NoHistory(f"{folder}: nothing has been kept there yet")
        yield Past(reader)
