"""The page's server over real HTTP: routes, checks, headers, streams and its end."""

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from edge_agent.board import Board
from edge_agent.clock import SystemClock
from edge_agent.contract import Quality
from edge_agent.web import server
from edge_agent.web.app import Pages, open_web
from edge_agent.web.guard import BODY_MAX, HEAD_MAX, SECURITY_HEADERS
from tests.pages import BANDS, PRESS, PUMP, BoardOperator, Site, event, serving, show, show_active

GET = [
    ("/", 200, "text/html; charset=utf-8"),
    ("/machines/press-3", 200, "text/html; charset=utf-8"),
    ("/machines/nobody", 404, "text/plain; charset=utf-8"),
    ("/machines/press-3/oil_level", 200, "text/html; charset=utf-8"),
    ("/machines/press-3/nothing", 404, "text/plain; charset=utf-8"),
    ("/warnings", 200, "text/html; charset=utf-8"),
    ("/nowhere", 404, "text/plain; charset=utf-8"),
    ("/static/app.js", 200, "text/javascript; charset=utf-8"),
    ("/static/app.css", 200, "text/css; charset=utf-8"),
    ("/static/favicon.svg", 200, "image/svg+xml"),
    ("/static/nothing.js", 404, "text/plain; charset=utf-8"),
    ("/static/..%2f..%2fapp.py", 404, "text/plain; charset=utf-8"),
    ("/favicon.ico", 200, "image/svg+xml"),
    ("/healthz", 200, "text/plain; charset=utf-8"),
    ("/readyz", 200, "text/plain; charset=utf-8"),
    ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
    ("/api/v1/machines", 200, "application/json"),
    ("/api/v1/machines/press-3", 200, "application/json"),
    ("/api/v1/machines/nobody", 404, "application/json"),
    ("/api/v1/machines/press-3/signals/oil_level/trend", 503, "application/json"),
    ("/api/v1/machines/press-3/signals/oil_level/trend?points=1", 400, "application/json"),
    ("/api/v1/warnings", 200, "application/json"),
    ("/api/v1/warnings?active=true", 200, "application/json"),
    ("/api/v1/warnings?active=perhaps", 400, "application/json"),
    ("/api/v1/warnings/w-1/acknowledge", 405, "application/json"),
    ("/api/v1/status", 200, "application/json"),
    ("/api/v1/openapi.json", 200, "application/json"),
    ("/api/v1/nowhere", 404, "application/json"),
]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    since = event()["since"]  # of one instant, so they keep this order
    events = [event(each, since=since) for each in ("w-1", "w-refused", "w-bug")]
    site.do(lambda: show_active(site.board, events))
    with httpx.Client(base_url=site.url, timeout=10, trust_env=False) as client:
        yield client


def token(http: httpx.Client) -> str:
    found = re.search(r'name="edge-agent-token" content="([^"]+)"', http.get("/").text)
    assert found
    return found[1]


# -- routes and headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status", "content_type"), GET)
def test_every_route_answers_with_its_status_type_and_the_security_headers(
    http: httpx.Client, path: str, status: int, content_type: str
) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, content_type)
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert answer.headers["cache-control"] == (
        "no-cache" if path.startswith(("/static/", "/fav")) and status == 200 else "no-store"
    )
    assert "date" in answer.headers
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control")]
    if content_type == "application/json" and status >= 400:
        assert set(answer.json()) == {"error"}


def test_the_table_above_knows_every_route() -> None:
    pages = Pages(Board(), BoardOperator(Board()), SystemClock())
    routes = [route for route in pages._app().routes if isinstance(route, Route)]
    for route in routes:
        if route.path != "/events":
            assert any(route.path_regex.match(path.partition("?")[0]) for path, _, _ in GET), route.path


def test_the_content_security_policy_allows_nothing_from_elsewhere_and_nothing_inline(http: httpx.Client) -> None:
    policy = http.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    page = http.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|https?://", page)


