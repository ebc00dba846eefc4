"""Nothing is lost: the agent is killed and the broker stopped under full load, and a consumer counts.

    python -m bench.oracle                       broker away for 30 s, then kill -9 ten times (about two minutes)
    python -m bench.oracle --kills 3 --away 5    a short run
    python -m bench.oracle --break-it            negative control: a consumer that forgets one message must be found out

Proved by the consumer alone: every `seq` from the first to the last is there or named by a gap record, and each one that
came twice is equal to the byte but for `late`. Prints its seed. The broker keeps its queue when it is stopped
(persistence): the agent's promise ends at the broker's PUBACK.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.__main__ import built, configuration, free_ports, process, wait_for

LATE = b',"late":true}'


class Ledger:
    """A consumer with a session that survives, which keeps every payload by epoch and seq."""

    def __init__(self, port: int) -> None:
        self.payloads: dict[tuple[str, int], bytes] = {}
        self.gaps: list[dict[str, Any]] = []
        self.repeats = self.differing = self.late = 0
        self.last_at = time.monotonic()
        self._lock = threading.Lock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="oracle", protocol=mqtt.MQTTv5)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe("edge/#", qos=1)
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        keep.ReceiveMaximum = 1000
        self._client.reconnect_delay_set(0.1, 0.5)
        self._client.connect("127.0.0.1", port, clean_start=False, properties=keep)
        self._client.loop_start()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        if message.topic.rpartition("/")[2] not in ("measurements", "warnings", "gaps"):
            return
        plain = json.loads(message.payload)
        key = (plain["epoch"], plain["seq"])
        late = message.payload.endswith(LATE)
        bare = message.payload[: -len(LATE)] + b"}" if late else message.payload
        with self._lock:
            self.last_at = time.monotonic()
            self.late += late
            known = self.payloads.get(key)
            if known is not None:
                self.repeats += 1
                self.differing += known != bare
                return
            self.payloads[key] = bare
            if message.topic.endswith("gaps"):
                self.gaps.append(plain)

    def missing(self) -> set[tuple[str, int]]:
        """Numbers between the first and the last of each epoch that neither came nor stand in a gap record."""
        with self._lock:
            keys, gaps = set(self.payloads), list(self.gaps)
        lost = set()
        for epoch in {epoch for epoch, _ in keys}:
            numbers = {seq for its, seq in keys if its == epoch}
            told: set[int] = set()
            for gap in gaps:
                if gap["epoch"] == epoch and gap["from_seq"] is not None:
                    told |= set(range(gap["from_seq"], gap["to_seq"] + 1))
            lost |= {(epoch, seq) for seq in range(1, max(numbers) + 1) if seq not in numbers and seq not in told}
        return lost

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.oracle")
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--every", default="1s")
    parser.add_argument("--commit-every", default="1s")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--away", type=float, default=30, help="seconds that the broker is stopped")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--break-it", action="store_true")
    asked = parser.parse_args()
    print(f"seed {asked.seed}: {asked.devices * asked.signals:,} signals every {asked.every}")
    dice = random.Random(asked.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-oracle-")))
        first = free_ports(asked.devices + 2)
        port, plant = first, first + 2
        conf = folder / "mosquitto.conf"
        kept = folder / "broker"
        kept.mkdir()
        conf.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {kept}/\n"
            "autosave_interval 1\nset_tcp_nodelay true\nmax_queued_messages 0\nmax_inflight_messages 0\nuser root\n"
        )
        mosquitto = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        command = [mosquitto, "-c", str(conf)]
        stack.enter_context(process(str(built("fakeplc")), "-p", str(plant), "-n", str(asked.devices)))
        broker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(lambda: (broker.terminate(), broker.wait()))
        wait_for(port)
        config = folder / "agent.yaml"
        config.write_text(configuration(asked, plant, port, folder / "data"))
        ledger = Ledger(port)
        stack.callback(ledger.close)
        log = stack.enter_context((folder / "agent.log").open("ab"))

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", str(config)], stdout=log, stderr=subprocess.STDOUT
            )

        agent = start()
        stack.callback(lambda: (agent.kill(), agent.wait()))
        time.sleep(6)
        if asked.away:
            print(f"broker stopped for {asked.away:g} s …", flush=True)
            broker.terminate()
            broker.wait()
            time.sleep(asked.away)
            broker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(port)
            time.sleep(8)
        ready = []
        for n in range(asked.kills):
            time.sleep(dice.uniform(0.5, 6))
            if agent.poll() is not None:
                print((folder / "agent.log").read_text()[-3000:], file=sys.stderr)
                raise SystemExit(f"the agent ended by itself ({agent.returncode})")
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            had = len(ledger.payloads)
            began = time.monotonic()
            agent = start()
            while len(ledger.payloads) == had and time.monotonic() - began < 30:
                time.sleep(0.01)
            ready.append(time.monotonic() - began)
            print(f"kill -9 {n + 1}: next new message after {ready[-1]:.2f} s", flush=True)
        time.sleep(5)
        agent.send_signal(signal.SIGTERM)
        agent.wait(15)
        time.sleep(1)
        while time.monotonic() - ledger.last_at < 1.5:
            time.sleep(0.2)
        if asked.break_it:
            ledger.payloads.pop(dice.choice([key for key in ledger.payloads if key[1] > 1]))
        lost = ledger.missing()
        epochs = sorted({epoch for epoch, _ in ledger.payloads})
        print(
            f"epochs {', '.join(epochs)}; {len(ledger.payloads):,} messages, {ledger.late:,} late, "
            f"{ledger.repeats:,} repeated ({ledger.differing} not byte-equal), {len(ledger.gaps)} gap records "
            f"({sum(gap['count'] for gap in ledger.gaps):,} rows: {', '.join(sorted({gap['cause'] for gap in ledger.gaps})) or '–'}), "
            f"{len(lost)} missing"
        )
        ok = not lost and not ledger.differing and len(epochs) == 1
        if not ok:
            print("missing:", sorted(lost)[:10], file=sys.stderr)
            print((folder / "agent.log").read_text()[-3000:], file=sys.stderr)
        print("OK" if ok else "FAILED")
        return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
