"""The OPC UA driver: a session that reads and is told, and what each variable's value, status and source time mean.

Rule 1: a value without its status code is no reading, and a variable that is not known to be the one that was meant is not
asked. Rule 2: namespace indexes are the server's own and move when it restarts: URIs are resolved anew in every session.
Rule 3: what the server tells is believed as long as it says that it lives, and looked after now and then.
"""

import importlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from drivers import opcua_decode as decode
from drivers import opcua_encode as encode
from drivers import opcua_history as history
from drivers import opcua_points as pts
from drivers import opcua_status as status
from drivers import opcua_structure as structure
from drivers.opcua_client import (
    CLOSE_CANCELLED_S,
    CLOSE_S,
    TOO_LONG,
    Client,
    ClientCounters,
    Refused,
    opened,
    read_attributes,
    read_values,
    translated,
    value_of,
)
from drivers.opcua_items import Items
from drivers.opcua_memory import Memory, recalled
from drivers.opcua_past import Past, places_of
from drivers.opcua_profiles import Profile, profile_of, smallest
from drivers.opcua_settings import Address, Connection, NodeName, parse_node_id
from drivers.opcua_subscription import (
    REQUESTS,
    Subscription,
    TellingCounters,
    Told,
    change_filter,
    created,
    subscribed,
)
from edge_agent.contract import (
    CODE_MASK,
    SECOND_US,
    Bools,
    CertificateStore,
    Clock,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Expiry,
    Floats,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
)

if TYPE_CHECKING:
    from asyncua import ua

log = logging.getLogger(__name__)

NODES_MAX = 1000
"""Nodes in one Read when the server names no limit of its own (MaxNodesPerRead, OPC UA Part 5, 6.3.11)."""
NODES_TOLD_MAX = 10_000
"""Nodes in one Read of a server that says it takes as many: a value of 10,000 costs a quarter of one of 1,000."""
ITEMS_AT_ONCE = 1000
"""Items in one CreateMonitoredItems: what is not subscribed to yet is polled meanwhile, so that there is little time."""
NAMES_AT_ONCE = 100
"""Variables whose names are read at once, two attributes each; decoded one by one."""
LOOK_AT_ONCE = 500
"""Variables that are looked after at once."""
RESOLVE_AGAIN_US = 60 * SECOND_US
"""How often the server is asked again for a namespace that it did not have: some load theirs after their start."""
LOOK_AGAIN_US, LOOK_AGAIN_MAX_US = 2 * SECOND_US, 60 * SECOND_US
"""How soon a node that is not there is looked for again: some servers load theirs for minutes. Doubled each time."""
SUBSCRIBE_AGAIN_US, SUBSCRIBE_AGAIN_MAX_US = 5 * SECOND_US, 300 * SECOND_US
"""How soon a subscription or an item that the server refused is asked for again; it is polled meanwhile."""
LOOK_AFTER_US = 60 * SECOND_US
"""How often what is told is compared with what is there: an item may go deaf while its subscription lives."""
SLOW = 2
"""Times what was asked; a server that looks at a variable more seldom than that is asked for it instead."""
PATIENCE_US = 10 * SECOND_US
"""The least time without news after which a signal is stale: contract §6, bad rows."""
FIRST_WORD_US = 3 * SECOND_US
"""An item says its first value with the next telling; who has not yet after so long is asked."""
SUSPECT_US = 10 * SECOND_US
"""A difference that is not told for so long is no change on its way."""
REQUESTS_KEPT = 64
PUBLISHING_MIN_US = 50_000
QUEUE_MIN, QUEUE_USUAL_MAX = 2, 100
HISTORY_GAP_US = 3 * SECOND_US
"""Shorter gaps are bridged by what is told."""
FILLS_MAX = 2
"""Sessions that were lost while they looked into the history: then the live values come first, and the gap stays."""
HEARD_EVERY_US = 60 * SECOND_US
"""How often it is noted until when everything was heard: a later session fills the gap from there."""

REQUEST_TOO_LARGE = 0x80B8_0000
NO_NODE = frozenset({"BadNodeIdUnknown", "BadNodeIdInvalid", "BadNotFound", "BadParentNodeIdInvalid"})
NO_NAME = frozenset({"BadAttributeIdInvalid", "BadNotReadable", "BadUserAccessDenied", "BadNotSupported"})
"""Answers of a server that never tells a BrowseName; any other may pass, and until then nobody knows which variable it is."""
NO_NODE_CODES = np.array([code for code, each in status.STATUSES.items() if each.name in NO_NODE], np.uint32)
NO_MORE_ITEMS = ("BadTooManyMonitoredItems", "BadOutOfMemory", "BadResourceUnavailable")


@dataclass(slots=True)
class _Counters:
    values: int = 0
    bad_values: int = 0
    not_numeric: int = 0
    subscriptions: int = 0
    monitored_items: int = 0
    deaf_items: int = 0
    """Items that told nothing while their variable had changed."""


@dataclass(slots=True)
class _Server:
    """What this session found the server to be. uris: its namespaces, by number. nodes_max: of one Read."""

    uris: tuple[str, ...]
    nodes_max: int
    items_max: int
    profile: Profile
    resolved_us: int


@dataclass(frozen=True, slots=True)
class _Request:
    """A Read that is kept: encoded, since its list of nodes is the bulk of it, and how its last answer was laid out."""

    encoded: tuple[bytes, bytes]
    layout: decode.Layout