def test_shipped_files_speak_of_no_other_host(http: httpx.Client) -> None:
    page = http.get("/").text
    names = set(re.findall(r"/static/([\w.]+)", page)) | {"dom.js", "words.js", "sheet.js"}
    for name in names:
        text = http.get(f"/static/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, name
        assert "innerHTML" not in text, name


def test_a_shipped_file_that_is_known_is_not_sent_again(http: httpx.Client) -> None:
    etag = http.get("/static/app.js").headers["etag"]
    again = http.get("/static/app.js", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


def test_a_head_request_has_the_headers_and_no_body(http: httpx.Client) -> None:
    for path in ("/", "/api/v1/machines", "/events"):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "POST"])
def test_other_methods_are_refused_in_words(http: httpx.Client, method: str) -> None:
    answer = http.request(method, "/api/v1/machines", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (405, {"error": "this cannot be done here"})
    assert answer.headers["allow"]


# -- what the API says ------------------------------------------------------------------------------------------------


def test_the_api_shows_machines_signals_and_warnings(site: Site, http: httpx.Client) -> None:
    machines = {machine["name"]: machine for machine in http.get("/api/v1/machines").json()["machines"]}
    assert set(machines) == {"press-3", "pump-1"}
    press = http.get("/api/v1/machines/press-3").json()
    assert press["signals"][0]["value"] == 54.2
    assert press["signals"][0]["warnings"] == ["w-1", "w-refused", "w-bug"]
    site.do(lambda: site.board.event(event("w-past", state="normal", event="cleared")))
    active = http.get("/api/v1/warnings?active=true").json()["warnings"]
    every = http.get("/api/v1/warnings").json()["warnings"]
    assert {warning["id"] for warning in active} == {"w-1", "w-refused", "w-bug"}
    assert {warning["id"] for warning in every} - {warning["id"] for warning in active} >= {"w-past"}


def test_the_status_tells_of_the_agent_its_health_and_refused_configurations(site: Site, http: httpx.Client) -> None:
    site.do(lambda: site.board.config_errors(["agent.yaml:3:5: agent.site: expected a text"]))
    status = http.get("/api/v1/status").json()
    assert (status["state"], status["version"], status["agent"]) == ("online", "0.1.0", "hall2")
    assert status["health"]["broker"] == {"state": "connected"}
    assert status["config_errors"] == ["agent.yaml:3:5: agent.site: expected a text"]
    site.do(lambda: site.board.config_errors([]))


def test_ready_is_what_is_online(site: Site, http: httpx.Client) -> None:
    before = site.board.agent()["status"]
    site.do(lambda: site.board.status({**before, "state": "starting"}))
    assert (http.get("/readyz").status_code, http.get("/healthz").status_code) == (503, 200)
    site.do(lambda: site.board.status(before))


def test_metrics_are_prometheus_text_with_escaped_labels(site: Site, http: httpx.Client) -> None:
    before = site.board.agent()["health"]
    connections = {'plc"\\\n1': {"state": "silent", "requests": 5, "timeouts": 2, "utilisation": 0.62}, "new": {}}
    kept = {"messages": 3, "mb": 1.5, "state": "failing", "history": {"state": "ok", "mb": 20.0}}
    known = {"connections": connections, "rss_mb": 80, "store": kept, "clock": {"state": "stepped", "steps": 1}}
    known["machines"] = {"press-3": {"hours": {"running": 1.5}}}
    site.do(lambda: site.board.health({**before, **known}))
    text = http.get("/metrics").text
    site.do(lambda: site.board.health(before))
    assert 'edge_agent_connection_up{connection="plc\\"\\\\\\n1"} 0\n' in text
    assert 'edge_agent_connection_timeouts_total{connection="plc\\"\\\\\\n1"} 2\n' in text
    assert 'edge_agent_connection_utilisation_ratio{connection="plc\\"\\\\\\n1"} 0.62\n' in text
    for line in (
        "buffer_messages 3", "buffer_bytes 1500000", "store_ok 0", "history_bytes 20000000", "history_ok 1",
        "clock_synchronised 0", "clock_steps 1",
    ):  # fmt: skip
        assert f"edge_agent_{line}\n" in text
    assert 'edge_agent_machine_state_seconds_total{machine="press-3",state="running"} 5400\n' in text
    assert "edge_agent_resident_memory_bytes 80000000\n" in text
    assert 'edge_agent_signals{verdict="warning"} 1\n' in text
    sample = re.compile(r'[a-z_]+(\{[a-z]+="([^"\\\n]|\\.)*"(,[a-z]+="([^"\\\n]|\\.)*")*\})? [0-9.e+-]+')
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line


def test_the_openapi_description_has_exactly_the_routes_of_the_api(http: httpx.Client) -> None:
    described = http.get("/api/v1/openapi.json").json()
    pages = Pages(Board(), BoardOperator(Board()), SystemClock())
    routes = {
        route.path for route in pages._app().routes if isinstance(route, Route) and route.path.startswith("/api/")
    }
    assert set(described["paths"]) == routes
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references <= set(described["components"]["schemas"])
    machine = http.get("/api/v1/machines").json()["machines"][0]
    assert set(machine) == set(described["components"]["schemas"]["Machine"]["properties"])
    assert set(machine["signals"][0]) == set(described["components"]["schemas"]["Signal"]["properties"])


# -- acknowledging ----------------------------------------------------------------------------------------------------


def acknowledge(http: httpx.Client, warning_id: str = "w-1", content: Any = None, **headers: str) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content or {"by": "Jan", "comment": "seen"}).encode()
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return http.post(f"/api/v1/warnings/{warning_id}/acknowledge", content=body, headers=sent)


