"""How fast the backlog goes, and which message breaks the line: the two pure rooms of the publisher."""

import random

import pytest

from edge_agent.contract import SECOND_US
from edge_agent.pace import KEPT_FREE, RATE_MIN, SLOW_US, TIMES_LIVE, Pace
from edge_agent.suspects import CONVICTED_AFTER, UNPROVEN_MAX, Suspects, Verdict


@pytest.mark.parametrize("every_us", [SECOND_US // 10, SECOND_US, 3 * SECOND_US])
def test_the_backlog_may_go_at_a_multiple_of_the_live_rate_however_it_is_committed(every_us: int) -> None:
    pace = Pace(20, 0)
    for at in range(0, 60 * SECOND_US, every_us):
        pace.committed(100 * every_us // SECOND_US, at + every_us)
    assert pace.rate == pytest.approx(TIMES_LIVE * 100, rel=0.15)


@pytest.mark.parametrize("live", [0, 100])
def test_in_a_minute_the_backlog_gets_its_rate_and_no_more(live: int) -> None:
    pace, sent, now = Pace(20, 0), 0, 0
    dice = random.Random(7)
    while now < 60 * SECOND_US:
        now += dice.randrange(1, 20_000)
        if now // SECOND_US != (now - 20_000) // SECOND_US and live:
            pace.committed(live * 20 // 1000, now)
        while not pace.wait_us(now):
            pace.sent()
            sent += 1
    least, most = 0.9 * 60 * RATE_MIN, 1.1 * 60 * max(RATE_MIN, TIMES_LIVE * live)
    assert least < sent < most


def test_who_has_to_wait_is_told_for_how_long() -> None:
    pace, now = Pace(20, 0), 0
    while not pace.wait_us(now):
        pace.sent()
    wait = pace.wait_us(now)
    assert 0 < wait <= SECOND_US / RATE_MIN
    assert pace.wait_us(now + wait) == 0


def test_slow_answers_take_the_backlog_s_share_down_to_one_message_and_quick_ones_give_it_back() -> None:
    pace, now = Pace(20, 0), 0
    assert pace.share == 20 - min(KEPT_FREE, 20 // 6)
    for _ in range(10):
        sent, now = now + 1, now + 2 * SLOW_US
        pace.answered(sent, now)
    assert pace.share == 1
    for _ in range(2_000):
        now += 1_000
        pace.answered(now - 500, now)
    assert pace.share == 20 - min(KEPT_FREE, 20 // 6)


def test_slow_answers_to_one_window_halve_the_share_once() -> None:
    pace = Pace(20, 0)
    before = pace.share
    for _ in range(20):
        pace.answered(1, 1 + 2 * SLOW_US)
    assert pace.share == before // 2


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_small_window_is_the_backlog_s_too(window: int) -> None:
    pace = Pace(20, 0)
    pace.use_window(window)
    assert pace.share == window


# --------------------------------------------------------------------------------------------------------------- suspects


@pytest.mark.parametrize("seed", range(200))
def test_the_culprit_is_found_among_others_and_nobody_else_is_convicted(seed: int) -> None:
    """A broker that breaks the line at one message; answers to what was sent before may be lost with the line."""
    dice = random.Random(seed)
    due, culprit = list(range(1, 60)), dice.randrange(1, 60)
    suspects = Suspects()
    convicted = None
    lines = 0
    while convicted is None and lines < 26:
        lines += 1
        convicted = _one_line(suspects, due, culprit, dice).convicted
    assert convicted == culprit, f"seed {seed}"


def _one_line(suspects: Suspects, due: list[int], culprit: int, dice: random.Random) -> Verdict:
    suspects.answered("status")
    place = 0
    while place < len(due):
        alone = due[place] in suspects.alone
        until = place + 1
        while not alone and until < min(len(due), place + 20) and due[until] not in suspects.alone:
            until += 1
        window = due[place:until]
        if culprit in window:
            heard = dice.randrange(window.index(culprit) + 1)
            for key in window[:heard]:
                suspects.answered(key)
                due.remove(key)
            return suspects.lost(window[heard:])
        for key in window:
            suspects.answered(key)
            due.remove(key)
    raise AssertionError("the line did not break")


def test_a_line_that_breaks_with_nothing_in_flight_is_nobody_s_fault() -> None:
    suspects = Suspects()
    for _ in range(10):
        assert suspects.lost([]) == Verdict()
    assert not suspects.alone


def test_lines_that_break_at_different_messages_convict_none() -> None:
    suspects = Suspects()
    for key in range(100):
        assert suspects.lost([key, key + 1, key + 2]) == Verdict()
        suspects.answered(key)


def test_where_the_broker_answers_nothing_all_are_free_again() -> None:
    suspects = Suspects()
    aside: set[object] = set()
    free: set[object] = set()
    for _ in range(CONVICTED_AFTER * UNPROVEN_MAX):
        verdict = suspects.lost([next(key for key in range(10) if key not in aside)])
        aside |= {verdict.convicted} - {None}
        free |= set(verdict.free)
    assert free == {0, 1, 2}


def test_who_was_convicted_without_an_answer_is_tried_again_once_there_is_one() -> None:
    suspects = Suspects()
    verdicts = [suspects.lost(["a"]) for _ in range(CONVICTED_AFTER)]
    assert verdicts[-1].convicted == "a"
    assert suspects.answered("b") == ("a",)
    assert suspects.lost(["a"]).convicted == "a", "the second time it is proven"
    assert suspects.answered("b") == ()
