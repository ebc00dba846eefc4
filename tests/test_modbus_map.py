"""The pure half of the Modbus driver against bytes, and against a twin that reads one value at a time with struct."""

import math
import struct
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.modbus_map import (
    EXCEPTION_WORDS,
    KINDS,
    KNOWN_EXCEPTIONS,
    QUALITY,
    Item,
    Limits,
    Outcome,
    Plan,
    Table,
    address_order,
    decode,
    make_plan,
    text_of,
)
from drivers.modbus_settings import ModbusAddress, ModbusConnection
from edge_agent.contract import Quality

BIG: Literal["big"] = "big"
LITTLE: Literal["little"] = "little"
LOW: Literal["low"] = "low"
HALVES: list[Literal["high", "low"]] = ["high", "low"]
ORDERS: st.SearchStrategy[Literal["big", "little"]] = st.one_of(st.just(BIG), st.just(LITTLE))
CODES = {
    "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
    "int8": "b", "uint8": "B",
    "float16": "e", "float32": "f", "float64": "d", "bool": "H", "bcd16": "H", "bcd32": "I",
}  # fmt: skip


def all_of(items: list[Item], limits: Limits = Limits()) -> Plan:  # noqa: B008
    return make_plan(items, np.arange(len(items)), limits)


def fill(plan: Plan, memory: dict[tuple[int, Table], bytes]) -> None:
    """What a device with this memory answers: registers as pairs of bytes, coils as one byte (0 or 1) each."""
    for block in plan.blocks:
        data = memory[block.unit, block.table]
        if block.table >= Table.HOLDING:
            payload = data[2 * block.start : 2 * (block.start + block.count)]
        else:
            bits = data[block.start : block.start + block.count]
            payload = bytes(
                sum((bits[i + k] & 1) << k for k in range(8) if i + k < len(bits)) for i in range(0, len(bits), 8)
            )
        assert len(payload) == block.size
        plan.payload[block.offset : block.offset + block.size] = payload


def twin(item: Item, data: bytes) -> tuple[float, Quality]:
    """One value, read the slow and obvious way from a device's memory."""
    if item.table < Table.HOLDING:
        return float(data[item.start] & 1), Quality.GOOD
    words = [data[2 * i : 2 * i + 2] for i in range(item.start, item.start + item.width)]
    if item.byte_order == "little":
        words = [word[::-1] for word in words]
    if item.word_order == "little":
        words = words[::-1]
    if item.type in ("int8", "uint8"):
        words = [words[0][:1] if item.half == "high" else words[0][1:]]
    raw = struct.unpack(">" + ("H" if item.bit is not None else CODES[item.type]), b"".join(words))[0]
    if item.bit is not None:
        return (
            (math.nan, Quality.SENSOR_FAILURE) if raw in item.sentinels else (float(raw >> item.bit & 1), Quality.GOOD)
        )
    if item.type.startswith("bcd"):
        digits = f"{raw:x}"
        if not digits.isdigit():
            return math.nan, Quality.NOT_A_NUMBER
        raw = int(digits)
    if raw in item.sentinels:
        return math.nan, Quality.SENSOR_FAILURE
    if item.type == "bool":
        return float(raw != 0), Quality.GOOD
    if isinstance(raw, float) and not math.isfinite(raw):
        return math.nan, Quality.NOT_A_NUMBER
    if isinstance(raw, int) and abs(raw) > 2**53:
        return math.nan, Quality.PRECISION
    return float(raw), Quality.GOOD


