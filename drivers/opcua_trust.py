"""The verdict on a server's certificate: trusted, or refused with one sentence that says what to do.

Rule 1: whatever comes, `judge` raises nothing, and what it did not understand is refused.
Rule 2: every refusal names the certificate, what is wrong with it, and who can mend that how.
The steps are those of OPC UA Part 4, 6.1.3. Trust is asked last but for what hangs on it, so that nobody is told to accept
a certificate that would be refused all the same; the outcome does not depend on the order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from drivers import opcua_certificate as cert
from drivers import opcua_pki as pki
from edge_agent.contract import Expiry

CHAIN_BYTES_MAX = 100_000
CHAIN_MAX = 10
"""Certificates from the server's to the root."""
HASHES = frozenset({"sha256", "sha384", "sha512"})
"""Under a certificate's signature. SHA-1 and MD5 can be forged."""
UNDERSTOOD = (
    x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName, x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier, x509.CertificatePolicies, x509.CRLDistributionPoints,
)  # fmt: skip
"""Extensions that may be critical: whoever does not act on one must refuse the certificate (RFC 5280, 4.2)."""
GOOD, INVALID, POLICY = "Good", "BadCertificateInvalid", "BadCertificatePolicyCheckFailed"
NEW_ONE = "have the server's certificate made anew"
NOTHING_KNOWN = pki.Known((), (), (), ())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the server's certificate is held against. host: of the url that we connect to."""

    application_uri: str
    host: str


@dataclass(frozen=True, slots=True)
class Strictness:
    """What a person may decide.

    check_host: whether another host than the certificate names is refused. None: it is where the trust comes from an
    issuer, which vouches for many machines; of a certificate that was itself accepted (its bytes were compared: it is
    this machine, under whatever address) it is a warning. False: not even that.
    need_revocations: whether trust by an issuer needs that issuer's list of revoked certificates. Without it a stolen key
    could never be called back, and a person who sets up an authority is there to lay its list down; a certificate that was
    itself accepted needs none, since removing it is its revocation. A list that has become old still counts, with a
    warning: readings do not end because somebody forgot to renew a list.
    """

    check_host: bool | None = None
    need_revocations: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """code: the status of OPC UA Part 4, 7.39, `Good` when trusted. words: why not; '' when trusted.

    name: by which `edge-agent trust NAME` finds the certificate, '' when nothing could be read of it.
    thumbprints: of the server's certificate and its issuers, SHA-1 in upper hex. warnings: told also when it is trusted.
    """

    trusted: bool
    code: str
    words: str
    warnings: tuple[str, ...] = ()
    name: str = ""
    certificate: bytes = b""
    """The server's, DER: what the channel must be opened with."""
    thumbprints: tuple[str, ...] = ()
    expiries: tuple[Expiry, ...] = ()
    """When the server's certificate and its issuers end; only when it is trusted."""


class _Refused(Exception):
    """Ends the steps. wrong: what, of which certificate; to_do: by whom it is mended how, {name} is what finds it."""

    def __init__(self, code: str, wrong: str, to_do: str) -> None:
        super().__init__(wrong)
        self.code = code
        self.wrong = wrong
        self.to_do = to_do


@dataclass(slots=True)
class _Case:
    """What is judged. chain: from the server's certificate to the root, as far as it is built."""

    endpoint: Endpoint
    strictness: Strictness
    now_us: int
    sent: Sequence[x509.Certificate] = ()
    known: pki.Known = NOTHING_KNOWN
    chain: list[x509.Certificate] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def leaf(self) -> x509.Certificate:
        return self.sent[0]

    @property
    def pinned(self) -> bool:
        """Whether the server's certificate was itself accepted."""
        return self.leaf in self.known.trusted

    def called(self, certificate: x509.Certificate) -> str:
        whose = "the server's certificate" if certificate == self.leaf else "the issuer's certificate"
        return f"{whose} {_title(certificate)}"


USUAL = Strictness()


