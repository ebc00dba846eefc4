"""The journal against a plain twin, and against kill -9, lost commits and damaged bytes."""

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.contract import Frame, Quality
from edge_agent.records import (
    Command,
    Event,
    EventKind,
    Gap,
    GapCause,
    JudgedFrame,
    Kind,
    Layout,
    Severity,
    WarningState,
)
from edge_agent.store import disk, journal
from edge_agent.store.committed import Committed
from edge_agent.store.journal import Store, open_store
from edge_agent.store.notes import DeviceNotes
from edge_agent.store.writer import Work
from tests.conftest import ROOT, StandingClock, eventually

LAYOUT = Layout("press-3", ("a", "b", "c"), ("running",))
WALL = 1_795_000_000_000_000


def frame(number: int, publish: Sequence[bool] = (True,), at: bool = False) -> JudgedFrame:
    """Rows that say by their values which they are."""
    rows = len(publish)
    t = np.arange(number, number + rows, dtype=np.int64) * 1_000_000
    values = np.arange(rows * 3, dtype=np.float64).reshape(rows, 3) + number / 7
    quality = np.zeros((rows, 3), np.uint8)
    if number % 3 == 0:
        quality[:, 1], values[:, 1] = Quality.TIMEOUT, np.nan
    stamps = np.tile(t[:, None], (1, 3)) + WALL if at else None
    return JudgedFrame(
        Frame("press-3", t, t + WALL, values, quality, stamps),
        np.zeros(rows, np.int16),
        np.array(publish, np.bool_),
    )


def event(number: int) -> Event:
    return Event(
        EventKind.RAISED, f"id-{number}", WALL, "press-3", "a", Kind.HIGH, Severity.ALARM, WarningState.UNACKNOWLEDGED,
        float(number), "bar", 1.0, {}, WALL, "running", "too high", "",
    )  # fmt: skip


async def committed(store: Store) -> None:
    """Let `run` commit all that was put, and end."""
    async with asyncio.timeout(20):
        await store.stop()
        await store.run()
        store._stopping = False


def commit(store: Store) -> None:
    asyncio.run(committed(store))


def due_of(store: Store, after: int, limit: int) -> list[Committed]:
    """All that is due after this number, look by look."""
    found: list[Committed] = []
    while len(found) < limit:
        page = store.pending(after, limit - len(found))
        if page is None:
            break
        found += page.messages
        if page.reached <= after or page.reached >= store.last_committed:
            break
        after = page.reached
    return found


def payloads(found: Sequence[Committed]) -> dict[int, bytes]:
    return {each.seq: each.payload(late=False) for each in found}


def equal(one: JudgedFrame, other: JudgedFrame) -> bool:
    a, b = one.frame, other.frame
    pairs: list[tuple[Any, Any]] = [(a.t, b.t), (a.ts, b.ts), (a.values, b.values), (a.quality, b.quality)]
    pairs += [(one.state, other.state), (one.publish, other.publish)]
    same = all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)
    stamps = a.at is None if b.at is None else a.at is not None and bool((a.at == b.at).all())
    return same and stamps and a.machine == b.machine and a.tick == b.tick


def crashed(folder: Path, copy: Path) -> Path:
    """What a machine finds that lost its power now: the files as they are, nobody said good-bye."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def misspelt(path: Path) -> Iterator[tuple[str, bytes]]:
    """(table, what makes it): each word behind the name of each table with one bit changed, so that it is a word still or none."""
    with closing(sqlite3.connect(path)) as db:
        made = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    for table, sql in made:
        for word in re.finditer(r"\w+", sql[sql.index("(") :]):
            for bit in (0x01, 0x80):
                spot = sql.index("(") + word.end() - 1
                yield table, sql[:spot].encode() + bytes([ord(sql[spot]) ^ bit]) + sql[spot + 1 :].encode()


def remade(path: Path, name: str, sql: bytes) -> None:
    """The file says that this has made the table, or index, of that name."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql = CAST(? AS TEXT) WHERE name = ?", (sql, name))


