"""Types and machines: a type laid under its machines, their states and formulas, and all their signals."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge_agent import expression, yamlfile
from edge_agent.configuration import signals, words
from edge_agent.configuration.lines import Lines
from edge_agent.configuration.norms import Detectors
from edge_agent.configuration.nouns import MachineConfig, SignalConfig
from edge_agent.configuration.report import MISSING, Model, Part, Report, Spot
from edge_agent.configuration.signals import Made, Scope
from edge_agent.contract import is_attribute
from edge_agent.yamlfile import Table

RECORDED = frozenset({"address", "manual", "waveform"})
"""Sources that need a line or a person: a configuration with one of them is not for recordings."""


@dataclass(frozen=True, slots=True)
class MachinePart:
    """A machine in the file. part: laid over its type; own: as it is written; typed: False when its type is unknown."""

    part: Part
    own: Part
    typed: bool


def check_types(report: Report, section: Part | None, lines: Lines, detectors: Detectors) -> None:
    """Check types where they stand: their faults are told once, and also when no machine uses them."""
    for name in section.table if section else ():
        part = report.named(name, section, words.NAME, "type") if section else None
        if part is not None:
            _machine_words(report, words.TypeFile, part, lines.inherited() if lines.names else None)
            _states(report, part, None)
            for signal in _signals(report, part).values():
                signals.check_alone(report, signal, lines.address_keys() if lines.names else None, detectors)


def merged(report: Report, section: Part, types: Part | None) -> dict[str, MachinePart]:
    """Every well-named machine, laid over its type."""
    if not section.table:
        report.add(section.spot, "there is no machine", "nothing", "one machine or more")
    found: dict[str, MachinePart] = {}
    for name in section.table:
        part = report.named(name, section, words.NAME, "machine")
        if part is None:
            continue
        if name in words.RESERVED_MACHINES:
            report.add(part.spot, "this name is reserved", yamlfile.shown(name), "another name")
        base = _type(report, part, types)
        whole = Part(yamlfile.merged(base, part.table), part.keys, part.at) if base else part
        found[name] = MachinePart(whole, part, typed=base is not None or part.table.get("type") is None)
    return found


def are_for_recordings(machines: Mapping[str, MachinePart]) -> bool:
    """Whether there are signals, and none of them needs a line or a person."""
    holders = [machine.part.table.get("signals") for machine in machines.values()]
    found = [signal for holder in holders if isinstance(holder, Table) for signal in holder.values()]
    return bool(found) and not any(isinstance(signal, Table) and RECORDED & set(signal) for signal in found)


def resolved(
    report: Report,
    name: str,
    machine: MachinePart,
    lines: Lines,
    language: str,
    made: Made,
    detectors: Detectors,
    *,
    recordings: bool,
) -> MachineConfig | None:
    """The machine with all its signals; None, with its faults noted, when it cannot be made. made: see Scope."""
    part = machine.part
    parts = _signals(report, part)
    if part.table.get("signals") is None and machine.typed:
        report.add(part.missing("signals"), MISSING, None, "one signal or more")
    elif part.table.get("signals") == {}:
        report.add(part.value("signals"), "there is no signal", "nothing", "one signal or more")
    about = _machine_words(report, words.MachineFile, part, _inherited(part, parts, lines))
    states = _states(report, part, parts)
    scope = Scope(part, tuple(parts), states, about.every if about else 0, language, recordings, made, detectors)
    own = machine.own.part("signals")
    found = {key: signals.resolved(report, key, (own.part(key), one), scope, lines) for key, one in parts.items()}
    _refuse_circles(report, parts)
    known = {key: signal for key, signal in found.items() if signal is not None}
    attributes = {key: signal for key, signal in known.items() if is_attribute(signal.point)}
    _refuse_texts(report, part, parts, attributes)
    if about is None:
        return None
    known = {key: signal for key, signal in known.items() if key not in attributes}
    return MachineConfig(
        name=name,
        title=about.title or "",
        area=about.area or "",
        states={key: each.when for key, each in about.states.items()},
        until={key: each.until for key, each in about.states.items() if each.until is not None},
        settle_us=about.settle,
        every_us=about.every,
        signals=with_periods(known, parts),
        attributes=attributes,
    )


def _refuse_texts(report: Report, part: Part, parts: Mapping[str, Part], attributes: Collection[str]) -> None:
    """Texts have no value: a machine needs something else too, and nothing is computed from them."""
    if attributes and len(attributes) == len(parts):
        report.add(part.value("signals"), "all of them are texts", f"{len(parts)}", "a signal with a value")
    states = part.part("states")
    formulas = [(one.value("formula"), one.table.get("formula")) for one in parts.values()]
    for spot, formula in [*formulas, *(each for name in states.table for each in _conditions(states, name))]:
        for name in _names_in(formula, parts):
            if name in attributes:
                report.add(
                    spot, f"{name} is a text, which has no value", yamlfile.shown(formula), "signals with values"
                )


def with_periods(found: Mapping[str, SignalConfig], names: Collection[str]) -> dict[str, SignalConfig]:
    """A formula without a period of its own comes as seldom as the slowest of its inputs."""
    uses = {key: _names_in(signal.formula, names) for key, signal in found.items() if signal.formula is not None}

    def period(key: str, seen: frozenset[str]) -> int:
        signal = found[key]
        inputs = [used for used in uses.get(key, ()) if used in found and used not in seen]
        if signal.every_written or not inputs:
            return signal.every_us
        return max(period(used, seen | {key}) for used in inputs)

    return {
        key: signal if signal.formula is None else replace(signal, every_us=period(key, frozenset()))
        for key, signal in found.items()
    }


def _type(report: Report, part: Part, types: Part | None) -> Table | None:
    """The table of the machine's type; None when it has none, or an unknown one (told)."""
    kind = part.table.get("type")
    known = types.table if types else {}
    if kind is not None and (not isinstance(kind, str) or kind not in known):
        report.unknown_word(part.value("type"), "there is no such type", kind, known)
        return None
    base = known[kind] if kind is not None else None
    if kind is not None and base is None:
        return Table(types.table.value_at[kind]) if types else None  # an empty type
    return base if isinstance(base, Table) else None


