"""The conformance suites: what every driver promises, checked over a real line to a plant that misbehaves; and what every
detector promises, checked on rows that are cut and stacked in all ways (`check_detector`, at the end).

Rule 1: nothing here knows a protocol; a `Plant` brings the server, the driver and the faults that it can play.
Rule 2: it is never imported at run time. It needs no test framework; under pytest it takes four lines:

    @pytest.mark.parametrize("check", driver_checks(), ids=str)
    def test_my_driver_keeps_the_promises_of_all_drivers(check: Check) -> None:
        check.run(MyPlant)
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ValidationError

from edge_agent.clock import SystemClock
from edge_agent.contract import (
    CODE_MASK,
    Band,
    Block,
    Change,
    Column,
    Detector,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
)

CANCEL_WITHIN_S = 0.1
"""From the cancellation of a read to its end, with nothing left behind."""
READ_WITHIN_S = 30.0
"""Longer than any driver's own timeout: a read that lasts longer hangs."""
OPEN_CLOSE_TIMES = 200
RECOVER_READS = 50
"""Reads within which a driver is good again after its plant is."""
SETTLE_S = 5.0
"""For the operating system and the server to let go of what the driver has closed."""
FRESH = (Quality.GOOD, Quality.CLOCK)


class Fault(StrEnum):
    """How a plant misbehaves, until it is told otherwise."""

    WELL = "well"
    LATE = "late"
    """Answers come after the driver's timeout."""
    SILENT = "silent"
    """The line stands and nothing comes."""
    CUT = "cut"
    """The line is cut in the middle of each answer."""
    REFUSING = "refusing"
    """Each request is answered with a refusal (an exception, BadNodeIdUnknown)."""
    LYING = "lying"
    """Answers that are not the ones asked for, or no answers at all by the protocol."""
    BAD_VALUE = "bad_value"
    """Answers that carry no number, or say themselves that the value is bad."""


class Plant(Protocol):
    """A server with a few points on a real socket, in this process or another; made anew for each check.

    driver, points: what is tried; the address settings as they stand in the YAML. expected: (points,) raw values while
    the fault is WELL. All timeouts in `connection` should be short (200 ms), since most checks wait for some.
    """

    driver: Driver
    points: Sequence[Mapping[str, Any]]
    expected: Sequence[float]

    async def start(self) -> None:
        """Serve, well, where it was before if it was; called before `connection` is looked at."""
        ...

    async def stop(self) -> None:
        """Close every line and the listening socket; nobody answers there any more."""
        ...

    def connection(self) -> Mapping[str, Any]:
        """The connection settings that lead to it, as they stand in the YAML."""
        ...

    def play(self, fault: Fault) -> None:
        """Misbehave like this from the next request on."""
        ...


@runtime_checkable
class SpeakingPlant(Plant, Protocol):
    """A plant that is not asked but speaks (a subscription, files that are dropped): between its words there is HOLD.

    stamps_back_s: how long before it speaks its values may have been measured.
    """

    stamps_back_s: float

    async def speak(self) -> None:
        """Say all values once more, as the fault that is played has it; called before each read."""
        ...


class SkippingClock:
    """The running loop's clock, which can be told that time has passed: waits of a minute are tested in none."""

    def __init__(self) -> None:
        self._skipped_us = 0
        self._wall_base_us = SystemClock().wall_us() - self.monotonic_us()

    def skip(self, span_us: int) -> None:
        self._skipped_us += span_us

    def monotonic_us(self) -> int:
        return round(asyncio.get_running_loop().time() * 1e6) + self._skipped_us

    def wall_us(self) -> int:
        return self._wall_base_us + self.monotonic_us()


@dataclass(frozen=True, slots=True)
class Check:
    """One promise. `faults` are those that a plant must be able to play for it."""

    name: str
    proof: Callable[["Line"], Awaitable[None]]
    faults: frozenset[Fault] = frozenset()

    def __str__(self) -> str:
        return self.name

    def run(
        self,
        make_plant: Callable[[], Plant],
        runner: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
    ) -> None:
        """Prove it over a new plant in a new event loop. Raises AssertionError with what was promised and what was.

        runner: another loop than asyncio's own, such as one with a clock of its own for a plant in this process.
        """
        runner(self.prove(make_plant()))

    async def prove(self, plant: Plant) -> None:
        await plant.start()
        try:
            await self.proof(Line(plant))
        finally:
            await plant.stop()


