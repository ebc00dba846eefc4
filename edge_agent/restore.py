"""From a backup to an agent that can be started: everything is checked before anything is written.

Rule 1: a backup that is not whole writes nothing. Rule 2: what lies in the way is kept: without `force` nothing is done,
with it the old files are moved aside. Rule 3: the main file of the configuration comes last: an agent cannot be started
from half of a restore, and the next restore begins anew.
"""

import itertools
import os
import pwd
import shutil
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edge_agent import archive, config, control
from edge_agent.archive import Archive, Item, Manifest
from edge_agent.messages import topics as messages
from edge_agent.store import copy, disk

STAGING = ".restoring"
ASIDE = "before-restore"
OURS = frozenset({control.LOCK, control.SOCKET, STAGING, "lost+found"})
"""What may lie in a data directory that counts as empty; the last where it is a disk of its own."""
SECRETS = "secrets"
SPARE_BYTES = 16_000_000


class Refused(Exception):
    """Nothing was written; why, in words with what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where things go. config: the folder of the configuration. main: its main file."""

    config: Path
    data: Path
    main: Path

    def place(self, item: Item) -> Path:
        """Where a file of the archive belongs."""
        folder, _, rest = item.path.partition("/")
        match folder:
            case archive.DATA:
                return self.data / rest
            case archive.SECRETS:
                return self.data / SECRETS / rest
            case archive.ELSEWHERE:
                return self.config / archive.ELSEWHERE / rest
            case _:
                return self.config / rest

    def root(self, path: Path) -> Path:
        return self.data if path.is_relative_to(self.data) else self.config


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done. count: the journal's new epoch; None without a journal, or when it begins at the next start.

    missing: secrets that this PC does not have yet. aside: where the files are that were in the way. notes: in words.
    """

    manifest: Manifest
    target: Target
    count: copy.Count | None
    missing: tuple[str, ...]
    aside: tuple[Path, ...]
    notes: tuple[str, ...]


def check_version(manifest: Manifest, version: str) -> None:
    """Raises Refused when the backup comes from a newer release, whose configuration may say more than we know."""
    if _numbers(manifest.version) > _numbers(version):
        raise Refused(
            f"the backup was made by edge-agent {config.printable(manifest.version)} and this is {version}: install "
            "that version or a later one"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdecimal() and len(part) < 10)


def target_of(manifest: Manifest, to: Path | None, data_dir: Path | None, default: Path) -> Target:
    """Where this backup goes: to the folder that is named, else to `default` when it came from there. Raises Refused."""
    if to is None and manifest.config_from != str(default):
        raise Refused(f"say where the configuration goes: --to FOLDER (it came from {_shown(manifest.config_from)})")
    folder = (to or default).resolve()
    main = folder / manifest.config.partition("/")[2]
    if data_dir is not None:
        data = data_dir
    elif manifest.data_dir is not None:
        data = Path(os.path.normpath(folder / manifest.data_dir))
    else:
        data = config.default_data_dir(main)
    # Which of the two lies within the other is seen in their names: each must have one only.
    return Target(folder, data.resolve(), main)


def restore(found: Archive, target: Target, *, wall_us: int, force: bool = False) -> Restored:
    """Put everything in its place. Raises Refused, archive.NotABackup, control.AlreadyRunning, OSError."""
    manifest = found.manifest
    for folder in dict.fromkeys([target.data, *_data_of_what_lies_there(target)]):
        if (folder / control.LOCK).exists():
            with control.hold(folder):
                pass  # no agent works there
    in_the_way = list(_in_the_way(manifest, target))
    if in_the_way and not force:
        more = f" and {len(in_the_way) - 3} more" if len(in_the_way) > 3 else ""
        raise Refused(
            f"{', '.join(map(str, in_the_way[:3]))}{more} would be overwritten or mixed with what is restored: name "
            "an empty folder, or use --force, which moves the old files aside"
        )
    _check_room(manifest, target)
    with ExitStack() as undo:
        _make(target.config, 0o755, undo)
        _make(target.data, 0o700, undo)  # as the agent makes it
        with control.hold(target.data):
            count, aside, notes = _write(found, target, in_the_way, wall_us)
        undo.pop_all()
    found_notes, missing = _looked(manifest, target)
    return Restored(manifest, target, count, missing, aside, (*notes, *_owned(target), *found_notes))


def _data_of_what_lies_there(target: Target) -> list[Path]:
    """The data directory of the configuration that would be moved aside: its agent may run."""
    if not target.main.is_file():
        return []
    stated = config.stated_data_dir(target.main)
    return [(stated[0] / stated[1] if stated else config.default_data_dir(target.main)).resolve()]


def _owned(target: Target) -> list[str]:
    """Whoever restores as root may leave an agent that cannot read its own files."""
    if os.geteuid() != 0:
        return []
    data, folder = (_owner(each) for each in (target.data, target.config))
    whose = (
        f"everything belongs to {data}"
        if data == folder
        else f"the data belong to {data}, the configuration to {folder}"
    )
    return [f"{whose}; for an agent that runs as another user: chown -R USER: {target.data} {target.config}"]


def _owner(folder: Path) -> str:
    owner = folder.stat().st_uid
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)


def _in_the_way(manifest: Manifest, target: Target) -> Iterator[Path]:
    """Whatever a restored agent would find beside what was restored, and files that would be written over."""
    found = list(_entries(target.data, target.config, OURS | {SECRETS}))
    if target.config != target.data:
        found += _entries(target.config, target.data, frozenset({STAGING}))
    known = frozenset(found)
    for place in sorted(set(map(target.place, manifest.files))):
        if os.path.lexists(place) and known.isdisjoint([place, *place.parents]):
            yield place
    yield from found


def _entries(folder: Path, but: Path, names: AbstractSet[str]) -> Iterator[Path]:
    """Everything in a folder but what has one of these names, or was moved aside, or lies in the other folder."""
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if each == but or each.name in names or each.name.startswith(ASIDE):
            continue
        if but.is_relative_to(each):
            yield from _entries(each, but, names)
        else:
            yield each


def _check_room(manifest: Manifest, target: Target) -> None:
    parts = [(target.data, (archive.DATA, archive.SECRETS)), (target.config, (archive.CONFIG, archive.ELSEWHERE))]
    for folder, kinds in parts:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir():
            raise Refused(f"{there} is no folder: name another")
        need = sum(item.bytes for item in manifest.files if item.path.partition("/")[0] in kinds) + SPARE_BYTES
        free = shutil.disk_usage(there).free
        if free < need:
            raise Refused(f"{there} has {free / 1e6:.0f} MB free and {need / 1e6:.0f} MB are needed: make room first")


def _make(folder: Path, mode: int, undo: ExitStack) -> None:
    """The folder with those above it; removed again, as far as they are new and empty, when the restore fails."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    undo.callback(_remove_empty, missing)


