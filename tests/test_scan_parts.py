"""The pure half of a scan: where to look, and what registers mean; by model and by hypothesis, without a device."""

import random
import struct
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from drivers.modbus_guess import ORDERS, Guess, Order, Stretch, Value, guess
from drivers.modbus_map import Table
from drivers.modbus_survey import Extent, Reply, Span, Survey, areas

# -------------------------------------------------------------------------------------------------- where to look


def surveyed(
    answer: Callable[[Span], Reply], table: Table = Table.HOLDING, wanted: Iterable[tuple[int, int]] = ()
) -> tuple[Extent, list[Span]]:
    """What a survey finds of a device that answers so, and what it asked."""
    survey, asked = Survey(table, areas(table, wanted)), []
    steps = survey.run()
    try:
        span = next(steps)
        while True:
            asked.append(span)
            span = steps.send(answer(span))
    except StopIteration:
        return survey.extent, asked


def device(
    readable: set[int], most: int = 125, seams: frozenset[int] = frozenset(), refusal: Reply = Reply.REFUSED
) -> Callable[[Span], Reply]:
    def answer(span: Span) -> Reply:
        asked = range(span.start, span.start + span.size)
        good = span.size <= most and readable.issuperset(asked) and not seams.intersection(asked[1:])
        return Reply.DATA if good else refusal

    return answer


def registers(*ends: tuple[int, int]) -> set[int]:
    return {at for first, last in ends for at in range(first, last + 1)}


def ends(extent: Extent) -> list[tuple[int, int]]:
    return [(span.start, span.last) for span in extent.ranges]


def test_a_device_without_holes_is_read_in_whole_blocks_only() -> None:
    extent, asked = surveyed(device(registers((0, 65535))))
    assert ends(extent) == [(0, 9999)]
    assert (len(asked), extent.block, extent.limited, extent.open_end) == (80, 125, False, True)


@pytest.mark.parametrize("most", [1, 2, 16, 32, 100, 120, 124])
def test_a_block_limit_is_told_from_a_hole(most: int) -> None:
    extent, _ = surveyed(device(registers((0, 299)), most), wanted=[(0, 999)])
    assert ends(extent) == [(0, 299)]
    assert (extent.block, extent.limited) == (most, True)
    extent, _ = surveyed(device(registers((0, most - 1))), wanted=[(0, 999)])
    assert ends(extent) == [(0, most - 1)]
    assert not extent.limited


def test_a_seam_is_told_from_a_block_limit() -> None:
    extent, _ = surveyed(device(registers((0, 79)), seams=frozenset({30})), wanted=[(0, 999)])
    assert ends(extent) == [(0, 29), (30, 79)]
    assert not extent.limited


def test_small_holes_are_looked_over_and_maps_that_begin_beside_a_round_number_are_found() -> None:
    readable = registers((3, 9), (12, 13), (15, 15), (99, 103), (200, 207), (1000, 1019), (4097, 4101), (9900, 9999))
    extent, asked = surveyed(device(readable))
    assert ends(extent) == [
        (3, 9), (12, 13), (15, 15), (99, 103), (200, 207), (1000, 1019), (4097, 4101), (9900, 9999),
    ]  # fmt: skip
    assert len(asked) < 300
    extent, _ = surveyed(device(readable), wanted=[(4010, 4099)])
    assert ends(extent) == [(4097, 4099)], "a narrow range is asked register by register"


def test_landmarks_beyond_the_usual_range_are_tried() -> None:
    extent, _ = surveyed(device(registers((40000, 40100), (30000, 30009))))
    assert ends(extent) == [(30000, 30009), (40000, 40100)], "also what lies just before them"


def test_a_table_that_is_not_there_costs_two_requests() -> None:
    extent, asked = surveyed(lambda span: Reply.ABSENT)
    assert extent.absent
    assert len(asked) == 2


def test_a_device_that_gives_no_half_of_a_value_is_read_by_two() -> None:
    readable = registers((100, 139))

    def answer(span: Span) -> Reply:
        even = span.start % 2 == span.size % 2 == 0
        return device(readable)(span) if even else Reply.REFUSED

    extent, _ = surveyed(answer)
    assert (ends(extent), extent.pairs) == ([(100, 139)], True)


