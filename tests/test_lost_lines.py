"""What a lost line or unit says: poller, pipeline and judge together on a virtual clock, with scripted and real drivers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import modbus
from edge_agent import config, judge, plugins, poller, snapshot
from edge_agent.clock import AgentTime, SystemClock
from edge_agent.contract import LINE_LOST, DeviceRefused, DeviceSilent, Ints, Point, Quality, Readings
from edge_agent.health import Meter
from edge_agent.judge import JudgeState
from edge_agent.messages import topics as messages
from edge_agent.pipeline import TICK_EVERY_S, Pipeline
from edge_agent.plant import Plant, compile_plant
from edge_agent.poller import ConnectionState, Line, PolledSignal, Poller
from edge_agent.records import Command, Event, JudgedFrame
from edge_agent.store import rows
from tests import plants, virtual
from tests.liar import Liar, Question
from tests.plants import band, machine, norm, signal
from tests.test_pipeline import FakeBoard, FakeStore
from tests.test_poller import Device
from tests.virtual import VirtualClock

SECOND = plants.SECOND
GOOD, HOLD, TIMEOUT, CUT, REFUSED, FAILED = (
    Quality.GOOD, Quality.HOLD, Quality.TIMEOUT, Quality.DISCONNECTED, Quality.REFUSED, Quality.SENSOR_FAILURE,
)  # fmt: skip
DOWN = "10.0.0.5:502: Connection refused"


class Plc(Device):
    """A device that is told which of its points answer what; `down`: why it is not reached at all."""

    def __init__(self, says: Mapping[int, Quality] | None = None) -> None:
        super().__init__(on_open=self._reach, on_read=self._reach)
        self.says: dict[int, Quality] = dict(says or {})
        self.down: Exception | None = None
        self.answer = self._answer

    async def _reach(self, _: Device) -> None:
        if self.down is not None:
            raise self.down

    def _answer(self, due: Ints) -> Readings:
        quality = np.array([self.says.get(point, GOOD) for point in due.tolist()], dtype=np.uint8)
        return replace(self.good(due), quality=quality)

    def explain(self, point: int) -> str:
        return f"unit {point}, holding 7: no answer within 1 s"


def lines_of(devices: Mapping[str, Device], *machines: SimpleNamespace) -> list[Line]:
    """As `poller.lines` makes them: the `point` of a signal is the part that it lies behind."""
    found = []
    for name, device in devices.items():
        signals, parts = [], []
        for each in machines:
            for offset, one in enumerate(each.signals.values()):
                if one.connection == name:
                    point = Point(f"{each.name}.{one.name}", one.point)
                    signals.append(PolledSignal(each.name, offset, point, one.every_us))
                    parts.append(one.point)
        widths = {each.name: len(each.signals) for each in machines}
        one_part = len(set(parts)) < 2
        found.append(
            Line(name, device, None, tuple(signals), widths, (), ("",) * len(parts) if one_part else tuple(parts))
        )
    return found


class Room:
    """Pollers and a pipeline as the agent has them; the store and the board only remember."""

    def __init__(self, plant: Plant, lines: Sequence[Line], clock: Any = None, state: JudgeState | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.start_us = self.clock.monotonic_us()
        self.wall_us = self.clock.wall_us()
        self.time = AgentTime(self.clock, self.start_us)
        self.store, self.board = FakeStore(), FakeBoard()
        self.retained: dict[str, Any] = {}
        store: Any = self.store
        board: Any = self.board
        self.pipeline = Pipeline(
            plant, state or judge.start(plant), "{}", "0" * 12, store, board, self.clock, self.time, self._retain
        )
        self.pollers = [Poller(each, self.clock, self.time, self.pipeline.take, self.pipeline.missed) for each in lines]
        self._tasks = [asyncio.create_task(each.run()) for each in self.pollers]
        self._tasks.append(asyncio.create_task(self._turn()))

    def _retain(self, topic: str, payload: bytes) -> None:
        self.retained[topic] = orjson.loads(payload)

    async def _turn(self) -> None:
        """As the agent's."""
        while True:
            await asyncio.sleep(TICK_EVERY_S)
            self.pipeline.lines({name: loss for each in self.pollers for name, loss in each.lost().items()})
            self.pipeline.turn()

    async def until(self, second: float) -> None:
        await asyncio.sleep(second - (self.clock.monotonic_us() - self.start_us) / SECOND)
        self.pipeline.flush()
        assert not [task for task in self._tasks if task.done()]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self.pipeline.flush()

    @property
    def events(self) -> list[Event]:
        return self.store.of(Event)

    def second(self, ts: int) -> float:
        return (ts - self.wall_us) / SECOND

    def told(self) -> list[tuple[str, str, str]]:
        """Of each event: whose, of which kind, what."""
        return [(f"{e.machine}.{e.signal}", str(e.kind), str(e.event)) for e in self.events]

    def timed(self) -> list[tuple[str, str, float]]:
        return [(f"{e.machine}.{e.signal}", str(e.event), round(self.second(e.ts))) for e in self.events]


