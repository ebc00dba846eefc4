"""An hour without the broker, made good while the plant goes on: how fast the backlog drains, and how old live data gets.

    python -m bench.backlog                 an hour of 100 machines with 100 signals each at 1 Hz (about ten minutes)
    python -m bench.backlog --minutes 5     a short run
    python -m bench.backlog --break-it      negative control: a consumer that forgets one message must be found out

The hour is not waited for: it is put into a real store on a clock that is moved, as fast as the disk takes it. Then a real
publisher drains it to a real mosquitto in real time, while live data goes on at the full rate and is committed once a second.
A consumer in a process of its own counts by itself: what was due is known from how many rows were put, not from the agent.
Prints the age of live data, the drain in multiples of the live rate, memory, and the lag of the loop.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import select
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.__main__ import free_ports, process, rss_mb, tidy_when_told_to_end, wait_for
from edge_agent.agent import SWITCH_S
from edge_agent.clock import SystemClock
from edge_agent.contract import SECOND_US, Clock, Frame
from edge_agent.mqtt import LinkSettings
from edge_agent.publisher import Publisher
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store.journal import Store, open_store

LATE = b',"late":true}'
ROOT = "edge"
LIVE_AGE_MAX_S, TIMES_MIN = 2.0, 10.0
"""What is promised: live data younger than this, the backlog at this multiple of the live rate."""
RSS_GROWTH_MAX_MB = 25.0
CALM_S = 3.0
"""Nothing new for so long: everything has arrived that will."""


@dataclass(slots=True)
class MovedClock:
    """A Clock that is moved while the past is filled in, and then goes with the system's. offset_us: added to both."""

    offset_us: int
    system: SystemClock = field(default_factory=SystemClock)
    standing: bool = True
    _monotonic_us: int = 0
    _wall_us: int = 0

    def __post_init__(self) -> None:
        self._monotonic_us, self._wall_us = (
            self.system.monotonic_us() + self.offset_us,
            self.system.wall_us() + self.offset_us,
        )

    def monotonic_us(self) -> int:
        return self._monotonic_us if self.standing else self.system.monotonic_us()

    def wall_us(self) -> int:
        return self._wall_us if self.standing else self.system.wall_us()

    def move(self, by_us: int) -> None:
        self._monotonic_us += by_us
        self._wall_us += by_us

    def go(self) -> None:
        self.standing = False


@dataclass(slots=True)
class Plant:
    """Machines whose signals wander a little. One row of all of them is a beat."""

    machines: int
    signals: int
    dice: np.random.Generator
    values: Any = None

    def __post_init__(self) -> None:
        self.values = self.dice.normal(50.0, 5.0, (self.machines, self.signals))

    def layouts(self) -> list[Layout]:
        names = tuple(f"s{i}" for i in range(self.signals))
        return [Layout(f"m{i}", names, ()) for i in range(self.machines)]

    def beat(self, clock: Clock) -> list[JudgedFrame]:
        self.values = self.values + self.dice.normal(0.0, 0.1, self.values.shape)
        return [self.frame(i, clock) for i in range(self.machines)]

    def frame(self, machine: int, clock: Clock) -> JudgedFrame:
        now = np.array([clock.monotonic_us()]), np.array([clock.wall_us()])
        quality = np.zeros((1, self.signals), dtype=np.uint8)
        frame = Frame(f"m{machine}", *now, self.values[machine : machine + 1].round(3), quality)
        return JudgedFrame(frame, np.full(1, -1, dtype=np.int16), np.ones(1, dtype=np.bool_))


# ------------------------------------------------------------------------------------------------------------ consumer


SUBSCRIBER = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x05count"
SUBSCRIBE = b"\x82\x0c\x00\x01\x00\x00\x06edge/#\x00"
"""CONNECT and SUBSCRIBE of MQTT 5, QoS 0: a consumer that costs so little that it does not slow down what it measures."""
SEQ = re.compile(rb'"seq":(\d+),"ts":"([^"]+)"')


@dataclass(slots=True)
class Counted:
    """What the consumer has seen."""

    seqs: set[int] = field(default_factory=set)
    ages: list[float] = field(default_factory=list)
    newest: dict[tuple[bytes, bool], int] = field(default_factory=dict)
    repeats: int = 0
    late: int = 0
    out_of_order: int = 0
    last: float = 0.0

    def take(self, topic: bytes, payload: bytes) -> None:
        found = SEQ.search(payload, 0, 120)
        if found is None or not topic.endswith(b"/measurements"):
            return
        seq, late = int(found[1]), payload.endswith(LATE)
        self.last = time.monotonic()
        if seq in self.seqs:
            self.repeats += 1
            return
        self.seqs.add(seq)
        newest = self.newest.get((topic, late), 0)
        self.out_of_order += seq < newest
        self.newest[topic, late] = max(seq, newest)
        self.late += late
        if not late:
            self.ages.append(time.time() - _epoch_s(found[2].decode()))

    def eat(self, data: bytes) -> bytes:
        """Take all whole packets; what is left of the last one comes back."""
        place = 0
        while len(data) - place >= 2:
            size, shift, body = 0, 0, place + 1
            while body < len(data):
                byte = data[body]
                size |= (byte & 127) << shift
                shift, body = shift + 7, body + 1
                if byte < 128:
                    break
            if len(data) < body + size:
                break
            if data[place] >> 4 == 3:
                topic_size = int.from_bytes(data[body : body + 2])
                start = body + 2 + topic_size
                self.take(data[body + 2 : start], data[start + 1 + data[start] : body + size])
            place = body + size
        return data[place:]


