"""`edge-agent check` and `edge-agent schema`: is the configuration right, and what may stand in one."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from edge_agent.config import Config, ConfigError, Loaded
    from edge_agent.load import LineLoad
    from edge_agent.mqtt import Answer
    from edge_agent.plugins import Plugins

VALID, INVALID = 0, 2
EXCERPT_COLUMNS = 100
"""Of a long line, so much is shown around the fault."""
MAY_BE_SECRET = re.compile(
    r"password|secret|token|passphrase|heartbeat|\b(key|pin|to)\b[\"']?\s*:|://\S*@", re.IGNORECASE
)
"""Lines that are not shown: an error may stand beside what nobody should see."""
DELIVERY_NOTES = {
    "3.1.1": "mqtt.version 3.1.1: a message that the broker refuses looks delivered there (delivery unverified), and is lost "
    "without a gap record; with a broker of MQTT 5 every refusal is seen",
    "auto": "mqtt.version auto: with a broker that speaks only 3.1.1, a message that it refuses looks delivered and is lost "
    'without a gap record; `edge-agent status` then says "delivery unverified", and version: "5" never settles for that',
}
RED, BOLD, DIM, PLAIN = "\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


def add_check(sub: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = sub.add_parser(
        "check",
        help="validate a configuration",
        description="Validate a configuration. Every fault is told with its place. Exit status 2 when there is one; with "
        "--connect 1 when a signal cannot be read, 3 when nothing was reached.",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the configuration file")
    parser.add_argument(
        "--connect",
        action="store_true",
        help="also read every signal once and knock at the brokers, and say what fails and why",
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.set_defaults(run=check)


def add_schema(sub: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = sub.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description="Print the JSON Schema of the configuration, with the keys of the installed drivers. Save it as "
        "agent.schema.json beside the configuration, whose first line then makes editors complete and check.",
    )
    parser.set_defaults(run=schema)


def check(args: argparse.Namespace) -> int:
    """Tell every fault on stderr, or a short summary on stdout; with --json all of it as one object on stdout."""
    from edge_agent import config, plugins

    registry = plugins.installed()
    try:
        loaded = config.load(args.config, registry)
    except config.ConfigErrors as invalid:
        _tell_errors(invalid.errors, as_json=args.json)
        return INVALID
    summary = _summary(loaded, registry)
    if args.connect and loaded.config.for_recordings:
        return _wrong_use(
            args, f"{args.config} has no connections: it is for recordings, there is nothing to connect to"
        )
    if args.connect:
        return _connect(args, loaded, summary)
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        _print_summary(args.config, summary)
    return VALID


def _connect(args: argparse.Namespace, loaded: "Loaded", summary: dict[str, Any]) -> int:
    """Every signal once: which fail, and why."""
    from edge_agent import config
    from edge_agent.cli import read

    try:
        rows, faults = read.read_all(loaded.config)
    except config.SecretError as error:
        if not (told := config.at_its_place(error, loaded)):
            return _wrong_use(args, str(error))
        _tell_errors(told, as_json=args.json)
        return INVALID
    failing = [row for row in rows if row.verdict == "bad"]
    brokers = _knock(loaded.config)
    if args.json:
        signals = [
            {
                "machine": row.machine,
                "signal": row.signal,
                "quality": row.quality,
                "value": row.value,
                **({"reason": row.reason} if row.reason else {}),
            }
            for row in rows
        ]
        print(
            json.dumps(
                {
                    **summary,
                    "ok": not failing,
                    "signals": signals,
                    "faults": faults,
                    "brokers": [asdict(each) for each in brokers],
                },
                ensure_ascii=False,
            )
        )
    else:
        _print_summary(args.config, summary)
        for connection, fault in faults.items():
            print(f"  connection {connection}: {config.printable(fault)}")
        for row in failing:
            why = f": {row.reason}" if row.reason and row.reason not in faults.values() else ""
            print(f"  {row.machine}.{row.signal}: {row.quality}{config.printable(why)}")
        for broker in brokers:
            print(f"  broker {broker.url}: {config.printable(_answer(broker))}")
        print(f"{len(rows) - len(failing)} of {_counted(len(rows), 'signals')} can be read")
    if rows and all(row.quality in read.UNREACHED for row in rows):
        return read.UNREACHABLE
    return read.NOT_SO if failing else VALID


def _knock(found: "Config") -> "list[Answer]":
    """What each broker says; it changes no exit status, since the agent measures and keeps without one. Raises SecretError."""
    import asyncio

    from edge_agent import agent, mqtt
    from edge_agent.clock import SystemClock

    if found.mqtt is None or found.mqtt.url.startswith("embedded:"):
        return []
    return asyncio.run(mqtt.knock(agent.link_of(found, found.mqtt.url), SystemClock()))


def _answer(broker: "Answer") -> str:
    match broker.version:
        case None:
            return f"cannot be used: {broker.reason}"
        case "5":
            return "takes this agent, with MQTT 5: every refusal of a message will be seen"
        case version:
            return f"takes this agent, with MQTT {version}: a message that it refuses looks delivered (delivery unverified)"


def _wrong_use(args: argparse.Namespace, text: str) -> int:
    if args.json:
        error = {
            "file": str(args.config),
            "line": 1,
            "column": 1,
            "path": "",
            "found": None,
            "allowed": None,
            "text": text,
        }
        print(json.dumps({"ok": False, "errors": [error]}, ensure_ascii=False))
    else:
        print(f"edge-agent: {text}", file=sys.stderr)
    return INVALID


def schema(args: argparse.Namespace) -> int:  # noqa: ARG001 - every command is called alike
    """Print the schema. A driver that cannot be imported is left out and told on stderr."""
    from edge_agent import plugins
    from edge_agent.configuration.schema import json_schema

    registry = plugins.installed()
    drivers = {}
    for kind in registry.kinds():
        try:
            drivers[kind] = registry.driver(kind)
        except plugins.BrokenPluginError as error:
            print(f"driver {kind} is left out: {error}", file=sys.stderr)
    print(json.dumps(json_schema(drivers, plugins.detectors()), ensure_ascii=False, indent=2))
    return VALID


def _summary(loaded: "Loaded", registry: "Plugins") -> dict[str, Any]:
    from edge_agent import load

    found = loaded.config
    lines = load.predicted(found, registry)
    kinds = sorted({connection.driver for connection in found.connections.values()})
    return {
        "ok": True,
        "errors": [],
        "sha": loaded.sha,
        "files": [str(path) for path in loaded.files],
        "machines": len(found.machines),
        "signals": sum(len(machine.signals) for machine in found.machines.values()),
        "connections": len(found.connections),
        "drivers": [{"kind": kind, **registry.origin(kind)._asdict()} for kind in kinds],
        "notes": [*loaded.notes, *_notes(loaded)],
        "lines": [_line(line) for line in lines],
        "warnings": [*_overloaded(loaded, lines)],
        "for_recordings": found.for_recordings,
        **_delivery(found),
    }


def _line(line: "LineLoad") -> dict[str, Any]:
    """What reading will take of it. busy: the share of time that is needed. missed: of its beats, null when not known."""
    from edge_agent import load

    fullest = line.weight.busiest
    return {
        "connections": [asker.name for asker in line.askers],
        "busy": round(line.weight.share, 4),
        "requests_per_s": round(line.weight.requests_per_s, 3),
        "fullest": {"needs_s": fullest.busy_us / 1e6, "within_s": line.weight.within_us / 1e6},
        "missed": None if line.missed is None else round(line.missed, 4),
        "text": load.sentence(line),
    }


def _overloaded(loaded: "Loaded", lines: "Iterable[LineLoad]") -> Iterable[str]:
    """No fault, since the agent runs with it and tells what it misses; but it should be known before."""
    from edge_agent import load
    from edge_agent.config import ConfigError

    for line in lines:
        if text := load.warning(line):
            name = line.askers[0].name
            yield str(ConfigError(*loaded.connection_places[name], f"connections.{name}", text=f"warning: {text}"))


def _delivery(found: "Config") -> dict[str, str]:
    """What the broker's acknowledgement will be worth: see docs/mqtt.md."""
    words = {"3.1.1": "unverified", "auto": "unknown", "5": "verified"}
    return {"delivery": words[found.mqtt.version]} if found.mqtt is not None else {}


