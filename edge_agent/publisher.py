"""From the store to the broker: at least once, in order, never more than a window of messages unacknowledged.

Rule 1: only a good PUBACK delivers. Whatever is refused, too large or lost on the way, the store still has.
Rule 2: two lanes. What is committed while connected goes at once; what waited in the store goes beside it, marked late.
        A message that leaves the live lane unsent is found again by the backlog lane (`_rewind`).
Rule 3: one bad topic or message never holds up the others.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from edge_agent.contract import SECOND_US, Clock
from edge_agent.messages import topics as messages
from edge_agent.mqtt import FAILURE, Link, LinkSettings, LinkState
from edge_agent.store.journal import Committed, Page

log = structlog.get_logger(__name__)

WINDOW = 20
"""Messages that may wait for their PUBACK, also when the broker would take more."""
LIVE_MAX = 2_000
"""Messages in the live lane; what does not fit goes by the backlog lane."""
PAGE = 200
"""Messages that one look into the store brings."""
BACKLOG_EVERY = 4
"""While there is live traffic, every fourth message is one of the backlog."""
LATE_US = 30 * SECOND_US
REFUSED_MIN_S, REFUSED_MAX_S = 5.0, 300.0
ABOUT_THE_MESSAGE = frozenset({0x99})
"""Refusals that mean one message and not its topic: payload format invalid (MQTT 5.0, 3.4.2.1)."""
ASK_AGAIN_S = 1.0
"""After the store could not say what is due."""
TURN_S = 5.0
"""The pump turns at least so often, also when there is nothing to do: a hang must show."""
HEADER = 16
"""The most that MQTT adds to topic and payload of a PUBLISH without properties."""
STATUS = "status"
GOODBYE_S = 1.0
"""Kept back of the time to stop for the last status and the DISCONNECT."""


class Outbox(Protocol):
    """The store, as the publisher needs it."""

    on_committed: list[Callable[[Sequence[Committed]], None]]
    last_committed: int
    pending_count: int

    def pending(self, after_seq: int, limit: int) -> Page | None:
        """What was committed after this number and not delivered, in the order of seq; None: it cannot be said now."""
        ...

    def delivered(self, seqs: Iterable[int]) -> None:
        """The broker has these."""
        ...


class Connection(Protocol):
    """The line to the brokers, as the publisher needs it; see mqtt.Link."""

    on_connected: Callable[[], None]
    on_lost: Callable[[], None]
    on_ack: Callable[[int, int], None]
    state: LinkState
    version: str | None
    reason: str
    since_us: int | None
    url: str
    receive_max: int
    packet_max: int

    @property
    def connected(self) -> bool: ...

    def use(self, settings: LinkSettings) -> None: ...

    async def run(self) -> None: ...

    def publish(self, topic: str, payload: bytes, retain: bool, token: int) -> bool: ...

    async def disconnect(self, within_s: float) -> None: ...


Connect = Callable[[LinkSettings, str, bytes, Clock], Connection]
"""(settings, topic of the will, the will, clock) → a connection that is not yet up."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """What waits for its PUBACK. topic: the whole of it. message: None for a retained one, which is `payload`."""

    topic: str
    message: Committed | None
    payload: bytes = b""


@dataclass(slots=True)
class _Refusal:
    """A topic that the broker refuses. It is tried again with `probe` alone; the others wait in the store."""

    pauses: int = 0
    paused: bool = True
    flying: int = 0
    probe: Committed | None = None
    behind: int | None = None
    """The first seq that waits in the store because of it."""
    timer: asyncio.TimerHandle | None = None


class Publisher:
    """Publishes what the store has committed, and the retained topics. One for each configuration of the broker."""

    def __init__(self, store: Outbox, settings: LinkSettings, root: str, clock: Clock, connect: Connect = Link) -> None:
        self.settings = settings
        self._store, self._root, self._clock = store, root, clock
        self._link = connect(settings, f"{root}/{STATUS}", messages.OFFLINE, clock)
        self._link.on_connected, self._link.on_lost, self._link.on_ack = self._on_connected, self._on_lost, self._on_ack
        self._wake, self._turned = asyncio.Event(), asyncio.Event()
        self._flights: dict[int, _Flight] = {}
        self._flying: set[int] = set()
        self._token = 0
        self._live: deque[Committed] = deque()
        self._live_seqs: set[int] = set()
        self._page: deque[Committed] = deque()
        self._cursor, self._end = 0, 0
        """The backlog lane: what lies in the store after `_cursor`, up to and with `_end`, and in the page at hand."""
        self._sent = 0
        self._late: dict[int, bool] = {}
        """The flag of each message that was sent over this connection and not acknowledged."""
        self._newest: dict[str, int] = {}
        self._arrived: dict[str, int] = {}
        """By topic: the newest number that was sent over this connection, and that any broker has acknowledged."""
        self._probes: deque[Committed] = deque()
        self._stalled = False
        self.on_cleared: Callable[[str], None] = lambda _topic: None
        """Told of each topic (whole) that was cleared at the broker."""
        self._status_topic = f"{root}/{STATUS}"
        self._retained: dict[str, bytes] = {}
        self._due: dict[str, None] = {}
        """Retained topics (whole) to be sent, in the order in which they changed; the status always goes first."""
        self._refusals: dict[str, _Refusal] = {}
        self._aside: set[int] = set()
        """Messages that this broker does not take: set aside until the next connection, which may be to another one."""
        self._told_aside: set[str] = set()
        self._refused = self._published = 0
        self._saying_goodbye = False

    # --- what others call ---------------------------------------------------------------------------------------------

    async def run(self, stroke: Callable[[], None] = lambda: None) -> None:
        """Publish until `stop` has said good-bye, or until cancelled: then the broker sends the will.

        stroke: called at each turn of the pump.
        """
        self._store.on_committed.append(self._on_committed)
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(self._pump(stroke), name="publisher pump")
                await self._link.run()
                pump.cancel()
        finally:
            self._store.on_committed.remove(self._on_committed)
            for refusal in self._refusals.values():
                _stop_timer(refusal)

    def use(self, settings: LinkSettings) -> bool:
        """Take over further brokers without leaving the present one; False when anything else has changed."""
        if replace(settings, urls=self.settings.urls) != self.settings or self._link.url not in settings.urls:
            return False
        self.settings = settings
        self._link.use(settings)
        return True

    def stepped(self, by_us: int) -> None:
        """The wall clock has stepped: what is told of the past is told by the clock of now."""
        if self._link.since_us is not None:
            self._link.since_us += by_us

    async def hand_over(self) -> None:
        """Leave in order and say nothing: the agent goes on, another publisher speaks for it."""
        self._saying_goodbye = True
        await self._link.disconnect(GOODBYE_S)

    async def stop(self, within_s: float) -> None:
        """Send what is committed as far as time allows, then the last status and DISCONNECT; `run` ends by itself."""
        if self._link.connected:
            try:
                async with asyncio.timeout(max(0.0, within_s - GOODBYE_S)):
                    await self._until_idle()
            except TimeoutError:
                log.info("stopped_with_backlog", messages=self._store.pending_count)
            await self._say_goodbye(min(within_s, GOODBYE_S))
        await self._link.disconnect(GOODBYE_S)

    def set_status(self, about: Mapping[str, Any]) -> None:
        """The retained `<root>/status`; sent first on each connect, and when it changes."""
        self.set_retained(STATUS, messages.status(about))

    def set_retained(self, topic: str, payload: bytes) -> None:
        """topic: below the root. The latest wins; an empty payload clears the topic once and is then forgotten."""
        self._retain(f"{self._root}/{topic}", payload)

    def clear(self, topic: str) -> None:
        """Clear a retained topic that may lie under another root (the whole topic)."""
        self._retain(topic, b"")

    def _retain(self, topic: str, payload: bytes) -> None:
        if self._retained.get(topic) == payload or self._saying_goodbye:
            return
        self._retained[topic] = payload
        self._due[topic] = None
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """For the health topic. delivery: unverified where MQTT 3.1.1 lets a refusal look like success; unknown until connected."""
        link = self._link
        return {
            "state": link.state.value,
            "since": None if link.since_us is None else messages.to_utc(link.since_us),
            "url": link.url,
            "version": link.version,
            "delivery": {"5": "verified", "3.1.1": "unverified"}.get(link.version or "", "unknown"),
            "in_flight": len(self._flights),
            "backlog": max(0, self._store.pending_count),
            "refused": self._refused,
            "quarantined": len(self._aside),
            "published": self._published,
            "reason": link.reason,
        }

    # --- what the store and the connection tell -----------------------------------------------------------------------

    def _on_committed(self, committed: Sequence[Committed]) -> None:
        if not self._link.connected:
            return  # the backlog of the next connection begins with it
        for message in committed:
            if len(self._live) < LIVE_MAX:
                self._live.append(message)
                self._live_seqs.add(message.seq)
            else:
                self._rewind(message.seq, message.seq)
        self._wake.set()

    def _on_connected(self) -> None:
        self._cursor, self._end = 0, self._store.last_committed
        self._due = dict.fromkeys(self._retained)
        self._wake.set()

    def _on_lost(self) -> None:
        """Nothing that was not acknowledged counts as delivered: the next connection begins with the store."""
        self._flights.clear()
        self._flying.clear()
        self._late.clear()
        self._newest = dict(self._arrived)
        self._probes.clear()
        self._live.clear()
        self._live_seqs.clear()
        self._page.clear()
        self._cursor = self._end = 0
        self._aside.clear()
        for refusal in self._refusals.values():
            refusal.flying, refusal.behind = 0, None
        self._wake.set()

    def _on_ack(self, token: int, reason: int) -> None:
        flight = self._flights.pop(token, None)
        if flight is None:
            return
        if flight.message is not None:
            self._flying.discard(flight.message.seq)
        if reason >= FAILURE:
            self._on_refused(flight, reason)
        else:
            self._on_delivered(flight)
        self._wake.set()

    def _on_delivered(self, flight: _Flight) -> None:
        if flight.message is not None:
            self._published += 1
            topic, seq = flight.message.topic, flight.message.seq
            self._store.delivered((seq,))
            self._late.pop(seq, None)
            self._arrived[topic] = max(seq, self._arrived.get(topic, 0))
        elif not flight.payload and self._retained.get(flight.topic) == b"" and flight.topic not in self._due:
            del self._retained[flight.topic]
            self.on_cleared(flight.topic)
        refusal = self._refusals.get(flight.topic)
        if refusal is not None:
            refusal.flying -= 1
            if not refusal.paused:
                del self._refusals[flight.topic]
                self._resume(refusal)
                log.info("topic_accepted", topic=flight.topic)

    def _on_refused(self, flight: _Flight, reason: int) -> None:
        self._refused += 1
        refusal = self._refusals.get(flight.topic)
        if refusal is None and flight.message is not None and reason in ABOUT_THE_MESSAGE:
            self._set_aside(flight.topic, flight.message.seq, f"refused with reason code {reason:#x}")
            return
        if refusal is None:
            # Others of this topic may be under way; each of them will be answered too.
            others = sum(1 for each in self._flights.values() if each.topic == flight.topic)
            refusal = self._refusals[flight.topic] = _Refusal(flying=others + 1)
            log.warning("topic_refused", topic=flight.topic, reason_code=reason)
        refusal.flying -= 1
        if flight.message is not None:
            _leave(refusal, flight.message.seq)
            if refusal.probe is None or flight.message.seq < refusal.probe.seq:
                refusal.probe = flight.message
        if refusal.timer is None:
            pause_s = min(REFUSED_MAX_S, REFUSED_MIN_S * 2.0**refusal.pauses)
            refusal.paused, refusal.pauses = True, min(refusal.pauses + 1, 10)
            refusal.timer = asyncio.get_running_loop().call_later(pause_s, self._try_again, flight.topic)

    def _try_again(self, topic: str) -> None:
        refusal = self._refusals[topic]
        refusal.timer, refusal.paused = None, False
        if topic in self._retained:
            self._due[topic] = None
        elif refusal.probe is not None:
            self._probes.append(refusal.probe)
        self._wake.set()

    def _resume(self, refusal: _Refusal) -> None:
        if refusal.behind is not None:
            self._rewind(refusal.behind, self._store.last_committed)
            refusal.behind = None

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _pump(self, stroke: Callable[[], None]) -> None:
        """Fill the window whenever something has changed. One look into the store, then others have a turn."""
        while True:
            stroke()
            try:
                async with asyncio.timeout(TURN_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            if self._link.connected and self._fill():
                self._wake.set()
            self._turned.set()
            await asyncio.sleep(0)

    def _fill(self) -> bool:
        """Send what fits into the window. True: there is room and perhaps more in the store."""
        window = min(self._link.receive_max, WINDOW)
        while len(self._flights) < window and self._due and not self._saying_goodbye:
            if not self._send_retained():
                return False
        looked = False
        while len(self._flights) < window:
            if not self._page and self._cursor < self._end and not self._stalled:
                if looked:
                    return True
                self._look()
                looked = True
            lane = self._lane()
            if lane is None:
                return not self._page and self._cursor < self._end and not self._stalled
            if not self._send(lane):
                return False
        return False

    def _lane(self) -> Callable[[], Committed] | None:
        if self._probes:
            return self._probes.popleft
        page = bool(self._page) and self._page[0].ready
        live = bool(self._live) and self._live[0].ready
        if page and (not live or self._sent % BACKLOG_EVERY == 0):
            return self._page.popleft
        return self._take_live if live else None

    def _take_live(self) -> Committed:
        message = self._live.popleft()
        self._live_seqs.discard(message.seq)
        return message

    def _look(self) -> None:
        """The next page of the backlog, without what is under way in the other lane or on the line."""
        found = self._store.pending(self._cursor, PAGE)
        if found is None:  # the store is being mended, or its disk does not answer: what is due stays due
            self._stalled = True
            asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask_again)
            return
        for message in found.messages:
            if message.seq > self._end:
                break
            busy = message.seq in self._live_seqs or message.seq in self._flying or message.seq in self._aside
            if not busy:
                self._page.append(message)
        self._cursor = max(self._cursor, min(found.reached, self._end))

    def _ask_again(self) -> None:
        self._stalled = False
        self._wake.set()

    def _rewind(self, first: int, last: int) -> None:
        """Let the backlog lane find the messages from `first` to `last` again."""
        if self._page:
            first = min(first, self._page[0].seq)
            self._page.clear()
        if self._cursor >= self._end:
            self._cursor = first - 1
        self._cursor, self._end = min(self._cursor, first - 1), max(self._end, last)

    def _send(self, lane: Callable[[], Committed]) -> bool:
        """Send the next message of a lane, unless its topic is refused or it is too large. False: offline."""
        message = lane()
        self._sent += 1
        topic, seq = f"{self._root}/{message.topic}", message.seq
        refusal = self._refusals.get(topic)
        if refusal is not None and (refusal.paused or refusal.flying):
            _leave(refusal, seq)
            return True
        late = self._late.get(seq)
        if late is None:
            late = self._is_late(message)
        payload = message.payload(late)
        if self._exceeds(topic, payload):
            self._set_aside(topic, seq, f"larger than the broker's limit of {self._link.packet_max} bytes")
            return True
        if not self._publish(_Flight(topic, message), payload, retain=False):
            return False
        self._late[seq] = late
        self._newest[message.topic] = max(seq, self._newest.get(message.topic, 0))
        self._flying.add(seq)
        if refusal is not None:
            refusal.flying += 1
        return True

    def _is_late(self, message: Committed) -> bool:
        return (
            message.late or message.waited_us(self._clock) > LATE_US or self._newest.get(message.topic, 0) > message.seq
        )

    def _send_retained(self) -> bool:
        """Send the next retained topic. False: offline."""
        topic = self._status_topic if self._status_topic in self._due else next(iter(self._due))
        del self._due[topic]
        payload = self._retained[topic]
        refusal = self._refusals.get(topic)
        if refusal is not None and (refusal.paused or refusal.flying):
            return True
        if self._exceeds(topic, payload):
            if topic not in self._told_aside:
                self._told_aside.add(topic)
                log.error("message_not_taken", topic=topic, fault=f"larger than {self._link.packet_max} bytes")
            return True
        if not self._publish(_Flight(topic, None, payload), payload, retain=True):
            return False
        if refusal is not None:
            refusal.flying += 1
        return True

    def _publish(self, flight: _Flight, payload: bytes, *, retain: bool) -> bool:
        self._token += 1
        if not self._link.publish(flight.topic, payload, retain, self._token):
            return False
        self._flights[self._token] = flight
        return True

    def _exceeds(self, topic: str, payload: bytes) -> bool:
        """A broker closes the connection at a message beyond its limit, so it is not sent at all."""
        return len(payload) + len(topic.encode()) + HEADER > self._link.packet_max

    def _set_aside(self, topic: str, seq: int, fault: str) -> None:
        """The store keeps the message; another broker may take it, and at the buffer's limit it becomes a gap."""
        self._aside.add(seq)
        if topic not in self._told_aside:
            self._told_aside.add(topic)
            log.error("message_not_taken", topic=topic, seq=seq, fault=fault)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _has_work(self) -> bool:
        return bool(self._live or self._page or self._cursor < self._end or self._due)

    async def _until_idle(self) -> None:
        """Nothing under way and nothing to send, or no connection. Topics that are refused are not waited for."""
        while self._link.connected and (self._flights or self._has_work()):
            self._turned.clear()
            await self._turned.wait()

    async def _say_goodbye(self, within_s: float) -> None:
        """The last status; it is the last message, so its acknowledgement ends the work."""
        self._saying_goodbye = True
        flight = _Flight(self._status_topic, None, messages.STOPPED)
        if not self._publish(flight, messages.STOPPED, retain=True):
            return
        token = self._token
        try:
            async with asyncio.timeout(within_s):
                while token in self._flights:
                    self._turned.clear()
                    await self._turned.wait()
        except TimeoutError:
            log.warning("last_status_unacknowledged")


def _leave(refusal: _Refusal, seq: int) -> None:
    refusal.behind = seq if refusal.behind is None else min(refusal.behind, seq)


def _stop_timer(refusal: _Refusal) -> None:
    if refusal.timer is not None:
        refusal.timer.cancel()
        refusal.timer = None
