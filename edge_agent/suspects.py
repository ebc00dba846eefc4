"""Which message makes the broker break the line. Pure.

A broker may drop the connection each time that it is sent one certain message, without a word. Such a message is found by
counting: it was the first unanswered one again and again.

Rule 1: nobody is convicted in company. Who was twice the first in flight is sent alone, and so are those beside it.
Rule 2: a broker that answers nothing at all is no message's fault. Who was convicted without one answer of the broker
between is tried once more when it answers again, and after some such convictions all are free.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

Key = Hashable
ALONE_AFTER = 2
CONVICTED_AFTER = 3
"""Lines that broke with it first in flight; the last of them with nothing else in flight."""
UNPROVEN_MAX = 3
"""Convictions in a row without one answer of the broker."""
COUNTED_MAX = 1_000
"""Of messages that are counted and never answered: the store may have dropped them."""


class Verdict(NamedTuple):
    """What follows from a broken line. convicted: to be set aside. free: those set aside before, wrongly."""

    convicted: Key | None = None
    free: tuple[Key, ...] = ()


class Suspects:
    """The counts. A key stands for one message."""

    def __init__(self) -> None:
        self.alone: set[Key] = set()
        """To be sent only while nothing else is in flight, and nothing else while they are."""
        self._counts: dict[Key, tuple[int, int]] = {}
        """Lines that broke with it first in flight, and how many answers there had been before the first of them."""
        self._answers = 0
        self._unproven: list[Key] = []

    def lost(self, in_flight: Sequence[Key], told: bool = False) -> Verdict:
        """The line broke with these unanswered, oldest first. told: the broker said that it was because of a message."""
        if not in_flight:
            return Verdict()
        if len(self._counts) > COUNTED_MAX:
            self._counts.clear()
        first = in_flight[0]
        count, since = self._counts.get(first, (0, self._answers))
        count += 1
        self._counts[first] = count, since
        if len(in_flight) == 1 and (told or count >= CONVICTED_AFTER):
            return self._convict(first, proven=self._answers > since)
        if told or count >= ALONE_AFTER:
            self.alone.update(in_flight)
        return Verdict()

    def _convict(self, key: Key, *, proven: bool) -> Verdict:
        if proven:
            return Verdict(convicted=key)
        self._unproven.append(key)
        if len(self._unproven) < UNPROVEN_MAX:
            return Verdict(convicted=key)
        free, self._unproven = tuple(self._unproven), []
        self._counts.clear()
        return Verdict(free=free)

    def answered(self, key: Key) -> tuple[Key, ...]:
        """The broker answered this one, well or not: it does not break the line. Returns who is to be tried once more."""
        self._counts.pop(key, None)
        self.alone.discard(key)
        again, self._unproven = tuple(self._unproven), []
        for each in again:
            self.retry(each)
        self._answers += 1
        return again

    def retry(self, key: Key) -> None:
        """A convicted one is tried once more, alone; it has no other chances."""
        self._counts[key] = CONVICTED_AFTER, self._answers
        self.alone.add(key)
