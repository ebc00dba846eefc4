"""The configuration: checked whole before anything starts, then frozen. The words of the file become the agent's nouns.

Rule 1: every fault is found in one run and told at its place; nothing is used while there is one.
Rule 2: other rooms see only the nouns below, never the models of the file; a secret is a reference until `secret` is asked.
Rule 3: what the judge needs is resolved here: types are laid over, deadbands are absolute, each state's norm is whole.
"""

import difflib
import json
import math
import os
import re
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from edge_agent import configfile, expression, plugins, yamlfile
from edge_agent.contract import Driver
from edge_agent.yamlfile import Items, Place, Problem, Table

Path_ = tuple[Any, ...]
"""Keys (and list positions) from the top of the file downwards."""
Model = TypeVar("Model", bound=BaseModel)

SOURCES = ("address", "formula", "manual", "waveform", "column")
"""A signal has exactly one of these."""
_IDLE_BESIDE = {"formula": ("connection", "scale", "offset", "current_loop"), "column": ("connection",)}
SECRET_KEYS = re.compile(r"password|secret|token|passphrase|^key$|^pin$", re.I)
"""Keys whose values are never printed."""
STATE_DIRECTORY = "STATE_DIRECTORY"
SECRET_BYTES_MAX = 64_000


# --- nouns ---


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
    """What is kept on disk. max_size: bytes."""

    max_size: int
    max_age_us: int
    commit_every_us: int


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
    """The norm band of one severity, in the signal's unit. deadband: absolute, also where the file says a percentage."""

    low: float | None
    high: float | None
    deadband: float
    on_delay_us: int
    off_delay_us: int


@dataclass(frozen=True, slots=True)
class NormConfig:
    """A whole norm. stale_us: None means the contract's default. by_state: whole norms, each without a by_state."""

    warning: BandConfig
    alarm: BandConfig
    stale_us: int | None
    use_uncertain: bool
    severity: str
    acknowledge: str
    by_state: dict[str, "NormConfig"]


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
    """One machine with its type laid under it. states: name → condition, in the order of the file."""

    name: str
    title: str
    area: str
    states: dict[str, str]
    settle_us: int
    every_us: int
    signals: dict[str, SignalConfig]


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


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration with what was read for it. sha: 12 hex of sha256 over all files."""

    config: Config
    sha: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One fault. path: keys joined by points. found, allowed: in words, where they can be said."""

    file: str
    line: int
    column: int
    path: str
    found: str | None
    allowed: str | None
    text: str
    suggestion: str | None = None

    def __str__(self) -> str:
        parts = [f"{word} {value}" for word, value in (("found", self.found), ("allowed", self.allowed)) if value]
        hint = f'; did you mean "{self.suggestion}"?' if self.suggestion else ""
        extra = f" ({', '.join(parts)}{hint})" if parts else ""
        where = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}:{self.column}: {where}{self.text}{extra}"


