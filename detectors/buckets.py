"""Means over stretches of time that are anchored to the time that has passed: what slow rules are judged on.

Rule 1: a bucket is `length_us` of a column's time, counted from its first row in whole µs; how the rows are cut into blocks
moves none. Rule 2: sums are made reading by reading, in order, and never by differences of running sums: equal to the bit.
Rule 3: only fresh good readings go in; a bucket without one has no mean. The row that begins a bucket closes the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_agent.contract import Block, Bools, Columns, Floats, Ints, row_of, within

NONE = -1


@dataclass(frozen=True, slots=True)
class Closed:
    """Buckets that the row `row` of the block has closed. columns: those of the plant to which the arrays belong, all
    (columns,).

    number: int64, which bucket it was. mean: float64, of its readings; there was one at least. at_us: int64, the middle of
    their times, in the column's own time.
    """

    row: int
    columns: npt.NDArray[np.intp]
    number: Ints
    mean: Floats
    at_us: Ints


class Buckets(Protocol):
    """The part of a detector's state that is the open buckets, all (columns,) and changed in place.

    number: int64, the bucket that is open, NONE before the first row. into_us: int64, the time since it began.
    count, total, times_us: of the readings in it; times_us is the sum of their times since it began.
    """

    @property
    def number(self) -> Ints: ...
    @property
    def into_us(self) -> Ints: ...
    @property
    def count(self) -> Ints: ...
    @property
    def total(self) -> Floats: ...
    @property
    def times_us(self) -> Ints: ...


def gather(state: Buckets, length_us: Ints, block: Block, wanted: Bools) -> Iterator[Closed]:
    """Take the block's readings in, and give what is closed, in row order.

    length_us: (plant's columns,). wanted: (columns,) bool, the block's columns that have buckets. What was taken in while an
    operating state settles is no reading of it.
    """
    chosen, at = block.chosen(wanted)
    if len(block.values) == 1:
        yield from _row(state, length_us, block, chosen, at)
        return
    places = np.flatnonzero(wanted)
    columns = block.plant_columns(places)
    # The columns of one machine pass the same time, and few have buckets of another length.
    marks = np.stack((length_us[columns], state.into_us[columns], state.number[columns]))
    if (marks == marks[:, :1]).all():
        yield from _rows(state, int(marks[0, 0]), block, chosen, columns)
        return
    kinds, of_kind = np.unique(marks, axis=1, return_inverse=True)
    found: list[Closed] = []
    for kind in range(kinds.shape[1]):
        its = np.flatnonzero(of_kind.ravel() == kind)
        found += _rows(state, int(kinds[0, kind]), block, places[its], columns[its])
    yield from sorted(found, key=lambda closed: closed.row)


def empty(state: Buckets, at: npt.NDArray[np.intp]) -> None:
    """Forget what the open buckets of these columns hold."""
    state.count[at], state.total[at], state.times_us[at] = 0, 0.0, 0


def begin(state: Buckets, at: npt.NDArray[np.intp]) -> None:
    """The time of these columns begins here: no bucket is open."""
    empty(state, at)
    state.number[at], state.into_us[at] = NONE, 0


def _row(state: Buckets, length_us: Ints, block: Block, chosen: Columns, at: Columns) -> Iterator[Closed]:
    number, into_us, lengths_us = state.number[at], state.into_us[at], length_us[at]
    into_us += row_of(block.step_us, 0, chosen)
    number[number == NONE] = 0
    over = into_us >= lengths_us
    if over.any():
        passed = into_us[over] // lengths_us[over]
        yield from _close(state, 0, within(at, np.flatnonzero(over)), number[over], lengths_us[over])
        number[over] += passed
        into_us[over] -= passed * lengths_us[over]
    taken = block.fresh[0, chosen] & row_of(block.armed, 0, chosen)
    count, total, times_us = state.count[at], state.total[at], state.times_us[at]
    if taken.all():
        count += 1
        total += block.values[0, chosen]
        times_us += into_us
    else:
        count += taken
        total += np.where(taken, block.values[0, chosen], 0.0)
        times_us += np.where(taken, into_us, 0)
    if not isinstance(at, slice):
        state.number[at], state.into_us[at] = number, into_us
        state.count[at], state.total[at], state.times_us[at] = count, total, times_us


def _rows(state: Buckets, length_us: int, block: Block, chosen: Columns, at: npt.NDArray[np.intp]) -> Iterator[Closed]:
    """Columns whose buckets begin and end together."""
    first_number = max(int(state.number[at[0]]), 0)
    passed_us = int(state.into_us[at[0]]) + np.cumsum(block.step_us[:, 0])
    number = first_number + passed_us // length_us
    into_us = passed_us - (number - first_number) * length_us
    taken = block.fresh[:, chosen] & block.armed
    whole = bool(taken.all())
    ends = np.flatnonzero(number[1:] != number[:-1]) + 1
    cuts = [0, *([0] if number[0] != first_number else []), *ends.tolist(), len(number)]
    open_number = first_number
    for first, stop in pairwise(cuts):
        if number[first] != open_number:
            yield from _close(state, first, at, np.full(at.size, open_number), np.full(at.size, length_us))
            open_number = int(number[first])
        if stop == first:
            continue
        # One after the other, what was there before included: a pairwise sum would depend on where the rows are cut.
        terms = np.empty((stop - first + 1, at.size))
        terms[0] = state.total[at]
        if whole:
            terms[1:] = block.values[first:stop, chosen]
            state.count[at] += stop - first
            state.times_us[at] += into_us[first:stop].sum()
        else:
            its = taken[first:stop]
            terms[1:] = np.where(its, block.values[first:stop, chosen], 0.0)
            state.count[at] += its.sum(axis=0)
            state.times_us[at] += np.where(its, into_us[first:stop, None], 0).sum(axis=0)
        state.total[at] = terms.sum(axis=0) if at.size > 1 else np.add.accumulate(terms, axis=0)[-1]
    state.number[at], state.into_us[at] = open_number, into_us[-1]


def _close(state: Buckets, row: int, at: npt.NDArray[np.intp], number: Ints, length_us: Ints) -> Iterator[Closed]:
    """What is in the open buckets of these columns; they are empty then. number: theirs."""
    count = state.count[at]
    full = count > 0
    if full.any():
        its = at[full]
        middle_us = number[full] * length_us[full] + state.times_us[its] // count[full]
        yield Closed(row, its, number[full], state.total[its] / count[full], middle_us)
    empty(state, at)
