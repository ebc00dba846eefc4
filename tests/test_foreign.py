"""The foreign OPC UA server itself, read by asyncua's client: a later failure against it is then known to be ours."""

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.client.client import Client
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from asyncua.crypto.security_policies import SecurityPolicyAes256Sha256RsaPss
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests import foreign
from tests.conftest import eventually

CLIENT_URI = "urn:foreign:client"


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
            unit = (await read(client, plant, "Analog.Temperature.EngineeringUnits")).Value.Value
            assert (unit.UnitId.to_bytes(4, "big"), unit.DisplayName.Text) == (b"\0CEL", "°C")
            span = (await read(client, plant, "Analog.Pressure.EURange")).Value.Value
            assert (span.Low, span.High) == (0, 16)
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


def test_a_plant_that_comes_later_is_browsed_in_pieces() -> None:
    async def run() -> None:
        async with foreign.server(plant_later=True, mass=30, references_max=8) as plant, connected(plant) as client:
            assert foreign.URI not in await client.get_namespace_array()
            await plant.load_plant()
            assert await client.get_namespace_index(foreign.URI) == plant.index
            found = await client.get_node(f"ns={plant.index};s=Mass").get_children()
            assert len(found) == 30
            assert (await plant.statistics())["requests"]["BrowseNext"] == 3
            await plant.add_variable("Late.Level", "Int16", -3)
            assert (await read(client, plant, "Late.Level")).Value.Value == -3
            await plant.delete_variable("Late.Level")
            assert (await read(client, plant, "Late.Level")).StatusCode.name == "BadNodeIdUnknown"

    asyncio.run(run())


# -------------------------------------------------------------------------------------------------------- security


async def certificate(folder: Path) -> tuple[Path, Path]:
    made = folder / "client.der", folder / "client.pem"
    usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
    await setup_self_signed_certificate(made[1], made[0], CLIENT_URI, "localhost", usage, {"commonName": "client"})
    return made


async def logged_in(plant: foreign.Plant, files: tuple[Path, Path], user: str, password: str) -> Any:
    """What Types.Double shows in a signed and encrypted session."""
    client = Client(plant.url)
    client.application_uri = CLIENT_URI
    mode = ua.MessageSecurityMode.SignAndEncrypt
    await client.set_security(SecurityPolicyAes256Sha256RsaPss, *map(str, files), mode=mode,
                              server_certificate=str(plant.certificate))  # fmt: skip
    client.set_user(user)
    client.set_password(password)
    async with client:
        return (await read(client, plant, "Types.Double")).Value.Value


def test_an_encrypted_session_needs_a_trusted_certificate_and_the_right_password(tmp_path: Path) -> None:
    async def run() -> None:
        files = await certificate(tmp_path)
        secure: dict[str, Any] = {
            "policies": ["Aes256_Sha256_RsaPss"], "modes": ["SignAndEncrypt"],
            "anonymous": False, "users": {"op": "secret"}, "accept_all": False,
        }  # fmt: skip
        async with foreign.server(**secure, trusted=[files[0]]) as plant:
            assert await logged_in(plant, files, "op", "secret") == 2.5
            with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
                await logged_in(plant, files, "op", "Secret")
        async with foreign.server(**secure) as plant:
            with pytest.raises((AssertionError, ConnectionError, ua.UaError)):  # the client words it badly
                await logged_in(plant, files, "op", "secret")
            assert (await plant.statistics())["requests"] == {}

    asyncio.run(run())


# --------------------------------------------------------------------------------------------------- subscriptions


class Subscribed:
    """A subscription as it comes over the wire: every PublishResult, with its sequence number."""

    def __init__(self, client: Client, plant: foreign.Plant) -> None:
        self.client, self.plant = client, plant
        self.messages: list[Any] = []
        self.id = 0

    async def open(self) -> None:
        wish = ua.CreateSubscriptionParameters(20, 1000, 3, 0, True, 0)
        created = await self.client.uaclient.create_subscription(wish, self._take)
        self.id = created.SubscriptionId

    async def _take(self, result: Any) -> None:
        self.messages.append(result.NotificationMessage)

    async def watch(self, *names: str, queue: int = 100) -> list[str]:
        """Returns the status of each item."""
        items = []
        for handle, name in enumerate(names):
            item = ua.ReadValueId(ua.NodeId.from_string(f"ns={self.plant.index};s={name}"), ua.AttributeIds.Value)
            wish = ua.MonitoringParameters(handle, 0, None, queue, True)
            items.append(ua.MonitoredItemCreateRequest(item, ua.MonitoringMode.Reporting, wish))
        order = ua.CreateMonitoredItemsParameters(self.id, ua.TimestampsToReturn.Both, items)
        return [each.StatusCode.name for each in await self.client.uaclient.create_monitored_items(order)]

    @property
    def told(self) -> list[tuple[float, int]]:
        """Values and status codes of all items, in the order of their coming."""
        parts = [part for message in self.messages for part in message.NotificationData or []]
        items = [item.Value for part in parts for item in getattr(part, "MonitoredItems", [])]
        return [(value.Value.Value, value.StatusCode.value) for value in items]

    @property
    def values(self) -> list[float]:
        return [value for value, _ in self.told]

    async def until(self, value: float) -> None:
        await eventually(lambda: value in self.values)

    def sequence(self) -> int:
        """The number of the last message with data."""
        return int([each.SequenceNumber for each in self.messages if each.NotificationData][-1])

    async def republish(self, number: int) -> Any:
        return await self.client.uaclient.session.republish(self.id, number)


