"""A world for the whole agent on the virtual clock: devices, a broker, a disk and two clocks, all of one seed.

Rule 1: the agent is the real one, from its file to its folder and its commit thread; only what lies outside of it is
simulated: the drivers' devices (a driver of the registry) and the line to the broker (`mqtt.Link`'s place).
Rule 2: the same seed gives the same run, byte for byte: what is random is drawn from the world's dice, in the order of
events. Rule 3: the world counts for itself what was due, and never asks the agent.
A life is one start of the agent; a life that is cut leaves its folder as it lay there at that instant.
"""

import asyncio
import copy
import gc
import hashlib
import json
import math
import os
import random
import re
import shutil
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from pydantic import BaseModel

from edge_agent import agent
from edge_agent.contract import Clock, DeviceSilent, Ints, Point, Quality, Readings, Session
from edge_agent.mqtt import ACK_S, FAILURE, LinkSettings, LinkState
from edge_agent.pipeline import TICK_EVERY_S
from edge_agent.plugins import Plugins
from edge_agent.publisher import ABOUT_THE_MESSAGE
from edge_agent.store import disk
from tests.virtual import START_US, VirtualLoop

SECOND = 1_000_000
HOUR, DAY = 3_600 * SECOND, 86_400 * SECOND
WALL_US = 1_795_000_000_000_000
"""UTC when a world begins; like its monotonic clock a whole multiple of every period."""
ROOT_TOPIC = "edge/site/sim"
LATE = b',"late":true}'
NUMBERED = ("measurements", "warnings", "gaps")
UNCOPIED = shutil.ignore_patterns("*-shm", "control.sock", "lock")
BROKER_LOOKS_S = 10.0
KEPT_READS = 20_000
"""Reads of a device that are remembered for comparing."""
RSS = re.compile(rb'"(rss_)?mb":[0-9.]+')
"""The figures of a payload that are not the simulation's: memory, and files in which the path of a folder is packed."""


# --- what the world is made of ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signal:
    """A point of a device: it swings around `middle` by `swing` once in `wave_s`. high, low: of its norm, None: no limit."""

    name: str
    every_s: int
    middle: float = 50.0
    swing: float = 12.0
    wave_s: float = 900.0
    noise: float = 0.5
    high: float | None = 60.0
    low: float | None = None
    deadband: float = 1.0
    on_s: float = 0.0
    off_s: float = 0.0


