"""The stand-in of the simulator and the real connection to a real broker are held to the same cases.

What the simulation proves of the publisher rests on this: a case that only one of the two passes is a wrong simulation.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from edge_agent.clock import SystemClock
from edge_agent.mqtt import FAILURE, Link, LinkSettings, LinkState
from edge_agent.publisher import Connection
from tests import brokers, virtual
from tests.conftest import eventually
from tests.simulator import Broker, Life, SimLink

pytestmark = pytest.mark.timeout(120)

WILL = b'{"state":"offline"}'
STATUS = "plant/status"
ACL = "topic readwrite plant/good/#\ntopic readwrite plant/status\nuser admin\ntopic readwrite #\n"
NOT_AUTHORIZED = 0x87


class Side(Protocol):
    """A broker with somebody who listens."""

    def link(self) -> Connection: ...

    async def until(self, condition: Callable[[], object]) -> None: ...

    def kill(self) -> None: ...

    async def start(self) -> None: ...

    def payloads(self, topic: str) -> list[bytes]: ...


@dataclass
class Ear:
    """A connection that runs, and what it said. at_call: whether it was connected when it called."""

    link: Connection
    acks: list[tuple[int, int]] = field(default_factory=list)
    calls: list[tuple[str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.link.on_ack = lambda token, reason: self.acks.append((token, reason))
        self.link.on_connected = lambda: self.calls.append(("connected", self.link.connected))
        self.link.on_lost = lambda: self.calls.append(("lost", self.link.connected))

    @property
    def tokens(self) -> list[int]:
        return [token for token, _ in self.acks]


@asynccontextmanager
async def linked(side: Side) -> AsyncIterator[Ear]:
    ear = Ear(side.link())
    running = asyncio.create_task(ear.link.run())
    try:
        yield ear
    finally:
        running.cancel()
        await asyncio.wait([running])


async def nothing_before_it_is_up(side: Side) -> None:
    ear = Ear(side.link())
    assert (ear.link.state, ear.link.version, ear.link.connected) == (LinkState.CONNECTING, None, False)
    assert not ear.link.publish("plant/good/x", b"before", False, 1)
    async with linked(side) as up:
        await side.until(lambda: up.link.connected)
        assert up.calls == [("connected", True)]
        assert (up.link.state, up.link.version, up.link.reason) == (LinkState.CONNECTED, "5", "")
        assert up.link.since_us is not None
        assert up.link.receive_max >= 1 and up.link.packet_max >= 1000
        assert up.link.publish("plant/good/x", b"after", False, 2)
        assert up.acks == [], "an acknowledgement comes after publish has returned"
        await side.until(lambda: up.acks)
        assert up.tokens == [2]
        await side.until(lambda: side.payloads("plant/good/x"))
        assert side.payloads("plant/good/x") == [b"after"]


async def in_order_and_each_acknowledged_once(side: Side) -> None:
    async with linked(side) as up:
        await side.until(lambda: up.link.connected)
        for token in range(20):
            assert up.link.publish(f"plant/good/{token % 3}", b"%d" % token, False, token)
        await side.until(lambda: len(up.acks) >= 20)
        assert up.tokens == list(range(20))
        assert all(reason < FAILURE for _, reason in up.acks)
        for topic in range(3):
            await side.until(lambda topic=topic: len(side.payloads(f"plant/good/{topic}")) >= 20 // 3)
        for topic in range(3):
            assert side.payloads(f"plant/good/{topic}") == [b"%d" % token for token in range(topic, 20, 3)]


async def a_refusal_is_told_and_delivers_nothing(side: Side) -> None:
    async with linked(side) as up:
        await side.until(lambda: up.link.connected)
        up.link.publish("plant/bad/x", b"no", False, 1)
        up.link.publish("plant/good/x", b"yes", False, 2)
        await side.until(lambda: len(up.acks) == 2)
        assert up.acks[0] == (1, NOT_AUTHORIZED)
        assert up.acks[1][1] < FAILURE
        await side.until(lambda: side.payloads("plant/good/x"))
        assert (side.payloads("plant/bad/x"), side.payloads("plant/good/x")) == ([], [b"yes"])


async def a_lost_broker_is_told_once_and_comes_back(side: Side) -> None:
    async with linked(side) as up:
        await side.until(lambda: up.link.connected)
        side.kill()
        await side.until(lambda: len(up.calls) == 2)
        assert up.calls == [("connected", True), ("lost", False)]
        assert up.link.reason != ""
        assert not up.link.publish("plant/good/x", b"between", False, 1)
        await side.until(lambda: up.link.state is LinkState.BACKING_OFF)
        await side.start()
        await side.until(lambda: up.link.connected)
        assert [what for what, _ in up.calls] == ["connected", "lost", "connected"]
        assert up.link.publish("plant/good/x", b"after", False, 2)
        await side.until(lambda: up.acks)
        assert up.tokens == [2]


async def a_cut_connection_leaves_its_will(side: Side) -> None:
    async with linked(side) as up:
        await side.until(lambda: up.link.connected)
        up.link.publish(STATUS, b"online", True, 1)
        await side.until(lambda: up.acks)
    await side.until(lambda: side.payloads(STATUS)[-1:] == [WILL])
    assert up.calls == [("connected", True), ("lost", False)]


async def a_good_bye_leaves_no_will(side: Side) -> None:
    """Whoever says it waits for the acknowledgements first: what is on its way then may be lost."""
    async with linked(side) as up:
        await side.until(lambda: up.link.connected)
        up.link.publish(STATUS, b"stopped", True, 5)
        await side.until(lambda: up.acks)
        await up.link.disconnect(2.0)
        await side.until(lambda: not up.link.connected)
        assert not up.link.publish("plant/good/x", b"late", False, 6)
    await side.until(lambda: side.payloads(STATUS))
    assert side.payloads(STATUS) == [b"stopped"]
    assert [what for what, _ in up.calls] == ["connected", "lost"]


Case = Callable[[Side], Awaitable[None]]
CASES: list[Case] = [
    nothing_before_it_is_up,
    in_order_and_each_acknowledged_once,
    a_refusal_is_told_and_delivers_nothing,
    a_lost_broker_is_told_once_and_comes_back,
    a_cut_connection_leaves_its_will,
    a_good_bye_leaves_no_will,
]


@dataclass
class Real:
    """mosquitto and paho."""

    broker: brokers.Mosquitto
    consumer: brokers.Consumer

    def link(self) -> Connection:
        settings = LinkSettings((self.broker.url,), "press-hall", "auto", "press", "p")
        return Link(settings, (STATUS, WILL), SystemClock())

    async def until(self, condition: Callable[[], object]) -> None:
        await eventually(condition, 20)

    def kill(self) -> None:
        self.broker.kill()

    async def start(self) -> None:
        await self.broker.start()

    def payloads(self, topic: str) -> list[bytes]:
        return self.consumer.payloads(topic)


class Simulated:
    """The simulator's broker."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._clock = virtual.VirtualClock()
        self._broker = Broker(random.Random(1), refuses=("plant/bad", NOT_AUTHORIZED))
        self._broker.on_message = self._broker.on_retained = lambda topic, payload: self.heard.append((topic, payload))

    def link(self) -> Connection:
        settings = LinkSettings(("mqtt://broker.example",), "press-hall")
        return SimLink(self._broker, Life(0), settings, (STATUS, WILL), self._clock)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(100):
            while not condition():
                await asyncio.sleep(0.001)

    def kill(self) -> None:
        self._broker.fall()

    async def start(self) -> None:
        self._broker.up = True

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for its, payload in self.heard if its == topic]


def named(case: Any) -> str:
    return str(case.__name__)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_real_connection(case: Case) -> None:
    async def main() -> None:
        files = {"users": brokers.password_file({"press": "p", "admin": "a"}), "acl": "user press\n" + ACL}
        lines = ("allow_anonymous false", "password_file {folder}/users", "acl_file {folder}/acl")
        async with (
            brokers.mosquitto(*lines, files=files) as running,
            brokers.Consumer(running.port, user=("admin", "a")) as consumer,
        ):
            await case(Real(running, consumer))

    asyncio.run(main())


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_simulated_connection(case: Case) -> None:
    async def main() -> None:
        await case(Simulated())

    virtual.run(main())
