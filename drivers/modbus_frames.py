"""Requests and answers as bytes, in the three framings of Modbus: MBAP (TCP, UDP), RTU and ASCII. Pure.

Rule 1: only the read functions 1 to 4 and the identification 43/14 can be built.
Rule 2: a frame counts when it is whole and its check is right; what is inside a broken one is never searched for sense.
Rule 3: an answer is ours only when unit, function and length are exactly those asked for.
Sources: Application Protocol V1.1b3, Messaging on TCP/IP V1.0b, Protocol over Serial Line V1.02.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple, Protocol

from drivers.modbus_map import EXCEPTION_WORDS, KNOWN_EXCEPTIONS, SPACE, WORDS_MAX, Block, Outcome, Table

IDENTIFY = 0x2B
MEI_IDENTIFICATION = 0x0E
EXCEPTION = 0x80
GLITCH = b"\x00\xff"
"""What a line that turns its direction puts before a frame; no unit of a serial line has these numbers."""
GLITCH_MAX = 3
ASCII_MAX = 513
"""Characters of an ASCII frame: Serial Line 2.5.2.1."""
OPEN_SIZE = -1
"""The length of the answer is not known beforehand (identification)."""
TRANSACTION_STRIDE = 0x9E37
"""Odd: ids return only after 65,535 requests. Not 1: a device that counts for itself is not believed."""
EXPIRED_MAX = 1024
"""Unanswered ids remembered on one connection; beyond it a fresh memory is the simpler one."""

Shape = tuple[int, int]
"""(function, data bytes) of an answer: what tells answers of one unit apart where no transaction number does."""


class Ask(NamedTuple):
    """One request. size: data bytes of its one right answer, or OPEN_SIZE."""

    unit: int
    pdu: bytes
    size: int

    @property
    def shape(self) -> Shape:
        return self.pdu[0], self.size


_READ = Struct(">BHH")


def read(unit: int, table: Table, start: int, count: int) -> Ask:
    """A read of `count` registers or bits (6.1 to 6.4)."""
    return Ask(unit, _READ.pack(table, start, count), 2 * count if table >= Table.HOLDING else (count + 7) // 8)


def identify(unit: int, first: int = 0) -> Ask:
    """Read Device Identification, basic (6.21): vendor, product and revision, from this object on."""
    return Ask(unit, bytes([IDENTIFY, MEI_IDENTIFICATION, 1, first]), OPEN_SIZE)


def of_block(block: Block) -> Ask:
    return Ask(block.unit, block.request[5:], block.size)


class Found(NamedTuple):
    """A frame at the head of what was received, `end` bytes long. pdu: empty when it is none, `words` say why."""

    end: int
    unit: int = 0
    pdu: bytes = b""
    words: str = ""
    late: bool = False
    """It answers a request that was given up (only MBAP can tell)."""


class Framing(Protocol):
    """How requests and answers are wrapped. One for each line: MBAP counts its transactions."""

    def wrap(self, ask: Ask) -> bytes:
        """The request as it is sent."""
        ...

    def find(self, received: bytes, sent: bytes) -> Found | None:
        """What stands at the head of the bytes received since the last request; None: not whole yet."""
        ...

    def length(self, pdu: int) -> int:
        """Characters on the wire of a frame around so many bytes."""
        ...


def judged(ask: Ask, unit: int, pdu: bytes) -> tuple[int, str]:
    """What an answer (function code and all) is to this request: OK, an exception code with its words, or MALFORMED."""
    asked = ask.pdu[0]
    if unit != ask.unit:
        return Outcome.MALFORMED, f"answer of unit {unit}, asked {ask.unit}"
    if pdu[0] == asked | EXCEPTION:
        if len(pdu) != 2:
            return Outcome.MALFORMED, f"an exception of {len(pdu)} bytes"
        if pdu[1] not in KNOWN_EXCEPTIONS:
            return Outcome.MALFORMED, f"unknown exception {pdu[1]}"
        return pdu[1], f"exception {pdu[1]} ({EXCEPTION_WORDS[pdu[1]]})"
    if pdu[0] != asked:
        return Outcome.MALFORMED, f"function {pdu[0]} in the answer, asked {asked}"
    if ask.size == OPEN_SIZE:
        whole = identification(pdu) is not None
        return (Outcome.OK, "") if whole else (Outcome.MALFORMED, "an identification that cannot be read")
    sent = len(pdu) - 2
    if sent != ask.size or pdu[1] != ask.size:
        return Outcome.MALFORMED, f"{pdu[1] if len(pdu) > 1 else 0} bytes announced, {sent} sent, {ask.size} asked"
    return Outcome.OK, ""


class Identification(NamedTuple):
    """objects: by number (0 vendor, 1 product code, 2 revision). more: the number to ask on from, None at the end."""

    objects: dict[int, str]
    more: int | None


def identification(pdu: bytes) -> Identification | None:
    """The answer to `identify`; None when it is not well formed."""
    if len(pdu) < 7 or pdu[1] != MEI_IDENTIFICATION:
        return None
    objects, at = {}, 7
    for _ in range(pdu[6]):
        if at + 2 > len(pdu) or at + 2 + pdu[at + 1] > len(pdu):
            return None
        text = pdu[at + 2 : at + 2 + pdu[at + 1]]
        objects[pdu[at]] = "".join(c if c.isprintable() else "?" for c in text.decode("latin-1")).strip()
        at += 2 + pdu[at + 1]
    return Identification(objects, pdu[5] if pdu[4] == 0xFF else None) if at == len(pdu) else None


# ----------------------------------------------------------------------------------------------------------- serial


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes) -> bytes:
    """The check of an RTU frame, as it is sent: low byte first (Serial Line, 2.5.1.2 and 6.2.2)."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc.to_bytes(2, "little")


