"""The delivery promise over real brokers: everything once or more, in order, whatever happens in between."""

import asyncio

import orjson
import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edge_agent import broker, publisher
from edge_agent.clock import SystemClock
from edge_agent.mqtt import LinkSettings
from edge_agent.publisher import Publisher
from tests import brokers
from tests.conftest import StandingClock, eventually
from tests.publishing import TOPIC, MemoryStore, Refusing, is_late, link, packet, publishing, seqs


def test_what_is_committed_arrives_in_order_and_is_done_with() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, brokers.Consumer(running.port) as consumer:
            store.commit(30)
            async with publishing(store, link(running.url)) as one:
                for _ in range(50):
                    store.commit()
                    await asyncio.sleep(0)
                await eventually(lambda: not store.due)
                await eventually(lambda: len(consumer.payloads(TOPIC)) == 80)
                live = [seq for seq in seqs(consumer.payloads(TOPIC)) if seq > 30]
                waited = [seq for seq in seqs(consumer.payloads(TOPIC)) if seq <= 30]
                assert live == list(range(31, 81))
                assert waited == list(range(1, 31))
                assert one.status()["published"] == 80
                assert one.status()["in_flight"] == 0
                assert one.status()["delivery"] == "verified"

    asyncio.run(main())


def test_a_broker_killed_again_and_again_costs_nothing_and_repeats_are_equal_but_for_late() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, brokers.Consumer(running.port, qos=0) as consumer:
            relay = brokers.Relay(running.port)
            async with brokers.scripted(relay.serve) as url, publishing(store, link(url)) as one:
                for turn in range(3):
                    for _ in range(150):
                        store.commit()
                        await asyncio.sleep(0.001)
                    relay.open = False
                    running.kill()
                    store.commit(40)
                    await eventually(lambda: one.status()["state"] != "connected")
                    store.commit(40)
                    await running.start()
                    # What is published while the consumer is away, a broker without its session rightly drops.
                    await consumer.subscribed(turn + 2)
                    relay.open = True
                    await eventually(lambda: one.status()["state"] == "connected", 15)
                await eventually(lambda: not store.due, 15)
                await eventually(lambda: store.last_committed in seqs(consumer.payloads(TOPIC)))
                by_seq: dict[int, set[bytes]] = {}
                for payload in consumer.payloads(TOPIC):
                    plain = payload.replace(b',"late":true', b"")
                    by_seq.setdefault(orjson.loads(payload)["seq"], set()).add(plain)
                assert all(len(each) == 1 for each in by_seq.values())
                assert sorted(by_seq) == list(range(1, store.last_committed + 1)), "every one has arrived"
                assert (one.status()["version"], one.status()["delivery"]) == ("5", "verified")

    asyncio.run(main())


