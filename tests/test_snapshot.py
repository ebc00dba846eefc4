"""The judge's memory: kept and found again bit for bit, and carried by name into another configuration."""

import struct
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent import judge, snapshot
from edge_agent.contract import Frame
from edge_agent.judge import JudgeState
from edge_agent.plant import Plant
from edge_agent.records import Event
from edge_agent.snapshot import SnapshotDamaged
from tests import plants
from tests.plants import band, machine, norm, signal

SECOND = plants.SECOND
HOT = norm(band(high=60, on=3, off=3), band(high=70), acknowledge="required")
STATES = {"running": "speed > 10", "stopped": "speed <= 10"}


def press(*more: SimpleNamespace, states: dict[str, str] | None = None, unit: str = "°C") -> SimpleNamespace:
    return machine(
        "press",
        signal("oil", HOT, unit=unit),
        signal("speed"),
        *more,
        states=STATES if states is None else states,
        settle=5,
    )


def step(plant: Plant, state: JudgeState, second: float, **cells: list[float]) -> list[Event]:
    """One row of each machine that is named."""
    at = np.array([round((1000 + second) * SECOND)], dtype=np.int64)
    frames = [
        Frame(name, at, at, np.array([values]), np.where(np.isnan([values]), 3, 0).astype(np.uint8))
        for name, values in cells.items()
    ]
    return judge.step(plant, state, frames, "e")[1].events


@pytest.fixture
def hot() -> tuple[Plant, JudgeState]:
    """A press that runs, with an unacknowledged warning of its oil and a pump beside it."""
    plant = plants.plant(press(), machine("pump", signal("flow", norm(band(low=5)))))
    state = judge.start(plant)
    for second in range(5):
        step(plant, state, second, press=[65.0, 50.0], pump=[3.0])
    return plant, state


def standing(plant: Plant, state: JudgeState) -> list[tuple[str, str, str]]:
    return [(e.machine, e.signal, e.state.value) for its in judge.active(plant, state).values() for e in its]


# --- as bytes ---


def test_what_is_loaded_is_what_was_kept(hot: tuple[Plant, JudgeState]) -> None:
    plant, state = hot
    blob = snapshot.dump(plant, state)
    again = snapshot.load(plant, blob)
    assert snapshot.dump(plant, again) == blob
    assert again.standing == state.standing
    assert [np.array_equal(a, b) for a, b in zip(vars_of(again), vars_of(state), strict=True)] == [True] * 10


def vars_of(state: JudgeState) -> list[npt.NDArray[Any]]:
    return [np.nan_to_num(getattr(state, name), nan=-1) for name in (*snapshot.COLUMNS, *snapshot.MACHINES)]


def test_the_norms_in_force_are_those_of_the_operating_state(hot: tuple[Plant, JudgeState]) -> None:
    plant = plants.plant(
        machine(
            "m",
            signal("speed"),
            signal("t", norm(band(high=60), by_state={"stopped": norm(band(high=40))})),
            states=STATES,
        )
    )
    state = judge.start(plant)
    step(plant, state, 0, m=[0.0, 20.0])
    again = snapshot.load(plant, snapshot.dump(plant, state))
    assert [e.limit for e in step(plant, again, 1, m=[0.0, 50.0])] == [40]


@pytest.mark.parametrize("cut", [0, 3, 11, 12, 40, -1])
def test_a_snapshot_that_is_cut_off_is_refused(hot: tuple[Plant, JudgeState], cut: int) -> None:
    plant, state = hot
    with pytest.raises(SnapshotDamaged):
        snapshot.load(plant, snapshot.dump(plant, state)[:cut])


def test_every_byte_that_is_changed_is_noticed(hot: tuple[Plant, JudgeState]) -> None:
    plant, state = hot
    blob = snapshot.dump(plant, state)
    before = snapshot.dump(plant, state)
    for place in range(len(blob)):
        wrong = bytearray(blob)
        wrong[place] ^= 0x40
        with pytest.raises(SnapshotDamaged):
            snapshot.load(plant, bytes(wrong))
    assert snapshot.dump(plant, state) == before


def test_a_snapshot_of_another_plant_is_refused(hot: tuple[Plant, JudgeState]) -> None:
    plant, state = hot
    with pytest.raises(SnapshotDamaged, match="another shape"):
        snapshot.load(plants.plant(press()), snapshot.dump(plant, state))


def test_a_sound_checksum_over_nonsense_is_refused(hot: tuple[Plant, JudgeState]) -> None:
    for raw in (
        b"",
        b"{}",
        b'{"arrays":[["held","<f8",[9999]]],"standing":[]}',
        b'{"arrays":[["nothing","<f8",[0]]]}',
        b"[1]",
    ):
        body = zlib.compress(raw)
        with pytest.raises(SnapshotDamaged):
            snapshot.load(hot[0], snapshot.HEAD.pack(snapshot.MAGIC, zlib.crc32(body), len(raw)) + body)
    with pytest.raises(struct.error):
        snapshot.HEAD.unpack(b"short")


# --- into another configuration ---


def moved(old: Plant, state: JudgeState, *machines: SimpleNamespace) -> tuple[Plant, JudgeState, list[Event]]:
    plant = plants.plant(*machines)
    new, orphans = snapshot.migrate(old, state, plant)
    return plant, new, orphans


