"""What is foreseen of a line, against a line that takes the time of each character, and against plain twins."""

import asyncio
import itertools
import json
import math
import os
import pty
import tty
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import config, judge, load, plugins, poller
from edge_agent.__main__ import main
from edge_agent.clock import AgentTime
from edge_agent.contract import Foresees, Frame, Ints, Need, Point, Quality
from edge_agent.health import Meter
from edge_agent.load import Asker, LineLoad
from edge_agent.plant import Plant, compile_plant
from edge_agent.poller import LineHealth, Poller
from tests import virtual
from tests.virtual import VirtualClock

SECOND = 1_000_000
DEVICE_S = 0.005
WITHIN = 0.10
"""How near the foreseen share must come to what the line then takes, whatever its devices are like."""
EXACT = 0.02
"""And when they are as assumed."""


# ------------------------------------------------------------------------------------- a line that takes its time


def crc(data: bytes) -> bytes:
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ 0xA001 if value & 1 else value >> 1
    return bytes([value & 0xFF, value >> 8])


@dataclass
class SlowLine:
    """Devices of every unit at the far end of a pty, which speak at the pace of their line.

    slow_s: units that do not take DEVICE_S to answer.
    busy_s: how long the line was in use: each request and answer with the silence after it, and the devices' own time.
    hurried: requests that came before that was over. broken: requests that nobody would understand.
    """

    char_s: float
    silence_s: float
    ascii: bool = False
    slow_s: dict[int, float] = field(default_factory=dict)
    busy_s: float = 0.0
    requests: int = 0
    hurried: int = 0
    broken: int = 0
    _free_s: float = 0.0
    _received: bytearray = field(default_factory=bytearray)
    _master: int = -1

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Gives the path of the port."""
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._master, self._readable)
        try:
            yield os.ttyname(slave)
        finally:
            loop.remove_reader(self._master)
            os.close(self._master)
            os.close(slave)

    def _readable(self) -> None:
        self._received += os.read(self._master, 4096)
        while (frame := self._request()) is not None:
            unit, function, count, sent = frame
            size = 2 * count if function >= 3 else (count + 7) // 8
            answer = self._wrapped(bytes([unit, function, size]) + bytes(range(size)))
            loop = asyncio.get_running_loop()
            self.hurried += loop.time() < self._free_s - 1e-6
            spoken_s = (sent + len(answer)) * self.char_s + self.slow_s.get(unit, DEVICE_S)
            self.requests += 1
            self.busy_s += spoken_s + self.silence_s
            self._free_s = loop.time() + spoken_s + self.silence_s
            loop.call_later(spoken_s, os.write, self._master, answer)

    def _request(self) -> tuple[int, int, int, int] | None:
        """Unit, function, count and characters of the next whole request."""
        if self.ascii:
            end = self._received.find(b"\r\n") + 2
            if end < 2:
                return None
            body = bytes.fromhex(self._received[1 : end - 2].decode())
            right = self._received[:1] == b":" and sum(body) & 0xFF == 0
        else:
            end = 8
            if len(self._received) < end:
                return None
            body = bytes(self._received[:6])
            right = crc(body) == self._received[6:8]
        del self._received[:end]
        self.broken += not right
        return body[0], body[1], int.from_bytes(body[4:6]), end

    def _wrapped(self, body: bytes) -> bytes:
        if not self.ascii:
            return body + crc(body)
        return b":" + (body + bytes([-sum(body) & 0xFF])).hex().upper().encode() + b"\r\n"


# --------------------------------------------------------------------------------------- the foreseen and the measured


@dataclass(frozen=True)
class Machine:
    """Signals of one unit, period and table: `count` of them, `step` addresses apart."""

    unit: int
    every: str
    count: int
    step: int = 1
    table: str = "holding"
    connection: str = "line"


@dataclass(frozen=True)
class Case:
    """A line, and what is asked of it. bits: of one character."""

    name: str
    baudrate: int
    machines: Sequence[Machine]
    keys: str = ""
    scheme: str = "rtu"
    bits: int = 11
    connections: Sequence[str] = ("line",)
    cycles: int = 1
    slow_s: dict[int, float] = field(default_factory=dict)

    @property
    def char_s(self) -> float:
        return self.bits / self.baudrate

    @property
    def silence_s(self) -> float:
        return 3.5 * self.char_s if self.baudrate <= 19_200 else 0.00175

    def text(self, path: str) -> str:
        url = f"{self.scheme}://{path}?baudrate={self.baudrate}{self.keys}"
        connections = {name: {"driver": "modbus", "url": url} for name in self.connections}
        machines = {
            f"m{i}": {
                "connection": m.connection, "unit": m.unit, "every": m.every,
                "signals": {f"s{n}": {"address": f"{m.table}:{n * m.step}"} for n in range(m.count)},
            }
            for i, m in enumerate(self.machines)
        }  # fmt: skip
        return json.dumps(
            {"agent": {"id": "a"}, "mqtt": {"url": "mqtt://b"}, "connections": connections, "machines": machines},
            indent=1,
        )


HALL = [
    Machine(1, "2s", 125), Machine(2, "2s", 120), Machine(2, "5s", 100, 1, "input"), Machine(3, "4s", 640, 1, "coil"),
    Machine(3, "20s", 8, 40), Machine(17, "10s", 20, 3, "discrete"),
]  # fmt: skip
CASES = [
    Case("9600 8E1", 9_600, HALL, cycles=3),
    Case("9600 8N1, one machine", 9_600, [Machine(1, "3s", 110), Machine(2, "3s", 375)], "&parity=N", bits=10, cycles=20),
    Case("19200 8E1", 19_200, [Machine(1, "1s", 3, 30), *HALL]),
    Case("19200 8N2", 19_200, HALL, "&parity=N&stopbits=2"),
    Case("115200 8E1", 115_200, HALL),
    Case("9600, devices of 1 to 20 ms", 9_600, HALL, slow_s={1: 0.001, 2: 0.020, 3: 0.012, 17: 0.002}),
    Case("ascii 9600 7E1", 9_600, HALL[1:], scheme="ascii", bits=10),
    Case("ascii 19200 7E1", 19_200, HALL, scheme="ascii", bits=10),
    Case("two connections, one line", 9_600, [*HALL[1:4], Machine(9, "4s", 125, connection="other")],
         connections=("line", "other")),
    Case("9600, more than there is time", 9_600, [Machine(1, "1s", 125), Machine(2, "1s", 125), Machine(3, "1s", 125),
         Machine(4, "1s", 125), Machine(5, "3s", 50)], cycles=10),
    Case("9600, too much at times", 9_600, [Machine(1, "1s", 20), Machine(2, "10s", 500)], cycles=6),
]  # fmt: skip


NOTHING_STORED = {"messages": 0, "oldest": None}


class Host(VirtualClock):
    """The clock of a whole agent."""

    def cpu_s(self) -> float:
        return self.monotonic_us() / 1e9


@dataclass(frozen=True)
class Measured:
    """Of whole cycles. own: the share of time as the devices saw it. told: the utilisation that is published."""

    foreseen: LineLoad
    own: float
    told: dict[str, float]
    missed: int
    beats: int
    requests_per_s: float
    line: SlowLine
    qualities: set[int]


async def measured(case: Case, folder: Path) -> Measured:
    """Foresee the line, then let the poller run on it."""
    line = SlowLine(case.char_s, case.silence_s, case.scheme == "ascii", case.slow_s)
    async with line.listening() as path:
        file = folder / "agent.yaml"
        file.write_text(case.text(path))
        found, registry = config.load(file).config, plugins.installed()
        (foreseen,) = load.predicted(found, registry)
        plant = compile_plant(found, {})
        frames: list[Frame] = []
        clock = Host()
        time = AgentTime(clock, 0)
        pollers = {
            each.name: Poller(each, clock, time, frames.extend, lambda *_: None)
            for each in poller.lines(found, plant, registry)
        }
        meter = Meter(clock)
        span_us = case.cycles * math.lcm(*(period for asker in foreseen.askers for period in asker.periods))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(each.run()) for each in pollers.values()]
            # From one millisecond before a beat at which all is due to one before another.
            begin_us = (clock.monotonic_us() // span_us + 1) * span_us - 1000
            await until(clock, begin_us)
            looked(meter, pollers, plant)
            before = line.busy_s, line.requests, counted(pollers)
            frames.clear()
            await until(clock, begin_us + span_us)
            told = looked(meter, pollers, plant)
            after = line.busy_s, line.requests, counted(pollers)
            for task in running:
                task.cancel()
    beats, missed = after[2][0] - before[2][0], after[2][1] - before[2][1]
    qualities = {int(q) for frame in frames for q in np.unique(frame.quality)} - {int(Quality.HOLD)}
    own = 1e6 * (after[0] - before[0]) / span_us
    return Measured(foreseen, own, told, missed, beats, 1e6 * (after[1] - before[1]) / span_us, line, qualities)


async def until(clock: VirtualClock, at_us: int) -> None:
    await asyncio.sleep((at_us - clock.monotonic_us()) / SECOND)


def counted(pollers: dict[str, Poller]) -> tuple[int, int]:
    return sum(p.health.beats for p in pollers.values()), sum(p.health.missed for p in pollers.values())


def looked(meter: Meter, pollers: dict[str, Poller], plant: Plant) -> dict[str, float]:
    lines = {name: each.look() for name, each in pollers.items()}
    health = meter.health(lines, {}, NOTHING_STORED, plant, judge.start(plant), lambda *_: "")
    assert not any("busy" in key for line in health["connections"].values() for key in line)
    return {name: line["utilisation"] for name, line in health["connections"].items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_line_takes_what_was_foreseen(case: Case, tmp_path: Path) -> None:
    seen = virtual.run(measured(case, tmp_path), sockets=True)
    foreseen = seen.foreseen
    share = foreseen.weight.share
    walk = foreseen.walk
    if walk is not None:
        share = walk.busy_us / walk.span_us
        missed = seen.missed / (seen.missed + seen.beats)
        assert missed == pytest.approx(foreseen.missed, rel=WITHIN)
    else:
        assert (seen.missed, foreseen.missed) == (0, 0.0)
        assert seen.requests_per_s == pytest.approx(foreseen.weight.requests_per_s)
    near = WITHIN if case.slow_s else EXACT
    assert seen.own == pytest.approx(share, rel=near)
    assert seen.told == {name: pytest.approx(share, rel=near) for name in case.connections}
    assert (seen.line.hurried, seen.line.broken, seen.qualities) == (0, 0, {int(Quality.GOOD)})


def test_utilisation_begins_anew_when_something_else_is_counted(tmp_path: Path) -> None:
    """A line that others have used for long was not in use all the time since its new user came."""

    async def story() -> list[float]:
        clock = Host()
        meter, shown = Meter(clock), []
        for health in (
            LineHealth(busy_us=0),
            LineHealth(busy_us=1 * SECOND),
            LineHealth(busy_us=1 * SECOND, line_busy_us=500 * SECOND),
            LineHealth(busy_us=2 * SECOND, line_busy_us=505 * SECOND),
            LineHealth(busy_us=3 * SECOND, line_busy_us=1 * SECOND),
            LineHealth(busy_us=4 * SECOND, line_busy_us=4 * SECOND),
        ):
            told = meter.health({"line": health}, {}, NOTHING_STORED, plant, judge.start(plant), lambda *_: "")
            shown.append(told["connections"]["line"]["utilisation"])
            await asyncio.sleep(10)
        return shown

    file = tmp_path / "agent.yaml"
    file.write_text(Case("", 9_600, [Machine(1, "1s", 1)]).text("/dev/ttyS7"))
    plant = compile_plant(config.load(file).config, {})
    assert virtual.run(story()) == [0.0, 0.1, 0.0, 0.5, 0.0, 0.3]


# ------------------------------------------------------------------------------------------------ against plain twins


@dataclass(frozen=True)
class Price:
    """A cost of its own for each point, and one for each request: all of its points are one request."""

    points: tuple[int, ...]
    request_us: int
    line: str | None = None
    words: str = "at 9600 baud"
    one_at_a_time: bool = True
    speeds: tuple[int, ...] = ()

    def need(self, due: Ints) -> Need:
        return Need(1, self.request_us + sum(self.points[i] for i in due.tolist()))

    def faster(self) -> Iterator["Price"]:
        for times in self.speeds:
            yield Price(
                tuple(p // times for p in self.points), self.request_us // times, words=f"at {times} × 9600 baud"
            )


def asker(
    *points: tuple[int, int], request_us: int = 0, speeds: tuple[int, ...] = (), machines: Sequence[str] = ()
) -> Asker:
    """points: (period, cost) in µs."""
    cost = Price(tuple(cost for _, cost in points), request_us, speeds=speeds)
    names = tuple(machines) or ("m",) * len(points)
    return Asker("line", cost, names, tuple(every for every, _ in points))


def beats_of(periods: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Every beat of one cycle and the first of the next, with what is due."""
    cycle = math.lcm(*periods)
    due = [(t, tuple(p for p in periods if t % p == 0)) for t in range(cycle + 1)]
    return [(t, those) for t, those in due if those]


