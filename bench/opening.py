"""How long a start takes on a journal that has waited for its broker for days: "every start ready within 3 s".

python -m bench.opening                          2 GB of undelivered batches, the last minute since the snapshot
python -m bench.opening --gigabytes 0.1
"""

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.writes import WALL_US, _Clock
from edge_agent.contract import SECOND_US, Frame
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store import disk, rows
from edge_agent.store.journal import open_store
from edge_agent.store.rows import Kept

SIGNALS = 100
BATCH_BYTES = 8_000
SINCE_SNAPSHOT = 60
Result = TypeVar("Result")


def fill(folder: Path, size: int) -> None:
    """A journal of so many bytes whose numbers are all due, ended by a power cut."""
    layout, clock = Layout("m", tuple(f"s{i}" for i in range(SIGNALS)), ()), _Clock()
    with open_store(folder, clock) as store:
        store.use_layouts([layout])
        count = size // BATCH_BYTES
        db, rng = store._writer.db, np.random.default_rng(1)
        db.execute("BEGIN")
        for number in range(1, count + 1):
            closed = WALL_US + number * SECOND_US
            blob = rows.packed_batch([_nine(layout, number, rng)])
            plain = (number, store.epoch, 9 * number - 8, 9 * number, 9, len(blob), closed, closed, closed, blob)
            db.execute("INSERT INTO batches VALUES (?,?,?,?,?,?,?,?,?,?,?)", (*plain, rows.checksum(*plain)))
        disk.put_state(db, disk.State(store.epoch, 9 * count, count, count * SECOND_US, WALL_US + count * SECOND_US))
        db.execute("COMMIT")
        (folder / disk.MARKER).unlink()
    clock.now_us = (count + 1) * SECOND_US
    with open_store(folder, clock) as store:
        store.use_layouts([layout])
        store.put_snapshot(b"judge", "{}")
        asyncio.run(store._commit())
        for second in range(SINCE_SNAPSHOT):
            clock.now_us += SECOND_US
            at = np.array([clock.now_us + second], dtype=np.int64)
            frame = Frame("m", at, at + WALL_US, np.ones((1, SIGNALS)), np.zeros((1, SIGNALS), np.uint8))
            store.put([JudgedFrame(frame, np.full(1, -1, np.int16), np.ones(1, np.bool_))])
            asyncio.run(store._commit())


def _nine(layout: Layout, number: int, rng: np.random.Generator) -> Kept:
    """Nine rows of noise, which nothing makes smaller."""
    t = np.arange(9 * number - 8, 9 * number + 1, dtype=np.int64)
    frame = Frame("m", t, t + WALL_US, rng.random((9, SIGNALS)), np.zeros((9, SIGNALS), np.uint8))
    return Kept(1, layout, JudgedFrame(frame, np.full(9, -1, np.int16), np.ones(9, np.bool_)), t)


def opened(folder: Path) -> dict[str, float]:
    """Seconds of each step of a start, and of the first look for the backlog."""
    found: dict[str, float] = {}

    def timed(what: str, work: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = work()
        found[what] = round(time.perf_counter() - began, 3)
        return result

    shut = open_store(folder, _Clock())
    store = timed("open", shut.__enter__)
    timed("recovery", lambda: len(list(store.recovery().items)))
    timed("oldest", lambda: store.oldest_pending_us)
    timed("first look", lambda: store.pending(0, 20))
    timed("look in the middle", lambda: store.pending(store.last_committed // 2, 20))
    timed("first commit", lambda: asyncio.run(store._commit()))
    timed("close", lambda: shut.__exit__(None, None, None))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.opening", description="How long a start takes on a long backlog."
    )
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        fill(folder, round(asked.gigabytes * 1e9))
        # What the kernel still has in memory would make it look better than it is after a power cut.
        cold = os.geteuid() == 0 and subprocess.run(["sysctl", "-q", "vm.drop_caches=3"], check=False).returncode == 0
        size = (folder / disk.FILE).stat().st_size / 1e9
        found = opened(folder)
    print(
        f"  {size:.2f} GB, {'cold' if cold else 'warm'} cache: {found}, ready after {found['open'] + found['recovery']:.2f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
