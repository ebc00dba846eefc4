"""The trend of a signal: what the API answers over a real history, and the page in a real browser."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from edge_agent.board import BoardMachine, BoardSignal, to_utc
from edge_agent.contract import SECOND_US, Frame, Quality
from edge_agent.records import JudgedFrame, Layout
from edge_agent.store.journal import open_store
from edge_agent.web import trends
from edge_agent.web.guard import Refused
from edge_agent.web.trends import Period, warnings_of
from tests.conftest import StandingClock
from tests.pages import Site, event, now_us, serving, show_active
from tests.pasts import HOUR_US, ended, raised, write_past
from tests.test_web_browser import Visit, browser, visit

__all__ = ["browser", "visit"]
PATH = "/api/v1/machines/press-3/signals/oil_temperature/trend"


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """(data directory, UTC µs at which it ends)."""
    folder, end = tmp_path_factory.mktemp("past"), now_us() // SECOND_US * SECOND_US
    write_past(folder, end)
    return folder, end


@pytest.fixture(scope="module", autouse=True)  # written before the browser has its loop in this thread
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that begins half an hour ago; what it has of the next half hour is not asked for."""
    folder = tmp_path_factory.mktemp("young")
    write_past(folder, now_us() // SECOND_US * SECOND_US + HOUR_US // 2, hours=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes of a signal that is 0 and then 1."""
    folder = tmp_path_factory.mktemp("states")
    clock = StandingClock(now_us() // SECOND_US * SECOND_US - 300 * SECOND_US)
    with open_store(folder, clock) as store:
        store.use_layouts([Layout("press-3", ("oil",), ())])
        for row in range(30):
            store.put([one_row(clock, float(row >= 15))])
            clock.move(10 * SECOND_US)
    return folder


@pytest.fixture(scope="module")
def site(past: tuple[Path, int]) -> Iterator[Site]:
    with serving(past[0]) as running:
        yield running


def iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat().replace("+00:00", "Z")


def asked(site: Site, **query: str) -> dict[str, Any]:
    answer = httpx.get(site.url + PATH, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# --- the API ------------------------------------------------------------------------------------------------------------


def test_the_buckets_are_those_of_the_history(site: Site, past: tuple[Path, int]) -> None:
    end = past[1]
    found = asked(site, **{"from": iso(end - 8 * HOUR_US), "to": iso(end), "points": "480"})
    assert (found["step"], found["unit"], found["every"], found["signal"]) == (60.0, "°C", 1.0, "oil_temperature")
    assert found["limits"]["warning"] == {"low": 20.0, "high": 60.0}
    size = {len(found[key]) for key in ("count", "bad", "low", "high", "mean")}
    assert size <= {480, 481}
    assert 0 <= sum(found["count"]) + sum(found["bad"]) - 8 * 360 <= 6  # the first bucket begins at a whole minute
    assert 70 < max(value for value in found["high"] if value is not None) < 80
    empty = [at for at, count in enumerate(found["count"]) if count == 0]
    assert empty
    assert all(found[key][at] is None for at in empty for key in ("low", "high", "mean"))
    assert all(low <= mean <= high for low, mean, high in zip(*(
        [each for each in found[key] if each is not None] for key in ("low", "mean", "high")), strict=True))  # fmt: skip


def test_what_holds_is_told_from_what_nobody_watched(site: Site, past: tuple[Path, int]) -> None:
    """The level changes once an hour; twelve hours before the end nobody watched for one."""
    end = past[1]
    path = "/api/v1/machines/press-3/signals/oil_level/trend"
    query = {"from": iso(end - 14 * HOUR_US + 120 * SECOND_US), "to": iso(end), "points": "840"}
    found = httpx.get(site.url + path, params=query).json()
    assert sum(found["count"]) == 12
    begin = trends._time("begin", found["begin"])
    missing = [
        at for at, (held, count) in enumerate(zip(found["held"], found["count"], strict=True)) if not held and not count
    ]
    assert {(begin + at * 60 * SECOND_US - (end - 14 * HOUR_US)) // HOUR_US for at in missing[1:-1]} == {2}
    assert 57 <= len(missing) <= 62
    assert found["before"] in (70.0, 71.0, 72.0, 73.0, 74.0)
    assert not any(asked(site)["held"])


def test_a_warning_is_told_once_with_its_beginning_its_end_and_its_worst(site: Site, past: tuple[Path, int]) -> None:
    end = past[1]
    whole = asked(site)["warnings"]
    assert [(each["severity"], each["limit"], each["ended"]) for each in whole] == [
        ("warning", 60.0, True),
        ("alarm", 70.0, True),
    ]
    assert asked(site)["warnings_whole"] is True
    assert whole[0]["from"] < whole[0]["to"] < whole[1]["from"]
    inside = asked(site, **{"from": iso(end - 7 * HOUR_US), "to": iso(end - 6 * HOUR_US)})["warnings"]
    assert [each["id"] for each in inside] == [whole[0]["id"]]
    assert asked(site, **{"from": iso(end - 6 * HOUR_US), "to": iso(end - 5 * HOUR_US)})["warnings"] == []


def told(id_: str, kind: str, since: int, ts: int, severity: str = "warning") -> dict[str, Any]:
    return event(id_, event=kind, since=to_utc(since), ts=to_utc(ts), severity=severity)


def test_what_stands_and_what_has_escalated_is_drawn_as_such() -> None:
    period = Period(10 * SECOND_US, 20 * SECOND_US, 10)
    s = SECOND_US
    found = warnings_of(
        [
            told("ended before", "cleared", s, 9 * s),
            told("began before", "cleared", s, 12 * s),
            told("worse", "raised", 13 * s, 13 * s),
            told("worse", "escalated", 13 * s, 14 * s, "alarm"),
            told("worse", "deescalated", 13 * s, 15 * s),
            told("later", "raised", 21 * s, 21 * s),
        ],
        [told("stands", "raised", 2 * s, 2 * s)],
        period,
    )
    assert [(each["id"], each["severity"], each["to"] is None, each["ended"]) for each in found] == [
        ("began before", "warning", False, True), ("stands", "warning", True, False), ("worse", "alarm", True, True),
    ]  # fmt: skip


def one_row(clock: StandingClock, value: float, quality: Quality = Quality.GOOD) -> JudgedFrame:
    at, ts = np.array([clock.monotonic_us()]), np.array([clock.wall_us()])
    frame = Frame("press-3", at, ts, np.array([[value]]), np.array([[quality]], dtype=np.uint8))
    return JudgedFrame(frame, np.full(1, -1, dtype=np.int16), np.ones(1, dtype=bool))


def test_a_warning_that_stood_all_the_time_is_in_each_of_its_days(tmp_path: Path) -> None:
    clock, day = StandingClock(), trends.DAY_US
    start = clock.wall_us()
    its = replace(raised("high", "warning", start), signal="oil")
    with open_store(tmp_path, clock) as store:
        store.use_layouts([Layout("press-3", ("oil",), ())])
        store.put([one_row(clock, 99.0)], [its])
        clock.move(30 * day)
        store.put([one_row(clock, 1.0)], [ended(its, clock.wall_us())])
    for begin in (0, 5, 22, 29):
        period = Period(start + begin * day, start + (begin + 1) * day + 1, 100)
        found = trends._Look(tmp_path, "press-3", "oil", 10 * SECOND_US).read(period)
        (told,) = warnings_of(found.told, [], period)
        assert (told["id"], told["to"], found.whole) == (its.id, to_utc(start + 30 * day), True)


def test_nothing_holds_after_a_bad_reading_until_the_next_one(tmp_path: Path) -> None:
    clock = StandingClock(1_795_000_020_000_000 // (60 * SECOND_US) * 60 * SECOND_US)
    start = clock.wall_us()
    rows = {0: (50.0, Quality.GOOD), 12: (math.nan, Quality.TIMEOUT), 24: (51.0, Quality.GOOD)}
    with open_store(tmp_path, clock) as store:
        store.use_layouts([Layout("press-3", ("oil",), ())])
        for row in range(36):
            store.put([one_row(clock, *rows.get(row, (math.nan, Quality.HOLD)))])
            clock.move(10 * SECOND_US)
    look = trends._Look(tmp_path, "press-3", "oil", 30 * SECOND_US)
    found = look.read(Period(start, clock.wall_us(), 12))
    assert found.trend.step_us == 30 * SECOND_US
    assert np.flatnonzero(found.held).tolist() == [1, 2, 3, 9, 10, 11]
    after = look.read(Period(start + 150 * SECOND_US, clock.wall_us(), 7))
    assert (np.flatnonzero(after.held).tolist(), after.before) == ([4, 5, 6], None)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"from": "yesterday"}, "from is a time such as 2026-11-23T15:00:00Z"),
        ({"to": "2026-13-01"}, "to is a time"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "from is not before to"),
        ({"from": "2001-01-01", "to": "2026-11-01"}, "a period has at most 3700 days"),
        ({"from": "1960-01-01", "to": "1961-11-01"}, "to is before 1970"),
        ({"points": "9"}, "points is a whole number from 10 to 2000"),
        ({"points": "1e3"}, "points is a whole number"),
        ({"points": "²00"}, "points is a whole number"),
        ({"form": "1"}, "unknown parameter 'form'; known are from, to, points"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(query: dict[str, str], words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)) as refused:
        trends.period_of(query, 1_795_000_000_000_000)
    assert refused.value.status == 400


def test_a_zone_in_the_query_is_understood_also_where_its_plus_was_not_escaped() -> None:
    times = {"from": "2026-11-01T06:00:00 01:00", "to": "2026-11-01T06:00:00+00:00"}
    period = trends.period_of(times, 0)
    assert period.to_us - period.from_us == HOUR_US
    assert trends.period_of({}, 1_795_000_000_000_000).from_us == 1_795_000_000_000_000 - trends.DAY_US


def test_unknown_names_and_a_missing_history_are_said(site: Site) -> None:
    for path, words in (
        ("/api/v1/machines/none/signals/oil_temperature/trend", "no machine of this name"),
        ("/api/v1/machines/press-3/signals/none/trend", "no signal of this name"),
    ):
        answer = httpx.get(site.url + path)
        assert (answer.status_code, words in answer.json()["error"]) == (404, True)
    for path in ("/machines/press-3/none", "/machines/none/oil_temperature"):
        assert httpx.get(site.url + path).status_code == 404
    with serving() as without:
        answer = httpx.get(without.url + PATH)
        assert (answer.status_code, answer.json()["error"]) == (503, "this agent keeps no history")


def test_a_journal_that_could_not_be_begun_is_no_fault_inside_the_agent(tmp_path: Path, visit: Visit) -> None:
    """A disk that was full at the start leaves a journal without anything in it. What cannot be read is no calm either."""
    with serving(tmp_path) as site:
        for _ in ("no journal", "an empty one"):
            answer = httpx.get(site.url + PATH)
            assert answer.status_code == 503
            assert answer.json()["error"].endswith("nothing has been kept there yet")
            (tmp_path / "journal.db").touch()
        visit.page.goto(f"{site.url}/machines/press-3/oil_temperature")
        expect(visit.page.locator(".past-card .failure:visible")).to_contain_text("nothing has been kept there yet")
        expect(visit.page.get_by_text("No warnings in this period.")).to_be_hidden()


# --- the page -----------------------------------------------------------------------------------------------------------


def test_the_page_draws_the_day_and_reads_single_values_by_keyboard(site: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(f"{site.url}/machines/press-3")
    page.locator('[data-signal="oil_temperature"] a.title').click()
    expect(page).to_have_url(re.compile(r"/machines/press-3/oil_temperature$"))
    chart, readout = page.locator(".chart"), page.locator(".readout")
    expect(chart.locator("[data-warning]")).to_have_count(2)
    expect(chart.locator(".unread")).to_have_count(1)
    expect(chart.locator("rect.norm")).to_have_count(1)
    expect(readout).to_contain_text("readings")
    expect(page.locator(".past li")).to_have_count(2)
    chart.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(readout.locator("strong")).to_have_text(re.compile(r"^\d\d\.\d"))
    page.keyboard.press("+")
    expect(page).to_have_url(re.compile(r"\?from="))
    page.keyboard.press("Escape")
    page.locator('[data-period="week"]').click()
    expect(page.locator('[data-period="week"]')).to_have_attribute("aria-pressed", "true")
    expect(page).to_have_url(re.compile(r"\?period=week$"))
    page.reload()
    expect(page.locator('[data-period="week"]')).to_have_attribute("aria-pressed", "true")
    expect(chart.locator(".mean")).to_have_attribute("d", re.compile("^M"))
    assert visit.errors == []
    assert all(each.startswith(site.url) for each in visit.requests)


def test_an_agent_that_is_young_shows_what_it_has_and_not_an_empty_day(young: Path, visit: Visit) -> None:
    with serving(young) as site:
        visit.page.goto(f"{site.url}/machines/press-3/oil_temperature")
        expect(visit.page.locator('[data-period="hour"]')).to_have_attribute("aria-pressed", "true")
        expect(visit.page.locator(".chart .mean")).to_have_attribute("d", re.compile("^M"))
        visit.page.locator('[data-period="day"]').click()
        expect(visit.page.locator('[data-period="day"]')).to_have_attribute("aria-pressed", "true")
        visit.page.reload()
        expect(visit.page.locator(".readout")).to_contain_text("readings")
        expect(visit.page.locator('[data-period="day"]')).to_have_attribute("aria-pressed", "true")


def test_values_that_have_names_are_told_by_them(states: Path, visit: Visit) -> None:
    names = {0: "stopped", 1: "running", 2: "waiting for material"}
    mill = BoardMachine("press-3", "Mill", "", (BoardSignal("oil", "Mode", "", 10 * SECOND_US, names=names),))
    with serving(states) as site:
        site.do(lambda: site.board.use([mill]))
        visit.page.goto(f"{site.url}/machines/press-3/oil")
        expect(visit.page.locator(".readout")).to_have_text("stopped … running · 30 readings")
        axis = visit.page.locator(".chart text.scale").all_text_contents()
        assert axis[:3] == ["stopped", "running", "waiting…waiting for material"]
        visit.page.locator(".chart").focus()
        visit.page.keyboard.press("End")
        told = set()
        for pressed in range(300):  # a point is shorter than the signal's period: between its readings it is unchanged
            visit.page.keyboard.press("ArrowLeft")
            told.add(visit.page.locator(".readout strong").text_content())
            if pressed >= 19 and len(told) > 1:
                break
        assert told == {"running", "unchanged"}
    assert visit.errors == []


def test_a_period_by_hand_and_one_without_readings(site: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(f"{site.url}/machines/press-3/oil_temperature")
    expect(page.locator(".chart svg")).to_be_visible()
    page.get_by_label("from", exact=True).fill("2020-01-01T00:00")
    page.get_by_label("to", exact=True).fill("2020-01-02T00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".chart .nothing")).to_have_text("No readings in this period.")
    page.get_by_label("to", exact=True).fill("2019-01-02T00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert").filter(has_text="From lies before to")).to_be_visible()
    page.get_by_role("button", name="Now").click()
    expect(page.locator(".chart [data-warning]")).to_have_count(2)
    assert visit.errors == []


def test_dragging_with_the_mouse_zooms_and_what_stands_is_drawn_to_the_end(site: Site, visit: Visit) -> None:
    page = visit.page
    site.do(lambda: show_active(site.board, [event("now")]))
    try:
        page.goto(f"{site.url}/machines/press-3/oil_temperature")
        chart = page.locator(".chart")
        expect(chart.locator('[data-warning="now"]')).to_have_count(1)
        box = chart.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 300, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 500, middle, steps=4)
        expect(page.locator(".chosen")).to_be_visible()
        page.mouse.up()
        expect(page).to_have_url(re.compile(r"\?from=.*&to="))
        expect(page.locator(".legend .about")).to_contain_text(re.compile(r"One point is (30 seconds|1 minute)"))
    finally:
        site.do(lambda: show_active(site.board, []))
    assert visit.errors == []


@pytest.mark.parametrize(
    ("language", "word"), [("nl", "Waarschuwingen in deze periode"), ("de", "Warnungen in diesem Zeitraum")]
)
def test_it_speaks_the_language_of_its_agent(past: tuple[Path, int], visit: Visit, language: str, word: str) -> None:
    with serving(past[0]) as site:
        site.do(lambda: site.board.status({**site.board.agent()["status"], "language": language}))
        visit.page.goto(f"{site.url}/machines/press-3/oil_temperature")
        expect(visit.page.get_by_role("heading", name=word)).to_be_visible()
    assert visit.errors == []


def test_a_phone_sees_it_without_scrolling_sideways(site: Site, visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 844})
    visit.page.goto(f"{site.url}/machines/press-3/oil_temperature")
    expect(visit.page.locator(".chart svg")).to_be_visible()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    small = visit.page.evaluate(
        "[...document.querySelectorAll('main button, main input')].filter((each) => each.getBoundingClientRect().height < 44).length"
    )
    assert small == 0
    assert visit.errors == []


@pytest.mark.parametrize(
    ("begin", "end", "most", "texts"),
    [
        # The day on which the clock is set back has 25 hours, and midnight stays midnight.
        ("2026-10-24T22:00Z", "2026-10-26T23:00Z", 9, ["Sun 25 Oct", "06:00", "12:00", "18:00", "Mon 26 Oct",
          "06:00", "12:00", "18:00", "Tue 27 Oct"]),
        # The hour that it skips in spring is not there.
        ("2026-03-29T00:00Z", "2026-03-29T03:00Z", 4, ["01:00", "03:00", "04:00", "05:00"]),
        ("2026-03-25T23:00Z", "2026-03-31T22:00Z", 7, ["26 Mar", "27 Mar", "28 Mar", "29 Mar", "30 Mar", "31 Mar", "1 Apr"]),
        ("2025-12-31T23:00Z", "2026-12-31T23:00Z", 7, ["Jan 2026", "Mar", "May", "Jul", "Sept", "Nov", "Jan 2027"]),
    ],
)  # fmt: skip
def test_the_axis_has_whole_hours_days_and_months_of_the_agents_zone(
    site: Site, visit: Visit, begin: str, end: str, most: int, texts: list[str]
) -> None:
    visit.page.goto(site.url)
    found = visit.page.evaluate(
        """async ([begin, end, most]) => {
          const [{ times }, { useZone }] = await Promise.all([import("/static/chart.js"), import("/static/format.js")]);
          useZone("Europe/Amsterdam");
          return times(Date.parse(begin), Date.parse(end), most).map(({ text }) => text.replace(",", ""));
        }""",
        [begin, end, most],
    )
    assert found == texts
