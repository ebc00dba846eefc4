"""Norms: whole for each operating state, percentages made absolute, and checked for sense.

`layers` are the tables that say a norm, the strongest first: only places are looked for in them, values come merged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from pydantic import BaseModel

from edge_agent import yamlfile
from edge_agent.configuration.nouns import BandConfig, NormConfig
from edge_agent.configuration.report import Part, Report, Spot, deeper
from edge_agent.configuration.words import NO_BAND, BandFile, Deadband, NormFile, StateNormFile
from edge_agent.contract import Band, Checks, Column, Detector, WrongKey
from edge_agent.yamlfile import Table

Layers = tuple[Part, ...]
Detectors = Mapping[str, Detector]
"""By the key under which their settings stand in a norm; those without settings have none."""

NO_DEADBAND = Deadband(0.0, percent=False)
SAME_IN_EVERY_STATE = ("stale", "use_uncertain", "acknowledge")
"""They say which readings may be judged and how a warning ends: the state itself is found from judged readings."""


def resolved(
    report: Report, layers: Layers, words: NormFile, states: Iterable[str], every_us: int, detectors: Detectors
) -> NormConfig:
    """The base norm, and one whole norm for each state that changes it."""
    check_keys(report, layers[-1], words, detectors)
    by_state: dict[str, NormConfig] = {}
    holders = [layer.part("by_state") for layer in layers] if words.by_state else []
    for state, over in words.by_state.items():
        of_state = tuple(holder.part(state) for holder in holders)
        if state not in states:
            spot = next(holder.key(state) for holder in holders if state in holder.table)
            report.unknown_word(spot, "the machine has no such state", state, states)
        for key in SAME_IN_EVERY_STATE:
            if key in over.model_fields_set:
                spot = next(part.key(key) for part in of_state if key in part.table)
                report.add(spot, "may not differ by operating state", None, "at the norm itself")
        laid = _laid_over(words, over)
        by_state[state] = _whole(report, (*of_state, *layers), laid, every_us, {}, detectors)
    return _whole(report, layers, words, every_us, by_state, detectors)


def check_keys(report: Report, part: Part, words: NormFile, detectors: Detectors) -> None:
    """That every key of a norm is one of its own or that of a detector, also by state. part: the table with all of them."""
    for its, norm in ((part, words), *((part.part("by_state").part(s), over) for s, over in words.by_state.items())):
        for key in norm.model_extra or ():
            detector = detectors.get(key)
            if detector is None or detector.Settings is None:
                known = {*type(norm).model_fields, *(key for key, each in detectors.items() if each.Settings)}
                report.unknown_key(its.key(key), known, deeper(type(norm), key))


def check_alone(report: Report, part: Part, words: NormFile, detectors: Detectors) -> None:
    """Of a norm that something may yet be laid over: its keys, and that no low stands above its high."""
    check_keys(report, part, words, detectors)
    for layer, norm in ((part, words), *((part.part("by_state").part(s), over) for s, over in words.by_state.items())):
        for severity in ("warning", "alarm"):
            _check_sides(report, (layer,), getattr(norm, severity) or NO_BAND, severity)


def _check_sides(report: Report, layers: Layers, band: BandFile, severity: str) -> None:
    """Told at the low, or at the high when that one is laid over it."""
    if band.low is None or band.high is None or band.low < band.high:
        return
    spot = _strongest(layers, (severity, "low"), (severity, "high"))
    if spot is not None and spot.keys[-1] == "high":
        report.add(spot, "high is not above low", f"{band.high:g}", f"more than {band.low:g}")
    else:
        report.add(spot, "low is not below high", f"{band.low:g}", f"less than {band.high:g}")


def _whole(
    report: Report,
    layers: Layers,
    words: StateNormFile,
    every_us: int,
    by_state: dict[str, NormConfig],
    detectors: Detectors,
) -> NormConfig:
    warning, alarm = _band(report, layers, words, "warning"), _band(report, layers, words, "alarm")
    _check_nesting(report, layers, warning, alarm)
    if words.stale is not None and words.stale < every_us:
        found, allowed = f"{words.stale / 1e6:g}s", f"{every_us / 1e6:g}s or more"
        report.add(_spot(layers, "stale"), "is shorter than the poll period", found, allowed)
    return NormConfig(
        warning=warning,
        alarm=alarm,
        stale_us=words.stale,
        use_uncertain=words.use_uncertain,
        severity=words.severity,
        acknowledge=words.acknowledge,
        by_state=by_state,
        rules=_rules(report, layers, words, detectors, Column(every_us, limits_of(warning), limits_of(alarm), 1, 0)),
    )


def limits_of(band: BandConfig) -> Band:
    """The band as detectors have it."""
    low, high = -inf if band.low is None else band.low, inf if band.high is None else band.high
    return Band(low, high, band.deadband, band.on_delay_us, band.off_delay_us)


def _rules(
    report: Report, layers: Layers, words: StateNormFile, detectors: Detectors, about: Column
) -> dict[str, BaseModel]:
    """The settings of each detector that the norm asks for. `true` is all defaults; null and false ask for nothing.

    about: the rest of the norm.
    """
    found: dict[str, BaseModel] = {}
    for key, written in (words.model_extra or {}).items():
        detector = detectors.get(key)
        model = detector.Settings if detector else None
        spot = _spot(layers, key)
        if model is None or spot is None or written is None or written is False:
            continue
        part = _settings_part(report, model, written, spot)
        settings = report.checked(model, part) if part else None
        if settings is not None:
            found[key] = settings
        checks: object = detector
        if part and settings is not None and isinstance(checks, Checks):
            try:
                checks.check(replace(about, settings=settings))
            except WrongKey as error:
                report.add(part.value(error.key) or spot, str(error), yamlfile.shown(part.table.get(error.key)))
    return found


def _settings_part(report: Report, model: type[BaseModel], written: Any, spot: Spot) -> Part | None:
    """What stands under a detector's key as keys with values; None (told) when it cannot be that."""
    if isinstance(written, Table):
        return Part(written, spot.keys, spot.place)
    table = Table(spot.place)
    if written is True:
        return Part(table, spot.keys, spot.place)
    short = getattr(model, "short", None)
    if short is None or isinstance(written, list):
        report.add(spot, "is neither true nor keys with values", yamlfile.shown(written), ", ".join(model.model_fields))
        return None
    table.put(short, written, spot.place, spot.place)
    return Part(table, spot.keys, spot.place, {short: spot.keys})


