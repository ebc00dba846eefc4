"""A past to look at: one machine's readings in a store, with noise, a drift, gaps and warnings, as an agent leaves them."""

import asyncio
import math
from pathlib import Path

import numpy as np

from edge_agent.contract import SECOND_US, Frame, Quality
from edge_agent.records import Event, EventKind, JudgedFrame, Kind, Layout, Severity, WarningState
from edge_agent.store.history import open_history
from edge_agent.store.journal import open_store
from tests.conftest import StandingClock

HOUR_US = 3_600 * SECOND_US
LAYOUT = Layout("press-3", ("oil_temperature", "oil_level"), ())
NORM = {"warning": {"low": 20.0, "high": 60.0}, "alarm": {"low": 10.0, "high": 70.0}}


def write_past(folder: Path, now_us: int, hours: int = 30, every_us: int = 10 * SECOND_US, seed: int = 7) -> None:
    """Readings up to now, the last hours of them outside the norm twice, not readable once, and an hour without any."""
    luck = np.random.default_rng(seed)
    clock = StandingClock(now_us - hours * HOUR_US)
    start = clock.wall_us()
    with open_store(folder, clock) as store:
        store.keep_for_history()
        store.use_layouts([LAYOUT])
        for hour in range(hours):
            begin = start + hour * HOUR_US
            if hour != hours - 12:
                store.put([_hour(luck, begin, begin - start, hours, every_us)])
            clock.move(HOUR_US)
        for kind, severity, first, last in (("high", "warning", 8.2, 6.9), ("high", "alarm", 3.1, 2.6)):
            its = raised(kind, severity, now_us - round(first * HOUR_US))
            store.put((), [its, ended(its, now_us - round(last * HOUR_US))])
    asyncio.run(_moved(folder, clock))


def value_at(share: float, hours_before_end: float) -> float:
    """In °C: a slow wave, with two humps."""
    humps = 12 * math.exp(-(((hours_before_end - 7.5) / 0.45) ** 2)) + 21 * math.exp(
        -(((hours_before_end - 2.8) / 0.3) ** 2)
    )
    return 51 + 4 * math.sin(share * 9) + humps


def _hour(luck: np.random.Generator, begin: int, since: int, hours: int, every_us: int) -> JudgedFrame:
    t = begin + np.arange(0, HOUR_US, every_us, dtype=np.int64)
    left = (hours * HOUR_US - (since + (t - begin))) / HOUR_US
    oil = np.array([value_at(1 - each / hours, each) for each in left]) + luck.normal(0, 0.5, len(t))
    quality = np.zeros((len(t), 2), dtype=np.uint8)
    quality[(left < 5.2) & (left > 4.6), 0] = Quality.TIMEOUT
    quality[1:, 1] = Quality.HOLD  # a level that changes once an hour, and holds
    level = np.full(len(t), 70.0 + (since // HOUR_US) % 5)
    values = np.round(np.stack([oil, level], axis=1), 2)
    values[quality != 0] = np.nan
    frame = Frame("press-3", t, t, values, quality)
    return JudgedFrame(frame, np.full(len(t), -1, dtype=np.int16), np.ones(len(t), dtype=bool))


def raised(kind: str, severity: str, ts: int) -> Event:
    limit = NORM[severity]["high"]
    return Event(
        EventKind.RAISED, f"w-{ts}", ts, "press-3", "oil_temperature", Kind(kind), Severity(severity),
        WarningState.UNACKNOWLEDGED, limit + 0.4, "°C", limit, NORM, ts - 10 * SECOND_US, None,
        f"Oil temperature {limit + 0.4:g} °C is above its norm of {limit:g} °C", "Check the oil cooler and its fan.",
    )  # fmt: skip


def ended(event: Event, ts: int) -> Event:
    from dataclasses import replace

    return replace(event, event=EventKind.CLEARED, ts=ts, state=WarningState.NORMAL)


async def _moved(folder: Path, clock: StandingClock) -> None:
    with open_store(folder, clock) as store, open_history(folder, clock) as history:
        store.keep_for_history()
        assert await history.turn(store)
