"""Ports and connections: what cannot be opened is said in words, and one physical line is one wire for all who use it."""

import asyncio
import fcntl
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from bench.recovery import Answer, TcpDevice, serial_line
from drivers.modbus import DRIVER, ModbusSession
from drivers.modbus_channels import tls_context
from drivers.modbus_frames import crc16
from drivers.modbus_line import Line
from drivers.modbus_settings import SecretRef, TlsFiles
from drivers.modbus_wire import RECEIVED_MAX, WireLine
from edge_agent.contract import DeviceRefused, DeviceSilent, Point, Quality
from edge_agent.testing import SkippingClock
from tests import virtual

run = partial(virtual.run, sockets=True)
GOOD = int(Quality.GOOD)


@asynccontextmanager
async def session(url: str, units: tuple[int, ...] = (1,), **settings: Any) -> AsyncIterator[ModbusSession]:
    connection = DRIVER.Connection.model_validate({"url": url, "timeout": "300ms", **settings})
    made = (DRIVER.Address.model_validate({"address": "holding:7", "unit": unit}) for unit in units)
    points = [Point(f"u{i}", each) for i, each in enumerate(made)]
    async with DRIVER.open("line", connection, points, SkippingClock()) as its:
        assert isinstance(its, ModbusSession)
        yield its


async def qualities(its: ModbusSession, count: int = 1) -> list[int]:
    readings = await its.read(np.arange(count))
    good = readings.quality == GOOD
    assert (readings.values[good] == 7).all()
    return [int(quality) for quality in readings.quality]


WELL: Answer = lambda *_: 0  # noqa: E731


# --------------------------------------------------------------------------------------------------------- serial ports


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/serial/by-id/usb-nobody", "there is no such port; is the adapter plugged in"),
        ("/etc/hostname", "it is no serial port"),
        ("/dev/null", "it is no serial port"),
        ("/tmp", "Is a directory"),
    ],
)
def test_a_port_that_cannot_be_opened_is_silent_in_words(path: str, words: str) -> None:
    async def test() -> None:
        async with session(f"rtu://{path}"):
            pass

    with pytest.raises(DeviceSilent, match=words):
        run(test())


def test_a_port_that_somebody_else_holds_is_left_to_them() -> None:
    async def test() -> None:
        async with serial_line(WELL, 19_200) as port:
            other = os.open(port, os.O_RDWR | os.O_NOCTTY)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with pytest.raises(DeviceSilent, match="in use by another program"):
                async with session(f"rtu://{port}"):
                    pass
            os.close(other)
            async with session(f"rtu://{port}") as its:
                assert await qualities(its) == [GOOD]
                held = os.open(port, os.O_RDWR | os.O_NOCTTY)
                with pytest.raises(BlockingIOError):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.close(held)

    run(test())


def test_a_port_that_goes_is_a_lost_line_and_found_again() -> None:
    async def test(link: Path) -> None:
        async with serial_line(WELL, 19_200) as port:
            link.symlink_to(port)
            async with session(f"rtu://{link}") as its:
                assert await qualities(its) == [GOOD]
                link.unlink()
                its._lines[0].wire.lost("the port is gone")  # type: ignore[union-attr]
                with pytest.raises(DeviceSilent, match="no such port"):
                    await qualities(its)
        async with serial_line(WELL, 19_200) as port:
            link.symlink_to(port)
            async with session(f"rtu://{link}") as its:
                assert await qualities(its) == [GOOD]

    run(test(Path(os.environ.get("TMPDIR", "/tmp")) / f"edge-agent-port-{os.getpid()}"))


def test_connections_to_one_port_share_its_wire_and_take_turns() -> None:
    async def test() -> None:
        under_way = most = 0

        def count(*_: int) -> int:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            asyncio.get_running_loop().call_later(0.005, done)
            return 0

        def done() -> None:
            nonlocal under_way
            under_way -= 1

        async with serial_line(count, 19_200) as port:
            url = f"rtu://{port}?baudrate=19200"
            async with session(url, (1, 2)) as one, session(url, (3, 4)) as other:
                for _ in range(5):
                    async with asyncio.TaskGroup() as tasks:
                        both = [tasks.create_task(qualities(its, 2)) for its in (one, other)]
                    assert [task.result() for task in both] == [[GOOD] * 2] * 2
                assert most == 1, "one request at a time"
                with pytest.raises(DeviceRefused, match="in use by another connection with other settings"):
                    async with session(f"rtu://{port}?baudrate=9600"):
                        pass
                await other.close()
                assert await qualities(one, 2) == [GOOD] * 2, "who leaves takes the line from nobody"

    run(test())


