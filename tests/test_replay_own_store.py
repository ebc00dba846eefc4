"""Replay of the agent's own store: what the daemon told, once more, event by event."""

import asyncio
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent import agent, config, judge, resume, snapshot
from edge_agent.__main__ import main
from edge_agent.board import Board
from edge_agent.clock import AgentTime
from edge_agent.contract import Frame, Quality
from edge_agent.pipeline import Pipeline
from edge_agent.plant import compile_plant
from edge_agent.plugins import detectors
from edge_agent.records import Event
from edge_agent.store.history import open_history
from edge_agent.store.journal import open_store
from tests.conftest import StandingClock
from tests.test_store import committed

SECOND = 1_000_000
CONFIG = """
agent: {{id: a, data_dir: {folder}, language: en}}
mqtt: {{url: "mqtt://127.0.0.1:1"}}
connections: {{plc: {{driver: modbus, url: "tcp://127.0.0.1:1"}}}}
machines:
  press:
    connection: plc
    states: {{running: speed > 50, stopped: speed <= 50}}
    settle: 3s
    signals:
      speed: {{address: "input:0", type: uint16, unit: 1/min}}
      oil:
        address: "input:1"
        type: uint16
        unit: °C
        valid: {{high: 150}}
        norm: {{warning: {{high: {high}}}, alarm: {{high: 80}}, deadband: 1, on_delay: 3s, off_delay: 2s, stale: 10s}}
      double: {{formula: oil * 2, unit: °C, norm: {{warning: {{high: 150}}}}}}
  pump:
    connection: plc
    signals:
      level: {{address: "input:2", type: uint16, unit: mm, norm: {{warning: {{low: 10}}, acknowledge: required}}}}
{more}
"""
SPARE = '      spare: {address: "input:9", type: uint16, unit: mm, norm: {warning: {high: 5}}}'


class Daemon:
    """Pollers aside, an agent's path with its store and history, on a clock that stands until it is moved."""

    def __init__(self, path: Path, clock: StandingClock, seed: int) -> None:
        self.path, self.clock, self.rng = path, clock, np.random.default_rng(seed)
        self.oil, self.level, self.told = 60.0, 20.0, list[dict[str, Any]]()

    @contextlib.contextmanager
    def life(self) -> Iterator[None]:
        """From a start to a crash, or to a stop in good order."""
        loaded = config.load(self.path)
        folder = loaded.config.agent.data_dir
        with open_store(folder, self.clock) as self.store, open_history(folder, self.clock) as self.history:
            self.store.keep_for_history()
            self.store.on_committed.append(self._committed)
            recovery = self.store.recovery()
            plant = compile_plant(loaded.config, detectors())
            text = config.pack(loaded.config)
            old = plant
            if recovery.config_json is not None and recovery.config_json != text:
                old = compile_plant(config.unpack(recovery.config_json), detectors())
            state = resume.replayed(old, recovery, {})
            orphans: list[Event] = []
            if old is not plant:
                state, orphans = snapshot.migrate(old, state, plant)
            start = self.clock.wall_us() if recovery.last_t_us is None else recovery.last_t_us + 7 * SECOND
            self.time = AgentTime(self.clock, start)
            self.store.use_layouts([machine.layout for machine in plant.machines])
            self.store.save_config(text, loaded.sha)
            self.board = board = Board()
            board.use(agent._board_machines(plant))
            self.pipeline = Pipeline(
                plant, state, text, loaded.sha, self.store, board, self.clock, self.time, lambda *_: None
            )
            self.pipeline.begin(orphans)
            if old is not plant:
                self.pipeline.snapshot()
            if recovery.last_t_us is not None:
                self.pipeline.resume(None)
            yield

    def _committed(self, found: Any) -> None:
        self.told += [json.loads(each.payload(late=False)) for each in found if each.kind == "warnings"]

    async def seconds(self, count: int) -> None:
        for second in range(count):
            self.clock.move(SECOND)
            for machine in self.pipeline.plant.machines:
                if not machine.own and self.rng.random() > 0.05:
                    self.pipeline.take([self._frame(machine)])
            self.pipeline.flush()
            self.pipeline.turn()
            self.pipeline.flush()
            if self.rng.random() < 0.02:
                self._acknowledge()
            if second % 20 == 19:
                await committed(self.store)
            if second % 60 == 59:
                assert await self.history.turn(self.store), self.history.fault
        await committed(self.store)

    def _frame(self, machine: Any) -> Frame:
        self.oil = float(np.clip(self.oil + self.rng.normal(0, 3), 40, 160))
        self.level = float(np.clip(self.level + self.rng.normal(0, 3), 0, 40))
        known = {"oil": self.oil, "level": self.level, "speed": 100.0 * (self.rng.random() > 0.05), "spare": self.level}
        values = np.array([[known.get(signal.name, np.nan) for signal in machine.signals]])
        quality = np.where(np.isnan(values), np.uint8(Quality.HOLD), np.uint8(Quality.GOOD))
        for code in (Quality.TIMEOUT, Quality.HOLD):
            hit = self.rng.random(values.shape) < 0.03
            quality[hit], values[hit] = code, np.nan
        now, wall = self.time.now_us(), self.clock.wall_us()
        at = np.full(values.shape, wall - 3 * SECOND) if self.rng.random() < 0.05 else None
        return Frame(machine.name, np.array([now]), np.array([wall]), values, quality, at)

    def _acknowledge(self) -> None:
        standing = [e for its in judge.active(self.pipeline.plant, self.pipeline.state).values() for e in its]
        if standing:
            with contextlib.suppress(ValueError):
                self.pipeline.acknowledge(standing[0].id, "Ada", "seen")

    def use(self) -> None:
        """A changed file is taken over."""
        loaded = config.load(self.path)
        plant = compile_plant(loaded.config, detectors())
        self.board.use(agent._board_machines(plant))
        self.pipeline.use(plant, config.pack(loaded.config), loaded.sha)


