# ruff: noqa: SLF001  # the door: what the library keeps private is used here and nowhere else, at one pinned version
"""The door of asyncua: one secure channel and one session to a server, over which requests are sent as they are asked.

Rule 1: a client is thrown away at the first trouble, never repaired: one that was reconnected has been seen to follow moved
namespaces, to lose values and to stay deaf while it called itself connected.
Rule 2: no task of the library runs beside ours. Its own publish loop, watchdog and supervisor are never started.
Rule 3: whatever the library raises becomes one of the two errors of the contract; nothing of it but its messages goes out.
"""

import asyncio
import errno
import gc
import importlib
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from drivers import opcua_encode as encode
from drivers import opcua_status as status
from drivers.opcua_settings import Connection, SecretRef, policy_and_mode, split_url
from edge_agent.contract import SECOND_US, Clock, DeviceRefused, DeviceSilent, Expiry, Quality

if TYPE_CHECKING:
    from asyncua import ua
    from asyncua.client.client import Client as Library

log = logging.getLogger(__name__)

OPEN_FACTOR = 4
"""A secured session takes ten round trips; all of them together may take this many timeouts."""
CLOSE_S = 1.0
CLOSE_CANCELLED_S = 0.05
"""A cancelled session still says goodbye (servers count sessions), but must be gone within 100 ms."""
SESSION_US, SESSION_MAX_US = 120 * SECOND_US, 3600 * SECOND_US
"""After so long without a request the server ends a session. One that a cut line left behind takes a place until then, and
small controllers have few; who reads more seldom is given three of his periods."""
RENEW_SHARE = 0.75
"""Of the lifetime of a secure channel or session, after which it is renewed: OPC UA Part 4, 5.5.2.1."""
HEADERS_MAX = 512
"""Bytes of a message beside its parameters: its type, and a RequestHeader with an authentication token."""
SERVICE_FAULT = 397
"""ServiceFault_Encoding_DefaultBinary: OPC UA Part 6, A.3."""

REFUSALS = frozenset(
    {
        "BadUserAccessDenied",
        "BadIdentityTokenInvalid",
        "BadIdentityTokenRejected",
        "BadIdentityChangeNotSupported",
        "BadUserSignatureInvalid",
        "BadSecurityChecksFailed",
        "BadSecurityPolicyRejected",
        "BadSecurityModeRejected",
        "BadSecurityModeInsufficient",
        "BadCertificateInvalid",
        "BadCertificateTimeInvalid",
        "BadCertificateUntrusted",
        "BadCertificateUriInvalid",
        "BadCertificateHostNameInvalid",
        "BadCertificateUseNotAllowed",
        "BadCertificateIssuerUseNotAllowed",
        "BadCertificateIssuerTimeInvalid",
        "BadCertificateRevocationUnknown",
        "BadCertificateIssuerRevocationUnknown",
        "BadCertificateRevoked",
        "BadCertificateIssuerRevoked",
        "BadCertificateChainIncomplete",
        "BadCertificatePolicyCheckFailed",
        "BadApplicationSignatureInvalid",
        "BadServiceUnsupported",
        "BadTcpEndpointUrlInvalid",
        "BadLicenseExpired",
        "BadLicenseLimitsExceeded",
    }
)
"""Answers to a whole service that no second try will change: a person must act."""

OF_OURS = {
    "BadCertificateUntrusted": "the server does not trust this agent's certificate; accept it there "
    "(`edge-agent trust --export-own FILE` gives it)",
    "BadSecurityChecksFailed": "the server refuses this agent's certificate, most often because it does not trust it yet; "
    "accept it there (`edge-agent trust --export-own FILE` gives it)",
    "BadCertificateTimeInvalid": "by the server's clock this agent's certificate is not valid; compare the clocks of both",
    "BadCertificateUriInvalid": "the server finds another ApplicationUri in this agent's certificate than it expects",
    "BadIdentityTokenRejected": "the server does not take this user, or not this kind; check user and password",
    "BadIdentityTokenInvalid": "the server does not take this user, or not this kind; check user and password (one that "
    "is empty, or not given, may be the reason)",
    "BadUserAccessDenied": "the server does not take this user; check user and password",
}
"""What a server's refusal of our session means, and who can mend it."""

