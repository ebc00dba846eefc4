"""A device that lies: each kind of wrong answer has its outcome, and half of all answers wrong makes no wrong value.

The negative control asks the same liar with plain pymodbus, which takes some of the lies for good: the liar can lie.
"""

import asyncio
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from pymodbus.client import AsyncModbusTcpClient

from drivers.modbus import DRIVER
from edge_agent.contract import DeviceSilent, Point, Quality, Readings
from edge_agent.testing import SkippingClock
from tests import virtual
from tests.liar import EXCEPTIONS, LIES, ODDITIES, Liar, truth

TIMEOUT_S = 0.15
run = partial(virtual.run, sockets=True)
EXCHANGES = 2000
SILENT = "DeviceSilent"

EXPECTED: dict[str, Quality | str] = {
    **dict.fromkeys(LIES, Quality.PROTOCOL),
    "silence": Quality.TIMEOUT,
    "late": Quality.TIMEOUT,
    "late and false": Quality.TIMEOUT,
    "held until the next answer": Quality.TIMEOUT,
    # The frame announces more bytes than come: until the timeout it may still be completed.
    "half an answer": Quality.TIMEOUT,
    "a byte lost": Quality.TIMEOUT,
    # Asked once more over a new connection, and lost once more: the line is dead.
    "half an answer, then the end": SILENT,
    "the end": SILENT,
}
"""What a read of one block says when every answer is this lie."""


def points(addresses: Sequence[str]) -> list[Point]:
    return [Point(address, DRIVER.Address.model_validate({"address": address})) for address in addresses]


def connection(liar: Liar, **settings: object) -> object:
    keys = {"url": f"tcp://127.0.0.1:{liar.port}", "timeout": f"{round(liar.timeout_s * 1000)}ms", **settings}
    return DRIVER.Connection.model_validate(keys)


def true_values(addresses: Sequence[str]) -> list[float]:
    values = []
    for address in addresses:
        table, _, number = address.partition(":")
        values.append(float(truth(int(number)) & (0xFFFF if table in ("holding", "input") else 1)))
    return values


async def read_of(lie: str, addresses: Sequence[str]) -> None:
    liar = Liar(names=(lie,), share=1.0, timeout_s=TIMEOUT_S)
    clock = SkippingClock()
    due, expected = np.arange(len(addresses)), np.array(true_values(addresses))
    async with liar.listening(), DRIVER.open("liar", connection(liar), points(addresses), clock) as session:
        readings: Readings | None = None
        for _ in range(2):
            try:
                readings = await session.read(due)
            except DeviceSilent:
                assert EXPECTED[lie] == SILENT
                break
            good = readings.quality == Quality.GOOD
            assert set(readings.quality.tolist()) == {EXPECTED[lie]}
            assert np.isnan(readings.values[~good]).all()
            np.testing.assert_array_equal(readings.values[good], expected[good])
            if EXPECTED[lie] == Quality.TIMEOUT:
                break
        liar.share = 0.0
        for _ in range(3):  # what was late or held may still come in the meantime, and must be told apart
            clock.skip(60_000_000)
            with suppress(DeviceSilent):
                readings = await session.read(due)
                good = readings.quality == Quality.GOOD
                np.testing.assert_array_equal(readings.values[good], expected[good])
        assert readings is not None
        assert (readings.quality == Quality.GOOD).all(), f"an honest device is read well again: {readings}"


@pytest.mark.parametrize("lie", LIES)
def test_each_kind_of_wrong_register_answer_has_its_outcome(lie: str) -> None:
    run(read_of(lie, [f"holding:{address}" for address in range(100, 110)]))


@pytest.mark.parametrize("lie", LIES)
def test_each_kind_of_wrong_bit_answer_has_its_outcome(lie: str) -> None:
    run(read_of(lie, [f"coil:{address}" for address in range(100, 130)]))


@pytest.mark.parametrize("lie", LIES)
def test_each_kind_of_wrong_answer_to_a_question_for_one_register_has_its_outcome(lie: str) -> None:
    run(read_of(lie, ["input:7"]))


