"""Negative controls: the same foreign server and the same faults, and the library's own client with its own reconnect.

Each of these asserts that the library does fail. When one of them turns red, the library has learned something: see whether
the driver's own way around it is still needed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.client.client import Client
from asyncua.common.subscription import Subscription
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests import foreign
from tests.conftest import eventually
from tests.opcua_line import OTHERS, shared

PERIOD_MS = 50
KEEP_ALIVES = 4
"""A keep-alive each 200 ms."""
WATCHED_S = 1.0
"""How long nothing comes, where nothing will ever come: five keep-alives."""
URI = "urn:control:client"


@pytest.fixture(scope="module")
def plant() -> Iterator[foreign.Plant]:
    with shared(publishing_min_ms=20) as standing:
        yield standing


@pytest.fixture(autouse=True)
def _the_library_speaks_to_nobody() -> Iterator[None]:
    logger = logging.getLogger("asyncua")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@dataclass(slots=True)
class Theirs:
    """The library's client with its reconnect, and a subscription; got: what it delivered, in order."""

    client: Client
    subscription: Subscription
    got: list[Any] = field(default_factory=list)

    async def until(self, value: Any) -> None:
        await eventually(lambda: value in self.got)

    @property
    def connected(self) -> bool:
        return bool(self.client.state.name == "CONNECTED")


@asynccontextmanager
async def theirs(
    plant: foreign.Plant, *names: str, period_ms: int = PERIOD_MS, keep_alives: int = KEEP_ALIVES, **options: Any
) -> AsyncIterator[Theirs]:
    """options: of its create_subscription; with any, nobody takes what comes."""
    client = Client(plant.url, timeout=2, watchdog_intervall=0.2)
    await client.connect(auto_reconnect=True, reconnect_max_delay=1.0)
    parameters = ua.CreateSubscriptionParameters(
        RequestedPublishingInterval=period_ms,
        RequestedLifetimeCount=10_000,
        RequestedMaxKeepAliveCount=keep_alives,
        PublishingEnabled=True,
    )
    subscription = await client.create_subscription(parameters, **options)
    client._stale_check_margin = 5.0  # its watchdog would take the pauses of a busy machine for silence
    one = Theirs(client, subscription)
    pumping = None if options else asyncio.ensure_future(pump(one))
    try:
        for name in names:
            node = client.get_node(f"ns={plant.index};s={name}")
            await subscription.subscribe_data_change(node, queuesize=100, sampling_interval=0)
        yield one
    finally:
        if pumping is not None:
            pumping.cancel()
        try:
            async with asyncio.timeout(3):
                await client.disconnect()
        except (Exception, TimeoutError):  # noqa: BLE001 - how it ends is not what is looked at
            client.disconnect_socket()


async def pump(one: Theirs) -> None:
    async for event in one.subscription:
        one.got.append(getattr(event, "value", event))


async def idle_for_keep_alives(one: Theirs) -> None:
    """Until its subscription heard two keep-alives."""
    for _ in range(2):
        before = one.subscription.last_publish_at
        await eventually(lambda before=before: one.subscription.last_publish_at != before)  # type: ignore[misc]


async def while_away(plant: foreign.Plant, values: list[float]) -> None:
    """The line is cut, these values come one by one, the line returns."""
    await plant.stop_listening()
    await plant.drop()
    for value in values:
        await plant.set("Counter", value)
        await asyncio.sleep(2 * PERIOD_MS / 1000)  # each has a message of its own
    await plant.start_listening()


async def eventually_kept(plant: foreign.Plant, messages: int) -> None:
    """Until the server keeps so many messages that were not acknowledged."""
    end = asyncio.get_running_loop().time() + 10
    while True:
        (session,) = (await plant.statistics())["sessions"]
        if session["subscriptions"][0]["unacknowledged"] >= messages:
            return
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.02)


async def requests(plant: foreign.Plant, service: str) -> int:
    return int((await plant.statistics())["requests"].get(service, 0))


def test_control_a_living_subscription_is_thrown_away_after_a_cut_with_all_that_the_server_kept_for_it(
    plant: foreign.Plant,
) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter") as one:
            await one.until(0)
            await while_away(plant, [6, 7, 8, 9, 10])
            await one.until(10)
            assert one.got == [0, 10], "and not a word says that something is missing"

    asyncio.run(run())


