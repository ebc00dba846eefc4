"""The real agent on a clock that is stepped under it, and that starts at 1970: a real device, a real broker."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_agent.clock import SystemClock
from tests import brokers
from tests.conftest import ROOT
from tests.system import ROOT_TOPIC, Agent, Ear, device

pytestmark = pytest.mark.timeout(150)
EVERY_S = 0.2
WAYS = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@dataclass
class Stepped(Agent):
    """An agent whose wall clock is what a file says; its monotonic clock is the machine's."""

    wall: Path = field(default_factory=Path)

    def set(self, text: str) -> None:
        """`+3600s` from the time that it is, or `@1970-01-01 00:01:00`, from where it goes on."""
        fresh = self.wall.with_suffix(".new")
        fresh.write_text(text + "\n", "ascii")
        fresh.replace(self.wall)

    async def start(self) -> None:
        self.log = self.config.with_suffix(".log")
        fake = {
            "LD_PRELOAD": str(WAYS[0]), "FAKETIME_TIMESTAMP_FILE": str(self.wall), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1", "TZ": "UTC",
        }  # fmt: skip
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_agent", "run", str(self.config),
                cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1", **fake},
            )  # fmt: skip


@dataclass
class Here:
    agent: Stepped
    broker: brokers.Mosquitto
    consumer: brokers.Consumer
    ear: Ear

    def rows(self) -> list[dict[str, Any]]:
        """Measurements in the order of seq, each once; one that came again must be as it was."""
        found: dict[int, dict[str, Any]] = {}
        for each in self.ear.all("press/measurements"):
            bare = {key: value for key, value in each.items() if key != "late"}
            assert found.setdefault(each["seq"], bare) == bare
        return [found[seq] for seq in sorted(found)]

    async def more(self, count: int) -> None:
        """So many rows with a value more than there are now."""
        wanted = len(self.values()) + count
        await self.ear.until(lambda: len(self.values()) >= wanted, 40)

    def values(self) -> list[dict[str, Any]]:
        return [each for each in self.rows() if each["values"]]


@asynccontextmanager
async def running(folder: Path, wall: str, with_broker: bool = True) -> AsyncIterator[Here]:
    async with device(_10=500) as plc, brokers.mosquitto() as broker, brokers.Consumer(broker.port) as consumer:
        plain = {
            "agent": {"id": "agent-1", "site": "hall", "timezone": "UTC", "data_dir": str(folder / "data")},
            "mqtt": {"url": broker.url, "root": ROOT_TOPIC},
            "store": {"commit_every": "100ms"},
            "connections": {"plc": {"driver": "modbus", "url": f"tcp://127.0.0.1:{plc.port}"}},
            "machines": {
                "press": {"signals": {"oil": {
                    "connection": "plc", "address": "holding:10", "type": "int16", "every": f"{EVERY_S * 1000:.0f}ms",
                    "norm": {"warning": {"high": 600}},
                }}}
            },
        }  # fmt: skip
        config = folder / "agent.yaml"
        config.write_text(yaml.safe_dump(plain), "utf-8")
        agent = Stepped(config, wall=folder / "wall")
        agent.set(wall)
        if not with_broker:
            broker.kill()
        await agent.start()
        try:
            yield Here(agent, broker, consumer, Ear(consumer))
        finally:
            if agent.process is not None and agent.process.returncode is None:
                await agent.kill()


def us(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


needs_faketime = pytest.mark.skipif(not WAYS, reason="libfaketime is not installed (Debian: faketime)")


@needs_faketime
def test_steps_of_an_hour_and_of_a_day_miss_and_double_nothing_and_raise_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "+0s") as here:
            await here.more(5)
            for wall in ("+3600s", "-86400s", "+0s"):
                here.agent.set(wall)
                await here.more(8)
            assert await here.agent.stop() == 0
            rows, gaps = here.values(), here.ear.all("gaps")
            numbers = sorted({each["seq"] for each in (*rows, *here.ear.events("agent"), *gaps)})
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), "nothing else was told, and all of it came"
            steps = [us(b["ts"]) - us(a["ts"]) for a, b in pairwise(rows)]
            assert sum(abs(step) > 60 for step in steps) == 3, "and the stamps follow the clock"
            # A busy machine may miss some beats of 200 ms, and says so; a step would miss thousands.
            assert all(gap["cause"] == "overload" and us(gap["to"]) - us(gap["from"]) < 60 for gap in gaps), gaps
            assert sum(gap["count"] for gap in gaps) < 300
            assert not here.ear.events("press")
            assert not any(each.get("late") for each in here.ear.all("press/measurements"))
            assert [e["event"] for e in here.ear.events("agent")] == ["raised"] * 3
            assert here.ear.events("agent")[0]["signal"] == "clock"
            assert here.ear.events("agent")[0]["message"].startswith(
                "Clock of this computer: it jumped forward by 60 min"
            )
            health = here.ear.last("health")
            assert health is not None
            assert (health["clock"]["state"], health["clock"]["steps"]) == ("stepped", 3)

    asyncio.run(main())


