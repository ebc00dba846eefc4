"""`edge-agent trust`: what an operator sees, what is accepted and removed, and the exit statuses."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from drivers import opcua_pki as pki
from drivers.opcua_trust import Endpoint, judge
from edge_agent.__main__ import main
from tests.certificates import NOW_US, Made, authority, make, revocations, rsa_key

PLC = Endpoint("urn:plc7:server", "192.0.2.7")
ALWAYS = (-3000, 30_000)
"""Days from … to: valid whenever this test runs."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose agent has run: its data directory is there."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "agent.yaml"
    path.write_text("agent: {id: press, data_dir: ./data}\n")
    return path


def rejected(config: Path, made: Made | None = None) -> tuple[Made, str]:
    """A server came and was refused: its certificate, and the name that the agent told."""
    made = made or make(valid_days=ALWAYS)
    return made, judge(made.der, PLC, folder_of(config), NOW_US).name


def folder_of(config: Path) -> Path:
    return config.parent / "data" / "pki"


def told(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    """What the command prints on stdout, or on stderr when it ends with another status than 0."""
    assert main(["trust", *map(str, words)]) == status
    out, err = capsys.readouterr()
    return err if status else out


def as_json(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> dict[str, Any]:
    assert main(["trust", *map(str, words), "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_an_empty_folder_says_what_there_is_not(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, config)
    assert f"certificates in {folder_of(config)}" in text
    assert "none yet; it is made with the first secured connection, or now: --export-own FILE" in text
    assert "trusted: none" in text
    assert not folder_of(config).exists(), "to look makes nothing"


def test_the_list_says_whose_until_when_and_why_it_was_refused(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plc, name = rejected(config)
    text = told(capsys, config)
    assert f"  {name}\n" in text
    assert "      urn:plc7:server\n" in text
    assert " ".join(plc.thumbprint[at : at + 4] for at in range(0, 40, 4)) in text
    assert "rejected since 2026-11-28 12:00 UTC: the server's certificate PLC 7" in text


def test_a_rejected_certificate_is_accepted_by_name_and_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plc, name = rejected(config)
    text = told(capsys, config, name)
    assert f"trusted: {name}" in text
    assert "CN=PLC 7" in text
    assert "urn:plc7:server" in text
    assert plc.thumbprint[:4] + " " + plc.thumbprint[4:8] in text
    assert judge(plc.der, PLC, folder_of(config), NOW_US).trusted
    assert told(capsys, config, name).startswith(f"trusted: {name}"), "once more does no harm"


@pytest.mark.parametrize("how", ["file", "path", "thumbprint", "spaced", "common name"])
def test_a_certificate_has_several_names(how: str, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plc, name = rejected(config)
    digits = plc.thumbprint
    word = {
        "file": f"{name}.der",
        "path": f"data/pki/rejected/{name}.der",
        "thumbprint": digits.lower()[:8],
        "spaced": " ".join(digits[at : at + 4] for at in range(0, 40, 4)),
        "common name": "plc 7",
    }[how]
    told(capsys, "--data-dir", config.parent / "data", word)
    assert judge(plc.der, PLC, folder_of(config), NOW_US).trusted


def test_a_name_of_two_is_refused_with_both(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one, _), (other, _) = rejected(config), rejected(config)
    text = told(capsys, config, "PLC 7", status=2)
    assert one.thumbprint in text
    assert other.thumbprint in text
    assert not (folder_of(config) / "trusted").exists()


def test_of_several_names_none_is_accepted_when_one_is_wrong(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, name = rejected(config)
    assert "no certificate 'nobody'" in told(capsys, config, name, "nobody", status=1)
    assert not (folder_of(config) / "trusted").exists()


def test_what_is_removed_is_told_and_no_longer_trusted(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plc, name = rejected(config)
    told(capsys, config, name)
    text = told(capsys, config, "--remove", name)
    assert f"no longer trusted: {name}" in text
    assert "restart the agent" in text
    assert judge(plc.der, PLC, folder_of(config), NOW_US).code == "BadCertificateUntrusted"
    told(capsys, config, "--remove", name, status=1)


def test_an_authority_is_imported_with_its_list_and_said_to_be_one(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ca = authority(valid_days=ALWAYS)
    leaf = make(issuer=ca, valid_days=ALWAYS)
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    (tmp_path / "ca.crl").write_bytes(revocations(ca))
    assert "every server whose certificate it issues is trusted" in told(
        capsys, config, "--import", tmp_path / "ca.pem"
    )
    assert "taken up: revocations of" in told(capsys, config, "--import", tmp_path / "ca.crl")
    assert judge(leaf.der, PLC, folder_of(config), NOW_US).trusted
    assert "(authority)" in told(capsys, config)


def test_an_issuer_is_kept_apart_from_the_trusted(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_bytes(authority(valid_days=ALWAYS).der)
    assert "kept as an issuer" in told(capsys, config, "--issuer", "--import", tmp_path / "ca.crt")
    assert len(list((folder_of(config) / "issuers").iterdir())) == 1
    assert "--issuer goes with" in told(capsys, config, "--issuer", status=2)


def test_our_own_is_written_for_the_servers_administrator(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = told(capsys, config, "--export-own", tmp_path / "ours.der")
    own = x509.load_der_x509_certificate((tmp_path / "ours.der").read_bytes())
    assert own.public_key() is not None
    assert str(folder_of(config) / "own" / "certificate.der") in text
    assert ":edge-agent" in text
    told(capsys, config, "--export-own", tmp_path / "again.der")
    told(capsys, config, "--export-own", tmp_path / "ours.pem")
    assert ssl.PEM_cert_to_DER_cert((tmp_path / "ours.pem").read_text()) == (tmp_path / "ours.der").read_bytes()
    assert (tmp_path / "again.der").read_bytes() == (tmp_path / "ours.der").read_bytes()


def test_a_damaged_own_certificate_is_shown_and_not_exported(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told(capsys, config, "--export-own", tmp_path / "ours.der")
    (folder_of(config) / "own" / "key.pem").unlink()
    assert "not usable: " in told(capsys, config)
    assert "key.pem is missing" in told(capsys, config, "--export-own", tmp_path / "new.der", status=1)
    assert not (tmp_path / "new.der").exists()


def test_everything_of_one_is_shown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plc, name = rejected(config)
    text = told(capsys, config, "--show", name)
    for words in (
        "RSA 2048",
        "SHA256",
        "digital signature",
        "plc7, 192.0.2.7",
        "issuer       itself",
        "is not trusted yet",
    ):
        assert words in text
    assert f"{plc.certificate.serial_number:X}" in text


def test_what_was_refused_for_more_than_trust_says_so_when_it_is_accepted(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, name = rejected(config, make(valid_days=(-400, -35)))
    assert "which accepting it may not mend: the server's certificate PLC 7" in told(capsys, config, name)


def test_a_second_certificate_of_one_application_is_told_when_it_is_accepted(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, old = rejected(config)
    told(capsys, config, old)
    _, new = rejected(config, make("PLC 7 anew", key=rsa_key(2048, 3), valid_days=ALWAYS))
    assert f"if it is no longer used: --remove {old}" in told(capsys, config, new)


def test_scripts_get_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plc, name = rejected(config)
    (found,) = as_json(capsys, config)["certificates"]
    assert (found["place"], found["name"], found["thumbprint"]) == ("rejected", name, plc.thumbprint)
    assert found["since"] == "2026-11-28T12:00:00Z"
    assert found["days_left"] > 0
    assert as_json(capsys, config, name)["certificates"][0]["place"] == "trusted"
    assert as_json(capsys, config, "nobody", status=1) == {
        "ok": False,
        "error": "no certificate 'nobody' among rejected",
    }


def test_what_a_stranger_wrote_moves_no_cursor(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = make("\x1b[2J\x1b[31mPLC\r\n\u202e", uri="urn:\x1b]0;title\x07", hosts=("plc",), key=rsa_key(2048, 3))
    _, name = rejected(config, evil)
    for words in ([config], [config, "--show", name], [config, name], [config, "--remove", name]):
        for line in told(capsys, *words).splitlines():
            assert line.isprintable(), line


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["nothing.yaml"], 2, "nothing.yaml: no such file"),
        (["--data-dir", "nowhere"], 1, "no such data directory"),
        (["{config}", "--import", "nowhere.der"], 2, "nowhere.der: No such file or directory"),
        (["{config}", "--import", "{config}"], 2, "is no certificate in DER or PEM"),
        (["{config}", "name", "--show", "name"], 2, "'name' is one word too many here"),
        (["{config}", "--kind", "modbus"], 2, "--kind is one of: opcua"),
        (["{config}", "--show", "nobody"], 1, "no certificate 'nobody'"),
    ],
)
def test_wrong_use_is_told_in_words(
    words: list[str], status: int, text: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in told(capsys, *(word.replace("{config}", str(config)) for word in words), status=status)


def test_our_own_certificate_is_not_accepted(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pki.own_certificate(folder_of(config), "press", NOW_US)
    assert "no certificate 'edge-agent' among rejected" in told(capsys, config, "edge-agent", status=1)
