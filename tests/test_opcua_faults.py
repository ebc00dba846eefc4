"""The fault table of OPC UA line by line, against a foreign server: what each fault does to a reading, and that it passes."""

import asyncio
import itertools
import logging
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from math import isnan
from pathlib import Path

import numpy as np
import pytest

from drivers import opcua_subscription
from drivers.opcua_subscription import Told
from edge_agent.contract import SECOND_US, DeviceSilent, Quality
from edge_agent.testing import SkippingClock
from tests import foreign
from tests.opcua_line import FRESH, KEEP_ALIVES_S, ours, shared, talk, watched

ROOT = Path(__file__).resolve().parent.parent
RESTARTS = int(os.environ.get("RESTARTS") or 5)
SEED = int(os.environ.get("SEED") or 1)


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
                        away_s=dice.uniform(0, 1.0),
                        grace=dice.random() < 0.5,
                        before=[f"urn:other:{n}" for n in range(before)],
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
    return max(b - a for a, b in itertools.pairwise(times))


def test_a_node_that_comes_late_after_a_restart_is_good_once_it_is_there_and_verified() -> None:
    async def run() -> None:
        async with (
            foreign.server(publishing_min_ms=20) as plant,
            watched(plant, ours("Counter", "Late.Level")) as watch,
        ):
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


# ------------------------------------------------------------------------------------- the line and the session


def test_after_a_cut_in_the_middle_of_updates_nothing_wrong_is_shown_and_every_later_value_comes(
    plant: foreign.Plant,
) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        before = (await plant.statistics())["requests"]
        async with watched(plant, ours("Counter", "Types.Double"), sampling="0s", queue=100) as watch:
            counter = watch.shown[0]
            await watch.until(lambda: counter.is_good(0) and watch.counted("keep_alives") >= 1)
            await plant.republish("empty")  # who asked for what was lost would never end
            await plant.stop_listening()
            await plant.drop()
            for number in range(1, 6):
                await plant.set("Counter", number)
            await watch.until(lambda: counter.last[1] is Quality.DISCONNECTED)
            await plant.start_listening()
            await watch.until(lambda: counter.is_good(5) and watch.counted("monitored_items") == 2)
            await plant.ramp(["Counter"], 0.02, start=6, count=20)
            await watch.until(lambda: counter.is_good(25))
            assert counter.good == [0, *range(5, 26)], (
                "the cut is a gap that is seen; before and after it nothing is lost"
            )
            assert watch.shown[1].good == [2.5, 2.5]
            assert (await plant.statistics())["requests"].get("Republish", 0) == before.get("Republish", 0)
        await plant.republish("normal")

    asyncio.run(run())


def test_whatever_ends_a_session_it_is_good_again_within_seconds_and_nothing_wrong_was_shown(
    plant: foreign.Plant,
) -> None:
    async def too_many_sessions() -> None:
        await plant.refuse("CreateSession", "BadTooManySessions", 1)
        await plant.drop()

    async def too_many_publish_requests() -> None:
        await plant.refuse("Publish", "BadTooManyPublishRequests", 2)

    async def hole() -> None:
        await plant.mute()
        await asyncio.sleep(0.5)  # the fault itself
        await plant.mute(False)

    faults = (
        plant.drop,
        plant.close_sessions,
        too_many_publish_requests,
        too_many_sessions,
        hole,
        plant.end_subscriptions,
    )

    async def run() -> None:
        await plant.set("Counter", 0)
        async with watched(plant, ours("Counter", "Types.Double"), timeout="400ms") as watch:
            counter = watch.shown[0]
            await watch.until(lambda: counter.is_good(0))
            for number, fault in enumerate(faults, 1):
                await watch.until(lambda: watch.poller.health.state == "connected" and watch.counted("polled") == 0)
                begun = asyncio.get_running_loop().time()
                await fault()
                await plant.set("Counter", number)
                await watch.until(lambda number=number: counter.is_good(number))  # type: ignore[misc]
                print(f"{fault.__name__}: {asyncio.get_running_loop().time() - begun:.2f} s")
            assert sorted(set(counter.good)) == list(range(len(faults) + 1))
            assert counter.good == sorted(counter.good), "never back in time"
            assert set(watch.shown[1].good) == {2.5}
            await eventually_alone(plant)

    asyncio.run(run())


