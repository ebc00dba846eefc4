"""What a scan found: units, tables, values; as lines for people, as facts for scripts, as a configuration. Pure.

Rule: nothing is left out without a word: runs of equal registers are told as one, what was not asked is said.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drivers import modbus_guess
from drivers.foreign_text import quoted
from drivers.modbus_guess import Guess, Order, Stretch, Value
from drivers.modbus_map import BITS_PER_WORD, EXCEPTION_WORDS, WORDS_MAX, Table
from drivers.modbus_settings import ModbusConnection
from drivers.modbus_survey import Extent, Span

NAMES = {Table.HOLDING: "holding", Table.INPUT: "input", Table.COIL: "coil", Table.DISCRETE: "discrete"}
RUN_MAX, BIT_RUN_MAX = 8, 32
"""Longer runs of equal registers (or bits) that never change are told as one: mostly nobody uses them."""
WIDEST = 4
LINES_MAX = 60
"""Values of one unit in the text for people; JSON and the configuration have all."""
RANGES_MAX = 12
VENDOR, PRODUCT, REVISION, URL, PRODUCT_NAME, MODEL = 0, 1, 2, 3, 4, 5
"""Numbers of the objects of an identification (6.21)."""

Words = npt.NDArray[np.uint16]
Lines = list[tuple[str, str]]


def words_of(table: Table, span: Span, data: bytes) -> Words:
    """The data bytes of an answer as one number for each register or bit."""
    if table >= Table.HOLDING:
        return np.frombuffer(data, dtype=">u2").astype(np.uint16)
    packed = np.frombuffer(data, dtype=np.uint8)
    return np.unpackbits(packed, count=span.size, bitorder="little").astype(np.uint16)


@dataclass(slots=True)
class Unit:
    """One unit. tables: what can be read. image: by table and address, as last seen. note: what went wrong with it.

    blocks: the reads that bring a table's samples, ascending; samples: what each brought.
    """

    number: int
    identification: dict[int, str] = field(default_factory=dict)
    tables: dict[Table, Extent] = field(default_factory=dict)
    image: dict[Table, dict[int, int]] = field(default_factory=dict)
    blocks: dict[Table, list[Span]] = field(default_factory=dict)
    samples: dict[tuple[Table, Span], list[Words]] = field(default_factory=dict)
    refusals: dict[Table, Counter[int]] = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"unit {self.number}"

    @property
    def name(self) -> str:
        """What it calls itself; '' when it does not."""
        told = self.identification
        parts = [told.get(VENDOR), told.get(PRODUCT_NAME) or told.get(MODEL) or told.get(PRODUCT), told.get(REVISION)]
        return " ".join(part for part in parts if part)

    def keep(self, table: Table, span: Span, words: Words) -> None:
        self.image.setdefault(table, {}).update(zip(range(span.start, span.last + 1), words.tolist(), strict=True))

    def halve(self, table: Table, span: Span) -> list[Span]:
        """A block that is refused as a whole: its halves, now in its place."""
        half = span.size // 2
        halves = [Span(span.start, half), Span(span.start + half, span.size - half)]
        at = self.blocks[table].index(span)
        self.blocks[table][at : at + 1] = halves
        return halves

    def count_refusal(self, table: Table, outcome: int) -> None:
        if outcome > 0:
            self.refusals.setdefault(table, Counter())[outcome] += 1

    def all_zero(self, table: Table, span: Span) -> bool:
        taken = self.samples.get((table, span))
        return taken is not None and not any(words.any() for words in taken)

    def stretches(self, table: Table) -> list[Stretch]:
        """All samples of what can be read, range by range; a block that brought nothing when sampled is as surveyed."""
        extent, found = self.tables[table], []
        blocks = self.blocks.get(table) or extent.blocks()
        for span in extent.ranges:
            its = [self._sampled(table, block) for block in blocks if span.start <= block.start <= span.last]
            most = max(len(words) for words in its)
            # A block that was read less often is held: that says nothing about how it moves, and nothing wrong.
            whole = [np.concatenate([words, np.repeat(words[-1:], most - len(words), axis=0)]) for words in its]
            found.append(Stretch(span.start, np.concatenate(whole, axis=1)))
        return found

    def _sampled(self, table: Table, span: Span) -> Words:
        """(samples, registers), at least one sample."""
        taken = self.samples.get((table, span))
        if taken:
            return np.stack(taken)
        seen = self.image.get(table, {})
        return np.array([[seen.get(at, 0) for at in range(span.start, span.last + 1)]], dtype=np.uint16)


@dataclass(slots=True)
class Found:
    """All that a scan found until now. alike: one device answers to every unit number. whole: the scan came to its end."""

    settings: ModbusConnection
    timeout_us: int
    units: list[Unit] = field(default_factory=list)
    asked_units: list[int] = field(default_factory=list)
    alike: bool = False
    whole: bool = False
    requests: int = 0
    took_us: int = 0


# ------------------------------------------------------------------------------------------------- what it means


class Reading(NamedTuple):
    """One value of a table; bits have the type bool."""

    table: Table
    value: Value

    @property
    def address(self) -> str:
        return f"{NAMES[self.table]}:{self.value.start}"


class Run(NamedTuple):
    """`size` neighbours that held the same all the time."""

    table: Table
    start: int
    size: int
    value: float

    def __str__(self) -> str:
        noun = "registers" if self.table >= Table.HOLDING else "bits"
        ends = spans([Span(self.start, self.size)])
        return f"{NAMES[self.table]} {ends}: {self.size} {noun}, all {self.value:g} in every sample"


class Meaning(NamedTuple):
    """A unit understood. rows: values and runs, by table and address. samples: how often it was read."""

    guess: Guess
    rows: tuple[Reading | Run, ...]
    samples: int

    @property
    def readings(self) -> list[Reading]:
        return [row for row in self.rows if isinstance(row, Reading)]


def meaning(unit: Unit) -> Meaning:
    """What the samples of a unit probably mean."""
    registers = [(table, each) for table in unit.tables if table >= Table.HOLDING for each in unit.stretches(table)]
    # The driver reads a value in one request or not at all.
    narrow = any(extent.limited and extent.block < WIDEST for extent in unit.tables.values() if extent.ranges)
    guess = (modbus_guess.plain if narrow else modbus_guess.guess)([each for _, each in registers])
    rows: list[Reading | Run] = []
    for (table, _), values in zip(registers, guess.values, strict=True):
        rows += _gathered(table, values, RUN_MAX)
    for table in unit.tables:
        if table < Table.HOLDING:
            for stretch in unit.stretches(table):
                bits = [
                    Value(stretch.start + at, 1, "bool", tuple(float(each) for each in stretch.words[:, at]))
                    for at in range(stretch.words.shape[1])
                ]
                rows += _gathered(table, bits, BIT_RUN_MAX)
    samples = max((len(taken) for taken in unit.samples.values()), default=1)
    return Meaning(guess, tuple(rows), samples)


def _gathered(table: Table, values: Sequence[Value], most: int) -> Iterator[Reading | Run]:
    """Long runs of plain values that are equal and stand still, as one."""

    def likeness(value: Value) -> float | int:
        still = value.sure is None and value.low == value.high
        return value.low if still else -1 - value.start

    for _, its in groupby(values, key=likeness):
        run = list(its)
        if len(run) > most:
            yield Run(table, run[0].start, len(run), run[0].low)
        else:
            yield from (Reading(table, value) for value in run)


def number(value: float) -> str:
    """For people: whole numbers in full, others to seven digits, which is all that a float32 knows."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 2**53 else f"{value:.7g}"


