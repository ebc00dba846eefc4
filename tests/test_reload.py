"""A changed configuration in a running agent: by command, by signal, by the file alone; and one that is broken."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests import brokers
from tests.brokers import Consumer
from tests.conftest import eventually, free_port
from tests.hall import Hall, Json, command, picky, played, press
from tests.system import ROOT_TOPIC

pytestmark = pytest.mark.timeout(120)


def two_signals(high: float = 60) -> Json:
    machine = press()
    machine["signals"]["oil"]["norm"]["warning"]["high"] = high
    machine["signals"]["level"] = {"address": "holding:11", "unit": "%", "norm": {"warning": {"low": 20}}}
    return machine


def bad_after_the_first(beats: list[Json]) -> list[Json]:
    """Beats with a bad reading; the first ones may fall before the line is open."""
    first = next(i for i, body in enumerate(beats) if body["values"])
    return [body for body in beats[first:] if "bad" in body]


def cleared(here: Hall, topic: str) -> bool:
    """The retained message of this topic is gone."""
    return here.consumer.last(f"{ROOT_TOPIC}/{topic}") == b""


async def by_command(here: Hall) -> None:
    code, out, words = await command("reload", str(here.agent.config), "--json")
    assert (code, words) == (0, "")
    answer = json.loads(out)
    assert answer["ok"]
    # On a busy machine the look at the file, every two seconds, may have been first: then it is in force already.
    told = [json.loads(line) for line in here.agent.log.read_text().splitlines() if '"config_taken_over"' in line]
    assert [(each["config"], each["changed"]) for each in told] == [(answer["config"], 1)]
    assert any("press.oil" in each for each in answer["changed"]) or '"config_unchanged"' in here.agent.log.read_text()


async def by_signal(here: Hall) -> None:
    here.agent.hang_up()


async def by_the_file_alone(_here: Hall) -> None:
    pass


@pytest.mark.parametrize("way", [by_command, by_signal, by_the_file_alone])
def test_a_changed_limit_takes_effect_and_nothing_else_moves(
    way: Callable[[Hall], Awaitable[None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    @played
    async def scene(here: Hall) -> None:
        async with picky({10: 500, 11: 10}) as device:
            here.write(here.plain({"plc": device.port}, {"press": two_signals()}))
            await here.start()
            level = await here.event("press", "raised", signal="level")
            config = (await here.ask("status"))["config"]
            here.write(here.plain({"plc": device.port}, {"press": two_signals(high=40)}))
            await way(here)
            oil = await here.event("press", "raised", signal="oil")
            assert (oil["limit"], oil["norm"]["warning"]["high"]) == (40, 40)
            norms = await here.hears("press/norms", lambda body: body["signals"]["oil"]["warning"]["high"] == 40)
            status = await here.hears("status", lambda body: body["config"] != config)
            assert norms["config"] == status["config"]
            assert device.connections == 1, "an unchanged connection is not dropped"
            here.write(here.plain({"plc": device.port}, {"press": two_signals(high=60)}))
            assert (await here.ask("reload"))["ok"]
            assert (await here.event("press", "cleared", signal="oil"))["id"] == oil["id"]
            assert [each["id"] for each in here.active("press")] == [level["id"]], "the other warning stands untouched"
            assert [each["event"] for each in here.ear.events("press") if each["signal"] == "level"] == ["raised"]
            assert not bad_after_the_first(here.ear.all("press/measurements"))

    scene(tmp_path_factory.mktemp("reload"))


@played
async def test_machines_come_and_go(here: Hall) -> None:
    async with picky({10: 654, 11: 30}) as device, picky({10: 654}) as other:
        one, both = {"plc": device.port}, {"plc": device.port, "plc-2": other.port}
        here.write(here.plain(one, {"press": press()}))
        await here.start()
        raised = await here.event("press", "raised")
        here.write(here.plain(both, {"press": press(), "lathe": press("plc-2")}))
        assert set((await here.ask("reload"))["changed"]) == {"connection plc-2: added", "machine lathe: added"}
        await here.event("lathe", "raised")
        assert (await here.http("/api/v1/machines/lathe"))[0] == 200
        assert device.connections == 1
        here.write(here.plain(one, {"press": press()}))
        assert (await here.ask("reload"))["ok"]
        for topic in ("active", "norms"):
            await eventually(lambda topic=topic: cleared(here, f"lathe/{topic}"))  # type: ignore[misc]
        over = await here.event("lathe", "cleared")
        assert over["state"] == "normal"
        assert (await here.http("/api/v1/machines/lathe"))[0] == 404
        assert [each["id"] for each in (await here.ask("status"))["warnings"]] == [raised["id"]]
        await here.hears("status", lambda body: body["signals"] == 2)
        assert device.connections == 1
        # And the same while no agent runs.
        here.write(here.plain(both, {"press": press(), "lathe": press("plc-2")}))
        assert (await here.ask("reload"))["ok"]
        await eventually(lambda: not cleared(here, "lathe/norms") and not cleared(here, "lathe/active"))
        assert await here.agent.stop() == 0
        here.write(here.plain(one, {"press": press()}))
        await here.start()
        for topic in ("active", "norms"):
            await eventually(lambda topic=topic: cleared(here, f"lathe/{topic}"))  # type: ignore[misc]
        assert await here.agent.stop() == 0
        await here.whole()


@played
async def test_a_broken_file_is_refused_with_its_place_and_what_runs_stays(here: Hall) -> None:
    async with picky({10: 654}) as device:
        good = here.write(here.plain({"plc": device.port}, {"press": press()}))
        await here.start()
        raised = await here.event("press", "raised")
        config = (await here.ask("status"))["config"]
        broken = here.write(good.replace('"deadband"', '"deadbnd"'))
        line = next(number for number, text in enumerate(broken.splitlines(), 1) if "deadbnd" in text)
        column = broken.splitlines()[line - 1].index('"deadbnd"') + 1
        place = f"{here.agent.config}:{line}:{column}: machines.press.signals.oil.norm.deadbnd"

        code, out, words = await command("reload", str(here.agent.config))
        assert (code, out) == (2, "")
        assert words.startswith(place), words
        code, out, _ = await command("reload", str(here.agent.config), "--json")
        (error,) = json.loads(out)["errors"]
        assert (code, error["line"], error["column"]) == (2, line, column)
        assert error["path"] == "machines.press.signals.oil.norm.deadbnd"

        refused = await here.hears("status", lambda body: body.get("refused"))
        assert (refused["state"], refused["config"]) == ("online", config)
        assert refused["refused"][0].startswith(place)
        code, out, _ = await command("status", str(here.agent.config), "--json")
        said = json.loads(out)
        assert (code, said["config"]) == (0, config)
        assert said["errors"][0].startswith(place)
        assert (await here.http("/api/v1/status"))[1]["config_errors"][0].startswith(place)
        assert [each["id"] for each in said["warnings"]] == [raised["id"]]
        heard = len(here.ear.all("press/measurements"))
        await here.hears("press/measurements", lambda body: body["values"], after=heard)
        assert device.connections == 1

        # A start with the broken file runs what was good last, and says so.
        assert await here.agent.stop() == 0
        await here.start()
        said = await here.ask("status")
        assert said["config"] == config
        assert said["errors"][0].startswith(place)
        assert [each["id"] for each in said["warnings"]] == [raised["id"]]
        device.registers[10] = 500
        assert (await here.event("press", "cleared"))["id"] == raised["id"]
        assert place in here.agent.log.read_text()

        # And mended: by the file alone.
        here.write(good)
        await here.status(lambda body: not body["errors"])
        await eventually(lambda: "refused" not in (here.ear.last("status") or {"refused": ""}))
        assert (await here.http("/api/v1/status"))[1]["config_errors"] == []


@played
async def test_without_a_good_one_a_broken_file_ends_with_two_and_leaves_nothing(here: Hall) -> None:
    text = here.write(here.plain({"plc": 1502}, {"press": press()}))
    for harm in (text.replace('"every": "200ms"', '"every": "200 parsec"'), text[: len(text) // 2], "a: [\n", ""):
        here.write(harm)
        code, out, words = await command("run", str(here.agent.config))
        assert (code, out) == (2, "")
        assert words.startswith(f"{here.agent.config}:"), words
        assert "Traceback" not in words
        assert not here.data_dir.exists(), "nothing is begun"
    code, _, words = await command("run", str(here.agent.config.with_name("none.yaml")))
    assert code == 2
    assert "none.yaml" in words


@played
async def test_an_added_signal_keeps_the_warning_of_the_others(here: Hall) -> None:
    async with picky({10: 654, 11: 30}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        await here.start()
        raised = await here.event("press", "raised")
        machine = press()
        machine["signals"] = {"first": {"address": "holding:11"}, **machine["signals"]}
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        assert (await here.ask("reload"))["changed"] == ["press: signal first: added"]
        await here.hears("press/measurements", lambda body: body["values"] == {"first": 30, "oil": 65.4})
        assert [each["id"] for each in (await here.ask("status"))["warnings"]] == [raised["id"]]
        device.registers[10] = 500
        assert (await here.event("press", "cleared"))["id"] == raised["id"]
        assert len(here.ear.events("press")) == 2


@played
async def test_signals_come_and_go_without_dropping_the_connection_or_a_beat(here: Hall) -> None:
    async with picky({10: 500, 11: 30}) as device:
        for turn in range(6):
            machine = two_signals() if turn % 2 else press()
            here.write(here.plain({"plc": device.port}, {"press": machine}))
            await (here.ask("reload") if turn else here.start())
            names = {"oil", "level"} if turn % 2 else {"oil"}
            await here.hears("press/measurements", lambda body, names=names: body["values"].keys() == names)  # type: ignore[misc]
        assert device.connections == 1
        assert not bad_after_the_first(here.ear.all("press/measurements"))
        assert not here.ear.all("gaps")


@played
async def test_another_id_moves_the_topics_and_leaves_nothing_behind(here: Hall) -> None:
    async with picky({10: 654}) as device:
        config = here.plain({"plc": device.port}, {"press": press()})
        here.write(config)
        await here.start()
        await here.event("press", "raised")
        config["agent"]["id"] = "agent-2"
        async with Consumer(here.broker.port, "edge/hall/agent-2/#") as moved:
            here.write(config)
            assert (await here.ask("reload"))["changed"] == ["agent.id: changed", "mqtt.root: changed"]
            await eventually(lambda: moved.last("edge/hall/agent-2/press/active"))
            for topic in ("status", "health", "press/active", "press/norms"):
                await eventually(lambda topic=topic: cleared(here, topic))  # type: ignore[misc]
            await eventually(lambda: b'"online"' in (moved.last("edge/hall/agent-2/status") or b""))
            # And back, while no agent runs.
            assert await here.agent.stop() == 0
            config["agent"]["id"] = "agent-1"
            here.write(config)
            heard = len(here.ear.all("status"))
            await here.start()
            await here.hears("status", lambda body: body["state"] == "online", after=heard)
            await eventually(lambda: moved.last("edge/hall/agent-2/status") == b"")


@played
async def test_the_data_directory_cannot_move_under_a_running_agent(here: Hall) -> None:
    async with picky({10: 500}) as device:
        config = here.plain({"plc": device.port}, {"press": press()})
        here.write(config)
        await here.start()
        config["agent"]["data_dir"] = "./elsewhere"
        here.write(config)
        code, _, words = await command("reload", "--data-dir", str(here.data_dir))
        assert (code, "agent.data_dir: cannot change while the agent runs" in words) == (2, True)
        assert (await here.ask("status"))["data_dir"] == str(here.data_dir)
        code, _, words = await command("status", str(here.agent.config))
        assert (code, "name the old one with --data-dir" in words) == (3, True)


@played
async def test_the_watcher_sees_a_new_included_file_and_one_that_was_broken_at_the_start(here: Hall) -> None:
    async with picky({10: 654, 11: 30}) as device:
        folder = here.agent.config.parent / "machines"
        folder.mkdir()
        config = here.plain({"plc": device.port}, {"press": press()}) | {"include": ["machines/*.yaml"]}
        here.write(config)
        await here.start()
        await here.hears("press/measurements", lambda body: body["values"])
        (folder / ".#lathe.yaml").symlink_to("nobody@nowhere")  # an editor's lock
        lathe = folder / "lathe.yaml"
        lathe.write_text(json.dumps({"machines": {"lathe": press()}}))
        await here.hears("lathe/measurements", lambda body: body["values"], within_s=20)
        assert await here.agent.stop() == 0
        good = lathe.read_text()
        lathe.write_text(good.replace("deadband", "deadbnd"))
        await here.start()
        assert (await here.ask("status"))["errors"]
        lathe.write_text(good)
        await here.status(lambda body: not body["errors"], 20)


@played
async def test_a_secret_that_is_missing_is_told_at_its_place(here: Hall) -> None:
    async with picky({10: 500}) as device:
        config = here.plain({"plc": device.port}, {"press": press()})
        here.write(config)
        await here.start()
        config["mqtt"] |= {"username": "hall", "password": {"secret": "mqtt_password"}}
        text = here.write(config)
        number, line = next(each for each in enumerate(text.splitlines(), 1) if "mqtt_password" in each[1])
        place = f"{here.agent.config}:{number}:{line.index('mqtt_password')}: mqtt.password: no secret 'mqtt_password'"
        code, _, words = await command("reload", str(here.agent.config))
        assert (code, words.splitlines()[0].startswith(place)) == (2, True), words
        assert await here.agent.stop() == 0
        code, out, words = await command("run", str(here.agent.config))
        assert (code, out, words.startswith(place)) == (2, "", True), words
        assert "Traceback" not in words
        code, out, _ = await command("check", str(here.agent.config))
        assert (code, f"note: {place}" in out) == (0, True)
        secret = here.data_dir / "secrets" / "mqtt_password"
        secret.parent.mkdir()
        secret.write_text("x")
        secret.chmod(0o644)
        code, _, words = await command("run", str(here.agent.config))
        assert (code, "set its mode to 0600" in words, "Traceback" in words) == (2, True, False)


@played
async def test_a_secret_that_was_changed_is_taken_over_by_a_reload(here: Hall) -> None:
    users = {"users": brokers.password_file({"hall": "old"})}
    lines = ("allow_anonymous false", "password_file {folder}/users")
    async with picky({10: 500}) as device, brokers.mosquitto(*lines, files=users) as guarded:
        config = here.plain({"plc": device.port}, {"press": press()})
        config["mqtt"] = {"url": guarded.url, "username": "hall", "password": {"secret": "word"}}
        secret = here.data_dir / "secrets" / "word"
        secret.parent.mkdir(parents=True)
        secret.write_text("old")
        secret.chmod(0o600)
        here.write(config)
        await here.start()
        await here.status(lambda body: body["mqtt"]["state"] == "connected")
        (guarded.folder / "users").write_text(brokers.password_file({"hall": "new"}))
        guarded.kill()
        await guarded.start()
        await here.status(lambda body: body["mqtt"]["reason"].startswith("refused: Not authorized"), 30)
        secret.write_text("new")
        assert (await here.ask("reload"))["changed"] == ["secrets: changed"]
        await here.status(lambda body: body["mqtt"]["state"] == "connected")
        assert (await here.ask("reload"))["changed"] == []
        assert device.connections == 1


@played
async def test_topics_of_a_machine_that_went_while_the_broker_was_away_are_cleared_in_the_end(here: Hall) -> None:
    async with picky({10: 654}) as device:
        line = {"plc": device.port}
        here.write(here.plain(line, {"press": press(), "lathe": press()}))
        await here.start()
        await here.event("lathe", "raised")
        await eventually(lambda: here.active("lathe"))
        here.broker.kill()
        await here.status(lambda body: body["mqtt"]["state"] != "connected")
        here.write(here.plain(line, {"press": press()}))
        assert (await here.ask("reload"))["ok"]
        assert await here.agent.stop() == 0
        await here.consumer.back(here.broker)
        await here.start()
        for topic in ("active", "norms"):
            await eventually(lambda topic=topic: cleared(here, f"lathe/{topic}"))  # type: ignore[misc]


@played
async def test_the_broker_inside_the_agent_comes_and_goes_with_a_reload(here: Hall) -> None:
    async with picky({10: 500}) as device:
        config = here.plain({"plc": device.port}, {"press": press()})
        here.write(config)
        await here.start()
        await here.hears("press/measurements", lambda body: body["values"])
        port = free_port()
        config["mqtt"] = {"url": f"embedded:{port}"}
        here.write(config)
        assert (await here.ask("reload"))["changed"] == ["mqtt.url: changed"]
        own = f"mqtt://127.0.0.1:{port}"
        await here.status(lambda body: (body["mqtt"]["state"], body["mqtt"]["url"]) == ("connected", own), 30)
        async with Consumer(port, f"{ROOT_TOPIC}/press/measurements", MQTTProtocolVersion.MQTTv311) as listener:
            await eventually(lambda: listener.heard)
        config["mqtt"] = {"url": here.broker.url}
        here.write(config)
        heard = len(here.ear.all("press/measurements"))
        assert (await here.ask("reload"))["ok"]
        await here.hears("press/measurements", lambda body: body["values"], after=heard)
        assert {"state": "stopped"} not in here.ear.all("status"), "the agent ran all the time"


@pytest.mark.parametrize("wait_s", [0.0, 0.1, 0.3, 0.6])
def test_a_stop_in_the_middle_of_a_reload_ends_the_agent(
    wait_s: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @played
    async def scene(here: Hall) -> None:
        async with picky({10: 500}) as device, picky({10: 500}) as other:
            many = {f"m{i}": press() for i in range(300)}
            here.write(here.plain({"plc": device.port}, many))
            await here.start()
            here.write(here.plain({"plc": device.port, "plc-2": other.port}, many | {"new": press("plc-2")}))
            asked = asyncio.create_task(here.ask("reload"))
            await asyncio.sleep(wait_s)  # the instant that is asked for
            assert await here.agent.stop() == 0
            with suppress(OSError):
                await asked
            assert "Traceback" not in here.agent.log.read_text()

    scene(tmp_path_factory.mktemp("stop"))
