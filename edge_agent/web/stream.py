"""Server-sent events: the whole overview once, then what changed, at most twice a second.

Rule 1: there is no queue: a slow page gets the newest state when it is ready for it, never a backlog.
Rule 2: a page must be able to tell silence from calm, so a beat comes every two seconds even when nothing changes.
Rule 3: the loop belongs to the plant: no step encodes more than one machine whole, or what changed of all of them.

Events: `begin` (the agent, its warnings), `machine` for each machine whole, `ready`; then `update` and `beat`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
import orjson

from edge_agent.board import Board, to_utc
from edge_agent.contract import Clock

PAUSE_S = 0.5
"""Between two updates."""
BEAT_S = 2.0
RETRY_MS = 2000
"""How long a browser waits before it connects again."""
STREAMS_MAX = 32
"""Open pages; a browser opens six at most to one host."""


class Streams:
    """The open event streams of one page server."""

    def __init__(self, board: Board, clock: Clock, boot: str) -> None:
        self._board = board
        self._clock = clock
        self._boot = boot
        self._open = 0
        self._waiting: set[asyncio.Timeout] = set()
        self._closed = False
        self._fragments: dict[str, tuple[int, bytes]] = {}

    @property
    def full(self) -> bool:
        return self._open >= STREAMS_MAX

    def close(self) -> None:
        """End every stream now; a browser that is connected must not hold up the agent's stop."""
        self._closed = True
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            waiting.reschedule(now)

    async def events(self) -> AsyncIterator[bytes]:
        """One page's stream, until it goes away or `close` is called."""
        self._open += 1
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            seen = _Seen()
            while not self._closed:
                if seen.shape != self._board.shape_version:
                    async for event in self._whole(seen):
                        yield event
                else:
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

    async def _whole(self, seen: "_Seen") -> AsyncIterator[bytes]:
        """Everything, machine by machine; others have a turn between them. Given up when the machines change meanwhile."""
        board = self._board
        shape = board.shape_version
        seen.version, seen.machines, seen.layouts = board.version, {}, {}
        seen.warnings, seen.agent = board.warnings_version, encode(board.agent())
        events = {"warnings": board.warnings(active=True), "events": board.events()}
        yield _event("begin", _joined(self._head(), encode(events), seen.agent))
        for name in board.names:
            if self._closed or board.shape_version != shape:
                return
            yield _event("machine", _joined(self._head(), self._machine(seen, name)))
            await asyncio.sleep(0)
        seen.shape = shape
        yield _event("ready", self._head())

    def _head(self) -> bytes:
        return encode({"now": to_utc(self._clock.wall_us()), "boot": self._boot})

    def _machine(self, seen: "_Seen", name: str) -> bytes:
        """A machine with all that is known of it."""
        board = self._board
        seen.machines[name], seen.layouts[name] = board.machine_version(name), board.layout_version(name)
        return encode({"machine": board.machine(name), "trends": board.trends(name)})

    def _next(self, seen: "_Seen") -> bytes:
        seen.version = self._board.version
        parts = self._parts(seen)
        return _event("update" if parts else "beat", _joined(self._head(), *parts))

    def _parts(self, seen: "_Seen") -> list[bytes]:
        board = self._board
        parts = []
        changed = [name for name in board.names if seen.machines[name] != board.machine_version(name)]
        anew = [name for name in changed if seen.layouts[name] != board.layout_version(name)]
        if anew:  # a machine's norms have changed: with its operating state, say
            parts.append(b'{"whole":[' + b",".join(self._machine(seen, name) for name in anew) + b"]}")
        if changed:
            parts.append(b'{"machines":[' + b",".join(self._fragment(name) for name in changed) + b"]}")
            seen.machines.update((name, board.machine_version(name)) for name in changed)
        if seen.warnings != board.warnings_version:
            seen.warnings = board.warnings_version
            parts.append(encode({"warnings": board.warnings(active=True), "events": board.events()}))
        if seen.agent != (agent := encode(board.agent())):
            seen.agent = agent
            parts.append(agent)
        return parts

    def _fragment(self, name: str) -> bytes:
        """The living part of a machine, encoded once however many pages look."""
        version = self._board.machine_version(name)
        known = self._fragments.get(name)
        if known is None or known[0] != version:
            known = self._fragments[name] = (version, encode(self._board.living(name)))
        return known[1]


class _Seen:
    """What one page was told last."""

    def __init__(self) -> None:
        self.version = 0
        self.shape = 0
        self.warnings = 0
        self.machines: dict[str, int] = {}
        self.layouts: dict[str, int] = {}
        self.agent = b""


def encode(value: Any) -> bytes:
    """JSON on one line; what is no number becomes null."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """Numbers of numpy as numbers; anything else that a status holds (a path, a time) as its text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _joined(*objects: bytes) -> bytes:
    """Several JSON objects as one."""
    return b"{" + b",".join(each[1:-1] for each in objects if each != b"{}") + b"}"


def machines(board: Board) -> Iterable[bytes]:
    """All machines, worst first, as the pieces of one JSON object: each is a step of its own."""
    yield b'{"machines":['
    for number, name in enumerate(board.worst_first()):
        if name in board.names:
            yield (b"," if number else b"") + encode(board.machine(name))
    yield b"]}"


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
