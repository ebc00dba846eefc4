"""A session of the OPC UA driver, or a whole poller, at a foreign server: what somebody would see of it, reading by reading.

Rule: what is shown as good is remembered for ever, so that one wrong value is found whenever it was shown.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drivers import opcua
from drivers.opcua_settings import Address, Connection
from edge_agent.clock import AgentTime, SystemClock
from edge_agent.contract import CODE_MASK, SECOND_US, Clock, Driver, Frame, Point, Quality, Readings, Session
from edge_agent.poller import Line, PolledSignal, Poller
from edge_agent.testing import SkippingClock
from tests import foreign
from tests.conftest import eventually

FRESH = (Quality.GOOD, Quality.UNCERTAIN, Quality.CLOCK)
EVERY_US = 100_000
KEEP_ALIVES_S = 3.0
"""Three keep-alives of a second: as long as nothing may be heard of a signal."""
WITHIN_S = 20.0
OTHERS = 777.0
"""What shows a variable that stands where ours was."""


def ours(*names: str) -> list[str]:
    """Addresses of the plant's variables."""
    return [f"nsu={foreign.URI};{name if name[1] == '=' else 's=' + name}" for name in names]


def signals(addresses: Sequence[Any], every_us: int = EVERY_US) -> list[Point]:
    """Points; an address is a text, or its keys."""
    keys = [each if isinstance(each, dict) else {"address": each} for each in addresses]
    return [Point(f"m.s{n}", Address.model_validate(each), every_us) for n, each in enumerate(keys)]


@dataclass(slots=True)
class Shown:
    """One signal. values, qualities: of each row that said something of it, in order; t: agent's clock, µs."""

    values: list[float] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)
    t: list[int] = field(default_factory=list)
    ts: list[int] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)
    """When it was fresh or confirmed."""

    def take(self, value: float, quality: int, t: int, ts: int) -> None:
        code = Quality(quality & ~0x20)
        if code is Quality.HOLD:
            return
        if code is Quality.CONFIRMED or code in FRESH:
            self.heard.append(t)
        if code is Quality.CONFIRMED:
            return
        self.values.append(value)
        self.qualities.append(code)
        self.t.append(t)
        self.ts.append(ts)

    @property
    def last(self) -> tuple[float, Quality]:
        return (self.values[-1], self.qualities[-1]) if self.values else (float("nan"), Quality.HOLD)

    @property
    def good(self) -> list[float]:
        """All values that were shown as fit to judge."""
        return [value for value, quality in zip(self.values, self.qualities, strict=True) if quality in FRESH]

    def is_last(self, value: float, quality: Quality) -> bool:
        return self.last == (value, quality)

    def is_good(self, value: float) -> bool:
        return self.last[0] == value and self.last[1] in FRESH


# ------------------------------------------------------------------------------------------------------- a bare session


@dataclass(slots=True)
class Talk:
    """A session that is read by hand. session: the driver's own, so that a test may look into it."""

    session: opcua.OpcUaSession
    clock: SkippingClock
    shown: list[Shown]

    async def read(self, *which: int) -> Readings:
        due = np.array(which or range(len(self.shown)), np.int64)
        readings = await self.session.read(due)
        rows = (-1, len(due))
        values, quality, ts = (a.reshape(rows) for a in (readings.values, readings.quality, readings.ts))
        times = readings.t if readings.t is not None else [self.clock.monotonic_us()] * len(values)
        for row, t in enumerate(times):
            for place, point in enumerate(due.tolist()):
                self.shown[point].take(float(values[row, place]), int(quality[row, place]), int(t), int(ts[row, place]))
        return readings

    async def turn(self) -> Readings:
        """Between two reads, and a read."""
        await self.session.idle(self.clock.monotonic_us() + 10 * SECOND_US)
        return await self.read()

    async def until(self, condition: Callable[[], object]) -> None:
        """Turn after turn until it holds."""
        end = asyncio.get_running_loop().time() + WITHIN_S
        while not condition():
            assert asyncio.get_running_loop().time() < end, f"did not come true: {self.state()}"
            await self.turn()
            await asyncio.sleep(0.01)

    def state(self) -> str:
        """For who reads a failure."""
        shown = [(each.last, self.session.explain(n)) for n, each in enumerate(self.shown)]
        return f"{shown[:8]}, {self.session.counters()}"

    async def until_told(self) -> None:
        """Until the server tells of all of them by itself, and has begun to."""
        await self.until(lambda: self.session.points.told.all() and self.counted("notifications") >= len(self.shown))
        await self.read()

    async def skip(self, seconds: float, plant: foreign.Plant) -> None:
        """Time passes in which the server was heard: a change of Counter, which must be among the signals, says so."""
        self.clock.skip(round(seconds * SECOND_US))
        subscription = self.session.subscription
        if subscription is None:
            return
        before = subscription.heard_us
        await plant.ramp(["Counter"], 0.001, start=random.randrange(10**6), count=1)
        await eventually(lambda: subscription.heard_us != before, WITHIN_S)

    async def heard(self, values: int) -> None:
        """Until that many values more were told, which nobody has read."""
        telling = self.session.subscription
        assert telling is not None
        wanted = telling._values + values
        await eventually(lambda: telling._values >= wanted, WITHIN_S)

    async def lost(self, plant: foreign.Plant, skipped: int) -> None:
        """Until the server has kept so many of its messages to itself."""
        end = asyncio.get_running_loop().time() + WITHIN_S
        while (await plant.statistics())["skipped"] < skipped:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.005)

    async def looked_after(self, plant: foreign.Plant) -> None:
        """The time passes in which what is told is compared with what is there, twice."""
        await self.skip(61, plant)
        await self.turn()
        await self.skip(11, plant)
        await self.turn()

    def counted(self, name: str) -> float:
        return self.session.counters()[name]

    def holds(self, values: Sequence[float]) -> bool:
        """Whether these are what is shown as good now."""
        return all(each.is_good(value) for each, value in zip(self.shown, values, strict=True))


