"""The demo: a simulated plant and a broker as processes, and the ordinary agent with an ordinary configuration.

Rule 1: nothing here is in the way of a reading. The agent gets a configuration file and does what `run` does.
Rule 2: whatever ends the demo, nothing is left running and no file is left behind.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import socket
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_agent import broker, service

PLANT_PROGRAM = "drivers.plant_server"
"""Started by its name, as a process: it is a plant, not a part of the agent."""
PLANT_START_S = 15.0
OPCUA_PORT = 14840
"""The first one tried for the simulated OPC UA server; below the range from which the system takes ports by itself."""
AGENT_STOP_S = 2.5
"""How long the agent may take to stop; with what is left of five seconds the processes end."""
CALL_S = 3.0
LINE_MAX = 4096
CONFIG_NAME = "demo.yaml"
PLACES = ("data_dir", "mqtt", "web", "modbus", "opcua")
"""What a comment `# demo: <place>` can mark in the configuration: a value that the demo sets."""
MARKED = re.compile(r"^(?P<key>\s*[a-z_]+: +)(?P<value>\S+)(?P<rest> +# demo: (?P<place>[a-z_]+)\b.*)$", re.MULTILINE)


class DemoError(Exception):
    """The demo cannot start, or no demo runs; says why."""


class UnknownFaultError(Exception):
    """The running demo knows no such fault. `faults`: those that it knows, with what they do."""

    def __init__(self, fault: str, faults: Mapping[str, str]) -> None:
        super().__init__(f"no fault is called {fault!r}")
        self.faults = faults


class AgentRun(Protocol):
    """`edge_agent.agent.run`: the composition root, handed in, since the demo stands beside it and not above."""

    def __call__(
        self,
        config_path: Path,
        *,
        stop: asyncio.Event,
        on_event: Callable[[dict[str, Any]], None] | None,
        on_ready: Callable[[dict[str, Any]], None] | None,
    ) -> Awaitable[int]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. for_s: end by itself after so many seconds; None: run until stopped."""

    port_web: int = 8080
    port_mqtt: int = 1883
    for_s: float | None = None
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Where:
    """Where to look, once the agent is up. faults: name → what it does."""

    web: str | None
    mqtt: str
    broker: str
    config: Path
    modbus: str
    opcua: str
    faults: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Watcher:
    """Whom the demo tells: once where to look, then each warning event, and short notes."""

    ready: Callable[[Where], None]
    event: Callable[[dict[str, Any]], None]
    note: Callable[[str], None]


async def run(options: Options, agent_run: AgentRun, watcher: Watcher) -> int:
    """The whole demo until a signal, the time that was asked for, or the agent's end. Returns the exit status.

    Raises DemoError when the plant or the broker cannot be started.
    """
    stop = asyncio.Event()
    ending = _Ending(stop)
    with service.stop_on_signals(stop):
        body = asyncio.ensure_future(_run(options, agent_run, watcher, ending))
        guard = asyncio.ensure_future(_end_in_time(ending, body))
        try:
            return await body
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            return 0
        finally:
            guard.cancel()
            await asyncio.wait([guard])


@dataclass(slots=True)
class _Ending:
    """stop: asked to end. agent_runs: from then on the agent is given time to say goodbye."""

    stop: asyncio.Event
    agent_runs: bool = False


async def _end_in_time(ending: _Ending, body: asyncio.Future[int]) -> None:
    await ending.stop.wait()
    await asyncio.wait([body], timeout=AGENT_STOP_S if ending.agent_runs else 0)
    body.cancel()


