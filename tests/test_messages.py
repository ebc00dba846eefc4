"""Golden payloads of contract §2, and the rules of §6 on qualities."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract import CODE_MASK, REASONS, Quality
from edge_agent.messages import topics as messages
from edge_agent.records import Event, EventKind, Gap, GapCause, Kind, Layout, Severity, WarningState

TS = 1_795_449_219_120_999
LAYOUT = Layout("press-3", ("oil_temperature", "oil_level", "flow"), ("running", "stopped"))


def row(
    values: list[float], quality: list[int], state: int = 0, at: list[int] | None = None, layout: Layout = LAYOUT
) -> bytes:
    stamps = None if at is None else np.array(at, np.int64)
    return messages.measurement(
        "k3f9", 48121, layout, TS, state, np.array(values, np.float64), np.array(quality, np.uint8), stamps
    )


def test_a_good_row_is_bytes_for_bytes_the_contract() -> None:
    assert row([54.2, 5.0, 0.1], [0, 0, 0]) == (
        b'{"epoch":"k3f9","seq":48121,"ts":"2026-11-23T15:53:39.120Z","operating_state":"running",'
        b'"values":{"oil_temperature":54.2,"oil_level":5.0,"flow":0.1}}'
    )


def test_bad_uncertain_and_held_values_are_told_apart() -> None:
    payload = row([np.nan, 3.0, 7.5], [Quality.TIMEOUT, Quality.CONFIRMED, Quality.CLOCK], state=-1)
    assert json.loads(payload) == {
        "epoch": "k3f9",
        "seq": 48121,
        "ts": "2026-11-23T15:53:39.120Z",
        "operating_state": "unknown",
        "values": {"flow": 7.5},
        "bad": {"oil_temperature": "timeout"},
        "uncertain": {"flow": "clock"},
    }


def test_a_machine_without_states_has_no_operating_state() -> None:
    assert b"operating_state" not in row([1.0], [0], layout=Layout("m", ("a",), ()))


def test_only_fresh_values_more_than_a_second_apart_carry_their_own_time() -> None:
    payload = json.loads(row([1.0, 2.0, 3.0], [0, 0, 1], at=[TS - 1_000_001, TS - 1_000_000, 0]))
    assert payload["at"] == {"oil_temperature": "2026-11-23T15:53:38.120Z"}


def test_late_is_the_only_difference_of_a_message_sent_late() -> None:
    payload = row([1.0, 2.0, 3.0], [0, 0, 0])
    late = json.loads(messages.late(payload))
    assert late.pop("late") is True
    assert late == json.loads(payload)
    assert messages.late(payload).startswith(payload[:-1])


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(list(Quality))),
        min_size=1,
        max_size=20,
    )
)
def test_every_quality_stands_where_a_plain_twin_puts_it(cells: list[tuple[float, Quality]]) -> None:
    layout = Layout("m", tuple(f"s{i}" for i in range(len(cells))), ())
    got = json.loads(row([v for v, _ in cells], [q for _, q in cells], layout=layout))
    values: dict[str, float] = {}
    bad: dict[str, str] = {}
    uncertain: dict[str, str] = {}
    for name, (value, quality) in zip(layout.signals, cells, strict=True):
        code = quality & CODE_MASK
        if code in (Quality.GOOD, Quality.UNCERTAIN):
            values[name] = value
        if code == Quality.UNCERTAIN:
            uncertain[name] = REASONS[quality]
        if code > Quality.UNCERTAIN:
            bad[name] = REASONS[quality]
    assert got["values"] == values
    assert got.get("bad", {}) == bad
    assert got.get("uncertain", {}) == uncertain


EVENT = Event(
    EventKind.RAISED,
    "0199f",
    TS,
    "press-3",
    "oil_temperature",
    Kind.HIGH,
    Severity.WARNING,
    WarningState.UNACKNOWLEDGED,
    60.4,
    "°C",
    60.0,
    {"warning": {"low": 20.0, "high": 60.0}},
    TS - 10_000_000,
    "running",
    "Oil temperature 60.4 °C is above its norm of 60 °C",
    "Check the oil cooler and its fan.",
)


def test_a_warning_event_is_bytes_for_bytes_the_contract() -> None:
    assert messages.warning("k3f9", 48122, EVENT).decode() == (
        '{"epoch":"k3f9","seq":48122,"id":"0199f","event":"raised","ts":"2026-11-23T15:53:39.120Z",'
        '"machine":"press-3","signal":"oil_temperature","kind":"high","severity":"warning","state":"unacknowledged",'
        '"value":60.4,"unit":"°C","limit":60.0,"norm":{"warning":{"low":20.0,"high":60.0}},'
        '"since":"2026-11-23T15:53:29.120Z","operating_state":"running",'
        '"message":"Oil temperature 60.4 °C is above its norm of 60 °C","advice":"Check the oil cooler and its fan."}'
    )


def test_a_gap_says_from_when_to_when_how_many_and_why() -> None:
    lost = Gap(GapCause.BUFFER_LIMIT, 7, TS, TS + 1_000_000, 3, 9)
    assert json.loads(messages.gap("k3f9", 10, lost)) == {
        "epoch": "k3f9",
        "seq": 10,
        "from_seq": 3,
        "to_seq": 9,
        "from": "2026-11-23T15:53:39.120Z",
        "to": "2026-11-23T15:53:40.120Z",
        "count": 7,
        "cause": "buffer_limit",
    }


def test_retained_topics_have_the_fields_of_the_contract() -> None:
    assert json.loads(messages.active(TS, [EVENT]))["active"][0]["id"] == "0199f"
    assert json.loads(messages.norms(TS, "abc", {"a": {"unit": "bar"}})) == {
        "ts": "2026-11-23T15:53:39.120Z",
        "config": "abc",
        "signals": {"a": {"unit": "bar"}},
    }
    assert json.loads(messages.health(TS, {"loop_lag_ms": np.float64(0.5)}))["loop_lag_ms"] == 0.5
    assert messages.OFFLINE == b'{"state":"offline"}'
    assert messages.STOPPED == b'{"state":"stopped"}'
