"""Law 3: however the time axis is cut and the machines are stacked, the judge says the same; and it says what its twin says."""

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import judge, snapshot
from edge_agent.contract import Frame
from edge_agent.plant import Plant
from edge_agent.records import Event
from tests import plants
from tests.twin import TwinCertificate, TwinLimit, TwinLine, TwinMachine, TwinSignal

SECOND = plants.SECOND
UNTIL = {"fast": "s0 < -0.5", "slow": "s0 > 1.5"}
SIDES = (("high", 1), ("high", 2), ("low", 1), ("low", 2))


@st.composite
def bands(draw: st.DrawFn) -> SimpleNamespace:
    low = draw(st.sampled_from([None, -2.0, -1.0]))
    high = draw(st.sampled_from([None, 1.0, 2.0]))
    return plants.band(
        low,
        high,
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        draw(st.sampled_from([0, 1, 2.5, 4])),
        draw(st.sampled_from([0, 1, 3])),
    )


@st.composite
def norms(draw: st.DrawFn, states: tuple[str, ...]) -> SimpleNamespace:
    return plants.norm(
        draw(bands()),
        draw(bands()),
        stale=draw(st.sampled_from([3, 6])),
        use_uncertain=draw(st.booleans()),
        severity=draw(st.sampled_from(["warning", "alarm"])),
        acknowledge=draw(st.sampled_from(["auto", "required"])),
        by_state={
            state: plants.norm(draw(bands()), draw(bands()), severity=draw(st.sampled_from(["warning", "alarm"])))
            for state in states
            if draw(st.booleans())
        },
    )


@st.composite
def machines(draw: st.DrawFn, name: str, formulas: bool = True) -> SimpleNamespace:
    states = {"fast": "s0 > 1", "slow": "s0 <= 0"} if draw(st.booleans()) else {}
    count = draw(st.integers(1, 3))
    signals = [plants.signal(f"s{i}", draw(norms(tuple(states))), valid_low=-6.0, valid_high=6.0) for i in range(count)]
    if formulas and draw(st.booleans()):
        text = draw(st.sampled_from(["s0 * 2", "1 / s0", "f2 + s0", f"s0 - s{count - 1}"]))
        signals.insert(draw(st.integers(0, count)), plants.signal("f1", draw(norms(tuple(states))), formula=text))
        signals.append(plants.signal("f2", draw(norms(tuple(states))), formula="abs(s0)", valid_high=2.0))
    for signal in signals:
        if signal.formula is None:
            signal.connection, signal.point = "plc", draw(st.sampled_from(["unit_1", "unit_2"]))
    until = draw(st.sampled_from([{}, {"fast": UNTIL["fast"]}, UNTIL])) if states else {}
    return plants.machine(name, *signals, states=states, until=until, settle=draw(st.sampled_from([0, 2])))


