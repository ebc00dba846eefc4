"""The command line: finds the room of the command and runs it.

Rule: nothing is imported before it is known which command was asked for, so that `--help` answers at once. Each command
has a module in edge_agent/cli/ with `add_<command>(subparsers)`, which makes its parser and sets `run` to a function
that takes the parsed arguments and returns the exit status.

Exit status: 0 done, 1 the thing asked about is not so, 2 wrong use or configuration, 3 a device, a broker or the agent
could not be reached, 130 interrupted.
"""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "demo": ("demo", "start a simulated plant, a broker and the agent with its page, and watch faults being found"),
    "run": ("run", "the daemon: read, judge, store and publish"),
    "check": ("check", "validate a configuration; --connect also reads every signal once"),
    "scan": ("scan", "find out what units and registers a device has; --yaml prints signals ready to paste"),
    "browse": ("browse", "show what an OPC UA server has; --yaml prints signals ready to paste"),
    "read": ("read", "read signals once and show value, quality and verdict"),
    "replay": ("replay", "run recorded data through the judge of the daemon and show the warnings"),
    "status": ("status", "what the running agent is doing"),
    "reload": ("status", "tell the running agent to take over its changed configuration"),
    "trust": ("trust", "certificates: which are trusted, which were refused and why; accept or remove one"),
    "export": ("export", "the history and the warnings as Parquet or CSV"),
    "backup": ("backup", "everything needed to move to another PC, in one file; the agent runs on"),
    "restore": ("backup", "put the backup of an agent in its place on this PC"),
    "schema": ("check", "print the JSON Schema of the configuration"),
}
"""By command: the module in edge_agent/cli/, and what it does in one line."""

LATER = (
    "init", "watch", "learn", "notify", "tune", "test", "report", "collect", "user", "doctor",
)  # fmt: skip
"""Commands that are planned: said in words, not as a misspelling."""

NOT_SO, WRONG_USE = 1, 2
UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
STOPPED_BY_HAND = ("run", "demo")
"""These run until somebody ends them: Ctrl-C is their clean end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command in LATER:
        print(f"edge-agent: {command} is not available yet", file=sys.stderr)
        return WRONG_USE
    try:
        if command in COMMANDS and arguments[0] == command:
            # Options may stand before, between and behind the other words (but argparse's help then forgets the words).
            words = arguments[1:]
            parser = _parser_of(command, words)
            helps = not {"-h", "--help"}.isdisjoint(words)
            parsed = parser.parse_args(words) if helps else parser.parse_intermixed_args(words)
        else:
            parsed = _parser().parse_args(arguments)
        status = int(parsed.run(parsed))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 0 if command in STOPPED_BY_HAND else INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()  # the reader had enough (`| head`)
        return 0
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITABLE:
            raise
        _let_go_of_stdout()
        print(f"edge-agent: the output cannot be written: {error.strerror}", file=sys.stderr)
        return NOT_SO
    return status


def _let_go_of_stdout() -> None:
    """Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _One:
    """Stands for argparse's subparsers where one command is made alone: its own usage, in its own words.

    words: what follows the command, for one whose options depend on it.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.parser = argparse.ArgumentParser()
        self.words = words

    def add_parser(self, name: str, **words: Any) -> argparse.ArgumentParser:
        words.pop("help", None)
        self.parser = argparse.ArgumentParser(prog=f"edge-agent {name}", allow_abbrev=False, **words)
        return self.parser


def _parser_of(command: str, words: Sequence[str]) -> argparse.ArgumentParser:
    room, _ = COMMANDS[command]
    one = _One(words)
    getattr(importlib.import_module(f"edge_agent.cli.{room}"), f"add_{command}")(one)
    return one.parser


def _parser() -> argparse.ArgumentParser:
    """All commands by name and one line."""
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Reads machines, judges every reading against its norm, and warns before it costs.",
        epilog="Help for one command: edge-agent COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (_, words) in COMMANDS.items():
        commands.add_parser(name, help=words)
    return parser


class _Version(argparse.Action):
    """`--version`; asks the installed package only when somebody wants to know."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002 - argparse's own name
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002 - argparse's own signature
        values: object,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        from importlib.metadata import version

        print(f"edge-agent {version('edge-agent')}")
        parser.exit(0)


if __name__ == "__main__":
    sys.exit(main())
