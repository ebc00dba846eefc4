"""This detector's own tests, and the promises of all detectors."""

import numpy as np
from short_cycling import DETECTOR, Settings

from edge_agent.contract import Band, Block, Column
from edge_agent.testing import check_detector

SECOND = 1_000_000


def test_it_keeps_the_promises_of_all_detectors() -> None:
    check_detector(DETECTOR, [2, {"max": 1, "per": "1min", "above": 0.0}, {"max": 5, "above": -1.0}])


def raised(values: list[float], most: int) -> list[tuple[int, int]]:
    """(minute, level) of each change, a reading a minute, `most` starts an hour."""
    free = Band(-np.inf, np.inf, 0.0, 0, 0)
    norms = DETECTOR.norms([Column(60 * SECOND, free, free, 1, 180 * SECOND, settings=Settings(max=most))])
    taken = np.array(values)[:, None]
    ts = np.arange(len(values), dtype=np.int64)[:, None] * 60 * SECOND
    known = ~np.isnan(taken)
    block = Block(
        slice(0, 1), taken, known, known, known, ~known, ts, np.full_like(ts, 60 * SECOND), ts, np.ones_like(known),
        np.zeros(1, dtype=np.bool_),
    )  # fmt: skip
    return [(change.row, change.level) for change in DETECTOR.step(DETECTOR.start(1), norms, block)]


def test_one_start_too_many_in_an_hour_is_told_and_ends_when_it_is_an_hour_ago() -> None:
    """Starts at minutes 1, 11, 21, 31: the fourth is one too many until the first is an hour ago."""
    values = [0.0, 1.0, *([0.0] * 9 + [1.0]) * 3, *[1.0] * 60]
    assert raised(values, 3) == [(31, 1), (61, 0)]
    assert raised(values, 4) == []


def test_what_runs_at_the_first_reading_or_after_bad_ones_has_not_started() -> None:
    assert raised([1.0, np.nan, 1.0, np.nan, 0.0, np.nan, 1.0, 1.0], 1) == []
