"""The OPC UA driver: polls variables with each value's status and source time. The only door of asyncua.

Rule 1: a value without its status code is no reading, so `read_values` of the library is never used.
Rule 2: namespace indexes are the server's own and move when it restarts: URIs are resolved anew in every session.
Rule 3: no task of the library runs beside ours; the session renews its channel itself when it is asked to read.
"""

import asyncio
import base64
import binascii
import importlib
import logging
import re
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from edge_agent.contract import (
    CertificateStore,
    Clock,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
    WrongKey,
)

if TYPE_CHECKING:
    from asyncua import ua
    from asyncua.client.client import Client

log = logging.getLogger(__name__)

NODES_MAX = 1000
"""Nodes in one Read when the server names no limit of its own (MaxNodesPerRead, OPC UA Part 5, 6.3.11)."""
EXACT_MAX = 2**53
"""float64 holds every integer up to here; beyond it a counter would be silently rounded."""
CLOCK_SANE_US = 3_600_000_000
"""A source time further than this from its receipt is not believed (contract §6, `ts`)."""
OPEN_FACTOR = 3
"""A session takes six round trips; all of them together may take this many timeouts."""
CLOSE_S = 1.0
CLOSE_CANCELLED_S = 0.05
"""A cancelled session still says goodbye (servers count sessions), but must be gone within 100 ms."""
RENEW_SHARE = 0.75
"""Of the lifetime of a secure channel or session, after which it is renewed: OPC UA Part 4, 5.5.2.1."""
RESOLVE_AGAIN_US = 60_000_000
"""How often the server is asked again for a namespace that it did not have: some load theirs after their start."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

NODE_ID = re.compile(r"(?:nsu=(?P<uri>[^;]+);|ns=(?P<index>[0-9]{1,5});)?(?P<kind>[isgb])=(?P<text>.+)", re.DOTALL)
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|min)")
SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0}
TIMEOUT_MIN_S, TIMEOUT_MAX_S = 0.01, 60.0

QUALITIES: Mapping[str, Quality] = {
    "BadSensorFailure": Quality.SENSOR_FAILURE,
    "BadDeviceFailure": Quality.DEVICE_FAILURE,
    "BadOutOfService": Quality.DEVICE_FAILURE,
    "BadOutOfRange": Quality.OUT_OF_RANGE,
    "BadTimeout": Quality.TIMEOUT,
    "BadCommunicationError": Quality.TIMEOUT,
    "BadNoCommunication": Quality.TIMEOUT,
    "BadResourceUnavailable": Quality.TIMEOUT,
    "BadNotConnected": Quality.DISCONNECTED,
    "BadServerNotConnected": Quality.DISCONNECTED,
    "BadShutdown": Quality.DISCONNECTED,
    "BadWaitingForInitialData": Quality.MISSING,
    "BadNoData": Quality.MISSING,
    "BadNoDataAvailable": Quality.MISSING,
    "BadNoValue": Quality.MISSING,
    "BadDataUnavailable": Quality.MISSING,
    "BadDataLost": Quality.MISSING,
    "BadNodeIdUnknown": Quality.REFUSED,
    "BadNodeIdInvalid": Quality.REFUSED,
    "BadAttributeIdInvalid": Quality.REFUSED,
    "BadIndexRangeInvalid": Quality.REFUSED,
    "BadNotReadable": Quality.REFUSED,
    "BadNotSupported": Quality.REFUSED,
    "BadNotImplemented": Quality.REFUSED,
    "BadNotFound": Quality.REFUSED,
    "BadUserAccessDenied": Quality.REFUSED,
    "BadSecurityModeInsufficient": Quality.REFUSED,
    "BadConfigurationError": Quality.REFUSED,
}
"""What a bad status says of one value (OPC UA Part 4, 7.39, and Part 8, 6.3.2); any other one is OTHER."""

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
        "BadServiceUnsupported",
        "BadTcpEndpointUrlInvalid",
        "BadLicenseExpired",
        "BadLicenseLimitsExceeded",
    }
)
"""Answers to a whole service that no second try will change: a person must act."""


TOO_LONG = frozenset({"BadTooManyOperations", "BadResponseTooLarge", "BadEncodingLimitsExceeded"})
"""Answers to a Read of too many nodes: half of them are asked next."""


def _seconds(text: object) -> float:
    """`4s` → 4.0; a bare number has no unit and is refused."""
    found = DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(f"{text!r} is no duration; write a number with ms, s or min, such as 500ms or 4s")
    seconds = float(found[1]) * SECONDS[found[2]]
    if not TIMEOUT_MIN_S <= seconds <= TIMEOUT_MAX_S:
        raise ValueError(f"{text} is outside 10ms … 60s")
    return seconds


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    PlainSerializer(lambda seconds: f"{seconds * 1000:.15g}ms", return_type=str),
    WithJsonSchema({"type": "string", "examples": ["500ms", "4s"]}),
]


class SecretRef(BaseModel):
    """The name of a secret; the agent puts its text in its place (`model_copy`, unvalidated) before `open`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    secret: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")


