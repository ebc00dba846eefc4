"""The simulated plant against config/demo.yaml, through the daemon's judge: quiet in health, loud in fault."""

import asyncio
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cache

import numpy as np
import pytest

from drivers import modbus, opcua, opcua_settings, plant_model, plant_server
from edge_agent import config, judge, plugins
from edge_agent.contract import SECOND_US, Codes, Driver, Frame, Ints, Point, Quality, Session
from edge_agent.plant import Machine, Plant, compile_plant
from edge_agent.records import Event
from edge_agent.testing import SkippingClock
from tests.conftest import ROOT, free_port

MACHINES = {"press-3": "press", "pump-1": "pump-1", "pump-2": "pump-2", "spindle": "spindle"}
NAMES = {"motor_on": "running"}
"""Signals of the configuration that the model calls otherwise."""
START_US = 1_795_000_000 * SECOND_US


@cache
def demo_plant() -> Plant:
    registry = plugins.Plugins({"modbus": modbus.DRIVER, "opcua": opcua.DRIVER})
    loaded = config.load(ROOT / "config" / "demo.yaml", registry)
    assert not loaded.notes
    return compile_plant(loaded.config, plugins.detectors(), own=False)


def run_of(seconds: int, faults: Callable[[float], frozenset[str]], seed: int = 1) -> list[plant_model.Plant]:
    """The plant each second."""
    state = plant_model.Plant(seed)
    states = []
    for _ in range(seconds):
        for _ in range(10):
            state = plant_model.step(state, 0.1, faults(state.t_s))
        states.append(state)
    return states


def events_of(states: list[plant_model.Plant]) -> list[tuple[float, Event]]:
    """What the daemon would have said, each with its second."""
    plant = demo_plant()
    seen = [plant_model.observe(state) for state in states]
    t = np.array([round(state.t_s * 1e6) for state in states], dtype=np.int64)
    frames = [frame_of(machine, [one.get(MACHINES[machine.name]) for one in seen], t) for machine in plant.machines]
    _, judged = judge.step(plant, judge.start(plant), frames, "test")
    return [((event.ts - START_US) / 1e6, event) for event in judged.events]


def frame_of(machine: Machine, seen: list[Mapping[str, float] | None], t: Ints) -> Frame:
    """Frames as the poller makes them; a machine that is cut off times out."""
    shape = (len(t), len(machine.signals))
    values = np.full(shape, np.nan)
    quality = np.full(shape, Quality.HOLD, np.uint8)
    for column, one in enumerate(machine.signals):
        name = NAMES.get(one.name, one.name)
        for row, found in enumerate(seen):
            if found is None:
                quality[row, column] = Quality.TIMEOUT
            elif name in found:
                values[row, column] = found[name]
                quality[row, column] = Quality.SENSOR_FAILURE if math.isnan(found[name]) else Quality.GOOD
    return Frame(machine.name, t, START_US + t, values, quality)


def raised(events: list[tuple[float, Event]]) -> dict[tuple[str, str, str], float]:
    """(machine, signal, kind) → the second of the first time."""
    found: dict[tuple[str, str, str], float] = {}
    for at_s, event in events:
        if event.event == "raised":
            found.setdefault((event.machine, event.signal, str(event.kind)), at_s)
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_healthy_plant_is_quiet(seed: int) -> None:
    assert raised(events_of(run_of(1200, lambda _: frozenset(), seed))) == {}


EXPECTED = {
    "filter_clogging": {("press-3", "filter_drop", "high")},
    "bearing_overheating": {("pump-2", "bearing_temperature", "high"), ("pump-2", "vibration", "high")},
    "sensor_broken": {("press-3", "oil_level", "stale"), ("spindle", "bearing_temperature", "stale")},
    "cooler_failure": {("press-3", "oil_temperature", "high")},
    "drift": {("pump-1", "discharge_pressure", "low")},
}
EXPECTED["cable_cut"] = {
    ("pump-2", name, "stale")
    for name in ("motor_on", "suction_pressure", "discharge_pressure", "flow", "motor_current", "bearing_temperature")
} | {("pump-2", "vibration", "stale")}


@pytest.mark.parametrize("fault", plant_model.FAULTS)
def test_each_fault_that_is_called_up_raises_what_it_should_and_clears_again(fault: str) -> None:
    called_s = 15.0
    over_s = called_s + plant_model.CALLED_S.get(fault, plant_model.CALLED_S_DEFAULT)
    events = events_of(run_of(240, lambda t_s: frozenset({fault} if called_s <= t_s < over_s else ())))
    found = raised(events)
    assert set(found) == EXPECTED[fault]
    assert all(at_s - called_s < 40 for at_s in found.values()), found
    over = {(event.machine, event.signal, str(event.kind)) for _, event in events if event.event == "cleared"}
    assert over == EXPECTED[fault]


def test_a_fault_that_was_called_up_acts_beside_the_script_and_ends_by_itself() -> None:
    called = {"drift": 10.0}
    assert plant_model.faults_at(9.0, called) == {"filter_clogging"}
    assert plant_model.faults_at(12.0, called) == {"filter_clogging", "drift"}
    assert plant_model.faults_at(75.0, called) == frozenset()


