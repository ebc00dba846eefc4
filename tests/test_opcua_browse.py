"""`edge-agent browse`: what it finds in a foreign server, how it is told, and what a server may do to it."""

import asyncio
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import yaml
from asyncua import ua

from drivers import opcua_found, opcua_signals
from drivers.foreign_text import cells, fitted, padded, printable, quoted
from drivers.opcua_browse import SCANNER, OpcUaBrowse
from drivers.opcua_found import Found, Node, NodeKind, Variable
from drivers.opcua_settings import Connection
from drivers.opcua_types import Kind
from drivers.opcua_units import UNECE, UNITS, code_of, unit_of
from drivers.opcua_walk import Walk
from edge_agent import config
from edge_agent.__main__ import main
from edge_agent.cli.browse import OPTIONS
from edge_agent.cli.scan import Progress, picture
from edge_agent.clock import SystemClock
from edge_agent.contract import DeviceRefused, DeviceSilent, ScanStep, Watches
from tests import foreign
from tests.conftest import ROOT, free_port
from tests.spaces import Space

Json = dict[str, Any]


def begin(url: str, /, **options: Any) -> OpcUaBrowse:
    steps: list[ScanStep] = []
    browse = SCANNER.scan(url, SCANNER.Options.model_validate(options), SystemClock(), steps.append)
    assert isinstance(browse, OpcUaBrowse)
    return browse


async def browsed(plant: foreign.Plant, /, **options: Any) -> OpcUaBrowse:
    browse = begin(plant.url, **options)
    await browse.run()
    return browse


def nodes(browse: OpcUaBrowse) -> dict[str, Json]:
    """What was found, by path."""
    return {"/".join(each["path"]): each for each in browse.facts()["nodes"]}


def text(browse: OpcUaBrowse, columns: int = 0) -> str:
    return "\n".join(line for _, line in (browse.lines_within(columns) if columns else browse.lines()))


def run(test: Callable[[foreign.Plant], Any], **settings: Any) -> None:
    async def whole() -> None:
        async with foreign.server(**settings) as plant:
            await test(plant)

    asyncio.run(whole())


# ------------------------------------------------------------------------------------------------------- what it finds


def test_the_tree_names_values_types_and_addresses_are_found() -> None:
    async def test(plant: foreign.Plant) -> None:
        found = nodes(await browsed(plant))
        assert found["Plant/Types/Double"]["value"] == 2.5
        assert found["Plant/Types/Double"]["type"] == "Double"
        assert found["Plant/Types/Double"]["address"] == f"nsu={foreign.URI};s=Types.Double"
        assert found["Plant/Types/UInt64Big"]["value"] == 2**53 + 1
        assert found["Plant/Types/Boolean"]["value"] is True
        assert found["Plant/Types/LocalizedText"]["value"] == "warm"
        assert found["Plant/Types/NaN"]["value"] is None
        assert found["Plant/Types/Duration"]["type"] == "Duration"
        assert found["Plant/Types/DateTime"]["value"] == "2026-01-02T03:04:05+00:00"
        assert found["Plant/Ids/g"]["address"] == f"nsu={foreign.URI};g=72962b91-fa75-4ae6-8d28-b404dc7daf63"
        assert found["Plant/Line2/Pump/Drive/Current"]["value"] == pytest.approx(4.2)
        assert found["Plant/Line1/Pump"]["kind"] == "object"
        assert found["Plant/History/Level"]["history"]
        assert not found["Plant/Access/WriteOnly"]["readable"]
        assert not any(path.startswith("Server") for path in found)

    run(test)


def test_units_ranges_enumerations_arrays_and_structures_are_understood() -> None:
    async def test(plant: foreign.Plant) -> None:
        found = nodes(await browsed(plant))
        analog = {name: found[f"Plant/Analog/{name}"] for name in ("Temperature", "Vibration", "Speed", "Odd")}
        assert [each["unit"] for each in analog.values()] == ["°C", "mm/s", "1/min", "widgets"]
        assert [each["range"] for each in analog.values()] == [[0, 150], [0, 50], None, None]
        assert "Plant/Analog/Temperature/EURange" not in found, "it is told at its variable"
        assert found["Plant/Typed/Mode"]["names"] == {"0": "Off", "1": "Manual", "2": "Automatic"}
        assert found["Plant/Typed/Drive"]["members"] == {"Speed": 1480, "Torque": 12.5, "Errors": 3, "Running": True}
        spectrum = found["Plant/Arrays/Spectrum"]
        assert (spectrum["array"], len(spectrum["value"])) == ([256], 8), "only its first elements are read"
        assert found["Plant/Arrays/Empty"]["value"] == []

    run(test)


