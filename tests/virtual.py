"""An event loop whose time is a number: instead of waiting it moves the clock, so that an hour takes milliseconds.

Rule 1: nothing from outside (processes) is waited for. A loop that could only wait for ever is a deadlock: an error.
Rule 2: with `sockets`, both ends of a real line are in this loop; the kernel has a moment of real time to carry
bytes before the clock moves, so a timeout tells what the peer did and never how busy the machine is.
Rule 3: what is handed to a thread is done there while the clock stands, and heard of when the clock says so: so nothing
hangs on which of the two was quicker.
"""

import asyncio
import os
import select
import selectors
import tty
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


START_US = 1_000_000_000
CARRY_S = 0.01
"""What loopback sockets and ptys get to bring bytes to their other end; they take microseconds."""
PING_S = 10.0


class _Ping:
    """A pty of our own. Bytes of ptys are carried by a thread of the kernel, in order, which waits for a busy machine:
    when a ping has come through in both directions, so has what was written before it.
    """

    def __init__(self) -> None:
        self._ends = os.openpty()
        tty.setraw(self._ends[1])

    def wait(self) -> None:
        for writer, reader in (self._ends, self._ends[::-1]):
            os.write(writer, b"!")
            if select.select([reader], [], [], PING_S)[0]:
                os.read(reader, 1)

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


class _Jump(selectors.EpollSelector):
    """Answers at once what is ready; else it moves the loop's clock to the next timer."""

    loop: "VirtualLoop"
    ping: _Ping | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0 and self.loop.sockets:
            traffic = self.loop.traffic
            if traffic is None or traffic.under_way():
                self.ping = self.ping or _Ping()
                self.ping.wait()
                ready = super().select(CARRY_S)
                if not ready and traffic is not None:
                    traffic.forget()
        if not ready and timeout is None:
            raise RuntimeError("deadlock: every task waits and no timer is set")
        if not ready and timeout:
            self.loop.now_us += max(1, round(timeout * 1e6))
        return ready

    def close(self) -> None:
        if self.ping is not None:
            self.ping.close()
        super().close()


class Traffic:
    """Spares a loop with real lines most of its waiting: bytes that were counted at both ends are under way no more.

    seen: bytes that one end has sent and received so far; `moved` counts the same at the other end.
    """

    def __init__(self) -> None:
        self.seen: Callable[[], int] = lambda: 0
        self.moved = self._lost = 0

    def under_way(self) -> bool:
        return self.moved + self._lost != self.seen()

    def forget(self) -> None:
        """What has not come by now was lost where a line was closed."""
        self._lost = self.seen() - self.moved


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at 1000 s. now_us: int64 µs, also of `time()`. sockets: both ends of real lines live here (rule 2).

    traffic: whoever counts the bytes at both ends may say when none are under way.
    before_job: called before a thread works, with what it shall do and whether it has a thread of its own; returns after how
    many µs its end is heard of, or raises what the thread shall raise instead of working.
    """

    def __init__(self, sockets: bool = False, start_us: int = START_US) -> None:
        self.now_us = start_us
        self.before_job: Callable[[Callable[..., Any], bool], int] = lambda _work, _own: 0
        self.sockets = sockets
        self.traffic: Traffic | None = None
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)
        # Timers closer than this are due: floats of seconds do not hit whole microseconds.
        self._clock_resolution = 5e-7

    def time(self) -> float:
        return self.now_us / 1e6

    def run_in_executor(  # type: ignore[override] # as the loop's own, which is written for type variables
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        heard: asyncio.Future[Any] = self.create_future()
        took_us = 0
        done: Callable[[], Any]
        try:
            took_us = self.before_job(func, executor is not None)
            # Of the loop's own threads there are many, and it is all the same which of them it is.
            done = partial(heard.set_result, func(*args) if executor is None else executor.submit(func, *args).result())
        except Exception as error:  # noqa: BLE001 - whatever the work raises is for whoever waits for it
            done = partial(heard.set_exception, error)
        self.call_later(took_us / 1e6, lambda: heard.done() or done())
        return heard


def stand_still(span_s: float) -> None:
    """As if this process got no processor for so long, from the next turn of the loop on, while the others ran."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)

    def later() -> None:
        loop.now_us += round(span_s * 1e6)

    loop.call_soon(later)


class VirtualClock:
    """A Clock on the running VirtualLoop."""

    def __init__(self, wall_us: int = 1_795_000_000_000_000) -> None:
        self._wall_base_us = wall_us - self.monotonic_us()

    def monotonic_us(self) -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.now_us

    def wall_us(self) -> int:
        return self._wall_base_us + self.monotonic_us()

    def step_wall(self, by_us: int) -> None:
        self._wall_base_us += by_us


def run(main: Coroutine[Any, Any, Result], sockets: bool = False) -> Result:
    """Run to the end on a virtual loop."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(sockets)) as runner:
        return runner.run(main)
