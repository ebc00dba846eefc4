"""The configuration as other rooms see it: frozen, complete, free of the file's spelling.

Rule: durations are int microseconds (`_us`), sizes bytes, paths absolute, secrets references.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class SecretRef:
    """The name of a secret."""

    name: str


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Who this agent is. data_dir: absolute."""

    id: str
    site: str
    language: str
    timezone: str
    data_dir: Path


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Certificates for the broker. Paths are absolute."""

    ca: Path | None
    cert: Path | None
    key: SecretRef | Path | None


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """The brokers. root: with site and agent put in."""

    url: str
    version: str
    username: str | None
    password: SecretRef | None
    tls: TlsConfig | None
    urls: tuple[str, ...]
    root: str


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """What is kept on disk. max_size, history_max_size: bytes. history_export: a whole path or a URL; None: nowhere."""

    max_size: int
    max_age_us: int
    commit_every_us: int
    # What an earlier release has kept of a configuration does not know of these.
    history_keep_us: int = 400 * 86_400_000_000
    history_max_size: int = 10 * 10**9
    history_export: str | None = None


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Where the page listens; port 0: a free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """A line to a device. settings: an instance of the driver's `Connection`."""

    name: str
    driver: str
    settings: BaseModel


@dataclass(frozen=True, slots=True)
class BandConfig:
    """The norm band of one severity, in the signal's unit. deadband: absolute, also where the file says a share."""

    low: float | None
    high: float | None
    deadband: float
    on_delay_us: int
    off_delay_us: int


@dataclass(frozen=True, slots=True)
class NormConfig:
    """A whole norm. stale_us: None means the contract's default. by_state: whole norms, each without a by_state.

    rules: what it asks of detectors, by their keys: instances of their `Settings`.
    """

    warning: BandConfig
    alarm: BandConfig
    stale_us: int | None
    use_uncertain: bool
    severity: str
    acknowledge: str
    by_state: dict[str, "NormConfig"]
    # What an earlier release has kept of a configuration has none.
    rules: dict[str, BaseModel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CurrentLoop:
    """Values at 4 and at 20 mA."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SignalConfig:
    """One signal. title, unit: empty where the file says none. Exactly one of point, formula and column is there."""

    name: str
    title: str
    unit: str
    advice: dict[str, str]
    scale: float
    offset: float
    current_loop: CurrentLoop | None
    valid_low: float | None
    valid_high: float | None
    every_us: int
    every_written: bool
    connection: str | None
    point: BaseModel | None
    formula: str | None
    column: str | None
    map: dict[int, str]
    norm: NormConfig


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One machine with its type laid under it. states: name → condition, in the order of the file; until: of some of them
    the condition that ends it.

    attributes: texts of its devices (a serial number), which are shown and never judged.
    """

    name: str
    title: str
    area: str
    states: dict[str, str]
    settle_us: int
    every_us: int
    signals: dict[str, SignalConfig]
    attributes: dict[str, SignalConfig] = field(default_factory=dict)
    until: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. mqtt is None only for recordings."""

    agent: AgentConfig
    mqtt: MqttConfig | None
    store: StoreConfig
    web: WebConfig | None
    connections: dict[str, ConnectionConfig]
    machines: dict[str, MachineConfig]

    @property
    def for_recordings(self) -> bool:
        """Such a configuration can be replayed but not run."""
        return not self.connections