async def eventually_alone(plant: foreign.Plant) -> None:
    """Until the server has one session and one subscription of ours; what we leave behind it counts against us."""
    end = asyncio.get_running_loop().time() + 10
    while True:
        living = [
            s for s in (await plant.statistics())["sessions"] if s["status"] != "closed" and s["publish_requests"]
        ]
        if len(living) == 1 and len(living[0]["subscriptions"]) == 1:
            return
        assert asyncio.get_running_loop().time() < end, living
        await asyncio.sleep(0.05)


def test_a_silent_server_is_left_and_read_by_a_new_session_before_four_keep_alives_are_over(
    plant: foreign.Plant,
) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with watched(plant, ours("Counter")) as watch:
            counter = watch.shown[0]
            await watch.until(lambda: counter.is_good(0) and watch.counted("monitored_items") == 1)
            await plant.silent()
            await plant.set("Counter", 4)
            await watch.until(lambda: counter.last[1] is Quality.TIMEOUT)
            assert "connected but silent" in watch.poller.health.reason
            await watch.until(lambda: counter.is_good(4))
            await plant.silent(False)
            assert counter.good == [0, 4]

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------ which variable it is


def test_a_variable_that_is_another_now_is_refused_in_words_until_a_person_says_it_is_right() -> None:
    async def run() -> None:
        async with foreign.server() as plant:
            by_number = f"ns={plant.index};s=Late.Level"
            await plant.add_variable("Late.Level", "Double", 1.5)
            async with talk(plant, [by_number, *ours("Types.Double")], mode="poll") as one:
                await one.read()
                assert one.holds([1.5, 2.5])
                notes = one.session.notes()
            assert notes is not None
            await plant.restart()
            await plant.add_variable("Late.Level", "Int32", 9)
            async with talk(plant, [by_number, *ours("Types.Double")], notes=notes, mode="poll") as one:
                await one.read()
                assert [each.last[1] for each in one.shown] == [Quality.REFUSED, Quality.GOOD]
                words = one.session.explain(0)
                assert "was 'Level' (Double) and is now 'Level' (Int32): another variable" in words
                assert 'write browse_name: "Level"' in words
            accepted = {"address": by_number, "browse_name": "Level"}
            async with talk(plant, [accepted], notes=notes, mode="poll") as one:
                await one.read()
                assert one.holds([9.0])
            async with talk(plant, [{**accepted, "browse_name": "Filling"}], notes=notes, mode="poll") as one:
                await one.read()
                assert one.shown[0].last[1] is Quality.REFUSED
                assert "is called 'Level', not 'Filling'" in one.session.explain(0)

    asyncio.run(run())


def test_a_variable_that_was_deleted_and_comes_back_as_another_is_not_shown(plant: foreign.Plant) -> None:
    """A program is loaded into the PLC while its server runs: no session ends."""

    async def run(name: str, mode: str, *, told: bool = False, unseen: bool = False) -> None:
        """unseen: it is another one before anybody could see that the first was gone, and its item is deaf."""
        await plant.add_variable(name, "Double", 1.5)
        async with talk(plant, ours(name, "Counter"), mode=mode) as one:
            await (one.until_told() if mode == "subscribe" else one.read())
            assert one.shown[0].is_good(1.5)
            if unseen:
                await plant.deafen([name])
            await plant.delete_variable(name, told=told)
            if unseen:
                await plant.add_variable(name, "Int32", 777)
                await one.looked_after(plant)
            await one.until(lambda: one.shown[0].last[1] is Quality.REFUSED)
            if not unseen:
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

    asyncio.run(run("i=9101", "poll"))
    asyncio.run(run("i=9102", "subscribe", told=True))
    asyncio.run(run("i=9103", "subscribe"))
    asyncio.run(run("i=9104", "subscribe", unseen=True))


def test_a_namespace_that_comes_after_the_servers_start_is_found_by_the_session_or_the_next_one() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, plant_later=True) as plant:
            async with talk(plant, ["i=2267", *ours("Types.Double")], mode="poll") as one:
                await one.read()
                assert one.shown[0].is_good(255)
                assert one.shown[1].last[1] is Quality.REFUSED
                assert f"no namespace {foreign.URI}" in one.session.explain(1)
                await plant.load_plant()
                one.clock.skip(61 * SECOND_US)
                await one.until(lambda: one.shown[1].is_good(2.5))
                assert one.counted("sessions") == 1
            await plant.restart(plant_later=True)
            async with watched(plant, ours("Types.Double")) as watch:
                await watch.until(lambda: watch.shown[0].last[1] is Quality.REFUSED)
                assert f"no namespace {foreign.URI}" in watch.poller.health.reason
                await plant.load_plant()
                await watch.until(lambda: watch.shown[0].is_good(2.5))
                assert watch.shown[0].good[0] == 2.5

    asyncio.run(run())


