"""Answers of an OPC UA server: by columns or by the library's objects, every bit of the readings is the same."""

import inspect
import types
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from struct import pack
from typing import Any

import numpy as np
import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary, variant_to_binary
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import opcua_decode
from drivers.opcua_decode import Column, Header, Layout, Published
from edge_agent.contract import Quality

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RECEIVED = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
RECEIVED_US = (RECEIVED - EPOCH) // timedelta(microseconds=1)
HOUR_US = 3_600_000_000
TICKS = (RECEIVED_US + 11_644_473_600_000_000) * 10
EXACT = 2**53
KIND = ua.VariantType
REPEATS = (1, 1, 1, 2, 5, 40, 300)
"""How often an element stands in a row: walked one by one, looked for as a run, and more than one window of it."""


# ------------------------------------------------------------------------------------------------------- the servers

INTEGERS = {
    KIND.SByte: (-(2**7), 2**7 - 1),
    KIND.Byte: (0, 2**8 - 1),
    KIND.Int16: (-(2**15), 2**15 - 1),
    KIND.UInt16: (0, 2**16 - 1),
    KIND.Int32: (-(2**31), 2**31 - 1),
    KIND.UInt32: (0, 2**32 - 1),
    KIND.Int64: (-(2**63), 2**63 - 1),
    KIND.UInt64: (0, 2**64 - 1),
}
EDGES = (0, 1, -1, EXACT, EXACT + 1, -EXACT, -EXACT - 1, 2**63 - 1, 2**64 - 1)


def integers(kind: ua.VariantType) -> st.SearchStrategy[ua.Variant]:
    low, high = INTEGERS[kind]
    edges = [edge for edge in EDGES if low <= edge <= high]
    return st.builds(ua.Variant, st.integers(low, high) | st.sampled_from(edges), st.just(kind))


NUMBERS = st.one_of(
    *(integers(kind) for kind in INTEGERS),
    st.builds(ua.Variant, st.booleans(), st.just(KIND.Boolean)),
    st.builds(ua.Variant, st.floats(width=32), st.just(KIND.Float)),
    st.builds(ua.Variant, st.floats(), st.just(KIND.Double)),
)
TEXTS = st.one_of(
    st.builds(ua.Variant, st.none() | st.text(max_size=9), st.just(KIND.String)),
    st.builds(ua.Variant, st.none() | st.binary(max_size=200), st.just(KIND.ByteString)),
)
OTHERS = st.sampled_from(
    [
        ua.Variant(),
        ua.Variant(RECEIVED, KIND.DateTime),
        ua.Variant(ua.StatusCode(ua.StatusCodes.BadTimeout), KIND.StatusCode),
        ua.Variant([1.0, float("nan")], KIND.Double),
        ua.Variant([True] * 5, KIND.Boolean),
        ua.Variant([], KIND.Int32, is_array=True),
        ua.Variant(None, KIND.Float, is_array=True),
        ua.Variant([RECEIVED], KIND.DateTime),
    ]
)
PLAIN = st.one_of(NUMBERS, NUMBERS, NUMBERS, TEXTS, OTHERS)
"""What the bytes alone can decide."""
STRANGE = st.sampled_from(
    [
        ua.Variant(["a", "b"], KIND.String),
        ua.Variant([[1, 2], [3, 4]], KIND.Int16),
        ua.Variant(ua.NodeId("x", 2), KIND.NodeId),
        ua.Variant(ua.LocalizedText("x"), KIND.LocalizedText),
        ua.Variant(ua.Range(0.0, 1.0), KIND.ExtensionObject),
        ua.Variant(ua.QualifiedName("x", 1), KIND.QualifiedName),
    ]
)
CODES = [0, 0x0030_0000, 0x4090_0000, 0x8000_0000, 0x808C_0000, 0x8031_0000, 0x803C_0000, 0x80FF_0000, 0xC000_0000]
STATUSES = st.builds(int.__or__, st.sampled_from(CODES), st.sampled_from([0, 0, 0x0480, 0x0400, 0x0080, 0x0FFF]))
STAMPS = st.one_of(
    st.sampled_from([0, HOUR_US, HOUR_US + 1, -HOUR_US, -HOUR_US - 1]).map(lambda us: TICKS + 10 * us),
    st.integers(-2 * HOUR_US, 2 * HOUR_US).map(lambda us: TICKS + 10 * us + 7),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2_650_467_743_990_000_000]),
)
PICOSECONDS = st.none() | st.integers(0, 9999)


