"""`make bench`: what the path of a reading costs on this machine, beside what anybody writes in an afternoon.

One run, one table: a plant of simulated devices in C (fakeplc.c), mosquitto, the agent with an ordinary configuration, a
consumer, and at the same time `naive_agent.py` against a plant of its own. CPU is that of the process (user + system),
so that a noisy machine disturbs it least; quote ratios, not figures.

    python -m bench                        10,000 signals at 1 Hz from 100 devices, 60 s
    python -m bench --devices 10 --signals 100 --seconds 20
    python -m bench stages                 the stages one by one, without a network
    python -m bench writes                 bytes that the journal writes for a reading
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

HERE = Path(__file__).parent
TICKS = 10_000_000
"""fakeplc's values are the time of the answer in 0.1 ms, modulo 1000 s."""
TICK_HZ = 100
WARM_S = 8.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What the path of a reading costs.")
    parser.add_argument("what", nargs="?", default="path", choices=("path", "stages", "writes"))
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--signals", type=int, default=100, help="for each device")
    parser.add_argument("--every", default="1s")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--commit-every", default="1s")
    parser.add_argument("--alone", action="store_true", help="without the naive agent beside it")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.what == "stages":
        from bench import stages

        return stages.main()
    if asked.what == "writes":
        from bench import writes

        return writes.table()
    found = measure(asked)
    if asked.json:
        print(json.dumps(found))
    else:
        show(asked, found)
    return 0


# --- processes ----------------------------------------------------------------------------------------------------------


def tidy_when_told_to_end() -> None:
    """SIGTERM ends a rig as Ctrl-C does: agents, brokers and mounts of its own are gone with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def built(name: str) -> Path:
    """The C program, compiled when it is older than its source."""
    source, program = HERE / f"{name}.c", HERE / "bin" / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O3", "-Wall", "-o", str(program), str(source)], check=True)
    return program


@contextmanager
def process(*command: str, log: Path | None = None, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with this context."""
    with ExitStack() as files:
        out = files.enter_context(log.open("wb")) if log else subprocess.DEVNULL
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **more)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(8)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def free_ports(count: int) -> int:
    """The first of so many ports in a row that are free, below the range from which the system takes its own."""
    for first in range(15_020, 30_000, count):
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise SystemExit("no free ports")


