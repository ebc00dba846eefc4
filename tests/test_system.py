"""The real agent as a process, a real broker, a real socket to a device: from the configuration to a warning and back."""

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests import brokers, system
from tests.brokers import Consumer, Mosquitto
from tests.conftest import free_port
from tests.system import ROOT_TOPIC, Agent, Device, Ear

pytestmark = pytest.mark.timeout(120)

CONFIG = """\
agent: {{id: agent-1, site: hall, data_dir: data}}
mqtt: {{url: "{broker}", root: "edge/{{site}}/{{agent}}"}}
store: {{commit_every: 100ms}}
web: {web}
connections:
  plc: {{driver: modbus, url: "tcp://127.0.0.1:{port}", timeout: 300ms}}
machines:
  m:
    title: Press
    connection: plc
    every: 200ms
    signals:
      oil:
        title: Oil temperature
        address: "holding:10"
        unit: °C
        scale: 0.1
        norm: {{warning: {{high: {high}}}, alarm: {{high: 70}}, deadband: 1, on_delay: 400ms, off_delay: 400ms, stale: 2s}}
        advice: {{en: Check the oil cooler.}}
      pump: {{address: "coil:3"}}
      level: {{address: "holding:11", unit: "%", norm: {{warning: {{low: 20}}, acknowledge: required}}}}
{more}"""


class Hall:
    """One plant with everything running."""

    def __init__(self, agent: Agent, device: Device, broker: Mosquitto, ear: Ear, consumer: Consumer, web: int) -> None:
        self.agent, self.device, self.broker, self.ear, self.consumer, self.web = (
            agent,
            device,
            broker,
            ear,
            consumer,
            web,
        )

    def write(self, high: float = 60, more: str = "") -> None:
        self.agent.config.write_text(text(self.broker, self.device, self.web, high, more))

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}", timeout=5) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, str]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.web}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)


def text(broker: Mosquitto, device: Device, web: int, high: float = 60, more: str = "") -> str:
    return CONFIG.format(
        broker=broker.url, port=device.port, web=f'{{listen: "127.0.0.1:{web}"}}', high=high, more=more
    )


def in_the_hall(tmp_path: Path, work: Callable[[Hall], Awaitable[None]]) -> None:
    async def main() -> None:
        async with brokers.mosquitto() as broker, system.device(_10=450, _11=80) as device:
            async with Consumer(broker.port) as consumer:
                web = free_port()
                config = tmp_path / "agent.yaml"
                config.write_text(text(broker, device, web))
                async with system.agent(config) as agent:
                    hall = Hall(agent, device, broker, Ear(consumer), consumer, web)
                    try:
                        await hall.ear.until(lambda: hall.ear.all("m/measurements"))
                        await work(hall)
                    except BaseException:
                        print(agent.log.read_text())
                        raise

    asyncio.run(main())


