"""The configuration: checked whole before anything starts, then frozen. The words of the file become the agent's nouns.

Rule 1: every fault is found in one run and told at its place; nothing is used while there is one.
Rule 2: other rooms see only the nouns named here, never the models of the file.
Rule 3: a secret is a reference until `secret` is asked for it.
"""

import base64
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from edge_agent import plugins, yamlfile
from edge_agent.configuration import sections
from edge_agent.configuration.machines import with_periods
from edge_agent.configuration.norms import Detectors, limits_of
from edge_agent.configuration.nouns import (
    AgentConfig,
    BandConfig,
    Config,
    ConnectionConfig,
    CurrentLoop,
    MachineConfig,
    MqttConfig,
    NormConfig,
    SecretRef,
    SignalConfig,
    StoreConfig,
    TlsConfig,
    WebConfig,
)
from edge_agent.configuration.report import MISSING, Report
from edge_agent.configuration.words import FORMS, SECRET_NAME
from edge_agent.contract import Driver
from edge_agent.yamlfile import Place, Problem

__all__ = [
    "AgentConfig", "BandConfig", "Config", "ConfigError", "ConfigErrors", "ConnectionConfig", "CurrentLoop", "Loaded",
    "MachineConfig", "MqttConfig", "NormConfig", "SecretError", "SecretRef", "SignalConfig", "StoreConfig", "TlsConfig",
    "WebConfig", "at_its_place", "data_dir_of", "from_resolved_json", "limits_of", "load", "missing_secrets", "printable", "secret",
    "secrets_of", "stated_data_dir", "to_resolved_json", "with_periods", "with_secrets",
]  # fmt: skip

SECRET_BYTES_MAX = 64_000
"""Of one secret: keys and certificates are a few thousand."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration with what was read for it. sha: 12 hex of sha256 over all files. folders: see yamlfile.Tree."""

    config: Config
    sha: str
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...]
    named_secrets: tuple[tuple[SecretRef, Place, str], ...] = ()
    """Every {secret: NAME}, where it stands, and the keys that lead there."""
    connection_places: Mapping[str, Place] = field(default_factory=dict)
    """Where the name of each connection stands."""


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One fault. path: keys joined by points. found, allowed: in words, where they can be said."""

    file: str
    line: int
    column: int
    path: str
    found: str | None = None
    allowed: str | None = None
    text: str = ""
    suggestion: str | None = None

    @property
    def words(self) -> str:
        """What is wrong, what was found, what is allowed: all but the place."""
        parts = [f"{word} {value}" for word, value in (("found", self.found), ("allowed", self.allowed)) if value]
        hint = f'; did you mean "{self.suggestion}"?' if self.suggestion else ""
        extra = f" ({', '.join(parts)}{hint})" if parts else ""
        return f"{self.text}{extra}"

    def __str__(self) -> str:
        # One line, whatever somebody put into a key.
        where = f"{printable(self.path)}: " if self.path else ""
        return f"{self.file}:{self.line}:{self.column}: {where}{self.words}"


def printable(text: str) -> str:
    r"""On one line, whoever wrote it: a line end is `\n`, an escape sequence is shown and does nothing to a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class ConfigErrors(Exception):
    """The configuration is not valid; `errors` are all faults in the order of the files. files, folders: as in Loaded."""

    def __init__(
        self, errors: Sequence[ConfigError], files: tuple[Path, ...] = (), folders: tuple[Path, ...] = ()
    ) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = list(errors)
        self.files, self.folders = files, folders


class SecretError(Exception):
    """A secret is missing or not kept safely."""


# --- reading ---


