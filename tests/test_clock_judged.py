"""What a clock that is set means for warnings: they move with it, the same after a restart, and no verdict changes."""

from dataclasses import replace

import numpy as np

from edge_agent import judge, snapshot
from edge_agent.contract import Frame, Quality
from edge_agent.records import SET_CLOCK, Command
from tests import plants
from tests.plants import band, norm, signal
from tests.rows import T0, Machine

SECOND = plants.SECOND
BY_US = 1_795_000_000 * SECOND
FROM_US = 60 * SECOND


def in_1970(*signals: object) -> Machine:
    one = Machine(*signals)  # type: ignore[arg-type]
    one.ts = FROM_US
    return one


def set_clock(one: Machine) -> Command:
    about = {"from_us": FROM_US, "to_us": one.ts, "from_t": T0 - SECOND, "by_us": BY_US}
    one.state = judge.set_clock(one.state, **about)
    one.ts += BY_US
    return Command(SET_CLOCK, one.ts, one.t, "", "", "", {**about})


def test_a_standing_warning_and_one_that_is_pending_move_with_the_clock() -> None:
    one = in_1970(signal("oil", norm(band(high=60))), signal("slow", norm(band(high=60, on=5))))
    (raised,) = one.row(61.0, 61.0)
    assert raised.since == FROM_US + SECOND
    set_clock(one)
    (standing,) = judge.active(one.plant, one.state)["m"]
    assert (standing.since, standing.ts, standing.id) == (raised.since + BY_US, raised.ts + BY_US, raised.id)
    pending = [event for _ in range(5) for event in one.row(61.0, 61.0)]
    assert [(e.signal, e.since) for e in pending] == [("slow", FROM_US + SECOND + BY_US)]
    cleared = one.row(50.0, 50.0)
    assert [(e.signal, e.id, e.since) for e in cleared] == [
        ("oil", raised.id, raised.since + BY_US), ("slow", pending[0].id, pending[0].since),
    ]  # fmt: skip


def test_what_began_before_the_clock_was_lost_stays() -> None:
    one = Machine(signal("oil", norm(band(high=60))))
    (raised,) = one.row(61.0)
    one.t += 60 * SECOND
    state = judge.set_clock(one.state, raised.since, raised.since + SECOND, one.t, BY_US)
    assert judge.active(one.plant, state)["m"][0] == raised


def test_the_journal_judged_again_gives_the_same_to_the_bit_with_a_snapshot_before_or_after() -> None:
    one = in_1970(signal("oil", norm(band(high=60, on=3))))
    early = late = snapshot.dump(one.plant, one.state)
    frames: list[Frame | Command] = []
    for place in range(12):
        one.row(61.0 if place % 7 else 50.0)
        assert one.judged is not None
        frames.append(one.judged.frame)
        if place == 1:
            frames.append(set_clock(one))
            late = snapshot.dump(one.plant, one.state)
    after = snapshot.dump(one.plant, one.state)
    for blob, since in ((early, 0), (late, 3)):
        state = snapshot.load(one.plant, blob)
        for item in frames[since:]:
            if isinstance(item, Command):
                state = judge.repeat(one.plant, state, item)
            else:
                state, _ = judge.step(one.plant, state, [item], "k3f9")
        assert snapshot.dump(one.plant, state) == after


def test_the_mark_of_the_clock_changes_no_verdict() -> None:
    """The judge sees what the source said; the mark is put on where readings leave."""
    marked, plain = (Machine(signal("oil", norm(band(high=60, on=1)))) for _ in range(2))
    for value in (50.0, 61.0, 61.0, 61.0, 50.0):
        assert [e.event for e in marked.row((value, Quality.CLOCK))] == [e.event for e in plain.row(value)]


def test_the_span_goes_through_the_judge() -> None:
    one = Machine(signal("oil"))
    frame = Frame("m", *(np.array([T0], np.int64),) * 2, np.array([[1.0]]), np.zeros((1, 1), np.uint8))
    _, judged = judge.step(one.plant, one.state, [replace(frame, unset=77)], "k3f9")
    assert judged.frames[0].frame.unset == 77
