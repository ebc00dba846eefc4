"""A hundred thousand faulty exchanges on each kind of line: no value that is good is wrong, and all is good again after."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from pymodbus import FramerType, ModbusException
from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient, AsyncModbusUdpClient

from tests import bus, memory, virtual
from tests.bus import Peer
from tests.liar import EXCEPTIONS as TCP_EXCEPTIONS
from tests.liar import LIES, ODDITIES
from tests.lines import on_a_pty, on_tcp, on_udp
from tests.memory import MemoryLoop
from tests.rig import TIMEOUT_S, Consumer, Tally
from tests.virtual import Traffic, VirtualClock

EXCHANGES = int(os.environ.get("EXCHANGES") or 100_000)
SEED = int(os.environ.get("SEED") or 1)
REAL_EXCHANGES = int(os.environ.get("REAL_EXCHANGES") or 10_000)
UART_CHARS = 3
"""Characters that come in one piece at most: fewer than the silence between frames has."""
LIFE = 1_000
"""Faulty exchanges of one peer; then it is well, and the next has another temper."""


def serial(framing: Callable[[], bus.Framing], char_s: float, chunk: int = 0) -> Callable[[random.Random], Peer]:
    def make(chance: random.Random) -> Peer:
        names = (*bus.SERIAL_FAULTS, *bus.SERIAL_ODDITIES, *bus.EXCEPTIONS)
        return bus.SerialBus(names, framing=framing(), char_s=char_s, deaf=chance.random() < 0.3, chunk=chunk)

    return make


def device(chance: random.Random) -> Peer:
    return bus.Device((*LIES, *ODDITIES, *TCP_EXCEPTIONS))


def gateway(chance: random.Random) -> Peer:
    return bus.Gateway(
        (*bus.GATEWAY_FAULTS, *bus.GATEWAY_FAULTS[1:4] * 2),
        patience=chance.choice([0.6, 0.9, 1.5, 4.0]),
        tells=chance.random() < 0.5,
        keeps=chance.random() < 0.3,
        flushes=chance.random() < 0.3,
        stamps=chance.random() < 0.7,
    )


RIGS: dict[str, tuple[str, dict[str, object], Callable[[random.Random], Peer]]] = {
    "tcp": ("tcp://127.0.0.1:1", {}, device),
    "tcp, four in flight": ("tcp://127.0.0.1:1", {"pipeline": 4}, device),
    "gateway": ("tcp://127.0.0.1:1", {"gateway": True}, gateway),
    "rtu": ("rtu:///dev/ttyS0?baudrate=19200", {}, serial(bus.Rtu, 11 / 19200)),
    "ascii": ("ascii:///dev/ttyS0?baudrate=19200", {}, serial(bus.Ascii, 10 / 19200)),
    "rtu+tcp": ("rtu+tcp://127.0.0.1:1", {}, serial(bus.Rtu, 0.0)),
    "udp": ("udp://127.0.0.1:1", {}, device),
}


async def lives(name: str, exchanges: int, seed: int) -> tuple[Tally, Counter[str], int]:
    """What was seen of so many faulty exchanges, what was told in them, and how many they were."""
    url, settings, make = RIGS[name]
    chance = random.Random(f"{seed} {name}")
    random.seed(chance.random())  # the driver's own jitter and first numbers: a seed shows the same again
    tally, told, faulty, life = Tally(), Counter[str](), 0, 0
    clock, loop = VirtualClock(), asyncio.get_running_loop()
    assert isinstance(loop, MemoryLoop)
    while faulty < exchanges:
        life += 1
        peer = make(chance)
        peer.timeout_s = TIMEOUT_S
        peer.temper(chance)
        loop.peers = {1: peer, "/dev/ttyS0": peer}
        units = [1] if chance.random() < 0.4 else [1, 2, 3]
        consumer = Consumer(units, {"url": url, **settings}, chance, clock)
        await consumer.suffer(peer, min(LIFE, exchanges - faulty))
        faulty += peer.faulty
        told += peer.told
        where = f"{name}, seed {seed}, life {life}: {peer!r:.300}"
        assert not consumer.tally.wrong, f"{where}: {consumer.tally.wrong[:5]}"
        await consumer.recover(peer)
        assert not consumer.tally.wrong, f"{where}, after: {consumer.tally.wrong[:5]}"
        tally.add(consumer.tally)
        await asyncio.sleep(100)  # what was late is past, before another peer takes its place
    return tally, told, faulty


@pytest.mark.parametrize("name", RIGS)
def test_no_fault_in_memory_makes_a_wrong_value(name: str) -> None:
    exchanges = EXCHANGES // len(RIGS) + 1
    tally, told, faulty = memory.run(lives(name, exchanges, SEED))
    judge(name, tally, told, faulty, exchanges)


def judge(name: str, tally: Tally, told: Counter[str], faulty: int, exchanges: int) -> None:
    print(
        f"{name}, seed {SEED}: {faulty} faulty exchanges of {len(told)} kinds, {tally.reads} reads, {tally.good} good "
        f"values, {tally.uncertain} uncertain ({len(tally.doubtful)} wrong), {tally.bad} bad, {tally.silences} silences"
    )
    assert not tally.wrong, tally.wrong[:5]
    # Of a unit that has no more registers, behind a gateway that hands out a neighbour's late answers.
    assert not tally.doubtful or name == "gateway", tally.doubtful[:5]
    assert faulty >= exchanges
    assert tally.good > faulty / 4, "what is right comes through"
    assert tally.bad > faulty / 10, "what is wrong is seen"
    assert len(told) > 12, f"not only a few kinds of fault: {told}"


# ----------------------------------------------------------------------------------------------------- over real lines


@asynccontextmanager
async def pty(peer: Peer, traffic: Traffic | None) -> AsyncIterator[str]:
    with on_a_pty(peer, traffic) as path:
        yield path


# A pty takes neither parity nor seven bits.
REAL: dict[str, tuple[str, dict[str, object], Callable[[random.Random], Peer], Callable[..., Any]]] = {
    "rtu on a pty, 19200 baud": ("rtu://{}?baudrate=19200&parity=N", {}, serial(bus.Rtu, 10 / 19200, UART_CHARS), pty),
    "ascii on a pty, 9600 baud": (
        "ascii://{}?baudrate=9600&bytesize=8&parity=N",
        {},
        serial(bus.Ascii, 10 / 9600, UART_CHARS),
        pty,
    ),
    "tcp": ("tcp://127.0.0.1:{}", {"gateway": False}, device, on_tcp),
    "gateway": ("tcp://127.0.0.1:{}", {"gateway": True}, gateway, on_tcp),
    "rtu+tcp": ("rtu+tcp://127.0.0.1:{}", {}, serial(bus.Rtu, 0.0), on_tcp),
    "udp": ("udp://127.0.0.1:{}", {}, device, on_udp),
}


async def lives_on(name: str, exchanges: int, seed: int) -> tuple[Tally, Counter[str], int]:
    """As `lives`, through the kernel."""
    url, settings, make, line = REAL[name]
    chance, clock = random.Random(f"{seed} {name}"), VirtualClock()
    random.seed(chance.random())
    tally, told, faulty = Tally(), Counter[str](), 0
    loop = asyncio.get_running_loop()
    assert isinstance(loop, virtual.VirtualLoop)
    while faulty < exchanges:
        peer = make(chance)
        peer.timeout_s = TIMEOUT_S
        peer.temper(chance)
        traffic = loop.traffic = Traffic()
        async with line(peer, traffic) as where:
            consumer = Consumer([1, 2, 3], {"url": url.format(where), **settings}, chance, clock)
            traffic.seen = consumer.bytes_seen
            await consumer.suffer(peer, min(LIFE, exchanges - faulty))
            faulty += peer.faulty
            told += peer.told
            await consumer.recover(peer)
        tally.add(consumer.tally)
    return tally, told, faulty


@pytest.mark.parametrize("name", REAL)
def test_no_fault_on_a_real_line_makes_a_wrong_value(name: str) -> None:
    exchanges = REAL_EXCHANGES // len(REAL) + 1
    tally, told, faulty = virtual.run(lives_on(name, exchanges, SEED), sockets=True)
    judge(name, tally, told, faulty, exchanges)


# --------------------------------------------------------------------------------------------------- negative controls


async def asked_plainly(client: Any, chance: random.Random, times: int) -> tuple[int, list[str]]:
    """How many good answers a plain client returns, and which of them are wrong."""
    good, wrong = 0, []
    for _ in range(times):
        unit, start = chance.choice([1, 2, 3]), chance.choice([0, 50, 100, 150])
        # It raises what it likes; here only counts what it returns as good.
        with suppress(Exception):
            if not client.connected:
                await client.connect()
            answer = await client.read_holding_registers(start, count=4, device_id=unit)
            if not answer.isError():
                good += 1
                if answer.registers != [bus.truth(unit, 3, start + at) for at in range(4)]:
                    wrong.append(f"unit {unit}, holding {start}: {answer.registers}")
        await asyncio.sleep(chance.choice([0.0, 0.05]))
    client.close()
    return good, wrong


CONTROLS: dict[str, tuple[Callable[[random.Random], Peer], Callable[..., Any], Callable[[Any], Any]]] = {
    "tcp": (device, on_tcp, lambda port: AsyncModbusTcpClient("127.0.0.1", port=port, **PLAIN)),
    "gateway": (
        lambda _: bus.Gateway(bus.GATEWAY_FAULTS, patience=0.8),
        on_tcp,
        lambda port: AsyncModbusTcpClient("127.0.0.1", port=port, **PLAIN),
    ),
    "rtu on a pty": (
        serial(bus.Rtu, 10 / 19200),
        pty,
        lambda path: AsyncModbusSerialClient(path, baudrate=19200, **PLAIN),
    ),
    "udp": (device, on_udp, lambda port: AsyncModbusUdpClient("127.0.0.1", port=port, **PLAIN)),
    "rtu+tcp": (
        serial(bus.Rtu, 0.0),
        on_tcp,
        lambda port: AsyncModbusTcpClient("127.0.0.1", port=port, framer=FramerType.RTU, **PLAIN),
    ),
}
PLAIN: dict[str, Any] = {"timeout": TIMEOUT_S, "retries": 0, "reconnect_delay": 0}


@pytest.mark.parametrize("name", CONTROLS)
def test_plain_pymodbus_takes_wrong_values_for_good_on_the_same_rigs(name: str) -> None:
    """The negative control: a rig on which nobody can fail proves nothing."""

    async def test() -> None:
        make, line, client = CONTROLS[name]
        chance = random.Random(SEED)
        peer = make(chance)
        peer.timeout_s, peer.share = TIMEOUT_S, 0.5
        async with line(peer, None) as where:
            good, wrong = await asked_plainly(client(where), chance, 250)
        print(f"{name}: {good} good answers, {len(wrong)} of them wrong, such as {wrong[:1]}")
        assert len(wrong) >= 5, "pymodbus has become strict: is the own client still needed?"

    virtual.run(test(), sockets=True)


def test_plain_pymodbus_is_shifted_for_ever_by_one_late_answer() -> None:
    """The worst fault on a serial line; the driver's own answer to it is in test_modbus_faults.py."""

    async def test() -> None:
        said = iter(["late by 1.2 timeouts"])
        peer = bus.SerialBus(script=lambda _: next(said, "just in time"), timeout_s=TIMEOUT_S, latency=0.0)
        with on_a_pty(peer) as path:
            client = AsyncModbusSerialClient(path, baudrate=19200, **PLAIN)
            await client.connect()
            got = []
            for start in range(0, 2000, 100):
                with suppress(ModbusException):
                    answer = await client.read_holding_registers(start, count=4, device_id=1)
                    got.append((start, answer.registers))
            client.close()
        wrong = [start for start, registers in got if registers != [bus.truth(1, 3, start + at) for at in range(4)]]
        assert len(wrong) == len(got) > 15

    virtual.run(test(), sockets=True)
