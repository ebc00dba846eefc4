"""The walk over a server's address space: what hangs below a node, and what each variable is and holds now.

Rule 1: no answer is larger than what is decoded within a moment: few nodes, few references and few attributes at a time.
Rule 2: what a server refuses of one node is a note at that node, and the walk goes on; every node is entered once.
Rule 3: a list that is left half read is given back to the server, which keeps a place for it.
Source: OPC UA Part 4, 5.9.2 (Browse), 5.9.3 (BrowseNext); Part 3, 5 (node classes) and 8.57 (AccessLevel).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drivers import opcua_status as status
from drivers.opcua_client import TOO_LONG, Client, Refused, translated, value_of
from drivers.opcua_found import Found, Node, NodeKind, Variable
from drivers.opcua_profiles import smallest
from drivers.opcua_settings import NodeName, node_text
from drivers.opcua_types import Types, names_of
from drivers.opcua_units import unit_of
from edge_agent.contract import DeviceSilent, Quality

if TYPE_CHECKING:
    from asyncua import ua

OBJECTS_AT_ONCE, REFERENCES_OF_OBJECT = 8, 25
VARIABLES_AT_ONCE, REFERENCES_OF_VARIABLE = 32, 6
"""Nodes in one Browse, and references of each in one answer: 200 in all, 10 ms to decode. More come by BrowseNext."""
READ_AT_ONCE = 40
"""Variables whose attributes and values are read at once."""
NODES_MAX = 200
"""Attributes in one Read."""
ELEMENTS_SHOWN = 8
"""Of an array so many elements are read."""
IDLE_MAX = 20
"""So many parts of one list that bring nothing new end it: a server may repeat itself for ever."""
RESULT_MASK = 1 | 4 | 8 | 16 | 32
"""Of a reference: its type, and the target's class, BrowseName, DisplayName and type definition (Part 4, 5.9.2.2)."""
OBJECT, VARIABLE = 1, 2
HAS_PROPERTY, HAS_HISTORICAL_CONFIGURATION, FOLDER_TYPE = 46, 56, 61
READABLE, HISTORY_READ = 0x01, 0x04
ABOUT = (
    "EngineeringUnits", "EURange", "InstrumentRange", "EnumStrings", "EnumValues", "FalseState", "TrueState",
)  # fmt: skip
"""Properties that say what a variable means: Part 8, 5.3."""


