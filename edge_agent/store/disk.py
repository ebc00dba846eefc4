"""The journal's file: opening it, knowing an older copy of it, and saving what can be saved of a damaged one.

Rule 1: an open always ends with a store that works; what had to be given up is a gap record.
Rule 2: beside the file lies a marker, written after each commit and before anybody hears of it: a file that knows of
fewer numbers than its marker is an older copy, and counts on under another epoch.
"""

import contextlib
import errno
import os
import secrets
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import structlog

from edge_agent.contract import SECOND_US
from edge_agent.records import Command, Gap, GapCause, Layout
from edge_agent.store import rows
from edge_agent.store.ranges import Intervals

log = structlog.get_logger(__name__)

FILE = "journal.db"
MARKER = "journal.marker"
MARKER_BYTES = 512
"""One sector: rewritten in its place it is whole or unreadable, and needs no space on a full disk."""
FORMAT = 2
"""Written into the file (user_version). One that is older is brought forward step by step: see STEPS."""
PAGE_BYTES = 1_024
"""Of a new file: a commit of a small plant touches few bytes of few pages, and a card lives on what is written."""
CHECKPOINT_BYTES = 2_000_000
"""of log, about, after which it is moved into the file: most of it was delivered and deleted by then."""
BUSY_S = 5.0
CHECKED_MAX = 32_000_000
"""bytes: a larger file is not read through at start (the damage of a page is found when it is used, and mended then)."""
WAL_KEPT = 16_000_000
GLIMPSED_MAX = 64_000_000
"""bytes: what of a file that cannot be opened is copied into memory, to be read there."""
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of a random name, for us alone
NEVER_US = 253_402_300_800 * SECOND_US
"""The end of the year 9999: no time is written beyond it."""
NUMBER_MAX = 2**63 - 1
"""The largest that sqlite has. A text, which only damage puts where a number belongs, counts as larger there."""
EPOCH_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY, text TEXT, crc INTEGER);
CREATE TABLE IF NOT EXISTS layouts (id INTEGER PRIMARY KEY, machine TEXT, signals TEXT, states TEXT, crc INTEGER);
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, epoch TEXT, seq_from INTEGER, seq_to INTEGER, messages INTEGER, bytes INTEGER,
    ts_from INTEGER, ts_to INTEGER, closed INTEGER, frames BLOB, crc INTEGER);
CREATE TABLE IF NOT EXISTS notices (
    seq INTEGER PRIMARY KEY, machine TEXT, kind TEXT, closed INTEGER, payload BLOB, crc INTEGER);
CREATE TABLE IF NOT EXISTS snapshot (id INTEGER PRIMARY KEY, batch INTEGER, state BLOB, config TEXT, crc INTEGER);
CREATE TABLE IF NOT EXISTS config (id INTEGER PRIMARY KEY, sha TEXT, text TEXT, crc INTEGER);
"""
LATER_SCHEMA = """
CREATE TABLE IF NOT EXISTS done (first INTEGER PRIMARY KEY, last INTEGER, crc INTEGER);
"""
"""Added without a new format: whoever does not know of it delivers again what was delivered, and loses nothing."""
STEPS: dict[int, str] = {
    1: """
DROP INDEX IF EXISTS batches_told; DROP INDEX IF EXISTS batches_quiet; DROP INDEX IF EXISTS batches_bytes;
""",
}
"""By format: what makes the next one of it, in one transaction. 2 (after 0.1.0): batches are found by their number alone,
are packed, and what is delivered is written once a minute, since the marker has it meanwhile.
"""
KEYS = {
    "meta": "id", "layouts": "id", "batches": "id", "notices": "seq", "snapshot": "id", "config": "id", "done": "first",
}  # fmt: skip
SMALL = ("meta", "layouts", "snapshot", "config")
CONFIG, LEFTOVERS, DEVICES, LIFE, MISSED, STAMPS, HANDED, TICKED = 1, 2, 3, 4, 5, 8, 9, 10
"""Rows of `config`: the last good configuration, topics still to be cleared at the broker, what devices have taught, the
clocks of the run that wrote last, the missed beats that it had not told of, the machines whose last row was a tick when
the snapshot was taken, and of a clock that was not set (`stamps`) its
spans and what left with their stamps."""
JUDGED_WITH, COUNTED = 6, 7
"""Rows of `config` too: the configuration that belongs to the snapshot, and what was counted with it (Counted)."""
MARKED_MAX = 24
"""Ranges of what is delivered that the marker holds: more would not fit into its sector."""
OUTSIDE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
"""Results that say nothing of the file's contents: the disk is full, gone, read-only or busy."""
UNSYNCED = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)
"""After a failed fsync the kernel forgets what it could not write, and says of the next one that all is well."""


FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What a query may raise: where names in the schema are damaged, the text of sqlite's own error cannot be decoded."""


class Damaged(Exception):
    """A row that must be right is not."""


class Newer(Exception):
    """A later release has written this file."""


@dataclass(frozen=True, slots=True)
class State:
    """How far the store has come. last_t, last_wall: µs of the last frame; None before the first."""

    epoch: str
    last_seq: int = 0
    last_batch: int = 0
    last_t: int | None = None
    last_wall: int | None = None
    delivered: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Counted:
    """Written with each snapshot, so that a start need not look at everything.

    Batches up to this one have so many bytes (size) on disk; notices up to this number (seq) are older than the snapshot;
    of batches up to `pruned` nothing is left that could go.
    """

    batch: int = 0
    size: int = 0
    seq: int = 0
    pruned: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that works. gap: what had to be given up; lost: its numbers (they stand in state.delivered too)."""

    db: sqlite3.Connection
    state: State
    layouts: dict[int, Layout]
    config: tuple[str, str] | None
    texts: dict[int, str] = field(default_factory=dict)
    """The other rows of `config`."""
    gap: Gap | None = None
    lost: list[tuple[int, int]] = field(default_factory=list)
    reader: sqlite3.Connection | None = None
    """A second connection, which looks on and neither waits for a commit nor sees half of one."""
    fault: str = ""
    """Why the disk does not allow it: `db` is then a copy in memory of what can be read of the file, which nobody keeps."""


def is_damage(error: Exception) -> bool:
    """Whether the contents of the file are to blame."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF not in OUTSIDE


def is_full(error: Exception) -> bool:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_FULL


def is_unsynced(error: Exception) -> bool:
    """Whether the disk has failed to sync: what it says of this file from now on is not to be believed."""
    return getattr(error, "sqlite_errorcode", None) in UNSYNCED


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


Progress = Callable[[], None]
"""Called again and again while something takes long, so that nobody takes it for a hang."""


def open_file(folder: Path, wall: int, progress: Progress = lambda: None) -> Opened:
    """Open or create. Raises OSError when the disk does not allow it, whatever the file says."""
    path = folder / FILE
    marker = read_marker(folder)
    if not path.exists() and _fresh(path).exists():
        _take_place(_fresh(path), path)  # the end came between the two renames
    try:
        try:
            db = connect(path)
            try:
                small = _prepared(db, path)
                check_tables(db, SCHEMA + LATER_SCHEMA)
                found = _settled(db, *small, marker, wall)
            except BaseException:
                db.close()
                raise
        except Newer as error:
            found = _begun_anew(folder, wall, str(error))
        except (Damaged, UnicodeDecodeError) as error:
            found = rebuilt(folder, wall, str(error), progress=progress)
        except sqlite3.Error as error:
            if not is_damage(error) and not _reads_badly(error, path):
                raise
            found = rebuilt(folder, wall, str(error), progress=progress)
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error
    write_marker(folder, found.state)
    return with_reader(folder, found)


def with_reader(folder: Path, opened: Opened) -> Opened:
    """Raises OSError, and then nothing is open."""
    try:
        reader = connect(folder / FILE)
        try:
            reader.execute("PRAGMA query_only=ON")
            reader.execute("SELECT max(id) FROM batches").fetchone()
        except BaseException:
            reader.close()
            raise
    except sqlite3.Error as error:
        opened.db.close()
        raise OSError(f"{folder / FILE}: {error}") from error
    return replace(opened, reader=reader)