value = st.sampled_from([-9.0, -2.5, -2.0, -1.5, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, math.nan, math.inf])
quality = st.sampled_from([0, 0, 0, 0, 1, 1, 17, 2, 18, 3, 12, 13, 35, 36, 36])
"""35, 36: timeout and disconnected, behind a lost line."""
step = st.sampled_from([0, SECOND // 2, SECOND, SECOND, SECOND, 2 * SECOND, 7 * SECOND, -SECOND])


@st.composite
def rows(draw: st.DrawFn, width: int) -> list[tuple[int, int, list[float], list[int]]]:
    t, ts, found = 1000 * SECOND, 5000 * SECOND, []
    for _ in range(draw(st.integers(0, 30))):
        t, ts = t + draw(step), ts + draw(step)
        found.append(
            (
                t,
                ts,
                draw(st.lists(value, min_size=width, max_size=width)),
                draw(st.lists(quality, min_size=width, max_size=width)),
            )
        )
    return found


def frame(machine: str, taken: list[tuple[int, int, list[float], list[int]]], width: int) -> Frame:
    return Frame(
        machine,
        np.array([row[0] for row in taken], dtype=np.int64),
        np.array([row[1] for row in taken], dtype=np.int64),
        np.array([row[2] for row in taken], dtype=np.float64).reshape(len(taken), width),
        np.array([row[3] for row in taken], dtype=np.uint8).reshape(len(taken), width),
    )


def cut(draw: Any, taken: list[Any]) -> Iterator[list[Any]]:
    place = 0
    while place < len(taken):
        size = draw(st.integers(0, 7))
        yield taken[place : place + size]
        place += size


def told(judged: judge.Judged) -> tuple[list[Any], list[Any]]:
    frames = [
        (f.frame.machine, t, ts, values, quality, int(mode), bool(publish))
        for f in judged.frames
        for t, ts, values, quality, mode, publish in zip(
            f.frame.t.tolist(),
            f.frame.ts.tolist(),
            map(repr, f.frame.values.tolist()),
            f.frame.quality.tolist(),
            f.state.tolist(),
            f.publish.tolist(),
            strict=True,
        )
    ]
    return frames, judged.events


def collect(plant: Plant, frames: list[Frame]) -> tuple[list[Any], list[Any], judge.JudgeState]:
    state = judge.start(plant)
    all_frames: list[Any] = []
    events: list[Any] = []
    for each in frames:
        state, judged = judge.step(plant, state, [each], "e")
        found, raised = told(judged)
        all_frames += found
        events += raised
    return all_frames, events, state


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_cutting_the_time_axis_changes_nothing(data: st.DataObject) -> None:
    config = data.draw(machines("m"))
    plant = plants.plant(config)
    width = len(config.signals)
    taken = data.draw(rows(width))
    whole = collect(plant, [frame("m", taken, width)])
    single = collect(plant, [frame("m", [row], width) for row in taken])
    pieces = collect(plant, [frame("m", piece, width) for piece in cut(data.draw, taken)])
    assert whole[:2] == single[:2]
    assert whole[:2] == pieces[:2]
    if taken:
        assert snapshot.dump(plant, whole[2]) == snapshot.dump(plant, single[2])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_judging_machines_apart_or_together_is_equal(data: st.DataObject) -> None:
    configs = [data.draw(machines(name)) for name in ("a", "b", "c")]
    plant = plants.plant(*configs)
    widths = {config.name: len(config.signals) for config in configs}
    taken = {config.name: data.draw(rows(widths[config.name])) for config in configs}
    apart: dict[str, tuple[list[Any], list[Any]]] = {}
    for name, its in taken.items():
        found = collect(plant, [frame(name, its, widths[name])])
        apart[name] = found[:2]
    together = judge.start(plant)
    frames: dict[str, list[Any]] = {name: [] for name in taken}
    events: dict[str, list[Any]] = {name: [] for name in taken}
    waiting = {name: list(its) for name, its in taken.items()}
    while any(waiting.values()):
        names = data.draw(st.lists(st.sampled_from([n for n, its in waiting.items() if its]), min_size=1, max_size=5))
        beat = [frame(name, [waiting[name].pop(0)], widths[name]) for name in names if waiting[name]]
        together, judged = judge.step(plant, together, beat, "e")
        rows_told, raised = told(judged)
        for row in rows_told:
            frames[row[0]].append(row)
        for event in raised:
            events[event.machine].append(event)
    for name in taken:
        assert (frames[name], events[name]) == apart[name]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_judge_says_what_its_plain_twin_says(data: st.DataObject) -> None:
    config = data.draw(machines("m", formulas=False))
    for signal in config.signals.values():
        signal.norm.acknowledge = "auto"
    plant = plants.plant(config)
    width = len(config.signals)
    taken = data.draw(rows(width))
    twin = twin_of(config)
    expected = []
    levels: dict[tuple[int, str], int] = {}
    for t, ts, values, qualities in taken:
        for i, kind, level, since in twin.row(t, ts, values, qualities):
            before = levels.get((i, kind), 0)
            levels[i, kind] = level
            word = (
                "raised"
                if before == 0
                else "cleared"
                if level == 0
                else "escalated"
                if level > before
                else "deescalated"
            )
            expected.append(
                (word, f"s{i}", kind, "alarm" if max(level, before if level == 0 else 0) == 2 else "warning", ts, since)
            )
    _, events, state = collect(plant, [frame("m", taken, width)])
    hours = judge.hours(state, plant.machines[0])
    for mode, name in enumerate(hours, -1):
        assert hours[name] == twin.lasted_us.get(mode, 0) / 3.6e9
    assert [(e.event, e.signal, e.kind, e.severity, e.ts, e.since) for e in events] == expected


def twin_of(config: SimpleNamespace) -> TwinMachine:
    states = list(config.states)

    begun = {"fast": False, "slow": False}

    def mode_of(values: list[float | None]) -> int | None:
        v = values[0]
        if v is None:
            return None
        decided = {"fast": (v > 1, v < -0.5), "slow": (v <= 0, v > 1.5)}
        begun.update({n: begins for n, (begins, ends) in decided.items() if n not in config.until or begins or ends})
        return 0 if begun["fast"] else 1 if begun["slow"] else -1

    def limits_of(norm: SimpleNamespace) -> list[TwinLimit]:
        found = []
        for side, severity in SIDES:
            band = norm.warning if severity == 1 else norm.alarm
            limit = getattr(band, side)
            none = math.inf if side == "high" else -math.inf
            found.append(
                TwinLimit(
                    side, severity, none if limit is None else limit, band.deadband, band.on_delay_us, band.off_delay_us
                )
            )
        return found

    signals = [
        TwinSignal(
            limits_of(s.norm),
            {-1: limits_of(s.norm), **{states.index(n): limits_of(v) for n, v in s.norm.by_state.items()}}
            if states
            else {},
            s.norm.stale_us,
            s.norm.use_uncertain,
            1 if s.norm.severity == "warning" else 2,
            {states.index(n): 1 if v.severity == "warning" else 2 for n, v in s.norm.by_state.items()},
            (s.valid_low, s.valid_high),
        )
        for s in config.signals.values()
    ]
    return TwinMachine(signals, mode_of if states else None, config.settle_us)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_snapshot_in_the_middle_changes_nothing(data: st.DataObject) -> None:
    config = data.draw(machines("m"))
    plant = plants.plant(config)
    width = len(config.signals)
    taken = data.draw(rows(width))
    place = data.draw(st.integers(0, len(taken)))
    whole = collect(plant, [frame("m", taken, width)])
    first = collect(plant, [frame("m", taken[:place], width)])
    state = snapshot.load(plant, snapshot.dump(plant, first[2]))
    _, judged = judge.step(plant, state, [frame("m", taken[place:], width)], "e")
    assert first[1] + told(judged)[1] == whole[1]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_judging_what_was_judged_already_changes_nothing(data: st.DataObject) -> None:
    """The journal holds frames as judged; after a restart they are judged again."""
    config = data.draw(machines("m"))
    plant = plants.plant(config)
    width = len(config.signals)
    taken = data.draw(rows(width))
    state, judged = judge.step(plant, judge.start(plant), [frame("m", taken, width)], "e")
    again, second = judge.step(plant, judge.start(plant), [f.frame for f in judged.frames], "e")
    assert told(judged) == told(second)
    assert snapshot.dump(plant, state) == snapshot.dump(plant, again)


# --- the agent's own machine: lines that are lost, certificates that end ---

LINES = plants.machine(
    "m",
    plants.signal("a", plants.norm(stale=4), connection="plc", point="unit_1"),
    plants.signal("b", connection="plc", point="unit_2"),
    plants.signal("c", connection="slow", point="x"),
)
NAMES = ("plc", "plc.unit_1", "plc.unit_2", "slow", "plc.certificate", "disk", "clock")
ON_US = (4 * SECOND, 4 * SECOND, 10 * SECOND, 10 * SECOND)
"""No longer than the most impatient signal behind it may be silent."""
BEHIND = (2, 1, 1, 1)
UNKNOWN = 36
why = st.sampled_from(
    [(0, 0), (0, 0), (3, 0), (4, 0), (5, 0), (4, 0), (math.nan, UNKNOWN), (math.nan, 13), (math.nan, 1)]
)
"""(value, quality): well, lost and why, not known (behind a line that is lost as a whole), restart, HOLD."""
ENDS = (0, 0, 16, 16, 17, 32, 33, 48, 64, 67)
ends = st.sampled_from([*((value, 0) for value in ENDS), (math.nan, UNKNOWN), (math.nan, 13), (math.nan, 1)])
"""The same of certificates: how soon one ends, and whose; of the disk and the clock: how bad it is, and what."""


@st.composite
def own_rows(draw: st.DrawFn) -> list[tuple[int, int, list[float], list[int]]]:
    t, ts, found = 1000 * SECOND, 5000 * SECOND, []
    for _ in range(draw(st.integers(0, 40))):
        t, ts = t + draw(step), ts + draw(step)
        cells = [*(draw(why) for _ in ON_US), draw(ends), draw(ends), draw(ends)]
        found.append((t, ts, [float(value) for value, _ in cells], [code for _, code in cells]))
    return found


def own_frame(taken: list[tuple[int, int, list[float], list[int]]]) -> Frame:
    words = tuple(tuple(f"{ts} {column}" for column in range(len(NAMES))) for _, ts, *_ in taken)
    return replace(frame("agent", taken, len(NAMES)), words=words)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_lines_are_judged_alike_however_they_are_cut_and_as_their_plain_twin_says(data: st.DataObject) -> None:
    plant = plants.plant(LINES, certified={"plc"})
    taken = data.draw(own_rows())
    whole = collect(plant, [own_frame(taken)])
    single = collect(plant, [own_frame([row]) for row in taken])
    pieces = collect(plant, [own_frame(piece) for piece in cut(data.draw, taken)])
    assert whole[:2] == single[:2] == pieces[:2]
    if taken:
        assert snapshot.dump(plant, whole[2]) == snapshot.dump(plant, single[2])
    twins = [TwinLine(on_us) for on_us in ON_US]
    in_words = [TwinCertificate() for _ in NAMES[len(twins) :]]
    held: list[int | None] = [None] * len(NAMES)
    expected: list[tuple[str, str, int, int, str, int | None]] = []
    for t, ts, values, qualities in taken:
        for column, (value_, code) in enumerate(zip(values, qualities, strict=True)):
            if code != 1:
                held[column] = int(value_) if code == 0 else None
            if column >= len(twins):
                if (ending := in_words[column - len(twins)].row(ts, held[column])) is not None:
                    expected.append((ending[0], NAMES[column], ts, ending[2], ending[1], None))
            elif (said := twins[column].row(t, ts, held[column])) is not None:
                expected.append((said[0], NAMES[column], ts, said[1], "alarm", BEHIND[column]))
    assert [(e.event, e.signal, e.ts, e.since, e.severity, e.suppressed) for e in whole[1]] == expected
    assert all((e.kind, e.value, e.limit, e.norm) == ("health", None, None, {}) for e in whole[1])
    assert all(
        f"{e.ts} {NAMES.index(e.signal)}" in e.message
        for e in whole[1]
        if e.event == "raised" or e.signal in NAMES[len(ON_US) :]
    )
    assert not any(publish for *_, publish in whole[0])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_lines_and_the_machines_behind_them_may_be_judged_together_and_again(data: st.DataObject) -> None:
    """As the daemon does: one row of each side by side; and as the journal has it, once more."""
    plant = plants.plant(LINES, certified={"plc"})
    lines, signals = data.draw(own_rows()), data.draw(rows(3))
    apart = [*collect(plant, [own_frame(lines)])[1], *collect(plant, [frame("m", signals, 3)])[1]]
    state = judge.start(plant)
    journal: list[Frame] = []
    events: list[Event] = []
    for row in range(max(len(lines), len(signals))):
        beat = [frame("m", signals[row : row + 1], 3), own_frame(lines[row : row + 1])]
        state, judged = judge.step(plant, state, [each for each in beat if len(each.t)], "e")
        journal += [each.frame for each in judged.frames]
        events += judged.events
    assert sorted(events, key=str) == sorted(apart, key=str)
    again, second = judge.step(plant, judge.start(plant), journal, "e")
    assert sorted(second.events, key=str) == sorted(events, key=str)
    assert snapshot.dump(plant, state) == snapshot.dump(plant, again)


def test_a_planted_fault_is_found() -> None:
    """Negative control: a judge whose runs count bad rows' time differs from the twin."""
    config = plants.machine("m", plants.signal("s0", plants.norm(plants.band(high=1.0, on=2), stale=60)))
    plant = plants.plant(config)
    taken = [(i * SECOND, i * SECOND, [2.0], [q]) for i, q in enumerate([0, 3, 0, 0])]
    _, events, _ = collect(plant, [frame("m", taken, 1)])
    assert [(e.event, e.ts) for e in events] == [("raised", 3 * SECOND)]
    taken = [(i * SECOND, i * SECOND, [2.0], [0]) for i in range(4)]
    _, events, _ = collect(plant, [frame("m", taken, 1)])
    assert [(e.event, e.ts) for e in events] == [("raised", 2 * SECOND)]


def test_pytest_can_import_the_twin() -> None:
    with pytest.raises(ValueError, match=r"strict|shorter|longer"):
        TwinMachine([]).row(0, 0, [1.0], [0])
