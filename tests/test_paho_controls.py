"""Negative controls: the same faults, and plain paho with its own queue, its own reconnect and its own callbacks.

Each of these asserts that the library does fail (MQ1 to MQ6 of docs/mqtt.md); beside it stands what the agent does. When one
of them turns red, the library has learned something: see whether the agent's own way around it is still needed.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_agent.clock import SystemClock
from tests import brokers
from tests.conftest import eventually
from tests.publishing import TOPIC, MemoryStore, Refusing, link, publishing


@contextmanager
def plain(url: str = "", **callbacks: Any) -> Iterator[Client]:
    """paho as its examples use it. url: where to connect; without one it stays offline."""
    client = Client(CallbackAPIVersion.VERSION2, "control", protocol=MQTTProtocolVersion.MQTTv5)
    client.reconnect_delay_set(1, 1)
    for name, hook in callbacks.items():
        setattr(client, name, hook)
    if url:
        client.connect_async("127.0.0.1", int(url.rpartition(":")[2]))
        client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        thread = client._thread
        if thread is not None and thread.is_alive():
            client.loop_stop()


@asynccontextmanager
async def connected(url: str, **callbacks: Any) -> AsyncIterator[Client]:
    with plain(url, **callbacks) as client:
        await eventually(client.is_connected)
        yield client
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


def test_control_mq1_its_queue_has_no_bound_and_dies_with_it() -> None:
    with plain() as client:
        for _ in range(5_000):
            client.publish(TOPIC, b"x", qos=1)
        assert len(client._out_messages) == 5_000
    with plain() as again:
        assert not again._out_messages


def test_mq1_the_agent_gives_the_library_a_window_and_keeps_the_rest() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(5_000)
        broker = Refusing(lambda *_: None)  # it acknowledges nothing
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url)) as one:
            await eventually(lambda: one.status()["in_flight"] >= 16)
            await asyncio.sleep(0.05)
            assert one._link._now is not None
            assert len(one._link._now.client._out_messages) <= 20
            assert len(store.due) == 5_000

    asyncio.run(main())


def test_control_mq2_a_refused_message_counts_as_published() -> None:
    async def main() -> None:
        broker = Refusing(lambda *_: 0x87)
        async with brokers.scripted(broker.serve) as url, connected(url) as client:
            info = client.publish(TOPIC, b'{"seq":1}', qos=1)
            await eventually(info.is_published)
            assert info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
            assert not client._out_messages, "and it is gone"

    asyncio.run(main())


def test_mq2_the_agent_keeps_what_was_refused() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit()
        broker = Refusing(lambda *_: 0x87)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url)) as one:
            await eventually(lambda: one.status()["refused"] == 1)
            assert list(store.due) == [1]

    asyncio.run(main())


def test_control_mq3_it_sends_more_than_the_broker_takes_at_once_and_larger() -> None:
    async def main() -> None:
        limits = b"\x21\x00\x05\x27\x00\x00\x03\xe8"  # Receive Maximum 5, Maximum Packet Size 1000
        broker = Refusing(lambda *_: None, granted=limits)
        async with brokers.scripted(broker.serve) as url, connected(url) as client:
            for seq in range(50):
                client.publish(TOPIC, b'{"seq":%d,"fill":"%s"}' % (seq, b"x" * 2_000), qos=1)
            await eventually(lambda: len(broker.asked) == 20)
            assert max(map(len, broker.payloads)) > 1_000

    asyncio.run(main())


def test_mq3_the_agent_keeps_to_both_limits() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(2, size=2_000)
        store.commit(48)
        broker = Refusing(lambda *_: None, granted=b"\x21\x00\x05\x27\x00\x00\x03\xe8")
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url)) as one:
            await eventually(lambda: len(broker.asked) == 5)
            await asyncio.sleep(0.1)
            assert len(broker.asked) == 5
            assert max(map(len, broker.payloads)) < 1_000
            assert one.status()["quarantined"] == 2

    asyncio.run(main())


def test_control_mq4_a_message_at_which_the_broker_breaks_the_line_is_sent_at_every_reconnect_for_ever() -> None:
    """The agent: test_broker_faults.py, test_a_message_at_which_the_broker_breaks_the_line_is_found_…"""

    async def main() -> None:
        broker = Refusing(lambda _topic, seq: -0x95 if seq == 1 else 0)
        async with brokers.scripted(broker.serve) as url:
            with plain(url) as client:
                await eventually(client.is_connected)
                infos: list[MQTTMessageInfo] = [
                    client.publish(TOPIC, b'{"seq":%d}' % seq, qos=1) for seq in range(1, 5)
                ]
                await eventually(lambda: broker.connections >= 4, 30)
                assert [seq for _, seq in broker.asked].count(1) >= 3
                assert not any(info.is_published() for info in infos), "and the good ones behind it wait with it"
                client.disconnect()
                await asyncio.to_thread(client.loop_stop)

    asyncio.run(main())


def test_control_mq5_a_publish_while_offline_says_no_and_keeps_the_message() -> None:
    """So whoever tries again has doubled it. The agent: test_mqtt.py, test_nothing_is_published_while_offline_…"""

    async def main() -> None:
        broker = Refusing(lambda *_: 0)
        async with brokers.scripted(broker.serve) as url:
            with plain() as client:
                for _ in range(2):
                    assert client.publish(TOPIC, b'{"seq":1}', qos=1).rc == MQTTErrorCode.MQTT_ERR_NO_CONN
                client.connect_async("127.0.0.1", int(url.rpartition(":")[2]))
                client.loop_start()
                await eventually(lambda: broker.asked == [(TOPIC, 1), (TOPIC, 1)])
                client.disconnect()
                await asyncio.to_thread(client.loop_stop)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_control_mq6_an_error_in_a_callback_ends_its_thread_and_publish_goes_on_saying_success() -> None:
    """The agent: test_mqtt.py, test_the_death_of_the_network_thread_is_noticed_and_mended."""

    def die(*_: object) -> None:
        raise RuntimeError("a defect of somebody's")

    async def main() -> None:
        broker = Refusing(lambda *_: 0)
        async with brokers.scripted(broker.serve) as url:
            with plain(url, on_publish=die) as client:
                await eventually(client.is_connected)
                thread = client._thread
                assert thread is not None
                client.publish(TOPIC, b'{"seq":1}', qos=1)
                await eventually(lambda: not thread.is_alive())
                later = client.publish(TOPIC, b'{"seq":2}', qos=1)
                assert later.rc == MQTTErrorCode.MQTT_ERR_SUCCESS
                await asyncio.sleep(0.2)
                assert not later.is_published()
                line = client.socket()
                if line is not None:
                    line.close()

    asyncio.run(main())


def test_control_mq6_publish_waits_for_as_long_as_somebody_s_callback_takes() -> None:
    """The lock of its queue is held while on_publish runs. The agent's callbacks only hand a fact over, so that its loop
    waits for nobody: test_broker_faults.py, test_a_broker_that_reads_nothing_stops_no_loop_and_is_left.
    """
    inside, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        inside.set()
        go_on.wait(20)

    async def main() -> None:
        broker = Refusing(lambda *_: 0)
        async with brokers.scripted(broker.serve) as url, connected(url, on_publish=slow) as client:
            client.publish(TOPIC, b'{"seq":1}', qos=1)
            await eventually(inside.is_set)
            ended = threading.Event()

            def second() -> None:
                client.publish(TOPIC, b'{"seq":2}', qos=1)
                ended.set()

            threading.Thread(target=second, daemon=True).start()
            await asyncio.sleep(0.2)
            assert not ended.is_set()
            go_on.set()
            await eventually(ended.is_set)

    asyncio.run(main())