@needs_faketime
def test_a_start_at_1970_is_marked_and_what_waits_is_put_right_when_the_clock_is_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, "@1970-01-01 00:01:00") as here:
            await here.more(5)
            first = here.values()
            assert all(each["ts"].startswith("1970-01-01T00:0") for each in first)
            assert all(each["uncertain"] == {"oil": "clock"} for each in first)
            await here.ear.until(lambda: any(e["signal"] == "clock" for e in here.ear.events("agent")), 30)
            (raised,) = here.ear.events("agent")
            assert (raised["severity"], raised["uncertain"]) == ("alarm", "clock")
            here.broker.kill()
            heard = len(here.values())
            # Some readings must come while nobody hears them; how many does not matter, but a busy machine loses seconds.
            await asyncio.sleep(5.0)
            set_at = SystemClock().wall_us() / 1e6
            here.agent.set("+0s")
            await asyncio.sleep(1.0)  # the same
            await here.consumer.back(here.broker)
            await here.more(20)
            assert await here.agent.stop() == 0
            rows = here.values()
            fresh = [each for each in rows[heard:] if each["ts"] > "2026"]
            assert any(us(each["ts"]) < set_at - 0.5 for each in fresh), (
                "what waited has the time at which it was taken"
            )
            assert not any("uncertain" in each for each in fresh)
            assert all("uncertain" in each for each in rows if each["ts"] < "2026")
            stamps = [us(each["ts"]) for each in fresh]
            assert stamps == sorted(stamps), "the order by seq is the order in time"
            last = [each for each in here.ear.events("agent") if each["signal"] == "clock"][-1]
            assert last["event"] == "deescalated", "it has stepped; that stands for ten minutes as a warning"
            assert last["since"] > "2026", "and what stood has moved with the clock"

    asyncio.run(main())


@needs_faketime
@pytest.mark.parametrize("ends", ["killed", "stopped"])
def test_a_clock_set_back_while_the_agent_was_away_leaves_no_down_time_untold(tmp_path: Path, ends: str) -> None:
    """It is found earlier than the journal's end, and so nobody has set it; how long nobody looked is known all the same."""

    async def main() -> None:
        async with running(tmp_path, "+0s") as here:
            await here.more(5)
            for wall in ("-3600s", "-7200s"):
                await (here.agent.kill() if ends == "killed" else here.agent.stop())
                before = len(here.ear.all("gaps"))
                here.agent.set(wall)
                await asyncio.sleep(0.8)  # down time; how much does not matter
                await here.agent.start()
                await here.ear.until(lambda before=before: len(here.ear.all("gaps")) > before, 40)
                await here.more(5)
            assert await here.agent.stop() == 0
            gaps = [each for each in here.ear.all("gaps") if each["cause"] == "restart"]
            assert len({each["seq"] for each in gaps}) == len(gaps) == 2
            for gap in gaps:
                span_s = us(gap["to"]) - us(gap["from"])
                assert gap["uncertain"] == "clock"
                assert 0.6 <= span_s < 60, "as long as it was, by whatever clock"
                assert abs(gap["count"] - span_s / EVERY_S) <= 2

    asyncio.run(main())


@needs_faketime
def test_a_monotonic_clock_that_steps_too_is_what_this_rig_must_not_have(tmp_path: Path) -> None:
    """The negative control of the rig: by libfaketime's default both clocks move, and a test of steps would say nothing."""
    code = "import time,sys,pathlib;a=time.monotonic();pathlib.Path(sys.argv[1]).write_text('+3600s\\n');print(time.monotonic()-a)"

    async def gone(**more: str) -> float:
        (tmp_path / "wall").write_text("+0s\n", "ascii")
        fake = {"LD_PRELOAD": str(WAYS[0]), "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "wall"), "FAKETIME_NO_CACHE": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            str(tmp_path / "wall"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **fake, **more},
        )
        out, _ = await process.communicate()
        return float(json.loads(out))

    assert asyncio.run(gone(FAKETIME_DONT_FAKE_MONOTONIC="1")) < 600
    assert asyncio.run(gone()) > 3_000
