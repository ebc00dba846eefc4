"""The nouns and promises that a driver or a detector may import, and nothing else of the agent.

Rule 1: a reading is a value, a time and a quality; a bad reading is NaN with its reason, never a number.
Rule 2: all times are int64 microseconds; `t` is the agent's own clock, `ts` is UTC for people.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

SECOND_US = 1_000_000
CODE_MASK = 0x0F
"""The low four bits of a quality are the contract's code (also in Parquet); bit 4 says that it may be judged."""
VOUCHED = 0x10


class Quality(IntEnum):
    """Trust in one value. `q & CODE_MASK` is the code that leaves the agent."""

    GOOD = 0
    HOLD = 1
    """Nothing new and nobody vouches for it: the last reading stands, with its quality."""
    UNCERTAIN = 2
    TIMEOUT = 3
    DISCONNECTED = 4
    REFUSED = 5
    DEVICE_FAILURE = 6
    SENSOR_FAILURE = 7
    OUT_OF_RANGE = 8
    NOT_A_NUMBER = 9
    PROTOCOL = 10
    PRECISION = 11
    MISSING = 12
    RESTART = 13
    OTHER = 14
    CONFIRMED = HOLD | VOUCHED
    """A HOLD that the driver vouches for (an OPC UA keep-alive): the value is known to be unchanged."""
    CLOCK = UNCERTAIN | VOUCHED
    """UNCERTAIN because the source's clock is not sane; judged like GOOD."""


REASONS = {code: code.name.lower() for code in Quality}
"""The words of the contract for each quality (`timeout`, `disconnected`, …; `clock` for CLOCK)."""


class DeviceSilent(Exception):
    """The device or the line to it does not answer: try again."""


class DeviceRefused(Exception):
    """The device answers that it will not: a person must mend the map or the credentials."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows of one machine, cut anywhere along time.

    t, ts: (rows,) int64 µs, the agent's own clock (never decreasing) and UTC.
    values: (rows, signals) float64, engineering units; NaN where the quality is bad or HOLD of nothing.
    quality: (rows, signals) uint8, see Quality. Columns: every signal of the machine, in the order of the configuration;
    formula columns are HOLD until the judge fills them.
    at: (rows, signals) int64 UTC µs of each value, or None when no fresh value is more than 1 s from its row's ts.
    tick: True when no device spoke (rows that only let time pass).
    """

    machine: str
    t: Ints
    ts: Ints
    values: Floats
    quality: Codes
    at: Ints | None = None
    tick: bool = False


@dataclass(frozen=True, slots=True)
class Readings:
    """What one `Session.read` brought: one entry for each point asked for, in the order of `due`.

    values: (due,) float64, raw device values before scale and offset, NaN where bad. quality: (due,) uint8.
    ts: (due,) int64 UTC µs, when each answer was complete or the source's own stamp.
    """

    values: Floats
    quality: Codes
    ts: Ints


@dataclass(frozen=True, slots=True)
class Point:
    """One signal as its driver sees it: `settings` is an instance of the driver's `Address` model."""

    name: str
    settings: Any


class Clock(Protocol):
    """Time is a value: drivers take it from here, never from the operating system."""

    def monotonic_us(self) -> int:
        """Never steps; only differences mean anything."""
        ...

    def wall_us(self) -> int:
        """UTC; may step at any moment."""
        ...


class Session(Protocol):
    """An open line to a device. One task owns it and awaits one call at a time."""

    async def read(self, due: Ints) -> Readings:
        """Read the points with these indices (ascending; into the `points` that `open` was given), once.

        The caller bounds it with a timeout and may cancel it; a cancelled session is closed and never used again.
        A failure of single points (a unit, a register) is a BAD quality of those; raises DeviceSilent when the whole line
        is down and DeviceRefused when a person must act. A driver that pushes (subscriptions) answers here with HOLD or
        CONFIRMED for points without news.
        """
        ...

    def counters(self) -> dict[str, int | float]:
        """Requests, timeouts and whatever else the health topic should show; cheap."""
        ...


class Driver(Protocol):
    """A kind of connection: two settings models and a way to open it. Registered as an entry point `edge_agent.drivers`.

    `Connection` holds the keys of `connections.<name>` that are its own (all but `driver`); `Address` those of a signal
    that has an `address`, together with what it inherits from machine and connection (`inherited`). A validator of
    either raises ValueError with words for the person who wrote the file.
    """

    Connection: type[BaseModel]
    Address: type[BaseModel]
    inherited: frozenset[str]
    """Keys that may also stand at the connection or the machine and reach `Address` from there (`unit`, `word_order`…)."""

    def open(
        self, name: str, connection: Any, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        """Connect and yield a session. Raises DeviceSilent or DeviceRefused, nothing else; leaves nothing behind."""
        ...
