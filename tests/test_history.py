"""The history: moved without loss or duplicate whatever ends the agent, equal to the bit, bounded, and read as it was."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edge_agent.contract import CODE_MASK, Frame, Quality
from edge_agent.records import Command, Gap, GapCause, JudgedFrame, Layout
from edge_agent.store import disk, history, past, shelf, stretch
from edge_agent.store.configured import configure, text_of
from edge_agent.store.history import History, open_history
from edge_agent.store.journal import Store, open_store
from edge_agent.store.moment import standing
from edge_agent.store.past import open_past
from edge_agent.store.rows import Kept
from edge_agent.store.shelf import NoHistory
from edge_agent.store.stamps import marked
from edge_agent.store.stretch import Placed
from tests.conftest import ROOT, StandingClock
from tests.test_store import commit, crashed, due_of, event, misspelt, remade

SECOND = 1_000_000
BEAT_US = 10 * SECOND
PRESS = Layout("press", ("oil", "flow", "pressure"), ("running", "stopped"))
PUMP = Layout("pump", ("level",), ())
SEED = int(os.environ.get("SEED") or 5)


def judged(layout: Layout, clock: StandingClock, number: int, rng: np.random.Generator, rows: int = 1) -> JudgedFrame:
    """Rows that say by their values which they are; sometimes bad, held, stamped, late."""
    width = len(layout.signals)
    t = clock.monotonic_us() + np.arange(rows, dtype=np.int64)
    ts = clock.wall_us() + np.arange(rows, dtype=np.int64) * 1000
    values = np.round(rng.normal(50, 5, (rows, width)) * 10) * 0.1
    values[0, 0] = number
    quality = np.zeros((rows, width), np.uint8)
    quality[rng.random((rows, width)) < 0.1] = Quality.HOLD
    quality[rng.random((rows, width)) < 0.05] = Quality.TIMEOUT
    quality[0, 0] = Quality.GOOD
    values[quality != Quality.GOOD] = np.nan
    at = np.tile(ts[:, None], (1, width)) - 2 * SECOND if number % 17 == 0 else None
    frame = Frame(layout.machine, t, ts, values, quality, at, tick=number % 11 == 0, late=number % 23 == 0)
    return JudgedFrame(frame, np.zeros(rows, np.int16), np.ones(rows, np.bool_))


def bits(item: Kept | Command | JudgedFrame) -> tuple[Any, ...]:
    """All that an item holds, comparable to the bit. What was put under a clock of which nothing is known goes with its mark."""
    if isinstance(item, Command):
        return ("command", item.id, item.ts, item.t, text_of(item))
    one = item.judged if isinstance(item, Kept) else item
    frame = one.frame if not one.frame.unset else replace(marked(one.frame), unset=0)
    arrays: list[npt.NDArray[Any] | None] = [
        frame.t,
        frame.ts,
        frame.values,
        frame.quality,
        frame.at,
        one.state,
        one.publish,
    ]
    its = tuple(None if each is None else (each.shape, each.dtype.str, each.tobytes()) for each in arrays)
    return (frame.machine, *its, frame.tick, frame.late, frame.words, frame.unset)


def read(folder: Path) -> list[tuple[Any, ...]]:
    with open_past(folder) as found:
        return [bits(item.what) for item in found.frames()]


class Room:
    """A journal with a history beside it; what was put is remembered."""

    def __init__(self, folder: Path, clock: StandingClock) -> None:
        self.clock, self.folder = clock, folder
        self.rng = np.random.default_rng(SEED)
        self.put: list[tuple[Any, ...]] = []
        self.number = 0
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.store: Store = self.stack.enter_context(open_store(self.folder, self.clock))
        self.history: History = self.stack.enter_context(open_history(self.folder, self.clock))
        self.store.use_layouts([PRESS, PUMP])
        self.store.keep_for_history()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def beats(self, count: int, rows: int = 1) -> None:
        """So many beats of both machines, ten seconds apart, a batch for every ten of them."""
        for beat in range(count):
            self.clock.move(BEAT_US)
            self.number += 1
            frames = [judged(layout, self.clock, self.number, self.rng, rows) for layout in (PRESS, PUMP)]
            self.put += [bits(each) for each in frames]
            self.store.put(frames)
            if self.number % 50 == 0:
                self.command()
            if beat % 10 == 9:
                self.store._seal()
        commit(self.store)

    def command(self) -> None:
        told = configure(f"configuration {self.number // 100}", "sha", self.clock.wall_us(), 1, start=False)
        self.put.append(bits(told))
        self.store.put((), [event(self.number)], commands=[told], gaps=[Gap(GapCause.OVERLOAD, 1, 1, 2)])

    def move(self) -> bool:
        return asyncio.run(self.history.turn(self.store))

    def turns(self, count: int) -> None:
        """So many times ten minutes, each moved."""
        for _ in range(count):
            self.beats(60)
            assert self.move(), self.history.fault


# --- bytes ----------------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-(2**63), 2**63 - 1)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Layout, list[Placed]]:
    """Frames of any content: the bits of the values, times that jump, qualities, stamps, words, no row at all."""
    width = draw(st.integers(1, 3))
    layout = Layout("m", tuple(f"s{i}" for i in range(width)), ())
    found = []

    def ints(count: int) -> npt.NDArray[np.int64]:
        return np.array(draw(st.lists(NUMBERS, min_size=count, max_size=count)), dtype=np.int64)

    for number in range(draw(st.integers(1, 5))):
        rows = draw(st.integers(0, 4))
        cells = rows * width
        words = tuple(tuple(draw(st.text(max_size=3)) for _ in range(width)) for _ in range(rows))
        frame = Frame(
            "m",
            ints(rows),
            ints(rows),
            ints(cells).view(np.float64).reshape(rows, width),
            np.frombuffer(draw(st.binary(min_size=cells, max_size=cells)), np.uint8).reshape(rows, width),
            ints(cells).reshape(rows, width) if draw(st.booleans()) else None,
            draw(st.booleans()),
            words if draw(st.booleans()) else None,
            draw(st.booleans()),
        )
        seqs = ints(rows)
        kept = Kept(0, layout, JudgedFrame(frame, ints(rows).astype(np.int16), seqs != 0), seqs)
        found.append(Placed(number * 3 + 1, kept))
    return layout, found


def sames(one: Sequence[Placed], other: Sequence[Placed]) -> bool:
    return [(p.place, bits(p.kept), p.kept.seqs.tolist()) for p in one] == [
        (p.place, bits(p.kept), p.kept.seqs.tolist()) for p in other
    ]


@given(frames())
@settings(max_examples=60)
def test_a_block_gives_its_frames_back_to_the_bit(case: tuple[Layout, list[Placed]]) -> None:
    layout, given_ = case
    whole = stretch.gathered(layout, "e", given_)
    again = stretch.unpack_block(stretch.pack_block(whole), layout, "e")
    assert sames(list(stretch.frames(again)), given_)


@given(frames(), st.data())
@settings(max_examples=60)
def test_chunks_give_the_frames_back_to_the_bit_however_they_are_cut(
    case: tuple[Layout, list[Placed]], data: st.DataObject
) -> None:
    layout, given_ = case
    whole = stretch.gathered(layout, "e", given_)
    edge = data.draw(st.integers(0, len(given_)))
    found: list[Placed] = []
    for part in (stretch.cut(whole, 0, edge), stretch.cut(whole, edge, len(given_))):
        axis = stretch.unpack_axis(stretch.pack_axis(part.axis))
        columns = [stretch.unpack_column(stretch.pack_column(part, i), axis) for i in range(len(layout.signals))]
        found += stretch.frames(stretch.unpack_chunks(layout, "e", axis, columns))
    assert sames(found, given_)
    parts = [stretch.cut(whole, 0, edge), stretch.cut(whole, edge, len(given_))]
    assert sames(list(stretch.frames(stretch.joined(parts))), given_)


# --- moving ---------------------------------------------------------------------------------------------------------------


def test_everything_is_read_as_it_was_put_first_from_the_journal_then_from_blocks_then_from_chunks(
    tmp_path: Path, clock: StandingClock
) -> None:
    with Room(tmp_path, clock) as room:
        room.beats(70)
        assert read(tmp_path) == room.put
        assert room.move()
        assert read(tmp_path) == room.put
        room.turns(14)
        room.beats(30, rows=3)
        with open_past(tmp_path) as found:
            items = list(found.frames())
            assert [item.place for item in items] == list(range(1, len(room.put) + 1))
            assert [bits(item.what) for item in found.frames(after=1_000)] == room.put[1_000:]
            assert [item.what for item in found.commands()] == [i.what for i in items if isinstance(i.what, Command)]
        assert [bits(item.what) for item in items] == room.put
        axes = sqlite3.connect(tmp_path / shelf.FILE).execute("SELECT count(*), min(rows) FROM axes").fetchone()
        assert axes[0] >= 4, "nothing was packed"


def test_what_was_delivered_waits_for_the_history_and_goes_once_it_is_there(
    tmp_path: Path, clock: StandingClock
) -> None:
    def left() -> int:
        return int(sqlite3.connect(tmp_path / "journal.db").execute("SELECT count(*) FROM batches").fetchone()[0])

    with Room(tmp_path, clock) as room:
        room.beats(60)
        room.store.delivered(range(1, room.store.last_committed + 1))
        room.store.put_snapshot(b"", "")
        commit(room.store)
        assert left() == 6
        assert room.move()
        room.store.put_snapshot(b"", "")
        commit(room.store)
        assert left() == 0
        assert read(tmp_path) == room.put


def test_events_and_gaps_are_moved_once_and_told_in_order(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(6)
        room.beats(110)
        with open_past(tmp_path) as found:
            told = list(found.events(0, 2**62))
        assert [each.kind for each in told] == ["warnings", "gaps"] * (room.number // 50)
        assert [each.seq for each in told] == sorted({each.seq for each in told})


def steps_of(room: Room, work: Any) -> list[Path]:
    """The folder as a machine would find it that lost its power before any statement of either file."""
    copies: list[Path] = []

    def copy(_: str) -> None:
        copies.append(crashed(room.folder, room.folder.parent / f"crash-{len(copies)}"))

    asyncio.run(room.history._in_thread(room.history._opened))
    assert room.history._db is not None
    for db in (room.store._writer.db, room.history._db):
        db.set_trace_callback(copy)
    try:
        work()
    finally:
        for db in (room.store._writer.db, room.history._db):
            db.set_trace_callback(None)
    copies.append(crashed(room.folder, room.folder.parent / "crash-last"))
    return copies


def test_a_crash_between_any_two_steps_neither_loses_nor_doubles(tmp_path: Path, clock: StandingClock) -> None:
    folder = tmp_path / "data"
    with Room(folder, clock) as room:
        room.turns(2)
        room.beats(70)
        room.store.delivered(range(1, room.store.last_committed + 1))

        def work() -> None:
            assert room.move()
            room.store.put_snapshot(b"", "")
            commit(room.store)

        copies = steps_of(room, work)
        assert len(copies) > 20
        for copy in copies:
            assert read(copy) == room.put, copy
            with open_store(copy, clock) as store, open_history(copy, clock) as again:
                assert asyncio.run(again.turn(store)), again.fault
                assert read(copy) == room.put, copy
                assert again.status().get("missing") is None
            with open_past(copy) as found:
                seqs = [each.seq for each in found.events(0, 2**62)]
                assert len(seqs) == len(set(seqs)) == 2 * (room.number // 50)
            shutil.rmtree(copy)


def test_a_crash_while_blocks_become_chunks_changes_nothing(tmp_path: Path, clock: StandingClock) -> None:
    folder = tmp_path / "data"
    with Room(folder, clock) as room:
        while not (room.history._db is not None and room.history._ripe()):
            room.beats(60)
            asyncio.run(room.history._in_thread(room.history._opened))
            while asyncio.run(room.history._moved(room.store)):
                pass
        copies = steps_of(room, room.move)
        assert len(copies) > 10
        for copy in copies:
            assert read(copy) == room.put, copy
            shutil.rmtree(copy)


def test_a_history_that_forgot_its_transactions_is_found_out(tmp_path: Path, clock: StandingClock) -> None:
    """The negative control: how far it has come, told apart from what came, doubles after a crash."""
    with Room(tmp_path / "data", clock) as room:
        room.turns(1)
        room.beats(60)
        before = room.history._position
        assert room.move()
        assert room.history._db is not None
        shelf.put_position(room.history._db, shelf.Position(room.history._position.place, before.moved))
        assert room.history._position is not before
        room.history._damaged, room.history._db = None, None
        assert room.move()
        assert read(room.folder) != room.put


def test_kill_9_at_any_time_neither_loses_nor_doubles(tmp_path: Path) -> None:
    """A process that journals and moves as fast as it can, killed again and again; each time all is there in order."""
    script = tmp_path / "mover.py"
    script.write_text(MOVER)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    last = told = 0
    for _ in range(int(os.environ.get("HISTORY_KILLS", "4"))):
        with subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "data")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stdout is not None
            for _ in range(rng.randrange(2, 40)):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        with open_past(tmp_path / "data") as found:
            numbers = [int(i.what.judged.frame.values[0, 0]) for i in found.frames() if isinstance(i.what, Kept)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= told, "what was committed is gone"
        last = max(last, len(numbers))
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / shelf.FILE)) as db:
        assert db.execute("SELECT count(*) FROM axes").fetchone()[0] > 0, "nothing was packed: the test shows little"


MOVER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from edge_agent.contract import Frame
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store import history
from edge_agent.store.journal import open_store
from edge_agent.store.history import open_history
from edge_agent.store.past import open_past
from tests.conftest import StandingClock
history.ROWS_MAX = 100

async def main(folder):
    number = 0
    if (folder / "journal.db").exists():
        with open_past(folder) as found:
            number = sum(1 for _ in found.frames())
    clock = StandingClock(1_795_000_000_000_000 + number * 1_000_000)
    with open_store(folder, clock) as store, open_history(folder, clock) as kept:
        store.use_layouts([Layout("m", ("a", "b"), ())])
        store.keep_for_history()
        running = asyncio.create_task(store.run())
        while True:
            for _ in range(10):
                clock.move(1_000_000)
                number += 1
                one = np.array([clock.monotonic_us()]), np.array([clock.wall_us()])
                values = np.array([[number, 0.5]], dtype=np.float64)
                frame = Frame("m", *one, values, np.zeros((1, 2), np.uint8))
                store.put([JudgedFrame(frame, np.zeros(1, np.int16), np.ones(1, np.bool_))])
            store.put_snapshot(b"", "")
            store._wake.set()
            while store._sealed:
                await asyncio.sleep(0)
            store.delivered(range(1, store.last_committed + 1))
            print(number, flush=True)
            if not await kept.turn(store):
                raise SystemExit(kept.fault)

asyncio.run(main(Path(sys.argv[1])))
"""


