"""What a server's history has of a gap in which we did not hear it (HistoryRead, OPC UA Part 11, 6.4.3).

Rule: the past waits for nobody: what does not come within seconds is handed on as belated, behind the live values.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from drivers import opcua_decode as decode
from drivers import opcua_status as status
from drivers.opcua_client import Client, value_of
from edge_agent.contract import SECOND_US, Bools, Ints, Quality, Readings

log = logging.getLogger(__name__)

WAIT_S = 5.0
"""The most that the first live value waits: contract §6, HistoryRead."""
ANSWER_US = 60 * SECOND_US
"""After this an answer is given up, so that what came before it is handed on."""
NODES_AT_ONCE, VALUES_AT_ONCE = 5, 100
"""Variables in one HistoryRead, and values of each in one answer; decoded one by one, up to 70 µs each."""
CELLS_MAX = 1_000_000
"""Rows times variables that are handed on at once: stamps that nobody shares are a row each, of all variables."""
VALUES_MAX = 1_000_000
HISTORY_READ = 0x04
"""Bit of AccessLevel: OPC UA Part 3, 8.57."""
GLANCE_S = 0.1
"""How often it is looked whether WAIT_S is over."""


@dataclass(slots=True)
class Gap:
    """A gap that is being filled. nodes: by the place that their values get. from_us, until_us: UTC.

    left: (place, continuation point) of what is still to be asked. answer: of what was asked and has not come yet.
    found: (place, column) of what came.
    """

    nodes: Sequence[Any]
    from_us: int
    until_us: int
    left: list[tuple[int, Any]] = field(default_factory=list)
    asked: list[tuple[int, Any]] = field(default_factory=list)
    answer: "asyncio.Future[Any] | None" = None
    found: list[tuple[int, decode.Column]] = field(default_factory=list)
    values: int = 0
    ahead_us: int = 0
    """How far the server's clock, by which `from_us` and `until_us` are, is ahead of ours."""
    patience_us: int = 0
    """Monotonic, when an answer that has not come yet is given up."""

    @property
    def open(self) -> bool:
        """Whether some of it is still to come."""
        return bool(self.left) or self.answer is not None

    @property
    def waits(self) -> bool:
        """Whether the server has something to say first."""
        return self.answer is not None and not self.answer.done()


def begun(nodes: Sequence[Any], levels: Sequence[Any], from_us: int, until_us: int, ahead_us: int = 0) -> Gap:
    """A gap of those of the variables that have a history. levels: DataValues of their UserAccessLevel.

    from_us, until_us: by our clock. ahead_us: how far the server's is ahead of it.
    """
    has = [place for place, each in enumerate(levels) if _level(each) & HISTORY_READ]
    left = [(place, None) for place in has]
    return Gap(nodes, from_us + ahead_us, until_us + ahead_us, left, ahead_us=ahead_us)


def ahead_us(item: Any, wall_us: int) -> int:
    """How far a server's clock (DataValue of its CurrentTime) is ahead of ours; 0: it is not known, or as good as equal."""
    told = value_of(item)
    if not isinstance(told, datetime):
        return 0
    ahead = (told.replace(tzinfo=UTC) - decode.EPOCH) // decode.MICROSECOND - wall_us
    return ahead if abs(ahead) >= SECOND_US else 0


def go_on(client: Client, gap: Gap) -> None:
    """Take what came and ask for some of what is left. Waits for nothing: a slow history must hold up no live value.

    What cannot be had is given up, with one line in the log: a live value is worth more than the past.
    """
    try:
        if gap.answer is not None and gap.answer.done():
            answer, gap.answer = gap.answer, None
            if answer.cancelled():  # the line is closed
                gap.left.clear()
                return
            _take(client, gap, bytes(answer.result()))
        elif gap.answer is not None and client.clock.monotonic_us() >= gap.patience_us:
            gap.answer.cancel()
            gap.answer = None
            raise TimeoutError(f"no answer within {ANSWER_US / SECOND_US:g} s")
        if gap.answer is None and gap.left:
            gap.answer = client.leave(_request(client.ua, gap))
            gap.patience_us = client.clock.monotonic_us() + ANSWER_US
    except Exception as error:  # noqa: BLE001 - the library's own, see opcua_client, rule 3
        gap.left.clear()
        log.warning("%s: the history is left aside: %s", client.url, str(error) or type(error).__name__)