@st.composite
def items_of_a_device(draw: st.DrawFn, most: int = 30, space: int = 200) -> list[Item]:
    items = []
    for _ in range(draw(st.integers(1, most))):
        table = draw(st.sampled_from(list(Table)))
        unit = draw(st.integers(1, 2))
        if table < Table.HOLDING:
            items.append(Item(unit, table, draw(st.integers(0, space - 1)), "bool"))
            continue
        kind = draw(st.sampled_from(list(KINDS)))
        bit = draw(st.none() | st.integers(0, 15)) if kind in ("uint16", "int16", "bool") else None
        start = draw(st.integers(0, space - KINDS[kind].words))
        half = draw(st.sampled_from(HALVES)) if kind in ("int8", "uint8") else LOW
        items.append(Item(unit, table, start, kind, bit, draw(ORDERS), draw(ORDERS), half=half))
    return items


SPECIAL = [
    bytes.fromhex(data)
    for data in (
        "7fc00000", "7f800000", "ff800000", "7fa00000", "7e00", "7d00", "ffff" * 4, "12345678", "9999", "0a00",
        "0020000000000000", "0020000000000001", "ffe0000000000000", "ffdfffffffffffff", "8000000000000000",
    )
]  # fmt: skip
"""NaN, signalling NaN, infinities, BCD, and whole numbers around 2^53."""


@st.composite
def memories(draw: st.DrawFn, space: int = 200) -> dict[tuple[int, Table], bytes]:
    chunk = st.sampled_from(SPECIAL) | st.binary(min_size=2, max_size=8)
    data = b"".join(draw(st.lists(chunk, min_size=5, max_size=40))) + b"\0"
    return {
        (unit, table): (data[shift:] * (2 * space // len(data[shift:]) + 1))[: 2 * space]
        for unit in (1, 2)
        for shift, table in enumerate(Table, start=unit - 1)
    }


@given(items_of_a_device(), memories(), st.integers(0, 30), st.integers(4, 125))
@settings(max_examples=300, deadline=None)
def test_every_type_in_every_order_reads_as_the_slow_twin_reads_it(
    items: list[Item], memory: dict[tuple[int, Table], bytes], max_gap: int, max_block: int
) -> None:
    plan = all_of(items, Limits(max_gap, max_block))
    fill(plan, memory)
    values, quality = decode(plan)
    expected = [twin(item, memory[item.unit, item.table]) for item in items]
    assert [Quality(q) for q in quality] == [q for _, q in expected]
    np.testing.assert_array_equal(values, [v for v, _ in expected])


@given(items_of_a_device(most=60, space=2000), st.integers(0, 40), st.integers(4, 125))
@settings(max_examples=300, deadline=None)
def test_a_plan_asks_for_every_point_once_and_within_the_limits(
    items: list[Item], max_gap: int, max_block: int
) -> None:
    plan = all_of(items, Limits(max_gap, max_block))
    assert sorted(i for block in plan.blocks for i in block.members) == list(range(len(items)))
    for number, block in enumerate(plan.blocks):
        gap, size = Limits(max_gap, max_block).of(items[block.members[0]])
        assert 1 <= block.count <= size
        covered = block.start
        for i in block.members:
            item = items[i]
            assert plan.block_of[i] == number
            assert (item.unit, item.table) == (block.unit, block.table)
            assert block.start <= item.start
            assert item.start + item.width <= block.start + block.count
            assert item.start - covered <= gap
            covered = max(covered, item.start + item.width)
        assert covered == block.start + block.count
    for before, after in pairwise(plan.blocks):
        if (before.unit, before.table) == (after.unit, after.table):
            gap, size = Limits(max_gap, max_block).of(items[before.members[0]])
            first = items[after.members[0]]
            joined = max(before.start + before.count, first.start + first.width) - before.start
            hole = first.start - before.start - before.count
            assert hole > gap or joined > size, "these two could have been one request"


@given(items_of_a_device(), st.data())
def test_segments_never_share_a_block(items: list[Item], data: st.DataObject) -> None:
    segment = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(items), max_size=len(items))))
    order = address_order(items)
    segment[order] = np.sort(segment)
    rank = np.empty(len(items), dtype=np.intp)
    rank[order] = np.arange(len(items))
    plan = make_plan(items, np.arange(len(items)), Limits(), rank, segment)
    for block in plan.blocks:
        assert len({int(segment[i]) for i in block.members}) == 1