def test_without_a_good_puback_nothing_is_delivered() -> None:
    """A broker that takes everything and acknowledges nothing, then one that acknowledges."""
    got: list[list[bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[bytes] = []
        got.append(mine)
        await packet(reader)
        writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x05")  # Receive Maximum 5
        while (found := await packet(reader)) is not None:
            kind, body = found
            if kind >> 4 == 3:
                size = int.from_bytes(body[:2], "big")
                mine.append(body[2 + size + 3 :])
                if len(got) > 1:
                    writer.write(b"\x40\x02" + body[2 + size : 4 + size])
                elif len(mine) == 5:
                    await asyncio.sleep(0.2)  # time for a sixth, which must not come
                    break

    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(12)
        async with brokers.scripted(serve) as url, publishing(store, link(url)):
            await eventually(lambda: not store.due)
        assert seqs(got[0]) == [1, 2, 3, 4, 5], "the window is the broker's Receive Maximum"
        assert seqs(got[1]) == list(range(1, 13)), "what was not acknowledged is sent again, first and in order"

    asyncio.run(main())


def test_live_messages_do_not_wait_for_the_backlog_and_the_backlog_does_not_starve() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, brokers.Consumer(running.port) as consumer:
            store.commit(3000)
            async with publishing(store, link(running.url)):
                store.commit(500)
                await eventually(lambda: not store.due, 30)
                await eventually(lambda: len(consumer.payloads(TOPIC)) == 3500)
                order = seqs(consumer.payloads(TOPIC))
                assert order.index(3500) < 1500, "live overtakes"
                assert sum(seq <= 3000 for seq in order[: order.index(3500)]) > 100, "and the backlog has its share"
                for lane in ([s for s in order if s > 3000], [s for s in order if s <= 3000]):
                    assert lane == sorted(lane)

    asyncio.run(main())


def test_what_overflows_the_live_lane_is_found_again_in_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "LIVE_MAX", 10)

    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with (
            brokers.mosquitto() as running,
            brokers.Consumer(running.port) as consumer,
            publishing(store, link(running.url)),
        ):
            for _ in range(5):
                store.commit(300)
                await asyncio.sleep(0.01)
            await eventually(lambda: not store.due)
            await eventually(lambda: len(consumer.payloads(TOPIC)) >= 1500)
            assert sorted(seqs(consumer.payloads(TOPIC))) == list(range(1, 1501)), "each of them once"

    asyncio.run(main())


def test_late_is_what_waited_thirty_seconds_or_was_overtaken(clock: StandingClock) -> None:
    async def main() -> None:
        store = MemoryStore(clock)
        async with brokers.mosquitto() as running, brokers.Consumer(running.port) as consumer:
            store.commit(2)
            clock.move(29_000_000)
            store.commit(1, kind="warnings")
            clock.move(1_500_000)
            async with publishing(store, link(running.url)):
                await eventually(lambda: not store.due)
                store.commit()
                await eventually(lambda: not store.due)
                await eventually(lambda: len(consumer.heard) == 4)
                assert [is_late(each) for each in consumer.payloads(TOPIC)] == [True, True, False]
                assert [is_late(each) for each in consumer.payloads("plant/press/warnings")] == [False]

    asyncio.run(main())


def test_status_tells_online_then_stopped_and_a_sudden_death_tells_offline() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, brokers.Consumer(running.port, "plant/status") as consumer:
            async with publishing(store, link(running.url), connected=False) as one:
                one.set_status({"state": "online", "signals": 1})
                await consumer.hears("plant/status", b'{"state":"online","signals":1}')
                one.set_status({"state": "online", "signals": 2})
                await consumer.hears("plant/status", b'{"state":"online","signals":2}')
            await consumer.hears("plant/status", b'{"state":"offline"}')
            async with publishing(store, link(running.url), connected=False) as two:
                two.set_status({"state": "online", "signals": 3})
                await consumer.hears("plant/status", b'{"state":"online","signals":3}')
                store.commit(200)
                await two.stop(5.0)
                assert not store.due, "what was committed went out before the good-bye"
            async with brokers.Consumer(running.port, "plant/status") as newcomer:
                await newcomer.hears("plant/status", b'{"state":"stopped"}')
                assert newcomer.heard[0].retained

    asyncio.run(main())


def test_stop_ends_in_time_when_there_is_no_broker_and_run_ends_by_itself() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(5)
        one = Publisher(store, link("mqtt://127.0.0.1:1"), "plant", store.clock)
        running = asyncio.create_task(one.run())
        await eventually(lambda: one.status()["state"] == "backing_off")
        assert one.status()["reason"] == "Connection refused"
        async with asyncio.timeout(2):
            await one.stop(5.0)
            await running
        assert len(store.due) == 5

    asyncio.run(main())


def test_retained_topics_are_sent_on_each_connect_and_a_cleared_one_is_forgotten() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, publishing(store, link(running.url), connected=False) as one:
            one.set_status({"state": "online"})
            one.set_retained("press/active", b'{"active":[1]}')
            one.set_retained("press/norms", b"{}")
            async with brokers.Consumer(running.port) as consumer:
                await consumer.hears("plant/press/active", b'{"active":[1]}')
                await consumer.hears("plant/press/norms", b"{}")
                one.set_retained("press/norms", b"")
                await consumer.hears("plant/press/norms", b"")
            running.kill()
            await running.start()
            async with brokers.Consumer(running.port) as consumer:
                await consumer.hears("plant/press/active", b'{"active":[1]}', 15)
                assert consumer.payloads("plant/press/norms") == []
                assert one._retained.keys() == {"plant/status", "plant/press/active"}

    asyncio.run(main())


ACL = "user press\ntopic write plant/status\ntopic write plant/press/#\n\nuser admin\ntopic readwrite #\n"


def test_a_refused_topic_keeps_its_messages_and_the_others_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "REFUSED_MIN_S", 0.2)
    monkeypatch.setattr(publisher, "REFUSED_MAX_S", 0.5)

    async def main() -> None:
        store = MemoryStore(SystemClock())
        files = {"users": brokers.password_file({"press": "p", "admin": "a"}), "acl": ACL}
        lines = ("allow_anonymous false", "password_file {folder}/users", "acl_file {folder}/acl")
        async with brokers.mosquitto(*lines, files=files) as running:
            settings = link(running.url, username="press", password="p")
            async with (
                brokers.Consumer(running.port, "plant/#", user=("admin", "a")) as consumer,
                publishing(store, settings) as one,
            ):
                for _ in range(30):
                    store.commit(1, machine="secret")
                    store.commit(1)
                await eventually(lambda: len(consumer.payloads(TOPIC)) == 30)
                await eventually(lambda: len(store.due) == 30)
                await eventually(lambda: one.status()["refused"] > 12)
                seen = one.status()["refused"]
                await asyncio.sleep(0.5)
                assert one.status()["refused"] - seen <= 3, "no tight loop"
                (running.folder / "acl").write_text(ACL.replace("plant/press/#", "plant/+/measurements"))
                assert running.process is not None
                running.process.send_signal(1)
                await eventually(lambda: not store.due, 20)
                refused = seqs(consumer.payloads("plant/secret/measurements"))
                assert refused == list(range(1, 61, 2)), "in order, and none twice"

    asyncio.run(main())


