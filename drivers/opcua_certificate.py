"""One certificate, or one list of revoked ones: from bytes to a noun, and to words that may be shown.

Rule: what stands in it was written by a stranger: every text goes through `plain`, and whatever cannot be decoded is found
out in `parsed`, as a ValueError in words.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_agent.contract import Certificate, Expiry

SHOWN_MAX = 200
"""Letters of any text of a certificate that are shown."""
NAME_MAX = 40
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign",
)  # fmt: skip

Extension = TypeVar("Extension", bound=x509.ExtensionType)


def parsed(data: bytes) -> x509.Certificate:
    """One certificate in DER. Raises ValueError in words."""
    try:
        certificate = x509.load_der_x509_certificate(data)
        # Its parts are decoded when they are asked for: better here than in the midst of a verdict.
        _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.not_valid_after_utc
        _ = certificate.not_valid_before_utc, certificate.serial_number, certificate.public_key()
    except (ValueError, TypeError, x509.DuplicateExtension, UnsupportedAlgorithm, Warning) as error:
        raise ValueError(f"it cannot be read: {plain(str(error))}") from error
    if not data.endswith(b"\x00" + certificate.signature):
        # The decoder lets a signature end within a byte: there would be several spellings of one certificate.
        raise ValueError("its signature is no whole number of bytes")
    return certificate


def certificates_in(data: bytes, path: Path | None) -> list[x509.Certificate]:
    """All certificates of a file, DER or PEM, at least one. Raises ValueError in words."""
    where = path or "the file"
    try:
        pem = b"-----BEGIN" in data
        parts = list(map(der, x509.load_pem_x509_certificates(data))) if pem else split(data)
        if not parts:
            raise ValueError("it is empty")
        return [parsed(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"{where} is no certificate in DER or PEM: {plain(str(error))}") from error


def revocations_in(data: bytes) -> x509.CertificateRevocationList | None:
    """The list of revoked certificates that these bytes are; None when they are none."""
    load = x509.load_pem_x509_crl if b"-----BEGIN X509 CRL" in data else x509.load_der_x509_crl
    try:
        revoked = load(data)
        _ = revoked.issuer, revoked.next_update_utc, revoked.last_update_utc, revoked.extensions
    except (ValueError, TypeError, Warning):
        return None
    return revoked


def is_whole(revoked: x509.CertificateRevocationList) -> bool:
    """Whether it speaks of all certificates of its issuer: what limits it stands in a critical extension (RFC 5280, 5.2)."""
    return not any(each.critical for each in revoked.extensions)


def split(chain: bytes) -> list[bytes]:
    """DER certificates that follow one another → each. Raises ValueError when the lengths do not add up."""
    parts = []
    while chain:
        size = _size_of_sequence(chain)
        if size > len(chain):
            raise ValueError(f"{len(chain)} bytes are there of a certificate of {size}")
        parts.append(chain[:size])
        chain = chain[size:]
    return parts


def _size_of_sequence(data: bytes) -> int:
    """Bytes of the SEQUENCE at its start, head and all: ITU-T X.690, 8.1."""
    if len(data) < 2 or data[0] != 0x30:
        raise ValueError("no certificate begins here")
    if data[1] < 0x80:
        return 2 + data[1]
    octets = data[1] & 0x7F
    if not 1 <= octets <= 4 or len(data) < 2 + octets:
        raise ValueError("its length cannot be read")
    return 2 + octets + int.from_bytes(data[2 : 2 + octets], "big")


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def thumbprint(certificate: x509.Certificate) -> str:
    """SHA-1 of its DER in upper hex: what OPC UA servers show (Part 6, 6.2.2). It names, and proves nothing."""
    return hashlib.sha1(der(certificate), usedforsecurity=False).hexdigest().upper()


def described(certificate: x509.Certificate, place: str, path: Path) -> Certificate:
    public = certificate.public_key()
    issues = extension(certificate, x509.BasicConstraints)
    return Certificate(
        place=place,
        name=plain(path.stem),
        kind="authority" if issues is not None and issues.ca else "certificate",
        file=str(path),
        subject=text_of_name(certificate.subject),
        common_name=common_name(certificate),
        issuer=text_of_name(certificate.issuer),
        uri=plain(next(iter(application_uris(certificate)), "")),
        hosts=tuple(hosts(certificate)),
        thumbprint=thumbprint(certificate),
        sha256=certificate.fingerprint(hashes.SHA256()).hex().upper(),
        serial=f"{certificate.serial_number:X}",
        key=f"RSA {public.key_size}" if isinstance(public, rsa.RSAPublicKey) else type(public).__name__,
        signature=hash_name(certificate).upper(),
        usage=tuple(_usages(certificate)),
        valid_from_us=to_us(certificate.not_valid_before_utc),
        valid_until_us=to_us(certificate.not_valid_after_utc),
    )


def described_revocations(revoked: x509.CertificateRevocationList, place: str, path: Path) -> Certificate:
    return Certificate(
        place=place,
        name=plain(path.stem),
        kind="revocations",
        file=str(path),
        subject=f"{len(revoked)} revoked",
        common_name=f"revocations of {text_of_name(revoked.issuer)}",
        issuer=text_of_name(revoked.issuer),
        valid_from_us=to_us(revoked.last_update_utc),
        valid_until_us=to_us(revoked.next_update_utc) if revoked.next_update_utc else 0,
    )


def extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def application_uris(certificate: x509.Certificate) -> list[str]:
    names = extension(certificate, x509.SubjectAlternativeName)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def hosts(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that it is for."""
    names = extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [plain(str(each)) for each in (*names.get_values_for_type(x509.DNSName), *addresses)]


