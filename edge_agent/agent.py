"""The composition root: a configuration becomes objects, and one TaskGroup runs them until it is told to stop.

Rule 1: everything that can be wrong is found before anything starts; after that only a person or the host ends it.
Rule 2: a changed configuration is checked whole, then taken over between two beats; a broken one changes nothing.
"""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from edge_agent import (
    certificates,
    control,
    diskspace,
    downtime,
    judge,
    plugins,
    poller,
    resume,
    service,
    snapshot,
    texts,
)
from edge_agent import config as configuration
from edge_agent.board import Board, BoardMachine, BoardSignal
from edge_agent.broker import NoBrokerError, open_broker
from edge_agent.clock import AgentTime, HostClock, SystemClock, boot_id, kernel_synchronised
from edge_agent.config import Config, ConfigErrors, SecretError
from edge_agent.configuration.differences import differences
from edge_agent.contract import SECOND_US, Quality
from edge_agent.exporter import Exporter, Target
from edge_agent.health import Meter
from edge_agent.messages import topics as messages
from edge_agent.mqtt import Link, LinkSettings, content
from edge_agent.pipeline import MACHINE_TOPICS, TICK_EVERY_S, Pipeline
from edge_agent.plant import CLOCK, DISK, OWN, Plant, compile_plant, host_name
from edge_agent.poller import Line, Poller
from edge_agent.publisher import STATUS, Connect, Publisher
from edge_agent.records import Event, EventKind, Loss, Span, WarningState
from edge_agent.store.committed import Committed
from edge_agent.store.disk import LEFTOVERS, LIFE, TICKED
from edge_agent.store.disk import State as StoreState
from edge_agent.store.history import History, open_history
from edge_agent.store.journal import FILE as STORE_FILE
from edge_agent.store.journal import WAITING_MAX, Store, open_store
from edge_agent.store.notes import DeviceNotes
from edge_agent.timekeeping import STEP_US, Change, Timekeeper

if TYPE_CHECKING:
    from edge_agent.web.app import Web

log = structlog.get_logger(__name__)

HEALTH = "health"
HEALTH_EVERY_S = 10.0
WATCH_EVERY_S = 2.0
DOWN_MAX_US = 3_600 * SECOND_US
"""The most that a stop counts as time that passed (contract §6, `time`)."""
STOP_S = 2.0
"""How long the broker may take to hear the last of us; what it does not hear waits in the store."""
# A configuration of thousands of signals is millions of objects that live for months: looking through them for garbage
# takes a tenth of a second each time, so they are frozen, and nobody looks while they are made (`gc`).
SWITCH_S = 0.0005
TURN_MAX_S = 60.0
"""A turn of the store or the publisher that takes longer is a hang: a disk may be slow, but not for a minute."""
ERRORS_TOLD = 20
"""Errors of a refused configuration in the log and in the status; `check` tells all."""
DONE, WRONG_CONFIG = 0, 2

OnEvent = Callable[[dict[str, Any]], None]
OnReady = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Host:
    """What an agent finds where it runs: clocks, the drivers there are, and the way to a broker. A simulation gives its own.

    synchronised, boot: see clock.kernel_synchronised, clock.boot_id.
    """

    clock: HostClock = field(default_factory=SystemClock)
    registry: plugins.Plugins = field(default_factory=plugins.installed)
    connect: Connect = Link
    synchronised: Callable[[], bool | None] = kernel_synchronised
    boot: Callable[[], str] = boot_id
    turn_s: float = TICK_EVERY_S
    """How often the agent looks whether time has passed; seldom, where weeks are simulated."""


async def run(
    config_path: Path,
    *,
    stop: asyncio.Event | None = None,
    on_event: OnEvent | None = None,
    on_ready: OnReady | None = None,
    host: Host | None = None,
) -> int:
    """The daemon, until `stop` is set. Returns the exit status.

    on_event: gets each warning event as contract §2 writes it, after it was journalled. on_ready: gets
    `{"web": url or None, "mqtt": url}` once everything runs.
    """
    host = host or Host()
    found = _configuration(config_path, host.registry)
    if found is None:
        return WRONG_CONFIG
    # A changed configuration is read in a thread: Python should not let the loop wait 5 ms for each turn beside it.
    sys.setswitchinterval(SWITCH_S)
    agent = _Agent(config_path, found, stop or asyncio.Event(), on_event, on_ready, host)
    try:
        return await agent.run()
    except (control.AlreadyRunning, SecretError, NoBrokerError, OSError) as error:
        _complain([f"edge-agent: {_words(error)}"])
        return WRONG_CONFIG