def test_unchanged_signals_keep_readings_and_warnings_wherever_they_stand_now(hot: tuple[Plant, JudgeState]) -> None:
    plant, state, orphans = moved(
        *hot,
        machine("new", signal("x")),
        machine("pump", signal("new"), signal("flow", norm(band(low=5)))),
        machine("press", signal("speed"), signal("oil", HOT, unit="°C"), states=STATES, settle=5),
    )
    assert orphans == []
    assert standing(plant, state) == [("pump", "flow", "unacknowledged"), ("press", "oil", "unacknowledged")]
    values, _ = judge.readings(state, plant.by_name["press"])
    assert values.tolist() == [50.0, 65.0]
    assert judge.mode_name(plant.by_name["press"], int(state.mode[2])) == "running"
    assert step(plant, state, 5, press=[50.0, 65.0], pump=[1.0, 3.0]) == []


def test_a_run_goes_on_through_the_change(hot: tuple[Plant, JudgeState]) -> None:
    old, state = hot
    old_id = judge.active(old, state)["press"][0].id
    step(old, state, 5, press=[50.0, 50.0])
    step(old, state, 6, press=[50.0, 50.0])
    plant, new, _ = moved(old, state, machine("other", signal("x")), press())
    step(plant, new, 7, press=[50.0, 50.0])
    (event,) = step(plant, new, 8, press=[50.0, 50.0])
    assert (event.event, event.state, event.since) == ("cleared", "returned_unacknowledged", 1000 * SECOND)
    assert event.id == old_id


def test_a_changed_limit_is_judged_with_the_next_reading(hot: tuple[Plant, JudgeState]) -> None:
    old, state = hot
    wider = machine("press", signal("oil", norm(band(high=68), acknowledge="required"), unit="°C"), signal("speed"))
    plant, new, _ = moved(old, state, wider, machine("pump", signal("flow", norm(band(low=5)))))
    assert standing(plant, new)[0] == ("press", "oil", "unacknowledged")
    (event,) = step(plant, new, 5, press=[65.0, 50.0])
    assert (event.event, event.limit) == ("cleared", 68)


def test_a_signal_with_another_unit_starts_anew_and_its_warning_is_handed_back(hot: tuple[Plant, JudgeState]) -> None:
    plant, state, orphans = moved(*hot, press(unit="K"), machine("pump", signal("flow", norm(band(low=5)))))
    assert [(e.signal, e.unit) for e in orphans] == [("oil", "°C")]
    assert standing(plant, state) == [("pump", "flow", "unacknowledged")]
    assert np.isnan(judge.readings(state, plant.by_name["press"])[0][0])
    assert step(plant, state, 5, press=[65.0, 50.0]) == []
    step(plant, state, 7, press=[65.0, 50.0])
    (event,) = step(plant, state, 8, press=[65.0, 50.0])
    assert (event.event, event.since) == ("raised", 1005 * SECOND)


def test_warnings_of_removed_signals_and_machines_are_handed_back(hot: tuple[Plant, JudgeState]) -> None:
    plant, state, orphans = moved(*hot, machine("press", signal("speed")))
    assert {(e.machine, e.signal, str(e.kind)) for e in orphans} == {("press", "oil", "high"), ("pump", "flow", "low")}
    assert state.standing == {}
    assert step(plant, state, 5, press=[50.0]) == []


def test_a_renamed_operating_state_is_decided_anew_without_settling(hot: tuple[Plant, JudgeState]) -> None:
    plant, state, _ = moved(*hot, press(states={"busy": "speed > 10", "stopped": "speed <= 10"}))
    assert judge.mode_name(plant.by_name["press"], int(state.mode[0])) == "unknown"
    (event,) = step(plant, state, 5, press=[75.0, 50.0])
    assert (event.event, event.operating_state) == ("escalated", "busy")


def test_a_state_that_only_moved_is_kept_and_its_settling_goes_on(hot: tuple[Plant, JudgeState]) -> None:
    old, state = hot
    step(old, state, 5, press=[65.0, 0.0])  # stopped: settles until 10
    plant, new, _ = moved(old, state, press(states=dict(reversed(STATES.items()))))
    assert judge.mode_name(plant.by_name["press"], int(new.mode[0])) == "stopped"
    assert step(plant, new, 9, press=[75.0, 0.0]) == []
    assert [e.event for e in step(plant, new, 10, press=[75.0, 0.0])] == ["escalated"]


def test_states_may_go_altogether(hot: tuple[Plant, JudgeState]) -> None:
    plant, state, _ = moved(*hot, press(states={}))
    assert judge.mode_name(plant.by_name["press"], int(state.mode[0])) is None
    assert [e.operating_state for e in step(plant, state, 5, press=[75.0, 0.0])] == [None]


def test_what_was_migrated_can_be_kept_and_the_old_state_is_untouched(hot: tuple[Plant, JudgeState]) -> None:
    old, state = hot
    before = snapshot.dump(old, state)
    plant, new, _ = moved(old, state, press(signal("extra")))
    assert snapshot.dump(plant, snapshot.load(plant, snapshot.dump(plant, new))) == snapshot.dump(plant, new)
    step(plant, new, 5, press=[50.0, 0.0, 1.0])
    assert snapshot.dump(old, state) == before
