"""Every security policy and kind of user against a foreign server: what is trusted, what is refused, and in which words."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers import opcua
from drivers.opcua_settings import MODES, POLICIES, Address, Connection
from edge_agent.contract import Certified, DeviceRefused, Expiry, Point, Quality, Session
from edge_agent.testing import SkippingClock
from tests import certificates, foreign

NODE = f"nsu={foreign.URI};s=Types.Double"
OFFERED: foreign.Settings = {
    "policies": ["None", "Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"],
    "modes": ["None", "Sign", "SignAndEncrypt"],
}
LONG = (-3650, 10_000)
"""Days of a certificate's life from the day of tests/certificates.py, for servers that look at the real clock."""
SECURED = [f"{policy}/{mode}" for policy, mode in itertools.product(POLICIES, MODES)]


def offered(**settings: Any) -> Any:
    """A server with every security; what else it is."""
    return {**OFFERED, **settings}


@asynccontextmanager
async def session(
    plant: foreign.Plant, home: Path, secrets: dict[str, str] | None = None, **keys: Any
) -> AsyncIterator[Session]:
    """A session as the agent opens one: secrets put in, certificates in its folder."""
    connection = Connection.model_validate({"url": plant.url, **keys}).at_home(str(home / "pki"))
    for name, text in (secrets or {}).items():
        home_ = connection.home
        connection = connection.model_copy(update={name: text}).at_home(home_ or "")
    points = [Point("double", Address(address=NODE), 1_000_000)]
    async with opcua.DRIVER.open("cell", connection, points, SkippingClock()) as its:
        yield its


async def value(plant: foreign.Plant, home: Path, secrets: dict[str, str] | None = None, **keys: Any) -> float:
    async with session(plant, home, secrets, **keys) as its:
        readings = await its.read(np.arange(1))
        assert readings.quality.tolist() == [Quality.GOOD]
        return float(readings.values[0])


async def refusal(plant: foreign.Plant, home: Path, secrets: dict[str, str] | None = None, **keys: Any) -> str:
    with pytest.raises(DeviceRefused) as refused:
        await value(plant, home, secrets, **keys)
    return str(refused.value)


def trust(home: Path) -> Any:
    store = opcua.OpcUa().certificates(str(home / "pki"))
    (rejected,) = [each for each in store.all(certificates.NOW_US) if each.place == "rejected"]
    return store.accept(rejected.name, issuer=False)


def user_text(tmp_path: Path, name: str = "operator") -> tuple[str, Path]:
    """A user's certificate and key in one PEM text, and the certificate as a file for the server."""
    made = certificates.make(name, uri="", hosts=(), valid_days=LONG)
    path = tmp_path / f"{name}.pem"
    path.write_bytes(made.pem)
    return (made.pem + made.key_pem).decode(), path


def test_every_policy_and_mode_with_every_kind_of_user(tmp_path: Path) -> None:
    text, certificate = user_text(tmp_path)

    async def story() -> None:
        settings = offered(accept_all=True, users={"agent": "right"}, user_certificates=[certificate])
        async with foreign.server(**settings) as plant:
            words = await refusal(plant, tmp_path, security=SECURED[0])
            assert "is not trusted" in words
            assert "edge-agent trust" in words
            accepted = trust(tmp_path)
            assert accepted.uri == foreign.SERVER_URI
            for security in ("none", *SECURED):
                assert await value(plant, tmp_path, security=security) == 2.5
                assert await value(plant, tmp_path, {"password": "right"}, security=security, user="agent") == 2.5
                assert await value(plant, tmp_path, {"user_certificate": text}, security=security) == 2.5
            assert "does not take this user" in await refusal(
                plant, tmp_path, {"password": "wrong"}, security=SECURED[1], user="agent"
            )

    asyncio.run(story())


def test_a_server_that_takes_none_without_security_says_what_it_offers(tmp_path: Path) -> None:
    async def story() -> None:
        modes = {"policies": ["Basic256Sha256"], "modes": ["Sign", "SignAndEncrypt"]}
        async with foreign.server(**offered(**modes)) as plant:
            words = await refusal(plant, tmp_path, security="none")
            assert "security none; it offers Basic256Sha256/Sign, Basic256Sha256/SignAndEncrypt" in words

    asyncio.run(story())


