"""Answers of an OPC UA server as columns: by numpy over the bytes, and the same from the library's objects. Pure.

Rule 1: both ways give equal columns, bit for bit; whatever the bytes leave in doubt is None here and the library's to say.
Rule 2: where the library raises, the bytes give None: a malformed answer is never half believed.
Rule 3: every length comes from the wire, so none is believed before it is measured against the bytes at hand.
Source: OPC UA Part 6, 5.2.2 (Variant, DataValue, ExtensionObject), and Part 4, 7.33, 7.25 and 5.14.5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from struct import Struct, error
from typing import Any

import numpy as np
import numpy.typing as npt

from drivers.opcua_status import BAD, OVERFLOW, OVERFLOW_MASK, QUALITIES
from drivers.opcua_status import quality as quality_of
from edge_agent.contract import Bools, Codes, Floats, Ints, Quality

Words = npt.NDArray[np.uint32]

EXACT_MAX = 2**53
"""float64 holds every integer up to here; beyond it a counter would be silently rounded."""
CLOCK_SANE_US = 3_600_000_000
"""A source time further than this from its receipt is not believed (contract §6, `ts`)."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
TICKS_EPOCH_US = 11_644_473_600_000_000
"""From 1601, where the wire counts 100 ns from (Part 6, 5.2.2.5), to 1970."""
TICKS_MAX = 2_650_467_743_990_000_000
"""9999-12-31 23:59:59; what lies beyond means this (Part 6, 5.2.2.5)."""
ARRAY = 0x80
"""Bit of a variant's type: an array of it (Part 6, 5.2.2.16)."""
HAS_VALUE, HAS_STATUS, HAS_SOURCE, MASK_MAX = 0x01, 0x02, 0x04, 0x3F
"""Bits of a DataValue's mask: which parts follow (Part 6, 5.2.2.17). What lies above MASK_MAX is reserved."""
TAIL_PARTS = {HAS_STATUS: 4, HAS_SOURCE: 8, 0x08: 8, 0x10: 2, 0x20: 2}
"""Bytes of each part after the value: status, source time, server time, and the picoseconds of both."""
BOOLEAN, INT64, UINT64 = 1, 8, 9
FORMS = {1: "u1", 2: "i1", 3: "u1", 4: "<i2", 5: "<u2", 6: "<i4", 7: "<u4", 8: "<i8", 9: "<u8", 10: "<f4", 11: "<f8"}
"""Variant types that are numbers (Part 6, 5.1.2)."""
TEXTS = frozenset({12, 15})
"""String and ByteString: a length and as many bytes."""
WIDTHS = {kind: int(np.dtype(form).itemsize) for kind, form in FORMS.items()} | {13: 8, 14: 16, 19: 4}
"""Bytes of each variant type that has always the same: numbers, DateTime, Guid, StatusCode."""
ALIKE = 4
"""After this many elements of one size in a row, the run that they may begin is looked for as a whole."""
FEW_MIN, FEW_MAX = 16, 1024
"""Elements walked one by one between two such looks."""
RUN_WORTH = 256
"""A look takes as long as a walk of about a hundred: only such runs are worth a look after every few."""
WINDOW = 64
SIZE_MAX = 255
"""Bytes of one DataValue, so that a byte holds each size; longer texts and arrays are left to the library."""
SHORT = 200
"""Bytes of an answer for each column in it below which the library is faster (python -m bench.opcua_decode)."""

READ_RESPONSE, PUBLISH_RESPONSE = b"\x01\x00\x7a\x02", b"\x01\x00\x3d\x03"
DATA_CHANGE, STATUS_CHANGE = b"\x01\x00\x2b\x03", b"\x01\x00\x34\x03"
"""NodeIds of the binary encodings 634, 829, 811 and 820 (Part 6, A.3), in the four bytes that they all take."""
CREATE_ITEMS_RESPONSE = b"\x01\x00\xf2\x02"
"""754 in the same way."""
CREATED = np.dtype([("status", "<u4"), ("item", "<u4"), ("sampling", "<f8"), ("queue", "<u4"), ("filter", "V3")])
"""A MonitoredItemCreateResult without a FilterResult (Part 4, 5.13.2)."""
_HEADER = Struct("<4sqIIBi3s")
_MESSAGE = Struct("<?Iqi")
_EXTENSION = Struct("<4sBi")
_INT32 = Struct("<i")
_UINT32 = Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """Of any answer. result: the service's status code. handle: the request's. server_us: the server's time, UTC µs."""

    result: int
    handle: int
    server_us: int