TOO_LONG = frozenset({"BadTooManyOperations", "BadResponseTooLarge", "BadEncodingLimitsExceeded", "BadRequestTooLarge"})
"""Answers to a request of too many nodes: half of them are asked next."""

Result = TypeVar("Result")


@dataclass(slots=True)
class ClientCounters:
    """Of all clients of one session of the driver, for the health topic."""

    sessions: int = 0
    requests: int = 0
    timeouts: int = 0
    renewals: int = 0


class Refused(Exception):
    """A service answered with a bad status. name: of the status code."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.name = status.name(code)
        super().__init__(self.name)


@dataclass(slots=True)
class Client:
    """An open client; made by `open_client`. One task owns it."""

    url: str
    timeout_s: float
    clock: Clock
    counts: ClientCounters
    ua: Any
    """The module asyncua.ua."""
    library: "Library"
    channel_us: int
    """When the secure channel was opened or renewed, agent clock."""
    used_us: int
    warnings: tuple[str, ...] = ()
    """About the server's certificate, for people."""
    expiries: tuple[Expiry, ...] = ()
    """When the server's certificate and its issuers end."""
    offered: tuple[str, ...] = ()
    """The securities that the server offers, as they are written in a configuration."""
    _prefixes: dict[type, bytes] = field(default_factory=dict)
    _token: tuple[Any, bytes] = (None, b"")
    """The session's authentication token, and encoded."""
    _awaited: dict[Any, int] = field(default_factory=dict)
    """Of each response its type's number: Part 6, A.3."""

    # --- requests ---------------------------------------------------------------------------------------------------

    async def ask(self, request: Any, doing: str) -> Any:
        """One service call → the decoded response, whose ServiceResult is good.

        doing: what was asked, for people. Raises DeviceSilent, DeviceRefused, or Refused when the server answered with a
        bad status that no person needs to act on.
        """
        response = getattr(self.ua, type(request).__name__.removesuffix("Request") + "Response")
        return await self.ask_encoded(*self.encoded(request), response, doing)

    async def ask_encoded(self, prefix: bytes, parameters: bytes, response: Any, doing: str) -> Any:
        """The same for a request that was encoded before."""
        raw = await self.ask_raw(prefix, parameters, response, doing)
        with self.door(doing):
            return self.decoded(raw, response)

    async def ask_raw(self, prefix: bytes, tail: bytes, response: Any, doing: str) -> bytes:
        """The same for a request that was encoded before → the bytes of the response, whose type is the one awaited."""
        self.counts.requests += 1
        with self.door(doing):
            async with asyncio.timeout(self.timeout_s):
                raw = bytes(await self._send(prefix, tail, self.timeout_s))
        self.used_us = self.clock.monotonic_us()
        return self.checked(raw, response)

    def encoded(self, request: Any) -> tuple[bytes, bytes]:
        """A request as its type and its parameters, which may be sent any number of times."""
        return self.prefix(type(request)), _binary().struct_to_binary(request.Parameters)

    def prefix(self, kind: Any) -> bytes:
        """A request's type, encoded."""
        if kind not in self._prefixes:
            self._prefixes[kind] = self.node(kind().TypeId)
        return self._prefixes[kind]

    def node(self, node: Any) -> bytes:
        """A NodeId, encoded."""
        encoded: bytes = _binary().nodeid_to_binary(node)
        return encoded

    def extension(self, structure: Any) -> bytes:
        """A structure as an ExtensionObject, encoded."""
        encoded: bytes = _binary().extensionobject_to_binary(structure)
        return encoded

    def decoded(self, raw: bytes, response: Any) -> Any:
        """By the library's own decoder, whose errors are those of a malformed answer. Raises Refused."""
        buffer = importlib.import_module("asyncua.common.utils").Buffer(raw)
        found = _binary().struct_from_binary(response, buffer)
        if (code := found.ResponseHeader.ServiceResult.value) & status.BAD:
            raise Refused(code)
        return found

    def checked(self, raw: bytes, response: Any) -> bytes:
        """The answer again, when it is of the type that was awaited: the library decodes anything as anything."""
        awaited = self._awaited.get(response) or self._awaited.setdefault(response, response().TypeId.Identifier)
        if raw[:2] == b"\x01\x00" and (found := int.from_bytes(raw[2:4], "little")) in (awaited, SERVICE_FAULT):
            if found == awaited:
                return raw
            raise Refused(int.from_bytes(raw[16:20], "little") or status.BAD)
        raise DeviceSilent(f"{self.url}: answered with something else than what was asked", Quality.PROTOCOL)

    def publish(self, prefix: bytes, tail: bytes, told: Callable[["asyncio.Future[Any]"], None]) -> None:
        """Leave a PublishRequest at the server; `told` is called with the future when it is answered or lost."""
        self._send(prefix, tail, 0.0).add_done_callback(told)

    def leave(self, request: Any) -> "asyncio.Future[Any]":
        """Send a request whose answer nobody waits for here; the future has its bytes some time, or fails."""
        self.counts.requests += 1
        future = self._send(*self.encoded(request), 0.0)
        future.add_done_callback(
            lambda done: None if done.cancelled() else done.exception()
        )  # seen, if nobody else does
        return future

    def _send(self, prefix: bytes, tail: bytes, timeout_s: float) -> "asyncio.Future[Any]":
        """What UASocketProtocol._send_request does, for parameters that are encoded already."""
        protocol = self.library.uaclient.protocol
        if protocol is None or protocol.transport is None:
            raise ConnectionError("the connection is closed")
        header = self._header(protocol, timeout_s)
        protocol.revolve_security_token()
        number = protocol._request_id + 1
        body = prefix + header + tail
        message = protocol._connection.message_to_binary(
            body, message_type=self.ua.MessageType.SecureMessage, request_id=number
        )
        protocol._request_id = number
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        protocol._callbackmap[number] = future
        protocol.transport.write(message)
        return future

    def _header(self, protocol: Any, timeout_s: float) -> bytes:
        """What UASocketProtocol._setup_request_header does, encoded."""
        protocol._request_handle += 1
        token = protocol.authentication_token
        if token is not self._token[0]:
            self._token = token, self.node(token)
        handle = int(protocol._request_handle)
        return encode.request_header(self._token[1], self.clock.wall_us(), handle, round(timeout_s * 1000))

    # --- its life -----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        protocol = self.library.uaclient.protocol
        return bool(protocol is not None and protocol.transport is not None)

    @property
    def parameters_max(self) -> int:
        """Bytes of a request's parameters that the server takes, as it said when the line was opened."""
        most = int(self.library.uaclient.protocol._connection._limits.max_message_size)
        return most - HEADERS_MAX if most > HEADERS_MAX else 2**62

    def outlived(self) -> bool:
        """Not used for so long that the server may have ended the session: a poll period may be longer than it lives."""
        now, library = self.clock.monotonic_us(), self.library
        rested = now - self.used_us > RENEW_SHARE * 1000 * library.session_timeout
        return bool(rested or now - self.channel_us > 1000 * library.secure_channel_timeout)

    async def keep(self) -> None:
        """Renew the secure channel when it is due; called before each use. Raises DeviceSilent, DeviceRefused."""
        now = self.clock.monotonic_us()
        if now - self.channel_us <= RENEW_SHARE * 1000 * self.library.secure_channel_timeout:
            return
        with self.door("the secure channel was not renewed"):
            async with asyncio.timeout(self.timeout_s):
                await self.library.open_secure_channel(renew=True)
                self.library.uaclient.revolve_security_token()
        self.channel_us = now
        self.counts.renewals += 1

    async def close(self, patience_s: float) -> None:
        """Say goodbye for at most `patience_s`, then drop the socket, whatever state it is in. Raises nothing."""
        await _dismissed(self.library, patience_s)

    @contextmanager
    def door(self, doing: str) -> Iterator[None]:
        """See rule 3. All of Exception: the library's decoder raises struct.error, IndexError … on a malformed answer."""
        try:
            yield
        except (DeviceSilent, DeviceRefused, Refused):
            raise
        except TimeoutError as error:
            self.counts.timeouts += 1
            raise DeviceSilent(f"{self.url}: {doing} within {self.timeout_s:g} s", Quality.TIMEOUT) from error
        except Exception as error:
            raise translated(error, f"{self.url}: {doing}") from error