def open_or_glimpse(folder: Path, wall: int, progress: Progress = lambda: None) -> Opened:
    """`open_file`; where the disk does not allow it now, what can be known of the store without it (Opened.fault).

    Raises OSError where no waiting helps: see `never`.
    """
    never(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open_file(folder, wall, progress)
    except OSError as error:
        never(folder)
        return _glimpsed(folder, wall, said(error))


def said(error: Exception) -> str:
    """What a disk or its file said when it refused, for a person; the name of the fault where it said nothing."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def never(folder: Path) -> None:
    """Raises OSError when a person has to mend something before this folder can hold a store.

    A disk that is full, read-only or failing is not of that kind: it may come back while the agent runs.
    """
    path = folder / FILE
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(folder))
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "is not a file", str(path))
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if is_read_only(there):
        return
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing may be written here", str(there))
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, "may not be read and written", str(path))


def is_read_only(place: Path) -> bool:
    """Whether its file system is mounted so."""
    with contextlib.suppress(OSError):
        return bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    return False


def _glimpsed(folder: Path, wall: int, fault: str) -> Opened:
    """The store as a copy of it in memory shows it; else as its marker does; else a new one."""
    with contextlib.suppress(OSError, Damaged, *FAULTS), _copied(folder) as path:
        db = connect(path)
        found = _settled(db, *_prepared(db, path), read_marker(folder), wall)
        return replace(found, gap=None, fault=fault, reader=db)
    state = read_marker(folder) or State(fresh_epoch())
    return Opened(nothing := blank(), state, {}, None, reader=nothing, fault=fault)


@contextlib.contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    """The file and its log in memory, for as long as it takes to open them; raises OSError when they are too large."""
    parts = [part for part in (folder / FILE, folder / f"{FILE}-wal") if part.exists()]
    if not parts or sum(part.stat().st_size for part in parts) > GLIMPSED_MAX:
        raise FileNotFoundError(errno.ENOENT, "nothing that fits into memory", str(folder / FILE))
    with tempfile.TemporaryDirectory(prefix="edge-agent-", dir=MEMORY) as name:
        for part in parts:
            shutil.copy(part, name)
        yield Path(name) / FILE


def blank(schema: str = SCHEMA + LATER_SCHEMA) -> sqlite3.Connection:
    """A store (or what another schema makes) in memory in which nothing is."""
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.executescript(schema)
    return db


def _reads_badly(error: sqlite3.Error, path: Path) -> bool:
    """A flipped byte in the header makes a file read-only, and a bad sector cannot be read: neither is the disk's no."""
    code: int = error.sqlite_errorcode & 0xFF
    return code == sqlite3.SQLITE_IOERR or (code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK))


def _prepared(db: sqlite3.Connection, path: Path) -> tuple[State | None, dict[int, Layout], dict[int, tuple[str, str]]]:
    """Schema, and all that is small, read and checked. Raises Damaged or sqlite3.Error."""
    path.chmod(0o600)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= FORMAT:
        raise Newer(f"format {version} is not known to this release")
    _settings(db)
    if path.stat().st_size <= CHECKED_MAX:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(str(verdict))
    if version == 0:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
    db.executescript(f"BEGIN IMMEDIATE; {LATER_SCHEMA} COMMIT")
    for step in range(version or FORMAT, FORMAT):
        db.executescript(f"BEGIN IMMEDIATE; {STEPS[step]} PRAGMA user_version = {step + 1}; COMMIT")
        log.info("store_brought_forward", format=step + 1)
    small: dict[str, list[tuple[Any, ...]]] = {}
    for table in SMALL:
        small[table] = db.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - names of our own
        if not all(rows.sound(row) for row in small[table]):
            raise Damaged(f"a row of {table} is damaged")
    try:
        state = to_state(small["meta"][0][1]) if small["meta"] else None
        layouts = {row[0]: to_layout(row) for row in small["layouts"]}
        config = {row[0]: (row[2], row[1]) for row in small["config"]}
    except rows.UNREADABLE as error:
        raise Damaged(str(error)) from error
    if state is None and db.execute(
        "SELECT EXISTS (SELECT 1 FROM batches), EXISTS (SELECT 1 FROM notices)"
    ).fetchone() != (
        0,
        0,
    ):
        raise Damaged("the state is missing")
    if state is not None:
        state = replace(state, delivered=Intervals([*state.delivered, *_done(db)]).ranges())
    return state, layouts, config


