"""Where the bytes go: serial ports, TCP, TLS and UDP, opened here and nowhere else. One door for pyserial.

Rule 1: whatever cannot be opened is a DeviceSilent (or, when a person must act, a DeviceRefused) in words.
Rule 2: a serial port, and an address behind which a serial line stands, is one wire however many connections use it.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import termios
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from random import randrange
from typing import Any

import serial
from serial.rs485 import RS485Settings

from drivers.modbus_frames import Ascii, Mbap, Rtu
from drivers.modbus_line import Counts, Line
from drivers.modbus_settings import ModbusConnection, Place, TlsFiles
from drivers.modbus_wire import Channel, Pace, Wire
from edge_agent.contract import Clock, DeviceRefused, DeviceSilent

KEEPALIVE_S = (10, 5, 3)
"""Idle seconds before the first probe, between probes, and how many: a dead peer is noticed within 25 s."""
USER_TIMEOUT_MIN_MS = 5_000
READ_BYTES = 4096
"""asyncio takes 256 KiB for each read of a stream, which costs more than all else; answers have 260 bytes at most."""
NETWORK_GAP_S = 0.0


async def connect(settings: ModbusConnection, clock: Clock, counts: Counts) -> Line:
    """A TCP or TLS connection that is up. Raises DeviceSilent, or DeviceRefused for certificates."""
    line = Line(clock, settings.timeout, settings.pipeline, counts)
    try:
        await _connect(settings, lambda: line)
    except BaseException:
        await line.close()
        raise
    return line


async def _connect(settings: ModbusConnection, protocol: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseTransport:
    """Connect this protocol to a network address, within the timeout."""
    place, loop = settings.place, asyncio.get_running_loop()
    context = tls_context(settings.tls) if place.scheme == "tls" else None
    try:
        async with asyncio.timeout(settings.timeout / 1e6):
            if place.scheme == "udp":
                transport: Any
                transport, _ = await loop.create_datagram_endpoint(
                    protocol,
                    remote_addr=(place.host, place.port),
                )
                return transport  # type: ignore[no-any-return]
            transport, _ = await loop.create_connection(protocol, place.host, place.port, ssl=context)
    except TimeoutError as error:
        raise DeviceSilent(f"{place} does not take the connection within {settings.timeout / 1e6:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise DeviceRefused(f"{place}: its certificate is not accepted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise DeviceSilent(f"{place}: TLS: {error.reason or error}") from error
    except OSError as error:
        # asyncio puts the address into strerror; the system's own words for the number are the reason.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise DeviceSilent(f"{place}: {reason}") from error
    _harden(transport.get_extra_info("socket"), settings.timeout)
    transport.max_size = READ_BYTES
    return transport  # type: ignore[no-any-return]


def _harden(sock: socket.socket, timeout_us: int) -> None:
    """A peer that died without a word (power, cable) is noticed by the kernel; small requests leave at once."""
    idle_s, interval_s, count = KEEPALIVE_S
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(USER_TIMEOUT_MIN_MS, 3 * timeout_us // 1000))


def tls_context(files: TlsFiles | None) -> ssl.SSLContext:
    """Modbus/TCP Security asks for TLS 1.2 or later and both certificates. The device's is always verified.

    Files are read anew for each connection, so a renewed one is taken over. Raises DeviceRefused.
    """
    files = files or TlsFiles()
    try:
        context = ssl.create_default_context(cafile=files.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.cert is not None:
            with _key_file(files.key) as key:
                context.load_cert_chain(files.cert, key, password="")
    except (OSError, ValueError) as error:
        named = ", ".join(str(path) for path in (files.ca, files.cert) if path is not None)
        raise DeviceRefused(f"certificates {named}: {error}") from error
    return context


@contextlib.contextmanager
def _key_file(key: Any) -> Iterator[str | Path]:
    """OpenSSL reads keys from files only; a secret's text gets one that is in memory alone."""
    if not isinstance(key, str):
        yield key
        return
    number = os.memfd_create("key")
    try:
        os.write(number, key.encode())
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


# ------------------------------------------------------------------------------------------------------------- wires


@dataclass(slots=True, eq=False)
class _Shared:
    """A wire and who uses it. opening: one of them opens it, the others wait."""

    wire: Wire
    place: Place
    users: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


_SHARED: dict[tuple[Any, ...], _Shared] = {}


@asynccontextmanager
async def wire_to(settings: ModbusConnection, clock: Clock) -> AsyncIterator[Wire]:
    """The wire of this connection, open. Raises DeviceSilent or DeviceRefused."""
    place = settings.place
    where = os.path.realpath(place.host) if place.serial else place.host
    _forget()
    key = (asyncio.get_running_loop(), place.serial is not None, where, place.port)
    shared = _SHARED.get(key)
    if shared is None or (not shared.users and shared.place != place):
        shared = _SHARED[key] = _Shared(_wire(settings, clock), place)
    shared.users += 1
    try:
        if shared.place._replace(host="") != place._replace(host=""):
            raise DeviceRefused(
                f"{place} is in use by another connection with other settings ({_spoken(shared.place)})"
            )
        async with shared.opening:
            if not shared.wire.up:
                await shared.wire.close()
                await _open(settings, shared.wire)
        yield shared.wire
    finally:
        shared.users -= 1
        if not shared.users:
            await shared.wire.close()


@asynccontextmanager
async def own_wire(settings: ModbusConnection, clock: Clock) -> AsyncIterator[Wire]:
    """A wire that nobody shares, over a connection of its own: what is owed on others does not come here."""
    wire = _wire(settings, clock)
    try:
        await _open(settings, wire)
        yield wire
    finally:
        await wire.close()


