"""Which sequence numbers are done with: a set of whole ranges, small however many numbers it holds.

Two lanes deliver side by side (live and backlog), so there are two or three ranges and not millions of numbers.
"""

from bisect import bisect_right
from collections.abc import Iterable


class Intervals:
    """A set of positive integers as sorted, closed, separate ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> int:
        """Add first..last (one number without last); returns how many of them are new."""
        last = first if last is None else last
        if last < first:
            return 0
        i = bisect_right(self._first, first) - 1
        if i >= 0 and self._last[i] >= last:
            return 0
        if i < 0 or self._last[i] < first - 1:
            i += 1
        j = i
        known = 0
        low, high = first, last
        while j < len(self._first) and self._first[j] <= last + 1:
            known += max(0, min(self._last[j], last) - max(self._first[j], first) + 1)
            low, high = min(low, self._first[j]), max(high, self._last[j])
            j += 1
        self._first[i:j], self._last[i:j] = [low], [high]
        return last - first + 1 - known

    def __contains__(self, number: int) -> bool:
        i = bisect_right(self._first, number) - 1
        return i >= 0 and self._last[i] >= number

    def count(self, first: int, last: int) -> int:
        """How many of first..last are in the set."""
        return sum(
            max(0, min(b, last) - max(a, first) + 1) for a, b in zip(self._first, self._last, strict=True)
        )

    @property
    def done_to(self) -> int:
        """Every number from 1 up to this one is in the set; 0 when 1 is not."""
        return self._last[0] if self._first and self._first[0] <= 1 else 0

    def copy(self) -> "Intervals":
        """For another thread."""
        return Intervals(self.ranges())

    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self._first, self._last, strict=True))
