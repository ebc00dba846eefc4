"""The rows of the contract §6 that the judge keeps, one small story each."""

import math
import uuid

import numpy as np
import pytest

from edge_agent import judge
from edge_agent.contract import Frame, Quality
from edge_agent.records import Event
from tests import plants
from tests.plants import band, norm, signal
from tests.rows import TS0, Machine

GOOD, HOLD, CONFIRMED = Quality.GOOD, Quality.HOLD, Quality.CONFIRMED
UNCERTAIN, CLOCK, RESTART = Quality.UNCERTAIN, Quality.CLOCK, Quality.RESTART
TIMEOUT, MISSING, FADED = Quality.TIMEOUT, Quality.MISSING, Quality.FADED
NAN, INF = math.nan, math.inf


def high(limit: float = 60.0, deadband: float = 0.0, on: float = 0, off: float = 0, **more: object) -> Machine:
    """One signal with a high warning limit. It is never stale, so that only the rule in question speaks."""
    return Machine(signal("s", norm(band(high=limit, deadband=deadband, on=on, off=off), stale=10_000, **more)))  # type: ignore[arg-type]


# --- band, validity ---


def test_a_band_is_closed() -> None:
    machine = Machine(signal("s", norm(band(low=20, high=60))))
    assert machine.says(60.0) == machine.says(20.0) == []
    assert machine.says(np.nextafter(60.0, 61)) == ["raised high"]
    assert machine.says(60.0) == ["cleared high"]
    assert machine.says(np.nextafter(20.0, 19)) == ["raised low"]
    assert machine.says(20.0) == ["cleared low"]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_infinities_are_bad_and_neither_raise_nor_clear(value: float) -> None:
    machine = Machine(signal("s", norm(band(low=20, high=60))))
    assert machine.says(value) == []
    assert machine.quality == [Quality.NOT_A_NUMBER]
    assert math.isnan(machine.values[0])
    machine.row(61.0)
    assert machine.says(value) == []


def test_outside_of_valid_is_a_sensor_fault_and_no_deviation() -> None:
    machine = Machine(signal("s", norm(band(high=60)), valid_low=-40.0, valid_high=150.0))
    assert machine.says(150.1) == []
    assert machine.quality == [Quality.OUT_OF_RANGE]
    assert math.isnan(machine.values[0])
    assert machine.says(150.0) == ["raised high"]
    assert machine.says(-40.1) == []
    assert machine.says(-40.0) == ["cleared high"]


def test_a_value_that_came_with_a_bad_quality_is_no_number() -> None:
    machine = high()
    assert machine.says((99.0, TIMEOUT)) == []
    assert math.isnan(machine.values[0])


# --- deadband, delays ---


def test_the_deadband_is_only_for_the_way_back() -> None:
    machine = Machine(signal("s", norm(band(low=20, high=60, deadband=2))))
    assert machine.says(59.5) == []
    assert machine.says(60.5) == ["raised high"]
    assert machine.says(58.5) == []
    assert machine.says(58.0) == ["cleared high"]
    assert machine.says(19.5) == ["raised low"]
    assert machine.says(21.5) == []
    assert machine.says(22.0) == ["cleared low"]


def test_delay_zero_acts_on_the_first_row() -> None:
    assert high().play(50, 61, 50) == [("raised", 1), ("cleared", 2)]


def test_the_on_delay_is_the_length_of_the_run_outside() -> None:
    machine = high(on=3)
    assert machine.play(61, 62, 63, 64, 65) == [("raised", 3)]
    assert machine.second(machine.events[0].since) == 0


def test_a_row_inside_ends_the_run() -> None:
    machine = high(on=3)
    assert machine.play(61, 61, 61, 60, 61, 61, 61, 61) == [("raised", 7)]
    assert machine.second(machine.events[0].since) == 4


def test_a_delay_between_two_rows_acts_on_the_later_one() -> None:
    assert high(on=2.5, off=1.5).play(61, 61, 61, 61, 50, 50, 50) == [("raised", 3), ("cleared", 6)]


def test_the_off_delay_is_the_length_of_the_run_beyond_the_deadband() -> None:
    machine = high(deadband=2, off=3)
    machine.row(61.0)
    assert machine.play(58, 58, 59, 58, 58, 58, 58) == [("cleared", 7)]