def test_a_status_is_told_beside_the_value_or_in_its_place() -> None:
    async def test(plant: foreign.Plant) -> None:
        await plant.set("Types.Double", 7.0, status="BadSensorFailure")
        await plant.set("Types.Float", 0.25, status="UncertainLastUsableValue")
        browse = await browsed(plant, under="Plant/Types")
        told = text(browse)
        assert "BadSensorFailure" in told
        assert "0.25 (Uncertain" in told
        assert "1 bad now" in told
        config_text = browse.config()
        assert "# Double: {" in config_text
        assert "bad now: BadSensorFailure" in config_text
        assert "\n      Float: {" in config_text

    run(test)


def test_a_search_finds_in_path_name_and_description_and_shows_where_it_hangs() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = await browsed(plant, search="DRIVE/cur")
        assert [path for path, each in nodes(browse).items() if each["kind"] == "variable"] == [
            "Plant/Line1/Pump/Drive/Current",
            "Plant/Line2/Pump/Drive/Current",
        ]
        assert "Line1" in text(browse)
        assert "Temperature" not in browse.config()
        nothing = await browsed(plant, search="no such thing")
        assert "No variable has 'no such thing'" in text(nothing)
        assert nothing.config() == ""

    run(test)


@pytest.mark.parametrize("under", ["Plant/Line1", "plant/line1/", f"nsu={foreign.URI};s=Line1", "ns=3;s=Line1"])
def test_a_part_is_named_by_its_path_or_its_node_id(under: str) -> None:
    async def test(plant: foreign.Plant) -> None:
        paths = list(nodes(await browsed(plant, under=under)))
        assert [path.rpartition("Line1/")[2] for path in paths] == [
            "Pump", "Pump/Temperature", "Pump/Drive", "Pump/Drive/Current",
        ]  # fmt: skip

    run(test)


def test_a_part_that_is_not_there_is_refused_with_what_there_is() -> None:
    async def test(plant: foreign.Plant) -> None:
        for under, words in (
            ("Plant/Lin", "Plant has no 'Lin'; it has Types, "),
            ("nsu=urn:nobody;s=x", "no such namespace; it has "),
            ("ns=3;s=nix", "no such node"),
        ):
            with pytest.raises(DeviceRefused, match=words):
                await browsed(plant, under=under)

    run(test)


def test_a_variable_alone_may_be_the_start() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = await browsed(plant, under="Plant/Analog/Temperature")
        assert "71.5 °C" in text(browse)
        assert 'unit: "°C", valid: {low: 0, high: 150}' in browse.config()

    run(test)


def test_depth_and_number_of_nodes_are_bounded_and_told() -> None:
    async def test(plant: foreign.Plant) -> None:
        shallow = await browsed(plant, depth="2")
        assert "Plant/Counter" in nodes(shallow)
        assert "Plant/Types/Double" not in nodes(shallow)
        assert "goes on (--depth" in text(shallow)
        cut = await browsed(plant, max="40")
        assert len(nodes(cut)) == 40
        assert "cut after 40 nodes" in text(cut)
        assert cut.facts()["cut"]
        assert "(there are more)" in cut.config()

    run(test, mass=100)


def test_the_standard_is_left_away_until_it_is_asked_for() -> None:
    async def test(plant: foreign.Plant) -> None:
        found = nodes(await browsed(plant, all=True, search="BuildDate"))
        assert "Server/ServerStatus/BuildInfo/BuildDate" in found

    run(test)


# ---------------------------------------------------------------------------------------------------- limits, refusals


def test_the_limits_of_the_server_are_kept_and_everything_is_found() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = await browsed(plant, under="Plant/Mass")
        assert len(nodes(browse)) == 300
        assert {each["value"] for each in nodes(browse).values()} == set(range(300))

    limits = {"maxNodesPerBrowse": 3, "maxNodesPerRead": 7, "maxBrowseContinuationPoints": 1}
    run(test, mass=300, limits=limits)


