"""The only room that reads a clock. Stamps for people come from the wall clock, delays from the monotonic one."""

import asyncio
import time


class SystemClock:
    """The operating system's two clocks, in int64 microseconds."""

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000

    def wall_us(self) -> int:
        return time.time_ns() // 1000


async def sleep_until(clock: SystemClock, monotonic_us: int) -> None:
    """Sleep until this instant of the monotonic clock; at once when it has passed."""
    await asyncio.sleep(max(0, monotonic_us - clock.monotonic_us()) / 1e6)


def next_beat(now_us: int, every_us: int, phase_us: int = 0) -> int:
    """The first whole multiple of the period (shifted by phase) strictly after now: a late answer shifts no later beat."""
    return ((now_us - phase_us) // every_us + 1) * every_us + phase_us
