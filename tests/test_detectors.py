"""Every detector keeps the promises of all detectors; a suite that finds nothing wrong must be able to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from edge_agent import plugins
from edge_agent.contract import Block, Change, Column, Floats, Ints
from edge_agent.testing import check_detector

SETTINGS: dict[str, list[Any]] = {
    "frozen": ["2s", {"after": "6s", "resolution": 0.6}, {"after": "3s", "resolution": 0.1}],
    "rate": [
        {"max": 1.0, "per": "1s", "over": "4s"},
        {"max": 0.2, "per": "1s", "over": "16s"},
        {"max": 40.0},
        {"max": 0.05, "per": "1s", "over": "100s"},
    ],
}


@pytest.mark.parametrize("name", plugins.detectors())
@pytest.mark.parametrize("seed", range(3))
def test_a_detector_keeps_the_promises_of_all_detectors(name: str, seed: int) -> None:
    check_detector(plugins.detectors()[name], SETTINGS.get(name, []), seed)


# --- what the suite must find -----------------------------------------------------------------------------------------


class Settings(BaseModel):
    """Nothing to set."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Nothing:
    """(columns,)"""

    asked: Ints


@dataclass(frozen=True, slots=True)
class Above:
    """(columns,)"""

    mean: Floats
    raised: Ints


class Mean:
    """Above the mean of all readings so far by 1: as it should be."""

    kinds = ("mean",)
    Settings = Settings

    def norms(self, columns: Sequence[Column]) -> Nothing:
        return Nothing(np.array([column.settings is not None for column in columns], dtype=np.int64))

    def start(self, columns: int) -> Above:
        return Above(np.zeros(columns), np.zeros(columns, dtype=np.int64))

    def step(self, state: Above, norms: Nothing, block: Block) -> list[Change]:
        found = []
        for row in range(len(block.values)):
            fresh = block.fresh[row] & (norms.asked > 0)
            value = np.where(fresh, block.values[row], 0.0)
            state.mean[:] = np.where(fresh, self.mean(state.mean, value, block, row), state.mean)
            now = np.where(fresh, value > state.mean + 0.3, state.raised).astype(np.int64)
            found += [
                Change(row, int(i), self.kinds[0], int(now[i]), int(block.ts[row, 0]))
                for i in np.flatnonzero(now != state.raised)
            ]
            state.raised[:] = now
        return found

    def mean(self, before: Floats, value: Floats, _block: Block, _row: int) -> Floats:
        return before * 0.9 + value * 0.1


class LooksAhead(Mean):
    """Takes the mean of the block, which is another one when the rows are cut elsewhere."""

    def mean(self, before: Floats, value: Floats, block: Block, _row: int) -> Floats:
        known = np.where(block.known, block.values, 0.0)
        mean: Floats = before * 0.9 + known.mean(axis=0) * 0.1 + value * 0
        return mean


class LooksBeside(Mean):
    """Takes the mean of its neighbours, which are others when columns are stacked in another way."""

    def mean(self, before: Floats, value: Floats, _block: Block, _row: int) -> Floats:
        return before * 0.9 + np.full_like(value, value.mean()) * 0.1


class SaysItAgain(Mean):
    """Tells with each row what has not changed."""

    def step(self, state: Above, norms: Nothing, block: Block) -> list[Change]:
        found = super().step(state, norms, block)
        return [each for change in found for each in (change, change)]


class ChangesItsNorms(Mean):
    """Keeps its state in the norms."""

    def step(self, state: Above, norms: Nothing, block: Block) -> list[Change]:
        found = super().step(state, norms, block)
        norms.asked[:] = 0
        return found


class ForgetsAnArray(Mean):
    """Has a state that is no array of columns."""

    def start(self, columns: int) -> Above:
        return replace(super().start(columns), mean=np.zeros(1 + columns))


class AnyKey(Mean):
    """Takes keys that nobody knows."""

    class Settings(BaseModel):
        """Nothing to set."""


class AnotherKind(Mean):
    """Finds what it did not announce."""

    def step(self, state: Above, norms: Nothing, block: Block) -> list[Change]:
        return [replace(change, kind="other") for change in super().step(state, norms, block)]


def test_the_suite_has_nothing_against_a_detector_that_is_right() -> None:
    check_detector(Mean(), [True])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (LooksAhead, "after all rows|cut into pieces"),
        (LooksBeside, "column by column"),
        (SaysItAgain, "nothing changed"),
        (ChangesItsNorms, "norms are not changed"),
        (ForgetsAnArray, "the last axis"),
        (AnyKey, "a key that nobody knows"),
        (AnotherKind, "one of its kinds"),
    ],
)
def test_the_suite_finds_a_detector_that_is_wrong(wrong: type[Mean], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_detector(wrong(), [True])
