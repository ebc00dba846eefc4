"""When the certificates of a line end: the steps, the words, and the life of the warning on a virtual clock and with files."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drivers import opcua, opcua_pki
from drivers.opcua_settings import Connection
from edge_agent import certificates, judge, snapshot, texts
from edge_agent.cli import status
from edge_agent.clock import SystemClock
from edge_agent.contract import ENDING, WHOSE, Certified, DeviceSilent, Expiry, Quality
from edge_agent.health import Meter
from edge_agent.pipeline import TICK_EVERY_S
from edge_agent.plant import Plant, without_certificates, without_host
from edge_agent.poller import Line
from edge_agent.records import Event, EventKind, JudgedFrame, Loss
from tests import foreign, plants, virtual
from tests.certificates import DAY_US, NOW_US, make
from tests.hall import Hall, command, played
from tests.plants import machine, signal
from tests.test_lost_lines import Plc, Room, judged_again, lines_of

PRESS = machine("press", signal("oil", connection="plc", point=""), signal("level", connection="plc", point=""))
RESTS: Any = SimpleNamespace(certified=True)


def ends(days: float, name: str = "edge-agent", whose: str = "own") -> Expiry:
    return Expiry(name, whose, NOW_US + round(days * DAY_US))


def why(*expiries: Expiry) -> int:
    return certificates.told(expiries, NOW_US, "en").why


# --- what is told ---


@pytest.mark.parametrize(
    ("days", "step"),
    [
        (3650, 0), (60.001, 0), (60, 1), (30.001, 1), (30, 2), (7.001, 2), (7, 3), (0.001, 3), (0, 4), (-0.001, 4), (-900, 4),
    ],
)  # fmt: skip
def test_a_certificate_is_told_60_30_and_7_days_before_its_end_and_at_its_end(days: float, step: int) -> None:
    assert certificates.step(ends(days).until_us, NOW_US) == step
    for place, whose in enumerate(WHOSE):
        assert why(ends(days, whose=whose)) == (ENDING * step + place if step else 0)


def test_the_first_to_end_decides_and_all_that_end_soon_are_named() -> None:
    told = certificates.told([ends(3650), ends(59.5, "Plant CA", "issuer"), ends(6.2, "PLC 7", "server")], NOW_US, "en")
    assert told.why == ENDING * 3 + WHOSE.index("server")
    assert told.words == (
        "the server's certificate PLC 7 expires on 2026-12-04, in 6 days; "
        "the issuer's certificate Plant CA expires on 2027-01-27, in 59 days"
    )


def test_what_is_not_known_is_neither_well_nor_ending() -> None:
    unmet = Expiry("", "server", 0)
    assert why(ends(3650), unmet) == Quality.HOLD, "the server may end sooner"
    assert why(ends(20), unmet) == ENDING * 2
    assert why() == Quality.HOLD


@pytest.mark.parametrize(
    ("language", "days", "words"),
    [
        ("en", 1.5, "the user's certificate Ada expires on 2026-11-30, in 1 day"),
        ("en", 0.5, "the user's certificate Ada expires on 2026-11-29, within a day"),
        ("en", -8, "the user's certificate Ada expired on 2026-11-20"),
        ("nl", 29, "het certificaat van de gebruiker Ada verloopt op 2026-12-27, over 29 dagen"),
        ("nl", 1, "het certificaat van de gebruiker Ada verloopt op 2026-11-29, over 1 dag"),
        ("nl", 0.1, "het certificaat van de gebruiker Ada verloopt op 2026-11-28, binnen een dag"),
        ("nl", -8, "het certificaat van de gebruiker Ada is verlopen op 2026-11-20"),
        ("de", 29, "das Zertifikat des Benutzers Ada läuft am 2026-12-27 ab, in 29 Tagen"),
        ("de", 1, "das Zertifikat des Benutzers Ada läuft am 2026-11-29 ab, in 1 Tag"),
        ("de", 0.1, "das Zertifikat des Benutzers Ada läuft am 2026-11-28 ab, in weniger als einem Tag"),
        ("de", -8, "das Zertifikat des Benutzers Ada ist am 2026-11-20 abgelaufen"),
    ],
)
def test_it_is_said_in_the_language_of_the_site(language: str, days: float, words: str) -> None:
    assert certificates.told([ends(days, "Ada", "user")], NOW_US, language).words == words


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_step_has_a_text_in_every_language_also_without_words(language: str) -> None:
    for event in (EventKind.RAISED, EventKind.ESCALATED, EventKind.DEESCALATED, EventKind.CLEARED):
        text = texts.in_words(language, event, texts.CERTIFICATES[language].format("plc"), "")
        assert text.partition("plc: ")[2]
    for whose in WHOSE:
        last = Expiry("A", whose, 253_402_300_799_000_000)
        assert "9999-12-31" in certificates.told([last], NOW_US, language).words, "the end of those that have none"
    assert "edge-agent trust" in texts.RENEW[language]


# --- the life of the warning ---


class Keeper(Plc):
    """A device whose line rests on these certificates."""

    def __init__(self) -> None:
        super().__init__()
        self.its: list[Expiry] = []
        self.fault: Exception | None = None

    def expiries(self, _connection: Any) -> Sequence[Expiry]:
        if self.fault is not None:
            raise self.fault
        return self.its


class Cellar(Room):
    """A room that looks after certificates as the agent does, at the wall clock's time."""

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(TICK_EVERY_S)
            lines = [replace(each.line, settings=RESTS) for each in self.pollers]
            self.told_of = certificates.looked(lines, self.clock.wall_us(), "en")
            self.pipeline.lines(
                {name: loss for each in self.pollers for name, loss in each.lost().items()} | self.told_of
            )
            self.pipeline.turn()

    def health(self) -> dict[str, Any]:
        lines = {each.line.name: each.look() for each in self.pollers}
        store = {"messages": 0, "oldest": None}
        pipeline = self.pipeline
        found = Meter(SystemClock()).health(
            lines, {}, store, pipeline.plant, pipeline.state, lambda *_: "", self.told_of
        )
        its: dict[str, Any] = found["connections"]["plc"]
        return its


