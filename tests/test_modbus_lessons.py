"""What devices teach: halves of a refused block, rests that double, and notes that survive a restart."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.modbus_lessons import DAY_US, RETRIES_PER_READ, SECOND_US, Lessons, Place, halves, place_of
from drivers.modbus_map import Item, Limits, Table, address_order, make_plan

HOUR_US = 3600 * SECOND_US
WALL_US = 1_795_000_000_000_000


def registers(*starts: int, unit: int = 1) -> list[Item]:
    return [Item(unit, Table.HOLDING, start, "uint16") for start in starts]


def lessons_of(items: list[Item]) -> Lessons:
    order = address_order(items)
    rank = np.empty(len(items), dtype=np.intp)
    rank[order] = np.arange(len(items))
    return Lessons(items, order, rank)


def blocks(items: list[Item], lessons: Lessons, due: np.ndarray | None = None) -> list[tuple[int, int]]:
    asked = np.arange(len(items)) if due is None else due
    plan = make_plan(items, asked, lessons.limits(Limits()), lessons.rank, lessons.segment)
    return [(block.start, block.count) for block in plan.blocks]


def test_what_was_refused_is_not_read_across_and_not_asked_while_it_rests() -> None:
    items = registers(*range(10))
    lessons = lessons_of(items)
    lessons.refuse(np.array([4]), now_us=0)
    due = np.arange(10)
    asked = lessons.asked(due, 1)
    assert asked.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert blocks(items, lessons, asked) == [(0, 4), (5, 5)]
    assert lessons.asked(due, 2 * SECOND_US).tolist() == list(range(10)), "its rest is over"
    assert blocks(items, lessons) == [(0, 4), (4, 1), (5, 5)], "it is asked all alone"
    assert not lessons.answered(np.array([3, 5]))
    assert lessons.answered(np.array([4]))
    assert blocks(items, lessons) == [(0, 10)]


def test_a_rest_doubles_up_to_a_day() -> None:
    lessons = lessons_of(registers(0))
    now, rests = 0, []
    for _ in range(30):
        lessons.refuse(np.array([0]), now)
        low, high = now, now + 2 * DAY_US
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(lessons.asked(np.array([0]), middle)) else (middle, high)
        rests.append(high - now)
        now = high
    assert 0.75 * SECOND_US <= rests[0] <= SECOND_US
    assert all(1.4 <= after / before <= 2.7 for before, after in pairwise(rests[:16]))
    assert all(0.74 * DAY_US <= rest <= DAY_US for rest in rests[-5:])


def test_only_a_few_of_many_refused_are_asked_again_in_one_read() -> None:
    items = registers(*range(50))
    lessons = lessons_of(items)
    lessons.refuse(np.arange(50), 0)
    assert len(lessons.asked(np.arange(50), 1)) == 0
    assert len(lessons.asked(np.arange(50), HOUR_US)) == RETRIES_PER_READ


def test_a_hole_and_a_size_hold_for_a_minute_and_then_longer() -> None:
    items = registers(0, 1, 8, 9)
    lessons = lessons_of(items)
    assert blocks(items, lessons) == [(0, 10)]
    lessons.hole(Place(1, Table.HOLDING, 2, 8), 0)
    assert blocks(items, lessons) == [(0, 2), (8, 2)]
    lessons.size(1, Table.HOLDING, 1, 0)
    assert blocks(items, lessons) == [(0, 1), (1, 1), (8, 1), (9, 1)]
    assert lessons.explained(Place(1, Table.HOLDING, 0, 10))
    assert not lessons.explained(Place(2, Table.HOLDING, 0, 10))
    lessons.asked(np.arange(4), 61 * SECOND_US)
    assert blocks(items, lessons) == [(0, 10)], "forgotten, to be learned again"
    lessons.hole(Place(1, Table.HOLDING, 2, 8), 61 * SECOND_US)
    lessons.asked(np.arange(4), 61 * SECOND_US + 80 * SECOND_US)
    assert blocks(items, lessons) == [(0, 2), (8, 2)], "the second time it holds twice as long"


def test_sizes_are_those_of_one_unit() -> None:
    items = registers(0, 1, 2, 3) + registers(0, 1, 2, 3, unit=2)
    lessons = lessons_of(items)
    lessons.size(2, Table.HOLDING, 2, 0)
    assert blocks(items, lessons) == [(0, 4), (0, 2), (2, 2)]
    wide = [Item(1, Table.HOLDING, 0, "float64")]
    narrow = lessons_of(wide)
    narrow.size(1, Table.HOLDING, 1, 0)
    assert blocks(wide, narrow) == [(0, 4)], "a value is never cut in two"


PLACES = st.tuples(st.integers(0, 3), st.sampled_from(list(Table)), st.integers(0, 60))


@given(st.lists(PLACES, min_size=1, max_size=40, unique=True), st.data())
def test_no_block_reaches_over_what_is_refused(places: list[tuple[int, Table, int]], data: st.DataObject) -> None:
    items = [Item(u, t, start, "uint16" if t >= Table.HOLDING else "bool") for u, t, start in places]
    lessons = lessons_of(items)
    guilty = data.draw(st.sets(st.integers(0, len(items) - 1)))
    lessons.refuse(np.array(sorted(guilty), dtype=np.int64), 0)
    plan = make_plan(items, np.arange(len(items)), lessons.limits(Limits()), lessons.rank, lessons.segment)
    for block in plan.blocks:
        inside = {place_of(items[i]) for i in range(len(items)) if place_of(items[i])[:2] == (block.unit, block.table)}
        bad = {place_of(items[i]) for i in guilty}
        touched = {p for p in inside if block.start <= p.start < block.start + block.count}
        assert len(touched) == 1 or not touched & bad


@given(st.lists(PLACES, min_size=1, max_size=40, unique=True))
def test_halves_are_all_of_it_and_smaller(places: list[tuple[int, Table, int]]) -> None:
    items = [Item(1, Table.HOLDING, start, "uint16") for _, _, start in places]
    lessons = lessons_of(items)
    points = np.arange(len(items))
    two = halves(items, lessons.rank, points)
    if two is None:
        assert len({item.start for item in items}) == 1
        return
    assert sorted([*two.left.tolist(), *two.right.tolist()]) == points.tolist()
    assert len(two.left)
    assert len(two.right)
    assert max(items[i].start for i in two.left) <= min(items[i].start for i in two.right)
    if two.gap is not None:
        assert max(place_of(items[i]).end for i in two.left) == two.gap.start < two.gap.end
        assert min(items[i].start for i in two.right) == two.gap.end


@given(st.sets(st.integers(0, 19)), st.booleans(), st.booleans(), st.integers(0, 10 * DAY_US))
def test_notes_survive_a_restart(guilty: set[int], hole: bool, size: bool, later_us: int) -> None:
    items = registers(*range(10), *range(20, 30))
    first = lessons_of(items)
    if guilty:
        first.refuse(np.array(sorted(guilty)), 5)
    if hole:
        first.hole(Place(1, Table.HOLDING, 10, 20), 5)
    if size:
        first.size(1, Table.HOLDING, 7, 5)
    notes = first.notes(5, WALL_US)
    again = lessons_of(items)
    again.recall(notes, 99, WALL_US)
    assert blocks(items, again) == blocks(items, first)
    assert again.refused_points == first.refused_points
    assert len(again.asked(np.arange(20), 99)) == 20 - max(0, len(guilty) - RETRIES_PER_READ), "tried again at once"
    late = lessons_of(items)
    late.recall(notes, 99, WALL_US + later_us)
    assert late.refused_points == first.refused_points


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"refused":[[1,3,4,5]],"holes":[],"sizes":[]}',
        b'{"refused":[[1,9,4,5,1,0]],"holes":[],"sizes":[]}',
        b'{"refused":[["1",3,4,5,1,0]],"holes":[],"sizes":[]}',
        b'{"refused":[],"holes":[],"sizes":[[1,true,0,1,0]]}',
        b'{"refused":[],"holes":[],"sizes":[[1,true,9,-1,0]]}',
        b'{"refused":[],"holes":[],"sizes":[[1,true,9,1,"soon"]]}',
        b"[" * 100_000,
    ],
)
def test_notes_that_make_no_sense_are_refused_whole(notes: bytes) -> None:
    lessons = lessons_of(registers(0, 1))
    with pytest.raises(ValueError, match=r"."):
        lessons.recall(notes, 0, WALL_US)
    assert lessons.refused_points == 0


def test_a_clock_that_was_wrong_makes_no_rest_of_years() -> None:
    items = registers(0, 1, 8, 9)
    lessons = lessons_of(items)
    lessons.hole(Place(1, Table.HOLDING, 2, 8), 0)
    plain = json.loads(lessons.notes(0, WALL_US))
    plain["holes"][0][5] += 5000 * DAY_US
    again = lessons_of(items)
    again.recall(json.dumps(plain).encode(), 0, WALL_US)
    assert blocks(items, again) == [(0, 2), (8, 2)]
    again.asked(np.arange(4), DAY_US + 1)
    assert blocks(items, again) == [(0, 10)]
