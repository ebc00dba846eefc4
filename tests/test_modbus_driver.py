"""The Modbus driver over real sockets: the promises of all drivers, and its own policy towards units and refusals."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from drivers.modbus import DRIVER, EXTRA_REQUESTS_MAX, ModbusSession
from drivers.modbus_lessons import RETRIES_PER_READ
from drivers.modbus_line import Counts, Line
from drivers.modbus_map import text_of
from edge_agent.contract import Describes, DeviceRefused, DeviceSilent, Driver, Idles, Point, Quality
from edge_agent.testing import Check, Fault, SkippingClock, driver_checks
from tests import virtual
from tests.liar import LIES, Liar, Question, truth

TIMEOUT_S = 0.15
run = partial(virtual.run, sockets=True)


def raw(address: int, code: str) -> float:
    """What the liar's registers from `address` hold as a number of this struct code."""
    data = b"".join(struct.pack(">H", truth(address + i)) for i in range(struct.calcsize(code) // 2))
    return float(struct.unpack(">" + code, data)[0])


class ModbusPlant:
    """See testing.Plant; four points in three tables, so that a read is more than one request."""

    driver: Driver = DRIVER
    points: Sequence[Mapping[str, Any]] = (
        {"address": "holding:0", "sentinel": [65535]},
        {"address": "holding:3", "type": "float32"},
        {"address": "holding:900", "type": "int32", "sentinel": [-1]},
        {"address": "40003", "bit": 5, "sentinel": [65535]},
        {"address": "input:10", "type": "float64"},
        {"address": "coil:7"},
    )
    expected: Sequence[float] = (
        raw(0, "H"),
        raw(3, "f"),
        raw(900, "i"),
        float(truth(2) >> 5 & 1),
        raw(10, "d"),
        float(truth(7) & 1),
    )

    def __init__(self) -> None:
        self.liar = Liar(share=0.0, timeout_s=TIMEOUT_S)
        self._stack: Any = None

    async def start(self) -> None:
        self._stack = self.liar.listening()
        await self._stack.__aenter__()

    async def stop(self) -> None:
        if self._stack is not None:
            await self._stack.__aexit__(None, None, None)
            self._stack = None

    def connection(self) -> Mapping[str, Any]:
        return {"url": f"tcp://127.0.0.1:{self.liar.port}", "timeout": f"{round(TIMEOUT_S * 1000)}ms"}

    def play(self, fault: Fault) -> None:
        self.liar.share = 0.0 if fault is Fault.WELL else 1.0
        self.liar.names = {
            Fault.WELL: (),
            Fault.LATE: ("late",),
            Fault.SILENT: ("silence",),
            Fault.CUT: ("half an answer, then the end",),
            Fault.REFUSING: ("exception 2",),
            Fault.LYING: tuple(LIES),
            Fault.BAD_VALUE: ("all ones",),
        }[fault]


@pytest.mark.parametrize("check", driver_checks(), ids=str)
def test_modbus_keeps_the_promises_of_all_drivers(check: Check) -> None:
    check.run(ModbusPlant, run)


# ------------------------------------------------------------------------------------------- its own: units, refusals


class Bench:
    """A session to a liar that follows a script, and a clock that can skip."""

    def __init__(self, liar: Liar, session: Any, clock: SkippingClock, count: int) -> None:
        self.liar, self.session, self.clock = liar, session, clock
        self.due = np.arange(count, dtype=np.int64)

    async def read(self) -> list[Quality]:
        """The qualities of all points; good values must be true (points of these tests are uint16)."""
        readings = await self.session.read(self.due)
        for point, value, quality in zip(self.addresses, readings.values, readings.quality, strict=True):
            assert quality != Quality.GOOD or value == truth(point)
        return [Quality(quality) for quality in readings.quality]

    addresses: Sequence[int] = ()

    def asked_since(self, count: int) -> list[Question]:
        return self.liar.asked[count:]


def point_at(address: int, unit: int = 1) -> Point:
    return Point(f"p{address}", DRIVER.Address.model_validate({"address": f"holding:{address}", "unit": unit}))


@asynccontextmanager
async def bench(
    script: Callable[[Question], str], points: Sequence[tuple[int, int]], **settings: Any
) -> AsyncIterator[Bench]:
    """points: (unit, address) of uint16 holding registers."""
    liar, clock = Liar(script=script, timeout_s=TIMEOUT_S), SkippingClock()
    async with liar.listening():
        keys = {"url": f"tcp://127.0.0.1:{liar.port}", "timeout": f"{round(TIMEOUT_S * 1000)}ms", **settings}
        addresses = [
            Point(f"p{i}", DRIVER.Address.model_validate({"address": f"holding:{address}", "unit": unit}))
            for i, (unit, address) in enumerate(points)
        ]
        async with DRIVER.open("bench", DRIVER.Connection.model_validate(keys), addresses, clock) as session:
            made = Bench(liar, session, clock, len(points))
            made.addresses = [address for _, address in points]
            yield made


def test_a_dead_unit_costs_the_others_nothing_and_is_left_alone_ever_longer() -> None:
    async def test() -> None:
        dead = {2}
        points = [(unit, address) for unit in (1, 2, 3) for address in (0, 200, 400)]
        async with bench(lambda q: "silence" if q.unit in dead else "honest", points) as b:
            good, silent = [Quality.GOOD] * 3, [Quality.TIMEOUT] * 3
            for _ in range(6):
                assert await b.read() == good + silent + good
            asked = [q for q in b.liar.asked if q.unit == 2]
            assert len(asked) == 2, "one request in each of the first two reads, then none"
            b.clock.skip(1_000_000)
            assert await b.read() == good + silent + good
            assert len([q for q in b.liar.asked if q.unit == 2]) == 3, "one probe when its rest is over"
            b.clock.skip(1_000_000)
            await b.read()
            assert len([q for q in b.liar.asked if q.unit == 2]) == 3, "the rest has doubled"
            dead.clear()
            b.clock.skip(60_000_000)
            assert await b.read() == good * 3, "a probe that is answered brings all of its points at once"
            assert b.session.counters()["silent_units"] == 0
            assert b.liar.connections == 1

    run(test())


def test_a_probe_of_a_silent_unit_is_one_request_also_with_a_pipeline() -> None:
    async def test() -> None:
        points = [(unit, address) for unit in (1, 2) for address in (0, 200, 400, 600)]
        async with bench(lambda q: "silence" if q.unit == 2 else "honest", points, pipeline=8) as b:
            await b.read()
            await b.read()
            before = len([q for q in b.liar.asked if q.unit == 2])
            b.clock.skip(60_000_000)
            await b.read()
            assert len([q for q in b.liar.asked if q.unit == 2]) == before + 1

    run(test())


def test_when_many_units_die_at_once_no_read_waits_for_more_than_two_of_them() -> None:
    async def test() -> None:
        dead: set[int] = set()
        points = [(unit, 0) for unit in range(1, 21)]
        async with bench(lambda q: "silence" if q.unit in dead else "honest", points) as b:
            assert set(await b.read()) == {Quality.GOOD}
            dead.update(range(1, 20))
            loop = asyncio.get_running_loop()
            qualities: list[Quality] = []
            for _ in range(30):
                started_s = loop.time()
                qualities = await b.read()
                assert loop.time() - started_s < 2 * TIMEOUT_S + 0.01
                if qualities[19] == Quality.GOOD and b.session.counters()["silent_units"] == 19:
                    break
            assert qualities == [Quality.TIMEOUT] * 19 + [Quality.GOOD], "the one that lives is read all the same"
            dead.clear()
            for _ in range(25):
                b.clock.skip(60_000_000)
                qualities = await b.read()
            assert set(qualities) == {Quality.GOOD}

    run(test())


def test_a_line_on_which_nobody_answers_is_silent_after_three_requests() -> None:
    async def test() -> None:
        async with bench(lambda _: "silence", [(1, 0)]) as b:
            assert await b.read() == [Quality.TIMEOUT]
            assert await b.read() == [Quality.TIMEOUT]
            b.clock.skip(60_000_000)
            with pytest.raises(DeviceSilent, match="does not answer"):
                await b.read()

    run(test())


def test_one_wrong_address_in_a_block_is_found_in_the_first_read_and_the_others_stay_good() -> None:
    async def test() -> None:
        missing = {37}

        def script(q: Question) -> str:
            return "exception 2" if any(q.start <= address < q.start + q.count for address in missing) else "honest"

        async with bench(script, [(1, address) for address in range(100)]) as b:
            expected = [Quality.GOOD] * 100
            expected[37] = Quality.REFUSED
            assert await b.read() == expected
            assert len(b.liar.asked) <= 2 + 2 * 7
            count = len(b.liar.asked)
            assert await b.read() == expected
            assert all(37 not in range(q.start, q.start + q.count) for q in b.asked_since(count)), "it rests"
            missing.clear()
            b.clock.skip(60_000_000)
            assert await b.read() == [Quality.GOOD] * 100
            count = len(b.liar.asked)
            assert await b.read() == [Quality.GOOD] * 100
            assert len(b.asked_since(count)) == 1, "mended, the block is whole again"

    run(test())


def test_a_hole_that_the_device_does_not_know_is_no_longer_read_across() -> None:
    async def test() -> None:
        def script(q: Question) -> str:
            return "exception 2" if q.start < 5 < q.start + q.count else "honest"

        async with bench(script, [(1, 0), (1, 1), (1, 8), (1, 9)]) as b:
            assert await b.read() == [Quality.GOOD] * 4
            count = len(b.liar.asked)
            assert await b.read() == [Quality.GOOD] * 4
            assert [(q.start, q.count) for q in b.asked_since(count)] == [(0, 2), (8, 2)]

    run(test())


@pytest.mark.parametrize("code", [2, 3])
@pytest.mark.parametrize("addresses", [range(120), range(0, 120, 3), [*range(40), *range(43, 120)]])
def test_a_device_that_gives_fewer_registers_at_once_is_read_in_smaller_blocks(
    code: int, addresses: Sequence[int]
) -> None:
    async def test() -> None:
        points = [(1, address) for address in addresses]
        async with bench(lambda q: f"exception {code}" if q.count > 16 else "honest", points) as b:
            assert await b.read() == [Quality.GOOD] * len(points), "found out within the first read"
            assert len(b.liar.asked) <= 26
            count = len(b.liar.asked)
            assert await b.read() == [Quality.GOOD] * len(points)
            assert len(b.asked_since(count)) <= 10, "120 registers in blocks of 16 are 8 requests at best"
            b.clock.skip(90_000_000)
            assert await b.read() == [Quality.GOOD] * len(points), "tried again, and found to be so still"

    run(test())


def test_a_device_that_refuses_everything_is_not_hammered() -> None:
    async def test() -> None:
        async with bench(lambda _: "exception 2", [(1, address) for address in range(100)]) as b:
            for _ in range(20):
                count = len(b.liar.asked)
                assert await b.read() == [Quality.REFUSED] * 100
                assert len(b.asked_since(count)) <= EXTRA_REQUESTS_MAX + 1 + RETRIES_PER_READ
            count = len(b.liar.asked)
            for _ in range(10):
                await b.read()
            assert len(b.asked_since(count)) == 0

    run(test())


def test_a_table_that_the_device_does_not_have_is_asked_for_once() -> None:
    async def test() -> None:
        async with bench(lambda _: "exception 1", [(1, address) for address in range(100)]) as b:
            assert await b.read() == [Quality.REFUSED] * 100
            assert await b.read() == [Quality.REFUSED] * 100
            assert len(b.liar.asked) == 1

    run(test())


def test_what_was_refused_is_remembered_by_the_next_session_and_tried_again_all_alone() -> None:
    async def test() -> None:
        points = [(1, address) for address in range(100)]
        script = lambda q: "exception 2" if q.start <= 37 < q.start + q.count else "honest"  # noqa: E731
        expected = [Quality.GOOD] * 37 + [Quality.REFUSED] + [Quality.GOOD] * 62
        async with bench(script, points) as b:
            assert isinstance(b.session, ModbusSession)
            assert b.session.notes() is None
            assert await b.read() == expected
            notes = b.session.notes()
            assert notes is not None
            assert b.session.notes() is None, "nothing new since"
        async with bench(script, points) as b:
            assert isinstance(b.session, ModbusSession)
            b.session.recall(notes)
            assert await b.read() == expected
            assert sorted((q.start, q.count) for q in b.liar.asked) == [(0, 37), (37, 1), (38, 62)]
            b.session.use([point_at(address) for address in range(100)])
            count = len(b.liar.asked)
            assert await b.read() == expected
            assert (37, 1) in [(q.start, q.count) for q in b.asked_since(count)], "a reload tries it again"
        async with bench(script, points) as b:
            assert isinstance(b.session, ModbusSession)
            b.session.recall(b"nonsense")
            assert await b.read() == expected

    run(test())


def test_a_register_that_is_refused_is_tried_again_within_a_day() -> None:
    async def test() -> None:
        missing = {37}
        script = lambda q: "exception 2" if missing & {*range(q.start, q.start + q.count)} else "honest"  # noqa: E731
        async with bench(script, [(1, address) for address in range(100)]) as b:
            for _ in range(30):
                await b.read()
                b.clock.skip(86_400_000_000)
            missing.clear()
            assert await b.read() == [Quality.GOOD] * 100

    run(test())


def test_texts_are_read_beside_the_values_and_what_is_not_given_is_none() -> None:
    async def test() -> None:
        def script(q: Question) -> str:
            return "silence" if q.unit == 3 else "exception 2" if q.start == 900 else "honest"

        async with bench(script, [(1, 0)], max_block=4) as b:
            assert isinstance(b.session, Describes)
            words = [
                {"address": "holding:20", "type": "string:12"},
                {"address": "holding:900", "type": "string:4"},
                {"address": "input:30", "type": "string:1", "unit": 2, "byte_order": "little"},
                {"address": "input:30", "type": "string:4", "unit": 3},
            ]
            points = [Point("t", DRIVER.Address.model_validate(keys)) for keys in words]
            expected = b"".join(struct.pack(">H", truth(20 + i)) for i in range(6))
            texts = await b.session.describe(points)
            assert texts[0] == text_of(expected, 12, "big")
            assert texts[1] is None
            assert texts[2] == text_of(struct.pack("<H", truth(30)), 1, "big")
            assert texts[3] is None
            assert await b.read() == [Quality.GOOD]
            assert max(q.count for q in b.liar.asked) <= 4

    run(test())


# ------------------------------------------------------------------------------------------------ the time between reads


async def idle(b: Bench, for_us: int = 900_000) -> int:
    assert isinstance(b.session, Idles)
    started = b.clock.monotonic_us()
    wish = await b.session.idle(started + for_us)
    assert b.clock.monotonic_us() <= started + for_us + 10_000, "it returns before the next read"
    return wish


def test_a_silent_unit_is_asked_between_reads_and_no_read_waits_for_it() -> None:
    async def test() -> None:
        dead = {2}
        points = [(unit, address) for unit in (1, 2, 3) for address in (0, 200)]
        async with bench(lambda q: "silence" if q.unit in dead else "honest", points) as b:
            loop = asyncio.get_running_loop()
            await b.read()
            waited_s = 0.0
            for _ in range(60):
                await idle(b)
                started_s = loop.time()
                assert await b.read() == [Quality.GOOD] * 2 + [Quality.TIMEOUT] * 2 + [Quality.GOOD] * 2
                waited_s += loop.time() - started_s
                b.clock.skip(1_000_000)
            assert waited_s < 3 * TIMEOUT_S, "a patient probe now and then at most"
            dead.clear()
            b.clock.skip(60_000_000)
            await idle(b)
            assert await b.read() == [Quality.GOOD] * 6, "it was back before anybody read it"

    run(test())


def test_where_there_is_no_time_between_reads_a_silent_unit_is_waited_for_now_and_then() -> None:
    async def test() -> None:
        dead = {2}
        async with bench(lambda q: "silence" if q.unit in dead else "honest", [(1, 0), (2, 0)]) as b:
            loop = asyncio.get_running_loop()
            for _ in range(3):
                await b.read()
            started_s, beats, waited = loop.time(), 400, 0
            for _ in range(beats):
                await idle(b, 10_000)
                before_s = loop.time()
                assert (await b.read())[0] == Quality.GOOD
                waited += loop.time() - before_s > TIMEOUT_S / 2
                b.clock.skip(200_000)
            assert 1 <= waited <= 0.05 * beats, f"{waited} of {beats}, {loop.time() - started_s} s"
            dead.clear()
            b.clock.skip(60_000_000)
            await b.read()
            assert await b.read() == [Quality.GOOD] * 2

    run(test())


def test_a_session_says_when_it_wants_to_be_called_again() -> None:
    async def test() -> None:
        async with bench(lambda q: "silence" if q.unit == 2 else "honest", [(1, 0), (2, 0)]) as b:
            now = b.clock.monotonic_us()
            await b.read()
            wish = await idle(b, 3_600_000_000)
            assert now < wish < now + 10_000_000, (
                "a unit that is silent is not left alone for the hour to the next beat"
            )
            for _ in range(20):
                b.clock.skip(60_000_000)
                wish = await idle(b, 3_600_000_000)
            assert b.clock.monotonic_us() + 10_000_000 < wish <= b.clock.monotonic_us() + 15_000_000
            assert await b.read() == [Quality.GOOD, Quality.TIMEOUT]

    run(test())


@pytest.mark.parametrize(
    ("code", "quality", "requests"),
    [
        (1, Quality.REFUSED, 1),
        (2, Quality.REFUSED, 1),
        (3, Quality.REFUSED, 1),
        (4, Quality.DEVICE_FAILURE, 1),
        (5, Quality.TIMEOUT, 2),
        (6, Quality.TIMEOUT, 2),
        (7, Quality.REFUSED, 1),
        (8, Quality.DEVICE_FAILURE, 1),
        (10, Quality.TIMEOUT, 1),
        (11, Quality.TIMEOUT, 1),
    ],
)
def test_each_exception_has_its_quality_and_costs_no_connection(code: int, quality: Quality, requests: int) -> None:
    async def test() -> None:
        async with bench(lambda q: f"exception {code}" if q.unit == 1 else "honest", [(1, 0), (2, 0)]) as b:
            assert await b.read() == [quality, Quality.GOOD]
            assert len([q for q in b.liar.asked if q.unit == 1]) == requests
            assert b.liar.connections == 1
            assert b.session.counters()["exceptions"] == requests

    run(test())


def test_a_busy_device_is_asked_again_within_the_read() -> None:
    async def test() -> None:
        said = iter(["exception 6", "honest", "honest"])
        async with bench(lambda _: next(said), [(1, 0), (1, 500)]) as b:
            assert await b.read() == [Quality.GOOD, Quality.GOOD]

    run(test())


def test_a_connection_that_the_device_closed_while_idle_costs_no_reading() -> None:
    async def test() -> None:
        async with bench(lambda _: "honest", [(1, 0), (2, 0)]) as b:
            assert await b.read() == [Quality.GOOD] * 2
            for _ in range(3):
                b.liar.hang_up()
                assert await b.read() == [Quality.GOOD] * 2
            assert b.session.counters()["reconnects"] == 3

    run(test())


def test_after_a_wrong_answer_the_connection_is_new_and_the_other_blocks_are_good() -> None:
    async def test() -> None:
        async with bench(lambda q: "unit 255" if q.unit == 2 else "honest", [(1, 0), (2, 0), (3, 0)]) as b:
            assert await b.read() == [Quality.GOOD, Quality.PROTOCOL, Quality.GOOD]
            assert b.session.counters()["protocol_errors"] == 1
            assert b.session.counters()["reconnects"] == 1

    run(test())


def test_a_late_answer_is_dropped_and_counted() -> None:
    async def test() -> None:
        said = iter(["late and false", "just in time", "honest", "honest"])
        async with bench(lambda _: next(said), [(1, 0)]) as b:
            assert await b.read() == [Quality.TIMEOUT]
            assert await b.read() == [Quality.GOOD]
            assert b.session.counters()["late"] == 1
            assert b.liar.connections == 1

    run(test())


@pytest.mark.parametrize("pipeline", [1, 4])
def test_as_many_requests_are_in_flight_as_the_pipeline_says(pipeline: int) -> None:
    async def test() -> None:
        waiting: Counter[str] = Counter()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            questions: list[bytes] = []
            try:
                while True:
                    questions.append(await reader.readexactly(12))
                    if len(questions) == min(pipeline, 12 - waiting["answered"]):
                        # All that may be in flight are here; more would be waiting in the socket.
                        waiting["beyond"] += len(getattr(reader, "_buffer"))  # noqa: B009
                        for question in questions:
                            data = struct.pack(">H", truth(struct.unpack(">H", question[8:10])[0]))
                            writer.write(question[:5] + b"\x05" + question[6:8] + b"\x02" + data)
                        waiting["answered"] += len(questions)
                        questions.clear()
            except asyncio.IncompleteReadError:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        settings = {"url": f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", "pipeline": pipeline}
        points = [
            Point(str(a), DRIVER.Address.model_validate({"address": f"holding:{a}"})) for a in range(0, 1200, 100)
        ]
        async with DRIVER.open("x", DRIVER.Connection.model_validate(settings), points, SkippingClock()) as session:
            readings = await session.read(np.arange(12))
        server.close()
        assert readings.values.tolist() == [truth(a) for a in range(0, 1200, 100)]
        assert waiting == {"answered": 12, "beyond": 0}

    run(test())


def test_the_stamp_of_a_reading_is_when_its_own_answer_was_complete() -> None:
    async def test() -> None:
        async with bench(lambda q: "just in time" if q.unit == 2 else "honest", [(1, 0), (2, 0)]) as b:
            before_us = b.clock.wall_us()
            readings = await b.session.read(b.due)
            first, second = (readings.ts - before_us).tolist()
            assert 0 <= first < 0.3 * TIMEOUT_S * 1e6 <= second <= b.clock.wall_us() - before_us

    run(test())


def test_an_answer_that_lay_there_while_we_stood_still_is_as_old_as_its_question() -> None:
    """Whether the device gave it at once or at the end nobody knows; its value must not look newer than it is."""

    def stands_still(question: Question) -> str:
        if question.unit == 1:
            virtual.stand_still(2 * TIMEOUT_S)
        return "honest"

    async def test() -> None:
        async with bench(stands_still, [(1, 0), (2, 0)]) as b:
            before_us = b.clock.wall_us()
            readings = await b.session.read(b.due)
            first, second = (readings.ts - before_us).tolist()
            assert readings.quality.tolist() == [Quality.GOOD, Quality.GOOD]
            assert 0 <= first < 0.1 * TIMEOUT_S * 1e6
            assert second >= 2 * TIMEOUT_S * 1e6

    run(test())


def test_a_block_too_small_for_a_value_is_a_matter_for_a_person() -> None:
    async def test() -> None:
        points = [Point("x", DRIVER.Address.model_validate({"address": "holding:0", "type": "float64"}))]
        connection = DRIVER.Connection.model_validate({"url": "tcp://127.0.0.1:1", "max_block": 2})
        with pytest.raises(DeviceRefused, match="max_block 2"):
            async with DRIVER.open("plc", connection, points, SkippingClock()):
                pass

    run(test())


def test_only_functions_that_read_ever_leave() -> None:
    async def test() -> None:
        plant = ModbusPlant()
        await Check("well", _read_everything).prove(plant)
        assert {q.function for q in plant.liar.asked} == {1, 3, 4}

    run(test())


async def _read_everything(line: Any) -> None:
    async with line.session() as session:
        await line.read(session)


def test_a_dead_peer_is_noticed_by_the_kernel() -> None:
    async def test() -> None:
        async with bench(lambda _: "honest", [(1, 0)]) as b:
            assert isinstance(b.session, ModbusSession)
            [line] = b.session._lines
            assert isinstance(line, Line)
            assert line._transport is not None
            sock = line._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000

    run(test())


def test_a_transaction_id_returns_only_after_all_others_and_never_while_it_may_be_answered() -> None:
    async def test() -> None:
        line = Line(SkippingClock(), 1_000_000, 1, Counts())
        ids = [line._next_transaction() for _ in range(65535)]
        assert set(ids) == set(range(1, 65536)), "0 is what some devices put on every answer"
        line._expired = set(ids[:10])
        assert not {line._next_transaction() for _ in range(65525)} & line._expired

    run(test())


def test_with_a_pipeline_an_answer_that_swallowed_the_next_one_is_asked_again() -> None:
    async def test() -> None:
        # The first of two answers lacks exactly as many bytes as the second has: all heads are right, no byte is left.
        asked: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError):
                while True:
                    asked.append(await reader.readexactly(12))
                    answers = [_right(question) for question in asked]
                    if len(asked) == 2:
                        writer.write(answers[0][: -len(answers[1])] + answers[1])
                    elif len(asked) > 2:
                        writer.write(answers[-1])
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connection = DRIVER.Connection.model_validate({"url": url, "pipeline": 2, "timeout": "100ms"})
        addresses = [*range(20), 500]
        points = [Point(str(a), DRIVER.Address.model_validate({"address": f"holding:{a}"})) for a in addresses]
        async with DRIVER.open("x", connection, points, SkippingClock()) as session:
            readings = await session.read(np.arange(len(points)))
            good = readings.quality == Quality.GOOD
            assert readings.values[good].tolist() == [truth(a) for a, g in zip(addresses, good, strict=True) if g]
            assert not good[-1]
        server.close()

    run(test())


def _right(question: bytes) -> bytes:
    start, count = struct.unpack(">HH", question[8:12])
    data = b"".join(struct.pack(">H", truth(start + i)) for i in range(count))
    return question[:4] + struct.pack(">HBBB", len(data) + 3, question[6], question[7], len(data)) + data


def test_a_silent_unit_of_which_only_texts_are_read_harms_nobody_and_is_asked_again_after_its_rest() -> None:
    async def test() -> None:
        dead = {9}
        async with bench(lambda q: "silence" if q.unit in dead else "honest", [(1, 0)]) as b:
            settings = {"address": "holding:0", "unit": 9, "type": "string:4"}
            text = Point("m.serial", DRIVER.Address.model_validate(settings))
            for _ in range(4):
                await b.read()
                assert await b.session.describe([text]) == [None]
                await idle(b)
            asked = [q for q in b.liar.asked if q.unit == 9]
            assert len(asked) == 2  # the third time it was left to rest
            dead.clear()
            b.clock.skip(16_000_000)
            assert await b.session.describe([text]) != [None]

    run(test())


@asynccontextmanager
async def serving_only(first: int) -> AsyncIterator[tuple[Liar, int, list[int]]]:
    """A device that takes every connection and answers over the first ones: its kernel takes those that it does not want.

    Gives the liar behind it, the port and, growing, the connections taken.
    """
    liar, taken = Liar(script=lambda q: "honest", timeout_s=TIMEOUT_S), list[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(len(taken))
        if len(taken) <= first:
            await liar.serve(reader, writer)
        else:
            await reader.read()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield liar, server.sockets[0].getsockname()[1], taken
    finally:
        server.close()
        liar.hang_up()


@pytest.mark.parametrize("wished", [2, 4])
def test_connections_that_a_device_takes_and_does_not_serve_lose_no_reading(wished: int) -> None:
    async def test() -> None:
        async with serving_only(1) as (_, port, taken):
            clock, count = SkippingClock(), 6
            keys = {"url": f"tcp://127.0.0.1:{port}", "timeout": f"{round(TIMEOUT_S * 1000)}ms", "connections": wished}
            points = [point_at(200 * i) for i in range(count)]
            async with DRIVER.open("b", DRIVER.Connection.model_validate(keys), points, clock) as session:
                for _ in range(10):
                    readings = await session.read(np.arange(count))
                    assert readings.quality.tolist() == [Quality.GOOD] * count
                    clock.skip(1_000_000)
                assert session.counters()["timeouts"] == wished - 1
                assert len(taken) == wished
                for _ in range(120):
                    assert not (await session.read(np.arange(count))).quality.any()
                    clock.skip(30_000_000)
                assert len(taken) <= wished * 8, "it is tried ever less often"

    run(test())


def test_a_register_that_was_refused_does_not_speak_for_a_unit_that_is_silent() -> None:
    """Else the loss of a unit is never seen where one of its registers is wrong in the map."""
    dead = set[int]()

    def script(q: Question) -> str:
        if q.unit in dead:
            return "silence"
        return "exception 2" if q.unit == 2 and q.start <= 100 < q.start + q.count else "honest"

    async def test() -> None:
        async with bench(script, [(1, 0), (2, 0), (2, 100)]) as b:
            for _ in range(2):
                assert await b.read() == [Quality.GOOD, Quality.GOOD, Quality.REFUSED]
            assert "exception 2" in b.session.explain(2)
            dead.add(2)
            for _ in range(5):
                assert await b.read() == [Quality.GOOD, Quality.TIMEOUT, Quality.TIMEOUT]
            assert "silent" in b.session.explain(2)
            dead.clear()
            b.clock.skip(16_000_000)
            await idle(b)
            assert await b.read() == [Quality.GOOD, Quality.GOOD, Quality.REFUSED]
            assert "exception 2" in b.session.explain(2)

    run(test())


def test_a_second_unit_that_comes_with_a_reload_brings_the_guard_against_late_answers() -> None:
    async def test() -> None:
        async with bench(lambda q: "honest", [(1, 0)]) as b:
            assert await b.read() == [Quality.GOOD]
            assert isinstance(b.session._lines[0], Line)
            b.session.use([point_at(0, 1), point_at(0, 2)])
            b.due, b.addresses = np.arange(2), [0, 0]
            assert await b.read() == [Quality.GOOD] * 2
            assert not isinstance(b.session._lines[0], Line), "a gateway may stand there: one request at a time"

    run(test())


def test_a_value_too_wide_for_a_block_that_comes_with_a_reload_is_a_matter_for_a_person() -> None:
    async def test() -> None:
        async with bench(lambda q: "honest", [(1, 0)], max_block=1) as b:
            wide = DRIVER.Address.model_validate({"address": "holding:0", "type": "float32"})
            with pytest.raises(DeviceRefused, match="max_block 1"):
                b.session.use([Point("wide", wide)])

    run(test())
