"""A Modbus TCP device with a map: tables with holes, a block limit, seams, a name, values that move.

Rule 1: it shares no code with the driver; what it knows of the protocol is written here. Rule 2: it counts what it is
asked, and remembers every function, so that a test can tell whether somebody is polite and only reads.

As a script: `python tests/mapped.py --port 5020` shows one to scan.
"""

import argparse
import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Cell = int | Callable[[int], int]
"""A register, or what it is at the n-th request to the device: all registers of one answer are of one moment."""
READS = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}


def crc(data: bytes) -> bytes:
    register = 0xFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ 0xA001 if register & 1 else register >> 1
    return struct.pack("<H", register)


def cells(code: str, of: float | Callable[[int], float], order: str = "ABCD") -> list[Cell]:
    """Registers of a number (struct code) whose bytes come in this order; for 8 bytes the words are turned alike."""

    def words(now: int) -> list[int]:
        value = of(now) if callable(of) else of
        raw = struct.pack(">" + code, int(value) if code in "iIqQhH" else value)
        found = [struct.unpack(">H", raw[at : at + 2])[0] for at in range(0, len(raw), 2)]
        if order in ("CDAB", "DCBA"):
            found.reverse()
        if order in ("BADC", "DCBA"):
            found = [word >> 8 | (word & 0xFF) << 8 for word in found]
        return found

    return [lambda now, at=at: words(now)[at] for at in range(len(words(0)))]  # type: ignore[misc]


def text_cells(text: str, registers: int) -> list[Cell]:
    raw = text.encode("ascii").ljust(2 * registers, b"\0")
    return list(struct.unpack(f">{registers}H", raw))


def laid(*parts: tuple[int, Iterable[Cell]]) -> dict[int, Cell]:
    """A table from (address, cells)."""
    return {start + at: cell for start, its in parts for at, cell in enumerate(its)}