def wired(
    variant: ua.Variant | None, status: int | None, source: int | None, server: int | None, picos: Sequence[int | None]
) -> bytes:
    """A DataValue as servers send it (OPC UA Part 6, 5.2.2.17), with any 64 bits as its times."""
    parts = [
        None if variant is None else variant_to_binary(variant),
        None if status is None else pack("<I", status),
        None if source is None else pack("<q", source),
        None if picos[0] is None else pack("<H", picos[0]),
        None if server is None else pack("<q", server),
        None if picos[1] is None else pack("<H", picos[1]),
    ]
    masks = (0x01, 0x02, 0x04, 0x10, 0x08, 0x20)
    mask = sum(bit for bit, part in zip(masks, parts, strict=True) if part is not None)
    return bytes([mask]) + b"".join(part for part in parts if part is not None)


def encoded(variant: ua.Variant, status: int, stamp: datetime | None, server: datetime | None) -> bytes:
    """A DataValue as the library encodes it."""
    return bytes(struct_to_binary(ua.DataValue(variant, ua.StatusCode(status), stamp, server)))


def elements(variants: st.SearchStrategy[ua.Variant]) -> st.SearchStrategy[list[bytes]]:
    near = st.integers(-2 * HOUR_US, 2 * HOUR_US).map(lambda us: RECEIVED + timedelta(microseconds=us))
    stamps = st.none() | STAMPS
    one = st.one_of(
        st.builds(
            wired, st.none() | variants, st.none() | STATUSES, stamps, stamps, st.tuples(PICOSECONDS, PICOSECONDS)
        ),
        st.builds(encoded, variants, STATUSES, st.none() | near, st.none() | near),
    )
    repeated = st.tuples(st.lists(one, min_size=1, max_size=4), st.sampled_from(REPEATS)).map(
        lambda run: run[0] * run[1]
    )
    return st.lists(repeated, max_size=5).map(lambda runs: [element for run in runs for element in run])


HEADERS = st.builds(lambda ticks, handle: pack("<qIIBi3x", ticks, handle, 0, 0, -1), STAMPS, st.integers(0, 2**32 - 1))
HEADER = pack("<qIIBi3x", TICKS, 7, 0, 0, 0)
NONE = pack("<i", -1)


def read_answer(items: Sequence[bytes], header: bytes = HEADER) -> bytes:
    return opcua_decode.READ_RESPONSE + header + pack("<i", len(items)) + b"".join(items) + NONE


def extension(kind: bytes, body: bytes) -> bytes:
    return kind + b"\x01" + pack("<i", len(body)) + body


def data_change(items: Sequence[bytes], first: int = 0) -> bytes:
    numbered = (pack("<I", (first + row) & 0xFFFF_FFFF) + item for row, item in enumerate(items))
    return extension(opcua_decode.DATA_CHANGE, pack("<i", len(items)) + b"".join(numbered) + NONE)


def status_change(status: int) -> bytes:
    return extension(opcua_decode.STATUS_CHANGE, pack("<IB", status, 0))


def publish_answer(
    notifications: Sequence[bytes], header: bytes = HEADER, *, more: bool = False, words: Sequence[int] = ()
) -> bytes:
    listed = pack(f"<i{len(words)}I", len(words), *words)
    message = pack("<?Iqi", more, 99, TICKS, len(notifications)) + b"".join(notifications)
    return opcua_decode.PUBLISH_RESPONSE + header + pack("<I", 5) + listed + message + listed + NONE


def events() -> bytes:
    event = ua.EventNotificationList([ua.EventFieldList(1, [ua.Variant("hot", KIND.String)])])
    return extension(b"\x01\x00\x94\x03", struct_to_binary(event))


# ------------------------------------------------------------------------------------------------- both ways, compared