def in_order(most: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(1, 12), min_size=1, max_size=most).map(sorted)


@settings(max_examples=60, deadline=None)
@given(in_order(4))
def test_the_sets_that_are_due_together_are_those_of_a_walk(periods: list[int]) -> None:
    beats = beats_of(periods)
    seen: dict[tuple[int, ...], list[int]] = {}
    for (t, due), (after, _) in itertools.pairwise(beats):
        seen.setdefault(due, []).append(after - t)
    found = {s.periods: s for s in load.due_sets(periods)}
    cycle = beats[-1][0]
    assert {due: s.per_us * cycle for due, s in found.items()} == {due: len(gaps) for due, gaps in seen.items()}
    assert {due: s.until_us for due, s in found.items()} == {due: min(gaps) for due, gaps in seen.items()}


@settings(max_examples=60, deadline=None)
@given(in_order(4), st.data())
def test_share_fullest_beat_and_misses_are_those_of_a_walk(periods: list[int], data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 9), min_size=len(periods), max_size=len(periods)))
    one = asker(*zip(periods, costs, strict=True), request_us=1)
    beats = beats_of(periods)
    needs = {t: 1 + sum(c for p, c in zip(periods, costs, strict=True) if t % p == 0) for t, _ in beats}
    weight = load.weighed([one])
    cycle = beats[-1][0]
    assert weight.share == pytest.approx(sum(needs[t] for t, _ in beats[:-1]) / cycle)
    assert weight.worst == max(needs[t] / (after - t) for (t, _), (after, _) in itertools.pairwise(beats))

    free, taken, missed, busy, t = -1, 0, 0, 0, 0
    # Beat after beat, cycle after cycle: one that comes while a read goes on, or just as it ends, is missed.
    while t < cycle or t <= free:
        if any(t % p == 0 for p in periods):
            if t > free:
                taken, busy, free = taken + 1, busy + needs[t % cycle], t + needs[t % cycle]
            else:
                missed += 1
        t += 1
    walk = load.walked(one)
    assert (walk.taken, walk.busy_us) == (taken, busy)
    assert missed <= walk.missed <= missed + max(0, walk.span_us - t), (
        "and none between the last and the next one taken"
    )
    assert (walk.missed == 0) == (weight.worst < 1)


