"""One connection on its beat: open, read, scatter into frames of machines, and start anew when the line is lost.

Rule 1: beats are whole multiples of the period; a late answer shifts no later beat, a missed one is counted.
Rule 2: every beat gives every due signal a row: a reading, or BAD with its reason. Silence is never just absence.
Rule 3: this is the bulkhead: a fault of a driver stays in its connection.
"""

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from edge_agent import plugins
from edge_agent.clock import AgentTime, next_beat
from edge_agent.config import Config, with_secrets
from edge_agent.contract import (
    CODE_MASK,
    SECOND_US,
    Clock,
    Codes,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Floats,
    Frame,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
)
from edge_agent.plant import Plant

log = structlog.get_logger(__name__)

OPEN_LIMIT_S = 30.0
CLOSE_LIMIT_S = 5.0
READ_LIMIT_S = 30.0
"""The most that one read may take beyond its period; drivers bound their own requests far below."""
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 60.0
FAULT_PAUSE_S = 60.0
"""After a bug in a driver: long, since trying again will not mend it."""
APART_US = SECOND_US
"""Readings further than this from their row's `ts` get a stamp of their own."""
LOOP_BROKEN_MA = 3.6
LOOP_SHORTED_MA = 21.0
"""NAMUR NE 43: at or beyond these currents the transmitter signals a failure."""
LOOP_ZERO_MA, LOOP_SPAN_MA = 4.0, 16.0
HOLD = int(Quality.HOLD)


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
    """A connection as the poller needs it. widths: the number of signals of each machine that it touches."""

    name: str
    driver: Driver
    settings: Any
    signals: tuple[PolledSignal, ...]
    widths: dict[str, int]


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
    counters: dict[str, int | float] = field(default_factory=dict)


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


Intake = Callable[[list[Frame]], None]
Missed = Callable[[str, int, int, int], None]
"""(connection, machine rows, from UTC µs, to UTC µs) of beats that were not taken."""


def lines(config: Config, plant: Plant, registry: plugins.Plugins) -> list[Line]:
    """The connections of a configuration with their signals, secrets put in. Raises SecretError, UnknownPluginError."""
    found = []
    for connection in config.connections.values():
        signals = tuple(_signals(config, connection.name))
        if signals:
            widths = {s.machine: plant.by_name[s.machine].stop - plant.by_name[s.machine].start for s in signals}
            settings = with_secrets(connection.settings, config)
            found.append(Line(connection.name, registry.driver(connection.driver), settings, signals, widths))
    return found


def _signals(config: Config, connection: str) -> Iterator[PolledSignal]:
    for machine in config.machines.values():
        for offset, signal in enumerate(machine.signals.values()):
            if signal.connection != connection or signal.point is None:
                continue
            loop = signal.current_loop
            yield PolledSignal(
                machine=machine.name,
                offset=offset,
                point=Point(f"{machine.name}.{signal.name}", signal.point),
                every_us=signal.every_us,
                scale=signal.scale,
                bias=signal.offset,
                loop_low=None if loop is None else loop.low,
                loop_high=None if loop is None else loop.high,
            )


@dataclass(frozen=True, slots=True)
class ReadOnce:
    """One reading of everything. faults: by connection, why it could not be reached."""

    frames: list[Frame]
    faults: dict[str, str]


