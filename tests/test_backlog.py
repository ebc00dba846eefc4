"""bench/backlog.py in small: an outage is drained while the plant goes on. The figures of the long form are that rig's."""

from bench import backlog


def test_an_outage_is_made_good_while_live_data_stays_young() -> None:
    found = backlog.measure(minutes=0.5, machines=20, signals=20, seed=4)
    backlog.show(found, 20)
    assert (found.missing, found.out_of_order, found.late) == (0, 0, 600)
    assert len(found.live_ages_s) > 0


def test_control_a_message_that_the_consumer_forgot_is_found_missing() -> None:
    found = backlog.measure(minutes=0.1, machines=5, signals=5, seed=4, break_it=True)
    assert found.missing == 1
    assert "1 messages are missing" in backlog.faults(found, 5)
