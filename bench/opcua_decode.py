"""CPU of decoding OPC UA answers: by columns over the bytes, beside the library's own decoder, in the same run.

Run: python -m bench.opcua_decode [--values 10000] [--json]. Rounds are interleaved, figures are medians of this process'
CPU. `first` is a read that was not asked before, `read` one that is polled again. `library` is asyncua's decoder alone;
`both` is it and the walk over its objects, which is what the columns replace (and what they cost where they give up).
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from drivers import opcua_decode

READ_TARGET_US, PUBLISH_TARGET_US = 0.2, 1.0
"""µs of CPU a value of a read, and a notification."""
ROUNDS = 7
TEXTS = "one text in ten"
"""No target: texts are attributes, read once in an hour."""
STAMP = datetime(2026, 3, 1, 12, tzinfo=UTC)
RECEIVED_US = 1_772_366_400_500_000
MIXED = (
    ua.Variant(17.25, ua.VariantType.Double),
    ua.Variant(17.25, ua.VariantType.Float),
    ua.Variant(-17, ua.VariantType.Int32),
    ua.Variant(17, ua.VariantType.UInt16),
    ua.Variant(True, ua.VariantType.Boolean),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """µs of CPU a value. ratio: of the whole way over the library's objects to ours."""

    answer: str
    content: str
    values: int
    ours_us: float
    library_us: float
    both_us: float
    ratio: float
    by_columns: bool


def good(number: int) -> ua.DataValue:
    return ua.DataValue(ua.Variant(number * 0.5, ua.VariantType.Double), SourceTimestamp=STAMP)


def bad(_number: int) -> ua.DataValue:
    return ua.DataValue(None, ua.StatusCode(ua.StatusCodes.BadSensorFailure), SourceTimestamp=STAMP)


def mixed(number: int) -> ua.DataValue:
    return ua.DataValue(MIXED[number % len(MIXED)], SourceTimestamp=STAMP)


def text(_number: int) -> ua.DataValue:
    return ua.DataValue(ua.Variant("running", ua.VariantType.String), SourceTimestamp=STAMP)


CONTENTS: dict[str, Callable[[int], ua.DataValue]] = {
    "Doubles": good,
    "five types in turn": mixed,
    "one bad in a hundred": lambda number: bad(number) if number % 100 == 57 else good(number),
    "every other one bad": lambda number: bad(number) if number % 2 else good(number),
    "one bad in six": lambda number: bad(number) if number % 6 == 0 else good(number),
    TEXTS: lambda number: text(number) if number % 10 == 0 else good(number),
}


def read_answer(items: list[ua.DataValue]) -> bytes:
    return bytes(struct_to_binary(ua.ReadResponse(Results=items)))


def publish_answer(items: list[ua.DataValue]) -> bytes:
    answer = ua.PublishResponse()
    answer.Parameters.MoreNotifications = False
    notifications = [ua.MonitoredItemNotification(handle, item) for handle, item in enumerate(items)]
    answer.Parameters.NotificationMessage.NotificationData = [ua.DataChangeNotification(notifications)]
    return bytes(struct_to_binary(answer))


def took(works: list[Callable[[], object]]) -> Iterator[float]:
    """Median seconds of CPU of one call of each, called in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, each in zip(works, times, strict=True):
            began, calls = time.process_time(), 0
            while time.process_time() - began < 0.02:
                work()
                calls += 1
            each.append((time.process_time() - began) / calls)
    return map(statistics.median, times)


def read_figure(content: str, count: int, *, again: bool = True) -> Figure:
    """again: the same request was answered before, as in each poll but the first."""
    raw = read_answer([CONTENTS[content](number) for number in range(count)])
    layout = opcua_decode.Layout() if again else None
    return figure(
        ("read" if again else "first", content, count),
        lambda: opcua_decode.read_response(raw, count, RECEIVED_US, layout),
        lambda: struct_from_binary(ua.ReadResponse, Buffer(raw)),
        lambda: opcua_decode.from_read(struct_from_binary(ua.ReadResponse, Buffer(raw)), RECEIVED_US),
    )


def publish_figure(content: str, count: int) -> Figure:
    raw = publish_answer([CONTENTS[content](number) for number in range(count)])
    return figure(
        ("publish", content, count),
        lambda: opcua_decode.publish_response(raw, RECEIVED_US),
        lambda: struct_from_binary(ua.PublishResponse, Buffer(raw)),
        lambda: opcua_decode.from_publish(struct_from_binary(ua.PublishResponse, Buffer(raw)), RECEIVED_US),
    )


def figure(
    what: tuple[str, str, int], ours: Callable[[], object], library: Callable[[], object], both: Callable[[], object]
) -> Figure:
    answer, content, count = what
    ours_us, library_us, both_us = (seconds * 1e6 / count for seconds in took([ours, library, both]))
    by_columns = ours() is not None
    ours_us += 0 if by_columns else both_us
    return Figure(answer, content, count, ours_us, library_us, both_us, both_us / ours_us, by_columns)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--values", type=int, default=10_000)
    asked.add_argument("--json", action="store_true")
    options = asked.parse_args()
    figures = [read_figure(content, options.values, again=False) for content in CONTENTS]
    figures += [make(content, options.values) for make in (read_figure, publish_figure) for content in CONTENTS]
    figures += [make("Doubles", count) for make in (read_figure, publish_figure) for count in (1, 5, 10, 100)]
    if options.json:
        print(json.dumps([asdict(each) for each in figures]))
        return 0
    print(f"  {'answer':8} {'content':22} {'values':>7} {'ours µs':>9} {'library':>9} {'both':>9} {'ratio':>7}")
    for each in figures:
        row = f"  {each.answer:8} {each.content:22} {each.values:7} {each.ours_us:9.3f} {each.library_us:9.2f}"
        print(f"{row} {each.both_us:9.2f} {each.ratio:7.1f}{'' if each.by_columns else '  left to the library'}")
    for answer, target in (("first", READ_TARGET_US), ("read", READ_TARGET_US), ("publish", PUBLISH_TARGET_US)):
        alike = [each for each in figures if (each.answer, each.values) == (answer, options.values)]
        most = {each.content: each.ours_us for each in alike if each.content != TEXTS}
        worst = max(most, key=lambda content: most[content])
        met = "met" if most[worst] <= target else "missed"
        print(f"  {answer}: at most {most[worst]:.3f} µs a value ({worst}); target {target:g} µs: {met}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