def load(path: Path, registry: plugins.Plugins | None = None) -> Loaded:
    """Read, check and resolve a configuration. registry: the drivers; default: those installed. Raises ConfigErrors."""
    tree = yamlfile.load(path)
    if not tree.complete:
        # With a part missing, what refers to it would be told as wrong too: first mend what cannot be read.
        raise ConfigErrors(_told(tree.problems, tree), tree.files, tree.folders)
    report = Report()
    config = sections.resolved(report, tree.root, registry or plugins.installed())
    problems = (*tree.problems, *report.problems)
    if problems or config is None:
        raise ConfigErrors(_told(problems, tree), tree.files, tree.folders)
    named = tuple(_named_secrets(tree.root, ()))
    connections = tree.root.get("connections")
    places = {name: connections.key_at[name] for name in connections} if isinstance(connections, yamlfile.Table) else {}
    return Loaded(config, tree.sha[:12], tree.files, tree.folders, (*tree.notes, *report.notes), named, places)


def _named_secrets(node: Any, keys: tuple[Any, ...]) -> Iterator[tuple[SecretRef, Place, str]]:
    if isinstance(node, yamlfile.Table):
        if list(node) == ["secret"] and isinstance(node["secret"], str):
            yield SecretRef(node["secret"]), node.value_at["secret"], ".".join(map(str, keys))
            return
        for key, value in node.items():
            yield from _named_secrets(value, (*keys, key))
    elif isinstance(node, yamlfile.Items):
        for number, value in enumerate(node):
            yield from _named_secrets(value, (*keys, number))


def missing_secrets(loaded: Loaded) -> list[ConfigError]:
    """Every secret that the configuration needs and that cannot be had here and now, at its place."""
    needed = set(secrets_of(loaded.config))
    found = []
    for ref, place, path in loaded.named_secrets:
        if ref in needed:
            try:
                secret(ref, loaded.config)
            except SecretError as error:
                found.append(ConfigError(*place, path, None, None, str(error)))
    return found


def at_its_place(error: SecretError, loaded: Loaded) -> list[ConfigError]:
    """Where the configuration names the secret that could not be had."""
    return [each for each in missing_secrets(loaded) if each.text == str(error)]


def _told(problems: Sequence[Problem], tree: yamlfile.Tree) -> list[ConfigError]:
    """Errors in the order of files and lines. Of each place the first is told, and every key missing there.

    A key that is only misspelt is told once: where it stands.
    """
    told: dict[tuple[Place, Any], Problem] = {}
    misspelt = {(*problem.path[:-1], problem.suggestion) for problem in problems if problem.suggestion}
    for problem in problems:
        if problem.text != MISSING:
            told.setdefault((problem.place, None), problem)
        elif problem.path not in misspelt:
            told.setdefault((problem.place, problem.path[-1]), problem)
    order = {name: index for index, name in enumerate(tree.names)}
    ordered = sorted(told.values(), key=lambda p: (order.get(p.place.file, -1), p.place.line, p.place.column))
    return [
        ConfigError(*p.place, ".".join(map(str, p.path)), p.found, p.allowed, p.text, p.suggestion) for p in ordered
    ]


SERVICE_STATE = Path("/var/lib/edge-agent")
"""StateDirectory= of systemd/edge-agent.service."""
SERVICE_FOLDER = Path("/etc/edge-agent")
_DATA_DIR = re.compile(r"^[^#]*\bdata_dir:\s*[\"']?([^\"'\s,}#]+)", re.MULTILINE)
"""Where it stands in a file that cannot be read as YAML."""


