"""From the store to the broker: at least once, in order, never more than a window of messages unacknowledged.

Rule 1: only a good PUBACK delivers. Whatever is refused, too large or lost on the way, the store still has.
Rule 2: two lanes. What is committed while connected goes at once; what waited in the store goes beside it, marked late.
        A message that leaves the live lane unsent is found again by the backlog lane (`_rewind`).
Rule 3: one bad topic or message never holds up the others: what a broker refuses, cannot take or breaks the line at is set
        aside, told and tried again seldom. It stays in the store.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import structlog

from edge_agent.contract import SECOND_US, Clock
from edge_agent.messages import topics as messages
from edge_agent.mqtt import ABOUT_A_MESSAGE, FAILURE, NO_MATCHING_SUBSCRIBERS, Link, LinkSettings, LinkState
from edge_agent.pace import Pace
from edge_agent.store.committed import Committed, Page
from edge_agent.suspects import Key, Suspects

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
ABOUT_THE_MESSAGE = frozenset({0x95, 0x99})
"""Refusals that mean one message and not its topic: too large, payload format invalid (MQTT 5.0, 3.4.2.1)."""
ASIDE_IN_A_ROW = 3
"""Messages of a topic set aside, none accepted between: then the topic is refused as a whole, and asked for with one."""
ASIDE_MAX = 10_000
"""Messages that are remembered as set aside; beyond, their topics are refused as a whole."""
ASIDE_RETRY_S, ASIDE_RETRY_MAX_S = 3_600.0, 86_400.0
"""When a message that was set aside is tried again, and the most that this doubles to."""
ASIDE_LOOK_US = 60 * SECOND_US
REFUSALS_SHOWN = 20
REASONS = {
    0x80: "no reason given",
    0x83: "a reason of the broker's own",
    0x87: "not authorized: the broker's rules do not let this agent write there",
    0x90: "the broker does not take this topic name",
    0x91: "packet identifier in use",
    0x95: "larger than the broker takes",
    0x97: "a quota of the broker is used up",
    0x99: "the broker does not take this payload format",
}
"""The reason codes of PUBACK in words (MQTT 5.0, 3.4.2.1)."""
ASK_AGAIN_S = 1.0
"""After the store could not say what is due."""
BREATH_US = 5_000
"""The pump is woken for the backlog no oftener; what it may send by then goes together."""
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
    code: int | None
    last_loss: tuple[int, str] | None
    attempts: int
    since_us: int | None
    url: str
    receive_max: int
    packet_max: int

    @property
    def connected(self) -> bool: ...

    @property
    def settings(self) -> LinkSettings: ...

    def use(self, settings: LinkSettings) -> None: ...

    async def run(self) -> None: ...

    def publish(self, topic: str, payload: bytes, retain: bool, token: int) -> bool: ...

    def together(self) -> AbstractContextManager[None]: ...

    async def disconnect(self, within_s: float) -> None: ...


Connect = Callable[[LinkSettings, tuple[str, bytes], Clock, Callable[[], LinkSettings] | None], Connection]
"""(settings, will, clock, renewed) → a connection that is not yet up; see mqtt.Link."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """What waits for its PUBACK. topic: the whole of it. message: None for a retained one, which is `payload`."""

    topic: str
    message: Committed | None
    payload: bytes = b""
    backlog: bool = False
    sent_us: int = 0

    @property
    def key(self) -> Key:
        return self.topic if self.message is None else self.message.seq


@dataclass(frozen=True, slots=True)
class _Aside:
    """A message, or the state of a retained topic, that this broker does not take. breaks: it broke the line."""

    topic: str
    reason: str
    since_us: int
    due_us: int
    breaks: bool


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
    reason: str = ""
    since_us: int = 0


class Publisher:
    """Publishes what the store has committed, and the retained topics. One for each configuration of the broker."""

    def __init__(
        self,
        store: Outbox,
        settings: LinkSettings,
        root: str,
        clock: Clock,
        renewed: Callable[[], LinkSettings] | None = None,
        connect: Connect = Link,
    ) -> None:
        """renewed: see mqtt.Link."""
        self._store, self._root, self._clock = store, root, clock
        self._link = connect(settings, (f"{root}/{STATUS}", messages.OFFLINE), clock, renewed)
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
        self._backlog_flying, self._window = 0, WINDOW
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
        self._aside: dict[Key, _Aside] = {}
        """Messages, by seq, and retained topics that this broker does not take. What is about its limits is tried again
        with the next connection, which may be to another one."""
        self._tries: dict[Key, int] = {}
        """How often each of them was set aside before."""
        self._aside_look_us = 0
        self._in_a_row: dict[str, int] = {}
        self._suspects = Suspects()
        self._pace = Pace(WINDOW, clock.monotonic_us())
        self._breather: asyncio.TimerHandle | None = None
        self._refused = self._published = self._unheard = 0
        self._heard = True
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
            if self._breather is not None:
                self._breather.cancel()

    @property
    def settings(self) -> LinkSettings:
        """Those in force, with what was renewed on disk."""
        return self._link.settings

    def use(self, settings: LinkSettings) -> bool:
        """Take over further brokers without leaving the present one; False when anything else has changed."""
        if replace(settings, urls=self.settings.urls) != self.settings or self._link.url not in settings.urls:
            return False
        self._link.use(settings)
        return True

    def stepped(self, by_us: int) -> None:
        """The wall clock has stepped: what is told of the past is told by the clock of now."""
        if self._link.since_us is not None:
            self._link.since_us += by_us

    def look_again(self) -> None:
        """The store has more than it knew of: look through all of it."""
        if self._link.connected:
            self._rewind(1, self._store.last_committed)
            self._wake.set()

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
            "unheard": self._unheard,
            "attempts": link.attempts,
            "reason": link.reason,
            **(
                {"last_loss": {"ts": messages.to_utc(link.last_loss[0]), "reason": link.last_loss[1]}}
                if link.last_loss
                else {}
            ),
            **self._not_taken(),
        }

    def _not_taken(self) -> dict[str, Any]:
        """What the broker does not take, in words, the first few of each; nothing when it takes everything."""
        topics = [
            {"topic": topic, "reason": each.reason, "since": messages.to_utc(each.since_us)}
            for topic, each in islice(self._refusals.items(), REFUSALS_SHOWN)
        ]
        aside = [
            {
                "topic": each.topic,
                **({"seq": key} if isinstance(key, int) else {}),
                "reason": each.reason,
                "since": messages.to_utc(each.since_us),
            }
            for key, each in islice(self._aside.items(), REFUSALS_SHOWN)
        ]
        return {**({"refused_topics": topics} if topics else {}), **({"set_aside": aside} if aside else {})}

    # --- what the store and the connection tell -----------------------------------------------------------------------

    def _on_committed(self, committed: Sequence[Committed]) -> None:
        self._pace.committed(len(committed), self._clock.monotonic_us())
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
        self._window = min(self._link.receive_max, WINDOW)
        self._pace.use_window(self._window)
        self._due = dict.fromkeys(self._retained)
        self._wake.set()

    def _on_lost(self) -> None:
        """Nothing that was not acknowledged counts as delivered: the next connection begins with the store."""
        self._look_for_the_culprit()
        self._flights.clear()
        self._backlog_flying = 0
        self._flying.clear()
        self._late.clear()
        self._newest = dict(self._arrived)
        self._probes.clear()
        self._live.clear()
        self._live_seqs.clear()
        self._page.clear()
        self._cursor = self._end = 0
        self._aside = {key: each for key, each in self._aside.items() if each.breaks}
        for refusal in self._refusals.values():
            refusal.flying, refusal.behind, refusal.probe = 0, None, None
        self._wake.set()

    def _on_ack(self, token: int, reason: int) -> None:
        flight = self._flights.pop(token, None)
        if flight is None:
            return
        self._backlog_flying -= flight.backlog
        if flight.message is not None:
            self._flying.discard(flight.message.seq)
        for key in self._suspects.answered(flight.key):
            self._send_again(key)
        if reason < FAILURE:
            self._tries.pop(flight.key, None)
        self._pace.answered(flight.sent_us, self._clock.monotonic_us())
        self._count_listeners(flight, reason)
        if reason >= FAILURE:
            self._on_refused(flight, reason)
        else:
            self._on_delivered(flight)
        self._wake.set()

    def _count_listeners(self, flight: _Flight, reason: int) -> None:
        """A message that nobody has subscribed to is delivered all the same, and that is worth a word: once."""
        if flight.message is None:
            return
        heard = reason != NO_MATCHING_SUBSCRIBERS
        self._unheard += not heard
        if self._heard and not heard:
            log.warning("nobody_subscribed", topic=flight.topic)
        self._heard = heard or reason >= FAILURE

    def _on_delivered(self, flight: _Flight) -> None:
        if flight.message is not None:
            self._published += 1
            topic, seq = flight.message.topic, flight.message.seq
            self._store.delivered((seq,))
            self._late.pop(seq, None)
            self._arrived[topic] = max(seq, self._arrived.get(topic, 0))
            self._in_a_row.pop(flight.topic, None)
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
        words = f"{REASONS.get(reason, 'refused')} (reason code {reason:#x})"
        if flight.message is not None and flight.topic not in self._refusals and reason in ABOUT_THE_MESSAGE:
            self._set_aside(flight, words)
            return
        self._refuse(flight, words)

    def _refuse(self, flight: _Flight, words: str, pause_s: float = 0.0) -> None:
        """The topic waits, and is asked for with its first message. pause_s: at least so long."""
        refusal = self._refusals.get(flight.topic)
        if refusal is None:
            # Others of this topic may be under way; each of them will be answered too.
            others = sum(1 for each in self._flights.values() if each.topic == flight.topic)
            refusal = self._refusals[flight.topic] = _Refusal(
                flying=others + 1, reason=words, since_us=self._clock.wall_us()
            )
            log.warning("topic_refused", topic=flight.topic, fault=words)
        refusal.flying = max(0, refusal.flying - 1)
        if flight.message is not None:
            _leave(refusal, flight.message)
            # Nobody has had it: should a newer one of its topic get through before it, it is late.
            self._late.pop(flight.message.seq, None)
        if refusal.timer is None:
            pause_s = max(pause_s, min(REFUSED_MAX_S, REFUSED_MIN_S * 2.0**refusal.pauses))
            refusal.paused, refusal.pauses = True, min(refusal.pauses + 1, 10)
            refusal.timer = asyncio.get_running_loop().call_later(pause_s, self._try_again, flight.topic)

    def _look_for_the_culprit(self) -> None:
        """The line is lost: was it because of one of the messages that were under way?"""
        told = self._link.code in ABOUT_A_MESSAGE
        verdict = self._suspects.lost([flight.key for flight in self._flights.values()], told)
        for key in verdict.free:
            self._aside.pop(key, None)
            self._in_a_row.clear()
        if verdict.convicted is not None:
            flight = next(iter(self._flights.values()))
            self._set_aside(
                flight, f"the broker breaks the connection each time it is sent ({self._link.reason})", True
            )

    def _try_again(self, topic: str) -> None:
        refusal = self._refusals[topic]
        refusal.timer, refusal.paused = None, False
        if refusal.probe is not None and refusal.probe.seq in self._suspects.alone:
            self._suspects.retry(refusal.probe.seq)
        if topic in self._retained:
            self._due[topic] = None
        elif refusal.probe is not None and self._link.connected:
            self._probes.append(refusal.probe)  # offline, the next connection begins with the oldest anyway
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
            if self._link.connected:
                with self._link.together():
                    more = self._fill()
                if more:
                    self._wake.set()
            self._turned.set()
            await asyncio.sleep(0)

    def _fill(self) -> bool:
        """Send what fits into the window. True: there is room and perhaps more in the store."""
        self._retry_aside()
        looked = False
        while len(self._flights) < self._window:
            if self._due and not self._saying_goodbye and self._is_turn_of_retained():
                if self._must_wait(self._next_retained()) or not self._send_retained():
                    return False
                continue
            if not self._page and self._cursor < self._end and not self._stalled:
                if looked:
                    return True
                self._look()
                looked = True
            lane = self._lane()
            if lane is None:
                return self._cursor < self._end and not self._page and not self._stalled
            if self._must_wait(lane[0].seq):
                return False
            if not self._send(lane):
                return False
        return False

    def _is_turn_of_retained(self) -> bool:
        """The status before everything; the others, of which there may be thousands, side by side with what is new."""
        return not self._live or self._status_topic in self._due or self._sent % 2 == 0

    def _must_wait(self, key: Key) -> bool:
        """A suspect is under way only alone."""
        alone = self._suspects.alone
        if not alone or not self._flights:
            return False
        return key in alone or next(iter(self._flights.values())).key in alone

    def _lane(self) -> deque[Committed] | None:
        """From where the next message comes; None: nothing may be sent now."""
        if self._probes:
            return self._probes
        page = bool(self._page) and self._page[0].ready
        live = bool(self._live) and self._live[0].ready
        if page and (not live or self._sent % BACKLOG_EVERY == 0) and self._backlog_may():
            return self._page
        return self._live if live else None

    def _backlog_may(self) -> bool:
        """Whether the backlog has room in the window and its turn has come; if not, the pump is woken when it has."""
        if self._backlog_flying >= self._pace.share:
            return False  # an answer wakes the pump
        wait_us = self._pace.wait_us(self._clock.monotonic_us())
        if wait_us and self._breather is None:
            self._breather = asyncio.get_running_loop().call_later(max(wait_us, BREATH_US) / SECOND_US, self._breathed)
        return not wait_us

    def _breathed(self) -> None:
        self._breather = None
        self._wake.set()

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

    def _send(self, lane: deque[Committed]) -> bool:
        """Send the next message of a lane, unless its topic is refused or it is too large. False: offline."""
        message = lane.popleft()
        self._live_seqs.discard(message.seq)
        self._sent += 1
        flight = _Flight(f"{self._root}/{message.topic}", message, backlog=lane is self._page)
        topic, seq = flight.topic, message.seq
        refusal = self._refusals.get(topic)
        if refusal is not None and (refusal.paused or refusal.flying):
            _leave(refusal, message)
            return True
        late = self._late.get(seq)
        if late is None:
            late = self._is_late(message)
        if late and lane is self._live and (self._page or self._cursor < self._end):
            self._leave_the_live_lane(message)
            return True
        payload = message.payload(late)
        if self._exceeds(topic, payload):
            self._set_aside(flight, f"larger than the broker's limit of {self._link.packet_max} bytes")
            return True
        if not self._publish(flight, payload, retain=False):
            return False
        if flight.backlog:
            self._pace.sent()
        self._late[seq] = late
        self._newest[message.topic] = max(seq, self._newest.get(message.topic, 0))
        self._flying.add(seq)
        if refusal is not None:
            refusal.flying += 1
        return True

    def _leave_the_live_lane(self, message: Committed) -> None:
        """What has waited until it was late goes by the backlog lane, behind what is late already: in the order of seq."""
        last = message.seq
        while self._live and self._is_late(self._live[0]):
            last = self._live.popleft().seq
            self._live_seqs.discard(last)
        self._rewind(message.seq, last)

    def _is_late(self, message: Committed) -> bool:
        return (
            message.late or message.waited_us(self._clock) > LATE_US or self._newest.get(message.topic, 0) > message.seq
        )

    def _next_retained(self) -> str:
        return self._status_topic if self._status_topic in self._due else next(iter(self._due))

    def _send_retained(self) -> bool:
        """Send the next retained topic. False: offline."""
        self._sent += 1
        topic = self._next_retained()
        del self._due[topic]
        payload = self._retained[topic]
        refusal = self._refusals.get(topic)
        if topic in self._aside or (refusal is not None and (refusal.paused or refusal.flying)):
            return True
        if self._exceeds(topic, payload):
            # Its next state may fit, so it is tried again with that.
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
        self._flights[self._token] = replace(flight, sent_us=self._clock.monotonic_us())
        self._backlog_flying += flight.backlog
        return True

    def _exceeds(self, topic: str, payload: bytes) -> bool:
        """A broker closes the connection at a message beyond its limit, so it is not sent at all."""
        return len(payload) + len(topic.encode()) + HEADER > self._link.packet_max

    def _set_aside(self, flight: _Flight, reason: str, breaks: bool = False) -> None:
        """The store keeps the message; another broker may take it, and at the buffer's limit it becomes a gap.

        breaks: the line breaks with it. Three of a topic in a row are the topic's fault.
        """
        if flight.message is not None:
            # Nobody has had it: should a newer one of its topic get through before it, it is late.
            self._late.pop(flight.message.seq, None)
        row = self._in_a_row[flight.topic] = self._in_a_row.get(flight.topic, 0) + 1
        refused = flight.topic in self._refusals
        if flight.message is not None and (refused or row >= ASIDE_IN_A_ROW or len(self._aside) >= ASIDE_MAX):
            self._refuse(flight, reason, pause_s=ASIDE_RETRY_S if breaks else 0.0)
            return
        tries = self._tries[flight.key] = self._tries.get(flight.key, -1) + 1
        pause_s = min(ASIDE_RETRY_MAX_S, ASIDE_RETRY_S * 2.0 ** min(tries, 10))
        due_us = self._clock.monotonic_us() + round(pause_s * SECOND_US)
        self._aside[flight.key] = _Aside(flight.topic, reason, self._clock.wall_us(), due_us, breaks)
        if row == 1:
            seq = {} if flight.message is None else {"seq": flight.message.seq}
            log.error("message_not_taken", topic=flight.topic, **seq, fault=reason)

    def _retry_aside(self) -> None:
        """One message that has been aside for long enough is tried again, alone."""
        now = self._clock.monotonic_us()
        if not self._aside or now < self._aside_look_us:
            return
        self._aside_look_us = now + ASIDE_LOOK_US
        key = next((key for key, each in self._aside.items() if each.due_us <= now), None)
        if key is None:
            return
        self._suspects.retry(key)
        self._send_again(key)

    def _send_again(self, key: Key) -> None:
        """It is aside no more."""
        self._aside.pop(key, None)
        if isinstance(key, int):
            self._rewind(key, key)
        elif key in self._retained:
            self._due[str(key)] = None

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


def _leave(refusal: _Refusal, message: Committed) -> None:
    """It waits in the store. The oldest of a topic is the one to ask with, or it would come after newer ones."""
    if refusal.behind is None or message.seq <= refusal.behind:
        refusal.behind, refusal.probe = message.seq, message


def _stop_timer(refusal: _Refusal) -> None:
    if refusal.timer is not None:
        refusal.timer.cancel()
        refusal.timer = None
