"""The store on a disk whose n-th call fails, for every n: run with tests/peers/failing_disk.c preloaded, see test_store_faults.

Prints one JSON line: how many runs there were, how many calls of each kind a run makes, and what went wrong.
"""

import asyncio
import ctypes
import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import structlog

from edge_agent.records import Gap, GapCause
from edge_agent.store import disk, journal
from edge_agent.store.committed import Committed
from edge_agent.store.journal import Store, open_store
from tests.conftest import StandingClock
from tests.test_store import LAYOUT, WALL, commit, due_of, event, frame, payloads

CALLS = {"open": 1, "write": 2, "sync": 4, "truncate": 8, "rename": 16}
COMMITS = 8
TRIES_MAX = 40
"""Commits after the fault is over, within which the store must be well."""


class Run:
    """One life of a store: frames, events, a snapshot, a damaged page, deliveries; then a second one that must find all."""

    def __init__(self, shim: Any, folder: Path) -> None:
        self.shim, self.folder, self.clock = shim, folder, StandingClock()
        self.told: list[Committed] = []
        self.delivered: set[int] = set()
        self.put_rows = 0

    def live(self, call: int, nth: int, times: int, error: int, harm: bool) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.shim.arm(str(self.folder).encode(), call, nth, times, error)
        try:
            with open_store(self.folder, self.clock) as store:
                store.on_committed.append(self.told.extend)
                store.use_layouts([LAYOUT])
                for number in range(1, COMMITS + 1):
                    self.step(store, number)
                    if harm and number == 5:
                        store._break("a test says so")  # the way of a new file is walked too
                self.shim.disarm()
                self.well_again(store)
        finally:
            self.shim.disarm()

    def step(self, store: Store, number: int) -> None:
        store.put([frame(3 * number, (True, True))], [event(number)] if number % 3 == 0 else [])
        self.put_rows += 2
        if number == 4:
            store.put_snapshot(b"judge", "{}")
            store.put([], gaps=[Gap(GapCause.RESTART, 1, WALL, WALL)])
        asyncio.run(store._commit())
        some = [each.seq for each in self.told if each.seq % 4 == 1 and each.seq not in self.delivered]
        store.delivered(some)
        self.delivered |= set(some)

    def well_again(self, store: Store) -> None:
        for _ in range(TRIES_MAX):
            if asyncio.run(store._commit()) and store.fault is None and not store._sealed:
                break
        else:
            raise AssertionError(f"stuck: {store.fault}")
        for part in ("", "-wal"):
            path = self.folder / (disk.FILE + part)
            if path.exists() and self.shim.is_unsynced(path.stat().st_ino):
                raise AssertionError(f"{path.name} is still the file that could not be synced")
        store.put([frame(900)])
        self.put_rows += 1
        commit(store)

    def judged(self) -> None:
        bytes_of: dict[int, bytes] = {}
        for each in self.told:
            payload = each.payload(late=False)
            assert bytes_of.setdefault(each.seq, payload) == payload, f"{each.seq} has two meanings"
        assert sorted(bytes_of) == list(range(1, len(bytes_of) + 1)), "numbers are left out"
        plain = [json.loads(payload) for payload in bytes_of.values()]
        lost = sum(each["count"] for each in plain if each.get("cause") in {"disk_full", "damage", "buffer_limit"})
        rows = sum("values" in each for each in plain)
        assert rows + lost == self.put_rows, f"{rows} rows and {lost} lost of {self.put_rows}"
        assert sum("id" in each for each in plain) == COMMITS // 3, "a warning is lost"
        with open_store(self.folder, self.clock) as store:
            assert not store.fault
            here = payloads(due_of(store, 0, 10_000))
            again = {seq: payload for seq, payload in here.items() if seq in bytes_of}
            assert again == {seq: bytes_of[seq] for seq in again}
            missing = set(bytes_of) - self.delivered - set(again)
            assert not missing, f"committed and lost: {sorted(missing)}"


def main() -> int:
    library, folder, most = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    journal.RETRY_S = 0.0
    disk.CHECKPOINT_BYTES = 10_000
    if "trusting" in sys.argv:  # the negative control: a failed sync is tried once more, as if nothing were
        disk.UNSYNCED = (-1, -1)
    shim = ctypes.CDLL(library)
    shim.is_unsynced.argtypes = [ctypes.c_ulong]
    runs, wrong, calls = 0, list[str](), dict[str, int]()
    for name, call in CALLS.items():
        if "sync" in sys.argv and name != "sync":
            continue
        for times, error in ((1, errno.EIO), (3, errno.EIO), (2, errno.ENOSPC)):
            for nth in range(1, most + 1):
                run = Run(shim, folder)
                try:
                    run.live(call, nth, times, error, harm="trusting" not in sys.argv)
                    run.judged()
                except Exception as problem:  # noqa: BLE001 - whatever it is, it is a finding
                    wrong.append(
                        f"{name} {nth} x {times} {errno.errorcode[error]}: {type(problem).__name__}: {problem}"
                    )
                runs += 1
                calls[name] = max(calls.get(name, 0), shim.counted())
                if not shim.failures():
                    break
    print(json.dumps({"runs": runs, "calls": calls, "wrong": wrong}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
