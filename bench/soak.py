"""Thirty days of the whole agent in minutes: memory, tasks, threads and open files stay as they are.

    python -m bench.soak                    30 simulated days, an hour at the most (2.5 s each simulated hour)
    python -m bench.soak --days 2           a short run
    python -m bench.soak --leak             negative control: the world keeps two megabytes a day, which must be found

The agent is the real one in the simulated world of `tests.simulator`: two devices with a daily pattern, every day an hour of
faults (devices, broker, disk), two reloads, every third day a stop or a cut. The consumer counts what arrived against what
was due. Sampled in the calm; prints its seed, the slopes over the second half, and the simulated hours in a real one.
Peculiar: the agent looks whether time has passed every 2.5 s instead of four times a second.
"""

import argparse
import asyncio
import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from edge_agent.health import rss_mb
from tests import storm, verdict
from tests.simulator import DAY, HOUR, SECOND, Act, Heard, Signal, World, scratch

PLANT: Sequence[tuple[str, Sequence[Signal]]] = (
    (
        "press",
        (Signal("oil", 60, wave_s=86_400, on_s=120, off_s=120), Signal("flow", 300, wave_s=5_400, high=None, low=42)),
    ),
    ("pump", (Signal("pressure", 60, wave_s=7_200), Signal("speed", 60, wave_s=43_200, high=58, low=44))),
)
TURN_S = 2.5
SAMPLES_A_DAY = 4
RSS_MB_A_DAY = 0.5
"""reliability: the slope that a leak of one object an hour would not reach, and one of a page a minute would."""
LEAK_BYTES = 2_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process holds at a moment of calm. day: since the beginning."""

    day: float
    rss_mb: float
    tasks: int
    threads: int
    files: int


class Tally:
    """The consumer of weeks: counts, and remembers only numbers whose predecessors have not come yet."""

    def __init__(self) -> None:
        self.rows = self.gaps = self.repeated = self.warnings = 0
        self._reached: dict[str, int] = {}
        self._above: dict[str, set[int]] = {}

    def note(self, heard: Heard) -> None:
        plain: dict[str, Any] = orjson.loads(heard.payload)
        epoch, seq = plain["epoch"], plain["seq"]
        above, reached = self._above.setdefault(epoch, set()), self._reached.get(epoch, 0)
        if seq <= reached or seq in above:
            self.repeated += 1
            return
        above.add(seq)
        match heard.topic.rpartition("/")[2]:
            case "measurements":
                self.rows += not verdict.between_beats(plain)
            case "gaps":
                self.gaps += plain["count"]
                if plain["from_seq"] is not None:
                    above |= set(range(max(reached, plain["from_seq"] - 1) + 1, plain["to_seq"] + 1))
            case _:
                self.warnings += 1
        while reached + 1 in above:
            reached += 1
            above.discard(reached)
        self._reached[epoch] = reached

    @property
    def missing(self) -> int:
        """Numbers that came before their predecessors did, and still wait for them."""
        return sum(map(len, self._above.values()))


def calendar(world: World, days: float, dice: random.Random) -> list[Act]:
    """What happens: each day an hour of faults and two reloads, every third day a restart."""
    found: list[Act] = []
    title = [0]

    def reload() -> str:
        title[0] += 1
        world.config["machines"]["press"]["title"] = f"Press {title[0] % 2}"
        world.config["machines"]["pump"]["signals"]["pressure"]["norm"]["warning"]["high"] = 58 + title[0] % 2
        world.write_config()
        return ""

    for day in range(int(days) + 1):
        kinds = [
            f
            for f in storm.faults(world, dice)
            if "reload" not in f.what and f.longest_s and f.what != "broker takes few"
        ]
        for fault in dice.sample(kinds, 6):
            begin = day * 24 + 1 + dice.random()
            end = begin + dice.uniform(0.01, max(0.02, fault.longest_s / 600))
            found += [_act(world, begin, fault.what, fault.begin), _act(world, end, f"{fault.what}: over", fault.end)]
        found += [_act(world, day * 24 + hour, "reload", reload) for hour in (8, 20)]
        if day % 3 == 2:
            how = dice.choice(("stop", "cut"))
            found.append(_act(world, day * 24 + 15 + dice.random(), how, lambda how=how: how))  # type: ignore[misc]
    return found


def _act(world: World, hour: float, what: str, do: storm.Begin) -> Act:
    def done() -> str:
        how = do()
        return how if isinstance(how, str) else ""

    return Act(world.began_us + round(hour * HOUR), what, done)


@dataclass(slots=True)
class Soaked:
    """A run. complaints: none when all is well."""

    samples: list[Sample]
    tally: Tally
    days: float
    due: int
    took_s: float
    complaints: list[str]


def soak(seed: int, days: float, at_most_s: float, leak: bool = False) -> Soaked:
    """Run until so many days or so many real seconds are over."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edge-agent-soak-", dir=scratch()) as folder:
        world = World(seed, Path(folder), PLANT, commit_every="10s")
        world.turn_s = TURN_S
        tally, samples, kept = Tally(), list[Sample](), list[bytearray]()
        world.listeners[:] = [tally.note]
        for device in world.devices.values():
            device.held = type(device.held)(maxlen=100)
        dice = random.Random(seed)
        found = calendar(world, days, dice)

        def sample() -> str:
            if leak:
                kept.append(bytearray(os.urandom(1) * (LEAK_BYTES // SAMPLES_A_DAY)))
            samples.append(sampled((world.now_us - world.began_us) / DAY))
            print(f"day {samples[-1].day:5.2f}: {samples[-1]}", file=sys.stderr, flush=True)
            # The last one that there is time for ends it, in good order.
            return "stop" if time.monotonic() - began > at_most_s else ""

        every = 24 / SAMPLES_A_DAY
        found += [_act(world, every * (n + 0.97), "sample", sample) for n in range(int(days * SAMPLES_A_DAY))]
        world.acts.extend(sorted(found, key=lambda act: act.at_us))
        end = world.began_us + round(days * DAY) + SECOND // 2
        world.play(
            end, down_us=lambda: dice.randint(1, 30 * SECOND), enough=lambda: time.monotonic() - began > at_most_s
        )
        until = world.lives[-1][1]
        due = sum(device.rows_due(world.began_us, until) for device in world.devices.values())
        return Soaked(
            samples,
            tally,
            (until - world.began_us) / DAY,
            due,
            time.monotonic() - began,
            [*unsteady(samples), *_uncounted(tally, due, _read_at_once(world))],
        )


def sampled(day: float) -> Sample:
    gc.collect()
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Sample(round(day, 3), round(rss_mb(), 2), len(asyncio.all_tasks()), threading.active_count(), files)


def _read_at_once(world: World) -> int:
    """How often slow signals may have been read beside their beats: when a line was opened or is back, after a reload."""
    opened = sum(device.opened for device in world.devices.values())
    reloads, back = (world.logged.get(name, 0) for name in ("config_taken_over", "device_back"))
    return opened + back + reloads * len(world.devices)


def _uncounted(tally: Tally, due: int, besides: int) -> list[str]:
    found = [f"{tally.missing} numbers wait for one that never came"] if tally.missing else []
    counted = tally.rows + tally.gaps
    if not 0 <= counted - due <= besides:
        found.append(
            f"{tally.rows} rows and gaps of {tally.gaps} are not the {due} that were due, and up to {besides} more"
        )
    return found


def unsteady(samples: Sequence[Sample]) -> list[str]:
    """What grew: the slope of memory over the second half, and anything that is more there than it ever was before."""
    first, second = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    if not first:
        return ["too few samples to say anything"]
    found = []
    for name in ("tasks", "threads", "files"):
        before, after = (max(getattr(each, name) for each in half) for half in (first, second))
        if after > before:
            found.append(f"{name}: {after}, and never more than {before} in the first half")
    grows = slope(second, "rss_mb")
    # Over less than a day a slope is noise.
    if second[-1].day - second[0].day >= 1 and grows > RSS_MB_A_DAY:
        found.append(f"memory grows by {grows:.2f} MB a day")
    return found


def slope(samples: Sequence[Sample], name: str) -> float:
    """Units a day, by least squares; 0 for one sample."""
    if len(samples) < 2:
        return 0.0
    days = np.array([each.day for each in samples])
    return float(np.polyfit(days, np.array([getattr(each, name) for each in samples], dtype=np.float64), 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--minutes", type=float, default=60, help="of real time, at the most")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--leak", action="store_true")
    asked = parser.parse_args()
    print(f"seed {asked.seed}: {asked.days:g} days, {asked.minutes:g} minutes at the most", flush=True)
    done = soak(asked.seed, asked.days, asked.minutes * 60, asked.leak)
    half = done.samples[len(done.samples) // 2 :]
    tally = done.tally
    print(
        f"{done.days:.1f} days in {done.took_s / 60:.1f} minutes: {done.days * 24 / done.took_s * 3600:,.0f} simulated hours an hour\n"
        f"due {done.due:,} rows; received {tally.rows:,}, gaps {tally.gaps:,}; {tally.warnings:,} events, {tally.repeated:,} repeated\n"
        "second half, a day: "
        + ", ".join(f"{name} {slope(half, name):+.3f}" for name in ("rss_mb", "tasks", "threads", "files"))
    )
    for words in done.complaints:
        print(words, file=sys.stderr)
    print("FAILED" if done.complaints else "OK")
    return 1 if done.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