def test_a_value_that_no_block_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="max_block 2 is less than the 4 registers of a float64"):
        all_of([Item(1, Table.HOLDING, 0, "float64")], Limits(0, 2))


def test_a_plan_of_nothing_asks_nothing() -> None:
    plan = make_plan([Item(1, Table.HOLDING, 0, "int16")], np.array([], dtype=np.int64), Limits())
    assert plan.blocks == ()
    values, quality = decode(plan)
    assert len(values) == len(quality) == 0


def test_only_due_points_are_asked_for() -> None:
    items = [Item(1, Table.HOLDING, address, "int16") for address in (0, 1, 500, 501)]
    plan = make_plan(items, np.array([1, 3]), Limits())
    assert [(block.start, block.count) for block in plan.blocks] == [(1, 1), (501, 1)]


def test_the_bytes_of_a_request_are_those_of_the_specification() -> None:
    blocks = all_of([Item(17, Table.HOLDING, 107, "uint16"), Item(17, Table.HOLDING, 109, "uint16")]).blocks
    assert b"\x00\x01" + blocks[0].request == bytes.fromhex("0001 0000 0006 11 03 006B 0003")
    assert blocks[0].head == bytes.fromhex("0000 0009 11 03 06")
    (coils,) = all_of([Item(1, Table.COIL, 19, "bool"), Item(1, Table.COIL, 37, "bool")]).blocks
    assert coils.request[4:] == bytes.fromhex("01 01 0013 0013")
    assert coils.size == 3


@given(items_of_a_device(most=10))
def test_only_functions_that_read_can_be_asked(items: list[Item]) -> None:
    assert {block.request[5] for block in all_of(items).blocks} <= {1, 2, 3, 4}


def test_the_four_orders_of_a_float_are_those_that_people_call_abcd_cdab_badc_and_dcba() -> None:
    abcd = struct.pack(">f", 123.456)
    a, b, c, d = (bytes([byte]) for byte in abcd)
    written: list[tuple[Literal["big", "little"], Literal["big", "little"], bytes]] = [
        (BIG, BIG, abcd),
        (LITTLE, BIG, c + d + a + b),
        (BIG, LITTLE, b + a + d + c),
        (LITTLE, LITTLE, d + c + b + a),
    ]
    for word_order, byte_order, data in written:
        plan = all_of([Item(1, Table.INPUT, 0, "float32", None, word_order, byte_order)])
        fill(plan, {(1, Table.INPUT): data})
        assert decode(plan)[0].tolist() == [struct.unpack(">f", abcd)[0]], (word_order, byte_order)


def test_whole_numbers_are_exact_to_2_to_the_53rd_and_bad_beyond() -> None:
    for raw, quality in (
        (2**53, Quality.GOOD),
        (2**53 + 1, Quality.PRECISION),
        (-(2**53), Quality.GOOD),
        (-(2**53) - 1, Quality.PRECISION),
    ):
        plan = all_of([Item(1, Table.HOLDING, 0, "int64")])
        fill(plan, {(1, Table.HOLDING): struct.pack(">q", raw)})
        values, qualities = decode(plan)
        assert qualities.tolist() == [quality]
        assert values[0] == raw if quality == Quality.GOOD else np.isnan(values[0])


