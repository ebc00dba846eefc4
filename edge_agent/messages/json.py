"""Every message of contract §2 as bytes. Pure.

Rule 1: the same row gives the same bytes, but for `late`: a consumer may compare. Rule 2: nothing essential stands
anywhere but in the payload. Times are RFC 3339 UTC with milliseconds, numbers the shortest form of their float64.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson

from edge_agent.contract import CODE_MASK, REASONS, SECOND_US, Codes, Floats, Ints, Quality
from edge_agent.records import Event, Gap, Layout

OFFLINE = b'{"state":"offline"}'
"""The last will on `<root>/status`."""
STOPPED = b'{"state":"stopped"}'
UNKNOWN_STATE = "unknown"
LATE = b',"late":true}'
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
GOOD, HOLD, UNCERTAIN = int(Quality.GOOD), int(Quality.HOLD), int(Quality.UNCERTAIN)

loads = orjson.loads


def to_utc(us: int) -> str:
    """UTC µs as `2026-11-23T15:53:39.120Z`."""
    return (EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{us // 1000 % 1000:03d}Z"


def measurement(
    epoch: str, seq: int, layout: Layout, ts: int, state: int, values: Floats, quality: Codes, at: Ints | None = None
) -> bytes:
    """One row of a machine. values, quality: (signals,) as judged; at: (signals,) UTC µs of each value or None.

    state: index into layout.states, -1 unknown. HOLD is left out; UNCERTAIN stands in `values` and in `uncertain`.
    """
    message: dict[str, Any] = {"epoch": epoch, "seq": seq, "ts": to_utc(ts)}
    if layout.states:
        message["operating_state"] = layout.states[state] if state >= 0 else UNKNOWN_STATE
    if at is None and not quality.any():  # every column GOOD: the usual beat of a polled machine
        message["values"] = dict(zip(layout.signals, values.tolist(), strict=True))
        return orjson.dumps(message)
    codes = quality & CODE_MASK
    usable = np.flatnonzero((codes == GOOD) | (codes == UNCERTAIN))
    bad = np.flatnonzero(codes > UNCERTAIN)
    doubtful = np.flatnonzero(codes == UNCERTAIN)
    names = layout.signals
    message["values"] = {names[i]: value for i, value in zip(usable.tolist(), values[usable].tolist(), strict=True)}
    if bad.size:
        message["bad"] = {names[i]: REASONS[Quality(code)] for i, code in _pairs(bad, codes)}
    if doubtful.size:
        message["uncertain"] = {names[i]: REASONS[Quality(code)] for i, code in _pairs(doubtful, quality)}
    if at is not None:
        apart = usable[np.abs(at[usable] - ts) > SECOND_US]
        if apart.size:
            message["at"] = {names[i]: to_utc(stamp) for i, stamp in _pairs(apart, at)}
    return orjson.dumps(message)


def _pairs(places: Any, array: Any) -> list[tuple[int, int]]:
    return list(zip(places.tolist(), array[places].tolist(), strict=True))


def late(payload: bytes) -> bytes:
    """The same message, marked late."""
    return payload[:-1] + LATE


def event_plain(event: Event) -> dict[str, Any]:
    """A warning's event as contract §2 writes it, without epoch and seq."""
    plain: dict[str, Any] = {
        "id": event.id,
        "event": event.event,
        "ts": to_utc(event.ts),
        "machine": event.machine,
        "signal": event.signal,
        "kind": event.kind,
        "severity": event.severity,
        "state": event.state,
        "value": event.value,
        "unit": event.unit,
        "limit": event.limit,
        "norm": event.norm,
        "since": to_utc(event.since),
        "operating_state": event.operating_state,
        "message": event.message,
        "advice": event.advice,
    }
    if event.count > 1:
        plain["count"] = event.count
    for name in ("column", "by", "comment"):
        value = getattr(event, name)
        if value is not None:
            plain[name] = value
    return plain


def warning(epoch: str, seq: int, event: Event) -> bytes:
    return orjson.dumps({"epoch": epoch, "seq": seq, **event_plain(event)})


def active(ts: int, events: Sequence[Event]) -> bytes:
    """The last event of every warning of a machine that is not back to normal."""
    return orjson.dumps({"ts": to_utc(ts), "active": [event_plain(event) for event in events]})


def norms(ts: int, config: str, signals: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The bands in force: `{"oil_temperature": {"unit": "°C", "warning": {…}, "alarm": {…}, "state": "running"}}`."""
    return orjson.dumps({"ts": to_utc(ts), "config": config, "signals": dict(signals)})


def gap(epoch: str, seq: int, record: Gap) -> bytes:
    return orjson.dumps(
        {
            "epoch": epoch,
            "seq": seq,
            "from_seq": record.from_seq,
            "to_seq": record.to_seq,
            "from": to_utc(record.from_ts),
            "to": to_utc(record.to_ts),
            "count": record.count,
            "cause": record.cause,
        }
    )


def status(about: Mapping[str, Any]) -> bytes:
    return orjson.dumps(dict(about))


def health(ts: int, about: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"ts": to_utc(ts), **about}, option=orjson.OPT_SERIALIZE_NUMPY)