@given(st.sets(st.integers(1, 12), min_size=9, max_size=11).map(sorted))
@settings(max_examples=20, deadline=None)
def test_of_very_many_periods_the_share_is_estimated_from_above(periods: list[int]) -> None:
    one = asker(*((p, p) for p in periods), request_us=3)
    beats = beats_of(periods)
    exact = sum(3 + sum(p for p in due) for _, due in beats[:-1]) / beats[-1][0]
    weight = load.weighed([one])
    assert exact <= weight.share <= 1.3 * exact
    assert weight.worst >= (3 + sum(periods)) / periods[0]


def test_periods_that_hardly_ever_meet_cost_no_walk() -> None:
    week = 7 * 24 * 3600 * SECOND
    one = asker((997_000, 100), (1_009_000, 200), (week + 1000, 300), (3_600_000_000, 400))
    assert load.weighed([one]).share == pytest.approx(
        100 / 997_000 + 200 / 1_009_000 + 300 / week + 400 / 3.6e9, rel=1e-9
    )
    assert load.walked(one).taken == load.BEATS_WALKED


# ------------------------------------------------------------------------------------------------------ what is said


def test_a_line_that_has_time_is_told_in_one_sentence() -> None:
    one = load.line_load([asker((SECOND, 300_000), (SECOND, 300_000), request_us=20_000)])
    assert load.sentence(one) == "line: 62 % busy (0.62 s of each 1 s at 9600 baud, 1 request)"
    assert load.warning(one) is None