def lrc(data: bytes) -> int:
    """The check of an ASCII frame: the two's complement of the sum (Serial Line, 6.2.1)."""
    return -sum(data) & 0xFF


class Rtu:
    """Binary on a serial line. Answers have no length of their own: it follows from function and byte count."""

    def wrap(self, ask: Ask) -> bytes:
        body = bytes([ask.unit]) + ask.pdu
        return body + crc16(body)

    def find(self, received: bytes, sent: bytes) -> Found | None:
        # Two-wire adapters hear themselves. An echo is told from an answer by being the request to the last byte.
        at = len(sent) if received.startswith(sent) else 0
        if not at and sent.startswith(received):
            return None
        while at < min(len(received), GLITCH_MAX + (len(sent) if at else 0)) and received[at] in GLITCH:
            at += 1
        rest = received[at:]
        if len(rest) < 2:
            return None
        length = _rtu_length(rest)
        if length < 0:
            return Found(len(received), words=f"no Modbus frame ({rest[:8].hex(' ')})")
        if length == 0 or len(rest) < length:
            return None
        frame = rest[:length]
        if crc16(frame[:-2]) != frame[-2:]:
            return Found(len(received), words="wrong checksum")
        return Found(at + length, frame[0], frame[1:-2])

    def length(self, pdu: int) -> int:
        return pdu + 3


def _rtu_length(rest: bytes) -> int:
    """Bytes of the answer that begins here with its checksum; 0: not known yet, -1: no answer to anything we ask."""
    function = rest[1]
    if function & EXCEPTION:
        return 5 if function & ~EXCEPTION in (*Table, IDENTIFY) else -1
    if function in tuple(Table):
        return rest[2] + 5 if len(rest) > 2 else 0
    return _identification_length(rest) if function == IDENTIFY else -1


def _identification_length(rest: bytes) -> int:
    if len(rest) > 2 and rest[2] != MEI_IDENTIFICATION:
        return -1
    if len(rest) < 8:
        return 0
    at = 8
    for _ in range(rest[7]):
        if len(rest) < at + 2:
            return 0
        at += 2 + rest[at + 1]
    return at + 2


class Ascii:
    """Hexadecimal on a serial line: `:`, the bytes, their LRC, CR LF."""

    def wrap(self, ask: Ask) -> bytes:
        body = bytes([ask.unit]) + ask.pdu
        return b":" + (body + bytes([lrc(body)])).hex().upper().encode("ascii") + b"\r\n"

    def find(self, received: bytes, sent: bytes) -> Found | None:
        start = len(sent) if received.startswith(sent) else 0
        if not start and sent.startswith(received):
            return None
        glitch = received.find(b":", start) - start
        if glitch < 0 or glitch > GLITCH_MAX:
            rest = received[start:]
            strange = len(rest) > GLITCH_MAX
            return Found(len(received), words=f"no Modbus frame ({rest[:8].hex(' ')})") if strange else None
        end = received.find(b"\r\n", start)
        if end < 0:
            too_long = len(received) - start > ASCII_MAX + GLITCH_MAX
            return Found(len(received), words="a frame without an end") if too_long else None
        text = received[start + glitch + 1 : end]
        try:
            frame = bytes.fromhex(text.decode("ascii")) if not text.isspace() else b""
        except ValueError:
            return Found(end + 2, words="a frame that is not hexadecimal")
        if len(frame) < 4 or 2 * len(frame) != len(text):
            return Found(end + 2, words="a frame that is not hexadecimal")
        if lrc(frame[:-1]) != frame[-1]:
            return Found(end + 2, words="wrong checksum")
        return Found(end + 2, frame[0], frame[1:-1])

    def length(self, pdu: int) -> int:
        return 2 * (pdu + 2) + 3


# ------------------------------------------------------------------------------------------------------------- MBAP

MBAP_BYTES = 7
LENGTH_MIN, LENGTH_MAX = 3, 254
"""What the length field of an answer may say: an exception … the largest ADU of 260 bytes less its first six."""
_MBAP = Struct(">HHHB")


