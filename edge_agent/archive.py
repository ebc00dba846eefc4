"""The file of a backup: a tar.gz whose first member says what follows, with the checksum of each.

Rule 1: nothing of an archive is believed before all of it was read: a damaged, cut off or foreign one is told in words
(`NotABackup`) and has written nothing. Rule 2: it holds plain files below four folders and nothing else: no links, no
devices, no absolute paths, no way out, so that it may come from anywhere.

tarfile's own reader follows what an archive asks for (names of any length, sparse files, headers of any size); here each
header is read by itself and must be the one that the manifest announces.
"""

import contextlib
import gzip
import hashlib
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

PRODUCT, FORMAT = "edge-agent backup", 1
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 8_000_000
FILES_MAX = 20_000
NAME_BYTES_MAX = 240
"""Of a whole path in the archive: what a tar header has room for, in two pieces."""
BLOCK = tarfile.BLOCKSIZE
CHUNK = 1_000_000
COMPRESSION = 3
"""zlib's level: readings shrink to much the same at each, and the file is written in a third of the time."""
CONFIG, ELSEWHERE, DATA, SECRETS = "config", "elsewhere", "data", "secrets"
FOLDERS = (CONFIG, ELSEWHERE, DATA, SECRETS)
"""The configuration in its layout, files that it names by an absolute path, the data directory, secrets."""
OF_DATA = re.compile(r"data/(journal\.db|history\.db|(pki|learned)/.+)")
"""What may be put into a data directory: an archive names places, and only these are the agent's."""
OF_SECRETS = re.compile(r"secrets/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
SHA = re.compile(r"[0-9a-f]{64}")


class NotABackup(ValueError):
    """The file is no backup, a damaged one, or one that this version does not know; in words for people."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file. path: in the archive. mode: permission bits."""

    path: str
    bytes: int
    sha256: str
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not in the archive. name: as people know it; why: in words, with what to do."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of itself.

    made: RFC 3339 UTC. config: the main file's path in the archive; config_sha: as `status` shows it. config_from,
    data_from: the folders of the agent that was backed up, absolute. data_dir: as the configuration names it, relative to
    the folder `config` or absolute; None: it leaves that to the default. epoch, seq, undelivered: of the journal, None
    when there is none. elsewhere: path in the archive → absolute path by which the configuration names it.
    """

    version: str
    agent: str
    made: str
    config: str
    config_sha: str
    config_from: str
    data_from: str
    data_dir: str | None
    epoch: str | None
    seq: int | None
    undelivered: int | None
    history: bool
    secrets: bool
    files: tuple[Item, ...]
    left_out: tuple[LeftOut, ...]
    elsewhere: dict[str, str]

    @property
    def bytes(self) -> int:
        """Of all files, unpacked."""
        return sum(item.bytes for item in self.files)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be packed: where it lies, and what it is called in the archive."""

    path: str
    file: Path
    mode: int = 0o600


# ------------------------------------------------------------------------------------------------------------ writing


def hashed(source: Source) -> Item:
    """The file's size and checksum. OSError as it comes."""
    sha, size = hashlib.sha256(), 0
    with source.file.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return Item(source.path, size, sha.hexdigest(), source.mode)


def write(target: Path, manifest: Manifest, sources: Sequence[Source]) -> int:
    """The whole archive or none, 0600. sources: in the order of manifest.files. Returns its bytes.

    Raises OSError as it comes, ValueError when a file is not what it was, or has a name that is too long.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # 0600
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=COMPRESSION, mtime=0) as packed:
                _pack(packed, manifest, sources)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return size


def _pack(packed: gzip.GzipFile, manifest: Manifest, sources: Sequence[Source]) -> None:
    text = json.dumps({"product": PRODUCT, "format": FORMAT, **asdict(manifest)}, ensure_ascii=False, indent=1).encode()
    packed.write(_header(MANIFEST, len(text), 0o600, 0) + text + _padding(len(text)))
    for item, source in zip(manifest.files, sources, strict=True):
        packed.write(_header(item.path, item.bytes, item.mode, int(source.file.stat().st_mtime)))
        left, sha = item.bytes, hashlib.sha256()
        with source.file.open("rb") as file:
            while left and (chunk := file.read(min(CHUNK, left))):
                packed.write(chunk)
                sha.update(chunk)
                left -= len(chunk)
            if left or file.read(1) or sha.hexdigest() != item.sha256:
                raise ValueError(f"{source.file} was changed while it was read: begin again")
        packed.write(_padding(item.bytes))
    packed.write(bytes(2 * BLOCK))


def _header(name: str, size: int, mode: int, mtime: int) -> bytes:
    if len(name.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"{name}: the path is too long for a backup (at most {NAME_BYTES_MAX} bytes)")
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.mtime = size, mode, mtime
    return about.tobuf(tarfile.GNU_FORMAT if len(name.encode()) <= tarfile.LENGTH_NAME else tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class Archive:
    """A backup that was read through once and is whole. manifest: what it holds."""

    file: BinaryIO
    name: str
    manifest: Manifest

    def unpack(self, place: Callable[[Item], Path]) -> None:
        """Write each file where `place` says (its folder is there, the file is not), 0600 and synced.

        Raises NotABackup when the archive has changed since it was read, OSError as it comes.
        """
        _read(self.file, self.name, lambda item: _written(place(item)))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Read it through, writing nothing. Raises NotABackup in words, OSError as it comes."""
    with path.open("rb") as file:
        if not file.seekable():
            raise NotABackup(f"{path}: it is read twice, which this cannot be: save it in a file first")
        yield Archive(file, str(path), _read(file, str(path), lambda _: contextlib.nullcontext(None)))


@contextlib.contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


Sink = Callable[[Item], contextlib.AbstractContextManager[BinaryIO | None]]


def _read(file: BinaryIO, name: str, sink: Sink) -> Manifest:
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as packed:
            manifest = _manifest(_member(packed, MANIFEST, MANIFEST_BYTES_MAX))
            for item in manifest.files:
                with sink(item) as target:
                    _copied(packed, item, target)
            _end(packed)
    except NotABackup as error:
        raise NotABackup(f"{name}: {error}") from None
    except EOFError:
        raise NotABackup(f"{name}: the file is cut off: take another copy of it") from None
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, UnicodeError, OverflowError) as error:
        raise NotABackup(f"{name}: is no backup of edge-agent, or a damaged one ({error})") from error
    return manifest