def test_bad_rows_neither_extend_nor_end_a_run_and_their_time_does_not_count() -> None:
    machine = high(on=3, off=3)
    assert machine.play(61, 61, TIMEOUT, TIMEOUT, 61, 61) == [("raised", 5)]
    assert machine.second(machine.events[0].since) == 0
    assert machine.play(50, 50, NAN, 50, TIMEOUT, 50) == [("cleared", 11)]


def test_a_bad_row_raises_nothing_though_time_passes() -> None:
    machine = high(on=3)
    assert machine.play(61, TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT) == []


def test_a_bad_row_raises_nothing_though_another_state_has_a_shorter_delay() -> None:
    its = norm(band(high=60, on=9), by_state={"stopped": norm(band(high=60, on=1))}, stale=1000)
    machine = Machine(signal("speed"), signal("t", its), states={"running": "speed > 0", "stopped": "speed <= 0"})
    machine.row(5.0, 61.0)
    machine.row(5.0, 61.0)
    assert machine.says(0.0, TIMEOUT) == []
    assert machine.says(0.0, 61.0) == ["raised high"]


def test_delays_mature_on_the_held_value() -> None:
    machine = high(on=3, off=3)
    assert machine.play(61, HOLD, HOLD, HOLD) == [("raised", 3)]
    assert machine.play(50, HOLD, CONFIRMED, HOLD) == [("cleared", 7)]
    assert machine.events[0].value == 61


def test_a_hold_of_a_bad_reading_stays_bad() -> None:
    machine = high()
    machine.row(TIMEOUT)
    assert machine.says(HOLD) == []
    assert judge.readings(machine.state, machine.plant.machines[0])[1].tolist() == [TIMEOUT]


def test_a_clock_that_steps_back_counts_as_no_time() -> None:
    machine = high(on=3)
    machine.row(61.0)
    machine.row(61.0, after=-50)
    assert machine.play(61, 61) == []
    assert machine.says(61.0) == ["raised high"]


# --- qualities ---


def test_an_uncertain_reading_is_judged_only_where_the_norm_takes_it() -> None:
    assert high().says((61.0, UNCERTAIN)) == []
    assert high(use_uncertain=True).says((61.0, UNCERTAIN)) == ["raised high"]


def test_an_uncertain_clock_is_judged_like_good() -> None:
    machine = Machine(signal("s", norm(band(high=60), stale=3)))
    assert machine.says((61.0, CLOCK)) == ["raised high"]
    assert machine.quality == [CLOCK]
    for _ in range(5):
        assert machine.says((61.0, CLOCK)) == []


def test_uncertain_readings_are_shown_but_do_not_keep_a_signal_from_going_stale() -> None:
    machine = Machine(signal("s", norm(stale=3)))
    assert machine.play(1, *[(1.0, UNCERTAIN)] * 3) == [("raised", 3)]
    assert machine.publishes((2.0, UNCERTAIN))
    assert machine.values == [2.0]
    assert "value uncertain" in machine.events[0].message


# --- stale ---


def test_stale_is_raised_by_time_and_ended_by_a_good_reading_alone() -> None:
    machine = Machine(signal("s", norm(stale=3)))
    machine.row(1.0)
    assert machine.play(TIMEOUT, HOLD, TIMEOUT, HOLD, HOLD) == [("raised", 3)]
    assert machine.second(machine.events[0].since) == 0
    assert machine.play(TIMEOUT, (1.0, UNCERTAIN), NAN, CONFIRMED) == []
    assert machine.play(1) == [("cleared", 10)]


def test_a_confirmed_hold_of_a_good_reading_keeps_a_signal_fresh() -> None:
    machine = Machine(signal("s", norm(stale=3)))
    assert machine.play(1, HOLD, HOLD, CONFIRMED, HOLD, HOLD, HOLD) == [("raised", 6)]
    assert machine.play(CONFIRMED) == [("cleared", 7)]


def test_what_time_caused_has_the_time_of_its_row_and_not_the_last_stamp_of_the_source() -> None:
    machine = Machine(signal("s", norm(band(high=60, on=2), stale=3)), signal("other"))
    machine.row(50.0, 1.0, at=[TS0 - 7 * plants.SECOND, TS0])
    for _ in range(2):
        machine.row(TIMEOUT, 1.0, at=[TS0 - 7 * plants.SECOND, TS0])
    (stale,) = machine.row(TIMEOUT, 1.0, at=[TS0 - 7 * plants.SECOND, TS0])
    assert (stale.kind, machine.second(stale.ts), machine.second(stale.since)) == ("stale", 3, -7)
    (again,) = machine.row(61.0, 1.0, at=[TS0, TS0])
    assert (again.event, machine.second(again.ts)) == ("cleared", 0)


