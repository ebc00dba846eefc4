"""What a server tells by itself: one subscription, the requests that wait for its words, and whether it is still alive.

Rule 1: no task runs for it. A few PublishRequests lie at the server; each answer is taken in the turn in which it comes,
and leaves the next request. Rule 2: nothing is judged here: what came waits until the session reads it. Rule 3: a server
that says nothing, not even that it has nothing to say, is silent after three keep-alives, whatever the line looks like.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from drivers import opcua_decode as decode
from drivers import opcua_encode as encode
from drivers import opcua_status as status
from drivers.opcua_client import Client, Refused, in_words
from edge_agent.contract import SECOND_US, Bools, Codes, DeviceSilent, Floats, Ints, Quality

log = logging.getLogger(__name__)

KEEP_ALIVE_US = SECOND_US
"""How often a server without news says that it lives; a slower publishing interval is its own keep-alive."""
KEEP_ALIVES_MISSED = 3
LIFETIME_US = 60 * SECOND_US
"""After so long without a request of ours the server drops the subscription; OPC UA Part 4, 5.14.1.1."""
REQUESTS = 3
"""PublishRequests at the server: one may be answered while the next is on its way."""
INTERVAL_MAX_US = 2**53
"""What a server revises to beyond this means never."""
VALUES_MAX = 1_000_000
"""Values that wait to be read; the oldest go first, counted, when nobody reads."""
SEQUENCE_MAX = 0xFFFF_FFFF
LATE_MAX = 1000
"""Messages that one may come behind another; one that lies further back begins a new numbering."""
OVER = frozenset(
    {
        "BadNoSubscription",
        "BadSubscriptionIdInvalid",
        "BadTooManyPublishRequests",
        "BadServiceUnsupported",
        "BadNotImplemented",
    }
)
"""Answers to a PublishRequest that end the subscription and not the session."""


class Told(NamedTuple):
    """One answer, or several that belong together. t_us: monotonic, when it came. All arrays (n,); handle: int64.

    noted: it was seen before and put back, until those whose it is are read.
    """

    t_us: int
    handle: Ints
    values: Floats
    quality: Codes
    ts: Ints
    status: Any
    typed: Codes
    noted: bool = False

    def only(self, chosen: Bools | slice) -> "Told":
        """Those of it."""
        return Told(
            self.t_us,
            self.handle[chosen],
            self.values[chosen],
            self.quality[chosen],
            self.ts[chosen],
            self.status[chosen],
            self.typed[chosen],
            self.noted,
        )


@dataclass(slots=True)
class TellingCounters:
    """Of all subscriptions of one session of the driver, for the health topic."""

    notifications: int = 0
    keep_alives: int = 0
    sequence_gaps: int = 0
    """Messages that the server numbered and that never came."""
    overflows: int = 0
    """Values before which the server's queue lost others."""
    dropped: int = 0
    """Values that nobody read in time."""


