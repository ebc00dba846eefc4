"""A broker of our own on loopback, for `embedded:` and the demo: mosquitto where it is installed, else amqtt.

Rule 1: the broker is a process of its own; it may be slow, the agent may not.
Rule 2: it has its own settings and port; a broker that the system runs is neither used nor touched.
Rule 3: a child never outlives us: it ends when its stdin ends, however we died.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PORTS_TRIED = 100
"""How many ports in a row are tried when the wanted one is taken."""
START_S = 15.0
"""amqtt needs a second or two on a small machine; whoever needs more than this hangs."""
STOP_S = 1.5
"""How long a child may take to end before it is killed; the demo as a whole has five seconds."""
LOOK_EVERY_S = 0.02

MOSQUITTO_CONF = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 100000
max_inflight_messages 100
log_dest stderr
log_type error
log_type warning
"""

TETHERED = """\
exec 3<&0
"$@" 3<&- </dev/null & child=$!
(cat <&3; kill "$child") >/dev/null 2>&1 &
exec 3<&- </dev/null
wait "$child"
"""
"""For a program that does not look at its stdin: sh ends it when stdin ends, and only so, since a signal to sh can come
before its watcher stands (6 of 600 children were left behind so). The parent-death signal of Linux would not do: root's
mosquitto changes its user, which clears that signal."""


class NoBrokerError(Exception):
    """No broker can be started here; says what to install or what went wrong."""


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """A running broker. kind: mosquitto or amqtt (which speaks MQTT 3.1.1 only)."""

    port: int
    kind: str

    @property
    def url(self) -> str:
        return f"mqtt://{HOST}:{self.port}"


def free_port(wanted: int, host: str = HOST) -> int:
    """The wanted port or the next one that is free; 0: any. Raises OSError when a hundred in a row are taken."""
    for port in [wanted] if wanted == 0 else range(wanted, min(wanted + PORTS_TRIED, 65536)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            # As servers do it, so that connections of a server that has just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
            found: int = probe.getsockname()[1]
            return found
    raise OSError(f"no free port between {wanted} and {wanted + PORTS_TRIED}")


@contextlib.asynccontextmanager
async def child(
    arguments: Sequence[str], *, folder: Path | None = None, tethered: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that ends with this context, and with us. stdin and stdout are pipes, stderr is a file in `folder`.

    It is not in our process group, so that Ctrl-C reaches it through us only. tethered: it would not end with its stdin
    by itself. Raises OSError when it cannot be started.
    """
    command = ["sh", "-c", TETHERED, "sh", *arguments] if tethered else list(arguments)
    with contextlib.ExitStack() as files:
        errors = files.enter_context((folder / f"{_log_name(arguments)}.log").open("ab")) if folder else None
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors or asyncio.subprocess.DEVNULL,
            process_group=0,
        )
    try:
        yield process
    finally:
        await _end(process, tethered=tethered)


async def _end(process: asyncio.subprocess.Process, *, tethered: bool) -> None:
    """Ask it to end, wait a little, then make it. Also when we are being cancelled: nothing may be left running."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    if not tethered:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, and is not reaped yet
            await process.wait()
        with contextlib.suppress(TimeoutError):  # a pipe that is not read to its end stays open
            async with asyncio.timeout(STOP_S):
                await process.stdout.read()


def _log_name(arguments: Sequence[str]) -> str:
    return next((Path(word).name for word in arguments if not word.startswith("-") and word != sys.executable), "child")


@contextlib.asynccontextmanager
async def open_broker(port: int, *, kind: str | None = None) -> AsyncIterator[BrokerInfo]:
    """A broker on loopback, at this port or the next free one (0: any), for as long as the context lasts.

    kind: mosquitto or amqtt; None: the first that is there. Raises NoBrokerError.
    """
    chosen = kind or ("mosquitto" if mosquitto() else "amqtt")
    with tempfile.TemporaryDirectory(prefix="edge-agent-broker-") as name:
        folder = Path(name)
        # Between the look for a free port and the broker's own bind somebody may take it: then the next one is tried.
        for attempt in range(3):
            free = free_port(port + attempt if port else 0)
            async with child(_command(chosen, free, folder), folder=folder, tethered=chosen == "mosquitto") as process:
                if await _accepts(process, free):
                    yield BrokerInfo(free, chosen)
                    return
        raise NoBrokerError(f"{chosen} does not start: {_last_words(folder)}")


def mosquitto() -> str | None:
    """Where mosquitto is; Debian puts it where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def _command(kind: str, port: int, folder: Path) -> list[str]:
    if kind == "mosquitto":
        program = mosquitto()
        if program is None:
            raise NoBrokerError("mosquitto is not installed")
        settings = folder / "mosquitto.conf"
        settings.write_text(MOSQUITTO_CONF.format(port=port), "utf-8")
        return [program, "-c", str(settings)]
    if importlib.util.find_spec("amqtt") is None:
        raise NoBrokerError("no broker here: install mosquitto, or the extra with `pip install 'edge-agent[demo]'`")
    return [sys.executable, "-m", "edge_agent.broker", "--port", str(port)]


async def _accepts(process: asyncio.subprocess.Process, port: int) -> bool:
    """True once it takes connections, False when it ended instead. Raises NoBrokerError when it does neither."""
    try:
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    await asyncio.sleep(LOOK_EVERY_S)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return process.returncode is None
    except TimeoutError:
        raise NoBrokerError(f"the broker does not answer on port {port} after {START_S:g} s") from None
    return False


def _last_words(folder: Path) -> str:
    lines = [line for log in folder.glob("*.log") for line in log.read_text("utf-8", "replace").splitlines()]
    return lines[-1] if lines else "it ended without a word"


async def _serve_amqtt(port: int) -> None:
    """The process of `python -m edge_agent.broker`: amqtt until stdin ends or SIGTERM comes."""
    amqtt: Any = importlib.import_module("amqtt.broker")
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}", "max_connections": 1000}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    def until_stdin_ends() -> None:
        sys.stdin.buffer.read()
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=until_stdin_ends, name="stdin", daemon=True).start()
    broker = amqtt.Broker(settings)
    await broker.start()
    await stop.wait()
    await broker.shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.broker", description="amqtt on loopback.")
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve_amqtt(parser.parse_args(arguments).port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