def test_a_session_that_rested_while_the_plant_was_programmed_anew_verifies_again() -> None:
    async def run() -> None:
        async with foreign.server() as plant:
            await plant.add_variable("Late.Level", "Double", 1.5)
            drive = {"address": ours("Typed.Drive")[0], "member": "Torque"}
            async with talk(plant, [*ours("Late.Level", "Types.Double"), drive], mode="poll") as one:
                await one.read()
                assert one.holds([1.5, 2.5, 12.5])
                await plant.restart(before=["urn:other"])
                await plant.add_variable("Late.Level", "Int32", 777)
                one.clock.skip(2700 * SECOND_US)
                await one.read()
                assert one.counted("sessions") == 2
                assert [each.last[1] for each in one.shown] == [Quality.REFUSED, Quality.GOOD, Quality.GOOD]
                assert one.shown[1].good == [2.5, 2.5]
                assert one.shown[2].good == [12.5, 12.5]

    asyncio.run(run())


def test_a_variable_that_a_plant_does_not_have_any_more_is_refused_and_back_when_it_is(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double", "Nowhere.Level"), mode="poll") as one:
            await one.read()
            assert one.shown[0].is_good(2.5)
            assert one.shown[1].last[1] is Quality.REFUSED
            asked = one.counted("requests")
            for _ in range(5):
                await one.read()
            assert one.counted("requests") == asked + 5, "what is not there is not asked with every beat"
            await plant.add_variable("Nowhere.Level", "Double", 3.5)
            one.clock.skip(2 * SECOND_US)
            await one.read()
            assert one.shown[1].is_good(3.5)

    asyncio.run(run())


# ------------------------------------------------------------------------------------------- the server will not tell


def test_when_a_subscription_is_refused_every_signal_is_polled_meanwhile(plant: foreign.Plant) -> None:
    async def run(times: int) -> None:
        await plant.refuse("CreateSubscription", "BadTooManySubscriptions", times)
        async with talk(plant, ours("Types.Double", "Counter")) as one:
            for number in range(1, 6):
                await plant.set("Counter", number)
                await one.turn()
                assert one.holds([2.5, number])
                assert one.counted("polled") == 2
                if times == foreign.FOREVER:
                    one.clock.skip(400 * SECOND_US)
            await plant.refuse("CreateSubscription", "Good", 0)
            one.clock.skip(400 * SECOND_US)
            await one.until_told()
            await plant.set("Counter", 9)
            await one.until(lambda: one.holds([2.5, 9]))
            assert one.counted("polled") == 0

    asyncio.run(run(1))
    asyncio.run(run(foreign.FOREVER))


def test_when_the_server_ends_a_subscription_it_is_polled_until_there_is_another(plant: foreign.Plant) -> None:
    async def run(end: Callable[[], Awaitable[object]]) -> None:
        await plant.set("Counter", 0)
        async with talk(plant, ours("Types.Double", "Counter")) as one:
            await one.until_told()
            await end()
            await plant.set("Counter", 1)
            await one.until(lambda: one.counted("polled") == 2)
            for number in range(2, 5):
                await plant.set("Counter", number)
                await one.turn()
                assert one.holds([2.5, number])
            await plant.refuse("Publish", "Good", 0)
            one.clock.skip(6 * SECOND_US)
            await one.until(lambda: one.counted("polled") == 0)
            await plant.set("Counter", 5)
            await one.until(lambda: one.holds([2.5, 5]))
            assert (one.counted("sessions"), one.counted("subscriptions")) == (1, 2)
            assert one.shown[1].good == sorted(one.shown[1].good), "never back in time"

    asyncio.run(run(plant.end_subscriptions))
    asyncio.run(run(lambda: plant.end_subscriptions(told=True)))
    asyncio.run(run(lambda: plant.refuse("Publish", "BadServiceUnsupported")))
    asyncio.run(run(lambda: plant.refuse("Publish", "BadTooManyPublishRequests")))


def test_items_that_the_server_refuses_are_polled_beside_those_that_it_tells(
    plant: foreign.Plant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="drivers.opcua")

    async def run() -> None:
        await plant.refuse_items(["Types.Float"])
        async with talk(plant, ours("Types.Double", "Types.Float", "Counter")) as one:
            await one.until(lambda: one.counted("monitored_items") == 2)
            for number in range(1, 5):
                await plant.set_many([{"node": "Types.Float", "value": number}, {"node": "Counter", "value": -number}])
                await one.turn()
                assert one.shown[1].is_good(number)
                await one.until(lambda number=number: one.holds([2.5, number, -number]))  # type: ignore[misc]
            assert one.counted("polled") == 1
            await one.skip(11, plant)
            await one.turn()
            told = [each.getMessage() for each in caplog.records if "will not tell by itself" in each.getMessage()]
            assert len(told) == 1, "once, however often it is asked for again"
            assert "BadTooManyMonitoredItems (m.s1): watch fewer variables" in told[0]
            await plant.refuse_items([])
            await one.skip(21, plant)
            await one.until(lambda: one.counted("polled") == 0)
        await plant.set("Types.Float", 0.5)

    asyncio.run(run())


def test_a_server_that_keeps_few_publish_requests_is_given_as_many_as_it_keeps() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, publish_requests_max=1) as plant:
            async with talk(plant, ours("Counter"), sampling="0s", queue=100) as one:
                await one.until_told()
                ramp = await plant.ramp(["Counter"], 0.02, start=1, count=10)
                await one.until(lambda: one.shown[0].is_good(10))
                assert one.shown[0].good == list(range(11))
                assert one.counted("sessions") == 1
                await plant.ramp_end(ramp)

    asyncio.run(run())