def _remove_empty(folders: Sequence[Path]) -> None:
    for each in folders:
        with ExitStack() as quiet:
            quiet.push(lambda kind, *_: kind is not None and issubclass(kind, OSError))
            (each / control.LOCK).unlink(missing_ok=True)
            each.rmdir()


def _write(
    found: Archive, target: Target, in_the_way: Sequence[Path], wall_us: int
) -> tuple[copy.Count | None, tuple[Path, ...], list[str]]:
    """Unpack beside the places, then move each file into its own."""
    notes: list[str] = []
    stagings = [folder / STAGING for folder in dict.fromkeys((target.data, target.config))]
    with ExitStack() as clean, ExitStack() as undo:
        for each in stagings:
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir(mode=0o700)
            clean.callback(shutil.rmtree, each, ignore_errors=True)
        staged = {item: _staged(item, target) for item in found.manifest.files}
        for path in staged.values():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        found.unpack(staged.__getitem__)
        count = _begin_anew(target, notes)
        aside = _move_aside(in_the_way, target, wall_us, undo)
        _move_in(found.manifest, staged, target, undo)
        _give(target.data / control.LOCK, target.data.stat())  # we have made it, and the agent must hold it
        undo.pop_all()
    return count, aside, notes


def _moved(path: Path, place: Path, undo: ExitStack) -> None:
    path.replace(place)
    undo.callback(place.replace, path)


def _new_folder(folder: Path, mode: int, undo: ExitStack) -> None:
    folder.mkdir(mode=mode)
    undo.callback(_remove_empty, [folder])