async def read_once(lines_: Sequence[Line], clock: Clock, time: AgentTime) -> ReadOnce:
    """Open every line, read each of its signals once, and close it again: what `read` and `check --connect` do."""
    frames: list[Frame] = []
    faults: dict[str, str] = {}

    async def one(line: Line) -> None:
        poller = Poller(line, clock, time, frames.extend, lambda *_: None)
        periods = tuple(sorted({signal.every_us for signal in line.signals}))
        beat = _plan(line, periods)
        why = Quality.DISCONNECTED
        try:
            opening = line.driver.open(line.name, line.settings, [signal.point for signal in line.signals], clock)
            async with asyncio.timeout(OPEN_LIMIT_S), opening as session:
                readings = await session.read(beat.due)
        except (DeviceSilent, DeviceRefused, TimeoutError) as error:
            faults[line.name] = str(error) or f"no answer within {OPEN_LIMIT_S:g} s"
            why = Quality.REFUSED if isinstance(error, DeviceRefused) else why
            readings = poller.nothing(beat, why)
        except Exception as error:  # the bulkhead here too: a bug of one driver is a fault of its connection
            log.exception("driver_failed", connection=line.name)
            faults[line.name] = f"the driver failed: {type(error).__name__}: {error}"
            readings = poller.nothing(beat, Quality.OTHER)
        frames.extend(poller.frames(beat, readings))

    async with asyncio.TaskGroup() as tasks:
        for line in lines_:
            tasks.create_task(one(line))
    return ReadOnce(frames, faults)


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
    ) -> None:
        self.line = line
        self.health = LineHealth(since_us=clock.wall_us())
        self._clock, self._time, self._intake, self._missed, self._stroke = clock, time, intake, missed, stroke
        self._rng = rng or random.Random(line.name)  # noqa: S311 - jitter, not a secret
        self._periods = sorted({signal.every_us for signal in line.signals})
        self._beats: dict[tuple[int, ...], _Beat] = {}
        self._session: Session | None = None
        self._broken = asyncio.Event()
        self._why = Quality.DISCONNECTED
        self._lost_at: int | None = None

    async def run(self) -> None:
        """Runs until cancelled; leaves no connection open."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_open())
            tasks.create_task(self._poll())

    def remap(self, line: Line) -> bool:
        """Take over moved columns, scales or names without dropping the connection; False when that is not possible."""
        if not same_line(self.line, line):
            return False
        self.line = line
        self._beats.clear()
        return True

    # --- the connection -------------------------------------------------------------------------------------------

    async def _keep_open(self) -> None:
        """Open the line, hold it while it works, and open it again with growing pauses when it is lost."""
        failures = 0
        while True:
            opened = False
            pause_s = 0.0
            try:
                opened = await self._hold_open()
            except (DeviceSilent, DeviceRefused, TimeoutError) as error:
                self._lost(error)
            except Exception as error:  # the bulkhead: a bug of a driver stays in its connection
                log.exception("driver_failed", connection=self.line.name)
                self._lost(error)
                pause_s = FAULT_PAUSE_S
            failures = 0 if opened else failures + 1
            pause_s = max(pause_s, self._pause_s(failures))
            self._enter(ConnectionState.BACKING_OFF, self.health.reason)
            await asyncio.sleep(pause_s)

    async def _hold_open(self) -> bool:
        """True once the line was open and at least one read came through, when it is lost again."""
        points = [signal.point for signal in self.line.signals]
        self._enter(ConnectionState.CONNECTING, self.health.reason)
        opening = self.line.driver.open(self.line.name, self.line.settings, points, self._clock)
        async with asyncio.timeout(OPEN_LIMIT_S) as limit, opening as session:
            limit.reschedule(None)
            self._broken.clear()
            before = self.health.beats
            self._session = session
            try:
                await self._broken.wait()
            finally:
                self._session = None
                # A line that hangs while it is closed must not keep it from being opened again.
                limit.reschedule(asyncio.get_running_loop().time() + CLOSE_LIMIT_S)
            return self.health.beats > before

    def _pause_s(self, failures: int) -> float:
        """Grows from the first failure on, with jitter so that many lines do not knock at once."""
        pause_s: float = min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(failures, 10))
        return pause_s * self._rng.uniform(0.5, 1.0)

    def _lost(self, error: BaseException) -> None:
        reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        refused = isinstance(error, DeviceRefused)
        self._why = Quality.REFUSED if refused else Quality.DISCONNECTED
        self._away(ConnectionState.DISCONNECTED, reason)
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
        last = self._clock.monotonic_us()
        while True:
            beat, periods = self._next(last)
            await asyncio.sleep(max(0, beat - self._clock.monotonic_us()) / SECOND_US)
            self._stroke()
            await self._take(periods)
            now = self._clock.monotonic_us()
            self._count_missed(beat, now)
            # What was due while the read went on is missed; the next beat lies in the future.
            last = max(beat, now)

    def _next(self, after_us: int) -> tuple[int, tuple[int, ...]]:
        """The next beat and the periods that are due at it."""
        beats = {period: next_beat(after_us, period) for period in self._periods}
        first = min(beats.values())
        return first, tuple(period for period, beat in beats.items() if beat == first)

    def _count_missed(self, beat_us: int, now_us: int) -> None:
        if now_us < min(next_beat(beat_us, period) for period in self._periods):
            return
        self.health.missed += beats_between(beat_us, now_us, self._periods)
        periods: dict[str, set[int]] = {}
        for signal in self.line.signals:
            periods.setdefault(signal.machine, set()).add(signal.every_us)
        rows = sum(beats_between(beat_us, now_us, its) for its in periods.values())
        first = min(next_beat(beat_us, period) for period in self._periods)
        last = max(now_us // period * period for period in self._periods)
        wall = self._clock.wall_us()
        self._missed(self.line.name, rows, wall - (now_us - first), wall - (now_us - last))

    async def _take(self, periods: tuple[int, ...]) -> None:
        """One beat: read, or say why not. Hands the frames on in the same turn of the loop."""
        beat = self._due(periods)
        readings = await self._read(beat)
        # A reload may have moved the columns meanwhile; the points are still the same, or this poller was ended.
        self._intake(self.frames(self._due(periods), readings))

    async def _read(self, beat: _Beat) -> Readings:
        session = self._session
        if session is None:
            return self.nothing(beat, self._why)
        begun = self._clock.monotonic_us()
        try:
            async with asyncio.timeout(READ_LIMIT_S + self._periods[0] / SECOND_US):
                readings = checked(await session.read(beat.due), len(beat.due))
            counters = session.counters()
        except TimeoutError as error:
            self._lost(error)
            return self.nothing(beat, Quality.TIMEOUT)
        except (DeviceSilent, DeviceRefused) as error:
            self._lost(error)
            return self.nothing(beat, self._why)
        except Exception as error:  # the bulkhead, as above
            log.exception("driver_failed", connection=self.line.name)
            self._lost(error)
            return self.nothing(beat, Quality.OTHER)
        finally:
            self.health.busy_us += self._clock.monotonic_us() - begun
        self.health.beats += 1
        self.health.counters = counters
        if ((readings.quality == Quality.TIMEOUT) | (readings.quality == Quality.DISCONNECTED)).all():
            self._away(ConnectionState.SILENT, "no answer to any request")
        else:
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
            found = self._beats[periods] = _plan(self.line, periods)
        return found

    def frames(self, beat: _Beat, readings: Readings) -> list[Frame]:
        """Scatter: the one place where readings become frames of machines and get the agent's time."""
        values, quality = engineering(beat, readings)
        t, wall = np.array([self._time.now_us()], dtype=np.int64), self._clock.wall_us()
        return [_frame(target, values, quality, readings.ts, t, wall) for target in beat.targets]