def test_a_script_acknowledges_without_a_token(site: Site, http: httpx.Client) -> None:
    answer = acknowledge(http, content={"by": "  Jan ", "comment": "oil ordered"})
    assert (answer.status_code, answer.json()["state"]) == (200, "acknowledged")
    assert site.operator.asked[-1] == ("w-1", "Jan", "oil ordered")


def test_the_comment_may_be_left_out(site: Site, http: httpx.Client) -> None:
    assert acknowledge(http, content={"by": "Jan"}).status_code == 200
    assert site.operator.asked[-1] == ("w-1", "Jan", "")


def test_unknown_ids_wrong_states_and_bugs_have_statuses_of_their_own(http: httpx.Client) -> None:
    unknown, refused, bug = (acknowledge(http, name) for name in ("nothing", "w-refused", "w-bug"))
    assert (unknown.status_code, unknown.json()) == (404, {"error": "no active warning has this id"})
    assert (refused.status_code, refused.json()) == (409, {"error": "this warning is acknowledged already"})
    assert bug.status_code == 500
    assert "secret" not in bug.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 60_000, "JSON|nested"),
        (b"[]", "object"),
        (b"{}", "by is missing"),
        (b'{"by": "  "}', "by is missing"),
        (b'{"by": null}', "by is missing"),
        (b'{"by": 3}', "by is a text"),
        (b'{"by": "Jan", "comment": []}', "comment is a text"),
        (b'{"by": "Jan", "note": "x"}', "unknown key 'note'"),
        (b'{"by": "J\\u0000"}', "control characters"),
        (b'{"by": "\\ud800"}', "not valid Unicode"),
        (json.dumps({"by": "J" * 101}).encode(), "at most 100"),
        (json.dumps({"by": "Jan", "comment": "c" * 1001}).encode(), "at most 1000"),
    ],
)
def test_a_wrong_body_is_refused_in_words_and_nobody_is_asked(
    site: Site, http: httpx.Client, content: bytes, words: str
) -> None:
    before = len(site.operator.asked)
    answer = acknowledge(http, content=content)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"])
    assert len(site.operator.asked) == before


