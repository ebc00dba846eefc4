"""A driver for edge-agent: multispectral surveys of field plots, one CSV file for each flight, dropped into a folder.

Rule 1: a line is taken only when it is whole and makes sense; anything else is BAD and says in which file and line.
Rule 2: what stands for a plot does not hang on the order in which files come or are read.
Rule 3: nothing that touches the folder runs on the loop: a network share may hang.
"""

import asyncio
import csv
import logging
import os
import re
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edge_agent.contract import (
    Clock,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Duration,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
    WrongKey,
    duration_text,
    duration_us,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CLOCK_SANE_US = duration_us("1h")
"""A capture further ahead of our clock than this is not believed; a step of our clock by more judges all files anew."""
FILES_MAX = 5_000
FILE_BYTES_MAX = 4_000_000
LOOK_BYTES_MAX = 16_000_000
"""Read in one look, newest files first; the rest comes with the next one."""
STRANGERS_TOLD_MAX = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
"""Python's float() would take more than people mean: 1_000, infinity."""


# ------------------------------------------------------------------------------------------------------- the settings


class Columns(BaseModel):
    """What the columns of a file are called that every survey has."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    plot: str = Field("plot", min_length=1, description="the plot's id")
    time: str = Field("time", min_length=1, description="time of capture, ISO 8601, UTC where it names no offset")
    valid: str = Field("valid", min_length=1, description="share of valid pixels, 0 to 1")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.time == self.plot:
            raise WrongKey("time", f"{self.time!r} is the column of plot already")
        if self.valid in (self.plot, self.time):
            raise WrongKey("valid", f"{self.valid!r} is the column of plot or time already")
        return self


class Connection(BaseModel):
    """The keys of a connection with `driver: field_survey`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: Path = Field(description="where the files are dropped; relative to the configuration")
    pattern: str = Field("*.csv", min_length=1, description="which files are surveys", examples=["flight-*.csv"])
    columns: Columns = Field(Columns.model_validate({}), description="what its columns are called")
    least_valid: float = Field(
        0.8, ge=0, le=1, strict=True, description="share of valid pixels below which a value is uncertain"
    )
    max_age: Annotated[int, Duration("1h", "365d")] = Field(
        duration_us("10d"), description="how long after its capture a value stands"
    )
    settle: Annotated[int, Duration("0s", "1h")] = Field(
        duration_us("5s"),
        description="a file is read when it has lain unchanged for so long; 0s where files are renamed",
    )
    timeout: Annotated[int, Duration("100ms", "30s")] = Field(
        duration_us("10s"), description="for the folder to answer; a network share may hang"
    )

    @field_validator("pattern")
    @classmethod
    def _names_no_folder(cls, pattern: str) -> str:
        if "/" in pattern:
            raise ValueError("it is compared with names of files; a folder stands in folder")
        return pattern


class Address(BaseModel):
    """The keys of a signal: the column, and the plot, which usually stands at the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    address: str = Field(min_length=1, description="the column of the index", examples=["ndvi", "ndre"])
    plot: str = Field(min_length=1, description="the plot's id, as the files have it; here or at the machine")


# ----------------------------------------------------------------------------------- what a file says: pure, no clock


class Key(NamedTuple):
    """What one signal is about."""

    plot: str
    column: str


class Line(NamedTuple):
    """What one line says of one key. captured_us: UTC µs, None where its time cannot be believed; written_us: its file's."""

    captured_us: int | None
    written_us: int
    quality: Quality
    value: float
    words: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """One file. found: what it says of the keys that are wanted. troubles: why lines were not taken."""

    found: tuple[tuple[Key, Line], ...]
    lines: int = 0
    troubles: tuple[str, ...] = ()
    strangers: frozenset[str] = frozenset()
    """Plots that no signal is about."""


def survey(
    data: bytes, name: str, written_us: int, now_us: int, settings: Connection, wanted: frozenset[Key]
) -> Survey:
    """Everything that a file says. now_us: UTC, to find captures of the future."""
    try:
        *lines, rest = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return _useless(name, written_us, wanted, "is no UTF-8 text")
    head = _fields(lines[0]) if lines else None
    if not head:
        return _useless(name, written_us, wanted, "has no whole line with the names of its columns")
    if len(set(head)) < len(head):
        return _useless(name, written_us, wanted, f"names a column twice: {_shown(', '.join(head))}")
    columns, has = settings.columns, f"it has {_shown(', '.join(head), 200)}"
    for column in (columns.plot, columns.time, columns.valid):
        if column not in head:
            return _useless(name, written_us, wanted, f"has no column {column}; {has}", Quality.REFUSED)
    paper = _Paper(name, written_us, now_us, settings, head)
    for key in wanted:
        if key.column in head:
            paper.keys.setdefault(key.plot, []).append(key)
        else:
            paper.fault([key], f"{name}: has no column {key.column}; {has}", Quality.REFUSED)
    for number, text in enumerate(lines[1:], 2):
        paper.take(number, text)
    paper.take_half(len(lines) + 1, rest)
    strangers = paper.plots - {key.plot for key in wanted}
    return Survey(tuple(paper.found), paper.lines, tuple(paper.troubles), frozenset(strangers))


def _useless(
    name: str, written_us: int, wanted: Iterable[Key], words: str, quality: Quality = Quality.PROTOCOL
) -> Survey:
    """A file of which no line can be understood: it may have been about any plot."""
    line = Line(None, written_us, quality, nan, f"{name}: {words}")
    return Survey(tuple((key, line) for key in wanted), troubles=(words,))


@dataclass(slots=True)
class _Paper:
    """A survey while its lines are gone through. head: the names of its columns; keys: those wanted, by plot."""

    name: str
    written_us: int
    now_us: int
    settings: Connection
    head: list[str]
    keys: dict[str, list[Key]] = field(default_factory=dict)
    found: list[tuple[Key, Line]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    plots: set[str] = field(default_factory=set)
    lines: int = 0

    def fault(self, keys: Iterable[Key], words: str, quality: Quality = Quality.PROTOCOL) -> None:
        self.troubles.append(words)
        self.found += [(key, Line(None, self.written_us, quality, nan, words)) for key in keys]

    def take(self, number: int, text: str) -> None:
        """A line that has its end."""
        if not text.strip():
            return
        self.lines += 1
        parts = _fields(text)
        if parts is None or len(parts) != len(self.head):
            words = f"{self.name}, line {number}: not the {len(self.head)} fields of the first line"
            self.fault(self._keys_of(parts or []), words)
            return
        row = dict(zip(self.head, parts, strict=True))
        self.plots.add(row[self.settings.columns.plot])
        for key in self._keys_of(parts):
            line = _line(row, key.column, self.written_us, self.now_us, self.settings)
            if line.quality is not Quality.GOOD:
                line = line._replace(words=f"{self.name}, line {number}: {line.words}")
                self.troubles.append(line.words)
            self.found.append((key, line))

    def take_half(self, number: int, text: str) -> None:
        """What comes after the last end of a line; 0.7 may have been going to be 0.73."""
        if text.strip():
            self.lines += 1
            words = f"{self.name}, line {number}: has no end; half written, or its writer must end the last line"
            # The last field may be half as well, and with it the plot another one.
            self.fault(self._keys_of((_fields(text) or [])[:-1]), words)

    def _keys_of(self, parts: Sequence[str]) -> Sequence[Key]:
        place = self.head.index(self.settings.columns.plot)
        return self.keys.get(parts[place], ()) if place < len(parts) else ()


def _line(row: Mapping[str, str], column: str, written_us: int, now_us: int, settings: Connection) -> Line:
    """What a whole line says of one plot and column."""
    columns = settings.columns
    captured_us = _time_us(row[columns.time])
    if captured_us is None:
        words = f"{_shown(row[columns.time])} is no time; write it like 2026-05-12T09:31:00Z"
        return Line(None, written_us, Quality.PROTOCOL, nan, words)
    if captured_us > now_us + CLOCK_SANE_US:
        # Its age and its place among the others hang on it, so the value is not taken with another time.
        words = f"captured {_utc(captured_us)}, but here it is {_utc(now_us)}: one of the two clocks is wrong"
        return Line(None, written_us, Quality.PROTOCOL, nan, words)
    value, share = _number(row[column]), _number(row[columns.valid])
    if share is None or not 0 <= share <= 1:
        words = f"{_shown(row[columns.valid])} is no share of valid pixels: 0 to 1"
        return Line(captured_us, written_us, Quality.PROTOCOL, nan, words)
    if share == 0:
        return Line(captured_us, written_us, Quality.SENSOR_FAILURE, nan, "no pixel is valid")
    if value is None:
        words = f"{column} {_shown(row[column])} is no number; write it like 0.73"
        return Line(captured_us, written_us, Quality.NOT_A_NUMBER, nan, words)
    if share < settings.least_valid:
        words = f"{100 * share:.4g} % of the pixels are valid, {100 * settings.least_valid:.4g} % are wanted"
        return Line(captured_us, written_us, Quality.UNCERTAIN, value, words)
    return Line(captured_us, written_us, Quality.GOOD, value)


def _fields(text: str) -> list[str] | None:
    """The fields of one line; None when its quotes are broken."""
    try:
        return [part.strip() for part in next(csv.reader([text.removesuffix("\r")], strict=True), [])]
    except csv.Error:
        return None


def _number(text: str) -> float | None:
    number = float(text) if NUMBER.fullmatch(text) else nan
    return number if isfinite(number) else None


def _time_us(text: str) -> int | None:
    """UTC µs of an ISO 8601 time with a time of day; UTC where it names no offset."""
    try:
        found = datetime.fromisoformat(text) if len(text) > len("2026-05-12") else None
        if found is None:
            return None
        aware = found if found.tzinfo else found.replace(tzinfo=UTC)
        return (aware - EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None


def _utc(moment_us: int) -> str:
    return f"{EPOCH + timedelta(microseconds=moment_us):%Y-%m-%dT%H:%M:%SZ}"


def _shown(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")


def newer(one: Line | None, other: Line) -> Line:
    """The one of two lines about the same key that stands: captured later, else written later.

    Whichever of them is read first, the result says the same. Both with a time of capture, or both without.
    """
    if one is None:
        return other
    first, second = (one.captured_us or 0, one.written_us), (other.captured_us or 0, other.written_us)
    if first != second:
        return one if first > second else other
    if one.captured_us is None or one[:4] == other[:4]:
        return min(one, other, key=lambda line: line.words)
    words = f"two lines for the capture of {_utc(first[0])}: {' and '.join(sorted({_told(one), _told(other)}))}"
    return Line(one.captured_us, one.written_us, Quality.PROTOCOL, nan, words)


def _told(line: Line) -> str:
    return line.words or f"{line.value:g}"


# ---------------------------------------------------------------------------------------------- the folder: it may block


class Mark(NamedTuple):
    """What changes when a file is written to."""

    inode: int
    size: int
    written_ns: int


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the folder brought. taken: of every file that was read, now or before; waiting: of those that lie
    here for too short, and since when (monotonic µs). left: files for the next look.
    """

    surveys: tuple[tuple[str, Survey], ...]
    taken: Mapping[str, Mark]
    waiting: Mapping[str, tuple[Mark, int]]
    left: int


def look(settings: Connection, wanted: frozenset[Key], before: Look, now_us: int, monotonic_us: int) -> Look:
    """Read what is new since the look before, newest files first. Raises DeviceSilent or DeviceRefused."""
    surveys: list[tuple[str, Survey]] = []
    taken: dict[str, Mark] = {}
    waiting: dict[str, tuple[Mark, int]] = {}
    left = size = 0
    for name, mark in sorted(_files(settings).items(), key=lambda file: (-file[1].written_ns, file[0])):
        if before.taken.get(name) == mark:
            taken[name] = mark
            continue
        known, since_us = before.waiting.get(name, (mark, monotonic_us))
        if known != mark:
            since_us = monotonic_us
        written_us = mark.written_ns // 1000
        if now_us - written_us < settings.settle and monotonic_us - since_us < settings.settle:
            waiting[name] = mark, since_us
            continue
        if surveys and size + mark.size > LOOK_BYTES_MAX:
            left += 1
            continue
        if mark.size > FILE_BYTES_MAX:
            words = f"{name}: is larger than {FILE_BYTES_MAX / 1e6:g} MB"
            line = Line(None, min(written_us, now_us), Quality.PROTOCOL, nan, words)
            surveys.append((name, Survey(tuple((key, line) for key in wanted), troubles=(words,))))
            taken[name] = mark
            continue
        data = _content(settings.folder / name, mark)
        if data is None:
            waiting[name] = mark, monotonic_us
            continue
        size += mark.size
        surveys.append((name, survey(data, name, min(written_us, now_us), now_us, settings, wanted)))
        taken[name] = mark
    return Look(tuple(surveys), taken, waiting, left)


def _files(settings: Connection) -> dict[str, Mark]:
    """The surveys that lie in the folder. Names that begin with a point are those of unfinished copies."""
    folder = settings.folder
    found: dict[str, Mark] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not fnmatchcase(entry.name, settings.pattern):
                    continue
                with suppress(FileNotFoundError):  # gone again
                    about = entry.stat()
                    if stat.S_ISREG(about.st_mode):
                        found[entry.name] = _mark(about)
                if len(found) > FILES_MAX:
                    raise DeviceRefused(f"{folder} holds more than {FILES_MAX} surveys: move the old ones away")
    except FileNotFoundError:
        raise DeviceSilent(f"the folder {folder} is not there") from None
    except NotADirectoryError:
        raise DeviceRefused(f"{folder} is no folder") from None
    except PermissionError:
        raise DeviceRefused(
            f"the folder {folder} may not be read by this user: give it read and search rights"
        ) from None
    except OSError as error:
        raise DeviceSilent(f"the folder {folder}: {error.strerror}") from error
    return found


def _content(path: Path, mark: Mark) -> bytes | None:
    """The whole file; None when it is gone or changes meanwhile."""
    try:
        # A pipe that took the file's name must not be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(mark.size + 1)
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    except PermissionError:
        # It may be the newest survey: what stood before is not shown as if there was none.
        raise DeviceRefused(f"{path} may not be read by this user: give it read rights") from None
    except OSError as error:
        raise DeviceSilent(f"{path}: {error.strerror}") from error
    return data if _mark(after) == mark and len(data) == mark.size else None


def _mark(about: os.stat_result) -> Mark:
    return Mark(about.st_ino, about.st_size, about.st_mtime_ns)


class Hands:
    """Does what may block in a thread of its own, for each folder one at a time.

    `asyncio.to_thread` shares a handful of threads with the whole agent: a few folders that hang would stop it.
    """

    def __init__(self) -> None:
        self._running: dict[Path, Future[Any]] = {}

    async def do(self, folder: Path, within_us: int, work: Callable[[], Result]) -> Result:
        """The work's result. Raises DeviceSilent when it, or the work before it, is not done in time."""
        try:
            async with asyncio.timeout(within_us / 1e6):
                while (running := self._running.get(folder)) is not None and not running.done():
                    with suppress(Exception):  # it was told to whoever asked
                        await asyncio.wrap_future(running)
                future = self._running[folder] = _beside(work)
                return await asyncio.wrap_future(future)
        except TimeoutError:
            words = f"the folder {folder} does not answer within {duration_text(within_us)}"
            raise DeviceSilent(words, Quality.TIMEOUT) from None


def _beside(work: Callable[[], Result]) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, name="field-survey", daemon=True).start()
    return future


# --------------------------------------------------------------------------------------------------------- the promises


class Verdict(NamedTuple):
    """What a point is told. moment_us: tells news of equal value apart; captured_us: its stamp, where it has one."""

    quality: Quality
    value: float
    moment_us: int
    captured_us: int | None = None
    words: str = ""


@dataclass(slots=True)
class Counts:
    """For the health topic."""

    looks: int = 0
    files: int = 0
    lines: int = 0
    lines_not_good: int = 0
    lines_old: int = 0
    """Captured before what stood already."""
    waiting_files: int = 0


NOTHING = Look((), {}, {}, 0)


@dataclass(slots=True)
class SurveySession:
    """See edge_agent.contract.Session. One task owns it; what its looks bring is taken over on the loop, whole or not."""

    name: str
    settings: Connection
    clock: Clock
    hands: Hands
    keys: tuple[Key, ...] = ()
    seen: Look = NOTHING
    readings: dict[Key, Line] = field(default_factory=dict)
    """Lines with a time of capture that stand, good or not."""
    faults: dict[Key, tuple[str, Line]] = field(default_factory=dict)
    """The last trouble of each key that has no time of its own, and its file: mended or deleted, it is forgotten."""
    told: dict[int, Verdict] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    strangers: set[str] = field(default_factory=set)
    step_us: int | None = None
    """Wall clock minus monotonic clock, at the last look."""

    async def read(self, due: Ints) -> Readings:
        """See contract.Session.read. ts: the time of capture; HOLD where no survey brought news."""
        await self.look()
        now_us = self.clock.wall_us()
        values = np.full(len(due), np.nan)
        quality = np.full(len(due), Quality.HOLD, np.uint8)
        ts = np.full(len(due), now_us, np.int64)
        for row, point in enumerate(due.tolist()):
            verdict = self.verdict(self.keys[point], now_us)
            if point not in self.told or verdict[:3] != self.told[point][:3]:
                values[row], quality[row] = verdict.value, verdict.quality
                ts[row] = now_us if verdict.captured_us is None else verdict.captured_us
            self.told[point] = verdict
        return Readings(values, quality, ts)

    def use(self, points: Sequence[Point]) -> None:
        """See contract.Session.use. Everything is told once more: nobody here knows what the reader has kept."""
        before, self.keys = frozenset(self.keys), tuple(Key(p.settings.plot, p.settings.address) for p in points)
        self.told.clear()
        self.readings = {key: line for key, line in self.readings.items() if key in self.keys}
        self.faults = {key: fault for key, fault in self.faults.items() if key in self.keys}
        if not before.issuperset(self.keys):
            self.seen = NOTHING  # the files that were taken may tell of the new ones

    def explain(self, point: int) -> str:
        """See contract.Session.explain."""
        return self.told[point].words if point in self.told else ""

    def counters(self) -> dict[str, int | float]:
        """See contract.Session.counters."""
        return {name: getattr(self.counts, name) for name in Counts.__dataclass_fields__}

    def verdict(self, key: Key, now_us: int) -> Verdict:
        """What stands for a key now."""
        reading, (_, fault) = self.readings.get(key), self.faults.get(key, ("", None))
        if fault is not None and (reading is None or fault.written_us >= reading.written_us):
            return Verdict(fault.quality, nan, fault.written_us, None, fault.words)
        if reading is None or reading.captured_us is None:
            settle = duration_text(self.settings.settle)
            late = "".join(f"; {name} lies unchanged for less than {settle}" for name in list(self.seen.waiting)[:1])
            return Verdict(Quality.MISSING, nan, 0, None, f"no survey in {self.settings.folder} has {key.plot}{late}")
        if now_us - reading.captured_us > self.settings.max_age:
            words = f"captured {_utc(reading.captured_us)}, longer than {duration_text(self.settings.max_age)} ago"
            return Verdict(Quality.MISSING, nan, reading.captured_us, None, words)
        return Verdict(reading.quality, reading.value, reading.captured_us, reading.captured_us, reading.words)

    async def look(self) -> None:
        """Look at the folder and take over what is new. Raises DeviceSilent or DeviceRefused."""
        now_us, monotonic_us = self.clock.wall_us(), self.clock.monotonic_us()
        self._note_step(now_us, monotonic_us)
        settings, wanted, before = self.settings, frozenset(self.keys), self.seen
        found = await self.hands.do(
            settings.folder, settings.timeout, lambda: look(settings, wanted, before, now_us, monotonic_us)
        )
        renewed = {name for name, _ in found.surveys}
        self.faults = {
            key: (name, line)
            for key, (name, line) in self.faults.items()
            if name in found.taken and name not in renewed
        }
        for name, one in found.surveys:
            self._take(name, one)
        self.seen = Look((), found.taken, found.waiting, found.left)
        self.counts.looks += 1
        self.counts.waiting_files = len(found.waiting) + found.left

    def _take(self, name: str, one: Survey) -> None:
        for key, line in one.found:
            if line.captured_us is None:
                before, fault = self.faults.get(key, (name, None))
                stands = newer(fault, line)
                self.faults[key] = (name if stands is line else before, stands)
                continue
            reading = self.readings.get(key)
            stands = self.readings[key] = newer(reading, line)
            self.counts.lines_old += stands is reading
        self.counts.files += 1
        self.counts.lines += one.lines
        self.counts.lines_not_good += len(one.troubles)
        if one.troubles:
            log.warning("%s: %s: %d lines not good: %s", self.name, name, len(one.troubles), one.troubles[0])
        new = one.strangers - self.strangers
        if new and len(self.strangers) < FILES_MAX:
            self.strangers |= new
            shown = ", ".join(sorted(new)[:STRANGERS_TOLD_MAX])
            log.warning("%s: %s: no signal is about %d of its plots: %s", self.name, name, len(new), shown)

    def _note_step(self, now_us: int, monotonic_us: int) -> None:
        """After a step of the wall clock, what was judged by it is judged anew."""
        step_us = now_us - monotonic_us
        if self.step_us is not None and abs(step_us - self.step_us) > CLOCK_SANE_US:
            sane_us = now_us + CLOCK_SANE_US
            self.readings = {key: line for key, line in self.readings.items() if (line.captured_us or 0) <= sane_us}
            self.seen = NOTHING
        self.step_us = step_us


class FieldSurvey:
    """See edge_agent.contract.Driver."""

    Connection: type[BaseModel] = Connection
    Address: type[BaseModel] = Address
    inherited: frozenset[str] = frozenset({"plot"})

    def __init__(self) -> None:
        self._hands = Hands()

    @asynccontextmanager
    async def open(self, name: str, connection: Any, points: Sequence[Point], clock: Clock) -> AsyncIterator[Session]:
        """A folder has no line to open: a first look tells whether it is there."""
        session = SurveySession(name, connection, clock, self._hands)
        session.use(points)
        await session.look()
        yield session


DRIVER: Driver = FieldSurvey()
