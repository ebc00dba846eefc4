"""Random faults for a simulated world, all of one seed: first they rage (safety), then they end (liveness).

Rule 1: what a seed does is drawn before the run, from dice of its own: it does not hang on what the agent does.
Rule 2: faults overlap and end each in its time; at the end of the storm every one of them is over.
"""

import random
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulator import CUT, SECOND, STOP, Act, Device, Signal, World, scratch

PLANT: Sequence[tuple[str, Sequence[Signal]]] = (
    ("press", (Signal("oil", 2, wave_s=120, on_s=5, off_s=6), Signal("flow", 5, wave_s=300, high=None, low=42))),
    ("pump", (Signal("pressure", 2, wave_s=90), Signal("speed", 2, wave_s=200, high=58, low=44))),
    ("fan", (Signal("current", 5, wave_s=150), Signal("heat", 1, wave_s=100, on_s=3))),
)
STORM_S, CALM_S = 300.0, 200.0
REASONS = (0x83, 0x87, 0x97, 0x99)
WHOLE_US = 10 * SECOND
"""Wall clocks are stepped by multiples of this, which all periods divide: so a count of beats by either clock is the same."""

Begin = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that begins, and is over after a while. touches: the device it befalls, '' for what befalls all."""

    what: str
    begin: Begin
    end: Begin = lambda: None
    longest_s: float = 60.0
    touches: str = ""


def disk_full() -> Exception:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def disk_broken() -> Exception:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


def no_space() -> Exception:
    return OSError(28, "No space left on device", "journal.db")


def faults(world: World, dice: random.Random) -> list[Fault]:
    """Every kind that there is, with its strength drawn."""
    broker, disk = world.broker, world.disk
    refusal, step = _refusal(dice), _step(dice)
    found = [
        Fault("broker falls", broker.fall, lambda: _set(broker, "up", True), 120),
        Fault("broker refuses", lambda: _set(broker, "refuses", refusal), broker.relent, 90),
        _setting("broker loses acks", broker, "loses_acks", True, False, 70),
        _setting("broker is slow", broker, "slow_s", dice.uniform(0.1, 1.5), 0.0),
        _setting("broker takes few", broker, "receive_max", dice.randint(1, 8), 65_535, 120),
        _setting("disk fails", disk, "fault", dice.choice((disk_full, disk_broken, no_space))(), None),
        _setting("disk is slow", disk, "took_us", (100_000, dice.randint(200_000, 4_000_000)), (500, 15_000)),
        Fault("cut", lambda: CUT, longest_s=0),
        Fault("stop", lambda: STOP, longest_s=0),
        Fault("doomed", lambda: _set(disk, "doom", dice.choice(("before", "after"))), longest_s=0),
        Fault("step", lambda: world.step_wall(step), longest_s=0),
    ]
    for device in world.devices.values():
        found += _of(device, dice)
    return [*found, *_reloads(world)]


def _reloads(world: World) -> list[Fault]:
    """The file is written while the agent runs, or lies there when it starts. No beat is another one by it."""
    machines = world.config["machines"]
    speed = machines["pump"]["signals"]["speed"]

    def titled(title: str) -> None:
        machines["press"]["title"] = title
        world.write_config()

    def limited(high: float) -> None:
        machines["pump"]["signals"]["pressure"]["norm"]["warning"]["high"] = high
        world.write_config()

    def without() -> None:
        machines["pump"]["signals"].pop("speed", None)
        world.write_config()

    def with_it() -> None:
        machines["pump"]["signals"]["speed"] = speed
        world.write_config()

    return [
        Fault("reload of a title", lambda: titled("Other press"), lambda: titled("Press"), 30),
        Fault("reload of a limit", lambda: limited(45), lambda: limited(60), 60, "pump"),
        Fault("reload without a signal", without, with_it, 60, "pump"),
    ]


def _of(device: Device, dice: random.Random) -> list[Fault]:
    name = device.name
    return [
        _setting(f"{name} is silent", device, "silent", True, False, 60, name),
        _setting(f"{name} is late", device, "late_s", dice.uniform(0.5, 12), 0.0, 60, name),
        _setting(f"{name} lies", device, "lie", dice.choice(("shape", "quality", "raise")), "", 40, name),
    ]


def _setting(
    what: str, of: Any, name: str, during: Any, after: Any, longest_s: float = 60.0, touches: str = ""
) -> Fault:
    return Fault(what, lambda: _set(of, name, during), lambda: _set(of, name, after), longest_s, touches)


def _set(of: Any, name: str, value: Any) -> None:
    setattr(of, name, value)


def _refusal(dice: random.Random) -> tuple[str, int]:
    return dice.choice(("measurements", "warnings", "press", "gaps", "health", "pump/measurements")), dice.choice(
        REASONS
    )


def _step(dice: random.Random) -> int:
    """Forth and back, by seconds or by days."""
    return dice.choice((-1, 1)) * WHOLE_US * round(10 ** dice.uniform(0, 4.5))


@dataclass(slots=True)
class Storm:
    """What a seed will do. touched: devices that a fault befalls."""

    acts: deque[Act]
    touched: set[str]
    whats: list[str]


def brew(world: World, count: int, storm_s: float = STORM_S, without: Sequence[str] = ()) -> Storm:
    """`count` faults at random times. One device at least is spared."""
    dice = random.Random(world.seed * 7919 + 11)
    spared = dice.choice(sorted(world.devices))
    kinds = [f for f in faults(world, dice) if f.touches != spared and not any(w in f.what for w in without)]
    found: list[Act] = []
    touched, whats = set(), []
    for _ in range(count):
        fault = dice.choice(kinds)
        # Of a store in which nothing was ever committed nobody can say what is missing.
        begin = dice.uniform(5, storm_s)
        end = min(storm_s, begin + dice.uniform(1, max(1.0, fault.longest_s)))
        found.append(_act(world, begin, fault.what, fault.begin))
        found.append(_act(world, end, f"{fault.what}: over", fault.end))
        touched.add(fault.touches)
        whats.append(fault.what)
    # Of two faults of one kind the longer one ends last, but where they differ, all is put right at the end.
    found += [_act(world, storm_s, f"{fault.what}: over", fault.end) for fault in kinds]
    return Storm(deque(sorted(found, key=lambda act: act.at_us)), touched - {""}, whats)


def _act(world: World, at_s: float, what: str, do: Begin) -> Act:
    def done() -> str:
        how = do()
        return how if isinstance(how, str) else ""

    return Act(world.began_us + round(at_s * 1e6), what, done)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A world after its storm."""

    world: World
    storm: Storm


def rage(
    seed: int,
    *,
    count: int | None = None,
    folder: Path | None = None,
    change: Callable[[World], None] | None = None,
    without: Sequence[str] = (),
) -> Outcome:
    """One whole run: storm, calm, end. change: done to the world before it begins (a negative control)."""
    with tempfile.TemporaryDirectory(prefix="edge-agent-storm-", dir=folder or scratch()) as place:
        world = World(seed, Path(place), PLANT)
        if change is not None:
            change(world)
        dice = random.Random(seed)
        storm = brew(world, dice.randint(1, 12) if count is None else count, without=without)
        world.acts = storm.acts
        end = world.began_us + round((STORM_S + CALM_S) * SECOND) + SECOND // 2
        world.play(end, down_us=lambda: dice.randint(1, 30 * SECOND))
        return Outcome(world, storm)
