"""What has to go along to another PC: the configuration with all it names, certificates, learned norms, the journal.

Rule 1: the agent runs on: everything is read as it stands, the journal as one commit has left it. Rule 2: whoever has a
key can speak as the agent, so private keys are secrets like passwords, and secrets are left out unless they are asked
for. Rule 3: what is left out is named, with what to do about it; nothing is left out in silence.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edge_agent import archive, config, yamlfile
from edge_agent.archive import LeftOut, Manifest, Source
from edge_agent.config import Loaded
from edge_agent.messages import topics as messages
from edge_agent.store import copy, disk, shelf

PKI, OWN = "pki", "own"
"""Of the certificates in the data directory: the folder, and in it the agent's own pairs, keys included."""
LEARNED = "learned"
"""Learned norms in the data directory."""
FILE_BYTES_MAX = 64_000_000
"""Of a certificate or a learned norm: a larger file is none."""
PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
KEY_FIELDS = ("key", "private_key")
ODD = "its name is too long for a backup, or has a sign that cannot be printed"
"""A restore would refuse the whole file for such a name."""


class NoBackup(Exception):
    """The backup cannot be made; in words."""


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that lies on disk. notes: what a person should know of it, in words."""

    file: Path
    bytes: int
    manifest: Manifest
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Gathered:
    sources: list[Source] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    withheld: set[Path] = field(default_factory=set)
    """Private keys that are named among what is left out."""


def make(
    loaded: Loaded, target: Path | None, *, version: str, wall_us: int, secrets: bool = False, history: bool = False
) -> Made:
    """Write the backup of the agent with this configuration. target: None names it by agent and time, in this folder.

    Raises NoBackup in words, OSError as it comes.
    """
    made = messages.to_utc(wall_us)
    agent = loaded.config.agent
    target = target or Path(f"{agent.id}-{re.sub(r'[-:]', '', made)[:15]}Z.tar.gz")
    _check_target(target, agent.id)
    data_dir = agent.data_dir
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as beside:  # 0700
        found = _Gathered()
        root = _configuration(found, loaded, secrets=secrets)
        _certificates(found, data_dir, secrets=secrets)
        _tree(found, data_dir / LEARNED, f"{archive.DATA}/{LEARNED}", secrets=secrets)
        _secrets(found, loaded, Path(beside), secrets=secrets)
        counted = _databases(found, data_dir, Path(beside), history=history)
        main = _normal(loaded.files[0])
        manifest = Manifest(
            version=version,
            agent=agent.id,
            made=made,
            config=f"{archive.CONFIG}/{main.relative_to(root)}",
            config_sha=loaded.sha,
            config_from=str(root),
            data_from=str(_normal(data_dir)),
            data_dir=_data_dir(main, root),
            epoch=counted.epoch if counted else None,
            seq=counted.seq if counted else None,
            undelivered=counted.undelivered if counted else None,
            history=any(each.path == f"{archive.DATA}/{shelf.FILE}" for each in found.sources),
            secrets=secrets,
            files=tuple(archive.hashed(each) for each in found.sources),
            left_out=tuple(found.left_out),
            elsewhere=found.elsewhere,
        )
        try:
            size = archive.write(target, manifest, found.sources)
        except ValueError as error:
            raise NoBackup(str(error)) from error
    return Made(target, size, manifest, tuple(found.notes))


def _check_target(target: Path, agent: str) -> None:
    if not target.parent.is_dir():
        raise NoBackup(f"{target.parent}: there is no such folder")
    if target.exists() and not target.is_file():
        # A pipe or a device would be gone, /dev/null for everybody.
        raise NoBackup(f"{target} exists and is no file: name a file")
    if target.exists() and target.stat().st_size:
        try:
            with archive.opened(target) as found:
                whose = found.manifest.agent
        except archive.NotABackup:
            raise NoBackup(f"{target} exists and is no whole backup: name another file, or remove it") from None
        if whose != agent:
            raise NoBackup(f"{target} is the backup of agent {whose}: name another file, or remove it")


# ------------------------------------------------------------------------------------------------ the configuration


def _configuration(found: _Gathered, loaded: Loaded, *, secrets: bool) -> Path:
    """The files of the configuration and those it names. Returns the folder above all that it names by relative paths."""
    files = [_normal(each) for each in loaded.files]
    in_full = set(_named_in_full(files))
    named = list(_named_files(loaded))
    near = [files[0], *(path for path in (*files[1:], *(path for _, path in named)) if path not in in_full)]
    root = Path(os.path.commonpath([each.parent for each in near]))
    for path in dict.fromkeys(files):
        _put(found, path, root)
    for key, path in named:
        _put_named(found, key, path, root, secrets=secrets)
    # Below the root, and yet named from the root of the disk on: they must lie there again.
    inside = [each.file for each in found.sources if each.file in in_full and each.file.is_relative_to(root)]
    found.elsewhere.update({f"{archive.CONFIG}/{path.relative_to(root)}": str(path) for path in inside})
    return root


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _named_in_full(files: Sequence[Path]) -> Iterator[Path]:
    """Whatever these files name from the root of the disk on, patterns of `include` as the files that they mean.

    A file in the folder of such a one may be named by a relative path all the same.
    """
    for root in (yamlfile.load(file).root for file in files):
        yield from (_normal(Path(text)) for text in _texts(root) if text.startswith("/"))
        for pattern in root.get("include") or ():
            if pattern.startswith("/"):
                yield from (_normal(each) for each in Path("/").glob(pattern.lstrip("/")))


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, yamlfile.Table | yamlfile.Items):
        for each in node.values() if isinstance(node, yamlfile.Table) else node:
            yield from _texts(each)


def _named_files(loaded: Loaded) -> Iterator[tuple[str, Path]]:
    """(keys, absolute path) of every file that the configuration names: certificates and their keys."""
    tls = loaded.config.mqtt.tls if loaded.config.mqtt else None
    if tls is not None:
        for key in ("ca", "cert", "key"):
            value = getattr(tls, key)
            if isinstance(value, Path):
                yield f"mqtt.tls.{key}", value
    for name, connection in loaded.config.connections.items():
        yield from _paths(connection.settings, f"connections.{name}")


def _paths(settings: BaseModel, keys: str) -> Iterator[tuple[str, Path]]:
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Path):
            yield f"{keys}.{key}", value
        elif isinstance(value, BaseModel):
            yield from _paths(value, f"{keys}.{key}")


def _put_named(found: _Gathered, key: str, path: Path, root: Path, *, secrets: bool) -> None:
    content = _content(path)
    if content is None:
        found.left_out.append(LeftOut(str(path), f"{key} names it, and it cannot be read here"))
        return
    private = key.rpartition(".")[2] in KEY_FIELDS or PRIVATE.search(content) is not None
    if private and not secrets:
        found.left_out.append(LeftOut(str(path), f"{key}, a private key: copy it by hand, or use --secrets"))
        found.withheld.add(path)
        return
    _put(found, path, root, 0o600 if private else None)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= FILE_BYTES_MAX else None
    except OSError:
        return None


def _put(found: _Gathered, path: Path, root: Path, mode: int | None = None) -> None:
    """A file of the configuration: in its layout below the root, or among those from elsewhere."""
    inside = path.is_relative_to(root)
    place = f"{archive.CONFIG}/{path.relative_to(root)}" if inside else f"{archive.ELSEWHERE}{path}"
    if any(each.path == place for each in found.sources):
        return
    if not archive.is_name(place):
        raise NoBackup(f"{path}: {ODD}: give it another name")
    if not inside:
        found.elsewhere[place] = str(path)
    found.sources.append(Source(place, path, (path.stat().st_mode & 0o644) | 0o600 if mode is None else mode))


def _data_dir(main: Path, root: Path) -> str | None:
    """As the configuration names it: absolute, relative to the root, or not at all."""
    stated = config.stated_data_dir(main)
    if stated is None:
        return None
    folder, written = stated
    return written if Path(written).is_absolute() else os.path.relpath(folder.absolute() / written, root)


# ----------------------------------------------------------------------------------------------- the data directory


def _certificates(found: _Gathered, data_dir: Path, *, secrets: bool) -> None:
    """All of the pki folder. The agent's own pair goes whole or not at all: half of it keeps a line from starting."""
    folder = data_dir / PKI
    own = folder / OWN
    _tree(found, folder, f"{archive.DATA}/{PKI}", None if secrets else own, secrets=secrets)
    if not secrets and own.is_dir() and any(own.iterdir()):
        found.left_out.append(
            LeftOut(
                f"{PKI}/{OWN}",
                "the OPC UA certificate of this agent with its private key: use --secrets, or the other PC makes a new "
                "one, which every server must then trust",
            )
        )