def test_a_signal_that_never_spoke_is_stale_too() -> None:
    machine = Machine(signal("s", norm(stale=3)))
    assert machine.play(HOLD, HOLD, HOLD, HOLD) == [("raised", 3)]
    assert machine.events[0].value is None
    assert machine.events[0].message == "S: no good reading for 3 s (nothing received)"


def test_stale_defaults_to_three_periods_but_at_least_ten_seconds() -> None:
    quick = Machine(signal("s", norm()))
    assert quick.play(1, *[HOLD] * 10) == [("raised", 10)]
    slow = Machine(signal("s", norm(), every_us=5 * plants.SECOND))
    assert slow.play(1, *[HOLD] * 15) == [("raised", 15)]


def test_a_restart_sets_the_clock_of_stale_anew_and_neither_clears_nor_repeats_it() -> None:
    machine = Machine(signal("s", norm(stale=3)))
    assert machine.play(1, HOLD, RESTART, HOLD, HOLD, HOLD) == [("raised", 5)]
    assert machine.play(RESTART, HOLD, HOLD, HOLD, HOLD, HOLD) == []
    assert machine.play(1) == [("cleared", 12)]


def test_silence_neither_raises_nor_clears_a_process_warning() -> None:
    machine = Machine(signal("s", norm(band(high=60, on=2), stale=3)))
    machine.row(61.0)
    assert [machine.says(TIMEOUT) for _ in range(5)] == [[], [], ["raised stale"], [], []]
    assert machine.says(61.0) == ["cleared stale"]
    machine.row(61.0)
    assert machine.says(61.0) == []
    assert [event.kind for event in machine.events] == ["stale", "stale", "high"]
    assert [machine.says(TIMEOUT) for _ in range(3)] == [[], [], ["raised stale"]]


def test_the_held_value_stands_until_it_is_stale_and_no_longer() -> None:
    machine = Machine(signal("s", norm(band(high=60, on=5), stale=3)))
    assert machine.play(61, *[HOLD] * 8) == [("raised", 3)]
    assert machine.events[0].kind == "stale"
    assert judge.readings(machine.state, machine.plant.machines[0])[1].tolist() == [MISSING]


def test_stale_has_the_severity_of_its_norm() -> None:
    machine = Machine(signal("s", norm(stale=1, severity="alarm")))
    machine.play(1, HOLD, HOLD)
    assert machine.events[0].severity == "alarm"


# --- what is published ---


def test_a_row_without_news_publishes_nothing() -> None:
    machine = high()
    assert machine.publishes(50.0)
    assert not machine.publishes(HOLD)
    assert not machine.publishes(CONFIRMED)


def test_a_tick_publishes_once_when_it_turns_a_reading_bad() -> None:
    machine = Machine(signal("s", norm(stale=3)))
    machine.row(50.0)
    found = [(machine.publishes(HOLD), machine.quality[0]) for _ in range(5)]
    assert found == [(False, HOLD), (False, HOLD), (True, FADED), (False, HOLD), (False, HOLD)]


def test_bad_readings_are_published_each_time() -> None:
    machine = high()
    assert [machine.publishes(TIMEOUT) for _ in range(3)] == [True] * 3


def test_a_restart_row_publishes_nothing() -> None:
    machine = Machine(signal("s"), signal("twice", formula="s * 2"))
    machine.row(1.0, HOLD)
    assert not machine.publishes(RESTART, RESTART)
    assert machine.quality == [RESTART, RESTART]


# --- formulas ---


def pair() -> Machine:
    return Machine(
        signal("inlet", norm(stale=3)), signal("drop", norm(band(high=1.2)), formula="inlet - outlet"), signal("outlet")
    )


