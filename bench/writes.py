"""How many bytes the journal writes for a reading, checkpoints and snapshots included: what an SD card lives on.

The store alone, as the agent uses it: one commit a second, all delivered as it goes, the judge's state once a minute. The
figure is the kernel's own count for this process (write_bytes of /proc/self/io), on a real file system: in memory nothing
is counted. What the file system and the card add of their own is not in it.

    python -m bench writes                  50, 1,000 and 10,000 readings/s, ten minutes of the plant each
    python -m bench.writes --rate 50 --minutes 30 --folder /mnt/card
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.contract import SECOND_US, Frame
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store.journal import Store, open_store

WALL_US = 1_795_000_000_000_000
PLANTS = {50: (5, 10), 1_000: (20, 50), 10_000: (100, 100)}
"""Readings a second: (machines, signals of each)."""
STATE_BYTES = 60
"""bytes of a snapshot for each signal, as they are for a plant of limits."""
CONFIG_CHARACTERS = 350
"""Of the configuration for each signal, as it is kept beside the snapshot."""


class _Clock:
    """Stands until it is moved: an hour of the plant takes as long as its writing."""

    def __init__(self) -> None:
        self.now_us = 0

    def monotonic_us(self) -> int:
        return self.now_us

    def wall_us(self) -> int:
        return WALL_US + self.now_us


@dataclass(frozen=True, slots=True)
class Written:
    """bytes_a_reading: by the kernel's count. cpu_us: process time for each reading."""

    readings: int
    bytes_a_reading: float
    cpu_us: float
    file_mb: float


def measured(
    folder: Path, rate: int, minutes: float, commit_every_s: int = 1, each_its_commit: bool = False
) -> Written:
    """each_its_commit: a transaction for each machine's row, as who does not gather writes: the negative control."""
    machines, signals = PLANTS[rate]
    layouts = [Layout(f"m{i}", tuple(f"s{j}" for j in range(signals)), ()) for i in range(machines)]
    clock, seconds = _Clock(), round(minutes * 60)
    with open_store(folder, clock) as store:
        store.use_layouts(layouts)
        waiting: list[int] = []
        store.on_committed.append(lambda told: waiting.extend(each.seq for each in told))
        state = np.random.default_rng(1).bytes(STATE_BYTES * rate)
        config = "{" + "x" * CONFIG_CHARACTERS * rate + "}"
        _commit(store)
        began, cpu = written_bytes(), time.process_time()
        for second in range(1, seconds + 1):
            clock.now_us += SECOND_US
            for one in beat(layouts, clock, second):
                store.put([one])
                if each_its_commit:
                    _commit(store)
            if second % 60 == 0:
                store.put_snapshot(state, config)
            if second % commit_every_s == 0:
                _commit(store)
            store.delivered(waiting)
            waiting.clear()
        cpu = time.process_time() - cpu
        took = written_bytes() - began
        size = sum(each.stat().st_size for each in folder.iterdir()) / 1e6
    readings = rate * seconds
    return Written(readings, took / readings, cpu / readings * 1e6, size)


def beat(layouts: list[Layout], clock: _Clock, second: int) -> Iterator[JudgedFrame]:
    """A row of each machine: raw values of 16 bits, scaled, as most devices have them."""
    rng = np.random.default_rng(second)
    at = np.array([clock.now_us], dtype=np.int64)
    for layout in layouts:
        width = len(layout.signals)
        values = np.round(500 + 20 * np.sin(second / 60 + np.arange(width)) + rng.normal(0, 1, width)) * 0.1
        frame = Frame(layout.machine, at, at + WALL_US, values.reshape(1, width), np.zeros((1, width), np.uint8))
        yield JudgedFrame(frame, np.full(1, -1, np.int16), np.ones(1, np.bool_))


def _commit(store: Store) -> None:
    asyncio.run(store._commit())


def written_bytes() -> int:
    """Of this process, as the kernel counts pages that have to go to the disk."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.writes", description="What the journal writes for a reading."
    )
    parser.add_argument("--rate", type=int, choices=sorted(PLANTS), action="append")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--folder", type=Path, help="on a real file system (default: the system's temporary folder)")
    asked = parser.parse_args()
    return table(asked.rate, asked.minutes, asked.folder)


def table(rates: Sequence[int] | None = None, minutes: float = 10, folder: Path | None = None) -> int:
    print(f"  {'readings/s':>10} {'commits':>22} {'bytes a reading':>16} {'µs CPU a reading':>17} {'file MB':>8}")
    for rate in rates or sorted(PLANTS):
        for words, each in (("one a second", False), *((("one a row (control)", True),) if rate == 50 else ())):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                found = measured(Path(name), rate, minutes, each_its_commit=each)
            print(
                f"  {rate:>10,} {words:>22} {found.bytes_a_reading:>16,.1f} {found.cpu_us:>17.2f} {found.file_mb:>8.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
