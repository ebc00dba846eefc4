"""The one path on a virtual clock, with a store and a board that only remember."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from edge_agent import judge, snapshot
from edge_agent.clock import AgentTime
from edge_agent.contract import Frame, Quality
from edge_agent.pipeline import TICK_EVERY_S, Pipeline
from edge_agent.plant import Plant
from edge_agent.records import Command, Event, Gap, GapCause, JudgedFrame, Layout
from edge_agent.store.disk import MISSED
from tests import plants, virtual
from tests.plants import band, machine, norm, signal
from tests.virtual import VirtualClock

SECOND = plants.SECOND


class FakeStore:
    """Remembers what it was given, in order. puts: the frames of each call."""

    epoch = "k3f9"

    def __init__(self) -> None:
        self.puts: list[list[JudgedFrame]] = []
        self.journal: list[JudgedFrame | Event | Command | Gap | bytes] = []
        self.layouts: list[Layout] = []
        self.texts: dict[int, str] = {}

    def put(
        self,
        frames: Sequence[JudgedFrame],
        events: Sequence[Event] = (),
        commands: Sequence[Command] = (),
        gaps: Sequence[Gap] = (),
    ) -> list[Event]:
        if frames:
            self.puts.append(list(frames))
        numbered = [replace(event, epoch=self.epoch, seq=len(self.journal) + n) for n, event in enumerate(events, 1)]
        self.journal += [*frames, *commands, *numbered, *gaps]
        return numbered

    def put_snapshot(self, state: bytes, config_json: str) -> None:
        self.journal += [state]

    def save_text(self, row: int, text: str, *, soon: bool = True) -> None:
        self.texts[row] = text

    def load_text(self, row: int) -> str:
        return self.texts.get(row, "")

    def use_layouts(self, layouts: Sequence[Layout]) -> None:
        self.layouts = list(layouts)

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.journal if isinstance(item, kind)]


class FakeBoard:
    def __init__(self) -> None:
        self.frames: list[tuple[str, list[float], list[int], str | None]] = []
        self.standing: list[dict[str, object]] = []
        self.bands: dict[str, Any] = {}

    def frame(self, name: str, ts: int, values: Any, quality: Any, at: Any = None, state: str | None = None) -> None:
        self.frames.append((name, values.tolist(), quality.tolist(), state))

    def active(self, machine: str, events: list[dict[str, object]]) -> None:
        self.standing = [each for each in self.standing if each["machine"] != machine] + events

    def norms(self, name: str, bands: Any) -> None:
        self.bands[name] = bands


PRESS = machine("press", signal("oil", norm(band(high=60, on=2), stale=5)))
PUMP = machine("pump", signal("flow", norm(band(low=5), acknowledge="required")))


class Room:
    """A pipeline with all that it talks to, one that turns four times a second."""

    def __init__(self, plant: Plant) -> None:
        self.clock = VirtualClock()
        self.start_us = self.clock.monotonic_us()
        self.time = AgentTime(self.clock, self.start_us)
        self.store, self.board = FakeStore(), FakeBoard()
        self.retained: list[tuple[str, Any]] = []
        store: Any = self.store
        board: Any = self.board
        self.pipeline = Pipeline(
            plant, judge.start(plant), "{}", "0" * 12, store, board, self.clock, self.time, self._retain
        )
        self._turning = asyncio.create_task(self._turn())

    def _retain(self, topic: str, payload: bytes) -> None:
        self.retained.append((topic, orjson.loads(payload) if payload else b""))

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(TICK_EVERY_S)
            self.pipeline.turn()

    def take(self, name: str, *values: float) -> None:
        quality = np.where(np.isnan([values]), np.uint8(Quality.TIMEOUT), np.uint8(Quality.GOOD))
        self.pipeline.take([
            Frame(name, np.array([self.time.now_us()]), np.array([self.clock.wall_us()]), np.array([values]), quality)
        ])  # fmt: skip

    def second(self, us: int) -> float:
        return (us - self.start_us) / SECOND

    def end(self) -> None:
        self._turning.cancel()


def told(story: Callable[[Room], Awaitable[None]], *machines: SimpleNamespace) -> Room:
    """Play a story in a room with these machines (or the press and the pump)."""

    async def play() -> Room:
        room = Room(plants.plant(*(machines or (PRESS, PUMP))))
        await story(room)
        room.end()
        return room

    return virtual.run(play())


# --- frames ---


def test_what_comes_within_20_ms_is_judged_together_and_nothing_waits_longer() -> None:
    async def story(room: Room) -> None:
        room.take("press", 50.0)
        await asyncio.sleep(0.015)
        room.take("pump", 9.0)
        assert room.store.puts == []
        await asyncio.sleep(0.006)
        assert [[f.frame.machine for f in frames] for frames in room.store.puts] == [["press", "pump"]]
        room.take("press", 50.0)
        await asyncio.sleep(0.021)

    room = told(story)
    assert [len(frames) for frames in room.store.puts] == [2, 1]
    assert room.pipeline.judged_rows == 3


def test_two_rows_of_one_machine_in_one_beat_are_both_judged_in_order() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.take("pump", 9.0)
        room.pipeline.flush()

    room = told(story)
    assert [e.event for e in room.store.of(Event)] == ["raised", "cleared"]
    assert room.board.frames[-1][1] == [9.0]


def test_a_warning_goes_to_the_store_the_retained_topic_and_the_board() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.flush()

    room = told(story)
    (event,) = room.store.of(Event)
    assert (event.event, event.machine, event.kind) == ("raised", "pump", "low")
    (active,) = [payload for topic, payload in room.retained if topic == "pump/active"]
    assert [each["id"] for each in active["active"]] == [event.id]
    assert [each["id"] for each in room.board.standing] == [event.id]


def test_norms_are_published_when_the_operating_state_changes_and_not_else() -> None:
    its = machine(
        "m", signal("t", norm(band(high=60), by_state={"stopped": norm(band(high=40))})), signal("speed"),
        states={"running": "speed > 1", "stopped": "speed <= 1"},
    )  # fmt: skip

    async def story(room: Room) -> None:
        for speed in (5.0, 5.0, 0.0, 0.0, 5.0):
            room.take("m", 20.0, speed)
            room.pipeline.flush()

    room = told(story, its)
    norms = [payload["signals"]["t"] for topic, payload in room.retained if topic == "m/norms"]
    assert [(each["state"], each["warning"]["high"]) for each in norms] == [
        ("running", 60), ("stopped", 40), ("running", 60),
    ]  # fmt: skip
    assert [state for *_, state in room.board.frames] == ["running", "running", "stopped", "stopped", "running"]


# --- time ---


def test_a_silent_machine_gets_ticks_so_that_delays_and_stale_mature() -> None:
    async def story(room: Room) -> None:
        room.take("press", 61.0)
        await asyncio.sleep(10)

    room = told(story, PRESS)
    ticks = [f for f in room.store.of(JudgedFrame) if f.frame.tick]
    seconds = [room.second(int(f.frame.t[0])) for f in ticks]
    assert 1.5 <= seconds[0] <= 1.75
    assert all(1 <= b - a <= 1.8 for a, b in itertools.pairwise(seconds))
    assert [(e.event, e.kind) for e in room.store.of(Event)] == [("raised", "high"), ("raised", "stale")]
    assert 2 <= room.second(room.store.of(Event)[0].t) < 4
    assert 5 <= room.second(room.store.of(Event)[1].t) < 7
    assert [f for f in ticks if f.publish.any()] == [ticks[seconds.index(room.second(room.store.of(Event)[1].t))]]


def test_a_machine_that_speaks_on_its_beat_gets_no_ticks_also_when_it_is_a_little_late() -> None:
    async def story(room: Room) -> None:
        for _ in range(20):
            room.take("press", 50.0)
            await asyncio.sleep(1.2)

    assert not [f for f in told(story, PRESS).store.of(JudgedFrame) if f.frame.tick]


def test_a_machine_that_never_speaks_is_stale_in_the_end() -> None:
    async def story(room: Room) -> None:
        await asyncio.sleep(10)

    assert [(e.event, e.kind) for e in told(story, PRESS).store.of(Event)] == [("raised", "stale")]


def test_a_stepped_wall_clock_raises_and_clears_nothing() -> None:
    async def story(room: Room) -> None:
        for second in range(60):
            room.take("press", 50.0)
            if second in (20, 40):
                room.clock.step_wall((-1 if second == 20 else 2) * 86_400 * SECOND)
            await asyncio.sleep(1)

    assert told(story, PRESS).store.of(Event) == []


def test_a_snapshot_is_kept_each_minute_behind_everything_that_was_taken() -> None:
    async def story(room: Room) -> None:
        for _ in range(185):
            room.take("press", 50.0)
            await asyncio.sleep(1)

    room = told(story, PRESS)
    places = [i for i, item in enumerate(room.store.journal) if isinstance(item, bytes)]
    assert len(places) == 3
    state = judge.start(room.pipeline.plant)
    for item in room.store.journal[: places[-1]]:
        if isinstance(item, JudgedFrame):
            state, _ = judge.step(room.pipeline.plant, state, [item.frame], "k3f9")
    assert snapshot.dump(room.pipeline.plant, state) == room.store.journal[places[-1]]


def test_missed_beats_are_gathered_for_ten_seconds_and_told_as_one_gap() -> None:
    async def story(room: Room) -> None:
        wall = room.clock.wall_us()
        room.pipeline.missed("plc-1", 3, wall + 2 * SECOND, wall + 4 * SECOND)
        room.pipeline.missed("plc-2", 2, wall + 1 * SECOND, wall + 3 * SECOND)
        await asyncio.sleep(9)
        assert room.store.of(Gap) == []
        await asyncio.sleep(2)
        assert room.store.of(Gap) == [Gap(GapCause.OVERLOAD, 5, wall + SECOND, wall + 4 * SECOND)]
        await asyncio.sleep(60)
        room.pipeline.missed("plc-1", 1, wall, wall)
        await asyncio.sleep(11)

    assert [gap.count for gap in told(story).store.of(Gap)] == [5, 1]


def test_missed_beats_that_were_not_told_before_a_kill_are_told_after_it() -> None:
    kept: dict[int, str] = {}

    async def killed(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.missed("plc-1", 3, 1, 2)
        assert room.store.texts == {}, "they are kept with the row that came with them, and not before it"
        room.pipeline.flush()
        kept.update(room.store.texts)

    async def again(room: Room) -> None:
        room.store.texts = kept
        room.pipeline.resume(None)
        assert room.store.texts[MISSED] == ""

    told(killed)
    assert told(again).store.of(Gap) == [Gap(GapCause.OVERLOAD, 3, 1, 2)]


def test_missed_beats_that_were_told_are_not_told_again_after_a_kill() -> None:
    async def story(room: Room) -> None:
        room.pipeline.missed("plc-1", 3, 1, 2)
        room.take("pump", 1.0)
        await asyncio.sleep(11)
        assert room.store.texts[MISSED] == ""
        room.pipeline.resume(None)

    assert [gap.count for gap in told(story).store.of(Gap)] == [3]


def test_the_end_judges_what_waits_tells_missed_beats_and_keeps_the_state() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.missed("plc-1", 1, room.clock.wall_us(), room.clock.wall_us())
        room.pipeline.close()

    room = told(story)
    assert [type(item).__name__ for item in room.store.journal] == ["JudgedFrame", "Event", "Gap", "bytes"]


# --- people ---


def test_an_acknowledgement_is_journalled_in_its_place_among_the_frames() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.flush()
        (event,) = room.store.of(Event)
        await asyncio.sleep(0.5)
        room.take("pump", 2.0)
        answer = room.pipeline.acknowledge(event.id, "Ada", "seen")
        assert (answer["event"], answer["state"], answer["by"], answer["comment"]) == (
            "acknowledged", "acknowledged", "Ada", "seen",
        )  # fmt: skip

    room = told(story)
    assert [type(item).__name__ for item in room.store.journal] == [
        "JudgedFrame", "Event", "JudgedFrame", "Command", "Event",
    ]  # fmt: skip
    (command,) = room.store.of(Command)
    assert (command.command, command.by, command.comment) == ("acknowledge", "Ada", "seen")
    assert command.ts == room.store.of(Event)[1].ts
    last = [payload for topic, payload in room.retained if topic == "pump/active"][-1]
    assert [each["state"] for each in last["active"]] == ["acknowledged"]
    assert [each["state"] for each in room.board.standing] == ["acknowledged"]


def test_judging_the_journal_again_gives_the_same_state_commands_included() -> None:
    async def story(room: Room) -> None:
        for value in (1.0, 2.0, 9.0, 1.0):
            room.take("pump", value)
            await asyncio.sleep(1)
            if value == 2.0:
                room.pipeline.acknowledge(room.store.of(Event)[0].id, "Ada", "")
        room.pipeline.flush()

    room = told(story, PUMP)
    plant, state = room.pipeline.plant, judge.start(room.pipeline.plant)
    events: list[Event] = []
    for item in room.store.journal:
        if isinstance(item, JudgedFrame):
            state, judged = judge.step(plant, state, [item.frame], "k3f9")
            events += judged.events
        elif isinstance(item, Command):
            state, event = judge.acknowledge(plant, state, item.id, item.by, item.comment, item.ts)
            events.append(event)
    told_events = room.store.of(Event)
    assert events == [replace(event, epoch="", seq=0) for event in told_events]
    judge.numbered(state, {event.id: (event.epoch, event.seq) for event in told_events})
    assert snapshot.dump(plant, state) == snapshot.dump(plant, room.pipeline.state)


def test_what_comes_too_late_to_be_judged_is_kept_and_told_and_judged_neither_now_nor_again() -> None:
    dial = machine("dial", signal("hot", norm(band(high=60)), valid_low=-40.0, valid_high=150.0))

    async def story(room: Room) -> None:
        room.take("dial", 20.0)
        room.pipeline.flush()
        before = snapshot.dump(room.pipeline.plant, room.pipeline.state)
        past = room.time.now_us() - np.array([30, 20, 10, 5]) * SECOND
        wall = room.clock.wall_us() - np.array([30, 20, 10, 5]) * SECOND
        values = np.array([[70.0], [400.0], [np.inf], [np.nan]])
        quality = np.array([[Quality.GOOD], [Quality.CLOCK], [Quality.GOOD], [Quality.HOLD]], dtype=np.uint8)
        room.pipeline.belated([Frame("dial", past, wall, values, quality)])
        assert snapshot.dump(room.pipeline.plant, room.pipeline.state) == before
        assert len(room.board.frames) == 1

    room = told(story, dial)
    late = room.store.of(JudgedFrame)[-1]
    assert late.frame.late
    assert late.frame.quality[:, 0].tolist() == [0, Quality.OUT_OF_RANGE, Quality.NOT_A_NUMBER, Quality.HOLD]
    np.testing.assert_array_equal(late.frame.values[:, 0], [70, np.nan, np.nan, np.nan])
    assert late.publish.tolist() == [True, True, True, False]
    assert late.state.tolist() == [-1] * 4
    assert room.store.of(Event) == []


def test_what_cannot_be_acknowledged_leaves_no_trace() -> None:
    async def story(room: Room) -> None:
        with pytest.raises(KeyError):
            room.pipeline.acknowledge("nonsense", "Ada", "")

    assert told(story).store.journal == []


# --- a new life and another configuration ---


def test_after_a_restart_a_row_stands_for_the_time_in_which_nobody_looked() -> None:
    gap = Gap(GapCause.RESTART, 120, 1, 2)

    async def story(room: Room) -> None:
        room.pipeline.resume(gap)

    room = told(story)
    assert [(f.frame.quality.tolist(), f.publish.tolist()) for f in room.store.of(JudgedFrame)] == [
        ([[Quality.RESTART]], [False])
    ] * 2
    assert room.store.of(Gap) == [gap]


def test_a_reload_keeps_readings_and_warnings_and_judges_what_waited_by_the_old_norms() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.flush()
        room.take("press", 50.0)
        changed = plants.plant(
            machine("pump", signal("new"), *PUMP.signals.values()), machine("extra", signal("x")), PRESS
        )
        room.pipeline.use(changed, "{}", "1" * 12)
        room.pipeline.publish_all()
        assert [layout.machine for layout in room.store.layouts] == ["pump", "extra", "press"]
        assert [f.frame.machine for f in room.store.of(JudgedFrame)] == ["pump", "press"]
        assert isinstance(room.store.journal[-1], bytes)
        assert snapshot.load(changed, room.store.of(bytes)[-1]).standing.keys() == {(1, "low")}
        room.take("pump", 3.0, 1.0)
        room.take("extra", 1.0)
        await asyncio.sleep(3)

    room = told(story)
    assert [e.event for e in room.store.of(Event)] == ["raised"]
    assert b"" not in [payload for _, payload in room.retained]
    assert room.pipeline.active()[0]["signal"] == "flow"


def test_warnings_of_removed_machines_are_ended() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.flush()
        room.pipeline.use(plants.plant(PRESS), "{}", "1" * 12)
        room.pipeline.publish_all()
        await asyncio.sleep(5)

    room = told(story)
    raised, cleared = room.store.of(Event)[:2]
    assert (cleared.id, cleared.event, cleared.state) == (raised.id, "cleared", "normal")
    assert room.pipeline.active() == []


def test_a_machine_that_comes_back_starts_anew() -> None:
    async def story(room: Room) -> None:
        room.take("pump", 1.0)
        room.pipeline.use(plants.plant(PRESS), "{}", "1" * 12)
        await asyncio.sleep(1)
        room.pipeline.use(plants.plant(PRESS, PUMP), "{}", "2" * 12)
        room.take("pump", 1.0)
        room.pipeline.flush()

    events = told(story).store.of(Event)
    assert [e.event for e in events] == ["raised", "cleared", "raised"]
    assert events[2].id != events[0].id
