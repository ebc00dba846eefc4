"""`edge-agent replay`: recorded data through exactly the judge that the daemon runs."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Sequence

    from edge_agent.records import Event

DONE, WRONG_USE = 0, 2
ALARMS_HEAD = ("case", "start", "end", "tag", "severity", "kind")


def add_replay(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "replay",
        help="run recorded data through the judge and show the warnings it would have given",
        description="Run recorded data (CSV, also gzipped) through exactly the code that the daemon runs.",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("data", metavar="DATA", type=Path, help="a time column and one for each machine.signal")
    parser.add_argument("--time", metavar="NAME", help="the time column (default: ts, time, datetime or timestamp)")
    parser.add_argument("--sep", default=",", help="the separator, one character, or tab (default: %(default)s)")
    parser.add_argument("--tz", metavar="ZONE", default="UTC", help="of times that name none (default: %(default)s)")
    parser.add_argument("--rows", metavar="N", type=int, help="rows in a frame; it changes nothing but the speed")
    parser.add_argument("--out", metavar="FILE.jsonl", type=Path, help="write every event, one JSON object a line")
    parser.add_argument("--alarms", metavar="FILE.csv", type=Path, help="write one row for each warning")
    parser.add_argument("--json", action="store_true", help="print the events as JSON lines instead of for people")
    parser.add_argument("--learn-until", metavar="TIME", help=argparse.SUPPRESS)
    parser.set_defaults(run=replay)


def replay(arguments: argparse.Namespace) -> int:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from edge_agent import config, plugins, replay
    from edge_agent.plant import compile_plant

    if (wrong := _wrong_use(arguments)) is not None:
        return _refused(wrong)
    sep = "\t" if arguments.sep in ("tab", "\\t") else arguments.sep
    try:
        zone = ZoneInfo(arguments.tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return _refused(f"--tz {arguments.tz!r}: no such time zone (Europe/Amsterdam, UTC)")
    try:
        loaded = config.load(arguments.config)
    except config.ConfigErrors as error:
        print(error, file=sys.stderr)
        return WRONG_USE
    try:
        recording = replay.read_csv(arguments.data, time=arguments.time, sep=sep, zone=zone)
    except replay.RecordingError as error:
        return _refused(str(error))
    fitted, columns, notes = replay.fitted(loaded.config, recording)
    for note in (*loaded.notes, *recording.notes, *notes):
        print(f"note: {note}", file=sys.stderr)
    if not columns:
        return _refused(f"{arguments.data}: has no column of any signal of {arguments.config}")
    plant = compile_plant(fitted, list(plugins.detectors().values()), own=False)
    events = replay.run(plant, replay.frames(plant, recording, columns, arguments.rows or replay.ROWS))
    try:
        _write(arguments, recording.name, events)
    except OSError as error:
        return _refused(f"{error.filename or 'the output'}: cannot be written: {error.strerror}")
    if not arguments.json:
        _show(events, fitted.agent.timezone, len(recording.ts))
    return DONE


def _wrong_use(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the words of the command."""
    if arguments.learn_until:
        return "--learn-until is not available yet"
    if arguments.rows is not None and arguments.rows < 1:
        return f"--rows {arguments.rows}: at least 1"
    if arguments.sep not in ("tab", "\\t") and len(arguments.sep) != 1:
        return f"--sep {arguments.sep!r}: one character, or tab"
    if arguments.data.suffix in (".parquet", ".pq") or arguments.data.is_dir():
        return f"{arguments.data}: only CSV can be read; Parquet and the agent's own history are not available yet"
    if (taken := _taken_twice(arguments)) is not None:
        return f"{taken}: would be overwritten; write to another file"
    return None


def _taken_twice(arguments: argparse.Namespace) -> Path | None:
    """A file that is read or written twice would be lost."""
    seen = {path.resolve() for path in (arguments.config, arguments.data)}
    for path in (arguments.out, arguments.alarms):
        if path is not None and path.resolve() in seen:
            return Path(path)
        if path is not None:
            seen.add(path.resolve())
    return None


def _refused(text: str) -> int:
    print(f"edge-agent: {text}", file=sys.stderr)
    return WRONG_USE


def _write(arguments: argparse.Namespace, case: str, events: "Sequence[Event]") -> None:
    from edge_agent import replay
    from edge_agent.messages import topics as messages

    lines = [messages.warning(dataclasses.replace(e, epoch=replay.EPOCH, seq=seq)) for seq, e in enumerate(events, 1)]
    if arguments.out:
        arguments.out.write_bytes(b"".join(line + b"\n" for line in lines))
    if arguments.json:
        for line in lines:
            print(line.decode())
    if arguments.alarms:
        import csv

        with arguments.alarms.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(ALARMS_HEAD)
            for alarm in replay.alarms(events):
                end = "" if alarm.end is None else messages.to_utc(alarm.end)
                writer.writerow([case, messages.to_utc(alarm.start), end, alarm.tag, alarm.severity, alarm.kind])


def _show(events: "Sequence[Event]", zone: str, rows: int) -> None:
    from datetime import UTC, datetime, timedelta
    from zoneinfo import ZoneInfo

    from edge_agent import replay

    here = ZoneInfo(zone)
    if events:
        print(f"times are in {zone}")
    for event in events:
        when = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=event.ts)).astimezone(here)
        place = f"{event.machine}.{event.signal}"
        print(f"{when:%Y-%m-%d %H:%M:%S}  {event.event:12} {event.severity:8} {place:32} {event.message}")
    found = replay.alarms(events)
    standing = sum(alarm.end is None for alarm in found)
    counted = "1 warning" if len(found) == 1 else f"{len(found)} warnings"
    print(f"{rows} rows: {counted}, {standing} of them standing at the end")
