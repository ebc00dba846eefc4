"""CPU of one Modbus block of 124 registers (62 float32) from the wire to a column, beside pymodbus in the same run.

Run: python bench/bench_decode.py [--json]. CPU is that of this process (user + system); the server is another process:
`fakeplc` where bench/fakeplc.c can be compiled, else one in Python. Rounds are interleaved, figures are medians.
"""

import argparse
import asyncio
import json
import selectors
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from pymodbus.client import AsyncModbusTcpClient

from drivers.modbus import DRIVER
from drivers.modbus_map import Item, Limits, Table, decode, make_plan
from edge_agent.clock import SystemClock
from edge_agent.contract import Point

FLOATS = 62
CONNECTIONS = 16
ROUNDS = 7
BLOCKS_A_ROUND = 3200
HERE = Path(__file__).parent


def serve(port: int) -> None:
    """A plant in Python for machines without a compiler: static registers, one thread, no checks."""
    chooser = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port))
    chooser.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in chooser.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                chooser.register(accepted, selectors.EVENT_READ)
                continue
            data = sock.recv(4096)
            if not data:
                chooser.unregister(sock)
                sock.close()
            answers = []
            for at in range(0, len(data) - 11, 12):
                start, count = struct.unpack_from(">HH", data, at + 8)
                payload = np.arange(start // 2, start // 2 + count // 2 + 1).astype(">f4").tobytes()[: 2 * count]
                head = struct.pack(">HBBB", 2 * count + 3, data[at + 6], data[at + 7], 2 * count)
                answers.append(data[at : at + 4] + head + payload)
            if answers:
                sock.sendall(b"".join(answers))


def start_plant(folder: str) -> tuple[subprocess.Popen[bytes], int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    source, compiler = HERE / "fakeplc.c", shutil.which("gcc") or shutil.which("cc")
    command = [sys.executable, __file__, "--serve", str(port)]
    if source.exists() and compiler:
        binary = f"{folder}/fakeplc"
        subprocess.run([compiler, "-O2", "-o", binary, str(source)], check=True)
        command = [binary, "-p", str(port), "-n", "1", "-m", "static"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.01)
        else:
            return process, port
    raise SystemExit("the plant does not start")


Work = Callable[[], Awaitable[int]]


async def driver_case(stack: AsyncExitStack, port: int, connections: int, blocks: int, pipeline: int) -> Work:
    """Reads of `blocks` blocks on each of the connections; what the poller calls, nothing less."""
    points = [
        Point(str(i), DRIVER.Address.model_validate({"address": f"holding:{2 * i}", "type": "float32"}))
        for i in range(FLOATS * blocks)
    ]
    settings = {"url": f"tcp://127.0.0.1:{port}", "pipeline": pipeline, "max_block": 2 * FLOATS}
    connection = DRIVER.Connection.model_validate(settings)
    clock, due = SystemClock(), np.arange(len(points))
    sessions = [
        await stack.enter_async_context(DRIVER.open(str(n), connection, points, clock)) for n in range(connections)
    ]
    times = max(1, BLOCKS_A_ROUND // connections // blocks)
    readings = await sessions[0].read(due)
    assert readings.values.tolist() == list(range(len(points)))

    async def one(number: int) -> None:
        for _ in range(times):
            await sessions[number].read(due)

    async def work() -> int:
        async with asyncio.TaskGroup() as tasks:
            for number in range(connections):
                tasks.create_task(one(number))
        return times * blocks * connections

    return work


async def pymodbus_case(stack: AsyncExitStack, port: int, connections: int) -> Work:
    """The same block by pymodbus and its own conversion to floats."""
    clients = [AsyncModbusTcpClient("127.0.0.1", port=port) for _ in range(connections)]
    for client in clients:
        await client.connect()
        stack.callback(client.close)
    times = max(1, BLOCKS_A_ROUND // connections // 8)

    async def one(client: AsyncModbusTcpClient) -> None:
        for _ in range(times):
            answer = await client.read_holding_registers(0, count=2 * FLOATS)
            client.convert_from_registers(answer.registers, client.DATATYPE.FLOAT32)

    async def work() -> int:
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(one(client))
        return times * connections

    return work


def decode_only(word_order: str, scattered: bool) -> Work:
    items = [
        Item(1, Table.HOLDING, 2 * i, "float32", word_order=word_order)  # type: ignore[arg-type]
        for i in (np.random.default_rng(1).permutation(FLOATS * 8) if scattered else range(FLOATS * 8))
    ]
    plan = make_plan(items, np.arange(len(items)), Limits(0, 2 * FLOATS))

    async def work() -> int:
        for _ in range(1000):
            decode(plan)
        return 8 * 1000

    return work


async def measure(port: int) -> dict[str, float]:
    """CPU µs of each case per block, median of the rounds."""
    async with AsyncExitStack() as stack:
        cases: dict[str, Work] = {
            "pymodbus, 16 connections": await pymodbus_case(stack, port, CONNECTIONS),
            "driver, 16 connections, 1 block a read": await driver_case(stack, port, CONNECTIONS, 1, 1),
            "driver, 16 connections, 8 blocks a read": await driver_case(stack, port, CONNECTIONS, 8, 1),
            "driver, 16 connections, 8 blocks a read, 8 in flight": await driver_case(stack, port, CONNECTIONS, 8, 8),
            "driver, 1 connection, 1 block a read": await driver_case(stack, port, 1, 1, 1),
            "decode only, 8 blocks": decode_only("big", False),
            "decode only, 8 blocks, words turned, scattered": decode_only("little", True),
        }
        figures: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, work in cases.items():
                before_s = time.process_time()
                blocks = await work()
                figures[name].append((time.process_time() - before_s) / blocks * 1e6)
    return {name: statistics.median(values) for name, values in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        serve(words.serve)
    with tempfile.TemporaryDirectory() as folder:
        process, port = start_plant(folder)
        try:
            figures = asyncio.run(measure(port))
        finally:
            process.terminate()
            process.wait()
    if words.json:
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
        return
    slowest = figures["pymodbus, 16 connections"]
    print(f"{'CPU per block of 62 float32':54} {'µs':>8} {'ns/value':>9} {'pymodbus ÷':>11}")
    for name, value in figures.items():
        print(f"{name:54} {value:8.2f} {value / FLOATS * 1000:9.1f} {slowest / value:10.1f}×")


if __name__ == "__main__":
    main()
