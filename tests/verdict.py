"""What a simulated world is judged by: what its consumer got against what its devices held and what was due.

Rule 1: nothing here asks the agent. Rule 2: each check returns its complaints in words, none when all is well, so that a
broken agent can be shown to be found.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from tests.simulator import LATE, Device, Heard, Signal, World
from tests.twin import GOOD, HOLD, TwinLimit, TwinMachine, TwinSignal

TIMEOUT = 3
Message = dict[str, Any]


def complaints(world: World, *, rows_apart: int = 0, still: Sequence[str] = ()) -> list[str]:
    """All checks. rows_apart: by how many rows the count may differ. still: machines that no fault has touched."""
    received = Received(world.heard)
    return [
        *received.complaints,
        *missing(received),
        *out_of_order(world),
        *untrue(world, received),
        *uncounted(world, received, rows_apart),
        *lives_of_warnings(received),
        *left_standing(world, received),
        *(each for name in still for each in judged_otherwise(world.devices[name], world, received)),
    ]


class Received:
    """Each message once. complaints: of those that came again and were others."""

    def __init__(self, heard: Sequence[Heard]) -> None:
        self.complaints: list[str] = []
        self.repeated = self.late = 0
        self._payloads: dict[tuple[str, int], bytes] = {}
        self.messages: list[tuple[str, Message]] = []
        """(the last word of the topic, message) in the order of seq, epoch by epoch as they began."""
        found: dict[tuple[int, int], tuple[str, Message]] = {}
        epochs: dict[str, int] = {}
        for each in heard:
            plain = loads(each.payload)
            key = (plain["epoch"], plain["seq"])
            late = each.payload.endswith(LATE)
            self.late += late
            bare = each.payload[: -len(LATE)] + b"}" if late else each.payload
            if key in self._payloads:
                self.repeated += 1
                if self._payloads[key] != bare:
                    self.complaints.append(f"{key} came again as other bytes: {bare!r} after {self._payloads[key]!r}")
                continue
            self._payloads[key] = bare
            number = epochs.setdefault(plain["epoch"], len(epochs))
            found[number, plain["seq"]] = (each.topic.rpartition("/")[2], {**plain, "topic": each.topic})
        self.messages = [message for _, message in sorted(found.items())]
        self.epochs = list(epochs)

    def of(self, kind: str, machine: str | None = None) -> Iterator[Message]:
        for its, plain in self.messages:
            if its == kind and (machine is None or plain["topic"].split("/")[-2] == machine):
                yield plain


def loads(payload: bytes) -> Message:
    found: Message = orjson.loads(payload)
    return found


def missing(received: Received) -> Iterator[str]:
    """Numbers from 1 to the last that neither came nor stand in a gap record."""
    for epoch in received.epochs:
        numbers = {plain["seq"] for _, plain in received.messages if plain["epoch"] == epoch}
        told: set[int] = set()
        for gap in received.of("gaps"):
            if gap["epoch"] == epoch and gap["from_seq"] is not None:
                told |= set(range(gap["from_seq"], gap["to_seq"] + 1))
        lost = [seq for seq in range(1, max(numbers) + 1) if seq not in numbers and seq not in told]
        if lost:
            yield f"epoch {epoch}: {len(lost)} of {max(numbers)} numbers never came: {lost[:10]}"


def out_of_order(world: World) -> Iterator[str]:
    """Within one connection, each topic and kind (live or late) goes in the order of seq.

    What the broker has refused comes when it takes it, and holds up nothing meanwhile.
    """
    newest: dict[tuple[int, str, bool], int] = {}
    for each in world.heard:
        seq = loads(each.payload)["seq"]
        key = (each.connection, each.topic, each.payload.endswith(LATE))
        if seq <= newest.get(key, 0) and (each.topic, _bare(each.payload)) not in world.broker.turned_down:
            yield f"{each.topic}: {seq} after {newest[key]} over connection {each.connection}"
        newest[key] = max(seq, newest.get(key, 0))


def _bare(payload: bytes) -> bytes:
    return payload.removesuffix(LATE).removesuffix(b"}")


def untrue(world: World, received: Received) -> Iterator[str]:
    """A value that is called good and that its device did not hold at that time, by the clock of then or one put right."""
    for name, device in world.devices.items():
        held: dict[tuple[str, float], list[tuple[int, int, dict[str, float]]]] = defaultdict(list)
        for read in device.held:
            for item in read[2].items():
                held[item].append(read)
        for plain in received.of("measurements", name):
            values = plain["values"]
            found = held[next(iter(values.items()))] if values else []
            if values and not any(_is_it(plain, read, world.offsets) for read in found):
                yield f"{name} at {plain['ts']} never held {values}"


def _is_it(plain: Message, read: tuple[int, int, dict[str, float]], offsets: Sequence[int]) -> bool:
    true, wall, values = read
    if not plain["values"].items() <= values.items():
        return False
    return plain["ts"] == to_utc(wall) or any(plain["ts"] == to_utc(true + offset) for offset in offsets)


def to_utc(us: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=us // 1000)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def uncounted(world: World, received: Received, apart: int) -> Iterator[str]:
    """Received rows + gap counts = rows due, counted by the devices' periods over all the time from the beginning."""
    end = world.lives[-1][1]
    due = sum(device.rows_due(world.began_us, end) for device in world.devices.values())
    rows = sum(1 for plain in received.of("measurements") if not between_beats(plain))
    gaps = sum(gap["count"] for gap in received.of("gaps"))
    if abs(rows + gaps - due) > apart:
        causes = [(gap["cause"], gap["count"]) for gap in received.of("gaps")]
        yield f"{rows} rows and gaps of {gaps} are {rows + gaps}, not the {due} that were due; {causes}"