def data_dir_of(path: Path, holds: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The data directory of an agent that runs with this file, which may be broken just now: it is read without being judged.

    Where it says nothing, the first of the agent's defaults that has the file `holds` is taken, else the first of them.
    """
    tree = yamlfile.load(path)
    stated = _stated_data_dir(tree)
    if stated is not None:
        return stated[0] / stated[1]
    if tree.problems and path.is_file() and (line := _DATA_DIR.search(path.read_text(errors="replace"))):
        return path.parent / line[1]
    defaults = [*_defaults(path, environment), Path("data")]
    return next((each for each in defaults if _is_there(each / holds)), defaults[0])


def default_data_dir(path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where an agent whose configuration will lie here has its data, when that says nothing of it. Nothing is read."""
    return _defaults(path, environment)[0]


def _defaults(path: Path, environment: Mapping[str, str]) -> list[Path]:
    state = environment.get(sections.STATE_DIRECTORY, "").partition(":")[0]
    installed = [SERVICE_STATE] if path.resolve().is_relative_to(SERVICE_FOLDER) else []
    return [*([Path(state)] if state else []), *installed, path.parent / "data"]


def stated_data_dir(path: Path) -> tuple[Path, str] | None:
    """(folder of the file that says it, what it says) of the data directory; None where the file leaves it to the default."""
    return _stated_data_dir(yamlfile.load(path))


def _stated_data_dir(tree: yamlfile.Tree) -> tuple[Path, str] | None:
    about = tree.root.get("agent")
    stated = about.get("data_dir") if isinstance(about, yamlfile.Table) else None
    if isinstance(about, yamlfile.Table) and isinstance(stated, str):
        return Path(about.value_at["data_dir"].file).parent, stated
    return None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that is not ours to look into: whoever asks is told there
        return True


def secret(ref: SecretRef, config: Config) -> str:
    """The secret's text: $CREDENTIALS_DIRECTORY/NAME, EDGE_AGENT_SECRET_NAME, data_dir/secrets/NAME (0600).

    One line end at its end is dropped. Raises SecretError, with words and without the value.
    """
    if not re.fullmatch(SECRET_NAME, ref.name):
        raise SecretError(f"{ref.name!r} is no name of a secret ({FORMS[SECRET_NAME]})")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (given := Path(folder, ref.name)).is_file():
        return _secret_file(given)
    for name in (ref.name, re.sub(r"[^A-Za-z0-9]", "_", ref.name).upper()):
        if text := os.environ.get(f"EDGE_AGENT_SECRET_{name}"):
            return text
    own = config.agent.data_dir / "secrets" / ref.name
    try:
        mode = own.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise SecretError(f"no secret {ref.name!r} for this user: {own}: {error.strerror}") from error
    if mode is not None and stat.S_ISREG(mode):
        if mode & 0o077:
            raise SecretError(f"{own} may be read by others; set its mode to 0600")
        return _secret_file(own)
    raise SecretError(
        f"no secret {ref.name!r}: no $CREDENTIALS_DIRECTORY/{ref.name}, no EDGE_AGENT_SECRET_{ref.name}, no file {own}"
    )


def _secret_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read(SECRET_BYTES_MAX)
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"{path} cannot be read: {error}") from error
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise SecretError(f"{path} is empty")
    return text


def secrets_of(config: Config) -> tuple[SecretRef, ...]:
    """Every secret that the configuration names, in its order."""
    refs: dict[SecretRef, None] = {}
    if config.mqtt is not None:
        key = config.mqtt.tls.key if config.mqtt.tls else None
        refs.update(dict.fromkeys(ref for ref in (config.mqtt.password, key) if isinstance(ref, SecretRef)))
    for connection in config.connections.values():
        refs.update(dict.fromkeys(_secret_fields(connection.settings)))
    return tuple(refs)


def with_secrets(settings: BaseModel, config: Config) -> BaseModel:
    """A driver's settings with the text of each secret for its name, as `open` wants them. Raises SecretError."""
    known: dict[str, Any] = {}
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            ref = _as_secret(value)
            known[key] = secret(ref, config) if ref else with_secrets(value, config)
    return settings.model_copy(update=known)


def _secret_fields(settings: BaseModel) -> Iterator[SecretRef]:
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            ref = _as_secret(value)
            yield from [ref] if ref else _secret_fields(value)


def _as_secret(value: BaseModel) -> SecretRef | None:
    name = getattr(value, "secret", None)
    return SecretRef(name) if isinstance(name, str) else None


# --- kept as the last good configuration ---


def pack(config: Config) -> str:
    """`to_resolved_json`, compressed: thousands of like signals make megabytes of text that is the same but for names."""
    return base64.b85encode(zlib.compress(to_resolved_json(config).encode(), 6)).decode("ascii")


def unpack(text: str, registry: plugins.Plugins | None = None) -> Config:
    """The configuration that `pack` wrote. Raises ValueError."""
    try:
        plain = zlib.decompress(base64.b85decode(text)).decode()
    except zlib.error as error:
        raise ValueError(f"not a configuration: {error}") from error
    return from_resolved_json(plain, registry)


