"""The page in a real browser: live values, acknowledging, the lost connection, and strings that mean harm."""

import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from edge_agent.board import BoardMachine, BoardSignal
from edge_agent.contract import SECOND_US, Quality
from tests.pages import BANDS, PRESS, PUMP, Site, event, now_us, serving, show, show_active

NO_NETWORK_OF_ITS_OWN = [
    "--no-sandbox",  # the tests may run as root, where Chromium's sandbox refuses to
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 15_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail("Chromium is missing: `make test` installs it, or `apt-get install chromium`", pytrace=False)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=NO_NETWORK_OF_ITS_OWN)
        yield chromium
        chromium.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@dataclass
class Visit:
    """A page and what it did beside being shown."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def row(self, signal: str, machine: str = "press-3") -> Locator:
        return self.page.locator(f'[data-machine="{machine}"] [data-signal="{signal}"]')

    def entry(self, warning_id: str) -> Locator:
        return self.page.locator(f'[data-id="{warning_id}"]')


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    made = Visit(context.new_page())
    made.page.on("request", lambda request: made.requests.append(request.url))
    made.page.on("pageerror", lambda error: made.errors.append(str(error)))
    made.page.on("console", lambda message: made.errors.append(message.text) if message.type == "error" else None)
    made.page.on("dialog", lambda dialog: made.errors.append(f"a script said {dialog.message}"))
    yield made
    context.close()


def test_values_verdicts_and_reasons_follow_the_board_live(site: Site, visit: Visit) -> None:
    visit.page.goto(site.url)
    temperature, level = visit.row("oil_temperature"), visit.row("oil_level")
    expect(temperature.locator(".figure")).to_have_text("54.2")
    expect(temperature).to_have_attribute("data-verdict", "normal")
    site.do(lambda: show(site.board, 63.4, math.nan, Quality.TIMEOUT))
    expect(temperature.locator(".figure")).to_have_text("63.4")
    expect(temperature).to_have_attribute("data-verdict", "pending")
    expect(level.locator(".figure")).to_have_text("–")
    expect(level.locator(".note")).to_have_text(re.compile(r"^no answer \(timeout\) since \d\d:\d\d:\d\d$"))
    site.do(lambda: show_active(site.board, [event(severity="alarm")]))
    expect(temperature).to_have_attribute("data-verdict", "alarm")
    expect(temperature.locator(".mark .letter")).to_have_text("A")
    expect(temperature.locator(".spoken")).to_have_text("alarm")
    expect(visit.page.locator(".tile.alarm .number")).to_have_text("1")
    expect(visit.page).to_have_title("(1) hall2")
    assert visit.errors == []


def test_a_certificate_that_ends_soon_is_said_at_its_connection(site: Site, visit: Visit) -> None:
    words = "our own certificate edge-agent expires on 2027-03-08, in 59 days"
    about = {"state": "connected", "ne107": "maintenance_required", "certificate": words}
    site.do(lambda: site.board.health({"connections": {"plc-1": about, "plc-2": {"state": "connected"}}}))
    visit.page.goto(site.url)
    visit.page.locator(".devices summary").click()
    expect(visit.page.locator(".devices .certificate")).to_have_text([words])
    expect(visit.page.locator(".devices li.up")).to_have_count(2)
    assert visit.errors == []


def test_new_norms_change_the_gauge_of_their_machine_where_it_stands(site: Site, visit: Visit) -> None:
    visit.page.goto(site.url)
    limits = visit.row("oil_temperature").locator(".limit.warning.high")
    expect(limits).to_have_text("60")
    visit.page.locator('[data-machine="pump-1"]').evaluate("(card) => { card.dataset.kept = 'yes'; }")
    fresh = [{"warning": {"low": 20.0, "high": 50.0}}, {"warning": {"low": 30.0}}]
    site.do(lambda: site.board.norms("press-3", fresh))
    expect(limits).to_have_text("50")
    site.do(lambda: show(site.board, 55.0))
    expect(visit.row("oil_temperature")).to_have_attribute("data-verdict", "pending")
    expect(visit.page.locator('[data-machine="pump-1"]')).to_have_attribute("data-kept", "yes")
    assert visit.errors == []


def test_values_that_have_names_are_called_by_them_and_counts_are_whole(site: Site, visit: Visit) -> None:
    signals = (
        BoardSignal("mode", "Mode", "", SECOND_US, names={0: "stopped", 1: "running"}),
        BoardSignal("guard", "Guard", "", SECOND_US),
    )
    site.do(lambda: site.board.use([BoardMachine("m", "M", "", signals)]))
    good = np.zeros(2, dtype=np.uint8)
    site.do(lambda: site.board.frame("m", now_us(), np.array([1.0, 1.0]), good))
    visit.page.goto(site.url)
    expect(visit.row("mode", "m").locator(".figure")).to_have_text("running")
    expect(visit.row("guard", "m").locator(".figure")).to_have_text("1")
    site.do(lambda: site.board.frame("m", now_us(), np.array([0.0, 0.0]), good))
    expect(visit.row("mode", "m").locator(".figure")).to_have_text("stopped")
    expect(visit.row("guard", "m").locator(".figure")).to_have_text("0")
    assert visit.errors == []


@pytest.mark.parametrize(("language", "heading", "figure"), [("nl", "Overzicht", "54,2"), ("de", "Übersicht", "54,2")])
def test_the_page_speaks_the_language_of_its_agent(
    site: Site, visit: Visit, language: str, heading: str, figure: str
) -> None:
    status = site.board.agent()["status"]
    site.do(lambda: site.board.status({**status, "language": language}))
    visit.page.goto(site.url)
    expect(visit.page.locator("html")).to_have_attribute("lang", language)
    expect(visit.page.locator("nav a").first).to_have_text(heading)
    expect(visit.row("oil_temperature").locator(".figure")).to_have_text(figure)
    every = visit.page.evaluate(
        "import('/static/words.js').then(({ words }) => Object.values(words).map((w) => Object.keys(w).join()))"
    )
    assert len(every) == 3
    assert len(set(every)) == 1, "each language has every word"
    assert visit.errors == []


def test_nothing_is_asked_of_any_other_host(site: Site, visit: Visit) -> None:
    for path in ("/", "/machines/press-3", "/warnings"):
        visit.page.goto(site.url + path)
        expect(visit.page.locator("body")).to_have_attribute("data-live", "yes")
    assert len(visit.requests) > 10
    assert [url for url in visit.requests if not url.startswith(f"{site.url}/")] == []
    assert visit.errors == []


def test_a_warning_is_acknowledged_by_click_and_the_name_is_remembered(site: Site, visit: Visit) -> None:
    site.do(lambda: show_active(site.board, [event("w-1"), event("w-2", signal="oil_level", kind="low")]))
    visit.page.goto(site.url)
    visit.entry("w-1").get_by_role("button").click()
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Acknowledge").click()
    assert site.operator.asked == [], "without a name nothing is sent"
    dialog.get_by_label("Your name").fill("Jan de Vries")
    dialog.get_by_label("Comment").fill("oil cooler is being cleaned")
    dialog.get_by_role("button", name="Acknowledge").click()
    expect(dialog).to_have_count(0)
    expect(visit.entry("w-1")).to_have_attribute("data-state", "acknowledged")
    expect(visit.entry("w-1").locator(".life")).to_have_text(
        "acknowledged by Jan de Vries: oil cooler is being cleaned"
    )
    expect(visit.entry("w-1").get_by_role("button")).to_have_count(0)
    assert site.operator.asked == [("w-1", "Jan de Vries", "oil cooler is being cleaned")]
    visit.entry("w-2").get_by_role("button").click()
    expect(dialog.get_by_label("Your name")).to_have_value("Jan de Vries")
    visit.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert visit.errors == []


def test_a_refused_acknowledgement_says_why_and_keeps_what_was_written(site: Site, visit: Visit) -> None:
    site.do(lambda: show_active(site.board, [event("w-refused")]))
    visit.page.goto(site.url)
    visit.entry("w-refused").get_by_role("button").click()
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_label("Your name").fill("Jan")
    visit.page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("Not acknowledged: this warning is acknowledged already")
    expect(dialog.get_by_label("Your name")).to_have_value("Jan")


def test_a_new_overview_does_not_close_the_dialog_somebody_is_writing_in(site: Site, visit: Visit) -> None:
    site.do(lambda: show_active(site.board, [event()]))
    visit.page.goto(site.url)
    visit.entry("w-1").get_by_role("button").click()
    visit.page.get_by_label("Your name").fill("Jan")
    site.do(lambda: site.board.norms("press-3", [{"warning": {"high": 55}}, {}]))
    expect(visit.row("oil_temperature").locator(".limit.warning span")).to_have_text(["55"])
    expect(visit.page.get_by_label("Your name")).to_have_value("Jan")


def test_when_the_agent_is_gone_the_page_says_that_its_values_are_old(site: Site, visit: Visit) -> None:
    visit.page.goto(site.url)
    expect(visit.row("oil_temperature").locator(".figure")).to_have_text("54.2")
    banner = visit.page.locator(".banner.lost")
    expect(banner).to_be_hidden()
    site.stop()
    expect(banner).to_contain_text("No live data since")
    expect(banner).to_contain_text("the values below are old")
    assert visit.page.locator("main").evaluate("main => getComputedStyle(main).filter") == "grayscale(1)"


def test_a_machine_of_which_nothing_comes_any_more_is_not_counted_as_in_its_norm(site: Site, visit: Visit) -> None:
    values, codes = np.array([54.2, 71.0]), np.zeros(2, dtype=np.uint8)
    site.do(lambda: site.board.frame("press-3", now_us() - 60 * SECOND_US, values, codes))
    visit.page.goto(site.url)
    expect(visit.page.locator('[data-machine="press-3"] .old')).to_contain_text("no new reading since")
    expect(visit.page.locator(".tile.normal .number")).to_have_text("0")
    expect(visit.row("oil_temperature")).to_have_attribute("data-verdict", "bad")


def test_the_worst_machine_comes_first_and_a_refused_configuration_is_said(site: Site, visit: Visit) -> None:
    visit.page.goto(site.url)
    site.do(lambda: show_active(site.board, [event(machine="pump-1", signal="flow", severity="alarm")]))
    expect(visit.page.locator(".card").first).to_have_attribute("data-machine", "pump-1")
    site.do(lambda: site.board.config_errors(["press.yaml:3:5: machines.press-3.titel: unknown key"]))
    expect(visit.page.locator(".banner.refused")).to_contain_text("press.yaml:3:5: machines.press-3.titel: unknown key")
    site.do(lambda: site.board.config_errors([]))
    expect(visit.page.locator(".banner.refused")).to_be_hidden()


def test_the_page_of_warnings_shows_what_was(site: Site, visit: Visit) -> None:
    site.do(lambda: site.board.event(event()))
    site.do(lambda: site.board.event(event(event="cleared", state="normal", message="Oil temperature is back")))
    visit.page.goto(f"{site.url}/warnings")
    expect(visit.page.locator(".past li")).to_have_count(2)
    expect(visit.page.locator(".past li").first).to_contain_text("back in norm")
    expect(visit.page.locator(".past li").first).to_contain_text("Oil temperature is back")


def test_a_restarted_agent_gives_the_page_a_new_token(
    site: Site, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of an earlier run loads itself again, so that acknowledging works."""
    visit.page.goto(site.url)
    expect(visit.page.locator("body")).to_have_attribute("data-live", "yes")
    first = visit.page.locator('meta[name="edge-agent-token"]').get_attribute("content")
    port = int(site.url.rpartition(":")[2])
    site.stop()
    monkeypatch.setattr("tests.pages.PORT", port)
    with serving() as again:
        again.do(lambda: show_active(again.board, [event()]))
        visit.entry("w-1").get_by_role("button").click()
        assert visit.page.locator('meta[name="edge-agent-token"]').get_attribute("content") != first


