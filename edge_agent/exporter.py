"""The daily export (`store.history.export`): each UTC day that is over goes out as Parquet, once, by a process of its own.

Rule 1: the plant's watch waits for nothing here: another process reads, packs and sends, at the lowest priority, and what
goes wrong with it is told and tried again. Rule 2: a day counts as exported when all of its files have their names; how far
it has come is remembered for each target, so a new one gets everything that the history still has.
"""

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from edge_agent.contract import SECOND_US, Clock
from edge_agent.messages import topics as messages
from edge_agent.store import disk, moment
from edge_agent.store.shelf import NoHistory

log = structlog.get_logger(__name__)

FILE = "exported.json"
"""In the data directory: by target, the first day that is not exported yet."""
DAY_US = 86_400 * SECOND_US
AFTER_US = 600 * SECOND_US
"""How long after midnight a day is exported: what came late in it is in the history by then."""
LOOK_EVERY_S = 60.0
RETRY_S = 600.0
DAY_S_MAX = 3_600.0
"""A day that takes longer than this is given up and tried again: a share that hangs must not hang for ever."""
WORDS_MAX = 300
NICE = 15


@dataclass(frozen=True, slots=True)
class Target:
    """What is exported where. out: a folder or a URL for fsspec."""

    agent: str
    data_dir: Path
    out: str


Run = Callable[[Sequence[str]], Awaitable[str | None]]
"""Runs `edge-agent` with these words. Returns None when it has done it, else why not, in words."""


class Exporter:
    """The daily export of one agent. `keep` runs until it is cancelled."""

    def __init__(self, clock: Clock, run: Run | None = None) -> None:
        self._clock, self._run = clock, run or in_a_process
        self._target: Target | None = None
        self._changed = asyncio.Event()
        self._through: str | None = None
        self._fault: str | None = None

    def use(self, target: Target | None) -> None:
        """Export there from now on; None: nowhere."""
        if target != self._target:
            self._target, self._through, self._fault = target, None, None
            self._changed.set()

    def status(self) -> dict[str, Any] | None:
        """For health: the last day that is exported, and what went wrong since; None where nothing is exported."""
        if self._target is None:
            return None
        fault = {"reason": self._fault} if self._fault else {}
        return {"state": "failing" if self._fault else "ok", "through": self._through, **fault}

    async def keep(self) -> None:
        while True:
            self._changed.clear()
            wait_s = LOOK_EVERY_S if await self._turn() else RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    async def _turn(self) -> bool:
        """Export every day that is over, the oldest first. False when one could not be."""
        target = self._target
        if target is None:
            return True
        day = 0
        try:
            for day in await asyncio.to_thread(due, target, self._clock.wall_us()):
                fault = await self._run(words_of(target, day))
                if target != self._target:
                    return True
                if fault is not None:
                    self._failed(day, fault)
                    return False
                await asyncio.to_thread(remember, target, day + DAY_US)
                self._done(day)
        except (*disk.FAULTS, OSError) as error:
            self._failed(day, str(error))
            return False
        return True

    def _done(self, day: int) -> None:
        self._through = name_of(day)
        if self._fault is not None:
            log.info("export_back")
            self._fault = None

    def _failed(self, day: int, words: str) -> None:
        if self._fault is None:
            log.warning("export_failed", day=name_of(day), fault=words)
        self._fault = f"{name_of(day)}: {words}" if day else words


def words_of(target: Target, day: int) -> list[str]:
    """The command that exports one day."""
    return [
        "export", str(target.data_dir), "--agent", target.agent, "--format", "parquet", "--out", target.out, "--json",
        "--from", name_of(day), "--to", name_of(day + DAY_US),
    ]  # fmt: skip


def name_of(day: int) -> str:
    return messages.to_utc(day)[:10]


async def in_a_process(words: Sequence[str]) -> str | None:
    """`edge-agent` with these words, in a process of its own that ends with us."""
    process = await asyncio.create_subprocess_exec(
        "nice", "-n", str(NICE), sys.executable, "-m", "edge_agent", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DAY_S_MAX):
            told, complaint = await process.communicate()
    except TimeoutError:
        return f"took longer than {DAY_S_MAX:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    # Its status alone would not do: Python ends with 1 too when it fails, and 1 says that the day was empty.
    with suppress(ValueError):
        if json.loads(told).get("ok") is True:
            return None
    lines = complaint.decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"ended with status {process.returncode}").removeprefix("edge-agent: ")[:WORDS_MAX]


# --- how far it has come ------------------------------------------------------------------------------------------------


def due(target: Target, wall_us: int) -> range:
    """The days that are over and not exported, the oldest first; none behind the last that the history has."""
    try:
        with moment.standing(target.data_dir) as now:
            reach = now.reach()
    except NoHistory:
        reach = None
    if reach is None:
        return range(0)
    today = wall_us // DAY_US * DAY_US
    known = remembered(target)
    # A clock that stood in the future has left a day there: what is over since then is due.
    first = reach[0] // DAY_US * DAY_US if known is None else min(known, today)
    return range(first, min(reach[1] + 1, (wall_us - AFTER_US) // DAY_US * DAY_US), DAY_US)


def _name(target: Target) -> str:
    """A target without what may stand in its URL."""
    return hashlib.sha256(f"{target.agent}\n{target.out}".encode()).hexdigest()[:16]


def _known(target: Target) -> dict[str, int]:
    try:
        plain = json.loads((target.data_dir / FILE).read_text("utf-8"))
        return {str(name): int(day) // DAY_US * DAY_US for name, day in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # then everything is exported once more, and replaces itself


def remembered(target: Target) -> int | None:
    """The first day (UTC µs) that this target has not; None when nothing is known of it."""
    return _known(target).get(_name(target))


def remember(target: Target, day: int) -> None:
    path = target.data_dir / FILE
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({**_known(target), _name(target): day}, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