def translated(error: BaseException, doing: str) -> DeviceSilent | DeviceRefused:
    """An error of the library, or a Refused that nobody could use, as one of the contract's two."""
    name = error.name if isinstance(error, Refused) else _status_name(error)
    words = f"{doing}: {_words(error, name)}"
    return DeviceRefused(words) if name in REFUSALS else DeviceSilent(words)


# ------------------------------------------------------------------------------------------------------------ opening


@asynccontextmanager
async def open_client(
    settings: Connection, pki: str | None, clock: Clock, counts: ClientCounters
) -> AsyncIterator[Client]:
    """Connect, secure, and activate a session. Raises DeviceSilent or DeviceRefused; leaves nothing behind.

    pki: the folder of certificates; None: there is none, so that only `security: none` is possible.
    """
    client = await opened(settings, pki, clock, counts)
    try:
        yield client
    finally:
        await client.close(CLOSE_S)


async def opened(
    settings: Connection, pki: str | None, clock: Clock, counts: ClientCounters, slowest_us: int = 0
) -> Client:
    """The same for who closes it himself. slowest_us: how long there may be no request."""
    timeout_s = settings.timeout / SECOND_US
    ua = await library_module()
    url, library = settings.url, None
    verdict: Any = None
    try:
        async with asyncio.timeout(timeout_s * OPEN_FACTOR):
            library = _library(settings)
            library.session_timeout = min(SESSION_MAX_US, max(SESSION_US, 3 * slowest_us)) // 1000
            if settings.security != "none":
                verdict = await _secure(library, settings, pki, clock, ua)
            begun = clock.monotonic_us()
            await library.connect_sessionless()
            offered = await _create_session(library, settings, ua)
            _check_user(library, settings, ua)
            await _activate(library, settings, clock)
    except BaseException as error:
        if library is not None:
            await _dismissed(library, 0.0 if isinstance(error, DeviceSilent) else CLOSE_CANCELLED_S)
        if isinstance(error, DeviceSilent | DeviceRefused) or not isinstance(error, Exception):
            raise
        if isinstance(error, TimeoutError):
            counts.timeouts += 1
            raise DeviceSilent(f"{url}: no session within {timeout_s:g} s", Quality.TIMEOUT) from error
        raise translated(error, f"{url}: no session") from error
    counts.sessions += 1
    warnings, expiries = (verdict.warnings, verdict.expiries) if verdict else ((), ())
    return Client(url, timeout_s, clock, counts, ua, library, begun, clock.monotonic_us(), warnings, expiries, offered)


