"""What faults of Modbus lines cost the others, and how soon the first good reading is back after one.

    python -m bench.recovery            about four minutes; what needs root (a cable that is cut) is left out without it

The devices are written here and share no code with the driver; the poller and the driver are those of the daemon.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
import tty
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from struct import pack, unpack
from typing import Any

import numpy as np

from drivers.modbus import DRIVER
from edge_agent.clock import AgentTime, SystemClock
from edge_agent.contract import Frame, Point, Quality
from edge_agent.poller import Line, PolledSignal, Poller

Answer = Callable[[int, int, int], int]
"""(unit, start, count) → 0 to answer, an exception code to refuse, -1 to say nothing."""
PERIOD_US = 500_000
PORT = 15_502
NETWORK = "edge-bench"
HERE, THERE = "10.213.77.1", "10.213.77.2"


# ---------------------------------------------------------------------------------------------------------- devices


def crc(data: bytes) -> bytes:
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return value.to_bytes(2, "little")


def answered(unit: int, pdu: bytes, answer: Answer) -> bytes | None:
    function, start, count = unpack(">BHH", pdu)
    code = answer(unit, start, count)
    if code < 0:
        return None
    if code:
        return bytes([function | 0x80, code])
    return bytes([function, 2 * count]) + b"".join(pack(">H", (start + i) & 0xFFFF) for i in range(count))


class TcpDevice:
    """A Modbus TCP server; `asked` counts its requests."""

    def __init__(self, answer: Answer = lambda *_: 0) -> None:
        self.answer, self.asked = answer, 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, host: str = "127.0.0.1", port: int = PORT) -> None:
        self._server = await asyncio.start_server(self._serve, host, port)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                number, _, length, unit = unpack(">HHHB", await reader.readexactly(7))
                pdu = await reader.readexactly(length - 1)
                self.asked += 1
                if (data := answered(unit, pdu, self.answer)) is not None:
                    writer.write(pack(">HHHB", number, 0, len(data) + 1, unit) + data)
        self._writers.discard(writer)
        writer.close()


@asynccontextmanager
async def serial_line(answer: Answer, baudrate: int) -> AsyncIterator[str]:
    """A line of RTU units behind a pty, as slow as its baud rate. Yields the path of its port."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    os.set_blocking(ours, False)
    loop, char_s = asyncio.get_running_loop(), 11 / baudrate
    have = bytearray()

    def readable() -> None:
        with suppress(OSError):
            have.extend(os.read(ours, 4096))
        while len(have) >= 8:
            frame = bytes(have[:8])
            del have[:8]
            if crc(frame[:-2]) != frame[-2:]:
                have.clear()
            elif (data := answered(frame[0], frame[1:-2], answer)) is not None:
                whole = frame[:1] + data
                whole += crc(whole)
                loop.call_later((8 + len(whole)) * char_s + 0.005, partial(os.write, ours, whole))

    loop.add_reader(ours, readable)
    try:
        yield os.ttyname(theirs)
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


# ------------------------------------------------------------------------------------------------------------ watching


class Watch:
    """The daemon's poller on these points, and what it gives. rows: (time, quality of each point), one a beat."""

    def __init__(self, url: str, points: Sequence[tuple[int, int]], timeout: str = "500ms") -> None:
        settings = DRIVER.Connection.model_validate({"url": url, "timeout": timeout})
        made = (DRIVER.Address.model_validate({"unit": unit, "address": f"holding:{a}"}) for unit, a in points)
        signals = tuple(PolledSignal("m", i, Point(f"m.s{i}", each), PERIOD_US) for i, each in enumerate(made))
        clock = SystemClock()
        self.rows: list[tuple[float, np.ndarray[Any, Any]]] = []
        self._news = asyncio.Event()
        self.poller = Poller(
            Line("line", DRIVER, settings, signals, {"m": len(signals)}),
            clock,
            AgentTime(clock, clock.wall_us()),
            self._take,
            lambda *_: None,
        )
        self._task = asyncio.create_task(self.poller.run())

    def _take(self, frames: list[Frame]) -> None:
        self.rows += [(time.monotonic(), frame.quality[0]) for frame in frames]
        self._news.set()

    async def good_since(self, start_s: float, limit_s: float = 90) -> float:
        """Seconds from then until every point is good."""
        while time.monotonic() < start_s + limit_s:
            for at, quality in reversed(self.rows):
                if at > start_s and (quality == Quality.GOOD).all():
                    return float(at - start_s)
            await asyncio.sleep(0.01)
        return float("nan")

    async def beats(self, count: int) -> None:
        """Wait until it gave so many."""
        while len(self.rows) < count:
            self._news.clear()
            await self._news.wait()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def told(what: str, figures: str) -> None:
    print(f"{what:<58} {figures}", flush=True)


# ----------------------------------------------------------------------------------------------------------- scenarios


