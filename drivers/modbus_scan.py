"""`edge-agent scan modbus URL`: which units answer, what they are, which registers can be read and what these may mean.

Rule 1: it only reads (functions 1 to 4 and 43/14: nothing else can be built), one request at a time, at a polite rate.
Rule 2: any answer of a unit, also a refusal, says that it is there; what a gateway says for it does not.
Rule 3: it may be ended at any moment; what was found until then stands.
Where to look is `modbus_survey`, what it means `modbus_guess`, how it is told `modbus_found`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from drivers import modbus_found
from drivers.modbus_channels import own_wire, wire_to
from drivers.modbus_found import Found, Unit
from drivers.modbus_frames import Ask, identification, identify, read
from drivers.modbus_line import Counts
from drivers.modbus_map import BUSY, SPACE, UNREACHED, Outcome, Table
from drivers.modbus_settings import UNIT_MAX_SERIAL, ModbusConnection, Timeout, TlsFiles
from drivers.modbus_survey import Reply, Span, Survey, areas
from drivers.modbus_wire import Answer, Wire
from edge_agent.contract import Clock, DeviceSilent, Duration, Scan, Scanner, ScanStep

UNIT_MAX = 255
RATE_NETWORK, RATE_SERIAL, RATE_MAX = 10.0, 20.0, 1000.0
"""Requests a second. A serial line has less room by itself; beside it, its master may have other work."""
SLEEP_MIN_S = 0.0005
"""Not worth a sleep: the next one makes up for it."""
SAMPLES_MAX = 1000
NETWORK_UNITS = (1, 255, 0, *range(2, 17))
"""Asked over a network at first: devices of their own have 1, 255 or 0, the first units behind a gateway low numbers."""
SEARCH_PART, SEARCH_MIN_US = 4, 100_000
"""A unit that is searched for has a quarter of the timeout: there are many, and few are there."""
PATIENCE_US = 3_000_000
"""The first silence over a network is waited for so long: a gateway may be slow to say that a unit is not there."""
RENEW_AFTER = 16
"""Units that a gateway says are not there, until the connection is renewed: it waited for them, so answers may come."""
BUSY_TIMES, BUSY_PAUSE_S = 6, 0.5
REOPEN_TIMES, REOPEN_PAUSE_S = 3, 1.0
IDENTIFICATIONS_MAX = 8
STOPPED = "stopped answering while it was scanned"
GONE_AFTER = 2
"""Times in a row that even what was readable before brings nothing: the unit has gone."""

TABLES = {"holding": Table.HOLDING, "input": Table.INPUT, "coil": Table.COIL, "discrete": Table.DISCRETE}


# ------------------------------------------------------------------------------------------------------------ options


def _numbers(text: Any, most: int, noun: str) -> tuple[tuple[int, int], ...]:
    """`1-10,17` as ((1, 10), (17, 17)). Raises ValueError in words."""
    found = []
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) <= 5 for end in ends):
            raise ValueError(f"{part.strip()!r} is no {noun}; write numbers and ranges, such as 1-10,17")
        low, high = int(ends[0]), int(ends[1])
        if high > most or low > high:
            words = f"goes down; write {high}-{low}" if low > high else f"is beyond {most}"
            raise ValueError(f"{part.strip()} {words}")
        found.append((low, high))
    return tuple(found)


def _units(text: Any) -> tuple[int, ...] | None:
    if text is None:
        return None
    return tuple(dict.fromkeys(n for low, high in _numbers(text, UNIT_MAX, "unit") for n in range(low, high + 1)))


def _registers(text: Any) -> tuple[tuple[int, int], ...]:
    if text in (None, ()):
        return ()
    ranges = sorted(_numbers(text, SPACE - 1, "register"))
    for before, after in pairwise(ranges):
        if after[0] <= before[1]:
            raise ValueError(f"{before[0]}-{before[1]} and {after[0]}-{after[1]} overlap")
    return tuple(ranges)


def _tables(text: Any) -> tuple[Table, ...]:
    if isinstance(text, tuple):
        return text
    names = [name.strip() for name in str(text).split(",")]
    for name in names:
        if name not in TABLES:
            raise ValueError(f"{name!r} is no table; there are {', '.join(TABLES)}")
    return tuple(TABLES[name] for name in dict.fromkeys(names))


def _rate(text: Any) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.01 <= rate <= RATE_MAX:
        raise ValueError(f"{text!r} is no rate; write requests a second, from 0.01 to {RATE_MAX:g}")
    return rate


def _samples(text: Any) -> int:
    if not str(text).isascii() or not str(text).isdigit() or not 1 <= int(str(text)[:9]) <= SAMPLES_MAX:
        raise ValueError(f"{text!r} is no number of samples from 1 to {SAMPLES_MAX}")
    return int(text)


class ScanOptions(BaseModel):
    """The options of `edge-agent scan modbus`, as texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    units: Annotated[tuple[int, ...] | None, BeforeValidator(_units)] = Field(
        None, description="units to ask, e.g. 1-10,17; default: 1, then the others"
    )
    tables: Annotated[tuple[Table, ...], BeforeValidator(_tables)] = Field(
        tuple(TABLES.values()), description="of holding, input, coil and discrete, e.g. holding,input; default: all"
    )
    registers: Annotated[tuple[tuple[int, int], ...], BeforeValidator(_registers)] = Field(
        (), description="addresses to look at, counted from 0, e.g. 0-65535; default: 0-9999 and where maps often begin"
    )
    timeout: Timeout = Field(1_000_000, description="how long a device may take to answer (1s)")
    rate: Annotated[float | None, BeforeValidator(_rate)] = Field(
        None, description="requests a second (10 over a network, 20 on a serial line)"
    )
    samples: Annotated[int, BeforeValidator(_samples)] = Field(
        5, description="times that all values are read, to see how they move (5)"
    )
    every: Annotated[int, Duration("1ms", "1d")] = Field(1_000_000, description="time from sample to sample (1s)")
    ca: Path | None = Field(None, description="tls://: file of the authorities to trust")
    cert: Path | None = Field(None, description="tls://: file of the own certificate")
    key: Path | None = Field(None, description="tls://: file of its key")