def cellar(keeper: Keeper, clock: virtual.VirtualClock) -> Cellar:
    return Cellar(plants.plant(PRESS, certified={"plc"}), lines_of({"plc": keeper}, PRESS), clock)


def steps(events: Sequence[Event]) -> list[tuple[str, str, str, int]]:
    return [(str(e.event), str(e.severity), str(e.state), e.count) for e in events]


def test_a_certificate_is_told_of_from_60_days_before_its_end_until_it_is_renewed() -> None:
    """61 → 59 → 29 → 6 → -1 days → renewed; a person saw the first of them."""

    async def story() -> None:
        clock, keeper = virtual.VirtualClock(NOW_US), Keeper()
        room = cellar(keeper, clock)
        second = 0

        async def on(days: float) -> list[Event]:
            """What is said once our certificate has so many days left; the wall clock went on meanwhile."""
            nonlocal second
            before, second = len(room.events), second + 60
            keeper.its = [Expiry("PLC 7", "server", NOW_US + 3650 * DAY_US), Expiry("edge-agent", "own", end_us)]
            clock.step_wall(round(end_us - days * DAY_US) - clock.wall_us())
            await room.until(second)
            return room.events[before:]

        end_us = NOW_US + 100 * DAY_US
        assert await on(61) == []
        assert room.health()["ne107"] == "ok"
        (first,) = await on(59.5)
        assert steps([first]) == [("raised", "warning", "unacknowledged", 1)]
        assert (first.machine, first.signal, first.kind) == ("agent", "plc.certificate", "health")
        assert (first.value, first.limit, first.unit, first.suppressed) == (None, None, "", None)
        assert first.message == (
            "Certificates of plc: our own certificate edge-agent expires on 2027-03-08, in 59 days"
        )
        assert first.advice == texts.RENEW["en"]
        health = room.health()
        assert health["ne107"] == "maintenance_required"
        assert health["certificate"] == "our own certificate edge-agent expires on 2027-03-08, in 59 days"
        assert "units" not in health
        room.pipeline.acknowledge(first.id, "Ada", "ordered")
        assert room.pipeline.active()[0]["state"] == "acknowledged"
        (second_,) = await on(29.5)
        assert steps([second_]) == [("raised", "warning", "unacknowledged", 2)], "told once more, under the same id"
        assert "in 29 days" in second_.message
        (third,) = await on(6.5)
        assert steps([third]) == [("escalated", "alarm", "unacknowledged", 2)]
        (fourth,) = await on(-1)
        assert steps([fourth]) == [("raised", "alarm", "unacknowledged", 3)]
        assert "edge-agent expired on 2027-03-08" in fourth.message
        assert {each.id for each in (first, second_, third, fourth)} == {first.id}
        assert {each.since for each in (first, second_, third, fourth)} == {first.since}
        assert [e["signal"] for e in room.retained["agent/active"]["active"]] == ["plc.certificate"]
        end_us += 3652 * DAY_US
        (last,) = await on(3650)
        assert steps([last]) == [("cleared", "alarm", "normal", 3)]
        assert last.message == (
            "Certificates of plc: in order again; the next to expire is the server's certificate PLC 7, on 2036-11-25"
        )
        assert room.retained["agent/active"]["active"] == []
        assert room.health()["ne107"] == "ok"
        await room.end()
        judged_again(room)
        words = [f.frame.words for f in room.store.of(JudgedFrame) if f.frame.machine == "agent"]
        assert sum(bool(row[0][1]) for row in words if row) == 6, (
            "words are kept where something changed, not for weeks"
        )

    virtual.run(story())