def test_a_limit_that_the_server_does_not_tell_is_found_out() -> None:
    async def test(plant: foreign.Plant) -> None:
        await plant.enforce("maxNodesPerBrowse", 2)
        await plant.enforce("maxNodesPerRead", 9)
        assert len(nodes(await browsed(plant, under="Plant/Mass"))) == 50

    run(test, mass=50)


def test_a_server_that_refuses_to_be_browsed_is_told_with_its_reason() -> None:
    async def test(plant: foreign.Plant) -> None:
        await plant.refuse("Browse", "BadServiceUnsupported")
        with pytest.raises(DeviceRefused, match="BadServiceUnsupported"):
            await browsed(plant)

    run(test)


def test_a_server_that_dies_on_the_way_leaves_what_was_found() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = begin(plant.url, timeout="1s")
        seen = asyncio.Event()
        browse.tell = lambda step: seen.set() if step.done > 30 else None
        task = asyncio.ensure_future(browse.run())
        await seen.wait()
        await plant.mute()
        with pytest.raises(DeviceSilent):
            await task
        await plant.mute(False)
        assert "did not come to its end" in text(browse)
        assert len(nodes(browse)) > 30
        assert browse.answered

    run(test, mass=2000)


def test_what_was_found_stays_when_it_is_ended() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = begin(plant.url)
        seen = asyncio.Event()
        browse.tell = lambda step: seen.set() if step.done > 300 else None
        task = asyncio.ensure_future(browse.run())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not browse.facts()["whole"]
        assert "did not come to its end" in text(browse)
        assert "not all" in browse.config()

    run(test, mass=2000)


def test_nobody_listens() -> None:
    browse = begin(f"opc.tcp://127.0.0.1:{free_port()}")
    with pytest.raises(DeviceSilent):
        asyncio.run(browse.run())
    assert not browse.answered


def test_a_user_with_a_password_file_is_let_in_and_the_password_stays_out_of_what_is_written(tmp_path: Path) -> None:
    async def test(plant: foreign.Plant) -> None:
        with pytest.raises(DeviceRefused, match="anonymous"):
            await browsed(plant)
        (tmp_path / "password").write_text("s3cret\n")
        browse = await browsed(
            plant, user="agent", password_file=tmp_path / "password", data_dir=tmp_path, under="Plant"
        )
        written = browse.config()
        assert "s3cret" not in written + text(browse) + json.dumps(browse.facts())
        assert 'user: "agent"' in written
        assert "password: {secret: opcua_password}" in written
        file = tmp_path / "first.yaml"
        file.write_text(written)
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "opcua_password").touch(0o600)
        (tmp_path / "secrets" / "opcua_password").write_text("s3cret\n")
        code, out, err = await cli("read", file, "Counter")
        assert (code, "good" in out) == (0, True), out + err

    run(test, anonymous=False, users={"agent": "s3cret"})


# --------------------------------------------------------------------------------------------- a server that misbehaves


@asynccontextmanager
async def walked(below: Any, values: Any = (), **how: Any) -> AsyncIterator[tuple[Found, Space]]:
    """The walk over a space by hand, from `top`."""
    limits = {key: how.pop(key) for key in ("nodes_max", "depth_max") if key in how}
    space = Space(ua, below, dict.fromkeys(values, 1.0) if not isinstance(values, dict) else values, **how)
    found = Found(space.url)
    walk = Walk(space, found, lambda _count: None, **limits)  # type: ignore[arg-type]
    await walk.begin()
    walk.start_at(ua.NodeId("top", 1), "top")
    await walk.go()
    yield found, space


def paths(found: Found) -> list[str]:
    return ["/".join(found.path(place)) for place, _ in found.tree() if place]


def by_hand(test: Callable[[Found, Space], None], below: Any, values: Any = (), **how: Any) -> None:
    async def whole() -> None:
        async with walked(below, values, **how) as (found, space):
            test(found, space)

    asyncio.run(whole())


def test_loops_and_several_parents_are_entered_once() -> None:
    def test(found: Found, space: Space) -> None:
        assert paths(found) == ["a", "a/v", "b"], "the first way that was found is the path"
        assert sorted(node for asked in space.browsed for node in asked) == ["a", "b", "top", "v"]

    by_hand(test, {"top": ["a", "b", "top"], "a": ["top", "v", "a"], "b": ["v", "a"], "v": ["v", "top"]}, ["v"])


