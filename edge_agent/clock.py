"""The only room that reads a clock. Stamps for people come from the wall clock, delays from the monotonic one."""

import time
from typing import Protocol

from edge_agent.contract import Clock


class HostClock(Clock, Protocol):
    """A Clock that also knows what the process has used."""

    def cpu_s(self) -> float:
        """User and system time that this process has used."""
        ...


class SystemClock:
    """The operating system's two clocks, in int64 microseconds."""

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def cpu_s(self) -> float:
        """User and system time that this process has used."""
        return time.process_time()


class AgentTime:
    """The agent's own clock: never decreasing, carried on over restarts from where the journal ends."""

    def __init__(self, clock: Clock, start_us: int) -> None:
        self._clock = clock
        self._base_us = start_us - clock.monotonic_us()

    def now_us(self) -> int:
        return self._base_us + self._clock.monotonic_us()


def next_beat(now_us: int, every_us: int, phase_us: int = 0) -> int:
    """The first whole multiple of the period (shifted by phase) after now: a late answer shifts no later beat."""
    return ((now_us - phase_us) // every_us + 1) * every_us + phase_us