@dataclass(frozen=True, slots=True)
class Column:
    """Readings of one answer in its order; all arrays are (n,).

    handle: uint32 client handles of notifications, None for a read. values: float64, NaN where not good or uncertain.
    quality: uint8, contract.Quality. ts: int64 UTC µs, the source's stamp when sane, else the receipt.
    status: uint32, as it came. typed: uint8, the variant's type (0 none, ARRAY set for arrays).
    """

    handle: Words | None
    values: Floats
    quality: Codes
    ts: Ints
    status: Words
    typed: Codes


@dataclass(frozen=True, slots=True)
class Published:
    """One PublishResponse.

    changes: a column for each DataChangeNotification, in the order of arrival; an item may occur more than once.
    keep_alive: the server says that it lives and has nothing new (`sequence` is then the next message's).
    ended: the status with which the server ended the subscription. other: notifications of other kinds (events).
    overflows: values before which others were lost in the server's queue.
    """

    header: Header
    subscription: int
    sequence: int
    more: bool
    available: tuple[int, ...]
    changes: tuple[Column, ...]
    keep_alive: bool
    ended: int | None
    overflows: int
    other: int


@dataclass(slots=True)
class Layout:
    """Where the values of the last answer to one request began: kept by who asks it again, measured again each time.

    It saves the walk through answers of mixed types, which are laid out alike until a value turns bad. end: where the last
    value ended. sizes: (n,) uint8 bytes of each.
    """

    end: int = -1
    starts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: Codes = field(default_factory=lambda: np.zeros(0, np.uint8))


# ------------------------------------------------------------------------------------------------------ from the bytes


def read_response(
    raw: bytes, count: int, received_us: int, layout: Layout | None = None, *, short: int = SHORT
) -> tuple[Header, Column] | None:
    """A whole ReadResponse of `count` values; None when the library must look at it.

    raw: the message's body, from its type id on. received_us: UTC. layout: of the same request's last answer, brought up to
    date. short: bytes below which it does not pay. Raises nothing.
    """
    if len(raw) < short:
        return None
    header = _header(raw, READ_RESPONSE)
    at, end = _HEADER.size + _INT32.size, len(raw) - _INT32.size
    if (
        header is None
        or end < at
        or not _is_empty_list(raw, end)
        or _INT32.unpack_from(raw, at - _INT32.size)[0] != count
    ):
        return None
    starts = _starts(raw, at, count, 0, end) if layout is None else _starts_again(raw, at, count, end, layout)
    return None if starts is None else (header, _column(raw, starts, 0, end, received_us))


def publish_response(raw: bytes, received_us: int, *, short: int = SHORT) -> Published | None:
    """A whole PublishResponse; None when the library must look at it (events among others).

    raw: the message's body, from its type id on. received_us: UTC. short: bytes a notification below which it does not pay.
    Raises nothing.
    """
    header = _header(raw, PUBLISH_RESPONSE)
    if header is None:
        return None
    try:
        return _published(raw, header, received_us, short)
    except error:  # a message that ends within one of its numbers
        return None


def created_items(raw: bytes, count: int) -> tuple[Words, Words, Floats] | None:
    """A whole CreateMonitoredItemsResponse of `count` results: of each its status, its item's number, and
    how often the server will look at it, in ms; all (n,).

    None when the library must look at it: a service that went badly, another count, a result with a FilterResult.
    """
    at = _HEADER.size + _INT32.size
    end = at + count * CREATED.itemsize
    if len(raw) != end + _INT32.size or _header(raw, CREATE_ITEMS_RESPONSE) is None or not _is_empty_list(raw, end):
        return None
    results = np.frombuffer(raw, CREATED, count, at)
    if _INT32.unpack_from(raw, _HEADER.size)[0] != count or results["filter"].tobytes().strip(b"\0"):
        return None
    return results["status"], results["item"], results["sampling"]


