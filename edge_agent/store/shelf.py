"""The history's file: its schema, opening it for writing or for reading, and saving what can be saved of a damaged one.

Rule 1: it is a file of its own, so that damage of one costs nothing of the other. Rule 2: every row carries a checksum,
and no row is believed whose checksum is wrong; what was wrong is left out and counted, never guessed.
"""

import contextlib
import math
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from edge_agent.contract import SECOND_US
from edge_agent.records import Layout
from edge_agent.store import disk, rows
from edge_agent.store.stretch import Sums

log = structlog.get_logger(__name__)

FILE = "history.db"
FORMAT = 1
WAL_KEPT = 4_000_000
"""bytes that its log may keep beside it."""
CHECKED_MAX = 250_000_000
"""bytes: a larger file is not read through when it is opened; the damage of a page is found when it is used."""
COLUMN_BITS = 20
"""A chunk's number is its axis' number and its column."""
COLUMNS_MAX = 1 << COLUMN_BITS
AXES_MAX = 1 << (63 - COLUMN_BITS)
"""The number of an axis lies below it, or its chunks would have none; one that says more is damaged."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY, text TEXT, crc INTEGER);
CREATE TABLE IF NOT EXISTS layouts (id INTEGER PRIMARY KEY, machine TEXT, signals TEXT, states TEXT, crc INTEGER);
CREATE TABLE IF NOT EXISTS signals (id INTEGER PRIMARY KEY, machine TEXT, name TEXT, crc INTEGER);
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, layout INTEGER, epoch TEXT, place_from INTEGER, place_to INTEGER, rows INTEGER,
    ts_from INTEGER, ts_to INTEGER, t_to INTEGER, batch INTEGER, data BLOB, crc INTEGER);
CREATE INDEX IF NOT EXISTS blocks_in_order ON blocks (layout, place_to);
CREATE TABLE IF NOT EXISTS axes (
    id INTEGER PRIMARY KEY, layout INTEGER, epoch TEXT, place_from INTEGER, place_to INTEGER, rows INTEGER,
    ts_from INTEGER, ts_to INTEGER, t_to INTEGER, batch INTEGER, data BLOB, crc INTEGER);
CREATE INDEX IF NOT EXISTS axes_in_order ON axes (layout, place_to);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, signal INTEGER, ts_from INTEGER, ts_to INTEGER, count INTEGER, bad INTEGER,
    low REAL, high REAL, total REAL, sums INTEGER, cells BLOB, data BLOB, crc INTEGER);
CREATE INDEX IF NOT EXISTS chunks_of_signal
    ON chunks (signal, ts_from, ts_to, count, bad, low, high, total, sums);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, epoch TEXT, seq INTEGER, machine TEXT, kind TEXT, closed INTEGER, payload BLOB, crc INTEGER);
CREATE INDEX IF NOT EXISTS events_closed ON events (closed);
CREATE TABLE IF NOT EXISTS commands (
    id INTEGER PRIMARY KEY, epoch TEXT, ts INTEGER, t INTEGER, text INTEGER, plain BLOB, crc INTEGER);
CREATE TABLE IF NOT EXISTS texts (id INTEGER PRIMARY KEY, sha TEXT, text BLOB, crc INTEGER);
"""
TABLES = ("meta", "layouts", "signals", "blocks", "axes", "chunks", "events", "commands", "texts")
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}
"""By the format that is found: brings the file one format on, within the transaction that says so."""


_SUMS = struct.Struct("<5q3d")


class NoHistory(Exception):
    """There is nothing to read; the text says what was found in its place."""


class NotYet(NoHistory):
    """The file is there, and empty as yet."""


class Piece(NamedTuple):
    """A row of `blocks` or `axes` without its data. chunks: whether its columns stand in `chunks`."""

    chunks: bool
    id: int
    layout: int
    epoch: str
    place_from: int
    place_to: int
    rows: int
    ts_from: int
    ts_to: int
    t_to: int
    batch: int
    """Of the journal, the last that the step took whose rows these are."""


