"""A day of the whole agent on the virtual clock, and `edge-agent replay` of the store that it leaves.

What replay says is what the daemon told: every event, equal but for epoch, seq and id, whatever happened on that day.
HOURS=24 for a whole day (`make soak`); the suite plays some of them.
"""

import json
import os
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge_agent.__main__ import main
from tests import storm, verdict
from tests.simulator import HOUR, SECOND, World, acts

HOURS = float(os.environ.get("HOURS") or 0.75)
SEED = int(os.environ.get("SEED") or 1)
SITE = "edge_agent_sim-0.dist-info"

pytestmark = pytest.mark.timeout(300 + round(200 * HOURS))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver `sim` comes through its entry point, as anyone's."""
    about = tmp_path / "site" / SITE
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-agent-sim\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[edge_agent.drivers]\nsim = tests.simulator:DRIVER\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])


def plain(events: list[dict[str, Any]]) -> list[str]:
    """Equal but for epoch, seq, id and how it came; in the order of the text, since machines are judged side by side."""
    return sorted(
        json.dumps({k: v for k, v in e.items() if k not in ("epoch", "seq", "id", "topic", "late")}, sort_keys=True)
        for e in events
    )


@pytest.mark.usefixtures("driver")
def test_replay_of_its_own_store_is_what_the_daemon_told(tmp_path: Path) -> None:
    here = World(SEED, tmp_path / "world", storm.PLANT)
    dice = random.Random(SEED)
    found = []
    kinds = [fault for fault in storm.faults(here, dice) if fault.longest_s and "disk fails" not in fault.what]
    for _ in range(round(12 * HOURS)):
        fault, begin = dice.choice(kinds), dice.uniform(10, HOURS * 3600 - 600)
        found.append((begin, fault.what, fault.begin))
        found.append((begin + dice.uniform(5, fault.longest_s), f"{fault.what}: over", fault.end))
    found += [(HOURS * 3600 * part, how, partial(str, how)) for part, how in ((0.3, "stop"), (0.6, "cut"))]
    found += [(HOURS * 3600 - 500, "over", fault.end) for fault in kinds]
    here.acts = acts(*found)
    here.play(here.began_us + round(HOURS * HOUR) + SECOND // 2)
    received = verdict.Received(here.heard)
    told = list(received.of("warnings"))
    assert {("raised", "high"), ("cleared", "low"), ("cleared", "high")} <= {(e["event"], e["kind"]) for e in told}
    out = tmp_path / "out.jsonl"
    config = here.home / "agent.yaml"
    assert main(["replay", str(config), str(here.home / "data"), "--out", str(out), "--json"]) == 0
    again = [json.loads(line) for line in out.read_text().splitlines()]
    print(f"seed {SEED}: {HOURS:g} h, {len(told)} events, {len(here.lives)} lives")
    assert plain(again) == plain(told)