async def _run(options: Options, agent_run: AgentRun, watcher: Watcher, ending: _Ending) -> int:
    started_s = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-demo-")))
        try:
            opcua_port = stack.enter_context(held_port(OPCUA_PORT))
            own_broker = await stack.enter_async_context(broker.open_broker(options.port_mqtt))
            plant = await stack.enter_async_context(_open_plant(folder, opcua_port, options.seed, started_s))
            web_port = broker.free_port(options.port_web)
        except (broker.NoBrokerError, OSError) as error:
            raise DemoError(str(error)) from error
        config = folder / CONFIG_NAME
        values = {
            "data_dir": "./data",
            "mqtt": own_broker.url,
            "web": f"{broker.HOST}:{web_port}",
            "modbus": plant.modbus,
            "opcua": plant.opcua,
        }
        config.write_text(fitted(config_source().read_text("utf-8"), values), "utf-8")
        await stack.enter_async_context(_listen_for_faults(plant, watcher.note))

        def ready(found: dict[str, Any]) -> None:
            watcher.ready(
                Where(
                    found.get("web"), own_broker.url, own_broker.kind, config, plant.modbus, plant.opcua, plant.faults
                )
            )

        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(plant.watch(watcher.note, ending.stop))]
            if options.for_s is not None:
                helpers.append(group.create_task(_stop_after(options.for_s, ending.stop)))
            ending.agent_runs = True
            try:
                return await agent_run(config, stop=ending.stop, on_event=watcher.event, on_ready=ready)
            finally:
                ending.stop.set()
                plant.end()
                for task in helpers:
                    task.cancel()


async def _stop_after(seconds: float, stop: asyncio.Event) -> None:
    await asyncio.sleep(seconds)
    stop.set()


# -------------------------------------------------------------------------------------------------------- the plant


@dataclass(slots=True)
class _Plant:
    """The two processes of the simulated plant."""

    folder: Path
    modbus: str
    opcua: str
    faults: Mapping[str, str]
    processes: Mapping[str, asyncio.subprocess.Process] = field(default_factory=dict)

    def call_up(self, fault: str) -> None:
        """Tell both processes; each shows its own part of it. Raises UnknownFaultError."""
        if fault not in self.faults:
            raise UnknownFaultError(fault, self.faults)
        for process in self.processes.values():
            if process.stdin is not None and process.returncode is None:
                process.stdin.write(json.dumps({"fault": fault}).encode() + b"\n")

    def end(self) -> None:
        """Ask both to end, so that they do it at the same time."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    async def watch(self, note: Callable[[str], None], stop: asyncio.Event) -> None:
        """Say when the OPC UA server serves, and when a server ends by itself."""
        async with asyncio.TaskGroup() as group:
            for name, process in self.processes.items():
                group.create_task(self._watch(name, process, note, stop))

    async def _watch(
        self, name: str, process: asyncio.subprocess.Process, note: Callable[[str], None], stop: asyncio.Event
    ) -> None:
        assert process.stdout is not None
        if name == "opcua" and await process.stdout.readline():
            note(f"the spindle's OPC UA server is up: {self.opcua}")
        await process.wait()
        if not stop.is_set():
            note(f"the simulated plant's {name} server has ended: {_last_line(self.folder)}")


@contextlib.asynccontextmanager
async def _open_plant(folder: Path, opcua_port: int, seed: int, start_s: float) -> AsyncIterator[_Plant]:
    """Both servers; returns as soon as Modbus serves. The OPC UA server needs seconds more, and nobody waits for it."""
    common = ["--attached", "--seed", str(seed), "--start", str(start_s)]
    command = [sys.executable, "-m", PLANT_PROGRAM]
    async with (
        broker.child([*command, "--modbus", "0", *common], folder=folder) as modbus,
        broker.child([*command, "--opcua", str(opcua_port), *common], folder=folder) as opcua,
    ):
        assert modbus.stdout is not None
        try:
            async with asyncio.timeout(PLANT_START_S):
                said = json.loads(await modbus.stdout.readline() or b"{}")
        except TimeoutError:
            said = {}
        if "url" not in said:
            raise DemoError(f"the simulated plant does not start: {_last_line(folder)}")
        processes = {"modbus": modbus, "opcua": opcua}
        yield _Plant(folder, said["url"], f"opc.tcp://{broker.HOST}:{opcua_port}", said["faults"], processes)


def _last_line(folder: Path) -> str:
    lines = [line for log in sorted(folder.glob("*.log")) for line in log.read_text("utf-8", "replace").splitlines()]
    return lines[-1] if lines else "it did not say why"


@contextlib.contextmanager
def held_port(wanted: int) -> Iterator[int]:
    """A port on loopback, the wanted or the next free one, that no other demo takes before our server listens on it.

    The held socket is bound but does not listen; on Linux a server that sets SO_REUSEADDR, as all do, may bind it too.
    """
    for port in range(wanted, wanted + broker.PORTS_TRIED):
        with socket.socket() as holder:
            try:
                holder.bind((broker.HOST, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            yield port
            return
    raise OSError(f"no free port between {wanted} and {wanted + broker.PORTS_TRIED}")


# ------------------------------------------------------------------------------------------------- the configuration


def config_source() -> Path:
    """The shipped configuration: of the checkout, or of the environment that the agent is installed in."""
    candidates = [
        Path(__file__).resolve().parents[1] / "config" / CONFIG_NAME,
        Path(sys.prefix) / "share" / "edge-agent" / "config" / CONFIG_NAME,
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise DemoError(f"the demo's configuration is missing; looked for {' and '.join(map(str, candidates))}")


def fitted(text: str, values: Mapping[str, str]) -> str:
    """The configuration with the values of the marked lines replaced; all else stays, to the character.

    A marked line reads `key: value  # demo: <place>`, with more words after it if one likes; values: by place.
    Raises DemoError when a place is unknown or stands nowhere.
    """
    seen = set()

    def fit(match: re.Match[str]) -> str:
        place = match["place"]
        if place not in values:
            raise DemoError(f"config/{CONFIG_NAME} marks {place!r}, which is not one of {', '.join(values)}")
        seen.add(place)
        return f"{match['key']}{values[place]}{match['rest']}"

    result = MARKED.sub(fit, text)
    if missing := sorted(set(values) - seen):
        raise DemoError(f"config/{CONFIG_NAME} marks no line with `# demo: {missing[0]}`")
    return result


# --------------------------------------------------------------------------------------------- faults by hand


def runtime_folder() -> Path:
    """Where running demos can be found: private to the user. Raises DemoError when somebody else owns it."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and os.access(given, os.W_OK | os.X_OK):
        return Path(given)
    folder = Path(tempfile.gettempdir()) / f"edge-agent-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise DemoError(f"{folder} is not a directory of yours alone (mode 0700)")
    return folder


