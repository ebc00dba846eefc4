"""The lines to devices: each connection with its driver, and the keys that drivers add to signals and machines."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic import BaseModel

from edge_agent import plugins
from edge_agent.configuration import words
from edge_agent.configuration.nouns import ConnectionConfig
from edge_agent.configuration.report import Part, Report
from edge_agent.contract import Driver
from edge_agent.yamlfile import Place, Table, shown_under

NOWHERE = Place("", 1, 1)


class Lines:
    """The section `connections`, checked. Only the drivers that it names are imported.

    found: valid connections. kinds: connection → kind, where both are known. used: connections that a signal named.
    """

    def __init__(self, report: Report, section: Part | None, registry: plugins.Plugins) -> None:
        self.report = report
        self.section = section or Part(Table(NOWHERE), ("connections",), NOWHERE)
        self.registry = registry
        self.drivers: dict[str, Driver | None] = {}
        self.kinds: dict[str, str] = {}
        self.used: set[str] = set()
        self.found: dict[str, ConnectionConfig] = {}
        self.names = tuple(name for name in self.section.table if isinstance(name, str))
        """Every name that stands in the section, valid or not."""
        for name in self.section.table:
            part = report.named(name, self.section, words.NAME, "connection")
            if part is not None and (connection := self._connection(name, part)):
                self.found[name] = connection

    def driver_of(self, connection: str) -> Driver | None:
        """The driver of a connection; None when it is not known."""
        kind = self.kinds.get(connection)
        return self.drivers.get(kind) if kind else None

    def only_driver(self) -> Driver | None:
        """The driver of all connections when they have one kind: what a signal without a good connection must be for."""
        kinds = {self.kinds.get(name) for name in self.names}
        kind = kinds.pop() if len(kinds) == 1 else None
        return self.drivers.get(kind) if kind else None

    def inherited(self, connections: Iterable[str] | None = None) -> frozenset[str] | None:
        """Keys that a machine may have for the drivers of these connections (None: of all of them).

        None when one of them is not known, so that no key can be called unknown.
        """
        drivers = [
            self.driver_of(name) if name in self.names else self.only_driver()
            for name in (self.names if connections is None else connections)
        ]
        if None in drivers:
            return None
        return frozenset[str]().union(*(driver.inherited for driver in drivers if driver))

    def address_keys(self) -> frozenset[str] | None:
        """Keys that a signal may have for one of the drivers; None when a driver is not known."""
        drivers = [self.driver_of(name) for name in self.names]
        if None in drivers:
            return None
        return frozenset[str]().union(*(driver.Address.model_fields for driver in drivers if driver))

    def note_unused(self) -> None:
        for name in self.found:
            if name not in self.used:
                self.report.note(self.section.key(name), "no signal uses this connection")

    def _connection(self, name: str, part: Part) -> ConnectionConfig | None:
        about = self.report.checked(words.ConnectionFile, part)
        driver = self._driver(about.driver, part) if about else None
        if about is None or driver is None:
            return None
        self.kinds[name] = about.driver
        own = part.without({"driver"})
        if not isinstance(own.table.get("password"), Table | NoneType):
            spot = own.value("password")
            self.report.add(
                spot, "a password is never written in plain", shown_under(("password",), ""), "{secret: NAME}"
            )
            own = own.without({"password"})
        settings = self.report.checked(driver.Connection, own)
        folder = Path(part.at.file).absolute().parent
        return None if settings is None else ConnectionConfig(name, about.driver, _rooted(settings, folder))

    def _driver(self, kind: str, part: Part) -> Driver | None:
        """The driver of this kind, imported once; None when it cannot be had, which is told at each use."""
        try:
            self.drivers[kind] = self.drivers.get(kind) or self.registry.driver(kind)
        except plugins.UnknownPluginError as error:
            self.report.unknown_word(part.value("driver"), "no such driver is installed", kind, error.known)
            self.drivers[kind] = None
        except plugins.BrokenPluginError as error:
            self.report.add(part.value("driver"), str(error), shown_under((), kind))
            self.drivers[kind] = None
        return self.drivers[kind]


def _rooted(settings: BaseModel, folder: Path) -> BaseModel:
    """A path that a driver takes is relative to the file in which it stands."""
    known: dict[str, Any] = {}
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Path):
            known[key] = Path(os.path.normpath(folder / value))
        elif isinstance(value, BaseModel):
            known[key] = _rooted(value, folder)
    return settings.model_copy(update=known) if known else settings
