"""The contract's messages field by field, and what a plant does to them: devices that go away, and one that lies."""

import itertools
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from tests.brokers import Consumer
from tests.conftest import ROOT, eventually
from tests.hall import Hall, Json, picky, played, press
from tests.liar import truth
from tests.system import ROOT_TOPIC, Ear

pytestmark = pytest.mark.timeout(120)

UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
EVENT_KEYS = {
    "epoch", "seq", "id", "event", "ts", "machine", "signal", "kind", "severity", "state", "value", "unit", "limit",
    "norm", "since", "operating_state", "message", "advice",
}  # fmt: skip


@played
async def test_a_warning_s_life_has_every_field_of_the_contract(here: Hall) -> None:
    high, low = struct.unpack(">2H", struct.pack(">f", 2.5))
    registers = {0: 1480, 10: 500, 11: 0b1000, 12: high, 13: low}
    async with picky(registers, {3: 1}) as device:
        machine = press()
        machine["states"] = {"running": "motor_speed > 50", "stopped": "motor_speed <= 50"}
        machine["signals"] |= {
            "motor_speed": {"address": "input:0", "type": "uint16", "unit": "1/min"},
            "fan": {"address": "coil:3", "type": "bool"},
            "guard": {"address": "holding:11", "bit": 3},
            "pressure": {"address": "holding:12", "type": "float32", "offset": 1, "unit": "bar"},
            "twice": {"formula": "2 * pressure", "unit": "bar"},
            "gone": {"address": "holding:900", "type": "uint16"},
        }
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        await here.start()
        ear = here.ear
        status = await here.hears("status", lambda body: body["state"] == "online")
        assert status["signals"] == 7
        assert re.fullmatch(r"[0-9a-f]{12}", status["config"])
        assert UTC.fullmatch(status["since"])
        first = await here.hears("press/measurements", lambda body: "oil" in body["values"])
        assert first["values"] == {
            "oil": 50.0, "motor_speed": 1480, "fan": 1, "guard": 1, "pressure": 3.5, "twice": 7.0,
        }  # fmt: skip
        assert not any(isinstance(value, bool) for value in first["values"].values())
        assert (first["bad"], first["operating_state"]) == ({"gone": "refused"}, "running")
        assert UTC.fullmatch(first["ts"])
        norms = await here.hears("press/norms", lambda body: body["signals"]["oil"].get("state") == "running")
        assert norms["config"] == status["config"]
        band = {"warning": {"low": 20, "high": 60}, "alarm": {"low": 10, "high": 70}}
        assert norms["signals"]["oil"] == {"unit": "°C", **band, "state": "running"}
        assert here.active("press") == []

        device.registers[10] = 654
        raised = await here.event("press", "raised", kind="high")
        assert set(raised) == EVENT_KEYS
        expected = {
            "event": "raised", "machine": "press", "signal": "oil", "kind": "high", "severity": "warning",
            "state": "unacknowledged", "value": 65.4, "unit": "°C", "limit": 60, "norm": band,
            "operating_state": "running", "message": "Oil temperature 65.4 °C is above its norm of 60 °C",
            "advice": "Check the oil cooler.",
        }  # fmt: skip
        assert {key: raised[key] for key in expected} == expected
        assert raised["since"] < raised["ts"]
        await eventually(lambda: [each["event"] for each in here.active("press")] == ["raised"])
        assert here.active("press") == [raised], "the last event, whole"

        device.registers[10] = 750
        escalated = await here.event("press", "escalated")
        assert (escalated["severity"], escalated["limit"], escalated["value"]) == ("alarm", 70, 75.0)
        await eventually(lambda: [each["severity"] for each in here.active("press")] == ["alarm"])
        device.registers[10] = 654
        deescalated = await here.event("press", "deescalated")
        assert (deescalated["severity"], deescalated["limit"]) == ("warning", 60)
        device.registers[10] = 500
        cleared = await here.event("press", "cleared", kind="high")
        assert cleared["state"] == "normal"
        await eventually(lambda: not [each for each in here.active("press") if each["kind"] == "high"])

        life = [raised, escalated, deescalated, cleared]
        assert len({(each["id"], each["since"], each["epoch"]) for each in life}) == 1
        assert raised["epoch"] == first["epoch"]
        assert [each["seq"] for each in life] == sorted(each["seq"] for each in life)
        assert await here.agent.stop(5.0) == 0
        await here.hears("status", lambda body: body == {"state": "stopped"})
        await here.whole()
        for topic in ("press/measurements", "press/warnings"):
            numbers = [body["seq"] for body in ear.all(topic)]
            assert numbers == sorted(set(numbers))
        async with Consumer(here.broker.port, f"{ROOT_TOPIC}/#") as newcomer:
            await eventually(lambda: len(newcomer.heard) == 5)
            assert {each.topic.removeprefix(f"{ROOT_TOPIC}/") for each in newcomer.heard} == {
                "status", "health", "press/active", "press/norms", "agent/active",
            }  # fmt: skip
            assert Ear(newcomer).last("status") == {"state": "stopped"}


