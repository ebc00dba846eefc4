"""The configuration: what is accepted, what it means, and what is refused where."""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from edge_agent import config, plugins
from edge_agent.__main__ import main
from edge_agent.config import Config, ConfigErrors, MachineConfig, SignalConfig
from edge_agent.configuration.schema import json_schema
from edge_agent.contract import Clock, Driver, Point, Session

Order = Literal["big", "little"]


class LineSettings(BaseModel):
    """A line of the fake driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str
    unit: int = 1
    password: str | None = None
    word_order: Order = "big"


class PointSettings(BaseModel):
    """A point of the fake driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    address: str
    unit: int = Field(1, ge=0, le=255, strict=True)
    word_order: Order = "big"
    sentinel: list[int] = []


class FakeDriver:
    Connection: type[BaseModel] = LineSettings
    Address: type[BaseModel] = PointSettings
    inherited = frozenset({"unit", "word_order"})

    def open(
        self, name: str, connection: Any, points: Sequence[Point], clock: Clock
    ) -> AbstractAsyncContextManager[Session]:
        raise NotImplementedError


DRIVER: Driver = FakeDriver()
FAKE = plugins.Plugins({"fake": DRIVER})
HEAD = 'agent: {id: a}\nmqtt: {url: "mqtt://b"}\nconnections:\n  c: {driver: fake, url: x}\n'


def loaded(folder: Path, text: str, name: str = "agent.yaml") -> config.Loaded:
    path = folder / name
    path.write_text(text)
    return config.load(path, FAKE)


def read(folder: Path, text: str) -> Config:
    return loaded(folder, text).config


def faults(folder: Path, text: str) -> list[str]:
    """`line:column path` of each fault."""
    with pytest.raises(ConfigErrors) as found:
        loaded(folder, text)
    return [f"{error.line}:{error.column} {error.path}" for error in found.value.errors]


def machine(folder: Path, body: str) -> MachineConfig:
    return read(folder, f"{HEAD}machines:\n  m:\n    connection: c\n{body}").machines["m"]


def signal(folder: Path, keys: str) -> SignalConfig:
    """A signal with an address and these keys in flow style."""
    return machine(folder, f"    signals:\n      s: {{address: x, {keys}}}\n").signals["s"]


def signal_faults(folder: Path, keys: str) -> list[str]:
    """Paths below the signal."""
    text = f"{HEAD}machines:\n  m:\n    connection: c\n    signals:\n      s: {{address: x, {keys}}}\n"
    return [fault.split("machines.m.signals.s.")[1] for fault in faults(folder, text)]


# --- defaults and sections ---


def test_the_least_configuration_has_the_defaults_of_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    found = read(tmp_path, HEAD + "machines: {m: {connection: c, signals: {s: {address: x}}}}\n")
    assert found.agent == config.AgentConfig("a", "site", "en", "UTC", tmp_path / "data")
    assert found.mqtt is not None
    assert (found.mqtt.root, found.mqtt.version, found.mqtt.urls) == ("edge/site/a", "auto", ())
    assert found.store == config.StoreConfig(2 * 10**9, 14 * 86_400_000_000, 1_000_000, 400 * 86_400_000_000, 10**10)
    assert found.web == config.WebConfig("127.0.0.1", 8080)
    one = found.machines["m"].signals["s"]
    assert (one.every_us, one.every_written, one.scale, one.offset) == (1_000_000, False, 1.0, 0.0)
    assert one.norm.warning == config.BandConfig(None, None, 0.0, 0, 0)
    assert one.norm.stale_us is None


def test_the_data_lies_in_the_services_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge-agent:/var/lib/other")
    found = read(tmp_path, HEAD + "machines: {m: {connection: c, signals: {s: {address: x}}}}\n")
    assert found.agent.data_dir == Path("/var/lib/edge-agent")


def test_paths_are_relative_to_the_file_in_which_they_stand(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/mqtt.yaml").write_text(
        "mqtt:\n  url: mqtts://b\n  tls: {ca: ca.pem, cert: ../c.pem, key: /k.pem}\nagent: {data_dir: d}\n"
    )
    text = "agent: {id: a}\nconnections: {c: {driver: fake, url: x}}\ninclude: [deep/*.yaml]\n"
    found = read(tmp_path, text + "machines: {m: {connection: c, signals: {s: {address: x}}}}\n")
    assert found.mqtt is not None
    assert found.mqtt.tls == config.TlsConfig(tmp_path / "deep/ca.pem", tmp_path / "c.pem", Path("/k.pem"))
    assert found.agent.data_dir == tmp_path / "deep/d"


@pytest.mark.parametrize("web", ["null", "~"])
def test_web_null_means_no_page(tmp_path: Path, web: str) -> None:
    text = f"{HEAD}web: {web}\nmachines: {{m: {{connection: c, signals: {{s: {{address: x}}}}}}}}\n"
    assert read(tmp_path, text).web is None


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("'[::1]:81'", "::1", 81), ("localhost:9", "localhost", 9)],
)
def test_the_page_listens_on_loopback(tmp_path: Path, listen: str, host: str, port: int) -> None:
    text = f"{HEAD}web: {{listen: {listen}}}\nmachines: {{m: {{connection: c, signals: {{s: {{address: x}}}}}}}}\n"
    assert read(tmp_path, text).web == config.WebConfig(host, port)


MACHINES = "machines: {m: {connection: c, signals: {s: {address: x}}}}\n"


