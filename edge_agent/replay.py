"""Recorded data through exactly the judge that the daemon runs, as fast as it can.

Rule 1: a recording becomes the frames that a driver would have given: engineering values, an empty cell is BAD `missing`,
and ticks pass the time in which no row came. Rule 2: how the rows are cut into frames changes nothing.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from edge_agent import expression, judge
from edge_agent.config import Config, with_periods
from edge_agent.contract import SECOND_US, Codes, Floats, Frame, Ints, Quality
from edge_agent.plant import Machine, Plant
from edge_agent.records import Event, EventKind, Severity

TIME_NAMES = ("ts", "time", "datetime", "timestamp")
ROWS = 10_000
"""Rows in a frame unless told: enough to pay for numpy's calls, small beside any cache of recordings."""
EPOCH = "replay"
TICKS_SPARE = 2
MS_FROM, US_FROM, NS_FROM = 1e11, 1e14, 1e17
"""Numbers of this size on are ms, µs, ns since 1970; smaller ones are seconds (1e11 s is the year 5138)."""
MIDDLE_US, REACH_US = 95_633_352_000 * SECOND_US, 157_705_876_800 * SECOND_US
"""Times from year 3 to year 9997 are believed: every zone's offset stays within the calendar."""
SUSPICIOUS_US = 315_532_800 * SECOND_US
"""1980: recordings of machines are younger; an older time is more often a wrong column."""
WRITTEN_MISSING = frozenset({"", "na", "n/a", "null", "none", "nan"})


class RecordingError(Exception):
    """The data cannot be read; the text names the file and, where there is one, the line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A table of readings. ts: (rows,) int64 UTC µs in the order of the file; columns: name → (values, quality), (rows,).

    strange: of columns with cells that are no number, in words. notes: what a person should know of the whole.
    """

    name: str
    ts: Ints
    columns: dict[str, tuple[Floats, Codes]]
    strange: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def spacing_us(self) -> int:
        """The median step between rows, at least 1 ms; 1 s when there are not two rows."""
        steps = np.diff(self.ts)
        steps = steps[steps > 0]
        return max(1000, int(np.median(steps))) if steps.size else SECOND_US


def read_csv(path: Path, *, time: str | None = None, sep: str = ",", zone: tzinfo = UTC) -> Recording:
    """Read a CSV file, gzipped or not. time: the column with the time; sep: one character. Raises RecordingError."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as data:
            with io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
                return _table(path, text, time, sep, zone)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordingError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _lines(path: Path, text: TextIO, sep: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with their line numbers. Raises RecordingError with the line."""
    reader = csv.reader(text, delimiter=sep)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except (UnicodeDecodeError, csv.Error) as error:
            # Text is decoded some lines ahead.
            about = (
                "near this line is no UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error}"
            )
            raise RecordingError(f"{path}:{reader.line_num + 1}: {about}") from error
        yield reader.line_num, row


def _table(path: Path, text: TextIO, time: str | None, sep: str, zone: tzinfo) -> Recording:
    given = _lines(path, text, sep)
    _, first = next(given, (1, None))
    if first is None:
        raise RecordingError(f"{path}:1: is empty; the first line names the columns")
    header = [name.strip() for name in first]
    clock = _time_column(path, header, time, sep)
    twice = {name for name in header if name and header.count(name) > 1}
    if twice:
        raise RecordingError(f"{path}:1: the column {min(twice)!r} stands twice")
    rows, lines = [], []
    for line, row in given:
        if not row:  # an empty line
            continue
        if len(row) != len(header):
            raise RecordingError(f"{path}:{line}: has {len(row)} cells, the header {len(header)} (separator {sep!r})")
        rows.append(row)
        lines.append(line)
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    ts = _times(path, cells[clock], lines, zone)
    named = {name: cells[i] for i, name in enumerate(header) if i != clock and name}
    columns = {name: _numbers(its) for name, its in named.items()}
    strange = {name: _strange(named[name], quality, lines) for name, (_, quality) in columns.items()}
    return Recording(
        path.name.removesuffix(".gz").removesuffix(".csv"),
        ts,
        columns,
        {name: words for name, words in strange.items() if words},
        tuple(_about_times(path, ts)),
    )