def spans(ranges: Sequence[Span]) -> str:
    """`0–9, 20–41`."""
    shown = [f"{span.start}–{span.last}" if span.size > 1 else str(span.start) for span in ranges[:RANGES_MAX]]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def numbers(units: Sequence[int]) -> str:
    """Units asked, as `0–16, 255`."""
    found: list[Span] = []
    for unit in sorted(units):
        if found and found[-1].last + 1 == unit:
            found[-1] = Span(found[-1].start, found[-1].size + 1)
        else:
            found.append(Span(unit, 1))
    return spans(found)


# ------------------------------------------------------------------------------------------------------- for people


def lines(found: Found) -> Lines:
    """(style, text): the whole report."""
    count = len(found.units)
    nobody = "nobody answers" if found.whole else "nobody has answered yet"
    answer = nobody if not count else "1 unit answers" if count == 1 else f"{count} units answer"
    asked = f"asked: {numbers(found.asked_units)}" if found.asked_units else "none was asked"
    took = f"{found.requests} requests in {found.took_us / 1e6:.0f} s"
    told: Lines = [("head", f"{found.settings.url}: {answer} ({asked}; {took})")]
    if not found.whole:
        told.append(("warn", "  The scan did not come to its end: this is what was found until then."))
    if found.alike:
        told.append(("", f"  It answers to every unit number alike: one device, shown as {found.units[0]}."))
    if not count and found.whole:
        return told + [("", f"  {hint}") for hint in _hints(found)]
    for unit in found.units:
        told += [("", ""), *_unit_lines(unit)]
    return told


