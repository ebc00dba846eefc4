"""`edge-agent trust`: which certificates are trusted, which were refused and why; accept or remove one.

Rule: what is accepted came from the network, so it is always said whose it is and by which thumbprint: whoever accepts
compares that with what the server itself shows. Nothing is asked, so that a script may do it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from edge_agent.contract import Certificate, CertificateStore

CONFIGS = (".yaml", ".yml", ".json")
FOLDER = "pki"
DONE, NOT_SO, WRONG_USE = 0, 1, 2
DAY_US = 86_400_000_000
SOON_DAYS = 60
PLACES = {
    "own": ("our own, which the servers must trust", "none yet; it is made with the first secured connection, or now: --export-own FILE"),
    "trusted": ("trusted", "none"),
    "issuers": ("issuers, which complete the chains of others", "none"),
    "rejected": ("rejected; accept one with: edge-agent trust NAME", "none"),
}  # fmt: skip
"""By place: what lies there, and what is said when nothing does."""


def add_trust(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "trust",
        help="certificates: which are trusted, which were refused and why; accept or remove one",
        description="List the certificates of servers, or trust those that are named: by the name in the list, or by the "
        "first six digits (or more) of the thumbprint. Compare the thumbprint with what the server shows before you do. It is in force "
        "from the next connection on. Exit status 1 when there is none of this name.",
        epilog="Example: edge-agent trust press-3f2a91aabbcc",
    )
    parser.add_argument(
        "words", metavar="CONFIG NAME", nargs="*",
        help=f"the configuration (*{', *'.join(CONFIGS)}; default: {DEFAULT_CONFIG}), and the certificates to accept",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--remove", metavar="NAME", help="trust it no longer")
    what.add_argument("--import", metavar="FILE", type=Path, dest="add", help="trust a certificate, or take up a CRL")
    what.add_argument(
        "--export-own",
        metavar="FILE",
        type=Path,
        help="write our own certificate, for the server's trust list (DER; a FILE.pem is PEM)",
    )
    what.add_argument("--show", metavar="NAME", help="everything that stands in one")
    parser.add_argument(
        "--issuer", action="store_true", help="accept or import it to complete the chains of others only"
    )
    parser.add_argument(
        "--data-dir", metavar="FOLDER", type=Path, help="the agent's data directory, when CONFIG does not tell it"
    )
    parser.add_argument("--kind", help="the kind of connection, where several kinds have certificates")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=trust)


def trust(arguments: argparse.Namespace) -> int:
    try:
        store, folder = _store(arguments)
        return _act(store, folder, arguments)
    except LookupError as error:
        return _failed(arguments, str(error.args[0]), NOT_SO)
    except ValueError as error:
        return _failed(arguments, str(error), WRONG_USE)
    except PermissionError as error:
        return _failed(
            arguments, f"{error.filename}: {error.strerror}; run it as the agent's user, or as root", WRONG_USE
        )
    except OSError as error:
        if error.filename is None:
            raise
        return _failed(arguments, f"{error.filename}: {error.strerror}", WRONG_USE)


def _act(store: "CertificateStore", folder: Path, arguments: argparse.Namespace) -> int:
    from edge_agent.clock import SystemClock

    now_us = SystemClock().wall_us()
    names = _names(arguments)
    if names and (arguments.remove or arguments.add or arguments.export_own or arguments.show):
        raise ValueError(f"{names[0]!r} is one word too many here")
    if arguments.issuer and not (names or arguments.add):
        raise ValueError("--issuer goes with the NAME of a rejected certificate, or with --import FILE")
    if arguments.show:
        _tell(arguments, [store.find(arguments.show)], details)
    elif arguments.remove:
        _tell(arguments, [store.remove(arguments.remove, now_us)], removed)
    elif arguments.add:
        _tell(arguments, store.add(arguments.add.read_bytes(), arguments.issuer), accepted)
    elif arguments.export_own:
        return _export(store, arguments, now_us)
    elif names:
        for name in names:  # all, before the first is accepted
            _acceptable(store, name, "issuers" if arguments.issuer else "trusted")
        before = store.all(now_us)
        taken = [store.accept(name, arguments.issuer) for name in names]
        _tell(arguments, taken, lambda each: accepted(each, before))
    elif arguments.json:
        listed = [as_json(each, now_us) for each in store.all(now_us)]
        print(json.dumps({"ok": True, "folder": str(folder), "certificates": listed}, ensure_ascii=False))
    else:
        print(f"certificates in {folder}")
        for line in list_lines(store.all(now_us), now_us):
            print(line)
    return DONE


def _acceptable(store: "CertificateStore", name: str, place: str) -> None:
    """Raises LookupError or ValueError when no single rejected one (or one that is accepted already) has this name."""
    try:
        store.find(name, "rejected")
    except LookupError as error:
        try:
            store.find(name, place)
        except LookupError:
            raise error from None


def _export(store: "CertificateStore", arguments: argparse.Namespace, now_us: int) -> int:
    import socket
    import ssl

    try:
        own, data = store.own(socket.gethostname(), now_us)
    except ValueError as error:
        return _failed(arguments, str(error), NOT_SO)
    pem = arguments.export_own.suffix.lower() == ".pem"
    arguments.export_own.write_bytes(ssl.DER_cert_to_PEM_cert(data).encode() if pem else data)
    _tell(arguments, [own], lambda each: exported(each, arguments.export_own))
    return DONE


def _names(arguments: argparse.Namespace) -> list[str]:
    """The words that name certificates; of a path to a file in the folder its name."""
    words = arguments.words[1:] if _config(arguments) else arguments.words
    return [Path(word).name for word in words]


def _config(arguments: argparse.Namespace) -> Path | None:
    first = Path(arguments.words[0]) if arguments.words else None
    return first if first is not None and first.suffix.lower() in CONFIGS else None


def _store(arguments: argparse.Namespace) -> "tuple[CertificateStore, Path]":
    """The store of the one kind of connection that has certificates. Raises ValueError in words."""
    from edge_agent import config

    stated = _config(arguments)
    path = stated or DEFAULT_CONFIG
    if arguments.data_dir is None and not path.exists():
        raise ValueError(f"{path}: no such file; name a CONFIG (*.yaml) or --data-dir")
    data_dir = arguments.data_dir or config.data_dir_of(path, FOLDER)
    if not data_dir.is_dir() and not arguments.export_own:
        raise LookupError(f"{data_dir}: no such data directory; the agent makes it when it starts")
    kinds = _kinds()
    if arguments.kind is None and len(kinds) == 1:
        (driver,) = kinds.values()
    elif arguments.kind in kinds:
        driver = kinds[arguments.kind]
    else:
        raise ValueError(f"--kind is one of: {', '.join(kinds) or 'none; no driver here has certificates'}")
    folder = data_dir.absolute() / FOLDER
    return driver.certificates(str(folder)), folder


def _kinds() -> dict[str, Any]:
    """The installed drivers that keep certificates. One that is broken is told, and hinders none of the others."""
    from edge_agent import plugins
    from edge_agent.contract import Trusts

    found = {}
    registry = plugins.installed()
    for kind in registry.kinds():
        try:
            driver = registry.driver(kind)
        except plugins.BrokenPluginError as error:
            print(f"edge-agent: {error}", file=sys.stderr)
            continue
        if isinstance(driver, Trusts):
            found[kind] = driver
    return found


def _tell(arguments: argparse.Namespace, found: "Sequence[Certificate]", lines: Any) -> None:
    from edge_agent.clock import SystemClock

    if arguments.json:
        now_us = SystemClock().wall_us()
        told = [as_json(each, now_us) for each in found]
        print(json.dumps({"ok": True, "certificates": told}, ensure_ascii=False))
        return
    for each in found:
        for line in lines(each):
            print(line)


def _failed(arguments: argparse.Namespace, error: str, status: int) -> int:
    if arguments.json:
        print(json.dumps({"ok": False, "error": error}, ensure_ascii=False))
    print(f"edge-agent: {error}", file=sys.stderr)
    return status


# ------------------------------------------------------------------------------------------------------- for people


def list_lines(certificates: "Sequence[Certificate]", now_us: int) -> Iterator[str]:
    """All by place: name, whose, thumbprint, until when; below it what is wrong with it."""
    for place, (title, nothing) in PLACES.items():
        here = [each for each in certificates if each.place == place]
        yield ""
        yield f"{title}{'' if here else f': {nothing}'}"
        for each in here:
            yield f"  {each.name}{_kind(each)}"
            if each.subject:
                yield f"      {each.uri or each.subject}"
            if each.thumbprint:
                yield f"      thumbprint {spaced(each.thumbprint)}"
            if each.valid_until_us:
                yield f"      {_until(each, now_us)}"
            if each.place == "rejected" and each.since_us:
                yield f"      rejected since {minute(each.since_us)}: {each.fault}"
            elif each.fault:
                yield f"      {'rejected' if each.place == 'rejected' else 'not usable'}: {each.fault}"
            if each.place == "own":
                yield f"      {each.file}"


def _kind(each: "Certificate") -> str:
    return "" if each.kind == "certificate" else f" ({each.common_name if each.kind == 'revocations' else each.kind})"


def _until(each: "Certificate", now_us: int) -> str:
    days = (each.valid_until_us - now_us) // DAY_US
    word = "renewed by" if each.kind == "revocations" else "valid until"
    return f"{word} {day(each.valid_until_us)}" + (
        "" if days > SOON_DAYS else f" ({days} days left)" if days >= 0 else " (over)"
    )


def details(each: "Certificate") -> Iterator[str]:
    """Everything, to be compared with what the server shows."""
    period = f"{minute(each.valid_from_us)} … {minute(each.valid_until_us)}" if each.valid_until_us else ""
    rows = (
        ("name", each.name),
        ("place", each.place),
        ("file", each.file),
        ("kind", each.kind),
        ("subject", each.subject),
        ("issuer", "itself" if each.issuer == each.subject else each.issuer),
        ("application", each.uri),
        ("hosts", ", ".join(each.hosts)),
        ("valid", period),
        ("thumbprint", spaced(each.thumbprint)),
        ("SHA-256", spaced(each.sha256)),
        ("serial", each.serial),
        ("key", each.key),
        ("signature", each.signature),
        ("usage", ", ".join(each.usage)),
        ("rejected", minute(each.since_us) if each.since_us else ""),
        ("fault", each.fault),
    )
    yield from (f"{word:<12} {text}" for word, text in rows if text)


def accepted(each: "Certificate", before: "Sequence[Certificate]" = ()) -> Iterator[str]:
    """What was accepted. before: all that lay in the folder."""
    if each.kind == "revocations":
        yield f"taken up: {each.common_name}, {each.subject}"
        return
    yield f"{'kept as an issuer' if each.place == 'issuers' else 'trusted'}: {each.name}"
    yield f"      subject     {each.subject}"
    yield f"      application {each.uri or 'none named'}"
    yield f"      thumbprint  {spaced(each.thumbprint)}"
    if each.place == "trusted" and each.kind == "authority":
        yield "      It is an authority: every server whose certificate it issues is trusted with it."
    for other in before:
        same = other.thumbprint == each.thumbprint
        if same and other.place == "rejected" and not other.fault.endswith(("trusted yet", "by hand", "in its place")):
            yield f"      It was rejected for this, which accepting it may not mend: {other.fault}"
        if not same and each.uri and other.uri == each.uri and other.place == "trusted":
            yield f"      Another one of this application is trusted besides; if it is no longer used: --remove {other.name}"
    yield "Compare the thumbprint with what the server shows; take it back with: edge-agent trust --remove NAME"


def removed(each: "Certificate") -> Iterator[str]:
    yield f"no longer trusted: {each.name}, {each.subject}"
    if each.thumbprint:
        yield f"      thumbprint {spaced(each.thumbprint)}"
    yield "In force from the next connection on; to end one that is open now, restart the agent."


def exported(each: "Certificate", file: Path) -> Iterator[str]:
    yield f"our own certificate is written to {file}; let the server trust it"
    yield f"      application {each.uri}"
    yield f"      thumbprint  {spaced(each.thumbprint)}"
    yield f"      valid until {day(each.valid_until_us)}"
    yield f"      it lies in  {each.file}"


def as_json(each: "Certificate", now_us: int) -> dict[str, Any]:
    facts = asdict(each)
    for key in ("valid_from", "valid_until", "since"):
        time_us = facts.pop(f"{key}_us")
        facts[key] = iso(time_us) if time_us else None
    facts["days_left"] = (each.valid_until_us - now_us) // DAY_US if each.valid_until_us else None
    return facts


def spaced(digits: str) -> str:
    """`3F2A 91AA …`: easier to compare."""
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def utc(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC)


def day(time_us: int) -> str:
    return f"{utc(time_us):%Y-%m-%d}"


def minute(time_us: int) -> str:
    return f"{utc(time_us):%Y-%m-%d %H:%M} UTC"


def iso(time_us: int) -> str:
    return f"{utc(time_us):%Y-%m-%dT%H:%M:%SZ}"