def _strange(cells: Sequence[str], quality: Codes, lines: Sequence[int]) -> str:
    """How many cells are no number, and the first of them."""
    wrong = np.flatnonzero(quality == Quality.NOT_A_NUMBER)
    if not wrong.size:
        return ""
    first = int(wrong[0])
    comma = " (numbers are written with a point)" if re.fullmatch(r"\s*-?[0-9.]*,[0-9]+\s*", cells[first]) else ""
    return f"{wrong.size} of {len(cells)} cells are no number, the first {cells[first]!r} in line {lines[first]}{comma}"


def _about_times(path: Path, ts: Ints) -> Iterator[str]:
    if len(ts) and int(ts.min()) < SUSPICIOUS_US:
        since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(ts.min()))
        yield f"{path}: the first time is {since:%Y-%m-%d %H:%M:%S} UTC: is that meant?"


def _time_column(path: Path, header: list[str], wanted: str | None, sep: str) -> int:
    if wanted is not None:
        if wanted not in header:
            raise RecordingError(f"{path}:1: has no column {wanted!r}; it has {', '.join(header[:20])}")
        return header.index(wanted)
    lower = [name.lower() for name in header]
    for name in TIME_NAMES:
        if name in lower:
            return lower.index(name)
    if len(header) == 1 and (other := next((mark for mark in ";\t|," if mark != sep and mark in header[0]), None)):
        name = "tab" if other == "\t" else f"'{other}'"
        raise RecordingError(f"{path}:1: {header[0]!r} is one column with the separator {sep!r}: try --sep {name}")
    found = ", ".join(header[:20])
    raise RecordingError(f"{path}:1: has no time column ({', '.join(TIME_NAMES)}), only {found}; name it with --time")


