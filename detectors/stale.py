"""`stale`: no good reading for too long. Silence never looks like health, so this one cannot be switched off.

Rule 1: it is raised by time and ended by a good reading alone, never by a clock that starts anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.contract import Block, Bools, Change, Codes, Column, Ints

KIND = "stale"


@dataclass(frozen=True, slots=True)
class StaleNorms:
    """level: (columns,) uint8, 1 or 2. How long is too long is the judge's own: it marks what is `late`."""

    level: Codes


@dataclass(frozen=True, slots=True)
class StaleState:
    """raised: (columns,) bool, changed in place. since: (columns,) int64 UTC µs of the last good reading before it."""

    raised: Bools
    since: Ints


class Stale:
    """The detector of silence, see contract.Detector."""

    kinds: tuple[str, ...] = (KIND,)
    Settings = None

    def norms(self, columns: Sequence[Column]) -> StaleNorms:
        return StaleNorms(np.array([column.level for column in columns], dtype=np.uint8))

    def start(self, columns: int) -> StaleState:
        return StaleState(np.zeros(columns, dtype=np.bool_), np.zeros(columns, dtype=np.int64))

    def step(self, state: StaleState, norms: StaleNorms, block: Block) -> list[Change]:
        touched = np.flatnonzero((block.late & block.armed).any(axis=0) | state.raised[block.columns])
        if not touched.size:
            return []
        at = block.plant_columns(touched)
        late = (block.late & block.armed)[:, touched]
        good, seen = block.good[:, touched], block.seen_ts[:, touched]
        raised, since = state.raised[at], state.since[at]
        changes: list[Change] = []
        for row in range(len(late)):
            rises, ends = ~raised & late[row], raised & good[row]
            if not (rises.any() or ends.any()):
                continue
            since = np.where(rises, seen[row], since)
            raised = (raised | rises) & ~ends
            for i in np.flatnonzero(rises | ends).tolist():
                column = int(at[i])
                level = int(norms.level[column]) if rises[i] else 0
                changes.append(Change(row, column, KIND, level, int(since[i])))
        state.raised[at], state.since[at] = raised, since
        return changes


DETECTOR = Stale()
