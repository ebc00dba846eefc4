"""`health`: a line, or a part of one, is lost, a certificate ends soon, or the host fails (contract §6, the agent's own
warnings).

Rule 1: the value is why (a code of Quality, or contract.ENDING), 0 while all is well. Rule 2: a bad row (what is behind a
line that is lost as a whole is not known) neither extends nor ends the run, as with limits. Rule 3: what is said of a
certificate that stands is told again when it changes: it ends in 30 days now, or it is another one that ends first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.contract import ENDING, Block, Bools, Change, Codes, Column, Floats, Ints, row_of

KIND = "health"
NO_RUN = -1
LEVELS = np.array([0, 1, 1, 2, 2], dtype=np.uint8)
"""By the step of a certificate (contract.ENDING): a warning from 60 days on, an alarm from 7."""


@dataclass(frozen=True, slots=True)
class HealthNorms:
    """(columns,). health_us: int64, how long a line must be lost; -1: the column is no line. level: uint8, 1 or 2."""

    health_us: Ints
    level: Codes


@dataclass(frozen=True, slots=True)
class HealthState:
    """(columns,), changed in place. run_us: int64, how long it has been lost, NO_RUN: it is not, or it is raised.

    since: int64 UTC µs of the first row of the run. raised: bool. told: uint8, of certificates what was told last, else 0.
    """

    run_us: Ints
    since: Ints
    raised: Bools
    told: Codes


class Health:
    """The detector of lost lines and of certificates, see contract.Detector; it looks only at columns with a `health_us`."""

    kinds: tuple[str, ...] = (KIND,)
    Settings = None

    def norms(self, columns: Sequence[Column]) -> HealthNorms:
        return HealthNorms(
            np.array([column.health_us for column in columns], dtype=np.int64),
            np.array([column.level for column in columns], dtype=np.uint8),
        )

    def start(self, columns: int) -> HealthState:
        return HealthState(
            np.full(columns, NO_RUN, dtype=np.int64),
            np.zeros(columns, dtype=np.int64),
            np.zeros(columns, dtype=np.bool_),
            np.zeros(columns, dtype=np.uint8),
        )

    def step(self, state: HealthState, norms: HealthNorms, block: Block) -> list[Change]:
        watched = np.flatnonzero(norms.health_us[block.columns] >= 0)
        if not watched.size:
            return []
        at = block.plant_columns(watched)
        known, lost = block.known[:, watched], block.values[:, watched] != 0
        said = _of_certificates(block.values[:, watched], known)
        changes: list[Change] = []
        for row in range(len(known)):
            raised, run = state.raised[at], state.run_us[at]
            step_us, ts = row_of(block.step_us, row, watched), row_of(block.ts, row, watched)
            out = known[row] & lost[row]
            begins = out & ~raised & (run == NO_RUN)
            run = np.where(out & ~raised, np.where(begins, 0, run + step_us), np.where(known[row], NO_RUN, run))
            since = np.where(begins, ts, state.since[at])
            rises, ends = (run != NO_RUN) & out & (run >= norms.health_us[at]), raised & known[row] & ~lost[row]
            before, now = state.told[at], said[row]
            stands = raised & out & (now != before)
            state.raised[at], state.since[at] = (raised | rises) & ~ends, since
            state.run_us[at] = np.where(rises, NO_RUN, run)
            state.told[at] = np.where(rises | stands, now, before)
            for i in np.flatnonzero(rises | stands | ends).tolist():
                level = 0 if ends[i] else int(LEVELS[now[i] // ENDING] or norms.level[at[i]])
                again = bool(stands[i]) and level == LEVELS[before[i] // ENDING]
                changes.append(Change(row, int(at[i]), KIND, level, int(since[i]), again))
        return changes


DETECTOR = Health()


def _of_certificates(values: Floats, known: Bools) -> Codes:
    """Each value that speaks of a certificate, as it is told; else 0. values: NaN where not known."""
    ends = known & (values >= ENDING)
    return np.where(ends, np.minimum(np.where(ends, values, 0), LEVELS.size * ENDING - 1), 0).astype(np.uint8)