async def _create_session(library: "Library", settings: Connection, ua: Any) -> tuple[str, ...]:
    """Returns the securities that the server offers. Raises DeviceRefused with them when `none` is not among them."""
    try:
        return _securities((await library.create_session()).ServerEndpoints)
    except ua.UaError as error:
        if settings.security != "none":
            raise
        offered: tuple[str, ...] = ()
        with suppress(Exception):
            offered = _securities(await library.get_endpoints())
        if not offered or "none" in offered:
            raise
        raise DeviceRefused(
            f"{settings.url}: the server does not offer security none; it offers {', '.join(offered)}"
        ) from error


def _securities(offered: "Sequence[ua.EndpointDescription] | None") -> tuple[str, ...]:
    """As they are written in a configuration."""
    return tuple(sorted({_shown(each.SecurityPolicyUri, each.SecurityMode.name) for each in offered or ()}))


def _library(settings: Connection) -> "Library":
    """A new client of the library; see rule 1."""
    client: Library = importlib.import_module("asyncua.client.client").Client(
        settings.url, timeout=settings.timeout / SECOND_US
    )
    client.name = client.description = "edge-agent"
    client.application_uri = "urn:edge-agent"
    made = client.uaclient._make_protocol

    def make_protocol() -> Any:
        protocol = made()
        take = protocol._process_received_message
        protocol._process_received_message = lambda message: take(_no_fault(protocol, message))
        return protocol

    client.uaclient._make_protocol = make_protocol
    return client


