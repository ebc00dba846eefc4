"""Small plants for tests of the judge, made without a file: only what the compiler reads of a configuration."""

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

from detectors import health, limits, stale
from edge_agent.contract import Detector
from edge_agent.plant import Plant, compile_plant

SECOND = 1_000_000
DETECTORS: dict[str, Detector] = {"health": health.DETECTOR, "limits": limits.DETECTOR, "stale": stale.DETECTOR}


def band(
    low: float | None = None, high: float | None = None, deadband: float = 0.0, on: float = 0, off: float = 0
) -> SimpleNamespace:
    return SimpleNamespace(
        low=low, high=high, deadband=deadband, on_delay_us=round(on * SECOND), off_delay_us=round(off * SECOND)
    )


def norm(
    warning: SimpleNamespace | None = None,
    alarm: SimpleNamespace | None = None,
    stale: float | None = None,
    use_uncertain: bool = False,
    severity: str = "warning",
    acknowledge: str = "auto",
    by_state: dict[str, SimpleNamespace] | None = None,
    **rules: Any,
) -> SimpleNamespace:
    """rules: settings of detectors by their keys."""
    return SimpleNamespace(
        rules=rules,
        warning=warning or band(),
        alarm=alarm or band(),
        stale_us=None if stale is None else round(stale * SECOND),
        use_uncertain=use_uncertain,
        severity=severity,
        acknowledge=acknowledge,
        by_state=by_state or {},
    )


def signal(name: str, its_norm: SimpleNamespace | None = None, **more: Any) -> SimpleNamespace:
    plain: dict[str, Any] = {
        "name": name,
        "title": None,
        "unit": "bar",
        "advice": {},
        "valid_low": None,
        "valid_high": None,
        "every_us": SECOND,
        "formula": None,
        "column": None,
        "map": {},
        "connection": None,
        "point": None,
        "norm": its_norm or norm(),
    }
    return SimpleNamespace(**{**plain, **more})


def machine(
    name: str,
    *signals: SimpleNamespace,
    states: dict[str, str] | None = None,
    settle: float = 0,
    until: dict[str, str] | None = None,
) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        title=None,
        area=None,
        states=states or {},
        until=until or {},
        settle_us=round(settle * SECOND),
        every_us=SECOND,
        signals={each.name: each for each in signals},
    )


def plant(
    *machines: SimpleNamespace,
    language: str = "en",
    detectors: Mapping[str, Detector] = DETECTORS,
    certified: Collection[str] = (),
) -> Plant:
    """The `point` of a signal that has a `connection` is the part of it that the signal lies behind.

    certified: the connections that rest on certificates.
    """
    names = {signal.connection for each in machines for signal in each.signals.values() if signal.connection}
    config: Any = SimpleNamespace(
        machines={each.name: each for each in machines},
        connections={
            name: SimpleNamespace(settings=SimpleNamespace(part=str, certified=name in certified))
            for name in sorted(names)
        },
        agent=SimpleNamespace(language=language, timezone="UTC"),
    )
    return compile_plant(config, detectors)
