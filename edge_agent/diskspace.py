"""What is told of the disk on which the journal lies: it is nearly full (a warning), or it takes nothing (an alarm).

Rule 1: a refusal is the store's own, never guessed: what statvfs says is only why. Rule 2: the disk is asked in `looked`,
which is called in a thread: a disk that hangs hangs nobody.
"""

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from edge_agent import texts
from edge_agent.contract import ENDING, Quality
from edge_agent.records import Loss

LOOK_EVERY_S = 5.0
LOW_SHARE, LOW_BYTES, LOW_SHARE_MAX = 0.05, 200_000_000, 0.2
"""Nearly full: less is free than the larger of the first two, but never more than this share of a small disk."""
WELL_AGAIN = 1.2
"""Times that much must be free before it is well again, so that a file that comes and goes makes no chatter."""
NEARLY, REFUSES = ENDING, 3 * ENDING
"""Steps as contract.ENDING has them: severity warning, and severity alarm."""


class Why(IntEnum):
    """Why the disk takes nothing; also an index into the texts."""

    FAILING = 0
    FULL = 1
    READ_ONLY = 2
    NO_INODES = 3


@dataclass(frozen=True, slots=True)
class Space:
    """Of the file system below a folder. free, total: bytes; free counts what an ordinary user may take."""

    free: int
    total: int
    inodes: int | None
    """Free ones; None where the file system counts none."""
    read_only: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """The disk takes nothing. since: for people. fault: the system's words. waiting_mb, room_mb: memory that waits, and
    all that may wait.
    """

    fault: str
    since: str
    waiting_mb: float
    room_mb: float


def looked(folder: Path) -> Space | None:
    """None where nobody can say. The folder need not be there yet."""
    for place in (folder, *folder.parents):
        try:
            found = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        inodes = found.f_favail if found.f_files else None
        size = found.f_frsize
        return Space(found.f_bavail * size, found.f_blocks * size, inodes, bool(found.f_flag & os.ST_RDONLY))
    return None


def told(space: Space | None, refusal: Refusal | None, before: Loss, language: str) -> Loss:
    """What the agent's own machine says of the disk now. before: what it said last."""
    if refusal is not None:
        why = _why(space, refusal.fault)
        words = texts.disk_refuses(language, why, refusal.since, refusal.fault, refusal.waiting_mb, refusal.room_mb)
        return Loss(REFUSES + why, words)
    if space is None or not space.total:
        return Loss(Quality.HOLD)
    low = min(max(LOW_SHARE * space.total, LOW_BYTES), LOW_SHARE_MAX * space.total)
    if space.free < low * (WELL_AGAIN if before.why >= NEARLY else 1):
        return Loss(NEARLY, texts.disk_low(language, space.free, space.total))
    return Loss(Quality.GOOD, texts.disk_well(language, space.free))


def _why(space: Space | None, fault: str) -> Why:
    if space is None:
        return Why.FAILING
    if space.read_only:
        return Why.READ_ONLY
    if space.inodes == 0:
        return Why.NO_INODES
    return Why.FULL if "full" in fault or "No space" in fault or not space.free else Why.FAILING
