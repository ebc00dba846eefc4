"""What reading takes of a Modbus line, known beforehand: characters, silences, and the time that a device needs.

Rule 1: blocks are planned by `make_plan`, as the session does it. Rule 2: every device answers, and at the first time;
what silent or refusing ones cost on top is not foreseen.
"""

import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from drivers.modbus_frames import Ascii, Framing, Rtu
from drivers.modbus_map import Item, Limits, Positions, address_order, make_plan
from drivers.modbus_settings import ModbusConnection, Port
from edge_agent.contract import Ints, Need

DEVICE_S = 0.005
"""From a request's last character to its answer's first: assumed. Most devices take 1 to 20 ms; a USB adapter may hold
an answer back for 16 ms more (its latency timer)."""
ROUND_TRIP_S = 0.010
"""Request and answer over a network, the device's own time included: assumed."""
BEHIND_GATEWAY = Port()
"""A serial line of which the configuration says nothing is taken to be set as the protocol has it by default."""
RATES = (9_600, 19_200, 38_400, 57_600, 115_200)
"""The usual rates of devices."""
ASK_PDU = 5
"""Function, address and count: bytes of every read request (Application Protocol 6.1 to 6.4)."""
ANSWER_HEAD = 2
"""Function and byte count of its answer."""


@dataclass(frozen=True, slots=True)
class ModbusCost:
    """See contract.LineCost. port: of a serial line, also one behind a gateway. request_s: of a request, silence and all
    but its characters. lanes: requests that are under way at once. rates: those it may be set to instead.
    """

    line: Hashable
    words: str
    one_at_a_time: bool
    items: tuple[Item, ...]
    rank: Positions
    limits: Limits
    framing: Framing
    port: Port | None
    request_s: float
    lanes: int = 1
    rates: tuple[int, ...] = ()

    def need(self, due: Ints) -> Need:
        """See contract.LineCost.need."""
        blocks = make_plan(self.items, due, self.limits, self.rank).blocks
        length = self.framing.length
        characters = sum(length(ASK_PDU) + length(ANSWER_HEAD + block.size) for block in blocks)
        char_s = self.port.char_s if self.port else 0.0
        return Need(len(blocks), round(1e6 * (characters * char_s + len(blocks) * self.request_s) / self.lanes))

    def faster(self) -> "Iterator[ModbusCost]":
        """See contract.LineCost.faster. The rate behind a gateway is not known, so no other one is proposed."""
        for baudrate in self.rates:
            if self.port is not None and baudrate > self.port.baudrate:
                better = self.port._replace(baudrate=baudrate)
                yield replace(self, port=better, words=_spoken(better), request_s=DEVICE_S + better.gap_s)


def foreseen(connection: ModbusConnection, items: Sequence[Item]) -> ModbusCost | None:
    """What these items cost. None when their blocks cannot be planned, which `open` refuses."""
    limits = Limits(connection.max_gap, connection.max_block)
    if max(item.width for item in items) > connection.max_block:
        return None
    order = address_order(items)
    own = ModbusCost(
        line=None,
        words=f"at {1000 * ROUND_TRIP_S:g} ms assumed for each request",
        one_at_a_time=False,
        items=tuple(items),
        rank=order.argsort(),
        limits=limits,
        framing=Rtu(),
        port=None,
        request_s=ROUND_TRIP_S,
        lanes=connection.pipeline * connection.connections,
    )
    place = connection.place
    if not connection.one_at_a_time({item.unit for item in items}):
        return own
    if place.serial is not None:
        port, framing = place.serial, Rtu() if place.scheme == "rtu" else Ascii()
        line = os.path.realpath(place.host)
        return replace(
            own, line=line, words=_spoken(port), one_at_a_time=True, framing=framing, port=port,
            request_s=DEVICE_S + port.gap_s, rates=RATES,
        )  # fmt: skip
    network = replace(own, line=(place.host, place.port), one_at_a_time=True)
    if place.scheme == "udp" and not connection.gateway:
        return network
    behind = BEHIND_GATEWAY
    words = f"with {behind.baudrate} baud assumed behind it"
    return replace(network, words=words, port=behind, request_s=ROUND_TRIP_S + behind.gap_s)


def _spoken(port: Port) -> str:
    return f"at {port.baudrate} baud"
