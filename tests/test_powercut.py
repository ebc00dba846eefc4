"""The power is cut under the store: what was told as committed is there. The long form: `make soak`."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.root
@pytest.mark.timeout(200)
def test_a_power_cut_costs_nothing_that_was_committed_and_a_store_that_does_not_sync_is_found_out() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.powercut", "--cuts", "6", "--control", "4", "--seed", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert "0 lost, 0 given out with other bytes, 0 stores counted anew" in done.stdout
