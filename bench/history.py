"""The history: bytes a reading on disk, bytes written for it, and how long a trend takes. `python -m bench.history`."""

import argparse
import asyncio
import contextlib
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edge_agent.contract import Frame
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store import shelf, stretch
from edge_agent.store.history import _Key, open_history
from edge_agent.store.journal import open_store
from edge_agent.store.past import open_past
from tests.conftest import StandingClock

SECOND = 1_000_000
DAY_US = 86_400 * SECOND
Kind = Callable[[np.random.Generator, int, int], np.ndarray]


def walking(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """16-bit raw values of calm sensors: they wander by a few counts."""
    return (20_000 + np.cumsum(rng.integers(-4, 5, (rows, width)), axis=0)) * 0.1


KINDS: dict[str, Kind] = {
    "16 bit, calm, scale 0.1": walking,
    "16 bit, noise over the whole range": lambda rng, rows, width: rng.integers(0, 65_536, (rows, width)) * 0.1,
    "float32, noise": lambda rng, rows, width: rng.normal(50, 1, (rows, width)).astype(np.float32).astype(float),
    "float64, noise": lambda rng, rows, width: rng.normal(50, 1, (rows, width)),
}


def written() -> int:
    """Bytes that this process has handed to the kernel."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"])


async def journalled(folder: Path, values: np.ndarray, jitter: np.random.Generator) -> tuple[int, float]:
    """One row a second through the journal into the history. Returns (bytes written by the history, CPU s of it)."""
    rows, width = values.shape
    layout = Layout("m", tuple(f"s{i}" for i in range(width)), ())
    clock = StandingClock()
    bytes_, cpu = 0, 0.0
    with open_store(folder, clock) as store, open_history(folder, clock) as kept:
        store.use_layouts([layout])
        store.keep_for_history()
        quality = np.zeros((1, width), np.uint8)
        state, publish = np.full(1, -1, np.int16), np.ones(1, np.bool_)
        for row in range(rows):
            clock.move(SECOND)
            late = int(jitter.normal(0, 500))
            one = np.array([clock.monotonic_us() + late]), np.array([clock.wall_us() + late + int(jitter.normal(0, 2))])
            store.put([JudgedFrame(Frame("m", *one, values[row : row + 1], quality), state, publish)])
            store._seal()
            if row % 60 == 59:
                await _commit(store)
                before, began = written(), time.process_time()
                assert await kept.turn(store), kept.fault
                bytes_ += written() - before
                cpu += time.process_time() - began
                store.delivered(range(1, store.last_committed + 1))
                store.put_snapshot(b"", "")
    return bytes_, cpu


async def _commit(store) -> None:
    await store.stop()
    await store.run()
    store._stopping = False


def sizes(width: int, hours: int) -> None:
    print(f"one machine of {width} signals, one row a second for {hours} h, all of it on disk:")
    print(f"  {'values':36} {'bytes a reading':>16} {'written a reading':>18} {'CPU a reading':>14}")
    for name, kind in KINDS.items():
        rng = np.random.default_rng(1)
        rows = hours * 3_600 + 120
        with tempfile.TemporaryDirectory() as folder:
            bytes_, cpu = asyncio.run(journalled(Path(folder), kind(rng, rows, width), rng))
            with contextlib.closing(shelf.read_only(Path(folder) / shelf.FILE)) as db:
                used = db.execute("PRAGMA page_count").fetchone()[0] - db.execute("PRAGMA freelist_count").fetchone()[0]
                readings = db.execute("SELECT sum(rows) FROM axes").fetchone()[0] * width
                loose = db.execute("SELECT ifnull(sum(length(data)), 0) FROM blocks").fetchone()[0]
        each = (used * 4096 - loose) / readings
        print(f"  {name:36} {each:16.2f} {bytes_ / (rows * width):18.1f} {cpu / (rows * width) * 1e6:11.2f} µs")


def filled(folder: Path, days: int) -> tuple[int, int]:
    """Chunks of one signal at 1 Hz as packing writes them, hour by hour.

    All but the last two days share the bytes of one hour, since packing a year takes minutes; their sums are their own, and
    a trend of more than two days reads nothing else.
    """
    clock = StandingClock()
    rng = np.random.default_rng(2)
    layout = Layout("m", ("s",), ())
    start = clock.wall_us() // (3_600 * SECOND) * 3_600 * SECOND
    with open_history(folder, clock) as kept:
        kept._opened()
        with kept._transaction() as db:
            number = kept._number_of(db, layout)
        blobs: tuple[bytes, bytes] | None = None
        for hour in range(days * 24):
            first = start + hour * 3_600 * SECOND
            with kept._transaction() as db:
                part = _hour(layout, first, hour * 3_600 + 1, rng)
                if hour < (days - 2) * 24:
                    blobs = blobs or (stretch.pack_axis(part.axis), stretch.pack_column(part, 0))
                    _put_shared(db, hour + 1, number, part, *blobs)
                else:
                    kept._put_axis(db, _Key(number, "bench"), part, 1)
                shelf.put_position(db, shelf.Position(place=(hour + 1) * 3_600 + 1))
    return start, start + days * DAY_US


def _put_shared(db, axis: int, layout: int, part: stretch.Stretch, axis_blob: bytes, column_blob: bytes) -> None:
    ts_from, ts_to = int(part.axis.ts[0]), int(part.axis.ts[-1])
    places = int(part.axis.places[0]), int(part.axis.places[-1])
    shelf.put(db, "axes", (axis, layout, "bench", *places, 3_600, ts_from, ts_to, ts_to, 1, axis_blob))
    sums = stretch.sums_of(part.axis.ts, part.values[:, 0], part.quality[:, 0])
    shelf.put_chunk(db, shelf.chunk_id(axis, 0), 1, ts_from, ts_to, sums, column_blob)


def _hour(layout: Layout, first: int, place: int, rng: np.random.Generator) -> stretch.Stretch:
    rows = 3_600
    ts = first + np.arange(rows, dtype=np.int64) * SECOND + rng.integers(0, 2_000, rows)
    axis = stretch.Axis(
        places=place + np.arange(rows, dtype=np.int64),
        counts=np.ones(rows, np.int64),
        flags=np.zeros(rows, np.uint8),
        words=(),
        t=ts,
        ts=ts,
        seqs=place + np.arange(rows, dtype=np.int64),
        state=np.full(rows, -1, np.int16),
    )
    values = np.round(500.0 + np.cumsum(rng.integers(-3, 4, rows)).astype(np.float64)) * 0.1
    return stretch.Stretch(
        layout, "bench", axis, values[:, None], np.zeros((rows, 1), np.uint8), np.empty((0, 1), np.int64)
    )


def trends(days: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        _, end = filled(folder, days)
        size = (folder / shelf.FILE).stat().st_size
        print(
            f"one signal at 1 Hz, {days} days: {size / 1e6:.0f} MB, ms of wall clock (of CPU), "
            f"filled in {time.perf_counter() - began:.0f} s"
        )
        spans = [
            ("a quarter of an hour", DAY_US // 96),
            ("a day", DAY_US),
            ("a week", 7 * DAY_US),
            ("a year", 365 * DAY_US),
        ]
        with open_past(folder) as past:
            plain, plain_cpu = _median(lambda: past.readings("m", "s", end - DAY_US, end), 5)
            for words, span in spans:
                if span > days * DAY_US:
                    continue
                trend = partial(past.trend, "m", "s", end - span, end, 500)
                took, cpu = _median(trend, 9)
                found = trend()
                counted = int(found.count.sum())
                print(
                    f"  trend of {words:22} {took * 1e3:7.1f} ms ({cpu * 1e3:5.1f})   "
                    f"{len(found.ts)} buckets of {found.step_us / 1e6:.0f} s, "
                    f"{counted} readings ({counted / took / 1e6:.1f} million/s)"
                )
            print(f"  readings of a day, one by one  {plain * 1e3:7.1f} ms ({plain_cpu * 1e3:5.1f})")


def _median(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Seconds of wall clock and of CPU: the files are in memory after the first round; other programs may run beside it."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter(), time.process_time()
        work()
        times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    wall, cpu = np.median(np.array(times), axis=0).tolist()
    return wall, cpu


def reading(days: int) -> None:
    """Frame by frame, as replay reads: speed and memory."""
    with tempfile.TemporaryDirectory() as name:
        filled(Path(name), days)
        with open_past(Path(name)) as past:
            began = time.perf_counter()
            count = sum(1 for _ in past.frames())
            took = time.perf_counter() - began
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"all frames of {days} days in order: {count / took:,.0f} frames/s, RSS at most {rss:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=366)
    parser.add_argument("--hours", type=int, default=2)
    parser.add_argument("--signals", type=int, default=50)
    asked = parser.parse_args()
    sizes(asked.signals, asked.hours)
    trends(asked.days)
    reading(2)


if __name__ == "__main__":
    main()
