"""Every message of contract §2 as bytes. Pure.

Rule 1: the same row gives the same bytes, but for `late`: a consumer may compare. Rule 2: nothing essential stands
anywhere but in the payload. Times are RFC 3339 UTC with milliseconds, numbers the shortest form of their float64.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import compress
from typing import Any

import orjson

from edge_agent.contract import CODE_MASK, LINE_LOST, REASONS, SECOND_US, Codes, Floats, Ints, Quality
from edge_agent.records import Event, Gap, Layout

OFFLINE = b'{"state":"offline"}'
"""The last will on `<root>/status`."""
STOPPED = b'{"state":"stopped"}'
UNKNOWN_STATE = "unknown"
LATE = b',"late":true}'
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN = [code & ~LINE_LOST if code & CODE_MASK > Quality.UNCERTAIN else code for code in range(256)]
WORDS = tuple(REASONS.get(Quality(code) if code in REASONS else Quality.OTHER, "other") for code in _PLAIN)
"""The word of each quality byte; bytes that no Quality has are `other`."""
FRESH = bytes(code & CODE_MASK in (Quality.GOOD, Quality.UNCERTAIN) for code in range(256))
BAD = bytes(code & CODE_MASK > Quality.UNCERTAIN for code in range(256))
UNCERTAIN = bytes(code & CODE_MASK == Quality.UNCERTAIN for code in range(256))
"""Tables for bytes.translate: 1 for the quality bytes of that class. For a row this is ten times as fast as numpy."""
NUMBERS = orjson.OPT_SERIALIZE_NUMPY
"""A float64 that slipped into a field is a number like any other."""

loads = orjson.loads


@lru_cache(maxsize=256)
def _second(second: int) -> str:
    return (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.")


def to_utc(us: int) -> str:
    """UTC µs as `2026-11-23T15:53:39.120Z`, rounded down: a stamp never moves into the next second."""
    second, rest = divmod(us, SECOND_US)
    return f"{_second(second)}{rest // 1000:03d}Z"


def measurement(
    epoch: str, seq: int, layout: Layout, ts: int, state: int, values: Floats, quality: Codes, at: Ints | None = None
) -> bytes:
    """One row of a machine. values, quality: (signals,) as judged; at: (signals,) UTC µs of each value or None.

    state: index into layout.states, -1 unknown. HOLD is left out; UNCERTAIN stands in `values` and in `uncertain`.
    A value that is called good and is no number becomes null.
    """
    message: dict[str, Any] = {"epoch": epoch, "seq": seq, "ts": to_utc(ts)}
    names = layout.signals
    if layout.states:
        message["operating_state"] = layout.states[state] if state >= 0 else UNKNOWN_STATE
    codes = quality.tobytes()
    if codes.count(0) == len(codes):  # every column GOOD: the usual beat of a polled machine
        message["values"] = dict(zip(names, values.tolist(), strict=True))
    else:
        message["values"] = dict(compress(zip(names, values.tolist(), strict=True), codes.translate(FRESH)))
        for key, chosen in (("bad", codes.translate(BAD)), ("uncertain", codes.translate(UNCERTAIN))):
            if 1 in chosen:
                message[key] = {name: WORDS[code] for name, code in compress(zip(names, codes, strict=True), chosen)}
    if at is not None:
        fresh = compress(zip(names, at.tolist(), strict=True), codes.translate(FRESH))
        apart = {name: to_utc(stamp) for name, stamp in fresh if abs(stamp - ts) > SECOND_US}
        if apart:
            message["at"] = apart
    return orjson.dumps(message)


def late(payload: bytes) -> bytes:
    """The same message, marked late."""
    return payload[:-1] + LATE


def event_plain(event: Event) -> dict[str, Any]:
    """A warning's event as contract §2 writes it; epoch and seq once the store has numbered it."""
    plain: dict[str, Any] = {
        **({"epoch": event.epoch, "seq": event.seq} if event.seq else {}),
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
    if event.why:
        plain["why"] = event.why
    for name in ("suppressed", "column", "by", "comment"):
        value = getattr(event, name)
        if value is not None:
            plain[name] = value
    return plain


def warning(event: Event) -> bytes:
    """A numbered event."""
    return orjson.dumps(event_plain(event), option=NUMBERS)


def active(ts: int, events: Sequence[Event]) -> bytes:
    """The last event of every warning of a machine that is not back to normal."""
    return orjson.dumps({"ts": to_utc(ts), "active": [event_plain(event) for event in events]}, option=NUMBERS)


def norms(ts: int, config: str, signals: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The bands in force: `{"oil_temperature": {"unit": "°C", "warning": {…}, "alarm": {…}, "state": "running"}}`."""
    return orjson.dumps({"ts": to_utc(ts), "config": config, "signals": dict(signals)}, option=NUMBERS)


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


def dumps(plain: Mapping[str, Any]) -> bytes:
    """A message as it is sent, of what `loads` gave."""
    return orjson.dumps(dict(plain), option=NUMBERS)


def renumbered(payload: bytes, epoch: str, seq: int) -> bytes:
    """A warning or a gap under another number, before anybody has heard of it."""
    return orjson.dumps({**orjson.loads(payload), "epoch": epoch, "seq": seq}, option=NUMBERS)


def status(about: Mapping[str, Any]) -> bytes:
    return orjson.dumps(dict(about))


def health(ts: int, about: Mapping[str, Any]) -> bytes:
    return orjson.dumps({"ts": to_utc(ts), **about}, option=NUMBERS)
