"""Members of structures, found in bytes that a plain encoder wrote; and bytes that are none."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.opcua_structure import FORMS, Member, Shape, Unreadable, member_of

DOUBLE, INT32, STRING, DATE = 11, 6, 12, 13


def encoded(shape: Shape, value: dict[str, Any]) -> bytes:
    """OPC UA Part 6, 5.2.6, in plain words: the members one after another."""
    mask, body, bit = 0, b"", 0
    for member in shape.members:
        there = member.name in value
        if shape.masked and member.optional:
            mask |= there << bit
            bit += 1
            if not there:
                continue
        body += _member(member, value[member.name])
    return (struct.pack("<I", mask) if shape.masked else b"") + body


def _member(member: Member, value: Any) -> bytes:
    if member.many:
        return struct.pack("<i", len(value)) + b"".join(_one(member.kind, each) for each in value)
    return _one(member.kind, value)


def _one(kind: int | Shape, value: Any) -> bytes:
    if isinstance(kind, Shape):
        return encoded(kind, value)
    if kind == STRING:
        text = str(value).encode()
        return struct.pack("<i", len(text)) + text
    if kind == DATE:
        return struct.pack("<q", value)
    return struct.pack(FORMS[kind], value)


def values_of(kind: int | Shape) -> st.SearchStrategy[Any]:
    if isinstance(kind, Shape):
        return value_of(kind)
    if kind == STRING:
        return st.text(max_size=5)
    if kind == DOUBLE:
        return st.floats(allow_nan=False)
    return st.integers(-(2**31), 2**31 - 1)


def value_of(shape: Shape) -> st.SearchStrategy[dict[str, Any]]:
    must = {
        m.name: st.lists(values_of(m.kind), max_size=3) if m.many else values_of(m.kind)
        for m in shape.members
        if not (shape.masked and m.optional)
    }
    may = {
        m.name: st.lists(values_of(m.kind), max_size=3) if m.many else values_of(m.kind)
        for m in shape.members
        if shape.masked and m.optional
    }
    return st.fixed_dictionaries(must, optional=may)


def shapes(depth: int = 2) -> st.SearchStrategy[Shape]:
    plain = st.sampled_from([DOUBLE, INT32, STRING, DATE])
    kinds = plain if not depth else st.one_of(plain, shapes(depth - 1))
    members = st.lists(st.tuples(kinds, st.booleans(), st.booleans()), min_size=1, max_size=4).map(
        lambda found: tuple(Member(f"m{n}", *each) for n, each in enumerate(found))
    )
    return st.builds(Shape, members, st.booleans())


@given(st.data())
def test_every_single_number_of_a_structure_is_found_and_nothing_else_is(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    value = data.draw(value_of(shape))
    body = encoded(shape, value)
    for path, kind, expected in _leaves(shape, value, ()):
        if kind in FORMS:
            assert member_of(body, shape, path) == expected
        else:
            with pytest.raises(Unreadable):
                member_of(body, shape, path)
    with pytest.raises(Unreadable, match="has no member nowhere; it has m0"):
        member_of(body, shape, ["nowhere"])


def _leaves(shape: Shape, value: dict[str, Any], path: tuple[str, ...]) -> list[tuple[list[str], int, Any]]:
    found: list[tuple[list[str], int, Any]] = []
    for member in shape.members:
        here = (*path, member.name)
        if member.many:
            continue
        if member.name not in value:
            if isinstance(member.kind, int):
                found.append(([*here], DOUBLE, None))  # an optional one that is not there: no value
        elif isinstance(member.kind, Shape):
            found += _leaves(member.kind, value[member.name], here)
        else:
            found.append(([*here], member.kind, value[member.name]))
    return found


@given(st.data())
def test_bytes_that_are_cut_or_changed_are_said_to_be_unreadable_or_give_a_number(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    body = bytearray(encoded(shape, data.draw(value_of(shape))))
    if body:
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    for member in shape.members:
        try:
            found = member_of(cut, shape, [member.name])
        except Unreadable:
            continue
        assert found is None or isinstance(found, int | float | bool)


def test_a_lying_length_costs_no_time() -> None:
    shape = Shape(
        (Member("many", DOUBLE, many=True, optional=False), Member("last", DOUBLE, many=False, optional=False)), False
    )
    with pytest.raises(Unreadable, match="ends too early"):
        member_of(struct.pack("<i", 2**31 - 1), shape, ["last"])