def in_file(folder: Path, asked: str, *values: int) -> None:
    """Change a row behind the store's back."""
    with closing(sqlite3.connect(folder / journal.FILE)) as db, db:
        db.execute(asked, values)


# --- delivery -----------------------------------------------------------------------------------------------------


def test_only_what_is_committed_is_told_and_in_the_order_of_seq(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        store.use_layouts([LAYOUT])
        store.put([frame(1), frame(2, (True, False, True))], [event(1)], gaps=[Gap(GapCause.RESTART, 3, WALL, WALL)])
        store.put([frame(5)])
        assert told == []
        assert due_of(store, 0, 10) == []
        commit(store)
        assert [each.seq for each in told] == [1, 2, 3, 4, 5, 6]
        assert [each.topic for each in told][3:] == ["press-3/warnings", "gaps", "press-3/measurements"]
        assert json.loads(told[0].payload(late=False))["epoch"] == store.epoch


def test_disk_and_memory_give_the_same_bytes(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        store.use_layouts([LAYOUT])
        store.put([frame(n, (True, True), at=n % 2 == 0) for n in range(0, 12, 2)], [event(1)])
        commit(store)
        before = payloads(told)
    with open_store(tmp_path, clock) as again:
        assert payloads(due_of(again, 0, 100)) == before


def test_an_urgent_event_is_committed_long_before_commit_every(tmp_path: Path, clock: StandingClock) -> None:
    async def main(store: Store) -> None:
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(store.run())
            store.put([frame(1)])
            store.put([], [event(1)])
            await eventually(lambda: len(told) == 2)
            await store.stop()
            await running

    with open_store(tmp_path, clock) as store:
        store.limit(10**9, 10**15, 3_600_000_000)
        store.use_layouts([LAYOUT])
        asyncio.run(main(store))


def test_a_message_keeps_the_layout_under_which_it_was_taken(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        commit(store)
        store.use_layouts([Layout("press-3", ("x", "y", "z"), ())])
        store.put([frame(2)])
        commit(store)
    with open_store(tmp_path, clock) as store:
        first, second = (json.loads(each.payload(late=False)) for each in due_of(store, 0, 9))
    assert set(first["values"]) == {"a", "b", "c"}
    assert set(second["values"]) == {"x", "y", "z"}


def test_recovery_gives_back_what_came_after_the_snapshot_bit_for_bit(tmp_path: Path, clock: StandingClock) -> None:
    command = Command("acknowledge", WALL, 5, "id-1", "anna", "seen", {"n": 1})
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        store.put_snapshot(b"judge", "{}")
        later = [frame(3, (True, False), at=True), frame(6)]
        store.put(later[:1])
        store.put([], commands=[command])
        store.put(later[1:])
        commit(store)
    with open_store(tmp_path, clock) as store:
        found = store.recovery()
        items = list(found.items)
    assert (found.snapshot, found.config_json) == (b"judge", "{}")
    assert found.last_t_us == 6_000_000
    assert items[1] == command
    for got, put in zip([items[0], items[2]], later, strict=True):
        assert isinstance(got, JudgedFrame)
        assert equal(got, put)


def test_what_was_delivered_is_kept_until_a_snapshot_covers_it(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        for number in (1, 2, 3):
            store.put([frame(number)])
            if number == 1:
                store.put_snapshot(b"judge", "{}")
            commit(store)
        store.delivered([1, 2, 3])
        commit(store)
    with open_store(tmp_path, clock) as store:
        assert due_of(store, 0, 9) == []
        assert [item.frame.t[0] for item in store.recovery().items if isinstance(item, JudgedFrame)] == [2e6, 3e6]
        store.put_snapshot(b"later", "{}")
        commit(store)
    with open_store(tmp_path, clock) as store:
        assert list(store.recovery().items) == []
        assert store.status()["mb"] == 0


def test_the_configuration_that_was_in_force_comes_back(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        assert store.load_config() is None
        store.save_config("{}", "abc")
    with open_store(tmp_path, clock) as store:
        assert store.load_config() == ("{}", "abc")


def test_the_oldest_readings_yield_to_the_limit_and_warnings_stay(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        for number in range(100):
            store.put([frame(number)], [event(number)] if number == 3 else [])
            store.put_snapshot(b"", "")
            commit(store)
        store.limit(2_000, 10**15, 1_000_000)
        commit(store)
        store.put([frame(200)])
        commit(store)
        left = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 1000)]
        dropped = sum(each["count"] for each in left if "cause" in each)
        readings = [each for each in left if "values" in each]
        assert dropped > 0
        assert dropped + len(readings) == 101
        assert [each["id"] for each in left if "id" in each] == ["id-3"]
        assert store.pending_count == len(left)


def test_when_no_reading_is_left_to_yield_the_oldest_warnings_do_and_are_named(
    tmp_path: Path, clock: StandingClock
) -> None:
    limit = 500_000
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store.limit(limit, 10**15, 1_000_000)
        for number in range(0, 3_000, 20):
            store.put([frame(each) for each in range(number, number + 20)])
            store.put([], [event(each) for each in range(number, number + 20)])
            asyncio.run(store._commit())
            assert store.status()["mb"] <= 1.1 * limit / 1e6
        left = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 10_000)]
        warnings, gaps = [each for each in left if "event" in each], [each for each in left if "cause" in each]
        readings = [each for each in left if "values" in each]
        assert 1_000 < len(warnings) < 1_500
        assert len(readings) < 300, "they go first"
        assert [each["id"] for each in warnings] == [f"id-{3000 - len(warnings) + i}" for i in range(len(warnings))]
        assert {each["cause"] for each in gaps} == {"buffer_limit"}
        assert sum(each["count"] for each in gaps) + len(readings) == 3_000, "counted are rows, and no warning is one"
        seqs = {seq for each in gaps for seq in range(each["from_seq"], each["to_seq"] + 1)}
        assert seqs >= set(range(1, 6_000)) - {each["seq"] for each in left}
        assert store.pending_count == len(left)
        store.delivered([each["seq"] for each in left])
        store.put_snapshot(b"", "")
        commit(store)
        assert store._size == store._bytes
    with open_store(tmp_path, clock) as store:
        assert store._size == store._bytes, "what was deleted and what was counted are one"


# --- the twin -----------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.booleans(), max_size=4)),
        st.tuples(st.just("event"), st.none()),
        st.tuples(st.just("gap"), st.none()),
        st.tuples(st.just("snapshot"), st.none()),
        st.tuples(st.just("commit"), st.none()),
        st.tuples(st.just("crash"), st.none()),
        st.tuples(st.just("deliver"), st.integers(0, 5)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_pending_is_what_a_plain_twin_says(
    steps: list[tuple[str, list[bool] | int | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    clock = StandingClock()
    durable: dict[int, bytes] = {}
    done_durable: set[int] = set()
    done: set[int] = set()
    history: dict[tuple[str, int], bytes] = {}
    stack = open_store(folder, clock)
    store = stack.__enter__()
    epoch = store.epoch

    def note(told: Sequence[Committed]) -> None:
        for each in told:
            bytes_ = each.payload(late=False)
            durable[each.seq] = bytes_
            assert history.setdefault((store.epoch, each.seq), bytes_) == bytes_

    def begin() -> None:
        store.on_committed.append(note)
        store.use_layouts([LAYOUT])

    begin()
    for number, (step, argument) in enumerate(steps, 1):
        match step, argument:
            case "put", list(publish):
                store.put([frame(number, publish)])
            case "event", _:
                store.put([], [event(number)])
            case "gap", _:
                store.put([], gaps=[Gap(GapCause.RESTART, number, WALL, WALL)])
            case "snapshot", _:
                store.put_snapshot(b"s", "{}")
            case "commit", _:
                commit(store)
                done_durable = set(done)
            case "deliver", int(count):
                seqs = [each.seq for each in due_of(store, 0, count)]
                store.delivered(seqs)
                done |= set(seqs)
            case "crash", _:
                copy = crashed(folder, folder.with_name(folder.name + f"-{number}"))
                stack.__exit__(None, None, None)
                folder, done = copy, set(done_durable)
                stack = open_store(folder, clock)
                store = stack.__enter__()
                assert store.epoch == epoch
                begin()
        due = {seq: bytes_ for seq, bytes_ in durable.items() if seq not in done}
        assert payloads(due_of(store, 0, 10_000)) == due
        assert store.pending_count == len(due)
    stack.__exit__(None, None, None)


# --- crashes and damage -------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from edge_agent.clock import SystemClock
from edge_agent.store.journal import open_store
from tests.test_store import LAYOUT, event, frame

async def main(store):
    def tell(told):
        for each in told:
            print(store.epoch, each.seq, each.payload(late=False).hex())
        sys.stdout.flush()
    store.on_committed.append(tell)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store.run())
        number = store.last_committed
        while True:
            number += 1
            store.put([frame(number)], [event(number)] if number % 7 == 0 else [])
            if number % 5 == 0:
                store.put_snapshot(b"s", "{}")
            await asyncio.sleep(0.0005)

with open_store(Path(sys.argv[1]), SystemClock()) as store:
    store.limit(10**9, 10**15, 2_000)
    store.use_layouts([LAYOUT])
    asyncio.run(main(store))
"""


def killed_while_writing(folder: Path, after: int) -> list[tuple[str, int, bytes]]:
    """What a writer said it had committed before it was killed, at some instant after that many lines."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(after)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
    # The kill may cut the last line: what was not said in full was not promised.
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return [(epoch.decode(), int(seq), bytes.fromhex(text.decode())) for epoch, seq, text in whole]


def test_the_log_does_not_grow_from_kill_to_kill(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run lasts until its own part of the log would be moved into the file."""
    monkeypatch.setattr(disk, "CHECKPOINT_BYTES", 100_000)
    folder, size = tmp_path / "store", []
    for kill in range(40):
        with open_store(folder, clock) as store:
            store.use_layouts([LAYOUT])
            for row in range(5):
                store.put([frame(kill * 5 + row)])
                store.put_snapshot(bytes(5_000), "{}")
                commit(store)
                clock.move(1_000_000)
            copy = crashed(folder, tmp_path / f"copy-{kill}")
        shutil.rmtree(folder)
        copy.rename(folder)
        size.append((folder / "journal.db-wal").stat().st_size)
    assert max(size) < 300_000, size


def test_twenty_kills_lose_nothing_and_give_no_number_twice(tmp_path: Path, clock: StandingClock) -> None:
    said: dict[int, bytes] = {}
    epochs = set()
    for round_ in range(20):
        for epoch, seq, payload in killed_while_writing(tmp_path, 3 + round_ * 7 % 40):
            epochs.add(epoch)
            assert said.setdefault(seq, payload) == payload
    with open_store(tmp_path, clock) as store:
        found = payloads(due_of(store, 0, 10**6))
    assert said.items() <= found.items()
    assert len(epochs) == 1


def test_the_check_for_loss_finds_a_loss(tmp_path: Path, clock: StandingClock) -> None:
    """The negative control: a batch that is taken away must be missed."""
    said = {seq: payload for _, seq, payload in killed_while_writing(tmp_path, 20)}
    with sqlite3.connect(tmp_path / journal.FILE) as db:
        db.execute("DELETE FROM batches WHERE id = (SELECT min(id) FROM batches WHERE messages > 0)")
    with open_store(tmp_path, clock) as store:
        assert not said.items() <= payloads(due_of(store, 0, 10**6)).items()


def small_store(folder: Path) -> dict[int, bytes]:
    """Six readings and six warnings, two of them delivered. Returns the bytes of those that are due."""
    with open_store(folder, StandingClock()) as store:
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        store.use_layouts([LAYOUT])
        for number in range(6):
            store.put([frame(number)], [event(number)])
            commit(store)
        store.put_snapshot(b"judge", "{}")
        store.delivered([1, 2])
        commit(store)
        return payloads([each for each in told if each.seq > 2])


def read_with_a_flip(good: Path, folder: Path, place: int) -> dict[int, bytes]:
    """Open a copy in which one byte is another, and read all of it; what is told under the old epoch, but for gaps."""
    copy = crashed(good, folder)
    body = bytearray((copy / journal.FILE).read_bytes())
    body[place] ^= 0x55
    (copy / journal.FILE).write_bytes(body)
    with open_store(copy, StandingClock()) as store:
        found = due_of(store, 0, 1000)
        list(store.recovery().items)
        return {each.seq: each.payload(late=False) for each in found if each.kind != "gaps"}


def test_a_flipped_byte_in_what_the_store_knows_of_itself_keeps_no_agent_from_starting(tmp_path: Path) -> None:
    small_store(tmp_path / "good")
    body = (tmp_path / "good" / journal.FILE).read_bytes()
    start = body.rfind(b"delivered")
    for place in range(start, start + 24):
        read_with_a_flip(tmp_path / "good", tmp_path / "copy", place)


@pytest.mark.parametrize(
    "harm", ["batches SET seq_from = NULL", "batches SET bytes = 'x'", "notices SET payload = NULL"]
)
def test_a_row_that_lost_a_number_is_mended_and_ends_nothing(tmp_path: Path, harm: str) -> None:
    clock = StandingClock()
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        for number in range(1, 5):
            store.put([frame(number)], [event(number)])
            commit(store)
        key = "id" if harm.startswith("batches") else "seq"
        in_file(tmp_path, f"UPDATE {harm} WHERE {key} = 2")
        store.limit(1, 10**15, 1_000_000)
        for _ in range(3):
            due_of(store, 0, 99)
            store.put_snapshot(b"", "")
            commit(store)
        assert store.fault is None
        assert "damage" in {json.loads(each.payload(late=False)).get("cause") for each in due_of(store, 0, 99)}


FAR = 2**62


@pytest.mark.parametrize("wrong", [-FAR, FAR])
@pytest.mark.parametrize("column", ["batches.ts_from", "batches.ts_to", "batches.closed", "notices.closed"])
def test_a_time_that_nobody_can_write_down_ends_nothing(tmp_path: Path, column: str, wrong: int) -> None:
    """Told in a gap of what had to yield, and asked for what waits longest."""
    table, name = column.split(".")
    with open_store(tmp_path, StandingClock()) as store:
        store.use_layouts([LAYOUT])
        for number in range(1, 7):
            store.put([frame(number)], [event(number)])
            commit(store)
        in_file(tmp_path, f"UPDATE {table} SET {name} = ? WHERE rowid = (SELECT min(rowid) FROM {table})", wrong)
        assert store.status()["oldest"]
        store.limit(1, 10**15, 1_000_000)
        commit(store)
        assert store.status()["state"] == "ok"
        assert "buffer_limit" in {json.loads(each.payload(late=False)).get("cause") for each in due_of(store, 0, 99)}


@pytest.mark.parametrize("wrong", [-FAR, FAR])
def test_a_damaged_size_of_a_batch_makes_no_other_yield(tmp_path: Path, wrong: int) -> None:
    with open_store(tmp_path, StandingClock()) as store:
        store.use_layouts([LAYOUT])
        for number in range(1, 7):
            store.put([frame(number)])
            commit(store)
        in_file(tmp_path, "UPDATE batches SET bytes = ? WHERE id = 1", wrong)
        store.put_snapshot(b"", "")
        commit(store)
        store.delivered([1])
        store.put_snapshot(b"", "")
        commit(store)
        store.put([frame(7)])
        commit(store)
        assert 0 < store.status()["mb"] < 1
        assert [each.seq for each in due_of(store, 0, 99)] == [2, 3, 4, 5, 6, 7]


def test_a_damaged_number_of_a_batch_hides_none_that_comes_later_from_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path, StandingClock()) as store:
        store.use_layouts([LAYOUT])
        for number in range(1, 4):
            store.put([frame(number)])
            commit(store)
        in_file(tmp_path, "UPDATE batches SET id = ? WHERE id = 3", FAR)
        store.put_snapshot(b"then", "")
        store.put([frame(4)])
        commit(store)
    with open_store(tmp_path, StandingClock()) as store:
        recovery = store.recovery()
        assert recovery.snapshot == b"then"
        assert [int(item.frame.t[0]) for item in recovery.items if isinstance(item, JudgedFrame)] == [4_000_000]


def test_a_snapshot_that_came_with_a_commit_that_failed_keeps_its_configuration(tmp_path: Path) -> None:
    """The disk was full for one commit, and the next one writes the same again."""
    with open_store(tmp_path, StandingClock()) as store:
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        store.put_snapshot(b"1", "then")
        commit(store)
        (pages,) = store._writer.db.execute("PRAGMA page_count").fetchone()
        store._writer.db.execute(f"PRAGMA max_page_count={pages}")
        store.put_snapshot(b"2", "now")
        store.put([frame(number) for number in range(2, 2_000)])
        assert not asyncio.run(store._commit())
        store._writer.db.execute("PRAGMA max_page_count=1000000")
        commit(store)
    with open_store(tmp_path, StandingClock()) as store:
        recovery = store.recovery()
        assert (recovery.snapshot, recovery.config_json) == (b"2", "now")


def test_a_start_looks_at_nothing_again_that_waits_for_the_broker(tmp_path: Path) -> None:
    """Its first snapshot comes before the history has said how far it has come; a long outage is a million batches."""
    for start in range(2):
        with open_store(tmp_path, StandingClock()) as store:
            store.keep_for_history()
            store.use_layouts([LAYOUT])
            if not start:
                for number in range(1, 6):
                    store.put([frame(number)])
                    commit(store)
                store.moved(5, 0)
            store.put_snapshot(b"", "")
            commit(store)
            assert store._counted().pruned == 5


def test_a_flipped_byte_in_a_warning_is_told_as_damage_and_not_as_a_warning(tmp_path: Path) -> None:
    due = small_store(tmp_path / "good")
    place = (tmp_path / "good" / journal.FILE).read_bytes().find(b'"id":"id-4"') + 8
    found = read_with_a_flip(tmp_path / "good", tmp_path / "copy", place)
    assert found.items() <= due.items()


def test_a_flipped_byte_in_readings_costs_only_their_batch_and_is_told(tmp_path: Path, clock: StandingClock) -> None:
    due = small_store(tmp_path)
    with sqlite3.connect(tmp_path / journal.FILE) as db:
        (frames,) = db.execute("SELECT frames FROM batches ORDER BY id DESC LIMIT 1").fetchone()
    body = bytearray((tmp_path / journal.FILE).read_bytes())
    place = body.find(frames[20:60])
    assert place > 0
    body[place] ^= 0x55
    (tmp_path / journal.FILE).write_bytes(body)
    with open_store(tmp_path, clock) as store:
        first = payloads(due_of(store, 0, 1000))
        commit(store)
        (gap,) = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 1000) if each.kind == "gaps"]
    assert first.items() <= due.items()
    assert len(due) - len(first) == gap["count"] == 1
    assert gap["cause"] == "damage"


def test_a_file_that_is_no_store_is_moved_aside_and_told(tmp_path: Path, clock: StandingClock) -> None:
    (tmp_path / journal.FILE).write_bytes(b"not a database at all" * 100)
    with open_store(tmp_path, clock) as store:
        commit(store)
        assert [json.loads(each.payload(late=False))["cause"] for each in due_of(store, 0, 9)] == ["damage"]
    assert len(list(tmp_path.glob(journal.FILE + ".damaged-*"))) == 1


def test_a_restored_store_begins_an_epoch_of_its_own(tmp_path: Path, clock: StandingClock) -> None:
    folder, backup, epoch = tmp_path / "store", tmp_path / "backup.db", ""
    for number in (1, 2):
        with open_store(folder, clock) as store:
            epoch = store.epoch
            store.use_layouts([LAYOUT])
            store.put([frame(number)])
            commit(store)
        if number == 1:
            shutil.copy(folder / journal.FILE, backup)
    shutil.copy(backup, folder / journal.FILE)
    with open_store(folder, clock) as store:
        assert store.epoch != epoch


def test_a_commit_that_failed_before_a_crash_begins_no_new_epoch(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path / "store", clock) as store:
        epoch = store.epoch
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        commit(store)
        store.put([frame(2)])
        store.put_snapshot(b"s", "{}")
        # The disk is full once the batch is written, before it is committed.
        store._writer.db.execute(
            "CREATE TEMP TRIGGER full BEFORE INSERT ON main.meta BEGIN SELECT raise(ABORT, 'disk full'); END"
        )
        with pytest.raises(sqlite3.Error):
            store._writer.write(Work(store._sealed, store._state(store._sealed), None, {1: LAYOUT}, 0, None))
        copy = crashed(tmp_path / "store", tmp_path / "copy")
        store._writer.db.execute("DROP TRIGGER full")
    with open_store(copy, clock) as store:
        assert store.epoch == epoch


def test_the_store_turns_with_each_commit_and_not_while_its_disk_hangs(tmp_path: Path, clock: StandingClock) -> None:
    async def main(store: Store) -> None:
        store.limit(10**9, 10**15, 10_000)
        turns: list[None] = []
        running = asyncio.get_running_loop().create_task(store.run(lambda: turns.append(None)))
        await eventually(lambda: len(turns) >= 5)
        hang = threading.Event()
        store._thread.submit(hang.wait, 20)
        store.put([], [event(1)])
        await asyncio.sleep(0.1)
        before = len(turns)
        await asyncio.sleep(0.3)
        hang.set()
        assert len(turns) == before, "the watchdog would see it"
        await store.stop()
        await running

    with open_store(tmp_path, clock) as store:
        asyncio.run(main(store))


def test_a_refused_topic_makes_no_commit_larger(tmp_path: Path, clock: StandingClock) -> None:
    """Every second message is delivered: ten thousand ranges, and a commit writes what has changed and no more."""
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        sizes = []
        for number in range(0, 4000, 2):
            store.put([frame(number, (True, True))])
            if number % 200 == 0:
                commit(store)
                store.delivered(range(max(1, store.last_committed - 199), store.last_committed + 1, 2))
                store._seal()
                done = store._changes([])
                sizes.append(len(done.changes) if done is not None else 0)
                store._take_back(done)
        commit(store)
        assert max(sizes) <= 210
        assert len(store._writer.db.execute("SELECT text FROM meta").fetchone()[0]) < 300
        due = [each.seq for each in due_of(store, 0, 10**6)]
    with open_store(tmp_path, clock) as again:
        assert [each.seq for each in due_of(again, 0, 10**6)] == due


def test_a_wall_clock_that_steps_forward_throws_nothing_away(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store.limit(10**9, 14 * 86_400 * 10**6, 10**6)
        for number in range(200):
            store.put([frame(number)])
            commit(store)
        clock.move(15 * 86_400 * 10**6)
        store.commits = journal.AGE_LOOK_EVERY
        commit(store)
        assert store.pending_count == 200
        assert not [each for each in due_of(store, 0, 10**6) if each.kind == "gaps"]
        store._t = (store._t or 0) + 15 * 86_400 * 10**6  # the agent's own clock says so too
        store.commits = journal.AGE_LOOK_EVERY
        store.put_snapshot(b"s", "{}")
        commit(store)
        store.commits = journal.AGE_LOOK_EVERY
        commit(store)
        told = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 10**6)]
        assert [each["cause"] for each in told if "cause" in each] == ["buffer_limit"]


def test_while_the_disk_refuses_only_the_last_snapshot_waits_and_memory_is_bounded(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WAITING_MAX", 500_000)
    monkeypatch.setattr(journal, "REOPENED_AFTER", 10**9)
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store._writer.db.execute("PRAGMA query_only=ON")
        tracemalloc.start()
        for number in range(3000):
            store.put([frame(number)], [event(number)] if number % 100 == 0 else [])
            if number % 50 == 0:
                store.put_snapshot(bytes(20_000), "{}")
                assert not asyncio.run(store._commit())
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert used < 1_000_000, "what is counted is what is used"
        store._writer.db.execute("PRAGMA query_only=OFF")
        for _ in range(5):
            asyncio.run(store._commit())
        told = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 10**6)]
        assert sum("event" in each for each in told) == 30, "no warning yields"
        (gap,) = [each for each in told if "cause" in each]
        assert sum("values" in each for each in told) + gap["count"] == 3000


def test_what_was_judged_by_another_configuration_is_so_again_where_a_full_disk_comes_back_in_steps(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "TRANSACTION_MAX", 1)
    with open_store(tmp_path / "now", clock) as store:
        store.use_layouts([LAYOUT])
        for number, text in enumerate(["old", "old", "new", "new", "new"]):
            store.put([frame(2 * number)])
            store.put_snapshot(b"%d" % number, text)
            store.put([frame(2 * number + 1)])
        found = []
        for copy in range(20):
            asyncio.run(store._commit())
            with open_store(crashed(tmp_path / "now", tmp_path / str(copy)), clock) as left:
                recovery = left.recovery()
                items = [item for item in recovery.items if isinstance(item, JudgedFrame)]
                found.append((recovery.snapshot, recovery.config_json, [round(i.frame.t[0] / 1e6) for i in items]))
        judged_by_old = [numbers for _, text, numbers in found if text == "old"]
        assert judged_by_old
        assert max(max(numbers, default=0) for numbers in judged_by_old) <= 4, "4 is judged and then the new one comes"
        assert found[-1] == (b"4", "new", [9])


def test_the_limit_holds_also_where_no_snapshot_was_made(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store.limit(20_000, 10**15, 1_000_000)
        for number in range(100):
            store.put([frame(number)])
            commit(store)
        assert store.pending_count < 100
        assert store.status()["mb"] <= 0.0201
        assert (tmp_path / journal.FILE).stat().st_size < 100_000


def test_what_devices_taught_comes_back(tmp_path: Path, clock: StandingClock) -> None:
    with open_store(tmp_path, clock) as store:
        notes = DeviceNotes(store)
        notes["plc-1"] = b'{"refused":[]}'
        notes["plc-2"] = b"\xff\x00"
        del notes["plc-1"]
        notes["plc-3"] = b""
    with open_store(tmp_path, clock) as store:
        assert dict(DeviceNotes(store)) == {"plc-2": b"\xff\x00", "plc-3": b""}
        store.save_text(disk.DEVICES, "nonsense")
    with open_store(tmp_path, clock) as store:
        assert dict(DeviceNotes(store)) == {}, "lost notes only have to be learned again"