def test_from_the_configuration_to_a_warning_and_back(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        ear, device = hall.ear, hall.device
        first = ear.all("m/measurements")[0]
        assert (first["values"]["oil"], first["values"]["pump"]) == (45.0, 0.0)
        assert ear.last("status") is not None
        assert ear.all("status")[-1]["state"] == "online"
        device.registers[10] = 650
        await ear.until(lambda: ear.told() == [("raised", "oil", "high", "warning")])
        device.registers[10] = 750
        await ear.until(lambda: ("escalated", "oil", "high", "alarm") in ear.told())
        device.registers[10] = 650
        await ear.until(lambda: ("deescalated", "oil", "high", "warning") in ear.told())
        device.registers[10] = 595  # inside, but not beyond the deadband
        await asyncio.sleep(1)
        device.registers[10] = 500
        await ear.until(lambda: ("cleared", "oil", "high", "warning") in ear.told())
        raised, escalated, _, cleared = ear.events()
        assert len({event["id"] for event in ear.events()}) == 1
        assert [event["seq"] for event in ear.events()] == sorted(event["seq"] for event in ear.events())
        assert raised["message"] == "Oil temperature 65 °C is above its norm of 60 °C"
        assert (raised["value"], raised["limit"], raised["unit"]) == (65.0, 60.0, "°C")
        assert (escalated["limit"], escalated["since"]) == (70.0, raised["since"])
        assert raised["norm"] == {"warning": {"high": 60.0}, "alarm": {"high": 70.0}}
        assert raised["advice"] == "Check the oil cooler."
        assert raised["since"] < raised["ts"]
        assert cleared["state"] == "normal"
        await ear.until(lambda: (ear.last("m/active") or {}).get("active") == [])
        norms = ear.last("m/norms")
        assert norms is not None
        assert norms["signals"]["oil"]["alarm"] == {"high": 70.0}
        await ear.until(lambda: ear.last("health"))
        health = ear.last("health")
        assert health is not None
        assert health["connections"]["plc"]["state"] in ("connected", "connecting")
        assert {"buffer", "loop_lag_ms", "cpu_percent", "rss_mb", "signals"} <= health.keys()
        assert await hall.agent.stop() == 0
        await ear.until(lambda: (ear.last("status") or {}).get("state") == "stopped")

    in_the_hall(tmp_path, work)


def test_a_device_that_is_away_is_said_at_every_beat_and_comes_back(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        ear = hall.ear
        await hall.device.stop()
        await ear.until(lambda: ear.all("m/measurements")[-1].get("bad", {}).get("oil") == "disconnected")
        await ear.until(lambda: ("raised", "oil", "stale", "warning") in ear.told())
        assert ear.all("m/measurements")[-1]["values"] == {}
        status, out, _ = await system.command("status", str(hall.agent.config), "--json")
        assert status == 0
        assert json.loads(out)["connections"]["plc"]["state"] in ("backing_off", "disconnected", "connecting")
        await hall.device.start()
        await ear.until(lambda: ("cleared", "oil", "stale", "warning") in ear.told(), 30)
        assert not [event for event in ear.told() if event[2] in ("high", "low")]

    in_the_hall(tmp_path, work)


def test_a_kill_neither_repeats_nor_forgets_a_warning(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        ear = hall.ear
        hall.device.registers[10] = 650
        await ear.until(lambda: ear.told() == [("raised", "oil", "high", "warning")])
        await hall.agent.kill()
        await ear.until(lambda: (ear.last("status") or {}).get("state") == "offline")
        had = len(ear.all("m/measurements"))
        await asyncio.sleep(1)
        await hall.agent.start()
        await ear.until(lambda: len(ear.all("m/measurements")) > had + 5)
        hall.device.registers[10] = 500
        await ear.until(lambda: ("cleared", "oil", "high", "warning") in ear.told())
        raised = [event for event in ear.events() if event["event"] == "raised" and event["kind"] == "high"]
        assert len({event["seq"] for event in raised}) == 1
        assert len({event["id"] for event in ear.events() if event["kind"] == "high"}) == 1
        gaps = ear.all("gaps")
        assert gaps
        assert (gaps[0]["cause"], gaps[0]["from_seq"]) == ("restart", None)
        assert gaps[0]["count"] >= 4
        everything = ear.all("m/measurements") + ear.events() + gaps
        assert len({message["epoch"] for message in everything}) == 1
        numbers = {message["seq"] for message in everything}
        assert numbers == set(range(1, max(numbers) + 1))
        assert await hall.agent.stop() == 0
        await hall.agent.start()  # after a clean stop too
        await ear.until(lambda: len(ear.all("gaps")) > len(gaps))
        assert len([event for event in ear.told() if event[:3] == ("raised", "oil", "high")]) <= 2

    in_the_hall(tmp_path, work)


def test_a_store_that_is_garbage_is_moved_aside_and_told(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        await hall.agent.kill()
        had = len(hall.ear.all("m/measurements"))
        for path in (tmp_path / "data").glob("journal.db*"):
            path.write_bytes(b"garbage" * 1000)
        await hall.agent.start()
        await hall.ear.until(lambda: len(hall.ear.all("m/measurements")) > had)
        await hall.ear.until(lambda: [gap for gap in hall.ear.all("gaps") if gap["cause"] == "damage"])

    in_the_hall(tmp_path, work)


def test_a_second_agent_on_the_same_data_is_refused_in_words(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        status, _, err = await system.command("run", str(hall.agent.config))
        assert status == 2
        assert "another agent" in err

    in_the_hall(tmp_path, work)


def test_acknowledge_over_http_is_told_by_mqtt(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        ear = hall.ear
        hall.device.registers[11] = 10
        await ear.until(lambda: ("raised", "level", "low", "warning") in ear.told())
        machines = hall.get("/api/v1/machines")["machines"]
        assert [m["name"] for m in machines] == ["m"]
        hall.device.registers[11] = 80
        await ear.until(lambda: ("cleared", "level", "low", "warning") in ear.told())
        assert ear.events()[-1]["state"] == "returned_unacknowledged"
        await ear.until(lambda: len((ear.last("m/active") or {"active": []})["active"]) == 1)
        warning = hall.get("/api/v1/warnings?active=true")["warnings"][0]
        await asyncio.to_thread(
            hall.post, f"/api/v1/warnings/{warning['id']}/acknowledge", {"by": "Ans", "comment": "filled up"}
        )
        await ear.until(lambda: ear.told()[-1][0] == "acknowledged")
        event = ear.events()[-1]
        assert (event["by"], event["comment"], event["state"]) == ("Ans", "filled up", "normal")
        await ear.until(lambda: (ear.last("m/active") or {}).get("active") == [])

    in_the_hall(tmp_path, work)


NEW_MACHINE = """\
  extra:
    connection: plc
    every: 200ms
    signals: {x: {address: "holding:11"}}
"""


def test_a_reload_takes_over_what_changed_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    async def work(hall: Hall) -> None:
        ear, config = hall.ear, str(hall.agent.config)
        hall.device.registers[11] = 10
        await ear.until(lambda: ("raised", "level", "low", "warning") in ear.told())
        assert hall.device.connections == 1
        hall.write(high=40)
        status, out, err = await system.command("reload", config)
        assert status == 0, err
        assert "m.oil: changed" in out
        await ear.until(lambda: ("raised", "oil", "high", "warning") in ear.told())
        assert hall.device.connections == 1, "an unchanged connection is not dropped"
        assert len([event for event in ear.told() if event[1] == "level"]) == 1
        hall.write(high=40, more=NEW_MACHINE)
        hall.agent.hang_up()
        await ear.until(lambda: ear.all("extra/measurements"))
        hall.write(high=40)
        hall.agent.hang_up()
        await ear.until(lambda: hall.consumer.payloads(f"{ROOT_TOPIC}/extra/active")[-1:] == [b""])
        hall.agent.config.write_text(hall.agent.config.read_text().replace("deadband", "deadbnd"))
        status, _, err = await system.command("reload", config)
        assert status == 2
        assert "agent.yaml:18:" in err
        assert 'did you mean "deadband"' in err
        await ear.until(lambda: "refused" in (ear.last("status") or {}))
        had = len(ear.all("m/measurements"))
        await ear.until(lambda: len(ear.all("m/measurements")) > had)
        assert await hall.agent.stop() == 0
        await hall.agent.start()  # with the broken file: the last good configuration
        await ear.until(lambda: len(ear.all("m/measurements")) > had + 3)
        assert "refused" in (ear.last("status") or {})
        hall.write(high=60)  # the file watcher sees that it is mended
        await ear.until(lambda: "refused" not in (ear.last("status") or {"refused": 1}), 20)

    in_the_hall(tmp_path, work)


def test_a_broken_configuration_without_an_earlier_one_ends_with_two(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("agent: {id: a}\nmqtt: {ulr: x}\n")
    status, _, err = asyncio.run(system.command("run", str(config)))
    assert status == 2
    assert f"{config}:2:8: mqtt.ulr" in err
    assert "nothing to run with" in err
    config.write_text("agent: {id: a}\nmachines: {m: {signals: {a: {column: a}}}}\n")
    status, _, err = asyncio.run(system.command("run", str(config)))
    assert (status, "recordings" in err) == (2, True)


def test_the_exit_statuses_of_read_and_status(tmp_path: Path) -> None:
    async def main() -> None:
        async with brokers.mosquitto() as broker, system.device(_10=450, _11=80) as device:
            config = tmp_path / "agent.yaml"
            config.write_text(text(broker, device, 0))
            assert (await system.command("read", str(config)))[0] == 0
            device.registers[10] = 650
            status, out, _ = await system.command("read", str(config), "--json")
            assert status == 1
            rows = [json.loads(line) for line in out.splitlines()]
            assert [row["verdict"] for row in rows] == ["warning", "none", "normal"]
            assert (await system.command("read", str(config), "m.oli"))[0] == 2
            assert (await system.command("check", str(config), "--connect"))[0] == 0
            await device.stop()
            assert (await system.command("read", str(config)))[0] == 3
            assert (await system.command("check", str(config), "--connect"))[0] == 3
            assert (await system.command("status", str(config)))[0] == 3

    asyncio.run(main())
