"""Attacks on the promises of the OPC UA driver: orders of events, and answers of a server, that nobody sane would expect."""

import asyncio
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from drivers import opcua
from drivers import opcua_decode as decode
from drivers import opcua_history as history
from drivers import opcua_points as pts
from drivers import opcua_structure as structure
from drivers.opcua_client import Refused
from drivers.opcua_settings import Address, Connection
from drivers.opcua_subscription import Subscription, TellingCounters, Told, _sane_us
from edge_agent.contract import SECOND_US, DeviceSilent, Point, Quality, Readings
from edge_agent.messages import topics
from edge_agent.testing import SkippingClock
from tests import foreign
from tests.opcua_line import ours, shared, talk

WALL = 1_795_000_000_000_000
CONFIRMED, HOLD, GOOD = Quality.CONFIRMED, Quality.HOLD, Quality.GOOD


@pytest.fixture(scope="module")
def plant() -> Iterator[foreign.Plant]:
    with shared(publishing_min_ms=20, mass=20) as standing:
        yield standing


# ------------------------------------------------------------------------------------- a session whose server is spoken


@dataclass(slots=True)
class HandClock:
    """Time is what the test says."""

    now_us: int = 10 * SECOND_US

    def monotonic_us(self) -> int:
        return self.now_us

    def wall_us(self) -> int:
        return WALL + self.now_us


@dataclass(slots=True)
class Spoken:
    """A session of which the test says what it was told and what it read."""

    session: opcua.OpcUaSession
    clock: HandClock

    @property
    def telling(self) -> Subscription:
        assert self.session.subscription is not None
        return self.session.subscription

    def hear(self, *values: tuple[int, float, int], after_us: int = 1000) -> None:
        """An answer came: (handle, value, the source's time) each."""
        self.clock.now_us += after_us
        self.telling._keep(told(self.clock.now_us, *values))
        self.telling.confirmed_us = self.clock.now_us

    def answer(self, *values: tuple[int, float, int], after_us: int = 1000) -> None:
        """A Read was answered: (point, value, the source's time) each."""
        self.clock.now_us += after_us
        one = told(self.clock.now_us, *values)
        column = decode.Column(None, one.values, one.quality, one.ts, one.status, one.typed)
        self.session._take(one.handle, column)

    def shown(self, *asked: int, after_us: int = 1000) -> Readings:
        """What is handed on of all points, these of which were asked."""
        self.clock.now_us += after_us
        due = np.arange(len(self.session.points))
        return self.session._readings(due, np.isin(due, asked), [])


def told(t_us: int, *values: tuple[int, float, int]) -> Told:
    handle, value, ts = zip(*values, strict=True)
    n = len(values)
    return Told(
        t_us,
        np.array(handle, np.int64),
        np.array(value, np.float64),
        np.zeros(n, np.uint8),
        WALL + np.array(ts, np.int64),
        np.zeros(n, np.uint32),
        np.full(n, 11, np.uint8),
    )


def spoken(*names: str, every_us: int = SECOND_US) -> Spoken:
    """All points are known and told; their handles are their numbers."""
    clock = HandClock()
    points = [Point(name, Address(address=f"nsu=urn:x;s={name}"), every_us) for name in names]
    connection = Connection.model_validate({"url": "opc.tcp://127.0.0.1:1"})
    session = opcua.OpcUaSession("ua", connection, pts.points_of(points), clock, None)
    session.points.known[:] = session.points.told[:] = True
    session.points.item[:] = session.items.point_of = np.arange(len(points))
    client: Any = SimpleNamespace(url="opc.tcp://127.0.0.1:1", clock=clock, used_us=0)
    session.subscription = Subscription(client, TellingCounters(), 1, SECOND_US, SECOND_US, 1, clock.now_us)
    return Spoken(session, clock)


def good_of(readings: Readings, point: int) -> list[float]:
    """The values of one point in their order."""
    width = readings.values.shape[-1]
    quality = readings.quality.reshape(-1, width)[:, point]
    return [float(v) for v, q in zip(readings.values.reshape(-1, width)[:, point], quality, strict=True) if q == GOOD]


def test_a_pulse_within_one_stamp_of_a_coarse_clock_ends_where_it_ended() -> None:
    line = spoken("a")
    line.hear((0, 0.0, 5))
    assert good_of(line.shown(), 0) == [0.0]
    line.hear((0, 1.0, 5), (0, 0.0, 5))
    assert good_of(line.shown(), 0) == [1.0, 0.0]
    assert line.session.points.values[0] == 0.0


