"""The law of the oracle run on small ledgers: what it lets pass and what it finds."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from bench.account import Account, Ledger, account
from bench.plant import Answer

SECOND = 1_000_000
ROOT = "edge/site/agent"


class Story:
    """A machine whose device answered at each beat, and an agent that says what the test wants."""

    def __init__(self, beats: int = 20) -> None:
        self.ledger = Ledger({"m0": [Answer(beat * SECOND + 3_000, 0, 20) for beat in range(1, beats + 1)]}, SECOND)
        self.seq = 0

    def says(self, topic: str, again: int | None = None, late: bool = False, **fields: object) -> None:
        self.seq += again is None
        plain = {"epoch": "k3f9", "seq": self.seq if again is None else again, **fields}
        payload = orjson.dumps({**plain, **({"late": True} if late else {})})
        self.ledger.sent(1, f"{ROOT}/{topic}", payload)
        self.ledger.acknowledged(f"{ROOT}/{topic}", payload)

    def row(self, beat: int, **more: object) -> None:
        self.says("m0/measurements", values={"s0": float(beat), "s1": float(beat)}, **more)  # type: ignore[arg-type]

    def bad(self) -> None:
        self.says("m0/measurements", values={}, bad={"s0": "timeout", "s1": "timeout"})

    def gap(self, cause: str, count: int, first: int | None = None, last: int | None = None) -> None:
        self.says("gaps", cause=cause, count=count, from_seq=first, to_seq=last)

    def begin(self) -> None:
        self.row(1)
        self.ledger.begin()


def told(story: Callable[[Story], None]) -> Account:
    whole = Story()
    whole.begin()
    story(whole)
    return account(whole.ledger)


def test_each_beat_with_a_row_is_all_that_is_due() -> None:
    def story(s: Story) -> None:
        s.row(2)
        s.bad()
        s.row(4)

    found = told(story)
    assert (found.due, found.received, found.bad_rows, found.told, found.wrong) == (3, 3, 1, 0, [])


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({}, "m0.s0 was read 3.00 s before others of its row (seq 2), and says nothing of it"),
        ({"at": {"s0": "2026-11-28T10:00:00.100Z"}}, None),
        ({"at": {"s0": "2026-11-28T10:00:02.000Z"}}, "m0.s0 was read 3.00 s before others of its row (seq 2), and says 1.00 s"),
    ],
)  # fmt: skip
def test_what_was_read_long_before_the_rest_of_its_row_has_to_say_so(more: dict[str, Any], wrong: str | None) -> None:
    def story(s: Story) -> None:
        s.says("m0/measurements", ts="2026-11-28T10:00:03.000Z", values={"s0": 2.0, "s1": 5.0}, **more)

    assert told(story).wrong == ([] if wrong is None else [wrong])


def test_a_restart_has_to_count_just_the_beats_that_have_no_row() -> None:
    def story(s: Story, count: int) -> None:
        s.row(2)
        s.gap("restart", count)
        s.bad()
        s.row(7)

    assert told(lambda s: story(s, 3)).wrong == []
    for count in (0, 2, 4):
        found = told(lambda s, count=count: story(s, count))  # type: ignore[misc]
        assert any("the restart at seq 3" in each for each in found.wrong), found.wrong


def test_two_wrong_restarts_that_add_up_are_found_all_the_same() -> None:
    def story(s: Story) -> None:
        s.gap("restart", 1)
        s.row(4)
        s.gap("restart", 3)
        s.row(7)

    found = told(story)
    assert (found.due, found.received + found.told) == (6, 6)
    assert len(found.wrong) == 2


def test_an_answer_that_was_long_in_coming_marks_no_place() -> None:
    def story(s: Story, first: int, second: int) -> None:
        s.gap("restart", first)
        s.bad()
        s.row(4)  # the question of beat 4, answered in beat 5: the bad row stands for beat 4, this one for beat 5
        s.gap("restart", second)
        s.row(8)
        s.row(9)

    assert told(lambda s: story(s, 2, 2)).wrong == []
    assert told(lambda s: story(s, 2, 3)).wrong != []


def test_restarts_between_which_nothing_was_read_are_taken_together() -> None:
    def story(s: Story) -> None:
        s.row(2)
        s.gap("restart", 2)
        s.bad()
        s.gap("restart", 1)
        s.row(7)

    assert told(story).wrong == []


def test_missed_beats_may_be_told_later_but_have_to_add_up() -> None:
    def story(s: Story, count: int) -> None:
        s.row(5)
        s.row(6)
        s.gap("overload", count)
        s.row(7)

    assert told(lambda s: story(s, 3)).wrong == []
    assert told(lambda s: story(s, 2)).wrong == ["due 6, received 3 + gaps 2"]


def test_a_beat_without_a_row_and_without_a_gap_is_found() -> None:
    found = told(lambda s: s.row(3))
    assert len(found.wrong) == 2
    assert "1 beats without a row and without a gap" in found.wrong[1]


def test_a_row_too_many_is_found() -> None:
    def story(s: Story) -> None:
        s.bad()
        s.row(2)

    assert any("1 rows too many" in each for each in told(story).wrong)


def test_a_number_that_never_came_is_missing_unless_a_gap_names_it() -> None:
    def story(s: Story, named: bool) -> None:
        s.row(2)
        s.seq += 1
        if named:
            s.gap("damage", 1, 3, 3)
        s.row(4)

    assert told(lambda s: story(s, True)).missing == []
    assert told(lambda s: story(s, False)).missing == [3]


def test_a_number_that_comes_twice_has_to_be_equal_but_for_late() -> None:
    def story(s: Story, beat: int) -> None:
        s.row(2)
        s.row(3)
        s.says("m0/measurements", again=3, late=True, values={"s0": float(beat), "s1": float(beat)})

    assert told(lambda s: story(s, 3)).wrong == []
    assert any("seq 3 was sent with other bytes" in each for each in told(lambda s: story(s, 4)).wrong)


@pytest.mark.parametrize("values", [{"s0": 2.5}, {"s0": 99.0}, {"s15": 2.0}])
def test_a_value_that_the_device_did_not_answer_is_found(values: dict[str, float]) -> None:
    found = told(lambda s: s.says("m0/measurements", values=values))
    assert any("was never the device's answer" in each for each in found.wrong)


def test_an_answer_that_stands_in_two_messages_is_found() -> None:
    def story(s: Story) -> None:
        s.row(2)
        s.row(2)

    assert any("answer 2 of m0 stands in seq 2 and in seq 3" in each for each in told(story).wrong)


def test_live_messages_of_a_topic_come_in_order() -> None:
    def story(s: Story) -> None:
        s.row(2)
        s.row(3)
        s.says("m0/measurements", again=2, values={"s0": 2.0, "s1": 2.0})

    assert any("seq 2 came after 3" in each for each in told(story).wrong)
