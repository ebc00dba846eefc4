"""What a person may write about a Modbus connection and about a point in it, and what each value means.

Rule: every refusal is a ValueError in words for whoever wrote the file: what was found, what is allowed.
"""

import re
from collections.abc import Collection
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from drivers.modbus_map import KINDS, SPACE, TEXT, TEXT_MAX, WORDS_MAX, Item, Table, words_of
from edge_agent.contract import Duration, WrongKey

PIPELINE_MAX = 16
CONNECTIONS_MAX = 8
SENTINELS_MAX = 16
UNIT_MAX_SERIAL = 247
"""Serial Line, 2.2; 0 is a broadcast, which nobody answers."""
Order = Literal["big", "little"]

Timeout = Annotated[int, Duration("10ms", "15s")]
"""The poller waits for a read 30 s and its period; two timeouts must lie within."""


class Port(NamedTuple):
    """How a serial port is set. Defaults: Protocol over Serial Line V1.02, 2.2 and 2.5.1 (even parity, one stop bit)."""

    baudrate: int = 19_200
    bytesize: int = 8
    parity: str = "E"
    stopbits: int = 1
    rs485: bool = False
    """The driver of the port turns the direction by RTS (TIOCSRS485); most adapters do it by themselves."""

    @property
    def char_s(self) -> float:
        """One character on the wire: start bit, data, parity, stop bits."""
        return (1 + self.bytesize + (self.parity != "N") + self.stopbits) / self.baudrate

    @property
    def gap_s(self) -> float:
        """Silence between two frames: 3.5 characters, above 19,200 baud 1.75 ms (Serial Line, 2.5.1.1)."""
        return 3.5 * self.char_s if self.baudrate <= 19_200 else 0.00175


class Place(NamedTuple):
    """Where a connection leads. host: of a serial port the path of its device; port: 0 there."""

    scheme: str
    host: str
    port: int = 0
    serial: Port | None = None

    @property
    def noisy(self) -> bool:
        """A broken answer is an accident of the line there; over TCP it is the device's own."""
        return self.scheme not in ("tcp", "tls")

    def __str__(self) -> str:
        if self.serial is not None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


PORTS = {"tcp": 502, "tls": 802, "udp": 502, "rtu+tcp": 502}
"""Schemes that lead over a network, with the port that is meant when none is written."""
SERIAL = ("rtu", "ascii")
FORMS = (
    "tcp://HOST[:502], tls://HOST[:802], udp://HOST[:502], rtu+tcp://HOST:PORT, "
    "rtu:///dev/serial/by-id/NAME?baudrate=19200&parity=E&stopbits=1 or ascii:///dev/…"
)
BAUDRATES = range(50, 4_000_001)


def place(url: str) -> Place:
    """Where a URL leads. Raises ValueError, in words, for anything that is none of FORMS."""
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in (*PORTS, *SERIAL) or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is no Modbus address; write {FORMS}")
    parts = urlsplit(url)
    if scheme in SERIAL:
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/" or parts.fragment:
            raise ValueError(f"{url!r} names no serial port; write {scheme}:///dev/serial/by-id/NAME?baudrate=19200")
        return Place(scheme, parts.path, 0, _serial(scheme, parts.query))
    try:
        port = PORTS[scheme] if parts.port is None else parts.port
    except ValueError:
        raise ValueError(f"the port in {url!r} is no number from 1 to 65535") from None
    if not parts.hostname or port == 0 or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r} is no Modbus address; write {scheme}://HOST:PORT, nothing else")
    return Place(scheme, parts.hostname, port)


