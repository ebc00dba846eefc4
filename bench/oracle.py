"""Nothing is lost: devices → agent → broker → consumer under random faults, and received + gaps = due.

    python -m bench.oracle                        a minute of faults, 50 devices with 100 signals at 1 Hz
    python -m bench.oracle --seed 7 --seconds 20  the same faults again, shorter
    python -m bench.oracle --kills 1000           nothing but `kill -9` at random instants under full load (50 minutes)
    python -m bench.oracle --break publisher      negative control: a broken agent must be found out (see bench/broken.py)
    python -m bench.oracle --break consumer       negative control: a consumer that forgets one message

The agent is a process and a black box. The devices (bench/plant.py) count what was due; the line to the broker
(bench/wire.py) writes down what was sent and what the broker has taken; bench/account.py is the law that both are held
to. A consumer with a session that survives sits behind a real mosquitto and has to have all that the broker took, but for
what a broker that was killed had not saved: the agent's promise ends at its PUBACK.

The disk is filled only as root; without it that is left out, and said.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.__main__ import configuration, free_ports, tidy_when_told_to_end, wait_for
from bench.account import KINDS, Account, Ledger, account, gaps_of
from bench.loopdisk import LoopDisk, NotHere, own_mounts
from bench.plant import Device, Mode
from bench.wire import Line, Wire

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
READY_LIMIT_S = 3.0
"""Every start is ready within this time (READY=1)."""
SAVED_S = 3.0
"""What a broker took so long before it was killed it has saved (its autosave_interval is 1 s)."""
DISK_MB = 48
LOOP_MB = 200


class Pace:
    """How fast the processor is just now: one piece of work again and again, by the processor time that it takes.

    A machine that others share halves its pace for seconds, and no clock of a process tells of that.
    """

    EVERY_S = 0.1

    def __init__(self) -> None:
        self._took: list[tuple[float, float]] = []

    async def keep(self) -> None:
        while True:
            began = time.thread_time()
            sum(each * each for each in range(5_000))
            self._took.append((time.monotonic(), time.thread_time() - began))
            await asyncio.sleep(self.EVERY_S)

    def usual(self) -> float:
        """Over all the time."""
        return middle(sorted(took for _, took in self._took))

    def slowness(self, began: float, ended: float, usual: float) -> float:
        """By how much slower than usual it was between these (monotonic seconds); 1 where it was not."""
        then = [took for at, took in self._took if began <= at <= ended]
        return max(1.0, middle(sorted(then)) / usual) if then else 1.0


# --- the parts ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Agent:
    """`edge-agent run` as a process. ready_s: how long each start took until READY=1; began_s: when it began (monotonic).

    queued_s: for how long of that its main thread waited for a processor that others used.
    """

    command: list[str]
    log: Path
    notify: Path
    environment: dict[str, str]
    ready_s: list[float] = field(default_factory=list)
    began_s: list[float] = field(default_factory=list)
    queued_s: list[float] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    _ear: socket.socket | None = None
    _told: asyncio.Event = field(default_factory=asyncio.Event)
    _began: float = 0.0

    def listen(self) -> None:
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(self.notify))
        self._ear.setblocking(False)
        asyncio.get_running_loop().add_reader(self._ear, self._hear)

    def _hear(self) -> None:
        assert self._ear is not None
        with suppress(BlockingIOError):
            while data := self._ear.recv(4096):
                if b"READY=1" in data.split(b"\n") and not self._told.is_set():
                    self.ready_s.append(time.monotonic() - self._began)
                    self.began_s.append(self._began)
                    self.queued_s.append(self._queued())
                    self._told.set()

    def _queued(self) -> float:
        assert self.process is not None
        with suppress(OSError):
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9
        return 0.0

    async def start(self) -> None:
        """Returns when it has said that it is ready. Raises RuntimeError when it ends instead."""
        self._told.clear()
        self._began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it is killed from where nothing can be awaited
                self.command,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "NOTIFY_SOCKET": str(self.notify), **self.environment},
            )
        while not self._told.is_set():
            if self.process.poll() is not None:
                raise RuntimeError(f"the agent ended by itself with status {self.process.returncode}")
            if time.monotonic() - self._began > 60:
                raise RuntimeError("the agent was not ready within a minute")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._told.wait()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def stop(self, within_s: float = 20.0) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + within_s
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise RuntimeError(f"the agent did not stop within {within_s:g} s")
            await asyncio.sleep(0.02)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        if self._ear is not None:
            asyncio.get_running_loop().remove_reader(self._ear)
            self._ear.close()


@dataclass(slots=True)
class Broker:
    """mosquitto with persistence, so that a stop loses nothing. killed: CLOCK_MONOTONIC of each kill -9."""

    folder: Path
    port: int
    killed: list[float] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        kept = self.folder / "broker"
        kept.mkdir(exist_ok=True)
        conf = self.folder / "mosquitto.conf"
        conf.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {kept}/\n"
            "autosave_interval 1\nset_tcp_nodelay true\nmax_queued_messages 0\nmax_inflight_messages 0\nuser root\n"
        )
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.process = subprocess.Popen(
            [program, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.killed.append(time.monotonic())


class Consumer:
    """A subscriber with a session that survives, which knows what it got."""

    def __init__(self, port: int) -> None:
        self.got: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="oracle", protocol=mqtt.MQTTv5)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("edge/#", qos=1)
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        keep.ReceiveMaximum = 1000
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port, clean_start=False, properties=keep)
        self._client.loop_start()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if not message.retain and message.topic.rpartition("/")[2] in KINDS:
            plain = json.loads(message.payload)
            with self._lock:
                self.got.add((plain["epoch"], plain["seq"]))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


# --- the rig ------------------------------------------------------------------------------------------------------------


Fault = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Rig:
    """All parts of one run, and what was done to them."""

    asked: argparse.Namespace
    dice: random.Random
    folder: Path
    devices: list[Device]
    ledger: Ledger
    wire: Wire
    broker: Broker
    agent: Agent
    consumer: Consumer
    acked_at: dict[tuple[str, int], float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    committed: int = 0
    clock_s: int = 0
    loop: LoopDisk | None = None
    pace: Pace = field(default_factory=Pace)
    disk: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the disk is full: see `_killed`."""

    def told(self, what: str) -> None:
        if self.asked.verbose:
            print(f"{time.monotonic() % 10_000:9.3f} {what}", flush=True)

    async def pause(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.dice.uniform(least_s, most_s) * self.asked.pace)

    # --- faults: each begins, lasts and ends ------------------------------------------------------------------------

    async def broker_stopped(self) -> None:
        self.broker.stop()
        await self.pause(0.2, 4)
        self.broker.start()

    async def broker_killed(self) -> None:
        self.broker.kill()
        await self.pause(0, 3)
        self.broker.start()

    async def line_cut(self) -> None:
        self.wire.become(Line.CUT)
        await self.pause(0, 3)
        self.wire.become(Line.OPEN)

    async def line_half_open(self) -> None:
        await self._line(Line.STALLED)

    async def pubacks_lost(self) -> None:
        await self._line(Line.DEAF)

    async def _line(self, how: Line) -> None:
        self.wire.become(how)
        await self.pause(0.5, 5)
        self.wire.become(Line.CUT)
        await self.pause(0, 0.5)
        self.wire.become(Line.OPEN)

    async def agent_killed(self) -> None:
        await self.killed(self.dice.uniform(0, 3) * self.asked.pace)

    async def killed(self, away_s: float) -> None:
        """`kill -9`, a look into the store that it left, and a new start."""
        async with self.disk:  # a start on a full disk is another rig's
            self.agent.kill()
            self.committed = max(self.committed, self._looked())
            await asyncio.sleep(away_s)
            await self.agent.start()

    def _looked(self) -> int:
        """Up to which number the store that was left behind has committed. Read from a copy, as it lies."""
        with tempfile.TemporaryDirectory() as name:
            for part in (self.folder / "data").glob("journal.db*"):
                if part.name in ("journal.db", "journal.db-wal"):
                    shutil.copy(part, name)
            with closing(sqlite3.connect(Path(name) / "journal.db")) as db:
                (text,) = db.execute("SELECT text FROM meta WHERE id = 1").fetchone()
                (seq,) = db.execute("SELECT max(seq_to) FROM batches").fetchone()
        return max(int(json.loads(text)["last_seq"]), seq or 0)

    async def power_cut(self) -> None:
        """Everything that its disk had not flushed is gone; devices, broker and consumer go on."""
        assert self.loop is not None
        assert self.agent.process is not None
        self.loop.cut(self.agent.process.pid)
        self.agent.kill()
        self.loop.restore()
        await self.agent.start()

    async def agent_restarted(self) -> None:
        async with self.disk:
            await self.agent.stop()
            await self.pause(0, 2)
            await self.agent.start()

    async def agent_stands_still(self) -> None:
        """Beats are missed: the machine is too busy for it, or it was asleep."""
        assert self.agent.process is not None
        self.agent.process.send_signal(signal.SIGSTOP)
        await self.pause(0.5, 4)
        self.agent.process.send_signal(signal.SIGCONT)

    async def clock_stepped(self) -> None:
        step_s = self.dice.choice((-86_400, -3_600, -60, -2, 2, 60, 3_600, 86_400))
        self.told(f"  by {step_s} s")
        self.clock_s += step_s
        _set_clock(self.folder, self.clock_s)
        await asyncio.sleep(
            2.5
        )  # a commit after the step: what a step means while nobody looks is the clock's own test

    async def set_the_clock(self) -> None:
        """As a time server does that is reached again. A step back of which no commit could tell (the disk was full, the agent
        was killed) leaves a clock that nobody has set for the next life, which tells its down time when somebody does.
        """
        self.told(f"the clock is set: by {-self.clock_s} s")
        self.clock_s = 0
        _set_clock(self.folder, 0)
        await asyncio.sleep(2.5)

    async def devices_silent(self) -> None:
        await self._devices(Mode.SILENT)

    async def devices_cut(self) -> None:
        await self._devices(Mode.CUT)

    async def devices_slow(self) -> None:
        await self._devices(Mode.SLOW)

    async def _devices(self, mode: Mode) -> None:
        some = self.dice.sample(self.devices, self.dice.randint(1, max(1, len(self.devices) // 3)))
        for each in some:
            each.become(mode)
        await self.pause(0.5, 5)
        for each in some:
            each.become(Mode.WELL)

    async def disk_full(self) -> None:
        async with self.disk:
            ballast = self.folder / "data" / "ballast"
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(65_536))
            await self.pause(0.5, 6)
            ballast.unlink()

    # --- the run ------------------------------------------------------------------------------------------------------

    def lanes(self) -> list[list[Fault]]:
        """Faults of one lane come one after the other; the lanes run side by side."""
        agent: list[Fault] = [
            self.agent_killed,
            self.agent_killed,
            self.agent_restarted,
            self.agent_stands_still,
        ]
        if self.asked.clock:
            agent.append(self.clock_stepped)
        plant: list[Fault] = [self.devices_silent, self.devices_cut, self.devices_slow]
        if self.asked.disk:
            plant.append(self.disk_full)
        broker: list[Fault] = [
            self.broker_stopped,
            self.broker_killed,
            self.line_cut,
            self.line_half_open,
            self.pubacks_lost,
        ]
        chosen = set(self.asked.only.split(",")) if self.asked.only else None
        lanes = [[each for each in lane if not chosen or each.__name__ in chosen] for lane in (broker, agent, plant)]
        return [lane for lane in lanes if lane]

    async def lane(self, faults: list[Fault], until: float) -> None:
        """Each kind once in a random order, then again, until the time is up; at least each kind once."""
        first = True
        while first or time.monotonic() < until:
            order = self.dice.sample(faults, len(faults))
            for fault in order:
                await self.pause(0.3, 3)
                if not first and time.monotonic() >= until:
                    return
                name = fault.__name__
                self.faults[name] += 1
                self.told(name)
                await fault()
            first = False

    async def kills(self, count: int) -> None:
        """Nothing but `kill -9`, or power cuts, one after the other."""
        for number in range(count):
            await asyncio.sleep(self.dice.uniform(0.1, 2.0))
            if self.loop is None:
                self.faults["agent_killed"] += 1
                await self.killed(0.0)
            else:
                self.faults["power_cut"] += 1
                await self.power_cut()
            if self.asked.verbose or number % 50 == 49:
                ready = sorted(self.agent.ready_s)
                print(
                    f"  {number + 1} times, ready max {ready[-1]:.2f} s, {len(self.ledger.delivered):,} messages",
                    flush=True,
                )

    async def until_received(self, within_s: float = 90.0) -> None:
        """Faults are over: what is due comes, live and what waited. Raises RuntimeError when it does not."""
        end = time.monotonic() + within_s
        while True:
            await asyncio.sleep(0.5)
            assert self.agent.process is not None
            if self.agent.process.poll() is not None:
                raise RuntimeError(f"the agent ended by itself with status {self.agent.process.returncode}")
            now = time.monotonic_ns() // 1000 // self.ledger.period_us
            numbers = {seq for _, seq in self.ledger.delivered}
            whole = bool(numbers) and len(numbers) == max(numbers)
            behind = [d.name for d in self.devices if now - self.last_beat(d.name) > self.asked.behind]
            if whole and not behind:
                return
            if time.monotonic() > end:
                if not behind and self.asked.broken:
                    return  # what is missing is what was to be found
                raise RuntimeError(
                    f"still not all there {within_s:g} s after the faults; without a live value: {behind[:5]}"
                )

    def last_beat(self, machine: str) -> int:
        rows = self.ledger.rows.get(machine, {})
        return next((rows[seq].beat or 0 for seq in reversed(rows) if rows[seq].beat is not None), 0)

    async def end(self) -> int:
        """Stop in the middle of a period, where no beat is under way; returns the last beat that was due."""
        period_s = self.ledger.period_us / 1e6
        await asyncio.sleep(period_s * 0.5 - time.monotonic() % period_s + period_s)
        last = time.monotonic_ns() // 1000 // self.ledger.period_us
        await self.agent.stop()
        await asyncio.sleep(1.0)
        return last


async def run(rig: Rig) -> tuple[Account, int]:
    """The faults and the calm after them. Returns the account and how many messages the broker lost."""
    await rig.agent.start()
    await rig.until_received()
    last = await rig.end()
    if any(rig.last_beat(each.name) != last for each in rig.devices):
        raise RuntimeError("a quiet machine did not deliver the last beat before its stop")
    rig.ledger.begin()
    await rig.agent.start()
    if rig.asked.kills or rig.asked.cuts:
        await rig.kills(rig.asked.kills or rig.asked.cuts)
    else:
        until = time.monotonic() + rig.asked.seconds
        async with asyncio.TaskGroup() as lanes:
            for faults in rig.lanes():
                lanes.create_task(rig.lane(faults, until))
    rig.told("faults are over")
    await rig.set_the_clock()
    wrong = []
    try:
        await rig.until_received(15 if rig.asked.broken else 90)
    except RuntimeError as error:
        wrong.append(str(error))
    last = await rig.end()
    if rig.asked.broken == "consumer":
        rig.ledger.forget(rig.dice.choice(sorted(rig.ledger.delivered)[1:]))
    found = account(rig.ledger, rig.committed)
    late = [machine for machine, beat in found.last_beat.items() if beat != last]
    if late:
        wrong.append(f"the last beat of {len(late)} machines was not received, e.g. of {late[0]}")
    lost = rig.ledger.delivered - rig.consumer.got
    for key in lost:
        at = rig.acked_at[key]
        if not any(0 <= kill - at <= SAVED_S for kill in rig.broker.killed):
            wrong.append(f"seq {key[1]} was taken by the broker and did not reach the consumer")
            break
    found.wrong += wrong
    return found, len(lost)


async def trial(asked: argparse.Namespace) -> int:
    """One run. Returns the exit status."""
    dice = random.Random(asked.seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-oracle-")))
        first = free_ports(asked.devices + 2)
        devices = [Device(f"m{i}", first + 2 + i) for i in range(asked.devices)]
        for each in devices:
            each.open()
            stack.callback(each.close)
        period_us = (
            round(float(asked.every.removesuffix("ms")) * 1000)
            if asked.every.endswith("ms")
            else (round(float(asked.every.removesuffix("s")) * 1_000_000))
        )
        ledger = Ledger({each.name: each.answers for each in devices}, period_us)
        broker = Broker(folder, first)
        broker.start()
        stack.callback(broker.stop)
        wait_for(first)
        data = folder / "data"
        data.mkdir()
        loop = LoopDisk(folder / "disk.img", data) if asked.cuts else None
        if loop is not None:
            loop.make(LOOP_MB)
            stack.callback(loop.unmount)
        elif asked.disk:
            small_disk(data)
            stack.callback(subprocess.run, ["umount", "-l", str(data)], check=False)
        config = folder / "agent.yaml"
        config.write_text(
            configuration(asked, first + 2, first + 1, data).replace(
                "{driver: modbus, ", "{driver: modbus, timeout: 200ms, "
            )
        )
        acked_at: dict[tuple[str, int], float] = {}

        def acknowledged(topic: str, payload: bytes) -> None:
            before = len(ledger.delivered)
            ledger.acknowledged(topic, payload)
            if len(ledger.delivered) != before:
                plain = json.loads(payload)
                acked_at[plain["epoch"], plain["seq"]] = time.monotonic()

        wire = Wire(first, ledger.sent, acknowledged)
        await wire.start(first + 1)
        stack.push_async_callback(wire.stop)
        broken = [] if asked.broken in (None, "consumer") else ["bench.broken", asked.broken]
        agent = Agent(
            [sys.executable, "-m", *(broken or ["edge_agent"]), "run", str(config)],
            folder / "agent.log",
            folder / "notify",
            _clock_environment(folder) if asked.clock else {},
        )
        agent.listen()
        stack.callback(agent.close)
        consumer = Consumer(first)
        stack.callback(consumer.close)
        rig = Rig(asked, dice, folder, devices, ledger, wire, broker, agent, consumer, acked_at, loop=loop)
        began = time.monotonic()
        pace = asyncio.create_task(rig.pace.keep())
        stack.callback(pace.cancel)
        try:
            found, lost = await run(rig)
        except* RuntimeError as error:
            found, lost = Account(wrong=[str(each) for each in error.exceptions]), 0
        show(rig, found, lost, time.monotonic() - began)
        if found.wrong and not asked.broken:
            kept = Path(tempfile.gettempdir()) / f"oracle-{asked.seed}.log"
            shutil.copy(folder / "agent.log", kept)
            print(f"the agent's log: {kept}", file=sys.stderr)
    return 1 if found.wrong else 0


def _clock_environment(folder: Path) -> dict[str, str]:
    """The wall clock of the agent is that of the host and an offset that lies in a file."""
    _set_clock(folder, 0)
    return {"LD_PRELOAD": str(stepping_clock()), "EDGE_STEPS": str(folder / "clock")}


def stepping_clock() -> Path:
    """The shim, compiled when it is older than its source."""
    source, shim = HERE / "steps.c", HERE / "bin" / "steps.so"
    if not shim.exists() or shim.stat().st_mtime < source.stat().st_mtime:
        shim.parent.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    return shim


def _set_clock(folder: Path, offset_s: int) -> None:
    """In its place: the file is mapped by the agent."""
    with (folder / "clock").open("r+b" if (folder / "clock").exists() else "wb") as file:
        file.write((offset_s * 1_000_000_000).to_bytes(8, "little", signed=True))


def show(rig: Rig, found: Account, lost_by_broker: int, took_s: float) -> None:
    ledger, ready = rig.ledger, sorted(rig.agent.ready_s)
    told: Counter[str] = Counter()
    for gap in gaps_of(ledger):
        told[gap.cause] += gap.count
    causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(told.items())) or "none"
    faults = ", ".join(f"{name} {count}" for name, count in sorted(rig.faults.items()))
    print(f"  {took_s:.0f} s, faults: {faults}")
    print(
        f"  {found.due:,} rows due, {found.received:,} received ({found.bad_rows:,} bad), gaps {found.told:,} "
        f"({causes}; {len(gaps_of(ledger))} records), {len(found.missing)} numbers missing"
    )
    print(
        f"  {len(ledger.delivered):,} messages taken by the broker, {ledger.late:,} sent late, {ledger.repeats:,} taken twice "
        f"(byte-equal but for late), {sum(ledger.events.values())} warning events; "
        f"{lost_by_broker} lost by a killed broker after its PUBACK"
    )
    if ready:
        starts = zip(rig.agent.began_s, rig.agent.ready_s, rig.agent.queued_s, strict=True)
        usual, pace = rig.pace.usual(), rig.pace
        own = sorted(
            max(0.0, all_ - queued) / pace.slowness(began, began + all_, usual) for began, all_, queued in starts
        )
        over = sum(each > READY_LIMIT_S for each in ready)
        print(
            f"  {len(ready)} starts, ready p50 {middle(ready):.2f} s, p99 {ready[len(ready) * 99 // 100]:.2f} s, "
            f"max {ready[-1]:.2f} s, {over} over {READY_LIMIT_S:g} s; without waiting for a processor, at the machine's usual "
            f"pace {middle(own):.2f} / {own[len(own) * 99 // 100]:.2f} / {own[-1]:.2f} s (load {os.getloadavg()[0]:.1f})"
        )
        if own[-1] > READY_LIMIT_S:
            found.wrong.append(f"a start took {own[-1]:.2f} s until READY=1, at the machine's usual pace")
    for each in found.wrong[:10]:
        print(f"  WRONG: {each}")
    print(f"  {'FAILED' if found.wrong else 'OK'}", flush=True)


def middle(ordered: list[float]) -> float:
    return ordered[len(ordered) // 2]


def small_disk(place: Path) -> None:
    """A file system of its own here, in memory and soon full."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)], check=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.oracle")
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--signals", type=int, default=100, help="for each device")
    parser.add_argument("--every", default="1s")
    parser.add_argument("--commit-every", help="default: 1s, and 200ms with --kills")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults come")
    parser.add_argument("--pace", type=float, default=1.0, help="of pauses and faults: 0.5 makes them half as long")
    parser.add_argument("--only", help="only these faults, by name, with commas between")
    parser.add_argument("--kills", type=int, default=0, help="nothing but so many kill -9")
    parser.add_argument("--cuts", type=int, default=0, help="nothing but so many power cuts (root)")
    parser.add_argument("--runs", type=int, default=1, help="so many seeds, one after the other")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--break", dest="broken", choices=("consumer", "publisher", "restarts", "beats", "numbers", "value", "sync")
    )
    parser.add_argument("--no-disk", dest="disk", action="store_false")
    parser.add_argument("--no-clock", dest="clock", action="store_false")
    parser.add_argument("--behind", type=int, default=4, help="beats that a live value may be behind in the calm")
    parser.add_argument("--verbose", action="store_true")
    return parser


def run_with(words: list[str]) -> int:
    """As from the command line. Raises NotHere where the power cannot be cut."""
    asked = arguments().parse_args(words)
    asked.commit_every = asked.commit_every or ("200ms" if asked.kills or asked.cuts else "1s")
    if asked.kills or asked.cuts:
        asked.disk = asked.clock = False
    if asked.disk and os.geteuid() != 0:
        print("not root: the disk is not filled")
        asked.disk = False
    if asked.disk:
        own_mounts()
    failed = 0
    for seed in range(asked.seed, asked.seed + asked.runs):
        asked.seed = seed
        print(f"seed {seed}: {asked.devices * asked.signals:,} signals every {asked.every}", flush=True)
        failed += asyncio.run(trial(asked))
    if asked.runs > 1:
        print(f"{asked.runs} runs, {failed} failed", flush=True)
    return 1 if failed else 0


def main() -> int:
    tidy_when_told_to_end()
    try:
        return run_with(sys.argv[1:])
    except NotHere as error:
        print(f"this cannot be done here: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
