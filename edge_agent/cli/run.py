"""`edge-agent run`: the daemon, until it is told to stop."""

import argparse
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DEFAULT_CONFIG = Path("/etc/edge-agent/agent.yaml")
LEVELS = ("debug", "info", "warning", "error")
OURS = (".export-", ".backup-")
"""What the folders are called in which a command makes its files: nobody else knows of them."""
NO_ROOM = "; make room there, or write to another place"
NO_RIGHT = "; run it as the agent's user, or as root"
WHAT_TO_DO = {
    errno.EACCES: NO_RIGHT, errno.EPERM: NO_RIGHT, errno.ENOSPC: NO_ROOM, errno.EDQUOT: NO_ROOM, errno.EROFS: NO_ROOM,
    errno.EIO: "; see whether the disk is sound, and not full",
}  # fmt: skip


def add_run(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "run",
        help="the daemon: read, judge, store and publish",
        description="Read, judge, store and publish until SIGTERM or Ctrl-C. SIGHUP reloads the configuration.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}"
    )
    add_log_options(parser)
    parser.set_defaults(run=run)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """`--log-level` and `--log-form`, the same for every command that runs an agent."""
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="the least that is logged (%(default)s)")
    parser.add_argument(
        "--log-form",
        choices=("auto", "console", "json"),
        default="auto",
        help="for people, or one JSON object a line; auto: JSON unless stderr is a terminal",
    )


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


def run(arguments: argparse.Namespace) -> int:
    import asyncio
    import gc

    gc.disable()  # nothing that is made before the agent is ready is garbage; it sees to the rest
    from edge_agent import agent, clock, service

    service.configure_logging(arguments.log_level, clock.SystemClock(), form=arguments.log_form)

    async def until_stopped() -> int:
        stop = asyncio.Event()
        with service.stop_on_signals(stop):
            return await agent.run(arguments.config, stop=stop)

    try:
        return asyncio.run(until_stopped())
    finally:
        service.flush_suppressed()
