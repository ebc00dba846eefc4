"""The folder of certificates: our own, those that are trusted, those that complete a chain, those that were refused.

Rule 1: what is trusted is bytes: two certificates are one when their DER is; a name or a thumbprint only finds cert.
Rule 2: our own certificate is made once, since servers know us by it: one that cannot be used is told, never replaced.
Rule 3: a file is written beside its place and renamed into it: a crash, or another process, finds all of it or nothing.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drivers import opcua_certificate as cert
from edge_agent.contract import SECOND_US, Certificate

OWN, TRUSTED, ISSUERS, REJECTED = "own", "trusted", "issuers", "rejected"
OWN_CERTIFICATE, OWN_KEY = "certificate.der", "key.pem"
CERTIFICATES = frozenset({".der", ".crt", ".cer", ".pem"})
REVOCATIONS = ".crl"
FILE_MAX = 10_000_000
"""bytes of one file: a revocation list of a large authority has some megabytes."""
REJECTED_MAX = 100
"""They come from the network: whoever calls often enough pushes out the oldest, and fills no disk."""
THUMBPRINT_DIGITS_MIN = 6
KEY_BITS_MIN, KEY_BITS_MAX = 2048, 4096
"""RSA keys of Basic256Sha256, Aes128_Sha256_RsaOaep and Aes256_Sha256_RsaPss alike: OPC UA Part 7, 6.6."""
VALID_DAYS = 3652
"""Ten years. Every server's administrator must accept a new one by hand: an unattended device that changes its certificate
each year falls silent each year. It is watched (`opcua_expiry`), and can be replaced by hand at any time."""
CLOCK_MARGIN = timedelta(days=1)
"""Our certificate is valid from a day before it is made: a server whose clock is late, or in local time, takes it too."""
PROBE = b"edge-agent"
MADE_FROM_US = 1_767_225_600 * SECOND_US
"""2026-01-01. A clock before this has not been set: what it makes would have expired when it is."""
OTHERS_MAY = 0o037
"""Rights on a key file that nobody but its owner may have; its group may read it, as with TLS keys."""


@dataclass(frozen=True, slots=True)
class Own:
    """Our certificate and its key, all in DER; the key as PKCS 8, without a passphrase."""

    certificate: bytes
    issuers: bytes
    """Those that follow it in its file: a server that trusts only the authority needs them."""
    key: bytes = field(repr=False)
    application_uri: str
    about: Certificate


@dataclass(frozen=True, slots=True)
class Known:
    """What the folder says: certificates that are trusted, others that complete chains, and lists of revoked ones."""

    trusted: Sequence[x509.Certificate]
    issuers: Sequence[x509.Certificate]
    revocations: Sequence[x509.CertificateRevocationList]
    unreadable: Sequence[str]
    """Names of files that are neither, or may not be read."""


@dataclass(frozen=True, slots=True)
class Store:
    """The folder as the command line sees it. See contract.CertificateStore."""

    folder: Path

    def all(self, now_us: int) -> Sequence[Certificate]:
        return list_certificates(self.folder, now_us)

    def find(self, name: str, place: str = "") -> Certificate:
        return _found(self.folder, name, (place,) if place else (OWN, TRUSTED, ISSUERS, REJECTED))

    def accept(self, name: str, issuer: bool) -> Certificate:
        return accept(self.folder, name, issuer)

    def remove(self, name: str, now_us: int) -> Certificate:
        return refuse(self.folder, name, now_us)

    def add(self, data: bytes, issuer: bool) -> Sequence[Certificate]:
        return add(self.folder, data, issuer)

    def own(self, hostname: str, now_us: int) -> tuple[Certificate, bytes]:
        own = own_certificate(self.folder, hostname, now_us)
        return own.about, own.certificate


# -------------------------------------------------------------------------------------------------------- our own


def own_certificate(folder: Path, hostname: str, now_us: int) -> Own:
    """Our own certificate in this folder; made when there is none. Blocks for 0.1 … 1 s then: call it in a thread.

    Two processes that start at once agree on one. Raises ValueError in words when it cannot be used, OSError as it comes.
    """
    there = folder / OWN
    certificate, key = there / OWN_CERTIFICATE, there / OWN_KEY
    if not certificate.exists() and not key.exists():
        _make_own(folder, hostname, now_us)
    for half, other in ((certificate, key), (key, certificate)):
        if not half.exists():
            raise ValueError(
                f"{half} is missing, while {other.name} is there; put it back from a backup, or remove {there} to have a "
                "new pair made, which every server must then trust anew"
            )
    return load_own(certificate, key, now_us)


def load_own(certificate: Path, key: Path, now_us: int) -> Own:
    """A certificate and its key as somebody laid them down, DER or PEM.

    Raises ValueError in words when they cannot be used: unreadable, not of each other, a key for all to read, expired, no
    ApplicationUri. OSError as it comes.
    """
    if others := key.stat().st_mode & OTHERS_MAY:
        raise ValueError(f"{key} may be read or changed by others (mode {others:04o} too much): chmod 600 {key}")
    return _pair(_read(certificate), certificate, _read(key), str(key), now_us)


def pair_in(text: str, name: str, now_us: int, of_user: bool = False) -> Own:
    """A certificate and its private key, both in one PEM text; name: of the secret that it is, for people.

    of_user: of a person or a client program, which needs no ApplicationUri. Raises ValueError in words.
    """
    return _pair(text.encode(), Path(name), text.encode(), f"secret {name}", now_us, of_user)


def _pair(certificate: bytes, path: Path, key: bytes, key_name: str, now_us: int, of_user: bool = False) -> Own:
    chain = cert.certificates_in(certificate, path)
    leaf = chain[0]
    private = _private_key(key, key_name)
    if private.public_key() != leaf.public_key():
        raise ValueError(f"{key_name} is not the key of {path}: they belong to two different pairs")
    if not _signs(private):
        raise ValueError(f"{key_name} is damaged: what it signs is not valid; put it back from a backup")
    about = cert.described(leaf, OWN, path)
    if not about.uri and not of_user:
        raise ValueError(
            f"{path} has no ApplicationUri (a URI among its subject's alternative names), which OPC UA needs; have "
            "one issued with it, such as urn:HOSTNAME:edge-agent"
        )
    if fault := cert.validity_fault(leaf, now_us):
        raise ValueError(f"our certificate {path} {fault}")
    pkcs8 = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Own(
        cert.der(leaf), b"".join(map(cert.der, chain[1:])), pkcs8, next(iter(cert.application_uris(leaf)), ""), about
    )


def _signs(private: rsa.RSAPrivateKey) -> bool:
    """Whether the parts of the key belong together: damaged ones sign wrongly, or not at all."""
    try:
        signature = private.sign(PROBE, padding.PKCS1v15(), hashes.SHA256())
        private.public_key().verify(signature, PROBE, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError, InternalError):
        return False
    return True


def _private_key(data: bytes, path: str) -> rsa.RSAPrivateKey:
    load = serialization.load_pem_private_key if b"-----BEGIN" in data else serialization.load_der_private_key
    try:
        # The library would examine the primes for 50 ms, in which nothing else runs; `_pair` has it sign instead.
        key = load(data, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise ValueError(
            f"{path} has a passphrase, which nobody could give at start; store the key without one"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path} cannot be read as a private key; put it back from a backup") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError(f"{path} is no RSA key, which the security policies of edge-agent need")  # noqa: TRY004  # a file's fault
    if not KEY_BITS_MIN <= key.key_size <= KEY_BITS_MAX:
        raise ValueError(f"{path} has {key.key_size} bits; every security policy wants {KEY_BITS_MIN} … {KEY_BITS_MAX}")
    return key


def _make_own(folder: Path, hostname: str, now_us: int) -> None:
    """Both files at once: a folder is renamed into its place, which fails when another process was faster."""
    if now_us < MADE_FROM_US:
        raise ValueError(
            f"our certificate is not made yet, since the clock says {cert.day(now_us)}: it would have expired once that is "
            "right; set the clock"
        )
    key = rsa.generate_private_key(65537, KEY_BITS_MIN)
    certificate = _self_signed(key, hostname, now_us)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _make_folder(folder)
    new = Path(tempfile.mkdtemp(prefix=f".{OWN}-", dir=folder))  # 0700
    try:
        _hand_over(new, folder)
        _write(new / OWN_KEY, pem, 0o600)
        _write(new / OWN_CERTIFICATE, cert.der(certificate), 0o644)
        new.rename(folder / OWN)
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _self_signed(key: rsa.RSAPrivateKey, hostname: str, now_us: int) -> x509.Certificate:
    """An application instance certificate: OPC UA Part 6, 6.2.2."""
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", hostname).strip("-.")[:63] or "localhost"
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "edge-agent"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "edge-agent"),
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, host),
        ]
    )
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:{host}:edge-agent"), x509.DNSName(host)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    made = cert.utc(now_us).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(made - CLOCK_MARGIN)
        .not_valid_after(made + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, content_commitment=True, key_encipherment=True, data_encipherment=True,
                key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(  # many servers look for serverAuth in every certificate, a client's too
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(names, critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- what a person does


def list_certificates(folder: Path, now_us: int) -> list[Certificate]:
    """Our own, the trusted ones, issuers and rejected ones; each with what is wrong with it."""
    listed = []
    for each in _all(folder):
        wrong = each.fault
        if each.place == OWN and not wrong:
            wrong = _own_fault(folder, now_us)
        elif each.place != REJECTED and not wrong and each.valid_until_us:
            wrong = cert.period_fault(each.valid_from_us, each.valid_until_us, now_us)
        listed.append(replace(each, fault=wrong))
    if not any(each.place == OWN for each in listed) and (folder / OWN / OWN_KEY).exists():
        path = folder / OWN / OWN_CERTIFICATE
        listed.insert(0, Certificate(OWN, OWN_CERTIFICATE, "unreadable", str(path), _own_fault(folder, now_us)))
    return listed


def _own_fault(folder: Path, now_us: int) -> str:
    try:
        own_certificate(folder, "", now_us)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def accept(folder: Path, name: str, issuer: bool = False) -> Certificate:
    """Trust a rejected certificate; with `issuer` it only completes the chains of others. Once more does no harm.

    Raises LookupError when nothing has this name, ValueError when several have it.
    """
    place = ISSUERS if issuer else TRUSTED
    try:
        found = _found(folder, name, (REJECTED,))
    except LookupError:
        return _found(folder, name, (place,))
    certificate = cert.certificates_in(_read(Path(found.file)), Path(found.file))[0]
    kept = _keep(folder / place, cert.der(certificate))
    _forget(Path(found.file))
    return cert.described(certificate, place, kept)


def refuse(folder: Path, name: str, now_us: int) -> Certificate:
    """Trust it no longer, nor let it complete a chain: all its copies go, and it lies among the rejected ones.

    A list of revoked ones, or a file that cannot be read, is deleted. Raises LookupError or ValueError in words.
    """
    found = _found(folder, name, (TRUSTED, ISSUERS))
    copies = {
        Path(each.file)
        for each in _all(folder)
        if each.place in (TRUSTED, ISSUERS) and (each.sha256 or each.file) == (found.sha256 or found.file)
    }
    for path in copies:
        if found.sha256:
            certificates = cert.certificates_in(_read(path), path)
            if len(certificates) > 1:
                raise ValueError(
                    f"{path} holds {len(certificates)} certificates; delete the file, or cut this one out of it"
                )
            reject(folder, cert.der(certificates[0]), "removed", "removed by hand", now_us)
        path.unlink()
    return replace(found, place=REJECTED)


def add(folder: Path, data: bytes, issuer: bool = False) -> list[Certificate]:
    """Trust the certificates of a file that somebody brought, or take up its list of revoked ones; DER or PEM.

    Raises ValueError in words when it is neither.
    """
    place = ISSUERS if issuer else TRUSTED
    if len(data) > FILE_MAX:
        raise ValueError(f"the file is longer than {FILE_MAX // 1_000_000} MB, which no certificate is")
    if b"PRIVATE KEY" in data:
        raise ValueError("the file holds a private key, which belongs to its owner alone; give only the certificate")
    revoked = cert.revocations_in(data)
    if revoked is not None:
        name = cert.file_name(
            cert.text_of_name(revoked.issuer), hashlib.sha1(data, usedforsecurity=False).hexdigest()[:12], REVOCATIONS
        )
        _make_folder(folder / place)
        _write(folder / place / name, data, 0o644)
        return [cert.described_revocations(revoked, place, folder / place / name)]
    certificates = cert.certificates_in(data, None)
    return [cert.described(each, place, _keep(folder / place, cert.der(each))) for each in certificates]


def reject(folder: Path, certificate: bytes, code: str, why: str, now_us: int) -> str:
    """Lay a refused certificate (DER) down for a person to look at, once, and note why; returns its name.

    Written only when it is new or refused for another reason: a server is tried again and again. The oldest go.
    """
    path = _keep(folder / REJECTED, certificate)
    note = _note(path)
    if note.get("code") != code:
        since_us = note.get("since_us", now_us)
        text = json.dumps({"since_us": since_us, "code": code, "why": why}, ensure_ascii=False)
        _write(path.with_suffix(".json"), text.encode(), 0o644)
        old = sorted(_files(folder / REJECTED), key=_since_us)[:-REJECTED_MAX]
        for each in old:
            if each != path:
                _forget(each)
    return path.stem


def _found(folder: Path, name: str, places: Sequence[str]) -> Certificate:
    """The one that is meant. Raises LookupError or ValueError in words."""
    wanted = name.casefold()
    digits = re.sub(r"[\s:]", "", name).upper()
    by_digits = len(digits) >= THUMBPRINT_DIGITS_MIN and re.fullmatch(r"[0-9A-F]+", digits)
    found: dict[str, Certificate] = {}
    for each in _all(folder):
        names = {each.name.casefold(), Path(each.file).name.casefold(), each.common_name.casefold()}
        if each.place in places and (wanted in names or (by_digits and each.thumbprint.startswith(digits))):
            found.setdefault(each.thumbprint or each.file, each)
    if not found:
        raise LookupError(f"no certificate {cert.plain(name)!r} among {', '.join(places)}")
    if len(found) > 1:
        some = "; ".join(f"{each.name} (thumbprint {each.thumbprint}, {each.place})" for each in found.values())
        raise ValueError(f"{cert.plain(name)!r} may mean several, name one by its thumbprint: {some}")
    return next(iter(found.values()))


# ------------------------------------------------------------------------------------------------- what is in the folder


def known(folder: Path) -> Known:
    """What is trusted, as it lies there now. Raises OSError when the folder is there and cannot be read."""
    trusted: list[x509.Certificate] = []
    issuers: list[x509.Certificate] = []
    revocations: list[x509.CertificateRevocationList] = []
    unreadable: list[str] = []
    for place, into in ((TRUSTED, trusted), (ISSUERS, issuers)):
        for path in _files(folder / place):
            try:
                data = _read(path)
                revoked = cert.revocations_in(data)
                if revoked is not None:
                    revocations.append(revoked)
                else:
                    into.extend(cert.certificates_in(data, path))
            except (ValueError, OSError):  # one file with wrong rights must not cut off all servers
                unreadable.append(f"{place}/{cert.plain(path.name)}")
    return Known(trusted, issuers, revocations, unreadable)


def _all(folder: Path) -> Iterator[Certificate]:
    for place in (OWN, TRUSTED, ISSUERS, REJECTED):
        for path in _files(folder / place):
            if place != OWN or path.name == OWN_CERTIFICATE:
                yield from _described_file(path, place)


def _described_file(path: Path, place: str) -> Iterator[Certificate]:
    try:
        data = _read(path)
        revoked = cert.revocations_in(data)
        if revoked is not None:
            yield cert.described_revocations(revoked, place, path)
            return
        note = _note(path) if place == REJECTED else {}
        for each in cert.certificates_in(data, path):
            about = cert.described(each, place, path)
            yield replace(about, fault=cert.plain(str(note.get("why", ""))), since_us=_since_us(path) if note else 0)
    except (ValueError, OSError) as error:
        yield Certificate(place, cert.plain(path.stem), "unreadable", str(path), cert.plain(str(error)))


def _files(folder: Path) -> list[Path]:
    """Certificates and lists of revoked ones, by name; none where there is no folder."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208  # of a missing folder, glob says nothing in 3.11
    except FileNotFoundError:
        return []
    wanted = CERTIFICATES | {REVOCATIONS}
    return [folder / name for name in names if Path(name).suffix.lower() in wanted and not name.startswith(".")]


