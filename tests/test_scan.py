"""`edge-agent scan modbus` against devices over real sockets: what it finds, how politely, and what can be done with it."""

import asyncio
import json
import os
import pty
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drivers.modbus_scan import SCANNER, ModbusScan
from edge_agent.__main__ import main
from edge_agent.cli.scan import Progress, bar
from edge_agent.contract import DeviceSilent, ScanStep
from tests import virtual
from tests.conftest import ROOT, free_port
from tests.mapped import Mapped, MappedUnit, cells, laid, meter, press

run = partial(virtual.run, sockets=True)
AT_ONCE = 1e9
READ_ONLY = {1, 2, 3, 4, 0x2B}

Json = dict[str, Any]


def begin(url: str, steps: list[ScanStep] | None = None, /, **options: str) -> ModbusScan:
    scan = SCANNER.scan(
        url, SCANNER.Options.model_validate(options), virtual.VirtualClock(), ([] if steps is None else steps).append
    )
    assert isinstance(scan, ModbusScan)
    if "rate" not in options:
        scan._asker.rate = AT_ONCE  # every wait is a moment of real time, also on the virtual loop
    return scan


async def scanned(device: Mapped, **options: str) -> Json:
    """The facts of a whole scan of this device."""
    async with device.listening():
        scan = begin(device.url, [], **options)
        await scan.run()
        assert set(device.functions) <= READ_ONLY, "a scan only reads"
        return scan.facts()


def values(unit: Json) -> dict[str, tuple[str, float | str]]:
    return {each["address"]: (each["type"], each.get("value", each.get("text"))) for each in unit["values"]}


def tables(unit: Json) -> dict[str, list[list[int]]]:
    return {name: table["ranges"] for name, table in unit["tables"].items() if table["exists"]}


# ------------------------------------------------------------------------------------------------------- what it finds


def test_units_tables_limits_names_orders_and_values_are_found() -> None:
    device = Mapped({1: press(), 3: meter()}, absent=11)
    facts = run(scanned(device))
    assert facts["whole"]
    assert device.connections < 30
    assert (facts["asked_units"][0], facts["asked_units"][-1], len(facts["asked_units"])) == (0, 255, 249)
    first, third = facts["units"]
    assert (first["unit"], third["unit"]) == (1, 3)
    assert first["identification"] == {"0": "Example Works", "1": "PX-100", "2": "V2.1"}
    assert third["identification"] == {}
    assert tables(first) == {"holding": [[0, 9], [20, 28], [101, 142]], "input": [[0, 2]], "coil": [[0, 3]]}
    assert tables(third) == {"input": [[0, 7]]}
    assert (first["tables"]["holding"]["max_block"], first["tables"]["holding"]["limited"]) == (16, True)
    assert not first["tables"]["discrete"]["exists"]
    assert (first["order"]["word_order"], first["order"]["byte_order"]) == ("little", "big")
    assert (third["order"]["word_order"], third["order"]["byte_order"]) == ("big", "big")
    assert first["order"]["sure"] > 0.95
    found = values(first)
    types = {address: type_ for address, (type_, _) in found.items()}
    assert types["holding:0"] == types["holding:8"] == types["holding:141"] == "float32"
    assert found["holding:2"] == ("float32", 12.5)
    assert types["holding:4"] == "uint32"
    assert found["holding:20"] == ("text", "PX-100 PRESS")
    assert (types["holding:6"], types["holding:28"], types["input:0"]) == ("uint16", "uint16", "int16")
    assert [found[f"coil:{at}"] for at in range(4)] == [("bool", 1.0), ("bool", 0.0), ("bool", 1.0), ("bool", 1.0)]
    assert values(third)["input:4"] == ("float64", 98_765.4321)
    assert [run_["value"] for run_ in first["runs"]] == [0.0]