def play(
    story: Callable[[Room, Any], Awaitable[None]],
    *machines: SimpleNamespace,
    devices: Mapping[str, Device] | None = None,
) -> Room:
    """Play a story with a room and the one device (or all of them, by name). Ends with the proof of rule 2 of the judge:
    the journal judged again gives the same events and the same state.
    """
    of = devices or {"plc": Plc()}

    async def main() -> Room:
        room = Room(plants.plant(*machines), lines_of(of, *machines))
        await story(room, of if devices else of["plc"])
        await room.end()
        return room

    room = virtual.run(main())
    judged_again(room)
    return room


def judged_again(room: Room, start: JudgeState | None = None) -> None:
    """The journal as bytes and back, judged from the start, is what was said, to the bit."""
    plant, state = room.pipeline.plant, start or judge.start(room.pipeline.plant)
    layouts = {number: each.layout for number, each in enumerate(plant.machines)}
    events: list[Event] = []
    for item in room.store.journal:
        if isinstance(item, JudgedFrame):
            number = plant.by_name[item.frame.machine].index
            seqs = np.zeros(len(item.frame.t), dtype=np.int64)
            (kept,) = rows.unpacked(rows.packed(rows.Kept(number, layouts[number], item, seqs)), layouts)
            assert isinstance(kept, rows.Kept)
            state, judged = judge.step(plant, state, [kept.judged.frame], FakeStore.epoch)
            events += judged.events
        elif isinstance(item, Command):
            state, event = judge.acknowledge(plant, state, item.id, item.by, item.comment, item.ts)
            events.append(event)
    assert sorted(events, key=str) == sorted((replace(e, epoch="", seq=0) for e in room.events), key=str)
    judge.numbered(state, {event.id: (event.epoch, event.seq) for event in room.events})
    assert snapshot.dump(plant, state) == snapshot.dump(plant, room.pipeline.state)


PRESS = machine(
    "press",
    signal("oil", norm(band(high=60)), connection="plc", point="unit_1"),
    signal("level", connection="plc", point="unit_1"),
    signal("twice", formula="oil * 2"),
    signal("more", formula="twice + 1"),
)
PUMP = machine("pump", signal("flow", connection="plc", point="unit_1"))


def unit(number: int) -> SimpleNamespace:
    return machine(
        f"m{number}",
        signal("a", connection="plc", point=f"unit_{number}"),
        signal("b", connection="plc", point=f"unit_{number}"),
    )


TEN = tuple(unit(number) for number in range(1, 11))


def silent(*units: int) -> dict[int, Quality]:
    """The points of these units of the ten say nothing."""
    return {2 * (number - 1) + place: TIMEOUT for number in units for place in (0, 1)}


# --- one warning instead of one for each signal ---


