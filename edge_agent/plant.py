"""The configuration compiled to columns: every signal of the plant is one column of the arrays that the judge works on.

Rule 1: columns stand machine by machine in the order of the configuration; a machine is an index range.
Rule 2: norms are compiled for each operating state by the detectors themselves, so that a change of state copies columns.
Rule 3: the agent's own machine comes last: a column for each line and each part of one, whose value says if it is lost;
after them one for each line that rests on certificates, and those of the host: its disk and its clock.
"""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from edge_agent import expression, texts
from edge_agent.config import BandConfig, Config, MachineConfig, NormConfig, SignalConfig, limits_of
from edge_agent.contract import Bools, Column, Detector, Floats, Ints, is_certified, part_of
from edge_agent.records import Kind, Layout

STALE_MIN_US = 10_000_000
STALE_PERIODS = 3
"""`stale` defaults to max(3 × every, 10 s): contract §6."""
OWN = "agent"
"""The machine of the agent's own warnings (contract §6); nobody else may have the name."""
OWN_EVERY_US, OWN_STALE_US = 10_000_000, 3_600_000_000
HEALTH_US = 10_000_000
DISK, CLOCK = "disk", "clock"
HOST = {DISK: (texts.DISK, texts.MAKE_ROOM), CLOCK: (texts.CLOCK, texts.SET_THE_CLOCK)}
"""What the agent needs of its host, by the name of its column: how it is called, and what a person can do about it."""
CERTIFICATE = "certificate"
"""The column of a line's certificates is called `<connection>.certificate`."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One column, as people and messages need it. bands: for the base norm and then each operating state."""

    name: str
    title: str
    unit: str
    advice: dict[str, str]
    every_us: int
    column: str | None
    names: dict[int, str]
    """What values are called (`map`)."""
    behind: int
    """Of a line: how many signals are read over it or computed from such."""
    bands: tuple[dict[str, dict[str, float]], ...]
    stale_us: int
    certificate: bool = False
    """In the agent's own machine: it tells of a line's certificates, and not of a line or a part of one."""
    host: bool = False
    """In the agent's own machine: it tells of the disk or the clock."""

    @property
    def in_words(self) -> bool:
        """It tells in words of its own what there is to do: nothing lies behind it, and it acts at once."""
        return self.certificate or self.host


Condition = tuple[tuple[int, ...], expression.Expression]
"""Offsets of its inputs in the machine, and the expression."""


@dataclass(frozen=True, slots=True)
class Machine:
    """An index range of columns. norms, bands: index 0 is the base norm, 1 + i that of states[i]; in norms what each of
    the plant's detectors made of it.
    """

    index: int
    name: str
    title: str
    area: str
    start: int
    stop: int
    every_us: int
    signals: tuple[Signal, ...]
    formulas: tuple[tuple[int, tuple[int, ...], expression.Expression], ...]
    """(offset in the machine, offsets of its inputs, expression), each after the formulas that it uses."""
    states: tuple[str, ...]
    conditions: tuple[Condition, ...]
    until: tuple[Condition | None, ...]
    """What ends each of the states; None: it lasts as long as its condition is true."""
    modes: slice
    """Of the plant's arrays by operating state: `unknown` comes first, then `states`; empty without states."""
    settle_us: int
    norms: tuple[tuple[Any, ...], ...]
    own: bool = False
    """The agent's own: judged and kept like any other, but no machine of the plant."""

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def layout(self) -> Layout:
        return Layout(self.name, tuple(signal.name for signal in self.signals), self.states)