def judge(chain: bytes, endpoint: Endpoint, folder: Path, now_us: int, strictness: Strictness = USUAL) -> Verdict:
    """Whether this server is one that we trust.

    chain: the server's certificate, its issuers may follow, DER; folder: see `pki`; now_us: UTC.
    A certificate that is refused and can be read lies in `rejected` afterwards. Raises nothing.
    """
    case = _Case(endpoint, strictness, now_us)
    try:
        case.sent = _read_chain(chain)
        case.known = pki.known(folder)
        for step in STEPS:
            step(case)
    except _Refused as refused:
        return _refusal(case, folder, refused)
    except OSError as error:
        wrong = f"the folder of certificates cannot be read ({error.filename}: {error.strerror})"
        return _refusal(case, folder, _Refused("BadInternalError", wrong, "give it back to the agent's user"))
    except Exception as error:  # noqa: BLE001  # bytes of a stranger: what no step foresaw is refused, not raised
        wrong = f"the server's certificate cannot be understood ({cert.plain(str(error)) or type(error).__name__})"
        return _refusal(case, folder, _Refused(INVALID, wrong, NEW_ONE))
    expiries = tuple(cert.expiry(each, "issuer" if above else "server") for above, each in enumerate(case.chain))
    return replace(_verdict(case, GOOD, "", ""), expiries=expiries)


def _verdict(case: _Case, code: str, words: str, name: str) -> Verdict:
    leaf = cert.der(case.sent[0]) if case.sent else b""
    chain = case.chain or case.sent[:1]
    thumbprints = tuple(map(cert.thumbprint, chain))
    return Verdict(code == GOOD, code, words, tuple(case.warnings), name, leaf, thumbprints)


def _refusal(case: _Case, folder: Path, refused: _Refused) -> Verdict:
    """Lay the certificate down for a person to look at, and say it; where that cannot be done its thumbprint names it."""
    name = ""
    if case.sent:
        try:
            name = pki.reject(folder, cert.der(case.leaf), refused.code, refused.wrong, case.now_us)
        except (OSError, ValueError):
            name = cert.thumbprint(case.leaf)
    return _verdict(case, refused.code, f"{refused.wrong}; {refused.to_do.replace('{name}', name)}", name)


# ------------------------------------------------------------------------------------------------------- the steps


def _read_chain(chain: bytes) -> list[x509.Certificate]:
    if not chain:
        raise _Refused("BadSecurityChecksFailed", "the server sent no certificate", "switch security on in the server")
    if len(chain) > CHAIN_BYTES_MAX:
        wrong = f"the server sent {len(chain)} bytes as its certificate, {CHAIN_BYTES_MAX} are the most"
        raise _Refused(INVALID, wrong, NEW_ONE)
    try:
        parts = cert.split(chain)
        if len(parts) > CHAIN_MAX:
            raise ValueError(f"{len(parts)} certificates came, {CHAIN_MAX} are the most")
        return [cert.parsed(part) for part in parts]
    except ValueError as error:
        raise _Refused(INVALID, f"what the server sent is no certificate ({error})", NEW_ONE) from error


def _build_chain(case: _Case) -> None:
    """From the server's certificate up to a root that signed itself; each signature is checked on the way."""
    current = case.leaf
    while True:
        case.chain.append(current)
        _check_algorithms(case, current)
        issuer = current if current.subject == current.issuer else _issuer_of(case, current)
        if not _signed(current, issuer):
            wrong = f"the signature of {case.called(current)} is broken"
            raise _Refused(INVALID, wrong, f"it was changed after it was issued: {NEW_ONE}")
        if issuer == current:
            return
        if len(case.chain) == CHAIN_MAX:
            wrong = f"{case.called(case.leaf)} has more than {CHAIN_MAX - 1} issuers above it"
            raise _Refused("BadCertificateChainIncomplete", wrong, NEW_ONE)
        current = issuer