def test_halving_is_advised_where_it_is_enough_and_touches_least() -> None:
    points = [(SECOND, 1_300_000), (10 * SECOND, 400_000)]
    one = load.line_load([asker(*points, machines=("press-3", "oven"), speeds=(2, 4))])
    said = load.warning(one)
    assert said == (
        "this needs 1.3 s in each 1 s at 9600 baud: readings will be missed (50 % of its beats); "
        "press-3 (1 signal each 1 s) takes the most; "
        "halve the rate of press-3 (1 signal each 1 s): then 69 % busy, 1.7 s of 2 s at most; "
        "or set the line and its devices to 2 × 9600 baud: then 67 % busy, 0.85 s of 1 s at most"
    )
    followed = load.weighed([asker((2 * SECOND, 1_300_000), points[1])])
    assert (round(followed.share, 2), followed.busiest.busy_us, followed.within_us) == (0.69, 1_700_000, 2 * SECOND)


def test_halving_one_of_two_machines_is_not_advised_since_their_beats_meet_all_the_same() -> None:
    """In the mean there is time then, and yet every second beat would take the next one's."""
    points = [(SECOND, 1_600_000), (SECOND, 100_000)]
    said = load.warning(load.line_load([asker(*points, machines=("press-3", "pump"))]))
    assert said is not None
    assert load.weighed([asker((2 * SECOND, 1_600_000), points[1])]).share < 1
    assert "halve the rate of all 2 signals each 1 s: then 85 % busy, 1.7 s of 2 s at most" in said


