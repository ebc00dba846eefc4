"""Blocks for tests of detectors, made of rows in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isnan, nan
from typing import Any

import numpy as np
from hypothesis import strategies as st

from edge_agent.contract import Band, Block, Change, Column, Detector

SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND
NO_BAND = Band(-inf, inf, 0.0, 0, 0)


@dataclass(frozen=True)
class Cell:
    """What one signal says in one row: a new reading, the old one confirmed, nothing, or a bad reading."""

    what: str
    value: float = nan


@dataclass(frozen=True)
class Row:
    """step_us: since the row before. armed: False while the operating state settles. entered: it is another one."""

    step_us: int
    cells: Sequence[Cell]
    armed: bool = True
    entered: bool = False


@dataclass
class Taken:
    """Rows as a twin sees them: what is held, and whether it may be judged."""

    rows: Sequence[Row]
    ts: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    known: list[list[bool]] = field(default_factory=list)
    good: list[list[bool]] = field(default_factory=list)
    fresh: list[list[bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        held = [nan] * (len(self.rows[0].cells) if self.rows else 0)
        ts = T0
        for row in self.rows:
            ts += row.step_us
            held = [
                {"new": cell.value, "bad": nan}.get(cell.what, old) for cell, old in zip(row.cells, held, strict=True)
            ]
            self.ts.append(ts)
            self.values.append(held)
            self.known.append([not isnan(value) for value in held])
            self.fresh.append([cell.what == "new" for cell in row.cells])
            self.good.append(
                [
                    cell.what == "new" or (cell.what == "same" and not isnan(value))
                    for cell, value in zip(row.cells, held, strict=True)
                ]
            )


def column(
    settings: Any, every_us: int = SECOND, level: int = 1, warning: Band = NO_BAND, alarm: Band = NO_BAND
) -> Column:
    return Column(every_us, warning, alarm, level, 10 * SECOND, -1, settings)


def changes(detector: Detector, columns: Sequence[Column], rows: Sequence[Row], size: int) -> list[Change]:
    """What the detector says of these rows, in blocks of at most so many."""
    taken, state, norms = Taken(rows), detector.start(len(columns)), detector.norms(columns)
    ends = {0, len(rows), *range(0, len(rows), size), *(i for i, row in enumerate(rows) if row.entered)}
    found = []
    for first, stop in pairwise(sorted(ends)):
        block = _block(taken, rows, slice(first, stop), len(columns))
        found += [(first, change) for change in detector.step(state, norms, block)]
    return [Change(first + c.row, c.column, c.kind, c.level, c.since, c.again, c.limit, c.why) for first, c in found]


def _block(taken: Taken, rows: Sequence[Row], its: slice, width: int) -> Block:
    known = np.array(taken.known[its], dtype=np.bool_)
    good = np.array(taken.good[its], dtype=np.bool_)
    ts = np.array(taken.ts[its], dtype=np.int64)[:, None]
    return Block(
        columns=slice(0, width),
        values=np.array(taken.values[its], dtype=np.float64),
        known=known,
        good=good,
        fresh=np.array(taken.fresh[its], dtype=np.bool_),
        late=np.zeros_like(known),
        seen_ts=np.broadcast_to(ts, known.shape),
        step_us=np.array([row.step_us for row in rows[its]], dtype=np.int64)[:, None],
        ts=ts,
        armed=np.array([row.armed for row in rows[its]], dtype=np.bool_)[:, None],
        entered=np.full(width, rows[its.start].entered),
    )


def story(values: Sequence[float | str | None], step_s: float = 1.0) -> list[Row]:
    """One signal: a number is a new reading, None a bad one, "hold" and "same" as in Cell."""

    def cell(value: float | str | None) -> Cell:
        if value is None:
            return Cell("bad")
        return Cell(value) if isinstance(value, str) else Cell("new", float(value))

    return [Row(round(step_s * SECOND), [cell(value)]) for value in values]


def rows(width: int, values: st.SearchStrategy[float], count: int = 40) -> st.SearchStrategy[list[Row]]:
    """Rows with gaps, equal times, bad readings, HOLD, operating states and their settling."""
    cell = st.builds(Cell, st.sampled_from(["new"] * 6 + ["same", "hold", "bad"]), values)
    one = st.builds(
        Row,
        st.sampled_from([0, SECOND // 2, SECOND, SECOND, SECOND, 2 * SECOND, 9 * SECOND]),
        st.lists(cell, min_size=width, max_size=width),
        st.sampled_from([True] * 7 + [False]),
        st.sampled_from([False] * 9 + [True]),
    )
    return st.lists(one, max_size=count)
