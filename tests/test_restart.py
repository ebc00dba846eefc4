"""Kills, stops, damaged files: what a consumer of the running agent sees of them."""

import json
import shutil

import pytest

from edge_agent.contract import Quality
from edge_agent.records import JudgedFrame
from edge_agent.store.journal import open_store
from tests.conftest import StandingClock
from tests.hall import Hall, command, picky, played, press

pytestmark = pytest.mark.timeout(120)


@played
async def test_after_a_kill_a_standing_warning_stands_on_and_the_gap_is_told(here: Hall) -> None:
    async with picky({10: 500}) as device:
        machine = press()
        machine["signals"]["slow"] = {
            "address": "holding:11", "type": "int16", "norm": {"warning": {"high": 5}, "on_delay": "3s"},
        }  # fmt: skip
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        await here.start()
        device.registers[10] = 654
        raised = await here.event("press", "raised")
        device.registers[11] = 9  # outside, but not for its on-delay yet
        await here.hears("press/measurements", lambda body: body["values"].get("slow") == 9)
        await here.agent.kill()
        await here.hears("status", lambda body: body == {"state": "offline"})
        await here.start()
        assert (await here.ask("status"))["warnings"] == [raised], "its last event, with its number"
        gap = await here.hears("gaps", lambda body: body["cause"] == "restart")
        assert (gap["from_seq"], gap["to_seq"]) == (None, None)
        assert gap["epoch"] == raised["epoch"]
        assert gap["count"] >= 1
        assert gap["from"] < gap["to"]
        pending = await here.event("press", "raised", signal="slow")
        assert pending["since"] > raised["since"]
        device.registers[10] = 500
        cleared = await here.event("press", "cleared", signal="oil")
        assert (cleared["id"], cleared["since"]) == (raised["id"], raised["since"])
        again = {
            each["seq"] for each in here.ear.events("press") if each["event"] == "raised" and each["signal"] == "oil"
        }
        assert again == {raised["seq"]}, "it is not raised a second time"
        assert await here.agent.stop() == 0
        await here.whole()


@played
async def test_a_line_that_is_lost_through_a_kill_is_one_warning(here: Hall) -> None:
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press(stale="2s")}))
        await here.start()
        await here.hears("press/measurements", lambda body: body["values"])
        await device.stop()
        raised = await here.event("agent", "raised")
        await here.agent.kill()
        await here.start()
        (standing,) = (await here.ask("status"))["warnings"]
        assert standing == raised
        gone = len(here.ear.all("press/measurements"))
        await here.hears("press/measurements", lambda body: body["bad"] == {"oil": "disconnected"}, after=gone + 20)
        assert [each["id"] for each in here.active("agent")] == [raised["id"]]
        await device.start()
        assert (await here.event("agent", "cleared", within_s=90))["id"] == raised["id"]
        assert await here.agent.stop() == 0
        await here.whole()
        assert {each["seq"]: each["event"] for each in here.ear.events("agent")} == {
            raised["seq"]: "raised", here.ear.events("agent")[-1]["seq"]: "cleared",
        }  # fmt: skip
        assert here.ear.events("press") == []


@played
async def test_after_a_clean_stop_too(here: Hall) -> None:
    async with picky({10: 654}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press(acknowledge="required")}))
        await here.start()
        raised = await here.event("press", "raised")
        path = f"/api/v1/warnings/{raised['id']}/acknowledge"
        assert (await here.http(path, {"by": "Ann", "comment": ""}))[0] == 200
        await here.event("press", "acknowledged")
        assert await here.agent.stop(5.0) == 0
        await here.hears("status", lambda body: body == {"state": "stopped"})
        assert not here.ear.all("gaps")
        await here.start()
        (standing,) = (await here.ask("status"))["warnings"]
        assert standing == here.ear.events("press")[-1]
        assert (standing["id"], standing["state"]) == (raised["id"], "acknowledged")
        assert (await here.hears("gaps"))["cause"] == "restart"
        device.registers[10] = 500
        assert (await here.event("press", "cleared"))["id"] == raised["id"]
        assert [each["event"] for each in here.ear.events("press")] == ["raised", "acknowledged", "cleared"]
        assert await here.agent.stop() == 0
        await here.whole()