@pytest.mark.parametrize("order", ["ABCD", "CDAB", "BADC", "DCBA"])
def test_each_order_is_found_on_the_wire(order: str) -> None:
    numbers = (50.13, 12.5, 230.4, 0.25)
    parts = laid(*((2 * at, cells("f", number, order)) for at, number in enumerate(numbers)))
    facts = run(scanned(Mapped({1: MappedUnit({"holding": parts})}), units="1"))
    unit = facts["units"][0]
    letters = {
        ("big", "big"): "ABCD",
        ("little", "big"): "CDAB",
        ("big", "little"): "BADC",
        ("little", "little"): "DCBA",
    }
    assert letters[unit["order"]["word_order"], unit["order"]["byte_order"]] == order
    found = [value for type_, value in values(unit).values() if type_ == "float32"]
    assert found == pytest.approx(numbers, rel=1e-7)


def test_a_device_that_takes_any_unit_number_is_told_once() -> None:
    facts = run(scanned(Mapped({1: meter()}, any_unit=True)))
    assert facts["every_unit_alike"]
    assert [unit["unit"] for unit in facts["units"]] == [1]


def test_a_unit_that_only_refuses_is_there() -> None:
    facts = run(scanned(Mapped({5: MappedUnit({})}), units="4-6"))
    assert [unit["unit"] for unit in facts["units"]] == [5]
    assert facts["units"][0]["values"] == []


def test_a_busy_device_is_asked_again() -> None:
    facts = run(scanned(Mapped({1: replace(meter(), busy=4)}), units="1"))
    assert tables(facts["units"][0]) == {"input": [[0, 7]]}


def test_a_device_that_cuts_the_connection_now_and_then_is_scanned_to_the_end() -> None:
    device = Mapped({1: press()}, breaks_at=frozenset({3, 40, 90}))
    facts = run(scanned(device, units="1"))
    assert device.connections == 4
    assert tables(facts["units"][0])["holding"] == [[0, 9], [20, 28], [101, 142]]


def test_a_device_that_is_silent_instead_of_refusing_is_scanned_within_its_limit_of_silences() -> None:
    device = Mapped({1: replace(meter(), silent=True)})
    facts = run(scanned(device, units="1", tables="input", registers="0-40"))
    assert tables(facts["units"][0])["input"] == [[0, 7]]
    assert [each[1] for each in values(facts["units"][0]).values()][2] == 98_765.4321


def test_a_seam_between_two_reads_costs_a_block_and_no_value() -> None:
    unit = MappedUnit({"holding": laid(*((at, cells("f", 12.5 + at)) for at in range(0, 24, 2)))}, seams=frozenset({8}))
    facts = run(scanned(Mapped({1: unit}), units="1", tables="holding"))
    assert list(values(facts["units"][0]).values()) == [("float32", 12.5 + at) for at in range(0, 24, 2)]
    assert facts["units"][0]["tables"]["holding"]["ranges"] == [[0, 7], [8, 23]]


# ---------------------------------------------------------------------------------------------------------- politeness


def test_a_dead_unit_costs_two_short_timeouts_and_nothing_of_its_neighbours() -> None:
    device = Mapped({1: meter(), 9: meter()})
    facts = run(scanned(device, units="1-12"))
    assert [unit["unit"] for unit in facts["units"]] == [1, 9]
    dead = [number for number in range(2, 13) if number != 9]
    assert all(device.by_unit[number] <= 2 for number in dead)
    # The first silence over a network is waited for with patience, in case a slow gateway speaks for the unit.
    assert facts["seconds"] < 3 + len(dead) * 2 * 0.25 + device.requests * 0.1 + 6


def test_what_a_slow_gateway_says_of_one_unit_is_not_taken_for_the_next() -> None:
    device = Mapped({1: meter(), 7: meter()}, absent=11, after_s=1.4)
    facts = run(scanned(device, units="1-10"))
    assert [unit["unit"] for unit in facts["units"]] == [1, 7]
    assert all(device.by_unit[number] == 1 for number in (2, 3, 4, 5, 6, 8, 9, 10))


