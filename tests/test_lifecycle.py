"""The life of a warning: its table walked cell by cell, beside a table and a model written without looking at it."""

import itertools
import random

import pytest

from edge_agent import lifecycle
from edge_agent.lifecycle import Input
from edge_agent.records import WarningState as State

INPUTS = (Input.RAISE, Input.ESCALATE, Input.DEESCALATE, Input.CLEAR, Input.ACKNOWLEDGE, Input.REPEAT)
TABLE = """
acknowledge  state                    RAISE                   ESCALATE                 DEESCALATE                  CLEAR                            ACKNOWLEDGE               REPEAT
auto         normal                   unacknowledged:raised   -                        -                           -                                -                         -
auto         unacknowledged           -                       unacknowledged:escalated unacknowledged:deescalated  normal:cleared                   acknowledged:acknowledged unacknowledged:raised
auto         acknowledged             -                       unacknowledged:escalated acknowledged:deescalated    normal:cleared                   -                         unacknowledged:raised
auto         returned_unacknowledged  unacknowledged:raised   -                        -                           -                                normal:acknowledged       -
required     normal                   unacknowledged:raised   -                        -                           -                                -                         -
required     unacknowledged           -                       unacknowledged:escalated unacknowledged:deescalated  returned_unacknowledged:cleared  acknowledged:acknowledged unacknowledged:raised
required     acknowledged             -                       unacknowledged:escalated acknowledged:deescalated    normal:cleared                   -                         unacknowledged:raised
required     returned_unacknowledged  unacknowledged:raised   -                        -                           -                                normal:acknowledged       -
"""  # noqa: E501 - a table is read across
"""ISA-18.2 as the contract §6 words it: escalation makes it unacknowledged again, deescalation does not. A repeat
is a re-alarm of ISA-18.2: what stands is raised once more, and wants to be seen once more."""

CELLS = [
    (words[0], State(words[1]), what, cell)
    for words in (line.split() for line in TABLE.strip().splitlines()[1:])
    for what, cell in zip(INPUTS, words[2:], strict=True)
]


def step(state: State, what: Input, acknowledge: str) -> str:
    found = lifecycle.step(state, what, acknowledge == "required")
    return "-" if found is None else f"{found[0]}:{found[1]}"


def test_the_table_has_a_cell_for_every_state_and_input() -> None:
    assert sorted((a, s, int(w)) for a, s, w, _ in CELLS) == sorted(
        itertools.product(("auto", "required"), State, map(int, Input))
    )


@pytest.mark.parametrize(("acknowledge", "state", "what", "cell"), CELLS)
def test_every_cell(acknowledge: str, state: State, what: Input, cell: str) -> None:
    assert step(state, what, acknowledge) == cell


class Model:
    """A warning as two questions: is the signal outside, and does somebody still have to look?"""

    def __init__(self, required: bool) -> None:
        self.required, self.outside, self.unseen = required, False, False

    @property
    def state(self) -> str:
        if self.outside:
            return "unacknowledged" if self.unseen else "acknowledged"
        return "returned_unacknowledged" if self.unseen else "normal"

    def take(self, what: Input) -> str | None:
        if what is Input.RAISE and not self.outside:
            self.outside = self.unseen = True
            return "raised"
        if what is Input.ESCALATE and self.outside:
            self.unseen = True
            return "escalated"
        if what is Input.REPEAT and self.outside:
            self.unseen = True
            return "raised"
        if what is Input.DEESCALATE and self.outside:
            return "deescalated"
        if what is Input.CLEAR and self.outside:
            self.outside, self.unseen = False, self.unseen and self.required
            return "cleared"
        if what is Input.ACKNOWLEDGE and self.unseen:
            self.unseen = False
            return "acknowledged"
        return None


@pytest.mark.parametrize("required", [False, True])
def test_a_hundred_thousand_inputs_give_what_the_plain_model_gives(required: bool) -> None:
    rng = random.Random(42)
    model, state = Model(required), State.NORMAL
    for _ in range(50_000):
        what = rng.choice(INPUTS)
        found = lifecycle.step(state, what, required)
        assert (None if found is None else str(found[1])) == model.take(what)
        state = state if found is None else found[0]
        assert state == model.state


@pytest.mark.parametrize(("old", "new"), list(itertools.product(range(3), repeat=2)))
def test_what_a_change_of_level_means(old: int, new: int) -> None:
    wanted = {
        (0, 1): Input.RAISE,
        (0, 2): Input.RAISE,
        (1, 2): Input.ESCALATE,
        (2, 1): Input.DEESCALATE,
        (1, 0): Input.CLEAR,
        (2, 0): Input.CLEAR,
    }
    assert lifecycle.input_of(old, new) == wanted.get((old, new))
    repeat = {(1, 1): Input.REPEAT, (2, 2): Input.REPEAT}
    assert lifecycle.input_of(old, new, again=True) == (wanted | repeat).get((old, new))