class Line:
    """What a check holds: the plant, its points as models, and a clock; sessions are opened from it."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.clock = SkippingClock()
        self._stamps_back_us = int(plant.stamps_back_s * 1e6) if isinstance(plant, SpeakingPlant) else 0
        models = (plant.driver.Address.model_validate(dict(settings)) for settings in plant.points)
        self.points = [Point(f"point_{number}", model) for number, model in enumerate(models)]
        self.due = np.arange(len(self.points), dtype=np.int64)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        connection = self.plant.driver.Connection.model_validate(dict(self.plant.connection()))
        async with self.plant.driver.open("conformance", connection, self.points, self.clock) as session:
            yield session

    async def read(self, session: Session, due: Ints | None = None) -> Readings:
        """All points, or those that are due, with the rules that hold for every answer."""
        asked = self.due if due is None else due
        if isinstance(self.plant, SpeakingPlant):
            await self.plant.speak()
        before_us = self.clock.wall_us()
        async with asyncio.timeout(READ_WITHIN_S):
            readings = await session.read(asked)
        self.check_shape(readings, before_us, len(asked))
        return readings

    def check_shape(self, readings: Readings, before_us: int, n: int) -> None:
        assert readings.values.shape == readings.quality.shape == readings.ts.shape == (n,), "one entry for each point"
        assert readings.values.dtype == np.float64, f"values are float64, not {readings.values.dtype}"
        assert readings.quality.dtype == np.uint8, f"quality is uint8, not {readings.quality.dtype}"
        assert readings.ts.dtype == np.int64, f"ts is int64, not {readings.ts.dtype}"
        bad = bad_of(readings)
        assert np.isnan(readings.values[bad]).all(), f"a bad value is NaN: {readings}"
        assert np.isfinite(readings.values[good_of(readings)]).all(), f"a good value is a number: {readings}"
        # A source's own stamp may be an hour off, or as old as what it tells; anything else is no time of this reading.
        most_us = 3_600_000_000 + int(READ_WITHIN_S * 1e6)
        after_us = readings.ts - before_us
        assert ((after_us <= most_us) & (-after_us <= most_us + self._stamps_back_us)).all(), "ts is UTC in µs"

    def check_true(self, readings: Readings) -> None:
        """What is good is what the plant really holds: a bad or missing value is sad, a wrong one unforgivable."""
        good = good_of(readings)
        expected = np.asarray(self.plant.expected, dtype=np.float64)
        wrong = good & (readings.values != expected)
        assert not wrong.any(), f"wrong values as good: {readings.values[wrong]} for {expected[wrong]}"

    async def expect_all_good(self, session: Session) -> None:
        readings = await self.read(session)
        self.check_true(readings)
        assert good_of(readings).all(), f"a plant that is well is read well: {readings}"

    async def expect_recovery(self, session: Session | None) -> None:
        """Good again within RECOVER_READS, reopening as the poller does after DeviceSilent."""
        for _ in range(RECOVER_READS):
            self.clock.skip(60_000_000)
            try:
                if session is None:
                    async with self.session() as fresh:
                        readings = await self.read(fresh)
                else:
                    readings = await self.read(session)
            except DeviceSilent:
                session = None
                continue
            self.check_true(readings)
            if good_of(readings).all():
                return
        raise AssertionError(f"not good again within {RECOVER_READS} reads after the plant was well again")


def good_of(readings: Readings) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(points,) fresh values that count."""
    return np.isin(readings.quality, FRESH)


