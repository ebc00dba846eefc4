"""The nouns and promises that a driver or a detector may import, and nothing else of the agent.

Rule 1: a reading is a value, a time and a quality; a bad reading is NaN with its reason, never a number.
Rule 2: all times are int64 microseconds; `t` is the agent's own clock, `ts` is UTC for people.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

Scalar = TypeVar("Scalar", bound=np.generic)
Columns = slice | npt.NDArray[np.intp]
"""Some columns of an array."""

SECOND_US = 1_000_000
CODE_MASK = 0x0F
"""The low four bits of a quality are the contract's code (also in Parquet); bit 4 says that it may be judged."""
VOUCHED = 0x10
LINE_LOST = 0x20
"""Set beside a BAD code by the poller: the line, or the unit behind it, is lost. That is one warning of its own, in which
this signal is counted; it raises no `stale` (contract §6, the agent's own warnings)."""
ENDING = 16
"""A value of the agent's own machine says why: below this, why a line is lost (a code of Quality); from here on, how soon a
certificate ends: ENDING × the step (1: within 60 days, 2: 30, 3: 7, 4: it has expired) + whose it is; of the disk and the
clock: ENDING × 1 for severity warning, × 3 for severity alarm, + which of their faults it is. 0: all is well."""


class Quality(IntEnum):
    """Trust in one value. `q & CODE_MASK` is the code that leaves the agent."""

    GOOD = 0
    HOLD = 1
    """Nothing new and nobody vouches for it: the last reading stands, with its quality."""
    UNCERTAIN = 2
    TIMEOUT = 3
    DISCONNECTED = 4
    REFUSED = 5
    DEVICE_FAILURE = 6
    SENSOR_FAILURE = 7
    OUT_OF_RANGE = 8
    NOT_A_NUMBER = 9
    PROTOCOL = 10
    PRECISION = 11
    MISSING = 12
    RESTART = 13
    OTHER = 14
    CONFIRMED = HOLD | VOUCHED
    """A HOLD that the driver vouches for (an OPC UA keep-alive): the value is known to be unchanged."""
    CLOCK = UNCERTAIN | VOUCHED
    """UNCERTAIN because the source's clock is not sane; judged like GOOD."""
    FADED = MISSING | VOUCHED
    """A HOLD that the judge found too old to stand: `missing` for people, HOLD when it is judged again."""


REASONS = {code: code.name.lower() for code in Quality} | {Quality.FADED: "missing"}
"""The words of the contract for each quality (`timeout`, `disconnected`, …; `clock` for CLOCK)."""


class DeviceSilent(Exception):
    """The device or the line to it does not answer: try again.

    quality: of its readings until it is heard again: DISCONNECTED, or TIMEOUT where the line stands and nothing comes.
    """

    def __init__(self, text: str, quality: Quality = Quality.DISCONNECTED) -> None:
        super().__init__(text)
        self.quality = quality


class DeviceRefused(Exception):
    """The device answers that it will not: a person must mend the map or the credentials."""