def to_resolved_json(config: Config) -> str:
    """The configuration as text; secrets stay references."""
    # Machine by machine: one call for thousands of signals would keep every other thread waiting.
    machines = ",".join(f"{_dumped(name)}:{_dumped(machine)}" for name, machine in config.machines.items())
    rest = {part.name: getattr(config, part.name) for part in fields(config) if part.name != "machines"}
    return f'{_dumped(rest)[:-1]},"machines":{{{machines}}}}}'


def _dumped(value: Any) -> str:
    return orjson.dumps(value, _plain, orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: Any) -> Any:
    """What orjson does not know by itself, as plain values; dataclasses it knows."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", round_trip=True)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no part of a configuration")


def from_resolved_json(text: str, registry: plugins.Plugins | None = None) -> Config:
    """The configuration that `to_resolved_json` wrote. Raises ValueError when it is none, or its driver has gone."""
    known = registry or plugins.installed()
    try:
        return _config_of(json.loads(text), known)
    except (plugins.UnknownPluginError, plugins.BrokenPluginError) as error:
        raise ValueError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a configuration: {error!r}") from error


def _config_of(data: dict[str, Any], known: plugins.Plugins) -> Config:
    connections = {
        name: ConnectionConfig(
            name, part["driver"], known.driver(part["driver"]).Connection.model_validate(part["settings"])
        )
        for name, part in data["connections"].items()
    }
    drivers = {name: known.driver(connection.driver) for name, connection in connections.items()}
    detectors = known.detectors()
    mqtt = data["mqtt"]
    return Config(
        agent=AgentConfig(**{**data["agent"], "data_dir": Path(data["agent"]["data_dir"])}),
        mqtt=None if mqtt is None else _mqtt_of(mqtt),
        store=StoreConfig(**data["store"]),
        web=None if data["web"] is None else WebConfig(**data["web"]),
        connections=connections,
        machines={name: _machine_of(part, drivers, detectors) for name, part in data["machines"].items()},
    )


def _mqtt_of(data: dict[str, Any]) -> MqttConfig:
    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    def reference(value: Any) -> SecretRef | None:
        return SecretRef(**value) if isinstance(value, dict) else None

    tls = data["tls"]
    if tls is not None:
        tls = TlsConfig(path(tls["ca"]), path(tls["cert"]), reference(tls["key"]) or path(tls["key"]))
    return MqttConfig(**{**data, "password": reference(data["password"]), "tls": tls, "urls": tuple(data["urls"])})


def _machine_of(data: dict[str, Any], drivers: dict[str, Driver], detectors: Detectors) -> MachineConfig:
    signals = {name: _signal_of(part, drivers, detectors) for name, part in data["signals"].items()}
    attributes = {name: _signal_of(part, drivers, detectors) for name, part in data.get("attributes", {}).items()}
    return MachineConfig(**{**data, "signals": signals, "attributes": attributes})


def _signal_of(data: dict[str, Any], drivers: dict[str, Driver], detectors: Detectors) -> SignalConfig:
    loop, point = data["current_loop"], data["point"]
    return SignalConfig(
        **{
            **data,
            "current_loop": None if loop is None else CurrentLoop(**loop),
            "point": None if point is None else drivers[data["connection"]].Address.model_validate(point),
            "map": {int(number): text for number, text in data["map"].items()},
            "norm": _norm_of(data["norm"], detectors),
        }
    )


def _norm_of(data: dict[str, Any], detectors: Detectors) -> NormConfig:
    by_state = {state: _norm_of(part, detectors) for state, part in data["by_state"].items()}
    rules = {}
    for key, part in data.get("rules", {}).items():
        model = detectors[key].Settings if key in detectors else None
        if model is None:
            raise plugins.UnknownPluginError(key, tuple(detectors), "detector")
        rules[key] = model.model_validate(part)
    bands = {severity: BandConfig(**data[severity]) for severity in ("warning", "alarm")}
    return NormConfig(**{**data, **bands, "by_state": by_state, "rules": rules})