# ------------------------------------------------------------------------------------------------------------- asking


@dataclass(slots=True)
class Asker:
    """The line, one polite request at a time: paced, asked again when busy or garbled, opened again when lost."""

    settings: ModbusConnection
    clock: Clock
    rate: float
    counts: Counts = field(default_factory=Counts)
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)
    _wire: Wire | None = None
    _next_s: float = 0.0

    async def open(self) -> None:
        """Raises DeviceSilent or DeviceRefused."""
        await self.close()
        place = self.settings.place
        alone = place.serial is None and place.scheme != "rtu+tcp"
        self._wire = await self._open.enter_async_context((own_wire if alone else wire_to)(self.settings, self.clock))

    async def close(self) -> None:
        self._wire = None
        await self._open.aclose()

    async def renew(self) -> None:
        """Where answers are still owed, and any unit's could be taken for another's: a line on which none is."""
        if self.numbered and self._wire is not None and self._wire.owes():
            await self._reopen()

    @property
    def numbered(self) -> bool:
        """Answers bear the number of their request, and silence of one unit puts those of all in doubt."""
        return self._wire is not None and self._wire.pace.numbered

    async def ask(self, ask: Ask, timeout_us: int) -> Answer:
        """The answer; TIMED_OUT also when the line breaks at this very request. Raises DeviceSilent when it stays broken."""
        garbled = lost = busy = 0
        while True:
            answer = await self._exchange(ask, timeout_us)
            if answer.outcome in BUSY and busy < BUSY_TIMES:
                busy += 1
                await asyncio.sleep(BUSY_PAUSE_S)
            elif answer.outcome == Outcome.MALFORMED and not garbled:
                garbled += 1
            elif answer.outcome == Outcome.LOST and not lost:
                lost += 1
            else:
                return answer._replace(outcome=Outcome.TIMED_OUT) if answer.outcome == Outcome.LOST else answer

    async def _exchange(self, ask: Ask, timeout_us: int) -> Answer:
        if self._wire is None or not self._wire.up:
            await self._reopen()
        now_s = asyncio.get_running_loop().time()
        if self._next_s - now_s > SLEEP_MIN_S:
            await asyncio.sleep(self._next_s - now_s)
        self._next_s = max(now_s, self._next_s) + 1.0 / self.rate
        assert self._wire is not None
        return await self._wire.exchange(ask, timeout_us, self.counts)

    async def _reopen(self) -> None:
        for left in range(REOPEN_TIMES - 1, -1, -1):
            try:
                await self.open()
            except DeviceSilent:
                if not left:
                    raise
                await asyncio.sleep(REOPEN_PAUSE_S)
            else:
                return