@pytest.mark.parametrize(
    "section",
    [
        "mqtt: {commands: false, batch: 0s, format: [json], publish: all, sparkplug: null}",
        "notify: {heartbeat: null, routes: {}}",
        "notify:",
        "warnings: {max_shelve: 8h}",
        "store: {history: {keep: 400d, export: null}}",
        "web: {users: {}, tls: null}",
        "store:",
    ],
)
def test_keys_of_later_versions_may_say_their_defaults(tmp_path: Path, section: str) -> None:
    joined = section.replace("mqtt: {", 'mqtt: {url: "mqtt://b", ')
    head = HEAD.replace('mqtt: {url: "mqtt://b"}\n', "") if section.startswith("mqtt") else HEAD
    assert read(tmp_path, f"{head}{joined}\n{MACHINES}").agent.id == "a"


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ("mqtt: {url: 'http://b'}", "3:13 mqtt.url"),
        ("mqtt: {url: 'mqtt://'}", "3:13 mqtt.url"),
        ("mqtt: {url: 'mqtt://b:99999'}", "3:13 mqtt.url"),
        ("mqtt: {url: 'mqtt://b', urls: ['mqtt://c', x]}", "3:44 mqtt.urls.1"),
        ("mqtt: {url: 'mqtt://b', root: 'edge/{machine}'}", "3:31 mqtt.root"),
        ("mqtt: {url: 'mqtt://b', root: 'edge//x'}", "3:31 mqtt.root"),
        ("mqtt: {url: 'mqtt://b', tls: {ca: x}}", "3:25 mqtt.tls"),
        ("mqtt: {url: 'mqtts://b', tls: {cert: x}}", "3:26 mqtt.tls.key"),
        ("mqtt: {url: 'mqtt://b', version: 3}", "3:34 mqtt.version"),
        ("mqtt: 3", "3:7 mqtt"),
        ("mqtt:", "3:1 mqtt.url"),
    ],
)
def test_a_wrong_broker_is_told_at_its_place(tmp_path: Path, section: str, place: str) -> None:
    text = f"agent: {{id: a}}\nconnections: {{c: {{driver: fake, url: x}}}}\n{section}\n{MACHINES}"
    assert faults(tmp_path, text) == [place]


def test_the_version_of_mqtt_may_be_a_number(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD.replace('"mqtt://b"', '"mqtt://b", version: 5') + MACHINES)
    assert found.mqtt is not None
    assert found.mqtt.version == "5"


def test_site_and_agent_are_put_into_the_root(tmp_path: Path) -> None:
    head = HEAD.replace("{id: a}", "{id: a, site: enschede/hall-2}").replace('b"}', 'b", root: "x/{site}/y/{agent}"}')
    found = read(tmp_path, head + MACHINES)
    assert found.mqtt is not None
    assert found.mqtt.root == "x/enschede/hall-2/y/a"


@pytest.mark.parametrize("site", ["a+b", "a#", "/a", "a//b", "$sys", "a{b}"])
def test_a_site_is_fit_for_a_topic(tmp_path: Path, site: str) -> None:
    assert faults(tmp_path, HEAD.replace("id: a", f"id: a, site: '{site}'") + MACHINES) == ["1:22 agent.site"]


def test_whole_sections_that_are_missing_are_told_at_the_top(tmp_path: Path) -> None:
    assert faults(tmp_path, "web: null\n") == ["1:1 agent", "1:1 machines", "1:1 mqtt", "1:1 connections"]


def test_a_file_that_is_not_there_is_one_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="there is no such file"):
        config.load(tmp_path / "none.yaml", FAKE)


# --- durations and sizes ---


@pytest.mark.parametrize(
    ("written", "us"),
    [("250ms", 250_000), ("10s", 10_000_000), ("5min", 300_000_000), ("2h", 7_200_000_000), ("1.5s", 1_500_000)],
)
def test_durations_carry_their_unit(tmp_path: Path, written: str, us: int) -> None:
    assert signal(tmp_path, f"norm: {{on_delay: {written}}}").norm.warning.on_delay_us == us


@pytest.mark.parametrize("written", ["10", "10 s", "5m", "1.5", "-1s", "s", "1e3s", "true", "null s", "[1s]", "31d"])
def test_what_is_no_duration_is_refused(tmp_path: Path, written: str) -> None:
    assert signal_faults(tmp_path, f"norm: {{on_delay: {written}}}") == ["norm.on_delay"]


@pytest.mark.parametrize(
    ("written", "ok"), [("500MB", True), ("2GB", True), ("2GiB", False), ("2", False), ("1kB", False)]
)
def test_sizes_are_decimal(tmp_path: Path, written: str, ok: bool) -> None:
    text = f"{HEAD}store: {{buffer: {{max_size: {written}}}}}\n{MACHINES}"
    if ok:
        assert read(tmp_path, text).store.max_size == int(written[:-2]) * {"MB": 10**6, "GB": 10**9}[written[-2:]]
    else:
        assert faults(tmp_path, text) == ["5:28 store.buffer.max_size"]


def test_the_least_size_of_a_history_is_named_whatever_stands_there(tmp_path: Path) -> None:
    for written in ("lots", "9MB"):
        with pytest.raises(config.ConfigErrors) as told:
            read(tmp_path, f"{HEAD}store: {{history: {{max_size: {written}}}}}\n{MACHINES}")
        assert "allowed 10MB to 100TB, written like 500MB or 2GB" in str(told.value)


# --- inheritance ---


