"""Which point each item of the server's is: client handles run on and are never another's.

Rule: a handle whose point is not wanted any more leads to -1, for its last words may still be on their way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drivers.opcua_points import Points
from edge_agent.contract import Ints


@dataclass(slots=True)
class Items:
    """point_of: (handles,) the point, or -1. to_delete: numbers of items that the server should forget."""

    point_of: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    to_delete: list[int] = field(default_factory=list)

    def points(self, handles: Ints) -> Ints:
        """Their points, -1 for those that nobody wants any more."""
        known = (handles >= 0) & (handles < len(self.point_of))
        points = np.full(len(handles), -1, np.int64)
        points[known] = self.point_of[handles[known]]
        return points

    def handles(self, points: Ints, count: int) -> Ints:
        """The other way round, of so many points in all; -1 of those that the server tells no longer."""
        handle = np.full(count, -1, np.int64)
        known = np.flatnonzero(self.point_of >= 0)
        handle[self.point_of[known]] = known
        return handle[points]

    def add(self, points: Sequence[int]) -> int:
        """New handles for these points; returns the first."""
        first = len(self.point_of)
        self.point_of = np.append(self.point_of, np.array(points, np.int64))
        return first

    def move(self, places: Ints) -> None:
        """Other points. places: of each point before its new one, -1: it is not wanted any more."""
        known = self.point_of >= 0
        self.point_of[known] = places[self.point_of[known]]

    def untell(self, points: Points, point: int) -> None:
        """The server need not tell of this point any more."""
        if points.told[point]:
            self.to_delete.append(int(points.item[point]))
        points.told[point], points.item[point] = False, -1
        self.point_of[self.point_of == point] = -1

    def clear(self, points: Points) -> None:
        """No item is any more: each point is asked with every beat."""
        points.told[:] = False
        points.item[:] = -1
        self.point_of[:] = -1
        self.to_delete.clear()
