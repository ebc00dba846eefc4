"""The latest of everything, for those who look: the page, the metrics, the health topic, the notifier.

Rule 1: a writer pays for nothing that nobody looks at: `frame` keeps references and turns a counter, no more.
Rule 2: nothing here decides; a verdict is read off the warnings and qualities that the judge has already given.
Everything runs on the agent's loop: writers call, readers call, and only `changes` waits.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.contract import CODE_MASK, REASONS, SECOND_US, VOUCHED, Bools, Codes, Floats, Ints, Quality
from edge_agent.messages import topics

SAMPLES = 120
"""Recent values kept for each signal: what a sparkline of some hundred pixels can show."""
EVENTS_MAX = 500
"""Events of the past kept in memory; the store has the rest."""
TELL_EVERY_S = 0.25
"""Readers are woken at most four times a second, however fast the plant is."""

VERDICTS = ("alarm", "warning", "bad", "normal", "none")
"""Worst first. `bad`: no verdict is possible, the reading is bad; `none`: the signal has no norm."""
RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
DEVIATING = frozenset({"unacknowledged", "acknowledged"})
"""The states of a warning in which its value is still outside; the others only wait for a person."""
WAITING = frozenset({"unacknowledged", "returned_unacknowledged", "latched_unacknowledged"})
"""The states in which a warning waits for a person to acknowledge it."""
OUTSIDE = (None, "warning", "alarm")
"""The severity of the limits that a value is beyond right now, on-delay or not."""
OF_THE_SENSOR = frozenset({"stale", "health"})
"""Kinds that speak of the sensor or its line and not of the machine: they give the verdict `bad`, not `alarm`."""


@dataclass(frozen=True, slots=True)
class BoardSignal:
    """What people need to know of a signal beside its value. advice: in the agent's language, may be empty."""

    name: str
    title: str
    unit: str
    every_us: int
    advice: str = ""
    names: Mapping[int, str] = field(default_factory=dict)
    """What values are called, where they have names (`map`)."""
    use_uncertain: bool = False
    """Uncertain readings are judged too."""


@dataclass(frozen=True, slots=True)
class BoardMachine:
    """A machine as people see it. area: for grouping, may be empty. signals: in the order of its frames' columns."""

    name: str
    title: str
    area: str
    signals: tuple[BoardSignal, ...]