def test_a_line_far_too_slow_is_told_the_shortest_period_that_it_can_keep() -> None:
    said = load.warning(load.line_load([asker((SECOND, 3_100_000), (2 * SECOND, 200_000))]))
    assert said is not None
    assert "read nothing more often than each 5 s: then 66 % busy, 3.3 s of 5 s at most" in said
    assert load.weighed([asker((5 * SECOND, 3_100_000), (5 * SECOND, 200_000))]).share == pytest.approx(0.66)
    assert load.weighed([asker((4 * SECOND, 3_100_000), (4 * SECOND, 200_000))]).share > load.BUSY


def test_a_beat_that_is_too_full_now_and_then_is_told_with_what_fills_it() -> None:
    one = load.line_load([asker((SECOND, 300_000), (60 * SECOND, 1_000_000), machines=("press-3", "oven"))])
    said = load.warning(one)
    assert said is not None
    assert said.startswith(
        "its fullest beat needs 1.3 s at 9600 baud, and the next one comes after 1 s: readings will be missed "
        "(2 % of its beats); oven (1 signal each 60 s) takes the most; halve the rate of press-3"
    )
    assert one.missed == pytest.approx(1 / 60)


def test_a_line_that_is_nearly_full_is_warned_of_and_a_network_only_when_it_is_over_full() -> None:
    said = load.warning(load.line_load([asker((SECOND, 850_000))]))
    assert said is not None
    assert said.startswith("85 % busy at 9600 baud: one answer that comes late may cost others their beat; halve")
    for cost, told in ((850_000, False), (1_200_000, True)):
        network = Asker("plc", Price((cost,), 0, words="at 10 ms", one_at_a_time=False), ("m",), (SECOND,))
        one = load.line_load([network])
        assert ((load.sentence(one) is not None), (load.warning(one) is not None)) == (told, told)


# --------------------------------------------------------------------------------------------------- of the Modbus driver


def foreseen(url: str, points: Sequence[dict[str, Any]], **keys: Any) -> Any:
    driver = plugins.driver("modbus")
    assert isinstance(driver, Foresees)
    settings_ = driver.Connection.model_validate({"url": url, **keys})
    made = [Point(f"m.s{i}", driver.Address.model_validate(p)) for i, p in enumerate(points)]
    return driver.foresee(settings_, made)


