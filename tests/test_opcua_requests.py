"""How many nodes are asked for at once: as many as the server says that it takes, and half of them when it does not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from drivers import opcua, opcua_client
from drivers.opcua_settings import Address, Connection
from edge_agent.contract import Point, Quality, Readings
from edge_agent.testing import SkippingClock
from tests import foreign

pytestmark = pytest.mark.anyio
COUNT = 2500


@asynccontextmanager
async def session(plant: foreign.Plant) -> AsyncIterator[opcua.OpcUaSession]:
    """A session that polls all of Mass, and has found every variable of it."""
    points = [Point(f"s{n}", Address(address=f"nsu={foreign.URI};s=Mass.{n}"), 1_000_000) for n in range(COUNT)]
    settings = Connection.model_validate({"url": plant.url, "mode": "poll", "timeout": "30s"})
    async with opcua.DRIVER.open("line", settings, points, SkippingClock()) as opened:
        assert isinstance(opened, opcua.OpcUaSession)
        await opened.read(np.arange(COUNT))
        yield opened


async def reads_of(plant: foreign.Plant, opened: opcua.OpcUaSession) -> int:
    """How many Read requests one reading of all points takes; every value must be the right one."""
    before = (await plant.statistics())["requests"].get("Read", 0)
    found: Readings = await opened.read(np.arange(COUNT))
    assert (found.quality == Quality.GOOD).all()
    assert found.values.tolist() == list(range(COUNT))
    return int((await plant.statistics())["requests"]["Read"] - before)


@pytest.mark.parametrize(("limit", "requests"), [(10_000, 1), (2500, 1), (1000, 3), (700, 4)])
async def test_a_server_is_asked_as_much_at_once_as_it_says_that_it_takes(limit: int, requests: int) -> None:
    async with foreign.server(mass=COUNT, limits={"maxNodesPerRead": limit}) as plant, session(plant) as opened:
        assert await reads_of(plant, opened) == requests


async def test_a_server_that_takes_less_than_it_said_is_asked_for_half() -> None:
    async with foreign.server(mass=COUNT, limits={"maxNodesPerRead": 10_000}) as plant, session(plant) as opened:
        await plant.enforce("maxNodesPerRead", 1300)
        assert await reads_of(plant, opened) == 3
        assert await reads_of(plant, opened) == 2


async def test_no_request_is_longer_than_the_server_said_when_the_line_was_opened() -> None:
    async with foreign.server(mass=COUNT) as plant, session(plant) as opened:
        assert opened.client is not None
        limits = opened.client.library.uaclient.protocol._connection._limits
        limits.max_message_size = 40_000
        assert await reads_of(plant, opened) == 2


@asynccontextmanager
async def told(plant: foreign.Plant, every_us: int = 1_000_000) -> AsyncIterator[opcua.OpcUaSession]:
    """A session that has had all the time it wants to subscribe to two variables."""
    points = [Point(f"s{n}", Address(address=f"nsu={foreign.URI};s=Mass.{n}"), every_us) for n in range(2)]
    settings = Connection.model_validate({"url": plant.url, "timeout": "30s"})
    clock = SkippingClock()
    async with opcua.DRIVER.open("line", settings, points, clock) as opened:
        assert isinstance(opened, opcua.OpcUaSession)
        await opened.read(np.arange(2))
        await opened.idle(clock.monotonic_us() + 30_000_000)
        yield opened


@pytest.mark.parametrize(
    ("slow", "every_us", "polled"),
    [
        ({"sampling_min_ms": 5000.0}, 1_000_000, 2),  # the server would look five times more seldom than asked
        ({"sampling_min_ms": 5000.0}, 5_000_000, 0),
        ({"publishing_min_ms": 30_000.0}, 1_000_000, 2),  # nothing is told for 30 s: each signal would be stale
        ({"publishing_min_ms": 30_000.0}, 60_000_000, 0),
    ],
)
async def test_what_a_server_would_tell_too_seldom_is_asked(slow: Any, every_us: int, polled: int) -> None:
    async with foreign.server(mass=2, **slow) as plant, told(plant, every_us) as opened:
        assert opened.counters()["polled"] == polled
        assert (await opened.read(np.arange(2))).quality.tolist() == (
            [Quality.GOOD] * 2 if polled else [Quality.HOLD] * 2
        )
        assert len(await plant.items()) == 2 - polled


async def test_an_array_of_nothing_costs_no_memory_whatever_its_length() -> None:
    await opcua_client.library_module()
    from asyncua.common.utils import Buffer
    from asyncua.ua.ua_binary import variant_from_binary

    with pytest.raises(ValueError, match="an array of nothing"):
        variant_from_binary(Buffer(b"\x80\xff\xff\xff\x7f"))
    assert variant_from_binary(Buffer(b"\x81\x02\x00\x00\x00\x01\x00")).Value == [True, False]


async def test_a_member_that_is_not_there_is_refused_with_those_that_are() -> None:
    points = [
        Point(name, Address(address=f"nsu={foreign.URI};s={node}", member=name), 1_000_000)
        for name, node in (("Nope", "Typed.Drive"), ("Torque", "Typed.Drive"), ("real", "Types.Double"))
    ]
    async with foreign.server() as plant:
        settings = Connection.model_validate({"url": plant.url})
        async with opcua.DRIVER.open("line", settings, points, SkippingClock()) as opened:
            readings = await opened.read(np.arange(3))
            assert readings.quality.tolist() == [Quality.REFUSED, Quality.GOOD, Quality.REFUSED]
            assert readings.values[1] == 12.5
            assert opened.explain(0).endswith("has no member Nope; it has Speed, Torque, Errors, Running, Name")
            assert opened.explain(2).endswith("has no member real; it has none: it is no structure")
