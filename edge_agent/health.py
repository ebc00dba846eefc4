"""The agent's own health, as the health topic, the page and `status` show it: gathered here, decided nowhere."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edge_agent import judge
from edge_agent.clock import HostClock
from edge_agent.contract import CODE_MASK, SECOND_US, Quality
from edge_agent.judge import JudgeState
from edge_agent.messages import topics as messages
from edge_agent.plant import Plant, certificate_of
from edge_agent.poller import LineHealth
from edge_agent.records import Loss

Explain = Callable[[str, str, int], str]
"""(machine, signal, its offset in the machine) → why its last reading was bad, in words; '' when nothing more is known."""
SIGNALS_MAX = 1000
"""Signals listed in one health message; the count of the others stands beside them."""

MACHINES_MAX = 1000
"""Machines whose hours are told in one health message."""

NE107 = {
    Quality.UNCERTAIN: "out_of_specification",
    Quality.TIMEOUT: "failure",
    Quality.DISCONNECTED: "failure",
    Quality.REFUSED: "failure",
    Quality.DEVICE_FAILURE: "failure",
    Quality.SENSOR_FAILURE: "failure",
    Quality.OUT_OF_RANGE: "out_of_specification",
    Quality.NOT_A_NUMBER: "failure",
    Quality.PROTOCOL: "failure",
    Quality.PRECISION: "out_of_specification",
    Quality.MISSING: "failure",
    Quality.RESTART: "function_check",
    Quality.OTHER: "failure",
}
"""NAMUR NE 107 of each quality that is not good (reliability of the sensor or its line, never of the machine)."""


class _Look(NamedTuple):
    """Of a line: when it was looked at (monotonic µs), how long it had been busy by then (µs), its utilisation.

    whole: what was counted is the physical line with all its users, not the reads of this connection.
    """

    at_us: int
    busy_us: int
    whole: bool
    utilisation: float


class Meter:
    """CPU, memory and loop lag of this process, and the share of time that each line is busy, between two looks."""

    def __init__(self, clock: HostClock) -> None:
        self._clock = clock
        self._cpu_s, self._at_us = clock.cpu_s(), clock.monotonic_us()
        self._cpu_percent = 0.0
        self._lag_us = 0
        self._lines: dict[str, _Look] = {}

    def lag(self, late_us: int) -> None:
        """How late the loop woke; the worst since the last health message is shown."""
        self._lag_us = max(self._lag_us, late_us)

    def health(
        self,
        lines: Mapping[str, LineHealth],
        broker: Mapping[str, Any],
        store: Mapping[str, Any],
        plant: Plant,
        state: JudgeState,
        explain: Explain,
        certificates: Mapping[str, Loss] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Contract §2, `health`, with `broker` and `store` beside it, and for each signal what its line knows of the cause.

        certificates: see certificates.looked.
        """
        now, cpu = self._clock.monotonic_us(), self._clock.cpu_s()
        if now - self._at_us >= SECOND_US:
            self._cpu_percent = 100e6 * (cpu - self._cpu_s) / (now - self._at_us)
            self._cpu_s, self._at_us = cpu, now
        lag, self._lag_us = self._lag_us, 0
        self._lines = {name: self._looked(name, line, now) for name, line in lines.items()}
        lost = _lost(plant, state)
        return {
            "connections": {
                name: _line(line, self._lines[name].utilisation)
                | _with_certificate(_ne107(name, lost), certificates.get(certificate_of(name)))
                for name, line in lines.items()
            },
            "broker": dict(broker),
            "buffer": {key: store[key] for key in ("messages", "oldest", "state", "reason", "history") if key in store},
            "store": dict(store),
            "loop_lag_ms": round(lag / 1000, 1),
            "cpu_percent": round(self._cpu_percent, 2),
            "rss_mb": round(rss_mb(), 1),
            "attributes": {name: text for line in lines.values() for name, text in line.attributes.items()},
            **_signals(plant, state, explain),
            "machines": _machines(plant, state),
        }

    def _looked(self, name: str, line: LineHealth, now_us: int) -> _Look:
        whole = line.line_busy_us is not None
        busy_us = line.busy_us if line.line_busy_us is None else line.line_busy_us
        last = self._lines.get(name)
        if last is None or last.whole != whole:
            return _Look(now_us, busy_us, whole, 0.0)
        if now_us - last.at_us < SECOND_US:
            return last
        # A poller or a line that was replaced counts from 0 again, and a long read may have begun before the last look.
        share = (busy_us - last.busy_us) / (now_us - last.at_us)
        return _Look(now_us, busy_us, whole, min(1.0, max(0.0, share)))