def test_a_lost_line_is_one_warning_and_its_signals_raise_none() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        assert room.events == []
        plc.down = DeviceSilent(DOWN)
        await room.until(200)
        assert [each["id"] for each in room.retained["agent/active"]["active"]] == [room.events[0].id]
        plc.down = None
        await room.until(300)

    room = play(story, PRESS, PUMP)
    raised, cleared = room.events
    assert room.told() == [("agent.plc", "health", "raised"), ("agent.plc", "health", "cleared")]
    assert raised.message == f"Connection plc has been lost since 11:07:00: {DOWN}. 5 signals are not watched."
    assert raised.advice.startswith("Check the device's power")
    assert (raised.suppressed, raised.severity, raised.value, raised.limit, raised.unit) == (5, "alarm", None, None, "")
    assert 20 <= room.second(raised.since) <= 20.3
    assert 30 <= room.second(raised.ts) <= 31.3
    assert (cleared.id, cleared.since) == (raised.id, raised.since)
    assert cleared.message == "Connection plc answers again after 3 min", "with the pause before it was tried again"
    assert room.retained["agent/active"]["active"] == []
    assert "agent/norms" not in room.retained
    assert {name for name, *_ in room.board.frames} == {"press", "pump"}, "the agent is no machine of the sheet"


def test_the_event_has_the_fields_of_the_contract_and_the_count() -> None:
    async def story(room: Room, plc: Plc) -> None:
        plc.down = DeviceSilent(DOWN)
        await room.until(20)

    (raised,) = play(story, PRESS, PUMP).events
    plain = messages.event_plain(raised)
    assert (plain["machine"], plain["signal"], plain["kind"], plain["suppressed"]) == ("agent", "plc", "health", 5)
    assert (plain["value"], plain["limit"], plain["norm"], plain["operating_state"]) == (None, None, {}, None)


def test_the_rows_of_the_agent_publish_nothing_and_what_lies_behind_says_why_as_ever() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(5)
        plc.down = DeviceSilent(DOWN)
        await room.until(8)

    room = play(story, PUMP)
    frames = room.store.of(JudgedFrame)
    assert not [f for f in frames if f.frame.machine == "agent" and f.publish.any()]
    last = [f.frame for f in frames if f.frame.machine == "pump"][-1]
    assert int(last.quality[0, 0]) == CUT | LINE_LOST
    layout = room.pipeline.plant.by_name["pump"].layout
    body = orjson.loads(messages.measurement("e", 1, layout, 0, -1, last.values[0], last.quality[0]))
    assert (body["values"], body["bad"]) == ({}, {"flow": "disconnected"})
    assert room.board.frames[-1][2] == [CUT]


def test_one_unit_of_ten_that_is_lost_is_one_warning_that_names_it() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        plc.says = silent(3)
        await room.until(100)
        plc.says = {}
        await room.until(150)

    room = play(story, *TEN)
    raised = room.events[0]
    assert room.told() == [("agent.plc.unit_3", "health", "raised"), ("agent.plc.unit_3", "health", "cleared")]
    since = "11:07:00"
    assert raised.message == f"plc unit 3 has been lost since {since}: no answer within 1 s. 2 signals are not watched."
    assert raised.suppressed == 2


def test_when_all_units_are_lost_it_is_the_line() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        plc.says = silent(*range(1, 11))
        await room.until(100)

    room = play(story, *TEN)
    assert room.told() == [("agent.plc", "health", "raised")]
    assert "no answer to any request. 20 signals are not watched." in room.events[0].message


def test_a_unit_s_warning_stands_while_the_line_is_lost_since_nothing_is_known_of_it() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        plc.says = silent(3)
        await room.until(50)
        plc.down = DeviceSilent(DOWN)
        await room.until(150)
        plc.down = None
        await room.until(250)
        plc.says = {}
        await room.until(300)

    room = play(story, *TEN)
    assert room.told() == [
        ("agent.plc.unit_3", "health", "raised"),
        ("agent.plc", "health", "raised"),
        ("agent.plc", "health", "cleared"),
        ("agent.plc.unit_3", "health", "cleared"),
    ]
    assert room.second(room.events[3].ts) >= 250


