"""The promises of all drivers, over a folder into which files are dropped, and what this driver promises besides."""

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import field_survey
import numpy as np
import pytest
from field_survey import DRIVER, NOTHING, Connection, Hands, Key, Line, SurveySession, look, newer, survey

from edge_agent.contract import DeviceRefused, DeviceSilent, Driver, Point, Quality, duration_us
from edge_agent.testing import Check, Fault, driver_checks

HEAD = "plot,time,ndvi,ndre,valid\n"
DAY_US = duration_us("1d")
NOW_US = 1_780_000_000_000_000
"""2026-05-28T20:26:40Z"""
N1, N2 = Key("N1", "ndvi"), Key("N2", "ndvi")
WANTED = frozenset({N1, N2})
LIES = (
    b"\x00\xff\x17 this is a photograph",
    b"",
    b"plot,time,ndvi,ndre,ndre,valid\nN1,{t},9,9,9,1\n",
    b"plot,time,ndvi,ndre,valid\nN1,{t},0,741,0,334,1\nN2,{t},9,9\n",
    b"plot,time,ndvi,ndre,valid\nN1,{t},0.1,0.1,1\nN1,{t},0.2,0.2,1\nN2,{t},9,9,85\n",
    b"plot,time,ndvi,ndre,valid\nN1,2099-01-01T00:00:00Z,9,9,1\nN9,{t},9,9,1\n",
    b"plot,time,ndvi,ndre,valid\nN1,yesterday,9,9,1\nN2,2026-05-12,9,9,1\n",
)


# ------------------------------------------------------------------------------------------- the promises of all drivers