class Board:
    """What is known now. Writers: `use`, `frame`, `norms`, `event`, `active`, `status`, `health`, `config_errors`.

    `version` turns with every write; `changes` waits for it. All methods belong to the thread of the loop.
    """

    def __init__(self, machines: Iterable[BoardMachine] = ()) -> None:
        self.version = 1
        self.shape_version = 1
        """Turns when machines or signals change: readers that hold a layout fetch all of it anew."""
        self._sheets: dict[str, _Sheet] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._active: list[dict[str, Any]] | None = []
        """Most urgent first; None: to be put in order when somebody asks."""
        self._by_signal: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._by_machine: dict[str, list[dict[str, Any]]] = {}
        self._warnings_version = 1
        self._status: dict[str, Any] = {}
        self._health: dict[str, Any] = {}
        self._config_errors: list[str] = []
        self._told = _Told()
        self.use(machines)

    # -- writers -------------------------------------------------------------------------------------------------

    def use(self, machines: Iterable[BoardMachine]) -> None:
        """Show these machines from now on; readings of a signal that keeps its name and unit are kept."""
        before = self._sheets
        self._sheets = {machine.name: _sheet(machine, before.get(machine.name)) for machine in machines}
        for name in before.keys() - self._sheets.keys():  # the agent's own warnings have no sheet and stay
            self.active(name, ())
        self.shape_version += 1
        self._changed()

    def frame(
        self, machine: str, ts: int, values: Floats, quality: Codes, at: Ints | None = None, state: str | None = None
    ) -> None:
        """The last row of a judged frame, HOLD already resolved to the held value and quality.

        ts: UTC µs of the row. values: (signals,) float64, NaN where bad. quality: (signals,) uint8.
        at: (signals,) UTC µs of each value, or None: all are of `ts`. state: the operating state, None: it has none.
        The arrays are kept, not copied: the caller does not write into them again.
        Raises KeyError for an unknown machine.
        """
        sheet = self._sheets[machine]
        changed = quality != sheet.quality
        if changed.any():
            sheet.quality_since[changed] = ts
        sheet.ts, sheet.values, sheet.quality, sheet.at, sheet.state = ts, values, quality, at, state
        if ts >= sheet.sample_due or ts < sheet.sample_due - 2 * sheet.sample_every:
            sheet.keep(ts, values)
        self.version += 1
        sheet.version = self.version
        if self._told.waiters:
            self._told.soon(self)

    def norms(self, machine: str, bands: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
        """The bands in force: `{"warning": {"low": …, "high": …}, "alarm": {…}}` for each signal, in their order."""
        sheet = self._sheets[machine]
        if len(bands) != len(sheet.machine.signals):
            raise ValueError(f"{machine} has {len(sheet.machine.signals)} signals, not {len(bands)}")
        limits = [{level: _sides(band.get(level, {})) for level in ("warning", "alarm")} for band in bands]
        if limits != sheet.limits:
            sheet.use_limits(limits)
            sheet.layout_version += 1
            self._changed()
            sheet.version = self.version

    def event(self, event: dict[str, Any]) -> None:
        """A warning's event in the form of contract §2."""
        self._events.append(event)
        self._warnings_version += 1
        self._changed()

    def active(self, machine: str, events: Sequence[dict[str, Any]]) -> None:
        """All warnings of a machine that are not back to normal: the last event of each."""
        if not events and machine not in self._by_machine:
            return
        for event in self._by_machine.pop(machine, ()):
            self._by_signal.pop((machine, event["signal"]), None)
        ordered = _most_urgent_first(events)
        if ordered:
            self._by_machine[machine] = ordered
        for event in ordered:
            self._by_signal.setdefault((machine, event["signal"]), []).append(event)
        self._active = None
        self._warnings_version += 1
        self._changed()
        if machine in self._sheets:
            self._sheets[machine].version = self.version

    def status(self, status: dict[str, Any]) -> None:
        """The agent's status (contract §2), with `agent`, `site` and `timezone` beside it for the page's header."""
        self._status = status
        self._changed()

    def health(self, health: dict[str, Any]) -> None:
        """The agent's health (contract §2); `broker: {"state", "since"}` beside `connections` tells of the broker."""
        self._health = health
        self._changed()

    def config_errors(self, errors: Sequence[str]) -> None:
        """The lines with which a changed configuration was refused; empty when the one on disk is the one that runs."""
        self._config_errors = list(errors)
        self._changed()

    # -- readers -------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sheets)

    def machines(self) -> list[dict[str, Any]]:
        """Every machine with its signals, worst verdict first, then by area and title."""
        return [self.machine(name) for name in self.worst_first()]

    def worst_first(self) -> list[str]:
        """The names of the machines in that order."""

        def rank(name: str) -> tuple[int, str, str]:
            sheet = self._sheets[name]
            return self._machine_rank(sheet), sheet.machine.area, sheet.machine.title

        return sorted(self._sheets, key=rank)

    def counts(self) -> dict[str, int]:
        """How many signals have each verdict, and how many there are."""
        found = np.zeros(len(VERDICTS), dtype=np.int64)
        for sheet in self._sheets.values():
            found += np.bincount(self._judged(sheet).verdict, minlength=len(VERDICTS))
        return {"signals": int(found.sum()), **dict(zip(VERDICTS, found.tolist(), strict=True))}

    def machine(self, name: str) -> dict[str, Any]:
        """`{"name", "title", "area", "state", "verdict", "ts", "signals": [...]}`. Raises KeyError."""
        sheet = self._sheets[name]
        signals = [self._signal(sheet, column) for column in range(len(sheet.machine.signals))]
        return {
            "name": name,
            "title": sheet.machine.title,
            "area": sheet.machine.area,
            "state": sheet.state,
            "verdict": VERDICTS[self._machine_rank(sheet)],
            "ts": to_utc(sheet.ts),
            "signals": signals,
        }

    def living(self, name: str) -> dict[str, Any]:
        """What of a machine changes from reading to reading, small. Raises KeyError.

        values: (signals,) float64, NaN where bad. odd: of each signal that is not simply good, in its norm (or without
        one), inside its limits and of the machine's `ts`: [column, quality, quality_since, verdict, outside, ts].
        """
        sheet = self._sheets[name]
        judged = self._judged(sheet)
        plain = (sheet.quality == Quality.GOOD) & (judged.outside == 0)
        plain &= judged.verdict == np.where(sheet.normed, RANK["normal"], RANK["none"])
        if sheet.at is not None:
            plain &= np.abs(sheet.at - sheet.ts) <= SECOND_US
        return {
            "name": name,
            "state": sheet.state,
            "verdict": VERDICTS[self._machine_rank(sheet)],
            "ts": to_utc(sheet.ts),
            "values": sheet.values,
            "odd": [[c, *self._odd(sheet, judged, c)] for c in np.flatnonzero(~plain).tolist()],
            "warnings": {
                signal.name: [event["id"] for event in self._by_signal[name, signal.name]]
                for signal in (sheet.machine.signals if name in self._by_machine else ())
                if (name, signal.name) in self._by_signal
            },
        }

    def _odd(self, sheet: "_Sheet", judged: "_Judged", column: int) -> tuple[Any, ...]:
        at = sheet.ts if sheet.at is None else int(sheet.at[column])
        return (
            reason(int(sheet.quality[column])),
            to_utc(int(sheet.quality_since[column])),
            VERDICTS[judged.verdict[column]],
            OUTSIDE[judged.outside[column]],
            to_utc(at),
        )

    def layout_version(self, name: str) -> int:
        """Turns when the norm bands of a machine change. Raises KeyError."""
        return self._sheets[name].layout_version

    def machine_version(self, name: str) -> int:
        """Turns when anything that `machine(name)` shows has changed. Raises KeyError."""
        return self._sheets[name].version

    def trends(self, name: str) -> Floats:
        """(signals, samples) the last samples of a machine, oldest first, NaN where there was none. Raises KeyError."""
        return np.ascontiguousarray(self._sheets[name].recent().T)

    def warnings(self, active: bool = True) -> list[dict[str, Any]]:
        """The last event of each warning, most urgent first when `active`; else all known ones, newest first."""
        if self._active is None:
            self._active = _most_urgent_first(event for events in self._by_machine.values() for event in events)
        if active:
            return list(self._active)
        last = {event["id"]: event for event in self._events}
        last.update({event["id"]: event for event in self._active})
        return sorted(last.values(), key=lambda event: str(event["ts"]), reverse=True)

    def events(self) -> list[dict[str, Any]]:
        """The last events, newest first."""
        return list(reversed(self._events))

    @property
    def warnings_version(self) -> int:
        return self._warnings_version

    def agent(self) -> dict[str, Any]:
        """What is known of the agent itself: `{"status", "health", "config_errors"}`."""
        return {"status": self._status, "health": self._health, "config_errors": list(self._config_errors)}

    async def changes(self, after_version: int) -> int:
        """Wait until something is newer than `after_version`; the version now. Wakes at most 4 times a second."""
        while self._told.version <= after_version:
            await self._told.next(self, after_version)
        return self._told.version

    # -- inside --------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self.version += 1
        if self._told.waiters:
            self._told.soon(self)

    def _signal(self, sheet: "_Sheet", column: int) -> dict[str, Any]:
        signal = sheet.machine.signals[column]
        value = _number(sheet.values[column])
        word, since, verdict, outside, at = self._odd(sheet, self._judged(sheet), column)
        return {
            "name": signal.name,
            "title": signal.title,
            "unit": signal.unit,
            "value": value,
            **({"names": {str(number): text for number, text in signal.names.items()}} if signal.names else {}),
            "quality": word,
            "quality_since": since,
            "ts": at,
            "every": signal.every_us / SECOND_US,
            "verdict": verdict,
            "outside": outside,
            "limits": sheet.limits[column],
            "warnings": [event["id"] for event in self._by_signal.get((sheet.machine.name, signal.name), [])],
            "advice": signal.advice,
        }

    def _judged(self, sheet: "_Sheet") -> "_Judged":
        """The verdicts of all its signals, worked out once for each version."""
        if sheet.judged is None or sheet.judged.version != sheet.version:
            found = _judged(sheet)
            for column, signal in enumerate(sheet.machine.signals if sheet.machine.name in self._by_machine else ()):
                events = self._by_signal.get((sheet.machine.name, signal.name))
                if events:
                    found.verdict[column] = RANK[_verdict(events, VERDICTS[found.verdict[column]])]
            sheet.judged = found
        return sheet.judged

    def _machine_rank(self, sheet: "_Sheet") -> int:
        """The rank of the worst verdict of its signals, and of warnings that are of none of them."""
        ranks = [int(self._judged(sheet).verdict.min())] if len(sheet.machine.signals) else [RANK["none"]]
        ranks += [RANK[_verdict([event], "none")] for event in self._by_machine.get(sheet.machine.name, [])]
        return min(ranks)


def reason(quality: int) -> str:
    """The contract's word for a quality; a confirmed hold is as good as new, a hold of nothing is `missing`."""
    match quality:
        case Quality.CONFIRMED:
            return "good"
        case Quality.HOLD:
            return "missing"
        case Quality.CLOCK:
            return "clock"
        case _:
            return REASONS[Quality(quality & CODE_MASK)]


def to_utc(us: int) -> str | None:
    """RFC 3339 UTC with milliseconds; None for 0, which stands for "never"."""
    return topics.to_utc(us) if us > 0 else None


@dataclass(slots=True)
class _Sheet:
    """One machine's line of sight: the last row by reference, and a short ring of samples."""

    machine: BoardMachine
    values: Floats
    quality: Codes
    quality_since: Ints
    use_uncertain: Bools
    samples: Floats
    """(SAMPLES, signals), a ring: row `count % SAMPLES` is written next."""
    sample_every: int
    sample_due: int = 0
    count: int = 0
    ts: int = 0
    at: Ints | None = None
    state: str | None = None
    version: int = 1
    layout_version: int = 1
    judged: "_Judged | None" = None
    limits: list[dict[str, dict[str, float]]] = field(default_factory=list)
    low: Floats = field(default_factory=lambda: np.empty((2, 0)))
    high: Floats = field(default_factory=lambda: np.empty((2, 0)))
    """(2, signals), warning and alarm, infinite where there is no limit."""
    normed: Bools = field(default_factory=lambda: np.empty(0, dtype=np.bool_))

    def use_limits(self, limits: list[dict[str, dict[str, float]]]) -> None:
        self.limits, self.judged = limits, None
        levels = ("warning", "alarm")
        self.low = np.array([[band[level].get("low", -math.inf) for band in limits] for level in levels])
        self.high = np.array([[band[level].get("high", math.inf) for band in limits] for level in levels])
        self.normed = np.logical_or.reduce(np.isfinite(self.low) | np.isfinite(self.high), axis=0)

    def keep(self, ts: int, values: Floats) -> None:
        row = self.count % SAMPLES
        self.samples[row] = values
        self.count += 1
        self.sample_due = ts + self.sample_every

    def recent(self) -> Floats:
        """(samples, signals), oldest first."""
        return self.samples[np.arange(max(0, self.count - SAMPLES), self.count) % SAMPLES]


def _sheet(machine: BoardMachine, old: "_Sheet | None") -> _Sheet:
    if old is not None and old.machine == machine:
        return old
    width = len(machine.signals)
    fastest = min((signal.every_us for signal in machine.signals), default=SECOND_US)
    every = max(fastest, SECOND_US)
    sheet = _Sheet(
        machine=machine,
        values=np.full(width, np.nan),
        quality=np.full(width, Quality.MISSING, dtype=np.uint8),
        quality_since=np.zeros(width, dtype=np.int64),
        use_uncertain=np.array([signal.use_uncertain for signal in machine.signals], dtype=np.bool_),
        samples=np.full((SAMPLES, width), np.nan),
        # A tenth early, so that a frame a little before its beat still counts.
        sample_every=every - every // 10,
    )
    sheet.use_limits([{"warning": {}, "alarm": {}} for _ in range(width)])
    if old is not None:
        _carry_over(old, sheet)
    return sheet


def _carry_over(old: _Sheet, new: _Sheet) -> None:
    """What was known of a signal that kept its name and unit is still true after a reload."""
    known = {(signal.name, signal.unit): column for column, signal in enumerate(old.machine.signals)}
    at = np.full(len(new.machine.signals), old.ts, dtype=np.int64) if old.at is not None else None
    limits = list(new.limits)
    for column, signal in enumerate(new.machine.signals):
        source = known.get((signal.name, signal.unit))
        if source is None:
            continue
        for name in ("values", "quality", "quality_since"):
            getattr(new, name)[column] = getattr(old, name)[source]
        new.samples[:, column] = old.samples[:, source]
        limits[column] = old.limits[source]
        if at is not None and old.at is not None:
            at[column] = old.at[source]
    new.use_limits(limits)
    new.count, new.sample_due, new.ts, new.at, new.state = old.count, old.sample_due, old.ts, at, old.state


class _Told:
    """Wakes readers together, at once after a quiet time and at most every TELL_EVERY_S after that."""

    def __init__(self) -> None:
        self.version = 0
        self.waiters = 0
        self._news: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = -math.inf

    async def next(self, board: Board, after_version: int) -> None:
        loop = asyncio.get_running_loop()
        if self._news is None or self._news.get_loop() is not loop:
            self._news, self._timer = loop.create_future(), None
        self.waiters += 1
        try:
            if board.version > after_version:
                self.soon(board)
            await asyncio.shield(self._news)
        finally:
            self.waiters -= 1

    def soon(self, board: Board) -> None:
        if self._timer is None and self._news is not None:
            loop = self._news.get_loop()
            self._timer = loop.call_at(max(loop.time(), self._last_s + TELL_EVERY_S), self._tell, board)

    def _tell(self, board: Board) -> None:
        self._timer = None
        news, self._news = self._news, None
        if news is not None:
            self._last_s = news.get_loop().time()
            self.version = board.version
            news.set_result(None)


@dataclass(frozen=True, slots=True)
class _Judged:
    """verdict: (signals,) int8, places in VERDICTS. outside: (signals,) int8, places in OUTSIDE."""

    version: int
    verdict: npt.NDArray[np.int8]
    outside: npt.NDArray[np.int8]


def _judged(sheet: _Sheet) -> _Judged:
    """Read off values and qualities alone; standing warnings come on top."""
    code = sheet.quality & CODE_MASK
    vouched = (sheet.quality & VOUCHED) != 0
    judged = (code == Quality.GOOD) | (vouched & (code <= Quality.UNCERTAIN))
    judged |= (code == Quality.UNCERTAIN) & sheet.use_uncertain
    judged &= np.isfinite(sheet.values)
    with np.errstate(invalid="ignore"):
        beyond = (sheet.values < sheet.low) | (sheet.values > sheet.high)
    outside = np.where(judged, np.where(beyond[1], 2, np.where(beyond[0], 1, 0)), 0)
    verdict = np.where(judged, np.where(sheet.normed, RANK["normal"], RANK["none"]), RANK["bad"])
    return _Judged(sheet.version, verdict.astype(np.int8), outside.astype(np.int8))


def _verdict(warnings: Sequence[Mapping[str, Any]], plain: str) -> str:
    """The worst standing deviation; a deviation stands also while its reading is bad, as silence clears nothing."""
    standing = [event for event in warnings if event["state"] in DEVIATING]
    of_machine = [event["severity"] for event in standing if event["kind"] not in OF_THE_SENSOR]
    if of_machine:
        return "alarm" if "alarm" in of_machine else "warning"
    return "bad" if standing else plain


def _sides(band: Mapping[str, float | None]) -> dict[str, float]:
    return {side: float(limit) for side, limit in band.items() if side in ("low", "high") and limit is not None}


def _number(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _most_urgent_first(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What nobody has acknowledged first, alarms before warnings, the newest before the older."""
    newest_first = sorted(events, key=lambda event: str(event["since"]), reverse=True)
    return sorted(newest_first, key=lambda event: (event["state"] not in WAITING, event["severity"] != "alarm"))
