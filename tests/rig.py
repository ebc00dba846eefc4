"""One consumer of a faulty peer: reads at random, holds every good value against the truth, and counts.

Rule 1: it never forgives: a value that is GOOD and not true is kept in `wrong`, one that is UNCERTAIN and not true in
`doubtful`. Rule 2: it behaves as the poller does:
after DeviceSilent it opens anew. Rule 3: when the peer is well again, every point must be good within a few reads.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drivers.modbus import DRIVER, ModbusSession
from edge_agent.contract import Clock, DeviceSilent, Floats, Ints, Point, Quality, Readings, Session
from tests.bus import Peer, truth

TIMEOUT_S = 0.2
PAUSES_S = (0.0, 0.0, 0.05, 0.3, 1.0, 5.0, 61.0)
"""Between two reads: also so long that a unit at rest is asked again."""
REST_S = 61.0
"""Longer than any rest that the driver gives a unit or a point."""
READS_TO_RECOVER = 8
CYCLES = 24
"""Different sets of points that are read; as with a poller they come again and again."""
TABLES = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
REGISTERS, BITS = (0, 2, 3), (0, 5, 7, 10, 15)
PLACES: Sequence[tuple[str, int, Sequence[int]]] = (
    *(("holding", start, REGISTERS) for start in (0, 50, 100, 150)),
    ("holding", 300, (0,)),
    *(("input", start, REGISTERS) for start in (0, 50)),
    ("coil", 0, BITS),
    ("coil", 400, BITS),
    ("discrete", 8, BITS),
)
"""Blocks of each unit, and which of their places are points: most look alike in their answers, where the one can be
taken for the other."""


@dataclass(slots=True)
class Tally:
    """What a consumer saw."""

    reads: int = 0
    good: int = 0
    uncertain: int = 0
    bad: int = 0
    silences: int = 0
    wrong: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        for name in ("reads", "good", "uncertain", "bad", "silences"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wrong += other.wrong
        self.doubtful += other.doubtful


class Consumer:
    """Points of these units, in blocks; `due` of some of them; what is true of them."""

    def __init__(self, units: Sequence[int], settings: Mapping[str, Any], chance: random.Random, clock: Clock) -> None:
        self.chance, self.tally, self.clock = chance, Tally(), clock
        self._sessions: list[ModbusSession] = []
        keys = {"timeout": f"{round(TIMEOUT_S * 1000)}ms", "max_gap": 1, **settings}
        self.connection = DRIVER.Connection.model_validate(keys)
        self.points: list[Point] = []
        self.blocks: list[list[int]] = []
        self.names: list[str] = []
        expected: list[int] = []
        for unit in units:
            for table, start, places in PLACES:
                self.blocks.append(list(range(len(self.points), len(self.points) + len(places))))
                for address in (start + place for place in places):
                    name = f"{table}:{address}"
                    settings_of = DRIVER.Address.model_validate({"address": name, "unit": unit})
                    self.points.append(Point(f"{unit}/{name}", settings_of))
                    value = truth(unit, TABLES[table], address)
                    expected.append(value if TABLES[table] >= 3 else value & 1)
        self.expected: Floats = np.array(expected, dtype=np.float64)
        self.everything: Ints = np.arange(len(self.points), dtype=np.int64)
        self.cycles = [self._some() for _ in range(CYCLES)]

    def _some(self) -> Ints:
        """The points of one to six blocks."""
        chosen = self.chance.sample(self.blocks, self.chance.randint(1, min(6, len(self.blocks))))
        return np.array(sorted(point for block in chosen for point in block), dtype=np.int64)

    def judge(self, due: Ints, readings: Readings) -> bool:
        """Count; True when everything is good."""
        tally, good = self.tally, readings.quality == Quality.GOOD
        uncertain = readings.quality == Quality.UNCERTAIN
        tally.reads += 1
        tally.good += int(good.sum())
        tally.uncertain += int(uncertain.sum())
        tally.bad += int((~good & ~uncertain).sum())
        wrong = (good | uncertain) & (readings.values != self.expected[due])
        for at in np.flatnonzero(wrong).tolist():
            point, value = due[at], readings.values[at]
            where = tally.wrong if good[at] else tally.doubtful
            where.append(f"{self.points[point].name} is {value}, not {self.expected[point]}")
        assert np.isnan(readings.values[~good & ~uncertain]).all()
        return bool(good.all())

    def bytes_seen(self) -> int:
        """In both directions, by all sessions so far."""
        return sum(session._counts.bytes for session in self._sessions)

    def _open(self) -> AbstractAsyncContextManager[Session]:
        return DRIVER.open("rig", self.connection, self.points, self.clock)

    def _note(self, session: Session) -> None:
        assert isinstance(session, ModbusSession)
        self._sessions.append(session)

    async def suffer(self, peer: Peer, faulty: int) -> None:
        """Read until the peer has answered so many requests with a fault or in its wake."""
        while peer.faulty < faulty:
            with suppress(DeviceSilent):
                async with self._open() as session:
                    self._note(session)
                    while peer.faulty < faulty:
                        due = self.chance.choice(self.cycles)
                        self.judge(due, await session.read(due))
                        await asyncio.sleep(self.chance.choice(PAUSES_S))
                break
            self.tally.silences += 1
            await asyncio.sleep(self.chance.choice(PAUSES_S))

    async def recover(self, peer: Peer) -> None:
        """The peer is well: all points are good, and stay so, within READS_TO_RECOVER reads."""
        peer.share, readings = 0.0, None
        for _ in range(READS_TO_RECOVER):
            with suppress(DeviceSilent):
                async with self._open() as session:
                    self._note(session)
                    for _ in range(READS_TO_RECOVER):
                        await asyncio.sleep(REST_S)
                        readings = await session.read(self.everything)
                        if self.judge(self.everything, readings):
                            assert self.judge(self.everything, await session.read(self.everything)), "good, then not"
                            return
        raise AssertionError(f"not good again within {READS_TO_RECOVER} reads after the faults: {readings}")