def _serial(scheme: str, query: str) -> Port:
    words: dict[str, dict[str, Any]] = {
        "parity": {"N": "N", "E": "E", "O": "O"},
        "stopbits": {"1": 1, "2": 2},
        "bytesize": {"7": 7, "8": 8},
        "rs485": {"1": True, "0": False},
    }
    found: dict[str, Any] = {"bytesize": 7 if scheme == "ascii" else 8}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "baudrate":
            if not value.isascii() or not value.isdigit() or int(value[:9]) not in BAUDRATES or len(value) > 7:
                raise ValueError(f"baudrate={value} is no rate from {BAUDRATES[0]} to {BAUDRATES[-1]}")
            found[key] = int(value)
        elif key in words:
            if value.upper() not in words[key]:
                raise ValueError(f"{key}={value} is not one of {', '.join(map(str, words[key]))}")
            found[key] = words[key][value.upper()]
        else:
            raise ValueError(f"{key!r} is no setting of a serial port; known are baudrate, {', '.join(words)}")
    if scheme == "rtu" and found["bytesize"] != 8:
        raise ValueError("rtu is binary: bytesize is 8")
    return Port(**found)


def _checked_url(url: str) -> str:
    place(url)
    return url


class SecretRef(BaseModel):
    """The name of a secret; the agent puts its text in its place (`model_copy`, unvalidated) before `open`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    secret: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")


class TlsFiles(BaseModel):
    """Certificates of a tls:// connection. Paths are relative to the configuration's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path | None = Field(default=None, description="file of the authorities to trust; default: those of the system")
    cert: Path | None = Field(default=None, description="file of the agent's own certificate")
    key: SecretRef | Path | None = Field(default=None, description="{secret: NAME}, or a file")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise WrongKey("cert" if self.key is None else "key", "cert and key belong together")
        return self


class ModbusConnection(BaseModel):
    """The keys of `connections.<name>` with `driver: modbus`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_checked_url)] = Field(
        description=FORMS,
        examples=["tcp://192.0.2.10:502", "rtu:///dev/serial/by-id/usb-FTDI?baudrate=19200&parity=E"],
    )
    unit: int = Field(1, ge=0, le=255, strict=True, description="Modbus unit of points that name none")
    timeout: Timeout = Field(
        1_000_000,
        description="how long a device may take to answer; on serial lines the time of the bytes themselves comes on top",
    )
    word_order: Order = Field("big", description="big: the most significant register comes first")
    byte_order: Order = Field("big", description="of the two bytes in a register; the protocol says big")
    max_gap: int = Field(
        16, ge=0, le=WORDS_MAX - 1, strict=True, description="registers read for nothing to join two blocks; 0 = never"
    )
    max_block: int = Field(
        WORDS_MAX, ge=1, le=WORDS_MAX, strict=True, description="registers in a request (16 bits each for coils)"
    )
    pipeline: int = Field(
        1, ge=1, le=PIPELINE_MAX, strict=True, description="requests in flight at once; most devices allow one"
    )
    connections: int = Field(
        1,
        ge=1,
        le=CONNECTIONS_MAX,
        strict=True,
        description="TCP connections that share the work, where a device allows it",
    )
    gateway: bool | None = Field(
        None,
        strict=True,
        description="serial units stand behind this address: one request at a time, and late answers are guarded "
        "against; default: when signals name more than one unit",
    )
    tls: TlsFiles | None = Field(None, description="certificates for tls://")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        scheme = self.place.scheme
        for key, least in (("pipeline", 1), ("connections", 1)):
            if getattr(self, key) > least and scheme not in ("tcp", "tls"):
                raise WrongKey(key, f"a {scheme}:// line takes one request at a time: {key} is 1")
            if getattr(self, key) > least and self.gateway:
                raise WrongKey(key, f"a gateway's serial line takes one request at a time: {key} is 1")
        if self.gateway is not None and scheme not in ("tcp", "tls", "udp"):
            raise WrongKey("gateway", f"{scheme}:// is a serial line by itself")
        if self.tls is not None and scheme != "tls":
            raise WrongKey("tls", "certificates have no effect without a url that begins with tls://")
        if self.place.serial is not None and not 1 <= self.unit <= UNIT_MAX_SERIAL:
            raise WrongKey("unit", f"units of a serial line are numbered from 1 to {UNIT_MAX_SERIAL}")
        return self

    @property
    def place(self) -> Place:
        return place(self.url)

    def part(self, address: "ModbusAddress") -> str:
        """See contract.part_of: the unit."""
        return f"unit_{self.unit if address.unit is None else address.unit}"

    def one_at_a_time(self, units: Collection[int]) -> bool:
        """Whether a serial line stands behind it, or answers may be lost or doubled on the way (UDP)."""
        if self.place.scheme not in ("tcp", "tls"):
            return True
        if self.gateway is None:
            return len(units) > 1 and self.pipeline == self.connections == 1
        return self.gateway


_TABLES = {"holding": Table.HOLDING, "input": Table.INPUT, "coil": Table.COIL, "discrete": Table.DISCRETE}
_MODICON = {"0": Table.COIL, "1": Table.DISCRETE, "3": Table.INPUT, "4": Table.HOLDING}
_NAMED = re.compile(r"(holding|input|coil|discrete):([0-9]{1,5})")


def located(address: str) -> tuple[Table, int]:
    """The table and 0-based address of `holding:100` or, in Modicon's 1-based notation, `40101` or `400101`."""
    if match := _NAMED.fullmatch(address):
        table, start = _TABLES[match[1]], int(match[2])
        if start >= SPACE:
            raise ValueError(f"{address}: addresses go from 0 to {SPACE - 1}")
        return table, start
    if address.isascii() and address.isdigit() and len(address) in (5, 6) and address[0] in _MODICON:
        number, last = int(address[1:]), 9999 if len(address) == 5 else SPACE
        if not 1 <= number <= last:
            raise ValueError(f"{address}: in this notation registers are numbered from 1 to {last}")
        return _MODICON[address[0]], number - 1
    raise ValueError(
        f"{address!r} is no Modbus address; write holding:100, input:0, coil:5, discrete:5 (counted from 0), or 40101"
    )


