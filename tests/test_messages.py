"""Golden payloads of contract §2, and the rules of §6 on qualities."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract import CODE_MASK, REASONS, Quality
from edge_agent.messages import topics
from edge_agent.records import Event, EventKind, Gap, GapCause, Kind, Layout, Severity, WarningState

TS = 1_795_449_219_120_999
LAYOUT = Layout("press-3", ("oil_temperature", "oil_level", "flow"), ("running", "stopped"))
BARE = Layout("press-3", LAYOUT.signals, ())
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


def row(
    values: list[float],
    quality: list[int],
    state: int = 0,
    at: list[int] | None = None,
    layout: Layout = LAYOUT,
) -> bytes:
    stamps = None if at is None else np.array(at, np.int64)
    codes = np.array(quality, np.uint8)
    return topics.measurement("k3f9", 48121, layout, TS, state, np.array(values, np.float64), codes, stamps)


def test_a_good_row_is_byte_for_byte_the_contract() -> None:
    assert row([54.2, 5.0, 0.1], [0, 0, 0]) == (
        b'{"epoch":"k3f9","seq":48121,"ts":"2026-11-23T15:53:39.120Z","operating_state":"running",'
        b'"values":{"oil_temperature":54.2,"oil_level":5.0,"flow":0.1}}'
    )


def test_a_mixed_row_is_byte_for_byte_the_contract() -> None:
    assert row([54.2, np.nan, 7.5], [0, Quality.TIMEOUT, Quality.CLOCK], state=-1) == (
        b'{"epoch":"k3f9","seq":48121,"ts":"2026-11-23T15:53:39.120Z","operating_state":"unknown",'
        b'"values":{"oil_temperature":54.2,"flow":7.5},"bad":{"oil_level":"timeout"},"uncertain":{"flow":"clock"}}'
    )


@pytest.mark.parametrize("held", [Quality.HOLD, Quality.CONFIRMED])
def test_what_is_held_is_left_out(held: Quality) -> None:
    assert json.loads(row([1.0, 2.0, 3.0], [0, held, 0]))["values"] == {"oil_temperature": 1.0, "flow": 3.0}


def test_a_hold_that_faded_is_missing_for_people() -> None:
    assert json.loads(row([1.0, 2.0, np.nan], [0, 0, Quality.FADED]))["bad"] == {"flow": "missing"}


def test_a_plain_uncertain_value_says_so() -> None:
    found = json.loads(row([1.0, 2.0, 3.0], [0, Quality.UNCERTAIN, 0]))
    assert found["uncertain"] == {"oil_level": "uncertain"}
    assert found["values"]["oil_level"] == 2.0


def test_a_machine_without_states_has_no_operating_state() -> None:
    assert b"operating_state" not in row([1.0, 2.0, 3.0], [0, 0, 0], layout=BARE, state=-1)


def test_only_fresh_values_more_than_a_second_apart_carry_their_own_time() -> None:
    found = json.loads(row([1.0, 2.0, 3.0], [0, 0, 1], at=[TS - 1_000_001, TS - 1_000_000, 0]))
    assert found["at"] == {"oil_temperature": "2026-11-23T15:53:38.120Z"}
    assert b'"at"' not in row([1.0, 2.0, 3.0], [0, 0, 0], at=[TS, TS, TS])


def test_late_is_appended_and_nothing_else_changes() -> None:
    payload = row([1.0, 2.0, 3.0], [0, 0, 0])
    assert topics.late(payload) == payload[:-1] + b',"late":true}'
    assert json.loads(topics.late(payload)) == {**json.loads(payload), "late": True}


def test_a_value_that_is_no_number_never_reaches_the_wire() -> None:
    assert json.loads(row([math.nan, math.inf, -math.inf], [0, 0, 0]))["values"] == dict.fromkeys(LAYOUT.signals)
    found = json.loads(topics.warning(replace(EVENT, value=math.nan, limit=math.inf)))
    assert found["value"] is None
    assert found["limit"] is None


cells = st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(list(Quality)))


@given(st.lists(cells, min_size=1, max_size=20))
def test_every_quality_stands_where_a_plain_twin_puts_it(row_cells: list[tuple[float, Quality]]) -> None:
    layout = Layout("m", tuple(f"s{i}" for i in range(len(row_cells))), ())
    got = json.loads(row([v for v, _ in row_cells], [q for _, q in row_cells], layout=layout))
    plain: dict[str, dict[str, Any]] = {"values": {}, "bad": {}, "uncertain": {}}
    for name, (value, quality) in zip(layout.signals, row_cells, strict=True):
        code = quality & CODE_MASK
        if code in (Quality.GOOD, Quality.UNCERTAIN):
            plain["values"][name] = value
        if code == Quality.UNCERTAIN:
            plain["uncertain"][name] = REASONS[quality]
        if code > Quality.UNCERTAIN:
            plain["bad"][name] = REASONS[quality]
    assert {key: got.get(key, {}) for key in plain} == plain


@given(st.integers(0, 4_102_444_800_000_000))
def test_a_time_is_rounded_down_to_its_millisecond(us: int) -> None:
    text = topics.to_utc(us)
    whole = np.datetime64(us // 1000, "ms")
    assert text == f"{whole}Z"


def test_a_warning_is_byte_for_byte_the_contract() -> None:
    assert topics.warning(replace(EVENT, epoch="k3f9", seq=48122)).decode() == (
        '{"epoch":"k3f9","seq":48122,"id":"0199f","event":"raised","ts":"2026-11-23T15:53:39.120Z",'
        '"machine":"press-3","signal":"oil_temperature","kind":"high","severity":"warning","state":"unacknowledged",'
        '"value":60.4,"unit":"°C","limit":60.0,"norm":{"warning":{"low":20.0,"high":60.0}},'
        '"since":"2026-11-23T15:53:29.120Z","operating_state":"running",'
        '"message":"Oil temperature 60.4 °C is above its norm of 60 °C","advice":"Check the oil cooler and its fan."}'
    )


def test_a_warning_names_who_acknowledged_it_and_how_often_it_was_raised() -> None:
    told = replace(EVENT, count=2, by="ann", comment="seen", column="P-PDG", value=np.float64(1.5))
    found = json.loads(topics.warning(told))
    assert (found["count"], found["by"], found["comment"], found["column"]) == (2, "ann", "seen", "P-PDG")
    assert found["value"] == 1.5


def test_a_gap_is_byte_for_byte_the_contract() -> None:
    assert topics.gap("k3f9", 10, Gap(GapCause.BUFFER_LIMIT, 7, TS, TS + 1_000_000, 3, 9)) == (
        b'{"epoch":"k3f9","seq":10,"from_seq":3,"to_seq":9,"from":"2026-11-23T15:53:39.120Z",'
        b'"to":"2026-11-23T15:53:40.120Z","count":7,"cause":"buffer_limit"}'
    )
    assert b'"from_seq":null,"to_seq":null' in topics.gap("k3f9", 10, Gap(GapCause.RESTART, 7, TS, TS))


def test_retained_topics_are_byte_for_byte_the_contract() -> None:
    assert topics.active(TS, []) == b'{"ts":"2026-11-23T15:53:39.120Z","active":[]}'
    assert json.loads(topics.active(TS, [EVENT]))["active"] == [topics.event_plain(EVENT)]
    assert topics.norms(TS, "abc", {"a": {"unit": "bar", "warning": {"high": 6.0}}}) == (
        b'{"ts":"2026-11-23T15:53:39.120Z","config":"abc","signals":{"a":{"unit":"bar","warning":{"high":6.0}}}}'
    )
    assert topics.health(TS, {"loop_lag_ms": np.float64(0.5)}) == (
        b'{"ts":"2026-11-23T15:53:39.120Z","loop_lag_ms":0.5}'
    )
    assert topics.status({"state": "online"}) == b'{"state":"online"}'
    assert (topics.OFFLINE, topics.STOPPED) == (b'{"state":"offline"}', b'{"state":"stopped"}')
