"""The bytes of every topic in the format `json` (contract §2).

Rule 1: the same stored row gives the same bytes, today and after a restart; only `late` is appended.
Rule 2: no Python for each value: names and numbers are zipped, and only what is not good is looked at singly.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import compress
from typing import Any

import orjson

from edge_agent.contract import CODE_MASK, REASONS, SECOND_US, Codes, Floats, Ints, Quality
from edge_agent.records import Event, Gap, Layout

STATUS_OFFLINE = b'{"state":"offline"}'
STATUS_STOPPED = b'{"state":"stopped"}'
LATE = b',"late":true}'
APART_US = SECOND_US
"""A value taken further than this from its row's `ts` gets its own time in `at`."""
WORDS = tuple(REASONS.get(Quality(q) if q in REASONS else Quality.OTHER, "other") for q in range(256))
"""The word of each quality byte; bytes that no Quality has are `other`."""
FRESH = bytes(q & CODE_MASK in (Quality.GOOD, Quality.UNCERTAIN) for q in range(256))
BAD = bytes(q & CODE_MASK > Quality.UNCERTAIN for q in range(256))
UNCERTAIN = bytes(q & CODE_MASK == Quality.UNCERTAIN for q in range(256))
"""Tables for bytes.translate: 1 for the quality bytes of that class. For short rows ten times as fast as numpy masks."""
NUMBERS = orjson.OPT_SERIALIZE_NUMPY
"""A float64 that slipped into a field of an event is a number like any other."""


@lru_cache(maxsize=256)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def time_text(us: int) -> str:
    """RFC 3339 UTC with milliseconds, rounded down: the rows of one millisecond stay in their second."""
    second, rest = divmod(us, SECOND_US)
    return f"{_second(second)}{rest // 1000:03d}Z"


def measurement(  # noqa: PLR0913 - one row is one call
    epoch: str,
    seq: int,
    ts: int,
    layout: Layout,
    values: Floats,
    quality: Codes,
    *,
    state: int = -1,
    at: Ints | None = None,
) -> bytes:
    """One row of a judged frame. values, quality, at: (signals,) of the layout; at: UTC µs of each value or None.

    GOOD and UNCERTAIN stand in `values`, BAD in `bad`, HOLD nowhere. A NaN that is called good becomes null.
    """
    message: dict[str, Any] = {"epoch": epoch, "seq": seq, "ts": time_text(ts)}
    if layout.states:
        message["operating_state"] = layout.states[state] if state >= 0 else "unknown"
    codes = quality.tobytes()
    if codes.count(0) == len(codes):
        message["values"] = dict(zip(layout.signals, values.tolist(), strict=True))
    else:
        _add_mixed(message, layout.signals, values, codes)
    if at is not None:
        _add_times(message, layout.signals, codes, at, ts)
    return orjson.dumps(message)


def _add_mixed(message: dict[str, Any], names: tuple[str, ...], values: Floats, codes: bytes) -> None:
    message["values"] = dict(compress(zip(names, values.tolist(), strict=True), codes.translate(FRESH)))
    for key, chosen in (("bad", codes.translate(BAD)), ("uncertain", codes.translate(UNCERTAIN))):
        if 1 in chosen:
            message[key] = {name: WORDS[code] for name, code in compress(zip(names, codes, strict=True), chosen)}


def _add_times(message: dict[str, Any], names: tuple[str, ...], codes: bytes, at: Ints, ts: int) -> None:
    fresh = compress(zip(names, at.tolist(), strict=True), codes.translate(FRESH))
    apart = {name: time_text(us) for name, us in fresh if abs(us - ts) > APART_US}
    if apart:
        message["at"] = apart


def late(payload: bytes) -> bytes:
    """The same message, marked as sent late (contract §6 `seq`)."""
    return payload[:-1] + LATE


def warning(epoch: str, seq: int, event: Event) -> bytes:
    """One event of a warning, on `<root>/<machine>/warnings`."""
    return orjson.dumps({"epoch": epoch, "seq": seq, **event_fields(event)}, option=NUMBERS)


def event_fields(event: Event) -> dict[str, Any]:
    """The fields of an event as they leave the agent; `column`, `by` and `comment` only where there is one."""
    fields: dict[str, Any] = {
        "id": event.id,
        "event": event.event,
        "ts": time_text(event.ts),
        "machine": event.machine,
        "signal": event.signal,
        "kind": event.kind,
        "severity": event.severity,
        "state": event.state,
        "value": event.value,
        "unit": event.unit,
        "limit": event.limit,
        "norm": event.norm,
        "since": time_text(event.since),
        "operating_state": event.operating_state,
        "message": event.message,
        "advice": event.advice,
        "count": event.count,
    }
    fields.update({k: v for k in ("column", "by", "comment") if (v := getattr(event, k)) is not None})
    return fields


def gap(epoch: str, seq: int, lost: Gap) -> bytes:
    """What was lost, on `<root>/gaps`."""
    return orjson.dumps(
        {
            "epoch": epoch,
            "seq": seq,
            "from_seq": lost.from_seq,
            "to_seq": lost.to_seq,
            "from": time_text(lost.from_ts),
            "to": time_text(lost.to_ts),
            "count": lost.count,
            "cause": lost.cause,
        }
    )


def active(ts: int, events: Iterable[Event], epoch: str | None = None) -> bytes:
    """All warnings of a machine that are not back to normal, each as its last event."""
    named = {} if epoch is None else {"epoch": epoch}
    return orjson.dumps({"ts": time_text(ts), "active": [{**named, **event_fields(e)} for e in events]}, option=NUMBERS)


def norms(ts: int, config: str, signals: Mapping[str, Any]) -> bytes:
    """The bands in force. signals: {name: {"unit", "warning": {...}, "alarm": {...}, "state"}}."""
    return orjson.dumps({"ts": time_text(ts), "config": config, "signals": dict(signals)}, option=NUMBERS)


def health(ts: int, fields: Mapping[str, Any]) -> bytes:
    """The agent's health. fields: connections, buffer, loop_lag_ms, … as the contract names them."""
    return orjson.dumps({"ts": time_text(ts), **fields}, option=NUMBERS)


def status_online(since: int, version: str, config: str, signals: int) -> bytes:
    """`since`: UTC µs of the agent's start; config: 12 hex of its sha256; signals: how many are configured."""
    return orjson.dumps(
        {"state": "online", "since": time_text(since), "version": version, "config": config, "signals": signals}
    )
