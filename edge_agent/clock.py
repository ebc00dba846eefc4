"""The only room that reads a clock. Stamps for people come from the wall clock, delays from the monotonic one."""

import time
from pathlib import Path

from edge_agent.contract import Clock

BOOT = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The operating system's two clocks, in int64 microseconds."""

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def cpu_s(self) -> float:
        """User and system time that this process has used."""
        return time.process_time()


def boot_id() -> str:
    """Names the start of the host from which the monotonic clock counts; empty where the system does not say."""
    try:
        return BOOT.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class AgentTime:
    """The agent's own clock: never decreasing, carried on over restarts from where the journal ends."""

    def __init__(self, clock: Clock, start_us: int) -> None:
        self._clock = clock
        self.base_us = start_us - clock.monotonic_us()
        """What it is ahead of the monotonic clock."""

    def now_us(self) -> int:
        return self.base_us + self._clock.monotonic_us()


def next_beat(now_us: int, every_us: int, phase_us: int = 0) -> int:
    """The first whole multiple of the period (shifted by phase) after now: a late answer shifts no later beat."""
    return ((now_us - phase_us) // every_us + 1) * every_us + phase_us
