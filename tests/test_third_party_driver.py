"""A third party's driver, from its package to its warning: docs/examples/field_survey, built, installed and run.

It is installed into a folder of its own, without the network, and seen by the agent only through its entry point.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge_agent import control, plugins
from tests import system
from tests.conftest import ROOT, eventually, free_port
from tests.third_party import agents_modules, command, install, own_tests, path_with

EXAMPLE = ROOT / "docs/examples/field_survey"
DOCUMENT = ROOT / "docs/drivers.md"
MINUTES = 60

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder into which the example is installed; processes that a test starts find it there."""
    site = install(EXAMPLE, tmp_path_factory.mktemp("third"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path_with(site))
        yield site


@pytest.fixture
def farm(installed: Path, tmp_path: Path) -> Path:
    """A copy of the sample: agent.yaml and the two flights."""
    assert installed.is_dir()
    return shutil.copytree(EXAMPLE, tmp_path / "farm", ignore=shutil.ignore_patterns("__pycache__", "*.py"))


def rows(farm: Path) -> dict[str, dict[str, Any]]:
    """What `read --json` says, by machine.signal."""
    read = command(farm, "read", "agent.yaml", "--json")
    found = [json.loads(line) for line in read.stdout.splitlines()]
    return {f"{row['machine']}.{row['signal']}": row for row in found}


def changed(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


def test_the_package_brings_one_module_and_its_entry_point(installed: Path) -> None:
    (about,) = installed.glob("*.dist-info")
    assert (about / "entry_points.txt").read_text() == "[edge_agent.drivers]\nfield_survey = field_survey:DRIVER\n"
    assert sorted(path.name for path in installed.glob("*.py")) == ["field_survey.py"]


def test_it_knows_the_contract_and_nothing_else_of_the_agent() -> None:
    assert agents_modules(EXAMPLE / "field_survey.py") == {"edge_agent.contract"}


def test_its_own_tests_and_the_promises_of_all_drivers_hold_for_what_was_installed(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "where.py").write_text("import field_survey\nprint(field_survey.__file__)\n")
    where = subprocess.run([sys.executable, "where.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(where.stdout.strip()) == installed / "field_survey.py"
    out = own_tests(EXAMPLE / "test_field_survey.py", tmp_path)
    passed = re.findall(r"^PASSED .*all_drivers\[(.*)\]$", out, re.MULTILINE)
    assert {"a plant that is well is read well", "a lie is never a value", "a refusal is a refusal"} <= set(passed)
    assert len(passed) >= 15


# ----------------------------------------------------------------------------------------------------------- commands


def test_check_names_the_package_that_brings_the_driver(farm: Path) -> None:
    done = command(farm, "check", "agent.yaml")
    assert done.returncode == 0, done.stderr
    assert "2 machines, 4 signals, 1 connection" in done.stdout
    assert "driver field_survey: edge-agent-field-survey 0.1.0" in done.stdout


def test_wrong_settings_are_told_at_their_place_like_any_others(farm: Path) -> None:
    changed(
        farm / "agent.yaml",
        ('pattern: "flight-*.csv"', "patern: flight.csv\n    pattern: year/*.csv"),
        ("valid: valid_share}", "valid: plot_id}"),
        ("least_valid: 0.8 ", "least_valid: 80 "),
        ("max_age: 10d", "max_age: 10"),
        ("settle: 5s", "settle: 2d"),
        (", plot: N2}", ", plto: N2}"),
    )
    done = command(farm, "check", "agent.yaml")
    assert done.returncode == 2
    told = [line.partition(" ")[0] + " " + line.partition(" ")[2] for line in done.stderr.splitlines()]
    text = (farm / "agent.yaml").read_text().splitlines()
    for key, word, words in (
        ("connections.drone.patern", "patern", 'unknown key (found "patern"'),
        ("connections.drone.pattern", "year/", "a folder stands in folder"),
        ("connections.drone.columns.valid", "valid:", "'plot_id' is the column of plot or time already"),
        ("connections.drone.least_valid", "80 ", "is too large (found 80, allowed 1.0 or less)"),
        ("connections.drone.max_age", "10 ", "a duration needs its unit (found 10, allowed 1h to 365d"),
        ("connections.drone.settle", "2d", 'the duration is out of range (found "2d", allowed 0s to 1h'),
        ("machines.north-2.plto", "plto", 'unknown key (found "plto"'),
    ):
        (line,) = [each for each in told if f" {key}: " in each]
        assert words in line, line
        number, column = map(int, line.split(":")[1:3])
        assert text[number - 1][column - 1 :].startswith(word), line
    assert "Traceback" not in done.stderr


def test_a_plot_that_is_missing_is_told_at_its_signal(farm: Path) -> None:
    changed(farm / "agent.yaml", (", plot: N2}", "}"))
    done = command(farm, "check", "agent.yaml")
    assert done.returncode == 2
    assert "the key is missing (allowed the plot's id, as the files have it; here or at the machine)" in done.stderr


def test_the_schema_has_the_keys_of_the_driver(farm: Path) -> None:
    schema = json.loads(command(farm, "schema").stdout)
    connection = schema["$defs"]["field_survey.Connection"]["properties"]
    assert {"driver", "folder", "pattern", "columns", "least_valid", "max_age", "settle", "timeout"} == set(connection)
    assert (connection["max_age"]["default"], connection["driver"]["const"]) == ("10d", "field_survey")
    assert "plot" in schema["$defs"]["MachineFile"]["properties"]


def test_the_sample_is_too_old_to_be_judged_and_says_so(farm: Path) -> None:
    _lie_there(farm)
    done = command(farm, "read", "agent.yaml")
    assert done.returncode == 1
    assert "captured 2026-05-19T10:02:11Z, longer than 10d ago" in done.stdout
    assert {(row["value"], row["quality"], row["verdict"]) for row in rows(farm).values()} == {(None, "missing", "bad")}


def test_what_the_readme_says_shows_the_sample_judged(farm: Path) -> None:
    said = re.findall(r"^(sed .*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    for line in said:
        subprocess.run(line, shell=True, cwd=farm, check=True)
    assert "2026-05" not in (farm / "surveys/flight-2026-05-19.csv").read_text()
    _lie_there(farm)
    found = rows(farm)
    assert {name: (row["value"], row["verdict"]) for name, row in found.items()} == {
        "north-1.nitrogen": (0.263, "warning"),
        "north-1.cover": (0.768, "normal"),
        "north-2.nitrogen": (0.367, "normal"),
        "north-2.cover": (0.881, "warning"),
    }
    assert {row["quality"] for row in found.values()} == {"good"}
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    assert found["north-2.cover"]["ts"] == f"{yesterday}T10:03:58.000Z", "when it was captured, not when it was read"


def test_read_and_check_say_why_a_value_is_not_good(farm: Path) -> None:
    _drop(farm, "flight-3.csv", f"N1,{_utc(5)},0.8,0.31,0.6", f"N2,{_utc(4)},cloud,0.3,0.9")
    _lie_there(farm)
    done = command(farm, "read", "agent.yaml")
    assert done.returncode == 1
    assert re.search(r"north-1.cover +0.8 +uncertain .*flight-3.csv, line 2: 60 % of the pixels are valid", done.stdout)
    assert re.search(r"north-2.cover +– +not_a_number .*flight-3.csv, line 3: ndvi 'cloud' is no number", done.stdout)
    shutil.rmtree(farm / "surveys")
    done = command(farm, "check", "agent.yaml", "--connect")
    assert done.returncode == 3
    assert f"connection drone: the folder {farm}/surveys is not there" in done.stdout


# ------------------------------------------------------------------------------------------------------------- running


def test_a_flight_that_is_dropped_while_the_agent_runs_becomes_a_warning_and_a_folder_that_goes_is_said(
    farm: Path,
) -> None:
    changed(
        farm / "agent.yaml",
        ("1883", str(free_port())),  # no broker is there: what it would be told waits in the store
        ("every: 1min", "every: 200ms"),
        ("settle: 5s", "settle: 100ms"),
        ("farm/north, ", "farm/north, data_dir: ./data, "),
        ("\nconnections:", "\nweb: {listen: 127.0.0.1:0}\nconnections:"),
    )
    for old in (farm / "surveys").iterdir():
        old.unlink()

    async def scene() -> None:
        async with system.agent(farm / "agent.yaml") as agent:
            where: list[str] = []

            def status() -> dict[str, Any]:
                try:
                    found = control.ask(farm / "data", {"command": "status"}, 10.0)
                except OSError:
                    return {}
                where[:] = [str(found["web"]).rstrip("/")]
                return dict(found)

            def fetch(path: str) -> dict[str, Any]:
                with urllib.request.urlopen(where[0] + path, timeout=10.0) as answer:
                    return dict(json.loads(answer.read()))

            def connection() -> dict[str, Any]:
                return dict(fetch("/api/v1/status")["health"]["connections"]["drone"]) if status() else {}

            def standing() -> dict[tuple[str, str], dict[str, Any]]:
                return {(w["signal"], w["kind"]): w for w in fetch("/api/v1/warnings?active=true")["warnings"]}

            await eventually(lambda: connection().get("state") == "connected", 30.0)
            _drop(farm, "flight-1.csv", f"N1,{_utc(90)},0.78,0.30,0.95")
            await eventually(lambda: _value(fetch, "north-1", "nitrogen") == 0.30, 30.0)
            assert ("nitrogen", "low") not in standing()
            _drop(farm, "flight-2.csv", f"N1,{_utc(30)},0.88,0.21,0.95")
            await eventually(lambda: {("nitrogen", "low"), ("cover", "high")} <= standing().keys(), 30.0)
            low, high = standing()["nitrogen", "low"], standing()["cover", "high"]
            assert (low["machine"], low["value"], low["severity"], low["limit"]) == ("north-1", 0.21, "alarm", 0.22)
            assert low["advice"].startswith("Fertilise this plot")
            assert (high["value"], high["severity"], high["advice"]) == (0.88, "warning", "Mow this plot.")
            assert low["ts"] == low["since"] == _utc(30).replace("Z", ".000Z"), "when it was captured"
            _drop(farm, "flight-0.csv", f"N1,{_utc(120)},0.70,0.40,0.95")  # an older flight that comes later
            _drop(farm, "flight-3.csv", f"N1,{_utc(10)},0.80,0.31,0.95")
            await eventually(lambda: not {("nitrogen", "low"), ("cover", "high")} & standing().keys(), 30.0)
            assert _value(fetch, "north-1", "nitrogen") == 0.31
            shutil.move(farm / "surveys", farm / "gone")
            await eventually(lambda: "is not there" in connection().get("reason", ""), 30.0)
            assert _value(fetch, "north-1", "nitrogen") is None
            shutil.move(farm / "gone", farm / "surveys")
            await eventually(lambda: _value(fetch, "north-1", "nitrogen") == 0.31, 90.0)
            assert await agent.stop() == 0

    asyncio.run(scene())


NOW = datetime.now(UTC)


def _utc(minutes_ago: float) -> str:
    return f"{NOW - timedelta(minutes=minutes_ago):%Y-%m-%dT%H:%M:%SZ}"


def _drop(farm: Path, name: str, *lines: str) -> None:
    fresh = farm / "surveys" / f"{name}.part"
    fresh.write_text("\n".join(("plot_id,captured_utc,ndvi,ndre,valid_share", *lines)) + "\n")
    fresh.rename(farm / "surveys" / name)


def _lie_there(farm: Path) -> None:
    """As if the files had come a minute ago."""
    for path in (farm / "surveys").iterdir():
        about = path.stat()
        os.utime(path, (about.st_atime - MINUTES, about.st_mtime - MINUTES))


def _value(fetch: Any, machine: str, signal: str) -> float | None:
    found = {each["name"]: each for each in fetch(f"/api/v1/machines/{machine}")["signals"]}
    value: float | None = found[signal]["value"]
    return value


# ------------------------------------------------------------------------------------------------- plug-ins that are none


MODELS = "import types, pydantic\nM = pydantic.BaseModel\nDRIVER = types.SimpleNamespace"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("DRIVER = 1 / 0", "cannot be imported: division by zero"),
        ("class DRIVER: pass", "the entry point leads to the class DRIVER, not to an instance of it"),
        (f"{MODELS}(Connection=int)", "its Connection is no pydantic model"),
        (f"{MODELS}(Connection=M, Address=M, inherited='unit')", "its inherited is no set of keys"),
        (f"{MODELS}(Connection=M, Address=M, inherited=frozenset())", "it has no open"),
    ],
)
def test_a_plug_in_that_is_no_driver_is_told_where_it_is_named(tmp_path: Path, module: str, words: str) -> None:
    _install(tmp_path / "site", "acme-odd", "acme_odd", module, "odd")
    config = _config(tmp_path, "odd")
    done = _check(tmp_path, config)
    assert done.returncode == 2
    assert f"{config}:3:27: connections.c.driver: " in done.stderr
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_two_packages_that_offer_one_driver_are_refused_whichever_comes_first(tmp_path: Path) -> None:
    _install(tmp_path / "site", "acme-modbus", "acme_modbus", "DRIVER = None", "modbus")
    done = _check(tmp_path, _config(tmp_path, "modbus"))
    assert done.returncode == 2
    assert "acme-modbus and edge-agent both offer 'modbus'; uninstall one of them" in done.stderr
    assert plugins.installed().origin("modbus").distribution == "edge-agent", "and nobody else's is hurt"


def _install(site: Path, package: str, name: str, module: str, kind: str) -> None:
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (site / f"{name}.py").write_text(module)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[edge_agent.drivers]\n{kind} = {name}:DRIVER\n")


def _config(folder: Path, kind: str) -> Path:
    path = folder / "agent.yaml"
    path.write_text(
        'agent: {id: a}\nmqtt: {url: "mqtt://b"}\n'
        f"connections: {{c: {{driver: {kind}, url: 'tcp://h'}}}}\n"
        "machines: {m: {connection: c, signals: {s: {address: 'holding:1'}}}}\n"
    )
    return path


def _check(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "check", str(config)],
        env={**os.environ, "PYTHONPATH": path_with(folder / "site")},
        text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the words


def test_every_excerpt_of_the_document_stands_literally_in_the_example() -> None:
    sources = [path.read_text() for path in sorted(EXAMPLE.iterdir()) if path.is_file()]
    excerpts = re.findall(r"^```(python|yaml|toml)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in excerpts} == {"python", "yaml", "toml"}
    for _, excerpt in excerpts:
        assert any(excerpt in source for source in sources), excerpt


def test_the_document_names_what_there_is() -> None:
    """Names in code type that look like the contract's exist there, or in the conformance suite."""
    from edge_agent import contract, testing

    known = {*vars(contract), *vars(testing), *contract.Quality.__members__}
    named = set(re.findall(r"`([A-Z][A-Za-z_]+)`", DOCUMENT.read_text()))
    own = {"BAD", "DRIVER", "Path", "ValueError", "Address", "Connection", "NaN"}
    assert named - own <= known, named - own - known
    assert {"DeviceSilent", "DeviceRefused", "HOLD", "CONFIRMED", "SpeakingPlant"} <= named