def by_library(raw: bytes) -> tuple[Header, Column]:
    return opcua_decode.from_read(struct_from_binary(ua.ReadResponse, Buffer(raw)), RECEIVED_US)


def published_by_library(raw: bytes) -> Published:
    return opcua_decode.from_publish(struct_from_binary(ua.PublishResponse, Buffer(raw)), RECEIVED_US)


def by_columns(raw: bytes, count: int, module: Any = opcua_decode) -> Any:
    return module.read_response(raw, count, RECEIVED_US, short=0)


def published_by_columns(raw: bytes, module: Any = opcua_decode) -> Any:
    return module.publish_response(raw, RECEIVED_US, short=0)


def bits(thing: Any) -> Any:
    """All of it as plain values: arrays as their type and bytes, so that NaN equals NaN and 0.0 is not -0.0."""
    match thing:
        case np.ndarray():
            return str(thing.dtype), thing.shape, thing.tobytes()
        case tuple():
            return tuple(bits(each) for each in thing)
        case None | bool() | int():
            return thing
        case _:
            return {name: bits(getattr(thing, name)) for name in thing.__slots__}


@settings(max_examples=150, deadline=None)
@given(elements(PLAIN), HEADERS)
def test_a_read_is_the_same_by_columns_and_by_the_library(items: list[bytes], header: bytes) -> None:
    raw = read_answer(items, header)
    fast = by_columns(raw, len(items))
    assert fast is not None
    assert bits(fast) == bits(by_library(raw))


@settings(max_examples=50, deadline=None)
@given(elements(PLAIN), elements(NUMBERS), st.data())
def test_what_is_known_of_the_last_answer_changes_nothing_in_the_next(
    first: list[bytes], second: list[bytes], data: st.DataObject
) -> None:
    layout = Layout()
    damaged = broken(read_answer(second), data)
    for count, raw in (
        (len(first), read_answer(first)),
        (len(second), read_answer(second)),
        (len(second), damaged),
        (len(second), read_answer(second)),
        (len(second), damaged),
    ):
        fast = opcua_decode.read_response(raw, count, RECEIVED_US, layout, short=0)
        assert fast is None or bits(fast) == bits(by_library(raw))
        assert bits(fast) == bits(by_columns(raw, count))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(data_change, elements(PLAIN), st.integers(0, 2**32 - 1)) | STATUSES.map(status_change), max_size=3
    ),
    HEADERS,
    st.booleans(),
    st.lists(st.integers(0, 2**32 - 1), max_size=4),
)
def test_a_publish_is_the_same_by_columns_and_by_the_library(
    notifications: list[bytes], header: bytes, more: bool, words: list[int]
) -> None:
    raw = publish_answer(notifications, header, more=more, words=words)
    fast = published_by_columns(raw)
    assert fast is not None
    assert bits(fast) == bits(published_by_library(raw))


@settings(max_examples=60, deadline=None)
@given(elements(PLAIN | STRANGE))
def test_what_the_bytes_cannot_decide_is_left_to_the_library(items: list[bytes]) -> None:
    raw = read_answer(items)
    fast = by_columns(raw, len(items))
    assert fast is None or bits(fast) == bits(by_library(raw))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(encoded, PLAIN | STRANGE, STATUSES, st.just(RECEIVED), st.none()), max_size=9))
def test_answers_that_the_library_encodes_whole_are_the_same(items: list[bytes]) -> None:
    values = [struct_from_binary(ua.DataValue, Buffer(item)) for item in items]
    read = struct_to_binary(ua.ReadResponse(Results=values))
    answer = ua.PublishResponse()
    changed = [ua.MonitoredItemNotification(row, value) for row, value in enumerate(values)]
    answer.Parameters.NotificationMessage.NotificationData = [ua.DataChangeNotification(changed)]
    published = struct_to_binary(answer)
    fast, fast_published = by_columns(read, len(items)), published_by_columns(published)
    assert fast is None or bits(fast) == bits(by_library(read))
    assert fast_published is None or bits(fast_published) == bits(published_by_library(published))
    assert (fast is None) == (fast_published is None)


# ------------------------------------------------------------------------------------------------ one by one, in words

