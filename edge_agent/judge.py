"""Frames in, readings and events out: validity, formulas, operating states, detectors, the life of a warning. Pure.

Rule 1: `run`, `replay` and every other caller use `step` with the same arguments; nothing here knows who called.
Rule 2: however the rows are cut into frames, and machines judged apart or together, the result is equal to the bit.
Rule 3: the state that is handed in is used up: `step` changes it in place. Keep a `copy` to go back.
"""

import copy
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent import lifecycle, texts
from edge_agent.contract import (
    CODE_MASK,
    LINE_LOST,
    REASONS,
    Block,
    Bools,
    Change,
    Codes,
    Floats,
    Frame,
    Ints,
    Quality,
)
from edge_agent.plant import Condition, Machine, Plant, Signal
from edge_agent.records import SET_CLOCK, Command, Event, EventKind, JudgedFrame, Kind, Severity, WarningState

NEVER = np.iinfo(np.int64).min
UNKNOWN = -1
"""No condition of the machine is true: the base norm holds."""
UNDECIDED = -2
"""No condition could be decided yet: the first decision starts no settling."""
NAMESPACE = uuid.UUID("5f0a7c64-7f57-5d0c-9a0e-0d6a2c1d5f11")
"""Of the deterministic ids of warnings (contract §6, `id`)."""
GOOD, HOLD, UNCERTAIN = int(Quality.GOOD), int(Quality.HOLD), int(Quality.UNCERTAIN)
CLOCK, CONFIRMED, RESTART = int(Quality.CLOCK), int(Quality.CONFIRMED), int(Quality.RESTART)
MISSING, NOT_A_NUMBER, OUT_OF_RANGE = int(Quality.MISSING), int(Quality.NOT_A_NUMBER), int(Quality.OUT_OF_RANGE)
FADED = int(Quality.FADED)
SEVERITIES = (Severity.WARNING, Severity.WARNING, Severity.ALARM)
"""By level; level 0 (back to normal) is told with the severity it had."""
RANK = np.arange(2 * LINE_LOST, dtype=np.uint8) & CODE_MASK
"""How bad a quality is, for "the worst of its inputs": GOOD < CLOCK < UNCERTAIN < every BAD, by code."""
RANK[CLOCK] = 1
OF_RANK = np.arange(16, dtype=np.uint8)
OF_RANK[1] = CLOCK
STACKS_MAX = 4096
MOVED_MAX = 4
"""What began in an older span of a clock that was not set has ended, or says so by its year."""


@dataclass(slots=True)
class Standing:
    """One warning that is not back to normal."""

    state: WarningState
    level: int
    since: int
    born: int
    """`since` of its first raise: what its id is made of."""
    count: int
    event: Event


@dataclass(slots=True)
class JudgeState:
    """Everything the judge remembers. Arrays are (columns,) or (machines,), see Plant.

    held, held_quality: the last reading of each column. seen_t, seen_ts: int64 µs, when the last good one came.
    covered_us: int64, for how long since then its line was lost.
    faded: bool, that reading is too old to stand (it stands again when a driver vouches for it).
    stamp: int64 UTC µs that the last reading came with, its source's own.
    last_t: (machines,) int64, NEVER before the first row. mode: (machines,) int16 operating state, UNKNOWN, UNDECIDED.
    settle_until: (machines,) int64 agent time. begun: (modes,) bool, of states that have an `until`: it has begun and not
    ended. mode_us: (modes,) int64, how long each state lasted; see Machine.modes.
    detectors, norms: the state of each of the plant's detectors, and the norms in force for it. standing: by (column, kind).
    moved: spans of UTC µs in which the clock was not set, with what is to be added to a time of theirs: (from, to, by).
    """

    held: Floats
    held_quality: Codes
    seen_t: Ints
    seen_ts: Ints
    covered_us: Ints
    faded: Bools
    stamp: Ints
    last_t: Ints
    mode: npt.NDArray[np.int16]
    settle_until: Ints
    begun: Bools
    mode_us: Ints
    detectors: list[Any]
    norms: list[Any]
    standing: dict[tuple[int, str], Standing]
    moved: list[tuple[int, int, int]] = field(default_factory=list)

    def copy(self) -> "JudgeState":
        return copy.deepcopy(self)


@dataclass(frozen=True, slots=True)
class Judged:
    """What one call of `step` found: the frames as judged, in the order they came, and the few events."""

    frames: list[JudgedFrame]
    events: list[Event]


