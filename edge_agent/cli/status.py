"""`edge-agent status` and `edge-agent reload`: talk to the running agent through the socket in its data directory.

What is shown is what the agent answers; a key that it does not send is left out, so that an older agent can be asked.
"""

import argparse
import json
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli.run import DEFAULT_CONFIG

if TYPE_CHECKING:
    from argparse import _SubParsersAction

RELOAD_WITHIN_S = 60.0
"""A large configuration is read, compiled and taken over in far less."""
WARNINGS_SHOWN = 20

DONE, NOT_SO, WRONG_USE, UNREACHABLE = 0, 1, 2, 3


def add_status(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "status",
        help="what the running agent is doing",
        description="Show what the running agent is doing. Counts of 0 are left out; --json has all. Exit status 3 when no agent "
        "runs.",
    )
    _add_finding(parser)
    parser.set_defaults(run=status)


def add_reload(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "reload",
        help="tell the running agent to take over its changed configuration",
        description="Take over the changed configuration. Exit status 2 when it is refused (the running one stays), "
        "3 when no agent runs.",
    )
    _add_finding(parser)
    parser.set_defaults(run=reload)


def _add_finding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument("--data-dir", type=Path, help="the agent's data directory, when CONFIG does not tell it")
    parser.add_argument("--json", action="store_true", help="the agent's answer as JSON")


def status(arguments: argparse.Namespace) -> int:
    answer = _asked(arguments, "status", 10.0)
    if isinstance(answer, int):
        return answer
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False))
    elif answer.get("ok"):
        from edge_agent.config import printable

        for line in status_lines(answer):
            print(printable(line))
    else:
        print(f"edge-agent: {answer.get('error', 'refused')}", file=sys.stderr)
    return DONE if answer.get("ok") else NOT_SO


def reload(arguments: argparse.Namespace) -> int:
    answer = _asked(arguments, "reload", RELOAD_WITHIN_S)
    if isinstance(answer, int):
        return answer
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        _show_reload(answer)
    return DONE if answer.get("ok") else WRONG_USE


def _asked(arguments: argparse.Namespace, command: str, timeout_s: float) -> dict[str, Any] | int:
    """The agent's answer, or the exit status after the reason was told."""
    from edge_agent import config, control

    given = arguments.config is not None
    path = arguments.config if given else DEFAULT_CONFIG
    if arguments.data_dir is None and not path.exists():
        error = f"{path}: no such file; name a CONFIG or --data-dir"
        return _failed(arguments, error, WRONG_USE if given else UNREACHABLE)
    data_dir = (arguments.data_dir or config.data_dir_of(path, control.SOCKET)).absolute()
    try:
        return control.ask(data_dir, {"command": command}, timeout_s)
    except ConnectionError as error:
        return _failed(arguments, str(error), UNREACHABLE)


def _failed(arguments: argparse.Namespace, error: str, status: int) -> int:
    if arguments.json:
        print(json.dumps({"ok": False, "error": error}, ensure_ascii=False))
    print(f"edge-agent: {error}", file=sys.stderr)
    return status


# ------------------------------------------------------------------------------------------------------- for people