def _tree(found: _Gathered, folder: Path, path: str, but: Path | None = None, *, secrets: bool) -> None:
    """Every plain file below a folder, sorted, but hidden leftovers; links are not followed."""
    if not folder.is_dir():
        return
    for each in sorted(folder.iterdir()):
        place = f"{path}/{each.name}"
        if each == but or each in found.withheld or each.name.startswith("."):
            continue
        if each.is_dir() and not each.is_symlink():
            _tree(found, each, place, but, secrets=secrets)
        elif why := _why_not(each, place, secrets=secrets):
            found.left_out.append(LeftOut(place.partition("/")[2], why))
        else:
            found.sources.append(Source(place, each))


def _why_not(file: Path, place: str, *, secrets: bool) -> str | None:
    """Why this file of the data directory stays out; None when it is taken."""
    if file.is_symlink():
        return "a link, which is not followed: copy what it names by hand"
    if not file.is_file() or file.stat().st_size > FILE_BYTES_MAX:
        return "no plain file, or too large for a certificate or a norm"
    if not secrets and PRIVATE.search(file.read_bytes()):
        return "a private key: copy it by hand, or use --secrets"
    return None if archive.is_name(place) else f"{ODD}: copy it by hand, or give it another name"


def _secrets(found: _Gathered, loaded: Loaded, beside: Path, *, secrets: bool) -> None:
    for ref in config.secrets_of(loaded.config):
        if not secrets:
            why = f"a secret: lay it into data_dir/secrets/{ref.name} (mode 0600) on the other PC, or use --secrets"
            found.left_out.append(LeftOut(f"secret {ref.name}", why))
            continue
        try:
            text = config.secret(ref, loaded.config)
        except config.SecretError as error:
            found.left_out.append(LeftOut(f"secret {ref.name}", f"cannot be had here: {error}"))
            continue
        file = beside / f"secret-{ref.name}"
        file.touch(0o600)
        file.write_text(f"{text}\n", "utf-8", newline="")
        found.sources.append(Source(f"{archive.SECRETS}/{ref.name}", file))


def _databases(found: _Gathered, data_dir: Path, beside: Path, *, history: bool) -> copy.Count | None:
    """The journal, and the history when it is asked for. Returns how far the journal has come."""
    counted = None
    if (data_dir / disk.FILE).exists():
        journal = _copied(found, data_dir / disk.FILE, beside)
        counted = copy.count(journal)
        if counted is None or not copy.is_sound(journal):
            found.notes.append(f"{data_dir / disk.FILE} is damaged: the copy has what can still be read, as it is")
    else:
        found.left_out.append(LeftOut(disk.FILE, f"the journal: there is none in {data_dir} yet"))
    if (data_dir / shelf.FILE).exists():
        if history:
            _copied(found, data_dir / shelf.FILE, beside)
        else:
            found.left_out.append(LeftOut(shelf.FILE, "the history, which may be large: use --history"))
    return counted


def _copied(found: _Gathered, file: Path, beside: Path) -> Path:
    target = beside / file.name
    target.touch(0o600)
    try:
        copy.copy(file, target)
    except copy.NotCopied as error:
        raise NoBackup(str(error)) from error
    found.sources.append(Source(f"{archive.DATA}/{file.name}", target))
    return target