def start(plant: Plant) -> JudgeState:
    """The state before the first row: nothing read, nothing raised, no operating state decided."""
    columns, machines = plant.columns, len(plant.machines)
    return JudgeState(
        held=np.full(columns, np.nan),
        held_quality=np.full(columns, MISSING, dtype=np.uint8),
        seen_t=np.full(columns, NEVER, dtype=np.int64),
        seen_ts=np.full(columns, NEVER, dtype=np.int64),
        covered_us=np.zeros(columns, dtype=np.int64),
        faded=np.zeros(columns, dtype=np.bool_),
        stamp=np.full(columns, NEVER, dtype=np.int64),
        last_t=np.full(machines, NEVER, dtype=np.int64),
        mode=np.full(machines, UNDECIDED, dtype=np.int16),
        settle_until=np.full(machines, NEVER, dtype=np.int64),
        begun=np.zeros(plant.modes, dtype=np.bool_),
        mode_us=np.zeros(plant.modes, dtype=np.int64),
        detectors=[detector.start(columns) for detector in plant.detectors],
        norms=norms_in_force(plant, np.full(machines, UNKNOWN, dtype=np.int16)),
        standing={},
    )


def norms_in_force(plant: Plant, modes: npt.NDArray[np.int16]) -> list[Any]:
    """The norms of every column when each machine is in this operating state, for each detector."""
    chosen = [machine.norms[max(int(modes[machine.index]), UNKNOWN) + 1] for machine in plant.machines]
    if not chosen:
        return [detector.norms([]) for detector in plant.detectors]
    return [_side_by_side_norms(its) for its in zip(*chosen, strict=True)]


def _side_by_side_norms(norms: Sequence[Any]) -> Any:
    """One detector's norms of all machines."""
    return replace(
        norms[0],
        **{
            part.name: np.concatenate([getattr(each, part.name) for each in norms], axis=-1)
            for part in fields(norms[0])
        },
    )


def step(plant: Plant, state: JudgeState, frames: Sequence[Frame], epoch: str) -> tuple[JudgeState, Judged]:
    """Judge frames in the order in which they stand. epoch: names the store that counts, part of every warning's id."""
    judged, events = [], []
    for stack in _stacks(plant, frames):
        found, raised = _judge(plant, state, stack, epoch)
        judged += found
        events += raised
    return state, Judged(judged, events)


def acknowledge(
    plant: Plant, state: JudgeState, warning: str, by: str, comment: str, ts: int
) -> tuple[JudgeState, Event]:
    """A person has seen this warning. Raises KeyError when no such warning stands, ValueError when it cannot be."""
    for (column, kind), standing in state.standing.items():
        if standing.event.id != warning:
            continue
        found = lifecycle.step(standing.state, lifecycle.Input.ACKNOWLEDGE, bool(plant.required[column]))
        if found is None:
            raise ValueError(f"this warning is {standing.state} already")
        standing.state, told = found
        _, signal = plant.signal_of(column)
        text = texts.message(
            plant.language, told, kind, title=signal.title, unit=signal.unit, value=None, limit=None, by=by
        )
        event = replace(
            standing.event, event=told, state=standing.state, ts=ts, message=text, by=by, comment=comment or None
        )
        standing.event = event
        if standing.state is WarningState.NORMAL:
            del state.standing[column, kind]
        return state, event
    raise KeyError(warning)


def set_clock(state: JudgeState, from_us: int, to_us: int, from_t: int, by_us: int) -> JudgeState:
    """The clock was set: what began in this span of the old clock began so much later (UTC µs; from_t: the agent's own).

    Times of readings decide nothing, so only what is told is put right: the standing warnings, and later what is pending.
    """
    state.moved = [*state.moved, (from_us, to_us, by_us)][-MOVED_MAX:]
    for standing in state.standing.values():
        event = standing.event
        if event.t >= from_t:
            standing.since = _moved(standing.since, state.moved[-1:])
            since, ts = (_moved(us, state.moved[-1:]) for us in (event.since, event.ts))
            standing.event = replace(event, since=since, ts=ts)
    return state


def _moved(us: int, spans: Sequence[tuple[int, int, int]]) -> int:
    """A time of one of these spans put right."""
    return next((us + by for first, last, by in spans if first <= us <= last), us)


def repeat(plant: Plant, state: JudgeState, command: Command) -> JudgeState:
    """Do once more what the journal says was done. Raises KeyError or ValueError when it cannot be."""
    if command.command == SET_CLOCK:
        return set_clock(state, **command.arguments)
    return acknowledge(plant, state, command.id, command.by, command.comment, command.ts)[0]


def numbered(state: JudgeState, numbers: Mapping[str, tuple[str, int]]) -> None:
    """Note the (epoch, seq) under which the store keeps the last event of these warnings. numbers: by id, newest wins."""
    for standing in state.standing.values():
        epoch, seq = numbers.get(standing.event.id, ("", 0))
        if seq > standing.event.seq or epoch not in ("", standing.event.epoch):
            standing.event = replace(standing.event, epoch=epoch, seq=seq)


def readings(state: JudgeState, machine: Machine) -> tuple[Floats, Codes]:
    """What stands now for each signal of a machine: value (NaN where bad) and quality, both (signals,) and the caller's."""
    faded = state.faded[machine.columns]
    values = np.where(faded, np.nan, state.held[machine.columns])
    quality = state.held_quality[machine.columns] & np.uint8(~LINE_LOST & 0xFF)
    return values, np.where(faded, np.uint8(MISSING), quality)