def test_long_lists_come_in_parts_and_no_answer_is_large() -> None:
    def test(found: Found, space: Space) -> None:
        assert len(paths(found)) == 1000
        assert space.largest <= 200
        assert not space.points

    names = [f"v{at}" for at in range(1000)]
    by_hand(test, {"top": names}, names, part=7)


def test_a_list_that_is_cut_is_given_back() -> None:
    def test(found: Found, space: Space) -> None:
        assert len(paths(found)) == 10
        assert found.cut
        assert not space.points, "the server need not keep its place"

    names = [f"v{at}" for at in range(1000)]
    by_hand(test, {"top": names}, names, nodes_max=10)


def test_a_server_without_places_for_half_read_lists_is_asked_one_by_one() -> None:
    folders = [f"f{at}" for at in range(6)]
    below = {"top": folders} | {each: [f"{each}.{at}" for at in range(40)] for each in folders}
    values = [leaf for each in folders for leaf in below[each]]

    def test(found: Found, space: Space) -> None:
        assert len(paths(found)) == 6 + 240
        assert not any(node.note for node in found.nodes)

    by_hand(test, below, values, places=1)
    by_hand(test, below, values, places=0)


def test_what_is_refused_of_one_node_is_a_note_there() -> None:
    def test(found: Found, space: Space) -> None:
        assert paths(found) == ["a", "b", "b/v"]
        assert [node.note for node in found.nodes] == ["", "BadUserAccessDenied", "", ""]
        assert any("not told: BadUserAccessDenied" in line for _, line in opcua_found.lines(found))

    by_hand(test, {"top": ["a", "b"], "a": ["w"], "b": ["v"]}, ["v", "w"], denied=frozenset({"a"}))


def test_a_list_that_repeats_itself_for_ever_is_ended() -> None:
    def test(found: Found, space: Space) -> None:
        assert paths(found) == ["a", "b", "b/v"]
        assert "repeats itself" in found.nodes[0].note
        assert not space.points

    by_hand(test, {"top": ["a", "b", "c"], "b": ["v"]}, ["v"], endless=frozenset({"top"}), part=2)


def test_limits_that_nobody_told_are_halved_down_to() -> None:
    names = [f"v{at}" for at in range(50)]

    def test(found: Found, space: Space) -> None:
        assert len(paths(found)) == 50
        assert all(node.variable is None or node.variable.value == 1.0 for node in found.nodes)

    by_hand(test, {"top": names}, names, browse_max=1, read_max=1)


def test_one_value_that_cannot_be_decoded_harms_no_other() -> None:
    names = [f"v{at}" for at in range(30)]

    def test(found: Found, space: Space) -> None:
        held = {node.name: node.variable for node in found.nodes if node.variable is not None}
        assert [name for name, about in held.items() if about.status] == ["v7"]
        assert all(about.value == 1.0 for name, about in held.items() if name != "v7")

    by_hand(test, {"top": names}, names, garbled=frozenset({"v7"}))


def test_the_event_loop_is_never_kept_for_long() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = begin(plant.url)
        loop = asyncio.get_running_loop()
        longest = 0.0

        async def beat() -> None:
            nonlocal longest
            while True:
                before = loop.time()
                await asyncio.sleep(0.001)
                longest = max(longest, loop.time() - before)

        beating = asyncio.ensure_future(beat())
        await browse.run()
        beating.cancel()
        assert len(nodes(browse)) > 1000
        assert longest < 1.0, "generous here; `python -m bench` measures it"

    run(test, mass=1000)


# --------------------------------------------------------------------------------------------------- for people


def test_the_tree_fits_every_terminal() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = await browsed(plant)
        assert isinstance(browse, Watches)
        for columns in (20, 40, 80, 120, 200):
            assert max(cells(line) for _, line in browse.lines_within(columns)) <= columns
        assert "and 10 more: --under Plant/Mass" in text(browse)
        assert "71.5 °C" in text(browse, 80)
        assert "history" in text(browse, 80)
        assert "emperature\n" in text(browse, 80), "a NodeId is told apart by its end"
        assert "ns=3 is urn:foreign:plant" in text(browse)
        assert all(style in ("head", "good", "weak", "warn", "") for style, _ in browse.lines())

    run(test, mass=50)


