"""Recordings: every form of a CSV file, the time in which no row came, and the real command from file to file."""

import gzip
import json
from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from edge_agent import config, replay
from edge_agent.__main__ import main
from edge_agent.contract import Frame, Quality
from edge_agent.plant import Plant, compile_plant
from edge_agent.plugins import detectors
from edge_agent.records import Event

SECOND = 1_000_000
START = 1_767_225_600 * SECOND
"""2026-01-01T00:00:00Z."""
YEAR_S = 365 * 86_400


def written(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def seconds(recording: replay.Recording) -> list[float]:
    return [(ts - START) / SECOND for ts in recording.ts.tolist()]


# --- forms of a CSV file ---


@pytest.mark.parametrize(
    "cells",
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01.5Z"),
        ("2026-01-01 00:00:00", "2026-01-01 00:00:01.500"),
        ("2026-01-01T01:00:00+01:00", "2026-01-01T01:00:01.500000+01:00"),
        ("1767225600", "1767225601.5"),
        ("1767225600000", "1767225601500"),
        ("1767225600000000", "1767225601500000"),
        ("1767225600000000000", "1767225601500000000"),
    ],
)
def test_times_may_be_iso_or_epoch_seconds_down_to_nanoseconds(tmp_path: Path, cells: tuple[str, str]) -> None:
    path = written(tmp_path, f"ts,s\n{cells[0]},1\n{cells[1]},2\n")
    assert seconds(replay.read_csv(path)) == [0, 1.5]


def test_naive_times_are_of_the_zone_that_is_named_and_others_are_not(tmp_path: Path) -> None:
    path = written(tmp_path, "ts,s\n2026-01-01 01:00:00,1\n2026-01-01T00:00:01Z,2\n")
    assert seconds(replay.read_csv(path, zone=ZoneInfo("Europe/Amsterdam"))) == [0, 1]
    assert seconds(replay.read_csv(path, zone=UTC)) == [3600, 1]


@pytest.mark.parametrize("name", ["ts", "time", "DateTime", "TIMESTAMP", " ts "])
def test_the_time_column_is_found_by_its_usual_names_wherever_it_stands(tmp_path: Path, name: str) -> None:
    recording = replay.read_csv(written(tmp_path, f"s,{name}\n5,1767225600\n"))
    assert seconds(recording) == [0]
    assert list(recording.columns) == ["s"]


def test_another_time_column_and_separator_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "ts;when;s\n7;1767225600;1,5\n")
    recording = replay.read_csv(path, time="when", sep=";")
    assert seconds(recording) == [0]
    assert recording.columns["ts"][0].tolist() == [7]
    assert recording.columns["s"][1].tolist() == [Quality.NOT_A_NUMBER]


@pytest.mark.parametrize(("name", "case"), [("data.csv.gz", "data"), ("data.gz", "data"), ("a.b.csv", "a.b")])
def test_a_gzipped_file_is_known_by_its_bytes_and_the_case_by_its_name(tmp_path: Path, name: str, case: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"ts,s\n1767225600,1\n"))
    recording = replay.read_csv(path)
    assert recording.name == case
    assert recording.columns["s"][0].tolist() == [1.0]


def test_a_mark_of_utf8_windows_line_ends_quotes_and_empty_lines_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes('\ufeffts,"s"\r\n\r\n"1767225600"," 1.5 "\r\n\r\n'.encode())
    recording = replay.read_csv(path)
    assert recording.columns["s"][0].tolist() == [1.5]


@pytest.mark.parametrize("cell", ["", " ", "NaN", "nan", "null", "None", "NA", "n/a"])
def test_an_empty_cell_is_a_missing_reading(tmp_path: Path, cell: str) -> None:
    values, quality = replay.read_csv(written(tmp_path, f"ts,s\n1767225600,{cell}\n1767225601,2\n")).columns["s"]
    assert quality.tolist() == [Quality.MISSING, Quality.GOOD]
    assert np.isnan(values[0])
    assert values[1] == 2


def test_a_text_cell_is_not_a_number_and_the_other_rows_are_good(tmp_path: Path) -> None:
    values, quality = replay.read_csv(written(tmp_path, "ts,s\n1767225600,off\n1767225601,2e1\n")).columns["s"]
    assert quality.tolist() == [Quality.NOT_A_NUMBER, Quality.GOOD]
    assert values[1] == 20


