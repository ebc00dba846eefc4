"""One connection on its beat, on a virtual clock: late, silent, refusing, broken, lying and hanging devices."""

import asyncio
import dataclasses
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import pytest
import structlog
from pydantic import BaseModel
from structlog.testing import capture_logs

from edge_agent import poller
from edge_agent.clock import AgentTime
from edge_agent.contract import (
    LINE_LOST,
    Clock,
    Codes,
    DeviceRefused,
    DeviceSilent,
    Frame,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
)
from edge_agent.poller import ConnectionState, Line, PolledSignal, Poller
from tests import virtual
from tests.virtual import VirtualClock

MS, SECOND = 1_000, 1_000_000
HOUR_S = 3_600
GOOD, HOLD = Quality.GOOD, Quality.HOLD
Script = Callable[["Device"], Awaitable[None]]


class Device:
    """A device and its driver in one: what it does when it is opened, read and closed is a script each."""

    Connection = BaseModel
    Address = BaseModel
    inherited: frozenset[str] = frozenset()

    def __init__(
        self, on_open: Script | None = None, on_read: Script | None = None, on_close: Script | None = None
    ) -> None:
        self._on_open, self._on_read, self._on_close = on_open, on_read, on_close
        self.opened: list[int] = []
        self.closed = 0
        self.reads: list[tuple[int, list[int]]] = []
        self.used: list[list[str]] = []
        self.answer: Callable[[Ints], Readings] | None = None
        self.clock: Clock | None = None

    @property
    def now_us(self) -> int:
        assert self.clock is not None
        return self.clock.monotonic_us()

    @asynccontextmanager
    async def _open(self, points: Sequence[Point], clock: Clock) -> AsyncIterator[Session]:
        self.clock = clock
        self.opened.append(clock.monotonic_us())
        if self._on_open is not None:
            await self._on_open(self)
        try:
            yield self
        finally:
            self.closed += 1
            if self._on_close is not None:
                await self._on_close(self)

    def open(
        self, name: str, connection: Any, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        return self._open(points, clock)

    async def read(self, due: Ints) -> Readings:
        self.reads.append((self.now_us, due.tolist()))
        if self._on_read is not None:
            await self._on_read(self)
        return self.answer(due) if self.answer is not None else self.good(due)

    def good(self, due: Ints) -> Readings:
        assert self.clock is not None
        stamps = np.full(len(due), self.clock.wall_us(), dtype=np.int64)
        return Readings(due.astype(np.float64), np.zeros(len(due), dtype=np.uint8), stamps)

    def use(self, points: Sequence[Point]) -> None:
        self.used.append([point.name for point in points])

    def explain(self, point: int) -> str:
        return f"point {point} is bad"

    def counters(self) -> dict[str, int | float]:
        return {"requests": len(self.reads)}


def points(*periods_s: float, machine: str = "m", **more: Any) -> list[PolledSignal]:
    return [
        PolledSignal(machine, i, Point(f"{machine}.s{i}", i), round(period * SECOND), **more)
        for i, period in enumerate(periods_s)
    ]


def line(device: Device, signals: Sequence[PolledSignal] | None = None, name: str = "plc") -> Line:
    chosen = tuple(signals if signals is not None else points(1))
    widths = {s.machine: 1 + max(o.offset for o in chosen if o.machine == s.machine) for s in chosen}
    return Line(name, device, None, chosen, widths)


class Watched:
    """A poller that runs, with everything that it gave."""

    def __init__(self, its: Line, rng: random.Random | None = None, since_s: float | None = None) -> None:
        self.clock = VirtualClock()
        self.start_us = self.clock.monotonic_us()
        self.frames: list[Frame] = []
        self.gaps: list[tuple[str, int, float, float]] = []
        self.strokes = 0
        self._wall_us = self.clock.wall_us()
        agent_time = AgentTime(self.clock, self.start_us)
        since = None if since_s is None else self.start_us + round(since_s * SECOND)
        self.poller = Poller(
            its, self.clock, agent_time, self.frames.extend, self._missed, self._stroke, rng, since_us=since
        )
        self._task = asyncio.create_task(self.poller.run())

    def _missed(self, connection: str, rows: int, first: int, last: int) -> None:
        self.gaps.append((connection, rows, (first - self._wall_us) / SECOND, (last - self._wall_us) / SECOND))

    def _stroke(self) -> None:
        self.strokes += 1

    async def until(self, second: float) -> "Watched":
        """Let it run until so many seconds after the start, and a hair."""
        target = self.start_us + round(second * SECOND) + 1
        await asyncio.sleep((target - self.clock.monotonic_us()) / SECOND)
        assert not self._task.done()
        return self

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        assert self._task.cancelled()

    def told(self, offset: int = 0) -> list[tuple[float, int]]:
        """Of one column: at which second which quality."""
        return [((int(f.t[0]) - self.start_us) / SECOND, int(f.quality[0, offset]) & ~LINE_LOST) for f in self.frames]


def watch(device: Device, seconds: float, signals: Sequence[PolledSignal] | None = None) -> Watched:
    """Run a poller for so long and end it."""

    async def story() -> Watched:
        watched = Watched(line(device, signals))
        await watched.until(seconds)
        await watched.end()
        return watched

    return virtual.run(story())


def at(*seconds: float, then: Script) -> Script:
    """Do this in these seconds after the first opening only."""

    async def script(device: Device) -> None:
        if (device.now_us - 1_000_000_000) // SECOND in seconds:
            await then(device)

    return script


def raises(error: Exception) -> Script:
    async def script(device: Device) -> None:
        raise error

    return script


def takes(seconds: float) -> Script:
    async def script(device: Device) -> None:
        await asyncio.sleep(seconds)

    return script


# --- the virtual loop ---


def test_the_virtual_loop_moves_its_clock_and_knows_a_deadlock() -> None:
    async def day() -> float:
        start = asyncio.get_running_loop().time()
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time() - start

    began = time.monotonic()
    assert virtual.run(day()) == pytest.approx(86_400)
    assert time.monotonic() - began < 5

    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        virtual.run(stuck())


# --- the beat ---


@pytest.mark.parametrize("period", [0.1, 0.25, 1, 7])
def test_beats_are_whole_multiples_of_the_period(period: float) -> None:
    device = Device()
    watch(device, 60, points(period))
    moments = [moment for moment, _ in device.reads]
    assert len(moments) >= 60 // period - 1
    assert {moment % round(period * SECOND) for moment in moments} == {0}
    assert {b - a for a, b in itertools.pairwise(moments)} == {round(period * SECOND)}


def test_a_late_answer_shifts_no_later_beat_and_misses_none_within_its_period() -> None:
    device = Device(on_read=at(3, 5, then=takes(0.9)))
    watched = watch(device, 10)
    assert [moment % SECOND for moment, _ in device.reads] == [0] * 10
    assert [second for second, _ in watched.told()] == [1, 2, 3.9, 4, 5.9, 6, 7, 8, 9, 10]
    assert watched.gaps == []


@pytest.mark.parametrize(
    ("late_s", "missed", "last"), [(0.999999, 0, 0), (1.0, 1, 3), (1.5, 1, 3), (2.0, 2, 4), (4.25, 4, 6)]
)
def test_missed_beats_are_counted_exactly(late_s: float, missed: int, last: float) -> None:
    device = Device(on_read=at(2, then=takes(late_s)))
    watched = watch(device, 20)
    assert watched.poller.health.missed == missed
    assert watched.gaps == ([("plc", missed, 3, last)] if missed else [])
    assert len(watched.frames) + missed == 20


@pytest.mark.parametrize(("since_s", "due", "missed"), [(-0.5, 6, 0), (-1.0, 6, 0), (-2.5, 8, 2)])
def test_beats_that_passed_before_it_ran_are_read_or_missed_like_any_other(
    since_s: float, due: int, missed: int
) -> None:
    async def story() -> Watched:
        watched = await Watched(line(Device()), since_s=since_s).until(5)
        await watched.end()
        return watched

    watched = virtual.run(story())
    assert (watched.poller.health.missed, len(watched.frames) + missed) == (missed, due)
    assert watched.told()[0][0] == 0, "the first of them is read at once"


def test_the_rows_of_a_gap_are_those_that_would_have_come() -> None:
    """A beat that two periods share is one row of a machine; each machine has rows of its own."""
    signals = [*points(1, 5), *points(2, 3, machine="n")]
    whole = watch(Device(), 60, signals)
    device = Device(on_read=at(10, then=takes(17.5)))
    watched = watch(device, 60, signals)
    ((_, rows, first, last),) = watched.gaps
    assert (first, last) == (11, 27)
    assert len(watched.frames) + rows == len(whole.frames)
    assert watched.poller.health.missed == 17
    assert watched.poller.health.missed + watched.poller.health.beats == whole.poller.health.beats


def test_two_periods_share_their_beats() -> None:
    device = Device()
    watched = watch(device, 10, points(1, 5))
    assert [due for _, due in device.reads] == [[0], [0], [0], [0], [0, 1]] * 2
    assert [quality for _, quality in watched.told(1)] == [HOLD, HOLD, HOLD, HOLD, GOOD] * 2
    assert len(watched.frames) == 10


def test_periods_that_never_divide_each_other_are_each_kept() -> None:
    device = Device()
    watch(device, 12, points(2, 3))
    seconds = [((moment - 1_000_000_000) // SECOND, due) for moment, due in device.reads]
    # Multiples of the period on the monotonic clock, which stands at 1000 s: 1002 is the first of both.
    assert seconds == [(2, [0, 1]), (4, [0]), (5, [1]), (6, [0]), (8, [0, 1]), (10, [0]), (11, [1]), (12, [0])]


@pytest.mark.parametrize("periods", [(1,), (2, 3), (2, 3, 4, 6), (3, 5, 7), (10, 15, 4), (1, 7)])
def test_beats_between_are_those_that_one_would_count(periods: tuple[int, ...]) -> None:
    for after, until in ((0, 1), (0, 60), (5, 5), (7, 99), (12, 13)):
        wanted = sum(any(beat % period == 0 for period in periods) for beat in range(after + 1, until + 1))
        assert poller.beats_between(after, until, periods) == wanted


def test_one_read_serves_several_machines_and_leaves_other_columns_held() -> None:
    signals = [points(1, 1)[1], *points(1, machine="n")]
    frames = watch(Device(), 1, signals).frames
    assert [(f.machine, f.quality.tolist()) for f in frames] == [("m", [[HOLD, GOOD]]), ("n", [[GOOD]])]
    assert math.isnan(frames[0].values[0, 0])
    assert (frames[0].values[0, 1], frames[1].values[0, 0]) == (0.0, 1.0)
    assert frames[0].t.tolist() == frames[1].t.tolist()


def test_the_watchdog_is_stroked_at_every_beat_also_while_the_device_is_away() -> None:
    assert watch(Device(on_open=raises(DeviceSilent("no"))), 100).strokes == 100


def test_the_wall_clock_may_step_without_a_beat_too_few_or_too_many() -> None:
    async def story() -> Watched:
        watched = Watched(line(Device()))
        await watched.until(5)
        watched.clock.step_wall(-HOUR_S * SECOND)
        await watched.until(10)
        await watched.end()
        return watched

    watched = virtual.run(story())
    assert [second for second, _ in watched.told()] == list(range(1, 11))
    assert (watched.frames[5].ts - watched.frames[4].ts).tolist() == [(1 - HOUR_S) * SECOND]


# --- what a beat gives when there is no answer ---


def test_every_beat_gives_a_row_while_the_line_is_away() -> None:
    watched = watch(Device(on_open=raises(DeviceSilent("192.0.2.10 does not answer"))), 60)
    assert watched.told() == [(second, Quality.DISCONNECTED) for second in range(1, 61)]
    assert watched.poller.health.reason == "192.0.2.10 does not answer"


def test_a_refusal_is_told_as_refused_until_the_line_is_back() -> None:
    watched = watch(Device(on_open=at(0, then=raises(DeviceRefused("wrong password")))), 4)
    qualities = [quality for _, quality in watched.told()]
    assert (qualities[0], qualities[-1]) == (Quality.REFUSED, GOOD)
    assert set(qualities) == {Quality.REFUSED, GOOD}


def test_a_line_that_is_lost_in_a_read_gives_bad_rows_and_comes_back() -> None:
    device = Device(on_read=at(3, then=raises(DeviceSilent("cut"))))
    watched = watch(device, 6)
    assert [quality for _, quality in watched.told()][:3] == [GOOD, GOOD, Quality.DISCONNECTED]
    assert watched.told()[-1] == (6, GOOD)
    assert (len(device.opened), device.closed) == (2, 2)


def test_a_read_that_hangs_is_cut_off_as_timeout_and_the_line_opened_anew() -> None:
    device = Device(on_read=at(3, then=takes(HOUR_S)))
    watched = watch(device, 60)
    hung = 3 + poller.READ_LIMIT_S + 1
    assert watched.told()[:3] == [(1, GOOD), (2, GOOD), (hung, Quality.TIMEOUT)]
    assert watched.gaps == [("plc", 31, 4, hung)]
    assert len(watched.frames) + 31 == 60
    assert watched.told()[-1] == (60, GOOD)
    assert len(device.opened) == 2


def test_an_opening_that_hangs_is_given_up_and_tried_again() -> None:
    device = Device(on_open=at(0, then=takes(HOUR_S)))
    watched = watch(device, 60)
    assert [moment - device.opened[0] >= 30 * SECOND for moment in device.opened[1:]] == [True]
    assert watched.told()[0] == (1, Quality.DISCONNECTED)
    assert watched.told()[-1] == (60, GOOD)
    assert len(watched.frames) == 60


def test_a_line_that_hangs_while_it_is_closed_is_opened_again_all_the_same() -> None:
    device = Device(on_read=at(3, then=raises(DeviceSilent("cut"))), on_close=takes(HOUR_S))
    watched = watch(device, 30)
    assert len(device.opened) == 2
    assert watched.told()[-1] == (30, GOOD)


def test_all_points_silent_is_a_silent_connection_that_stays_open() -> None:
    device = Device()

    def silent(due: Ints) -> Readings:
        good = device.good(due)
        quality = np.full(len(due), Quality.TIMEOUT if 3 <= len(device.reads) <= 5 else GOOD, dtype=np.uint8)
        return Readings(good.values, quality, good.ts)

    device.answer = silent

    async def story() -> list[tuple[ConnectionState, str]]:
        watched = Watched(line(device))
        states = []
        for second in (2, 3, 6):
            await watched.until(second)
            states.append((watched.poller.health.state, watched.poller.health.reason))
        await watched.end()
        return states

    with capture_logs() as logs:
        assert virtual.run(story()) == [
            (ConnectionState.CONNECTED, ""),
            (ConnectionState.SILENT, "no answer to any request"),
            (ConnectionState.CONNECTED, ""),
        ]
    assert len(device.opened) == 1
    assert [(entry["event"], entry.get("away_s")) for entry in logs] == [("device_lost", None), ("device_back", 3.0)]


# --- opening again ---


def test_pauses_grow_after_some_quick_tries_with_jitter_and_never_beyond_a_minute() -> None:
    device = Device(on_open=raises(DeviceSilent("no")))
    watch(device, HOUR_S)
    pauses = [(b - a) / SECOND for a, b in itertools.pairwise(device.opened)]
    for failures, pause in enumerate(pauses, 1):
        most = min(60.0, 2.0 ** max(0, failures - poller.QUICK_TRIES))
        assert most / 2 <= pause <= most + 1e-6
    assert len({round(pause, 3) for pause in pauses}) > len(pauses) // 2


def test_lines_that_fail_together_do_not_knock_together() -> None:
    async def story() -> list[list[int]]:
        devices = [Device(on_open=raises(DeviceSilent("no"))) for _ in range(20)]
        all_watched = [Watched(line(device, name=f"plc-{i}")) for i, device in enumerate(devices)]
        await all_watched[0].until(600)
        for watched in all_watched:
            await watched.end()
        return [device.opened for device in devices]

    thirds = [opened[3] for opened in virtual.run(story())]
    assert len(set(thirds)) == 20


def test_after_a_good_read_the_first_pause_is_short_again() -> None:
    tries = 0

    async def sometimes(device: Device) -> None:
        nonlocal tries
        tries += 1
        if tries < 8:
            raise DeviceSilent("no")

    device = Device(on_open=sometimes)
    fail_once = at(900, then=raises(DeviceSilent("cut")))
    device._on_read = fail_once
    watch(device, 910)
    assert len(device.opened) == 9
    assert (device.opened[8] - (1_900 * SECOND)) / SECOND <= 1.0


def test_what_is_lost_and_back_is_logged_once_with_how_long_it_was_away() -> None:
    device = Device(
        on_open=at(*range(10, 100), then=raises(DeviceSilent("cut"))), on_read=at(10, then=raises(DeviceSilent("cut")))
    )
    with capture_logs() as logs:
        watched = watch(device, 200)
    assert [entry["event"] for entry in logs] == ["device_lost", "device_back"]
    back = next(second for second, quality in watched.told() if second > 10 and quality == GOOD)
    assert logs[1]["away_s"] == back - 10


# --- the bulkhead ---


def lies(device: Device, readings: Callable[[Ints], Any]) -> Device:
    device.answer = readings
    return device


def _short(due: Ints) -> Readings:
    return Readings(np.zeros(0), np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize(
    "device",
    [
        Device(on_read=raises(IndexError("list index out of range"))),
        Device(on_open=raises(IndexError("list index out of range"))),
        Device(on_close=raises(ValueError("close")), on_read=raises(KeyError("x"))),
        Device(on_read=raises(ExceptionGroup("two", [ValueError("a"), KeyError("b")]))),
        lies(Device(), _short),
        lies(Device(), lambda due: None),
        lies(Device(), lambda due: Readings(np.zeros((len(due), 2)), np.zeros(len(due), dtype=np.uint8), due)),
    ],
    ids=["read", "open", "close", "group", "short", "none", "shape"],
)
def test_a_bug_in_a_driver_stays_in_its_connection(device: Device) -> None:
    async def story() -> tuple[Watched, Watched]:
        structlog.configure(processors=[lambda *_: ""], logger_factory=structlog.ReturnLoggerFactory())
        broken, well = Watched(line(device, name="broken")), Watched(line(Device(), name="well"))
        await broken.until(100)
        await broken.end()
        await well.end()
        return broken, well

    broken, well = virtual.run(story())
    assert well.told() == [(second, GOOD) for second in range(1, 101)]
    assert len(broken.frames) == 100
    assert {quality for _, quality in broken.told()} <= {Quality.OTHER, Quality.DISCONNECTED}


@pytest.mark.parametrize(
    ("device", "closed"),
    [
        (Device(), 1),
        (Device(on_read=takes(20)), 1),
        (Device(on_open=takes(HOUR_S)), 0),
        (Device(on_open=raises(DeviceSilent("no"))), 0),
    ],
    ids=["waiting", "reading", "opening", "pausing"],
)
def test_cancelling_ends_cleanly_whatever_the_poller_is_doing(device: Device, closed: int) -> None:
    async def story() -> int:
        watched = Watched(line(device))
        await watched.until(2.5)
        began = watched.clock.monotonic_us()
        await watched.end()
        assert len(asyncio.all_tasks()) == 1
        return watched.clock.monotonic_us() - began

    assert virtual.run(story()) == 0
    assert device.closed == closed


def test_a_line_that_hangs_while_it_is_closed_delays_the_end_by_its_limit_only() -> None:
    async def story() -> float:
        watched = Watched(line(Device(on_close=takes(HOUR_S))))
        await watched.until(2.5)
        began = watched.clock.monotonic_us()
        await watched.end()
        return (watched.clock.monotonic_us() - began) / SECOND

    assert virtual.run(story()) <= poller.CLOSE_LIMIT_S + 0.001


# --- another configuration ---


def test_moved_columns_and_scales_are_taken_over_without_dropping_the_line() -> None:
    async def story() -> tuple[Device, Watched, bool]:
        device = Device()
        device.answer = lambda due: Readings(
            np.full(len(due), 3.0), np.zeros(len(due), dtype=np.uint8), device.good(due).ts
        )
        watched = Watched(line(device))
        await watched.until(2)
        (moved,) = points(1, scale=10.0)
        new = Line("plc", device, None, (PolledSignal("m", 2, moved.point, SECOND, scale=10.0),), {"m": 3})
        taken = watched.poller.use(new)
        await watched.until(4)
        await watched.end()
        return device, watched, taken

    device, watched, taken = virtual.run(story())
    assert taken
    assert len(device.opened) == 1
    assert [f.values.shape for f in watched.frames] == [(1, 1), (1, 1), (1, 3), (1, 3)]
    assert watched.frames[-1].values[0].tolist() == pytest.approx([math.nan, math.nan, 30.0], nan_ok=True)
    assert watched.frames[-1].quality[0].tolist() == [HOLD, HOLD, GOOD]


def test_a_reload_while_a_read_is_on_its_way_uses_the_new_columns() -> None:
    async def story() -> Watched:
        device = Device(on_read=takes(0.5))
        watched = Watched(line(device))
        await watched.until(1.2)
        (moved,) = points(1)
        watched.poller.use(Line("plc", device, None, (PolledSignal("m", 1, moved.point, SECOND),), {"m": 2}))
        await watched.until(2)
        await watched.end()
        return watched

    assert [f.quality.tolist() for f in virtual.run(story()).frames] == [[[HOLD, GOOD]]]


def test_signals_that_come_and_go_drop_no_line_and_no_beat() -> None:
    async def story() -> tuple[Device, Watched, list[bool]]:
        device = Device()
        watched = Watched(line(device, points(2)))
        await watched.until(2.5)
        taken = [watched.poller.use(line(device, points(2, 1)))]
        await watched.until(4.5)
        taken.append(watched.poller.use(line(device, points(1))))
        await watched.until(6.5)
        await watched.end()
        return device, watched, taken

    device, watched, taken = virtual.run(story())
    assert taken == [True, True]
    assert len(device.opened) == 1
    assert device.used == [["m.s0", "m.s1"], ["m.s0"]]
    assert [due for _, due in device.reads] == [[0], [1], [0, 1], [0], [0]]
    assert [round(t) for t, _ in watched.told()] == [2, 3, 4, 5, 6]
    assert watched.gaps == []


def test_a_shorter_period_is_not_waited_for_as_long_as_the_old_one() -> None:
    async def story() -> Watched:
        device = Device()
        watched = Watched(line(device, points(HOUR_S)))
        await watched.until(1000.5)
        watched.poller.use(line(device, points(1)))
        await watched.until(1003)
        await watched.end()
        return watched

    watched = virtual.run(story())
    assert [round(t) for t, _ in watched.told()] == [0, 1001, 1002, 1003], "the first one at once"
    assert watched.gaps == [], "what was never due is not missed"


def test_what_is_on_its_way_is_not_taken_for_a_signal_that_has_moved_to_another_register() -> None:
    async def story() -> Watched:
        device = Device(on_read=takes(0.5))
        watched = Watched(line(device, points(1, 1, 1)))
        await watched.until(1.2)
        kept, moved, _gone = points(1, 1, 1)
        moved = PolledSignal("m", 0, Point(moved.point.name, "holding:7"), SECOND)
        kept = PolledSignal("m", 1, kept.point, SECOND)
        watched.poller.use(Line("plc", device, None, (moved, kept), {"m": 2}))
        await watched.until(1.6)
        await watched.end()
        return watched

    (frame,) = virtual.run(story()).frames
    assert frame.quality.tolist() == [[HOLD, GOOD]]
    assert frame.values[0, 1] == 0.0


def test_only_another_driver_or_other_settings_are_another_line() -> None:
    async def story() -> None:
        device = Device()
        its = line(device, points(1, 5))
        watched = Watched(its)
        await watched.until(0.1)
        assert not watched.poller.use(line(Device(), points(1, 5)))
        assert not watched.poller.use(Line("plc", device, "other settings", its.signals, its.widths))
        assert watched.poller.use(line(device, points(1, 4, machine="n")))
        await watched.end()

    virtual.run(story())


# --- beats that pass while a silent device is waited for ---


def test_beats_that_pass_while_a_silent_device_is_waited_for_have_their_rows() -> None:
    device = Device(on_read=takes(2.5))

    def nothing(due: Ints) -> Readings:
        return Readings(np.full(len(due), np.nan), np.full(len(due), Quality.TIMEOUT, np.uint8), device.good(due).ts)

    device.answer = nothing
    watched = watch(device, 20.2)
    assert watched.gaps == []
    assert {quality for _, quality in watched.told()} == {Quality.TIMEOUT}
    assert len(watched.frames) == 20 - 1, "one row a beat, but for the read that is on its way"


def test_a_slow_device_that_answers_is_an_overload_and_not_silence() -> None:
    watched = watch(Device(on_read=takes(1.5)), 11.2)
    told = watched.told()
    # At first nobody knows yet whether it will ever answer.
    assert [quality for _, quality in told[:2]] == [Quality.TIMEOUT, GOOD]
    assert {quality for _, quality in told[2:]} == {GOOD}
    assert sum(rows for _, rows, _, _ in watched.gaps) == 4


def test_slow_signals_are_read_as_soon_as_their_line_is_open_or_they_are_new() -> None:
    async def story() -> tuple[Device, Watched]:
        device = Device(on_open=takes(0.5))
        watched = Watched(line(device, points(1, HOUR_S)))
        await watched.until(10.7)
        watched.poller.use(line(device, points(1, HOUR_S, 2 * HOUR_S)))
        await watched.until(12.2)
        await watched.end()
        return device, watched

    device, watched = virtual.run(story())
    slow = [((t - watched.start_us) / SECOND, due) for t, due in device.reads if due != [0]]
    assert slow == [(0.5, [1]), (pytest.approx(10.7, abs=0.01), [1, 2])]
    assert watched.gaps == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r: Readings(r.values.astype(np.int64), r.quality, r.ts),
        lambda r: Readings(r.values.tolist(), r.quality, r.ts),
        lambda r: Readings(r.values, r.quality + np.uint8(200), r.ts),
        lambda r: Readings(r.values, r.quality.astype(np.int64), r.ts),
        lambda r: Readings(r.values, r.quality, r.ts.astype(np.float64)),
        lambda r: Readings(r.values, r.quality, np.full(1, np.nan)),
        lambda r: Readings(r.values[:0], r.quality, r.ts),
    ],
)
def test_what_a_driver_must_not_give_is_a_fault_of_its_connection(wrong: Callable[[Readings], Readings]) -> None:
    device = Device()
    device.answer = lambda due: wrong(device.good(due))
    assert {quality for _, quality in watch(device, 5).told()} == {Quality.OTHER}


def test_many_periods_are_counted_exactly_and_in_time() -> None:
    periods = [SECOND * (97 + 2 * k) // 100 for k in range(25)]
    begun = time.monotonic()
    count = poller.beats_between(12_345, 600 * SECOND, periods)
    assert count == len({b for p in periods for b in range(p, 600 * SECOND + 1, p) if b > 12_345})
    assert time.monotonic() - begun < 10


def test_rows_due_are_counted_line_by_line_and_machine_by_machine() -> None:
    device = Device()
    one = line(device, points(1, 2, 5, machine="a") + points(1, machine="b"))
    other = line(device, points(3, machine="a"))
    assert poller.rows_due([one, other], 0, 30 * SECOND) == 30 + 30 + 10


def test_silence_keeps_its_reason_while_the_line_is_opened_again() -> None:
    watched = watch(Device(on_read=raises(DeviceSilent("does not answer", Quality.TIMEOUT))), 60)
    assert {quality for t, quality in watched.told()} == {Quality.TIMEOUT}


# --- engineering values and stamps ---


def one_value(raw: float, quality: int = GOOD, **more: Any) -> tuple[float, int]:
    device = Device()
    device.answer = lambda due: Readings(
        np.array([float(raw)]), np.array([quality], dtype=np.uint8), device.good(due).ts
    )
    (frame,) = watch(device, 1, points(1, **more)).frames
    return float(frame.values[0, 0]), int(frame.quality[0, 0]) & ~LINE_LOST


def test_a_value_is_raw_times_scale_plus_offset() -> None:
    assert one_value(5.0) == (5.0, GOOD)
    assert one_value(5.0, scale=0.5, bias=-1.0) == (1.5, GOOD)


@pytest.mark.parametrize(
    ("raw", "value", "quality"),
    [
        (3600, None, Quality.SENSOR_FAILURE),
        (3601, -0.399, GOOD),
        (4000, 0.0, GOOD),
        (12000, 8.0, GOOD),
        (20000, 16.0, GOOD),
        (20999, 16.999, GOOD),
        (21000, None, Quality.SENSOR_FAILURE),
        (0, None, Quality.SENSOR_FAILURE),
        (65535, None, Quality.SENSOR_FAILURE),
    ],
)
def test_a_current_loop_fails_by_namur_ne_43(raw: float, value: float | None, quality: Quality) -> None:
    got = one_value(raw, scale=0.001, loop_low=0.0, loop_high=16.0)
    assert got[1] == quality
    if value is not None:
        assert got[0] == pytest.approx(value)


def test_a_loop_may_fall_with_its_current_and_stand_beside_plain_signals() -> None:
    device = Device()
    device.answer = lambda due: Readings(np.array([8.0, 8.0]), np.zeros(2, dtype=np.uint8), device.good(due).ts)
    loop = PolledSignal("m", 0, Point("m.s0", 0), SECOND, loop_low=100.0, loop_high=0.0)
    (frame,) = watch(device, 1, [loop, points(1, 1)[1]]).frames
    assert frame.values[0].tolist() == [75.0, 8.0]


@pytest.mark.parametrize("quality", [Quality.TIMEOUT, Quality.HOLD, Quality.CONFIRMED, Quality.DISCONNECTED])
def test_what_is_not_a_fresh_reading_of_a_loop_keeps_its_own_reason(quality: Quality) -> None:
    assert one_value(math.nan, quality, loop_low=0.0, loop_high=16.0)[1] == quality


def stamped(*offsets_s: float) -> Frame:
    """A frame of signals with stamps so far from the wall clock."""
    device = Device()

    def answer(due: Ints) -> Readings:
        stamps = device.good(due).ts + np.array([round(o * SECOND) for o in offsets_s])
        quality: Codes = np.zeros(len(due), dtype=np.uint8)
        return Readings(np.zeros(len(due)), quality, stamps)

    device.answer = answer
    (frame,) = watch(device, 1, points(*[1] * len(offsets_s))).frames
    return frame


WALL = 1_795_000_000_000_000 + SECOND


def test_stamps_within_a_second_share_the_newest() -> None:
    frame = stamped(-0.4, 0.0, -1.0)
    assert frame.ts.tolist() == [WALL]
    assert frame.at is None
    assert stamped(-0.5).ts.tolist() == [WALL - 500 * MS]


def test_stamps_more_than_a_second_apart_are_kept_each() -> None:
    frame = stamped(0.0, -1.000001)
    assert frame.at is not None
    assert frame.at.tolist() == [[WALL, WALL - SECOND - 1]]
    assert frame.ts.tolist() == [WALL]


def test_what_a_source_tells_a_little_later_has_the_time_at_which_it_was_measured() -> None:
    """Else each value of a subscription would carry a stamp of its own, and rows of the past would stand after the present."""
    told = stamped(-2.5, -2.0)
    assert (told.ts.tolist(), told.at) == ([WALL - 2 * SECOND], None)
    device = Device()
    device.answer = lambda due: Readings(
        np.zeros(len(due)),
        np.array([Quality.GOOD, Quality.HOLD], np.uint8),
        device.good(due).ts - np.array([2 * SECOND, 0]),
    )
    (frame,) = watch(device, 1, points(1, 1)).frames
    assert (frame.ts.tolist(), frame.at) == ([WALL - 2 * SECOND], None), "what only stands has no time of its own"


@pytest.mark.parametrize("offset", [-30.0, 30.0])
def test_a_row_far_from_the_wall_clock_has_its_time_and_the_values_their_own(offset: float) -> None:
    frame = stamped(offset)
    assert frame.ts.tolist() == [WALL]
    assert frame.at is not None
    assert frame.at.tolist() == [[WALL + round(offset * SECOND)]]


# --- reading once ---


def test_reading_once_reads_every_line_and_says_which_could_not_be_reached() -> None:
    async def story() -> poller.ReadOnce:
        clock = VirtualClock()
        well, silent, hung = Device(), Device(on_open=raises(DeviceSilent("no route"))), Device(on_read=takes(HOUR_S))
        refused = Device(on_open=raises(DeviceRefused("wrong password")))
        lines = [
            line(device, points(1, 5, machine=name), name=name)
            for name, device in (("well", well), ("silent", silent), ("hung", hung), ("refused", refused))
        ]
        return await poller.read_once(lines, clock, AgentTime(clock, 0))

    once = virtual.run(story())
    assert once.faults == {"silent": "no route", "refused": "wrong password", "hung": "no answer in time"}
    assert {f.machine: f.quality.tolist() for f in once.frames} == {
        "well": [[GOOD, GOOD]],
        "silent": [[Quality.DISCONNECTED] * 2],
        "hung": [[Quality.TIMEOUT] * 2],
        "refused": [[Quality.REFUSED] * 2],
    }


# --- an hour of it ---


def test_an_hour_of_scripted_faults_leaves_no_beat_untold() -> None:
    rng = random.Random(3)

    async def moody(device: Device) -> None:
        mood = rng.random()
        if mood < 0.02:
            raise DeviceSilent("cut")
        if mood < 0.025:
            raise DeviceRefused("map")
        if mood < 0.03:
            raise IndexError("bug")
        if mood < 0.1:
            await asyncio.sleep(rng.uniform(0, 5))
        elif mood < 0.103:
            await asyncio.sleep(HOUR_S)

    async def opening(device: Device) -> None:
        if rng.random() < 0.5:
            raise DeviceSilent("no")

    structlog.configure(processors=[lambda *_: ""], logger_factory=structlog.ReturnLoggerFactory())
    watched = watch(Device(opening, moody), HOUR_S, points(1, 1, 10))
    assert len({int(f.t[0]) for f in watched.frames}) == len(watched.frames)
    rows = sum(rows for _, rows, _, _ in watched.gaps)
    # The read that is on its way at the end has told nothing yet; its own beat and what passed since are at most 41.
    assert 0 <= HOUR_S - len(watched.frames) - rows <= 41
    seen = {quality for _, quality in watched.told()}
    assert seen >= {GOOD, Quality.DISCONNECTED, Quality.REFUSED, Quality.TIMEOUT, Quality.OTHER}


# --- the time between reads, and what is remembered ---


class Idler(Device):
    """A device whose session has a use for the time between reads."""

    def __init__(self, wish_s: float = math.inf, takes_s: float = 0.0, then: Exception | None = None) -> None:
        super().__init__()
        self.idled: list[tuple[float, float]] = []
        self._wish_s, self._takes_s, self._then = wish_s, takes_s, then

    async def idle(self, until_us: int) -> int:
        """See contract.Idles."""
        self.idled.append((self.now_us / SECOND - 1000, until_us / SECOND - 1000))
        if self._then is not None:
            raise self._then
        await asyncio.sleep(min(self._takes_s, (until_us - self.now_us) / SECOND))
        return until_us if math.isinf(self._wish_s) else self.now_us + round(self._wish_s * SECOND)


def test_a_session_gets_the_time_between_two_beats() -> None:
    device = Idler(takes_s=0.9)
    watched = watch(device, 4.5)
    assert [at for at, _ in watched.told()] == [1, 2, 3, 4], "its work shifts no beat"
    assert [(round(now), until) for now, until in device.idled[-3:]] == [(2, 3), (3, 4), (4, 5)]


def test_a_session_is_called_again_when_it_wants_to_be() -> None:
    device = Idler(wish_s=2)
    watch(device, 25, points(30))
    assert [round(now) for now, _ in device.idled[:5]] == [0, 2, 4, 6, 8]
    greedy = Idler(wish_s=0)
    watch(greedy, 3, points(60))
    assert len(greedy.idled) <= 35, "no busy loop for one that always wants more"


@pytest.mark.parametrize("error", [DeviceSilent("gone"), DeviceRefused("no"), ValueError("a bug")])
def test_a_fault_between_reads_is_a_fault_of_the_line(error: Exception) -> None:
    device = Idler(then=error)
    watched = watch(device, 6)
    qualities = {quality for _, quality in watched.told()}
    assert qualities <= {GOOD, Quality.DISCONNECTED, Quality.REFUSED, Quality.OTHER}
    assert len([at for at, _ in watched.told()]) >= 5, "every beat has its row"
    assert device.closed == len(device.opened) or device.closed == len(device.opened) - 1


def test_other_signals_wait_for_no_idle_session() -> None:
    async def story() -> None:
        device = Idler(wish_s=1000)
        watched = Watched(line(device, points(30)))
        await watched.until(5)
        assert watched.poller.use(line(device, points(1)))
        await watched.until(9)
        await watched.end()
        assert [at for at, _ in watched.told() if at >= 6] == [6, 7, 8, 9]

    virtual.run(story())


class Learner(Device):
    """A device whose session remembers how often it was read."""

    def __init__(self) -> None:
        super().__init__(on_read=at(3, then=raises(DeviceSilent("gone"))))
        self.recalled: list[bytes] = []
        self.new = False

    async def read(self, due: Ints) -> Readings:
        self.new = len(self.reads) % 2 == 0
        return await super().read(due)

    def recall(self, notes: bytes) -> None:
        """See contract.Remembers."""
        self.recalled.append(notes)

    def notes(self) -> bytes | None:
        """See contract.Remembers."""
        return str(len(self.reads)).encode() if self.new else None


def test_what_a_session_learned_is_given_to_the_next() -> None:
    async def story() -> None:
        device, memory = Learner(), dict[str, bytes]()
        clock = VirtualClock()
        gone = lambda *_: None  # noqa: E731
        its = Poller(line(device), clock, AgentTime(clock, clock.monotonic_us()), gone, gone, memory=memory)
        task = asyncio.create_task(its.run())
        await asyncio.sleep(8)
        task.cancel()
        await asyncio.wait([task])
        assert len(device.opened) == 2
        assert device.recalled, "the second session got what the first had learned"
        assert memory["plc"] >= device.recalled[0]

    virtual.run(story())


class Described(Device):
    """A device with a serial number."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []
        self.says: list[str | None] = ["A-17"]

    async def describe(self, points: Sequence[Point]) -> list[str | None]:
        """See contract.Describes."""
        self.asked.append((self.now_us - 1_000_000_000) / SECOND)
        return [self.says[0] if len(self.says) == 1 else self.says.pop(0) for _ in points]


def test_texts_are_read_when_the_line_is_open_and_hourly() -> None:
    async def story() -> None:
        device = Described()
        its = dataclasses.replace(line(device, points(10)), attributes=(Point("m.serial", None),))
        watched = Watched(its)
        await watched.until(2 * HOUR_S + 100)
        assert watched.poller.health.attributes == {"m.serial": "A-17"}
        assert [round(second / HOUR_S, 1) for second in device.asked] == [0, 1, 2]
        device.says = [None, "B-18"]
        with capture_logs() as logs:
            await watched.until(4 * HOUR_S)
        assert [each["now"] for each in logs if each["event"] == "attribute_changed"] == ["B-18"]
        assert watched.poller.health.attributes == {"m.serial": "B-18"}, "what is not given now is asked for again soon"
        await watched.end()

    virtual.run(story())


def test_hundreds_of_texts_make_no_beat_late_and_all_of_them_come() -> None:
    """Read all at once they took longer than a read may take: the line was closed, and all began anew, for ever."""

    class Slow(Described):
        async def describe(self, points: Sequence[Point]) -> list[str | None]:
            await asyncio.sleep(0.3 * len(points))
            return await super().describe(points)

    async def story() -> None:
        device, names = Slow(), [f"m.serial{i}" for i in range(200)]
        its = dataclasses.replace(line(device), attributes=tuple(Point(name, None) for name in names))
        watched = await Watched(its).until(100)
        assert watched.told() == [(second, GOOD) for second in range(1, 101)]
        assert sorted(watched.poller.health.attributes) == sorted(names)
        assert (len(device.opened), len(device.asked)) == (1, 200)
        await watched.end()

    virtual.run(story())


def test_a_driver_that_cannot_explain_itself_is_a_fault_of_its_connection_alone() -> None:
    class Dumb(Device):
        def explain(self, point: int) -> str:
            raise ZeroDivisionError

    async def story() -> None:
        device = Dumb()
        device.answer = lambda due: dataclasses.replace(
            device.good(due),
            quality=np.full(len(due), Quality.TIMEOUT if len(device.reads) == 3 else 0, dtype=np.uint8),
        )
        its = dataclasses.replace(line(device, points(1, 1)), parts=("unit_1", "unit_2"))
        watched = await Watched(its).until(90)
        assert len(watched.frames) == 90
        assert len(device.opened) == 2
        assert watched.told()[-1] == (90, GOOD)
        assert watched.poller.explain("m", 0) == "the driver failed: ZeroDivisionError: "
        await watched.end()

    virtual.run(story())


def whys(watched: Watched) -> dict[str, int]:
    return {name: int(loss.why) for name, loss in watched.poller.lost().items()}


def test_a_part_of_which_all_is_silent_is_lost_and_a_line_when_all_of_its_parts_are() -> None:
    async def story() -> None:
        device = Device()
        quality = np.zeros(3, dtype=np.uint8)
        device.answer = lambda due: Readings(
            np.where(quality[due] == 0, 1.0, np.nan), quality[due], np.full(len(due), 1_795_000_000_000_000)
        )
        watched = Watched(dataclasses.replace(line(device, points(1, 1, 1)), parts=("unit_1", "unit_2", "unit_2")))
        assert whys(watched) == {"plc": Quality.DISCONNECTED, "plc.unit_1": HOLD, "plc.unit_2": HOLD}
        await watched.until(2)
        assert whys(watched) == {"plc": 0, "plc.unit_1": 0, "plc.unit_2": 0}
        quality[1] = Quality.TIMEOUT
        await watched.until(4)
        assert whys(watched) == {"plc": 0, "plc.unit_1": 0, "plc.unit_2": 0}, "half of a unit is not the unit"
        assert watched.frames[-1].quality[0].tolist() == [GOOD, Quality.TIMEOUT, GOOD]
        quality[2] = Quality.TIMEOUT
        await watched.until(6)
        assert whys(watched) == {"plc": 0, "plc.unit_1": 0, "plc.unit_2": Quality.TIMEOUT}
        assert watched.frames[-1].quality[0].tolist() == [GOOD, *[Quality.TIMEOUT | LINE_LOST] * 2]
        assert str(watched.poller.health.state) == "connected"
        quality[0] = Quality.TIMEOUT
        await watched.until(8)
        assert whys(watched) == {"plc": Quality.TIMEOUT, "plc.unit_1": HOLD, "plc.unit_2": HOLD}
        assert str(watched.poller.health.state) == "silent"
        quality[:] = 0
        await watched.until(10)
        assert whys(watched) == {"plc": 0, "plc.unit_1": 0, "plc.unit_2": 0}
        assert watched.frames[-1].quality[0].tolist() == [GOOD] * 3
        await watched.end()

    virtual.run(story())


def test_a_line_that_takes_every_connection_and_answers_nothing_is_lost_all_the_time() -> None:
    async def story() -> None:
        device = Device(on_read=raises(DeviceSilent("nothing comes", Quality.TIMEOUT)))
        watched = Watched(line(device))
        await watched.until(5)
        for second in range(5, 60):
            await watched.until(second + 0.3)
            assert whys(watched) == {"plc": Quality.TIMEOUT}
        assert len(device.opened) > 3
        await watched.end()

    virtual.run(story())


# --- several rows, and the past ---


def rows_of(device: Device, due: Ints, *back_s: float) -> Readings:
    """For each point a value in each of these moments before now; the first point has none in the first row."""
    back = np.array(back_s) * SECOND
    values = np.arange(len(back) * len(due), dtype=np.float64).reshape(len(back), len(due))
    quality = np.zeros(values.shape, dtype=np.uint8)
    values[0, 0], quality[0, 0] = np.nan, HOLD
    assert device.clock is not None
    ts = np.repeat((device.clock.wall_us() - back).astype(np.int64)[:, None], len(due), axis=1)
    return Readings(values, quality, ts, (device.now_us - back).astype(np.int64))


def test_several_rows_of_one_read_become_rows_of_a_frame_at_their_own_times() -> None:
    device = Device()
    device.answer = lambda due: rows_of(device, due, 0.5, 0.25, 0)
    watched = watch(device, 3.5, points(1, 1))
    frame = watched.frames[-1]
    np.testing.assert_array_equal(frame.values, [[np.nan, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(frame.quality, [[HOLD, GOOD], [GOOD, GOOD], [GOOD, GOOD]])
    assert [(t - watched.start_us) / SECOND for t in frame.t.tolist()] == [2.5, 2.75, 3.0]
    assert np.diff(frame.ts).tolist() == [250_000, 250_000]
    assert watched.poller.health.state is ConnectionState.CONNECTED


def test_no_row_lies_before_what_was_handed_on_already() -> None:
    device = Device()
    device.answer = lambda due: rows_of(device, due, 3.5, 0.5, 0)
    watched = watch(device, 5.5)
    t = np.concatenate([frame.t for frame in watched.frames])
    assert (np.diff(t) >= 0).all()
    frame = watched.frames[-1]
    assert [(t - watched.start_us) / SECOND for t in frame.t.tolist()] == [4.0, 4.5, 5.0]
    assert frame.ts[0] == frame.ts[2] - 3_500_000  # for people it was when it was


def test_what_was_said_of_a_point_last_is_what_it_says() -> None:
    quality = np.array([[3, GOOD, HOLD], [GOOD, HOLD, HOLD]], dtype=np.uint8)
    readings = Readings(np.zeros((2, 3)), quality, np.zeros((2, 3), dtype=np.int64), np.zeros(2, dtype=np.int64))
    assert poller.latest(readings).tolist() == [GOOD, GOOD, HOLD]


@pytest.mark.parametrize(
    "t", [np.zeros(3, dtype=np.int64), np.zeros((2, 1), dtype=np.int64), np.zeros(2), np.zeros(0, dtype=np.int64)]
)
def test_rows_without_their_times_are_a_bug_of_the_driver(t: Any) -> None:
    values = np.zeros((2, 1))
    wrong = Readings(values, np.zeros((2, 1), dtype=np.uint8), np.zeros((2, 1), dtype=np.int64), t)
    with pytest.raises(ValueError, match="the driver gave"):
        poller.checked(wrong, 1)


def test_what_comes_too_late_to_be_judged_goes_beside_the_frames_in_its_own_time() -> None:
    class Historian(Device):
        brought = 0

        async def idle(self, until_us: int) -> int:
            return until_us

        def belated(self) -> tuple[Ints, Readings] | None:
            if self.brought:
                return None
            self.brought += 1
            due = np.array([1], dtype=np.int64)
            return due, rows_of(self, due, 60, 30)

    async def story() -> tuple[list[Frame], list[Frame], int]:
        clock, frames, past = VirtualClock(), list[Frame](), list[Frame]()
        start = clock.monotonic_us()
        device = Historian()
        running = Poller(
            line(device, points(1, 1)),
            clock,
            AgentTime(clock, start),
            frames.extend,
            lambda *_: None,
            belated=past.extend,
        )
        task = asyncio.create_task(running.run())
        await asyncio.sleep(3.5)
        task.cancel()
        await asyncio.wait([task])
        return frames, past, start

    frames, past, start = virtual.run(story())
    (frame,) = past
    np.testing.assert_array_equal(frame.quality, [[HOLD, HOLD], [HOLD, GOOD]])
    assert frame.values[1, 1] == 1
    assert np.diff(frame.t).tolist() == [30 * SECOND]
    assert frame.t[0] < start
    assert all(len(each.t) == 1 for each in frames)


def test_the_past_that_comes_while_other_signals_are_put_in_is_never_shown_as_theirs() -> None:
    class Historian(Device):
        brought = False
        poller: Poller | None = None

        async def idle(self, until_us: int) -> int:
            if not self.used:
                await asyncio.sleep(0.1)
                assert self.poller is not None
                self.poller.use(line(self, after))
            return until_us

        def belated(self) -> tuple[Ints, Readings] | None:
            if self.brought:
                return None
            self.brought = True
            names = self.used[-1] if self.used else [signal.point.name for signal in before]
            due = np.array([names.index("m.s1")], dtype=np.int64)
            return due, rows_of(self, due, 60, 30)

    before, after = points(1, 1), points(1, 1)[::-1]

    async def story() -> list[Frame]:
        clock, past, device = VirtualClock(), list[Frame](), Historian()
        time = AgentTime(clock, clock.monotonic_us())
        running = Poller(line(device, before), clock, time, lambda _: None, lambda *_: None, belated=past.extend)
        device.poller = running
        task = asyncio.create_task(running.run())
        await asyncio.sleep(3.5)
        task.cancel()
        await asyncio.wait([task])
        return past

    (frame,) = virtual.run(story())
    assert (frame.quality[:, 0] == HOLD).all()
    assert frame.quality[1, 1] == GOOD


def test_notes_that_fail_at_the_end_of_a_session_leave_no_session_behind() -> None:
    class Forgetful(Device):
        failing = False

        def recall(self, notes: bytes) -> None:
            return

        def notes(self) -> bytes | None:
            if self.failing:
                raise RuntimeError("no notes")
            return None

    async def cut(device: Device) -> None:
        assert isinstance(device, Forgetful)
        device.failing = True
        raise DeviceSilent("cut")

    async def story() -> None:
        device = Forgetful(on_read=at(3, then=cut))
        watched = Watched(line(device))
        await watched.until(3.5)
        device.failing = False
        with capture_logs():
            await watched.until(90)
        assert len(device.opened) == 2
        assert device.closed == 1
        assert {quality for second, quality in watched.told() if 4 <= second < 30} == {Quality.OTHER}
        assert watched.told()[-1][1] == GOOD
        await watched.end()

    virtual.run(story())
