"""What brokers do to a publisher (docs/mqtt.md has the table): nothing is lost, nothing loops, and a person is told.

Real mosquitto where it can be brought to it, else a broker that answers as the test says.
"""

import asyncio
import random
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from edge_agent import addresses, mqtt, publisher
from edge_agent.addresses import Addresses
from edge_agent.clock import SystemClock
from edge_agent.mqtt import Link, LinkSettings
from tests import brokers
from tests.conftest import ROOT, StandingClock, eventually, free_port
from tests.publishing import CLOSES, TOPIC, MemoryStore, MovedClock, Refusing, link, packet, publishing, seqs

HOUR_US = 3_600_000_000


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between two connections are those of another test."""
    for name in ("PAUSE_MIN_S", "PAUSE_MAX_S", "REFUSED_PAUSE_MAX_S"):
        monkeypatch.setattr(mqtt, name, 0.02)
    monkeypatch.setattr(publisher, "REFUSED_MIN_S", 0.05)


soon = pytest.mark.usefixtures("_soon")


# ------------------------------------------------------------------------------------------- one message breaks the line


@soon
@pytest.mark.parametrize("answer", [CLOSES, -0x95, -0x99], ids=["silently", "0x95", "0x99"])
def test_a_message_at_which_the_broker_breaks_the_line_is_found_and_set_aside_and_the_others_flow(answer: int) -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(60)
        broker = Refusing(lambda _topic, seq: answer if seq == 7 else 0)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            one.set_status({"state": "online"})
            await eventually(lambda: sorted(store.due) == [7], 30)
            store.commit(20)
            await eventually(lambda: sorted(store.due) == [7], 30)
            assert broker.connections <= 12, "few connections are spent on it"
            (aside,) = one.status()["set_aside"]
            assert (aside["topic"], aside["seq"], one.status()["quarantined"]) == (TOPIC, 7, 1)
            assert "breaks the connection" in aside["reason"]
            seen = broker.connections
            await asyncio.sleep(0.3)
            assert broker.connections == seen, "and the line stays up"

    asyncio.run(main())


@soon
def test_what_was_set_aside_is_tried_again_after_an_hour_alone() -> None:
    async def main() -> None:
        clock = MovedClock()
        store = MemoryStore(clock)
        store.commit(30)
        broker = Refusing(lambda _topic, seq: CLOSES if seq == 7 else 0)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            one.set_status({"state": "online"})
            await eventually(lambda: sorted(store.due) == [7], 30)
            clock.move(HOUR_US + 1)
            store.commit()
            before = broker.connections
            await eventually(lambda: broker.connections == before + 1 and one.status()["quarantined"] == 1, 20)
            await eventually(lambda: sorted(store.due) == [7], 20)
            broker.answer = lambda *_: 0
            clock.move(HOUR_US + 1)
            store.commit()
            await eventually(lambda: sorted(store.due) == [7])
            assert broker.connections == before + 1, "the second pause is longer"
            clock.move(HOUR_US)
            store.commit()
            await eventually(lambda: not store.due)

    asyncio.run(main())


@soon
def test_a_topic_at_which_the_broker_always_breaks_the_line_is_left_alone_as_a_whole() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        for _ in range(20):
            store.commit(1, machine="secret")
            store.commit(1)
        broker = Refusing(lambda topic, _seq: CLOSES if "secret" in topic else 0)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            one.set_status({"state": "online"})
            await eventually(lambda: sorted(store.due) == list(range(1, 41, 2)), 40)
            await eventually(lambda: one.status().get("refused_topics"), 40)
            assert one.status()["refused_topics"][0]["topic"] == "plant/secret/measurements"
            store.commit(5)
            await eventually(lambda: len(store.due) == 20)

    asyncio.run(main())


@soon
def test_a_broker_that_breaks_the_line_at_everything_is_no_message_s_fault() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(10)
        broker = Refusing(lambda *_: CLOSES)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            await eventually(lambda: broker.connections > 15, 30)
            broker.answer = lambda *_: 0
            await eventually(lambda: len(store.due) <= 2, 30)
            await eventually(lambda: one.status()["published"] >= 8)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------------- refusals


@soon
@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97])
def test_a_refused_message_is_kept_and_told_and_delivered_when_the_broker_takes_it(code: int) -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(20)
        broker = Refusing(lambda topic, _seq: code if topic == TOPIC else 0)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url)) as one:
            store.commit(5, machine="lathe")
            await eventually(lambda: len(store.due) == 20)
            await eventually(lambda: one.status().get("refused_topics"))
            (refused,) = one.status()["refused_topics"]
            assert (refused["topic"], f"{code:#x}" in refused["reason"]) == (TOPIC, True)
            broker.answer = lambda *_: 0
            await eventually(lambda: not store.due)
            assert "refused_topics" not in one.status()
            assert broker.connections == 1

    asyncio.run(main())


def test_a_message_that_nobody_has_subscribed_to_is_delivered_and_counted() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, publishing(store, link(running.url)) as one:
            store.commit(3)
            await eventually(lambda: not store.due)
            assert (one.status()["published"], one.status()["unheard"]) == (3, 3)
            async with brokers.Consumer(running.port):
                store.commit(2)
                await eventually(lambda: not store.due)
                assert (one.status()["published"], one.status()["unheard"]) == (5, 3)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------ limits of the broker


def test_a_broker_with_room_for_one_message_gets_one_after_the_other() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(40)
        waiting: list[int] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_now = 0
            while (found := await packet(reader)) is not None:
                kind, body = found
                if kind >> 4 == 1:
                    writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x01")
                elif kind >> 4 == 3:
                    open_now += 1
                    waiting.append(open_now)
                    await asyncio.sleep(0)
                    size = int.from_bytes(body[:2])
                    open_now -= 1
                    writer.write(b"\x40\x02" + body[2 + size : 4 + size])

        async with brokers.scripted(serve) as url, publishing(store, link(url), connected=False) as one:
            await eventually(lambda: not store.due)
            assert one.status()["attempts"] == 1
        assert max(waiting) == 1

    asyncio.run(main())


def test_mosquitto_with_room_for_one_message_gets_all_of_them() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(40)
        async with (
            brokers.mosquitto("max_inflight_messages 1") as running,
            brokers.Consumer(running.port) as consumer,
            publishing(store, link(running.url)) as one,
        ):
            await eventually(lambda: not store.due)
            await eventually(lambda: seqs(consumer.payloads(TOPIC)) == list(range(1, 41)))
            assert one._link.receive_max == 1

    asyncio.run(main())


def test_no_message_has_a_topic_alias_also_where_the_broker_offers_them() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(30)
        broker = Refusing(lambda *_: 0, granted=b"\x22\x00\x0a")
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url)):
            await eventually(lambda: not store.due)
        assert set(broker.properties) == {0}

    asyncio.run(main())


@soon
def test_a_broker_without_retained_messages_is_served_without_them() -> None:
    """The will is to be retained: such a broker refuses the first attempt, and takes the second."""

    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(5)
        wills: list[bool] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            kind, body = await packet(reader) or (0, b"")
            wills.append(bool(body[7] & 0x20))
            if wills[-1]:
                writer.write(b"\x20\x03\x00\x9a\x00")
                return
            writer.write(b"\x20\x05\x00\x00\x02\x25\x00")
            while (found := await packet(reader)) is not None:
                kind, body = found
                assert not kind & 1, "nothing is to be retained"
                size = int.from_bytes(body[:2])
                writer.write(b"\x40\x02" + body[2 + size : 4 + size])

        async with brokers.scripted(serve) as url, publishing(store, link(url, "5"), connected=False) as one:
            one.set_status({"state": "online"})
            await eventually(lambda: not store.due)
        assert wills == [True, False]

    asyncio.run(main())


@soon
def test_a_broker_that_takes_no_qos_1_is_left_and_that_is_told() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(5)
        broker = Refusing(lambda *_: 0, granted=b"\x24\x00")
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url, "5"), connected=False) as one:
            await eventually(lambda: "no QoS 1" in one.status()["reason"])
            assert not broker.asked
            assert len(store.due) == 5

    asyncio.run(main())


# ------------------------------------------------------------------------------------------ the broker ends a connection


@soon
@pytest.mark.parametrize("code", [0x81, 0x82, 0x89, 0x8B, 0x8D, 0x8E, 0x93, 0x96, 0x97, 0x98, 0x9D])
def test_a_disconnect_of_the_broker_is_told_and_costs_nothing(code: int) -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(30)
        left = [3]

        def answer(_topic: str, seq: int) -> int:
            if seq == 20 and left[0]:
                left[0] -= 1
                return -code
            return 0

        broker = Refusing(answer)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            reasons: set[str] = set()

            def delivered() -> bool:
                reasons.add(one.status()["reason"])
                return set(store.due) <= {20}

            await eventually(delivered, 30)
            assert any("disconnected by the broker" in reason for reason in reasons)
            assert broker.connections <= 8

    asyncio.run(main())


@soon
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x85, "agent.id"),
        (0x86, "password"),
        (0x87, "let this agent in"),
        (0x88, "unavailable"),
        (0x89, "busy"),
        (0x8A, "banned"),
        (0x97, "quota"),
        (0x9C, "set mqtt.url"),
        (0x9D, "set mqtt.url"),
        (0x9F, "connections"),
    ],
)
def test_a_refused_connection_is_told_in_words_and_goes_on_when_the_broker_takes_it(code: int, words: str) -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(5)
        broker = Refusing(lambda *_: 0, connack=code)
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            await eventually(lambda: words in one.status()["reason"].lower())
            broker.connack = 0
            await eventually(lambda: not store.due)

    asyncio.run(main())


@soon
def test_another_server_that_the_broker_names_is_shown_and_not_followed() -> None:
    async def main() -> None:
        broker = Refusing(lambda *_: 0, connack=0x9C, granted=b"\x1c\x00\x07other:1")
        store = MemoryStore(SystemClock())
        async with brokers.scripted(broker.serve) as url, publishing(store, link(url), connected=False) as one:
            await eventually(lambda: "other:1" in one.status()["reason"])
            await eventually(lambda: broker.connections > 2)
            assert one.status()["url"] == url

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_a_broker_that_refuses_this_agent_is_asked_twenty_times_an_hour_at_most(seed: int) -> None:
    """The hour is added up, not waited for; the pauses are those of the loop in Link.run."""
    random.seed(seed)
    at_s, attempts = 0.0, 0
    while at_s < 3600:
        attempts += 1
        at_s += mqtt._pause_s(attempts, refused=True)
    assert attempts <= 20, f"seed {seed}"


def test_two_agents_with_one_client_id_are_told_so_and_do_not_fight_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt, "PAUSE_MIN_S", 0.1)

    async def main() -> None:
        first, second = MemoryStore(SystemClock()), MemoryStore(SystemClock())
        async with brokers.mosquitto() as running:
            async with publishing(first, link(running.url)) as one, publishing(second, link(running.url)) as two:
                await eventually(
                    lambda: "another client has connected as press-hall" in one.status()["last_loss"]["reason"]
                )
                await eventually(
                    lambda: "another client has connected as press-hall" in two.status()["last_loss"]["reason"], 20
                )
                assert one.status()["attempts"] + two.status()["attempts"] < 20
            async with publishing(first, link(running.url)) as one:
                first.commit(5)
                await eventually(lambda: not first.due)

    asyncio.run(main())


@soon
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x20\x7f\x00",
        b"\xff" * 40,
        b"\x20\x03\x00\x00\x00\x40\xff\xff\xff\xff\xff",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["half", "ones", "puback", "http"],
)
def test_a_peer_that_is_no_broker_harms_nothing(nonsense: bytes) -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        store.commit(5)
        good, bad = Refusing(lambda *_: 0), [3]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not bad[0]:
                return await good.serve(reader, writer)
            bad[0] -= 1
            await reader.read(100)
            writer.write(nonsense)
            return await writer.drain()

        async with brokers.scripted(serve) as url, publishing(store, link(url), connected=False):
            await eventually(lambda: not store.due, 30)

    asyncio.run(main())


@soon
def test_a_puback_that_is_lost_or_comes_twice_or_for_nothing_costs_nothing(clock: StandingClock) -> None:
    async def main() -> None:
        store = MemoryStore(clock)
        store.commit(3)
        sent: list[int] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while (found := await packet(reader)) is not None:
                kind, body = found
                if kind >> 4 == 1:
                    writer.write(b"\x20\x03\x00\x00\x00")
                elif kind >> 4 == 3:
                    size = int.from_bytes(body[:2])
                    puback = b"\x40\x02" + body[2 + size : 4 + size]
                    sent.append(1)
                    writer.write(b"\x40\x02\x77\x77" if len(sent) == 2 else puback + puback)

        async with brokers.scripted(serve) as url, publishing(store, link(url), connected=False) as one:
            await eventually(lambda: len(store.due) == 1 and one.status()["in_flight"] == 1)
            clock.move(31_000_000)
            await eventually(lambda: not store.due)
            assert one.status()["published"] == 3
            assert len(sent) == 4

    asyncio.run(main())


def test_slow_answers_are_waited_for() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running, brokers.Consumer(running.port) as consumer:

            async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                loop = asyncio.get_running_loop()
                with suppress(OSError):
                    while data := await reader.read(65536):
                        loop.call_later(0.1, writer.write, data)
                writer.close()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                from_broker, to_broker = await asyncio.open_connection("127.0.0.1", running.port)
                async with asyncio.TaskGroup() as both:
                    both.create_task(slowly(reader, to_broker))
                    both.create_task(slowly(from_broker, writer))

            async with brokers.scripted(serve) as url, publishing(store, link(url)) as one:
                store.commit(100)
                await eventually(lambda: not store.due, 20)
                assert one.status()["attempts"] == 1
                assert seqs(consumer.payloads(TOPIC)) == list(range(1, 101))

    asyncio.run(main())


def test_a_broker_that_reads_nothing_stops_no_loop_and_is_left(clock: StandingClock) -> None:
    """The line is full; what was handed to paho lies in its memory, a window of it, and publish has not waited."""

    async def main() -> None:
        store = MemoryStore(clock)
        store.commit(100, size=1_000_000)
        deaf = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await packet(reader)
            writer.write(b"\x20\x03\x00\x00\x00")
            await deaf.wait()

        async with brokers.scripted(serve) as url, publishing(store, link(url)) as one:
            await eventually(lambda: one.status()["in_flight"] >= publisher.WINDOW - 4)
            await asyncio.sleep(0.1)  # the loop turns
            clock.move(31_000_000)
            await eventually(lambda: "no acknowledgement" in one.status()["reason"])
            assert len(store.due) == 100
            deaf.set()

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- names and addresses


def test_a_resolver_that_fails_or_hangs_costs_a_deadline_and_the_known_address_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(addresses, "RESOLVE_S", 0.2)
    going = threading.Event()
    asked: list[str] = []
    state = {"does": "answers"}

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if state["does"] == "hangs":
            going.wait(20)
        if state["does"] == "fails":
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with brokers.mosquitto() as running:
            names = Addresses(resolve)
            state["does"] = "hangs"
            settings = LinkSettings((f"mqtt://plant.example:{running.port}",), "press-hall")
            fresh = Link(settings, None, store.clock, addresses=names)
            task = asyncio.create_task(fresh.run())
            await eventually(lambda: "not resolved within" in fresh.reason)
            await eventually(lambda: fresh.attempts >= 2)
            assert asked == ["plant.example"], "one lookup at a time, however often it is tried"
            state["does"] = "answers"
            going.set()
            await eventually(lambda: fresh.connected)
            for state["does"] in ("fails", "hangs"):
                going.clear()
                running.kill()
                await eventually(lambda: not fresh.connected)
                await running.start()
                await eventually(lambda: fresh.connected, 20)
            going.set()
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(main())


@soon
def test_the_first_broker_in_the_list_is_gone_back_to_when_it_listens_again(clock: StandingClock) -> None:
    async def main() -> None:
        store = MemoryStore(clock)
        first = free_port()
        async with brokers.mosquitto() as second, brokers.Consumer(second.port) as there:
            settings = LinkSettings((f"mqtt://127.0.0.1:{first}", second.url), "press-hall")
            async with publishing(store, settings) as one:
                one.set_status({"state": "online"})
                store.commit(3)
                await there.hears("plant/status", b'{"state":"online"}')
                await eventually(lambda: not store.due)
                assert one.status()["url"] == second.url
                async with brokers.mosquitto() as running:
                    running.kill()
                    running.port = first
                    await running.start()
                    clock.move(601_000_000)
                    await eventually(
                        lambda: one.status()["url"] == running.url and one.status()["state"] == "connected"
                    )
                    store.commit(3)
                    await eventually(lambda: not store.due)
                    await there.hears("plant/status", b'{"state":"offline"}')

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- credentials renewed


@soon
def test_a_password_that_was_changed_is_used_at_the_next_connection_and_nothing_is_lost() -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        password = ["old"]
        files = {"users": brokers.password_file({"press": "old", "admin": "a"})}
        lines = ("allow_anonymous false", "password_file {folder}/users")
        async with brokers.mosquitto(*lines, files=files) as running:
            settings = link(running.url, username="press", password="old")

            def renewed() -> LinkSettings:
                return link(running.url, username="press", password=password[0])

            async with publishing(store, settings, renewed=renewed) as one:
                store.commit(10)
                await eventually(lambda: not store.due)
                (running.folder / "users").write_text(brokers.password_file({"press": "new", "admin": "a"}))
                running.kill()
                store.commit(10)
                await running.start()
                await eventually(lambda: "refused" in one.status()["reason"], 20)
                assert len(store.due) == 10
                password[0] = "new"
                await eventually(lambda: not store.due, 20)
                assert one.settings.password == "new"

    asyncio.run(main())


@soon
def test_a_client_certificate_and_an_authority_that_were_renewed_are_used_at_the_next_connection(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        store = MemoryStore(SystemClock())
        files = brokers.certificates(tmp_path)
        lines = (f"cafile {files.ca}", f"certfile {files.server}", f"keyfile {files.server_key}")
        async with brokers.mosquitto(*lines, "require_certificate true") as running:
            paths: dict[str, Any] = {"ca": files.ca, "cert": files.client, "key": files.client_key}
            settings = LinkSettings((f"mqtts://localhost:{running.port}",), "press-hall", **paths)
            async with publishing(store, settings) as one:
                store.commit(10)
                await eventually(lambda: not store.due)
                before = mqtt.content(paths.values())
                running.kill()
                brokers.certificates(tmp_path)  # another authority, and what it has issued
                assert mqtt.content(paths.values()) != before
                store.commit(10)
                await running.start()
                await eventually(lambda: not store.due, 20)
                assert one.status()["state"] == "connected"

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------------- MQTT 3.1.1


ACL = "user press\ntopic write plant/status\n\nuser admin\ntopic readwrite #\n"


def test_with_mqtt_3_1_1_a_refused_message_looks_delivered_and_the_status_says_so() -> None:
    """MB2: the reason for `delivery: unverified`. With MQTT 5 the same broker says `Not authorized`."""

    async def main() -> None:
        files = {"users": brokers.password_file({"press": "p", "admin": "a"}), "acl": ACL}
        lines = ("allow_anonymous false", "password_file {folder}/users", "acl_file {folder}/acl")
        async with (
            brokers.mosquitto(*lines, files=files) as running,
            brokers.Consumer(running.port, user=("admin", "a"), version=MQTTProtocolVersion.MQTTv311) as consumer,
        ):
            for version, lost, delivery in (("3.1.1", True, "unverified"), ("5", False, "verified")):
                store = MemoryStore(SystemClock())
                store.commit(5)
                async with publishing(store, link(running.url, version, username="press", password="p")) as one:
                    await eventually(lambda: one.status()["refused"] or not store.due)  # noqa: B023
                    assert (not store.due, one.status()["delivery"]) == (lost, delivery)
            assert consumer.payloads(TOPIC) == []

    asyncio.run(main())


def test_knocking_tells_what_each_broker_says_and_publishes_nothing() -> None:
    async def main() -> None:
        files = {"users": brokers.password_file({"admin": "a"})}
        async with (
            brokers.mosquitto() as running,
            brokers.Consumer(running.port) as consumer,
            brokers.mosquitto("allow_anonymous false", "password_file {folder}/users", files=files) as closed,
        ):
            away = f"mqtt://127.0.0.1:{free_port()}"
            settings = LinkSettings((running.url, closed.url, away), "press-hall")
            one, two, three = await mqtt.knock(settings, SystemClock())
            assert (one.url, one.version, one.reason) == (running.url, "5", "")
            assert (two.version, "let this agent in" in two.reason) == (None, True)
            assert (three.version, three.reason) == (None, "Connection refused")
            assert consumer.heard == []

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------ the table itself

TABLE = (ROOT / "docs" / "mqtt.md").read_text(encoding="utf-8").split("## Faults")[1]


def test_each_test_that_the_table_of_faults_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", TABLE))
    there = {
        (path.name, name)
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= there, named - there
    ours = {each for each in there if each[0] in ("test_broker_faults.py", "test_paho_controls.py")}
    assert {each for each in ours if "_table_of_faults_" not in each[1]} <= named, "each has its line in the table"


def test_each_line_of_the_table_of_faults_has_a_test() -> None:
    lines = [line for line in TABLE.splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith(("| **", "| fault", "| ---"))]
    assert len(lines) >= 25
    assert not [line for line in lines if "`test_" not in line]
