"""Negative controls: the agent with one promise broken. A rig that does not find it proves nothing.

    python -m bench.broken NAME run CONFIG       the agent as `edge-agent run CONFIG`, broken in this way

The agent itself has no switch for this: what is broken is put into its classes here, in the rig's own process.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from edge_agent import __main__ as command
from edge_agent import downtime, pipeline, publisher
from edge_agent.messages import topics
from edge_agent.store import disk


def forgets_before_puback() -> None:
    """Counts a message as delivered when it has been sent."""
    send = publisher.Publisher._publish

    def sent(self: Any, flight: Any, payload: bytes, *, retain: bool) -> bool:
        went = send(self, flight, payload, retain=retain)
        if went and flight.message is not None:
            self._store.delivered((flight.message.seq,))
        return went

    publisher.Publisher._publish = sent  # type: ignore[method-assign]


def hides_restarts() -> None:
    """Tells nobody that it did not run."""
    downtime.gap = lambda *_: None


def hides_missed_beats() -> None:
    pipeline.Pipeline.missed = lambda *_: None  # type: ignore[method-assign]


def numbers_anew() -> None:
    """Gives the numbers of the last hundred messages again after each start."""
    opened = disk.open_file

    def older(*words: Any) -> Any:
        from dataclasses import replace

        found = opened(*words)
        last = max(0, found.state.last_seq - 100)
        return replace(found, state=replace(found.state, last_seq=last, delivered=[(1, last)] if last else []))

    disk.open_file = older  # type: ignore[assignment]


def lies() -> None:
    """Publishes a value that no device had, once in a while."""
    measure = topics.measurement

    def lied(epoch: str, seq: int, layout: Any, ts: int, state: int, values: Any, *rest: Any) -> bytes:
        return measure(epoch, seq, layout, ts, state, values + (seq % 50 == 0), *rest)

    topics.measurement = lied  # type: ignore[assignment]


def syncs_nothing() -> None:
    """synchronous=NORMAL: what is committed lies in the page cache and not on the disk."""
    settle = disk._settings

    def settled(db: Any) -> None:
        settle(db)
        db.execute("PRAGMA synchronous=NORMAL")

    disk._settings = settled


BREAKS: dict[str, Callable[[], None]] = {
    "publisher": forgets_before_puback,
    "restarts": hides_restarts,
    "beats": hides_missed_beats,
    "numbers": numbers_anew,
    "value": lies,
    "sync": syncs_nothing,
}


def main() -> None:
    BREAKS[sys.argv[1]]()
    sys.argv[1:] = sys.argv[2:]
    os.environ["PYTHONUNBUFFERED"] = "1"
    sys.exit(command.main())


if __name__ == "__main__":
    main()