@dataclass(frozen=True, slots=True)
class Plant:
    """Everything that is judged. Column arrays are (columns,).

    valid_low, valid_high: float64, ∓inf where open. use_uncertain: bool. required: bool, acknowledge: required.
    formula: bool, computed and not measured. stale_us: int64, the time without a good reading after which it is stale.
    detectors: the installed ones that some norm asks for, in the order of their names.
    stacks: how machines lie side by side, worked out once for each set (a cache of the judge).
    """

    machines: tuple[Machine, ...]
    by_name: dict[str, Machine]
    columns: int
    valid_low: Floats
    valid_high: Floats
    use_uncertain: Bools
    required: Bools
    formula: Bools
    stale_us: Ints
    language: str
    timezone: str
    """For people."""
    detectors: tuple[Detector, ...]
    starts: tuple[int, ...]
    """The first column of each machine."""
    modes: int
    """Operating states of all machines, `unknown` counted for each that has states."""
    stacks: dict[tuple[int, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def own(self) -> Machine | None:
        """The machine of lines; None where there are none."""
        return self.machines[-1] if self.machines and self.machines[-1].own else None

    @property
    def signals(self) -> int:
        """The columns that are signals of the plant."""
        return self.own.start if self.own else self.columns

    def machine_of(self, column: int) -> Machine:
        return self.machines[bisect.bisect_right(self.starts, column) - 1]

    def signal_of(self, column: int) -> tuple[Machine, Signal]:
        machine = self.machine_of(column)
        return machine, machine.signals[column - machine.start]


def compile_plant(config: Config, detectors: Mapping[str, Detector], own: bool = True) -> Plant:
    """Turn the words of the file into columns. The configuration is valid already, so nothing is refused here.

    detectors: by the key of their settings. own: with the agent's own machine; without it where no line is polled for long.
    Without a detector of `health` nobody would tell of a lost line, so that there is none either and each signal behind one
    raises its own `stale`.
    """
    lines = _lines(config) if own and any(Kind.HEALTH in each.kinds for each in detectors.values()) else {}
    about = MachineConfig(
        OWN, "edge-agent", "", {}, 0, OWN_EVERY_US, {name: signal for name, (signal, _) in lines.items()}
    )
    configured = [*config.machines.values(), *([about] if lines else [])]
    asked = _asked(config)
    used = {name: detector for name, detector in detectors.items() if detector.Settings is None or name in asked}
    machines: list[Machine] = []
    start = 0
    for index, machine in enumerate(configured):
        modes = machines[-1].modes.stop if machines else 0
        machines.append(_machine(index, machine, start, modes, lines if machine is about else {}, used))
        start = machines[-1].stop
    signals = [signal for machine in configured for signal in machine.signals.values()]
    return Plant(
        machines=tuple(machines),
        by_name={machine.name: machine for machine in machines},
        columns=start,
        valid_low=_floats((signal.valid_low for signal in signals), -np.inf),
        valid_high=_floats((signal.valid_high for signal in signals), np.inf),
        use_uncertain=np.array([signal.norm.use_uncertain for signal in signals], dtype=np.bool_),
        required=np.array([signal.norm.acknowledge == "required" for signal in signals], dtype=np.bool_),
        formula=np.array([signal.formula is not None for signal in signals], dtype=np.bool_),
        stale_us=np.array([stale_us(signal) for signal in signals], dtype=np.int64),
        language=config.agent.language,
        timezone=config.agent.timezone,
        detectors=tuple(used.values()),
        starts=tuple(machine.start for machine in machines),
        modes=machines[-1].modes.stop if machines else 0,
    )


def without_own(plant: Plant) -> Plant:
    """The same plant as it was before the agent had a machine of its own (0.1.0)."""
    return _up_to(plant.signals, plant, tuple(machine for machine in plant.machines if not machine.own))


def _up_to(end: int, plant: Plant, machines: tuple[Machine, ...]) -> Plant:
    """The plant with these of its machines, whose columns end here."""
    return replace(
        plant,
        machines=machines,
        by_name={machine.name: machine for machine in machines},
        columns=end,
        valid_low=plant.valid_low[:end],
        valid_high=plant.valid_high[:end],
        use_uncertain=plant.use_uncertain[:end],
        required=plant.required[:end],
        formula=plant.formula[:end],
        stale_us=plant.stale_us[:end],
        starts=plant.starts[: len(machines)],
        stacks={},
    )


def without_host(plant: Plant) -> Plant:
    """The same plant as it was before the agent told of its disk and its clock; itself when it does not."""
    return _without(plant, lambda signal: signal.host)


def without_certificates(plant: Plant) -> Plant:
    """The same plant as it was before the agent told of certificates; itself when there are none."""
    return _without(plant, lambda signal: signal.in_words)


def _without(plant: Plant, later: Callable[[Signal], bool]) -> Plant:
    """Without the last columns of the agent's own machine, which a later release has added."""
    own = plant.own
    if own is None or not later(own.signals[-1]):
        return plant
    kept = [signal for signal in own.signals if not later(signal)]
    norms = tuple(tuple(_first(each, len(kept)) for each in its) for its in own.norms)
    before = replace(own, stop=own.start + len(kept), signals=tuple(kept), norms=norms)
    return _up_to(before.stop, plant, (*plant.machines[:-1], before))


def _first(norms: Any, count: int) -> Any:
    """A detector's norms of the first columns."""
    return replace(norms, **{part.name: getattr(norms, part.name)[..., :count] for part in fields(norms)})


def _asked(config: Config) -> set[str]:
    """The detectors for which some norm has settings, by their keys."""
    return {
        name
        for machine in config.machines.values()
        for signal in machine.signals.values()
        for norm in (signal.norm, *signal.norm.by_state.values())
        for name in norm.rules
    }


def stale_us(signal: SignalConfig) -> int:
    """The time without a good reading after which a signal is stale."""
    return (
        signal.norm.stale_us if signal.norm.stale_us is not None else max(STALE_PERIODS * signal.every_us, STALE_MIN_US)
    )


def parts_of(config: Config) -> dict[str, dict[str, str]]:
    """By connection and point (`machine.signal`) the part that it lies behind; '' everywhere when there is only one."""
    found: dict[str, dict[str, str]] = {}
    for machine in config.machines.values():
        for signal in machine.signals.values():
            if signal.connection is not None and signal.point is not None:
                part = part_of(config.connections[signal.connection].settings, signal.point)
                found.setdefault(signal.connection, {})[f"{machine.name}.{signal.name}"] = part
    return {name: parts if len(set(parts.values())) > 1 else dict.fromkeys(parts, "") for name, parts in found.items()}


Lines = dict[str, tuple[SignalConfig, list[SignalConfig]]]
"""By name: the signal that tells whether a line, or a part of one, is lost, and those that lie behind it; none lie behind
one that tells of certificates or of the host."""


def _lines(config: Config) -> Lines:
    of = parts_of(config)
    inputs = {name: _inputs(machine) for name, machine in config.machines.items()}
    found: Lines = {}
    for name in config.connections:
        parts = of.get(name)
        if not parts:
            continue
        title = f"{texts.CONNECTION[config.agent.language]} {name}"
        found[name] = _line(name, title, _behind(config, inputs, parts), texts.CHECK_THE_LINE)
        for part in sorted(set(parts.values()) - {""}):
            its = [point for point, where in parts.items() if where == part]
            title = f"{name} {part.replace('_', ' ')}"
            found[f"{name}.{part}"] = _line(f"{name}.{part}", title, _behind(config, inputs, its), texts.CHECK_THE_LINE)
    for name in config.connections:
        if name in found and is_certified(config.connections[name].settings):
            title = texts.CERTIFICATES[config.agent.language].format(name)
            found[certificate_of(name)] = _line(certificate_of(name), title, [], texts.RENEW)
    if found:
        for part, (title_of, advice) in HOST.items():
            name = host_name(part, config.connections)
            found[name] = _line(name, title_of[config.agent.language], [], advice)
    return found


def host_name(part: str, connections: Iterable[str]) -> str:
    """The name of its column in the agent's own machine. part: one of HOST."""
    return f"{OWN}.{part}" if part in connections else part


def certificate_of(connection: str) -> str:
    """The name of its column in the agent's own machine."""
    return f"{connection}.{CERTIFICATE}"


def _inputs(machine: MachineConfig) -> dict[str, tuple[str, ...]]:
    """The names that each formula of a machine uses."""
    return {
        name: expression.parse(signal.formula, machine.signals).names
        for name, signal in machine.signals.items()
        if signal.formula is not None
    }


def _behind(
    config: Config, inputs: Mapping[str, Mapping[str, tuple[str, ...]]], points: Iterable[str]
) -> list[SignalConfig]:
    """These points' signals and the formulas that need one of them, directly or through others."""
    silent: dict[str, set[str]] = {}
    for point in points:
        machine, _, name = point.partition(".")
        silent.setdefault(machine, set()).add(name)
    for machine, names in silent.items():
        while more := {
            name for name, used in inputs[machine].items() if name not in names and not names.isdisjoint(used)
        }:
            names.update(more)
    return [config.machines[machine].signals[name] for machine, names in silent.items() for name in sorted(names)]


def _line(
    name: str, title: str, behind: list[SignalConfig], advice: dict[str, str]
) -> tuple[SignalConfig, list[SignalConfig]]:
    never = BandConfig(None, None, 0.0, 0, 0)
    norm = NormConfig(never, never, OWN_STALE_US, False, "alarm", "auto", {}, {})
    return (
        SignalConfig(
            name,
            title,
            "",
            advice,
            1.0,
            0.0,
            None,
            None,
            None,
            OWN_EVERY_US,
            True,
            None,
            None,
            None,
            None,
            {},
            norm,
        ),
        behind,
    )


def health_us(behind: Sequence[SignalConfig]) -> int:
    """How long a line must be lost: no longer than the most impatient of its signals may be silent; 0 where none lies
    behind (certificates, the host).
    """
    if not behind:
        return 0
    return min([HEALTH_US, *(stale_us(signal) for signal in behind)])


def _machine(
    index: int, machine: MachineConfig, start: int, modes: int, lines: Lines, detectors: Mapping[str, Detector]
) -> Machine:
    signals = list(machine.signals.values())
    states = tuple(machine.states)
    offsets = {name: offset for offset, name in enumerate(machine.signals)}
    norms = [[signal.norm for signal in signals]] + [
        [signal.norm.by_state.get(state, signal.norm) for signal in signals] for state in states
    ]

    def condition(text: str) -> Condition:
        parsed = expression.parse(text, offsets)
        return tuple(offsets[name] for name in parsed.names), parsed

    return Machine(
        index=index,
        name=machine.name,
        title=machine.title or machine.name,
        area=machine.area or "",
        start=start,
        stop=start + len(signals),
        every_us=min((s.every_us for s in signals if s.formula is None), default=machine.every_us),
        signals=tuple(
            Signal(
                name=signal.name,
                title=signal.title or signal.name.replace("_", " ").capitalize(),
                unit=signal.unit or "",
                advice=dict(signal.advice),
                every_us=signal.every_us,
                column=signal.column if signal.column not in (None, signal.name) else None,
                names=dict(signal.map),
                behind=len(lines[signal.name][1]) if lines else 0,
                bands=tuple(_band(row[offset]) for row in norms),
                stale_us=stale_us(signal),
                certificate=_in_words(signal, lines) and signal.name.endswith(f".{CERTIFICATE}"),
                host=_in_words(signal, lines) and not signal.name.endswith(f".{CERTIFICATE}"),
            )
            for offset, signal in enumerate(signals)
        ),
        formulas=_formulas(signals, offsets),
        states=states,
        conditions=tuple(condition(text) for text in machine.states.values()),
        until=tuple(condition(machine.until[name]) if name in machine.until else None for name in states),
        modes=slice(modes, modes + len(states) + 1 if states else modes),
        settle_us=machine.settle_us,
        norms=tuple(_norms(signals, row, lines, detectors) for row in norms),
        own=bool(lines),
    )


def _in_words(signal: SignalConfig, lines: Lines) -> bool:
    return bool(lines) and not lines[signal.name][1]


def _formulas(
    signals: list[SignalConfig], offsets: dict[str, int]
) -> tuple[tuple[int, tuple[int, ...], expression.Expression], ...]:
    """Formulas in an order in which each stands after those that it uses (the configuration has no cycles)."""
    waiting = {
        signal.name: expression.parse(signal.formula, offsets) for signal in signals if signal.formula is not None
    }
    ordered: list[tuple[int, tuple[int, ...], expression.Expression]] = []
    while waiting:
        ready = [name for name, formula in waiting.items() if not any(used in waiting for used in formula.names)]
        if not ready:
            raise ValueError(f"formulas use each other in a circle: {', '.join(waiting)}")
        for name in ready:
            formula = waiting.pop(name)
            ordered.append((offsets[name], tuple(offsets[used] for used in formula.names), formula))
    return tuple(ordered)


def _band(norm: NormConfig) -> dict[str, dict[str, float]]:
    """The band for messages: only the sides that have a limit."""
    band: dict[str, dict[str, float]] = {}
    for severity, limits in (("warning", norm.warning), ("alarm", norm.alarm)):
        sides = {side: value for side, value in (("low", limits.low), ("high", limits.high)) if value is not None}
        if sides:
            band[severity] = sides
    return band


def _norms(
    signals: list[SignalConfig], norms: list[NormConfig], lines: Lines, detectors: Mapping[str, Detector]
) -> tuple[Any, ...]:
    """What each detector makes of a machine's norms in one operating state."""
    columns = [
        Column(
            every_us=signal.every_us,
            warning=limits_of(norm.warning),
            alarm=limits_of(norm.alarm),
            level=1 if norm.severity == "warning" else 2,
            stale_us=stale_us(signal),
            health_us=health_us(lines[signal.name][1]) if lines else -1,
        )
        for signal, norm in zip(signals, norms, strict=True)
    ]

    def columns_for(name: str) -> list[Column]:
        asked = [norm.rules.get(name) for norm in norms]
        return [
            column if settings is None else replace(column, settings=settings)
            for column, settings in zip(columns, asked, strict=True)
        ]

    return tuple(detector.norms(columns_for(name)) for name, detector in detectors.items())


def _floats(values: Iterable[float | None], missing: float) -> Floats:
    return np.array([missing if value is None else value for value in values], dtype=np.float64)
