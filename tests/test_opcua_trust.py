"""Certificates of servers: of all that may come exactly those that a person trusts are good, each other one has its words."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import opcua_certificate as cert
from drivers import opcua_pki as pki
from drivers.opcua import DRIVER
from drivers.opcua_trust import Endpoint, Strictness, Verdict, judge
from edge_agent.contract import Expiry, Trusts
from tests.certificates import (
    DAY_US,
    NOW_US,
    Made,
    authority,
    broken,
    ec_key,
    make,
    pem_of,
    revocations,
    rsa_key,
    with_sha1,
)
from tests.conftest import ROOT

PLC = Endpoint("urn:plc7:server", "192.0.2.7")


@dataclass(frozen=True)
class Case:
    """A certificate that comes, what the folder holds, and what is said. sent: bytes; trusted, issuers: file contents."""

    sent: bytes
    code: str
    words: tuple[str, ...]
    trusted: tuple[bytes, ...] = ()
    issuers: tuple[bytes, ...] = ()
    endpoint: Endpoint = field(default=PLC)


def lay(folder: Path, trusted: tuple[bytes, ...] = (), issuers: tuple[bytes, ...] = ()) -> Path:
    """A folder as a person may have filled it, with any names."""
    for place, files in (("trusted", trusted), ("issuers", issuers)):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(files):
            (folder / place / f"{number}{'.crl' if _is_list(data) else '.der'}").write_bytes(data)
    return folder


def _is_list(data: bytes) -> bool:
    try:
        x509.load_der_x509_crl(data)
    except ValueError:
        return False
    return True


def pinned(made: Made, code: str, *words: str, endpoint: Endpoint = PLC) -> Case:
    return Case(made.der, code, words, trusted=(made.der,), endpoint=endpoint)


def issued(leaf: Made, ca: Made, code: str, *words: str, lists: tuple[bytes, ...] = ()) -> Case:
    return Case(leaf.der, code, words, trusted=(ca.der, *lists))


def bad() -> dict[str, Case]:
    ca, other = authority(), authority("Other CA", key=rsa_key(2048, 5))
    leaf = make(issuer=ca)
    old = authority("Old CA", valid_days=(-900, -5))
    plain = make("Plain server", key=rsa_key(2048, 3))
    middle = authority("Middle CA", issuer=ca, key=rsa_key(2048, 4))
    short = authority("Short CA", path_length=0)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    return {
        "untrusted self-signed": Case(
            make().der,
            "BadCertificateUntrusted",
            ("the server's certificate PLC 7 (thumbprint ", "is not trusted yet", "then: edge-agent trust PLC-7-"),
        ),
        "expired": pinned(
            make(valid_days=(-400, -35)),
            "BadCertificateTimeInvalid",
            "PLC 7",
            "expired on 2026-10-24 (the clock here says 2026-11-28 12:00:00 UTC)",
        ),
        "not yet valid": pinned(
            make(valid_days=(2, 400)),
            "BadCertificateTimeInvalid",
            "is not valid before 2026-11-30 12:00:00 UTC (the clock here says 2026-11-28 12:00:00 UTC)",
            "set the clock",
        ),
        "wrong ApplicationUri": pinned(
            make(uri="urn:somebody:else"),
            "BadCertificateUriInvalid",
            "is for urn:somebody:else, while the server calls itself urn:plc7:server",
        ),
        "no ApplicationUri": pinned(make(uri=None), "BadCertificateUriInvalid", "is for no ApplicationUri"),
        "a server without a name": pinned(
            make(), "BadCertificateUriInvalid", "calls itself without a name", endpoint=Endpoint("", "192.0.2.7")
        ),
        "wrong host": Case(
            make(issuer=ca, hosts=("plc9", "192.0.2.9")).der,
            "BadCertificateHostNameInvalid",
            (
                "is for plc9, 192.0.2.9, not for 192.0.2.7, which the url names",
                "accept this one itself: edge-agent trust",
            ),
            trusted=(ca.der, revocations(ca)),
        ),
        "key usage wrong": pinned(
            make(usage=("key_cert_sign",)), "BadCertificateUseNotAllowed", "may not be used to sign and to encrypt"
        ),
        "extended key usage without serverAuth": pinned(
            make(extended=(ExtendedKeyUsageOID.CLIENT_AUTH,)), "BadCertificateUseNotAllowed", "lacks serverAuth"
        ),
        "SHA-1": pinned(
            with_sha1(make()), "BadCertificatePolicyCheckFailed", "is signed with SHA1, which can be forged", "SHA-256"
        ),
        "RSA 1024": pinned(
            make(key=rsa_key(1024)), "BadCertificatePolicyCheckFailed", "RSA key of 1024 bits, outside 2048 … 4096"
        ),
        "no RSA key": pinned(make(key=ec_key()), "BadCertificatePolicyCheckFailed", "has no RSA key"),
        "issuer not trusted": Case(
            leaf.der + ca.der,
            "BadCertificateUntrusted",
            ("neither the server's certificate PLC 7", "nor its issuer Plant CA", "is trusted yet"),
            trusted=(other.der,),
        ),
        "issuer only completes chains": Case(
            leaf.der, "BadCertificateUntrusted", ("nor its issuer Plant CA",), issuers=(ca.der, revocations(ca))
        ),
        "issuer absent": Case(
            leaf.der,
            "BadCertificateChainIncomplete",
            ("was issued by O=Example,CN=Plant CA, which is not here", "edge-agent trust --issuer --import FILE"),
            trusted=(leaf.der,),
        ),
        "issuer expired": issued(
            make(issuer=old),
            old,
            "BadCertificateIssuerTimeInvalid",
            "the issuer's certificate Old CA",
            "expired on 2026-11-23",
        ),
        "issuer of the same name, another key": issued(
            leaf, authority(key=rsa_key(2048, 5)), "BadCertificateInvalid", "the signature of the server's certificate"
        ),
        "revoked": issued(
            leaf,
            ca,
            "BadCertificateRevoked",
            "PLC 7",
            "was revoked by Plant CA",
            "on 2026-11-25",
            lists=(revocations(ca, leaf),),
        ),
        "revoked, though accepted itself": Case(
            leaf.der,
            "BadCertificateRevoked",
            ("was revoked",),
            trusted=(leaf.der,),
            issuers=(ca.der, revocations(ca, leaf)),
        ),
        "issuer revoked": Case(
            make(issuer=middle).der + middle.der,
            "BadCertificateIssuerRevoked",
            ("the issuer's certificate Middle CA", "was revoked by Plant CA"),
            trusted=(ca.der,),
            issuers=(revocations(ca, middle), revocations(middle)),
        ),
        "no list of revoked ones": issued(
            leaf,
            ca,
            "BadCertificateRevocationUnknown",
            "the list of certificates that Plant CA",
            "revoked is not here",
            "edge-agent trust --import FILE; or accept this server alone: edge-agent trust PLC-7-",
        ),
        "a list that another one signed": issued(
            leaf,
            ca,
            "BadCertificateRevocationUnknown",
            "is not here",
            lists=(revocations(ca, key=rsa_key(2048, 5)),),
        ),
        "broken signature": Case(broken(make()), "BadCertificateInvalid", ("the signature of", "PLC 7", "is broken")),
        "broken signature of an issuer": issued(
            Made(x509.load_der_x509_certificate(broken(leaf)), leaf.key),
            ca,
            "BadCertificateInvalid",
            "the signature of the server's certificate PLC 7",
            "is broken",
        ),
        "signed by no authority": issued(
            make(issuer=plain), plain, "BadCertificateIssuerUseNotAllowed", "was signed by Plain server", "no authority"
        ),
        "path too long": Case(
            make(issuer=(deep := authority("Deep CA", issuer=short, key=rsa_key(2048, 4)))).der + deep.der,
            "BadCertificateIssuerUseNotAllowed",
            ("Short CA", "allows 0 authorities below it, here are 1"),
            trusted=(short.der, revocations(short), revocations(deep)),
        ),
        "unknown critical extension": pinned(
            make(extra=[(unknown, True)]), "BadCertificateUseNotAllowed", "critical extension 1.2.3.4"
        ),
        "garbage": Case(b"\x00\x01garbage", "BadCertificateInvalid", ("what the server sent is no certificate",)),
        "half of one": Case(make().der[:300], "BadCertificateInvalid", ("300 bytes are there of a certificate of",)),
        "one and something more": Case(
            make().der + b"\x00", "BadCertificateInvalid", ("no certificate begins here",), trusted=(make().der,)
        ),
        "empty": Case(b"", "BadSecurityChecksFailed", ("the server sent no certificate",)),
        "endless": Case(bytes(200_000), "BadCertificateInvalid", ("200000 bytes",)),
        "a hundred": Case(make().der * 11, "BadCertificateInvalid", ("11 certificates came, 10 are the most",)),
    }


CASES = bad()


@pytest.mark.parametrize("name", CASES)
def test_a_bad_certificate_is_refused_with_a_sentence_of_its_own(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    verdict = judge(case.sent, case.endpoint, lay(tmp_path, case.trusted, case.issuers), NOW_US)
    assert not verdict.trusted
    assert verdict.code == case.code, verdict.words
    for words in case.words:
        assert words in verdict.words
    assert verdict.words.count("; ") >= 1, "it says what to do"
    assert "{" not in verdict.words
    assert "\n" not in verdict.words


def test_what_differs_from_these_only_in_its_fault_is_trusted(tmp_path: Path) -> None:
    """The negative control: what they are given is enough for a right one."""
    plc, ca = make(), authority()
    assert judge(plc.der, PLC, lay(tmp_path / "pinned", (plc.der,)), NOW_US).trusted
    assert judge(make(issuer=ca).der, PLC, lay(tmp_path / "issued", (ca.der, revocations(ca))), NOW_US).trusted


# ---------------------------------------------------------------------------------------------------- what is trusted


def test_a_server_is_trusted_after_a_person_accepted_its_certificate(tmp_path: Path) -> None:
    plc = make()
    refused = judge(plc.der, PLC, tmp_path, NOW_US)
    assert not refused.trusted
    accepted = pki.accept(tmp_path, refused.name)
    assert accepted.thumbprint == plc.thumbprint
    ends = Expiry("PLC 7", "server", NOW_US + 355 * DAY_US)
    assert judge(plc.der, PLC, tmp_path, NOW_US) == Verdict(
        True, "Good", "", (), "", plc.der, (plc.thumbprint,), (ends,)
    )
    assert not list((tmp_path / "rejected").iterdir())
    pki.refuse(tmp_path, accepted.name, NOW_US)
    assert judge(plc.der, PLC, tmp_path, NOW_US).code == "BadCertificateUntrusted"


def test_a_chain_with_an_intermediate_is_trusted_by_its_root(tmp_path: Path) -> None:
    root = authority("Root CA")
    middle = authority("Middle CA", issuer=root, key=rsa_key(2048, 4))
    leaf = make(issuer=middle)
    lists = (revocations(root), revocations(middle))
    sent = judge(leaf.der + middle.der + root.der, PLC, lay(tmp_path / "a", (root.der, *lists)), NOW_US)
    assert sent.trusted, sent.words
    assert sent.thumbprints == (leaf.thumbprint, middle.thumbprint, root.thumbprint)
    kept = judge(leaf.der, PLC, lay(tmp_path / "b", (root.der,), (middle.der, *lists)), NOW_US)
    assert kept.trusted, kept.words
    by_middle = judge(leaf.der, PLC, lay(tmp_path / "c", (middle.der,), (root.der, *lists)), NOW_US)
    assert by_middle.trusted, by_middle.words


def test_of_an_authority_that_renewed_its_certificate_the_valid_one_counts(tmp_path: Path) -> None:
    old, new = authority(valid_days=(-900, -5)), authority()
    leaf = make(issuer=new)
    assert judge(leaf.der + old.der, PLC, lay(tmp_path, (old.der, new.der, revocations(new))), NOW_US).trusted


def test_files_are_read_as_der_and_as_pem_and_several_in_one(tmp_path: Path) -> None:
    root = authority("Root CA")
    middle = authority("Middle CA", issuer=root, key=rsa_key(2048, 4))
    leaf = make(issuer=middle)
    folder = lay(tmp_path)
    (folder / "trusted" / "all.pem").write_bytes(root.pem + b"\n" + middle.pem)
    for each in (root, middle):
        text = x509.load_der_x509_crl(revocations(each)).public_bytes(serialization.Encoding.PEM)
        (folder / "issuers" / f"{each.thumbprint}.crl").write_bytes(text)
    assert judge(leaf.der, PLC, folder, NOW_US).trusted


def test_a_certificate_that_was_itself_accepted_may_be_reached_under_another_host(tmp_path: Path) -> None:
    plc = make(hosts=("plc9",))
    folder = lay(tmp_path, (plc.der,))
    verdict = judge(plc.der, PLC, folder, NOW_US)
    assert verdict.trusted
    assert "is for plc9, not for 192.0.2.7" in verdict.warnings[0]
    assert judge(plc.der, PLC, folder, NOW_US, Strictness(check_host=False)).warnings == ()
    assert judge(plc.der, PLC, folder, NOW_US, Strictness(check_host=True)).code == "BadCertificateHostNameInvalid"


@pytest.mark.parametrize("host", ["PLC7", "plc7.", "192.0.2.7"])
def test_a_host_is_compared_as_hosts_are(host: str, tmp_path: Path) -> None:
    plc = make()
    assert judge(plc.der, Endpoint(PLC.application_uri, host), lay(tmp_path, (plc.der,)), NOW_US).warnings == ()


@pytest.mark.parametrize("host", ["[2001:db8::7]", "2001:DB8:0::7"])
def test_an_address_of_ipv6_is_compared_as_an_address(host: str, tmp_path: Path) -> None:
    plc = make(hosts=("2001:db8::7",))
    assert judge(plc.der, Endpoint(PLC.application_uri, host), lay(tmp_path, (plc.der,)), NOW_US).warnings == ()


def test_an_authority_without_its_list_is_enough_where_a_person_says_so(tmp_path: Path) -> None:
    ca = authority()
    verdict = judge(make(issuer=ca).der, PLC, lay(tmp_path, (ca.der,)), NOW_US, Strictness(need_revocations=False))
    assert verdict.trusted
    assert "a stolen key would not be noticed" in verdict.warnings[0]


def test_a_certificate_that_was_itself_accepted_needs_no_list_of_revoked_ones(tmp_path: Path) -> None:
    ca = authority()
    leaf = make(issuer=ca)
    assert judge(leaf.der, PLC, lay(tmp_path, (leaf.der,), (ca.der,)), NOW_US).warnings == ()


def test_an_old_list_still_counts_and_is_warned_of(tmp_path: Path) -> None:
    ca = authority()
    leaf, stolen = make(issuer=ca), make("Stolen", issuer=ca)
    folder = lay(tmp_path, (ca.der, revocations(ca, stolen, next_days=-1)))
    verdict = judge(leaf.der, PLC, folder, NOW_US)
    assert verdict.trusted
    assert "should have been renewed on 2026-11-27" in verdict.warnings[0]
    assert judge(stolen.der, PLC, folder, NOW_US).code == "BadCertificateRevoked"


def test_a_file_that_is_no_certificate_is_left_aside_and_told(tmp_path: Path) -> None:
    plc = make()
    verdict = judge(plc.der, PLC, lay(tmp_path, (plc.der, b"scrap")), NOW_US)
    assert verdict.trusted
    assert "trusted/1.der" in verdict.warnings[0]


def test_another_certificate_of_an_application_that_is_trusted_is_no_ordinary_stranger(tmp_path: Path) -> None:
    known, other = make(), make("Somebody", key=rsa_key(2048, 3))
    verdict = judge(other.der, PLC, lay(tmp_path, (known.der,)), NOW_US)
    assert verdict.code == "BadCertificateUntrusted"
    assert f"while PLC 7 (thumbprint {known.thumbprint[:12]}) of the same application is" in verdict.words
    assert "another machine answers in its place" in verdict.words


def test_a_list_that_speaks_of_some_certificates_only_is_not_enough_and_still_counts(tmp_path: Path) -> None:
    ca = authority()
    leaf, stolen = make(issuer=ca), make("Stolen", issuer=ca)
    folder = lay(tmp_path, (ca.der, revocations(ca, stolen, only_authorities=True)))
    assert judge(leaf.der, PLC, folder, NOW_US).code == "BadCertificateRevocationUnknown"
    assert judge(stolen.der, PLC, folder, NOW_US).code == "BadCertificateRevoked"


def test_a_file_that_may_not_be_read_cuts_off_no_other_server(tmp_path: Path) -> None:
    plc = make()
    folder = lay(tmp_path, (plc.der,))
    (folder / "trusted" / "folder.der").mkdir()
    verdict = judge(plc.der, PLC, folder, NOW_US)
    assert verdict.trusted
    assert "trusted/folder.der" in verdict.warnings[0]


def test_a_folder_that_cannot_be_read_trusts_nobody(tmp_path: Path) -> None:
    (tmp_path / "trusted").write_text("a file where a folder should be")
    verdict = judge(make().der, PLC, tmp_path, NOW_US)
    assert (verdict.trusted, verdict.code) == (False, "BadInternalError")
    assert "the folder of certificates cannot be read" in verdict.words


# ------------------------------------------------------------------------------------------------------ whatever comes


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_whatever_bytes_come_they_are_refused_and_raise_nothing(noise: bytes) -> None:
    verdict = judge(noise, PLC, Path("/nonexistent"), NOW_US)
    assert not verdict.trusted
    assert verdict.words


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes]:
    """A folder that trusts an authority and one server; a certificate of each kind."""
    ca = authority()
    issued_one, pinned_one = make(issuer=ca), make("Pinned", key=rsa_key(2048, 3))
    folder = lay(tmp_path_factory.mktemp("pki"), (ca.der, revocations(ca), pinned_one.der))
    assert judge(issued_one.der, PLC, folder, NOW_US).trusted
    assert judge(pinned_one.der, PLC, folder, NOW_US).trusted
    return folder, issued_one.der, pinned_one.der


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_certificate_with_any_byte_changed_is_not_trusted(
    plant: tuple[Path, bytes, bytes], data: st.DataObject
) -> None:
    folder, *right = plant
    changed = bytearray(data.draw(st.sampled_from(right)))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    verdict = judge(bytes(changed), PLC, folder, NOW_US)
    assert not verdict.trusted
    assert verdict.words


def test_a_signature_that_ends_within_a_byte_is_no_other_spelling_of_the_same(tmp_path: Path) -> None:
    ca = authority()
    even = next(each for each in (make(issuer=ca) for _ in range(100)) if each.der[-1] % 2 == 0)
    folder = lay(tmp_path, (ca.der, revocations(ca)))
    assert judge(even.der, PLC, folder, NOW_US).trusted
    at = len(even.der) - len(even.certificate.signature) - 1
    assert even.der[at] == 0
    respelt = even.der[:at] + b"\x01" + even.der[at + 1 :]
    assert "no whole number of bytes" in judge(respelt, PLC, folder, NOW_US).words


@given(st.data())
@settings(deadline=None)
def test_a_certificate_that_is_cut_anywhere_is_not_trusted(
    plant: tuple[Path, bytes, bytes], data: st.DataObject
) -> None:
    folder, *right = plant
    whole = data.draw(st.sampled_from(right))
    assert not judge(whole[: data.draw(st.integers(0, len(whole) - 1))], PLC, folder, NOW_US).trusted


@given(st.text(max_size=64), st.text(max_size=80))
@settings(deadline=None)
def test_whatever_a_server_calls_itself_raises_nothing(uri: str, host: str) -> None:
    plc = make()
    verdict = judge(plc.der, Endpoint(uri, host), Path("/nonexistent"), NOW_US)
    assert not verdict.trusted
    assert verdict.words.isprintable()


# -------------------------------------------------------------------------------------------------------- the rejected


def test_a_refused_certificate_lies_once_among_the_rejected_with_its_reason(tmp_path: Path) -> None:
    plc = make()
    (name,) = {judge(plc.der, PLC, tmp_path, NOW_US + again * DAY_US).name for again in range(3)}
    assert name == f"PLC-7-{plc.thumbprint[:12].lower()}"
    assert (tmp_path / "rejected" / f"{name}.der").read_bytes() == plc.der
    assert len(list((tmp_path / "rejected").iterdir())) == 2
    (listed,) = pki.list_certificates(tmp_path, NOW_US)
    assert (listed.place, listed.name, listed.since_us) == ("rejected", name, NOW_US)
    assert "is not trusted yet" in listed.fault
    assert "{" not in listed.fault


def test_a_server_that_is_refused_again_and_again_writes_nothing_more(tmp_path: Path) -> None:
    plc = make(valid_days=(-400, -35))
    judge(plc.der, PLC, tmp_path, NOW_US)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "rejected").iterdir()}
    judge(plc.der, PLC, tmp_path, NOW_US + DAY_US)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rejected").iterdir()} == first


def test_of_too_many_rejected_ones_the_oldest_go(tmp_path: Path) -> None:
    sent = [make(f"PLC {number}") for number in range(pki.REJECTED_MAX + 5)]
    for number, each in enumerate(sent):
        judge(each.der, PLC, tmp_path, NOW_US + number)
    kept = {each.common_name for each in pki.list_certificates(tmp_path, NOW_US)}
    assert kept == {f"PLC {number}" for number in range(5, pki.REJECTED_MAX + 5)}
    assert len(list((tmp_path / "rejected").iterdir())) == 2 * pki.REJECTED_MAX


def test_what_cannot_be_laid_down_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "rejected").write_text("a file where a folder should be")
    plc = make()
    verdict = judge(plc.der, PLC, tmp_path, NOW_US)
    assert not verdict.trusted
    assert verdict.name == plc.thumbprint


def test_two_whose_names_would_be_one_are_kept_apart(tmp_path: Path) -> None:
    plc, other = make(), make()
    name = f"PLC-7-{plc.thumbprint[:12].lower()}.der"
    (tmp_path / "rejected").mkdir()
    (tmp_path / "rejected" / name).write_bytes(other.der)
    verdict = judge(plc.der, PLC, tmp_path, NOW_US)
    assert verdict.name == f"PLC-7-{plc.thumbprint.lower()}"
    assert pki.accept(tmp_path, verdict.name).thumbprint == plc.thumbprint


@pytest.mark.parametrize(
    ("common_name", "stem"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("\x1b[31mred\x07", "31mred"),
        ("Größe", "Gr-e"),
        ("...", "certificate"),
        ("x" * 64, "x" * 40),
    ],
)
def test_a_name_from_the_network_is_a_harmless_file_name_and_text(common_name: str, stem: str, tmp_path: Path) -> None:
    verdict = judge(make(common_name).der, PLC, tmp_path, NOW_US)
    assert verdict.name.rpartition("-")[0] == stem
    assert verdict.words.isprintable()
    (listed,) = pki.list_certificates(tmp_path, NOW_US)
    for text in (listed.name, listed.subject, listed.common_name, listed.issuer, listed.fault, listed.file):
        assert text.isprintable()


# ------------------------------------------------------------------------------------------------------ what a person does


def test_a_name_that_may_mean_two_is_refused_with_both(tmp_path: Path) -> None:
    one, other = make(), make()
    for each in (one, other):
        judge(each.der, PLC, tmp_path, NOW_US)
    with pytest.raises(ValueError, match="may mean several") as told:
        pki.accept(tmp_path, "PLC 7")
    assert one.thumbprint in str(told.value)
    assert other.thumbprint in str(told.value)
    assert pki.accept(tmp_path, other.thumbprint[:10].lower()).thumbprint == other.thumbprint


def test_a_stranger_who_calls_itself_by_anothers_file_name_makes_it_ambiguous(tmp_path: Path) -> None:
    plc = make()
    name = judge(plc.der, PLC, tmp_path, NOW_US).name
    judge(make(name).der, PLC, tmp_path, NOW_US)
    with pytest.raises(ValueError, match="may mean several"):
        pki.accept(tmp_path, name)


@pytest.mark.parametrize("name", ["nobody", "", "PLC", "abcde"])
def test_a_name_that_nothing_has_is_told(name: str, tmp_path: Path) -> None:
    judge(make().der, PLC, tmp_path, NOW_US)
    with pytest.raises(LookupError, match="no certificate"):
        pki.accept(tmp_path, name)


def test_to_accept_once_more_does_no_harm(tmp_path: Path) -> None:
    name = judge(make().der, PLC, tmp_path, NOW_US).name
    assert pki.accept(tmp_path, name).thumbprint == pki.accept(tmp_path, name).thumbprint


def test_an_issuer_that_is_accepted_as_such_gives_no_trust(tmp_path: Path) -> None:
    ca = authority()
    pki.add(tmp_path, ca.pem, issuer=True)
    pki.add(tmp_path, revocations(ca), issuer=True)
    leaf = make(issuer=ca)
    verdict = judge(leaf.der, PLC, tmp_path, NOW_US)
    assert verdict.code == "BadCertificateUntrusted"
    pki.accept(tmp_path, verdict.name)
    assert judge(leaf.der, PLC, tmp_path, NOW_US).trusted


def test_what_is_removed_is_removed_with_all_its_copies(tmp_path: Path) -> None:
    plc = make()
    pki.add(tmp_path, plc.der)
    (tmp_path / "trusted" / "by_hand.crt").write_bytes(plc.pem)
    pki.refuse(tmp_path, plc.thumbprint, NOW_US)
    assert not list((tmp_path / "trusted").iterdir())
    (listed,) = pki.list_certificates(tmp_path, NOW_US)
    assert (listed.place, listed.fault) == ("rejected", "removed by hand")


def test_one_of_several_in_a_file_is_not_removed_with_the_others(tmp_path: Path) -> None:
    one, other = make(), make("Other", key=rsa_key(2048, 3))
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "both.pem").write_bytes(one.pem + other.pem)
    with pytest.raises(ValueError, match="holds 2 certificates"):
        pki.refuse(tmp_path, "Other", NOW_US)


def test_a_file_with_a_private_key_is_not_imported(tmp_path: Path) -> None:
    plc = make()
    with pytest.raises(ValueError, match="private key"):
        pki.add(tmp_path, plc.pem + plc.key_pem)
    with pytest.raises(ValueError, match="no certificate in DER or PEM"):
        pki.add(tmp_path, b"something")


# ------------------------------------------------------------------------------------------------------------- our own


def test_our_own_certificate_is_made_once_as_the_standard_wants_it(tmp_path: Path) -> None:
    own = pki.own_certificate(tmp_path / "pki", "press-4", NOW_US)
    assert own.application_uri == "urn:press-4:edge-agent"
    made = x509.load_der_x509_certificate(own.certificate)
    assert made.subject == made.issuer
    assert made.subject.rfc4514_string() == "DC=press-4,O=edge-agent,CN=edge-agent"
    assert cert.hosts(made) == ["press-4"]
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert usage.content_commitment
    assert usage.key_encipherment
    assert usage.data_encipherment
    assert usage.key_cert_sign
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert set(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert made.not_valid_after_utc - made.not_valid_before_utc == timedelta(days=3653)
    assert stat.S_IMODE((tmp_path / "pki" / "own").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "pki" / "own" / "key.pem").stat().st_mode) == 0o600
    key = serialization.load_der_private_key(own.key, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.public_key() == made.public_key()
    assert "key=" not in repr(own).partition("about=")[0]
    assert pki.own_certificate(tmp_path / "pki", "renamed since", NOW_US + DAY_US) == own
    assert [path.name for path in (tmp_path / "pki").iterdir()] == ["own"]


def test_our_own_certificate_would_be_trusted_by_ourselves(tmp_path: Path) -> None:
    own = pki.own_certificate(tmp_path, "press-4", NOW_US)
    verdict = judge(
        own.certificate, Endpoint(own.application_uri, "press-4"), lay(tmp_path, (own.certificate,)), NOW_US
    )
    ends = Expiry("edge-agent", "server", own.about.valid_until_us)
    assert verdict == Verdict(True, "Good", "", (), "", own.certificate, (own.about.thumbprint,), (ends,))


@pytest.mark.parametrize("hostname", ["", "prüfstand", "a_b", "x" * 200, "-.-"])
def test_a_strange_host_name_makes_a_certificate_all_the_same(hostname: str, tmp_path: Path) -> None:
    assert pki.own_certificate(tmp_path, hostname, NOW_US).application_uri.startswith("urn:")


def test_two_that_start_at_once_agree_on_one(tmp_path: Path) -> None:
    found: list[bytes] = []
    ready = threading.Barrier(3)

    def start() -> None:
        ready.wait()
        found.append(pki.own_certificate(tmp_path, "press", NOW_US).certificate)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_what_a_killed_process_left_disturbs_nobody(tmp_path: Path) -> None:
    for left in (".own-abc/key.pem", "trusted/.new-abc", "trusted/.new-abc.der"):
        (tmp_path / left).parent.mkdir(exist_ok=True)
        (tmp_path / left).write_bytes(b"half")
    own = pki.own_certificate(tmp_path, "press", NOW_US)
    assert [each.name for each in pki.list_certificates(tmp_path, NOW_US)] == ["certificate"]
    assert judge(own.certificate, PLC, tmp_path, NOW_US).warnings == ()


def lose(name: str) -> Callable[[Path], None]:
    return lambda own: (own / name).unlink()


def scrap(name: str) -> Callable[[Path], None]:
    def damage(own: Path) -> None:
        (own / name).write_bytes(b"scrap")

    return damage


def anothers_key(own: Path) -> None:
    (own / "key.pem").write_bytes(pem_of(rsa_key()))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose("key.pem"), "key.pem is missing, while certificate.der is there"),
        (lose("certificate.der"), "certificate.der is missing, while key.pem is there"),
        (scrap("certificate.der"), "is no certificate in DER or PEM"),
        (scrap("key.pem"), "cannot be read as a private key"),
        (anothers_key, "they belong to two different pairs"),
        (lambda own: (own / "key.pem").chmod(0o644), "may be read or changed by others"),
    ],
)
def test_a_damaged_own_certificate_is_told_and_never_replaced(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    pki.own_certificate(tmp_path, "press", NOW_US)
    damage(tmp_path / "own")
    before = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    with pytest.raises(ValueError, match=words):
        pki.own_certificate(tmp_path, "press", NOW_US)
    assert {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()} == before
    (listed,) = pki.list_certificates(tmp_path, NOW_US)
    assert listed.place == "own"
    assert words in listed.fault


def test_a_clock_that_was_never_set_makes_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the clock says 1970-01-01"):
        pki.own_certificate(tmp_path, "press", 60_000_000)
    assert not list(tmp_path.iterdir())


def laid_pair(folder: Path, certificate: bytes, key: bytes, mode: int = 0o600) -> tuple[Path, Path]:
    (folder / "ours.pem").write_bytes(certificate)
    (folder / "ours.key").write_bytes(key)
    (folder / "ours.key").chmod(mode)
    return folder / "ours.pem", folder / "ours.key"


def test_a_certificate_that_somebody_issued_for_us_is_loaded_with_its_issuers(tmp_path: Path) -> None:
    ca = authority()
    leaf = make("edge", issuer=ca, uri="urn:press:edge-agent")
    own = pki.load_own(*laid_pair(tmp_path, leaf.pem + ca.pem, leaf.key_pem, 0o640), NOW_US)
    assert (own.application_uri, own.certificate, own.issuers) == ("urn:press:edge-agent", leaf.der, ca.der)


@pytest.mark.parametrize(
    ("ours", "key", "words"),
    [
        (make(), pem_of(rsa_key(2048, 5)), "they belong to two different pairs"),
        (make(uri=None), pem_of(rsa_key()), "has no ApplicationUri"),
        (make(valid_days=(-400, -35)), pem_of(rsa_key()), "expired on 2026-10-24"),
        (make(valid_days=(2, 35)), pem_of(rsa_key()), "is not valid before 2026-11-30"),
        (make(), pem_of(rsa_key(), b"secret"), "has a passphrase"),
        (make(key=ec_key()), pem_of(ec_key()), "is no RSA key"),
        (make(key=rsa_key(1024)), pem_of(rsa_key(1024)), "has 1024 bits"),
    ],
)
def test_a_pair_that_cannot_be_used_is_told(ours: Made, key: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        pki.load_own(*laid_pair(tmp_path, ours.der, key), NOW_US)


@pytest.mark.root
def test_what_root_makes_belongs_to_whom_the_folder_belongs_to(tmp_path: Path) -> None:
    os.chown(tmp_path, 12_345, 12_345)
    pki.own_certificate(tmp_path / "pki", "press", NOW_US)
    judge(make().der, PLC, tmp_path / "pki", NOW_US)
    for path in (tmp_path / "pki").rglob("*"):
        assert path.stat().st_uid == 12_345, path


def test_who_has_no_secured_connection_does_not_load_the_cryptography() -> None:
    code = "import sys, drivers.modbus, drivers.opcua, edge_agent.cli.trust; print('cryptography' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"


def test_the_driver_offers_its_store_to_the_command_line(tmp_path: Path) -> None:
    assert isinstance(DRIVER, Trusts)
    assert list(DRIVER.certificates(str(tmp_path / "pki")).all(NOW_US)) == []


def test_a_key_whose_parts_do_not_belong_together_is_said_to_be_damaged(tmp_path: Path) -> None:
    made = make("Hall 2", uri="urn:hall2:agent")
    numbers = made.key.private_numbers()
    wrong = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d + 2, numbers.dmp1 + 2, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.pem)
    key.write_bytes(pem_of(wrong))
    key.chmod(0o600)
    with pytest.raises(ValueError, match="is damaged: what it signs is not valid; put it back from a backup"):
        pki.load_own(certificate, key, NOW_US)
    key.write_bytes(made.key_pem)
    assert pki.load_own(certificate, key, NOW_US).application_uri == "urn:hall2:agent"