def test_of_a_machine_on_two_lines_only_what_lies_behind_the_lost_one_is_counted() -> None:
    both = machine("press", signal("oil", connection="plc", point="x"), signal("glass", connection="cell", point="y"))
    devices = {"plc": Plc(), "cell": Plc()}

    async def story(room: Room, of: dict[str, Plc]) -> None:
        await room.until(20)
        of["plc"].down = DeviceSilent(DOWN)
        await room.until(40)
        of["cell"].says = {0: FAILED}
        await room.until(80)

    room = play(story, both, devices=devices)
    assert room.told() == [("agent.plc", "health", "raised"), ("press.glass", "stale", "raised")]
    assert room.events[0].suppressed == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DeviceRefused("the password is wrong"), REFUSED, "the password is wrong"),
        (DeviceSilent("nothing comes", TIMEOUT), TIMEOUT, "nothing comes"),
        (KeyError("oops"), Quality.OTHER, "the driver failed: KeyError: 'oops'"),
    ],
)
def test_a_line_that_is_not_opened_is_lost_from_the_start_whatever_keeps_it(
    error: Exception, code: Quality, words: str
) -> None:
    async def story(room: Room, plc: Plc) -> None:
        plc.down = error
        await room.until(30)

    room = play(story, PUMP)
    assert room.told() == [("agent.plc", "health", "raised")]
    assert f": {words}. 1 signal is not watched." in room.events[0].message
    assert room.store.of(JudgedFrame)[-1].frame.quality.max() == code | LINE_LOST or code is Quality.OTHER


def test_a_line_lost_for_less_than_ten_seconds_is_no_warning_however_often() -> None:
    async def story(room: Room, plc: Plc) -> None:
        for turn in range(60):
            plc.says = {0: TIMEOUT} if turn % 2 else {}
            await room.until(5 + 5 * turn)

    assert play(story, PUMP).events == []


def test_a_signal_that_may_be_silent_for_less_makes_its_line_as_impatient() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        plc.says = {0: TIMEOUT}
        await room.until(40)

    room = play(story, machine("pump", signal("flow", norm(stale=4), connection="plc", point="unit_1")))
    assert [(who, what) for who, what, _ in room.timed()] == [("agent.plc", "raised")]
    assert 24 <= room.second(room.events[0].ts) <= 25.5


# --- each signal in its own right ---


def test_a_signal_that_stays_silent_when_its_line_is_back_is_stale_after_the_time_it_had_left() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        plc.down = DeviceSilent(DOWN)
        await room.until(100)
        plc.says, plc.down = {0: FAILED}, None
        await room.until(180)

    room = play(story, PRESS, PUMP)
    health, back, *stale = room.events
    assert (health.event, back.event, back.kind) == ("raised", "cleared", "health")
    assert [(e.signal, e.kind, e.event) for e in stale] == [
        ("more", "stale", "raised"), ("oil", "stale", "raised"), ("twice", "stale", "raised"),
    ] or {e.signal for e in stale} == {"oil", "twice", "more"}  # fmt: skip
    for event in stale:
        assert 18 <= room.second(event.since) <= 20, "the last good reading"
        waited_s = room.second(event.ts) - room.second(back.ts)
        assert 7 <= waited_s <= 10, "not at once: it has what was left of its ten seconds"


def test_signals_that_come_a_little_after_their_line_are_no_warnings() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(20)
        plc.down = DeviceSilent(DOWN)
        await room.until(100)
        plc.says, plc.down = {0: FAILED, 1: FAILED}, None
        await room.until(104)
        plc.says = {}
        await room.until(150)

    room = play(story, PRESS, PUMP)
    assert [kind for _, kind, _ in room.told()] == ["health", "health"]


def test_a_line_that_comes_and_goes_hides_no_silence_for_ever() -> None:
    """Too short for a warning of the line; the signal that is never good has one of its own all the same."""

    async def story(room: Room, plc: Plc) -> None:
        for turn in range(20):
            plc.says = dict.fromkeys(range(3), TIMEOUT)
            await room.until(10 * turn + 8)
            plc.says = {0: FAILED}
            await room.until(10 * turn + 10)

    room = play(story, PRESS, PUMP)
    assert {(who, kind) for who, kind, _ in room.told()} == {
        ("press.oil", "stale"), ("press.twice", "stale"), ("press.more", "stale"),
    }  # fmt: skip


