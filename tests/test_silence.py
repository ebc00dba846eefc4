"""Which parts of a line are lost: by example, and as a plain twin says of any order of readings."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract import Point, Quality
from edge_agent.silence import Silence

GOOD, HOLD, TIMEOUT, CUT, REFUSED, FAILED = (
    Quality.GOOD, Quality.HOLD, Quality.TIMEOUT, Quality.DISCONNECTED, Quality.REFUSED, Quality.SENSOR_FAILURE,
)  # fmt: skip
CONFIRMED = Quality.CONFIRMED


class Line:
    """A line whose points lie behind these parts; nothing is lost of it when it begins, unless `well` is False."""

    def __init__(self, *parts: str, well: bool = True) -> None:
        self.parts = parts
        self.silence = Silence(points(len(parts)), parts, CUT)
        if well:
            self.read(*[GOOD] * len(parts))

    def read(self, *qualities: Quality | None) -> dict[str, int]:
        """What each point said; None: it was not due."""
        due = [number for number, quality in enumerate(qualities) if quality is not None]
        its = np.array([quality for quality in qualities if quality is not None], dtype=np.uint8)
        places: dict[str, list[int]] = {}
        for place, number in enumerate(due):
            places.setdefault(self.parts[number], []).append(place)
        return self.silence.note(
            np.array(due, dtype=np.int64), its, [(part, np.array(its_places)) for part, its_places in places.items()]
        )

    @property
    def lost(self) -> set[str]:
        return set(self.silence.lost)


def points(count: int, shift: int = 0) -> list[Point]:
    return [Point(f"p{number}", number + shift) for number in range(count)]


def test_before_anything_is_heard_all_is_lost() -> None:
    line = Line("a", "a", "b", well=False)
    assert (line.lost, line.silence.everywhere) == ({"a", "b"}, True)
    line.read(None, GOOD, None)
    assert (line.lost, line.silence.everywhere) == ({"b"}, False)


def test_a_part_of_which_all_that_is_asked_falls_silent_is_lost_and_back_with_its_first_answer() -> None:
    line = Line("a", "a", "b")
    assert line.read(TIMEOUT, CUT, GOOD) == {"a": 0}
    assert line.silence.lost == {"a": TIMEOUT}
    assert line.read(TIMEOUT, TIMEOUT, GOOD) == {}, "told once"
    line.read(TIMEOUT, GOOD, GOOD)
    assert line.lost == set()


def test_a_point_that_is_silent_among_others_that_answer_is_no_loss() -> None:
    line = Line("", "")
    for _ in range(3):
        line.read(TIMEOUT, GOOD)
        assert line.lost == set()


def test_what_a_device_refuses_and_what_is_bad_in_itself_was_said_by_it() -> None:
    for quality in (REFUSED, FAILED, CONFIRMED, Quality.PROTOCOL):
        line = Line("", "")
        line.read(TIMEOUT, TIMEOUT)
        line.read(TIMEOUT, quality)
        assert line.lost == set()


def test_a_slow_point_that_was_well_an_hour_ago_hides_no_loss() -> None:
    line = Line("a", "a", "b")
    line.read(TIMEOUT, None, GOOD)
    assert line.lost == {"a"}


def test_a_quick_point_that_keeps_silent_beside_a_slow_one_that_answers_is_no_loss_that_comes_and_goes() -> None:
    line = Line("", "")
    line.read(TIMEOUT, None)
    assert line.lost == {""}, "nothing else was heard: it may be the line"
    line.read(TIMEOUT, GOOD)
    assert line.lost == set()
    for _ in range(3):
        line.read(TIMEOUT, None)
        assert line.lost == set(), "the line answers, only this point does not"
    line.read(TIMEOUT, TIMEOUT)
    assert line.lost == {""}


def test_no_news_is_evidence_of_nothing() -> None:
    line = Line("a", "a")
    line.read(HOLD, TIMEOUT)
    assert line.lost == {"a"}
    line.read(HOLD, HOLD)
    assert line.lost == {"a"}
    line.read(CONFIRMED, HOLD)
    assert line.lost == set()


def test_a_line_that_is_down_is_lost_until_it_is_heard_each_part_by_itself() -> None:
    line = Line("a", "b")
    line.silence.fail(REFUSED)
    assert line.silence.lost == {"a": REFUSED, "b": REFUSED}
    assert line.read(GOOD, TIMEOUT) == {}
    assert line.lost == {"b"}


def test_other_points_over_the_same_line_keep_what_is_known() -> None:
    line = Line("a", "a", "b")
    line.read(TIMEOUT, TIMEOUT, GOOD)
    kept = line.silence.carried_over(points(4), ("a", "a", "b", "c"))
    assert set(kept.lost) == {"a"}, "nothing is known of c, so it is not called lost"
    alone = line.silence.carried_over(points(2), ("", ""))
    assert set(alone.lost) == {""}, "what stays is silent, whatever its part is called now"
    assert set(line.silence.carried_over(points(2, shift=7), ("", "")).lost) == set(), "other addresses, other points"
    assert set(line.silence.carried_over(points(3), ("", "", "")).lost) == set()


def test_a_line_that_is_lost_stays_lost_when_its_parts_change() -> None:
    line = Line("a", "b")
    line.read(TIMEOUT, TIMEOUT)
    for parts in (("",), ("a", "b", "c"), ("x",)):
        kept = line.silence.carried_over(points(len(parts)), parts)
        assert kept.everywhere
        assert set(kept.lost) == set(parts)


# --- the plain twin ---


@dataclass
class Twin:
    """Rule 1 and 2 in spoken words."""

    parts: Sequence[str]
    silent: dict[int, bool] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def read(self, said: Sequence[Quality | None]) -> None:
        for part in set(self.parts):
            mine = [(i, q) for i, q in enumerate(said) if q is not None and self.parts[i] == part]
            if any(q not in (HOLD, TIMEOUT, CUT) for _, q in mine):
                self.lost.discard(part)
            elif any(q in (TIMEOUT, CUT) and not self.silent.get(i) for i, q in mine):
                self.lost.add(part)
        for i, q in enumerate(said):
            if q is not None and q is not HOLD:
                self.silent[i] = q in (TIMEOUT, CUT)


said = st.sampled_from([GOOD, GOOD, GOOD, None, TIMEOUT, TIMEOUT, CUT, HOLD, REFUSED, CONFIRMED])


@given(
    st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=5).flatmap(
        lambda parts: st.tuples(
            st.just(tuple(parts)),
            st.lists(st.lists(said, min_size=len(parts), max_size=len(parts)), max_size=20),
            st.integers(-1, 20),
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_said_the_twin_finds_the_same_parts_lost(
    story: tuple[tuple[str, ...], list[list[Quality | None]], int],
) -> None:
    parts, readings, down = story
    line = Line(*parts, well=False)
    twin = Twin(parts, lost=set(parts))
    for number, reading in enumerate(readings):
        if number == down:
            line.silence.fail(CUT)
            twin.lost, twin.silent = set(parts), dict.fromkeys(range(len(parts)), True)
        line.read(*reading)
        twin.read(reading)
        assert line.lost == twin.lost
        assert line.silence.everywhere == (twin.lost == set(parts))
