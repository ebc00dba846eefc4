"""The history and a clock that nobody had set: what may still come right waits, what cannot is marked."""

import asyncio
from pathlib import Path

import pytest

from edge_agent.contract import SECOND_US, Quality
from edge_agent.store.history import DAY_US, open_history
from edge_agent.store.past import open_past
from edge_agent.store.stamps import marked
from tests.conftest import StandingClock
from tests.test_clock_stamps import BOOT, NOW, Boot, set_clock
from tests.test_store import commit, event

FUTURE = NOW + 1_000 * SECOND_US


def moved(boot: Boot, folder: Path, keep_us: int = 400 * DAY_US) -> None:
    """One turn of the history."""

    async def turn() -> None:
        with open_history(folder, boot.clock) as history:
            history.limit(keep_us, 10**9)
            assert await history.turn(boot.store)

    asyncio.run(turn())


def times(folder: Path) -> list[int]:
    with open_past(folder) as past:
        return [int(each) for each in past.readings("press-3", "a", 0, FUTURE).ts]


def codes(folder: Path) -> set[int]:
    with open_past(folder) as past:
        return {int(each) for each in past.readings("press-3", "a", 0, FUTURE).quality}


def count_moved(folder: Path) -> int:
    with open_past(folder) as past:
        assert past._reader.kept is not None
        return int(past._reader.kept.execute("SELECT total(rows) FROM blocks").fetchone()[0])


def test_what_was_stamped_by_an_unset_clock_waits_in_the_journal_and_goes_with_the_right_time(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.store.keep_for_history()
    one.put(1, 2, 4)
    one.store.put([], [event(1)])
    commit(one.store)
    moved(one, tmp_path)
    assert count_moved(tmp_path) == 0, "it may still come right"
    assert times(tmp_path) == [BOOT + n * SECOND_US for n in (1, 2, 3)]
    assert codes(tmp_path) == {Quality.CLOCK}, "marked for whoever looks meanwhile"
    by = set_clock(one.store, one.clock)
    one.number = 0
    one.put(5)
    commit(one.store)
    moved(one, tmp_path)
    assert count_moved(tmp_path) == 4
    assert times(tmp_path) == [*(BOOT + n * SECOND_US + by for n in (1, 2, 3)), NOW + SECOND_US]
    assert codes(tmp_path) == {Quality.GOOD}
    one.close()


def test_what_nobody_can_put_right_any_more_is_kept_with_its_mark(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.put(1, 2)
    commit(one.store)
    one.close()
    other = Boot(tmp_path, boot="boot-2")
    other.store.keep_for_history()
    moved(other, tmp_path)
    assert count_moved(tmp_path) == 2
    assert codes(tmp_path) == {Quality.CLOCK}
    other.close()


def closed(folder: Path) -> list[int]:
    """When the events of the history got their numbers, µs."""
    with open_past(folder) as past:
        assert past._reader.kept is not None
        return [int(each) for (each,) in past._reader.kept.execute("SELECT closed FROM events ORDER BY id")]


def put_right(folder: Path) -> tuple[Boot, int]:
    """A run that told an event before its clock was set, and by how much (µs) that was put right."""
    one = Boot(folder).begin()
    one.store.keep_for_history()
    one.store.put([], [event(1)])
    one.put(1)
    commit(one.store)
    return one, set_clock(one.store, one.clock)


def test_an_event_of_before_the_clock_was_set_stands_at_the_right_time(tmp_path: Path) -> None:
    one, by = put_right(tmp_path)
    one.number = 0
    one.put(5)
    one.store.put([], [event(2)])
    commit(one.store)
    moved(one, tmp_path)
    assert closed(tmp_path) == [BOOT + by, NOW + SECOND_US]
    one.close()


def test_an_event_that_was_put_right_is_found_at_the_right_time_before_it_is_moved_too(tmp_path: Path) -> None:
    one, by = put_right(tmp_path)
    commit(one.store)
    for _ in range(2):
        with open_past(tmp_path) as past:
            assert [told.closed_us for told in past.events(NOW - DAY_US, FUTURE, ("warnings",))] == [BOOT + by]
        moved(one, tmp_path)
    one.close()


def test_an_event_goes_when_it_is_too_old_by_the_agents_clock_too(tmp_path: Path) -> None:
    """Of a clock that nobody can put right any more: by the wall clock it is of 1970."""
    one = Boot(tmp_path).begin()
    one.store.put([], [event(1)])
    one.put(1, 2)
    commit(one.store)
    one.close()
    other = Boot(tmp_path, boot="boot-2", clock=StandingClock(NOW))
    other.store.keep_for_history()
    hour = 3_600
    for numbers, left in (((5, hour), [BOOT, NOW + 2 * SECOND_US]), ((3 * hour,), [NOW + 2 * SECOND_US])):
        other.put(*numbers)
        if numbers[0] == 5:
            other.store.put([], [event(2)])
        commit(other.store)
        moved(other, tmp_path, keep_us=2 * hour * SECOND_US)
        assert closed(tmp_path) == left
    other.close()


def test_a_buffer_that_fills_lets_it_go_with_its_mark(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.store.keep_for_history()
    one.store.limit(400, 10**15, SECOND_US)
    one.put(1)
    commit(one.store)
    moved(one, tmp_path)
    assert count_moved(tmp_path) == 1
    assert codes(tmp_path) == {Quality.CLOCK}
    one.close()


def test_a_history_that_does_not_ask_for_the_clock_would_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: moved as it is, the reading would stand good at 1970."""
    monkeypatch.setattr("edge_agent.store.stamps.Stamps.right", lambda _self, frame, _seq=0: frame)
    one = Boot(tmp_path).begin()
    one.put(1)
    commit(one.store)
    assert codes(tmp_path) == {Quality.GOOD}
    one.close()
    assert callable(marked)