def written(folder: Path, high: int, more: str = "") -> Path:
    path = folder / "agent.yaml"
    path.write_text(CONFIG.format(folder=folder / "data", high=high, more=more))
    return path


def plain(events: list[dict[str, Any]]) -> list[str]:
    """Equal but for epoch, seq and id; in the order of the text, since machines are judged side by side."""
    return sorted(
        json.dumps({k: v for k, v in e.items() if k not in ("epoch", "seq", "id")}, sort_keys=True) for e in events
    )


def replayed(config_path: Path, data: Path, *more: str) -> list[dict[str, Any]]:
    out = config_path.parent / "out.jsonl"
    assert main(["replay", str(config_path), str(data), "--out", str(out), "--json", *more]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


async def a_story(daemon: Daemon, folder: Path) -> None:
    """Starts, a stop, a crash, a changed file while it runs and one while it does not."""
    with daemon.life():
        await daemon.seconds(400)
        written(folder, 62, SPARE)
        daemon.use()
        await daemon.seconds(300)
    with daemon.life():
        await daemon.seconds(250)
        written(folder, 66)
    with daemon.life():
        await daemon.seconds(200)
        daemon.pipeline.close()
        await committed(daemon.store)


@pytest.mark.parametrize("seed", [1, 2])
def test_replay_of_the_own_store_gives_the_daemons_events(
    tmp_path: Path, clock: StandingClock, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, 65)
    daemon = Daemon(path, clock, seed)
    asyncio.run(a_story(daemon, tmp_path))
    kinds = {(event["event"], event["kind"]) for event in daemon.told}
    assert {("raised", "high"), ("cleared", "high"), ("escalated", "high"), ("acknowledged", "low")} <= kinds
    found = replayed(path, tmp_path / "data")
    assert plain(found) == plain(daemon.told)
    assert "configurations" in capsys.readouterr().err
    ids = {(one["machine"], one["signal"], one["ts"], one["event"], one["kind"]): one["id"] for one in found}
    pairs = {(e["id"], ids[e["machine"], e["signal"], e["ts"], e["event"], e["kind"]]) for e in daemon.told}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}), (
        "ids do not stand for the same warnings"
    )
    assert [one["seq"] for one in found] == list(range(1, len(found) + 1))
    assert {one["epoch"] for one in found} == {"replay"}
    for rows in ("1", "7", "100"):
        assert replayed(path, tmp_path / "data", "--rows", rows) == found


