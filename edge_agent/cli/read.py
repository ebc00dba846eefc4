"""`edge-agent read`: every signal once, with its quality, its norm and the verdict. `check --connect` asks the same."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Sequence

    from edge_agent.config import Config

DONE, NOT_SO, WRONG_USE, UNREACHABLE = 0, 1, 2, 3
UNREACHED = ("disconnected", "timeout")
"""Qualities of a signal whose device was not reached at all."""
TEXT_MAX = 100
"""Characters of a device's text in the table; `--json` has all of it."""
JUDGED = ("good", "clock")
EXACT = 2**53
FRESH = (*JUDGED, "uncertain")
COLOURS = {"normal": "32", "warning": "33", "alarm": "31;1", "bad": "35", "none": "0"}


@dataclass(frozen=True, slots=True)
class Row:
    """One signal as it was read. verdict: normal, warning, alarm, bad, or none (no norm)."""

    machine: str
    signal: str
    value: float | None
    unit: str
    quality: str
    ts: int
    norm: dict[str, dict[str, float]]
    verdict: str
    reason: str
    """Why it is not good, in words; '' when it is, or nothing more is known."""
    name: str
    """What the value is called, where the configuration names values (`map`)."""
    text: str | None = None
    """Of an attribute, in place of a value."""


def add_read(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "read",
        help="read every signal once and show value, quality, norm and verdict",
        description="Read once. Exit status 1 when a value is bad or outside its norm, 3 when nothing was reached.",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("signals", metavar="SIGNAL", nargs="*", help="machine, machine.signal or signal; default: all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=read)


def read(arguments: argparse.Namespace) -> int:
    from edge_agent import config

    try:
        loaded = config.load(arguments.config)
    except config.ConfigErrors as error:
        print(error, file=sys.stderr)
        return WRONG_USE
    if loaded.config.for_recordings:
        print(f"edge-agent: {arguments.config} has no connections: it is for recordings (replay)", file=sys.stderr)
        return WRONG_USE
    unknown = [name for name in arguments.signals if not any(_wanted([name], m, s) for m, s in _all(loaded.config))]
    if unknown:
        print(f"edge-agent: no such signal: {', '.join(unknown)}", file=sys.stderr)
        return WRONG_USE
    chosen = [pair for pair in _all(loaded.config) if not arguments.signals or _wanted(arguments.signals, *pair)]
    try:
        rows, faults = read_all(loaded.config, chosen)
    except config.SecretError as error:
        places = config.at_its_place(error, loaded)
        print("\n".join(map(str, places)) or f"edge-agent: {error}", file=sys.stderr)
        return WRONG_USE
    rows = [row for row in rows if not arguments.signals or _wanted(arguments.signals, row.machine, row.signal)]
    show(rows, faults, as_json=arguments.json)
    if rows and all(row.quality in UNREACHED for row in rows):
        return UNREACHABLE
    return DONE if all(row.verdict in ("normal", "none") for row in rows) else NOT_SO


def _all(config: "Config") -> list[tuple[str, str]]:
    machines = config.machines.values()
    return [(machine.name, signal) for machine in machines for signal in (*machine.signals, *machine.attributes)]


def _wanted(names: "Sequence[str]", machine: str, signal: str) -> bool:
    return any(name in (machine, signal, f"{machine}.{signal}") for name in names)


def _needed(config: "Config", chosen: "Sequence[tuple[str, str]]") -> set[str]:
    """The points (`machine.signal`) to read for these signals: their own, what formulas use, what tells the state."""
    from edge_agent import expression

    found: set[str] = set()
    waiting = list(chosen)
    for name in {machine for machine, _ in chosen}:
        machine = config.machines[name]
        texts = [*machine.states.values(), *machine.until.values()]
        waiting += [(name, used) for text in texts for used in expression.parse(text, machine.signals).names]
    while waiting:
        machine_name, signal = waiting.pop()
        if f"{machine_name}.{signal}" not in found:
            found.add(f"{machine_name}.{signal}")
            waiting += _beside(config, machine_name, signal)
            signals = config.machines[machine_name].signals
            formula = signals[signal].formula if signal in signals else None
            waiting += [(machine_name, used) for used in (expression.parse(formula, signals).names if formula else ())]
    return found


def _beside(config: "Config", machine: str, text: str) -> "Sequence[tuple[str, str]]":
    """A line is opened for its signals: a text brings one of them along. Nothing for what is no text."""
    about = config.machines[machine].attributes.get(text)
    if about is None:
        return ()
    signals = ((name, of) for name, its in config.machines.items() for of in its.signals.values())
    return [(name, of.name) for name, of in signals if of.connection == about.connection and of.point is not None][:1]


def read_all(config: "Config", chosen: "Sequence[tuple[str, str]] | None" = None) -> tuple[list[Row], dict[str, str]]:
    """Each signal once, judged without delays; and by connection why it could not be reached. Raises SecretError.

    chosen: (machine, signal); only the lines that these need are opened.
    """
    import asyncio

    from edge_agent import plugins, service
    from edge_agent.clock import AgentTime, SystemClock
    from edge_agent.plant import compile_plant
    from edge_agent.poller import lines, read_once

    clock = SystemClock()
    service.configure_logging("error", clock)  # what could not be reached stands in the answer
    plant = compile_plant(config, plugins.detectors(), own=False)
    found = lines(config, plant, plugins.installed(), None if chosen is None else _needed(config, chosen))
    once = asyncio.run(read_once(found, clock, AgentTime(clock, clock.wall_us())))
    return _rows(config, plant, once), once.faults


def _rows(config: "Config", plant: Any, once: Any) -> list[Row]:
    from edge_agent import judge

    state = judge.start(plant)
    state, _ = judge.step(plant, state, once.frames, "read")
    # A source's own stamp may be days older than the look at it.
    ts = {frame.machine: frame.ts[-1:] if frame.at is None else frame.at[-1] for frame in once.frames}
    rows = []
    for machine in plant.machines:
        values, quality = judge.readings(state, machine)
        mode = int(state.mode[machine.index])
        for offset, signal in enumerate(machine.signals):
            value = float(values[offset])
            word = judge.word_of(int(quality[offset]))
            band = judge.bands(machine, offset, mode)
            its = config.machines[machine.name].signals[signal.name]
            judged = word in JUDGED or (word == "uncertain" and its.norm.use_uncertain)
            point = f"{machine.name}.{signal.name}"
            reason = once.reasons.get(point) or ("" if word in FRESH else once.faults.get(its.connection or "", ""))
            stamps = ts.get(machine.name, ())
            rows.append(
                Row(
                    machine.name,
                    signal.name,
                    None if value != value else value,  # noqa: PLR0124 - NaN
                    signal.unit,
                    word,
                    int(stamps[min(offset, len(stamps) - 1)]) if len(stamps) else 0,
                    band,
                    verdict(value, band) if judged else "bad",
                    reason,
                    its.map.get(int(value), "") if its.map and value == value and value == int(value) else "",  # noqa: PLR0124
                )
            )
        for name in config.machines[machine.name].attributes:
            its_line = config.machines[machine.name].attributes[name].connection or ""
            rows.append(_text_row(machine.name, name, its_line, once))
    return rows


def _text_row(machine: str, name: str, line: str, once: Any) -> Row:
    """A device's text; where its line is lost, that is why there is none."""
    from edge_agent import judge

    text, fault = once.attributes.get(f"{machine}.{name}"), once.faults.get(line, "")
    quality = "good" if text is not None else judge.word_of(once.lost[line]) if line in once.lost else "missing"
    reason = "" if text is not None else fault or "the device gave no text"
    return Row(machine, name, None, "", quality, 0, {}, "none" if text is not None else "bad", reason, "", text)


def verdict(value: float, band: dict[str, dict[str, float]]) -> str:
    """Where this value lies, delays left aside: contract §6, the band is closed."""
    for severity in ("alarm", "warning"):
        sides = band.get(severity, {})
        if value > sides.get("high", float("inf")) or value < sides.get("low", float("-inf")):
            return severity
    return "normal" if band else "none"


def show(rows: "Sequence[Row]", faults: dict[str, str], *, as_json: bool) -> None:
    """Rows for people or for a script; faults of connections on stderr."""
    from edge_agent.config import printable
    from edge_agent.messages import topics as messages

    for connection, fault in faults.items():
        print(f"{connection}: {printable(fault)}", file=sys.stderr)
    if as_json:
        import json

        for row in rows:
            plain = {
                name: getattr(row, name)
                for name in ("machine", "signal", "value", "unit", "quality", "norm", "verdict")
            }
            more = {key: value for key, value in (("name", row.name), ("reason", row.reason)) if value}
            more |= {"value": row.text} if row.text is not None else {}
            print(json.dumps({**plain, **more, "ts": messages.to_utc(row.ts) if row.ts else None}, ensure_ascii=False))
        return
    colour = sys.stdout.isatty()
    cells = [
        (
            f"{row.machine}.{row.signal}",
            _shown(row),
            row.quality,
            _band(row.norm),
            "text" if row.text is not None else row.verdict if row.verdict != "none" else "no norm",
            row.verdict,
            f": {_why(row, faults)}" if row.reason else "",
        )
        for row in rows
    ]
    head = ("signal", "value", "quality", "norm", "verdict")
    widths = [max(len(head[i]), *(len(cell[i]) for cell in cells)) if cells else len(head[i]) for i in range(5)]
    print("  ".join(text.ljust(width) for text, width in zip(head, widths, strict=True)).rstrip())
    for cell in cells:
        line = "  ".join(text.ljust(width) for text, width in zip(cell[:4], widths[:4], strict=True))
        last = f"\x1b[{COLOURS[cell[5]]}m{cell[4]}\x1b[0m" if colour else cell[4]
        print(f"{line}  {last}{cell[6]}")


def _why(row: Row, faults: dict[str, str]) -> str:
    """Why it is bad; what is told of its connection already is not told again for each signal."""
    from edge_agent.config import printable

    line = next((connection for connection, fault in faults.items() if fault == row.reason), "")
    return f"see {line} above" if line else printable(row.reason)


def _shown(row: Row) -> str:
    """A value with its unit, and what it is called where values have names; whole numbers in full."""
    from edge_agent import texts

    if row.text is not None:
        return f'"{_on_one_line(row.text)}"'
    if row.value is None:
        return "–"
    whole = row.value == int(row.value) and abs(row.value) <= EXACT
    text = f"{int(row.value)} {row.unit}".strip() if whole else texts.quantity(row.value, row.unit)
    return f"{text} ({row.name})" if row.name else text


def _on_one_line(text: str) -> str:
    """A device's text is never trusted: no line end and no escape sequence of it reaches the terminal."""
    from edge_agent.config import printable

    return printable(text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…")


def _band(norm: dict[str, dict[str, float]]) -> str:
    """`3 … 6 (alarm 2 … 7)`; an open side is left empty."""
    from edge_agent import texts

    def of(sides: dict[str, float]) -> str:
        low, high = (texts.number(sides[side]) if side in sides else "" for side in ("low", "high"))
        return f"{low} … {high}".strip()

    warning, alarm = norm.get("warning"), norm.get("alarm")
    if warning and alarm:
        return f"{of(warning)} (alarm {of(alarm)})"
    return of(warning) if warning else f"alarm {of(alarm)}" if alarm else "–"
