"""`health`: a line, or a part of one, is lost. One warning for all signals behind it (contract §6, the agent's own warnings).

Rule 1: the value is why (a code of Quality), 0 while all is well. Rule 2: a bad row (what is behind a line that is lost as
a whole is not known) neither extends nor ends the run, as with limits.
"""

from dataclasses import dataclass

import numpy as np

from edge_agent.contract import Block, Bools, Change, Ints, Norms

KIND = "health"
NO_RUN = -1


@dataclass(frozen=True, slots=True)
class HealthState:
    """(columns,), changed in place. run_us: int64, how long it has been lost, NO_RUN: it is not, or it is raised.

    since: int64 UTC µs of the first row of the run. raised: bool.
    """

    run_us: Ints
    since: Ints
    raised: Bools


class Health:
    """The detector of lost lines, see contract.Detector; it looks only at columns with a `health_us`."""

    kinds: tuple[str, ...] = (KIND,)

    def start(self, columns: int) -> HealthState:
        return HealthState(
            np.full(columns, NO_RUN, dtype=np.int64),
            np.zeros(columns, dtype=np.int64),
            np.zeros(columns, dtype=np.bool_),
        )

    def step(self, state: HealthState, norms: Norms, block: Block) -> list[Change]:
        watched = np.flatnonzero(norms.health_us[block.columns] >= 0)
        if not watched.size:
            return []
        at = block.plant_columns(watched)
        known, lost = block.known[:, watched], block.values[:, watched] != 0
        changes: list[Change] = []
        for row in range(len(known)):
            raised, run = state.raised[at], state.run_us[at]
            step_us, ts = _cut(block.step_us, row, watched), _cut(block.ts, row, watched)
            out = known[row] & lost[row]
            begins = out & ~raised & (run == NO_RUN)
            run = np.where(out & ~raised, np.where(begins, 0, run + step_us), np.where(known[row], NO_RUN, run))
            since = np.where(begins, ts, state.since[at])
            rises, ends = (run != NO_RUN) & out & (run >= norms.health_us[at]), raised & known[row] & ~lost[row]
            state.raised[at], state.since[at] = (raised | rises) & ~ends, since
            state.run_us[at] = np.where(rises, NO_RUN, run)
            for i in np.flatnonzero(rises | ends).tolist():
                column = int(at[i])
                changes.append(Change(row, column, KIND, int(norms.level[column]) if rises[i] else 0, int(since[i])))
        return changes


DETECTOR = Health()


def _cut(array: Ints, row: int, chosen: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Ints:
    """One row of a broadcastable array, for the chosen columns."""
    line: Ints = array[row if array.shape[0] > 1 else 0]
    return line[chosen] if line.shape[0] > 1 else np.broadcast_to(line, chosen.shape)