@dataclass(slots=True)
class Subscription:
    """A subscription that lives; made by `subscribed`.

    publishing_us, keep_alive_us: as the server revised them. begun_us: monotonic, when it was made. confirmed_us: up to
    when everything is known that the server had to tell. lost: why it tells no more, '' while it does. over: the same, while
    the session stands.
    """

    client: Client
    counts: TellingCounters
    number: int
    publishing_us: int
    keep_alive_us: int
    requests: int
    heard_us: int
    slower: bool = False
    """The server tells more seldom than it was asked to."""
    begun_us: int = 0
    confirmed_us: int = 0
    lost: str = ""
    over: str = ""
    resync: bool = False
    """Messages were lost: what is held may be old until everything is read once."""
    _expected: int | None = None
    _more: bool = False
    _waiting: int = 0
    _acknowledge: list[int] = field(default_factory=list)
    _told: deque[list[Told]] = field(default_factory=deque)
    """Of each moment of the server's its answers; they are put together when they are read."""
    _kept: dict[int, deque[Told]] = field(default_factory=dict)
    """What was put back, by how often those whose it is are read (µs): an hour of it must not be walked each second."""
    _values: int = 0

    def check(self) -> None:
        """Raises DeviceSilent when it is lost, or connected and yet silent."""
        if self.lost:
            raise DeviceSilent(f"{self.client.url}: the subscription is lost: {self.lost}")
        silent_us = self.client.clock.monotonic_us() - self.heard_us
        if silent_us > self.silent_after_us:
            raise DeviceSilent(
                f"{self.client.url}: connected but silent: no notification and no keep-alive for {silent_us / 1e6:.1f} s "
                f"(one was due every {self.keep_alive_us / 1e6:g} s)",
                Quality.TIMEOUT,
            )

    @property
    def silent_after_us(self) -> int:
        return KEEP_ALIVES_MISSED * max(self.keep_alive_us, KEEP_ALIVE_US)

    @property
    def answered(self) -> bool:
        """Whether no request of it is left at the server, which another subscription's words might take."""
        return self._waiting == 0

    def drain(self, periods: Sequence[int] = ()) -> list[Told]:
        """What came since the last call, and what was put back for these periods, in its order."""
        told = [each for period in periods for each in self._kept.pop(period, ())]
        told += [_together(parts) for parts in self._told]
        told.sort(key=lambda each: each.t_us)
        self._told.clear()
        self._values -= sum(len(each.handle) for each in told)
        return told

    def waiting(self) -> Ints:
        """The handles of what came and was not drained yet."""
        return np.concatenate([np.zeros(0, np.int64), *(part.handle for parts in self._told for part in parts)])

    @property
    def unread(self) -> int:
        """How many values wait to be read."""
        return self._values

    def put_back(self, told: Told, period: int) -> None:
        """What was noted and nobody wanted yet, for the call that asks for this period."""
        self._kept.setdefault(period, deque()).append(told._replace(noted=True))
        self._values += len(told.handle)

    def ask(self) -> None:
        """Leave as many requests at the server as it should have."""
        while self._waiting < self.requests and not self.lost and not self.over:
            acknowledge, self._acknowledge = self._acknowledge, []
            try:
                prefix = self.client.prefix(self.client.ua.PublishRequest)
                self.client.publish(prefix, encode.publish(self.number, acknowledge), self._answered)
            except Exception as error:  # noqa: BLE001 - the library's own, see opcua_client, rule 3
                self.lost = in_words(error)
                return
            self._waiting += 1

    def _answered(self, future: "asyncio.Future[Any]") -> None:
        self._waiting -= 1
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self.lost = self.lost or in_words(error)
            return
        try:
            self._take(bytes(future.result()))
        except Refused as refused:
            self._refused(refused)
        except Exception as fault:  # noqa: BLE001 - a malformed answer, see opcua_client, rule 3
            self.lost = f"an answer that cannot be read ({fault})"
        self.ask()

    def _refused(self, refused: Refused) -> None:
        match refused.name:
            case "BadTooManyPublishRequests" if self.requests > 1:
                self.requests -= 1
            case "BadTimeout":  # the request grew old at the server; the next one follows. It is no sign of life
                pass
            case name if name in OVER:
                self.over = self.over or name
            case name:
                self.lost = name

    def _take(self, raw: bytes) -> None:
        client = self.client
        now, wall = client.clock.monotonic_us(), client.clock.wall_us()
        published = decode.publish_response(raw, wall)
        if published is None:
            response = client.ua.PublishResponse
            published = decode.from_publish(client.decoded(client.checked(raw, response), response), wall)
        if published.subscription != self.number:
            return  # of an earlier life
        self.heard_us = client.used_us = now
        self._count(published)
        if published.ended is not None:
            self.over = f"the server ended it ({status.name(published.ended)})"
            return
        if not published.keep_alive:
            self._acknowledge.append(published.sequence)
        columns = [column for column in published.changes if len(column.values)]
        if columns:
            self._keep(_joined(now, columns))
        self._more = published.more
        if not published.more:
            self.confirmed_us = now

    def _count(self, published: decode.Published) -> None:
        """Numbers run without holes; a keep-alive has the number of the next message (Part 4, 5.14.1.1) or the last."""
        sequence = published.sequence
        missed = 0 if self._expected is None else (sequence - self._expected) % SEQUENCE_MAX
        if 0 < missed < SEQUENCE_MAX // 2:
            self.counts.sequence_gaps += missed
            self.resync = True
            self._expected = sequence
            log.warning("%s: %d messages of the subscription were lost", self.client.url, missed)
        if published.keep_alive:
            self.counts.keep_alives += 1
            return
        self.counts.overflows += published.overflows
        if missed >= SEQUENCE_MAX // 2:  # late, or once more, or numbered anew: it may be older than what is held
            self.resync = True
            if SEQUENCE_MAX - missed <= LATE_MAX:
                return
        self._expected = sequence % SEQUENCE_MAX + 1

    def _keep(self, told: Told) -> None:
        self.counts.notifications += len(told.handle)
        self._values += len(told.handle)
        if self._more and self._told:
            self._told[-1].append(told)
        else:
            self._told.append([told])
        while self._values > VALUES_MAX and (parts := self._oldest()):
            oldest = sum(len(part.handle) for part in parts)
            self._values -= oldest
            self.counts.dropped += oldest
            self.resync = True

    def _oldest(self) -> list[Told]:
        """Taken out; [] when there is only what has just come."""
        if self._kept:
            period = min(self._kept, key=lambda each: self._kept[each][0].t_us)
            oldest = self._kept[period].popleft()
            if not self._kept[period]:
                del self._kept[period]
            return [oldest]
        return self._told.popleft() if len(self._told) > 1 else []


