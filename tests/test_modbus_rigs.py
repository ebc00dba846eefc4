"""A hundred thousand faulty exchanges on each kind of line: no value that is good is wrong, and all is good again after."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests import bus, memory
from tests.bus import Peer
from tests.liar import EXCEPTIONS as TCP_EXCEPTIONS
from tests.liar import LIES, ODDITIES
from tests.memory import MemoryLoop
from tests.rig import TIMEOUT_S, Consumer, Tally
from tests.virtual import VirtualClock

EXCHANGES = int(os.environ.get("EXCHANGES", "100000"))
SEED = int(os.environ.get("SEED", "1"))
LIFE = 1_000
"""Faulty exchanges of one peer; then it is well, and the next has another temper."""


def serial(framing: Callable[[], bus.Framing], char_s: float) -> Callable[[random.Random], Peer]:
    def make(chance: random.Random) -> Peer:
        names = (*bus.SERIAL_FAULTS, *bus.SERIAL_ODDITIES, *bus.EXCEPTIONS)
        return bus.SerialBus(names, framing=framing(), char_s=char_s, deaf=chance.random() < 0.3)

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
    tally, told, faulty = memory.run(lives(name, EXCHANGES // len(RIGS) + 1, SEED))
    print(
        f"{name}, seed {SEED}: {faulty} faulty exchanges, {tally.reads} reads, {tally.good} good values, "
        f"{tally.uncertain} uncertain ({len(tally.doubtful)} wrong), {tally.bad} bad, {tally.silences} silences, none wrong"
    )
    assert faulty >= EXCHANGES // len(RIGS)
    assert tally.good > faulty / 4, "what is right comes through"
    assert tally.bad > faulty / 10, "what is wrong is seen"
    assert len(told) > 12, f"not only a few kinds of fault: {told}"