def test_what_was_read_after_a_loss_is_not_replaced_by_what_waited_in_the_servers_queue() -> None:
    line = spoken("a")
    line.hear((0, 3.0, 3))
    line.shown()
    line.answer((0, 5.0, 5))
    assert good_of(line.shown(0), 0) == [5.0]
    line.hear((0, 4.0, 4), (0, 5.0, 5))
    assert good_of(line.shown(), 0)[-1] == 5.0
    assert line.session.points.values[0] == 5.0


def test_what_is_told_while_others_are_asked_stands_after_what_was_read_before_it() -> None:
    line = spoken("a", "b")
    line.hear((0, 1.0, 1), (1, 1.0, 1))
    line.shown()
    line.answer((0, 1.0, 1))
    line.hear((0, 2.0, 2))
    line.answer((1, 1.0, 1))
    assert good_of(line.shown(0, 1), 0)[-1] == 2.0
    assert line.session.points.values[0] == 2.0


def test_what_was_told_before_an_answer_does_not_stand_after_it() -> None:
    line = spoken("a")
    line.hear((0, 1.0, 1))
    line.answer((0, 2.0, 2))
    assert good_of(line.shown(0), 0) == [1.0, 2.0]
    assert line.session.points.values[0] == 2.0


def test_a_value_of_which_a_look_has_shown_another_is_not_confirmed() -> None:
    line = spoken("a", "b")
    line.hear((0, 1.0, 1), (1, 1.0, 1))
    line.shown()
    other = told(0, (0, 2.0, 2), (1, 1.0, 1))
    held = line.session.points.values.copy(), line.session.points.status.copy(), line.session.points.news_us.copy()
    column = decode.Column(None, other.values, other.quality, other.ts, other.status, other.typed)
    line.session._compare(np.arange(2), column, held)
    line.telling.confirmed_us = line.clock.now_us + 1
    assert line.shown().quality.tolist() == [HOLD, CONFIRMED]


def test_nobody_vouches_for_what_was_read_before_an_item_said_its_first_word() -> None:
    line = spoken("a", "b")
    line.answer((0, 1.0, 1), (1, 1.0, 1))
    line.shown(0, 1)
    line.hear((0, 1.0, 1))
    assert line.shown().quality.tolist() == [CONFIRMED, HOLD]
    due = np.arange(2)
    assert not line.session._to_ask(due).any()
    line.clock.now_us += 4 * SECOND_US
    assert line.session._to_ask(due).tolist() == [False, True], "an item that never speaks is asked"
    line.hear((1, 1.0, 1))
    assert line.shown().quality.tolist() == [CONFIRMED, CONFIRMED]
    assert not line.session._to_ask(due).any()


# ------------------------------------------------------------------------------------------------ the subscription's words


def published(sequence: int, *, keep_alive: bool = False) -> Any:
    return SimpleNamespace(sequence=sequence, keep_alive=keep_alive, overflows=0)


@pytest.mark.parametrize("late", [2, 1, 4_294_967_290])
def test_a_message_that_comes_late_or_once_more_is_not_believed_to_be_the_newest(late: int) -> None:
    telling = spoken("a").telling
    for sequence in (1, 2, 3):
        telling._count(published(sequence))
    held = telling.resync
    telling._count(published(late))
    assert (held, telling.resync) == (False, True)
    telling.resync = False
    telling._count(published(4))
    telling._count(published(4, keep_alive=True))
    telling._count(published(5, keep_alive=True))
    assert not telling.resync or late > 5


def test_a_server_that_numbers_anew_is_read_once_and_followed() -> None:
    telling = spoken("a").telling
    for sequence in (5000, 1, 2, 3):
        telling.resync = False
        telling._count(published(sequence))
    assert not telling.resync


def test_numbers_that_wrap_are_no_gap() -> None:
    telling = spoken("a").telling
    for sequence in (0xFFFF_FFFE, 0xFFFF_FFFF, 1, 2):
        telling._count(published(sequence))
    assert not telling.resync
    assert telling.counts.sequence_gaps == 0


def test_a_server_that_lets_every_request_grow_old_is_silent() -> None:
    line = spoken("a")
    line.clock.now_us += 4 * SECOND_US
    line.telling._refused(Refused(0x800A_0000))
    with pytest.raises(DeviceSilent, match="connected but silent"):
        line.telling.check()