@pytest.mark.parametrize("told", [True, False], ids=["that it tells", "that it keeps to itself"])
def test_the_limits_of_a_server_are_kept(told: bool) -> None:
    limits = {"maxNodesPerRead": 7, "maxMonitoredItemsPerCall": 5}

    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, mass=20, limits=limits if told else {}) as plant:
            async with talk(plant, ours(*(f"Mass.{n}" for n in range(20)))) as one:
                for limit, value in limits.items():
                    await plant.enforce(limit, value)
                await one.until_told()
                assert one.holds(range(20))
                assert {item["node"] for item in await plant.items()} == {f"Mass.{n}" for n in range(20)}

    asyncio.run(run())


def test_the_limits_of_a_profile_are_kept_and_what_is_beyond_them_is_polled() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, mass=505) as plant:
            names = [f"Mass.{n}" for n in range(505)]
            async with talk(plant, ours(*names), profile="s7-1200") as one:
                await one.until(lambda: one.counted("monitored_items") == 500)
                await plant.set_many([{"node": name, "value": 1000} for name in names])
                await one.until(lambda: one.holds([1000.0] * 505))
                assert one.counted("polled") == 5
                (session,) = (await plant.statistics())["sessions"]
                (subscription,) = session["subscriptions"]
                assert subscription["publishing_ms"] == 500
                assert session["publish_requests"] <= 2
                assert {item["sampling_ms"] for item in subscription["items"]} == {500}
                assert (await plant.statistics())["requests"]["Read"] >= 6

    asyncio.run(run())


# --------------------------------------------------------------------------------------------------- what is told


def test_a_gap_in_the_numbers_is_counted_and_everything_is_read_once(plant: foreign.Plant) -> None:
    async def run() -> None:
        before = (await plant.statistics())["skipped"]
        await plant.set("Counter", 0)
        async with talk(plant, ours("Counter", "Types.Double", "Types.Int16")) as one:
            await one.until_told()
            await one.read()
            await plant.set("Counter", 1)
            await one.heard(1)
            await plant.skip_notifications(lose=True)
            await plant.set("Counter", 2)
            await one.lost(plant, before + 1)
            await plant.set("Types.Double", 3.5)
            await one.heard(1)
            assert one.counted("sequence_gaps") == 1
            asked = one.counted("requests")
            await one.read()  # with what was told before the gap still waiting
            assert one.counted("requests") == asked + 1
            assert one.holds([2, 3.5, -700])
            assert one.shown[0].good[-2:] == [1, 2]
            for _ in range(5):
                await one.turn()
            assert one.holds([2, 3.5, -700])
            await plant.skip_notifications(lose=True)
            await plant.set("Counter", 3)
            await one.until(lambda: one.shown[0].is_good(3))  # the next keep-alive has the number that is missing
            assert one.counted("sequence_gaps") == 2
        await plant.set("Types.Double", 2.5)

    asyncio.run(run())


