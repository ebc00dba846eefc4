"""The only room that reads a clock. Stamps for people come from the wall clock, delays from the monotonic one."""

import ctypes
import struct
import time
from pathlib import Path
from typing import Protocol

from edge_agent.contract import Clock

RELEASED_US = 1_793_491_200_000_000
"""2026-11-01, shortly before this release was made. A clock that shows an earlier time was never set."""
TIMEX = struct.Struct("@I4li")
"""The beginning of `struct timex`: modes, offset, freq, maxerror, esterror, status (adjtimex(2))."""
TIMEX_BYTES = 512
"""More than the whole of it on any machine (208 on 64 bits)."""
UNSYNCHRONISED = 0x0040
"""STA_UNSYNC: adjtimex(2)."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
        self.base_us = start_us - clock.monotonic_us()
        """What it is ahead of the monotonic clock."""

    def now_us(self) -> int:
        return self.base_us + self._clock.monotonic_us()


def next_beat(now_us: int, every_us: int, phase_us: int = 0) -> int:
    """The first whole multiple of the period (shifted by phase) after now: a late answer shifts no later beat."""
    return ((now_us - phase_us) // every_us + 1) * every_us + phase_us


def kernel_synchronised() -> bool | None:
    """Whether the kernel says that something (NTP, PTP, GPS) keeps its clock right; None: it does not answer.

    A question only, which needs no rights; a container's filter of system calls may refuse it all the same.
    """
    try:
        about = ctypes.create_string_buffer(TIMEX_BYTES)
        if ctypes.CDLL(None).adjtimex(about) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not TIMEX.unpack_from(about)[-1] & UNSYNCHRONISED


def boot_id() -> str:
    """Names this run of the host: within one the monotonic clock goes on. '' where nobody knows: then no two are the same."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
