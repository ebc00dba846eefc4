"""Simulated Modbus TCP devices that write down what was asked of them: what was due, counted without the agent.

Rule: every answer of a device has a number of its own, and that number is the value of each register pair in it (float32,
exact to 2^24). Whoever gets a value so knows which question was answered, and when it came: by the kernel's stamp of its
last byte, so that a rig that is busy moves no question into the next beat.
"""

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field
from enum import StrEnum

SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("qq")
HEAD = struct.Struct(">HHHBBHH")
"""Transaction, protocol, length, unit, function, first register, count: a read request."""
HOLDING = 3


class Mode(StrEnum):
    """How a device behaves. slow: answers after `SLOW_S`; silent: takes questions and says nothing; cut: is gone."""

    WELL = "well"
    SLOW = "slow"
    SILENT = "silent"
    CUT = "cut"


SLOW_S = 0.12


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. us: CLOCK_MONOTONIC when the question came; first, count: the registers."""

    us: int
    first: int
    count: int


@dataclass(slots=True)
class Device:
    """One device on a port. answers[n - 1] is the answer with the number n."""

    name: str
    port: int
    mode: Mode = Mode.WELL
    answers: list[Answer] = field(default_factory=list)
    _door: socket.socket | None = None
    _lines: dict[socket.socket, bytearray] = field(default_factory=dict)

    def open(self) -> None:
        """Listen; a device that is there already stays as it is."""
        if self._door is None:
            self._door = socket.create_server(("127.0.0.1", self.port), backlog=16)
            self._door.setblocking(False)
            asyncio.get_running_loop().add_reader(self._door, self._accept)

    def close(self) -> None:
        """Gone, with all its connections."""
        loop = asyncio.get_running_loop()
        for line in list(self._lines):
            self._drop(line)
        if self._door is not None:
            loop.remove_reader(self._door)
            self._door.close()
            self._door = None

    def become(self, mode: Mode) -> None:
        self.mode = mode
        if mode is Mode.CUT:
            self.close()
        else:
            self.open()

    def _accept(self) -> None:
        assert self._door is not None
        with contextlib.suppress(OSError):
            line, _ = self._door.accept()
            line.setblocking(False)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._lines[line] = bytearray()
            asyncio.get_running_loop().add_reader(line, self._readable, line)

    def _drop(self, line: socket.socket) -> None:
        if self._lines.pop(line, None) is not None:
            asyncio.get_running_loop().remove_reader(line)
            line.close()

    def _readable(self, line: socket.socket) -> None:
        try:
            data, notes, _, _ = line.recvmsg(4096, 64)
        except BlockingIOError:
            return
        except OSError:
            data, notes = b"", []
        if not data:
            self._drop(line)
            return
        have = self._lines[line]
        have += data
        us = _arrived(notes)
        while len(have) >= HEAD.size:
            number, _, length, unit, function, first, count = HEAD.unpack_from(have)
            del have[: 6 + length]
            if function == HOLDING and self.mode is not Mode.SILENT:
                self._answer(line, number, unit, Answer(us, first, count))

    def _answer(self, line: socket.socket, number: int, unit: int, answer: Answer) -> None:
        self.answers.append(answer)
        value = struct.pack(">f", len(self.answers))
        body = (value * (answer.count // 2 + 1))[: 2 * answer.count]
        head = struct.pack(">HHHBBB", number, 0, 3 + len(body), unit, HOLDING, len(body))
        if self.mode is Mode.SLOW:
            asyncio.get_running_loop().call_later(SLOW_S, self._send, line, head + body)
        else:
            self._send(line, head + body)

    def _send(self, line: socket.socket, data: bytes) -> None:
        if line in self._lines:
            try:
                line.send(data)
            except OSError:
                self._drop(line)


def _arrived(notes: list[tuple[int, int, bytes]]) -> int:
    """CLOCK_MONOTONIC µs at which the last byte came, worked out from the kernel's wall-clock stamp of it."""
    for level, kind, data in notes:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, ns = TIMESPEC.unpack_from(data)
            ago = time.clock_gettime_ns(time.CLOCK_REALTIME) - (seconds * 1_000_000_000 + ns)
            return int(time.monotonic_ns() - max(0, ago)) // 1000
    return time.monotonic_ns() // 1000