TIMED = " AND ".join(
    f"typeof({each}) = 'integer' AND {each} BETWEEN 0 AND {disk.NEVER_US - 1}" for each in ("ts_from", "ts_to")
)
"""Of blocks, axes and batches, those that say from when to when: a damaged number may be anything."""
PIECE = "id, layout, epoch, place_from, place_to, rows, ts_from, ts_to, t_to, batch"


@dataclass(frozen=True, slots=True)
class Position:
    """How far the history has come. place: the next one. moved: by epoch, (batch, seq) of the journal.

    missing: batches that were gone or damaged before they could be moved.
    """

    place: int = 1
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: int = 0

    def has_batch(self, epoch: str, batch: int) -> bool:
        return self.moved.get(epoch, (0, 0))[0] >= batch

    def has_seq(self, epoch: str, seq: int) -> bool:
        return self.moved.get(epoch, (0, 0))[1] >= seq


def read_position(db: sqlite3.Connection) -> Position | None:
    """None when it is not there or damaged. Raises sqlite3.Error."""
    row = db.execute("SELECT * FROM meta WHERE id = 1").fetchone()
    if row is None or not rows.sound(row):
        return None
    try:
        plain = orjson.loads(row[1])
        moved = {epoch: (int(batch), int(seq)) for epoch, (batch, seq) in plain["moved"].items()}
        return Position(plain["place"], moved, plain["missing"])
    except rows.UNREADABLE:
        return None


def put_position(db: sqlite3.Connection, position: Position) -> None:
    text = orjson.dumps(position).decode()
    put(db, "meta", (1, text), replace=True)


def put(
    db: sqlite3.Connection, table: str, plain: Sequence[Any], *, replace: bool = False, numbered: bool = False
) -> None:
    """A row and its checksum. plain: all columns but the last. numbered: all but the first too, which is the next number."""
    if numbered:
        (number,) = db.execute(f"SELECT ifnull(max(id), 0) + 1 FROM {table}").fetchone()  # noqa: S608 - names of our own
        plain = (number, *plain)
    how = "INSERT OR REPLACE" if replace else "INSERT"
    marks = ",".join("?" * (len(plain) + 1))
    db.execute(f"{how} INTO {table} VALUES ({marks})", (*plain, rows.checksum(*plain)))


def put_chunk(
    db: sqlite3.Connection, number: int, signal: int, ts_from: int, ts_to: int, sums: Sums, data: bytes
) -> None:
    """A row of `chunks`, whose sums have a checksum of their own: they are read without the data."""
    head = (signal, ts_from, ts_to, sums.count, sums.bad, *map(_real, (sums.low, sums.high, sums.total)))
    cells = struct.pack("<I", zlib.crc32(sums.cells)) + sums.cells if sums.cells else b""
    put(db, "chunks", (number, *head, sums_checksum(head), cells, data))


def sums_checksum(head: tuple[Any, ...]) -> int:
    """Over the columns of `chunks` from `signal` to `total`; a trend over a year asks for thousands.

    -1, which none is, where one of them is no number at all.
    """
    signal, ts_from, ts_to, count, bad, low, high, total = head
    try:
        numbers = [math.nan if each is None else each for each in (low, high, total)]
        return zlib.crc32(_SUMS.pack(signal, ts_from, ts_to, count, bad, *numbers))
    except (struct.error, TypeError):
        return -1


def _real(number: float) -> float | None:
    """As sqlite gives it back: it knows neither NaN nor -0."""
    return None if math.isnan(number) else number + 0.0


def read_layouts(db: sqlite3.Connection) -> dict[int, Layout]:
    """Those that are sound. Raises sqlite3.Error."""
    found = {}
    for row in db.execute("SELECT * FROM layouts"):
        with contextlib.suppress(*rows.UNREADABLE):
            if rows.sound(row):
                found[row[0]] = disk.to_layout(row)
    return found


