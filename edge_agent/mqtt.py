"""One connection to one of the brokers, kept up for ever. The one door of paho.

Rule 1: paho's thread only hands facts to the loop (`_post`), since an exception in a callback ends it silently.
Rule 2: nothing is published while the connection is down: paho would keep it and send it a second time.
Rule 3: paho keeps nothing for us. A new connection gets a new client, and what was not acknowledged is the store's.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import ssl
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_agent.addresses import CONNECT_S, Addresses
from edge_agent.clock import RELEASED_US
from edge_agent.contract import SECOND_US, Clock

log = structlog.get_logger(__name__)

PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEPALIVE_S = 30
WORDS_MAX = 200
"""Characters of the broker's own words that are shown."""
ANSWER_S = 20.0
"""From the beginning of an attempt to the broker's CONNACK."""
SILENCE_S = 3.0
"""What a broker that has let us in may take to answer MQTT 5 before 3.1.1 is tried: amqtt 0.12 says nothing at all."""
PROMPT_S = 1.0
"""A broker that takes longer to answer 3.1.1 than this was not silent but slow: it is asked for 5 again, with patience."""
ACK_S = 30.0
"""MQTT knows no limit for a PUBACK; a broker that owes one for longer is taken for lost."""
LOOK_S = 1.0
"""How often the age of the oldest unacknowledged message and the life of paho's thread are looked at."""
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 60.0
SEVERAL = 4
"""Failures in a row after which one attempt at a time is enough."""
REFUSED_PAUSE_MAX_S = 300.0
"""Between two attempts at a broker that a person must set right: twenty an hour at most, from the first hour on."""
BACK_EVERY_S = 600.0
"""Connected to a further broker, one before it in the list is looked for so often."""
STEADY_S = 10.0
"""A connection that lasted this long was a good one: the pauses begin anew."""
FLAPS, FLAP_S = 3, 300.0
"""So many connections in a row, each closed by the peer without a word before it was so old, look like a fight for one
client id: mosquitto 2.0 says nothing to whom it throws out, and MQTT 3.1.1 cannot."""
END_S = 1.0
RECEIVE_MAX = 65_535
PACKET_MAX = 268_435_455
"""MQTT 5.0, 3.2.2.3.3 and 2.1.4: what holds when the broker names no limit."""
UNSUPPORTED_VERSION = 132
"""MQTT 5.0, 3.2.2.2; paho gives the 1 of a 3.1.1 broker the same number."""
NOT_YET_VALID, EXPIRED = 9, 10
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED: OpenSSL, X509_STORE_CTX_get_error(3)."""
FAILURE = 0x80
"""Reason codes from here on are failures: MQTT 5.0, 2.4."""
TAKEN_OVER = 0x8E
NO_RETAIN, NO_QOS = 0x9A, 0x9B
NO_MATCHING_SUBSCRIBERS = 0x10
ABOUT_A_MESSAGE = frozenset({0x81, 0x82, 0x90, 0x94, 0x95, 0x99, 0x9B})
"""Reasons to close a connection that mean what was sent over it: MQTT 5.0, 3.14.2.1."""
ADVICE = {
    0x85: "the broker does not accept the client id {client_id}: it is agent.id",
    0x86: "check mqtt.username and its password, and the user in the broker",
    0x87: "the broker does not let this agent in: check mqtt.username, the client certificate and the broker's rules",
    0x8A: "the broker has banned this agent: ask whoever keeps it",
    0x8C: "the broker wants another way of signing in than user and password or certificate",
    0x8E: "another client has connected as {client_id}: each agent needs an agent.id of its own",
    0x95: "a message is larger than the broker takes",
    0x97: "a quota of the broker is used up: raise it there, or send less",
    0x9B: "the broker takes no QoS 1, without which nothing can be delivered for sure",
    0x9C: "the broker names another one for now; that is not followed: set mqtt.url",
    0x9D: "the broker has moved for good; that is not followed: set mqtt.url",
    0x9F: "the broker takes fewer connections than are tried: it has a limit on them",
}
"""What a person can do about a reason code of CONNACK or DISCONNECT (MQTT 5.0, 2.4)."""
NEEDS_A_PERSON = frozenset({0x85, 0x86, 0x87, 0x8A, 0x8C, TAKEN_OVER, 0x9B, 0x9C, 0x9D, 0x9F})
"""Refusals that do not pass by themselves; they are tried again seldom."""


class LinkState(StrEnum):
    """The words of the health topic."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    BACKING_OFF = "backing_off"


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where the brokers are and who we are. urls: mqtt://host[:1883] or mqtts://host[:8883], tried in this order.

    version: "auto", "5" or "3.1.1". key: a file, or the PEM text of a secret.
    """

    urls: tuple[str, ...]
    client_id: str
    version: str = "auto"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | str | None = field(default=None, repr=False)
    files: str = ""
    """A hash over what the files held when this was made (`content`): a renewed certificate is another setting."""


def content(paths: Iterable[Path | str | None]) -> str:
    """A hash over the bytes of these files; one that cannot be read counts as empty, and is told at the connection."""
    whole = hashlib.sha256()
    for path in paths:
        if isinstance(path, Path):
            with contextlib.suppress(OSError):
                whole.update(path.read_bytes())
        whole.update(b"/")
    return whole.hexdigest()


@dataclass(slots=True, eq=False)
class _Attempt:
    """One client of paho's and what is known of it. ended: why it is over."""

    client: Client
    url: str
    version: str
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: bool = False
    ended: str = ""
    code: int | None = None
    """The broker's reason code, where it gave one that is a failure."""
    refused_version: bool = False
    silent: bool = False
    slow: bool = False
    thread: threading.Thread | None = None
    acked: deque[tuple[int, int]] = field(default_factory=deque)
    """Message ids and reason codes that paho's thread has brought and the loop has not taken yet."""
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Message id of MQTT: our token and the monotonic time of sending, oldest first."""

    def end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self.over.set()
        self.answered.set()


class Link:
    """The connection. Everything but paho's own thread happens on the loop; the three hooks are called there.

    renewed: the settings with passwords and certificates as they are on disk now, asked in a thread before each attempt;
    it raises OSError or ValueError when they cannot be had, and the last ones stand.
    """

    def __init__(
        self,
        settings: LinkSettings,
        will: tuple[str, bytes] | None,
        clock: Clock,
        renewed: Callable[[], LinkSettings] | None = None,
        addresses: Addresses | None = None,
    ) -> None:
        self._settings, self._will, self._clock, self._renewed = settings, will, clock, renewed
        self._addresses = addresses or Addresses()
        self.on_connected: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_ack: Callable[[int, int], None] = lambda _token, _reason: None
        self.state = LinkState.CONNECTING
        self.version: str | None = None
        self.reason = ""
        self.since_us: int | None = None
        """UTC µs of the last change of `state`."""
        self.url = settings.urls[0]
        self.code: int | None = None
        """The broker's last reason code that is a failure, of CONNACK or DISCONNECT; None when it gave none."""
        self.last_loss: tuple[int, str] | None = None
        """When (UTC µs) and why a connection was lost last; `reason` forgets it when there is another."""
        self.decided = asyncio.Event()
        """Once a broker has taken us, or all have been tried."""
        self.attempts = self.connections = 0
        """Connections that were tried, and that a broker took."""
        self.receive_max, self.packet_max = RECEIVE_MAX, PACKET_MAX
        self._speaks_311: set[str] = set()
        self._slow: set[str] = set()
        self._may_retain = True
        self._no_retain: set[str] = set()
        self._closes: set[str] = set()
        """Brokers that close instead of answering: they are asked for one version at a time once pauses have grown."""
        self._failures, self._needs_person, self._flaps = 0, False, 0
        self._closed_silently = False
        self._looked_back_us, self._goes_back = 0, False
        self._now: _Attempt | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self.state is LinkState.CONNECTED

    @property
    def settings(self) -> LinkSettings:
        """Those of the present or the next connection."""
        return self._settings

    def use(self, settings: LinkSettings) -> None:
        """The settings of the next connection."""
        self._settings = settings

    async def run(self) -> None:
        """Keep the connection up until `disconnect` or cancellation; a cancelled one is cut, so the will speaks."""
        self._loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            self._closed_silently = False
            self._turn(LinkState.CONNECTING)
            self._needs_person = False
            lasted_s = await self._try_all()
            self._flaps = self._flaps + 1 if 0.0 < lasted_s < FLAP_S and self._closed_silently else 0
            well = lasted_s >= STEADY_S and not self._needs_person and self._flaps < FLAPS
            self._failures = 0 if well else self._failures + 1
            self._turn(LinkState.BACKING_OFF)
            if self._goes_back:
                self._goes_back = False
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_pause_s(self._failures, refused=self._needs_person)):
                    await self._closing.wait()

    def publish(self, topic: str, payload: bytes, retain: bool, token: int) -> bool:
        """Send with QoS 1; `on_ack(token, reason code)` follows. False: not connected, nothing was kept."""
        attempt = self._now
        if attempt is None or not self.connected or attempt.over.is_set():
            return False
        info = attempt.client.publish(topic, payload, qos=1, retain=retain and self._may_retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            # The connection was lost a moment ago. paho has kept the message, and is thrown away together with it.
            self._cut(attempt, f"paho: {info.rc.name}")
            return False
        attempt.waiting[info.mid] = (token, self._clock.monotonic_us())
        return True

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is published inside wakes paho's thread once. It is woken for each message otherwise, and takes turns with
        ours each time: that was half of what a message cost.
        """
        client = self._now.client if self._now is not None else None
        waker = getattr(client, "_sockpairW", None)
        if client is None or waker is None:
            yield
            return
        client._sockpairW = None  # noqa: SLF001
        try:
            yield
        finally:
            client._sockpairW = waker  # noqa: SLF001
            with contextlib.suppress(OSError):  # full: it is awake already
                waker.send(b"0")

    async def disconnect(self, within_s: float) -> None:
        """Say good-bye, which keeps the will from being sent, and let `run` end."""
        self._closing.set()
        attempt = self._now
        if attempt is None:
            return
        if not self.connected:
            attempt.end("stopped")
            return
        attempt.client.disconnect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await attempt.over.wait()

    # --- one connection after the other -------------------------------------------------------------------------------

    async def _try_all(self) -> float:
        """Every broker once, until one lasts. Returns how many seconds the connection lasted, 0 when there was none."""
        for url in self._settings.urls:
            versions = deque(self._versions(url))
            silent = False
            while versions and not self._closing.is_set():
                attempt, lasted_s = await self._one(url, versions.popleft(), silent)
                if lasted_s is not None:
                    return lasted_s
                if attempt is None:
                    break
                silent = attempt.silent
                if attempt.slow:
                    self._slow.add(url)
                    versions = deque(("5", "3.1.1"))
                elif not attempt.refused_version:
                    break
        return 0.0

    def _versions(self, url: str) -> tuple[str, ...]:
        if self._settings.version != "auto":
            return (self._settings.version,)
        if url in self._speaks_311:
            return ("3.1.1",)
        if url in self._closes and self._failures > SEVERAL:
            return ("5",) if self._failures % 2 else ("3.1.1",)
        return ("5", "3.1.1")

    async def _one(self, url: str, version: str, after_silence: bool) -> tuple[_Attempt | None, float | None]:
        """Connect and stay so. Returns the seconds that it lasted, None when the broker never took us.

        after_silence: the broker gave no answer to MQTT 5 a moment ago.
        """
        self.url, self.code = url, None
        self.attempts += 1
        try:
            await self._renew()
            tls = await asyncio.to_thread(_tls, self._settings) if url.startswith("mqtts:") else None
            attempt = self._attempt(url, version, tls)
        except (OSError, ValueError) as error:
            self._failed(f"TLS: {error}")
            return None, None
        self._now = attempt
        began, tried_us = None, self._clock.monotonic_us()
        try:
            try:
                _start(attempt)
            except (OSError, RuntimeError) as error:  # no file or thread is free: the host's fault, and it may pass
                attempt.end(f"the connection cannot be started: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await attempt.answered.wait()
            if not attempt.accepted or attempt.over.is_set():
                if not attempt.ended and version == "5" and url in self._slow:
                    attempt.refused_version = True  # silent in spite of all patience
                self._failed(attempt.ended or f"no answer within {ANSWER_S:g} s")
                return attempt, None
            if after_silence and self._clock.monotonic_us() - tried_us > PROMPT_S * SECOND_US:
                attempt.slow = True
                self._failed("slow, not silent: MQTT 5 is tried again")
                return attempt, None
            began = self._clock.monotonic_us()
            self._connected(attempt)
            await self._watch(attempt)
            return attempt, (self._clock.monotonic_us() - began) / SECOND_US
        finally:
            self._now = None
            if began is not None:
                self._lost(attempt)
            await self._end(attempt)

    def _connected(self, attempt: _Attempt) -> None:
        self.version, self.reason = attempt.version, ""
        self.connections += 1
        self._closes.discard(attempt.url)
        self._looked_back_us = self._clock.monotonic_us()
        self._turn(LinkState.CONNECTED)
        log.info("broker_connected", url=attempt.url, version=attempt.version)
        self.on_connected()

    def _lost(self, attempt: _Attempt) -> None:
        self.reason, self.code = attempt.ended or "cancelled", attempt.code
        self.last_loss = self._clock.wall_us(), self.reason
        self._turn(LinkState.CONNECTING)
        if not self._closing.is_set():
            log.warning("broker_lost", url=attempt.url, fault=self.reason)
        self.on_lost()

    def _failed(self, reason: str) -> None:
        if reason != self.reason and not self._closing.is_set():
            log.warning("broker_not_reached", url=self.url, fault=reason)
        self.reason = reason

    async def _watch(self, attempt: _Attempt) -> None:
        """Until it is over; what paho does not tell by itself is looked at each second."""
        while not attempt.over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await attempt.over.wait()
            if await self._is_better_away(attempt):
                # Cut, so that the will tells whoever listens at this broker that nothing more comes here.
                self._cut(attempt, "leaving for a broker that stands before it in the list")
                self._goes_back = True
                break
            if attempt.thread is None or not attempt.thread.is_alive():
                attempt.end("the network thread has ended")
            oldest = next(iter(attempt.waiting.values()), None)
            if oldest is not None and self._clock.monotonic_us() - oldest[1] > ACK_S * SECOND_US:
                self._cut(attempt, f"no acknowledgement within {ACK_S:g} s")

    async def _is_better_away(self, attempt: _Attempt) -> bool:
        """Whether a broker that stands before this one in the list listens again; looked at now and then."""
        before = (
            self._settings.urls[: self._settings.urls.index(attempt.url)] if attempt.url in self._settings.urls else ()
        )
        now = self._clock.monotonic_us()
        if not before or now - self._looked_back_us < BACK_EVERY_S * SECOND_US:
            return False
        self._looked_back_us = now
        for url in before:
            if await asyncio.to_thread(self._listens, url):
                log.info("broker_is_back", url=url, leaving=attempt.url)
                return True
        return False

    def _listens(self, url: str) -> bool:
        parts = urlsplit(url)
        with contextlib.suppress(OSError):
            self._addresses.connected(parts.hostname or "", parts.port or PORTS[parts.scheme]).close()
            return True
        return False

    async def _renew(self) -> None:
        """Passwords and certificates as they are now. What cannot be had leaves the last ones in force."""
        if self._renewed is None:
            return
        try:
            async with asyncio.timeout(ANSWER_S):
                fresh = await asyncio.to_thread(self._renewed)
        except (OSError, ValueError) as error:  # also the TimeoutError of a folder that hangs
            log.warning("secrets_not_renewed", fault=str(error))
            return
        self._settings = replace(fresh, urls=self._settings.urls)

    def _turn(self, state: LinkState) -> None:
        if state is not self.state or self.since_us is None:
            self.state, self.since_us = state, self._clock.wall_us()
        if state is not LinkState.CONNECTING:
            self.decided.set()

    # --- paho ---------------------------------------------------------------------------------------------------------

    def _attempt(self, url: str, version: str, tls: ssl.SSLContext | None) -> _Attempt:
        """A client with its hooks, not started."""
        settings, parts = self._settings, urlsplit(url)
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if version == "5" else True,
            protocol=MQTTProtocolVersion.MQTTv5 if version == "5" else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(0)  # the window is the publisher's
        if self._will is not None:
            client.will_set(*self._will, qos=1, retain=url not in self._no_retain)
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if tls is not None:
            client.tls_set_context(tls)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        # In paho's thread: its own way asks the resolver with no deadline and forgets what it knew.
        client._create_socket = lambda: self._opened(client, host, port, tls is not None)  # type: ignore[method-assign]  # noqa: SLF001
        attempt, post = _Attempt(client, url, version), self._post
        client.on_connect = lambda _c, _u, _f, reason, given: post(self._on_connack, attempt, reason, given)
        client.on_socket_open = lambda *_: post(self._on_open, attempt)
        client.on_connect_fail = lambda *_: post(attempt.end, _words(sys.exc_info()[1], self._clock.wall_us()))
        client.on_disconnect = lambda _c, _u, flags, reason, given: post(self._on_end, attempt, flags, reason, given)
        client.on_publish = lambda _c, _u, mid, reason, _p: self._on_puback(attempt, mid, reason)
        # The first start of a client is a clean one, and each client starts once.
        client.connect_async(host, port, KEEPALIVE_S)
        return attempt

    def _opened(self, client: Client, host: str, port: int, encrypted: bool) -> socket.socket:
        """A connection, blocking. Raises OSError, or ValueError for a certificate of another name."""
        line = self._addresses.connected(host, port)
        if not encrypted:
            return line
        try:
            return client._ssl_wrap_socket(line)  # noqa: SLF001
        except BaseException:
            line.close()
            raise

    def _post(self, hook: Callable[..., None], *facts: Any) -> None:
        """From paho's thread to the loop; never raises, also when the loop has ended."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(hook, *facts)

    def _on_open(self, attempt: _Attempt) -> None:
        if self._settings.version == "auto" and attempt.version == "5" and attempt.url not in self._slow:
            asyncio.get_running_loop().call_later(SILENCE_S, self._on_silence, attempt)

    def _on_silence(self, attempt: _Attempt) -> None:
        if not attempt.answered.is_set():
            attempt.refused_version = attempt.silent = True
            self._cut(attempt, f"no answer to MQTT 5 within {SILENCE_S:g} s")

    def _on_connack(self, attempt: _Attempt, reason: Any, given: Any) -> None:
        if reason.value >= FAILURE:
            attempt.refused_version = reason.value == UNSUPPORTED_VERSION
            if attempt.refused_version and self._settings.version == "auto" and attempt.version == "5":
                self._speaks_311.add(attempt.url)
            if reason.value == NO_RETAIN and attempt.url not in self._no_retain:
                self._no_retain.add(attempt.url)  # the will was to be retained; the next attempt's is not
            self._told(attempt, int(reason.value))
            attempt.end(f"refused: {self._explained(reason, given)}")
            return
        if getattr(given, "MaximumQoS", 1) < 1:
            self._told(attempt, NO_QOS)
            self._cut(attempt, f"refused: {ADVICE[NO_QOS]}")
            return
        self.receive_max = getattr(given, "ReceiveMaximum", RECEIVE_MAX)
        self.packet_max = getattr(given, "MaximumPacketSize", PACKET_MAX)
        self._may_retain = bool(getattr(given, "RetainAvailable", 1))
        attempt.accepted = True
        attempt.answered.set()

    def _on_end(self, attempt: _Attempt, flags: Any, reason: Any, given: Any) -> None:
        if not attempt.accepted and not attempt.ended:
            # RabbitMQ before 3.13 closes where MQTT 5 says to refuse. So does a proxy whose broker is away, hence this
            # is not remembered: the next connection begins with 5 again.
            attempt.refused_version = attempt.version == "5"
            self._closes.add(attempt.url)
            # With TLS 1.3 a broker that does not take our certificate closes when we believe to be through.
            self._needs_person |= attempt.url.startswith("mqtts:") and self._settings.cert is not None
            attempt.end("closed before it answered")
            return
        if not flags.is_disconnect_packet_from_server:
            if not attempt.ended and attempt is self._now:
                self._closed_silently = True
            attempt.end(self._lost_words())
            return
        self._told(attempt, int(reason.value))
        attempt.end(f"disconnected by the broker: {self._explained(reason, given)}")

    def _lost_words(self) -> str:
        if self._flaps + 1 < FLAPS:
            return "connection lost"
        who = ADVICE[TAKEN_OVER].format(client_id=self._settings.client_id)
        return f"connection lost, {self._flaps + 1} times in a row soon after it was made: perhaps {who}"

    def _told(self, attempt: _Attempt, code: int) -> None:
        """The broker gave a reason."""
        if code >= FAILURE and attempt is self._now:
            attempt.code = self.code = code
            self._needs_person |= code in NEEDS_A_PERSON

    def _explained(self, reason: Any, given: Any) -> str:
        """The broker's reason, and what to do about it."""
        words = str(reason)
        for name in ("ReasonString", "ServerReference"):
            if more := getattr(given, name, None):
                words += f" ({str(more)[:WORDS_MAX]})"
        advice = ADVICE.get(int(reason.value), "").format(client_id=self._settings.client_id)
        return f"{words}: {advice}" if advice else words

    def _on_puback(self, attempt: _Attempt, mid: int, reason: Any) -> None:
        """In paho's thread. The loop is woken for the first of several, and takes them all."""
        attempt.acked.append((mid, reason.value))
        if len(attempt.acked) == 1:
            self._post(self._take_acks, attempt)

    def _take_acks(self, attempt: _Attempt) -> None:
        while attempt.acked:
            mid, reason = attempt.acked.popleft()
            token, _ = attempt.waiting.pop(mid, (None, 0))
            if token is not None and attempt is self._now:
                self.on_ack(token, int(reason))

    def _cut(self, attempt: _Attempt, reason: str) -> None:
        """Close the socket under paho: the broker hears no good-bye and sends the will."""
        attempt.end(reason)
        line = attempt.client.socket()
        if isinstance(line, socket.socket):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(line, socket.SHUT_RDWR)

    async def _end(self, attempt: _Attempt) -> None:
        """Let paho's thread end. It may hang in DNS for long, so only a connection that was up is waited for."""
        if not attempt.over.is_set():
            self._cut(attempt, "cancelled")
        attempt.client.disconnect()
        gone = asyncio.Event()
        ending = threading.Thread(target=_stop, args=(attempt.client, self._post, gone), name="mqtt-end", daemon=True)
        try:
            ending.start()
        except RuntimeError as error:  # no thread is free; paho's own ends by itself, since its socket is gone
            log.warning("connection_not_ended", fault=str(error))
            return
        if attempt.accepted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await gone.wait()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a broker said to somebody who knocked. version: None when it did not take us; reason: why not, in words."""

    url: str
    version: str | None
    reason: str


async def knock(settings: LinkSettings, clock: Clock) -> list[Answer]:
    """Connect to every broker once, under a client id of its own, and leave at once: nothing is published, nobody is put out."""
    found = []
    for url in settings.urls:
        link = Link(replace(settings, urls=(url,), client_id=f"{settings.client_id}-check"), None, clock)
        running = asyncio.create_task(link.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await link.decided.wait()
        silent = f"no answer within {ANSWER_S:g} s"
        found.append(
            Answer(url, link.version if link.connected else None, "" if link.connected else link.reason or silent)
        )
        await link.disconnect(END_S)
        running.cancel()
        await asyncio.wait([running])
    return found


def _start(attempt: _Attempt) -> None:
    """Start paho's thread and find it: paho itself does not say when it dies."""
    before = set(threading.enumerate())
    attempt.client.loop_start()
    started = [each for each in threading.enumerate() if each not in before and each.name.startswith("paho")]
    attempt.thread = started[0] if started else None


def _stop(client: Client, post: Callable[..., None], gone: asyncio.Event) -> None:
    client.loop_stop()
    line = client.socket()
    if line is not None:  # it came up while it was being stopped: paho leaves it open
        line.close()
    post(gone.set)


def _pause_s(failures: int, *, refused: bool = False) -> float:
    """Growing, with jitter, so that a plant full of agents does not knock at the same moment.

    refused: a person must act. 1, 4, 16 … 300 s and hardly less: twenty attempts in the first hour, fifteen later.
    """
    if refused:
        return min(REFUSED_PAUSE_MAX_S, PAUSE_MIN_S * 4.0 ** min(max(failures - 1, 0), 10)) * random.uniform(0.8, 1.0)  # noqa: S311
    longest = min(PAUSE_MAX_S, 2.0 * PAUSE_MIN_S * 2.0 ** min(max(failures - 1, 0), 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _words(error: BaseException | None, now_us: int) -> str:
    match error:
        case None:
            return "not reached"
        case ssl.SSLCertVerificationError() if error.verify_code in (NOT_YET_VALID, EXPIRED):
            now = datetime.fromtimestamp(now_us / SECOND_US, UTC)
            clock = f"the clock here says {now:%Y-%m-%d %H:%M} UTC{_cure(error.verify_code, now_us)}"
            return f"certificate of the broker: {error.verify_message}: {clock}"
        case ssl.SSLCertVerificationError():
            return f"certificate of the broker: {error.verify_message}"
        case OSError():
            return error.strerror or str(error) or type(error).__name__
        case _:
            return str(error)


def _cure(code: int, now_us: int) -> str:
    """Which of the two is wrong, as far as it can be said: the clock or the certificate."""
    if now_us < RELEASED_US:
        return ", which cannot be: set the clock"
    if code == NOT_YET_VALID:
        return ", which is before the first day of the certificate: set the clock if that is wrong"
    return ", which is after the last day of the certificate: renew it, or set the clock if that is wrong"


def _tls(settings: LinkSettings) -> ssl.SSLContext:
    """Certificates are read anew for each connection, so a renewed one is taken over. Raises OSError."""
    with _about(f"the authorities' file {settings.ca}"):
        context = ssl.create_default_context(cafile=settings.ca)
    if settings.cert is None:
        return context
    if isinstance(settings.key, str):
        with _about(f"the certificate {settings.cert} with its secret key"), _as_file(settings.key) as path:
            context.load_cert_chain(settings.cert, path, password="")
    else:
        with _about(f"the certificate {settings.cert} with the key {settings.key}"):
            context.load_cert_chain(settings.cert, settings.key, password="")
    return context


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """OpenSSL's errors do not say which file they mean."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise OSError(f"{what} cannot be used: {error}") from error


@contextlib.contextmanager
def _as_file(text: str) -> Any:
    """OpenSSL reads keys from files only: one that is in memory, or that is gone at once."""
    if sys.platform == "linux":
        number = os.memfd_create("key")
        try:
            os.write(number, text.encode())
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(text.encode())
            file.flush()
            yield file.name
