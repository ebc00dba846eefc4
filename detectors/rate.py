"""`rate`: a value that changes faster than its norm, up or down, measured as a robust slope over a window.

Rule 1: the slope is that of Theil and Sen (the median of the slopes between all pairs of points; P. K. Sen, J. Am. Stat.
Assoc. 63, 1968) through the means of up to eight equal parts of the window: two wild parts of eight do not move it.
Rule 2: it is judged when a part is full, so that a change is found an eighth of the window late at most. Rule 3: what an
operating state's change does to a value is no rate: the window begins anew with each state, and after it has settled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from detectors import buckets
from edge_agent.contract import Block, Bools, Change, Codes, Column, Duration, Floats, Ints, WrongKey, duration_us

KIND = "rate"
PARTS = 8
PARTS_NEEDED = 0.75
"""Of the window's parts so many must have readings."""
BACK = 0.9
"""It is back in the norm at this share of the limit: one that lies on the limit shall not raise and clear in turn."""
FIRST, SECOND = np.triu_indices(PARTS, 1)


class Settings(BaseModel):
    """How fast the value may change, up or down."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    max: float = Field(gt=0, allow_inf_nan=False, description="the largest change, in the signal's unit")
    per: Annotated[int, Duration("1s", "365d")] = Field(
        duration_us("1min"), description="in this time", json_schema_extra={"default": "1min"}
    )
    over: Annotated[int, Duration("1s", "365d")] = Field(
        duration_us("5min"), description="measured over this time", json_schema_extra={"default": "5min"}
    )


@dataclass(frozen=True, slots=True)
class RateNorms:
    """(columns,). limit: float64 in the signal's unit per per_us, inf where nobody asks. per_us, part_us: int64.

    parts: int64, 2 to PARTS of part_us are the window. level: uint8, 1 or 2.
    """

    limit: Floats
    per_us: Ints
    part_us: Ints
    parts: Ints
    level: Codes


@dataclass(frozen=True, slots=True)
class RateState:
    """Changed in place. (columns,): see buckets.Buckets; part_us: int64, the parts' length for which the rest holds;
    raised: bool; since: int64 UTC µs.

    (PARTS, columns), a ring by part's number: numbers int64 (NONE: empty), means float64, times int64 µs of the column's time.
    """

    number: Ints
    into_us: Ints
    count: Ints
    total: Floats
    times_us: Ints
    part_us: Ints
    numbers: Ints
    means: Floats
    middles_us: Ints
    raised: Bools
    since: Ints


class Rate:
    """The detector of what changes too fast, see contract.Detector."""

    kinds: tuple[str, ...] = (KIND,)
    Settings = Settings

    def check(self, column: Column) -> None:
        if column.settings.over < 2 * column.every_us:
            raise WrongKey("over", "holds fewer than two readings")

    def norms(self, columns: Sequence[Column]) -> RateNorms:
        asked = [column.settings for column in columns]
        over_us = np.array([PARTS if each is None else each.over for each in asked], dtype=np.int64)
        every_us = np.array([column.every_us for column in columns], dtype=np.int64)
        part_us = np.maximum(-(-over_us // PARTS), np.minimum(every_us, over_us // 2))
        return RateNorms(
            limit=np.array([np.inf if each is None else each.max for each in asked], dtype=np.float64),
            per_us=np.array([1 if each is None else each.per for each in asked], dtype=np.int64),
            part_us=part_us,
            parts=np.clip(over_us // part_us, 2, PARTS),
            level=np.array([column.level for column in columns], dtype=np.uint8),
        )

    def start(self, columns: int) -> RateState:
        def whole(*shape: int) -> Ints:
            return np.zeros(shape, dtype=np.int64)

        return RateState(
            number=np.full(columns, buckets.NONE, dtype=np.int64),
            into_us=whole(columns),
            count=whole(columns),
            total=np.zeros(columns),
            times_us=whole(columns),
            part_us=whole(columns),
            numbers=np.full((PARTS, columns), buckets.NONE, dtype=np.int64),
            means=np.zeros((PARTS, columns)),
            middles_us=whole(PARTS, columns),
            raised=np.zeros(columns, dtype=np.bool_),
            since=whole(columns),
        )

    def step(self, state: RateState, norms: RateNorms, block: Block) -> list[Change]:
        columns = block.columns
        wanted = np.isfinite(norms.limit[columns]) | state.raised[columns]
        if not wanted.any():
            return []
        new = block.entered & wanted
        if new.any():
            _anew(state, block.plant_columns(np.flatnonzero(new)))
        other = wanted & (state.part_us[columns] != norms.part_us[columns])
        if (
            other.any()
        ):  # another window, by the operating state or by a new configuration: its parts are counted from here
            at = block.plant_columns(np.flatnonzero(other))
            _anew(state, at)
            buckets.begin(state, at)
            state.part_us[at] = norms.part_us[at]
        changes: list[Change] = []
        for closed in buckets.gather(state, norms.part_us, block, wanted):
            slot = closed.number % PARTS
            state.numbers[slot, closed.columns] = closed.number
            state.means[slot, closed.columns] = closed.mean
            state.middles_us[slot, closed.columns] = closed.at_us
            changes += _judge(state, norms, block, closed)
        return sorted(changes, key=lambda change: (change.row, change.column))


DETECTOR = Rate()


def _anew(state: RateState, at: npt.NDArray[np.intp]) -> None:
    """The window of these columns begins anew."""
    buckets.empty(state, at)
    state.numbers[:, at] = buckets.NONE


def _judge(state: RateState, norms: RateNorms, block: Block, closed: buckets.Closed) -> list[Change]:
    at = closed.columns
    within = (state.numbers[:, at] > closed.number - norms.parts[at]) & (state.numbers[:, at] != buckets.NONE)
    enough = within.sum(axis=0) >= np.ceil(PARTS_NEEDED * norms.parts[at])
    slope = slope_of(state.middles_us[:, at], state.means[:, at], within) * norms.per_us[at]
    size, raised = np.abs(slope), state.raised[at]
    stands = np.where(enough, np.where(raised, size > BACK * norms.limit[at], size > norms.limit[at]), raised)
    turned = np.flatnonzero(stands != raised)
    state.raised[at] = stands
    changes = []
    for i in turned.tolist():
        column, row = int(at[i]), closed.row
        if stands[i]:
            state.since[column] = _ts(block, row, column)
        changes.append(
            Change(
                row,
                column,
                KIND,
                int(norms.level[column]) if stands[i] else 0,
                int(state.since[column]),
                limit=float(norms.limit[column]) if np.isfinite(norms.limit[column]) else None,
                why=(("rate", float(slope[i])), ("per_s", float(norms.per_us[column]) / 1e6)),
            )
        )
    return changes


def slope_of(times_us: Ints, values: Floats, within: Bools) -> Floats:
    """The slope of Theil and Sen for each column: the median over all pairs of points within.

    times_us, values, within: (PARTS, columns), times distinct where within. Returns (columns,) values per µs; NaN where
    fewer than two points are.
    """
    both = within[FIRST] & within[SECOND]
    span_us = np.where(both, times_us[SECOND] - times_us[FIRST], 1)
    slopes = np.sort(np.where(both, (values[SECOND] - values[FIRST]) / span_us, np.nan), axis=0)
    pairs = both.sum(axis=0)
    low, high = np.maximum(pairs - 1, 0) // 2, pairs // 2
    columns = np.arange(values.shape[1])
    middle: Floats = (slopes[low, columns] + slopes[np.minimum(high, len(slopes) - 1), columns]) / 2.0
    return middle


def _ts(block: Block, row: int, column: int) -> int:
    """UTC µs of a row; column: of the plant's arrays."""
    line = block.ts[row if block.ts.shape[0] > 1 else 0]
    if line.size == 1:
        return int(line[0])
    columns = block.columns
    return int(
        line[column - int(columns.start)] if isinstance(columns, slice) else line[np.flatnonzero(columns == column)[0]]
    )