def test_a_queue_that_overflowed_in_the_server_is_counted_and_the_last_value_stands(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with talk(plant, ours("Counter"), publishing="300ms", sampling="0s", queue=2) as one:
            await one.until_told()
            await plant.ramp(["Counter"], 0.002, start=1, count=50)
            await one.until(lambda: one.shown[0].is_good(50))
            assert one.counted("overflows") >= 1
            assert one.shown[0].good == sorted(one.shown[0].good)

    asyncio.run(run())


def test_who_does_not_read_loses_the_oldest_of_a_million_and_it_is_counted(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Counter")) as one:
            await one.until_told()
            telling = one.session.subscription
            assert telling is not None
            many = opcua_subscription.VALUES_MAX * 2 // 5
            block = Told(
                0,
                np.zeros(many, np.int64),
                np.zeros(many),
                np.zeros(many, np.uint8),
                np.zeros(many, np.int64),
                np.zeros(many, np.uint32),
                np.zeros(many, np.uint8),
            )
            telling.drain()
            for _ in range(5):
                telling._keep(block)
            assert one.counted("dropped") == 3 * many
            assert telling.resync, "everything is read once, for what was dropped may be the last word of somebody"
            telling.drain()
            await one.turn()
            assert one.shown[0].last[1] is Quality.GOOD

    asyncio.run(run())


def test_several_values_between_two_reads_come_as_rows_in_their_order_and_time(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with talk(plant, ours("Counter", "Types.Double"), sampling="0s", queue=100) as one:
            await one.until_told()
            await one.read()
            begun = one.clock.monotonic_us()
            await plant.ramp(["Counter"], 0.01, start=1, count=20)
            await one.heard(20)
            readings = await one.read()
            assert readings.values[:, 0][~np.isnan(readings.values[:, 0])].tolist() == list(range(1, 21))
            assert readings.t is not None
            assert (np.diff(readings.t) >= 0).all()
            assert begun <= readings.t[0] <= readings.t[-1] <= one.clock.monotonic_us()
            assert readings.t[-1] - readings.t[0] >= 100_000, "twenty values, one each 10 ms"
            assert (np.diff(one.shown[0].ts[-20:]) > 0).all()
            assert one.shown[1].good == [2.5], "of this one there was nothing new"

    asyncio.run(run())


def test_what_was_read_at_the_start_is_not_told_a_second_time(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double", "Analog.Temperature", "Types.Int16", "Counter")) as one:
            await one.until_told()
            for _ in range(10):
                await one.turn()
            assert [len(each.good) for each in one.shown] == [1, 1, 1, 1]

    asyncio.run(run())


def test_a_source_whose_clock_is_off_is_marked_whether_it_is_read_or_told(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Types.UInt16", 7, age_s=7200)
        async with talk(plant, ours("Types.UInt16", "Types.Double")) as one:
            await one.read()
            assert one.shown[0].is_last(7, Quality.CLOCK)
            assert "clock" in one.session.explain(0)
            await one.until_told()
            await plant.set("Types.UInt16", 8, age_s=-7200)
            await one.until(lambda: one.shown[0].is_last(8, Quality.CLOCK))
            now = one.clock.wall_us()
            assert all(abs(ts - now) < 60 * SECOND_US for ts in one.shown[0].ts), "the receipt stands for it"
            await plant.set("Types.UInt16", 9, age_s=60)
            await one.until(lambda: one.shown[0].is_last(9, Quality.GOOD))
            assert 50 * SECOND_US < one.clock.wall_us() - one.shown[0].ts[-1] < 120 * SECOND_US

    asyncio.run(run())


def test_intervals_queues_and_deadbands_reach_the_server_as_they_are_written(plant: foreign.Plant) -> None:
    async def run() -> None:
        (double, odd, warm, flow, level) = ours(
            "Types.Double", "Types.Int16", "Analog.Temperature", "Analog.Pressure", "Mass.3"
        )
        wanted = [
            {"address": double, "sampling": "250ms", "queue": 7},
            {"address": odd},
            {"address": warm, "report_deadband": "1%"},
            {"address": flow, "report_deadband": 0.5},
            {"address": level, "sampling": "0s"},
        ]
        async with talk(plant, wanted, publishing="150ms", sampling="60ms") as one:
            await one.until_told()
            session = (await plant.statistics())["sessions"][-1]
            (subscription,) = session["subscriptions"]
            items = {item["node"]: item for item in subscription["items"]}
            assert subscription["publishing_ms"] == 150
            assert session["publish_requests"] == 3
            assert [items[name]["sampling_ms"] for name in ("Types.Double", "Types.Int16", "Mass.3")] == [250, 60, 0]
            assert items["Types.Double"]["queue"] == 7
            assert all(item["discard_oldest"] for item in items.values())
            assert items["Analog.Temperature"]["deadband"] == {"type": 2, "value": 1}
            assert items["Analog.Pressure"]["deadband"] == {"type": 1, "value": 0.5}
            await plant.set("Analog.Pressure", 6.5)
            await plant.set("Analog.Temperature", 72.5)
            await plant.set("Types.Int16", 5)
            await one.until(lambda: one.shown[1].is_good(5))
            await plant.set("Analog.Pressure", 7.5)
            await plant.set("Analog.Temperature", 75.5)
            await one.until(lambda: one.holds([2.5, 5, 75.5, 7.5, 3]))
            assert 6.5 not in one.shown[3].good
            assert 72.5 not in one.shown[2].good
        await plant.set_many(
            [
                {"node": "Analog.Pressure", "value": 6.25},
                {"node": "Analog.Temperature", "value": 71.5},
                {"node": "Types.Int16", "value": -700},
            ]
        )

    asyncio.run(run())


def test_elements_of_arrays_and_members_of_structures_are_read_and_what_is_none_says_why(plant: foreign.Plant) -> None:
    async def run() -> None:
        array, drive = ours("Arrays.Temperatures", "Typed.Drive")
        wanted = [
            {"address": array, "index": 3},
            {"address": array, "index": 99},
            {"address": drive, "member": "Torque"},
            {"address": drive, "member": "Nonsense"},
            array,
            drive,
            {"address": ours("Types.Double")[0], "index": 5},
            "ns=77;s=Types.Double",
        ]
        async with talk(plant, wanted) as one:
            for _ in range(3):
                await one.turn()
            assert [each.last for each in (one.shown[0], one.shown[2])] == [(23, Quality.GOOD), (12.5, Quality.GOOD)]
            for place in (1, 3, 4, 5, 6, 7):
                assert one.shown[place].last[1] not in FRESH
                assert isnan(one.shown[place].last[0])
                assert one.session.explain(place)
            assert "is no array" in one.session.explain(6), "this server gives the whole, whatever index is asked for"
            assert "no namespace 77, only 0 … 3" in one.session.explain(7)
            await plant.set("Typed.Drive", {"speed": 7, "torque": 3.25, "errors": 0, "running": False, "name": "d"})
            await one.until(lambda: one.shown[2].is_good(3.25))

    asyncio.run(run())


# ------------------------------------------------------------------------------------------- it lives and says nothing


def test_a_server_that_is_connected_and_says_nothing_is_silent_after_three_keep_alives(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Counter", "Types.Double")) as one:
            await one.until_told()
            await plant.silent()
            one.clock.skip(2_900_000 - (one.clock.monotonic_us() - one.session.subscription.heard_us))  # type: ignore[union-attr]
            await one.read()
            one.clock.skip(200_000)
            with pytest.raises(
                DeviceSilent, match=r"connected but silent: no notification and no keep-alive for 3\."
            ) as told:
                await one.read()
            assert told.value.quality is Quality.TIMEOUT
        await plant.silent(False)

    asyncio.run(run())


def test_an_item_that_went_deaf_while_others_tell_is_found_and_made_anew(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.add_variable("Deaf.Level", "Double", 1.5)
        async with talk(plant, ours("Deaf.Level", "Counter", "Types.Double")) as one:
            await one.until_told()
            assert await plant.deafen(["Deaf.Level"]) == 1
            await plant.set("Deaf.Level", 4.5)
            await one.turn()
            await plant.set("Counter", 8)
            await one.until(lambda: one.shown[1].is_good(8))
            assert one.shown[0].is_good(1.5), "nothing was told"
            await one.looked_after(plant)
            await one.until(lambda: one.shown[0].is_good(4.5))
            assert one.counted("deaf_items") == 1
            await one.until(lambda: one.counted("polled") == 0)
            await plant.set("Deaf.Level", 5.5)
            await one.until(lambda: one.shown[0].is_good(5.5))
            assert one.counted("sessions") == 1

    asyncio.run(run())


def test_when_most_items_are_deaf_the_session_is_given_up(plant: foreign.Plant) -> None:
    async def run() -> None:
        names = ["Mass.11", "Mass.12", "Mass.13"]
        async with talk(plant, ours("Counter", *names)) as one:
            await one.until_told()
            await plant.deafen(names)
            await plant.set_many([{"node": name, "value": -1} for name in names])
            with pytest.raises(DeviceSilent, match="connected but silent: 3 variables changed and nothing was told"):
                await one.looked_after(plant)

    asyncio.run(run())


def test_a_black_hole_costs_a_few_timeouts_and_no_more(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.mute()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(DeviceSilent, match="no session") as told:
            async with talk(plant, ours("Counter"), timeout="200ms"):
                pass
        assert told.value.quality is Quality.TIMEOUT
        assert asyncio.get_running_loop().time() - begun < 5
        await plant.mute(False)
        async with talk(plant, ours("Counter"), timeout="200ms", mode="poll") as one:
            await one.read()
            await plant.mute()
            with pytest.raises(DeviceSilent, match="no answer to a read of 1 variables within"):
                await one.read()
            await plant.mute(False)

    asyncio.run(run())


def test_a_channel_is_renewed_in_time_and_the_server_goes_on_telling() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, token_lifetime_ms=12_000) as plant:
            async with talk(plant, ours("Counter")) as one:
                await one.until_told()
                for renewals in (1, 2, 3):
                    for _ in range(4):
                        await one.skip(2.5, plant)
                        await one.turn()
                    assert one.counted("renewals") == renewals
                await plant.set("Counter", 5)
                await one.until(lambda: one.shown[0].is_good(5))
                assert (one.counted("sessions"), one.counted("subscriptions")) == (1, 1)

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------------ the past

MINUTE_US = 60 * SECOND_US


async def heard_a_minute_ago(plant: foreign.Plant, addresses: list[str]) -> bytes:
    """The notes of a session that ended a minute ago."""
    clock = SkippingClock()
    clock.skip(-MINUTE_US)
    async with talk(plant, addresses, clock=clock, mode="poll") as one:
        await one.read()
        notes = one.session.notes()
    assert notes is not None
    return notes


def test_a_gap_is_filled_from_the_history_before_the_first_live_value_and_nothing_comes_twice() -> None:
    async def run() -> None:
        addresses = ours("History.Level", "Types.Double")
        async with foreign.server(publishing_min_ms=20, history=200, history_period_ms=500) as plant:
            notes = await heard_a_minute_ago(plant, addresses)
            async with talk(plant, addresses, notes=notes) as one:
                readings = await one.read()
                level = one.shown[0]
                assert 100 <= one.counted("back_filled") <= 122
                assert len(level.values) == one.counted("back_filled") + 1
                assert level.good == sorted(set(level.good)), "in its order, each value once"
                assert (np.diff(level.ts) > 0).all()
                assert readings.t is not None
                assert (np.diff(readings.t) > 0).all()
                assert MINUTE_US * 0.8 < readings.t[-1] - readings.t[0] < MINUTE_US * 1.1
                assert one.shown[1].good == [2.5]
                count = len(level.values)
                await one.until_told()
                for _ in range(5):
                    await one.turn()
                assert len(level.values) == count
                assert one.session.belated() is None

    asyncio.run(run())


def test_a_slow_history_holds_up_no_live_value_and_comes_belated() -> None:
    async def run() -> None:
        addresses = ours("History.Level", "Types.Double")
        async with foreign.server(publishing_min_ms=20, history=200, history_period_ms=500) as plant:
            notes = await heard_a_minute_ago(plant, addresses)
            await plant.delay("HistoryRead", 1.5)
            async with talk(plant, addresses, notes=notes, timeout="500ms") as one:
                asyncio.get_running_loop().call_later(0.2, one.clock.skip, 6 * SECOND_US)
                await one.read()
                assert one.shown[1].is_good(2.5)
                assert one.shown[0].last[1] is Quality.GOOD
                assert one.counted("back_filled") == 0
                assert one.session.belated() is None
                await one.until(lambda: not one.session.past.gap.open)  # type: ignore[union-attr]
                belated = one.session.belated()
                assert belated is not None
                points, readings = belated
                assert points.tolist() == [0, 1]
                assert (np.diff(readings.ts[:, 0]) > 0).all()
                level = readings.values[:, 0][~np.isnan(readings.values[:, 0])]
                assert 100 <= len(level) == one.counted("back_filled") <= 122
                assert one.shown[0].good[0] not in level, "the first live value was shown already"
                assert one.session.belated() is None

    asyncio.run(run())


def test_what_was_heard_before_a_session_was_lost_is_not_filled_in_again() -> None:
    async def run() -> None:
        addresses = ours("History.Level", "Types.Double")
        async with foreign.server(publishing_min_ms=20, history=200, history_period_ms=500) as plant:
            clock = SkippingClock()
            clock.skip(-MINUTE_US)
            async with talk(plant, addresses, clock=clock, mode="poll") as one:
                await one.read()
                assert one.session.notes() is not None
                clock.skip(50 * SECOND_US)
                await one.read()
                assert one.session.notes() is None, "they are written now and then only"
                await plant.drop()
                with pytest.raises(DeviceSilent):
                    await one.read()
                notes = one.session.notes()
            async with talk(plant, addresses, notes=notes) as two:
                await two.read()
                assert 10 <= two.counted("back_filled") <= 22, "ten seconds, two values in each"

    asyncio.run(run())


def test_the_past_of_a_slower_signal_comes_once_it_was_read_itself() -> None:
    async def run() -> None:
        addresses = ours("Types.Double", "History.Level")
        async with foreign.server(publishing_min_ms=20, history=200, history_period_ms=500) as plant:
            notes = await heard_a_minute_ago(plant, addresses)
            async with talk(plant, addresses, notes=notes) as one:
                await one.read(0)
                assert one.session.belated() is None
                await one.read(0, 1)
                assert one.shown[1].last[1] is Quality.GOOD
                belated = one.session.belated()
                assert belated is not None
                points, readings = belated
                assert points.tolist() == [1]
                level = readings.values[:, 0][~np.isnan(readings.values[:, 0])]
                assert 100 <= len(level) == one.counted("back_filled") <= 122
                assert one.shown[1].good[0] not in level
                assert one.session.belated() is None

    asyncio.run(run())


def test_a_server_whose_history_fails_is_read_all_the_same(plant: foreign.Plant) -> None:
    async def run(how: str) -> None:
        addresses = ours("History.Level", "Types.Double")
        notes = await heard_a_minute_ago(plant, addresses)
        await plant.refuse("HistoryRead", how, 1)
        async with talk(plant, addresses, notes=notes) as one:
            await one.until_told()
            assert one.shown[1].good == [2.5]
            assert one.counted("back_filled") == 0

    for how in ("BadServiceUnsupported", "BadHistoryOperationUnsupported", "BadTooManyOperations"):
        asyncio.run(run(how))


def test_what_was_told_of_a_slow_signal_waits_for_its_own_beat(plant: foreign.Plant) -> None:
    async def run() -> None:
        await plant.set("Counter", 0)
        async with talk(plant, ours("Types.Double", "Counter"), sampling="0s", queue=100) as one:
            await one.until_told()
            await plant.ramp(["Counter"], 0.001, start=1, count=3)
            await one.heard(3)
            for _ in range(3):
                await one.read(0)
            assert one.shown[1].good == [0]
            await plant.set("Counter", 4)
            await one.heard(1)
            await one.read(0)
            await one.read(0, 1)
            assert one.shown[1].good == [0, 1, 2, 3, 4]
            await one.read(0, 1)
            assert one.shown[1].good == [0, 1, 2, 3, 4]

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------------ the table itself

TABLE = (ROOT / "docs" / "opcua.md").read_text(encoding="utf-8").split("## Faults")[1]


def test_each_test_that_the_table_of_faults_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", TABLE))
    assert len(named) > 40
    there = {
        (path.name, name)
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= there, named - there
    ours_ = {each for each in there if each[0] in ("test_opcua_faults.py", "test_opcua_controls.py")}
    assert {each for each in ours_ if "_table_of_faults_" not in each[1]} <= named, "each has its line in the table"


def test_each_line_of_the_table_of_faults_has_a_test() -> None:
    lines = [line for line in TABLE.splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith(("| **", "| fault", "| ---"))]
    assert len(lines) > 30
    assert not [line for line in lines if "`test_" not in line]
