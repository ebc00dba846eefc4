"""The plain twin of the judge: the rules of the contract §6 in spoken words, one reading at a time, no numpy.

It shares no code with the judge and is as slow as it looks. It knows limits, stale, HOLD, settle and by_state; operating
states and formulas are handed to it as functions. Lines that are lost and certificates that end have twins of
their own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

LINE_LOST = 32
GOOD, HOLD, UNCERTAIN, CONFIRMED, CLOCK, RESTART, MISSING, NAN, RANGE = 0, 1, 2, 17, 18, 13, 12, 9, 8


@dataclass
class TwinLimit:
    side: str
    severity: int
    limit: float
    deadband: float
    on_us: int
    off_us: int
    raised: bool = False
    run_us: int | None = None
    since: int = 0

    def outside(self, v: float) -> bool:
        return v > self.limit if self.side == "high" else v < self.limit

    def back(self, v: float) -> bool:
        return v <= self.limit - self.deadband if self.side == "high" else v >= self.limit + self.deadband


@dataclass
class TwinSignal:
    limits: list[TwinLimit]
    by_mode: dict[int, list[TwinLimit]] = field(default_factory=dict)
    stale_us: int = 10_000_000
    use_uncertain: bool = False
    severity: int = 1
    severity_by_mode: dict[int, int] = field(default_factory=dict)
    valid: tuple[float, float] = (-math.inf, math.inf)
    value: float = math.nan
    quality: int = MISSING
    faded: bool = False
    seen_t: int | None = None
    seen_ts: int = 0
    covered_us: int = 0
    """For how long its line was lost since then."""
    stale: bool = False
    stale_since: int = 0
    level: dict[str, int] = field(default_factory=lambda: {"high": 0, "low": 0})
    since: dict[str, int] = field(default_factory=lambda: {"high": 0, "low": 0})


@dataclass
class TwinMachine:
    signals: list[TwinSignal]
    mode_of: Callable[[list[float | None]], int | None] | None = None
    """The operating state from the known values: a number, -1 for none true, None when nothing is decidable."""
    settle_us: int = 0
    mode: int = -2
    lasted_us: dict[int, int] = field(default_factory=dict)
    """By operating state; a step that ends in a row which cannot decide it is nobody's."""
    settle_until: int | None = None
    last_t: int | None = None

    def row(self, t: int, ts: int, values: list[float], qualities: list[int]) -> list[tuple[int, str, int, int]]:
        """One row; returns the changes of level: (signal, kind, level, since)."""
        step = 0 if self.last_t is None else max(0, t - self.last_t)
        self.last_t = t
        goods, lates = [], []
        for signal, value, raw in zip(self.signals, values, qualities, strict=True):
            quality = raw
            if quality in (GOOD, UNCERTAIN, CLOCK):
                if not math.isfinite(value):
                    quality = NAN
                elif not signal.valid[0] <= value <= signal.valid[1]:
                    quality = RANGE
            spoke = quality not in (HOLD, CONFIRMED)
            if spoke:
                signal.value, signal.quality = value, quality
            signal.faded = False
            good = (spoke or quality == CONFIRMED) and self.known(signal)
            if signal.seen_t is None:
                signal.seen_t, signal.seen_ts = t, ts
            behind_a_lost_line = signal.quality >= LINE_LOST
            if behind_a_lost_line:
                signal.covered_us += step
            if good or quality == RESTART:
                signal.seen_t, signal.seen_ts, signal.covered_us = t, ts, 0
            late = t - signal.seen_t - signal.covered_us >= signal.stale_us and not behind_a_lost_line
            signal.faded = late and quality == HOLD and signal.quality in (GOOD, UNCERTAIN, CLOCK)
            goods.append(good)
            lates.append(late)
        if self.mode_of is not None:
            mode = self.mode_of([s.value if self.known(s) else None for s in self.signals])
            if mode is not None and self.mode != -2:
                self.lasted_us[self.mode] = self.lasted_us.get(self.mode, 0) + step
            if mode is not None and mode != self.mode:
                if self.mode != -2:
                    self.settle_until = t + self.settle_us
                self.mode = mode
        armed = self.settle_until is None or t >= self.settle_until
        changes = []
        for i, signal in enumerate(self.signals):
            changes += [(i, kind, level, since) for kind, level, since in self.limits(signal, step, ts, armed)]
            if signal.stale and goods[i]:
                signal.stale = False
                changes.append((i, "stale", 0, signal.stale_since))
            elif not signal.stale and lates[i] and armed:
                signal.stale, signal.stale_since = True, signal.seen_ts
                severity = signal.severity_by_mode.get(self.mode, signal.severity)
                changes.append((i, "stale", severity, signal.stale_since))
        return sorted(changes, key=lambda c: (c[0], c[1]))

    @staticmethod
    def known(signal: TwinSignal) -> bool:
        if signal.faded:
            return False
        return signal.quality in (GOOD, CLOCK) or (signal.quality == UNCERTAIN and signal.use_uncertain)

    def limits(self, signal: TwinSignal, step: int, ts: int, armed: bool) -> list[tuple[str, int, int]]:
        variants = signal.by_mode.get(self.mode)
        for place, limit in enumerate(signal.limits):
            if signal.by_mode:
                norm = variants[place] if variants else signal.by_mode[-1][place]
                limit.limit, limit.deadband, limit.on_us, limit.off_us = (
                    norm.limit,
                    norm.deadband,
                    norm.on_us,
                    norm.off_us,
                )
            if not limit.raised and not armed:
                limit.run_us = None
            if not self.known(signal):
                continue
            wanted = limit.back(signal.value) if limit.raised else limit.outside(signal.value) and armed
            if not wanted:
                limit.run_us = None
                continue
            if limit.run_us is None:
                limit.run_us = 0
                if not limit.raised:
                    limit.since = ts
            else:
                limit.run_us += step
        ripe = [
            limit
            for limit in signal.limits
            if self.known(signal)
            and limit.run_us is not None
            and limit.run_us >= (limit.off_us if limit.raised else limit.on_us)
        ]
        going = [limit for limit in signal.limits if limit.raised or limit.run_us is not None]
        for limit in ripe:
            limit.raised, limit.run_us = not limit.raised, None
        changes = []
        for kind in ("high", "low"):
            level = max([limit.severity for limit in signal.limits if limit.side == kind and limit.raised], default=0)
            if level == signal.level[kind]:
                continue
            if signal.level[kind] == 0:
                signal.since[kind] = min(limit.since for limit in going if limit.side == kind)
            signal.level[kind] = level
            changes.append((kind, level, signal.since[kind]))
        return changes