@asynccontextmanager
async def talk(
    plant: foreign.Plant,
    addresses: Sequence[Any],
    *,
    clock: SkippingClock | None = None,
    notes: bytes | None = None,
    every_us: int = EVERY_US,
    **keys: Any,
) -> AsyncIterator[Talk]:
    connection = Connection.model_validate({"url": plant.url, "timeout": "2s", **keys})
    points, clock = signals(addresses, every_us), clock or SkippingClock()
    async with opcua.DRIVER.open("ua", connection, points, clock) as session:
        assert isinstance(session, opcua.OpcUaSession)
        if notes is not None:
            session.recall(notes)
        yield Talk(session, clock, [Shown() for _ in points])


# -------------------------------------------------------------------------------------------------------- a whole poller


@dataclass(slots=True)
class Tries:
    """The driver, which notes when it was asked to connect (monotonic µs). See contract.Driver."""

    at: list[int] = field(default_factory=list)
    Connection: Any = opcua.DRIVER.Connection
    Address: Any = opcua.DRIVER.Address
    inherited: frozenset[str] = opcua.DRIVER.inherited

    def open(
        self, name: str, connection: Any, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        self.at.append(clock.monotonic_us())
        return opcua.DRIVER.open(name, connection, points, clock)


@dataclass(slots=True)
class Watch:
    """A poller that runs, and what came of it. shown: by signal, times monotonic µs of the intake."""

    poller: Poller
    tries: Tries
    shown: list[Shown]

    async def until(self, condition: Callable[[], object]) -> None:
        await eventually(condition, WITHIN_S)

    async def all_good_since(self, since_us: int) -> int:
        """Wait until each has a fresh value later than that; returns when the last of them had (µs)."""

        def first(each: Shown) -> int | None:
            found = zip(each.t, each.qualities, strict=True)
            return next((t for t, quality in found if t > since_us and quality in FRESH), None)

        await self.until(lambda: all(first(each) is not None for each in self.shown))
        return max(first(each) or 0 for each in self.shown)

    def counted(self, name: str) -> float:
        return self.poller.look().counters.get(name, 0)


class Shortest(random.Random):
    """Jitter at its shortest: how long the poller backs off is not what is looked at here."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b)


@asynccontextmanager
async def watched(
    plant: foreign.Plant,
    addresses: Sequence[Any],
    *,
    memory: MutableMapping[str, bytes] | None = None,
    every_us: int = EVERY_US,
    **keys: Any,
) -> AsyncIterator[Watch]:
    """A poller at this plant until the end of the block."""
    clock, tries = SystemClock(), Tries()
    points = signals(addresses, every_us)
    connection = Connection.model_validate({"url": plant.url, "timeout": "2s", **keys})
    polled = tuple(PolledSignal("m", n, point, every_us) for n, point in enumerate(points))
    driver: Driver = tries
    line = Line("ua", driver, connection, polled, {"m": len(points)})
    shown = [Shown() for _ in points]

    def intake(frames: list[Frame]) -> None:
        now = clock.monotonic_us()
        for frame in frames:
            at = frame.at if frame.at is not None else np.repeat(frame.ts[:, np.newaxis], len(shown), axis=1)
            for row in range(len(frame.t)):
                for n, each in enumerate(shown):
                    each.take(float(frame.values[row, n]), int(frame.quality[row, n]), now, int(at[row, n]))

    poller = Poller(line, clock, AgentTime(clock, 0), intake, lambda *_: None, rng=Shortest(), memory=memory)
    running = asyncio.ensure_future(poller.run())
    try:
        yield Watch(poller, tries, shown)
    finally:
        running.cancel()
        await asyncio.wait([running])


# ------------------------------------------------------------------------------------------------------- a shared server


@contextmanager
def shared(**settings: Any) -> Iterator[foreign.Plant]:
    """A server for many tests, each with a loop of its own."""
    with asyncio.Runner() as runner:
        standing = foreign.server(**settings)
        plant = runner.run(standing.__aenter__())
        try:
            yield plant
        finally:
            runner.run(standing.__aexit__(None, None, None))


def code(quality: int) -> Quality:
    return Quality(quality & CODE_MASK)