def _note(path: Path) -> dict[str, Any]:
    """What was noted of a rejected certificate; nothing when that cannot be read."""
    try:
        note = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _since_us(path: Path) -> int:
    since_us = _note(path).get("since_us", 0)
    return since_us if isinstance(since_us, int) else 0


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def _keep(folder: Path, certificate: bytes) -> Path:
    """Where this certificate lies in the folder; written when it does not yet."""
    name = cert.common_name(cert.parsed(certificate))
    digits = hashlib.sha1(certificate, usedforsecurity=False).hexdigest()
    _make_folder(folder)
    path = folder / cert.file_name(name, digits[:12], ".der")
    if path.exists() and _read(path) != certificate:
        # Two that share their first digits were made to do so; they are kept apart all the same.
        path = folder / cert.file_name(name, digits, ".der")
    if not path.exists():
        _write(path, certificate, 0o644)
    return path


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ValueError(f"{path} is longer than {FILE_MAX // 1_000_000} MB, which no certificate is")
    return data


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor, new = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            _hand_over(file.fileno(), path.parent)
            file.flush()
            os.fsync(file.fileno())
        Path(new).rename(path)
    except BaseException:
        with suppress(OSError):
            Path(new).unlink()
        raise
    _sync(path.parent)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        if not folder.parent.is_dir():
            _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _hand_over(folder, folder.parent)


def _hand_over(what: Path | int, folder: Path) -> None:
    """What root makes for the agent belongs to whom the folder around it belongs to: else the agent could not use it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(what, owner.st_uid, owner.st_gid)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
