"""`frozen`: a live sensor never stays exactly the same for so long; one that does is stuck, or its line repeats itself.

Rule 1: only readings that the device vouches for count (a poll that brought the same value, a confirmed HOLD): silence is
`stale`, and no proof that a value stood still. Rule 2: bad rows neither extend nor end the stretch, and their time does not
count (contract §6). Rule 3: the stretch is a sum of whole µs, so however the rows are cut it is equal to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from edge_agent.contract import Block, Bools, Change, Codes, Column, Columns, Duration, Floats, Ints, row_of, within

KIND = "frozen"
OFF = np.iinfo(np.int64).max
"""The norm does not ask: no stretch is that long."""
PIECE_LEAST = 64
"""Rows that are looked at in one go, however short the norm."""


class Settings(BaseModel):
    """A live sensor never stays exactly the same for so long; a duration alone means `after`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    short: ClassVar[str] = "after"
    after: Annotated[int, Duration("1s", "365d")] = Field(description="raise after so long without a change")
    resolution: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="a change of no more than this is none, in the signal's unit"
    )


@dataclass(frozen=True, slots=True)
class FrozenNorms:
    """(columns,). after_us: int64, OFF where nobody asks. resolution: float64, the signal's unit. level: uint8, 1 or 2."""

    after_us: Ints
    resolution: Floats
    level: Codes


@dataclass(frozen=True, slots=True)
class FrozenState:
    """(columns,), changed in place.

    value: float64, the reading with which the stretch began; NaN: none has begun. since: int64 UTC µs of that reading.
    known_us, begun_us: int64, the time in which the column was known, now and when the stretch began. raised: bool.
    """

    value: Floats
    since: Ints
    known_us: Ints
    begun_us: Ints
    raised: Bools


class Frozen:
    """The detector of sensors that stand still, see contract.Detector."""

    kinds: tuple[str, ...] = (KIND,)
    Settings = Settings

    def norms(self, columns: Sequence[Column]) -> FrozenNorms:
        asked = [column.settings for column in columns]
        return FrozenNorms(
            np.array([OFF if each is None else each.after for each in asked], dtype=np.int64),
            np.array([0.0 if each is None else each.resolution for each in asked], dtype=np.float64),
            np.array([column.level for column in columns], dtype=np.uint8),
        )

    def start(self, columns: int) -> FrozenState:
        return FrozenState(
            np.full(columns, np.nan),
            np.zeros(columns, dtype=np.int64),
            np.zeros(columns, dtype=np.int64),
            np.zeros(columns, dtype=np.int64),
            np.zeros(columns, dtype=np.bool_),
        )

    def step(self, state: FrozenState, norms: FrozenNorms, block: Block) -> list[Change]:
        wanted = (norms.after_us[block.columns] != OFF) | state.raised[block.columns]
        if not wanted.any():
            return []
        new = block.entered & wanted & ~state.raised[block.columns]
        if new.any():
            _anew(state, block.plant_columns(np.flatnonzero(new)))
        if len(block.values) == 1:
            return _row(state, norms, block, 0, *block.chosen(wanted))
        changes: list[Change] = []
        coarse = wanted & (norms.resolution[block.columns] > 0)
        if coarse.any():  # which reading the next is compared with depends on those before
            for row in range(len(block.values)):
                changes += _row(state, norms, block, row, *block.chosen(coarse))
        exact = np.flatnonzero(wanted & ~coarse)
        if exact.size:
            for rows in _pieces(norms, block, exact):
                changes += _stretch(state, norms, block, rows, exact)
        return sorted(changes, key=lambda change: (change.row, change.column))


DETECTOR = Frozen()


def _anew(state: FrozenState, at: npt.NDArray[np.intp]) -> None:
    """No stretch has begun in these columns."""
    state.value[at], state.since[at], state.known_us[at], state.begun_us[at] = np.nan, 0, 0, 0


