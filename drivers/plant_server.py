"""The simulated plant as real servers on loopback, each a process: `python -m drivers.plant_server --modbus 15020`.

Rule 1: the two processes share a seed and a start time, nothing else; so they show one plant.
Rule 2: an OPC UA server stalls its loop for seconds while it starts, hence the two processes.
Rule 3: with `--attached` a line `{"fault": NAME}` on stdin calls a fault up, and the end of stdin ends the process: a
plant never outlives who started it.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import math
import signal
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pymodbus.constants import ExcCodes
from pymodbus.exceptions import NoSuchIdException
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from drivers import plant_model

STEP_S = 0.1
STEPS_MAX = 6000
"""At most ten minutes are made up for after a sleep of the computer; the rest is skipped."""
NAMESPACE = "urn:edge-agent:demo-plant"
LEVEL_BROKEN = 65535
"""What the level sensor's converter says instead of a level."""
UNITS = {1: "press", 11: "pump-1", 12: "pump-2"}
TABLES = {1: "coil", 2: "discrete", 3: "holding", 4: "input"}
FIRST = {("press", "holding"): 100}
"""First address of a table; 0 elsewhere. Each table is WIDTH registers long."""
WIDTH = 32
SPINDLE_NODES = {
    "speed": "Spindle.Speed",
    "load": "Spindle.Load",
    "vibration": "Spindle.Vibration",
    "bearing_temperature": "Spindle.BearingTemperature",
    "coolant_flow": "Spindle.CoolantFlow",
}

Image = dict[tuple[str, str], list[int]]
"""The registers of each machine and table, WIDTH of them."""


@dataclass(slots=True)
class LivePlant:
    """The model on the clock of this process. start_s: monotonic time of the plant's t = 0."""

    start_s: float
    state: plant_model.Plant
    called: dict[str, float] = field(default_factory=dict)

    def advance(self, now_s: float) -> None:
        """Step up to now."""
        behind = int((now_s - self.start_s - self.state.t_s) / STEP_S)
        if behind > STEPS_MAX:
            self.start_s += (behind - STEPS_MAX) * STEP_S
        for _ in range(min(behind, STEPS_MAX)):
            self.state = plant_model.step(self.state, STEP_S, plant_model.faults_at(self.state.t_s, self.called))

    def call_up(self, fault: str) -> None:
        if fault in plant_model.FAULTS:
            self.called[fault] = self.state.t_s


def registers(seen: Mapping[str, Mapping[str, float]]) -> Image:
    """What `observe` saw, as the registers of the three Modbus devices."""
    image: Image = {}
    for machine, values in seen.items():
        if machine == "press":
            image[machine, "input"] = _words(
                {
                    0: [_uint16(values["motor_speed"])],
                    1: [_uint16(values["cycle_rate"] * 10)],
                    2: [LEVEL_BROKEN if math.isnan(values["oil_level"]) else _uint16(values["oil_level"] * 10)],
                    20: [_uint16((4.0 + values["filter_inlet"]) * 1000)],  # a 4-20 mA loop in µA, 1 bar for each mA
                }
            )
            image[machine, "holding"] = _words(
                {
                    0: [round(values["oil_temperature"] * 10) & 0xFFFF],
                    2: _float32(values["filter_outlet"]),
                    4: _float32(values["main_pressure"]),
                    6: _float32(values["oil_flow"]),
                }
            )
        elif machine.startswith("pump"):
            image[machine, "discrete"] = _words({0: [int(values["running"])]})
            image[machine, "holding"] = _words(
                {
                    0: _float32(values["suction_pressure"]),
                    10: _float32(values["discharge_pressure"]),
                    12: _float32(values["flow"]),
                    14: _float32(values["motor_current"]),
                    16: _float32(values["bearing_temperature"]),
                    18: _float32(values["vibration"]),
                }
            )
    return image


def _words(at: Mapping[int, list[int]]) -> list[int]:
    words = [0] * WIDTH
    for first, some in at.items():
        words[first : first + len(some)] = some
    return words


def _uint16(value: float) -> int:
    return min(max(round(value), 0), 0xFFFE)


def _float32(value: float) -> list[int]:
    return list(struct.unpack(">2H", struct.pack(">f", value)))