async def skipped(plant: foreign.Plant, count: int) -> None:
    for _ in range(2000):
        if (await plant.statistics())["skipped"] == count:
            return
        await asyncio.sleep(0.005)
    pytest.fail("no notification was skipped")


def test_every_value_of_a_ramp_is_told_and_the_server_tells_what_it_revised() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20) as plant, connected(plant) as client:
            one = Subscribed(client, plant)
            await plant.refuse("CreateSubscription", "BadTooManySubscriptions", 1)
            with pytest.raises(ua.UaStatusCodeError, match="BadTooManySubscriptions"):
                await one.open()
            await one.open()
            await plant.refuse_items(["Types.Float"])
            assert await one.watch("Counter", "Types.Float", "Access.Slow") == [
                "Good",
                "BadTooManyMonitoredItems",
                "Good",
            ]
            sampling = {item["node"]: item["sampling_ms"] for item in await plant.items()}
            assert sampling == {"Counter": 0, "Access.Slow": 1000}
            ramp = await plant.ramp(["Counter"], 0.005, start=100, count=20)
            await one.until(119)
            assert [value for value in one.values if value >= 100] == list(range(100, 120))
            assert await plant.ramp_end(ramp) == 20
            await one.watch("Access.Writable", queue=2)
            await plant.set_many([{"node": "Access.Writable", "value": value} for value in range(200, 205)])
            await one.until(204)
            assert [told for told in one.told if told[0] >= 200] == [(203, 0x480), (204, 0)]

    asyncio.run(run())


def test_a_skipped_notification_leaves_a_gap_that_republish_fills_if_it_may() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20) as plant, connected(plant) as client:
            one = Subscribed(client, plant)
            await one.open()
            await one.watch("Counter")
            await one.until(0)
            before = one.sequence()
            for lose, number in ((False, 1), (True, 2)):
                await plant.skip_notifications(lose=lose)
                await plant.set("Counter", number)
                await skipped(plant, number)
                await plant.set("Counter", -number)
                await one.until(-number)
                assert one.sequence() == before + 2 * number
            assert one.values == [0, -1, -2]
            told = await one.republish(before + 1)
            assert told.NotificationData[0].MonitoredItems[0].Value.Value.Value == 1
            with pytest.raises(ua.UaStatusCodeError, match="BadMessageNotAvailable"):
                await one.republish(before + 3)
            await plant.republish("empty")
            assert not (await one.republish(before + 1)).NotificationData

    asyncio.run(run())


def test_a_silent_server_answers_reads_and_a_mute_one_answers_nothing() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20) as plant, connected(plant) as client:
            one = Subscribed(client, plant)
            await one.open()
            await one.watch("Counter")
            await one.until(0)
            await plant.silent()
            await plant.set("Counter", 1)
            count = len(one.messages)
            assert (await read(client, plant, "Counter")).Value.Value == 1
            assert len(one.messages) == count
            await plant.silent(False)
            await one.until(1)
            await plant.mute()
            asked = asyncio.create_task(read(client, plant, "Counter"))
            stranger = Client(plant.url, timeout=0.1)
            with pytest.raises((TimeoutError, ConnectionError)):
                await stranger.connect()
            assert not asked.done()
            await plant.mute(False)
            assert (await asked).Value.Value == 1

    asyncio.run(run())


def test_sessions_connections_and_the_listener_end_each_by_themselves() -> None:
    async def run() -> None:
        async with foreign.server() as plant, connected(plant) as client:
            await plant.stop_listening()
            with pytest.raises(ConnectionError):
                await Client(plant.url).connect()
            assert (await read(client, plant, "Counter")).Value.Value == 0
            await plant.start_listening()
            assert await plant.close_sessions() == 1
            with pytest.raises(ua.UaStatusCodeError, match="BadSessionIdInvalid"):
                await read(client, plant, "Counter")
            assert await plant.drop() == 1
            with pytest.raises(ConnectionError):
                await read(client, plant, "Counter")
            assert (await plant.statistics())["sessions"] == []

    asyncio.run(run())


# ---------------------------------------------------------------------------------------------------- the process


def test_what_the_server_cannot_do_is_told_in_its_words_and_a_dead_server_with_its_last() -> None:
    async def run() -> None:
        async with foreign.server() as plant:
            with pytest.raises(foreign.PeerRefused, match="the plant has no node Nowhere"):
                await plant.set("Nowhere", 1)
            with pytest.raises(foreign.PeerRefused, match="no status is called Fine"):
                await plant.set("Counter", 1, status="Fine")

    asyncio.run(run())
    other = foreign.Peer()
    with pytest.raises(foreign.PeerDied, match="told to crash"):
        other.ask("crash")
    assert not other.alive
    other.end()
    assert not other.home.exists()


def test_its_lock_names_no_host_and_hashes_every_package() -> None:
    folder = foreign.SCRIPT.parent
    text = (folder / "package-lock.json").read_text()
    assert "://" not in text
    packages = json.loads(text)["packages"]
    own = packages.pop("")
    stated = json.loads((folder / "package.json").read_text())
    assert own["dependencies"] == stated["dependencies"]
    assert all(re.fullmatch(r"[0-9.]+", version) for version in stated["dependencies"].values())
    assert len(packages) > 100
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
