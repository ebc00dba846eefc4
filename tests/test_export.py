"""Export: what is in the files is what was judged, bit for bit, whatever reads them; and they replace themselves."""

import asyncio
import contextlib
import csv
import io
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import types
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent import export, lake
from edge_agent.__main__ import main
from edge_agent.contract import CODE_MASK, SECOND_US, Frame, Quality
from edge_agent.records import Event, EventKind, JudgedFrame, Kind, Layout, Severity, WarningState
from edge_agent.store.history import open_history
from edge_agent.store.journal import open_store
from tests import disks
from tests.conftest import StandingClock

SEED = int(os.environ.get("EDGE_AGENT_SEED", "20261128"))
DAY_US = export.DAY_US
START = (datetime(2026, 11, 20, 22, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
FIRST = Layout("press", ("oil", "level"), ("stopped", "running"))
LATER = Layout("press", ("oil", "level", "ts"), ("stopped", "running"))
PUMP = Layout("pump", ("flow",), ())
CODES = np.array([0] * 12 + [Quality.HOLD] * 8 + [Quality.CONFIRMED] * 4 + [2, 3, 8, 12, Quality.FADED], dtype=np.uint8)

Row = tuple[str, int, dict[str, tuple[float, int]], str | None, int, bool]
"""(machine, ts, {signal: (value, code)}, state, seq, late)."""


class Recorder:
    """Writes frames to a store and keeps what a plain reader would expect of them."""

    def __init__(self, folder: Path, start: int = START) -> None:
        self.folder, self.rows = folder, list[Row]()
        self.clock = StandingClock(start)
        self.luck = np.random.default_rng(SEED)
        self.t = start
        self.seq = 0

    def frames(self, layout: Layout, count: int, rows: int, step_us: int, late: bool = False) -> list[JudgedFrame]:
        return [self._frame(layout, rows, step_us, late) for _ in range(count)]

    def _frame(self, layout: Layout, rows: int, step_us: int, late: bool) -> JudgedFrame:
        shape = (rows, len(layout.signals))
        t = self.t + step_us * np.arange(1, rows + 1, dtype=np.int64)
        self.t = int(t[-1])
        ts = t - (3 * DAY_US if late else 0)
        quality = self.luck.choice(CODES, shape)
        values = np.round(self.luck.normal(50, 20, shape), 2)
        values[~np.isin(quality & CODE_MASK, (0, 2))] = np.nan
        state = self.luck.integers(-1, max(1, len(layout.states)), rows).astype(np.int16)
        publish = self.luck.random(rows) < 0.9
        for row in range(rows):
            self.seq += int(publish[row])
            cells = {
                name: (float(values[row, i]), int(quality[row, i]) & CODE_MASK) for i, name in enumerate(layout.signals)
            }
            named = (layout.states[state[row]] if state[row] >= 0 else "unknown") if layout.states else None
            self.rows.append((layout.machine, int(ts[row]), cells, named, self.seq if publish[row] else 0, late))
        frame = Frame(layout.machine, t, ts, values, quality, late=late)
        return JudgedFrame(frame, state, publish)

    def write(self, *frames: JudgedFrame, layouts: tuple[Layout, ...], move: bool) -> None:
        async def turn() -> None:
            with open_store(self.folder, self.clock) as store, open_history(self.folder, self.clock) as history:
                store.keep_for_history()
                assert await history.turn(store)

        self.clock.move(self.t - self.clock.wall_us())
        with open_store(self.folder, self.clock) as store:
            store.keep_for_history()
            store.use_layouts(layouts)
            for each in frames:
                store.put([each])
            self.epoch = store.epoch
        if move:
            asyncio.run(turn())

    def expected(self, machine: str) -> list[tuple[int, dict[str, tuple[float | None, int]], str | None, int]]:
        """In plain words: what holds has the last value that was not; nothing is known of a belated one's past."""
        held: dict[str, float | None] = {}
        found = []
        for name, ts, cells, state, seq, late in self.rows:
            if name != machine:
                continue
            told: dict[str, tuple[float | None, int]] = {}
            for signal, (value, code) in cells.items():
                if code in (0, 2):
                    now: float | None = value
                elif code == 1:
                    now = None if late else held.get(signal)
                else:
                    now = None
                if not late:
                    held[signal] = now
                told[signal] = (now, code)
            found.append((ts, told, state, seq))
        return found


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Two days and some: packed in the history, in its blocks, and only in the journal; belated rows; another layout."""
    its = Recorder(tmp_path_factory.mktemp("store"))
    print(f"seed {SEED}")
    its.write(*its.frames(FIRST, 12, 600, 10 * SECOND_US), layouts=(FIRST, PUMP), move=True)
    mixed = [
        each for _ in range(20) for each in (*its.frames(PUMP, 1, 3, SECOND_US), *its.frames(FIRST, 1, 5, SECOND_US))
    ]
    its.write(*mixed, *its.frames(FIRST, 1, 20, SECOND_US, late=True), layouts=(FIRST, PUMP), move=True)
    its.write(*its.frames(LATER, 30, 100, 20 * SECOND_US), layouts=(LATER, PUMP), move=True)
    its.write(
        *its.frames(LATER, 3, 4, SECOND_US), *its.frames(PUMP, 2, 2, SECOND_US), layouts=(LATER, PUMP), move=False
    )
    return its


def written(recorded: Recorder, out: Path, **more: Any) -> export.Exported:
    wanted = export.Wanted("hall2", more.pop("form", export.PARQUET), **more)
    return export.export(recorded.folder, export.Folder(out), wanted)


def parquet(out: Path, machine: str) -> list[tuple[int, dict[str, tuple[float | None, int]], str | None]]:
    """All rows of a machine as pyarrow reads them, part by part in the order of their numbers, day by day."""
    pq = pytest.importorskip("pyarrow.parquet")
    found = []
    for file in sorted(
        out.glob(f"machine={machine}/*/*.parquet"), key=lambda each: int(re.split(r"[-.]", each.stem)[4])
    ):
        table = pq.ParquetFile(file).read()
        names = [name for name in table.column_names if name.endswith("__q")]
        for row in table.to_pylist():
            stamp = (row["ts"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
            cells = {name.removesuffix("__q"): (row[_value(name)], row[name]) for name in names}
            found.append((stamp, cells, row["operating_state"]))
    return found


def _value(name: str) -> str:
    signal = name.removesuffix("__q")
    return "ts_" if signal == "ts" else signal


def same(found: list[Any], expected: list[Any]) -> None:
    """Bit for bit, in order of time: days are files of their own, and what came belated lies in its own day."""
    found, expected = (sorted(each, key=lambda row: row[0]) for each in (found, expected))
    assert len(found) == len(expected)
    for got, due in zip(found, expected, strict=True):
        assert got[0] == due[0]
        assert got[2] == due[2]
        assert {name: (_bits(value), code) for name, (value, code) in got[1].items()} == {
            name: (_bits(value), code) for name, (value, code) in due[1].items()
        }, got[0]


def _bits(value: float | None) -> str | None:
    return None if value is None else value.hex()


# --- Parquet ------------------------------------------------------------------------------------------------------------


def test_what_is_read_back_is_what_was_judged(recorded: Recorder, tmp_path: Path) -> None:
    done = written(recorded, tmp_path)
    assert done.rows == len(recorded.rows)
    assert not done.left_out
    for machine in ("press", "pump"):
        same(parquet(tmp_path, machine), recorded.expected(machine))


def test_the_layout_is_that_of_the_contract(recorded: Recorder, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    done = written(recorded, tmp_path)
    last = [row[4] for row in recorded.rows if row[0] == "press" and row[4]]
    days = {
        datetime.fromtimestamp(row[1] / 1e6, UTC).strftime("%Y-%m-%d") for row in recorded.rows if row[0] == "press"
    }
    assert {name.split("/")[1] for name in done.files if name.startswith("machine=press/")} == {
        f"date={d}" for d in days
    }
    first = [name for name in done.files if f"part-hall2-{recorded.epoch}-{last[0]}-" in name]
    assert len(first) == 1
    schema = pq.read_schema(tmp_path / first[0])
    assert schema.field("ts").type == pa.timestamp("us", tz="UTC")
    assert [schema.field(each).type for each in ("oil", "oil__q", "operating_state")] == [
        pa.float64(),
        pa.int8(),
        pa.string(),
    ]
    dataset = pytest.importorskip("pyarrow.dataset")
    table = dataset.dataset(tmp_path, partitioning="hive", format="parquet").to_table(
        columns=["ts", "oil", "machine", "date"]
    )
    assert len(table) == done.rows
    assert not [each for each in tmp_path.rglob("*") if each.name.startswith(".")]


def test_written_again_it_replaces_itself(recorded: Recorder, tmp_path: Path) -> None:
    written(recorded, tmp_path / "a")
    before = {str(each): each.read_bytes() for each in sorted((tmp_path / "a").rglob("*.parquet"))}
    written(recorded, tmp_path / "a")
    assert {str(each): each.read_bytes() for each in sorted((tmp_path / "a").rglob("*.parquet"))} == before
    # A day that was not over yet: its file had another name, and the rows stood in both.
    day = next((tmp_path / "a").glob("machine=press/date=2026-11-22"))
    (old,) = [each for each in day.iterdir() if "-1-" not in each.name][:1]
    numbers = old.stem.rpartition("-")
    shorter = old.with_name(f"{numbers[0]}-{int(numbers[2]) - 1}.parquet")
    shutil.copy(old, shorter)
    foreign = old.with_name("part-hall3-abcdef-1-2.parquet")
    shutil.copy(old, foreign)
    written(recorded, tmp_path / "a")
    assert not shorter.exists()
    assert foreign.exists(), "another agent's is none of ours"


def test_runs_that_published_nothing_have_files_of_their_own(tmp_path: Path) -> None:
    its = Recorder(tmp_path / "store")
    for layout in (FIRST, LATER, FIRST):
        quiet = [replace(each, publish=np.zeros(5, bool)) for each in its.frames(layout, 4, 5, SECOND_US)]
        its.write(*quiet, layouts=(layout,), move=True)
    day = tmp_path / "out" / "machine=press" / "date=2026-11-20"
    names = [f"part-hall2-{its.epoch}-0-0{more}.parquet" for more in ("", ".2", ".3")]
    for _ in range(2):  # written again they replace themselves
        done = written(its, tmp_path / "out")
        assert (done.rows, [Path(each).name for each in done.files]) == (60, names)
        assert sorted(each.name for each in day.iterdir()) == sorted(names)
    assert sorted(row[0] for row in parquet(tmp_path / "out", "press")) == [row[1] for row in its.rows]
    shutil.copy(day / names[2], day / names[2].replace(".3.", ".4."))  # of an earlier export that had one more
    written(its, tmp_path / "out")
    assert sorted(each.name for each in day.iterdir()) == sorted(names)


def test_what_the_history_no_longer_has_stays_in_the_export(recorded: Recorder, tmp_path: Path) -> None:
    written(recorded, tmp_path)
    day = max(tmp_path.glob("machine=pump/date=*"))
    (file,) = day.iterdir()
    first = int(file.stem.split("-")[3])
    more = file.with_name(file.name.replace(f"-{first}-", f"-{first - 1}-"))
    file.rename(more)
    done = written(recorded, tmp_path)
    assert done.kept == [str(more.relative_to(tmp_path))]
    assert [each.name for each in day.iterdir()] == [more.name]


def test_a_choice_of_machines_signals_and_days(recorded: Recorder, tmp_path: Path) -> None:
    noon = START // DAY_US * DAY_US + DAY_US
    done = written(recorded, tmp_path, machines=("pr*",), signals=("oil",), from_us=noon, to_us=noon + 1)
    assert {name.rpartition("/")[0] for name in done.files} == {"machine=press/date=2026-11-21"}
    day = [row for row in recorded.expected("press") if noon <= row[0] < noon + DAY_US]
    same(parquet(tmp_path, "press"), [(ts, {"oil": cells["oil"]}, state) for ts, cells, state, _ in day])


def test_a_damaged_chunk_is_missing_and_never_a_value_that_holds(recorded: Recorder, tmp_path: Path) -> None:
    folder = shutil.copytree(recorded.folder, tmp_path / "store")
    db = sqlite3.connect(folder / "history.db")
    (chunk, size) = db.execute(
        "SELECT id, length(data) FROM chunks WHERE id & 1048575 = 0 AND length(data) > 400 LIMIT 1"
    ).fetchone()
    db.execute("UPDATE chunks SET data = zeroblob(?) WHERE id = ?", (size, chunk))
    db.commit()
    db.close()
    done = export.export(folder, export.Folder(tmp_path / "out"), export.Wanted("hall2", export.PARQUET))
    assert done.left_out >= 1  # once for each day it reaches into
    whole = {row[0]: row for row in recorded.expected("press")}
    damaged = 0
    for ts, cells, _ in parquet(tmp_path / "out", "press"):
        value, code = cells["oil"]
        assert (value, code) == (None, Quality.MISSING) or value is None or value == whole[ts][1]["oil"][0]
        damaged += code == Quality.MISSING
    assert damaged > 100


class Looked(export.Folder):
    """A folder that asks, whenever it takes a file, whether the agent could empty the log of its journal."""

    def __init__(self, root: Path, journal: Path) -> None:
        super().__init__(root)
        self.journal = journal
        self.emptied: list[bool] = []

    def put(self, file: Path, name: str) -> None:
        with contextlib.closing(sqlite3.connect(self.journal, isolation_level=None)) as db:
            db.execute("UPDATE meta SET id = id")
            busy, in_log, moved = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        self.emptied.append(not busy and in_log == moved)
        super().put(file, name)


@pytest.mark.parametrize("form", [export.CSV, export.PARQUET])
def test_while_a_place_takes_a_file_nobody_looks_at_the_store(recorded: Recorder, tmp_path: Path, form: str) -> None:
    folder = shutil.copytree(recorded.folder, tmp_path / "store")
    out = Looked(tmp_path / "out", folder / "journal.db")
    done = export.export(folder, out, export.Wanted("hall2", form))
    assert out.emptied == [True] * len(done.files)


def test_without_pyarrow_it_is_said_how_to_get_it(
    recorded: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(lake.NoLake, match=r"pip install 'edge-agent\[lake\]'"), lake.part(tmp_path / "x", ("a",), {}):
        pass


def test_a_signal_may_have_any_name() -> None:
    names = ("ts", "operating_state", "a", "a__q", "ts_")
    columns = [each for pair in lake.columns_of(names) for each in pair]
    assert len({*columns, lake.TS, lake.STATE}) == 2 * len(names) + 2
    assert lake.columns_of(("oil",)) == [("oil", "oil__q")]


# --- CSV ----------------------------------------------------------------------------------------------------------------


def test_the_csv_file_has_the_same_rows(recorded: Recorder, tmp_path: Path) -> None:
    done = written(recorded, tmp_path, form=export.CSV)
    assert done.files == ["press.csv", "pump.csv"]
    assert b"\r\n" in (tmp_path / "press.csv").read_bytes()
    with (tmp_path / "press.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert list(rows[0]) == ["ts", "oil", "oil__q", "level", "level__q", "ts_", "ts__q", "operating_state"]
    found = []
    for row in rows:
        stamp = (datetime.fromisoformat(row["ts"]) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        cells = {
            name: (float(row[column]) if row[column] else None, int(row[f"{name}__q"]))
            for name, column in (("oil", "oil"), ("level", "level"), ("ts", "ts_"))
            if row[f"{name}__q"]
        }
        found.append((stamp, cells, row["operating_state"]))
    same(found, recorded.expected("press"))


def test_a_period_of_a_csv_file_begins_with_what_stood_then(recorded: Recorder, tmp_path: Path) -> None:
    whole = sorted(recorded.expected("press"), key=lambda row: row[0])
    for begin in (START + 3_600 * SECOND_US, whole[-3][0], whole[len(whole) // 2][0]):
        written(recorded, tmp_path, form=export.CSV, machines=("press",), from_us=begin, to_us=begin + 600 * SECOND_US)
        with (tmp_path / "press.csv").open(newline="") as text:
            found = [row["oil"] for row in csv.DictReader(text)]
        due = [row[1]["oil"][0] for row in whole if begin <= row[0] < begin + 600 * SECOND_US]
        assert found == ["" if value is None else repr(value) for value in due]


@pytest.mark.parametrize("form", [export.CSV, export.PARQUET])
def test_only_days_with_rows_are_gone_through(tmp_path: Path, form: str) -> None:
    its = Recorder(tmp_path / "store", 100 * SECOND_US)  # a clock that nobody had set
    its.write(*its.frames(FIRST, 2, 5, SECOND_US), layouts=(FIRST,), move=True)
    its.t = START
    its.write(*its.frames(FIRST, 2, 5, 1_800 * SECOND_US), layouts=(FIRST,), move=False)
    told: list[str] = []
    wanted = export.Wanted("hall2", form)
    done = export.export(tmp_path / "store", export.Folder(tmp_path / "out"), wanted, told.append)
    assert done.rows == 20
    assert [each[-10:] for each in told] == ["1970-01-01", "2026-11-20", "2026-11-21"]


# --- warnings -----------------------------------------------------------------------------------------------------------


def raised(ts: int, machine: str) -> Event:
    return Event(
        EventKind.RAISED, f"id-{ts}", ts, machine, "oil", Kind.HIGH, Severity.WARNING, WarningState.UNACKNOWLEDGED, 60.4,
        "°C", 60.0, {"warning": {"low": 20.0, "high": 60.0}}, ts - 5_000_000, "running", 'Öl, "heiß"', "Look.",
    )  # fmt: skip


def test_warnings_stand_beside_the_readings(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    clock = StandingClock(START)
    events = []
    with open_store(tmp_path / "store", clock) as store:
        for _ in range(3):
            events += store.put((), [raised(clock.wall_us(), "press"), raised(clock.wall_us(), "pump")])
            clock.move(DAY_US)
    wanted = export.Wanted("hall2", export.PARQUET)
    first, done = (export.export(tmp_path / "store", export.Folder(tmp_path / "out"), wanted) for _ in range(2))
    assert (first, done.warnings, len(done.files)) == (done, 6, 3)
    files = sorted((tmp_path / "out").rglob("*.parquet"))
    assert [str(each.relative_to(tmp_path / "out")) for each in files] == sorted(done.files)
    rows = [row for each in files for row in pq.ParquetFile(each).read().to_pylist()]
    assert [(row["epoch"], row["seq"], row["id"], row["message"]) for row in rows] == [
        (each.epoch, each.seq, each.id, each.message) for each in events
    ]
    assert rows[0]["since"] == datetime.fromtimestamp(START / 1e6 - 5, UTC)
    assert json.loads(rows[0]["norm"]) == events[0].norm
    chosen = export.Wanted("hall2", export.CSV, ("press",), from_us=START + 1, to_us=START + 2 * DAY_US)
    assert export.export(tmp_path / "store", export.Folder(tmp_path / "csv"), chosen).warnings == 1
    with (tmp_path / "csv" / "warnings.csv").open(newline="") as text:
        (row,) = csv.DictReader(text)
    assert (row["machine"], row["message"], row["ts"]) == ("press", 'Öl, "heiß"', "2026-11-21T22:00:00.000Z")


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(recorded: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = str(recorded.folder), str(tmp_path / "out")
    assert main(["export", store, "--out", out]) == 2
    assert "name it with --agent ID" in capsys.readouterr().err
    assert main(["export", store, "--agent", "hall2", "--format", "csv", "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == len(recorded.rows)
    one = tmp_path / "one.csv"
    assert main(["export", store, "--agent", "hall2", "--machine", "pump", "--out", str(one)]) == 0
    assert one.read_bytes() == (tmp_path / "out" / "pump.csv").read_bytes()
    assert f"rows in {one}; the warnings go along where --out is a folder" in capsys.readouterr().out
    for words, text in (
        (["--out", str(one)], "name the one --machine"),
        (["--from", "soon"], "--from 'soon' is no time"),
        (["--from", "2026-11-02", "--to", "2026-11-01"], "is not after"),
        (["--out", "s3://u:secret@bucket/x"], "needs fsspec"),
    ):
        assert main(["export", store, "--agent", "a", *words]) == 2
        told = capsys.readouterr().err
        assert text in told
        assert "u:secret" not in told
    assert main(["export", store, "--agent", "a", "--from", "2031-01-01", "--out", out]) == 1
    assert re.search(r"there are readings of [a-z, ]*pump[a-z, ]*, from 20\d\d-.* UTC to 20", capsys.readouterr().out)
    assert main(["export", str(tmp_path / "none")]) == 2
    capsys.readouterr()
    assert main(["export", str(tmp_path)]) == 2
    assert "is not the data directory of an agent" in capsys.readouterr().err


def test_one_csv_file_takes_the_one_machine_that_a_pattern_means(
    recorded: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, named, meant = str(recorded.folder), tmp_path / "named.csv", tmp_path / "meant.csv"
    words = ["export", store, "--agent", "hall2"]
    assert main([*words, "--machine", "press", "--out", str(named)]) == 0
    assert main([*words, "--machine", "pr*", "--out", str(meant)]) == 0
    assert meant.read_bytes() == named.read_bytes()
    capsys.readouterr()
    both = tmp_path / "both.csv"
    assert main([*words, "--machine", "p*", "--out", str(both)]) == 2
    assert f"{both} is one CSV file, and --machine p* means press, pump: name one of them" in capsys.readouterr().err
    assert main([*words, "--machine", "x*", "--out", str(both)]) == 1
    assert not both.exists()


@pytest.mark.parametrize("harm", ["page", "text"])
def test_a_damaged_history_is_told_in_words(
    recorded: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    folder = shutil.copytree(recorded.folder, tmp_path / "store")
    with contextlib.closing(sqlite3.connect(folder / "history.db")) as db:
        if harm == "text":
            db.execute("UPDATE axes SET epoch = CAST(x'ff' AS TEXT)")
            db.commit()
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'axes'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    if harm == "page":
        with (folder / "history.db").open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xff" * 64)
    status = main(["export", str(folder), "--agent", "hall2", "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    if harm == "text":  # it costs its own rows only
        assert status == 0
        assert "damaged pieces of the history could not be read" in told.out
        return
    assert status == 2
    (line,) = told.err.splitlines()
    assert line.startswith(f"edge-agent: {folder}: the store cannot be read: ")
    assert "restart the agent" in line


def test_a_place_that_cannot_take_the_files_is_named(
    recorded: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(recorded.folder), "--agent", "hall2", "--machine", "press", "--out"]
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for out, says in (("folder.csv", "is a folder"), ("file", "File exists")):
        assert main([*words, str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"edge-agent: {tmp_path / out}")
        assert says in line


@pytest.mark.root
def test_a_full_disk_and_files_of_another_user_are_told_in_words(recorded: Recorder) -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to others
        Path(name).chmod(0o755)
        shutil.copytree(recorded.folder, Path(name) / "store")
        disks.alone("tests.test_export", "places_that_refuse", Path(name))


def places_that_refuse(folder: Path) -> None:
    """For a process with mounts of its own."""
    store, disk = folder / "store", folder / "disk"
    disks.memory_disk(disk, "size=1m")
    words = ["export", str(store), "--agent", "hall2", "--out", str(disk), "--format"]
    with disks.full(disk):
        for form in ("csv", "parquet"):
            _refused([*words, form], f"--out {disk}: No space left on device; make room there")
    for path in (disk, store):
        path.chmod(0o777)
    os.seteuid(65534)
    _refused([*words, "csv"], f"{store / 'journal.db'}: Permission denied; run it as the agent's user")


def _refused(words: list[str], says: str) -> None:
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        status = main(words)
    (line,) = told.getvalue().splitlines()
    assert (status, line.startswith(f"edge-agent: {says}")) == (2, True), line


# --- a file system of others --------------------------------------------------------------------------------------------


class Bucket:
    """As much of an fsspec file system as is used, in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def ls(self, path: str, detail: bool) -> list[str]:
        found = [name for name in self.files if name.rpartition("/")[0] == path.rstrip("/")]
        if not found:
            raise FileNotFoundError(path)
        return found

    def makedirs(self, path: str, exist_ok: bool) -> None:
        assert exist_ok

    def put_file(self, local: str, path: str) -> None:
        self.files[path] = Path(local).read_bytes()

    def mv(self, path: str, target: str) -> None:
        self.files[target] = self.files.pop(path)

    def rm_file(self, path: str) -> None:
        del self.files[path]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    its = Bucket()
    core = types.ModuleType("fsspec.core")
    core.url_to_fs = lambda url: (its, url.partition("://")[2])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fsspec", types.ModuleType("fsspec"))
    monkeypatch.setitem(sys.modules, "fsspec.core", core)
    return its


def test_a_url_gets_the_same_files(recorded: Recorder, tmp_path: Path, bucket: Bucket) -> None:
    written(recorded, tmp_path)
    local = {f"lake/hall/{each.relative_to(tmp_path)}": each.read_bytes() for each in tmp_path.rglob("*.parquet")}
    for _ in range(2):
        export.export(recorded.folder, export.place_of("memory://lake/hall"), export.Wanted("hall2", export.PARQUET))
        assert bucket.files == local


def test_what_a_file_system_of_others_refuses_is_told_in_words(
    recorded: Recorder, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: str, target: str) -> None:
        raise RuntimeError(f"AccessDenied: {path} to {target}")

    bucket.mv = refuse  # type: ignore[method-assign]
    assert main(["export", str(recorded.folder), "--agent", "hall2", "--out", "memory://u:secret@lake/hall"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edge-agent: memory://…@lake/hall: AccessDenied: ")