@dataclass(slots=True)
class Walk:
    """A walk that goes on. ids: the library's NodeId of each node found. depth_max, nodes_max: where it stops.

    whole_space: also what belongs to the standard and to the server itself (namespace 0).
    """

    client: Client
    found: Found
    tell: Callable[[int], None]
    """How many nodes were found so far."""
    uris: tuple[str, ...] = ()
    depth_max: int = 1 << 30
    nodes_max: int = 1 << 30
    whole_space: bool = False
    browse_max: int = VARIABLES_AT_ONCE
    read_max: int = NODES_MAX
    ids: list[Any] = field(default_factory=list)
    types: Types = field(default_factory=Types)
    _seen: set[tuple[int, Any]] = field(default_factory=set)
    _queue: deque[int] = field(default_factory=deque)
    _alone: deque[tuple[int, int]] = field(default_factory=deque)
    """Nodes that are asked for one by one, and how many references at a time (0: all), since the server ran out of places."""
    _unread: deque[int] = field(default_factory=deque)
    _about: list[tuple[int, str, Any]] = field(default_factory=list)
    """Properties to read: the variable's place, the property's name and its NodeId."""

    # --- what it is told to do ----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """The server's namespaces, limits and make. Raises DeviceSilent, DeviceRefused."""
        ids = self.client.ua.ObjectIds
        limits = "Server_ServerCapabilities_OperationLimits_MaxNodesPer"
        build = "Server_ServerStatus_BuildInfo_"
        names = ("Server_NamespaceArray", f"{limits}Browse", f"{limits}Read", f"{build}ManufacturerName")
        wanted = [getattr(ids, name) for name in (*names, f"{build}ProductName", f"{build}SoftwareVersion")]
        items = [self._item(self.client.ua.NodeId(int(number), 0), "Value") for number in wanted]
        uris, browse, read, *make = [good_value_of(each) for each in await self.read(items)]
        if not isinstance(uris, list):
            raise DeviceSilent(f"{self.client.url}: the server does not tell its namespaces", Quality.PROTOCOL)
        self.uris = tuple(map(str, uris))
        self.browse_max, self.read_max = smallest(self.browse_max, browse), smallest(self.read_max, read)
        self.found.uris = self.uris
        maker, product, version = (text.strip() if isinstance(text, str) else "" for text in make)
        self.found.server = f"{product or maker} {version}".strip()

    def start_at(self, node: Any, name: str, kind: NodeKind = NodeKind.OBJECT) -> None:
        """From this node on; it is the root of what is shown."""
        self._add(-1, node, Node(self._text(node), self._short(node), name, name, -1, 0, kind))

    async def go(self) -> None:
        """Until everything is found, or as much as was asked for. Raises DeviceSilent, DeviceRefused."""
        while self._queue or self._alone or self._unread or self._about:
            await self.client.keep()
            browsed = not self._queue and not self._alone
            if browsed or len(self._unread) >= READ_AT_ONCE or len(self._about) >= NODES_MAX:
                await self._learn()
            else:
                await self._browse_some()
            self.tell(len(self.found.nodes))

    async def values(self, places: Sequence[int]) -> None:
        """Read these variables' values again. Raises DeviceSilent, DeviceRefused."""
        await self.client.keep()
        there = [place for place in places if self.ids[place] is not None]
        for start in range(0, len(there), READ_AT_ONCE):
            await self._read_values(there[start : start + READ_AT_ONCE])

    # --- references ---------------------------------------------------------------------------------------------------

    async def children(self, node: Any) -> "list[ua.ReferenceDescription]":
        """All hierarchical references of one node. Raises DeviceSilent, DeviceRefused."""
        (found,) = await self._browse([node], REFERENCES_OF_OBJECT)
        if found.StatusCode.value & status.BAD:
            return []
        references, point = list(found.References or ()), found.ContinuationPoint
        while point and len(references) < self.nodes_max:
            (found,) = await self._browse_next([point])
            references += found.References or ()
            point = found.ContinuationPoint
        await self._give_back([point])
        return references

    async def _browse_some(self) -> None:
        """The next few nodes of one class, one answer and what follows it."""
        if self._alone:
            place, most = self._alone.popleft()
            batch = [place]
        else:
            variables = self.found.nodes[self._queue[0]].kind is not NodeKind.OBJECT
            count, most = (
                (VARIABLES_AT_ONCE, REFERENCES_OF_VARIABLE) if variables else (OBJECTS_AT_ONCE, REFERENCES_OF_OBJECT)
            )
            batch = self._batch(min(count, self.browse_max), variables)
        try:
            results = await self._browse([self.ids[place] for place in batch], most)
        except Refused as refused:
            self._too_long(batch, refused)
            return
        points = [
            (place, result.ContinuationPoint, 0)
            for place, result in zip(batch, results, strict=True)
            if self._taken(place, result, alone=len(batch) == 1, most=most) and result.ContinuationPoint
        ]
        while points:
            points = await self._go_on(points)

    def _batch(self, count: int, variables: bool) -> list[int]:
        batch: list[int] = []
        while self._queue and len(batch) < count:
            if (self.found.nodes[self._queue[0]].kind is not NodeKind.OBJECT) is not variables:
                break
            batch.append(self._queue.popleft())
        return batch

    def _too_long(self, batch: Sequence[int], refused: Refused) -> None:
        if refused.name not in TOO_LONG:
            raise translated(refused, f"{self.client.url}: what hangs below {len(batch)} nodes") from refused
        if len(batch) == 1:
            self._note(batch[0], refused.name)
            return
        self.browse_max = len(batch) // 2
        self._queue.extendleft(reversed(batch))

    def _taken(self, place: int, result: Any, *, alone: bool, most: int) -> bool:
        """Whether the server told what hangs below; note why it did not."""
        code = result.StatusCode.value
        if not code & status.BAD:
            self._take(place, result.References or ())
            return True
        if code & status.NAME_MASK == NO_PLACES and (not alone or most):
            self._alone.append((place, 0 if alone else REFERENCES_OF_OBJECT))
        else:
            self._note(place, status.name(code))
        return False

    async def _go_on(self, points: "list[tuple[int, Any, int]]") -> "list[tuple[int, Any, int]]":
        """The next part of these lists; returns those that go on."""
        if self.found.cut:
            await self._give_back([point for _, point, _ in points])
            return []
        try:
            results = await self._browse_next([point for _, point, _ in points])
        except Refused as refused:
            for place, _, _ in points:
                self._note(place, f"the list broke off: {refused.name}")
            return []
        left = []
        for (place, _, idle), result in zip(points, results, strict=True):
            if result.StatusCode.value & status.BAD:
                self._note(place, f"the list broke off: {status.name(result.StatusCode.value)}")
                continue
            news = self._take(place, result.References or ())
            if result.ContinuationPoint:
                left.append((place, result.ContinuationPoint, 0 if news else idle + 1))
        if any(idle > IDLE_MAX for _, _, idle in left):
            await self._give_back([point for _, point, _ in left])
            for place, _, _ in left:
                self._note(place, "the list broke off: the server repeats itself")
            return []
        self.tell(len(self.found.nodes))
        return left

    async def _browse(self, nodes: Sequence[Any], most: int) -> "list[ua.BrowseResult]":
        """Raises DeviceSilent, DeviceRefused, Refused."""
        ua = self.client.ua
        request = ua.BrowseRequest()
        request.Parameters.RequestedMaxReferencesPerNode = most
        for node in nodes:
            what = ua.BrowseDescription()
            what.NodeId, what.BrowseDirection = node, ua.BrowseDirection.Forward
            what.ReferenceTypeId, what.IncludeSubtypes = ua.NodeId(ua.ObjectIds.HierarchicalReferences), True
            what.NodeClassMask, what.ResultMask = OBJECT | VARIABLE, RESULT_MASK
            request.Parameters.NodesToBrowse.append(what)
        return self._all((await self.client.ask(request, "no answer to a browse")).Results, len(nodes))

    async def _browse_next(self, points: Sequence[Any]) -> "list[ua.BrowseResult]":
        request = self.client.ua.BrowseNextRequest()
        request.Parameters.ReleaseContinuationPoints = False
        request.Parameters.ContinuationPoints = list(points)
        answer = await self.client.ask(request, "no answer to a browse")
        return self._all(answer.Parameters.Results, len(points))

    async def _give_back(self, points: Sequence[Any]) -> None:
        held = [point for point in points if point]
        if held:
            request = self.client.ua.BrowseNextRequest()
            request.Parameters.ReleaseContinuationPoints = True
            request.Parameters.ContinuationPoints = held
            try:
                await self.client.ask(request, "no answer to a browse")
            except Refused:  # it has forgotten them already
                return

    def _all(self, results: Any, wanted: int) -> list[Any]:
        if len(results or ()) != wanted:
            raise DeviceSilent(
                f"{self.client.url}: {wanted} nodes asked, {len(results or ())} answers", Quality.PROTOCOL
            )
        return list(results)

    def _take(self, parent: int, references: "Sequence[ua.ReferenceDescription]") -> bool:
        """Note what hangs below; False when all of it is known already."""
        news = False
        for reference in references:
            news |= self._take_one(parent, reference)
        return news

    def _take_one(self, parent: int, reference: "ua.ReferenceDescription") -> bool:
        above = self.found.nodes[parent]
        node, is_property = self.local(reference.NodeId), self._is(reference.ReferenceTypeId, HAS_PROPERTY)
        if node is None:
            return False
        name = str(reference.BrowseName.Name or "")
        if is_property and above.kind is not NodeKind.OBJECT:
            if name in ABOUT:
                self._about.append((parent, name, node))
                return True
            if not self.whole_space:
                return False
        key = (node.NamespaceIndex, node.Identifier)
        if key in self._seen or (not self.whole_space and self._is_of_the_standard(node, reference)):
            return False
        if above.depth >= self.depth_max:
            above.more = True
            return False
        if len(self.found.nodes) > self.nodes_max:
            self._cut()
            above.more = True
            return False
        variable = int(reference.NodeClass) == VARIABLE
        kind = NodeKind.PROPERTY if is_property else NodeKind.VARIABLE if variable else NodeKind.OBJECT
        display = str(reference.DisplayName.Text or "") if reference.DisplayName is not None else ""
        about = Node(self._text(node), self._short(node), name or display, display, parent, above.depth + 1, kind)
        about.folder = self._is(reference.TypeDefinition, FOLDER_TYPE)
        self._add(parent, node, about)
        return True

    def _cut(self) -> None:
        """There is no room for more nodes: of those that are known already only the variables are still asked about."""
        self.found.cut = True
        objects = [place for place in self._queue if self.found.nodes[place].kind is NodeKind.OBJECT]
        for place in objects:
            self.found.nodes[place].more = True
        self._queue = deque(place for place in self._queue if self.found.nodes[place].kind is not NodeKind.OBJECT)

    def _add(self, parent: int, node: Any, about: Node) -> None:
        place = len(self.found.nodes)
        self.found.nodes.append(about)
        if parent >= 0:
            self.found.nodes[parent].below.append(place)
        self.ids.append(node)
        self._seen.add((node.NamespaceIndex, node.Identifier))
        if about.kind is not NodeKind.PROPERTY:
            self._queue.append(place)
        if about.kind is not NodeKind.OBJECT:
            about.variable = Variable()
            self._unread.append(place)

    def _is_of_the_standard(self, node: Any, reference: "ua.ReferenceDescription") -> bool:
        return node.NamespaceIndex == 0 or self._is(reference.ReferenceTypeId, HAS_HISTORICAL_CONFIGURATION)

    def local(self, expanded: Any) -> Any:
        """The NodeId of a reference's target; None when it is on another server."""
        if getattr(expanded, "ServerIndex", 0):
            return None
        uri, index = getattr(expanded, "NamespaceUri", None), expanded.NamespaceIndex
        if uri:
            if uri not in self.uris:
                return None
            index = self.uris.index(uri)
        return self.client.ua.NodeId(expanded.Identifier, index)

    def _is(self, node: Any, number: int) -> bool:
        return bool(node.NamespaceIndex == 0 and node.Identifier == number)

    def _note(self, place: int, words: str) -> None:
        self.found.nodes[place].note = words

    # --- attributes ---------------------------------------------------------------------------------------------------

    async def _learn(self) -> None:
        """What some of the variables are, and what they hold; then what their properties say of them."""
        count = min(READ_AT_ONCE, len(self._unread))
        places = [self._unread.popleft() for _ in range(count)]
        attributes = ("DataType", "ValueRank", "ArrayDimensions", "UserAccessLevel", "Description")
        told = await self.read([self._item(self.ids[place], name) for place in places for name in attributes])
        for at, place in enumerate(places):
            kind, rank, dimensions, access, description = told[5 * at : 5 * at + 5]
            about = self._variable(place)
            about.rank = int(good_value_of(rank)) if isinstance(good_value_of(rank), int) else -1
            about.dimensions = tuple(int(n) for n in good_value_of(dimensions) or ())
            level = good_value_of(access)
            about.readable = not isinstance(level, int) or bool(level & READABLE)
            about.history = isinstance(level, int) and bool(level & HISTORY_READ)
            about.description = str(getattr(good_value_of(description), "Text", None) or "")
            about.type = await self.types.of(self.client, good_value_of(kind), self._text)
        await self._read_values(places)
        await self._read_about()

    async def _read_values(self, places: Sequence[int]) -> None:
        asked = [place for place in places if self._variable(place).readable]
        items = await self.read([self._value_item(place) for place in asked])
        again = [at for at, item in enumerate(items) if _no_range(item) and not self._variable(asked[at]).is_vast]
        whole = await self.read([self._item(self.ids[asked[at]], "Value") for at in again])
        for at, item in zip(again, whole, strict=True):
            items[at] = item
        for place, item in zip(asked, items, strict=True):
            about = self._variable(place)
            about.is_read = True
            about.status = item.StatusCode.value if item.StatusCode is not None else 0
            about.wire = item.Value.VariantType.value if item.Value is not None else 0
            about.is_array = bool(item.Value is not None and item.Value.is_array)
            about.value, about.members = self.types.plain(item, about.type)

    def _value_item(self, place: int) -> Any:
        item, about = self._item(self.ids[place], "Value"), self._variable(place)
        if about.rank >= 1:
            item.IndexRange = ",".join([f"0:{ELEMENTS_SHOWN - 1}"] * about.rank)
        return item

    async def _read_about(self) -> None:
        now, self._about = self._about[:NODES_MAX], self._about[NODES_MAX:]
        told = await self.read([self._item(node, "Value") for _, _, node in now])
        for (place, name, _), item in zip(now, told, strict=True):
            if not item.StatusCode or not item.StatusCode.value & status.BAD:
                _explain(self._variable(place), name, good_value_of(item))

    async def read(self, items: Sequence[Any]) -> "list[ua.DataValue]":
        """These attributes, as few requests as the server takes; one that cannot be decoded is bad and harms no other.

        Raises DeviceSilent, DeviceRefused.
        """
        found: list[ua.DataValue] = []
        todo = [list(items[at : at + self.read_max]) for at in range(0, len(items), self.read_max)]
        while todo:
            piece = todo.pop(0)
            if len(piece) > self.read_max:
                todo[:0] = [piece[: self.read_max], piece[self.read_max :]]
                continue
            try:
                found += await self._read_piece(piece)
            except Refused as refused:
                if refused.name not in TOO_LONG:
                    raise translated(refused, f"{self.client.url}: a read of {len(piece)} attributes") from refused
                if len(piece) > 1:
                    self.read_max = len(piece) // 2
                    todo.insert(0, piece)
                else:
                    found.append(self._bad(refused.code))
            except DeviceSilent as silent:
                if not self.client.connected or silent.quality is Quality.TIMEOUT:
                    raise
                half = len(piece) // 2
                if half:
                    todo[:0] = [piece[:half], piece[half:]]
                else:
                    found.append(self._bad(UNDECODABLE))
        return found

    async def _read_piece(self, piece: Sequence[Any]) -> "list[ua.DataValue]":
        request = self.client.ua.ReadRequest()
        request.Parameters.TimestampsToReturn = self.client.ua.TimestampsToReturn.Neither
        request.Parameters.NodesToRead = list(piece)
        return self._all((await self.client.ask(request, "no answer to a read")).Results, len(piece))

    def _bad(self, code: int) -> Any:
        return self.client.ua.DataValue(StatusCode=self.client.ua.StatusCode(code))

    def _item(self, node: Any, attribute: str) -> Any:
        return self.client.ua.ReadValueId(node, getattr(self.client.ua.AttributeIds, attribute))

    def _variable(self, place: int) -> Variable:
        about = self.found.nodes[place].variable
        assert about is not None
        return about

    # --- names --------------------------------------------------------------------------------------------------------

    def node_of(self, name: NodeName) -> Any:
        """The NodeId that a person named; None when the server has no such namespace."""
        if name.uri is None:
            return self.client.ua.NodeId(name.identifier, name.index)
        return self.client.ua.NodeId(name.identifier, self.uris.index(name.uri)) if name.uri in self.uris else None

    def _text(self, node: Any) -> str:
        index = node.NamespaceIndex
        uri = self.uris[index] if 0 < index < len(self.uris) else None
        return node_text(uri, index, node.Identifier)

    def _short(self, node: Any) -> str:
        return node_text(None, node.NamespaceIndex, node.Identifier)


