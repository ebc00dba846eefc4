"""The daily export: each day once, also after down time, and what goes wrong is told and tried again."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent import config, exporter
from edge_agent.clock import SystemClock
from edge_agent.exporter import AFTER_US, DAY_US, Exporter, Target
from edge_agent.records import Layout
from edge_agent.store import disk
from edge_agent.store.journal import open_store
from tests.conftest import StandingClock
from tests.hall import Hall, Json, picky, played, press
from tests.test_export import FIRST, START, Recorder

PLAIN = """
agent: {id: a, data_dir: data}
mqtt: {url: "mqtt://127.0.0.1:1883"}
store: {history: {export: OUT}}
connections: {plc: {driver: modbus, url: "tcp://127.0.0.1:502"}}
machines: {press: {connection: plc, signals: {oil: {address: "holding:1", type: int16}}}}
"""
DAY = START // DAY_US * DAY_US
DAYS = ["2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"]


def store_of(folder: Path, days: int, start: int = START) -> StandingClock:
    """A row an hour for so many days from the start on; the clock stands at the last."""
    its = Recorder(folder, start)
    for _ in range(days * 24):
        its.write(*its.frames(FIRST, 1, 1, 3_600_000_000), layouts=(FIRST, Layout("pump", ("flow",), ())), move=False)
    return its.clock


class Asked:
    """Stands for the process."""

    def __init__(self, *faults: str | None) -> None:
        self.days: list[str] = []
        self.faults = list(faults)

    async def __call__(self, words: Sequence[str]) -> str | None:
        self.days.append(words[words.index("--from") + 1])
        return self.faults.pop(0) if self.faults else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    its = tmp_path_factory.mktemp("exported")
    store_of(its, 3)
    return its


@pytest.fixture
def target(folder: Path, tmp_path: Path) -> Target:
    return Target("hall2", folder, str(tmp_path))


def turned(clock: StandingClock, target: Target | None, asked: Asked) -> Exporter:
    its = Exporter(clock, asked)
    its.use(target)

    async def turn() -> None:
        await its._turn()

    asyncio.run(turn())
    return its


def test_each_day_goes_out_once_when_it_is_over(target: Target) -> None:
    clock, asked = StandingClock(DAY + 2 * DAY_US + AFTER_US - 1), Asked()
    its = turned(clock, target, asked)
    assert asked.days == DAYS[:1]
    assert its.status() == {"export": {"state": "ok", "through": DAYS[0]}}
    clock.move(1)
    turned(clock, target, asked)
    turned(clock, target, asked)
    assert asked.days == DAYS[:2]
    clock.move(300 * DAY_US)  # a long time off: what there is, and nothing of the days without any
    turned(clock, target, asked)
    assert asked.days == DAYS


def test_another_target_gets_everything_and_none_gets_nothing(target: Target) -> None:
    clock, asked = StandingClock(DAY + 10 * DAY_US), Asked()
    assert turned(clock, target, asked).status() == {"export": {"state": "ok", "through": DAYS[-1]}}
    turned(clock, Target(target.agent, target.data_dir, target.out + "/other"), asked)
    assert asked.days == 2 * DAYS
    assert turned(clock, None, asked).status() == {}
    assert asked.days == 2 * DAYS


def test_what_fails_is_told_and_tried_again_from_that_day_on(target: Target) -> None:
    clock, asked = StandingClock(DAY + 10 * DAY_US), Asked(None, "the share is gone")
    its = turned(clock, target, asked)
    assert its.status() == {
        "export": {"state": "failing", "through": DAYS[0], "reason": f"{DAYS[1]}: the share is gone"}
    }
    turned(clock, target, asked)
    assert asked.days == [*DAYS[:2], *DAYS[1:]]


def test_a_clock_that_stood_in_the_future_loses_no_day(target: Target) -> None:
    asked = Asked()
    exporter.remember(target, DAY + 4_000 * DAY_US)
    turned(StandingClock(DAY + 2 * DAY_US + 1), target, asked)
    assert asked.days == []
    turned(StandingClock(DAY + 3 * DAY_US + AFTER_US), target, asked)
    assert asked.days == []
    exporter.remember(target, DAY + 2 * DAY_US)
    turned(StandingClock(DAY + 3 * DAY_US + AFTER_US), target, asked)
    assert asked.days == [DAYS[2]]


@pytest.mark.parametrize("wrong", ["ts_from = -(1 << 62)", "ts_from = 1", "ts_to = (1 << 62)", "ts_from = NULL"])
def test_a_damaged_time_of_a_batch_makes_no_day_of_it(target: Target, tmp_path: Path, wrong: str) -> None:
    """Nor millions of them: they are looked for in the agent itself."""
    folder = tmp_path / "data"
    shutil.copytree(target.data_dir, folder)
    with contextlib.closing(sqlite3.connect(folder / disk.FILE)) as db, db:
        assert db.execute(f"UPDATE batches SET {wrong} WHERE id = (SELECT max(id) FROM batches)").rowcount
    now = START + 30 * DAY_US
    assert set(exporter.due(Target("hall2", folder, target.out), now)) <= set(exporter.due(target, now))


def test_where_nothing_was_taken_yet_nothing_is_due(tmp_path: Path) -> None:
    assert list(exporter.due(Target("a", tmp_path, "x"), START)) == []
    with open_store(tmp_path, StandingClock()):
        pass
    assert list(exporter.due(Target("a", tmp_path, "x"), START)) == []
    (tmp_path / exporter.FILE).write_text("[]")
    assert exporter.remembered(Target("a", tmp_path, "x")) is None


def test_a_process_of_its_own_writes_the_files_or_says_why_not(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    target = Target("hall2", folder, str(tmp_path / "out"))

    async def scene() -> None:
        assert await exporter.in_a_process(exporter.words_of(target, DAY + DAY_US)) is None
        assert await exporter.in_a_process(exporter.words_of(target, DAY - 50 * DAY_US)) is None, "an empty day is done"
        blocked = tmp_path / "file"
        blocked.write_text("no folder")
        words = await exporter.in_a_process(exporter.words_of(Target("hall2", folder, str(blocked)), DAY))
        assert words is not None
        assert str(blocked) in words
        assert "no such" in str(await exporter.in_a_process(exporter.words_of(Target("a", tmp_path / "x", "y"), DAY)))

    asyncio.run(scene())
    assert [each.parent.name for each in (tmp_path / "out").rglob("*.parquet")] == ["date=2026-11-21"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("lake", "{folder}/lake"), ("/data/lake", "/data/lake"), ("s3://bucket/lake", "s3://bucket/lake"), ("null", None)],
)
def test_the_configuration_names_a_folder_beside_it_or_a_url(tmp_path: Path, written: str, meant: str | None) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(PLAIN.replace("OUT", written))
    found = config.load(file).config
    assert found.store.history_export == (None if meant is None else meant.format(folder=tmp_path))
    assert config.unpack(config.pack(found)) == found


def test_a_password_in_the_url_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(PLAIN.replace("OUT", "sftp://me:secret@host/lake"))
    with pytest.raises(config.ConfigErrors) as refused:
        config.load(file)
    assert "store.history.export: a password cannot stand here" in str(refused.value)


@played
async def test_a_running_agent_exports_what_is_over_and_tells_it_in_its_health(here: Hall) -> None:
    """Rows of an earlier day, as its own history has them, go out; a target that cannot be is told."""
    pytest.importorskip("pyarrow")
    before = SystemClock().wall_us() - 5 * DAY_US
    store_of(here.data_dir, 1, before)
    async with picky({10: 500}) as device:
        for out in ("lake", "agent.log"):
            store = {"commit_every": "100ms", "history": {"export": f"./{out}"}}
            here.write(here.plain({"plc": device.port}, {"press": press()}, store=store))
            if out == "lake":
                await here.start()
            else:
                await here.ask("reload")
            done = await here.status(_is_ok if out == "lake" else _is_failing, 60.0)
            told = done["buffer"]["history"]["export"]
            if out == "lake":
                assert told["through"] >= exporter.name_of(before)
                found = list((here.data_dir.parent / "lake").rglob("part-agent-1-*.parquet"))
                assert {each.parent.name for each in found} >= {f"date={exporter.name_of(before)}"}
            else:
                assert "agent.log" in told["reason"]
    assert await here.agent.stop() == 0


def _told(body: Json) -> Json:
    return dict(body["buffer"].get("history", {}).get("export", {}))


def _is_ok(body: Json) -> bool:
    return _told(body).get("state") == "ok" and _told(body)["through"] is not None


def _is_failing(body: Json) -> bool:
    return _told(body).get("state") == "failing"