HOSTILE = [
    "<script>window.owned = 1; alert(1)</script>",
    "<img src=x onerror='window.owned = 1'>",
    '"><svg onload=window.owned=1>',
    "' onmouseover='window.owned=1' autofocus onfocus='window.owned=1",
    "javascript:window.owned=1",
    "</title></textarea></style><script>window.owned=1</script>",
    "{{constructor.constructor('window.owned=1')()}} ${window.owned=1}",
    "\u202eesrever \u0000 \u2028 \ufeff %s %n \\u003cscript\\u003e",
    "&lt;img src=x onerror=window.owned=1&gt;\ndata: x\n\nevent: overview\ndata: {}",
]


def poison(site: Site) -> None:
    """Every string that a device, a file or a person can bring, hostile."""
    board, together = site.board, " ".join(HOSTILE)
    machines = [
        BoardMachine(f"bad-{number}", text, text, (BoardSignal("s", text, text, SECOND_US, text),))
        for number, text in enumerate(HOSTILE)
    ]
    board.use([PRESS, PUMP, *machines])
    warnings = []
    for machine, text in zip(machines, HOSTILE, strict=True):
        board.frame(machine.name, now_us(), np.array([99.0]), np.zeros(1, dtype=np.uint8), state=text)
        board.norms(machine.name, [BANDS[0]])
        words = {"message": text, "advice": text, "unit": text, "by": text, "comment": text, "operating_state": text}
        warning = event(text, machine=machine.name, signal="s", **words)
        warnings += [warning, {**warning, "id": text + "2", "state": "acknowledged", "machine": text}]
        board.event({**warning, "event": "acknowledged"})
        board.event({**warning, "event": text, "kind": text})
    for name in {warning["machine"] for warning in warnings}:
        board.active(name, [warning for warning in warnings if warning["machine"] == name])
    board.status({"state": "online", "agent": together, "site": together, "timezone": together, "language": together})
    board.health(
        {"connections": {text: {"state": text, "since": text} for text in HOSTILE}, "broker": {"state": together}}
    )
    board.config_errors(HOSTILE)