def bad_of(readings: Readings) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(points,) BAD with any reason."""
    return (readings.quality & CODE_MASK) >= Quality.TIMEOUT


# --------------------------------------------------------------------------------------------------------- promises


async def a_key_that_nobody_knows_is_refused(line: Line) -> None:
    plant, driver = line.plant, line.plant.driver
    for model, written in ((driver.Connection, plant.connection()), (driver.Address, plant.points[0])):
        try:
            model.model_validate({**written, "no_such_key": 1})
        except ValidationError:
            continue
        raise AssertionError(f"{model.__name__} takes a misspelt key in silence: it needs ConfigDict(extra='forbid')")
    stray = driver.inherited - driver.Address.model_fields.keys()
    assert not stray, f"inherited keys that Address does not know: {sorted(stray)}"


async def settings_outlive_a_restart(line: Line) -> None:
    """The last good configuration is kept as JSON."""
    connection = line.plant.driver.Connection.model_validate(dict(line.plant.connection()))
    for settings in (connection, *(point.settings for point in line.points)):
        assert isinstance(settings, BaseModel)
        kept = settings.model_dump_json(round_trip=True)
        again = type(settings).model_validate_json(kept)
        assert again == settings, f"kept as {kept}, read again as {again!r}"


async def a_plant_that_is_well_is_read_well(line: Line) -> None:
    async with line.session() as session:
        for _ in range(3):
            await line.expect_all_good(session)


async def only_what_is_due_is_answered_and_in_its_order(line: Line) -> None:
    whole = line.due
    expected = np.asarray(line.plant.expected)
    async with line.session() as session:
        for due in (whole[:1], whole[-1:], whole[::2], whole[1:], whole):
            readings = await line.read(session, due)
            np.testing.assert_array_equal(readings.values[good_of(readings)], expected[due][good_of(readings)])
            assert good_of(readings).any(), f"{due} of a plant that is well: {readings}"


async def other_points_are_read_over_the_same_line(line: Line) -> None:
    every = line.points
    async with line.session() as session:
        await line.expect_all_good(session)
        opened = session.counters()
        for chosen in (every[1:], every[::-1], every[:1], every):
            session.use(chosen)
            expected = np.asarray([line.plant.expected[every.index(point)] for point in chosen])
            readings = await line.read(session, np.arange(len(chosen), dtype=np.int64))
            assert good_of(readings).all(), f"{len(chosen)} points of a plant that is well: {readings}"
            np.testing.assert_array_equal(readings.values, expected)
        now = session.counters()
    for count in ("reconnects", "sessions"):
        assert now.get(count) == opened.get(count), f"the line was opened again for other points: {count}"


async def what_was_handed_out_never_changes(line: Line) -> None:
    async with line.session() as session:
        first = await line.read(session)
        kept = first.values.copy(), first.quality.copy(), first.ts.copy()
        line.plant.play(Fault.SILENT)
        with suppress(DeviceSilent):
            await line.read(session)
        for now, then in zip((first.values, first.quality, first.ts), kept, strict=True):
            np.testing.assert_array_equal(now, then)


async def nobody_there_is_silence(line: Line) -> None:
    await line.plant.stop()
    said = None
    try:
        async with line.session() as session:
            await line.read(session)
    except DeviceSilent as error:
        said = str(error)
    assert said, "DeviceSilent, and in words, where nobody answers"


async def silence_is_said_and_never_a_value(line: Line) -> None:
    async with line.session() as session:
        await line.expect_all_good(session)
        line.plant.play(Fault.SILENT)
        await _expect_bad_or_silent(line, session, Quality.TIMEOUT)
        line.plant.play(Fault.WELL)
        await line.expect_recovery(session)


async def a_late_answer_is_never_a_later_value(line: Line) -> None:
    async with line.session() as session:
        line.plant.play(Fault.LATE)
        await _expect_bad_or_silent(line, session, Quality.TIMEOUT)
        line.plant.play(Fault.WELL)
        await line.expect_recovery(session)


async def a_line_cut_in_an_answer_is_said_and_healed(line: Line) -> None:
    async with line.session() as session:
        await line.expect_all_good(session)
        line.plant.play(Fault.CUT)
        await _expect_bad_or_silent(line, session, Quality.DISCONNECTED, Quality.TIMEOUT, Quality.PROTOCOL)
        line.plant.play(Fault.WELL)
        await line.expect_recovery(session)


async def a_refusal_is_a_refusal(line: Line) -> None:
    async with line.session() as session:
        line.plant.play(Fault.REFUSING)
        for _ in range(3):
            try:
                readings = await line.read(session)
            except DeviceRefused:
                break
            assert (readings.quality == Quality.REFUSED).all(), f"each point says that it is refused: {readings}"
            assert all(session.explain(point) for point in line.due.tolist()), "a refusal is explained in words"
        line.plant.play(Fault.WELL)
        await line.expect_recovery(session)


async def a_lie_is_never_a_value(line: Line) -> None:
    async with line.session() as session:
        line.plant.play(Fault.LYING)
        for _ in range(5):
            try:
                readings = await line.read(session)
            except DeviceSilent:
                break
            line.check_true(readings)
            assert bad_of(readings).any(), f"a lie is found out: {readings}"
        line.plant.play(Fault.WELL)
        await line.expect_recovery(session)


async def a_bad_value_is_not_a_number_and_has_a_reason(line: Line) -> None:
    async with line.session() as session:
        line.plant.play(Fault.BAD_VALUE)
        readings = await line.read(session)
        assert bad_of(readings).any(), f"at least one point is bad: {readings}"
        line.check_true(readings)
        line.plant.play(Fault.WELL)
        await line.expect_recovery(session)


async def a_plant_that_restarts_is_found_again(line: Line) -> None:
    async with line.session() as session:
        await line.expect_all_good(session)
        await line.plant.stop()
        await _expect_bad_or_silent(line, session, Quality.DISCONNECTED, Quality.TIMEOUT)
        await line.plant.start()
        await line.expect_recovery(session)


async def a_cancelled_read_ends_at_once_and_leaves_nothing(line: Line) -> None:
    async with line.session() as session:  # what is made once and kept (an executor's thread, a cache) is made here
        await line.expect_all_good(session)
    before = Remains.now()

    async def reading() -> None:
        async with line.session() as session:
            await line.expect_all_good(session)
            line.plant.play(Fault.SILENT)
            started.set()
            while True:
                await session.read(line.due)

    started = asyncio.Event()
    task = asyncio.create_task(reading())
    await started.wait()
    await asyncio.sleep(0.05)  # the request is on its way: this is the instant that is asked for, not a wait for one
    assert not task.done(), f"a silent plant is waited for: {task.exception()!r}"
    loop = asyncio.get_running_loop()
    cancelled_s = loop.time()
    task.cancel()
    await asyncio.wait([task])
    took_s = loop.time() - cancelled_s
    assert task.cancelled(), "the cancellation comes through"
    assert took_s <= CANCEL_WITHIN_S, f"it ended {took_s:.3f} s after its cancellation, not {CANCEL_WITHIN_S}"
    await Remains.settle_to(before)


async def opening_and_closing_leaves_nothing(line: Line) -> None:
    async with line.session() as session:  # as above
        await line.expect_all_good(session)
    before = Remains.now()
    for number in range(OPEN_CLOSE_TIMES):
        async with line.session() as session:
            if number % 10 == 0:
                await line.expect_all_good(session)
    await Remains.settle_to(before)


async def counters_are_numbers_and_grow(line: Line) -> None:
    async with line.session() as session:
        await line.expect_all_good(session)
        first = session.counters()
        await line.expect_all_good(session)
        second = session.counters()
    assert first.keys() == second.keys()
    assert all(isinstance(value, int | float) for value in second.values()), second
    assert any(second[name] > first[name] for name in second), "something is counted"


async def _expect_bad_or_silent(line: Line, session: Session, *reasons: Quality) -> None:
    """Three reads, none with a good value: BAD for one of these reasons, or DeviceSilent."""
    for _ in range(3):
        try:
            readings = await line.read(session)
        except DeviceSilent:
            return
        assert not good_of(readings).any(), f"nothing came, so nothing is good: {readings}"
        fresh = readings.quality[bad_of(readings)]
        assert np.isin(fresh, reasons).all(), f"{fresh} where {reasons} tell what happened"


@dataclass(frozen=True, slots=True)
class Remains:
    """What a driver could leave behind in this process."""

    tasks: int
    threads: int
    sockets: int

    @staticmethod
    def now() -> "Remains":
        descriptors = Path("/proc/self/fd")
        return Remains(len(asyncio.all_tasks()), threading.active_count(), sum(map(_is_socket, descriptors.iterdir())))

    @staticmethod
    async def settle_to(before: "Remains") -> None:
        """Wait until no more is left than before; servers notice a closed line a moment later."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SETTLE_S
        left = Remains.now()
        while left.tasks > before.tasks or left.threads > before.threads or left.sockets > before.sockets:
            assert loop.time() < until_s, f"left behind: {left}, before: {before}"
            await asyncio.sleep(0.01)
            left = Remains.now()


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


