"""What a server's history has of a gap in which we did not hear it (HistoryRead, OPC UA Part 11, 6.4.3).

Rule: the past waits for nobody: what does not come within seconds is handed on as belated, behind the live values.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from drivers import opcua_decode as decode
from drivers import opcua_status as status
from drivers.opcua_client import Client, Refused
from edge_agent.contract import SECOND_US, Ints, Quality, Readings

WAIT_S = 5.0
"""The most that the first live value waits: contract §6, HistoryRead."""
NODES_AT_ONCE, VALUES_AT_ONCE = 20, 1000
"""Variables in one HistoryRead, and values of each in one answer; decoded one by one, 15 µs each."""
VALUES_MAX = 1_000_000
HISTORY_READ = 0x04
"""Bit of AccessLevel: OPC UA Part 3, 8.57."""
ACCESS_LEVEL_AT_ONCE = 500
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Gap:
    """A gap that is being filled. nodes: by the place that their values get. from_us, until_us: UTC.

    left: (place, continuation point) of what is still to be asked. found: (place, column) of what came.
    """

    nodes: Sequence[Any]
    from_us: int
    until_us: int
    left: list[tuple[int, Any]] = field(default_factory=list)
    found: list[tuple[int, decode.Column]] = field(default_factory=list)
    values: int = 0


async def begun(client: Client, nodes: Sequence[Any], from_us: int, until_us: int) -> Gap:
    """A gap of those of the variables that have a history. Raises DeviceSilent, Refused."""
    gap = Gap(nodes, from_us, until_us)
    for start in range(0, len(nodes), ACCESS_LEVEL_AT_ONCE):
        request = client.ua.ReadRequest()
        request.Parameters.TimestampsToReturn = client.ua.TimestampsToReturn.Neither
        request.Parameters.NodesToRead = [
            client.ua.ReadValueId(node, client.ua.AttributeIds.UserAccessLevel)
            for node in nodes[start : start + ACCESS_LEVEL_AT_ONCE]
        ]
        levels = (await client.ask(request, "no answer")).Results
        has = [place for place, each in enumerate(levels, start) if _level(each) & HISTORY_READ]
        gap.left += [(place, None) for place in has]
    return gap


async def step(client: Client, gap: Gap) -> None:
    """Ask for some of what is left."""
    now, gap.left = gap.left[:NODES_AT_ONCE], gap.left[NODES_AT_ONCE:]
    ua = client.ua
    details = ua.ReadRawModifiedDetails()
    details.IsReadModified, details.ReturnBounds, details.NumValuesPerNode = False, False, VALUES_AT_ONCE
    details.StartTime, details.EndTime = _time(gap.from_us), _time(gap.until_us)
    request = ua.HistoryReadRequest()
    request.Parameters.HistoryReadDetails = details
    request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Source
    request.Parameters.ReleaseContinuationPoints = False
    request.Parameters.NodesToRead = [
        ua.HistoryReadValueId(gap.nodes[place], None, ua.QualifiedName(), point) for place, point in now
    ]
    try:
        answers = (await client.ask(request, "no answer to a look into the history")).Results
    except Refused:  # the whole service: there is no history to be had
        gap.left.clear()
        return
    for (place, _), answer in zip(now, answers, strict=False):
        _note(gap, place, answer)


def _note(gap: Gap, place: int, answer: Any) -> None:
    values = getattr(answer.HistoryData, "DataValues", None) or []
    if answer.StatusCode.value & status.BAD or not values:
        return
    stamped = [each for each in values if each.SourceTimestamp is not None]
    column = decode.from_data_values(stamped, gap.until_us)
    # Its own stamps, however old: they are what was asked for.
    stamps = [(each.SourceTimestamp - EPOCH) // timedelta(microseconds=1) for each in stamped]
    ts = np.array(stamps, np.int64)
    quality = np.where(column.quality == Quality.CLOCK, np.uint8(Quality.GOOD), column.quality)
    inside = (ts > gap.from_us) & (ts < gap.until_us)
    told = decode.Column(
        None, column.values[inside], quality[inside], ts[inside], column.status[inside], column.typed[inside]
    )
    gap.found.append((place, told))
    gap.values += len(values)
    if answer.ContinuationPoint and gap.values < VALUES_MAX:
        gap.left.append((place, answer.ContinuationPoint))


async def filled(client: Client, gap: Gap) -> None:
    """As much of it as comes within WAIT_S; `left` says what did not."""
    ends = client.clock.monotonic_us() + int(WAIT_S * SECOND_US)
    while gap.left and client.clock.monotonic_us() < ends:
        try:
            async with asyncio.timeout(max(0.001, (ends - client.clock.monotonic_us()) / SECOND_US)):
                await step(client, gap)
        except TimeoutError:
            return


def taken(gap: Gap, monotonic_us: int, wall_us: int) -> Readings | None:
    """What was found, as rows in the order of their time, for all nodes; None: nothing.

    t: when they were measured, by the agent's own clock.
    """
    found, gap.found = gap.found, []
    parts = [(np.full(len(column.ts), place, np.int64), column) for place, column in found if len(column.ts)]
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
    return Readings(values, quality, ts, monotonic_us - (wall_us - times))


def _time(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def _level(item: Any) -> int:
    raw = item.Value.Value if item.Value is not None else None
    return int(raw) if isinstance(raw, int) else 0
