"""The agent as a guest of the host: systemd's notices and watchdog, signals, and the log.

Rule 1: the watchdog is stroked only while every worker has turned its loop since the last stroke; a peer that does not
answer is no reason to be killed, a loop that does not turn is.
Rule 2: the log tells edges. Should a cause flood it all the same, ten lines a second pass and the others are counted.
Rule 3: no secret reaches the log: not by its key, not inside a URL, not as a value that was named to `hide`.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import orjson
import structlog

from edge_agent.contract import SECOND_US, Clock

STROKES_PER_WATCHDOG = 4
"""sd_watchdog_enabled(3) recommends a stroke at half the time; a quarter finds a stuck worker sooner."""
CHECK_EVERY_US = 5 * SECOND_US
"""How often the workers are looked at when no watchdog waits for a stroke."""
LINES_PER_SECOND = 10
"""Lines of one cause in a second; the rest is counted."""
CAUSES_MAX = 1_000
"""Causes that the limiter remembers; the oldest yields, and its next line passes at once."""
SECRETS_MIN_CHARACTERS = 4
"""A shorter value is not hidden wherever it occurs: it would blot out half of the log."""

WORKER_STUCK = "worker_stuck"
WORKER_BACK = "worker_back"
LINES_SUPPRESSED = "log_lines_suppressed"
LIBRARY = "library"

Event = MutableMapping[str, Any]
Form = Literal["auto", "console", "json"]


# ---------------------------------------------------------------------------------------------------------- systemd


class Notifier:
    """sd_notify(3) in plain Python; without systemd every call does nothing.

    The agent never stops for a notice that cannot be sent: a full or vanished socket is systemd's loss alone.
    """

    def __init__(self, address: str | None) -> None:
        """address: $NOTIFY_SOCKET, a path or an abstract name (`@…`); None or empty: nobody listens."""
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        return cls(environment.get("NOTIFY_SOCKET"))

    def ready(self, status: str = "running") -> None:
        self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self, monotonic_us: int) -> None:
        """To be followed by `ready`, also when the new configuration was refused."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def extend(self, span_us: int) -> None:
        """So much longer may what is going on take (start, stop, reload)."""
        self._send(f"EXTEND_TIMEOUT_USEC={span_us}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto("\n".join(assignments).encode(), self._address)


def _line(text: str) -> str:
    return " ".join(text.split())


def watchdog_us(environment: Mapping[str, str], pid: int) -> int | None:
    """The time after which systemd kills us without a stroke, µs; None when it does not watch this process."""
    wanted = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid) or not wanted.isdigit() or int(wanted) == 0:
        return None
    return int(wanted)


# ------------------------------------------------------------------------------------------------- heartbeats, watchdog


@dataclass(slots=True)
class _Worker:
    turn_us: int
    last_us: int
    turned: bool


