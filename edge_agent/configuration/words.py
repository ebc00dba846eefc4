"""The words of the configuration file: one pydantic model for each part, with every key of the contract.

Rule 1: a model says what a value may be and its default; what parts mean together is decided beside this file.
Rule 2: a key that is not built yet stands here too, marked `later`: it is refused in words and never silently ignored.
Rule 3: an error names what is allowed (`refused`), since a person reads it beside the line.
"""

import difflib
import ipaddress
import math
import re
import zoneinfo
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from edge_agent.contract import Duration, WrongKey, duration_us

NAME = r"[A-Za-z0-9_-]{1,64}"
"""Machines and connections (contract §6)."""
WORD = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
"""Signals, states and groups (contract §6): expressions use them."""
SECRET_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"  # noqa: S105  # a pattern, not a secret
FORMS = {
    NAME: "letters, digits, - and _, 64 at most",
    WORD: "letters, digits and _, no digit first, 64 at most",
    SECRET_NAME: "letters, digits, - _ and ., 64 at most",
}
"""The same in words."""
RESERVED_MACHINES = frozenset({"agent", "status", "health", "gaps", "command"})
TEXT_MAX = 1000
TOPIC_BYTES_MAX = 1024
"""Bytes of the topic root; MQTT itself ends at 65,535 for a whole topic."""

UNITS_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = r"[0-9]{1,9}(\.[0-9]{1,6})?(kB|MB|GB|TB)"
PERCENT = r"[0-9]{1,3}(\.[0-9]{1,6})? ?%"


def refused(text: str, allowed: str, near: str | None = None) -> PydanticCustomError:
    """An error with words: what is wrong, what to write instead, and what was probably meant."""
    return PydanticCustomError("refused", "{text}", {"text": text, "allowed": allowed, "near": near})


# --- kinds of values ---


Period = Annotated[int, Duration("10ms", "1d")]
Delay = Annotated[int, Duration("0s", "30d")]
Batch = Annotated[int, Duration("0s", "1h")]
Stale = Annotated[int, Duration("100ms", "30d")]
Commit = Annotated[int, Duration("10ms", "1min")]
Age = Annotated[int, Duration("1min", "36500d")]


def _size(value: Any, least: str = "1MB") -> int:
    form = f"{least} to 100TB, written like 500MB or 2GB (GB = 10^9)"
    if not isinstance(value, str) or not re.fullmatch(SIZE, value):
        raise refused("is no size", form)
    number = value.rstrip("kMGTB")
    size = round(float(number) * UNITS_BYTES[value[len(number) :]])
    if not 10**6 <= size <= 100 * 10**12:
        raise refused("the size is out of range", form)
    return size


Size = Annotated[int, BeforeValidator(_size), WithJsonSchema({"type": "string", "pattern": f"^{SIZE}$"})]


def _history_size(value: Any) -> int:
    size = _size(value, HISTORY_LEAST)
    if size < HISTORY_MIN:
        raise refused("the size is out of range", f"{HISTORY_LEAST} to 100TB, written like 500MB or 2GB (GB = 10^9)")
    return size


def _export_to(value: Any) -> str:
    text = _text(value)
    if re.match(r"[a-z0-9+]+://[^/]*:[^/]*@", text):
        raise refused(
            "a password cannot stand here", "s3://bucket/folder; credentials as fsspec takes them (environment)"
        )
    return text


ExportTo = Annotated[str, BeforeValidator(_export_to)]
HISTORY_MIN, HISTORY_LEAST = 10 * 10**6, "10MB"
"""bytes: less holds no hour of a plant."""
HistorySize = Annotated[int, BeforeValidator(_history_size), WithJsonSchema({"type": "string", "pattern": f"^{SIZE}$"})]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused("is no number", "a number")
    if not math.isfinite(value):
        raise refused("is no finite number", "a finite number; leave the key out where there is no limit")
    return float(value)


def _scale(value: Any) -> float:
    if (number := _number(value)) == 0:
        raise refused("a scale of 0 would make every value the same", "any number but 0")
    return number


Number = Annotated[float, BeforeValidator(_number), WithJsonSchema({"type": "number"})]
Scale = Annotated[float, BeforeValidator(_scale), WithJsonSchema({"type": "number", "not": {"const": 0}})]


@dataclass(frozen=True, slots=True)
class Deadband:
    """amount: in the signal's unit, or in per cent of a band."""

    amount: float
    percent: bool

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.percent else f"{self.amount:g}"


