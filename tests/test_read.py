"""`edge-agent read` and `check --connect` of texts, lost lines and secrets, with a foreign OPC UA server."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests import foreign
from tests.conftest import ROOT, free_port

CONFIG = """agent: {{id: desk}}
mqtt: {{url: "mqtt://127.0.0.1:1"}}
connections:
  cell: {{driver: opcua, url: "{url}"}}
  gone: {{driver: opcua, url: "opc.tcp://127.0.0.1:{nobody}"{user}}}
machines:
  press:
    connection: cell
    signals: {{oil: {{address: "nsu=urn:foreign:plant;s=Analog.Temperature"}}, serial: {{address: "{text}", type: string}}}}
  pump:
    connection: gone
    signals: {{flow: {{address: "i=1"}}, maker: {{address: "i=2", type: string}}}}
"""
TEXT = "nsu=urn:foreign:plant;s=Types.String"


async def cli(*words: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_agent", *map(str, words),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def test_a_devices_text_stands_on_one_line_and_commands_no_terminal(tmp_path: Path) -> None:
    async def whole() -> None:
        async with foreign.server() as plant:
            await plant.set("Types.String", "serial\x1b[2J 17\nfine" + 1000 * "x")
            config = tmp_path / "desk.yaml"
            config.write_text(CONFIG.format(url=plant.url, nobody=free_port(), user="", text=TEXT))
            code, out, err = await cli("read", config, "press")
            assert (code, len(out.splitlines())) == (0, 3), out + err
            assert '"serial\\x1b[2J 17\\nfinexxx' in out
            assert max(map(len, out.splitlines())) < 200
            assert all(line.isprintable() for line in out.splitlines())
            code, out, _ = await cli("read", config, "press.serial", "--json")
            assert (code, len(json.loads(out)["value"])) == (0, 1018), "a text alone is read, and whole"

    asyncio.run(whole())


def test_a_lost_line_is_told_of_its_texts_too_and_nothing_reached_is_three(tmp_path: Path) -> None:
    config = tmp_path / "desk.yaml"
    config.write_text(CONFIG.format(url="opc.tcp://127.0.0.1:1", nobody=free_port(), user="", text=TEXT))
    for words in ("pump", "maker"):
        code, out, err = asyncio.run(cli("read", config, words, "--json"))
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 3, out + err
        assert {row["quality"] for row in rows} == {"disconnected"}
        assert all("Connection refused" in row["reason"] for row in rows)
    code, out, err = asyncio.run(cli("check", "--connect", config))
    assert (code, "0 of 4 signals can be read" in out) == (3, True), out + err


def test_a_secret_that_is_not_there_is_told_at_its_place(tmp_path: Path) -> None:
    config = tmp_path / "desk.yaml"
    user = ", user: agent, password: {secret: cell}"
    config.write_text(CONFIG.format(url="opc.tcp://127.0.0.1:1", nobody=free_port(), user=user, text=TEXT))
    for words in ("read", "check --connect"):
        code, _, err = asyncio.run(cli(*words.split(), config))
        assert code == 2
        assert err.startswith(f"{config}:5:"), err
        assert ": connections.gone.password: no secret 'cell'" in err
    code, out, _ = asyncio.run(cli("check", "--connect", "--json", config))
    assert (code, json.loads(out)["errors"][0]["path"]) == (2, "connections.gone.password")