DOUBLE = ua.Variant(1.5, KIND.Double)


def one(
    variant: ua.Variant | None, status: int | None = None, source: int | None = TICKS
) -> tuple[float, int, int, int]:
    """value, quality, ts, typed of a read of this one, both ways."""
    raw = read_answer([wired(variant, status, source, None, (None, None))])
    fast = by_columns(raw, 1)
    _, column = by_library(raw)
    assert fast is None or bits(fast[1]) == bits(column)
    return column.values[0], column.quality[0], column.ts[0], column.typed[0]


@pytest.mark.parametrize(
    ("variant", "value", "quality"),
    [
        (DOUBLE, 1.5, Quality.GOOD),
        (ua.Variant(True, KIND.Boolean), 1.0, Quality.GOOD),
        (ua.Variant(EXACT, KIND.Int64), float(EXACT), Quality.GOOD),
        (ua.Variant(-EXACT - 1, KIND.Int64), np.nan, Quality.PRECISION),
        (ua.Variant(-(2**63), KIND.Int64), np.nan, Quality.PRECISION),
        (ua.Variant(2**64 - 1, KIND.UInt64), np.nan, Quality.PRECISION),
        (ua.Variant(float("inf"), KIND.Float), np.nan, Quality.NOT_A_NUMBER),
        (ua.Variant("1.5", KIND.String), np.nan, Quality.OTHER),
        (ua.Variant([1.5], KIND.Double), np.nan, Quality.OTHER),
        (ua.Variant(RECEIVED, KIND.DateTime), np.nan, Quality.OTHER),
        (ua.Variant(None, KIND.String), np.nan, Quality.MISSING),
        (ua.Variant(), np.nan, Quality.MISSING),
        (None, np.nan, Quality.MISSING),
    ],
)
def test_what_a_value_says_of_itself(variant: ua.Variant | None, value: float, quality: Quality) -> None:
    found = one(variant)
    assert found[0] == pytest.approx(value, nan_ok=True)
    assert found[1] == quality
    assert found[3] == (0 if variant is None else variant.VariantType.value | 0x80 * variant.is_array)
    assert one(variant, 0x4090_0000)[1] == (Quality.UNCERTAIN if quality is Quality.GOOD else quality)
    failed = one(variant, 0x808C_0480)
    assert np.isnan(failed[0])
    assert failed[1] == Quality.SENSOR_FAILURE
    assert one(variant, 0xC000_0000)[1] == Quality.OTHER


@pytest.mark.parametrize(
    ("source", "ts", "quality"),
    [
        (None, RECEIVED_US, Quality.GOOD),
        (TICKS + 10 * HOUR_US, RECEIVED_US + HOUR_US, Quality.GOOD),
        (TICKS - 10 * HOUR_US, RECEIVED_US - HOUR_US, Quality.GOOD),
        (TICKS + 10 * HOUR_US + 10, RECEIVED_US, Quality.CLOCK),
        (0, RECEIVED_US, Quality.CLOCK),
        (-(2**63), RECEIVED_US, Quality.CLOCK),
        (2**63 - 1, RECEIVED_US, Quality.CLOCK),
    ],
)
def test_a_source_time_is_believed_within_an_hour(source: int | None, ts: int, quality: Quality) -> None:
    assert one(DOUBLE, None, source)[1:3] == (quality, ts)
    assert one(DOUBLE, 0x4090_0000, source)[1:3] == (Quality.UNCERTAIN, ts)
    assert one(DOUBLE, 0x808B_0000, source)[1:3] == (Quality.DEVICE_FAILURE, ts)


def test_a_signalling_nan_is_not_a_number_and_warns_nobody() -> None:
    raw = read_answer([b"\x01\x0a" + pack("<I", 0x7F80_0001), b"\x01\x0b" + pack("<Q", 0x7FF0_0000_0000_0001)])
    _, column = by_columns(raw, 2)
    assert column.quality.tolist() == [Quality.NOT_A_NUMBER] * 2
    assert bits(column) == bits(by_library(raw)[1])


def test_a_boolean_of_any_byte_is_one() -> None:
    raw = read_answer([b"\x01\x01\x02", b"\x01\x01\x00"])
    assert by_columns(raw, 2)[1].values.tolist() == [1.0, 0.0] == by_library(raw)[1].values.tolist()