def test_a_stale_that_stood_before_its_line_was_lost_stands_until_a_good_reading() -> None:
    async def story(room: Room, plc: Plc) -> None:
        plc.says = {0: FAILED}
        await room.until(20)
        plc.down = DeviceSilent(DOWN)
        await room.until(60)
        plc.down = None
        await room.until(100)
        plc.says = {}
        await room.until(120)

    room = play(story, PUMP)
    assert room.told() == [
        ("pump.flow", "stale", "raised"),
        ("agent.plc", "health", "raised"),
        ("agent.plc", "health", "cleared"),
        ("pump.flow", "stale", "cleared"),
    ]
    assert len({e.id for e in room.events if e.kind == "stale"}) == 1


def test_a_process_warning_neither_comes_nor_goes_behind_a_lost_line() -> None:
    async def story(room: Room, plc: Plc) -> None:
        await room.until(5)
        plc.down = DeviceSilent(DOWN)
        await room.until(60)
        plc.down = None
        await room.until(130)

    its = machine("m", signal("x", norm(band(low=5, off=2)), connection="plc", point="u"))  # the device says 0: low
    room = play(story, its)
    assert room.told() == [
        ("m.x", "low", "raised"), ("agent.plc", "health", "raised"), ("agent.plc", "health", "cleared"),
    ]  # fmt: skip


def test_without_a_detector_that_tells_of_lines_each_signal_tells_of_itself() -> None:
    async def story() -> Room:
        plc = Plc()
        detectors = {name: each for name, each in plants.DETECTORS.items() if name != "health"}
        room = Room(plants.plant(PUMP, detectors=detectors), lines_of({"plc": plc}, PUMP))
        await room.until(20)
        plc.down = DeviceSilent(DOWN)
        await room.until(60)
        await room.end()
        return room

    assert virtual.run(story()).told() == [("pump.flow", "stale", "raised")]


# --- restart, reload, people ---


def test_a_restart_while_a_line_is_lost_raises_nothing_twice() -> None:
    async def story() -> None:
        plc, clock = Plc(), VirtualClock()
        plant = plants.plant(PRESS, PUMP)
        room = Room(plant, lines_of({"plc": plc}, PRESS, PUMP), clock)
        await room.until(20)
        plc.down = DeviceSilent(DOWN)
        await room.until(60)
        await room.end()
        (raised,) = room.events
        await asyncio.sleep(300)
        state = snapshot.load(plant, snapshot.dump(plant, room.pipeline.state))
        before = state.copy()
        again = Room(plant, lines_of({"plc": plc}, PRESS, PUMP), clock, state)
        again.pipeline.resume(None)
        again.pipeline.publish_all()
        assert [each["id"] for each in again.retained["agent/active"]["active"]] == [raised.id]
        await again.until(60)
        assert again.events == [], "it stands, and what lies behind it is silent still"
        plc.down = None
        await again.until(130)
        (cleared,) = again.events
        assert (cleared.id, cleared.event, cleared.since) == (raised.id, "cleared", raised.since)
        await again.end()
        judged_again(again, before)

    virtual.run(story())


def test_a_restart_over_a_line_that_works_is_no_warning() -> None:
    async def story() -> None:
        plc, clock = Plc(), VirtualClock()
        plant = plants.plant(*TEN)
        room = Room(plant, lines_of({"plc": plc}, *TEN), clock)
        await room.until(20)
        await room.end()
        await asyncio.sleep(3000)
        again = Room(plant, lines_of({"plc": plc}, *TEN), clock, room.pipeline.state)
        again.pipeline.resume(None)
        await again.until(30)
        await again.end()
        assert again.events == []

    virtual.run(story())


def reload(room: Room, devices: Mapping[str, Device], *machines: SimpleNamespace) -> None:
    """As the agent does it."""
    room.pipeline.use(plants.plant(*machines), "{}", "1" * 12)
    for each, its in zip(room.pollers, lines_of(devices, *machines), strict=True):
        assert each.use(its)
    room.pipeline.publish_all()


