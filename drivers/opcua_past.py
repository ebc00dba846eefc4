"""The past of a session's points: what a history gave of the time before it, and what of that is still to be handed on.

Rule: the past of a point ends where its first live value begins, and is handed on once: before that value, or belated.
"""

from dataclasses import dataclass, field

import numpy as np

from drivers import opcua_history as history
from drivers import opcua_points as pts
from edge_agent.contract import Clock, Ints, Quality, Readings


@dataclass(slots=True)
class Past:
    """gap: of the time before this session, while not all of it has come; gap_points: whose. late: what is still to come.

    first_ts: (points,) UTC µs of each point's first live value, EVER_US before. back_filled: values that were handed on.
    """

    gap: history.Gap | None = None
    gap_points: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    late: list[tuple[Ints, Readings]] = field(default_factory=list)
    first_ts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    back_filled: int = 0

    def keep(self, gap: history.Gap, points: Ints, due: Ints, clock: Clock) -> list[Readings]:
        """What has come of a gap: for the points that are due as rows of theirs, for the others kept; the rest may come."""
        readings = self._taken(gap, clock)
        if gap.open or gap.found:
            self.gap, self.gap_points = gap, points
        if readings is None:
            return []
        now = np.isin(points, due)
        if not now.all() and (later := pts.columns(readings, ~now)) is not None:
            self.late.append((points[~now], later))
        first = pts.columns(readings, now)
        return [] if first is None else [pts.spread(first, np.searchsorted(due, points[now]), len(due))]

    def note_first(self, points: pts.Points, first_read: bool) -> None:
        """When each point had its first live value, while there is a past that must end there."""
        if first_read:
            self.first_ts = np.full(len(points), pts.EVER_US)
        if first_read or self.late or self.gap is not None:
            first = (self.first_ts == pts.EVER_US) & (points.quality != Quality.HOLD)
            self.first_ts[first] = points.ts[first]

    def leave_out(self, readings: Readings, points: Ints) -> None:
        """What a history has of the first live value and after it was, or will be, shown as that."""
        again = (readings.quality != Quality.HOLD) & (readings.ts >= self.first_ts[points])
        readings.values[again], readings.quality[again] = np.nan, Quality.HOLD
        self.back_filled -= int(np.count_nonzero(again))

    def move(self, places: Ints, count: int) -> None:
        """Other points: what is still to come of those that stay. places: of each point before its new one, -1: none."""
        stay, first = np.flatnonzero(places >= 0), np.full(count, pts.EVER_US)
        if len(self.first_ts) == len(places):
            first[places[stay]] = self.first_ts[stay]
        self.first_ts, self.gap_points = first, places[self.gap_points]
        late, self.late = self.late, []
        for points, readings in late:
            self._note_late(places[points], readings)

    def belated(self, clock: Clock) -> tuple[Ints, Readings] | None:
        """What came late, and the past of slower signals once they were read themselves. See contract.Belated."""
        gap = self.gap
        if gap is not None and not gap.open and not self.late:
            if (readings := self._taken(gap, clock)) is not None:
                self._note_late(self.gap_points, readings)
            if not gap.found:
                self.gap = None
        for place, (points, readings) in enumerate(self.late):
            if not (self.first_ts[points] == pts.EVER_US).any():
                del self.late[place]
                self.leave_out(readings, points)
                return points, readings
        return None

    def _taken(self, gap: history.Gap, clock: Clock) -> Readings | None:
        readings = history.taken(gap, clock.monotonic_us(), clock.wall_us())
        if readings is not None:
            self.back_filled += int(np.count_nonzero(readings.quality != Quality.HOLD))
        return readings

    def _note_late(self, points: Ints, readings: Readings) -> None:
        """Keep what is to be handed on of the past of these points, but those that nobody wants any more (-1)."""
        wanted = np.flatnonzero(points >= 0)
        wanted = wanted[np.argsort(points[wanted])]
        if (kept := pts.columns(readings, wanted)) is not None:
            self.late.append((points[wanted], kept))


def places_of(moved: dict[int, int], count: int) -> Ints:
    """Of each of so many points before its new place, -1: it is not wanted any more."""
    places = np.full(count, -1, np.int64)
    places[list(moved)] = list(moved.values())
    return places
