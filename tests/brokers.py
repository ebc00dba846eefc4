"""Brokers and consumers for the tests: mosquitto on a port of its own, and a subscriber that keeps what it hears."""

import asyncio
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_agent import broker
from tests.conftest import eventually, free_port


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of a CA, of a server for localhost, and of a client."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def certificates(folder: Path, host: str = "localhost") -> Certificates:
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    files = Certificates(*(folder / f"{name}.pem" for name in ("ca", "server", "server_key", "client", "client_key")))
    authority.cert_pem.write_to_path(files.ca)
    for issued, cert, key in (
        (authority.issue_cert(host), files.server, files.server_key),
        (authority.issue_cert("press-hall@example.com"), files.client, files.client_key),
    ):
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
    return files


@dataclass(slots=True)
class Mosquitto:
    """A broker that can be killed and started again on the same port. extra: lines of its configuration."""

    folder: Path
    port: int
    extra: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    admin: tuple[str, str] | None = None
    """User and password of whoever may read everything."""

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        program = broker.mosquitto()
        assert program is not None, "these tests need mosquitto"
        conf = self.folder / "mosquitto.conf"
        host = "" if any("certfile" in line for line in self.extra) else " 127.0.0.1"
        lines = [f"listener {self.port}{host}", "persistence false", "user root", "max_queued_messages 100000"]
        if not any(line.startswith("allow_anonymous") for line in self.extra):
            lines.append("allow_anonymous true")
        conf.write_text("\n".join([*lines, *self.extra]) + "\n", "utf-8")
        with (self.folder / "mosquitto.log").open("ab") as out:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it is killed from where nothing can be awaited
                [program, "-v", "-c", str(conf)], stdout=out, stderr=out
            )
        await eventually(self._accepts)

    def _accepts(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.words()[-500:]
        return f"listen socket on port {self.port}" in self.words().rpartition("starting")[2]

    def words(self) -> str:
        return (self.folder / "mosquitto.log").read_text("utf-8", "replace")

    def kill(self) -> None:
        """As a power cut would: nothing is said, nothing is saved."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@asynccontextmanager
async def mosquitto(*extra: str, files: dict[str, str] | None = None) -> AsyncIterator[Mosquitto]:
    """files: name and content, put beside the configuration; `{folder}` in a line of `extra` names that place."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each, content in (files or {}).items():
            (folder / each).write_text(content, "utf-8")
            (folder / each).chmod(0o600)
        running = Mosquitto(folder, free_port(), tuple(line.replace("{folder}", name) for line in extra))
        try:
            await running.start()
            yield running
        finally:
            running.kill()


def password_file(users: dict[str, str]) -> str:
    """The content of a password file of mosquitto."""
    program = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
    with tempfile.NamedTemporaryFile() as file:
        for user, password in users.items():
            subprocess.run([program, "-b", file.name, user, password], check=True, capture_output=True)
        return Path(file.name).read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Heard:
    topic: str
    payload: bytes
    retained: bool


@dataclass(slots=True)
class Consumer:
    """A subscriber that comes back by itself when its broker does. heard: everything, in the order of arrival."""

    port: int
    topics: str = "#"
    version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5
    user: tuple[str, str] | None = None
    tls: ssl.SSLContext | None = None
    qos: int = 1
    """0 where the broker will be killed: with unread acknowledgements its socket would be reset, and what is on its way
    to us lost."""
    heard: list[Heard] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)
    subscriptions: int = 0
    _client: Client | None = None

    async def __aenter__(self) -> Self:
        client = self._client = Client(CallbackAPIVersion.VERSION2, protocol=self.version)
        client.reconnect_delay_set(1, 1)
        if self.user is not None:
            client.username_pw_set(*self.user)
        if self.tls is not None:
            client.tls_set_context(self.tls)

        def on_subscribed(*_: Any) -> None:
            self.subscriptions += 1

        def on_connected(*_: Any) -> None:
            client.subscribe(self.topics, qos=self.qos)

        client.on_connect = on_connected
        client.on_subscribe = on_subscribed
        client.on_message = lambda _c, _u, m: self.heard.append(Heard(m.topic, bytes(m.payload), m.retain))
        client.connect_async("localhost" if self.tls else "127.0.0.1", self.port)
        client.loop_start()
        await self.subscribed()
        return self

    async def subscribed(self, times: int = 1) -> None:
        await eventually(lambda: self.subscriptions >= times)

    async def back(self, broker: Mosquitto) -> None:
        """Start a broker that was stopped; returns once this one listens: what is published before that nobody hears."""
        before = self.subscriptions
        await broker.start()
        await self.subscribed(before + 1)

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def payloads(self, topic: str) -> list[bytes]:
        return [each.payload for each in list(self.heard) if each.topic == topic]

    def last(self, topic: str) -> bytes | None:
        found = self.payloads(topic)
        return found[-1] if found else None

    async def hears(self, topic: str, wanted: bytes | Callable[[bytes], bool], within_s: float = 10.0) -> None:
        def found() -> bool:
            return any(wanted == p if isinstance(wanted, bytes) else wanted(p) for p in self.payloads(topic))

        await eventually(found, within_s)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(serve: Serve) -> AsyncIterator[str]:
    """A broker that does what `serve` says with each connection. Use it outside of its client: it waits for the end."""
    open_now = 0

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            with suppress(OSError):
                await serve(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            open_now -= 1

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        for _ in range(5):  # what was accepted a moment ago gets its task first
            await asyncio.sleep(0)
        await eventually(lambda: open_now == 0)


@dataclass(slots=True)
class Relay:
    """A port in front of a broker that lets connections through only while it is open."""

    port: int
    open: bool = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            return
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pipe(reader, to_broker))
                both.create_task(_pipe(from_broker, writer))
        finally:
            to_broker.close()
            with suppress(OSError):
                await to_broker.wait_closed()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