@dataclass
class TwinLine:
    """A line, or a part of one: the rows say why it is lost (0: well), or that this is not known (None)."""

    on_us: int
    last_t: int | None = None
    run_us: int | None = None
    since: int = 0
    raised: bool = False

    def row(self, t: int, ts: int, why: int | None) -> tuple[str, int] | None:
        """What is said: raised or cleared, and since when."""
        step = 0 if self.last_t is None else max(0, t - self.last_t)
        self.last_t = t
        if why is None:
            return None
        if why == 0:
            self.run_us = None
            if self.raised:
                self.raised = False
                return "cleared", self.since
            return None
        if self.raised:
            return None
        if self.run_us is None:
            self.run_us, self.since = 0, ts
        else:
            self.run_us += step
        if self.run_us < self.on_us:
            return None
        self.raised, self.run_us = True, None
        return "raised", self.since


@dataclass
class TwinCertificate:
    """The certificates of a line: the rows say how soon one ends (0: none does soon), or that this is not known (None)."""

    told: int = 0
    since: int = 0

    def row(self, ts: int, said: int | None) -> tuple[str, str, int] | None:
        """What is said, how bad it is, and since when."""
        if said is None or said == self.told:
            return None
        before, self.told = self.told, said
        if before == 0:
            self.since = ts
        worse = self.severity(said or before)
        if said == 0:
            return "cleared", worse, self.since
        if before == 0 or worse == self.severity(before):
            return "raised", worse, self.since
        return ("escalated" if worse == "alarm" else "deescalated"), worse, self.since

    @staticmethod
    def severity(said: int) -> str:
        """From 7 days on, and when it has expired, an alarm."""
        return "alarm" if said >= 3 * 16 else "warning"
