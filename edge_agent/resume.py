"""Where a run begins: the judge's state as the last run left it, with what was kept since judged again (law 3)."""

import json

import structlog

from edge_agent import downtime, judge, snapshot
from edge_agent.contract import Frame
from edge_agent.plant import Plant
from edge_agent.records import Command, JudgedFrame
from edge_agent.store.configured import CONFIGURE
from edge_agent.store.journal import Recovery

log = structlog.get_logger(__name__)

REJUDGED_AT_ONCE = 5_000
"""Frames of the journal in one step."""


def replayed(plant: Plant, recovery: Recovery, rows: dict[str, int], ticked: str = "") -> judge.JudgeState:
    """The last snapshot with the journal since judged again; its events are in the journal already.

    rows: is filled with the agent's time of each machine's last row. ticked: those of machines whose last was a tick.
    """
    state = judge.start(plant)
    if recovery.snapshot is not None:
        try:
            state = snapshot.load_any(plant, recovery.snapshot)
        except snapshot.SnapshotDamaged as error:
            log.error("snapshot_damaged", fault=str(error))
    rows |= downtime.of_snapshot(plant, state) | (json.loads(ticked) if ticked else {})
    frames: list[Frame] = []
    for item in (*downtime.noted(recovery.items, rows), None):
        if isinstance(item, JudgedFrame) and len(frames) < REJUDGED_AT_ONCE:
            frames += [item.frame] if _fits(plant, item.frame) else []
            continue
        # Stacked: however they are cut, the result is equal.
        state, _ = judge.step(plant, state, frames, recovery.epoch)
        frames = [item.frame] if isinstance(item, JudgedFrame) and _fits(plant, item.frame) else []
        if isinstance(item, Command) and item.command != CONFIGURE:
            try:
                state = judge.repeat(plant, state, item)
            except (KeyError, ValueError) as error:
                log.error("command_not_repeated", command=item.command, fault=str(error))
    judge.numbered(state, recovery.numbers)
    return state


def _fits(plant: Plant, frame: Frame) -> bool:
    """What the parts of a line are is said by its driver, and another release of it may say otherwise."""
    machine = None if frame.late else plant.by_name.get(frame.machine)  # what was late is not judged now either
    return machine is not None and frame.values.shape[1] == machine.stop - machine.start
