"""One connection to one of the brokers, kept up for ever. The one door of paho.

Rule 1: paho's thread only hands facts to the loop (`_post`), since an exception in a callback ends it silently.
Rule 2: nothing is published while the connection is down: paho would keep it and send it a second time.
Rule 3: paho keeps nothing for us. A new connection gets a new client, and what was not acknowledged is the store's.
"""

import asyncio
import contextlib
import os
import random
import socket
import ssl
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edge_agent.clock import RELEASED_US
from edge_agent.contract import SECOND_US, Clock

log = structlog.get_logger(__name__)

PORTS = {"mqtt": 1883, "mqtts": 8883}
KEEPALIVE_S = 30
CONNECT_S = 5.0
"""TCP and TLS to one address."""
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
STEADY_S = 10.0
"""A connection that lasted this long was a good one: the pauses begin anew."""
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
    refused_version: bool = False
    silent: bool = False
    slow: bool = False
    thread: threading.Thread | None = None
    waiting: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Message id of MQTT: our token and the monotonic time of sending, oldest first."""

    def end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self.over.set()
        self.answered.set()


class Link:
    """The connection. Everything but paho's own thread happens on the loop; the three hooks are called there."""

    def __init__(self, settings: LinkSettings, will_topic: str, will: bytes, clock: Clock) -> None:
        self._settings, self._will, self._clock = settings, (will_topic, will), clock
        self.on_connected: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_ack: Callable[[int, int], None] = lambda _token, _reason: None
        self.state = LinkState.CONNECTING
        self.version: str | None = None
        self.reason = ""
        self.since_us: int | None = None
        """UTC µs of the last change of `state`."""
        self.url = settings.urls[0]
        self.receive_max, self.packet_max = RECEIVE_MAX, PACKET_MAX
        self._speaks_311: set[str] = set()
        self._slow: set[str] = set()
        self._may_retain = True
        self._now: _Attempt | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self.state is LinkState.CONNECTED

    def use(self, settings: LinkSettings) -> None:
        """The settings of the next connection."""
        self._settings = settings

    async def run(self) -> None:
        """Keep the connection up until `disconnect` or cancellation; a cancelled one is cut, so the will speaks."""
        self._loop = asyncio.get_running_loop()
        failures = 0
        while not self._closing.is_set():
            self._turn(LinkState.CONNECTING)
            lasted_s = await self._try_all()
            failures = 0 if lasted_s >= STEADY_S else failures + 1
            self._turn(LinkState.BACKING_OFF)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_pause_s(failures)):
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
        return ("3.1.1",) if url in self._speaks_311 else ("5", "3.1.1")

    async def _one(self, url: str, version: str, after_silence: bool) -> tuple[_Attempt | None, float | None]:
        """Connect and stay so. Returns the seconds that it lasted, None when the broker never took us.

        after_silence: the broker gave no answer to MQTT 5 a moment ago.
        """
        self.url = url
        try:
            attempt = self._attempt(url, version)
        except (OSError, ValueError) as error:
            self._failed(f"TLS: {error}")
            return None, None
        self._now = attempt
        began, tried_us = None, self._clock.monotonic_us()
        try:
            _start(attempt)
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
        self._turn(LinkState.CONNECTED)
        log.info("broker_connected", url=attempt.url, version=attempt.version)
        self.on_connected()

    def _lost(self, attempt: _Attempt) -> None:
        self.reason = attempt.ended or "cancelled"
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
            if attempt.thread is None or not attempt.thread.is_alive():
                attempt.end("the network thread has ended")
            oldest = next(iter(attempt.waiting.values()), None)
            if oldest is not None and self._clock.monotonic_us() - oldest[1] > ACK_S * SECOND_US:
                self._cut(attempt, f"no acknowledgement within {ACK_S:g} s")

    def _turn(self, state: LinkState) -> None:
        if state is not self.state or self.since_us is None:
            self.state, self.since_us = state, self._clock.wall_us()

    # --- paho ---------------------------------------------------------------------------------------------------------

    def _attempt(self, url: str, version: str) -> _Attempt:
        """A client with its hooks, not started. Raises OSError or ValueError when the certificates cannot be used."""
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
        client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if parts.scheme == "mqtts":
            client.tls_set_context(_tls(settings))
        attempt, post = _Attempt(client, url, version), self._post
        client.on_connect = lambda _c, _u, _f, reason, given: post(self._on_connack, attempt, reason, given)
        client.on_socket_open = lambda *_: post(self._on_open, attempt)
        client.on_connect_fail = lambda *_: post(attempt.end, _words(sys.exc_info()[1], self._clock.wall_us()))
        client.on_disconnect = lambda _c, _u, flags, reason, _p: post(self._on_end, attempt, flags, reason)
        client.on_publish = lambda _c, _u, mid, reason, _p: post(self._on_puback, attempt, mid, reason)
        # The first start of a client is a clean one, and each client starts once.
        client.connect_async(parts.hostname or "", parts.port or PORTS[parts.scheme], KEEPALIVE_S)
        return attempt

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
            attempt.end(f"refused: {reason}")
            return
        self.receive_max = getattr(given, "ReceiveMaximum", RECEIVE_MAX)
        self.packet_max = getattr(given, "MaximumPacketSize", PACKET_MAX)
        self._may_retain = bool(getattr(given, "RetainAvailable", 1))
        attempt.accepted = True
        attempt.answered.set()

    def _on_end(self, attempt: _Attempt, flags: Any, reason: Any) -> None:
        if not attempt.accepted and not attempt.ended:
            # RabbitMQ before 3.13 closes where MQTT 5 says to refuse. So does a proxy whose broker is away, hence this
            # is not remembered: the next connection begins with 5 again.
            attempt.refused_version = attempt.version == "5"
            attempt.end("closed before it answered")
            return
        told = flags.is_disconnect_packet_from_server
        attempt.end(f"disconnected by the broker: {reason}" if told else "connection lost")

    def _on_puback(self, attempt: _Attempt, mid: int, reason: Any) -> None:
        token, _ = attempt.waiting.pop(mid, (None, 0))
        if token is not None and attempt is self._now:
            self.on_ack(token, int(reason.value))

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
        threading.Thread(target=_stop, args=(attempt.client, self._post, gone), name="mqtt-end", daemon=True).start()
        if attempt.accepted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await gone.wait()


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


def _pause_s(failures: int) -> float:
    """Growing, with jitter, so that a plant full of agents does not knock at the same moment."""
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