class ConfigErrors(Exception):
    """The configuration is not valid; `errors` are all faults in the order of the files."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = list(errors)


class SecretError(Exception):
    """A secret is missing or not kept safely."""


# --- reading ---


def load(path: Path, registry: plugins.Plugins | None = None) -> Loaded:
    """Read, check and resolve a configuration. registry: the drivers; default: those installed. Raises ConfigErrors."""
    tree = yamlfile.load(path)
    if not tree.complete:
        # With a part missing, what refers to it would be told as wrong too: first mend what cannot be read.
        raise ConfigErrors(_told(tree.problems, tree))
    desk = _Desk(tree.root, registry or plugins.installed())
    config = desk.config()
    problems = (*tree.problems, *desk.problems)
    if problems or config is None:
        raise ConfigErrors(_told(problems, tree))
    return Loaded(config, tree.sha[:12], tree.files, (*tree.notes, *desk.notes))


def _told(problems: Iterable[Problem], tree: yamlfile.Tree) -> list[ConfigError]:
    """Errors in the order of files and lines, one for each place: the first that was found there."""
    at: dict[Place, Problem] = {}
    for problem in problems:
        at.setdefault(problem.place, problem)
    order = {name: index for index, name in enumerate(tree.names)}
    ordered = sorted(at.values(), key=lambda p: (order.get(p.place.file, -1), p.place.line, p.place.column))
    return [
        ConfigError(*p.place, ".".join(map(str, p.path)), p.found, p.allowed, p.text, p.suggestion) for p in ordered
    ]


def secret(ref: SecretRef, config: Config) -> str:
    """The secret's text: $CREDENTIALS_DIRECTORY/NAME, EDGE_AGENT_SECRET_NAME, data_dir/secrets/NAME (0600).

    One line end at its end is dropped. Raises SecretError, with words and without the value.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (given := Path(folder, ref.name)).is_file():
        return _secret_file(given)
    for name in (ref.name, re.sub(r"[^A-Za-z0-9]", "_", ref.name).upper()):
        if text := os.environ.get(f"EDGE_AGENT_SECRET_{name}"):
            return text
    own = config.agent.data_dir / "secrets" / ref.name
    if own.is_file():
        if own.stat().st_mode & 0o077:
            raise SecretError(f"{own} may be read by others; set its mode to 0600")
        return _secret_file(own)
    raise SecretError(
        f"no secret {ref.name!r}: neither $CREDENTIALS_DIRECTORY/{ref.name}, nor EDGE_AGENT_SECRET_{ref.name}, nor {own}"
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
        refs.update(dict.fromkeys(ref for _, ref in _secret_fields(connection.settings)))
    return tuple(refs)


def with_secrets(settings: BaseModel, config: Config) -> BaseModel:
    """A driver's settings with the text of each secret in the place of its name, as `open` wants them. Raises SecretError."""
    return settings.model_copy(update={key: secret(ref, config) for key, ref in _secret_fields(settings)})


def _secret_fields(settings: BaseModel) -> Iterator[tuple[str, SecretRef]]:
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        name = getattr(value, "secret", None) if isinstance(value, BaseModel) else None
        if isinstance(name, str):
            yield key, SecretRef(name)


# --- kept as the last good configuration ---


def to_resolved_json(config: Config) -> str:
    """The configuration as text; secrets stay references."""
    return json.dumps(_plain(config), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", round_trip=True)
    if is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_resolved_json(text: str, registry: plugins.Plugins | None = None) -> Config:
    """The configuration that `to_resolved_json` wrote. Raises ValueError when the text is none, or its driver has gone."""
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
    mqtt = data["mqtt"]
    return Config(
        agent=AgentConfig(**{**data["agent"], "data_dir": Path(data["agent"]["data_dir"])}),
        mqtt=None if mqtt is None else _mqtt_of(mqtt),
        store=StoreConfig(**data["store"]),
        web=None if data["web"] is None else WebConfig(**data["web"]),
        connections=connections,
        machines={name: _machine_of(part, drivers) for name, part in data["machines"].items()},
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


def _machine_of(data: dict[str, Any], drivers: dict[str, Driver]) -> MachineConfig:
    signals = {name: _signal_of(part, drivers) for name, part in data["signals"].items()}
    return MachineConfig(**{**data, "signals": signals})


def _signal_of(data: dict[str, Any], drivers: dict[str, Driver]) -> SignalConfig:
    loop, point = data["current_loop"], data["point"]
    return SignalConfig(
        **{
            **data,
            "current_loop": None if loop is None else CurrentLoop(**loop),
            "point": None if point is None else drivers[data["connection"]].Address.model_validate(point),
            "map": {int(number): text for number, text in data["map"].items()},
            "norm": _norm_of(data["norm"]),
        }
    )


def _norm_of(data: dict[str, Any]) -> NormConfig:
    by_state = {state: _norm_of(part) for state, part in data["by_state"].items()}
    bands = {severity: BandConfig(**data[severity]) for severity in ("warning", "alarm")}
    return NormConfig(**{**data, **bands, "by_state": by_state})


# --- checking: parts of the file against their models ---


@dataclass(frozen=True, slots=True)
class _Part:
    """A table of the file, the keys that lead to it, and where the key that holds it stands.

    origins: the paths of keys that were inherited from elsewhere. whole: where to tell what is wrong with all of it.
    """

    table: Table
    path: Path_
    at: Place
    origins: Mapping[Any, Path_] = field(default_factory=dict)
    whole: Place | None = None

    def place(self, *keys: Any) -> Place | None:
        """Where the value under these keys stands; None when it is not there."""
        node: Any = self.table
        place: Place | None = None
        for key in keys:
            if not isinstance(node, Table) or key not in node:
                return None
            node, place = node[key], node.value_at[key]
        return place

    def part(self, key: Any) -> "_Part":
        """The table under this key; an empty one when there is none."""
        value = self.table.get(key)
        at = self.table.key_at.get(key, self.at)
        return _Part(value if isinstance(value, Table) else Table(at), (*self.path, key), at)


WORDS: dict[str, tuple[str, str]] = {
    "string_type": ("is no text", "a text; in quotes when it looks like a number"),
    "bool_type": ("is neither true nor false", "true or false"),
    "bool_parsing": ("is neither true nor false", "true or false"),
    "int_type": ("is no whole number", "a whole number"),
    "int_parsing": ("is no whole number", "a whole number"),
    "int_from_float": ("is no whole number", "a whole number"),
    "float_type": ("is no number", "a number"),
    "float_parsing": ("is no number", "a number"),
    "finite_number": ("is no finite number", "a finite number"),
    "list_type": ("is no list", "a list: [a, b]"),
    "dict_type": ("is no mapping", "keys with values"),
    "model_type": ("is no mapping", "keys with values"),
    "model_attributes_type": ("is no mapping", "keys with values"),
    "greater_than": ("is too small", "more than {gt}"),
    "greater_than_equal": ("is too small", "{ge} or more"),
    "less_than": ("is too large", "less than {lt}"),
    "less_than_equal": ("is too large", "{le} or less"),
    "literal_error": ("is not one of the known words", "{expected}"),
    "enum": ("is not one of the known words", "{expected}"),
    "string_too_short": ("is too short", "{min_length} characters or more"),
    "string_too_long": ("is too long", "{max_length} characters or fewer"),
    "string_pattern_mismatch": ("has another form", "{pattern}"),
    "too_short": ("has too few items", "{min_length} or more"),
    "too_long": ("has too many items", "{max_length} or fewer"),
}
"""pydantic's kinds of errors (also those of drivers' models) in our words: text, allowed."""


def _near(word: Any, words: Iterable[Any]) -> str | None:
    if not isinstance(word, str):
        return None
    pool = [str(one) for one in words]
    lower = {one.lower(): one for one in pool}
    found = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[found[0]] if found else None


def _listed(words: Iterable[Any], most: int = 40) -> str:
    names = [str(word) for word in words]
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def _shown(path: Path_, value: Any) -> str:
    """The value for a message; a hidden one when its key says that it may be a secret."""
    if any(isinstance(key, str) and SECRET_KEYS.search(key) for key in path) and not isinstance(value, dict):
        return "a value that is not shown"
    if isinstance(value, str) and re.search(r"://[^/\s]*@", value):
        return "a url with a user (not shown)"
    return yamlfile.shown(value)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `dict[str, Model]`, `list[Model]`, …; None when there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, UnionType, dict, list, tuple):
        for part in get_args(annotation):
            if part is not NoneType and (found := _model_in(part)):
                return found
    return None


def _model_at(model: type[BaseModel], keys: Path_) -> type[BaseModel] | None:
    """The model of the part under these keys."""
    found: type[BaseModel] | None = model
    for key in keys:
        if found is not None and key in found.model_fields:
            annotation = found.model_fields[key].annotation
            found = _model_in(annotation)
    return found


class _Desk:
    """The file on the desk of the one who checks it: what is found wrong is noted, and the checking goes on."""

    def __init__(self, root: Table, registry: plugins.Plugins) -> None:
        self.root = root
        self.registry = registry
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.drivers: dict[str, Driver | None] = {}
        """Kind → driver; None for one that cannot be had."""
        self.kinds: dict[str, str] = {}
        """Connection → kind of its driver, where both are known."""
        self.used: set[str] = set()
        """Connections that a signal uses."""

    def add(
        self, at: Place, path: Path_, text: str, found: Any = None, allowed: str | None = None, near: str | None = None
    ) -> None:
        self.problems.append(Problem(at, path, text, found, allowed, near))

    # models

    def checked(self, model: type[Model], part: _Part) -> Model | None:
        """The part as its model; None, with problems noted, when it does not fit."""
        self._refuse_later(model, part)
        try:
            return model.model_validate(part.table)
        except ValidationError as errors:
            for error in errors.errors(include_url=False, include_input=False):
                self._translate(model, part, dict(error))
        except RecursionError:
            self.add(part.at, part.path, "nested too deep", None, None)
        return None

    def _translate(self, model: type[BaseModel], part: _Part, error: dict[str, Any]) -> None:
        """One error of pydantic at its place in the file. Names of union members in its location are not in the file."""
        node: Any = part.table
        key_at, value_at = part.at, part.whole or part.at
        keys: Path_ = ()
        for key in error["loc"]:
            if isinstance(node, Table) and key in node:
                key_at, value_at, node = node.key_at[key], node.value_at[key], node[key]
            elif isinstance(node, Items) and isinstance(key, int) and key < len(node):
                key_at, value_at, node = node.value_at[key], node.value_at[key], node[key]
            else:
                continue
            keys = (*keys, key)
        path = (*part.origins.get(keys[0], (*part.path, keys[0])), *keys[1:]) if keys else part.path
        last = error["loc"][-1] if error["loc"] else None
        match error["type"]:
            case "extra_forbidden":
                holder = _model_at(model, keys[:-1])
                self._unknown_key(key_at, path, keys[-1] if keys else last, holder.model_fields if holder else ())
            case "missing":
                holder = _model_at(model, keys)
                about = holder.model_fields[last].description if holder and last in holder.model_fields else None
                self.add(key_at, (*path, last), "the key is missing", None, about)
            case kind:
                self._wrong_value(value_at, path, node, str(kind), error)

    def _wrong_value(self, at: Place, path: Path_, value: Any, kind: str, error: dict[str, Any]) -> None:
        context = error.get("ctx", {})
        if kind == "refused":
            text, allowed = context["text"], context["allowed"]
        elif kind in WORDS:
            text, allowed = WORDS[kind]
            allowed = allowed.format_map(context)
        else:
            text, allowed = str(error["msg"]).removeprefix("Value error, "), None
        words = re.findall(r"'([^']*)'", allowed) if kind in ("literal_error", "enum") and allowed else ()
        self.add(at, path, text, _shown(path, value), allowed, _near(value, words))

    def _unknown_key(self, at: Place, path: Path_, key: Any, known: Iterable[Any]) -> None:
        known = sorted(map(str, known))
        self.add(at, path, "unknown key", yamlfile.shown(str(key)), _listed(known), _near(key, known))

    def _refuse_later(self, model: type[BaseModel], part: _Part) -> None:
        """Tell every use of a key that a later version brings."""
        for key, value in part.table.items():
            about = model.model_fields.get(key) if isinstance(key, str) else None
            if about is None:
                continue
            extra = about.json_schema_extra if isinstance(about.json_schema_extra, dict) else {}
            if extra.get("x-available") is False:
                off: Any = extra.get("x-off")
                if not any(type(value) is type(one) or isinstance(value, dict | list) for one in off if value == one):
                    at = part.table.key_at[key] if about.default in (None, {}) else part.table.value_at[key]
                    only = "nothing" if about.default in (None, {}) else f"only {_json(off[0])}"
                    self.add(at, (*part.path, key), "is not available yet", _shown((key,), value), only)
            elif isinstance(value, Table) and (inner := _model_in(about.annotation)):
                if get_origin(about.annotation) is dict:
                    for name in value:
                        self._refuse_later(inner, part.part(key).part(name))
                else:
                    self._refuse_later(inner, part.part(key))

    # the whole

    def config(self) -> Config | None:
        """The resolved configuration; None when a part of it could not be made (problems say why)."""
        for key in self.root:
            if key not in configfile.File.model_fields:
                self._unknown_key(self.root.key_at[key], (key,), key, configfile.File.model_fields)
        agent = self._agent()
        store = self._section(configfile.StoreFile, "store")
        web = self._web()
        self._section(configfile.NotifyFile, "notify")
        self._section(configfile.WarningsFile, "warnings")
        connections = self._connections()
        self._types()
        merged = self._merged_machines()
        recordings = self._is_for_recordings(merged)
        mqtt = self._mqtt(agent, required=not recordings)
        if "connections" not in self.root and not recordings:
            self._missing("connections", "lines to devices by name")
        machines = {name: self._machine(name, part, recordings=recordings) for name, part in merged.items()}
        self._note_unused()
        if agent is None or store is None or self.problems:
            return None
        return Config(
            agent=agent,
            mqtt=mqtt,
            store=StoreConfig(store.buffer.max_size, store.buffer.max_age, store.commit_every),
            web=web,
            connections=connections,
            machines={name: machine for name, machine in machines.items() if machine is not None},
        )

    def _missing(self, key: str, about: str) -> None:
        self.add(Place(self.root.at.file, 1, 1), (key,), "the key is missing", None, about)

    def _top(self, key: str) -> _Part | None:
        """A section of the file, an empty one when nothing is written under its key; None when it is no mapping."""
        value = self.root.get(key)
        if value is not None and not isinstance(value, Table):
            self.add(self.root.value_at[key], (key,), "is no mapping", _shown((key,), value), "keys with values")
            return None
        at = self.root.key_at.get(key, Place(self.root.at.file, 1, 1))
        return _Part(value if value is not None else Table(at), (key,), at)

    def _section(self, model: type[Model], key: str) -> Model | None:
        part = self._top(key)
        return self.checked(model, part) if part else None

    def _agent(self) -> AgentConfig | None:
        if "agent" not in self.root:
            self._missing("agent", "agent.id, the name of this agent")
            return None
        part = self._top("agent")
        words = self.checked(configfile.AgentFile, part) if part else None
        if part is None or words is None:
            return None
        if not _is_timezone(words.timezone):
            near = _near(words.timezone, zoneinfo.available_timezones())
            at = part.place("timezone") or part.at
            self.add(
                at,
                ("agent", "timezone"),
                "is no known time zone",
                _shown((), words.timezone),
                "an IANA name such as Europe/Amsterdam",
                near,
            )
        return AgentConfig(words.id, words.site, words.language, words.timezone, self._data_dir(part, words.data_dir))

    def _data_dir(self, part: _Part, written: str | None) -> Path:
        if written is not None:
            return self._path(part, "data_dir", written)
        if service := os.environ.get(STATE_DIRECTORY, "").split(":")[0]:
            return Path(service).absolute()
        return Path(part.at.file).absolute().parent / "data"

    def _path(self, part: _Part, key: str, written: str) -> Path:
        """A path relative to the file that holds it."""
        at = part.place(key) or part.at
        return Path(os.path.normpath(Path(at.file).absolute().parent / written))

    def _web(self) -> WebConfig | None:
        if "web" in self.root and self.root["web"] is None:
            return None
        words = self._section(configfile.WebFile, "web")
        if words is None:
            return None
        host, _, port = words.listen.rpartition(":")
        return WebConfig(host.strip("[]"), int(port))

    def _mqtt(self, agent: AgentConfig | None, *, required: bool) -> MqttConfig | None:
        if "mqtt" not in self.root:
            if required:
                self._missing("mqtt", "mqtt.url, the broker")
            return None
        part = self._top("mqtt")
        words = self.checked(configfile.MqttFile, part) if part else None
        if part is None or words is None:
            return None
        site, name = (agent.site, agent.id) if agent else ("site", "agent")
        root = words.root.replace("{site}", site).replace("{agent}", name)
        password = SecretRef(words.password.secret) if words.password else None
        return MqttConfig(
            words.url, words.version, words.username, password, self._tls(part, words), tuple(words.urls), root
        )

    def _tls(self, part: _Part, words: configfile.MqttFile) -> TlsConfig | None:
        tls = words.tls
        if tls is None:
            return None
        own = part.part("tls")
        if not any(urlsplit(url).scheme == "mqtts" for url in (words.url, *words.urls)):
            self.add(
                own.at, own.path, "has no effect without a url that begins with mqtts://", None, "mqtts://HOST[:PORT]"
            )
        for has, lacks in (("cert", "key"), ("key", "cert")):
            if getattr(tls, has) is not None and getattr(tls, lacks) is None:
                self.add(own.at, (*own.path, lacks), "the key is missing", None, f"{lacks}, which belongs to {has}")

        def path(key: str, value: str | None) -> Path | None:
            return None if value is None else self._path(own, key, value)

        key = tls.key
        return TlsConfig(
            path("ca", tls.ca),
            path("cert", tls.cert),
            SecretRef(key.secret) if isinstance(key, configfile.SecretRef) else path("key", key),
        )

    # connections and their drivers

    def _connections(self) -> dict[str, ConnectionConfig]:
        part = self._top("connections")
        found: dict[str, ConnectionConfig] = {}
        for name in part.table if part else ():
            connection = self._connection(name, part) if part else None
            if connection is not None:
                found[name] = connection
        return found

    def _connection(self, name: Any, holder: _Part) -> ConnectionConfig | None:
        part = self._named(name, holder, configfile.NAME, "connection")
        if part is None or self.checked(configfile.ConnectionFile, part) is None:
            return None
        kind = part.table["driver"]
        driver = self._driver(kind, part)
        if driver is None:
            return None
        self.kinds[name] = kind
        own = _without(part.table, {"driver"})
        if (at := part.place("password")) and not isinstance(own["password"], Table | NoneType):
            self.add(
                at,
                (*part.path, "password"),
                "a password is never written in plain",
                "a text that is not shown",
                "{secret: NAME}",
            )
            return None
        settings = self.checked(driver.Connection, _Part(own, part.path, part.at))
        return None if settings is None else ConnectionConfig(name, kind, settings)

    def _driver(self, kind: str, part: _Part) -> Driver | None:
        at, path = part.table.value_at["driver"], (*part.path, "driver")
        if kind not in self.drivers:
            try:
                self.drivers[kind] = self.registry.driver(kind)
            except plugins.UnknownPluginError as error:
                self.add(
                    at,
                    path,
                    "no such driver is installed",
                    _shown((), kind),
                    _listed(error.known),
                    _near(kind, error.known),
                )
                self.drivers[kind] = None
            except plugins.BrokenPluginError as error:
                self.add(at, path, str(error), _shown((), kind), None)
                self.drivers[kind] = None
        elif self.drivers[kind] is None:
            known = self.registry.kinds()
            self.add(at, path, "no such driver is installed", _shown((), kind), _listed(known), _near(kind, known))
        return self.drivers[kind]

    def _named(self, name: Any, holder: _Part, pattern: str, what: str) -> _Part | None:
        """The part under a name of the user's, when the name is well formed and the part a mapping (or empty)."""
        at, path = holder.table.key_at[name], (*holder.path, name)
        if not isinstance(name, str) or not re.fullmatch(pattern, name):
            quotes = "" if isinstance(name, str) else f'; "{name}" in quotes'
            self.add(at, path, f"is no name for a {what}", yamlfile.shown(name), pattern + quotes)
            return None
        value = holder.table[name]
        if value is not None and not isinstance(value, Table):
            self.add(holder.table.value_at[name], path, "is no mapping", _shown(path, value), "keys with values")
            return None
        return _Part(value if value is not None else Table(at), path, at)

    def _note_unused(self) -> None:
        for name in self.kinds:
            if name not in self.used:
                at = self.root["connections"].key_at[name]
                self.notes.append(
                    f"{at.file}:{at.line}:{at.column}: connections.{name}: no signal uses this connection"
                )

    # types and machines

    def _types(self) -> None:
        """Check types where they stand, so that their faults are told once and also when no machine uses them."""
        holder = self._top("types")
        for name in holder.table if holder else ():
            part = self._named(name, holder, configfile.NAME, "type") if holder else None
            if part is not None:
                self._machine_words(configfile.TypeFile, part, self._inherited(None))
                for signal in self._signals(part).values():
                    known = {key for driver in self.drivers.values() if driver for key in driver.Address.model_fields}
                    self._signal_words(signal, known if None not in self.drivers.values() else None)

    def _inherited(self, kinds: Iterable[str] | None) -> frozenset[str] | None:
        """Keys that drivers of these kinds (None: of all) take from a machine; None when a driver is not known."""
        drivers = [self.drivers.get(kind) for kind in (self.drivers if kinds is None else kinds)]
        if None in drivers:
            return None
        return frozenset[str]().union(*(driver.inherited for driver in drivers if driver))

    def _merged_machines(self) -> dict[str, _Part]:
        """Every machine laid over its type."""
        holder = self._top("machines")
        if holder is None:
            return {}
        if "machines" not in self.root:
            self._missing("machines", "machines by name")
        elif not holder.table:
            self.add(
                self.root.value_at["machines"], ("machines",), "there is no machine", "nothing", "one machine or more"
            )
        found: dict[str, _Part] = {}
        for name in holder.table:
            part = self._named(name, holder, configfile.NAME, "machine")
            if part is None:
                continue
            if name in configfile.RESERVED_MACHINES:
                self.add(part.at, part.path, "this name is reserved", yamlfile.shown(name), "another name")
            found[name] = self._over_type(part)
        return found

    def _over_type(self, part: _Part) -> _Part:
        kind = part.table.get("type")
        if kind is None:
            return part
        types = self.root.get("types")
        known = list(types) if isinstance(types, Table) else []
        base = types.get(kind) if isinstance(types, Table) and isinstance(kind, str) else None
        if not isinstance(kind, str) or kind not in known:
            at = part.table.value_at["type"]
            self.add(
                at,
                (*part.path, "type"),
                "there is no such type",
                _shown((), kind),
                _listed(known) or "none is defined",
                _near(kind, known),
            )
        if not isinstance(base, Table):
            return part
        return _Part(yamlfile.merged(base, part.table), part.path, part.at)

    def _signals(self, part: _Part) -> dict[str, _Part]:
        """The well-named signals of a machine or type, each with its table."""
        value = part.table.get("signals")
        if value is not None and not isinstance(value, Table):
            self.add(
                part.table.value_at["signals"],
                (*part.path, "signals"),
                "is no mapping",
                yamlfile.shown(value),
                "signals by name",
            )
            return {}
        holder = part.part("signals")
        signals = {name: self._named(name, holder, configfile.WORD, "signal") for name in holder.table}
        return {name: signal for name, signal in signals.items() if signal is not None}

    def _is_for_recordings(self, machines: dict[str, _Part]) -> bool:
        """No connection, and no signal that would need one."""
        if self.root.get("connections"):
            return False
        signals = [signal for part in machines.values() for signal in (part.table.get("signals") or {}).values()]
        return not any(
            isinstance(signal, Table) and {"address", "manual", "waveform"} & set(signal) for signal in signals
        )

    def _machine_words(self, model: type[Model], part: _Part, inherited: frozenset[str] | None) -> Model | None:
        """A machine's or type's own keys, without signals; inherited: what its drivers take from it (None: not known)."""
        known = set(model.model_fields)
        for key in part.table:
            if key not in known and inherited is not None and key not in inherited:
                self._unknown_key(part.table.key_at[key], (*part.path, key), key, known | inherited)
        own = _without(part.table, {"signals", *(key for key in part.table if key not in known)})
        return self.checked(model, _Part(own, part.path, part.at))

    def _machine(self, name: str, part: _Part, *, recordings: bool) -> MachineConfig | None:
        signals = self._signals(part)
        if not part.table.get("signals") and "signals" not in part.table:
            self.add(part.at, (*part.path, "signals"), "the key is missing", None, "one signal or more")
        elif not part.table["signals"]:
            self.add(
                part.table.value_at["signals"],
                (*part.path, "signals"),
                "there is no signal",
                "nothing",
                "one signal or more",
            )
        words = self._machine_words(configfile.MachineFile, part, self._machine_inherited(part, signals))
        scope = _Scope(part, words, tuple(signals), self._states(part, words, signals), recordings)
        resolved = {key: self._signal(key, signal, scope) for key, signal in signals.items()}
        self._refuse_circles(signals)
        if words is None:
            return None
        return MachineConfig(
            name=name,
            title=words.title or "",
            area=words.area or "",
            states=dict(words.states),
            settle_us=words.settle,
            every_us=words.every,
            signals={key: signal for key, signal in resolved.items() if signal is not None},
        )

    def _machine_inherited(self, part: _Part, signals: dict[str, _Part]) -> frozenset[str] | None:
        """What the drivers of this machine's connections take from it; None when one of them is not known."""
        names = {signal.table.get("connection", part.table.get("connection")) for signal in signals.values()}
        names |= {part.table.get("connection")}
        names.discard(None)
        if any(not isinstance(name, str) or name not in self.kinds for name in names):
            return None
        return self._inherited({self.kinds[name] for name in names})

    def _states(self, part: _Part, words: configfile.MachineFile | None, signals: dict[str, _Part]) -> frozenset[str]:
        """The machine's states; their names and conditions are checked."""
        holder = part.part("states")
        for name in holder.table:
            path, at = (*holder.path, name), holder.table.key_at[name]
            if not isinstance(name, str) or not re.fullmatch(configfile.WORD, name):
                self.add(at, path, "is no name for a state", yamlfile.shown(name), configfile.WORD)
            elif name == "unknown":
                self.add(at, path, "the state unknown is the agent's own", "unknown", "another name")
            if words is not None:
                self._expression(holder.table[name], holder.table.value_at[name], path, signals)
        return frozenset(name for name in holder.table if isinstance(name, str))

    def _expression(self, text: str, at: Place, path: Path_, names: Iterable[str]) -> expression.Expression | None:
        try:
            return expression.parse(text, tuple(names))
        except expression.ExpressionError as error:
            self.add(at, path, f"{error.text} (at character {error.position + 1})", _shown((), text), None)
        return None

    def _refuse_circles(self, signals: dict[str, _Part]) -> None:
        """Formulas that use each other in a circle: told at each member that can reach itself."""
        uses: dict[str, tuple[str, ...]] = {}
        for name, signal in signals.items():
            formula = signal.table.get("formula")
            if isinstance(formula, str):
                try:
                    uses[name] = expression.parse(formula, tuple(signals)).names
                except expression.ExpressionError:
                    uses[name] = ()
        waiting = dict(uses)
        while ready := [name for name, used in waiting.items() if not any(other in waiting for other in used)]:
            for name in ready:
                del waiting[name]
        for name in waiting:
            if _reaches_itself(name, waiting):
                at = signals[name].table.value_at["formula"]
                self.add(
                    at,
                    (*signals[name].path, "formula"),
                    "formulas use each other in a circle",
                    _shown((), signals[name].table["formula"]),
                    "formulas that end at measured signals",
                )

    # signals

    def _signal_words(self, part: _Part, driver_keys: Iterable[str] | None) -> configfile.SignalFile | None:
        """A signal's common keys; driver_keys: the other keys that may stand here (None: not known, anything may)."""
        common = configfile.SignalFile.model_fields
        if driver_keys is not None:
            for key in part.table:
                if key not in common and key not in driver_keys:
                    known = {*common, *driver_keys}
                    self._unknown_key(part.table.key_at[key], (*part.path, key), key, known)
        own = _without(part.table, {key for key in part.table if key not in common})
        return self.checked(configfile.SignalFile, _Part(own, part.path, part.at))

    def _signal(self, name: str, part: _Part, scope: "_Scope") -> SignalConfig | None:
        source = self._source(part, scope)
        connection = self._signal_connection(part, scope) if source == "address" else None
        driver = self.drivers.get(self.kinds[connection]) if connection in self.kinds and connection else None
        keys: Iterable[str] | None = driver.Address.model_fields if driver else None
        if source != "address" and source is not None:
            keys = ()
            self._refuse_beside(part, source)
        words = self._signal_words(part, keys)
        point = self._point(part, scope, driver, connection) if driver and connection else None
        formula = part.table.get("formula")
        if source == "formula" and isinstance(formula, str) and words is not None:
            self._expression(formula, part.table.value_at["formula"], (*part.path, "formula"), scope.signals)
        if words is None or source is None:
            return None
        self._check_order(part, "valid", words.valid)
        loop = words.current_loop
        if loop is not None and loop.low == loop.high:
            at = part.place("current_loop", "high") or part.at
            self.add(
                at,
                (*part.path, "current_loop", "high"),
                "4 and 20 mA cannot mean the same value",
                f"{loop.high:g}",
                f"another value than {loop.low:g}",
            )
        every = words.every if words.every is not None else (scope.words.every if scope.words else 0)
        return SignalConfig(
            name=name,
            title=words.title or "",
            unit=words.unit or "",
            advice=self._advice(words.advice),
            scale=words.scale,
            offset=words.offset,
            current_loop=None if loop is None else CurrentLoop(loop.low, loop.high),
            valid_low=words.valid.low if words.valid else None,
            valid_high=words.valid.high if words.valid else None,
            every_us=every,
            every_written="every" in part.table or "every" in scope.part.table,
            connection=connection,
            point=point,
            formula=words.formula,
            column=(words.column or name) if source == "column" else None,
            map=dict(words.map or {}),
            norm=self._norm(part.part("norm"), words.norm or configfile.NormFile(), scope, every),
        )

    def _advice(self, written: Any) -> dict[str, str]:
        """By language; a text without one is in the agent's."""
        if isinstance(written, str):
            agent = self.root.get("agent")
            language = agent.get("language") if isinstance(agent, Table) else None
            return {language if language in ("en", "nl", "de") else "en": written}
        return dict(written or {})

    def _source(self, part: _Part, scope: "_Scope") -> str | None:
        """Where the signal's values come from, one of SOURCES; None (told) when that is not clear."""
        there = [key for key in SOURCES if part.table.get(key) is not None]
        if len(there) > 1:
            at = part.table.key_at[there[1]]
            self.add(
                at,
                (*part.path, there[1]),
                f"stands beside {there[0]}",
                _listed(there),
                f"exactly one of {_listed(SOURCES)}",
            )
            return None
        if there == ["column"] and not scope.recordings:
            at = part.table.key_at["column"]
            self.add(
                at,
                (*part.path, "column"),
                "stands only in a configuration for recordings",
                "connections beside it",
                "address or formula; or no connections at all",
            )
            return None
        if not there and scope.recordings:
            return "column"
        if not there:
            self.add(part.at, (*part.path, "address"), "the key is missing", None, f"exactly one of {_listed(SOURCES)}")
            return None
        return there[0]

    def _refuse_beside(self, part: _Part, source: str) -> None:
        """Keys that mean something for what a driver reads only, and would otherwise be ignored in silence."""
        beside = _IDLE_BESIDE.get(source, ())
        for key in beside:
            if key in part.table:
                at = part.table.key_at[key]
                self.add(at, (*part.path, key), f"has no meaning beside {source}", key, "only beside address")

    def _signal_connection(self, part: _Part, scope: "_Scope") -> str | None:
        for holder in (part, scope.part):
            name = holder.table.get("connection")
            if name is None:
                continue
            known = self.root.get("connections")
            names = list(known) if isinstance(known, Table) else []
            if isinstance(name, str) and name in names:
                self.used.add(name)
                return name
            at = holder.table.value_at["connection"]
            self.add(
                at,
                (*holder.path, "connection"),
                "there is no such connection",
                _shown((), name),
                _listed(names) or "none is defined",
                _near(name, names),
            )
            return None
        self.add(
            part.at, (*part.path, "connection"), "the key is missing", None, "a connection, here or at the machine"
        )
        return None

    def _point(self, part: _Part, scope: "_Scope", driver: Driver, connection: str) -> BaseModel | None:
        """The signal as its driver sees it: its own keys over those inherited from machine and connection."""
        common = configfile.SignalFile.model_fields
        table = Table(part.at)
        origins: dict[Any, Path_] = {}
        line = self.root["connections"][connection]
        holders = ((line, ("connections", connection)), (scope.part.table, scope.part.path))
        for key in driver.inherited & set(driver.Address.model_fields):
            for holder, path in holders:
                if key in holder:
                    table.take(holder, key)
                    origins[key] = (*path, key)
        for key in part.table:
            if key == "address" or (key not in common and key in driver.Address.model_fields):
                table.take(part.table, key)
                origins.pop(key, None)
        return self.checked(driver.Address, _Part(table, part.path, part.at, origins, part.table.value_at["address"]))

    def _check_order(self, part: _Part, key: str, sides: configfile.ValidFile | None) -> None:
        if sides and sides.low is not None and sides.high is not None and sides.low >= sides.high:
            at = part.place(key, "low") or part.at
            self.add(
                at, (*part.path, key, "low"), "low is not below high", f"{sides.low:g}", f"less than {sides.high:g}"
            )

    # norms

    def _norm(self, part: _Part, words: configfile.NormFile, scope: "_Scope", every: int) -> NormConfig:
        """The base norm and one whole norm for each state that changes it."""
        by_state: dict[str, NormConfig] = {}
        holder = part.part("by_state")
        for state, over in words.by_state.items():
            at, path = holder.table.key_at[state], (*holder.path, state)
            if state not in scope.states:
                allowed = _listed(sorted(scope.states)) or "none: the machine has no states"
                self.add(
                    at,
                    path,
                    "the machine has no such state",
                    yamlfile.shown(state),
                    allowed,
                    _near(state, scope.states),
                )
            by_state[state] = self._whole_norm((holder.part(state), part), _laid_over(words, over), every, {})
        return self._whole_norm((part,), words, every, by_state)

    def _whole_norm(
        self, layers: tuple[_Part, ...], words: configfile.StateNormFile, every: int, by_state: dict[str, NormConfig]
    ) -> NormConfig:
        """layers: the tables that say it, the strongest first; places are looked for in this order."""
        bands = {severity: self._band(layers, words, severity) for severity in ("warning", "alarm")}
        self._check_nesting(layers, bands["warning"], bands["alarm"])
        if words.stale is not None and words.stale < every:
            found = _first(layers, "stale")
            if found:
                self.add(
                    found[0],
                    found[1],
                    "is shorter than the poll period",
                    f"{words.stale / 1e6:g}s",
                    f"{every / 1e6:g}s or more",
                )
        return NormConfig(
            warning=bands["warning"],
            alarm=bands["alarm"],
            stale_us=words.stale,
            use_uncertain=words.use_uncertain,
            severity=words.severity,
            acknowledge=words.acknowledge,
            by_state=by_state,
        )

    def _band(self, layers: tuple[_Part, ...], words: configfile.StateNormFile, severity: str) -> BandConfig:
        band: configfile.BandFile = getattr(words, severity) or configfile.BandFile()
        low, high = band.low, band.high
        if low is not None and high is not None and low >= high and (found := _first(layers, severity, "low")):
            self.add(found[0], found[1], "low is not below high", f"{low:g}", f"less than {high:g}")
        return BandConfig(
            low=low,
            high=high,
            deadband=self._deadband(layers, severity, band, words),
            on_delay_us=_one(band.on_delay, words.on_delay, 0),
            off_delay_us=_one(band.off_delay, words.off_delay, 0),
        )

    def _deadband(
        self, layers: tuple[_Part, ...], severity: str, band: configfile.BandFile, words: configfile.StateNormFile
    ) -> float:
        """In the signal's unit. A percentage is of high - low; half the band or more would never let a warning return."""
        own = band.deadband is not None
        written = _one(band.deadband, words.deadband, configfile.Deadband(0.0, percent=False))
        found = _first(layers, severity, "deadband") if own else _first(layers, "deadband")
        whole = band.low is not None and band.high is not None
        said = f"{written.amount:g}%" if written.percent else f"{written.amount:g}"
        if not whole:
            has_side = band.low is not None or band.high is not None
            if written.percent and (has_side or own) and found:
                self.add(
                    found[0],
                    found[1],
                    f"a share of the {severity} band needs its low and its high",
                    said,
                    "a number in the signal's unit, or both sides",
                )
            return 0.0 if written.percent else written.amount
        width = float(band.high) - float(band.low) if band.low is not None and band.high is not None else math.inf
        amount = written.amount / 100.0 * width if written.percent else written.amount
        if width > 0 and amount * 2 >= width and found:
            self.add(
                found[0], found[1], f"is half the {severity} band or more", said, f"less than {width / 2:g}, or 50%"
            )
        return amount

    def _check_nesting(self, layers: tuple[_Part, ...], warning: BandConfig, alarm: BandConfig) -> None:
        """The alarm band contains the warning band, and something lies in both."""
        for side, outside, other in (
            ("low", lambda a, w: a > w, "less"),
            ("high", lambda a, w: a < w, "more"),
        ):
            a, w = getattr(alarm, side), getattr(warning, side)
            if a is not None and w is not None and outside(a, w):
                self._tell_nesting(layers, side, a, w, other)
        if _crossed(alarm.low, warning.high) and (found := _first(layers, "alarm", "low")):
            self.add(
                found[0],
                found[1],
                "alarm low is not below warning high",
                f"{alarm.low:g}",
                f"less than {warning.high:g}",
            )
        if _crossed(warning.low, alarm.high) and (found := _first(layers, "alarm", "high")):
            self.add(
                found[0],
                found[1],
                "alarm high is not above warning low",
                f"{alarm.high:g}",
                f"more than {warning.low:g}",
            )

    def _tell_nesting(self, layers: tuple[_Part, ...], side: str, alarm: float, warning: float, other: str) -> None:
        """Told at the alarm's limit, or at the warning's when only that is said by the strongest layer."""
        first = layers[:1]
        if not _first(first, "alarm", side) and (found := _first(first, "warning", side)):
            self.add(
                found[0],
                found[1],
                "the alarm band does not contain the warning band",
                f"{warning:g}",
                f"within alarm {side} {alarm:g}",
            )
        elif found := _first(layers, "alarm", side):
            self.add(
                found[0],
                found[1],
                "the alarm band does not contain the warning band",
                f"{alarm:g}",
                f"{warning:g} or {other}",
            )


@dataclass(frozen=True, slots=True)
class _Scope:
    """The machine around a signal."""

    part: _Part
    words: configfile.MachineFile | None
    signals: tuple[str, ...]
    states: frozenset[str]
    recordings: bool


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _without(table: Table, keys: Iterable[Any]) -> Table:
    left_out = set(keys)
    result = Table(table.at)
    for key in table:
        if key not in left_out:
            result.take(table, key)
    return result


def _first(layers: tuple[_Part, ...], *keys: str) -> tuple[Place, Path_] | None:
    """Place and path of the value in the strongest layer that says it."""
    for layer in layers:
        if place := layer.place(*keys):
            return place, (*layer.path, *keys)
    return None


def _one(*values: Any) -> Any:
    """The first that is said."""
    return next(value for value in values if value is not None)


def _crossed(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low >= high


def _laid_over(base: configfile.StateNormFile, over: configfile.StateNormFile) -> configfile.StateNormFile:
    """A state's norm over the base norm, key by key, bands too."""
    said: dict[str, Any] = {key: getattr(over, key) for key in over.model_fields_set}
    for severity in ("warning", "alarm"):
        below, above = getattr(base, severity), said.get(severity)
        if below is not None and above is not None:
            said[severity] = below.model_copy(update={key: getattr(above, key) for key in above.model_fields_set})
    return base.model_copy(update=said)


def _reaches_itself(name: str, uses: Mapping[str, Sequence[str]]) -> bool:
    seen: set[str] = set()
    waiting = list(uses.get(name, ()))
    while waiting:
        one = waiting.pop()
        if one == name:
            return True
        if one not in seen:
            seen.add(one)
            waiting += uses.get(one, ())
    return False


def _is_timezone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
