"""What every test may use: a clock that stands until it is moved, a condition that is awaited, free ports.

And what the whole run is held to: nothing but reads was sent to any device.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from tests.liar import ASKED

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("edge", deadline=None)
settings.load_profile("edge")  # a busy machine fails no test


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test needs root (namespaces, mounts, systemd): run `sudo make test`", pytrace=False)


class StandingClock:
    """A Clock that moves only when it is told to. Both clocks move together; `step_wall` steps the wall clock alone."""

    def __init__(self, wall_us: int = 1_795_000_000_000_000) -> None:
        self._monotonic_us = 1_000_000
        self._wall_us = wall_us

    def monotonic_us(self) -> int:
        return self._monotonic_us

    def wall_us(self) -> int:
        return self._wall_us

    def move(self, by_us: int) -> None:
        self._monotonic_us += by_us
        self._wall_us += by_us

    def step_wall(self, by_us: int) -> None:
        self._wall_us += by_us


async def eventually(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until the condition holds; fails after `within_s`."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"did not become true within {within_s} s"
        await asyncio.sleep(0.005)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session", autouse=True)
def _nothing_but_reads_was_ever_sent() -> Iterator[None]:
    """The agent reads only: peers note every function code that reaches them, and at the end of the run they are judged.

    1 to 4 read the tables, 43 the identification. Plain pymodbus, in the negative controls, reads too.
    """
    yield
    assert set(ASKED) <= {1, 2, 3, 4, 0x2B}, f"functions that were sent, and how often: {dict(ASKED)}"


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    """A test may configure the log; the next one finds it as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