@dataclass(slots=True)
class Mbap:
    """The header of Modbus TCP and UDP, one request at a time. An id that may still be answered is not used again."""

    transaction: int
    _expired: set[int]
    _asked: bool = False

    def wrap(self, ask: Ask) -> bytes:
        if self._asked:
            self._expired.add(self.transaction)
        if len(self._expired) >= EXPIRED_MAX:
            self._expired.clear()
        self.transaction = next_transaction(self.transaction, self._expired)
        self._asked = True
        return _MBAP.pack(self.transaction, 0, len(ask.pdu) + 1, ask.unit) + ask.pdu

    def find(self, received: bytes, sent: bytes) -> Found | None:  # noqa: ARG002 (no echo here)
        if len(received) < 6:
            return None
        transaction, protocol, length = received[0] << 8 | received[1], received[2:4], received[4] << 8 | received[5]
        if protocol != b"\0\0" or not LENGTH_MIN <= length <= LENGTH_MAX:
            words = f"no Modbus frame (protocol identifier {int.from_bytes(protocol)}, length {length})"
            return Found(len(received), words=words)
        own = self._asked and transaction == self.transaction
        if not own and transaction not in self._expired:
            return Found(len(received), words=f"answer to transaction {transaction}, which was not asked")
        if len(received) < 6 + length:
            return None
        if own:
            self._asked = False
        else:
            self._expired.discard(transaction)
        return Found(6 + length, received[6], bytes(received[MBAP_BYTES : 6 + length]), late=not own)

    def length(self, pdu: int) -> int:
        return pdu + MBAP_BYTES


def next_transaction(last: int, expired: set[int]) -> int:
    """The next id that cannot be confused with one that may still be answered; never 0, which some put on everything."""
    transaction = (last + TRANSACTION_STRIDE) & 0xFFFF
    while transaction in expired or transaction == 0:
        transaction = (transaction + TRANSACTION_STRIDE) & 0xFFFF
    return transaction


def check_mbap(block: Block, transaction: int, frame: bytes) -> tuple[int, str]:
    """Judge one whole frame (as long as its length field says) that came while this request was in flight.

    Of all frames of a given payload exactly one is right. A client need only compare the first nine bytes to find a good
    answer; this is for the others.
    """
    theirs, protocol, length, unit = _MBAP.unpack_from(frame)
    if theirs != transaction:
        return Outcome.MALFORMED, f"transaction {theirs}, asked {transaction}"
    if protocol != 0:
        return Outcome.MALFORMED, f"protocol identifier {protocol}"
    if length + 6 != len(frame):
        return Outcome.MALFORMED, f"length {length} in a frame of {len(frame)} bytes"
    return judged(of_block(block), unit, frame[MBAP_BYTES:])


# ------------------------------------------------------------------------------------------------------------ canary

CANARIES = 40
"""Steps of the count in each direction."""


def canaries(ask: Ask) -> list[Ask]:
    """Reads of the same unit whose answers look unlike the one of `ask`, those likeliest to be answered first.

    A device answers in the order in which it was asked, so the answer to one of them proves that nothing older is still
    to come. The same table with fewer registers, then the other tables (also a refusal of a function proves it), then
    more registers: of many units behind a gateway that die together, each needs another one.
    """
    if ask.size == OPEN_SIZE:
        return [read(ask.unit, Table.HOLDING, 0, many) for many in range(1, CANARIES)]
    function, start, count = _READ.unpack(ask.pdu)
    step = 1 if function >= Table.HOLDING else 8
    most = min((WORDS_MAX if function >= Table.HOLDING else WORDS_MAX * 16), SPACE - start)
    fewer, more = (
        [
            read(ask.unit, Table(function), start, many)
            for many in range(count + by, count + CANARIES * by, by)
            if 0 < many <= most
        ]
        for by in (-step, step)
    )
    near = {
        Table.HOLDING: Table.INPUT,
        Table.INPUT: Table.HOLDING,
        Table.COIL: Table.DISCRETE,
        Table.DISCRETE: Table.COIL,
    }
    first = near[Table(function)]
    others = [table for table in Table if table not in (function, first)]
    return [*fewer, *(read(ask.unit, table, start, 1) for table in (first, *others)), *more]


def longer(ask: Ask) -> Iterator[Ask]:
    """Reads that bring what `ask` wants at their beginning, and more behind it: their answers look unlike its own."""
    if ask.size == OPEN_SIZE:
        return
    function, start, count = _READ.unpack(ask.pdu)
    registers = function >= Table.HOLDING
    step, most = (1, WORDS_MAX) if registers else (8, 16 * WORDS_MAX)
    first = count + step if registers else -(-count // 8) * 8 + step
    for many in range(first, min(most, SPACE - start, count + CANARIES * step) + 1, step):
        yield read(ask.unit, Table(function), start, many)