def test_the_script_shows_three_faults_in_the_first_minute_and_all_heal() -> None:
    events = events_of(run_of(480, lambda t_s: plant_model.faults_at(t_s, {})))
    found = raised(events)
    assert set(found) == set().union(*(EXPECTED[name] for name, _, _ in plant_model.SCRIPT))
    assert min(found.values()) < 15
    within = {key for name in ("filter_clogging", "bearing_overheating", "sensor_broken") for key in EXPECTED[name]}
    assert all(found[key] < 60 for key in within), found
    standing: dict[tuple[str, str], str] = {}
    for _, event in events:
        standing[event.machine, event.signal] = str(event.event)
    assert set(standing.values()) == {"cleared"}
    assert {"escalated"} <= {str(event.event) for _, event in events}


def test_one_seed_is_one_plant_and_another_seed_another() -> None:
    one, same, other = (run_of(20, lambda _: frozenset(), seed)[-1] for seed in (1, 1, 2))
    assert plant_model.observe(one) == plant_model.observe(same)
    assert plant_model.observe(one) != plant_model.observe(other)


def test_longer_steps_end_at_the_same_plant() -> None:
    fine = run_of(30, lambda _: frozenset({"filter_clogging"}))[-1]
    coarse = plant_model.Plant(1)
    for _ in range(60):
        coarse = plant_model.step(coarse, 0.5, {"filter_clogging"})
    assert coarse.press.filter_resistance == pytest.approx(fine.press.filter_resistance, rel=1e-6)
    assert coarse.press.oil_c == pytest.approx(fine.press.oil_c, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- registers


def test_registers_say_what_the_sensors_saw() -> None:
    seen = plant_model.observe(plant_model.Plant(1))
    image = plant_server.registers(seen)
    assert image["press", "input"][0] == round(seen["press"]["motor_speed"])
    words = image["pump-1", "holding"][10:12]
    assert struct.unpack(">f", struct.pack(">2H", *words))[0] == np.float32(seen["pump-1"]["discharge_pressure"])
    broken = plant_model.step(plant_model.Plant(1), 0.1, {"sensor_broken", "cable_cut"})
    image = plant_server.registers(plant_model.observe(broken))
    assert image["press", "input"][2] == plant_server.LEVEL_BROKEN
    assert ("pump-2", "holding") not in image


class Process:
    """`python -m drivers.plant_server …` with its stdin."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "drivers.plant_server", *arguments, "--attached"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert self.process.stdout is not None
        self.said = json.loads(self.process.stdout.readline())

    def call(self, fault: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"fault": fault}).encode() + b"\nnot json\n{}\n")
        self.process.stdin.flush()

    def end(self) -> int:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.process.wait(5)


def test_the_modbus_server_is_read_by_the_driver_and_breaks_when_it_is_told_to() -> None:
    started_s = time.monotonic()
    server = Process("--modbus", "0", "--start", str(started_s))
    assert time.monotonic() - started_s < 3
    level = {"address": "input:2", "type": "uint16", "sentinel": [65535], "unit": 1}
    pump = {"address": "holding:16", "type": "float32", "unit": 12}

    async def reading() -> None:
        async with modbus_session(modbus.DRIVER, server.said["url"], [level, pump]) as session:
            due = np.arange(2)
            readings = await session.read(due)
            assert list(readings.quality) == [Quality.GOOD, Quality.GOOD]
            assert readings.values[1] == pytest.approx(54, abs=2)
            server.call("sensor_broken")
            await until(session, due, lambda quality: quality[0] == Quality.SENSOR_FAILURE)
            server.call("cable_cut")
            await until(session, due, lambda quality: quality[1] == Quality.TIMEOUT)

    try:
        asyncio.run(reading())
    finally:
        assert server.end() == 0


def modbus_session(driver: Driver, url: str, points: list[dict[str, object]]) -> AbstractAsyncContextManager[Session]:
    settings = driver.Connection.model_validate({"url": url, "timeout": "300ms"})
    models = [Point(str(number), driver.Address.model_validate(point)) for number, point in enumerate(points)]
    return driver.open("test", settings, models, SkippingClock())


async def until(session: Session, due: Ints, holds: Callable[[Codes], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds((await session.read(due)).quality):
            pass  # each read waits for the server


def test_the_opcua_server_shows_the_spindle_with_its_broken_sensor() -> None:
    server = Process("--opcua", str(free_port()))
    nodes = [f"nsu={plant_server.NAMESPACE};s={node}" for node in plant_server.SPINDLE_NODES.values()]

    async def reading() -> None:
        points = [Point(node, opcua_settings.Address(address=node)) for node in nodes]
        settings = opcua_settings.Connection.model_validate({"url": server.said["url"]})
        async with opcua.DRIVER.open("test", settings, points, SkippingClock()) as session:
            due = np.arange(len(points))
            readings = await session.read(due)
            assert (readings.quality == Quality.GOOD).all()
            server.call("sensor_broken")
            broken = list(plant_server.SPINDLE_NODES).index("bearing_temperature")
            await until(session, due, lambda quality: quality[broken] == Quality.SENSOR_FAILURE)

    try:
        asyncio.run(reading())
    finally:
        assert server.end() == 0


def test_sigterm_ends_a_server_cleanly() -> None:
    server = Process("--modbus", "0")
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(5) == 0
    server.end()
