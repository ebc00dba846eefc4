"""The whole agent, on the virtual clock, whose disk refuses from the start of its second life and is back a minute later."""

import contextlib

import pytest

from edge_agent.publisher import Publisher
from tests import verdict
from tests.simulator import SECOND, World, acts
from tests.test_disk_faults import refusing
from tests.test_simulator import world

pytestmark = pytest.mark.timeout(120)

DOWN_S, AWAY_S, END_S = 300, 60, 700


def played(here: World, monkeypatch: pytest.MonkeyPatch, known: str, down_s: int = DOWN_S) -> None:
    """The broker goes a minute before the cut, so that a backlog lies in the file. known: see `refusing`."""
    with contextlib.ExitStack() as refusal:

        def cut() -> str:
            refusal.enter_context(refusing(monkeypatch, known))
            return "cut"

        here.acts = acts(
            (down_s - 60, "broker falls", here.broker.fall),
            (down_s, "cut, and the disk refuses", cut),
            (down_s + 5, "broker is back", lambda: setattr(here.broker, "up", True)),
            (down_s + AWAY_S, "disk is back", refusal.close),
        )
        here.play(here.began_us + (down_s + END_S) * SECOND + SECOND // 2)


@pytest.mark.parametrize("known", ["all", "marker", "nothing"])
def test_what_waited_in_the_file_is_told_when_a_disk_that_refused_from_the_start_is_back(
    monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    with world(seed=3) as here:
        played(here, monkeypatch, known)
        assert verdict.complaints(here) == []


@pytest.mark.parametrize("known", ["marker", "nothing"])
@pytest.mark.parametrize("down_s", [290, 700])
def test_a_warning_that_stood_before_a_start_that_knew_nothing_of_it_ends_before_what_came_then(
    monkeypatch: pytest.MonkeyPatch, known: str, down_s: int
) -> None:
    """At 290 s it is told since the last snapshot, at 700 s others stand in the snapshot itself."""
    with world(seed=3) as here:
        played(here, monkeypatch, known, down_s)
        ended = [each for each in here.events() if "could not be read at the start" in each["message"]]
        assert [each["event"] for each in ended] == ["cleared"] * len(ended)
        assert len(ended) == {290: 1, 700: 2}[down_s]
        assert verdict.complaints(here) == []


def numbers(here: World) -> list[str]:
    received = verdict.Received(here.heard)
    return [*received.complaints, *verdict.missing(received), *verdict.uncounted(here, received, 0)]


def test_an_agent_that_does_not_look_into_the_file_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "look_again", lambda _: None)
    with world(seed=3) as here:
        played(here, monkeypatch, "nothing")
        assert "numbers never came" in " ".join(numbers(here))
