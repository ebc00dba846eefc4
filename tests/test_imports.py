"""Who has no OPC UA pays nothing for it: neither its library nor cryptography is loaded before a connection wants it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port

ROOT = Path(__file__).parents[1]
HEAVY = ("asyncua", "cryptography")
MODBUS = '{driver: modbus, url: "tcp://127.0.0.1:%d"}', '{address: "holding:0", type: uint16}'
OPCUA = '{driver: opcua, url: "opc.tcp://127.0.0.1:%d"}', '{address: "i=2258"}'
CONFIGURATION = """\
agent: {{id: bare, site: bare, data_dir: "{folder}/data"}}
mqtt: {{url: "mqtt://127.0.0.1:{nobody}"}}
web: null
connections: {{c: {connection}}}
machines: {{m: {{connection: c, every: 100ms, signals: {{s: {signal}}}}}}}
"""
RUN = """\
import asyncio
from pathlib import Path
from edge_agent import __main__, agent

async def work():
    stop = asyncio.Event()

    async def device(reader, writer):
        await reader.read(1)
        stop.set()
        writer.close()

    async with await asyncio.start_server(device, "127.0.0.1", {port}):
        await agent.run(Path({path!r}), stop=stop)

asyncio.run(work())
"""


def loaded_by(work: str, folder: Path) -> list[str]:
    """Which of the heavy packages a new process has loaded after this work."""
    told = folder / "loaded.json"
    report = f"open({str(told)!r}, 'w').write(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    program = f"import atexit, json, sys\natexit.register(lambda: {report})\n{work}"
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(told.read_text())
    return found


def loaded_by_a_run(kind: tuple[str, str], folder: Path) -> list[str]:
    """The same of the daemon, which ends when its device has heard the first byte of it."""
    port, nobody = free_port(), free_port()
    path = folder / "agent.yaml"
    connection, signal = kind[0] % port, kind[1]
    path.write_text(CONFIGURATION.format(folder=folder, nobody=nobody, connection=connection, signal=signal))
    return loaded_by(RUN.format(port=port, path=str(path)), folder)


@pytest.mark.parametrize("module", ["edge_agent", "edge_agent.contract", "drivers.opcua"])
def test_importing_loads_neither_the_library_nor_cryptography(module: str, tmp_path: Path) -> None:
    assert loaded_by(f"import {module}", tmp_path) == []


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["check", "config/agent.yaml"]])
def test_help_and_check_load_neither(words: list[str], tmp_path: Path) -> None:
    work = f"from edge_agent.__main__ import main\ntry: main({words!r})\nexcept SystemExit: pass"
    assert loaded_by(work, tmp_path) == []


def test_a_run_of_modbus_alone_loads_neither(tmp_path: Path) -> None:
    assert loaded_by_a_run(MODBUS, tmp_path) == []


def test_a_run_with_opc_ua_loads_the_library(tmp_path: Path) -> None:
    assert "asyncua" in loaded_by_a_run(OPCUA, tmp_path)