NO_PLACES = 0x804B_0000
"""BadNoContinuationPoints: the server keeps no more half-read lists."""
UNDECODABLE = 0x8007_0000
"""BadDecodingError."""
NO_RANGE = frozenset({0x8036_0000, 0x8037_0000})
"""BadIndexRangeInvalid, BadIndexRangeNoData."""


def good_value_of(item: "ua.DataValue") -> Any:
    """None when there is none, or it is bad."""
    if item.StatusCode is not None and item.StatusCode.value & status.BAD:
        return None
    return value_of(item)


def _no_range(item: Any) -> bool:
    return item.StatusCode is not None and item.StatusCode.value & status.NAME_MASK in NO_RANGE


def _explain(about: Variable, name: str, value: Any) -> None:
    """What a property says of its variable; what makes no sense says nothing."""
    match name:
        case "EngineeringUnits" if hasattr(value, "UnitId"):
            about.unit = unit_of(value.NamespaceUri, value.UnitId, getattr(value.DisplayName, "Text", None))
        case "EURange" if hasattr(value, "Low"):
            about.range = (float(value.Low), float(value.High))
        case "InstrumentRange" if hasattr(value, "Low"):
            about.instrument = (float(value.Low), float(value.High))
        case "EnumStrings" | "EnumValues" if isinstance(value, list):
            about.names = names_of(value)
        case "FalseState" | "TrueState" if hasattr(value, "Text"):
            about.names[int(name == "TrueState")] = str(value.Text or "")
        case _:
            pass