def _exactly(packed: gzip.GzipFile, size: int) -> bytes:
    found = packed.read(size)
    if len(found) < size:
        raise EOFError
    return found


def _member(packed: gzip.GzipFile, name: str, most: int) -> bytes:
    try:
        size = _size(packed, name)
    except NotABackup as error:
        raise NotABackup(f"is no backup of edge-agent: {error}") from None
    if size > most:
        raise NotABackup(f"{name} has {size} bytes, more than the {most} that are allowed")
    return _exactly(packed, size + len(_padding(size)))[:size]


def _size(packed: gzip.GzipFile, name: str) -> int:
    """The size in the next header, which must be that of this plain file."""
    about = tarfile.TarInfo.frombuf(_exactly(packed, BLOCK), "utf-8", "strict")
    if about.type != tarfile.REGTYPE or about.linkname or about.size < 0:
        raise NotABackup(f"{_shown(about.name)} is no plain file")
    if about.name != name:
        raise NotABackup(f"holds {_shown(about.name)} where {_shown(name)} should be")
    return about.size


def _copied(packed: gzip.GzipFile, item: Item, target: BinaryIO | None) -> None:
    if _size(packed, item.path) != item.bytes:
        raise NotABackup(f"{_shown(item.path)} has another size than the manifest says")
    sha, left = hashlib.sha256(), item.bytes
    while left:
        chunk = _exactly(packed, min(CHUNK, left))
        sha.update(chunk)
        left -= len(chunk)
        if target is not None:
            target.write(chunk)
    _exactly(packed, len(_padding(item.bytes)))
    if sha.hexdigest() != item.sha256:
        raise NotABackup(f"{_shown(item.path)} is damaged (its checksum is wrong): take another copy of the backup")


def _end(packed: gzip.GzipFile) -> None:
    """Two empty blocks, and nothing behind them; the last read checks gzip's own sums."""
    if _exactly(packed, 2 * BLOCK).strip(b"\0") or packed.read(1):
        raise NotABackup("holds more than its manifest says")


# ------------------------------------------------------------------------------------------------- what the manifest says


