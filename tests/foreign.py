"""A foreign OPC UA server (node-opcua, in a process of its own), whose plant and whose faults a test commands.

Rule 1: it shares no code with the driver nor with the driver's library. Rule 2: one process serves a whole test run
(it takes 1 s to start, each further server 0.5 s); a server is one `async with`, on a port of its own.

    async with foreign.server(mass=100) as plant:
        await plant.set("Types.Double", 2.5, status="UncertainLastUsableValue", age_s=3)
        ... read nsu=urn:foreign:plant;s=Types.Double at plant.url ...
        await plant.restart(before=["urn:other"])       # our namespace has moved

The plant, in the namespace URI, under Objects/Plant; an identifier is the path of its folders (`s=Types.Double`):

    Types.      Boolean true, SByte -7, Byte 200, Int16 -700, UInt16 60000, Int32 -70000, UInt32 4e9, Int64 -2^40,
                UInt64 2^53, UInt64Big 2^53 + 1, Float 0.5, Double 2.5, NaN, Infinity, String "warm", NumberText "12.5",
                DateTime 2026-01-02T03:04:05Z, ByteString, Guid, LocalizedText,
                Duration 1500 (a subtype of Double), Number -5 (an abstract type, Int16 on the wire)
    Arrays.     Temperatures Double[8] 20 … 27, Spectrum Float[256] k/256, Flags Boolean[4], Empty Double[0]
    Typed.      Mode 2 (enumeration PumpMode: Off, Manual, Automatic), Drive (structure DriveData: Speed 1480, Torque
                12.5, Errors 3, Running true, Name "drive"), Drives (two of them); set takes {"speed": 7, …}
    Analog.     Temperature 71.5 °C CEL 0…150, Pressure 6.25 bar BAR 0…16, Vibration 2.8 mm/s C16 0…50 (with EURange),
                Speed 1480 r/min RPM, Odd 3 widgets (unit id -1): EngineeringUnits alone
    Line1.Pump. Temperature 41 °C, Drive.Current 4.1; Line2.Pump. the same names, 42 and 4.2
    Access.     WriteOnly (not readable), Writable, Slow (MinimumSamplingInterval 1000 ms; of all others it is 0)
    History.    Level: `history` samples 0, 1, 2 … one each `history_period_ms`, the last one now
    Mass.0 …    `mass` variables, Double, each with its number
    Counter     0; and i=1001 (11), g=72962b91-fa75-4ae6-8d28-b404dc7daf63 (12), b=UHVtcA== (13)

Every namespace named in `before` has variables with the identifiers of Types, Analog, Counter and Line1, Line2 as well;
each shows 777. The plant's index is `plant.index`: 3 at first, one more for each namespace before it.
"""

import asyncio
import atexit
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

URI = "urn:foreign:plant"
SERVER_URI = "urn:foreign:server"
"""The application URI of the server, and of the certificate that it makes for itself."""
SCRIPT = Path(__file__).parent / "peers" / "opcua" / "server.js"
MODULES = Path(os.environ.get("OPCUA_PEER") or Path(sys.prefix) / "opcua-peer")
"""Where `make test` installed node-opcua."""
NODE = os.environ.get("NODE") or "node"
ANSWER_S = 60.0
FOREVER = -1
"""As `times`: until it is set to 0."""


class PeerDied(AssertionError):
    """The process of the server has ended; its last words are in the message."""


class PeerRefused(AssertionError):
    """The server could not obey; the message is its own."""