@pytest.mark.parametrize(
    ("one", "other", "worst"),
    [
        (GOOD, GOOD, GOOD),
        (GOOD, CLOCK, CLOCK),
        (CLOCK, UNCERTAIN, UNCERTAIN),
        (UNCERTAIN, TIMEOUT, TIMEOUT),
        (TIMEOUT, RESTART, RESTART),
        (Quality.SENSOR_FAILURE, GOOD, Quality.SENSOR_FAILURE),
    ],
)
def test_a_formula_is_as_good_as_the_worst_of_its_inputs(one: Quality, other: Quality, worst: Quality) -> None:
    for first, second in ((one, other), (other, one)):
        machine = pair()
        machine.row((5.0, first), HOLD, (3.0, second))
        assert machine.quality[1] == worst
        assert machine.values[1] == 2.0 if worst in (GOOD, CLOCK, UNCERTAIN) else math.isnan(machine.values[1])


def test_a_formula_is_evaluated_where_an_input_is_fresh_with_the_other_held() -> None:
    machine = pair()
    machine.row(5.0, HOLD, 3.0)
    machine.row(HOLD, HOLD, HOLD)
    assert machine.quality == [HOLD, HOLD, HOLD]
    machine.row(CONFIRMED, HOLD, HOLD)
    assert machine.quality == [CONFIRMED, CONFIRMED, HOLD]
    machine.row(HOLD, HOLD, 3.5)
    assert machine.quality == [HOLD, GOOD, GOOD]
    assert machine.values[1] == 1.5


def test_a_formula_goes_bad_with_an_input_that_is_too_old() -> None:
    machine = pair()
    machine.row(5.0, HOLD, 3.0)
    for _ in range(3):
        machine.row(HOLD, HOLD, HOLD)
    assert machine.quality == [FADED, MISSING, HOLD]
    machine.row(HOLD, HOLD, 3.0)
    assert machine.quality[1] == MISSING


def test_a_formula_has_a_norm_like_a_measured_signal() -> None:
    machine = pair()
    (event,) = machine.row(5.0, HOLD, 3.0)
    assert (event.signal, event.kind, event.value, event.limit) == ("drop", "high", 2.0, 1.2)


@pytest.mark.parametrize("text", ["1 / s", "log(s)", "s / s", "exp(1000 + s)"])
def test_a_formula_without_a_finite_result_is_not_a_number(text: str) -> None:
    machine = Machine(signal("s"), signal("f", norm(band(high=1)), formula=text))
    assert machine.says(0.0, HOLD) == []
    assert machine.quality == [GOOD, Quality.NOT_A_NUMBER]


def test_a_formula_may_be_impossible_too() -> None:
    machine = Machine(signal("s"), signal("f", norm(band(high=1)), formula="s * 2", valid_high=10.0))
    assert machine.says(6.0, HOLD) == []
    assert machine.quality == [GOOD, Quality.OUT_OF_RANGE]


def test_formulas_may_use_formulas_in_any_order() -> None:
    machine = Machine(
        signal("last", formula="middle + 1"),
        signal("middle", formula="first * 10"),
        signal("first", formula="s + 1"),
        signal("s"),
    )
    machine.row(HOLD, HOLD, HOLD, 2.0)
    assert machine.values == [31.0, 30.0, 3.0, 2.0]
    machine.row(HOLD, HOLD, HOLD, TIMEOUT)
    assert machine.quality == [TIMEOUT] * 4


def test_a_formula_that_waits_for_its_inputs_says_that_nothing_came() -> None:
    """Its inputs may be silent for longer than itself: what it holds is good, but nothing came."""
    machine = Machine(signal("s", norm(stale=100)), signal("f", norm(stale=3), formula="s * 2"))
    machine.row(1.0, HOLD)
    for _ in range(3):
        machine.row(HOLD, HOLD)
    assert [event.message for event in machine.events] == ["F: no good reading for 3 s (nothing received)"]


# --- operating states ---

STATES = {"fast": "speed > 100", "running": "speed > 50", "stopped": "speed <= 10"}


def press(settle: float = 0, **norms: object) -> Machine:
    """A machine whose temperature may be 60, 40 when it is stopped, and as it likes when fast."""
    by_state = {"stopped": norm(band(high=40)), "fast": norm(band())}
    return Machine(
        signal("speed", norm(stale=3)),
        signal("t", norm(band(high=60), by_state=by_state, stale=1000)),
        states=STATES,
        settle=settle,
    )


def test_the_first_true_condition_wins() -> None:
    machine = press()
    for speed, state in ((150.0, "fast"), (100.0, "running"), (0.0, "stopped"), (30.0, "unknown")):
        machine.row(speed, 20.0)
        assert machine.operating_state == state


