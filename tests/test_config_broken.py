"""Broken configurations: every fault of each file, at its exact place, in one run of `check`."""

import json
from pathlib import Path

import pytest

from edge_agent.__main__ import main

BROKEN = Path(__file__).parent / "broken"

FAULTS = {
    "unknown_key.yaml": [
        '3:3: agent.lanugage: unknown key (found "lanugage", allowed data_dir, id, language, site, timezone; did you',
        "6:3: mqtt.pasword: unknown key",
        "7:1: conections: unknown key",
        '12:11: machines.press.signals.t.adress: unknown key (found "adress", allowed address, column, formula, manual',
        "13:7: machines.press.signals.u.connection: the key is missing",
        '13:40: machines.press.signals.u.norm.low: unknown key (found "low", allowed acknowledge, adaptive, alarm, by_',
    ],
    "missing_key.yaml": [
        "1:1: agent.id: the key is missing",
        "1:1: connections: the key is missing",
        "3:1: mqtt.url: the key is missing",
        "6:3: machines.press.signals: the key is missing",
    ],
    "wrong_value.yaml": [
        "1:13: agent.id: is no id",
        "1:33: agent.language: is not one of the known words (found \"fr\", allowed 'en', 'nl' or 'de')",
        '1:47: agent.timezone: is no known time zone (found "Europe/Amstredam", allowed an IANA name such as ',
        "3:8: mqtt.url: is no address of a broker",
        "4:12: mqtt.version: is no version of MQTT (found 4, allowed auto, 5 or 3.1.1)",
        "5:9: mqtt.root: ",
        "7:22: store.buffer.max_size: is no size",
        "7:37: store.buffer.max_age: is no duration",
        "8:17: store.commit_every: a duration needs its unit",
        "9:15: web.listen: another address than loopback needs users, which are not available yet",
        "11:56: connections.plc.unit: is too large (found 300, allowed 255 or less)",
        "16:39: machines.press.signals.t.type: ",
        "16:55: machines.press.signals.t.scale: ",
    ],
    "yaml_1_1.yaml": [
        "2:7: agent.id: a leading zero means octal",
        "3:9: agent.site: no means false to YAML 1.1",
        "4:35: mqtt.commands: off means false to YAML 1.1",
        '8:3: machines.on: on means true to YAML 1.1 and is a text in YAML 1.2 (found on, allowed "on" in quotes)',
        "10:12: machines.on.every: digits with colons are a number to base 60",
        "14:9: machines.on.signals.b.<<: merge keys are not part of YAML 1.2",
    ],
    "duplicate_key.yaml": ["10:3: machines.press: the key stands twice (first in line 6)"],
    "tab.yaml": ["4:1: mqtt: a tab cannot indent (found a tab, allowed spaces)"],
    "not_utf8.yaml": ["3:17: the file is not UTF-8 (found byte 0xe4, allowed UTF-8)"],
    "bands.yaml": [
        "12:60: machines.press.signals.turned.norm.warning.low: low is not below high",
        "13:80: machines.press.signals.inside.norm.alarm.high: the alarm band does not contain the warning band",
        "18:21: machines.press.signals.share.norm.deadband: a share of the warning band needs its low and its high",
        "22:49: machines.press.signals.wide.norm.warning.deadband: is half the warning band or more",
        "23:60: machines.press.signals.endless.norm.alarm.high: is no finite number",
        "30:13: machines.press.signals.stateful.norm.by_state.runing: the machine has no such state",
        "31:39: machines.press.signals.stateful.norm.by_state.running.warning.high: the alarm band does not contain",
    ],
    "hidden.yaml": [
        "4:34: types.pump.states.running: is not an expression (invalid syntax)",
        "6:56: types.pump.signals.flow.norm.warning.low: low is not below high",
        "7:22: types.pump.signals.twice.formula: is not an expression",
        '10:17: machines.m.connection: there is no such connection (found "plc-2", allowed plc-1; did you mean "plc-1"?)',
        "11:11: machines.m.unit: is too large (found 300, allowed 255 or less)",
        "12:23: machines.m.states.running: is not an expression (invalid syntax)",
        "14:20: machines.m.signals.a.address: 'holdin:10' is no Modbus address",
        "14:39: machines.m.signals.a.type: 'flot32' is no type",
        '15:34: machines.m.signals.b.unitt: unknown key (found "unitt"',
        "15:49: machines.m.signals.b.bit: is too large (found 33, allowed 15 or less)",
        "16:44: machines.m.signals.c.sentinel: is no list (found 7, allowed a list: [a, b])",
        "20:52: machines.n.signals.d.bit: bit stands only at a 16-bit register (uint16, int16 or bool), not at int32",
        "21:58: machines.n.signals.e.sentinel: sentinel 70000 cannot come from a uint16: 0 … 65535",
    ],
    "overlaid.yaml": [
        '2:32: mqtt.urls.0: the broker inside the agent cannot be a further one (found "embedded:"',
        "8:71: machines.m1.signals.s.norm.warning.high: high is not above low (found 0, allowed more than 1)",
        "9:71: machines.m2.signals.s.norm.warning.high: high is not above low (found -3, allowed more than 1)",
        "10:71: machines.m3.signals.s.norm.warning.high: a share of the warning band needs its low and its high",
        "11:69: machines.m4.signals.s.norm.alarm.high: a share of the alarm band needs its low and its high",
        "12:3: machines.m5.signals: the key is missing (allowed one signal or more)",
        "15:12: machines.m6.title: is no text",
        '16:18: machines.m6.states.st: uses "nope", which is no signal of this machine',
        '18:20: machines.m6.signals.u.formula: uses "nope", which is no signal of this machine',
        "18:37: machines.m6.signals.u.title: is no text",
        "19:40: machines.m6.signals.v.scale: a scale of 0",
        "19:56: machines.m6.signals.v.valid.low: low is not below high",
        "20:42: machines.m6.signals.w.advice.fr: is no language of the agent",
        "20:109: machines.m6.signals.w.norm.by_state.up.warning.high: high is not above low (found 10, allowed more than 20)",
        "21:55: machines.m6.signals.x.title: has a character that cannot be printed",
        "22:20: machines.m6.signals.y.address: 'holding:٣' is no Modbus address",
    ],
    "no_connection.yaml": [
        "3:1: connections: there is no connection (found nothing, allowed one connection or more)",
        "5:7: machines.m.signals.a.column: stands only in a configuration for recordings",
    ],
    "formulas.yaml": [
        '9:16: machines.press.states.running: uses "sped"',
        "10:16: machines.press.states.stopped: is not an expression",
        '13:24: machines.press.signals.twice.formula: uses "trice"',
        "14:20: machines.press.signals.a.formula: formulas use each other in a circle",
        "16:18: machines.press.signals.b.formula: formulas use each other in a circle",
        "17:25: machines.press.signals.danger.formula: calls something that is not allowed",
        "18:36: machines.press.signals.scaled.scale: has no meaning beside formula",
    ],
    "sources.yaml": [
        "8:7: machines.press.signals.none.address: the key is missing",
        "9:52: machines.press.signals.two.formula: there are two sources of values",
        "10:18: machines.press.signals.recorded.column: stands only in a configuration for recordings",
        "11:7: machines.press.signals.lineless.connection: the key is missing",
        '12:32: machines.press.signals.wrong_line.connection: there is no such connection (found "plc2", allowed plc',
    ],
    "texts.yaml": [
        "8:21: machines.press.states.named: serial is a text, which has no value",
        "10:59: machines.press.signals.serial.unit: has no meaning for a text, which is shown and never judged",
        "10:70: machines.press.signals.serial.every: has no meaning for a text",
        "10:82: machines.press.signals.serial.norm: has no meaning for a text",
        "11:24: machines.press.signals.twice.formula: serial is a text, which has no value",
        "12:46: machines.press.signals.pressure.type: string:999: a text has 1 to 250 characters, two in each register",
        "16:7: machines.plate.signals: all of them are texts",
    ],
    "secrets.yaml": [
        "3:8: mqtt.url: user and password do not stand in the url",
        "4:13: mqtt.password: a password is never written in plain (found a value that is not shown, allowed {secret",
        "10:15: connections.cell.password: a password is never written in plain",
    ],
    "names.yaml": [
        "4:3: connections.plc 1: is no name for a connection",
        "5:17: connections.plc.driver: no such driver is installed",
        "7:3: machines.status: this name is reserved",
        "11:3: machines.press/3: is no name for a machine",
        "12:3: machines.7: is no name for a machine",
        "16:14: machines.press.states.unknown: this name is the agent's own",
        "16:30: machines.press.states.1st: is no name for a state",
        "19:7: machines.press.signals.oil-level: is no name for a signal",
    ],
    "not_yet.yaml": [
        "4:13: mqtt.commands: is not available yet",
        "5:10: mqtt.batch: is not available yet",
        "6:11: mqtt.format: is not available yet",
        "7:12: mqtt.publish: is not available yet",
        "11:3: notify.heartbeat: is not available yet",
        "17:5: machines.press.groups: is not available yet",
        "23:18: machines.press.signals.t.norm.latch: is not available yet",
        "24:11: machines.press.signals.t.norm.noise: is not available yet",
        "25:11: machines.press.signals.t.norm.spike: is not available yet",
    ],
}