def active(plant: Plant, state: JudgeState) -> dict[str, list[Event]]:
    """The last event of every warning whose state is not normal, oldest first, by machine (each of them)."""
    found: dict[str, list[Standing]] = {machine.name: [] for machine in plant.machines}
    for standing in state.standing.values():
        found[standing.event.machine].append(standing)
    return {
        name: [each.event for each in sorted(its, key=lambda s: (s.since, s.event.id))] for name, its in found.items()
    }


def advice_of(signal: Signal, language: str) -> str:
    """What to do, in this language; else in English, else in whatever language it was written."""
    return signal.advice.get(language) or signal.advice.get("en") or next(iter(signal.advice.values()), "")


def word_of(quality: int) -> str:
    """A held quality in the contract's words: `good`, or why not. A column that was never read is `missing`."""
    return REASONS[Quality(quality & ~LINE_LOST)]


def mode_name(machine: Machine, mode: int) -> str | None:
    """The operating state's name; `unknown` when none is decided or none matches; None without configured states."""
    if not machine.states:
        return None
    return machine.states[mode] if mode >= 0 else "unknown"


def bands(machine: Machine, offset: int, mode: int) -> dict[str, dict[str, float]]:
    """The norm band in force of one signal."""
    return machine.signals[offset].bands[max(mode, UNKNOWN) + 1]


# --- one stack: rows of one machine, or one row of many -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stack:
    """Frames side by side. columns: where they lie in the plant; edges: where each machine begins in the stack."""

    machines: tuple[Machine, ...]
    frames: tuple[Frame, ...]
    columns: slice | npt.NDArray[np.intp]
    sizes: npt.NDArray[np.intp]
    edges: npt.NDArray[np.intp]
    indices: npt.NDArray[np.intp]


@dataclass(slots=True)
class _Work:
    """The arrays of one stack, (rows, columns) unless said. They are this module's own and changed in place.

    values, quality: what goes out (fresh readings; HOLD elsewhere). held, held_quality: the same with HOLD filled in.
    """

    values: Floats
    quality: Codes
    held: Floats
    held_quality: Codes
    t: Ints
    ts: Ints
    row_ts: Ints
    step_us: Ints
    seen_t: Ints
    seen_ts: Ints
    covered_us: Ints
    good: Bools
    late: Bools


def _stacks(plant: Plant, frames: Sequence[Frame]) -> Iterator[_Stack]:
    """Single rows of different machines are stacked; a frame of many rows stands alone. Empty frames are passed through."""
    waiting: dict[str, Frame] = {}
    for frame in frames:
        if len(frame.t) != 1 or frame.machine in waiting:
            if waiting:
                yield _stack(plant, waiting.values())
                waiting = {}
            if len(frame.t) != 1:
                yield _stack(plant, (frame,))
                continue
        waiting[frame.machine] = frame
    if waiting:
        yield _stack(plant, waiting.values())


def _stack(plant: Plant, frames: Iterable[Frame]) -> _Stack:
    chosen = tuple(frames)
    machines = tuple(plant.by_name[frame.machine] for frame in chosen)
    indices = tuple(machine.index for machine in machines)
    found = plant.stacks.get(indices)
    if found is None:
        if len(plant.stacks) >= STACKS_MAX:
            plant.stacks.clear()
        sizes = np.array([machine.stop - machine.start for machine in machines], dtype=np.intp)
        joined = all(a.stop == b.start for a, b in pairwise(machines))
        columns: slice | npt.NDArray[np.intp] = (
            slice(machines[0].start, machines[-1].stop)
            if joined
            else np.concatenate([np.arange(machine.start, machine.stop) for machine in machines])
        )
        edges = np.cumsum(sizes) - sizes
        found = plant.stacks[indices] = (columns, sizes, edges, np.array(indices, dtype=np.intp))
    return _Stack(machines, chosen, *found)


def _judge(plant: Plant, state: JudgeState, stack: _Stack, epoch: str) -> tuple[list[JudgedFrame], list[Event]]:
    """One stack through all steps, in order: validity, HOLD, silence, formulas, operating states, detectors, events."""
    rows = len(stack.frames[0].t)
    if rows == 0:
        return [_silent(frame) for frame in stack.frames], []
    work = _side_by_side(plant, state, stack)
    _validate(plant, stack.columns, work, slice(None))
    _fill(state, stack, work)
    _silence(plant, state, stack, work)
    _formulas(plant, state, stack, work)
    modes = _modes(plant, state, stack, work)
    state.seen_t[stack.columns] = work.seen_t[-1]
    state.seen_ts[stack.columns] = work.seen_ts[-1]
    state.covered_us[stack.columns] = work.covered_us[-1]
    changes = _detect(plant, state, stack, work, modes)
    state.last_t[stack.indices] = [int(frame.t[-1]) for frame in stack.frames]
    places = {machine.index: place for place, machine in enumerate(stack.machines)} if changes else {}
    events = [_event(plant, state, stack, places, work, modes, change, epoch) for change in changes]
    return _judged(stack, work, modes), [event for event in events if event is not None]


