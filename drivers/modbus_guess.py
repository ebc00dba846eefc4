"""What the registers of a unit probably mean: types and one order of words and bytes, from a few samples. Pure.

Rule 1: evidence is counted in bits: how much likelier a reading as float, as 32-bit number or as text makes what was
seen than plain registers do. Rule 2: what has too little of it stays uint16: a wrong float is worse than a plain number.
Rule 3: a unit has one order of words and bytes; all its values vote for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint16]
Scores = npt.NDArray[np.float64]
End = Literal["big", "little"]


class Order(NamedTuple):
    """How values lie in registers; the names are those of the configuration."""

    word: End = "big"
    byte: End = "big"

    @property
    def letters(self) -> str:
        """The four bytes of a 32-bit number in the order in which they come, A the most significant."""
        return {"bigbig": "ABCD", "littlebig": "CDAB", "biglittle": "BADC", "littlelittle": "DCBA"}[
            self.word + self.byte
        ]


ORDERS = (Order(), Order("little"), Order("big", "little"), Order("little", "little"))
ORDER_PRIOR = (0.0, -0.5, -6.0, -5.0)
"""The protocol says big; swapped words are common, swapped bytes are not."""


class Stretch(NamedTuple):
    """Neighbouring registers of one table. words: (samples, registers), as the protocol brings them."""

    start: int
    words: Words


@dataclass(frozen=True, slots=True)
class Value:
    """One value as it is understood. type: of the configuration, or `text`. samples: numbers, or the text once.

    sure: 0 … 1, how sure the type is; None for plain registers, about which nothing is claimed.
    """

    start: int
    width: int
    type: str
    samples: tuple[float, ...]
    sure: float | None = None
    text: str = ""

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    @property
    def zero(self) -> bool:
        """A register that was zero in every sample; nothing is known of it."""
        return self.type == "uint16" and not any(self.samples)


@dataclass(frozen=True, slots=True)
class Guess:
    """order: None where no value needs one, or where they do not agree. sure: of it. votes: values that speak for it.

    values: by stretch, in the order in which they were given.
    """

    order: Order | None
    sure: float
    votes: int
    values: tuple[tuple[Value, ...], ...]


CALLED_BITS = 5.0
"""Evidence from which on a run of values is called what it seems to be (chance: one in 32)."""
VOTE_MAX_BITS = 12.0
"""No single value decides the order alone."""
ALONE_BITS = 3.0
"""What a single value must have more to show the order of a unit."""
ORDER_SURE = 0.9
SURE_MAX = 0.99
"""A guess stays one."""
LIVE_FEW = 16
"""Registers that are not always zero, up to which chance is not worth a thought."""
FIRST_BITS, NEXT_BITS = -3.0, -2.0
"""Most registers are plain; maps hold values of one type beside each other."""
KNOWN_FIRST_BITS, KNOWN_CALLED_BITS = -1.0, 3.0
"""For a type that the unit has elsewhere."""
ODD_BITS = -1.5
"""A range seldom begins with half a value: read one register off, the halves of two neighbours look like a value, too."""
RESTLESS_BITS = -2.0
"""A plain register that jumps all over its range is more likely the half of something."""
ZERO_RUN = 4
"""More zeros in a row than a value of four registers brings are nothing but zeros."""
ZERO_EDGE = 3
"""Zeros at either end of a run of them that may belong to a value; those between divide a stretch and say nothing."""
AROUND_MAX_BITS = 2.0
"""What its neighbours of the same type add to how sure a value is."""
REJECTED = -np.inf


def guess(stretches: Sequence[Stretch]) -> Guess:
    """The most plausible meaning of all stretches of one unit, under the order that most of its values speak for."""
    # Where many registers are looked at, more of them look like something by chance.
    live = sum(int((stretch.words != 0).any(axis=0).sum()) for stretch in stretches)
    by_chance = float(np.log2(max(1.0, live / LIVE_FEW)))
    read = [[_read(stretch, order, _Bar(by_chance)) for stretch in stretches] for order in ORDERS]
    totals = np.array([sum(part.vote for part in parts) for parts in read]) + ORDER_PRIOR
    best = int(totals.argmax())
    sure = float(1.0 / np.exp2(np.clip(totals - totals[best], -60.0, 0.0)).sum())
    votes = sum(part.votes for part in read[best])
    evidence = sum(part.evidence for part in read[best]) + ORDER_PRIOR[best]
    needed = CALLED_BITS + by_chance + (ALONE_BITS if votes == 1 else 0.0)
    if sure < ORDER_SURE or evidence < needed:
        return plain(stretches, sure if votes else 0.0)
    # Order and types are known now: more of them need less evidence.
    known = frozenset(value.type for part in read[best] for value in part.values if value.type in KINDS_OF)
    bar = _Bar(0.0, frozenset(KINDS_OF[type_] for type_ in known))
    read_anew = [_read(stretch, ORDERS[best], bar) for stretch in stretches]
    return Guess(ORDERS[best], min(sure, SURE_MAX), votes, tuple(part.values for part in read_anew))


def plain(stretches: Sequence[Stretch], sure: float = 0.0) -> Guess:
    """Plain registers and texts only, under no order."""
    return Guess(None, sure, 0, tuple(_plain(stretch) for stretch in stretches))


# --------------------------------------------------------------------------------------------- one stretch, one order


class _Part(NamedTuple):
    """vote: bits that speak for the order; evidence: those of the values alone; votes: how many they are."""

    values: tuple[Value, ...]
    vote: float
    evidence: float
    votes: int


class _Candidate(NamedTuple):
    """One way to read the registers from `start` on. kind: what a run of alike values shares."""

    kind: str
    start: int
    width: int
    bits: float
    type: str


class _Bar(NamedTuple):
    """What is needed to call a run of values. known: kinds that the unit has for sure."""

    by_chance: float
    known: frozenset[str] = frozenset()

    def first(self, candidate: _Candidate) -> float:
        """Bits for the first of a run."""
        odd = ODD_BITS * (candidate.kind != TEXT and candidate.start % 2)
        return (KNOWN_FIRST_BITS if candidate.kind in self.known else FIRST_BITS) + odd

    def called(self, kind: str, still: bool) -> float:
        return KNOWN_CALLED_BITS if kind in self.known else CALLED_BITS + self.by_chance * still


PLAIN, TEXT = "plain", "text"
KINDS_OF = {"float32": "float32", "float64": "float64", "int32": "int32", "uint32": "int32"}


def _read(stretch: Stretch, order: Order, bar: _Bar) -> _Part:
    words = swapped(stretch.words) if order.byte == "little" else stretch.words
    candidates: dict[int, list[_Candidate]] = {}
    for kind, width, bits, types in (*_pairs(words, order), *_quads(words, order)):
        for at in np.flatnonzero(np.isfinite(bits)).tolist():
            candidates.setdefault(at, []).append(_Candidate(kind, at, width, float(bits[at]), types[at]))
    for text in _texts(words):
        candidates.setdefault(text.start, []).append(text)
    values: list[Value] = []
    restless = _jumps(words)
    evidence, votes, loose = 0.0, 0, 0
    for kind, its in groupby(_tiling(words, candidates, restless, bar), key=lambda each: each.kind):
        run = list(its)
        total = sum(each.bits for each in run) + bar.first(run[0]) + NEXT_BITS * (len(run) - 1)
        last = run[-1].start + run[-1].width
        still = bool((words[:, run[0].start : last] == words[0, run[0].start : last]).all())
        if kind == PLAIN or (kind != TEXT and total < bar.called(kind, still)):
            values += [_word(stretch, words, at) for at in range(run[0].start, last)]
            loose += int(restless[run[0].start : last].sum())
            continue
        for each in run:
            around = bar.first(each) if len(run) == 1 else NEXT_BITS + AROUND_MAX_BITS
            values.append(_value(stretch, words, order, each, each.bits + around))
        if kind != TEXT:
            evidence += min(total, VOTE_MAX_BITS * len(run))
            votes += len(run)
    return _Part(tuple(values), evidence + RESTLESS_BITS * loose, evidence, votes)


def _plain(stretch: Stretch) -> tuple[Value, ...]:
    """Without an order: texts, which need none, and plain registers."""
    words, values, at = stretch.words, [], 0
    texts = {text.start: text for text in _texts(words) if text.bits + FIRST_BITS >= CALLED_BITS}
    while at < words.shape[1]:
        if at in texts:
            values.append(_value(stretch, words, ORDERS[0], texts[at], texts[at].bits + FIRST_BITS))
            at += texts[at].width
        else:
            values.append(_word(stretch, words, at))
            at += 1
    return tuple(values)


def swapped(words: Words) -> Words:
    """The two bytes of each register exchanged."""
    return words.byteswap()


def _tiling(
    words: Words, candidates: dict[int, list[_Candidate]], restless: npt.NDArray[np.bool_], bar: _Bar
) -> list[_Candidate]:
    """The one way to cover the registers from the first to the last that has the most evidence."""
    count = words.shape[1]
    dead = _in_zero_runs(words)
    # By end and kind of the last value: the best total so far, and how it was reached.
    best: list[dict[str, tuple[float, _Candidate | None, str]]] = [{} for _ in range(count + 1)]
    best[0][PLAIN] = (0.0, None, "")
    for at in range(count):
        offers = [_Candidate(PLAIN, at, 1, RESTLESS_BITS * bool(restless[at]), "uint16")]
        if not dead[at]:
            offers += [each for each in candidates.get(at, ()) if not dead[at : at + each.width].any()]
        for before, (total, _, _) in best[at].items():
            for each in offers:
                step = 0.0 if each.kind == PLAIN else bar.first(each) if before != each.kind else NEXT_BITS
                new = total + each.bits + step
                there = best[at + each.width]
                if each.kind not in there or new > there[each.kind][0]:
                    there[each.kind] = (new, each, before)
    path: list[_Candidate] = []
    kind = max(best[count], key=lambda each: best[count][each][0])
    at = count
    while at > 0:
        _, step_taken, before = best[at][kind]
        assert step_taken is not None
        path.append(step_taken)
        at, kind = step_taken.start, before
    return path[::-1]


def _in_zero_runs(words: Words) -> npt.NDArray[np.bool_]:
    """(registers,) whether a register lies so deep in a run of zeros that it can be the half of nothing."""
    return _zero_runs(words, 2 * ZERO_EDGE, ZERO_EDGE)


def _zero_runs(words: Words, most: int, edge: int = 0) -> npt.NDArray[np.bool_]:
    """(registers,) whether a register lies in a run of more than `most` zeros, and not within `edge` of its ends."""
    inside = np.zeros(words.shape[1], dtype=np.bool_)
    at = 0
    for is_zero, its in groupby((words == 0).all(axis=0).tolist()):
        length = len(list(its))
        if is_zero and length > most:
            inside[at + edge : at + length - edge] = True
        at += length
    return inside


# ------------------------------------------------------------------------------------------------------------ numbers


def numbers(words: Words, type_: str, order: Order) -> npt.NDArray[Any]:
    """Registers (samples, width × n), bytes already in place, as (samples, n) numbers of this type."""
    dtype = np.dtype(
        {"uint32": ">u4", "int32": ">i4", "float32": ">f4", "float64": ">f8", "uint16": ">u2", "int16": ">i2"}[type_]
    )
    width = dtype.itemsize // 2
    pieces = words.reshape(len(words), -1, width)
    if order.word == "little":
        pieces = pieces[:, :, ::-1]
    raw = np.ascontiguousarray(pieces.astype(">u2"))
    return raw.view(dtype)[:, :, 0]


_Rated = tuple[str, int, Scores, list[str]]


def _pairs(words: Words, order: Order) -> list[_Rated]:
    """By kind: how much speaks for each register and its next being one number."""
    if words.shape[1] < 2:
        return []
    first, second = words[:, :-1], words[:, 1:]
    high, low = (first, second) if order.word == "big" else (second, first)
    both = np.stack([first, second], axis=2).reshape(len(words), -1)
    floats = numbers(both, "float32", order)
    usual = _usual(words)
    whole, types = _rated_whole(high.astype(np.int64), low.astype(np.int64))
    return [
        ("float32", 2, _rated_floats(floats, _jumps(low)) - usual[:-1] - usual[1:], ["float32"] * floats.shape[1]),
        ("int32", 2, whole, types),
    ]


def _quads(words: Words, order: Order) -> list[_Rated]:
    if words.shape[1] < 4:
        return []
    count = words.shape[1] - 3
    quads = np.stack([words[:, at : at + count] for at in range(4)], axis=2).reshape(len(words), -1)
    floats = numbers(quads, "float64", order)
    low = words[:, 2 : 2 + count] if order.word == "big" else words[:, 1 : 1 + count]
    each = _usual(words)
    usual = each[:count] + each[1 : 1 + count] + each[2 : 2 + count] + each[3:]
    return [("float64", 4, _rated_floats(floats, _jumps(low)) - usual + DOUBLE_BITS, ["float64"] * count)]


def _usual(words: Words) -> Scores:
    """(registers,) bits by which each is likelier a plain one than chance has it: most are zero or small."""
    most = words.max(axis=0)
    bits = np.select([most == 0, most < 0x100, most < 0x1000], [8.0, 6.0, 2.0], 0.0)
    bits[_zero_runs(words, ZERO_RUN)] = 12.0
    return bits


MAGNITUDES = ((1e-2, 1e5), (1e-3, 1e6), (1e-6, 1e9))
"""Ranges in which engineering values lie; the narrower, the more it says that a number lies in it."""
DOUBLE_BITS = -6.0
"""A float64 is seldom; a float32 beside zeros often looks like one."""
DIGITS_MAX_BITS = {4: 18.0, 8: 40.0}
"""By bytes of a float."""
STEADY_MAX_BITS = 9.0
CARRY_BITS = 3.0
JUMP = 1500
"""The low half of a float that moves at all jumps about; that of a plain register moves little by little."""


def _jumps(low: Words) -> npt.NDArray[np.bool_]:
    """(n,) whether the low halves move like a mantissa: far, from one sample to the next in which it changes."""
    if len(low) < 2:
        return np.zeros(low.shape[1], dtype=np.bool_)
    moved = np.abs(np.diff(low.astype(np.int64), axis=0))
    moved = np.minimum(moved, 65536 - moved)
    changes = (moved > 0).sum(axis=0)
    return np.asarray(moved.sum(axis=0) > JUMP * np.maximum(changes, 1), dtype=np.bool_)


def _rated_floats(floats: npt.NDArray[Any], jumps: npt.NDArray[np.bool_]) -> Scores:
    """(n,) bits for each column of (samples, n) being a float of a machine; REJECTED where it cannot be one."""
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(floats.astype(np.float64))
        size[np.signbit(floats) & (size == 0)] = np.nan  # -0.0 is no measurement, it is a register of 32768
        fits = np.isfinite(size) & ((size == 0) | ((size >= MAGNITUDES[-1][0]) & (size < MAGNITUDES[-1][1])))
    bits = np.full(floats.shape[1], REJECTED)
    for column in np.flatnonzero(fits.all(axis=0) & (size > 0).any(axis=0)).tolist():
        bits[column] = _rated_float(floats[:, column], bool(jumps[column]))
    return bits


def _rated_float(samples: npt.NDArray[Any], jumps: bool) -> float:
    """Bits for samples that are all finite, of a fitting magnitude, and not all zero."""
    exponents = 254 if samples.dtype.itemsize == 4 else 2046
    sizes = np.abs(samples[samples != 0].astype(np.float64))
    low, high = float(sizes.min()), float(sizes.max())
    least, most = next(each for each in MAGNITUDES if each[0] <= low and high < each[1])
    bits = float(np.log2(exponents / np.log2(most / least)))
    # Of all bit patterns few are short in decimals: 12.5 is written down by a person, 3.8125715 comes by chance too.
    digits = max(_digits(each) for each in np.unique(samples[samples != 0]))
    chance = 7.2 if samples.dtype.itemsize == 4 else 16.0
    bits += min(DIGITS_MAX_BITS[samples.dtype.itemsize], max(0.0, (chance - digits) * 3.32))
    distinct = len(np.unique(samples))
    if distinct > 1:
        bits += _steadiness(samples, high / low, distinct, jumps)
    return bits


def _steadiness(samples: npt.NDArray[Any], ratio: float, distinct: int, jumps: bool) -> float:
    """A machine's value moves by little between samples; a number that was put together wrongly jumps by powers."""
    if ((samples > 0).any() and (samples < 0).any()) or ratio > 1e4:
        span = float(samples.max() - samples.min())
        smooth = len(samples) > 2 and float(np.abs(np.diff(samples.astype(np.float64))).max()) < 0.6 * span
        return 1.0 if ratio < 1e2 and smooth else -20.0 if ratio > 1e2 else -4.0
    if ratio > 32:
        return -6.0
    each = 3.0 if jumps and ratio < 2 else 1.0 if ratio < 2 else 0.5
    return min(STEADY_MAX_BITS, each * (distinct - 1)) + _carrying(samples)


