"""The promises of all drivers, over every line that Modbus runs on: ptys, UDP, RTU over TCP, TLS and a gateway."""

import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import serial
import trustme

from drivers.modbus import DRIVER
from edge_agent.contract import DeviceRefused, DeviceSilent, Driver, Point
from edge_agent.testing import Check, Fault, SkippingClock, driver_checks
from tests import bus, liar, virtual
from tests.bus import Peer, truth
from tests.conftest import free_port
from tests.lines import on_a_pty, on_tcp, on_udp

TIMEOUT_S = 0.15
run = partial(virtual.run, sockets=True)


def raw(function: int, address: int, code: str) -> float:
    """What the registers of unit 1 from `address` hold as a number of this struct code."""
    registers = [truth(1, function, address + at) for at in range(struct.calcsize(code) // 2)]
    return float(struct.unpack(">" + code, b"".join(struct.pack(">H", register) for register in registers))[0])


class TransportPlant:
    """See testing.Plant: a peer of tests/bus.py, reached in one of the ways. Four requests a read, in three tables."""

    driver: Driver = DRIVER
    points: Sequence[Mapping[str, Any]] = (
        {"address": "holding:0", "sentinel": [65535]},
        {"address": "holding:3", "type": "float32"},
        {"address": "holding:900", "type": "int32", "sentinel": [-1]},
        {"address": "40003", "bit": 5, "sentinel": [65535]},
        {"address": "input:10", "type": "float64"},
        {"address": "coil:7"},
    )
    expected: Sequence[float] = (
        raw(3, 0, "H"),
        raw(3, 3, "f"),
        raw(3, 900, "i"),
        float(truth(1, 3, 2) >> 5 & 1),
        raw(4, 10, "d"),
        float(truth(1, 1, 7) & 1),
    )
    faults: Mapping[Fault, tuple[str, ...]]

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        peer.timeout_s, peer.latency, peer.share = TIMEOUT_S, 0.0, 0.0
        self.stack: AsyncExitStack | None = None

    async def start(self) -> None:
        self.stack = AsyncExitStack()
        await self.listen(self.stack)

    async def stop(self) -> None:
        if self.stack is not None:
            stack, self.stack = self.stack, None
            await stack.aclose()

    async def listen(self, stack: AsyncExitStack) -> None:
        raise NotImplementedError

    def connection(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def play(self, fault: Fault) -> None:
        self.peer.names = self.faults[fault]
        self.peer.share = 0.0 if fault is Fault.WELL else 1.0


SERIAL_FAULTS: Mapping[Fault, tuple[str, ...]] = {
    Fault.WELL: (),
    Fault.LATE: ("late by 1.2 timeouts",),
    Fault.SILENT: ("silent",),
    Fault.CUT: ("half an answer",),  # a cable that breaks within each answer
    Fault.REFUSING: ("exception 2",),
    # What comes when nobody waits for it is dropped: it spoils no reading.
    Fault.LYING: tuple(name for name in bus.SERIAL_FAULTS if name != "an answer nobody asked for, later"),
    Fault.BAD_VALUE: ("all ones",),
}


class SerialPlant(TransportPlant):
    """A device on a pty, under a name that stays when it is plugged in again, as /dev/serial/by-id/ does."""

    faults = SERIAL_FAULTS

    def __init__(self, folder: Path, scheme: str, framing: bus.Framing) -> None:
        super().__init__(bus.SerialBus(framing=framing, char_s=10 / 115200))
        self.scheme = scheme
        self.name = folder / "port"

    async def listen(self, stack: AsyncExitStack) -> None:
        self.name.unlink(missing_ok=True)
        self.name.symlink_to(stack.enter_context(on_a_pty(self.peer)))

    def connection(self) -> Mapping[str, Any]:
        url = f"{self.scheme}://{self.name}?baudrate=115200&parity=N&bytesize=8"
        return {"url": url, "timeout": f"{round(TIMEOUT_S * 1000)}ms"}


class NetworkPlant(TransportPlant):
    """A device at a port of loopback."""

    def __init__(
        self, url: str, peer: Peer, faults: Mapping[Fault, tuple[str, ...]], line: Callable[..., Any], **settings: Any
    ) -> None:
        super().__init__(peer)
        self.url, self.faults, self.line, self.settings = url, faults, line, settings
        self.port = free_port()

    async def listen(self, stack: AsyncExitStack) -> None:
        made: AbstractAsyncContextManager[int] = self.line(self.peer, port=self.port)
        await stack.enter_async_context(made)

    def connection(self) -> Mapping[str, Any]:
        keys = {"url": f"{self.url}://127.0.0.1:{self.port}", "timeout": f"{round(TIMEOUT_S * 1000)}ms"}
        return keys | self.settings


DEVICE_FAULTS: Mapping[Fault, tuple[str, ...]] = {
    Fault.WELL: (),
    Fault.LATE: ("late",),
    Fault.SILENT: ("silence",),
    Fault.CUT: ("half an answer, then the end",),
    Fault.REFUSING: ("exception 2",),
    Fault.LYING: tuple(liar.LIES),
    Fault.BAD_VALUE: ("all ones",),
}
GATEWAY_FAULTS: Mapping[Fault, tuple[str, ...]] = {
    Fault.WELL: (),
    Fault.LATE: ("late by 1.2",),
    Fault.SILENT: ("silent",),
    Fault.REFUSING: ("refused",),
    Fault.LYING: ("another unit", "another function", "fewer registers", "more registers", "unknown exception"),
}

AUTHORITY = trustme.CA()


class TlsPlant(NetworkPlant):
    """A device with a certificate; the driver knows who signed it."""

    def __init__(self, folder: Path, authority: trustme.CA = AUTHORITY) -> None:
        path = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(path))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        super().__init__("tls", bus.Device(), DEVICE_FAULTS, partial(on_tcp, tls=context), tls={"ca": str(path)})


PLANTS: dict[str, tuple[Callable[[Path], TransportPlant], frozenset[Fault]]] = {
    "rtu on a pty": (lambda folder: SerialPlant(folder, "rtu", bus.Rtu()), frozenset()),
    "ascii on a pty": (lambda folder: SerialPlant(folder, "ascii", bus.Ascii()), frozenset()),
    "rtu+tcp": (lambda _: NetworkPlant("rtu+tcp", bus.SerialBus(), SERIAL_FAULTS, on_tcp), frozenset()),
    "udp": (lambda _: NetworkPlant("udp", bus.Device(), DEVICE_FAULTS, on_udp), frozenset()),
    "tls": (TlsPlant, frozenset()),
    # A gateway passes on what a device says, as it is, and its own connection is cut as that of any TCP device.
    "gateway": (
        lambda _: NetworkPlant("tcp", bus.Gateway(), GATEWAY_FAULTS, on_tcp, gateway=True),
        frozenset({Fault.BAD_VALUE, Fault.CUT}),
    ),
}


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name, (_, without) in PLANTS.items() for check in driver_checks(without)],
    ids=str,
)
def test_modbus_keeps_the_promises_of_all_drivers_on_every_line(name: str, check: Check, tmp_path: Path) -> None:
    make, _ = PLANTS[name]
    check.run(partial(make, tmp_path), run)