def between_beats(plain: Message) -> bool:
    """A row of the agent's own: of a restart, or of time that passed until nothing was known any more (contract §6)."""
    why = set(plain.get("bad", {}).values())
    # A row of a beat may tell at the same moment that of another signal nothing is known any more.
    return not plain["values"] and bool(why) and why <= {"restart", "missing"}


def lives_of_warnings(received: Received) -> Iterator[str]:
    """Raised, then cleared, then raised: of each signal and kind, under one id from raise to clear."""
    standing: dict[tuple[str, str, str], str] = {}
    for event in received.of("warnings"):
        key = (event["machine"], event["signal"], event["kind"])
        match event["event"]:
            case "raised":
                # A re-alarm: it stands, and is told once more under its id.
                if standing.get(key, event["id"]) != event["id"] or (key in standing and event["kind"] != "health"):
                    yield f"{key} was raised twice: {event}"
                standing[key] = event["id"]
            case "cleared":
                if standing.pop(key, None) != event["id"]:
                    yield f"{key} was cleared and never raised: {event}"
            case _:
                if standing.get(key) != event["id"]:
                    yield f"{key} is not standing: {event}"


def left_standing(world: World, received: Received) -> Iterator[str]:
    """What is retained as active at the end is what was raised and not cleared."""
    standing: dict[str, dict[str, int]] = {name: {} for name in [*world.devices, "agent"]}
    for event in received.of("warnings"):
        its = standing[event["machine"]]
        its.pop(event["id"], None)
        if event["state"] != "normal":
            its[event["id"]] = event["seq"]
    for name, its in standing.items():
        payload = next((p for topic, p in world.broker.retained.items() if topic.endswith(f"/{name}/active")), None)
        told = {each["id"]: each["seq"] for each in loads(payload)["active"]} if payload else {}
        if told != its:
            yield f"{name}/active says {told}, the events say {its}"


# --- the judge's twin ------------------------------------------------------------------------------------------------


def judged_otherwise(device: Device, world: World, received: Received) -> Iterator[str]:
    """Its high and low warnings are those of a plain twin that gets the rows which the consumer got.

    Across a cut only signals without delays are compared: how long nobody looked is the agent's to say.
    """
    prompt = {signal.name for signal in device.signals if signal.on_s == signal.off_s == 0}
    compared = {signal.name for signal in device.signals} if len(world.lives) == 1 else prompt
    said = [
        (event["signal"], event["kind"], event["event"], event["ts"])
        for event in received.of("warnings", device.name)
        if event["kind"] in ("high", "low") and event["signal"] in compared
    ]
    wanted = [each for each in _twin(device, received) if each[0] in compared]
    if said != wanted:
        place = next(
            (i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), min(len(said), len(wanted))
        )
        yield f"{device.name}: event {place} is {said[place : place + 2]}, the twin says {wanted[place : place + 2]}"


def _twin(device: Device, received: Received) -> list[tuple[str, str, str, str]]:
    # By its values, which are never twice the same: after a step back of the wall clock a stamp comes again.
    held = {item: true for true, _, values in device.held for item in values.items()}
    twin = TwinMachine([_twin_signal(signal) for signal in device.signals])
    said, t = [], 0
    for plain in received.of("measurements", device.name):
        t = held.get(next(iter(plain["values"].items()), ("", 0.0)), t)
        values = [plain["values"].get(signal.name, float("nan")) for signal in device.signals]
        quality = [_quality(plain, signal.name) for signal in device.signals]
        for place, kind, level, _ in twin.row(t, t, values, quality):
            if kind in ("high", "low"):
                said.append((device.signals[place].name, kind, "raised" if level else "cleared", plain["ts"]))
    return said


def _quality(plain: Message, name: str) -> int:
    if name in plain["values"]:
        return GOOD
    return TIMEOUT if name in plain.get("bad", {}) else HOLD


def _twin_signal(signal: Signal) -> TwinSignal:
    limits = [("high", signal.high), ("low", signal.low)]
    on_us, off_us = round(signal.on_s * 1e6), round(signal.off_s * 1e6)
    return TwinSignal(
        [TwinLimit(side, 1, limit, signal.deadband, on_us, off_us) for side, limit in limits if limit is not None]
    )