@contextlib.asynccontextmanager
async def serve_modbus(plant: LivePlant, port: int) -> AsyncIterator[str]:
    """A Modbus TCP server for press and pumps, in this loop; yields its URL."""
    seen: Image = {}

    def device(unit: int, machine: str) -> SimDevice:
        async def answer(
            function: int, _start: int, _address: int, _count: int, words: list[int], written: object
        ) -> ExcCodes | None:
            if written:
                return ExcCodes.ILLEGAL_FUNCTION
            if (machine, "holding") not in seen:
                raise NoSuchIdException  # cut off: the server then keeps silent
            words[:] = seen.get((machine, TABLES[function]), words)
            return None

        def block(table: str, kind: DataType) -> list[SimData]:
            return [SimData(FIRST.get((machine, table), 0), count=WIDTH, values=0, datatype=kind)]

        bits = [SimData(0, count=WIDTH * 16, values=False, datatype=DataType.BITS)]
        blocks = (bits, bits, block("holding", DataType.REGISTERS), block("input", DataType.REGISTERS))
        return SimDevice(id=unit, simdata=blocks, action=answer)

    def look() -> None:
        plant.advance(time.monotonic())
        seen.clear()
        seen.update(registers(plant_model.observe(plant.state)))

    look()
    devices = [device(unit, machine) for unit, machine in UNITS.items()]
    server: Any = ModbusTcpServer(devices, address=("127.0.0.1", port), ignore_missing_devices=True)
    await server.serve_forever(background=True)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_every_step(look))
        try:
            yield f"tcp://127.0.0.1:{server.transport.sockets[0].getsockname()[1]}"
        finally:
            task.cancel()
            await server.shutdown()


@contextlib.asynccontextmanager
async def serve_opcua(plant: LivePlant, port: int) -> AsyncIterator[str]:
    """An OPC UA server for the spindle, in this loop; yields its URL. Takes seconds, and blocks the loop meanwhile."""
    logging.getLogger("asyncua").setLevel(logging.ERROR)  # it warns that loopback has no certificate
    ua = importlib.import_module("asyncua.ua")
    server = importlib.import_module("asyncua").Server()
    await server.init()
    url = f"opc.tcp://127.0.0.1:{port}"
    server.set_endpoint(url)
    server.set_server_name("edge-agent demo plant")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    space = await server.register_namespace(NAMESPACE)
    folder = await server.nodes.objects.add_object(ua.NodeId("Spindle", space), f"{space}:Spindle")
    nodes = {}
    for signal_name, node in SPINDLE_NODES.items():
        node_id = ua.NodeId(node, space)
        nodes[signal_name] = node_id
        await folder.add_variable(node_id, f"{space}:{node.partition('.')[2]}", 0.0)

    async def look() -> None:
        plant.advance(time.monotonic())
        now = datetime.now(UTC)
        for name, value in plant_model.observe(plant.state)["spindle"].items():
            broken = math.isnan(value)
            good = ua.StatusCode(ua.StatusCodes.BadSensorFailure if broken else ua.StatusCodes.Good)
            variant = ua.Variant(None if broken else value, ua.VariantType.Null if broken else ua.VariantType.Double)
            await server.write_attribute_value(nodes[name], ua.DataValue(variant, good, now, now))

    async with server, asyncio.TaskGroup() as group:
        await look()
        task = group.create_task(_every_step(look))
        try:
            yield url
        finally:
            task.cancel()


async def _every_step(look: Callable[[], Any]) -> None:
    while True:
        await asyncio.sleep(STEP_S)
        if (looking := look()) is not None:
            await looking


def _listen(plant: LivePlant, stop: asyncio.Event) -> None:
    """A thread's work: fault calls from stdin until it ends, then stop."""
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for line in sys.stdin:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                loop.call_soon_threadsafe(plant.call_up, json.loads(line)["fault"])
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=listen, name="stdin", daemon=True).start()


async def _serve(options: argparse.Namespace) -> None:
    start_s = time.monotonic() if options.start is None else options.start
    plant = LivePlant(start_s, plant_model.Plant(options.seed))
    stop = asyncio.Event()
    if options.attached:
        _listen(plant, stop)
    modbus = options.modbus is not None
    async with serve_modbus(plant, options.modbus) if modbus else serve_opcua(plant, options.opcua) as url:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        print(json.dumps({"url": url, "faults": plant_model.FAULTS}), flush=True)
        await stop.wait()


def main(arguments: list[str] | None = None) -> int:
    """The process. Prints one JSON line with its URL when it serves."""
    parser = argparse.ArgumentParser(prog="python -m drivers.plant_server", description="The simulated plant.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--modbus", type=int, metavar="PORT", help="serve press and pumps by Modbus TCP; 0: a free port")
    which.add_argument("--opcua", type=int, metavar="PORT", help="serve the spindle by OPC UA")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=float, help="monotonic seconds of the plant's start; default now")
    parser.add_argument("--attached", action="store_true", help="take faults from stdin and end with it")
    asyncio.run(_serve(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