def consume(port: int, told: Connection) -> None:
    """A process of its own. On "count" it says what it has seen, at the end which numbers."""
    counted, rest = Counted(last=time.monotonic()), b""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(SUBSCRIBER + SUBSCRIBE)
        told.send("subscribed")
        while True:
            ready, _, _ = select.select([line.fileno(), told.fileno()], [], [])
            if line.fileno() in ready:
                rest = counted.eat(rest + line.recv(1 << 20))
            if told.fileno() not in ready:
                continue
            if told.recv() != "count":
                break
            ages, counted.ages = counted.ages, []
            told.send((len(counted.seqs), counted.late, counted.repeats, counted.out_of_order, ages, counted.last))
    told.send(counted.seqs)


def _epoch_s(text: str) -> float:
    return time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone + float(text[19:-1])


# ----------------------------------------------------------------------------------------------------------------- run


@dataclass(slots=True)
class Found:
    """What one run has shown."""

    due: int
    backlog: int
    filled_s: float
    drained_s: float
    live_ages_s: list[float]
    lags_ms: list[float]
    rss: list[float]
    received: int = 0
    late: int = 0
    repeats: int = 0
    out_of_order: int = 0
    missing: int = 0
    cpu_percent: float = 0.0

    @property
    def drained_per_s(self) -> float:
        return self.backlog / self.drained_s


async def fill(store: Store, plant: Plant, clock: MovedClock, seconds: int) -> None:
    """So many seconds of the plant, a commit for each as the daemon makes them."""
    running = asyncio.create_task(store.run())
    for _ in range(seconds):
        commits = store.commits
        store.put(plant.beat(clock))
        clock.move(SECOND_US)
        store._wake.set()  # commit now, without a second of waiting
        while store.commits == commits:  # noqa: ASYNC110 - the store tells nobody of a commit without messages
            await asyncio.sleep(0.0005)
    await store.stop()
    await running


async def go_on(store: Store, plant: Plant, clock: Clock, counted: list[int]) -> None:
    """The plant in real time: its machines are read one after the other, spread over the second."""
    loop = asyncio.get_running_loop()
    begin, turn = loop.time(), 0
    while True:
        for machine in range(plant.machines):
            due = begin + turn + machine / plant.machines
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            store.put([plant.frame(machine, clock)])
            counted[0] += 1
        turn += 1


async def watch_lag(lags_ms: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.01
        await asyncio.sleep(0.01)
        lags_ms.append(1000 * (loop.time() - due))


async def drain(folder: Path, plant: Plant, clock: MovedClock, port: int, told: Connection, backlog: int) -> Found:
    """Live data and the backlog side by side until all has arrived, and a while of live data after that."""
    found = Found(backlog, backlog, 0.0, 0.0, [], [], [])
    live = [0]
    with open_store(folder, clock) as store:
        store.use_layouts(plant.layouts())
        store.limit(20_000_000_000, 14 * 86_400 * SECOND_US, SECOND_US)
        publisher = Publisher(store, LinkSettings((f"mqtt://127.0.0.1:{port}",), "bench", "5"), ROOT, clock)
        publisher.set_status({"state": "online"})
        async with asyncio.TaskGroup() as tasks:
            committing = tasks.create_task(store.run())
            began, cpu = time.monotonic(), time.process_time()
            publishing = tasks.create_task(publisher.run())
            others = [tasks.create_task(go_on(store, plant, clock, live)), tasks.create_task(watch_lag(found.lags_ms))]
            next_look = began
            while True:
                await asyncio.sleep(0.2)
                if time.monotonic() >= next_look:
                    next_look += 1.0
                    found.rss.append(rss_mb(os.getpid()))
                    await _ask(told, found)
                if found.late >= backlog:
                    break
                if time.monotonic() - began > 60 + backlog / 100:
                    print("gave up: the backlog does not come to an end", file=sys.stderr)
                    break
            found.drained_s = time.monotonic() - began
            found.cpu_percent = 100 * (time.process_time() - cpu) / found.drained_s
            for task in others:
                task.cancel()
            await store.stop()
            await committing
            await publisher.stop(30.0)
            await publishing
    found.due = backlog + live[0]
    return found


async def _ask(told: Connection, found: Found) -> float:
    """Ask the consumer. Returns for how long it has heard nothing, in s."""
    told.send("count")
    while not told.poll():  # noqa: ASYNC110 - a pipe of another process
        await asyncio.sleep(0.01)
    found.received, found.late, found.repeats, found.out_of_order, ages, last = told.recv()
    found.live_ages_s += ages
    return time.monotonic() - float(last)


def measure(minutes: float, machines: int, signals: int, seed: int, *, break_it: bool = False) -> Found:
    """One run, in a folder and with a broker of its own."""
    sys.setswitchinterval(SWITCH_S)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-backlog-")))
        port = free_ports(2)
        conf = folder / "mosquitto.conf"
        # As it comes, but for the queue to the consumer: what it cannot hold it would drop after its PUBACK.
        conf.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nlog_type error\n"
        )
        stack.enter_context(process(shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(conf)))
        wait_for(port)
        told, theirs = multiprocessing.Pipe()
        consumer = multiprocessing.get_context("spawn").Process(target=consume, args=(port, theirs), daemon=True)
        consumer.start()
        stack.callback(consumer.kill)
        assert told.recv() == "subscribed"
        plant = Plant(machines, signals, np.random.default_rng(seed))
        seconds = max(1, round(minutes * 60))
        clock = MovedClock(-seconds * SECOND_US - 40 * SECOND_US)  # the newest of the backlog is late too
        began = time.monotonic()
        with open_store(folder / "data", clock) as store:
            store.use_layouts(plant.layouts())
            store.limit(20_000_000_000, 14 * 86_400 * SECOND_US, SECOND_US)
            asyncio.run(fill(store, plant, clock, seconds))
        filled_s = time.monotonic() - began
        clock.go()
        found = asyncio.run(drain(folder / "data", plant, clock, port, told, seconds * machines))
        found.filled_s = filled_s
        while asyncio.run(_ask(told, found)) < CALM_S:
            time.sleep(0.2)
        told.send("end")
        seqs: set[int] = told.recv()
        if break_it:
            seqs.discard(random.Random(seed).choice(sorted(seqs)))
        found.missing = len(set(range(1, found.due + 1)) - seqs)
        consumer.join(10)
        return found


