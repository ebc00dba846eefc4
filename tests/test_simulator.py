"""The whole agent on the virtual clock: an hour in seconds, the same seed the same run, faults of all kinds at random."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent.pipeline import Pipeline
from tests import storm, verdict, virtual
from tests.conftest import ROOT
from tests.simulator import HOUR, ROOT_TOPIC, SECOND, Signal, World, acts, scratch

pytestmark = pytest.mark.timeout(300)

PLANT = [
    ("press", (Signal("oil", 1, on_s=5, off_s=10), Signal("flow", 5, wave_s=600, high=None, low=40))),
    ("pump", (Signal("pressure", 2, wave_s=420),)),
]


@contextmanager
def world(seed: int, commit_every: str = "1s") -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="edge-agent-sim-", dir=scratch()) as folder:
        yield World(seed, Path(folder), PLANT, commit_every)


# --- the loop ---


def test_the_clock_stands_while_a_thread_works_and_its_end_is_heard_when_it_is_due() -> None:
    told: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual.VirtualLoop)
        loop.before_job = lambda _work, own: 3_000_000 if own else 0
        began = loop.time()

        def work() -> str:
            time.sleep(0.05)  # real time, in which an impatient clock would run on
            told.append((threading.current_thread().name.partition("_")[0], loop.time() - began))
            return "done"

        async def other() -> None:
            await asyncio.sleep(1)
            told.append(("other", loop.time() - began))

        with ThreadPoolExecutor(1, thread_name_prefix="commit") as pool:
            beside = asyncio.create_task(other())
            assert await loop.run_in_executor(pool, work) == "done"
            told.append(("heard", round(loop.time() - began, 6)))
            await beside
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(lambda: 1 / 0)

    virtual.run(main())
    assert told == [("commit", 0.0), ("other", 1.0), ("heard", 3.0)]


# --- an hour ---


def test_an_hour_of_the_whole_agent_runs_in_seconds_and_tells_all_that_was_due() -> None:
    with world(seed=1) as here:
        here.play(here.began_us + HOUR + SECOND // 2)
        assert verdict.complaints(here, still=["press", "pump"]) == []
        received = verdict.Received(here.heard)
        assert sum(1 for _ in received.of("measurements", "press")) == 3600
        assert sum(1 for _ in received.of("measurements", "pump")) == 1800
        assert received.repeated == received.late == 0
        assert not list(received.of("gaps"))
        kinds = {(e["machine"], e["signal"], e["kind"], e["event"]) for e in received.of("warnings")}
        assert kinds == {
            (*key, event)
            for key in (("press", "oil", "high"), ("press", "flow", "low"), ("pump", "pressure", "high"))
            for event in ("raised", "cleared")
        }
        assert here.broker.retained["edge/site/sim/status"] == b'{"state":"stopped"}'
        assert "worker_stuck" not in here.logged
        assert here.jobs > 3600, "a commit a second, by the real thread"


def digest(seed: int, hash_seed: int) -> str:
    code = f"from tests.test_simulator import told; print(told({seed}))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed)},
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def told(seed: int) -> str:
    """The digest of a short story with a cut, a restart and a broker that goes and comes."""
    with world(seed) as here:
        here.acts = acts(
            (40, "broker falls", here.broker.fall),
            (70, "broker is back", lambda: setattr(here.broker, "up", True)),
            (100, "cut", lambda: "cut"),
            (150, "stop", lambda: "stop"),
        )
        here.play(here.began_us + 200 * SECOND + SECOND // 2)
        assert verdict.complaints(here) == []
        return here.digest.hexdigest()


def test_the_same_seed_is_the_same_run_byte_for_byte_in_every_process() -> None:
    here = told(7)
    assert told(7) == here
    assert digest(7, hash_seed=1) == digest(7, hash_seed=2) == here
    assert told(8) != here


# --- random faults ---

SEEDS = int(os.environ.get("SEEDS", "24"))
FIRST = int(os.environ.get("SEED", "1"))
AT_ONCE = 4


@pytest.mark.timeout(120 + 30 * SEEDS)
@pytest.mark.parametrize("group", range(AT_ONCE))
def test_whatever_happens_all_that_was_due_arrives_and_nothing_is_untrue(group: int) -> None:
    for seed in range(FIRST + group, FIRST + SEEDS, AT_ONCE):
        outcome = storm.rage(seed)
        here = outcome.world
        still = sorted(set(here.devices) - outcome.storm.touched)
        print(f"seed {seed}: {len(here.heard)} messages, {len(here.lives)} lives; {', '.join(outcome.storm.whats)}")
        assert verdict.complaints(here, still=still) == [], f"seed {seed}"
        assert here.broker.retained[f"{ROOT_TOPIC}/status"] == b'{"state":"stopped"}'


# --- the simulator finds what is broken ---


def ignores_reason_codes(here: World, _patch: pytest.MonkeyPatch) -> None:
    here.broker.forgives = True
    here.acts = acts(
        (20, "refuses", lambda: setattr(here.broker, "refuses", ("press/measurements", 0x97))),
        (40, "takes again", here.broker.relent),
    )


def a_message_is_lost_on_the_way(here: World, _patch: pytest.MonkeyPatch) -> None:
    here.acts = acts((20, "swallows", lambda: setattr(here.broker, "swallows", 1)))


def the_disk_forgets_what_it_has_said_it_had(here: World, _patch: pytest.MonkeyPatch) -> None:
    here.acts = acts((20, "from now on", here.remember), (40, "cut", lambda: "cut"))


def a_value_is_told_that_the_device_did_not_hold(here: World, _patch: pytest.MonkeyPatch) -> None:
    here.acts = acts(
        (20, "lies", lambda: setattr(here.devices["pump"], "lie", "value")),
        (25, "is true", lambda: setattr(here.devices["pump"], "lie", "")),
    )


def one_clock_for_all(here: World, _patch: pytest.MonkeyPatch) -> None:
    here.clock.only_wall = True
    here.acts = acts((20, "step", lambda: here.step_wall(3_600 * SECOND)), (60, "step", lambda: here.step_wall(-HOUR)))


def missed_beats_are_not_told(here: World, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pipeline, "missed", lambda *_: None)
    here.acts = acts(
        (20, "late", lambda: setattr(here.devices["pump"], "late_s", 7.0)),
        (40, "in time", lambda: setattr(here.devices["pump"], "late_s", 0.0)),
    )


Break = Callable[[World, pytest.MonkeyPatch], None]
BROKEN: dict[Break, str] = {
    ignores_reason_codes: "numbers never came",
    a_message_is_lost_on_the_way: "numbers never came",
    the_disk_forgets_what_it_has_said_it_had: "came again as other bytes",
    a_value_is_told_that_the_device_did_not_hold: "never held",
    one_clock_for_all: "that were due",
    missed_beats_are_not_told: "that were due",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_agent_or_world_is_found(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(seed=3) as here:
        broken(here, monkeypatch)
        here.play(here.began_us + 100 * SECOND + SECOND // 2)
        found = verdict.complaints(here)
        assert any(BROKEN[broken] in each for each in found), found
