"""The history as files for others: Parquet by machine and day (contract §5), or one CSV file a machine.

Rule 1: a file is written again as a whole and replaces itself; nothing stands twice, and what an earlier export has and
the history no longer has stays. Rule 2: one day of one machine at a time, so memory does not grow with the period.

What holds is written as the value that it holds; null is bad or absent. Rows stand in the order in which they were judged:
what came belated stands where it came, with its own time.
"""

import contextlib
import csv
import importlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from edge_agent import lake
from edge_agent.archive import sync_folder
from edge_agent.contract import SECOND_US, Bools, Codes, Floats, Ints, Quality
from edge_agent.messages import topics as messages
from edge_agent.plant import OWN
from edge_agent.records import Layout
from edge_agent.store import disk
from edge_agent.store.moment import Moment, Rows, standing
from edge_agent.store.past import Told, open_past

DAY_US = 86_400 * SECOND_US
WARNINGS = "_warnings"
"""Beside the machines; readers of the readings pass over folders that begin so."""
CSV, PARQUET = "csv", "parquet"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class NoExport(Exception):
    """Nothing can be exported; in words."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is exported. machines, signals: names or patterns, empty: all. from_us <= ts < to_us, UTC."""

    agent: str
    form: str
    machines: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    from_us: int = 0
    to_us: int = disk.NEVER_US

    def machine(self, name: str) -> bool:
        if not self.machines:
            return name != OWN
        return any(fnmatchcase(name, each) for each in self.machines)

    def signal(self, name: str) -> bool:
        return not self.signals or any(fnmatchcase(name, each) for each in self.signals)


@dataclass(slots=True)
class Exported:
    """What was written. files: as they were named. kept: files of an earlier export that know more than the history does."""

    files: list[str] = field(default_factory=list)
    rows: int = 0
    warnings: int = 0
    kept: list[str] = field(default_factory=list)
    left_out: int = 0
    """Damaged rows of the history."""


class Place(Protocol):
    """Where files go: a folder, or something that fsspec reaches."""

    def names(self, folder: str) -> list[str]:
        """The files of a folder below the place; [] when there is none."""
        ...

    def put(self, file: Path, name: str) -> None:
        """Take over a finished file under this name, whole, in place of one that is there."""
        ...

    def remove(self, name: str) -> None: ...

    def working(self) -> Path:
        """A folder on this PC in which files are made."""
        ...


class Folder:
    """A folder on this PC."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, folder: str) -> list[str]:
        place = self._root / folder
        return sorted(each.name for each in place.iterdir()) if place.is_dir() else []

    def put(self, file: Path, name: str) -> None:
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(target)
        sync_folder(target.parent)

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def working(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".export-", dir=self._root))


class OneFile:
    """A single CSV file for one machine; what else there is does not go along."""

    def __init__(self, target: Path, machine: str) -> None:
        self._folder, self._target, self._name = Folder(target.parent), target, f"{machine}.csv"

    def names(self, folder: str) -> list[str]:
        return self._folder.names(folder)

    def put(self, file: Path, name: str) -> None:
        if name == self._name:
            self._folder.put(file, self._target.name)

    def remove(self, name: str) -> None:
        self._folder.remove(name)

    def working(self) -> Path:
        return self._folder.working()


class Elsewhere:
    """What fsspec reaches by a URL (s3://, abfs://, sftp:// …)."""

    def __init__(self, url: str) -> None:
        try:
            core = importlib.import_module("fsspec.core")
        except ImportError:
            raise NoExport(
                f"{shown(url)}: a URL needs fsspec and what it needs for this kind: pip install fsspec"
            ) from None
        try:
            self._system, root = core.url_to_fs(url)
        except Exception as error:  # whatever a file system of others raises
            raise NoExport(f"{shown(url)}: {error}") from error
        self._shown = shown(url)
        self._root = str(root).rstrip("/")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # as above
            raise NoExport(f"{self._shown}: {error}") from error

    def names(self, folder: str) -> list[str]:
        try:
            with self._reached():
                found = self._system.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(each).rstrip("/").rpartition("/")[2] for each in found)

    def put(self, file: Path, name: str) -> None:
        target = f"{self._root}/{name}"
        folder, _, last = target.rpartition("/")
        beside = f"{folder}/.{last}"
        with self._reached():
            self._system.makedirs(folder, exist_ok=True)
            self._system.put_file(str(file), beside)
            self._system.mv(beside, target)
        file.unlink()

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._reached():
            self._system.rm_file(f"{self._root}/{name}")

    def working(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="edge-agent-export-"))