def read_signals(db: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """(machine, signal) → number. Raises sqlite3.Error."""
    return {(row[1], row[2]): row[0] for row in db.execute("SELECT * FROM signals") if rows.sound(row)}


def chunk_id(axis: int, column: int) -> int:
    return axis << COLUMN_BITS | column


# --- opening ------------------------------------------------------------------------------------------------------------


def open_for_writing(folder: Path, wall: int, progress: disk.Progress = lambda: None) -> sqlite3.Connection:
    """Open or create. What is damaged is moved aside and saved row by row. Raises OSError when the disk refuses."""
    path, fresh = folder / FILE, folder / f"{FILE}.new"
    if not path.exists() and fresh.exists():
        fresh.replace(path)  # the end came between the two renames of `saved`
    try:
        try:
            db = _connect(path)
            try:
                _prepared(db, path)
            except BaseException:
                db.close()
                raise
        except (disk.Damaged, UnicodeDecodeError) as error:
            db = saved(folder, wall, str(error), progress)
        except sqlite3.Error as error:
            if not disk.is_damage(error):
                raise
            db = saved(folder, wall, str(error), progress)
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error
    return db


def _connect(path: Path) -> sqlite3.Connection:
    fresh = not path.exists()
    db = disk.connect(path)
    if fresh:
        path.chmod(0o600)
        # Free pages can be given back when the bound becomes smaller; it must be said before the first table.
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(f"PRAGMA journal_size_limit={WAL_KEPT}")
    return db


def _prepared(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT:
        raise OSError(f"{path}: format {version} was written by a later version; this one knows {FORMAT}")
    if path.stat().st_size <= CHECKED_MAX:
        # Not the quick one, which looks into no index: what an index lacks is not found, and nobody misses it.
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise disk.Damaged(str(verdict))
    if version == 0:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
    while 0 < version < FORMAT:
        db.execute("BEGIN IMMEDIATE")
        MIGRATIONS[version](db)
        version += 1
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("COMMIT")
    db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
    disk.check_tables(db, SCHEMA)
    moved = ("blocks", "axes", "events", "commands")
    if read_position(db) is None and any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in moved):  # noqa: S608
        raise disk.Damaged("how far it has come cannot be read")
    for table in ("layouts", "signals"):
        if not all(rows.sound(row) for row in db.execute(f"SELECT * FROM {table}")):  # noqa: S608
            raise disk.Damaged(f"a row of {table} is damaged")


def open_for_reading(folder: Path) -> sqlite3.Connection:
    """Read-only, also while an agent writes. Raises NoHistory; NotYet where its file has only just been made."""
    path = folder / FILE
    if not path.is_file():
        raise NoHistory(f"{folder}: has no history ({FILE}) yet")
    db = read_only(path)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
    except disk.FAULTS as error:
        db.close()
        raise NoHistory(f"{path}: cannot be read: {error}") from error
    if version != FORMAT:
        db.close()
        if version == 0:
            raise NotYet(f"{path}: nothing is in it yet")
        wanted = "a later version: update this one" if version > FORMAT else "an earlier one: start the agent once"
        raise NoHistory(f"{path}: format {version} was written by {wanted}")
    return db


@contextmanager
def opened_for_reading(folder: Path) -> Iterator[tuple[sqlite3.Connection | None, sqlite3.Connection | None]]:
    """(journal, history) of an agent's folder, read-only; None for a file that is not there, or has nothing in it as yet.

    Raises NoHistory.
    """
    with contextlib.ExitStack() as stack:
        journal = history = None
        if (path := folder / disk.FILE).is_file():
            found = stack.enter_context(contextlib.closing(read_only(path)))
            journal = found if _has_begun(found, path) else None
        if (folder / FILE).is_file():
            with contextlib.suppress(NotYet):
                history = stack.enter_context(contextlib.closing(open_for_reading(folder)))
        yield journal, history


def _has_begun(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the journal has its tables: not where an agent that begins could not write them. Raises NoHistory."""
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except disk.FAULTS as error:
        raise NoHistory(f"{path}: cannot be read: {error}") from error
    if version > disk.FORMAT:
        raise NoHistory(f"{path}: format {version} was written by a later version: update this one")
    return bool(tables)


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, not even in a folder where nothing may be written."""
    found = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=disk.BUSY_S, isolation_level=None)
    try:
        found.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error:
        if path.with_name(path.name + "-wal").exists():
            return found  # whoever uses it hears why
        found.close()
        found = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return found


# --- damage -------------------------------------------------------------------------------------------------------------


def saved(folder: Path, wall: int, fault: str, progress: disk.Progress = lambda: None) -> sqlite3.Connection:
    """A new file with every row of the old one that can be read and is sound; the old one is kept beside it.

    Raises OSError or sqlite3.Error, and then all is as it was.
    """
    path, fresh = folder / FILE, folder / f"{FILE}.new"
    _removed(fresh)
    for earlier in folder.glob(f"{FILE}.damaged-*"):
        earlier.unlink(missing_ok=True)
    _room(path, fault)
    try:
        with contextlib.closing(_connect(fresh)) as db, contextlib.closing(disk.connect(path)) as old:
            disk.unlocked(old, SCHEMA)
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
            count = sum(_copied(db, old, table, progress) for table in TABLES)
            # Nobody can read a column without its axis.
            db.execute("DELETE FROM chunks WHERE id >> ? NOT IN (SELECT id FROM axes)", (COLUMN_BITS,))
            if read_position(db) is None:
                put_position(db, guessed_position(db))
    except BaseException:
        _removed(fresh)  # the journal needs its space
        raise
    aside = folder / f"{FILE}.damaged-{wall // SECOND_US}"
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    fresh.replace(path)
    log.error("history_damaged", fault=fault, kept_as=str(aside), saved=count)
    return _connect(path)


def _removed(fresh: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)


def _room(path: Path, fault: str) -> None:
    """Raises OSError where the disk has no room for a second file: the copy would take from the journal what it needs."""
    parts = (path, path.with_name(f"{path.name}-wal"))
    needed = sum(part.stat().st_size for part in parts if part.exists()) + WAL_KEPT
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            f"{path} is damaged ({fault}), and saving its rows into a new file needs {needed / 1e6:.0f} MB, "
            f"of which {free / 1e6:.0f} are free: make room, or move the file away to begin a new history"
        )


