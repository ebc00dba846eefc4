"""What warnings say to people: every sentence in every language, numbers as people write them."""

import itertools

import pytest

from edge_agent import texts
from edge_agent.contract import REASONS, SECOND_US, Quality
from edge_agent.records import EventKind, Kind
from edge_agent.texts import LostLine


def oil(language: str = "en", event: EventKind = EventKind.RAISED, kind: Kind = Kind.HIGH, **more: object) -> str:
    about: dict[str, object] = {"title": "Oil temperature", "unit": "°C", "value": 60.4, "limit": 60.0, **more}
    return texts.message(language, event, kind, **about)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "kind", "en", "nl", "de"),
    [
        (
            EventKind.RAISED, Kind.HIGH,
            "Oil temperature 60.4 °C is above its norm of 60 °C",
            "Oil temperature 60,4 °C is boven de norm van 60 °C",
            "Oil temperature 60,4 °C liegt über der Norm von 60 °C",
        ),
        (
            EventKind.RAISED, Kind.LOW,
            "Oil temperature 60.4 °C is below its norm of 60 °C",
            "Oil temperature 60,4 °C is onder de norm van 60 °C",
            "Oil temperature 60,4 °C liegt unter der Norm von 60 °C",
        ),
        (
            EventKind.ESCALATED, Kind.HIGH,
            "Oil temperature 60.4 °C is above its norm of 60 °C",
            "Oil temperature 60,4 °C is boven de norm van 60 °C",
            "Oil temperature 60,4 °C liegt über der Norm von 60 °C",
        ),
        (
            EventKind.DEESCALATED, Kind.HIGH,
            "Oil temperature 60.4 °C: no longer an alarm, still a warning",
            "Oil temperature 60,4 °C: geen alarm meer, nog wel een waarschuwing",
            "Oil temperature 60,4 °C: kein Alarm mehr, aber noch eine Warnung",
        ),
        (
            EventKind.CLEARED, Kind.LOW,
            "Oil temperature 60.4 °C is back within its norm",
            "Oil temperature 60,4 °C is weer binnen de norm",
            "Oil temperature 60,4 °C liegt wieder in der Norm",
        ),
        (
            EventKind.RAISED, Kind.STALE,
            "Oil temperature: no good reading for 12 s (no answer)",
            "Oil temperature: al 12 s geen goede meting (geen antwoord)",
            "Oil temperature: seit 12 s kein guter Messwert (keine Antwort)",
        ),
        (
            EventKind.CLEARED, Kind.STALE,
            "Oil temperature gives good readings again: 60.4 °C",
            "Oil temperature geeft weer goede metingen: 60,4 °C",
            "Oil temperature liefert wieder gute Messwerte: 60,4 °C",
        ),
        (
            EventKind.ACKNOWLEDGED, Kind.HIGH,
            "Oil temperature: seen by Ada", "Oil temperature: gezien door Ada", "Oil temperature: gesehen von Ada",
        ),
    ],
)  # fmt: skip
def test_the_sentences(event: EventKind, kind: Kind, en: str, nl: str, de: str) -> None:
    for language, wanted in (("en", en), ("nl", nl), ("de", de)):
        assert oil(language, event, kind, silent_us=12 * SECOND_US, reason="timeout", by="Ada") == wanted


@pytest.mark.parametrize(("language", "event", "kind"), list(itertools.product(texts.LANGUAGES, EventKind, Kind)))
def test_there_is_a_sentence_for_every_event_of_every_kind_in_every_language(
    language: str, event: EventKind, kind: Kind
) -> None:
    for value, limit in ((60.4, 60.0), (None, None)):
        text = oil(language, event, kind, value=value, limit=limit, reason="timeout", by="Ada")
        assert text.startswith("Oil temperature")
        assert not set("{}") & set(text)
        assert "  " not in text
        assert "None" not in text


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_reason_for_a_bad_reading_has_words(language: str) -> None:
    for quality in Quality:
        if Quality.UNCERTAIN < quality <= Quality.OTHER or quality in (Quality.UNCERTAIN, Quality.FADED):
            text = oil(language, EventKind.RAISED, Kind.STALE, reason=REASONS[quality])
            assert "_" not in text
            assert language == "en" or f"({REASONS[quality]})" not in text


def test_a_reason_in_words_is_told_as_it_is() -> None:
    assert oil(kind=Kind.HEALTH, reason="certificate ends tomorrow") == "Oil temperature: certificate ends tomorrow"