# --- a disk that fails, bytes that change -----------------------------------------------------------------------------------


def test_a_disk_that_refuses_costs_nothing_and_the_history_comes_back(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with Room(tmp_path, clock) as room:
        room.turns(2)
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "put_position", full)
            room.beats(60)
            assert not room.move()
            assert room.history.status()["state"] == "failing"
            room.beats(60)
            assert not room.move()
            assert read(tmp_path) == room.put
        assert room.move()
        assert room.history.status()["state"] == "ok"
        assert read(tmp_path) == room.put
        assert (tmp_path / shelf.FILE).exists()
        assert not list(tmp_path.glob("*.damaged-*"))


def test_what_the_journal_had_to_drop_before_it_was_moved_is_counted(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(1)
        room.beats(120)
        first = room.history._position.moved[room.store.epoch][0]
        room.store._open.drop_to = first + 5
        commit(room.store)
        assert room.move()
        assert room.history.status()["missing"] == 5


def test_what_was_moved_and_let_go_before_is_not_missing_to_the_next_epoch(
    tmp_path: Path, clock: StandingClock
) -> None:
    with Room(tmp_path, clock) as room:
        room.beats(60)
        assert room.move()
        due = due_of(room.store, 0, 10**5)
        room.store.delivered(each.seq for each in (*due[:1], *due[60:]))
        room.store.put_snapshot(b"", "")
        commit(room.store)
        assert len(batches(room)) == 3, "of six"
    (tmp_path / disk.MARKER).unlink()
    with Room(tmp_path, clock) as room:
        room.beats(10)
        assert room.move()
        assert batches(room) == [1, 2, 3, 7]
        assert "missing" not in room.history.status()
        room.beats(30)
        room.store._open.drop_to = 8
        commit(room.store)
        assert room.move()
        assert room.history.status()["missing"] == 1, "what is really gone is still counted"


def in_journal(room: Room, asked: str, *values: object) -> None:
    """What a disk may do to the journal's file."""
    with contextlib.closing(sqlite3.connect(room.folder / disk.FILE)) as db, db:
        db.execute(asked, values)


def test_a_damaged_batch_of_the_journal_is_counted_once_and_the_others_are_moved(
    tmp_path: Path, clock: StandingClock
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(1)
        room.beats(60)
        last = batches(room)[-1]
        for number in (last - 3, last):
            in_journal(room, "UPDATE batches SET frames = zeroblob(100) WHERE id = ?", number)
        assert room.move()
        assert room.history.status()["missing"] == 2
    with Room(tmp_path, clock) as room:
        room.beats(10)
        assert room.move()
        assert room.history.status()["missing"] == 2, "told once"
        with open_past(tmp_path) as found:
            assert len([item for item in found.frames() if isinstance(item.what, Kept)]) == 20 * (12 + 1 - 2)


NO_TEXT = "CAST(x'ff6b33' AS TEXT)"


@pytest.mark.parametrize("harm", [f"epoch = {NO_TEXT}", "seq_to = NULL", "frames = 7", "id = id"])
def test_a_row_of_the_journal_that_cannot_be_read_holds_up_no_other(
    tmp_path: Path, clock: StandingClock, harm: str
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(1)
        room.beats(100)
        in_journal(room, f"UPDATE batches SET {harm} WHERE id = ?", batches(room)[-3])
        in_journal(room, f"UPDATE notices SET kind = {NO_TEXT} WHERE seq = (SELECT max(seq) FROM notices)")
        assert room.move()
        assert room.history.status()["state"] == "ok"
        assert room.history._file.execute("SELECT count(*) FROM events").fetchone() == (5,), "of six"
        assert room.history.status().get("missing", 0) == (harm != "id = id")
        assert room.history._position.moved[room.store.epoch][0] == batches(room)[-1]


def test_a_journal_that_cannot_be_read_is_told_once_and_mends_itself(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(1)
        room.beats(60)
        in_journal(room, "ALTER TABLE batches RENAME TO lost")
        with capture_logs() as logs:
            assert not room.move()
            assert not room.move()
        assert [each["event"] for each in logs].count("history_waits") == 1
        assert room.history.status()["state"] == "failing"
        assert "the journal cannot be read" in room.history.status()["reason"]
        room.beats(10)
        assert room.move()
        assert room.history.status()["state"] == "ok"
        assert read(tmp_path)[-1] == room.put[-1]


def batches(room: Room) -> list[int]:
    return [number for (number,) in room.store._reader.execute("SELECT id FROM batches ORDER BY id")]


def test_a_bug_in_the_history_is_told_and_ends_nothing(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ValueError("a bug")

    with Room(tmp_path, clock) as room:
        room.turns(1)
        with monkeypatch.context() as patch:
            patch.setattr(stretch, "gathered", bug)
            room.beats(60)
            assert not room.move()
            assert room.history.status()["state"] == "failing"
            assert room.history.status()["reason"] == "ValueError: a bug"
        assert room.move()
        assert room.history.status()["state"] == "ok"
        assert read(tmp_path) == room.put
        assert not list(tmp_path.glob("*.damaged-*"))


@pytest.mark.parametrize(
    ("file", "table", "column"),
    [
        (disk.FILE, "batches", "epoch"),
        (disk.FILE, "notices", "kind"),
        (shelf.FILE, "blocks", "epoch"),
        (shelf.FILE, "events", "kind"),
        (shelf.FILE, "commands", "epoch"),
    ],
)
def test_a_text_that_cannot_be_decoded_costs_its_own_row_only(
    tmp_path: Path, clock: StandingClock, file: str, table: str, column: str
) -> None:
    """One flipped bit is enough, and sqlite raises at the row."""
    asked = (("press", "oil", 0, 2**62), ("pump", "level", 0, 2**62))
    with Room(tmp_path, clock) as room:
        room.turns(2)
        room.beats(60)
        with open_past(tmp_path) as found:
            known = [len(found.readings(*each).ts) for each in asked]
            events, items = len(list(found.events(0, 2**62))), len(list(found.frames()))
        with contextlib.closing(sqlite3.connect(tmp_path / file)) as db:
            db.execute(
                f"UPDATE {table} SET {column} = CAST(x'eb' || substr({column}, 2) AS TEXT) "
                f"WHERE rowid = (SELECT max(rowid) FROM {table})"
            )
            db.commit()
        with open_past(tmp_path) as found:
            now = [len(found.readings(*each).ts) for each in asked]
            assert all(0.5 * before < after <= before for before, after in zip(known, now, strict=True))
            assert int(found.trend(*asked[0]).count.sum()) > 0
            assert events - 1 <= len(list(found.events(0, 2**62))) <= events
            assert len(list(found.frames())) > 0.5 * items
            assert found.left_out
        with standing(tmp_path) as moment:
            assert sum(len(rows.ts) for rows in moment.rows("press", 0, 2**62)) > 0.5 * 180


def test_a_reader_that_cannot_read_how_far_it_has_come_doubles_nothing(tmp_path: Path, clock: StandingClock) -> None:
    seen: list[tuple[int, int]] = []

    def look() -> tuple[list[int], list[int], list[tuple[Any, ...]]]:
        with open_past(tmp_path) as found, standing(tmp_path) as moment:
            told = [each.seq for each in found.events(0, 2**62)]
            rows = [int(ts) for part in moment.rows("press", 0, 2**62) for ts in part.ts]
            items = [bits(item.what) for item in found.frames()]
            seen.append((found.left_out, moment.left_out))
            return rows, told, items

    with Room(tmp_path, clock) as room:
        room.turns(4)
        room.beats(20)
        before = look()
        with contextlib.closing(sqlite3.connect(tmp_path / shelf.FILE)) as db:
            db.execute("UPDATE meta SET crc = crc + 1")
            db.commit()
        assert look() == before
    assert seen == [(0, 0), (1, 1)], "and it is told"


@pytest.mark.parametrize("harm", ["blocks SET batch", "blocks SET place_to", "axes SET place_to", "events SET seq"])
def test_a_row_that_lost_its_number_tells_nobody_how_far_the_history_has_come(
    tmp_path: Path, clock: StandingClock, harm: str
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(8)
        room.beats(20)
        last = f"(SELECT max(id) FROM {harm.split(maxsplit=1)[0]})"
        in_history(tmp_path, "UPDATE meta SET crc = 1", f"UPDATE {harm} = 'x' WHERE id = {last}")
        with open_past(tmp_path) as found:
            assert bits(list(found.frames())[-1].what) == room.put[-1]
            assert len(list(found.events(0, 2**62))) >= 18
            assert found.left_out


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("blocks", "data = zeroblob(50)"),
        ("blocks", "epoch = CAST(x'ff6b33' AS TEXT)"),
        ("axes", "epoch = CAST(x'ff6b33' AS TEXT)"),
        ("axes", "place_from = place_from + 1000000"),
    ],
)
def test_a_damaged_row_costs_a_replay_its_own_rows_only(
    tmp_path: Path, clock: StandingClock, table: str, change: str
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(14)
    with contextlib.closing(sqlite3.connect(tmp_path / shelf.FILE)) as db:
        number, lost = db.execute(f"SELECT id, rows FROM {table} ORDER BY id LIMIT 1").fetchone()
        db.execute(f"UPDATE {table} SET {change} WHERE id = ?", (number,))
        db.commit()
    with open_past(tmp_path) as found:
        items = [bits(item.what) for item in found.frames()]
        assert found.left_out == 1
    assert len(items) == len(room.put) - lost
    assert set(items) < set(room.put)


def test_a_replay_whose_order_is_damaged_ends_in_words_and_not_with_a_small_count(
    tmp_path: Path, clock: StandingClock
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(14)
    with contextlib.closing(sqlite3.connect(tmp_path / shelf.FILE)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'axes_in_order'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / shelf.FILE).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 64)
    with open_past(tmp_path) as found, pytest.raises(past.UNREADABLE) as raised:
        list(found.frames())
    assert "the store cannot be read" in past.words_of(raised.value, tmp_path)


def flipped(path: Path, rng: random.Random) -> None:
    blob = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 8, 64))):
        blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        del blob[rng.randrange(len(blob)) :]
    path.write_bytes(bytes(blob))


def test_damage_costs_only_what_is_damaged_and_never_the_next_move(tmp_path: Path, clock: StandingClock) -> None:
    """HISTORY_DAMAGES=1000 for more."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    folder = tmp_path / "data"
    with Room(folder, clock) as room:
        room.turns(10)
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    known = set(room.put)
    shares = []
    for _ in range(int(os.environ.get("HISTORY_DAMAGES", "12"))):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        flipped(folder / shelf.FILE, rng)
        _read_what_can_be(folder)
        with open_store(folder, clock) as store, open_history(folder, clock) as again:
            store.use_layouts([PRESS, PUMP])
            assert asyncio.run(again.turn(store)) or asyncio.run(again.turn(store)), again.fault
            clock.move(SECOND)
            new = judged(PRESS, clock, 1, room.rng)
            store.put([new])
            commit(store)
            assert asyncio.run(again.turn(store)), again.fault
            now = _read_what_can_be(folder)
            assert now[-1] == bits(new)
            shares.append(len(known.intersection(now)) / len(known))
    print(f"shares that were read: {sorted(round(share, 2) for share in shares)}")
    assert sum(shares) / len(shares) > 0.5


def _read_what_can_be(folder: Path) -> list[tuple[Any, ...]]:
    """Nothing that is read is another value than the one that was put; a lost column says HOLD, which is no value."""
    found: list[tuple[Any, ...]] = []
    try:
        with open_past(folder) as its:
            for item in its.frames():
                found.append(bits(item.what))
                if isinstance(item.what, Kept):
                    frame = item.what.judged.frame
                    known = stretch.fresh(frame.quality)
                    assert not np.isnan(frame.values[known]).any()
    except past.UNREADABLE:
        pass
    return found


def in_history(folder: Path, *asked: str) -> None:
    """What a disk may do to the history's file."""
    with contextlib.closing(sqlite3.connect(folder / shelf.FILE)) as db, db:
        for each in asked:
            db.execute(each)


def test_a_changed_word_of_what_made_a_table_costs_nothing(tmp_path: Path, clock: StandingClock) -> None:
    """The name or the kind of a column, by one bit: sqlite may still read the file, and find nothing under the right name."""
    kept, folder = tmp_path / "kept", tmp_path / "data"
    with Room(kept, clock) as room:
        room.turns(5)
        put = list(room.put)
    words = list(misspelt(kept / shelf.FILE))
    assert len(words) > 120
    for table, sql in words:
        shutil.copytree(kept, folder)
        remade(folder / shelf.FILE, table, sql)
        with Room(folder, clock) as room:
            room.beats(10)
            assert room.move() or room.move(), (sql, room.history.fault)
            put_now = put + room.put
        assert read(folder) == put_now, sql
        shutil.rmtree(folder)


@pytest.mark.parametrize("index", ["blocks_in_order", "axes_in_order"])
def test_an_index_that_lacks_a_row_hides_nothing(tmp_path: Path, clock: StandingClock, index: str) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(8)
        put = list(room.put)
    table = index.partition("_")[0]
    with contextlib.closing(sqlite3.connect(tmp_path / shelf.FILE)) as db:
        (made,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
        (number,) = db.execute(f"SELECT min(id) FROM {table}").fetchone()
    in_history(tmp_path, f"DROP INDEX {index}", f"{made} WHERE id <> {number}")
    remade(tmp_path / shelf.FILE, index, made.encode())
    assert read(tmp_path) != put
    with Room(tmp_path, clock) as room:
        assert room.move() or room.move(), room.history.fault
    assert read(tmp_path) == put


WRONG = ("NULL", "'abc'", "x'00'", "1.5", str(2**62), str(-(2**62)))


@pytest.mark.parametrize("column", ["layout", "place_from", "ts_from", "ts_to", "t_to"])
@pytest.mark.parametrize("table", ["axes", "blocks"])
def test_a_damaged_number_of_a_piece_holds_up_neither_what_comes_nor_what_goes(
    tmp_path: Path, clock: StandingClock, table: str, column: str
) -> None:
    """And the health can be told: the first piece is the oldest that there is."""
    kept, folder = tmp_path / "kept", tmp_path / "data"
    with Room(kept, clock) as room:
        room.turns(8)
    for wrong in WRONG[:2] + WRONG[4:]:
        shutil.copytree(kept, folder)
        in_history(folder, f"UPDATE {table} SET {column} = {wrong} WHERE id = (SELECT min(id) FROM {table})")
        with Room(folder, clock) as room:
            room.number = 10_000
            room.store.use_layouts([Layout("fan", ("speed",), ())])
            room.beats(60)
            assert room.move(), (wrong, room.history.fault)
            assert room.history.status()["state"] == "ok"
            assert read(folder)[-1] == room.put[-1]
            clock.move(3 * 3_600 * SECOND)
            room.history.limit(2 * 3_600 * SECOND, 10**9)
            room.beats(10)
            assert room.move(), (wrong, room.history.fault)
            assert room.history.status()["state"] == "ok"
        shutil.rmtree(folder)


@pytest.mark.parametrize("harm", [f"{2**62} WHERE id = (SELECT max(id)", f"-{2**62} WHERE id = (SELECT min(id)"])
def test_a_damaged_number_of_an_axis_ends_neither_the_packing_nor_what_must_go(
    tmp_path: Path, clock: StandingClock, harm: str
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(8)
        in_history(tmp_path, f"UPDATE axes SET id = {harm} FROM axes)")
        with standing(tmp_path) as moment:
            for ago in range(0, 5_400, 600):
                moment.held("press", "oil", clock.wall_us() - ago * SECOND)
            assert sum(len(rows.ts) for rows in moment.rows("press", 0, 2**62)) > 100
        room.turns(8)
        clock.move(3 * 3_600 * SECOND)
        room.history.limit(2 * 3_600 * SECOND, 10**9)
        room.turns(1)
        assert room.history._file.execute("SELECT count(*) FROM axes WHERE id BETWEEN 1 AND 9").fetchone() == (0,)


def test_what_lost_its_times_goes_with_what_came_after_it(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(14)
    in_history(tmp_path, "UPDATE axes SET ts_to = NULL WHERE id = 1")
    clock.move(6 * 3_600 * SECOND)
    with Room(tmp_path, clock) as room:
        room.number = 10_000
        room.history.limit(2 * 3_600 * SECOND, 10**9)
        room.beats(60)
        assert room.move(), room.history.fault
        assert room.history._file.execute("SELECT count(*) FROM axes WHERE id = 1").fetchone() == (0,)


@pytest.mark.parametrize("wrong", WRONG)
def test_damaged_sums_within_a_chunk_cost_a_trend_nothing(tmp_path: Path, clock: StandingClock, wrong: str) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(14)
    asked = ("press", "oil", clock.wall_us() - history.DAY_US, clock.wall_us(), 200)
    with open_past(tmp_path) as found:
        count = found.trend(*asked).count.sum()
    in_history(tmp_path, f"UPDATE chunks SET cells = {wrong} WHERE id = (SELECT min(id) FROM chunks)")
    with open_past(tmp_path) as found:
        assert count / 2 < found.trend(*asked).count.sum() < count, "its readings have one checksum with them"
        assert found.left_out == 1


@pytest.mark.parametrize("wrong", WRONG[1:3])
def test_a_place_that_is_no_number_costs_a_replay_its_own_rows_only(
    tmp_path: Path, clock: StandingClock, wrong: str
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(14)
    with contextlib.closing(sqlite3.connect(tmp_path / shelf.FILE)) as db:
        (lost,) = db.execute("SELECT rows FROM axes ORDER BY id LIMIT 1").fetchone()
    in_history(tmp_path, f"UPDATE axes SET place_to = {wrong} WHERE id = (SELECT min(id) FROM axes)")
    assert len(read(tmp_path)) == len(room.put) - lost


def test_a_history_whose_saving_ended_between_the_two_renames_is_found_again(
    tmp_path: Path, clock: StandingClock
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(3)
        put = room.put
        room.store.delivered(range(1, room.store.last_committed + 1))
        room.store.put_snapshot(b"", "")
        commit(room.store)
        assert not batches(room), "the journal has it no more"
    (tmp_path / shelf.FILE).rename(tmp_path / f"{shelf.FILE}.new")
    with Room(tmp_path, clock) as room:
        assert room.move()
        assert read(tmp_path) == put


def test_a_batch_whose_number_is_damaged_hides_none_that_comes_later(tmp_path: Path, clock: StandingClock) -> None:
    """Up to which number the history has come, it would otherwise believe for ever."""
    with Room(tmp_path, clock) as room:
        room.turns(1)
        known = len(room.put)
        room.beats(10)
        in_journal(room, "UPDATE batches SET id = ? WHERE id = (SELECT max(id) FROM batches)", 2**62)
        assert room.move()
        after = len(room.put)
        for _ in range(3):
            room.beats(10)
            room.store.delivered(range(1, room.store.last_committed + 1))
            room.store.put_snapshot(b"", "")
            commit(room.store)
            assert room.move()
        assert read(tmp_path) == room.put[:known] + room.put[after:]


def test_a_damaged_history_that_cannot_be_saved_takes_no_space_and_is_saved_later(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(2)
        put = room.put
    in_history(tmp_path, "UPDATE meta SET crc = 1")

    def full(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with Room(tmp_path, clock) as room:
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "put", full)
            assert not room.move()
            assert "full" in room.history.status()["reason"]
            assert not list(tmp_path.glob("*.new*"))
        with monkeypatch.context() as patch:
            usage = shutil.disk_usage(tmp_path)
            patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
            assert not room.move()
            assert "make room" in room.history.status()["reason"]
            assert room.store.status()["state"] == "ok"
        assert not list(tmp_path.glob("*.damaged-*"))
        assert room.move()
        assert room.history.status()["state"] == "ok"
        assert read(tmp_path) == put


@pytest.mark.parametrize("rebuilt", [True, False])
def test_what_was_damaged_gives_its_number_to_nothing_else(tmp_path: Path, clock: StandingClock, rebuilt: bool) -> None:
    """The last axis and the last configuration are lost, with and without a new file."""
    with Room(tmp_path, clock) as room:
        room.turns(14)
        known = set(room.put)
    last = "id = (SELECT max(id) FROM {})"
    if rebuilt:
        harm = [f"UPDATE {t} SET crc = 1 WHERE {last.format(t)}" for t in ("axes", "texts")]
        in_history(tmp_path, *harm, "UPDATE meta SET crc = 1")
    else:
        in_history(tmp_path, *(f"DELETE FROM {t} WHERE {last.format(t)}" for t in ("axes", "texts")))
    with Room(tmp_path, clock) as room:
        room.number = 2_000
        room.turns(8)
        for item in read(tmp_path):
            assert item in known or item in room.put, "never what was put by nobody"
        asked = "SELECT count(*) FROM chunks WHERE id >> 20 NOT IN (SELECT id FROM axes)"
        assert bool(room.history._file.execute(asked).fetchone()[0]) != rebuilt


def test_a_history_that_forgot_how_far_it_has_come_moves_nothing_twice(tmp_path: Path, clock: StandingClock) -> None:
    """All of it was packed, and the journal has it still."""
    with Room(tmp_path, clock) as room:
        room.turns(1)
        its = room.history
        for layout, number in its._layouts.items():
            key = history._Key(number, room.store.epoch)
            its._put_packed(key, *its._blocks(key, layout))
        put, asked = room.put, "SELECT (SELECT count(*) FROM blocks), (SELECT count(*) FROM events)"
        assert its._file.execute(asked).fetchone() == (0, 2)
    in_history(tmp_path, "UPDATE meta SET crc = 1")
    with Room(tmp_path, clock) as room:
        assert room.move()
        assert room.history._file.execute(asked).fetchone() == (0, 2)
        assert read(tmp_path) == put


# --- bounds -----------------------------------------------------------------------------------------------------------------


def test_what_is_older_than_asked_goes_and_what_was_in_force_then_stays(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.command()
        room.history.limit(3_600 * SECOND * 2, 10**9)
        room.turns(6 * 6)
        with open_past(tmp_path) as found:
            items = list(found.frames())
            first = next(item for item in items if isinstance(item.what, Kept))
            age_s = (clock.wall_us() - int(first.what.judged.frame.ts[0])) / SECOND  # type: ignore[union-attr]
            assert 7_000 < age_s < 11_500
            assert isinstance(items[0].what, Command), "the configuration of the first frame is gone"
            assert all(told.closed_us > clock.wall_us() - 11_500 * SECOND for told in found.events(0, 2**62))
        assert [bits(item.what) for item in items if isinstance(item.what, Kept)] == [
            each for each in room.put if each[0] != "command"
        ][-sum(isinstance(item.what, Kept) for item in items) :]


def test_what_a_machine_had_before_its_columns_changed_goes_too(tmp_path: Path, clock: StandingClock) -> None:
    """With the events and the configurations of then."""
    with Room(tmp_path, clock) as room:
        room.history.limit(2 * history.DAY_US, 10**9)
        room.beats(60)
        assert room.move()
        changed, first = Layout("press", ("oil",), ()), int(clock.wall_us())
        room.store.use_layouts([changed])
        for number in range(5 * 48):
            clock.move(1_800 * SECOND)
            room.number = number
            if number % 24 == 0:
                room.command()
            room.store.put([judged(changed, clock, number, room.rng)])
            if number % 4 == 3:
                commit(room.store)
                assert room.move(), room.history.fault
        with open_past(tmp_path) as found:
            items = [item.what for item in found.frames()]
            kept = [int(item.judged.frame.ts[0]) for item in items if isinstance(item, Kept)]
            assert first + 2 * history.DAY_US < min(kept) < clock.wall_us() - 2 * history.DAY_US
            assert min(told.closed_us for told in found.events(0, 2**62)) > first + 2 * history.DAY_US
            assert len(found.commands()) < 10


def test_a_wall_clock_that_jumps_by_years_deletes_nothing(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.history.limit(3_600 * SECOND * 2, 10**9)
        room.turns(9)
        clock.step_wall(10 * 365 * 86_400 * SECOND)
        room.turns(3)
        clock.step_wall(-10 * 365 * 86_400 * SECOND)
        room.turns(3)
        assert read(tmp_path) == room.put


def test_the_file_stays_within_its_size_and_the_oldest_go_first(tmp_path: Path, clock: StandingClock) -> None:
    most = 150_000
    with Room(tmp_path, clock) as room:
        room.history.limit(400 * history.DAY_US, most)
        sizes = []
        for _ in range(30):
            room.turns(2)
            sizes.append((tmp_path / shelf.FILE).stat().st_size)
        print(f"sizes: {sizes[::5]}")
        assert max(sizes) <= most
        kept = read(tmp_path)
        frames_of = [each for each in kept if each[0] != "command"]
        assert frames_of == [each for each in room.put if each[0] != "command"][-len(frames_of) :]
        assert len(frames_of) < len(room.put) / 2, "nothing had to go: the test shows little"


def test_a_smaller_bound_makes_the_file_smaller(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(40)
    before = (tmp_path / shelf.FILE).stat().st_size
    with Room(tmp_path, clock) as room:
        room.history.limit(400 * history.DAY_US, before * 2 // 3)
        room.turns(1)
    assert (tmp_path / shelf.FILE).stat().st_size <= before * 2 // 3


# --- trends -----------------------------------------------------------------------------------------------------------------


def plain_trend(put: list[tuple[int, float, int]], from_us: int, to_us: int, step: int) -> dict[int, list[float]]:
    """In spoken words: bucket → the good readings in it."""
    found: dict[int, list[float]] = {}
    first, end = from_us // step * step, -(-to_us // step) * step
    for ts, value, quality in put:
        if first <= ts < end and quality & CODE_MASK in (Quality.GOOD, Quality.UNCERTAIN):
            found.setdefault(ts // step * step, []).append(value)
    return found


@pytest.mark.parametrize("points", [1, 7, 60, 500, 20_000])
def test_a_trend_says_what_a_plain_count_says(tmp_path: Path, clock: StandingClock, points: int) -> None:
    with Room(tmp_path, clock) as room:
        start = clock.wall_us()
        readings: list[tuple[int, float, int]] = []
        room.turns(13)
        clock.step_wall(-1_000 * SECOND)
        room.turns(3)
        room.beats(30)
        with open_past(tmp_path) as found:
            for item in found.frames():
                if isinstance(item.what, Kept) and item.what.layout == PRESS:
                    frame = item.what.judged.frame
                    rows = zip(
                        frame.ts.tolist(), frame.values[:, 1].tolist(), frame.quality[:, 1].tolist(), strict=True
                    )
                    readings += rows
            for from_us, to_us in ((start, clock.wall_us()), (start + 1_234_567_890, start + 7_000 * SECOND)):
                trend = found.trend("press", "flow", from_us, to_us, points)
                assert len(trend.ts) <= points + 1
                twin = plain_trend(readings, from_us, to_us, trend.step_us)
                assert {int(t): int(n) for t, n in zip(trend.ts, trend.count, strict=True) if n} == {
                    t: len(its) for t, its in twin.items()
                }
                for place, ts in enumerate(trend.ts.tolist()):
                    its = twin.get(ts, [])
                    if its:
                        assert (trend.low[place], trend.high[place]) == (min(its), max(its))
                        assert trend.mean[place] == pytest.approx(sum(its) / len(its), rel=1e-12)
                    else:
                        assert np.isnan(trend.low[place])


def test_readings_of_a_signal_come_without_what_was_held(tmp_path: Path, clock: StandingClock) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(8)
        room.beats(20)
        with open_past(tmp_path) as found:
            whole = found.readings("pump", "level", 0, 2**62)
            assert whole.values.tolist() == [float(n) for n in range(1, room.number + 1)]
            part = found.readings("pump", "level", int(whole.ts[100]), int(whole.ts[400]))
            assert part.ts.tolist() == whole.ts[100:400].tolist()
            assert not len(found.readings("pump", "none", 0, 2**62).ts)
            spans = found.signals()
        assert [(span.machine, span.signal) for span in spans] == [
            ("press", "flow"), ("press", "oil"), ("press", "pressure"), ("pump", "level"),
        ]  # fmt: skip
        assert (spans[3].from_us, spans[3].to_us) == (int(whole.ts[0]), int(whole.ts[-1]))


# --- folders that are none ----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(NoHistory, match="is not the data folder of an agent"), open_past(tmp_path):
        pass
    with pytest.raises(NoHistory, match="is not the data folder"), open_past(tmp_path / "nowhere"):
        pass


def test_a_file_of_a_later_version_is_refused_by_the_reader_and_left_alone_by_the_agent(
    tmp_path: Path, clock: StandingClock
) -> None:
    with Room(tmp_path, clock) as room:
        room.turns(1)
    with contextlib.closing(sqlite3.connect(tmp_path / shelf.FILE)) as db:
        db.execute(f"PRAGMA user_version = {shelf.FORMAT + 1}")
    with pytest.raises(NoHistory, match="later version"), open_past(tmp_path):
        pass
    with Room(tmp_path, clock) as room:
        room.beats(10)
        assert not room.move()
        assert "later version" in str(room.history.status()["reason"])


def test_a_reader_beside_a_writer_meets_everything_once(tmp_path: Path, clock: StandingClock) -> None:
    """The history moves and packs while somebody reads on."""
    with Room(tmp_path, clock) as room:
        room.turns(8)
        room.beats(60)
        with open_past(tmp_path) as found:
            seen = []
            for number, item in enumerate(found.frames()):
                seen.append(bits(item.what))
                if number % 100 == 0:
                    assert room.move()
                    room.store.delivered(range(1, room.store.last_committed + 1))
                    room.store.put_snapshot(b"", "")
                    commit(room.store)
        assert seen == room.put
