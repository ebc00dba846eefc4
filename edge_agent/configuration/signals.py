"""Signals: where each one's values come from, what its driver knows of it, and its norm."""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from edge_agent import expression, yamlfile
from edge_agent.configuration import norms
from edge_agent.configuration.lines import Lines
from edge_agent.configuration.nouns import CurrentLoop, SignalConfig
from edge_agent.configuration.report import MISSING, Keys, Part, Report, listed, near_word
from edge_agent.configuration.words import NO_NORM, SignalFile
from edge_agent.contract import Driver, is_attribute
from edge_agent.yamlfile import Table

COMMON = frozenset(SignalFile.model_fields)
"""The keys of any signal, whatever its driver."""
SOURCES = ("address", "formula", "manual", "waveform", "column")
"""A signal has exactly one of these."""
IDLE_BESIDE = {"formula": ("connection", "scale", "offset", "current_loop"), "column": ("connection",)}
"""Keys that would be ignored in silence beside such a source."""


OF_VALUES = ("every", "scale", "offset", "current_loop", "unit", "map", "valid", "norm", "advice")
"""Keys that would be ignored in silence at a text."""


Made = dict[Hashable, Callable[..., SignalConfig]]
"""Faultless signals, whole but for their `connection`, by all else that makes them: fifty machines of a type have the
same hundred signals.
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """The machine around a signal. language: that of advice without one. made: what its sisters have had checked."""

    part: Part
    signals: tuple[str, ...]
    states: tuple[str, ...]
    every_us: int
    language: str
    recordings: bool
    made: Made
    detectors: norms.Detectors


def resolved(report: Report, name: str, layers: norms.Layers, scope: Scope, lines: Lines) -> SignalConfig | None:
    """The signal; None, with its faults noted, when it cannot be made. layers: as written, and laid over its type."""
    part = layers[-1]
    source = _source(report, part, scope)
    connection = _connection(report, part, scope, lines) if source == "address" else None
    # Without a good connection the driver may be clear all the same, and with it what else is wrong here.
    driver = lines.driver_of(connection) if connection else lines.only_driver()
    line = lines.section.part(connection) if connection else None
    same = _all_that_makes_it(name, part, scope, driver, line)
    if made := scope.made.get(same):
        return made(connection=connection)
    faults = len(report.problems)
    about = checked_words(report, part, _driver_keys(source, driver, lines))
    point = _point(report, part, scope, driver, line) if driver and source == "address" else None
    if source is None or about is None:
        return None
    _check_idle(report, part, source, is_attribute(point))
    _check_sense(report, part, about, scope)
    every_us = about.every if about.every is not None else scope.every_us
    made = partial(
        SignalConfig,
        name=name,
        title=about.title or "",
        unit=about.unit or "",
        advice={scope.language: about.advice} if isinstance(about.advice, str) else dict(about.advice or {}),
        scale=about.scale,
        offset=about.offset,
        current_loop=CurrentLoop(about.current_loop.low, about.current_loop.high) if about.current_loop else None,
        valid_low=about.valid.low if about.valid else None,
        valid_high=about.valid.high if about.valid else None,
        every_us=every_us,
        every_written="every" in part.table or (source != "formula" and "every" in scope.part.table),
        point=point,
        formula=about.formula,
        column=(about.column or name) if source == "column" else None,
        map=dict(about.map or {}),
        norm=norms.resolved(
            report,
            tuple(layer.part("norm") for layer in layers),
            about.norm or NO_NORM,
            scope.states,
            every_us,
            scope.detectors,
        ),
    )
    if len(report.problems) == faults:  # others may tell theirs elsewhere: at the machine, at the connection
        scope.made[same] = made
    return made(connection=connection)


def _all_that_makes_it(name: str, part: Part, scope: Scope, driver: Driver | None, line: Part | None) -> Hashable:
    """Equal where faultless signals are the same but for their connection. Where a machine lays nothing over a signal of its
    type, the table is the type's own, which lives as long as the file is worked on.
    """
    machine = (scope.every_us, "every" in scope.part.table, scope.states, scope.signals, scope.language)
    # As text: 1 and true are not the same here.
    inherited = [
        (key, repr(holder.table[key]) if key in holder.table else None)
        for key in (driver.inherited if driver else ())
        for holder in (line, scope.part)
        if holder
    ]
    return id(part.table), name, id(driver), machine, scope.recordings, tuple(inherited)


def checked_words(report: Report, part: Part, driver_keys: Collection[str] | None) -> SignalFile | None:
    """A signal's common keys. driver_keys: the others that may stand here (None: not known, so any may)."""
    strangers = [key for key in part.table if key not in COMMON]
    if driver_keys is not None:
        for key in strangers:
            if key not in driver_keys:
                report.unknown_key(part.key(key), {*COMMON, *driver_keys})
    return report.checked(SignalFile, part.without(strangers))