SAVED_AT_ONCE = 500
"""Rows in one transaction while a damaged file is saved."""


def _copied(db: sqlite3.Connection, old: sqlite3.Connection, table: str, progress: disk.Progress) -> int:
    count = 0
    db.execute("BEGIN IMMEDIATE")
    for row in disk.readable(old, table):
        progress()
        with contextlib.suppress(sqlite3.IntegrityError):
            put(db, table, row[:-1], replace=True)
            count += 1
        if count % SAVED_AT_ONCE == 0:
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")
    return count


def guessed_position(db: sqlite3.Connection) -> Position:
    """The rows say what was moved last: each knows the batch, and each event its number. The oldest epoch comes first.

    Raises sqlite3.Error.
    """
    moved: dict[str, tuple[int, int]] = {}
    place = 0
    for table in ("axes", "blocks"):
        asked = (
            f"SELECT epoch, max(batch), max(place_to) FROM {table} "  # noqa: S608
            "WHERE typeof(batch) = 'integer' AND typeof(place_to) = 'integer' GROUP BY epoch ORDER BY max(place_to)"
        )
        for epoch, batch, last in db.execute(asked):
            moved[epoch] = (max(moved.get(epoch, (0, 0))[0], batch), 0)
            place = max(place, last)
    for epoch, seq in db.execute("SELECT epoch, max(seq) FROM events WHERE typeof(seq) = 'integer' GROUP BY epoch"):
        moved[epoch] = (moved.get(epoch, (0, 0))[0], seq)
    (last,) = db.execute("SELECT ifnull(max(id), 0) FROM commands").fetchone()
    return Position(max(place, int(last)) + 1, moved)
