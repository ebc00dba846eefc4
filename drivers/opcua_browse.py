"""`edge-agent browse URL` (or `scan opcua URL`): what an OPC UA server has, what it holds now, and signals of it.

Rule 1: it only browses and reads, one request at a time. Rule 2: it may be ended at any moment; what was found stands.
How the tree is walked is `opcua_walk`, how it is told `opcua_found`, what is written for a configuration `opcua_signals`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from drivers import opcua_found, opcua_signals
from drivers.foreign_text import printable
from drivers.opcua_client import Client, ClientCounters, Refused, open_client, translated
from drivers.opcua_found import Found, NodeKind
from drivers.opcua_settings import NODE_ID, Connection, parse_node_id
from drivers.opcua_walk import VARIABLE, Walk, good_value_of
from edge_agent.contract import Clock, DeviceRefused, Duration, Scan, Scanner, ScanStep, duration_text, duration_us

NODES_USUAL, NODES_MAX, DEPTH_MAX = 5000, 100_000, 1000
PASSWORD_BYTES_MAX = 1000
NAMES_SHOWN = 12
OBJECTS_FOLDER = 85
"""The node below which a server's own objects hang: Part 5, 8.2.4."""
CONFIG_SECRET = "opcua_password"  # noqa: S105  # the name of one


# ------------------------------------------------------------------------------------------------------------ options


def _count(most: int, noun: str) -> BeforeValidator:
    def check(text: Any) -> int:
        if not str(text).isascii() or not str(text).isdigit() or not 1 <= int(str(text)[:9]) <= most:
            raise ValueError(f"{text!r} is no number of {noun} from 1 to {most}")
        return int(text)

    return BeforeValidator(check)


