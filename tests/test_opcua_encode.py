"""Requests put together from pieces are byte for byte those of the library."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from asyncua import ua
from asyncua.ua.ua_binary import extensionobject_to_binary, nodeid_to_binary, struct_to_binary

from drivers import opcua_encode as encode

NODES = (
    ua.NodeId(7, 0),
    ua.NodeId(2258, 0),
    ua.NodeId(70_000, 3),
    ua.NodeId("Halle 3.Kühler", 4),
    ua.NodeId(uuid.UUID(int=5), 300),
    ua.NodeId(b"\x00pump", 2),
)


def asked(node: Any, attribute: int = encode.VALUE, index_range: str | None = None) -> Any:
    found = ua.ReadValueId(node, ua.AttributeIds(attribute))
    found.IndexRange = index_range
    return found


@pytest.mark.parametrize("index_range", [None, "3", "1:4,0"])
@pytest.mark.parametrize("node", NODES)
def test_an_attribute_of_a_node_is_asked_as_the_library_asks(node: Any, index_range: str | None) -> None:
    ours = encode.read_value_id(nodeid_to_binary(node), 3, index_range)
    assert ours == struct_to_binary(asked(node, 3, index_range))


@pytest.mark.parametrize("count", [0, 1, len(NODES)])
@pytest.mark.parametrize("timestamps", [encode.SOURCE, encode.NEITHER])
def test_a_read_of_many_nodes_is_that_of_the_library(count: int, timestamps: int) -> None:
    parameters = ua.ReadParameters()
    parameters.TimestampsToReturn = ua.TimestampsToReturn(timestamps)
    parameters.NodesToRead = [asked(node) for node in NODES[:count]]
    ids = [encode.read_value_id(nodeid_to_binary(node)) for node in NODES[:count]]
    assert encode.read(ids, timestamps) == struct_to_binary(parameters)


def deadband() -> Any:
    found = ua.DataChangeFilter()
    found.Trigger = ua.DataChangeTrigger.StatusValue
    found.DeadbandType = ua.DeadbandType.Absolute
    found.DeadbandValue = 0.5
    return found


@pytest.mark.parametrize("filtered", [None, deadband()])
def test_items_with_and_without_a_filter_are_those_of_the_library(filtered: Any) -> None:
    parameters = ua.CreateMonitoredItemsParameters()
    parameters.SubscriptionId = 77
    parameters.TimestampsToReturn = ua.TimestampsToReturn.Source
    parameters.ItemsToCreate = [
        ua.MonitoredItemCreateRequest(
            asked(node, index_range="2"),
            ua.MonitoringMode.Reporting,
            ua.MonitoringParameters(handle, 250.5, filtered, 9, True),
        )
        for handle, node in enumerate(NODES)
    ]
    shown = extensionobject_to_binary(filtered) if filtered is not None else encode.NO_FILTER
    items = [
        encode.item(encode.read_value_id(nodeid_to_binary(node), index_range="2"), handle, 250.5, 9, shown)
        for handle, node in enumerate(NODES)
    ]
    assert encode.create_items(77, items) == struct_to_binary(parameters)


@pytest.mark.parametrize("acknowledged", [(), (1, 2, 4_294_967_295)])
def test_a_publish_is_that_of_the_library(acknowledged: tuple[int, ...]) -> None:
    parameters = ua.PublishParameters()
    parameters.SubscriptionAcknowledgements = [ua.SubscriptionAcknowledgement(77, each) for each in acknowledged]
    assert encode.publish(77, acknowledged) == struct_to_binary(parameters)


@pytest.mark.parametrize("token", NODES)
def test_the_head_of_a_request_is_that_of_the_library(token: Any) -> None:
    head = ua.RequestHeader(token, datetime(2026, 3, 1, 12, 0, 0, 250, tzinfo=UTC), RequestHandle=5, TimeoutHint=4000)
    ours = encode.request_header(nodeid_to_binary(token), 1_772_366_400_000_250, 5, 4000)
    assert ours == struct_to_binary(head)
