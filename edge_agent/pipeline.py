"""The one path of a reading: poller → judge → store → (publisher, board). Plain calls on frames, on the loop's thread.

Rule 1: what is taken within COLLECT_S of the first frame is judged together; a slow device delays nobody.
Rule 2: nobody but this room changes the judge's state; the page and the commands come through `acknowledge`.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import structlog

from edge_agent import judge, snapshot, texts
from edge_agent.board import Board
from edge_agent.clock import AgentTime
from edge_agent.contract import LINE_LOST, SECOND_US, Clock, Frame, Quality
from edge_agent.judge import JudgeState
from edge_agent.messages import topics as messages
from edge_agent.plant import OWN_EVERY_US, Machine, Plant
from edge_agent.records import SET_CLOCK, Command, Event, EventKind, Gap, GapCause, Loss, Span, WarningState
from edge_agent.store.configured import configure
from edge_agent.store.disk import MISSED
from edge_agent.store.journal import Store
from edge_agent.store.stamps import marked

log = structlog.get_logger(__name__)

COLLECT_S = 0.02
SNAPSHOT_EVERY_US = 60 * SECOND_US
TICK_EVERY_S = 0.25
LOST_EVERY_US = SECOND_US
"""A row of the agent's own machine while something is lost, so that its delay matures."""
TICK_GRACE_MAX_US = SECOND_US
"""A tick row comes this much (or half a period) after a frame was due, so that one that is on its way comes first."""
MISSED_TOLD_EVERY_US = 10 * SECOND_US

EVENT_NAMES = {event: f"warning_{event}" for event in EventKind}
MACHINE_TOPICS = ("active", "norms")
"""Retained topics of a machine."""

UNKNOWN = Loss(Quality.HOLD)

Retain = Callable[[str, bytes], None]