def _done(db: sqlite3.Connection) -> list[tuple[int, int]]:
    """The ranges that are delivered. One that is not sound counts as not delivered."""
    return [(row[0], row[1]) for row in db.execute("SELECT * FROM done") if rows.sound(row)]


def _settings(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file
    (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":  # sqlite says no more than that when the disk has failed meanwhile
        raise OSError(errno.EIO, "the disk refuses the journal its log")
    db.execute("PRAGMA synchronous=FULL")
    # Whoever deletes a page need not write it; and what goes wrong when the log is moved is told to us: see `checkpoint`.
    db.execute("PRAGMA secure_delete=OFF")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute(f"PRAGMA journal_size_limit={WAL_KEPT}")


def checkpoint(db: sqlite3.Connection) -> bool:
    """Move the log into the file; False when a reader was in the way of some of it. Raises sqlite3.Error."""
    busy, pages, moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not busy and bool(pages == moved)


def to_state(text: str) -> State:
    plain = orjson.loads(text)
    return State(**{**plain, "delivered": [(first, last) for first, last in plain["delivered"]]})


def put_state(db: sqlite3.Connection, state: State) -> None:
    """All of it but what is delivered, which `put_done` keeps range by range."""
    text = _state_text(replace(state, delivered=[]))
    db.execute("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (text, rows.checksum(1, text)))


def put_done(db: sqlite3.Connection, changes: Mapping[int, int | None]) -> None:
    gone = [(first,) for first, last in changes.items() if last is None]
    here = [(first, last, rows.checksum(first, last)) for first, last in changes.items() if last is not None]
    db.executemany("DELETE FROM done WHERE first = ?", gone)
    db.executemany("INSERT OR REPLACE INTO done VALUES (?, ?, ?)", here)


def _state_text(state: State) -> str:
    return orjson.dumps(state).decode()


def to_layout(row: tuple[Any, ...]) -> Layout:
    return Layout(row[1], tuple(orjson.loads(row[2])), tuple(orjson.loads(row[3])))


def _settled(
    db: sqlite3.Connection,
    state: State | None,
    layouts: dict[int, Layout],
    kept: dict[int, tuple[str, str]],
    marker: State | None,
    wall: int,
) -> Opened:
    """The epoch under which this file counts on, and what its marker knows that it does not."""
    config, texts = kept.get(CONFIG), _texts(kept)
    if state is not None and marker is not None and marker.epoch == state.epoch and marker.last_seq <= state.last_seq:
        # What is delivered stands in the marker first. Batches have no number in common either, not even those that say nothing.
        delivered = Intervals([*state.delivered, *marker.delivered]).ranges()
        state = replace(state, last_batch=max(state.last_batch, marker.last_batch), delivered=delivered)
        return Opened(db, state, layouts, config, texts)
    before = state or State("")
    known = marker if marker is not None and marker.epoch == before.epoch else before
    done = Intervals([*before.delivered, *known.delivered])
    last = max(before.last_seq, known.last_seq)
    lost = list(done.missing(before.last_seq + 1, last))
    after = _with(before, fresh_epoch(), last, done, lost)
    if state is not None:
        log.error(
            "store_is_not_as_its_marker", seq=before.last_seq, marker=marker and marker.last_seq, epoch=after.epoch
        )
    put_state(db, after)
    put_done(db, {first: None for first, _ in before.delivered} | dict(after.delivered))
    return Opened(db, after, layouts, config, texts, _gap(lost, before.last_wall, wall), lost)


def _texts(kept: dict[int, tuple[str, str]]) -> dict[int, str]:
    return {row: text for row, (text, _) in kept.items() if row != CONFIG}


def _with(state: State, epoch: str, last: int, done: Intervals, lost: list[tuple[int, int]]) -> State:
    for first, end in lost:
        done.add(first, end)
    return State(epoch, last, state.last_batch, state.last_t, state.last_wall, done.ranges())


def _gap(lost: list[tuple[int, int]], since: int | None, wall: int) -> Gap | None:
    if not lost:
        return None
    count = sum(last - first + 1 for first, last in lost)
    return Gap(GapCause.DAMAGE, count, wall if since is None else since, wall, lost[0][0], lost[-1][1])


def fresh_epoch() -> str:
    return "".join(secrets.choice(EPOCH_LETTERS) for _ in range(6))


# --- the marker ---------------------------------------------------------------------------------------------------------


def read_marker(folder: Path) -> State | None:
    """How far the store had come when somebody last heard of it; None when there is none, or none that can be read."""
    try:
        crc, text = (folder / MARKER).read_bytes().rstrip(b" \n").split(b" ", 1)
        return to_state(text.decode()) if int(crc, 16) == zlib.crc32(text) else None
    except (OSError, *rows.UNREADABLE):
        return None


def fits_marker(state: State) -> bool:
    """Whether the marker can hold all that is delivered."""
    return len(state.delivered) <= MARKED_MAX and len(_state_text(state)) <= MARKER_BYTES - 10


def write_marker(folder: Path, state: State) -> None:
    """In its place, never longer. Ranges that do not fit count as not delivered. A disk that refuses is only told."""
    kept = min(MARKED_MAX, len(state.delivered))
    text = _state_text(replace(state, delivered=state.delivered[:kept])).encode()
    while len(text) > MARKER_BYTES - 10:
        kept //= 2
        text = _state_text(State(state.epoch, state.last_seq, delivered=state.delivered[:kept])).encode()
    line = b"%08x %s" % (zlib.crc32(text), text)
    try:
        fresh = not (folder / MARKER).exists()
        descriptor = os.open(folder / MARKER, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, line.ljust(MARKER_BYTES - 1) + b"\n", 0)
            if fresh:
                # Once on the disk, a power cut leaves it as it was before or after; one that is gone would cost the epoch.
                os.fsync(descriptor)
                sync(folder)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("marker_not_written", fault=str(error))


# --- a later release ---------------------------------------------------------------------------------------------------


def _begun_anew(folder: Path, wall: int, fault: str) -> Opened:
    """A new store beside one that only a later release can read, which stays as it is under another name."""
    path, marker = folder / FILE, read_marker(folder)
    before = marker or State("")
    aside = _aside(path, folder / f"{FILE}.newer-{wall // SECOND_US}")
    done = Intervals(before.delivered)
    lost = list(done.missing(1, before.last_seq))
    state = _with(before, fresh_epoch(), before.last_seq, done, lost)
    log.error(
        "store_of_a_later_release", fault=fault, kept_as=str(aside), lost=sum(last - first + 1 for first, last in lost),
        advice=f"install the later release again, or stop the agent, rename {aside} back to {path.name} and start that release",
    )  # fmt: skip
    db = connect(path)
    _settings(db)
    db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {LATER_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
    put_state(db, state)
    put_done(db, dict(state.delivered))
    return Opened(db, state, {}, None, {}, _gap(lost, before.last_wall, wall), lost)


# --- damage -------------------------------------------------------------------------------------------------------------


def rebuilt(
    folder: Path,
    wall: int,
    fault: str,
    known: State | None = None,
    progress: Progress = lambda: None,
    unsynced: bool = False,
) -> Opened:
    """A new file with every row of the old one that can be read and is sound; the old one is kept beside it.

    known: how far the store has come, when somebody still knows (a store that runs). unsynced: nothing need be damaged,
    but the disk has failed to sync the old file; when all of it was there, nobody needs it any more.
    """
    path, fresh = folder / FILE, _fresh(folder / FILE)
    if not path.exists() and fresh.exists():
        _take_place(fresh, path)  # the last try ended between the two renames
    fresh.unlink(missing_ok=True)
    # One is kept, the latest: its space may be needed now.
    for earlier in folder.glob(f"{FILE}.damaged-*"):
        earlier.unlink(missing_ok=True)
    marker = read_marker(folder)
    try:
        with contextlib.closing(connect(fresh)) as db, contextlib.closing(connect(path)) as old:
            unlocked(old, SCHEMA + LATER_SCHEMA)
            # Nobody looks at the new file before all of it is on disk: no log, and one sync at the end.
            db.executescript(f"PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {LATER_SCHEMA} PRAGMA user_version = {FORMAT}")
            found = _saved(db, old, progress)
            state, lost = _counted(found, marker, known)
            put_state(db, state)
            put_done(db, dict(state.delivered))
            db.execute("DELETE FROM config WHERE id = ?", (COUNTED,))
            db.execute("COMMIT")
        sync(fresh)
    except BaseException:
        fresh.unlink(missing_ok=True)  # its space may be what is missing
        raise
    aside = _aside(path, folder / f"{FILE}.damaged-{wall // SECOND_US}")
    _take_place(fresh, path)
    count = sum(last - first + 1 for first, last in lost)
    log.error("store_unsynced" if unsynced else "store_damaged", fault=fault, kept_as=str(aside), lost=count)
    if unsynced and not lost:
        for part in folder.glob(f"{aside.name}*"):
            part.unlink(missing_ok=True)
    db = connect(path)
    _settings(db)
    gap = _gap(lost, state.last_wall, wall) or (None if unsynced else Gap(GapCause.DAMAGE, 0, wall, wall))
    return Opened(db, state, found.layouts, found.kept.get(CONFIG), _texts(found.kept), gap, lost)


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _take_place(fresh: Path, path: Path) -> None:
    """Nothing of an earlier file may lie beside the new one: its log would be believed."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.replace(path)
    sync(path.parent)


def sync(place: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Saved:
    state: State | None = None
    layouts: dict[int, Layout] = field(default_factory=dict)
    kept: dict[int, tuple[str, str]] = field(default_factory=dict)
    done: list[tuple[int, int]] = field(default_factory=list)
    present: Intervals = field(default_factory=Intervals)
    batch: int = 0
    seq: int = 0


def _saved(db: sqlite3.Connection, old: sqlite3.Connection, progress: Progress) -> _Saved:
    found = _Saved()
    for table in KEYS:
        for row in readable(old, table):
            progress()
            try:
                _note(found, table, row)
            except rows.UNREADABLE:
                continue
            if table not in {"meta", "done"}:
                # Or ignore: a damaged page may show one row twice.
                db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
    return found


def _note(found: _Saved, table: str, row: tuple[Any, ...]) -> None:
    match table:
        case "meta":
            found.state = to_state(row[1])
        case "layouts":
            found.layouts[row[0]] = to_layout(row)
        case "config":
            found.kept[row[0]] = (row[2], row[1])
        case "done":
            found.done.append((row[0], row[1]))
        case "snapshot":
            found.batch = max(found.batch, row[1])
        case "notices":
            found.present.add(row[0])
            found.seq = max(found.seq, row[0])
        case _:
            for item in rows.unpacked(row[9], found.layouts):
                if not isinstance(item, Command):
                    told = item.seqs[item.seqs > 0].tolist()
                    if told and told[-1] - told[0] + 1 == len(told):
                        found.present.add(told[0], told[-1])
                    else:
                        for seq in told:
                            found.present.add(seq)
            found.batch, found.seq = max(found.batch, row[0]), max(found.seq, row[3])


Columns = tuple[tuple[bytes, bytes, int], ...]


def check_tables(db: sqlite3.Connection, schema: str) -> None:
    """Raises Damaged where a table is not as the schema makes it: one changed byte in the words that made it, and they most
    often still make one, in which nothing is found under the names that it should have. sqlite's own check passes it.
    """
    for table, columns in _columns_of(schema).items():
        if _columns(db, table) != columns:
            raise Damaged(f"the columns of {table} are not as they were made")


@cache
def _columns_of(schema: str) -> dict[str, Columns]:
    with contextlib.closing(blank(schema)) as db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {table: _columns(db, table) for (table,) in tables}


def _columns(db: sqlite3.Connection, table: str) -> Columns:
    """(name, kind, place in the key), in capitals, as sqlite compares them. Damaged ones need not be text."""
    asked = "SELECT CAST(upper(name) AS BLOB), CAST(upper(type) AS BLOB), pk FROM pragma_table_info(?) ORDER BY cid"
    return tuple(db.execute(asked, (table,)))


def unlocked(old: sqlite3.Connection, schema: str) -> None:
    """Let a damaged file be read in spite of what it says of itself: a file that was cut off, and tables whose own words are
    damaged. Nothing of it is changed: what is written here ends with the connection.
    """
    old.execute("PRAGMA writable_schema=ON")
    old.execute("PRAGMA busy_timeout=0")  # what is held by somebody is read as it is
    with contextlib.suppress(*FAULTS), contextlib.closing(blank(schema)) as db:
        its = db.execute("SELECT sql, name FROM sqlite_master WHERE type = 'table'").fetchall()
        old.execute("BEGIN")
        old.executemany("UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?", its)
        old.execute("PRAGMA writable_schema=RESET")  # reads it anew
    old.execute(f"PRAGMA busy_timeout={BUSY_S * 1_000:.0f}")
    with contextlib.suppress(*FAULTS):
        old.execute("PRAGMA writable_schema=ON")


def readable(db: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Every sound row that can be reached from either end, each read by itself: a bad page costs only what is on it.

    What the columns are called, and that the first one is the row's number, is said here: the file may say it wrong.
    """
    columns: Columns = ()
    with contextlib.suppress(*FAULTS):
        columns = _columns(db, table)
    places = ",".join(f"c{place}" for place in range(len(columns)))
    asked = f"WITH t (id, {places}) AS (SELECT rowid, * FROM {table}) SELECT * FROM t"  # noqa: S608 - names of our own

    def whole(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (row[0], *row[2:])

    last: Any = None
    with contextlib.suppress(*FAULTS):  # as far as it can be read in one go, which is much faster
        for row in map(whole, db.execute(f"{asked} ORDER BY id")):
            if rows.sound(row):
                yield row
            last = row[0]
        return
    numbers: set[Any] = set()
    for order in ("ASC", "DESC"):
        with contextlib.suppress(*FAULTS):
            after = "" if last is None else f"WHERE rowid > {last:d}"
            for (number,) in db.execute(f"SELECT rowid FROM {table} {after} ORDER BY rowid {order}"):  # noqa: S608
                if order == "DESC" and number in numbers:
                    break
                numbers.add(number)
    for number in sorted(each for each in numbers if isinstance(each, int)):
        with contextlib.suppress(*FAULTS):
            for row in map(whole, db.execute(f"{asked} WHERE id = ?", (number,))):
                if rows.sound(row):
                    yield row


def _counted(found: _Saved, marker: State | None, known: State | None) -> tuple[State, list[tuple[int, int]]]:
    """How far the store has come, and the numbers that are neither delivered nor saved."""
    state = known or found.state
    if state is None and marker is not None:
        state = marker
    if state is not None and known is None:
        state = replace(state, delivered=Intervals([*state.delivered, *found.done]).ranges())
    if state is None:
        # Nobody knows what was due: what is here is told, and no more than that it was damaged.
        done = Intervals(found.present.missing(1, found.seq))
        return State(fresh_epoch(), found.seq, found.batch, delivered=done.ranges()), []
    behind = known is None and (marker is None or marker.epoch != state.epoch or marker.last_seq > state.last_seq)
    same = marker is not None and marker.epoch == state.epoch
    done = Intervals([*state.delivered, *(marker.delivered if marker is not None and same else ())])
    last = max(state.last_seq, found.seq, marker.last_seq if marker is not None and same else 0)
    here = Intervals([*done.ranges(), *found.present.ranges()])
    lost = list(here.missing(1, last))
    after = _with(state, fresh_epoch() if behind else state.epoch, last, done, lost)
    batch = max(state.last_batch, found.batch, marker.last_batch if marker is not None and same else 0)
    return State(after.epoch, last, batch, state.last_t, state.last_wall, after.delivered), lost


def _aside(path: Path, aside: Path) -> Path:
    """Move the damaged file out of the way with its log, which must never meet a new file (see `_take_place`)."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside
