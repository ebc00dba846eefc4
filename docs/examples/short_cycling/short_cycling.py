"""`starts`: a machine that starts too often. Motors and compressors have a number of starts an hour that they stand.

Rule 1: a start is a fresh reading above `above` whose predecessor was not; the first reading of all is none. Rule 2: what
happens in bad readings is not known: neither the fall nor the start in them is counted. Rule 3: times are whole µs of the
column's own time, so however the rows are cut the count is equal to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edge_agent.contract import Block, Bools, Change, Codes, Column, Duration, Floats, Ints, duration_us, row_of

KIND = "starts"
MOST = 120
"""The largest `max`: of so many starts the time is kept."""
NEVER = np.iinfo(np.int64).min // 2


class Settings(BaseModel):
    """How often it may start; a number alone is the most in an hour."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    short: ClassVar[str] = "max"
    max: int = Field(ge=1, lt=MOST, description="the most starts")
    per: Annotated[int, Duration("1min", "7d")] = Field(
        duration_us("1h"), description="in this time", json_schema_extra={"default": "1h"}
    )
    above: float = Field(0.5, allow_inf_nan=False, description="it runs above this value, in the signal's unit")


@dataclass(frozen=True, slots=True)
class Norms:
    """(columns,). most: int64 starts, 0 where nobody asks. per_us: int64. above: float64, the signal's unit. level: uint8."""

    most: Ints
    per_us: Ints
    above: Floats
    level: Codes


@dataclass(frozen=True, slots=True)
class State:
    """(columns,), changed in place. passed_us: int64, the column's own time. idle: bool, the last reading was not above.

    starts_us: (MOST, columns) int64, when it started, the newest first. raised: bool. since: int64 UTC µs.
    """

    passed_us: Ints
    idle: Bools
    starts_us: Ints
    raised: Bools
    since: Ints


class Starts:
    """See edge_agent.contract.Detector."""

    kinds: tuple[str, ...] = (KIND,)
    Settings = Settings

    def norms(self, columns: Sequence[Column]) -> Norms:
        asked: list[Any] = [column.settings for column in columns]
        return Norms(
            np.array([0 if each is None else each.max for each in asked], dtype=np.int64),
            np.array([0 if each is None else each.per for each in asked], dtype=np.int64),
            np.array([0.0 if each is None else each.above for each in asked], dtype=np.float64),
            np.array([column.level for column in columns], dtype=np.uint8),
        )

    def start(self, columns: int) -> State:
        return State(
            np.zeros(columns, dtype=np.int64),
            np.zeros(columns, dtype=np.bool_),
            np.full((MOST, columns), NEVER, dtype=np.int64),
            np.zeros(columns, dtype=np.bool_),
            np.zeros(columns, dtype=np.int64),
        )

    def step(self, state: State, norms: Norms, block: Block) -> list[Change]:
        return [change for row in range(len(block.values)) for change in _row(state, norms, block, row)]


DETECTOR = Starts()


def _row(state: State, norms: Norms, block: Block, row: int) -> list[Change]:
    """Time passes for all columns; looked at are those that ask, and those of which something stands from when they did."""
    chosen = np.flatnonzero((norms.most[block.columns] > 0) | state.raised[block.columns])
    at = block.plant_columns(chosen)
    state.passed_us[block.columns] += row_of(block.step_us, row, slice(None))
    passed_us = state.passed_us[at]
    known, fresh = block.known[row, chosen], block.fresh[row, chosen]
    runs = known & (block.values[row, chosen] > norms.above[at])
    begins = fresh & runs & state.idle[at]
    state.idle[at] = known & ~runs
    its = at[begins]
    state.starts_us[1:, its] = state.starts_us[:-1, its]
    state.starts_us[0, its] = state.passed_us[its]
    # One more than the most lie within `per` for as long as the oldest of them does.
    often = (norms.most[at] > 0) & (passed_us - state.starts_us[norms.most[at], at] < norms.per_us[at])
    raised = state.raised[at]
    turned = (often & begins & ~raised) | (raised & ~often & known)
    state.raised[at] = raised ^ turned
    state.since[at] = np.where(turned & often, row_of(block.ts, row, chosen), state.since[at])
    return [_change(norms, row, int(at[i]), bool(often[i]), int(state.since[at[i]])) for i in np.flatnonzero(turned)]


def _change(norms: Norms, row: int, column: int, raised: bool, since: int) -> Change:
    level = int(norms.level[column]) if raised else 0
    why = (("starts", float(norms.most[column] + 1)), ("per_s", float(norms.per_us[column]) / 1e6)) if raised else ()
    return Change(row, column, KIND, level, since, limit=float(norms.most[column]), why=why)
