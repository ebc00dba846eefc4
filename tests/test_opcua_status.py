"""Status codes: numbers as the library knows them, qualities as written here by hand, words for every bad one."""

import pytest
from asyncua.ua.status_codes import StatusCodes, get_name_and_doc

from drivers import opcua, opcua_client, opcua_status
from drivers.opcua_status import STATUSES, Status
from edge_agent.contract import DeviceRefused, Quality

ALL = {name: code for name, code in vars(StatusCodes).items() if isinstance(code, int)}
MEANT = {
    Quality.SENSOR_FAILURE: "BadSensorFailure",
    Quality.DEVICE_FAILURE: "BadDeviceFailure BadOutOfService",
    Quality.OUT_OF_RANGE: "BadOutOfRange",
    Quality.TIMEOUT: "BadTimeout BadCommunicationError BadNoCommunication BadResourceUnavailable",
    Quality.DISCONNECTED: "BadNotConnected BadServerNotConnected BadShutdown",
    Quality.MISSING: "BadWaitingForInitialData BadNoData BadNoDataAvailable BadNoValue BadDataUnavailable BadDataLost",
    Quality.REFUSED: (
        "BadNodeIdUnknown BadNodeIdInvalid BadAttributeIdInvalid BadIndexRangeInvalid BadNotReadable BadNotSupported "
        "BadNotImplemented BadNotFound BadUserAccessDenied BadSecurityModeInsufficient BadConfigurationError"
    ),
}
"""What a bad status says of one value, by hand; any other one is OTHER."""
QUALITY_OF = {name: quality for quality, names in MEANT.items() for name in names.split()}


@pytest.mark.parametrize("status", STATUSES.values(), ids=lambda status: status.name)
def test_each_code_has_the_number_that_the_library_knows(status: Status) -> None:
    assert getattr(StatusCodes, status.name) == status.code
    assert get_name_and_doc(status.code)[0] == status.name


def test_no_code_stands_twice() -> None:
    assert len(opcua_status._ROWS) == len(STATUSES) == len({status.name for status in STATUSES.values()})


@pytest.mark.parametrize("name", ALL)
def test_each_code_of_the_library_has_the_quality_that_its_name_says(name: str) -> None:
    severity = {0: Quality.GOOD, 1: Quality.UNCERTAIN}.get(ALL[name] >> 30, Quality.OTHER)
    for flags in (0, 0x0480, 0xFFFF):
        assert opcua_status.quality(ALL[name] | flags) == QUALITY_OF.get(name, severity)
        assert opcua_status.QUALITIES[(ALL[name] | flags) >> 16] == opcua_status.quality(ALL[name])


@pytest.mark.parametrize("high", range(0, 0x1_0000, 0x3FF))
def test_only_the_severity_decides_between_good_uncertain_and_bad(high: int) -> None:
    quality = opcua_status.quality(high << 16)
    assert (quality is Quality.GOOD) == (high >> 14 == 0)
    assert (quality is Quality.UNCERTAIN) == (high >> 14 == 1)


def test_flags_hide_no_name() -> None:
    assert opcua_status.name(0x808C_0480) == "BadSensorFailure"
    assert opcua_status.advice(0x808C_0480) == "look at the sensor and its wiring"


@pytest.mark.parametrize(("code", "words"), [(0x7FFF_0000, "Uncertain"), (0x80FF_0000, "Bad"), (0xC000_0000, "Bad")])
def test_an_unknown_code_is_named_by_severity_and_number(code: int, words: str) -> None:
    assert opcua_status.name(code) == f"{words} (0x{code:08X})"
    assert opcua_status.advice(code)


def test_every_code_that_is_not_good_says_what_to_do() -> None:
    assert [
        status.name for status in STATUSES.values() if status.quality is not Quality.GOOD and not status.advice
    ] == []


@pytest.mark.parametrize("name", sorted(opcua_client.REFUSALS))
def test_what_no_second_try_changes_is_called_by_its_name_and_needs_a_person(name: str) -> None:
    told = opcua_client.translated(opcua_client.Refused(ALL[name]), "no session")
    assert isinstance(told, DeviceRefused)
    assert str(told).startswith(f"no session: {name}: ")


def test_no_code_that_decides_something_is_without_a_name() -> None:
    decide = opcua_client.OF_OURS.keys() | opcua_client.TOO_LONG | opcua.NO_NODE | set(opcua.NO_MORE_ITEMS)
    assert {name for name in decide if opcua_status.name(ALL[name]) != name} == set()