def is_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether it names this host, a name or an address. Some servers write their address among the names."""
    wanted = host.strip("[]").partition("%")[0].rstrip(".").casefold()
    with suppress(ValueError):
        wanted = str(ipaddress.ip_address(wanted))
    return wanted in {each.rstrip(".").casefold() for each in hosts(certificate)}


def hash_name(certificate: x509.Certificate) -> str:
    """The hash under its signature, such as sha256; '' when that is none we know."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    return algorithm.name if algorithm else ""


def _usages(certificate: x509.Certificate) -> Iterator[str]:
    usage = extension(certificate, x509.KeyUsage)
    if usage is not None:
        yield from (name.replace("_", " ") for name in USAGES if getattr(usage, name))
    extended = extension(certificate, x509.ExtendedKeyUsage)
    if extended is not None:
        known_names = {ExtendedKeyUsageOID.SERVER_AUTH: "server", ExtendedKeyUsageOID.CLIENT_AUTH: "client"}
        yield from (known_names.get(each, each.dotted_string) for each in extended)


def expiry(certificate: x509.Certificate, whose: str) -> Expiry:
    """When it ends, for people. whose: see contract.WHOSE."""
    return Expiry(common_name(certificate), whose, to_us(certificate.not_valid_after_utc))


def common_name(certificate: x509.Certificate) -> str:
    """The name in its subject; the whole subject when it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return plain(str(names[0].value)) if names else text_of_name(certificate.subject)


def text_of_name(name: x509.Name) -> str:
    return plain(name.rfc4514_string())


def plain(text: str) -> str:
    """It may be shown: what a stranger wrote moves no cursor, turns no writing round, and is not endless."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:SHOWN_MAX])


def validity_fault(certificate: x509.Certificate, now_us: int) -> str:
    """`expired on …` or `is not valid before …`, with what the clock says; '' while it is valid."""
    return period_fault(to_us(certificate.not_valid_before_utc), to_us(certificate.not_valid_after_utc), now_us)


def period_fault(from_us: int, until_us: int, now_us: int) -> str:
    if now_us > until_us:
        return f"expired on {day(until_us)} (the clock here says {moment(now_us)})"
    if now_us < from_us:
        return f"is not valid before {moment(from_us)} (the clock here says {moment(now_us)})"
    return ""


def to_us(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def utc(now_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=now_us)


def day(time_us: int) -> str:
    return f"{utc(time_us):%Y-%m-%d}"


def moment(time_us: int) -> str:
    return f"{utc(time_us):%Y-%m-%d %H:%M:%S} UTC"


def file_name(name: str, digits: str, suffix: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:NAME_MAX].strip(".-") or "certificate"
    return f"{readable}-{digits[:40]}{suffix}"