@dataclass
class MappedUnit:
    """tables by name; one that is missing is refused as an unknown function. most: registers in an answer, bits_most: bits.

    seams: addresses that cannot be read together with the one before. odd: what it says (exception code) the first
    times it is asked. silent: it says nothing where others refuse. only_pairs: no half of a value of two registers.
    """

    tables: Mapping[str, Mapping[int, Cell]]
    most: int = 125
    bits_most: int = 2000
    too_much: int = 3
    hole: int = 2
    name: Mapping[int, str] | None = None
    seams: frozenset[int] = frozenset()
    busy: int = 0
    silent: bool = False
    only_pairs: bool = False

    def answer(self, pdu: bytes, now: int) -> bytes | None:
        function = pdu[0]
        if self.busy:
            self.busy -= 1
            return bytes([function | 0x80, 6])
        if function == 0x2B:
            return self._named(pdu)
        table = self.tables.get(READS.get(function, ""))
        if table is None:
            return self._no(function, 1)
        first, count = struct.unpack(">HH", pdu[1:5])
        if not 1 <= count <= (self.most if function > 2 else self.bits_most):
            return self._no(function, self.too_much)
        asked = range(first, first + count)
        if any(at not in table for at in asked) or self.seams.intersection(asked[1:]):
            return self._no(function, self.hole)
        if self.only_pairs and (first % 2 or count % 2):
            return self._no(function, self.hole)
        values = [cell(now) if callable(cell := table[at]) else cell for at in asked]
        if function > 2:
            return bytes([function, 2 * count]) + struct.pack(f">{count}H", *values)
        packed = sum((value & 1) << at for at, value in enumerate(values))
        return bytes([function, (count + 7) // 8]) + packed.to_bytes((count + 7) // 8, "little")

    def _no(self, function: int, code: int) -> bytes | None:
        return None if self.silent else bytes([function | 0x80, code])

    def _named(self, pdu: bytes) -> bytes | None:
        """One object in each answer, so that whoever asks has to go on."""
        if self.name is None:
            return self._no(0x2B, 1)
        number = pdu[3]
        if number not in self.name:
            return self._no(0x2B, 2)
        more = number + 1 in self.name
        head = bytes([0x2B, 0x0E, 1, 1, 0xFF if more else 0, number + 1 if more else 0, 1])
        said = self.name[number].encode("latin-1")
        return head + bytes([number, len(said)]) + said


@dataclass
class Mapped:
    """units by number; others are told by `absent`: None: silence, 10 or 11: a gateway speaks for them.

    after_s: how long that takes it. any_unit: the device does not look at the number at all. breaks_at: requests at
    which it closes the connection. rtu: it speaks RTU over TCP. gone_at: the request from which on it says nothing.
    """

    units: dict[int, MappedUnit]
    absent: int | None = None
    after_s: float = 0.0
    rtu: bool = False
    gone_at: int | None = None
    any_unit: bool = False
    breaks_at: frozenset[int] = frozenset()
    requests: int = 0
    connections: int = 0
    functions: Counter[int] = field(default_factory=Counter)
    by_unit: Counter[int] = field(default_factory=Counter)
    at_s: list[float] = field(default_factory=list)
    port: int = 0
    _serving: dict["asyncio.Task[Any]", asyncio.StreamWriter] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head, number, pdu = await (self._rtu_question if self.rtu else self._question)(reader)
                self.requests += 1
                self.at_s.append(asyncio.get_running_loop().time())
                self.functions[pdu[0]] += 1
                self.by_unit[number] += 1
                if self.requests in self.breaks_at:
                    break
                answer = await self._answer(number, pdu)
                if answer is None or (self.gone_at is not None and self.requests >= self.gone_at):
                    continue
                body = bytes([number]) + answer
                writer.write(body + crc(body) if self.rtu else head + struct.pack(">HH", 0, len(body)) + body)
                await writer.drain()
        del self._serving[task]
        writer.close()

    async def _question(self, reader: asyncio.StreamReader) -> tuple[bytes, int, bytes]:
        head = await reader.readexactly(7)
        _, _, length, number = struct.unpack(">HHHB", head)
        return head[:2], number, await reader.readexactly(length - 1)

    async def _rtu_question(self, reader: asyncio.StreamReader) -> tuple[bytes, int, bytes]:
        start = await reader.readexactly(2)
        rest = await reader.readexactly(5 if start[1] == 0x2B else 6)
        body = start + rest[:-2]
        assert crc(body) == rest[-2:], "a broken request"
        return b"", body[0], body[1:]

    async def _answer(self, number: int, pdu: bytes) -> bytes | None:
        unit = next(iter(self.units.values())) if self.any_unit else self.units.get(number)
        if unit is not None:
            return unit.answer(pdu, self.requests)
        await asyncio.sleep(self.after_s)
        return None if self.absent is None else bytes([pdu[0] | 0x80, self.absent])

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1") -> AsyncIterator["Mapped"]:
        server = await asyncio.start_server(self.serve, host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            serving = dict(self._serving)
            for writer in serving.values():
                writer.transport.abort()
            if serving:
                await asyncio.wait(serving)

    @property
    def url(self) -> str:
        return f"{'rtu+tcp' if self.rtu else 'tcp'}://127.0.0.1:{self.port}"


def press() -> MappedUnit:
    """CDAB floats, a counter, a text, holes, coils; 16 registers at a time."""
    return MappedUnit(
        tables={
            "holding": laid(
                (0, cells("f", lambda now: 50.13 + 0.37 * (now % 5), "CDAB")),
                (2, cells("f", 12.5, "CDAB")),
                (4, cells("I", lambda now: 196_600 + 7 * now, "CDAB")),
                (6, [17, 0]),
                (8, cells("f", lambda now: -3.021 - 0.013 * (now % 7), "CDAB")),
                (20, text_cells("PX-100 PRESS", 8)),
                (28, [lambda now: 2350 + now % 3]),
                (101, [0] * 40),
                (141, cells("f", 1.25, "CDAB")),
            ),
            "input": laid((0, [lambda now: 65_534 + now % 4 if now % 4 < 2 else now % 4, 230, 231])),
            "coil": laid((0, [1, 0, 1, 1])),
        },
        most=16,
        name={0: "Example Works", 1: "PX-100", 2: "V2.1"},
    )


def meter() -> MappedUnit:
    """A plain meter: input registers only, ABCD."""
    return MappedUnit(
        tables={"input": laid((0, [*cells("f", 230.1), *cells("f", 49.98), *cells("d", 98_765.4321)]))}, hole=2
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5020)
    device = Mapped({1: press(), 3: meter()}, absent=11, port=parser.parse_args().port)
    async with device.listening():
        print(f"a press (unit 1) and a meter (unit 3) at {device.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