def _row(state: FrozenState, norms: FrozenNorms, block: Block, row: int, chosen: Columns, at: Columns) -> list[Change]:
    """One row of the chosen columns. at: where they lie in the plant's arrays."""
    values, good, known = block.values[row, chosen], block.good[row, chosen], block.known[row, chosen]
    armed, ts, after_us = row_of(block.armed, row, chosen), row_of(block.ts, row, chosen), norms.after_us[at]
    value, since, known_us, begun_us = (of[at] for of in (state.value, state.since, state.known_us, state.begun_us))
    raised = state.raised[at]
    known_us += row_of(block.step_us, row, chosen) if known.all() else row_of(block.step_us, row, chosen) * known
    resolution = norms.resolution[at]
    changed = good & (~(np.abs(values - value) <= resolution) if resolution.any() else values != value)
    long = known_us - begun_us >= after_us
    asked = after_us != OFF
    rises = ~raised & good & ~changed & armed & long
    turned = rises | (raised & good & (changed | ~asked))
    hot = np.flatnonzero(turned)
    said = [
        _change(norms, row, column, bool(rises[i]), int(since[i]), int(known_us[i] - begun_us[i]))
        for column, i in zip(within(at, hot).tolist(), hot.tolist(), strict=True)
    ]
    if said:
        state.raised[at] = raised = raised ^ turned
    np.copyto(value, values, where=changed)
    np.copyto(since, ts, where=changed)
    np.copyto(begun_us, known_us, where=changed)
    if not isinstance(at, slice):
        state.value[at], state.since[at], state.known_us[at], state.begun_us[at] = value, since, known_us, begun_us
    idle = ~(armed & asked) & ~raised
    if idle.any():
        _anew(state, within(at, np.flatnonzero(idle)))
    return said


def _change(norms: FrozenNorms, row: int, column: int, rises: bool, since: int, run_us: int) -> Change:
    if not rises:
        return Change(row, column, KIND, 0, since)
    limit_s, stood_s = float(norms.after_us[column]) / 1e6, run_us / 1e6
    why = (("unchanged_s", stood_s),)
    return Change(row, column, KIND, int(norms.level[column]), since, limit=limit_s, why=why)


# --- many rows of one machine, columns without a resolution ----------------------------------------------------------


def _pieces(norms: FrozenNorms, block: Block, chosen: npt.NDArray[np.intp]) -> list[slice]:
    """The rows cut where an operating state has settled, and so that hardly a stretch can become too long in one piece."""
    rows, armed = len(block.values), block.armed[:, 0]
    passed_us = np.cumsum(block.step_us[:, 0])
    half_us = max(1, int(norms.after_us[block.plant_columns(chosen)].min()) // 2)
    cuts = {0, rows, *(np.flatnonzero(armed[1:] != armed[:-1]) + 1).tolist()}
    first = 0
    while first < rows:
        first = max(first + PIECE_LEAST, int(np.searchsorted(passed_us, passed_us[first] + half_us)))
        cuts.add(min(first, rows))
    return [slice(first, stop) for first, stop in pairwise(sorted(cuts))]


def _stretch(
    state: FrozenState, norms: FrozenNorms, block: Block, rows: slice, chosen: npt.NDArray[np.intp]
) -> list[Change]:
    """Rows that are all armed or all not.

    Almost every column moves and cannot become too long here: of those only the last change has to be found. The others
    are looked through row by row.
    """
    at = block.plant_columns(chosen)
    span_us = int(block.step_us[rows].sum())
    armed = bool(block.armed[rows.start if block.armed.shape[0] > 1 else 0, 0])
    simple = block.good[rows, chosen].all(axis=0) & block.known[rows, chosen].all(axis=0)
    simple &= ~state.raised[at] & (norms.after_us[at] != OFF)
    simple &= state.known_us[at] + span_us - state.begun_us[at] < norms.after_us[at]
    if simple.any():
        _last_change(state, block, rows, chosen[simple], at[simple], span_us)
        if not armed:
            _anew(state, at[simple])
    changes: list[Change] = []
    others = chosen[~simple]
    if others.size:
        for row in range(rows.start, rows.stop):
            changes += _row(state, norms, block, row, others, at[~simple])
    return changes


def _last_change(
    state: FrozenState, block: Block, rows: slice, chosen: npt.NDArray[np.intp], at: npt.NDArray[np.intp], span_us: int
) -> None:
    """Columns with a good reading in every row, from the last row back: what moves has soon been found."""
    passed_us = state.known_us[at] + span_us
    left_us = 0
    waiting = np.arange(chosen.size)
    for row in range(rows.stop - 1, rows.start - 1, -1):
        here = block.values[row, chosen[waiting]]
        before = block.values[row - 1, chosen[waiting]] if row > rows.start else state.value[at[waiting]]
        changed = here != before
        found = at[waiting[changed]]
        if found.size:
            state.value[found] = here[changed]
            state.since[found] = block.ts[row, 0]
            state.begun_us[found] = passed_us[waiting[changed]] - left_us
            waiting = waiting[~changed]
            if not waiting.size:
                break
        left_us += int(block.step_us[row, 0])
    state.known_us[at] = passed_us
