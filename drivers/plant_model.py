"""A simulated plant, pure physics: a hydraulic press, two pumps and a spindle, small but plausible.

Rule 1: `step` moves the physics without noise; `observe` looks at it through sensors, with noise. Both are pure: one
seed gives the same plant, in whatever process it runs.
Rule 2: heat and wear move some ten times faster than in a real hall, so that a demonstration need not last a shift.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum
from math import exp, nan, pi, sin

import numpy as np

from edge_agent.contract import Floats

AMBIENT_C = 22.0
PROGRAM_S = 120.0
"""The press's programme: 85 s of strokes, 20 s idle with the motor on, 15 s stopped."""
RUN_S, IDLE_S = 85.0, 20.0
STROKE_S = 4.0
SPINDLE_PROGRAM_S, MACHINING_S = 60.0, 48.0
PUMP_PROGRAM_S, PUMP_PAUSE_S = 240.0, 15.0
"""Pump 1 rests for the last 15 s of each 4 minutes, pump 2 never does."""
FAULT_CYCLE_S = 240.0
"""Two programmes of the press, so that each fault finds the same operating state again."""

FAULTS: Mapping[str, str] = {
    "filter_clogging": "the press's return filter clogs: its pressure drop rises past its norm",
    "bearing_overheating": "pump 2 runs with a dry bearing: temperature and vibration rise",
    "sensor_broken": "the press's level sensor and the spindle's temperature sensor break: no value",
    "cooler_failure": "the press's oil cooler stops: the oil gets too hot",
    "drift": "pump 1 wears: its discharge pressure sinks slowly",
    "cable_cut": "pump 2 is cut off from its gateway: it does not answer any more",
}
"""Every fault that can be called up, with what it does."""

CALLED_S: Mapping[str, float] = {"cooler_failure": 60.0, "drift": 60.0}
"""How long a fault lasts that was called up; CALLED_S_DEFAULT for the others. It heals by itself."""
CALLED_S_DEFAULT = 40.0

SCRIPT: tuple[tuple[str, float, float], ...] = (
    ("filter_clogging", 8.0, 45.0),
    ("bearing_overheating", 20.0, 60.0),
    ("sensor_broken", 30.0, 65.0),
    ("cooler_failure", 130.0, 180.0),
    ("drift", 185.0, 215.0),
)
"""Faults that come by themselves: name, begin and end in seconds of each FAULT_CYCLE_S."""


class Mode(IntEnum):
    """What a machine is doing."""

    STOPPED = 0
    IDLE = 1
    RUNNING = 2


@dataclass(frozen=True, slots=True)
class Press:
    """Hydraulic press. filter_resistance: bar at rated flow, squared law. oil_c: °C. level: % of the glass."""

    oil_c: float = 49.0
    motor_rpm: float = 1480.0
    filter_resistance: float = 0.7
    level: float = 72.0


@dataclass(frozen=True, slots=True)
class Pump:
    """Centrifugal pump. speed: 0…1 of rated. wear: 0 new … 1. vibration: mm/s rms, as ISO 20816 judges it."""

    speed: float = 1.0
    bearing_c: float = 52.0
    vibration: float = 1.8
    wear: float = 0.0


@dataclass(frozen=True, slots=True)
class Spindle:
    """Machine tool spindle. load: % of rated."""

    rpm: float = 8000.0
    load: float = 45.0
    bearing_c: float = 41.0
    vibration: float = 1.1
    coolant: float = 12.0


@dataclass(frozen=True, slots=True)
class Plant:
    """The whole plant at one instant. t_s: since its start."""

    seed: int
    t_s: float = 0.0
    tick: int = 0
    press: Press = Press()
    pumps: tuple[Pump, Pump] = (Pump(), Pump(bearing_c=54.0, vibration=2.0))
    spindle: Spindle = Spindle()
    faults: frozenset[str] = frozenset()


