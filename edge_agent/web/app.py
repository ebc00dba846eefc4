"""The web page and its API: an inspection sheet of every machine, live, on loopback.

Rule 1: a route looks at the board and asks the operator; it decides nothing of its own.
Rule 2: every string of a device or a configuration is hostile: it travels as JSON and is shown as text.
"""

import asyncio
import hashlib
import html
import json
import logging
import mimetypes
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edge_agent.board import Board, to_utc
from edge_agent.clock import SystemClock
from edge_agent.contract import Clock
from edge_agent.web import metrics, openapi, stream
from edge_agent.web.guard import Guard, Refused, body, error
from edge_agent.web.server import Server, bind, to_server, url_of
from edge_agent.web.trends import Trends

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
BY_CHARS_MAX = 100
COMMENT_CHARS_MAX = 1000
JSON_TYPE = "application/json"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
WORDS_OF_STATUS = {404: "there is no such page", 405: "this cannot be done here"}


class Operator(Protocol):
    """What a person may do; the agent implements it."""

    def acknowledge(self, warning_id: str, by: str, comment: str, /) -> dict[str, Any]:
        """Acknowledge a warning and return its new event (contract §2).

        Raises KeyError when no warning with this id is active, ValueError with words when its state does not allow it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Web:
    """A page that is bound but serves only while `run` runs. url: with the real port, for people."""

    url: str
    _server: Server

    async def run(self) -> None:
        """Serve until cancelled; then end every connection within a second."""
        await self._server.run_until_cancelled()


@asynccontextmanager
async def open_web(
    host: str, port: int, board: Board, operator: Operator, clock: Clock | None = None, past: Path | None = None
) -> AsyncIterator[Web]:
    """Bind the page's socket. past: the data directory, in which trends are read; None: there are none.

    Raises ValueError for an address that is not loopback, OSError when it is taken.
    """
    listener = bind(host, port)
    try:
        pages = Pages(board, operator, clock or SystemClock(), past)
        yield Web(url_of(listener), to_server(pages.guard, listener, pages.streams.close))
    finally:
        listener.close()


class Pages:
    """The routes and what they share."""

    def __init__(self, board: Board, operator: Operator, clock: Clock, past: Path | None = None) -> None:
        self._trends = Trends(past, board, clock)
        self._board = board
        self._operator = operator
        self._clock = clock
        boot = secrets.token_hex(4)
        self.streams = stream.Streams(board, clock, boot)
        self._static = _static_files()
        self.guard = Guard(self._app(), clock)
        template = Template((HERE / "templates" / "page.html").read_text("utf-8"))
        self._page = template.substitute(token=html.escape(self.guard.token), boot=boot)

    def _app(self) -> Starlette:
        routes = [
            Route("/", self.page),
            Route("/machines/{machine}", self.machine_page),
            Route("/machines/{machine}/{signal}", self.signal_page),
            Route("/warnings", self.page),
            Route("/events", self.events),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/favicon.ico", partial(self.static, name="favicon.svg")),
            Route("/static/{name}", self.static),
            Route("/api/v1/machines", self.machines),
            Route("/api/v1/machines/{machine}", self.machine),
            Route("/api/v1/machines/{machine}/signals/{signal}/trend", self.trend),
            Route("/api/v1/warnings", self.warnings),
            Route("/api/v1/warnings/{id}/acknowledge", self.acknowledge, methods=["POST"]),
            Route("/api/v1/status", self.status),
            Route("/api/v1/openapi.json", self.openapi),
        ]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Refused: _refused, Exception: _internal_error}
        return Starlette(routes=routes, exception_handlers=handlers)

    # -- for people ----------------------------------------------------------------------------------------------

    async def page(self, _: Request) -> Response:
        return HTMLResponse(self._page)

    async def machine_page(self, request: Request) -> Response:
        if request.path_params["machine"] not in self._board.names:
            raise Refused(404, "there is no machine of this name")
        return HTMLResponse(self._page)

    async def signal_page(self, request: Request) -> Response:
        machine, signal = request.path_params["machine"], request.path_params["signal"]
        if machine not in self._board.names:
            raise Refused(404, "there is no machine of this name")
        if all(each["name"] != signal for each in self._board.machine(machine)["signals"]):
            raise Refused(404, "this machine has no signal of this name")
        return HTMLResponse(self._page)

    async def static(self, request: Request, name: str = "") -> Response:
        file = self._static.get(name or request.path_params["name"])
        if file is None:
            raise Refused(404, "there is no such file")
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    async def events(self, request: Request) -> Response:
        if self.streams.full:
            raise Refused(503, "too many pages are open; close one")
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return StreamingResponse(self.streams.events(), media_type="text/event-stream")

    # -- for scripts ---------------------------------------------------------------------------------------------

    async def machines(self, _: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for piece in stream.machines(self._board):
                yield piece
                await asyncio.sleep(0)  # thousands of signals take their time, and the loop is the plant's

        return StreamingResponse(pieces(), media_type=JSON_TYPE)

    async def machine(self, request: Request) -> Response:
        name = request.path_params["machine"]
        if name not in self._board.names:
            raise Refused(404, "there is no machine of this name")
        return self._json(self._board.machine(name))

    async def trend(self, request: Request) -> Response:
        its = request.path_params
        return self._json(await self._trends.of(its["machine"], its["signal"], request.query_params))

    async def warnings(self, request: Request) -> Response:
        match request.query_params.get("active", "false"):
            case "true" | "1":
                return self._json({"warnings": self._board.warnings(active=True)})
            case "false" | "0":
                return self._json({"warnings": self._board.warnings(active=False)})
            case _:
                raise Refused(400, "active is true or false")

    async def acknowledge(self, request: Request) -> Response:
        by, comment = _acknowledgement(await body(request.scope, request.receive))
        try:
            event = self._operator.acknowledge(request.path_params["id"], by, comment)
        except KeyError:
            raise Refused(404, "no active warning has this id") from None
        except ValueError as refusal:
            raise Refused(409, str(refusal)) from None
        return self._json(event)

    async def status(self, _: Request) -> Response:
        agent = self._board.agent()
        rest = {key: agent[key] for key in ("health", "config_errors")}
        return self._json({**agent["status"], "now": to_utc(self._clock.wall_us()), **rest})

    async def openapi(self, _: Request) -> Response:
        return self._json(openapi.description(str(self._board.agent()["status"].get("version", ""))))

    # -- for machines --------------------------------------------------------------------------------------------

    async def healthz(self, _: Request) -> Response:
        """The loop that answers here is the one that runs the agent: an answer is health."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        state = str(self._board.agent()["status"].get("state", "starting"))
        return PlainTextResponse(f"{state}\n", 200 if state == "online" else 503)

    async def metrics(self, _: Request) -> Response:
        return Response(metrics.text(self._board), headers={"content-type": metrics.CONTENT_TYPE})

    @staticmethod
    def _json(value: Any) -> Response:
        return Response(stream.encode(value), media_type=JSON_TYPE)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _static_files() -> dict[str, _File]:
    """The shipped files, read once: a request names one of these, never a path."""
    files = {}
    for path in sorted((HERE / "static").iterdir()):
        content = path.read_bytes()
        media_type = mimetypes.guess_type(path.name, strict=False)[0] or "application/octet-stream"
        if media_type.startswith("text/"):
            media_type += "; charset=utf-8"
        files[path.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return files


def _acknowledgement(content: bytes) -> tuple[str, str]:
    """(by, comment) of a request's body. Raises Refused (400) in words."""
    try:
        given = json.loads(content)
    except ValueError:
        raise Refused(400, "the body is not JSON") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    if not isinstance(given, dict):
        raise Refused(400, 'the body is an object: {"by": "…", "comment": "…"}')
    unknown = sorted(given.keys() - {"by", "comment"})
    if unknown:
        raise Refused(400, f"unknown key {unknown[0][:40]!r}; known are by and comment")
    by = _text(given.get("by"), "by", BY_CHARS_MAX)
    if not by:
        raise Refused(400, "by is missing: whoever acknowledges gives a name")
    return by, _text(given.get("comment", ""), "comment", COMMENT_CHARS_MAX)


def _text(value: Any, name: str, chars_max: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(400, f"{name} is a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{name} is not valid Unicode") from None
    if len(value) > chars_max:
        raise Refused(400, f"{name} has at most {chars_max} characters")
    if CONTROL.search(value) or (name == "by" and not value.isprintable()):
        raise Refused(400, f"{name} has control characters")
    return value.strip()


async def _http_error(request: Request, exception: HTTPException) -> Response:
    headers = dict(exception.headers or {})
    text = WORDS_OF_STATUS.get(exception.status_code, exception.detail)
    return error(request.url.path, exception.status_code, text, headers)


async def _refused(request: Request, refused: Refused) -> Response:
    return error(request.url.path, refused.status, refused.text)


async def _internal_error(request: Request, _: Exception) -> Response:
    """The traceback is in the log (uvicorn's `uvicorn.error`), not in the answer."""
    return error(request.url.path, 500, "an error inside the agent; its log says more")