def _staged(item: Item, target: Target) -> Path:
    """By its name in the archive: two of them may have one place, such as a certificate in `pki` that the configuration names."""
    return target.root(target.place(item)) / STAGING / item.path


def _begin_anew(target: Target, notes: list[str]) -> copy.Count | None:
    staging = target.data / STAGING / archive.DATA
    if not (staging / disk.FILE).exists():
        return None
    count = copy.begin_anew(staging)
    if count is None:
        notes.append(
            f"{disk.FILE} of the backup is damaged or of another format: the agent mends it at its first start"
        )
    return count


def _move_aside(in_the_way: Sequence[Path], target: Target, wall_us: int, undo: ExitStack) -> tuple[Path, ...]:
    """What lies in the way, into a folder of its own beside it. Nothing is removed."""
    made: dict[Path, Path] = {}
    stamp = messages.to_utc(wall_us).replace(":", "").replace("-", "")[:15]
    for path in in_the_way:
        root = target.root(path)
        if root not in made:
            made[root] = _unused(root / f"{ASIDE}-{stamp}")
        place = made[root] / path.relative_to(root)
        for folder in reversed([each for each in place.parents if each.is_relative_to(root) and not each.exists()]):
            _new_folder(folder, 0o700, undo)
        _moved(path, place, undo)
    return tuple(made.values())


def _unused(folder: Path) -> Path:
    """Two restores may bear one time, on a PC whose clock is not set."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([folder], others) if not os.path.lexists(each))


def _move_in(manifest: Manifest, staged: dict[Item, Path], target: Target, undo: ExitStack) -> None:
    """Each file with its mode and its owner; the marker beside the journal; the main file of the configuration last."""
    owners = {root: root.stat() for root in dict.fromkeys((target.data, target.config))}
    ordered = sorted(staged, key=lambda item: (item.path == manifest.config, item.path.startswith(archive.CONFIG)))
    marker = target.data / STAGING / archive.DATA / disk.MARKER
    moves: dict[Path, tuple[Path, int]] = {}
    if marker.exists():
        moves[target.data / disk.MARKER] = marker, 0o600
    for item in ordered:
        moves.setdefault(target.place(item), (staged[item], _mode(item)))
    for place, (source, mode) in moves.items():
        root = target.root(place)
        private = root == target.data
        for folder in reversed([each for each in place.parents if each.is_relative_to(root) and not each.exists()]):
            _new_folder(folder, 0o700 if private else 0o755, undo)
            _give(folder, owners[root])
        source.chmod(mode)
        # What only one may read, such as a private key of the configuration, is for the agent.
        _give(source, owners[target.data if mode & 0o077 == 0 else root])
        _moved(source, place, undo)
        archive.sync_folder(place.parent)


def _mode(item: Item) -> int:
    return item.mode & 0o644 | 0o600 if item.path.startswith((archive.CONFIG, archive.ELSEWHERE)) else 0o600


def _give(path: Path, owner: os.stat_result) -> None:
    """What root restores belongs to whoever has the folder: the agent must be able to read it."""
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _looked(manifest: Manifest, target: Target) -> tuple[list[str], tuple[str, ...]]:
    """What the restored configuration still lacks here: (notes, names of secrets)."""
    notes = [
        f"the configuration names {_shown(path)}; put it there: {target.place(item)}"
        for item in manifest.files
        if (path := manifest.elsewhere.get(item.path)) is not None and not Path(path).exists()
    ]
    try:
        loaded = config.load(target.main)
    except config.ConfigErrors as error:
        return [*notes, *(f"not valid here: {each}" for each in error.errors)], ()
    if loaded.sha != manifest.config_sha:
        notes.append("the configuration is not the one of the backup: other files are included here too")
    if loaded.config.agent.data_dir.resolve() != target.data:
        notes.append(f"change agent.data_dir to {target.data}: it says {loaded.config.agent.data_dir}")
    wanted = config.secrets_of(loaded.config)
    absent = {each.path for each in config.missing_secrets(loaded)}
    missing = [ref.name for ref, _, path in loaded.named_secrets if path in absent and ref in wanted]
    return notes, tuple(dict.fromkeys(missing))


def _shown(text: str) -> str:
    return config.printable(text)
