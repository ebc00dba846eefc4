"""Real lines between the driver and a peer of tests/bus.py in one loop: a pty, TCP, TLS and UDP on loopback.

Rule: what a peer sends leaves through the kernel; a pty has no speed of its own, so the peer spaces its characters.
"""

import asyncio
import os
import ssl
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from tests.bus import Peer
from tests.virtual import Traffic


class _Pty:
    """The far end of a serial line."""

    def __init__(self, master: int, peer: Peer, traffic: Traffic | None) -> None:
        self._master, self._peer, self._traffic = master, peer, traffic

    def send(self, data: bytes) -> None:
        sent = os.write(self._master, data)
        assert sent == len(data), "the pty's buffer is full: nobody reads it"
        self._count(sent)

    def hang_up(self) -> None:
        """A serial line has nothing to hang up."""

    def readable(self) -> None:
        data = os.read(self._master, 4096)
        self._count(len(data))
        self._peer.heard(data)

    def _count(self, size: int) -> None:
        if self._traffic is not None:
            self._traffic.moved += size


@contextmanager
def on_a_pty(peer: Peer, traffic: Traffic | None = None) -> Iterator[str]:
    """The path of the port at whose other end this peer stands. It stays when the port is closed."""
    master, slave = os.openpty()
    tty.setraw(master)
    tty.setraw(slave)
    os.set_blocking(master, False)
    loop = asyncio.get_running_loop()
    way = _Pty(master, peer, traffic)
    peer.joined(way)
    loop.add_reader(master, way.readable)
    try:
        yield os.ttyname(slave)
    finally:
        loop.remove_reader(master)
        os.close(master)
        os.close(slave)


class _Stream(asyncio.Protocol):
    """One connection to the peer."""

    def __init__(self, peer: Peer, traffic: Traffic | None) -> None:
        self._peer, self._traffic = peer, traffic
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._peer.joined(self)

    def data_received(self, data: bytes) -> None:
        self._count(len(data))
        self._peer.heard(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.left(self)

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._count(len(data))
            self._transport.write(data)

    def hang_up(self) -> None:
        self._transport.close()

    def _count(self, size: int) -> None:
        if self._traffic is not None:
            self._traffic.moved += size


@asynccontextmanager
async def on_tcp(
    peer: Peer, traffic: Traffic | None = None, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port where this peer listens. At the end every connection is cut."""
    streams: list[_Stream] = []

    def stream() -> _Stream:
        streams.append(_Stream(peer, traffic))
        return streams[-1]

    server = await asyncio.get_running_loop().create_server(stream, "127.0.0.1", port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in streams:
            if each._transport is not None:
                each._transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    """Answers whoever asked last."""

    def __init__(self, peer: Peer, traffic: Traffic | None) -> None:
        self._peer, self._traffic = peer, traffic
        self._transport: Any = None
        self._asker: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if addr != self._asker:
            self._asker = addr
            self._peer.joined(self)
        self._count(len(data))
        self._peer.heard(data)

    def error_received(self, exc: Exception) -> None:
        """Whoever asked listens no more."""

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._count(len(data))
            self._transport.sendto(data, self._asker)

    def hang_up(self) -> None:
        """Nobody hangs up a datagram."""

    def _count(self, size: int) -> None:
        if self._traffic is not None:
            self._traffic.moved += size


@asynccontextmanager
async def on_udp(peer: Peer, traffic: Traffic | None = None, port: int = 0) -> AsyncIterator[int]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Datagrams(peer, traffic), local_addr=("127.0.0.1", port)
    )
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.abort()
