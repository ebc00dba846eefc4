"""Power cuts: what was told as committed is there afterwards, byte for byte. Needs root; about 0.5 s a cut.

    python -m bench.powercut                     100 cuts of the store under full load, and the negative control
    python -m bench.powercut --cuts 500 --seed 3
    python -m bench.powercut agent --cuts 20     the whole agent: devices, broker and consumer go on, its disk does not

The negative control is part of every run: the same store with synchronous=NORMAL has to lose something, or the rig proves
nothing and fails. Each cycle runs on the disk that the last one left, so damage that stays unseen for a while is found too.
"""

import argparse
import asyncio
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import broken
from bench.__main__ import tidy_when_told_to_end
from bench.loopdisk import LoopDisk, NotHere, own_mounts
from edge_agent.clock import SystemClock
from edge_agent.contract import Frame
from edge_agent.records import Gap, GapCause, JudgedFrame, Layout
from edge_agent.store.committed import Committed
from edge_agent.store.journal import open_store

SIGNALS = 50
LAYOUT = Layout("press", tuple(f"s{i}" for i in range(SIGNALS)), ("running",))
COMMIT_EVERY_US = 5_000
KEPT = 400
"""Messages that wait undelivered; the older ones are delivered, so that the journal is pruned meanwhile."""
DISK_MB = 200
LINE = "%d %d %d\n"
"""What the writer tells: seq, checksum of its payload, and up to which number it delivered."""


@dataclass(slots=True)
class Found:
    """What the cuts came to. due: by seq, the checksum of what was told as committed and not delivered."""

    cuts: int = 0
    told: int = 0
    lost: int = 0
    changed: int = 0
    anew: int = 0
    """Starts under another epoch, or with damage."""
    open_s: list[float] = field(default_factory=list)
    due: dict[int, int] = field(default_factory=dict)
    first: int = 0


# --- the writer: a process of its own -----------------------------------------------------------------------------------


async def _write(folder: Path, seed: int, pipe: int) -> None:
    """Put as fast as the disk takes it, and tell what is committed. Ends by being killed."""
    dice = np.random.default_rng(seed)
    with open_store(folder, SystemClock()) as store:
        store.use_layouts([LAYOUT])
        store.limit(2_000_000_000, 10**15, COMMIT_EVERY_US)

        def told(messages: Sequence[Committed]) -> None:
            done = max(0, messages[-1].seq - KEPT)
            store.delivered(range(max(1, done - 2 * KEPT), done + 1))
            lines = [LINE % (each.seq, zlib.crc32(each.payload(late=False)), done) for each in messages]
            os.write(pipe, "".join(lines).encode())

        store.on_committed.append(told)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(store.run())
            while True:
                store.put([_frame(dice) for _ in range(int(dice.integers(1, 20)))])
                if dice.random() < 0.05:
                    store.put((), gaps=[Gap(GapCause.OVERLOAD, 1, 1, 2)])
                if dice.random() < 0.02:
                    store.put_snapshot(dice.bytes(20_000), "{}")
                await asyncio.sleep(float(dice.uniform(0, 0.004)))


def _frame(dice: np.random.Generator) -> JudgedFrame:
    now = time.monotonic_ns() // 1000
    one = np.array([now], dtype=np.int64)
    frame = Frame(LAYOUT.machine, one, one, dice.normal(size=(1, SIGNALS)), np.zeros((1, SIGNALS), dtype=np.uint8))
    return JudgedFrame(frame, np.zeros(1, dtype=np.int16), np.ones(1, dtype=np.bool_))


def _look(folder: Path, pipe: int) -> None:
    """Open the store as a start does, and tell what it has: (seconds, epoch, by seq the checksum, gaps of damage)."""
    began = time.monotonic()
    with open_store(folder, SystemClock()) as store:
        took = time.monotonic() - began
        found: dict[int, int] = {}
        after = 0
        while (page := store.pending(after, 1000)) is not None and (page.messages or page.reached > after):
            found |= {each.seq: zlib.crc32(each.payload(late=False)) for each in page.messages}
            after = page.reached
        damage = any(b'"damage"' in each._bytes for batch in [store._open] for each in batch.notices)
        with os.fdopen(pipe, "wb") as out:
            pickle.dump((took, store.epoch, found, damage), out)
        os._exit(0)  # it only looked: what it would write at its end is no part of the test


