"""The OPC UA driver against a real server (asyncua's own, in a process); a proxy between them plays the faults."""

import asyncio
import contextlib
import errno
import json
import logging
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drivers import opcua, opcua_client
from drivers import opcua_settings as settings
from edge_agent.contract import DeviceRefused, DeviceSilent, Driver, Point, Quality, Readings, Session
from edge_agent.testing import Check, Fault, SkippingClock, driver_checks

URI = "urn:test:plant"
TIMEOUT_S = 0.4
LATE_S = 0.7
NODES_MAX = 3

VALUES: Mapping[str, tuple[str, Any]] = {
    "v.double": ("Double", 2.5),
    "v.float": ("Float", 0.5),
    "v.int16": ("Int16", -7),
    "v.uint32": ("UInt32", 4_000_000_000),
    "v.bool": ("Boolean", True),
    "v.exact": ("Int64", 2**53),
    "v.inexact": ("UInt64", 2**53 + 1),
    "v.text": ("String", "warm"),
    "v.array": ("Double", [1.0, 2.0]),
    "v.nan": ("Double", float("nan")),
    "v.inf": ("Double", float("inf")),
    "v.spare": ("Double", 1.0),
}


# ------------------------------------------------------------------------------------------- the server, as a process


class Server:
    """An OPC UA server in a process, which takes values, statuses and ages for its nodes."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[1],
        )
        self._port: int | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            self._port = int(self._line())
        return self._port

    def set(self, node: str, value: Any, kind: str = "Double", status: str = "Good", age_s: float | None = 0.0) -> None:
        assert self.port
        assert self._process.stdin is not None
        order = {"node": node, "value": value, "kind": kind, "status": status, "age_s": age_s}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait(10)
        self._process.stdout.close()


async def serve(shifted: bool) -> None:
    """The process: prints its port, obeys orders from stdin. shifted: another namespace stands where ours was."""
    from asyncua import Server as UaServer
    from asyncua import ua
    from asyncua.server.user_managers import User, UserRole

    logging.getLogger("asyncua").setLevel(logging.ERROR)

    class Users:
        def get_user(self, _server: Any, username: Any = None, password: Any = None, certificate: Any = None) -> Any:
            known = username is None or (username, password) == ("agent", "right")
            return User(role=UserRole.User) if known else None

    server = UaServer(user_manager=Users())
    await server.init()
    server.set_endpoint("opc.tcp://127.0.0.1:0")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    if shifted:
        other = await server.register_namespace("urn:test:other")
        await server.nodes.objects.add_variable(ua.NodeId("v.double", other), "other", 777.0)
    space = await server.register_namespace(URI)
    for name, (kind, value) in VALUES.items():
        variant = ua.Variant(value, getattr(ua.VariantType, kind))
        await server.nodes.objects.add_variable(ua.NodeId(name, space), name, variant)
    limit = server.get_node(ua.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead)
    await limit.write_value(ua.Variant(NODES_MAX, ua.VariantType.UInt32))

    async with server:
        print(server.bserver._server.sockets[0].getsockname()[1], flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            at = None if order["age_s"] is None else datetime.now(UTC) - timedelta(seconds=order["age_s"])
            status = ua.StatusCode(getattr(ua.StatusCodes, order["status"]))
            value = ua.Variant(order["value"], getattr(ua.VariantType, order["kind"]))
            await server.write_attribute_value(ua.NodeId(order["node"], space), ua.DataValue(value, status, at))
            print("done", flush=True)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    both = {"plain": Server(), "shifted": Server("shifted")}
    yield both
    for server in both.values():
        server.end()


@pytest.fixture(scope="module")
def server(servers: dict[str, Server]) -> Server:
    return servers["plain"]


# -------------------------------------------------------------------------------------- the proxy that plays the faults


class Proxy:
    """Passes OPC UA messages between client and server, the answers only as its fault lets it."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault = Fault.WELL
        self.port = 0
        self.lines = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._lies = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        self._writers |= {writer, up_writer}
        forth = asyncio.ensure_future(self._forth(reader, up_writer))
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
                while True:
                    head = await up_reader.readexactly(8)
                    message = head + await up_reader.readexactly(int.from_bytes(head[4:], "little") - 8)
                    await self._answer(message, writer)
        finally:
            forth.cancel()
            self._writers -= {writer, up_writer}
            for one in (writer, up_writer):
                one.transport.abort()

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def _answer(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        match self.fault:
            case Fault.SILENT:
                return
            case Fault.LATE:
                await asyncio.sleep(LATE_S)  # the fault itself
            case Fault.CUT:
                writer.write(message[: len(message) // 2])
                await writer.drain()
                writer.close()
                return
            case Fault.LYING:
                message = self._lie(message)
            case _:
                pass
        writer.write(message)

    def _lie(self, message: bytes) -> bytes:
        """Another request's number; one value fewer; half of it missing; a wrong size; not a word of OPC UA."""
        self._lies += 1
        match self._lies % 5:
            case 0:
                return message[:20] + struct.pack("<I", 4711) + message[24:]
            case 1:
                count = message.find(struct.pack("<i", NODES_MAX), 24)
                return message[:count] + struct.pack("<i", NODES_MAX - 1) + message[count + 4 :]
            case 2:
                half = message[: len(message) // 2]
                return half[:4] + struct.pack("<I", len(half)) + half[8:]
            case 3:
                return message[:4] + struct.pack("<I", len(message) - 3) + message[8:]
            case _:
                return b"HTTP/1.1 200 OK\r\n\r\nhello there, this is no OPC UA"


class OpcUaPlant:
    """See testing.Plant. The server lives on between checks, since it takes seconds to start; the proxy is new."""

    driver: Driver = opcua.DRIVER
    points: Sequence[Mapping[str, Any]] = tuple(
        {"address": f"nsu={URI};s={name}"} for name in ("v.double", "v.float", "v.int16")
    )
    expected: Sequence[float] = (2.5, 0.5, -7.0)

    def __init__(self, server: Server) -> None:
        self.server = server
        self.proxy = Proxy(server.port)

    async def start(self) -> None:
        self._values()
        await self.proxy.start()

    async def stop(self) -> None:
        await self.proxy.stop()

    def connection(self) -> Mapping[str, Any]:
        return {"url": f"opc.tcp://127.0.0.1:{self.proxy.port}", "timeout": f"{TIMEOUT_S * 1000:.0f}ms"}

    def play(self, fault: Fault) -> None:
        self.proxy.fault = fault if fault not in (Fault.REFUSING, Fault.BAD_VALUE) else Fault.WELL
        self._values("BadUserAccessDenied" if fault is Fault.REFUSING else "Good")
        if fault is Fault.BAD_VALUE:
            self.server.set("v.double", 2.5, status="BadSensorFailure")
            self.server.set("v.float", float("nan"), "Float")

    def _values(self, status: str = "Good") -> None:
        for name in ("v.double", "v.float", "v.int16"):
            kind, value = VALUES[name]
            self.server.set(name, value, kind, status)


@pytest.mark.parametrize("check", driver_checks(), ids=str)
def test_it_keeps_the_promises_of_all_drivers(check: Check, server: Server) -> None:
    check.run(lambda: OpcUaPlant(server))


# ----------------------------------------------------------------------------------------------------- single promises


@contextlib.asynccontextmanager
async def session_to(
    port: int, addresses: Sequence[str], clock: SkippingClock | None = None, **keys: Any
) -> AsyncIterator[Session]:
    points = [Point(text, settings.Address(address=text)) for text in addresses]
    connection = settings.Connection.model_validate({"url": f"opc.tcp://127.0.0.1:{port}", **keys})
    if isinstance(connection.password, settings.SecretRef):
        connection = connection.model_copy(update={"password": connection.password.secret})
    async with opcua.DRIVER.open("test", connection, points, clock or SkippingClock()) as session:
        yield session


def read(port: int, addresses: Sequence[str], **keys: Any) -> Readings:
    async def reading() -> Readings:
        async with session_to(port, addresses, **keys) as session:
            return await session.read(np.arange(len(addresses)))

    return asyncio.run(reading())


def ours(*names: str) -> list[str]:
    return [f"nsu={URI};s={name}" for name in names]


def test_every_numeric_type_and_boolean_is_read_and_the_rest_has_its_reason(server: Server) -> None:
    readings = read(server.port, ours(*VALUES))
    nan = np.nan
    expected = [2.5, 0.5, -7.0, 4e9, 1.0, float(2**53), nan, nan, nan, nan, nan, 1.0]
    np.testing.assert_array_equal(readings.values, expected)
    assert [Quality(code).name for code in readings.quality] == [
        *["GOOD"] * 6,
        "PRECISION",
        "OTHER",
        "OTHER",
        "NOT_A_NUMBER",
        "NOT_A_NUMBER",
        "GOOD",
    ]


@pytest.mark.parametrize(
    ("status", "quality"),
    [
        ("GoodClamped", Quality.GOOD),
        ("UncertainLastUsableValue", Quality.UNCERTAIN),
        ("BadSensorFailure", Quality.SENSOR_FAILURE),
        ("BadDeviceFailure", Quality.DEVICE_FAILURE),
        ("BadOutOfRange", Quality.OUT_OF_RANGE),
        ("BadNoCommunication", Quality.TIMEOUT),
        ("BadNotConnected", Quality.DISCONNECTED),
        ("BadWaitingForInitialData", Quality.MISSING),
        ("BadNotReadable", Quality.REFUSED),
        ("BadUnexpectedError", Quality.OTHER),
    ],
)
def test_a_status_becomes_a_quality_and_a_bad_value_is_no_number(server: Server, status: str, quality: Quality) -> None:
    server.set("v.spare", 3.0, status=status)
    readings = read(server.port, ours("v.spare"))
    assert Quality(readings.quality[0]) is quality
    assert np.isnan(readings.values[0]) == status.startswith("Bad")


def test_every_status_that_is_translated_exists() -> None:
    from asyncua.ua import StatusCodes

    for name in {*opcua_client.REFUSALS, *opcua_client.OF_OURS, *opcua_client.TOO_LONG, *opcua.NO_NODE}:
        assert hasattr(StatusCodes, name), name


def test_a_source_time_is_kept_and_an_insane_one_replaced_and_said(server: Server) -> None:
    before_us = time.time_ns() // 1000
    server.set("v.spare", 1.0, age_s=600.0)
    readings = read(server.port, ours("v.spare"))
    assert abs(readings.ts[0] - (before_us - 600_000_000)) < 10_000_000
    assert readings.quality[0] == Quality.GOOD
    server.set("v.spare", 1.0, age_s=7200.0)
    readings = read(server.port, ours("v.spare"))
    assert abs(readings.ts[0] - before_us) < 60_000_000
    assert readings.quality[0] == Quality.CLOCK
    server.set("v.spare", 1.0, age_s=None)
    assert read(server.port, ours("v.spare")).quality[0] == Quality.GOOD
    server.set("v.spare", 1.0, status="UncertainSensorNotAccurate", age_s=7200.0)
    assert read(server.port, ours("v.spare")).quality[0] == Quality.UNCERTAIN


def test_a_long_list_is_read_in_pieces_that_the_server_takes(server: Server) -> None:
    async def reading() -> tuple[Readings, int | float]:
        async with session_to(server.port, ours(*["v.double"] * 8)) as session:
            await session.read(np.arange(8))
            before = session.counters()["requests"]
            return await session.read(np.arange(8)), session.counters()["requests"] - before

    readings, requests = asyncio.run(reading())
    assert (readings.values == 2.5).all()
    assert requests == 3


def test_namespaces_are_found_by_uri_or_index_and_an_unknown_node_is_refused(server: Server) -> None:
    readings = read(server.port, [*ours("v.double"), "ns=2;s=v.double", "i=2267", "ns=2;s=nowhere", "nsu=urn:none;i=1"])
    np.testing.assert_array_equal(readings.values[:3], [2.5, 2.5, 255.0])
    assert list(readings.quality[3:]) == [Quality.REFUSED, Quality.REFUSED]


def test_when_no_namespace_is_there_a_person_must_act(server: Server) -> None:
    with pytest.raises(DeviceRefused, match="no namespace urn:none"):
        read(server.port, ["nsu=urn:none;i=1", "nsu=urn:none;i=2"])


def test_a_restart_with_moved_namespaces_still_reads_our_variable(servers: dict[str, Server]) -> None:
    async def reading() -> list[float]:
        proxy = Proxy(servers["plain"].port)
        await proxy.start()
        values = []
        for name in ("plain", "shifted"):
            proxy.upstream = servers[name].port
            async with session_to(proxy.port, [*ours("v.double"), "ns=2;s=v.double"]) as session:
                values += list((await session.read(np.arange(2))).values)
        await proxy.stop()
        return values

    assert asyncio.run(reading()) == [2.5, 2.5, 2.5, 777.0]


def test_user_and_password_are_used_and_wrong_ones_need_a_person(server: Server) -> None:
    good = {"user": "agent", "password": {"secret": "right"}}
    assert read(server.port, ours("v.double"), **good).values[0] == 2.5
    with pytest.raises(DeviceRefused, match="BadUserAccessDenied"):
        read(server.port, ours("v.double"), user="agent", password={"secret": "wrong"})
    refused = settings.Connection.model_validate({"url": "opc.tcp://127.0.0.1:1", **good})
    with pytest.raises(DeviceRefused, match="secret 'right' was not found"):

        async def opening() -> None:
            proxy = Proxy(server.port)
            await proxy.start()
            try:
                there = refused.model_copy(update={"url": f"opc.tcp://127.0.0.1:{proxy.port}"})
                async with opcua.DRIVER.open("test", there, [], SkippingClock()):
                    pass
            finally:
                await proxy.stop()

        asyncio.run(opening())


def test_a_channel_is_renewed_in_time_and_a_session_that_rested_too_long_is_made_anew(server: Server) -> None:
    async def reading() -> None:
        clock = SkippingClock()
        proxy = Proxy(server.port)
        await proxy.start()
        async with session_to(proxy.port, ours("v.double"), clock) as session:
            for _ in range(35):  # a session is kept for two minutes without a request; a channel lives for an hour
                clock.skip(80_000_000)
                assert (await session.read(np.arange(1))).values[0] == 2.5
            assert (session.counters()["renewals"], proxy.lines) == (1, 1)
            clock.skip(100_000_000)
            assert (await session.read(np.arange(1))).values[0] == 2.5
            assert (session.counters()["sessions"], proxy.lines) == (2, 2)
        await proxy.stop()

    asyncio.run(reading())


def test_a_session_leaves_the_library_no_task_of_its_own(server: Server) -> None:
    async def reading() -> int:
        async with session_to(server.port, ours("v.double")):
            return len(asyncio.all_tasks())

    assert asyncio.run(reading()) == 1


def test_a_value_that_is_no_number_is_told_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def reading() -> dict[str, int | float]:
        async with session_to(server.port, ours("v.text")) as session:
            for _ in range(3):
                await session.read(np.arange(1))
            return session.counters()

    with caplog.at_level(logging.WARNING, logger="drivers.opcua"):
        assert asyncio.run(reading())["not_numeric"] == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"test: nsu={URI};s=v.text (nsu={URI};s=v.text) is a String, not a number"
    ]


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("i=2258", settings.NodeName(None, 0, 2258)),
        ("ns=2;i=1001", settings.NodeName(None, 2, 1001)),
        ("nsu=urn:plant;s=a;b=c", settings.NodeName("urn:plant", 0, "a;b=c")),
        ("nsu=http://x/%3By;b=aGk=", settings.NodeName("http://x/;y", 0, b"hi")),
    ],
)
def test_a_node_id_is_read_as_it_is_written(text: str, name: settings.NodeName) -> None:
    assert settings.parse_node_id(text) == name


@pytest.mark.parametrize(
    "text", ["", "x", "ns=2", "i=-1", "i=4294967296", "ns=70000;i=1", "g=7", "b=%", "nsu=;i=1", "i=１"]
)
def test_what_is_no_node_id_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        settings.Address(address=text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "http://h"}, "no OPC UA address"),
        ({"url": "opc.tcp://u:p@h"}, "do not stand in the url"),
        ({"url": "opc.tcp://h:99999"}, "port is a number from 1 to 65535"),
        ({"url": "opc.tcp://h:abc"}, "port is a number from 1 to 65535"),
        ({"url": "opc.tcp://[::1:4840"}, "stands in brackets"),
        ({"security": "basic256sha256"}, "lacks its mode; write Basic256Sha256/SignAndEncrypt"),
        ({"security": "Basic256Sha256/None"}, "not known; allowed is none, or one of Basic256Sha256, Aes128"),
        ({"security": "Basic128Rsa15/Sign"}, "is broken"),
        ({"mode": "push"}, "should be 'subscribe' or 'poll'"),
        ({"timeout": 4}, "needs its unit"),
        ({"timeout": "90s"}, "out of range"),
        ({"profile": "s7"}, "no profile 's7'; allowed are auto, beckhoff"),
        ({"user": "a", "user_certificate": {"secret": "x"}}, "not both"),
        ({"certificate": {"secret": "x"}}, "needs a security"),
        ({"user": "a", "password": "plain"}, "never written in plain"),
        ({"password": {"secret": "x"}}, "needs a user"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_a_wrong_connection_is_refused_in_words(keys: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings.Connection.model_validate({"url": "opc.tcp://h:4840", **keys})


def test_settings_survive_their_json() -> None:
    connection = settings.Connection.model_validate({"url": "opc.tcp://h", "timeout": "1.5s", "user": "u"})
    assert settings.Connection.model_validate_json(connection.model_dump_json()) == connection
    assert settings.Connection.model_json_schema()["properties"]["timeout"]["type"] == "string"


def test_nobody_at_the_port_is_silence(server: Server) -> None:
    async def opening() -> None:
        proxy = Proxy(server.port)
        await proxy.start()
        await proxy.stop()
        async with session_to(proxy.port, ours("v.double")):
            pass

    with pytest.raises(DeviceSilent, match=r"127\.0\.0\.1:\d+: no session: Connection refused: is the server running"):
        asyncio.run(opening())


def test_why_a_host_is_not_reached_is_told_without_numbers_of_the_system() -> None:
    several = OSError(
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed"
    )
    unknown = socket.gaierror(-2, "Name or service not known")
    cut = OSError(errno.EHOSTUNREACH, "Connect call failed ('192.0.2.1', 1)")
    assert [str(opcua_client.translated(each, "no session")) for each in (several, unknown, cut)] == [
        "no session: Connection refused: is the server running there, and is it this port?",
        "no session: Name or service not known: check the host's name, or write its IP address",
        "no session: No route to host",
    ]


if __name__ == "__main__":
    asyncio.run(serve("shifted" in sys.argv[1:]))