def test_another_configuration_is_asked_what_it_would_have_given(
    tmp_path: Path, clock: StandingClock, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, 65)
    daemon = Daemon(path, clock, 3)

    async def story() -> None:
        with daemon.life():
            await daemon.seconds(300)

    asyncio.run(story())
    here = replayed(path, tmp_path / "data")
    assert plain(here) == plain(daemon.told)
    assert "is not what the agent ran with" not in capsys.readouterr().err
    written(tmp_path, 41, SPARE)
    other = replayed(path, tmp_path / "data")
    assert len(other) > 0
    assert {e["limit"] for e in other if e["signal"] == "oil" and e["severity"] == "warning"} <= {41.0, None}
    told = capsys.readouterr().err
    assert "never read: spare" in told
    assert f"{path} is not what the agent ran with: the past is judged as {path} says" in told


def test_the_file_of_an_agent_that_has_moved_is_still_its_own(
    tmp_path: Path, clock: StandingClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its past has two configurations; in another folder, with another broker, each part is still judged by its own."""
    path = written(tmp_path, 65)
    daemon = Daemon(path, clock, 4)

    async def story() -> None:
        with daemon.life():
            await daemon.seconds(200)
            written(tmp_path, 62)
            daemon.use()
            await daemon.seconds(200)

    asyncio.run(story())
    there = tmp_path / "elsewhere"
    there.mkdir()
    (tmp_path / "data").rename(there / "data")
    text = written(there, 62).read_text()
    (there / "agent.yaml").write_text(re.sub('mqtt://[^"}, ]+', "mqtt://elsewhere", text))
    assert plain(replayed(there / "agent.yaml", there / "data")) == plain(daemon.told)
    assert "each part by the one of its time" in capsys.readouterr().err


def test_a_store_that_is_none_or_empty_is_told_in_words(
    tmp_path: Path, clock: StandingClock, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, 65)
    (tmp_path / "data").mkdir()
    assert main(["replay", str(path), str(tmp_path / "data")]) == 2
    assert "is not the data folder of an agent" in capsys.readouterr().err
    with open_store(tmp_path / "data", clock):
        pass
    assert main(["replay", str(path), str(tmp_path / "data")]) == 2
    assert "holds no readings yet" in capsys.readouterr().err
    (tmp_path / "data" / "journal.db").write_bytes(b"no database at all, but long enough to look like one" * 20)
    assert main(["replay", str(path), str(tmp_path / "data")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_once(
    tmp_path: Path, clock: StandingClock, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, 65)
    with open_store(tmp_path / "data", clock):
        pass
    out = tmp_path / "none" / "events.jsonl"
    assert main(["replay", str(path), str(tmp_path / "data"), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"edge-agent: {out}: cannot be written: No such file or directory\n"


@pytest.mark.root
def test_a_folder_that_may_not_be_searched_is_told_in_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to others
        folder = Path(name)
        folder.chmod(0o755)
        path = written(folder, 65)
        (folder / "closed" / "data").mkdir(mode=0o700, parents=True)
        (folder / "closed").chmod(0o700)
        main(["replay", str(path), str(folder / "closed")])  # as root first: its modules may be closed to others
        capsys.readouterr()
        os.seteuid(65534)
        try:
            for data in (folder / "closed", folder / "closed" / "data"):
                assert main(["replay", str(path), str(data)]) == 2
                (line,) = capsys.readouterr().err.splitlines()
                assert line.startswith(f"edge-agent: {data}")
                assert line.endswith("Permission denied; run it as the agent's user, or as root")
        finally:
            os.seteuid(0)
