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