def test_no_state_is_told_of_a_machine_without_states_and_unknown_before_the_first_decision() -> None:
    assert high().operating_state is None
    machine = press()
    assert machine.operating_state == "unknown"


def test_an_undecidable_condition_before_a_true_one_does_not_match() -> None:
    machine = Machine(signal("a"), signal("b"), states={"one": "a > 0", "two": "b > 0"})
    machine.row(1.0, 1.0)
    assert machine.operating_state == "one"
    machine.row(TIMEOUT, 1.0)
    assert machine.operating_state == "two"
    machine.row(TIMEOUT, 0.0)
    assert machine.operating_state == "unknown"


def test_the_state_stays_while_no_condition_can_be_decided() -> None:
    machine = press()
    machine.row(70.0, 20.0)
    for _ in range(20):
        machine.row(TIMEOUT, 20.0)
    assert machine.operating_state == "running"
    machine.row(HOLD, 20.0)
    assert machine.operating_state == "running"


def test_a_held_value_decides_until_it_is_too_old() -> None:
    machine = Machine(signal("a", norm(stale=3)), signal("b", norm(stale=99)), states={"one": "a > 0", "two": "b > 0"})
    machine.row(1.0, 1.0)
    states = []
    for _ in range(4):
        machine.row(HOLD, HOLD)
        states.append(machine.operating_state)
    assert states == ["one", "one", "two", "two"]


def test_the_norm_of_the_state_holds_and_of_an_unknown_one_the_base_norm() -> None:
    machine = press()
    assert machine.says(70.0, 50.0) == []
    (event,) = machine.row(0.0, 50.0)
    assert (event.event, event.limit, event.operating_state) == ("raised", 40.0, "stopped")
    assert event.norm == {"warning": {"high": 40}}
    assert machine.says(30.0, 50.0) == ["cleared high"]
    assert machine.says(30.0, 61.0) == ["raised high"]
    (event,) = machine.row(150.0, 61.0)
    assert (event.event, event.limit, event.norm) == ("cleared", None, {})


def test_the_first_decision_starts_no_settling() -> None:
    machine = press(settle=20)
    assert machine.says(0.0, 50.0) == ["raised high"]


def test_while_a_state_settles_nothing_is_raised_and_runs_begin_at_its_end() -> None:
    by_state = {"stopped": norm(band(high=40, on=3))}
    machine = Machine(
        signal("speed"), signal("t", norm(band(high=60, on=3), by_state=by_state)), states=STATES, settle=5
    )
    machine.row(70.0, 50.0)  # second 0
    found = [machine.says(0.0, 50.0) for _ in range(10)]  # settles from 1 to 6
    assert found == [[]] * 8 + [["raised high"], []]
    assert machine.second(machine.events[0].since) == 6
    assert machine.second(machine.events[0].ts) == 9


def test_settling_ends_a_run_that_was_going_on() -> None:
    machine = Machine(signal("speed"), signal("t", norm(band(high=60, on=3))), states=STATES, settle=2)
    machine.row(70.0, 61.0)
    machine.row(70.0, 61.0)
    found = [machine.says(0.0, 61.0) for _ in range(6)]  # settles from 2 to 4
    assert found == [[]] * 5 + [["raised high"]]
    assert machine.second(machine.events[0].since) == 4


def test_settling_suppresses_escalation_but_not_clearing() -> None:
    machine = Machine(signal("speed"), signal("t", norm(band(high=60), band(high=70))), states=STATES, settle=5)
    assert machine.says(70.0, 65.0) == ["raised high"]
    assert machine.says(0.0, 75.0) == []
    assert machine.says(0.0, 65.0) == []
    assert machine.says(0.0, 50.0) == ["cleared high"]
    assert machine.says(0.0, 75.0) == []
    assert machine.says(0.0, 75.0) == []
    (event,) = machine.row(0.0, 75.0)
    assert (event.event, event.severity) == ("raised", "alarm")


def test_stale_waits_for_the_end_of_settling_too() -> None:
    machine = Machine(signal("speed", norm(stale=2)), signal("t", norm(stale=3)), states=STATES, settle=5)
    machine.row(70.0, 1.0)
    machine.row(0.0, HOLD)  # settles from 1 to 6
    found = [machine.says(0.0, HOLD) for _ in range(5)]
    assert found == [[]] * 4 + [["raised stale"]]