def _header(raw: bytes, kind: bytes) -> Header | None:
    """The ResponseHeader after this type id, when the service went well and nothing is attached to it."""
    if len(raw) < _HEADER.size:
        return None
    type_id, ticks, handle, result, diagnostics, strings, additional = _HEADER.unpack_from(raw)
    if type_id != kind or result or diagnostics or strings not in (-1, 0) or additional != b"\0\0\0":
        return None
    return Header(result, handle, min(max(ticks, 0), TICKS_MAX) // 10 - TICKS_EPOCH_US)


def _is_empty_list(raw: bytes, at: int) -> bool:
    """No elements, or a null list. Raises struct.error beyond the end."""
    return bool(_INT32.unpack_from(raw, at)[0] in (-1, 0))


def _published(raw: bytes, header: Header, received_us: int, short: int) -> Published | None:
    (subscription,) = _UINT32.unpack_from(raw, _HEADER.size)
    available, at = _words(raw, _HEADER.size + _UINT32.size)
    more, sequence, _, count = _MESSAGE.unpack_from(raw, at)
    at += _MESSAGE.size
    if count < -1 or len(raw) < short * count:
        return None
    changes: list[Column] = []
    ended = None
    for _ in range(count):
        kind, encoding, size = _EXTENSION.unpack_from(raw, at)
        at, end = at + _EXTENSION.size, at + _EXTENSION.size + size
        if encoding != 1 or size < 0 or end > len(raw):
            return None
        if kind == DATA_CHANGE:
            column = _data_change(raw, at, end, received_us)
            if column is None:
                return None
            changes.append(column)
        elif kind == STATUS_CHANGE and size == _UINT32.size + 1 and raw[end - 1] == 0:
            (ended,) = _UINT32.unpack_from(raw, at)
        else:
            return None
        at = end
    _, at = _words(raw, at)
    if at + _INT32.size != len(raw) or not _is_empty_list(raw, at):
        return None
    return Published(
        header, subscription, sequence, more, available, tuple(changes), count <= 0, ended, _overflows(changes), 0
    )


def _words(raw: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """A list of UInt32 (or of status codes), and where it ends. Raises struct.error when it is longer than the message."""
    (count,) = _INT32.unpack_from(raw, at)
    at += _INT32.size
    if count < -1 or count > (len(raw) - at) // _UINT32.size:
        raise error("a list longer than its message")
    count = max(count, 0)
    return tuple(np.frombuffer(raw, "<u4", count, at).tolist()), at + count * _UINT32.size


def _data_change(raw: bytes, at: int, end: int, received_us: int) -> Column | None:
    """The MonitoredItemNotifications of a DataChangeNotification that fills exactly these bytes."""
    end -= _INT32.size
    if at + _INT32.size > end or not _is_empty_list(raw, end):
        return None
    (count,) = _INT32.unpack_from(raw, at)
    starts = _starts(raw, at + _INT32.size, max(count, 0), _UINT32.size, end) if count >= -1 else None
    return None if starts is None else _column(raw, starts, _UINT32.size, end, received_us)


def _overflows(changes: Sequence[Column]) -> int:
    return sum(int(np.count_nonzero(column.status & OVERFLOW_MASK == OVERFLOW)) for column in changes)


def _tail(mask: int) -> int:
    return sum(size for part, size in TAIL_PARTS.items() if mask & part)


TAILS: Ints = np.array([_tail(mask) for mask in range(MASK_MAX + 1)])
"""Bytes after the value, by mask."""


def _sizes() -> Codes:
    table = np.zeros((0x100, 0x100), np.uint8)
    for mask, tail in enumerate(TAILS.tolist()):
        if mask & HAS_VALUE:
            table[mask, [0, *WIDTHS]] = 2 + tail + np.array([0, *WIDTHS.values()])
        else:
            table[mask] = 1 + tail
    return table


SIZE_COLUMN: Codes = _sizes().ravel()
"""Bytes of a DataValue by its first two, mask and type, as a big-endian number; 0: these two do not say it."""
SIZES = tuple(row.tobytes() for row in SIZE_COLUMN.reshape(0x100, 0x100))
"""The same by mask, then type: what plain Python reads fastest."""


def _starts(raw: bytes, at: int, count: int, head: int, end: int) -> Ints | None:
    """Where each of `count` elements begins that fill exactly the bytes `at` … `end`; else None.

    head: bytes of an element before its DataValue. At least one byte must follow `end`.
    A few are walked one by one; when they end in equal sizes, the run that may follow is found by whole columns. Where
    that does not pay, more and more are walked between two such tries.
    """
    if count > (end - at) // (head + 1):
        return None
    first, few = at, FEW_MIN
    sizes = bytearray()
    while count:
        many = min(count, few)
        at = _walk(raw, at, many, head, end, sizes)
        count -= many
        if not first <= at <= end:
            return None
        run = 0
        if count and len(set(sizes[-ALIKE:])) == 1:
            step = sizes[-1] + head
            run = _run(raw, at + head, step, min(count, (end - at) // step), step - head)
            sizes += sizes[-1:] * run
            at, count = at + run * step, count - run
        few = FEW_MIN if run >= RUN_WORTH else min(2 * few, FEW_MAX)
    steps = np.frombuffer(sizes, np.uint8).astype(np.int64) + head
    return first + np.cumsum(steps) - steps if at == end else None


def _starts_again(raw: bytes, at: int, count: int, end: int, layout: Layout) -> Ints | None:
    """`_starts` of a read: as the layout has it, when each value says the size that it has there; else looked for anew."""
    if layout.end == end and len(layout.starts) == count:
        told = SIZE_COLUMN[_fields(raw, ">u2", layout.starts)]
        if np.array_equal(told, layout.sizes):
            return layout.starts
    starts = _starts(raw, at, count, 0, end)
    if starts is not None:
        layout.end, layout.starts, layout.sizes = end, starts, np.diff(starts, append=end).astype(np.uint8)
    return starts


def _walk(raw: bytes, at: int, many: int, head: int, end: int, sizes: bytearray) -> int:
    """Append the bytes of each of the next DataValues to `sizes`; where the last one ends, -1 when they make no sense."""
    known, add = SIZES, sizes.append  # this loop is what mixed answers cost; local names save a third of it
    at += head
    try:
        for _ in range(many):
            size = known[raw[at]][raw[at + 1]]
            if not size:
                size = _open_size(raw, at, end)
                if not 0 < size <= SIZE_MAX:
                    return -1
            add(size)
            at += size + head
    except IndexError:  # beyond the message: what was walked was none
        return -1
    return at - head


def _run(raw: bytes, at: int, step: int, most: int, size: int) -> int:
    """How many DataValues of this size follow each other from `at` in this step; most: as many as the bytes can hold."""
    done, window = 0, WINDOW
    while done < most:
        window = min(window, most - done)
        heads: npt.NDArray[np.uint16] = np.ndarray((window,), ">u2", raw, at + done * step, (step,))
        others = SIZE_COLUMN[heads] != size
        first = int(others.argmax())
        if others[first]:
            return done + first
        done += window
        window *= 4
    return done


def _open_size(raw: bytes, at: int, end: int) -> int:
    """Bytes of a DataValue whose value tells its own length (a text, an array of plain values); 0 when it is none."""
    mask, kind = raw[at], raw[at + 1]
    width = 1 if kind in TEXTS else WIDTHS.get(kind ^ ARRAY, 0)
    if not width or mask > MASK_MAX or at + 6 > end:
        return 0
    (length,) = _INT32.unpack_from(raw, at + 2)
    size = 6 + width * max(length, 0) + _tail(mask)
    return size if length >= -1 and size <= end - at else 0


def _column(raw: bytes, starts: Ints, head: int, end: int, received_us: int) -> Column:
    """The elements that begin at `starts`, the last one ending at `end`."""
    at = starts + head
    octets = np.frombuffer(raw, np.uint8)
    mask = octets[at]
    typed = octets[at + 1] * (mask & HAS_VALUE)
    after = np.append(starts[1:], end) - TAILS[mask]
    status = np.zeros(len(starts), np.uint32)
    has_status = mask & HAS_STATUS != 0
    if some_status := bool(has_status.any()):
        told = _rows(has_status)
        status[told] = _fields(raw, "<u4", after[told])
    ticks = np.zeros(len(starts), np.int64)
    stamped = mask & HAS_SOURCE != 0
    dated = _rows(stamped)
    ticks[dated] = _fields(raw, "<i8", (after + 2 * (mask & HAS_STATUS))[dated])
    values, found = _numbers(raw, typed, at + 2)
    quality = found
    if some_status:
        quality = np.where((found == Quality.GOOD) | (status >= BAD), QUALITIES[status >> 16], found)
        values[status >= BAD] = np.nan
    ts, sane = _times(ticks, stamped, received_us)
    if not sane.all():
        quality[~sane & (quality == Quality.GOOD)] = Quality.CLOCK
    return Column(_fields(raw, "<u4", starts) if head else None, values, quality, ts, status, typed)


def _rows(chosen: Bools) -> slice | npt.NDArray[np.intp]:
    return slice(None) if chosen.all() else np.flatnonzero(chosen)


def _fields(raw: bytes, form: str, at: Ints) -> Any:
    """The numbers of this form that begin at these bytes, wherever they lie: a window that slides by one byte."""
    return np.ndarray((len(raw) - np.dtype(form).itemsize + 1,), form, raw, 0, (1,))[at]


def _numbers(raw: bytes, typed: Codes, at: Ints) -> tuple[Floats, Codes]:
    """Variants as float64, and what they say of themselves: GOOD, or NaN and the reason.

    typed: (n,) their types. at: (n,) where their values begin.
    """
    values = np.full(len(at), np.nan)
    found = np.full(len(at), Quality.OTHER, np.uint8)
    kinds = np.flatnonzero(np.bincount(typed)).tolist()
    for kind in kinds:
        rows = slice(None) if len(kinds) == 1 else np.flatnonzero(typed == kind)
        if kind in FORMS:
            values[rows], found[rows] = _floats(_fields(raw, FORMS[kind], at[rows]), kind)
        elif kind == 0:
            found[rows] = Quality.MISSING
        elif kind in TEXTS or kind & ARRAY:
            found[rows] = np.where(_fields(raw, "<i4", at[rows]) == -1, Quality.MISSING, Quality.OTHER)
    return values, found


def _floats(numbers: Any, kind: int) -> tuple[Floats, Codes | int]:
    """Numbers of one type as float64, NaN and the reason where they are not finite or not exact."""
    if kind == BOOLEAN:
        return (numbers != 0).astype(np.float64), Quality.GOOD
    if kind < INT64:
        return numbers.astype(np.float64), Quality.GOOD
    if kind in (INT64, UINT64):
        known, reason = numbers <= EXACT_MAX, Quality.PRECISION
        if kind == INT64:
            known &= numbers >= -EXACT_MAX
    else:
        known, reason = np.isfinite(numbers), Quality.NOT_A_NUMBER
    if known.all():
        return numbers.astype(np.float64, copy=False), Quality.GOOD
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = numbers.astype(np.float64)
    values[~known] = np.nan
    return values, np.where(known, np.uint8(Quality.GOOD), np.uint8(reason))


def _times(ticks: Ints, stamped: Bools, received_us: int) -> tuple[Ints, Bools]:
    """Source times in UTC µs, and whether they may be believed; where there is none: the receipt, and nothing to doubt."""
    ts = ticks // 10 - TICKS_EPOCH_US
    sane = np.abs(ts - received_us) <= CLOCK_SANE_US
    known = sane & stamped
    if known.all():
        return ts, known
    ts[~known] = received_us
    return ts, sane | ~stamped


# ------------------------------------------------------------------------------------------ from the library's objects


def from_read(response: Any, received_us: int) -> tuple[Header, Column]:
    """The same as `read_response`, of a decoded ua.ReadResponse; whether it went well is for the caller to see."""
    return _header_of(response), from_data_values(response.Results or (), received_us)


def from_created(response: Any) -> tuple[Words, Words, Floats]:
    """The same as `created_items`, of a decoded ua.CreateMonitoredItemsResponse."""
    results = response.Results or ()
    codes = np.array([result.StatusCode.value for result in results], np.uint32)
    items = np.array([result.MonitoredItemId for result in results], np.uint32)
    return codes, items, np.array([result.RevisedSamplingInterval for result in results], np.float64)


def from_publish(response: Any, received_us: int) -> Published:
    """The same as `publish_response`, of a decoded ua.PublishResponse, whatever it brings."""
    header, result = _header_of(response), response.Parameters
    message = result.NotificationMessage
    notifications = message.NotificationData or ()
    changes = tuple(_changes(one, received_us) for one in notifications if hasattr(one, "MonitoredItems"))
    endings = [int(one.Status.value) for one in notifications if hasattr(one, "Status")]
    return Published(
        header=header,
        subscription=int(result.SubscriptionId),
        sequence=int(message.SequenceNumber),
        more=bool(result.MoreNotifications),
        available=tuple(result.AvailableSequenceNumbers or ()),
        changes=changes,
        keep_alive=not notifications and header.result < BAD,
        ended=endings[-1] if endings else None,
        overflows=_overflows(changes),
        other=len(notifications) - len(changes) - len(endings),
    )


def from_data_values(items: Sequence[Any], received_us: int, handles: Sequence[int] | None = None) -> Column:
    """A column of objects shaped like ua.DataValue. received_us: UTC. handles: the items' own, of notifications."""
    rows = [_reading(item, received_us) for item in items]
    values, quality, ts, status, typed = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Column(
        None if handles is None else np.array(handles, np.uint32),
        np.array(values, np.float64),
        np.array(quality, np.uint8),
        np.array(ts, np.int64),
        np.array(status, np.uint32),
        np.array(typed, np.uint8),
    )


def _changes(notification: Any, received_us: int) -> Column:
    items = notification.MonitoredItems or ()
    return from_data_values([item.Value for item in items], received_us, [item.ClientHandle for item in items])


def _header_of(response: Any) -> Header:
    header = response.ResponseHeader
    return Header(int(header.ServiceResult.value), int(header.RequestHandle), (header.Timestamp - EPOCH) // MICROSECOND)


def _reading(item: Any, received_us: int) -> tuple[float, int, int, int, int]:
    """One DataValue → value, quality, ts, status, typed."""
    status = int(item.StatusCode.value) if item.StatusCode is not None else 0
    stamp = item.SourceTimestamp
    ts = received_us if stamp is None else (stamp - EPOCH) // MICROSECOND
    sane = abs(ts - received_us) <= CLOCK_SANE_US
    ts = ts if sane else received_us
    typed = _type_of(item.Value)
    if status & BAD:
        return np.nan, quality_of(status), ts, status, typed
    value, quality = number(item.Value.Value if item.Value is not None else None)
    if quality is Quality.GOOD:
        quality = quality_of(status)
    return value, Quality.CLOCK if quality is Quality.GOOD and not sane else quality, ts, status, typed


def _type_of(variant: Any) -> int:
    if variant is None:
        return 0
    is_array = getattr(variant, "is_array", False) or isinstance(variant.Value, list | tuple)
    return int(variant.VariantType.value) | (ARRAY if is_array else 0)


def number(raw: object) -> tuple[float, Quality]:
    """A variant's value as float64: booleans are 0/1, integers exact or BAD, arrays and texts are no numbers."""
    if isinstance(raw, float):
        return (raw, Quality.GOOD) if math.isfinite(raw) else (np.nan, Quality.NOT_A_NUMBER)
    if isinstance(raw, int):
        return (float(raw), Quality.GOOD) if abs(raw) <= EXACT_MAX else (np.nan, Quality.PRECISION)
    return np.nan, Quality.MISSING if raw is None else Quality.OTHER
