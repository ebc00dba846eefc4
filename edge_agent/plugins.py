"""The door through which drivers and detectors come in: entry points, ours like anyone's.

Rule: a plug-in is imported only when something names it; asking which kinds there are imports nothing.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel

from edge_agent.contract import Detector, Driver, Scanner

DRIVERS = "edge_agent.drivers"
DETECTORS = "edge_agent.detectors"
SCANNERS = "edge_agent.scanners"


class UnknownPluginError(Exception):
    """No installed distribution offers this kind of driver or detector. `known`: those that are offered."""

    def __init__(self, kind: str, known: tuple[str, ...], what: str = "driver") -> None:
        super().__init__(f"no {what} {kind!r} is installed")
        self.kind = kind
        self.known = known


class BrokenPluginError(Exception):
    """The plug-in is installed but cannot be used: not imported, no driver, or one of two of its name."""


class Origin(NamedTuple):
    """Where a plug-in comes from."""

    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """An entry point that has not been imported yet, or the object itself. rival: who else offers the same name."""

    origin: Origin
    entry: metadata.EntryPoint | None = None
    plugin: Any = None
    rival: Origin | None = None

    def load(self) -> Any:
        if self.entry is None:
            return self.plugin
        if self.rival is not None:
            # Which of them would read the machines must not hang on the order of folders.
            one, two = sorted((self.origin.distribution, self.rival.distribution))
            raise BrokenPluginError(f"{one} and {two} both offer {self.entry.name!r}; uninstall one of them")
        try:
            return self.entry.load()
        except Exception as error:  # whatever a foreign module does while it is imported
            raise BrokenPluginError(
                f"{self.entry.value} of {self.origin.distribution} cannot be imported: {error}"
            ) from error


class Plugins:
    """A registry of drivers by kind, and of detectors. Tests and other programs may give their own drivers; `installed()`
    gives the usual one.
    """

    def __init__(self, drivers: Mapping[str, Driver] | None = None) -> None:
        own = Origin("given", "-")
        self._drivers = {kind: _Offer(own, plugin=driver) for kind, driver in (drivers or {}).items()}

    def detectors(self) -> Mapping[str, Detector]:
        """All that are installed, by the key of their settings. Raises BrokenPluginError."""
        return detectors()

    def kinds(self) -> tuple[str, ...]:
        """The kinds of drivers there are, sorted."""
        return tuple(sorted(self._drivers))

    def driver(self, kind: str) -> Driver:
        """The driver of this kind. Raises UnknownPluginError or BrokenPluginError."""
        if kind not in self._drivers:
            raise UnknownPluginError(kind, self.kinds())
        offer = self._drivers[kind]
        found: Driver = offer.load()
        if lacks := _lacks(found):
            raise BrokenPluginError(f"{kind} of {offer.origin.distribution} is no driver: {lacks}")
        return found

    def origin(self, kind: str) -> Origin:
        """Distribution and version that offer this kind. Raises UnknownPluginError."""
        if kind not in self._drivers:
            raise UnknownPluginError(kind, self.kinds())
        return self._drivers[kind].origin


def installed() -> Plugins:
    """The drivers of all installed distributions."""
    plugins = Plugins()
    plugins._drivers.update(_offers(DRIVERS))  # noqa: SLF001  # the one other way to fill a registry
    return plugins


def driver(kind: str, registry: Plugins | None = None) -> Driver:
    """The driver of this kind. Raises UnknownPluginError or BrokenPluginError."""
    return (registry or installed()).driver(kind)


@cache
def detectors() -> Mapping[str, Detector]:
    """All installed detectors, imported, in the order of their names. Raises BrokenPluginError."""
    found: dict[str, Detector] = {}
    whose: dict[str, str] = {}
    for name, offer in sorted(_offers(DETECTORS).items()):
        detector = offer.load()
        if lacks := _lacks_of_detector(detector):
            raise BrokenPluginError(f"{name} of {offer.origin.distribution} is no detector: {lacks}")
        for kind in detector.kinds:
            if kind in whose:
                raise BrokenPluginError(
                    f"the detectors {whose[kind]} and {name} both find {kind!r}; uninstall one of them"
                )
            whose[kind] = name
        found[name] = detector
    return MappingProxyType(found)


def _lacks_of_detector(detector: Any) -> str:
    """What keeps it from being a contract.Detector, in words; '' when nothing does."""
    if isinstance(detector, type):
        return f"the entry point leads to the class {detector.__name__}, not to an instance of it"
    kinds, model = getattr(detector, "kinds", None), getattr(detector, "Settings", None)
    if not isinstance(kinds, tuple) or not kinds or not all(isinstance(kind, str) for kind in kinds):
        return "its kinds are no tuple of texts"
    if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
        return "its Settings are no pydantic model"
    lacks = [name for name in ("norms", "start", "step") if not callable(getattr(detector, name, None))]
    return f"it has no {lacks[0]}" if lacks else ""


def _lacks(driver: Any) -> str:
    """What keeps it from being a contract.Driver, in words; '' when nothing does."""
    if isinstance(driver, type):
        return f"the entry point leads to the class {driver.__name__}, not to an instance of it"
    for name in ("Connection", "Address"):
        model = getattr(driver, name, None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return f"its {name} is no pydantic model"
    if not isinstance(getattr(driver, "inherited", None), AbstractSet):
        return "its inherited is no set of keys"
    return "" if callable(getattr(driver, "open", None)) else "it has no open"


def scanner_kinds() -> tuple[str, ...]:
    """The kinds of devices that can be scanned, sorted."""
    return tuple(sorted(_offers(SCANNERS)))


def scanner(kind: str) -> Scanner:
    """The scanner of this kind. Raises UnknownPluginError or BrokenPluginError."""
    offers = _offers(SCANNERS)
    if kind not in offers:
        raise UnknownPluginError(kind, tuple(sorted(offers)))
    found: Scanner = offers[kind].load()
    return found


def _offers(group: str) -> dict[str, _Offer]:
    offers: dict[str, _Offer] = {}
    for entry in metadata.entry_points(group=group):
        about = entry.dist
        offer = _Offer(Origin(about.name, about.version) if about else Origin("unknown", "-"), entry)
        other = offers.get(entry.name)
        offers[entry.name] = offer if other is None else replace(other, rival=offer.origin)
    return offers
