"""The host's clock as the agent trusts it: set or not, kept right or not, its steps."""

import random

import pytest

from edge_agent import clock as clocks
from edge_agent.clock import RELEASED_US
from edge_agent.contract import SECOND_US, Quality
from edge_agent.texts import LANGUAGES
from edge_agent.timekeeping import ALONE, ALONE_US, STANDS_US, STEPPED, Change, ClockState, Timekeeper
from tests.conftest import StandingClock

DAY_US = 86_400 * SECOND_US
NOW = 1_795_000_000 * SECOND_US


class Host:
    """A host whose clock is moved and stepped by hand. kept: what its kernel says of it."""

    def __init__(self, wall_us: int = NOW, kept: bool | None = True) -> None:
        self.clock, self.kept = StandingClock(wall_us), kept

    def monotonic_us(self) -> int:
        return self.clock.monotonic_us()

    def wall_us(self) -> int:
        return self.clock.wall_us()

    def cpu_s(self) -> float:
        return 0.0

    def keeper(self, floor_us: int | None = None) -> Timekeeper:
        one = Timekeeper(self, lambda: self.kept, lambda: "boot-1")
        one.trust(floor_us)
        return one


def test_a_clock_that_goes_on_changes_nothing() -> None:
    host = Host()
    keeper = host.keeper()
    for _ in range(100):
        host.clock.move(250_000)
        host.clock.step_wall(random.Random(1).randint(-5_000, 5_000))
        assert keeper.look() is None
        assert keeper.wall_us() == host.wall_us()
    assert (keeper.state, keeper.steps) == (ClockState.SYNCHRONISED, 0)


@pytest.mark.parametrize("by_s", [3_600, -86_400, 2, -2])
def test_a_step_is_taken_in_one_look_counted_and_told(by_s: int) -> None:
    host = Host()
    keeper = host.keeper()
    host.clock.move(SECOND_US)
    before = keeper.wall_us()
    host.clock.step_wall(by_s * SECOND_US)
    assert keeper.wall_us() == before, "between two looks all stamps belong together"
    assert keeper.look() == Change(by_s * SECOND_US, before, was_set=True, is_set=True)
    assert keeper.wall_us() == before + by_s * SECOND_US
    assert keeper.look() is None
    assert keeper.health()["steps"] == 1
    assert keeper.health()["last_step"]["by_s"] == by_s


def test_a_large_step_stands_for_ten_minutes_and_says_how_far_and_which_way() -> None:
    host = Host()
    keeper = host.keeper()
    host.clock.step_wall(-3 * 3_600 * SECOND_US)
    keeper.look()
    assert str(keeper.state) == "stepped"
    loss = keeper.loss("en", "Europe/Amsterdam")
    assert loss.why == STEPPED + 1
    assert loss.words == "it jumped back by 3 h at 09:06:40"
    host.clock.move(STANDS_US)
    keeper.look()
    assert str(keeper.state) == "synchronised"
    assert keeper.loss("en", "UTC").why == Quality.GOOD


@pytest.mark.parametrize("wall_us", [0, 3_600 * SECOND_US, RELEASED_US - 1])
@pytest.mark.parametrize("kept", [True, False, None])
def test_a_clock_from_before_the_release_is_not_set_whatever_the_kernel_says(wall_us: int, kept: bool | None) -> None:
    keeper = Host(wall_us, kept).keeper()
    assert not keeper.is_set
    assert keeper.health()["ne107"] == "failure"


def test_a_clock_behind_the_journal_is_not_set_unless_something_keeps_it_right() -> None:
    assert not Host(NOW, kept=None).keeper(NOW + DAY_US).is_set
    assert not Host(NOW, kept=False).keeper(NOW + DAY_US).is_set
    assert Host(NOW, kept=True).keeper(NOW + DAY_US).is_set
    assert Host(NOW, kept=False).keeper(NOW + 30 * SECOND_US).is_set, "NTP may have drawn it back a little"


def test_a_plant_without_a_time_server_is_believed_and_never_warned_of() -> None:
    host = Host(kept=False)
    keeper = host.keeper(NOW - DAY_US)
    host.clock.move(400 * DAY_US)
    assert keeper.look() is None
    assert keeper.is_set
    assert (keeper.state, keeper.health()["ne107"]) == (ClockState.UNSYNCHRONISED, "maintenance_required")
    assert keeper.loss("en", "UTC").why == Quality.GOOD


