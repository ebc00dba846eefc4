"""Stamps of a clock that nobody had set: marked until it is set, put right then, and never changed once they have left."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract import SECOND_US, Quality
from edge_agent.records import SET_CLOCK, Command, Gap, GapCause, JudgedFrame
from edge_agent.store import disk, rows
from edge_agent.store.committed import Committed
from edge_agent.store.journal import Store, open_store
from edge_agent.store.stamps import Stamps
from tests.conftest import StandingClock
from tests.test_store import LAYOUT, commit, crashed, due_of, equal, event, frame

NOW = 1_795_000_000 * SECOND_US
BOOT = 60 * SECOND_US
"""What a machine without a battery shows a minute after it was switched on."""


def stamped(number: int, clock: StandingClock, unset: int, *, at: bool = False) -> JudgedFrame:
    judged = frame(number, at=at)
    ts = np.array([clock.wall_us()], dtype=np.int64)
    stamps = np.full((1, 3), clock.wall_us() - 5 * SECOND_US, dtype=np.int64) if at else None
    return replace(judged, frame=replace(judged.frame, ts=ts, at=stamps, unset=unset))


def base(clock: StandingClock) -> int:
    return clock.wall_us() - clock.monotonic_us()


def plain(found: Sequence[Committed]) -> list[dict[str, Any]]:
    return [json.loads(each.payload(late=False)) for each in found]


def set_clock(store: Store, clock: StandingClock, to_us: int = NOW) -> int:
    """Somebody sets the clock; by how much it was wrong."""
    was, before = clock.wall_us(), base(clock)
    clock.step_wall(to_us - was)
    store.stepped(base(clock) - before, base(clock))
    store.end_unset(was)
    store.put_right(base(clock), clock.wall_us())
    return base(clock) - before


class Boot:
    """A store on a host that has started with its clock at 1970. number: of the span."""

    def __init__(self, folder: Path, boot: str = "boot-1", clock: StandingClock | None = None) -> None:
        self.clock = clock or StandingClock(BOOT)
        self.opened = open_store(folder, self.clock, boot=boot)
        self.store = self.opened.__enter__()
        self.store.use_layouts([LAYOUT])
        self.number = 0

    def begin(self, floor_us: int | None = NOW - SECOND_US) -> "Boot":
        self.number = self.store.begin_unset(base(self.clock), floor_us)
        return self

    def put(self, *numbers: int, at: bool = False) -> None:
        for number in numbers:
            self.clock.move(SECOND_US)
            self.store.put([stamped(number, self.clock, self.number, at=at)])

    def close(self) -> None:
        self.opened.__exit__(None, None, None)


def test_readings_of_a_clock_that_was_not_set_are_marked(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.put(1, 3)
    commit(one.store)
    first, second = plain(due_of(one.store, 0, 10))
    assert first["ts"] == "1970-01-01T00:01:01.000Z"
    assert first["uncertain"] == {"a": "clock", "b": "clock", "c": "clock"}
    assert set(first["values"]) == {"a", "b", "c"}
    assert second["uncertain"] == {"a": "clock", "c": "clock"}
    assert second["bad"] == {"b": "timeout"}
    one.close()


def test_what_waits_when_the_clock_is_set_leaves_with_the_right_stamps_and_no_mark(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.put(1, 2, at=True)
    commit(one.store)
    set_clock(one.store, one.clock)
    before = plain(due_of(one.store, 0, 10))
    assert "uncertain" in before[0], "what is not on disk decides nothing"
    commit(one.store)
    found = plain(due_of(one.store, 0, 10))
    assert [each["ts"] for each in found] == ["2026-11-18T11:06:39.000Z", "2026-11-18T11:06:40.000Z"]
    assert found[0]["at"]["a"] == "2026-11-18T11:06:34.000Z"
    assert all("uncertain" not in each for each in found)
    assert [each["seq"] for each in found] == [1, 2]
    one.close()


def test_warnings_and_gaps_are_marked_and_put_right_too_but_not_what_began_before(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.clock.move(SECOND_US)
    now = one.clock.wall_us()
    fresh, old = replace(event(1), ts=now, since=now), replace(event(2), ts=now, since=NOW - 10 * SECOND_US)
    one.store.put((), [fresh, old], gaps=[Gap(GapCause.OVERLOAD, 3, now, now)])
    commit(one.store)
    marked = plain(due_of(one.store, 0, 10))
    assert [each["uncertain"] for each in marked] == ["clock"] * 3
    set_clock(one.store, one.clock)
    commit(one.store)
    first, second, gap = plain(due_of(one.store, 0, 10))
    right = "2026-11-18T11:06:40.000Z"
    assert (first["ts"], first["since"]) == (right, right)
    assert (second["ts"], second["since"]) == (right, "2026-11-18T11:06:30.000Z")
    assert (gap["from"], gap["to"]) == (right, right)
    assert not any("uncertain" in each for each in (first, second, gap))
    assert {**marked[0], "ts": right, "since": right} == {**first, "uncertain": "clock"}
    one.close()


def test_nothing_leaves_before_it_is_on_disk_that_it_may(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.put(1, 2)
    commit(one.store)
    (first, *_) = due_of(one.store, 0, 10)
    assert not first.ready, "it is asked for"
    assert not first.ready
    commit(one.store)
    assert all(each.ready for each in due_of(one.store, 0, 10)), "with all that were there"
    one.put(4)
    commit(one.store)
    assert [each.ready for each in due_of(one.store, 0, 10)] == [True, True, False]
    one.close()


def test_what_may_have_left_keeps_its_bytes_when_the_clock_is_set_through_a_restart_too(tmp_path: Path) -> None:
    one = Boot(tmp_path / "a").begin()
    one.put(1)
    commit(one.store)
    (sent,) = due_of(one.store, 0, 10)
    assert [sent.ready, sent.ready] == [False, False]
    commit(one.store)
    assert all(each.ready for each in [sent])
    on_the_wire = sent.payload(late=False)
    one.put(2)
    commit(one.store)
    set_clock(one.store, one.clock)
    commit(one.store)
    after = Boot(crashed(tmp_path / "a", tmp_path / "b"), clock=one.clock)
    for store in (one.store, after.store):
        again, other = due_of(store, 0, 10)
        assert again.ready
        assert again.payload(late=False) == on_the_wire
        assert orjson.loads(other.payload(late=False))["ts"].startswith("2026-11-18")
    after.close()
    one.close()


def test_a_power_cut_before_the_correction_is_on_disk_loses_only_the_correction(tmp_path: Path) -> None:
    one = Boot(tmp_path / "a").begin()
    one.put(1, 2)
    commit(one.store)
    set_clock(one.store, one.clock)
    copy = crashed(tmp_path / "a", tmp_path / "b")
    (first, _) = due_of(one.store, 0, 10)
    assert not first.ready, "with the right stamp it may not leave yet either"
    another = Boot(copy, boot="boot-2", clock=StandingClock(NOW + 600 * SECOND_US))
    assert another.store.last_in_doubt is not None
    assert another.store.floor_us == NOW - SECOND_US
    assert another.store.put_right(base(another.clock), NOW) == [], "nobody knows how long it was without power"
    commit(another.store)
    found = due_of(another.store, 0, 10)
    assert all(each.ready for each in found)
    assert all("uncertain" in each for each in plain(found))
    another.close()
    one.close()


def test_a_process_that_starts_again_on_the_same_host_puts_right_what_the_last_one_has_stamped(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.put(1, 2)
    commit(one.store)
    one.close()
    one.clock.move(5 * SECOND_US)
    one.clock.step_wall(NOW - one.clock.wall_us())
    again = Boot(tmp_path, clock=one.clock)
    (span,) = again.store.put_right(base(one.clock), one.clock.wall_us())
    assert (span.from_seq, span.to_seq) == (1, 2)
    again.store.put([stamped(4, one.clock, 0)])
    commit(again.store)
    found = plain(due_of(again.store, 0, 10))
    assert [each["ts"][11:19] for each in found] == ["11:06:34", "11:06:35", "11:06:40"]
    assert not any("uncertain" in each for each in found)
    assert again.store.last_in_doubt is None
    again.close()


def test_the_epoch_stays_when_the_clock_is_earlier_than_the_end_of_the_journal(tmp_path: Path) -> None:
    late = StandingClock(NOW)
    one = Boot(tmp_path, clock=late)
    one.put(1)
    commit(one.store)
    epoch, wall = one.store.epoch, late.wall_us()
    one.close()
    again = Boot(tmp_path, boot="boot-2").begin()
    assert again.store.epoch == epoch
    assert again.store.floor_us == wall or again.store.stamps.floor_us == NOW - SECOND_US
    again.put(2)
    commit(again.store)
    assert [each["seq"] for each in plain(due_of(again.store, 0, 10))] == [1, 2]
    again.close()


def test_a_frame_comes_back_with_its_span_bit_for_bit(tmp_path: Path) -> None:
    judged = stamped(1, StandingClock(BOOT), 7, at=True)
    kept = rows.Kept(1, LAYOUT, judged, np.array([5], dtype=np.int64))
    (back,) = rows.unpacked(rows.packed(kept), {1: LAYOUT})
    assert isinstance(back, rows.Kept)
    assert back.judged.frame.unset == 7
    assert equal(back.judged, judged)


def test_what_a_source_did_not_call_good_stays_as_it_was() -> None:
    judged = stamped(3, StandingClock(BOOT), 1)
    marked = Stamps("").right(judged.frame)
    assert marked.quality.tolist() == [[Quality.CLOCK, Quality.TIMEOUT, Quality.CLOCK]]
    assert judged.frame.quality.tolist() == [[0, Quality.TIMEOUT, 0]], "what was judged stays"


def test_the_command_that_nobody_gave_comes_back(tmp_path: Path) -> None:
    about = {"from_us": 1, "to_us": 2, "from_t": 3, "by_us": 4}
    (back,) = rows.unpacked(rows.packed(Command(SET_CLOCK, NOW, 5, "", "", "", {**about})), {})
    assert isinstance(back, Command)
    assert back.arguments == about


def test_damage_of_what_is_known_of_the_clock_costs_only_the_correction(tmp_path: Path) -> None:
    one = Boot(tmp_path).begin()
    one.put(1)
    commit(one.store)
    one.close()
    with closing(disk.connect(tmp_path / disk.FILE)) as db:
        row = (disk.STAMPS, "", "no such thing")
        db.execute("INSERT OR REPLACE INTO config VALUES (?,?,?,?)", (*row, rows.checksum(*row)))
    again = Boot(tmp_path, clock=one.clock)
    (found,) = due_of(again.store, 0, 10)
    assert found.ready
    again.begin()
    set_clock(again.store, again.clock)
    commit(again.store)
    assert "uncertain" in orjson.loads(found.payload(late=False)), "no other span's correction is taken for its own"
    again.close()


STEPS = st.lists(st.sampled_from(["put", "commit", "ask", "set", "lose", "restart", "reboot"]), max_size=25)


@settings(max_examples=60)
@given(steps=STEPS)
def test_whatever_happens_what_was_ready_once_has_the_same_bytes_for_ever(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The twin knows only what left: every message that was ready, with its bytes."""
    folder, left = tmp_path_factory.mktemp("s"), dict[int, bytes]()
    boots, number = 1, 0
    one = Boot(folder).begin(None)

    def check() -> None:
        for each in due_of(one.store, 0, 100):
            if each.seq in left:
                assert each.ready
            if each.ready:
                payload = each.payload(late=False)
                assert left.setdefault(each.seq, payload) == payload
                is_marked = "uncertain" in orjson.loads(payload)
                assert is_marked == (orjson.loads(payload)["ts"] < "2026"), "a wrong stamp is never called good"

    for step in steps:
        match step:
            case "put":
                number += 1
                one.put(3 * number + 1)
            case "commit" | "ask":
                commit(one.store)
            case "set" if one.number:
                set_clock(one.store, one.clock)
                one.number = 0
            case "lose" if not one.number:
                one.clock.step_wall(BOOT - one.clock.wall_us())
                one.begin(None)
            case "restart" | "reboot":
                one.close()
                boots += step == "reboot"
                clock = one.clock if step == "restart" else StandingClock(NOW if one.number else BOOT)
                unset = clock.wall_us() < NOW
                one = Boot(folder, boot=f"boot-{boots}", clock=clock)
                if unset:
                    one.begin(None)
                else:
                    one.store.put_right(base(clock), clock.wall_us())
        if step != "commit":
            check()
    one.close()