def test_a_refused_topic_is_tried_again_without_looking_through_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "REFUSED_MIN_S", 0.1)
    monkeypatch.setattr(publisher, "REFUSED_MAX_S", 0.1)

    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(500)
        refusing = Refusing(lambda topic, _seq: 0x87 if topic == TOPIC else 0)
        async with brokers.scripted(refusing.serve) as url, publishing(store, link(url)) as one:
            await eventually(lambda: one.status()["refused"] > 30)
            looks, refused = store.looks, one.status()["refused"]
            await eventually(lambda: one.status()["refused"] > refused + 5)
            assert store.looks == looks, "one message is the probe"
            assert set(refusing.asked[-5:]) == {(TOPIC, 1)}
            refusing.answer = lambda _topic, _seq: 0
            await eventually(lambda: not store.due)

    asyncio.run(main())


def test_a_message_that_is_refused_for_itself_holds_up_no_other() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(200)
        refusing = Refusing(lambda _topic, seq: 0x99 if seq in (50, 60) else 0)
        async with brokers.scripted(refusing.serve) as url, publishing(store, link(url)) as one:
            store.commit(50)
            await eventually(lambda: sorted(store.due) == [50, 60])
            assert one.status()["quarantined"] == 2
        async with brokers.scripted(Refusing(lambda *_: 0).serve) as url, publishing(store, link(url)):
            await eventually(lambda: not store.due)

    asyncio.run(main())