def test_a_chain_is_trusted_by_its_issuer_and_only_with_its_list_of_revoked_certificates(tmp_path: Path) -> None:
    root = certificates.authority("Plant root", valid_days=LONG)
    issuing = certificates.authority(
        "Cell CA", issuer=root, path_length=0, key=certificates.rsa_key(2048, 2), valid_days=LONG
    )
    leaf = certificates.make("Cell 3", issuer=issuing, uri=foreign.SERVER_URI, hosts=("127.0.0.1",), valid_days=LONG)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(leaf.pem + issuing.pem)
    key.write_bytes(leaf.key_pem)
    pki = tmp_path / "pki"

    async def story() -> None:
        async with foreign.server(**offered(accept_all=True, certificate=chain, key=key)) as plant:
            security = "Aes256Sha256RsaPss/SignAndEncrypt"
            assert "Plant root" in await refusal(plant, tmp_path, security=security)
            store = opcua.OpcUa().certificates(str(pki))
            store.add(root.pem, issuer=False)
            assert "revoked" in await refusal(plant, tmp_path, security=security)
            for each in (root, issuing):
                store.add(certificates.revocations(each, next_days=10_000), issuer=True)
            assert await value(plant, tmp_path, security=security) == 2.5
            store.add(certificates.revocations(issuing, leaf, next_days=10_000), issuer=True)
            assert "revoked" in await refusal(plant, tmp_path, security=security)

    asyncio.run(story())


def test_it_is_known_when_the_certificates_of_the_server_end_once_it_was_trusted(tmp_path: Path) -> None:
    """Its own need not lie in any folder: it came with the connection. What was refused is not remembered."""
    root = certificates.authority("Plant root", valid_days=(-3650, 9_000))
    leaf = certificates.make("Cell 3", issuer=root, uri=foreign.SERVER_URI, hosts=("127.0.0.1",), valid_days=LONG)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(leaf.pem)
    key.write_bytes(leaf.key_pem)

    async def story() -> None:
        async with foreign.server(**offered(accept_all=True, certificate=chain, key=key)) as plant:
            its = Connection.model_validate({"url": plant.url, "security": SECURED[0]}).at_home(str(tmp_path / "pki"))
            driver, unmet = opcua.DRIVER, Expiry("", "server", 0)
            assert isinstance(driver, Certified)
            assert driver.expiries(its) == [Expiry("", "own", 0), unmet]
            await refusal(plant, tmp_path, security=SECURED[0])
            own, server = driver.expiries(its)
            assert (own.name, own.whose, server) == ("edge-agent", "own", unmet)
            store = opcua.OpcUa().certificates(str(tmp_path / "pki"))
            store.add(root.pem, issuer=False)
            store.add(certificates.revocations(root, next_days=10_000), issuer=True)
            assert await value(plant, tmp_path, security=SECURED[0]) == 2.5
            assert driver.expiries(its) == [
                own,
                Expiry("Cell 3", "server", certificates.NOW_US + 10_000 * certificates.DAY_US),
                Expiry("Plant root", "issuer", certificates.NOW_US + 9_000 * certificates.DAY_US),
            ]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("expired on", {"valid_days": (-3650, -1000)}),
        ("is not valid before", {"valid_days": (9_000, 10_000)}),
        ("urn:somebody:else", {"uri": "urn:somebody:else"}),
        ("may not be used", {"usage": ("digital_signature",)}),
        ("1024", {"key": "short"}),
    ],
)
def test_a_bad_certificate_of_a_real_server_is_refused_in_words_also_when_it_was_accepted(
    tmp_path: Path, words: str, wrong: dict[str, Any]
) -> None:
    keys: dict[str, Any] = {"uri": foreign.SERVER_URI, "hosts": ("127.0.0.1",), "valid_days": LONG, **wrong}
    if keys.get("key") == "short":
        keys["key"] = certificates.rsa_key(1024)
    made = certificates.make("Cell 3", **keys)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.pem)
    key.write_bytes(made.key_pem)

    async def story() -> None:
        async with foreign.server(**offered(accept_all=True, certificate=certificate, key=key)) as plant:
            assert words in await refusal(plant, tmp_path, security=SECURED[1])
            trust(tmp_path)
            assert words in await refusal(plant, tmp_path, security=SECURED[1])

    asyncio.run(story())