def child(what: Callable[[int], Any]) -> tuple[int, int]:
    """A process that does this, quickly: forked, with everything imported. Returns its pid and our end of its pipe."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            what(theirs)
        except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
            import traceback

            traceback.print_exc()
        os._exit(1)
    os.close(theirs)
    return pid, ours


# --- the cuts -----------------------------------------------------------------------------------------------------------


def cycle(disk: LoopDisk, dice: random.Random, found: Found, prepare: Callable[[], None]) -> None:
    """One life of the writer, one cut, one look."""
    folder, seed = disk.place / "data", dice.randrange(2**32)

    def write(pipe: int) -> None:
        prepare()
        asyncio.run(_write(folder, seed, pipe))

    writer, ours = child(write)
    told = os.read(ours, 65_536)  # it is under way
    end = time.monotonic() + dice.uniform(0.02, 0.35)
    os.set_blocking(ours, False)
    while time.monotonic() < end:
        told += _rest(ours)
        time.sleep(0.002)
    disk.cut(writer)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    told += _rest(ours)
    os.close(ours)
    disk.restore()
    done = 0
    for line in told[: told.rfind(b"\n") + 1].splitlines():
        seq, checksum, done = map(int, line.split())
        found.changed += found.due.setdefault(seq, checksum) != checksum
        found.told += 1
    found.due = {seq: checksum for seq, checksum in found.due.items() if seq > done}
    _compare(folder, found)


def _rest(pipe: int) -> bytes:
    data = b""
    try:
        while more := os.read(pipe, 65_536):
            data += more
    except BlockingIOError:
        pass
    return data


def _compare(folder: Path, found: Found) -> None:
    """What was told is there, and the same."""
    looker, ours = child(lambda pipe: _look(folder, pipe))
    with os.fdopen(ours, "rb") as pipe:
        data = pipe.read()
    os.waitpid(looker, 0)
    found.cuts += 1
    if not data:
        found.lost += len(found.due)
        return
    took, epoch, there, damage = pickle.loads(data)
    found.open_s.append(took)
    lost = [seq for seq, checksum in found.due.items() if there.get(seq) != checksum]
    found.lost += len(lost)
    known = zlib.crc32(epoch.encode())
    found.anew += damage or found.first not in (0, known)
    found.first = known
    for seq in lost:
        del found.due[seq]


def cuts(count: int, seed: int, prepare: Callable[[], None] = lambda: None) -> Found:
    """So many cuts on a fresh disk. Raises NotHere."""
    dice, found = random.Random(seed), Found()
    with tempfile.TemporaryDirectory(prefix="edge-agent-power-") as name:
        disk = LoopDisk(Path(name) / "disk.img", Path(name) / "disk")
        disk.make(DISK_MB)
        try:
            for _ in range(count):
                cycle(disk, dice, found, prepare)
        finally:
            disk.unmount()
    return found


def show(what: str, found: Found, took_s: float) -> None:
    opened = sorted(found.open_s) or [0.0]
    print(
        f"  {what}: {found.cuts} cuts in {took_s:.0f} s, {found.told:,} messages told as committed, {found.lost:,} lost, "
        f"{found.changed} given out with other bytes, {found.anew} stores counted anew or damaged, "
        f"open max {1000 * opened[-1]:.0f} ms",
        flush=True,
    )


def store(count: int, control: int, seed: int) -> int:
    """The store with its own settings must lose nothing, with synchronous=NORMAL it must lose something."""
    began = time.monotonic()
    sound = cuts(count, seed)
    show("synchronous=FULL", sound, time.monotonic() - began)
    began = time.monotonic()
    weak = cuts(control, seed, broken.syncs_nothing)
    show("synchronous=NORMAL (negative control)", weak, time.monotonic() - began)
    failed = sound.lost or sound.changed or sound.anew or sound.cuts != count
    if not weak.lost:
        print("  the negative control lost nothing: this rig proves nothing here")
        failed = True
    print(f"  {'FAILED' if failed else 'OK'}", flush=True)
    return 1 if failed else 0


def agent(count: int, control: int, seed: int) -> int:
    """The same with the whole agent, by the oracle's account; with synchronous=NORMAL it must be found out."""
    from bench import oracle

    words = ["--seed", str(seed), "--devices", "5", "--signals", "20", "--every", "500ms"]
    failed = oracle.run_with([*words, "--cuts", str(count)])
    print("  synchronous=NORMAL (negative control)")
    if not oracle.run_with([*words, "--cuts", str(control), "--break", "sync"]):
        print("  the negative control lost nothing: this rig proves nothing here")
        failed = 1
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.powercut")
    parser.add_argument("what", nargs="?", default="store", choices=("store", "agent"))
    parser.add_argument("--cuts", type=int, help="default: 100 of the store, 20 of the agent")
    parser.add_argument("--control", type=int, default=10, help="cuts of the negative control")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args()
    tidy_when_told_to_end()
    print(f"seed {asked.seed}", flush=True)
    try:
        own_mounts()
        if asked.what == "store":
            return store(asked.cuts or 100, asked.control, asked.seed)
        return agent(asked.cuts or 20, asked.control, asked.seed)
    except NotHere as error:
        print(f"the power cannot be cut here: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
