"""Stamps of a clock that nobody had set: marked until the clock is set, put right then, and never changed once they have left.

Rule 1: a message that may have been on its way to the broker keeps its bytes for ever; so its number is on disk before it
is sent (`hand_over`), and what is on disk decides, never what somebody has in mind.
Rule 2: what was judged stays as it was judged. A frame in the journal is never changed; it is put right where it leaves.
"""

import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime

import numpy as np
import orjson

from edge_agent.contract import SECOND_US, Frame, Quality
from edge_agent.messages import topics as messages
from edge_agent.records import Span
from edge_agent.store.ranges import Intervals

SPANS_MAX = 500
"""The oldest are forgotten: what was stamped in them stays marked."""
HANDED_AT_ONCE = 200
"""Numbers that are handed over together: a commit for each would be slow."""
TIMES = ("ts", "since", "from", "to")
"""Keys of a warning or a gap that hold a time."""
MARK = {"uncertain": "clock"}
"""In a warning or a gap whose times come from a clock that nobody had set."""


class Stamps:
    """Which spans there were, what is known of them, and which numbers may have left with a stamp of theirs.

    boot: names the run of the host that goes on now. base: of a run of the host, and wall minus monotonic clock (µs) in it,
    to the second; so that over a restart of the agent alone it is known how far the clock has stepped.
    floor_us: the last time (UTC µs) that a set clock has shown; a clock that shows less is not set. ask: see `ready`.
    """

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.spans: dict[int, Span] = {}
        self.floor_us: int | None = None
        self.base: tuple[str, int] | None = None
        self.handed = Intervals()
        self.ask: Callable[[int], None] = lambda _seq: None

    # --- what is kept ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        spans = [asdict(span) for span in self.spans.values()]
        return orjson.dumps({"floor": self.floor_us, "base": self.base, "spans": spans}).decode()

    def handed_text(self) -> str:
        return orjson.dumps(self.handed.ranges()).decode()

    def take(self, text: str, handed: str) -> None:
        """What `text` and `handed_text` wrote; '' is nothing. Raises ValueError, KeyError or TypeError for anything else."""
        plain = orjson.loads(text) if text else {"floor": None, "base": None, "spans": []}
        spans = [Span(**{**each, "sent": tuple(map(tuple, each["sent"]))}) for each in plain["spans"]]
        ranges = [(int(first), int(last)) for first, last in (orjson.loads(handed) if handed else [])]
        base = None if plain["base"] is None else (str(plain["base"][0]), int(plain["base"][1]))
        self.floor_us, self.base, self.handed = plain["floor"], base, Intervals(ranges)
        self.spans = {span.number: span for span in spans}

    def copy(self) -> "Stamps":
        """For another thread."""
        twin = Stamps(self.boot)
        twin.take(self.text(), self.handed_text())
        return twin

    def note_base(self, base_us: int) -> int:
        """Wall minus monotonic clock is this now. By how much (µs) it has stepped since it was last noted; 0: unknown."""
        boot, before = self.base or ("", base_us)
        self.base = (self.boot, base_us)
        return base_us - before if boot == self.boot != "" else 0

    # --- a span ---------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> Span | None:
        """The span that goes on."""
        last = next(reversed(self.spans.values()), None)
        return last if last is not None and last.to_seq is None else None

    def begin(self, base_us: int, now_us: int, t: int, seq: int) -> Span:
        """The clock is not set from now on. now_us: what it shows. seq: the next number that is given."""
        # Frames know their span by it, also where what is kept here was lost: so it is never the number of another.
        number = zlib.crc32(f"{self.boot}/{base_us}/{t}/{seq}".encode()) or 1
        span = self.spans[number] = Span(number, self.boot, base_us, now_us, t, seq)
        for oldest in list(self.spans)[:-SPANS_MAX]:
            del self.spans[oldest]
        return span

    def end(self, now_us: int, seq: int) -> None:
        """The span that goes on is over. now_us: what its clock showed. seq: the last number that was given in it."""
        span = self.open
        if span is not None:
            self.spans[span.number] = replace(span, to_us=max(now_us, span.from_us), to_seq=seq)

    def put_right(self, base_us: int) -> list[Span]:
        """The clock is set, and this is wall minus monotonic: what to add to each stamp of this run of the host."""
        found = []
        for span in list(self.spans.values()):
            if self._may_come_right(span):
                sent = Intervals(self.handed.ranges())
                last = span.to_seq or 0
                gone = _within(sent, span.from_seq, last)
                right = self.spans[span.number] = replace(span, by_us=base_us - span.base_us, sent=gone)
                found.append(right)
        self.handed = Intervals()
        return found

    def follow(self, found: "Stamps", wall_us: int, last_seq: int, by: int) -> None:
        """What this run has noted follows what a file has that could not be read before.

        found: of the file; wall_us, last_seq: where it ends. by: what is added to each number of this run.
        """
        found.end(wall_us, last_seq)
        last = next(reversed(found.spans.values()), None)
        if last is None or last.by_us is not None or last.to_seq != last_seq:
            found.floor_us = max(found.floor_us or 0, wall_us) or None  # its clock was set when it ended
        moved = [
            replace(span, from_seq=span.from_seq + by, to_seq=None if span.to_seq is None else span.to_seq + by)
            for span in self.spans.values()
        ]
        self.spans = {**found.spans, **{span.number: span for span in moved}}
        self.handed = found.handed
        self.floor_us = self.floor_us if self.floor_us is not None else found.floor_us

    def _may_come_right(self, span: Span) -> bool:
        return span.by_us is None and span.boot == self.boot != ""

    def doubtful_from(self) -> int | None:
        """The first number of a span whose stamps may still come right; None where there is none."""
        return min((span.from_seq for span in self.spans.values() if self._may_come_right(span)), default=None)

    # --- what leaves ----------------------------------------------------------------------------------------------------

    def span_of(self, seq: int) -> Span | None:
        """The span in which this number was given."""
        for span in reversed(self.spans.values()):
            if span.from_seq <= seq and (span.to_seq is None or seq <= span.to_seq):
                return span
        return None

    def hand_over(self, seq: int, last_seq: int) -> None:
        """A number, and some after it, may leave as they are. last_seq: the last that there is."""
        self.handed.add(seq, max(seq, min(seq + HANDED_AT_ONCE - 1, last_seq)))

    def ready(self, number: int, seq: int) -> bool:
        """Whether a message with a stamp of this span may be sent now: its bytes can no longer change. Else it is asked for."""
        span = self.spans.get(number)
        if span is None or not self._may_come_right(span) or seq in self.handed:
            return True
        self.ask(seq)
        return False

    def correction_us(self, number: int, seq: int) -> int | None:
        """What to add to the stamps of this message; None: it keeps them, and is marked."""
        span = self.spans.get(number)
        if span is None or span.by_us is None or any(first <= seq <= last for first, last in span.sent):
            return None
        return span.by_us

    def right(self, frame: Frame, seq: int = 0) -> Frame:
        """The frame as it leaves: its stamps put right, or its good values marked. seq: of the row; 0: of no message."""
        if not frame.unset:
            return frame
        by = self.correction_us(frame.unset, seq)
        if by is None:
            return marked(frame)
        return replace(frame, ts=frame.ts + by, at=None if frame.at is None else frame.at + by, unset=0)

    def right_notice(self, payload: bytes, seq: int) -> bytes:
        """The same for a warning or a gap as the store has it."""
        span = self.span_of(seq) if self.spans else None
        if span is None:
            return payload
        by, plain = self.correction_us(span.number, seq), messages.loads(payload)
        if by is None:
            return orjson.dumps({**plain, **MARK})
        return orjson.dumps({**plain, **{key: _moved(plain[key], span, by) for key in TIMES if plain.get(key)}})


def marked(frame: Frame) -> Frame:
    """What a source called good, and whose time is in doubt: UNCERTAIN `clock`, which is judged like good."""
    quality = np.where(frame.quality == Quality.GOOD, np.uint8(Quality.CLOCK), frame.quality)
    return replace(frame, quality=quality)


def _within(ranges: Intervals, first: int, last: int) -> tuple[tuple[int, int], ...]:
    return tuple((max(a, first), min(b, last)) for a, b in ranges.ranges() if a <= last and b >= first)


def _moved(text: str, span: Span, by_us: int) -> str:
    """A time of the span put right; one from before it (a warning may be older) stays."""
    us = round(datetime.fromisoformat(text).timestamp() * 1000) * 1000
    # The text is rounded down to the millisecond.
    inside = span.from_us - SECOND_US <= us and (span.to_us is None or us <= span.to_us)
    return messages.to_utc(us + by_us) if inside else text