def _hints(found: Found) -> list[str]:
    """What to try where nobody answers."""
    if found.settings.place.serial is not None:
        port = found.settings.place.serial
        now = f"{port.baudrate} baud, {port.bytesize}{port.parity}{port.stopbits}"
        return [
            f"Try the device's own speed and parity in the URL (now {now}): ?baudrate=9600&parity=N",
            "Is another master on this line? Are A and B exchanged, is the device powered?",
            "A slow device needs more time: --timeout 3s",
        ]
    return [
        "The connection stands, so the address is right; the unit may have another number: --units 0-255",
        "A slow gateway needs more time: --timeout 5s",
        "A serial device behind a plain converter speaks RTU: rtu+tcp://HOST:PORT",
    ]


def _unit_lines(unit: Unit) -> Lines:
    told: Lines = [("head", f"{unit}  {unit.name}".rstrip())]
    if unit.note:
        told.append(("warn", f"  {unit.note}"))
    width = max(len(name) for name in NAMES.values())
    for table, extent in unit.tables.items():
        style, words = _extent_words(unit, table, extent)
        told.append((style, f"  {NAMES[table]:<{width}}  {words}"))
    if not any(extent.ranges for extent in unit.tables.values()):
        return told
    its = meaning(unit)
    told.append(("", f"  {'order':<{width}}  {_order_words(its.guess)}"))
    told.append(("", ""))
    told += _row_lines(its)
    return told


def _extent_words(unit: Unit, table: Table, extent: Extent) -> tuple[str, str]:
    if extent.absent:
        return "weak", "there is no such table (exception 1, illegal function)"
    refusals = unit.refusals.get(table, Counter())
    codes = ", ".join(f"exception {code}, {EXCEPTION_WORDS.get(code, 'unknown')}" for code in sorted(refusals))
    if not extent.ranges:
        why = extent.cut or codes or ("no answer" if extent.requests else "not asked")
        return "weak", f"nothing readable ({why})"
    noun = "registers" if table >= Table.HOLDING else "bits"
    words = f"{spans(extent.ranges)}  ({extent.count} {noun}"
    if extent.limited:
        words += f", at most {extent.block} in a request"
    if extent.pairs:
        words += ", only by two"
    words += ")"
    if 4 in refusals:
        words += f"; elsewhere {codes}"
    if extent.open_end:
        words += "; goes on: --registers 0-65535"
    if extent.cut:
        words += f"; {extent.cut}"
    return "warn" if extent.cut else "", words


