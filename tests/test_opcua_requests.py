"""How many nodes are asked for at once: as many as the server says that it takes, and half of them when it does not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from drivers import opcua
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