def test_what_a_server_says_turns_no_terminal_round_and_breaks_no_file(tmp_path: Path) -> None:
    evil = "Evil\x1b[2J\u202e\r\n  injected: {x: 1}\x9b31m # {"

    async def test(plant: foreign.Plant) -> None:
        await plant.add_variable(f"Late.{evil}", "Double", 4.5)
        await plant.add_variable("Late.Text", "String", evil)
        browse = await browsed(plant, under="Plant/Late")
        for told in (text(browse), text(browse, 80), browse.config()):
            assert all(char.isprintable() for char in told.replace("\n", ""))
            assert "\n  injected" not in told
        file = tmp_path / "evil.yaml"
        file.write_text(browse.config(), encoding="utf-8")
        signals = config.load(file).config.machines["Plant-Late"].signals
        (signal,) = signals.values()
        assert signal.point is not None
        (node,) = (each for each in nodes(browse).values() if each["type"] == "Double")
        assert signal.point.address == node["address"]  # type: ignore[attr-defined]
        code, out, err = await cli("read", file)
        assert (code, "4.5" in out) == (0, True), out + err

    run(test)


def test_a_deep_tree_stays_readable() -> None:
    path = tuple(f"level{depth}" for depth in range(60))
    told = [line for _, line in opcua_found.lines(found_of((path, double())), 80)]
    assert any("level58" in line for line in told)
    assert any("level59" in line and "1" in line and line.startswith("…") for line in told)


def test_values_are_read_again_and_the_time_is_told_until_the_watch_ends() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = await browsed(plant, under="Plant/Types/Double")
        pictures: list[str] = []
        again = asyncio.Event()

        def changed() -> None:
            pictures.append(text(browse, 120))
            again.set()

        watching = asyncio.ensure_future(browse.watch(changed))
        await again.wait()
        assert "2.5" in pictures[-1]
        assert "values of " in pictures[-1]
        await plant.set("Types.Double", 99.25)
        while "99.25" not in pictures[-1]:
            again.clear()
            await again.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    run(test)


def test_nodes_are_counted_on_a_terminal_and_the_count_never_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(plant: foreign.Plant) -> None:
        steps: list[ScanStep] = []
        browse = begin(plant.url)
        browse.tell = steps.append
        await browse.run()
        counts = [step.done for step in steps]
        assert counts == sorted(counts)
        assert counts[-1] == len(browse.found.nodes)
        progress = Progress(terminal=True, now_us=lambda: 0)
        progress.tell(steps[-1])
        progress.clear()

    run(test)
    assert capsys.readouterr().err.startswith("\rnodes found 6")


def test_a_picture_is_drawn_over_the_last_one_and_counts_what_does_not_fit() -> None:
    lines = [("head", "top"), *(("", f"row {at}") for at in range(50))]
    whole = picture(lines[:5], 24, paint=False)
    assert whole == "\x1b[Htop\x1b[K\nrow 0\x1b[K\nrow 1\x1b[K\nrow 2\x1b[K\nrow 3\x1b[K\n\x1b[J"
    cut = picture(lines, 10, paint=True)
    assert cut.count("\n") == 9
    assert "… and 43 more lines" in cut
    assert "\x1b[2J" not in cut, "a screen that is wiped first flickers"


# ------------------------------------------------------------------------------------------------------- configuration