@dataclass(slots=True)
class Device:
    """One device, its line and its machine, which have one name. silent, late_s, lie: what is wrong with it now.

    lie: an answer that no device may give: "shape", "quality", "raise"; or "value", which nobody can know for a lie.
    """

    name: str
    signals: tuple[Signal, ...]
    salt: int
    dice: random.Random
    """Its own: what it answers hangs on nothing else."""
    silent: bool = False
    late_s: float = 0.0
    lie: str = ""
    opened: int = 0
    reads: int = 0
    faults: int = 0
    """Reads and openings that failed for a reason of the device."""
    held: deque[tuple[int, int, dict[str, float]]] = field(default_factory=lambda: deque(maxlen=KEPT_READS))
    """(true µs, wall µs, values by name) of every answer."""

    def value(self, signal: Signal, at_us: int) -> float:
        """What it holds then; no two instants are alike."""
        grain = zlib.crc32(struct.pack("<qqq", self.salt, hash_of(signal.name), at_us)) / 2**32 - 0.5
        turn = 2 * math.pi * (at_us / 1e6 / signal.wave_s + (self.salt % 97) / 97)
        return signal.middle + signal.swing * math.sin(turn) + signal.noise * grain

    def rows_due(self, after_us: int, until_us: int) -> int:
        """Beats in (after, until], of the true clock: one that several periods share is one row."""
        beats: set[int] = set()
        for every in {signal.every_s * SECOND for signal in self.signals}:
            beats.update(range((after_us // every + 1) * every, until_us + 1, every))
        return len(beats)


def hash_of(text: str) -> int:
    """The same in every process."""
    return zlib.crc32(text.encode())


class _Connection(BaseModel):
    device: str


class _Address(BaseModel):
    address: str


class Life:
    """One start of the agent. What belongs to a life that is over reaches nobody any more."""

    def __init__(self, number: int) -> None:
        self.number, self.alive = number, True


class Devices:
    """The driver `sim`: opens the world's devices."""

    Connection: type[BaseModel] = _Connection
    Address: type[BaseModel] = _Address
    inherited: frozenset[str] = frozenset()

    def __init__(self, world: "World | None" = None) -> None:
        self._world = world

    def open(
        self, name: str, connection: Any, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        assert self._world is not None
        return self._open(self._world, self._world.devices[connection.device], points, clock)

    @asynccontextmanager
    async def _open(
        self, world: "World", device: Device, points: Sequence[Point], clock: Clock
    ) -> AsyncIterator[Session]:
        life = world.life
        await asyncio.sleep(device.dice.uniform(0.001, 0.02))
        if device.silent or not life.alive:
            device.faults += 1
            raise DeviceSilent(f"{device.name} does not accept a connection")
        device.opened += 1
        yield _Line(world, life, device, points, clock)


class _Line:
    """A session with one device."""

    def __init__(self, world: "World", life: Life, device: Device, points: Sequence[Point], clock: Clock) -> None:
        self._world, self._life, self._device, self._clock = world, life, device, clock
        self.use(points)

    def use(self, points: Sequence[Point]) -> None:
        names = {signal.name: signal for signal in self._device.signals}
        self._signals = [names[point.settings.address] for point in points]

    def explain(self, point: int) -> str:
        return f"{self._signals[point].name} did not answer"

    def counters(self) -> dict[str, int | float]:
        return {"requests": self._device.reads}

    async def read(self, due: Ints) -> Readings:
        device, world = self._device, self._world
        await asyncio.sleep(device.dice.uniform(0.0005, 0.01) + device.late_s)
        if device.silent or not self._life.alive:
            device.faults += 1
            await asyncio.sleep(1.0)
            raise DeviceSilent("no answer", Quality.TIMEOUT)
        if device.lie:
            device.faults += 1
            return self._lied(due)
        device.reads += 1
        now, wall = world.now_us, self._clock.wall_us()
        chosen = [self._signals[point] for point in due.tolist()]
        values = {signal.name: device.value(signal, now) for signal in chosen}
        device.held.append((now, wall, values))
        count = len(chosen)
        return Readings(
            np.array(list(values.values()), dtype=np.float64),
            np.zeros(count, dtype=np.uint8),
            np.full(count, wall, dtype=np.int64),
        )

    def _lied(self, due: Ints) -> Readings:
        count = len(due)
        wrong = np.full(count, 66.6)
        good, wall = np.zeros(count, dtype=np.uint8), np.full(count, self._clock.wall_us(), dtype=np.int64)
        if self._device.lie == "shape":
            return Readings(np.full(count + 1, 66.6), good, wall)
        if self._device.lie == "value":
            return Readings(wrong, good, wall)
        if self._device.lie == "quality":
            return Readings(wrong, np.full(count, 0x4F, dtype=np.uint8), wall)
        raise ArithmeticError("a driver with a bug")


# --- the clocks ------------------------------------------------------------------------------------------------------


class WorldClock:
    """The agent's clocks in this world; also for its threads."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.only_wall = False
        """There is one clock only, and it is stepped: what an agent would have that does not keep them apart."""

    def monotonic_us(self) -> int:
        return self._world.wall_us if self.only_wall else self._world.now_us

    def wall_us(self) -> int:
        return self._world.wall_us

    def cpu_s(self) -> float:
        return 0.0


# --- the broker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """A message as the consumer got it. at_us: true time. connection: the how manieth of the agent's brought it."""

    at_us: int
    topic: str
    payload: bytes
    connection: int


@dataclass(slots=True)
class Broker:
    """The broker and a consumer that misses nothing. up, refuses, loses_acks: what is wrong with it now.

    refuses: (a word of the topic, reason code) of messages that get a negative PUBACK.
    """

    dice: random.Random
    up: bool = True
    refuses: tuple[str, int] | None = None
    loses_acks: bool = False
    slow_s: float = 0.0
    receive_max: int = 65_535
    packet_max: int = 268_435_455
    links: list["SimLink"] = field(default_factory=list)
    retained: dict[str, bytes] = field(default_factory=dict)
    on_message: Callable[[str, bytes], None] = lambda _topic, _payload: None
    on_retained: Callable[[str, bytes], None] = lambda _topic, _payload: None
    forgives: bool = False
    """A refusal is told as a success, as a client that does not read reason codes would have it."""
    swallows: int = 0
    """So many messages more are acknowledged and never reach the consumer."""
    refused: int = 0
    turned_down: set[tuple[str, bytes]] = field(default_factory=set)
    """Topic and payload, up to its end, of what it has refused at some time."""
    lost_acks: int = 0
    connections: int = 0

    def fall(self) -> None:
        """It is gone, with every connection."""
        self.up = False
        for link in list(self.links):
            link.cut("connection lost")

    def relent(self) -> None:
        """It refuses nothing any more. A message that was called malformed is tried again over another connection only."""
        _, reason = self.refuses or ("", 0)
        self.refuses = None
        if reason in ABOUT_THE_MESSAGE and self.up:
            self.fall()
            self.up = True

    def verdict(self, topic: str) -> int:
        word, reason = self.refuses or ("", 0)
        return reason if word and word in topic else 0

    def take(self, topic: str, payload: bytes, retain: bool) -> None:
        """It has the message, and so has the consumer."""
        if not retain:
            if self.swallows:
                self.swallows -= 1
            else:
                self.on_message(topic, payload)
        elif payload:
            self.retained[topic] = payload
            self.on_retained(topic, payload)
        else:
            self.retained.pop(topic, None)
            self.on_retained(topic, payload)


@dataclass(slots=True)
class _Message:
    token: int
    topic: str
    payload: bytes
    retain: bool
    sent_us: int


class SimLink:
    """In the place of mqtt.Link, and held to the same promises: no word before `run` connected it, one acknowledgement a
    message at the most and in order, none after `on_lost`, the will when it was cut and none after a good-bye.
    """

    def __init__(
        self, broker: Broker, life: Life, settings: LinkSettings, will: tuple[str, bytes], clock: Clock
    ) -> None:
        self._broker, self._life, self._clock = broker, life, clock
        self._settings, self._will = settings, will
        self.on_connected: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_ack: Callable[[int, int], None] = lambda _token, _reason: None
        self.state = LinkState.CONNECTING
        self.version: str | None = None
        self.reason = ""
        self.code: int | None = None
        self.last_loss: tuple[int, str] | None = None
        self.attempts = 0
        self.since_us: int | None = None
        self.url = settings.urls[0]
        self.receive_max, self.packet_max = 65_535, 268_435_455
        self._closing, self._over = asyncio.Event(), asyncio.Event()
        self._on_the_way: deque[_Message] = deque()
        self._unanswered: deque[_Message] = deque()
        self._goodbye = False
        self._due_s = 0.0

    @property
    def connected(self) -> bool:
        return self.state is LinkState.CONNECTED

    @property
    def settings(self) -> LinkSettings:
        return self._settings

    def use(self, settings: LinkSettings) -> None:
        self._settings = settings

    async def run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._turn(LinkState.CONNECTING)
            failures = 0 if await self._one() else failures + 1
            self._turn(LinkState.BACKING_OFF)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._broker.dice.uniform(0.5, 1.0) * min(60.0, 2.0 ** min(failures, 6))):
                    await self._closing.wait()

    async def _one(self) -> bool:
        """One connection; whether there was one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._broker.dice.uniform(0.002, 0.05)):
                await self._closing.wait()
        if not self._broker.up or not self._life.alive or self._closing.is_set():
            self.reason = "not reached"
            return False
        self._over.clear()
        self._goodbye = False
        self.receive_max, self.packet_max = self._broker.receive_max, self._broker.packet_max
        self.version, self.reason = "5", ""
        self._broker.links.append(self)
        self._broker.connections += 1
        self._turn(LinkState.CONNECTED)
        self.on_connected()
        try:
            await self._watch()
        finally:
            self.cut("cancelled")
            self.last_loss = self._clock.wall_us(), self.reason
            self._turn(LinkState.CONNECTING)
            self.on_lost()
        return True

    async def _watch(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(BROKER_LOOKS_S):
                    await self._over.wait()
            if self._unanswered and self._clock.monotonic_us() - self._unanswered[0].sent_us > ACK_S * SECOND:
                self.cut(f"no acknowledgement within {ACK_S:g} s")

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def publish(self, topic: str, payload: bytes, retain: bool, token: int) -> bool:
        if not self.connected or self._over.is_set():
            return False
        loop = asyncio.get_running_loop()
        message = _Message(token, topic, payload, retain, self._clock.monotonic_us())
        self._on_the_way.append(message)
        self._unanswered.append(message)
        assert len(self._unanswered) <= self.receive_max, "more in flight than the broker takes"
        if len(payload) > self.packet_max:
            self.cut("disconnected by the broker: Packet too large")
            return True
        delay_s = self._broker.dice.uniform(0.0005, 0.005) + self._broker.slow_s
        self._due_s = max(self._due_s, loop.time() + delay_s)
        loop.call_at(self._due_s, self._arrive, self._on_the_way)
        return True

    def _arrive(self, way: deque[_Message]) -> None:
        """The next one is there. Timers of one instant come in any order, messages do not."""
        if not way:
            return  # it was cut meanwhile
        message = way.popleft()
        reason = self._broker.verdict(message.topic)
        if reason < FAILURE:
            self._broker.take(message.topic, message.payload, message.retain)
        else:
            self._broker.refused += 1
            self._broker.turned_down.add((message.topic, message.payload.removesuffix(LATE).removesuffix(b"}")))
        if self._broker.loses_acks and not message.retain:
            self._broker.lost_acks += 1
            return
        self._unanswered.remove(message)
        self.on_ack(message.token, 0 if self._broker.forgives else reason)

    def cut(self, reason: str) -> None:
        """The connection ends: some of what was on the way has reached the broker, and nobody hears of it."""
        if self._over.is_set():
            return
        self.reason = self.reason or reason
        self._over.set()
        if self in self._broker.links:
            self._broker.links.remove(self)
        arrived = self._broker.dice.randint(0, len(self._on_the_way))
        for message in list(self._on_the_way)[:arrived]:
            if self._broker.verdict(message.topic) < FAILURE:
                self._broker.take(message.topic, message.payload, message.retain)
        self._on_the_way.clear()
        self._on_the_way = deque()
        self._unanswered.clear()
        if not self._goodbye:
            self._broker.take(*self._will, True)

    async def disconnect(self, within_s: float) -> None:
        """Whoever says it has waited for what matters: what is on its way may be lost."""
        self._closing.set()
        if self.connected and not self._over.is_set():
            self._goodbye = True
            self.cut("stopped")

    def _turn(self, state: LinkState) -> None:
        if state is not self.state or self.since_us is None:
            self.state, self.since_us = state, self._clock.wall_us()


# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Disk:
    """The disk under the store. fault: what the commit thread gets instead of its work. took_us: what a commit takes."""

    fault: Exception | None = None
    took_us: tuple[int, int] = (500, 15_000)
    refused: int = 0
    doom: str = ""
    """The power goes "before" the next commit is written, or "after" it and before anybody hears of it."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that happens at a true time. do: returns how the life ends by it, or ''."""

    at_us: int
    what: str
    do: Callable[[], str]


CUT, STOP, DOOMED = "cut", "stop", "doomed"
Listener = Callable[[Heard], None]


class World:
    """One simulation. `play` runs it to a true time; `acts` are what happens on the way."""

    def __init__(
        self, seed: int, folder: Path, devices: Sequence[tuple[str, Sequence[Signal]]], commit_every: str = "1s"
    ) -> None:
        self.seed, self.folder = seed, folder
        self.dice = random.Random(seed)
        self.began_us = self._at_us = START_US
        self.wall_offset_us = WALL_US - START_US
        self.offsets = [self.wall_offset_us]
        """All that the wall clock ever was before the monotonic one."""
        self.devices = {
            name: Device(name, tuple(signals), hash_of(f"{seed}/{name}"), random.Random(f"{seed}/{name}"))
            for name, signals in devices
        }
        self.commit_every = commit_every
        self.broker = Broker(random.Random(seed + 1))
        self.broker.on_message, self.broker.on_retained = self._heard, self._retained
        self.disk = Disk()
        self.clock = WorldClock(self)
        self.registry = Plugins({"sim": Devices(self)})
        self.life = Life(0)
        self.acts: deque[Act] = deque()
        self.heard: list[Heard] = []
        self.listeners: list[Listener] = [self.heard.append]
        self.keeps_story = False
        self.turn_s = TICK_EVERY_S
        self.boot = "boot-0"
        self.story: list[str] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self.logged: dict[str, int] = {}
        self.lives: list[tuple[int, int]] = []
        """(from, until) of each, in true µs."""
        self.jobs = 0
        self.config: dict[str, Any] = self._config()
        self._loop: VirtualLoop | None = None
        self._remembered: Path | None = None
        self._cut = asyncio.Event()
        self._prepare()

    # --- time ---

    @property
    def now_us(self) -> int:
        """True time, which is the monotonic clock of all lives."""
        return self._at_us if self._loop is None else self._loop.now_us

    @property
    def wall_us(self) -> int:
        return self.now_us + self.wall_offset_us

    def step_wall(self, by_us: int) -> None:
        self.tell(f"wall {by_us:+}")
        self.wall_offset_us += by_us
        self.offsets.append(self.wall_offset_us)

    # --- what happened ---

    def tell(self, what: str, about: bytes = b"") -> None:
        """Into the story: its digest is what two runs are compared by."""
        line = f"{self.now_us} {what} ".encode() + about
        self.digest.update(line)
        if self.keeps_story:
            self.story.append(line.decode("utf-8", "replace"))

    def _heard(self, topic: str, payload: bytes) -> None:
        self.tell(f"publish {topic}", payload)
        heard = Heard(self.now_us, topic, payload, self.broker.connections)
        for listener in self.listeners:
            listener(heard)

    def _retained(self, topic: str, payload: bytes) -> None:
        self.tell(f"retain {topic}", RSS.sub(b"", payload))

    def log(self, _logger: Any, _level: str, event: MutableMapping[str, Any]) -> Any:
        """What the agent writes into its log belongs to the story."""
        name = str(event.get("event"))
        self.logged[name] = self.logged.get(name, 0) + 1
        if self.life.alive:
            self.tell(f"log {name}", str({k: v for k, v in event.items() if k not in ("event", "exc_info")}).encode())
        raise structlog.DropEvent

    def plain(self, *kinds: str) -> Iterator[tuple[Heard, dict[str, Any]]]:
        """What the consumer got of these kinds (the last word of a topic)."""
        for heard in self.heard:
            if heard.topic.rpartition("/")[2] in (kinds or NUMBERED):
                yield heard, json.loads(heard.payload)

    def events(self, machine: str | None = None) -> list[dict[str, Any]]:
        """The warning events, each once, in the order of seq."""
        found = {(each["epoch"], each["seq"]): each for _, each in self.plain("warnings")}
        return [each for _, each in sorted(found.items()) if machine in (None, each["machine"])]

    # --- the agent's folder ---

    @property
    def home(self) -> Path:
        return self.folder / f"life-{self.life.number}"

    def _config(self) -> dict[str, Any]:
        return {
            "agent": {"id": "sim", "site": "site", "timezone": "UTC", "data_dir": "./data"},
            "mqtt": {"url": "mqtt://broker.example:1883"},
            "web": None,
            "store": {"commit_every": self.commit_every},
            "connections": {name: {"driver": "sim", "device": name} for name in self.devices},
            "machines": {
                name: {"connection": name, "signals": {s.name: _signal(s) for s in device.signals}}
                for name, device in self.devices.items()
            },
        }

    def write_config(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "agent.yaml").write_text(json.dumps(self.config, indent=1))

    def _prepare(self) -> None:
        """A new store whose epoch is the seed's."""
        self.write_config()
        data = self.home / "data"
        data.mkdir(mode=0o700)
        opened = disk.open_file(data, self.wall_us)
        state = disk.State(f"s{self.seed % 36**5:05d}"[:6])
        with closing(opened.db) as db:
            disk.put_state(db, state)
        disk.write_marker(data, state)

    def remember(self) -> None:
        """A disk that lies: what is written from now on is gone after the next cut."""
        self._remembered = self.folder / "remembered"
        shutil.copytree(self.home, self._remembered, ignore=UNCOPIED)

    def _next_home(self) -> None:
        """The folder of the next life: as this one lies there now."""
        before, self._remembered = self._remembered or self.home, None
        self.life = Life(self.life.number + 1)
        shutil.copytree(before, self.home, ignore=UNCOPIED)

    # --- the disk and its threads ---

    def before_job(self, work: Callable[..., Any], own_thread: bool) -> int:
        """Before a thread works: of the commit thread, and of the others."""
        self.jobs += 1
        if not own_thread or not self.life.alive:
            return 0
        if self.disk.fault is not None:
            self.disk.refused += 1
            raise copy.copy(self.disk.fault)  # raised again it would keep the frames of every time before
        took_us = self.dice.randint(*self.disk.took_us)
        if self.disk.doom:
            assert self._loop is not None
            if self.disk.doom == "before":
                self.cut()
            else:
                self._loop.call_later(took_us / 2e6, self.cut)
            self.disk.doom = ""
        return took_us

    # --- running ---

    def cut(self) -> None:
        """The power goes, now: the folder stays as it is, and nothing that the agent still does reaches anybody."""
        if not self.life.alive:
            return
        self.tell("cut")
        ended = self.life
        self._next_home()
        ended.alive = False
        self.life.alive = False  # of the next one: until it begins
        for link in list(self.broker.links):
            link.cut("the power is gone")
        self._cut.set()

    def play(
        self,
        until_us: int,
        *,
        down_us: Callable[[], int] = lambda: 2 * SECOND,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run until then, from life to life, and stop it in good order at the end. down_us: how long it stays off.

        enough: no further life is begun.
        """
        structlog.configure(processors=[self.log])
        while self.now_us < until_us and not enough():
            self._at_us = self._live(until_us)
            if self._at_us < until_us:
                self._at_us = min(until_us, self._at_us + down_us())

    def _live(self, until_us: int) -> int:
        """One life; returns when it ended."""
        self.life.alive = True
        number, home, began = self.life.number, self.home, self.now_us
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(start_us=began)) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, VirtualLoop)
            loop.before_job = self.before_job
            self._loop = loop
            ended = runner.run(self._lived(until_us))
            self._at_us, self._loop = loop.now_us, _Frozen(loop.now_us)  # type: ignore[assignment]
        self._loop = None
        self.lives.append((began, ended))
        if self.life.number != number:
            shutil.rmtree(home)
        gc.unfreeze()
        return ended

    async def _lived(self, until_us: int) -> int:
        self._cut = asyncio.Event()
        stop = asyncio.Event()
        host = agent.Host(self.clock, self.registry, self._connect, lambda: True, lambda: self.boot, self.turn_s)
        running = asyncio.create_task(agent.run(self.home / "agent.yaml", stop=stop, host=host))
        cut = asyncio.create_task(self._cut.wait())
        self.tell(f"life {self.life.number}")
        while not cut.done():
            act = self.acts[0] if self.acts and self.acts[0].at_us < until_us else None
            next_us = until_us if act is None else max(act.at_us, self.now_us)
            await asyncio.wait({running, cut}, timeout=(next_us - self.now_us) / 1e6, return_when="FIRST_COMPLETED")
            if cut.done():
                break
            assert not running.done(), f"the agent ended by itself: {running}"
            if self.now_us < next_us:
                continue
            how = STOP
            if act is not None:
                self.acts.popleft()
                self.tell(f"act {act.what}")
                how = act.do()
            if how == CUT:
                self.cut()
                break
            if how == STOP:
                stop.set()
                assert await running == 0
                if act is not None:
                    self._next_home()
                break
        cut.cancel()
        return self.now_us

    def _connect(
        self, settings: LinkSettings, will: tuple[str, bytes], clock: Clock, _renewed: Callable[[], LinkSettings] | None
    ) -> SimLink:
        return SimLink(self.broker, self.life, settings, will, clock)


@dataclass(frozen=True, slots=True)
class _Frozen:
    """The time at which a life ended, while what is left of it is cleared away."""

    now_us: int


def _signal(signal: Signal) -> dict[str, Any]:
    band: dict[str, Any] = {"on_delay": f"{signal.on_s:g}s", "off_delay": f"{signal.off_s:g}s"}
    if signal.high is not None:
        band["high"] = signal.high
    if signal.low is not None:
        band["low"] = signal.low
    norm = {"deadband": signal.deadband, "warning": band}
    about: dict[str, Any] = {"address": signal.name, "unit": "bar", "every": f"{signal.every_s}s"}
    return about if signal.high is None and signal.low is None else {**about, "norm": norm}


def scratch() -> Path | None:
    """Where a simulated disk lies: in memory where the machine has such a place, since its speed is not what is tested."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def acts(*those: tuple[float, str, Callable[[], str | None]]) -> deque[Act]:
    """(second after the beginning, what, do) in order."""
    found = [Act(START_US + round(at * SECOND), what, lambda do=do: do() or "") for at, what, do in those]  # type: ignore[misc]
    return deque(sorted(found, key=lambda act: act.at_us))


Plant = Mapping[str, Sequence[Signal]]


DRIVER = Devices()
"""For whoever only reads configurations: it opens nothing."""
