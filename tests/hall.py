"""A hall for tests of the whole: a broker, somebody who listens to it, a folder with a configuration, an agent to start.

Rule: the agent is seen from outside only. The devices are those of `tests.system`, in the test's own loop.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import control
from tests import brokers, system
from tests.brokers import Consumer, Mosquitto
from tests.conftest import eventually
from tests.system import ROOT_TOPIC, Agent, Device, Ear

Json = dict[str, Any]
ILLEGAL_ADDRESS = 2
REFUSED_FROM = 900
NUMBERED = ("measurements", "warnings", "gaps")


@dataclass
class Picky(Device):
    """A device that has no registers from REFUSED_FROM on, and says so."""

    def _answer(self, function: int, first: int, count: int) -> bytes:
        if first + count > REFUSED_FROM:
            return bytes([function | 0x80, ILLEGAL_ADDRESS])
        return super()._answer(function, first, count)


@asynccontextmanager
async def picky(
    registers: Mapping[int, int] | None = None, coils: Mapping[int, int] | None = None
) -> AsyncIterator[Picky]:
    one = Picky(dict(registers or {}), dict(coils or {}))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@dataclass
class Hall:
    """What a test needs; the agent runs once it is started, and is killed at the end if it still does."""

    broker: Mosquitto
    consumer: Consumer
    ear: Ear
    agent: Agent

    @property
    def data_dir(self) -> Path:
        return self.agent.config.parent / "data"

    # --- the configuration ----------------------------------------------------------------------------------------

    def plain(self, connections: Mapping[str, int], machines: Json, **more: object) -> Json:
        """A configuration of Modbus connections (name: port) and machines."""
        return {
            "agent": {"id": "agent-1", "site": "hall", "timezone": "UTC", "data_dir": "./data"},
            "mqtt": {"url": self.broker.url},
            "web": {"listen": "127.0.0.1:0"},
            "store": {"commit_every": "100ms"},
            "connections": {
                name: {"driver": "modbus", "url": f"tcp://127.0.0.1:{port}", "timeout": "300ms"}
                for name, port in connections.items()
            },
            "machines": machines,
            **more,
        }

    def write(self, config: object) -> str:
        """Put the configuration in its place, whole; a text as it is, anything else as JSON, which is YAML too."""
        text = config if isinstance(config, str) else json.dumps(config, indent=1, ensure_ascii=False)
        fresh = self.agent.config.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.agent.config)
        return text

    # --- the agent ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the agent; returns once it answers."""
        await self.agent.start()
        pid = self.pid
        end = asyncio.get_running_loop().time() + 20.0
        while await self._answering() != pid:
            assert self.agent.process is not None
            assert self.agent.process.returncode is None, self.agent.log.read_text()
            assert asyncio.get_running_loop().time() < end, self.agent.log.read_text()
            await asyncio.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self.agent.process is not None
        return self.agent.process.pid

    async def _answering(self) -> int | None:
        """Who answers: also one that was killed leaves its socket behind."""
        try:
            found: int | None = (await self.ask("status")).get("pid")
        except OSError:
            return None
        return found

    async def ask(self, command: str) -> Json:
        return dict(await asyncio.to_thread(control.ask, self.data_dir, {"command": command}, 10.0))

    async def status(self, fits: Callable[[Json], object], within_s: float = 15.0) -> Json:
        """What the agent says of itself, once it fits."""
        end = asyncio.get_running_loop().time() + within_s
        while not fits(found := await self.ask("status")):
            assert asyncio.get_running_loop().time() < end, found
            await asyncio.sleep(0.02)
        return found

    async def http(self, path: str, body: object | None = None) -> tuple[int, Json]:
        """(HTTP status, JSON) of a GET, or of a POST when there is a body."""
        url = str((await self.ask("status"))["web"]).rstrip("/") + path
        return await asyncio.to_thread(_fetched, url, body)

    # --- what is heard --------------------------------------------------------------------------------------------

    async def hears(
        self, topic: str, fits: Callable[[Json], object] = bool, *, after: int = 0, within_s: float = 15.0
    ) -> Json:
        """The first message of a topic that fits, from number `after` on."""

        def found() -> Json | None:
            return next((body for body in self.ear.all(topic)[after:] if fits(body)), None)

        await self.ear.until(found, within_s)
        first = found()
        assert first is not None
        return first

    async def event(self, machine: str, event: str, within_s: float = 15.0, **more: object) -> Json:
        """The first warning event of this name that has these fields."""
        return await self.hears(
            f"{machine}/warnings",
            lambda body: body["event"] == event and all(body[key] == value for key, value in more.items()),
            within_s=within_s,
        )

    def active(self, machine: str) -> list[Json]:
        return list((self.ear.last(f"{machine}/active") or {"active": []})["active"])

    def numbered(self) -> dict[tuple[str, int], list[bytes]]:
        """Every payload that has a number, by (epoch, seq)."""
        found: dict[tuple[str, int], list[bytes]] = {}
        for each in list(self.consumer.heard):
            if each.payload and each.topic.rpartition("/")[2] in NUMBERED:
                body = json.loads(each.payload)
                found.setdefault((body["epoch"], body["seq"]), []).append(each.payload)
        return found

    async def whole(self, epoch: str | None = None) -> None:
        """Wait until every number from 1 to the last was heard; repeats are the same but for `late`."""

        def complete() -> bool:
            numbers = sorted(seq for its, seq in self.numbered() if epoch in (None, its))
            return bool(numbers) and numbers == list(range(1, len(numbers) + 1))

        await eventually(complete, 15.0)
        for repeats in self.numbered().values():
            assert len({each.replace(b',"late":true', b"") for each in repeats}) == 1, repeats


def _fetched(url: str, body: object | None) -> tuple[int, Json]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@asynccontextmanager
async def hall(folder: Path) -> AsyncIterator[Hall]:
    async with brokers.mosquitto() as broker, Consumer(broker.port, f"{ROOT_TOPIC}/#") as consumer:
        first = Agent(folder / "agent.yaml", log=folder / "agent.log")
        here = Hall(broker, consumer, Ear(consumer), first)
        try:
            yield here
        except BaseException:
            for agent in {first.log: first, here.agent.log: here.agent}.values():
                if agent.log.is_file():
                    print(agent.log.read_text())
            raise
        finally:
            for agent in (first, here.agent):  # a scene may have put another one in its place
                if agent.process is not None and agent.process.returncode is None:
                    await agent.kill()


def played(scene: Callable[[Hall], Awaitable[None]]) -> Callable[[Path], None]:
    """Makes a test of a scene in a hall."""

    def test(tmp_path: Path) -> None:
        async def play() -> None:
            async with hall(tmp_path) as here:
                await scene(here)

        asyncio.run(play())

    test.__name__, test.__doc__ = getattr(scene, "__name__", "scene"), scene.__doc__
    return test


def press(connection: str = "plc", **norm: object) -> Json:
    """A machine with one signal (holding:10, tenths of a degree) whose norm is quick enough for a test."""
    band = {"warning": {"low": 20, "high": 60}, "alarm": {"low": 10, "high": 70}, "deadband": 1}
    return {
        "connection": connection,
        "every": "200ms",
        "signals": {
            "oil": {
                "title": "Oil temperature",
                "address": "holding:10",
                "type": "int16",
                "scale": 0.1,
                "unit": "°C",
                "norm": {**band, "on_delay": "400ms", "off_delay": "400ms", **norm},
                "advice": {"en": "Check the oil cooler."},
            }
        },
    }


command = system.command
