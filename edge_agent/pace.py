"""How fast the backlog may go beside what is new. Pure: it is handed the time.

Rule 1: what is new never waits for the backlog: a part of the window is kept free for it.
Rule 2: the line and the broker breathe. The backlog goes at a bounded multiple of the live rate, and where answers are slow
it takes less of the window, down to one message.
"""

from edge_agent.contract import SECOND_US

TIMES_LIVE = 20.0
"""The backlog's rate in multiples of the live one: twice what is promised, so that an hour away is made good in minutes."""
RATE_MIN = 500.0
"""Messages a second also where little is new: a small agent is not away for a day because it was for an hour."""
BURST_S = 0.1
"""So much of the rate may go at once, after a pause."""
MEAN_US = 10 * SECOND_US
"""The live rate is the mean of about so long: commits come in bursts once a second."""
KEPT_FREE = 4
"""Of the window, for what is new."""
SLOW_US = SECOND_US // 2
"""An answer that takes longer says that a queue is growing somewhere."""


class Pace:
    """The backlog's rate and its share of the window. All times are monotonic µs."""

    def __init__(self, window: int, now_us: int) -> None:
        self.use_window(window)
        self._rate, self._counted_us = 0.0, now_us
        self._tokens, self._filled_us = RATE_MIN * BURST_S, now_us
        self._quick = 0
        self._shrunk_us = now_us

    def use_window(self, window: int) -> None:
        """Another connection, whose broker takes so many messages at once."""
        self._most = max(1, window - min(KEPT_FREE, window // 6))
        self.share = self._most
        """How many messages of the backlog may wait for their PUBACK."""

    @property
    def rate(self) -> float:
        """Messages a second that the backlog may have."""
        return max(RATE_MIN, TIMES_LIVE * self._rate)

    def committed(self, count: int, now_us: int) -> None:
        """So many new messages. The mean forgets by the time that has passed, however often it is told."""
        passed = max(1, now_us - self._counted_us)
        keep = MEAN_US / (MEAN_US + passed)
        self._rate = self._rate * keep + count * SECOND_US / MEAN_US * keep
        self._counted_us = now_us

    def wait_us(self, now_us: int) -> int:
        """How long the backlog's next message has to wait; 0: not at all."""
        rate = self.rate
        self._tokens = min(max(1.0, rate * BURST_S), self._tokens + rate * max(0, now_us - self._filled_us) / SECOND_US)
        self._filled_us = now_us
        return 0 if self._tokens >= 1.0 else max(1, round((1.0 - self._tokens) / rate * SECOND_US))

    def sent(self) -> None:
        """One message of the backlog."""
        self._tokens -= 1.0

    def answered(self, sent_us: int, now_us: int) -> None:
        """An answer of the broker: a quick one widens the backlog's share slowly, a slow one halves it."""
        if now_us - sent_us < SLOW_US:
            self._quick += 1
            if self._quick >= 2 * self.share:
                self._quick, self.share = 0, min(self._most, self.share + 1)
        elif sent_us >= self._shrunk_us:  # what was sent before the last halving says nothing of it
            self._quick, self.share, self._shrunk_us = 0, max(1, self.share // 2), now_us