def _signals(report: Report, part: Part) -> dict[str, Part]:
    """The well-named signals of a machine or type."""
    written = part.table.get("signals")
    if written is not None and not isinstance(written, Table):
        report.add(part.value("signals"), "is no mapping", yamlfile.shown(written), "signals by name")
        return {}
    holder = part.part("signals")
    found = {name: report.named(name, holder, words.WORD, "signal") for name in holder.table}
    return {name: signal for name, signal in found.items() if signal is not None}


def _machine_words(report: Report, model: type[Model], part: Part, inherited: frozenset[str] | None) -> Model | None:
    """A machine's or type's own keys, without signals. inherited: what its drivers take from it (None: not known)."""
    strangers = [key for key in part.table if key not in model.model_fields]
    if inherited is not None:
        for key in strangers:
            if key not in inherited:
                report.unknown_key(part.key(key), {*model.model_fields, *inherited})
    return report.checked(model, part.without({"signals", *strangers}))


def _inherited(part: Part, parts: Mapping[str, Part], lines: Lines) -> frozenset[str] | None:
    """What the drivers of this machine's connections take from it; None when one of them is not known."""
    default: Any = part.table.get("connection")
    names = [one.table.get("connection", default) for one in parts.values()] + [default]
    if not all(name is None or isinstance(name, str) for name in names):
        return None
    return lines.inherited({name for name in names if name is not None})


def _states(report: Report, part: Part, parts: Mapping[str, Part] | None) -> tuple[str, ...]:
    """The machine's states. Conditions that are no texts have been told already; parts: None of a type alone."""
    holder = part.part("states")
    for name in holder.table:
        spot = holder.key(name)
        if name == "unknown":
            report.add(spot, "this name is the agent's own, for when no state is true", "unknown", "another name")
        elif report.named(name, _as_names(holder), words.WORD, "state"):
            for at, text in _conditions(holder, name):
                signals.check_expression(report, at, text, parts)
    return tuple(name for name in holder.table if isinstance(name, str))


def _conditions(states: Part, name: str) -> list[tuple[Spot | None, str]]:
    """The conditions of a state that are texts: the one that begins it and, where there is one, the one that ends it."""
    written = states.table[name]
    if isinstance(written, Table):
        part = states.part(name)
        return [(part.value(key), part.table[key]) for key in ("when", "until") if isinstance(part.table.get(key), str)]
    return [(states.value(name), written)] if isinstance(written, str) else []


def _as_names(holder: Part) -> Part:
    """The same keys with nothing under them, to check the names alone."""
    table = Table(holder.table.at)
    for key in holder.table:
        table.put(key, None, holder.table.key_at[key], holder.table.value_at[key])
    return Part(table, holder.keys, holder.at)


def _refuse_circles(report: Report, parts: Mapping[str, Part]) -> None:
    """Formulas that use each other in a circle: told at each member."""
    uses = {name: _names_in(part.table.get("formula"), parts) for name, part in parts.items()}
    for name, part in parts.items():
        if _reaches(name, name, uses):
            found = yamlfile.shown(part.table["formula"])
            report.add(
                part.value("formula"), "formulas use each other in a circle", found, "measured signals at its end"
            )


def _names_in(formula: Any, names: Collection[str]) -> tuple[str, ...]:
    try:
        return expression.parse(formula, tuple(names)).names if isinstance(formula, str) else ()
    except expression.ExpressionError:
        return ()


def _reaches(start: str, goal: str, uses: Mapping[str, Sequence[str]]) -> bool:
    seen: set[str] = set()
    waiting = list(uses[start])
    while waiting:
        name = waiting.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            waiting += uses[name]
    return False
