"""What devices have taught their drivers, by connection: one small text in the store, written with the next commit."""

import base64
import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import structlog

from edge_agent.store import disk
from edge_agent.store.journal import Store

log = structlog.get_logger(__name__)


class DeviceNotes(MutableMapping[str, bytes]):
    """Lost notes only have to be learned again, so what cannot be read is left aside."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._notes = _read(store.load_text(disk.DEVICES))

    def __getitem__(self, connection: str) -> bytes:
        return self._notes[connection]

    def __setitem__(self, connection: str, notes: bytes) -> None:
        self._notes[connection] = notes
        self._save()

    def __delitem__(self, connection: str) -> None:
        del self._notes[connection]
        self._save()

    def __iter__(self) -> Iterator[str]:
        return iter(self._notes)

    def __len__(self) -> int:
        return len(self._notes)

    def _save(self) -> None:
        plain = {name: base64.b64encode(notes).decode() for name, notes in sorted(self._notes.items())}
        self._store.save_text(disk.DEVICES, json.dumps(plain))


def _read(text: str) -> dict[str, bytes]:
    try:
        plain: Any = json.loads(text or "{}")
        return {str(name): base64.b64decode(notes, validate=True) for name, notes in plain.items()}
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("device_notes_unreadable", fault=str(error))
        return {}
