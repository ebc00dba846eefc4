"""A page server with a small plant on its board, in a loop and thread of its own, for tests that speak HTTP to it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_agent.board import Board, BoardMachine, BoardSignal, to_utc
from edge_agent.clock import SystemClock
from edge_agent.contract import SECOND_US, Quality
from edge_agent.web.app import open_web

T = TypeVar("T")

PRESS = BoardMachine(
    "press-3",
    "Hydraulic press 3",
    "hall-2",
    (
        BoardSignal("oil_temperature", "Oil temperature", "°C", SECOND_US, "Check the oil cooler and its fan."),
        BoardSignal("oil_level", "Oil level", "%", SECOND_US),
    ),
)
PUMP = BoardMachine("pump-1", "Pump 1", "hall-2", (BoardSignal("flow", "Flow", "l/min", SECOND_US),))
BANDS = [{"warning": {"low": 20.0, "high": 60.0}, "alarm": {"low": 10.0, "high": 70.0}}, {"warning": {"low": 30.0}}]


PORT = 0
"""The port to serve on: a free one, but for the test of a restart."""


def now_us() -> int:
    return SystemClock().wall_us()


def event(warning_id: str = "w-1", **changes: Any) -> dict[str, Any]:
    """A warning event in the form of contract §2."""
    ts = to_utc(now_us())
    return {
        "epoch": "k3f9",
        "seq": 7,
        "id": warning_id,
        "event": "raised",
        "ts": ts,
        "machine": "press-3",
        "signal": "oil_temperature",
        "kind": "high",
        "severity": "warning",
        "state": "unacknowledged",
        "value": 60.4,
        "unit": "°C",
        "limit": 60.0,
        "norm": BANDS[0],
        "since": ts,
        "operating_state": "running",
        "message": "Oil temperature 60.4 °C is above its norm of 60 °C",
        "advice": "Check the oil cooler and its fan.",
        **changes,
    }


def show_active(board: Board, events: Sequence[dict[str, Any]]) -> None:
    """All active warnings, machine by machine as the pipeline tells them."""
    for name in board.names:
        board.active(name, [each for each in events if each["machine"] == name])


def show(board: Board, temperature: float = 54.2, level: float = 71.0, quality: Quality = Quality.GOOD) -> None:
    """One frame of the press; `quality` is that of its oil level."""
    codes = np.array([Quality.GOOD, quality], dtype=np.uint8)
    board.frame("press-3", now_us(), np.array([temperature, level]), codes, state="running")


class BoardOperator:
    """Acknowledges as the agent would, straight on the board; `w-refused` is refused."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.asked: list[tuple[str, str, str]] = []

    def acknowledge(self, warning_id: str, by: str, comment: str, /) -> dict[str, Any]:
        self.asked.append((warning_id, by, comment))
        if warning_id == "w-refused":
            raise ValueError("this warning is acknowledged already")
        if warning_id == "w-bug":
            raise RuntimeError("secret of the inside")
        active = {each["id"]: each for each in self.board.warnings(active=True)}
        done = {**active[warning_id], "event": "acknowledged", "state": "acknowledged", "by": by, "comment": comment}
        self.board.event(done)
        show_active(self.board, [*(each for key, each in active.items() if key != warning_id), done])
        return done


class Site:
    """A running page server: `url`, and `do` to call something on its loop."""

    def __init__(self, past: Path | None = None) -> None:
        self._past = past
        self.board = Board([PRESS, PUMP])
        self.operator = BoardOperator(self.board)
        self.board.norms("press-3", BANDS)
        self.board.status(
            {"state": "online", "version": "0.1.0", "config": "0123456789ab", "agent": "hall2", "site": "enschede"}
        )
        self.board.health(
            {"connections": {"plc-1": {"state": "connected", "requests": 5}}, "broker": {"state": "connected"}}
        )
        show(self.board)
        self.url = ""
        self._bound: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="page server")

    def start(self) -> None:
        self._thread.start()
        self._bound.result(10)

    def do(self, act: Callable[[], T]) -> T:
        """Call this on the server's loop and return its result."""

        async def call() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def stop(self) -> float:
        """End the server as the agent would, by cancellation; returns how many seconds that took."""
        began = time.monotonic()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(20)
        assert not self._thread.is_alive(), "the page server does not end"
        return time.monotonic() - began

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with open_web("127.0.0.1", PORT, self.board, self.operator, past=self._past) as web:
            task = asyncio.current_task()
            assert task is not None
            self._stop = task.cancel
            self.url = web.url.rstrip("/")
            self._bound.set_result(None)
            await web.run()


@contextlib.contextmanager
def serving(past: Path | None = None) -> Iterator[Site]:
    site = Site(past)
    site.start()
    try:
        yield site
    finally:
        site.stop()