def _sockets() -> list[Path]:
    """The sockets of demos, the newest first; some may be dead."""
    return sorted(
        runtime_folder().glob("edge-agent-demo-*.sock"), key=lambda path: path.lstat().st_mtime_ns, reverse=True
    )


@contextlib.asynccontextmanager
async def _listen_for_faults(plant: _Plant, note: Callable[[str], None]) -> AsyncIterator[None]:
    """Answer `demo --fault` from other terminals: one JSON line in, one out."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                asked = json.loads(await reader.readline())
                fault = str(asked["fault"])
                answer: dict[str, Any] = {"ok": True, "fault": fault}
                try:
                    plant.call_up(fault)
                    note(f"called up: {fault}: {plant.faults[fault]}")
                except UnknownFaultError:
                    answer = {"ok": False, "fault": fault, "faults": dict(plant.faults)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, OSError, ValueError, KeyError, TypeError):
            pass  # who calls wrongly or goes away gets no answer
        finally:
            writer.close()

    path = runtime_folder() / f"edge-agent-demo-{os.getpid()}.sock"
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, path, limit=LINE_MAX)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def call_up(fault: str) -> str:
    """Call a fault up in the running demo, the newest when there are several. Returns its name.

    Raises UnknownFaultError; DemoError when no demo runs.
    """
    for path in _sockets():
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(CALL_S)
                line.connect(str(path))
                line.sendall(json.dumps({"fault": fault}).encode() + b"\n")
                with line.makefile("rb") as answers:
                    answer = json.loads(answers.readline(LINE_MAX) or b"null")
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # left by a demo that was killed
            continue
        except (OSError, ValueError):
            continue
        if answer is None:
            continue
        if not answer["ok"]:
            raise UnknownFaultError(fault, answer["faults"])
        return fault
    raise DemoError("no demo is running; start one with `edge-agent demo`")