def _manifest(text: bytes) -> Manifest:
    try:
        plain: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotABackup(f"its manifest cannot be read: {error}") from None
    if not isinstance(plain, dict) or plain.pop("product", None) != PRODUCT:
        raise NotABackup("is no backup of edge-agent")
    made_by = plain.pop("format", None)
    if made_by != FORMAT:
        newer = isinstance(made_by, int) and made_by > FORMAT
        hint = f"; it was made by edge-agent {str(plain.get('version'))[:20]!r}, install that" if newer else ""
        raise NotABackup(f"has format {str(made_by)[:20]}, this version knows {FORMAT}{hint}")
    _check_types(plain)
    manifest = Manifest(
        **{
            **plain,
            "files": tuple(_item(each) for each in plain["files"]),
            "left_out": tuple(
                LeftOut(str(each.get("name", "")), str(each.get("why", ""))) for each in plain["left_out"]
            ),
        }
    )
    _check_names(manifest)
    return manifest


TYPES: dict[str, tuple[type, ...]] = {
    "data_dir": (str, type(None)), "epoch": (str, type(None)), "seq": (int, type(None)), "undelivered": (int, type(None)),
    "history": (bool,), "secrets": (bool,), "files": (list,), "left_out": (list,), "elsewhere": (dict,),
}  # fmt: skip
"""Of the manifest's keys; all others are texts."""


def _check_types(plain: dict[str, Any]) -> None:
    wanted = {each.name for each in fields(Manifest)}
    if plain.keys() != wanted:
        odd = min(wanted ^ plain.keys())
        raise NotABackup(f"its manifest {'lacks' if odd in wanted else 'has an unknown'} {_shown(odd)}")
    for key, value in plain.items():
        if not isinstance(value, TYPES.get(key, (str,))):
            raise NotABackup(f"{key} in its manifest is not what it should be")
    lists = [*plain["files"], *plain["left_out"]]
    if len(lists) > FILES_MAX or not all(isinstance(each, dict) for each in lists):
        raise NotABackup(f"its manifest names more than {FILES_MAX} files, or something that is none")
    if not all(isinstance(each, str) and each.startswith("/") for each in plain["elsewhere"].values()):
        raise NotABackup("elsewhere in its manifest is not what it should be")
    if "\0" in (plain["data_dir"] or ""):
        raise NotABackup("data_dir in its manifest is not what it should be")
    json.dumps(plain, ensure_ascii=False).encode()  # raises UnicodeError for what nobody could be shown


def _item(plain: dict[str, Any]) -> Item:
    match plain:
        case {"path": str(path), "bytes": int(size), "sha256": str(sha), "mode": int(mode)}:
            if len(plain) == len(fields(Item)) and size >= 0 and SHA.fullmatch(sha) and not mode & ~0o777:
                return Item(path, size, sha, mode)
    raise NotABackup(f"its manifest names a file that cannot be: {_shown(str(plain.get('path')))}")


def _check_names(manifest: Manifest) -> None:
    seen: set[str] = set()
    for item in manifest.files:
        check_name(item.path)
        if item.path in seen:
            raise NotABackup(f"{_shown(item.path)} stands twice in its manifest")
        seen.add(item.path)
    for path in seen:
        for parent in Path(path).parents:
            if str(parent) in seen:
                raise NotABackup(f"{_shown(str(parent))} is a file and a folder in its manifest")
    if manifest.config not in seen or not manifest.config.startswith(f"{CONFIG}/"):
        raise NotABackup("holds no configuration")
    if not seen.issuperset(manifest.elsewhere):
        raise NotABackup("its manifest names files that are not in it")


def is_name(path: str) -> bool:
    """Whether a file may be called so in a backup."""
    try:
        check_name(path)
    except NotABackup:
        return False
    return True


def check_name(path: str) -> None:
    """Raises NotABackup for a name that leads out of the folders of a backup, or that is none of the agent's."""
    parts = path.split("/")
    if (
        len(parts) < 2
        or parts[0] not in FOLDERS
        or any(part in {"", ".", ".."} for part in parts)
        or not path.isprintable()
        or len(path.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX
    ):
        raise NotABackup(f"{_shown(path)} is no place for a file of a backup")
    if (parts[0] == DATA and not OF_DATA.fullmatch(path)) or (parts[0] == SECRETS and not OF_SECRETS.fullmatch(path)):
        raise NotABackup(f"{_shown(path)} is none of the files of an agent")


def _shown(text: str) -> str:
    return repr(text[:200])
