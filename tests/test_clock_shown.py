"""Time where people and others see it: daylight saving in three zones, a broker's certificate, a source's own clock."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import trustme

from edge_agent import mqtt, texts
from edge_agent.clock import RELEASED_US
from edge_agent.contract import SECOND_US, Frame, Quality, Readings
from edge_agent.messages import topics as messages
from edge_agent.poller import Poller
from edge_agent.records import Layout
from tests import virtual

HOUR_US = 3_600 * SECOND_US
TRANSITIONS = {
    "Europe/Amsterdam": ("2026-03-29T01:00:00+00:00", "2026-10-25T01:00:00+00:00"),
    "America/New_York": ("2026-03-08T07:00:00+00:00", "2026-11-01T06:00:00+00:00"),
    "Australia/Lord_Howe": ("2026-10-03T15:30:00+00:00", "2026-04-04T15:00:00+00:00"),
}
"""By zone: when its clocks go forward and back, in UTC (IANA tz database)."""
CASES = [(zone, stamp) for zone, both in TRANSITIONS.items() for stamp in both]


def us(stamp: str) -> int:
    return round(datetime.fromisoformat(stamp).timestamp()) * SECOND_US


@pytest.mark.parametrize(("zone", "stamp"), CASES)
def test_over_a_change_of_daylight_saving_the_wire_goes_on_in_utc(zone: str, stamp: str) -> None:
    """Eight readings a quarter of an hour apart, four before and four after: no hour twice, none missing."""
    at = us(stamp)
    before = datetime.fromtimestamp(at / SECOND_US - 1, ZoneInfo(zone)).utcoffset()
    after = datetime.fromtimestamp(at / SECOND_US, ZoneInfo(zone)).utcoffset()
    assert before != after, "the clocks change there"
    layout, sent = Layout("press", ("oil",), ()), []
    for quarter in range(-4, 4):
        ts = at + quarter * HOUR_US // 4
        body = messages.loads(messages.measurement("k3f9", 1, layout, ts, -1, np.array([1.0]), np.array([0], np.uint8)))
        sent.append(datetime.fromisoformat(body["ts"]))
        assert body["ts"].endswith("Z")
    assert [(b - a).total_seconds() for a, b in pairwise(sent)] == [900] * 7


@pytest.mark.parametrize(("zone", "stamp"), CASES)
def test_people_see_the_time_of_day_that_their_own_clock_shows(zone: str, stamp: str) -> None:
    at = us(stamp)
    for shift in (-1, 0, 1, 3_600):
        moment = at + shift * SECOND_US
        own = datetime.fromtimestamp(moment / SECOND_US, UTC).astimezone(ZoneInfo(zone))
        assert texts.moment(moment, moment, zone) == f"{own:%H:%M:%S}"
        assert texts.moment(moment, moment + 3 * 24 * HOUR_US, zone) == f"{own:%Y-%m-%d %H:%M:%S}"


def refusal(code: int, words: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, words)
    error.verify_code, error.verify_message = code, words
    return error


def test_a_certificate_that_is_not_valid_yet_says_that_the_clock_is_the_cause() -> None:
    not_yet = refusal(mqtt.NOT_YET_VALID, "certificate is not yet valid")
    assert mqtt._words(not_yet, 65 * SECOND_US) == (
        "certificate of the broker: certificate is not yet valid: the clock here says 1970-01-01 00:01 UTC, which cannot be: "
        "set the clock"
    )
    assert mqtt._words(not_yet, RELEASED_US).endswith(
        "which is before the first day of the certificate: set the clock if that is wrong"
    )
    expired = mqtt._words(refusal(mqtt.EXPIRED, "certificate has expired"), RELEASED_US)
    assert expired.endswith(
        "which is after the last day of the certificate: renew it, or set the clock if that is wrong"
    )
    other = mqtt._words(refusal(18, "self-signed certificate"), 0)
    assert other == "certificate of the broker: self-signed certificate", "of which the clock is no cause"


@pytest.mark.parametrize(
    ("from_day", "until_day", "code"), [(1, 2, mqtt.NOT_YET_VALID), (-2, -1, mqtt.EXPIRED), (-1, 1, 0)]
)
def test_openssl_means_by_its_codes_what_we_think(from_day: int, until_day: int, code: int) -> None:
    now, day = datetime.now(UTC), timedelta(days=1)  # the handshake looks at the clock of this machine
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", not_before=now + from_day * day, not_after=now + until_day * day)
    ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    issued.configure_cert(theirs)
    to_us, to_them = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(to_us, to_them, server_hostname="localhost")
    server = theirs.wrap_bio(to_them, to_us, server_side=True)
    found = 0
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                found = error.verify_code
            except ssl.SSLError:
                pass
    assert found == code


@pytest.mark.parametrize("by_s", [3_600, -86_400, 1_795_000_000])
def test_a_step_while_a_read_is_under_way_leaves_all_its_stamps_on_one_clock(by_s: int) -> None:
    """Readings that came before the step are moved; a source's own stamp, which knows nothing of our clock, is not."""

    async def main() -> None:
        clock = virtual.VirtualClock(1_000 * SECOND_US if by_s > 86_400 else 1_795_000_000 * SECOND_US)
        poller = Poller.__new__(Poller)
        poller._clock = clock
        poller._looked = (clock.monotonic_us(), clock.wall_us() - clock.monotonic_us())
        await asyncio.sleep(0.2)
        early, far = clock.wall_us(), clock.wall_us() + 5 * 365 * 24 * HOUR_US
        await asyncio.sleep(0.2)
        clock.step_wall(by_s * SECOND_US)
        late = clock.wall_us()
        told = Readings(np.zeros(3), np.zeros(3, np.uint8), np.array([early, late, far], dtype=np.int64))
        found = poller._of_one_clock(told)
        assert found.ts.tolist() == [early + by_s * SECOND_US, late, far]
        assert late - found.ts[0] == 200_000
        assert poller._of_one_clock(told) is told, "only the readings over which it stepped"

    virtual.run(main())


def test_a_value_whose_sources_clock_is_hours_off_is_sent_with_the_time_of_receipt_and_the_mark() -> None:
    """What the OPC UA driver gives for such a source (its own tests say when), as it leaves the agent."""
    now = RELEASED_US + 5 * HOUR_US
    frame = Frame("press", *(np.array([now], np.int64),) * 2, np.array([[7.0]]), np.array([[Quality.CLOCK]], np.uint8))
    body = messages.loads(
        messages.measurement("k3f9", 1, Layout("press", ("oil",), ()), now, -1, frame.values[0], frame.quality[0])
    )
    assert body == {
        "epoch": "k3f9", "seq": 1, "ts": messages.to_utc(now), "values": {"oil": 7.0}, "uncertain": {"oil": "clock"},
    }  # fmt: skip