class Beat:
    """One worker's pulse: call it once for each turn of the loop, from any thread. Leaving its `with` forgets it."""

    def __init__(self, beats: "Heartbeats", name: str) -> None:
        self._beats = beats
        self.name = name

    def __call__(self) -> None:
        self._beats.beat(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beats.forget(self.name)


EXTEND_EVERY_US, EXTEND_US = 10 * SECOND_US, 60 * SECOND_US


class Progress:
    """Tells systemd, while a start takes long, that it goes on: a large store is saved row by row."""

    def __init__(self, notifier: Notifier, clock: Clock) -> None:
        self._notifier, self._clock = notifier, clock
        self._told_us = clock.monotonic_us()

    def made(self) -> None:
        """Something was done; told every ten seconds, for the next minute."""
        now = self._clock.monotonic_us()
        if now - self._told_us >= EXTEND_EVERY_US:
            self._told_us = now
            self._notifier.extend(EXTEND_US)


class Heartbeats:
    """Who works here, and whether each has turned its loop since the last stroke."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._workers: dict[str, _Worker] = {}

    def worker(self, name: str, turn_us: int = 0) -> Beat:
        """Register a worker. turn_us: how long one turn of its loop may rightly take (a poll each hour: an hour)."""
        self._workers[name] = _Worker(turn_us, self._clock.monotonic_us(), turned=True)
        return Beat(self, name)

    def beat(self, name: str) -> None:
        """The worker has turned its loop. One that was forgotten meanwhile is not called back."""
        if worker := self._workers.get(name):
            worker.last_us = self._clock.monotonic_us()
            worker.turned = True

    def forget(self, name: str) -> None:
        self._workers.pop(name, None)

    def late(self) -> tuple[str, ...]:
        """The workers that did not turn since the last stroke, though the time that a turn may take is over."""
        now = self._clock.monotonic_us()
        workers = tuple(self._workers.items())
        return tuple(name for name, each in workers if not each.turned and now - each.last_us > each.turn_us)

    def stroke(self) -> bool:
        """True when nobody is late: stroke the watchdog. The next stroke needs a new turn of everyone."""
        if self.late():
            return False
        for worker in tuple(self._workers.values()):
            worker.turned = False
        return True


async def keep_watchdog(notifier: Notifier, beats: Heartbeats, watchdog_period_us: int | None) -> None:
    """Stroke systemd's watchdog for as long as all workers turn; log who stands still, once, and who is back.

    watchdog_period_us: see `watchdog_us`; None looks after the workers all the same. Runs for ever, until cancelled.
    """
    pause_us = CHECK_EVERY_US if watchdog_period_us is None else watchdog_period_us // STROKES_PER_WATCHDOG
    log = structlog.get_logger()
    stuck: frozenset[str] = frozenset()
    while True:
        await asyncio.sleep(pause_us / SECOND_US)
        late = frozenset(beats.late())
        for name in sorted(late - stuck):
            log.error(WORKER_STUCK, worker=name)
        for name in sorted(stuck - late):
            log.info(WORKER_BACK, worker=name)
        stuck = late
        if beats.stroke():
            notifier.watchdog()
        flush_suppressed()


# ---------------------------------------------------------------------------------------------------------- signals


@contextlib.contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`. SIGHUP is ignored until `on_hangup` takes it. Needs the running loop."""
    with _handler(signal.SIGTERM, stop.set), _handler(signal.SIGINT, stop.set), on_hangup(lambda: None):
        yield


@contextlib.contextmanager
def on_hangup(reload: Callable[[], object]) -> Iterator[None]:
    """SIGHUP calls `reload` on the loop (it only starts what it wants: an event, a task of the group)."""
    with _handler(signal.SIGHUP, reload):
        yield


@contextlib.contextmanager
def _handler(number: signal.Signals, act: Callable[[], object]) -> Iterator[None]:
    """One handler of the running loop; the one before comes back."""
    loop = asyncio.get_running_loop()
    stack = _HANDLERS.setdefault(number, [])
    before = signal.getsignal(number)
    stack.append(act)
    loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        stack.remove(act)
        if stack:
            loop.add_signal_handler(number, stack[-1])
        else:
            loop.remove_signal_handler(number)
            signal.signal(number, before)


_HANDLERS: dict[signal.Signals, list[Callable[[], object]]] = {}


# ------------------------------------------------------------------------------------------------------------- log


@dataclass(slots=True)
class _Window:
    second: int
    passed: int
    suppressed: int


class RateLimit:
    """A structlog processor: at most `lines` lines a second of one event name; the next to pass counts the others."""

    def __init__(self, now_us: Callable[[], int], lines: int = LINES_PER_SECOND) -> None:
        self._now_us = now_us
        self._lines = lines
        self._windows: dict[str, _Window] = {}

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        cause = f"{event.get('event')}|{event.get('logger', '')}"
        second = self._now_us() // SECOND_US
        window = self._windows.get(cause)
        if window is None:
            if len(self._windows) >= CAUSES_MAX:
                self._windows.pop(next(iter(self._windows)))
            window = self._windows[cause] = _Window(second, 0, 0)
        if second != window.second:
            window.second, window.passed = second, 0
        if window.passed >= self._lines:
            window.suppressed += 1
            raise structlog.DropEvent
        window.passed += 1
        if window.suppressed:
            event["suppressed"], window.suppressed = window.suppressed, 0
        return event

    def take_suppressed(self) -> dict[str, int]:
        """Lines held back by event name that no later line has told of yet; they count as told from now on."""
        taken: dict[str, int] = {}
        second = self._now_us() // SECOND_US
        for cause, window in list(self._windows.items()):
            if window.second != second:
                del self._windows[cause]
                if window.suppressed:
                    name = cause.partition("|")[0]
                    taken[name] = taken.get(name, 0) + window.suppressed
        return taken


_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)?$|secret$|token$|credential|authori[sz]ation|cookie|private_?key|api_?key", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(\w[\w+.-]*://[^/\s:@'\"]*:)[^@\s'\"]+@")
_HIDDEN: set[str] = set()
MASK = "***"