def beats_between(after_us: int, until_us: int, periods: Collection[int]) -> int:
    """How many beats lie in (after, until], one that several periods share counted once. Exact however long it is."""
    # A multiple of another period has no beat of its own; of what is left, what k periods share is counted back and forth.
    own = [p for p in periods if not any(p > other and p % other == 0 for other in periods)]
    total = 0
    for size in range(1, len(own) + 1):
        for chosen in itertools.combinations(own, size):
            shared = math.lcm(*chosen)
            total += (-1) ** (size - 1) * (until_us // shared - after_us // shared)
    return total


def checked(readings: Readings, count: int) -> Readings:
    """What a driver gave, as the frames need it: `count` values, qualities and stamps. Raises ValueError else."""
    shapes = {array.shape for array in (readings.values, readings.quality, readings.ts)}
    if shapes != {(count,)}:
        raise ValueError(f"the driver gave readings of the shapes {sorted(shapes)} for {count} points")
    return readings


def same_line(old: Line, new: Line) -> bool:
    """Whether an open connection serves the new line too: the same device, asked for the same things as often."""
    if old.driver is not new.driver or old.settings != new.settings or len(old.signals) != len(new.signals):
        return False
    return all(
        a.point.settings == b.point.settings and a.every_us == b.every_us and a.machine == b.machine
        for a, b in zip(old.signals, new.signals, strict=True)
    )


def _frame(target: _Target, values: Floats, quality: Codes, stamps: Ints, t: Ints, wall_us: int) -> Frame:
    out, trust = np.full((1, target.width), np.nan), np.full((1, target.width), HOLD, dtype=np.uint8)
    out[0, target.put], trust[0, target.put] = values[target.take], quality[target.take]
    own = stamps[target.take]
    newest, oldest = int(own.max()), int(own.min())
    ts = newest if abs(wall_us - newest) <= APART_US else wall_us
    at = None
    if ts - oldest > APART_US or newest - ts > APART_US:
        at = np.full((1, target.width), ts, dtype=np.int64)
        at[0, target.put] = own
    return Frame(target.machine, t, np.array([ts], dtype=np.int64), out, trust, at)


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


def _plan(line: Line, periods: tuple[int, ...]) -> _Beat:
    """What is due when these periods' beats fall together, and where it goes."""
    due = [i for i, signal in enumerate(line.signals) if signal.every_us in periods]
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
    )


def _column(signals: Sequence[PolledSignal], name: str) -> Floats:
    values = [getattr(signal, name) for signal in signals]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
