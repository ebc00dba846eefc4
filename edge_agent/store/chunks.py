"""Columns as few bytes: the lossless encodings of the history. Pure.

Rule 1: what is unpacked is equal to the bit, NaN's payload and the sign of zero included: every encoding is tried out
before it is used, and one that fails falls back to the plain bytes. Rule 2: a piece says how it was packed and not how
long it is: whoever unpacks knows the number of values.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import chain

import numpy as np
import numpy.typing as npt

from edge_agent.contract import Bools, Codes, Floats, Ints

Bits = npt.NDArray[np.uint64]

DAMAGED = (ValueError, IndexError, KeyError, struct.error, zlib.error, OverflowError)
"""What unpacking may raise where the bytes make no sense."""
NAN_BITS = np.uint64(0x7FF8000000000000)
"""What numpy writes for NaN; another one is kept as it is."""
DECIMALS_MAX = 9
SCALED_MAX = 2.0**52
RESIDUAL_MAX = 2**15
WORDS_SHARE = 4
"""A dictionary pays where at least so many values share a word."""
DEFLATED_MIN = 16
"""bytes: less does not become less."""
LEVEL = 6

DEFLATED = 0x80
"""In the first byte of a piece: the rest is deflated."""

_AFFINE = struct.Struct("<dd")
_LENGTH = struct.Struct("<I")
_LONG = struct.Struct("<q")


class Whole(IntEnum):
    """How integers are packed: the first byte of their piece. The numbers stand in files."""

    CONSTANT = 0
    STEPS = 1
    OFFSETS = 2
    DELTAS = 3
    SECOND_DELTAS = 4


class Real(IntEnum):
    """How floats (and codes: PLAIN or SAME) are packed. The numbers stand in files."""

    PLAIN = 0
    SAME = 1
    ABSENT = 2
    """NaN where a mask says so, the rest after it."""
    AS_TOLD = 3
    """NaN where whoever unpacks knows it."""
    DECIMAL = 4
    FACTOR = 5
    AFFINE = 6
    NEARLY = 7
    SINGLE = 8
    WORDS = 9
    BITS = 10
    XORS = 11


# --- integers -----------------------------------------------------------------------------------------------------------


def pack_ints(values: Ints) -> bytes:
    """values: (n,) int64. The smallest of: constant, even steps, offsets from the least, differences, their differences."""
    if not len(values):
        return b""
    first, deltas = int(values[0]), np.diff(values)
    if not deltas.any():
        return bytes([Whole.CONSTANT]) + _LONG.pack(first)
    if not (deltas - deltas[0]).any():
        return bytes([Whole.STEPS]) + _LONG.pack(first) + _LONG.pack(int(deltas[0]))
    head = _LONG.pack(first)
    found = [_piece(Whole.OFFSETS, _offsets(values)), _piece(Whole.DELTAS, head + _offsets(deltas))]
    if len(deltas) > 1:
        found.append(_piece(Whole.SECOND_DELTAS, head + _LONG.pack(int(deltas[0])) + _offsets(np.diff(deltas))))
    return min(found, key=len)


def unpack_ints(piece: bytes, count: int) -> Ints:
    """(count,) int64. Raises one of DAMAGED."""
    if not count:
        return np.empty(0, dtype=np.int64)
    how, body = _opened(piece)
    if how == Whole.OFFSETS:
        return _from_offsets(body, count)
    first = _LONG.unpack_from(body)[0]
    values = np.empty(count, dtype=np.int64)
    values[0] = first
    match how:
        case Whole.CONSTANT:
            values[1:] = 0
        case Whole.STEPS:
            values[1:] = _LONG.unpack_from(body, 8)[0]
        case Whole.DELTAS:
            values[1:] = _from_offsets(body[8:], count - 1)
        case Whole.SECOND_DELTAS:
            deltas = np.empty(count - 1, dtype=np.int64)
            deltas[0] = _LONG.unpack_from(body, 8)[0]
            deltas[1:] = _from_offsets(body[16:], count - 2)
            np.cumsum(deltas, out=values[1:])
        case _:
            raise ValueError(f"integers packed in an unknown way: {how}")
    return np.cumsum(values)


def _offsets(values: Ints) -> bytes:
    """The least value, and what each lies above it in as few bytes as the largest needs, all lowest bytes first."""
    least = int(values.min())
    above = values.view(np.uint64) - np.int64(least).view(np.uint64)
    width = max(1, (int(above.max()).bit_length() + 7) // 8)
    planes = above.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].T
    return _LONG.pack(least) + bytes([width]) + planes.tobytes()


def _from_offsets(body: bytes, count: int) -> Ints:
    least, width = _LONG.unpack_from(body)[0], body[8]
    planes = np.frombuffer(body, dtype=np.uint8, count=width * count, offset=9).reshape(width, count)
    above = np.zeros((count, 8), dtype=np.uint8)
    above[:, :width] = planes.T
    return (above.view("<u8").reshape(-1) + np.int64(least).view(np.uint64)).view(np.int64)


# --- floats -------------------------------------------------------------------------------------------------------------


def pack_floats(values: Floats, absent: Bools | None = None) -> bytes:
    """values: (n,) float64. absent: (n,) where NaN is expected, told again when unpacking; None: nowhere.

    The encodings in order: constant; decimal numbers; raw integers times a factor, with or without an offset; float32; a
    dictionary; differences of the bits. The smallest that comes back equal to the bit.
    """
    if not len(values):
        return b""
    bits = np.ascontiguousarray(values).view(np.uint64)
    if (bits == bits[0]).all():
        return bytes([Real.SAME]) + bits[:1].tobytes()
    gone = bits == NAN_BITS
    if gone.any():
        rest = pack_floats(values[~gone])
        if absent is not None and (gone == absent).all():
            return bytes([Real.AS_TOLD]) + rest
        where = zlib.compress(np.packbits(gone).tobytes(), LEVEL)
        return bytes([Real.ABSENT]) + _LENGTH.pack(len(where)) + where + rest
    found = [piece for piece in _tried(values, bits) if _comes_back(piece, bits)]
    return min((*found, _piece(Real.PLAIN, bits.tobytes())), key=len)


def unpack_floats(piece: bytes, count: int, absent: Bools | None = None) -> Floats:
    """(count,) float64; absent: as when packing. Raises one of DAMAGED."""
    if not count:
        return np.empty(0, dtype=np.float64)
    how, body = _opened(piece)
    with np.errstate(all="ignore"):
        if how == Real.AS_TOLD and absent is not None:
            return _between(body, absent)
        return FROM[how](body, count)


def _between(piece: bytes, gone: Bools) -> Floats:
    values = np.full(len(gone), NAN_BITS).view(np.float64)
    values[~gone] = unpack_floats(piece, int(np.count_nonzero(~gone)))
    return values


def _comes_back(piece: bytes, bits: Bits) -> bool:
    with np.errstate(all="ignore"):
        return bool((unpack_floats(piece, len(bits)).view(np.uint64) == bits).all())


def _tried(values: Floats, bits: Bits) -> Iterator[bytes]:
    """Ways that may fit, the likely ones first; what is dear to try, only where nothing has fitted before."""
    words, which = np.unique(bits, return_inverse=True)
    if len(words) * WORDS_SHARE <= len(bits):
        known = pack_ints(words.view(np.int64))
        body = _LENGTH.pack(len(words)) + _LENGTH.pack(len(known)) + known + pack_ints(which.astype(np.int64))
        yield _wrapped(Real.WORDS, body)
    with np.errstate(all="ignore"):
        fits = None
        if np.isfinite(values).all():
            fits = next(chain(_decimal(values), _affine(values, bits)), None)
        single = values.astype(np.float32)
        if (single.astype(np.float64).view(np.uint64) == bits).all():
            yield _wrapped(Real.SINGLE, pack_ints(single.view(np.uint32).astype(np.int64)))
            fits = fits or b""
    if fits:
        yield fits
    if fits is None:
        yield _wrapped(Real.BITS, pack_ints(bits.view(np.int64)))
        xors = bits.copy()
        xors[1:] ^= bits[:-1]
        yield _piece(Real.XORS, xors.view(np.uint8).reshape(-1, 8).T.tobytes())


def _decimal(values: Floats) -> Iterator[bytes]:
    """Numbers with few decimals, whether they came from a division or from a multiplication."""
    for decimals in range(DECIMALS_MAX + 1):
        scaled = np.rint(values * 10.0**decimals)
        if np.abs(scaled).max() > SCALED_MAX:
            return
        for how, again in ((Real.DECIMAL, scaled / 10.0**decimals), (Real.FACTOR, scaled * 10.0**-decimals)):
            if (again.view(np.uint64) == values.view(np.uint64)).all():
                yield _wrapped(how, bytes([decimals]) + pack_ints(scaled.astype(np.int64)))
                return


def _affine(values: Floats, bits: Bits) -> Iterator[bytes]:
    """Raw · factor + offset, the factor being the least step between two values; NEARLY: with what is missing, in ulps."""
    steps = np.diff(np.unique(values))
    steps = steps[steps > 1e-9 * np.abs(values).max()]
    if not len(steps):
        return
    nearly = []
    for factor, offset in _shortest(float(steps.min()), values):
        raw = np.rint((values - offset) / factor)
        if np.abs(raw).max() > SCALED_MAX:
            continue
        missing = bits.view(np.int64) - (raw * factor + offset).view(np.int64)
        most = int(np.abs(missing).max())
        if most == 0:
            yield _wrapped(Real.AFFINE, _AFFINE.pack(factor, offset) + pack_ints(raw.astype(np.int64)))
            return
        nearly.append((most, factor, offset, raw.astype(np.int64), missing))
    if nearly:
        most, factor, offset, raw, missing = min(nearly, key=lambda each: each[0])
        if most < RESIDUAL_MAX:
            packed = pack_ints(raw)
            head = _AFFINE.pack(factor, offset) + _LENGTH.pack(len(packed))
            yield _wrapped(Real.NEARLY, head + packed + pack_ints(missing))


def _shortest(least: float, values: Floats) -> Iterator[tuple[float, float]]:
    """(factor, offset) as a person would have written them: few digits that agree with the values."""
    middle, spread = float(values[0]), float(np.ptp(values))
    tried = set()
    for digits in (2, 3, 4, 5, 6, 8, 10, 12):
        factor = float(f"{least:.{digits - 1}e}")
        if factor in tried or factor == 0 or abs(factor - least) * spread > 0.1 * least * least:
            continue
        tried.add(factor)
        yield factor, 0.0
        rest = middle - np.rint(middle / factor) * factor
        for places in (1, 2, 3, 4, 6):
            offset = float(f"{rest:.{places}g}")
            if offset and abs(offset - rest) < 0.01 * factor:
                yield factor, offset
                break
        if len(tried) == 3:
            return


def _from_absent(body: bytes, count: int) -> Floats:
    (length,) = _LENGTH.unpack_from(body)
    gone = np.unpackbits(np.frombuffer(zlib.decompress(body[4 : 4 + length]), dtype=np.uint8), count=count)
    return _between(body[4 + length :], gone.astype(np.bool_))


def _from_affine(body: bytes, count: int) -> Floats:
    factor, offset = _AFFINE.unpack_from(body)
    return np.asarray(unpack_ints(body[_AFFINE.size :], count).astype(np.float64) * factor + offset)


def _from_nearly(body: bytes, count: int) -> Floats:
    (length,) = _LENGTH.unpack_from(body, _AFFINE.size)
    edge = _AFFINE.size + _LENGTH.size
    near = _from_affine(body[: _AFFINE.size] + body[edge : edge + length], count)
    return (near.view(np.int64) + unpack_ints(body[edge + length :], count)).view(np.float64)


def _from_words(body: bytes, count: int) -> Floats:
    words, length = _LENGTH.unpack_from(body)[0], _LENGTH.unpack_from(body, 4)[0]
    if words > count:
        raise ValueError(f"{words} words for {count} values")
    known = unpack_ints(body[8 : 8 + length], words).view(np.float64)
    return known[unpack_ints(body[8 + length :], count)]


def _from_xors(body: bytes, count: int) -> Floats:
    planes = np.frombuffer(body, dtype=np.uint8, count=8 * count).reshape(8, count)
    xors = np.ascontiguousarray(planes.T).view(np.uint64).reshape(-1)
    return np.bitwise_xor.accumulate(xors).view(np.float64)


FROM: dict[int, Callable[[bytes, int], Floats]] = {
    Real.PLAIN: lambda body, count: np.frombuffer(body, dtype=np.float64, count=count),
    Real.SAME: lambda body, count: np.full(count, np.frombuffer(body, dtype=np.float64, count=1)[0]),
    Real.ABSENT: _from_absent,
    Real.DECIMAL: lambda body, count: unpack_ints(body[1:], count) / 10.0 ** body[0],
    Real.FACTOR: lambda body, count: np.asarray(unpack_ints(body[1:], count) * 10.0 ** -body[0]),
    Real.AFFINE: _from_affine,
    Real.NEARLY: _from_nearly,
    Real.SINGLE: lambda body, count: unpack_ints(body, count).astype(np.uint32).view(np.float32).astype(np.float64),
    Real.WORDS: _from_words,
    Real.BITS: lambda body, count: unpack_ints(body, count).view(np.float64),
    Real.XORS: _from_xors,
}
"""From a piece's body to its (count,) values."""


