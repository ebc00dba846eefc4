"""`edge-agent backup` and `restore`: everything that is needed to move to another PC, in one file, and back from it.

Rule: both say in words what is not there (secrets, the history) and what to do next; a script reads the same as JSON.
"""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.refused import refusal
from edge_agent.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from edge_agent.archive import Manifest
    from edge_agent.backup import Made
    from edge_agent.restore import Restored

ERRORS_SHOWN = 20
DONE, NOT_SO, WRONG_USE = 0, 1, 2


def add_backup(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "backup",
        help="everything needed to move to another PC, in one file; the agent runs on",
        description="Write one file with the configuration and all it includes, certificates, learned norms and the journal as it "
        "stands; the agent runs on. Passwords and private keys are left out, and named, unless --secrets is given.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}"
    )
    parser.add_argument(
        "file", metavar="FILE.tar.gz", type=Path, nargs="?", help="default: AGENT-TIME.tar.gz in this folder"
    )
    parser.add_argument("--history", action="store_true", help="with the history of all readings, which may be large")
    parser.add_argument(
        "--secrets", action="store_true", help="with passwords and private keys: keep the file as you keep those"
    )
    parser.add_argument("--json", action="store_true", help="what is in it and what is not, as JSON")
    parser.set_defaults(run=backup)


def add_restore(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "restore",
        help="put the backup of an agent in its place on this PC",
        description="Check a backup whole, then put it in its place. The restored agent counts under a new epoch; what was not "
        "delivered yet is delivered from here. Exit status 1 when the file is no whole backup: nothing is written then.",
    )
    parser.add_argument("file", metavar="FILE.tar.gz", type=Path)
    parser.add_argument(
        "--to", metavar="FOLDER", type=Path,
        help=f"the folder of the configuration; needed unless it was {DEFAULT_CONFIG.parent}",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        type=Path,
        help="the data directory, when not the one that the configuration names",
    )
    parser.add_argument("--force", action="store_true", help="move aside what lies there already; nothing is removed")
    parser.add_argument("--list", action="store_true", help="only check the file and show what is in it")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=restore)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM, and a terminal that goes away, end it as Ctrl-C does: what was begun is removed, secrets above all."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    heard = [
        each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL
    ]  # not nohup's
    for each in heard:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in heard:
            signal.signal(each, signal.SIG_DFL)


def backup(arguments: argparse.Namespace) -> int:
    with _ended_in_order():
        return _backup(arguments)


def restore(arguments: argparse.Namespace) -> int:
    with _ended_in_order():
        return _restore(arguments)


def _backup(arguments: argparse.Namespace) -> int:
    from importlib import metadata

    from edge_agent import backup as making
    from edge_agent import config
    from edge_agent.clock import SystemClock

    if arguments.file is None and arguments.config.name.endswith(".tar.gz"):  # the one word that is given is the second
        arguments.config, arguments.file = DEFAULT_CONFIG, arguments.config
    try:
        loaded = config.load(arguments.config)
        made = making.make(
            loaded, arguments.file, version=metadata.version("edge-agent"), wall_us=SystemClock().wall_us(),
            secrets=arguments.secrets, history=arguments.history,
        )  # fmt: skip
    except config.ConfigErrors as error:
        lines = [str(each) for each in error.errors]
        for line in lines[:ERRORS_SHOWN]:
            print(line, file=sys.stderr)
        return _failed(arguments, f"{arguments.config} is not valid: nothing is backed up", WRONG_USE)
    except making.NoBackup as error:
        return _failed(arguments, str(error), WRONG_USE)
    except OSError as error:
        return _failed(arguments, refusal(error, arguments.file or Path.cwd()), WRONG_USE)
    if arguments.json:
        told = {"ok": True, "file": str(made.file), "bytes": made.bytes, "notes": made.notes, **asdict(made.manifest)}
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(made_lines(made))
    return DONE


def _restore(arguments: argparse.Namespace) -> int:
    from edge_agent import archive, control
    from edge_agent import restore as putting

    try:
        with archive.opened(arguments.file) as found:
            if arguments.list:
                return _list(arguments, found.manifest)
            return _put(arguments, found)
    except archive.NotABackup as error:
        return _failed(arguments, str(error), NOT_SO)
    except (putting.Refused, control.AlreadyRunning) as error:
        return _failed(arguments, f"nothing is restored: {error}", WRONG_USE)
    except OSError as error:
        return _failed(
            arguments, f"nothing is restored: {refusal(error, arguments.to or DEFAULT_CONFIG.parent)}", WRONG_USE
        )


