"""What is journalled and published: judged frames, events of warnings, commands of people, gaps.

Rule 1: these nouns carry no behaviour; whoever holds one may keep it, nobody changes it.
Rule 2: only what is rare is an object (an event, a command, a gap); readings stay arrays.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.contract import Bools, Frame


class Severity(StrEnum):
    """How bad a deviation is; write "severity warning" where the level is meant."""

    WARNING = "warning"
    ALARM = "alarm"


class Kind(StrEnum):
    """The rule that found a deviation (contract §2). Detectors of others have kinds of their own: any other text."""

    HIGH = "high"
    LOW = "low"
    RATE = "rate"
    FROZEN = "frozen"
    STALE = "stale"
    HEALTH = "health"


class WarningState(StrEnum):
    """Where a warning is in its life (ISA-18.2)."""

    NORMAL = "normal"
    UNACKNOWLEDGED = "unacknowledged"
    ACKNOWLEDGED = "acknowledged"
    RETURNED_UNACKNOWLEDGED = "returned_unacknowledged"


class EventKind(StrEnum):
    """A step in the life of a warning."""

    RAISED = "raised"
    ESCALATED = "escalated"
    DEESCALATED = "deescalated"
    CLEARED = "cleared"
    ACKNOWLEDGED = "acknowledged"


class GapCause(StrEnum):
    """Why something was lost (contract §6, `gaps`)."""

    BUFFER_LIMIT = "buffer_limit"
    DAMAGE = "damage"
    RESTART = "restart"
    OVERLOAD = "overload"
    DISK_FULL = "disk_full"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the columns and state numbers of a machine's frames mean, kept beside the journal that holds them."""

    machine: str
    signals: tuple[str, ...]
    states: tuple[str, ...]
    """Names of the operating states; empty when the machine has none configured."""


@dataclass(frozen=True, slots=True)
class JudgedFrame:
    """A frame as it was judged: validity and formulas applied, and what of it is to be published.

    frame: the columns in the order of the machine's Layout.
    state: (rows,) int16, index into Layout.states, -1 = `unknown` (or no states configured).
    publish: (rows,) bool, rows that become a measurement message (fresh values, or a quality that changed).
    """

    frame: Frame
    state: npt.NDArray[np.int16]
    publish: Bools


@dataclass(frozen=True, slots=True)
class Event:
    """One step in the life of a warning; every field stands in the message of contract §2. Times are UTC µs."""

    event: EventKind
    id: str
    ts: int
    machine: str
    signal: str
    kind: str
    severity: Severity
    state: WarningState
    value: float | None
    unit: str
    limit: float | None
    norm: dict[str, dict[str, float]]
    """{"warning": {"low": …, "high": …}, "alarm": {…}}: the band in force; sides without a limit are left out."""
    since: int
    operating_state: str | None
    message: str
    advice: str
    count: int = 1
    """How often it was raised under this id."""
    suppressed: int | None = None
    """Of a lost line: how many signals lie behind it, which raise no `stale` of their own."""
    column: str | None = None
    why: dict[str, float] = field(default_factory=dict)
    """The numbers of the detector that found it."""
    by: str | None = None
    comment: str | None = None
    t: int = 0
    """The agent's own clock at the row that caused it: for putting events in order, never published."""
    epoch: str = ""
    seq: int = 0
    """The number that the store gave it; 0 before."""


SET_CLOCK = "set_clock"
"""The command that nobody gave: the clock was set, see judge.set_clock."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a person asked for (acknowledge, reset …), journalled in its place among the frames so that it is judged again."""

    command: str
    ts: int
    t: int
    id: str
    by: str
    comment: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loss:
    """A line, a part of one, its certificates, or the host's disk or clock as they are now.

    why: a code of Quality, or see contract.ENDING; 0: all is well, HOLD: nothing is known.

    words: as exactly as it is known, may be empty.
    """

    why: int
    words: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A time in which nobody had set the host's clock: what was stamped in it is wrong by one and the same offset.

    boot: of the host; only while it lasts is the offset known. base_us: wall minus monotonic clock, µs.
    from_us, to_us: UTC µs as that clock had it. from_t: the agent's own clock. from_seq, to_seq: the numbers that were given
    in it. to_us, to_seq are None while it lasts.
    by_us: what to add to its stamps; None: not known (yet). sent: the numbers, in ranges, that were on their way to the
    broker before that was known: they keep their stamp and their mark.
    """

    number: int
    boot: str
    base_us: int
    from_us: int
    from_t: int
    from_seq: int
    to_us: int | None = None
    to_seq: int | None = None
    by_us: int | None = None
    sent: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """What was lost, for the topic `<root>/gaps`. count: machine rows. from_ts, to_ts: UTC µs of the first and last lost row."""

    cause: GapCause
    count: int
    from_ts: int
    to_ts: int
    from_seq: int | None = None
    to_seq: int | None = None
