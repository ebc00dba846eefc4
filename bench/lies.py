"""A device of which half the answers are lies, polled by the whole agent: how many wrong values are published as good?

    python -m bench.lies                 60 s; prints its seed
    python -m bench.lies --seconds 10

The liar (tests/liar.py) shares no code with the driver; the true value of each register is a known function of its
address, so that the consumer alone can tell. The negative control is in tests/test_modbus_liar.py: plain pymodbus,
against the same liar, takes wrong values for good ones.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bench.__main__ import free_ports, process, wait_for

SIGNALS = 40
ROOT = Path(__file__).parent.parent


def register(address: int) -> int:
    return (address * 2654435761 >> 7) & 0xFFFF


def true_value(signal: str) -> int:
    kind, address = signal[0], int(signal[1:])
    return register(address) if kind == "w" else register(address) << 16 | register(address + 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lies")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--share", type=float, default=0.5, help="of the answers that are lies")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args()
    counts: dict[str, int] = {"good": 0, "wrong": 0, "bad": 0}
    reasons: dict[str, int] = {}
    examples: list[Any] = []

    def take(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        plain = json.loads(message.payload)
        for signal, value in plain.get("values", {}).items():
            right = value == true_value(signal)
            counts["good" if right else "wrong"] += 1
            if not right:
                examples.append((signal, value, true_value(signal)))
        for reason in plain.get("bad", {}).values():
            counts["bad"] += 1
            reasons[reason] = reasons.get(reason, 0) + 1

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-lies-")))
        port = free_ports(2)
        conf = folder / "mosquitto.conf"
        conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n")
        stack.enter_context(process(shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(conf)))
        liar = [sys.executable, str(ROOT / "tests" / "liar.py"), "--port", str(port + 1), "--seed", str(asked.seed)]
        stack.enter_context(
            process(*liar, "--share", str(asked.share), "--timeout", "0.2", log=folder / "liar.log", cwd=ROOT)
        )
        wait_for(port)
        wait_for(port + 1)
        lines = [
            f"agent: {{id: lies, data_dir: {folder}/data}}",
            f'mqtt: {{url: "mqtt://127.0.0.1:{port}"}}',
            "store: {commit_every: 100ms}",
            "web: null",
            f'connections: {{liar: {{driver: modbus, url: "tcp://127.0.0.1:{port + 1}", timeout: 200ms, max_block: 20}}}}',
            "machines:",
            "  m:",
            "    connection: liar",
            "    every: 100ms",
            "    signals:",
        ]
        for i in range(SIGNALS):
            lines.append(f'      w{i * 5}: {{address: "holding:{i * 5}", type: uint16}}')
            lines.append(f'      d{i * 5 + 1}: {{address: "holding:{i * 5 + 1}", type: uint32}}')
        config = folder / "lies.yaml"
        config.write_text("\n".join(lines) + "\n")
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_message = take
        client.on_connect = lambda its, *_: its.subscribe("edge/+/+/m/measurements", qos=1)
        client.connect("127.0.0.1", port)
        client.loop_start()
        print(f"seed {asked.seed}: {2 * SIGNALS} signals every 100 ms, {asked.share:.0%} of the answers are lies")
        log = folder / "agent.log"
        agent = stack.enter_context(process(sys.executable, "-m", "edge_agent", "run", str(config), log=log))
        time.sleep(asked.seconds)
        if agent.poll() is not None:
            print(log.read_text(), file=sys.stderr)
            return 1
        client.disconnect()
        client.loop_stop()
    bad = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    print(
        f"{counts['good']:,} right values, {counts['bad']:,} bad readings ({bad}), {counts['wrong']} wrong values as good"
    )
    if examples:
        print("wrong:", examples[:5], file=sys.stderr)
    return 0 if counts["good"] and not counts["wrong"] else 1


if __name__ == "__main__":
    sys.exit(main())
