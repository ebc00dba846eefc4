"""The negative control of the kill tests: who tells before the commit loses, and the same check sees it."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.store.journal import open_store
from tests.conftest import ROOT, StandingClock
from tests.test_store import due_of

WRITER = """
import asyncio, os, signal, sys
from pathlib import Path
from edge_agent.clock import SystemClock
from edge_agent.store.journal import open_store
from tests.test_store import LAYOUT, frame

with open_store(Path(sys.argv[1]), SystemClock()) as store:
    store.use_layouts([LAYOUT])
    if sys.argv[2] == "after":
        store.on_committed.append(lambda told: print(*(each.seq for each in told), flush=True))
    for number in range(1, 6):
        store.put([frame(number)])
        if sys.argv[2] == "before":
            print(number, flush=True)
        if number == 5 and sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(store._commit())
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("when", "lost"), [("after", set()), ("before", {5})])
def test_who_tells_before_the_commit_loses_and_who_tells_after_it_does_not(
    tmp_path: Path, clock: StandingClock, when: str, lost: set[int]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), when], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    said = {int(word) for word in done.stdout.split()}
    assert said == {1, 2, 3, 4, 5}
    with open_store(tmp_path, clock) as store:
        assert said - {each.seq for each in due_of(store, 0, 100)} == lost
        assert asyncio.run(store._commit())
