"""What was told as rows of a frame: held against a twin in plain words; and points that come and go over one line."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import opcua_points as pts
from drivers.opcua_settings import Address
from drivers.opcua_subscription import Told
from edge_agent.contract import Point, Quality

WALL = 1_795_000_000_000_000
HOLD = int(Quality.HOLD)


def told(t_us: int, *values: tuple[int, float, int]) -> Told:
    """An answer: (point, value, how long ago it was measured) each."""
    handle, value, age = zip(*values, strict=True) if values else ((), (), ())
    n = len(values)
    return Told(
        t_us,
        np.array(handle, np.int64),
        np.array(value, np.float64),
        np.zeros(n, np.uint8),
        WALL + t_us - np.array(age, np.int64),
        np.zeros(n, np.uint32),
        np.full(n, 11, np.uint8),
    )


def twin(answers: list[list[tuple[int, float]]], due: list[int]) -> list[dict[int, float]]:
    """The rows, one after another: of each answer as many as its most frequent point, aligned at their end."""
    rows: list[dict[int, float]] = []
    for answer in answers:
        of_point: dict[int, list[float]] = {}
        for point, value in answer:
            if point in due:
                of_point.setdefault(point, []).append(value)
        count = max((len(values) for values in of_point.values()), default=0)
        rows += [
            {p: v[row - count + len(v)] for p, v in of_point.items() if row - count + len(v) >= 0}
            for row in range(count)
        ]
    return rows


ANSWERS = st.lists(st.lists(st.tuples(st.integers(0, 5), st.floats(-9, 9)), max_size=12), max_size=6)
DUE = st.sets(st.integers(0, 5)).map(sorted)


@given(ANSWERS, DUE)
def test_rows_are_those_of_the_plain_twin_and_what_is_not_due_is_kept(
    answers: list[list[tuple[int, float]]], due: list[int]
) -> None:
    all_told = [told(1000 * n, *((p, v, 0) for p, v in answer)) for n, answer in enumerate(answers, 1)]
    blocks, others = pts.rows_of(all_told, np.array(due, np.int64), 6, 0)
    rows = [
        {due[at]: float(block.values[row, at]) for at in range(len(due)) if block.quality[row, at] != HOLD}
        for block in blocks
        for row in range(len(block.values))
    ]
    assert rows == twin(answers, due)
    kept = [(int(p), float(v)) for each in others for p, v in zip(each.handle, each.values, strict=True)]
    assert kept == [(p, v) for answer in answers for p, v in answer if p not in due]
    for block in blocks:
        assert np.isnan(block.values[block.quality == HOLD]).all()


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-(10**9), 10**12)), min_size=1, max_size=20),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_a_row_lies_between_two_answers_whatever_the_servers_clock_says(
    values: list[tuple[int, int]], since: int, later: int
) -> None:
    answer = told(since + later, *((p, 1.0, age) for p, age in values))
    ((block,), _) = pts.rows_of([answer], np.arange(3), 3, since)
    assert block.t is not None
    assert (np.diff(block.t) >= 0).all()
    assert since <= block.t[0]
    assert block.t[-1] <= since + later
    whole = pts.stacked([block], since + later + 5)
    assert whole.t is not None
    assert whole.t[-1] == since + later + 5


def test_values_of_one_answer_come_at_the_times_at_which_they_were_measured() -> None:
    answer = told(1_000_000, (0, 1.0, 300_000), (0, 2.0, 200_000), (0, 3.0, 100_000))
    ((block,), _) = pts.rows_of([answer], np.array([0]), 1, 0)
    assert block.t is not None
    assert block.t.tolist() == [800_000, 900_000, 1_000_000]
    assert block.ts[:, 0].tolist() == [WALL + 700_000, WALL + 800_000, WALL + 900_000]


# ------------------------------------------------------------------------------------------------- points come and go


def points(*names: str, every_us: int = 1_000_000, **keys: Any) -> list[Point]:
    return [Point(name, Address(address=f"nsu=urn:x;s={name}", **keys), every_us) for name in names]


def test_points_that_stay_keep_what_is_known_of_them_and_dropped_items_are_named() -> None:
    old = pts.points_of(points("a", "b", "c"))
    old.known[:] = old.told[:] = True
    old.item[:] = [7, 8, 9]
    old.values[:] = [1, 2, 3]
    old.words[0] = "gone"
    new, moved, dropped = pts.carried_over(old, points("c", "d", "a"))
    assert moved == {2: 0, 0: 2}
    assert dropped == [1]
    np.testing.assert_array_equal(new.values, [3, np.nan, 1])
    assert new.item.tolist() == [9, -1, 7]
    assert new.known.tolist() == [True, False, True]
    assert new.words == {2: "gone"}


@pytest.mark.parametrize("changed", [{"every_us": 5}, {"queue": 9}, {"index": "1"}, {"browse_name": "x"}])
def test_a_point_that_is_asked_otherwise_is_another_one(changed: dict[str, Any]) -> None:
    old = pts.points_of(points("a"))
    old.told[:] = True
    old.item[:] = 7
    new, moved, dropped = pts.carried_over(old, points("a", **changed))
    assert (moved, dropped) == ({}, [0])
    assert not new.told.any()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (0, "the variable holds no value"),
        (12, "a String, not a number"),
        (0x8B, "an array of Double, not a number; `index` chooses an element"),
        (22, "a structure, not a number; `member` chooses a number of it"),
    ],
)
def test_why_a_value_is_no_number(typed: int, words: str) -> None:
    assert pts.unfit(typed) == words