def _issuer_of(case: _Case, certificate: x509.Certificate) -> x509.Certificate:
    """Of those with the issuer's name one that signed it, rather a valid and a trusted one (an authority renews its own)."""
    named = [
        each
        for each in (*case.sent[1:], *case.known.trusted, *case.known.issuers)
        if each.subject == certificate.issuer and each != certificate
    ]
    if not named:
        wrong = f"{case.called(certificate)} was issued by {cert.text_of_name(certificate.issuer)}, which is not here"
        to_do = "get that issuer's certificate, then: edge-agent trust --issuer --import FILE"
        raise _Refused("BadCertificateChainIncomplete", wrong, to_do)
    signed = [each for each in named if _signed(certificate, each)]
    return max(
        signed or named,
        key=lambda each: (not cert.validity_fault(each, case.now_us), each in case.known.trusted),
    )


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _check_algorithms(case: _Case, certificate: x509.Certificate) -> None:
    what, key = cert.hash_name(certificate), certificate.public_key()
    if what not in HASHES:
        wrong = (
            f"{case.called(certificate)} is signed with {what.upper() or 'an unknown algorithm'}, which can be forged"
        )
        raise _Refused(POLICY, wrong, f"{NEW_ONE} with SHA-256")
    if not isinstance(key, rsa.RSAPublicKey):
        raise _Refused(POLICY, f"{case.called(certificate)} has no RSA key", f"{NEW_ONE} with RSA 2048")
    if not pki.KEY_BITS_MIN <= key.key_size <= pki.KEY_BITS_MAX:
        wrong = f"{case.called(certificate)} has an RSA key of {key.key_size} bits, outside {pki.KEY_BITS_MIN} … "
        raise _Refused(POLICY, f"{wrong}{pki.KEY_BITS_MAX}", f"{NEW_ONE} with RSA 2048")


def _check_validity(case: _Case) -> None:
    for each in case.chain:
        if fault := cert.validity_fault(each, case.now_us):
            code = "BadCertificateTimeInvalid" if each == case.leaf else "BadCertificateIssuerTimeInvalid"
            raise _Refused(code, f"{case.called(each)} {fault}", f"set the clock that is wrong, or {NEW_ONE}")


def _check_issuers(case: _Case) -> None:
    """Each is an authority that may issue certificates, and has no more of them below it than it allows."""
    for below, each in enumerate(case.chain[1:]):
        basic, usage = cert.extension(each, x509.BasicConstraints), cert.extension(each, x509.KeyUsage)
        if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
            wrong = f"{case.called(case.chain[below])} was signed by {_title(each)}, which is no authority"
            raise _Refused("BadCertificateIssuerUseNotAllowed", wrong, f"{NEW_ONE} by an authority, or self-signed")
        if basic.path_length is not None and below > basic.path_length:
            wrong = f"{case.called(each)} allows {basic.path_length} authorities below it, here are {below}"
            raise _Refused("BadCertificateIssuerUseNotAllowed", wrong, "have the authority set right")


def _check_critical(case: _Case) -> None:
    for each in case.chain:
        for extension in each.extensions:
            if extension.critical and not isinstance(extension.value, UNDERSTOOD):
                wrong = f"{case.called(each)} has the critical extension {extension.oid.dotted_string}, unknown to edge-agent"
                raise _Refused("BadCertificateUseNotAllowed", wrong, f"{NEW_ONE} without it")


def _check_uri(case: _Case) -> None:
    named, wanted = cert.application_uris(case.leaf), case.endpoint.application_uri
    if not named or wanted not in named:
        itself = cert.plain(wanted) or "without a name"
        wrong = f"{case.called(case.leaf)} is for {cert.plain(named[0]) if named else 'no ApplicationUri'}, "
        to_do = f"if this is the right server, {NEW_ONE} for its ApplicationUri"
        raise _Refused("BadCertificateUriInvalid", f"{wrong}while the server calls itself {itself}", to_do)


def _check_usage(case: _Case) -> None:
    """It may sign, and encrypt for its holder: OPC UA Part 6, 6.2.2. Without these extensions it may be used for all."""
    usage = cert.extension(case.leaf, x509.KeyUsage)
    if usage is not None and not (usage.digital_signature and (usage.key_encipherment or usage.data_encipherment)):
        wrong = f"{case.called(case.leaf)} may not be used to sign and to encrypt (its key usage)"
        raise _Refused("BadCertificateUseNotAllowed", wrong, f"{NEW_ONE} with digitalSignature and keyEncipherment")
    extended = cert.extension(case.leaf, x509.ExtendedKeyUsage)
    allowed = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if extended is not None and allowed.isdisjoint(extended):
        wrong = f"{case.called(case.leaf)} is not for servers (its extended key usage lacks serverAuth)"
        raise _Refused("BadCertificateUseNotAllowed", wrong, f"{NEW_ONE} with serverAuth")


