"""The commands as a script sees them: exit statuses of the contract, words on stderr, JSON that parses."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port
from tests.hall import Hall, command, picky, played, press

pytestmark = pytest.mark.timeout(120)

RECORDINGS = """\
agent: {id: desk, data_dir: data}
machines:
  press:
    every: 1s
    signals:
      oil: {unit: °C, norm: {warning: {high: 60}, deadband: 1, on_delay: 2s}}
"""


def run(*words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *map(str, words)],
        cwd=cwd, text=True, capture_output=True, timeout=30, check=False,
    )  # fmt: skip


@played
async def test_read_says_by_its_status_how_the_plant_is(here: Hall) -> None:
    async with picky({10: 500, 11: 7}) as device:
        machine = press()
        machine["signals"]["level"] = {"address": "holding:11", "unit": "%"}
        config = here.plain({"plc": device.port}, {"press": machine})
        here.write(config)
        path = str(here.agent.config)
        code, out, _ = await command("read", path, "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 0
        assert [(row["signal"], row["value"], row["quality"], row["verdict"]) for row in rows] == [
            ("oil", 50.0, "good", "normal"), ("level", 7, "good", "none"),
        ]  # fmt: skip
        assert {"machine", "signal", "value", "unit", "quality", "norm", "verdict"} <= set(rows[0])
        code, out, _ = await command("read", path)
        assert (code, "50 °C" in out) == (0, True)
        for word in ("oil", "press.oil", "press"):
            code, out, _ = await command("read", path, word, "--json")
            assert code == 0
            assert json.loads(out.splitlines()[0])["signal"] == "oil"

        device.registers[10] = 650
        assert (await command("read", path))[0] == 1, "outside its norm"
        assert (await command("read", path, "level"))[0] == 0, "only what was asked for counts"
        device.registers[10] = 500
        code, out, words = await command("read", path, "press.oil", "levle")
        assert (code, out) == (2, "")
        assert "levle" in words
        machine["signals"]["gone"] = {"address": "holding:900"}
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        code, out, _ = await command("read", path, "--json")
        assert (code, json.loads(out.splitlines()[2])["quality"]) == (1, "refused")
        # One of two devices away: something was reached, and something is bad.
        away = free_port()
        here.write(here.plain({"plc": device.port, "plc-2": away}, {"press": press(), "lathe": press("plc-2")}))
        code, out, words = await command("read", path, "--json")
        assert (code, [json.loads(line)["quality"] for line in out.splitlines()]) == (1, ["good", "disconnected"])
        assert "plc-2" in words
        code, _, words = await command("read", path, "lathe")
        assert code == 3
        here.write(here.plain({"plc": away}, {"press": press()}))
        code, _, words = await command("read", path)
        assert code == 3
        assert f"127.0.0.1:{away}" in words
        assert "Traceback" not in words


@played
async def test_check_connect_says_which_signals_fail_and_why(here: Hall) -> None:
    async with picky({10: 500, 11: 1}) as device:
        machine = press()
        machine["signals"]["gone"] = {"address": "holding:900"}
        machine["signals"]["mode"] = {"address": "holding:11", "map": {0: "stopped", 1: "running"}}
        machine["signals"]["count"] = {"address": "holding:20", "type": "uint64"}
        path = str(here.agent.config)
        device.registers |= {20: 0x001F, 21: 0xFFFF, 22: 0xFFFF, 23: 0xFFFF}
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        why = "unit 1, holding 900: exception 2 (illegal data address)"
        code, out, _ = await command("check", path, "--connect")
        assert (code, f"press.gone: refused: {why}" in out, "3 of 4 signals can be read" in out) == (1, True, True)
        code, out, _ = await command("check", path, "--connect", "--json")
        assert [each.get("reason") for each in json.loads(out)["signals"]] == [None, why, None, None]
        code, out, _ = await command("read", path)
        assert (code, why in out, "1 (running)" in out, "9007199254740991" in out) == (1, True, True, True)
        del machine["signals"]["gone"]
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        assert (await command("check", path, "--connect"))[0] == 0
        await device.stop()
        code, out, _ = await command("check", path, "--connect")
        assert (code, "Connection refused" in out) == (3, True)


@played
async def test_status_and_reload_find_the_agent_or_say_that_none_runs(here: Hall) -> None:
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        path, data = str(here.agent.config), str(here.data_dir)
        for words in (("status", path), ("reload", path), ("status", "--data-dir", data)):
            code, _, said = await command(*words)
            assert code == 3, words
            assert said
        assert not here.data_dir.exists(), "asking leaves nothing behind"
        code, out, _ = await command("status", path, "--json")
        assert (code, json.loads(out)["ok"]) == (3, False)
        await here.start()
        for words in (("status", path), ("status", "--data-dir", data)):
            code, out, _ = await command(*words, "--json")
            answer = json.loads(out)
            assert (code, answer["pid"]) == (0, here.pid)
            assert {"state", "since", "config", "connections", "buffer", "warnings"} <= set(answer)
        config = (await here.ask("status"))["config"]
        code, out, _ = await command("status", path)
        assert code == 0
        assert "plc" in out
        code, out, _ = await command("reload", path, "--json")
        assert (code, json.loads(out)) == (0, {"ok": True, "config": config, "changed": []})
        await here.agent.kill()
        assert (await command("status", path))[0] == 3, "the socket of one that was killed answers nobody"


def test_replay_ends_with_zero_also_when_it_finds_warnings(tmp_path: Path) -> None:
    config, data = tmp_path / "desk.yaml", tmp_path / "week.csv"
    config.write_text(RECORDINGS)
    rows = [f"2026-11-23T15:53:{second:02d}Z,{65 if 10 <= second < 20 else 50}" for second in range(40)]
    data.write_text("\n".join(["ts,oil", *rows]) + "\n")
    out, alarms = tmp_path / "events.jsonl", tmp_path / "alarms.csv"
    done = run("replay", config, data, "--out", out, "--alarms", alarms, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == events
    assert [(each["event"], each["ts"], each["since"], each["seq"], each["epoch"]) for each in events] == [
        ("raised", "2026-11-23T15:53:12.000Z", "2026-11-23T15:53:10.000Z", 1, "replay"),
        ("cleared", "2026-11-23T15:53:20.000Z", "2026-11-23T15:53:10.000Z", 2, "replay"),
    ]
    head, row = alarms.read_text().splitlines()
    assert head == "case,start,end,tag,severity,kind"
    assert row == "week,2026-11-23T15:53:12.000Z,2026-11-23T15:53:20.000Z,oil,warning,high"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "desk.yaml", "none.csv"),
        ("replay", "none.yaml", "week.csv"),
        ("run", "desk.yaml"),
        ("run", "none.yaml"),
        ("read", "desk.yaml"),
        ("check", "none.yaml"),
        ("status", "none.yaml"),
        ("replay", "desk.yaml", "week.csv", "--out", "week.csv"),
        ("replay", "desk.yaml", "week.csv", "--out", "x.csv", "--alarms", "./x.csv"),
        ("check", "--connect", "desk.yaml"),
        ("check", "--js", "desk.yaml"),
        ("read",),
        ("no-such-command",),
        (),
    ],
)
def test_wrong_use_ends_with_two_and_words(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "desk.yaml").write_text(RECORDINGS)
    (tmp_path / "week.csv").write_text("ts,oil\n2026-11-23T15:53:00Z,1\n")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr or not words
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_run_says_of_a_configuration_for_recordings_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "desk.yaml").write_text(RECORDINGS)
    assert "recordings" in run("run", "desk.yaml", cwd=tmp_path).stderr


def test_a_broken_configuration_is_two_in_every_command_with_all_its_errors(tmp_path: Path) -> None:
    (tmp_path / "week.csv").write_text("ts,oil\n2026-11-23T15:53:00Z,1\n")
    path = tmp_path / "broken.yaml"
    path.write_text(RECORDINGS.replace("every: 1s", "evry: 1s").replace("high: 60", "high: hot"))
    places = [f"{path}:4:5: machines.press.evry: ", f"{path}:6:46: machines.press.signals.oil.norm.warning.high: "]
    for words in (("check", path), ("run", path), ("read", path), ("replay", path, tmp_path / "week.csv")):
        done = run(*words)
        assert done.returncode == 2, words
        for place in places:
            assert any(line.startswith(place) for line in done.stderr.splitlines()), (words, done.stderr)
    done = run("check", path, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (2, False)
    assert [(each["line"], each["column"]) for each in answer["errors"]] == [(4, 5), (6, 46)]
    assert all({"file", "line", "column", "path", "found", "allowed"} <= set(each) for each in answer["errors"])
    path.write_text(RECORDINGS)
    done = run("check", path, "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)


def test_the_schema_is_json_and_the_example_is_valid(tmp_path: Path) -> None:
    done = run("schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    assert {"agent", "mqtt", "connections", "machines", "include"} <= set(schema["properties"])
    assert run("check", ROOT / "config" / "demo.yaml").returncode == 0
    shipped = ROOT / "config" / "agent.schema.json"
    assert json.loads(shipped.read_text()) == schema, "make it anew: edge-agent schema > config/agent.schema.json"


def test_options_may_stand_anywhere_and_each_command_tells_its_own_usage(tmp_path: Path) -> None:
    (tmp_path / "desk.yaml").write_text(RECORDINGS)
    for words in (("check", "--json", "desk.yaml"), ("check", "desk.yaml", "--json")):
        assert json.loads(run(*words, cwd=tmp_path).stdout)["ok"]
    assert "--connect" in run("check", "--no-such", cwd=tmp_path).stderr
    assert run("read", "desk.yaml", "--json", "press.oil", cwd=tmp_path).stderr.startswith(
        "edge-agent: desk.yaml has no"
    )


def test_output_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "desk.yaml").write_text(RECORDINGS)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", "schema"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "edge-agent: the output cannot be written: No space left on device\n")


def test_status_of_an_agent_that_nobody_installed_is_that_none_runs(tmp_path: Path) -> None:
    done = run("status", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (3, False)


@pytest.mark.root
def test_a_secret_of_another_user_is_told_in_words() -> None:
    with tempfile.TemporaryDirectory() as name:
        as_somebody_else(Path(name))


def as_somebody_else(folder: Path) -> None:
    config = folder / "agent.yaml"
    (folder / "data").mkdir(mode=0o700)
    config.write_text(
        "agent: {id: a}\nmqtt: {url: 'mqtt://h', username: u, password: {secret: x}}\n"
        "connections: {plc: {driver: modbus, url: 'tcp://127.0.0.1'}}\n"
        "machines: {m: {connection: plc, signals: {s: {address: 'holding:1'}}}}\n"
    )
    assert os.geteuid() == 0, "needs root, to become somebody else: sudo make test"
    folder.chmod(0o755)
    # Everything is imported as root first: the interpreter's own files may be closed to others.
    program = (
        "import os, sys; sys.path.insert(0, '.'); from edge_agent.__main__ import main; "
        "sys.stdout = sys.stderr = open(os.devnull, 'w'); main(sys.argv[1:]); "
        "sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__; os.seteuid(65534); sys.exit(main(sys.argv[1:]))"
    )
    for asked, code, says in (("check", 0, "Permission denied"), ("status", 3, "another user")):
        done = subprocess.run(
            [sys.executable, "-c", program, asked, str(config)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr


def test_help_and_version_answer_at_once() -> None:
    for word in ("--help", "--version"):
        took = []
        for _ in range(3):
            begun = time.monotonic()
            done = run(word)
            took.append(time.monotonic() - begun)
            assert done.returncode == 0
            assert "edge-agent" in done.stdout
        assert min(took) < 0.5


def test_run_keeps_from_structlog_what_it_does_not_need_and_from_nobody_else(tmp_path: Path) -> None:
    """A third party's driver may want it."""
    for part in ("__init__", "console", "traceback", "pretty"):
        (tmp_path / "rich").mkdir(exist_ok=True)
        (tmp_path / "rich" / f"{part}.py").write_text("Console = Traceback = object\n")
    code = "from edge_agent.cli.run import import_structlog as it; it(); import structlog, rich.console; print(structlog.dev.rich)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("None\n", "")