def test_units_of_a_serial_line_behind_a_converter_are_all_searched() -> None:
    device = Mapped({1: press(), 90: meter()}, rtu=True)
    facts = run(scanned(device))
    assert [unit["unit"] for unit in facts["units"]] == [1, 90]
    assert len(facts["asked_units"]) == 247
    assert max(device.by_unit[number] for number in range(2, 248) if number != 90) == 2


@pytest.mark.parametrize("rate", [5.0, 50.0])
def test_requests_keep_their_distance(rate: float) -> None:
    device = Mapped({1: meter()})
    run(scanned(device, units="1", rate=str(rate), samples="2"))
    spaces = [after - before for before, after in zip(device.at_s, device.at_s[1:], strict=False)]
    assert min(spaces) >= 0.99 / rate


def test_only_what_is_wished_is_asked() -> None:
    device = Mapped({1: press()})
    facts = run(scanned(device, units="1", tables="coil,input", registers="0-50", samples="1"))
    assert list(facts["units"][0]["tables"]) == ["coil", "input"]
    assert device.functions[2] == 0
    assert facts["units"][0]["samples"] == 1


def test_what_was_found_stays_when_the_scan_is_ended() -> None:
    async def test() -> None:
        device = Mapped({1: press(), 3: meter()}, absent=11)
        steps: list[ScanStep] = []
        async with device.listening():
            scan = begin(device.url, steps, units="1,3")
            task = asyncio.ensure_future(scan.run())
            while not any(step.news.startswith("unit 1: readable") for step in steps):
                await asyncio.wait([task], timeout=0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        facts = scan.facts()
        assert not facts["whole"]
        assert tables(facts["units"][0])["holding"] == [[0, 9], [20, 28], [101, 142]]
        assert values(facts["units"][0])["holding:2"] == ("float32", 12.5)
        assert "did not come to its end" in "\n".join(text for _, text in scan.lines())
        assert "holding:2" in scan.config()

    run(test())


def test_a_device_that_dies_on_the_way_is_told_and_not_waited_for_for_ever() -> None:
    facts = run(scanned(Mapped({1: press()}, gone_at=60), units="1"))
    unit = facts["units"][0]
    assert "stopped answering" in unit["note"]
    assert tables(unit)["holding"][0] == [0, 9]
    assert facts["requests"] < 100


def test_nobody_listens() -> None:
    async def test() -> None:
        scan = begin(f"tcp://127.0.0.1:{free_port()}")
        with pytest.raises(DeviceSilent, match="Connection refused"):
            await scan.run()
        assert not scan.answered

    run(test())


def test_nobody_answers() -> None:
    async def test() -> None:
        async with Mapped({}).listening() as device:
            scan = begin(device.url)
            await scan.run()
            assert not scan.answered
            text = "\n".join(line for _, line in scan.lines())
            assert "nobody answers" in text
            assert "--units" in text
            assert scan.config() == ""

    run(test())


def test_progress_never_goes_back_within_a_phase_and_ends_at_its_end() -> None:
    async def test() -> None:
        steps: list[ScanStep] = []
        async with Mapped({1: press(), 3: meter()}, absent=11).listening() as device:
            await begin(device.url, steps).run()
        for phase in ("units", "more units", "registers", "samples"):
            its = [step for step in steps if step.phase == phase]
            assert [step.done for step in its] == sorted(step.done for step in its)
            assert its[-1].done == its[-1].planned
        assert "requests" in " ".join(step.news for step in steps), "how many are planned is said"

    run(test())


def test_datagrams_are_scanned_too() -> None:
    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            answer = meter().answer(data[7:], 1) if data[6] == 4 else None
            if answer is not None:
                self.transport.sendto(data[:4] + struct.pack(">HB", len(answer) + 1, 4) + answer, addr)

    async def test() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        scan = begin(f"udp://127.0.0.1:{transport.get_extra_info('sockname')[1]}", units="3-5")
        await scan.run()
        transport.close()
        assert [unit["unit"] for unit in scan.facts()["units"]] == [4]
        assert values(scan.facts()["units"][0])["input:4"] == ("float64", 98_765.4321)

    run(test())


# ------------------------------------------------------------------------------------------------------- serial port


def test_a_serial_port_is_scanned() -> None:
    async def test() -> None:
        ours, theirs = pty.openpty()
        device, loop = Mapped({7: meter()}, rtu=True), asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ours), "rb", 0)
        )

        class Pipe:
            """The writing half, as `serve` uses it."""

            transport = None

            def write(self, data: bytes) -> None:
                os.write(ours, data)

            async def drain(self) -> None:
                pass

            def close(self) -> None:
                pass

        serving = asyncio.ensure_future(device.serve(reader, Pipe()))  # type: ignore[arg-type]
        scan = begin(f"rtu://{os.ttyname(theirs)}?baudrate=38400&parity=N", units="5-8")
        await scan.run()
        serving.cancel()
        transport.close()
        os.close(theirs)
        os.close(ours)
        facts = scan.facts()
        assert [unit["unit"] for unit in facts["units"]] == [7]
        assert values(facts["units"][0])["input:4"] == ("float64", 98_765.4321)

    run(test())


