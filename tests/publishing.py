"""A publisher under test: a store without a disk, and a broker that answers as a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import orjson

from edge_agent.clock import SystemClock
from edge_agent.mqtt import LinkSettings
from edge_agent.publisher import Publisher
from edge_agent.store.committed import Committed, Page
from tests.conftest import StandingClock, eventually

TOPIC = "plant/press/measurements"
CLOSES = -1


class MovedClock:
    """The system's clock, which can be moved ahead."""

    def __init__(self) -> None:
        self._system, self._ahead_us = SystemClock(), 0

    def monotonic_us(self) -> int:
        return self._system.monotonic_us() + self._ahead_us

    def wall_us(self) -> int:
        return self._system.wall_us() + self._ahead_us

    def move(self, by_us: int) -> None:
        self._ahead_us += by_us


class MemoryStore:
    """The store's side of the promise, without a disk."""

    def __init__(self, clock: StandingClock | MovedClock | SystemClock) -> None:
        self.clock = clock
        self.on_committed: list[Callable[[Sequence[Committed]], None]] = []
        self.last_committed = 0
        self.due: dict[int, Committed] = {}
        self.looks = 0
        self.broken = False

    @property
    def pending_count(self) -> int:
        return len(self.due)

    @pending_count.setter
    def pending_count(self, _count: int) -> None:
        raise AssertionError("the publisher does not count for the store")

    def pending(self, after_seq: int, limit: int) -> Page | None:
        self.looks += 1
        if self.broken:
            return None
        found = [self.due[seq] for seq in sorted(self.due) if seq > after_seq]
        return Page(found[:limit], found[limit - 1].seq if len(found) > limit else self.last_committed)

    def delivered(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            del self.due[seq]

    def commit(self, count: int = 1, machine: str = "press", kind: str = "measurements", size: int = 0) -> None:
        fresh = []
        for _ in range(count):
            self.last_committed += 1
            payload = orjson.dumps({"seq": self.last_committed, "fill": "x" * size})
            fresh.append(Committed(self.last_committed, machine, kind, self.clock.wall_us(), _bytes=payload))
        self.due.update((each.seq, each) for each in fresh)
        for listener in self.on_committed:
            listener(fresh)


def link(url: str, version: str = "auto", **more: str) -> LinkSettings:
    return LinkSettings((url,), "press-hall", version, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def publishing(
    store: MemoryStore,
    settings: LinkSettings,
    connected: bool = True,
    within_s: float = 10.0,
    renewed: Callable[[], LinkSettings] | None = None,
) -> AsyncIterator[Publisher]:
    """A publisher that runs, and that is cut off at the end unless it was stopped."""
    one = Publisher(store, settings, "plant", store.clock, renewed)
    running = asyncio.create_task(one.run())
    try:
        if connected:
            await eventually(lambda: one.status()["state"] == "connected", within_s)
        yield one
    finally:
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() or running.exception() is None, running
        assert store.on_committed == []


def seqs(payloads: Iterable[bytes]) -> list[int]:
    return [orjson.loads(each)["seq"] for each in payloads]


def is_late(payload: bytes) -> bool:
    return bool(orjson.loads(payload).get("late", False))


class Refusing:
    """A broker of MQTT 5 that answers each PUBLISH by its topic and number: with a reason code; None: with nothing.

    CLOSES: by closing the connection; minus a code: with a DISCONNECT of that code. granted: the properties of its CONNACK.
    """

    def __init__(self, answer: Callable[[str, int], int | None], granted: bytes = b"", connack: int = 0) -> None:
        self.answer, self.granted, self.connack = answer, granted, connack
        self.connections = 0
        self.properties: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self.payloads: list[bytes] = []
        self.hang_up: Callable[[], None] = lambda: None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.hang_up = writer.close
        while (found := await packet(reader)) is not None:
            kind, body = found
            if kind >> 4 == 1:
                size = len(self.granted)
                writer.write(bytes([0x20, 3 + size, 0, self.connack, size]) + self.granted)
                if self.connack:
                    await writer.drain()
                    return
            elif kind >> 4 == 3:
                length = int.from_bytes(body[:2])
                topic, mid = body[2 : 2 + length].decode(), body[2 + length : 4 + length]
                payload = body[5 + length :]
                self.properties.append(body[4 + length])
                seq = orjson.loads(payload).get("seq", 0)
                self.asked.append((topic, seq))
                self.payloads.append(payload)
                reason = self.answer(topic, seq)
                if reason is not None and reason < 0:
                    writer.write(b"" if reason == CLOSES else bytes([0xE0, 2, -reason, 0]))
                    await writer.drain()
                    return
                if reason is not None:
                    writer.write(b"\x40\x03" + mid + bytes([reason]))
            elif kind >> 4 == 12:
                writer.write(b"\xd0\x00")


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
    try:
        kind = (await reader.readexactly(1))[0]
        size = shift = 0
        while True:
            byte = (await reader.readexactly(1))[0]
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind, await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
