"""`edge-agent status` and `edge-agent reload`: talk to the running agent through the socket in its data directory.

What is shown is what the agent answers; a key that it does not send is left out, so that an older agent can be asked.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DEFAULT_CONFIG = Path("/etc/edge-agent/agent.yaml")
RELOAD_WITHIN_S = 60.0
"""A large configuration is read, compiled and taken over in far less."""
WARNINGS_SHOWN = 20

DONE, NOT_SO, WRONG_USE, UNREACHABLE = 0, 1, 2, 3


def add_status(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "status",
        help="what the running agent is doing",
        description="Show what the running agent is doing. Exit status 3 when no agent runs.",
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
    data_dir = arguments.data_dir or config.data_dir_of(path, control.SOCKET)
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
    """The answer to `status` as text: the agent, its connections, its buffer, its warnings, what it refused."""
    words = {key: answer[key] for key in ("version", "config", "signals", "pid") if answer.get(key) is not None}
    since = f" since {answer['since']}" if answer.get("since") else ""
    yield f"edge-agent is {answer.get('state', 'running')}{since}"
    if words:
        yield "  " + ", ".join(f"{key} {value}" for key, value in words.items())
    for key, title in (("config_file", "configuration"), ("data_dir", "data"), ("web", "page")):
        if answer.get(key):
            yield f"  {title}: {answer[key]}"
    broker = answer.get("mqtt")
    if isinstance(broker, Mapping):
        yield "broker"
        yield f"  {_facts(broker)}"
    connections = answer.get("connections")
    if isinstance(connections, Mapping) and connections:
        yield "connections"
        yield from _table([[name, *_connection(each)] for name, each in connections.items()])
    buffer = answer.get("buffer")
    if isinstance(buffer, Mapping):
        oldest = f", the oldest of {buffer['oldest']}" if buffer.get("oldest") else ""
        yield "buffer"
        yield f"  {buffer.get('messages', 0)} messages wait for the broker{oldest}"
    yield from _warning_lines(answer.get("warnings"))
    errors = answer.get("errors")
    if errors:
        yield "refused: the changed configuration has errors, the one before goes on"
        yield from (f"  {error_line(each)}" for each in errors)


def _connection(each: object) -> list[str]:
    if not isinstance(each, Mapping):
        return [str(each)]
    rest = {key: value for key, value in each.items() if key not in {"state", "since", "ne107", "units"}}
    units = each.get("units")
    lost = list(map(str, units)) if isinstance(units, Mapping) else []
    facts = _facts({**({"lost": ", ".join(lost)} if lost else {}), **rest})
    return [str(each.get("state", "?")), f"since {each['since']}" if each.get("since") else "", facts]


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value not in (None, ""))


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
