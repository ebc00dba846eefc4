"""What the system or a file refuses a command, in words: where, why and what to do."""

import errno
import os
from pathlib import Path

OURS = (".export-", ".backup-")
"""What the folders are called in which a command makes its files: nobody else knows of them."""
NO_ROOM = "; make room there, or write to another place"
NO_RIGHT = "; run it as the agent's user, or as root"
WHAT_TO_DO = {
    errno.EACCES: NO_RIGHT, errno.EPERM: NO_RIGHT, errno.ENOSPC: NO_ROOM, errno.EDQUOT: NO_ROOM, errno.EROFS: NO_ROOM,
    errno.EIO: "; see whether the disk is sound, and not full",
}  # fmt: skip


def refusal(error: OSError, place: object) -> str:
    """What the system has refused, where, and what to do. place: where the command writes, for an error that names no other."""
    named = error.filename2 or error.filename
    if named is None or any(each in str(named) for each in OURS):
        named = place
    words = str(error) if error.errno is None else os.strerror(error.errno)
    return f"{named}: {words}{WHAT_TO_DO.get(error.errno or 0, '')}"


def unreadable(error: Exception, folder: Path) -> str:
    """Why the past in a data directory cannot be read (`past.UNREADABLE`), and what to do."""
    from edge_agent.config import printable
    from edge_agent.store import disk, past, shelf

    for path in (folder / disk.FILE, folder / shelf.FILE):
        try:
            path.open("rb").close()
        except FileNotFoundError:
            continue
        except OSError as refused:  # sqlite says no more of it than that it cannot open the file
            return refusal(refused, path)
    damaged = isinstance(error, disk.FAULTS) and disk.is_damage(error)
    hint = "; it is damaged: restart the agent, which saves what can still be read" if damaged else ""
    return printable(past.words_of(error, folder) + hint)