class WrongKey(ValueError):
    """What a settings model's validator raises when several keys do not fit together: `key` is the one to point at."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


UNITS_US = {"ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
DURATION = r"[0-9]{1,9}(\.[0-9]{1,6})?(ms|s|min|h|d)"


@lru_cache(1_000)
def duration_us(text: str) -> int:
    """`250ms`, `10s`, `5min`, `2h`, `7d` → µs. Raises ValueError when it is none."""
    if not re.fullmatch(DURATION, text):
        raise ValueError(text)
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return round(float(number) * UNITS_US[text[len(number) :]])


def duration_text(value_us: int) -> str:
    """The same length of time in the largest unit that needs no fraction; what `duration_us` reads again."""
    unit = next(unit for unit in ("d", "h", "min", "s", "ms") if value_us % UNITS_US[unit] == 0 or unit == "ms")
    return f"{value_us / UNITS_US[unit]:.15g}{unit}"


@dataclass(frozen=True, slots=True)
class Duration:
    """A setting that is a length of time: `max_age: Annotated[int, Duration("1h", "365d")] = duration_us("10d")`.

    Written like 250ms, 10s, 5min, 2h or 7d, from low to high; int µs inside, a text again when the settings are dumped.
    """

    low: str
    high: str

    def _checked(self, value: Any) -> int:
        form = f"{self.low} to {self.high}, written like 250ms, 10s, 5min, 2h or 7d"
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise _refused("a duration needs its unit", form)
        if not isinstance(value, str) or not re.fullmatch(DURATION, value):
            raise _refused("is no duration", form)
        found = duration_us(value)
        if not duration_us(self.low) <= found <= duration_us(self.high):
            raise _refused("the duration is out of range", form)
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(
            duration_text, return_schema=core_schema.str_schema()
        )
        return core_schema.no_info_before_validator_function(self._checked, handler(source), serialization=written)

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{DURATION}$", "examples": ["250ms", "10s", "5min"]}


def _refused(text: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{text}", {"text": text, "allowed": allowed})


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows of one machine, cut anywhere along time.

    t, ts: (rows,) int64 µs, the agent's own clock (never decreasing) and UTC.
    values: (rows, signals) float64, engineering units; NaN where the quality is bad or HOLD of nothing.
    quality: (rows, signals) uint8, see Quality. Columns: every signal of the machine, in the order of the configuration;
    formula columns are HOLD until the judge fills them.
    at: (rows, signals) int64 UTC µs of each value, or None when no fresh value is more than 1 s from its row's ts.
    tick: True when no device spoke (rows that only let time pass).
    words: (rows, signals) why, beside the values of the agent's own machine; None elsewhere.
    late: True when it came too late to be judged (a server's history): kept and published, and nothing more.
    unset: the number of the span in which nobody had set the host's clock (records.Span), so that ts and at are its own
    guess; 0: the clock was set.
    """

    machine: str
    t: Ints
    ts: Ints
    values: Floats
    quality: Codes
    at: Ints | None = None
    tick: bool = False
    words: tuple[tuple[str, ...], ...] | None = None
    late: bool = False
    unset: int = 0