def test_the_warning_names_the_next_certificate_when_the_first_was_renewed() -> None:
    async def story() -> None:
        room = cellar(keeper := Keeper(), virtual.VirtualClock(NOW_US))
        keeper.its = [ends(20), ends(25, "PLC 7", "server")]
        await room.until(20)
        keeper.its = [ends(3652), ends(25, "PLC 7", "server")]
        await room.until(40)
        assert steps(room.events) == [
            ("raised", "warning", "unacknowledged", 1), ("raised", "warning", "unacknowledged", 2),
        ]  # fmt: skip
        assert "the server's certificate PLC 7 expires" in room.pipeline.active()[0]["message"]  # type: ignore[operator]
        assert "edge-agent expires" not in room.pipeline.active()[0]["message"]  # type: ignore[operator]
        await room.end()

    virtual.run(story())


def test_what_is_not_known_raises_nothing_and_clears_nothing() -> None:
    """A clock that nobody has set, a file that cannot be read, a server that was not met since the start."""

    async def story() -> None:
        clock, keeper = virtual.VirtualClock(1_000_000_000_000_000), Keeper()
        room = cellar(keeper, clock)
        keeper.its = [ends(20)]
        await room.until(30)
        assert room.events == [], "2001: nothing is known of 2026"
        clock.step_wall(NOW_US - clock.wall_us())
        await room.until(60)
        assert steps(room.events) == [("raised", "warning", "unacknowledged", 1)]
        clock.step_wall(-9_000 * DAY_US)
        await room.until(75)
        clock.step_wall(9_000 * DAY_US)
        await room.until(80)
        assert len(room.events) == 1, "a clock that lost its battery clears nothing"
        keeper.fault = OSError("input/output error")
        await room.until(90)
        assert room.health()["ne107"] == "maintenance_required", "it is said, in the health topic"
        assert room.health()["certificate"] == "when the certificates end is not known: input/output error"
        keeper.fault, keeper.its = KeyError("a bug"), []
        await room.until(100)
        keeper.fault, keeper.its = None, [ends(3652), Expiry("", "server", 0)]
        await room.until(120)
        assert len(room.events) == 1
        assert "certificate" not in room.health()
        keeper.its = [ends(3652), ends(300, "PLC 7", "server")]
        await room.until(150)
        assert steps(room.events[1:]) == [("cleared", "warning", "normal", 1)]
        await room.end()

    virtual.run(story())


def test_a_line_that_is_lost_and_a_certificate_that_ends_are_two_warnings() -> None:
    async def story() -> None:
        room = cellar(keeper := Keeper(), virtual.VirtualClock(NOW_US))
        keeper.its = [ends(-1)]
        keeper.down = DeviceSilent("our certificate expired")
        await room.until(40)
        assert sorted((e.signal, e.suppressed) for e in room.events) == [("plc", 2), ("plc.certificate", None)]
        assert room.health()["ne107"] == "failure", "the worse of both"
        assert "expired" in room.health()["certificate"]
        keeper.down = None
        await room.until(80)
        assert {e["signal"] for e in room.pipeline.active()} == {"plc.certificate"}
        await room.end()
        judged_again(room)

    virtual.run(story())


def test_a_standing_certificate_costs_no_row_a_second() -> None:
    async def story() -> None:
        room = cellar(keeper := Keeper(), virtual.VirtualClock(NOW_US))
        keeper.its = [ends(20)]
        await room.until(600)
        rows = [f for f in room.store.of(JudgedFrame) if f.frame.machine == "agent"]
        assert 55 <= len(rows) <= 65, "one in ten seconds"
        await room.end()

    virtual.run(story())


# --- the plant, and the snapshot of the release before ---