def _carrying(samples: npt.NDArray[Any]) -> float:
    """Where the high part moves, does the low part carry? As whole numbers, floats of one sign move by like steps."""
    size = samples.dtype.itemsize
    whole = np.ascontiguousarray(samples.astype(f"=f{size}")).view(f"=i{size}")
    steps = np.abs(np.diff(whole))
    crossed = np.diff(whole >> 16) != 0
    if not crossed.any() or crossed.all() or size != 4:
        return 0.0
    return CARRY_BITS if steps[crossed].max() <= 8 * np.median(steps[~crossed]) else -CARRY_BITS


def _digits(value: Any) -> int:
    """Significant digits of the shortest decimal that is this very float (of its own width)."""
    mantissa = np.format_float_scientific(value, unique=True, trim="-").partition("e")[0]
    return len(mantissa.replace(".", "").replace("-", "").strip("0")) or 1


HIGH_MAX = 0xFF
"""High halves of counters and sums are small; larger ones are two plain registers as likely."""
CARRIED_BITS = 12.0


def _rated_whole(high: npt.NDArray[np.int64], low: npt.NDArray[np.int64]) -> tuple[Scores, list[str]]:
    """(n,) bits for pairs being one whole number, and which; high, low: (samples, n)."""
    value = high << 16 | low
    signed = np.where(high >= 0x8000, value - (1 << 32), value)
    negative = high == 0xFFFF
    still = (high == high[0]).all(axis=0)
    moves = (low != low[0]).any(axis=0)
    steps = np.diff(value, axis=0)
    strict = (steps > 0).all(axis=0) & (len(steps) >= 2) & (steps < 0x2000).all(axis=0)
    carried = ~still & (np.abs(np.diff(signed, axis=0)) < 0x8000).all(axis=0) & (len(steps) >= 1)
    carried &= ((high <= HIGH_MAX) | negative).all(axis=0)
    # A low half that stands while the high one moves is no number that carries.
    carried &= ((np.diff(high, axis=0) == 0) | (np.diff(low, axis=0) != 0)).all(axis=0)

    bits = np.full(high.shape[1], REJECTED)
    small = still & (high[0] <= HIGH_MAX)
    known = small & (high[0] == 0) & low.any(axis=0)
    bits[known] = 1.5
    bits[known & moves] = 2.2
    one = small & (high[0] > 0)
    bits[one] = 1.0
    bits[one & moves] = 2.0
    bits[known & strict] += 4.0
    bits[one & strict] += 6.0
    below = negative.all(axis=0)
    bits[below] = np.where((low[:, below] >= 0x8000).all(axis=0), 8.0, 4.0)
    bits[below & (low == 0xFFFF).all(axis=0)] = 2.5  # two registers that say "no value" look the same
    bits[carried] = CARRIED_BITS
    types = np.where(negative.any(axis=0), "int32", "uint32").tolist()
    return bits, types


