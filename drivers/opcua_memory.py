"""What outlives a session: which variables an address meant, which namespaces a number, and until when all was heard.

Rule: it comes from the disk, so what makes no sense in it is as nothing; and a variable that is another now is never learned.
"""

import json
import zlib
from dataclasses import asdict, dataclass, field

from drivers.opcua_settings import Address

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, zlib.error)


@dataclass(slots=True)
class Memory:
    """nodes: BrowseName and data type by address. uris: of namespaces that are named by number.

    heard_us: UTC µs, until when everything was heard; 0: never. fills: looks into the history that ended with no reading.
    changed: since it was written last. written_us: heard_us at that time.
    """

    nodes: dict[str, tuple[str, str]] = field(default_factory=dict)
    uris: dict[int, str] = field(default_factory=dict)
    heard_us: int = 0
    fills: int = 0
    changed: bool = False
    written_us: int = 0

    def notes(self) -> bytes:
        """What `recalled` reads again."""
        self.changed, self.written_us = False, self.heard_us
        plain = {key: value for key, value in asdict(self).items() if key not in ("changed", "written_us")}
        return zlib.compress(json.dumps(plain).encode(), 6)

    def learn_uri(self, number: int, uri: str) -> None:
        """The URI that a namespace's number had when it was first seen."""
        if number not in self.uris:
            self.uris[number] = uri
            self.changed = True

    def another(self, settings: Address, is_called: str, is_of: str) -> str:
        """In words, when the node is another variable than the one that was meant; else '', and it is learned."""
        address = settings.address
        if settings.browse_name is not None and settings.browse_name != is_called:
            return f"{address} is called {is_called!r}, not {settings.browse_name!r}: correct address or browse_name"
        was = self.nodes.get(address)
        if was is not None and was != (is_called, is_of) and settings.browse_name is None:
            name = json.dumps(is_called, ensure_ascii=False)
            return (
                f"{address} was {was[0]!r} ({was[1]}) and is now {is_called!r} ({is_of}): another variable; if it is the "
                f"right one, write browse_name: {name} at the signal, else correct its address"
            )
        if was != (is_called, is_of):
            self.nodes[address] = (is_called, is_of)
            self.changed = True
        return ""


def recalled(notes: bytes) -> Memory | None:
    """The memory that was written; None when the notes make no sense."""
    try:
        plain = json.loads(zlib.decompress(notes))
        return Memory(
            {str(address): (str(browse), str(kind)) for address, (browse, kind) in plain["nodes"].items()},
            {int(number): str(uri) for number, uri in plain["uris"].items()},
            int(plain["heard_us"]),
            int(plain["fills"]),
        )
    except UNREADABLE:
        return None
