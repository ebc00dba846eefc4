"""Numbers out of structures: the members of a data type that a server defines itself, found in a value's bytes.

Rule: the type is read from the server as data and its values are walked as bytes; the library would compile and run code
with the server's names in it. Source: OPC UA Part 3, 5.8.3 (DataTypeDefinition), and Part 6, 5.2.6 (how it is encoded).
"""

import struct
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from drivers import opcua_status as status
from drivers.opcua_client import Client, Refused, read_values, value_of

DEPTH_MAX = 8
FIELDS_MAX = 1000
ENUMERATION, STRUCTURE = 29, 22
"""NodeIds of the two base data types that no value has itself: Part 6, A."""
BASE_TYPE = 24
DATA_TYPE, DATA_TYPE_DEFINITION = 14, 23
"""Attributes: OPC UA Part 4, A.1."""
FORMS = {1: "<?", 2: "<b", 3: "<B", 4: "<h", 5: "<H", 6: "<i", 7: "<I", 8: "<q", 9: "<Q", 10: "<f", 11: "<d"}
WIDTHS = {13: 8, 14: 16, 19: 4}
TEXTS = (12, 15, 16)
PLAIN, OPTIONAL_FIELDS = 0, 1
"""StructureType: a structure with optional fields begins with a mask of those that are there. Above: Part 3, 8.48."""
ONE_OR_MANY = (-1, 0, 1)
"""ValueRank of a member: one, or an array. Some servers leave it 0 where there is one."""


@dataclass(frozen=True, slots=True)
class Member:
    """kind: a built-in type, or a shape of its own. many: an array of it."""

    name: str
    kind: "int | Shape"
    many: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """A structure's members in their order. masked: it begins with a mask of its optional ones."""

    members: tuple[Member, ...]
    masked: bool


class Unreadable(Exception):
    """The value is no structure, or not of this shape; in words."""


@dataclass(slots=True)
class Shapes:
    """What is known of the data types of one session's server."""

    known: dict[str, "Shape | int"] = field(default_factory=dict)
    of_node: dict[str, "Shape | int"] = field(default_factory=dict)

    async def member(self, client: Client, node: Any, item: Any, path: str) -> Any:
        """A DataValue with the member in the place of the structure. Raises Unreadable when there is no such number."""
        raw = value_of(item)
        if raw is None:
            return item
        if hasattr(raw, "TypeId") and hasattr(raw, "Body"):
            shape = await self._shape_of(client, node)
            return with_value(client, item, member_of(bytes(raw.Body or b""), shape, path.split(".")))
        for name in path.split("."):  # a structure of the standard, which the library knows
            names = getattr(raw, "__dataclass_fields__", {})
            if name not in names:
                raise Unreadable(f"has no member {name}; it has {', '.join(names) or 'none: it is no structure'}")
            raw = getattr(raw, name)
        return with_value(client, item, raw)

    async def of_type(self, client: Client, kind: Any) -> "Shape | int":
        """How values of this data type are built. Raises Unreadable, DeviceSilent."""
        return await self._shape(client, kind, 0)

    async def _shape_of(self, client: Client, node: Any) -> "Shape | int":
        key = node.to_string()
        if key not in self.of_node:
            (kind,) = await read_values(client, [node], DATA_TYPE)
            self.of_node[key] = await self._shape(client, value_of(kind), 0)
        return self.of_node[key]

    async def _shape(self, client: Client, kind: Any, depth: int) -> "Shape | int":
        """Of a data type. Raises Unreadable when the server does not say how it is built."""
        if kind is None or depth > DEPTH_MAX:
            raise Unreadable("the server does not tell its data type")
        if (
            kind.NamespaceIndex == 0
            and isinstance(kind.Identifier, int)
            and kind.Identifier in (*FORMS, *WIDTHS, *TEXTS)
        ):
            return int(kind.Identifier)
        key = kind.to_string()
        if key not in self.known:
            self.known[key] = await self._asked(client, kind, depth)
        return self.known[key]

    async def _asked(self, client: Client, kind: Any, depth: int) -> "Shape | int":
        (item,) = await read_values(client, [kind], DATA_TYPE_DEFINITION)
        definition = value_of(item)
        if hasattr(definition, "StructureType"):
            if int(definition.StructureType) not in (PLAIN, OPTIONAL_FIELDS):
                raise Unreadable("is a union, or holds subtypes: its numbers are not at fixed places")
            members = []
            for each in (definition.Fields or ())[:FIELDS_MAX]:
                if each.ValueRank not in ONE_OR_MANY:
                    raise Unreadable(f"has a member {each.Name} of several dimensions")
                its = await self._shape(client, each.DataType, depth + 1)
                members.append(Member(status.readable(str(each.Name)), its, each.ValueRank >= 1, bool(each.IsOptional)))
            return Shape(tuple(members), int(definition.StructureType) == OPTIONAL_FIELDS)
        try:
            return await self._shape(client, await _parent(client, kind), depth + 1)
        except Unreadable:
            if definition is None:
                raise
            return 6  # the names of an enumeration; those of a set of options are as wide as its parent


