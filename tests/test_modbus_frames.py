"""Requests and answers as bytes: of all frames exactly one is a good answer, in each of the three framings."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import modbus_frames as frames
from drivers.modbus_frames import Ascii, Ask, Framing, Mbap, Rtu, canaries, check_mbap, crc16, judged, lrc
from drivers.modbus_map import KNOWN_EXCEPTIONS, Block, Item, Limits, Outcome, Plan, Table, make_plan


def make(items: list[Item]) -> Plan:
    return make_plan(items, np.arange(len(items)), Limits())


# ------------------------------------------------------------------------------------------------------------- MBAP


def block_of(table: Table = Table.HOLDING, count: int = 4) -> Block:
    kind = "uint16" if table >= Table.HOLDING else "bool"
    (block,) = make([Item(9, table, 0, kind), Item(9, table, count - 1, kind)]).blocks
    return block


@given(st.sampled_from(list(Table)), st.integers(2, 17), st.integers(0, 0xFFFF), st.data())
def test_of_all_frames_only_the_right_head_is_a_good_answer(
    table: Table, count: int, transaction: int, data: st.DataObject
) -> None:
    block = block_of(table, count)
    right = transaction.to_bytes(2, "big") + block.head + bytes(block.size)
    assert check_mbap(block, transaction, right) == (Outcome.OK, "")
    at = data.draw(st.integers(0, 8))
    wrong = bytearray(right)
    wrong[at] ^= data.draw(st.integers(1, 255))
    outcome, words = check_mbap(block, transaction, bytes(wrong))
    assert outcome == Outcome.MALFORMED
    assert words


@given(st.sampled_from(list(Table)), st.binary(min_size=9, max_size=40))
def test_a_frame_of_noise_is_never_good(table: Table, noise: bytes) -> None:
    block = block_of(table)
    if noise[2:9] != block.head:
        assert check_mbap(block, int.from_bytes(noise[:2], "big"), noise)[0] != Outcome.OK


@pytest.mark.parametrize("code", range(256))
def test_an_exception_is_known_or_malformed(code: int) -> None:
    frame = struct.pack(">HHHBBB", 5, 0, 3, 9, 0x83, code)
    outcome, _ = check_mbap(block_of(), 5, frame)
    assert outcome == (code if code in KNOWN_EXCEPTIONS else Outcome.MALFORMED)


def test_an_exception_to_another_function_is_not_ours() -> None:
    assert check_mbap(block_of(), 5, struct.pack(">HHHBBB", 5, 0, 3, 9, 0x84, 2))[0] == Outcome.MALFORMED


# ---------------------------------------------------------------------------------------------- all three framings

ASK = frames.read(17, Table.HOLDING, 0x6B, 3)


def mbap() -> Framing:
    return Mbap(0, set())


FRAMINGS: list[Callable[[], Framing]] = [Rtu, Ascii, mbap]


def answered(framing: Framing, sent: bytes, unit: int, pdu: bytes) -> bytes:
    """The frame that a device sends around this PDU."""
    if isinstance(framing, Mbap):
        return sent[:2] + struct.pack(">HHB", 0, len(pdu) + 1, unit) + pdu
    return framing.wrap(Ask(unit, pdu, 0))


def verdict(framing: Framing, ask: Ask, sent: bytes, received: bytes) -> int | None:
    """What becomes of these bytes; None: more is waited for."""
    found = framing.find(received, sent)
    if found is None:
        return None
    if not found.pdu or found.late:
        return int(Outcome.MALFORMED)
    return judged(ask, found.unit, found.pdu)[0]


def test_the_frames_of_the_specification() -> None:
    """Serial Line V1.02: the CRC example of 6.2.2; Application Protocol V1.1b3: the request of 6.3."""
    assert crc16(bytes([0x02, 0x07])) == bytes([0x41, 0x12])
    assert ASK.pdu == bytes([0x03, 0x00, 0x6B, 0x00, 0x03])
    assert lrc(bytes([17, *ASK.pdu])) == 0x7E
    assert Ascii().wrap(ASK) == b":1103006B00037E\r\n"
    assert Rtu().wrap(ASK)[:-2] == bytes([17]) + ASK.pdu
    assert Mbap(0x9E37 ^ 0x9E37, set()).wrap(ASK) == bytes([0x9E, 0x37, 0, 0, 0, 6, 17]) + ASK.pdu


@pytest.mark.parametrize("new", FRAMINGS)
@given(data=st.binary(min_size=6, max_size=6), cut=st.integers(0, 60))
def test_an_answer_counts_only_when_it_is_whole(new: Callable[[], Framing], data: bytes, cut: int) -> None:
    framing = new()
    sent = framing.wrap(ASK)
    right = answered(framing, sent, 17, bytes([3, 6]) + data)
    if cut < len(right):
        assert framing.find(right[:cut], sent) is None
    found = framing.find(right, sent)
    assert found is not None
    assert (found.end, found.unit, found.pdu) == (len(right), 17, bytes([3, 6]) + data)
    assert judged(ASK, found.unit, found.pdu) == (Outcome.OK, "")


@pytest.mark.parametrize("new", FRAMINGS)
@given(
    data=st.binary(min_size=6, max_size=6), flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 7)), max_size=3)
)
def test_no_flipped_bits_make_another_good_value(
    new: Callable[[], Framing], data: bytes, flips: list[tuple[int, int]]
) -> None:
    """MBAP has no checksum, TCP has: there only the head is looked at."""
    framing = new()
    sent = framing.wrap(ASK)
    right = answered(framing, sent, 17, bytes([3, 6]) + data)
    end = 9 if isinstance(framing, Mbap) else len(right)
    wrong = bytearray(right)
    for at, bit in flips:
        wrong[at % end] ^= 1 << bit
    if bytes(wrong) != right and not _same_hex(framing, bytes(wrong), right):
        assert verdict(framing, ASK, sent, bytes(wrong)) != Outcome.OK


def _same_hex(framing: Framing, one: bytes, other: bytes) -> bool:
    """Lower case digits are the same number; up to three turn-round characters may stand before a frame."""
    return isinstance(framing, Ascii) and one.upper() == other.upper()


@pytest.mark.parametrize("new", FRAMINGS)
@given(noise=st.binary(max_size=300))
def test_noise_is_never_a_good_answer_and_never_a_crash(new: Callable[[], Framing], noise: bytes) -> None:
    framing = new()
    sent = framing.wrap(ASK)
    found = framing.find(noise, sent)
    if found is not None:
        assert 0 < found.end <= len(noise)
        assert found.pdu or found.words


@pytest.mark.parametrize("new", [Rtu, Ascii])
@given(echo=st.booleans(), glitch=st.integers(0, 3), data=st.binary(min_size=6, max_size=6))
def test_an_echo_and_the_glitch_of_a_turning_line_are_passed_over(
    new: Callable[[], Framing], echo: bool, glitch: int, data: bytes
) -> None:
    framing = new()
    sent = framing.wrap(ASK)
    right = answered(framing, sent, 17, bytes([3, 6]) + data)
    received = (sent if echo else b"") + b"\xff" * glitch + right
    found = framing.find(received, sent)
    assert found is not None
    assert (found.end, found.pdu[2:]) == (len(received), data)


@given(st.integers(0, 255))
def test_a_serial_exception_is_known_or_malformed(code: int) -> None:
    sent = Rtu().wrap(ASK)
    expected = code if code in KNOWN_EXCEPTIONS else Outcome.MALFORMED
    assert verdict(Rtu(), ASK, sent, answered(Rtu(), sent, 17, bytes([0x83, code]))) == expected


@pytest.mark.parametrize("unit", [0, 1, 16, 18, 255])
def test_the_answer_of_another_unit_is_not_ours(unit: int) -> None:
    sent = Rtu().wrap(ASK)
    assert verdict(Rtu(), ASK, sent, answered(Rtu(), sent, unit, bytes(8))) in (Outcome.MALFORMED, None)


# --------------------------------------------------------------------------------------------------- identification


def identified(objects: list[tuple[int, bytes]], more: bool = False) -> bytes:
    parts = b"".join(bytes([number, len(text)]) + text for number, text in objects)
    return bytes([0x2B, 0x0E, 1, 1, 0xFF if more else 0, 7 if more else 0, len(objects)]) + parts


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=30)), max_size=5), st.booleans())
def test_an_identification_is_read_whole_or_not_at_all(objects: list[tuple[int, bytes]], more: bool) -> None:
    pdu = identified(objects, more)
    found = frames.identification(pdu)
    assert found is not None
    assert set(found.objects) == {number for number, _ in objects}
    assert all(text.isprintable() for text in found.objects.values())
    assert found.more == (7 if more else None)
    for framing in (Rtu(), Ascii()):
        ask = frames.identify(9)
        sent = framing.wrap(ask)
        assert verdict(framing, ask, sent, answered(framing, sent, 9, pdu)) == Outcome.OK
    for cut in range(len(pdu)):
        assert frames.identification(pdu[:cut]) is None


# ---------------------------------------------------------------------------------------------- read-only, canaries


@given(
    st.integers(0, 255), st.sampled_from(list(Table)), st.integers(0, 65535), st.integers(1, 125), st.integers(0, 255)
)
def test_nothing_but_reads_can_be_built(unit: int, table: Table, start: int, count: int, first: int) -> None:
    asks = [frames.read(unit, table, start, count), frames.identify(unit, first)]
    asks += canaries(asks[0])
    assert {ask.pdu[0] for ask in asks} <= {1, 2, 3, 4, 0x2B}


@given(st.integers(0, 255), st.sampled_from(list(Table)), st.integers(0, 65535), st.integers(1, 125))
def test_a_canary_never_looks_like_what_it_is_to_tell_apart(unit: int, table: Table, start: int, count: int) -> None:
    ask = frames.read(unit, table, start, count)
    found = canaries(ask)
    assert len({each.shape for each in found}) >= 3, "several may be owed at once"
    assert ask.shape not in {each.shape for each in found}
    assert {each.unit for each in found} == {unit}