def test_a_device_that_is_silent_where_it_has_nothing_costs_a_limited_number_of_timeouts() -> None:
    extent, asked = surveyed(device(registers((0, 19)), refusal=Reply.SILENT))
    assert ends(extent)[0][0] == 0
    assert "without an answer" in extent.cut
    assert len(asked) <= 40


def test_bits_are_read_two_thousand_at_a_time() -> None:
    extent, asked = surveyed(device(registers((0, 4999)), 2000), Table.COIL)
    assert (ends(extent), extent.block) == ([(0, 4999)], 2000)
    assert len(asked) < 60


def test_requests_have_a_limit() -> None:
    extent, asked = surveyed(device(registers((0, 65535)), 1), wanted=[(0, 65535)])
    assert "stopped after" in extent.cut
    assert len(asked) <= 1500
    assert extent.ranges[0].size > 1000, "what was found until then stands"


spans = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 150)), min_size=0, max_size=5)


@given(spans, st.integers(1, 125), st.sets(st.integers(1, 1000), max_size=2))
@example([(0, 2), (7, 3), (11, 8)], 1, set())  # between two that are near each other lies a probe
def test_all_that_is_found_can_be_read_and_what_a_probe_hits_is_found_whole(
    parts: list[tuple[int, int]], most: int, seams: set[int]
) -> None:
    readable = {at for start, size in parts for at in range(start, start + size)}
    answer = device(readable, most, frozenset(seams))
    extent, asked = surveyed(answer, wanted=[(0, 999)])
    assume(not extent.cut)
    found = registers(*ends(extent))
    assert found <= readable
    assert ends(extent) == sorted(ends(extent))
    assert sum(span.size for span in extent.ranges) == len(found), "no register stands in two ranges"
    # A seam just between two reads is not noticed; it refuses one block.
    assert sum(answer(block) is not Reply.DATA for block in extent.blocks()) <= len(seams)
    assert {at for block in extent.blocks() for at in range(block.start, block.last + 1)} == found
    probes = Survey(Table.HOLDING, areas(Table.HOLDING, [(0, 999)])).where[0].probes
    assert found >= readable.intersection(probes)
    assert len(asked) == len(set(asked)), "nothing is asked twice"


# ------------------------------------------------------------------------------------------------- what it means


def encoded(code: str, values: Iterable[float], order: Order) -> np.ndarray:
    """(samples, registers) of one value over time; written here anew, with struct."""
    rows = []
    for value in values:
        raw = struct.pack(">" + code, value)
        words = [raw[at : at + 2] for at in range(0, len(raw), 2)]
        if order.word == "little":
            words.reverse()
        rows.append([int.from_bytes(word, "big" if order.byte == "big" else "little") for word in words])
    return np.array(rows, dtype=np.uint16)


def together(*parts: np.ndarray) -> Stretch:
    return Stretch(100, np.concatenate(parts, axis=1))


def typed(found: Guess) -> list[tuple[int, str]]:
    return [(value.start, value.type) for stretch in found.values for value in stretch]


def walk(chance: random.Random, start: float, samples: int = 5, by: float = 0.004) -> list[float]:
    """A measurement that wanders a little, as a float32 would bring it."""
    values = [start]
    for _ in range(samples - 1):
        values.append(values[-1] * (1 + chance.uniform(-by, by)))
    return values


@settings(derandomize=True)  # a guess: of a thousand sets of machine values it leaves one or two open
@given(st.sampled_from(ORDERS), st.integers(0, 2**32), st.integers(3, 12))
def test_the_order_of_machine_values_is_found_and_so_are_they(order: Order, seed: int, count: int) -> None:
    chance = random.Random(seed)
    starts = [chance.choice([-1, 1]) * 10 ** chance.uniform(-1, 5) for _ in range(count)]
    series = [walk(chance, start) for start in starts]
    found = guess([together(*(encoded("f", each, order) for each in series))])
    assert found.order == order
    assert found.sure > 0.9
    assert typed(found) == [(100 + 2 * n, "float32") for n in range(count)]
    for value, each in zip(found.values[0], series, strict=True):
        assert value.samples == tuple(struct.unpack(f">{len(each)}f", struct.pack(f">{len(each)}f", *each)))