def _order_words(guess: Guess) -> str:
    if guess.order is None:
        undecided = f" (the likeliest to {guess.sure:.0%} only)" if guess.sure else ""
        return f"not known: no value shows it{undecided}; default: word_order big, byte_order big"
    order = guess.order
    votes = "1 value says so" if guess.votes == 1 else f"{guess.votes} values say so"
    return f"{order.letters}: word_order {order.word}, byte_order {order.byte}  ({guess.sure:.0%} sure, {votes})"


def _row_lines(its: Meaning) -> Lines:
    cells: list[tuple[str, tuple[str, ...] | str]] = []
    for row in its.rows[:LINES_MAX]:
        if isinstance(row, Run):
            cells.append(("weak", str(row)))
            continue
        value = row.value
        style = "good" if value.sure is not None else "weak" if value.low == value.high else ""
        sure = f"{value.sure:.0%}" if value.sure is not None else ""
        cells.append((style, (row.address, _shown(value), value.type, sure, _movement(value, its.samples))))
    table = [cell for _, cell in cells if isinstance(cell, tuple)]
    head = ("address", "value", "type", "sure", f"in {its.samples} samples" if its.samples > 1 else "")
    widths = [max([len(head[column]), *(len(cell[column]) for cell in table)]) for column in range(5)]
    told: Lines = [("weak", "  " + _laid_out(head, widths))] if table else []
    for style, cell in cells:
        told.append((style, "  " + (cell if isinstance(cell, str) else _laid_out(cell, widths))))
    more = len(its.rows) - LINES_MAX
    if more > 0:
        told.append(("", f"  and {more} more: --yaml or --json has them all"))
    return told


def _laid_out(cell: Sequence[str], widths: Sequence[int]) -> str:
    address, value, type_, sure, moves = (
        text.rjust(width) if column in (1, 3) else text.ljust(width)
        for column, (text, width) in enumerate(zip(cell, widths, strict=True))
    )
    return f"{address}  {value}  {type_}  {sure}  {moves}".rstrip()


def _shown(value: Value) -> str:
    return json.dumps(value.text, ensure_ascii=False) if value.text else number(value.samples[-1])


def _movement(value: Value, samples: int) -> str:
    if value.text or samples < 2:
        return ""
    if value.low == value.high:
        return "constant"
    return f"{number(value.low)} … {number(value.high)}"


# -------------------------------------------------------------------------------------------------------- for scripts


def facts(found: Found) -> dict[str, Any]:
    """All of it as JSON can hold it."""
    return {
        "url": found.settings.url,
        "whole": found.whole,
        "requests": found.requests,
        "seconds": round(found.took_us / 1e6, 3),
        "asked_units": sorted(found.asked_units),
        "every_unit_alike": found.alike,
        "units": [_unit_facts(unit) for unit in found.units],
    }


def _unit_facts(unit: Unit) -> dict[str, Any]:
    its = meaning(unit)
    order = its.guess.order
    return {
        "unit": unit.number,
        "identification": {str(number): text for number, text in sorted(unit.identification.items())},
        "note": unit.note,
        "tables": {NAMES[table]: _extent_facts(unit, table, extent) for table, extent in unit.tables.items()},
        "order": None
        if order is None
        else {"word_order": order.word, "byte_order": order.byte, "sure": round(its.guess.sure, 3)},
        "samples": its.samples,
        "values": [_value_facts(each) for each in its.readings],
        "runs": [
            {"address": f"{NAMES[row.table]}:{row.start}", "count": row.size, "value": row.value}
            for row in its.rows
            if isinstance(row, Run)
        ],
    }


def _extent_facts(unit: Unit, table: Table, extent: Extent) -> dict[str, Any]:
    return {
        "exists": not extent.absent,
        "ranges": [[span.start, span.last] for span in extent.ranges],
        "max_block": extent.block,
        "limited": extent.limited,
        "whole": not extent.cut,
        "exceptions": {str(code): count for code, count in sorted(unit.refusals.get(table, Counter()).items())},
    }


