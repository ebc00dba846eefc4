"""The agent's own door for its operator: a Unix socket in the data directory, one JSON object a line.

Rule 1: one agent a data directory; the lock is held from before the store is opened until after it is closed.
Rule 2: the door only asks and tells. What a command means is decided by the handlers that are passed in.

Request: `{"command":"status"}`; answer: `{"ok":true,…}` or `{"ok":false,"error":"…"}`. The socket has mode 0600: only
the agent's user and root may ask. A path is no longer than 107 bytes in the kernel's address; a longer one is reached
by way of /proc/self/fd, so that the socket always lies in the data directory.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

SOCKET = "control.sock"
LOCK = "lock"
LOCKS = "/proc/locks"
"""All locks of files, as proc_locks(5) has them."""
PATH_BYTES_MAX = 107
"""sun_path of unix(7) has 108 bytes, one for the closing zero."""
REQUEST_BYTES_MAX = 65_536
ANSWER_BYTES_MAX = 16_000_000
CONNECTIONS_MAX = 8
"""Askers at one time; the next one is told to come again."""
REQUEST_WITHIN_S = 5.0

CONTROL_FAILED = "control_failed"
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE)
"""What a disk says that is full, read-only or failing: that may pass while the agent runs."""
OPEN_EVERY_S = 5.0

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any]], Awaitable[Answer]]


class AlreadyRunning(Exception):
    """Another agent works on this data directory."""


class NoAgent(ConnectionError):
    """No agent answers for this data directory."""


@contextlib.contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process alone; raises AlreadyRunning. The kernel lets go when we end.

    Held is the directory itself, which needs no space on a full disk, and the file in it that says by whom.
    """
    with contextlib.ExitStack() as held:
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _locked(held, os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), data_dir)
            descriptor = os.open(data_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _locked(held, descriptor, data_dir)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            _refused(error, data_dir)
        yield


def _locked(held: contextlib.ExitStack, descriptor: int, data_dir: Path) -> None:
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = "unknown"
        with contextlib.suppress(OSError):
            holder = (data_dir / LOCK).read_text(encoding="ascii", errors="replace").strip() or holder
        raise AlreadyRunning(
            f"{data_dir}: another agent (process {holder}) works on this data directory; "
            "stop it, or give this one a data_dir of its own"
        ) from None


def _refused(error: OSError, data_dir: Path) -> None:
    """A disk that takes nothing now keeps nobody from measuring; what a person has to mend is raised."""
    if error.errno not in PASSING:
        raise error
    structlog.get_logger().warning(CONTROL_FAILED, data_dir=str(data_dir), fault=str(error))


@contextlib.asynccontextmanager
async def open_control(data_dir: Path, handlers: Mapping[str, Handler]) -> AsyncIterator["Door"]:
    """Hold the data directory and answer at its socket until the block is left.

    handlers: by command, looked up at each request, so that they may be filled in while the agent starts. A handler
    gets the request and returns the answer; `ok` is added when it says nothing of it. Raises AlreadyRunning. On a disk
    that is full or read-only nobody can ask before there is room for the socket: see Door.keep_open.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(hold(data_dir))
        door = Door(data_dir, handlers, stack)
        try:
            await door.open()
        except OSError as error:
            _refused(error, data_dir)
        yield door


class Door:
    """The socket, and the askers of the moment."""

    def __init__(self, data_dir: Path, handlers: Mapping[str, Handler], stack: contextlib.AsyncExitStack) -> None:
        self._data_dir, self._handlers, self._stack = data_dir, handlers, stack
        self._askers: set[asyncio.Task[Any]] = set()
        self._open = False

    async def open(self) -> None:
        """Raises OSError."""
        listening = self._stack.enter_context(_bound(self._data_dir))
        self._stack.push_async_callback(self.close)
        server = await asyncio.start_unix_server(self.answer, sock=listening, limit=REQUEST_BYTES_MAX)
        self._stack.callback(server.close)
        self._open = True

    async def keep_open(self) -> None:
        """For ever: where there was no room for the socket, try again."""
        while True:
            await asyncio.sleep(OPEN_EVERY_S)
            if not self._open:
                with contextlib.suppress(OSError):
                    await self.open()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: a request, its answer, closed."""
        task = asyncio.current_task()
        assert task is not None
        self._askers.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(json.dumps(await self._reply(reader), separators=(",", ":"), default=str).encode() + b"\n")
                await writer.drain()
        finally:
            self._askers.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in tuple(self._askers):
            task.cancel()
        if self._askers:
            await asyncio.wait(tuple(self._askers))

    async def _reply(self, reader: asyncio.StreamReader) -> Answer:
        if len(self._askers) > CONNECTIONS_MAX:
            return _refusal(f"more than {CONNECTIONS_MAX} askers at one time: come again")
        try:
            async with asyncio.timeout(REQUEST_WITHIN_S):
                line = await reader.readuntil(b"\n")
            request = json.loads(line)
        except TimeoutError:
            return _refusal(f"no request within {REQUEST_WITHIN_S:g} s")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return _refusal(f"a request is one line of at most {REQUEST_BYTES_MAX} bytes")
        except (ValueError, RecursionError):
            return _refusal("a request is one JSON object a line")
        command = request.get("command") if isinstance(request, dict) else None
        if not isinstance(command, str):
            return _refusal('a request is a JSON object with a "command"')
        handler = self._handlers.get(command)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "none yet, the agent is starting"
            return _refusal(f"unknown command {command!r}; known: {known}")
        try:
            return {"ok": True} | await handler(request)
        except Exception as error:  # noqa: BLE001 - a bulkhead: an operator's question never stops the plant's watch
            structlog.get_logger().error(CONTROL_FAILED, command=command, exc_info=error)
            return _refusal(f"{command} failed inside the agent ({type(error).__name__}); its log has the details")


def _refusal(text: str) -> Answer:
    return {"ok": False, "error": text}


@contextlib.contextmanager
def _bound(data_dir: Path) -> Iterator[socket.socket]:
    """A listening socket in the data directory. Whoever holds the lock may remove what a dead agent left behind."""
    path = data_dir / SOCKET
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening, _address(path) as address:
        # Linux gives the file the mode of the unbound socket, so there is no moment in which others may connect.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(address)
        path.chmod(0o600)
        listening.listen(CONNECTIONS_MAX)
        listening.setblocking(False)
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path in a form that fits into a socket address; valid inside the block."""
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _is_held(data_dir: Path) -> bool:
    """Whether an agent holds the data directory, also one that could make no socket. Nothing is locked to find out: an agent
    that starts in this moment would take us for another one.
    """
    with contextlib.suppress(OSError):
        its = data_dir.stat()
        place = f"{os.major(its.st_dev):02x}:{os.minor(its.st_dev):02x}:{its.st_ino}"
        return any(place in line.split() for line in Path(LOCKS).read_text().splitlines())
    return False


def ask(data_dir: Path, request: Mapping[str, Any], timeout: float = 10.0) -> Answer:
    """Ask the agent of this data directory and wait for its answer, blocking.

    timeout: seconds for each step on the line. Raises ConnectionError, in words for a person, when no agent answers
    (NoAgent), when it is another user's, or when the line breaks.
    """
    path = data_dir / SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line, _address(path) as address:
            line.settimeout(timeout)
            line.connect(address)
            line.sendall(json.dumps(dict(request)).encode() + b"\n")
            with line.makefile("rb") as answers:
                answer = answers.readline(ANSWER_BYTES_MAX)
    except PermissionError as error:
        raise ConnectionError(f"{path}: the agent belongs to another user; ask as that user or as root") from error
    except TimeoutError as error:
        raise ConnectionError(f"{path}: no answer within {timeout:g} s") from error
    except OSError as error:
        if _is_held(data_dir):
            raise NoAgent(
                f"an agent works on {data_dir}, but there is no socket at which it could be asked ({error.strerror or error}): "
                "it is about to start or to stop, or its disk is full or read-only; its page and its log say more"
            ) from error
        hint = "; if its data_dir was changed while it runs, name the old one with --data-dir"
        raise NoAgent(f"no agent works on {data_dir} ({error.strerror or error}){hint}") from error
    if not answer.endswith(b"\n"):
        raise ConnectionError(f"{path}: the agent closed the line without an answer")
    found = json.loads(answer)
    if not isinstance(found, dict):
        raise ConnectionError(f"{path}: the answer is no JSON object")
    return found