async def cli(*words: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_agent", *map(str, words),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


def test_the_configuration_it_writes_is_accepted_and_reads_what_the_server_holds(tmp_path: Path) -> None:
    async def test(plant: foreign.Plant) -> None:
        file = tmp_path / "first.yaml"
        file.write_text((await browsed(plant)).config(), encoding="utf-8")
        machines = config.load(file).config.machines
        temperature = machines["Plant-Analog"].signals["Temperature"]
        assert (temperature.unit, temperature.valid_low, temperature.valid_high) == ("°C", 0, 150)
        assert machines["Plant-Typed"].signals["Mode"].map == {0: "Off", 1: "Manual", 2: "Automatic"}
        assert list(machines["Plant-Types"].attributes) == ["String", "NumberText", "LocalizedText"]
        code, out, err = await cli("read", file, "--json")
        assert code == 0, out + err
        rows = {f"{row['machine']}.{row['signal']}": row for row in map(json.loads, out.splitlines())}
        assert rows["Plant-Types.Double"]["value"] == 2.5
        assert rows["Plant-Line2-Pump-Drive.Current"]["value"] == pytest.approx(4.2, rel=1e-6)
        assert rows["Plant-Ids.g"]["value"] == 12
        assert all(row["quality"] == "good" for row in rows.values())
        assert not {"Plant-Types.NaN", "Plant-Types.UInt64Big", "Plant-Access.WriteOnly"} & rows.keys()

    run(test, mass=3)


def test_what_can_be_no_signal_is_a_comment_with_its_reason() -> None:
    async def test(plant: foreign.Plant) -> None:
        written = (await browsed(plant)).config()
        for words in (
            "# UInt64Big: {",
            "beyond 2^53",
            "NaN now",
            "a DateTime, no number and no text",
            "this user may not read it",
            "index: 0}  # Double[8]",
            'member: "Torque"}  # 12.5',
        ):
            assert words in written

    run(test)


def test_elements_and_members_can_be_read_when_the_mark_before_them_is_taken_away(tmp_path: Path) -> None:
    async def test(plant: foreign.Plant) -> None:
        written = (await browsed(plant, under="Plant", search="Typed/Drive")).config()
        assert written == "", "nothing of it can be a signal as it is"
        written = (await browsed(plant, under="Plant/Typed")).config()
        (tmp_path / "typed.yaml").write_text(written.replace("      # Drive_", "      Drive_"), encoding="utf-8")
        code, out, err = await cli("read", tmp_path / "typed.yaml", "--json")
        assert code == 0, out + err
        assert {row["signal"]: row["value"] for row in map(json.loads, out.splitlines())} == {
            "Mode": 2, "Drive_Speed": 1480, "Drive_Torque": 12.5, "Drive_Errors": 3, "Drive_Running": 1,
        }  # fmt: skip
        written = (await browsed(plant, under="Plant")).config().replace("  #     # Temp", "      Temp")
        (tmp_path / "arrays.yaml").write_text(written.replace("\n  # ", "\n  "), encoding="utf-8")
        code, out, err = await cli("read", tmp_path / "arrays.yaml", "Temperatures", "--json")
        assert (code, json.loads(out)["value"]) == (0, 20), out + err

    run(test)


def found_of(*variables: tuple[tuple[str, ...], Variable], folders: bool = True) -> Found:
    """What a walk would have found: variables by their path."""
    found = Found("opc.tcp://127.0.0.1:4840", whole=True)
    found.nodes.append(Node("i=85", "i=85", "Objects", "Objects", -1, 0, NodeKind.OBJECT))
    places: dict[tuple[str, ...], int] = {(): 0}
    for path, about in variables:
        for depth in range(1, len(path) + 1):
            part = path[:depth]
            if part in places and depth < len(path):
                continue
            is_variable = depth == len(path)
            kind = NodeKind.VARIABLE if is_variable else NodeKind.OBJECT
            name = f"nsu=urn:x;s={len(found.nodes)}"
            found.nodes.append(Node(name, name, part[-1], part[-1], places[part[:-1]], depth, kind, folder=folders))
            found.nodes[places[part[:-1]]].below.append(len(found.nodes) - 1)
            found.nodes[-1].variable = about if is_variable else None
            places[part] = len(found.nodes) - 1
    return found


def double(value: Any = 1.0, **more: Any) -> Variable:
    return Variable(Kind("Double", 11), is_read=True, value=value, wire=11, **more)


def written_for(found: Found) -> str:
    settings = Connection.model_validate({"url": "opc.tcp://127.0.0.1:4840"})
    return opcua_signals.config(found, settings, Path("data"), "opcua_password")


def test_names_are_words_and_a_second_one_is_numbered(tmp_path: Path) -> None:
    names = ["P-PDG", "P.PDG", "3rd", "Öl", "温度", "yes", "a" * 80, "a" * 80 + "b"]
    found = found_of(
        *((("Health", name), double()) for name in names), (("health", "x"), double()), (("42", "x"), double())
    )
    (tmp_path / "names.yaml").write_text(written_for(found), encoding="utf-8")
    machines = config.load(tmp_path / "names.yaml").config.machines
    assert list(machines) == ["Health", "health_2", "42"]
    assert list(machines["Health"].signals) == [
        "P_PDG", "P_PDG_2", "_3rd", "Ol", "signal", "yes", "a" * 64, "a" * 62 + "_2",
    ]  # fmt: skip
    assert machines["Health"].signals["Ol"].title == "Öl"


def test_a_folder_is_a_machine_of_its_own_and_an_object_keeps_what_is_in_it() -> None:
    paths = [("Hall", "Press", "Speed"), ("Hall", "Press", "Oil", "Temperature"), ("Hall", "Level")]
    by_folder = yaml.safe_load(written_for(found_of(*((path, double()) for path in paths))))["machines"]
    assert {name: list(each["signals"]) for name, each in by_folder.items()} == {
        "Hall-Press": ["Speed"], "Hall-Press-Oil": ["Temperature"], "Hall": ["Level"],
    }  # fmt: skip
    by_object = yaml.safe_load(written_for(found_of(*((path, double()) for path in paths[:2]), folders=False)))[
        "machines"
    ]
    assert {name: list(each["signals"]) for name, each in by_object.items()} == {
        "Hall-Press": ["Speed", "Oil_Temperature"]
    }


def test_the_first_element_of_a_matrix_is_at_its_row_and_column() -> None:
    matrix = double([[1.0, 2.0], [3.0, 4.0]], rank=2, dimensions=(2, 2))
    assert 'index: "0,0"}' in written_for(found_of((("A", "flow"), matrix), (("A", "x"), double())))


def test_a_range_that_the_value_leaves_or_that_is_none_is_left_out() -> None:
    found = found_of(
        (("A", "within"), double(5.0, range=(0.0, 10.0))),
        (("A", "outside"), double(50.0, range=(0.0, 10.0))),
        (("A", "none"), double(5.0, range=(0.0, 0.0))),
        (("A", "better"), double(50.0, range=(0.0, 10.0), instrument=(-1e16, 1e300))),
    )
    signals = yaml.safe_load(written_for(found))["machines"]["A"]["signals"]
    assert signals["within"]["valid"] == {"low": 0, "high": 10}
    assert "valid" not in signals["outside"]
    assert "valid" not in signals["none"]
    assert signals["better"]["valid"] == {"low": -1e16, "high": 1e300}
    assert "outside the server's range 0 … 10" in written_for(found)


def test_what_was_not_read_is_never_shown_as_a_value() -> None:
    found = found_of((("A", "x"), Variable(Kind("Double", 11))), (("A", "y"), double()))
    assert "not read yet" in "\n".join(line for _, line in opcua_found.lines(found))
    assert "its value was not read" in written_for(found)
    assert list(yaml.safe_load(written_for(found))["machines"]["A"]["signals"]) == ["y"]


def test_security_and_user_go_into_the_configuration_with_the_folder_of_certificates(tmp_path: Path) -> None:
    settings = Connection.model_validate({"url": "opc.tcp://h:1", "security": "Basic256Sha256/Sign", "user": 'o"x'})
    plain = yaml.safe_load(opcua_signals.config(found_of((("A", "x"), double())), settings, tmp_path, "p"))
    assert plain["connections"]["server"]["security"] == "Basic256Sha256/Sign"
    assert plain["connections"]["server"]["user"] == 'o"x'
    assert plain["agent"]["data_dir"] == str(tmp_path)


# ---------------------------------------------------------------------------------------------------------- small parts


def test_units_are_known_by_their_code_else_by_the_words_of_the_server() -> None:
    assert code_of(4408652) == "CEL"
    assert (code_of(-1), code_of(0), code_of(2**40)) == ("", "", "")
    assert unit_of(UNECE, 4408652, "degree Celsius") == "°C"
    assert unit_of(UNECE, int.from_bytes(b"L2"), "x") == "l/min"
    assert unit_of(UNECE, int.from_bytes(b"XYZ"), " furlong ") == "furlong"
    assert unit_of("urn:vendor", 4408652, "K\x1b[0m") == "K\\x1b[0m"
    assert unit_of(None, -1, None) == ""
    assert all(code.isascii() and len(code) <= 3 and unit.isprintable() for code, unit in UNITS.items())


def test_foreign_texts_are_made_fit_for_a_line() -> None:
    for told in ("plain", "a\nb", "\x1b[31m", "\u202eabc", "\x85\u2028", "😀", "\ufeff", 'a"\\b', "\t"):
        assert printable(told).isprintable()
        assert quoted(told).isprintable()
        assert yaml.safe_load(quoted(told)) == told
    assert yaml.safe_load(quoted("\ud800")) == "\ufffd"
    assert printable("abcdef", 4) == "abc…"
    assert (cells("温度"), cells("o\u0308"), cells("abc")) == (4, 1, 3)
    assert (fitted("温度計", 5), padded("ab", 4), padded("ab", 4, right=True)) == ("温度…", "ab  ", "  ab")


def test_it_tells_which_securities_the_server_offers() -> None:
    async def test(plant: foreign.Plant) -> None:
        browse = await browsed(plant, under="Plant/Line1")
        assert browse.facts()["security"] == ["Basic256Sha256/Sign", "none"]
        assert browse.lines()[1] == ("weak", "  security: Basic256Sha256/Sign, none")

    run(test, policies=["None", "Basic256Sha256"], modes=["None", "Sign"])


WRONG_USE = {
    "": "URL",
    "http://x": "is no OPC UA address",
    "opc.tcp://u:p@x": "do not stand in the url",
    "opc.tcp://x --depth 0": "--depth: '0' is no number of levels",
    "opc.tcp://x --max 1e9": "--max: '1e9' is no number of nodes",
    "opc.tcp://x --security Basic256/Sign": "--security: security policy Basic256 is broken",
    "opc.tcp://x --timeout 5": "--timeout: ",
    "opc.tcp://x --password-file p": "--password-file needs --user",
    "opc.tcp://x --watch": "--watch needs a terminal",
    "opc.tcp://x --password p": "unrecognized arguments: --password p",
}


@pytest.mark.parametrize("words", WRONG_USE)
def test_wrong_words_are_refused_with_what_is_allowed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["browse", *words.split()])
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert WRONG_USE[words] in told.err