def test_a_state_that_is_entered_again_settles_again() -> None:
    machine = press(settle=3)
    machine.row(70.0, 20.0)
    machine.row(0.0, 20.0)
    machine.row(70.0, 20.0)
    assert [machine.says(70.0, 61.0) for _ in range(3)] == [[], [], ["raised high"]]


# --- severities ---


def both(on: float = 0, off: float = 0, alarm_on: float = 0, alarm_off: float = 0, **more: str) -> Machine:
    return Machine(
        signal("s", norm(band(20, 60, 1, on, off), band(10, 70, 1, alarm_on, alarm_off), stale=1000, **more))  # type: ignore[arg-type]
    )


def test_escalation_and_deescalation_with_the_limit_of_the_present_severity() -> None:
    machine = both()
    for value in (65.0, 75.0, 65.0, 50.0):
        machine.row(value)
    assert [(e.event, e.severity, e.limit) for e in machine.events] == [
        ("raised", "warning", 60),
        ("escalated", "alarm", 70),
        ("deescalated", "warning", 60),
        ("cleared", "warning", 60),
    ]
    assert len({e.id for e in machine.events}) == 1
    assert {machine.second(e.since) for e in machine.events} == {0}


def test_low_limits_escalate_likewise() -> None:
    machine = both()
    for value in (15.0, 5.0, 10.5, 11.0, 21.0):
        machine.row(value)
    assert [(e.event, e.kind, e.limit) for e in machine.events] == [
        ("raised", "low", 20),
        ("escalated", "low", 10),
        ("deescalated", "low", 20),
        ("cleared", "low", 20),
    ]


def test_both_limits_in_one_row_give_one_raised_alarm_and_one_cleared() -> None:
    machine = both()
    (event,) = machine.row(75.0)
    assert (event.event, event.severity, event.limit) == ("raised", "alarm", 70)
    (event,) = machine.row(50.0)
    assert (event.event, event.severity, event.limit) == ("cleared", "alarm", 70)


def test_since_is_the_first_row_of_the_first_run() -> None:
    machine = both(on=10, alarm_on=2)
    assert machine.play(65, 75, 75, 75) == [("raised", 3)]
    assert machine.events[0].severity == "alarm"
    assert machine.second(machine.events[0].since) == 0


def test_severities_have_delays_of_their_own() -> None:
    machine = both(on=1, off=1, alarm_on=3, alarm_off=4)
    machine.play(75, 75, 75, 75, 50, 50, 50, 50, 50)
    assert [(e.event, machine.second(e.ts)) for e in machine.events] == [
        ("raised", 1),
        ("escalated", 3),
        ("cleared", 8),
    ]


def test_an_alarm_stays_an_alarm_while_its_limit_is_raised() -> None:
    """The warning limit may return before the alarm limit does: the worst raised limit counts."""
    machine = Machine(signal("s", norm(band(high=60), band(high=70, off=5))))
    assert machine.play(75, *[50] * 6) == [("raised", 0), ("cleared", 6)]


def test_an_alarm_limit_alone_raises_an_alarm() -> None:
    machine = Machine(signal("s", norm(alarm=band(high=70))))
    (event,) = machine.row(75.0)
    assert (event.severity, event.norm) == ("alarm", {"alarm": {"high": 70}})


def test_high_and_low_are_two_warnings() -> None:
    machine = both()
    machine.row(65.0)
    assert machine.says(15.0) == ["cleared high", "raised low"]
    assert machine.events[0].id != machine.events[2].id


def test_there_is_one_warning_of_a_signal_and_kind() -> None:
    machine = both()
    for value in (65.0, 66.0, 75.0, 76.0, 65.0, 64.0):
        machine.row(value)
        assert len(judge.active(machine.plant, machine.state)["m"]) == 1
    assert [event.event for event in machine.events] == ["raised", "escalated", "deescalated"]


# --- acknowledge ---


def test_auto_ends_with_the_deviation_whether_seen_or_not() -> None:
    machine = high()
    machine.row(61.0)
    assert machine.row(50.0)[0].state == "normal"
    machine.row(61.0)
    assert machine.acknowledge().state == "acknowledged"
    assert machine.row(50.0)[0].state == "normal"
    assert judge.active(machine.plant, machine.state)["m"] == []