CHECKS = (
    Check("a key that nobody knows is refused", a_key_that_nobody_knows_is_refused),
    Check("settings outlive a restart", settings_outlive_a_restart),
    Check("a plant that is well is read well", a_plant_that_is_well_is_read_well),
    Check("only what is due is answered, and in its order", only_what_is_due_is_answered_and_in_its_order),
    Check("counters are numbers and grow", counters_are_numbers_and_grow),
    Check("nobody there is silence", nobody_there_is_silence),
    Check("other points are read over the same line", other_points_are_read_over_the_same_line),
    Check("what was handed out never changes", what_was_handed_out_never_changes, frozenset({Fault.SILENT})),
    Check("silence is said and never a value", silence_is_said_and_never_a_value, frozenset({Fault.SILENT})),
    Check("a late answer is never a later value", a_late_answer_is_never_a_later_value, frozenset({Fault.LATE})),
    Check(
        "a line cut in an answer is said and healed", a_line_cut_in_an_answer_is_said_and_healed, frozenset({Fault.CUT})
    ),
    Check("a refusal is a refusal", a_refusal_is_a_refusal, frozenset({Fault.REFUSING})),
    Check("a lie is never a value", a_lie_is_never_a_value, frozenset({Fault.LYING})),
    Check(
        "a bad value is NaN and has a reason",
        a_bad_value_is_not_a_number_and_has_a_reason,
        frozenset({Fault.BAD_VALUE}),
    ),
    Check("a plant that restarts is found again", a_plant_that_restarts_is_found_again),
    Check(
        "a cancelled read ends at once and leaves nothing",
        a_cancelled_read_ends_at_once_and_leaves_nothing,
        frozenset({Fault.SILENT}),
    ),
    Check(f"{OPEN_CLOSE_TIMES} times open and close leave nothing", opening_and_closing_leaves_nothing),
)


