"""When the certificates of the lines end, as the agent's own machine tells it (contract §6, the agent's own warnings).

Rule 1: what is not known (a server that was not met yet, a file that cannot be read, a clock that nobody has set) is
neither well nor ending: it raises nothing and clears nothing. Rule 2: files are read here: `looked` is called in a thread.
"""

from collections.abc import Iterable, Sequence

import structlog

from edge_agent import texts
from edge_agent.clock import RELEASED_US
from edge_agent.contract import ENDING, WHOSE, Certified, Expiry, Quality, is_certified
from edge_agent.plant import certificate_of
from edge_agent.poller import Line
from edge_agent.records import Loss

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 3_600.0
DAY_US = 86_400_000_000
STEPS_DAYS = (60, 30, 7, 0)
"""From how many days before its end on a certificate is told of, once more, as an alarm, and as expired: see ENDING."""
UNKNOWN = Loss(Quality.HOLD)


def looked(lines: Iterable[Line], now_us: int, language: str) -> dict[str, Loss]:
    """Of each line that rests on certificates what is to be told of them, by its name in the agent's own machine.

    now_us: UTC; 0 where the clock is not set: it does not know how far off anything is.
    """
    return {certificate_of(line.name): _of(line, now_us, language) for line in lines if is_certified(line.settings)}


def _of(line: Line, now_us: int, language: str) -> Loss:
    if now_us < RELEASED_US or not isinstance(line.driver, Certified):
        return UNKNOWN
    try:
        return told(line.driver.expiries(line.settings), now_us, language)
    except Exception as error:  # noqa: BLE001 - a bulkhead: whatever a driver does here, the plant is watched
        fault = str(error) or type(error).__name__
        log.warning("certificates_unreadable", connection=line.name, fault=fault)
        return Loss(Quality.HOLD, f"when the certificates end is not known: {fault}")


def told(expiries: Sequence[Expiry], now_us: int, language: str) -> Loss:
    """Of these certificates those that end soon, the first of them first; else, when all are known, that all is well."""
    known = sorted(
        (each for each in expiries if each.until_us), key=lambda each: (each.until_us, WHOSE.index(each.whose))
    )
    soon = [each for each in known if step(each.until_us, now_us)]
    if soon:
        words = "; ".join(texts.expires(language, each.whose, each.name, each.until_us, now_us) for each in soon)
        return Loss(ENDING * step(soon[0].until_us, now_us) + WHOSE.index(soon[0].whose), words)
    if not known or len(known) < len(expiries):
        return UNKNOWN
    return Loss(Quality.GOOD, texts.lasts(language, known[0].whose, known[0].name, known[0].until_us))


def step(until_us: int, now_us: int) -> int:
    """How near the end is: 0 far, 1 … 4 see contract.ENDING."""
    return sum(until_us - now_us <= days * DAY_US for days in STEPS_DAYS)
