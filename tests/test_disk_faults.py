"""A disk that takes nothing: the agent measures, judges and warns all the same, says so, and catches up by itself."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent import diskspace, texts
from edge_agent.contract import ENDING, Quality
from edge_agent.records import Loss
from edge_agent.store import disk, journal
from edge_agent.store.journal import open_store
from tests import disks
from tests.conftest import StandingClock, eventually
from tests.hall import Hall, command, hall, picky, press
from tests.test_store import LAYOUT, commit, due_of, event, frame, payloads
from tests.test_store_damage import filled

MODULE = "tests.test_disk_faults"
BACK_WITHIN_S = 10.0

# --- what is told -----------------------------------------------------------------------------------------------------

GB = 1_000_000_000
WELL = Loss(Quality.GOOD)


def space(free: float, total: float = 100, inodes: int | None = 1000, read_only: bool = False) -> diskspace.Space:
    """free, total: GB."""
    return diskspace.Space(round(free * GB), round(total * GB), inodes, read_only)


@pytest.mark.parametrize(
    ("free", "total", "before", "low"),
    [
        (5.1, 100, WELL, False), (4.9, 100, WELL, True), (5.9, 100, Loss(ENDING), True), (6.1, 100, Loss(ENDING), False),
        (0.19, 2, WELL, True), (0.21, 2, WELL, False), (0.011, 0.05, WELL, False), (0.009, 0.05, WELL, True),
    ],
)  # fmt: skip
def test_a_disk_is_nearly_full_below_5_percent_or_200_mb_and_well_again_a_fifth_above(
    free: float, total: float, before: Loss, low: bool
) -> None:
    told = diskspace.told(space(free, total), None, before, "en")
    assert told.why == (ENDING if low else 0)
    assert "free" in told.words


@pytest.mark.parametrize(
    ("about", "fault", "why"),
    [
        (space(0), "database or disk is full", diskspace.Why.FULL),
        (space(3, read_only=True), "disk I/O error", diskspace.Why.READ_ONLY),
        (space(3, inodes=0), "unable to open database file", diskspace.Why.NO_INODES),
        (space(3, inodes=None), "disk I/O error", diskspace.Why.FAILING),
        (None, "disk I/O error", diskspace.Why.FAILING),
    ],
)
@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_a_refusal_is_an_alarm_that_says_why_since_when_and_what_waits(
    about: diskspace.Space | None, fault: str, why: diskspace.Why, language: str
) -> None:
    told = diskspace.told(about, diskspace.Refusal(fault, "14:03:10", 3.25, 64.0), WELL, language)
    assert told.why == 3 * ENDING + why
    for part in (fault, "14:03:10", "64", "3.2" if language == "en" else "3,2"):
        assert part in told.words


def test_of_a_folder_that_is_not_there_yet_its_disk_is_looked_at(tmp_path: Path) -> None:
    found = diskspace.looked(tmp_path / "not" / "yet")
    assert found is not None
    assert 0 < found.free <= found.total


# --- the store --------------------------------------------------------------------------------------------------------


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, known: str = "all") -> Any:
    """Nothing can be opened while this lasts. known: what can be read all the same."""

    def no(*_: object, **__: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "open_file", no)
        if known != "all":
            patch.setattr(disk, "GLIMPSED_MAX", 0)
        if known == "nothing":
            patch.setattr(disk, "read_marker", lambda _: None)
        yield


@pytest.mark.parametrize("known", ["all", "marker", "nothing"])
def test_what_was_taken_while_the_disk_refused_from_the_start_follows_what_it_had(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    before = filled(tmp_path)
    told: list[Any] = []
    homes: list[Any] = []
    with open_store(tmp_path, clock) as store:
        epoch, last = store.epoch, store.last_committed
    with refusing(monkeypatch, known):
        shut = open_store(tmp_path, clock)
        store = shut.__enter__()
        assert store.status()["state"] == "failing"
        found = store.recovery()
        assert (found.snapshot is not None, bool(list(found.items))) == ((known == "all"),) * 2
        store.on_committed.append(told.extend)
        store.on_home = lambda *its: homes.append(its)
        store.use_layouts([LAYOUT])
        store.put([frame(700)], [event(1)])
        store.put_snapshot(b"now", "{}")
        store.put([frame(701)])
        assert not asyncio.run(store._commit())
        assert store.pending(0, 9) is None
        assert told == []
    commit(store)
    assert [each.seq for each in told] == [last + 1, last + 2, last + 3]
    assert {each.payload(late=False).count(epoch.encode()) for each in told} == {1}
    assert homes == [(homes[0][0], {"id-1": (epoch, last + 2)})]
    after = payloads(due_of(store, 0, 10_000))
    assert after == before | payloads(told)
    shut.__exit__(None, None, None)
    with open_store(tmp_path, clock) as store:
        assert payloads(due_of(store, 0, 10_000)) == after
        assert store.epoch == epoch
        assert store.recovery().snapshot == b"now"


def test_a_disk_that_refused_for_long_from_the_start_finds_its_file_as_it_was(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = filled(tmp_path)
    with refusing(monkeypatch):
        shut = open_store(tmp_path, clock)
        store = shut.__enter__()
        store.use_layouts([LAYOUT])
        store.put([frame(700)])
        for _ in range(2 * journal.REOPENED_AFTER):
            assert not asyncio.run(store._commit())
    commit(store)
    assert len(due_of(store, 0, 10_000)) == len(before) + 1, "and no word of damage"
    assert not list(tmp_path.glob("*.damaged-*"))
    shut.__exit__(None, None, None)


def test_a_new_store_may_begin_in_memory_too(
    tmp_path: Path, clock: StandingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(monkeypatch):
        shut = open_store(tmp_path / "new", clock)
        store = shut.__enter__()
        store.use_layouts([LAYOUT])
        store.put([frame(1)], [event(1)])
        assert not asyncio.run(store._commit())
    commit(store)
    assert [each.seq for each in due_of(store, 0, 9)] == [1, 2]
    shut.__exit__(None, None, None)


@pytest.mark.parametrize("what", ["a file", "a folder for the journal"])
def test_what_a_person_has_to_mend_is_an_error_of_the_start(tmp_path: Path, clock: StandingClock, what: str) -> None:
    place = tmp_path / "data"
    if what == "a file":
        place.write_text("")
    else:
        (place / disk.FILE).mkdir(parents=True)
    with pytest.raises(OSError, match="is not a f"), open_store(place, clock):
        pass


# --- the agent --------------------------------------------------------------------------------------------------------


def scene(story: Callable[[Hall], Awaitable[None]]) -> Callable[[Path], None]:
    def play(folder: Path) -> None:
        async def main() -> None:
            async with hall(folder) as here:
                await story(here)

        asyncio.run(main())

    return play


async def measured_in_vain(here: Hall, device: Any, why: str) -> None:
    """While nothing can be kept: what goes on, and what is said."""
    device.registers[10] = 654
    await eventually(lambda: [each["signal"] for each in here.active("agent")] == ["disk"], 15)
    (alarm,) = here.active("agent")
    assert (alarm["severity"], alarm["kind"], alarm["value"]) == ("alarm", "health", None)
    assert why in alarm["message"], alarm["message"]
    assert "Free space" in alarm["advice"]
    await eventually(lambda: here.active("press"), 15)  # judged and warned of, though not yet committed
    health = await here.hears("health", lambda body: body["buffer"]["state"] == "failing", within_s=25)
    assert health["buffer"]["reason"]
    assert here.agent.process is not None
    assert here.agent.process.returncode is None


async def back(here: Hall) -> None:
    """The disk is well again: what was taken meanwhile is kept and told, within ten seconds."""
    began = time.monotonic()
    await here.event("press", "raised", within_s=BACK_WITHIN_S)
    print(f"back after {time.monotonic() - began:.1f} s")
    await here.event("agent", "cleared")
    told = [(each["event"], each["signal"], each["severity"]) for each in here.ear.events("agent")]
    assert told == [("raised", "disk", "alarm"), ("cleared", "disk", "alarm")], here.ear.events("agent")
    assert await here.agent.stop() == 0
    await here.whole()
    assert not {each["cause"] for each in here.ear.all("gaps")} & {"damage", "buffer_limit"}


def full_at_the_start(folder: Path) -> None:
    _at_the_start(folder, disks.memory_disk, disks.full, "full")


def without_inodes_at_the_start(folder: Path) -> None:
    _at_the_start(folder, lambda place: disks.memory_disk(place, "size=9m,nr_inodes=20"), disks.no_inodes, "inodes")


def read_only_at_the_start(folder: Path) -> None:
    _at_the_start(folder, lambda place: disks.ext4(place, folder / "card.img"), read_only, "read-only")


@contextmanager
def read_only(place: Path) -> Any:
    disks.remount(place, "ro")
    try:
        yield
    finally:
        disks.remount(place, "rw")


def _at_the_start(
    folder: Path, mount: Callable[[Path], None], fault: Callable[[Path], AbstractContextManager[Any]], why: str
) -> None:
    @scene
    async def story(here: Hall) -> None:
        mount(here.data_dir)
        async with picky({10: 500}) as device:
            here.write(here.plain({"plc": device.port}, {"press": press()}))
            with fault(here.data_dir):
                await here.agent.start()
                await measured_in_vain(here, device, why)
            await back(here)

    story(folder)


def full_while_it_runs(folder: Path) -> None:
    _while_it_runs(folder, disks.memory_disk, disks.full, "full")


def _while_it_runs(
    folder: Path, mount: Callable[[Path], None], fault: Callable[[Path], AbstractContextManager[Any]], why: str
) -> None:
    @scene
    async def story(here: Hall) -> None:
        mount(here.data_dir)
        async with picky({10: 500}) as device:
            here.write(here.plain({"plc": device.port}, {"press": press()}))
            await here.start()
            await here.hears("press/measurements", lambda body: body["values"])
            with fault(here.data_dir):
                await measured_in_vain(here, device, why)
            await back(here)

    story(folder)


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "fault",
    ["full_at_the_start", "without_inodes_at_the_start", "read_only_at_the_start", "full_while_it_runs"],
)
def test_the_agent_watches_on_when_its_disk_is(tmp_path: Path, fault: str) -> None:
    print(disks.alone(MODULE, fault, tmp_path))


def test_an_agent_whose_data_dir_can_never_be_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in its place")
    config = {
        "agent": {"id": "a", "site": "s", "data_dir": "./data"}, "mqtt": {"url": "mqtt://127.0.0.1:1"}, "web": None,
        "connections": {"plc": {"driver": "modbus", "url": "tcp://127.0.0.1:1"}}, "machines": {"press": press()},
    }  # fmt: skip
    (tmp_path / "agent.yaml").write_text(json.dumps(config))
    code, out, words = asyncio.run(command("run", str(tmp_path / "agent.yaml")))
    assert (code, out) == (2, "")
    assert str(tmp_path / "data") in words
    assert "Traceback" not in words