async def one_dead_of_ten(seconds: float) -> None:
    points = [(unit, address) for unit in range(1, 11) for address in (0, 1)]
    living = np.array([unit != 4 for unit, _ in points])
    for what in ("gateway", "serial line, 19200 baud"):
        dead = {4}
        say: Answer = lambda unit, *_: -1 if unit in dead else 0  # noqa: B023, E731
        device = TcpDevice(say)
        async with serial_line(say, 19_200) as port:
            await device.start()
            url = f"tcp://127.0.0.1:{PORT}" if what == "gateway" else f"rtu://{port}?baudrate=19200"
            with suppress(ValueError):
                watch = Watch(url, points)
                await asyncio.sleep(seconds)
                beats = int(seconds / (PERIOD_US / 1e6))
                good = sum((quality[living] == Quality.GOOD).all() for _, quality in watch.rows)
                dead.clear()
                back_s = await watch.good_since(time.monotonic())
                told(
                    f"one dead unit of ten ({what})",
                    f"the others lost {100 * (1 - min(1, good / beats)):.1f} % of {beats} beats; back after {back_s:.1f} s",
                )
                await watch.end()
            await device.stop()


async def refused(what: str, answer: Answer, guilty: int) -> None:
    device = TcpDevice(answer)
    await device.start()
    watch = Watch(f"tcp://127.0.0.1:{PORT}", [(1, address) for address in range(120)])
    await watch.beats(1)
    first, good = device.asked, int((watch.rows[0][1] == Quality.GOOD).sum())
    await watch.beats(4)
    before, beats = device.asked, len(watch.rows)
    await watch.beats(beats + 10)
    each = (device.asked - before) / (len(watch.rows) - beats)
    told(what, f"first read {first} requests, {good} of {120 - guilty} good; then {each:.1f} requests a read")
    await watch.end()
    await device.stop()


async def restart(down_s: float) -> None:
    device = TcpDevice()
    await device.start()
    watch = Watch(f"tcp://127.0.0.1:{PORT}", [(1, 0), (1, 50)])
    await asyncio.sleep(2)
    await device.stop()
    await asyncio.sleep(down_s)
    await device.start()
    back_s = await watch.good_since(time.monotonic())
    told(f"server restarted, {down_s:g} s down", f"first good reading after {back_s:.1f} s")
    await watch.end()
    await device.stop()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@asynccontextmanager
async def cable() -> AsyncIterator[Callable[[], subprocess.Popen[bytes]]]:
    """A device at the end of a cable of its own: a namespace. Yields what starts the server there."""
    with suppress(subprocess.CalledProcessError):
        ip("netns", "del", NETWORK)
    ip("netns", "add", NETWORK)
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        word = [sys.executable, "-m", "bench.recovery", "--serve", THERE]
        running.append(subprocess.Popen(["ip", "netns", "exec", NETWORK, *word]))
        return running[-1]

    try:
        ip("link", "add", "edgebench0", "type", "veth", "peer", "name", "edgebench1", "netns", NETWORK)
        ip("addr", "add", f"{HERE}/30", "dev", "edgebench0")
        ip("link", "set", "edgebench0", "up")
        ip("-n", NETWORK, "addr", "add", f"{THERE}/30", "dev", "edgebench1")
        ip("-n", NETWORK, "link", "set", "edgebench1", "up")
        yield start
    finally:
        for each in running:
            each.kill()
            each.wait()
        ip("link", "del", "edgebench0")
        ip("netns", "del", NETWORK)


async def cut(seconds: float, half_open: bool) -> None:
    async with cable() as start:
        server = start()
        watch = Watch(f"tcp://{THERE}:{PORT}", [(1, 0), (1, 50)])
        await watch.good_since(time.monotonic())
        # Down at the other end: the route stays here, and what is sent is lost.
        ip("-n", NETWORK, "link", "set", "edgebench1", "down")
        if half_open:
            server.kill()
            server.wait()
            start()
        await asyncio.sleep(seconds)
        ip("-n", NETWORK, "link", "set", "edgebench1", "up")
        back_s = await watch.good_since(time.monotonic())
        what = "half-open TCP (peer gone without a word)" if half_open else "cable cut"
        told(f"{what}, {seconds:g} s", f"first good reading after {back_s:.1f} s")
        await watch.end()


async def serve(host: str) -> None:
    await TcpDevice().start(host)
    await asyncio.sleep(300)


async def story(seconds: float) -> None:
    await one_dead_of_ten(seconds)
    await refused("one illegal register in a block of 120", lambda _, s, n: 2 if s <= 37 < s + n else 0, 1)
    await refused("a device that gives 16 registers at once", lambda _unit, _start, n: 3 if n > 16 else 0, 0)
    await restart(5)
    if os.geteuid() == 0:
        await cut(10, half_open=False)
        await cut(10, half_open=True)
    else:
        told("cable cut, half-open TCP", "left out: a network namespace needs root")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery")
    parser.add_argument("--seconds", type=float, default=60, help="of the line with a dead unit")
    parser.add_argument("--serve", metavar="HOST", help=argparse.SUPPRESS)
    words = parser.parse_args()
    asyncio.run(serve(words.serve) if words.serve else story(words.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