@dataclass(slots=True)
class OpcUaSession:
    """An open session. One task owns it. See contract.Session, Idles, Describes, Remembers."""

    name: str
    settings: Connection
    points: pts.Points
    clock: Clock
    pki: str | None
    expiries: dict[str, Sequence[Expiry]] = field(default_factory=dict)
    """By url, when the certificates of its server end: the driver's, who is asked for it."""
    client_counts: ClientCounters = field(default_factory=ClientCounters)
    telling: TellingCounters = field(default_factory=TellingCounters)
    counts: _Counters = field(default_factory=_Counters)
    client: Client | None = None
    server: _Server | None = None
    subscription: Subscription | None = None
    _over: Subscription | None = None
    """The subscription before this one, whose requests may still lie at the server."""
    memory: Memory = field(default_factory=Memory)
    _nodes: list[Any] = field(default_factory=list)
    """Of each point its NodeId in this session; None where the server has no such namespace."""
    _ids: dict[int, bytes] = field(default_factory=dict)
    """Of points, as far as they were asked, the ReadValueId of the value, encoded; void with `_nodes`."""
    _missing: tuple[str, ...] = ()
    """Namespaces that points want and the server has not."""
    _requests: dict[bytes, "_Request"] = field(default_factory=dict)
    items: Items = field(default_factory=Items)
    _put_off: set[int] = field(default_factory=set)
    """Points whose items were refused, until the others have had their turn; and why."""
    _refusals: set[str] = field(default_factory=set)
    _told_odd: set[str] = field(default_factory=set)
    _look_us: int = 0
    _look_pause_us: int = LOOK_AGAIN_US
    _subscribe_us: int = 0
    _subscribe_pause_us: int = SUBSCRIBE_AGAIN_US
    _look_after_us: int = 0
    _look_after_from: int = 0
    _read_us: int = 0
    past: Past = field(default_factory=Past)
    _shapes: structure.Shapes = field(default_factory=structure.Shapes)

    # --- what the poller asks -----------------------------------------------------------------------------------------

    async def read(self, due: Ints) -> Readings:
        """Read these points once, and take what was told of them. See contract.Session.

        ts: the source's stamp when it is within an hour of the receipt, else the receipt. Raises DeviceSilent when the
        server does not answer, says nothing, or the session is gone.
        """
        with self._services():
            await self._ready()
            await self._look_for_nodes(due)
            before = await self._fill_gap(due)
            asked = self._to_ask(due)
            if asked.any():
                await self._ask(due[asked])
            return self._readings(due, asked, before)

    async def idle(self, until_us: int) -> int:
        """Subscribe, look after what is told, and fill gaps, a piece at a time. See contract.Idles."""
        if self.client is None:
            return until_us
        took_us = 0
        with self._services():
            await self._ready()
            while (now := self.clock.monotonic_us()) + took_us < until_us:
                work = self._next_work(now)
                if work is None:
                    break
                await work()
                took_us = max(took_us, self.clock.monotonic_us() - now)
            else:
                return until_us
        return min(until_us, self._next_work_us(now))

    def use(self, points: Sequence[Point]) -> None:
        """See contract.Session.use."""
        self._ids.clear()
        self.points, moved, dropped = pts.carried_over(old := self.points, points)
        self.items.to_delete += [int(old.item[place]) for place in dropped]
        places = places_of(moved, len(old))
        self.items.move(places)
        self._requests.clear()
        self.past.move(places, len(self.points))
        self._put_off.clear()
        self._look_us = self._subscribe_us = 0
        if self.client is not None:
            self._name_nodes(self.client)

    def explain(self, point: int) -> str:
        """See contract.Session.explain."""
        return self.points.explain(point)

    def counters(self) -> dict[str, int | float]:
        counts = {**asdict(self.client_counts), **asdict(self.counts), **asdict(self.telling)}
        counts["back_filled"] = self.past.back_filled  # values that were read from the server's history
        counts["polled"] = int(np.count_nonzero(~self.points.told))
        return counts

    async def describe(self, points: Sequence[Point]) -> list[str | None]:
        """Texts of the server, such as a serial number. See contract.Describes."""
        client = await self._ready()
        names = [parse_node_id(point.settings.address) for point in points]
        nodes = [self._node(client, name) for name, point in zip(names, points, strict=True)]
        there = [node for node in nodes if node is not None]
        with self._services():
            try:
                values = iter(await read_values(client, there, client.ua.AttributeIds.Value) if there else [])
            except Refused as refused:
                if refused.name not in TOO_LONG:
                    raise
                return [None] * len(nodes)  # a text that is too long to be sent is none; the readings must not suffer
        return [None if node is None else _text(next(values)) for node in nodes]

    # --- what outlives it ---------------------------------------------------------------------------------------------

    def recall(self, notes: bytes) -> None:
        """See contract.Remembers."""
        found = recalled(notes)
        if found is not None:
            self.memory = found
            if self.client is not None:
                self._name_nodes(self.client)

    def notes(self) -> bytes | None:
        """See contract.Remembers: when something was learned, and now and then until when everything was heard."""
        memory = self.memory
        heard = memory.heard_us - memory.written_us
        if not memory.changed and (heard < HEARD_EVERY_US or not self.settings.history) and self.client is not None:
            return None
        if not memory.heard_us or (self.client is None and not heard):
            return None
        return memory.notes()

    # --- its life -----------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """A new client, session and resolved namespaces. Raises DeviceSilent or DeviceRefused; the caller calls `close`."""
        client = self.client = await opened(
            self.settings, self.pki, self.clock, self.client_counts, int(self.points.every.max(initial=0))
        )
        self.expiries[self.settings.url] = client.expiries
        for words in client.warnings:
            log.warning("%s: %s", self.name, words)
        with self._services():
            await self._resolve(client)
        client.used_us = self.clock.monotonic_us()
        if self._missing and not any(node is not None for node in self._nodes):
            raise DeviceRefused(f"{client.url}: the server has no namespace {', '.join(self._missing)}")
        for uri in self._missing:
            log.warning("%s: the server has no namespace %s; its signals are refused", self.name, uri)

    async def close(self, patience_s: float) -> None:
        """Say goodbye for at most `patience_s`, then drop the socket, whatever state it is in. Raises nothing."""
        client, self.client, self.subscription = self.client, None, None
        if client is not None:
            await client.close(patience_s)

    @contextmanager
    def _services(self) -> Iterator[None]:
        """An answer with a bad status, of which nobody here could make anything, as an error of the contract.

        It ends the session: until when everything was heard is noted, so that no value is filled in a second time.
        """
        try:
            yield
        except Refused as refused:
            self.memory.changed = True
            raise translated(refused, f"{self.settings.url}: no answer") from refused
        except (DeviceSilent, DeviceRefused):
            self.memory.changed = True
            raise

    async def _ready(self) -> Client:
        """The client, its channel renewed when that is due; made anew when it rested too long."""
        if self.client is None:
            raise DeviceSilent(f"{self.settings.url}: the session is closed")
        if self.client.outlived():
            await self._anew()
        client = self.client
        if self.subscription is not None and self.subscription.over:
            self._poll_meanwhile(client, self.subscription)
        if self.subscription is not None:
            self.subscription.check()
        await client.keep()
        if self._missing and self.clock.monotonic_us() - self._server().resolved_us > RESOLVE_AGAIN_US:
            with self._services():
                await self._resolve(client)
        return client

    def _poll_meanwhile(self, client: Client, over: Subscription) -> None:
        """The subscription is over and the session stands: everything is polled until there is another one."""
        log.warning("%s: polled, since the subscription is over: %s", self.name, over.over)
        self.telling.dropped += over.unread
        self.subscription, self._over = None, over
        self.items.clear(self.points)
        self._subscribe_later()
        request = client.ua.DeleteSubscriptionsRequest()
        request.Parameters.SubscriptionIds = [over.number]
        with client.door("the subscription was not ended"):
            _ = client.leave(request)  # nobody waits for the answer

    def _subscribe_later(self) -> None:
        self._subscribe_us = self.clock.monotonic_us() + self._subscribe_pause_us
        self._subscribe_pause_us = min(2 * self._subscribe_pause_us, SUBSCRIBE_AGAIN_MAX_US)

    async def _anew(self) -> None:
        """The session rested for so long that the server will have ended it: a poll period may be longer than it lives."""
        await self.close(CLOSE_S)
        self.points.known[:] = False  # the server may be another one by now
        self.items.clear(self.points)
        self._over = None
        self._shapes = structure.Shapes()
        await self.connect()
        self.client_counts.renewals += 1

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def _resolve(self, client: Client) -> None:
        """The server's namespaces, limits and make; the points' NodeIds with the numbers of this session."""
        ids = client.ua.ObjectIds
        wanted = (
            ids.Server_NamespaceArray,
            ids.Server_ServerCapabilities_OperationLimits_MaxNodesPerRead,
            ids.Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
            ids.Server_ServerStatus_BuildInfo_ProductName,
            ids.Server_ServerStatus_BuildInfo_ManufacturerName,
        )
        nodes = [client.ua.NodeId(int(number), 0) for number in wanted]
        uris, *limits = [value_of(each) for each in await read_values(client, nodes, client.ua.AttributeIds.Value)]
        if not isinstance(uris, list):
            raise DeviceSilent(f"{client.url}: the server does not tell its namespaces")
        said = " ".join(str(text) for text in limits[2:] if text)
        profile = profile_of(self.settings.profile, said)
        self.server = _Server(
            tuple(map(str, uris)),
            smallest(NODES_TOLD_MAX if limits[0] else NODES_MAX, limits[0], profile.nodes_max),
            smallest(ITEMS_AT_ONCE, limits[1], profile.nodes_max),
            profile,
            self.clock.monotonic_us(),
        )
        self._name_nodes(client)

    def _server(self) -> _Server:
        assert self.server is not None, "connect comes first"
        return self.server

    def _name_nodes(self, client: Client) -> None:
        """The points' NodeIds with the namespace numbers of this session."""
        self._nodes = [
            self._node(client, name) for name, point in zip(self.points.names, self.points.points, strict=True)
        ]
        self._ids.clear()
        wanted = {self._uri(name) for name in self.points.names}
        self._missing = tuple(sorted(uri for uri in wanted if uri is not None and uri not in self._server().uris))
        self._requests.clear()
        for place, node in enumerate(self._nodes):
            if node is None:
                self._unknown(place, f"the server has no namespace {self._uri(self.points.names[place])}")
            elif not self.points.known[place]:
                self.points.words.pop(place, None)

    def _node(self, client: Client, name: NodeName) -> Any:
        uri = self._uri(name)
        if uri is None:
            return client.ua.NodeId(name.identifier, name.index)
        uris = self._server().uris
        return client.ua.NodeId(name.identifier, uris.index(uri)) if uri in uris else None

    def _uri(self, name: NodeName) -> str | None:
        """Of a namespace that the configuration names by number, the URI that it had when it was first seen."""
        return name.uri or (self.memory.uris.get(name.index) if name.index else None)

    def _unknown(self, point: int, words: str) -> None:
        self.points.known[point] = self.points.told[point] = False
        self.points.words[point] = words
        self.points.values[point], self.points.quality[point] = np.nan, Quality.REFUSED

    async def _look_for_nodes(self, due: Ints) -> None:
        """Read the names of variables that are not known yet; of those that were not there, again after a while."""
        points, now = self.points, self.clock.monotonic_us()
        wanted = due[~points.known[due]]
        there = [self._nodes[point] is not None for point in wanted.tolist()]
        wanted = wanted[np.array(there, np.bool_)]
        if not len(wanted) or (now < self._look_us and (points.quality[wanted] == Quality.REFUSED).all()):
            return
        client = await self._ready()
        most = max(1, min(NAMES_AT_ONCE, self._server().nodes_max // 2))
        for start in range(0, len(wanted), most):
            await self._look_for(client, wanted[start : start + most].tolist())
        if points.known[wanted].all():
            self._look_pause_us = LOOK_AGAIN_US
        self._look_us = self.clock.monotonic_us() + self._look_pause_us
        self._look_pause_us = min(2 * self._look_pause_us, LOOK_AGAIN_MAX_US)

    async def _look_for(self, client: Client, wanted: Sequence[int]) -> None:
        """Find out of each of these whether it is the variable that was meant."""
        kinds = client.ua.AttributeIds
        nodes = [self._nodes[point] for point in wanted]
        names = await read_attributes(client, nodes, (kinds.BrowseName, kinds.DataType))
        for place, point in enumerate(wanted):
            browse, kind = names[2 * place], names[2 * place + 1]
            code = browse.StatusCode.value if browse.StatusCode is not None else 0
            if code & status.BAD and status.name(code) in NO_NODE:
                self._unknown(point, f"{status.name(code)}: {self._nowhere(point)}")
                continue
            called = getattr(value_of(browse), "Name", None)
            if code & status.BAD and status.name(code) not in NO_NAME:
                self._unknown(point, f"{status.name(code)}: the server does not tell the variable's name (yet)")
                continue
            if not code & status.BAD:
                if called is None:
                    self._unknown(point, "the server does not tell the variable's name (yet)")
                    continue
                is_called, is_of = status.readable(str(called)), status.readable(self._kind(client, value_of(kind)))
                if words := self._other(point, is_called, is_of):
                    self._unknown(point, words)
                    continue
            self._asked(client, point)  # now, while few are looked at: the first read is of all of them at once
            self.points.known[point] = True
            self.points.words.pop(point, None)
            if self.points.quality[point] == Quality.REFUSED:
                self.points.quality[point] = Quality.HOLD

    def _nowhere(self, point: int) -> str:
        name, count = self.points.names[point], len(self._server().uris)
        if self._uri(name) is None and name.index >= count:
            return f"the server has no namespace {name.index}, only 0 … {count - 1}; write nsu=URI, which does not move"
        return "the server has no such variable (yet); it is looked for again, and `browse` shows what there is"

    def _other(self, point: int, is_called: str, is_of: str) -> str:
        """In words, when the node is another variable than the one that was meant; else it is learned."""
        if words := self.memory.another(self.points.address(point), is_called, is_of):
            return words
        name, uris = self.points.names[point], self._server().uris
        if name.uri is None and 0 < name.index < len(uris):
            self.memory.learn_uri(name.index, uris[name.index])
        return ""

    def _kind(self, client: Client, node: Any) -> str:
        """A data type in words: `Double`, or its NodeId with the namespace's URI."""
        if not isinstance(node, client.ua.NodeId):
            return ""
        if node.NamespaceIndex == 0 and isinstance(node.Identifier, int):
            return str(client.ua.ObjectIdNames.get(node.Identifier, f"i={node.Identifier}"))
        return pts.title(self._server().uris, node.NamespaceIndex, node.Identifier)

    # --- asking -------------------------------------------------------------------------------------------------------

    def _to_ask(self, due: Ints) -> Bools:
        points = self.points
        if self.subscription is None:  # nothing is told
            return points.known[due]
        if self.subscription.resync:
            points.again |= points.told
            self.subscription.resync = False
        mute = ~points.heard[due] & (self.clock.monotonic_us() - points.news_us[due] > FIRST_WORD_US)
        chosen: Bools = points.known[due] & (~points.told[due] | points.again[due] | mute)
        return chosen

    async def _ask(self, wanted: Ints) -> None:
        """Read the values of these points, as few requests as the server takes, one after another."""
        by_hand = self.points.by_hand[wanted]
        for chosen, in_one_go in ((wanted[~by_hand], True), (wanted[by_hand], False)):
            start = 0
            while start < len(chosen):
                piece = chosen[start : start + self._server().nodes_max]
                if await self._ask_piece(piece, in_one_go):
                    start += len(piece)

    async def _ask_piece(self, piece: Ints, in_one_go: bool) -> bool:
        """One Read. False: the server found it too long; ask for less."""
        client = self.client
        assert client is not None
        try:
            request = self._request(client, piece)
            if len(piece) > 1 and len(request.encoded[1]) > client.parameters_max:
                raise Refused(REQUEST_TOO_LARGE)
            raw = await client.ask_raw(
                *request.encoded, client.ua.ReadResponse, f"no answer to a read of {len(piece)} variables"
            )
            if in_one_go:
                self._take(piece, self._column(client, raw, len(piece), request.layout))
            else:
                await self._take_by_hand(client, piece, raw)
        except Refused as refused:
            if refused.name not in TOO_LONG:
                raise
            if len(piece) > 1:
                self._server().nodes_max = max(1, len(piece) // 2)
                return False
            self._take(piece, self._too_long(refused.code))  # the others must not suffer
        return True

    def _too_long(self, code: int) -> decode.Column:
        """A variable whose value alone is more than the server can send."""
        codes, ts = np.array([code], np.uint32), np.array([self.clock.wall_us()], np.int64)
        bad = np.array([status.quality(code)], np.uint8)
        return decode.Column(None, np.full(1, np.nan), bad, ts, codes, np.zeros(1, np.uint8))

    def _request(self, client: Client, piece: Ints) -> _Request:
        key = piece.tobytes()
        if key not in self._requests:
            if len(self._requests) >= REQUESTS_KEPT:
                self._requests.clear()
            parameters = encode.read([self._asked(client, point) for point in piece.tolist()], encode.SOURCE)
            self._requests[key] = _Request((client.prefix(client.ua.ReadRequest), parameters), decode.Layout())
        return self._requests[key]

    def _asked(self, client: Client, point: int) -> bytes:
        """The ReadValueId of a point's value, encoded."""
        if point not in self._ids:
            node = client.node(self._nodes[point])
            self._ids[point] = encode.read_value_id(node, index_range=self.points.address(point).index)
        return self._ids[point]

    def _column(self, client: Client, raw: bytes, count: int, layout: decode.Layout) -> decode.Column:
        """An answer as a whole; what is unusual in it the library reads."""
        wall = self.clock.wall_us()
        found = decode.read_response(raw, count, wall, layout)
        if found is not None:
            return found[1]
        with client.door("an answer that cannot be read"):
            column = decode.from_data_values(client.decoded(raw, client.ua.ReadResponse).Results or (), wall)
        if len(column.values) != count:
            raise DeviceSilent(
                f"{client.url}: {count} variables asked, {len(column.values)} answered", Quality.PROTOCOL
            )
        return column

    async def _take_by_hand(self, client: Client, piece: Ints, raw: bytes) -> None:
        """An answer with arrays and structures, of each of which one number is wanted."""
        with client.door("an answer that cannot be read"):
            items = client.decoded(raw, client.ua.ReadResponse).Results or []
        if len(items) != len(piece):
            raise DeviceSilent(f"{client.url}: {len(piece)} variables asked, {len(items)} answered", Quality.PROTOCOL)
        chosen = [await self._chosen(client, *each) for each in zip(piece.tolist(), items, strict=True)]
        with client.door("an answer that cannot be read"):
            column = decode.from_data_values(chosen, self.clock.wall_us())
        self._take(piece, column)
        self.points.quality[piece[~self.points.known[piece]]] = Quality.REFUSED

    async def _chosen(self, client: Client, point: int, item: Any) -> Any:
        """A DataValue with the element or the member that was asked for, in the place of the whole."""
        settings = self.points.address(point)
        if settings.member is not None:
            try:
                return await self._shapes.member(client, self._nodes[point], item, settings.member)
            except structure.Unreadable as fault:
                self._unknown(point, f"{settings.address} {fault}")
                return structure.with_value(client, item, None)
        raw = value_of(item)
        if settings.index is not None and raw is not None and not isinstance(raw, list):
            # Some servers leave the index aside where there is nothing to choose from (Part 4, 7.27: the answer is an array).
            self._unknown(point, f"{settings.address} is no array: take its index away, or correct its address")
            return structure.with_value(client, item, None)
        while isinstance(raw, list) and len(raw) == 1:
            (raw,) = raw
        return item if isinstance(raw, list) else structure.with_value(client, item, raw)

    def _take(self, at: Ints, column: decode.Column | Told) -> None:
        """Note readings, and tell once of values that are no numbers."""
        self.points.note(at, column, column.t_us if isinstance(column, Told) else self.clock.monotonic_us())
        if (column.status >= status.BAD).any():
            gone = np.isin(column.status & status.NAME_MASK, NO_NODE_CODES)
            if gone.any():
                self._forget(at[gone])
        odd = (column.quality == Quality.OTHER) & (column.status < status.BAD)
        if odd.any():
            self.counts.not_numeric += int(np.count_nonzero(odd))
            for point in at[odd].tolist():
                self._tell_odd(point)

    def _forget(self, at: Ints) -> None:
        """These variables are gone: what stands there later may be another one, and is looked at like a new one."""
        now = self.clock.monotonic_us()
        for point in np.unique(at).tolist():
            words = f"{status.name(int(self.points.status[point]))}: the server has no such variable any more"
            self.items.untell(self.points, point)
            self._unknown(point, words)
        self._look_us, self._look_pause_us = now + LOOK_AGAIN_US, 2 * LOOK_AGAIN_US

    def _tell_odd(self, point: int) -> None:
        about = self.points.points[point]
        if about.name not in self._told_odd:
            self._told_odd.add(about.name)
            words = pts.unfit(int(self.points.typed[point]))
            log.warning("%s: %s (%s) is %s", self.name, about.name, about.settings.address, words)

    # --- what is handed on --------------------------------------------------------------------------------------------

    def _readings(self, due: Ints, asked: Bools, before: Sequence[Readings]) -> Readings:
        """What the server told since the last read, what it was asked, and of the rest that it stands."""
        now, wall = self.clock.monotonic_us(), self.clock.wall_us()
        self.past.note_first(self.points, not self._read_us)
        for each in before:
            self.past.leave_out(each, due)
        blocks = list(before)
        if self.subscription is not None:
            told, asked = self._told_beside(self.subscription, due, asked, now)
            blocks += told
        last = self._now(due, asked, wall)
        if not blocks:
            readings = last
        else:
            pts.merge(blocks, last, now, asked)
            readings = blocks[0] if len(blocks) == 1 and len(blocks[0].values) == 1 else pts.stacked(blocks, now)
            if readings.values.shape[0] == 1:
                readings = Readings(readings.values[0], readings.quality[0], readings.ts[0])
        fresh = readings.quality & CODE_MASK
        self.counts.values += int(np.count_nonzero(fresh != Quality.HOLD))
        self.counts.bad_values += int(np.count_nonzero(fresh >= Quality.TIMEOUT))
        self._read_us = now
        self.memory.heard_us, self.memory.fills = self._heard_until(now, wall), 0
        return readings

    def _told_beside(self, telling: Subscription, due: Ints, asked: Bools, now: int) -> tuple[list[Readings], Bools]:
        """What was told beside what was asked, and which answers stand: what was told before its answer must not stand
        after it; what was told while others were asked, must.
        """
        at = due[asked]
        read, read_us = self.points.last(at), self.points.news_us[at]
        blocks = self._drained(telling, due)
        newer = at[self.points.news_us[at] > read_us]
        news = self.points.last(newer)
        self.points.note(at, read, now)
        self.points.note(newer, news, now)
        return blocks, asked & ~np.isin(due, newer)

    def _heard_until(self, now: int, wall: int) -> int:
        """UTC µs, until when everything was heard: what a server had to tell after it fell silent was not."""
        telling = self.subscription
        if telling is None or not self.points.told.any():
            return wall
        return wall - (now - max(telling.confirmed_us, telling.begun_us))

    def _drained(self, telling: Subscription, due: Ints) -> list[Readings]:
        told = []
        for each in telling.drain(np.unique(self.points.every[due]).tolist()):
            points = self.items.points(each.handle)
            wanted = points >= 0
            ours = (each if wanted.all() else each.only(wanted))._replace(handle=points[wanted])
            if not ours.noted:
                self.points.heard[ours.handle] = True
                ours = self._without_repeats(ours)
                self._take(ours.handle, ours)
            told.append(ours)
        blocks, others = pts.rows_of(told, due, len(self.points), self._read_us)
        for each in others:
            periods = self.points.every[each.handle]
            for period in np.unique(periods).tolist():
                its = each.only(periods == period)
                telling.put_back(its._replace(handle=self.items.handles(its.handle, len(self.points))), period)
        return blocks

    def _without_repeats(self, told: Told) -> Told:
        """Without the first word of each item where it says again what was read before it was made."""
        points = self.points
        same = (points.ts[told.handle] == told.ts) & (points.status[told.handle] == told.status)
        same &= (points.values[told.handle] == told.values) & (points.quality[told.handle] == told.quality)
        if not same.any():
            return told
        # Only before any news of its point: 0, 1, 0 within one stamp of a coarse clock ends at 0.
        news, first = np.flatnonzero(~same), np.full(len(points), len(same))
        np.minimum.at(first, told.handle[news], news)
        return told.only(~(same & (np.arange(len(same)) < first[told.handle])))

    def _now(self, due: Ints, asked: Bools, wall: int) -> Readings:
        """How things stand: fresh what was asked, refused what is not there, confirmed what the server has nothing new of."""
        points = self.points
        if asked.all():
            return Readings(points.values[due], points.quality[due], points.ts[due])
        values, quality = np.full(len(due), np.nan), np.full(len(due), Quality.HOLD, np.uint8)
        ts = np.full(len(due), wall, np.int64)
        telling = self.subscription
        if telling is not None and telling.confirmed_us > self._read_us and not telling.resync:
            sure = points.told[due] & points.heard[due] & (points.quality[due] != Quality.HOLD)
            sure &= points.suspect_us[due] == pts.NEVER_US  # a look has shown another value
            quality[sure] = Quality.CONFIRMED
        fresh = due[asked]
        values[asked], quality[asked], ts[asked] = points.values[fresh], points.quality[fresh], points.ts[fresh]
        quality[~points.known[due]] = Quality.REFUSED
        return Readings(values, quality, ts)

    # --- work between two reads ---------------------------------------------------------------------------------------

    def _next_work(self, now: int) -> Any:
        """What is to be done next that no reading waits for; None: nothing yet."""
        if (gap := self.past.gap) is not None and gap.open and not (gap.waits and now < gap.patience_us):
            return self._go_on_filling
        if self.settings.mode != "subscribe" or not self.points.known.any():
            return None
        if self.items.to_delete and self.subscription is not None:
            return self._delete_items
        free = self._over is None or self._over.answered
        if free and now >= self._subscribe_us and self._untold().size:
            return self._subscribe
        if now >= self._look_after_us and self.points.told.any():
            return self._look_after
        return None

    def _next_work_us(self, now: int) -> int:
        """When there may be something to do again; the life of the server is looked at each second."""
        if self.settings.mode != "subscribe":
            return 2**62
        return now + SECOND_US

    def _untold(self) -> Ints:
        points = self.points
        numeric = points.known & ~points.told & ~points.by_hand & (points.quality != Quality.REFUSED)
        numeric &= points.quality != Quality.HOLD
        telling = self.subscription
        # A signal with no news for three of its periods, or 10 s, would be stale: it is asked instead.
        patience = np.maximum(3 * points.every, PATIENCE_US)
        if telling is not None and telling.slower:
            numeric &= patience >= 2 * max(telling.publishing_us, telling.keep_alive_us)
        elif telling is not None and self.settings.publishing is None:  # as when a faster signal came later
            numeric &= patience >= 2 * telling.publishing_us
        return np.flatnonzero(numeric)

    def _untold_yet(self) -> Ints:
        untold = self._untold()
        return untold[~np.isin(untold, list(self._put_off))]

    async def _subscribe(self) -> None:
        """Have the server tell some more of the points; those that it refuses stay polled and are tried again later."""
        client = self.client
        assert client is not None
        try:
            if self.subscription is None:
                self.subscription = await self._new_subscription(client)
            wanted = self._untold_yet()[: self._server().items_max]
            refused = await self._create_items(client, self.subscription, wanted.tolist())
            self._put_off.update(wanted[~self.points.told[wanted]].tolist())
            full = any(words.startswith(NO_MORE_ITEMS) for words in refused)
            if not full and self._untold_yet().size:  # who is refused must not stand before the others
                self._refusals |= refused
                return
        except Refused as fault:
            if fault.name in TOO_LONG and self._server().items_max > 1:
                self._server().items_max = max(1, self._server().items_max // 2)
                return
            refused = {f"{fault.name}: {status.advice(fault.code)}"}
        refused, self._refusals = refused | self._refusals, set()
        self._put_off.clear()
        if refused:
            self._subscribe_later()
            self._tell_once(f"polled, since the server will not tell by itself: {'; '.join(sorted(refused))}")

    def _tell_once(self, words: str) -> None:
        if words not in self._told_odd:
            self._told_odd.add(words)
            log.warning("%s: %s", self.name, words)

    async def _new_subscription(self, client: Client) -> Subscription:
        profile = self._server().profile
        fastest = int(self.points.every.min())
        wanted_us = max(PUBLISHING_MIN_US, profile.publishing_min_us, self.settings.publishing or fastest)
        requests = min(REQUESTS, profile.requests_max or REQUESTS)
        made = await subscribed(client, self.telling, wanted_us, requests)
        self.counts.subscriptions += 1
        if made.slower:
            log.warning(
                "%s: the server tells only every %g s; signals that need it more often are polled",
                self.name,
                max(made.publishing_us, made.keep_alive_us) / 1e6,
            )
        self._look_after_us = self.clock.monotonic_us() + LOOK_AFTER_US
        return made

    async def _create_items(self, client: Client, subscription: Subscription, wanted: Sequence[int]) -> set[str]:
        """CreateMonitoredItems of these points. Returns in words which were refused, and why."""
        ua = client.ua
        limit = self._server().profile.items_max
        room = len(wanted) if limit is None else max(0, limit - int(np.count_nonzero(self.points.told)))
        refused = set() if room >= len(wanted) else {"the server's profile allows no more items"}
        wanted = wanted[:room]
        if not wanted:
            return refused
        # What is told while the answer is on its way must find its point.
        first = self.items.add(wanted)
        items = [self._item(client, point, first + place, subscription) for place, point in enumerate(wanted)]
        request = client.prefix(ua.CreateMonitoredItemsRequest), encode.create_items(subscription.number, items)
        try:
            raw = await client.ask_raw(*request, ua.CreateMonitoredItemsResponse, "no answer to a request to monitor")
        except Refused:
            self.items.point_of = self.items.point_of[:first]
            raise
        codes, items_made, sampling_ms = created(client, raw, len(wanted))
        made, at = codes < status.BAD, np.array(wanted, np.int64)
        # Asked, it would be looked at with each beat: a server that looks as often does no worse. NaN is slow.
        wished = SLOW * np.array([self._sampling_us(point) for point in wanted], np.int64)
        slow = made & ~(sampling_ms * 1000 <= np.maximum(wished, self.points.every[at]))
        if slow.any():  # asked, such a variable is never older than its period
            most = f"it would look only every {sampling_ms[slow].max() / 1000:g} s"
            refused.add(f"{most} ({self._called(at[slow])})")
            self.items.to_delete += items_made[slow].tolist()
        good = made & ~slow
        self.items.point_of[first:][~good] = -1
        self.points.told[at[good]], self.points.item[at[good]] = True, items_made[good]
        self.points.heard[at[good]] = False
        # Between its reading and its item a value may have come and gone.
        self.points.news_us[at[good]] = self.clock.monotonic_us()
        self.counts.monitored_items += int(np.count_nonzero(good))
        for code in np.unique(codes[~made]).tolist():
            refused.add(f"{status.name(code)} ({self._called(at[codes == code])}): {status.advice(code)}")
        return refused

    def _called(self, points: Ints) -> str:
        """The first of these, and how many there are."""
        more = f" and {len(points) - 1} more" if len(points) > 1 else ""
        return f"{self.points.points[int(points[0])].name}{more}"

    def _item(self, client: Client, point: int, handle: int, subscription: Subscription) -> bytes:
        """The MonitoredItemCreateRequest of a point, encoded."""
        settings, sampling = self.points.address(point), self._sampling_us(point)
        shown_us = max(self.points.every_us(point), subscription.publishing_us)
        usual = min(QUEUE_USUAL_MAX, max(QUEUE_MIN, 2 * -(-shown_us // max(sampling, PUBLISHING_MIN_US))))
        queue = settings.queue or self.settings.queue or usual
        filtered = change_filter(client.ua, settings.report_deadband)
        shown = encode.NO_FILTER if filtered is None else client.extension(filtered)
        return encode.item(self._asked(client, point), handle, sampling / 1000, queue, shown)

    def _sampling_us(self, point: int) -> int:
        """How often the server shall look at this variable."""
        own = self.points.address(point).sampling
        wanted = self.settings.sampling if own is None else own
        return max(self.points.every_us(point) if wanted is None else wanted, self._server().profile.sampling_min_us)

    async def _delete_items(self) -> None:
        """Let the server forget items whose signals are no longer wanted."""
        client, subscription = self.client, self.subscription
        assert client is not None
        assert subscription is not None
        most = self._server().items_max
        dropped, self.items.to_delete = self.items.to_delete[:most], self.items.to_delete[most:]
        request = client.ua.DeleteMonitoredItemsRequest()
        request.Parameters.SubscriptionId = subscription.number
        request.Parameters.MonitoredItemIds = dropped
        with suppress(Refused):
            await client.ask(request, "no answer to a request to monitor no more")

    async def _look_after(self) -> None:
        """Compare some of what was told with what is there: who says nothing although its variable changed is deaf."""
        client, points = self.client, self.points
        assert client is not None
        told = np.flatnonzero(points.told)
        first = self._look_after_from if self._look_after_from < len(told) else 0
        piece = told[first : first + min(LOOK_AT_ONCE, self._server().nodes_max)]
        held = points.values[piece].copy(), points.status[piece].copy(), points.news_us[piece].copy()
        request = self._request(client, piece)
        try:
            raw = await client.ask_raw(*request.encoded, client.ua.ReadResponse, "no answer to a look")
        except Refused as refused:
            if refused.name not in TOO_LONG:
                raise
            if len(piece) > 1:
                self._server().nodes_max = max(1, len(piece) // 2)
                return
        else:
            self._compare(piece, self._column(client, raw, len(piece), request.layout), held)
        self._look_after_from = first + len(piece)
        if self._look_after_from >= len(told):
            self._look_after_from = 0
            self._subscribe_pause_us = SUBSCRIBE_AGAIN_US  # it has told for a minute
            suspects = bool((points.suspect_us[points.told] != pts.NEVER_US).any())
            self._look_after_us = self.clock.monotonic_us() + (SUSPECT_US if suspects else LOOK_AFTER_US)

    def _compare(self, piece: Ints, column: decode.Column, held: tuple[Floats, Any, Ints]) -> None:
        """held: values, status and time of the last news before the look. Raises DeviceSilent when most are deaf."""
        points, now = self.points, self.clock.monotonic_us()
        values, codes, news_us = held
        differs = (column.status != codes) | ~((column.values == values) | (np.isnan(column.values) & np.isnan(values)))
        differs &= ~self._within_deadband(piece, column, values)
        if self.subscription is not None:  # what was told of it and not yet read may be the very difference
            differs &= ~np.isin(piece, self.items.points(self.subscription.waiting()))
        suspect = points.suspect_us[piece]
        deaf = differs & (suspect != pts.NEVER_US) & (now - suspect >= SUSPECT_US) & (news_us < suspect)
        points.suspect_us[piece] = np.where(differs, np.where(suspect == pts.NEVER_US, now, suspect), pts.NEVER_US)
        if not deaf.any():
            return
        self.counts.deaf_items += int(np.count_nonzero(deaf))
        who = piece[deaf]
        if len(who) > max(1, int(np.count_nonzero(points.told)) // 2):
            raise DeviceSilent(
                f"{self.settings.url}: connected but silent: {len(who)} variables changed and nothing was told of them",
                Quality.TIMEOUT,
            )
        log.warning("%s: %d items went deaf and are made anew", self.name, len(who))
        for point in who.tolist():
            self.items.untell(self.points, point)
            points.known[point] = False  # what stands there now may be another variable

    def _within_deadband(self, piece: Ints, column: decode.Column, values: Floats) -> Bools:
        """Where a change is too small to be told. A share of the EURange is not known here: all its changes are."""
        bands = [self.points.address(point).report_deadband for point in piece.tolist()]
        if not any(band is not None for band in bands):
            return np.zeros(len(piece), np.bool_)
        allowed = np.array([0.0 if b is None else np.inf if isinstance(b, str) else float(b) for b in bands])
        within: Bools = np.abs(column.values - values) <= allowed
        return within

    # --- the gap before -----------------------------------------------------------------------------------------------

    async def _fill_gap(self, due: Ints) -> list[Readings]:
        """Before the first live value of a session: what the server's history has of the time since the last one."""
        memory = self.memory
        if self._read_us or not self.settings.history or not memory.heard_us or memory.fills >= FILLS_MAX:
            return []
        client = self.client
        assert client is not None
        wall, from_us = self.clock.wall_us(), memory.heard_us
        if wall - from_us < HISTORY_GAP_US:
            return []
        # Of all: the slower ones, too, are missing since then.
        await self._look_for_nodes(np.arange(len(self.points)))
        wanted = np.flatnonzero(self.points.known & ~self.points.by_hand)
        nodes = [self._nodes[point] for point in wanted.tolist()]
        memory.fills, memory.changed = memory.fills + 1, True
        levels: list[ua.DataValue] = []
        for start in range(0, len(nodes), most := self._server().nodes_max):
            piece = nodes[start : start + most]
            levels += await read_attributes(client, piece, (client.ua.AttributeIds.UserAccessLevel,))
        time = client.ua.NodeId(client.ua.ObjectIds.Server_ServerStatus_CurrentTime, 0)
        (told,) = await read_values(client, [time], client.ua.AttributeIds.Value)
        gap = history.begun(nodes, levels, from_us, wall, history.ahead_us(told, self.clock.wall_us()))
        await history.filled(client, gap)
        return self.past.keep(gap, wanted, due, self.clock)

    async def _go_on_filling(self) -> None:
        assert self.client is not None
        assert self.past.gap is not None
        history.go_on(self.client, self.past.gap)

    def belated(self) -> tuple[Ints, Readings] | None:
        """See contract.Belated."""
        return self.past.belated(self.clock)


def _text(item: "ua.DataValue") -> str | None:
    """A value as a text for people; None when it is bad or none."""
    raw = value_of(item)
    if raw is None or (item.StatusCode is not None and item.StatusCode.value & status.BAD):
        return None
    raw = getattr(raw, "Text", raw)
    return status.readable(raw if isinstance(raw, str) else str(raw))


class OpcUa:
    """The entry point `opcua`. `pki`: where certificates are kept, which each connection is told by `at_home`."""

    Connection: type[BaseModel] = Connection
    Address: type[BaseModel] = Address
    inherited: frozenset[str] = frozenset({"sampling", "queue"})

    def __init__(self) -> None:
        self._expiries: dict[str, Sequence[Expiry]] = {}

    @asynccontextmanager
    async def open(self, name: str, connection: Any, points: Sequence[Point], clock: Clock) -> AsyncIterator[Session]:
        """Connect and yield a session. See contract.Driver."""
        session = OpcUaSession(name, connection, pts.points_of(points), clock, connection.home, self._expiries)
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

    def expiries(self, connection: Any) -> Sequence[Expiry]:
        """See contract.Certified."""
        found: Sequence[Expiry] = importlib.import_module("drivers.opcua_expiry").expiries(
            connection, self._expiries.get(connection.url)
        )
        return found

    def at_home(self, connection: Any, data_dir: str) -> Any:
        """See contract.Homes."""
        return connection.at_home(str(Path(data_dir) / "pki"))


DRIVER: Driver = OpcUa()