def driver_checks(without: frozenset[Fault] = frozenset()) -> tuple[Check, ...]:
    """All checks but those that need a fault which this plant cannot play: whoever leaves one out has to name it."""
    return tuple(check for check in CHECKS if not check.faults & without)


# --- detectors --------------------------------------------------------------------------------------------------------

ROUNDS, ROWS_MAX, COLUMNS_MAX = 60, 80, 5
UNITS = (0, 500_000, 1_000_000, 1_000_000, 1_000_000, 2_000_000, 45_000_000)
"""Steps of time, µs: rows at the same time, the usual beat, a gap."""


def check_detector(detector: Detector, settings: Sequence[Any] = (), seed: int = 1) -> None:
    """What every detector promises, on random rows with gaps, bad readings, HOLD, equal times and operating states.

    settings: what may stand under its key in a norm, several of them (a mapping, True, a bare value that it takes); () for a
    detector without settings. Raises AssertionError with what was promised and what was.
    """
    rng = np.random.default_rng(seed)
    models = _settings_of(detector, settings)
    _check_shape(detector, models)
    for number in range(ROUNDS):
        taken = _Rows.random(rng, models, detector)
        whole, end = taken.judged(rng, pieces=1)
        for pieces in (2, 5, 1000):
            found, state = taken.judged(rng, pieces)
            assert found == whole, f"seed {seed}, round {number}: cut into pieces it says {found}, as a whole {whole}"
            _assert_equal(state, end, f"seed {seed}, round {number}: the state after all rows")
        apart = [
            replace(change, column=column)
            for column in range(taken.width)
            for change in taken.only(column).judged(rng, 3)[0]
        ]
        ordered = sorted(apart, key=_order)
        assert ordered == whole, f"seed {seed}, round {number}: column by column it says {ordered}, together {whole}"
        _check_changes(detector, whole)


