"""`edge-agent scan KIND URL`: what a device has, before anybody has written a configuration for it.

The kinds are plug-ins (`edge_agent.scanners`), and so are their options. Progress goes to stderr, what was found to
stdout: `edge-agent scan modbus URL --yaml > first.yaml` is a configuration.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Mapping, Sequence

    from edge_agent.contract import Scan, Scanner, ScanStep, Watches

DONE, NOT_SO, WRONG_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
STYLES = {"head": "\x1b[1m", "good": "\x1b[32m", "weak": "\x1b[2m", "warn": "\x1b[33m"}
RESET = "\x1b[0m"
SCREEN_ON, SCREEN_OFF = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's second screen, without a cursor, and back."""
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
BAR_CELLS = 24
EIGHTHS = " ▏▎▍▌▋▊▉"
OF_OURS = ("kind", "url", "yaml", "json", "watch", "run")
"""What stands among the arguments and is no option of the kind."""
LEFT_FROM = 0.05
"""From this share on, how long it still takes can be said from how long it took."""


def add_scan(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    words = [word for word in getattr(subparsers, "words", ()) if not word.startswith("-")]
    parser = subparsers.add_parser(
        "scan",
        help="find out what units and registers a device has",
        description="Find out what a device has. It only reads, one request at a time. Ctrl-C ends it and shows what was "
        "found so far. Exit status 3 when nobody answers.",
        epilog="The options of a kind: edge-agent scan modbus --help. "
        "Example: edge-agent scan modbus tcp://192.0.2.10 --yaml > first.yaml",
    )
    parser.add_argument("kind", metavar="KIND", nargs="?", help="such as modbus; `edge-agent scan` alone lists them")
    parser.add_argument("url", metavar="URL", nargs="?", help="such as tcp://192.0.2.10:502")
    add_forms(parser)
    add_options(parser, *words)
    parser.set_defaults(run=scan)


def add_forms(parser: argparse.ArgumentParser) -> None:
    """In which form it is told."""
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--yaml", action="store_true", help="print a configuration with a signal for each value found")
    shown.add_argument("--json", action="store_true", help="print what was found as one JSON object")
    shown.add_argument(
        "--watch", action="store_true", help="read the values each second and redraw, until Ctrl-C (not every kind can)"
    )


def add_options(parser: argparse.ArgumentParser, *words: str) -> None:
    """The options of the kind that is among the words, with their help.

    A plug-in that is broken has none; that is told when it is used.
    """
    if not words:
        return
    from edge_agent import plugins

    kinds = plugins.scanner_kinds()
    kind = next((word for word in words if word in kinds), None)
    try:
        fields = plugins.scanner(kind).Options.model_fields if kind else {}
    except plugins.BrokenPluginError:
        return
    for name, about in fields.items():
        add_option(parser, name, None if about.annotation is bool else name.upper(), about.description or "")


def add_option(parser: argparse.ArgumentParser, name: str, metavar: str | None, about: str) -> None:
    """One option of a kind. metavar: None of one that takes no text."""
    how: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
    words = about.replace("%", "%%")
    parser.add_argument(f"--{name.replace('_', '-')}", dest=name, default=argparse.SUPPRESS, help=words, **how)


def scan(arguments: argparse.Namespace) -> int:
    from edge_agent import plugins

    kinds = ", ".join(plugins.scanner_kinds())
    if arguments.kind is None or arguments.url is None:
        missing = "KIND and URL" if arguments.kind is None else "URL"
        return _refused(f"scan needs {missing}, such as: edge-agent scan modbus tcp://192.0.2.10 (kinds: {kinds})")
    try:
        scanner = plugins.scanner(arguments.kind)
    except plugins.UnknownPluginError:
        return _refused(f"{arguments.kind!r} cannot be scanned; there are: {kinds}")
    except plugins.BrokenPluginError as error:
        return _refused(str(error))
    return _scan(scanner, arguments)


def _scan(scanner: "Scanner", arguments: argparse.Namespace) -> int:
    import asyncio

    from edge_agent import service
    from edge_agent.clock import SystemClock
    from edge_agent.contract import DeviceRefused, DeviceSilent, Watches

    given = {k: v for k, v in vars(arguments).items() if k not in OF_OURS}
    clock = SystemClock()
    service.configure_logging("error", clock)
    progress = Progress(sys.stderr.isatty(), clock.monotonic_us)
    try:
        options = _validated(scanner, given)
        looking = scanner.scan(arguments.url, options, clock, progress.tell)
    except ValueError as error:
        return _refused(str(error))
    if arguments.watch and (words := _why_no_watch(looking, arguments.kind)):
        return _refused(words)
    status = DONE
    try:
        asyncio.run(looking.run())
        if arguments.watch and isinstance(looking, Watches):
            progress.clear()
            _watch(looking)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (DeviceSilent, DeviceRefused) as error:
        progress.clear()
        print(f"edge-agent: {error}", file=sys.stderr)
        if not looking.answered:
            return UNREACHABLE
        status = UNREACHABLE
    finally:
        progress.clear()
    if not _show(looking, arguments) and status == DONE:
        status = NOT_SO
    return UNREACHABLE if status in (DONE, NOT_SO) and not looking.answered else status


def _validated(scanner: "Scanner", given: "Mapping[str, Any]") -> Any:
    """The options as their model has them. Raises ValueError in words."""
    from pydantic import ValidationError

    try:
        return scanner.Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        allowed = first.get("ctx", {}).get("allowed")
        words = first["msg"].removeprefix("Value error, ") + (f"; allowed: {allowed}" if allowed else "")
        raise ValueError(f"--{str(first['loc'][0]).replace('_', '-')}: {words}") from None


def _show(looking: "Scan", arguments: argparse.Namespace) -> bool:
    """Print it; False when there is no configuration to print."""
    if arguments.json:
        text = json.dumps(looking.facts(), ensure_ascii=False)
        # What a device says could turn a terminal round.
        print("".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text))
        return True
    if arguments.yaml and (text := looking.config()):
        print(text, end="")
        return True
    to = sys.stderr if arguments.yaml else sys.stdout
    paint = to.isatty() and not os.environ.get("NO_COLOR")
    for style, line in _lines(looking, _size(to).columns if to.isatty() else 0):
        print(painted(style, line, paint), file=to)
    if arguments.yaml:
        print("edge-agent: no value was found: there is no configuration to print", file=sys.stderr)
    return not arguments.yaml