@dataclass(frozen=True, slots=True)
class Readings:
    """What one `Session.read` brought: one entry for each point asked for, in the order of `due`.

    values: (due,) float64, raw device values before scale and offset, NaN where bad. quality: (due,) uint8.
    ts: (due,) int64 UTC µs, when each answer was complete or the source's own stamp.
    A driver that pushes may have several values of a point since the last read. Then all three are (rows, due), oldest
    row first, HOLD where a point had nothing in that row, and the last row is how things stand now.
    t: (rows,) monotonic µs of when each row came, not decreasing; None: now.
    """

    values: Floats
    quality: Codes
    ts: Ints
    t: Ints | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One signal as its driver sees it: `settings` is an instance of the driver's `Address` model.

    every_us: how often it is read; 0: nobody said.
    """

    name: str
    settings: Any
    every_us: int = 0


@dataclass(frozen=True, slots=True)
class Band:
    """The norm band of one severity, in the signal's unit: low and high are ∓inf where there is no limit, deadband is
    absolute, the delays are µs.
    """

    low: float
    high: float
    deadband: float
    on_us: int
    off_us: int


@dataclass(frozen=True, slots=True)
class Column:
    """The norm of one signal in one operating state, as a detector compiles it.

    every_us: how often it is read. level: of kinds that have no limits of their own (1: severity warning, 2: alarm).
    stale_us: the time without a good reading after which it is stale. health_us: of a line, how long it must be lost, -1:
    the column is no line. settings: an instance of the detector's `Settings`; None where the norm does not ask for it.
    """

    every_us: int
    warning: Band
    alarm: Band
    level: int
    stale_us: int
    health_us: int = -1
    settings: Any = None


@dataclass(frozen=True, slots=True)
class Block:
    """What a detector sees: rows × columns of one or many machines, HOLD already filled with the held reading.

    columns: where these columns lie in the plant's arrays (a slice, or an index array).
    values: (rows, columns) float64, NaN where not known. known: bool, may be judged (good now, or a good one held).
    good: bool, this very row brings or confirms a good reading; fresh: it brings a new one: what statistics are made of.
    late: bool, the last good one lies `stale` or more back, not counting the time in which the line was lost.
    seen_ts: (rows, columns) int64 UTC µs of the last good reading up to each row (of the start when there was none).
    step_us: (rows, columns) int64, time since the machine's last row. ts: (rows, columns) int64 UTC µs.
    armed: bool, False while an operating state settles: nothing may be raised.
    entered: (columns,) bool, the machine has come into another operating state with the first of these rows; all rows of
    a block are in one state.
    step_us, ts and armed broadcast against values: (rows, 1) and (1, columns) are legal.
    """

    columns: Columns
    values: Floats
    known: Bools
    good: Bools
    fresh: Bools
    late: Bools
    seen_ts: Ints
    step_us: Ints
    ts: Ints
    armed: Bools
    entered: Bools

    def chosen(self, wanted: Bools) -> tuple[Columns, Columns]:
        """Those of the block's columns that are wanted, (columns,) bool: their places in it, and in the plant's arrays.

        Slices when all are, so that what is taken with them is no copy and what is written to them needs no way back.
        """
        if wanted.all():
            return slice(None), self.columns
        places = np.flatnonzero(wanted)
        return places, self.plant_columns(places)

    def plant_columns(self, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Where these of the block's columns lie in the plant's arrays."""
        return within(self.columns, chosen)


