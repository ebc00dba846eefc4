"""A disk that forgets, is full or is read-only: the store opens, tells nothing wrong, and counts what is lost."""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_agent.records import Gap, GapCause
from edge_agent.store import disk, journal, rows
from edge_agent.store.committed import Committed
from edge_agent.store.disk import FILE
from edge_agent.store.journal import Store, open_store
from tests.conftest import ROOT, StandingClock
from tests.test_store import LAYOUT, WALL, commit, crashed, due_of, event, frame, misspelt, payloads, remade

DAMAGES = int(os.environ.get("DAMAGES") or 5000)
"""In all (make soak: 100,000). SEED: where their seeds begin."""
SEED = int(os.environ.get("SEED") or 1)
PARTS = 4
"""Of each kind: they run side by side."""
MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])


def filled(folder: Path, batches: int = 25) -> dict[int, bytes]:
    """A store of readings, warnings and gaps, a snapshot in its middle, some delivered. What is due, by seq."""
    with open_store(folder, StandingClock()) as store:
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        store.use_layouts([LAYOUT])
        store.save_config("{}", "abc")
        for n in range(batches):
            store.put([frame(2 * n, (True, n % 3 > 0))], [event(n)] if n % 4 == 0 else [])
            if n % 7 == 0:
                store.put([], gaps=[Gap(GapCause.RESTART, 1, WALL, WALL)])
            if n == batches // 2:
                store.put_snapshot(b"judge", "{}")
            commit(store)
        gone = [1, 2, 3, 5]
        store.delivered(gone)
        commit(store)
        return payloads([each for each in told if each.seq not in gone])


def damage(folder: Path, chance: random.Random) -> None:
    """Flip or blank bytes of the file, of its log (where one is left) or of the marker; now and then cut it off."""
    files = [each for each in sorted(folder.iterdir()) if each.suffix != ".db-shm" and each.stat().st_size]
    victim = chance.choices(files, [each.stat().st_size for each in files])[0]
    body = bytearray(victim.read_bytes())
    for _ in range(chance.choice([1, 1, 3, 20])):
        place = chance.randrange(len(body))
        match chance.randrange(12):
            case 0:
                del body[max(1, place) :]
            case 1:
                end = min(len(body), place + 600)
                body[place:end] = bytes(end - place)
            case _:
                body[place] ^= chance.randrange(1, 256)
    victim.write_bytes(body)


def drained(store: Store) -> list[Committed]:
    """Deliver page by page until nothing is due."""
    found: list[Committed] = []
    for _ in range(100):
        page = due_of(store, 0, 1000)
        found += page
        store.delivered([each.seq for each in page])
        commit(store)
        if not page and not store.pending_count:
            return found
    raise AssertionError(f"{store.pending_count} messages are due for ever")


def named(gaps: Sequence[dict[str, Any]]) -> set[int]:
    """The numbers that these gap records name."""
    return {seq for each in gaps if each["from_seq"] is not None for seq in range(each["from_seq"], each["to_seq"] + 1)}


@pytest.fixture(name="memory")
def _memory() -> Iterator[Path]:
    """A folder that costs no time of a disk."""
    with tempfile.TemporaryDirectory(prefix="edge-agent-damage-", dir=MEMORY) as name:
        yield Path(name)


