"""The host's clock as the agent trusts it: whether it was ever set, whether something keeps it right, and its steps.

Rule 1: between two looks the wall clock is the monotonic one plus a number; it steps only in `look`, so that all stamps of
one turn of the loop belong together. Rule 2: a clock that cannot be right (before the release, or before what the journal
has seen) is not set; one that nobody keeps right, but that can be right, is believed: a plant without NTP is no worse for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog

from edge_agent import texts
from edge_agent.clock import RELEASED_US, HostClock, boot_id, kernel_synchronised
from edge_agent.contract import ENDING, SECOND_US, Quality
from edge_agent.messages import topics as messages
from edge_agent.records import Loss

log = structlog.get_logger(__name__)

STEP_US = SECOND_US
"""A change of wall minus monotonic between two looks that is a step; what is smaller is NTP's slow way, and is followed."""
BEHIND_US = 60 * SECOND_US
"""A clock may be so far behind what the journal has seen (a restart after NTP has drawn it back) and still be set."""
TOLD_US = 60 * SECOND_US
"""A step of at least this is a warning of the agent's own."""
STANDS_US = 600 * SECOND_US
"""For so long a step stands in health, and as a warning: its words are for whoever wonders at the stamps around it."""
ALONE_US = 3_600 * SECOND_US
"""A clock that something once kept right and that nothing has kept right for this long is a warning."""
SURE_US = 2_000
"""Between the two readings of the monotonic clock around one of the wall clock lies no more than this (or the best of a few)."""
TRIES = 5
LOST, ALONE, STEPPED = 3 * ENDING, ENDING, ENDING + 1
"""What the column `clock` says (contract.ENDING): not set, an alarm; kept right by nothing any more; stepped."""
STEPS_APART = 8
"""A step that follows another has another number, so that it is told too."""


class ClockState(StrEnum):
    """The words of the health topic."""

    SYNCHRONISED = "synchronised"
    UNSYNCHRONISED = "unsynchronised"
    STEPPED = "stepped"
    NOT_SET = "not_set"


NE107 = {
    ClockState.SYNCHRONISED: "ok",
    ClockState.UNSYNCHRONISED: "maintenance_required",
    ClockState.STEPPED: "out_of_specification",
    ClockState.NOT_SET: "failure",
}