def belated(plant: Plant, frame: Frame) -> JudgedFrame:
    """What came too late to be judged: its values are held against `valid`, and that is all; no state, no warning."""
    machine = plant.by_name[frame.machine]
    columns = slice(machine.start, machine.stop)
    quality = frame.quality.copy()
    usable = _usable(frame.values, quality, plant.valid_low[columns], plant.valid_high[columns])
    values = np.where(usable, frame.values, np.nan)
    fresh = ((quality & CODE_MASK) != HOLD).any(axis=1)
    unknown = np.full(len(frame.t), -1, dtype=np.int16)
    return JudgedFrame(replace(frame, values=values, quality=quality, late=True), unknown, fresh)


def _silent(frame: Frame) -> JudgedFrame:
    return JudgedFrame(frame, np.empty(0, dtype=np.int16), np.empty(0, dtype=np.bool_))


def _side_by_side(plant: Plant, state: JudgeState, stack: _Stack) -> _Work:
    if len(stack.frames) == 1:
        frame = stack.frames[0]
        values, quality, t, row_ts = frame.values.copy(), frame.quality.copy(), frame.t[:, None], frame.ts[:, None]
        before = state.last_t[stack.machines[0].index]
        previous = np.concatenate(([t[0, 0] if before == NEVER else before], frame.t[:-1]))[:, None]
        ts = row_ts
        if frame.at is not None:
            ts = frame.at
    else:
        values = np.concatenate([frame.values for frame in stack.frames], axis=1)
        quality = np.concatenate([frame.quality for frame in stack.frames], axis=1)
        t = np.repeat(np.array([frame.t[0] for frame in stack.frames]), stack.sizes)[None, :]
        row_ts = np.repeat(np.array([frame.ts[0] for frame in stack.frames]), stack.sizes)[None, :]
        ts = row_ts
        if any(frame.at is not None for frame in stack.frames):
            ts = np.concatenate(
                [
                    np.broadcast_to(frame.ts[:, None], frame.values.shape) if frame.at is None else frame.at
                    for frame in stack.frames
                ],
                axis=1,
            )
        previous = np.repeat(state.last_t[stack.indices], stack.sizes)[None, :]
        previous = np.where(previous == NEVER, t, previous)
    # A formula has no source of its own (and a HOLD that was judged too old once is one still).
    fresh = ((quality & CODE_MASK) != HOLD) & (quality != FADED) & ~plant.formula[stack.columns]
    ts = _known_at(state, stack, fresh, ts, row_ts)
    step_us = np.maximum(t - previous, 0)
    nothing = np.empty((0, 0))
    return _Work(
        values,
        quality,
        nothing,
        quality,
        t,
        ts,
        row_ts,
        step_us,
        step_us,
        step_us,
        step_us,
        nothing.astype(np.bool_),
        nothing.astype(np.bool_),
    )


def _known_at(state: JudgeState, stack: _Stack, fresh: Bools, stamps: Ints, row_ts: Ints) -> Ints:
    """When what each reading says became true: at its source's stamp while that is new, and never after its row.

    A value that stands unchanged for hours comes with the same old stamp each time it is read; what its norm makes of it
    today did not happen then. stamps: (rows, columns), or row_ts itself where no source has stamps of its own.
    """
    before = state.stamp[stack.columns]
    if stamps is row_ts:
        last = _last_row(fresh)[-1]
        whole = np.broadcast_to(row_ts, fresh.shape)
        state.stamp[stack.columns] = np.where(last < 0, before, whole[np.maximum(last, 0), np.arange(len(last))])
        return row_ts
    place = np.vstack((np.full((1, fresh.shape[1]), -1), _last_row(fresh)))
    columns = np.arange(fresh.shape[1])
    known = np.where(place < 0, before, stamps[np.maximum(place, 0), columns])
    state.stamp[stack.columns] = known[-1]
    return np.where(fresh & (stamps > known[:-1]), np.minimum(stamps, row_ts), row_ts)


def _validate(plant: Plant, columns: slice | npt.NDArray[np.intp], work: _Work, where: slice | list[int]) -> None:
    """NaN, infinities and values outside of `valid` become BAD; nothing but fresh usable values keeps a number."""
    values, quality = work.values[:, where], work.quality[:, where]
    low, high = plant.valid_low[columns][where], plant.valid_high[columns][where]
    usable = _usable(values, quality, low, high)
    if not usable.all():
        work.quality[:, where] = quality
        work.values[:, where] = np.where(usable, values, np.nan)


