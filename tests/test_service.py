"""systemd's notices and watchdog, signals, and the log."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edge_agent import service
from edge_agent.contract import SECOND_US
from tests.conftest import StandingClock, eventually


@contextlib.contextmanager
def systemd(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        listening.setblocking(False)
        yield listening


@pytest.mark.parametrize("abstract", [False, True])
def test_each_notice_reaches_systemd_at_a_path_and_at_an_abstract_name(tmp_path: Path, abstract: bool) -> None:
    address = f"@edge-agent-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with systemd(address) as host:
        notifier = service.Notifier.from_environment({"NOTIFY_SOCKET": address})
        notifier.ready("120 signals\nWATCHDOG=1")
        notifier.reloading(77)
        notifier.stopping()
        notifier.status("buffering")
        notifier.watchdog()
        assert [host.recv(4096).decode() for _ in range(5)] == [
            "READY=1\nSTATUS=120 signals WATCHDOG=1",
            "RELOADING=1\nMONOTONIC_USEC=77",
            "STOPPING=1\nSTATUS=stopping",
            "STATUS=buffering",
            "WATCHDOG=1",
        ]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_without_systemd_a_notice_is_nothing(environment: dict[str, str]) -> None:
    service.Notifier.from_environment(environment).ready()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_ours_only_when_it_names_us(environment: dict[str, str], expected: int | None) -> None:
    assert service.watchdog_us(environment, 42) == expected


def test_a_stroke_needs_a_new_turn_of_every_worker(clock: StandingClock) -> None:
    beats = service.Heartbeats(clock)
    poller, store = beats.worker("poller"), beats.worker("store")
    assert beats.stroke()
    clock.move(SECOND_US)
    poller()
    assert beats.late() == ("store",)
    assert not beats.stroke()
    store()
    assert beats.stroke()
    clock.move(1)
    assert not beats.stroke()


def test_a_worker_is_late_only_after_the_time_that_its_turn_may_take(clock: StandingClock) -> None:
    beats = service.Heartbeats(clock)
    beats.worker("hourly", turn_us=3600 * SECOND_US)
    assert beats.stroke()
    clock.move(3600 * SECOND_US)
    assert beats.stroke()
    clock.move(1)
    assert beats.late() == ("hourly",)


def test_a_worker_that_left_is_not_waited_for(clock: StandingClock) -> None:
    beats = service.Heartbeats(clock)
    with beats.worker("poller plc-1") as beat:
        beats.stroke()
        clock.move(SECOND_US)
        assert beats.late() == ("poller plc-1",)
    beat()
    assert beats.late() == ()


def test_a_stepped_wall_clock_makes_nobody_late(clock: StandingClock) -> None:
    beats = service.Heartbeats(clock)
    beats.worker("store", turn_us=SECOND_US)
    beats.stroke()
    clock.step_wall(3600 * SECOND_US)
    assert beats.stroke()


def test_strokes_end_while_one_worker_hangs_and_it_is_said_once(tmp_path: Path, clock: StandingClock) -> None:
    stream = io.StringIO()
    service.configure_logging("info", clock, form="json", stream=stream)

    def events() -> list[tuple[str, str]]:
        return [(line["event"], line.get("worker", "")) for line in map(json.loads, stream.getvalue().splitlines())]

    async def scene(host: socket.socket) -> None:
        beats = service.Heartbeats(clock)
        well, hanging = beats.worker("well"), beats.worker("hanging")
        strokes = 0

        def stroked() -> bool:
            nonlocal strokes
            with contextlib.suppress(BlockingIOError):
                while host.recv(64) == b"WATCHDOG=1":
                    strokes += 1
            clock.move(1)
            well()
            return strokes >= 3

        def both_turn() -> bool:
            hanging()
            return stroked()

        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(
                service.keep_watchdog(service.Notifier(str(tmp_path / "notify")), beats, SECOND_US // 50)
            )
            await eventually(both_turn)
            stroked()
            strokes = -1  # at most one stroke was on its way
            await eventually(lambda: stroked() or ("worker_stuck", "hanging") in events())
            assert strokes <= 0
            await eventually(both_turn)
            keeper.cancel()

    with systemd(str(tmp_path / "notify")) as host:
        asyncio.run(scene(host))
    assert events() == [("worker_stuck", "hanging"), ("worker_back", "hanging")]


def test_sigterm_and_sigint_stop_sighup_reloads_and_all_are_given_back() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    async def scene() -> None:
        reloads = 0

        def reload() -> None:
            nonlocal reloads
            reloads += 1

        for number in (signal.SIGTERM, signal.SIGINT):
            stop = asyncio.Event()
            with service.stop_on_signals(stop):
                os.kill(os.getpid(), signal.SIGHUP)  # too early: ignored
                with service.on_hangup(reload):
                    await asyncio.sleep(0)
                    os.kill(os.getpid(), signal.SIGHUP)
                    await eventually(lambda: reloads > 0)
                os.kill(os.getpid(), signal.SIGHUP)  # too late: ignored
                os.kill(os.getpid(), number)
                async with asyncio.timeout(5):
                    await stop.wait()

    asyncio.run(scene())
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


# ------------------------------------------------------------------------------------------------------------- log


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_ten_lines_a_second_of_one_cause_pass_and_the_rest_is_counted(clock: StandingClock) -> None:
    stream = io.StringIO()
    service.configure_logging("info", clock, form="json", stream=stream)
    log = structlog.get_logger()
    for _ in range(10_000):
        log.warning("device_lost", device="plc-1")
    log.warning("disk_full")
    assert [line["event"] for line in lines(stream)] == ["device_lost"] * 10 + ["disk_full"]
    clock.move(SECOND_US)
    log.warning("device_lost", device="plc-1")
    assert lines(stream)[-1]["suppressed"] == 9_990
    service.flush_suppressed()
    assert lines(stream)[-1]["event"] == "device_lost"


def test_what_was_held_back_of_a_cause_gone_quiet_is_told_all_the_same(clock: StandingClock) -> None:
    stream = io.StringIO()
    service.configure_logging("info", clock, form="json", stream=stream)
    for _ in range(12):
        structlog.get_logger().warning("device_lost")
    clock.move(SECOND_US)
    service.flush_suppressed()
    service.flush_suppressed()
    told = lines(stream)[10:]
    assert [(line["event"], line["cause"], line["count"]) for line in told] == [
        ("log_lines_suppressed", "device_lost", 2)
    ]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_reaches_the_log(clock: StandingClock, form: service.Form) -> None:
    stream = io.StringIO()
    service.configure_logging("debug", clock, form=form, stream=stream)
    service.hide("canary-hidden")
    log = structlog.get_logger()
    log.info("broker_connecting", url="mqtts://hall2:canary-url@broker:8883", password="canary-key")
    log.info("settings", tls={"private_key": "canary-nested", "names": ["x", "is canary-hidden here"]})
    log.info("said", text=("opc.tcp://u:canary-url@10.0.0.1",), error=ValueError("canary-hidden"))
    try:
        raise ValueError("login canary-hidden refused")
    except ValueError:
        log.exception("login_failed")
    text = stream.getvalue()
    assert "canary" not in text
    assert "mqtts://hall2:***@broker:8883" in text
    assert "login *** refused" in text
    assert "Traceback" in text


def test_a_line_for_machines_begins_with_time_level_and_event(clock: StandingClock) -> None:
    stream = io.StringIO()
    service.configure_logging("info", clock, form="auto", stream=stream)
    structlog.get_logger().info("started", signals=120, folder=Path("/x"))
    structlog.get_logger().debug("not_wanted")
    (line,) = lines(stream)
    assert list(line)[:3] == ["ts", "level", "event"]
    assert (line["signals"], line["folder"]) == (120, "/x")


def test_under_journald_a_line_carries_its_priority(clock: StandingClock, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        service.configure_logging("info", clock, stream=stream, environment=journal)
        structlog.get_logger().warning("broker_lost")
    assert (tmp_path / "log").read_text().startswith('<4>{"ts":')


def test_a_librarys_warning_comes_along_and_its_chatter_does_not(clock: StandingClock) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        service.configure_logging("info", clock, form="json", stream=stream)
        logging.getLogger("vendor").warning("half a frame of %d bytes", 7)
        logging.getLogger("vendor").info("chatter")
    finally:
        root.handlers[:], root.level = before
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["text"]) == ("library", "vendor", "half a frame of 7 bytes")
