"""The history's columns: whatever goes down comes back equal to the bit, in the bytes that the contract names."""

import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agent.store import chunks

ROWS = 3_600
AWKWARD = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 5e-324, -2.2e-308, 1e308, 0.1, 1 / 3]


def same(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> bool:
    return one.tobytes() == other.tobytes()


def back(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return chunks.unpack_floats(chunks.pack_floats(values), len(values))


@given(st.binary(max_size=800))
@example(b"\x00" * 8 * 40)
@settings(max_examples=400)
def test_any_bytes_come_back_as_floats(raw: bytes) -> None:
    values = np.frombuffer(raw[: len(raw) // 8 * 8], dtype=np.float64)
    assert same(back(values), values)


@given(
    st.lists(st.integers(-40_000, 70_000), min_size=1, max_size=200),
    st.sampled_from([1.0, 0.1, 0.01, 0.0153, 1 / 3, 1e-9, 16 / 65_535, 1e300]),
    st.sampled_from([0.0, 4.0, -40.0, 0.1, 1e6, 2.5e-7]),
    st.lists(st.sampled_from(AWKWARD), max_size=4),
)
@settings(max_examples=400)
def test_scaled_raw_values_come_back_whatever_lies_between_them(
    raw: list[int], scale: float, offset: float, odd: list[float]
) -> None:
    values = np.array([number * scale + offset for number in raw] + odd)
    assert same(back(values), values)


@given(st.lists(st.sampled_from([*AWKWARD, struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\x7f")[0]]), max_size=60))
def test_signs_of_zero_and_the_payload_of_nan_come_back(odd: list[float]) -> None:
    values = np.array(odd, dtype=np.float64)
    assert same(back(values), values)


@given(st.lists(st.tuples(st.booleans(), st.floats(width=32)), max_size=100))
def test_what_is_known_to_be_absent_is_told_again(cells: list[tuple[bool, float]]) -> None:
    absent = np.array([gone for gone, _ in cells], dtype=np.bool_)
    values = np.array([np.nan if gone else value for gone, value in cells])
    piece = chunks.pack_floats(values, absent)
    assert same(chunks.unpack_floats(piece, len(values), absent), values)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=100))
@example([-(2**63), 2**63 - 1, 0])
def test_whole_numbers_come_back_also_where_their_differences_overflow(numbers: list[int]) -> None:
    values = np.array(numbers, dtype=np.int64)
    assert chunks.unpack_ints(chunks.pack_ints(values), len(values)).tolist() == numbers


@given(st.binary(max_size=300))
def test_codes_come_back(raw: bytes) -> None:
    codes = np.frombuffer(raw, dtype=np.uint8)
    assert chunks.unpack_codes(chunks.pack_codes(codes), len(codes)).tobytes() == raw


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_pieces_come_apart_as_they_were_joined(pieces: list[bytes]) -> None:
    assert chunks.parted(chunks.joined(pieces)) == pieces


@given(st.binary(min_size=1, max_size=60), st.integers(1, 50))
@settings(max_examples=400)
def test_bytes_that_make_no_sense_are_refused_and_nothing_else_happens(piece: bytes, count: int) -> None:
    for unpack in (chunks.unpack_ints, chunks.unpack_floats, chunks.unpack_codes):
        try:
            found = unpack(piece, count)
        except chunks.DAMAGED:
            continue
        assert len(found) == count


RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 65_536, ROWS).astype(np.float64)
KINDS = {
    "16 bit, scale 0.1": (NOISE * 0.1, 2.1),
    "16 bit, scale 0.0153": (NOISE * 0.0153, 2.1),
    "16 bit, scale 0.01, offset -40": (NOISE * 0.01 - 40, 2.4),
    "16 bit, 4 to 20 mA": ((NOISE * 0.001 - 4) / 16 * 10, 2.5),
    "float32": (RNG.normal(50, 1, ROWS).astype(np.float32).astype(np.float64), 3.1),
    "float64": (RNG.normal(50, 1, ROWS), 8.01),
    "0 and 1": (RNG.integers(0, 2, ROWS).astype(np.float64), 0.3),
    "never another value": (np.full(ROWS, 3.3), 0.01),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_takes_no_more_than_its_bits(kind: str) -> None:
    values, most = KINDS[kind]
    assert same(back(values), values)
    size = len(chunks.pack_floats(values)) / ROWS
    print(f"{kind}: {size:.2f} bytes a reading")
    assert size <= most