def test_required_stays_until_somebody_has_seen_it() -> None:
    machine = high(acknowledge="required")
    raised = machine.row(61.0)[0]
    (cleared,) = machine.row(50.0)
    assert (cleared.event, cleared.state) == ("cleared", "returned_unacknowledged")
    assert [event.id for event in judge.active(machine.plant, machine.state)["m"]] == [raised.id]
    seen = machine.acknowledge("Ada", "cleaned")
    assert (seen.event, seen.state, seen.by, seen.comment) == ("acknowledged", "normal", "Ada", "cleaned")
    assert seen.message == "S: seen by Ada"
    assert seen.ts == machine.ts + 1
    assert judge.active(machine.plant, machine.state)["m"] == []


def test_raised_again_before_it_was_seen_is_the_same_warning_counted_up() -> None:
    machine = high(acknowledge="required")
    for value in (61.0, 50.0, 62.0, 50.0, 63.0):
        machine.row(value)
    assert [(e.event, e.count) for e in machine.events] == [
        ("raised", 1), ("cleared", 1), ("raised", 2), ("cleared", 2), ("raised", 3),
    ]  # fmt: skip
    assert len({e.id for e in machine.events}) == 1
    assert [machine.second(e.since) for e in machine.events] == [0, 0, 2, 2, 4]


def test_raised_again_after_it_was_seen_is_another_warning() -> None:
    machine = high(acknowledge="required")
    machine.row(61.0)
    machine.acknowledge()
    machine.row(50.0)
    (event,) = machine.row(61.0)
    assert event.count == 1
    assert event.id != machine.events[0].id


def test_escalation_makes_it_unacknowledged_again_deescalation_does_not() -> None:
    machine = both(acknowledge="required")
    machine.row(65.0)
    machine.acknowledge()
    assert machine.row(75.0)[0].state == "unacknowledged"
    machine.acknowledge()
    assert machine.row(65.0)[0].state == "acknowledged"
    assert machine.row(50.0)[0].state == "normal"


def test_what_is_raised_again_at_another_severity_is_raised_not_escalated() -> None:
    machine = both(acknowledge="required")
    machine.row(65.0)
    machine.row(50.0)
    (event,) = machine.row(75.0)
    assert (event.event, event.severity, event.count) == ("raised", "alarm", 2)


def test_acknowledging_twice_or_what_does_not_stand_is_refused() -> None:
    machine = high()
    (event,) = machine.row(61.0)
    machine.acknowledge()
    with pytest.raises(ValueError, match="acknowledged already"):
        judge.acknowledge(machine.plant, machine.state, event.id, "Ada", "", machine.ts)
    with pytest.raises(KeyError):
        judge.acknowledge(machine.plant, machine.state, "nonsense", "Ada", "", machine.ts)


# --- what an event tells ---


def test_ids_are_uuids_and_follow_from_epoch_machine_signal_kind_and_since() -> None:
    def raised(name: str, epoch: str, value: float, second: int) -> Event:
        plant = plants.plant(plants.machine("m", signal(name, norm(band(20, 60)))))
        at = np.array([TS0 + second * plants.SECOND])
        frame = Frame("m", at, at, np.array([[value]]), np.zeros((1, 1), dtype=np.uint8))
        _, judged = judge.step(plant, judge.start(plant), [frame], epoch)
        return judged.events[0]

    first = raised("s", "a", 61, 0)
    assert str(uuid.UUID(first.id)) == first.id
    assert raised("s", "a", 99, 0).id == first.id
    others = {
        raised("t", "a", 61, 0).id,
        raised("s", "b", 61, 0).id,
        raised("s", "a", 1, 0).id,
        raised("s", "a", 61, 1).id,
    }
    assert len(others | {first.id}) == 5


def test_an_event_is_told_at_the_time_of_its_own_reading() -> None:
    machine = Machine(signal("a", norm(band(high=60, on=1))), signal("b"))
    own = TS0 - 3 * plants.SECOND
    machine.row(61.0, 1.0, at=[own, TS0])
    (event,) = machine.row(61.0, 1.0, at=[own + 2 * plants.SECOND, TS0 + plants.SECOND])
    assert (event.ts, event.since) == (own + 2 * plants.SECOND, own)


