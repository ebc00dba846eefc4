"""The law of the delivery promise, kept by whoever receives: received + gaps = due, each number once, each value as it was.

Rule: nothing here asks the agent. What was due is known from the devices: a question that a device answered falls into one
beat (whole multiples of the period on CLOCK_MONOTONIC, contract §6), so between two answered beats of a machine so many
rows were due as beats lie between. Of these each was received (bad rows too), or stands in a gap record.

What is exact and what is not:
- The agent is stopped once before the faults and once after them, in the middle of a period, where no beat is cut in two
  and nothing is left to be told. Counted is from the last answered beat before the one stop to that before the other.
- A beat around a `kill -9` is due like any other: it was asked or not, its row was committed or not. The `restart` gap has
  to count just those whose rows were not. There is no tolerance.
- A row right after bad ones may be the answer to a question of an earlier beat: the bad rows stand for the beats that the
  agent waited for it. It is received, but no mark of where a hole begins or ends.
- A `restart` gap stands between the last row before the kill and the first after it, so it is held against the holes around
  it one by one. Gaps that come later than their hole (`overload`, `disk_full`) are held against the sum.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

import orjson

from bench.plant import Answer

LATE = b',"late":true}'
KINDS = ("measurements", "warnings", "gaps")
SLACK_US = 500_000
"""Between a question's way to the device and what the agent says of its answer, on a machine with much to do."""
Key = tuple[str, int]
"""Epoch and seq."""


def _us(stamp: str) -> int:
    """UTC µs of a stamp of the contract."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1e6)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement message. beat: of the question whose answer it brings; None: all of it is bad."""

    seq: int
    beat: int | None


@dataclass(frozen=True, slots=True)
class GapRecord:
    """A gap as it was received."""

    seq: int
    cause: str
    count: int
    first: int | None
    last: int | None


@dataclass(slots=True)
class Ledger:
    """What was sent and what was delivered, message by message. answers: of each machine its device's, see plant.Device."""

    answers: Mapping[str, Sequence[Answer]]
    period_us: int
    begun: int = 0
    """Up to this number nothing counts but the last row of each machine, see `begin`."""
    rows: dict[str, dict[int, Row]] = field(default_factory=dict)
    gaps: dict[int, GapRecord] = field(default_factory=dict)
    delivered: set[Key] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    """What may never be, in words."""
    late: int = 0
    repeats: int = 0
    events: Counter[str] = field(default_factory=Counter)
    _digests: dict[Key, bytes] = field(default_factory=dict)
    _newest: dict[tuple[int, str, bool], int] = field(default_factory=dict)
    _used: dict[tuple[str, int], int] = field(default_factory=dict)

    def sent(self, connection: int, topic: str, payload: bytes) -> None:
        """A message on its way: the same number has the same bytes, and the numbers of a topic and kind are in order."""
        if topic.rpartition("/")[2] not in KINDS:
            return
        late = payload.endswith(LATE)
        bare = payload[: -len(LATE)] + b"}" if late else payload
        plain = orjson.loads(bare)
        key = (plain["epoch"], plain["seq"])
        digest = hashlib.blake2b(topic.encode() + b"\0" + bare, digest_size=16).digest()
        known = self._digests.setdefault(key, digest)
        if known != digest:
            self.wrong.append(f"seq {key[1]} was sent with other bytes on {topic}")
        self.late += late
        lane = (connection, topic, late)
        if key[1] <= self._newest.get(lane, 0):
            self.wrong.append(f"seq {key[1]} came after {self._newest[lane]} on {topic} ({'late' if late else 'live'})")
        self._newest[lane] = key[1]

    def acknowledged(self, topic: str, payload: bytes) -> None:
        """The broker has taken a message."""
        machine, _, kind = topic.rpartition("/")
        if kind not in KINDS:
            return
        plain = orjson.loads(payload)
        key = (plain["epoch"], plain["seq"])
        if key in self.delivered:
            self.repeats += 1
            return
        self.delivered.add(key)
        if kind == "gaps":
            self.gaps[key[1]] = _gap(plain)
        elif kind == "warnings":
            self.events[plain["event"]] += 1
        else:
            name = machine.rpartition("/")[2]
            self.rows.setdefault(name, {})[key[1]] = Row(key[1], self._beat(name, plain))

    def _beat(self, machine: str, plain: dict[str, Any]) -> int | None:
        """The beat of a row; every value in it must be an answer of its device that has its register."""
        answers, values = self.answers[machine], plain.get("values") or {}
        found: dict[int, Answer] = {}
        for name, value in values.items():
            number, register = int(value), 2 * int(name[1:])
            answer = found.get(number) or (answers[number - 1] if 1 <= number <= len(answers) else None)
            if answer is None or value != number or not answer.first <= register < answer.first + answer.count:
                self.wrong.append(f"{machine}.{name} = {value} was never the device's answer (seq {plain['seq']})")
                return None
            found[number] = answer
        for number in found:
            before = self._used.setdefault((machine, number), plain["seq"])
            if before != plain["seq"]:
                self.wrong.append(f"answer {number} of {machine} stands in seq {before} and in seq {plain['seq']}")
        if not found:
            return None
        first, last = min(each.us for each in found.values()), max(each.us for each in found.values())
        # An agent that stood still while it read brings what is further apart, with a stamp of its own (contract section 2).
        own = plain.get("at") or {}
        for name, value in values.items():
            if last - (asked := found[int(value)].us) >= self.period_us + SLACK_US:
                said = None if name not in own else _us(plain["ts"]) - _us(own[name])
                if said is None or abs(said - (last - asked)) > SLACK_US:
                    self.wrong.append(
                        f"{machine}.{name} was read {(last - asked) / 1e6:.2f} s before others of its row (seq {plain['seq']}), "
                        f"and says {'nothing of it' if said is None else f'{said / 1e6:.2f} s'}"
                    )
        return first // self.period_us

    def begin(self) -> None:
        """The agent has stopped, and all that it had to tell was delivered: the account begins here."""
        self.begun = max(seq for _, seq in self.delivered)

    def forget(self, key: Key) -> None:
        """Negative control: a consumer that loses one message."""
        self.delivered.discard(key)
        for its in self.rows.values():
            its.pop(key[1], None)


