"""What a system test needs: a Modbus TCP device whose registers the test sets, and the agent as a process of its own."""

import asyncio
import json
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.brokers import Consumer
from tests.conftest import ROOT, eventually

ROOT_TOPIC = "edge/hall/agent-1"


@dataclass
class Device:
    """Holding registers by address (0 where none is set), coils by address; shares no code with the driver."""

    registers: dict[int, int] = field(default_factory=dict)
    coils: dict[int, int] = field(default_factory=dict)
    port: int = 0
    connections: int = 0
    requests: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Gone, with all its connections; the port stays ours to come back to."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                number, _, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
                function, first, count = struct.unpack(">BHH", await reader.readexactly(length - 1))
                self.requests += 1
                body = self._answer(function, first, count)
                writer.write(struct.pack(">HHHB", number, 0, len(body) + 1, unit) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def _answer(self, function: int, first: int, count: int) -> bytes:
        if function in (3, 4):
            values = [self.registers.get(first + i, 0) for i in range(count)]
            return bytes([function, 2 * count]) + struct.pack(f">{count}H", *values)
        bits = bytearray((count + 7) // 8)
        for i in range(count):
            bits[i // 8] |= self.coils.get(first + i, 0) << (i % 8)
        return bytes([function, len(bits)]) + bytes(bits)


@asynccontextmanager
async def device(**registers: int) -> AsyncIterator[Device]:
    one = Device({int(name[1:]): value for name, value in registers.items()})
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


@dataclass
class Agent:
    """`edge-agent run` with one configuration; `start` again after it has ended."""

    config: Path
    process: asyncio.subprocess.Process | None = None
    log: Path = Path()

    async def start(self) -> None:
        self.log = self.config.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_agent", "run", str(self.config),
                cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def stop(self, within_s: float = 8.0) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)


@asynccontextmanager
async def agent(config: Path) -> AsyncIterator[Agent]:
    one = Agent(config)
    await one.start()
    try:
        yield one
    finally:
        if one.process is not None and one.process.returncode is None:
            await one.kill()


async def command(*words: str) -> tuple[int, str, str]:
    """An edge-agent command: exit status, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_agent", *words,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Ear:
    """What the broker has told, parsed."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def all(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self._consumer.payloads(f"{ROOT_TOPIC}/{topic}") if payload]

    def events(self, machine: str = "m") -> list[dict[str, Any]]:
        return self.all(f"{machine}/warnings")

    def told(self, machine: str = "m") -> list[tuple[str, str, str, str]]:
        return [(e["event"], e["signal"], e["kind"], e["severity"]) for e in self.events(machine)]

    def last(self, topic: str) -> dict[str, Any] | None:
        found = self.all(topic)
        return found[-1] if found else None

    async def until(self, condition: Any, within_s: float = 15.0) -> None:
        await eventually(condition, within_s)