def shown(url: str) -> str:
    """Without the password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//…@", url)


def place_of(out: str) -> Place:
    """A folder, or a URL. Raises NoExport in words."""
    if out.startswith("file://"):
        return Folder(Path(out.removeprefix("file://")))
    return Elsewhere(out) if "://" in out else Folder(Path(out))


def export(folder: Path, out: Place, wanted: Wanted, progress: Callable[[str], None] = lambda _: None) -> Exported:
    """Write what is wanted of the data directory `folder`. progress: told the day that is being written.

    Parquet: whole days. Raises NoHistory, NoExport and lake.NoLake in words, OSError as it comes.
    """
    if wanted.form == PARQUET and not lake.is_here():
        raise lake.NoLake(lake.HOW_TO_GET)
    done = Exported()
    work = out.working()
    try:
        with standing(folder) as moment:
            reach = moment.reach()
            layouts = [each for each in moment.layouts() if wanted.machine(each.machine)]
            numbers = moment.days(DAY_US)
        if reach is not None:
            period = max(reach[0], wanted.from_us), min(reach[1] + 1, wanted.to_us)
            its = days_of(numbers, *period)
            if wanted.form == CSV:
                _export_csv(folder, out, wanted, done, work, layouts, its, period, progress)
            else:
                _export_parquet(folder, out, wanted, done, work, layouts, its, progress)
        if not isinstance(out, OneFile):
            _export_warnings(folder, out, wanted, done, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done


def machines_of(folder: Path, wanted: Wanted) -> list[str]:
    """The machines that are meant, by name. Raises NoHistory."""
    with standing(folder) as moment:
        return sorted({each.machine for each in moment.layouts() if wanted.machine(each.machine)})


def what_there_is(folder: Path) -> str:
    """For one who has found nothing: which machines there are, and from when to when. Raises NoHistory."""
    with standing(folder) as moment:
        reach, names = moment.reach(), sorted({each.machine for each in moment.layouts()} - {OWN})
    if reach is None:
        return "there are no readings yet"
    period = " to ".join(f"{messages.to_utc(each)[:16].replace('T', ' ')} UTC" for each in reach)
    return f"there are readings of {', '.join(names)}, from {period}"


def days_of(numbers: Iterable[int], from_us: int, to_us: int) -> list[int]:
    """The first instant of each of these UTC days that has part of from_us <= ts < to_us.

    Only days with rows are gone through: a clock that nobody had set may have left some in 1970.
    """
    return [day for number in sorted(numbers) if (day := number * DAY_US) < to_us and day + DAY_US > from_us]


def day_name(day_us: int) -> str:
    return messages.to_utc(day_us)[:10]


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass(slots=True)
class _Holding:
    """What stands, by signal."""

    moment: Moment
    machine: str
    from_us: int
    values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moment.forget = self.forget

    def forget(self, signals: Iterable[str]) -> None:
        """Nobody knows what stands: readings are lost."""
        self.values.update(dict.fromkeys(signals, float("nan")))

    def of(self, signal: str) -> float:
        if signal not in self.values:
            self.values[signal] = self.moment.held(self.machine, signal, self.from_us)
        return self.values[signal]


def filled(
    rows: Rows, signals: Sequence[str], holding: Callable[[str], float], keep: Callable[[str, float], None]
) -> tuple[Floats, Bools]:
    """(values, absent), each (rows, signals): what holds has the value that it holds.

    holding: the value that stands before these rows, NaN for none; keep: is told the one that stands after them.
    """
    columns = [rows.layout.signals.index(name) for name in signals]
    values, quality = rows.values[:, columns].copy(), rows.quality[:, columns]
    bad = ~np.isin(quality, (Quality.GOOD, Quality.HOLD, Quality.UNCERTAIN))
    values[bad] = np.nan
    held = quality == Quality.HOLD
    values[held & rows.late[:, None]] = np.nan  # what stood then, nobody knows now
    live = np.flatnonzero(~rows.late)
    for place, name in enumerate(signals):
        column, holds = values[live, place], held[live, place]
        if holds.any():
            last = np.maximum.accumulate(np.where(holds, -1, np.arange(len(live))))
            before = holding(name) if last[0] < 0 else np.nan
            column = np.where(last >= 0, column[np.maximum(last, 0)], before)
            values[live, place] = column
        if len(column):
            keep(name, float(column[-1]))
    return values, ~np.isfinite(values)


def states_of(rows: Rows) -> list[str | None]:
    """The operating state of each row; None where the machine has none."""
    names = rows.layout.states
    if not names:
        return [None] * len(rows.ts)
    return [names[each] if each >= 0 else messages.UNKNOWN_STATE for each in rows.state.tolist()]


def _runs(moment: Moment, machine: str, from_us: int, to_us: int) -> Iterator[tuple[Layout, str, Iterator[Rows]]]:
    """Rows of one layout and epoch that follow each other, as one run each. Each is to be read before the next."""
    waiting = moment.rows(machine, from_us, to_us)
    first = next(waiting, None)
    while first is not None:
        key = (first.layout, first.epoch)
        rest: list[Rows | None] = [first]

        def run(key: tuple[Layout, str] = key, rest: list[Rows | None] = rest) -> Iterator[Rows]:
            while rest[0] is not None and (rest[0].layout, rest[0].epoch) == key:
                yield rest[0]
                rest[0] = next(waiting, None)

        its = run()
        yield *key, its
        for _ in its:
            pass
        first = rest[0]


# ----------------------------------------------------------------------------------------------------------- Parquet


@dataclass(frozen=True, slots=True)
class _Part:
    """A finished file that has no name yet."""

    file: Path
    epoch: str
    seq_from: int
    seq_to: int
    rows: int

    def name(self, agent: str, taken: Container[str]) -> str:
        """One that is not taken: runs that published nothing have the numbers of the one before, and are counted."""
        stem = f"part-{agent}-{self.epoch}-{self.seq_from}-{self.seq_to}"
        more = (f"{stem}.{number}.parquet" for number in itertools.count(2))
        return next(name for name in itertools.chain([f"{stem}.parquet"], more) if name not in taken)


def _export_parquet(
    folder: Path, out: Place, wanted: Wanted, done: Exported, work: Path, layouts: Sequence[Layout],
    days: Sequence[int], progress: Callable[[str], None],
) -> None:  # fmt: skip
    held: dict[str, dict[str, float]] = {}
    for day in days:
        progress(day_name(day))
        for machine in dict.fromkeys(each.machine for each in layouts):
            with standing(folder) as moment:
                holding = _Holding(moment, machine, day, held.setdefault(machine, {}))
                parts = list(_parts(moment, holding, day, wanted, work))
                done.left_out += moment.left_out
            # Not before the look is over: the place may hang, and the agent's logs grow while somebody looks.
            _settle(out, f"machine={machine}/date={day_name(day)}", wanted.agent, parts, done)


def _parts(moment: Moment, holding: _Holding, day: int, wanted: Wanted, work: Path) -> Iterator[_Part]:
    machine, last = holding.machine, 0
    for layout, epoch, run in _runs(moment, machine, day, day + DAY_US):
        signals = [name for name in layout.signals if wanted.signal(name)]
        if not signals:
            continue
        file = work / f"{machine}-{len(list(work.iterdir()))}.parquet"
        first, about = 0, {"agent": wanted.agent, "machine": machine, "epoch": epoch}
        with lake.part(file, signals, about) as writer:
            for rows in run:
                _add(writer, rows, signals, holding)
                told = rows.seqs[rows.seqs > 0]
                if len(told):
                    first, last = first or int(told.min()), int(told.max())
        yield _Part(file, epoch, first or last, last, writer.rows)


def _add(writer: lake.PartWriter, rows: Rows, signals: Sequence[str], holding: _Holding) -> None:
    values, absent = filled(rows, signals, holding.of, holding.values.__setitem__)
    quality = rows.quality[:, [rows.layout.signals.index(name) for name in signals]].astype(np.int8)
    writer.add(rows.ts, values, absent, quality, states_of(rows))


def _settle(out: Place, folder: str, agent: str, parts: Sequence[_Part], done: Exported) -> None:
    """Give the parts of a machine's day their names, and take away those of an earlier export that they replace."""
    if not parts:
        return
    old = {name: its for name in out.names(folder) if (its := _numbers(name, agent)) is not None}
    begins = {epoch: min(each.seq_from for each in parts if each.epoch == epoch) for epoch in {p.epoch for p in parts}}
    behind = {epoch for epoch, first in begins.items() if any(e == epoch and a < first for e, a, _ in old.values())}
    fresh: set[str] = set()
    for part in parts:
        if part.epoch in behind:
            part.file.unlink()
            continue
        name = part.name(agent, fresh)
        out.put(part.file, f"{folder}/{name}")
        fresh.add(name)
        done.files.append(f"{folder}/{name}")
        done.rows += part.rows
    for name, (epoch, _, _) in old.items():
        if epoch in behind:
            done.kept.append(f"{folder}/{name}")
        elif epoch in begins and name not in fresh:
            out.remove(f"{folder}/{name}")


