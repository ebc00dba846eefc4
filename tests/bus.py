"""Devices on a serial bus, behind a gateway and at an MBAP port that misbehave, each in a way that real ones were seen to.

Rule 1: no code is shared with the driver; frames, checks and the cutting of requests are written here anew.
Rule 2: what a place (unit, table, address) holds depends on nothing else, and every register of a lie is wrong, so one
wrong value taken for good is found. Rule 3: a device answers in the order in which it was asked, and what it says takes
its time on the wire; what physics cannot do (two lies that together are a truth, a foreign answer of exactly the right
shape in the instant before ours) is not told.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from struct import pack, unpack
from typing import Protocol

from tests import liar

LIE = liar.LIE
INSTANT_S = 1e-6
"""Timers of one time have no order among themselves; what one device says has."""
BABBLE = 2.5
"""Timeouts for which a babbling device fills the line; what others say meanwhile comes late."""
WAKE = 2
"""Honest answers after a wrong one that still count as being in its wake."""


@cache
def truth(unit: int, function: int, address: int) -> int:
    """What this place holds: a register, or the lowest bit of it."""
    return int.from_bytes(sha256(pack(">BBH", unit, function, address)).digest()[:2])


class Question(liar.Question):
    """A request, answered with what stands at the place."""

    def payload(self, start: int = 0, count: int | None = None, flip: int = 0) -> bytes:
        return _payload(
            self.unit, self.function, self.start + start, self.count if count is None else count, flip & 0xFFFF
        )


@cache
def _payload(unit: int, function: int, first: int, many: int, flip: int) -> bytes:
    values = [truth(unit, function, address & 0xFFFF) ^ flip for address in range(first, first + many)]
    if function >= 3:
        return b"".join(pack(">H", value) for value in values)
    bits = "".join(str(value & 1) for value in reversed(values))
    return int(bits or "0", 2).to_bytes((many + 7) // 8, "little")


# ----------------------------------------------------------------------------------------------------------- framings


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte // 2 ^ 0xA001 if byte % 2 else byte // 2
    return byte


_CRCS = [_crc_of(byte) for byte in range(256)]


def crc(data: bytes) -> bytes:
    value = 0xFFFF
    for byte in data:
        value = value // 256 ^ _CRCS[value % 256 ^ byte]
    return pack("<H", value)


class Framing(Protocol):
    """How this side wraps and cuts. cut: whole requests at the head of what was heard, and how many bytes they took."""

    def frame(self, q: Question, unit: int, pdu: bytes) -> bytes: ...

    def cut(self, heard: bytes) -> tuple[list[Question], int]: ...


def _question(unit: int, pdu: bytes, transaction: int = 0) -> Question:
    function = pdu[0]
    start, count = unpack(">HH", pdu[1:5]) if 1 <= function <= 4 and len(pdu) == 5 else (0, 0)
    return Question(transaction, unit, function, start, count)


class Rtu:
    def frame(self, q: Question, unit: int, pdu: bytes) -> bytes:
        body = bytes([unit]) + pdu
        return body + crc(body)

    def cut(self, heard: bytes) -> tuple[list[Question], int]:
        asked, at = [], 0
        while len(heard) - at >= 7:
            size = 7 if heard[at + 1] == 0x2B else 8
            if len(heard) - at < size:
                break
            body, check = heard[at : at + size - 2], heard[at + size - 2 : at + size]
            assert crc(body) == check, f"the driver sent no frame: {heard.hex(' ')}"
            asked.append(_question(body[0], body[1:]))
            at += size
        return asked, at


class Ascii:
    def frame(self, q: Question, unit: int, pdu: bytes) -> bytes:
        body = bytes([unit]) + pdu
        return b":%s%02X\r\n" % (body.hex().upper().encode(), (256 - sum(body) % 256) % 256)

    def cut(self, heard: bytes) -> tuple[list[Question], int]:
        asked, at = [], 0
        while (end := heard.find(b"\n", at)) >= 0:
            body = bytes.fromhex(heard[at + 1 : end - 1].decode())
            assert heard[at : at + 1] == b":", f"the driver sent no frame: {heard!r}"
            assert sum(body) % 256 == 0, f"the driver sent no frame: {heard!r}"
            asked.append(_question(body[0], body[1:-1]))
            at = end + 1
        return asked, at


class Mbap:
    def frame(self, q: Question, unit: int, pdu: bytes) -> bytes:
        return liar.adu(q, pdu, unit=unit)

    def cut(self, heard: bytes) -> tuple[list[Question], int]:
        asked, at = [], 0
        while len(heard) - at >= 8:
            transaction, protocol, length, unit = unpack(">HHHB", heard[at : at + 7])
            assert protocol == 0, f"the driver sent no frame: {heard.hex(' ')}"
            assert 2 <= length <= 254, f"the driver sent no frame: {heard.hex(' ')}"
            if len(heard) - at < 6 + length:
                break
            asked.append(_question(unit, heard[at + 7 : at + 6 + length], transaction))
            at += 6 + length
        return asked, at


# ----------------------------------------------------------------------------------------------------------- tellings


@dataclass(frozen=True, slots=True)
class Say:
    """A request, and the words in which this line answers."""

    q: Question
    framing: Framing
    chance: random.Random

    def of(self, pdu: bytes, unit: int | None = None) -> bytes:
        return self.framing.frame(self.q, self.q.unit if unit is None else unit, pdu)

    @property
    def right(self) -> bytes:
        return self.of(honest_pdu(self.q))

    @property
    def false(self) -> bytes:
        """Right in shape, wrong in every register."""
        return self.of(liar.false(self.q))

    def sized(self, count: int) -> bytes:
        return self.of(liar.read_pdu(self.q.function, self.q.payload(count=max(0, count), flip=LIE)))

    @property
    def step(self) -> int:
        return 1 if self.q.function >= 3 else 8

    def broken(self, frame: bytes) -> bytes:
        """With a check that is wrong."""
        if isinstance(self.framing, Ascii):
            other = b"%02X" % (int(frame[-4:-2], 16) ^ self.chance.randrange(1, 256))
            return frame[:-4] + other + b"\r\n"
        return frame[:-2] + bytes([frame[-2] ^ self.chance.randrange(1, 256), frame[-1]])

    @property
    def echo(self) -> bytes:
        return self.of(pack(">BHH", self.q.function, self.q.start, self.q.count))

    def middle(self, frame: bytes) -> int:
        """A place among the data."""
        return self.chance.randrange(len(frame) // 2, len(frame) - 2)


def honest_pdu(q: Question) -> bytes:
    if not 1 <= q.function <= 4:
        return bytes([q.function | 0x80, 1])  # nothing else is known here
    return liar.read_pdu(q.function, q.payload())


Parts = Sequence[tuple[float, bytes]]
"""What is sent, and when: timeouts of the asker after the request."""


def _unknown(code: int, s: Say) -> Parts:
    return [(0, s.of(bytes([s.q.function | 0x80, code])))]


def _flipped(s: Say) -> Parts:
    """One to three bits of the data are another, the check is that of the truth."""
    frame = bytearray(s.right)
    at = s.middle(bytes(frame)) if not isinstance(s.framing, Ascii) else 7
    if isinstance(s.framing, Ascii):
        frame[at] = ord("0") if frame[at] != ord("0") else ord("1")
    else:
        frame[at] ^= s.chance.choice([1, 2, 3, 0x10, 0x41, 0x80])
    return [(0, bytes(frame))]


def _lost(s: Say) -> Parts:
    frame = s.false
    at = s.middle(frame)
    return [(0, frame[:at] + frame[at + 1 :])]


def _inserted(s: Say) -> Parts:
    frame = s.false
    at = s.middle(frame)
    return [(0, frame[:at] + s.chance.randbytes(1) + frame[at:])]


def _split(after: float, s: Say) -> Parts:
    frame = s.right
    at = s.chance.randrange(1, len(frame))
    return [(0, frame[:at]), (after, frame[at:])]


def _late(by: float, s: Say) -> Parts:
    return [(by, s.right)]


SERIAL_FAULTS: Mapping[str, Callable[[Say], Parts]] = {
    # Too late, too little.
    "silent": lambda s: [],
    "late by 1.2 timeouts": partial(_late, 1.2),
    "late by 2 timeouts": partial(_late, 2.0),
    "late by 3 timeouts": partial(_late, 3.0),
    "half an answer": lambda s: [(0, s.false[: len(s.false) // 2])],
    "half now, half late": partial(_split, 1.3),
    # The line.
    "wrong check": lambda s: [(0, s.broken(s.false))],
    "bits flipped": _flipped,
    "a byte lost": _lost,
    "a byte too many": _inserted,
    "noise": lambda s: [(0, s.chance.randbytes(s.chance.randrange(4, 60)))],
    "noise ahead of the answer": lambda s: [(0, s.chance.randbytes(8) + s.false)],
    "a byte behind the answer": lambda s: [(0, s.right + b"\0")],
    "only the echo": lambda s: [(0, s.echo)],
    "babble": lambda s: [(0.1 * n, s.chance.randbytes(20)) for n in range(int(10 * BABBLE))],
    # Somebody else's answer.
    "another unit": lambda s: [(0, s.of(liar.false(s.q), unit=s.q.unit + 100))],
    "another unit, then the right answer": lambda s: [(0, s.of(liar.false(s.q), unit=s.q.unit + 100) + s.right)],
    "unit 0": lambda s: [(0, s.of(liar.false(s.q), unit=0))],
    "another function": lambda s: [(0, s.of(liar.read_pdu(s.q.function ^ 7, s.q.payload(flip=LIE))))],
    "a write's answer": lambda s: [(0, s.of(pack(">BHH", 16, s.q.start, s.q.count)))],
    "unknown function": lambda s: [(0, s.of(b"\x63\x01"))],
    "right, then a false copy": lambda s: [(0, s.right + s.false)],
    "a false copy, then right": lambda s: [(0, s.false + s.right)],
    "an answer nobody asked for, later": lambda s: [
        (0, s.right),
        (s.chance.choice([0.2, 0.8]), s.of(liar.false(s.q), unit=s.q.unit + 100)),
    ],
    # The wrong amount.
    "fewer registers": lambda s: [(0, s.sized(s.q.count - s.step))],
    "more registers": lambda s: [(0, s.sized(s.q.count + s.step))],
    "odd byte count": lambda s: [
        (0, s.of(bytes([s.q.function, len(s.q.payload()) + 1]) + liar.false(s.q)[2:] + b"\0"))
    ],
    "byte count below the data": lambda s: [
        (0, s.of(bytes([s.q.function, len(s.q.payload()) - 1]) + liar.false(s.q)[2:]))
    ],
    "no data": lambda s: [(0, s.of(bytes([s.q.function, 0])))],
    # Exceptions that do not exist, or are another's.
    **{f"exception {code}": partial(_unknown, code) for code in (0, 9, 12, 255)},
    "exception of another function": lambda s: [(0, s.of(bytes([s.q.function ^ 7 | 0x80, 2])))],
    "long exception": lambda s: [(0, s.of(bytes([s.q.function | 0x80, 2, 0])))],
}
"""Every way to be wrong on a serial line, by name."""

NEVER_LATE = (
    *("fewer registers", "more registers", "odd byte count", "no data", "another function"),
    *("right, then a false copy", "a false copy, then right"),
)
"""An answer that is late and also another than was asked for may be exactly what the next request waits for."""

SERIAL_ODDITIES: Mapping[str, Callable[[Say], Parts]] = {
    "just in time": partial(_late, 0.7),
    "split": partial(_split, 0.0),
    "split by half a timeout": partial(_split, 0.5),
    "byte by byte": lambda s: [(0.001 * n, bytes([byte])) for n, byte in enumerate(s.right)],
    "echo, then the answer": lambda s: [(0, s.echo), (0.1, s.right)],
    "echo and answer glued": lambda s: [(0, s.echo + s.right)],
    "glitch ahead": lambda s: [(0, s.chance.choice([b"\0", b"\xff", b"\0\xff", b"\xff\xff\xff"]) + s.right)],
    "glitch long ahead": lambda s: [(0, b"\xff"), (0.3, s.right)],
}
"""Unusual and right: a client that refuses these is too strict."""

EXCEPTIONS: Mapping[str, Callable[[Say], Parts]] = {
    f"exception {code}": partial(_unknown, code) for code in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
}

_SERIAL: Mapping[str, Callable[[Say], Parts]] = {
    "honest": lambda s: [(0, s.right)],
    "all ones": lambda s: [
        (0, s.of(liar.read_pdu(s.q.function, b"\xff" * 2 * s.q.count)) if s.q.function >= 3 else s.right)
    ],
    **SERIAL_FAULTS,
    **SERIAL_ODDITIES,
    **EXCEPTIONS,
}


def _mbap_parts(name: str, s: Say) -> Parts:
    """What tests/liar.py tells, as parts. A held answer comes with the next one."""
    telling = liar.telling(name, s.q)
    now = [(0.0, bytes([byte])) for byte in telling.now] if telling.bytewise else [(0.0, telling.now)]
    return [*now, (telling.delay_s, telling.later)]


# -------------------------------------------------------------------------------------------------------------- peers


class Way(Protocol):
    """To the other end: a socket, a pty, or memory."""

    def send(self, data: bytes) -> None: ...

    def hang_up(self) -> None: ...


@dataclass(slots=True)
class Peer(ABC):
    """share: of all answers that are wrong, drawn from `names`. timeout_s: the asker's. char_s: a character on the wire.

    script: answers by question instead of by chance. told: how often what was told. faulty: requests answered with a
    fault or in its wake. latency: up to so many timeouts an honest answer takes.
    """

    names: tuple[str, ...] = ()
    share: float = 0.5
    timeout_s: float = 1.0
    char_s: float = 0.0
    latency: float = 0.3
    script: Callable[[Question], str] | None = None
    framing: Framing = field(default_factory=Rtu)
    told: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    faulty: int = 0
    connections: int = 0
    way: Way | None = None
    _wake: int = 0
    _buffer: bytearray = field(default_factory=bytearray)
    _chance: random.Random = field(default_factory=lambda: random.Random(1))

    def temper(self, chance: random.Random) -> None:
        """Be as nobody was before."""
        self.share, self.latency = chance.choice([0.2, 0.5, 0.8]), chance.choice([0.0, 0.3, 0.6])
        self._chance = random.Random(chance.randrange(2**32))

    def joined(self, way: Way) -> None:
        """Somebody listens at the other end from now on."""
        self.way = way
        self.connections += 1
        self._buffer.clear()

    def left(self, way: Way) -> None:
        if self.way is way:
            self.way = None

    def heard(self, data: bytes) -> None:
        self._buffer += data
        questions, taken = self.framing.cut(bytes(self._buffer))
        del self._buffer[:taken]
        for question in questions:
            self.asked += 1
            liar.ASKED[question.function] += 1
            self.answer(question)

    @abstractmethod
    def answer(self, q: Question) -> None: ...

    def choose(self, q: Question) -> str:
        if self.script is not None:
            name = self.script(q)
        else:
            name = self._chance.choice(self.names) if self.names and self._chance.random() < self.share else "honest"
        self.note(name)
        return name

    def note(self, name: str) -> None:
        self.told[name] += 1
        self._wake = WAKE + 1 if name != "honest" else max(0, self._wake - 1)
        self.faulty += self._wake > 0

    def delay(self) -> float:
        """Of an honest answer: mostly at once, sometimes not; in timeouts."""
        return self._chance.random() * self.latency if self._chance.random() < 0.3 else 0.0

    def send(self, data: bytes) -> None:
        if self.way is not None and data:
            self.way.send(data)


@dataclass(slots=True)
class SerialBus(Peer):
    """Devices on a serial line. deaf: a device that is busy with a request does not hear the next one.

    chunk: most characters that come in one piece, as from a UART's buffer; 0: whole parts.
    """

    deaf: bool = False
    chunk: int = 0
    _busy_s: dict[int, float] = field(default_factory=dict)
    _free_s: float = 0.0
    _full_until_s: float = 0.0

    def answer(self, q: Question) -> None:
        loop = asyncio.get_running_loop()
        request_s = self.char_s * (17 if isinstance(self.framing, Ascii) else 8)
        heard_s = loop.time() + request_s
        busy_s = self._busy_s.get(q.unit, 0.0)
        if self.deaf and busy_s > heard_s + 10 * INSTANT_S:
            self.note("deaf")
            return
        say = Say(q, self.framing, self._chance)
        began_s = max(heard_s, busy_s)
        name = self.choose(q)
        if name in NEVER_LATE and max(began_s, self._full_until_s) > heard_s + 10 * INSTANT_S:
            name = "honest"
        if name not in NEVER_LATE:
            began_s += self.delay() * self.timeout_s
        if name == "babble":
            self._full_until_s = began_s + BABBLE * self.timeout_s
        for after, data in _SERIAL[name](say):
            at_s = max(began_s + after * self.timeout_s, self._busy_s.get(q.unit, 0.0))
            self._busy_s[q.unit] = at_s + INSTANT_S
            if at_s <= loop.time():
                self._put(data)
            else:
                loop.call_at(at_s, self._put, data)

    def _put(self, data: bytes) -> None:
        """On the wire, behind what is on it already."""
        loop = asyncio.get_running_loop()
        if not self.char_s:
            self.send(data)
            return
        self._free_s = max(self._free_s, loop.time())
        while data:
            size = min(len(data), self._chance.randint(1, self.chunk)) if self.chunk else len(data)
            self._free_s += self.char_s * size
            loop.call_at(self._free_s, self.send, data[:size])
            data = data[size:]


@dataclass(slots=True)
class Device(Peer):
    """A device of its own at an MBAP port (TCP or UDP), telling what tests/liar.py tells."""

    framing: Framing = field(default_factory=Mbap)
    _held: bytes = b""

    def joined(self, way: Way) -> None:
        Peer.joined(self, way)
        self._held = b""

    def answer(self, q: Question) -> None:
        loop, name = asyncio.get_running_loop(), self.choose(q)
        telling = liar.telling(name, q) if 1 <= q.function <= 4 else liar.Telling(liar.adu(q, honest_pdu(q)))
        if telling.now:
            held, self._held = self._held, b""
            pieces = [bytes([byte]) for byte in telling.now] if telling.bytewise else [held + telling.now]
            after_s = self.delay() * self.timeout_s
            for piece in pieces:
                if after_s:
                    loop.call_later(after_s, self._send_over, self.way, piece)
                else:
                    self.send(piece)
        if telling.later:
            loop.call_later(telling.delay_s * self.timeout_s, self._send_over, self.way, telling.later)
        self._held += telling.held
        if telling.close and self.way is not None:
            self.way.hang_up()

    def _send_over(self, way: Way | None, data: bytes) -> None:
        """An answer goes where its request came from, or nowhere."""
        if way is self.way:
            self.send(data)


GATEWAY_FAULTS = (
    "silent",
    "late by 1.2",
    "late by 2",
    "late by 3",
    "refused",
    "busy",
    "dropped",
    "path unavailable",
    "target does not respond",
    "unknown exception",
    "another unit",
    "another function",
    "fewer registers",
    "more registers",
)
"""What becomes of a request behind a gateway: the first six are the serial device's, the others the gateway's."""


@dataclass(slots=True)
class Gateway(Peer):
    """MBAP in front, a serial line behind; one request is on that line at a time, the others wait.

    patience: timeouts of the asker after which it gives up on a device; then tells: exception 11 (else it is silent).
    keeps: a serial answer that came too late is kept and given to the next request, also when none was waiting; else
    only when it comes while the next one is waited for. flushes: not even then. stamps: the answer bears the unit that
    the request named, whoever spoke. Connecting anew clears it.
    """

    framing: Framing = field(default_factory=Mbap)
    patience: float = 0.8
    tells: bool = True
    keeps: bool = False
    flushes: bool = False
    stamps: bool = True
    _queue: "deque[Question]" = field(default_factory=deque)
    _current: Question | None = None
    _stale: "deque[tuple[Question, bytes]]" = field(default_factory=deque)
    _busy_s: dict[int, float] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    def joined(self, way: Way) -> None:
        Peer.joined(self, way)
        self._queue.clear()
        self._stale.clear()
        self._next()

    def answer(self, q: Question) -> None:
        self._queue.append(q)
        if self._current is None:
            self._next()

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._current = self._timer = None
        if not self._queue:
            return
        self._current = q = self._queue.popleft()
        loop = asyncio.get_running_loop()
        name = self.choose(q)
        if self._instead(q, name):
            return
        began_s = max(loop.time(), self._busy_s.get(q.unit, 0.0))
        after = {"silent": None, "just in time": 0.4, "late by 1.2": 1.2, "late by 2": 2.0, "late by 3": 3.0}.get(
            name, self.delay()
        )
        if after is not None:
            at_s = began_s + after * self.timeout_s
            self._busy_s[q.unit] = at_s + INSTANT_S
            code = {"refused": 2, "busy": 6}.get(name)
            loop.call_at(at_s, self._spoken, q, honest_pdu(q) if code is None else bytes([q.function | 0x80, code]))
        self._timer = loop.call_later(self.patience * self.timeout_s, self._give_up)
        if self._stale:
            self._spoken(*self._stale.popleft())

    def _instead(self, q: Question, name: str) -> bool:
        """What the gateway says without the device, or makes of its answer."""
        step = 1 if q.function >= 3 else 8
        pdu = {
            "path unavailable": bytes([q.function | 0x80, 10]),
            "target does not respond": bytes([q.function | 0x80, 11]),
            "unknown exception": bytes([q.function | 0x80, 13]),
            "another unit": liar.false(q) if q.function <= 4 else b"",
            "another function": liar.read_pdu(q.function ^ 7, q.payload(flip=LIE)),
            "fewer registers": liar.read_pdu(q.function, q.payload(count=max(0, q.count - step), flip=LIE)),
            "more registers": liar.read_pdu(q.function, q.payload(count=q.count + step, flip=LIE)),
            "dropped": b"",
        }.get(name)
        if pdu is None:
            return False
        if pdu:
            self.send(self.framing.frame(q, q.unit + 100 if name == "another unit" else q.unit, pdu))
        self._next()
        return True

    def _spoken(self, q: Question, pdu: bytes) -> None:
        """A frame on the serial line; to the gateway it is the answer to whatever it asked last."""
        asked = self._current
        if asked is not None and (asked is q or not self.flushes):
            self.send(self.framing.frame(asked, asked.unit if self.stamps else q.unit, pdu))
            if asked is not q:
                self.told["given to another"] += 1
            self._next()
        elif self.keeps:
            self._stale.append((q, pdu))

    def _give_up(self) -> None:
        q = self._current
        if q is not None and self.tells:
            self.send(self.framing.frame(q, q.unit, bytes([q.function | 0x80, 11])))
        self._next()
