"""The stages of a reading one by one, without a network: what each costs for 10,000 signals of 100 machines at one beat."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.__main__ import configuration
from edge_agent import config, judge, plugins, replay
from edge_agent.clock import SystemClock
from edge_agent.contract import SECOND_US, Frame
from edge_agent.messages import topics
from edge_agent.plant import Plant, compile_plant
from edge_agent.store.journal import open_store

MACHINES, SIGNALS = 100, 100
ROUNDS = 200


class _Asked:
    devices, signals, every, commit_every = MACHINES, SIGNALS, "1s", "1s"


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "bench.yaml"
        path.write_text(configuration(_Asked(), 502, 1883, folder / "data"))  # type: ignore[arg-type]
        loading = took(lambda: config.load(path), 3)
        loaded = config.load(path)
        plant = compile_plant(loaded.config, plugins.detectors(), own=False)
        count = plant.columns
        rows = [("stage", "µs a beat", "ns a reading")]
        rows.append(_row("configuration, once", loading, count))
        for outside in (0.0, 0.001, 0.1):
            rows.append(_row(f"judge, {outside:.1%} outside", _judging(plant, outside), count))
        rows.append(_row("encode JSON", _encoding(plant), count))
        rows.append(_row("journal, put and commit", _storing(plant, folder), count))
        rows.append(_row("replay, quiet, 10,000 rows a frame", _replaying(plant), SIGNALS))
        for each in rows:
            print(f"  {each[0]:36} {each[1]:>12} {each[2]:>14}")
    return 0


def _row(name: str, seconds: float, readings: int) -> tuple[str, str, str]:
    return name, f"{seconds * 1e6:,.0f}", f"{seconds * 1e9 / readings:,.1f}"


def took(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of CPU of one call."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return float(np.median(times))


def _beat(plant: Plant, t: int, rng: np.random.Generator, outside: float) -> list[Frame]:
    frames = []
    for machine in plant.machines:
        values = rng.uniform(0, 1000, (1, SIGNALS))
        values[rng.random((1, SIGNALS)) < outside] = 9_995_000.0
        at = np.array([t], dtype=np.int64)
        frames.append(Frame(machine.name, at, at, values, np.zeros((1, SIGNALS), dtype=np.uint8)))
    return frames


def _judging(plant: Plant, outside: float) -> float:
    rng = np.random.default_rng(1)
    beats = [_beat(plant, i * SECOND_US, rng, outside) for i in range(1, ROUNDS)]
    state = judge.start(plant)
    times = []
    for beat in beats:
        began = time.process_time()
        state, _ = judge.step(plant, state, beat, "bench")
        times.append(time.process_time() - began)
    return float(np.median(times))


def _encoding(plant: Plant) -> float:
    beat = _beat(plant, SECOND_US, np.random.default_rng(1), 0)
    layouts = [machine.layout for machine in plant.machines]

    def encode() -> None:
        for frame, layout in zip(beat, layouts, strict=True):
            topics.measurement("bench0", 1, layout, SECOND_US, -1, frame.values[0], frame.quality[0])

    return took(encode, 50)


def _storing(plant: Plant, folder: Path) -> float:
    rng = np.random.default_rng(1)
    with open_store(folder / "store", SystemClock()) as store:
        store.use_layouts([machine.layout for machine in plant.machines])
        state = judge.start(plant)
        times = []
        for i in range(1, 60):
            state, judged = judge.step(plant, state, _beat(plant, i * SECOND_US, rng, 0), "bench")
            began = time.process_time()
            store.put(judged.frames)
            _commit(store)
            times.append(time.process_time() - began)
    return float(np.median(times))


def _commit(store: object) -> None:
    import asyncio

    asyncio.run(store._commit())  # type: ignore[attr-defined]


def _replaying(plant: Plant) -> float:
    """Seconds for each row of one machine."""
    rng = np.random.default_rng(1)
    rows, machine = replay.ROWS, plant.machines[0]
    t = np.arange(1, rows + 1, dtype=np.int64) * SECOND_US
    frame = Frame(machine.name, t, t, rng.uniform(0, 1000, (rows, SIGNALS)), np.zeros((rows, SIGNALS), dtype=np.uint8))
    return took(lambda: judge.step(plant, judge.start(plant), [frame], "bench"), 3) / rows
