"""A lost line or unit is one warning: the detector against its twin, the cover of `stale`, and the life around both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import config, judge, plugins, snapshot
from edge_agent.contract import LINE_LOST, Frame, Quality
from edge_agent.plant import OWN, Plant, compile_plant, without_own
from edge_agent.records import Event

SECOND = 1_000_000
HEAD = """
agent: {id: a, language: LANGUAGE}
mqtt: {url: "mqtt://b"}
connections:
  plc: {driver: modbus, url: "tcp://192.0.2.1"}
  one: {driver: modbus, url: "tcp://192.0.2.2"}
  idle: {driver: modbus, url: "tcp://192.0.2.3"}
machines:
  press: {connection: plc, unit: 3, signals: {a: {address: "holding:1"}, b: {address: "holding:2"}}}
  pump: {connection: plc, unit: 4, signals: {a: {address: "holding:1", norm: {stale: 4s}}}}
  fan: {connection: one, signals: {a: {address: "holding:1"}, twice: {formula: "2 * a", norm: {stale: 15s}}}}
"""


def plant(folder: Path, language: str = "en") -> Plant:
    path = folder / "agent.yaml"
    path.write_text(HEAD.replace("LANGUAGE", language), encoding="utf-8")
    return compile_plant(config.load(path).config, plugins.detectors())


@pytest.fixture(name="plant")
def _plant(tmp_path: Path) -> Plant:
    return plant(tmp_path)


def row(plant: Plant, machine: str, second: float, values: list[float], quality: list[int]) -> Frame:
    t = np.array([round(second * SECOND)], dtype=np.int64)
    return Frame(machine, t, t + 10**15, np.array([values]), np.array([quality], dtype=np.uint8))


LINES = ("plc", "plc.unit_3", "plc.unit_4", "one", "disk", "clock")


class Story:
    """Rows of the agent's own machine and of the others, judged one by one."""

    def __init__(self, plant: Plant) -> None:
        self.plant, self.state = plant, judge.start(plant)
        self.events: list[Event] = []

    def lines(self, second: float, **codes: int) -> None:
        """By `plc`, `plc_unit_3` …: why it is lost; HOLD: nothing is known."""
        values = [float(codes.get(name.replace(".", "_"), 0)) for name in LINES]
        quality = [0 if value != Quality.HOLD else Quality.DISCONNECTED | LINE_LOST for value in values]
        self.take(row(self.plant, OWN, second, values, quality))

    def reads(self, machine: str, second: float, quality: int) -> None:
        width = len(self.plant.by_name[machine].signals)
        columns = [quality] * width if machine != "fan" else [quality, Quality.HOLD]
        self.take(row(self.plant, machine, second, [1.0] * width, columns))

    def take(self, frame: Frame) -> None:
        self.state, judged = judge.step(self.plant, self.state, [frame], "e")
        self.events += judged.events

    def told(self) -> list[tuple[str, str, str, str]]:
        return [(e.event, e.machine, e.signal, e.kind) for e in self.events]


def test_the_agents_own_machine_has_a_column_for_each_line_and_part(plant: Plant) -> None:
    own = plant.own
    assert own is not None
    assert tuple(signal.name for signal in own.signals) == LINES
    assert [signal.behind for signal in own.signals] == [3, 2, 1, 2, 0, 0], "formulas of what is lost are counted too"
    assert plant.signals == 5
    (health,) = [norms for norms in own.norms[0] if hasattr(norms, "health_us")]
    assert health.health_us.tolist() == [4 * SECOND, 10 * SECOND, 4 * SECOND, 10 * SECOND, 0, 0], (
        "the most impatient signal"
    )


