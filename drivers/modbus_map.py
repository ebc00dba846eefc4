"""The pure half of the Modbus driver: points to requests, and the bytes of their answers to columns.

Rule 1: nothing here touches a socket, a clock or asyncio. Rule 2: only the read functions 1 to 4 can be built.
Figures are those of the Modbus Application Protocol V1.1b3 and the Messaging on TCP/IP Guide V1.0b.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from struct import Struct
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_agent.contract import Bools, Codes, Floats, Ints, Quality

WORDS_MAX = 125
"""Registers in one read: Application Protocol 6.3."""
BITS_PER_WORD = 16
"""`max_block` and `max_gap` count registers; for coils and discrete inputs they are 16 bits each (2000 bits: 6.1)."""
SPACE = 65536
"""Addresses in each table."""
EXACT = 2**53
"""The largest whole number up to which float64 holds every one."""
HEAD_BYTES = 9
"""Transaction, protocol, length, unit, function, byte count; also the shortest answer there is: an exception."""

Positions = npt.NDArray[np.intp]


class Table(IntEnum):
    """The four tables of a device; the number is the function code that reads it."""

    COIL = 1
    DISCRETE = 2
    HOLDING = 3
    INPUT = 4


class Outcome(IntEnum):
    """What became of one request. Positive numbers are the device's exception codes."""

    OK = 0
    PENDING = -1
    SKIPPED = -2
    """Not asked: its unit is silent, or the read has no time left for it."""
    TIMED_OUT = -3
    MALFORMED = -4
    LOST = -5
    """The connection ended before the answer was complete."""


BUSY = frozenset({5, 6})
"""Acknowledge and device busy: ask again later within the read."""
UNREACHED = frozenset({10, 11})
"""A gateway speaks for a unit that it cannot reach: that unit is silent, the line is not."""
REFUSALS = frozenset({1, 2, 3, 7})
KNOWN_EXCEPTIONS = frozenset({1, 2, 3, 4, 8}) | BUSY | UNREACHED | REFUSALS
"""9, 0 and what lies above 11 are no exceptions of the protocol (7 stands in older editions)."""

QUALITY: dict[int, Quality] = {
    Outcome.OK: Quality.GOOD,
    Outcome.SKIPPED: Quality.TIMEOUT,
    Outcome.TIMED_OUT: Quality.TIMEOUT,
    Outcome.MALFORMED: Quality.PROTOCOL,
    Outcome.PENDING: Quality.DISCONNECTED,
    Outcome.LOST: Quality.DISCONNECTED,
    4: Quality.DEVICE_FAILURE,
    8: Quality.DEVICE_FAILURE,
    **dict.fromkeys(REFUSALS, Quality.REFUSED),
    **dict.fromkeys(BUSY | UNREACHED, Quality.TIMEOUT),
}
"""The quality of a block's points for each outcome of its request."""