def _address_text(value: Any) -> Any:
    """A register number that somebody left unquoted is what it looks like, unless YAML ate its leading zero."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000 else value


def _checked_address(address: str) -> str:
    located(address)
    return address


def _checked_type(name: str | None) -> str | None:
    if name is None or name in KINDS:
        return name
    if match := re.fullmatch(r"string:([0-9]{1,4})", name):
        if not 1 <= int(match[1]) <= TEXT_MAX:
            raise ValueError(f"{name}: a text has 1 to {TEXT_MAX} characters, two in each register")
        return name
    raise ValueError(f"{name!r} is no type; allowed are {', '.join(KINDS)}, string:N")


def _raw_number(sentinel: float, type_name: str) -> int | float:
    """The sentinel as a number of that type; for signed types also written as its bits (65535 for -1)."""
    dtype = np.dtype(KINDS[type_name].code)
    if type_name.startswith("bcd"):
        most = 10 ** (4 * KINDS[type_name].words) - 1
        if not 0 <= sentinel <= most:
            raise ValueError(f"sentinel {sentinel} cannot come from a {type_name}: 0 … {most}")
        return sentinel
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            fits = isfinite(sentinel) and np.isfinite(np.float64(sentinel).astype(dtype))
        if not fits:
            raise ValueError(f"sentinel {sentinel} cannot come from a {type_name} (NaN and infinities are always bad)")
        return float(sentinel)
    info = np.iinfo(dtype)
    if not isfinite(sentinel) or sentinel != int(sentinel):
        raise ValueError(f"sentinel {sentinel} cannot come from a {type_name}: it holds whole numbers")
    number = int(sentinel)
    if dtype.kind == "i" and int(info.max) < number < 2**info.bits:
        number -= 2**info.bits
    if not int(info.min) <= number <= int(info.max):
        raise ValueError(f"sentinel {sentinel} cannot come from a {type_name}: {info.min} … {info.max}")
    return number


class ModbusAddress(BaseModel):
    """The keys of a signal that say where its value stands in a Modbus device.

    `unit`, `word_order` and `byte_order` that are left out are those of the connection.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, BeforeValidator(_address_text), AfterValidator(_checked_address)] = Field(
        description="holding:100, input:0, coil:5 or discrete:5, counted from 0; or 40101, counted from 1"
    )
    type: Annotated[
        str | None,
        AfterValidator(_checked_type),
        WithJsonSchema({"anyOf": [{"enum": list(KINDS)}, {"pattern": "^string:[0-9]+$"}, {"type": "null"}]}),
    ] = Field(
        None,
        description="uint16 for registers and bool for coils when left out; string:N, N characters, is shown and not judged",
    )
    byte: Literal["high", "low"] | None = Field(
        None, description="of the register, for int8 and uint8; low when left out"
    )
    bit: int | None = Field(None, ge=0, le=15, strict=True, description="of a register; 0 is the least significant")
    sentinel: tuple[Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)], ...] = Field(
        (), max_length=SENTINELS_MAX, description='raw values that mean "no value"'
    )
    unit: int | None = Field(None, ge=0, le=255, strict=True)
    word_order: Order | None = None
    byte_order: Order | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        table, start = located(self.address)
        if table < Table.HOLDING:
            if self.type not in (None, "bool"):
                raise WrongKey("type", f"{self.address} is a single bit: its type is bool, not {self.type}")
            if self.byte is not None:
                raise WrongKey("byte", f"{self.address} is a single bit: byte stands only at a register")
            if self.bit is not None:
                raise WrongKey("bit", f"{self.address} is a single bit: bit stands only at a register")
            if self.sentinel:
                raise WrongKey("sentinel", f"{self.address} is a single bit: it has no value to spare for a sentinel")
            return self
        if self.attribute and (self.bit is not None or self.sentinel):
            key = "bit" if self.bit is not None else "sentinel"
            raise WrongKey(key, f"{key} has no meaning for a text")
        if self.byte is not None and self.kind not in ("int8", "uint8"):
            raise WrongKey("byte", f"byte stands only at int8 and uint8, not at {self.kind}")
        if self.bit is not None and self.kind not in ("uint16", "int16", "bool"):
            raise WrongKey("bit", f"bit stands only at a 16-bit register (uint16, int16 or bool), not at {self.kind}")
        if start + words_of(self.kind) > SPACE:
            raise ValueError(f"{self.address} as {self.kind} reaches beyond the last register, {SPACE - 1}")
        for sentinel in self.sentinel:
            try:
                _raw_number(sentinel, self.raw_kind)
            except ValueError as error:
                raise WrongKey("sentinel", str(error)) from None
        return self

    @property
    def kind(self) -> str:
        """The type, default filled in."""
        return self.type or ("uint16" if located(self.address)[0] >= Table.HOLDING else "bool")

    @property
    def attribute(self) -> bool:
        """See contract.is_attribute."""
        return self.kind.startswith(TEXT)

    @property
    def raw_kind(self) -> str:
        """The type of the raw number that sentinels are compared with: a register's when only a bit of it is meant."""
        return "uint16" if self.bit is not None or self.kind == "bool" else self.kind

    def item(self, connection: ModbusConnection) -> Item:
        """Where and how to read, with what the point leaves to its connection."""
        table, start = located(self.address)
        return Item(
            unit=connection.unit if self.unit is None else self.unit,
            table=table,
            start=start,
            type=self.kind,
            bit=self.bit,
            word_order=self.word_order or connection.word_order,
            byte_order=self.byte_order or connection.byte_order,
            half=self.byte or "low",
            sentinels=tuple(_raw_number(sentinel, self.raw_kind) for sentinel in self.sentinel),
        )
