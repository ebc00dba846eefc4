"""The trend of one signal over any period: buckets from the history, the limits in force, the warnings in between.

Rule 1: the history is read in a thread, a few readers at a time: the loop is the plant's. Rule 2: a bucket without a
reading is null, never a value between its neighbours; how many rows were bad in it is said beside it, and whether the
last value held meanwhile: that is so only where the machine was watched all the time and nothing was bad since that value.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from edge_agent.board import Board, to_utc
from edge_agent.contract import SECOND_US, Bools, Clock, Floats
from edge_agent.store import disk, shelf
from edge_agent.store.moment import standing
from edge_agent.store.past import UNREADABLE, Past, Told, Trend, open_past, words_of
from edge_agent.web.guard import Refused

DAY_US = 86_400 * SECOND_US
PERIOD_US, PERIOD_MAX_US = DAY_US, 3_700 * DAY_US
POINTS, POINTS_MIN, POINTS_MAX = 600, 10, 2_000
AT_ONCE, WAITING_MAX = 2, 8
"""Readers of the history at one time, and how many more may wait for them."""
EVENTS_MAX = 20_000
"""Warning events of the plant, from the period's begin on, that are looked through for one trend."""
WARNINGS_MAX = 500
PIECES_MAX = 240
"""Hours of the history whose rows are looked at to tell what held from what nobody watched; beyond that it is not said."""
APART_US = 10 * SECOND_US
"""Rows of a machine that is watched are no further apart than this, or than three of its periods."""
ENDS = ("cleared",)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
QUERY = ("from", "to", "points")
RANK = {"alarm": 0, "warning": 1}


@dataclass(frozen=True, slots=True)
class Period:
    """UTC µs."""

    from_us: int
    to_us: int
    points: int