def test_a_line_that_is_lost_is_one_warning_and_its_signals_raise_none(plant: Plant) -> None:
    story = Story(plant)
    for second in range(60):
        lost = 20 <= second < 50
        story.lines(second, one=Quality.DISCONNECTED if lost else 0)
        story.reads("fan", second, Quality.DISCONNECTED | LINE_LOST if lost else Quality.GOOD)
    assert story.told() == [("raised", OWN, "one", "health"), ("cleared", OWN, "one", "health")]
    raised, cleared = story.events
    assert (raised.ts - 10**15, raised.since - 10**15) == (30 * SECOND, 20 * SECOND)
    assert raised.message == "Connection one has been lost since 01:47:00: not connected. 2 signals are not watched."
    assert (raised.value, raised.limit, raised.unit) == (None, None, "")
    assert "cable" in raised.advice
    assert cleared.message == "Connection one answers again after 30 s"


def test_one_unit_of_a_line_is_its_own_warning(plant: Plant) -> None:
    story = Story(plant)
    for second in range(40):
        story.lines(second, plc_unit_4=Quality.TIMEOUT if second >= 10 else 0)
        story.reads("press", second, Quality.GOOD)
        story.reads("pump", second, Quality.TIMEOUT | LINE_LOST if second >= 10 else Quality.GOOD)
    assert story.told() == [("raised", OWN, "plc.unit_4", "health")]
    assert story.events[0].ts - 10**15 == 14 * SECOND, "as soon as its signal would have been stale"
    assert story.events[0].message == "plc unit 4 has been lost since 01:46:50: no answer. 1 signal is not watched."


def test_a_lost_line_covers_its_parts(plant: Plant) -> None:
    story = Story(plant)
    hold = int(Quality.HOLD)
    for second in range(40):
        if second < 12:
            story.lines(second, plc_unit_3=Quality.TIMEOUT if second >= 10 else 0)
        else:
            story.lines(second, plc=Quality.TIMEOUT, plc_unit_3=hold, plc_unit_4=hold)
    assert story.told() == [("raised", OWN, "plc", "health")], "what was pending for a part is pending still, no more"


def test_what_stays_silent_when_its_line_is_back_is_stale_in_its_own_right(plant: Plant) -> None:
    story = Story(plant)
    for second in range(80):
        lost = 20 <= second < 50
        story.lines(second, plc=Quality.DISCONNECTED if lost else 0)
        story.reads(
            "pump",
            second,
            Quality.DISCONNECTED | LINE_LOST if lost else Quality.GOOD if second < 20 else Quality.REFUSED,
        )
    assert story.told() == [
        ("raised", OWN, "plc", "health"), ("cleared", OWN, "plc", "health"), ("raised", "pump", "a", "stale"),
    ]  # fmt: skip
    assert story.events[2].ts - 10**15 == 53 * SECOND, "its clock stood still while the line was lost"
    assert story.events[2].since - 10**15 == 19 * SECOND, "nothing good came since then"


def test_a_stale_signal_stays_stale_when_its_line_is_lost_too(plant: Plant) -> None:
    story = Story(plant)
    for second in range(60):
        lost = second >= 40
        story.lines(second, one=Quality.DISCONNECTED if lost else 0)
        story.reads("fan", second, Quality.GOOD if second < 10 else Quality.REFUSED | (LINE_LOST if lost else 0))
    raised = [(signal, kind) for event, _, signal, kind in story.told() if event == "raised"]
    assert raised == [("a", "stale"), ("twice", "stale"), ("one", "health")]
    assert not [each for each in story.told() if each[0] == "cleared"], "bad quality returns no warning to normal"


def test_flapping_shorter_than_the_delay_raises_nothing_and_bad_rows_hold_the_run(plant: Plant) -> None:
    story = Story(plant)
    for second in range(100):
        story.lines(second, one=Quality.TIMEOUT if second % 12 < 9 else 0)
    assert story.told() == []
    restart = row(plant, OWN, 100, [np.nan] * 6, [Quality.RESTART] * 6)
    for second in range(101, 106):
        story.lines(second, one=Quality.TIMEOUT)
    story.take(restart)
    for second in range(106, 120):
        story.lines(second, one=Quality.TIMEOUT)
    assert story.told() == [("raised", OWN, "one", "health")]


