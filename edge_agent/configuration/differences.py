"""What differs between two configurations, in a line for each change: what a person sees after a reload."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from edge_agent.configuration.nouns import Config

AT_THE_NEXT_START = frozenset({"web", "web.host", "web.port"})
"""What cannot change while the agent runs."""


def differences(old: Config, new: Config) -> list[str]:
    """What a person changed, one line each, machine by machine."""
    lines = []
    for part in ("agent", "mqtt", "store", "web"):
        lines += _changed_keys(part, getattr(old, part), getattr(new, part))
    lines += _added_and_removed("connection", old.connections, new.connections)
    lines += [
        f"connection {n}: changed"
        for n in old.connections
        if n in new.connections and old.connections[n] != new.connections[n]
    ]
    lines += _added_and_removed("machine", old.machines, new.machines)
    for name, machine in new.machines.items():
        was = old.machines.get(name)
        if was is None or was == machine:
            continue
        lines += _added_and_removed(f"{name}: signal", was.signals, machine.signals)
        lines += [
            f"{name}.{s}: changed" for s in machine.signals if s in was.signals and was.signals[s] != machine.signals[s]
        ]
        if (was.states, was.until, was.settle_us, was.title, was.area) != (
            machine.states,
            machine.until,
            machine.settle_us,
            machine.title,
            machine.area,
        ):
            lines.append(f"{name}: states or titles changed")
    return lines


def _changed_keys(part: str, old: Any, new: Any) -> list[str]:
    """The keys of a section that a person changed; a section that comes or goes is one."""
    if old is None or new is None:
        keys = [part] if old != new else []
    else:
        keys = [f"{part}.{one.name}" for one in fields(old) if getattr(old, one.name) != getattr(new, one.name)]
    later = " (takes effect at the next start)"
    return [f"{key}: changed{later if key in AT_THE_NEXT_START else ''}" for key in keys]


def _added_and_removed(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [f"{what} {name}: added" for name in new if name not in old] + [
        f"{what} {name}: removed" for name in old if name not in new
    ]
