"""The Modbus driver: one line or connection, all its units, read-only.

Rule 1: the failure of a block or a unit is a BAD quality of its own points; only a dead line is DeviceSilent.
Rule 2: no fault of one unit may use up the read of the others: a read waits for TIMEOUTS_PER_READ timeouts at most.
Requests and answers are `modbus_frames` and `modbus_map`, the way to the device `modbus_line`, `modbus_wire` and
`modbus_channels`; here is the policy.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from random import uniform

import numpy as np
from pydantic import BaseModel

from drivers import modbus_load
from drivers.modbus_channels import connect, wire_to
from drivers.modbus_line import Counts, Line, Round
from drivers.modbus_map import (
    BUSY,
    EXCEPTION_WORDS,
    UNREACHED,
    Item,
    Limits,
    Outcome,
    Plan,
    address_order,
    decode,
    make_plan,
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
PASSES_MAX = 10
"""Times that one read asks again: a block of 125 refused registers is taken apart in eight halvings."""
EXTRA_REQUESTS_MAX = 64
BUSY_PAUSE_S = 0.1
REST_MIN_US, REST_MAX_US = 1_000_000, 60_000_000
PLANS_MAX = 64
FAULT_LOG_EVERY_US = 60_000_000
MORE_LINES_EVERY_US = 60_000_000
SPLIT_BY = frozenset({2, 3})
"""Refusals that may mean only part of a block: an address, or more registers than the device gives at once."""


def rest_us(times: int) -> int:
    """How long to leave alone what has failed so many times: doubling from 1 s to 60 s, with a quarter of jitter."""
    return int(min(REST_MAX_US, REST_MIN_US << min(times, 16)) * uniform(0.75, 1.0))  # noqa: S311 (jitter)


@dataclass(slots=True)
class Silence:
    """A unit that owes answers: how many reads in a row, and from when it may be asked again."""

    misses: int
    probe_at_us: int


class ModbusSession:
    """See contract.Session. Points are known by their number in the order that `open` was given."""

    def __init__(self, connection: ModbusConnection, items: Sequence[Item], clock: Clock) -> None:
        self._settings, self._clock = connection, clock
        self._limits = Limits(connection.max_gap, connection.max_block)
        self._plans: OrderedDict[bytes, Plan] = OrderedDict()
        self._lines: list[Line] | list[WireLine] = []
        """Those that were opened last: one, or as many as `connections` says and the device allows."""
        self._open = AsyncExitStack()
        self._more_lines_at_us = 0
        self._counts = Counts()
        self._heard: set[int] = set()
        self._silent: dict[int, Silence] = {}
        self._lay_out(items)
        self._resting = False
        self._reconnects_left = self._timeouts_left = self._extra_left = 0
        self._fault_logged_us: int | None = None

    # ------------------------------------------------------------------------------------------------- the promises

    async def read(self, due: Ints) -> Readings:
        """See contract.Session.read. ts is when each answer was complete, for silence when it was given up."""
        self._reconnects_left, self._timeouts_left = RECONNECTS_PER_READ, TIMEOUTS_PER_READ
        self._extra_left = EXTRA_REQUESTS_MAX
        if not self._up:
            await self.connect()
        elif len(self._lines) < self._settings.connections or not all(line.up for line in self._lines):
            await self._more_lines()
        asked = due if not self._resting else due[self._rest_until[due] <= self._clock.monotonic_us()]
        plan = self._plan(asked)
        readings, again = await self._read(plan)
        if again is None and len(asked) == len(due):
            return readings
        whole = Readings(
            np.full(len(due), np.nan),
            np.full(len(due), Quality.REFUSED, dtype=np.uint8),
            np.full(len(due), self._clock.wall_us(), dtype=np.int64),
        )
        _lay(readings, asked, whole, due)
        for _ in range(PASSES_MAX):
            if again is None or len(again) == 0:
                break
            part = again
            try:
                readings, again = await self._read(self._fresh_plan(part), last=True)
            except DeviceSilent:
                break  # what the first pass brought stands; the next read will find the line down
            _lay(readings, part, whole, due)
        return whole

    def counters(self) -> dict[str, int | float]:
        return asdict(self._counts) | {
            **self._line_use(),
            "silent_units": len(self._silent),
            "refused_points": int((self._refusals > 0).sum()),
        }

    def use(self, points: Sequence[Point]) -> None:
        """See contract.Session.use. A refused item stays refused; where blocks were cut is found out again."""
        refused = {
            item: (times, until)
            for item, times, until in zip(self._items, self._refusals.tolist(), self._rest_until.tolist(), strict=True)
            if times
        }
        self._lay_out(_items(points, self._settings))
        for number, item in enumerate(self._items):
            self._refusals[number], self._rest_until[number] = refused.get(item, (0, 0))
        self._resting = bool(self._refusals.any())
        units = {item.unit for item in self._items}
        self._heard &= units
        self._silent = {unit: silence for unit, silence in self._silent.items() if unit in units}

    def _lay_out(self, items: Sequence[Item]) -> None:
        self._items = items
        self._order = address_order(items)
        self._rank = np.empty(len(items), dtype=np.intp)
        self._rank[self._order] = np.arange(len(items))
        self._plans.clear()
        # Refused points: cut[r] starts a new block at rank r; a point refused all alone rests for a while.
        self._cut = np.zeros(len(items), dtype=np.bool_)
        self._refusals = np.zeros(len(items), dtype=np.int64)
        self._rest_until = np.zeros(len(items), dtype=np.int64)
        self._outcomes = np.zeros(len(items), dtype=np.int16)
        """Of each point, the last one: for people."""
        self._words: dict[int, str] = {}
        """Of points whose last answer was broken, in which way."""
        self._any_odd = False

    def _note_words(self, round_: Round) -> None:
        plan = round_.plan
        for point in plan.due.tolist():
            self._words.pop(point, None)
        for number, words in round_.words.items():
            self._words.update(dict.fromkeys(plan.due[list(plan.blocks[number].members)].tolist(), words))

    def explain(self, point: int) -> str:
        """See contract.Session.explain."""
        item, outcome = self._items[point], int(self._outcomes[point])
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
        if self._one_at_a_time():
            wire = await self._open.enter_async_context(wire_to(self._settings, self._clock))
            self._lines = [WireLine(wire, self._clock, self._settings.timeout, self._counts)]
        else:
            self._lines = [await connect(self._settings, self._clock, self._counts)]
            self._more_lines_at_us = 0
            await self._more_lines()

    def _one_at_a_time(self) -> bool:
        return self._settings.one_at_a_time({item.unit for item in self._items})

    def _line_use(self) -> dict[str, int]:
        line = self._lines[0] if self._lines else None
        return {LINE_BUSY: line.wire.busy_us} if isinstance(line, WireLine) else {}

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
                log.warning("modbus_fewer_connections %s: %d, %s", self._settings.place, len(standing), error)
                break
        self._lines = standing

    async def close(self) -> None:
        for line in self._lines:
            await line.close()
        await self._open.aclose()
        self._lines = []

    # ------------------------------------------------------------------------------------------------------ planning

    def _plan(self, due: Ints) -> Plan:
        key = due.tobytes()
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._fresh_plan(due)
            if len(self._plans) > PLANS_MAX:
                self._plans.popitem(last=False)
        return plan

    def _fresh_plan(self, due: Ints) -> Plan:
        segment = self._cut.cumsum()[self._rank] if self._cut.any() else None
        return make_plan(self._items, due, self._limits, self._rank, segment)

    # ------------------------------------------------------------------------------------------------------- reading

    async def _read(self, plan: Plan, last: bool = False) -> tuple[Readings, Ints | None]:
        """One pass: the readings, and the points worth asking again at once (None: none). last: busy is an answer."""
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
            if round_.resynced:
                self._doubt(round_, quality)
            return Readings(values, quality, _stamps(round_)), None
        self._timeouts_left = round_.timeouts_left
        self._note_units(round_)
        self._raise_when_dead(round_)
        again = self._worth_asking_again(round_, last)
        if again is not None and any(
            round_.outcomes[plan.block_of[i]] in BUSY for i in np.searchsorted(plan.due, again)
        ):
            await asyncio.sleep(BUSY_PAUSE_S)
        values, quality = decode(plan, round_.outcomes)
        if round_.resynced:
            self._doubt(round_, quality)
        return Readings(values, quality, _stamps(round_)), again

    @staticmethod
    def _doubt(round_: Round, quality: Codes) -> None:
        """Mark what was read while a line came into step again: proved to be right, and yet close to what was not."""
        plan = round_.plan
        doubted = np.array([block.unit in round_.resynced for block in plan.blocks])[plan.block_of]
        quality[doubted & (quality == Quality.GOOD)] = Quality.UNCERTAIN

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
            if Outcome.MALFORMED in round_.outcomes:
                self._log_fault()
            if not round_.retried:
                # A device that closed an idle connection just then has not failed, and noise on a serial line passes;
                # reading twice does no harm.
                again = {Outcome.LOST, Outcome.MALFORMED} if self._settings.place.noisy else {Outcome.LOST}
                lost = [number for number, outcome in enumerate(round_.outcomes) if outcome in again]
                round_.retried = bool(lost)
                for number in lost:
                    round_.outcomes[number] = Outcome.PENDING
                todo.extendleft(reversed(lost))

    async def _run(self, round_: Round, todo: deque[int]) -> None:
        standing = [line for line in self._lines if line.up]
        if len(standing) == 1:
            await standing[0].run(round_, todo)
            return
        async with asyncio.TaskGroup() as tasks:
            for line in standing:
                tasks.create_task(line.run(round_, todo))

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

    async def _ask_around_the_silent(self, round_: Round) -> None:
        """First the units that answer, then those with one miss, then one probe of one unit that is due for it."""
        blocks, now_us = round_.plan.blocks, self._clock.monotonic_us()
        nobody = Silence(0, 0)
        state = {unit: self._silent.get(unit, nobody) for unit in round_.plan.units}
        awake = [n for n, block in enumerate(blocks) if state[block.unit].misses < MISSES_BEFORE_BACKOFF]
        awake.sort(key=lambda n: state[blocks[n].unit].misses)
        await self._ask(round_, deque(awake))
        waiting = [
            (s.probe_at_us, u)
            for u, s in state.items()
            if s.misses >= MISSES_BEFORE_BACKOFF and s.probe_at_us <= now_us
        ]
        if waiting and round_.timeouts_left > 0:
            mine = [n for n, block in enumerate(blocks) if block.unit == min(waiting)[1]]
            await self._ask(round_, deque(mine[:1]))
            if _answered(round_.outcomes[mine[0]]):
                await self._ask(round_, deque(mine[1:]))
        self._skip_rest(round_, {u for u, s in state.items() if s.misses >= MISSES_BEFORE_BACKOFF})

    def _skip_rest(self, round_: Round, units: set[int]) -> None:
        blocks = round_.plan.blocks
        left = [n for n, o in enumerate(round_.outcomes) if o == Outcome.PENDING and blocks[n].unit in units]
        self._give_up(round_, left, Outcome.SKIPPED)

    # ------------------------------------------------------------------------------------------------ what it taught

    def _note_success(self, plan: Plan) -> None:
        self._heard |= plan.units
        if self._silent:
            for unit in plan.units:
                self._silent.pop(unit, None)
        if self._resting:
            self._heal(plan.due)

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
                self._silent[unit] = Silence(
                    misses, now_us + rest_us(misses - MISSES_BEFORE_BACKOFF) if misses > 1 else 0
                )
        if self._resting:
            good = np.array(round_.outcomes)[plan.block_of] == Outcome.OK
            self._heal(plan.due[good])

    def _raise_when_dead(self, round_: Round) -> None:
        place = self._settings.place
        streak = min((line.silent_streak for line in self._lines), default=0)
        if streak >= SILENT_STREAK and not self._heard:
            what = "is open, but nobody answers" if place.serial else "takes the connection and does not answer"
            raise DeviceSilent(f"{place} {what} ({streak} requests)", Quality.TIMEOUT)
        if all(outcome == Outcome.LOST for outcome in round_.outcomes):
            raise DeviceSilent(f"{place}: {self._fault or 'no connection'}")

    def _worth_asking_again(self, round_: Round, last: bool) -> Ints | None:
        """Points of busy blocks (once), and of refused ones that can be taken apart; the others' refusal is noted."""
        again: list[int] = []
        changed = False
        for number, outcome in enumerate(round_.outcomes):
            if outcome <= 0:
                continue
            points = round_.plan.due[list(round_.plan.blocks[number].members)]
            if outcome in BUSY:
                if not last and self._extra_left > 0:
                    self._extra_left -= 1
                    again.extend(points.tolist())
            elif outcome in SPLIT_BY and len(points) > 1:
                changed = True
                pieces = self._take_apart(points)
                if self._extra_left >= pieces:
                    self._extra_left -= pieces
                    again.extend(points.tolist())
            elif outcome in (1, 2, 3, 7):
                self._rest(points)
        if changed:
            self._plans.clear()
        return np.array(sorted(again), dtype=np.int64) if again else None

    def _take_apart(self, points: Ints) -> int:
        """Cut a refused block at its holes, or else in the middle; returns into how many pieces."""
        ranks = np.sort(self._rank[points])
        items = [self._items[self._order[rank]] for rank in ranks]
        ends = np.maximum.accumulate([item.start + item.width for item in items])
        starts = np.array([item.start for item in items])
        cuts = ranks[1:][starts[1:] > ends[:-1]]
        if not len(cuts):
            cuts = ranks[len(ranks) // 2 :][:1]
        self._cut[cuts] = True
        return len(cuts) + 1

    def _rest(self, points: Ints) -> None:
        """A device that says no is asked again ever more seldom: a person must mend the map."""
        now_us = self._clock.monotonic_us()
        self._refusals[points] += 1
        self._rest_until[points] = now_us + rest_us(int(self._refusals[points].max()) - 1)
        self._resting = True

    def _heal(self, points: Ints) -> None:
        """Points that answer after they were refused: the device has changed, so its blocks may be whole again."""
        back = points[self._refusals[points] > 0]
        if not len(back):
            return
        self._refusals[back] = 0
        self._rest_until[back] = 0
        units = {self._items[i].unit for i in back.tolist()}
        mine = np.array([self._items[i].unit in units for i in self._order.tolist()])
        self._cut[mine] = False
        self._plans.clear()
        self._resting = bool(self._refusals.any())

    def _log_fault(self) -> None:
        """One line a minute at most, and only for what a person should look into."""
        now_us, fault = self._clock.monotonic_us(), self._fault
        if not fault or (self._fault_logged_us is not None and now_us < self._fault_logged_us + FAULT_LOG_EVERY_US):
            return
        self._fault_logged_us = now_us
        log.warning("modbus_line_left %s: %s", self._settings.place, fault)


def _answered(outcome: int) -> bool:
    return (outcome >= 0 and outcome not in UNREACHED) or outcome == Outcome.MALFORMED


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
    widest = max((item.width for item in items), default=1)
    if widest > connection.max_block:
        raise DeviceRefused(
            f"{name}: max_block {connection.max_block} is less than the {widest} registers of one value"
        )
    session = ModbusSession(connection, items, clock)
    try:
        await session.connect()
        yield session
    finally:
        await session.close()


def _items(points: Iterable[Point], connection: ModbusConnection) -> list[Item]:
    return [point.settings.item(connection) for point in points]


DRIVER: Driver = ModbusDriver()