@played
async def test_six_kills_lose_no_number(here: Hall) -> None:
    """Killed at any moment: whatever has a number comes, in one epoch, and what comes twice is the same."""
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        for turn in range(6):
            device.registers[10] = 654 if turn % 2 else 500
            heard = len(here.ear.all("press/measurements"))
            await here.start()
            await here.hears("press/measurements", after=heard + turn)
            await here.agent.kill()
        await here.start()
        await here.hears(
            "press/measurements", lambda body: body["values"], after=len(here.ear.all("press/measurements"))
        )
        assert await here.agent.stop() == 0
        assert len({epoch for epoch, _ in here.numbered()}) == 1
        await here.whole()
        lives: dict[str, list[str]] = {}
        told = {each["seq"]: each for each in here.ear.events("press")}
        for _, each in sorted(told.items()):
            lives.setdefault(each["id"], []).append(each["event"])
        assert all(life in (["raised"], ["raised", "cleared"]) for life in lives.values()), lives


@played
async def test_who_is_killed_again_and_again_has_no_more_to_judge_again_each_time(here: Hall) -> None:
    """No life lasts the minute after which a snapshot is due; else each start would take longer than the one before."""
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        for _ in range(4):
            heard = len(here.ear.all("press/measurements"))
            await here.start()
            await here.hears("press/measurements", lambda body: body["values"], after=heard)
            await here.agent.kill()
        copy = shutil.copytree(here.data_dir, here.data_dir.with_name("copy"), ignore=shutil.ignore_patterns("*.sock"))
        with open_store(copy, StandingClock()) as store:
            lives = sum(
                item.frame.machine == "press" and bool((item.frame.quality == Quality.RESTART).all())
                for item in store.recovery().items
                if isinstance(item, JudgedFrame)
            )
        assert lives == 1, "the last one only"


@pytest.mark.parametrize("harm", ["garbage", "cut", "gone", "all gone"])
def test_no_damage_keeps_the_agent_from_starting_or_gives_a_number_twice(
    harm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @played
    async def scene(here: Hall) -> None:
        async with picky({10: 500}) as device:
            here.write(here.plain({"plc": device.port}, {"press": press()}))
            await here.start()
            first = await here.hears("press/measurements", lambda body: body["values"])
            assert await here.agent.stop() == 0
            await here.hears("status", lambda body: body == {"state": "stopped"})
            await here.whole(first["epoch"])
            last = max(seq for _, seq in here.numbered())
            journal = here.data_dir / "journal.db"
            before = journal.read_bytes()
            if harm == "garbage":
                journal.write_bytes(b"\xa5" * len(before))
            elif harm == "cut":
                journal.write_bytes(before[:1000])
            else:
                journal.unlink()
                if harm == "all gone":
                    (here.data_dir / "journal.marker").unlink()
            heard = len(here.ear.all("press/measurements"))
            await here.start()
            fresh = await here.hears("press/measurements", lambda body: body["values"], after=heard)
            # The marker beside the file tells where its numbers ended; without it the numbers begin anew.
            if harm == "all gone":
                assert fresh["epoch"] != first["epoch"]
            else:
                assert fresh["epoch"] != first["epoch"] or fresh["seq"] > last
            if harm in ("garbage", "cut"):
                gap = await here.hears("gaps", lambda body: body["cause"] == "damage")
                assert gap["epoch"] == fresh["epoch"]
                assert list(here.data_dir.glob("journal.db.damaged-*"))
            assert await here.agent.stop() == 0
            numbered = here.numbered()
            assert all(len(repeats) == 1 for repeats in numbered.values()), "no number has two meanings"

    scene(tmp_path_factory.mktemp("damage"))


@played
async def test_a_second_agent_on_the_same_data_is_refused_and_disturbs_nothing(here: Hall) -> None:
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        await here.start()
        await here.hears("press/measurements", lambda body: body["values"])
        code, out, words = await command("run", str(here.agent.config))
        assert (code, out) == (2, "")
        assert "another agent" in words
        assert str(here.data_dir) in words
        assert "Traceback" not in words
        heard = len(here.ear.all("press/measurements"))
        await here.hears("press/measurements", lambda body: body["values"], after=heard)
        assert device.connections == 1
        assert (await here.ask("status"))["pid"] == here.pid


@played
async def test_what_waits_for_a_broker_survives_a_kill(here: Hall) -> None:
    async with picky({10: 654}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        here.broker.kill()
        await here.start()
        waiting = await here.status(lambda body: body["warnings"] and body["buffer"]["messages"] > 5)
        assert waiting["mqtt"]["state"] != "connected"
        await here.agent.kill()
        await here.start()
        again = await here.ask("status")
        assert [each["id"] for each in again["warnings"]] == [each["id"] for each in waiting["warnings"]]
        await here.consumer.back(here.broker)
        raised = await here.event("press", "raised", within_s=30)
        assert raised["id"] == waiting["warnings"][0]["id"]
        await here.status(lambda body: body["buffer"]["messages"] < 5, 30)
        assert await here.agent.stop() == 0
        assert json.loads(min(here.numbered().items())[1][0])["seq"] <= 2
