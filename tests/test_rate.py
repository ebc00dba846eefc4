"""`rate`: what changes too fast is found, single wild readings do not matter, and its plain twin says the same."""

import math
import statistics
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import rate
from detectors.rate import DETECTOR, Settings
from edge_agent.contract import WrongKey
from tests.detecting import SECOND, Row, Taken, changes, column, rows, story


def told(settings: dict[str, Any], values: list[Any], step_s: float = 1.0) -> list[tuple[int, int]]:
    its = column(Settings.model_validate(settings), every_us=round(step_s * SECOND))
    return [(change.row, change.level) for change in changes(DETECTOR, [its], story(values, step_s), 5)]


MINUTE = {"max": 2.0, "per": "1min", "over": "80s"}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_ramp_that_is_too_steep_is_raised_in_both_directions_and_cleared_when_it_ends(sign: int) -> None:
    ramp = [0.0] * 100 + [sign * 0.05 * i for i in range(100)] + [sign * 5.0] * 100
    raised, cleared = told(MINUTE, ramp)
    assert raised[1] == 1
    assert 130 <= raised[0] <= 190, "three units a minute, found within the window"
    assert cleared[1] == 0
    assert 200 <= cleared[0] <= 290


def test_a_ramp_within_the_norm_is_not_raised() -> None:
    assert told(MINUTE, [0.03 * i for i in range(400)]) == []


def test_single_wild_readings_do_not_move_the_slope() -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, 400)
    noise[[60, 200]] = 500.0
    assert told(MINUTE, noise.tolist()) == []


def test_a_step_is_no_ramp() -> None:
    assert told({"max": 2.0, "per": "1s", "over": "80s"}, [0.0] * 100 + [50.0] * 100) == []


def test_a_gap_does_not_make_a_slope() -> None:
    values = [0.01 * i for i in range(100)]
    its = column(Settings.model_validate(MINUTE))
    taken = story(values)
    taken[50] = Row(600 * SECOND, taken[50].cells)
    assert changes(DETECTOR, [its], taken, 7) == []


def test_the_window_begins_anew_with_each_operating_state_and_after_its_settling() -> None:
    its = column(Settings.model_validate(MINUTE))
    up = [0.05 * i for i in range(60)]
    taken = story([0.0] * 100 + up + [3.0] * 200)
    taken[100] = Row(SECOND, taken[100].cells, armed=False, entered=True)
    for number in range(101, 160):
        taken[number] = Row(SECOND, taken[number].cells, armed=False)
    assert changes(DETECTOR, [its], taken, 11) == []


def test_a_slow_poll_has_fewer_parts() -> None:
    its = DETECTOR.norms(
        [column(Settings.model_validate({"max": 1.0, "per": "1min", "over": "5min"}), every_us=120 * SECOND)]
    )
    assert (its.part_us.tolist(), its.parts.tolist()) == ([120 * SECOND], [2])
    ramp = [3.0 * i for i in range(10)]
    assert told({"max": 1.0, "per": "1min", "over": "5min"}, ramp, step_s=120)[0][1] == 1


def test_a_window_without_two_readings_is_refused() -> None:
    its = column(Settings.model_validate({"max": 1.0, "over": "5s"}), every_us=3 * SECOND)
    with pytest.raises(WrongKey, match="fewer than two readings") as refused:
        DETECTOR.check(its)
    assert refused.value.key == "over"


def test_the_event_says_how_fast_and_in_which_time() -> None:
    its = column(Settings.model_validate(MINUTE))
    raised = changes(DETECTOR, [its], story([-0.05 * i for i in range(200)]), 200)[0]
    assert raised.limit == 2.0
    why = dict(raised.why)
    assert math.isclose(why["rate"], -3.0)
    assert why["per_s"] == 60.0


@dataclass
class Twin:
    """One signal, reading by reading."""

    limit: float
    per_us: int
    part_us: int
    parts: int
    passed_us: int = 0
    open: int | None = None
    readings: list[tuple[int, float]] = field(default_factory=list)
    closed: dict[int, tuple[int, float]] = field(default_factory=dict)
    raised: bool = False
    since: int = 0

    def row(self, row: Row, ts: int, value: float, fresh: bool) -> tuple[int, int] | None:
        if row.entered:
            self.readings, self.closed = [], {}
        self.passed_us += row.step_us
        number, said = self.passed_us // self.part_us, None
        if self.open != number:
            if self.readings and self.open is not None:
                count = len(self.readings)
                middle = sum(us - self.open * self.part_us for us, _ in self.readings) // count
                total = 0.0
                for _, each in self.readings:
                    total += each
                self.closed[self.open] = (self.open * self.part_us + middle, total / count)
                said = self.judged(self.open, ts)
            self.open, self.readings = number, []
        if fresh and row.armed:
            self.readings.append((self.passed_us, value))
        return said

    def judged(self, last: int, ts: int) -> tuple[int, int] | None:
        points = [self.closed[number] for number in sorted(self.closed) if number > last - self.parts]
        if len(points) < math.ceil(rate.PARTS_NEEDED * self.parts):
            return None
        slope = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2)) * self.per_us
        stands = abs(slope) > self.limit * (rate.BACK if self.raised else 1)
        if stands == self.raised:
            return None
        self.raised = stands
        if stands:
            self.since = ts
        return int(stands), self.since


@given(
    rows(3, st.floats(-5, 5).map(lambda v: round(v, 3)), count=60),
    st.lists(
        st.sampled_from(
            [
                {"max": 0.2, "per": "1s", "over": "2s"},
                {"max": 0.5, "per": "1s", "over": "4s"},
                {"max": 1.0, "per": "2s", "over": "12s"},
                {"max": 0.3, "per": "1s", "over": "40s"},
            ]
        ),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from([1, 2, 7, 100]),
)
def test_it_says_what_its_twin_says(taken: list[Row], asked: list[dict[str, Any]], size: int) -> None:
    columns = [column(Settings.model_validate(each)) for each in asked]
    found = changes(DETECTOR, columns, taken, size)
    norms, plain, expected = DETECTOR.norms(columns), Taken(taken), []
    twins = [
        Twin(*its)
        for its in zip(
            norms.limit.tolist(), norms.per_us.tolist(), norms.part_us.tolist(), norms.parts.tolist(), strict=True
        )
    ]
    for number, row in enumerate(taken):
        for place, twin in enumerate(twins):
            said = twin.row(row, plain.ts[number], plain.values[number][place], plain.fresh[number][place])
            if said is not None:
                expected.append((number, place, *said))
    assert [(each.row, each.column, each.level, each.since) for each in found] == expected
