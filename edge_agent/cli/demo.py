"""`edge-agent demo`: a simulated plant, a broker, the agent and its page; and `--fault` to break something in it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edge_agent.cli.run import add_log_options

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from edge_agent.demo import Where

DONE, WRONG_USE, UNREACHABLE = 0, 2, 3
PORT_MAX = 65535

RESET, BOLD, DIM = "\x1b[0m", "\x1b[1m", "\x1b[2m"
COLOURS = {"alarm": "\x1b[1;31m", "warning": "\x1b[33m", "normal": "\x1b[32m", "none": "\x1b[36m"}


def add_demo(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "demo",
        help="start a simulated plant, a broker and the agent with its page, and watch faults being found",
        description="Start a simulated plant (Modbus TCP and OPC UA), a broker and the agent with its page. Faults "
        "come by themselves and can be called up. Ctrl-C ends all of it.",
    )
    parser.add_argument("--port-web", type=_port, default=8080, metavar="PORT", help="of the page (%(default)s)")
    parser.add_argument("--port-mqtt", type=_port, default=1883, metavar="PORT", help="of the broker (%(default)s)")
    parser.add_argument("--for", dest="for_s", type=_seconds, metavar="DURATION", help="end by itself, e.g. 60s, 5min")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: where to look, then each warning")
    parser.add_argument("--fault", metavar="NAME", help="call this fault up in the demo that is running, and end")
    add_log_options(parser)
    parser.set_defaults(run=run, log_level="error")


def run(arguments: argparse.Namespace) -> int:
    if arguments.fault is not None:
        return _call_up(arguments.fault, as_json=arguments.json)
    import asyncio

    from edge_agent import agent, clock, demo, service

    service.configure_logging(arguments.log_level, clock.SystemClock(), form=arguments.log_form)
    options = demo.Options(arguments.port_web, arguments.port_mqtt, arguments.for_s)
    watcher = _json_watcher() if arguments.json else _terminal_watcher()
    try:
        return asyncio.run(demo.run(options, agent.run, demo.Watcher(*watcher)))
    except demo.DemoError as error:
        print(f"edge-agent demo: {error}", file=sys.stderr)
        return UNREACHABLE
    finally:
        service.flush_suppressed()


def _call_up(fault: str, *, as_json: bool) -> int:
    from edge_agent import demo

    try:
        demo.call_up(fault)
    except demo.UnknownFaultError as error:
        print(f"edge-agent demo: {error}. Faults:", file=sys.stderr)
        print("\n".join(_fault_lines(error.faults)), file=sys.stderr)
        return WRONG_USE
    except demo.DemoError as error:
        print(f"edge-agent demo: {error}", file=sys.stderr)
        return UNREACHABLE
    print(json.dumps({"fault": fault}) if as_json else f"called up: {fault}")
    return DONE


def _json_watcher() -> tuple[Callable[["Where"], None], Callable[[dict[str, Any]], None], Callable[[str], None]]:
    def ready(where: "Where") -> None:
        first = {"web": where.web, "mqtt": where.mqtt, "config": str(where.config), "faults": list(where.faults)}
        print(json.dumps({**first, "broker": where.broker, "modbus": where.modbus, "opcua": where.opcua}), flush=True)

    def event(happened: dict[str, Any]) -> None:
        print(json.dumps(happened, ensure_ascii=False, default=str), flush=True)

    return ready, event, lambda text: print(text, file=sys.stderr, flush=True)


def _terminal_watcher() -> tuple[Callable[["Where"], None], Callable[[dict[str, Any]], None], Callable[[str], None]]:
    paint = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def ready(where: "Where") -> None:
        print(welcome(where), flush=True)

    def event(happened: dict[str, Any]) -> None:
        print(event_line(happened, paint=paint), flush=True)

    def note(text: str) -> None:
        now = datetime.now().astimezone()
        line = f"{now:%H:%M:%S}  {text}"
        print(f"{DIM}{line}{RESET}" if paint else line, flush=True)

    return ready, event, note


def welcome(where: "Where") -> str:
    """Where to look and what will happen, in words for a newcomer."""
    host, _, port = where.mqtt.removeprefix("mqtt://").partition(":")
    page = where.web or "none (web: null)"
    return "\n".join(
        [
            "A hydraulic press, two pumps and a spindle are running, and an agent watches them.",
            "",
            f"  Page     {page}",
            f"  MQTT     {where.mqtt}  ({where.broker})",
            f"           mosquitto_sub -h {host} -p {port} -t 'edge/#' -v",
            f"  Config   {where.config}",
            f"  Plant    Modbus {where.modbus}, OPC UA {where.opcua} (takes some seconds)",
            "",
            "Faults come by themselves: within a minute a filter clogs, a bearing overheats and two sensors break;",
            "all of it heals again and starts anew every four minutes. Or call one up from a second terminal:",
            "  edge-agent demo --fault NAME",
            *_fault_lines(where.faults),
            "",
            "Warnings appear below as they come. Ctrl-C ends everything.",
            "",
        ]
    )


def event_line(happened: Mapping[str, Any], *, paint: bool) -> str:
    """One warning event for people: local time, machine, severity and what happened, message."""
    at = datetime.fromisoformat(str(happened["ts"])).astimezone()
    over = happened["event"] == "cleared"
    severity = str(happened["severity"])
    what = "back to normal" if over else f"{severity} {happened['event']}"
    line = f"{at:%H:%M:%S}  {happened['machine']:<10} {what:<20} {happened['message']}"
    advice = happened.get("advice")
    if advice and happened["event"] == "raised":
        line += f"\n{'':<42}→ {advice}"
    return f"{COLOURS['normal' if over else severity]}{line}{RESET}" if paint else line


def _fault_lines(faults: Mapping[str, str]) -> list[str]:
    return [f"  {name:<20} {words}" for name, words in faults.items()]


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no port (0 to {PORT_MAX}; 0: a free one)")
    return int(text)


def _seconds(text: str) -> float:
    from edge_agent.contract import duration_us

    try:
        return duration_us(text) / 1e6
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it like 60s or 5min") from None