def _value_facts(reading: Reading) -> dict[str, Any]:
    value = reading.value
    shown: dict[str, Any] = {"text": value.text} if value.text else {"value": value.samples[-1]}
    if not value.text:
        shown |= {"low": value.low, "high": value.high}
    sure = None if value.sure is None else round(value.sure, 3)
    return {"address": reading.address, "type": value.type, "registers": value.width, **shown, "sure": sure}


# ---------------------------------------------------------------------------------------------------- configuration


def config(found: Found) -> str:
    """A whole small configuration with a signal for each value; '' when no value was found."""
    units = [(unit, meaning(unit)) for unit in found.units]
    told = [(unit, its) for unit, its in units if any(not each.value.text for each in its.readings)]
    if not told:
        return ""
    units_words = "1 unit" if len(told) == 1 else f"{len(told)} units"
    out = [
        f"# What answered at {found.settings.url}: {units_words}. Types and orders are guesses:",
        "# compare the values with the device's manual, then give the signals names, units and norms.",
    ]
    if not found.whole:
        out.append("# The scan did not come to its end: this is not all.")
    out += [
        "agent: {id: scanned}",
        "mqtt: {url: mqtt://127.0.0.1:1883}  # your broker; `edge-agent read` needs none",
        "connections:",
        "  device:",
        "    driver: modbus",
        f"    url: {quoted(found.settings.url)}",
        *_connection_lines(found),
        "machines:",
    ]
    for unit, its in told:
        out += _machine_lines(unit, its)
    return "\n".join(out) + "\n"


def _connection_lines(found: Found) -> Iterator[str]:
    settings = found.settings
    if settings.timeout != 1_000_000:
        yield f"    timeout: {settings.timeout // 1000}ms"
    if settings.tls is not None:
        files = settings.tls.model_dump(mode="json", exclude_none=True)
        yield "    tls: {" + ", ".join(f"{key}: {quoted(path)}" for key, path in files.items()) + "}"
    extents = [(table, extent) for unit in found.units for table, extent in unit.tables.items() if extent.ranges]
    limits = [
        extent.block if table >= Table.HOLDING else max(1, extent.block // BITS_PER_WORD)
        for table, extent in extents
        if extent.limited
    ]
    if limits and min(limits) < WORDS_MAX:
        yield f"    max_block: {min(limits)}  # more in one request is refused"
    if any(len(extent.ranges) > 1 for _, extent in extents):
        yield "    max_gap: 0  # there are holes between the registers"


def _machine_lines(unit: Unit, its: Meaning) -> Iterator[str]:
    yield f"  unit-{unit.number}:"
    if unit.name:
        yield f"    title: {quoted(unit.name)}"
    yield "    connection: device"
    yield f"    unit: {unit.number}"
    order = its.guess.order
    if order is not None and order != Order():
        yield f"    word_order: {order.word}  # {order.letters}, {its.guess.sure:.0%} sure"
        yield f"    byte_order: {order.byte}"
    yield "    signals:"
    values = any(not isinstance(row, Run) and not row.value.text for row in its.rows)
    for row in its.rows:
        if isinstance(row, Run):
            yield f"      # {row}"
        elif row.value.text:
            text = f'{_name(unit, row)}: {{address: "{row.address}", type: string:{2 * row.value.width}}}  # {_shown(row.value)}'
            # A machine of nothing but texts has nothing to judge.
            yield f"      {text}" if values else f"      # {text}"
        else:
            yield f"      {_name(unit, row)}: {_signal(row)}  # {_comment(row.value, its.samples)}"


def _name(unit: Unit, reading: Reading) -> str:
    return f"unit{unit.number}_{NAMES[reading.table]}_{reading.value.start}"


def _signal(reading: Reading) -> str:
    return f'{{address: "{reading.address}", type: {reading.value.type}}}'


def _comment(value: Value, samples: int) -> str:
    words = number(value.samples[-1])
    if value.low != value.high:
        words += f" ({number(value.low)} … {number(value.high)} in {samples} samples)"
    return words if value.sure is None else f"{words}, {value.type} to {value.sure:.0%}"
