"""What a person may write about a Modbus connection and about a point in it, and what each value means.

Rule: every refusal is a ValueError in words for whoever wrote the file: what was found, what is allowed.
"""

import re
from decimal import Decimal
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from drivers.modbus_map import KINDS, SPACE, WORDS_MAX, Item, Table
from edge_agent.contract import WrongKey

PORT = 502
TIMEOUT_MIN_US, TIMEOUT_MAX_US = 10_000, 60_000_000
PIPELINE_MAX = 16
SENTINELS_MAX = 16
LATER_SCHEMES = ("tls", "udp", "rtu", "rtu+tcp", "ascii")
Order = Literal["big", "little"]

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|min|h|d)")


def duration_us(text: Any) -> int:
    """`250ms`, `1s`, `1.5s` as whole microseconds; a bare number has no unit and is refused."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no duration; write a number with ms, s, min, h or d, such as 500ms or 1s")
    exact = Decimal(match[1]) * _UNITS_US[match[2]]
    if exact != int(exact) or int(exact) % 1000:
        raise ValueError(f"{text} is finer than a millisecond")
    return int(exact)


def _timeout_us(text: Any) -> int:
    value = duration_us(text)
    if not TIMEOUT_MIN_US <= value <= TIMEOUT_MAX_US:
        raise ValueError(f"{text} is outside 10ms … 60s")
    return value


def _duration_text(value_us: int) -> str:
    return f"{value_us // 1000}ms" if value_us % 1_000_000 else f"{value_us // 1_000_000}s"


class Place(NamedTuple):
    """Where a connection leads."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place(url: str) -> Place:
    """The host and port of a `tcp://host[:port]` URL. Raises ValueError for anything else."""
    scheme = url.partition("://")[0].lower()
    if "://" in url and scheme in LATER_SCHEMES:
        raise ValueError(f"{scheme}:// is not available yet; tcp:// is")
    if "://" not in url or scheme != "tcp" or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} is no Modbus address; write tcp://host or tcp://host:port")
    parts = urlsplit(url)
    try:
        port = PORT if parts.port is None else parts.port
    except ValueError:
        raise ValueError(f"the port in {url!r} is no number from 1 to 65535") from None
    if not parts.hostname or port == 0 or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r} is no Modbus address; write tcp://host or tcp://host:port, nothing else")
    return Place(parts.hostname, port)


def _checked_url(url: str) -> str:
    place(url)
    return url


class ModbusConnection(BaseModel):
    """The keys of `connections.<name>` with `driver: modbus`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_checked_url)] = Field(
        description="tcp://host or tcp://host:port", examples=["tcp://192.0.2.10:502"]
    )
    unit: int = Field(1, ge=0, le=255, strict=True, description="Modbus unit of points that name none")
    timeout: Annotated[
        int,
        BeforeValidator(_timeout_us),
        PlainSerializer(_duration_text, return_type=str),
        WithJsonSchema({"type": "string", "examples": ["500ms", "1s"]}),
    ] = Field(1_000_000, description="how long one answer may take (µs inside)")
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

    @property
    def place(self) -> Place:
        return place(self.url)


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
    if re.fullmatch(r"string:\d+", name):
        raise ValueError(f"{name} is not available yet")
    raise ValueError(f"{name!r} is no type; allowed are {', '.join(KINDS)}")


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
        WithJsonSchema({"anyOf": [{"enum": list(KINDS)}, {"type": "null"}]}),
    ] = Field(None, description="uint16 for registers and bool for coils when left out")
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
            if self.bit is not None:
                raise WrongKey("bit", f"{self.address} is a single bit: bit stands only at a register")
            if self.sentinel:
                raise WrongKey("sentinel", f"{self.address} is a single bit: it has no value to spare for a sentinel")
            return self
        kind = KINDS[self.kind]
        if self.bit is not None and self.kind not in ("uint16", "int16", "bool"):
            raise WrongKey("bit", f"bit stands only at a 16-bit register (uint16, int16 or bool), not at {self.kind}")
        if start + kind.words > SPACE:
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
            sentinels=tuple(_raw_number(sentinel, self.raw_kind) for sentinel in self.sentinel),
        )
