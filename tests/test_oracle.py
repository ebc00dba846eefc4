"""Received + gaps = due, with the agent as a black box and the devices as the ones who count. The long form: `make soak`."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SHORT = (
    "--devices",
    "4",
    "--signals",
    "10",
    "--every",
    "500ms",
    "--commit-every",
    "300ms",
    "--seconds",
    "1",
    "--seed",
    "5",
)


def oracle(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.oracle", *SHORT, *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    print(done.stdout)
    return done.returncode, done.stdout


@pytest.mark.root
@pytest.mark.timeout(300)
def test_under_every_fault_at_once_received_and_gaps_are_what_was_due() -> None:
    status, told = oracle("--pace", "0.4")
    assert status == 0, told
    for fault in (
        "agent_killed",
        "broker_killed",
        "line_half_open",
        "pubacks_lost",
        "disk_full",
        "clock_stepped",
        "devices_cut",
    ):
        assert fault in told


@pytest.mark.timeout(300)
def test_an_agent_that_forgets_before_the_broker_has_it_is_found_out() -> None:
    status, told = oracle("--seconds", "6", "--no-disk", "--only", "line_half_open", "--break", "publisher")
    assert status == 1
    assert "numbers are missing" in told
