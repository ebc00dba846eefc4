"""Independent devices: libmodbus (C) answers over TCP and on a serial port; real processes, real time, no timing told."""

import asyncio
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.modbus import DRIVER
from edge_agent.clock import SystemClock
from edge_agent.contract import DeviceSilent, Point, Quality, Session
from tests import liar
from tests.conftest import eventually, free_port

SOURCE = Path(__file__).parent / "peers" / "libmodbus_peer.c"
KNOWN = {600: 0, 601: 0, 602: 0x1234, 603: 0x5678, 604: 0, 605: 0}
CODES = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
"""Types of a value, and how Python's struct calls them."""


def register(table: str, address: int) -> int:
    if table == "holding" and address in KNOWN:
        return KNOWN[address]
    return (address * 2654435761 >> 7) + (table in ("input", "discrete")) & 0xFFFF


def value_at(table: str, address: int, type_: str, word_order: str, byte_order: str) -> float:
    """What a person with the device's manual expects."""
    words = struct.calcsize(CODES[type_]) // 2
    pieces = [struct.pack(">H", register(table, address + at)) for at in range(words)]
    if byte_order == "little":
        pieces = [piece[::-1] for piece in pieces]
    if word_order == "little":
        pieces.reverse()
    return float(struct.unpack(">" + CODES[type_], b"".join(pieces))[0])


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("libmodbus") / "peer"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", str(path), str(SOURCE), "-lmodbus"], check=True)
    return path


@contextmanager
def running(program: Path, *words: str) -> Iterator[None]:
    """The peer, ready; at its end it has told which functions it heard, and they only read."""
    with subprocess.Popen([str(program), *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.terminate()
            functions = [int(line) for line in process.stdout]
            liar.ASKED.update(functions)
    assert set(functions) <= {1, 2, 3, 4}


@contextmanager
def serial_line(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Two ends of a line: socat joins two ptys."""
    ends = folder / "ours", folder / "theirs"
    with subprocess.Popen(["socat", *(f"pty,rawer,link={end}" for end in ends)]) as process:
        try:
            asyncio.run(eventually(lambda: all(end.exists() for end in ends)))
            yield ends
        finally:
            process.terminate()


@asynccontextmanager
async def session(url: str, points: Sequence[Mapping[str, Any]], timeout: str = "5s") -> AsyncIterator[Session]:
    connection = DRIVER.Connection.model_validate({"url": url, "timeout": timeout})
    made = [Point(str(number), DRIVER.Address.model_validate(dict(point))) for number, point in enumerate(points)]
    async with DRIVER.open("libmodbus", connection, made, SystemClock()) as opened:
        yield opened


async def read_well(url: str, points: Sequence[Mapping[str, Any]], expected: Sequence[float]) -> None:
    async with session(url, points) as opened:
        for _ in range(3):
            readings = await opened.read(np.arange(len(points)))
            assert readings.quality.tolist() == [Quality.GOOD] * len(points)
            np.testing.assert_array_equal(readings.values, np.array(expected))


@pytest.fixture(params=["tcp", "rtu"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where a device can be reached, and the words of the command that starts it."""
    if request.param == "tcp":
        port = free_port()
        yield f"tcp://127.0.0.1:{port}", ["tcp", str(port)]
    else:
        with serial_line(tmp_path) as (ours, theirs):
            yield f"rtu://{ours}?baudrate=115200&parity=N", ["rtu", str(theirs), "115200", "1"]


def test_all_four_tables_are_read_from_libmodbus(device: tuple[str, list[str]], program: Path) -> None:
    url, words = device
    points, expected = [], []
    for table in ("holding", "input", "coil", "discrete"):
        for address in (*range(130), 500, 998, 999):
            points.append({"address": f"{table}:{address}"})
            expected.append(register(table, address) & (0xFFFF if table in ("holding", "input") else 1))
    with running(program, *words):
        asyncio.run(read_well(url, points, expected))


def test_all_types_and_orders_are_read_from_libmodbus(device: tuple[str, list[str]], program: Path) -> None:
    url, words = device
    points: list[dict[str, Any]] = []
    expected: list[float] = []
    for type_, code in CODES.items():
        for word_order in ("big", "little"):
            for byte_order in ("big", "little"):
                orders = {"word_order": word_order, "byte_order": byte_order}
                exact = 600 if word_order == "big" else 602  # not beyond 2^53
                for address in (exact,) if struct.calcsize(code) == 8 else (602, 603, 604):
                    points.append({"address": f"holding:{address}", "type": type_, **orders})
                    expected.append(value_at("holding", address, type_, word_order, byte_order))
    for bit in range(16):
        points.append({"address": "holding:602", "bit": bit})
        expected.append(float(0x1234 >> bit & 1))
    points += [
        {"address": "holding:602", "type": "bcd16"},
        {"address": "holding:602", "type": "bcd32"},
        {"address": "holding:602", "type": "bcd32", "word_order": "little"},
        {"address": "40604", "type": "bool"},
    ]
    expected += [1234.0, 12345678.0, 56781234.0, 1.0]
    with running(program, *words):
        asyncio.run(read_well(url, points, expected))


def test_what_libmodbus_refuses_is_refused_and_costs_the_others_nothing(
    device: tuple[str, list[str]], program: Path
) -> None:
    url, words = device

    async def test() -> None:
        async with session(url, [{"address": f"holding:{address}"} for address in (998, 999, 1000, 1001)]) as opened:
            for _ in range(2):
                readings = await opened.read(np.arange(4))
                assert readings.quality.tolist() == [Quality.GOOD] * 2 + [Quality.REFUSED] * 2
                assert readings.values[:2].tolist() == [register("holding", 998), register("holding", 999)]
            assert "exception 2 (illegal data address)" in opened.explain(2)

    with running(program, *words):
        asyncio.run(test())


def test_libmodbus_is_found_again_after_its_restart(device: tuple[str, list[str]], program: Path) -> None:
    url, words = device
    points = [{"address": "holding:1"}, {"address": "input:1"}]
    expected = [float(register("holding", 1)), float(register("input", 1))]

    async def read_until_good() -> None:
        """As the poller does: again and again, over a fresh line after DeviceSilent."""
        for _ in range(300):
            with suppress(DeviceSilent):
                async with session(url, points, timeout="500ms") as opened:
                    for _ in range(300):
                        readings = await opened.read(np.arange(2))
                        good = readings.quality == Quality.GOOD
                        assert (readings.values[good] == np.array(expected)[good]).all()
                        if good.all():
                            return
                        await asyncio.sleep(0.1)
            await asyncio.sleep(0.1)
        raise AssertionError("not found again")

    async def test() -> None:
        """The line that is open sees the device go, and a line is good again when it is back."""
        with running(program, *words):
            line = session(url, points, timeout="500ms")
            opened = await line.__aenter__()
            assert (await opened.read(np.arange(2))).quality.tolist() == [Quality.GOOD] * 2
        with suppress(DeviceSilent):
            assert not ((await opened.read(np.arange(2))).quality == Quality.GOOD).any(), "nobody is there"
        await line.__aexit__(None, None, None)
        with running(program, *words):
            await read_until_good()

    asyncio.run(test())
