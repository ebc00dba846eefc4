"""Which sequence numbers are done with: a set of whole ranges, small however many numbers it holds.

Two lanes deliver side by side (live and backlog), so there are two or three ranges and not millions of numbers. Where a
broker refuses one topic for days they are many; so what has changed is told range by range, and nobody writes them all.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A set of positive integers as sorted, closed, separate ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        self._changed: dict[int, int | None] = {}
        """By its first number: the last of a range that is new or has grown, None of one that melted into another."""
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> int:
        """Add first..last (one number without last); returns how many of them are new."""
        last = first if last is None else last
        if last < first:
            return 0
        # Every range that overlaps or touches melts into one.
        i = bisect_left(self._last, first - 1)
        j = bisect_right(self._first, last + 1)
        if i == j:
            self._first.insert(i, first)
            self._last.insert(i, last)
            self._changed[first] = last
            return last - first + 1
        new = last - first + 1 - self.count(first, last)
        if new:
            self._changed.update(dict.fromkeys(self._first[i:j]))
            first, last = min(first, self._first[i]), max(last, self._last[j - 1])
            self._first[i:j], self._last[i:j] = [first], [last]
            self._changed[first] = last
        return new

    def take_changes(self) -> dict[int, int | None]:
        """What has changed since the last time: first → last of each range, None where it is no more."""
        changed, self._changed = self._changed, {}
        return changed

    def give_back(self, changes: dict[int, int | None]) -> None:
        """Changes that were taken and not written: they come again, unless they have changed once more."""
        self._changed = {**changes, **self._changed}

    def __contains__(self, number: int) -> bool:
        i = bisect_right(self._first, number) - 1
        return i >= 0 and self._last[i] >= number

    def count(self, first: int, last: int) -> int:
        """How many of first..last are in the set."""
        i, j = bisect_left(self._last, first), bisect_right(self._first, last)
        return (
            sum(min(self._last[k], last) - max(self._first[k], first) + 1 for k in range(i, j)) if first <= last else 0
        )

    def missing(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges of first..last that are not in the set."""
        i, start = bisect_left(self._last, first), first
        while i < len(self._first) and self._first[i] <= last:
            if self._first[i] > start:
                yield start, self._first[i] - 1
            start = self._last[i] + 1
            i += 1
        if start <= last:
            yield start, last

    @property
    def done_to(self) -> int:
        """Every number from 1 up to this one is in the set; 0 when 1 is not."""
        return self._last[0] if self._first and self._first[0] <= 1 else 0

    def copy(self) -> "Intervals":
        """For another thread."""
        twin = Intervals()
        twin._first, twin._last = self._first.copy(), self._last.copy()
        return twin

    def ranges(self, most: int | None = None) -> list[tuple[int, int]]:
        """All ranges, or the first so many."""
        return list(zip(self._first[:most], self._last[:most], strict=True))