def _notes(loaded: "Loaded") -> Iterable[str]:
    """What a person should know: secrets that cannot be had here and now (the service may be given them elsewhere), delivery."""
    from edge_agent import config

    yield from map(str, config.missing_secrets(loaded))
    tls = loaded.config.mqtt.tls if loaded.config.mqtt else None
    for key in ("ca", "cert", "key"):
        path = getattr(tls, key, None)
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            yield f"mqtt.tls.{key}: {path} cannot be read here"
    if note := _lacks_for_export(loaded.config.store.history_export):
        yield f"store.history.export: {note}"
    if note := DELIVERY_NOTES.get(loaded.config.mqtt.version if loaded.config.mqtt else ""):
        yield note


def _lacks_for_export(out: str | None) -> str | None:
    """What is not installed of what the daily export needs; it would be told after the first midnight only."""
    from edge_agent import lake

    if out is None:
        return None
    if not lake.is_here():
        return "nothing is exported before the extra `lake` is installed: pip install 'edge-agent[lake]'"
    if "://" in out and find_spec("fsspec") is None:
        return f"nothing goes to a {out.partition('://')[0]}:// URL before fsspec and what it needs for it is installed"
    return None


def _print_summary(path: Path, summary: dict[str, Any]) -> None:
    counts = ", ".join(_counted(summary[noun], noun) for noun in ("machines", "signals", "connections"))
    print(f"{path} is valid: {counts} (configuration {summary['sha']})")
    for driver in summary["drivers"]:
        print(f"  driver {driver['kind']}: {driver['distribution']} {driver['version']}")
    if summary["for_recordings"]:
        print("  for recordings: `replay` takes it, `run` needs connections")
    for line in summary["lines"]:
        if line["text"]:
            print(f"  {line['text']}")
    for note in summary["notes"]:
        print(f"  note: {note}")
    for warning in summary["warnings"]:
        print(warning, file=sys.stderr)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun if count != 1 else noun.removesuffix('s')}"