EXCEPTION_WORDS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    7: "negative acknowledge",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A register type: how many registers, and the numpy code of the raw number in them."""

    words: int
    code: str


KINDS: dict[str, Kind] = {
    "int16": Kind(1, "i2"),
    "uint16": Kind(1, "u2"),
    "int32": Kind(2, "i4"),
    "uint32": Kind(2, "u4"),
    "int64": Kind(4, "i8"),
    "uint64": Kind(4, "u8"),
    "int8": Kind(1, "i1"),
    "uint8": Kind(1, "u1"),
    "float16": Kind(1, "f2"),
    "float32": Kind(2, "f4"),
    "float64": Kind(4, "f8"),
    "bool": Kind(1, "u2"),
    "bcd16": Kind(1, "u2"),
    "bcd32": Kind(2, "u4"),
}


TEXT = "string:"
"""`string:N` is N characters, two in a register: an attribute, which is no column and read by itself."""
TEXT_MAX = 2 * WORDS_MAX


def words_of(type_name: str) -> int:
    """How many registers a value of this type takes."""
    return (int(type_name[len(TEXT) :]) + 1) // 2 if type_name.startswith(TEXT) else KINDS[type_name].words


@dataclass(frozen=True, slots=True)
class Item:
    """One value in a device: where it stands and how its bytes are read.

    start: 0-based address. type: a key of KINDS (always `bool` for coils and discrete inputs). bit: of a 16-bit
    register, 0 = least significant, or None. sentinels: raw numbers that mean "no value". half: which byte of the register
    an 8-bit number is.
    """

    unit: int
    table: Table
    start: int
    type: str
    bit: int | None = None
    word_order: Literal["big", "little"] = "big"
    byte_order: Literal["big", "little"] = "big"
    sentinels: tuple[int | float, ...] = ()
    half: Literal["high", "low"] = "low"

    @property
    def width(self) -> int:
        """Registers, or bits of a coil table, that the value takes."""
        return words_of(self.type) if self.table >= Table.HOLDING else 1


@dataclass(frozen=True, slots=True)
class Limits:
    """max_gap, max_block: registers (times 16 for bits); a block never exceeds max_block.

    units: by unit and whether registers are meant, the registers (or bits) that it gives at once, as was found out.
    """

    max_gap: int = 16
    max_block: int = WORDS_MAX
    units: Mapping[tuple[int, bool], int] = field(default_factory=dict)

    def of(self, item: Item) -> tuple[int, int]:
        """The gap and the size for blocks with this item, in registers or bits."""
        registers = item.table >= Table.HOLDING
        scale = 1 if registers else BITS_PER_WORD
        gap, size = self.max_gap * scale, self.max_block * scale
        known = self.units.get((item.unit, registers)) if self.units else None
        return gap, size if known is None else min(size, max(known, item.width))


@dataclass(frozen=True, slots=True)
class Block:
    """One request and what its answer must look like.

    request: the ten bytes after the transaction id. head: bytes 2 to 8 of the one right answer.
    size: payload bytes, which lie at `offset` of the plan's image. members: positions in `due`, by address.
    """

    unit: int
    table: Table
    start: int
    count: int
    request: bytes
    head: bytes
    size: int
    offset: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Points that decode alike, so that one handful of numpy calls does all of them.

    at: their positions in `due`. raw: a view that lies over the image, (n,) in the device's byte order, or None; then
    index (n, words) picks registers of the image (for coils and 8-bit numbers: (n,) picks bytes), most or least significant
    first as dtype wants it. shift: (n,) bit numbers. sentinel_rows (k,) and sentinels (k, m): which raw numbers of
    which rows mean "no value".
    """

    how: str
    at: slice | Positions
    dtype: np.dtype[Any]
    raw: npt.NDArray[Any] | None
    index: Positions | None
    shift: npt.NDArray[np.uint16] | None
    sentinel_rows: Positions | None
    sentinels: npt.NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests for one set of due points, and the way back from their payloads to columns.

    image: (bytes,) uint8, every block's payload at its offset; written by whoever receives, read by `decode`.
    block_of: (due,) the block that carries each point. units: those that are asked.
    """

    due: Ints
    blocks: tuple[Block, ...]
    block_of: Positions
    units: frozenset[int]
    image: npt.NDArray[np.uint8]
    payload: memoryview
    groups: tuple[Group, ...]


# ---------------------------------------------------------------------------------------------------------- planning


def address_order(items: Sequence[Item]) -> Positions:
    """(items,) the items' numbers sorted by unit, table, address: neighbours here are neighbours in a device."""
    keys = [(item.unit, int(item.table), item.start, item.width) for item in items]
    return np.array(sorted(range(len(items)), key=keys.__getitem__), dtype=np.intp)


def make_plan(
    items: Sequence[Item], due: Ints, limits: Limits, rank: Positions | None = None, segment: Ints | None = None
) -> Plan:
    """Gather the due items into as few requests as the limits allow; every one stands whole in exactly one block.

    due: ascending item numbers. rank: (items,) each item's place in `address_order`. segment: (items,), items of
    different segments never share a block (how a refused block is taken apart). Raises ValueError when max_block is
    less than the registers of one value.
    """
    asked = due.tolist()
    places = rank[due].tolist() if rank is not None else address_order([items[i] for i in asked]).argsort().tolist()
    order = sorted(range(len(asked)), key=places.__getitem__)
    segments = segment[due].tolist() if segment is not None else [0] * len(asked)
    spans = _spans([items[i] for i in asked], order, segments, limits)
    blocks: list[Block] = []
    offset = 0
    for span in spans:
        block = _block(items[asked[span.members[0]]], span, offset)
        blocks.append(block)
        offset += block.size + block.size % 2
    image = np.zeros(max(offset, 2), dtype=np.uint8)
    block_of = np.zeros(len(asked), dtype=np.intp)
    for number, block in enumerate(blocks):
        block_of[list(block.members)] = number
    groups = _groups([items[i] for i in asked], blocks, block_of, image)
    units = frozenset(block.unit for block in blocks)
    return Plan(due.copy(), tuple(blocks), block_of, units, image, image.data.cast("B"), groups)


@dataclass(slots=True)
class _Span:
    start: int
    end: int
    members: list[int]


