"""One connection on its beat: open, read, scatter into frames of machines, and start anew when the line is lost.

Rule 1: beats are whole multiples of the period; a late answer shifts no later beat, a missed one is counted.
Rule 2: every beat gives every due signal a row: a reading, or BAD with its reason. Silence is never just absence.
Rule 3: this is the bulkhead: a fault of a driver stays in its connection.
"""

import asyncio
import contextlib
import itertools
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from edge_agent import plugins, silence
from edge_agent.clock import AgentTime, next_beat
from edge_agent.config import Config, with_secrets
from edge_agent.contract import (
    CODE_MASK,
    LINE_BUSY,
    LINE_LOST,
    SECOND_US,
    Belated,
    Bools,
    Clock,
    Codes,
    Describes,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Floats,
    Frame,
    Homes,
    Idles,
    Ints,
    Point,
    Quality,
    Readings,
    Remembers,
    Session,
)
from edge_agent.plant import Plant, parts_of
from edge_agent.records import Loss
from edge_agent.timekeeping import STEP_US

log = structlog.get_logger(__name__)

OPEN_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
READ_LIMIT_S = 30.0
"""The most that one read may take beyond its period; drivers bound their own requests far below."""
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 60.0
QUICK_TRIES = 4
"""A device that restarts is back within seconds, and its signals should be."""
FAULT_PAUSE_S = 60.0
"""After a bug in a driver: long, since trying again will not mend it."""
APART_US = SECOND_US
"""Readings further than this from their row's `ts` get a stamp of their own."""
LAG_US = 3 * SECOND_US
"""A source tells what it measured a little later: its stamp is the row's `ts` (contract §6), not that of the look at it."""
NEVER_US = -(2**60)
LOOP_BROKEN_MA = 3.6
LOOP_SHORTED_MA = 21.0
"""NAMUR NE 43: at or beyond these currents the transmitter signals a failure."""
LOOP_ZERO_MA, LOOP_SPAN_MA = 4.0, 16.0
HOLD = int(Quality.HOLD)
NOT_WAITED_FOR_US = 10 * SECOND_US
"""Signals with a longer period are read as soon as their line is open: nobody should wait an hour for a first value."""
PERIODS_COUNTED_FORTH = 8
BEATS_AT_ONCE = 100_000
DESCRIBE_EVERY_US, DESCRIBE_AGAIN_US = 3_600 * SECOND_US, 60 * SECOND_US
"""Texts of devices are read when the line was opened and hourly; one that could not be had, sooner."""
EVER_US = 2**62
IDLE_MIN_US = 100_000
"""A session that wants to be called at once all the time does not keep the loop busy with it."""