def test_a_value_that_stands_for_long_deviates_when_its_norm_changes_and_not_at_its_old_stamp() -> None:
    its = norm(by_state={"busy": norm(band(high=60))})
    machine = Machine(signal("mode"), signal("s", its), states={"busy": "mode > 0", "idle": "mode <= 0"})
    old = TS0 - 1800 * plants.SECOND
    events = []
    for second in range(8):
        busy = float(second % 4 > 1)
        events += machine.row(busy, 70.0, at=[TS0 + second * plants.SECOND, old])
    assert [(e.event.value, machine.second(e.ts), machine.second(e.since)) for e in events] == [
        ("raised", 2, 2), ("cleared", 4, 2), ("raised", 6, 6),
    ]  # fmt: skip
    assert len({e.id for e in events}) == 2, "two warnings"


def test_a_stamp_from_the_future_is_no_time_of_an_event() -> None:
    machine = Machine(signal("s", norm(band(high=60, on=1))))
    machine.row(70.0, at=[TS0 + 3540 * plants.SECOND])
    (event,) = machine.row(70.0, at=[TS0 + 3541 * plants.SECOND])
    assert (machine.second(event.ts), machine.second(event.since)) == (1, 0)


def test_an_event_carries_column_unit_title_and_count() -> None:
    machine = Machine(signal("P_PDG", norm(band(high=60)), column="P-PDG", title="Gauge", unit="bar"))
    (event,) = machine.row(61.0)
    assert (event.column, event.unit, event.machine, event.count) == ("P-PDG", "bar", "m", 1)
    assert event.message == "Gauge 61 bar is above its norm of 60 bar"


@pytest.mark.parametrize(
    ("advice", "language", "told"),
    [
        ({"en": "Look.", "nl": "Kijk."}, "nl", "Kijk."),
        ({"en": "Look.", "nl": "Kijk."}, "de", "Look."),
        ({"nl": "Kijk."}, "de", "Kijk."),
        ({}, "nl", ""),
    ],
)
def test_advice_is_given_in_the_agents_language_else_in_english(
    advice: dict[str, str], language: str, told: str
) -> None:
    machine = Machine(signal("s", norm(band(high=60)), advice=advice), language=language)
    (event,) = machine.row(61.0)
    assert event.advice == told


def test_empty_frames_are_legal() -> None:
    machine = high()
    nothing = np.empty(0, dtype=np.int64)
    empty = Frame("m", nothing, nothing, np.empty((0, 1)), np.empty((0, 1), dtype=np.uint8))
    _, judged = judge.step(machine.plant, machine.state, [empty], "e")
    assert len(judged.frames) == 1
    assert judged.frames[0].publish.shape == (0,)
    assert judge.step(machine.plant, machine.state, [], "e")[1].frames == []


def test_the_hours_of_each_operating_state_are_counted_while_it_is_known() -> None:
    config = plants.machine("press", signal("speed"), states={"running": "speed > 50", "stopped": "speed <= 50"})
    plant = plants.plant(config)
    state = judge.start(plant)
    speeds = [60.0] * 11 + [0.0] * 5 + [math.nan] * 4 + [0.0]
    quality = [Quality.TIMEOUT if math.isnan(speed) else Quality.GOOD for speed in speeds]
    t = np.arange(len(speeds), dtype=np.int64) * 360 * plants.SECOND
    taken = Frame("press", t, t, np.array(speeds)[:, None], np.array(quality, dtype=np.uint8)[:, None])
    state, _ = judge.step(plant, state, [taken], "e")
    # The first step after the change still belongs to `running`; what ends in a bad row belongs to nobody.
    assert judge.hours(state, plant.machines[0]) == {"unknown": 0.0, "running": 1.1, "stopped": 0.5}


def test_a_state_with_an_until_stays_between_its_two_conditions() -> None:
    config = plants.machine("press", signal("speed"), states={"running": "speed > 50"}, until={"running": "speed < 45"})
    plant = plants.plant(config)
    speeds = [47.0, 51.0, 47.0, 46.0, 44.0, 47.0]
    t = np.arange(len(speeds), dtype=np.int64) * plants.SECOND
    taken = Frame("press", t, t, np.array(speeds)[:, None], np.zeros((len(speeds), 1), dtype=np.uint8))
    _, judged = judge.step(plant, judge.start(plant), [taken], "e")
    assert judged.frames[0].state.tolist() == [-1, 0, 0, 0, -1, -1]
