"""The board: the latest of everything, for those who look."""

import asyncio
import json
import math

import numpy as np
import pytest

from edge_agent.board import EVENTS_MAX, SAMPLES, TELL_EVERY_S, Board, BoardMachine, BoardSignal, reason, to_utc
from edge_agent.contract import REASONS, SECOND_US, VOUCHED, Quality
from tests.pages import BANDS, PRESS, PUMP, event, show, show_active

T0 = 1_795_000_000_000_000


def board() -> Board:
    made = Board([PUMP, PRESS])
    made.norms("press-3", BANDS)
    return made


def frame(on: Board, ts: int, values: list[float], codes: list[int] | None = None) -> None:
    quality = np.array(codes or [Quality.GOOD] * len(values), dtype=np.uint8)
    on.frame("press-3", ts, np.array(values), quality)


def signal(of: Board, name: str) -> dict[str, object]:
    return next(each for each in of.machine("press-3")["signals"] if each["name"] == name)


def test_before_the_first_frame_nothing_looks_well() -> None:
    machine = board().machine("press-3")
    assert machine["verdict"] == "bad"
    assert machine["ts"] is None
    assert [(each["value"], each["quality"], each["verdict"]) for each in machine["signals"]] == [
        (None, "missing", "bad")
    ] * 2


def test_a_signal_has_the_shape_that_page_and_api_rely_on() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    assert signal(made, "oil_temperature") == {
        "name": "oil_temperature",
        "title": "Oil temperature",
        "unit": "°C",
        "value": 54.2,
        "quality": "good",
        "quality_since": to_utc(T0),
        "ts": to_utc(T0),
        "every": 1.0,
        "verdict": "normal",
        "outside": None,
        "limits": BANDS[0],
        "warnings": [],
        "advice": "Check the oil cooler and its fan.",
    }


def test_a_bad_reading_is_null_with_its_reason_and_the_time_since_when() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    frame(made, T0 + SECOND_US, [54.2, math.nan], [Quality.GOOD, Quality.TIMEOUT])
    frame(made, T0 + 2 * SECOND_US, [54.2, math.nan], [Quality.GOOD, Quality.TIMEOUT])
    level = signal(made, "oil_level")
    assert (level["value"], level["quality"], level["verdict"]) == (None, "timeout", "bad")
    assert level["quality_since"] == to_utc(T0 + SECOND_US)


@pytest.mark.parametrize("quality", list(Quality))
def test_every_quality_has_a_word_for_people(quality: Quality) -> None:
    assert reason(quality) in {*REASONS.values(), "good"}
    assert reason(Quality.CONFIRMED) == "good"
    assert reason(Quality.CLOCK) == "clock"
    assert reason(Quality.GOOD | VOUCHED) == "good"


def test_an_uncertain_reading_is_shown_but_not_called_normal() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0], [Quality.UNCERTAIN, Quality.CLOCK])
    assert (signal(made, "oil_temperature")["value"], signal(made, "oil_temperature")["verdict"]) == (54.2, "bad")
    assert signal(made, "oil_level")["verdict"] == "normal"


def test_a_value_beyond_a_limit_during_its_on_delay_is_outside_but_has_no_verdict_yet() -> None:
    made = board()
    frame(made, T0, [65.0, 71.0])
    assert (signal(made, "oil_temperature")["verdict"], signal(made, "oil_temperature")["outside"]) == (
        "normal",
        "warning",
    )
    frame(made, T0, [9.0, 30.0])
    assert signal(made, "oil_temperature")["outside"] == "alarm"
    assert signal(made, "oil_level")["outside"] is None, "the band is closed: at the limit is inside"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "warning"),
        ({"severity": "alarm"}, "alarm"),
        ({"state": "acknowledged"}, "warning"),
        ({"state": "returned_unacknowledged"}, "normal"),
        ({"kind": "stale"}, "bad"),
    ],
)
def test_the_verdict_of_a_signal_is_read_off_its_warnings(change: dict[str, str], verdict: str) -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    show_active(made, [event(**change)])
    assert signal(made, "oil_temperature")["verdict"] == verdict
    assert signal(made, "oil_temperature")["warnings"] == ["w-1"]
    assert made.machine("press-3")["verdict"] == verdict


def test_silence_does_not_take_back_an_alarm() -> None:
    made = board()
    frame(made, T0, [math.nan, 71.0], [Quality.DISCONNECTED, Quality.GOOD])
    show_active(made, [event(severity="alarm")])
    assert signal(made, "oil_temperature")["verdict"] == "alarm"


