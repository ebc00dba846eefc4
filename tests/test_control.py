"""The operator's door, and the commands that knock at it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_agent import control
from edge_agent.__main__ import main
from edge_agent.config import data_dir_of


async def _echo(request: dict[str, Any]) -> control.Answer:
    return {"heard": request}


def with_agent(data_dir: Path, handlers: Mapping[str, control.Handler], scene: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with control.open_control(data_dir, handlers):
            await scene()

    asyncio.run(run())


def test_a_request_is_answered_and_the_door_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scene() -> None:
        answer = await asyncio.to_thread(control.ask, tmp_path, {"command": "status", "of": "ünit"})
        assert answer == {"ok": True, "heard": {"command": "status", "of": "ünit"}}
        assert (tmp_path / control.SOCKET).stat().st_mode & 0o777 == 0o600

    with_agent(tmp_path, {"status": _echo}, scene)
    assert not (tmp_path / control.SOCKET).exists()


def test_a_path_longer_than_a_socket_address_works_in_the_data_directory_itself(tmp_path: Path) -> None:
    data_dir = tmp_path / ("deep" * 20) / ("deeper" * 15)

    async def scene() -> None:
        assert (await asyncio.to_thread(control.ask, data_dir, {"command": "status"}))["ok"]
        assert (data_dir / control.SOCKET).is_socket()

    with_agent(data_dir, {"status": _echo}, scene)


def test_a_second_agent_on_the_same_data_directory_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    async def scene() -> None:
        with pytest.raises(control.AlreadyRunning, match=rf"process {os.getpid()}\)"):
            async with control.open_control(tmp_path, {}):
                pass
        assert (await asyncio.to_thread(control.ask, tmp_path, {"command": "status"}))["ok"]

    with_agent(tmp_path, {"status": _echo}, scene)
    with control.hold(tmp_path):
        pass


def test_what_a_killed_agent_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    code = (
        "import os,sys,socket\nfrom pathlib import Path\nfrom edge_agent import control\n"
        "folder=Path(sys.argv[1])\nwith control.hold(folder), control._bound(folder): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / control.SOCKET).is_socket()
    with pytest.raises(control.NoAgent, match="no agent works on"):
        control.ask(tmp_path, {"command": "status"})

    async def scene() -> None:
        assert (await asyncio.to_thread(control.ask, tmp_path, {"command": "status"}))["ok"]

    with_agent(tmp_path, {"status": _echo}, scene)


def raw(data_dir: Path, request: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(str(data_dir / control.SOCKET))
        line.sendall(request)
        line.shutdown(socket.SHUT_WR)
        answer: dict[str, Any] = json.loads(line.makefile().readline())
        return answer


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"hello\n", "one JSON object a line"),
        (b"[1]\n", 'with a "command"'),
        (b'{"command": 7}\n', 'with a "command"'),
        (b'{"command": "explode"}\n', "unknown command 'explode'; known: broken, status"),
        (b'{"command": "status"}', "one line of at most"),
        (b"[" * 60_000 + b"\n", "one JSON object a line"),
        (b"x" * 200_000, "one line of at most"),
        (b'{"command": "broken"}\n', "broken failed inside the agent (ZeroDivisionError)"),
    ],
)
def test_a_bad_request_is_answered_in_words_and_hurts_nobody(tmp_path: Path, request_: bytes, words: str) -> None:
    async def broken(_: dict[str, Any]) -> control.Answer:
        return {"never": 1 // 0}

    async def scene() -> None:
        try:
            answer = await asyncio.to_thread(raw, tmp_path, request_)
            assert answer["ok"] is False
            assert words in answer["error"]
        except (BrokenPipeError, ConnectionResetError):
            assert len(request_) > control.REQUEST_BYTES_MAX  # refused before all of it was taken
        assert (await asyncio.to_thread(control.ask, tmp_path, {"command": "status"}))["ok"]

    with_agent(tmp_path, {"status": _echo, "broken": broken}, scene)


def test_an_asker_that_is_being_answered_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async def never(_: dict[str, Any]) -> control.Answer:
        reached.set()
        await asyncio.Event().wait()
        return {}

    async def run() -> None:
        async with control.open_control(tmp_path, {"status": never}):
            asker = asyncio.create_task(asyncio.to_thread(control.ask, tmp_path, {"command": "status"}))
            await reached.wait()
        with pytest.raises(ConnectionError, match="closed the line without an answer"):
            await asker

    reached = asyncio.Event()
    asyncio.run(run())


def test_an_agent_that_does_not_answer_in_time_is_no_answer(tmp_path: Path) -> None:
    async def never(_: dict[str, Any]) -> control.Answer:
        await asyncio.Event().wait()
        return {}

    async def scene() -> None:
        with pytest.raises(ConnectionError, match=r"no answer within 0\.1 s"):
            await asyncio.to_thread(control.ask, tmp_path, {"command": "status"}, 0.1)

    with_agent(tmp_path, {"status": never}, scene)


# -------------------------------------------------------------------------------------------------------- commands


def command(data_dir: Path, answer: control.Answer, *words: str) -> int:
    """The exit status of a command while an agent gives this answer to all that is asked."""
    result = -1

    async def handler(_: dict[str, Any]) -> control.Answer:
        return answer

    async def scene() -> None:
        nonlocal result
        result = await asyncio.to_thread(main, [*words, "--data-dir", str(data_dir)])

    with_agent(data_dir, {"status": handler, "reload": handler}, scene)
    return result


STATUS = {
    "state": "online",
    "since": "2026-11-23T15:00:00.000Z",
    "version": "0.1.0",
    "config": "0123456789ab",
    "connections": {"plc-1": {"state": "connected", "since": "2026-11-23T15:00:01.000Z", "timeouts": 3}},
    "buffer": {"messages": 17, "oldest": None},
    "warnings": [
        {"machine": "press-3", "signal": "oil", "kind": "high", "severity": "alarm", "state": "unacknowledged"},
    ],
    "errors": [{"file": "agent.yaml", "line": 3, "column": 7, "path": "agent.id", "text": "is empty"}],
}


def test_status_shows_what_the_agent_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, STATUS, "status") == 0
    shown = capsys.readouterr().out
    expected = (
        "online since 2026-11-23 15:00:00 UTC",
        "config 0123456789ab",
        "plc-1",
        "connected",
        "timeouts 3",
        "17 messages",
    )
    for words in (*expected, "press-3.oil", "agent.yaml:3:7: agent.id: is empty"):
        assert words in shown
    assert command(tmp_path, STATUS, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True} | STATUS


FAILING = {
    "timezone": "Europe/Amsterdam",
    "mqtt": {
        "state": "connected", "since": "2026-11-23T15:00:00.000Z", "url": "mqtt://broker", "version": "3.1.1",
        "delivery": "unverified", "in_flight": 0, "published": 7,
        "last_loss": {"ts": "2026-11-23T14:00:00.000Z", "reason": "no answer for 30 s"},
        "set_aside": [{"topic": "edge/press/gaps", "seq": 9, "reason": "too large", "since": "2026-11-23T15:00:00.000Z"}],
    },
    "buffer": {
        "messages": 1, "oldest": "2026-11-23T15:00:00.000Z", "state": "failing", "reason": "the disk is full",
        "history": {"state": "failing", "mb": 12.345, "oldest": "2026-11-01T00:00:00.000Z", "missing": 3, "reason": "it is read-only",
                    "export": {"state": "failing", "through": "2026-11-20", "reason": "no such bucket"}},
    },
    "clock": {"state": "stepped", "since": "2026-11-23T15:00:00.000Z", "steps": 2,
              "last_step": {"ts": "2026-11-23T15:00:00.000Z", "by_s": 3600.0}},
}  # fmt: skip


def test_status_says_what_fails_and_why_in_the_times_of_the_plant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, FAILING, "status") == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "edge-agent is running",
        "broker",
        "mqtt://broker connected since 2026-11-23 16:00:00, MQTT 3.1.1, delivery unverified",
        "the connection before was lost at 2026-11-23 15:00:00: no answer for 30 s",
        "published 7",
        "set aside since 2026-11-23 16:00:00: edge/press/gaps (seq 9): too large",
        "store",
        "journal FAILING 1 message waits for the broker, the oldest of 2026-11-23 16:00:00",
        "history FAILING 12.3 MB, readings since 2026-11-01 01:00:00, missing 3",
        "export FAILING written up to 2026-11-20",
        "reason: the disk is full",
        "reason: it is read-only",
        "reason: no such bucket",
        "clock",
        "stepped since 2026-11-23 16:00:00",
        "jumped by 3600.0 s at 2026-11-23 16:00:00, 2 in all",
    ]


def test_what_a_device_says_commands_no_terminal_in_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, {"connections": {"plc": {"state": "lost", "reason": "a\x1b[2J\nb"}}}, "status") == 0
    assert "reason a\\x1b[2J\\nb" in capsys.readouterr().out


def test_status_of_an_agent_that_says_little_is_shown_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, {"warnings": []}, "status") == 0
    assert capsys.readouterr().out == "edge-agent is running\nactive warnings: none\n"


def test_an_agent_whose_disk_had_no_room_for_its_socket_is_not_said_to_be_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with control.hold(tmp_path):
        assert main(["status", "--data-dir", str(tmp_path)]) == 3
    told = capsys.readouterr().err
    assert f"an agent works on {tmp_path}" in told
    assert "its disk is full or read-only" in told


def test_status_and_reload_without_an_agent_end_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--data-dir", str(tmp_path)]) == 3
    assert main(["reload", "--json", "--data-dir", str(tmp_path)]) == 3
    told = capsys.readouterr()
    assert f"no agent works on {tmp_path}" in told.err
    assert json.loads(told.out)["ok"] is False


def test_reload_tells_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, {"changed": ["press-3.oil: high 60 → 65"], "config": "ab"}, "reload") == 0
    assert capsys.readouterr().out == "configuration ab is in force\n  press-3.oil: high 60 → 65\n"
    assert command(tmp_path, {"changed": []}, "reload") == 0
    assert "nothing changed" in capsys.readouterr().out


def test_a_refused_reload_ends_with_2_and_shows_the_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, {"ok": False, "errors": STATUS["errors"]}, "reload") == 2
    told = capsys.readouterr().err
    assert told.startswith("agent.yaml:3:7: agent.id: is empty\n")
    assert "the running configuration stays: 1 error" in told


def test_a_configuration_that_does_not_exist_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agent: {id: a, data_dir: state}", "state"),
        ("agent: {id: a, data_dir: /var/x}", "/var/x"),
        ("agent: {id: a, data_dir: state}\nbroken: [", "state"),
        ("agent: {id: a}", "service"),
        ("", "service"),
        ("agent: [", "service"),
    ],
)
def test_the_data_directory_is_found_also_in_a_broken_file(tmp_path: Path, text: str, expected: str) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(text)
    assert data_dir_of(config, control.SOCKET, {"STATE_DIRECTORY": str(tmp_path / "service")}) == tmp_path / expected


def test_of_the_default_data_directories_the_one_with_an_agent_is_taken(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("agent: {id: a}")

    async def scene() -> None:
        assert data_dir_of(config, control.SOCKET, {"STATE_DIRECTORY": str(tmp_path / "service")}) == tmp_path / "data"

    with_agent(tmp_path / "data", {}, scene)