@pytest.mark.parametrize(
    ("kind", "sentinels", "raw"),
    [
        ("int16", (-32768, 32767), b"\x7f\xff"),
        ("uint32", (0xFFFFFFFF,), b"\xff\xff\xff\xff"),
        ("int64", (2**63 - 1,), b"\x7f" + b"\xff" * 7),
        ("uint64", (2**64 - 1,), b"\xff" * 8),
        ("float32", (-9999.9,), struct.pack(">f", -9999.9)),
        ("bcd16", (9999,), b"\x99\x99"),
    ],
)
def test_a_sentinel_is_the_failure_of_a_sensor(kind: str, sentinels: tuple[float, ...], raw: bytes) -> None:
    plan = all_of([Item(1, Table.HOLDING, 0, kind, sentinels=sentinels), Item(1, Table.HOLDING, 0, kind)])
    fill(plan, {(1, Table.HOLDING): raw})
    values, quality = decode(plan)
    assert quality[0] == Quality.SENSOR_FAILURE
    assert np.isnan(values[0])
    assert quality[1] != Quality.SENSOR_FAILURE


@given(
    memories(),
    st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=4),
    st.sampled_from(["uint16", "int32", "bcd32", "bool"]),
)
def test_sentinels_are_found_wherever_the_slow_twin_finds_them(
    memory: dict[tuple[int, Table], bytes], sentinels: list[int], kind: str
) -> None:
    items = [
        Item(1, Table.HOLDING, start, kind, sentinels=tuple(sentinels[: start % 4])) for start in range(0, 60, 3)
    ] + [Item(1, Table.HOLDING, 7, "uint16", bit=3, sentinels=tuple(sentinels))]
    plan = all_of(items)
    fill(plan, memory)
    values, quality = decode(plan)
    expected = [twin(item, memory[1, Table.HOLDING]) for item in items]
    assert [Quality(q) for q in quality] == [q for _, q in expected]
    np.testing.assert_array_equal(values, [v for v, _ in expected])


def test_a_failed_block_takes_only_its_own_points_and_shows_nothing_of_its_old_bytes() -> None:
    items = [
        Item(1, Table.HOLDING, 0, "int16"),
        Item(1, Table.HOLDING, 100, "int16"),
        Item(2, Table.HOLDING, 0, "int16"),
    ]
    plan = all_of(items)
    fill(plan, {(1, Table.HOLDING): b"\0\7" * 101, (2, Table.HOLDING): b"\0\5"})
    values, quality = decode(plan, [Outcome.OK, 2, Outcome.TIMED_OUT])
    assert quality.tolist() == [Quality.GOOD, Quality.REFUSED, Quality.TIMEOUT]
    np.testing.assert_array_equal(values, [7, np.nan, np.nan])


def test_every_outcome_has_a_quality_and_every_exception_its_words() -> None:
    assert set(QUALITY) == set(Outcome) | set(KNOWN_EXCEPTIONS)
    assert set(EXCEPTION_WORDS) == set(KNOWN_EXCEPTIONS)
    assert [outcome for outcome, quality in QUALITY.items() if quality == Quality.GOOD] == [Outcome.OK]


@pytest.mark.parametrize(
    ("data", "characters", "order", "text"),
    [
        (b"PUMP 12 ", 8, "big", "PUMP 12"),
        (b"UPPM1 2\0", 7, "little", "PUMP 1"),
        (b"AB\0\0\0\0", 6, "big", "AB"),
        (b"ABCD", 3, "big", "ABC"),
        (b"\0\0\0\0", 4, "big", ""),
        (b"A\x07\xfcB", 4, "big", "A?\u00fcB"),
    ],
)
def test_a_text_is_what_stands_before_its_first_nul(data: bytes, characters: int, order: str, text: str) -> None:
    assert text_of(data, characters, order) == text


# --------------------------------------------------------------------------------------------------- what people write