class Peer:
    """The process. Commands are answered in order; one lock, for they may come from several threads."""

    def __init__(self) -> None:
        if not (MODULES / "node_modules").is_dir():
            raise PeerDied(f"node-opcua is not installed in {MODULES}: `make test` does it (once, with npm)")
        self.home = Path(tempfile.mkdtemp(prefix="opcua-peer-"))
        self._errors = (self.home / "stderr").open("wb")
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [NODE, str(SCRIPT), str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "NODE_PATH": str(MODULES / "node_modules")},
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def certificate(self) -> Path:
        """The certificate (PEM) of every server that was given none; there once a server has started."""
        return self.home / "own.pem"

    def ask(self, do: str, **words: Any) -> Any:
        """Send one command, wait for its answer. Raises PeerRefused or PeerDied."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps({"do": do, **words}, allow_nan=False).encode() + b"\n")
                self._process.stdin.flush()
                if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
                    self._process.kill()  # better a test that fails than one that hangs, and all after it
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = b""
        if not line:
            raise PeerDied(f"{do}: the server has ended ({self._process.wait()}):\n{self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerRefused(f"{do}: {answer['error']}")
        return answer["ok"]

    def last_words(self) -> str:
        return (self.home / "stderr").read_text(errors="replace")[-4000:]

    def end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        shutil.rmtree(self.home, ignore_errors=True)


_running: list[Peer] = []


def peer() -> Peer:
    """The process of this test run; started at the first call, and anew when it has died."""
    if _running and not _running[0].alive:
        _running.pop().end()
    if not _running:
        _running.append(Peer())
    return _running[0]


@atexit.register
def _end() -> None:
    while _running:
        _running.pop().end()


def _plain(value: Any) -> Any:
    """As JSON takes it: 64 bits and what is not finite as text, bytes as hexadecimal digits."""
    match value:
        case bool() | None | str():
            return value
        case int():
            return value if abs(value) < 2**53 else str(value)
        case float():
            return value if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        case bytes():
            return value.hex()
        case Mapping():
            return {key: _plain(each) for key, each in value.items()}
        case _:
            return [_plain(each) for each in value]


class Settings(TypedDict, total=False):
    """What a server may be told at its start. Paths are of PEM or DER files, where nothing else is said."""

    port: int
    """0: one that is free."""
    before: Sequence[str]
    """Namespaces that come before ours."""
    plant_later: bool
    """The server starts without the plant and its namespace (`index` is -1), until `load_plant`."""
    mass: int
    """Variables under Mass."""
    history: int
    """Samples of History.Level: 100."""
    history_period_ms: float
    """Their distance: 1000."""

    policies: Sequence[str]
    """Of None, Basic256Sha256, Aes128_Sha256_RsaOaep, Aes256_Sha256_RsaPss: ["None"]."""
    modes: Sequence[str]
    """Of None, Sign, SignAndEncrypt: ["None"]. Endpoints: None with None, each other policy with each other mode."""
    certificate: Path
    """PEM, its issuers after it in the same file; in place of the server's own."""
    key: Path
    """PEM, of that certificate."""
    uri: str
    """The application URI that the server tells: SERVER_URI."""
    accept_all: bool
    """True: every client certificate is taken. Else those of `trusted`, and what `issuers` signed for it."""
    trusted: Sequence[Path]
    issuers: Sequence[Path]
    revocations: Sequence[Path]
    """Revocation lists of the issuers; without one, what an issuer signed is refused."""
    token_lifetime_ms: int
    """Of a secure channel, at most."""

    anonymous: bool
    """True."""
    users: Mapping[str, str]
    """Name → password; encrypted over None, too."""
    plain_passwords: bool
    """Passwords go in plain over None."""
    user_certificates: Sequence[Path]
    """Of users that are trusted."""

    limits: Mapping[str, int]
    """`maxNodesPerRead`, `maxNodesPerBrowse`, `maxNodesPerTranslateBrowsePathsToNodeIds`, `maxNodesPerRegisterNodes`,
    `maxMonitoredItemsPerCall`, `maxNodesPerHistoryReadData` …, `maxBrowseContinuationPoints`: enforced, and told in
    Server/ServerCapabilities; 10,000 of most without. `minSupportedSampleRate` in ms, 0: what a sampling interval of 0
    is revised to (told as 100 at least)."""
    references_max: int
    """For each node in one Browse answer, then a continuation point comes; 0: all."""
    sessions_max: int
    """50, then BadTooManySessions."""
    subscriptions_max: int
    """100, then BadTooManySubscriptions."""
    publish_requests_max: int
    """100 wait in a session, then the oldest is answered BadTooManyPublishRequests."""
    publishing_min_ms: float
    """50: floors under intervals belong to the process, so the server that was started last decides."""
    lifetime_min_ms: float
    """5000: publishing interval × lifetime count is at least that."""
    sampling_min_ms: float
    """50; but an interval of 0 stays 0: every change is queued (all but Access.Slow)."""


