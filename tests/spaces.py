"""An address space by hand, in place of a client: what a server may do to a walk, answer by answer.

Nodes are strings; a walk asks as it asks a server, with the library's own requests, and gets its own answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drivers.opcua_client import Refused
from edge_agent.contract import DeviceSilent

URI = "urn:by:hand"
NO_PLACES, DENIED, TOO_MANY = 0x804B_0000, 0x801F_0000, 0x8010_0000
UNKNOWN = 0x8034_0000


@dataclass(slots=True)
class Space:
    """below: the references of each node, in order. values: what variables hold (the others are objects).

    part: references in one answer, at most. places: half-read lists that are kept, -1: any number. browse_max, read_max:
    nodes in one request, beyond which all is refused. denied: nodes that do not tell what hangs below. endless: nodes whose
    list repeats itself for ever. garbled: nodes whose value cannot be decoded.
    """

    ua: Any
    below: Mapping[str, Sequence[str]]
    values: Mapping[str, Any] = field(default_factory=dict)
    part: int = 1000
    places: int = -1
    browse_max: int = 1000
    read_max: int = 1000
    denied: frozenset[str] = frozenset()
    endless: frozenset[str] = frozenset()
    garbled: frozenset[str] = frozenset()
    properties: frozenset[str] = frozenset()
    url: str = "opc.tcp://by.hand:4840"
    connected: bool = True
    points: dict[bytes, tuple[str, int, int]] = field(default_factory=dict)
    browsed: list[list[str]] = field(default_factory=list)
    largest: int = 0
    """References in the largest answer."""
    _count: int = 0

    async def keep(self) -> None:
        pass

    async def ask(self, request: Any, _doing: str) -> Any:
        match type(request).__name__:
            case "BrowseRequest":
                return self._browse(request.Parameters)
            case "BrowseNextRequest":
                return self._browse_next(request.Parameters)
            case _:
                return self._read(request.Parameters)

    def _browse(self, wanted: Any) -> Any:
        nodes = [str(each.NodeId.Identifier) for each in wanted.NodesToBrowse]
        self.browsed.append(nodes)
        if len(nodes) > self.browse_max:
            raise Refused(TOO_MANY)
        answer = self.ua.BrowseResponse()
        most = min(self.part, wanted.RequestedMaxReferencesPerNode or self.part)
        answer.Results = [self._part(node, 0, most) for node in nodes]
        self._weigh(answer.Results)
        return answer

    def _browse_next(self, wanted: Any) -> Any:
        held = [self.points.pop(point) for point in wanted.ContinuationPoints]
        answer = self.ua.BrowseNextResponse()
        if not wanted.ReleaseContinuationPoints:
            answer.Parameters.Results = [self._part(*each) for each in held]
            self._weigh(answer.Parameters.Results)
        return answer

    def _weigh(self, results: Sequence[Any]) -> None:
        self.largest = max(self.largest, sum(len(each.References) for each in results))

    def _part(self, node: str, start: int, most: int) -> Any:
        found = self.ua.BrowseResult()
        if node in self.denied:
            found.StatusCode = self.ua.StatusCode(DENIED)
            return found
        children = list(self.below.get(node, ()))
        found.References = [self._reference(each) for each in children[start : start + most]]
        following = 0 if node in self.endless else start + most
        if following < len(children):
            if 0 <= self.places <= len(self.points):
                found.StatusCode, found.References = self.ua.StatusCode(NO_PLACES), []
                return found
            self._count += 1
            found.ContinuationPoint = str(self._count).encode()
            self.points[found.ContinuationPoint] = (node, following, most)
        return found

    def _reference(self, node: str) -> Any:
        ua, variable = self.ua, node in self.values
        kind = 46 if node in self.properties else 47
        return ua.ReferenceDescription(
            ua.NodeId(kind, 0), True, ua.ExpandedNodeId(node, 1), ua.QualifiedName(node.rpartition(".")[2], 1),
            ua.LocalizedText(node.rpartition(".")[2]), ua.NodeClass.Variable if variable else ua.NodeClass.Object,
            ua.ExpandedNodeId(63 if variable else 61, 0),
        )  # fmt: skip

    def _read(self, wanted: Any) -> Any:
        if len(wanted.NodesToRead) > self.read_max:
            raise Refused(TOO_MANY)
        values = [each for each in wanted.NodesToRead if each.AttributeId == self.ua.AttributeIds.Value]
        if any(str(each.NodeId.Identifier) in self.garbled for each in values):
            raise DeviceSilent("an answer that cannot be read")
        answer = self.ua.ReadResponse()
        answer.Results = [self._attribute(each) for each in wanted.NodesToRead]
        return answer

    def _attribute(self, wanted: Any) -> Any:
        ua, kinds = self.ua, self.ua.AttributeIds
        node = str(wanted.NodeId.Identifier)
        if wanted.NodeId.NamespaceIndex == 0:
            names = ["http://opcfoundation.org/UA/", URI]
            is_names = wanted.NodeId.Identifier == int(ua.ObjectIds.Server_NamespaceArray)
            return ua.DataValue(ua.Variant(names)) if is_names else ua.DataValue(StatusCode=ua.StatusCode(UNKNOWN))
        if wanted.AttributeId == kinds.Value:
            value = self.values.get(node)
            return ua.DataValue(value if isinstance(value, ua.Variant) else ua.Variant(value))
        if wanted.AttributeId == kinds.DataType:
            return ua.DataValue(ua.Variant(ua.NodeId(11, 0)))
        if wanted.AttributeId == kinds.UserAccessLevel:
            return ua.DataValue(ua.Variant(1, ua.VariantType.Byte))
        return ua.DataValue(StatusCode=ua.StatusCode(0x8035_0000))