class Connection(BaseModel):
    """The keys of a connection with `driver: opcua`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str = Field(description="opc.tcp://host:4840/path of the server", examples=["opc.tcp://192.0.2.20:4840"])
    security: str = Field("none", description="none (others are not available yet)")
    user: str | None = Field(None, min_length=1, description="user name; without one the session is anonymous")
    password: SecretRef | None = Field(None, description="{secret: name}; never in plain")
    mode: str = Field("poll", description="poll (subscribe is not available yet)")
    timeout: Seconds = Field(4.0, description="for each answer of the server")

    @field_validator("url")
    @classmethod
    def _is_opc_tcp(cls, url: str) -> str:
        _split(url)
        return url

    @field_validator("security")
    @classmethod
    def _is_available(cls, security: str) -> str:
        if security.lower() != "none":
            raise ValueError(f"security {security!r} is not available yet; allowed is none")
        return "none"

    @field_validator("mode")
    @classmethod
    def _is_poll(cls, mode: str) -> str:
        if mode == "subscribe":
            raise ValueError("mode 'subscribe' is not available yet; allowed is poll")
        if mode != "poll":
            raise ValueError(f"mode {mode!r} is not one of: poll")
        return mode

    @field_validator("password", mode="before")
    @classmethod
    def _is_not_plain(cls, password: object) -> object:
        if isinstance(password, str | int):
            raise ValueError("a password is never written in plain; write {secret: NAME}")  # noqa: TRY004  # pydantic's way
        return password

    @model_validator(mode="after")
    def _password_has_a_user(self) -> "Connection":
        if self.password is not None and self.user is None:
            raise WrongKey("password", "password needs a user")
        return self


class Address(BaseModel):
    """The keys of a signal that is an OPC UA variable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    address: str = Field(
        description="a NodeId: nsu=URI;s=…, ns=2;i=… or i=… (i number, s string, g GUID, b base64)",
        examples=["nsu=urn:plant;s=Spindle.Speed", "ns=2;i=1001"],
    )

    @field_validator("address")
    @classmethod
    def _is_a_node_id(cls, address: str) -> str:
        parse_node_id(address)
        return address


@dataclass(frozen=True, slots=True)
class NodeName:
    """A NodeId as the configuration names it. uri: of the namespace; None: `index` is the server's own number."""

    uri: str | None
    index: int
    identifier: int | str | uuid.UUID | bytes


def parse_node_id(text: str) -> NodeName:
    """`nsu=URI;s=…`, `ns=2;i=…`, `i=…` → its parts. Raises ValueError with what is wrong (OPC UA Part 6, 5.3.1.10)."""
    found = NODE_ID.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no NodeId; write it like nsu=urn:plant;s=Spindle.Speed, ns=2;i=1001 or i=2258")
    index = int(found["index"] or 0)
    if index > 0xFFFF:
        raise ValueError(f"namespace index {index} is above 65535")
    uri = found["uri"].replace("%3B", ";").replace("%25", "%") if found["uri"] else None
    return NodeName(uri, index, _identifier(found["kind"], found["text"]))


