"""Server-sent events: the whole overview once, then what changed, at most twice a second.

Rule 1: there is no queue: a slow page gets the newest state when it is ready for it, never a backlog.
Rule 2: a page must be able to tell silence from calm, so a beat comes every two seconds even when nothing changes.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from edge_agent.board import Board, to_utc
from edge_agent.contract import Clock

PAUSE_S = 0.5
"""Between two updates."""
BEAT_S = 2.0
RETRY_MS = 2000
"""How long a browser waits before it connects again."""
STREAMS_MAX = 32
"""Open pages; a browser opens six at most to one host."""
LIVE = ("value", "quality", "verdict", "outside", "quality_since", "ts")
"""What of a signal changes from update to update, in this order; the rest comes with the overview."""


class Streams:
    """The open event streams of one page server."""

    def __init__(self, board: Board, clock: Clock, boot: str) -> None:
        self._board = board
        self._clock = clock
        self._boot = boot
        self._open = 0
        self._waiting: set[asyncio.Timeout] = set()
        self._closed = False
        self._fragments: dict[str, tuple[int, str]] = {}

    @property
    def full(self) -> bool:
        return self._open >= STREAMS_MAX

    def close(self) -> None:
        """End every stream now; a browser that is connected must not hold up the agent's stop."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            waiting.reschedule(now)

    async def events(self) -> AsyncIterator[str]:
        """One page's stream, until it goes away or `close` is called."""
        self._open += 1
        try:
            yield f"retry: {RETRY_MS}\n\n"
            seen = _Seen()
            while not self._closed:
                yield self._next(seen)
                # `close` may have come while the page was slow to take it; then nobody would wake the wait.
                if not self._closed:
                    await self._news(seen)
        finally:
            self._open -= 1

    async def _news(self, seen: "_Seen") -> None:
        """Wait for a change, at least PAUSE_S and at most BEAT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEAT_S) as waiting:
                self._waiting.add(waiting)
                try:
                    await asyncio.sleep(PAUSE_S)
                    await self._board.changes(seen.version)
                finally:
                    self._waiting.discard(waiting)

    def _next(self, seen: "_Seen") -> str:
        board = self._board
        seen.version = board.version
        if seen.shape != board.shape_version:
            seen.shape = board.shape_version
            seen.machines = {name: board.machine_version(name) for name in board.names}
            seen.warnings, seen.agent = board.warnings_version, encode(board.agent())
            return _event("overview", encode(self._overview()))
        parts = self._parts(seen)
        head = {"now": to_utc(self._clock.wall_us()), "boot": self._boot}
        if not parts:
            return _event("beat", encode(head))
        return _event("update", encode(head)[:-1] + "," + ",".join(parts) + "}")

    def _overview(self) -> dict[str, Any]:
        overview = self._board.overview()
        for machine in overview["machines"]:
            machine["trends"] = self._board.trends(machine["name"])["values"]
        return {
            "now": to_utc(self._clock.wall_us()),
            "boot": self._boot,
            "live": LIVE,
            "events": self._board.events(),
            **overview,
        }

    def _parts(self, seen: "_Seen") -> list[str]:
        board = self._board
        parts = []
        changed = [name for name in board.names if seen.machines[name] != board.machine_version(name)]
        if changed:
            parts.append(f'"machines":[{",".join(self._fragment(name) for name in changed)}]')
            seen.machines.update((name, board.machine_version(name)) for name in changed)
        if seen.warnings != board.warnings_version:
            seen.warnings = board.warnings_version
            parts.append(f'"warnings":{encode(board.warnings(active=True))},"events":{encode(board.events())}')
        if seen.agent != (agent := encode(board.agent())):
            seen.agent = agent
            parts.append(agent[1:-1])
        return parts

    def _fragment(self, name: str) -> str:
        """The living part of a machine, encoded once however many pages look."""
        version = self._board.machine_version(name)
        known = self._fragments.get(name)
        if known is not None and known[0] == version:
            return known[1]
        machine = self._board.machine(name)
        text = encode(
            {
                **{key: machine[key] for key in ("name", "state", "verdict", "ts")},
                "rows": [[signal[key] for key in LIVE] for signal in machine["signals"]],
                "warnings": {s["name"]: s["warnings"] for s in machine["signals"] if s["warnings"]},
            }
        )
        self._fragments[name] = (version, text)
        return text


class _Seen:
    """What one page was told last."""

    def __init__(self) -> None:
        self.version = 0
        self.shape = 0
        self.warnings = 0
        self.machines: dict[str, int] = {}
        self.agent = ""


def encode(value: Any) -> str:
    """JSON on one line; NaN cannot occur, as the board speaks of null."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Numbers of numpy as numbers; anything else that a status holds (a path, a time) as its text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