def _forget() -> None:
    """A wire that nobody uses is kept for as long as it owes answers: whoever opens it next must know of them."""
    for key, shared in list(_SHARED.items()):
        if not shared.users and (key[0].is_closed() or not shared.wire.owes()):
            del _SHARED[key]


def _spoken(place: Place) -> str:
    port = place.serial
    if port is None:
        return place.scheme
    return f"{place.scheme}, {port.baudrate} baud, {port.bytesize}{port.parity}{port.stopbits}"


def _wire(settings: ModbusConnection, clock: Clock) -> Wire:
    place = settings.place
    if place.serial is not None:
        framing = Rtu() if place.scheme == "rtu" else Ascii()
        return Wire(framing, Pace(place.serial.char_s, place.serial.gap_s), clock)
    if place.scheme == "rtu+tcp":
        return Wire(Rtu(), Pace(gap_s=NETWORK_GAP_S), clock)
    first = randrange(65536)  # noqa: S311 - where a count begins, no secret
    pace = Pace(datagrams=place.scheme == "udp", breaks=place.scheme != "udp", numbered=True)
    return Wire(Mbap(first, set()), pace, clock)


async def _open(settings: ModbusConnection, wire: Wire) -> None:
    if settings.place.serial is not None:
        wire.opened(open_port.get()(settings.place, wire))
        return
    channel = _NetworkChannel(wire)
    try:
        await _connect(settings, lambda: channel)
    except BaseException:
        await channel.close()
        raise
    wire.opened(channel)


class _NetworkChannel(asyncio.Protocol, asyncio.DatagramProtocol):
    """TCP, TLS or UDP under a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._transport: Any = None
        self._gone: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._gone = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._wire.received(data)

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 (only the connected address is heard)
        self._wire.received(data)

    def error_received(self, exc: Exception) -> None:
        self._wire.lost(os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc))

    def eof_received(self) -> None:
        self._wire.lost("closed by the device")

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.lost(f"connection lost: {exc}" if exc else "closed by the device")
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def send(self, data: bytes) -> None:
        send = getattr(self._transport, "sendto", None) or self._transport.write
        send(data)

    async def close(self) -> None:
        if self._transport is not None and self._gone is not None:
            self._transport.abort()
            await self._gone


@dataclass(slots=True, eq=False)
class _SerialChannel:
    """A serial port, held exclusively, read when the kernel says that there is something."""

    wire: Wire
    port: serial.Serial

    @classmethod
    def open(cls, place: Place, wire: Wire) -> "_SerialChannel":
        """Raises DeviceSilent when the port is not there or in use, DeviceRefused when a person must act."""
        about = place.serial
        assert about is not None
        # A pseudo-terminal has no bits on a line; it refuses a parity, but only when nothing else changes.
        virtual = os.path.realpath(place.host).startswith("/dev/pts/")
        try:
            port = serial.Serial(
                place.host,
                baudrate=about.baudrate,
                bytesize=serial.EIGHTBITS if virtual else about.bytesize,
                parity=serial.PARITY_NONE if virtual else about.parity,
                stopbits=about.stopbits,
                timeout=0,
                write_timeout=0,
                exclusive=True,
            )
            if about.rs485:
                port.rs485_mode = RS485Settings()
            port.reset_input_buffer()
        except termios.error as error:  # no OSError, and pyserial lets it through
            number = error.args[0]
            if number == errno.EINVAL:
                words = f"{about.baudrate} baud, {about.bytesize}{about.parity}{about.stopbits}"
                raise DeviceRefused(f"{place}: the port does not take these settings: {words}") from error
            raise DeviceSilent(f"{place}: {os.strerror(number)}") from error
        except PermissionError as error:
            raise DeviceRefused(f"{place}: {NO_PERMISSION}") from error
        except (serial.SerialException, OSError, ValueError) as error:
            if getattr(error, "errno", None) == errno.EACCES:
                raise DeviceRefused(f"{place}: {NO_PERMISSION}") from error
            raise DeviceSilent(f"{place}: {_serial_words(error)}") from error
        channel = cls(wire, port)
        asyncio.get_running_loop().add_reader(port.fileno(), channel._readable)
        return channel

    def _readable(self) -> None:
        try:
            data = os.read(self.port.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"the port is gone: {os.strerror(error.errno or 0)}")
            return
        if data:
            self.wire.received(data)
        else:
            self._fail("the port is gone: it was unplugged or hung up")

    def send(self, data: bytes) -> None:
        try:
            sent = os.write(self.port.fileno(), data)
        except OSError as error:
            self._fail(f"the port takes nothing: {os.strerror(error.errno or 0)}")
            return
        if sent < len(data):
            self._fail("the port takes nothing: its buffer is full")

    def _fail(self, words: str) -> None:
        asyncio.get_running_loop().remove_reader(self.port.fileno())
        self.wire.lost(words)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.port.fileno())
        with contextlib.suppress(OSError, serial.SerialException):
            self.port.close()


open_port: ContextVar[Callable[[Place, Wire], Channel]] = ContextVar("open_port", default=_SerialChannel.open)
"""What opens a serial port: the kernel's, unless whoever runs the loop brings ports of its own (as it may sockets)."""

NO_PERMISSION = "no permission: the agent's user must be in the group of the port (dialout), and its unit must open it"


def _serial_words(error: Exception) -> str:
    """Sentences of pyserial repeat the system's with their numbers; people need one of them."""
    number = getattr(error, "errno", None)
    text = str(error)
    if "exclusively lock" in text or number == errno.EBUSY:
        return "the port is in use by another program"
    if number == errno.ENOENT:
        return "there is no such port; is the adapter plugged in?"
    if "configure port" in text:
        return "it is no serial port"
    return os.strerror(number) if number else text