def _identifier(kind: str, text: str) -> int | str | uuid.UUID | bytes:
    match kind:
        case "i":
            if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > 0xFFFFFFFF:
                raise ValueError(f"i={text}: a numeric identifier is 0 … 4294967295")
            return int(text)
        case "g":
            try:
                return uuid.UUID(text)
            except ValueError:
                raise ValueError(f"g={text} is no GUID") from None
        case "b":
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error:
                raise ValueError(f"b={text} is not base64") from None
        case _:
            return text


def _split(url: str) -> SplitResult:
    """The parts of an opc.tcp URL; raises ValueError with words. A password does not belong into a URL."""
    parts = urlsplit(url)
    if parts.scheme != "opc.tcp" or not parts.hostname or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is no OPC UA address; write it like opc.tcp://192.0.2.20:4840")
    if parts.username is not None:
        raise ValueError("user and password do not stand in the url; use the keys user and password")
    if parts.port == 0:
        raise ValueError("port 0 cannot be reached")
    return parts


@dataclass(slots=True)
class _Counters:
    sessions: int = 0
    requests: int = 0
    timeouts: int = 0
    renewals: int = 0
    values: int = 0
    bad_values: int = 0
    not_numeric: int = 0


@dataclass(slots=True)
class _Line:
    """One client of the library with an activated session; thrown away at the first trouble, never repaired."""

    library: Any
    """The module asyncua.ua."""
    client: "Client"
    nodes: "list[ua.ReadValueId | None]"
    """What to ask for each point; None where the server has no such namespace."""
    missing: list[str]
    index: dict[str, int]
    """The server's namespaces: URI → number in this session."""
    nodes_max: int
    channel_us: int
    """When the secure channel was opened or renewed, agent clock."""
    used_us: int
    resolved_us: int