class BrowseOptions(BaseModel):
    """The options of `edge-agent browse`, as texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search: str = Field("", description="only what has this text in its path, name, title or description")
    under: str = Field("", description="only below this node: a path such as Plant/Line1, or a NodeId")
    depth: Annotated[int, _count(DEPTH_MAX, "levels")] = Field(DEPTH_MAX, description="levels below the start")
    max: Annotated[int, _count(NODES_MAX, "nodes")] = Field(
        NODES_USUAL, description=f"nodes, then it is cut ({NODES_USUAL})"
    )
    all: bool = Field(False, description="also the server's own objects and diagnostics (namespace 0)")
    security: str = Field("none", description="none, or POLICY/MODE such as Basic256Sha256/SignAndEncrypt")
    user: str | None = Field(None, description="user name; without one the session is anonymous")
    password_file: Path | None = Field(None, description="file with the user's password")
    timeout: Annotated[int, Duration("10ms", "1min")] = Field(
        duration_us("4s"), description="how long the server may take for an answer (4s)"
    )
    data_dir: Path = Field(Path("data"), description="its pki folder keeps the certificates (./data)")


# ---------------------------------------------------------------------------------------------------------- browsing


@dataclass(slots=True)
class OpcUaBrowse:
    """See contract.Scan and contract.Watches. found: grows while `run` goes on."""

    settings: Connection
    options: BrowseOptions
    clock: Clock
    tell: Callable[[ScanStep], None]
    found: Found
    counts: ClientCounters = field(default_factory=ClientCounters)

    @property
    def answered(self) -> bool:
        return bool(self.found.nodes)

    def lines(self) -> Sequence[tuple[str, str]]:
        return opcua_found.lines(self.found)

    def lines_within(self, columns: int) -> Sequence[tuple[str, str]]:
        """See contract.Watches."""
        return opcua_found.lines(self.found, columns)

    def facts(self) -> dict[str, Any]:
        return opcua_found.facts(self.found)

    def config(self) -> str:
        return opcua_signals.config(self.found, self.settings, self.options.data_dir, CONFIG_SECRET)

    async def run(self) -> None:
        began_us = self.clock.monotonic_us()
        try:
            async with self._opened() as client:
                walk = await self._begun(client)
                await self._start(walk)
                await walk.go()
            self.found.whole, self.found.read_us = True, self.clock.wall_us()
        except Refused as refused:
            raise translated(refused, f"{self.settings.url}: a browse") from refused
        finally:
            self.found.requests = self.counts.requests
            self.found.took_us = self.clock.monotonic_us() - began_us

    async def watch(self, changed: Callable[[], None]) -> None:
        """See contract.Watches."""
        places = self.found.variables()
        async with self._opened() as client:
            walk = await self._begun(client)
            walk.ids = [walk.node_of(parse_node_id(node.address)) for node in self.found.nodes]
            next_s = asyncio.get_running_loop().time()
            while True:
                await walk.values(places)
                self.found.read_us = self.clock.wall_us()
                changed()
                now_s = asyncio.get_running_loop().time()
                next_s = max(next_s + 1.0, now_s)
                await asyncio.sleep(next_s - now_s)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Client]:
        settings = self.settings
        if self.options.password_file is not None:
            settings = settings.model_copy(update={"password": _password(self.options.password_file)})
        home = str(self.options.data_dir / "pki")
        async with open_client(settings, home, self.clock, self.counts) as client:
            self.found.warnings, self.found.offered = client.warnings, client.offered
            yield client

    async def _begun(self, client: Client) -> Walk:
        options = self.options
        walk = Walk(client, self.found, self._news, (), options.depth, options.max, options.all)
        await walk.begin()
        return walk

    def _news(self, count: int) -> None:
        self.found.requests = self.counts.requests
        self.tell(ScanStep("nodes found", count, 0))

    # ---------------------------------------------------------------------------------------------------------- start

    async def _start(self, walk: Walk) -> None:
        """At Objects, or where --under leads. Raises DeviceRefused when there is no such node."""
        under = self.options.under.strip("/")
        node, names, kind = walk.client.ua.NodeId(OBJECTS_FOLDER, 0), [], NodeKind.OBJECT
        if NODE_ID.fullmatch(under):
            node, name, kind = await self._named(walk, under)
            names.append(name)
        else:
            for wanted in filter(None, under.split("/")):
                node, name, kind = await self._step(walk, node, names, wanted)
                names.append(name)
        self.found.above = tuple(names)
        walk.start_at(node, names[-1] if names else "Objects", kind)

    async def _named(self, walk: Walk, under: str) -> tuple[Any, str, NodeKind]:
        node = walk.node_of(parse_node_id(under))
        if node is None:
            raise DeviceRefused(f"--under {under}: the server has no such namespace; it has {', '.join(walk.uris[1:])}")
        kinds = walk.client.ua.AttributeIds
        items = [walk.client.ua.ReadValueId(node, attribute) for attribute in (kinds.BrowseName, kinds.NodeClass)]
        name, node_class = [good_value_of(item) for item in await walk.read(items)]
        if name is None:
            raise DeviceRefused(f"--under {under}: the server has no such node")
        return node, str(name.Name), NodeKind.VARIABLE if node_class == VARIABLE else NodeKind.OBJECT

    async def _step(self, walk: Walk, node: Any, names: Sequence[str], wanted: str) -> tuple[Any, str, NodeKind]:
        """The child with this BrowseName or DisplayName, else the only one whose name is equal but for its case."""
        references = await walk.children(node)
        called = [
            (str(each.BrowseName.Name or ""), str(each.DisplayName.Text or ""), each)
            for each in references
            if walk.local(each.NodeId) is not None
        ]
        found = [each for each in called if wanted in each[:2]]
        low = wanted.casefold()
        found = found or [each for each in called if low in (each[0].casefold(), each[1].casefold())]
        if not found:
            has = [printable(name, 60) for name, _, _ in called]
            more = f" and {len(has) - NAMES_SHOWN} more" if len(has) > NAMES_SHOWN else ""
            where = "/".join(names) or "Objects"
            raise DeviceRefused(
                f"--under: {where} has no {wanted!r}; it has {', '.join(has[:NAMES_SHOWN]) or 'nothing'}{more}"
            )
        name, _, reference = found[0]
        kind = NodeKind.VARIABLE if int(reference.NodeClass) == VARIABLE else NodeKind.OBJECT
        return walk.local(reference.NodeId), name, kind


def _password(path: Path) -> str:
    """The file's text without the line end at its end. Raises DeviceRefused."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(PASSWORD_BYTES_MAX)
    except OSError as error:
        raise DeviceRefused(f"--password-file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DeviceRefused(f"--password-file {path} is no UTF-8 text") from error
    return text.removesuffix("\n").removesuffix("\r")


class OpcUaScanner:
    """See contract.Scanner; the entry point `opcua`."""

    Options: type[BaseModel] = BrowseOptions

    def scan(self, url: str, options: BrowseOptions, clock: Clock, tell: Callable[[ScanStep], None]) -> Scan:
        if options.password_file is not None and options.user is None:
            raise ValueError("--password-file needs --user")
        password = {"secret": CONFIG_SECRET} if options.password_file is not None else None
        try:
            settings = Connection.model_validate(
                {
                    "url": url,
                    "security": options.security,
                    "user": options.user,
                    "password": password,
                    "timeout": duration_text(options.timeout),
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = "" if first["loc"][:1] in ((), ("url",)) else f"--{first['loc'][0]}: "
            raise ValueError(where + first["msg"].removeprefix("Value error, ")) from None
        return OpcUaBrowse(settings, options, clock, tell, Found(url, options.search))


SCANNER: Scanner = OpcUaScanner()
