"""The life of a warning: one transition table, applied to whatever changed.

Rule 1: every transition stands in NEXT; what is not there does not happen. Rule 2: this module reads no clock.
States and words as in ISA-18.2 / IEC 62682 (contract §6).
"""

from enum import IntEnum

from edge_agent.records import EventKind, WarningState


class Input(IntEnum):
    """What can happen to a warning: a person acknowledges it, the detectors say the rest."""

    RAISE = 0
    ESCALATE = 1
    DEESCALATE = 2
    CLEAR = 3
    ACKNOWLEDGE = 4
    REPEAT = 5


_N, _U, _A, _R = (
    WarningState.NORMAL,
    WarningState.UNACKNOWLEDGED,
    WarningState.ACKNOWLEDGED,
    WarningState.RETURNED_UNACKNOWLEDGED,
)

NEXT: dict[tuple[WarningState, Input], tuple[WarningState, WarningState, EventKind]] = {
    #  state, input             acknowledge: auto, required, the event that tells it
    (_N, Input.RAISE): (_U, _U, EventKind.RAISED),
    (_U, Input.ESCALATE): (_U, _U, EventKind.ESCALATED),
    (_A, Input.ESCALATE): (_U, _U, EventKind.ESCALATED),
    (_U, Input.REPEAT): (_U, _U, EventKind.RAISED),
    (_A, Input.REPEAT): (_U, _U, EventKind.RAISED),
    (_U, Input.DEESCALATE): (_U, _U, EventKind.DEESCALATED),
    (_A, Input.DEESCALATE): (_A, _A, EventKind.DEESCALATED),
    (_U, Input.CLEAR): (_N, _R, EventKind.CLEARED),
    (_A, Input.CLEAR): (_N, _N, EventKind.CLEARED),
    (_U, Input.ACKNOWLEDGE): (_A, _A, EventKind.ACKNOWLEDGED),
    (_R, Input.ACKNOWLEDGE): (_N, _N, EventKind.ACKNOWLEDGED),
    (_R, Input.RAISE): (_U, _U, EventKind.RAISED),
}


def step(state: WarningState, what: Input, required: bool) -> tuple[WarningState, EventKind] | None:
    """The next state and the event that tells it, or None when nothing happens (the input does not fit the state).

    required: the norm says `acknowledge: required`, so that a warning stays until somebody acknowledges it.
    """
    found = NEXT.get((state, what))
    if found is None:
        return None
    auto, strict, event = found
    return (strict if required else auto), event


def input_of(old: int, new: int, again: bool = False) -> Input | None:
    """What a change of level (0 none, 1 warning, 2 alarm) means for the warning. again: it is told once more."""
    if old == new:
        return Input.REPEAT if again and new else None
    if old == 0:
        return Input.RAISE
    if new == 0:
        return Input.CLEAR
    return Input.ESCALATE if new > old else Input.DEESCALATE