@dataclass(slots=True)
class OpcUaSession:
    """An open session. One task owns it. `points` keep their order for its whole life."""

    name: str
    settings: Connection
    names: tuple[NodeName, ...]
    labels: tuple[str, ...]
    clock: Clock
    counts: _Counters = field(default_factory=_Counters)
    line: _Line | None = None
    told: set[str] = field(default_factory=set)
    """Labels of points whose value is no number, told once for each session."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Of points whose last reading was bad: why, for people."""

    async def read(self, due: Ints) -> Readings:
        """Read these points once. See contract.Session.

        values: (due,) float64 as the server gives them, NaN where bad. ts: the source's stamp when it is within an hour
        of the receipt, else the receipt. Raises DeviceSilent when the server does not answer or the session is gone.
        """
        line = await self._ready_line()
        values = np.full(len(due), np.nan)
        quality = np.full(len(due), Quality.REFUSED, np.uint8)
        ts = np.full(len(due), self.clock.wall_us(), np.int64)
        there = [row for row, point in enumerate(due.tolist()) if line.nodes[point] is not None]
        start = 0
        while start < len(there):
            rows = there[start : start + line.nodes_max]
            answer = await self._ask(line, [due[row] for row in rows])
            if answer is None:
                continue
            received = self.clock.wall_us()
            for row, item in zip(rows, answer, strict=True):
                values[row], quality[row], ts[row] = self._reading(line, int(due[row]), item, received)
            start += len(rows)
        self.counts.values += len(due)
        self.counts.bad_values += int(np.count_nonzero(np.isnan(values)))
        return Readings(values, quality, ts)

    def use(self, points: Sequence[Point]) -> None:
        """See contract.Session.use."""
        self.names, self.labels = _named(points)
        self.reasons.clear()
        if self.line is not None:
            self._name_nodes(self.line)

    def explain(self, point: int) -> str:
        """See contract.Session.explain."""
        if self.line is not None and self.line.nodes[point] is None:
            return f"the server has no namespace {self.names[point].uri}"
        return self.reasons.get(point, "")

    def counters(self) -> dict[str, int | float]:
        return {name: getattr(self.counts, name) for name in _Counters.__dataclass_fields__}

    async def connect(self) -> None:
        """A new client, session and resolved nodes. Raises DeviceSilent or DeviceRefused; the caller calls `close`."""
        url = self.settings.url
        library = await _library()
        with self._door(f"{url}: no session"):
            async with asyncio.timeout(self.settings.timeout * OPEN_FACTOR):
                client = _client(self.settings)
                self.line = _Line(library, client, [], [], {}, NODES_MAX, self.clock.monotonic_us(), 0, 0)
                await client.connect_sessionless()
                await client.create_session()
                await client.activate_session(username=self.settings.user, password=_text_of(self.settings.password))
                self.counts.sessions += 1
                await self._resolve(self.line)
        self.line.used_us = self.clock.monotonic_us()
        if self.line.missing and not any(self.line.nodes):
            raise DeviceRefused(f"{url}: the server has no namespace {', '.join(self.line.missing)}")
        for uri in self.line.missing:
            log.warning("%s: the server has no namespace %s; its signals are refused", self.name, uri)

    async def close(self, patience_s: float) -> None:
        """Say goodbye for at most `patience_s`, then drop the socket, whatever state it is in. Raises nothing."""
        line, self.line = self.line, None
        if line is None:
            return
        protocol = line.client.uaclient.protocol
        transport = protocol.transport if protocol is not None else None
        polite = False
        try:
            with suppress(Exception):
                async with asyncio.timeout(patience_s):
                    await line.client.uaclient.close_session(True)
                    await line.client.close_secure_channel()
                    polite = True
        finally:
            line.client.disconnect_socket()
            if transport is not None and not polite:
                transport.abort()

    async def _ready_line(self) -> _Line:
        """The line, renewed when it is old: a poll period may be longer than a session lives."""
        if self.line is None:
            raise DeviceSilent(f"{self.settings.url}: the session is closed")
        now = self.clock.monotonic_us()
        client = self.line.client
        if now - self.line.used_us > RENEW_SHARE * 1000 * min(client.session_timeout, client.secure_channel_timeout):
            await self.close(CLOSE_S)
            await self.connect()
            self.counts.renewals += 1
            return self.line
        if now - self.line.channel_us > RENEW_SHARE * 1000 * client.secure_channel_timeout:
            with self._door(f"{self.settings.url}: the secure channel was not renewed"):
                async with asyncio.timeout(self.settings.timeout):
                    await client.open_secure_channel(renew=True)
                    client.uaclient.revolve_security_token()
            self.line.channel_us = now
            self.counts.renewals += 1
        if self.line.missing and now - self.line.resolved_us > RESOLVE_AGAIN_US:
            with self._door(f"{self.settings.url}: no answer"):
                async with asyncio.timeout(self.settings.timeout):
                    await self._resolve(self.line)
        self.line.used_us = now
        return self.line

    async def _resolve(self, line: _Line) -> None:
        """Turn names into the NodeIds of this session, and learn how many the server takes in one Read."""
        library = line.library
        ids = [library.ObjectIds.Server_NamespaceArray]
        ids.append(library.ObjectIds.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead)
        asked = [_asked(library, 0, int(number)) for number in ids]
        namespaces, limit = await line.client.uaclient.read(_parameters(library, asked))
        uris = namespaces.Value.Value if namespaces.Value is not None else None
        if not isinstance(uris, list):
            raise DeviceSilent(f"{self.settings.url}: the server does not tell its namespaces")
        most = limit.Value.Value if limit.Value is not None else None
        line.nodes_max = min(most, NODES_MAX) if isinstance(most, int) and most > 0 else NODES_MAX
        line.index = {uri: number for number, uri in reversed(list(enumerate(uris)))}
        self._name_nodes(line)
        line.resolved_us = self.clock.monotonic_us()

    def _name_nodes(self, line: _Line) -> None:
        """The points' NodeIds with the namespace numbers of this session."""
        numbers = [line.index.get(name.uri) if name.uri else name.index for name in self.names]
        line.nodes = [
            None if number is None else _asked(line.library, number, name.identifier)
            for number, name in zip(numbers, self.names, strict=True)
        ]
        line.missing = sorted({name.uri for name in self.names if name.uri and name.uri not in line.index})

    async def _ask(self, line: _Line, points: Sequence[int]) -> "list[ua.DataValue] | None":
        """One Read service call. None: the server found it too long, `nodes_max` was halved, ask again."""
        nodes = [line.nodes[point] for point in points]
        self.counts.requests += 1
        try:
            with self._door(f"{self.settings.url}: no answer to a read of {len(points)} variables"):
                async with asyncio.timeout(self.settings.timeout):
                    answer: list[ua.DataValue] = await line.client.uaclient.read(_parameters(line.library, nodes))
        except DeviceSilent as error:
            if line.nodes_max > 1 and _status_name(error.__cause__) in TOO_LONG:
                line.nodes_max = max(1, min(line.nodes_max, len(points)) // 2)
                return None
            raise
        if len(answer) != len(points):
            raise DeviceSilent(f"{self.settings.url}: {len(points)} variables asked, {len(answer)} answered")
        return answer

    def _reading(self, line: _Line, point: int, item: "ua.DataValue", received_us: int) -> tuple[float, int, int]:
        """One DataValue → value, quality, ts."""
        status = item.StatusCode.value if item.StatusCode is not None else 0
        stamp = item.SourceTimestamp
        ts = received_us if stamp is None else (stamp - EPOCH) // MICROSECOND
        sane = abs(ts - received_us) <= CLOCK_SANE_US
        ts = ts if sane else received_us
        if status & 0x8000_0000:
            name = line.library.StatusCode(status & 0xFFFF_0000).name  # without the info bits, which have no name
            self.reasons[point] = str(name)
            return np.nan, QUALITIES.get(name, Quality.OTHER), ts
        raw = item.Value.Value if item.Value is not None else None
        value, quality = number(raw)
        if quality is Quality.OTHER:
            self._tell_not_numeric(point, raw)
            self.reasons[point] = f"a {type(raw).__name__} is no number"
        elif self.reasons:
            self.reasons.pop(point, None)
        if quality is not Quality.GOOD:
            return value, quality, ts
        if status & 0x4000_0000:
            return value, Quality.UNCERTAIN, ts
        return value, Quality.GOOD if sane else Quality.CLOCK, ts

    def _tell_not_numeric(self, point: int, raw: object) -> None:
        self.counts.not_numeric += 1
        label = self.labels[point]
        if label not in self.told:
            self.told.add(label)
            log.warning("%s: %s is a %s, not a number", self.name, label, type(raw).__name__)

    @contextmanager
    def _door(self, doing: str) -> Iterator[None]:
        """Whatever the library raises becomes one of the two errors of the contract.

        All of Exception, since its decoder raises struct.error, IndexError, TypeError … on a malformed answer.
        """
        try:
            yield
        except (DeviceSilent, DeviceRefused):
            raise
        except TimeoutError as error:
            self.counts.timeouts += 1
            raise DeviceSilent(f"{doing} within {self.settings.timeout:g} s", Quality.TIMEOUT) from error
        except Exception as error:
            words = f"{doing}: {_words(error)}"
            if _status_name(error) in REFUSALS or "No matching endpoints" in str(error):
                raise DeviceRefused(words) from error
            raise DeviceSilent(words) from error


def number(raw: object) -> tuple[float, Quality]:
    """A variant's value as float64: booleans are 0/1, integers exact or BAD, arrays and texts are no numbers."""
    if isinstance(raw, float):
        return (raw, Quality.GOOD) if np.isfinite(raw) else (np.nan, Quality.NOT_A_NUMBER)
    if isinstance(raw, int):
        return (float(raw), Quality.GOOD) if abs(raw) <= EXACT_MAX else (np.nan, Quality.PRECISION)
    return np.nan, Quality.MISSING if raw is None else Quality.OTHER


class OpcUa:
    """The entry point `opcua`."""

    Connection: type[BaseModel] = Connection
    Address: type[BaseModel] = Address
    inherited: frozenset[str] = frozenset()

    @asynccontextmanager
    async def open(self, name: str, connection: Any, points: Sequence[Point], clock: Clock) -> AsyncIterator[Session]:
        """Connect and yield a session. See contract.Driver."""
        session = OpcUaSession(name, connection, *_named(points), clock)
        try:
            await session.connect()
            yield session
        except BaseException as error:
            await session.close(0.0 if isinstance(error, DeviceSilent) else CLOSE_CANCELLED_S)
            raise
        await session.close(CLOSE_S)

    def certificates(self, folder: str) -> CertificateStore:
        """See contract.Trusts. Who asks for it pays for the cryptography, nobody else."""
        store: CertificateStore = importlib.import_module("drivers.opcua_pki").Store(Path(folder))
        return store


def _named(points: Sequence[Point]) -> tuple[tuple[NodeName, ...], tuple[str, ...]]:
    """The points' NodeIds, and what they are called in words for people."""
    names = tuple(parse_node_id(point.settings.address) for point in points)
    return names, tuple(f"{point.name} ({point.settings.address})" for point in points)


def _client(settings: Connection) -> "Client":
    """A new client for each session: one that was reconnected has been seen to follow moved namespaces."""
    client: Client = importlib.import_module("asyncua.client.client").Client(settings.url, timeout=settings.timeout)
    client.name = client.description = "edge-agent"
    client.application_uri = "urn:edge-agent"
    return client


def _text_of(secret: SecretRef | str | None) -> str | None:
    if isinstance(secret, SecretRef):
        raise DeviceRefused(f"the secret {secret.secret!r} was not found")
    return secret


def _asked(library: Any, namespace: int, identifier: int | str | uuid.UUID | bytes) -> "ua.ReadValueId":
    item: ua.ReadValueId = library.ReadValueId()
    item.NodeId = library.NodeId(identifier, namespace)
    item.AttributeId = library.AttributeIds.Value
    return item


def _parameters(library: Any, items: Sequence[Any]) -> "ua.ReadParameters":
    parameters: ua.ReadParameters = library.ReadParameters()
    parameters.TimestampsToReturn = library.TimestampsToReturn.Source
    parameters.NodesToRead = list(items)
    return parameters


def _status_name(error: BaseException | None) -> str:
    """The name of the status code that a library's error carries, or ''."""
    return type(error).__name__ if hasattr(error, "code") else ""


def _words(error: Exception) -> str:
    return f"{_status_name(error)} ({error})" if _status_name(error) else (str(error) or type(error).__name__)


_loaded = threading.Event()


async def _library() -> Any:
    """The module asyncua.ua.

    Its first import takes over a second and 85 MB: only who has OPC UA pays, in a thread that ends, beside the loop.
    """
    if not _loaded.is_set():
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def load() -> None:
            try:
                importlib.import_module("asyncua")
                # It speaks at INFO of every read and at WARNING of every refused try; both reach us as errors anyway.
                logging.getLogger("asyncua").setLevel(logging.ERROR)
                _loaded.set()
            finally:
                with suppress(RuntimeError):  # the loop may have ended meanwhile
                    loop.call_soon_threadsafe(done.set)

        threading.Thread(target=load, name="import asyncua", daemon=True).start()
        await done.wait()
    try:
        return importlib.import_module("asyncua.ua")
    except ImportError as error:
        raise DeviceRefused(f"the OPC UA library cannot be loaded: {error}") from error


DRIVER: Driver = OpcUa()