def test_only_a_line_that_rests_on_certificates_has_a_column_for_them_after_all_lines() -> None:
    two = machine("m", signal("a", connection="plc", point="unit_1"), signal("b", connection="plc", point="unit_2"),
                  signal("c", connection="open", point=""))  # fmt: skip
    plant = plants.plant(two, certified={"plc"}, language="de")
    assert plant.own is not None
    names = [(each.name, each.certificate, each.behind) for each in plant.own.signals]
    assert names == [
        ("open", False, 1), ("plc", False, 2), ("plc.unit_1", False, 1), ("plc.unit_2", False, 1),
        ("plc.certificate", True, 0), ("disk", False, 0), ("clock", False, 0),
    ]  # fmt: skip
    assert [each.title for each in plant.own.signals[4:]] == [
        "Zertifikate von plc",
        "Datenträger",
        "Uhr dieses Rechners",
    ]
    before = without_certificates(plant)
    same = without_host(plants.plant(two, language="de"))
    assert (before.columns, before.own and before.own.layout) == (same.columns, same.own and same.own.layout)
    assert without_certificates(same) is same
    assert without_host(same) is same


def test_a_snapshot_of_a_release_that_knew_no_certificates_is_taken_over() -> None:
    def lost(plant: Plant) -> judge.JudgeState:
        state = judge.start(plant)
        state.detectors[0].raised[plant.columns - 1] = True
        state.held[:2] = (1.5, 2.5)
        return state

    old = without_host(plants.plant(PRESS))
    blob = snapshot.dump(old, lost(old))
    plant = plants.plant(PRESS, certified={"plc"})
    state = snapshot.load_any(plant, blob)
    assert state.held[:2].tolist() == [1.5, 2.5]
    assert state.detectors[0].raised.tolist() == [False, False, True, False, False, False]
    assert state.detectors[0].told.tolist() == [0] * 6


def test_a_snapshot_of_a_release_that_did_not_look_after_its_host_is_taken_over() -> None:
    plant = plants.plant(PRESS, certified={"plc"})
    old = without_host(plant)
    state = judge.start(old)
    state.detectors[0].raised[2:4] = True
    found = snapshot.load_any(plant, snapshot.dump(old, state))
    assert found.detectors[0].raised.tolist() == [False, False, True, True, False, False]


def test_a_snapshot_whose_health_knew_no_steps_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    plant = plants.plant(PRESS)
    state = judge.start(plant)
    state.detectors[0].raised[2] = True
    whole = snapshot._arrays
    monkeypatch.setattr(
        snapshot, "_arrays", lambda *its: ((name, array) for name, array in whole(*its) if name != "health.told")
    )
    blob = snapshot.dump(plant, state)
    monkeypatch.undo()
    assert snapshot.load(plant, blob).detectors[0].raised.tolist() == [False, False, True, False, False]


# --- with files ---


def line(connection: Connection, driver: Any) -> Line:
    return Line("cell", driver, connection, (), {}, (), ())


def secured(folder: Path, **keys: Any) -> Connection:
    keys = {"url": "opc.tcp://192.0.2.7", "security": "Basic256Sha256/Sign", **keys}
    return Connection.model_validate(keys).at_home(str(folder / "pki"))


def look(connection: Connection, driver: Any, now_us: int = NOW_US) -> Loss:
    return certificates.looked([line(connection, driver)], now_us, "en").get("cell.certificate", Loss(-1))


def test_what_lies_in_the_data_dir_is_looked_at(tmp_path: Path) -> None:
    driver, its = opcua.OpcUa(), secured(tmp_path)
    assert isinstance(driver, Certified)
    assert look(its, driver).why == Quality.HOLD, "our own is made with the first connection"
    own = opcua_pki.own_certificate(tmp_path / "pki", "press-4", NOW_US)
    assert look(its, driver).why == Quality.HOLD, "the server was not met yet"
    late_us = own.about.valid_until_us - 10 * DAY_US
    found = look(its, driver, late_us)
    assert (found.why, found.words) == (
        ENDING * 2, "our own certificate edge-agent expires on 2036-11-27, in 10 days",
    )  # fmt: skip
    own_file = tmp_path / "pki" / "own" / "certificate.der"
    own_file.write_bytes(make("renewed", valid_days=(-1, 5000)).der)
    assert look(its, driver, late_us).why == Quality.HOLD
    own_file.write_bytes(b"broken")
    assert look(its, driver, late_us).why == Quality.HOLD, (
        "a file that cannot be read is told by the line, which is lost"
    )


