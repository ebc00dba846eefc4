"""A disk that loses its power: ext4 in a file, shut down under whoever writes to it, and mounted again. Needs root.

Rule: stop first, then cut. A writer that runs on between the cut and its death would be told of commits that the dead disk
no longer took, and the rig would count a loss that no power cut makes.

What it proves and what not: everything that was not flushed to the device is gone, as after a power cut; the file system's
own journal is not flushed (EXT4_GOING_FLAGS_NOLOGFLUSH). It tears no sector and models no drive that lies about its cache.
"""

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)."""
NO_LOG_FLUSH = 2
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 1 << 18
STOPPED_WITHIN_S = 5.0


class NotHere(Exception):
    """This host does not allow it; says what is missing."""


def own_mounts() -> None:
    """A mount namespace of our own: what is mounted here is gone when this process ends, however it ends."""
    if os.geteuid() != 0:
        raise NotHere("mounts need root")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise NotHere(f"a mount namespace of our own cannot be had: {os.strerror(ctypes.get_errno())}")


@dataclass(frozen=True, slots=True)
class LoopDisk:
    """ext4 in the file `image`, mounted at `place`."""

    image: Path
    place: Path

    def make(self, size_mb: int) -> None:
        with self.image.open("wb") as file:
            file.truncate(size_mb * 1_000_000)
        self.place.mkdir(exist_ok=True)
        self._run("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()

    def mount(self) -> None:
        self._run("mount", "-o", "loop", str(self.image), str(self.place))

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.place)], check=False, stderr=subprocess.DEVNULL)

    def cut(self, pid: int) -> None:
        """The power goes while this process writes. It is stopped, not yet dead: kill it, wait for it, then `restore`."""
        os.kill(pid, signal.SIGSTOP)
        _wait_until_stopped(pid)
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        except OSError as error:
            raise NotHere(f"the kernel does not shut an ext4 down: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def restore(self) -> None:
        """The power is back; nobody has a file of it open any more."""
        self._run("umount", str(self.place))
        self.mount()

    def _run(self, *words: str) -> None:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        done = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path})
        if done.returncode:
            raise NotHere(f"{' '.join(words)}: {done.stderr.strip()}")


def _wait_until_stopped(pid: int) -> None:
    """Every thread of it stands."""
    end = time.monotonic() + STOPPED_WITHIN_S
    while time.monotonic() < end:
        states = [
            (each / "stat").read_text().rpartition(")")[2].split()[0] for each in Path(f"/proc/{pid}/task").iterdir()
        ]
        if all(state in "TtZX" for state in states):
            return
        time.sleep(0.001)
    raise NotHere(f"process {pid} does not stop")