def _settings_of(detector: Detector, settings: Sequence[Any]) -> list[Any]:
    if detector.Settings is None:
        assert not settings, "a detector without Settings has none to try"
        return [None]
    assert settings, "give some settings to try"
    short = getattr(detector.Settings, "short", None)
    found = []
    for each in settings:
        plain = {} if each is True else each if isinstance(each, Mapping) else {short: each}
        model = detector.Settings.model_validate(plain)
        again = detector.Settings.model_validate(model.model_dump(mode="json", round_trip=True))
        assert again == model, "settings outlive being written down"
        found.append(model)
    try:
        detector.Settings.model_validate({"no_such_key": 1})
    except ValidationError:
        return [*found, None]
    raise AssertionError("a key that nobody knows is refused: extra='forbid'")


def _check_shape(detector: Detector, models: list[Any]) -> None:
    assert detector.kinds, "it finds at least one kind"
    assert all(isinstance(kind, str) for kind in detector.kinds), "kinds are texts"
    for count in (0, 1, 3):
        norms = detector.norms([_column(models[i % len(models)]) for i in range(count)])
        for noun, what in ((detector.start(count), "state"), (norms, "norms")):
            for part in fields(noun):
                array = getattr(noun, part.name)
                assert isinstance(array, np.ndarray), f"{what}.{part.name} is an array"
                assert array.shape[-1] == count, f"the last axis of {what}.{part.name} is the columns"