def test_a_signal_without_limits_has_no_verdict() -> None:
    made = board()
    made.frame("pump-1", T0, np.array([12.0]), np.array([Quality.GOOD], dtype=np.uint8))
    assert made.machine("pump-1")["signals"][0]["verdict"] == "none"


def test_machines_come_worst_first() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    made.frame("pump-1", T0, np.array([12.0]), np.array([Quality.GOOD], dtype=np.uint8))
    assert [machine["name"] for machine in made.machines()] == ["press-3", "pump-1"]
    show_active(made, [event(machine="pump-1", signal="flow")])
    assert [machine["name"] for machine in made.machines()] == ["pump-1", "press-3"]


def test_active_warnings_come_unacknowledged_and_worst_and_newest_first() -> None:
    made = board()
    show_active(
        made,
        [
            event("acknowledged alarm", severity="alarm", state="acknowledged"),
            event("old warning", since="2026-11-23T10:00:00.000Z"),
            event("new warning", since="2026-11-23T11:00:00.000Z"),
            event("alarm", severity="alarm", since="2026-11-23T09:00:00.000Z"),
        ],
    )
    order = [each["id"] for each in made.warnings(active=True)]
    assert order == ["alarm", "new warning", "old warning", "acknowledged alarm"]


def test_all_warnings_are_the_last_event_of_each_and_past_events_have_a_limit() -> None:
    made = board()
    made.event(event("w-1"))
    made.event(event("w-1", event="cleared", state="normal"))
    made.event(event("w-2"))
    assert {(each["id"], each["state"]) for each in made.warnings(active=False)} == {
        ("w-1", "normal"),
        ("w-2", "unacknowledged"),
    }
    for number in range(EVENTS_MAX + 10):
        made.event(event(f"n-{number}"))
    assert len(made.events()) == EVENTS_MAX
    assert made.events()[0]["id"] == f"n-{EVENTS_MAX + 9}"


