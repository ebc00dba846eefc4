"""The door through which drivers and detectors come in: entry points, ours like anyone's.

Rule: a plug-in is imported only when something names it; asking which kinds there are imports nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

from edge_agent.contract import Detector, Driver, Scanner

DRIVERS = "edge_agent.drivers"
DETECTORS = "edge_agent.detectors"
SCANNERS = "edge_agent.scanners"


class UnknownPluginError(Exception):
    """No installed distribution offers this kind. `known`: those that are offered."""

    def __init__(self, kind: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no driver {kind!r} is installed")
        self.kind = kind
        self.known = known


class BrokenPluginError(Exception):
    """The plug-in is installed but cannot be imported."""


class Origin(NamedTuple):
    """Where a plug-in comes from."""

    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """An entry point that has not been imported yet, or the object itself."""

    origin: Origin
    entry: metadata.EntryPoint | None = None
    plugin: Any = None

    def load(self) -> Any:
        if self.entry is None:
            return self.plugin
        try:
            return self.entry.load()
        except Exception as error:  # whatever a foreign module does while it is imported
            raise BrokenPluginError(
                f"{self.entry.value} of {self.origin.distribution} cannot be imported: {error}"
            ) from error


class Plugins:
    """A registry of drivers by kind. Tests and other programs may give their own; `installed()` gives the usual one."""

    def __init__(self, drivers: Mapping[str, Driver] | None = None) -> None:
        own = Origin("given", "-")
        self._drivers = {kind: _Offer(own, plugin=driver) for kind, driver in (drivers or {}).items()}

    def kinds(self) -> tuple[str, ...]:
        """The kinds of drivers there are, sorted."""
        return tuple(sorted(self._drivers))

    def driver(self, kind: str) -> Driver:
        """The driver of this kind. Raises UnknownPluginError or BrokenPluginError."""
        if kind not in self._drivers:
            raise UnknownPluginError(kind, self.kinds())
        found: Driver = self._drivers[kind].load()
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


def detectors() -> dict[str, Detector]:
    """All installed detectors, imported, in the order of their names. Raises BrokenPluginError."""
    return {name: offer.load() for name, offer in sorted(_offers(DETECTORS).items())}


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
        offers[entry.name] = _Offer(Origin(about.name, about.version) if about else Origin("unknown", "-"), entry)
    return offers