def _put(arguments: argparse.Namespace, found: Any) -> int:
    from importlib import metadata

    from edge_agent import restore as putting
    from edge_agent.clock import SystemClock

    putting.check_version(found.manifest, metadata.version("edge-agent"))
    target = putting.target_of(found.manifest, arguments.to, arguments.data_dir, DEFAULT_CONFIG.parent)
    done = putting.restore(found, target, wall_us=SystemClock().wall_us(), force=arguments.force)
    if arguments.json:
        told = {
            "ok": True, "config": str(target.main), "data_dir": str(target.data), "agent": done.manifest.agent,
            "made": done.manifest.made, "version": done.manifest.version,
            "journal": None if done.count is None else asdict(done.count),
            "missing_secrets": done.missing, "left_out": [asdict(each) for each in done.manifest.left_out],
            "aside": [str(each) for each in done.aside], "notes": done.notes,
        }  # fmt: skip
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(restored_lines(done))
    return DONE


def _list(arguments: argparse.Namespace, manifest: "Manifest") -> int:
    if arguments.json:
        print(json.dumps({"ok": True, **asdict(manifest)}, ensure_ascii=False))
    else:
        _print(listed_lines(manifest))
    return DONE


def _failed(arguments: argparse.Namespace, error: str, status: int) -> int:
    from edge_agent.config import printable

    if arguments.json:
        print(json.dumps({"ok": False, "error": error}, ensure_ascii=False))
    print(f"edge-agent: {printable(error)}", file=sys.stderr)
    return status


def _print(lines: Iterator[str]) -> None:
    from edge_agent.config import printable

    for line in lines:
        print(printable(line))


# --------------------------------------------------------------------------------------------------------- for people


def made_lines(made: "Made") -> Iterator[str]:
    """What was written, what is not in it, and what to do with it."""
    manifest = made.manifest
    files = "1 file" if len(manifest.files) == 1 else f"{len(manifest.files)} files"
    yield f"{made.file}: {_size(made.bytes)}, agent {manifest.agent}, {files}"
    yield from _journal_lines(manifest)
    for note in made.notes:
        yield f"  note: {note}"
    yield from _left_out_lines(manifest)
    if manifest.secrets:
        yield "WARNING: passwords and private keys are in it, unencrypted: whoever has the file can speak as this agent."
        yield "  Its mode is 0600; keep it where you keep those, and remove it when it was restored."
    yield f"on the other PC: edge-agent restore {made.file.name} --to FOLDER"


def listed_lines(manifest: "Manifest") -> Iterator[str]:
    """What a backup holds."""
    yield f"agent {manifest.agent}, backed up {manifest.made} by edge-agent {manifest.version}; it is whole"
    yield f"  configuration from {manifest.config_from}, data from {manifest.data_from}"
    yield from _journal_lines(manifest)
    for item in manifest.files:
        yield f"  {item.path}  {_size(item.bytes)}"
    yield from _left_out_lines(manifest)
    if manifest.secrets:
        yield "  passwords and private keys are in it"


def _journal_lines(manifest: "Manifest") -> Iterator[str]:
    if manifest.seq is not None:
        yield f"  journal up to message {manifest.seq} of epoch {manifest.epoch}" + (
            f"; {manifest.undelivered} of them are sent, perhaps again, once it is restored"
            if manifest.undelivered
            else ""
        )


def _left_out_lines(manifest: "Manifest") -> Iterator[str]:
    if manifest.left_out:
        yield "not in it:"
    for each in manifest.left_out:
        yield f"  {each.name}: {each.why}"


def restored_lines(done: "Restored") -> Iterator[str]:
    """What was put where, what is missing, and what to do next."""
    target = done.target
    yield f"agent {done.manifest.agent} of {done.manifest.made} is restored"
    yield f"  configuration: {target.main}"
    yield f"  data: {target.data}"
    if done.count is not None:
        yield f"  it counts on from message {done.count.seq} under the new epoch {done.count.epoch}; " + (
            f"{done.count.undelivered} messages from before are delivered first"
            if done.count.undelivered
            else "all before was delivered"
        )
    for each in done.aside:
        yield f"  what lay there is now in {each}"
    for note in done.notes:
        yield f"  note: {note}"
    yield from _left_out_lines(done.manifest)
    for name in done.missing:
        yield f"missing: secret {name}: put it into {target.data / 'secrets' / name} (mode 0600)"
    yield "next:"
    yield f"  edge-agent check {target.main}"
    yield "  stop the agent on the old PC: a broker knows both by one client id, and would throw out one for the other"
    yield f"  edge-agent run {target.main}   (or: systemctl start edge-agent)"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