def step(plant: Plant, dt_s: float, faults: AbstractSet[str]) -> Plant:
    """The plant dt_s later, with these faults acting meanwhile. dt_s: up to a second is stable."""
    t_s = plant.t_s + dt_s
    return Plant(
        plant.seed,
        t_s,
        plant.tick + 1,
        _press(plant.press, t_s, dt_s, faults),
        (
            _pump(
                plant.pumps[0], dt_s, pump_runs(0, t_s), dry=False, wears="drift" in faults, bearing_c=52.0, calm=1.8
            ),
            _pump(
                plant.pumps[1],
                dt_s,
                pump_runs(1, t_s),
                dry="bearing_overheating" in faults,
                wears=False,
                bearing_c=54.0,
                calm=2.0,
            ),
        ),
        _spindle(plant.spindle, t_s, dt_s),
        frozenset(faults),
    )


def press_mode(t_s: float) -> Mode:
    phase_s = t_s % PROGRAM_S
    if phase_s < RUN_S:
        return Mode.RUNNING
    return Mode.IDLE if phase_s < RUN_S + IDLE_S else Mode.STOPPED


def spindle_mode(t_s: float) -> Mode:
    return Mode.RUNNING if t_s % SPINDLE_PROGRAM_S < MACHINING_S else Mode.IDLE


def pump_runs(pump: int, t_s: float) -> bool:
    return pump == 1 or t_s % PUMP_PROGRAM_S < PUMP_PROGRAM_S - PUMP_PAUSE_S


def faults_at(t_s: float, called: Mapping[str, float]) -> frozenset[str]:
    """The faults that act at this time: those of the script, and those called up (name → t_s of the call)."""
    phase_s = t_s % FAULT_CYCLE_S
    scripted = {name for name, begin_s, end_s in SCRIPT if begin_s <= phase_s < end_s}
    by_hand = {name for name, at_s in called.items() if 0 <= t_s - at_s < CALLED_S.get(name, CALLED_S_DEFAULT)}
    return frozenset(scripted | by_hand)


def observe(plant: Plant) -> dict[str, dict[str, float]]:
    """What the sensors say: machine → signal → value in engineering units; NaN where a sensor is broken.

    A machine that is cut off is missing.
    """
    noise = np.random.default_rng((plant.seed, plant.tick)).standard_normal(24)
    broken = "sensor_broken" in plant.faults
    seen = {
        "press": _seen_press(plant.press, plant.t_s, noise[0:8], broken=broken),
        "pump-1": _seen_pump(plant.pumps[0], noise[8:14]),
        "pump-2": _seen_pump(plant.pumps[1], noise[14:19]),
        "spindle": _seen_spindle(plant.spindle, noise[19:24], broken=broken),
    }
    if "cable_cut" in plant.faults:
        del seen["pump-2"]
    return seen


def towards(value: float, goal: float, tau_s: float, dt_s: float) -> float:
    """First-order lag, exact for a constant goal."""
    return goal + (value - goal) * exp(-dt_s / tau_s)


def _press(press: Press, t_s: float, dt_s: float, faults: AbstractSet[str]) -> Press:
    mode = press_mode(t_s)
    cooled = "cooler_failure" not in faults
    heat = {Mode.RUNNING: 1.0, Mode.IDLE: 0.9, Mode.STOPPED: 0.8}[mode]
    balance_c = AMBIENT_C + heat * (28.0 if cooled else 95.0)
    clogged = "filter_clogging" in faults
    return Press(
        oil_c=towards(press.oil_c, balance_c, 90.0 if cooled and press.oil_c < 55 else 40.0 if cooled else 75.0, dt_s),
        motor_rpm=towards(press.motor_rpm, 0.0 if mode is Mode.STOPPED else 1480.0, 0.8, dt_s),
        filter_resistance=towards(press.filter_resistance, 2.6 if clogged else 0.7, 10.0 if clogged else 3.0, dt_s),
        level=towards(press.level, 72.0 + 0.1 * (press.oil_c - 49.0), 20.0, dt_s),
    )


