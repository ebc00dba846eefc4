"""What the journal's rows hold, as bytes: frames and commands packed into a batch, and a checksum over every row.

Rule 1: arrays go down and come back bit for bit (little-endian). Rule 2: no row is believed whose checksum is wrong:
sqlite guards its own pages only against a torn write, not against a disk that forgets.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from edge_agent.contract import Frame, Ints
from edge_agent.records import Command, JudgedFrame, Layout

FRAME_HEAD = struct.Struct("<BIIIB")
"""Record type, layout, rows, signals, flags."""
COMMAND_HEAD = struct.Struct("<BI")
LENGTH = struct.Struct("<I")
IS_FRAME, IS_COMMAND, IS_PACKED = 1, 2, 3
PROBE_BYTES, WORTH = 2_048, 0.75
"""A batch is packed when its first so many bytes shrink to this share: noise of 64 bits only costs time."""
TICK, STAMPS, WORDS, LATE, UNSET = 1, 2, 4, 8, 16
"""UNSET: a number follows, of the span in which nobody had set the clock (records.Span)."""
UNREADABLE = (struct.error, zlib.error, KeyError, ValueError, TypeError, IndexError)
"""What `unpacked` raises where the bytes make no sense."""


class Kept(NamedTuple):
    """A frame with the meaning of its columns (and that meaning's number) and the seq of each row (0: publishes nothing)."""

    number: int
    layout: Layout
    judged: JudgedFrame
    seqs: Ints


def checksum(*columns: Any) -> int:
    """Over all columns of a row; a blob counts by its bytes, all else by how it is written."""
    crc = 0
    for column in columns:
        crc = zlib.crc32(column if isinstance(column, bytes) else repr(column).encode(), crc)
    return crc


def sound(row: tuple[Any, ...]) -> bool:
    """Whether the last column is the checksum of the others."""
    return bool(checksum(*row[:-1]) == row[-1])


def are_whole(*numbers: Any) -> bool:
    """Whether columns that hold whole numbers have such: one flipped bit in the head of a row makes something else of them."""
    return all(isinstance(each, int) for each in numbers)


def packed(item: Kept | Command) -> bytes:
    if isinstance(item, Command):
        plain = orjson.dumps(asdict(item))
        return COMMAND_HEAD.pack(IS_COMMAND, len(plain)) + plain
    frame = item.judged.frame
    flags = (TICK if frame.tick else 0) | (STAMPS if frame.at is not None else 0)
    flags |= (WORDS if frame.words is not None else 0) | (LATE if frame.late else 0) | (UNSET if frame.unset else 0)
    parts = [
        FRAME_HEAD.pack(IS_FRAME, item.number, len(frame.t), frame.values.shape[1], flags),
        frame.t.tobytes(),
        frame.ts.tobytes(),
        item.seqs.tobytes(),
        item.judged.state.tobytes(),
        frame.values.tobytes(),
        frame.quality.tobytes(),
    ]
    if frame.at is not None:
        parts.append(frame.at.tobytes())
    if frame.words is not None:
        words = orjson.dumps(frame.words)
        parts += [LENGTH.pack(len(words)), words]
    if frame.unset:
        parts.append(LENGTH.pack(frame.unset))
    return b"".join(parts)


def packed_batch(items: Sequence[Kept | Command]) -> bytes:
    """All items of a batch, in their order; made smaller where that helps."""
    plain = b"".join([packed(item) for item in items])
    if len(zlib.compress(plain[:PROBE_BYTES], 1)) > WORTH * min(len(plain), PROBE_BYTES):
        return plain
    return bytes([IS_PACKED]) + zlib.compress(plain, 1)


def unpacked(blob: bytes, layouts: dict[int, Layout], machine: str | None = None) -> list[Kept | Command]:
    """The items of a batch; with a machine, its frames alone. Raises one of UNREADABLE when the bytes make no sense."""
    found: list[Kept | Command] = []
    place = 0
    if blob[:1] == bytes([IS_PACKED]):
        blob = zlib.decompress(blob[1:])
    while place < len(blob):
        if blob[place] == IS_COMMAND:
            _, length = COMMAND_HEAD.unpack_from(blob, place)
            place += COMMAND_HEAD.size
            if machine is None:
                found.append(Command(**orjson.loads(blob[place : place + length])))
            place += length
            continue
        kind, number, rows, width, flags = FRAME_HEAD.unpack_from(blob, place)
        place += FRAME_HEAD.size
        layout = layouts[number]
        if kind != IS_FRAME or width != len(layout.signals):
            raise ValueError(f"a record {kind} of {layout.machine} with {width} columns, not {len(layout.signals)}")
        if machine not in (None, layout.machine):
            place += rows * (26 + 9 * width + (8 * width if flags & STAMPS else 0))
            if flags & WORDS:
                place += LENGTH.size + LENGTH.unpack_from(blob, place)[0]
            place += LENGTH.size if flags & UNSET else 0
            continue
        t, place = _array(blob, place, np.int64, (rows,))
        ts, place = _array(blob, place, np.int64, (rows,))
        seqs, place = _array(blob, place, np.int64, (rows,))
        state, place = _array(blob, place, np.int16, (rows,))
        values, place = _array(blob, place, np.float64, (rows, width))
        quality, place = _array(blob, place, np.uint8, (rows, width))
        at = None
        if flags & STAMPS:
            at, place = _array(blob, place, np.int64, (rows, width))
        words = None
        if flags & WORDS:
            (length,) = LENGTH.unpack_from(blob, place)
            place += LENGTH.size
            words = tuple(map(tuple, orjson.loads(blob[place : place + length])))
            place += length
        unset = 0
        if flags & UNSET:
            (unset,) = LENGTH.unpack_from(blob, place)
            place += LENGTH.size
        frame = Frame(layout.machine, t, ts, values, quality, at, bool(flags & TICK), words, bool(flags & LATE), unset)
        found.append(Kept(number, layout, JudgedFrame(frame, state, seqs != 0), seqs))
    return found


def _array(blob: bytes, place: int, dtype: Any, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], int]:
    count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
    array = np.frombuffer(blob, dtype=dtype, count=count, offset=place).reshape(shape)
    return array, place + array.nbytes