@pytest.mark.parametrize("language", ["nl", "de"])
def test_it_speaks_the_language_of_the_site(tmp_path: Path, language: str) -> None:
    story = Story(plant(tmp_path, language))
    for second in range(20):
        story.lines(second, plc=Quality.TIMEOUT)
    expected = {
        "nl": "Verbinding plc is uitgevallen sinds 01:46:40: geen antwoord. 3 signalen worden niet bewaakt.",
        "de": "Verbindung plc ist seit 01:46:40 ausgefallen: keine Antwort. 3 Signale werden nicht überwacht.",
    }
    assert [event.message for event in story.events] == [expected[language]]


def test_a_snapshot_of_the_release_before_is_taken_over(plant: Plant) -> None:
    story = Story(without_own(plant))
    for second in range(20):
        story.reads("press", second, Quality.GOOD if second < 5 else Quality.REFUSED)
    blob = snapshot.dump(story.plant, story.state)
    with pytest.raises(snapshot.SnapshotDamaged):
        snapshot.load(plant, blob)
    state = snapshot.load_any(plant, blob)
    assert {event.signal for event in judge.active(plant, state)["press"]} == {"a", "b"}
    assert len(state.held) == plant.columns


CODES = st.sampled_from([0, 0, 0, int(Quality.TIMEOUT), int(Quality.DISCONNECTED), int(Quality.HOLD)])


@pytest.fixture(scope="module", name="its")
def _its(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    return plant(tmp_path_factory.mktemp("plant"))


class Twin:
    """The rule of one column in spoken words."""

    def __init__(self, after: float) -> None:
        self.after = after
        self.since: float | None = None
        self.run = 0.0
        self.raised = False

    def row(self, step: float, second: float, code: int) -> str | None:
        if code == Quality.HOLD:
            return None
        if code == 0:
            self.since = None
            was, self.raised = self.raised, False
            return "cleared" if was else None
        if self.raised:
            return None
        self.run = self.run + step if self.since is not None else 0.0
        self.since = second if self.since is None else self.since
        if self.run < self.after:
            return None
        self.raised, self.since = True, None
        return "raised"


@given(
    st.lists(st.tuples(st.sampled_from([0.25, 1.0, 3.0]), st.lists(CODES, min_size=4, max_size=4)), max_size=40),
    st.data(),
)
def test_however_it_is_cut_it_says_what_its_twin_says(
    its: Plant, taken: list[tuple[float, list[int]]], data: st.DataObject
) -> None:
    twins = [Twin(after) for after in (4, 10, 4, 10)]
    expected: list[tuple[float, str, str]] = []
    rows: list[tuple[float, list[int]]] = []
    second = 0.0
    for step, codes in taken:
        second += step
        rows.append((second, codes))
        for name, twin, code in zip(LINES, twins, codes, strict=False):
            if (said := twin.row(step if len(rows) > 1 else 0.0, second, code)) is not None:
                expected.append((second, name, said))
    state, found, place = judge.start(its), [], 0
    while place < len(rows):
        part = rows[place : place + data.draw(st.integers(1, 9))]
        place += len(part)
        state, judged = judge.step(its, state, [_frame(part)], "e")
        state = snapshot.load(its, snapshot.dump(its, state))
        found += judged.events
        assert not any(frame.publish.any() for frame in judged.frames), "no measurements of the agent's own machine"
    assert [((e.ts - 10**15) / SECOND, e.signal, str(e.event)) for e in found] == expected


def _frame(rows: list[tuple[float, list[int]]]) -> Frame:
    t = np.array([round(second * SECOND) for second, _ in rows], dtype=np.int64)
    codes: Any = np.array([[*codes, 0, 0] for _, codes in rows])  # of the host nothing is to be told
    unknown = codes == Quality.HOLD
    values = np.where(unknown, np.nan, codes.astype(np.float64))
    quality = np.where(unknown, Quality.DISCONNECTED | LINE_LOST, 0).astype(np.uint8)
    return Frame(OWN, t, t + 10**15, values, quality)