def test_a_time_server_that_was_there_and_is_gone_for_an_hour_is_a_warning() -> None:
    host = Host()
    keeper = host.keeper()
    host.kept = False
    host.clock.move(ALONE_US - 1)
    keeper.look()
    assert keeper.loss("en", "UTC").why == Quality.GOOD
    host.clock.move(1)
    keeper.look()
    assert keeper.loss("en", "UTC").why == ALONE
    assert "since" in keeper.loss("en", "UTC").words
    host.kept = True
    keeper.look()
    assert keeper.loss("en", "UTC").why == Quality.GOOD


def test_set_by_a_step_forward() -> None:
    host = Host(600 * SECOND_US, kept=False)
    keeper = host.keeper(NOW - DAY_US)
    host.clock.move(60 * SECOND_US)
    host.clock.step_wall(NOW)
    assert keeper.look() == Change(NOW, 660 * SECOND_US, was_set=False, is_set=True)
    assert keeper.is_set


def test_a_step_to_what_is_still_before_the_journal_sets_nothing() -> None:
    """Some systems start with the time of their last stop, a moment before our last reading."""
    host = Host(600 * SECOND_US, kept=False)
    keeper = host.keeper(NOW)
    host.clock.step_wall(NOW - DAY_US - 600 * SECOND_US)
    change = keeper.look()
    assert change is not None
    assert (change.was_set, change.is_set) == (False, False)


def test_a_running_clock_that_is_set_back_was_set_by_somebody() -> None:
    host = Host(NOW + 1_000 * DAY_US, kept=False)
    keeper = host.keeper(NOW + 999 * DAY_US)
    host.clock.move(SECOND_US)
    keeper.look()
    host.clock.step_wall(-1_000 * DAY_US)
    change = keeper.look()
    assert change is not None
    assert change.is_set
    host.clock.move(SECOND_US)
    assert keeper.look() is None


def test_a_running_clock_that_falls_back_to_1970_is_not_set_until_it_comes_back() -> None:
    host = Host()
    keeper = host.keeper()
    keeper.look()
    for by_us, is_set in ((-NOW, False), (NOW, True)):
        host.clock.step_wall(by_us)
        change = keeper.look()
        assert change is not None
        assert change.is_set is is_set


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_state_has_its_words_in_every_language(language: str) -> None:
    told = []
    for host, floor in ((Host(0), None), (Host(NOW, kept=None), NOW + DAY_US)):
        told.append(host.keeper(floor).loss(language, "UTC"))
    host = Host()
    keeper = host.keeper()
    for by_us in (3_600 * SECOND_US, -3_600 * SECOND_US):
        host.clock.step_wall(by_us)
        keeper.look()
        told.append(keeper.loss(language, "UTC"))
    assert all(loss.why and loss.words and "{" not in loss.words for loss in told)
    assert len({loss.words for loss in told}) == len(told)


def test_words_for_a_clock_that_was_never_set() -> None:
    loss = Host(65 * SECOND_US).keeper(NOW).loss("en", "UTC")
    assert loss.words == (
        "it was not set since it started: it says 1970-01-01 00:01 UTC, but there are readings of 2026-11-18 11:06 UTC already. "
        "Readings are marked `clock` until it is set"
    )


def test_a_reading_that_was_interrupted_is_no_step() -> None:
    """Whoever is stopped between two looks at two clocks would see them apart: the best of a few readings counts."""

    class Busy(Host):
        turns = 0

        def wall_us(self) -> int:
            self.turns += 1
            if self.turns % 3:
                self.clock.move(5 * SECOND_US)
            return super().wall_us()

    keeper = Busy().keeper()
    for _ in range(20):
        assert keeper.look() is None


def test_this_host_answers() -> None:
    assert clocks.kernel_synchronised() in (True, False, None)
    assert clocks.boot_id() == clocks.boot_id()


def test_a_kernel_that_refuses_is_nobody_who_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def adjtimex(_about: object) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda _name: Refusing)
    assert clocks.kernel_synchronised() is None


def test_a_thousand_random_steps_are_each_taken_once() -> None:
    seed = 20_261_128
    print("seed", seed)
    chance = random.Random(seed)
    host = Host(NOW + 3_650 * DAY_US)
    keeper = host.keeper()
    for _ in range(1_000):
        host.clock.move(chance.randint(1, 10 * SECOND_US))
        by = chance.choice((-1, 1)) * chance.randint(SECOND_US, 2 * DAY_US)
        host.clock.step_wall(by)
        change = keeper.look()
        assert change is not None
        assert change.by_us == by
        assert change.is_set
        assert keeper.wall_us() == host.wall_us()
    assert keeper.steps == 1_000