def _joined(now: int, columns: Sequence[decode.Column]) -> Told:
    if len(columns) == 1:
        (only,) = columns
        handle = np.asarray(only.handle, np.int64)
        return Told(now, handle, only.values, only.quality, only.ts, only.status, only.typed)
    parts = [(c.handle, c.values, c.quality, c.ts, c.status, c.typed) for c in columns]
    handle, values, quality, ts, status_, typed = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Told(now, handle.astype(np.int64), values, quality, ts, status_, typed)


def _together(parts: Sequence[Told]) -> Told:
    """The parts of what the server told at once."""
    if len(parts) == 1:
        return parts[0]
    handle, values, quality, ts, status_, typed = (
        np.concatenate(each) for each in zip(*(part[1:7] for part in parts), strict=True)
    )
    return Told(parts[-1].t_us, handle, values, quality, ts, status_, typed)


async def subscribed(client: Client, counts: TellingCounters, publishing_us: int, requests: int) -> Subscription:
    """Create a subscription and leave the first requests. Raises DeviceSilent, or Refused when the server will not."""
    ua = client.ua
    request = ua.CreateSubscriptionRequest()
    wanted = request.Parameters
    keep_alive = max(1, round(KEEP_ALIVE_US / publishing_us))
    wanted.RequestedPublishingInterval = publishing_us / 1000
    wanted.RequestedMaxKeepAliveCount = keep_alive
    wanted.RequestedLifetimeCount = max(3 * keep_alive, round(LIFETIME_US / publishing_us))
    wanted.MaxNotificationsPerPublish = 0
    wanted.PublishingEnabled = True
    revised = (await client.ask(request, "no subscription")).Parameters
    revised_us = _sane_us(revised.RevisedPublishingInterval, publishing_us)
    keep_alive_us = min(revised_us * max(1, int(revised.RevisedMaxKeepAliveCount)), INTERVAL_MAX_US)
    now = client.clock.monotonic_us()
    subscription = Subscription(
        client,
        counts,
        int(revised.SubscriptionId),
        revised_us,
        keep_alive_us,
        requests,
        now,
        slower=revised_us > publishing_us or keep_alive_us > 2 * keep_alive * publishing_us,
        begun_us=now,
    )
    subscription.ask()
    return subscription


def _sane_us(interval_ms: float, asked_us: int) -> int:
    """A revised interval; NaN says nothing, so that what was asked stands."""
    if math.isnan(interval_ms):
        return asked_us
    return round(min(max(interval_ms * 1000, 1000.0), float(INTERVAL_MAX_US)))


def change_filter(ua: Any, deadband: float | str | None) -> Any:
    """A DataChangeFilter (OPC UA Part 4, 7.22.2); None: every change of value or status."""
    if deadband is None:
        return None
    percent = isinstance(deadband, str)
    found = ua.DataChangeFilter()
    found.Trigger = ua.DataChangeTrigger.StatusValue
    found.DeadbandType = ua.DeadbandType.Percent if percent else ua.DeadbandType.Absolute
    found.DeadbandValue = float(deadband.rstrip("%")) if isinstance(deadband, str) else float(deadband)
    return found


def created(client: Client, raw: bytes, count: int) -> tuple[decode.Words, decode.Words, Floats]:
    """Status, number and sampling interval (ms) of each item that was asked for. Raises DeviceSilent, Refused."""
    found = decode.created_items(raw, count)
    if found is None:
        with client.door("an answer that cannot be read"):
            found = decode.from_created(client.decoded(raw, client.ua.CreateMonitoredItemsResponse))
    if len(found[0]) != count:
        raise DeviceSilent(f"{client.url}: {count} items asked, {len(found[0])} answered", Quality.PROTOCOL)
    return found