def status_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The answer to `status` as text: the agent, its broker, lines, store and clock, its warnings, what it refused."""
    zone = answer.get("timezone")
    words = {key: answer[key] for key in ("version", "config", "signals", "pid") if answer.get(key) is not None}
    since = f" since {_when(answer['since'], zone)}" if answer.get("since") else ""
    here = f"  (times are in {zone})" if since and zone else ""
    yield f"edge-agent is {answer.get('state', 'running')}{since}{here}"
    if words:
        yield "  " + ", ".join(f"{key} {value}" for key, value in words.items())
    titles = (("config_file", "configuration"), ("data_dir", "data"), ("web", "page"))
    yield from _table([[title, str(answer[key])] for key, title in titles if answer.get(key)])
    yield from _broker_lines(answer.get("mqtt"), zone)
    connections = answer.get("connections")
    if isinstance(connections, Mapping) and connections:
        yield "connections"
        yield from _table([[name, *_connection(each, zone)] for name, each in connections.items()])
    yield from _store_lines(answer.get("buffer"), zone)
    yield from _clock_lines(answer.get("clock"), zone)
    yield from _warning_lines(answer.get("warnings"))
    errors = answer.get("errors")
    if errors:
        yield "refused: the changed configuration has errors, the one before goes on"
        yield from (f"  {error_line(each)}" for each in errors)


def _broker_lines(broker: object, zone: str | None) -> Iterator[str]:
    """Whether it takes what we say, what that is worth, and what it does not take."""
    if not isinstance(broker, Mapping):
        return
    yield "broker"
    version = f", MQTT {broker['version']}" if broker.get("version") else ""
    worth = f", delivery {broker['delivery']}" if broker.get("delivery") else ""
    yield f"  {broker.get('url') or ''}  {_state(broker, zone)}{version}{worth}"
    if broker.get("reason"):
        yield f"  reason: {broker['reason']}"
    if isinstance(loss := broker.get("last_loss"), Mapping):
        yield f"  the connection before was lost at {_when(loss.get('ts'), zone)}: {loss.get('reason')}"
    if facts := _facts(broker, {"state", "since", "url", "version", "delivery", "reason", "last_loss"}):
        yield f"  {facts}"
    for key, words in (("refused_topics", "not taken"), ("set_aside", "set aside")):
        for each in broker.get(key) or ():
            number = f" (seq {each['seq']})" if "seq" in each else ""
            since = _when(each.get("since"), zone)
            yield f"  {words} since {since}: {each.get('topic')}{number}: {each.get('reason')}"


def _connection(each: object, zone: str | None) -> list[str]:
    if not isinstance(each, Mapping):
        return [str(each)]
    state, _, since = _state(each, zone).partition(" ")
    units = each.get("units")
    lost = ["lost " + ", ".join(map(str, units))] if isinstance(units, Mapping) and units else []
    share = each.get("utilisation")
    busy = [f"busy {share:.0%}"] if isinstance(share, float) else []
    facts = _facts(each, {"state", "since", "ne107", "units", "utilisation"})
    return [state, since, ", ".join([*lost, *busy, *([facts] if facts else [])])]


def _store_lines(buffer: object, zone: str | None) -> Iterator[str]:
    """What waits for the broker, and whether the disk takes what is to be kept."""
    if not isinstance(buffer, Mapping):
        return
    yield "store"
    count = buffer.get("messages", 0)
    oldest = f", the oldest of {_when(buffer['oldest'], zone)}" if buffer.get("oldest") else ""
    waits = f"{count} message{'' if count == 1 else 's'} wait{'s' if count == 1 else ''} for the broker{oldest}"
    rows = [["journal", *_kept(buffer), waits]]
    history = buffer.get("history")
    export = history.get("export") if isinstance(history, Mapping) else None
    if isinstance(history, Mapping):
        size = f"{history['mb']:.1f} MB" if isinstance(history.get("mb"), int | float) else ""
        began = f"readings since {_when(history['oldest'], zone)}" if history.get("oldest") else ""
        lost = _facts(history, {"state", "reason", "mb", "oldest", "export"})
        rows.append(["history", *_kept(history), ", ".join(filter(None, (size, began, lost)))])
    if isinstance(export, Mapping):
        through = f"written up to {export['through']}" if export.get("through") else "nothing written yet"
        rows.append(["export", *_kept(export), through])
    yield from _table(rows)
    for part in (buffer, history, export):
        if isinstance(part, Mapping) and part.get("reason"):
            yield f"  reason: {part['reason']}"


def _kept(part: Mapping[str, Any]) -> list[str]:
    return [str(part["state"]).upper() if part["state"] != "ok" else "ok"] if "state" in part else []


def _clock_lines(clock: object, zone: str | None) -> Iterator[str]:
    if not isinstance(clock, Mapping):
        return
    yield "clock"
    yield f"  {_state(clock, zone)}"
    if isinstance(step := clock.get("last_step"), Mapping):
        yield f"  jumped by {step.get('by_s')} s at {_when(step.get('ts'), zone)}, {clock.get('steps')} in all"


def _state(part: Mapping[str, Any], zone: str | None) -> str:
    since = f" since {_when(part['since'], zone)}" if part.get("since") else ""
    return f"{part.get('state', '?')}{since}"


def _when(text: object, zone: str | None) -> str:
    """A time of the answer (UTC) for people: where they are, to the second; in UTC when the answer names no zone."""
    from datetime import datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return f"{datetime.fromisoformat(str(text)).astimezone(ZoneInfo(zone or 'UTC')):%Y-%m-%d %H:%M:%S}" + (
            "" if zone else " UTC"
        )
    except (ValueError, OverflowError, OSError, ZoneInfoNotFoundError):
        return str(text)


def _facts(facts: Mapping[str, Any], told: Container[str]) -> str:
    """What else there is to say, and is not told elsewhere. A count of nothing is left out; `--json` has it."""
    plain = {key: value for key, value in facts.items() if key not in told and not isinstance(value, list | dict)}
    return ", ".join(f"{key} {value}" for key, value in plain.items() if value not in (None, "", 0))


def _warning_lines(warnings: object) -> Iterator[str]:
    if not isinstance(warnings, list):
        return
    yield "active warnings" if warnings else "active warnings: none"
    rows = [
        [
            str(each.get("severity", "")),
            ".".join(str(each[key]) for key in ("machine", "signal") if each.get(key)),
            str(each.get("kind", "")),
            str(each.get("state", "")),
            str(each.get("message", "")),
        ]
        for each in warnings[:WARNINGS_SHOWN]
        if isinstance(each, Mapping)
    ]
    yield from _table(rows)
    if len(warnings) > WARNINGS_SHOWN:
        yield f"  and {len(warnings) - WARNINGS_SHOWN} more"


def _table(rows: list[list[str]]) -> Iterator[str]:
    """Rows with their columns under each other; rows may have fewer columns than others."""
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths.get(column, 0), len(cell))
    for row in rows:
        yield "  " + "  ".join(cell.ljust(widths[column]) for column, cell in enumerate(row)).rstrip()


def _show_reload(answer: Mapping[str, Any]) -> None:
    if answer.get("ok"):
        changed = answer.get("changed") or []
        config = f" {answer['config']}" if answer.get("config") else ""
        print(f"configuration{config} is in force" if changed else f"nothing changed: configuration{config}")
        for each in changed:
            print(f"  {each}")
        return
    errors = answer.get("errors") or []
    for each in errors:
        print(error_line(each), file=sys.stderr)
    reason = answer.get("error") or f"{len(errors)} error{'s' if len(errors) != 1 else ''} in the configuration"
    print(f"edge-agent: refused, the running configuration stays: {reason}", file=sys.stderr)


def error_line(error: object) -> str:
    """`file:line:column: key.path: text`, as every command prints it."""
    from edge_agent.config import ConfigError

    return str(ConfigError(**error)) if isinstance(error, Mapping) else str(error)
