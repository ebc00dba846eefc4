"""The fault table line by line: what each fault of a serial line or a gateway does to a reading, and that it passes."""

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from drivers.modbus import DRIVER
from edge_agent.contract import DeviceSilent, Point, Quality, Session
from tests import bus, liar, memory
from tests.bus import Peer, truth
from tests.memory import MemoryLoop
from tests.virtual import VirtualClock

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 0.2
LINES: dict[str, tuple[str, Callable[[], bus.SerialBus]]] = {
    "rtu": ("rtu:///dev/ttyS0?baudrate=19200", lambda: bus.SerialBus(framing=bus.Rtu(), char_s=11 / 19200)),
    "ascii": ("ascii:///dev/ttyS0?baudrate=9600", lambda: bus.SerialBus(framing=bus.Ascii(), char_s=10 / 9600)),
    "rtu+tcp": ("rtu+tcp://127.0.0.1:1", lambda: bus.SerialBus(framing=bus.Rtu())),
}

PROTOCOL, TIMEOUT = frozenset({Quality.PROTOCOL}), frozenset({Quality.TIMEOUT})
EXPECTED: dict[str, frozenset[Quality]] = {
    **dict.fromkeys(bus.SERIAL_FAULTS, PROTOCOL),
    **dict.fromkeys(
        (
            "silent",
            "late by 1.2 timeouts",
            "late by 2 timeouts",
            "late by 3 timeouts",
            "half an answer",
            "half now, half late",
            "only the echo",
        ),
        TIMEOUT,
    ),
    # Where a broken frame cannot be told from one that is not whole yet, the timeout tells.
    **dict.fromkeys(
        ("a byte lost", "noise", "babble", "noise ahead of the answer", "byte count below the data", "more registers"),
        PROTOCOL | TIMEOUT,
    ),
    # What comes when nobody waits is dropped.
    "an answer nobody asked for, later": frozenset({Quality.GOOD}),
}


class Reader:
    """Points of holding registers of a peer in memory; what is read as good is held against the truth."""

    def __init__(self, url: str, peer: Peer, places: Sequence[tuple[int, int]], **settings: object) -> None:
        self.places = places
        keys = {"url": url, "timeout": f"{round(TIMEOUT_S * 1000)}ms", **settings}
        self.connection = DRIVER.Connection.model_validate(keys)
        self.points = [
            Point(f"{unit}/{address}", DRIVER.Address.model_validate({"address": f"holding:{address}", "unit": unit}))
            for unit, address in places
        ]
        self.clock = VirtualClock()
        peer.timeout_s, peer.latency = TIMEOUT_S, 0.0
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MemoryLoop)
        loop.peers = {1: peer, "/dev/ttyS0": peer}

    def open(self) -> AbstractAsyncContextManager[Session]:
        return DRIVER.open("line", self.connection, self.points, self.clock)

    async def read(self, session: Session, *which: int) -> list[Quality]:
        """The qualities of these points; of all, when none is named."""
        due = np.array(which or range(len(self.points)), dtype=np.int64)
        readings = await session.read(due)
        for at, value, quality in zip(due.tolist(), readings.values, readings.quality, strict=True):
            unit, address = self.places[at]
            if quality in (Quality.GOOD, Quality.UNCERTAIN):
                assert value == truth(unit, 3, address), f"{self.points[at].name} is {value}"
            else:
                assert np.isnan(value)
        return [Quality(quality) for quality in readings.quality]

    async def recovers(self, session: Session | None) -> None:
        """Good within five reads, a minute apart."""
        last: object = None
        for _ in range(5):
            await asyncio.sleep(61)
            try:
                if session is not None:
                    last = await self.read(session)
                else:
                    async with self.open() as fresh:
                        last = await self.read(fresh)
            except DeviceSilent as error:
                session, last = None, error
                continue
            if set(last) == {Quality.GOOD}:
                return
        raise AssertionError(f"not good again within five reads: {last}")


# ------------------------------------------------------------------------------------------------------ serial lines


@pytest.mark.parametrize("fault", bus.SERIAL_FAULTS)
@pytest.mark.parametrize("line", LINES)
def test_each_fault_of_a_serial_line_has_its_quality_and_passes(line: str, fault: str) -> None:
    async def test() -> None:
        url, make = LINES[line]
        peer = make()
        peer.script = lambda _: fault if peer.share else "honest"
        reader = Reader(url, peer, [(1, 100), (1, 101), (1, 103)])
        async with reader.open() as session:
            first: set[Quality] = set()
            with suppress(DeviceSilent):
                for _ in range(4):
                    qualities = set(await reader.read(session))
                    first = first or qualities
                    assert Quality.GOOD not in qualities or Quality.GOOD in EXPECTED[fault]
                assert first <= EXPECTED[fault], "what comes later finds answers that are still owed"
            peer.share = 0.0
            await reader.recovers(session)

    memory.run(test())