@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("with_log", [False, True], ids=["closed", "crashed"])
def test_whatever_is_damaged_the_store_opens_and_tells_nothing_wrong(memory: Path, with_log: bool, part: int) -> None:
    saved, untold, due = _damaged(memory, with_log, range(part, DAMAGES // 2, PARTS))
    # Only where the file and its marker both forget how far the store had come is a loss not counted.
    count = DAMAGES // 2 // PARTS
    assert untold <= max(3, count // 20)
    assert saved > count * due * 0.5


def test_a_store_that_believes_what_is_damaged_is_found(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(rows, "sound", lambda row: True)
    with pytest.raises((AssertionError, *rows.UNREADABLE)):
        _damaged(memory, False, range(300))


def _damaged(tmp_path: Path, with_log: bool, seeds: range) -> tuple[int, int, int]:
    """(messages that were saved, stores of which not all was told, messages due in each)."""
    due = filled(tmp_path / "good")
    good = tmp_path / "good"
    if with_log:  # as a power cut leaves it: the last commits stand in the log only
        with open_store(tmp_path / "good", StandingClock()) as store:
            store.use_layouts([LAYOUT])
            told: list[Committed] = []
            store.on_committed.append(told.extend)
            store.put([frame(900)], [event(900)])
            commit(store)
            due |= payloads(told)
            good = crashed(tmp_path / "good", tmp_path / "cut")
    untold = saved = 0
    for seed in (SEED * 1_000_000 + number for number in seeds):
        copy = crashed(good, tmp_path / "copy")
        damage(copy, random.Random(seed))
        clock = StandingClock()
        with open_store(copy, clock) as store:
            list(store.recovery().items)
            store.use_layouts([LAYOUT])
            found = drained(store)
        old = {each.seq: each.payload(late=False) for each in found if each.seq in due}
        wrong = {seq for seq, payload in old.items() if payload != due[seq]}
        # A number that is told twice would be a gap of the new store under the number of an old message.
        assert not {seq for seq in wrong if json.loads(old[seq])["epoch"] == json.loads(due[seq])["epoch"]}, seed
        gaps = [json.loads(each.payload(late=False)) for each in found if each.kind == "gaps" and each.seq not in due]
        counted = sum(each["count"] for each in gaps if each["cause"] == "damage")
        right = len(old) - len(wrong)
        saved += right
        assert counted + right <= len(due) + 4, seed
        # A warning that is lost is named and not counted: what is counted is rows.
        untold += counted + right < len(due) and not due.keys() - old.keys() <= named(gaps)
    print(
        f"{len(seeds)} damages, seeds {SEED}000000 + {seeds}: {saved} of {len(seeds) * len(due)} saved, {untold} untold"
    )
    return saved, untold, len(due)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_of_a_file_that_was_cut_off_all_that_is_left_is_kept(
    tmp_path: Path, clock: StandingClock, share: float
) -> None:
    due = filled(tmp_path, batches=200)
    size = (tmp_path / FILE).stat().st_size
    os.truncate(tmp_path / FILE, int(size * share))
    with open_store(tmp_path, clock) as store:
        left = payloads(due_of(store, 0, 10_000))
        commit(store)
        (gap,) = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 10_000) if each.seq not in due]
    assert left.items() <= due.items()
    assert len(left) + gap["count"] == len(due)
    assert len(left) > len(due) * (share - 0.35)


def test_damage_that_comes_while_the_store_runs_is_mended_and_counted(tmp_path: Path, clock: StandingClock) -> None:
    due = filled(tmp_path / "s")
    with open_store(tmp_path / "s", clock) as store:
        store.use_layouts([LAYOUT])
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        body = bytearray((tmp_path / "s" / FILE).read_bytes())
        for page in range(2, len(body) // 4096, 3):
            body[page * 4096 : page * 4096 + 200] = bytes(200)
        (tmp_path / "s" / FILE).write_bytes(body)
        store._writer.db.execute("PRAGMA shrink_memory")
        epoch = store.epoch
        store.put([frame(500)])
        found = drained(store)
        assert store.epoch == epoch
        old = {seq: payload for seq, payload in payloads(found).items() if seq in due}
        assert old.items() <= due.items()
        gaps = [json.loads(each.payload(late=False)) for each in found if each.kind == "gaps" and each.seq not in due]
        assert sum(each["count"] for each in gaps) + len(old) == len(due)
        assert any(each.kind == "measurements" and each.seq not in due for each in found)


def test_a_changed_word_of_what_made_a_table_costs_nothing(memory: Path) -> None:
    """The name or the kind of a column, by one bit: sqlite may still read the file, and find nothing under the right name."""
    due = filled(memory / "kept")
    words = list(misspelt(memory / "kept" / FILE))
    assert len(words) > 60
    for table, sql in words:
        shutil.copytree(memory / "kept", memory / "s")
        remade(memory / "s" / FILE, table, sql)
        with open_store(memory / "s", StandingClock()) as store:
            store.use_layouts([LAYOUT])
            found = payloads(drained(store))
            told = [payload for seq, payload in found.items() if seq not in due]
            assert {seq: found.get(seq) for seq in due} == due, sql
            # A gap that says when it was, and that nothing was lost.
            assert [json.loads(each)["count"] for each in told] in ([], [0]), sql
        shutil.rmtree(memory / "s")


def test_rows_that_vanished_without_a_trace_are_found_and_counted(tmp_path: Path, clock: StandingClock) -> None:
    due = filled(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("DELETE FROM batches WHERE id IN (5, 9)")
        db.execute("DELETE FROM notices WHERE seq = (SELECT max(seq) FROM notices)")
    with open_store(tmp_path, clock) as store:
        found = drained(store)
    (gap,) = [json.loads(each.payload(late=False)) for each in found if each.seq not in due]
    assert gap["cause"] == "damage"
    assert gap["count"] == len(due) - (len(found) - 1)
    assert gap["count"] >= 3


@pytest.mark.parametrize("flips", [1, 2, 3])
def test_an_older_copy_counts_on_under_an_epoch_of_its_own(tmp_path: Path, clock: StandingClock, flips: int) -> None:
    folder, said = tmp_path / "s", dict[tuple[str, int], bytes]()

    def note(store: Store, told: list[Committed]) -> None:
        for each in told:
            payload = each.payload(late=False)
            assert said.setdefault((json.loads(payload)["epoch"], each.seq), payload) == payload

    for turn in range(flips + 1):
        with open_store(folder, clock) as store:
            store.use_layouts([LAYOUT])
            store.on_committed.append(lambda told, store=store: note(store, list(told)))  # type: ignore[misc]
            store.put([frame(turn * 10)], [event(turn)])
            commit(store)
            copy = crashed(folder, tmp_path / "copy")
            before = store.epoch
            for more in range(3):
                store.put([frame(turn * 10 + more)])
                commit(store)
        for name in (FILE, FILE + "-wal"):
            (folder / name).unlink(missing_ok=True)
            if (copy / name).exists():
                shutil.copy(copy / name, folder / name)
        with open_store(folder, clock) as store:
            assert store.epoch != before
            lost = drained(store)
            assert [json.loads(e.payload(late=False))["count"] for e in lost if e.kind == "gaps"] == [3]


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_that_says_nothing_and_is_lost_leaves_its_number_to_no_other(
    tmp_path: Path, clock: StandingClock, flip: bool
) -> None:
    """The history has it already, and would take the next one of this number for it."""
    with open_store(tmp_path / "now", clock) as store:
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        commit(store)
        older = crashed(tmp_path / "now", tmp_path / "older")
        store.put([frame(2, publish=(False,))])
        commit(store)
        last, epoch = store._last_batch, store.epoch
    shutil.copy(tmp_path / "now" / disk.MARKER, older)
    if flip:
        with sqlite3.connect(older / disk.FILE) as db:
            db.execute("UPDATE layouts SET crc = crc + 1")
    with open_store(older, clock) as store:
        assert (store.epoch, store._last_batch) == (epoch, last)


def test_a_lost_marker_begins_an_epoch_and_loses_nothing(tmp_path: Path, clock: StandingClock) -> None:
    due = filled(tmp_path)
    (tmp_path / disk.MARKER).unlink()
    with open_store(tmp_path, clock) as store:
        assert payloads(due_of(store, 0, 1000)) == due


def test_a_long_list_of_ranges_fits_the_marker_by_forgetting_deliveries(tmp_path: Path) -> None:
    state = disk.State("abc123", 10_000, delivered=[(n, n) for n in range(1, 10_000, 2)])
    disk.write_marker(tmp_path, state)
    found = disk.read_marker(tmp_path)
    assert found is not None
    assert (found.epoch, found.last_seq) == ("abc123", 10_000)
    assert set(found.delivered) < set(state.delivered)
    assert (tmp_path / disk.MARKER).stat().st_size == disk.MARKER_BYTES


def test_a_disk_that_says_no_at_the_start_is_an_os_error_with_its_path(tmp_path: Path, clock: StandingClock) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match=FILE), open_store(tmp_path, clock):
        pass


# --- a disk that is full or read-only ---------------------------------------------------------------------------------

FULL_DISK = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
import numpy as np
from edge_agent.records import Layout
from edge_agent.store import journal
from tests.conftest import StandingClock
from tests.test_store import LAYOUT, due_of, event, frame

place, how = Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=True)
journal.WAITING_MAX = 30_000  # what memory may hold is soon reached
journal.RETRY_S = 0.0
journal.REOPENED_AFTER = 10**9  # a connection made anew would write again

async def main():
    with journal.open_store(place, StandingClock()) as store:
        told = []
        store.on_committed.append(told.extend)
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        assert await store._commit()
        if how == "full":
            with (place / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(4096))
                except OSError:
                    pass
        else:
            store._writer.db.execute("PRAGMA query_only=ON")
        due, failed = 1, 0
        for n in range(2, 3000):
            store.put([frame(n)])
            due += 1
            if n % 10 == 0:
                failed += not await store._commit()
            if n == 1500:
                states = store.status()
        assert failed, "the disk never was full"
        assert states["state"] == "failing", states
        assert store._waiting_bytes <= 30_000
        if how == "full":
            (place / "ballast").unlink()
        else:
            store._writer.db.execute("PRAGMA query_only=OFF")
        store.put([], [event(1)])
        for _ in range(50):
            await store._commit()
        assert store.status()["state"] == "ok", store.status()
        found = [json.loads(each.payload(late=False)) for each in told]
        readings = sum("values" in each for each in found)
        gaps = [each for each in found if "cause" in each]
        assert {each["cause"] for each in gaps} == {"disk_full"}, gaps
        assert readings + sum(each["count"] for each in gaps) == due, (readings, gaps, due)
        assert sorted(each["seq"] for each in found) == [each["seq"] for each in found]
        assert any("id" in each for each in found)
        print(json.dumps({"readings": readings, "lost": due - readings}))
    with journal.open_store(place, StandingClock()) as store:
        assert len(due_of(store, 0, 10_000)) == len(told)

asyncio.run(main())
"""


@pytest.mark.root
@pytest.mark.parametrize("how", ["full", "readonly"])
def test_a_disk_that_refuses_stops_no_measuring_and_the_loss_is_told(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", FULL_DISK, str(tmp_path), how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["lost"] > 0


def test_after_a_full_disk_the_journal_comes_back_in_steps(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "TRANSACTION_MAX", 1)
    with open_store(tmp_path / "s", clock) as store:
        store.use_layouts([LAYOUT])
        store.put([frame(1)])
        store.put_snapshot(b"1", "{}")
        commit(store)
        store.delivered([1])
        commit(store)
        for number in (2, 3):
            store.put([frame(number)])
            store.put_snapshot(b"%d" % number, "{}")
        assert asyncio.run(store._commit())
        assert [each.seq for each in due_of(store, 0, 9)] == [2]
        copy = crashed(tmp_path / "s", tmp_path / "copy")
        assert asyncio.run(store._commit())
        assert [each.seq for each in due_of(store, 0, 9)] == [2, 3]
        assert store.recovery().snapshot == b"3"
    with open_store(copy, clock) as store:
        assert [each.seq for each in due_of(store, 0, 9)] == [2]
        # The snapshot that a later one had overtaken was not kept; what it would have covered is judged again.
        assert store.recovery().snapshot == b"1"
        assert [int(item.frame.t[0]) for item in store.recovery().items] == [2_000_000]  # type: ignore[union-attr]


def test_a_commit_that_is_cancelled_is_written_once(tmp_path: Path, clock: StandingClock) -> None:
    async def main(store: Store) -> None:
        running = asyncio.get_running_loop().create_task(store._commit())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with open_store(tmp_path, clock) as store:
        store.use_layouts([LAYOUT])
        store.put([frame(1)], [event(1)])
        asyncio.run(main(store))
    with open_store(tmp_path, clock) as store:
        assert [each.seq for each in due_of(store, 0, 9)] == [1, 2]