def check_alone(report: Report, part: Part, driver_keys: Collection[str] | None, detectors: norms.Detectors) -> None:
    """Check a signal of a type where it stands: what is wrong with it whatever a machine lays over it."""
    about = checked_words(report, part, driver_keys)
    if about is not None and about.formula is not None:
        check_expression(report, part.value("formula"), about.formula, None)
    if about is not None and about.norm is not None:
        norms.check_alone(report, part.part("norm"), about.norm, detectors)


def check_expression(report: Report, spot: Any, text: str, names: Collection[str] | None) -> None:
    """Note what makes a formula or the condition of a state unusable. names: None when they are not known yet."""
    try:
        expression.parse(text, None if names is None else tuple(names))
    except expression.ExpressionError as error:
        report.add(spot, f"{error.text} (at its character {error.position + 1})", yamlfile.shown(text))


def _source(report: Report, part: Part, scope: Scope) -> str | None:
    """Where the values come from, one of SOURCES; None (told) when that is not clear."""
    there = [key for key in SOURCES if part.table.get(key) is not None]
    exactly = f"exactly one of {', '.join(SOURCES)}"
    if len(there) > 1:
        second = max(there, key=lambda key: part.table.key_at[key][1:])
        report.add(part.key(second), "there are two sources of values", listed(there), exactly)
        return None
    if there == ["column"] and not scope.recordings:
        report.add(part.key("column"), "stands only in a configuration for recordings", "column", "address or formula")
        return None
    if not there and scope.recordings:
        return "column"
    if not there:
        for key in part.table:
            if key not in COMMON and near_word(key, SOURCES):
                report.unknown_key(part.key(key), SOURCES)
        report.add(part.missing("address"), MISSING, None, exactly)
        return None
    return there[0]


def _driver_keys(source: str | None, driver: Driver | None, lines: Lines) -> Collection[str] | None:
    if source == "address":
        return driver.Address.model_fields if driver else lines.address_keys()
    return () if source is not None else None


def _connection(report: Report, part: Part, scope: Scope, lines: Lines) -> str | None:
    """The name of the signal's connection, its own or the machine's; None (told) when there is none."""
    for holder in (part, scope.part):
        name = holder.table.get("connection")
        if isinstance(name, str) and name in lines.names:
            lines.used.add(name)
            return name
        if name is not None:
            report.unknown_word(holder.value("connection"), "there is no such connection", name, lines.names)
            return None
    report.add(part.missing("connection"), MISSING, None, "a connection, here or at the machine")
    return None


def _point(report: Report, part: Part, scope: Scope, driver: Driver, line: Part | None) -> BaseModel | None:
    """The signal as its driver sees it: its own keys over those that it inherits from machine and connection."""
    table = Table(part.table.at)
    origins: dict[Any, Keys] = {}
    known = driver.Address.model_fields
    for key in driver.inherited:
        for holder in (line, scope.part):
            if holder is not None and key in known and key in holder.table:
                table.take(holder.table, key)
                origins[key] = (*holder.keys, key)
    for key in part.table:
        if key == "address" or (key in known and key not in COMMON):
            table.take(part.table, key)
            origins.pop(key, None)
    whole = part.table.value_at["address"]
    return report.checked(driver.Address, Part(table, part.keys, part.at, origins, whole))


def _check_idle(report: Report, part: Part, source: str, attribute: bool) -> None:
    for key in IDLE_BESIDE.get(source, ()):
        if key in part.table:
            report.add(part.key(key), f"has no meaning beside {source}", key, "only beside address")
    for key in OF_VALUES if attribute else ():
        if key in part.table:
            report.add(part.key(key), "has no meaning for a text, which is shown and never judged", key, "nothing")


def _check_sense(report: Report, part: Part, about: SignalFile, scope: Scope) -> None:
    """What the values mean together."""
    if about.formula is not None:
        check_expression(report, part.value("formula"), about.formula, scope.signals)
    valid, loop = about.valid, about.current_loop
    if valid and valid.low is not None and valid.high is not None and valid.low >= valid.high:
        report.add(part.value("valid", "low"), "low is not below high", f"{valid.low:g}", f"less than {valid.high:g}")
    if loop and loop.low == loop.high:
        text = "4 and 20 mA cannot mean the same value"
        report.add(part.value("current_loop", "high"), text, f"{loop.high:g}", f"another value than {loop.low:g}")