class Trends:
    """What asks the past of one agent. folder: its data directory; None: there is no past here."""

    def __init__(self, folder: Path | None, board: Board, clock: Clock) -> None:
        self._folder, self._board, self._clock = folder, board, clock
        self._readers = asyncio.Semaphore(AT_ONCE)
        self._asked = 0

    async def of(self, machine: str, signal: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The answer of the API. Raises Refused (400, 404, 503) in words."""
        about, every_us = self._about(machine, signal)
        period = period_of(query, self._clock.wall_us())
        if self._folder is None:
            raise Refused(503, "this agent keeps no history")
        if self._asked >= AT_ONCE + WAITING_MAX:
            raise Refused(503, "too many trends are being read; ask again in a moment")
        self._asked += 1
        try:
            async with self._readers:
                look = _Look(self._folder, machine, signal, max(APART_US, 3 * every_us))
                found = await asyncio.to_thread(look.read, period)
        except (*UNREADABLE, OSError) as error:
            kept = any((self._folder / name).is_file() for name in (disk.FILE, shelf.FILE))
            words = words_of(error, self._folder) if kept else f"{self._folder}: nothing has been kept there yet"
            raise Refused(503, f"the history cannot be read now: {words}") from error
        finally:
            self._asked -= 1
        stands = [each for each in self._board.warnings(active=True) if _is_of(each, machine, signal)]
        warnings = warnings_of(found.told, stands, period)
        return {
            "machine": machine,
            "signal": signal,
            **{key: about[key] for key in ("title", "unit", "every", "limits")},
            "from": to_utc(period.from_us),
            "to": to_utc(period.to_us),
            "now": to_utc(self._clock.wall_us()),
            **columns(found.trend),
            "held": found.held,
            "before": found.before,
            "warnings": warnings[-WARNINGS_MAX:],
            "warnings_whole": found.whole and len(warnings) <= WARNINGS_MAX,
        }

    def _about(self, machine: str, signal: str) -> tuple[dict[str, Any], int]:
        """What the board knows of the signal, and µs between two polls of its machine."""
        if machine not in self._board.names:
            raise Refused(404, "there is no machine of this name")
        signals: list[dict[str, Any]] = self._board.machine(machine)["signals"]
        about = next((each for each in signals if each["name"] == signal), None)
        if about is None:
            raise Refused(404, "this machine has no signal of this name")
        return about, round(min(each["every"] for each in signals) * SECOND_US)


def period_of(query: Mapping[str, str], now_us: int) -> Period:
    """What is asked for; by default the last day. Raises Refused (400) in words."""
    unknown = sorted(set(query) - set(QUERY))
    if unknown:
        raise Refused(400, f"unknown parameter {unknown[0][:40]!r}; known are {', '.join(QUERY)}")
    to_us = _time("to", query["to"]) if "to" in query else now_us
    from_us = _time("from", query["from"]) if "from" in query else to_us - PERIOD_US
    if from_us >= to_us:
        raise Refused(400, "from is not before to")
    if to_us - from_us > PERIOD_MAX_US:
        raise Refused(400, f"a period has at most {PERIOD_MAX_US // DAY_US} days")
    points = query.get("points", str(POINTS))
    if not (points.isascii() and points.isdecimal() and len(points) < 6 and POINTS_MIN <= int(points) <= POINTS_MAX):
        raise Refused(400, f"points is a whole number from {POINTS_MIN} to {POINTS_MAX}")
    return Period(from_us, to_us, int(points))


def _time(name: str, text: str) -> int:
    try:
        found = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
        us = ((found if found.tzinfo else found.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise Refused(400, f"{name} is a time such as 2026-11-23T15:00:00Z") from None
    if us < 0:
        raise Refused(400, f"{name} is before 1970")
    return us


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What was read. whole: told has all events. held: of each bucket; before: the value that stood when the period began."""

    trend: Trend
    told: list[dict[str, Any]]
    whole: bool
    held: list[bool]
    before: float | None


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at one signal, for a thread. apart_us: see APART_US."""

    folder: Path
    machine: str
    signal: str
    apart_us: int

    def read(self, period: Period) -> _Found:
        with open_past(self.folder) as past:
            found = past.trend(self.machine, self.signal, period.from_us, period.to_us, period.points)
            told, whole = _events(past, self.machine, self.signal, period)
        silent = (found.count == 0) & (found.bad == 0)
        if not silent.any():
            return _Found(found, told, whole, [False] * len(silent), None)
        begin, end = int(found.ts[0]), int(found.ts[-1]) + found.step_us
        with standing(self.folder) as moment:
            spans = moment.watched(self.machine, self.signal, begin, end, self.apart_us, PIECES_MAX)
            before = moment.held(self.machine, self.signal, begin) if spans and silent[0] else math.nan
        watched = np.zeros(len(silent), dtype=bool)
        for first, last in spans:
            watched |= (found.ts >= first - self.apart_us) & (found.ts + found.step_us <= last + self.apart_us)
        held = silent & watched & _stood(found, before)
        return _Found(found, told, whole, held.tolist(), before if math.isfinite(before) else None)


def _stood(found: Trend, before: float) -> Bools:
    """For each bucket whether a value stood when it began: not after a bad row, until the next reading. before: NaN for none."""
    spoken = (found.count > 0) | (found.bad > 0)
    last = np.maximum.accumulate(np.where(spoken, np.arange(len(spoken)), -1))
    # In a bucket with both, nobody knows which came last.
    return np.asarray(np.where(last < 0, math.isfinite(before), found.bad[last] == 0))


def _events(past: Past, machine: str, signal: str, period: Period) -> tuple[list[dict[str, Any]], bool]:
    """The events of a signal from the period's begin on, and whether these are all.

    A warning that has part of the period has an event in it, or is ended by one after it, however late, or stands now.
    """
    found: list[dict[str, Any]] = []
    for number, told in enumerate(past.events(period.from_us, disk.NEVER_US, ("warnings",))):
        if number >= EVENTS_MAX:
            return found, False
        event = _parsed(told) if told.machine == machine else None
        if event is not None and event.get("signal") == signal:
            found.append(event)
    return found, True


def _parsed(told: Told) -> dict[str, Any] | None:
    try:
        event = orjson.loads(told.payload)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _is_of(event: Mapping[str, Any], machine: str, signal: str) -> bool:
    return event.get("machine") == machine and event.get("signal") == signal


def warnings_of(told: list[dict[str, Any]], standing: list[dict[str, Any]], period: Period) -> list[dict[str, Any]]:
    """Each warning that has part of the period, once: from when, until when (None: it stands), and the worst it reached.

    told: its events, in order; standing: the last event of each that is active now.
    """
    found: dict[str, dict[str, Any]] = {}
    for event in [*told, *standing]:
        its = found.setdefault(
            event["id"],
            {"id": event["id"], "kind": event["kind"], "severity": event["severity"], "from": event["since"]},
        )
        if "message" not in its or RANK.get(event["severity"], 2) < RANK.get(its["severity"], 2):
            # What was wrong when it was worst, and not that it is well again.
            its |= {"severity": event["severity"], "limit": event.get("limit"), "message": event["message"]}
        its["to"] = event["ts"] if event["event"] in ENDS else None
    stands = {event["id"] for event in standing}
    for id_, its in found.items():
        # Raised again under the same id: it stands. Neither ended nor standing: its end lies further on.
        its["ended"] = its["to"] is not None or id_ not in stands
    from_iso, to_iso = to_utc(period.from_us) or "", to_utc(period.to_us) or ""
    inside = [its for its in found.values() if its["from"] < to_iso and (its["to"] is None or its["to"] >= from_iso)]
    return sorted(inside, key=lambda its: str(its["from"]))


def columns(found: Trend) -> dict[str, Any]:
    """begin: of the first bucket; step: seconds; then one number for each bucket, null where there was no reading."""
    return {
        "begin": to_utc(int(found.ts[0])) if len(found.ts) else None,
        "step": found.step_us / SECOND_US,
        "count": found.count.tolist(),
        "bad": found.bad.tolist(),
        "low": _nulls(found.low),
        "high": _nulls(found.high),
        "mean": _nulls(found.mean),
    }


def _nulls(values: Floats) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
