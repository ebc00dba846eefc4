"""A package of somebody else: built and installed into a folder of its own, without the network, and seen by the agent only
through its entry point.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def install(example: Path, place: Path) -> Path:
    """Build and install it below `place`; the folder in which it is then."""
    source = shutil.copytree(example, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    build = [*pip, "--no-build-isolation", "--no-deps", "--target", str(place / "site"), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    return place / "site"


def path_with(site: Path) -> str:
    """PYTHONPATH of processes that find it there."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join((str(site), str(ROOT), *([before] if before else [])))


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`edge-agent WORDS` in this folder."""
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *words],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def own_tests(file: Path, folder: Path) -> str:
    """What its own tests print, run away from its source, so that what is installed is tested. Raises AssertionError."""
    shutil.copy(file, folder)
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-rA", "--rootdir", ".", "-p", "no:cacheprovider", "-W", "error"]
    ran = subprocess.run(pytest_, cwd=folder, check=False, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout[-5000:]
    return ran.stdout


def agents_modules(file: Path) -> set[str]:
    """The modules of the agent, its drivers and its detectors that it imports."""
    tree = ast.parse(file.read_text())
    used = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    used |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    return {name for name in used if name.split(".")[0] in {"edge_agent", "drivers", "detectors"}}
