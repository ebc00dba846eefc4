"""The demo's parts: broker, ports, configuration, faults from a second terminal; the agent is played by the test."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from drivers import modbus, opcua, plant_model
from edge_agent import broker, config, demo, plugins
from edge_agent.cli import demo as terminal
from tests.conftest import ROOT, eventually, free_port

OPTIONS = demo.Options(port_web=0, port_mqtt=0)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets a demo that somebody runs."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def descendants(pid: int) -> set[int]:
    """The processes that this one started, and theirs."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {child for child, parent in parents.items() if parent == pid}
    return found.union(*map(descendants, found))


def runs(pid: int) -> bool:
    """It is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


KINDS = ("amqtt", "mosquitto")


# ------------------------------------------------------------------------------------------------------------- broker


@pytest.mark.parametrize("kind", KINDS)
def test_the_broker_carries_messages_on_loopback_and_is_gone_afterwards(kind: str) -> None:
    async def using() -> int:
        async with broker.open_broker(0, kind=kind) as found:
            assert found.kind == kind
            got: list[bytes] = []
            client = Client(CallbackAPIVersion.VERSION2)

            def subscribe(*_: Any) -> None:
                client.subscribe("hall/#", qos=1)

            def publish(*_: Any) -> None:
                client.publish("hall/x", b"hello", qos=1)

            client.on_connect, client.on_subscribe = subscribe, publish
            client.on_message = lambda _client, _data, message: got.append(bytes(message.payload))
            client.connect_async("127.0.0.1", found.port)
            client.loop_start()
            await eventually(lambda: got == [b"hello"])
            client.disconnect()
            client.loop_stop()
            return found.port

    port = asyncio.run(using())
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
        pass


def test_a_taken_port_is_left_alone_and_the_next_one_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]

        async def using() -> int:
            async with broker.open_broker(taken) as found:
                return found.port

        assert taken < asyncio.run(using()) < taken + broker.PORTS_TRIED


@pytest.mark.parametrize("kind", KINDS)
def test_a_broker_dies_with_who_started_it_even_by_kill_9(kind: str, tmp_path: Path) -> None:
    program = (
        "import asyncio\n"
        "from edge_agent import broker\n"
        "async def main():\n"
        f"    async with broker.open_broker(0, kind={kind!r}) as found:\n"
        "        print(found.port, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, env=environment
    ) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline())
        started = descendants(starter.pid)
        assert started
        starter.kill()

    async def gone() -> None:
        await eventually(lambda: not any(map(runs, started)))

    asyncio.run(gone())
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
        pass


def test_a_tethered_child_is_not_left_behind_at_whatever_instant_of_its_start_it_is_ended() -> None:
    before = descendants(os.getpid())  # such as the foreign server of other tests

    async def using() -> None:
        for number in range(300):
            async with broker.child(["sleep", "61"], tethered=True):
                end_s = time.perf_counter() + number % 100 * 6e-5
                while time.perf_counter() < end_s:
                    pass  # each instant of the first 6 ms is tried, finer than the loop could sleep
        await eventually(lambda: not any(map(runs, (descendants(os.getpid()) - before) | orphans())))

    def orphans() -> set[int]:
        found = set()
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes() == b"sleep\x0061\x00":
                    found.add(int(folder.name))
        return found

    asyncio.run(using())


def test_a_child_that_does_not_want_to_end_is_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "STOP_S", 0.2)
    stubborn = "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(60)"

    async def using() -> int | None:
        async with broker.child([sys.executable, "-c", stubborn]) as process:
            assert process.stdout is not None
            await process.stdout.readline()
        return process.returncode

    assert asyncio.run(using()) == -signal.SIGKILL


def test_without_any_broker_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "mosquitto", lambda: None)
    monkeypatch.setitem(sys.modules, "amqtt", None)

    async def using() -> None:
        async with broker.open_broker(0):
            pass

    with pytest.raises(broker.NoBrokerError, match="install mosquitto"):
        asyncio.run(using())


# ------------------------------------------------------------------------------------------------------ configuration

VALUES = {
    "data_dir": "./data",
    "mqtt": "mqtt://127.0.0.1:11",
    "web": "127.0.0.1:12",
    "modbus": "tcp://127.0.0.1:13",
    "opcua": "opc.tcp://127.0.0.1:14",
}


def test_the_shipped_configuration_gets_the_ports_and_keeps_all_else(tmp_path: Path) -> None:
    text = demo.config_source().read_text("utf-8")
    fitted = demo.fitted(text, VALUES)
    changed = [pair for pair in zip(text.splitlines(), fitted.splitlines(), strict=True) if pair[0] != pair[1]]
    assert {new.split("# demo: ")[1].split(";")[0].strip() for _, new in changed} == set(VALUES) - {"data_dir"}
    (tmp_path / "demo.yaml").write_text(fitted, "utf-8")
    registry = plugins.Plugins({"modbus": modbus.DRIVER, "opcua": opcua.DRIVER})
    found = config.load(tmp_path / "demo.yaml", registry).config
    assert found.mqtt is not None
    assert found.web is not None
    assert (found.mqtt.url, found.web.port) == ("mqtt://127.0.0.1:11", 12)
    assert found.agent.data_dir == tmp_path / "data"


def test_the_shipped_configuration_is_valid_as_it_lies_and_begins_with_the_modeline() -> None:
    path = ROOT / "config" / "demo.yaml"
    registry = plugins.Plugins({"modbus": modbus.DRIVER, "opcua": opcua.DRIVER})
    assert not config.load(path, registry).notes
    assert path.read_text("utf-8").startswith("# yaml-language-server: $schema=agent.schema.json\n")


def test_a_mark_that_is_unknown_or_missing_is_an_error() -> None:
    with pytest.raises(demo.DemoError, match="marks no line"):
        demo.fitted("a: 1\n", {"mqtt": "x"})
    with pytest.raises(demo.DemoError, match="'mqqt'"):
        demo.fitted("url: 1  # demo: mqqt\n", {"mqtt": "x"})


def test_a_held_port_is_ours_alone_but_our_server_may_listen_on_it() -> None:
    with demo.held_port(free_port()) as first, demo.held_port(first) as second:
        assert first != second

        async def serving() -> None:
            server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", first)
            reader, writer = await asyncio.open_connection("127.0.0.1", first)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            server.close()

        asyncio.run(serving())


# ---------------------------------------------------------------------------------------------------- the whole demo


class Told:
    """What the demo told its watcher."""

    def __init__(self) -> None:
        self.where: demo.Where | None = None
        self.events: list[dict[str, Any]] = []
        self.notes: list[str] = []

    @property
    def watcher(self) -> demo.Watcher:
        def ready(where: demo.Where) -> None:
            self.where = where

        return demo.Watcher(ready, self.events.append, self.notes.append)


def agent_that(does: Callable[[Path, asyncio.Event], Any]) -> Any:
    """An agent_run that says it is ready, gives one event, does something, and waits to be stopped."""

    async def agent_run(config_path: Path, *, stop: asyncio.Event, on_event: Any, on_ready: Any) -> int:
        on_ready({"web": "http://127.0.0.1:1", "mqtt": "mqtt://127.0.0.1:2"})
        on_event({"event": "raised"})
        await does(config_path, stop)
        await stop.wait()
        return 0

    return agent_run


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    before = descendants(os.getpid())
    yield
    assert descendants(os.getpid()) <= before
    assert not list(folder.glob("edge-agent-demo-*"))


def test_the_demo_starts_plant_and_broker_tells_where_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = Told()
    took_s: list[float] = []
    started_s = time.monotonic()

    async def look(config_path: Path, stop: asyncio.Event) -> None:
        took_s.append(time.monotonic() - started_s)
        where = told.where
        assert where is not None
        assert set(where.faults) == set(plant_model.FAULTS)
        assert where.config == config_path
        assert where.modbus in config_path.read_text("utf-8")
        for url in (where.mqtt, where.modbus):
            host, port = url.partition("://")[2].split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()
            await writer.wait_closed()
        # From another terminal, hence in a thread: the demo answers meanwhile.
        assert await asyncio.to_thread(demo.call_up, "cable_cut") == "cable_cut"
        with pytest.raises(demo.UnknownFaultError) as unknown:
            await asyncio.to_thread(demo.call_up, "flood")
        assert set(unknown.value.faults) == set(plant_model.FAULTS)
        await eventually(lambda: any("OPC UA server is up" in note for note in told.notes), 20)
        took_s.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with nothing_left(tmp_path):
        assert asyncio.run(demo.run(OPTIONS, agent_that(look), told.watcher)) == 0
        assert time.monotonic() - took_s[1] < 5
    assert told.events == [{"event": "raised"}]
    assert any(note.startswith("called up: cable_cut") for note in told.notes)
    assert took_s[0] < 5


def test_the_demo_ends_by_itself_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def nothing(_config: Path, _stop: asyncio.Event) -> None:
        pass

    options = demo.Options(port_web=0, port_mqtt=0, for_s=0.1)
    with nothing_left(tmp_path):
        assert asyncio.run(demo.run(options, agent_that(nothing), Told().watcher)) == 0


def test_an_agent_that_does_not_stop_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "AGENT_STOP_S", 0.2)

    async def hang(_config: Path, stop: asyncio.Event) -> None:
        stop.set()
        await asyncio.sleep(3600)

    with nothing_left(tmp_path):
        assert asyncio.run(demo.run(OPTIONS, agent_that(hang), Told().watcher)) == 0


def test_the_agents_own_exit_status_is_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def agent_run(config_path: Path, **_: Any) -> int:
        return 2

    with nothing_left(tmp_path):
        assert asyncio.run(demo.run(OPTIONS, agent_run, Told().watcher)) == 2


def test_a_plant_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(demo, "PLANT_PROGRAM", "drivers.no_such_plant")

    async def nothing(_config: Path, _stop: asyncio.Event) -> None:
        pass

    with nothing_left(tmp_path), pytest.raises(demo.DemoError, match="no_such_plant"):
        asyncio.run(demo.run(OPTIONS, agent_that(nothing), Told().watcher))


# ------------------------------------------------------------------------------------------------- the second terminal


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from edge_agent.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)


def test_a_fault_without_a_demo_is_status_3() -> None:
    done = cli("demo", "--fault", "drift")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no demo is running" in done.stderr


def test_a_demo_that_was_killed_is_not_taken_for_a_running_one(runtime: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime / "edge-agent-demo-1.sock"))
    with pytest.raises(demo.DemoError, match="no demo is running"):
        demo.call_up("drift")
    assert not list(runtime.iterdir())


@pytest.mark.parametrize(("fault", "status"), [("drift", 0), ("flood", 2)])
def test_a_fault_from_a_second_terminal_reaches_the_running_demo(runtime: Path, fault: str, status: int) -> None:
    async def running() -> subprocess.CompletedProcess[str]:
        async with serving_faults():
            modes = [path.stat().st_mode & 0o777 for path in runtime.iterdir()]
            assert modes == [0o600]
            return await asyncio.to_thread(cli, "demo", "--fault", fault)

    done = asyncio.run(running())
    assert done.returncode == status
    if status:
        assert all(name in done.stderr for name in plant_model.FAULTS)


@contextlib.asynccontextmanager
async def serving_faults() -> AsyncIterator[None]:
    plant = demo._Plant(Path(), "", "", dict(plant_model.FAULTS))
    async with demo._listen_for_faults(plant, lambda _: None):
        yield


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert demo.runtime_folder().stat().st_mode & 0o777 == 0o700
    demo.runtime_folder().chmod(0o777)
    with pytest.raises(demo.DemoError, match="0700"):
        demo.runtime_folder()


# ------------------------------------------------------------------------------------------------------- the terminal

EVENT = {
    "ts": "2026-11-23T15:53:39.120Z",
    "event": "raised",
    "machine": "press-3",
    "severity": "alarm",
    "message": "Oil temperature 70.4 °C is above its norm of 70 °C",
    "advice": "Check the oil cooler and its fan.",
}
WHERE = demo.Where(
    "http://127.0.0.1:8080", "mqtt://127.0.0.1:1884", "mosquitto", Path("c"), "tcp://m", "opc.tcp://o", {}
)


def test_the_terminal_says_where_to_look_and_what_happens() -> None:
    text = terminal.welcome(WHERE)
    assert "http://127.0.0.1:8080" in text
    assert "mosquitto_sub -h 127.0.0.1 -p 1884 -t 'edge/#' -v" in text
    assert "--fault" in text


def test_a_warning_is_a_line_with_its_advice_and_colours_only_on_a_terminal() -> None:
    plain = terminal.event_line(EVENT, paint=False)
    assert "press-3" in plain
    assert "alarm raised" in plain
    assert plain.endswith("→ Check the oil cooler and its fan.")
    assert "\x1b" not in plain
    assert terminal.event_line(EVENT, paint=True).startswith("\x1b[1;31m")
    cleared = terminal.event_line({**EVENT, "event": "cleared"}, paint=True)
    assert cleared.startswith("\x1b[32m")
    assert "back to normal" in cleared


def test_with_json_the_first_line_is_where_and_the_next_are_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    ready, event, note = terminal._json_watcher()
    ready(WHERE)
    event(EVENT)
    note("said aside")
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert {"web", "mqtt", "config", "faults"} <= set(first)
    assert second == EVENT
    assert err == "said aside\n"


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60.0), ("5min", 300.0), ("500ms", 0.5)])
def test_a_duration_is_read_as_in_the_configuration(text: str, seconds: float) -> None:
    assert terminal._seconds(text) == seconds


@pytest.mark.parametrize("arguments", [["--for", "60"], ["--port-web", "70000"], ["--port-mqtt", "x"]])
def test_wrong_use_is_status_2(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    terminal.add_demo(parser.add_subparsers())
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["demo", *arguments])
    assert ended.value.code == 2