def faults(found: Found, machines: int) -> list[str]:
    """What of the promise was not kept, in words; empty when all was."""
    oldest, times = max(found.live_ages_s, default=99.0), found.drained_per_s / machines
    half = found.rss[len(found.rss) // 4 :] or [0.0]
    growth = max(half) - half[0]
    wrong = [
        (found.missing, f"{found.missing} messages are missing"),
        (found.out_of_order, f"{found.out_of_order} messages came before older ones of their topic and lane"),
        (found.late < found.backlog, f"{found.backlog - found.late} of the backlog were not marked late"),
        (oldest >= LIVE_AGE_MAX_S, f"live data was {oldest:.2f} s old"),
        (times < TIMES_MIN, f"the backlog went at {times:.1f} times the live rate"),
        (growth > RSS_GROWTH_MAX_MB, f"memory grew by {growth:.0f} MB while draining"),
    ]
    return [words for bad, words in wrong if bad]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.backlog")
    parser.add_argument("--minutes", type=float, default=60, help="that the broker was away")
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--signals", type=int, default=100, help="for each machine")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--break-it", action="store_true")
    asked = parser.parse_args(arguments)
    tidy_when_told_to_end()
    print(
        f"seed {asked.seed}: {asked.minutes:g} min of {asked.machines * asked.signals:,} readings/s "
        f"({asked.machines} messages/s), load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found = measure(asked.minutes, asked.machines, asked.signals, asked.seed, break_it=asked.break_it)
    show(found, asked.machines)
    wrong = faults(found, asked.machines)
    for words in wrong:
        print(f"  {words}", file=sys.stderr)
    print("FAILED" if wrong else "OK")
    return 1 if wrong else 0


def show(found: Found, machines: int) -> None:
    ages, lags = _quantiles(found.live_ages_s), _quantiles(found.lags_ms)
    rss = [found.rss[i * (len(found.rss) - 1) // 4] for i in range(5)] if found.rss else []
    print(f"  buffered               {found.backlog:,} messages in {found.filled_s:.0f} s")
    print(
        f"  drained                in {found.drained_s:.0f} s: {found.drained_per_s:,.0f} messages/s, "
        f"{found.drained_per_s / machines:.1f} times the live rate, {found.cpu_percent:.0f} % of a core, "
        f"{10_000 * found.cpu_percent * found.drained_s / max(1, found.due):.0f} µs of CPU a message"
    )
    print(
        f"  live age p50/p99/max   {ages[0]:.2f} / {ages[1]:.2f} / {ages[2]:.2f} s ({len(found.live_ages_s):,} messages)"
    )
    print(f"  loop lag p50/p99/max   {lags[0]:.1f} / {lags[1]:.1f} / {lags[2]:.1f} ms")
    print(f"  memory                 {' → '.join(f'{each:.0f}' for each in rss)} MB")
    print(
        f"  consumer               {found.received:,} of {found.due:,}, {found.missing} missing, {found.repeats} repeated, "
        f"{found.out_of_order} out of order, {found.late:,} late"
    )


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return 0.0, 0.0, 0.0
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98], max(values)


if __name__ == "__main__":
    sys.exit(main())