def _no_fault(protocol: Any, message: Any) -> Any:
    """The message again, unless it refuses a secure channel: the library would say no more than AssertionError then."""
    if protocol._open_secure_channel_exchange is None or not hasattr(message, "body"):
        return message
    if not hasattr(message.SecurityHeader(), "SecurityPolicyURI"):  # an answer to something else, while it is renewed
        return message
    raw = bytes(message.body())
    if raw[:2] == b"\x01\x00" and int.from_bytes(raw[2:4], "little") == SERVICE_FAULT:
        raise importlib.import_module("asyncua.ua").UaStatusCodeError(int.from_bytes(raw[16:20], "little"))
    return message


async def _secure(library: "Library", settings: Connection, pki: str | None, clock: Clock, ua: Any) -> Any:
    """Find the endpoint, judge the server's certificate, and set policy, mode and our own certificate.

    Returns what was found of the server's certificate (opcua_trust.Verdict). Raises DeviceRefused in words for whoever can
    mend it.
    """
    if pki is None:
        raise DeviceRefused(f"{settings.url}: security {settings.security} needs a data_dir to keep certificates in")
    folder, now_us = Path(pki), clock.wall_us()
    own = await in_thread(lambda: _own(settings, folder, now_us), "own certificate")
    library.application_uri = own.application_uri
    endpoint = _endpoint(await library.connect_and_get_server_endpoints(), settings, ua)
    verdict = await in_thread(lambda: _verdict(endpoint, settings, folder, now_us), "trust")
    if not verdict.trusted:
        raise DeviceRefused(f"{settings.url}: {verdict.words}")
    policies = importlib.import_module("asyncua.crypto.security_policies")
    policy, mode = policy_and_mode(settings.security)
    certificates = [_x509(der) for der in (verdict.certificate, own.certificate)]
    library.security_policy = getattr(policies, f"SecurityPolicy{policy}")(
        *certificates,
        _key(own.key),
        getattr(ua.MessageSecurityMode, mode),
        host_cert_chain=[own.issuers] if own.issuers else [],
    )
    library.uaclient.set_security(library.security_policy)
    # What GetEndpoints said went over an open line: the session must say the same, and the library sees that it is
    # given with the same certificate.
    library.certificate_validator = _same_application(settings.url, endpoint.Server.ApplicationUri)
    return verdict


def _same_application(url: str, uri: str | None) -> Any:
    async def check(_certificate: Any, about: Any) -> None:
        if about.ApplicationUri != uri:
            raise DeviceRefused(
                f"{url}: the server calls itself {about.ApplicationUri} in the session and {uri} before it: somebody may "
                "stand between; check the line, then try again"
            )

    return check


def _own(settings: Connection, folder: Path, now_us: int) -> Any:
    """Our certificate (opcua_pki.Own): that of the configuration, or the one that is made once and kept. In a thread."""
    pki = importlib.import_module("drivers.opcua_pki")
    try:
        if settings.certificate is not None:
            return pki.pair_in(text_of(settings.certificate), "certificate", now_us)
        return pki.own_certificate(folder, socket.gethostname(), now_us)
    except ValueError as error:
        raise DeviceRefused(f"{settings.url}: {error}") from error
    except OSError as error:  # a disk that is full or read-only may be mended meanwhile
        words = f"our certificate cannot be kept in {error.filename or folder}: {error.strerror or error}"
        raise DeviceSilent(f"{settings.url}: {words}; it needs a few kB that this user may write") from error


def _verdict(endpoint: "ua.EndpointDescription", settings: Connection, folder: Path, now_us: int) -> Any:
    """Whether the server's certificate is trusted (opcua_trust.Verdict). In a thread: it reads files."""
    trust = importlib.import_module("drivers.opcua_trust")
    about = trust.Endpoint(endpoint.Server.ApplicationUri or "", split_url(settings.url).hostname or "")
    strictness = trust.Strictness(settings.check_host, settings.need_revocations)
    return trust.judge(bytes(endpoint.ServerCertificate or b""), about, folder, now_us, strictness)