def _pump(pump: Pump, dt_s: float, runs: bool, *, dry: bool, wears: bool, bearing_c: float, calm: float) -> Pump:
    """One pump. bearing_c, calm: °C and mm/s in health."""
    balance_c = (98.0 if dry else bearing_c) if runs else 44.0
    return Pump(
        speed=towards(pump.speed, 1.0 if runs else 0.0, 1.0, dt_s),
        bearing_c=towards(pump.bearing_c, balance_c, 14.0 if dry else 12.0 if pump.bearing_c > 58 else 40.0, dt_s),
        vibration=towards(pump.vibration, (8.2 if dry else calm) if runs else 0.2, 10.0 if dry else 4.0, dt_s),
        wear=towards(pump.wear, 1.0 if wears else 0.0, 25.0 if wears else 6.0, dt_s),
    )


def _spindle(spindle: Spindle, t_s: float, dt_s: float) -> Spindle:
    machining = spindle_mode(t_s) is Mode.RUNNING
    return Spindle(
        rpm=towards(spindle.rpm, 8000.0 if machining else 500.0, 1.5, dt_s),
        load=towards(spindle.load, 45.0 + 8.0 * sin(2 * pi * t_s / 17.0) if machining else 3.0, 1.0, dt_s),
        bearing_c=towards(spindle.bearing_c, 42.0 if machining else 36.0, 45.0, dt_s),
        vibration=towards(spindle.vibration, 1.1 if machining else 0.3, 2.0, dt_s),
        coolant=towards(spindle.coolant, 12.0 if machining else 4.0, 1.0, dt_s),
    )


def _seen_press(press: Press, t_s: float, noise: Floats, *, broken: bool) -> dict[str, float]:
    mode = press_mode(t_s)
    flow = press.motor_rpm / 1480.0
    stroke = max(0.0, sin(2 * pi * t_s / STROKE_S)) ** 2 if mode is Mode.RUNNING else 0.0
    outlet = 1.6 * flow + 0.3
    drop = press.filter_resistance * flow**2
    return {
        "motor_speed": max(0.0, press.motor_rpm + 3.0 * noise[0] * flow),
        "cycle_rate": 60.0 / STROKE_S if mode is Mode.RUNNING else 0.0,
        "main_pressure": max(0.0, (25.0 + 150.0 * stroke) * flow + 1.0 * noise[1] * flow),
        "oil_temperature": press.oil_c + 0.15 * noise[2],
        "oil_level": nan if broken else press.level + 0.3 * noise[3],
        "filter_inlet": max(0.0, outlet + drop + 0.02 * noise[4] * flow),
        "filter_outlet": max(0.0, outlet + 0.02 * noise[5] * flow),
        "oil_flow": max(0.0, 60.0 * flow + 0.4 * noise[6] * flow),
    }


def _seen_pump(pump: Pump, noise: Floats) -> dict[str, float]:
    speed = pump.speed
    return {
        "running": 1.0 if speed > 0.5 else 0.0,
        "suction_pressure": 1.2 - 0.4 * speed**2 + 0.01 * noise[0],
        "discharge_pressure": 1.0 + 3.9 * speed**2 * (1.0 - 0.7 * pump.wear) + 0.03 * noise[1] * speed,
        "flow": max(0.0, 42.0 * speed * (1.0 - 0.15 * pump.wear) + 0.3 * noise[2] * speed),
        "motor_current": max(0.0, 18.5 * speed**2 + 0.1 * noise[3] * speed),
        "bearing_temperature": pump.bearing_c + 0.1 * noise[4],
        "vibration": max(0.0, pump.vibration * (1.0 + 0.04 * noise[0])),
    }


def _seen_spindle(spindle: Spindle, noise: Floats, *, broken: bool) -> dict[str, float]:
    return {
        "speed": max(0.0, spindle.rpm + 4.0 * noise[0]),
        "load": max(0.0, spindle.load + 1.0 * noise[1]),
        "vibration": max(0.0, spindle.vibration * (1.0 + 0.05 * noise[2])),
        "bearing_temperature": nan if broken else spindle.bearing_c + 0.1 * noise[3],
        "coolant_flow": max(0.0, spindle.coolant + 0.1 * noise[4]),
    }
