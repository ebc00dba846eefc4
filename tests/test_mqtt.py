"""The connection: who is connected, why not, and what the broker hears of us. Real brokers, no mocks."""

import asyncio
import gc
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from edge_agent import broker, mqtt
from edge_agent.clock import SystemClock
from edge_agent.mqtt import Link, LinkSettings, LinkState
from tests import brokers
from tests.conftest import StandingClock, eventually, free_port

OFFLINE = b'{"state":"offline"}'
refused_by_tls = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""paho leaves the socket of a failed handshake to the garbage collector, which says so; it is made to come in time."""


@asynccontextmanager
async def linked(settings: LinkSettings, clock: StandingClock | None = None) -> AsyncIterator[Link]:
    link = Link(settings, ("plant/status", OFFLINE), clock or SystemClock())
    running = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() or running.exception() is None
        await eventually(no_threads_left)


def me(*urls: str, version: str = "auto", **more: object) -> LinkSettings:
    return LinkSettings(urls, "press-hall", version, **more)  # type: ignore[arg-type]


def no_threads_left() -> bool:
    return not [each for each in threading.enumerate() if each.name == "paho-mqtt-client-press-hall"]


def test_a_slow_broker_is_waited_for_and_not_taken_for_one_that_cannot_speak_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "SILENCE_S", 0.4)
    monkeypatch.setattr(mqtt, "PROMPT_S", 0.2)

    async def delayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while data := await reader.read(65536):
                loop.call_later(0.3, writer.write, data)
            await asyncio.sleep(0.4)
        writer.close()

    async def main() -> None:
        async with brokers.mosquitto() as running:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                from_broker, to_broker = await asyncio.open_connection("127.0.0.1", running.port)
                async with asyncio.TaskGroup() as both:
                    both.create_task(delayed(reader, to_broker))
                    both.create_task(delayed(from_broker, writer))

            async with brokers.scripted(serve) as url, linked(me(url)) as link:
                await eventually(lambda: link.connected, 15)
                assert link.version == "5"

    asyncio.run(main())


def test_a_message_is_acknowledged_with_its_token_and_the_limits_of_the_broker_are_known() -> None:
    async def main() -> None:
        acks: list[tuple[int, int]] = []
        async with brokers.mosquitto("max_packet_size 5000") as running, linked(me(running.url)) as link:
            link.on_ack = lambda token, reason: acks.append((token, reason))
            await eventually(lambda: link.connected)
            assert (link.version, link.packet_max) == ("5", 5000)
            assert link.publish("plant/x", b"1", False, 77)
            await eventually(lambda: acks)
            assert acks == [(77, 0x10)], "nobody listens, which is a success all the same"

    asyncio.run(main())


def test_nothing_is_published_while_offline_or_after_the_broker_has_gone() -> None:
    async def main() -> None:
        async with brokers.mosquitto() as running:
            link = Link(me(running.url), ("plant/status", OFFLINE), SystemClock())
            assert not link.publish("plant/x", b"before", False, 1)
            async with linked(me(running.url)) as up:
                await eventually(lambda: up.connected)
                running.kill()
                await eventually(lambda: not up.connected)
                assert not up.publish("plant/x", b"between", False, 2)
                await running.start()
                async with brokers.Consumer(running.port) as consumer:
                    await eventually(lambda: up.connected)
                    assert up.publish("plant/x", b"after", False, 3)
                    await consumer.hears("plant/x", b"after")
                    assert consumer.payloads("plant/x") == [b"after"]

    asyncio.run(main())


def test_a_cancelled_connection_speaks_the_will_and_a_good_bye_does_not() -> None:
    async def main() -> None:
        async with brokers.mosquitto() as running, brokers.Consumer(running.port) as consumer:
            async with linked(me(running.url)) as link:
                await eventually(lambda: link.connected)
                await link.disconnect(2.0)
                assert link.publish("plant/x", b"late", False, 1) is False
            assert consumer.heard == []
            async with linked(me(running.url)) as link:
                await eventually(lambda: link.connected)
            await consumer.hears("plant/status", OFFLINE)

    asyncio.run(main())


def test_a_broker_that_speaks_only_3_1_1_is_spoken_to_so() -> None:
    async def main() -> None:
        async with broker.open_broker(0, kind="amqtt") as running, linked(me(running.url)) as link:
            await eventually(lambda: link.connected, 15)
            assert link.version == "3.1.1"

    asyncio.run(main())


@pytest.mark.parametrize(("answer", "remembered"), [(b"\x20\x02\x00\x01", True), (b"", False)])
def test_refusal_of_mqtt_5_is_remembered_and_a_plain_close_is_not(answer: bytes, remembered: bool) -> None:
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(200)
        seen.append(head[8])
        if head[8] == 5 and answer:
            writer.write(answer)
        if head[8] == 4:
            writer.write(b"\x20\x02\x00\x00")
            await writer.drain()

    async def main() -> None:
        async with brokers.scripted(serve) as url, linked(me(url)):
            await eventually(lambda: len(seen) >= (3 if remembered else 4), 15)

    asyncio.run(main())
    assert seen[:4] == ([5, 4, 4] if remembered else [5, 4, 5, 4])[: len(seen[:4])]


def test_a_wrong_password_says_why_and_backs_off() -> None:
    async def main() -> None:
        files = {"users": brokers.password_file({"press": "right"})}
        async with brokers.mosquitto("allow_anonymous false", "password_file {folder}/users", files=files) as running:
            async with linked(me(running.url, username="press", password="wrong")) as link:
                await eventually(lambda: link.state is LinkState.BACKING_OFF)
                assert link.reason.startswith("refused: Not authorized")
            async with linked(me(running.url, username="press", password="right")) as link:
                await eventually(lambda: link.connected)
                assert link.reason == ""

    asyncio.run(main())


def test_secrets_do_not_show() -> None:
    shown = repr(me("mqtt://x", password="hush-1", key="hush-2"))
    assert "hush" not in shown


@refused_by_tls
def test_tls_with_a_client_certificate_whose_key_is_a_file_or_a_text(tmp_path: Path) -> None:
    async def main() -> None:
        files = brokers.certificates(tmp_path)
        lines = (f"cafile {files.ca}", f"certfile {files.server}", f"keyfile {files.server_key}")
        async with brokers.mosquitto(*lines, "require_certificate true") as running:
            url = f"mqtts://localhost:{running.port}"
            for key in (files.client_key, files.client_key.read_text()):
                async with linked(me(url, ca=files.ca, cert=files.client, key=key)) as link:
                    await eventually(lambda: link.connected)
            async with linked(me(url, ca=files.ca)) as link:
                await eventually(lambda: link.state is LinkState.BACKING_OFF)
                assert link.reason

    asyncio.run(main())
    gc.collect()


@refused_by_tls
def test_a_broker_of_another_name_or_another_authority_is_not_trusted(tmp_path: Path) -> None:
    async def main() -> None:
        files, others = brokers.certificates(tmp_path / "a", "other.example"), brokers.certificates(tmp_path / "b")
        lines = (f"certfile {files.server}", f"keyfile {files.server_key}")
        async with brokers.mosquitto(*lines) as running:
            for ca in (files.ca, others.ca):
                async with linked(me(f"mqtts://localhost:{running.port}", ca=ca)) as link:
                    await eventually(lambda: link.state is LinkState.BACKING_OFF)
                    assert "certificate of the broker" in link.reason

    asyncio.run(main())
    gc.collect()


def test_a_missing_certificate_file_is_told_and_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with linked(me("mqtts://localhost:1", ca=tmp_path / "none.pem")) as link:
            await eventually(lambda: link.state is LinkState.BACKING_OFF)
            assert "TLS: the authorities" in link.reason

    asyncio.run(main())


def test_the_next_broker_is_taken_when_the_first_is_away() -> None:
    async def main() -> None:
        async with brokers.mosquitto() as running, linked(me(f"mqtt://127.0.0.1:{free_port()}", running.url)) as link:
            await eventually(lambda: link.connected)
            assert link.url == running.url

    asyncio.run(main())


def test_a_broker_that_acknowledges_nothing_for_thirty_seconds_is_left(clock: StandingClock) -> None:
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await reader.read(200)
        writer.write(b"\x20\x03\x00\x00\x00")
        while await reader.read(200):
            pass

    async def main() -> None:
        async with brokers.scripted(serve) as url, linked(me(url), clock) as link:
            await eventually(lambda: link.connected)
            assert link.publish("plant/x", b"1", False, 1)
            clock.move(31_000_000)
            await eventually(lambda: not link.connected)
            assert "no acknowledgement" in link.reason
            await eventually(lambda: len(connections) == 2)

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_the_network_thread_is_noticed_and_mended() -> None:
    async def main() -> None:
        async with brokers.mosquitto() as running, linked(me(running.url)) as link:
            await eventually(lambda: link.connected)
            assert link._now is not None

            def die(*_: object) -> None:
                raise RuntimeError("a defect of the library")

            link._now.client.on_publish = die
            first = link._now
            assert link.publish("plant/x", b"1", False, 1)
            await eventually(lambda: not link.connected)
            assert "thread has ended" in link.reason
            await eventually(lambda: link.connected and link._now is not first)

    asyncio.run(main())


def test_pauses_grow_to_a_minute_and_never_fall_together() -> None:
    for failures, low, high in [(0, 1, 2), (1, 1, 2), (2, 2, 4), (5, 16, 32), (7, 30, 60), (50, 30, 60)]:
        pauses = {mqtt._pause_s(failures) for _ in range(50)}
        assert low <= min(pauses) <= max(pauses) <= high
        assert len(pauses) > 1


def test_certificates_are_checked_by_default(tmp_path: Path) -> None:
    context = mqtt._tls(me("mqtts://x", ca=brokers.certificates(tmp_path).ca))
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