def _tell_errors(errors: "list[ConfigError]", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"ok": False, "errors": [asdict(error) for error in errors]}, ensure_ascii=False))
        return
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    for error in errors:
        print(_coloured(error) if colour else str(error), file=sys.stderr)
        if sys.stderr.isatty() and (excerpt := _excerpt(error, colour=colour)):
            print(excerpt, file=sys.stderr)
    if sys.stderr.isatty():
        print(f"{_counted(len(errors), 'errors')}; nothing was started", file=sys.stderr)


def _coloured(error: "ConfigError") -> str:
    place = f"{error.file}:{error.line}:{error.column}:"
    return f"{BOLD}{place}{PLAIN}{str(error).removeprefix(place)}"


def _excerpt(error: "ConfigError", *, colour: bool) -> str | None:
    """The line of the fault with a caret under it; None when it cannot be shown or may hold a secret."""
    if error.found is not None and error.found.endswith("not shown"):
        return None
    try:
        lines = Path(error.file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if error.line > len(lines):
        return None
    line = "".join(char if char.isprintable() else " " for char in lines[error.line - 1])
    if MAY_BE_SECRET.search(line):
        return None
    start = max(0, error.column - 1 - EXCERPT_COLUMNS // 2)
    shown = line[start : start + EXCERPT_COLUMNS]
    margin = f"{error.line:>6} | "
    caret = " " * (len(margin) + error.column - 1 - start) + "^"
    if colour:
        return f"{DIM}{margin}{PLAIN}{shown}\n{RED}{caret}{PLAIN}"
    return f"{margin}{shown}\n{caret}"
