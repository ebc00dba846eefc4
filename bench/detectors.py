"""What each detector costs for a reading, live and in replay, beside the memory's bandwidth and the same rule in C.

    python -m bench.detectors                    N = 1, 100, 10,000, 100,000 signals (some minutes)
    python -m bench.detectors --signals 10000    one of them

Live: one row a call, as a beat of a poll gives it. Replay: 10,000 rows, in frames of at most CELLS readings. Values lie
within their norms but for a few in a million, as they do. Nanoseconds of CPU for a reading, the median of several rounds;
`memory` is what it takes to read a float64 and its flags once and to write nothing: nothing that looks at a reading costs less.
"""

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import plugins
from edge_agent.contract import Band, Block, Change, Column, Detector, Floats

SECOND_US = 1_000_000
ROWS = 10_000
CELLS = 4_000_000
SETTINGS: dict[str, Any] = {"frozen": {"after": "30min"}, "rate": {"max": 1000.0, "per": "1min", "over": "5min"}}
"""What stands under each detector's key; one that is not here has no settings, or is told to be missing."""

C_LIMITS = r"""
#include <stdint.h>
/* The four limits with deadband and delays, a row of n signals, as detectors/limits.py has them. Returns changes. */
long limits(long n, const double *v, const uint8_t *known, const double *limit, const double *back, int64_t on, int64_t off,
            int64_t step, int64_t *run, uint8_t *raised) {
  long changes = 0;
  for (long k = 0; k < 4; k++) {
    const double *l = limit + k * n, *b = back + k * n;
    int64_t *r = run + k * n; uint8_t *a = raised + k * n;
    for (long i = 0; i < n; i++) {
      if (!known[i]) continue;
      double x = k < 2 ? v[i] : -v[i];
      int towards = a[i] ? x <= b[i] : x > l[i];
      if (!towards) { r[i] = -1; continue; }
      r[i] = r[i] < 0 ? 0 : r[i] + step;
      if (r[i] >= (a[i] ? off : on)) { a[i] ^= 1; r[i] = -1; changes++; }
    }
  }
  return changes;
}
/* Unchanged for too long, as detectors/frozen.py has it. */
long frozen(long n, const double *v, const uint8_t *known, int64_t after, int64_t step, double *value, int64_t *run,
            uint8_t *raised) {
  long changes = 0;
  for (long i = 0; i < n; i++) {
    if (!known[i]) continue;
    if (!(v[i] == value[i])) { value[i] = v[i]; run[i] = 0; changes += raised[i]; raised[i] = 0; continue; }
    run[i] += step;
    if (!raised[i] && run[i] >= after) { raised[i] = 1; changes++; }
  }
  return changes;
}
/* Sums of a bucket, as detectors/buckets.py makes them: what rate, and every slow rule, does with each reading. */
void bucket(long n, const double *v, const uint8_t *fresh, double *total, int64_t *count) {
  for (long i = 0; i < n; i++) if (fresh[i]) { total[i] += v[i]; count[i]++; }
}
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, nargs="*", default=[1, 100, 10_000, 100_000])
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        c = _compiled(Path(folder))
        for signals in asked.signals:
            print(f"{signals:,} signals" + " " * 12 + "live ns/reading   µs/call    replay ns/reading")
            _told("memory", _memory(1, signals), _memory(_rows_of(signals), signals), signals)
            for name, detector in plugins.detectors().items():
                if detector.Settings is not None and name not in SETTINGS:
                    print(f"  {name}: no settings for it here")
                    continue
                _told(name, _live(name, detector, signals), _replay(name, detector, signals), signals)
            for name, seconds in (c(signals) if c else {}).items():
                _told(f"{name} in C", seconds, None, signals)
    return 0


def _told(name: str, live_s: float, replay_s: float | None, signals: int) -> None:
    replayed = "" if replay_s is None else f"{replay_s * 1e9:12.2f}"
    print(f"  {name:22} {live_s * 1e9 / signals:12.1f} {live_s * 1e6:12.1f} {replayed:>16}")


def _rows_of(signals: int) -> int:
    return max(1, min(ROWS, CELLS // signals))


def _median(work: Callable[[], object], least_s: float = 0.3, rounds: int = 5) -> float:
    """Seconds of CPU of one call: so many calls a round that the clock is good for it, the median of the rounds."""
    calls, took = 1, 0.0
    while took < least_s / 10:
        began = time.process_time()
        for _ in range(calls):
            work()
        took = time.process_time() - began
        calls *= 4
    calls = max(1, int(calls / 4 * least_s / max(took, 1e-9) / rounds))
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(calls):
            work()
        found.append((time.process_time() - began) / calls)
    return float(np.median(found))


def _column(name: str, detector: Detector) -> Column:
    settings = None if detector.Settings is None else detector.Settings.model_validate(SETTINGS[name])
    return Column(
        SECOND_US,
        Band(-8, 8, 0.5, 10 * SECOND_US, 30 * SECOND_US),
        Band(-9, 9, 0.5, 0, 0),
        1,
        10 * SECOND_US,
        -1,
        settings,
    )


def _values(rng: np.random.Generator, rows: int, signals: int) -> Floats:
    return rng.normal(0, 1.0, (rows, signals))


def _block(values: Floats, first_ts: int) -> Block:
    rows, signals = values.shape
    all_true = np.ones((rows, signals), dtype=np.bool_)
    ts = first_ts + np.arange(rows, dtype=np.int64)[:, None] * SECOND_US
    return Block(
        columns=slice(0, signals),
        values=values,
        known=all_true,
        good=all_true,
        fresh=all_true,
        late=np.zeros_like(all_true),
        seen_ts=np.broadcast_to(ts, values.shape),
        step_us=np.full((rows, 1), SECOND_US),
        ts=ts,
        armed=np.ones((rows, 1), dtype=np.bool_),
        entered=np.zeros(signals, dtype=np.bool_),
    )


def _live(name: str, detector: Detector, signals: int) -> float:
    rng = np.random.default_rng(1)
    blocks = [_block(_values(rng, 1, signals), i * SECOND_US) for i in range(40)]
    norms, state = detector.norms([_column(name, detector)] * signals), detector.start(signals)

    def beats() -> list[list[Change]]:
        return [detector.step(state, norms, block) for block in blocks]

    return _median(beats) / len(blocks)


def _replay(name: str, detector: Detector, signals: int) -> float:
    """Seconds for one reading."""
    rng = np.random.default_rng(1)
    rows = _rows_of(signals)
    block = _block(_values(rng, rows, signals), 0)
    norms, state = detector.norms([_column(name, detector)] * signals), detector.start(signals)
    return _median(lambda: detector.step(state, norms, block)) / rows / signals


def _memory(rows: int, signals: int) -> float:
    """Seconds for one reading (rows > 1), or for one row: its value and its flags read once."""
    rng = np.random.default_rng(1)
    values, flags = _values(rng, rows, signals), np.ones((rows, signals), dtype=np.bool_)
    took = _median(lambda: (values.sum(), flags.sum(dtype=np.uint8)))
    return took if rows == 1 else took / rows / signals


def _compiled(folder: Path) -> Callable[[int], dict[str, float]] | None:
    """The rules in C, by the number of signals: seconds a row. None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("no C compiler: the rules in C are left out", file=sys.stderr)
        return None
    source, library = folder / "rules.c", folder / "rules.so"
    source.write_text(C_LIMITS)
    subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
    rules = ctypes.CDLL(str(library))

    def pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def took(signals: int) -> dict[str, float]:
        rng, n = np.random.default_rng(1), ctypes.c_long(signals)
        rows = [_values(rng, 1, signals)[0] for _ in range(40)]
        known, raised = np.ones(signals, dtype=np.uint8), np.zeros((4, signals), dtype=np.uint8)
        limit = np.repeat(np.array([[8.0], [9.0], [8.0], [9.0]]), signals, axis=1)
        back, run = limit - 0.5, np.full((4, signals), -1, dtype=np.int64)
        value, total, count = np.zeros(signals), np.zeros(signals), np.zeros(signals, dtype=np.int64)
        second, long_us = ctypes.c_int64(SECOND_US), ctypes.c_int64(1800 * SECOND_US)
        delays = ctypes.c_int64(10 * SECOND_US), ctypes.c_int64(30 * SECOND_US)
        state = [pointer(each) for each in (run, raised)]

        def limits() -> None:
            for row in rows:
                rules.limits(n, pointer(row), pointer(known), pointer(limit), pointer(back), *delays, second, *state)

        def frozen() -> None:
            for row in rows:
                rules.frozen(n, pointer(row), pointer(known), long_us, second, pointer(value), *state)

        def bucket() -> None:
            for row in rows:
                rules.bucket(n, pointer(row), pointer(known), pointer(total), pointer(count))

        named = {"limits": limits, "frozen": frozen, "sums of buckets": bucket}
        return {name: _median(work) / len(rows) for name, work in named.items()}

    return took


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