def wait_for(port: int, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def cpu_s(pid: int) -> float:
    """User and system time of a process, with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK_HZ


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


# --- the run ------------------------------------------------------------------------------------------------------------


def configuration(asked: argparse.Namespace, port: int, broker: int, data: Path) -> str:
    """An ordinary configuration: a type with limits, deadband and delays; a machine for each device."""
    lines = [
        "agent: {id: bench, site: bench, data_dir: " + str(data) + "}",
        f'mqtt: {{url: "mqtt://127.0.0.1:{broker}"}}',
        f"store: {{commit_every: {asked.commit_every}}}",
        "web: null",
        "connections:",
        *(f'  c{i}: {{driver: modbus, url: "tcp://127.0.0.1:{port + i}"}}' for i in range(asked.devices)),
        "types:",
        "  device:",
        "    signals:",
    ]
    norm = "{warning: {low: -1, high: 9990000}, alarm: {low: -2, high: 9999000}, deadband: 0.5, on_delay: 2s, off_delay: 5s}"
    for i in range(asked.signals):
        lines.append(f'      s{i}: {{address: "holding:{2 * i}", type: float32, unit: bar, norm: {norm}}}')
    lines.append("machines:")
    lines += [f"  m{i}: {{type: device, connection: c{i}, every: {asked.every}}}" for i in range(asked.devices)]
    return "\n".join(lines) + "\n"


class Consumer:
    """Counts what arrives, checks seq, and works out how old each message is."""

    def __init__(self, port: int) -> None:
        self.messages = self.values = self.repeats = 0
        self.latency_ms: list[float] = []
        self.seqs: set[int] = set()
        self.gaps: list[dict[str, Any]] = []
        self.health: dict[str, Any] = {}
        self.first_beat: dict[str, str] = {}
        self.measuring = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("edge/#", qos=1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        now = time.time()
        topic = message.topic.rpartition("/")[2]
        if topic == "health":
            self.health = json.loads(message.payload)
            return
        if topic not in ("measurements", "warnings", "gaps"):
            return
        plain = json.loads(message.payload)
        if plain["seq"] in self.seqs:
            self.repeats += 1
        self.seqs.add(plain["seq"])
        if topic == "gaps":
            self.gaps.append(plain)
        if topic != "measurements" or not self.measuring:
            return
        self.messages += 1
        self.values += len(plain["values"])
        for value in plain["values"].values():
            age = ((now * 10_000) % TICKS - value) % TICKS
            self.latency_ms.append((age if age < TICKS / 2 else 0) / 10)
            break

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    plc = built("fakeplc")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-bench-")))
        first = free_ports(2 * asked.devices + 2)
        broker, plant, other = first, first + 2, first + 2 + asked.devices
        conf = folder / "mosquitto.conf"
        conf.write_text(
            f"listener {broker} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            "max_queued_messages 0\nmax_inflight_messages 0\nlog_type error\n"
        )
        mosquitto = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        stack.enter_context(process(mosquitto, "-c", str(conf)))
        stack.enter_context(process(str(plc), "-p", str(plant), "-n", str(asked.devices)))
        wait_for(broker)
        wait_for(plant)
        config = folder / "bench.yaml"
        config.write_text(configuration(asked, plant, broker, folder / "data"))
        consumer = Consumer(broker)
        stack.callback(consumer.close)
        agent = stack.enter_context(
            process(sys.executable, "-m", "edge_agent", "run", str(config), log=folder / "agent.log")
        )
        naive = None
        if not asked.alone:
            stack.enter_context(process(str(plc), "-p", str(other), "-n", str(asked.devices)))
            wait_for(other)
            naive = stack.enter_context(
                process(
                    sys.executable,
                    str(HERE / "naive_agent.py"),
                    "--devices",
                    str(asked.devices),
                    "--tags",
                    str(asked.signals),
                    "--port",
                    str(other),
                    "--mqtt",
                    str(broker),
                )
            )
        time.sleep(WARM_S)
        consumer.measuring = True
        before = cpu_s(agent.pid), cpu_s(naive.pid) if naive else 0.0, time.monotonic()
        time.sleep(asked.seconds)
        consumer.measuring = False
        took = time.monotonic() - before[2]
        found: dict[str, Any] = {
            "agent_cpu_percent": 100 * (cpu_s(agent.pid) - before[0]) / took,
            "agent_rss_mb": rss_mb(agent.pid),
            "naive_cpu_percent": 100 * (cpu_s(naive.pid) - before[1]) / took if naive else None,
            "naive_rss_mb": rss_mb(naive.pid) if naive else None,
            "seconds": took,
            "messages_s": consumer.messages / took,
            "values_s": consumer.values / took,
            "us_per_value": 1e6 * (cpu_s(agent.pid) - before[0]) / max(1, consumer.values),
            "latency_ms": _quantiles(consumer.latency_ms),
            "repeats": consumer.repeats,
        }
        time.sleep(11)  # one more health message
        found["missed_beats"] = sum(line["missed"] for line in consumer.health.get("connections", {}).values())
        found["gaps"] = consumer.gaps
        missing = set(range(min(consumer.seqs, default=1), max(consumer.seqs, default=0) + 1)) - consumer.seqs
        found["seq_missing"] = len(missing)
        journal = folder / "data" / "journal.db"
        found["journal_mb"] = journal.stat().st_size / 1e6
        found["written_bytes_per_value"] = _written(agent.pid) / max(1, consumer.values) * took / (took + WARM_S + 11)
        if agent.poll() is not None:
            print((folder / "agent.log").read_text(), file=sys.stderr)
            raise SystemExit("the agent ended")
        return found


def _written(pid: int) -> int:
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def _quantiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(values)}


def show(asked: argparse.Namespace, found: dict[str, Any]) -> None:
    total = asked.devices * asked.signals
    print(
        f"{total:,} signals every {asked.every} from {asked.devices} devices, {found['seconds']:.0f} s, load {os.getloadavg()[0]:.1f}"
    )
    rows = [("", "edge-agent", "naive agent", "ratio")]
    naive = found["naive_cpu_percent"]
    rows.append((
        "CPU, % of a core", f"{found['agent_cpu_percent']:.2f}", f"{naive:.2f}" if naive else "–",
        f"{found['agent_cpu_percent'] / naive:.2f}" if naive else "–",
    ))  # fmt: skip
    rows.append((
        "memory, MB", f"{found['agent_rss_mb']:.0f}", f"{found['naive_rss_mb']:.0f}" if naive else "–",
        f"{found['agent_rss_mb'] / found['naive_rss_mb']:.2f}" if naive else "–",
    ))  # fmt: skip
    for name, value in (
        ("CPU for each value, µs", f"{found['us_per_value']:.2f}"),
        ("values received each second", f"{found['values_s']:,.0f}"),
        ("messages received each second", f"{found['messages_s']:.1f}"),
        (
            "read to message p50 / p99, ms",
            "{p50:.0f} / {p99:.0f}".format(**found["latency_ms"]) if found["latency_ms"] else "–",
        ),
        ("missed beats", str(found["missed_beats"])),
        ("missing seq / repeated", f"{found['seq_missing']} / {found['repeats']}"),
        ("written for each value, bytes", f"{found['written_bytes_per_value']:.0f}"),
    ):
        rows.append((name, value, "", ""))
    for row in rows:
        print(f"  {row[0]:32} {row[1]:>14} {row[2]:>14} {row[3]:>8}")
    if found["latency_ms"]:
        print(f"  Readings wait up to commit_every ({asked.commit_every}) for the disk before they are published.")


if __name__ == "__main__":
    sys.exit(main())