@pytest.mark.parametrize("path", ["/", "/machines/bad-1", "/warnings"])
def test_no_string_of_a_device_or_a_configuration_is_read_as_markup(site: Site, visit: Visit, path: str) -> None:
    site.do(lambda: poison(site))
    visit.page.goto(site.url + path)
    expect(visit.page.locator("body")).to_have_attribute("data-live", "yes")
    site.do(lambda: site.board.event(event("late", message=HOSTILE[0])))
    expect(visit.page.get_by_text("<img src=x onerror='window.owned = 1'>").first).to_be_visible()
    visit.page.locator(".entry button").first.click()
    expect(visit.page.get_by_role("dialog")).to_be_visible()
    assert visit.page.evaluate("window.owned ?? null") is None
    assert visit.page.locator("script").count() == 1
    planted = "[onerror], [onload], [onmouseover], [onfocus], img[src=x], [href^=javascript]"
    assert visit.page.locator(planted).count() == 0
    assert [url for url in visit.requests if not url.startswith(f"{site.url}/")] == []
    assert visit.errors == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1024, 600), (1280, 800)])
@pytest.mark.parametrize("path", ["/", "/machines/press-3", "/warnings"])
def test_the_page_fits_its_screen_and_has_targets_for_fingers(
    site: Site, visit: Visit, path: str, width: int, height: int
) -> None:
    site.do(lambda: show_active(site.board, [event(message="A long sentence about what is going on here. " * 4)]))
    visit.page.set_viewport_size({"width": width, "height": height})
    visit.page.goto(site.url + path)
    button = visit.entry("w-1").get_by_role("button")
    expect(button).to_be_visible()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    for target in [button, *visit.page.locator("nav a").all(), visit.page.locator("summary")]:
        box = target.bounding_box()
        assert box is not None
        assert box["height"] >= 48
        assert box["width"] >= 48


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(site: Site, browser: Browser, scheme: Any) -> None:
    """WCAG 2.2 AA: 4.5:1 for the ink and the muted text on cards, 3:1 for the colours of the verdicts' marks."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(site.url)
    ratios = {
        (front, back): contrast(colour(page, front), colour(page, back))
        for front, back in [
            ("ink", "card"),
            ("ink", "paper"),
            ("muted", "card"),
            ("muted", "paper"),
            ("muted", "raised"),
            ("ink", "alarm-wash"),
            ("ink", "warning-wash"),
            ("ink", "bad-wash"),
            ("on-alarm", "alarm"),
            ("on-warning", "warning"),
        ]
    }
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
    assert contrast(colour(page, "alarm"), colour(page, "card")) >= 3
    assert contrast(colour(page, "warning-edge"), colour(page, "card")) >= 3
    assert contrast(colour(page, "bad"), colour(page, "card")) >= 3
    context.close()


def colour(page: Page, name: str) -> tuple[float, float, float]:
    value: str = page.evaluate("name => getComputedStyle(document.documentElement).getPropertyValue(name)", f"--{name}")
    digits = value.strip().lstrip("#")
    digits = "".join(each * 2 for each in digits) if len(digits) == 3 else digits
    red, green, blue = (int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4))
    return red, green, blue


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(of: tuple[float, float, float]) -> float:
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in of)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