def member_of(body: bytes, shape: "Shape | int", path: Sequence[str]) -> Any:
    """The number at the end of the path. Raises Unreadable."""
    if isinstance(shape, int):
        raise Unreadable("is no structure")
    try:
        value, ends = _walked(body, 0, shape, path)[0], _walked(body, 0, shape, ())[1]
    except struct.error:
        raise Unreadable("ends too early") from None
    if ends != len(body):  # another type's, or a type that changed: its numbers lie elsewhere
        raise Unreadable(f"has {len(body)} bytes and its data type {ends}: it is built otherwise than the server says")
    return value


def _walked(body: bytes, at: int, shape: Shape, path: Sequence[str]) -> tuple[Any, int]:
    """The member's value, and where the structure ends (when nothing is looked for: path empty)."""
    mask = -1
    if shape.masked:
        (mask,) = struct.unpack_from("<I", body, at)
        at += 4
    bit = 0
    for member in shape.members:
        if member.optional and shape.masked:
            there = mask >> bit & 1
            bit += 1
            if not there:
                if path and member.name == path[0]:
                    return None, at
                continue
        wanted = bool(path) and member.name == path[0]
        if wanted and not member.many and isinstance(member.kind, int) and len(path) == 1:
            return _plain(body, at, member.kind)
        if wanted and not member.many and isinstance(member.kind, Shape) and len(path) > 1:
            return _walked(body, at, member.kind, path[1:])
        if wanted:
            raise Unreadable(f"{member.name} is no single number")
        at = _skipped(body, at, member)
    if path:
        raise Unreadable(f"has no member {path[0]}; it has {', '.join(member.name for member in shape.members)}")
    return None, at


def _plain(body: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind not in FORMS:
        raise Unreadable("is no number")
    (value,) = struct.unpack_from(FORMS[kind], body, at)
    return value, at + struct.calcsize(FORMS[kind])


def _skipped(body: bytes, at: int, member: Member) -> int:
    count = 1
    if member.many:
        (count,) = struct.unpack_from("<i", body, at)
        at += 4
    if count > len(body):
        raise Unreadable("ends too early")
    for _ in range(max(count, 0)):
        if isinstance(member.kind, Shape):
            at = _walked(body, at, member.kind, ())[1]
        elif member.kind in TEXTS:
            (length,) = struct.unpack_from("<i", body, at)
            at += 4 + max(length, 0)
        else:
            at += struct.calcsize(FORMS[member.kind]) if member.kind in FORMS else WIDTHS[member.kind]
    return at


def with_value(client: Client, item: Any, raw: Any) -> Any:
    """A DataValue with another value; its status and times stay."""
    found = copy(item)
    found.Value = (
        client.ua.Variant(raw) if raw is None or isinstance(raw, int | float | bool) else client.ua.Variant(None)
    )
    return found


async def _parent(client: Client, kind: Any) -> Any:
    """The data type that this one is a subtype of."""
    ua = client.ua
    request = ua.BrowseRequest()
    request.Parameters.RequestedMaxReferencesPerNode = 1
    what = ua.BrowseDescription()
    what.NodeId, what.BrowseDirection = kind, ua.BrowseDirection.Inverse
    what.ReferenceTypeId, what.IncludeSubtypes = ua.NodeId(ua.ObjectIds.HasSubtype), False
    request.Parameters.NodesToBrowse = [what]
    try:
        (found,) = (await client.ask(request, "no answer")).Results
    except (Refused, ValueError):
        raise Unreadable("the server does not tell its data type") from None
    if not found.References:
        raise Unreadable("the server does not tell its data type")
    parent = found.References[0].NodeId
    if parent.NamespaceIndex == 0 and parent.Identifier == ENUMERATION:
        return ua.NodeId(6, 0)
    if parent.NamespaceIndex == 0 and parent.Identifier in (STRUCTURE, BASE_TYPE):
        raise Unreadable("the server does not tell how the structure is built")
    return parent
