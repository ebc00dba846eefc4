"""Backup and restore: what goes along, what never does, and that nothing of a damaged file is ever put anywhere."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent import archive, backup, config, control, restore
from edge_agent.__main__ import main
from edge_agent.archive import Item, Manifest, Source
from edge_agent.contract import Frame
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store import copy, disk, moment, rows
from edge_agent.store.journal import Store, open_store
from tests import disks
from tests.conftest import StandingClock
from tests.hall import Hall, command, picky, played, press
from tests.system import Agent

FLIPS = int(os.environ.get("EDGE_AGENT_FLIPS", "60"))
SEED = int(os.environ.get("EDGE_AGENT_SEED", "20261128"))
WALL = 1_795_000_000_000_000
NOBODY = 65_534
LINK = "pki/trusted/link.der"
KEY = "-----BEGIN PRIVATE KEY-----\nsesame\n"
MAIN = {
    "agent": {"id": "hall2", "data_dir": "./state"},
    "mqtt": {
        "url": "mqtts://127.0.0.1:8883", "username": "hall2", "password": {"secret": "broker"},
        "tls": {"ca": "certs/ca.pem", "cert": "certs/agent.pem", "key": "certs/agent.key"},
    },
    "connections": {"plc": {"driver": "modbus", "url": "tcp://127.0.0.1:502"}},
    "machines": {},
    "include": ["machines/*.yaml", "../shared/types.yaml"],
}  # fmt: skip


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def frame(t: int, value: float, publish: bool = True) -> JudgedFrame:
    ts = np.array([WALL + t], dtype=np.int64)
    one = Frame("press", np.array([t], dtype=np.int64), ts, np.array([[value]]), np.zeros((1, 1), dtype=np.uint8))
    return JudgedFrame(one, np.full(1, -1, dtype=np.int16), np.array([publish]))


def filled(folder: Path, rows: int = 5) -> Store:
    """A store with so many readings that nobody has had, closed."""
    with open_store(folder, StandingClock()) as store:
        store.use_layouts([Layout("press", ("oil",), ())])
        for row in range(rows):
            store.put([frame(row * 1_000_000, float(row))])
    return store


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """The main file of a configuration in several files, with certificates, a journal, secrets and what is none of ours."""
    home = tmp_path / "plant" / "here"
    main_file = write(home / "agent.yaml", MAIN)
    write(home / "machines" / "press.yaml", {"machines": {"press": press()}})
    write(home.parent / "shared" / "types.yaml", {"types": {}})
    for name in ("ca.pem", "agent.pem"):
        write(home / "certs" / name, f"a certificate: {name}")
    write(home / "certs" / "agent.key", "-----BEGIN PRIVATE KEY-----\nsesame\n")
    data = home / "state"
    filled(data)
    write(data / "pki" / "trusted" / "press-1.der", "trusted")
    write(data / "pki" / "own" / "certificate.der", "own")
    write(data / "pki" / "own" / "key.pem", "-----BEGIN PRIVATE KEY-----\nsesame\n")
    write(data / "learned" / "press.json", {"k": 6})
    write(data / "secrets" / "broker", "sesame\n").chmod(0o600)
    write(data / "core.4711", "sesame")
    (data / "pki" / "trusted" / "link.der").symlink_to("/etc/passwd")
    return main_file


def made(plant: Path, **more: Any) -> backup.Made:
    target = plant.parent.parent.parent / "out.tar.gz"
    return backup.make(config.load(plant), target, version="0.1.0", wall_us=WALL, **more)


def put(file: Path, to: Path, **more: Any) -> restore.Restored:
    with archive.opened(file) as found:
        target = restore.target_of(found.manifest, to, None, Path("/nowhere"))
        return restore.restore(found, target, wall_us=WALL, **more)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


# --- what goes along ----------------------------------------------------------------------------------------------------


def test_a_backup_brings_back_the_configuration_in_its_layout_and_the_data_directory(
    plant: Path, tmp_path: Path
) -> None:
    file = made(plant).file
    assert file.stat().st_mode & 0o777 == 0o600
    done = put(file, tmp_path / "new")
    assert done.target.main == tmp_path / "new" / "here" / "agent.yaml"
    assert done.target.data == tmp_path / "new" / "here" / "state"
    before, after = tree(plant.parent.parent), tree(tmp_path / "new")
    for path in ("here/agent.yaml", "here/machines/press.yaml", "shared/types.yaml", "here/certs/ca.pem",
                 "here/state/pki/trusted/press-1.der", "here/state/learned/press.json"):  # fmt: skip
        assert after[path] == before[path], path
    assert done.missing == ("broker",)
    assert (tmp_path / "new" / "here" / "state" / "journal.db").stat().st_mode & 0o777 == 0o600
    assert not {path for path in after if "secret" in path or "own" in path or path.endswith((".key", "4711"))}
    assert not list((tmp_path / "new").rglob(".restoring"))


def test_nothing_secret_is_in_a_backup_unless_it_is_asked_for(plant: Path) -> None:
    plain = made(plant)
    assert b"sesame" not in gzip.decompress(plain.file.read_bytes())
    names = {each.name for each in plain.manifest.left_out}
    assert names == {LINK, "secret broker", "pki/own", str(plant.parent / "certs" / "agent.key")}
    whole = made(plant, secrets=True)
    assert gzip.decompress(whole.file.read_bytes()).count(b"sesame") == 3  # not the stray file
    assert {each.name for each in whole.manifest.left_out} == {LINK}
    done = put(whole.file, plant.parent.parent.parent / "new")
    assert done.missing == ()
    for name in ("state/secrets/broker", "certs/agent.key", "state/pki/own/key.pem"):
        path = done.target.main.parent / name
        assert b"sesame" in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600, name


def test_a_file_named_from_the_root_on_goes_along_and_is_told_where_it_belongs(tmp_path: Path) -> None:
    ca = write(tmp_path / "etc" / "ca.pem", "a certificate")
    main_file = write(tmp_path / "plant" / "agent.yaml", {
        **MAIN, "include": [], "machines": {"press": press()},
        "mqtt": {"url": "mqtts://127.0.0.1:8883", "tls": {"ca": str(ca)}},
    })  # fmt: skip
    file = backup.make(config.load(main_file), tmp_path / "b.tar.gz", version="0.1.0", wall_us=WALL).file
    ca.unlink()
    done = put(file, tmp_path / "new")
    copied = tmp_path / "new" / "elsewhere" / str(ca).lstrip("/")
    assert copied.read_text() == "a certificate"
    assert any(str(ca) in note and str(copied) in note for note in done.notes)


def test_what_lies_beside_a_file_named_in_full_keeps_its_layout(plant: Path, tmp_path: Path) -> None:
    """A folder that both have says nothing: ../shared/types.yaml is still found from where the main file lies."""
    ca = write(plant.parent.parent / "shared" / "ca.pem", "a certificate")
    write(plant, {**MAIN, "mqtt": {"url": "mqtts://127.0.0.1:8883", "tls": {"ca": str(ca)}}})
    done = put(made(plant).file, tmp_path / "new")
    assert (tmp_path / "new" / "shared" / "types.yaml").exists()
    assert not [each for each in done.notes if "configuration" in each and "belongs" not in each]


def test_files_of_a_pattern_from_the_root_on_are_told_where_they_belong(plant: Path, tmp_path: Path) -> None:
    write(plant, {**MAIN, "include": [str(plant.parent / "machines" / "*.yaml")]})
    file = made(plant).file
    shutil.move(plant.parent.parent, tmp_path / "away")
    done = put(file, tmp_path / "new")
    lacks = plant.parent / "machines" / "press.yaml"
    assert any(f"names {lacks}; put it there: {tmp_path / 'new' / 'machines'}" in each for each in done.notes)


def test_a_certificate_in_the_data_directory_that_the_configuration_names_is_restored(
    plant: Path, tmp_path: Path
) -> None:
    """It is a file of both."""
    ca = "state/pki/trusted/press-1.der"
    write(plant, {**MAIN, "mqtt": {"url": "mqtts://127.0.0.1:8883", "tls": {"ca": ca}}})
    file = made(plant).file
    assert (put(file, tmp_path / "new").target.main.parent / ca).read_text() == "trusted"
    with archive.opened(file) as found:
        apart = restore.target_of(found.manifest, tmp_path / "apart", tmp_path / "data", Path("/nowhere"))
        restore.restore(found, apart, wall_us=WALL)
    for place in (apart.main.parent / ca, tmp_path / "data" / "pki" / "trusted" / "press-1.der"):
        assert place.read_text() == "trusted"


@pytest.mark.parametrize("content", [KEY, "sesame, in another form"])
def test_a_private_key_in_the_data_directory_is_secret_too(plant: Path, content: str) -> None:
    write(plant.parent / "state" / "pki" / "mqtt.key", content)
    if content == KEY:
        write(plant.parent / "state" / "pki" / "another.pem", KEY)
    tls = {"ca": "certs/ca.pem", "cert": "certs/agent.pem", "key": "state/pki/mqtt.key"}
    write(plant, {**MAIN, "mqtt": {"url": "mqtts://127.0.0.1:8883", "tls": tls}})
    plain = made(plant)
    assert b"sesame" not in gzip.decompress(plain.file.read_bytes())
    names = [each.name for each in plain.manifest.left_out]
    assert names.count(str(plant.parent / "state" / "pki" / "mqtt.key")) == 1
    assert ("pki/another.pem" in names) == (content == KEY)


def test_a_name_that_a_restore_would_refuse_is_not_packed_and_told(plant: Path, tmp_path: Path) -> None:
    write(plant.parent / "state" / "pki" / "trusted" / "press\u00a03.der", "copied from a mail")
    done = made(plant)
    assert "pki/trusted/press\u00a03.der" in {each.name for each in done.manifest.left_out}
    put(done.file, tmp_path / "new")
    write(plant.parent / "machines" / "press\u00a03.yaml", {"machines": {"press-3": press()}})
    with pytest.raises(backup.NoBackup, match="cannot be printed: give it another name"):
        made(plant)


def test_a_pipe_or_a_device_is_not_replaced_by_a_backup(plant: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.tar.gz")
    with pytest.raises(backup.NoBackup, match="exists and is no file"):
        made(plant)
    assert (tmp_path / "out.tar.gz").is_fifo()


def test_a_backup_takes_the_place_of_an_earlier_one_and_of_no_other_agents(plant: Path) -> None:
    made(plant)
    content = made(plant).file.read_bytes()
    write(plant, {**MAIN, "agent": {"id": "hall3", "data_dir": "./state"}})
    with pytest.raises(backup.NoBackup, match="is the backup of agent hall2"):
        made(plant)
    assert (plant.parent.parent.parent / "out.tar.gz").read_bytes() == content


def test_a_file_alone_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`edge-agent backup FILE.tar.gz` backs up the agent of this PC, as the usage says."""
    main(["backup", str(tmp_path / "b.tar.gz")])
    assert "b.tar.gz is not valid" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_told_to_stop_leaves_no_secrets_behind(plant: Path, tmp_path: Path, number: signal.Signals) -> None:
    with contextlib.closing(disk.connect(plant.parent / "state" / "history.db")) as db:
        db.execute("CREATE TABLE big (x)")
        db.executemany("INSERT INTO big VALUES (?)", ([os.urandom(1_000_000)] for _ in range(100)))
    stick = tmp_path / "stick"
    stick.mkdir()
    words = [
        sys.executable,
        "-m",
        "edge_agent",
        "backup",
        str(plant),
        str(stick / "b.tar.gz"),
        "--secrets",
        "--history",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as making:
        until = time.monotonic() + 30
        while not list(stick.glob(".backup-*/secret-broker")) and time.monotonic() < until:
            time.sleep(0.01)
        assert list(stick.iterdir()), "the negative control"
        making.send_signal(number)
        assert making.wait(30) == 128 + number
    assert not list(stick.iterdir())


def test_the_commands_tell_what_they_did_and_what_to_do_next(
    plant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, new = tmp_path / "b.tar.gz", tmp_path / "new"
    assert main(["backup", str(plant), str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["agent"], told["undelivered"]) == (True, "hall2", 5)
    assert main(["backup", str(plant), str(file), "--secrets"]) == 0
    assert "WARNING: passwords and private keys are in it" in capsys.readouterr().out
    assert main(["restore", str(file), "--list"]) == 0
    assert "it is whole" in capsys.readouterr().out
    assert main(["restore", str(file)]) == 2
    assert "say where the configuration goes: --to FOLDER" in capsys.readouterr().err
    assert main(["restore", str(file), "--to", str(new)]) == 0
    told_text = capsys.readouterr().out
    assert "stop the agent on the old PC" in told_text
    assert "5 messages from before are delivered first" in told_text
    assert main(["restore", str(file), "--to", str(new)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert main(["restore", str(file), "--to", str(new), "--force", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["aside"]) == 2
    assert main(["restore", str(plant), "--to", str(tmp_path / "x")]) == 1
    assert "is no backup of edge-agent" in capsys.readouterr().err
    assert main(["backup", str(plant), str(plant)]) == 2
    assert "exists and is no whole backup" in capsys.readouterr().err
    assert main(["backup", str(write(tmp_path / "bad.yaml", {"agent": {}})), str(file)]) == 2


def test_force_moves_aside_what_lies_there_and_removes_nothing(plant: Path, tmp_path: Path) -> None:
    file = made(plant).file
    first = put(file, tmp_path / "new").target
    old = tree(first.config)
    with pytest.raises(restore.Refused, match="would be overwritten"):
        put(file, tmp_path / "new")
    assert tree(first.config) == old
    done = put(file, tmp_path / "new", force=True)
    kept = {content for folder in done.aside for content in tree(folder).values()}
    assert set(old.values()) <= kept | {b""} | {each for path, each in old.items() if path.endswith("/lock")}
    assert done.count is not None
    assert done.count.seq == 5


def test_what_was_moved_aside_is_not_written_over_when_the_clock_stands(plant: Path, tmp_path: Path) -> None:
    file = made(plant).file
    put(file, tmp_path / "new")
    for word in ("first", "second"):
        write(tmp_path / "new" / "here" / "agent.yaml", word)
        write(tmp_path / "new" / "here" / "state" / "journal.db", word)
        done = put(file, tmp_path / "new", force=True)
        assert {tree(each).get("journal.db", word.encode()) for each in done.aside} == {word.encode()}
    kept = [each.read_text() for each in (tmp_path / "new").rglob("before-restore*/**/*") if each.stat().st_size < 10]
    assert sorted(each for each in kept if each in {"first", "second"}) == ["first", "first", "second", "second"]


def test_a_file_that_bears_the_name_of_what_was_moved_aside_is_moved_aside_too(plant: Path, tmp_path: Path) -> None:
    other = plant.rename(plant.with_name("before-restore.yaml"))
    file = made(other).file
    mine = write(tmp_path / "new" / "here" / other.name, "mine")
    with pytest.raises(restore.Refused, match="would be overwritten"):
        put(file, tmp_path / "new")
    put(file, tmp_path / "new", force=True)
    assert "mine" in {each.read_text() for each in (tmp_path / "new").rglob(mine.name)}


@pytest.mark.parametrize("to", ["sub/../new", "link"])
def test_a_folder_may_be_named_by_detours(plant: Path, tmp_path: Path, to: str) -> None:
    """Its data directory lies within it, by whatever name."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to("new")
    file = made(plant).file
    put(file, tmp_path / to)
    done = put(file, tmp_path / to, force=True)
    assert done.target.main == tmp_path / "new" / "here" / "agent.yaml"
    assert not [each for each in done.notes if "data_dir" in each]


def test_the_data_go_where_the_restored_configuration_looks_for_them(
    plant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file says that is moved aside, and whoever has a data directory where the command is given."""
    write(plant, {**MAIN, "agent": {"id": "hall2"}})
    filled(plant.parent / "data")
    file = made(plant).file
    filled(tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path / "here")
    old = tree(tmp_path / "here")
    write(tmp_path / "new" / "here" / "agent.yaml", {"agent": {"id": "old", "data_dir": str(tmp_path / "old")}})
    done = put(file, tmp_path / "new", force=True)
    assert done.target.data == config.load(done.target.main).config.agent.data_dir
    assert (done.target.data / "journal.db").exists()
    assert tree(tmp_path / "here") == old
    assert not (tmp_path / "old").exists()


def test_the_configuration_of_an_agent_that_works_is_not_moved_aside(plant: Path, tmp_path: Path) -> None:
    file = made(plant).file
    there = tmp_path / "new" / "here" / "agent.yaml"
    write(there, {"agent": {"id": "old", "data_dir": str(tmp_path / "old")}})
    with control.hold(tmp_path / "old"):
        with pytest.raises(control.AlreadyRunning):
            put(file, tmp_path / "new", force=True)
    assert "old" in there.read_text()


def test_a_restore_that_fails_leaves_everything_as_it_was(plant: Path, tmp_path: Path) -> None:
    """Here at a file that would have to lie below another file."""
    with archive.opened(made(plant).file) as found:
        manifest = found.manifest
    text = write(tmp_path / "text", "x")
    sources = [
        Source(manifest.config, plant), Source("data/journal.db", plant.parent / "state" / "journal.db"),
        Source("data/pki/trusted/a.der", text), Source("config/here/state/journal.db/x", text),
    ]  # fmt: skip
    file = tmp_path / "x.tar.gz"
    archive.write(file, replace(manifest, files=tuple(map(archive.hashed, sources)), elsewhere={}), sources)
    put(made(plant).file, tmp_path / "new")
    before = names_of(tmp_path / "new"), tree(tmp_path / "new")
    for folder in ("new", "other"):
        with pytest.raises(OSError, match="Not a directory"):
            put(file, tmp_path / folder, force=True)
    assert (names_of(tmp_path / "new"), tree(tmp_path / "new")) == before
    assert not (tmp_path / "other").exists()


def names_of(folder: Path) -> list[str]:
    return sorted(str(each) for each in folder.rglob("*"))


def test_a_data_directory_is_made_for_the_agent_alone_and_may_be_a_disk_of_its_own(plant: Path, tmp_path: Path) -> None:
    file = made(plant).file
    data = put(file, tmp_path / "new").target.data
    assert data.stat().st_mode & 0o777 == 0o700
    (tmp_path / "disk" / "here" / "state" / "lost+found").mkdir(parents=True)
    assert put(file, tmp_path / "disk").aside == ()


@pytest.mark.root
def test_what_root_restores_can_be_read_by_the_agent(plant: Path, tmp_path: Path) -> None:
    """The folder of the configuration is root's, as it is where the agent was installed as a service."""
    data = tmp_path / "new" / "here" / "state"
    data.mkdir(parents=True)
    os.chown(data, 4711, 4711)
    done = put(made(plant, secrets=True).file, tmp_path / "new")
    private = [data / "lock", data.parent / "certs" / "agent.key", *(each for each in data.rglob("*"))]
    assert {each.stat().st_uid for each in private} == {4711}
    assert (data.parent / "agent.yaml").stat().st_uid == 0
    assert any("the data belong to 4711, the configuration to root" in note for note in done.notes)


def test_secrets_that_lie_there_already_stay(plant: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "new" / "here" / "state" / "secrets" / "broker", "mine\n")
    own.chmod(0o600)
    done = put(made(plant).file, tmp_path / "new")
    assert own.read_text() == "mine\n"
    assert done.missing == ()


def test_nothing_is_restored_where_an_agent_works(plant: Path, tmp_path: Path) -> None:
    file = made(plant).file
    with control.hold(tmp_path / "new" / "here" / "state"):
        with pytest.raises(control.AlreadyRunning):
            put(file, tmp_path / "new", force=True)
    assert not (tmp_path / "new" / "here" / "agent.yaml").exists()


def test_a_backup_of_a_newer_release_is_refused_in_words(plant: Path) -> None:
    with archive.opened(made(plant).file) as found:
        for version in ("0.1.0", "0.1.0+local", "0.1.1", "1.0"):
            restore.check_version(found.manifest, version)
        newer = replace(found.manifest, version="0.10.0")
        with pytest.raises(restore.Refused, match=r"made by edge-agent 0\.10\.0 and this is 0\.9\.2: install"):
            restore.check_version(newer, "0.9.2")


# --- the journal --------------------------------------------------------------------------------------------------------


def numbers(folder: Path, value: float) -> dict[tuple[str, int], bytes]:
    """What a store tells when one more reading comes: every message that waits, by (epoch, seq)."""
    with open_store(folder, StandingClock()) as store:
        store.use_layouts([Layout("press", ("oil",), ())])
        store.put([frame(60_000_000, value)])
    with open_store(folder, StandingClock()) as store:
        page = store.pending(0, 1000)
        assert page is not None
        found = [json.loads(each.payload(late=False)) for each in page.messages]
    return {(each["epoch"], each["seq"]): json.dumps(each, sort_keys=True).encode() for each in found}


def clashes(one: dict[tuple[str, int], bytes], other: dict[tuple[str, int], bytes]) -> int:
    return sum(one[key] != other[key] for key in one.keys() & other.keys())


@pytest.mark.parametrize("as_a_file", [False, True])
def test_agents_from_one_backup_never_give_one_number_to_two_messages(
    plant: Path, tmp_path: Path, as_a_file: bool
) -> None:
    """The old one runs on, and two are restored from it. With a journal that is only copied, marker and all, they would."""
    old = plant.parent / "state"
    naive = shutil.copytree(old, tmp_path / "naive")
    file = made(plant).file
    if as_a_file:  # whoever unpacks it by hand gets the same
        with tarfile.open(file) as packed:
            for name in ("one", "two"):
                packed.extractall(tmp_path / name, filter="data")
        folders = [tmp_path / name / "data" for name in ("one", "two")]
    else:
        folders = [put(file, tmp_path / name).target.data for name in ("one", "two")]
    told = [numbers(folder, float(at)) for at, folder in enumerate([old, *folders, naive])]
    waited = {key for key in told[0] if key[1] <= 5}
    assert len(waited) == 5
    for each in told:
        assert waited <= each.keys(), "what waited is delivered by whoever comes first"
    assert clashes(told[0], told[1]) == clashes(told[0], told[2]) == clashes(told[1], told[2]) == 0
    assert all(min(seq for epoch, seq in each if epoch not in {e for e, _ in waited}) == 6 for each in told[1:3])
    assert clashes(told[0], told[3]) == 1, "the negative control"


def test_a_journal_without_its_own_pages_in_order_is_copied_as_it_is_and_told(plant: Path, tmp_path: Path) -> None:
    journal = plant.parent / "state" / "journal.db"
    content = bytearray(journal.read_bytes())
    content[4096:12288] = b"\xa5" * 8192
    journal.write_bytes(content)
    done = made(plant)
    assert any("damaged" in note for note in done.notes)
    target = put(done.file, tmp_path / "new").target
    with open_store(target.data, StandingClock()) as store:  # it starts, and tells
        assert store.epoch


@pytest.mark.parametrize("harm", ["header", "schema", "cut"])
def test_no_damage_of_the_journal_keeps_a_backup_from_being_made(plant: Path, tmp_path: Path, harm: str) -> None:
    journal = plant.parent / "state" / "journal.db"
    content = bytearray(journal.read_bytes())
    place = {"header": slice(0, 100), "schema": slice(100, 4000), "cut": slice(9000, None)}[harm]
    content[place] = b"" if harm == "cut" else b"\xa5" * (place.stop - place.start)
    journal.write_bytes(content)
    done = made(plant)
    assert any("damaged" in note for note in done.notes)
    with open_store(put(done.file, tmp_path / "new").target.data, StandingClock()) as store:
        assert store.epoch


@pytest.mark.root
def test_a_stick_that_is_full_is_named_and_not_the_journal(plant: Path) -> None:
    disks.alone("tests.test_backup", "a_full_stick", plant.parent)


def a_full_stick(folder: Path) -> None:
    """For a process with mounts of its own."""
    disks.memory_disk(folder / "stick", "size=32k")
    file, told = folder / "stick" / "backup.tar.gz", io.StringIO()
    with contextlib.redirect_stderr(told):
        status = main(["backup", str(folder / "agent.yaml"), str(file)])
    says = f"edge-agent: {file}: No space left on device; make room there, or write to another place\n"
    assert (status, told.getvalue()) == (2, says), told.getvalue()


@pytest.mark.root
def test_a_disk_that_has_become_read_only_can_still_be_backed_up(tmp_path: Path) -> None:
    disks.alone("tests.test_backup", "a_disk_that_fails", tmp_path)


def a_disk_that_fails(folder: Path) -> None:
    """Its agent has ended in order, or was killed: then what was committed stands in the log yet."""
    place = folder / "disk"
    disks.memory_disk(place)
    filled(folder / "data", rows=3)
    shutil.copytree(folder / "data", place / "ended")
    with contextlib.closing(disk.connect(folder / "data" / disk.FILE)) as db:
        db.execute("INSERT INTO done VALUES (1, 2, ?)", (rows.checksum(1, 2),))
        shutil.copytree(folder / "data", place / "killed")
    (place / "killed" / "journal.db-shm").unlink()
    assert (place / "killed" / "journal.db-wal").stat().st_size > 0
    disks.remount(place, "ro")
    for name, undelivered in (("ended", 3), ("killed", 1)):
        copy.copy(place / name / disk.FILE, folder / f"{name}.db")
        count = copy.count(folder / f"{name}.db")
        assert count is not None
        assert (count.seq, count.undelivered) == (3, undelivered)
    assert not list(folder.glob("*.db-*"))


@pytest.mark.root
def test_a_journal_that_may_not_be_read_is_refused_in_the_systems_words() -> None:
    with tempfile.TemporaryDirectory() as name:  # a folder into which every user may look
        Path(name).chmod(0o755)
        filled(Path(name) / "data")
        (Path(name) / "data").chmod(0o755)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(PermissionError):
                copy.copy(Path(name) / "data" / disk.FILE, Path(name) / "copy.db")
        finally:
            os.seteuid(0)


def test_a_copy_is_whole_while_the_store_writes_on(tmp_path: Path) -> None:
    with open_store(tmp_path / "data", StandingClock()) as store:
        store.use_layouts([Layout("press", ("oil",), ())])
        store.put([frame(0, 1.0)])
        with contextlib.closing(disk.connect(tmp_path / "data" / disk.FILE)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            copy.copy(tmp_path / "data" / disk.FILE, tmp_path / "copy.db")
            busy.execute("ROLLBACK")
        assert copy.is_sound(tmp_path / "copy.db")
    with pytest.raises(FileNotFoundError):
        copy.copy(tmp_path / "none.db", tmp_path / "other.db")


@played
async def test_a_running_agent_moves_to_another_pc_and_nothing_is_lost(here: Hall) -> None:
    async with picky({10: 654, 11: 3}) as device:
        machine = press()
        machine["signals"]["slow"] = {
            "address": "holding:11", "type": "int16", "norm": {"warning": {"high": 5}, "on_delay": "200ms"},
        }  # fmt: skip
        here.write(here.plain({"plc": device.port}, {"press": machine}))
        await here.start()
        first = await here.event("press", "raised", signal="oil")
        await here.whole()
        here.broker.kill()
        device.registers[11] = 9  # nobody hears of this one from the old PC before it has moved
        await here.status(lambda body: len(body["warnings"]) == 2)
        await here.status(lambda body: body["buffer"]["messages"] > 5)
        file = here.agent.config.parent / "b.tar.gz"
        status, out, err = await command("backup", str(here.agent.config), str(file), "--history", "--json")
        assert status == 0, err
        told = json.loads(out)
        assert told["undelivered"] > 0
        assert told["history"]
        await here.status(
            lambda body: body["buffer"]["messages"] > told["undelivered"] + 3
        )  # it runs on, and counts on
        assert await here.agent.stop() == 0
        new = here.agent.config.parent / "new"
        status, out, err = await command("restore", str(file), "--to", str(new), "--json")
        assert status == 0, err
        moved = Agent(new / "agent.yaml", log=new.parent / "new.log")
        await here.consumer.back(here.broker)
        old, here.agent = here.agent, moved
        await here.start()
        standing = (await here.ask("status"))["warnings"]
        second = await here.event("press", "raised", signal="slow")
        assert sorted(each["id"] for each in standing) == sorted([first["id"], second["id"]])
        fresh = json.loads(out)["journal"]["epoch"]
        assert second["epoch"] == first["epoch"] != fresh, "a message keeps the number under which it was committed"
        await here.hears("press/measurements", lambda body: body["epoch"] == fresh)
        device.registers.update({10: 500, 11: 3})
        for before in (first, second):
            cleared = await here.event("press", "cleared", signal=before["signal"])
            assert (cleared["id"], cleared["epoch"]) == (before["id"], fresh)
        assert await here.agent.stop() == 0
        with moment.standing(new / "data") as then:
            ts = [int(each) for rows in then.rows("press", 0, 2**60) for each in rows.ts]
        assert len(ts) == len(set(ts)) > 10, "nothing stands twice in what has moved along"
        here.agent = old  # and the old one after all: whatever it still has
        await here.start()
        await here.whole(first["epoch"])
        assert await here.agent.stop() == 0
        await here.whole(first["epoch"])
        numbers_of_new = sorted(seq for epoch, seq in here.numbered() if epoch == fresh)
        assert numbers_of_new == list(range(told["seq"] + 1, told["seq"] + 1 + len(numbers_of_new)))


# --- damaged, cut off, foreign ------------------------------------------------------------------------------------------


@pytest.fixture
def small(plant: Path) -> bytes:
    return made(plant).file.read_bytes()


def outcome(content: bytes, folder: Path) -> str:
    """'refused' with nothing written, or 'whole'; anything else is a failure."""
    file = folder / "damaged.tar.gz"
    file.write_bytes(content)
    target = folder / "target"
    try:
        put(file, target)
    except archive.NotABackup as error:
        assert not target.exists(), f"half restored: {error}"
        return "refused"
    shutil.rmtree(target)
    return "whole"


def test_whatever_byte_is_damaged_nothing_is_half_restored(small: bytes, tmp_path: Path) -> None:
    """In the file, and in what it unpacks to (with the packer's own checksum right): also against what tar alone would do."""
    print(f"seed {SEED}, {FLIPS} flips each")
    luck = random.Random(SEED)
    plain = gzip.decompress(small)
    seen = {"refused": 0, "whole": 0}
    unseen_by_tar = 0
    for turn in range(2 * FLIPS):
        content = bytearray(plain if turn % 2 else small)
        content[luck.randrange(len(content))] ^= 1 << luck.randrange(8)
        damaged = gzip.compress(bytes(content), 1) if turn % 2 else bytes(content)
        found = outcome(damaged, tmp_path)
        seen[found] += 1
        if turn % 2 and found == "refused":
            unseen_by_tar += _tar_takes(damaged)
    print(seen, "taken by tar alone:", unseen_by_tar)
    assert seen["refused"] > FLIPS
    assert unseen_by_tar > 0, "the negative control"


def _tar_takes(content: bytes) -> bool:
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as packed:
            return all(packed.extractfile(each) is not None for each in packed)
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return False


def test_a_file_that_is_cut_off_anywhere_restores_nothing(small: bytes, tmp_path: Path) -> None:
    for end in [*range(0, len(small), max(1, len(small) // 60)), len(small) - 1]:
        assert outcome(small[:end], tmp_path) == "refused", end


def test_what_is_no_backup_is_refused_in_words(plant: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.tar.gz"
    with tarfile.open(foreign, "w:gz") as packed:
        packed.add(plant, "agent.yaml")
    for content, words in (
        (b"", "cut off"), (b"hello", "no backup"), (gzip.compress(b""), "cut off"), (foreign.read_bytes(), "no backup"),
        (gzip.compress(bytes(2048)), "no backup"),
    ):  # fmt: skip
        with pytest.raises(archive.NotABackup, match=words):
            _open(tmp_path / "x.tar.gz", content)


def test_what_can_be_read_only_once_is_refused_in_words(small: bytes, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, small[:1000])
    os.close(writing)
    try:
        with (
            pytest.raises(archive.NotABackup, match="save it in a file first"),
            archive.opened(Path(f"/dev/fd/{reading}")),
        ):
            pass
    finally:
        os.close(reading)


def _open(path: Path, content: bytes) -> Manifest:
    path.write_bytes(content)
    with archive.opened(path) as found:
        return found.manifest


HOSTILE = (
    "config/../../x", "/etc/x", "config//x", "config/./x", "data/x", "data/../x", "data/journal.marker", "data/lock",
    "secrets/../x", "secrets/.x", "secrets/a/b", "elsewhere/../x", "x", "config", "config/\nx", "data/pki/../../x",
    "config/" + "x" * 300, "config/\ud800", "other/x", "",
)  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_a_name_that_leads_out_is_refused(path: str) -> None:
    with pytest.raises(archive.NotABackup):
        archive.check_name(path)


def test_a_manifest_that_lies_is_refused(plant: Path, tmp_path: Path) -> None:
    with archive.opened(made(plant).file) as found:
        manifest = found.manifest
    text = write(tmp_path / "text", "text")
    one = archive.hashed(Source("config/agent.yaml", text))
    sources = [Source("config/agent.yaml", text)]
    honest = replace(manifest, files=(one,), config=one.path, elsewhere={})
    lies: list[tuple[dict[str, Any], list[Source], str]] = [
        ({"files": (one, one)}, sources * 2, "stands twice"),
        ({"files": (one, replace(one, path="config/agent.yaml/x"))}, sources * 2, "a file and a folder"),
        ({"config": "config/other.yaml"}, sources, "no configuration"),
        ({"files": (replace(one, path="config/../../../x"),)}, sources, "no place"),
        ({"files": (replace(one, mode=0o4755),)}, sources, "cannot be"),
        ({"elsewhere": {"config/none": "/x"}}, sources, "not in it"),
        ({"elsewhere": {"config/agent.yaml": "x"}}, sources, "elsewhere"),
        ({"data_dir": "\0"}, sources, "data_dir"),
        ({"secrets": "no"}, sources, "secrets"),
    ]
    file = tmp_path / "x.tar.gz"
    archive.write(file, honest, sources)
    with archive.opened(file):
        pass
    other = gzip.decompress(file.read_bytes()).replace(one.sha256.encode(), b"0" * 64)
    with pytest.raises(archive.NotABackup, match="checksum is wrong"):
        _open(file, gzip.compress(other))
    for change, files, words in lies:
        archive.write(file, replace(honest, **change), files)
        with pytest.raises(archive.NotABackup, match=words), archive.opened(file):
            pass
    for size in (3, 5):
        with (
            pytest.raises(ValueError, match="was changed while it was read") if size == 3 else pytest.raises(ValueError)
        ):
            archive.write(file, replace(honest, files=(replace(one, bytes=size),)), sources)


def test_a_file_that_changes_while_it_is_packed_makes_no_backup_that_is_refused_later(
    small: bytes, tmp_path: Path
) -> None:
    manifest = _open(tmp_path / "small.tar.gz", small)
    text = write(tmp_path / "text", "high: 5")
    source = Source("config/agent.yaml", text)
    one = archive.hashed(source)
    write(text, "high: 6")
    with pytest.raises(ValueError, match="was changed while it was read"):
        archive.write(tmp_path / "x.tar.gz", replace(manifest, files=(one,), config=one.path, elsewhere={}), [source])
    assert not list(tmp_path.glob("*x.tar.gz*"))


def test_a_manifest_with_what_cannot_be_shown_is_refused(small: bytes, tmp_path: Path) -> None:
    plain = gzip.decompress(small)
    lie = plain.replace(b'"agent": "hall2",\n ', rb'"agent": "\ud800",' + b"\n", 1)  # as long as it was
    assert len(lie) == len(plain)
    with pytest.raises(archive.NotABackup, match="surrogates not allowed"):
        _open(tmp_path / "x.tar.gz", gzip.compress(lie))


def test_links_and_additions_are_refused(small: bytes, tmp_path: Path) -> None:
    plain = gzip.decompress(small)
    extra = io.BytesIO()
    with tarfile.open(fileobj=extra, mode="w") as packed:
        packed.add(__file__, "config/more.yaml")
    for content, words in (
        (plain[:-1024] + extra.getvalue(), "more than its manifest"),
        (plain + b"x" * 512, "more than its manifest"),
    ):
        with pytest.raises(archive.NotABackup, match=words):
            _open(tmp_path / "x.tar.gz", gzip.compress(content))
    link = tarfile.TarInfo(archive.MANIFEST)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(archive.NotABackup, match="no plain file"):
        _open(tmp_path / "x.tar.gz", gzip.compress(link.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))


def test_a_newer_format_names_the_release_that_knows_it(small: bytes, tmp_path: Path) -> None:
    plain = gzip.decompress(small)
    newer = plain.replace(b'"format": 1', b'"format": 2', 1)
    with pytest.raises(
        archive.NotABackup, match=r"format 2, this version knows 1; it was made by edge-agent '0\.1\.0'"
    ):
        _open(tmp_path / "x.tar.gz", gzip.compress(newer))


def test_an_item_is_what_its_file_was(tmp_path: Path) -> None:
    file = write(tmp_path / "x", "abc")
    assert archive.hashed(Source("config/x", file, 0o644)) == Item(
        "config/x", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 0o644
    )
