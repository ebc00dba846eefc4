"""A Modbus TCP server that lies: a share of its answers is wrong, each in one of the ways that devices were seen to be.

Rule 1: it shares no code with the driver; what it knows of the protocol is written here. Rule 2: every register of a
lie is wrong too, so a consumer that publishes one is found out. Rule 3: the truth depends on nothing but the address:
register a holds (a * 2654435761 >> 7) & 0xFFFF, coil a the lowest bit of that.

As a script: `python tests/liar.py --port 5020 --seed 1 --share 0.5`; ends by SIGINT or SIGTERM with what it told.
"""

import argparse
import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from struct import pack, unpack


def truth(address: int) -> int:
    """What register `address` really holds, in every unit and table, at all times."""
    return (address * 2654435761 >> 7) & 0xFFFF


@dataclass(frozen=True, slots=True)
class Question:
    """One read request as it came."""

    transaction: int
    unit: int
    function: int
    start: int
    count: int

    def payload(self, start: int = 0, count: int | None = None, flip: int = 0) -> bytes:
        """Data bytes from `start` registers (or bits) after the asked ones; flip turns the truth into a lie."""
        first, many = self.start + start, self.count if count is None else count
        values = [truth(address & 0xFFFF) ^ flip for address in range(first, first + many)]
        if self.function >= 3:
            return b"".join(pack(">H", value) for value in values)
        bits = "".join(str(value & 1) for value in reversed(values))
        return int(bits or "0", 2).to_bytes((many + 7) // 8, "little")


@dataclass(slots=True)
class Telling:
    """What is sent: `now` at once, `later` after `delay_s`, `held` before the next answer; then perhaps the end."""

    now: bytes = b""
    later: bytes = b""
    delay_s: float = 0.0
    held: bytes = b""
    bytewise: bool = False
    close: bool = False


LIE = 0x5AA5
ASKED: Counter[int] = Counter()
"""Function codes of all requests that peers of this process were sent: nothing but reads may be among them."""


def adu(question: Question, pdu: bytes, transaction: int | None = None, unit: int | None = None) -> bytes:
    number = question.transaction if transaction is None else transaction & 0xFFFF
    return pack(">HHHB", number, 0, len(pdu) + 1, question.unit if unit is None else unit) + pdu


def read_pdu(function: int, data: bytes) -> bytes:
    return bytes([function, len(data)]) + data


def honest(q: Question) -> bytes:
    return adu(q, read_pdu(q.function, q.payload()))


def false(q: Question) -> bytes:
    """The right shape with wrong values: the body of lies whose head gives them away."""
    return read_pdu(q.function, q.payload(flip=LIE))


def exception(q: Question, code: int, function: int | None = None) -> bytes:
    return adu(q, bytes([(q.function if function is None else function) | 0x80, code]))


def _with(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


def _other(function: int) -> int:
    return {1: 2, 2: 1, 3: 4, 4: 3}[function]


def _sized(q: Question, count: int) -> bytes:
    """A well-formed answer to a question for another amount (at least a byte's worth more or less)."""
    return read_pdu(q.function, q.payload(count=max(0, count), flip=LIE))


LIES: Mapping[str, Callable[[Question], Telling]] = {
    # The right head around the wrong amount: pymodbus takes these for good.
    "one register": lambda q: Telling(adu(q, _sized(q, 1 if q.count > 8 or (q.function >= 3 and q.count > 1) else 0))),
    "one register less": lambda q: Telling(adu(q, _sized(q, q.count - (1 if q.function >= 3 else 8)))),
    "more registers": lambda q: Telling(adu(q, _sized(q, min(127, q.count + 4) if q.function >= 3 else q.count + 8))),
    "odd byte count": lambda q: Telling(adu(q, bytes([q.function, len(q.payload()) + 1]) + false(q)[2:] + b"\0")),
    "byte count beyond the frame": lambda q: Telling(adu(q, _with(false(q), 1, b"\xff"))),
    "byte count below the data": lambda q: Telling(adu(q, _with(false(q), 1, bytes([false(q)[1] - 1])))),
    "no data": lambda q: Telling(adu(q, bytes([q.function, 0]))),
    "only a function": lambda q: Telling(adu(q, bytes([q.function]))),
    # Somebody else's answer.
    "other function": lambda q: Telling(adu(q, read_pdu(_other(q.function), q.payload(flip=LIE)))),
    "coil answer": lambda q: Telling(adu(q, b"\x01\x01\x05" if q.function > 1 else b"\x03\x02\x12\x34")),
    "write answer": lambda q: Telling(adu(q, pack(">BHH", 16, q.start, q.count))),
    "unknown function": lambda q: Telling(adu(q, b"\x63\x01")),
    "exception of another function": lambda q: Telling(exception(q, 2, _other(q.function))),
    "transaction 0": lambda q: Telling(adu(q, false(q), transaction=0)),
    "next transaction": lambda q: Telling(adu(q, false(q), transaction=q.transaction + 1)),
    "transaction before": lambda q: Telling(adu(q, false(q), transaction=q.transaction - 1)),
    "transaction bytes swapped": lambda q: Telling(
        adu(
            q,
            false(q),
            transaction=(q.transaction >> 8 | q.transaction << 8) ^ (0x100 if q.transaction % 257 == 0 else 0),
        )
    ),
    "unit 255": lambda q: Telling(adu(q, false(q), unit=255)),
    "unit 0": lambda q: Telling(adu(q, false(q), unit=0)),
    "request echoed": lambda q: Telling(adu(q, pack(">BHH", q.function, q.start, q.count))),
    # No Modbus at all.
    "protocol 1": lambda q: Telling(_with(adu(q, false(q)), 2, b"\0\1")),
    "protocol 0x5A00": lambda q: Telling(_with(adu(q, false(q)), 2, b"\x5a\0")),
    "length 65535": lambda q: Telling(_with(adu(q, false(q)), 4, b"\xff\xff")),
    "length 0": lambda q: Telling(_with(adu(q, false(q)), 4, b"\0\0")),
    "length 2": lambda q: Telling(_with(adu(q, false(q)), 4, b"\0\2")),
    "length one short": lambda q: Telling(_with(adu(q, false(q)), 4, pack(">H", len(false(q))))),
    "length one long": lambda q: Telling(_with(adu(q, false(q)), 4, pack(">H", len(false(q)) + 2)) + b"\0"),
    "junk ahead": lambda q: Telling(b"\0\0\0" + adu(q, false(q))),
    "noise": lambda q: Telling(random.Random(q.transaction).randbytes(300)),
    "another protocol": lambda q: Telling(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    # Exceptions that do not exist.
    "exception 0": lambda q: Telling(exception(q, 0)),
    "exception 9": lambda q: Telling(exception(q, 9)),
    "exception 12": lambda q: Telling(exception(q, 12)),
    "exception 255": lambda q: Telling(exception(q, 255)),
    "long exception": lambda q: Telling(adu(q, bytes([q.function | 0x80, 2, 0, 7]))),
    # Right, and then a wrong one.
    "right, then a false copy": lambda q: Telling(honest(q) + adu(q, false(q))),
    "right, then junk": lambda q: Telling(honest(q) + b"\0\1\0\0"),
    # Too late, too little.
    "silence": lambda q: Telling(),
    "late": lambda q: Telling(later=honest(q), delay_s=1.5),
    "late and false": lambda q: Telling(later=adu(q, false(q)), delay_s=1.2),
    "held until the next answer": lambda q: Telling(held=honest(q)),
    # Not as many bytes as "junk ahead" has: two lies that make a truth together can be found out by nobody.
    "half an answer": lambda q: Telling(adu(q, false(q))[: -len(false(q)) // 2 - 1]),
    "a byte lost": lambda q: Telling(adu(q, false(q))[:9] + adu(q, false(q))[10:]),
    "a byte too many": lambda q: Telling(adu(q, false(q))[:9] + b"\0" + adu(q, false(q))[9:]),
    "half an answer, then the end": lambda q: Telling(adu(q, false(q))[:-3], close=True),
    "the end": lambda q: Telling(close=True),
}
"""Every way to be wrong, by name; delays count in timeouts of the asker."""

ODDITIES: Mapping[str, Callable[[Question], Telling]] = {
    "byte by byte": lambda q: Telling(honest(q), bytewise=True),
    "just in time": lambda q: Telling(later=honest(q), delay_s=0.4),
}
"""Unusual and right: a client that refuses these is too strict."""


def _said(code: int, q: Question) -> Telling:
    return Telling(exception(q, code))


EXCEPTIONS: Mapping[str, Callable[[Question], Telling]] = {
    f"exception {code}": partial(_said, code) for code in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
}
"""What a device may say instead of an answer."""

_TELLINGS = {
    "honest": lambda q: Telling(honest(q)),
    "all ones": lambda q: Telling(
        adu(q, read_pdu(q.function, b"\xff" * 2 * q.count)) if q.function >= 3 else honest(q)
    ),
    **LIES,
    **ODDITIES,
    **EXCEPTIONS,
}


def telling(name: str, q: Question) -> Telling:
    """What is said under this name."""
    return _TELLINGS[name](q)


@dataclass(slots=True)
class Liar:
    """share: of all answers that are lies, drawn from `names`. timeout_s: the asker's, which late answers exceed.

    script: answers by question instead of by chance: the name of a telling.
    """

    names: tuple[str, ...] = tuple(LIES)
    share: float = 0.5
    seed: int = 1
    timeout_s: float = 1.0
    port: int = 0
    script: Callable[[Question], str] | None = None
    told: Counter[str] = field(default_factory=Counter)
    keep: bool = True
    asked: list[Question] = field(default_factory=list)
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def choose(self, chance: random.Random) -> str:
        return chance.choice(self.names) if self.names and chance.random() < self.share else "honest"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        chance = random.Random(self.seed * 1_000_003 + self.connections)
        held = b""
        try:
            while True:
                head = await reader.readexactly(7)
                transaction, _, length, unit = unpack(">HHHB", head)
                pdu = await reader.readexactly(length - 1)
                ASKED[pdu[0]] += 1
                question = Question(transaction, unit, *unpack(">BHH", pdu))
                if self.keep:
                    self.asked.append(question)
                name = self.script(question) if self.script is not None else self.choose(chance)
                self.told[name] += 1
                said = telling(name, question)
                held = await self._tell(writer, said, held)
                if said.close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _tell(self, writer: asyncio.StreamWriter, telling: Telling, held: bytes) -> bytes:
        """Send it; returns what is held back for the next answer."""
        if telling.bytewise:
            for byte in telling.now:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
        elif telling.now:
            writer.write(held + telling.now)
            held = b""
        if telling.later:
            asyncio.get_running_loop().call_later(
                telling.delay_s * self.timeout_s, _send_if_open, writer, telling.later
            )
        await writer.drain()
        return held + telling.held

    @asynccontextmanager
    async def listening(self, host: str = "127.0.0.1") -> AsyncIterator["Liar"]:
        server = await asyncio.start_server(self.serve, host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.hang_up()

    def hang_up(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


def _send_if_open(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5020)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.5, help="of the answers that are lies")
    parser.add_argument("--timeout", type=float, default=1.0, help="the asker's, in seconds; late answers exceed it")
    words = parser.parse_args()
    liar = Liar(share=words.share, seed=words.seed, timeout_s=words.timeout, port=words.port, keep=False)
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with liar.listening(words.host):
        print(f"lying on {words.host}:{liar.port}, {words.share:.0%} of all answers", flush=True)
        await over.wait()
    total = sum(liar.told.values())
    print(f"{total} answers on {liar.connections} connections, {total - liar.told['honest']} of them wrong:")
    for name, count in liar.told.most_common():
        print(f"  {count:7} {name}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