# --------------------------------------------------------------------------------------------------------- of a publish


@pytest.mark.parametrize(
    "empty", [publish_answer([]), publish_answer([]).replace(pack("<qi", TICKS, 0), pack("<qi", TICKS, -1))]
)
def test_a_keep_alive_says_only_that_the_server_lives(empty: bytes) -> None:
    for found in (published_by_columns(empty), published_by_library(empty)):
        assert found.keep_alive
        assert (found.subscription, found.sequence, found.changes, found.ended) == (5, 99, (), None)
        assert found.header == Header(0, 7, RECEIVED_US)


def test_an_answer_that_went_wrong_is_no_keep_alive() -> None:
    raw = publish_answer([], pack("<qIIBi3x", TICKS, 7, 0x8079_0000, 0, 0))
    assert published_by_columns(raw) is None
    found = published_by_library(raw)
    assert not found.keep_alive
    assert found.header.result == 0x8079_0000


def test_the_end_of_a_subscription_is_no_keep_alive() -> None:
    raw = publish_answer([status_change(0x800A_0000)])
    for found in (published_by_columns(raw), published_by_library(raw)):
        assert (found.ended, found.keep_alive, found.other) == (0x800A_0000, False, 0)


def test_events_are_counted_by_the_library() -> None:
    raw = publish_answer([data_change([wired(DOUBLE, None, TICKS, None, (None, None))]), events()])
    assert published_by_columns(raw) is None
    found = published_by_library(raw)
    assert (found.other, len(found.changes), found.keep_alive) == (1, 1, False)


def test_what_a_queue_lost_is_counted() -> None:
    items = [
        wired(DOUBLE, status, TICKS, None, (None, None)) for status in (0x0480, 0x0080, 0x0400, 0x4090_0480, 0x0C80)
    ]
    raw = publish_answer([data_change(items), data_change(items)])
    assert published_by_columns(raw).overflows == published_by_library(raw).overflows == 4


def test_one_item_may_come_several_times_in_its_order() -> None:
    items = [wired(ua.Variant(value, KIND.Int32), None, TICKS, None, (None, None)) for value in range(300)]
    raw = publish_answer([data_change(items[:150], 7), data_change(items[150:], 7)])
    first, second = published_by_columns(raw).changes
    assert first.handle.tolist() == second.handle.tolist() == list(range(7, 157))
    assert [*first.values, *second.values] == list(range(300))


# ------------------------------------------------------------------------------------------------------- broken answers


def uniform(count: int = 20) -> list[bytes]:
    return [wired(DOUBLE, None, TICKS, None, (None, None))] * count


def varied() -> list[bytes]:
    variants = [DOUBLE, ua.Variant(3, KIND.Int16), ua.Variant("on", KIND.String), ua.Variant([1, 2], KIND.Byte), None]
    return [wired(variant, status, TICKS, None, (3, None)) for variant in variants for status in (None, 0x808C_0000)]


READS = [(items, read_answer(items)) for items in (uniform(), varied(), [])]
PUBLISHES = [publish_answer([data_change(varied()), status_change(3), data_change(uniform())], words=[1, 2])]
PUBLISHES += [publish_answer([data_change(uniform())]), publish_answer([], words=[4])]


def broken(whole: bytes, draw: st.DataObject) -> bytes:
    """Some bytes of it changed, cut away or added."""
    raw = bytearray(whole)
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, len(raw) - 1))
        raw[at] = draw.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    return bytes(raw[:cut]) + draw.draw(st.just(b"") | st.binary(max_size=3))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(READS), st.data())
def test_a_broken_read_is_nothing_or_what_the_library_makes_of_it(
    answer: tuple[list[bytes], bytes], data: st.DataObject
) -> None:
    raw = broken(answer[1], data)
    fast = by_columns(raw, len(answer[0]))
    assert fast is None or bits(fast) == bits(by_library(raw))  # and where the library raises, this fails


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PUBLISHES), st.data())
def test_a_broken_publish_is_nothing_or_what_the_library_makes_of_it(whole: bytes, data: st.DataObject) -> None:
    raw = broken(whole, data)
    fast = published_by_columns(raw)
    assert fast is None or bits(fast) == bits(published_by_library(raw))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(-2, 2**31))
