"""The data types of a server, and its values as plain ones: numbers, texts and lists, as JSON can hold them.

Rule: nothing of the library leaves this module; what a type means is told by the server and believed only as data.
"""

import base64
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from drivers import opcua_points as pts
from drivers.opcua_client import Client, Refused, value_of
from drivers.opcua_structure import Member, Shape, Shapes, Unreadable, member_of
from edge_agent.contract import DeviceSilent

BOOLEAN, INT32, DOUBLE, STRING, LOCALIZED_TEXT, STRUCTURE = 1, 6, 11, 12, 21, 22
BUILT_IN_MAX = 25
"""Numbers of the built-in types, which are the NodeIds of their data types as well: Part 6, 5.1.2."""
ENUMERATION, ABSTRACT = 29, frozenset({24, 26, 27, 28})
"""Data types: Part 6, A. BaseDataType, Number, Integer, UInteger: the value decides."""
LEVELS_MAX = 10
"""Of supertypes."""
MEMBERS_MAX, MEMBER_DEPTH = 64, 3
TEXT_MAX = 1000
NAMES_MAX = 1000
"""Of one enumeration."""

TEXTS = (STRING, LOCALIZED_TEXT)
NAME = 8
"""Of a browse result: the BrowseName alone (Part 4, 5.9.2.2)."""