# -------------------------------------------------------------------------------------------------------------- texts

TEXT_MIN_WORDS = 2
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 -._/")
_PAD = frozenset((0x0000, 0x2020, 0xFFFF))


def _texts(words: Words) -> list[_Candidate]:
    """Runs of registers that stand still and hold printable characters, with the padding behind them."""
    still = (words == words[0]).all(axis=0)
    found: list[_Candidate] = []
    at, count = 0, words.shape[1]
    while at < count:
        end = at
        while end < count and still[end] and _printable(int(words[0, end])):
            end += 1
            if words[0, end - 1] & 0xFF == 0:
                break
        if end - at >= TEXT_MIN_WORDS:
            characters = words[0, at:end].astype(">u2").tobytes().rstrip(b"\0 ")
            bits = sum(1.9 if each in _LETTERS else 0.3 for each in characters) - 4.0
            if bits > 0 and sum(chr(each).isalpha() for each in characters) >= 2:
                found.append(_Candidate(TEXT, at, end - at, bits, TEXT))
        at = max(end, at + 1)
    return found


def _printable(word: int) -> bool:
    first, second = word >> 8, word & 0xFF
    return 0x20 <= first <= 0x7E and (second == 0 or 0x20 <= second <= 0x7E)


# ------------------------------------------------------------------------------------------------------------- values


def _value(stretch: Stretch, words: Words, order: Order, found: _Candidate, bits: float) -> Value:
    sure = float(min(SURE_MAX, 1.0 / (1.0 + np.exp2(-bits))))
    its = words[:, found.start : found.start + found.width]
    start = stretch.start + found.start
    if found.kind == TEXT:
        text = its[0].astype(">u2").tobytes().rstrip(b"\0 ").decode("latin-1")
        return Value(start, found.width, TEXT, (), sure, text)
    samples = numbers(its, found.type, order)[:, 0]
    return Value(start, found.width, found.type, tuple(float(each) for each in samples), sure)


SMALL_NEGATIVE = 0xF000
"""Registers from here on are more often small negative numbers than large ones."""


def _word(stretch: Stretch, words: Words, at: int) -> Value:
    """A plain register: int16 where it goes below zero by little, else uint16."""
    its = words[:, at]
    below = its >= SMALL_NEGATIVE
    crosses = below.any() and (below | (its <= 0xFFFF - SMALL_NEGATIVE)).all() and not (its == 0xFFFF).all()
    if crosses:
        return Value(stretch.start + at, 1, "int16", tuple(float(each) for each in its.view(np.int16)), 0.9)
    return Value(stretch.start + at, 1, "uint16", tuple(float(each) for each in its))