class DropPlant:
    """See testing.SpeakingPlant: it speaks by dropping a file, captured some seconds after the one before."""

    driver: Driver = DRIVER
    points: Sequence[Mapping[str, Any]] = (
        {"address": "ndvi", "plot": "N1"},
        {"address": "ndre", "plot": "N1"},
        {"address": "ndvi", "plot": "N2"},
    )
    expected: Sequence[float] = (0.741, 0.334, 0.792)
    stamps_back_s = 2 * 86_400.0

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.folder = self.place / "surveys"
        self.fault = Fault.WELL
        self.flights = 0
        self.begun = datetime.now(UTC) - timedelta(days=2)

    async def start(self) -> None:
        self.folder.mkdir(parents=True)

    async def stop(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def connection(self) -> Mapping[str, Any]:
        return {"folder": str(self.folder), "settle": "0s", "timeout": "2s"}

    def play(self, fault: Fault) -> None:
        self.fault = fault

    async def speak(self) -> None:
        self.flights += 1
        captured = f"{self.begun + timedelta(seconds=10 * self.flights):%Y-%m-%dT%H:%M:%SZ}"
        content = {
            Fault.WELL: f"{HEAD}N1,{captured},0.741,0.334,0.97\nN2,{captured},0.792,0.352,1\n",
            Fault.CUT: f"{HEAD}N1,{captured},0.7",
            Fault.REFUSING: f"plot,time,temperature,valid\nN1,{captured},18,1\n",
            Fault.BAD_VALUE: f"{HEAD}N1,{captured},nan,-,1\nN2,{captured},0.792,0.352,0\n",
            Fault.LYING: LIES[self.flights % len(LIES)].decode("latin-1").replace("{t}", captured),
        }.get(self.fault)
        if content is not None and self.folder.is_dir():
            fresh = self.folder / f".{self.flights}"
            fresh.write_bytes(content.encode("latin-1"))
            fresh.rename(self.folder / f"flight-{self.flights}.csv")


NOT_PLAYED = frozenset({Fault.LATE})
"""Nobody asks a folder for a flight, so no answer comes too late. (An older flight that comes later is tried below.)"""


@pytest.mark.parametrize("check", driver_checks(without=NOT_PLAYED), ids=str)
def test_field_survey_keeps_the_promises_of_all_drivers(check: Check) -> None:
    check.run(DropPlant)


# ------------------------------------------------------------------------------------------------------- what a file says


def settings(folder: Path = Path("surveys"), **more: object) -> Connection:
    return Connection.model_validate({"folder": str(folder), "settle": "0s", **more})


def said(text: str | bytes, written_us: int = NOW_US) -> dict[Key, list[Line]]:
    data = text if isinstance(text, bytes) else text.encode()
    found: dict[Key, list[Line]] = {}
    for key, line in survey(data, "f.csv", written_us, NOW_US, settings(), WANTED).found:
        found.setdefault(key, []).append(line)
    return found


@pytest.mark.parametrize(
    ("line", "quality", "words"),
    [
        ("N1,2026-05-28T09:31:00Z,0.7,0.3,0.9", Quality.GOOD, ""),
        ('"N1", 2026-05-28 11:31:00+02:00 ,7e-1,,1', Quality.GOOD, ""),
        ("N1,2026-05-28T09:31:00,0.7,0.3,0.79", Quality.UNCERTAIN, "79 % of the pixels are valid, 80 % are wanted"),
        ("N1,2026-05-28T09:31:00Z,0.7,0.3,0", Quality.SENSOR_FAILURE, "no pixel is valid"),
        ("N1,2026-05-28T09:31:00Z,nan,0.3,1", Quality.NOT_A_NUMBER, "ndvi 'nan' is no number"),
        ("N1,2026-05-28T09:31:00Z,0_7,0.3,1", Quality.NOT_A_NUMBER, "ndvi '0_7' is no number"),
        ("N1,2026-05-28T09:31:00Z,1e999,0.3,1", Quality.NOT_A_NUMBER, "ndvi '1e999' is no number"),
        ("N1,2026-05-28T09:31:00Z,,0.3,1", Quality.NOT_A_NUMBER, "ndvi '' is no number"),
        ("N1,2026-05-28T09:31:00Z,0.7,0.3,97", Quality.PROTOCOL, "'97' is no share of valid pixels"),
        ("N1,2026-05-28T09:31:00Z,0.7,0.3,", Quality.PROTOCOL, "'' is no share of valid pixels"),
        ("N1,2026-05-28T09:31:00Z,0,7,0,3,1", Quality.PROTOCOL, "not the 5 fields of the first line"),
        ("N1,2026-05-28T09:31:00Z,0.7", Quality.PROTOCOL, "not the 5 fields of the first line"),
        ("N1,28.5.2026 9:31,0.7,0.3,1", Quality.PROTOCOL, "'28.5.2026 9:31' is no time"),
        ("N1,2026-05-28,0.7,0.3,1", Quality.PROTOCOL, "'2026-05-28' is no time"),
        ("N1,2026-05-28T21:26:00Z,0.7,0.3,1", Quality.GOOD, ""),
        ("N1,2026-05-28T21:27:00Z,0.7,0.3,1", Quality.PROTOCOL, "here it is 2026-05-28T20:26:40Z"),
    ],
)  # fmt: skip
def test_each_line_is_a_value_or_says_what_is_wrong_with_it(line: str, quality: Quality, words: str) -> None:
    for end in ("\n", "\r\n"):
        found = said(HEAD + "\n" + line + end)
        assert set(found) == {N1}
        (one,) = found[N1]
        assert (one.quality, words in one.words) == (quality, True), one
        assert (one.value == 0.7) is (quality in (Quality.GOOD, Quality.UNCERTAIN))
        assert one.words.startswith("f.csv, line 3: ") is (quality is not Quality.GOOD)


def test_a_line_without_its_end_is_never_a_value() -> None:
    whole = f"{HEAD}N1,2026-05-28T09:31:00Z,0.7,0.3,0.95\n"
    half = "N2,2026-05-28T09:31:00Z,0.75,0.3,0.95"
    for length in range(1, len(half) + 1):
        found = said(whole + half[:length])
        assert found[N1][0].value == 0.7, "the lines before it are whole"
        assert all(
            line.quality is Quality.PROTOCOL and "line 3: has no end" in line.words for line in found.get(N2, ())
        )
        assert (N2 in found) is (length > len("N2")), "N2 may have been going to be N21"
    assert said(whole + half + "\n")[N2][0].value == 0.75


@pytest.mark.parametrize(
    ("data", "quality", "words"),
    [
        (b"", Quality.PROTOCOL, "no whole line with the names of its columns"),
        (HEAD.encode().strip(), Quality.PROTOCOL, "no whole line with the names of its columns"),
        (b"\xff\xfe\x00\n", Quality.PROTOCOL, "no UTF-8 text"),
        (b"plot,time,ndvi,ndvi,valid\n", Quality.PROTOCOL, "names a column twice"),
        (b"plot,ndvi,valid\nN1,0.7,1\n", Quality.REFUSED, "has no column time; it has 'plot, ndvi, valid'"),
        (b"plot;time;ndvi;valid\nN1;2026-05-28T09:31:00Z;0.7;1\n", Quality.REFUSED, "has no column plot"),
        (b"plot,time,NDVI,valid\nN1,2026-05-28T09:31:00Z,0.7,1\n", Quality.REFUSED, "has no column ndvi"),
    ],
)
def test_a_file_that_says_nothing_is_bad_for_every_plot(data: bytes, quality: Quality, words: str) -> None:
    found = said(data)
    assert set(found) == WANTED
    assert all(line.quality is quality and words in line.words for lines in found.values() for line in lines), found


def test_no_lie_is_a_value() -> None:
    for lie in LIES:
        kept: dict[Key, Line] = {}
        for key, lines in said(lie.replace(b"{t}", b"2026-05-28T09:31:00Z")).items():
            for line in lines:
                kept[key] = newer(kept.get(key), line)
        assert kept, lie
        assert all(line.quality >= Quality.TIMEOUT and line.words for line in kept.values()), kept


def test_a_plot_that_nobody_asks_for_is_named() -> None:
    assert survey(f"{HEAD}N9,x,y,z,w\n".encode(), "f", 0, 0, settings(), WANTED).strangers == {"N9"}


# ------------------------------------------------------------------------------------------------ the folder and its files


class StandingClock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW_US, 0

    def monotonic_us(self) -> int:
        return self.monotonic

    def wall_us(self) -> int:
        return self.wall

    def move(self, text: str) -> None:
        self.wall += duration_us(text)
        self.monotonic += duration_us(text)


class Desk:
    """A session for two plots, read by hand."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.folder, self.clock = folder, StandingClock()
        self.session = SurveySession("drone", settings(folder, **more), self.clock, Hands())
        self.use("N1", "N2")

    def use(self, *plots: str) -> None:
        model = DRIVER.Address.model_validate
        self.points = [Point(plot, model({"address": "ndvi", "plot": plot})) for plot in plots]
        self.session.use(self.points)

    def drop(self, name: str, *lines: str, end: str = "\n", written: str = "0s", ahead: str = "0s") -> None:
        """written: how long ago by the folder's clock; ahead: how far before ours that goes."""
        path = self.folder / name
        path.write_text(HEAD + "\n".join(lines) + end)
        at_ns = (self.clock.wall - duration_us(written) + duration_us(ahead)) * 1000
        os.utime(path, ns=(at_ns, at_ns))

    def read(self, *due: int) -> list[tuple[str, float | None]]:
        readings = asyncio.run(self.session.read(np.array(due or range(len(self.points)), dtype=np.int64)))
        self.ts = readings.ts.tolist()
        named = [Quality(quality).name for quality in readings.quality]
        return [(name, None if np.isnan(v) else v) for name, v in zip(named, readings.values.tolist(), strict=True)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


HOLD = ("HOLD", None)


def test_a_survey_is_told_once_with_the_time_of_its_capture_and_then_held(desk: Desk) -> None:
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.7,0.3,1")
    assert desk.read() == [("GOOD", 0.7), ("MISSING", None)]
    assert datetime.fromtimestamp(desk.ts[0] / 1e6, UTC) == datetime(2026, 5, 26, 9, 31, tzinfo=UTC)
    assert "has N2" in desk.session.explain(1)
    assert desk.read() == [HOLD, HOLD]
    desk.drop("copy of 1.csv", "N1,2026-05-26T09:31:00Z,0.7,0.3,1")
    assert desk.read() == [HOLD, HOLD], "the same line in two files is one reading"
    assert desk.session.counters() | {"looks": 0} == {
        "looks": 0, "files": 2, "lines": 2, "lines_not_good": 0, "lines_old": 1, "waiting_files": 0,
    }  # fmt: skip


def test_news_of_a_point_that_is_not_due_is_kept_until_it_is(desk: Desk) -> None:
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.7,0.3,1", "N2,2026-05-26T09:31:00Z,0.8,0.3,1")
    assert desk.read(0) == [("GOOD", 0.7)]
    assert desk.read() == [HOLD, ("GOOD", 0.8)]


def test_what_stands_does_not_hang_on_the_order_in_which_files_come(tmp_path: Path) -> None:
    files = {
        "old.csv": ("N1,2026-05-12T09:00:00Z,0.1,0,1", "N2,2026-05-12T09:00:00Z,0.1,0,1"),
        "new.csv": ("N1,2026-05-26T09:00:00Z,0.7,0,1", "N2,2026-05-26T09:00:00Z,nan,0,1"),
        "corrected.csv": ("N1,2026-05-26T09:00:00Z,0.6,0,1",),
        "wrong.csv": ("N2,noon,0.9,0,1",),
    }
    ages = {"old.csv": "9d", "new.csv": "2d", "corrected.csv": "1d", "wrong.csv": "9d"}
    for number, order in enumerate(permutations(files)):
        folder = tmp_path / str(number)
        folder.mkdir()
        desk = Desk(folder, max_age="365d")
        for name in order:
            desk.drop(name, *files[name], written=ages[name])
            desk.read()
        desk.use("N1", "N2")  # tell all once more
        assert desk.read() == [("GOOD", 0.6), ("NOT_A_NUMBER", None)], order
        assert "new.csv, line 3" in desk.session.explain(1)


def test_two_values_for_one_capture_in_one_file_are_none(desk: Desk) -> None:
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.7,0,1", "N1,2026-05-26T09:31:00Z,0.71,0,1")
    assert desk.read(0) == [("PROTOCOL", None)]
    assert desk.session.explain(0) == "two lines for the capture of 2026-05-26T09:31:00Z: 0.7 and 0.71"


def test_a_file_that_grows_is_taken_again_and_nothing_of_it_twice(desk: Desk) -> None:
    first, second = "N1,2026-05-26T09:31:00Z,0.7,0,1", "N2,2026-05-26T09:32:00Z,0.85,0,1"
    desk.drop("1.csv", first, second[:-6], end="", written="2s")
    assert desk.read() == [("GOOD", 0.7), ("PROTOCOL", None)]
    assert "1.csv, line 3: has no end" in desk.session.explain(1)
    desk.drop("1.csv", first, second)
    assert desk.read() == [HOLD, ("GOOD", 0.85)]


def test_a_bad_file_that_is_taken_away_is_forgotten(desk: Desk) -> None:
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.7,0,1", "N2,2026-05-26T09:31:00Z,0.8,0,1", written="1h")
    desk.read()
    (desk.folder / "2.csv").write_bytes(b"\xff")
    assert desk.read() == [("PROTOCOL", None), ("PROTOCOL", None)]
    (desk.folder / "2.csv").unlink()
    assert desk.read() == [("GOOD", 0.7), ("GOOD", 0.8)]


def test_a_survey_that_is_too_old_is_no_value_and_one_grows_too_old(desk: Desk) -> None:
    desk.drop("1.csv", "N1,2026-05-18T09:31:00Z,0.7,0,1", "N2,2026-05-19T09:31:00Z,0.8,0,1")
    assert desk.read() == [("MISSING", None), ("GOOD", 0.8)]
    assert desk.session.explain(0) == "captured 2026-05-18T09:31:00Z, longer than 10d ago"
    desk.clock.move("13h")
    assert desk.read() == [HOLD, HOLD]
    desk.clock.move("5min")
    assert desk.read() == [HOLD, ("MISSING", None)]


def test_after_a_step_of_our_clock_what_was_of_the_future_is_judged_anew(desk: Desk) -> None:
    desk.clock.wall -= 30 * DAY_US  # a small computer without a battery, before it hears of the time
    (desk.folder / "1.csv").write_text(f"{HEAD}N1,2026-05-26T09:31:00Z,0.7,0,1\n")
    assert desk.read(0) == [("PROTOCOL", None)]
    assert "one of the two clocks is wrong" in desk.session.explain(0)
    desk.clock.wall += 30 * DAY_US
    assert desk.read(0) == [("GOOD", 0.7)]
    desk.clock.wall -= 30 * DAY_US
    assert desk.read(0) == [("PROTOCOL", None)], "and the other way round"


def test_a_file_is_read_once_it_has_lain_unchanged(tmp_path: Path) -> None:
    desk = Desk(tmp_path, settle="5s")
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.7,0,1", ahead="1h")  # the share's clock is not ours
    assert desk.read(0) == [("MISSING", None)]
    assert desk.session.explain(0).endswith("; 1.csv lies unchanged for less than 5s")
    desk.clock.move("4s")
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.75,0,1", ahead="1h")
    assert desk.read(0) == [HOLD]
    desk.clock.move("4s")
    assert desk.read(0) == [HOLD]
    assert desk.session.counters()["waiting_files"] == 1
    desk.clock.move("1s")
    assert desk.read(0) == [("GOOD", 0.75)]
    desk.drop("2.csv", "N1,2026-05-27T09:31:00Z,0.8,0,1", written="5s")
    assert desk.read(0) == [("GOOD", 0.8)], "one that was written long enough ago is not waited for"


def test_only_files_of_the_pattern_are_surveys(desk: Desk) -> None:
    line = "N1,2026-05-26T09:31:00Z,0.7,0,1"
    for name in ("1.csv.part", ".1.csv", "1.txt"):
        desk.drop(name, line)
    (desk.folder / "folder.csv").mkdir()
    os.mkfifo(desk.folder / "pipe.csv")
    assert desk.read(0) == [("MISSING", None)]
    (desk.folder / "1.csv.part").rename(desk.folder / "1.csv")
    assert desk.read(0) == [("GOOD", 0.7)]


def test_a_flood_of_files_is_read_in_several_looks_newest_first(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_survey, "LOOK_BYTES_MAX", 200)
    for day in range(10, 26):
        desk.drop(f"{day}.csv", f"N1,2026-05-{day}T09:31:00Z,0.{day},0,1", written=f"{26 - day}d")
    assert desk.read(0) == [("GOOD", 0.25)]
    assert desk.session.counters()["waiting_files"] == 13
    while desk.session.counters()["waiting_files"]:
        assert desk.read(0) == [HOLD]
    monkeypatch.setattr(field_survey, "FILE_BYTES_MAX", 10)
    desk.drop("26.csv", "N1,2026-05-26T09:31:00Z,0.9,0,1")
    assert desk.read(0) == [("PROTOCOL", None)]
    assert "larger than" in desk.session.explain(0)
    monkeypatch.setattr(field_survey, "FILES_MAX", 5)
    with pytest.raises(DeviceRefused, match="more than 5 surveys"):
        desk.read(0)


def test_other_points_are_told_what_the_files_had_said_before(desk: Desk) -> None:
    desk.drop("1.csv", "N1,2026-05-26T09:31:00Z,0.7,0,1", "N3,2026-05-26T09:31:00Z,0.8,0,1")
    desk.read()
    desk.use("N3", "N1")
    assert desk.read() == [("GOOD", 0.8), ("GOOD", 0.7)]


# ---------------------------------------------------------------------------------------------- a folder that is not there


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may read everything: it becomes nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_is_gone_is_silence_and_one_that_may_not_be_read_a_refusal(desk: Desk, tmp_path: Path) -> None:
    async def opened(folder: Path) -> None:
        async with DRIVER.open("drone", settings(folder), desk.points, desk.clock):
            pass

    with pytest.raises(DeviceSilent, match=r"the folder .*/gone is not there") as gone:
        asyncio.run(opened(tmp_path / "gone"))
    assert gone.value.quality is Quality.DISCONNECTED
    (tmp_path / "file").touch()
    with pytest.raises(DeviceRefused, match="is no folder"):
        asyncio.run(opened(tmp_path / "file"))
    locked = Path(tempfile.mkdtemp())
    locked.chmod(0)
    with somebody_else(), pytest.raises(DeviceRefused, match="may not be read by this user"):
        asyncio.run(opened(locked))
    locked.chmod(0o755)
    (locked / "1.csv").touch()
    (locked / "1.csv").chmod(0)
    with somebody_else(), pytest.raises(DeviceRefused, match=r"1\.csv may not be read by this user"):
        asyncio.run(opened(locked))
    shutil.rmtree(locked)


def test_a_folder_that_hangs_is_silence_and_costs_one_thread(tmp_path: Path) -> None:
    async def test() -> None:
        hands, let_go = Hands(), threading.Event()
        before = threading.active_count()
        for _ in range(3):
            with pytest.raises(DeviceSilent, match="does not answer within 50ms") as silent:
                await hands.do(tmp_path, 50_000, let_go.wait)
            assert silent.value.quality is Quality.TIMEOUT
        assert threading.active_count() == before + 1
        assert await hands.do(tmp_path / "other", 10_000_000, lambda: 7) == 7
        let_go.set()
        assert await hands.do(tmp_path, 10_000_000, lambda: 8) == 8

    asyncio.run(test())


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "1.csv"
    path.write_text(f"{HEAD}N1,2026-05-26T09:31:00Z,0.7,0,1\n")
    mark = field_survey._mark(path.stat())  # noqa: SLF001
    with path.open("a") as file:
        file.write("N2,2026-05-26T09:31:00Z,0.7,0,1\n")
    assert field_survey._content(path, mark) is None  # noqa: SLF001
    assert look(settings(tmp_path), WANTED, NOTHING, NOW_US, 0).surveys[0][1].lines == 2
