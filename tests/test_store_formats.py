"""Stores that earlier releases have written are opened, and one that a later release has written is left alone."""

import gzip
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edge_agent.records import Command
from edge_agent.store import disk
from edge_agent.store.journal import Store, open_store
from tests.conftest import StandingClock
from tests.test_store import LAYOUT, commit, due_of, event, frame, payloads
from tests.test_store_damage import filled

DATA = Path(__file__).parent / "data"
RELEASED = sorted(DATA.glob("store_*"))
"""One folder for each release that wrote another format: its journal, its marker, and what it said was in it."""


def laid_out(release: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    (folder / disk.FILE).write_bytes(gzip.decompress((release / f"{disk.FILE}.gz").read_bytes()))
    shutil.copy(release / disk.MARKER, folder)
    expected: dict[str, Any] = json.loads((release / "expected.json").read_text())
    return expected


def held(store: Store) -> dict[str, Any]:
    found = store.recovery()
    return {
        "epoch": store.epoch,
        "last_seq": store.last_committed,
        "due": {str(seq): payload.decode() for seq, payload in payloads(due_of(store, 0, 10**6)).items()},
        "items": len(list(found.items)),
        "snapshot": found.snapshot and found.snapshot.decode(),
        "config": found.config_json,
        "last_t": found.last_t_us,
        "last_wall": found.last_wall_us,
    }


def test_there_is_a_store_of_every_format_that_was_released() -> None:
    assert RELEASED
    assert set(disk.STEPS) == set(range(1, disk.FORMAT)), "a step from each format to the next"


@pytest.mark.parametrize("release", RELEASED, ids=lambda release: release.name)
def test_the_store_of_an_earlier_release_is_brought_forward_and_goes_on(
    tmp_path: Path, clock: StandingClock, release: Path
) -> None:
    folder = tmp_path / "s"
    expected = laid_out(release, folder)
    numbers = expected.pop("numbers")
    with open_store(folder, clock) as store:
        assert held(store) == expected
        told = {name: tuple(number) for name, number in numbers.items()}
        assert store.recovery().numbers.items() <= told.items()
        assert any(isinstance(item, Command) for item in store.recovery().items)
        assert store.load_config() == ('{"a": 1}', "abc")
        assert store.load_text(disk.DEVICES)
        assert store._bytes > 0
        store.use_layouts([LAYOUT])
        store.put([frame(500)], [event(500)])
        store.put_snapshot(b"later", '{"b": 2}')
        commit(store)
        after = payloads(due_of(store, 0, 10**6))
    assert {seq: payload.decode() for seq, payload in after.items()}.items() > {
        int(seq): payload for seq, payload in expected["due"].items()
    }.items()
    with sqlite3.connect(folder / disk.FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (disk.FORMAT,)
        assert db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall() == []
    with open_store(folder, clock) as store:
        assert payloads(due_of(store, 0, 10**6)) == after
        assert (store.recovery().snapshot, store.recovery().config_json) == (b"later", '{"b": 2}')


@pytest.mark.parametrize("release", RELEASED, ids=lambda release: release.name)
def test_a_step_that_is_cut_short_is_taken_again(tmp_path: Path, clock: StandingClock, release: Path) -> None:
    folder = tmp_path / "s"
    expected = laid_out(release, folder)
    expected.pop("numbers")
    with sqlite3.connect(folder / disk.FILE) as db:  # a part of the step, as no power cut leaves it
        db.execute("DROP INDEX IF EXISTS batches_quiet")
    with open_store(folder, clock) as store:
        assert held(store) == expected


def test_a_store_of_a_later_release_is_left_as_it_is_and_a_new_one_goes_on(
    tmp_path: Path, clock: StandingClock
) -> None:
    due = filled(tmp_path)
    with sqlite3.connect(tmp_path / disk.FILE) as db:
        db.execute(f"PRAGMA user_version = {disk.FORMAT + 1}")
        last, epoch = (
            json.loads(db.execute("SELECT text FROM meta").fetchone()[0])[name] for name in ("last_seq", "epoch")
        )
    db.close()
    before = (tmp_path / disk.FILE).read_bytes()
    found, after = list[dict[str, Any]](), ""
    for _ in range(2):
        with open_store(tmp_path, clock) as store:
            store.use_layouts([LAYOUT])
            store.put([frame(1)])
            commit(store)
            found = [json.loads(each.payload(late=False)) for each in due_of(store, 0, 10**6)]
            after = store.epoch
    (aside,) = tmp_path.glob(f"{disk.FILE}.newer-*")
    assert aside.read_bytes() == before, "it is there for the later release"
    assert {each["epoch"] for each in found} == {after} != {epoch}
    (gap,) = [each for each in found if "cause" in each]
    assert (gap["count"], gap["cause"]) == (len(due), "damage")
    assert [each["seq"] for each in found] == [last + 1, last + 2, last + 3]
    disk.rebuilt(tmp_path, clock.wall_us(), "a test says so").db.close()
    assert aside.read_bytes() == before, "what is tidied up after damage is not this"