def test_without_that_care_the_bytes_would_differ(tmp_path: Path) -> None:
    """The negative control: what leaves without being handed over comes again with another stamp."""
    one = Boot(tmp_path).begin()
    one.put(1)
    commit(one.store)
    (sent,) = due_of(one.store, 0, 10)
    on_the_wire = sent.payload(late=False)  # nobody has asked whether it is ready
    set_clock(one.store, one.clock)
    commit(one.store)
    assert due_of(one.store, 0, 10)[0].payload(late=False) != on_the_wire
    one.close()


@pytest.mark.parametrize("by_s", [86_400, -86_400])
def test_a_step_of_the_clock_makes_nothing_late_or_old(tmp_path: Path, clock: StandingClock, by_s: int) -> None:
    with open_store(tmp_path, clock) as store:
        told: list[Committed] = []
        store.on_committed.append(told.extend)
        store.limit(10**9, 3_600 * SECOND_US, SECOND_US)
        store.use_layouts([LAYOUT])
        store.put([frame(1)], [event(1)])
        commit(store)
        store.put_snapshot(b"", "{}")
        clock.move(7 * SECOND_US)
        clock.step_wall(by_s * SECOND_US)
        store.stepped(by_s * SECOND_US, base(clock))
        for each in (*told, *due_of(store, 0, 10)):
            assert each.waited_us(clock) == 7 * SECOND_US
        assert store.oldest_pending_us == clock.wall_us() - 7 * SECOND_US
        store.commits = 0
        asyncio.run(store._drop_over_limit())
        assert store.pending_count == 2