def _spans(items: Sequence[Item], order: Sequence[int], segments: Sequence[int], limits: Limits) -> list[_Span]:
    """Runs of neighbours, joined while the hole between them and the whole stay within the limits."""
    spans: list[_Span] = []
    key: tuple[int, Table, int] | None = None
    for position in order:
        item = items[position]
        gap, size = limits.of(item)
        if item.width > size:
            raise ValueError(f"max_block {limits.max_block} is less than the {item.width} registers of a {item.type}")
        end = item.start + item.width
        here = (item.unit, item.table, segments[position])
        span = spans[-1] if spans else None
        joins = span is not None and here == key and item.start - span.end <= gap and end - span.start <= size
        if span is not None and joins:
            span.end = max(span.end, end)
            span.members.append(position)
        else:
            spans.append(_Span(item.start, end, [position]))
            key = here
    return spans


_REQUEST = Struct(">HHBBHH")
_HEAD = Struct(">HHBBB")


def _block(first: Item, span: _Span, offset: int) -> Block:
    count = span.end - span.start
    size = 2 * count if first.table >= Table.HOLDING else (count + 7) // 8
    request = _REQUEST.pack(0, 6, first.unit, first.table, span.start, count)
    head = _HEAD.pack(0, size + 3, first.unit, first.table, size)
    return Block(first.unit, first.table, span.start, count, request, head, size, offset, tuple(span.members))


# ---------------------------------------------------------------------------------------------------------- decoding


