"""The whole agent on the virtual clock: an hour in seconds, the same seed the same run, faults of all kinds at random."""

import asyncio
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench import soak
from edge_agent.pipeline import Pipeline
from edge_agent.store import past
from edge_agent.store.rows import Kept
from tests import storm, verdict, virtual
from tests.conftest import ROOT
from tests.simulator import HOUR, ROOT_TOPIC, SECOND, WALL_US, Signal, World, acts, scratch
from tests.virtual import START_US

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


def test_a_reload_leaves_nothing_of_the_old_configuration_in_memory() -> None:
    """What is frozen is never looked through: without a collection before, each reload leaves thousands of objects."""
    counts: list[int] = []
    with world(seed=3) as here:
        band = {"warning": {"low": 1, "high": 900}, "deadband": 0.5, "on_delay": "10s"}
        for number in range(200):
            of = here.config["machines"]["press"]["signals"]
            of[f"oil_{number}"] = {"formula": f"oil + {number}", "norm": band}
        here.write_config()

        def reload(number: int) -> Callable[[], None]:
            def change() -> None:
                counts.append(gc.get_freeze_count())
                here.config["machines"]["press"]["title"] = f"Press {number}"
                here.write_config()

            return change

        here.acts = acts(*((20.0 * number, "reload", reload(number)) for number in range(1, 9)))
        here.play(here.began_us + 180 * SECOND + SECOND // 2)
        assert here.logged["config_taken_over"] == 8
    assert counts[-1] - counts[2] < 2_000, counts


# --- random faults ---

SEEDS = int(os.environ.get("SEEDS") or 12)
FIRST = int(os.environ.get("SEED") or 1)
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


def test_who_was_killed_in_its_first_minute_goes_on_from_what_it_had_judged_by_the_norms_of_then() -> None:
    with tempfile.TemporaryDirectory(prefix="edge-agent-sim-", dir=scratch()) as folder:
        here = World(541, Path(folder), storm.PLANT)

        def limited() -> None:
            here.config["machines"]["pump"]["signals"]["pressure"]["norm"]["warning"]["high"] = 45
            here.write_config()

        # Raised at 2 s, cleared at 16 s; by the norm of the next run it would stand still. No snapshot has been written yet.
        here.acts = acts((18.8, "another norm", limited), (19, "cut", lambda: "cut"))
        here.play(here.began_us + 60 * SECOND + SECOND // 2)
        assert len(here.lives) == 2
        assert [c for c in verdict.complaints(here, still=["press", "fan"]) if "never raised" in c] == []


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


# --- a stepped wall clock ---

STEPS = int(os.environ.get("STEPS") or 40)
STEP_EVERY_S = 6.0


def steps(here: World, count: int, dice: random.Random) -> None:
    """Forth and back, by seconds and by weeks, to 1970 and right again."""

    def step() -> None:
        true = here.now_us + WALL_US - START_US
        match dice.choice(("by", "by", "right", "1970")):
            case "by":
                here.step_wall(dice.choice((-1, 1)) * round(10 ** dice.uniform(6, 12.4)))
            case "right":
                here.step_wall(true - here.wall_us)
            case _:
                here.step_wall(dice.randrange(10**12) - here.wall_us)

    its = [(5 + STEP_EVERY_S * (n + dice.random()), "step", step) for n in range(count)]
    right = (
        6 + STEP_EVERY_S * (count + 1),
        "right",
        lambda: here.step_wall(here.now_us + WALL_US - START_US - here.wall_us),
    )
    here.acts = acts(*its, right)


@pytest.mark.timeout(120 + 2 * STEPS)
def test_steps_of_the_wall_clock_miss_double_raise_and_clear_nothing() -> None:
    runs = []
    for count in (STEPS, 0):
        with tempfile.TemporaryDirectory(prefix="edge-agent-sim-", dir=scratch()) as folder:
            here = World(FIRST, Path(folder), storm.PLANT)
            steps(here, count, random.Random(FIRST))
            here.play(here.began_us + round((STEPS * STEP_EVERY_S + 60.5) * SECOND))
            assert verdict.complaints(here, still=sorted(here.devices)) == []
            received = verdict.Received(here.heard)
            told = {
                name: (
                    [plain["values"] for plain in received.of("measurements", name)],
                    [(e["signal"], e["kind"], e["event"], e["value"]) for e in received.of("warnings", name)],
                )
                for name in here.devices
            }
            with past.open_past(here.home / "data") as found:
                journal = [item.what.judged.frame for item in found.frames() if isinstance(item.what, Kept)]
            for name in here.devices:
                ts = [int(t) for frame in journal if frame.machine == name for t in frame.t]
                assert ts == sorted(ts), "the agent's own clock runs back"
            runs.append(told)
    assert runs[0] == runs[1]
    assert sum(len(events) for _, events in runs[0].values()) > STEPS / 3, "something to raise and to clear"
    print(f"seed {FIRST}: {STEPS} steps, {sum(len(rows) for rows, _ in runs[0].values())} rows")


# --- weeks ---


def test_hours_of_faults_reloads_and_a_restart_leave_nothing_behind() -> None:
    done = soak.soak(seed=FIRST, days=0.125, at_most_s=300)
    assert [words for words in done.complaints if "samples" not in words] == []
    assert done.tally.rows > 300


@pytest.mark.parametrize("name", ["rss_mb", "tasks", "threads", "files"])
def test_what_grows_is_found(name: str) -> None:
    steady = [soak.Sample(day / 4, 70 + day % 3 / 10, 20, 2, 17) for day in range(80)]
    assert soak.unsteady(steady) == []
    (found,) = soak.unsteady([replace(each, **{name: getattr(each, name) + int(each.day)}) for each in steady])
    assert name.removesuffix("_mb").replace("rss", "memory") in found
