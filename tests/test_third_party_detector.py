"""A third party's detector, from its package to its warning: docs/examples/short_cycling, built, installed and run."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.third_party import agents_modules, command, install, path_with

EXAMPLE = ROOT / "docs/examples/short_cycling"
DOCUMENT = ROOT / "docs/detectors.md"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder into which the example is installed; processes that a test starts find it there."""
    site = install(EXAMPLE, tmp_path_factory.mktemp("third"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path_with(site))
        yield site


@pytest.fixture
def pump(installed: Path, tmp_path: Path) -> Path:
    """A copy of the sample: pump.yaml and its recording."""
    assert installed.is_dir()
    return shutil.copytree(EXAMPLE, tmp_path / "pump", ignore=shutil.ignore_patterns("__pycache__", "*.py"))


def test_it_knows_the_contract_and_nothing_else_of_the_agent() -> None:
    assert agents_modules(EXAMPLE / "short_cycling.py") == {"edge_agent.contract"}


def test_its_own_tests_and_the_promises_of_all_detectors_hold_for_what_was_installed(
    installed: Path, tmp_path: Path
) -> None:
    assert installed.is_dir()
    shutil.copy(
        EXAMPLE / "test_short_cycling.py", tmp_path
    )  # away from its source, so that what is installed is tested
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-rA", "--rootdir", ".", "-p", "no:cacheprovider", "-W", "error"]
    ran = subprocess.run(pytest_, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert len(re.findall(r"^PASSED", ran.stdout, re.MULTILINE)) == 3


def test_its_warning_is_one_like_any_other(pump: Path) -> None:
    done = command(pump, "replay", "pump.yaml", "pump.csv", "--json")
    assert done.returncode == 0, done.stderr
    raised, cleared = [json.loads(line) for line in done.stdout.splitlines()]
    assert (raised["event"], raised["kind"], raised["severity"], raised["limit"]) == (
        "raised",
        "starts",
        "warning",
        6.0,
    )
    assert raised["why"] == {"starts": 7.0, "per_s": 3600.0}
    assert raised["message"] == "Motor current 6.2 A is outside its norm (starts)"
    assert "check valve" in raised["advice"]
    assert (cleared["event"], cleared["id"]) == ("cleared", raised["id"])
    assert raised["ts"] < "2026-05-12T10:40" < "2026-05-12T14:00" < cleared["ts"]


def test_the_schema_and_the_errors_know_its_key(pump: Path) -> None:
    schema = json.loads(command(pump, "schema").stdout)
    assert "starts" in schema["$defs"]["NormFile"]["properties"]
    path = pump / "pump.yaml"
    path.write_text(path.read_text().replace("{max: 6, above: 0.5}", "{max: 500, over: 0.5}"))
    done = command(pump, "check", "pump.yaml")
    assert done.returncode == 2
    told = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("pump.yaml:")]
    assert told == [f"machines.sump-pump.signals.current.norm.starts.{key}" for key in ("max", "over")]


def test_a_bare_number_is_the_most_starts(pump: Path) -> None:
    path = pump / "pump.yaml"
    path.write_text(path.read_text().replace("{max: 6, above: 0.5}", "6"))
    assert command(pump, "check", "pump.yaml").returncode == 0


def test_the_excerpts_in_the_document_are_its_code() -> None:
    code = "".join((EXAMPLE / name).read_text() for name in ("short_cycling.py", "test_short_cycling.py"))
    excerpts = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert excerpts
    for excerpt in excerpts:
        for part in re.split(r"\n *\.\.\.\n", excerpt):
            assert part.strip("\n") in code, part