def _deadband(value: Any) -> Deadband:
    form = "a number of 0 or more in the signal's unit, or a share of the band such as 2%"
    percent = isinstance(value, str) and re.fullmatch(PERCENT, value)
    if percent:
        return Deadband(float(value.rstrip(" %")), percent=True)
    if isinstance(value, str):
        raise refused("is no deadband", form)
    number = _number(value)
    if number < 0:
        raise refused("a deadband cannot be negative", form)
    return Deadband(number, percent=False)


DeadbandValue = Annotated[
    Deadband,
    BeforeValidator(_deadband),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": f"^{PERCENT}$"}]}),
]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise refused("is no text", "a text; in quotes when it looks like a number")
    if not value.strip() or len(value) > TEXT_MAX or "\0" in value:
        raise refused("is no usable text", f"1 to {TEXT_MAX} characters")
    return value


Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": TEXT_MAX})]


def _line(value: Any) -> str:
    text = _text(value)
    if not text.isprintable():
        raise refused("has a character that cannot be printed", "one line of text")
    return text


Line = Annotated[str, BeforeValidator(_line), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": TEXT_MAX})]


def _matches(pattern: str, what: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise refused(f"is no {what}", f"{FORMS[pattern]}; in quotes when it looks like a number")
        if not re.fullmatch(pattern, value):
            raise refused(f"is no {what}", FORMS[pattern])
        return value

    return BeforeValidator(check)


Id = Annotated[str, _matches(NAME, "id"), WithJsonSchema({"type": "string", "pattern": f"^{NAME}$"})]
SecretName = Annotated[
    str, _matches(SECRET_NAME, "name of a secret"), WithJsonSchema({"type": "string", "pattern": f"^{SECRET_NAME}$"})
]


def _topic_fault(value: str) -> str | None:
    """What makes this text unfit for a topic, if anything (MQTT 5, 4.7)."""
    if any(char in value for char in "+#\0") or any(ord(char) < 32 for char in value):
        return "+, # and control characters cannot stand in a topic"
    if "" in value.split("/"):
        return "a level of the topic is empty"
    if value.startswith("$"):
        return "topics that begin with $ belong to the broker"
    return "is too long for a topic" if len(value.encode()) > TOPIC_BYTES_MAX else None


def _site(value: Any) -> str:
    form = "levels such as enschede/hall-2, without + # { }"
    text = _text(value)
    if fault := _topic_fault(text):
        raise refused(fault, form)
    if "{" in text or "}" in text:
        raise refused("braces cannot stand in a site", form)
    return text


def _root(value: Any) -> str:
    form = "levels such as edge/{site}/{agent}, without + #; {site} and {agent} are put in"
    text = _text(value)
    plain = text.replace("{site}", "site").replace("{agent}", "agent")
    if fault := _topic_fault(plain):
        raise refused(fault, form)
    if "{" in plain or "}" in plain:
        raise refused("only {site} and {agent} are known in braces", form)
    return text


def _further_url(value: Any) -> str:
    if isinstance(value, str) and value.startswith("embedded:"):
        raise refused("the broker inside the agent cannot be a further one", "mqtt://HOST[:PORT], mqtts://HOST[:PORT]")
    return _broker_url(value)


def _broker_url(value: Any) -> str:
    form = "mqtt://HOST[:PORT], mqtts://HOST[:PORT] or embedded:"
    text = _text(value)
    if re.fullmatch(r"embedded:([0-9]{1,5})?", text):
        if text[9:] and int(text[9:]) > 65535:
            raise refused("no such port", "0 to 65535")
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise refused("is no address of a broker", form) from error
    if parts.username is not None or parts.password is not None:
        raise refused("user and password do not stand in the url", "username: and password: {secret: NAME}")
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or re.search(r"\s", text):
        raise refused("is no address of a broker", form)
    if parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise refused("is no address of a broker", form)
    return text


def _timezone(value: Any) -> str:
    name = _text(value)
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, zoneinfo.available_timezones(), 1)
        raise refused("is no known time zone", "an IANA name such as Europe/Amsterdam", *near) from None
    return name


def _listen(value: Any) -> str:
    form = "HOST:PORT on loopback, such as 127.0.0.1:8080 (port 0: a free one); null: no page"
    if not isinstance(value, str):
        raise refused("is no address to listen on", form)
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):([0-9]{1,5})", value)
    if not found or int(found[2]) > 65535:
        raise refused("is no address to listen on", form)
    host = found[1].strip("[]")
    if not _is_loopback(host):
        raise refused("another address than loopback needs users, which are not available yet", form)
    return value


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _version(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text not in ("auto", "5", "3.1.1"):
        raise refused("is no version of MQTT", "auto, 5 or 3.1.1")
    return str(text)


def _no_plain_secret(value: Any) -> Any:
    if not isinstance(value, dict | SecretRef):
        raise refused("a password is never written in plain", "{secret: NAME}")
    return value


def _advice(value: Any) -> Any:
    if isinstance(value, dict):
        for language, text in value.items():
            if language not in ("en", "nl", "de"):
                raise WrongKey(language, "is no language of the agent; allowed: a text, or texts for en, nl and de")
            _text(text)
        return value
    return _text(value)


def _enumeration(value: Any) -> Any:
    form = "whole numbers with their names, such as {0: stopped, 1: running}"
    if not isinstance(value, dict) or not value:
        raise refused("is no enumeration", form)
    found: dict[int, str] = {}
    for key, text in value.items():
        # A JSON file has no other keys than texts.
        number = int(key) if isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,19}", key) else key
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(text, str) or number in found:
            raise refused("is no enumeration", form)
        found[number] = text
    return found