def test_a_request_takes_its_characters_the_device_and_the_silence() -> None:
    ten = [{"address": f"holding:{i}"} for i in range(10)]
    due = np.arange(10)
    # 8 characters there and 5 + 20 back, 5 ms, and 3.5 characters of silence.
    assert foreseen("rtu:///dev/ttyS7?baudrate=9600", ten).need(due) == Need(1, round(36.5 * 11 / 9600 * 1e6 + 5000))
    assert foreseen("rtu:///dev/ttyS7?baudrate=115200&parity=N", ten).need(due) == Need(
        1, round(33 * 10 / 115_200 * 1e6 + 1750 + 5000)
    )
    # `:`, two for each byte, CR LF: 17 there, and 11 + 2 × 20 back.
    assert foreseen("ascii:///dev/ttyS7?baudrate=9600", ten).need(due) == Need(1, round(71.5 * 10 / 9600 * 1e6 + 5000))
    apart = [{"address": f"holding:{100 * i}"} for i in range(10)]
    assert foreseen("rtu:///dev/ttyS7", apart).need(due).requests == 10
    assert foreseen("rtu:///dev/ttyS7", apart, max_gap=99, max_block=125).need(due).requests == 5
    assert foreseen("rtu:///dev/ttyS7", [{"address": "holding:0", "type": "float64"}], max_block=2) is None


def test_which_connections_share_a_line(tmp_path: Path) -> None:
    link = tmp_path / "usb-adapter"
    link.symlink_to("/dev/ttyS7")
    one, two = [{"address": "holding:0"}], [{"address": "holding:0", "unit": unit} for unit in (1, 2)]
    assert (
        foreseen(f"rtu://{link}", one).line
        == foreseen("ascii:///dev/ttyS7", one).line
        != foreseen("rtu:///dev/x", one).line
    )
    gateway = foreseen("tcp://192.0.2.1", two)
    assert (
        gateway.line == foreseen("tcp://192.0.2.1", one, gateway=True).line == foreseen("rtu+tcp://192.0.2.1", one).line
    )
    assert (gateway.one_at_a_time, gateway.words) == (True, "with 19200 baud assumed behind it")
    device = foreseen("tcp://192.0.2.1", one)
    assert (device.line, device.one_at_a_time, device.need(np.arange(1))) == (None, False, Need(1, 10_000))
    assert foreseen("tcp://192.0.2.1", two, pipeline=2).need(np.arange(2)) == Need(2, 10_000)
    assert list(gateway.faster()) == []


# ---------------------------------------------------------------------------------------------------------- on the shell


def test_check_tells_the_load_and_warns_at_the_connection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = Case("", 9_600, [Machine(1, "1s", 125), Machine(2, "1s", 500)])
    file = tmp_path / "agent.yaml"
    file.write_text(slow.text("/dev/ttyS7"))
    assert main(["check", str(file)]) == 0, "the agent runs with it, and tells what it misses"
    out, err = capsys.readouterr()
    assert "  line: 155 % busy (1.6 s of each 1 s at 9600 baud, 5 requests)\n" in out
    assert err.startswith(f"{file}:9:3: connections.line: warning: this needs 1.6 s in each 1 s at 9600 baud: ")
    assert "m1 (500 signals each 1 s) takes the most" in err
    assert "or set the line and its devices to 19200 baud: then 79 % busy" in err
    assert main(["check", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert [line.pop("text") in out for line in told["lines"]] == [True]
    assert told["lines"] == [
        {"connections": ["line"], "busy": 1.5518, "requests_per_s": 5.0, "missed": 0.5,
         "fullest": {"needs_s": 1.551823, "within_s": 1.0}}
    ]  # fmt: skip
    assert told["warnings"] == [err.removesuffix("\n")]
    file.write_text(Case("", 115_200, [Machine(1, "1s", 10)]).text("/dev/ttyS7"))
    assert main(["check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert ("line: less than 1 % busy (0.0099 s of each 1 s at 115200 baud, 1 request)" in out, err) == (True, "")


def test_a_driver_that_foresees_nothing_is_no_trouble(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "agent: {id: a}\nmqtt: {url: 'mqtt://b'}\nconnections: {c: {driver: opcua, url: 'opc.tcp://192.0.2.1'}}\n"
        "machines: {m: {connection: c, signals: {s: {address: 'ns=2;i=5'}}}}\n"
    )
    registry = plugins.installed()
    assert load.predicted(config.load(file, registry).config, registry) == []