@pytest.mark.parametrize("oddity", bus.SERIAL_ODDITIES)
@pytest.mark.parametrize("line", LINES)
def test_what_is_only_unusual_on_a_serial_line_is_good(line: str, oddity: str) -> None:
    async def test() -> None:
        url, make = LINES[line]
        peer = make()
        peer.script = lambda _: oddity
        reader = Reader(url, peer, [(1, 100), (1, 101), (1, 150), (2, 7)])
        async with reader.open() as session:
            for _ in range(5):
                assert set(await reader.read(session)) == {Quality.GOOD}

    memory.run(test())


@pytest.mark.parametrize("late", ["late by 1.2 timeouts", "late by 2 timeouts", "late by 3 timeouts"])
@pytest.mark.parametrize("line", LINES)
def test_a_device_slower_than_the_timeout_shifts_no_answer(line: str, late: str) -> None:
    """The worst fault of plain clients: each answer is taken for the next one, for ever, with good quality."""

    async def test() -> None:
        url, make = LINES[line]
        peer = make()
        slow = True
        peer.script = lambda _: late if slow else "honest"
        reader = Reader(url, peer, [(1, 1000), (1, 2000), (1, 3000), (1, 4000)])
        async with reader.open() as session:
            for pause_s in (0.0, 0.0, 0.01, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0):
                for point in range(4):
                    with suppress(DeviceSilent):
                        await reader.read(session, point)
                    await asyncio.sleep(pause_s)
            slow = False
            await reader.recovers(session)

    memory.run(test())


def test_what_is_read_just_after_a_late_answer_is_uncertain_and_then_good() -> None:
    async def test() -> None:
        url, make = LINES["rtu"]
        peer = make()
        said = iter(["late by 1.2 timeouts"])
        peer.script = lambda _: next(said, "honest")
        reader = Reader(url, peer, [(1, 1000), (1, 2000)])
        async with reader.open() as session:
            assert await reader.read(session, 0) == [Quality.TIMEOUT]
            assert await reader.read(session, 1) == [Quality.UNCERTAIN]
            assert await reader.read(session) == [Quality.GOOD] * 2
            assert session.counters()["resyncs"] == 1

    memory.run(test())


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_never_quiet_ends_a_read_and_is_read_again_after(line: str) -> None:
    async def test() -> None:
        url, make = LINES[line]
        peer = make()
        babbles = True
        peer.script = lambda _: "just in time" if babbles else "honest"  # no answer slips through between two bytes

        async def babble() -> None:
            chance = random.Random(1)
            while babbles:
                peer.send(chance.randbytes(1))
                await asyncio.sleep(0.0005)

        reader = Reader(url, peer, [(1, 100), (1, 101)])
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks, reader.open() as session:
            tasks.create_task(babble())
            for _ in range(5):
                began_s = loop.time()
                with suppress(DeviceSilent):
                    qualities = set(await reader.read(session))
                    assert qualities <= {Quality.PROTOCOL, Quality.TIMEOUT, Quality.DISCONNECTED}
                assert loop.time() - began_s < 3.0
            babbles = False
            await reader.recovers(session)

    memory.run(test())


# ---------------------------------------------------------------------------------------------------------- gateways