def within(columns: Columns, places: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The columns at these places of a choice of columns."""
    return places + int(columns.start or 0) if isinstance(columns, slice) else columns[places]


def row_of(array: npt.NDArray[Scalar], row: int, chosen: Columns) -> npt.NDArray[Scalar]:
    """One row of an array of a Block that may be broadcast (`step_us`, `ts`, `armed`), for the chosen columns; one entry where
    it holds for all of them.
    """
    line: npt.NDArray[Scalar] = array[row if array.shape[0] > 1 else 0]
    return line[chosen] if line.size > 1 else line


@dataclass(frozen=True, slots=True)
class Change:
    """A deviation that began, ended or changed its level. column: in the plant's arrays; level: 0 none, 1 warning, 2 alarm.

    since: UTC µs of the first reading of the deviation, kept through its life. again: it stands as it did, and is told once
    more (a re-alarm of ISA-18.2). limit: what was passed, of kinds whose limit does not stand in the norm band. why: the
    numbers of the detector by their names, for people who ask; durations end in `_s`.
    """

    row: int
    column: int
    kind: str
    level: int
    since: int
    again: bool = False
    limit: float | None = None
    why: tuple[tuple[str, float], ...] = ()


class Detector(Protocol):
    """A rule that finds deviations. Registered as an entry point `edge_agent.detectors`; its name is the key in `norm`
    under which its settings stand.

    Norms in force and state are dataclasses of arrays whose last axis is the plant's columns. `step` changes the state in
    place and must give equal changes however the rows are cut into blocks and the columns into stacks (law 3).
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of deviations that it finds, each found by no other detector."""
        ...

    @property
    def Settings(self) -> type[BaseModel] | None:  # noqa: N802 - a class
        """What stands under its key; `true` there is all defaults, and a bare value its `short`, where it names a key.

        None: it has no key, and looks at every column.
        """
        ...

    def norms(self, columns: Sequence[Column]) -> Any:
        """What `step` needs to know of these columns, compiled."""
        ...

    def start(self, columns: int) -> Any:
        """A state in which nothing is pending and nothing is raised."""
        ...

    def step(self, state: Any, norms: Any, block: Block) -> list[Change]:
        """Judge a block: what began, ended or changed its level, in row order. norms: of all of the plant's columns."""
        ...


@runtime_checkable
class Checks(Protocol):
    """What a detector may promise besides: to refuse settings that make no sense beside the rest of the norm."""

    def check(self, column: Column) -> None:
        """Raises WrongKey: the key of its settings to point at, and what is wrong with it."""
        ...


class Clock(Protocol):
    """Time is a value: drivers take it from here, never from the operating system."""

    def monotonic_us(self) -> int:
        """Never steps; only differences mean anything."""
        ...

    def wall_us(self) -> int:
        """UTC; may step at any moment."""
        ...


class Session(Protocol):
    """An open line to a device. One task owns it and awaits one call at a time."""

    async def read(self, due: Ints) -> Readings:
        """Read the points with these indices (ascending; into the `points` that `open` was given), once.

        The caller bounds it with a timeout and may cancel it; a cancelled session is closed and never used again.
        A failure of single points (a unit, a register) is a BAD quality of those; raises DeviceSilent when the whole line
        is down and DeviceRefused when a person must act. A driver that pushes (subscriptions) answers here with HOLD or
        CONFIRMED for points without news.
        """
        ...

    def use(self, points: Sequence[Point]) -> None:
        """Read these points from now on, over the line that is open; called between two reads only.

        What was learned of a point that stays (refusals, silences) is kept.
        """
        ...

    def explain(self, point: int) -> str:
        """In words for a person why the last reading of this point was not good, as exactly as it is known; else ''.

        Such as `unit 3, holding 100: exception 2 (illegal data address)` or `BadNodeIdUnknown`.
        """
        ...

    def counters(self) -> dict[str, int | float]:
        """Requests, timeouts and whatever else the health topic should show; cheap.

        LINE_BUSY among them, when others may use the same physical line, is no counter of its own: it becomes `utilisation`.
        """
        ...


LINE_BUSY = "line_busy_us"
"""A session's counter: how long (µs) its physical line has been in use, by all of its users together."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one read takes of its line when all answer: how many requests, and for how long (µs) it is in use for them."""

    requests: int
    busy_us: int


class LineCost(Protocol):
    """What reads take of a line, known beforehand."""

    @property
    def line(self) -> Hashable:
        """Equal for all connections that share one physical line; None: it is this connection's own."""
        ...

    @property
    def words(self) -> str:
        """What the line is taken to be, for people: `at 9600 baud`."""
        ...

    @property
    def one_at_a_time(self) -> bool:
        """Whether only one request is under way at a time, so that the line itself is what may be too slow."""
        ...

    def need(self, due: Ints) -> Need:
        """Of one read of the points with these indices (ascending, one or more)."""
        ...

    def faster(self) -> "Iterable[LineCost]":
        """The same line with the higher speeds that it may be set to, the lowest first."""
        ...


@runtime_checkable
class Foresees(Protocol):
    """What a driver may promise besides: to say what reading will take of its line, before anything is connected."""

    def foresee(self, connection: Any, points: Sequence[Point]) -> LineCost | None:
        """Of these points over this connection; None when nothing can be said."""
        ...


@runtime_checkable
class Idles(Protocol):
    """What a session may promise besides: to use the time between two reads."""

    async def idle(self, until_us: int) -> int:
        """Do what no reading waits for (ask a unit that is silent whether it is back), and return before `until_us`.

        until_us: monotonic µs, when the next read is due. Called after each read, and again at the time that it returns
        (monotonic µs; `until_us` or later: not before the next read). Errors as those of `read`.
        """
        ...


@runtime_checkable
class Describes(Protocol):
    """What a session may promise besides: to read texts (a serial number, a firmware), which are shown and never judged.

    The driver's `Address` models say by a true `attribute` which signals are such texts.
    """

    async def describe(self, points: Sequence[Point]) -> list[str | None]:
        """Read these texts; None for one that could not be had. Called now and then between reads. Errors as of `read`."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """What a session may promise besides: to take what it learned of its devices into its next life."""

    def recall(self, notes: bytes) -> None:
        """Take up the notes of an earlier session of this connection; called before the first read.

        They come from the disk: notes that make no sense are left aside.
        """
        ...

    def notes(self) -> bytes | None:
        """What a later session should know; None when there is nothing new. Cheap; called after each read."""
        ...


@runtime_checkable
class Belated(Protocol):
    """What a session may promise besides: to bring readings of the past that come too late to be judged."""

    def belated(self) -> tuple[Ints, Readings] | None:
        """Points, and rows of their readings with `t`; None when there are none. Asked after each `idle`."""
        ...


@runtime_checkable
class Homes(Protocol):
    """What a driver may promise besides: to keep files of its own (certificates, trust lists) in the agent's data folder."""

    def at_home(self, connection: Any, data_dir: str) -> Any:
        """The same connection settings, which keep their files below this folder. Touches no file yet."""
        ...


WHOSE = ("own", "server", "issuer", "user")


@dataclass(frozen=True, slots=True)
class Expiry:
    """A certificate that a connection rests on. name: for people, without control characters; whose: one of WHOSE.

    until_us: UTC, when it ends; 0: that is not known yet.
    """

    name: str
    whose: str
    until_us: int


@runtime_checkable
class Certified(Protocol):
    """What a driver may promise besides: to say when the certificates end that a connection rests on.

    Its `Connection` model says by a true `certified` which connections rest on any.
    """

    def expiries(self, connection: Any) -> Sequence[Expiry]:
        """Of this connection, as they lie there now and as the server showed its own last. It reads files: called in a
        thread, at start, hourly, after a reload, and when a connection comes or goes. Raises OSError and ValueError.
        """
        ...


def is_certified(settings: Any) -> bool:
    """Whether a driver's `Connection` model means one that rests on certificates."""
    return bool(getattr(settings, "certified", False))


def is_attribute(settings: Any) -> bool:
    """Whether a driver's `Address` model means a text for people instead of a value."""
    return bool(getattr(settings, "attribute", False))


def part_of(connection: Any, address: Any) -> str:
    """The part of a line (a Modbus unit) behind which a signal lies, which may be lost while the line stands.

    A driver's `Connection` model says so by a method `part(address) -> str`; '' when its lines have no parts. The name
    `certificate` is taken.
    """
    part = getattr(connection, "part", None)
    return str(part(address)) if callable(part) else ""


class Driver(Protocol):
    """A kind of connection: two settings models and a way to open it. Registered as an entry point `edge_agent.drivers`.

    `Connection` holds the keys of `connections.<name>` that are its own (all but `driver`); `Address` those of a signal
    that has an `address`, together with what it inherits from machine and connection (`inherited`). A validator of
    either raises ValueError (or WrongKey) with words for the person who wrote the file.
    """

    Connection: type[BaseModel]
    Address: type[BaseModel]
    inherited: frozenset[str]
    """Keys that may also stand at the connection or the machine and reach `Address` from there (`unit`, `word_order`…)."""

    def open(
        self, name: str, connection: Any, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        """Connect and yield a session. Raises DeviceSilent or DeviceRefused, nothing else; leaves nothing behind."""
        ...


@dataclass(frozen=True, slots=True)
class ScanStep:
    """How far a scan is. done of planned: requests or probes of this phase, or whatever the phase counts; planned 0: nobody
    knows how many there will be. news: something found, in one line, or ''.
    """

    phase: str
    done: int
    planned: int
    news: str = ""


class Scan(Protocol):
    """One look at what a device has. It only reads, and it may be cancelled at any moment: what was found stays."""

    async def run(self) -> None:
        """Find out. Raises DeviceSilent, or DeviceRefused when a person must act, and nothing else."""
        ...

    @property
    def answered(self) -> bool:
        """Whether anything answered at all."""
        ...

    def lines(self) -> Sequence[tuple[str, str]]:
        """What was found, for people: (style, text) of each line; styles: head, good, weak, warn and ''."""
        ...

    def facts(self) -> dict[str, Any]:
        """The same for scripts: what JSON can hold."""
        ...

    def config(self) -> str:
        """A whole configuration file that `read` accepts, with a signal for each value found; '' when there is none."""
        ...


@runtime_checkable
class Watches(Protocol):
    """What a scan may promise besides: to fit a terminal, and to keep the values that it found up to date."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """After `run`: read the values again each second, and call `changed` after each time. Errors as of `run`.

        It ends by cancellation only.
        """
        ...

    def lines_within(self, columns: int) -> Sequence[tuple[str, str]]:
        """As `Scan.lines`, no line longer than this."""
        ...


class Scanner(Protocol):
    """What `edge-agent scan KIND` asks; optional for a kind of driver. Registered as an entry point `edge_agent.scanners`.

    `Options` has a field for each option of the command line: all have defaults and take texts; the description is the
    option's help. Its validators raise ValueError with words for the person who typed it.
    """

    Options: type[BaseModel]

    def scan(self, url: str, options: Any, clock: Clock, tell: Callable[[ScanStep], None]) -> Scan:
        """Raises ValueError, in words, for an address that is none. Connects only in `run`."""
        ...


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, or a list of revoked ones, in a driver's folder. Its texts may be shown: they hold no control characters.

    place: own, trusted, issuers or rejected; name: what finds it; kind: certificate, authority (one that issues others),
    revocations, or unreadable; fault: why it cannot be used, or, of a rejected one, why it was refused; '' when nothing is.
    thumbprint: SHA-1 in upper hex, as OPC UA servers show it; times: UTC µs, 0 where there is none.
    """

    place: str
    name: str
    kind: str
    file: str
    fault: str = ""
    subject: str = ""
    common_name: str = ""
    issuer: str = ""
    uri: str = ""
    hosts: tuple[str, ...] = ()
    thumbprint: str = ""
    sha256: str = ""
    serial: str = ""
    key: str = ""
    signature: str = ""
    usage: tuple[str, ...] = ()
    valid_from_us: int = 0
    valid_until_us: int = 0
    since_us: int = 0
    """When it was rejected."""


class CertificateStore(Protocol):
    """A driver's folder of certificates, as `edge-agent trust` works on it.

    A name is a file's name, the name in the subject, or the first six or more digits of the thumbprint. Where nothing has
    it LookupError is raised, where several have it ValueError, both in words; OSError as it comes.
    """

    def all(self, now_us: int) -> Sequence[Certificate]:
        """Our own, the trusted ones, issuers and rejected ones, in this order. now_us: UTC."""
        ...

    def find(self, name: str, place: str = "") -> Certificate:
        """The one that is meant; place: only there."""
        ...

    def accept(self, name: str, issuer: bool) -> Certificate:
        """Trust a rejected one; issuer: only let it complete the chains of others."""
        ...

    def remove(self, name: str, now_us: int) -> Certificate:
        """Trust it no longer: it lies among the rejected ones then."""
        ...

    def add(self, data: bytes, issuer: bool) -> Sequence[Certificate]:
        """Trust what stands in this file's bytes, DER or PEM. Raises ValueError in words when that is no certificate."""
        ...

    def own(self, hostname: str, now_us: int) -> tuple[Certificate, bytes]:
        """Our own and its DER; made when there is none yet. Raises ValueError in words when it cannot be used."""
        ...


@runtime_checkable
class Trusts(Protocol):
    """What a driver may promise besides: to keep certificates, whose peers a person trusts or not."""

    def certificates(self, folder: str) -> CertificateStore:
        """The store in this folder, which need not exist yet."""
        ...
