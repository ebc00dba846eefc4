"""Ranges of numbers beside a plain set."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.store.ranges import Intervals

number = st.integers(1, 60)
steps = st.lists(st.tuples(number, number), max_size=30)


def built(pairs: list[tuple[int, int]]) -> tuple[Intervals, set[int]]:
    ranges, plain = Intervals(), set[int]()
    for first, last in pairs:
        more = set(range(first, last + 1))
        assert ranges.add(first, last) == len(more - plain)
        plain |= more
    return ranges, plain


@given(steps, number, number)
def test_ranges_answer_like_a_plain_set(pairs: list[tuple[int, int]], first: int, last: int) -> None:
    ranges, plain = built(pairs)
    window = set(range(first, last + 1))
    assert {n for n in range(62) if n in ranges} == plain
    assert ranges.count(first, last) == len(plain & window)
    assert {n for a, b in ranges.missing(first, last) for n in range(a, b + 1)} == window - plain
    assert ranges.done_to == next(n for n in range(62) if n + 1 not in plain)


@given(steps)
def test_ranges_are_sorted_separate_and_as_few_as_can_be(pairs: list[tuple[int, int]]) -> None:
    ranges, plain = built(pairs)
    found = ranges.ranges()
    assert all(a <= b for a, b in found)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))
    assert sum(b - a + 1 for a, b in found) == len(plain)


@given(steps)
def test_a_copy_is_equal_and_goes_its_own_way(pairs: list[tuple[int, int]]) -> None:
    ranges, _ = built(pairs)
    twin = ranges.copy()
    assert twin.ranges() == ranges.ranges() == Intervals(ranges.ranges()).ranges()
    twin.add(100)
    assert 100 not in ranges


def test_an_empty_range_adds_nothing() -> None:
    ranges = Intervals()
    assert ranges.add(5, 4) == 0
    assert ranges.ranges() == []


@given(st.lists(st.one_of(st.tuples(st.integers(1, 60), st.integers(0, 8)), st.none())))
def test_the_changes_that_are_told_make_a_copy_of_the_whole(steps: list[tuple[int, int] | None]) -> None:
    """A None takes the changes; what was taken and not written is given back and comes again."""
    numbers, copy = Intervals(), dict[int, int]()
    for count, step in enumerate(steps):
        if step is not None:
            numbers.add(step[0], step[0] + step[1])
            continue
        changes = numbers.take_changes()
        if count % 3 == 0:
            numbers.give_back(changes)
            continue
        _apply(copy, changes)
        assert sorted(copy.items()) == numbers.ranges()
    _apply(copy, numbers.take_changes())
    assert sorted(copy.items()) == numbers.ranges()


def _apply(copy: dict[int, int], changes: dict[int, int | None]) -> None:
    for first, last in changes.items():
        if last is None:
            copy.pop(first, None)
        else:
            copy[first] = last


def test_a_number_more_is_one_change_however_many_ranges_there_are() -> None:
    numbers = Intervals([(n, n) for n in range(1, 2000, 2)])
    numbers.take_changes()
    numbers.add(5001)
    assert numbers.take_changes() == {5001: 5001}