def _words(error: Exception) -> str:
    """What the system refused, and of which file or folder."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


@dataclass(frozen=True, slots=True)
class _Found:
    """What was read of the file at start: a configuration, or errors and where the last good one may lie."""

    loaded: configuration.Loaded | None
    errors: tuple[configuration.ConfigError, ...]
    data_dir: Path
    watched: tuple[Path, ...]
    """The files that were read, and folders from which more may be included."""


def _configuration(path: Path, registry: plugins.Plugins) -> _Found | None:
    """Read the file. None, after saying why, when there is nothing to run with."""
    try:
        loaded = configuration.load(path, registry)
    except ConfigErrors as error:
        _complain(map(str, error.errors))
        data_dir = configuration.data_dir_of(path, STORE_FILE)
        if not (data_dir / STORE_FILE).exists():
            _complain([_nothing_to_run_with(path)])
            return None
        return _Found(None, tuple(error.errors), data_dir, (path, *error.files, *error.folders))
    if loaded.config.mqtt is None or loaded.config.for_recordings:
        _complain([f"{path}: has no connections or no mqtt: it is for recordings (edge-agent replay), not for run"])
        return None
    return _Found(loaded, (), loaded.config.agent.data_dir, (*loaded.files, *loaded.folders))


def _nothing_to_run_with(path: Path) -> str:
    return f"edge-agent: {path} is not valid and no earlier configuration is kept: nothing to run with"


def _complain(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


@dataclass(slots=True)
class _Running:
    """A poller with its task and its pulse."""

    poller: Poller
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Broker:
    """A broker inside the agent. asked: as the configuration says it; url: where it is."""

    asked: str
    url: str
    stack: AsyncExitStack


@dataclass(slots=True)
class _Watched:
    """What the file watcher saw last."""

    stamps: dict[Path, tuple[int, int]] = field(default_factory=dict)
    pending: dict[Path, tuple[int, int]] | None = None


class _Agent:
    """Everything that one run holds together."""

    def __init__(
        self,
        path: Path,
        found: _Found,
        stop: asyncio.Event,
        on_event: OnEvent | None,
        on_ready: OnReady | None,
        host: Host,
    ) -> None:
        self.path, self.found, self.stop, self.on_event, self.on_ready = path, found, stop, on_event, on_ready
        self.host, self.registry = host, host.registry
        self.clock = Timekeeper(host.clock, host.synchronised, host.boot)
        self.detectors = plugins.detectors()
        self.beats = service.Heartbeats(self.clock)
        self.notifier = service.Notifier.from_environment()
        self.since = self.clock.wall_us()
        self.errors: list[configuration.ConfigError] = list(found.errors)
        self.files = found.watched
        self.watched = _Watched()
        self.pollers: dict[str, _Running] = {}
        self.brokers: list[_Broker] = []
        self.board = Board()
        self.meter = Meter(self.clock)
        self.exporter = Exporter(self.clock)
        self.told_states: dict[str, str] = {}
        self.health_due_us = 0
        self.web: Web | None = None
        self.web_url: str | None = None
        self.retained: dict[str, bytes] = {}
        self.leftovers: set[str] = set()
        """Whole topics of an earlier configuration that nobody writes any more: cleared at the broker."""
        self.learned: poller.Memory = {}
        self.reloading = asyncio.Lock()
        self.untold: downtime.Untold | None = None
        self.life = downtime.Life("", 0)
        self.certificates: dict[str, Loss] = {}
        self.losses: dict[str, Loss] = {}
        """What is to be told of the host, by its name in the agent's own machine (plant.host_name)."""
        self.certificates_soon = asyncio.Event()
        """A line came or went, or a person has reloaded: the certificates may be others."""

    # --- start and end ----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        handlers: dict[str, control.Handler] = {}
        async with AsyncExitStack() as stack:
            self.door = await stack.enter_async_context(control.open_control(self.found.data_dir, handlers))
            progress = service.Progress(self.notifier, self.clock)
            self.store: Store = stack.enter_context(
                open_store(self.found.data_dir, self.clock, progress.made, self.clock.boot)
            )
            self.store.keep_for_history()
            self.history: History = stack.enter_context(open_history(self.found.data_dir, self.clock))
            if not self._choose():
                return WRONG_CONFIG
            self._limit_store()
            lines = self._restore()
            await self._open_doors(stack)
            handlers.update(status=self._on_status, reload=self._on_reload)
            with service.on_hangup(self.reload_soon.set):
                async with asyncio.TaskGroup() as self.tasks:
                    await self._live(lines)
        return DONE

    def _choose(self) -> bool:
        """Run with what the file says, or with the last good configuration when it is broken."""
        if self.found.loaded is not None:
            self.config, self.sha = self.found.loaded.config, self.found.loaded.sha
            for note in self.found.loaded.notes:
                log.info("config_note", note=note)
            if missing := configuration.missing_secrets(self.found.loaded):
                _complain(map(str, missing))
                return False
            return True
        kept = self.store.load_config()
        if kept is None:
            _complain([_nothing_to_run_with(self.path)])
            return False
        text, self.sha = kept
        try:
            self.config = configuration.unpack(text, self.registry)
        except ValueError as error:
            _complain([f"edge-agent: the last good configuration cannot be used: {error}"])
            return False
        self._tell_refusal()
        for ref in configuration.secrets_of(self.config):
            configuration.secret(ref, self.config)  # what cannot be had is told before anything starts
        return True

    def _limit_store(self) -> None:
        kept = self.config.store
        self.store.limit(kept.max_size, kept.max_age_us, kept.commit_every_us)
        self.history.limit(kept.history_keep_us, kept.history_max_size)
        out = kept.history_export
        self.exporter.use(Target(self.config.agent.id, self.found.data_dir, out) if out is not None else None)

    def _restore(self) -> list[poller.Line]:
        """The judge's state as it was when the journal ends, brought to the present configuration; what is to be polled."""
        recovery = self.store.recovery()
        known_us = self.store.floor_us
        self.clock.trust(known_us)
        wall = self.clock.wall_us()
        self.last_wall_us = recovery.last_wall_us
        self.store.on_home, self.store.ends_of = self._at_home, self._ends_of
        last_us, right = self._begin_time(known_us, recovery.last_wall_us)
        down = 0 if last_us is None else max(0, wall - last_us)
        start = wall if recovery.last_t_us is None else recovery.last_t_us + min(down, DOWN_MAX_US)
        self.time = AgentTime(self.clock, start)
        unset = 0 if self.clock.is_set else self.store.begin_unset(self.clock.base_us, known_us)
        plant = compile_plant(self.config, self.detectors)
        text = configuration.pack(self.config)
        kept_text = kept[0] if (kept := self.store.load_config()) else None
        last = self._old_config(kept_text, text)
        # Where no snapshot can be read, what the store has was judged by the configuration that it keeps.
        same = recovery.snapshot is None or recovery.config_json == kept_text
        old = self._old_plant(last if same else self._old_config(recovery.config_json, text), plant)
        rows: dict[str, int] = {}
        state = resume.replayed(old, recovery, rows, self.store.load_text(TICKED))
        orphans: list[Event] = []
        if old is not plant:
            state, orphans = snapshot.migrate(old, state, plant)
        self.board.use(_board_machines(plant))
        self.store.use_layouts([machine.layout for machine in plant.machines])
        self.leftovers = set(filter(None, self.store.load_text(LEFTOVERS).split("\n")))
        self.learned = DeviceNotes(self.store)
        for name in set(self.learned) - set(self.config.connections):
            del self.learned[name]
        self._leave_behind(last)
        self.store.save_config(text, self.sha)
        self.pipeline = Pipeline(
            plant, state, text, self.sha, self.store, self.board, self.clock, self.time, self._retain
        )
        self.pipeline.unset = unset
        self.pipeline.clock_set(right)
        self.pipeline.begin(orphans)
        # Or whoever is killed again and again would judge all of it again, each time more; and after a crash the old plant
        # would judge what comes now, or under the epoch of before.
        self.pipeline.snapshot()
        before = downtime.life_of(self.store.load_text(LIFE))
        life = downtime.Life(self.clock.boot, self.time.base_us)
        self.began_us, self.began_unset = self.clock.monotonic_us(), unset
        lines = poller.lines(self.config, plant, self.registry)
        ended = downtime.Before(before, rows, wall if last_us is None else last_us)
        known = not unset or downtime.is_countable(ended, life, self.began_us)
        self.untold = before.untold if before is not None and before.boot == life.boot != "" else None
        if not known and self.untold is None and known_us is not None:
            self.untold = downtime.Untold(known_us, unset)
        self._keep_life(life)
        if recovery.last_t_us is not None:
            gap = downtime.gap(lines, ended, life, self.began_us, wall) if known else None
            self.pipeline.resume(gap, life.base_us + self.began_us)
        self._tell_down_time(lines, right)
        return lines

    def _keep_life(self, life: downtime.Life) -> None:
        self.life = replace(life, untold=self.untold)
        self.store.save_text(LIFE, self.life.text(), soon=False)

    def _begin_time(self, known_us: int | None, last_wall_us: int | None) -> tuple[int | None, list[Span]]:
        """When the last run ended by the clock of now (UTC µs), and the spans of it whose stamps can be put right now.

        known_us: the last time that a set clock has shown.
        """
        in_doubt = self.store.last_in_doubt
        by = self.store.note_base(self.clock.base_us)
        if in_doubt is None:
            stepped = self.clock.is_set and abs(by) >= STEP_US and last_wall_us is not None
            return (last_wall_us + by if stepped and last_wall_us is not None else last_wall_us), []
        if not self.clock.is_set:
            # Within one run of the host its clock has gone on; over another start nobody knows.
            return (last_wall_us if in_doubt.boot == self.clock.boot != "" else None), []
        right = self.store.put_right(self.clock.base_us, self.clock.wall_us())
        ends = [span.to_us + span.by_us for span in right if span.to_us is not None and span.by_us is not None]
        return max(ends, default=known_us), right

    def _at_home(self, found: StoreState, numbers: dict[str, tuple[str, int]]) -> None:
        """The disk has refused since the start and takes the journal now. found: how far it had come."""
        judge.numbered(self.pipeline.state, numbers)
        if self.last_wall_us is None:
            lines = [each.poller.line for each in self.pollers.values()]
            if self.clock.is_set:
                down = downtime.by_wall(lines, found.last_wall, self.since)
                self.store.put((), gaps=[down] if down else ())
            elif found.last_wall is not None:
                self.untold = downtime.Untold(found.last_wall, self.began_unset)
                self._keep_life(self.life)
        if not self.clock.is_set:
            self.clock.trust(self.store.floor_us)
        self.publisher.look_again()
        self.pipeline.snapshot()

    def _ends_of(self, kept: bytes | None, told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """How the warnings end that stood when the last run ended, of which this one could not know.

        What is outside its norm now has a warning of its own. kept: that run's snapshot; told: its events since.
        """
        try:
            stood = {event.id: messages.event_plain(event) for event in (snapshot.standing(kept) if kept else ())}
        except snapshot.SnapshotDamaged as error:
            log.error("snapshot_damaged", fault=str(error))
            stood = {}
        stood |= {event["id"]: event for event in told}
        ts, language = messages.to_utc(self.clock.wall_us()), self.config.agent.language
        return [
            {**event, "event": EventKind.CLEARED, "state": WarningState.NORMAL, "ts": ts, "value": None,
             "message": texts.not_known(language, event["signal"])}
            for event in stood.values() if event["state"] != WarningState.NORMAL
        ]  # fmt: skip

    def _old_config(self, kept: str | None, now: str) -> Config | None:
        """The configuration of a text that was kept; None where there is none that can be read. now: the text of the present one,
        which most often it is.
        """
        if kept == now:
            return self.config
        try:
            return configuration.unpack(kept, self.registry) if kept is not None else None
        except ValueError as error:
            log.error("old_config_unreadable", fault=str(error))
            return None

    def _leave_behind(self, old: Config | None) -> None:
        """Retained topics of machines, or of a root, that are no longer in the configuration."""
        self.leftovers |= _retained_topics(old) if old is not None else set()
        self.leftovers -= _retained_topics(self.config)
        self._keep_leftovers()

    def _keep_leftovers(self) -> None:
        self.store.save_text(LEFTOVERS, "\n".join(sorted(self.leftovers)))

    def _cleared(self, topic: str) -> None:
        self.leftovers.discard(topic)
        self._keep_leftovers()

    def _old_plant(self, old: Config | None, plant: Plant) -> Plant:
        if old is None or old is self.config:
            return plant
        try:
            return compile_plant(old, self.detectors)
        except ValueError as error:
            log.error("old_config_unreadable", fault=str(error))
            return plant

    async def _open_doors(self, stack: AsyncExitStack) -> None:
        self.reload_soon = asyncio.Event()
        stack.push_async_callback(self._close_brokers)
        self.broker_url = await self._broker_of(self.config)
        if self.config.web is not None:
            from edge_agent.web.app import open_web  # noqa: PLC0415  # a tenth of the start, and not each agent has a page

            web = await stack.enter_async_context(
                open_web(
                    self.config.web.host,
                    self.config.web.port,
                    self.board,
                    self.pipeline,
                    self.clock,
                    self.found.data_dir,
                )
            )
            self.web, self.web_url = web, web.url

    async def _broker_of(self, config: Config) -> str:
        """The address of the first broker; the one inside the agent is started first. Raises NoBrokerError, OSError."""
        assert config.mqtt is not None
        url = config.mqtt.url
        if not url.startswith("embedded:") or (self.brokers and self.brokers[-1].asked == url):
            return self.brokers[-1].url if url.startswith("embedded:") else url
        stack = AsyncExitStack()
        info = await stack.enter_async_context(open_broker(int(url.rpartition(":")[2].strip("/") or 1883)))
        self.brokers.append(_Broker(url, info.url, stack))
        return info.url

    async def _close_old_broker(self) -> None:
        """Brokers inside the agent that the configuration no longer asks for."""
        assert self.config.mqtt is not None
        wanted = self.config.mqtt.url
        for each in [each for each in self.brokers if each.asked != wanted]:
            self.brokers.remove(each)
            await each.stack.aclose()

    async def _close_brokers(self) -> None:
        while self.brokers:
            await self.brokers.pop().stack.aclose()

    async def _live(self, lines: Sequence[poller.Line]) -> None:
        """Start everything, wait for the end, and end it in the order in which nothing is lost."""
        longest = self.config.store.commit_every_us + round(TURN_MAX_S * SECOND_US)
        store_task = self.tasks.create_task(self.store.run(self.beats.worker("store", longest)))
        self.store.on_committed.append(self._committed)
        self._start_publisher()
        self.pipeline.publish_all()
        self._poll(lines, self.began_us)
        helpers = [
            self.tasks.create_task(each)
            for each in (self._turn(), self._keep_health(), self._watch(), self._reload_when_asked(), self._keep_certificates(),
                         self._keep_disk(), self.door.keep_open(), self.history.run(self.store), self.exporter.keep(),
                         service.keep_watchdog(self.notifier, self.beats, service.watchdog_us(os.environ, os.getpid())))
        ]  # fmt: skip
        if self.web is not None:
            helpers.append(self.tasks.create_task(self.web.run()))
        self._tell_status()
        self.notifier.ready(f"{len(self.pollers)} connections, {self.pipeline.plant.signals} signals")
        log.info("agent_started", config=self.sha, signals=self.pipeline.plant.signals, web=self.web_url)
        self._show(self.on_ready, {"web": self.web_url, "mqtt": self.broker_url})
        gc.freeze()
        gc.enable()
        try:
            await self.stop.wait()
        finally:
            self.notifier.stopping()
            self.stop.set()
            await self.reloading.acquire()  # one that is under way ends first; none begins any more
            await self._end([*(each.task for each in self.pollers.values()), *helpers])
            self.pipeline.close()
            await self.store.stop()
            await store_task  # the last commit comes before the publisher's last look
            await self.publisher.stop(STOP_S)
            await self._end([self.publisher_task])
            log.info("agent_stopped")

    @staticmethod
    async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- what runs beside the path ----------------------------------------------------------------------------------

    def _poll(self, lines: Iterable[Line], since_us: int | None = None) -> None:
        """Start, keep, change or end pollers so that exactly these lines are polled; their beats count from `since_us` on."""
        wanted = {line.name: line for line in lines}
        ending: dict[str, asyncio.Task[None]] = {}
        for name in list(self.pollers):
            running = self.pollers[name]
            if name in wanted and running.poller.use(wanted[name]):
                self._worker(wanted.pop(name))
                continue
            running.task.cancel()
            ending[name] = self.pollers.pop(name).task
            self.beats.forget(f"poller {name}")
        for name, line in wanted.items():
            stroke = self._worker(line)
            taken, missed = self.pipeline.take, self.pipeline.missed
            each = Poller(
                line, self.clock, self.time, taken, missed, stroke,
                memory=self.learned, belated=self.pipeline.belated, since_us=since_us,
            )  # fmt: skip
            running_now = self._after(ending.get(name), each)
            self.pollers[name] = _Running(each, self.tasks.create_task(running_now, name=f"poller {name}"))

    @staticmethod
    async def _after(before: asyncio.Task[None] | None, poller_: Poller) -> None:
        """Devices with room for one connection want the old one closed before the new one opens."""
        if before is not None:
            await asyncio.wait([before])
        await poller_.run()

    def _worker(self, line: Line) -> service.Beat:
        """The pulse of a line's poller: it turns at each beat, and a beat may wait for its read."""
        longest = max(signal.every_us for signal in line.signals)
        return self.beats.worker(f"poller {line.name}", longest + round(2 * poller.READ_LIMIT_S * SECOND_US))

    def _start_publisher(self) -> None:
        settings, root, connect = link_of(self.config, self.broker_url), _root(self.config), self.host.connect
        self.publisher = Publisher(self.store, settings, root, self.clock, self._renewed_link, connect)
        self.publisher.on_cleared = self._cleared
        stroke = self.beats.worker("publisher", round(TURN_MAX_S * SECOND_US))
        self.publisher_task = self.tasks.create_task(self.publisher.run(stroke))
        for topic, payload in self.retained.items():
            self.publisher.set_retained(topic, payload)
        for topic in sorted(self.leftovers):
            self.publisher.clear(topic)

    def _renewed_link(self) -> LinkSettings:
        """With secrets and certificates as they are on disk now. Called in a thread. Raises ValueError."""
        try:
            return link_of(self.config, self.broker_url)
        except SecretError as error:
            raise ValueError(str(error)) from error

    def _retain(self, topic: str, payload: bytes) -> None:
        """The latest of a retained topic, kept here so that a new publisher knows it; empty: cleared."""
        self.retained[topic] = payload
        if hasattr(self, "publisher"):
            self.publisher.set_retained(topic, payload)

    def _committed(self, committed: Sequence[Committed]) -> None:
        for each in committed:
            if each.kind == "warnings":
                event = messages.loads(each.payload(late=False))
                self.board.event(event)
                self._show(self.on_event, event)

    def _show(self, watcher: Callable[[dict[str, Any]], None] | None, about: dict[str, Any]) -> None:
        """Whoever started us may look on. When nobody reads that any more, the agent stops in good order."""
        if watcher is None:
            return
        try:
            watcher(about)
        except OSError as error:
            log.warning("watcher_gone", fault=str(error))
            self.on_event = None
            self.stop.set()

    async def _turn(self) -> None:
        """The pulse of the judge: ticks, snapshots, missed beats."""
        stroke = self.beats.worker("judge")
        while True:
            due = self.clock.monotonic_us() + round(self.host.turn_s * SECOND_US)
            await asyncio.sleep(self.host.turn_s)
            self.meter.lag(self.clock.monotonic_us() - due)
            if (change := self.clock.look()) is not None:
                self._clock_changed(change)
            agent = self.config.agent
            self.losses[host_name(CLOCK, self.config.connections)] = self.clock.loss(agent.language, agent.timezone)
            self.pipeline.lines(
                {name: why for each in self.pollers.values() for name, why in each.poller.lost().items()}
                | self.certificates
                | self.losses
            )
            self.pipeline.turn()
            if self._line_states() != self.told_states and self.clock.monotonic_us() >= self.health_due_us:
                self._tell_health()
            stroke()

    def _clock_changed(self, change: Change) -> None:
        """The wall clock has stepped, or is set now, or not any more. What was taken before belongs to the clock of before."""
        self.pipeline.stepped(change.by_us)
        self.store.stepped(change.by_us, self.clock.base_us)
        self.since += change.by_us
        for running in self.pollers.values():
            running.poller.health.since_us += change.by_us
        self.publisher.stepped(change.by_us)
        if not change.was_set:
            self.store.end_unset(change.was_us)
        floor_us = change.was_us if change.was_set else self.clock.floor_us
        self.pipeline.unset = 0 if change.is_set else self.store.begin_unset(self.clock.base_us, floor_us)
        if change.is_set and not change.was_set:
            right = self.store.put_right(self.clock.base_us, self.clock.wall_us())
            self.pipeline.clock_set(right)
            self._tell_down_time([running.poller.line for running in self.pollers.values()], right)
        self.certificates_soon.set()
        self._tell_status()
        self._tell_health()

    def _tell_down_time(self, lines: Sequence[poller.Line], right: Sequence[Span]) -> None:
        """For how long nobody looked before the host was started anew, now that it is known when that was."""
        untold = self.untold
        if untold is None or not right:
            return
        self.untold = None
        for gap in downtime.stops_before(lines, untold.last_us, right, untold.number):
            self.pipeline.gap(gap)
        self._keep_life(self.life)

    def _line_states(self) -> dict[str, str]:
        return {name: str(running.poller.health.state) for name, running in self.pollers.items()}

    async def _keep_health(self) -> None:
        while True:
            self._tell_health()
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _keep_certificates(self) -> None:
        """When the certificates end on which the lines rest: hourly, when a line came or went, and when a person reloads."""
        while True:
            self.certificates_soon.clear()
            lines = [each.poller.line for each in self.pollers.values()]
            self.certificates = await asyncio.to_thread(
                certificates.looked, lines, self.clock.wall_us() if self.clock.is_set else 0, self.config.agent.language
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(certificates.LOOK_EVERY_S):
                    await self.certificates_soon.wait()

    async def _keep_disk(self) -> None:
        """Whether the disk takes what is to be kept, and how much room it has left."""
        look_us, refused = 0, False
        space: diskspace.Space | None = None
        while True:
            refusal = self._refusal()
            if self.clock.monotonic_us() >= look_us or refused != (refusal is not None):
                space = await asyncio.to_thread(diskspace.looked, self.found.data_dir)
                look_us, refused = (
                    self.clock.monotonic_us() + round(diskspace.LOOK_EVERY_S * SECOND_US),
                    refusal is not None,
                )
            name = host_name(DISK, self.config.connections)
            before = self.losses.get(name, Loss(Quality.GOOD))
            self.losses[name] = diskspace.told(space, refusal, before, self.config.agent.language)
            await asyncio.sleep(self.host.turn_s)

    def _refusal(self) -> diskspace.Refusal | None:
        store, agent = self.store, self.config.agent
        if store.fault is None:
            return None
        since = texts.moment(store.fault_since_us, self.clock.wall_us(), agent.timezone)
        return diskspace.Refusal(store.fault, since, store.waiting_mb, WAITING_MAX / 1e6)

    def _health(self) -> dict[str, Any]:
        return self.meter.health(
            {name: running.poller.look() for name, running in self.pollers.items()},
            self.publisher.status(),
            {**self.store.status(), "history": self.history.status() | self.exporter.status()},
            self.pipeline.plant,
            self.pipeline.state,
            self._explain,
            self.certificates,
        ) | {"clock": self.clock.health()}

    def _explain(self, machine: str, signal: str, offset: int) -> str:
        """Why the last reading of a signal was bad, as its line knows it."""
        connection = self.config.machines[machine].signals[signal].connection
        running = self.pollers.get(connection) if connection else None
        return "" if running is None else running.poller.explain(machine, offset)

    def _tell_health(self) -> None:
        """Every ten seconds, and soon after a line was lost or found, but not more often than once a second."""
        states, self.health_due_us = self._line_states(), self.clock.monotonic_us() + SECOND_US
        if states != self.told_states:
            self.certificates_soon.set()
        self.told_states = states
        health = self._health()
        self._retain(HEALTH, messages.health(self.clock.wall_us(), health))
        self.board.health(health)

    def _tell_status(self) -> None:
        """The retained status; what was refused stands in it until a valid configuration is taken over."""
        about: dict[str, Any] = {
            "state": "online",
            "since": messages.to_utc(self.since),
            "version": metadata.version("edge-agent"),
            "config": self.sha,
            "signals": self.pipeline.plant.signals,
        }
        if self.errors:
            about["refused"] = [str(error) for error in self.errors[:ERRORS_TOLD]]
        self.publisher.set_status(about)
        agent = self.config.agent
        self.board.status(
            {**about, "agent": agent.id, "site": agent.site, "timezone": agent.timezone, "language": agent.language}
        )
        self.board.config_errors([str(error) for error in self.errors])

    # --- another configuration --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at the files now and then; take them over once they have stood still for a look."""
        self.watched.stamps = _stamps(self.files)
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = await asyncio.to_thread(_stamps, self.files)
            if now == self.watched.stamps:
                self.watched.pending = None
            elif now == self.watched.pending:
                self.reload_soon.set()
            else:
                self.watched.pending = now

    async def _reload_when_asked(self) -> None:
        while True:
            await self.reload_soon.wait()
            self.reload_soon.clear()
            await self.reload()

    async def _on_reload(self, _request: dict[str, Any]) -> control.Answer:
        if self.stop.is_set():
            return {"ok": False, "error": "the agent is stopping: nothing is taken over"}
        changed = await self.reload()
        if self.errors:
            return {"ok": False, "errors": [asdict(error) for error in self.errors]}
        return {"ok": True, "config": self.sha, "changed": changed}

    async def reload(self) -> list[str]:
        """Check the changed files whole and go over to them; what changed, in words. A broken file changes nothing."""
        if self.stop.is_set():
            return []
        async with self.reloading:
            self.notifier.reloading(self.clock.monotonic_us())
            try:
                return await self._reload()
            finally:
                self.watched.stamps, self.watched.pending = _stamps(self.files), None
                self.certificates_soon.set()
                self._tell_status()
                self.notifier.ready(f"{len(self.pollers)} connections, {self.pipeline.plant.signals} signals")

    async def _reload(self) -> list[str]:
        gc.disable()
        try:
            return await self._load_and_use()
        finally:
            # What was frozen is never looked through: the old configuration would stay for ever.
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            gc.enable()

    async def _load_and_use(self) -> list[str]:
        try:
            loaded = await asyncio.to_thread(configuration.load, self.path, self.registry)
        except ConfigErrors as error:
            self.files = (self.path, *error.files, *error.folders)
            return self._refuse(error.errors)
        self.files = (*loaded.files, *loaded.folders)
        if loaded.config.mqtt is None or loaded.config.for_recordings:
            return self._refuse([self._fault("", "has no connections or no mqtt: it is for recordings")])
        if loaded.config.agent.data_dir != self.config.agent.data_dir:
            text = f"cannot change while the agent runs (it works on {self.config.agent.data_dir}): restart it"
            return self._refuse([self._fault("agent.data_dir", text)])
        if missing := configuration.missing_secrets(loaded):
            return self._refuse(missing)
        try:
            broker_url = await self._broker_of(loaded.config)
        except (NoBrokerError, OSError) as error:
            return self._refuse([self._fault("mqtt.url", str(error))])
        # Thousands of signals take a second, and the loop is the plant's.
        plant, lines, text, machines, changed = await asyncio.to_thread(self._prepared, loaded.config)
        link = link_of(loaded.config, broker_url)
        self.errors = []
        rotated = link != self.publisher.settings or any(
            line.settings != self.pollers[line.name].poller.line.settings for line in lines if line.name in self.pollers
        )
        if loaded.sha == self.sha and not changed and not rotated:
            log.info("config_unchanged", config=self.sha)
            return []
        changed = changed or ["secrets: changed"]
        old, self.config, self.sha, self.broker_url = self.config, loaded.config, loaded.sha, broker_url
        self.store.save_config(text, loaded.sha)
        self._limit_store()
        self.pipeline.use(plant, text, loaded.sha)
        self.board.use(machines)
        self._poll(lines)
        self._leave_behind(old)
        gone = {name for name in old.machines if name not in loaded.config.machines}
        self.retained = {t: p for t, p in self.retained.items() if t.partition("/")[0] not in gone}
        if _root(old) != _root(loaded.config) or not self.publisher.use(link):
            await self.publisher.hand_over()
            await self._end([self.publisher_task])
            self._start_publisher()
        await self._close_old_broker()
        for topic in sorted(self.leftovers):
            self.publisher.clear(topic)
        self.pipeline.publish_all()
        log.info("config_taken_over", config=self.sha, changed=len(changed))
        return changed

    def _prepared(self, config: Config) -> tuple[Plant, list[Line], str, list[BoardMachine], list[str]]:
        plant = compile_plant(config, self.detectors)
        lines = poller.lines(config, plant, self.registry)
        return plant, lines, configuration.pack(config), _board_machines(plant), differences(self.config, config)

    def _fault(self, key: str, text: str) -> configuration.ConfigError:
        return configuration.ConfigError(str(self.path), 1, 1, key, None, None, text)

    def _refuse(self, errors: Sequence[configuration.ConfigError]) -> list[str]:
        self.errors = list(errors)
        self._tell_refusal()
        return []

    def _tell_refusal(self) -> None:
        for error in self.errors[:ERRORS_TOLD]:
            log.error("config_refused", error=str(error), running=self.sha)
        if len(self.errors) > ERRORS_TOLD:
            log.error("config_refused", more=len(self.errors) - ERRORS_TOLD, running=self.sha)

    # --- questions --------------------------------------------------------------------------------------------------

    async def _on_status(self, _request: dict[str, Any]) -> control.Answer:
        health = self._health()
        return {
            "ok": True,
            "state": "online",
            "since": messages.to_utc(self.since),
            "version": metadata.version("edge-agent"),
            "config": self.sha,
            "config_file": str(self.path.absolute()),
            "data_dir": str(self.found.data_dir),
            "pid": os.getpid(),
            "signals": self.pipeline.plant.signals,
            "web": self.web_url,
            "mqtt": health["broker"],
            "connections": health["connections"],
            "buffer": health["buffer"],
            "clock": health["clock"],
            "timezone": self.config.agent.timezone,
            "warnings": self.pipeline.active(),
            "errors": [str(error) for error in self.errors],
        }


def _board_machines(plant: Plant) -> list[BoardMachine]:
    return [
        BoardMachine(
            machine.name,
            machine.title,
            machine.area,
            tuple(
                BoardSignal(
                    s.name,
                    s.title,
                    s.unit,
                    s.every_us,
                    judge.advice_of(s, plant.language),
                    s.names,
                    bool(plant.use_uncertain[machine.start + i]),
                )
                for i, s in enumerate(machine.signals)
            ),
        )
        for machine in plant.machines
        if not machine.own
    ]


def link_of(config: Config, broker_url: str) -> LinkSettings:
    """The broker's side of the configuration. Raises SecretError."""
    mqtt = config.mqtt
    assert mqtt is not None
    tls = mqtt.tls
    key = tls.key if tls else None
    first = broker_url if mqtt.url.startswith("embedded:") else mqtt.url
    files = content((tls.ca, tls.cert, key if isinstance(key, Path) else None)) if tls else ""
    return LinkSettings(
        urls=(first, *mqtt.urls),
        client_id=config.agent.id,
        version=mqtt.version,
        username=mqtt.username,
        password=configuration.secret(mqtt.password, config) if mqtt.password else None,
        ca=tls.ca if tls else None,
        cert=tls.cert if tls else None,
        key=configuration.secret(key, config) if isinstance(key, configuration.SecretRef) else key,
        files=files,
    )


def _root(config: Config) -> str:
    assert config.mqtt is not None
    return config.mqtt.root


def _retained_topics(config: Config) -> set[str]:
    """Every topic, whole, that an agent with this configuration retains."""
    root = _root(config)
    machines = {f"{root}/{name}/{topic}" for name in config.machines for topic in MACHINE_TOPICS}
    return {f"{root}/{STATUS}", f"{root}/{HEALTH}", f"{root}/{OWN}/active", *machines}


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """(mtime, size) of the files, and of folders, so that a new file of an `include` is seen too."""
    found = {}
    for path in {*files, *(file.parent for file in files)}:
        try:
            about = path.stat()
            found[path] = (about.st_mtime_ns, about.st_size if path.is_file() else 0)
        except OSError:
            found[path] = (0, 0)
    return found