@dataclass(frozen=True, slots=True)
class Step:
    """at_us: UTC µs by the new clock. by_us: forward is positive."""

    at_us: int
    by_us: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a look has found. by_us: the step, 0: none. was_us: what the clock would show now had it not stepped."""

    by_us: int
    was_us: int
    was_set: bool
    is_set: bool


class Timekeeper:
    """A Clock that steps in `look` only. `floor_us` comes from the journal, by `trust`, before the first look."""

    def __init__(
        self,
        host: HostClock,
        synchronised: Callable[[], bool | None] = kernel_synchronised,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._host, self._ask, self.boot = host, synchronised, boot()
        self._base_us = self._read()
        self.floor_us: int | None = None
        """The last time that a set clock has shown; None: nobody knows."""
        self.synchronised = synchronised()
        self._kept_us = self.monotonic_us() if self.synchronised else None
        """Monotonic µs when something was last known to keep the clock right."""
        self.is_set = self._can_be_right(self.wall_us())
        self.steps = 0
        self.last: Step | None = None
        self._stepped_us = 0
        self.state = self._state()
        self.since_us = self.wall_us()

    def monotonic_us(self) -> int:
        return self._host.monotonic_us()

    def wall_us(self) -> int:
        return self._base_us + self._host.monotonic_us()

    def cpu_s(self) -> float:
        return self._host.cpu_s()

    @property
    def base_us(self) -> int:
        """Wall minus monotonic."""
        return self._base_us

    def trust(self, floor_us: int | None) -> None:
        """Nothing before this time (UTC µs) can be right: a set clock has shown it already."""
        self.floor_us = floor_us
        self.is_set = self._can_be_right(self.wall_us())
        self._turn()

    def look(self) -> Change | None:
        """Follow the host's clock. What has changed, when it stepped or came to be set or not; else None."""
        base_us = self._read()
        by, was_set, was_us = base_us - self._base_us, self.is_set, self.wall_us()
        if abs(by) < STEP_US:
            by = 0
        self._base_us = base_us
        self.synchronised = self._ask()
        if self.synchronised:
            self._kept_us = self.monotonic_us()
        wall = self.wall_us()
        if by < 0 and was_set and wall >= RELEASED_US and self.floor_us is not None:
            # A clock that runs and is set back was set by somebody: what the journal has seen was ahead of the time.
            self.floor_us = min(self.floor_us, wall)
        self.is_set = self._can_be_right(wall)
        if self.is_set:
            self.floor_us = wall
        if by:
            self._step(by, wall)
        self._turn(by)
        return Change(by, was_us, was_set, self.is_set) if by or was_set is not self.is_set else None

    def _read(self) -> int:
        """Wall minus monotonic, µs, as exactly as the host lets us read both at once."""
        best, base = None, 0
        for _ in range(TRIES):
            before, wall, after = self._host.monotonic_us(), self._host.wall_us(), self._host.monotonic_us()
            if best is None or after - before < best:
                best, base = after - before, wall - (before + after) // 2
            if best <= SURE_US:
                break
        return base

    def _can_be_right(self, wall_us: int) -> bool:
        if wall_us < RELEASED_US:
            return False
        return self.floor_us is None or wall_us >= self.floor_us - BEHIND_US or bool(self.synchronised)

    def _step(self, by_us: int, wall_us: int) -> None:
        self.steps += 1
        self.last, self._stepped_us = Step(wall_us, by_us), self.monotonic_us()
        log.warning("clock_stepped", by_s=round(by_us / SECOND_US, 3), now=messages.to_utc(wall_us))

    def _turn(self, by_us: int = 0) -> None:
        """Into the state that holds now. What has a `since` keeps it, by the clock of now."""
        self.since_us += by_us
        state = self._state()
        if state is not self.state:
            log.info("clock_state", state=str(state), before=str(self.state))
            self.state, self.since_us = state, self.wall_us()

    def _state(self) -> ClockState:
        if not self.is_set:
            return ClockState.NOT_SET
        if self._stands():
            return ClockState.STEPPED
        return ClockState.SYNCHRONISED if self.synchronised else ClockState.UNSYNCHRONISED

    def _stands(self) -> bool:
        """Whether the last step is one to tell of, and a short time ago."""
        last = self.last
        return last is not None and abs(last.by_us) >= TOLD_US and self.monotonic_us() - self._stepped_us < STANDS_US

    # --- for people -----------------------------------------------------------------------------------------------------

    def loss(self, language: str, zone: str) -> Loss:
        """For the column `clock` of the agent's own machine."""
        now = self.wall_us()
        if self.state is ClockState.NOT_SET:
            return Loss(LOST, texts.clock_not_set(language, now, self.floor_us))
        if self.state is ClockState.STEPPED and self.last is not None:
            return Loss(
                STEPPED + self.steps % STEPS_APART,
                texts.clock_stepped(language, self.last.at_us, self.last.by_us, now, zone),
            )
        if self._kept_us is not None and self.monotonic_us() - self._kept_us >= ALONE_US:
            ago = self.monotonic_us() - self._kept_us
            return Loss(ALONE, texts.clock_alone(language, now - ago, now, zone))
        return Loss(Quality.GOOD, texts.clock_right(language))

    def health(self) -> dict[str, Any]:
        """Contract §2, `health`, beside the connections. kept_by_kernel: null where the kernel does not answer."""
        last = self.last
        step = {} if last is None else {"ts": messages.to_utc(last.at_us), "by_s": round(last.by_us / SECOND_US, 3)}
        return {
            "state": str(self.state),
            "since": messages.to_utc(self.since_us),
            "ne107": NE107[self.state],
            "kernel_synchronised": self.synchronised,
            "steps": self.steps,
            **({"last_step": step} if step else {}),
        }