def _request(ua: Any, gap: Gap) -> Any:
    """A request for the next of what is left, which then counts as asked."""
    gap.asked, gap.left = gap.left[:NODES_AT_ONCE], gap.left[NODES_AT_ONCE:]
    details = ua.ReadRawModifiedDetails()
    details.IsReadModified, details.ReturnBounds, details.NumValuesPerNode = False, False, VALUES_AT_ONCE
    details.StartTime, details.EndTime = _time(gap.from_us), _time(gap.until_us)
    request = ua.HistoryReadRequest()
    request.Parameters.HistoryReadDetails = details
    request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Source
    request.Parameters.ReleaseContinuationPoints = False
    request.Parameters.NodesToRead = [
        ua.HistoryReadValueId(gap.nodes[place], None, ua.QualifiedName(), point) for place, point in gap.asked
    ]
    return request


def _take(client: Client, gap: Gap, raw: bytes) -> None:
    response = client.ua.HistoryReadResponse
    answers = client.decoded(client.checked(raw, response), response).Results
    for (place, _), answer in zip(gap.asked, answers, strict=False):
        _note(gap, place, answer)


def _note(gap: Gap, place: int, answer: Any) -> None:
    values = getattr(answer.HistoryData, "DataValues", None) or []
    if answer.StatusCode.value & status.BAD or not values:
        return
    stamped = [each for each in values if each.SourceTimestamp is not None]
    column = decode.from_data_values(stamped, gap.until_us)
    # Its own stamps, however old: they are what was asked for.
    stamps = [(each.SourceTimestamp - decode.EPOCH) // decode.MICROSECOND for each in stamped]
    ts = np.array(stamps, np.int64)
    quality = np.where(column.quality == Quality.CLOCK, np.uint8(Quality.GOOD), column.quality)
    inside = (ts > gap.from_us) & (ts < gap.until_us)
    stamped_so = decode.Column(None, column.values, quality, ts, column.status, column.typed)
    gap.found.append((place, _only(stamped_so, inside)))
    gap.values += len(values)
    if answer.ContinuationPoint and gap.values < VALUES_MAX:
        gap.left.append((place, answer.ContinuationPoint))


async def filled(client: Client, gap: Gap) -> None:
    """As much of it as comes within WAIT_S; `open` says whether something did not."""
    ends = client.clock.monotonic_us() + int(WAIT_S * SECOND_US)
    go_on(client, gap)
    while gap.answer is not None and client.clock.monotonic_us() < ends:
        await asyncio.wait([gap.answer], timeout=GLANCE_S)
        if gap.answer.done():
            go_on(client, gap)


def taken(gap: Gap, monotonic_us: int, wall_us: int) -> Readings | None:
    """What was found, as rows in the order of their time, for all nodes; None: nothing. What is too much for once is left.

    t: when they were measured, by the agent's own clock.
    """
    found = _earliest(gap, max(1, CELLS_MAX // max(1, len(gap.nodes))))
    parts = [(np.full(len(column.ts), place, np.int64), column) for place, column in found]
    if not parts:
        return None
    at = np.concatenate([place for place, _ in parts])
    stamps: Ints = np.concatenate([column.ts for _, column in parts])
    times, row = np.unique(stamps, return_inverse=True)
    shape = (len(times), len(gap.nodes))
    values, quality = np.full(shape, np.nan), np.full(shape, Quality.HOLD, np.uint8)
    values[row, at] = np.concatenate([column.values for _, column in parts])
    quality[row, at] = np.concatenate([column.quality for _, column in parts])
    ts = np.repeat(times[:, np.newaxis], shape[1], axis=1)
    return Readings(values, quality, ts, monotonic_us - (wall_us + gap.ahead_us - times))


def _earliest(gap: Gap, rows: int) -> list[tuple[int, decode.Column]]:
    """Take out of what was found what lies in so many rows, the oldest ones."""
    found = [(place, column) for place, column in gap.found if len(column.ts)]
    times = np.unique(np.concatenate([column.ts for _, column in found])) if found else np.zeros(0, np.int64)
    if len(times) <= rows:
        gap.found = []
        return found
    early = [(place, column, column.ts < times[rows]) for place, column in found]
    gap.found = [(place, _only(column, ~chosen)) for place, column, chosen in early if not chosen.all()]
    return [(place, _only(column, chosen)) for place, column, chosen in early if chosen.any()]


def _only(column: decode.Column, chosen: Bools) -> decode.Column:
    return decode.Column(
        None,
        column.values[chosen],
        column.quality[chosen],
        column.ts[chosen],
        column.status[chosen],
        column.typed[chosen],
    )


def _time(us: int) -> datetime:
    return decode.EPOCH + us * decode.MICROSECOND


def _level(item: Any) -> int:
    raw = value_of(item)
    return int(raw) if isinstance(raw, int) else 0
