"""The fault table of OPC UA line by line, against a foreign server: what each fault does to a reading, and that it passes."""

import asyncio
import os
import random
from collections.abc import Iterator
from math import isnan

import pytest

from edge_agent.contract import SECOND_US, DeviceSilent, Quality
from edge_agent.testing import SkippingClock
from tests import foreign
from tests.opcua_line import FRESH, KEEP_ALIVES_S, Talk, Watch, ours, shared, talk, watched

RESTARTS = int(os.environ.get("RESTARTS", "5"))
SEED = int(os.environ.get("SEED", "1"))
OTHERS = 777.0
"""What shows a variable that stands where ours was."""


@pytest.fixture(scope="module")
def plant() -> Iterator[foreign.Plant]:
    with shared(publishing_min_ms=20, mass=20) as standing:
        yield standing


# ------------------------------------------------------------------------------------------------------- restarts

MEANT = {"Types.Double": 2.5, "Types.Int16": -700.0, "Analog.Temperature": 71.5, "Line1.Pump.Temperature": 41.0}


def test_after_each_restart_with_moved_namespaces_only_our_variables_are_shown() -> None:
    """RESTARTS of them. Half of the addresses name their namespace by its number of the first day."""

    async def run(dice: random.Random) -> None:
        async with foreign.server(publishing_min_ms=20) as plant:
            addresses = [*ours(*MEANT), *(f"ns={plant.index};s={name}" for name in MEANT)]
            truth = [*MEANT.values()] * 2
            slowest = tried = silent = 0.0
            async with watched(plant, addresses) as watch:
                await watch.all_good_since(0)
                before = 0
                for _ in range(RESTARTS):
                    await watch.until(lambda: watch.counted("monitored_items") >= len(addresses))
                    before = dice.choice([n for n in range(4) if n != before])
                    gone = watch.poller._clock.monotonic_us()
                    await plant.restart(
                        away_s=dice.uniform(0, 1.0), grace=dice.random() < 0.5, before=[f"urn:other:{n}" for n in range(before)]
                    )
                    back = watch.poller._clock.monotonic_us()
                    good = await watch.all_good_since(back)
                    last_try = max(back, watch.tries.at[-1])
                    slowest, tried = max(slowest, (good - back) / 1e6), max(tried, (good - last_try) / 1e6)
                    silent = max(silent, max(longest_us(each.heard, gone, good) for each in watch.shown) / 1e6)
                    assert good - last_try <= KEEP_ALIVES_S * SECOND_US, "a server that is back is read at once"
                    assert all(each.is_good(value) for each, value in zip(watch.shown, truth, strict=True))
            wrong = sum(v != value for each, value in zip(watch.shown, truth, strict=True) for v in each.good)
            assert wrong == 0
            shown = sum(len(each.good) for each in watch.shown)
            print(
                f"seed {SEED}: {RESTARTS} restarts, {shown} values shown, wrong {wrong}; first good reading at most "
                f"{slowest:.2f} s after the server was back, {tried:.2f} s after the connection was tried; "
                f"longest silence {silent:.2f} s with the restart in it"
            )

    asyncio.run(run(random.Random(SEED)))


def longest_us(heard: list[int], begin: int, end: int) -> int:
    """The longest time between two moments in which nothing was heard."""
    times = [begin, *(t for t in heard if begin < t < end), end]
    return max(b - a for a, b in zip(times, times[1:], strict=False))


def test_a_node_that_comes_late_after_a_restart_is_good_once_it_is_there_and_verified() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20) as plant, watched(plant, ours("Counter", "Late.Level")) as watch:
            late = watch.shown[1]
            await watch.until(lambda: late.qualities and watch.shown[0].is_good(0))
            assert late.last[1] is Quality.REFUSED
            assert "has no such variable (yet)" in watch.poller.explain("m", 1)
            await plant.add_variable("Late.Level", "Double", 4.5)
            await watch.until(lambda: late.is_good(4.5))
            await plant.restart()
            await watch.until(lambda: late.last[1] is Quality.REFUSED and watch.shown[0].is_good(0))
            await plant.add_variable("Late.Level", "Double", 5.5)
            await watch.until(lambda: late.is_good(5.5))
            assert late.good == [4.5, 5.5]

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------ which variable it is


def test_a_variable_that_is_another_now_is_refused_in_words_until_a_person_says_it_is_right() -> None:
    async def run() -> None:
        async with foreign.server() as plant:
            by_number = f"ns={plant.index};i=9001"
            await plant.add_variable("i=9001", "Double", 1.5)
            async with talk(plant, [by_number, *ours("Types.Double")], mode="poll") as one:
                await one.read()
                assert one.holds([1.5, 2.5])
                notes = one.session.notes()
            assert notes is not None
            await plant.restart()
            await plant.add_variable("i=9001", "Int32", 9)
            async with talk(plant, [by_number, *ours("Types.Double")], notes=notes, mode="poll") as one:
                await one.read()
                assert [each.last[1] for each in one.shown] == [Quality.REFUSED, Quality.GOOD]
                words = one.session.explain(0)
                assert "was '9001' (Double) and is now '9001' (Int32): another variable" in words
                assert 'write browse_name: "9001"' in words
            accepted = {"address": by_number, "browse_name": "9001"}
            async with talk(plant, [accepted], notes=notes, mode="poll") as one:
                await one.read()
                assert one.holds([9.0])
            async with talk(plant, [{**accepted, "browse_name": "9002"}], notes=notes, mode="poll") as one:
                await one.read()
                assert one.shown[0].last[1] is Quality.REFUSED
                assert "is called '9001', not '9002'" in one.session.explain(0)

    asyncio.run(run())


def test_a_variable_that_was_deleted_and_comes_back_as_another_is_not_shown(plant: foreign.Plant) -> None:
    """A program is loaded into the PLC while its server runs: no session ends."""

    async def run(mode: str, *, told: bool) -> None:
        name = f"i={9100 + 2 * told + (mode == 'poll')}"
        await plant.add_variable(name, "Double", 1.5)
        async with talk(plant, ours(name, "Counter"), mode=mode) as one:
            await (one.until_told() if mode == "subscribe" else one.read())
            assert one.shown[0].is_good(1.5)
            await plant.delete_variable(name, told=told)
            if mode == "subscribe" and not told:
                await one.skip(61, plant)
                await one.turn()
                await one.skip(11, plant)
            await one.until(lambda: one.shown[0].last[1] is Quality.REFUSED)
            await plant.add_variable(name, "Int32", 777)
            await one.skip(61, plant)
            for _ in range(5):
                await one.turn()
            assert one.shown[0].last[1] is Quality.REFUSED
            assert "another variable" in one.session.explain(0)
            await plant.delete_variable(name)
            await plant.add_variable(name, "Double", 2.5)
            await one.skip(61, plant)
            await one.until(lambda: one.shown[0].is_good(2.5))
            assert one.shown[0].good == [1.5, 2.5]

    asyncio.run(run("poll", told=False))
    asyncio.run(run("subscribe", told=True))
    asyncio.run(run("subscribe", told=False))
