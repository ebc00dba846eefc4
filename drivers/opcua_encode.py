"""Requests about many nodes as bytes, put together from what is encoded once for each node. Pure.

Rule: the bytes are those of the library's own encoder, which takes several times as long and holds the event loop meanwhile.
Source: OPC UA Part 6, 5.2.2.4 (String), 5.2.2.13 (QualifiedName), 5.2.5 (arrays); Part 4, 7.32 (RequestHeader), 7.29
(ReadValueId), 5.11.2 (Read), 5.13.2 (CreateMonitoredItems), 7.21 (MonitoringParameters), 5.14.5 (Publish).
"""

from collections.abc import Sequence
from struct import Struct

from drivers.opcua_decode import TICKS_EPOCH_US

VALUE = 13
"""AttributeId of a variable's value (Part 6, A.1)."""
NOTHING = b"\xff\xff\xff\xff"
"""A null String."""
NO_ENCODING = b"\x00\x00" + NOTHING
"""A null QualifiedName: the server's default encoding."""
NO_FILTER = b"\x00\x00\x00"
"""A null ExtensionObject."""
REPORTING = 2
"""MonitoringMode (Part 4, 7.23)."""
SOURCE, NEITHER = 0, 3
"""TimestampsToReturn (Part 4, 7.40)."""
_HEADER = Struct("<qIIiI3s")
_COUNT = Struct("<i")
_WORD = Struct("<I")
_READ = Struct("<dii")
_CREATE = Struct("<Iii")
_MODE_HANDLE_SAMPLING = Struct("<iId")
_ACKNOWLEDGED = Struct("<II")
_QUEUE_OLDEST = Struct("<I?")


def request_header(token: bytes, utc_us: int, handle: int, timeout_ms: int) -> bytes:
    """Without an audit entry, diagnostics and an additional header. token: the session's, an encoded NodeId."""
    return token + _HEADER.pack(10 * (utc_us + TICKS_EPOCH_US), handle, 0, -1, timeout_ms, b"")


def read_value_id(node: bytes, attribute: int = VALUE, index_range: str | None = None) -> bytes:
    """One attribute of one node. node: an encoded NodeId. index_range: `3` or `1:4`, None: all."""
    return node + _WORD.pack(attribute) + _text(index_range) + NO_ENCODING


def read(ids: Sequence[bytes], timestamps: int) -> bytes:
    """The parameters of a Read of these ReadValueIds, as fresh as the server has them (MaxAge 0)."""
    return _READ.pack(0.0, timestamps, len(ids)) + b"".join(ids)


def item(asked: bytes, handle: int, sampling_ms: float, queue: int, filtered: bytes = NO_FILTER) -> bytes:
    """A MonitoredItemCreateRequest that reports, and drops the oldest. filtered: an encoded ExtensionObject."""
    wanted = _MODE_HANDLE_SAMPLING.pack(REPORTING, handle, sampling_ms)
    return asked + wanted + filtered + _QUEUE_OLDEST.pack(queue, True)


def create_items(subscription: int, items: Sequence[bytes]) -> bytes:
    """The parameters of CreateMonitoredItems, with the source's timestamps."""
    return _CREATE.pack(subscription, SOURCE, len(items)) + b"".join(items)


def publish(subscription: int, acknowledged: Sequence[int]) -> bytes:
    """The parameters of a Publish. acknowledged: numbers of messages of this subscription that came."""
    return _COUNT.pack(len(acknowledged)) + b"".join(_ACKNOWLEDGED.pack(subscription, each) for each in acknowledged)


def _text(text: str | None) -> bytes:
    if text is None:
        return NOTHING
    raw = text.encode()
    return _COUNT.pack(len(raw)) + raw