def _numbers(name: str, agent: str) -> tuple[str, int, int] | None:
    """(epoch, seq from, seq to) of a part of this agent."""
    found = re.fullmatch(rf"part-{re.escape(agent)}-([^-]+)-(\d+)-(\d+)(?:\.\d+)?\.parquet", name)
    return (found[1], int(found[2]), int(found[3])) if found else None


# --------------------------------------------------------------------------------------------------------------- CSV


def _export_csv(
    folder: Path, out: Place, wanted: Wanted, done: Exported, work: Path, layouts: Sequence[Layout],
    days: Sequence[int], period: tuple[int, int], progress: Callable[[str], None],
) -> None:  # fmt: skip
    for machine in dict.fromkeys(each.machine for each in layouts):
        its = [each for each in layouts if each.machine == machine]
        signals = list(dict.fromkeys(name for each in its for name in each.signals if wanted.signal(name)))
        if not signals:
            continue
        file = work / f"{machine}.csv"
        count = 0
        with file.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)  # RFC 4180: CRLF, quotes where they are needed
            writer.writerow([lake.TS, *(each for pair in lake.columns_of(signals) for each in pair), lake.STATE])
            held: dict[str, float] = {}
            for day in days:
                progress(f"{machine} {day_name(day)}")
                count += _csv_day(
                    folder, writer, machine, signals, held, max(day, period[0]), min(day + DAY_US, period[1]), done
                )
        if count:
            out.put(file, f"{machine}.csv")
            done.files.append(f"{machine}.csv")
            done.rows += count
        else:
            file.unlink()