class ConnectionState(StrEnum):
    """Where a connection is (contract §2, `health`)."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    SILENT = "silent"
    BACKING_OFF = "backing_off"
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class PolledSignal:
    """One point of a connection and where its readings go. loop_low, loop_high: of a 4–20 mA signal, else None."""

    machine: str
    offset: int
    point: Point
    every_us: int
    scale: float = 1.0
    bias: float = 0.0
    loop_low: float | None = None
    loop_high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A connection as the poller needs it. widths: the number of signals of each machine that it touches.

    attributes: texts, by `machine.name`. parts: of each signal, see contract.part_of; empty when there are none.
    """

    name: str
    driver: Driver
    settings: Any
    signals: tuple[PolledSignal, ...]
    widths: dict[str, int]
    attributes: tuple[Point, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(slots=True)
class LineHealth:
    """What the health topic and the page show of a connection."""

    state: ConnectionState = ConnectionState.CONNECTING
    since_us: int = 0
    reason: str = ""
    beats: int = 0
    missed: int = 0
    busy_us: int = 0
    """How long reads have taken, all together."""
    line_busy_us: int | None = None
    """How long the physical line has been in use, by this connection and others; None when nobody else can use it."""
    counters: dict[str, int | float] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    """The texts that its devices give, by `machine.name`, as they were read last."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the readings of one due set go in one machine. take: places in the readings; put: columns of the machine."""

    machine: str
    width: int
    take: npt.NDArray[np.intp]
    put: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Beat:
    """What is due together, worked out once. due: indices of the points; scale, bias and loops: (due,)."""

    due: Ints
    targets: tuple[_Target, ...]
    scale: Floats
    bias: Floats
    loop: npt.NDArray[np.bool_]
    loop_low: Floats
    loop_high: Floats
    plain: bool
    parts: tuple[tuple[str, npt.NDArray[np.intp]], ...]
    """Of each part of the line that has points here, their places."""


Memory = MutableMapping[str, bytes]
"""By connection, what its sessions learned; kept by whoever gives it."""
Intake = Callable[[list[Frame]], None]
Missed = Callable[[str, int, int, int], None]
"""(connection, machine rows, from UTC µs, to UTC µs) of beats that were not taken."""


def lines(config: Config, plant: Plant, registry: plugins.Plugins, only: Collection[str] | None = None) -> list[Line]:
    """The connections of a configuration with their signals, secrets put in. Raises SecretError, UnknownPluginError.

    only: names of points (`machine.signal`); the others, and connections without any, are left out.
    """
    found, of = [], parts_of(config)
    polled: dict[str, list[PolledSignal]] = {}
    for name, signal in _signals(config):
        if only is None or signal.point.name in only:
            polled.setdefault(name, []).append(signal)
    for connection in config.connections.values():
        if signals := tuple(polled.get(connection.name, ())):
            widths = {s.machine: plant.by_name[s.machine].stop - plant.by_name[s.machine].start for s in signals}
            driver = registry.driver(connection.driver)
            settings = with_secrets(connection.settings, config)
            if isinstance(driver, Homes):
                settings = driver.at_home(settings, str(config.agent.data_dir))
            texts = tuple(t for t in _attributes(config, connection.name) if only is None or t.name in only)
            parts = tuple(of[connection.name][s.point.name] for s in signals)
            found.append(Line(connection.name, driver, settings, signals, widths, texts, parts))
    return found


def _attributes(config: Config, connection: str) -> Iterator[Point]:
    for machine in config.machines.values():
        for text in machine.attributes.values():
            if text.connection == connection and text.point is not None:
                yield Point(f"{machine.name}.{text.name}", text.point)


def _signals(config: Config) -> Iterator[tuple[str, PolledSignal]]:
    """Each with the name of its connection."""
    for machine in config.machines.values():
        for offset, signal in enumerate(machine.signals.values()):
            if signal.connection is None or signal.point is None:
                continue
            loop = signal.current_loop
            yield (
                signal.connection,
                PolledSignal(
                    machine=machine.name,
                    offset=offset,
                    point=Point(f"{machine.name}.{signal.name}", signal.point, signal.every_us),
                    every_us=signal.every_us,
                    scale=signal.scale,
                    bias=signal.offset,
                    loop_low=None if loop is None else loop.low,
                    loop_high=None if loop is None else loop.high,
                ),
            )


@dataclass(frozen=True, slots=True)
class ReadOnce:
    """One reading of everything. faults: by connection, why it could not be reached. reasons: by point name, why it is bad.

    attributes: by point name, the texts that the devices gave. lost: by connection with a fault, the quality that it has.
    """

    frames: list[Frame]
    faults: dict[str, str]
    reasons: dict[str, str]
    attributes: dict[str, str]
    lost: dict[str, Quality]


async def read_once(lines_: Sequence[Line], clock: Clock, time: AgentTime) -> ReadOnce:
    """Open every line, read each of its signals once, and close it again: what `read` and `check --connect` do."""
    once = ReadOnce([], {}, {}, {}, {})

    async def one(line: Line) -> None:
        await Poller(line, clock, time, once.frames.extend, lambda *_: None).once(once)

    async with asyncio.TaskGroup() as tasks:
        for line in lines_:
            tasks.create_task(one(line))
    return once


class Poller:
    """Polls one line for ever. `intake` gets the frames of each beat; `stroke` is called as often as the loop turns."""

    def __init__(
        self,
        line: Line,
        clock: Clock,
        time: AgentTime,
        intake: Intake,
        missed: Missed,
        stroke: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
        memory: Memory | None = None,
        belated: Intake = lambda _: None,
        *,
        since_us: int | None = None,
    ) -> None:
        self.line = line
        self._since_us = since_us
        """Beats count from here on (monotonic µs), whenever it begins to run; None: from when it does."""
        self.health = LineHealth(since_us=clock.wall_us())
        self._clock, self._time, self._intake, self._missed, self._stroke = clock, time, intake, missed, stroke
        self._rng = rng or random.Random(line.name)  # noqa: S311 - jitter, not a secret
        self._memory = {} if memory is None else memory
        self._hand_on_belated = belated
        self._belated: Belated | None = None
        self._periods = _periods(line)
        self._beats: dict[tuple[int, ...], _Beat] = {}
        self._places: dict[tuple[str, int], int] = {}
        self._session: Session | None = None
        self._describes: Describes | None = None
        self._describe_at_us = 0
        self._to_describe: deque[Point] = deque()
        self._idles: Idles | None = None
        self._remembers: Remembers | None = None
        self._asked = line
        """The line whose points the open session was told."""
        self._changed, self._broken = asyncio.Event(), asyncio.Event()
        self._first_due = False
        """Nothing has been read yet over this line, or of these signals: slow ones are read at once, before their beat."""
        self._why = Quality.DISCONNECTED
        self._silence = silence.Silence(*_parts(line), self._why)
        self._words: dict[str, str] = {}
        """Of parts that were lost while the line stood, in words why."""
        self._lost_at: int | None = None
        self._handed_on_us = -EVER_US
        """Of the latest frames, the agent's time."""
        self._looked = (clock.monotonic_us(), clock.wall_us() - clock.monotonic_us())
        """When the last readings came (monotonic µs), and wall minus monotonic clock then."""
        self._reached = 0
        """The last beat (monotonic µs) that has its row or is being read."""
        self._overdue_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Runs until cancelled; leaves no connection open."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_open())
            tasks.create_task(self._poll())

    async def once(self, into: ReadOnce) -> None:
        """Open, read everything once and close; whatever fails is a bad reading with its reason."""
        beat = self._due(tuple(self._periods))
        readings = None
        try:
            async with self._opened():
                readings = await self._read(beat)
                into.reasons.update(self._reasons(beat, readings))
                await self._describe(EVER_US)
                into.attributes.update(self.health.attributes)
        except Exception as error:  # noqa: BLE001 - the bulkhead, see `_failed`
            self._failed(error)
        if readings is None:
            readings = self.nothing(beat, self._why)
        if self.health.reason:
            into.faults[self.line.name], into.lost[self.line.name] = self.health.reason, self._why
        self._intake(self.frames(beat, readings))

    def _reasons(self, beat: _Beat, readings: Readings) -> Iterator[tuple[str, str]]:
        for place in np.flatnonzero((latest(readings) & CODE_MASK) >= Quality.UNCERTAIN).tolist():
            point = int(beat.due[place])
            if self._session is not None and (words := self._session.explain(point)):
                yield self.line.signals[point].point.name, words

    def use(self, line: Line) -> bool:
        """Go over to these signals between two reads, over the line that is open; False when it leads elsewhere."""
        if line.driver is not self.line.driver or line.settings != self.line.settings:
            return False
        self.line, self._periods = line, _periods(line)
        self._beats.clear()
        self._places.clear()
        self._first_due = bool(self._slow())
        self._describe_at_us = 0
        self._to_describe.clear()
        self._silence = self._silence.carried_over(*_parts(line))
        self._changed.set()
        return True

    def explain(self, machine: str, offset: int) -> str:
        """In words why this signal's last reading was bad; '' when nothing more is known."""
        if self._session is None or self._asked is not self.line:
            return self.health.reason
        if not self._places:
            self._places = {(s.machine, s.offset): point for point, s in enumerate(self.line.signals)}
        point = self._places.get((machine, offset))
        return "" if point is None else self._explained(point)

    def _explained(self, point: int) -> str:
        if self._session is None:
            return ""
        try:
            return self._session.explain(point)
        except Exception as error:  # noqa: BLE001 - the bulkhead, see `_failed`
            self._failed(error)
            return self.health.reason

    def look(self) -> LineHealth:
        """The health with the counters of this moment, also of a line that is read once an hour."""
        if self._session is not None:
            try:
                self._count(self._session.counters())
            except Exception as error:  # noqa: BLE001 - the bulkhead, see `_failed`
                self._failed(error)
        return self.health

    def _count(self, counters: dict[str, int | float]) -> None:
        line_busy_us = counters.get(LINE_BUSY)
        self.health.line_busy_us = None if line_busy_us is None else int(line_busy_us)
        self.health.counters = {name: count for name, count in counters.items() if name != LINE_BUSY}

    # --- the connection -------------------------------------------------------------------------------------------

    async def _keep_open(self) -> None:
        """Open the line, hold it while it works, and open it again with growing pauses when it is lost."""
        failures = 0
        while True:
            opened = False
            pause_s = 0.0
            try:
                opened = await self._hold_open()
            except Exception as error:  # noqa: BLE001 - the bulkhead, see `_failed`
                pause_s = self._failed(error)
            failures = 0 if opened else failures + 1
            pause_s = max(pause_s, self._pause_s(failures))
            self._enter(ConnectionState.BACKING_OFF, self.health.reason)
            await asyncio.sleep(pause_s)

    async def _hold_open(self) -> bool:
        """True once the line was open and at least one read came through, when it is lost again."""
        self._enter(ConnectionState.CONNECTING, self.health.reason)
        async with self._opened():
            before = self.health.beats
            await self._broken.wait()
            return self.health.beats > before

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        """The line, open; each step under its limit."""
        line = self.line
        opening = line.driver.open(line.name, line.settings, [signal.point for signal in line.signals], self._clock)
        async with asyncio.timeout(OPEN_LIMIT_S) as limit, opening as session:
            limit.reschedule(None)
            self._broken.clear()
            self._session, self._asked = session, line
            self._describes = session if isinstance(session, Describes) else None
            self._describe_at_us = 0
            self._to_describe.clear()
            self._idles = session if isinstance(session, Idles) else None
            self._belated = session if isinstance(session, Belated) else None
            self._remembers = session if isinstance(session, Remembers) else None
            if self._remembers is not None and (notes := self._memory.get(line.name)):
                self._remembers.recall(notes)
            self._first_due = bool(self._slow())
            if self._first_due:
                self._changed.set()
            try:
                yield
            finally:
                remembers = self._remembers
                self._session = self._describes = self._idles = self._remembers = self._belated = None
                # A line that hangs while it is closed must not keep it from being opened again.
                limit.reschedule(asyncio.get_running_loop().time() + CLOSE_LIMIT_S)
                self._keep_notes(remembers)  # last, for it is the driver's: what it raises must leave no session here

    def _keep_notes(self, session: Remembers | None) -> None:
        if session is not None and (notes := session.notes()) is not None:
            self._memory[self.line.name] = notes

    def _failed(self, error: Exception) -> float:
        """The bulkhead: a fault of a line, or a bug of its driver, stays in its connection. Returns the least pause in s."""
        if isinstance(error, DeviceSilent | DeviceRefused | TimeoutError):
            self._lost(error)
            return 0.0
        log.error("driver_failed", connection=self.line.name, exc_info=error)
        self._lost(error)
        return FAULT_PAUSE_S

    def _pause_s(self, failures: int) -> float:
        """Grows after some quick tries, with jitter so that many lines do not knock at once."""
        pause_s: float = min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(max(0, failures - QUICK_TRIES), 10))
        return pause_s * self._rng.uniform(0.5, 1.0)

    def _lost(self, error: Exception) -> None:
        match error:
            case DeviceSilent():
                self._why, reason = error.quality, str(error)
            case DeviceRefused():
                self._why, reason = Quality.REFUSED, str(error)
            case TimeoutError():
                asked = self._session is not None
                self._why = Quality.TIMEOUT if asked else Quality.DISCONNECTED
                reason = "no answer in time" if asked else f"not open within {OPEN_LIMIT_S:g} s"
            case _:
                self._why, reason = Quality.OTHER, f"the driver failed: {type(error).__name__}: {error}"
        # Until something is read again: a device that takes each connection and answers nothing is not well between.
        self._silence.fail(self._why)
        # A line that stands and over which nothing comes is another thing than one that is down.
        silent = self._session is not None and self._why is Quality.TIMEOUT
        self._away(ConnectionState.SILENT if silent else ConnectionState.DISCONNECTED, reason)
        self._broken.set()

    def _away(self, state: ConnectionState, reason: str) -> None:
        """Nothing comes any more: told once for each reason."""
        if reason != self.health.reason:
            log.warning("device_lost", connection=self.line.name, fault=reason)
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic_us()
        self._enter(state, reason)

    def _enter(self, state: ConnectionState, reason: str = "") -> None:
        if state is not self.health.state:
            if state is ConnectionState.CONNECTED and self._lost_at is not None:
                away_s = (self._clock.monotonic_us() - self._lost_at) / SECOND_US
                log.info("device_back", connection=self.line.name, away_s=round(away_s, 1))
                self._lost_at = None
            self.health.state, self.health.since_us = state, self._clock.wall_us()
        self.health.reason = reason

    # --- the beat -------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        last = self._clock.monotonic_us() if self._since_us is None else self._since_us
        while True:
            self._changed.clear()
            beat, periods = self._next(last)
            if self._first_due and self._session is not None:
                self._first_due = False
                beat, periods = self._clock.monotonic_us(), self._slow()
            elif not await self._waited_until(beat):
                last = max(last, self._clock.monotonic_us())
                continue
            self._stroke()
            await self._take(beat, periods)
            # What was due up to the time of its row is missed. Not a moment more: after a kill, what has no row is counted
            # from the time of the last one on (downtime).
            taken = self._handed_on_us - self._time.base_us
            self._count_missed(self._reached, taken)
            last = max(self._reached, taken)

    def _slow(self) -> tuple[int, ...]:
        return tuple(period for period in self._periods if period > NOT_WAITED_FOR_US)

    async def _waited_until(self, beat_us: int) -> bool:
        """False when there are other signals before it comes, which may have other beats.

        A session that has a use for the time until then gets it.
        """
        while (now := self._clock.monotonic_us()) < beat_us and not self._changed.is_set():
            wake_us = await self._idle(beat_us)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    max(0, min(beat_us, max(wake_us, now + IDLE_MIN_US)) - self._clock.monotonic_us()) / SECOND_US
                ):
                    await self._changed.wait()
        return not self._changed.is_set()

    async def _idle(self, until_us: int) -> int:
        """Let the session use the time until then; returns when it wants to be called again."""
        if self._session is None or self._asked is not self.line:
            return until_us
        try:
            async with asyncio.timeout(READ_LIMIT_S + (until_us - self._clock.monotonic_us()) / SECOND_US):
                await self._describe(until_us)
                wake_us = until_us if self._idles is None else await self._idles.idle(until_us)
            self._take_belated()
            return wake_us
        except Exception as error:  # noqa: BLE001 - the bulkhead, see `_failed`
            self._failed(error)
            return until_us

    def _take_belated(self) -> None:
        """What a session found of the past: handed on beside the judge, in its own time."""
        if self._asked is not self.line:  # what a session says of its points is no word about those that come next
            return
        if self._belated is None or (found := self._belated.belated()) is None:
            return
        due, readings = found
        checked(readings, len(due))
        ago = self._ago(readings)
        t, wall = self._time.now_us() - ago, self._clock.wall_us() - ago
        self._hand_on_belated(_scattered(_plan(self.line, due.tolist()), readings, t, wall))

    def _next(self, after_us: int) -> tuple[int, tuple[int, ...]]:
        """The next beat and the periods that are due at it."""
        beats = {period: next_beat(after_us, period) for period in self._periods}
        first = min(beats.values())
        return first, tuple(period for period, beat in beats.items() if beat == first)

    def _count_missed(self, beat_us: int, now_us: int) -> None:
        if now_us < min(next_beat(beat_us, period) for period in self._periods):
            return
        self.health.missed += beats_between(beat_us, now_us, self._periods)
        rows = rows_due([self.line], beat_us, now_us)
        first = min(next_beat(beat_us, period) for period in self._periods)
        last = max(now_us // period * period for period in self._periods)
        wall = self._clock.wall_us()
        self._missed(self.line.name, rows, wall - (now_us - first), wall - (now_us - last))

    async def _take(self, beat_us: int, periods: tuple[int, ...]) -> None:
        """One beat: read, or say why not. Hands the frames on in the same turn of the loop."""
        line, beat = self.line, self._due(periods)
        self._reached = beat_us
        if self.health.state is not ConnectionState.CONNECTED and self._session is not None:
            self._watch_overdue()
        try:
            readings = await self._read(beat)
        finally:
            if self._overdue_timer is not None:
                self._overdue_timer.cancel()
                self._overdue_timer = None
        if self.line is not line:  # another configuration came while it was read
            beat, readings = _carried_over(line, beat, readings, self.line)
        self._note(beat, readings)
        self._intake(self.frames(beat, self._marked(beat, self._of_one_clock(readings))))

    def _of_one_clock(self, readings: Readings) -> Readings:
        """The same readings; stamps from before a step of the wall clock are put on the clock of now.

        Only stamps of our own are: those that lie between the last readings and now by the clock of before, and not by that
        of now. A source's own stamp knows nothing of our clock.
        """
        now = self._clock.monotonic_us()
        (since, before), base = self._looked, self._clock.wall_us() - now
        self._looked = (now, base)
        if abs(base - before) < STEP_US:
            return readings
        ours = _between(readings.ts, since + before, now + before) & ~_between(readings.ts, since + base, now + base)
        return replace(readings, ts=np.where(ours, readings.ts + (base - before), readings.ts))

    def _watch_overdue(self) -> None:
        """A silent device is waited for longer than a beat: the beats that pass have their rows all the same."""
        beat_us, periods = self._next(self._reached)
        wait_s = max(0, beat_us - self._clock.monotonic_us()) / SECOND_US
        self._overdue_timer = asyncio.get_running_loop().call_later(wait_s, self._overdue, beat_us, periods)

    def _overdue(self, beat_us: int, periods: tuple[int, ...]) -> None:
        self._reached = beat_us
        beat = self._due(periods)
        # The row stands for the time until this beat; the one of this beat is that which the read will bring. So whoever
        # counts from a machine's last row finds every beat that has none, should the read never end.
        nothing = self.nothing(beat, Quality.TIMEOUT)
        before = Readings(
            nothing.values[np.newaxis],
            nothing.quality[np.newaxis],
            nothing.ts[np.newaxis],
            np.array([beat_us - 1], dtype=np.int64),
        )
        self._intake(self.frames(beat, self._marked(beat, before)))
        self._watch_overdue()

    # --- what is lost ---------------------------------------------------------------------------------------------

    def lost(self) -> dict[str, Loss]:
        """Of the line and each of its parts, by the names of the agent's own machine, why it is lost; 0: it is not.

        Of the parts of a line that is lost as a whole nothing is known: HOLD.
        """
        name, whole = self.line.name, self._whole_lost()
        found = {name: Loss(whole, self.health.reason if whole else "")}
        for part in sorted(set(self.line.parts) - {""}):
            why = Quality.HOLD if whole else self._silence.lost.get(part, Quality.GOOD)
            found[f"{name}.{part}"] = Loss(why, self._words.get(part, "") if why > Quality.HOLD else "")
        return found

    def _whole_lost(self) -> Quality:
        """Why the line is lost as a whole; GOOD: it is not."""
        if self._session is None:
            return self._why
        return next(iter(self._silence.lost.values())) if self._silence.everywhere else Quality.GOOD

    def _note(self, beat: _Beat, readings: Readings) -> None:
        """What of the line is lost after this reading."""
        if self._session is None or self._broken.is_set():
            return
        before = set(self._silence.lost)
        quality = latest(readings)
        fallen = self._silence.note(beat.due, quality, beat.parts)
        if back := before - self._silence.lost.keys():
            slow = self._slow()
            # What was asked in vain while it was lost is read now: nobody should wait an hour for it.
            self._first_due |= any(self.line.signals[i].every_us in slow for i in self._silence.silent_of(back))
        for part, point in fallen.items():
            # What stands before the first colon is the place, and the warning names the part itself.
            place, _, words = self._explained(point).partition(": ")
            self._words[part] = words or place
        if self._silence.everywhere and silence.silent(quality).any():
            self._away(ConnectionState.SILENT, "no answer to any request")

    def _marked(self, beat: _Beat, readings: Readings) -> Readings:
        """The same readings; those that lie behind what is lost say so."""
        whole, lost = bool(self._whole_lost()), self._silence.lost
        if not whole and not lost:
            return readings
        behind = np.zeros(len(beat.due), dtype=np.bool_)
        for part, places in beat.parts:
            # Points behind no part are told of by the line alone.
            behind[places] = whole or (part != "" and part in lost)
        bad = (readings.quality & CODE_MASK) > Quality.UNCERTAIN
        return replace(readings, quality=readings.quality | np.where(behind & bad, np.uint8(LINE_LOST), np.uint8(0)))

    # --- reading --------------------------------------------------------------------------------------------------

    async def _describe(self, until_us: int) -> None:
        """Read the texts of the line's devices once after it was opened, and then now and then.

        One by one, and no further one unless as much time is left until then as this one took: what hundreds of them take
        must make no beat late. The others come before the next beats.
        """
        wanted, now = self.line.attributes, self._clock.monotonic_us()
        if self._describes is None or not self.health.beats:
            return
        if not self._to_describe and now >= self._describe_at_us:
            self._describe_at_us = now + DESCRIBE_EVERY_US
            self._to_describe.extend(wanted)
            names = {point.name for point in wanted}
            self.health.attributes = {name: text for name, text in self.health.attributes.items() if name in names}
        took_us = 0
        while self._to_describe and (began := self._clock.monotonic_us()) + took_us < until_us:
            point = self._to_describe.popleft()
            (read,) = await self._describes.describe([point])
            ended = self._clock.monotonic_us()
            took_us = max(took_us, ended - began)
            was = self.health.attributes.get(point.name)
            if read is None:
                self._describe_at_us = min(self._describe_at_us, ended + DESCRIBE_AGAIN_US)
                continue
            if was is not None and was != read:
                log.warning("attribute_changed", connection=self.line.name, signal=point.name, was=was, now=read)
            self.health.attributes[point.name] = read

    async def _read(self, beat: _Beat) -> Readings:
        session = self._session
        if session is None:
            return self.nothing(beat, self._why)
        begun = self._clock.monotonic_us()
        try:
            async with asyncio.timeout(READ_LIMIT_S + self._periods[0] / SECOND_US):
                if self._asked is not self.line:
                    self._asked = self.line
                    session.use([signal.point for signal in self.line.signals])
                readings = checked(await session.read(beat.due), len(beat.due))
            counters = session.counters()
            self._keep_notes(self._remembers)
        except Exception as error:  # noqa: BLE001 - the bulkhead, see `_failed`
            self._failed(error)
            return self.nothing(beat, self._why)
        finally:
            self.health.busy_us += self._clock.monotonic_us() - begun
        self.health.beats += 1
        self._count(counters)
        if silence.heard(readings.quality).any():
            self._enter(ConnectionState.CONNECTED)
        return readings

    def nothing(self, beat: _Beat, why: Quality) -> Readings:
        count = len(beat.due)
        return Readings(
            np.full(count, np.nan),
            np.full(count, why, dtype=np.uint8),
            np.full(count, self._clock.wall_us(), dtype=np.int64),
        )

    def _due(self, periods: tuple[int, ...]) -> _Beat:
        found = self._beats.get(periods)
        if found is None:
            due = [i for i, signal in enumerate(self.line.signals) if signal.every_us in periods]
            found = self._beats[periods] = _plan(self.line, due)
        return found

    def frames(self, beat: _Beat, readings: Readings) -> list[Frame]:
        """Scatter: the one place where readings become frames of machines and get the agent's time."""
        return _scattered(beat, readings, *self._times(readings))

    def _times(self, readings: Readings) -> tuple[Ints, Ints]:
        """The agent's time of each row, never before what was handed on already, and the wall clock's: (rows,) each."""
        now, wall = self._time.now_us(), self._clock.wall_us()
        ago = np.maximum(self._ago(readings), 0)
        t = np.maximum(now - ago, self._handed_on_us)
        self._handed_on_us = now
        return t, wall - ago

    def _ago(self, readings: Readings) -> Ints:
        """How long ago each row came: (rows,) µs."""
        return np.zeros(1, dtype=np.int64) if readings.t is None else self._clock.monotonic_us() - readings.t


def rows_due(lines_: Sequence[Line], from_us: int, until_us: int) -> int:
    """How many machine rows were due in a span (UTC µs): on each line a machine's beats, shared ones once."""
    return sum(beats_between(from_us, until_us, its) for line in lines_ for its in periods_of(line).values())


def periods_of(line: Line) -> dict[str, set[int]]:
    """The periods with which it reads each of its machines, in µs."""
    found: dict[str, set[int]] = {}
    for signal in line.signals:
        found.setdefault(signal.machine, set()).add(signal.every_us)
    return found


def beats_between(after_us: int, until_us: int, periods: Collection[int]) -> int:
    """How many beats lie in (after, until], one that several periods share counted once. Exact however long it is."""
    # A multiple of another period has no beat of its own; of what is left, what k periods share is counted back and forth,
    # or, where they are many, beat by beat.
    own = sorted({p for p in periods if not any(p > other and p % other == 0 for other in periods)})
    if len(own) > PERIODS_COUNTED_FORTH:
        return _beats_one_by_one(after_us, until_us, own)
    total = 0
    for size in range(1, len(own) + 1):
        for chosen in itertools.combinations(own, size):
            shared = math.lcm(*chosen)
            total += (-1) ** (size - 1) * (until_us // shared - after_us // shared)
    return total


def _beats_one_by_one(after_us: int, until_us: int, periods: Sequence[int]) -> int:
    """In steps, so that it stays small in memory."""
    total, start = 0, after_us
    while start < until_us:
        stop = min(until_us, start + BEATS_AT_ONCE * periods[0])
        beats = [np.arange(start // p + 1, stop // p + 1, dtype=np.int64) * p for p in periods]
        total += len(np.unique(np.concatenate(beats)))
        start = stop
    return total


KNOWN = np.zeros(256, dtype=np.bool_)
KNOWN[[int(quality) for quality in Quality]] = True
"""The bytes that are a quality."""


def checked(readings: Readings, count: int) -> Readings:
    """What a driver gave, as the frames need it: `count` values, qualities and stamps. Raises ValueError else."""
    shape: tuple[int, ...] = (count,) if readings.t is None else (*np.shape(readings.t)[:1], count)
    wanted: list[tuple[str, Any, tuple[int, ...]]] = [("values", np.float64, shape), ("quality", np.uint8, shape)]
    wanted += [("ts", np.int64, shape)] + ([] if readings.t is None else [("t", np.int64, (max(1, shape[0]),))])
    for name, dtype, needed in wanted:
        array = getattr(readings, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != needed:
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"the driver gave {name} as {found}, not {np.dtype(dtype)} {needed}")
    if not KNOWN[readings.quality].all():
        raise ValueError(
            f"the driver gave the quality {int(readings.quality[~KNOWN[readings.quality]][0])}, which is none"
        )
    return readings


def latest(readings: Readings) -> Codes:
    """(due,) what was said of each point last; HOLD where nothing was."""
    quality = readings.quality
    if quality.ndim == 1 or len(quality) == 1:
        return quality.reshape(-1)
    spoke = quality != HOLD
    last = len(quality) - 1 - np.argmax(spoke[::-1], axis=0)
    found: Codes = quality[last, np.arange(quality.shape[1])]
    return found


def _periods(line: Line) -> list[int]:
    return sorted({signal.every_us for signal in line.signals})


def _between(stamps: Ints, first: int, last: int) -> Bools:
    return (stamps >= first) & (stamps <= last)


def _carried_over(old: Line, beat: _Beat, readings: Readings, new: Line) -> tuple[_Beat, Readings]:
    """What was read for one configuration, as the next one has it; what it no longer has, or reads elsewhere, is left out."""
    there = {signal.point.name: point for point, signal in enumerate(new.signals)}
    places, due = [], []
    for place, point in enumerate(beat.due.tolist()):
        asked = old.signals[point].point
        found = there.get(asked.name)
        if found is not None and new.signals[found].point.settings == asked.settings:
            places.append(place)
            due.append(found)
    chosen = np.array(places, dtype=np.intp)
    values, quality, ts = readings.values[..., chosen], readings.quality[..., chosen], readings.ts[..., chosen]
    return _plan(new, due), Readings(values, quality, ts, readings.t)


def _scattered(beat: _Beat, readings: Readings, t: Ints, wall: Ints) -> list[Frame]:
    """The readings in engineering units, as a frame of each machine. t, wall: (rows,), of each row."""
    values, quality = engineering(beat, readings)
    rows = (len(t), len(beat.due))
    values, quality, stamps = values.reshape(rows), quality.reshape(rows), readings.ts.reshape(rows)
    return [_frame(target, values, quality, stamps, t, wall) for target in beat.targets]


def _frame(target: _Target, values: Floats, quality: Codes, stamps: Ints, t: Ints, wall: Ints) -> Frame:
    rows = len(t)
    out, trust = np.full((rows, target.width), np.nan), np.full((rows, target.width), HOLD, dtype=np.uint8)
    out[:, target.put], trust[:, target.put] = values[:, target.take], quality[:, target.take]
    own = stamps[:, target.take]
    # What only stands has no time of its own; it is counted with the row.
    fresh = (quality[:, target.take] & CODE_MASK) != HOLD
    newest = np.where(fresh, own, NEVER_US).max(axis=1)
    ts = np.where((wall - newest <= LAG_US) & (newest - wall <= APART_US), newest, wall)
    apart = np.where(fresh, own, ts[:, np.newaxis]) - ts[:, np.newaxis]
    at = None
    if (np.abs(apart) > APART_US).any():
        at = np.repeat(ts[:, np.newaxis], target.width, axis=1)
        at[:, target.put] = own
    return Frame(target.machine, t, ts, out, trust, at)


def engineering(beat: _Beat, readings: Readings) -> tuple[Floats, Codes]:
    """Raw device values to engineering units: raw × scale + bias, and 4–20 mA loops by NAMUR NE 43. (due,) each."""
    if beat.plain:
        return readings.values, readings.quality
    values = readings.values * beat.scale + beat.bias
    quality = readings.quality
    if beat.loop.any():
        current = values
        broken = beat.loop & ((current <= LOOP_BROKEN_MA) | (current >= LOOP_SHORTED_MA))
        span = beat.loop_low + (current - LOOP_ZERO_MA) / LOOP_SPAN_MA * (beat.loop_high - beat.loop_low)
        values = np.where(beat.loop, span, current)
        fresh = (quality & CODE_MASK) <= Quality.UNCERTAIN
        quality = np.where(broken & fresh & (quality != HOLD), np.uint8(Quality.SENSOR_FAILURE), quality)
    return values, quality


def _plan(line: Line, due: list[int]) -> _Beat:
    """Where the readings of these points go."""
    chosen = [line.signals[i] for i in due]
    machines: dict[str, list[int]] = {}
    for place, signal in enumerate(chosen):
        machines.setdefault(signal.machine, []).append(place)
    scale, bias = _column(chosen, "scale"), _column(chosen, "bias")
    loop = np.array([signal.loop_low is not None for signal in chosen], dtype=np.bool_)
    return _Beat(
        due=np.array(due, dtype=np.int64),
        targets=tuple(
            _Target(
                machine,
                line.widths[machine],
                np.array(places, dtype=np.intp),
                np.array([chosen[place].offset for place in places], dtype=np.intp),
            )
            for machine, places in machines.items()
        ),
        scale=scale,
        bias=bias,
        loop=loop,
        loop_low=_column(chosen, "loop_low"),
        loop_high=_column(chosen, "loop_high"),
        plain=bool((scale == 1.0).all() and (bias == 0.0).all() and not loop.any()),
        parts=tuple((part, np.array(places, dtype=np.intp)) for part, places in _by_part(line, due).items()),
    )


def _parts(line: Line) -> tuple[list[Point], tuple[str, ...]]:
    """The points of a line, and of each the part that it lies behind."""
    return [signal.point for signal in line.signals], line.parts or ("",) * len(line.signals)


def _by_part(line: Line, due: Sequence[int]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, point in enumerate(due):
        places.setdefault(line.parts[point] if line.parts else "", []).append(place)
    return places


def _column(signals: Sequence[PolledSignal], name: str) -> Floats:
    values = [getattr(signal, name) for signal in signals]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
