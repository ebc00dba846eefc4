"""`edge-agent demo` as a newcomer runs it: a plant, a broker, the agent, a first warning, and nothing left behind."""

import asyncio
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import system
from tests.brokers import Consumer
from tests.conftest import ROOT, eventually

pytestmark = pytest.mark.timeout(150)


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as page:
        return bytes(page.read())


def family(pid: int) -> list[int]:
    """This process and everything that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def test_the_demo_warns_within_a_minute_and_ends_cleanly(tmp_path: Path) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_agent", "demo", "--json", "--port-web", "0", "--port-mqtt", "0",
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                where = json.loads(await process.stdout.readline())
            assert {"web", "mqtt", "config", "faults"} <= where.keys()
            assert b"<html" in await asyncio.to_thread(fetched, where["web"])
            async with Consumer(urlsplit(where["mqtt"]).port or 0) as consumer:
                await eventually(lambda: [h for h in consumer.heard if h.topic.endswith("/warnings")], 60)
                event = json.loads(next(h.payload for h in consumer.heard if h.topic.endswith("/warnings")))
                assert event["event"] == "raised"
            os.environ["XDG_RUNTIME_DIR"] = str(tmp_path)
            assert (await system.command("demo", "--fault", where["faults"][0]))[0] == 0
            status, _, words = await system.command("demo", "--fault", "no_such_fault")
            assert status == 2
            assert where["faults"][0] in words
            everybody = family(process.pid)
            assert len(everybody) > 3
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(5):
                assert await process.wait() == 0
            await eventually(lambda: not [pid for pid in everybody if Path(f"/proc/{pid}").exists()], 3)
            assert not Path(where["config"]).exists()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    before = os.environ.get("XDG_RUNTIME_DIR")
    try:
        asyncio.run(main())
    finally:
        if before is None:
            os.environ.pop("XDG_RUNTIME_DIR", None)
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
