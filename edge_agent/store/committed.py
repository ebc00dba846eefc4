"""A message as the journal hands it out: a row of a frame, a warning or a gap; encoded when it is wanted."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from edge_agent.contract import Clock
from edge_agent.messages import topics as messages
from edge_agent.store import rows
from edge_agent.store.rows import Kept
from edge_agent.store.stamps import Stamps


@dataclass(slots=True, eq=False)
class Committed:
    """One message that is on disk. kind: measurements, warnings or gaps. closed_us: UTC µs when its seq was given."""

    seq: int
    machine: str | None
    kind: str
    closed_us: int
    _epoch: str = ""
    _kept: Kept | None = None
    _row: int = 0
    _bytes: bytes = b""
    _stamps: Stamps | None = None
    _since_us: int | None = None
    """Monotonic µs when it was closed."""

    @property
    def topic(self) -> str:
        """Below the root."""
        return f"{self.machine}/{self.kind}" if self.machine is not None else self.kind

    @property
    def late(self) -> bool:
        """Of a past that was not judged: late whenever it is sent."""
        return self._kept is not None and self._kept.judged.frame.late

    def waited_us(self, clock: Clock) -> int:
        """How long ago it was closed; by the monotonic clock, since a wall clock that steps makes nothing older."""
        if self._since_us is None:
            return clock.wall_us() - self.closed_us
        return clock.monotonic_us() - self._since_us

    @property
    def ready(self) -> bool:
        """Whether its bytes are settled. Where the clock was not set a commit must come first, which is asked for here."""
        number = self._unset
        return not number or self._stamps is None or self._stamps.ready(number, self.seq)

    @property
    def _unset(self) -> int:
        """The span of a clock that was not set, in which it was stamped; 0: none."""
        if self._kept is not None:
            return self._kept.judged.frame.unset
        span = self._stamps.span_of(self.seq) if self._stamps is not None and self._stamps.spans else None
        return span.number if span is not None else 0

    def payload(self, late: bool) -> bytes:
        """The message, encoded when it is wanted; once it is `ready` always the same bytes but for `late`."""
        if self._kept is None:
            plain = self._bytes if self._stamps is None else self._stamps.right_notice(self._bytes, self.seq)
        else:
            judged, row = self._kept.judged, self._row
            frame = judged.frame if self._stamps is None else self._stamps.right(judged.frame, self.seq)
            plain = messages.measurement(
                self._epoch,
                self.seq,
                self._kept.layout,
                int(frame.ts[row]),
                int(judged.state[row]),
                frame.values[row],
                frame.quality[row],
                None if frame.at is None else frame.at[row],
            )
        return messages.late(plain) if late else plain

    def row(self) -> tuple[Any, ...]:
        """A warning or a gap, as its table has it."""
        plain = (self.seq, self.machine, self.kind, self.closed_us, self._bytes)
        return (*plain, rows.checksum(*plain))


class Page(NamedTuple):
    """What one look for the backlog found. reached: up to this number everything has been looked at."""

    messages: list[Committed]
    reached: int