def _usable(values: Floats, quality: Codes, low: Floats, high: Floats) -> Bools:
    """Where there is a fresh number within `valid`; the quality of one that is not is changed in place to the reason."""
    usable: Bools = (quality == GOOD) | (quality == UNCERTAIN) | (quality == CLOCK)
    # One comparison finds NaN too: it is neither above nor below.
    inside = (values >= low) & (values <= high)
    doubtful = usable & ~(inside & np.isfinite(values))
    if doubtful.any():
        quality[doubtful] = np.where(np.isfinite(values[doubtful]), OUT_OF_RANGE, NOT_A_NUMBER)
        usable &= ~doubtful
    return usable


def _fill(state: JudgeState, stack: _Stack, work: _Work) -> None:
    """HOLD stands for the last reading, with its quality. Formula columns are computed later: HOLD for now."""
    faded = work.quality == FADED
    if faded.any():  # judged before: what the judge itself marked is found again
        work.quality[faded] = HOLD
    fresh = (work.quality & CODE_MASK) != HOLD
    if len(fresh) == 1:
        work.held = np.where(fresh, work.values, state.held[stack.columns])
        work.held_quality = np.where(fresh, work.quality, state.held_quality[stack.columns])
    else:
        last = _last_row(fresh)
        at = np.maximum(last, 0)
        before, trust = state.held[stack.columns], state.held_quality[stack.columns]
        work.held = np.where(last < 0, before, np.take_along_axis(work.values, at, axis=0))
        work.held_quality = np.where(last < 0, trust, np.take_along_axis(work.quality, at, axis=0))
    state.held[stack.columns] = work.held[-1]
    state.held_quality[stack.columns] = work.held_quality[-1]


def _last_row(marked: Bools) -> npt.NDArray[np.intp]:
    """For each place the last row up to it that is marked, -1 when none."""
    rows = np.where(marked, np.arange(len(marked))[:, None], -1)
    return np.asarray(np.maximum.accumulate(rows, axis=0), dtype=np.intp)


def _judgeable(plant: Plant, stack: _Stack, quality: Codes) -> Bools:
    """Where a held quality may be judged: good, or uncertain only because of its clock, or the norm takes uncertain."""
    known: Bools = (quality == GOOD) | (quality == CLOCK)
    uncertain = quality == UNCERTAIN
    if uncertain.any():
        known |= uncertain & plant.use_uncertain[stack.columns]
    return known


def _silence(plant: Plant, state: JudgeState, stack: _Stack, work: _Work) -> None:
    """When was the last good reading, and which held ones are too old to stand: those are BAD `missing`."""
    spoken = ((work.quality & CODE_MASK) != HOLD) | (work.quality == CONFIRMED)
    work.good = spoken & _judgeable(plant, stack, work.held_quality)
    _seen(plant, state, stack, work)
    faded = work.late & ~spoken & ((work.held_quality & CODE_MASK) <= UNCERTAIN)
    if plant.formula.any():
        faded &= ~plant.formula[stack.columns]
    before = state.faded[stack.columns]
    if not faded.any():
        if before.any():
            state.faded[stack.columns] = False
        return
    first = faded.copy()
    first[0] &= ~before
    first[1:] &= ~faded[:-1]
    work.quality[first] = FADED
    work.held_quality[faded] = MISSING
    work.held[faded] = np.nan
    state.faded[stack.columns] = faded[-1]


def _seen(plant: Plant, state: JudgeState, stack: _Stack, work: _Work) -> None:
    """seen_t, seen_ts, covered_us, late: from `good`. The agent's start and a restart set the clock of `stale` anew.

    While the line is lost it stands still: what lies behind is counted in the line's warning and raises none of its own.
    It goes on, and does not begin anew, when the line is back: a line that comes and goes hides no silence for ever.
    """
    resets = work.good | (work.quality == RESTART)
    before_t, before_ts = state.seen_t[stack.columns], state.seen_ts[stack.columns]
    new = before_t == NEVER
    if new.any():
        before_t, before_ts = np.where(new, work.t[0], before_t), np.where(new, work.row_ts[0], before_ts)
    if len(resets) == 1:
        work.seen_t = np.where(resets, work.t, before_t)
        work.seen_ts = np.where(resets, work.ts, before_ts)
    else:
        last = _last_row(resets)
        at = np.maximum(last, 0)
        t, ts = np.broadcast_to(work.t, resets.shape), np.broadcast_to(work.ts, resets.shape)
        work.seen_t = np.where(last < 0, before_t, np.take_along_axis(t, at, axis=0))
        work.seen_ts = np.where(last < 0, before_ts, np.take_along_axis(ts, at, axis=0))
    stale_us, before_us = plant.stale_us[stack.columns], state.covered_us[stack.columns]
    work.late = (work.t - work.seen_t) >= stale_us
    work.covered_us = before_us[None, :]
    if plant.own is None:  # nobody tells of lines
        return
    covered = work.held_quality >= LINE_LOST
    if not covered.any() and not before_us.any():
        return
    work.covered_us = _covered_us(resets, np.where(covered, work.step_us, 0), before_us)
    work.late = (work.t - work.seen_t - work.covered_us >= stale_us) & ~covered


