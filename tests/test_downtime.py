"""What was due while the agent did not run."""

from functools import partial

import numpy as np
import pytest

from edge_agent import downtime
from edge_agent.contract import Frame, Quality
from edge_agent.downtime import Before, Life
from edge_agent.poller import Line, PolledSignal
from edge_agent.records import Gap, GapCause, JudgedFrame

SECOND = 1_000_000
WALL = 1_795_000_000_000_000
BASE = 7 * SECOND + 123
BEFORE, NOW = Life("boot-1", BASE), Life("boot-1", BASE + 99)


def line(name: str, **periods: int) -> Line:
    signals = tuple(PolledSignal(machine, 0, None, every * SECOND) for machine, every in periods.items())  # type: ignore[arg-type]
    return Line(name, None, None, signals, dict.fromkeys(periods, 1))  # type: ignore[arg-type]


def frame(
    machine: str, t: int, quality: Quality = Quality.GOOD, *, tick: bool = False, late: bool = False
) -> JudgedFrame:
    one = np.array([t], dtype=np.int64)
    cells = np.full((1, 1), quality, dtype=np.uint8)
    its = Frame(machine, one, one, np.zeros((1, 1)), cells, tick=tick, late=late)
    return JudgedFrame(its, np.zeros(1, dtype=np.int16), np.ones(1, dtype=np.bool_))


def count(rows: dict[str, int], until_us: int, life: Life = NOW, wall_us: int = WALL + 3 * SECOND) -> int:
    lines = [line("plc-1", press=1, pump=1), line("plc-2", fan=2)]
    gap = downtime.gap(
        lines, Before(BEFORE, {name: BASE + t for name, t in rows.items()}, WALL), life, until_us, wall_us
    )
    return 0 if gap is None else gap.count


def test_each_machine_is_counted_from_its_own_last_row() -> None:
    # The press was read at the beat of 10 s, the pump not yet when the kill came: its beat is due as well.
    assert count({"press": 10 * SECOND + 5_000}, 12 * SECOND + 1) == 2
    assert count({"press": 10 * SECOND + 5_000, "pump": 9 * SECOND + 5_000}, 12 * SECOND + 1) == 2 + 3
    assert (
        count({"press": 10 * SECOND + 5_000, "pump": 9 * SECOND + 5_000, "fan": 10 * SECOND}, 12 * SECOND + 1)
        == 2 + 3 + 1
    )


def test_a_row_on_its_beat_has_that_beat_and_a_beat_at_the_end_is_still_due() -> None:
    assert count({"press": 10 * SECOND}, 11 * SECOND - 1) == 0
    assert count({"press": 10 * SECOND}, 11 * SECOND) == 1


@pytest.mark.parametrize("step_us", [-86_400 * SECOND, 0, 86_400 * SECOND])
def test_within_one_run_of_the_host_a_step_of_the_wall_clock_counts_for_nothing(step_us: int) -> None:
    assert count({"press": 10 * SECOND}, 15 * SECOND, wall_us=WALL + step_us) == 5


@pytest.mark.parametrize("life", [Life("boot-2", BASE), Life("", BASE)])
def test_after_another_start_of_the_host_the_wall_clock_is_asked(life: Life) -> None:
    assert count({"press": 10 * SECOND}, 5 * SECOND, life) == 3 + 3 + 1
    assert count({"press": 10 * SECOND}, 5 * SECOND, life, wall_us=WALL - SECOND) == 0


def test_a_monotonic_clock_that_went_back_is_of_another_start() -> None:
    assert count({"press": 10 * SECOND}, 9 * SECOND) == 3 + 3 + 1


def test_the_gap_says_from_when_to_when() -> None:
    gap = partial(downtime.gap, [line("plc-1", press=1)], Before(BEFORE, {"press": BASE}, WALL), NOW, 5 * SECOND)
    assert gap(WALL + 5 * SECOND) == Gap(GapCause.RESTART, 5, WALL, WALL + 5 * SECOND)
    # By the clock of now, which was set back since, or which nobody has set: it is marked then, and put right with the rest.
    assert gap(WALL - 60 * SECOND) == Gap(GapCause.RESTART, 5, WALL - 65 * SECOND, WALL - 60 * SECOND)


def test_a_tick_and_a_late_row_stand_for_no_beat_but_the_row_of_a_restart_ends_the_span_before_it() -> None:
    rows = {"press": 1, "pump": 2}
    items = [
        frame("press", 10),
        frame("press", 20, Quality.HOLD, tick=True),
        frame("press", 30, late=True),
        frame("pump", 15, Quality.RESTART, tick=True),
    ]
    assert list(downtime.noted(items, rows)) == items
    assert rows == {"press": 10, "pump": 15}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"boot": "b"}', '{"boot": "b", "base_us": "x"}'])
def test_what_cannot_be_read_of_the_last_run_is_nothing(text: str) -> None:
    assert downtime.life_of(text) is None


def test_a_run_is_read_as_it_was_written() -> None:
    left = Life("boot-1", BASE, downtime.Untold(WALL, 77))
    assert downtime.life_of(BEFORE.text()) == BEFORE
    assert downtime.life_of(left.text()) == left
    assert downtime.life_of('{"boot": "boot-1", "base_us": 5}') == Life("boot-1", 5), "of a release that knew of none"