def single(number: float) -> float:
    """What a float32 keeps of it."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


# ------------------------------------------------------------------------------------------------------ command line

QUICK = ("--rate", "1000", "--every", "20ms", "--timeout", "300ms")


async def cli(*words: str | Path) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge_agent", *map(str, words),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


def test_the_configuration_it_prints_is_accepted_and_reads_what_the_device_holds(tmp_path: Path) -> None:
    async def test() -> None:
        config = tmp_path / "first.yaml"
        async with Mapped({1: press(), 3: meter()}, absent=11).listening() as device:
            code, out, err = await cli("scan", "modbus", device.url, "--units", "1-4", "--yaml", *QUICK)
            assert code == 0, err
            config.write_text(out, encoding="utf-8")
            code, _, err = await cli("check", config)
            assert code == 0, err
            before = device.requests
            code, out, err = await cli("read", config, "--json")
            now = range(before, device.requests + 1)
        assert code == 0, err
        rows = {row["signal"]: (row["machine"], row["value"]) for row in map(json.loads, out.splitlines())}
        assert rows["unit1_holding_2"] == ("unit-1", 12.5)
        assert rows["unit1_holding_0"][1] in {single(50.13 + 0.37 * (n % 5)) for n in now}
        assert rows["unit1_holding_4"][1] in {196_600 + 7 * n for n in now}
        assert rows["unit1_holding_8"][1] in {single(-3.021 - 0.013 * (n % 7)) for n in now}
        assert rows["unit1_holding_28"][1] in (2350, 2351, 2352)
        assert rows["unit1_coil_1"][1] == 0
        assert rows["unit3_input_0"] == ("unit-3", single(230.1))
        assert rows["unit3_input_4"][1] == 98_765.4321
        assert "PX-100 PRESS" in config.read_text(), "a text is told in a comment"

    asyncio.run(test())


def test_people_and_scripts_see_what_was_found() -> None:
    async def test() -> None:
        async with Mapped({1: press()}).listening() as device:
            code, out, err = await cli("scan", "modbus", device.url, "--units", "1", *QUICK)
            assert code == 0
            for words in (
                "1 unit answers",
                "Example Works PX-100",
                "0–9, 20–28, 101–142",
                "CDAB",
                "12.5",
                "PX-100 PRESS",
            ):
                assert words in out
            assert "\x1b" not in out + err
            assert "unit 1 answers" in err
            code, out, _ = await cli("scan", "modbus", device.url, "--units", "1", "--json", *QUICK)
            assert (code, json.loads(out)["units"][0]["unit"]) == (0, 1)

    asyncio.run(test())


WRONG_USE = {
    "": "edge-agent scan modbus tcp://",
    "modbus": "needs URL",
    "profibus x": "'profibus' cannot be scanned; there are: modbus",
    "modbus 192.0.2.1": "is no Modbus address",
    "modbus tcp://x --units 1-300": "--units: 1-300 is beyond 255",
    "modbus tcp://x --units 5-2": "write 2-5",
    "modbus tcp://x --units 1,": "'' is no unit",
    "modbus rtu:///dev/ttyX --units 250": "from 1 to 247",
    "modbus rtu:///dev/ttyX?parity=X": "parity=X is not one of N, E, O",
    "modbus tcp://x --registers a-b": "'a-b' is no register",
    "modbus tcp://x --registers 0-65536": "beyond 65535",
    "modbus tcp://x --registers 0-9,5-20": "overlap",
    "modbus tcp://x --tables holding,coils": "'coils' is no table",
    "modbus tcp://x --rate 0": "is no rate",
    "modbus tcp://x --samples 0": "is no number of samples",
    "modbus tcp://x --every 5": "is no duration",
    "modbus tcp://x --timeout 5ms": "out of range; allowed: 10ms to 15s",
    "modbus tcp://x --ca a.pem": "tls://",
}


@pytest.mark.parametrize("words", WRONG_USE)
def test_wrong_words_are_refused_with_what_is_allowed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert WRONG_USE[words] in told.err


def test_a_bar_is_drawn_on_a_terminal_and_gone_when_something_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    now_us = [0]
    progress = Progress(terminal=True, now_us=lambda: now_us[0])
    progress.tell(ScanStep("registers", 0, 200))
    now_us[0] = 10_000_000
    progress.tell(ScanStep("registers", 50, 200))
    drawn = capsys.readouterr().err
    assert "registers  ██████ " in drawn
    assert " 25%  50/200  0:30 left" in drawn
    progress.tell(ScanStep("registers", 200, 200, "unit 1: readable: holding 3"))
    told = capsys.readouterr().err
    assert told.startswith("\r\x1b[K" + "unit 1: readable: holding 3\n")
    assert "100%" in told
    progress.clear()
    assert capsys.readouterr().err == "\r\x1b[K"
    assert len(bar(ScanStep("samples", 1, 3), 5.0, 40)) < 40, "never wider than the terminal"


def test_exit_statuses_say_whether_somebody_answered() -> None:
    async def test() -> None:
        free = free_port()
        code, out, err = await cli("scan", "modbus", f"tcp://127.0.0.1:{free}")
        assert (code, out) == (3, "")
        assert f"127.0.0.1:{free}: Connection refused" in err
        async with Mapped({}).listening() as device:
            code, out, err = await cli("scan", "modbus", device.url, "--units", "1,2", "--yaml", *QUICK)
            assert (code, out) == (3, "")
            assert "nobody answers" in err
        async with Mapped({1: MappedUnit({})}).listening() as device:
            code, out, err = await cli("scan", "modbus", device.url, "--units", "1", "--yaml", *QUICK)
            assert (code, out) == (1, ""), "it is there, but there is nothing to print"
            code, out, err = await cli("scan", "modbus", device.url, "--units", "1", *QUICK)
            assert (code, "there is no such table" in out) == (0, True)

    asyncio.run(test())


def test_interrupted_by_hand_it_prints_what_was_found() -> None:
    async def test() -> None:
        async with Mapped({1: press()}).listening() as device:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_agent", "scan", "modbus", device.url, "--units", "1",
                "--rate", "300", "--samples", "1000", cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert process.stderr is not None
            while b"1000 samples" not in (line := await process.stderr.readline()):
                assert line
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert process.returncode == 130
        assert b"Traceback" not in err
        assert "did not come to its end" in out.decode()
        assert "12.5" in out.decode()

    asyncio.run(test())
