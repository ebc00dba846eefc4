"""Who may speak to the page: checks before every route, security headers after every answer.

Rule 1: nothing reaches a route unless its Host is a loopback name: a rebound DNS name reads nothing.
Rule 2: a request that changes something comes from our own page (same origin and token) or from no browser at all.

A browser tells on itself: it sends Origin or Sec-Fetch-Site with every request that is not a plain GET, and cannot send
`application/json` to another origin without a preflight, which nobody here answers. A request with neither header is
therefore a script on this machine; the API is for scripts as well, so it needs no token, only the JSON content type.
"""

import asyncio
import re
import secrets
from email.utils import formatdate

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.contract import SECOND_US, Clock

HEAD_MAX = 16 * 1024
"""Bytes of a request's path and headers; h11 counts only those heads that come in more than one piece."""
BODY_MAX = 64 * 1024
"""Bytes of a request's body: an acknowledgement is a name and a sentence."""
BODY_S_MAX = 5.0
"""Seconds that a request's body may take to arrive."""
TOKEN_HEADER = "x-edge-agent-token"  # noqa: S105 -- a header's name, not a secret
HOST = re.compile(r"(127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})){3}|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
"""Loopback names with any port: an SSH tunnel (`ssh -L 9000:localhost:8080`) has a port of its own, and what DNS
rebinding needs is a foreign name."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Refused(Exception):
    """A request that is answered with this status and sentence instead of its route's answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Guard:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self.token = secrets.token_urlsafe(32)
        """Given to our own page in a meta tag; new with each start of the agent."""
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("cache-control", "no-store")
                headers["date"] = formatdate(self._clock.wall_us() / SECOND_US, usegmt=True)
            await send(message)

        try:
            _check_head(scope)
            check(scope["method"], Headers(scope=scope), self.token)
        except Refused as refused:
            answer = error(scope["path"], refused.status, refused.text)
            await answer(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def check(method: str, headers: Headers, token: str) -> None:
    """Raises Refused when this request must not reach a route."""
    host = headers.get("host", "")
    if not HOST.fullmatch(host):
        raise Refused(421, "this page answers only to localhost, 127.0.0.1 and [::1]")
    site = headers.get("sec-fetch-site")
    if method in ("GET", "HEAD"):
        _check_reader(site, headers)
    else:
        _check_writer(method, host, site, headers, token)


async def body(scope: Scope, receive: Receive) -> bytes:
    """The whole body of a request, within BODY_MAX and BODY_S_MAX. Raises Refused (400, 408, 413)."""
    declared = Headers(scope=scope).get("content-length", "0")
    if not declared.isdecimal():
        raise Refused(400, "the content length is not a number")
    if int(declared) > BODY_MAX:
        raise Refused(413, f"a request has at most {BODY_MAX} bytes")
    read = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "the request ended before its body was complete")
                read += message.get("body", b"")
                more = message.get("more_body", False)
                if len(read) > BODY_MAX:
                    raise Refused(413, f"a request has at most {BODY_MAX} bytes")
    except TimeoutError:
        raise Refused(408, f"the request's body did not arrive within {BODY_S_MAX:g} s") from None
    return bytes(read)


def error(path: str, status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error in words: JSON for the API, plain text otherwise; nothing of the inside."""
    if path.startswith("/api/"):
        return JSONResponse({"error": text}, status, headers)
    return PlainTextResponse(f"{text}\n", status, headers)


def _check_head(scope: Scope) -> None:
    bytes_in_all = len(scope["raw_path"]) + len(scope["query_string"])
    if bytes_in_all + sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_MAX:
        raise Refused(431, f"path and headers have at most {HEAD_MAX} bytes")


def _check_reader(site: str | None, headers: Headers) -> None:
    """Another site may link to the page, but neither embed it nor fetch from it (fetch metadata isolation policy)."""
    linked = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if site in ("cross-site", "same-site") and not linked:
        raise Refused(403, "another web site may not read from here")


def _check_writer(method: str, host: str, site: str | None, headers: Headers, token: str) -> None:
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        raise Refused(403, "another web site may not change anything here")
    if site is not None and site != "same-origin":
        raise Refused(403, "another web site may not change anything here")
    of_browser = origin is not None or site is not None
    if of_browser and not secrets.compare_digest(headers.get(TOKEN_HEADER, "").encode(), token.encode()):
        raise Refused(403, "the page is older than the agent's last start: load it again")
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the content type must be application/json")