def checked(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that `check` writes about a file; the status is that of an invalid configuration."""
    assert main(["check", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_told_at_its_place_and_no_other(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BROKEN)
    lines = checked(name, capsys)
    expected = [f"{name}:{fault}" for fault in FAULTS[name]]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=False)] == expected
    assert len(lines) == len(expected), lines[len(expected) :]


def test_every_broken_file_is_expected_to_be_broken() -> None:
    assert {path.name for path in BROKEN.glob("*.yaml")} == set(FAULTS)


def test_a_fault_in_a_type_is_told_once_in_the_file_of_the_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BROKEN / "types")
    places = [line.split(": ")[0] for line in checked("agent.yaml", capsys)]
    assert places == [
        "agent.yaml:12:41",
        "agent.yaml:13:18",
        "pumps.yaml:6:15",
        "pumps.yaml:8:37",
        "pumps.yaml:9:23",
        "pumps.yaml:11:3",
    ]


def test_no_secret_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(BROKEN / "secrets.yaml")]) == 2
    assert main(["check", "--json", str(BROKEN / "secrets.yaml")]) == 2
    captured = capsys.readouterr()
    assert "hunter2" not in captured.out + captured.err


def test_faults_are_also_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", str(BROKEN / "unknown_key.yaml")]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    first = answer["errors"][0]
    assert (first["line"], first["column"], first["path"]) == (3, 3, "agent.lanugage")
    assert first["found"] == '"lanugage"'
    assert "language" in first["allowed"]
    assert Path(first["file"]).name == "unknown_key.yaml"