def _line(line: LineHealth, utilisation: float) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": str(line.state), "since": messages.to_utc(line.since_us)}
    if line.reason:
        shown["reason"] = line.reason
    counted = {"requests": 0, "timeouts": 0, **line.counters}
    return {**shown, "beats": line.beats, "missed": line.missed, **counted, "utilisation": round(utilisation, 4)}


def _lost(plant: Plant, state: JudgeState) -> dict[str, dict[str, Any]]:
    """Of each line and each part of one that is known to the judge: NAMUR NE 107, and how many signals lie behind it."""
    own = plant.own
    if own is None:
        return {}
    values, quality = judge.readings(state, own)
    found = {}
    for signal, value, code in zip(own.signals, values.tolist(), quality.tolist(), strict=True):
        if signal.in_words:
            continue
        why = Quality(int(value)) if code == Quality.GOOD else Quality(code)
        ne107 = "function_check" if why is Quality.MISSING else NE107.get(why, "ok")  # missing: nothing is known yet
        found[signal.name] = {"ne107": ne107, "signals": signal.behind}
    return found


def _ne107(name: str, lost: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What stands beside a connection: its own, and its units that are not ok."""
    about = lost.get(name)
    if about is None:
        return {}
    start = f"{name}."
    units = {part.removeprefix(start): its for part, its in lost.items() if part.startswith(start)}
    failing = {part: its for part, its in units.items() if its["ne107"] != "ok"} if about["ne107"] == "ok" else {}
    return {"ne107": about["ne107"], **({"units": failing} if failing else {})}


def _with_certificate(about: dict[str, Any], its: Loss | None) -> dict[str, Any]:
    """The line works, and somebody must do something soon: NE 107 `maintenance_required`, unless it is worse already.

    What is not known for want of a server met yet is nobody's fault, and has no words.
    """
    if its is None or its.why == Quality.GOOD or not its.words:
        return about
    needs = {"ne107": "maintenance_required"} if about.get("ne107", "ok") == "ok" else {}
    return {**about, **needs, "certificate": its.words}


def _signals(plant: Plant, state: JudgeState, explain: Explain) -> dict[str, Any]:
    """The signals that are not ok, by `machine.signal`."""
    quality = np.where(state.faded, np.uint8(Quality.MISSING), state.held_quality)
    doubtful = np.flatnonzero(((quality != Quality.GOOD) & (quality != Quality.CLOCK))[: plant.signals])
    found = {}
    for column in doubtful[:SIGNALS_MAX].tolist():
        machine, signal = plant.signal_of(column)
        code = Quality(int(quality[column]) & CODE_MASK)
        about = {"ne107": NE107.get(code, "failure"), "reason": judge.word_of(code)}
        if detail := explain(machine.name, signal.name, column - machine.start):
            about["detail"] = detail
        found[f"{machine.name}.{signal.name}"] = about
    more = len(doubtful) - len(found)
    return {"signals": found, **({"signals_more": more} if more else {})}


def _machines(plant: Plant, state: JudgeState) -> dict[str, Any]:
    """The hours that each machine was in each of its operating states, of those that have some."""
    with_states = [machine for machine in plant.machines if machine.states][:MACHINES_MAX]
    return {
        machine.name: {"hours": {name: round(its, 4) for name, its in judge.hours(state, machine).items()}}
        for machine in with_states
    }


def rss_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
