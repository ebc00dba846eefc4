"""What is shipped: the locks, the wheel, the unit, the words of the README, the command line's first answer."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from edge_agent.__main__ import COMMANDS, LATER, main
from tests.conftest import ROOT

LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> list[Path]:
    """The files of the repository that git would ship, whether committed yet or not."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# ----------------------------------------------------------------------------------------------------------- locks


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_host_and_hashes_every_package(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|--(index|extra-index|find-links|trusted)|@\s*file", text)
    entries = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(lock)) > 3
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_what_runs_is_what_was_tested() -> None:
    dev = pins("requirements-dev.lock")
    for lock in ("requirements.lock", "requirements-build.lock"):
        assert pins(lock).items() <= dev.items()


def test_every_stated_dependency_is_locked() -> None:
    locked = pins("requirements.lock")
    stated = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["demo"]]
    for each in stated:
        name, _, version = each.partition(",")[0].partition("==")
        assert locked[name.lower()].startswith(version.rstrip("*").rstrip(".")), each


def test_the_daemon_is_installed_without_the_tests_tools() -> None:
    assert (
        pins("requirements.lock")
        .keys()
        .isdisjoint({"pytest", "ruff", "mypy", "playwright", "hatchling", "ruamel-yaml"})
    )


# ----------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("edge_agent-*.whl")
    return set(zipfile.ZipFile(built).namelist())


def test_the_wheel_holds_all_that_the_agent_needs(wheel: set[str]) -> None:
    data = f"edge_agent-{PROJECT['project']['version']}.data/data/share/edge-agent"
    wanted = {f"{package}/py.typed" for package in ("edge_agent", "drivers", "detectors")}
    wanted |= {f"{data}/systemd/edge-agent.service", f"{data}/systemd/edge-agent.sysusers"}
    for folder in ("edge_agent", "drivers", "detectors"):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if _is_shipped(path)}
    for path in (ROOT / "config").rglob("*.yaml"):
        wanted.add(f"{data}/config/{path.relative_to(ROOT / 'config')}")
    assert wanted <= wheel


def _is_shipped(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    version = PROJECT["project"]["version"]
    assert tops == {
        "edge_agent",
        "drivers",
        "detectors",
        f"edge_agent-{version}.data",
        f"edge_agent-{version}.dist-info",
    }
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert not [name for name in wheel if name.endswith(".pyc")]


def test_the_version_stands_in_one_place() -> None:
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("edge-agent") == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for path in (ROOT / "edge_agent").rglob("*.py"):
        assert f'"{version}"' not in path.read_text(), path


def test_every_plug_in_is_found_by_its_entry_point() -> None:
    for group in ("edge_agent.drivers", "edge_agent.detectors", "edge_agent.scanners"):
        stated = PROJECT["project"]["entry-points"][group]
        found = {each.name: each for each in importlib.metadata.entry_points(group=group)}
        assert found.keys() >= stated.keys()
        for name in stated:
            assert found[name].load() is not None


# ------------------------------------------------------------------------------------------------------------ unit


def test_the_units_exposure_is_at_most_1_5() -> None:
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", "systemd/edge-agent.service"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-400:] + judged.stderr


def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    text = (ROOT / "systemd/edge-agent.service").read_text()
    (tmp_path / "edge-agent.service").write_text(text.replace("/opt/edge-agent/bin/edge-agent", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "edge-agent.service")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    ours = [line for line in verified.stderr.splitlines() if "edge-agent" in line]
    assert (verified.returncode, ours) == (0, [])


def test_the_unit_says_what_the_agent_relies_on() -> None:
    lines = set((ROOT / "systemd/edge-agent.service").read_text().splitlines())
    assert lines >= {
        "Type=notify",
        "NotifyAccess=main",
        "WatchdogSec=30s",
        "Restart=always",
        "User=edge-agent",
        "StateDirectory=edge-agent",
        "ReadWritePaths=/etc/edge-agent",
        "MemoryDenyWriteExecute=yes",
        "MemoryMax=512M",
        "LoadCredential=mqtt_password",
    }


# ----------------------------------------------------------------------------------------------------------- words


def test_every_make_command_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets >= {"help", "demo", "test", "check", "lock", "clean", "install", "uninstall"}
    for name in ("README.md", "CONTRIBUTING.md", "docs/index.md", "DECISIONS.md", "SECURITY.md"):
        text = (ROOT / name).read_text()
        named = set(re.findall(r"(?:`|^|sudo )make ([a-z]+)", text, re.MULTILINE))
        assert named <= targets, (name, named - targets)


def test_every_edge_agent_command_in_the_readme_exists() -> None:
    blocks = re.findall(r"^```console$(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    named = {name for block in blocks for name in re.findall(r"edge-agent ([a-z]+) ", block)}
    assert named >= {"check", "read", "run"}
    assert named <= COMMANDS.keys()


def test_every_relative_link_of_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)


def test_ci_runs_exactly_make_test() -> None:
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_no_path_of_a_developers_machine_stands_in_the_tree() -> None:
    # Written in pieces, so that this file does not find itself.
    found = re.compile("|".join(("/" + "work/", "/home/" + "[a-z]+/", "/" + "root/[a-z.]", "find-links=" + "/")))
    allowed = {ROOT / "scripts/install.sh"}
    for path in tracked():
        if path in allowed or path.suffix in {".png", ".gz", ".woff2", ".ico", ".parquet"}:
            continue
        hit = found.search(path.read_text(errors="replace"))
        assert hit is None, f"{path.relative_to(ROOT)}: {hit[0]}"


# ---------------------------------------------------------------------------------------------------- command line


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    heavy = {"asyncio", "drivers", "importlib.metadata", "json", "numpy", "pydantic", "rich", "starlette", "structlog"}
    code = (
        "import sys\nfrom edge_agent.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert not end.code\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *shown, imported = ran.stdout.splitlines()
    assert imported == "[]"
    listed = {line.split()[0] for line in shown if re.match(r" {4}[a-z]", line)}
    assert listed >= COMMANDS.keys()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself_without_loading_its_room(command: str) -> None:
    code = (
        f"import sys\nfrom edge_agent.__main__ import main\ntry: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'numpy', 'pydantic', 'asyncua', 'starlette'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: edge-agent {command}")


@pytest.mark.parametrize("command", LATER)
def test_a_planned_command_says_that_it_is_not_available_yet(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--whatever"]) == 2
    assert f"{command} is not available yet" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["explode"], ["--explode"], ["run", "--explode"], ["status", "a", "b"]])
def test_wrong_use_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: edge-agent" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"edge-agent {PROJECT['project']['version']}\n"


def test_a_reader_that_had_enough_is_no_error() -> None:
    ran = subprocess.run(
        f"{sys.executable} -m edge_agent schema | head -c 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
