"""The store beside a twin in plain memory, over any order of what can happen to it."""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
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
from edge_agent.store import disk, rows
from edge_agent.store.committed import Committed
from edge_agent.store.journal import Store, open_store
from tests.conftest import StandingClock
from tests.test_store import LAYOUT, WALL, due_of, equal, event, frame
from tests.test_store_damage import damage, named

OTHER = Layout("pump-1", ("flow",), ())
LAYOUTS = (LAYOUT, OTHER)
MEMORY = "/dev/shm"
STEPS = int(os.environ.get("STEPS") or 100000)
"""Of all random walks together (make soak: a million)."""
SEED = int(os.environ.get("SEED") or 1)
WALK = 400
"""Steps with one store, which is then thrown away."""


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
        self.root = Path(tempfile.mkdtemp(prefix="edge-agent-model-", dir=MEMORY))
        self.loop = asyncio.new_event_loop()
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
        self.loop.close()
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
        assert self.committed()
        self.landed()

    def committed(self) -> bool:
        return self.loop.run_until_complete(self.store._commit())

    @rule()
    def commit_on_a_full_disk(self) -> None:
        """As full as sqlite can be told to be: no page more than there are. What is refused waits, and lands later."""
        pages = self.store._writer.db.execute("PRAGMA page_count").fetchone()[0]
        self.store._writer.db.execute(f"PRAGMA max_page_count={pages}")
        landed = self.committed()
        self.store._writer.db.execute("PRAGMA max_page_count=1000000")
        if landed:
            self.landed()
        else:
            assert self.store.status()["state"] == "failing"

    @rule()
    def commit_after_a_sync_that_failed(self) -> None:
        """The file is not trusted any more: another takes its place, with all that it had."""
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        before = (self.folder / disk.FILE).stat().st_ino
        self.store._failed(error)
        assert self.committed()
        if self.store.fault is not None:  # there was nothing to commit
            self.store.put([], gaps=[Gap(GapCause.RESTART, 1, WALL, WALL)])
            assert self.committed()
        self.landed()
        assert (self.folder / disk.FILE).stat().st_ino != before
        assert not list(self.folder.glob("*damaged*"))

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
    """The same with next to no buffer: readings yield, counted to the row; warnings, named, where no reading is left to."""

    limited = True

    def begin(self) -> None:
        super().begin()
        self.store.limit(1_500, 10**15, 1_000_000)

    @invariant()
    def pending_is_what_is_due(self) -> None:
        found = {each.seq: each.payload(late=False) for each in due_of(self.store, 0, 10**6)}
        plain = {seq: json.loads(payload) for seq, payload in self.ever.items()}
        for seq in list(self.due):
            if "cause" not in plain[seq] and seq not in found:
                if "event" in plain[seq]:
                    assert self.batches() <= 2 + self.waited, "readings go first"
                del self.due[seq]  # yielded
                self.done.add(seq)
        assert found == self.due
        assert self.store.pending_count == len(found)

    def batches(self) -> int:
        count: int = self.store._reader.execute("SELECT count(*) FROM batches").fetchone()[0]
        return count

    @rule()
    def commit(self) -> None:
        self.waited = len(self.store._sealed)
        super().commit()
        self.account()

    def account(self) -> None:
        """Delivered, due and yielded are all there ever were."""
        plain = [json.loads(payload) for payload in self.ever.values()]
        readings = [each for each in plain if "values" in each]
        gaps = [each for each in plain if each.get("cause") == "buffer_limit"]
        gone = set(self.ever) - {each.seq for each in due_of(self.store, 0, 10**6)} - self.acknowledged
        rows = {seq for seq in gone if "values" in json.loads(self.ever[seq])}
        assert len(rows) == sum(each["count"] for each in gaps)
        assert gone <= named(gaps)
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
        self.waited = 0
        """Batches that were written together with the last one: what is being written cannot yield."""
        super().__init__()


many = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
TestTwin = pytest.mark.timeout(240)(Twin.TestCase)
TestTwin.settings = many
TestLimitedTwin = pytest.mark.timeout(240)(LimitedTwin.TestCase)
TestLimitedTwin.settings = many


# --- long walks ---------------------------------------------------------------------------------------------------------
# What hypothesis walks it can shrink, but it thinks longer about a step than the store takes for it.


