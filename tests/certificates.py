"""Certificates of every kind, good and bad, as servers and authorities have them; keys are made once a process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
DAY_US = 86_400_000_000
SERVER = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_cert_sign")
AUTHORITY = ("key_cert_sign", "crl_sign")
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
SHA256_RSA, SHA1_RSA = bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105")


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any = field(repr=False)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return pem_of(self.key)

    @property
    def thumbprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA1()).hex().upper()


def pem_of(key: Any, passphrase: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    text: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
    return text


def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """number: which of several of this length; a server has 0, an authority 1 where nothing is said."""
    return _rsa_key(bits, number)


@cache
def _rsa_key(bits: int, number: int) -> rsa.RSAPrivateKey:  # the number only tells them apart
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name_of(common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common_name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")]
    )


def make(
    common_name: str = "PLC 7",
    *,
    issuer: Made | None = None,
    uri: str | None = "urn:plc7:server",
    hosts: Sequence[str] = ("plc7", "192.0.2.7"),
    authority: bool = False,
    path_length: int | None = None,
    usage: Sequence[str] | None = None,
    extended: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.SERVER_AUTH,),
    valid_days: tuple[float, float] = (-10, 355),
    key: Any = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Made:
    """A server's certificate, or with `authority` one that issues others; self-signed without an issuer.

    valid_days: from … to, counted from NOW. usage, extended: None leaves the extension out (usage None: the usual one).
    """
    key = key or rsa_key(2048, int(authority))
    usage = usage if usage is not None else (AUTHORITY if authority else SERVER)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(common_name))
        .issuer_name(issuer.certificate.subject if issuer else name_of(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=valid_days[0]))
        .not_valid_after(NOW + timedelta(days=valid_days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=path_length), critical=True)
    )
    if usage:
        builder = builder.add_extension(x509.KeyUsage(**{each: each in usage for each in USAGES}), critical=True)
    if not authority:
        named: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else []
        named += [x509.IPAddress(ip_address(each)) if each[0].isdigit() else x509.DNSName(each) for each in hosts]
        if named:
            builder = builder.add_extension(x509.SubjectAlternativeName(named), critical=False)
        if extended:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(extended)), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return Made(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def authority(common_name: str = "Plant CA", **words: Any) -> Made:
    return make(common_name, authority=True, **words)


def revocations(
    issuer: Made, *revoked: Made, next_days: float = 30, key: Any = None, only_authorities: bool = False
) -> bytes:
    """The issuer's list of revoked certificates, DER. key: of somebody else who signs it."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW - timedelta(days=60))
        .next_update(NOW + timedelta(days=next_days))
    )
    for each in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(each.certificate.serial_number)
            .revocation_date(NOW - timedelta(days=3))
            .build()
        )
    if only_authorities:
        scope = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
        builder = builder.add_extension(scope, critical=True)
    signed = builder.sign(key or issuer.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.DER)


def with_sha1(made: Made) -> Made:
    """The same, self-signed with SHA-1, which no library signs with any more: the bytes are changed and signed anew."""
    inside = made.certificate.tbs_certificate_bytes.replace(SHA256_RSA, SHA1_RSA)
    signature = made.key.sign(inside, padding.PKCS1v15(), hashes.SHA1())
    der = made.der.replace(made.certificate.tbs_certificate_bytes, inside).replace(SHA256_RSA, SHA1_RSA)
    return Made(x509.load_der_x509_certificate(der.replace(made.certificate.signature, signature)), made.key)


def broken(made: Made) -> bytes:
    """One bit of its signature is another: DER."""
    return made.der[:-1] + bytes([made.der[-1] ^ 1])