def _csv_day(
    folder: Path,
    writer: Any,
    machine: str,
    signals: Sequence[str],
    held: dict[str, float],
    from_us: int,
    to_us: int,
    done: Exported,
) -> int:
    count = 0
    with standing(folder) as moment:
        holding = _Holding(moment, machine, from_us, held)
        for rows in moment.rows(machine, from_us, to_us):
            its = [name for name in signals if name in rows.layout.signals]
            values, absent = filled(rows, its, holding.of, holding.values.__setitem__)
            quality = rows.quality[:, [rows.layout.signals.index(name) for name in its]]
            cells = {name: _cells(values[:, i], absent[:, i], quality[:, i]) for i, name in enumerate(its)}
            none = ([""] * len(rows.ts),) * 2
            columns = [column for name in signals for column in cells.get(name, none)]
            states = [state or "" for state in states_of(rows)]
            writer.writerows(zip(_stamps(rows.ts), *columns, states, strict=True))
            count += len(rows.ts)
        done.left_out += moment.left_out
    return count


def _cells(values: Floats, absent: Bools, quality: Codes) -> tuple[list[str], list[int]]:
    """The two columns of a signal."""
    texts = list(map(repr, values.tolist()))
    for row in np.flatnonzero(absent).tolist():
        texts[row] = ""
    return texts, quality.tolist()


