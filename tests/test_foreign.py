"""The foreign OPC UA server itself, read by asyncua's client: a later failure against it is then known to be ours."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from asyncua import ua
from asyncua.client.client import Client

from tests import foreign


@asynccontextmanager
async def connected(plant: foreign.Plant) -> AsyncIterator[Client]:
    client = Client(plant.url)
    await client.connect()
    try:
        yield client
    finally:
        await client.disconnect()


async def read(client: Client, plant: foreign.Plant, name: str) -> Any:
    """The DataValue of one variable, whatever its status."""
    node = client.get_node(f"ns={plant.index};{name if name[1] == '=' else 's=' + name}")
    return await node.read_data_value(raise_on_bad_status=False)


def test_the_plant_shows_what_it_was_told() -> None:
    async def run() -> None:
        async with foreign.server(mass=3) as plant, connected(plant) as client:
            assert await client.get_namespace_index(foreign.URI) == plant.index == 3
            for name, value in {
                "Types.Boolean": True, "Types.Int64": -(2**40), "Types.UInt64Big": 2**53 + 1, "Types.Float": 0.5,
                "Types.String": "warm", "Types.Number": -5, "Typed.Mode": 2, "Arrays.Temperatures": list(range(20, 28)),
                "Arrays.Empty": [], "Line1.Pump.Temperature": 41, "Line2.Pump.Temperature": 42, "Mass.2": 2,
                "i=1001": 11, "g=72962B91-FA75-4AE6-8D28-B404DC7DAF63": 12, "b=UHVtcA==": 13,
            }.items():  # fmt: skip
                assert (await read(client, plant, name)).Value.Value == value, name
            drive = (await read(client, plant, "Typed.Drive")).Value.Value.Body
            assert struct.unpack_from("<dfH?i5s", drive) == (1480, 12.5, 3, True, 5, b"drive")
            await plant.set("Types.Double", 7.25, status="UncertainLastUsableValue", age_s=60)
            told = await read(client, plant, "Types.Double")
            assert (told.Value.Value, told.StatusCode.name) == (7.25, "UncertainLastUsableValue")
            assert 60 <= (datetime.now(UTC) - told.SourceTimestamp).total_seconds() < 120
            await plant.set("Types.Double", float("nan"), status="Good|Overflow", age_s=None)
            told = await read(client, plant, "Types.Double")
            assert (told.StatusCode.value, told.SourceTimestamp) == (0x480, None)
            await plant.set("Types.Double", None, status="BadSensorFailure")
            assert (await read(client, plant, "Types.Double")).StatusCode.name == "BadSensorFailure"
            assert (await read(client, plant, "Access.WriteOnly")).StatusCode.is_bad()

    asyncio.run(run())


def test_after_a_restart_with_other_namespaces_the_old_index_shows_another_variable() -> None:
    async def run() -> None:
        async with foreign.server() as plant:
            old = plant.index
            async with connected(plant) as client:
                assert (await read(client, plant, "Types.Double")).Value.Value == 2.5
                await plant.restart(before=["urn:other"])
                with pytest.raises((ConnectionError, ua.UaError, TimeoutError)):
                    await read(client, plant, "Types.Double")
            async with connected(plant) as client:
                assert await client.get_namespace_index(foreign.URI) == plant.index == old + 1
                assert (await client.get_node(f"ns={old};s=Types.Double").read_value()) == 777
                assert (await read(client, plant, "Types.Double")).Value.Value == 2.5

    asyncio.run(run())