def test_noise_raises_nothing(noise: bytes, count: int) -> None:
    by_columns(noise, count)
    by_columns(opcua_decode.READ_RESPONSE + HEADER + noise, count)
    published_by_columns(opcua_decode.PUBLISH_RESPONSE + HEADER + noise)


@pytest.mark.parametrize("whole", [raw for _, raw in READS] + PUBLISHES)
def test_a_truncated_answer_is_nothing_at_every_length(whole: bytes) -> None:
    for size in range(len(whole)):
        assert by_columns(whole[:size], 20) is None
        assert published_by_columns(whole[:size]) is None


@pytest.mark.parametrize("whole", [raw for _, raw in READS] + PUBLISHES)
def test_an_answer_with_something_behind_it_is_nothing(whole: bytes) -> None:
    assert by_columns(whole + b"\0", 20) is None
    assert published_by_columns(whole + b"\0") is None


@pytest.mark.parametrize("lie", [2**31 - 1, 2**20, 21, 19, -2, -(2**31)])
def test_a_lying_count_is_not_believed(lie: int) -> None:
    raw = read_answer(uniform())
    assert by_columns(raw[:32] + pack("<i", lie) + raw[36:], lie) is None
    raw = publish_answer([data_change(uniform())])
    for at in (32, 49, 58, 62):
        assert published_by_columns(raw[:at] + pack("<i", lie) + raw[at + 4 :]) is None


def test_another_number_of_values_than_was_asked_is_nothing() -> None:
    assert by_columns(read_answer(uniform()), 19) is None


# ---------------------------------------------------------------------------------------------------- that it is worth it


def test_ordinary_answers_are_decoded_by_columns() -> None:
    assert opcua_decode.read_response(read_answer(uniform(1000)), 1000, RECEIVED_US) is not None
    assert opcua_decode.publish_response(publish_answer([data_change(uniform(1000))]), RECEIVED_US) is not None
    assert opcua_decode.publish_response(publish_answer([]), RECEIVED_US) is not None


def test_a_text_or_array_too_long_for_a_byte_is_left_to_the_library() -> None:
    for length, found in ((200, True), (250, False)):
        text = wired(ua.Variant("x" * length, KIND.String), None, TICKS, None, (None, None))
        assert (by_columns(read_answer([*uniform(), text]), 21) is not None) is found


def test_short_answers_are_left_to_the_library() -> None:
    assert opcua_decode.read_response(read_answer(uniform(3)), 3, RECEIVED_US) is None
    many = publish_answer([data_change(uniform(1))] * 50)
    assert opcua_decode.publish_response(many, RECEIVED_US) is None


# ------------------------------------------------------------------------------------------------------- planted faults


def every_kind() -> Iterator[bytes]:
    """Every rule once, in an answer of which each part has another layout than the one before."""
    variants = [
        DOUBLE,
        *(ua.Variant(edge, kind) for kind, span in INTEGERS.items() for edge in EDGES if span[0] <= edge <= span[1]),
        ua.Variant(True, KIND.Boolean),
        ua.Variant(float("nan"), KIND.Float),
        ua.Variant(0.1, KIND.Float),
        ua.Variant(None, KIND.String),
        ua.Variant("x", KIND.String),
        ua.Variant(),
        None,
    ]
    for variant in variants:
        for status in (None, 0x4090_0000, 0x808C_0480):
            for source in (None, TICKS + 7, TICKS + 10 * HOUR_US, TICKS + 10 * HOUR_US + 10, -(2**63)):
                yield wired(variant, status, source, None, (None, None))