def test_control_the_first_value_after_idle_is_lost_since_a_keep_alive_counts_as_a_message(
    plant: foreign.Plant,
) -> None:
    """Its repair after a cut is called here as it calls it: node-opcua refuses the transfer that comes before."""

    async def run() -> None:
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter") as one:
            await one.until(0)
            await idle_for_keep_alives(one)
            assert one.subscription.last_sequence_number == 2, "one message came; the second is still to come"
            await plant.skip_notifications()
            await plant.set("Counter", 6)
            await eventually_kept(plant, 1)
            assert await one.subscription._republish_gaps([2]), "it thinks that it has everything"
            assert one.got == [0]

    asyncio.run(run())


def test_control_a_republish_without_data_is_asked_for_ever(plant: foreign.Plant) -> None:
    """See above: its repair as it calls it."""

    async def run() -> None:
        async with theirs(plant, "Counter") as one:
            await eventually(lambda: one.got)
            await plant.republish("empty")
            before = await requests(plant, "Republish")
            repair = asyncio.ensure_future(one.subscription._republish_gaps([1]))
            await asyncio.wait([repair], timeout=0.5)
            assert not repair.done()
            assert await requests(plant, "Republish") > before + 50
            repair.cancel()
            await asyncio.wait([repair])
        await plant.republish("normal")

    asyncio.run(run())


def test_control_after_a_restart_with_moved_namespaces_another_variable_is_delivered_as_ours() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20) as plant, theirs(plant, "Types.Double") as one:
            await one.until(2.5)
            await plant.restart(before=["urn:other"])
            await one.until(OTHERS)
            assert one.connected

    asyncio.run(run())


def test_control_a_node_that_comes_late_after_a_restart_never_comes() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20) as plant:
            await plant.add_variable("Late.Level", "Double", 1.5)
            async with theirs(plant, "Late.Level", "Counter") as one:
                await one.until(1.5)
                await one.until(0)
                del one.got[:]
                await plant.restart()
                await one.until(0)
                await plant.add_variable("Late.Level", "Double", 4.5)
                await plant.set("Late.Level", 5.5)
                await plant.set("Counter", 1)
                await one.until(1)
                await asyncio.sleep(WATCHED_S)
                assert one.connected
                assert not {4.5, 5.5} & set(one.got)
                assert len(one.subscription._monitored_items) == 1

    asyncio.run(run())


def test_control_when_its_subscription_is_refused_once_it_is_dead_and_calls_itself_connected(
    plant: foreign.Plant,
) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter") as one:
            await one.until(0)
            await plant.republish("refused")
            await plant.refuse("TransferSubscriptions", "BadServiceUnsupported", 1)
            await plant.refuse("CreateSubscription", "BadTooManySubscriptions", 1)
            before = await requests(plant, "CreateSubscription")
            await while_away(plant, [])
            end = asyncio.get_running_loop().time() + 10
            while await requests(plant, "CreateSubscription") == before:
                assert asyncio.get_running_loop().time() < end
                await asyncio.sleep(0.02)
            await plant.set("Counter", 7)
            await asyncio.sleep(WATCHED_S)
            assert one.connected
            assert one.subscription.subscription_id is None
            assert 7 not in one.got
            assert await requests(plant, "CreateSubscription") == before + 1, "it does not try again"
        await plant.republish("normal")

    asyncio.run(run())