def decode(plan: Plan, outcomes: Sequence[int] | None = None) -> tuple[Floats, Codes]:
    """The image to columns: values (due,) float64, NaN where bad; quality (due,) uint8.

    outcomes: (blocks,) of Outcome or exception codes; None means that all are OK. What a failed block's part of the
    image holds is never seen. Reasons for BAD beside those of QUALITY: SENSOR_FAILURE for a sentinel; PRECISION for a
    64-bit whole number beyond 2^53; NOT_A_NUMBER for NaN, infinities and BCD with a digit above 9: such a register
    holds no number, and more often the type in the map is wrong than a sensor broken.
    """
    values = np.empty(len(plan.due))
    quality = np.zeros(len(plan.due), dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # a signalling NaN is a bad reading, not a warning on stderr
        for group in plan.groups:
            _decode_group(group, plan.image, values, quality)
    finite = np.isfinite(values)
    if not finite.all():
        quality[~finite & (quality == 0)] = Quality.NOT_A_NUMBER
        values[~finite] = np.nan
    if outcomes is not None:
        of_block = np.array([QUALITY[outcome] for outcome in outcomes], dtype=np.uint8)[plan.block_of]
        failed = of_block != Quality.GOOD
        quality[failed] = of_block[failed]
        values[failed] = np.nan
    return values, quality


def _decode_group(group: Group, image: npt.NDArray[np.uint8], values: Floats, quality: Codes) -> None:
    """Write the group's rows of values; NaN with its reason where only this type can tell, the rest is `decode`'s."""
    raw = _raw(group, image)
    match group.how:
        case "plain":
            values[group.at] = raw
        case "wide":
            _put(group, values, quality, raw, _beyond(raw), Quality.PRECISION)
        case "bit":
            values[group.at] = (raw >> group.shift) & 1
        case "truth":
            values[group.at] = raw != 0
        case "bcd":
            digits = (raw.astype(np.int64)[:, None] >> _NIBBLES) & 0xF
            wrong: Bools = digits.max(axis=1) > 9
            _put(group, values, quality, digits @ _TENS, wrong, Quality.NOT_A_NUMBER)
    if group.sentinels is not None:
        _blank_sentinels(group, raw, values, quality)


def text_of(data: bytes, characters: int, byte_order: str) -> str:
    """The registers of a `string:N`: up to the first NUL, without the spaces around, `?` for what cannot be printed."""
    if byte_order == "little":
        data = bytes(data[i ^ 1] for i in range(len(data)))
    text = data[:characters].split(b"\0")[0].decode("latin-1")
    return "".join(c if c.isprintable() else "?" for c in text).strip()


_NIBBLES = np.arange(0, 32, 4, dtype=np.int64)
_TENS = 10 ** np.arange(8, dtype=np.int64)


def _raw(group: Group, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    if group.raw is not None:
        return group.raw
    assert group.index is not None
    if group.index.ndim == 1:
        return image[group.index].view(group.dtype)
    return image.view(np.uint16)[group.index].view(group.dtype)[:, 0]


def _beyond(raw: npt.NDArray[Any]) -> Bools:
    """Compared as whole numbers: as float64, 2^53 + 1 would look like 2^53."""
    above: Bools = raw > EXACT
    return above | (raw < -EXACT) if raw.dtype.kind == "i" else above


def _put(group: Group, values: Floats, quality: Codes, column: npt.NDArray[Any], bad: Bools, reason: Quality) -> None:
    if bad.any():
        values[group.at] = np.where(bad, np.nan, column)
        quality[group.at] = np.where(bad, np.uint8(reason), quality[group.at])
    else:
        values[group.at] = column


def _blank_sentinels(group: Group, raw: npt.NDArray[Any], values: Floats, quality: Codes) -> None:
    assert group.sentinel_rows is not None
    assert group.sentinels is not None
    # BCD sentinels are the numbers that a person reads, not their bits; so are all others.
    column = values[group.at] if group.how == "bcd" else raw
    hit = (column[group.sentinel_rows, None] == group.sentinels).any(axis=1)
    if hit.any():
        rows = group.sentinel_rows[hit]
        where = rows + group.at.start if isinstance(group.at, slice) else group.at[rows]
        values[where] = np.nan
        quality[where] = Quality.SENSOR_FAILURE


def _groups(
    items: Sequence[Item], blocks: Sequence[Block], block_of: Positions, image: npt.NDArray[np.uint8]
) -> tuple[Group, ...]:
    alike: dict[tuple[str, str, str, str], list[int]] = {}
    for position, item in enumerate(items):
        alike.setdefault(_likeness(item), []).append(position)
    return tuple(
        _coil_group(items, blocks, block_of, at)
        if key[0] == "coil"
        else _register_group(key, items, blocks, at, block_of, image)
        for key, at in alike.items()
    )


def _likeness(item: Item) -> tuple[str, str, str, str]:
    """Items with the same key are decoded by the same calls."""
    if item.table < Table.HOLDING:
        return "coil", "", "", ""
    kind = KINDS[item.type]
    # Orders of words mean nothing in one register; folding them keeps groups few.
    word_order = item.word_order if kind.words > 1 else item.byte_order
    if item.bit is not None:
        return "bit", "u2", word_order, item.byte_order
    how = {"int64": "wide", "uint64": "wide", "bool": "truth", "bcd16": "bcd", "bcd32": "bcd"}.get(item.type, "plain")
    return how, kind.code, word_order, item.byte_order


def _register_group(
    key: tuple[str, str, str, str],
    items: Sequence[Item],
    blocks: Sequence[Block],
    at: list[int],
    block_of: Positions,
    image: npt.NDArray[np.uint8],
) -> Group:
    how, code, word_order, byte_order = key
    dtype = np.dtype((">" if byte_order == "big" else "<") + code)
    words = dtype.itemsize // 2
    first = np.array([_byte_of(items[i], blocks[block_of[i]]) for i in at], dtype=np.intp)
    # ABCD is big-endian as it lies and DCBA little-endian as it lies; CDAB and BADC are those with the words turned.
    turned = word_order != byte_order and words > 1
    step = int(first[1] - first[0]) if len(at) > 1 else dtype.itemsize
    raw = index = None
    if not turned and step > 0 and (np.diff(first) == step).all():
        raw = np.ndarray((len(at),), dtype, image, int(first[0]), (step,))
    else:
        index = first if not words else first[:, None] // 2 + (np.arange(words)[::-1] if turned else np.arange(words))
    shift = np.array([items[i].bit for i in at], dtype=np.uint16) if how == "bit" else None
    rows, sentinels = _sentinels([items[i] for i in at], np.dtype(np.float64) if how == "bcd" else dtype)
    return Group(how, _as_slice(at), dtype, raw, index, shift, rows, sentinels)


def _coil_group(items: Sequence[Item], blocks: Sequence[Block], block_of: Positions, at: list[int]) -> Group:
    """Coils come packed, the first in the least significant bit of the first byte (6.1)."""
    inside = [items[i].start - blocks[block_of[i]].start for i in at]
    index = np.array([blocks[block_of[i]].offset + bit // 8 for i, bit in zip(at, inside, strict=True)], dtype=np.intp)
    shift = np.array([bit % 8 for bit in inside], dtype=np.uint16)
    return Group("bit", _as_slice(at), np.dtype(np.uint8), None, index, shift, None, None)


def _byte_of(item: Item, block: Block) -> int:
    register = block.offset + 2 * (item.start - block.start)
    # Of one byte the order of the two says where it lies: the high one first, or last.
    return register + (KINDS[item.type].code[1:] == "1" and (item.half == "low") == (item.byte_order == "big"))


def _as_slice(at: list[int]) -> slice | Positions:
    """Ascending positions; a slice when they are neighbours, which numpy writes several times faster."""
    return slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else np.array(at, dtype=np.intp)


def _sentinels(items: Sequence[Item], dtype: np.dtype[Any]) -> tuple[Positions | None, npt.NDArray[Any] | None]:
    rows = [row for row, item in enumerate(items) if item.sentinels]
    if not rows:
        return None, None
    most = max(len(items[row].sentinels) for row in rows)
    padded = [
        list(items[row].sentinels) + [items[row].sentinels[0]] * (most - len(items[row].sentinels)) for row in rows
    ]
    return np.array(rows, dtype=np.intp), np.array(padded, dtype=dtype)
