"""What OPC UA costs: our session and the whole agent, beside asyncua's own ways, against node-opcua in a process of its own.

Run: python -m bench.opcua [--items 10000] [--seconds 10] [--rounds 3] [--only CASE ...] [--json] [--profile FILE]
Every measurement is a process that connects, takes values for so long and ends; the cases take turns, figures are medians.
All variables are Doubles that change once a second. CPU is that of the process (user + system): quote ratios, not figures.
A block is the longest time for which the event loop of our process did nothing else, by a task that wakes each millisecond;
beside it the CPU that the loop's thread had meanwhile: where that is much less, the machine was busy with others.
"""

import argparse
import asyncio
import cProfile
import importlib
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.__main__ import Consumer, cpu_s, free_ports, process, rss_mb
from drivers import opcua
from drivers.opcua_settings import Address, Connection
from edge_agent import broker
from edge_agent.clock import SystemClock
from edge_agent.contract import DeviceRefused, Point, Quality
from tests import foreign

Figures = dict[str, float]
TOLD_TARGET_US, READ_TARGET_US, BLOCK_TARGET_MS = 1.0, 0.2, 50.0
"""µs of CPU a notification and a value of a read; ms of one block of the event loop."""
WARM_S, AGENT_WARM_S = 3.0, 20.0
TICK_S = 0.001
CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Asked:
    """What one process shall do."""

    url: str
    items: int
    seconds: float
    profile: str | None
    certificate: str = ""
    """The server's, a file."""


# ------------------------------------------------------------------------------------------------- what a process measures


@dataclass(slots=True)
class Ticker:
    """The longest blocks of the event loop, in ms: of the clock and of the loop's own CPU, by phase."""

    phase: str = "connect"
    blocks: dict[str, tuple[float, float]] = field(default_factory=dict)

    async def run(self) -> None:
        was, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(TICK_S)
            now, used = time.perf_counter(), time.thread_time()
            block = max(0.0, now - was - TICK_S) * 1000
            if block > self.blocks.get(self.phase, (0.0, 0.0))[0]:
                self.blocks[self.phase] = block, (used - cpu) * 1000
            was, cpu = now, used

    def figures(self) -> Figures:
        found: Figures = {}
        for phase, (wall, cpu) in self.blocks.items():
            found |= {f"block_{phase}_ms": wall, f"block_{phase}_cpu_ms": cpu}
        return found


@asynccontextmanager
async def ticking() -> AsyncIterator[Ticker]:
    """The ticker wakes a thousand times a second, so it runs only where no CPU is measured."""
    ticker = Ticker()
    running = asyncio.create_task(ticker.run())
    try:
        yield ticker
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@contextmanager
def profiled(asked: Asked) -> Iterator[None]:
    """Of the measured time alone."""
    if asked.profile is None:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    profile.dump_stats(asked.profile)


async def measured(asked: Asked, count: Callable[[], int], work: Callable[[float], Awaitable[None]]) -> Figures:
    """CPU of `work` until that time of the monotonic clock, for each of what `count` counts."""
    with profiled(asked):
        began, cpu, counted = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF), count()
        await work(began + asked.seconds)
        took, spent, values = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF), count() - counted
    system = spent.ru_stime - cpu.ru_stime
    used = spent.ru_utime - cpu.ru_utime + system
    return {
        "us": used * 1e6 / max(1, values),
        "system_us": system * 1e6 / max(1, values),
        "cpu_percent": 100 * used / took,
        "values_s": values / took,
        "rss_mb": rss_mb(os.getpid()),
    }


async def until(end: float) -> None:
    await asyncio.sleep(end - time.monotonic())


# ---------------------------------------------------------------------------------------------------------------- our ways


def points(items: int) -> list[Point]:
    return [
        Point(f"s{number}", Address(address=f"nsu={foreign.URI};s=Mass.{number}"), 1_000_000) for number in range(items)
    ]