@pytest.mark.parametrize("cell", ["1_000", "١٢", "１２", "0x10", "1,5", "12 bar", "--1", "1e", "+-1"])
def test_what_people_do_not_write_as_a_number_is_none(tmp_path: Path, cell: str) -> None:
    text = f'ts,s,t\n1767225600,"{cell}",1\n1767225601,2,2\n'
    columns = replay.read_csv(written(tmp_path, text)).columns
    assert columns["s"][1].tolist() == [Quality.NOT_A_NUMBER, Quality.GOOD]
    assert np.isnan(columns["s"][0][0])
    assert columns["t"][1].tolist() == [Quality.GOOD, Quality.GOOD]


def test_rows_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    recording = replay.read_csv(written(tmp_path, "ts,s\n1767225605,1\n1767225600,2\n1767225600,3\n"))
    assert seconds(recording) == [5, 0, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "data.csv:1: is empty; the first line names the columns"),
        (
            "s,t\n1,2\n",
            "data.csv:1: has no time column (ts, time, datetime, timestamp), only s, t; name it with --time",
        ),
        ("ts,s,s\n1,2,3\n", "data.csv:1: the column 's' stands twice"),
        ("ts,s\n1,2\n2,3,4\n", "data.csv:3: has 3 cells, the header 2 (separator ',')"),
        ("ts,s\n1,2\n\n2\n", "data.csv:4: has 1 cells, the header 2 (separator ',')"),
        (
            "ts,s\n1,2\nyesterday,3\n",
            "data.csv:3: 'yesterday' is not a time (2026-11-23T15:53:39Z, or seconds since 1970)",
        ),
        (
            'ts,s\n\n\n2026-01-01,"a\nb"\n,3\n',
            "data.csv:6: '' is not a time (2026-11-23T15:53:39Z, or seconds since 1970)",
        ),
        ("ts,s\n\n1,2\ninf,3\n", "data.csv:4: the time is not a number"),
        *(
            (
                f"ts,s\n{good},1\n{cell},3\n",
                f"data.csv:3: {cell!r} is not a time (2026-11-23T15:53:39Z, or seconds since 1970)",
            )
            for good, cell in (
                ("1", "1e300"),
                ("1", "-1e30"),
                ("1", "1_0"),
                ("2026-01-01", "0001-01-01T00:00+14:00"),
                ("2026-01-01", "9999-12-31T23:59-12:00"),
                ("2026-01-01", "0001-01-01"),
            )
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(replay.RecordingError) as caught:
        replay.read_csv(path)
    assert str(caught.value) == f"{tmp_path}/{says}"


def test_a_missing_named_time_column_a_missing_file_and_a_broken_archive_are_told(tmp_path: Path) -> None:
    path = written(tmp_path, "ts,s\n1,2\n")
    with pytest.raises(replay.RecordingError, match=r"data.csv:1: has no column 'when'; it has ts, s"):
        replay.read_csv(path, time="when")
    with pytest.raises(replay.RecordingError, match="cannot be read"):
        replay.read_csv(tmp_path / "nothing.csv")
    torn = tmp_path / "torn.csv.gz"
    torn.write_bytes(gzip.compress(b"ts,s\n" + b"1767225600,1\n" * 500)[:-20])
    with pytest.raises(replay.RecordingError, match="cannot be read"):
        replay.read_csv(torn)
    whole = bytearray(gzip.compress(b"ts,s\n" + b"1767225600,1\n" * 5000))
    whole[30:50] = b"x" * 20
    torn.write_bytes(whole)
    with pytest.raises(replay.RecordingError, match="cannot be read"):
        replay.read_csv(torn)
    path.write_bytes(b"ts,s\n1,\xff\n")
    with pytest.raises(replay.RecordingError, match=r"data.csv:1: near this line is no UTF-8"):
        replay.read_csv(path)
    path.write_text("ts;s\n1;2\n")
    with pytest.raises(replay.RecordingError, match=r"'ts;s' is one column with the separator ',': try --sep ';'"):
        replay.read_csv(path)


def test_the_hour_that_comes_twice_in_autumn_is_read_as_two(tmp_path: Path) -> None:
    zone = ZoneInfo("Europe/Amsterdam")
    cells = [f"2026-10-25T{hour:02d}:{minute:02d}" for hour in (1, 2, 2, 3) for minute in (0, 30)]
    recording = replay.read_csv(written(tmp_path, "ts,s\n" + "".join(f"{c},1\n" for c in cells)), zone=zone)
    assert np.diff(recording.ts).tolist() == [1800 * SECOND] * 7


def test_nameless_columns_are_left_out(tmp_path: Path) -> None:
    assert replay.read_csv(written(tmp_path, "ts,s,,\n1767225600,2,,x\n")).columns.keys() == {"s"}


def test_a_header_alone_is_an_empty_recording(tmp_path: Path) -> None:
    recording = replay.read_csv(written(tmp_path, "ts,s\n"))
    assert len(recording.ts) == 0
    assert recording.spacing_us == SECOND


# --- the configuration seen with the data ---

ONE = """
agent: {id: a}
machines:
  m:
    signals:
      s: {unit: bar, norm: {warning: {high: 60}, alarm: {high: 70}, on_delay: 3s, off_delay: 2s, deadband: 1}}
"""


def compiled(
    folder: Path, text: str, data: str
) -> tuple[Plant, replay.Recording, dict[tuple[str, str], str], list[str]]:
    loaded = config.load(written(folder, text, "agent.yaml"))
    recording = replay.read_csv(written(folder, data))
    fitted, columns, notes = replay.fitted(loaded.config, recording)
    return compile_plant(fitted, detectors()), recording, columns, notes


def frames_of(folder: Path, text: str, data: str, rows: int = replay.ROWS) -> list[Frame]:
    plant, recording, columns, _ = compiled(folder, text, data)
    return [frame for batch in replay.frames(plant, recording, columns, rows) for frame in batch]


def events_of(folder: Path, text: str, data: str) -> list[Event]:
    plant, recording, columns, _ = compiled(folder, text, data)
    return replay.run(plant, replay.frames(plant, recording, columns))


def told(events: list[Event]) -> list[tuple[str, str, float]]:
    return [(e.event.value, str(e.kind), (e.ts - START) / SECOND) for e in events]


def table(*rows: tuple[float, object], name: str = "s") -> str:
    return f"ts,{name}\n" + "".join(f"{(START + t * SECOND) / 1e6:.6f},{value}\n" for t, value in rows)


def test_a_signal_is_found_under_its_column_its_full_name_or_its_name(tmp_path: Path) -> None:
    text = "agent: {id: a}\nmachines: {m: {signals: {s: {column: P-PDG}, t: {column: t}, u: {column: u}, v: {column: v}}}}\n"
    _, _, columns, notes = compiled(tmp_path, text, "ts,P-PDG,m.t,u,z1,z2\n1,2,3,4,5,6\n")
    assert columns == {("m", "s"): "P-PDG", ("m", "t"): "m.t", ("m", "u"): "u"}
    assert notes == [
        "m.v: the data has no column 'v': left out",
        "ignored, in no signal of the configuration: z1, z2",
    ]


def test_a_signal_without_a_column_stays_when_a_formula_or_a_state_needs_it(tmp_path: Path) -> None:
    text = """
agent: {id: a}
machines:
  m:
    states: {busy: b > 0}
    signals: {a: {column: a}, b: {column: b}, c: {column: c}, d: {column: d}, f: {formula: a + c}}
"""
    plant, _, columns, notes = compiled(tmp_path, text, "ts,a\n1,2\n")
    assert [signal.name for signal in plant.machines[0].signals] == ["a", "b", "c", "f"]
    assert columns == {("m", "a"): "a"}
    needed = "which a formula or an operating state needs: it is never read"
    assert notes == [
        f"m.b: the data has no column 'b', {needed}",
        f"m.c: the data has no column 'c', {needed}",
        "m.d: the data has no column 'd': left out",
    ]


def test_the_full_name_of_a_signal_goes_before_a_name_that_others_have_too(tmp_path: Path) -> None:
    text = "agent: {id: a}\nmachines: {p1: {signals: {t: {}}}, p2: {signals: {t: {}}}}\n"
    _, _, columns, _ = compiled(tmp_path, text, "ts,t,p1.t,p2.t\n1767225600,50,5,6\n")
    assert columns == {("p1", "t"): "p1.t", ("p2", "t"): "p2.t"}
    _, _, columns, _ = compiled(tmp_path, text, "ts,t\n1767225600,50\n")
    assert columns == {("p1", "t"): "t", ("p2", "t"): "t"}


def test_cells_that_are_no_number_are_told_of_and_old_times_are_doubted(tmp_path: Path) -> None:
    text = "agent: {id: a}\nmachines: {m: {signals: {s: {}}}}\n"
    _, recording, _, notes = compiled(tmp_path, text, 'ts,s,t\n20231114,"5,0",x\n20231115,"5,1",y\n')
    assert notes[0] == (
        "column s: 2 of 2 cells are no number, the first '5,0' in line 2 (numbers are written with a point)"
    )
    assert "the first time is 1970-08-23" in recording.notes[0]


# --- time in which no row came ---


def test_ticks_of_the_median_spacing_pass_the_time_across_missing_rows(tmp_path: Path) -> None:
    data = table((0, 1), (2, 1), (4, 1), (11, 1), (13, 1))
    (frame,) = frames_of(tmp_path, ONE, data)
    assert ((frame.ts - START) // SECOND).tolist() == [0, 2, 4, 6, 8, 10, 11, 13]
    assert frame.quality[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert (frame.t - frame.t[0]).tolist() == (frame.ts - frame.ts[0]).tolist()


def test_ticks_come_as_often_as_the_file_says_where_it_says_it(tmp_path: Path) -> None:
    text = ONE.replace("unit: bar", "unit: bar, every: 1s")
    (frame,) = frames_of(tmp_path, text, table((0, 1), (2, 1), (4, 1)))
    assert ((frame.ts - START) // SECOND).tolist() == [0, 1, 2, 3, 4]


def test_a_written_period_sets_the_default_of_stale_and_so_does_the_median_spacing(tmp_path: Path) -> None:
    data = table((0, 1), (60, 1), (120, 1), (600, 1))
    assert told(events_of(tmp_path, ONE, data)) == [("raised", "stale", 300), ("cleared", "stale", 600)]
    text = ONE.replace("unit: bar", "unit: bar, every: 10s")
    assert told(events_of(tmp_path, text, data))[:3] == [
        ("raised", "stale", 30), ("cleared", "stale", 60), ("raised", "stale", 90),
    ]  # fmt: skip


def test_delays_mature_on_the_held_value_between_rows(tmp_path: Path) -> None:
    data = table((0, 50), (1, 50), (2, 50), (3, 65), (9, 50), (15, 50))
    assert told(events_of(tmp_path, ONE, data)) == [("raised", "high", 6), ("cleared", "high", 11)]


def test_a_year_without_rows_is_cheap_and_exact(tmp_path: Path) -> None:
    def data(gap_s: int) -> str:
        return table(*[(t, 65) for t in range(5)], (gap_s, 65), (gap_s + 1, 50), (gap_s + 2, 50), (gap_s + 3, 50))

    (frame,) = frames_of(tmp_path, ONE, data(YEAR_S))
    assert len(frame.t) < 50
    hour, year = (told(events_of(tmp_path, ONE, data(gap))) for gap in (3_600, YEAR_S))
    assert year == [
        ("raised", "high", 3),
        ("raised", "stale", 14),
        ("cleared", "stale", YEAR_S),
        ("cleared", "high", YEAR_S + 3),
    ]
    assert [e[:2] for e in hour] == [e[:2] for e in year]


def test_a_change_of_state_by_silence_still_settles_within_a_long_gap(tmp_path: Path) -> None:
    """The cheap end of a long gap may not come before the last thing that time alone can change."""
    text = """
agent: {id: a}
machines:
  m:
    states: {fast: a > 0, slow: b > 0}
    settle: 30s
    signals:
      a: {column: a, norm: {stale: 5s}}
      b: {column: b, norm: {stale: 8s}}
"""
    data = "ts,a,b\n" + "".join(f"{START / 1e6 + t:.0f},1,1\n" for t in (0, 1, 2, YEAR_S))
    assert [(e.signal, *told([e])[0]) for e in events_of(tmp_path, text, data)] == [
        ("a", "raised", "stale", 37),
        ("b", "raised", "stale", 37),
        ("a", "cleared", "stale", YEAR_S),
        ("b", "cleared", "stale", YEAR_S),
    ]


def test_a_step_back_counts_as_no_time_and_equal_times_are_rows_like_any_other(tmp_path: Path) -> None:
    data = table((0, 65), (1, 65), (2, 65), (-100, 65), (-100, 65), (-99, 65), (-98, 65))
    (frame,) = frames_of(tmp_path, ONE, data)
    assert ((frame.t - frame.t[0]) // SECOND).tolist() == [0, 1, 2, 2, 2, 3, 4]
    assert told(events_of(tmp_path, ONE, data)) == [("raised", "high", -99)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_frames_have_at_most_so_many_rows_and_leave_none_out(tmp_path: Path, rows: int) -> None:
    data = table(*[(t, t) for t in range(10)], (20, 1))
    (whole,) = frames_of(tmp_path, ONE, data)
    cut = frames_of(tmp_path, ONE, data, rows)
    assert max(len(frame.t) for frame in cut) == rows
    assert np.concatenate([frame.t for frame in cut]).tolist() == whole.t.tolist()
    assert np.concatenate([frame.quality for frame in cut]).tolist() == whole.quality.tolist()


# --- the command ---

TWO = """
agent: {id: a, language: nl, timezone: Europe/Amsterdam}
machines:
  a:
    title: Pers
    states: {running: speed > 0, stopped: speed <= 0}
    settle: 3s
    signals:
      speed: {column: a.speed}
      oil:
        title: Olietemperatuur
        column: OIL-1
        unit: °C
        valid: {high: 150}
        norm: {warning: {high: 60}, alarm: {high: 70}, deadband: 1, on_delay: 2s, off_delay: 2s, acknowledge: required}
        advice: {en: Look., nl: Kijk.}
      double: {formula: oil * 2, norm: {warning: {high: 139}}}
  b:
    signals: {p: {column: b.p, norm: {warning: {low: 2}, stale: 4s}}}
"""


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(7)
    lines = ["time,OIL-1,a.speed,b.p,note"]
    t = 0.0
    for i in range(400):
        t += float(rng.choice([1, 1, 1, 1, 2, 9, 0, -3]))
        oil = rng.choice(["", "160", "fault"]) if i % 17 == 0 else f"{55 + 10 * np.sin(i / 12) + rng.normal() * 4:.2f}"
        pressure = "" if i % 50 in range(20, 28) else f"{rng.choice([1.5, 2, 3])}"
        lines.append(f"{START / 1e6 + t:.3f},{oil},{int(i // 60 % 2)},{pressure},x{i}")
    return written(tmp_path, TWO, "agent.yaml"), written(tmp_path, "\n".join(lines) + "\n", "case-7.csv")


@pytest.mark.parametrize("rows", ["1", "2", "13", "100000"])
def test_how_many_rows_a_frame_has_changes_nothing(two: tuple[Path, Path], tmp_path: Path, rows: str) -> None:
    found = []
    for name, more in (("whole", []), ("cut", ["--rows", rows])):
        out, alarms = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.csv"
        assert main(["replay", *map(str, two), "--out", str(out), "--alarms", str(alarms), *more]) == 0
        found.append((out.read_bytes(), alarms.read_bytes()))
    assert found[0] == found[1]
    assert found[0][0].count(b"\n") > 50
    kinds = {(e["machine"], e["kind"], e["event"]) for e in map(json.loads, found[0][0].splitlines())}
    assert {("a", "high", "escalated"), ("b", "low", "raised"), ("b", "stale", "cleared")} <= kinds


def test_both_machines_events_stand_in_the_order_of_time_with_one_seq(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    main(["replay", *map(str, two), "--out", str(out)])
    events = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert {e["epoch"] for e in events} == {"replay"}
    alone = tmp_path / "alone.yaml"
    alone.write_text(TWO[: TWO.index("  b:\n")], encoding="utf-8")
    only = tmp_path / "only.jsonl"
    main(["replay", str(alone), str(two[1]), "--out", str(only)])

    def plain(event: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in event.items() if key != "seq"}

    assert [plain(e) for e in events if e["machine"] == "a"] == [
        plain(json.loads(line)) for line in only.read_bytes().splitlines()
    ]


def test_the_files_that_replay_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ONE.replace("s: {unit: bar", "oil: {title: Oil temperature, column: T-1, unit: °C, advice: {en: Look.}")
    data = written(
        tmp_path, table(*enumerate([50, 65, 65, 65, 65, 75, 75, 75, 75, 50, 50, 50, 65]), name="T-1"), "run.csv"
    )
    out, alarms = tmp_path / "out.jsonl", tmp_path / "alarms.csv"
    arguments = [
        "replay",
        str(written(tmp_path, text, "agent.yaml")),
        str(data),
        "--out",
        str(out),
        "--alarms",
        str(alarms),
    ]
    assert main(arguments) == 0
    events = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert events[0] == {
        "epoch": "replay",
        "seq": 1,
        "id": events[0]["id"],
        "event": "raised",
        "ts": "2026-01-01T00:00:04.000Z",
        "machine": "m",
        "signal": "oil",
        "kind": "high",
        "severity": "warning",
        "state": "unacknowledged",
        "value": 65.0,
        "unit": "°C",
        "limit": 60.0,
        "norm": {"warning": {"high": 60.0}, "alarm": {"high": 70.0}},
        "since": "2026-01-01T00:00:01.000Z",
        "operating_state": None,
        "message": "Oil temperature 65 °C is above its norm of 60 °C",
        "advice": "Look.",
        "column": "T-1",
    }
    assert [(e["event"], e["ts"][17:19], e["severity"], e["limit"]) for e in events] == [
        ("raised", "04", "warning", 60),
        ("escalated", "08", "alarm", 70),
        ("cleared", "11", "alarm", 70),
    ]
    assert alarms.read_bytes() == (
        b"case,start,end,tag,severity,kind\r\nrun,2026-01-01T00:00:04.000Z,2026-01-01T00:00:11.000Z,T-1,alarm,high\r\n"
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "times are in UTC"
    assert printed[1].split("  ")[0] == "2026-01-01 00:00:04"
    assert printed[-1] == "13 rows: 1 warning, 0 of them standing at the end"


def test_a_warning_that_stands_at_the_end_has_no_end(tmp_path: Path) -> None:
    data = written(tmp_path, table(*[(t, 65) for t in range(5)]), "run.csv")
    alarms = tmp_path / "alarms.csv"
    main(["replay", str(written(tmp_path, ONE, "agent.yaml")), str(data), "--alarms", str(alarms)])
    assert alarms.read_text().splitlines()[1] == "run,2026-01-01T00:00:03.000Z,,s,warning,high"


def test_a_warning_raised_again_unseen_is_two_rows_of_alarms(tmp_path: Path) -> None:
    text = ONE.replace("deadband: 1", "deadband: 1, acknowledge: required")
    values = [65] * 4 + [50] * 3 + [65] * 4
    found = replay.alarms(events_of(tmp_path, text, table(*enumerate(values))))
    assert [((a.start - START) // SECOND, a.end and (a.end - START) // SECOND) for a in found] == [(3, 6), (10, None)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rows", "0"], "--rows 0: at least 1"),
        (["--sep", ",,"], "--sep ',,': one character, or tab"),
        (["--tz", "Europe/Nowhere"], "--tz 'Europe/Nowhere': no such time zone"),
        (["--time", "when"], "data.csv:1: has no column 'when'"),
        (["--out", "/proc/nothing/x"], "/proc/nothing/x: cannot be written"),
    ],
)
def test_wrong_use_is_told_in_words_and_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    files = [str(written(tmp_path, ONE, "agent.yaml")), str(written(tmp_path, table((0, 1))))]
    assert main(["replay", *files, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_data_without_any_of_the_signals_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(written(tmp_path, ONE, "agent.yaml")), str(written(tmp_path, table((0, 1), name="other")))]
    assert main(["replay", *files]) == 2
    assert "has no column of any signal" in capsys.readouterr().err


def test_unknown_columns_are_named_and_json_goes_to_stdout_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "ts\ts\tother\n" + "".join(f"{START // SECOND + t}\t65\t1\n" for t in range(5))
    files = [str(written(tmp_path, ONE, "agent.yaml")), str(written(tmp_path, data))]
    assert main(["replay", *files, "--sep", "tab", "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["event"] for line in printed.out.splitlines()] == ["raised"]
    assert printed.err == "note: ignored, in no signal of the configuration: other\n"