# ------------------------------------------------------------------------------------------------- ports, certificates


async def opened(url: str, **settings: object) -> None:
    point = Point("x", DRIVER.Address.model_validate({"address": "holding:0"}))
    connection = DRIVER.Connection.model_validate({"url": url, "timeout": "200ms", **settings})
    async with DRIVER.open("line", connection, [point], SkippingClock()):
        pass


def test_a_port_that_is_not_there_is_silence() -> None:
    with pytest.raises(DeviceSilent, match="/dev/no-such-port: there is no such port"):
        run(opened("rtu:///dev/no-such-port"))


def test_a_pseudo_terminal_has_no_bits_and_is_opened_whatever_parity_is_asked_for() -> None:
    async def test() -> None:
        with on_a_pty(bus.SerialBus()) as path:  # the kernel refuses it a parity, but not always
            for settings in ("parity=N", "parity=E", "parity=O&stopbits=2"):
                await opened(f"rtu://{path}?{settings}")

    run(test())


def test_a_port_that_another_program_holds_is_silence() -> None:
    async def test() -> None:
        with on_a_pty(bus.SerialBus()) as path:
            with serial.Serial(path, exclusive=True):
                with pytest.raises(DeviceSilent, match="in use by another program"):
                    await opened(f"rtu://{path}?parity=N")

    run(test())


def test_a_certificate_of_a_stranger_is_a_matter_for_a_person(tmp_path: Path) -> None:
    async def test() -> None:
        plant = TlsPlant(tmp_path, trustme.CA())
        await plant.start()
        try:
            keys = dict(plant.connection())
            with pytest.raises(DeviceRefused, match="its certificate is not accepted"):
                await opened(keys.pop("url"), tls=keys["tls"])
        finally:
            await plant.stop()

    run(test())


def test_a_write_would_be_noticed() -> None:
    """What the whole run is held to (tests/conftest.py) can fail: a peer notes what it does not know, too."""

    async def test() -> None:
        before = liar.ASKED.copy()
        write = bytes.fromhex("01 06 00 01 00 03")
        bus.SerialBus(share=0.0).heard(write + bus.crc(write))
        assert (liar.ASKED - before) == {6: 1}
        liar.ASKED[6] -= 1
        del liar.ASKED[6]

    run(test())