@dataclass(slots=True)
class Plant:
    """One server. `index`: of our namespace, now. Every method returns when the server has done it."""

    number: int
    port: int
    index: int
    ramps: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}"

    @property
    def certificate(self) -> Path:
        """The server's own certificate (PEM), unless `certificate=` brought another."""
        return peer().certificate

    async def _do(self, command: str, **words: Any) -> Any:
        return await asyncio.to_thread(peer().ask, command, server=self.number, **words)

    # ---------------------------------------------------------------------------------------------------- the plant

    async def set(
        self, node: str, value: Any, *, status: str = "Good", age_s: float | None = 0.0, kind: str | None = None
    ) -> None:
        """Give a variable its next value. status: a name, with info bits as `Good|Overflow`.

        value None: no value at all. age_s: of the source timestamp; negative: from the future; None: no source
        timestamp. kind: another type on the wire than the node's own (`Int16`).
        """
        await self.set_many([{"node": node, "value": value, "status": status, "age_s": age_s, "kind": kind}])

    async def set_many(self, values: Sequence[Mapping[str, Any]]) -> None:
        """As `set`, of several variables in one moment; the keys are its words. `keep_value`: only status and time.

        More values of one variable than an item's queue holds: the server sets Overflow (0x480), as it shall.
        """
        await self._do("set", values=[_plain(each) for each in values])

    async def set_status(self, node: str, status: str, *, age_s: float | None = 0.0) -> None:
        """The value stays, its status and source timestamp change."""
        await self.set_many([{"node": node, "status": status, "age_s": age_s, "keep_value": True}])

    async def ramp(self, nodes: Sequence[str], period_s: float, *, start: int = 0, count: int | None = None) -> int:
        """Let these count up: start, start + 1 …, all in one moment, one each period; `Mass.*` names them all.

        count: how many values there will be; None: until `ramp_end`, which takes the returned number.
        """
        return int(await self._do("ramp", nodes=list(nodes), period_ms=period_s * 1000, start=start, count=count))

    async def ramp_end(self, ramp: int) -> int:
        """Stop it; returns how many values it has given (to each node)."""
        return int(await self._do("ramp_end", ramp=ramp))

    async def add_variable(self, node: str, kind: str, value: Any) -> None:
        """A variable that was not there: `Late.Level`, or `i=…`, `g=…`, `b=…` under Ids."""
        await self._do("add", node=node, kind=kind, value=_plain(value))

    async def delete_variable(self, node: str, *, told: bool = False) -> None:
        """Reads of it find BadNodeIdUnknown. told: subscribers, too; else its items tell BadNodeIdInvalid, or nothing."""
        await self._do("remove", node=node, told=told)

    # ----------------------------------------------------------------------------------- the server and its lines

    async def restart(self, *, away_s: float = 0.0, grace: bool = False, **settings: Unpack[Settings]) -> None:
        """A new server on the same port, with the values of the beginning; sessions and subscriptions are gone.

        away_s: nobody listens for so long. grace: sockets are closed in order; else all are reset, as when the power
        fails. settings: as of `server`, in place of the old; `before=["urn:other"]` moves our namespace.
        """
        answer = await self._do("restart", away_s=away_s, grace=grace, settings=_settings(settings))
        self.index = answer["index"]

    async def load_plant(self) -> None:
        """The plant of a server that was started with `plant_later`."""
        self.index = (await self._do("load_plant"))["index"]

    async def state(self, state: str) -> None:
        """What Server/ServerStatus/State shows: `Running`, `Failed`, `NoConfiguration`, `Suspended`, `Shutdown` …"""
        await self._do("state", state=state)

    async def stop_listening(self) -> None:
        """Refuse new connections; those that are there stay."""
        await self._do("listen", on=False)

    async def start_listening(self) -> None:
        await self._do("listen", on=True)

    async def drop(self) -> int:
        """Reset every TCP connection; sessions and subscriptions live on. Returns how many there were."""
        return int(await self._do("drop"))

    async def mute(self, on: bool = True) -> None:
        """Accept connections and answer nothing. Off: what waited is read and sent, as when a line returns."""
        await self._do("mute", on=on)

    # ------------------------------------------------------------------------------------------------------- services

    async def refuse(self, service: str, status: str, times: int = FOREVER) -> None:
        """Answer the next requests of a service with a ServiceFault: `CreateSubscription`, `Read`, `CreateSession` …

        `refuse("CreateSubscription", "BadTooManySubscriptions", 2)`; times 0 ends it. One refusal for each service.
        """
        await self._do("refuse", service=service, status=status, times=times)

    async def delay(self, service: str, by_s: float) -> None:
        """Begin to answer each request of a service so much later; 0 ends it."""
        await self._do("delay", service=service, ms=by_s * 1000)

    async def enforce(self, limit: str, value: int) -> None:
        """Change an operation limit without telling clients: `maxNodesPerRead` … as in `limits`."""
        await self._do("enforce", limit=limit, value=value)

    async def close_sessions(self, *, keep_subscriptions: bool = False) -> int:
        """End all sessions (their next request: BadSessionIdInvalid); the channels stay. Returns how many there were."""
        return int(await self._do("close_sessions", keep=keep_subscriptions))

    # -------------------------------------------------------------------------------------------------- subscriptions

    async def refuse_items(self, nodes: Sequence[str], status: str = "BadTooManyMonitoredItems") -> None:
        """CreateMonitoredItems gives these nodes a bad result, the others are created; an empty list ends it."""
        await self._do("refuse_items", nodes=list(nodes), status=status)

    async def deafen(self, nodes: Sequence[str]) -> int:
        """The items of these nodes tell nothing any more, although their subscription lives. Returns how many there were."""
        return int(await self._do("deafen", nodes=list(nodes)))

    async def silent(self, on: bool = True) -> None:
        """No notification and no keep-alive leaves any more, while reads are answered. Off: what is queued is sent."""
        await self._do("silent", on=on)

    async def skip_notifications(self, times: int = 1, *, lose: bool = False) -> None:
        """The next notification messages are not sent, but their sequence numbers used: a gap.

        lose: they are not kept either, so that Republish answers BadMessageNotAvailable.
        """
        await self._do("skip", times=times, lose=lose)

    async def republish(self, how: str) -> None:
        """How Republish is answered: `normal`, `refused` (BadMessageNotAvailable), `empty` (a message without data)."""
        await self._do("republish", how=how)

    async def end_subscriptions(self, *, told: bool = False) -> int:
        """End all subscriptions, told: with the StatusChangeNotification BadTimeout. Returns how many there were."""
        return int(await self._do("end_subscriptions", told=told))

    async def statistics(self) -> dict[str, Any]:
        """What the server knows. requests: {service: how many came}; connections: now, accepted: ever; skipped.

        sessions: [{name, status, timeout_ms, publish_requests, subscriptions: [{id, publishing_ms, keep_alive_count,
        lifetime_count, priority, enabled, notifications_max, unacknowledged, items: [{id, node, sampling_ms, queue,
        discard_oldest, mode, trigger, deadband: {type, value} or None}]}]}], all as the server revised them; mode: 0
        disabled, 1 sampling, 2 reporting; trigger: 0 status, 1 value, 2 timestamp; deadband type: 1 absolute, 2 percent.
        """
        told: dict[str, Any] = await self._do("statistics")
        return told

    async def items(self) -> list[dict[str, Any]]:
        """The monitored items of all sessions, as in `statistics`."""
        sessions = (await self.statistics())["sessions"]
        return [item for session in sessions for each in session["subscriptions"] for item in each["items"]]


def _settings(settings: Settings) -> Any:
    """As the process takes them; a word that it does not know would be passed over there."""
    unknown = settings.keys() - Settings.__annotations__.keys()
    assert not unknown, f"no server has {sorted(unknown)}"
    return _jsonable(settings)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _jsonable(each) for key, each in value.items()}
    return [_jsonable(each) for each in value] if isinstance(value, list | tuple) else value


@asynccontextmanager
async def server(**settings: Unpack[Settings]) -> AsyncIterator[Plant]:
    """A server on 127.0.0.1, gone with all its connections at the end; what may be set stands at Settings."""
    answer = await asyncio.to_thread(peer().ask, "start", settings=_settings(settings))
    plant = Plant(answer["server"], answer["port"], answer["index"])
    here = peer()
    try:
        yield plant
    finally:
        if here.alive:
            await asyncio.to_thread(here.ask, "end", server=plant.number)