@played
async def test_the_will_says_offline_when_the_agent_dies(here: Hall) -> None:
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press()}))
        await here.start()
        await here.hears("status", lambda body: body["state"] == "online")
        await here.agent.kill()
        await here.hears("status", lambda body: body == {"state": "offline"})
        async with Consumer(here.broker.port, f"{ROOT_TOPIC}/status") as newcomer:
            await eventually(lambda: newcomer.last(f"{ROOT_TOPIC}/status") == b'{"state":"offline"}')


@played
async def test_health_says_what_the_contract_names(here: Hall) -> None:
    async with picky({10: 500}) as device:
        machine = press()
        machine["signals"]["gone"] = {"address": "holding:900", "type": "uint16"}
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        await here.start()
        early = await here.hears("health")
        assert {"state", "since", "requests", "timeouts", "utilisation"} <= set(early["connections"]["plc"])
        health = await here.hears("health", lambda body: body["connections"]["plc"]["requests"] > 0)
        assert {"ts", "connections", "buffer", "loop_lag_ms", "cpu_percent", "rss_mb", "signals"} <= set(health)
        line = health["connections"]["plc"]
        assert (line["state"], line["timeouts"]) == ("connected", 0)
        assert 0 < line["utilisation"] < 0.5
        assert {"messages", "oldest"} <= set(health["buffer"])
        assert 10 < health["rss_mb"] < 500
        detail = "unit 1, holding 900: exception 2 (illegal data address)"
        assert health["signals"] == {"press.gone": {"ne107": "failure", "reason": "refused", "detail": detail}}


@played
async def test_a_device_that_goes_away_is_told_each_beat_and_disturbs_no_other(here: Hall) -> None:
    async with picky({10: 500}) as device, picky({10: 500}) as other:
        machines = {"press": press(), "lathe": press("plc-2")}
        plain = here.plain({"plc": device.port, "plc-2": other.port}, machines)
        plain["connections"]["plc-2"]["timeout"] = "5s"  # a busy machine is no silent device
        here.write(plain)
        await here.start()
        for name in machines:
            await here.hears(f"{name}/measurements", lambda body: body["values"])
        good = max(body["seq"] for body in here.ear.all("press/measurements") if body["values"])
        await device.stop()
        gone = await here.hears(
            "press/measurements", lambda body: body["seq"] > good and body.get("bad") == {"oil": "disconnected"}
        )
        away = ("disconnected", "backing_off", "connecting")
        await here.status(lambda body: body["connections"]["plc"]["state"] in away)
        lost = await here.event("agent", "raised", within_s=20, kind="health")
        assert (lost["signal"], lost["value"], lost["severity"]) == ("plc", None, "alarm")
        words = rf"Connection plc has been lost since \d\d:\d\d:\d\d: .*127\.0\.0\.1:{device.port}.*\. 1 signal is not watched\."
        assert re.fullmatch(words, lost["message"]), lost["message"]
        assert (lost["suppressed"], lost["limit"], lost["norm"]) == (1, None, {})
        health = await here.hears("health", lambda body: body["connections"]["plc"]["ne107"] == "failure")
        assert health["connections"]["plc-2"]["ne107"] == "ok"
        assert 9 < seconds(lost["ts"]) - seconds(gone["ts"]) < 12
        assert [each["id"] for each in here.active("agent")] == [lost["id"]]
        silence = [body for body in here.ear.all("press/measurements") if gone["seq"] <= body["seq"] < lost["seq"]]
        assert all((body["values"], body["bad"]) == ({}, {"oil": "disconnected"}) for body in silence)
        assert len(silence) > 40, "at each beat"
        await device.start()
        assert (await here.event("agent", "cleared", within_s=30, kind="health"))["id"] == lost["id"]
        await here.status(lambda body: body["connections"]["plc"]["state"] == "connected")
        await eventually(lambda: here.active("agent") == [])
        assert here.ear.all("press/warnings") == [], "its signals are counted in the one warning"
        assert here.ear.all("agent/measurements") == []
        assert here.ear.all("lathe/warnings") == []
        beats = list(itertools.dropwhile(lambda body: not body["values"], here.ear.all("lathe/measurements")))
        odd = [body for body in beats if body["values"] != {"oil": 50.0}]
        assert odd == []
        stamps = [seconds(body["ts"]) for body in beats]
        assert max(b - a for a, b in itertools.pairwise(stamps)) < 1.0, "the other machine keeps its beat"


