"""`edge-agent replay`: recorded data through exactly the judge that the daemon runs."""

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.cli.refused import refusal, unreadable

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Callable, Iterable, Sequence

    from edge_agent.config import Config, Loaded
    from edge_agent.records import Event
    from edge_agent.replay import Alarm

DONE, WRONG_USE = 0, 2
ALARMS_HEAD = ("case", "start", "end", "tag", "severity", "kind")


def add_replay(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "replay",
        help="run recorded data through the judge and show the warnings it would have given",
        description="Run recorded data (CSV, also gzipped, or the data folder of an agent, which may be running) through "
        "exactly the code that the daemon runs.",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="CSV with a time column and one for each machine.signal, or an agent's data folder",
    )
    parser.add_argument("--time", metavar="NAME", help="the time column (default: ts, time, datetime or timestamp)")
    parser.add_argument("--sep", default=",", help="the separator, one character, or tab (default: %(default)s)")
    parser.add_argument("--tz", metavar="ZONE", default="UTC", help="of times that name none (default: %(default)s)")
    parser.add_argument("--rows", metavar="N", type=int, help="rows in a frame; it changes nothing but the speed")
    parser.add_argument("--out", metavar="FILE.jsonl", type=Path, help="write every event, one JSON object a line")
    parser.add_argument("--alarms", metavar="FILE.csv", type=Path, help="write one row for each warning")
    parser.add_argument("--json", action="store_true", help="print the events as JSON lines instead of for people")
    parser.add_argument(
        "--by-config",
        action="store_true",
        help="of an agent's data folder: judge all of it by CONFIG, also what was judged by an earlier configuration",
    )
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
        is_own = arguments.data.is_dir()
    except OSError as error:
        return _refused(refusal(error, arguments.data))
    if is_own:
        return _of_own_store(arguments, loaded)
    try:
        recording = replay.read_csv(arguments.data, time=arguments.time, sep=sep, zone=zone)
    except replay.RecordingError as error:
        return _refused(str(error))
    fitted, columns, notes = replay.fitted(loaded.config, recording)
    for note in (*loaded.notes, *recording.notes, *notes):
        print(f"note: {note}", file=sys.stderr)
    if not columns:
        return _refused(f"{arguments.data}: has no column of any signal of {arguments.config}")
    plant = compile_plant(fitted, plugins.detectors(), own=False)
    events = replay.run(plant, replay.frames(plant, recording, columns, arguments.rows or replay.ROWS))
    return _told(arguments, recording.name, events, fitted.agent.timezone, lambda: len(recording.ts))


def _of_own_store(arguments: argparse.Namespace, loaded: "Loaded") -> int:
    """The agent's own past: as it was then, or all of it by another configuration."""
    from edge_agent import config, plugins, rejudge, replay
    from edge_agent.plant import Plant, compile_plant
    from edge_agent.records import Command
    from edge_agent.store import configured, past

    detectors, registry = plugins.detectors(), plugins.installed()

    def compiled(text: str) -> Plant:
        return compile_plant(config.unpack(text, registry), detectors)

    try:
        with past.open_past(arguments.data) as found:
            texts = [configured.text_of(item.what) for item in found.commands() if isinstance(item.what, Command)]
            texts = [text for text in texts if text]
            as_then = bool(texts) and not arguments.by_config and _judges_as(texts[-1], loaded.config)
            if texts and not as_then and len(set(texts)) == 1 and not arguments.by_config:
                words = (
                    f"{arguments.config} is not what the agent ran with: the past is judged as {arguments.config} says"
                )
                print(f"note: {words}", file=sys.stderr)
            if len(set(texts)) > 1:
                how = "each part by the one of its time (--by-config: all by CONFIG)" if as_then else "all by CONFIG"
                print(f"note: the past has {len(set(texts))} configurations; it is judged {how}", file=sys.stderr)
            run = rejudge.Rejudged(
                compile_plant(loaded.config, detectors),
                compiled if as_then else None,
                replay.EPOCH,
                arguments.rows or replay.ROWS,
            )
            status = _told(
                arguments,
                arguments.data.name,
                run.events(found.frames()),
                loaded.config.agent.timezone,
                lambda: run.rows,
            )
            if status != DONE:
                return status
            lost = [f"{found.left_out} damaged rows of the store were left out"] if found.left_out else []
            for note in (*loaded.notes, *run.notes, *lost):
                print(f"note: {note}", file=sys.stderr)
            if not run.rows:
                return _refused(f"{arguments.data}: holds no readings yet")
            return status
    except past.UNREADABLE as error:
        return _refused(unreadable(error, arguments.data))
    except PermissionError as error:
        return _refused(refusal(error, arguments.data))