def test_a_store_that_is_mended_goes_on_being_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ASK_AGAIN_S", 0.05)

    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(1000)
        refusing = Refusing(lambda *_: 0)
        async with brokers.scripted(refusing.serve) as url, publishing(store, link(url), connected=False):
            await eventually(lambda: len(store.due) < 900)
            store.broken = True
            left = len(store.due)
            await asyncio.sleep(0.3)
            assert left - len(store.due) <= publisher.PAGE
            store.broken = False
            await eventually(lambda: not store.due)

    asyncio.run(main())


def test_what_first_arrives_after_newer_messages_of_its_topic_is_late() -> None:
    """The line dies with the first live message on its way; over the next one a newer message comes first."""

    async def main() -> None:
        store = MemoryStore(SystemClock())
        first = Refusing(lambda *_: None)
        second = Refusing(lambda *_: 0)
        turns = [first, second]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await turns[0].serve(reader, writer)

        async with brokers.scripted(serve) as url, publishing(store, link(url)) as one:
            store.commit()
            await eventually(lambda: first.asked == [(TOPIC, 1)])
            one._arrived["press/measurements"] = 2  # as if another lane had brought number 2
            turns.pop(0)
            first.hang_up()
            await eventually(lambda: not store.due, 15)
        assert [is_late(payload) for payload in first.payloads] == [False]
        assert [is_late(payload) for payload in second.payloads] == [True]

    asyncio.run(main())


def test_the_publisher_turns_also_when_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the watchdog sees a hang of it, and takes calm for no hang."""
    monkeypatch.setattr(publisher, "TURN_S", 0.02)

    async def main() -> None:
        one = Publisher(MemoryStore(SystemClock()), link("mqtt://127.0.0.1:1"), "plant", SystemClock())
        turns: list[None] = []
        running = asyncio.create_task(one.run(lambda: turns.append(None)))
        await eventually(lambda: len(turns) > 5)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())


def test_a_further_broker_is_taken_over_without_leaving_the_present_one() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with (
            brokers.mosquitto() as running,
            brokers.Consumer(running.port, "plant/status") as consumer,
            publishing(store, link(running.url)) as one,
        ):
            one.set_status({"state": "online"})
            await consumer.hears("plant/status", b'{"state":"online"}')
            since = one.status()["since"]
            assert one.use(LinkSettings((running.url, "mqtt://127.0.0.1:1"), "press-hall"))
            assert not one.use(LinkSettings((running.url,), "press-hall", username="other"))
            assert not one.use(LinkSettings(("mqtt://127.0.0.1:1",), "press-hall"))
            store.commit(5)
            await eventually(lambda: not store.due)
            assert one.status()["since"] == since
            await one.hand_over()
            await asyncio.sleep(0.2)
            assert consumer.payloads("plant/status") == [b'{"state":"online"}'], "neither stopped nor offline"

    asyncio.run(main())


def test_a_message_beyond_the_limit_of_the_broker_is_set_aside_and_holds_up_nothing() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(1, size=3000)
        async with (
            brokers.mosquitto("max_packet_size 2000") as running,
            brokers.Consumer(running.port) as consumer,
            publishing(store, link(running.url)) as one,
        ):
            store.commit(1, size=3000)
            store.commit(40, size=10)
            await eventually(lambda: len(store.due) == 2)
            assert one.status()["quarantined"] == 2
            assert one.status()["state"] == "connected"
            assert seqs(consumer.payloads(TOPIC))[:1] == [3]

    asyncio.run(main())


def test_mqtt_3_1_1_delivers_too_and_says_that_it_cannot_be_sure() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with (
            broker.open_broker(0, kind="amqtt") as running,
            brokers.Consumer(running.port, version=MQTTProtocolVersion.MQTTv311) as consumer,
        ):
            store.commit(20)
            async with publishing(store, link(running.url), within_s=20) as one:
                await eventually(lambda: not store.due)
                await eventually(lambda: len(consumer.payloads(TOPIC)) == 20)
                assert (one.status()["version"], one.status()["delivery"]) == ("3.1.1", "unverified")

    asyncio.run(main())