@pytest.mark.parametrize(
    ("language", "behind", "text"),
    [
        ("en", 1, "Oil temperature has been lost since 10:45:28: no answer. 1 signal is not watched."),
        ("en", 12, "Oil temperature has been lost since 10:45:28: no answer. 12 signals are not watched."),
        ("nl", 12, "Oil temperature is uitgevallen sinds 10:45:28: geen antwoord. 12 signalen worden niet bewaakt."),
        ("de", 1, "Oil temperature ist seit 10:45:28 ausgefallen: keine Antwort. 1 Signal wird nicht überwacht."),
    ],
)
def test_a_lost_line_says_since_when_why_and_how_much_is_not_watched(language: str, behind: int, text: str) -> None:
    line = LostLine(behind, "10:45:28", 0)
    assert oil(kind=Kind.HEALTH, reason="timeout", line=line, language=language) == text


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Oil temperature answers again after 12 min"),
        ("nl", "Oil temperature antwoordt weer na 12 min"),
        ("de", "Oil temperature antwortet wieder nach 12 min"),
    ],
)
def test_a_line_that_is_back_says_for_how_long_it_was_lost(language: str, text: str) -> None:
    line = LostLine(3, "10:45:28", 720_000_000)
    assert oil(event=EventKind.CLEARED, kind=Kind.HEALTH, line=line, language=language) == text


def test_a_moment_is_the_time_of_day_where_people_are_and_has_a_date_when_it_is_another_day() -> None:
    noon = 1_795_000_000_000_000  # 2026-11-18 11:06:40 UTC
    assert texts.moment(noon, noon + 10_000_000, "UTC") == "11:06:40"
    assert texts.moment(noon, noon + 10_000_000, "Europe/Amsterdam") == "12:06:40"
    assert texts.moment(noon, noon + 86_400_000_000, "Europe/Amsterdam") == "2026-11-18 12:06:40"
    midnight = noon - (12 * 3600 + 400) * 1_000_000  # 00:00:00 in Amsterdam
    assert texts.moment(midnight - 1, midnight, "Europe/Amsterdam") == "2026-11-17 23:59:59"
    assert texts.moment(midnight - 1, midnight, "UTC") == "22:59:59"


def test_deescalated_never_claims_that_a_value_inside_the_norm_is_above_it() -> None:
    assert "above" not in oil(event=EventKind.DEESCALATED, value=58.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (60.0, "60"),
        (60.4, "60.4"),
        (1.23456789, "1.2346"),
        (-0.25, "-0.25"),
        (12345.6, "12346"),
        (99999.4, "99999"),
        (99999.7, "100000"),
        (123456.7, "123457"),
        (-1234567.0, "-1234567"),
        (0.00012, "0.00012"),
        (1.5e-9, "1.5e-09"),
        (6.02e23, "6.02e+23"),
    ],
)
def test_numbers_have_at_most_five_significant_digits_and_whole_ones_are_written_out(value: float, text: str) -> None:
    assert texts.number(value) == text


def test_dutch_and_german_write_a_decimal_comma() -> None:
    assert texts.number(1.5, "nl") == texts.number(1.5, "de") == "1,5"
    assert texts.quantity(1.5, "bar", "nl") == "1,5 bar"


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (60.0001, 60.0, "Oil temperature 60.0001 °C is above its norm of 60 °C"),
        (60.000000000000007, 60.0, "Oil temperature 60.00000000000001 °C is above its norm of 60 °C"),
        (123456.4, 123456.0, "Oil temperature 123456.4 °C is above its norm of 123456 °C"),
    ],
)
def test_a_value_close_to_its_limit_is_told_as_exactly_as_it_takes(value: float, limit: float, text: str) -> None:
    assert oil(value=value, limit=limit) == text


def test_a_quantity_without_a_unit_or_a_value() -> None:
    assert texts.quantity(3.0, "") == "3"
    assert texts.quantity(None, "bar") == ""


@pytest.mark.parametrize(
    ("seconds", "en", "nl", "de"),
    [
        (0.25, "0.2 s", "0,2 s", "0,2 s"),
        (45, "45 s", "45 s", "45 s"),
        (119, "119 s", "119 s", "119 s"),
        (120, "2 min", "2 min", "2 min"),
        (7_199, "120 min", "120 min", "120 min"),
        (3 * 3_600, "3 h", "3 uur", "3 Std."),
        (172_800, "2 days", "2 dagen", "2 Tagen"),
        (400 * 86_400, "400 days", "400 dagen", "400 Tagen"),
    ],
)
def test_durations_in_their_largest_fitting_unit(seconds: float, en: str, nl: str, de: str) -> None:
    assert [texts.duration(round(seconds * SECOND_US), language) for language in texts.LANGUAGES] == [en, nl, de]


def test_braces_in_a_title_are_only_letters() -> None:
    assert oil(title="Pump {1}").startswith("Pump {1} 60.4 °C")