def seconds(ts: str) -> float:
    return datetime.fromisoformat(ts).timestamp()


@contextmanager
def lying(share: float, timeout_s: float) -> Iterator[tuple[int, list[str]]]:
    """A liar in a process of its own: its port, and, once it has ended, what it told."""
    words = ["tests/liar.py", "--port", "0", "--share", str(share), "--seed", "7", "--timeout", str(timeout_s)]
    told: list[str] = []
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as liar:
        assert liar.stdout is not None
        try:
            found = re.search(r":(\d+),", liar.stdout.readline())
            assert found is not None
            yield int(found[1]), told
        finally:
            liar.terminate()
            told.append(liar.stdout.read())


@played
async def test_no_lie_of_a_device_is_ever_published(here: Hall) -> None:
    addresses = {f"h{a}": f"holding:{a}" for a in (*range(0, 40, 3), 300)}
    addresses |= {f"i{a}": f"input:{a}" for a in range(5)} | {f"c{a}": f"coil:{a}" for a in range(9)}
    signals: Json = {
        name: {"address": address, "type": "bool" if name.startswith("c") else "uint16"}
        for name, address in addresses.items()
    }
    with lying(0.5, 0.1) as (port, told):
        config = here.plain({"plc": port}, {"liar": {"connection": "plc", "every": "100ms", "signals": signals}})
        config["connections"]["plc"]["timeout"] = "100ms"
        here.write(config)
        await here.start()

        def reasons() -> set[str]:
            return {why for body in here.ear.all("liar/measurements") for why in body.get("bad", {}).values()}

        await eventually(lambda: {"protocol", "timeout"} <= reasons(), 30)
        await eventually(lambda: len(here.ear.all("liar/measurements")) > 60, 30)
        assert await here.agent.stop() == 0
    lies = re.search(r"(\d+) of them wrong", told[0])
    assert lies is not None
    assert int(lies[1]) > 20
    published = 0
    for body in here.ear.all("liar/measurements"):
        for name, value in body["values"].items():
            real = truth(int(name[1:]))
            assert value == (real & 1 if name.startswith("c") else real), (name, body)
            published += 1
    assert published > 100


@played
async def test_a_person_acknowledges_a_warning_while_it_stands(here: Hall) -> None:
    async with picky({10: 500}) as device:
        here.write(here.plain({"plc": device.port}, {"press": press(acknowledge="required")}))
        await here.start()
        await here.hears("press/measurements", lambda body: body["values"])
        device.registers[10] = 654
        raised = await here.event("press", "raised")
        ((machine,),) = (await here.http("/api/v1/machines"))[1].values()
        assert (machine["name"], machine["signals"][0]["value"], machine["verdict"]) == ("press", 65.4, "warning")
        path = f"/api/v1/warnings/{raised['id']}/acknowledge"
        code, answer = await here.http(path, {"by": "Ann", "comment": "on my way"})
        assert (code, answer["state"]) == (200, "acknowledged")
        seen = await here.event("press", "acknowledged")
        assert answer == seen
        assert (seen["by"], seen["comment"], seen["state"], seen["id"]) == (
            "Ann", "on my way", "acknowledged", raised["id"],
        )  # fmt: skip
        assert (await here.http(path, {"by": "Ann"}))[0] == 409, "once is enough"
        assert (await here.http("/api/v1/warnings/none/acknowledge", {"by": "Ann"}))[0] == 404
        device.registers[10] = 500
        assert (await here.event("press", "cleared"))["state"] == "normal"
        await eventually(lambda: here.active("press") == [])