@pytest.mark.parametrize("stamps", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("tells", [True, False])
def test_a_late_answer_that_a_gateway_gives_to_the_next_request_is_never_a_value(
    tells: bool, keeps: bool, stamps: bool
) -> None:
    """Under the next number, and the next one's unit; after exception 11 or after silence; at once or a minute later."""

    async def test() -> None:
        slow = {1}
        peer = bus.Gateway(patience=0.8, tells=tells, keeps=keeps, stamps=stamps)
        peer.script = lambda q: "late by 1.2" if q.unit in slow else "honest"
        reader = Reader("tcp://127.0.0.1:1", peer, [(1, 10), (2, 20), (2, 30), (3, 40)], gateway=True)
        async with reader.open() as session:
            for pause_s in (0.0, 0.1, 0.05, 1.0, 61.0):
                for which in ((0, 1), (3,), (2,), (0,), (1, 2, 3)):
                    with suppress(DeviceSilent):
                        await reader.read(session, *which)
                    await asyncio.sleep(pause_s)
            slow.clear()
            await reader.recovers(session)

    memory.run(test())


def test_the_late_answer_of_a_slow_unit_is_not_taken_for_that_of_a_quick_neighbour() -> None:
    """Others answer in between, which proves nothing of the slow one; what looks like its answer is asked otherwise."""

    async def test() -> None:
        peer = bus.Gateway(patience=0.8, tells=True)
        peer.script = lambda q: "late by 1.2" if q.unit == 1 else "just in time"
        reader = Reader("tcp://127.0.0.1:1", peer, [(1, 10), (2, 20), (3, 30)], gateway=True)
        async with reader.open() as session:
            assert await reader.read(session, 0) == [Quality.TIMEOUT]
            qualities = []
            for _ in range(10):
                qualities += await reader.read(session, 1, 2)
            assert peer.told["given to another"] == 1
            assert qualities.count(Quality.GOOD) >= 17
            assert set(qualities) <= {Quality.GOOD, Quality.TIMEOUT, Quality.UNCERTAIN}

    memory.run(test())


def test_where_a_device_has_no_more_registers_the_doubtful_reading_is_uncertain() -> None:
    async def test() -> None:
        peer = bus.Gateway(patience=0.8, tells=True)
        peer.script = lambda q: "silent" if q.unit == 1 else "refused" if q.start + q.count > 20 else "honest"
        reader = Reader("tcp://127.0.0.1:1", peer, [(1, 19), (2, 18), (2, 19)], gateway=True)
        async with reader.open() as session:
            assert await reader.read(session, 0) == [Quality.TIMEOUT]
            assert await reader.read(session, 2) == [Quality.UNCERTAIN]
            assert await reader.read(session, 1, 2) == [Quality.GOOD] * 2, "nobody owes an answer of this length"

    memory.run(test())


@pytest.mark.parametrize("units", [(1,), (1, 2)])
@pytest.mark.parametrize("silence", ["silent", "late by 1.2", "target does not respond"])
def test_a_device_without_a_register_to_spare_is_good_again_after_a_silence(silence: str, units: Sequence[int]) -> None:
    async def test() -> None:
        peer = bus.Gateway(patience=4.0, tells=False)
        said = iter([silence] * 3)
        peer.script = lambda q: (
            "refused" if q.start + q.count > 20 else next(said, "honest") if q.unit == 1 else "honest"
        )
        reader = Reader("tcp://127.0.0.1:1", peer, [(unit, 19) for unit in units], gateway=True)
        async with reader.open() as session:
            for _ in range(4):
                with suppress(DeviceSilent):
                    await reader.read(session)
                await asyncio.sleep(5)
            await reader.recovers(session)

    memory.run(test())


@pytest.mark.parametrize("word", ["path unavailable", "target does not respond"])
def test_a_gateway_that_cannot_reach_a_unit_costs_the_others_nothing(word: str) -> None:
    async def test() -> None:
        peer = bus.Gateway()
        peer.script = lambda q: word if q.unit == 2 else "honest"
        reader = Reader("tcp://127.0.0.1:1", peer, [(1, 10), (2, 10), (3, 10)], gateway=True)
        async with reader.open() as session:
            for _ in range(10):
                assert await reader.read(session) == [Quality.GOOD, Quality.TIMEOUT, Quality.GOOD]
                await asyncio.sleep(1)
            assert peer.connections == 1

    memory.run(test())


@pytest.mark.parametrize("fault", bus.GATEWAY_FAULTS)
def test_each_fault_of_a_gateway_leaves_the_other_units_readable(fault: str) -> None:
    async def test() -> None:
        peer = bus.Gateway(patience=0.8)
        peer.script = lambda q: fault if q.unit == 2 and peer.share else "honest"
        reader = Reader("tcp://127.0.0.1:1", peer, [(1, 10), (2, 10), (3, 10)], gateway=True)
        async with reader.open() as session:
            qualities = []
            for _ in range(30):
                with suppress(DeviceSilent):
                    first, second, third = await reader.read(session)
                    assert second not in (Quality.GOOD, Quality.UNCERTAIN)
                    qualities += [first, third]
                await asyncio.sleep(2)
            assert qualities.count(Quality.GOOD) >= 0.7 * len(qualities)
            peer.share = 0.0
            await reader.recovers(session)

    memory.run(test())


# ------------------------------------------------------------------------------------------------------ the table itself


def test_each_test_that_the_table_of_faults_names_exists() -> None:
    table = (ROOT / "docs" / "modbus.md").read_text(encoding="utf-8")
    tests = {
        name
        for path in (ROOT / "tests").glob("test_modbus*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    cases = {*liar.LIES, *liar.ODDITIES, *bus.SERIAL_FAULTS, *bus.SERIAL_ODDITIES, *bus.GATEWAY_FAULTS}
    named = re.findall(r"`(test_\w+)(?:\[([^\]]+)\])?`", table)
    assert len(named) > 50
    assert {name for name, _ in named} <= tests
    assert {case for _, case in named if case} <= cases


def test_each_line_of_the_table_of_faults_has_a_test() -> None:
    table = (ROOT / "docs" / "modbus.md").read_text(encoding="utf-8").split("## Faults")[1]
    lines = [
        line
        for line in table.splitlines()
        if line.startswith("| ") and not line.startswith(("| **", "| fault", "| ---"))
    ]
    assert len(lines) > 40
    assert not [line for line in lines if "`test_" not in line]


def test_the_lines_that_are_shown_are_lines() -> None:
    text = (ROOT / "docs" / "modbus.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    connections = yaml.safe_load(shown)["connections"]
    assert len(connections) == 7
    for keys in connections.values():
        assert keys.pop("driver") == "modbus"
        DRIVER.Connection.model_validate(keys)
