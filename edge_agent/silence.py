"""Which parts of a line are lost, told from what their points said last. Pure.

Rule 1: a part is lost from the reading in which a point of it falls silent and no other is heard, until any is heard. So a
slow point that was well an hour ago hides no loss; and a point that keeps silent among others that answer is no loss of
its part, however seldom those are read. Rule 2: what brings no news (HOLD) is evidence of nothing.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.contract import CODE_MASK, Bools, Codes, Ints, Point, Quality

Places = Iterable[tuple[str, npt.NDArray[np.intp]]]
"""Of each part that has points among those that are due, their places there."""


def silent(quality: Codes) -> Bools:
    """Where nothing came although something was due."""
    code = quality & CODE_MASK
    return np.asarray((code == Quality.TIMEOUT) | (code == Quality.DISCONNECTED), dtype=np.bool_)


def heard(quality: Codes) -> Bools:
    """Where the device said something, were it that it will not."""
    return np.asarray(~silent(quality) & (quality != Quality.HOLD), dtype=np.bool_)


class Silence:
    """Of one line. lost: why, by part ('' is the part of points that lie behind none). Before anything is heard all are."""

    def __init__(self, points: Sequence[Point], parts: Sequence[str], why: Quality) -> None:
        self._points, self._parts = points, parts
        self._silent = np.zeros(len(points), dtype=np.bool_)
        self.lost: dict[str, Quality] = dict.fromkeys(parts, why)
        self._in_doubt = True
        """Something is lost, or a point is silent: else a reading in which all is heard changes nothing."""

    @property
    def everywhere(self) -> bool:
        """Every part is lost: so is the line."""
        return len(self.lost) == len(set(self._parts))

    def carried_over(self, points: Sequence[Point], parts: Sequence[str]) -> "Silence":
        """The same line with other points: what is known of those that stay is kept."""
        new = Silence(points, parts, next(iter(self.lost.values()), Quality.DISCONNECTED))
        before = {
            point.name: (point.settings, silent)
            for point, silent in zip(self._points, self._silent.tolist(), strict=True)
        }
        for number, point in enumerate(points):
            settings, silent = before.get(point.name, (None, False))
            new._silent[number] = silent and settings == point.settings
        if not self.everywhere:
            for part in set(parts):
                mine = np.array([its == part for its in parts])
                if part not in self.lost and (part in self._parts or not new._silent[mine].all()):
                    del new.lost[part]
        return new

    def fail(self, why: Quality) -> None:
        """The line is down: nothing of it is known until it is heard again."""
        self._silent[:] = True
        self.lost = dict.fromkeys(self._parts, why)
        self._in_doubt = True

    def silent_of(self, parts: Collection[str]) -> list[int]:
        """The points of these parts that said nothing when they were asked last."""
        return [point for point in np.flatnonzero(self._silent).tolist() if self._parts[point] in parts]

    def note(self, due: Ints, quality: Codes, places: Places) -> dict[str, int]:
        """What was read. Returns the parts that are lost by it, each with a point that fell silent."""
        still = silent(quality)
        if not self._in_doubt and not still.any():
            return {}
        speaks = heard(quality)
        falls = still & ~self._silent[due]
        fallen = {}
        for part, its in places:
            if speaks[its].any():
                self.lost.pop(part, None)
            elif part not in self.lost and falls[its].any():
                first = its[np.flatnonzero(falls[its])[0]]
                self.lost[part] = Quality(int(quality[first]))
                fallen[part] = int(due[first])
        known = still | speaks
        self._silent[due[known]] = still[known]
        self._in_doubt = bool(self.lost) or bool(self._silent.any())
        return fallen