Plain = None | bool | int | float | str | list[Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A data type. built_in: what its values are on the wire, 0 when only a value can tell. names: of an enumeration."""

    name: str = ""
    built_in: int = 0
    names: dict[int, str] = field(default_factory=dict)
    shape: Shape | None = None


@dataclass(slots=True)
class Types:
    """The data types that were met so far, by NodeId."""

    known: dict[str, Kind] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=Shapes)

    async def of(self, client: Client, node: Any, text: Callable[[Any], str]) -> Kind:
        """What the data type with this NodeId is. text: its NodeId in words. Raises DeviceSilent."""
        if node is None:
            return Kind()
        key = node.to_string()
        if key not in self.known:
            self.known[key] = await self._asked(client, node, text)
        return self.known[key]

    async def _asked(self, client: Client, node: Any, text: Callable[[Any], str]) -> Kind:
        standard = node.NamespaceIndex == 0 and isinstance(node.Identifier, int)
        if standard and 0 < node.Identifier <= BUILT_IN_MAX:
            built_in = 0 if node.Identifier in ABSTRACT else node.Identifier
            return Kind(pts.TYPES.get(node.Identifier, ""), built_in)
        name, definition = await _attributes(client, node, ("BrowseName", "DataTypeDefinition"))
        name = str(getattr(name, "Name", None) or text(node))
        fields = getattr(definition, "Fields", None) or ()
        if hasattr(definition, "StructureType"):
            return Kind(name, STRUCTURE, {}, await self._shape(client, node))
        if fields:
            return Kind(name, INT32, {int(each.Value): _name_of(each) for each in fields[:NAMES_MAX]})
        return await self._by_ancestry(client, node, name)

    async def _shape(self, client: Client, node: Any) -> Shape | None:
        try:
            shape = await self.shapes.of_type(client, node)
        except (Unreadable, Refused):
            return None
        return shape if isinstance(shape, Shape) else None

    async def _by_ancestry(self, client: Client, node: Any, name: str) -> Kind:
        """Of a type that the server does not define: what it is a subtype of."""
        at = node
        for _ in range(LEVELS_MAX):
            if at.NamespaceIndex == 0 and at.Identifier == ENUMERATION:
                return Kind(name, INT32, await _enumeration_names(client, node))
            if at.NamespaceIndex == 0 and isinstance(at.Identifier, int) and 0 < at.Identifier <= BUILT_IN_MAX:
                return Kind(name, 0 if at.Identifier in ABSTRACT else at.Identifier)
            above = await _related(client, at, "HasSubtype", inverse=True)
            if not above:
                break
            at = above[0][1]
        return Kind(name)

    def plain(self, item: Any, kind: Kind) -> tuple[Plain, dict[str, float]]:
        """A DataValue's value, and the numbers in it by member when it is a structure."""
        raw = value_of(item)
        return plain(raw), _members(raw, kind.shape)


def is_numeric(built_in: int) -> bool:
    """A truth value or any number."""
    return BOOLEAN <= built_in <= DOUBLE


def plain(raw: Any) -> Plain:
    """As JSON can hold it; a NaN stays one."""
    match raw:
        case None | bool():
            return raw
        case Enum():
            return int(raw.value) if isinstance(raw.value, int) else str(raw.value)
        case int():
            return int(raw)
        case float():
            return float(raw)
        case str():
            return str(raw[:TEXT_MAX])
        case bytes():
            return base64.b64encode(raw[:TEXT_MAX]).decode()
        case datetime():
            return raw.isoformat()
        case list() | tuple():
            return [plain(each) for each in raw]
        case _:
            return _plain_object(raw)


def _plain_object(raw: Any) -> Plain:
    if hasattr(raw, "Locale") and hasattr(raw, "Text"):
        return str(raw.Text or "")[:TEXT_MAX]
    if hasattr(raw, "NamespaceIndex") and hasattr(raw, "Name"):
        return str(raw.Name or "")[:TEXT_MAX]
    if hasattr(raw, "Identifier"):
        return str(raw.to_string())[:TEXT_MAX]
    if dataclasses.is_dataclass(raw) or hasattr(raw, "Body"):
        return "{…}"
    return str(raw)[:TEXT_MAX]


def _members(raw: Any, shape: Shape | None) -> dict[str, float]:
    """The numbers of a structure, by the path that `member` takes."""
    found: dict[str, float] = {}
    if hasattr(raw, "TypeId") and hasattr(raw, "Body"):
        for path in _paths(shape.members, ()) if shape is not None and raw.Body else ():
            try:
                value = member_of(bytes(raw.Body), shape or 0, path)
            except Unreadable:
                continue
            if isinstance(value, int | float):
                found[".".join(path)] = value
    elif dataclasses.is_dataclass(raw) and not hasattr(raw, "Identifier"):
        for each in dataclasses.fields(raw):
            value = getattr(raw, each.name)
            if isinstance(value, int | float) and each.name != "Encoding":
                found[each.name] = value
    return {path: value for path, value in list(found.items())[:MEMBERS_MAX] if math.isfinite(value)}


def _paths(members: Sequence[Member], above: tuple[str, ...]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for member in members:
        if member.many or "." in member.name:
            continue
        if isinstance(member.kind, Shape):
            found += _paths(member.kind.members, (*above, member.name)) if len(above) < MEMBER_DEPTH else []
        elif is_numeric(member.kind):
            found.append((*above, member.name))
    return found[:MEMBERS_MAX]


def _name_of(enum_field: Any) -> str:
    display = getattr(enum_field.DisplayName, "Text", None)
    return str(display or getattr(enum_field, "Name", None) or enum_field.Value)


async def _enumeration_names(client: Client, node: Any) -> dict[int, str]:
    """Of an enumeration whose names stand in a property: EnumStrings or EnumValues (Part 3, 5.8.3)."""
    for name, target in await _related(client, node, "HasProperty"):
        if name in ("EnumStrings", "EnumValues"):
            (value,) = await _attributes(client, target, ("Value",))
            if isinstance(value, list):
                return names_of(value)
    return {}


def names_of(values: Sequence[Any]) -> dict[int, str]:
    """Of EnumStrings (texts, counted from 0) or EnumValues (each with its number)."""
    found: dict[int, str] = {}
    for at, each in enumerate(values[:NAMES_MAX]):
        display = getattr(each, "DisplayName", each)
        found[int(getattr(each, "Value", at))] = str(getattr(display, "Text", None) or "")
    return found


async def _attributes(client: Client, node: Any, names: Sequence[str]) -> list[Any]:
    """Raises DeviceSilent; None for each that is bad."""
    request = client.ua.ReadRequest()
    request.Parameters.TimestampsToReturn = client.ua.TimestampsToReturn.Neither
    request.Parameters.NodesToRead = [
        client.ua.ReadValueId(node, getattr(client.ua.AttributeIds, name)) for name in names
    ]
    try:
        found = (await client.ask(request, "no answer to a read")).Results
    except Refused:
        return [None] * len(names)
    except DeviceSilent:
        if not client.connected:
            raise
        return [None] * len(names)
    values = [value_of(each) for each in found]
    return (values + [None] * len(names))[: len(names)]


async def _related(client: Client, node: Any, reference: str, *, inverse: bool = False) -> list[tuple[str, Any]]:
    """BrowseName and NodeId of the first few nodes at the other end of such references. Raises DeviceSilent."""
    ua = client.ua
    request = ua.BrowseRequest()
    request.Parameters.RequestedMaxReferencesPerNode = BUILT_IN_MAX
    what = ua.BrowseDescription()
    what.NodeId = node
    what.BrowseDirection = ua.BrowseDirection.Inverse if inverse else ua.BrowseDirection.Forward
    what.ReferenceTypeId, what.IncludeSubtypes = ua.NodeId(getattr(ua.ObjectIds, reference)), True
    what.ResultMask = NAME
    request.Parameters.NodesToBrowse = [what]
    try:
        (found,) = (await client.ask(request, "no answer to a browse")).Results
    except (Refused, ValueError):
        return []
    return [
        (str(each.BrowseName.Name or ""), ua.NodeId(each.NodeId.Identifier, each.NodeId.NamespaceIndex))
        for each in found.References or ()
    ]