def _gap(plain: dict[str, Any]) -> GapRecord:
    return GapRecord(plain["seq"], plain["cause"], plain["count"], plain["from_seq"], plain["to_seq"])


@dataclass(frozen=True, slots=True)
class Hole:
    """Beats between two answered beats of a machine that have no row. beats below 0: rows that are too many."""

    machine: str
    after: int
    before: int
    """The seq of the rows around it."""
    beats: int


@dataclass(slots=True)
class Account:
    """The sum. wrong: everything that breaks the promise, in words; empty when it was kept."""

    due: int = 0
    received: int = 0
    told: int = 0
    bad_rows: int = 0
    missing: list[int] = field(default_factory=list)
    last_beat: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def account(ledger: Ledger, committed: int = 0) -> Account:
    """Hold what was delivered against what was due. committed: numbers that a store was seen to hold, up to this one."""
    found = Account(wrong=list(ledger.wrong))
    epochs = {epoch for epoch, _ in ledger.delivered}
    if len(epochs) != 1:
        found.wrong.append(f"epochs: {', '.join(sorted(epochs)) or 'nothing was delivered'}")
        return found
    _numbers(ledger, found, committed)
    holes = [hole for machine in ledger.answers for hole in _machine(ledger, found, machine)]
    found.told = sum(gap.count for gap in gaps_of(ledger))
    if found.received + found.told != found.due:
        found.wrong.append(f"due {found.due:,}, received {found.received:,} + gaps {found.told:,}")
    _one_by_one(ledger, holes, found)
    return found


def gaps_of(ledger: Ledger) -> list[GapRecord]:
    """The gap records that count, in order."""
    return sorted((gap for gap in ledger.gaps.values() if gap.seq > ledger.begun), key=lambda gap: gap.seq)


def _numbers(ledger: Ledger, found: Account, committed: int) -> None:
    numbers = {seq for _, seq in ledger.delivered}
    told: set[int] = set()
    for gap in ledger.gaps.values():
        if gap.first is not None and gap.last is not None:
            told |= set(range(gap.first, gap.last + 1))
    found.missing = sorted(set(range(1, max(committed, *numbers) + 1)) - numbers - told)
    if found.missing:
        found.wrong.append(f"{len(found.missing)} numbers are missing: {found.missing[:10]}")


def _machine(ledger: Ledger, found: Account, machine: str) -> list[Hole]:
    rows = sorted(ledger.rows.get(machine, {}).values(), key=lambda row: row.seq)
    before = [row for row in rows if row.seq <= ledger.begun]
    rows = [*before[-1:], *(row for row in rows if row.seq > ledger.begun)]
    answered = [i for i, row in enumerate(rows) if row.beat is not None]
    if len(answered) < 2 or answered[0] != 0:
        found.wrong.append(f"no reading of {machine} was received at the beginning, or none since")
        return []
    rows = rows[: answered[-1] + 1]
    first, last = rows[0].beat, rows[-1].beat
    assert first is not None
    assert last is not None
    found.due += last - first
    found.received += len(rows) - 1
    found.bad_rows += sum(row.beat is None for row in rows)
    found.last_beat[machine] = last
    holes, between, known = [], 0, rows[0]
    for before_it, row in pairwise(rows):
        if row.beat is None or (before_it.beat is None and row is not rows[-1]):
            between += 1
            continue
        assert known.beat is not None
        beats = row.beat - known.beat - 1 - between
        if beats:
            holes.append(Hole(machine, known.seq, row.seq, beats))
        known, between = row, 0
    return holes


def _one_by_one(ledger: Ledger, holes: Sequence[Hole], found: Account) -> None:
    """Every hole has its restart, and every restart counts just its holes; unless other gaps share them."""
    for hole in holes:
        if hole.beats < 0:
            found.wrong.append(
                f"{hole.machine} has {-hole.beats} rows too many between seq {hole.after} and {hole.before}"
            )
    restarts = [gap.seq for gap in gaps_of(ledger) if gap.cause == "restart"]
    others = sum(gap.count for gap in gaps_of(ledger) if gap.cause != "restart")
    groups: list[list[int]] = []
    """Restarts that one hole spans belong together."""
    for seq in restarts:
        joined = groups and any(hole.after < groups[-1][-1] and seq < hole.before for hole in holes)
        if joined:
            groups[-1].append(seq)
        else:
            groups.append([seq])
    left = list(holes)
    for group in groups:
        its = [hole for hole in left if any(hole.after < seq < hole.before for seq in group)]
        left = [hole for hole in left if hole not in its]
        lost, told = sum(hole.beats for hole in its), sum(ledger.gaps[seq].count for seq in group)
        if lost < told or (lost > told and not others):
            each = ", ".join(f"{hole.machine} {hole.beats} (seq {hole.after} to {hole.before})" for hole in its)
            found.wrong.append(f"the restart at seq {group[0]} tells of {told} rows; {lost} were not received: {each}")
    if left and not others:
        lost = sum(hole.beats for hole in left)
        found.wrong.append(f"{lost} beats without a row and without a gap, e.g. {left[0]}")