def _check_revoked(case: _Case) -> None:
    for each, issuer in pairwise(case.chain):
        for revoked in _revocations_of(case, issuer):
            entry = revoked.get_revoked_certificate_by_serial_number(each.serial_number)
            if entry is not None:
                code = "BadCertificateRevoked" if each == case.leaf else "BadCertificateIssuerRevoked"
                since = cert.day(cert.to_us(entry.revocation_date_utc))
                wrong = f"{case.called(each)} was revoked by {_title(issuer)} on {since}"
                raise _Refused(code, wrong, f"ask who runs that authority; if the server is in order, {NEW_ONE}")


def _revocations_of(case: _Case, issuer: x509.Certificate) -> list[x509.CertificateRevocationList]:
    """Those that this issuer signed itself."""
    return [each for each in case.known.revocations if each.issuer == issuer.subject and _is_signed_by(each, issuer)]


def _is_signed_by(revoked: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    try:
        return isinstance(key, rsa.RSAPublicKey) and revoked.is_signature_valid(key)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _check_trust(case: _Case) -> None:
    if any(each in case.known.trusted for each in case.chain):
        return
    if (other := _other_of_its_name(case)) is not None:
        wrong = f"{case.called(case.leaf)} is not trusted yet, while {_title(other)} of the same application is: either the "
        wrong += "server was given a new one, or another machine answers in its place"
    elif len(case.chain) == 1:
        wrong = f"{case.called(case.leaf)} is not trusted yet"
    else:
        wrong = f"neither {case.called(case.leaf)} nor its issuer {_title(case.chain[1])} is trusted yet"
    to_do = "compare the whole thumbprint with what the server shows, then: edge-agent trust {name}"
    raise _Refused("BadCertificateUntrusted", wrong, to_do)


def _other_of_its_name(case: _Case) -> x509.Certificate | None:
    """A trusted certificate of the same application."""
    uris = set(cert.application_uris(case.leaf))
    return next((each for each in case.known.trusted if not uris.isdisjoint(cert.application_uris(each))), None)


def _check_host(case: _Case) -> None:
    strict = not case.pinned if case.strictness.check_host is None else case.strictness.check_host
    if case.strictness.check_host is False or cert.is_for(case.leaf, case.endpoint.host):
        return
    hosts = ", ".join(cert.hosts(case.leaf)) or "no host"
    wrong = f"{case.called(case.leaf)} is for {hosts}, not for {cert.plain(case.endpoint.host)}, which the url names"
    if strict:
        accepting = "" if case.pinned else ", or accept this one itself: edge-agent trust {name}"
        raise _Refused("BadCertificateHostNameInvalid", wrong, f"name one of these in the url, {NEW_ONE}{accepting}")
    case.warnings.append(f"{wrong}; it was accepted itself, so it is this server all the same")


def _check_revocations(case: _Case) -> None:
    """Whether each issuer's list is there, and how old it is."""
    for issuer in case.chain[1:]:
        lists = [each for each in _revocations_of(case, issuer) if cert.is_whole(each)]
        newest = max((cert.to_us(each.next_update_utc) for each in lists if each.next_update_utc), default=None)
        if lists and newest is not None and newest < case.now_us:
            old = (
                f"the list of certificates that {_title(issuer)} revoked should have been renewed on {cert.day(newest)}"
            )
            case.warnings.append(f"{old}; get the new one, then: edge-agent trust --import FILE")
        elif not lists and not case.pinned:
            wrong = f"the list of certificates that {_title(issuer)} revoked is not here"
            if case.strictness.need_revocations:
                to_do = (
                    "get it, then: edge-agent trust --import FILE; or accept this server alone: edge-agent trust {name}"
                )
                raise _Refused("BadCertificateRevocationUnknown", wrong, to_do)
            case.warnings.append(f"{wrong}, so a stolen key would not be noticed")
    if case.known.unreadable:
        case.warnings.append(
            f"these files cannot be read as certificates and were left aside: {', '.join(case.known.unreadable)}"
        )


STEPS: Sequence[Callable[[_Case], None]] = (
    _build_chain,
    _check_validity,
    _check_issuers,
    _check_critical,
    _check_uri,
    _check_usage,
    _check_revoked,
    _check_trust,
    _check_host,
    _check_revocations,
)


def _title(certificate: x509.Certificate) -> str:
    return f"{cert.common_name(certificate)} (thumbprint {cert.thumbprint(certificate)[:12]})"
