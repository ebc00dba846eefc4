"""A moment of the past: what holds is what was read last, whatever lies between that cannot be read."""

import asyncio
import contextlib
import csv
import math
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from edge_agent import export
from edge_agent.contract import SECOND_US, Frame, Quality
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store import disk, shelf
from edge_agent.store.history import open_history
from edge_agent.store.journal import open_store
from edge_agent.store.moment import standing
from edge_agent.store.past import open_past
from tests.conftest import StandingClock
from tests.test_clock_stamps import Boot, set_clock
from tests.test_history import Room
from tests.test_store import commit

HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US
BEAT_US = 10 * SECOND_US
NARROW = Layout("press", ("oil",), ())
WIDE = Layout("press", ("oil", "flow"), ())


class Press:
    """A press whose oil is read once an hour at most, and holds until then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = StandingClock(1_795_000_000_000_000 // HOUR_US * HOUR_US)
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.store = self.stack.enter_context(open_store(self.folder, self.clock))
        self.history = self.stack.enter_context(open_history(self.folder, self.clock))
        self.store.keep_for_history()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def beats(self, layout: Layout, count: int, value: float | None = None) -> None:
        """So many rows, the first with this value, and a batch of the journal."""
        self.store.use_layouts([layout])
        for beat in range(count):
            self.clock.move(BEAT_US)
            spoken = value is not None and beat == 0
            shape = (1, len(layout.signals))
            values = np.full(shape, value if spoken else np.nan, dtype=np.float64)
            quality = np.full(shape, Quality.GOOD if spoken else Quality.HOLD, dtype=np.uint8)
            frame = Frame(
                "press", np.array([self.clock.monotonic_us()]), np.array([self.clock.wall_us()]), values, quality
            )
            self.store.put([JudgedFrame(frame, np.zeros(1, np.int16), np.array([spoken]))])
        self.store._seal()
        commit(self.store)

    def move(self) -> None:
        assert asyncio.run(self.history.turn(self.store)), self.history.fault

    def held(self) -> float:
        with standing(self.folder) as moment:
            return moment.held("press", "oil", self.clock.wall_us() + 1)


def exported(folder: Path, out: Path, from_us: int = 0) -> list[tuple[str, str]]:
    """(time of day, oil) of each row, '' where nobody knows."""
    export.export(folder, export.Folder(out), export.Wanted("hall2", export.CSV, from_us=from_us))
    with (out / "press.csv").open() as file:
        return [(row[0][11:19], row[1]) for row in list(csv.reader(file))[1:]]


def spoilt(folder: Path, file: str, asked: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / file)) as db:
        assert db.execute(asked).rowcount >= 1
        db.commit()


# --- what is damaged ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["chunks", "blocks", "journal"])
def test_what_held_before_a_damaged_stretch_does_not_hold_after_it(tmp_path: Path, where: str) -> None:
    data = tmp_path / "data"
    with Press(data) as press:
        for value in (5.0, 9.0, None):
            press.beats(NARROW, 360 if where == "chunks" else 30, value)
            if where != "journal":
                press.move()
        assert press.held() == 9.0
        before = exported(data, tmp_path / "before")
        if where == "journal":
            spoilt(data, disk.FILE, "UPDATE batches SET frames = zeroblob(50) WHERE id = 2")
        else:
            table = "axes" if where == "chunks" else "blocks"
            spoilt(data, shelf.FILE, f"UPDATE {table} SET data = zeroblob(50) WHERE id = 2")
        after = exported(data, tmp_path / "after")
        assert math.isnan(press.held())
    assert {oil for _, oil in before} == {"5.0", "9.0"}
    assert {oil for _, oil in after} == {"5.0", ""}
    assert (before[-1][1], after[-1][1]) == ("9.0", "")


@pytest.mark.parametrize("column", ["place_from", "ts_from", "ts_to"])
def test_a_damaged_number_of_a_piece_is_told_and_ends_nothing(tmp_path: Path, column: str) -> None:
    with Press(tmp_path) as press:
        for value in (5.0, 9.0):
            press.beats(NARROW, 30, value)
            press.move()
        for wrong in ("NULL", "'abc'", "1.5"):
            spoilt(tmp_path, shelf.FILE, f"UPDATE blocks SET {column} = {wrong} WHERE id = 2")
            assert math.isnan(press.held())
            with standing(tmp_path) as moment, open_past(tmp_path) as past:
                assert moment.reach()
                assert moment.days(export.DAY_US)
                assert past.signals()


@pytest.mark.parametrize(
    ("harm", "first", "last"),
    [
        ("axes SET place_to = 1 << 60 WHERE id = 3", 3, 3),
        ("axes SET place_from = 0 WHERE id = 3", 3, 3),
        ("axes SET place_from = 'abc' WHERE id = 3", 3, 3),
        ("blocks SET place_from = 0", 8, 8),
    ],
)
def test_a_damaged_place_costs_its_own_piece_and_not_all_that_it_reaches_over(
    tmp_path: Path, harm: str, first: int, last: int
) -> None:
    """An hour of rows each: the third piece, or the last, which is not packed yet."""
    data = tmp_path / "data"
    with Press(data) as press:
        for hour in range(8):
            press.beats(NARROW, 360, float(hour))
            press.move()
        before = exported(data, tmp_path / "before")
        spoilt(data, shelf.FILE, f"UPDATE {harm}")
        tracemalloc.start()
        held = press.held()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert math.isnan(held) if first == 8 else held == 7.0
        assert peak < 1_000_000, "all of it was read at once"
        after = exported(data, tmp_path / "after")
    rows = 360
    assert after[: (first - 1) * rows - 1] == before[: (first - 1) * rows - 1]
    assert after[-(8 - last) * rows :] == before[-(8 - last) * rows :] or last == 8


# --- a reload that is taken back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["journal", "blocks", "chunks"])
def test_what_two_configurations_judged_in_turn_stands_in_order(tmp_path: Path, where: str) -> None:
    data = tmp_path / "data"
    with Press(data) as press:
        for layout, value in ((NARROW, 1.0), (WIDE, 2.0), (NARROW, None), (WIDE, None)):
            press.beats(layout, 12, value)
        if where != "journal":
            press.move()
        middle = press.clock.wall_us()
        if where == "chunks":
            for _ in range(3):
                press.beats(NARROW, 360)
                press.move()
        found = exported(data, tmp_path / "whole")
        assert [time for time, _ in found] == sorted(time for time, _ in found)
        assert [oil for _, oil in found[:48]] == ["1.0"] * 12 + ["2.0"] * 36
        with standing(data) as moment:
            assert [moment.held("press", "oil", middle - 10 * n * BEAT_US + 1) for n in range(5)] == [2.0] * 4 + [1.0]


def test_where_one_of_them_is_damaged_nothing_holds_over_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Press(data) as press:
        for layout, value in ((NARROW, 1.0), (WIDE, 2.0), (NARROW, None)):
            press.beats(layout, 12, value)
        press.move()
        spoilt(data, shelf.FILE, "UPDATE blocks SET data = zeroblob(50) WHERE rows = 12")
        found = exported(data, tmp_path / "out")
        assert [oil for _, oil in found] == ["1.0"] * 12 + [""] * 12
        assert math.isnan(press.held())


# --- a clock that was not set -----------------------------------------------------------------------------------------------


def test_what_was_put_right_and_waits_in_the_journal_is_there_at_its_right_time(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.store.keep_for_history()
    one.put(1, 2, 4)
    commit(one.store)
    set_clock(one.store, one.clock)
    one.number = 0
    one.put(5)
    commit(one.store)
    with open_past(tmp_path) as past:
        ts = [int(each) for each in past.readings("press-3", "a", 0, 2**62).ts]
    first, last = min(ts), max(ts)
    with standing(tmp_path) as moment:
        assert sorted(int(each) for rows in moment.rows("press-3", first, last + 1) for each in rows.ts) == sorted(ts)
        assert moment.reach() == (first, last)
        assert moment.days(export.DAY_US) == {each // export.DAY_US for each in ts}
        assert moment.watched("press-3", "a", first, last + 1, HOUR_US, 10) == [(first, last)]
        assert not list(moment.rows("press-3", 0, export.DAY_US))
        assert math.isfinite(moment.held("press-3", "a", last))
    one.close()


def test_a_piece_from_1970_to_now_has_the_days_of_its_rows(tmp_path: Path) -> None:
    clock = StandingClock(100 * SECOND_US)
    with Room(tmp_path, clock) as room:
        room.beats(20)
        clock.step_wall(1_795_000_000 * SECOND_US)
        room.beats(20)
        room.move()
    with standing(tmp_path) as moment:
        assert moment.days(DAY_US) == {0, 1_795_000_000 * SECOND_US // DAY_US}