def _x509(der: bytes) -> Any:
    return importlib.import_module("cryptography.x509").load_der_x509_certificate(der)


def _key(der: bytes) -> Any:
    # opcua_pki has checked it in a thread; once more would hold the loop for 60 ms.
    load = importlib.import_module("cryptography.hazmat.primitives.serialization").load_der_private_key
    return load(der, None, unsafe_skip_rsa_key_validation=True)


def _endpoint(offered: "Sequence[ua.EndpointDescription]", settings: Connection, ua: Any) -> "ua.EndpointDescription":
    """The endpoint with the wanted security. Raises DeviceRefused with those that the server has."""
    policy, mode = policy_and_mode(settings.security)
    wanted = (_uri(policy), getattr(ua.MessageSecurityMode, mode))
    found = [each for each in offered if (each.SecurityPolicyUri, each.SecurityMode) == wanted]
    if found:
        return found[0]
    shown = ", ".join(_securities(offered)) or "nothing"
    raise DeviceRefused(f"{settings.url}: the server does not offer security {settings.security}; it offers {shown}")


def _uri(policy: str) -> str:
    policies = importlib.import_module("asyncua.crypto.security_policies")
    return str(getattr(policies, f"SecurityPolicy{policy}").URI)


def _shown(uri: str, mode: str) -> str:
    policy = uri.rpartition("#")[2].replace("_", "") or "?"
    return "none" if policy == "None" else f"{policy}/{mode.rstrip('_')}"


def _check_user(library: "Library", settings: Connection, ua: Any) -> None:
    """Whether the server takes the kind of user that we are: else it would say no more than that it does not."""
    kinds = ua.UserTokenType
    wanted = kinds.Certificate if settings.user_certificate else kinds.UserName if settings.user else kinds.Anonymous
    offered = {policy.TokenType for policy in library._policy_ids}
    if offered and wanted not in offered:
        names = {
            kinds.Anonymous: "anonymous",
            kinds.UserName: "user and password",
            kinds.Certificate: "user_certificate",
        }
        takes = ", ".join(sorted(names[kind] for kind in offered if kind in names)) or "no user that is known here"
        raise DeviceRefused(f"{settings.url}: the server does not take {names[wanted]}; it takes {takes}")
    if wanted is kinds.UserName and settings.password is not None:
        policy = library.server_policy(kinds.UserName).SecurityPolicyUri
        if (not policy or policy.endswith("#None")) and not settings.security.endswith("SignAndEncrypt"):
            log.warning(
                "%s: the password goes over the line in plain; set a security with SignAndEncrypt", settings.url
            )


async def _activate(library: "Library", settings: Connection, clock: Clock) -> None:
    if settings.user_certificate is None:
        await library.activate_session(username=settings.user, password=text_of(settings.password))
        return
    pki = importlib.import_module("drivers.opcua_pki")
    try:
        user = pki.pair_in(text_of(settings.user_certificate), "user_certificate", clock.wall_us(), of_user=True)
    except ValueError as error:
        raise DeviceRefused(f"{settings.url}: {error}") from error
    library.user_private_key = _key(user.key)
    await library.activate_session(certificate=_x509(user.certificate))


async def _dismissed(library: "Library", patience_s: float) -> None:
    protocol = library.uaclient.protocol
    transport = protocol.transport if protocol is not None else None
    polite = False
    try:
        with suppress(Exception):
            async with asyncio.timeout(patience_s):
                await library.uaclient.close_session(True)
                await library.close_secure_channel()
                polite = True
    finally:
        library.disconnect_socket()
        if transport is not None and not polite:
            transport.abort()


def text_of(secret: SecretRef | str | None) -> str | None:
    """A secret's text, which the agent has put in the place of its name."""
    if isinstance(secret, SecretRef):
        raise DeviceRefused(f"the secret {secret.secret!r} was not found")
    return secret


async def read_values(client: Client, nodes: Sequence[Any], attribute: Any) -> "list[ua.DataValue]":
    return await read_attributes(client, nodes, (attribute,))