def _band(report: Report, layers: Layers, words: StateNormFile, severity: str) -> BandConfig:
    band: BandFile = getattr(words, severity) or NO_BAND
    _check_sides(report, layers, band, severity)
    return BandConfig(
        low=band.low,
        high=band.high,
        deadband=_deadband(report, layers, severity, band, words),
        on_delay_us=_said(band.on_delay, words.on_delay, 0),
        off_delay_us=_said(band.off_delay, words.off_delay, 0),
    )


def _deadband(report: Report, layers: Layers, severity: str, band: BandFile, words: StateNormFile) -> float:
    """In the signal's unit. A percentage is of high - low; half the band or more would never let a warning return."""
    own = band.deadband is not None

    def told(text: str, allowed: str) -> None:
        its = (severity, "deadband") if own else ("deadband",)
        spot = _strongest(layers, its, (severity, "low"), (severity, "high"))
        report.add(spot, text, str(written), allowed)

    written: Deadband = _said(band.deadband, words.deadband, NO_DEADBAND)
    if band.low is None or band.high is None:
        if not written.percent:
            return written.amount
        if own or band.low is not None or band.high is not None:
            told(
                f"a share of the {severity} band needs its low and its high",
                "a number in the signal's unit, or both sides",
            )
        return 0.0
    width = band.high - band.low
    amount = written.amount / 100.0 * width if written.percent else written.amount
    if width > 0 and amount * 2 >= width:
        allowed = "less than 50%" if written.percent else f"less than {width / 2:g}"
        told(f"is half the {severity} band or more", allowed)
    return amount


def _check_nesting(report: Report, layers: Layers, warning: BandConfig, alarm: BandConfig) -> None:
    """The alarm band contains the warning band, and some value lies in both."""
    if alarm.low is not None and warning.low is not None and alarm.low > warning.low:
        _tell_nesting(report, layers, "low", alarm.low, warning.low)
    if alarm.high is not None and warning.high is not None and alarm.high < warning.high:
        _tell_nesting(report, layers, "high", alarm.high, warning.high)
    if alarm.low is not None and warning.high is not None and alarm.low >= warning.high:
        spot, allowed = _strongest(layers, ("alarm", "low"), ("warning", "high")), f"less than {warning.high:g}"
        report.add(spot, "alarm low is not below warning high", f"{alarm.low:g}", allowed)
    if alarm.high is not None and warning.low is not None and alarm.high <= warning.low:
        spot, allowed = _strongest(layers, ("alarm", "high"), ("warning", "low")), f"more than {warning.low:g}"
        report.add(spot, "alarm high is not above warning low", f"{alarm.high:g}", allowed)


def _tell_nesting(report: Report, layers: Layers, side: str, alarm: float, warning: float) -> None:
    """Told at the alarm's limit, or at the warning's when a stronger layer says that one only."""
    text = "the alarm band does not contain the warning band"
    for layer in layers:
        if spot := layer.value("alarm", side):
            return report.add(spot, text, f"{alarm:g}", f"{warning:g} or {'less' if side == 'low' else 'more'}")
        if spot := layer.value("warning", side):
            return report.add(spot, text, f"{warning:g}", f"within alarm {side} {alarm:g}")
    return None


def _spot(layers: Layers, *keys: str) -> Spot | None:
    """The value in the strongest layer that says it."""
    return next((spot for layer in layers if (spot := layer.value(*keys))), None)


def _strongest(layers: Layers, *paths: tuple[str, ...]) -> Spot | None:
    """The first of these values that the strongest layer says: what was laid over makes the difference."""
    return next((spot for layer in layers for path in paths if (spot := layer.value(*path))), None)


def _said(*values: Any) -> Any:
    """The first that is said at all."""
    for value in values:
        if value is not None:
            return value
    raise ValueError("nothing is said")


def _laid_over(base: StateNormFile, over: StateNormFile) -> StateNormFile:
    """A state's norm over the base norm, key by key, bands too."""
    said: dict[str, Any] = {key: getattr(over, key) for key in over.model_fields_set}
    for key, above in (over.model_extra or {}).items():
        below = (base.model_extra or {}).get(key)
        if isinstance(above, Table) and isinstance(below, Table):
            said[key] = yamlfile.merged(below, above)
    for severity in ("warning", "alarm"):
        below, above = getattr(base, severity), said.get(severity)
        if below is not None and above is not None:
            said[severity] = below.model_copy(update={key: getattr(above, key) for key in above.model_fields_set})
    return base.model_copy(update=said)