def _column(settings: Any, level: int = 1) -> Column:
    return Column(
        every_us=1_000_000,
        warning=Band(-1.0, 1.0, 0.25, 1_000_000, 2_000_000),
        alarm=Band(-np.inf, 2.0, 0.0, 0, 0),
        level=level,
        stale_us=5_000_000,
        health_us=-1,
        settings=settings,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one machine and the norms of each operating state. All arrays (rows, columns) unless said.

    states: (rows,) which one each row is in. norms: by state.
    """

    detector: Detector
    norms: tuple[Any, ...]
    states: Ints
    values: np.ndarray[Any, np.dtype[np.float64]]
    known: np.ndarray[Any, np.dtype[np.bool_]]
    good: np.ndarray[Any, np.dtype[np.bool_]]
    fresh: np.ndarray[Any, np.dtype[np.bool_]]
    late: np.ndarray[Any, np.dtype[np.bool_]]
    seen_ts: Ints
    steps_us: Ints
    """(rows,)"""
    ts: Ints
    """(rows,)"""
    armed: np.ndarray[Any, np.dtype[np.bool_]]
    """(rows,)"""

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    @staticmethod
    def random(rng: np.random.Generator, models: list[Any], detector: Detector) -> "_Rows":
        rows, width = int(rng.integers(0, ROWS_MAX)), int(rng.integers(1, COLUMNS_MAX + 1))
        states = np.sort(rng.integers(0, 3, rows)) % 2
        norms = tuple(
            detector.norms([_column(models[i], int(rng.integers(1, 3))) for i in rng.integers(0, len(models), width)])
            for _ in range(2)
        )
        kind = rng.choice(4, (rows, width), p=[0.7, 0.1, 0.1, 0.1] if rng.random() < 0.6 else [1.0, 0.0, 0.0, 0.0])
        moves = rng.choice([0.0, 0.0, 0.0, 0.5, -0.5, 1.25, -1.25], (rows, width))
        new = np.cumsum(moves, axis=0) * 0.7 if rng.random() < 0.5 else moves + rng.normal(0, 1e-3, (rows, width))
        values, good = np.full((rows, width), np.nan), np.zeros((rows, width), dtype=np.bool_)
        fresh, seen = good.copy(), np.zeros((rows, width), dtype=np.int64)
        steps_us = rng.choice(UNITS, rows)
        ts = 1_700_000_000_000_000 + np.cumsum(rng.choice([*UNITS, -7_000_000], rows))
        held, last = np.full(width, np.nan), np.full(width, 1_700_000_000_000_000)
        for row in range(rows):  # 0: a new reading, 1: confirmed, 2: silence, 3: bad
            held = np.where(kind[row] == 0, new[row], np.where(kind[row] == 3, np.nan, held))
            values[row], fresh[row] = held, kind[row] == 0
            good[row] = fresh[row] | ((kind[row] == 1) & ~np.isnan(held))
            last = np.where(good[row], ts[row], last)
            seen[row] = last
        armed = rng.random() < 0.5 or np.arange(rows) >= rng.integers(0, rows + 1)
        late = ~good & (rng.random((rows, width)) < 0.3)
        known = ~np.isnan(values)
        whole = np.broadcast_to(armed, rows).copy()
        return _Rows(
            detector, norms, states, values, known, good, fresh, late, seen, steps_us.astype(np.int64), ts, whole
        )

    def only(self, column: int) -> "_Rows":
        """One column of them alone."""
        its = slice(column, column + 1)
        return replace(
            self,
            norms=tuple(_only(norms, its) for norms in self.norms),
            **{name: getattr(self, name)[:, its] for name in ("values", "known", "good", "fresh", "late", "seen_ts")},
        )

    def judged(self, rng: np.random.Generator, pieces: int) -> tuple[list[Change], Any]:
        """All changes with the row in which each came, and the state at the end. pieces: into how many it is cut."""
        state = self.detector.start(self.width)
        rows = len(self.values)
        ends = (
            set(rng.integers(0, rows + 1, min(pieces, 2 * rows + 1) - 1).tolist())
            if pieces < rows
            else set(range(rows))
        )
        ends |= set((np.flatnonzero(self.states[1:] != self.states[:-1]) + 1).tolist()) | {0, rows}
        found: list[Change] = []
        for first, stop in pairwise(sorted(ends)):
            enters = first > 0 and self.states[first] != self.states[first - 1]
            norms = self.norms[int(self.states[first])]
            before = deepcopy(norms)
            changes = self.detector.step(state, norms, self._block(slice(first, stop), bool(enters)))
            _assert_equal(norms, before, "norms are not changed by a step")
            assert [c.row for c in changes] == sorted(c.row for c in changes), "changes come in row order"
            found += [replace(change, row=change.row + first) for change in changes]
        return sorted(found, key=_order), state

    def _block(self, rows: slice, enters: bool) -> Block:
        return Block(
            columns=slice(0, self.width),
            values=self.values[rows],
            known=self.known[rows],
            good=self.good[rows],
            fresh=self.fresh[rows],
            late=self.late[rows],
            seen_ts=self.seen_ts[rows],
            step_us=self.steps_us[rows, None],
            ts=self.ts[rows, None],
            armed=self.armed[rows, None],
            entered=np.full(self.width, enters),
        )


def _only(norms: Any, columns: slice) -> Any:
    return replace(norms, **{part.name: getattr(norms, part.name)[..., columns] for part in fields(norms)})


def _order(change: Change) -> tuple[int, int, str]:
    return change.row, change.column, change.kind


def _check_changes(detector: Detector, changes: Sequence[Change]) -> None:
    level: dict[tuple[int, str], int] = {}
    for change in changes:
        key = (change.column, change.kind)
        assert change.kind in detector.kinds, f"{change.kind} is one of its kinds"
        assert 0 <= change.level <= 2, f"levels are 0, 1 and 2: {change}"
        told_again = change.again and change.level > 0
        assert change.level != level.get(key, 0) or told_again, f"nothing changed, and it says so: {change}"
        level[key] = change.level


def _assert_equal(found: Any, wanted: Any, what: str) -> None:
    for part in fields(wanted):
        one, other = getattr(found, part.name), getattr(wanted, part.name)
        assert one.dtype == other.dtype, f"{what}: {part.name} is {one.dtype}, was {other.dtype}"
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), f"{what}: {part.name} is {one}, not {other}"
