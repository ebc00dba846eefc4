"""A network and serial ports in memory, on the virtual clock: a hundred thousand faults without a socket.

Rule 1: the driver's own code runs from its session down to the bytes; only the loop's transports and the opened port are
others. Rule 2: whatever is sent comes at once and whole; delay, loss and cutting are the peer's telling.
"""

import asyncio
import errno
import os
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, TypeVar

from drivers import modbus_channels
from drivers.modbus_settings import Place
from drivers.modbus_wire import Channel, Wire
from tests.bus import Peer
from tests.virtual import VirtualLoop

Result = TypeVar("Result")


class MemoryLoop(VirtualLoop):
    """peers: by the port number of an address, or the path of a serial port."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: dict[int | str, Peer] = {}

    async def create_connection(  # type: ignore[override] # what the driver asks for
        self, protocol_factory: Any, host: str, port: int, ssl: None = None
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        if port not in self.peers:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        protocol = protocol_factory()
        transport = _Cable(self, protocol, self.peers[port])
        protocol.connection_made(transport)
        self.peers[port].joined(transport)
        return transport, protocol

    async def create_datagram_endpoint(  # type: ignore[override]
        self, protocol_factory: Any, *, remote_addr: tuple[str, int]
    ) -> tuple[Any, Any]:
        protocol = protocol_factory()
        transport = _Datagrams(self, protocol, self.peers[remote_addr[1]])
        protocol.connection_made(transport)
        self.peers[remote_addr[1]].joined(transport)
        return transport, protocol

    def open_port(self, place: Place, wire: Wire) -> Channel:
        port = _SerialPort(self, wire, self.peers[place.host])
        self.peers[place.host].joined(port.way)
        return port


class _Unplugged:
    """The socket of a connection that has none."""

    def setsockopt(self, *_: int) -> None:
        pass


class _Cable(asyncio.Transport):
    """A stream from a protocol of the driver to a peer and back."""

    def __init__(self, loop: MemoryLoop, protocol: Any, peer: Peer) -> None:
        super().__init__({"socket": _Unplugged()})
        self._loop, self._protocol, self._peer = loop, protocol, peer
        self._open = True

    def write(self, data: Any) -> None:
        if self._open:
            self._loop.call_soon(self._peer.heard, bytes(data))

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._peer.left(self)
            self._loop.call_soon(self._protocol.connection_lost, None)

    close = abort

    def send(self, data: bytes) -> None:
        """From the peer."""
        self._loop.call_soon(self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        while data and self._open:
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                buffer = memoryview(self._protocol.get_buffer(-1))
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                self._protocol.buffer_updated(size)
                data = data[size:]
            else:
                self._protocol.data_received(data)
                return

    def hang_up(self) -> None:
        """The peer ends it."""
        self._loop.call_soon(self._ended)

    def _ended(self) -> None:
        if self._open:
            self._protocol.eof_received()
            self.abort()


class _Datagrams(asyncio.DatagramTransport):
    def __init__(self, loop: MemoryLoop, protocol: Any, peer: Peer) -> None:
        super().__init__({"socket": _Unplugged()})
        self._loop, self._protocol, self._peer = loop, protocol, peer
        self._open = True

    def sendto(self, data: Any, addr: Any = None) -> None:
        if self._open:
            self._loop.call_soon(self._peer.heard, bytes(data))

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._peer.left(self)
            self._loop.call_soon(self._protocol.connection_lost, None)

    def send(self, data: bytes) -> None:
        if self._open:
            self._loop.call_soon(self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        if self._open:
            self._protocol.datagram_received(data, ("", 0))

    def hang_up(self) -> None:
        """Nobody hangs up a datagram."""


class _SerialPort:
    """The port that the driver has opened, and the peer's way back through it."""

    def __init__(self, loop: MemoryLoop, wire: Wire, peer: Peer) -> None:
        self._loop, self._wire, self._peer = loop, wire, peer
        self.way = _Back(loop, wire)

    def send(self, data: bytes) -> None:
        self._loop.call_soon(self._peer.heard, data)

    async def close(self) -> None:
        self._peer.left(self.way)


class _Back:
    def __init__(self, loop: MemoryLoop, wire: Wire) -> None:
        self._loop, self._wire = loop, wire

    def send(self, data: bytes) -> None:
        self._loop.call_soon(self._wire.received, data)

    def hang_up(self) -> None:
        self._loop.call_soon(self._wire.lost, "the port is gone: it was unplugged or hung up")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end on a MemoryLoop."""
    with asyncio.Runner(loop_factory=MemoryLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, MemoryLoop)
        context = copy_context()
        context.run(modbus_channels.open_port.set, loop.open_port)
        return runner.run(main, context=context)