# -------------------------------------------------------------------------------------------------------------- scan


class _Gone(Exception):
    """The unit no longer answers anything."""


@dataclass(slots=True)
class ModbusScan:
    """See contract.Scan. found: grows while `run` goes on."""

    settings: ModbusConnection
    options: ScanOptions
    clock: Clock
    tell: Callable[[ScanStep], None]
    found: Found
    _asker: Asker
    _home: dict[int, Ask] = field(default_factory=dict)
    """By unit: a read that brought data, which proves that the line is in step."""
    _misses: dict[int, int] = field(default_factory=dict)
    """By unit: how often in a row not even its home was answered."""
    _search_us: int | None = None
    _said_absent: int = 0
    """How many units a gateway said were not there: behind this address are several, or could be."""

    @property
    def answered(self) -> bool:
        return bool(self.found.units)

    def lines(self) -> Sequence[tuple[str, str]]:
        return modbus_found.lines(self.found)

    def facts(self) -> dict[str, Any]:
        return modbus_found.facts(self.found)

    def config(self) -> str:
        return modbus_found.config(self.found)

    async def run(self) -> None:
        began_us = self.clock.monotonic_us()
        try:
            async with self._opened():
                await self._find_units()
                for unit in list(self.found.units):
                    await self._survey(unit)
                await self._sample()
            self.found.whole = True
        finally:
            self.found.requests = self._asker.counts.requests
            self.found.took_us = self.clock.monotonic_us() - began_us

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        await self._asker.open()
        try:
            yield
        finally:
            await self._asker.close()

    # ------------------------------------------------------------------------------------------------------------ units

    async def _find_units(self) -> None:
        place = self.settings.place
        network = place.scheme in ("tcp", "tls", "udp")
        wanted = self.options.units or (NETWORK_UNITS if network else tuple(range(1, UNIT_MAX_SERIAL + 1)))
        if self.options.units is not None or not network:
            await self._search(wanted)
        else:
            await self._search_network(wanted)
        self.found.units.sort(key=lambda unit: unit.number)
        for unit in list(self.found.units):
            await self._asker.renew()
            if not await self._meet(unit):
                # Somebody else's late answer, or a ghost on the line.
                self.found.units.remove(unit)
                total = len(self.found.asked_units)
                self._news("units", total, total, f"{unit} answered once and never again: left out")

    async def _search_network(self, wanted: Sequence[int]) -> None:
        """A device of its own, one that takes any number, or a gateway with units behind it?"""
        found = await self._search(wanted, at_end=True)
        if len(found) == len(wanted):
            self.found.alike = True
            del self.found.units[1:]
            words = f"it answers to every unit number alike: scanned as unit {found[0]}"
            self._news("units", len(wanted), len(wanted), words)
            return
        if found:
            self._news("units", len(wanted), len(wanted), f"units that answer: {modbus_found.numbers(found)}")
        if self._said_absent or len(found) > 1:
            rest = tuple(range(NETWORK_UNITS[-1] + 1, UNIT_MAX_SERIAL + 1))
            words = f"units stand behind this address: asking {rest[0]}–{rest[-1]}, too"
            self._news("more units", 0, len(rest), words)
            await self._search(rest, "more units")

    async def _search(self, wanted: Sequence[int], phase: str = "units", *, at_end: bool = False) -> list[int]:
        """Ask each of them; returns those that answer. at_end: the news of them is the caller's."""
        found: list[int] = []
        for done, number in enumerate(wanted):
            self._news(phase, done, len(wanted))
            if await self._is_there(number):
                self.found.units.append(Unit(number))
                found.append(number)
                if not at_end:
                    self._news(phase, done + 1, len(wanted), f"unit {number} answers")
            self.found.asked_units.append(number)
        self._news(phase, len(wanted), len(wanted))
        return found

    async def _is_there(self, number: int) -> bool:
        """Ask for a register of either kind; many small devices know only one of them, and say nothing to the other."""
        for table in (Table.HOLDING, Table.INPUT):
            ask = read(number, table, 0, 1)
            began_us = self.clock.monotonic_us()
            answer = await self._asker.ask(ask, self._patience_us())
            took_us = self.clock.monotonic_us() - began_us
            if answer.outcome == Outcome.OK:
                self._home[number] = ask
            if _is_alive(answer):
                return True
            if answer.outcome in UNREACHED:
                self._search_us = max(self._search_us or self.options.timeout, took_us * 3 // 2)
                self._said_absent += 1
                if self._said_absent % RENEW_AFTER == 0:
                    await self._asker.renew()
                return False
            if answer.outcome == Outcome.TIMED_OUT and self._asker.numbered:
                self._search_us = self._search_us or self._quick_us()
        await self._asker.renew()
        return False

    def _quick_us(self) -> int:
        return min(self.options.timeout, max(self.options.timeout // SEARCH_PART, SEARCH_MIN_US))

    def _patience_us(self) -> int:
        """How long a unit that is searched for may take."""
        if not self._asker.numbered:
            first = not self.found.asked_units
            return self.options.timeout if first else self._quick_us()
        return self._search_us or max(self.options.timeout, PATIENCE_US)

    async def _in_step(self, number: int) -> bool:
        """After a silence: hear what is known to be readable, so that no late answer is taken for a new one."""
        home = self._home.get(number)
        self._misses[number] = self._misses.get(number, 0) + 1
        if home is not None and (await self._asker.ask(home, self.options.timeout)).outcome == Outcome.OK:
            self._misses[number] = 0
            return True
        await self._asker.renew()
        return False

    def _gone(self, unit: Unit) -> bool:
        return unit.number in self._home and self._misses.get(unit.number, 0) > GONE_AFTER

    async def _meet(self, unit: Unit) -> bool:
        """Ask for its name, and, when that brings nothing, once more for a register: it must answer twice."""
        first, alive = 0, False
        for _ in range(IDENTIFICATIONS_MAX):
            answer = await self._asker.ask(identify(unit.number, first), self.options.timeout)
            alive |= _is_alive(answer)
            found = identification(answer.data) if answer.outcome == Outcome.OK else None
            if found is not None:
                unit.identification |= found.objects
            if found is None or found.more is None or found.more <= first:
                break
            first = found.more
        if alive:
            return True
        if unit.number in self._home:
            return await self._in_step(unit.number)
        await self._asker.renew()
        answer = await self._asker.ask(read(unit.number, Table.HOLDING, 0, 2), self.options.timeout)
        return _is_alive(answer)

    # ----------------------------------------------------------------------------------------------------- registers

    async def _survey(self, unit: Unit) -> None:
        surveys = [Survey(table, areas(table, self.options.registers)) for table in self.options.tables]
        for survey in surveys:
            unit.tables[survey.table] = survey.extent
        place = list(self.found.units).index(unit)
        planned = sum(survey.planned for survey in surveys)
        self._news("registers", place * planned, planned * len(self.found.units), self._plan_words(unit, planned))
        await self._asker.renew()
        try:
            for survey in surveys:
                await self._survey_table(unit, survey, surveys, place)
        except _Gone:
            unit.note = STOPPED
            self._news("registers", (place + 1) * planned, planned * len(self.found.units), f"{unit}: {unit.note}")
            return
        counts = [f"{modbus_found.NAMES[t]} {extent.count}" for t, extent in unit.tables.items() if extent.count]
        news = f"{unit}: " + (f"readable: {', '.join(counts)}" if counts else "nothing readable")
        self._news("registers", (place + 1) * planned, planned * len(self.found.units), news)

    def _plan_words(self, unit: Unit, planned: int) -> str:
        span_s = planned / self._asker.rate
        return f"{unit}: about {planned} requests, {span_s:.0f} s at {self._asker.rate:g} a second"

    async def _survey_table(self, unit: Unit, survey: Survey, surveys: Sequence[Survey], place: int) -> None:
        steps = survey.run()
        planned = sum(each.planned for each in surveys)
        try:
            span = next(steps)
            while True:
                passed = sum(each.passed for each in surveys)
                self._news("registers", place * planned + passed, planned * len(self.found.units))
                ask = read(unit.number, survey.table, span.start, span.size)
                answer = await self._asker.ask(ask, self.options.timeout)
                if answer.outcome == Outcome.OK:
                    unit.keep(survey.table, span, modbus_found.words_of(survey.table, span, answer.data))
                    self._home.setdefault(unit.number, ask)
                elif answer.outcome in (Outcome.TIMED_OUT, Outcome.SKIPPED) or answer.outcome in UNREACHED:
                    await self._in_step(unit.number)
                    if self._gone(unit):
                        raise _Gone
                unit.count_refusal(survey.table, answer.outcome)
                span = steps.send(_reply(answer.outcome))
        except StopIteration:
            return

    # -------------------------------------------------------------------------------------------------------- samples

    async def _sample(self) -> None:
        """Read all that is readable, several times; what is all zeros is not asked again."""
        for unit in self.found.units:
            unit.blocks = {table: extent.blocks() for table, extent in unit.tables.items()}
        todo = [
            (unit, table, span) for unit in self.found.units for table in unit.blocks for span in unit.blocks[table]
        ]
        done, planned, loop = 0, len(todo) * self.options.samples, asyncio.get_running_loop()
        if not todo:
            return
        self._news("samples", 0, planned, f"{self.options.samples} samples, {len(todo)} requests each")
        next_s = loop.time()
        for left in range(self.options.samples - 1, -1, -1):
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            next_s = max(next_s, loop.time()) + self.options.every / 1e6
            again = []
            for unit, table, span in todo:
                if unit.note:
                    continue
                self._news("samples", done, planned)
                again += [(unit, table, part) for part in await self._sample_block(unit, table, span)]
                done += 1
            todo = [each for each in again if not each[0].all_zero(each[1], each[2])]
            planned = done + len(todo) * left
        self._news("samples", planned, planned)

    async def _sample_block(self, unit: Unit, table: Table, span: Span) -> list[Span]:
        """Read it once; a block that is refused (a seam that nobody noticed) in halves. Returns what brings it next time."""
        answer = await self._asker.ask(read(unit.number, table, span.start, span.size), self.options.timeout)
        if answer.outcome == Outcome.OK:
            words = modbus_found.words_of(table, span, answer.data)
            unit.samples.setdefault((table, span), []).append(words)
        elif (
            answer.outcome > 0
            and answer.outcome not in UNREACHED
            and span.size > 1
            and (table, span) not in unit.samples
        ):
            first, second = unit.halve(table, span)
            return [*await self._sample_block(unit, table, first), *await self._sample_block(unit, table, second)]
        elif answer.outcome == Outcome.TIMED_OUT:
            await self._in_step(unit.number)
            unit.note = STOPPED if self._gone(unit) else ""
        return [span]

    def _news(self, phase: str, done: int, planned: int, news: str = "") -> None:
        self.found.requests = self._asker.counts.requests
        self.tell(ScanStep(phase, done, planned, news))


def _is_alive(answer: Answer) -> bool:
    """Whether the unit itself spoke, be it to refuse."""
    return answer.outcome >= 0 and answer.outcome not in UNREACHED


def _reply(outcome: int) -> Reply:
    if outcome == Outcome.OK:
        return Reply.DATA
    if outcome == 1:
        return Reply.ABSENT
    return Reply.REFUSED if outcome > 0 and outcome not in UNREACHED else Reply.SILENT


class ModbusScanner:
    """See contract.Scanner; the entry point `modbus`."""

    Options: type[BaseModel] = ScanOptions

    def scan(self, url: str, options: ScanOptions, clock: Clock, tell: Callable[[ScanStep], None]) -> Scan:
        files = {"ca": options.ca, "cert": options.cert, "key": options.key}
        named = {name: path for name, path in files.items() if path is not None}
        try:
            tls = TlsFiles.model_validate(named) if named else None
            settings = ModbusConnection.model_validate(
                {"url": url, "timeout": f"{options.timeout // 1000}ms", "tls": tls}
            )
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        serial = settings.place.serial is not None
        strange = [number for number in options.units or () if serial and not 1 <= number <= UNIT_MAX_SERIAL]
        if strange:
            raise ValueError(f"--units {strange[0]}: units of a serial line are numbered from 1 to {UNIT_MAX_SERIAL}")
        rate = options.rate or (RATE_SERIAL if serial else RATE_NETWORK)
        return ModbusScan(
            settings, options, clock, tell, Found(settings, options.timeout), Asker(settings, clock, rate)
        )


SCANNER: Scanner = ModbusScanner()