def test_a_reload_that_changes_the_units_of_a_lost_line_tells_nothing() -> None:
    async def story() -> None:
        plc = Plc()
        of = {"plc": plc}
        room = Room(plants.plant(*TEN[:2]), lines_of(of, *TEN[:2]))
        await room.until(20)
        plc.says = silent(*range(1, 11))
        await room.until(60)
        (raised,) = room.events
        for machines in (TEN[:1], TEN[:3], TEN[:2]):
            reload(room, of, *machines)
            await asyncio.sleep(30)
        room.pipeline.flush()
        assert room.events == [raised]
        assert room.pollers[0].health.state is ConnectionState.SILENT
        plc.says = {}
        await asyncio.sleep(10)
        room.pipeline.flush()
        assert [(e.id, e.event) for e in room.events] == [(raised.id, "raised"), (raised.id, "cleared")]
        await room.end()

    virtual.run(story())


def test_the_warning_of_a_unit_that_is_no_longer_read_is_ended() -> None:
    async def story() -> None:
        plc = Plc(silent(2))
        of = {"plc": plc}
        room = Room(plants.plant(*TEN[:3]), lines_of(of, *TEN[:3]))
        await room.until(20)
        (raised,) = room.events
        assert raised.signal == "plc.unit_2"
        plc.says = {}
        reload(room, of, TEN[0], TEN[2])
        await room.until(40)
        assert [(e.id, e.event) for e in room.events] == [(raised.id, "raised"), (raised.id, "cleared")]
        assert room.retained["agent/active"]["active"] == []
        await room.end()

    virtual.run(story())


def test_a_person_acknowledges_a_lost_line_like_any_warning() -> None:
    async def story(room: Room, plc: Plc) -> None:
        plc.down = DeviceSilent(DOWN)
        await room.until(20)
        answer = room.pipeline.acknowledge(room.events[0].id, "Ada", "the PLC is being replaced")
        assert answer["message"] == "Connection plc: seen by Ada"
        plc.down = None
        await room.until(40)

    assert [what for *_, what in play(story, PUMP).told()] == ["raised", "acknowledged", "cleared"]


# --- the health topic ---


def health_of(room: Room) -> dict[str, Any]:
    lines = {each.line.name: each.look() for each in room.pollers}
    store = {"messages": 0, "oldest": None}
    meter = Meter(SystemClock())
    found = meter.health(lines, {}, store, room.pipeline.plant, room.pipeline.state, lambda *_: "")
    its: dict[str, Any] = found["connections"]["plc"]
    return {key: its[key] for key in ("state", "ne107", "units") if key in its}


def test_the_health_topic_says_how_each_line_is_and_which_of_its_units_are_not_ok() -> None:
    async def story(room: Room, plc: Plc) -> None:
        assert health_of(room) == {"state": "connecting", "ne107": "function_check"}, "nothing is known yet"
        await room.until(5)
        assert health_of(room) == {"state": "connected", "ne107": "ok"}
        plc.says = silent(3, 4)
        await room.until(10)
        unit = {"ne107": "failure", "signals": 2}
        assert health_of(room) == {"state": "connected", "ne107": "ok", "units": {"unit_3": unit, "unit_4": unit}}
        plc.says = silent(*range(1, 11))
        await room.until(15)
        assert health_of(room) == {"state": "silent", "ne107": "failure"}

    play(story, *TEN)


# --- silence never looks like health ---

PRESS_OF_UNITS = machine(
    "press",
    signal("oil", connection="plc", point="unit_1"),
    signal("level", connection="plc", point="unit_1"),
    signal("flow", connection="plc", point="unit_2"),
)
POINTS = (
    ("press.oil", "unit_1"), ("press.level", "unit_1"), ("press.flow", "unit_2"),
    ("slow.hourly", "unit_1"), ("slow.quick", "unit_2"),
)  # fmt: skip
UNTOLD_S = 150
"""Ten seconds of a line, or ten of a signal, which a line that comes and goes stretches; and a slow signal's period."""
SLOW = machine(
    "slow",
    signal("hourly", norm(stale=20), connection="plc", point="unit_1", every_us=60 * SECOND),
    signal("quick", connection="plc", point="unit_2"),
)