def _stamps(ts: Ints) -> list[str]:
    """`iso` of many."""
    if (ts % 1000).any():
        return [iso(each) for each in ts.tolist()]
    texts = np.datetime_as_string(ts.astype("datetime64[us]"), unit="ms")
    return [f"{each}Z" for each in texts.tolist()]


def iso(us: int) -> str:
    """RFC 3339 UTC, with as many digits as it has: milliseconds or microseconds."""
    text = messages.to_utc(us)
    return text if us % 1000 == 0 else f"{text[:-1]}{us % 1000:03d}Z"


# ---------------------------------------------------------------------------------------------------------- warnings


def _export_warnings(folder: Path, out: Place, wanted: Wanted, done: Exported, work: Path) -> None:
    with ExitStack() as stack:
        past = stack.enter_context(open_past(folder))
        if wanted.form == CSV:
            _warnings_csv(past.events(wanted.from_us, wanted.to_us, ("warnings",)), out, wanted, done, work)
            return
        first, last = wanted.from_us // DAY_US * DAY_US, -(-wanted.to_us // DAY_US) * DAY_US
        by_part: dict[tuple[str, str], list[dict[str, Any]]] = {}
        day = ""
        for told in past.events(first, last, ("warnings",)):
            row = _warning(told, wanted)
            if row is None:
                continue
            if day != (day := day_name(told.closed_us)) and by_part:
                _warnings_parquet(by_part, out, wanted, done, work)
                by_part = {}
            by_part.setdefault((day, told.epoch), []).append(row)
        _warnings_parquet(by_part, out, wanted, done, work)


def _warning(told: Told, wanted: Wanted) -> dict[str, Any] | None:
    """A row of WARNING_COLUMNS; None when it is not wanted, or cannot be read."""
    try:
        plain = orjson.loads(told.payload)
        wants = wanted.machine(plain["machine"]) or (not wanted.machines and plain["machine"] == OWN)
        if not (wants and wanted.signal(plain["signal"])):
            return None
        row = {name: plain.get(name) for name, _ in lake.WARNING_COLUMNS}
        row["norm"] = orjson.dumps(plain.get("norm") or {}).decode()
        row["ts"], row["since"] = _us(plain["ts"]), _us(plain["since"])
    except (ValueError, KeyError, TypeError):
        return None
    return row


def _us(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def _warnings_csv(events: Iterator[Told], out: Place, wanted: Wanted, done: Exported, work: Path) -> None:
    file, count = work / "warnings.csv", 0
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow([name for name, _ in lake.WARNING_COLUMNS])
        for told in events:
            row = _warning(told, wanted)
            if row is not None:
                row["ts"], row["since"] = iso(row["ts"]), iso(row["since"])
                writer.writerow(["" if row[name] is None else row[name] for name, _ in lake.WARNING_COLUMNS])
                count += 1
    if count:
        out.put(file, "warnings.csv")
        done.files.append("warnings.csv")
        done.warnings += count


def _warnings_parquet(
    by_part: dict[tuple[str, str], list[dict[str, Any]]], out: Place, wanted: Wanted, done: Exported, work: Path
) -> None:
    for day in dict.fromkeys(day for day, _ in by_part):
        parts = []
        for (its, epoch), rows in by_part.items():
            if its == day:
                file = work / f"warnings-{epoch}.parquet"
                lake.write_warnings(file, rows)
                numbers = [row["seq"] for row in rows]
                parts.append(_Part(file, epoch, min(numbers), max(numbers), 0))
                done.warnings += len(rows)
        _settle(out, f"{WARNINGS}/date={day}", wanted.agent, parts, done)