class Harmed(Twin):
    """The same, and now and then bytes are flipped, blanked or cut off: what is not told right is told as lost."""

    limited = True  # after a damage the memory of the judge is as old as what is left of it

    def __init__(self) -> None:
        self.harms = self.untold = 0
        super().__init__()

    def harm(self, chance: random.Random) -> None:
        self.stack.close()
        self.landed()
        ever, due = dict(self.ever), dict(self.due)
        damage(self.folder, chance)
        self.begin()
        found: dict[int, Committed] = {}
        for _ in range(4):  # damage that is found only when it is looked at is mended by the next commit
            self.committed()
            found = {each.seq: each for each in due_of(self.store, 0, 10**6)}
        said = {seq: each.payload(late=False) for seq, each in found.items()}
        same = {seq for seq in said if ever.get(seq) == said[seq]}
        others = said.keys() & ever.keys() - same
        wrong = [seq for seq in others if epoch_of(said[seq]) == epoch_of(ever[seq])]
        assert not wrong, f"a number was given to other bytes: {wrong}"
        gaps = [json.loads(said[seq]) for seq in found.keys() - same if found[seq].kind == "gaps"]
        counted = sum(each["count"] for each in gaps if each["cause"] == "damage")
        self.harms += 1
        self.untold += counted + len(same & due.keys()) < len(due) and not due.keys() - same <= named(gaps)
        self.ever = {**said, self.store.last_committed: said.get(self.store.last_committed, b"")}
        self.due, self.epoch = dict(said), self.store.epoch
        self.done = set(range(1, self.store.last_committed + 1)) - set(said)
        self.done_on_disk = set(self.done)

    def told(self, committed: Sequence[Committed]) -> None:
        self.ever = {
            seq: payload for seq, payload in self.ever.items() if payload or seq not in {e.seq for e in committed}
        }
        super().told(committed)


def epoch_of(payload: bytes) -> str:
    return str(json.loads(payload)["epoch"]) if payload else ""


Kind = type[Twin]


def walk(kind: Kind, seed: int, steps: int) -> Twin:
    """A random walk over the rules, reproduced by its seed."""
    chance, twin = random.Random(seed), kind()
    moves: list[tuple[float, Any]] = [
        (30, lambda: twin.put([chance.random() < 0.7 for _ in range(chance.randrange(4))], chance.choice([frame, other]))),
        (8, twin.warn), (2, twin.miss), (2, twin.command), (3, twin.keep_state), (16, twin.commit),
        (14, lambda: twin.deliver(chance, chance.random())), (3, twin.commit_on_a_full_disk),
        (1, twin.commit_after_a_sync_that_failed), (1, twin.crash), (1, twin.reopen),
        (2, lambda: twin.due and twin.page_by_page(chance.randint(1, 5))),
    ]  # fmt: skip
    if isinstance(twin, Harmed):
        moves.append((2, lambda: twin.harm(chance)))
    weights = [weight for weight, _ in moves]
    try:
        for _, move in chance.choices(moves, weights, k=steps):
            move()
            if isinstance(twin, LimitedTwin) or chance.random() < 0.2:  # who yields is asked what has yielded
                twin.pending_is_what_is_due()
        twin.pending_is_what_is_due()
    except BaseException:
        print(f"seed {seed}, {kind.__name__}")
        raise
    finally:
        twin.teardown()
    return twin


SHARES: dict[Kind, tuple[int, float]] = {Twin: (WALK, 0.6), LimitedTwin: (60, 0.1), Harmed: (WALK, 0.3)}
"""Steps of one walk, and the share of all. Who yields is asked after each step, which takes the longer the more there was."""


@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("kind", [Twin, LimitedTwin, Harmed], ids=lambda kind: kind.__name__)
def test_after_many_random_steps_the_store_is_what_its_twin_says(kind: Kind) -> None:
    steps, share = SHARES[kind]
    walks = max(1, round(STEPS * share / steps))
    print(f"{walks * steps} steps, seeds {SEED}000000 to {SEED}000000 + {walks - 1}")
    twins = [walk(kind, SEED * 1_000_000 + number, steps) for number in range(walks)]
    harmed = [twin for twin in twins if isinstance(twin, Harmed)]
    harms, untold = sum(twin.harms for twin in harmed), sum(twin.untold for twin in harmed)
    print(f"{harms} damages, after {untold} of them a loss was not counted to the last message")
    assert untold <= 0.05 * harms, "only where the file and its marker both forget how far the store had come"


class Forgetful(Twin):
    """A store that drops the frames of every seventh batch."""

    def begin(self) -> None:
        super().begin()
        whole = self.store._writer.write_batch

        def write(batch: Any, state: disk.State) -> int:
            if batch.number % 7 == 0:
                batch.items = []
            return whole(batch, state)

        self.store._writer.write_batch = write  # type: ignore[method-assign]


class Twice(Twin):
    """A store that does not remember what was delivered."""

    def begin(self) -> None:
        super().begin()
        self.store._changes = lambda batches: None  # type: ignore[method-assign]
        plain = self.store._state
        self.store._state = lambda batches: replace(plain(batches), delivered=[])  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", [Forgetful, Twice])
def test_a_store_that_forgets_is_found_by_the_walk(kind: Kind) -> None:
    """Negative controls."""
    with pytest.raises(AssertionError):
        for seed in range(20):
            walk(kind, seed, WALK)


def test_a_store_that_believes_damaged_rows_is_found_by_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(rows, "sound", lambda row: True)
    with pytest.raises((AssertionError, ValueError, TypeError, KeyError, IndexError)):
        for seed in range(40):
            walk(Harmed, seed, WALK)