@pytest.mark.parametrize("oddity", ODDITIES)
def test_what_is_only_unusual_is_good(oddity: str) -> None:
    async def test() -> None:
        addresses = [f"holding:{address}" for address in range(125)]
        liar = Liar(names=(oddity,), share=1.0, timeout_s=1.0)
        async with (
            liar.listening(),
            DRIVER.open("odd", connection(liar), points(addresses), SkippingClock()) as session,
        ):
            readings = await session.read(np.arange(125))
            assert (readings.quality == Quality.GOOD).all()
            assert readings.values.tolist() == true_values(addresses)

    run(test())


class Tally:
    """What a consumer saw of a liar."""

    def __init__(self) -> None:
        self.good = self.bad = self.wrong = 0


async def consume(liar: Liar, tally: Tally, exchanges: int, seed: int, pipeline: int) -> None:
    """Read what the liar serves, a random part at a time, until it has answered so many requests."""
    chance = random.Random(seed)
    addresses = [
        f"{table}:{address}"
        for table in ("holding", "input", "coil", "discrete")
        for address in sorted(chance.sample(range(600), 25))
    ]
    expected = np.array(true_values(addresses))
    clock = SkippingClock()
    while sum(liar.told.values()) < exchanges:
        with suppress(DeviceSilent):
            settings = connection(liar, pipeline=pipeline, max_block=chance.choice([5, 40, 125]))
            async with DRIVER.open("liar", settings, points(addresses), clock) as session:
                while sum(liar.told.values()) < exchanges:
                    clock.skip(60_000_000)
                    due = np.array(sorted(chance.sample(range(len(addresses)), chance.randint(1, len(addresses)))))
                    readings = await session.read(due)
                    good = readings.quality == Quality.GOOD
                    tally.good += int(good.sum())
                    tally.bad += int((~good).sum())
                    tally.wrong += int((readings.values[good] != expected[due][good]).sum())


@pytest.mark.parametrize("seed", [1, 2])
def test_half_of_all_answers_wrong_makes_no_wrong_value(seed: int) -> None:
    async def test() -> None:
        tally = Tally()
        liar = Liar(names=(*LIES, *EXCEPTIONS), share=0.5, seed=seed, timeout_s=0.05)
        async with liar.listening(), asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(consume(liar, tally, EXCHANGES, seed * 100 + number, 1 if number % 2 else 4))
        assert tally.wrong == 0
        # Of one read only what was answered before the second silence or the second lie.
        assert tally.good > EXCHANGES / 10, "the honest half comes through"
        assert tally.bad > EXCHANGES / 10
        told = sum(liar.told.values())
        assert told >= EXCHANGES
        assert 0.4 < 1 - liar.told["honest"] / told < 0.6
        assert set(liar.told) >= set(LIES), "every lie was told"

    run(test())


def test_plain_pymodbus_takes_lies_for_good_so_the_liar_does_lie() -> None:
    async def test() -> None:
        wrong: set[int] = set()
        liar = Liar(share=0.5, seed=3, timeout_s=0.05)
        async with liar.listening():
            for number in range(250):
                client = AsyncModbusTcpClient("127.0.0.1", port=liar.port, timeout=0.05, retries=0, reconnect_delay=0)
                # It raises what it likes; here only counts what it returns as good.
                with suppress(Exception):
                    await client.connect()
                    answer = await client.read_holding_registers(number, count=4)
                    expected = [truth(number + i) for i in range(4)]
                    if not answer.isError() and answer.registers != expected:
                        wrong.add(number)
                client.close()
        assert len(wrong) > 10, "pymodbus has become strict: is the own client still needed?"

    run(test())


def test_the_liar_can_be_shown_as_a_command() -> None:
    with subprocess.Popen(
        [sys.executable, "tests/liar.py", "--port", "0", "--seed", "5"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("lying on 127.0.0.1:")
        process.terminate()
        assert "of them wrong" in process.stdout.read()
    assert process.returncode == 0