def _covered_us(resets: Bools, steps_us: Ints, before_us: Ints) -> Ints:
    """The sum of the steps since the last reset up to each row, which a reset makes 0."""
    if len(resets) == 1:
        return np.where(resets, 0, before_us + steps_us)
    total = np.cumsum(steps_us, axis=0)
    last = _last_row(resets)
    return np.where(last < 0, before_us + total, total - np.take_along_axis(total, np.maximum(last, 0), axis=0))


def _formulas(plant: Plant, state: JudgeState, stack: _Stack, work: _Work) -> None:
    """A formula is evaluated where an input is fresh; its quality is the worst of its inputs'."""
    computed: list[int] = []
    for machine, edge in zip(stack.machines, stack.edges.tolist(), strict=True):
        for offset, inputs, formula in machine.formulas:
            column = edge + offset
            used = [edge + i for i in inputs]
            qualities = work.quality[:, used]
            touched = ((qualities & CODE_MASK) != HOLD).any(axis=1)
            vouched = (qualities == CONFIRMED).any(axis=1)
            held = work.held_quality[:, used]
            worst = OF_RANK[RANK[held].max(axis=1)] | ((held >= LINE_LOST).any(axis=1) * np.uint8(LINE_LOST))
            values = formula.evaluate({name: work.held[:, i] for name, i in zip(formula.names, used, strict=True)})
            work.values[:, column] = np.where((worst & CODE_MASK) <= UNCERTAIN, values, np.nan)
            work.quality[:, column] = worst
            _validate(plant, stack.columns, work, [column])
            work.held[:, column], work.held_quality[:, column] = work.values[:, column], work.quality[:, column]
            work.quality[~touched, column] = np.where(vouched[~touched], CONFIRMED, HOLD)
            work.values[~touched, column] = np.nan
            computed.append(column)
            state.held[machine.start + offset] = work.held[-1, column]
            state.held_quality[machine.start + offset] = work.held_quality[-1, column]
    if computed:
        spoken = (work.quality[:, computed] == CONFIRMED) | ((work.quality[:, computed] & CODE_MASK) != HOLD)
        known = _judgeable(plant, stack, work.held_quality)
        work.good[:, computed] = spoken & known[:, computed]
        _seen(plant, state, stack, work)


def _modes(plant: Plant, state: JudgeState, stack: _Stack, work: _Work) -> list[npt.NDArray[np.int16]]:
    """The operating state of each machine in each row; the machine's own is brought forward in `_detect`."""
    rows = len(work.values)
    found = []
    known: Bools | None = None
    for machine, edge in zip(stack.machines, stack.edges.tolist(), strict=True):
        before = state.mode[machine.index]
        if not machine.conditions:
            found.append(np.full(rows, before, dtype=np.int16))
            continue
        if known is None:
            known = _judgeable(plant, stack, work.held_quality)
        mode = np.full(rows, UNKNOWN, dtype=np.int16)
        waiting = np.ones(rows, dtype=np.bool_)
        decided = np.zeros(rows, dtype=np.bool_)
        for i, (condition, until) in enumerate(zip(machine.conditions, machine.until, strict=True)):
            true, decidable = _truth(condition, edge, known, work)
            if until is not None:
                ends, also = _truth(until, edge, known, work)
                true = _begun(state.begun, machine.modes.start + 1 + i, true, ends)
                decidable |= also
            true &= waiting
            mode[true] = i
            waiting &= ~true
            decided |= decidable
        if not decided.all():  # none decidable: the state stays
            last = _last_row(decided[:, None])[:, 0]
            mode = np.where(last < 0, before, mode[np.maximum(last, 0)]).astype(np.int16)
        _count(state, machine, mode, decided, _line(work.step_us, edge))
        found.append(mode)
    return found


def _truth(condition: Condition, edge: int, known: Bools, work: _Work) -> tuple[Bools, Bools]:
    """(rows,) where it is true, and where it can be decided."""
    inputs, expression = condition
    values = {
        name: np.where(known[:, edge + offset], work.held[:, edge + offset], np.nan)
        for name, offset in zip(expression.names, inputs, strict=True)
    }
    truth = expression.evaluate(values)
    decidable = ~np.isnan(truth)
    return decidable & (truth != 0), decidable


def _begun(begun: Bools, place: int, begins: Bools, ends: Bools) -> Bools:
    """(rows,) where a state with an `until` holds: from where it begins to where it ends; what begins it is the stronger."""
    last = _last_row((begins | ends)[:, None])[:, 0]
    holds = np.where(last < 0, begun[place], begins[np.maximum(last, 0)])
    begun[place] = holds[-1]
    return holds


