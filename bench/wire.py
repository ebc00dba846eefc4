"""The line between the agent and the broker: it can be cut, stalled and made to lose, and it writes down what crosses it.

Rule: a message is delivered when the broker's good PUBACK has been read from the broker. The agent's promise ends there;
whether the PUBACK reached the agent is the line's business, and what the broker does with the message is the broker's.
"""

import asyncio
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

CONNECT, PUBLISH, PUBACK = 1, 3, 4
REFUSED = 0x80
MQTT_5 = 5


class Line(StrEnum):
    """What the line does. stalled: nothing crosses it and nobody is told (half open); deaf: nothing comes back."""

    OPEN = "open"
    CUT = "cut"
    STALLED = "stalled"
    DEAF = "deaf"


Sent = Callable[[int, str, bytes], None]
"""(connection, topic, payload) of each QoS 1 PUBLISH of the agent that is not retained."""
Acknowledged = Callable[[str, bytes], None]
"""(topic, payload) of each of them that the broker has taken."""


@dataclass(slots=True)
class Wire:
    """A port of our own in front of the broker's."""

    broker: int
    sent: Sent
    acknowledged: Acknowledged
    port: int = 0
    refused: int = 0
    connections: int = 0
    _line: Line = Line.OPEN
    _free: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, port: int) -> None:
        self._free.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._abort()

    def become(self, line: Line) -> None:
        """Go over to this. A stalled or deaf line ends by `CUT`, as a router does that has forgotten a connection."""
        self._line = line
        if line in (Line.STALLED, Line.DEAF):
            self._free.clear()
        else:
            self._free.set()
        if line is Line.CUT:
            self._abort()

    def _abort(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._line is Line.CUT:
            writer.transport.abort()
            return
        self.connections += 1
        crossing = _Crossing(self, self.connections)
        self._open.add(writer)
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self.broker)
        except OSError:
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(to_broker)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, to_broker, crossing.of_agent, deaf=False))
                both.create_task(self._carry(from_broker, writer, crossing.of_broker, deaf=True))
        except* OSError:
            pass  # one side is gone; so is the other now
        finally:
            for each in (writer, to_broker):
                self._open.discard(each)
                each.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[bytes], None], *, deaf: bool
    ) -> None:
        """One direction, until it ends; then the whole connection does."""
        while data := await reader.read(65_536):
            if not deaf and self._line is Line.STALLED:
                await self._free.wait()
            note(data)
            if deaf and self._line in (Line.STALLED, Line.DEAF):
                await self._free.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@dataclass(slots=True)
class _Crossing:
    """One connection: its packets, put together from what crosses the line."""

    wire: Wire
    number: int
    version: int = MQTT_5
    _out: bytearray = field(default_factory=bytearray)
    _back: bytearray = field(default_factory=bytearray)
    _flying: dict[int, tuple[str, bytes]] = field(default_factory=dict)

    def of_agent(self, data: bytes) -> None:
        self._out += data
        for head, body in packets(self._out):
            if head >> 4 == CONNECT:
                (length,) = struct.unpack_from(">H", body)
                self.version = body[2 + length]
            elif head >> 4 == PUBLISH and head & 0b110 and not head & 1:
                number, topic, payload = published(body, self.version)
                self._flying[number] = (topic, payload)
                self.wire.sent(self.number, topic, payload)

    def of_broker(self, data: bytes) -> None:
        self._back += data
        for head, body in packets(self._back):
            if head >> 4 != PUBACK:
                continue
            (number,) = struct.unpack_from(">H", body)
            flown = self._flying.pop(number, None)
            if len(body) > 2 and body[2] >= REFUSED:
                self.wire.refused += 1
            elif flown is not None:
                self.wire.acknowledged(*flown)


def packets(have: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take each whole packet from the front: its first byte and what follows its length."""
    while len(have) >= 2:
        length = shift = 0
        place = 1
        while True:
            if place >= len(have):
                return
            length |= (have[place] & 0x7F) << shift
            shift += 7
            place += 1
            if not have[place - 1] & 0x80:
                break
        if len(have) < place + length:
            return
        head, body = have[0], bytes(have[place : place + length])
        del have[: place + length]
        yield head, body


def published(body: bytes, version: int) -> tuple[int, str, bytes]:
    """(packet number, topic, payload) of a PUBLISH with QoS 1."""
    (length,) = struct.unpack_from(">H", body)
    topic = body[2 : 2 + length].decode()
    (number,) = struct.unpack_from(">H", body, 2 + length)
    place = 4 + length
    if version == MQTT_5:
        properties, size = 0, 0
        while True:
            byte = body[place + size]
            properties |= (byte & 0x7F) << (7 * size)
            size += 1
            if not byte & 0x80:
                break
        place += size + properties
    return number, topic, body[place:]