FAULTS = [
    ("numbers <= EXACT_MAX", "numbers <= 2 * EXACT_MAX"),
    ("numbers >= -EXACT_MAX", "numbers >= -2 * EXACT_MAX"),
    ("(numbers != 0)", "(numbers == 0)"),
    ("values[~known] = np.nan", "pass"),
    ("values[status >= BAD] = np.nan", "pass"),
    ("(found == Quality.GOOD) | (status >= BAD)", "found == Quality.GOOD"),
    ("(found == Quality.GOOD) | (status >= BAD)", "found < 99"),
    ("quality[~sane & (quality == Quality.GOOD)]", "quality[~sane]"),
    ("quality[~sane & (quality == Quality.GOOD)]", "quality[~sane & (quality == 99)]"),
    ("<= CLOCK_SANE_US\n    known", "< CLOCK_SANE_US\n    known"),
    ("known = sane & stamped", "known = stamped"),
    ("sane | ~stamped", "sane"),
    ("2 * (mask & HAS_STATUS)", "0 * (mask & HAS_STATUS)"),
    ('10: "<f4"', '10: "<i4"'),
    ('4: "<i2"', '4: "<u2"'),
    ("== -1, Quality.MISSING, Quality.OTHER", "== -1, Quality.OTHER, Quality.OTHER"),
    ("table[mask] = 1 + tail", "table[mask] = 2 + tail"),
    ("return done + first", "return done + first + 1"),
    ('_fields(raw, "<u4", starts) if head', '_fields(raw, "<u4", at) if head'),
    ("if np.array_equal(told, layout.sizes)", "if len(told)"),
]


def readings(module: Any, count: int, *reads: bytes, published: bytes) -> Any:
    """Bits of the last read, which follows the others as in a session, and of the publish; None when the module raises."""
    layout = module.Layout()
    try:
        answers = [module.read_response(raw, count, RECEIVED_US, layout, short=0) for raw in reads]
        return bits((answers[-1], published_by_columns(published, module)))
    except IndexError:
        return None


@pytest.mark.parametrize(("right", "wrong"), FAULTS)
def test_a_planted_fault_is_found(right: str, wrong: str) -> None:
    source = inspect.getsource(opcua_decode)
    assert right in source
    faulty = types.ModuleType("faulty")
    exec(compile(source.replace(right, wrong, 1), "faulty", "exec"), faulty.__dict__)
    items = [*uniform(400), *every_kind()]
    read, published = read_answer(items), publish_answer([data_change(items)])
    as_long = read_answer(items[::-1])
    meant = bits((by_library(read), published_by_library(published)))
    assert readings(opcua_decode, len(items), as_long, read, published=published) == meant
    assert readings(faulty, len(items), as_long, read, published=published) != meant


# ----------------------------------------------------------------------------------------------------------- items that were made


def created(codes: Sequence[int], filtered: Any = None) -> bytes:
    answer = ua.CreateMonitoredItemsResponse()
    answer.Results = [
        ua.MonitoredItemCreateResult(ua.StatusCode(code), 100 + place, 250.0, 2, filtered)
        for place, code in enumerate(codes)
    ]
    return bytes(struct_to_binary(answer))


@pytest.mark.parametrize("codes", [(), (0,), (0, 0x80DB_0000, 0, 0x8034_0000)])
def test_items_that_were_made_and_refused_are_those_of_the_library(codes: tuple[int, ...]) -> None:
    raw = created(codes)
    ours = opcua_decode.created_items(raw, len(codes))
    theirs = opcua_decode.from_created(struct_from_binary(ua.CreateMonitoredItemsResponse, Buffer(raw)))
    assert ours is not None
    pairs: list[tuple[Any, Any]] = list(zip(ours, theirs, strict=True))
    for own, other in pairs:
        assert own.dtype == other.dtype
        assert own.tolist() == other.tolist()


def test_another_count_of_items_a_fault_a_filters_result_and_cut_bytes_are_left_to_the_library() -> None:
    raw = created((0, 0, 0))
    assert opcua_decode.created_items(raw, 2) is None
    assert opcua_decode.created_items(raw, 4) is None
    fault = ua.CreateMonitoredItemsResponse()
    fault.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadTooManyOperations)
    assert opcua_decode.created_items(bytes(struct_to_binary(fault)), 0) is None
    assert opcua_decode.created_items(created((0,), ua.EventFilterResult()), 1) is None
    assert all(opcua_decode.created_items(raw[:end], 3) is None for end in range(len(raw)))