def test_a_body_that_is_too_long_is_refused_declared_or_not(http: httpx.Client) -> None:
    assert acknowledge(http, content=b" " * (BODY_MAX + 1)).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(BODY_MAX // 1024 + 1):
            yield b" " * 1024

    undeclared = http.post(
        "/api/v1/warnings/w-1/acknowledge", content=pieces(), headers={"content-type": "application/json"}
    )
    assert undeclared.status_code == 413


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(http: httpx.Client, content_type: str) -> None:
    assert acknowledge(http, content_type=content_type).status_code == 415


def test_json_with_a_charset_is_json(http: httpx.Client) -> None:
    assert acknowledge(http, content_type="Application/JSON; charset=utf-8").status_code == 200


# -- who may ask ------------------------------------------------------------------------------------------------------


def raw(site: Site, request: str) -> bytes:
    """The answer to a request written by hand, which httpx would not send."""
    port = int(site.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::1]", "localhost:9000"])
@pytest.mark.parametrize("path", ["/", "/api/v1/machines", "/static/app.js"])
def test_loopback_names_are_answered_also_through_a_tunnel(http: httpx.Client, host: str, path: str) -> None:
    assert http.get(path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.256",
        "[::2]",
        "localhost:x",
        "a@localhost",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/events", "/api/v1/machines", "/metrics", "/nowhere"])
def test_a_foreign_host_name_reads_nothing(http: httpx.Client, host: str, path: str) -> None:
    answer = http.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "press" not in answer.text


def test_a_request_without_a_host_or_with_two_is_refused(site: Site) -> None:
    assert raw(site, "GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    assert raw(site, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 400")
    two = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(site, two).startswith(b"HTTP/1.1 400")


OWN, FOREIGN = "own", "http://evil.example"
SAME, CROSS, NONE = "same-origin", "cross-site", "none"


@pytest.mark.parametrize(
    ("origin", "fetch_site", "tokened", "status"),
    [
        (None, None, "no", 200),
        (None, None, "yes", 200),
        (OWN, SAME, "yes", 200),
        (OWN, None, "yes", 200),
        (None, SAME, "yes", 200),
        (OWN, SAME, "no", 403),
        (OWN, SAME, "wrong", 403),
        (OWN, None, "no", 403),
        (None, SAME, "no", 403),
        (None, NONE, "yes", 403),
        (OWN, CROSS, "yes", 403),
        (OWN, "same-site", "yes", 403),
        (FOREIGN, None, "yes", 403),
        (FOREIGN, SAME, "yes", 403),
        (FOREIGN, CROSS, "no", 403),
        ("null", None, "yes", 403),
        ("http://localhost:1", None, "yes", 403),
    ],
)
def test_only_our_own_page_with_its_token_or_a_script_may_change_anything(
    site: Site, http: httpx.Client, origin: str | None, fetch_site: str | None, tokened: str, status: int
) -> None:
    headers = {}
    if origin is not None:
        headers["origin"] = site.url if origin == OWN else origin
    if fetch_site is not None:
        headers["sec_fetch_site"] = fetch_site
    if tokened != "no":
        headers["x_edge_agent_token"] = token(http) if tokened == "yes" else "x" * 43
    before = len(site.operator.asked)
    assert acknowledge(http, **headers).status_code == status
    assert len(site.operator.asked) - before == (status == 200)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_form_of_another_site_changes_nothing(http: httpx.Client, content_type: str) -> None:
    answer = acknowledge(http, content_type=content_type, origin=FOREIGN, sec_fetch_site=CROSS)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("fetch_site", "mode", "destination", "status"),
    [
        ("none", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
        ("cross-site", "navigate", "document", 200),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "no-cors", "script", 403),
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "cors", "empty", 403),
    ],
)
def test_another_site_may_link_to_the_page_but_not_read_from_it(
    http: httpx.Client, fetch_site: str, mode: str, destination: str, status: int
) -> None:
    sent = {"sec-fetch-site": fetch_site, "sec-fetch-mode": mode, "sec-fetch-dest": destination}
    assert http.get("/api/v1/machines", headers=sent).status_code == status


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_request_head_that_is_too_long_is_refused(site: Site) -> None:
    head = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + "x" * 20_000
    assert raw(site, head).startswith(b"HTTP/1.1 400"), "one that never ends"
    short = head[: HEAD_MAX + 100]
    assert raw(site, f"{short}\r\n\r\n").startswith(b"HTTP/1.1 431"), "one that comes in a single piece"


def test_a_request_head_that_dribbles_in_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S_MAX", 0.2)
    with serving() as site:
        port = int(site.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.sendall(b"GET / HT")
            with pytest.raises(ConnectionError):
                while connection.recv(65536):
                    pass
                raise ConnectionAbortedError


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "::"])
def test_another_address_than_loopback_is_refused(host: str) -> None:
    async def attempt() -> None:
        async with open_web(host, 0, Board(), BoardOperator(Board())):
            pass

    with pytest.raises(ValueError, match="loopback only"):
        asyncio.run(attempt())


