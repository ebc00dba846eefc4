"""The judge's state as bytes for the journal, and its way from one configuration to the next. Pure.

Rule 1: what is loaded is bit-equal to what was dumped. Rule 2: a signal keeps its state as long as its machine, name and
unit stay; everything else begins anew.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from edge_agent import judge
from edge_agent.contract import Detector
from edge_agent.judge import JudgeState, Standing
from edge_agent.plant import Machine, Plant, without_certificates, without_host, without_own
from edge_agent.records import Event, EventKind, Severity, WarningState

MAGIC = b"EAJ1"
HEAD = struct.Struct("<4sII")
"""Magic, CRC-32 of the rest, length of the JSON header."""
COLUMNS = ("held", "held_quality", "seen_t", "seen_ts", "covered_us", "faded", "stamp")
MACHINES = ("last_t", "mode", "settle_until")
MODES = ("begun", "mode_us")


class SnapshotDamaged(Exception):
    """The bytes are not a snapshot of this plant."""


def dump(plant: Plant, state: JudgeState) -> bytes:
    """The whole state but the norms in force, which follow from the plant and the operating states."""
    arrays = [(name, np.ascontiguousarray(array)) for name, array in _arrays(plant, state)]
    header = orjson.dumps(
        {
            "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays],
            "standing": [
                [column, kind, s.state, s.level, s.since, s.born, s.count, _plain(s.event)]
                for (column, kind), s in state.standing.items()
            ],
            "moved": state.moved,
        }
    )
    body = zlib.compress(b"".join([header, *(array.tobytes() for _, array in arrays)]), 1)
    return HEAD.pack(MAGIC, zlib.crc32(body), len(header)) + body


def load(plant: Plant, blob: bytes) -> JudgeState:
    """The state that `dump` wrote for this plant. Raises SnapshotDamaged; nothing is half loaded."""
    try:
        magic, check, length = HEAD.unpack_from(blob)
        body = blob[HEAD.size :]
        if magic != MAGIC or zlib.crc32(body) != check:
            raise SnapshotDamaged("checksum")
        raw = zlib.decompress(body)
        header = orjson.loads(raw[:length])
        state = judge.start(plant)
        wanted = dict(_arrays(plant, state))
        position = length
        for name, dtype, shape in header["arrays"]:
            array = np.frombuffer(raw, dtype=np.dtype(dtype), count=int(np.prod(shape)), offset=position).reshape(shape)
            position += array.nbytes
            if name not in wanted and "." in name:
                continue  # of a detector that nobody asks for any more, or that is no longer installed
            target = wanted[name]
            if target.shape != array.shape or target.dtype != array.dtype:
                raise SnapshotDamaged(f"{name} has another shape")
            target[...] = array
        for column, kind, now, level, since, born, count, event in header["standing"]:
            state.standing[column, kind] = Standing(WarningState(now), level, since, born, count, event_of(event))
        state.moved = [(first, last, by) for first, last, by in header.get("moved", ())]
    except (struct.error, zlib.error, ValueError, KeyError, TypeError) as error:
        raise SnapshotDamaged(str(error)) from error
    state.norms = judge.norms_in_force(plant, state.mode)
    return state


def standing(blob: bytes) -> list[Event]:
    """The last event of each warning that stood, whatever plant it was. Raises SnapshotDamaged."""
    try:
        magic, check, length = HEAD.unpack_from(blob)
        if magic != MAGIC or zlib.crc32(blob[HEAD.size :]) != check:
            raise SnapshotDamaged("checksum")
        header = orjson.loads(zlib.decompress(blob[HEAD.size :])[:length])
        return [event_of(event) for *_, event in header["standing"]]
    except (struct.error, zlib.error, ValueError, KeyError, TypeError) as error:
        raise SnapshotDamaged(str(error)) from error


def load_any(plant: Plant, blob: bytes) -> JudgeState:
    """`load`, also what a release wrote whose plant had no machine of the agent's own, or one without the host or without
    certificates.

    Raises SnapshotDamaged.
    """
    try:
        return load(plant, blob)
    except SnapshotDamaged:
        if plant.own is None:
            raise
    for before in (without_host(plant), without_certificates(plant)):
        with suppress(SnapshotDamaged):
            return migrate(before, load(before, blob), plant)[0]
    before = without_own(plant)
    return migrate(before, load(before, blob), plant)[0]


def migrate(old_plant: Plant, old: JudgeState, plant: Plant) -> tuple[JudgeState, list[Event]]:
    """Carry the state over to another configuration. Returns it and the last events of warnings that lost their signal."""
    new = judge.start(plant)
    pairs = _common_columns(old_plant, plant)
    here, there = _indices([b for _, b in pairs]), _indices([a for a, _ in pairs])
    for name in COLUMNS:
        getattr(new, name)[here] = getattr(old, name)[there]
    memories = {_key(detector): memory for detector, memory in zip(old_plant.detectors, old.detectors, strict=True)}
    for detector, memory in zip(plant.detectors, new.detectors, strict=True):
        before = memories.get(_key(detector))
        if before is not None:
            for part in fields(memory):
                getattr(memory, part.name)[..., here] = getattr(before, part.name)[..., there]
    for machine in plant.machines:
        was = old_plant.by_name.get(machine.name)
        if was is None:
            continue
        new.last_t[machine.index] = old.last_t[was.index]
        mode = int(old.mode[was.index])
        known = mode < 0 or was.states[mode] in machine.states
        if known and machine.states:
            new.mode[machine.index] = machine.states.index(was.states[mode]) if mode >= 0 else mode
            new.settle_until[machine.index] = old.settle_until[was.index]
        _carry_modes(was, old, machine, new)
    new.norms, new.moved = judge.norms_in_force(plant, new.mode), list(old.moved)
    moved = dict(pairs)
    orphans = []
    for (column, kind), standing in old.standing.items():
        if column in moved:
            new.standing[moved[column], kind] = standing
        else:
            orphans.append(standing.event)
    return new, orphans


def _carry_modes(was: Machine, old: JudgeState, machine: Machine, new: JudgeState) -> None:
    """What is kept of each operating state goes with its name; `unknown` stays unknown."""
    if not machine.states or not was.states:
        return
    before = {name: was.modes.start + place for place, name in enumerate(("", *was.states))}
    for place, name in enumerate(("", *machine.states), machine.modes.start):
        if name in before:
            new.begun[place], new.mode_us[place] = old.begun[before[name]], old.mode_us[before[name]]


def event_of(plain: dict[str, Any]) -> Event:
    """The event that `_plain` wrote."""
    return Event(
        **{
            **plain,
            "event": EventKind(plain["event"]),
            "severity": Severity(plain["severity"]),
            "state": WarningState(plain["state"]),
        }
    )


def _plain(event: Event) -> dict[str, Any]:
    return {part.name: getattr(event, part.name) for part in fields(event)}


def _arrays(plant: Plant, state: JudgeState) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name in (*COLUMNS, *MACHINES, *MODES):
        yield name, getattr(state, name)
    for detector, memory in zip(plant.detectors, state.detectors, strict=True):
        for part in fields(memory):
            yield f"{_key(detector)}.{part.name}", getattr(memory, part.name)


def _key(detector: Detector) -> str:
    return "+".join(detector.kinds)


def _common_columns(old: Plant, new: Plant) -> list[tuple[int, int]]:
    pairs = []
    for machine in new.machines:
        was = old.by_name.get(machine.name)
        if was is None:
            continue
        before = {signal.name: (was.start + i, signal.unit) for i, signal in enumerate(was.signals)}
        for i, signal in enumerate(machine.signals):
            column, unit = before.get(signal.name, (-1, ""))
            if column >= 0 and unit == signal.unit:
                pairs.append((column, machine.start + i))
    return pairs


def _indices(columns: list[int]) -> npt.NDArray[np.intp]:
    return np.array(columns, dtype=np.intp)