def test_certificates_in_secrets_are_looked_at_and_a_line_without_any_has_nothing(tmp_path: Path) -> None:
    driver, user, own = opcua.OpcUa(), make("Ada", valid_days=(-1, 40)), make("Cell", valid_days=(-1, 6))
    user_pem, own_pem = ((each.pem + each.key_pem).decode() for each in (user, own))
    bare = secured(tmp_path, security="none", user_certificate={"secret": "u"})
    assert look(bare, driver).why == Quality.HOLD, "the secret is not put in"
    with_user = bare.model_copy(update={"user_certificate": user_pem})
    assert look(with_user, driver).words == "the user's certificate Ada expires on 2027-01-07, in 40 days"
    both = secured(tmp_path).model_copy(update={"certificate": own_pem, "user_certificate": user_pem})
    assert look(both, driver).why == ENDING * 3
    assert look(both, driver).words.startswith("our own certificate Cell expires on 2026-12-04, in 6 days; the user's")
    assert look(secured(tmp_path, security="none"), driver).why == -1


# --- what a person sees ---


def test_status_says_which_certificate_ends() -> None:
    words = "our own certificate edge-agent expires on 2027-03-08, in 59 days"
    connection = {"state": "connected", "ne107": "maintenance_required", "beats": 3, "certificate": words}
    shown = "\n".join(status.status_lines({"state": "online", "connections": {"plc": connection}}))
    assert words in shown


def lay_own(folder: Path, days: float) -> None:
    """Our own certificate in a data directory, which ends in so many days by the real clock."""
    since_now = (SystemClock().wall_us() - NOW_US) / DAY_US
    made = make(
        "edge-agent", uri="urn:press-4:edge-agent", hosts=("press-4",), valid_days=(since_now - 300, since_now + days)
    )
    own = folder / "pki" / "own"
    own.mkdir(parents=True, exist_ok=True)
    for name, data in (("certificate.der", made.der), ("key.pem", made.key_pem)):
        (own / name).write_bytes(data)
        (own / name).chmod(0o600)


@pytest.mark.timeout(120)
@played
async def test_the_running_agent_tells_of_it_until_it_is_renewed_and_reloaded(here: Hall) -> None:
    made = make("Cell 3", uri=foreign.SERVER_URI, hosts=("127.0.0.1",), valid_days=(-3650, 10_000))
    files = {"certificate": here.data_dir.parent / "server.pem", "key": here.data_dir.parent / "key.pem"}
    files["certificate"].write_bytes(made.pem)
    files["key"].write_bytes(made.key_pem)
    settings: Any = {"policies": ["None", "Basic256Sha256"], "modes": ["None", "Sign"], "accept_all": True, **files}
    async with foreign.server(**settings) as server:
        cell = {"driver": "opcua", "url": server.url, "security": "Basic256Sha256/Sign", "timeout": "2s"}
        signals = {"double": {"address": f"nsu={foreign.URI};s=Types.Double"}}
        config = here.plain({}, {"press": {"connection": "cell", "every": "200ms", "signals": signals}})
        here.write({**config, "connections": {"cell": cell}})
        lay_own(here.data_dir, 20.5)
        await here.start()
        raised = await here.event("agent", "raised", signal="cell.certificate")
        assert (raised["kind"], raised["severity"]) == ("health", "warning")
        assert "suppressed" not in raised
        assert raised["message"].startswith("Certificates of cell: our own certificate edge-agent expires on ")
        assert raised["message"].endswith(", in 20 days")
        await here.event("agent", "raised", signal="cell")
        (rejected,) = [each.stem for each in (here.data_dir / "pki" / "rejected").glob("*.der")]
        assert (await command("trust", str(here.agent.config), rejected))[0] == 0
        needs = await here.hears(
            "health", lambda body: body["connections"]["cell"].get("ne107") == "maintenance_required", within_s=60
        )
        assert needs["connections"]["cell"]["state"] == "connected"
        assert needs["connections"]["cell"]["certificate"] in raised["message"]
        _, out, _ = await command("status", str(here.agent.config))
        assert out.count("our own certificate edge-agent expires on") == 2, "at the connection, and as a warning"
        assert [each["signal"] for each in here.active("agent")] == ["cell.certificate"]
        lay_own(here.data_dir, 3000)
        assert (await command("reload", str(here.agent.config)))[0] == 0
        cleared = await here.event("agent", "cleared", signal="cell.certificate")
        assert cleared["id"] == raised["id"]
        assert "in order again" in cleared["message"]
