"""Norm limits with deadband and delays: high and low × warning and alarm, four limits a column in one kernel.

Rule 1: a run is counted in the time of its own rows; a bad row neither extends nor ends it (contract §6, "delays").
Rule 2: the state is integers and flags, so however the rows are cut into blocks the result is equal to the bit.

Almost all readings are inside of their band and nothing is pending: those columns are screened out by two comparisons,
and only the few that are outside, waiting or raised ("busy") are worked on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_agent.contract import Block, Bools, Change, Column, Floats, Ints, row_of

LIMITS = 4
NO_RUN = -1
KINDS = ("high", "low")
SIGN = np.array([[1.0], [1.0], [-1.0], [-1.0]])
"""Low limits are compared as -value > -limit: negation is exact, so one rule serves both sides."""


@dataclass(frozen=True, slots=True)
class LimitNorms:
    """The first four are (4, columns): high warning, high alarm, low warning, low alarm.

    limit: float64, +inf where none. Low limits stand negated, as do the values compared with them, so that "outside" is
    always `x > limit`. back: `x <= back` is the way back (limit - deadband). on_us, off_us: int64 delays.
    screen_low, screen_high: (columns,) values within them break none of the column's limits.
    """

    limit: Floats
    back: Floats
    on_us: Ints
    off_us: Ints
    screen_low: Floats
    screen_high: Floats


@dataclass(frozen=True, slots=True)
class LimitState:
    """One entry for each limit and column, changed in place by `step`.

    run_us: (4, columns) int64, length of the run that would raise (or, when raised, clear); NO_RUN: none.
    since: (4, columns) int64 UTC µs, first row of the run that raises or has raised. raised: (4, columns) bool.
    busy: (columns,) bool, any run or raised. level: (2, columns) uint8 of KINDS.
    start: (2, columns) int64 UTC µs, since of the deviation.
    """

    run_us: Ints
    since: Ints
    raised: Bools
    busy: Bools
    level: npt.NDArray[np.uint8]
    start: Ints


class Limits:
    """The detector of norm bands, see contract.Detector."""

    kinds: tuple[str, ...] = KINDS
    Settings = None

    def norms(self, columns: Sequence[Column]) -> LimitNorms:
        pairs = [[column.warning for column in columns], [column.alarm for column in columns]]
        high = np.array([[band.high for band in pair] for pair in pairs], dtype=np.float64)
        low = -np.array([[band.low for band in pair] for pair in pairs], dtype=np.float64)
        deadband = np.array([[band.deadband for band in pair] for pair in pairs] * 2, dtype=np.float64)
        limit = np.concatenate([high, low])
        return LimitNorms(
            limit=limit,
            back=limit - deadband,
            on_us=np.array([[band.on_us for band in pair] for pair in pairs] * 2, dtype=np.int64),
            off_us=np.array([[band.off_us for band in pair] for pair in pairs] * 2, dtype=np.int64),
            screen_low=-low.min(axis=0),
            screen_high=high.min(axis=0),
        )

    def start(self, columns: int) -> LimitState:
        return LimitState(
            run_us=np.full((LIMITS, columns), NO_RUN, dtype=np.int64),
            since=np.zeros((LIMITS, columns), dtype=np.int64),
            raised=np.zeros((LIMITS, columns), dtype=np.bool_),
            busy=np.zeros(columns, dtype=np.bool_),
            level=np.zeros((2, columns), dtype=np.uint8),
            start=np.zeros((2, columns), dtype=np.int64),
        )

    def step(self, state: LimitState, norms: LimitNorms, block: Block) -> list[Change]:
        low, high = norms.screen_low[block.columns], norms.screen_high[block.columns]
        leaves = block.known & ((block.values > high) | (block.values < low))
        rows = len(block.values)
        if rows == 1:
            hot = np.flatnonzero(leaves[0] | state.busy[block.columns])
            return _row(state, norms, block, 0, hot) if hot.size else []
        changes: list[Change] = []
        # A quiet stretch costs nothing: go from one row in which something leaves its band to the next.
        leaving = np.flatnonzero(leaves.any(axis=1))
        row = 0
        while row < rows:
            busy = state.busy[block.columns]
            if not busy.any():
                following = np.searchsorted(leaving, row)
                if following == leaving.size:
                    break
                row = int(leaving[following])
            hot = np.flatnonzero(leaves[row] | busy)
            if hot.size:
                changes += _row(state, norms, block, row, hot)
            row += 1
        return changes


DETECTOR = Limits()


def _row(state: LimitState, norms: LimitNorms, block: Block, row: int, hot: npt.NDArray[np.intp]) -> list[Change]:
    """One row of the hot columns. `hot` indexes the block's columns; `at` the plant's."""
    at = block.plant_columns(hot)
    known = block.known[row, hot]
    x = SIGN * block.values[row, hot]
    step_us, ts, armed = row_of(block.step_us, row, hot), row_of(block.ts, row, hot), row_of(block.armed, row, hot)
    raised, run = state.raised[:, at], state.run_us[:, at]

    towards = np.where(raised, x <= norms.back[:, at], x > norms.limit[:, at]) & (raised | armed)
    begins = known & towards & (run == NO_RUN)
    going = np.where(towards, np.where(run == NO_RUN, 0, run + step_us), NO_RUN)
    run = np.where(known, going, np.where(raised | armed, run, NO_RUN))
    delay = np.where(raised, norms.off_us[:, at], norms.on_us[:, at])
    ripe = known & (run != NO_RUN) & (run >= delay)

    since = np.where(begins & ~raised, ts, state.since[:, at])
    pending = raised | (run != NO_RUN)
    raised = raised ^ ripe
    run = np.where(ripe, NO_RUN, run)
    state.run_us[:, at], state.since[:, at], state.raised[:, at] = run, since, raised
    state.busy[at] = (raised | (run != NO_RUN)).any(axis=0)
    if not ripe.any():
        return []
    return _levels(state, row, at, raised, np.where(pending, since, np.iinfo(np.int64).max))


def _levels(state: LimitState, row: int, at: npt.NDArray[np.intp], raised: Bools, since: Ints) -> list[Change]:
    """The level of each kind is that of its worst raised limit; report where it changed."""
    level = np.where(raised[1::2], 2, raised[0::2]).astype(np.uint8)
    old = state.level[:, at]
    first = np.minimum(since[0::2], since[1::2])
    started = np.where((old == 0) & (level > 0), first, state.start[:, at])
    state.level[:, at], state.start[:, at] = level, started
    kinds, where = np.nonzero(level != old)
    return [
        Change(row, int(at[i]), KINDS[kind], int(level[kind, i]), int(started[kind, i]))
        for kind, i in zip(kinds.tolist(), where.tolist(), strict=True)
    ]