@pytest.mark.parametrize(
    ("address", "table", "start"),
    [
        ("holding:10", Table.HOLDING, 10),
        ("input:0", Table.INPUT, 0),
        ("coil:65535", Table.COIL, 65535),
        ("discrete:7", Table.DISCRETE, 7),
        ("40101", Table.HOLDING, 100),
        ("400101", Table.HOLDING, 100),
        ("465536", Table.HOLDING, 65535),
        ("30001", Table.INPUT, 0),
        ("10001", Table.DISCRETE, 0),
        ("00001", Table.COIL, 0),
        (40101, Table.HOLDING, 100),
    ],
)
def test_addresses_are_counted_from_0_in_words_and_from_1_in_modicon_notation(
    address: object, table: Table, start: int
) -> None:
    item = ModbusAddress.model_validate({"address": address}).item(ModbusConnection(url="tcp://plc"))  # type: ignore[call-arg]
    assert (item.table, item.start) == (table, start)
    assert item.type == ("uint16" if table >= Table.HOLDING else "bool")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"address": "holding:65536"}, "from 0 to 65535"),
        ({"address": "holding:65535", "type": "float32"}, "beyond the last register"),
        ({"address": "465536", "type": "uint32"}, "beyond the last register"),
        ({"address": "40000"}, "from 1 to 9999"),
        ({"address": "20001"}, "is no Modbus address"),
        ({"address": "holding 10"}, "is no Modbus address"),
        ({"address": "holding:-1"}, "is no Modbus address"),
        ({"address": "coil:1", "type": "float32"}, "its type is bool"),
        ({"address": "coil:1", "bit": 3}, "only at a register"),
        ({"address": "coil:1", "sentinel": [1]}, "sentinel"),
        ({"address": "holding:1", "type": "float32", "bit": 3}, "16-bit register"),
        ({"address": "holding:1", "bit": 16}, "less than or equal to 15"),
        ({"address": "holding:1", "type": "string:0"}, "1 to 250 characters"),
        ({"address": "holding:1", "type": "string:251"}, "1 to 250 characters"),
        ({"address": "holding:1", "type": "string"}, "is no type"),
        ({"address": "holding:65535", "type": "string:3"}, "beyond the last register"),
        ({"address": "holding:1", "type": "string:8", "bit": 1}, "no meaning for a text"),
        ({"address": "holding:1", "type": "string:8", "sentinel": [1]}, "no meaning for a text"),
        ({"address": "coil:1", "type": "string:8"}, "its type is bool"),
        ({"address": "holding:1", "byte": "high"}, "only at int8 and uint8"),
        ({"address": "coil:1", "byte": "high"}, "only at a register"),
        ({"address": "holding:1", "type": "uint8", "byte": "upper"}, "'high' or 'low'"),
        ({"address": "holding:1", "type": "uint8", "sentinel": [256]}, "cannot come from a uint8"),
        ({"address": "holding:1", "type": "real"}, "is no type"),
        ({"address": "holding:1", "type": "int16", "sentinel": [65536]}, "cannot come from a int16"),
        ({"address": "holding:1", "type": "uint16", "sentinel": [-1]}, "cannot come from a uint16"),
        ({"address": "holding:1", "type": "uint16", "sentinel": [1.5]}, "whole numbers"),
        ({"address": "holding:1", "type": "float32", "sentinel": [1e39]}, "cannot come from a float32"),
        ({"address": "holding:1", "type": "float32", "sentinel": [math.nan]}, "always bad"),
        ({"address": "holding:1", "type": "bcd16", "sentinel": [10000]}, "cannot come from a bcd16"),
        ({"address": "holding:1", "unit": 256}, "less than or equal to 255"),
        ({"address": "holding:1", "unit": "bar"}, "valid integer"),
        ({"address": "holding:1", "word_order": "middle"}, "'big' or 'little'"),
        ({"address": "holding:1", "adress": 1}, "Extra inputs"),
    ],
)
def test_a_wrong_address_is_refused_in_words(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModbusAddress.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"url": "rtu://ttyUSB0"}, "names no serial port"),
        ({"url": "rtu:///dev/ttyUSB0?baud=9600"}, "known are baudrate, parity, stopbits, bytesize, rs485"),
        ({"url": "rtu:///dev/ttyUSB0?baudrate=fast"}, "no rate from 50"),
        ({"url": "rtu:///dev/ttyUSB0?baudrate=49"}, "no rate from 50"),
        ({"url": "rtu:///dev/ttyUSB0?parity=X"}, "not one of N, E, O"),
        ({"url": "rtu:///dev/ttyUSB0?bytesize=7"}, "rtu is binary"),
        ({"url": "rtu:///dev/ttyUSB0", "unit": 0}, "numbered from 1 to 247"),
        ({"url": "rtu:///dev/ttyUSB0", "pipeline": 2}, "one request at a time"),
        ({"url": "udp://plc", "connections": 2}, "one request at a time"),
        ({"url": "tcp://plc", "gateway": True, "pipeline": 2}, "one request at a time"),
        ({"url": "rtu+tcp://plc", "gateway": True}, "serial line by itself"),
        ({"url": "tcp://plc", "tls": {"ca": "ca.pem"}}, "without a url that begins with tls"),
        ({"url": "tls://plc", "tls": {"cert": "agent.pem"}}, "cert and key belong together"),
        ({"url": "plc:502"}, r"write tcp://HOST\[:502"),
        ({"url": "http://plc"}, r"write tcp://HOST\[:502"),
        ({"url": "tcp://plc:70000"}, "from 1 to 65535"),
        ({"url": "tcp://plc/1"}, "nothing else"),
        ({"url": "tcp://"}, "write tcp://HOST:PORT"),
        ({"url": "tcp://plc", "timeout": 1}, "needs its unit"),
        ({"url": "tcp://plc", "timeout": "1"}, "is no duration"),
        ({"url": "tcp://plc", "timeout": "1ms"}, "out of range"),
        ({"url": "tcp://plc", "timeout": "2min"}, "out of range"),
        ({"url": "tcp://plc", "max_block": 126}, "less than or equal to 125"),
        ({"url": "tcp://plc", "max_block": 0}, "greater than or equal to 1"),
        ({"url": "tcp://plc", "max_gap": -1}, "greater than or equal to 0"),
        ({"url": "tcp://plc", "pipeline": 17}, "less than or equal to 16"),
        ({"url": "tcp://plc", "unit": True}, "valid integer"),
    ],
)
def test_a_wrong_connection_is_refused_in_words(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModbusConnection.model_validate(keys)


def test_a_connection_is_complete_with_only_an_address() -> None:
    connection = ModbusConnection.model_validate({"url": "tcp://[2001:db8::1]"})
    assert (connection.place.host, connection.place.port) == ("2001:db8::1", 502)
    assert (connection.unit, connection.timeout, connection.max_gap, connection.max_block) == (1, 1_000_000, 16, 125)


@pytest.mark.parametrize(
    ("text", "value_us"), [("250ms", 250_000), ("1s", 1_000_000), ("1.5s", 1_500_000), ("15s", 15_000_000)]
)
def test_settings_survive_being_written_down(text: str, value_us: int) -> None:
    connection = ModbusConnection.model_validate({"url": "tcp://plc:1502", "timeout": text, "byte_order": "little"})
    assert connection.timeout == value_us
    assert ModbusConnection.model_validate_json(connection.model_dump_json()) == connection
    assert ModbusConnection.model_validate(connection.model_dump(mode="json")) == connection
    address = ModbusAddress.model_validate(
        {"address": "40001", "type": "int16", "sentinel": [65535, -32768], "unit": 3}
    )
    assert ModbusAddress.model_validate_json(address.model_dump_json()) == address
    assert address.item(connection).sentinels == (-1, -32768)


def test_what_a_point_leaves_out_is_its_connections() -> None:
    connection = ModbusConnection.model_validate({"url": "tcp://plc", "unit": 7, "word_order": "little"})
    item = ModbusAddress.model_validate({"address": "holding:0", "byte_order": "little"}).item(connection)
    assert (item.unit, item.word_order, item.byte_order) == (7, "little", "little")
