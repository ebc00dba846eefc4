"""Disks that fail when a test wants them to: file systems of their own, in a process that has its mounts for itself.

Rule: what is mounted here is seen by nobody else and gone when the process ends; mounts need root (mark `root`).
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import ROOT


def alone(module: str, scene: str, folder: Path, within_s: float = 100) -> str:
    """Run `scene(folder)` of a test module in a process with mounts of its own; what it has printed."""
    code = f"import sys; from pathlib import Path; from {module} import {scene} as scene; scene(Path(sys.argv[1]))"
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


def memory_disk(place: Path, options: str = "size=3m") -> None:
    """A tmpfs; `size=`, `nr_inodes=`."""
    place.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place))


def ext4(place: Path, image: Path, megabytes: int = 64) -> None:
    """A loop device, as a card has it."""
    place.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(megabytes * 1_000_000)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(place))


def remount(place: Path, how: str) -> None:
    """how: `ro` or `rw`."""
    _run("mount", "-o", f"remount,{how}", str(place))


@contextlib.contextmanager
def full(place: Path) -> Iterator[Callable[[], None]]:
    """Full to the last byte; the callable fills it again."""
    ballast = place / "ballast"

    def fill() -> None:
        for size in (65_536, 4_096, 1):
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while file.write(bytes(size)):
                    pass

    fill()
    try:
        yield fill
    finally:
        ballast.unlink()


@contextlib.contextmanager
def no_inodes(place: Path) -> Iterator[None]:
    """Not one more file."""
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            each = place / f"file-{len(made)}"
            each.touch()
            made.append(each)
    try:
        yield
    finally:
        for each in made:
            each.unlink()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