@settings(derandomize=True)
@given(st.sampled_from(ORDERS), st.integers(0, 2**32))
def test_setpoints_that_a_person_wrote_show_the_order_though_they_stand_still(order: Order, seed: int) -> None:
    chance = random.Random(seed)
    starts = [round(chance.uniform(1, 400), 1) for _ in range(6)]
    found = guess([together(*(encoded("f", [each] * 5, order) for each in starts))])
    assert found.order == order
    assert typed(found) == [(100 + 2 * n, "float32") for n in range(6)]


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_noise_is_not_called_anything(seed: int, count: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 65536, (5, count)).astype(np.uint16)
    found = guess([Stretch(0, noise)])
    assert found.order is None
    # Five that are small and of either sign come by chance, too; as int16 they are what they were.
    assert {type_ for _, type_ in typed(found)} <= {"uint16", "int16"}
    assert [value.samples[0] % 65536 for value in found.values[0]] == [float(each) for each in noise[0]]


@given(st.integers(0, 2**32))
def test_plain_analog_registers_are_not_called_floats(seed: int) -> None:
    chance = np.random.default_rng(seed)
    level = chance.integers(100, 4000, 40)
    words = (level + chance.integers(-20, 20, (5, 40))).astype(np.uint16)
    found = guess([Stretch(0, words)])
    assert {type_ for _, type_ in typed(found)} == {"uint16"}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.letters)
def test_a_counter_is_found_where_it_carries(order: Order) -> None:
    counter = encoded("I", [3 * 65536 - 4, 3 * 65536 - 1, 3 * 65536 + 2, 3 * 65536 + 6, 3 * 65536 + 9], order)
    setpoints = [encoded("f", [each] * 5, order) for each in (12.5, 80.0, 33.3)]
    found = guess([together(*setpoints, counter)])
    assert found.order == order
    assert typed(found)[3:] == [(106, "uint32")]
    assert found.values[0][3].samples[-1] == 3 * 65536 + 9


def test_negative_whole_numbers_are_int32() -> None:
    order = ORDERS[1]
    parts = [encoded("i", each, order) for each in ([-1200, -1190, -1207], [-35, 4, -12], [-70, -71, -70])]
    found = guess([together(*parts)])
    assert found.order == order
    assert typed(found) == [(100, "int32"), (102, "int32"), (104, "int32")]
    assert found.values[0][1].samples == (-35.0, 4.0, -12.0)


@pytest.mark.parametrize("order", ORDERS[:2], ids=lambda order: order.letters)
def test_float64_takes_four_registers(order: Order) -> None:
    found = guess([together(*(encoded("d", [each] * 3, order) for each in (98765.4321, 12.5, 0.001)))])
    assert found.order == order
    assert typed(found) == [(100, "float64"), (104, "float64"), (108, "float64")]


def test_text_is_told_and_needs_no_order() -> None:
    raw = b"PUMP 7 NORTH".ljust(20, b"\0")
    found = guess([Stretch(10, np.array([struct.unpack(">10H", raw)] * 3, dtype=np.uint16))])
    assert found.order is None
    first = found.values[0][0]
    assert (first.start, first.width, first.type, first.text) == (10, 6, "text", "PUMP 7 NORTH")
    assert typed(found)[1:] == [(at, "uint16") for at in range(16, 20)]


def test_zeros_and_constants_stay_plain_registers() -> None:
    words = np.tile(np.array([0] * 10 + [1] * 5 + [0, 3, 0] + [1500], dtype=np.uint16), (5, 1))
    found = guess([Stretch(0, words)])
    assert {type_ for _, type_ in typed(found)} == {"uint16"}
    assert found.order is None


def test_one_sample_is_enough_where_values_are_round() -> None:
    found = guess([together(*(encoded("f", [each], ORDERS[1]) for each in (50.0, 12.5, 7.25, 230.0)))])
    assert found.order == ORDERS[1]


def test_a_small_negative_register_is_int16_and_a_missing_value_is_not() -> None:
    words = np.array([[65534, 500, 65535, 500, 64000], [1, 500, 65535, 501, 64010], [65535, 500, 65535, 500, 63990]])
    values: tuple[Value, ...] = guess([Stretch(0, words.astype(np.uint16))]).values[0]
    assert [value.type for value in values] == ["int16", "uint16", "uint16", "uint16", "int16"]
    assert values[0].samples == (-2.0, 1.0, -1.0)
    assert values[2].samples == (65535.0,) * 3
