"""The whole agent, on the virtual clock, that is stopped again and again before anybody sets the clock of its host."""

import contextlib

import pytest

from edge_agent import downtime
from tests import verdict
from tests.simulator import SECOND, World, acts
from tests.test_disk_faults import refusing
from tests.test_simulator import world

pytestmark = pytest.mark.timeout(120)

YEARS_US = 40 * 365 * 86_400 * SECOND
CUT_S, AGAIN_S, SET_S, END_S = 100, (130, 170), 200, 300


def played(here: World, *, set_while_down: bool, at_cut: contextlib.AbstractContextManager[None]) -> None:
    """The clock is at 1970 from the first cut on, and is set at the last one, or a while after it."""
    with contextlib.ExitStack() as stack:

        def cut() -> str:
            here.step_wall(-YEARS_US)
            here.boot = "boot-1"
            stack.enter_context(at_cut)
            return "cut"

        def again(last: bool) -> str:
            if last and set_while_down:
                here.step_wall(YEARS_US)
            return "cut"

        here.acts = acts(
            (CUT_S, "cut", cut),
            (CUT_S + 12, "disk is back, where it was away", stack.close),
            *((at, "cut", lambda at=at: again(at == AGAIN_S[-1])) for at in AGAIN_S),
            (SET_S, "clock is set", lambda: None if set_while_down else here.step_wall(YEARS_US)),
        )
        here.play(here.began_us + END_S * SECOND + SECOND // 2)


@pytest.mark.parametrize("disk", ["well", "marker", "nothing"])
@pytest.mark.parametrize("set_while_down", [False, True])
def test_every_stop_is_told_by_the_time_the_clock_is_set_however_many_there_were_before(
    monkeypatch: pytest.MonkeyPatch, set_while_down: bool, disk: str
) -> None:
    with world(seed=5) as here:
        away = contextlib.nullcontext() if disk == "well" else refusing(monkeypatch, disk)
        played(here, set_while_down=set_while_down, at_cut=away)
        stops = [gap["count"] for gap in verdict.Received(here.heard).of("gaps")]
        assert len(stops) == 1 + len(AGAIN_S)
        assert verdict.complaints(here) == []


def test_an_agent_that_leaves_to_the_wall_clock_what_the_monotonic_one_knows_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downtime, "is_countable", lambda _before, _life, _now_us: False)
    with world(seed=5) as here:
        played(here, set_while_down=False, at_cut=contextlib.nullcontext())
        assert "that were due" in " ".join(verdict.complaints(here))