def _judges_as(text: str, now: "Config") -> bool:
    """Whether a configuration of then judges as `now` does: its folders, its broker and how a line is reached may differ, as
    they do when an agent has moved to another PC.
    """
    from edge_agent import config

    try:
        then = config.unpack(text)
    except ValueError:
        return False
    moved = dataclasses.replace(
        now,
        agent=dataclasses.replace(then.agent, data_dir=now.agent.data_dir),
        machines=then.machines,
    )
    return then.connections.keys() == now.connections.keys() and config.pack(moved) == config.pack(now)


def _wrong_use(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the words of the command."""
    if arguments.learn_until:
        return "--learn-until is not available yet"
    if arguments.rows is not None and arguments.rows < 1:
        return f"--rows {arguments.rows}: at least 1"
    if arguments.sep not in ("tab", "\\t") and len(arguments.sep) != 1:
        return f"--sep {arguments.sep!r}: one character, or tab"
    if arguments.data.suffix in (".parquet", ".pq"):
        return f"{arguments.data}: only CSV and the data folder of an agent can be read; Parquet is not available yet"
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


def _told(
    arguments: argparse.Namespace, case: str, events: "Iterable[Event]", zone: str, rows: "Callable[[], int]"
) -> int:
    """Write and show what was found, event by event. rows: how many were judged, once all is."""
    from edge_agent import replay
    from edge_agent.messages import topics as messages

    alarms, show = replay.Alarms(), _Shown(zone)
    try:
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(arguments.out.open("wb")) if arguments.out else None
            for seq, event in enumerate(events, 1):
                alarms.take(event)
                line = messages.warning(dataclasses.replace(event, epoch=replay.EPOCH, seq=seq))
                if out is not None:
                    out.write(line + b"\n")
                if arguments.json:
                    print(line.decode())
                else:
                    show.event(event)
        if arguments.alarms:
            _write_alarms(arguments.alarms, case, alarms.found)
    except BrokenPipeError:
        raise  # the reader had enough
    except OSError as error:
        return _refused(f"{error.filename or arguments.out or 'the output'}: cannot be written: {error.strerror}")
    if not arguments.json:
        show.end(alarms.found, rows())
    return DONE


def _write_alarms(path: Path, case: str, alarms: "Sequence[Alarm]") -> None:
    import csv

    from edge_agent.messages import topics as messages

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(ALARMS_HEAD)
        for alarm in alarms:
            end = "" if alarm.end is None else messages.to_utc(alarm.end)
            writer.writerow([case, messages.to_utc(alarm.start), end, alarm.tag, alarm.severity, alarm.kind])


class _Shown:
    """Events for people, as they come."""

    def __init__(self, zone: str) -> None:
        from zoneinfo import ZoneInfo

        self._zone, self._here, self._begun = zone, ZoneInfo(zone), False

    def event(self, event: "Event") -> None:
        from datetime import UTC, datetime, timedelta

        if not self._begun:
            print(f"times are in {self._zone}")
            self._begun = True
        when = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=event.ts)).astimezone(self._here)
        place = f"{event.machine}.{event.signal}"
        print(f"{when:%Y-%m-%d %H:%M:%S}  {event.event:12} {event.severity:8} {place:32} {event.message}")

    @staticmethod
    def end(alarms: "Sequence[Alarm]", rows: int) -> None:
        standing = sum(alarm.end is None for alarm in alarms)
        counted = "1 warning" if len(alarms) == 1 else f"{len(alarms)} warnings"
        print(f"{rows} rows: {counted}, {standing} of them standing at the end")
