"""The history and a clock that nobody had set: what may still come right waits, what cannot is marked."""

import asyncio
from pathlib import Path

import pytest

from edge_agent.contract import SECOND_US, Quality
from edge_agent.store.history import open_history
from edge_agent.store.past import open_past
from edge_agent.store.stamps import marked
from tests.test_clock_stamps import BOOT, NOW, Boot, set_clock
from tests.test_store import commit, event

FUTURE = NOW + 1_000 * SECOND_US


def moved(boot: Boot, folder: Path) -> None:
    """One turn of the history."""

    async def turn() -> None:
        with open_history(folder, boot.clock) as history:
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