@pytest.mark.parametrize("interval", [0.0, -5.0, 1e-9])
def test_a_server_that_promises_to_speak_at_once_is_given_its_three_seconds(interval: float) -> None:
    line = spoken("a")
    line.telling.publishing_us = _sane_us(interval, SECOND_US)
    line.telling.keep_alive_us = line.telling.publishing_us
    line.clock.now_us += 2 * SECOND_US
    line.telling.check()


# -------------------------------------------------------------------------------------------------------- notes from disk


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        b"x",
        zlib.compress(b"[" * 100_000),
        zlib.compress(b"{}"),
        zlib.compress(json.dumps({"nodes": {}, "uris": {}, "heard_us": math.inf, "fills": 0}).encode()),
        zlib.compress(json.dumps({"nodes": {"a": 1}, "uris": {}, "heard_us": 0, "fills": 0}).encode()),
        zlib.compress(json.dumps({"nodes": {}, "uris": {"x": 1}, "heard_us": 0, "fills": None}).encode()),
        zlib.compress(b"\xff\xfe"),
    ],
)
def test_damaged_notes_are_as_none(notes: bytes) -> None:
    session = spoken("a").session
    session.recall(notes)
    assert session.memory.heard_us == 0


# ----------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("raw", [b"M\xfcller", "Müller".encode(), b"\xed\xa0\x80", b"\x81\xff"])
def test_a_text_that_is_no_utf_8_can_be_told_to_others(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogateescape")  # as the library has it
    item: Any = SimpleNamespace(Value=SimpleNamespace(Value=text), StatusCode=None)
    shown = opcua._text(item)
    assert json.loads(topics.health(WALL, {"attributes": {"m.maker": shown}}))["attributes"]["m.maker"] == shown
    if b"ller" in raw:
        assert shown == "Müller"


# ------------------------------------------------------------------------------------------------------------- structures


def test_a_value_that_is_longer_or_shorter_than_its_data_type_says_is_none_of_it() -> None:
    shape = structure.Shape(
        (structure.Member("a", 11, many=False, optional=False), structure.Member("b", 6, many=False, optional=False)),
        masked=False,
    )
    assert structure.member_of(struct.pack("<di", 1.5, 7), shape, ["a"]) == 1.5
    for body in (struct.pack("<Id", 1, 1.5) + b"\0\0\0\0", struct.pack("<d", 1.5), struct.pack("<dd", 1.5, 7)):
        with pytest.raises(structure.Unreadable):
            structure.member_of(body, shape, ["a"])


def node(number: int) -> Any:
    return SimpleNamespace(NamespaceIndex=0, Identifier=number, to_string=lambda: f"i={number}")


def shape_of(
    monkeypatch: pytest.MonkeyPatch, definitions: dict[int, Any], parents: dict[int, int]
) -> structure.Shape | int:
    """Of the data type i=100 of a server that has these."""

    async def attributes(_client: Any, nodes: Sequence[Any], _attribute: int) -> list[Any]:
        return [SimpleNamespace(Value=SimpleNamespace(Value=definitions.get(each.Identifier))) for each in nodes]

    async def parent(_client: Any, kind: Any) -> Any:
        return node(parents[kind.Identifier])

    monkeypatch.setattr(structure, "read_values", attributes)
    monkeypatch.setattr(structure, "_parent", parent)
    return asyncio.run(structure.Shapes().of_type(None, node(100)))  # type: ignore[arg-type]


def member(name: str, kind: int, rank: int = -1) -> Any:
    return SimpleNamespace(Name=name, DataType=node(kind), ValueRank=rank, IsOptional=False)


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_a_union_is_not_read_as_a_structure(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    union = SimpleNamespace(StructureType=kind, Fields=[member("a", 11), member("b", 6)])
    with pytest.raises(structure.Unreadable, match="union"):
        shape_of(monkeypatch, {100: union}, {})


def test_a_member_of_several_dimensions_is_not_read_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = SimpleNamespace(StructureType=0, Fields=[member("a", 11, rank=2), member("b", 6)])
    with pytest.raises(structure.Unreadable, match="several dimensions"):
        shape_of(monkeypatch, {100: matrix}, {})


def test_a_set_of_options_is_as_wide_as_the_number_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SimpleNamespace(Fields=[])
    holder = SimpleNamespace(StructureType=0, Fields=[member("options", 200), member("b", 11)])
    shape = shape_of(monkeypatch, {100: holder, 200: options}, {200: 5})
    assert structure.member_of(struct.pack("<Hd", 3, 2.5), shape, ["b"]) == 2.5


# ------------------------------------------------------------------------------------------- a server with odd answers


@dataclass(slots=True)
class Bent:
    """The client of a session, some of whose answers are bent. refuse: says with which code a request is refused, if any."""

    client: Any
    refuse: Callable[[bytes, bytes], int] = lambda _prefix, _tail: 0
    bend: Callable[[Any], Any] = lambda found: found
    asked: list[bytes] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def ask_raw(self, prefix: bytes, tail: bytes, response: Any, doing: str) -> bytes:
        self.asked.append(tail)
        if code := self.refuse(prefix, tail):
            raise Refused(code)
        raw: bytes = await self.client.ask_raw(prefix, tail, response, doing)
        return raw

    async def ask_encoded(self, prefix: bytes, tail: bytes, response: Any, doing: str) -> Any:
        if code := self.refuse(prefix, tail):
            raise Refused(code)
        return self.bend(await self.client.ask_encoded(prefix, tail, response, doing))


VALUE_OF_INT32 = b"Types.Int32" + struct.pack("<I", 13)
TOO_LARGE = 0x80B9_0000


def test_one_variable_that_is_too_large_for_the_server_to_send_takes_no_other_one_with_it(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double", "Types.Int32", "Types.Int16"), mode="poll") as line:
            bent: Any = Bent(line.session.client, lambda _, tail: TOO_LARGE if VALUE_OF_INT32 in tail else 0)
            line.session.client = bent
            await line.read()
            assert line.shown[0].is_good(2.5)
            assert line.shown[2].is_good(-700)
            assert line.shown[1].last[1] is Quality.OTHER
            assert "BadResponseTooLarge" in line.session.explain(1)

    asyncio.run(run())


def test_a_text_that_is_too_long_for_the_server_to_send_ends_no_session(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double"), mode="poll") as line:
            sane: Any = line.session.client
            bent: Any = Bent(sane, lambda _, tail: TOO_LARGE if b"Types.String" in tail else 0)
            line.session.client = bent
            text = Point("m.t", Address.model_validate({"address": ours("Types.String")[0], "type": "string"}), 0)
            assert await line.session.describe([text]) == [None]
            line.session.client = sane
            assert await line.session.describe([text]) == ["warm"]
            await line.read()
            assert line.shown[0].is_good(2.5)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "value"), [(0x800A_0000, None), (0x800E_0000, None), (0, None), (0, 17), (0x8002_0000, None)]
)
def test_a_variable_whose_name_is_not_told_is_not_shown_until_it_is(
    plant: foreign.Plant, code: int, value: Any
) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double", "Types.Int16"), mode="poll") as line:
            sane: Any = line.session.client
            ua = sane.ua

            def odd(found: Any) -> Any:
                found.Results[0] = ua.DataValue(ua.Variant(value), ua.StatusCode(code))
                return found

            bent: Any = Bent(sane, bend=odd)
            line.session.client = bent
            await line.read()
            assert line.shown[0].last[1] is Quality.REFUSED
            assert "does not tell the variable's name" in line.session.explain(0)
            assert line.shown[1].is_good(-700)
            line.session.client = sane
            line.clock.skip(3 * SECOND_US)
            await line.read()
            assert line.shown[0].is_good(2.5)

    asyncio.run(run())


def test_a_server_that_looks_less_often_than_at_once_still_tells() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, limits={"minSupportedSampleRate": 80}) as plant:
            async with talk(plant, ours("Types.Double"), sampling="0s") as line:
                await line.until_told()

    asyncio.run(run())


@pytest.mark.parametrize("interval", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_whatever_a_server_revises_an_interval_to_its_values_are_shown(plant: foreign.Plant, interval: float) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double")) as line:

            def odd(found: Any) -> Any:
                if hasattr(getattr(found, "Parameters", None), "RevisedPublishingInterval"):
                    found.Parameters.RevisedPublishingInterval = interval
                return found

            bent: Any = BentServices(line.session.client, odd)
            line.session.client = bent
            for _ in range(4):
                await line.turn()
            assert line.counted("subscriptions") == 1
            await plant.set("Types.Double", 3.5)
            await line.until(lambda: line.shown[0].is_good(3.5))
            await plant.set("Types.Double", 2.5)
            await line.until(lambda: line.shown[0].is_good(2.5))

    asyncio.run(run())


@dataclass(slots=True)
class BentServices:
    """The same for services that are asked as a whole."""

    client: Any
    bend: Callable[[Any], Any]
    used_us: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def ask(self, request: Any, doing: str) -> Any:
        return self.bend(await self.client.ask(request, doing))


def test_whose_items_are_refused_stand_in_nobodys_way() -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, mass=5, limits={"maxMonitoredItemsPerCall": 2}) as plant:
            await plant.refuse_items(["Mass.0", "Mass.1", "Mass.2"], "BadMonitoredItemFilterUnsupported")
            async with talk(plant, ours(*(f"Mass.{n}" for n in range(5)))) as line:
                await line.until(lambda: line.session.points.told.sum() == 2)
                assert line.session.points.told.tolist() == [False, False, False, True, True]
                await plant.refuse_items([])
                line.clock.skip(2 * SECOND_US)
                await line.turn()
                assert line.session.points.told.sum() == 2, "not at once"
                await plant.ramp(["Mass.4"], 0.001, start=100, count=1)
                await line.until(lambda: line.shown[4].is_good(100))
                line.clock.skip(2_500_000)
                await plant.ramp(["Mass.4"], 0.001, start=200, count=1)
                await line.until(line.session.points.told.all)

    asyncio.run(run())


def test_a_request_for_items_that_is_refused_as_a_whole_leaves_nothing_behind(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double", "Types.Int16")) as line:
            await plant.refuse("CreateMonitoredItems", "BadOutOfMemory", 1)
            await line.turn()
            await line.turn()
            assert not line.session.points.told.any()
            assert len(line.session.items.point_of) == 0

    asyncio.run(run())


def test_a_signal_that_comes_later_and_is_faster_than_the_server_tells_is_asked(plant: foreign.Plant) -> None:
    async def run() -> None:
        slow, fast = ours("Types.Int16", "Types.Double")
        async with talk(plant, [slow], every_us=60 * SECOND_US) as line:
            await line.turn()
            await line.turn()
            assert line.session.points.told.all()
            line.session.use([*line.session.points.points, Point("m.s1", Address(address=fast), 100_000)])
            for value in (3.5, 4.5, 2.5):
                await plant.set("Types.Double", value)
                await line.session.idle(line.clock.monotonic_us() + SECOND_US)
                readings = await line.session.read(np.arange(2))
                assert good_of(readings, 1)[-1] == value

    asyncio.run(run())


def test_what_waits_an_hour_for_a_slow_signal_is_not_walked_with_each_beat_of_a_fast_one() -> None:
    line = spoken("fast", "slow")
    session, telling = line.session, line.telling
    session.points.every[1] = 3600 * SECOND_US
    line.hear((0, 1.0, 1), (1, 1.0, 1))
    line.shown()
    for number in range(5):
        line.hear((1, float(number), 2 + number), (0, float(number), 2 + number))
    (fast, slow) = np.array([0]), np.array([0, 1])
    assert good_of(session._readings(fast, np.array([False]), []), 0) == [0, 1, 2, 3, 4]
    kept = [*telling._kept[3600 * SECOND_US]]
    line.hear((1, 5.0, 7))
    session._readings(fast, np.array([False]), [])
    assert [*telling._kept[3600 * SECOND_US]][:5] == kept
    assert telling.unread == 6
    line.hear((1, 6.0, 8), (0, 6.0, 8))
    readings = session._readings(slow, np.array([False, False]), [])
    assert good_of(readings, 1) == [0, 1, 2, 3, 4, 5, 6]
    assert good_of(readings, 0) == [6]
    assert telling.unread == 0


@pytest.mark.parametrize(("every_s", "kept_s"), [(0.1, 120), (600, 1800), (7200, 3000)])
def test_a_session_that_a_cut_line_leaves_behind_takes_its_place_for_a_short_time(
    plant: foreign.Plant, every_s: float, kept_s: int
) -> None:
    """The foreign server keeps none for more than 50 minutes."""

    async def run() -> None:
        async with talk(plant, ours("Types.Double"), every_us=round(every_s * SECOND_US), mode="poll") as line:
            await line.read()
            sessions = (await plant.statistics())["sessions"]
            assert sessions[-1]["timeout_ms"] == 1000 * kept_s

    asyncio.run(run())


def test_waiting_is_no_request_that_keeps_a_session(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double"), every_us=600 * SECOND_US, mode="poll") as line:
            await line.read()
            for _ in range(14):
                line.clock.skip(100 * SECOND_US)
                await line.session.idle(line.clock.monotonic_us() + SECOND_US)
            assert line.counted("sessions") == 2, "the server would have ended the first one"

    asyncio.run(run())


# ----------------------------------------------------------------------------------------------------------- the past


def test_what_a_silent_server_had_to_tell_counts_as_not_heard() -> None:
    line = spoken("a")
    line.hear((0, 1.0, 1))
    heard_us = line.clock.wall_us()
    line.shown()
    line.shown(after_us=2 * SECOND_US)
    assert line.session.memory.heard_us == heard_us


def past_of(line: Spoken, points: Sequence[int], ago_s: int) -> Readings:
    """A row of the past: each point shows its number."""
    values = np.array([points], np.float64)
    ts = np.full(values.shape, line.clock.wall_us() - ago_s * SECOND_US)
    return Readings(values, np.zeros(values.shape, np.uint8), ts, np.array([0]))


def test_the_past_that_is_still_to_come_is_that_of_the_same_signals_after_a_reload() -> None:
    line = spoken("a", "b", "c")
    line.hear((0, 1.0, 1), (1, 1.0, 1))
    line.session.past.late.append((np.array([0, 1, 2]), past_of(line, [0, 1, 2], 60)))
    line.shown()
    assert line.session.belated() is None, "c has no live value yet"
    a, _, c = line.session.points.points
    line.session.use([c, Point("d", Address(address="nsu=urn:x;s=d"), SECOND_US), a])
    line.hear((2, 1.0, 1))
    line.shown()
    line.shown()
    found = line.session.belated()
    assert found is not None
    points, readings = found
    assert points.tolist() == [0, 2]
    assert readings.values.tolist() == [[2.0, 0.0]]
    assert line.session.belated() is None


@pytest.mark.parametrize("ahead_s", [0, 120, -120, -3000])
def test_a_gap_is_filled_by_the_servers_clock_when_ours_is_another(ahead_s: int) -> None:
    async def run() -> None:
        async with foreign.server(publishing_min_ms=20, history=300, history_period_ms=1000) as plant:
            clock = SkippingClock()
            clock._wall_base_us += ahead_s * SECOND_US
            async with talk(plant, ours("History.Level"), clock=clock, mode="poll") as line:
                line.session.memory.heard_us = clock.wall_us() - 60 * SECOND_US
                now_us = clock.monotonic_us()
                readings = await line.read()
                assert line.shown[0].good[-1] == 299
                assert min(line.shown[0].good) in range(236, 246)
                assert 50 <= line.counted("back_filled") <= 64
                assert readings.t is not None
                assert 50 * SECOND_US < now_us - readings.t[0] < 65 * SECOND_US

    asyncio.run(run())


def test_a_past_whose_stamps_nobody_shares_is_handed_on_in_pieces_that_fit_into_memory() -> None:
    nodes, each = 2000, 10
    gap = history.Gap([None] * nodes, 0, WALL)
    rng = np.random.default_rng(1)
    for place in range(nodes):
        ts = np.sort(rng.choice(10**9, each, replace=False))
        zeros = np.zeros(each, np.uint32)
        one = decode.Column(None, ts.astype(np.float64), np.zeros(each, np.uint8), ts, zeros, np.zeros(each, np.uint8))
        gap.found.append((place, one))
    shown, times = 0, [np.zeros(1, np.int64)]
    while (readings := history.taken(gap, 0, WALL)) is not None:
        assert readings.values.size <= history.CELLS_MAX
        row, _ = np.nonzero(readings.quality == GOOD)
        assert (readings.values[readings.quality == GOOD] == readings.ts[readings.quality == GOOD]).all()
        shown += len(row)
        times.append(readings.ts[:, 0])
    assert shown == nodes * each
    assert (np.diff(np.concatenate(times)) > 0).all(), "in the order of time over all pieces"


def test_a_history_that_is_never_answered_ends_and_what_came_before_it_is_handed_on(plant: foreign.Plant) -> None:
    async def run() -> None:
        async with talk(plant, ours("Types.Double", "History.Level"), mode="poll") as line:
            line.session.memory.heard_us = line.clock.wall_us() - 60 * SECOND_US
            await plant.delay("HistoryRead", 5)
            asyncio.get_running_loop().call_later(0.2, line.clock.skip, 6 * SECOND_US)
            await line.read()
            gap = line.session.past.gap
            assert gap is not None
            await line.turn()
            assert gap.waits
            line.clock.skip(60 * SECOND_US)
            await line.turn()
            assert not gap.open
            line.session.belated()
            assert line.session.past.gap is None
        await plant.delay("HistoryRead", 0)

    asyncio.run(run())