def _lines(looking: "Scan", columns: int) -> "Sequence[tuple[str, str]]":
    from edge_agent.contract import Watches

    return looking.lines_within(columns) if columns and isinstance(looking, Watches) else looking.lines()


def painted(style: str, line: str, paint: bool) -> str:
    return f"{STYLES[style]}{line}{RESET}" if paint and style else line


# ----------------------------------------------------------------------------------------------------------- watching


def _why_no_watch(looking: "Scan", kind: str) -> str:
    from edge_agent.contract import Watches

    if not isinstance(looking, Watches):
        return f"--watch: {kind} cannot be watched"
    return "" if sys.stdout.isatty() else "--watch needs a terminal; --json is for scripts"


def _watch(looking: "Watches") -> None:
    """Redraw on a screen of its own until Ctrl-C; what is found last is then told as ever. Raises as `Watches.watch`."""
    import asyncio

    paint = not os.environ.get("NO_COLOR")

    def draw() -> None:
        size = _size(sys.stdout)
        print(picture(looking.lines_within(size.columns), size.lines, paint=paint), end="", flush=True)

    print(SCREEN_ON, end="")
    try:
        asyncio.run(looking.watch(draw))
    except KeyboardInterrupt:
        return
    finally:
        print(SCREEN_OFF, end="", flush=True)


def picture(lines: "Sequence[tuple[str, str]]", rows: int, *, paint: bool) -> str:
    """One screen of these lines, drawn over the one before without wiping it first; what does not fit is counted."""
    room = max(1, rows - 1)
    shown = list(lines) if len(lines) <= room else [*lines[: room - 1], ("weak", _rest(len(lines) - room + 1))]
    return HOME + "".join(f"{painted(*each, paint)}{REST_OF_LINE}\n" for each in shown) + REST_OF_SCREEN


def _rest(count: int) -> str:
    return f"… and {count} more lines: --search TEXT or --under PATH for a part"


def _refused(text: str) -> int:
    print(f"edge-agent: {text}", file=sys.stderr)
    return WRONG_USE


@dataclass(slots=True)
class Progress:
    """A bar that is drawn over itself on a terminal; elsewhere only the news, a line each."""

    terminal: bool
    now_us: Any
    _phase: str = ""
    _began_us: int = 0
    _drawn: str = field(default="")

    def tell(self, step: "ScanStep") -> None:
        if step.news:
            self.clear()
            print(step.news, file=sys.stderr, flush=True)
        if not self.terminal or not (step.planned or step.done):
            return
        if step.phase != self._phase:
            self._phase, self._began_us = step.phase, self.now_us()
        columns = _size(sys.stderr).columns
        line = (
            bar(step, (self.now_us() - self._began_us) / 1e6, columns) if step.planned else counted(step)[: columns - 1]
        )
        if line != self._drawn:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = line

    def clear(self) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = ""


def _size(file: TextIO) -> os.terminal_size:
    try:
        size = os.get_terminal_size(file.fileno())
    except OSError:
        size = os.terminal_size((0, 0))
    return os.terminal_size((size.columns or 80, size.lines or 24))


def counted(step: "ScanStep") -> str:
    """`nodes found 1234`, where nobody knows how many there will be."""
    return f"{step.phase} {step.done}"


def bar(step: "ScanStep", took_s: float, columns: int) -> str:
    """`registers ███████▌      31 %  120/388  0:24 left`, cut to the width of the terminal."""
    share = min(1.0, step.done / step.planned)
    full, eighth = divmod(int(share * BAR_CELLS * 8), 8)
    cells = ("█" * full + EIGHTHS[eighth] * (full < BAR_CELLS)).ljust(BAR_CELLS)
    left = ""
    if share >= LEFT_FROM and took_s > 1:
        left_s = round(took_s / share - took_s)
        left = f"  {left_s // 60}:{left_s % 60:02d} left"
    return f"{step.phase:<10} {cells} {share:>4.0%}  {step.done}/{step.planned}{left}"[: columns - 1]
