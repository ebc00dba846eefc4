"""Learned norms: what a teach-in found of each signal, approved by a person and frozen under a hash.

Rule 1: nothing here learns or judges; the numbers are the detectors' own, kept as they gave them. Rule 2: what was approved is
never changed: another teach-in makes another document. Rule 3: a document whose hash does not fit is not used, and told.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

FOLDER, FILE = "learned", "norms.json"
"""In the data directory."""
FORMAT = 1
BYTES_MAX = 64_000_000
"""A document of 10,000 signals has some 10 MB."""
NO_STATE = ""
"""The key of what was learned where a machine has no operating states, or none of them held."""

Numbers = Mapping[str, Any]
"""What one detector learned of one signal: numbers, texts and lists of them, by name."""
Machines = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Numbers]]]]
"""By machine, operating state, signal and detector."""


class LearnedError(Exception):
    """The document cannot be used; the text says why, in words."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a teach-in found. made: what it was made of, for people (file, from, to, rows). by, at: who approved it and when
    (RFC 3339 UTC), empty while nobody has.
    """

    machines: Machines
    made: Mapping[str, Any]
    by: str = ""
    at: str = ""

    def approved(self, by: str, at: str) -> "Learned":
        return replace(self, by=by, at=at)

    @property
    def plain(self) -> dict[str, Any]:
        """All but the hash, as it is written."""
        return {
            "format": FORMAT,
            "made": dict(self.made),
            "approved": {"by": self.by, "at": self.at} if self.by else None,
            "machines": self.machines,
        }

    @property
    def sha(self) -> str:
        """sha256 of all of it, 64 hex: the same numbers, made and approved in the same way, have the same."""
        return hashlib.sha256(orjson.dumps(self.plain, option=orjson.OPT_SORT_KEYS)).hexdigest()


NOTHING = Learned({}, {})


def to_bytes(learned: Learned) -> bytes:
    """The document, for people to read too."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps({**learned.plain, "sha256": learned.sha}, option=options)


def from_bytes(data: bytes) -> Learned:
    """The document that `to_bytes` wrote. Raises LearnedError."""
    try:
        plain = orjson.loads(data)
        if plain["format"] != FORMAT:
            raise LearnedError(f"it has format {plain['format']}, this release reads {FORMAT}")
        approved = plain["approved"] or {"by": "", "at": ""}
        found = Learned(plain["machines"], plain["made"], approved["by"], approved["at"])
        if plain["sha256"] != found.sha:
            raise LearnedError("it was changed after it was approved: its hash does not fit")
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise LearnedError(f"it cannot be read: {error}") from error
    return found


def path_in(data_dir: Path) -> Path:
    return data_dir / FOLDER / FILE


def read(data_dir: Path) -> Learned:
    """What is in force in this data directory; NOTHING where there is none. Raises LearnedError, with the file's name."""
    path = path_in(data_dir)
    try:
        if path.stat().st_size > BYTES_MAX:
            raise LearnedError(f"{path}: is larger than {BYTES_MAX // 10**6} MB")
        return from_bytes(path.read_bytes())
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        raise LearnedError(f"{path}: {error.strerror}") from error
    except LearnedError as error:
        raise LearnedError(f"{path}: {error}") from error


def write(data_dir: Path, learned: Learned) -> Path:
    """Put it in force: whole or not at all, also when the power goes. What was there before stays beside it, by its hash."""
    path = path_in(data_dir)
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with suppress(LearnedError):
        before = read(data_dir)
        if before is not NOTHING and before.sha != learned.sha:
            _put(path.with_name(f"norms-{before.sha[:12]}.json"), to_bytes(before))
    _put(path, to_bytes(learned))
    return path


def _put(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.new")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
