"""The store beside a twin in plain memory, over any order of what can happen to it."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.contract import Frame
from edge_agent.records import Command, Gap, GapCause, JudgedFrame, Layout
from edge_agent.store.journal import Committed, Store, open_store
from tests.conftest import StandingClock
from tests.test_store import LAYOUT, WALL, due_of, equal, event, frame

OTHER = Layout("pump-1", ("flow",), ())
LAYOUTS = (LAYOUT, OTHER)


def other(number: int, publish: Sequence[bool]) -> JudgedFrame:
    """A tick of another machine, with values whose bits are easily lost."""
    rows = len(publish)
    t = np.arange(number, number + rows, dtype=np.int64)
    values = np.array([-0.0, np.nan, 5e-324])[:rows].reshape(rows, 1)
    told = Frame("pump-1", t, t + WALL, values, np.full((rows, 1), 0x1C, np.uint8), None, tick=True)
    return JudgedFrame(told, np.full(rows, -1, np.int16), np.array(publish, np.bool_))


class Twin(RuleBasedStateMachine):
    """due: payloads by seq that the broker has yet to have. judged: what a restart would judge again."""

    def __init__(self) -> None:
        super().__init__()
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
        self.root = Path(tempfile.mkdtemp())
        self.folder, self.copies, self.count = self.root / "0", 0, 0
        self.clock = StandingClock()
        self.ever: dict[int, bytes] = {}
        self.due: dict[int, bytes] = {}
        self.done_on_disk: set[int] = set()
        self.done: set[int] = set()
        self.waiting: list[JudgedFrame | Command | bytes] = []
        self.judged: list[JudgedFrame | Command] = []
        self.snapshot: bytes | None = None
        self.rows_due = self.rows_waiting = 0
        self.begin()
        self.epoch = self.store.epoch

    def begin(self) -> None:
        self.stack = ExitStack()
        self.store: Store = self.stack.enter_context(open_store(self.folder, self.clock))
        found = self.store.recovery()
        items = list(found.items)
        if not self.limited:
            assert found.snapshot == self.snapshot
            assert len(items) == len(self.judged)
            for got, put in zip(items, self.judged, strict=True):
                same = equal(got, put) if isinstance(got, JudgedFrame) and isinstance(put, JudgedFrame) else got == put
                assert same
        self.store.on_committed.append(self.told)
        self.store.use_layouts(LAYOUTS)

    limited = False

    def told(self, committed: Sequence[Committed]) -> None:
        seqs = [each.seq for each in committed]
        assert seqs == sorted(seqs)
        for each in committed:
            payload = each.payload(late=False)
            assert self.ever.setdefault(each.seq, payload) == payload, "a number was given to other bytes"
            self.due[each.seq] = payload

    def teardown(self) -> None:
        self.stack.close()
        shutil.rmtree(self.root)

    @rule(rows=st.lists(st.booleans(), max_size=3), machine=st.sampled_from([frame, other]))
    def put(self, rows: list[bool], machine: Any) -> None:
        self.count += 1
        judged = machine(self.count, rows)
        self.store.put([judged])
        self.waiting.append(judged)
        self.rows_waiting += sum(rows)

    @rule()
    def warn(self) -> None:
        self.count += 1
        self.store.put([], [event(self.count)])

    @rule()
    def miss(self) -> None:
        self.count += 1
        self.store.put([], gaps=[Gap(GapCause.RESTART, self.count, WALL, WALL)])

    @rule()
    def command(self) -> None:
        self.count += 1
        asked = Command("acknowledge", WALL, self.count, "x", "ann", "ok", {"for": 1})
        self.store.put([], commands=[asked])
        self.waiting.append(asked)

    @rule()
    def keep_state(self) -> None:
        self.count += 1
        state = b"%d" % self.count
        self.store.put_snapshot(state, "{}")
        self.waiting.append(state)

    @rule()
    def commit(self) -> None:
        assert asyncio.run(self.store._commit())
        self.landed()

    def landed(self) -> None:
        for item in self.waiting:
            if isinstance(item, bytes):
                self.snapshot, self.judged = item, []
            else:
                self.judged.append(item)
        self.waiting.clear()
        self.rows_due, self.rows_waiting = self.rows_due + self.rows_waiting, 0
        self.done_on_disk = set(self.done)

    @rule(chance=st.randoms(use_true_random=False), share=st.floats(0, 1))
    def deliver(self, chance: Any, share: float) -> None:
        some = [seq for seq in self.due if chance.random() < share]
        self.store.delivered([*some, *some, 0, 10**9])
        self.done |= set(some)
        for seq in some:
            del self.due[seq]

    @rule()
    def crash(self) -> None:
        self.copies += 1
        copy = self.root / str(self.copies)
        shutil.copytree(self.folder, copy)
        self.stack.close()
        self.folder = copy
        self.forget()
        self.begin()
        assert self.store.epoch == self.epoch

    def forget(self) -> None:
        # What was never committed may be given other bytes; what was delivered since the commit is due again.
        self.waiting.clear()
        self.rows_waiting = 0
        self.due |= {seq: self.ever[seq] for seq in self.done - self.done_on_disk}
        self.done = set(self.done_on_disk)

    @rule()
    def reopen(self) -> None:
        before = set(self.ever)
        self.stack.close()
        self.landed()
        self.begin()
        assert self.store.epoch == self.epoch
        # A good end commits what waited; nobody heard of it yet.
        fresh = [each for each in due_of(self.store, 0, 10**6) if each.seq not in before]
        self.told(fresh)

    @invariant()
    def pending_is_what_is_due(self) -> None:
        found = due_of(self.store, 0, 10**6)
        assert [each.seq for each in found] == sorted(self.due)
        assert {each.seq: each.payload(late=False) for each in found} == self.due
        assert self.store.pending_count == len(self.due)
        assert self.store.last_committed == self.store.status()["seq"] == max(self.ever, default=0)
        assert (self.store.oldest_pending_us is None) == (not self.due)

    @precondition(lambda self: self.due)
    @rule(limit=st.integers(1, 5))
    def page_by_page(self, limit: int) -> None:
        seen: list[int] = []
        while page := due_of(self.store, seen[-1] if seen else 0, limit):
            assert len(page) <= limit
            seen += [each.seq for each in page]
        assert seen == sorted(self.due)


class LimitedTwin(Twin):
    """The same with next to no buffer: readings yield, counted to the row; warnings never."""

    limited = True

    def begin(self) -> None:
        super().begin()
        self.store.limit(600, 10**15, 1_000_000)

    @invariant()
    def pending_is_what_is_due(self) -> None:
        found = {each.seq: each.payload(late=False) for each in due_of(self.store, 0, 10**6)}
        plain = {seq: json.loads(payload) for seq, payload in self.ever.items()}
        for seq in list(self.due):
            if "values" in plain[seq] and seq not in found:
                del self.due[seq]  # yielded
                self.done.add(seq)
        assert found == self.due
        assert self.store.pending_count == len(found)

    @rule()
    def commit(self) -> None:
        super().commit()
        self.account()

    def account(self) -> None:
        """Delivered, due and yielded are all there ever were."""
        plain = [json.loads(payload) for payload in self.ever.values()]
        readings = [each for each in plain if "values" in each]
        yielded = sum(each["count"] for each in plain if each.get("cause") == "buffer_limit")
        gone = set(self.ever) - {each.seq for each in due_of(self.store, 0, 10**6)} - self.acknowledged
        assert len(gone) == yielded
        assert len(readings) == self.rows_due

    @rule(chance=st.randoms(use_true_random=False), share=st.floats(0, 1))
    def deliver(self, chance: Any, share: float) -> None:
        before = set(self.due)
        super().deliver(chance, share)
        self.acknowledged |= before - set(self.due)

    @rule()
    def crash(self) -> None:
        """A crash may bring back what was delivered since the last commit: not part of this count."""

    def __init__(self) -> None:
        self.acknowledged: set[int] = set()
        super().__init__()


many = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestTwin = pytest.mark.timeout(240)(Twin.TestCase)
TestTwin.settings = many
TestLimitedTwin = pytest.mark.timeout(240)(LimitedTwin.TestCase)
TestLimitedTwin.settings = many