async def read_attributes(client: Client, nodes: Sequence[Any], attributes: Sequence[Any]) -> "list[ua.DataValue]":
    """Some attributes of some nodes, those of one node beside each other. Raises DeviceSilent, Refused."""
    named = [client.node(node) for node in nodes]
    return await _read_items(client, [encode.read_value_id(node, each) for node in named for each in attributes])


async def _read_items(client: Client, items: Sequence[bytes]) -> "list[ua.DataValue]":
    """Of ReadValueIds that are encoded; where the server takes less than it told, in halves."""
    request = client.prefix(client.ua.ReadRequest), encode.read(items, encode.NEITHER)
    try:
        found: list[ua.DataValue] = (await client.ask_encoded(*request, client.ua.ReadResponse, "no answer")).Results
    except Refused as refused:
        if refused.name not in TOO_LONG or len(items) == 1:
            raise
        half = len(items) // 2
        return [*await _read_items(client, items[:half]), *await _read_items(client, items[half:])]
    if len(found) != len(items):
        raise DeviceSilent(f"{client.url}: {len(items)} attributes asked, {len(found)} answers", Quality.PROTOCOL)
    return found


def value_of(item: "ua.DataValue") -> Any:
    return item.Value.Value if item.Value is not None else None


# ------------------------------------------------------------------------------------------------------------- errors


def _status_name(error: BaseException) -> str:
    """The name of the status code that a library's error carries, or ''."""
    code = getattr(error, "code", None)
    return status.name(code) if isinstance(code, int) else ""


def in_words(error: BaseException) -> str:
    """What an error of the library or of the system says to people."""
    return _words(error, _status_name(error))


def _words(error: BaseException, name: str) -> str:
    if isinstance(error, OSError):
        return _system_words(error)
    if not name:
        return str(error) or type(error).__name__
    advice = OF_OURS.get(name) or status.advice(getattr(error, "code", 0))
    return f"{name}: {advice}" if advice else name


def _system_words(error: OSError) -> str:
    """The system's own words without the numbers and addresses that asyncio puts beside them, and where to look."""
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}: check the host's name, or write its IP address"
    text = str(error)
    if error.errno == errno.ECONNREFUSED or f"[Errno {errno.ECONNREFUSED}]" in text:  # one of several addresses
        return f"{os.strerror(errno.ECONNREFUSED)}: is the server running there, and is it this port?"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else text or type(error).__name__


# -------------------------------------------------------------------------------------------------------- the library


_loaded = threading.Event()


async def library_module() -> Any:
    """The module asyncua.ua.

    Its first import takes over a second and 85 MB: only who has OPC UA pays, in a thread that ends, beside the loop.
    """
    if not _loaded.is_set():
        await in_thread(_load, "import asyncua")
    try:
        return importlib.import_module("asyncua.ua")
    except ImportError as error:
        raise DeviceRefused(f"the OPC UA library cannot be loaded: {error}") from error


def _load() -> None:
    """The library's 50,000 objects stay for ever: the collector would hold the loop while it walks them, 100 ms each time."""
    gc.disable()
    try:
        with suppress(ImportError):
            _import()
    finally:
        gc.freeze()
        gc.enable()


def _import() -> None:
    importlib.import_module("asyncua")
    importlib.import_module("asyncua.client.client")
    # It speaks at INFO of every read and at WARNING of every refused try; both reach us as errors anyway.
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    _refuse_arrays_of_nothing(_binary())
    _loaded.set()


def _refuse_arrays_of_nothing(binary: Any) -> None:
    """An array whose elements take no bytes may claim any length, and the library would make a list of it."""
    unpack = binary.unpack_uatype_array

    def bounded(kind: Any, data: Any) -> Any:
        if kind.value == 0:
            raise ValueError("an array of nothing")
        return unpack(kind, data)

    binary.unpack_uatype_array = bounded


def _binary() -> Any:
    return importlib.import_module("asyncua.ua.ua_binary")


async def in_thread(work: Callable[[], Result], name: str) -> Result:
    """Do it in a thread of its own, which ends with it: the loop's own pool would keep its threads for ever."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(result)

    def run() -> None:
        result, fault = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # handed on to who waits
            fault = error
        with suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(tell, result, fault)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