def test_the_help_names_the_options_of_the_kind() -> None:
    fields = SCANNER.Options.model_fields
    assert [(name, words) for name, _, words in OPTIONS] == [(name, each.description) for name, each in fields.items()]
    assert [name for name, metavar, _ in OPTIONS if metavar is None] == [
        name for name, each in fields.items() if each.annotation is bool
    ]


def test_scan_and_browse_do_the_same() -> None:
    async def test(plant: foreign.Plant) -> None:
        both = [
            await cli(*words, plant.url, "--under", "Plant/Line1", "--yaml")
            for words in (["browse"], ["scan", "opcua"])
        ]
        assert both[0][0] == 0, both[0][2]
        assert both[0][1] == both[1][1]
        assert (await cli("browse", plant.url, "--under", "nix"))[0] == 3

    run(test)


def test_a_terminal_is_watched_until_ctrl_c() -> None:
    async def test(plant: foreign.Plant) -> None:
        ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        words = ("browse", plant.url, "--under", "Plant/Analog", "--watch")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_agent", *words, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE
        )
        os.close(theirs)
        out = await asyncio.to_thread(drawn_until, ours, b"Temperature  71.5")
        await plant.set("Analog.Temperature", 88.5)
        out += await asyncio.to_thread(drawn_until, ours, b"Temperature  88.5")
        process.send_signal(signal.SIGINT)
        out += await asyncio.to_thread(drawn_until, ours, None)
        _, err = await process.communicate()
        assert (process.returncode, err.count(b"Traceback")) == (0, 0)
        os.close(ours)
        assert out.count(b"\x1b[?1049h") == out.count(b"\x1b[?1049l") == 1
        assert out.rpartition(b"\x1b[?1049l")[2].count(b"88.5") == 1, "the last values stay"

    run(test)


def drawn_until(file: int, words: bytes | None) -> bytes:
    """What is drawn until these words; None: until the end."""
    out = b""
    while words is None or words not in out:
        assert select.select([file], [], [], 60)[0], out
        try:
            piece = os.read(file, 65536)
        except OSError:  # the other end is closed
            piece = b""
        if not piece:
            assert words is None, out
            return out
        out += piece
    return out