def _count(state: JudgeState, machine: Machine, mode: npt.NDArray[np.int16], decided: Bools, step_us: Ints) -> None:
    """How long each operating state lasted. A step belongs to the state that it began in, and counts when the row that ends
    it can decide the state again: hours in which nothing was known are nobody's.
    """
    before = np.concatenate((state.mode[machine.index : machine.index + 1], mode[:-1]))
    counts = decided & (before != UNDECIDED)
    if counts.any():
        # Exact: whole µs below 2^53 as float64.
        passed = np.bincount(before[counts] + 1, weights=step_us[counts], minlength=len(machine.states) + 1)
        state.mode_us[machine.modes] += passed.astype(np.int64)


def _line(array: Ints, column: int) -> Ints:
    """(rows,) one column of an array that may be broadcast along the columns."""
    return array[:, column if array.shape[1] > 1 else 0]


def hours(state: JudgeState, machine: Machine) -> dict[str, float]:
    """For how many hours the machine was in each of its operating states while that was known; {} without states."""
    names = ("unknown", *machine.states) if machine.states else ()
    return {name: us / 3.6e9 for name, us in zip(names, state.mode_us[machine.modes].tolist(), strict=True)}


def _detect(
    plant: Plant, state: JudgeState, stack: _Stack, work: _Work, modes: list[npt.NDArray[np.int16]]
) -> list[Change]:
    """Run the detectors over stretches in which no operating state changes: norms hold for a whole stretch."""
    known = _judgeable(plant, stack, work.held_quality)
    rows = len(known)
    if len(stack.machines) > 1:
        entered = np.zeros(len(stack.machines), dtype=np.bool_)
        for place, (machine, mode, frame) in enumerate(zip(stack.machines, modes, stack.frames, strict=True)):
            if machine.conditions:
                entered[place] = _enter(state, machine, int(mode[0]), int(frame.t[0]))
        until = np.repeat(state.settle_until[stack.indices], stack.sizes)[None, :]
        of_columns = np.repeat(entered, stack.sizes)
        return _run(plant, state, stack, work, known, work.t >= until, of_columns, slice(0, 1))
    machine, mode = stack.machines[0], modes[0]
    cuts = [0, *(np.flatnonzero(mode[1:] != mode[:-1]) + 1).tolist(), rows] if machine.conditions else [0, rows]
    changes: list[Change] = []
    for first, stop in pairwise(cuts):
        enters = bool(machine.conditions) and _enter(state, machine, int(mode[first]), int(work.t[first, 0]))
        armed = work.t[first:stop] >= state.settle_until[machine.index]
        of_columns = np.full(known.shape[1], enters)
        changes += _run(plant, state, stack, work, known, armed, of_columns, slice(first, stop))
    return changes


def _enter(state: JudgeState, machine: Machine, mode: int, t: int) -> bool:
    """The machine is in this operating state from t on: its norms come into force, and it settles. Returns if it is new."""
    before = int(state.mode[machine.index])
    if mode == before:
        return False
    state.mode[machine.index] = mode
    if before != UNDECIDED:
        state.settle_until[machine.index] = t + machine.settle_us
    for norms, its in zip(state.norms, machine.norms[max(mode, UNKNOWN) + 1], strict=True):
        for part in fields(norms):
            getattr(norms, part.name)[..., machine.columns] = getattr(its, part.name)
    return True


def _run(
    plant: Plant,
    state: JudgeState,
    stack: _Stack,
    work: _Work,
    known: Bools,
    armed: Bools,
    entered: Bools,
    rows: slice,
) -> list[Change]:
    block = Block(
        columns=stack.columns,
        values=work.held[rows],
        known=known[rows],
        good=work.good[rows],
        fresh=work.good[rows] & ((work.quality[rows] & CODE_MASK) != HOLD),
        late=work.late[rows],
        seen_ts=work.seen_ts[rows],
        step_us=work.step_us[rows],
        ts=work.ts[rows],
        armed=armed,
        entered=entered,
    )
    changes: list[Change] = []
    for detector, memory, norms in zip(plant.detectors, state.detectors, state.norms, strict=True):
        changes += detector.step(memory, norms, block)
    if rows.start:
        changes = [replace(change, row=change.row + rows.start) for change in changes]
    return sorted(changes, key=lambda change: (change.row, change.column, change.kind))


# --- what is rare: events -------------------------------------------------------------------------------------------