def hide(secret: str) -> None:
    """From now on this value is masked wherever it would occur in the log."""
    if len(secret) >= SECRETS_MIN_CHARACTERS:
        _HIDDEN.add(secret)


def mask_secrets(_logger: Any, _method: str, event: Event) -> Event:
    """A structlog processor: see rule 3."""
    for key, value in event.items():
        event[key] = MASK if _SECRET_KEY.search(key) and value not in (None, "") else _masked(value)
    return event


def _masked(value: object) -> object:
    if isinstance(value, BaseException):
        return _masked(str(value))
    if isinstance(value, str):
        text = _URL_PASSWORD.sub(rf"\1{MASK}@", value)
        for secret in _HIDDEN:
            text = text.replace(secret, MASK)
        return text
    if isinstance(value, Mapping):
        return {
            key: MASK if _SECRET_KEY.search(str(key)) and each not in (None, "") else _masked(each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked(each) for each in value]
    return value


_limits: list[RateLimit] = []


def flush_suppressed() -> None:
    """Say how many lines were held back of causes that have gone quiet since."""
    for limit in _limits:
        for name, count in limit.take_suppressed().items():
            structlog.get_logger().warning(LINES_SUPPRESSED, cause=name, count=count)


def configure_logging(
    level: str,
    clock: Clock,
    *,
    form: Form = "auto",
    stream: TextIO | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Send the log to stderr: for people on a terminal, else one JSON object a line.

    level: debug, info, warning or error. form: auto asks the stream. Under journald each line begins with its priority
    (`<4>`), which journald takes off again, so that `journalctl -p warning` works. Libraries that use `logging` come
    along as the event `library`, from WARNING upwards.
    """
    stream = sys.stderr if stream is None else stream
    console = form == "console" or (form == "auto" and stream.isatty())
    limit = RateLimit(clock.monotonic_us)
    _limits[:] = [limit]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        limit,
        structlog.processors.TimeStamper(fmt="iso", utc=not console),
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    rendered: list[structlog.typing.Processor]
    if console:
        # A traceback is text before the secrets are masked, so the renderer gets nothing to format by itself.
        plain = structlog.dev.plain_traceback
        rendered = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain, pad_event_to=24)]
    else:
        rendered = [_to_json]
        if _is_journal(stream, environment):
            rendered.append(_with_priority)
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_FromLibraries()]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


class _FromLibraries(logging.Handler):
    """Lets the vendor libraries speak through the same log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        fields: dict[str, Any] = {"logger": record.name, "text": record.getMessage()}
        if record.exc_info and record.exc_info[0]:
            fields["exc_info"] = record.exc_info
        log.log(record.levelno, LIBRARY, **fields)


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def _to_json(_logger: Any, method: str, event: Event) -> str:
    # ts and event first: that is what people look for in a raw line
    first = {"ts": event.pop("timestamp", None), "level": event.pop("level", method), "event": event.pop("event", "")}
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(first | dict(event), default=str, option=options).decode()


def _with_priority(_logger: Any, method: str, event: Any) -> str:
    return f"<{_PRIORITIES.get(method, 6)}>{event}"


def _is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether this stream is the one that journald opened for us: $JOURNAL_STREAM, systemd.exec(5)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