def test_another_server_in_the_place_of_a_trusted_one_is_refused(tmp_path: Path) -> None:
    made = certificates.make("Cell 3", uri=foreign.SERVER_URI, hosts=("127.0.0.1",), valid_days=LONG)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.pem)
    key.write_bytes(made.key_pem)

    async def story() -> None:
        async with foreign.server(**offered(accept_all=True)) as plant:
            await refusal(plant, tmp_path, security=SECURED[0])
            trust(tmp_path)
            assert await value(plant, tmp_path, security=SECURED[0]) == 2.5
            await plant.restart(**offered(accept_all=True, certificate=certificate, key=key))
            assert "another machine answers in its place" in await refusal(plant, tmp_path, security=SECURED[0])

    asyncio.run(story())


def test_what_the_server_refuses_of_us_is_said_with_what_to_do(tmp_path: Path) -> None:
    text, _ = user_text(tmp_path)

    async def story() -> None:
        async with foreign.server(
            policies=["Basic256Sha256"], modes=["Sign"], anonymous=False, users={"agent": "x"}, accept_all=False
        ) as plant:
            words = await refusal(plant, tmp_path, security="Basic256Sha256/SignAndEncrypt")
            assert "does not offer security Basic256Sha256/SignAndEncrypt; it offers Basic256Sha256/Sign" in words
            await refusal(plant, tmp_path, security="Basic256Sha256/Sign")
            trust(tmp_path)
            words = await refusal(plant, tmp_path, {"password": "x"}, security="Basic256Sha256/Sign", user="agent")
            assert "--export-own" in words  # accept_all is off: it does not know us
            await plant.restart(
                policies=["Basic256Sha256"],
                modes=["Sign"],
                anonymous=False,
                users={"agent": "x"},
                accept_all=False,
                trusted=[tmp_path / "pki" / "own" / "certificate.der"],
            )
            words = await refusal(plant, tmp_path, security="Basic256Sha256/Sign")
            assert words.endswith("the server does not take anonymous; it takes user and password")
            words = await refusal(plant, tmp_path, {"user_certificate": text}, security="Basic256Sha256/Sign")
            assert "does not take user_certificate" in words
            assert await value(plant, tmp_path, {"password": "x"}, security="Basic256Sha256/Sign", user="agent") == 2.5

    asyncio.run(story())


def test_our_certificate_is_made_once_and_one_of_the_configuration_is_used(tmp_path: Path) -> None:
    ours = certificates.make("Hall 2", uri="urn:hall2:agent", hosts=("hall2",), valid_days=LONG)
    text = (ours.pem + ours.key_pem).decode()

    async def story() -> None:
        async with foreign.server(**offered(accept_all=True)) as plant:
            await refusal(plant, tmp_path, security=SECURED[0])
            made = (tmp_path / "pki" / "own" / "certificate.der").read_bytes()
            trust(tmp_path)
            assert await value(plant, tmp_path, security=SECURED[0]) == 2.5
            assert (tmp_path / "pki" / "own" / "certificate.der").read_bytes() == made
            assert await value(plant, tmp_path, {"certificate": text}, security=SECURED[0]) == 2.5
            words = await refusal(
                plant, tmp_path, {"certificate": text.replace("BEGIN CERT", "BEGIN SERT")}, security=SECURED[0]
            )
            assert "certificate is no certificate" in words

    asyncio.run(story())


def test_a_channel_that_is_renewed_stays_secure_and_its_session_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with foreign.server(**offered(accept_all=True, token_lifetime_ms=1000)) as plant:
            await refusal(plant, tmp_path, security=SECURED[1])
            trust(tmp_path)
            clock = SkippingClock()
            connection = Connection.model_validate({"url": plant.url, "security": SECURED[1]}).at_home(
                str(tmp_path / "pki")
            )
            points = [Point("double", Address(address=NODE), 1_000_000)]
            async with opcua.DRIVER.open("cell", connection, points, clock) as its:
                for _ in range(12):  # the server grants 2.5 s
                    clock.skip(450_000)
                    assert (await its.read(np.arange(1))).values.tolist() == [2.5]
                assert its.counters()["renewals"] >= 2
                assert its.counters()["sessions"] == 1

    asyncio.run(story())


def test_without_a_folder_for_certificates_there_is_no_security(tmp_path: Path) -> None:
    async def story() -> None:
        connection = Connection.model_validate({"url": "opc.tcp://127.0.0.1:1", "security": SECURED[0]})
        async with opcua.DRIVER.open("cell", connection, [], SkippingClock()):
            pass

    with pytest.raises(DeviceRefused, match="needs a data_dir"):
        asyncio.run(story())
