"""The addresses behind a broker's name, asked for anew at each connection; the last that were found are kept.

Rule 1: a resolver that fails or hangs costs a deadline and no more. Rule 2: nothing here belongs to the loop: a lookup
cannot be cancelled, so it has a thread of its own, and there is never more than one for a name.
"""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

RESOLVE_S = 5.0
"""What a lookup may take; after that the addresses that are known are tried."""
CONNECT_S = 5.0
"""TCP to one address."""
ADDRESSES_MAX = 3
"""Addresses of one name that are tried, each for CONNECT_S at most."""


@dataclass(slots=True)
class _Lookup:
    """One question to the resolver, and its answer. error: instead of one."""

    done: threading.Event = field(default_factory=threading.Event)
    found: tuple[str, ...] = ()
    error: OSError | None = None


class Addresses:
    """What the names of the brokers mean. Used from any thread. resolve: as socket.getaddrinfo."""

    def __init__(self, resolve: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._resolve = resolve
        self._known: dict[str, tuple[str, ...]] = {}
        self._asked: dict[str, _Lookup] = {}
        self._lock = threading.Lock()

    def connected(self, host: str, port: int) -> socket.socket:
        """A TCP connection to the first address that takes it. Blocks. Raises OSError."""
        fault: OSError = OSError(f"the name {host} has no address")
        for address in self.of(host)[:ADDRESSES_MAX]:
            try:
                line = socket.create_connection((address, port), CONNECT_S)
            except OSError as error:
                fault = error
                continue
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return line
        raise fault

    def of(self, host: str) -> tuple[str, ...]:
        """Blocks for RESOLVE_S at most. Raises OSError when nothing is known of the name."""
        lookup = self._lookup(host)
        lookup.done.wait(RESOLVE_S)
        if lookup.found:
            return lookup.found
        if known := self._known.get(host):
            return known
        raise lookup.error or OSError(f"the name {host} is not resolved within {RESOLVE_S:g} s")

    def _lookup(self, host: str) -> _Lookup:
        """The one that is under way, or a new one."""
        with self._lock:
            lookup = self._asked.get(host)
            if lookup is not None and not lookup.done.is_set():
                return lookup
            lookup = self._asked[host] = _Lookup()
        threading.Thread(target=self._ask, args=(host, lookup), name=f"resolve {host}", daemon=True).start()
        return lookup

    def _ask(self, host: str, lookup: _Lookup) -> None:
        try:
            answers = self._resolve(host, None, type=socket.SOCK_STREAM)
            lookup.found = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
            self._known[host] = lookup.found
        except (OSError, UnicodeError) as error:
            fault = error if isinstance(error, OSError) else OSError(f"the name {host}: {error}")
            lookup.error = OSError(f"the name {host} is not known: {fault.strerror or fault}")
        finally:
            lookup.done.set()