def test_a_port_that_is_taken_is_an_error_of_the_system(site: Site) -> None:
    async def attempt() -> None:
        async with open_web("127.0.0.1", int(site.url.rpartition(":")[2]), Board(), BoardOperator(Board())):
            pass

    with pytest.raises(OSError, match="in use"):
        asyncio.run(attempt())


# -- the stream -------------------------------------------------------------------------------------------------------

Message = tuple[str, dict[str, Any]]


def messages(answer: httpx.Response) -> Iterator[Message]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def until(stream: Iterator[Message], wanted: Callable[[str, dict[str, Any]], bool]) -> dict[str, Any]:
    for _, (name, message) in zip(range(20), stream, strict=False):
        if wanted(name, message):
            return message
    raise AssertionError("the stream never said it")


def test_the_stream_begins_with_everything_and_then_says_what_changes(site: Site, http: httpx.Client) -> None:
    with http.stream("GET", "/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        stream = messages(answer)
        assert next(stream)[0] == "begin"
        whole = {message["machine"]["name"]: message for name, message in (next(stream), next(stream))}
        assert whole.keys() == {"press-3", "pump-1"}
        assert whole["press-3"]["trends"][1], "the samples of the oil level"
        assert next(stream)[0] == "ready"
        site.do(lambda: show(site.board, level=12.5, quality=Quality.UNCERTAIN))
        update = until(stream, lambda _, message: bool(message.get("machines")))
        (machine,) = update["machines"]
        assert machine["values"] == [54.2, 12.5]
        assert [(row[0], row[1], row[3]) for row in machine["odd"]] == [(0, "good", "warning"), (1, "uncertain", "bad")]
        assert "warnings" not in update, "what has not changed is not sent again"
        site.do(lambda: show_active(site.board, []))
        assert until(stream, lambda _, message: "warnings" in message)["warnings"] == []
        site.do(lambda: site.board.config_errors(["agent.yaml:1:1: x"]))
        assert until(stream, lambda _, message: "config_errors" in message)["config_errors"] == ["agent.yaml:1:1: x"]
        site.do(lambda: site.board.config_errors([]))
        site.do(lambda: site.board.norms("press-3", [{"warning": {"high": 50}}, {}]))
        (fresh,) = until(stream, lambda _, message: "whole" in message)["whole"]
        assert fresh["machine"]["signals"][0]["limits"] == {"warning": {"high": 50}, "alarm": {}}
        site.do(lambda: site.board.use([PRESS]))
        assert until(stream, lambda name, _: name == "begin")["status"]
        site.do(lambda: site.board.use([PRESS, PUMP]))
        site.do(lambda: site.board.norms("press-3", BANDS))
    site.do(lambda: show(site.board))


def test_a_stream_without_news_beats(site: Site, http: httpx.Client) -> None:
    with http.stream("GET", "/events") as answer:
        beat = until(messages(answer), lambda name, _: name == "beat")
    assert set(beat) == {"now", "boot"}


def test_too_many_streams_are_refused_and_ended_ones_make_room(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.web.stream.STREAMS_MAX", 1)
    with http.stream("GET", "/events") as first:
        stream = messages(first)  # httpx ends a stream whose iterator is forgotten
        assert next(stream)[0] == "begin"
        assert http.get("/events").status_code == 503
    for _ in range(200):
        with http.stream("GET", "/events") as again:
            if again.status_code == 200:
                return
    raise AssertionError("the place of an ended stream is not given to the next one")


def test_the_server_ends_at_once_also_with_an_open_stream_and_an_idle_connection() -> None:
    with serving() as site:
        port = int(site.url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)),
            httpx.Client(base_url=site.url, trust_env=False) as http,
            http.stream("GET", "/events") as answer,
        ):
            stream = messages(answer)
            assert next(stream)[0] == "begin"
            assert site.stop() < 8, "a second of grace, on a busy machine too"


def test_the_server_ends_also_with_a_reader_that_no_longer_reads() -> None:
    with serving() as site:
        port = int(site.url.rpartition(":")[2])
        many = [event(f"w-{number}", message="x" * 20_000) for number in range(400)]
        site.do(lambda: show_active(site.board, many))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            assert site.stop() < 8, "a second of grace, on a busy machine too"
