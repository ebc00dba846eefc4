"""The board as Prometheus text (exposition format 0.0.4): a few gauges, written by hand.

Unknown parts of the health are left out, not guessed: a metric that is absent is not zero.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edge_agent.board import VERDICTS, Board

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[dict[str, str], float]

HEALTH = (
    ("loop_lag_ms", "edge_agent_loop_lag_seconds", "How late the agent's loop is.", 1e-3),
    ("cpu_percent", "edge_agent_cpu_percent", "Processor time used, in percent of one core.", 1.0),
    ("rss_mb", "edge_agent_resident_memory_bytes", "Resident memory.", 1e6),
)
"""(key of the health message, metric, help, factor to the metric's unit)"""
COUNTERS = (("requests", "Requests sent to the device."), ("timeouts", "Requests that got no answer in time."))


def text(board: Board) -> str:
    """All metrics of the agent."""
    agent = board.agent()
    status, health = agent["status"], agent["health"]
    lines: list[str] = []
    info = {key: str(status.get(key, "")) for key in ("agent", "version", "config")}
    lines += _metric("edge_agent_info", "gauge", "Which agent this is.", [(info, 1.0)])
    online = float(status.get("state") == "online")
    lines += _metric("edge_agent_online", "gauge", "1 while the agent watches its machines.", [({}, online)])
    refused = float(bool(agent["config_errors"]))
    lines += _metric(
        "edge_agent_config_refused", "gauge", "1 while the file on disk is not what runs.", [({}, refused)]
    )
    lines += _readings(board)
    lines += _connections(health.get("connections") or {}, health.get("broker"))
    lines += _machines(health.get("machines") or {})
    lines += _kept(health.get("store") or {}, health.get("clock") or {})
    for key, name, help_text, factor in HEALTH:
        lines += _metric(name, "gauge", help_text, _one(health.get(key), factor))
    return "\n".join(lines) + "\n"


def _readings(board: Board) -> Iterator[str]:
    counts = board.counts()
    signals = [({"verdict": verdict}, float(counts[verdict])) for verdict in VERDICTS]
    yield from _metric("edge_agent_signals", "gauge", "Signals by their verdict against the norm.", signals)
    active = board.warnings(active=True)
    by_severity = [
        ({"severity": severity}, float(sum(event["severity"] == severity for event in active)))
        for severity in ("alarm", "warning")
    ]
    yield from _metric("edge_agent_active_warnings", "gauge", "Warnings that are not back to normal.", by_severity)


def _connections(connections: Mapping[str, Mapping[str, Any]], broker: Mapping[str, Any] | None) -> Iterator[str]:
    """A connection without a state is unknown and shows nothing."""
    up = [({"connection": name}, float(c["state"] == "connected")) for name, c in connections.items() if "state" in c]
    yield from _metric("edge_agent_connection_up", "gauge", "1 while the device answers.", up)
    for key, help_text in COUNTERS:
        counts = [({"connection": name}, float(c[key])) for name, c in connections.items() if _is_number(c.get(key))]
        yield from _metric(f"edge_agent_connection_{key}_total", "counter", help_text, counts)
    used = [
        ({"connection": name}, float(c["utilisation"]))
        for name, c in connections.items()
        if _is_number(c.get("utilisation"))
    ]
    yield from _metric(
        "edge_agent_connection_utilisation_ratio",
        "gauge",
        "Share of time for which the line is in use, by all its users.",
        used,
    )
    if broker is not None and "state" in broker:
        connected = float(broker["state"] == "connected")
        yield from _metric("edge_agent_broker_up", "gauge", "1 while the broker is connected.", [({}, connected)])


def _machines(machines: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    times = [
        ({"machine": name, "state": state}, float(hours) * 3600.0)
        for name, about in machines.items()
        for state, hours in about["hours"].items()
    ]
    name = "edge_agent_machine_state_seconds_total"
    yield from _metric(name, "counter", "How long a machine was in each of its operating states.", times)


def _kept(store: Mapping[str, Any], clock: Mapping[str, Any]) -> Iterator[str]:
    """What waits, whether the disk takes it, and how far its times can be trusted."""
    history = store.get("history") or {}
    for name, help_text, samples in (
        ("buffer_messages", "Messages that wait for the broker.", _one(store.get("messages"))),
        ("buffer_bytes", "Size of what waits for the broker.", _one(store.get("mb"), 1e6)),
        ("store_ok", "1 while the disk takes the readings and warnings; else they wait in memory.", _is(store, "ok")),
        ("history_bytes", "Size of the history on the disk.", _one(history.get("mb"), 1e6)),
        ("history_ok", "1 while the history is written.", _is(history, "ok")),
        ("clock_synchronised", "1 while the clock of the host is kept by a time service.", _is(clock, "synchronised")),
        ("clock_steps", "Jumps of the clock of the host since the agent started.", _one(clock.get("steps"))),
    ):
        yield from _metric(f"edge_agent_{name}", "gauge", help_text, samples)


def _is(about: Mapping[str, Any], state: str) -> list[Sample]:
    return [({}, float(about["state"] == state))] if "state" in about else []


def _metric(name: str, kind: str, help_text: str, samples: Iterable[Sample]) -> list[str]:
    rows = [
        f"{name}{_labels(labels)} {value:.0f}" if value.is_integer() else f"{name}{_labels(labels)} {value!r}"
        for labels, value in samples
    ]
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *rows] if rows else []


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _one(value: Any, factor: float = 1.0) -> list[Sample]:
    return [({}, float(value) * factor)] if _is_number(value) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