class Ours:
    """A session as the poller has it: read once a second, and left idle between."""

    def __init__(self, session: Any, items: int) -> None:
        self.session, self.due, self.fresh = session, np.arange(items), 0

    async def read(self) -> None:
        found = await self.session.read(self.due)
        self.fresh += int(np.count_nonzero(found.quality == Quality.GOOD))

    async def second(self) -> None:
        end_us = (CLOCK.monotonic_us() // 1_000_000 + 1) * 1_000_000
        while (now := CLOCK.monotonic_us()) < end_us:
            again_us = await self.session.idle(end_us)
            await asyncio.sleep(max(0, min(again_us, end_us) - now) / 1e6)
        await self.read()

    async def seconds(self, end: float) -> None:
        while time.monotonic() < end:
            await self.second()

    async def reads(self, end: float) -> None:
        while time.monotonic() < end:
            await self.read()


async def ours(asked: Asked, mode: str) -> Figures:
    """Connect, read, have it told; then the steady state alone."""
    settings = Connection.model_validate({"url": asked.url, "mode": mode, "timeout": "30s"})
    told = mode == "subscribe"
    async with AsyncExitStack() as stack:
        async with ticking() as ticker:
            opening = opcua.DRIVER.open("bench", settings, points(asked.items), CLOCK)
            line = Ours(await stack.enter_async_context(opening), asked.items)
            ticker.phase = "names"
            await line.read()
            ticker.phase = "subscribe"
            began = time.monotonic()
            while told and line.session.counters()["polled"]:
                await line.session.idle(CLOCK.monotonic_us() + 1_000_000)
            subscribed_s = time.monotonic() - began
            ticker.phase = "steady"
            await line.seconds(time.monotonic() + WARM_S)
        found = await measured(asked, lambda: line.fresh, line.seconds if told else line.reads)
        counters = line.session.counters()
        lost = sum(counters[name] for name in ("sequence_gaps", "overflows", "dropped", "deaf_items"))
    return {**found, **ticker.figures(), "lost": lost} | ({"subscribe_s": subscribed_s} if told else {})


async def secured(asked: Asked) -> Figures:
    """Connect with sign and encrypt for the first time, with all that is loaded and made for it, and once more."""
    with tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as home:
        folder = Path(home) / "pki"
        words = {"url": asked.url, "security": "Basic256Sha256/SignAndEncrypt", "timeout": "30s"}
        settings = Connection.model_validate(words).at_home(str(folder))
        async with ticking() as ticker:
            with suppress(DeviceRefused):  # the server's certificate is not trusted yet
                async with opcua.DRIVER.open("bench", settings, points(1), CLOCK):
                    pass
            ticker.phase = "accept"
            pki = importlib.import_module("drivers.opcua_pki")
            pki.add(folder, Path(asked.certificate).read_bytes())
            await asyncio.sleep(2 * TICK_S)
            ticker.phase = "again"
            async with opcua.DRIVER.open("bench", settings, points(1), CLOCK) as session:
                await session.read(np.arange(1))
        return {name: value for name, value in ticker.figures().items() if "accept" not in name}


# ------------------------------------------------------------------------------------------------------------- asyncua's ways


class Handler:
    """What asyncua calls for each notification."""

    def __init__(self) -> None:
        self.count = 0

    def datachange_notification(self, _node: Any, _value: Any, _data: Any) -> None:
        self.count += 1

    def bulk(self, published: Any) -> None:
        """What it calls for each answer, decoded, when nothing of it is done for each item."""
        for each in published.NotificationMessage.NotificationData:
            self.count += len(getattr(each, "MonitoredItems", None) or ())


@asynccontextmanager
async def library(asked: Asked) -> AsyncIterator[tuple[Any, Any, list[Any]]]:
    """asyncua.ua, a connected client, and the NodeIds."""
    from asyncua import Client, ua

    logging.disable(logging.WARNING)
    async with Client(asked.url, timeout=60, watchdog_intervall=30) as client:
        index = await client.get_namespace_index(foreign.URI)
        yield ua, client, [ua.NodeId(f"Mass.{number}", index) for number in range(asked.items)]


async def asyncua_handler(asked: Asked) -> Figures:
    async with library(asked) as (_, client, nodes):
        handler = Handler()
        subscription = await client.create_subscription(500, handler)
        began = time.monotonic()
        for start in range(0, len(nodes), 1000):
            piece = [client.get_node(node) for node in nodes[start : start + 1000]]
            await subscription.subscribe_data_change(piece, queuesize=2, sampling_interval=500)
        subscribed_s = time.monotonic() - began
        await asyncio.sleep(WARM_S)
        return await measured(asked, lambda: handler.count, until) | {"subscribe_s": subscribed_s}


async def asyncua_bulk(asked: Asked) -> Figures:
    async with library(asked) as (ua, client, nodes):
        handler = Handler()
        session = client.uaclient.session
        made = await session.create_subscription(
            ua.CreateSubscriptionParameters(500, 1000, 20, 0, True, 0), handler.bulk
        )
        began = time.monotonic()
        for start in range(0, len(nodes), 1000):
            await session.create_monitored_items(_items(ua, made.SubscriptionId, nodes[start : start + 1000], start))
        subscribed_s = time.monotonic() - began
        await asyncio.sleep(WARM_S)
        found = await measured(asked, lambda: handler.count, until) | {"subscribe_s": subscribed_s}
        await session.delete_subscriptions([made.SubscriptionId])
        return found


def _items(ua: Any, subscription: int, nodes: Sequence[Any], first: int) -> Any:
    wanted = ua.CreateMonitoredItemsParameters()
    wanted.SubscriptionId, wanted.TimestampsToReturn = subscription, ua.TimestampsToReturn.Source
    wanted.ItemsToCreate = [
        ua.MonitoredItemCreateRequest(
            ua.ReadValueId(node, ua.AttributeIds.Value),
            ua.MonitoringMode.Reporting,
            ua.MonitoringParameters(first + place, 500, None, 2, True),
        )
        for place, node in enumerate(nodes)
    ]
    return wanted


async def asyncua_read(asked: Asked) -> Figures:
    async with library(asked) as (ua, client, nodes):
        parameters = ua.ReadParameters()
        parameters.NodesToRead = [ua.ReadValueId(node, ua.AttributeIds.Value) for node in nodes]
        values = 0

        async def reads(end: float) -> None:
            nonlocal values
            while time.monotonic() < end:
                values += len(await client.uaclient.read(parameters))

        return await measured(asked, lambda: values, reads)


CASES: dict[str, Callable[[Asked], Coroutine[Any, Any, Figures]]] = {
    "told: ours": lambda asked: ours(asked, "subscribe"),
    "told: asyncua, handler": asyncua_handler,
    "told: asyncua, bulk": asyncua_bulk,
    "read: ours": lambda asked: ours(asked, "poll"),
    "read: asyncua": asyncua_read,
    "secured": secured,
}


# ---------------------------------------------------------------------------------------------------------- the whole agent


def configuration(asked: Asked, mode: str, port: int, data: Path) -> str:
    """Machines of 100 signals, with limits, deadband and delays, as `make bench` has them for Modbus."""
    norm = "{warning: {low: -1, high: 9990000}, alarm: {low: -2, high: 9999000}, deadband: 0.5, on_delay: 2s, off_delay: 5s}"
    lines = [
        f"agent: {{id: bench, site: bench, data_dir: {data}}}",
        f'mqtt: {{url: "mqtt://127.0.0.1:{port}"}}',
        "web: null",
        f'connections: {{ua: {{driver: opcua, url: "{asked.url}", mode: {mode}, timeout: 30s}}}}',
        "machines:",
    ]
    for first in range(0, asked.items, 100):
        lines += [f"  m{first // 100}:", "    connection: ua", "    every: 1s", "    signals:"]
        for number in range(first, min(first + 100, asked.items)):
            address = f"nsu={foreign.URI};s=Mass.{number}"
            lines.append(f'      s{number}: {{address: "{address}", unit: bar, norm: {norm}}}')
    return "\n".join(lines) + "\n"


async def agent(asked: Asked, mode: str) -> Figures:
    """`edge-agent run` with a broker and a consumer beside it: CPU and memory of the agent's process alone."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-bench-")))
        info = await stack.enter_async_context(broker.open_broker(free_ports(1)))
        path, port = folder / "bench.yaml", int(info.url.rpartition(":")[2])
        path.write_text(configuration(asked, mode, port, folder / "data"))
        consumer = Consumer(port)
        stack.callback(consumer.close)
        command = (sys.executable, "-m", "edge_agent", "run", str(path))
        running = stack.enter_context(process(*command, log=folder / "agent.log"))
        await asyncio.sleep(AGENT_WARM_S)
        consumer.measuring = True
        began, used = time.monotonic(), cpu_s(running.pid)
        await asyncio.sleep(asked.seconds)
        consumer.measuring = False
        took, used = time.monotonic() - began, cpu_s(running.pid) - used
        if running.poll() is not None:
            raise SystemExit((folder / "agent.log").read_text())
        return {
            "us": used * 1e6 / max(1, consumer.values),
            "cpu_percent": 100 * used / took,
            "values_s": consumer.values / took,
            "rss_mb": rss_mb(running.pid),
            "missed_beats": sum(line["missed"] for line in consumer.health.get("connections", {}).values()),
        }


AGENTS = {"agent: subscribe": "subscribe", "agent: poll": "poll"}
"""Cases that are processes already."""


# --------------------------------------------------------------------------------------------------------------- the whole run


def child(case: str, asked: Asked) -> Figures:
    """One measurement, in a process of its own."""
    order = {"case": case, **asdict(asked)}
    done = subprocess.run(
        [sys.executable, "-m", "bench.opcua", "--child", json.dumps(order)], check=True, stdout=subprocess.PIPE
    )
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


async def run(options: argparse.Namespace) -> dict[str, Figures]:
    """Every case so often, in turn → the medians of each."""
    cases = [case for case in (*CASES, *AGENTS) if not options.only or any(word in case for word in options.only)]
    found: dict[str, list[Figures]] = {case: [] for case in cases}
    settings = foreign.Settings(
        mass=options.items, policies=["None", "Basic256Sha256"], modes=["None", "SignAndEncrypt"], accept_all=True
    )
    async with foreign.server(**settings) as plant:
        await plant.ramp(["Mass.*"], 1.0)
        asked = Asked(plant.url, options.items, options.seconds, options.profile, str(plant.certificate))
        for turn in range(options.rounds):
            for case in cases:
                print(f"  round {turn + 1} of {options.rounds}: {case}", file=sys.stderr)
                once = agent(asked, AGENTS[case]) if case in AGENTS else asyncio.to_thread(child, case, asked)
                found[case].append(await once)
    return {case: medians(each) for case, each in found.items()}


def medians(figures: Sequence[Figures]) -> Figures:
    return {name: statistics.median(each[name] for each in figures if name in each) for name in figures[0]}


def show(found: dict[str, Figures], options: argparse.Namespace) -> None:
    print(
        f"{options.items:,} Doubles at 1 Hz, medians of {options.rounds} × {options.seconds:g} s, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  {'':24} {'µs CPU each':>12} {'in the kernel':>14} {'% of a core':>12} {'each second':>12} {'RSS, MB':>9} {'subscribe, s':>13}"
    )
    for case, each in found.items():
        if "us" not in each:
            continue
        kernel = f"{each['system_us']:14.3f}" if "system_us" in each else f"{'':14}"
        row = f"  {case:24} {each['us']:12.3f} {kernel} {each['cpu_percent']:12.2f} {each['values_s']:12,.0f}"
        print(f"{row} {each['rss_mb']:9.0f}" + (f" {each['subscribe_s']:13.1f}" if "subscribe_s" in each else ""))
    for kind, target in (("told", TOLD_TARGET_US), ("read", READ_TARGET_US)):
        own, others = found.get(f"{kind}: ours"), [case for case in found if case.startswith(f"{kind}: asyncua")]
        if own is None:
            continue
        ratios = ", ".join(f"1/{found[case]['us'] / own['us']:.0f} of {case.partition(': ')[2]}" for case in others)
        print(f"  {kind}: {own['us']:.3f} µs, {verdict(own['us'], target)} µs; {ratios}")
        show_blocks(own)
    if "secured" in found:
        print("  with sign and encrypt, first (imports, a new key) and again:")
        show_blocks(found["secured"])


def show_blocks(figures: Figures) -> None:
    for name, value in figures.items():
        if name.startswith("block_") and not name.endswith("cpu_ms"):
            cpu = figures[name.replace("_ms", "_cpu_ms")]
            kept = verdict(value, BLOCK_TARGET_MS)
            print(f"    longest block, {name[6:-3]:10} {value:7.0f} ms ({cpu:.0f} ms of CPU), {kept} ms")


def verdict(value: float, target: float) -> str:
    return f"{'within' if value <= target else 'MISSES'} the target of {target:g}"


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m bench.opcua", description="What OPC UA costs.")
    asked.add_argument("--items", type=int, default=10_000)
    asked.add_argument("--seconds", type=float, default=10)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--only", nargs="*", help="cases whose name has one of these words")
    asked.add_argument("--profile", help="a file for cProfile's figures of the measured time (of the last process)")
    asked.add_argument("--json", action="store_true")
    asked.add_argument("--child", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.child:
        order = json.loads(options.child)
        print(json.dumps(asyncio.run(CASES[order.pop("case")](Asked(**order)))))
        return 0
    found = asyncio.run(run(options))
    print(json.dumps(found)) if options.json else show(found, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