def test_an_answer_that_is_owed_is_known_to_the_next_session() -> None:
    async def test() -> None:
        silent = {1}
        async with serial_line(lambda unit, *_: -1 if unit in silent else 0, 19_200) as port:
            async with session(f"rtu://{port}?baudrate=19200") as its:
                assert await qualities(its) == [Quality.TIMEOUT]
            silent.clear()
            async with session(f"rtu://{port}?baudrate=19200") as its:
                assert await qualities(its) == [Quality.UNCERTAIN]
                assert its.counters()["resyncs"] == 1
                assert await qualities(its) == [GOOD]

    run(test())


# ------------------------------------------------------------------------------------------------------------- network


def test_connections_of_one_unit_each_to_the_same_gateway_are_one_line() -> None:
    async def test() -> None:
        device = TcpDevice()
        await device.start(port=0)
        assert device._server is not None
        url = f"tcp://127.0.0.1:{device._server.sockets[0].getsockname()[1]}"
        async with session(url, (1,)) as one:
            assert await qualities(one) == [GOOD]
            assert {type(line) for line in one._lines} == {Line}
            async with session(url, (2,)) as other, session(url, (1,), gateway=False) as outspoken:
                for its in (one, other, outspoken):
                    assert await qualities(its) == [GOOD]
                wires = [line.wire for its in (one, other) for line in its._lines if isinstance(line, WireLine)]
                assert len(wires) == 2
                assert wires[0] is wires[1], "late answers are guarded against, and requests take turns"
                assert {type(line) for line in outspoken._lines} == {Line}
        await device.stop()

    run(test())


def test_a_device_that_allows_one_connection_is_read_over_one() -> None:
    async def test() -> None:
        device = TcpDevice()
        await device.start(port=0)
        assert device._server is not None
        port = device._server.sockets[0].getsockname()[1]
        async with session(f"tcp://127.0.0.1:{port}", connections=3) as its:
            assert len(its._lines) == 3
            assert await qualities(its) == [GOOD]
            for line in its._lines[1:]:
                await line.close()
            assert await qualities(its) == [GOOD]
        await device.stop()

    run(test())


def test_an_answer_that_lay_there_while_we_stood_still_is_as_old_as_its_question() -> None:
    """Also on a wire: it is taken, and its value does not look newer than it is."""

    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while len(question := await reader.read(8)) == 8:
                pdu = bytes([question[0], 3, 2, 0, 7])
                writer.write(pdu + crc16(pdu))
                if question[0] == 1:
                    virtual.stand_still(2)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with session(f"rtu+tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", (1, 2)) as its:
            before_us = its._clock.wall_us()
            readings = await its.read(np.arange(2))
            first, second = (readings.ts - before_us).tolist()
            assert readings.quality.tolist() == [GOOD, GOOD]
            assert 0 <= first < 300_000
            assert second >= 2_000_000
        server.close()

    run(test())


def test_what_a_peer_says_unasked_between_two_reads_takes_no_memory_and_no_reading_after_it() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while len(question := await reader.read(8)) == 8:
                pdu = bytes([question[0], 3, 2, 0, 7])
                writer.write(pdu + crc16(pdu))
                if question[3] == 1:
                    asyncio.get_running_loop().call_later(1, writer.write, b"\x55" * 1_000_000)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with session(f"rtu+tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}") as its:
            its.use([Point("p", DRIVER.Address.model_validate({"address": "holding:1"}))])
            assert await qualities(its) == [GOOD]
            await asyncio.sleep(10)
            assert its._counts.bytes > 1_000_000
            assert len(its._lines[0].wire._received) <= 2 * RECEIVED_MAX  # type: ignore[union-attr]
            its.use([Point("p", DRIVER.Address.model_validate({"address": "holding:2"}))])
            assert await qualities(its) == [GOOD]
        server.close()

    run(test())


# ----------------------------------------------------------------------------------------------------------------- TLS


def test_certificates_are_checked_and_a_wrong_file_is_told(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    mine = authority.issue_cert("agent.example")
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "agent.pem"))
    mine.private_key_pem.write_to_path(str(tmp_path / "agent.key"))
    files = TlsFiles(ca=tmp_path / "ca.pem", cert=tmp_path / "agent.pem", key=tmp_path / "agent.key")
    context = tls_context(files)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    secret: Any = (tmp_path / "agent.key").read_text()  # as the agent puts it in for {secret: NAME}
    tls_context(files.model_copy(update={"key": secret}))
    assert isinstance(TlsFiles(ca=None, cert=Path("x"), key=SecretRef(secret="k")).key, SecretRef)
    for key, wrong in (("ca", tmp_path / "none.pem"), ("ca", tmp_path / "agent.key"), ("cert", tmp_path / "ca.pem")):
        with pytest.raises(DeviceRefused, match=wrong.name):
            tls_context(files.model_copy(update={key: wrong}))