Site = Annotated[str, BeforeValidator(_site), WithJsonSchema({"type": "string"})]
Root = Annotated[str, BeforeValidator(_root), WithJsonSchema({"type": "string"})]
BrokerUrl = Annotated[str, BeforeValidator(_broker_url), WithJsonSchema({"type": "string"})]
FurtherUrl = Annotated[str, BeforeValidator(_further_url), WithJsonSchema({"type": "string"})]
Timezone = Annotated[str, BeforeValidator(_timezone), WithJsonSchema({"type": "string"})]
Listen = Annotated[str, BeforeValidator(_listen), WithJsonSchema({"type": "string"})]
Version = Annotated[str, BeforeValidator(_version), WithJsonSchema({"enum": ["auto", "5", "3.1.1", 5]})]
Language = Literal["en", "nl", "de"]
Advice = Annotated[
    Any,
    BeforeValidator(_advice),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {language: {"type": "string"} for language in ("en", "nl", "de")},
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Enumeration = Annotated[
    Any,
    BeforeValidator(_enumeration),
    WithJsonSchema(
        {"type": "object", "patternProperties": {"^-?[0-9]+$": {"type": "string"}}, "additionalProperties": False}
    ),
]


def spoken(default: str, description: str) -> Any:
    """A field whose default is a duration, shown in the schema as it is written."""
    return Field(default=duration_us(default), description=description, json_schema_extra={"default": default})


def defaults(model: type[BaseModel], description: str) -> Any:
    """A field that holds a part of the file; left out, it is the part with all its defaults."""
    return Field(default_factory=lambda: model.model_validate({}), description=description)


def later(default: Any, description: str, *, off: tuple[Any, ...] = (None, False)) -> Any:
    """A field that a later version brings. off: the values that ask for nothing and are accepted."""
    extra: dict[str, Any] = {"x-off": [*off]}
    return Field(default=default, description=f"{description} (not available yet)", json_schema_extra=extra)


# --- the parts of the file ---


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class SecretRef(_Part):
    """The name of a secret: $CREDENTIALS_DIRECTORY/NAME, EDGE_AGENT_SECRET_NAME or data_dir/secrets/NAME (0600)."""

    secret: SecretName = Field(description="the secret's name; its value never stands in this file")


Secret = Annotated[SecretRef, BeforeValidator(_no_plain_secret)]


def _key_file(value: Any) -> Any:
    return value if isinstance(value, dict | SecretRef) else _text(value)


KeyFile = Annotated[
    SecretRef | str,
    BeforeValidator(_key_file),
]


class AgentFile(_Part):
    """Who this agent is."""

    id: Id = Field(description="the MQTT client id and the Sparkplug edge node id")
    site: Site = Field("site", description="ISA-95 style path, used in topics")
    language: Language = Field("en", description="language of warnings, web page and notifications")
    timezone: Timezone = Field("UTC", description="IANA name, for people; on the wire all time is UTC")
    data_dir: Text | None = Field(
        None,
        description="the store, the history and the certificates live here; default: the service's state directory, "
        "else ./data beside this file",
    )


class TlsFile(_Part):
    """Certificates for the broker."""

    ca: Text | None = Field(None, description="file of the authorities to trust; default: those of the system")
    cert: Text | None = Field(None, description="file of the agent's own certificate")
    key: KeyFile | None = Field(None, description="{secret: NAME}, or a file")


class SparkplugFile(_Part):
    """Sparkplug B edge node."""

    group: Text = Field(description="Sparkplug group id")
    primary_host: Text | None = Field(None, description="host application to wait for")


class HeartbeatFile(_Part):
    """Report by exception."""

    heartbeat: Period = spoken("60s", "a value is sent at least so often")


class PublishFile(_Part):
    """What is published."""

    on_change: HeartbeatFile | None = Field(None, description="report by exception")


class MqttFile(_Part):
    """The broker that readings and warnings go to."""

    url: BrokerUrl = Field(
        description="mqtt://HOST[:PORT], mqtts://HOST[:PORT], or embedded: for a broker inside the agent"
    )
    version: Version = Field("auto", description="auto tries 5, falls back to 3.1.1 and says so")
    username: Text | None = Field(None, description="user at the broker")
    password: Secret | None = Field(None, description="{secret: NAME}; never printed")
    tls: TlsFile | None = Field(None, description="certificates for mqtts://")
    urls: list[FurtherUrl] = Field([], description="further brokers, tried in order")
    root: Root = Field("edge/{site}/{agent}", description="the topic root")
    publish: Literal["all"] | PublishFile = later("all", "all | {on_change: {heartbeat: 60s}}", off=("all",))
    commands: bool = later(False, "true: acknowledge, shelve … by MQTT", off=(False,))
    format: list[Literal["json", "sparkplug"]] = later(["json"], "json and / or sparkplug", off=(["json"],))
    sparkplug: SparkplugFile | None = later(None, "settings of the format sparkplug")
    batch: Batch = Field(
        0,
        description="0s: a message for each poll; 10s: readings gathered into one message (not available yet)",
        json_schema_extra={"default": "0s", "x-off": ["0s", "0ms", "0min", "0h", "0d"]},
    )


class BufferFile(_Part):
    """Readings and warnings kept for a broker that is away; the oldest readings go first, warnings last."""

    max_size: Size = Field(2 * 10**9, description="bytes at most", json_schema_extra={"default": "2GB"})
    max_age: Age = spoken("14d", "the oldest kept")


class HistoryFile(_Part):
    """The agent's own history."""

    keep: Age = Field(
        duration_us("400d"),
        description="how long; the oldest go first",
        json_schema_extra={"default": "400d"},
    )
    max_size: HistorySize = Field(
        10 * 10**9,
        description="bytes of history.db at most, 10MB or more; when they are taken, the oldest go before they are that old",
        json_schema_extra={"default": "10GB"},
    )
    export: ExportTo | None = Field(
        None,
        description="a folder (relative to this file) or a URL for fsspec, to which each day goes as Parquet after midnight UTC; "
        "needs the extra lake",
    )


class StoreFile(_Part):
    """What is kept on disk."""

    buffer: BufferFile = defaults(BufferFile, "for a broker that is away")
    history: HistoryFile = defaults(HistoryFile, "the agent's own history")
    commit_every: Commit = spoken("1s", "the most that a power cut can cost")


class WebTlsFile(_Part):
    """Certificates of the page."""

    cert: Text = Field(description="file of the certificate")
    key: KeyFile = Field(description="{secret: NAME}, or a file")


class UserFile(_Part):
    """A user of the page."""

    password_hash: Text = Field(description="made by edge-agent user add; a plain password is refused")
    role: Literal["viewer", "operator", "engineer"] = Field("viewer", description="what the user may do")


class WebFile(_Part):
    """The page."""

    listen: Listen = Field(
        "127.0.0.1:8080", description="address and port; another address than loopback needs users; port 0: a free one"
    )
    tls: WebTlsFile | None = later(None, "certificates of the page")
    users: dict[str, UserFile] | None = later(None, "who may use the page", off=(None, False, {}))


class EscalateFile(_Part):
    """Who hears when nobody acknowledges."""

    after: Delay = Field(description="how long to wait")
    to: Text = Field(description="another route")


class RouteFile(_Part):
    """Who hears of what, and how."""

    to: list[SecretRef | str] = Field(description="Apprise URLs, or {secret: NAME}")
    severity: Literal["warning", "alarm"] = Field("warning", description="from this severity on")
    machines: list[str] | None = Field(None, description="names or patterns; default: all")
    hours: Text | None = Field(None, description='such as "Mo-Fr 06:00-22:00"')
    language: Language | None = Field(None, description="of the messages")
    repeat: Delay | None = Field(None, description="say it again after so long")
    escalate: EscalateFile | None = Field(None, description="when nobody acknowledges")


class NotifyFile(_Part):
    """Who is told."""

    heartbeat: Text | None = later(None, "a URL called every minute while all is well", off=(None,))
    routes: dict[str, RouteFile] | None = later(None, "who hears of what, and how (any Apprise URL)", off=(None, {}))


class WarningsFile(_Part):
    """The handling of warnings."""

    max_shelve: Delay = Field(
        duration_us("8h"),
        description="the longest time to shelve (another value is not available yet)",
        json_schema_extra={"default": "8h", "x-off": ["8h"]},
    )


class ConnectionFile(BaseModel):
    """A line to a device; the other keys are those of its driver."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    driver: Text = Field(description="the kind of device")


class BandFile(_Part):
    """The norm band of one severity; either side may be left out."""

    low: Number | None = Field(None, description="below is a deviation; none where left out")
    high: Number | None = Field(None, description="above is a deviation; none where left out")
    deadband: DeadbandValue | None = Field(None, description="overrides the norm's")
    on_delay: Delay | None = Field(None, description="overrides the norm's")
    off_delay: Delay | None = Field(None, description="overrides the norm's")


class DriftFile(_Part):
    """A small lasting shift."""

    method: Literal["ewma", "cusum"] = Field("cusum", description="ewma | cusum")


class ForecastFile(_Part):
    """The trend will leave the alarm band."""

    horizon: Delay = spoken("14d", "within this time")


class LearnedFile(_Part):
    """A robust band learned in a teach-in."""

    k: Number = Field(6.0, description="half-width in robust standard deviations")


class StateNormFile(_Part):
    """A norm: the range in which a signal's values are normal. Further keys are those of the detectors."""

    model_config = ConfigDict(extra="allow")
    warning: BandFile | None = Field(None, description="the band whose leaving gives a warning")
    alarm: BandFile | None = Field(
        None, description="the band whose leaving gives an alarm; it contains the warning band"
    )
    deadband: DeadbandValue | None = Field(
        None, description="in the signal's unit, or a share of the band such as 2%; only for the way back"
    )
    on_delay: Delay | None = Field(
        None, description="raise after so long outside; default 0s", json_schema_extra={"default": "0s"}
    )
    off_delay: Delay | None = Field(
        None, description="clear after so long back; default 0s", json_schema_extra={"default": "0s"}
    )
    latch: bool = later(False, "true: the warning stays until it is reset", off=(False, None))
    stale: Stale | None = Field(None, description="no good reading for so long; default max(3 × every, 10s)")
    drift: DriftFile | bool | None = later(None, "small lasting shift against the learned baseline")
    forecast: ForecastFile | bool | None = later(
        None, "warn when the trend will leave the alarm band within the horizon"
    )
    learned: LearnedFile | bool | None = later(None, "robust band learned in a teach-in; true = defaults")
    adaptive: bool | None = later(None, "a slow baseline that freezes while the signal is suspicious")
    residual: bool | None = later(None, "against what the machine's other signals predict")
    spike: bool | None = later(None, "mark single outliers")
    noise: bool | None = later(None, "variance gone or grown")
    use_uncertain: bool = Field(False, description="judge readings of quality uncertain too")
    severity: Literal["warning", "alarm"] = Field("warning", description="of the kinds without two levels")
    acknowledge: Literal["auto", "required"] = Field(
        "auto", description="auto: back to normal ends it; required: it stays until somebody acknowledges"
    )


class NormFile(StateNormFile):
    """A norm, which may differ by operating state."""

    by_state: dict[str, StateNormFile] = Field(
        {}, description="laid over the norm, key by key, while the machine is in this state"
    )


class ValidFile(_Part):
    """Outside, a reading is bad (sensor failure), not a deviation."""

    low: Number | None = Field(None, description="lowest possible value")
    high: Number | None = Field(None, description="highest possible value")


class CurrentLoopFile(_Part):
    """4-20 mA with NAMUR NE 43 failure limits; raw * scale + offset = mA."""

    low: Number = Field(description="value at 4 mA")
    high: Number = Field(description="value at 20 mA")


class ManualFile(_Part):
    """What only a person can see."""

    every: Delay = Field(description="due so often")


class WaveformFile(_Part):
    """A vibration record, reduced to features."""

    address: Text = Field(description="where the record is read")
    rate: Number = Field(description="samples per second")
    features: list[Text] = Field(description="such as velocity_rms, kurtosis")


class SignalFile(_Part):
    """A signal: one measured quantity. Exactly one of address, formula, manual, waveform or column."""

    title: Line | None = Field(None, description="for people; default: the name")
    address: Text | None = Field(None, description="where the driver reads it")
    formula: Text | None = Field(
        None,
        description="computed from the machine's other signals: + - * / ** %, comparisons, and or not, "
        "abs min max sqrt log exp",
    )
    column: Text | None = Field(None, description="the recording's column; default: the signal's name")
    manual: ManualFile | None = later(None, "entered by a person on the page")
    waveform: WaveformFile | None = later(None, "a vibration record, reduced to features")
    connection: Text | None = Field(None, description="default: the machine's")
    every: Period | None = Field(None, description="poll period; default: the machine's")
    scale: Scale = Field(1.0, description="value = raw * scale + offset")
    offset: Number = Field(0.0, description="value = raw * scale + offset")
    current_loop: CurrentLoopFile | None = Field(None, description="4-20 mA with NAMUR NE 43 failure limits")
    unit: Line | None = Field(None, description="engineering unit")
    map: Enumeration | None = Field(None, description="names of values: {0: stopped, 1: running}")
    valid: ValidFile | None = Field(None, description="outside: the reading is bad (sensor failure), not a deviation")
    norm: NormFile | None = Field(None, description="the range in which values are normal")
    advice: Advice | None = Field(None, description="what to do, as one text or one for each language")


class GroupFile(_Part):
    """The combination leaves the norm although each value is inside."""

    signals: list[str] = Field(description="members")
    method: Literal["t2"] = Field("t2", description="Hotelling's T²")


class StateFile(_Part):
    """An operating state, with hysteresis when it has an `until`."""

    when: Text = Field(description="the condition that begins it")
    until: Text | None = Field(
        None,
        description="the condition that ends it, between the two it stays as it was; default: as long as `when` is true",
    )


def _state(value: Any) -> Any:
    if isinstance(value, str):
        return {"when": value}
    if not isinstance(value, dict):
        raise refused("is no condition", "such as speed > 50, or {when: speed > 50, until: speed < 45}")
    return value


State = Annotated[StateFile, BeforeValidator(_state)]


class TypeFile(_Part):
    """Written once, used by many machines."""

    title: Line | None = Field(None, description="for people; default: the name")
    area: Line | None = Field(None, description="for grouping on the page")
    connection: Text | None = Field(None, description="default for its signals")
    every: Period = spoken("1s", "default poll period")
    states: dict[str, State] = Field(
        {}, description="operating states, first match wins: name and condition, or {when: …, until: …}"
    )
    settle: Delay = spoken("0s", "after a change of state no warning is raised for so long")
    signals: dict[str, SignalFile] = Field({}, description="the machine's signals by name")
    groups: dict[str, GroupFile] | None = later(None, "multivariate groups", off=(None, {}))


class MachineFile(TypeFile):
    """A machine. Inherited keys of its driver (such as the Modbus unit) may stand here too."""

    type: Text | None = Field(None, description="name of a type, over which this machine is laid key by key")


class File(_Part):
    """The configuration of edge-agent."""

    agent: AgentFile = Field(description="who this agent is")
    mqtt: MqttFile = Field(description="the broker; not needed for recordings")
    store: StoreFile = defaults(StoreFile, "what is kept on disk")
    web: WebFile | None = defaults(WebFile, "the page; null: none")
    notify: NotifyFile = defaults(NotifyFile, "who is told")
    warnings: WarningsFile = defaults(WarningsFile, "the handling of warnings")
    connections: dict[str, ConnectionFile] = Field(description="lines to devices by name; not needed for recordings")
    types: dict[str, TypeFile] = Field({}, description="written once, used by many machines")
    machines: dict[str, MachineFile] = Field(description="machines by name")
    include: list[str] = Field([], description="patterns of further files, relative to this one")


NO_BAND = BandFile.model_validate({})
NO_NORM = NormFile.model_validate({})
"""What holds where the file says none."""