def test_a_machine_is_laid_over_its_type_signal_by_signal_and_norm_by_norm(tmp_path: Path) -> None:
    text = f"""{HEAD}types:
  pump:
    every: 2s
    area: hall
    signals:
      p: {{address: x, unit: bar, norm: {{warning: {{low: 3, high: 6}}, on_delay: 5s}}}}
      q: {{address: y}}
machines:
  one: {{type: pump, connection: c, unit: 11}}
  two: {{type: pump, connection: c, area: yard, signals: {{p: {{norm: {{warning: {{high: 7}}}}}}, r: {{address: z}}}}}}
"""
    machines = read(tmp_path, text).machines
    one, two = machines["one"], machines["two"]
    assert (one.area, two.area, one.every_us) == ("hall", "yard", 2_000_000)
    assert list(two.signals) == ["p", "q", "r"]
    assert two.signals["p"].norm.warning == config.BandConfig(3.0, 7.0, 0.0, 5_000_000, 0)
    assert one.signals["p"].norm.warning.high == 6.0
    assert one.signals["p"].unit == "bar"
    assert one.signals["p"].point == PointSettings(address="x", unit=11)
    assert two.signals["p"].point == PointSettings(address="x", unit=1)
    assert one.signals["p"].every_written


def test_what_a_driver_inherits_comes_from_connection_machine_and_signal_the_nearest_first(tmp_path: Path) -> None:
    text = f"""{HEAD.replace("url: x", "url: x, unit: 7, word_order: little")}machines:
  m:
    connection: c
    unit: 9
    signals:
      near: {{address: x, word_order: big, unit: bar}}
      far: {{address: x}}
  n: {{connection: c, signals: {{s: {{address: x}}}}}}
"""
    machines = read(tmp_path, text).machines
    assert machines["m"].signals["near"].point == PointSettings(address="x", unit=9, word_order="big")
    assert machines["m"].signals["near"].unit == "bar"
    assert machines["m"].signals["far"].point == PointSettings(address="x", unit=9, word_order="little")
    assert machines["n"].signals["s"].point == PointSettings(address="x", unit=7, word_order="little")


def test_a_wrong_inherited_value_is_told_where_it_stands(tmp_path: Path) -> None:
    text = HEAD + "machines:\n  m:\n    connection: c\n    unit: 300\n    signals: {s: {address: x}, t: {address: y}}\n"
    assert faults(tmp_path, text) == ["8:11 machines.m.unit"]


def test_connection_and_period_may_stand_at_a_signal(tmp_path: Path) -> None:
    text = f"""{HEAD}  d: {{driver: fake, url: y}}
machines:
  m: {{connection: c, every: 5s, signals: {{s: {{address: x, connection: d, every: 100ms}}, t: {{address: x}}}}}}
"""
    found = read(tmp_path, text).machines["m"].signals
    assert (found["s"].connection, found["s"].every_us) == ("d", 100_000)
    assert (found["t"].connection, found["t"].every_us) == ("c", 5_000_000)


def test_a_key_that_only_another_driver_knows_is_unknown(tmp_path: Path) -> None:
    assert signal_faults(tmp_path, "bit: 3") == ["bit"]
    assert faults(
        tmp_path, f"{HEAD}machines: {{m: {{connection: c, max_gap: 3, signals: {{s: {{address: x}}}}}}}}\n"
    ) == ["5:31 machines.m.max_gap"]


def test_a_type_that_nobody_uses_is_checked_all_the_same(tmp_path: Path) -> None:
    text = f"{HEAD}types: {{t: {{signals: {{s: {{address: x, tilte: y}}}}}}}}\n{MACHINES}"
    assert faults(tmp_path, text) == ["5:39 types.t.signals.s.tilte"]


def test_an_unused_connection_is_a_note(tmp_path: Path) -> None:
    notes = loaded(tmp_path, f"{HEAD}  d: {{driver: fake, url: y}}\n{MACHINES}").notes
    assert [note.split(": ", 1)[1] for note in notes] == ["connections.d: no signal uses this connection"]


SISTERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"connection": "like_c"}),
    ({}, {"connection": "of_unit_9"}),
    ({}, {"connection": "little"}),
    ({}, {"connection": "nowhere"}),
    ({"connection": "nowhere"}, {"connection": "nowhere"}),
    ({}, {"type": "other"}),
    ({"every": "1s"}, {}),
    ({}, {"every": "5s"}),
    ({"every": "1s"}, {"every": "5s"}),
    ({}, {"every": "30s"}),  # longer than the type's `stale`
    ({"unit": 1}, {"unit": 7}),
    ({"unit": 1}, {"unit": True}),
    ({}, {"unit": 300}),
    ({"unit": 300}, {"unit": 300}),
    ({"word_order": "middle"}, {"word_order": "middle", "connection": "like_c"}),
    ({"unit": 1}, {}),
    ({"unit": 1}, {"unit": None}),
    ({}, {"word_order": "middle"}),
    ({"states": {"run": "p > 1"}}, {"states": {"run": "p > 2"}}),
    ({"states": {"run": "p > 1"}}, {"states": {"idle": "p > 1"}}),  # of the norm of w there is no such state
    ({"states": {"run": "p > 1"}}, {}),
    ({"signals": {"more": {"address": "y"}}}, {"signals": {"p": {"norm": {"warning": {"low": 0}}}}}),
    ({"signals": {"more": {"address": "y"}}}, {}),  # the formula of s has lost what it uses
    ({"signals": {"q": {"address": "x", "every": "3s"}}}, {"signals": {"q": {"connection": "little"}}}),
    ({"signals": {"t": {"connection": "c"}}}, {}),
]
"""Two machines of a type, by what they say themselves."""
OF_A_TYPE = {
    "p": {"address": "x", "norm": {"warning": {"low": 1, "high": 2}, "deadband": "2%"}},
    "q": {"address": "y", "unit": "bar", "norm": {"stale": "20s"}, "advice": "look"},
    "r": {"formula": "p + 1"},
    "t": {"address": "z", "connection": "of_unit_9", "every": "2s"},
    "v": {"address": "z", "sentinel": [7]},
}
OF_SOME: dict[str, Any] = {
    "nothing": {},
    "formula": {"s": {"formula": "p + more"}},
    "state": {"w": {"address": "x", "norm": {"by_state": {"run": {"warning": {"high": 3}}}}}},
    "fault": {"p": {"address": "x", "tilte": "P"}},
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("some", OF_SOME)
@pytest.mark.parametrize("sisters", SISTERS)
def test_a_machine_of_a_type_is_what_it_would_be_without_its_sisters(
    tmp_path: Path, sisters: tuple[dict[str, Any], dict[str, Any]], some: str, turned: bool
) -> None:
    head = {
        "agent": {"id": "a", "language": "nl"},
        "mqtt": {"url": "mqtt://b"},
        "connections": {
            "c": {"driver": "fake", "url": "x"},
            "like_c": {"driver": "fake", "url": "y"},
            "of_unit_9": {"driver": "fake", "url": "y", "unit": 9},
            "little": {"driver": "fake", "url": "x", "word_order": "little"},
        },
        "types": {
            "kind": {"signals": OF_A_TYPE | OF_SOME[some]},
            "other": {"signals": OF_A_TYPE | {"p": {"address": "q"}}},
        },
    }
    machines = {
        f"m{number}": {"type": "kind", "connection": "c", **sister}
        for number, sister in enumerate(reversed(sisters) if turned else sisters)
    }

    def made(*names: str) -> tuple[dict[str, MachineConfig], set[tuple[int, int, str]]]:
        lines = [f"{key}: {json.dumps(part)}" for key, part in head.items()] + ["machines:"]
        lines += [f"  {name}: {json.dumps(machine)}" if name in names else "" for name, machine in machines.items()]
        (tmp_path / "f.yaml").write_text("\n".join(lines))
        try:
            return config.load(tmp_path / "f.yaml", FAKE).config.machines, set()
        except ConfigErrors as error:
            return {}, {(each.line, each.column, each.text) for each in error.errors}

    alone = [made(name) for name in machines]
    together, faults = made(*machines)
    assert faults == set().union(*(found for _, found in alone))
    if not faults:
        assert together == {name: machine for found, _ in alone for name, machine in found.items()}


def test_two_drivers_with_the_same_points_inherit_each_their_own(tmp_path: Path) -> None:
    class Spot(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        address: str
        a: int = 0
        b: int = 0

    def driver(key: str) -> Driver:
        return type("Its", (FakeDriver,), {"Address": Spot, "inherited": frozenset({key})})()  # type: ignore[no-any-return]

    text = """agent: {id: a}
mqtt: {url: "mqtt://b"}
connections: {x: {driver: of_a, url: x}, y: {driver: of_b, url: y}}
types: {t: {signals: {p: {address: q}}}}
machines: {m: {type: t, connection: x, a: 5}, n: {type: t, connection: y, b: 5}}
"""
    (tmp_path / "f.yaml").write_text(text)
    machines = config.load(
        tmp_path / "f.yaml", plugins.Plugins({"of_a": driver("a"), "of_b": driver("b")})
    ).config.machines
    assert machines["m"].signals["p"].point == Spot(address="q", a=5)
    assert machines["n"].signals["p"].point == Spot(address="q", b=5)


# --- norms ---


def test_a_share_is_of_the_band_of_its_severity(tmp_path: Path) -> None:
    norm = signal(tmp_path, "norm: {warning: {low: 20, high: 60}, alarm: {low: 0, high: 100}, deadband: 2%}").norm
    assert (norm.warning.deadband, norm.alarm.deadband) == (0.8, 2.0)


def test_deadband_and_delays_inside_a_band_stand_before_those_of_the_norm(tmp_path: Path) -> None:
    bands = "warning: {high: 6, deadband: 1, on_delay: 1s}, alarm: {high: 9}"
    keys = f"norm: {{{bands}, deadband: 2, on_delay: 3s, off_delay: 4s}}"
    norm = signal(tmp_path, keys).norm
    assert norm.warning == config.BandConfig(None, 6.0, 1.0, 1_000_000, 4_000_000)
    assert norm.alarm == config.BandConfig(None, 9.0, 2.0, 3_000_000, 4_000_000)


def test_a_states_norm_is_whole(tmp_path: Path) -> None:
    body = """    states: {running: s > 1, stopped: s <= 1}
    signals:
      s:
        address: x
        norm:
          warning: {low: 20, high: 60}
          alarm: {high: 70}
          deadband: 10%
          severity: alarm
          by_state:
            stopped: {warning: {high: 40}, alarm: null, severity: warning}
"""
    with pytest.raises(ConfigErrors):  # a share of the one-sided alarm band
        machine(tmp_path, body)
    norm = machine(tmp_path, body.replace("{high: 70}", "{low: 0, high: 70}")).signals["s"].norm
    stopped = norm.by_state["stopped"]
    assert stopped.warning == config.BandConfig(20.0, 40.0, 2.0, 0, 0)
    assert stopped.alarm == config.BandConfig(None, None, 0.0, 0, 0)
    assert (stopped.severity, norm.severity, stopped.by_state) == ("warning", "alarm", {})
    assert norm.warning.deadband == 4.0


@pytest.mark.parametrize("over", ["stale: 1min", "use_uncertain: true", "acknowledge: required"])
def test_what_decides_which_readings_are_judged_is_the_same_in_every_state(tmp_path: Path, over: str) -> None:
    body = f"""    states: {{running: s > 1}}
    signals:
      s:
        address: x
        norm: {{warning: {{high: 60}}, by_state: {{running: {{{over}}}}}}}
"""
    with pytest.raises(ConfigErrors, match="may not differ by operating state"):
        machine(tmp_path, body)


@pytest.mark.parametrize(
    ("norm", "path"),
    [
        ("{warning: {low: 2, high: 2}}", "norm.warning.low"),
        ("{warning: {high: 6}, deadband: 2%}", "norm.deadband"),
        ("{alarm: {deadband: 2%}}", "norm.alarm.deadband"),
        ("{warning: {low: 0, high: 10}, deadband: 50%}", "norm.deadband"),
        ("{warning: {low: 0, high: 10, deadband: 5}}", "norm.warning.deadband"),
        ("{deadband: -1}", "norm.deadband"),
        ("{deadband: 2 bar}", "norm.deadband"),
        ("{warning: {low: .nan}}", "norm.warning.low"),
        ("{alarm: {high: .inf}}", "norm.alarm.high"),
        ("{warning: {high: true}}", "norm.warning.high"),
        ("{warning: {high: '6'}}", "norm.warning.high"),
        ("{warning: {low: 2}, alarm: {low: 3}}", "norm.alarm.low"),
        ("{warning: {low: 5}, alarm: {high: 4}}", "norm.alarm.high"),
        ("{warning: {high: 5}, alarm: {low: 6}}", "norm.alarm.low"),
        ("{severity: bad}", "norm.severity"),
        ("{acknowledge: never}", "norm.acknowledge"),
        ("{stale: 500ms}", "norm.stale"),
        ("{high: 3}", "norm.high"),
        ("{by_state: {x: {}}}", "norm.by_state.x"),
        ("[1]", "norm"),
        ("{frozen: true}", "norm.frozen.after"),
        ("{frozen: 5}", "norm.frozen"),
        ("{frozen: [5min]}", "norm.frozen"),
        ("{frozen: {after: 5min, resolution: -1}}", "norm.frozen.resolution"),
        ("{frozen: {after: 5min, over: 1s}}", "norm.frozen.over"),
        ("{rate: true}", "norm.rate.max"),
        ("{rate: 5}", "norm.rate"),
        ("{rate: {max: 0}}", "norm.rate.max"),
        ("{rate: {max: 1, over: 1s}}", "norm.rate.over"),
        ("{rate: {max: 1, per: 60}}", "norm.rate.per"),
        ("{rates: {max: 1}}", "norm.rates"),
        ("{stale_: 1s}", "norm.stale_"),
        ("{health: true}", "norm.health"),
    ],
)
def test_a_norm_that_makes_no_sense_is_refused(tmp_path: Path, norm: str, path: str) -> None:
    assert signal_faults(tmp_path, f"norm: {norm}") == [path]


@pytest.mark.parametrize(
    "norm",
    ["{warning: {low: 2}, alarm: {low: 2}}", "{warning: null}", "", "{warning: {low: 0, high: 10}, deadband: 4.9}"],
)
def test_a_norm_may_leave_things_out(tmp_path: Path, norm: str) -> None:
    assert signal(tmp_path, f"norm: {norm}").norm.severity == "warning"


def test_a_state_may_have_a_condition_that_ends_it(tmp_path: Path) -> None:
    body = """    states: {running: {when: s > 50, until: s < 45}, stopped: s <= 50}
    signals: {s: {address: x}}
"""
    found = machine(tmp_path, body)
    assert (found.states, found.until) == ({"running": "s > 50", "stopped": "s <= 50"}, {"running": "s < 45"})


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ("{until: s > 50}", "states.running.when"),
        ("{when: s > 50, until: t < 45}", "states.running.until"),
        ("{when: s >, until: s < 45}", "states.running.when"),
        ("{when: s > 50, until: s < 45, for: 3s}", "states.running.for"),
        ("5", "states.running"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(tmp_path: Path, state: str, path: str) -> None:
    text = f"{HEAD}machines:\n  m:\n    connection: c\n    states: {{running: {state}}}\n    signals: {{s: {{address: x}}}}\n"
    assert [fault.split(" ")[1] for fault in faults(tmp_path, text)] == [f"machines.m.{path}"]


def test_a_detectors_key_takes_its_settings_or_a_bare_value(tmp_path: Path) -> None:
    rules = signal(tmp_path, "norm: {frozen: 30min, rate: {max: 2, over: 10min}}").norm.rules
    assert rules["frozen"].model_dump(mode="json") == {"after": "30min", "resolution": 0.0}
    assert rules["rate"].model_dump(mode="json") == {"max": 2.0, "per": "1min", "over": "10min"}


@pytest.mark.parametrize("none", ["{frozen: null, rate: false}", "{}", "{rate: null}"])
def test_null_and_false_ask_a_detector_for_nothing(tmp_path: Path, none: str) -> None:
    assert signal(tmp_path, f"norm: {none}").norm.rules == {}


def test_a_states_rules_are_laid_over_the_norm_key_by_key(tmp_path: Path) -> None:
    body = """    states: {running: s > 1, stopped: s <= 1}
    signals:
      s:
        address: x
        norm:
          frozen: 30min
          rate: {max: 2, over: 10min}
          by_state:
            running: {rate: {max: 5}}
            stopped: {frozen: null, rate: false}
"""
    norm = machine(tmp_path, body).signals["s"].norm
    running, stopped = norm.by_state["running"].rules, norm.by_state["stopped"].rules
    assert running["rate"].model_dump(mode="json") == {"max": 5.0, "per": "1min", "over": "10min"}
    assert running["frozen"] == norm.rules["frozen"]
    assert stopped == {}


def test_rules_outlive_being_packed(tmp_path: Path) -> None:
    before = read(
        tmp_path,
        f"{HEAD}machines: {{m: {{connection: c, signals: {{s: {{address: x, norm: {{frozen: 5min, rate: {{max: 1}}}}}}}}}}}}\n",
    )
    assert config.unpack(config.pack(before), FAKE) == before


def test_an_unknown_rule_is_told_at_its_key_with_what_was_probably_meant(tmp_path: Path) -> None:
    text = f"{HEAD}machines: {{m: {{connection: c, signals: {{s: {{address: x, norm: {{rte: {{max: 1}}}}}}}}}}}}\n"
    with pytest.raises(ConfigErrors) as found:
        loaded(tmp_path, text)
    (error,) = found.value.errors
    assert (error.path, error.text, error.suggestion) == ("machines.m.signals.s.norm.rte", "unknown key", "rate")
    assert "frozen" in str(error.allowed)


def test_a_types_rule_is_told_where_it_stands_also_when_no_machine_uses_it(tmp_path: Path) -> None:
    types = "types: {t: {signals: {s: {address: x, norm: {frosen: 5min}}}}}"
    text = f"{HEAD}{types}\nmachines: {{m: {{connection: c, signals: {{s: {{address: x}}}}}}}}\n"
    assert [fault.split(" ")[1] for fault in faults(tmp_path, text)] == ["types.t.signals.s.norm.frosen"]


# --- signals ---


def test_a_signal_carries_all_that_is_said_of_it(tmp_path: Path) -> None:
    keys = (
        "title: Oil, scale: 0.1, offset: -4, unit: °C, current_loop: {low: 0, high: 16}, valid: {low: -40}, "
        "map: {0: stopped, -1: odd}, sentinel: [32767], advice: {nl: Kijk., en: Look.}"
    )
    found = signal(tmp_path, keys)
    assert (found.title, found.scale, found.offset, found.unit) == ("Oil", 0.1, -4.0, "°C")
    assert found.current_loop == config.CurrentLoop(0.0, 16.0)
    assert (found.valid_low, found.valid_high) == (-40.0, None)
    assert found.map == {0: "stopped", -1: "odd"}
    assert found.advice == {"nl": "Kijk.", "en": "Look."}
    assert found.point == PointSettings(address="x", unit=1, sentinel=[32767])


def test_advice_without_a_language_is_in_the_agents(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        HEAD.replace("id: a", "id: a, language: de") + MACHINES.replace("address: x", "address: x, advice: Hin."),
    )
    assert found.machines["m"].signals["s"].advice == {"de": "Hin."}


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ("scale: 0", "scale"),
        ("offset: .inf", "offset"),
        ("unit: 1", "unit"),
        ("valid: {low: 3, high: 3}", "valid.low"),
        ("current_loop: {low: 3}", "current_loop.high"),
        ("current_loop: {low: 3, high: 3}", "current_loop.high"),
        ("map: {a: b}", "map"),
        ("map: {}", "map"),
        ("advice: {fr: Non.}", "advice.fr"),
        ("every: 1ms", "every"),
        ("sentinel: [x]", "sentinel.0"),
        ("word_order: middle", "word_order"),
        ("connection: d", "connection"),
        ("formula: 1 + x", "formula"),
        ("column: y", "column"),
    ],
)
def test_a_signal_that_makes_no_sense_is_refused(tmp_path: Path, keys: str, path: str) -> None:
    assert signal_faults(tmp_path, keys) == [path]


def test_states_and_formulas_use_the_signals_of_their_machine(tmp_path: Path) -> None:
    body = """    settle: 20s
    states: {running: speed > 50, stopped: twice <= 100}
    signals:
      twice: {formula: speed * 2, norm: {warning: {high: 9}}, valid: {low: 0}}
      speed: {address: x}
"""
    found = machine(tmp_path, body)
    assert list(found.states.items()) == [("running", "speed > 50"), ("stopped", "twice <= 100")]
    assert (found.settle_us, found.signals["twice"].formula, found.signals["twice"].point) == (
        20_000_000,
        "speed * 2",
        None,
    )


def test_a_formula_of_itself_is_a_circle(tmp_path: Path) -> None:
    text = f"{HEAD}machines: {{m: {{connection: c, signals: {{s: {{address: x}}, t: {{formula: t + s}}}}}}}}\n"
    assert faults(tmp_path, text) == ["5:71 machines.m.signals.t.formula"]


# --- recordings ---


def test_a_configuration_for_recordings_needs_neither_connections_nor_mqtt(tmp_path: Path) -> None:
    text = "agent: {id: a}\nmachines: {m: {every: 2s, signals: {t: {column: P-PDG}, u: {}, v: {formula: t - u}}}}\n"
    found = read(tmp_path, text)
    assert found.mqtt is None
    assert found.for_recordings
    signals = found.machines["m"].signals
    assert (signals["t"].column, signals["u"].column, signals["v"].column) == ("P-PDG", "u", None)
    assert signals["t"].every_written


def test_one_address_makes_it_a_configuration_that_needs_a_line(tmp_path: Path) -> None:
    text = "agent: {id: a}\nmachines: {m: {signals: {t: {column: P}, u: {address: x}}}}\n"
    assert faults(tmp_path, text) == [
        "1:1 mqtt",
        "1:1 connections",
        "2:30 machines.m.signals.t.column",
        "2:42 machines.m.signals.u.connection",
    ]


# --- secrets ---


@pytest.fixture
def with_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in ("CREDENTIALS_DIRECTORY", "EDGE_AGENT_SECRET_broker_pw", "EDGE_AGENT_SECRET_BROKER_PW"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "state/secrets").mkdir(parents=True)
    return read(tmp_path, HEAD.replace('b"}', 'b", password: {secret: broker_pw}}') + MACHINES)


REF = config.SecretRef("broker_pw")


def test_a_secret_is_looked_up_in_the_order_of_the_contract(
    with_secret: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_secret.mqtt is not None
    assert config.secrets_of(with_secret) == (with_secret.mqtt.password,) == (REF,)
    with pytest.raises(config.SecretError, match="no secret 'broker_pw'"):
        config.secret(REF, with_secret)
    own = tmp_path / "state/secrets/broker_pw"
    own.write_text("from data_dir\n")
    own.chmod(0o600)
    assert config.secret(REF, with_secret) == "from data_dir"
    monkeypatch.setenv("EDGE_AGENT_SECRET_BROKER_PW", "from environment")
    assert config.secret(REF, with_secret) == "from environment"
    (tmp_path / "broker_pw").write_text("from credentials\r\n", newline="")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert config.secret(REF, with_secret) == "from credentials"


def test_a_secret_that_others_may_read_is_refused(with_secret: Config, tmp_path: Path) -> None:
    own = tmp_path / "state/secrets/broker_pw"
    own.write_text("x")
    own.chmod(0o640)
    with pytest.raises(config.SecretError, match="0600"):
        config.secret(REF, with_secret)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_secrets_name_leads_out_of_no_folder(tmp_path: Path, name: str) -> None:
    text = HEAD.replace('b"}', f"b\", password: {{secret: '{name}'}}}}") + MACHINES
    assert [fault.split()[1] for fault in faults(tmp_path, text)] == ["mqtt.password.secret"]


class SecretName(BaseModel):
    secret: str


class Guarded(BaseModel):
    password: SecretName | str | None = None


def test_a_driver_gets_the_text_of_a_secret_and_the_settings_keep_its_name(
    with_secret: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_AGENT_SECRET_broker_pw", "s3cret")
    settings = Guarded(password=SecretName(secret="broker_pw"))
    assert config.with_secrets(settings, with_secret) == Guarded(password="s3cret")
    assert settings.password == SecretName(secret="broker_pw")


# --- kept as the last good configuration ---


def test_the_resolved_configuration_goes_to_text_and_back_exactly(tmp_path: Path, with_secret: Config) -> None:
    text = """agent: {id: a, data_dir: d}
mqtt: {url: "mqtts://b", password: {secret: p}, tls: {ca: ca.pem, cert: c.pem, key: {secret: k}}, urls: ["mqtt://e"]}
connections: {c: {driver: fake, url: x}}
machines:
  m:
    connection: c
    states: {on_: s > 1}
    signals:
      s: {address: x, map: {1: one}, current_loop: {low: 0, high: 0.1}, advice: °,
         norm: {warning: {low: 0.1, high: 0.7}, deadband: 3%, by_state: {on_: {alarm: {low: -1, high: 1e9}}}}}
      f: {formula: s * 2}
"""
    for found in (read(tmp_path, text), with_secret):
        kept = config.to_resolved_json(found)
        assert config.from_resolved_json(kept, FAKE) == found
        assert config.to_resolved_json(config.from_resolved_json(kept, FAKE)) == kept


@pytest.mark.parametrize("kept", ["", "{}", "[]", '{"agent": 1}', "nonsense"])
def test_a_damaged_kept_configuration_is_a_value_error(kept: str) -> None:
    with pytest.raises(ValueError):
        config.from_resolved_json(kept, FAKE)


def test_a_kept_configuration_whose_driver_has_gone_is_a_value_error(tmp_path: Path) -> None:
    kept = config.to_resolved_json(read(tmp_path, HEAD + MACHINES))
    with pytest.raises(ValueError, match="fake"):
        config.from_resolved_json(kept, plugins.Plugins())


# --- the contract's own example ---

EXAMPLE = Path(__file__).parent / "data" / "contract_example.yaml"


def test_the_contracts_example_is_accepted_but_for_what_is_not_available_yet() -> None:
    with pytest.raises(ConfigErrors) as found:
        config.load(EXAMPLE)
    told = {(error.line, error.column): error.path for error in found.value.errors}
    assert all("is not available yet" in error.text for error in found.value.errors)
    lines = EXAMPLE.read_text().splitlines()
    later = [
        *("tls", "users", "routes", "groups", "drift", "forecast"),
        *("learned", "adaptive", "residual", "spike", "noise", "manual", "waveform"),
    ]
    for (line, column), path in told.items():
        key = path.rsplit(".", 1)[1]
        value = re.search(rf"\b{key}: *", lines[line - 1])
        assert value is not None
        assert column in (value.start() + 1, value.end() + 1)
    assert {path.rsplit(".", 1)[1] for path in told.values()} == set(later)
    assert len(told) == len(later)


# --- the schema ---


def keys_of(schema: Any) -> set[str]:
    """Every property name anywhere in the schema."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return own.union(*map(keys_of, schema.values())) if schema else own


def test_every_key_of_the_contracts_example_stands_in_the_schema() -> None:
    installed = plugins.installed()
    known = keys_of(json_schema({kind: installed.driver(kind) for kind in installed.kinds()}, installed.detectors()))
    text = re.sub(r"#.*|\"[^\"]*\"", "", EXAMPLE.read_text())
    names = set(re.findall(r"(?<![\w-])([A-Za-z_]\w*):(?=[\s\[{]|$)", text))
    users_own = {
        *("maintenance", "shift_lead", "planner", "pump", "running", "stopped", "motor_speed", "oil_temperature"),
        *("inlet", "outlet", "flow", "pressure_drop", "oil_glass", "spindle", "hydraulics", "discharge_pressure"),
    }
    assert names - users_own - known == set()


def test_the_schema_says_defaults_and_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    parts = schema["$defs"]
    assert parts["TypeFile"]["properties"]["every"]["default"] == "1s"
    assert parts["BufferFile"]["properties"]["max_size"]["default"] == "2GB"
    assert parts["MqttFile"]["properties"]["root"]["default"] == "edge/{site}/{agent}"
    assert parts["WebFile"]["properties"]["listen"]["default"] == "127.0.0.1:8080"
    assert parts["modbus.Connection"]["properties"]["timeout"]["default"] == "1s"
    assert "type" in parts["SignalFile"]["properties"]
    for name, part in parts.items():
        for key, about in part.get("properties", {}).items():
            if name.endswith("File"):
                assert about.get("description"), f"{name}.{key} says nothing of itself"


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    schema = json_schema({"fake": DRIVER}, plugins.detectors())
    for target in re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema)):
        assert target in schema["$defs"]


# --- check ---


def test_check_sums_up_a_valid_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ok.yaml"
    path.write_text(
        'agent: {id: a}\nmqtt: {url: "mqtt://b"}\nconnections: {p: {driver: modbus, url: "tcp://h"}}\n'
        'machines: {m: {connection: p, signals: {s: {address: "holding:1"}}}}\n'
    )
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 machine, 1 signal, 1 connection " in out
    assert "driver modbus: edge-agent" in out
    assert main(["check", "--json", str(path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["errors"], answer["signals"]) == (True, [], 1)


def test_the_installed_drivers_dump_settings_that_they_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ok.yaml"
    path.write_text(
        'agent: {id: a}\nmqtt: {url: "mqtt://b"}\nconnections:\n  p: {driver: modbus, url: "tcp://h", timeout: 1.5s}\n'
        "  o: {driver: opcua, url: opc.tcp://h:4840, user: u, password: {secret: s}, timeout: 3s}\n"
        'machines: {m: {connection: p, unit: 3, signals: {s: {address: "40101", type: float32, sentinel: [1]}, '
        "o: {connection: o, address: ns=2;i=1}}}}\n"
    )
    found = config.load(path).config
    assert config.from_resolved_json(config.to_resolved_json(found)) == found


# --- whatever is in the file ---

KEYS = st.sampled_from(
    [
        *("agent", "mqtt", "store", "web", "connections", "types", "machines", "include", "notify", "id", "url"),
        *("driver", "type", "signals", "norm", "warning", "low", "deadband", "by_state", "states", "formula"),
        *("address", "connection", "unit", "every", "groups", "column", "password", "tls", "key", "m", "c", "s"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**25),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["fake", "c", "m", "s", "1s", "2%", "s > 1", "mqtt://b", "*.yaml"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=30,
)


def tried(path: Path) -> tuple[Config | None, list[config.ConfigError]]:
    """The configuration, or its errors; anything else that is raised fails the test."""
    try:
        return config.load(path, FAKE).config, []
    except ConfigErrors as refused:
        return None, refused.errors


@given(st.dictionaries(KEYS, TREES, max_size=8))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_tree_raises_anything_but_config_errors(tmp_path: Path, tree: dict[str, Any]) -> None:
    text = json.dumps(tree, ensure_ascii=False).replace("NaN", ".nan").replace("Infinity", ".inf")
    (tmp_path / "f.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    found, errors = tried(tmp_path / "f.yaml")
    assert (found is None) == bool(errors)
    assert all(error.line >= 1 and error.column >= 1 and error.file for error in errors)


VALID = f"""{HEAD}types: {{t: {{signals: {{p: {{address: x}}}}}}}}
machines:
  m:
    type: t
    connection: c
    states: {{on_: s > 1}}
    signals:
      s:
        address: x
        norm: {{warning: {{low: 1, high: 9, deadband: 2%}}, by_state: {{on_: {{alarm: {{high: 10}}}}}}}}
      f: {{formula: s * 2}}
"""


@given(
    st.integers(0, len(VALID)),
    st.integers(0, 12),
    st.one_of(
        st.binary(max_size=6), st.sampled_from([b"{", b"]", b": ", b"no", b"*a", b"&a ", b"\n  - ", b"null", b"-1"])
    ),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_file_raises_anything_but_config_errors(
    tmp_path: Path, at: int, length: int, put: bytes
) -> None:
    data = VALID.encode()
    (tmp_path / "f.yaml").write_bytes(data[:at] + put + data[at + length :])
    found, errors = tried(tmp_path / "f.yaml")
    assert (found is None) == bool(errors)
    if found is not None:
        assert config.from_resolved_json(config.to_resolved_json(found), FAKE) == found
