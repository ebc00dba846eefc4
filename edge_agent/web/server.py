"""The one place that knows uvicorn: a server on a socket that is already bound, run and ended by its caller's task.

Rule 1: signals belong to the agent, not to the web server.
Rule 2: the end takes a second at most, whoever is still connected.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_BYTES_MAX = 16 * 1024
"""Request line and headers together, as far as they were not complete at once."""
HEAD_S_MAX = 10.0
"""How long a request's head may take from its first byte, and a new connection until its first request."""
KEEP_ALIVE_S = 15
CONNECTIONS_MAX = 128
GRACE_S = 1


class HurriedProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on a request head that dribbles in (uvicorn limits its size, not its time)."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S_MAX, self._hang_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering and self._late is not None:
            self._late.cancel()
            self._late = None
        elif not answering and self._late is None:
            self._late = self.loop.call_later(HEAD_S_MAX, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        self.transport.abort()


class Server(uvicorn.Server):
    """Runs until cancelled; `closing` is called first, so that endless answers can end."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, closing: Callable[[], None]) -> None:
        super().__init__(config)
        self._listener = listener
        self._closing = closing

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_cancelled(self) -> None:
        """Serve the bound socket."""
        await self.serve([self._listener])

    async def main_loop(self) -> None:
        """Wait for the caller's cancellation; uvicorn's own loop wakes ten times a second for nothing."""
        try:
            await asyncio.Event().wait()
        finally:
            self._closing()
            await self.shutdown([self._listener])
            for connection in list(self.server_state.connections):
                connection.transport.abort()


def to_server(app: ASGIApp, listener: socket.socket, closing: Callable[[], None]) -> Server:
    """A server for this application on this bound socket; `run_until_cancelled` runs it."""
    settings: dict[str, Any] = {
        "http": HurriedProtocol,
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": GRACE_S,
        "limit_concurrency": CONNECTIONS_MAX,
        "h11_max_incomplete_event_size": HEAD_BYTES_MAX,
    }
    return Server(uvicorn.Config(app, **settings), listener, closing)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one. Raises ValueError for another address, OSError."""
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"the page listens on loopback only (127.0.0.1, localhost or ::1), not on {host!r}")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((address, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"the page cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address to put into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
