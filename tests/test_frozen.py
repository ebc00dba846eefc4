"""`frozen`: a sensor that stands still is found, silence is not taken for it, and its plain twin says the same."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.frozen import DETECTOR, Settings
from tests.detecting import SECOND, T0, Cell, Row, Taken, changes, column, rows, story


def told(after: str, values: list[Any], resolution: float = 0.0, step_s: float = 1.0) -> list[tuple[int, int, int]]:
    """(row, level, since in s from the first row)"""
    its = column(Settings.model_validate({"after": after, "resolution": resolution}))
    found = changes(DETECTOR, [its], story(values, step_s), 4)
    first = T0 + round(step_s * SECOND)
    return [(change.row, change.level, (change.since - first) // SECOND) for change in found]


def test_what_stays_the_same_for_so_long_is_raised_and_cleared_by_the_first_change() -> None:
    assert told("3s", [1, 2, 2, 2, 2, 2, 3, 3]) == [(4, 1, 1), (6, 0, 1)]


def test_what_moves_in_time_is_not_raised() -> None:
    assert told("3s", [1, 1, 1, 2, 2, 2, 1, 1, 1, 2]) == []


def test_a_change_within_the_resolution_is_none() -> None:
    assert told("3s", [1.0, 1.1, 0.9, 1.0, 1.1, 2.0], resolution=0.15) == [(3, 1, 0), (5, 0, 0)]


def test_a_slow_drift_is_a_change_once_it_has_gone_further_than_the_resolution() -> None:
    assert told("4s", [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], resolution=0.25) == []


def test_silence_is_no_proof_that_a_value_stands_still() -> None:
    assert told("3s", [1, "hold", "hold", "hold", "hold", "hold"]) == []


def test_a_value_that_its_device_vouches_for_stands_still() -> None:
    assert told("3s", [1, "hold", "hold", "same", "hold"]) == [(3, 1, 0)]


def test_the_time_of_bad_readings_does_not_count_and_does_not_end_the_stretch() -> None:
    assert told("3s", [1, 1, None, None, 1, 1, 1]) == [(5, 1, 0)]


def test_a_stretch_before_another_operating_state_does_not_count() -> None:
    still = [Cell("new", 1.0)]
    its = column(Settings.model_validate({"after": "3s"}))
    taken = [Row(SECOND, still, entered=number == 3) for number in range(8)]
    assert [(each.row, each.level) for each in changes(DETECTOR, [its], taken, 100)] == [(6, 1)]


def test_the_event_says_for_how_long_and_what_the_limit_was() -> None:
    its = column(Settings.model_validate({"after": "3s"}), level=2)
    (raised,) = changes(DETECTOR, [its], story([1, 1, 1, 1, 1]), 1)
    assert (raised.level, raised.limit, raised.why) == (2, 3.0, (("unchanged_s", 3.0),))


@dataclass
class Twin:
    """One signal, reading by reading."""

    after_us: int | None
    resolution: float
    value: float | None = None
    since: int = 0
    run_us: int = 0
    pending_us: int = 0
    raised: bool = False

    def anew(self) -> None:
        self.value, self.run_us, self.pending_us = None, 0, 0

    def row(self, row: Row, ts: int, value: float, known: bool, good: bool) -> tuple[int, int] | None:
        if self.after_us is None and not self.raised:
            return None
        if row.entered and not self.raised:
            self.anew()
        found = self.judged(row, ts, value, known, good)
        if not row.armed and not self.raised:
            self.anew()
        return found

    def judged(self, row: Row, ts: int, value: float, known: bool, good: bool) -> tuple[int, int] | None:
        if known:
            self.pending_us += row.step_us
        if not good:
            return None
        if self.value is None or abs(value - self.value) > self.resolution:
            since, ended = self.since, self.raised
            self.anew()
            self.value, self.since, self.raised = value, ts, False
            return (0, since) if ended else None
        self.run_us += self.pending_us
        self.pending_us = 0
        if not self.raised and row.armed and self.after_us is not None and self.run_us >= self.after_us:
            self.raised = True
            return 1, self.since
        return None


@given(
    rows(3, st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.2, 1.0])),
    st.lists(st.sampled_from([None, ("2s", 0.0), ("5s", 0.0), ("3s", 0.15), ("1s", 0.05)]), min_size=3, max_size=3),
    st.sampled_from([1, 2, 7, 100]),
)
def test_it_says_what_its_twin_says(taken: list[Row], asked: list[tuple[str, float] | None], size: int) -> None:
    settings = [
        None if each is None else Settings.model_validate({"after": each[0], "resolution": each[1]}) for each in asked
    ]
    found = changes(DETECTOR, [column(each) for each in settings], taken, size)
    plain, expected = Taken(taken), []
    twins = [Twin(None, 0.0) if each is None else Twin(each.after, each.resolution) for each in settings]
    for number, row in enumerate(taken):
        for place, twin in enumerate(twins):
            said = twin.row(
                row,
                plain.ts[number],
                plain.values[number][place],
                plain.known[number][place],
                plain.good[number][place],
            )
            if said is not None:
                expected.append((number, place, *said))
    assert [(each.row, each.column, each.level, each.since) for each in found] == expected


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_norm_that_no_longer_asks_ends_what_stands(size: int) -> None:
    off, on = column(None), column(Settings.model_validate({"after": "2s"}))
    state = DETECTOR.start(1)
    before = changes(DETECTOR, [on], story([1, 1, 1, 1]), size)
    assert [each.level for each in before] == [1]
    state.raised[:], state.value[:], state.known_us[:] = True, 1.0, 3 * SECOND
    from tests.detecting import _block

    taken = story([1, 1])
    (ended,) = DETECTOR.step(state, DETECTOR.norms([off]), _block(Taken(taken), taken, slice(0, 2), 1))
    assert (ended.row, ended.level) == (0, 0)