def test_control_a_gap_in_the_numbers_goes_by_and_the_old_value_stands(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter", "Types.Double") as one:
            await one.until(0)
            await one.until(2.5)
            await plant.skip_notifications(lose=True)
            await plant.set("Counter", 1)
            await idle_for_keep_alives(one)
            await plant.set("Types.Double", 3.5)
            await one.until(3.5)
            await asyncio.sleep(WATCHED_S)
            assert one.connected
            assert 1 not in one.got, "0 is what it shows, for as long as the variable does not change again"
        await plant.set("Types.Double", 2.5)

    asyncio.run(run())


def test_control_an_item_that_went_deaf_is_never_found(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Types.Int16", 1)
        async with theirs(plant, "Types.Int16", "Counter") as one:
            await one.until(1)
            await plant.deafen(["Types.Int16"])
            await plant.set_many([{"node": "Types.Int16", "value": 9}, {"node": "Counter", "value": 5}])
            await one.until(5)
            await asyncio.sleep(WATCHED_S)
            assert one.connected
            assert 9 not in one.got

    asyncio.run(run())


def test_control_a_slow_consumer_loses_values_and_nobody_is_told(
    plant: foreign.Plant, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter", queue_maxsize=5) as one:
            queue = one.subscription._event_queue
            assert queue is not None
            await eventually(lambda: queue.qsize() == 1)
            with caplog.at_level(logging.WARNING, logger="asyncua"):
                await plant.ramp(["Counter"], 0.002, start=1, count=50)
                await eventually(lambda: queue.qsize() == 5 and queue._queue[-1].value == 50)
            left = [(await one.subscription.next_event(1)).value for _ in range(5)]
            assert left == [46, 47, 48, 49, 50]
            assert not caplog.records

    asyncio.run(run())


def test_control_a_handler_gets_a_task_for_each_value_and_no_order(plant: foreign.Plant) -> None:
    class Handler:
        def __init__(self) -> None:
            self.running, self.most = 0, 0
            self.ended: list[float] = []

        async def datachange_notification(self, _node: Any, value: float, _data: Any) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.001 * (60 - value))  # who looks something up for each value
            self.ended.append(value)
            self.running -= 1

    async def run() -> None:
        handler = Handler()
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter", handler=handler):
            await eventually(lambda: handler.ended == [0])
            await plant.ramp(["Counter"], 0.001, start=1, count=50)
            await eventually(lambda: len(handler.ended) == 51)
            assert handler.most > 5
            assert handler.ended != sorted(handler.ended)

    asyncio.run(run())


def test_control_a_bad_value_is_read_as_if_it_were_good(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Types.Byte", 0, status="BadSensorFailure")
        async with theirs(plant) as one:
            nodes = [one.client.get_node(f"ns={plant.index};s={name}") for name in ("Types.Double", "Types.Byte")]
            assert await one.client.read_values(nodes) == [2.5, 0]
        await plant.set("Types.Byte", 200)

    asyncio.run(run())


def test_control_its_watchdog_goes_by_what_was_asked_for_and_not_by_what_was_granted(plant: foreign.Plant) -> None:
    """A subscription that is well is made anew, since the server granted fewer keep-alives than were asked for."""

    async def run() -> None:
        await plant.set("Counter", 0)
        async with theirs(plant, "Counter", period_ms=700, keep_alives=1) as one:
            one.client._stale_check_margin = 1.5  # its own
            await one.until(0)
            (session,) = (await plant.statistics())["sessions"]
            assert session["subscriptions"][0]["keep_alive_count"] == 2
            await eventually(lambda: one.subscription._recreate_count >= 1)
            await eventually(lambda: one.got == [0, 0])  # the same value again

    asyncio.run(run())


def test_control_any_certificate_of_a_server_is_taken(tmp_path: Path) -> None:
    async def run() -> None:
        files = tmp_path / "client.pem", tmp_path / "client.der"
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        await setup_self_signed_certificate(*files, URI, "localhost", usage, {"commonName": "control"})
        async with foreign.server(policies=["Basic256Sha256"], modes=["SignAndEncrypt"]) as plant:
            client = Client(plant.url)
            client.application_uri = URI
            mode = ua.MessageSecurityMode.SignAndEncrypt
            await client.set_security(SecurityPolicyBasic256Sha256, str(files[1]), str(files[0]), mode=mode)
            async with client:
                assert await client.get_node(f"ns={plant.index};s=Types.Double").read_value() == 2.5

    asyncio.run(run())


def test_control_each_answer_is_a_line_in_the_log_with_all_its_values(
    plant: foreign.Plant, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        with caplog.at_level(logging.INFO, logger="asyncua"):
            async with theirs(plant, "Counter") as one:
                for number in range(5):
                    await plant.set("Counter", 1000 + number)
                    await one.until(1000 + number)
        lines = [record for record in caplog.records if "Publish callback called" in record.getMessage()]
        assert len(lines) >= 5
        assert "1000" in "".join(line.getMessage() for line in lines)

    asyncio.run(run())