class Pipeline:
    """What happens to a frame, in order. `retain` publishes a retained topic, given without the root."""

    def __init__(
        self,
        plant: Plant,
        state: JudgeState,
        config_text: str,
        config_sha: str,
        store: Store,
        board: Board,
        clock: Clock,
        time: AgentTime,
        retain: Retain,
    ) -> None:
        self.plant, self.state = plant, state
        self._config_text, self._config_sha = config_text, config_sha
        self._store, self._board, self._clock, self._time, self._retain = store, board, clock, time, retain
        self._waiting: list[Frame] = []
        self._flush: asyncio.TimerHandle | None = None
        self._last_us: dict[str, int] = dict.fromkeys(plant.by_name, time.now_us())
        self._mode: dict[str, int] = {}
        self._lines: list[int] = []
        self._lines_due = 0
        self._missed = self._missed_kept = 0
        """Rows that are to be told of, and how many of them the store knows."""
        self._missed_from = self._missed_to = self._missed_due = 0
        self._snapshot_due = time.now_us() + SNAPSHOT_EVERY_US
        self.judged_rows = 0
        self.unset = 0
        """The span of a clock that nobody has set, in which frames come now (Frame.unset)."""

    # --- frames -----------------------------------------------------------------------------------------------------

    def take(self, frames: Sequence[Frame]) -> None:
        """Frames as they come; judged together with what else comes within COLLECT_S."""
        self._waiting += self._of_span(frames)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(COLLECT_S, self.flush)

    def _of_span(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        return [replace(frame, unset=self.unset) for frame in frames] if self.unset else frames

    def belated(self, frames: Sequence[Frame]) -> None:
        """Frames of a past that is over: kept and published, marked late; the judge and the page do not see them."""
        self._store.put([judge.belated(self.plant, frame) for frame in frames])

    def flush(self) -> None:
        """Judge what waits, now."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        frames, self._waiting = self._waiting, []
        if frames:
            self._judge(frames)

    def _judge(self, frames: Sequence[Frame]) -> None:
        self.state, judged = judge.step(self.plant, self.state, frames, self._store.epoch)
        events = self._store.put(judged.frames, judged.events)
        judge.numbered(self.state, _numbers(events))
        self._keep_missed()
        self.judged_rows += len(judged.frames)
        touched = {frame.machine: frame for frame in frames}
        for name, frame in touched.items():
            machine = self.plant.by_name[name]
            self._last_us[name] = int(frame.t[-1])
            if not machine.own:
                self._show(machine, frame)
        if events:
            self._tell(events)

    def _show(self, machine: Machine, frame: Frame) -> None:
        mode = int(self.state.mode[machine.index])
        values, quality = judge.readings(self.state, machine)
        if frame.unset:
            quality = marked(replace(frame, quality=quality)).quality
        at = None if frame.at is None else frame.at[-1]
        self._board.frame(machine.name, int(frame.ts[-1]), values, quality, at, judge.mode_name(machine, mode))
        if self._mode.get(machine.name) != mode:
            self._mode[machine.name] = mode
            self._publish_norms(machine, mode)

    def _tell(self, events: Sequence[Event]) -> None:
        standing = judge.active(self.plant, self.state)
        for name in dict.fromkeys(event.machine for event in events):
            self._publish_active(name, standing[name])
        for event in events:
            log.info(
                EVENT_NAMES[event.event],
                machine=event.machine,
                signal=event.signal,
                kind=str(event.kind),
                severity=str(event.severity),
                text=event.message,
            )

    def active(self) -> list[dict[str, object]]:
        """The last event of every standing warning of the plant, as contract §2 writes it."""
        return [messages.event_plain(e) for its in judge.active(self.plant, self.state).values() for e in its]

    # --- retained topics ----------------------------------------------------------------------------------------------

    def publish_all(self) -> None:
        """Norms and active warnings of every machine, and the board: at start and after a reload."""
        standing = judge.active(self.plant, self.state)
        for machine in self.plant.machines:
            mode = int(self.state.mode[machine.index])
            self._mode[machine.name] = mode
            if not machine.own:
                self._publish_norms(machine, mode)
            self._publish_active(machine.name, standing[machine.name])

    def _publish_norms(self, machine: Machine, mode: int) -> None:
        bands = [judge.bands(machine, offset, mode) for offset in range(len(machine.signals))]
        self._board.norms(machine.name, bands)
        state = judge.mode_name(machine, mode)
        norms = {
            signal.name: {"unit": signal.unit, **band, **({"state": state} if state else {})}
            for signal, band in zip(machine.signals, bands, strict=True)
        }
        self._retain(f"{machine.name}/norms", messages.norms(self._clock.wall_us(), self._config_sha, norms))

    def _publish_active(self, name: str, events: Sequence[Event]) -> None:
        self._board.active(name, [messages.event_plain(event) for event in events])
        self._retain(f"{name}/active", messages.active(self._clock.wall_us(), events))

    # --- a new life -------------------------------------------------------------------------------------------------

    def begin(self, orphans: Sequence[Event]) -> None:
        """The configuration with which the agent starts comes into force; orphans: see `removed`."""
        self._configured(orphans, start=True)

    def _configured(self, orphans: Sequence[Event], *, start: bool) -> None:
        """Journal the configuration in its place among the frames, and end the warnings of signals that it no longer has."""
        wall = self._clock.wall_us()
        command = configure(self._config_text, self._config_sha, wall, self._time.now_us(), start=start)
        self._store.put((), [removed(event, wall, self.plant.language) for event in orphans], commands=[command])

    def resume(self, down: Gap | None, now_us: int | None = None) -> None:
        """After a restart: a row BAD `restart` for the time in which nobody looked, and the gap that says so.

        now_us: the agent's time up to which the gap counts.
        """
        now, wall = self._time.now_us() if now_us is None else now_us, self._clock.wall_us()
        self._judge(self._of_span([restart_row(machine, now, wall) for machine in self.plant.machines]))
        gaps = [each for each in (_missed(self._store.load_text(MISSED)), down) if each is not None]
        if gaps:
            self._store.put((), gaps=gaps)
        self._store.save_text(MISSED, "", soon=False)

    def stepped(self, by_us: int) -> None:
        """The wall clock has stepped: what was taken before is judged, and beats that were missed are told by the clock of now."""
        self.flush()
        self._missed_from, self._missed_to = self._missed_from + by_us, self._missed_to + by_us

    def clock_set(self, spans: Sequence[Span]) -> None:
        """The clock is set, and the stamps of these spans are put right: so is what stands since then.

        Journalled in its place among the frames, so that a restart finds the same.
        """
        for span in spans:
            assert span.to_us is not None
            assert span.by_us is not None
            about = {"from_us": span.from_us, "to_us": span.to_us, "from_t": span.from_t, "by_us": span.by_us}
            self.state = judge.set_clock(self.state, **about)
            command = Command(SET_CLOCK, self._clock.wall_us(), self._time.now_us(), "", "", "", {**about})
            self._store.put((), commands=[command])
        if spans:
            for name, standing in judge.active(self.plant, self.state).items():
                self._publish_active(name, standing)

    def gap(self, gap: Gap) -> None:
        """What was lost, as it became known."""
        self._store.put((), gaps=[gap])

    # --- time -------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let time pass where no frame came; take a snapshot when one is due; tell of missed beats."""
        now = self._time.now_us()
        silent = [machine for machine in self.plant.machines if not machine.own and now >= self._tick_due(machine)]
        if silent:
            self.take([_tick(machine, now, self._clock.wall_us()) for machine in silent])
        if now >= self._snapshot_due:
            self.snapshot()
        if self._missed and now >= self._missed_due:
            self._tell_missed()

    def lines(self, told: Mapping[str, Loss]) -> None:
        """Which lines, and parts of lines, are lost now, which certificates end soon, and what is wrong with the host.

        By their names in the agent's own machine. What nobody tells of, and a part of a line that is lost as a whole, are
        not known.
        """
        own = self.plant.own
        if own is None:
            return
        now = self._time.now_us()
        known = [told.get(signal.name, UNKNOWN) for signal in own.signals]
        codes = [each.why for each in known]
        if codes == self._lines and now < self._lines_due:
            return
        # What is said of a certificate or of the host has no delay that must mature, and stands for weeks: its words go
        # where it changes.
        stands = [
            signal.in_words and code == before
            for signal, code, before in zip(own.signals, codes, self._lines or [-1] * len(codes), strict=True)
        ]
        lost = any(code for signal, code in zip(own.signals, codes, strict=True) if not signal.in_words)
        self._lines, self._lines_due = codes, now + (LOST_EVERY_US if lost else OWN_EVERY_US)
        unknown = np.array([[code == Quality.HOLD for code in codes]], dtype=np.bool_)
        frame = _row(own, now, self._clock.wall_us(), Quality.GOOD)
        frame.values[:] = np.where(unknown, np.nan, np.array([codes], dtype=np.float64))
        frame.quality[unknown] = Quality.DISCONNECTED | LINE_LOST
        words = tuple("" if same else each.words for same, each in zip(stands, known, strict=True))
        self.take([replace(frame, tick=False, words=(words,))])

    def _tick_due(self, machine: Machine) -> int:
        return self._last_us[machine.name] + machine.every_us + min(machine.every_us // 2, TICK_GRACE_MAX_US)

    def snapshot(self) -> None:
        """Keep the judge's state, so that a restart has little to judge again. Everything taken so far lies before it."""
        self.flush()
        self._snapshot_due = self._time.now_us() + SNAPSHOT_EVERY_US
        self._store.put_snapshot(snapshot.dump(self.plant, self.state), self._config_text)

    def missed(self, connection: str, rows: int, from_ts: int, to_ts: int) -> None:
        """Beats that were not taken: told as a gap, gathered for some seconds."""
        log.debug("beats_missed", connection=connection, rows=rows)
        if not self._missed:
            self._missed_from, self._missed_to = from_ts, to_ts
            self._missed_due = self._time.now_us() + MISSED_TOLD_EVERY_US
        self._missed += rows
        self._missed_from, self._missed_to = min(self._missed_from, from_ts), max(self._missed_to, to_ts)

    def _tell_missed(self) -> None:
        self._store.put((), gaps=[Gap(GapCause.OVERLOAD, self._missed, self._missed_from, self._missed_to)])
        self._missed = 0
        self._keep_missed()

    def _keep_missed(self) -> None:
        """In one transaction with the rows that came after them: a kill loses both or neither."""
        if self._missed != self._missed_kept:
            plain = [self._missed, self._missed_from, self._missed_to]
            self._store.save_text(MISSED, json.dumps(plain) if self._missed else "", soon=False)
            self._missed_kept = self._missed

    def close(self) -> None:
        """The last of everything: what waits is judged, missed beats told, the state kept."""
        self.flush()
        if self._missed:
            self._tell_missed()
        self.snapshot()

    # --- people -----------------------------------------------------------------------------------------------------

    def acknowledge(self, warning: str, by: str, comment: str) -> dict[str, object]:
        """See judge.acknowledge; the command is journalled in its place among the frames."""
        self.flush()
        ts = self._clock.wall_us()
        self.state, event = judge.acknowledge(self.plant, self.state, warning, by, comment, ts)
        command = Command("acknowledge", ts, self._time.now_us(), warning, by, comment)
        (event,) = self._store.put((), [event], commands=[command])
        judge.numbered(self.state, _numbers([event]))
        self._tell([event])
        return messages.event_plain(event)

    # --- another configuration --------------------------------------------------------------------------------------

    def use(self, plant: Plant, config_text: str, config_sha: str) -> None:
        """Go over to another plant between two beats; unchanged signals keep their readings and warnings."""
        self.flush()
        self.state, orphans = snapshot.migrate(self.plant, self.state, plant)
        self.plant = plant
        self._config_text, self._config_sha = config_text, config_sha
        self._store.use_layouts([machine.layout for machine in plant.machines])
        now = self._time.now_us()
        self._last_us = {name: self._last_us.get(name, now) for name in plant.by_name}
        self._lines = []
        self._configured(orphans, start=False)
        self.snapshot()


def _numbers(events: Iterable[Event]) -> dict[str, tuple[str, int]]:
    return {event.id: (event.epoch, event.seq) for event in events}


def _missed(text: str) -> Gap | None:
    """The missed beats of which the last run did not come to tell; None where there are none."""
    try:
        count, first, last = (int(each) for each in json.loads(text or "[]"))
        return Gap(GapCause.OVERLOAD, count, first, last)
    except (ValueError, TypeError):
        return None


def removed(event: Event, ts: int, language: str) -> Event:
    """The end of a warning whose signal is no longer in the configuration."""
    return replace(
        event,
        event=EventKind.CLEARED,
        state=WarningState.NORMAL,
        ts=ts,
        value=None,
        message=texts.removed(language, event.signal),
    )


def _tick(machine: Machine, t: int, ts: int) -> Frame:
    """A row in which nobody spoke."""
    return _row(machine, t, ts, Quality.HOLD)


def restart_row(machine: Machine, t: int, ts: int) -> Frame:
    """The row that stands for the time in which the agent did not run: every signal BAD `restart`."""
    return _row(machine, t, ts, Quality.RESTART)


def _row(machine: Machine, t: int, ts: int, quality: Quality) -> Frame:
    width = machine.stop - machine.start
    return Frame(
        machine.name,
        np.array([t], dtype=np.int64),
        np.array([ts], dtype=np.int64),
        np.full((1, width), np.nan),
        np.full((1, width), quality, dtype=np.uint8),
        tick=True,
    )