def _event(
    plant: Plant,
    state: JudgeState,
    stack: _Stack,
    places: Mapping[int, int],
    work: _Work,
    modes: list[npt.NDArray[np.int16]],
    change: Change,
    epoch: str,
) -> Event | None:
    """Bring the warning of this change one step on, and say so."""
    key = (change.column, change.kind)
    standing = state.standing.get(key)
    was = WarningState.NORMAL if standing is None else standing.state
    level = 0 if standing is None or was is WarningState.RETURNED_UNACKNOWLEDGED else standing.level
    what = lifecycle.input_of(level, change.level, change.again)
    found = None if what is None else lifecycle.step(was, what, bool(plant.required[change.column]))
    if found is None:
        return None
    now, told = found
    machine, signal = plant.signal_of(change.column)
    place = places[machine.index]
    column = int(stack.edges[place]) + change.column - machine.start
    mode = int(modes[place][change.row])
    # What a reading caused has that reading's time; what the passing of time caused (a delay, silence) has its row's.
    stamps = work.ts if work.good[change.row, column] else work.row_ts
    ts, value = _of(stamps, change.row, column), float(work.held[change.row, column])
    began = _moved(change.since, state.moved)
    born = began if standing is None else standing.born
    since = began if told is EventKind.RAISED or standing is None else standing.since
    worst = change.level or (standing.level if standing else 1)
    severity = SEVERITIES[worst]
    band = bands(machine, change.column - machine.start, mode)
    limit = band.get(severity, {}).get(change.kind) if change.kind in (Kind.HIGH, Kind.LOW) else change.limit
    # The value of a line is why it is lost, that of a certificate how soon it ends, of the host how bad it is: no measurements.
    health = change.kind == Kind.HEALTH
    lost = health and not signal.in_words
    number = None if np.isnan(value) or health else value
    why = int(value) if lost and value > 0 else int(work.held_quality[change.row, column])
    words = stack.frames[place].words
    said = words[change.row][change.column - machine.start] if words else ""
    silent = int(_of(work.t, change.row, column) - work.seen_t[change.row, column])
    event = Event(
        event=told,
        id=standing.event.id if standing else _id(epoch, machine, signal, change, born),
        ts=ts,
        machine=machine.name,
        signal=signal.name,
        kind=change.kind,
        severity=severity,
        state=now,
        value=number,
        unit=signal.unit,
        limit=limit,
        norm=band,
        since=since,
        operating_state=mode_name(machine, mode),
        message=texts.in_words(plant.language, told, signal.title, said)
        if signal.in_words
        else texts.message(
            plant.language,
            told,
            change.kind,
            title=signal.title,
            unit=signal.unit,
            value=number,
            limit=limit,
            silent_us=silent,
            reason=said or _why_silent(why),
            why=dict(change.why),
            line=texts.LostLine(signal.behind, texts.moment(since, ts, plant.timezone), ts - since) if lost else None,
        ),
        advice=advice_of(signal, plant.language),
        count=(standing.count + (told is EventKind.RAISED)) if standing else 1,
        suppressed=signal.behind if lost else None,
        column=signal.column,
        why=dict(change.why),
        t=_of(work.t, change.row, column),
    )
    if now is WarningState.NORMAL:
        state.standing.pop(key, None)
    else:
        state.standing[key] = Standing(now, worst, since, born, event.count, event)
    return event


def _why_silent(held_quality: int) -> str:
    """Why there is no good reading. A good one that is merely held (a formula of slow inputs) says: nothing came."""
    return word_of(MISSING if held_quality in (GOOD, CLOCK) else held_quality)


def _id(epoch: str, machine: Machine, signal: Signal, change: Change, born: int) -> str:
    return warning_id(epoch, machine.name, signal.name, change.kind, born)


def warning_id(epoch: str, machine: str, signal: str, kind: str, born: int) -> str:
    """Deterministic, so that a consumer knows a warning again whoever tells of it (contract §6, `id`). born: UTC µs."""
    return str(uuid.uuid5(NAMESPACE, f"{epoch}/{machine}/{signal}/{kind}/{born}"))


def _of(array: Ints, row: int, column: int) -> int:
    """One element of an array of which rows or columns may be broadcast."""
    line = array[row if array.shape[0] > 1 else 0]
    return int(line[column if line.shape[0] > 1 else 0])


def _judged(stack: _Stack, work: _Work, modes: list[npt.NDArray[np.int16]]) -> list[JudgedFrame]:
    """Cut the stack into the machines' frames again."""
    speaks = ((work.quality & CODE_MASK) != HOLD) & (work.quality != RESTART)
    publish = np.logical_or.reduceat(speaks, stack.edges, axis=1) & ~np.array([m.own for m in stack.machines])
    judged = []
    for i, (frame, edge, size) in enumerate(zip(stack.frames, stack.edges.tolist(), stack.sizes.tolist(), strict=True)):
        columns = slice(edge, edge + size)
        judged.append(
            JudgedFrame(
                Frame(
                    frame.machine,
                    frame.t,
                    frame.ts,
                    work.values[:, columns],
                    work.quality[:, columns],
                    frame.at,
                    frame.tick,
                    frame.words,
                    unset=frame.unset,
                ),
                np.maximum(modes[i], UNKNOWN),
                publish[:, i],
            )
        )
    return judged