@given(
    st.lists(
        st.tuples(st.integers(1, 15), st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=15, deadline=None)
def test_whatever_is_silent_for_long_is_told_by_itself_or_by_its_line(
    phases: list[tuple[int, set[int], set[int], bool]],
) -> None:
    """Phases of so many seconds, over and over: which points say nothing, which are bad, and whether the line is down."""

    async def story(room: Room, plc: Plc) -> None:
        known_at = dict.fromkeys(range(5), 0)
        """When each was good last, or told of."""
        place, ends = 0, 0
        for second in range(1, 300):
            if second >= ends:
                seconds, none, bad, down = phases[place % len(phases)]
                place, ends = place + 1, second + seconds
                plc.says = {**dict.fromkeys(bad, FAILED), **dict.fromkeys(none, TIMEOUT)}
                plc.down = DeviceSilent(DOWN) if down else None
            await room.until(second)
            standing = {f"{e['machine']}.{e['signal']}" for e in room.board.standing}
            for point, (name, part) in enumerate(POINTS):
                column = room.pipeline.plant.by_name[name.partition(".")[0]]
                _, quality = judge.readings(room.pipeline.state, column)
                offset = [f"{column.name}.{s.name}" for s in column.signals].index(name)
                if quality[offset] == GOOD or {name, "agent.plc", f"agent.plc.{part}"} & standing:
                    known_at[point] = second
                assert second - known_at[point] <= UNTOLD_S, name

    play(story, PRESS_OF_UNITS, SLOW)


# --- the poller alone ---


def test_the_mark_is_not_written_into_the_arrays_of_the_driver() -> None:
    """A driver may give the same array each time, or one that cannot be written."""
    kept = np.array([TIMEOUT], dtype=np.uint8)
    kept.flags.writeable = False

    async def story(room: Room, plc: Plc) -> None:
        await room.until(3)
        plc.answer = lambda due: replace(plc.good(due), quality=kept)
        await room.until(6)

    room = play(story, PUMP)
    assert kept.tolist() == [TIMEOUT]
    assert [int(f.frame.quality[0, 0]) for f in room.store.of(JudgedFrame) if f.frame.machine == "pump"][-1] == (
        TIMEOUT | LINE_LOST
    )


def test_points_behind_no_part_are_not_marked_while_the_line_stands() -> None:
    """Nobody would tell of them: the line is well, and they lie behind no part that could be lost."""
    mixed = (
        machine("a", signal("x", connection="plc", point="unit_1")),
        machine("b", signal("y", connection="plc", point="")),
    )

    async def story(room: Room, plc: Plc) -> None:
        await room.until(5)
        plc.says = {1: TIMEOUT}
        await room.until(30)
        plc.says = {0: TIMEOUT, 1: TIMEOUT}
        await room.until(60)

    room = play(story, *mixed)
    assert room.told() == [("b.y", "stale", "raised"), ("agent.plc", "health", "raised")]


def test_slow_signals_that_were_asked_in_vain_are_read_when_their_part_is_back() -> None:
    """On a line that stayed open; their own beat may be an hour away, and until then nobody would tell of them."""
    hourly = machine(
        "m",
        signal("a", connection="plc", point="unit_1", every_us=3600 * SECOND),
        signal("b", connection="plc", point="unit_1"),
        signal("c", connection="plc", point="unit_2"),
    )

    async def story(room: Room, plc: Plc) -> None:
        first_beat = (3600 * SECOND - room.start_us % (3600 * SECOND)) / SECOND
        await room.until(first_beat - 5.5)
        plc.says = {0: TIMEOUT, 1: TIMEOUT}
        await room.until(first_beat + 5.5)
        plc.says = {}
        await room.until(first_beat + 8)
        assert [second for second, due in readings(room, plc) if 0 in due] == [0, first_beat, first_beat + 6]
        assert judge.readings(room.pipeline.state, room.pipeline.plant.by_name["m"])[1].tolist() == [GOOD] * 3

    def readings(room: Room, plc: Plc) -> list[tuple[float, list[int]]]:
        return [((at_us - room.start_us) // SECOND, due) for at_us, due in plc.reads]

    play(story, hourly)


# --- the real driver over a real line ---

YAML = """
agent: {id: a, data_dir: ./data, language: nl, timezone: Europe/Amsterdam}
mqtt: {url: "mqtt://127.0.0.1:1"}
connections:
  plc-1: {driver: modbus, url: "tcp://127.0.0.1:%d", timeout: 500ms, word_order: big}
machines:
"""


def configured(folder: Path, port: int, units: int) -> tuple[Plant, list[Line]]:
    text = YAML % port + "".join(
        f"  m{number}: {{connection: plc-1, unit: {number}, every: 1s, signals: "
        f"{{a: {{address: 'holding:1'}}, b: {{address: 'input:9', every: 5s}}, c: {{formula: a + b}}}}}}\n"
        for number in range(1, units + 1)
    )
    path = folder / "agent.yaml"
    path.write_text(text)
    registry = plugins.Plugins({"modbus": modbus.DRIVER})
    loaded = config.load(path, registry)
    plant = compile_plant(loaded.config, plants.DETECTORS)
    return plant, poller.lines(loaded.config, plant, registry)


def test_the_parts_of_a_modbus_line_are_its_units_when_there_are_several(tmp_path: Path) -> None:
    plant, (line,) = configured(tmp_path, 502, 2)
    assert plant.own is not None
    assert [each.name for each in plant.own.signals] == ["plc-1", "plc-1.unit_1", "plc-1.unit_2", "disk", "clock"]
    assert [each.title for each in plant.own.signals][:3] == ["Verbinding plc-1", "plc-1 unit 1", "plc-1 unit 2"]
    assert [each.behind for each in plant.own.signals] == [6, 3, 3, 0, 0]
    assert line.parts == ("unit_1", "unit_1", "unit_2", "unit_2")
    assert plant.signals == 6
    alone, (line,) = configured(tmp_path, 502, 1)
    assert alone.own is not None
    assert [each.name for each in alone.own.signals] == ["plc-1", "disk", "clock"]
    assert set(line.parts) == {""}


def on_the_line(folder: Path, units: int, story: Callable[[Room, Liar, dict[int, str]], Awaitable[None]]) -> Room:
    """A story with a real Modbus line in a virtual loop. The units answer what the story says, honestly where it says nothing."""

    async def main() -> Room:
        tellings: dict[int, str] = {}

        def script(question: Question) -> str:
            return tellings.get(question.unit, "honest")

        async with Liar(timeout_s=0.5, script=script).listening() as liar:
            room = Room(*configured(folder, liar.port, units))
            await story(room, liar, tellings)
            await room.end()
            return room

    room = virtual.run(main(), sockets=True)
    judged_again(room)
    return room


def test_a_silent_unit_on_a_real_line_is_one_warning(tmp_path: Path) -> None:
    async def story(room: Room, liar: Liar, tellings: dict[int, str]) -> None:
        await room.until(20)
        assert room.events == []
        tellings[3] = "silence"
        await room.until(80)
        del tellings[3]
        await room.until(200)

    room = on_the_line(tmp_path, 5, story)
    raised, cleared = room.events
    assert room.told() == [("agent.plc-1.unit_3", "health", "raised"), ("agent.plc-1.unit_3", "health", "cleared")]
    assert raised.message == (
        "plc-1 unit 3 is uitgevallen sinds 12:07:00: no answer within 0.5 s. 3 signalen worden niet bewaakt."
    )
    assert (cleared.id, raised.suppressed) == (raised.id, 3)


def test_a_device_that_is_switched_off_is_one_warning(tmp_path: Path) -> None:
    async def story(room: Room, liar: Liar, tellings: dict[int, str]) -> None:
        await room.until(20)
        tellings.update(dict.fromkeys(range(1, 6), "the end"))
        await room.until(80)
        tellings.clear()
        await room.until(240)

    room = on_the_line(tmp_path, 5, story)
    assert room.told() == [("agent.plc-1", "health", "raised"), ("agent.plc-1", "health", "cleared")]
    assert room.events[0].suppressed == 15


def test_a_device_that_refuses_is_heard(tmp_path: Path) -> None:
    """Its readings are bad each in their own right: the line stands."""

    async def story(room: Room, liar: Liar, tellings: dict[int, str]) -> None:
        await room.until(5)
        tellings.update({1: "exception 2", 2: "exception 4"})
        await room.until(40)

    room = on_the_line(tmp_path, 2, story)
    assert {kind for _, kind, _ in room.told()} == {"stale"}
    assert len(room.events) == 6
