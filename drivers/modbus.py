"""The Modbus driver: one line or connection, all its units, read-only.

Rule 1: the failure of a block or a unit is a BAD quality of its own points; only a dead line is DeviceSilent.
Rule 2: no fault of one unit may use up the read of the others: a read waits for TIMEOUTS_PER_READ timeouts at most, and
units that are silent are asked in the time between reads.
Requests and answers are `modbus_frames` and `modbus_map`, the way to the device `modbus_line`, `modbus_wire` and
`modbus_channels`, what devices refuse `modbus_lessons`; here is the policy.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import BaseModel

from drivers import modbus_load
from drivers.modbus_channels import connect, wire_to
from drivers.modbus_lessons import Lessons, Place, halves, place_of, rest_us
from drivers.modbus_line import Counts, Line, Patience, Round
from drivers.modbus_map import (
    BUSY,
    EXCEPTION_WORDS,
    REFUSALS,
    TEXT,
    UNREACHED,
    Block,
    Item,
    Limits,
    Outcome,
    Plan,
    address_order,
    decode,
    make_plan,
    text_of,
)
from drivers.modbus_settings import ModbusAddress, ModbusConnection
from drivers.modbus_wire import WireLine
from edge_agent.contract import (
    LINE_BUSY,
    Clock,
    Codes,
    DeviceRefused,
    DeviceSilent,
    Driver,
    Ints,
    Point,
    Quality,
    Readings,
    Session,
)

log = logging.getLogger(__name__)

TIMEOUTS_PER_READ = 2
SILENT_STREAK = 3
"""Timeouts in a row, with no unit heard between, after which the line counts as dead."""
MISSES_BEFORE_BACKOFF = 2
RECONNECTS_PER_READ = 2
EXTRA_REQUESTS_MAX = 64
"""In one read, for blocks that were refused or busy."""
BUSY_PAUSE_S = 0.1
REST_MIN_US, REST_MAX_US = 1_000_000, 15_000_000
"""Of a silent unit. Between reads a probe costs nobody anything, so it is heard soon after it is back."""
PATIENT_EVERY = 50
"""Timeouts between two probes for which a read waits: where the time between reads is too short to wait in, a silent unit
costs the others 2 % of the time, and 4 % of their readings where each wait spoils two."""
PROBE_MIN_US = 20_000
"""Less time between two reads is no time to be answered in."""
PROBE_MARGIN_US = 10_000
PLANS_MAX = 64
FAULT_LOG_EVERY_US = 60_000_000
MORE_LINES_EVERY_US, MORE_LINES_MAX_US = 60_000_000, 3_600_000_000
"""A device that takes more connections than it serves costs the first read over each a timeout: it is tried ever less."""
SPLIT_BY = frozenset({2, 3})
"""Refusals that may mean only part of a block: an address, or more registers than the device gives at once."""


@dataclass(slots=True)
class Silence:
    """A unit that owes answers: how often in a row, and from when it may be asked again."""

    misses: int
    probe_at_us: int


_SESSIONS: dict[tuple[asyncio.AbstractEventLoop, str, int], list["ModbusSession"]] = {}
"""Those that are open now, by where they lead."""


class ModbusSession:
    """See contract.Session. Points are known by their number in the order that `open` was given."""

    def __init__(self, connection: ModbusConnection, items: Sequence[Item], clock: Clock) -> None:
        self._settings, self._place, self._clock = connection, connection.place, clock
        self._limits = Limits(connection.max_gap, connection.max_block)
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._lines: list[Line] | list[WireLine] = []
        """Those that were opened last: one, or as many as `connections` says and the device allows."""
        self._open = AsyncExitStack()
        self._more_lines_at_us = 0
        self._mute_times = 0
        """How often a connection was left that answered nothing while others did."""
        self._counts = Counts()
        self._heard: set[int] = set()
        self._silent: dict[int, Silence] = {}
        self._patient_at_us = 0
        self._items = items
        self.units = {item.unit for item in items}
        self._guarded = connection.one_at_a_time(self.units)
        self.neighbours: list[ModbusSession] = []
        """Serial units may stand behind it: only a wire knows what late answers are there. Once so, for a session's life."""
        self._order, self._rank = _ordered(items)
        self._lessons = Lessons(items, self._order, self._rank)
        self._outcomes = np.zeros(len(items), dtype=np.int16)
        """Of each point, the last one: for people."""
        self._any_odd = False
        self._words: dict[int, str] = {}
        """Of points whose last answer was broken, in which way."""
        self._reconnects_left = self._timeouts_left = self._extra_left = 0
        self._fault_logged_us: int | None = None

    # ------------------------------------------------------------------------------------------------- the promises

    async def read(self, due: Ints) -> Readings:
        """See contract.Session.read. ts is when each answer was complete, for silence when it was given up.

        An answer that is found after its time has the stamp of its question: this process stood still meanwhile, so that the
        value may be as old as that.
        """
        self._reconnects_left, self._timeouts_left = RECONNECTS_PER_READ, TIMEOUTS_PER_READ
        self._extra_left = EXTRA_REQUESTS_MAX
        if not self._guarded and len(self.neighbours) > 1:
            # Connections of one unit each to the same gateway are one line too.
            self._guarded = self._settings.one_at_a_time(set().union(*(each.units for each in self.neighbours)))
        if not self._up or (self._guarded and isinstance(self._lines[0], Line)):
            await self.connect()
        elif len(self._lines) < self._settings.connections or not all(line.up for line in self._lines):
            await self._more_lines()
        asked = self._asked(due)
        readings, round_ = await self._read(self._plan(asked))
        if not round_.odd and len(asked) == len(due):
            return readings
        whole = Readings(
            np.full(len(due), np.nan),
            np.full(len(due), Quality.REFUSED, dtype=np.uint8),
            np.full(len(due), self._clock.wall_us(), dtype=np.int64),
        )
        _lay(readings, asked, whole, due)
        try:
            refused = _refused(round_)
            if (busy := self._busy(round_)) is not None:
                await asyncio.sleep(BUSY_PAUSE_S)
                readings, round_ = await self._read(self._fresh_plan(busy))
                _lay(readings, busy, whole, due)
                refused += _refused(round_)
            for block in refused:
                await self._sort_out(block, whole, due)
        except DeviceSilent:
            pass  # what the first pass brought stands; the next read will find the line down
        if self._silent and len(asked) < len(due):
            # What rests because it was refused was not asked now: it speaks for no unit that is silent.
            resting = np.setdiff1d(due, asked, assume_unique=True)
            gone = resting[[self._items[i].unit in self._silent for i in resting.tolist()]]
            whole.quality[np.searchsorted(due, gone)] = Quality.TIMEOUT
        return whole

    async def idle(self, until_us: int) -> int:
        """See contract.Idles.idle: units that are silent are asked here, where nobody waits."""
        while (unit := self._unit_to_probe()) is not None and self._up:
            wait_us = min(self._settings.timeout, until_us - self._clock.monotonic_us() - PROBE_MARGIN_US)
            # A gateway that waits for a unit serves nobody else, whether we wait with it or not.
            if wait_us < (self._settings.timeout if self._behind_gateway() else PROBE_MIN_US):
                return until_us
            round_ = Round(self._probe(unit), 1)
            await self._run(round_, deque(range(len(round_.plan.blocks))), Patience(wait_us))
            self._note_units(round_)
            if not _answered(round_.outcomes[0]):
                break
        return min((self._silent[unit].probe_at_us for unit in self._silent.keys() & self.units), default=until_us)

    async def describe(self, points: Sequence[Point]) -> list[str | None]:
        """See contract.Describes.describe."""
        texts: list[str | None] = []
        for point in points:
            text = point.settings.item(self._settings)
            registers = [replace(text, start=text.start + i, type="uint16") for i in range(text.width)]
            plan = make_plan(registers, np.arange(len(registers)), self._lessons.limits(self._limits))
            round_ = Round(plan, 1)
            if self._up and self._may_be_described(text.unit):
                await self._run(round_, deque(range(len(plan.blocks))))
                self._note_units(round_)
            told = all(outcome == Outcome.OK for outcome in round_.outcomes)
            data = b"".join(bytes(plan.payload[block.offset : block.offset + block.size]) for block in plan.blocks)
            texts.append(text_of(data, int(text.type[len(TEXT) :]), text.byte_order) if told else None)
        return texts

    def _may_be_described(self, unit: int) -> bool:
        """A unit of which only texts are read is probed by nobody else: once its rest is over it may be asked."""
        silence = self._silent.get(unit)
        rested = silence is not None and silence.probe_at_us <= self._clock.monotonic_us()
        return silence is None or (rested and unit not in self.units)

    def counters(self) -> dict[str, int | float]:
        return asdict(self._counts) | {
            **self._line_use(),
            "silent_units": len(self._silent),
            "refused_points": self._lessons.refused_points,
        }

    def use(self, points: Sequence[Point]) -> None:
        """See contract.Session.use. What was refused is tried again; which units are silent is kept."""
        items = _items(points, self._settings)
        _check_widths(str(self._place), self._settings, items)
        self._items = items
        self._order, self._rank = _ordered(items)
        self._lessons = self._lessons.moved(items, self._order, self._rank)
        self._plans.clear()
        self._outcomes = np.zeros(len(items), dtype=np.int16)
        self._any_odd = False
        self._words.clear()
        self.units = units = {item.unit for item in items}
        self._guarded = self._guarded or self._settings.one_at_a_time(units)
        self._heard &= units
        self._silent = {unit: silence for unit, silence in self._silent.items() if unit in units}

    def recall(self, notes: bytes) -> None:
        """See contract.Remembers.recall."""
        try:
            self._lessons.recall(notes, self._clock.monotonic_us(), self._clock.wall_us())
        except ValueError as error:
            log.warning("modbus_notes_ignored %s: %s", self._place, error)
        self._plans.clear()

    def notes(self) -> bytes | None:
        """See contract.Remembers.notes."""
        if not self._lessons.changed:
            return None
        self._lessons.changed = False
        return self._lessons.notes(self._clock.monotonic_us(), self._clock.wall_us())

    def explain(self, point: int) -> str:
        """See contract.Session.explain."""
        item, outcome = self._items[point], int(self._outcomes[point])
        if outcome in REFUSALS and item.unit in self._silent:
            what = self._words_of(item, Outcome.SKIPPED)
        else:
            what = self._words[point] if outcome and point in self._words else self._words_of(item, outcome)
        return f"unit {item.unit}, {item.table.name.lower()} {item.start}: {what}" if what else ""

    def _words_of(self, item: Item, outcome: int) -> str:
        match outcome:
            case Outcome.OK:
                return ""
            case Outcome.TIMED_OUT:
                return f"no answer within {self._settings.timeout / 1e6:g} s"
            case Outcome.SKIPPED if item.unit in self._silent:
                wait_us = self._silent[item.unit].probe_at_us - self._clock.monotonic_us()
                return f"the unit is silent, it is asked again in {max(0, wait_us) / 1e6:.0f} s"
            case Outcome.SKIPPED:
                return "not asked, others of the line took the time"
            case Outcome.PENDING | Outcome.LOST | Outcome.MALFORMED:
                return self._fault or "the connection was lost"
            case _:
                return f"exception {outcome} ({EXCEPTION_WORDS[outcome]})"

    # -------------------------------------------------------------------------------------------------------- lines

    @property
    def _up(self) -> bool:
        return any(line.up for line in self._lines)

    @property
    def _fault(self) -> str:
        return next((line.fault for line in self._lines if line.fault), "")

    async def connect(self) -> None:
        """Bring a new line up in place of the old one. Raises DeviceSilent or DeviceRefused."""
        if self._lines:
            await self.close()
            self._counts.reconnects += 1
        if self._guarded:
            wire = await self._open.enter_async_context(wire_to(self._settings, self._clock))
            self._lines = [WireLine(wire, self._clock, self._settings.timeout, self._counts)]
        else:
            self._lines = [await connect(self._settings, self._clock, self._counts)]
            self._more_lines_at_us = 0
            self._mute_times = 0
            await self._more_lines()

    def _line_use(self) -> dict[str, int]:
        line = self._lines[0] if self._lines else None
        return {LINE_BUSY: line.wire.busy_us} if isinstance(line, WireLine) else {}

    def _behind_gateway(self) -> bool:
        return self._place.scheme in ("tcp", "tls", "udp") and self._guarded

    async def _more_lines(self) -> None:
        """As many connections as are wished; a device that allows fewer is asked again for them now and then."""
        now_us = self._clock.monotonic_us()
        standing = [line for line in self._lines if isinstance(line, Line)]
        if not standing or now_us < self._more_lines_at_us:
            return
        self._more_lines_at_us = now_us + MORE_LINES_EVERY_US
        for line in standing:
            if not line.up:
                await line.close()
        standing = [line for line in standing if line.up]
        while len(standing) < self._settings.connections:
            try:
                standing.append(await connect(self._settings, self._clock, self._counts))
            except (DeviceSilent, DeviceRefused) as error:
                log.warning("modbus_fewer_connections %s: %d, %s", self._place, len(standing), error)
                break
        self._lines = standing

    async def _without_the_mute(self, round_: Round) -> list[int]:
        """Leave connections over which nothing comes while others answer: many a device takes more than it serves.

        Returns what was asked over them in vain, to be asked over the others.
        """
        lines = [line for line in self._lines if isinstance(line, Line)]
        mute = [line for line in lines if line.up and line.silent_streak >= (SILENT_STREAK if line.heard else 1)]
        if not mute or not any(line.up and line.heard and not line.silent_streak for line in lines):
            return []
        for line in mute:
            await line.close()
        self._lines = standing = [line for line in lines if line not in mute]
        rest = rest_us(self._mute_times, MORE_LINES_EVERY_US, MORE_LINES_MAX_US)
        self._more_lines_at_us, self._mute_times = self._clock.monotonic_us() + rest, self._mute_times + 1
        words = "over the others nothing comes"
        log.warning("modbus_fewer_connections %s: %d, %s", self._place, len(standing), words)
        blocks = round_.plan.blocks
        answered = {blocks[n].unit for n, outcome in enumerate(round_.outcomes) if _answered(outcome)}
        again = [
            number
            for number, outcome in enumerate(round_.outcomes)
            if outcome in (Outcome.TIMED_OUT, Outcome.SKIPPED) and blocks[number].unit in answered
        ]
        for number in again:
            round_.outcomes[number] = Outcome.PENDING
        # They were waited for together.
        round_.timeouts_left = max(1, round_.timeouts_left)
        return again

    async def close(self) -> None:
        for line in self._lines:
            await line.close()
        await self._open.aclose()
        self._lines = []

    async def _run(self, round_: Round, todo: deque[int], patience: Patience | None = None) -> None:
        standing = [line for line in self._lines if line.up]
        if len(standing) == 1 or patience:
            await standing[0].run(round_, todo, patience)
            return
        async with asyncio.TaskGroup() as tasks:
            for line in standing:
                tasks.create_task(line.run(round_, todo))

    # ------------------------------------------------------------------------------------------------------ planning

    def _asked(self, due: Ints) -> Ints:
        before = self._lessons.segment
        asked = self._lessons.asked(due, self._clock.monotonic_us())
        if self._lessons.segment is not before:
            self._plans.clear()
        return asked

    def _plan(self, due: Ints) -> Plan:
        key = due.tobytes()
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._fresh_plan(due)
            if len(self._plans) > PLANS_MAX:
                self._plans.popitem(last=False)
        return plan

    def _fresh_plan(self, due: Ints) -> Plan:
        return make_plan(self._items, due, self._lessons.limits(self._limits), self._rank, self._lessons.segment)

    # ------------------------------------------------------------------------------------------------------- reading

    async def _read(self, plan: Plan) -> tuple[Readings, Round]:
        """One pass over a plan, around the units that are silent. Raises DeviceSilent when the line is dead."""
        round_ = Round(plan, self._timeouts_left)
        if not self._silent:
            await self._ask(round_, deque(range(len(plan.blocks))))
        else:
            await self._ask_around_the_silent(round_)
        if round_.odd or self._any_odd:
            self._outcomes[plan.due] = np.array(round_.outcomes, dtype=np.int16)[plan.block_of]
            self._any_odd = bool(self._outcomes.any())
            self._note_words(round_)
        if not round_.odd:
            self._note_success(plan)
            values, quality = decode(plan)
        else:
            self._timeouts_left = round_.timeouts_left
            self._note_units(round_)
            self._raise_when_dead(round_)
            values, quality = decode(plan, round_.outcomes)
        if round_.resynced:
            _doubt(round_, quality)
        return Readings(values, quality, _stamps(round_)), round_

    async def _ask(self, round_: Round, todo: deque[int]) -> None:
        """Ask these blocks, over fresh connections where one breaks, within the limits of a read."""
        while todo:
            if round_.timeouts_left <= 0:
                self._give_up(round_, todo, Outcome.SKIPPED)
                return
            if not await self._line_stands(round_):
                self._give_up(round_, todo, Outcome.LOST)
                return
            await self._run(round_, todo)
            if round_.odd and len(self._lines) > 1:
                todo.extend(await self._without_the_mute(round_))
            if Outcome.MALFORMED in round_.outcomes:
                self._log_fault()
            if not round_.retried:
                # A device that closed an idle connection just then has not failed, and noise on a serial line passes;
                # reading twice does no harm.
                again = {Outcome.LOST, Outcome.MALFORMED} if self._place.noisy else {Outcome.LOST}
                lost = [number for number, outcome in enumerate(round_.outcomes) if outcome in again]
                round_.retried = bool(lost)
                for number in lost:
                    round_.outcomes[number] = Outcome.PENDING
                todo.extendleft(reversed(lost))

    def _give_up(self, round_: Round, todo: Iterable[int], outcome: Outcome) -> None:
        now_us = self._clock.wall_us()
        for number in todo:
            round_.outcomes[number], round_.stamps[number] = outcome, now_us
            round_.odd = True

    async def _line_stands(self, round_: Round) -> bool:
        if self._up:
            return True
        if self._reconnects_left == 0:
            return False
        self._reconnects_left -= 1
        try:
            await self.connect()
        except DeviceSilent:
            if not any(outcome >= 0 or outcome == Outcome.MALFORMED for outcome in round_.outcomes):
                raise
            return False
        return True

    # ------------------------------------------------------------------------------------------------ units that are silent

    async def _ask_around_the_silent(self, round_: Round) -> None:
        """First the units that answer, then those with one miss, then, now and then, one that is silent."""
        blocks, now_us = round_.plan.blocks, self._clock.monotonic_us()
        nobody = Silence(0, 0)
        state = {unit: self._silent.get(unit, nobody) for unit in round_.plan.units}
        asleep = {unit for unit, silence in state.items() if silence.misses >= MISSES_BEFORE_BACKOFF}
        awake = [n for n, block in enumerate(blocks) if block.unit not in asleep]
        awake.sort(key=lambda n: state[blocks[n].unit].misses)
        await self._ask(round_, deque(awake))
        for _, unit in sorted((state[unit].probe_at_us, unit) for unit in asleep if state[unit].probe_at_us <= now_us):
            if round_.timeouts_left <= 0 or now_us < self._patient_at_us:
                break
            mine = [n for n, block in enumerate(blocks) if block.unit == unit]
            await self._ask(round_, deque(mine[:1]))
            if not _answered(round_.outcomes[mine[0]]):
                self._patient_at_us = now_us + PATIENT_EVERY * self._settings.timeout
                break
            await self._ask(round_, deque(mine[1:]))
        left = [n for n, o in enumerate(round_.outcomes) if o == Outcome.PENDING and blocks[n].unit in asleep]
        self._give_up(round_, left, Outcome.SKIPPED)

    def _unit_to_probe(self) -> int | None:
        now_us = self._clock.monotonic_us()
        resting = [(self._silent[unit].probe_at_us, unit) for unit in self._silent.keys() & self.units]
        due = [each for each in resting if each[0] <= now_us]
        return min(due)[1] if due else None

    def _probe(self, unit: int) -> Plan:
        """A read of one value of this unit."""
        mine = [i for i in self._order.tolist() if self._items[i].unit == unit]
        asked = self._lessons.asked(np.array(sorted(mine), dtype=np.int64), self._clock.monotonic_us())
        return self._fresh_plan(asked[:1] if len(asked) else np.array(mine[:1], dtype=np.int64))

    def _note_success(self, plan: Plan) -> None:
        self._heard |= plan.units
        if self._silent:
            for unit in plan.units:
                self._silent.pop(unit, None)
        if self._lessons.refused_points and self._lessons.answered(plan.due):
            self._plans.clear()

    def _note_units(self, round_: Round) -> None:
        """Who answered and who did not. A unit that was only skipped is what it was."""
        plan, now_us = round_.plan, self._clock.monotonic_us()
        for unit in plan.units:
            outcomes = [o for o, block in zip(round_.outcomes, plan.blocks, strict=True) if block.unit == unit]
            if any(_answered(outcome) for outcome in outcomes):
                self._heard.add(unit)
                self._silent.pop(unit, None)
            elif any(outcome == Outcome.TIMED_OUT or outcome in UNREACHED for outcome in outcomes):
                self._heard.discard(unit)
                misses = self._silent[unit].misses + 1 if unit in self._silent else 1
                rest = rest_us(misses - MISSES_BEFORE_BACKOFF, REST_MIN_US, REST_MAX_US) if misses > 1 else 0
                self._silent[unit] = Silence(misses, now_us + rest)
        if self._lessons.refused_points:
            good = np.array(round_.outcomes)[plan.block_of] == Outcome.OK
            if self._lessons.answered(plan.due[good]):
                self._plans.clear()

    def _raise_when_dead(self, round_: Round) -> None:
        place = self._place
        # The longest: another connection may not have been asked at all.
        streak = max((line.silent_streak for line in self._lines), default=0)
        if streak >= SILENT_STREAK and not self._heard:
            what = "is open, but nobody answers" if place.serial else "takes the connection and does not answer"
            raise DeviceSilent(f"{place} {what} ({streak} requests)", Quality.TIMEOUT)
        if all(outcome == Outcome.LOST for outcome in round_.outcomes):
            raise DeviceSilent(f"{place}: {self._fault or 'no connection'}")

    def _note_words(self, round_: Round) -> None:
        plan = round_.plan
        for point in plan.due.tolist():
            self._words.pop(point, None)
        for number, words in round_.words.items():
            self._words.update(dict.fromkeys(plan.due[list(plan.blocks[number].members)].tolist(), words))

    def _log_fault(self) -> None:
        """One line a minute at most, and only for what a person should look into."""
        now_us, fault = self._clock.monotonic_us(), self._fault
        if not fault or (self._fault_logged_us is not None and now_us < self._fault_logged_us + FAULT_LOG_EVERY_US):
            return
        self._fault_logged_us = now_us
        log.warning("modbus_line_left %s: %s", self._place, fault)

    # -------------------------------------------------------------------------------------------- busy and refused blocks

    def _busy(self, round_: Round) -> Ints | None:
        """Points whose device was busy, to be asked once more after a moment."""
        busy = [n for n, outcome in enumerate(round_.outcomes) if outcome in BUSY][: self._extra_left]
        self._extra_left -= len(busy)
        return np.sort(np.concatenate([_points(round_, n) for n in busy])) if busy else None

    async def _sort_out(self, refused: "_Refused", whole: Readings, due: Ints) -> bool:
        """Ask the halves of a refused block, and theirs, until it is known why. True when all of it was answered.

        A register that is refused all alone is guilty and rests. Where both halves are answered and the whole is not, it
        was too large, or reached across a hole that the device does not have.
        """
        now_us = self._clock.monotonic_us()
        two = halves(self._items, self._rank, refused.points) if refused.code in SPLIT_BY else None
        if two is None:
            self._lessons.refuse(refused.points, now_us)
            self._plans.clear()
            return False
        left = await self._asked_whole(two.left, whole, due)
        if not await self._asked_whole(two.right, whole, due) or not left:
            return False
        block = refused.block
        at = Place(block.unit, block.table, block.start, block.start + block.count)
        if self._lessons.explained(at):
            return True
        if two.gap is not None:
            across = await self._across(two.left, two.right)
            if across is None:
                return True
            if across in SPLIT_BY:
                self._lessons.hole(two.gap, now_us)
                self._plans.clear()
                return True
        largest = max(two.left, two.right, key=self._span)
        most = await self._most(refused.points, self._span(largest), block.count)
        self._lessons.size(block.unit, block.table, most, now_us)
        self._plans.clear()
        return True

    async def _asked_whole(self, points: Ints, whole: Readings, due: Ints) -> bool:
        """Read these and lay them where they belong; what is refused is sorted out. True when all was answered."""
        plan = self._fresh_plan(points)
        if self._extra_left < len(plan.blocks):
            return False
        self._extra_left -= len(plan.blocks)
        readings, round_ = await self._read(plan)
        _lay(readings, points, whole, due)
        fine = all(outcome == Outcome.OK or outcome in SPLIT_BY for outcome in round_.outcomes)
        for refused in _refused(round_):
            fine = await self._sort_out(refused, whole, due) and fine
        return fine

    async def _across(self, left: Ints, right: Ints) -> int | None:
        """What a read of just the hole between two halves brings: an outcome; None when it cannot be told."""
        ends = [(place_of(self._items[i]).end, i) for i in left.tolist()]
        starts = [(self._items[i].start, i) for i in right.tolist()]
        return await self._one(np.array([max(ends)[1], min(starts)[1]], dtype=np.int64))

    async def _most(self, points: Ints, answered: int, refused: int) -> int:
        """How many registers (or bits) from the first of these on come at once, between what was and what was not."""
        by_rank = points[np.argsort(self._rank[points])]
        places = [place_of(self._items[i]) for i in by_rank.tolist()]
        spans = np.maximum.accumulate([place.end for place in places]) - places[0].start
        while len(between := np.flatnonzero((spans > answered) & (spans < refused))):
            last = between[len(between) // 2]
            outcome = await self._one(by_rank[: last + 1])
            if outcome is None:
                break
            answered, refused = (int(spans[last]), refused) if outcome == Outcome.OK else (answered, int(spans[last]))
        return answered

    async def _one(self, points: Ints) -> int | None:
        """What one request for all of these brings: OK, or one of SPLIT_BY; None when it cannot be told."""
        plan = self._fresh_plan(np.sort(points))
        if len(plan.blocks) != 1 or self._extra_left < 1:
            return None
        self._extra_left -= 1
        _, round_ = await self._read(plan)
        outcome = round_.outcomes[0]
        return outcome if outcome == Outcome.OK or outcome in SPLIT_BY else None

    def _span(self, points: Ints) -> int:
        places = [place_of(self._items[i]) for i in points.tolist()]
        return max(place.end for place in places) - min(place.start for place in places)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A block that was refused, its points and the exception."""

    block: Block
    points: Ints
    code: int


def _points(round_: Round, number: int) -> Ints:
    return round_.plan.due[list(round_.plan.blocks[number].members)]


def _refused(round_: Round) -> list[_Refused]:
    return [
        _Refused(round_.plan.blocks[number], _points(round_, number), outcome)
        for number, outcome in enumerate(round_.outcomes)
        if outcome in REFUSALS
    ]


def _ordered(items: Sequence[Item]) -> tuple[Ints, Ints]:
    order = address_order(items)
    rank = np.empty(len(items), dtype=np.intp)
    rank[order] = np.arange(len(items))
    return order, rank


def _answered(outcome: int) -> bool:
    return (outcome >= 0 and outcome not in UNREACHED) or outcome == Outcome.MALFORMED


def _doubt(round_: Round, quality: Codes) -> None:
    """Mark what was read while a line came into step again: proved to be right, and yet close to what was not."""
    plan = round_.plan
    doubted = np.array([block.unit in round_.resynced for block in plan.blocks])[plan.block_of]
    quality[doubted & (quality == Quality.GOOD)] = Quality.UNCERTAIN


def _stamps(round_: Round) -> Ints:
    """(due,) when the answer that carries each point was complete."""
    if len(round_.stamps) == 1:
        stamps = np.empty(len(round_.plan.due), dtype=np.int64)
        stamps.fill(round_.stamps[0])
        return stamps
    return np.array(round_.stamps, dtype=np.int64)[round_.plan.block_of]


def _lay(part: Readings, points: Ints, whole: Readings, due: Ints) -> None:
    """Write the readings of these points where they stand among the due ones."""
    at = np.searchsorted(due, points)
    whole.values[at], whole.quality[at], whole.ts[at] = part.values, part.quality, part.ts


class ModbusDriver:
    """See contract.Driver; the entry point `modbus`."""

    Connection: type[BaseModel] = ModbusConnection
    Address: type[BaseModel] = ModbusAddress
    inherited: frozenset[str] = frozenset({"unit", "word_order", "byte_order"})

    def open(
        self, name: str, connection: ModbusConnection, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        return _open(name, connection, points, clock)

    def foresee(self, connection: ModbusConnection, points: Sequence[Point]) -> modbus_load.ModbusCost | None:
        """See contract.Foresees."""
        return modbus_load.foreseen(connection, _items(points, connection))


@asynccontextmanager
async def _open(
    name: str, connection: ModbusConnection, points: Iterable[Point], clock: Clock
) -> AsyncIterator[ModbusSession]:
    items = _items(points, connection)
    _check_widths(name, connection, items)
    session = ModbusSession(connection, items, clock)
    here = asyncio.get_running_loop(), connection.place.host, connection.place.port
    neighbours = session.neighbours = _SESSIONS.setdefault(here, [])
    neighbours.append(session)
    try:
        await session.connect()
        yield session
    finally:
        neighbours.remove(session)
        if not neighbours:
            _SESSIONS.pop(here, None)
        await session.close()


def _check_widths(name: str, connection: ModbusConnection, items: Sequence[Item]) -> None:
    widest = max((item.width for item in items), default=1)
    if widest > connection.max_block:
        raise DeviceRefused(
            f"{name}: max_block {connection.max_block} is less than the {widest} registers of one value"
        )


def _items(points: Iterable[Point], connection: ModbusConnection) -> list[Item]:
    return [point.settings.item(connection) for point in points]


DRIVER: Driver = ModbusDriver()