def test_the_trend_keeps_the_last_samples_at_the_pace_of_the_signals() -> None:
    made = board()
    for step in range(4 * (SAMPLES + 10)):
        frame(made, T0 + step * SECOND_US // 4, [float(step), math.nan], [Quality.GOOD, Quality.TIMEOUT])
    trends = made.trends("press-3")
    assert trends.shape == (2, SAMPLES)
    assert set(np.diff(trends[0])) == {4.0}, "one sample a second of four frames a second"
    assert np.isnan(trends[1]).all()


def test_a_clock_that_is_set_back_does_not_stop_the_trend() -> None:
    made = board()
    frame(made, T0, [1.0, 1.0])
    frame(made, T0 - 3600 * SECOND_US, [2.0, 2.0])
    assert made.trends("press-3")[1].tolist() == [1.0, 2.0]


def test_a_reload_keeps_what_is_known_of_unchanged_signals() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    added = BoardSignal("flow", "Flow", "l/min", SECOND_US)
    other_unit = BoardSignal("oil_level", "Oil level", "mm", SECOND_US)
    made.use([BoardMachine("press-3", "Press", "hall-2", (added, other_unit, PRESS.signals[0]))])
    assert made.names == ("press-3",)
    assert [each["value"] for each in made.machine("press-3")["signals"]] == [None, None, 54.2]
    assert signal(made, "oil_temperature")["limits"] == BANDS[0]
    np.testing.assert_array_equal(made.trends("press-3"), [[np.nan], [np.nan], [54.2]])
    with pytest.raises(KeyError):
        made.machine("pump-1")


def test_a_reload_that_changes_nothing_keeps_the_very_same_sheet() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    version = made.machine_version("press-3")
    made.use([PRESS, PUMP])
    assert made.machine_version("press-3") == version


def test_the_agent_s_own_warnings_stand_in_the_list_without_a_sheet_also_through_a_reload() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    lost = event(
        "w-2", machine="agent", signal="plc-1.unit_3", kind="health", severity="alarm", value=None, suppressed=2
    )
    made.active("agent", [lost])
    made.active("pump-1", [event(machine="pump-1", signal="flow")])
    assert made.names == ("pump-1", "press-3")
    assert [each["id"] for each in made.warnings()] == ["w-2", "w-1"]
    assert made.machine("press-3")["verdict"] == "normal"
    made.use([PRESS])
    assert made.warnings() == [lost], "what stood of the pump has gone with it"
    made.active("agent", [])
    assert made.warnings() == []


def test_what_is_shown_is_plain_json_and_counted_as_it_is_shown() -> None:
    made = board()
    frame(made, T0, [math.inf, 71.0])
    show_active(made, [event()])
    shown = json.loads(json.dumps(made.machines(), allow_nan=False))
    assert shown[0]["signals"][0]["value"] is None
    verdicts = [each["verdict"] for machine in shown for each in machine["signals"]]
    counts = made.counts()
    assert counts == {"signals": 3, "alarm": 0, "warning": 1, "bad": 1, "normal": 1, "none": 0}
    assert all(verdicts.count(verdict) == count for verdict, count in counts.items() if verdict != "signals")


def test_the_living_part_of_a_machine_names_only_what_is_odd() -> None:
    made = board()
    frame(made, T0, [54.2, 71.0])
    assert made.living("press-3")["odd"] == []
    assert made.living("press-3")["values"].tolist() == [54.2, 71.0]
    frame(made, T0 + SECOND_US, [65.0, math.nan], [Quality.GOOD, Quality.TIMEOUT])
    show_active(made, [event()])
    living, whole = made.living("press-3"), made.machine("press-3")
    keys = ("quality", "quality_since", "verdict", "outside", "ts")
    assert living["odd"] == [[i, *(each[key] for key in keys)] for i, each in enumerate(whole["signals"])]
    assert living["warnings"] == {"oil_temperature": ["w-1"]}
    assert (living["verdict"], living["state"], living["ts"]) == (whole["verdict"], whole["state"], whole["ts"])


def test_an_uncertain_reading_is_judged_where_the_norm_takes_it() -> None:
    taking = BoardMachine("m", "M", "", (BoardSignal("s", "S", "", SECOND_US, use_uncertain=True),))
    made = Board([taking])
    made.norms("m", [{"warning": {"high": 60.0}}])
    made.frame("m", T0, np.array([61.0]), np.array([Quality.UNCERTAIN], dtype=np.uint8))
    (only,) = made.machine("m")["signals"]
    assert (only["verdict"], only["outside"], only["quality"]) == ("normal", "warning", "uncertain")


def test_new_norms_turn_the_layout_of_their_machine_and_of_no_other() -> None:
    made = board()
    before = made.layout_version("press-3"), made.layout_version("pump-1"), made.shape_version
    made.norms("press-3", BANDS)
    assert before == (made.layout_version("press-3"), made.layout_version("pump-1"), made.shape_version)
    version = made.machine_version("press-3")
    made.norms("press-3", [{"warning": {"high": 50.0}}, {}])
    assert made.layout_version("press-3") > before[0]
    assert made.machine_version("press-3") > version
    assert before[1:] == (made.layout_version("pump-1"), made.shape_version)


def test_readers_are_woken_together_at_once_and_then_at_most_four_times_a_second() -> None:
    async def readers() -> tuple[list[float], list[float], float]:
        made = board()
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def read() -> list[float]:
            seen, version = [], made.version
            for _ in range(4):
                version = await made.changes(version)
                seen.append(loop.time())
            return seen

        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(read()), group.create_task(read())
            while not (first.done() and second.done()):
                await asyncio.sleep(0.01)
                show(made)
        return first.result(), second.result(), began

    first, second, began = asyncio.run(readers())
    assert first[0] - began < TELL_EVERY_S, "after a quiet time the first news comes at once"
    assert np.diff(first).min() > TELL_EVERY_S * 0.9
    assert np.abs(np.subtract(first, second)).max() < TELL_EVERY_S / 2


def test_a_reader_that_was_busy_hears_of_what_it_missed() -> None:
    async def read() -> int:
        made = board()
        version = made.version
        show(made)
        return await asyncio.wait_for(made.changes(version), 2) - version

    assert asyncio.run(read()) == 1


def test_a_frame_wakes_nobody_when_nobody_waits_and_its_arrays_are_not_copied() -> None:
    made = board()
    values = np.array([54.2, 71.0])
    made.frame("press-3", T0, values, np.zeros(2, dtype=np.uint8))
    values[0] = 55.0
    assert signal(made, "oil_temperature")["value"] == 55.0
    assert made.trends("press-3")[0].tolist() == [54.2], "the trend has a copy of its own"


def test_times_are_utc_with_milliseconds() -> None:
    assert to_utc(1_795_000_000_123_999) == "2026-11-18T11:06:40.123Z"
    assert to_utc(0) is None