def _times(path: Path, cells: Sequence[str], lines: Sequence[int], zone: tzinfo) -> Ints:
    """UTC µs of each cell. lines: where it stands in the file, for the person who must mend it."""
    if not cells:
        return np.empty(0, dtype=np.int64)
    if _plain_number(cells[0]) is None:
        return _stamps(path, cells, lines, zone)
    try:
        numbers = _parsed(cells)
    except ValueError:
        guilty = next(i for i, cell in enumerate(cells) if _plain_number(cell) is None)
        raise _no_time(path, lines[guilty], cells[guilty]) from None
    if not np.isfinite(numbers).all():
        line = lines[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise RecordingError(f"{path}:{line}: the time is not a number")
    largest = float(np.abs(numbers).max())
    factor = 1e6 if largest < MS_FROM else 1e3 if largest < US_FROM else 1.0 if largest < NS_FROM else 1e-3
    outside = np.flatnonzero(np.abs(numbers * factor - MIDDLE_US) >= REACH_US)
    if outside.size:
        guilty = int(outside[0])
        raise _no_time(path, lines[guilty], cells[guilty])
    return np.round(numbers * factor).astype(np.int64)


def _stamps(path: Path, cells: Sequence[str], lines: Sequence[int], zone: tzinfo) -> Ints:
    stamps = np.empty(len(cells), dtype=np.int64)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for i, cell in enumerate(cells):
        try:
            stamp = datetime.fromisoformat(cell.strip())
        except ValueError:
            raise _no_time(path, lines[i], cell) from None
        try:
            stamps[i] = _since(stamp if stamp.tzinfo else stamp.replace(tzinfo=zone), epoch)
            if i and stamp.tzinfo is None and stamps[i] < stamps[i - 1]:
                # In autumn an hour comes twice, and naive times seem to step back: the second one is meant.
                again = _since(stamp.replace(tzinfo=zone, fold=1), epoch)
                stamps[i] = again if again >= stamps[i - 1] else stamps[i]
        except OverflowError:  # the offset leads out of the calendar
            raise _no_time(path, lines[i], cell) from None
        if abs(int(stamps[i]) - MIDDLE_US) >= REACH_US:
            raise _no_time(path, lines[i], cell)
    return stamps


def _since(stamp: datetime, epoch: datetime) -> int:
    since = stamp - epoch
    return since.days * 86_400 * SECOND_US + since.seconds * SECOND_US + since.microseconds


def _no_time(path: Path, line: int, cell: str) -> RecordingError:
    return RecordingError(f"{path}:{line}: {cell!r} is not a time (2026-11-23T15:53:39Z, or seconds since 1970)")


def _parsed(cells: Sequence[str]) -> Floats:
    """All cells as float64, in one call. Raises ValueError where one of them is no number as people write it.

    Python also reads `1_000` and digits of every script; here they are a mistake somewhere, not a reading.
    """
    joined = "".join(cells)
    if "_" in joined or not joined.isascii():
        raise ValueError("not plain numbers")
    return np.array(cells, dtype=np.float64)


def _plain_number(cell: str) -> float | None:
    try:
        return float(cell) if cell.isascii() and "_" not in cell else None
    except ValueError:
        return None


def _numbers(cells: Sequence[str]) -> tuple[Floats, Codes]:
    """An empty cell is BAD `missing`, one that is no number BAD `not_a_number`; both are NaN."""
    try:
        values = _parsed(cells)
    except ValueError:
        return _slowly(cells)
    # A written "nan" means that there was no value; infinities are for the judge to refuse.
    return values, np.where(np.isnan(values), np.uint8(Quality.MISSING), np.uint8(Quality.GOOD))


def _slowly(cells: Sequence[str]) -> tuple[Floats, Codes]:
    values, quality = np.full(len(cells), np.nan), np.zeros(len(cells), dtype=np.uint8)
    for i, cell in enumerate(cells):
        number = np.nan if cell.strip().lower() in WRITTEN_MISSING else _plain_number(cell)
        if number is None:
            quality[i] = Quality.NOT_A_NUMBER
        elif np.isnan(number):
            quality[i] = Quality.MISSING
        else:
            values[i] = number
    return values, quality


# --- the configuration seen with this data ----------------------------------------------------------------------------


def column_of(config: Config, machine: str, signal: str) -> tuple[str, ...]:
    """The names under which this signal may stand in the data, best first."""
    its = config.machines[machine].signals[signal]
    whole = f"{machine}.{signal}"
    if its.column and its.column != signal:
        return its.column, whole
    # A column that is only the signal's own name by default gives way to the full name.
    return (whole, signal) if its.column or len(config.machines) == 1 else (whole,)


def fitted(config: Config, recording: Recording) -> tuple[Config, dict[tuple[str, str], str], list[str]]:
    """The configuration as this recording can feed it: its columns by (machine, signal), and notes for the person.

    A period that the file does not write becomes the data's median spacing (and the default of `stale` follows it).
    A signal that the data does not have is left out, unless a formula or an operating state needs it.
    """
    columns: dict[tuple[str, str], str] = {}
    notes = []
    machines = {}
    for name, machine in config.machines.items():
        signals = {}
        for key, signal in machine.signals.items():
            found = next((c for c in column_of(config, name, key) if c in recording.columns), None)
            if signal.formula is None:
                wanted = min(column_of(config, name, key), key=len)
                missing = f"{name}.{key}: the data has no column {wanted!r}"
                if found is None and not _needed(machine, key):
                    notes.append(f"{missing}: left out")
                    continue
                if found is None:
                    notes.append(f"{missing}, which a formula or an operating state needs: it is never read")
                else:
                    columns[name, key] = found
                    if words := recording.strange.get(found):
                        notes.append(f"column {found}: {words}")
            every_us = signal.every_us if signal.every_written else recording.spacing_us
            signals[key] = replace(signal, every_us=every_us)
        if signals:
            machines[name] = replace(machine, signals=with_periods(signals, machine.signals))
    unknown = sorted(set(recording.columns) - set(columns.values()))
    if unknown:
        notes.append(f"ignored, in no signal of the configuration: {', '.join(unknown)}")
    return replace(config, machines=machines), columns, notes


def _needed(machine: Any, signal: str) -> bool:
    texts = [
        *machine.states.values(),
        *machine.until.values(),
        *(s.formula for s in machine.signals.values() if s.formula is not None),
    ]
    return any(signal in expression.parse(text, machine.signals).names for text in texts)


# --- frames -----------------------------------------------------------------------------------------------------------


def frames(
    plant: Plant, recording: Recording, columns: dict[tuple[str, str], str], rows: int = ROWS
) -> Iterator[list[Frame]]:
    """The recording as frames of at most `rows` rows, ticks included; one list is what is judged at once."""
    whole = [_whole(machine, recording, columns) for machine in plant.machines]
    longest = max((len(frame.t) for frame in whole), default=0)
    for first in range(0, longest, rows):
        cut = slice(first, first + rows)
        yield [
            Frame(frame.machine, frame.t[cut], frame.ts[cut], frame.values[cut], frame.quality[cut])
            for frame in whole
            if len(frame.t) > first
        ]


def _whole(machine: Machine, recording: Recording, columns: dict[tuple[str, str], str]) -> Frame:
    t = _agent_time(recording.ts)
    width = machine.stop - machine.start
    values = np.full((len(t), width), np.nan)
    quality = np.full((len(t), width), np.uint8(Quality.HOLD), dtype=np.uint8)
    for offset, signal in enumerate(machine.signals):
        name = columns.get((machine.name, signal.name))
        if name is not None:
            values[:, offset], quality[:, offset] = recording.columns[name]
    place, ticks = _ticks(machine, t)
    if not len(ticks):
        return Frame(machine.name, t, recording.ts, values, quality)
    ts_ticks = recording.ts[place - 1] + (ticks - t[place - 1])
    return Frame(
        machine.name,
        np.insert(t, place, ticks),
        np.insert(recording.ts, place, ts_ticks),
        np.insert(values, place, np.nan, axis=0),
        np.insert(quality, place, np.uint8(Quality.HOLD), axis=0),
    )


def _agent_time(ts: Ints) -> Ints:
    """The agent's clock beside the data's: it starts with it and never steps back."""
    if not len(ts):
        return ts
    steps = np.maximum(np.diff(ts), 0)
    return np.concatenate((ts[:1], ts[0] + np.cumsum(steps)))


def _ticks(machine: Machine, t: Ints) -> tuple[npt.NDArray[np.intp], Ints]:
    """Where no row came for the machine's smallest period: (index to insert before, time) of each tick row.

    Once everything is stale nothing more can change, so that a gap of a year costs no more ticks than one of a minute.
    """
    if len(t) < 2:  # no step between fewer rows
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.int64)
    tick = machine.every_us
    longest = max(signal.stale_us for signal in machine.signals) + machine.settle_us
    counts = np.minimum((np.diff(t) - 1) // tick, longest // tick + TICKS_SPARE)
    counts = np.maximum(counts, 0)
    place = np.repeat(np.arange(1, len(t)), counts)
    within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return place.astype(np.intp), t[place - 1] + within * tick


def run(plant: Plant, batches: Iterator[list[Frame]]) -> list[Event]:
    """Every event that the daemon would have given, in the order of time, machines in the order of the configuration."""
    state = judge.start(plant)
    events: list[Event] = []
    for batch in batches:
        state, judged = judge.step(plant, state, batch, EPOCH)
        events += judged.events
    order = {machine.name: machine.index for machine in plant.machines}
    return sorted(events, key=lambda event: (event.t, order[event.machine]))


@dataclass(slots=True)
class Alarm:
    """One warning from raised to cleared: a row of `--alarms`. end: UTC µs or None when it stands."""

    start: int
    end: int | None
    tag: str
    severity: Severity
    kind: str


class Alarms:
    """The warnings that events tell of, in the order in which they were raised."""

    def __init__(self) -> None:
        self.found: list[Alarm] = []
        self._standing: dict[str, Alarm] = {}

    def take(self, event: Event) -> None:
        standing = self._standing
        if event.event is EventKind.RAISED:
            standing[event.id] = Alarm(event.ts, None, event.column or event.signal, event.severity, event.kind)
            self.found.append(standing[event.id])
        elif event.id in standing:
            alarm = standing[event.id]
            if event.severity is Severity.ALARM:
                alarm.severity = event.severity
            if event.event is EventKind.CLEARED:
                alarm.end = event.ts
                del standing[event.id]


def alarms(events: Sequence[Event]) -> list[Alarm]:
    """The warnings that these events tell of, in the order in which they were raised."""
    its = Alarms()
    for event in events:
        its.take(event)
    return its.found
