"""A copy of a store's file, taken while the agent writes on, and the beginning of a restored one.

Rule 1: a copy is what one commit has left, whole; the agent neither waits for it nor hears of it.
Rule 2: a copy counts on under an epoch of its own: the store from which it was taken may count on too, and two stores
must never give one number to two messages. What was numbered before the copy keeps its number: both have it, byte for byte.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.store import disk, rows
from edge_agent.store.ranges import Intervals

READ_FAULTS = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
BESIDE = ("-wal", "-shm", "-journal")
"""What sqlite lays beside a file."""


class NotCopied(Exception):
    """The file cannot be copied; in words."""


@dataclass(frozen=True, slots=True)
class Count:
    """How far a journal has come. undelivered: messages that the broker does not have."""

    epoch: str
    seq: int
    undelivered: int


def copy(source: Path, target: Path) -> None:
    """A consistent copy of a database, whoever writes to it. Raises NotCopied, FileNotFoundError; OSError where the disk of the
    target refuses, or the source may not be read.

    A damaged one is copied as it lies there: whoever opens the copy saves of it what can be saved.
    """
    if not source.exists():
        raise FileNotFoundError(source)
    try:
        # A transaction over all pages at once: in WAL mode the writer goes on, and nothing begins anew.
        with contextlib.closing(_opened(source, "rw")) as db, contextlib.closing(disk.connect(target)) as fresh:
            db.execute("PRAGMA query_only=ON")
            db.backup(fresh, pages=-1)
            fresh.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
    except disk.FAULTS as error:
        if (number := _refused_by_target(error)) is not None:
            raise OSError(number, os.strerror(number), str(target)) from error
        if not disk.is_damage(error) and not disk.is_read_only(source):
            source.open("rb").close()  # the system says why not; sqlite says no more than that it cannot
            raise NotCopied(f"{source} cannot be copied: {error}") from error
        for suffix in ("", *BESIDE):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        if disk.is_damage(error):
            # Its schema is damaged, so that sqlite reads nothing of it; whoever opens the copy mends it and tells.
            shutil.copyfile(source, target)
        else:
            _copy_at_rest(source, target)


def _copy_at_rest(source: Path, target: Path) -> None:
    """From a disk that is mounted read-only, as a failing one is: sqlite wants to write beside a file, and nobody writes to it."""
    shutil.copyfile(source, target)
    log = source.with_name(f"{source.name}-wal")
    if log.exists():
        shutil.copyfile(log, target.with_name(f"{target.name}-wal"))
    with contextlib.suppress(*disk.FAULTS), contextlib.closing(disk.connect(target)) as fresh:
        fresh.execute("PRAGMA journal_mode=DELETE")


def _refused_by_target(error: Exception) -> int | None:
    """The number of the system's error. Nothing is written but the copy."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    if disk.is_full(error) or code == sqlite3.SQLITE_IOERR_SHMSIZE:  # the pages fit, and what lies beside them does not
        return errno.ENOSPC
    return errno.EIO if code & 0xFF == sqlite3.SQLITE_IOERR and code not in READ_FAULTS else None


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=disk.BUSY_S, isolation_level=None)


def count(path: Path) -> Count | None:
    """How far this journal has come; None when that cannot be read of it."""
    with contextlib.suppress(*disk.FAULTS, *rows.UNREADABLE):
        with contextlib.closing(_opened(path, "rw")) as db:
            state = _state(db)
            return None if state is None else _counted(state, db)
    return None


def kept_config(path: Path) -> str | None:
    """The text of the last good configuration that this journal keeps; None when it has none, or cannot be read."""
    with contextlib.suppress(*disk.FAULTS):
        with contextlib.closing(_opened(path, "ro")) as db:
            row = db.execute("SELECT * FROM config WHERE id = ?", (disk.CONFIG,)).fetchone()
            return str(row[2]) if row is not None and rows.sound(row) else None
    return None


def is_sound(path: Path) -> bool:
    """Whether the file's pages are in order; reads all of it."""
    with contextlib.suppress(*disk.FAULTS):
        with contextlib.closing(_opened(path, "rw")) as db:
            return bool(db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    return False


def begin_anew(folder: Path) -> Count | None:
    """Give the restored journal in this folder its own epoch, and its marker.

    None when it cannot be done here (damaged, or of another format): it has no marker then, and whoever opens it begins
    another epoch, mends it and tells what is lost. Raises OSError when the disk refuses.
    """
    path = folder / disk.FILE
    try:
        with contextlib.closing(_opened(path, "rw")) as db:
            state = _state(db)
            if state is None or db.execute("PRAGMA user_version").fetchone()[0] != disk.FORMAT:
                return None
            fresh = replace(state, epoch=disk.fresh_epoch())
            db.execute("BEGIN IMMEDIATE")
            disk.put_state(db, fresh)
            db.execute("COMMIT")
            found, delivered = _counted(fresh, db), _delivered(fresh, db).ranges()
    except (*disk.FAULTS, *rows.UNREADABLE) as error:
        if isinstance(error, sqlite3.Error) and not disk.is_damage(error):
            raise OSError(f"{path}: {error}") from error
        return None
    disk.write_marker(folder, replace(fresh, delivered=delivered))
    return found


def _state(db: sqlite3.Connection) -> disk.State | None:
    row = db.execute("SELECT * FROM meta WHERE id = 1").fetchone()
    return disk.to_state(row[1]) if row is not None and rows.sound(row) else None


def _counted(state: disk.State, db: sqlite3.Connection) -> Count:
    return Count(state.epoch, state.last_seq, state.last_seq - _delivered(state, db).count(1, state.last_seq))


def _delivered(state: disk.State, db: sqlite3.Connection) -> Intervals:
    done = [(row[0], row[1]) for row in db.execute("SELECT * FROM done") if rows.sound(row)]
    return Intervals([*state.delivered, *done])