# --- codes --------------------------------------------------------------------------------------------------------------


def pack_codes(codes: Codes) -> bytes:
    """codes: (n,) uint8."""
    if not len(codes):
        return b""
    if (codes == codes[0]).all():
        return bytes([Real.SAME, int(codes[0])])
    return _piece(Real.PLAIN, codes.tobytes())


def unpack_codes(piece: bytes, count: int) -> Codes:
    """(count,) uint8. Raises one of DAMAGED."""
    if not count:
        return np.empty(0, dtype=np.uint8)
    how, body = _opened(piece)
    if how == Real.SAME:
        return np.full(count, body[0], dtype=np.uint8)
    if how != Real.PLAIN:
        raise ValueError(f"codes packed in an unknown way: {how}")
    return np.frombuffer(body, dtype=np.uint8, count=count)


# --- pieces -------------------------------------------------------------------------------------------------------------


def joined(pieces: list[bytes]) -> bytes:
    """Pieces one after the other, each after its length."""
    return b"".join(part for piece in pieces for part in (_LENGTH.pack(len(piece)), piece))


def parted(blob: bytes) -> list[bytes]:
    """What `joined` was given. Raises one of DAMAGED."""
    found, place = [], 0
    while place < len(blob):
        (length,) = _LENGTH.unpack_from(blob, place)
        place += 4
        if place + length > len(blob):
            raise ValueError("a piece is cut off")
        found.append(blob[place : place + length])
        place += length
    return found


def _piece(how: int, body: bytes) -> bytes:
    """A piece, deflated where that is less."""
    if len(body) >= DEFLATED_MIN:
        small = zlib.compress(body, LEVEL)
        if len(small) < len(body):
            return bytes([how | DEFLATED]) + small
    return bytes([how]) + body


def _wrapped(how: int, body: bytes) -> bytes:
    """A piece whose body is made of pieces, which are as small as they get."""
    return bytes([how]) + body


def _opened(piece: bytes) -> tuple[int, bytes]:
    how = piece[0]
    return how & ~DEFLATED, zlib.decompress(piece[1:]) if how & DEFLATED else piece[1:]
