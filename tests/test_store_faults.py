"""Every call to the disk fails once: the n-th open, write, sync, truncate and rename, for every n (T4 of the test plan)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FAULTS = int(os.environ.get("FAULTS") or 12)
"""Of each kind of call the first so many fail, one after the other (make soak: all of them)."""
MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module", name="shim")
def _shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "failing_disk.so"
    source = ROOT / "tests" / "peers" / "failing_disk.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(made), str(source), "-ldl"], check=True)
    return made


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Iterator[Path]:
    yield (folder := MEMORY / f"edge-agent-{os.getpid()}-{tmp_path.name}")
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def walked(shim: Path, folder: Path, most: int, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.failing_disk", str(shim), str(folder), str(most), *more],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print({"runs": found["runs"], "calls": found["calls"]})
    return found


@pytest.mark.timeout(3600)
def test_whichever_call_fails_nothing_is_lost_or_stuck_and_an_unsynced_file_is_left(shim: Path, folder: Path) -> None:
    found = walked(shim, folder, FAULTS)
    assert found["wrong"] == []
    assert set(found["calls"]) == {"open", "write", "sync", "truncate", "rename"}
    assert found["calls"]["sync"] > 10


@pytest.mark.timeout(600)
def test_a_store_that_trusts_a_file_after_a_failed_sync_is_found(shim: Path, folder: Path) -> None:
    """The negative control."""
    found = walked(shim, folder, 20, "trusting", "sync")
    assert any("is still the file that could not be synced" in each for each in found["wrong"])


def test_every_line_of_the_fault_table_names_a_test_that_there_is() -> None:
    table = (ROOT / "docs" / "store.md").read_text(encoding="utf-8").split("## Faults")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    named = [re.findall(r"`(test_\w+)`", line) for line in lines]
    assert len(lines) > 10
    assert all(named), "each line has its test"
    there = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert not [name for names in named for name in names if f"def {name}(" not in there]
