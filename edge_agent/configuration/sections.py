"""All sections of the file, from the words to the whole configuration."""

import os
from pathlib import Path
from types import NoneType
from urllib.parse import urlsplit

from edge_agent import plugins
from edge_agent.configuration import machines, words
from edge_agent.configuration.lines import Lines
from edge_agent.configuration.nouns import (
    AgentConfig,
    Config,
    MqttConfig,
    SecretRef,
    StoreConfig,
    TlsConfig,
    WebConfig,
)
from edge_agent.configuration.report import MISSING, Model, Part, Report, Spot
from edge_agent.configuration.signals import Made
from edge_agent.yamlfile import Place, Table, shown_under

STATE_DIRECTORY = "STATE_DIRECTORY"
"""Where systemd says which folder is the service's own."""


def resolved(report: Report, root: Table, registry: plugins.Plugins) -> Config | None:
    """The whole configuration; None, with its faults noted, when it cannot be made."""
    top = Part(root, (), Place(root.at.file, 1, 1))
    for key in root:
        if key not in words.File.model_fields:
            report.unknown_key(top.key(key), words.File.model_fields)
    agent = _agent(report, top)
    store = _checked(report, words.StoreFile, top, "store")
    web = _web(report, top)
    _checked(report, words.NotifyFile, top, "notify")
    _checked(report, words.WarningsFile, top, "warnings")
    lines = Lines(report, _section(report, top, "connections"), registry)
    types = _section(report, top, "types")
    detectors = registry.detectors()
    machines.check_types(report, types, lines, detectors)
    holder = _section(report, top, "machines") if "machines" in root else None
    parts = machines.merged(report, holder, types) if holder else {}
    to_run = "mqtt" in root and "connections" in root
    recordings = not lines.names and not to_run and machines.are_for_recordings(parts)
    for key, about in _required(recordings=recordings):
        if key not in root:
            report.add(top.missing(key), MISSING, None, about)
    if not recordings and not lines.names and isinstance(top.table.get("connections", ""), Table | NoneType):
        report.add(top.key("connections"), "there is no connection", "nothing", "one connection or more")
    mqtt = _mqtt(report, top, agent) if "mqtt" in root else None
    language = agent.language if agent else "en"
    made: Made = {}
    found = {
        name: machines.resolved(report, name, part, lines, language, made, detectors, recordings=recordings)
        for name, part in parts.items()
    }
    lines.note_unused()
    if report.problems or agent is None or store is None:
        return None
    return Config(
        agent=agent,
        mqtt=mqtt,
        store=StoreConfig(
            store.buffer.max_size,
            store.buffer.max_age,
            store.commit_every,
            store.history.keep,
            store.history.max_size,
            _export(top.part("store").part("history"), store.history.export),
        ),
        web=web,
        connections=lines.found,
        machines={name: machine for name, machine in found.items() if machine is not None},
    )


def _required(*, recordings: bool) -> list[tuple[str, str]]:
    always = [("agent", "agent.id, the name of this agent"), ("machines", "machines by name")]
    return always if recordings else [*always, ("mqtt", "mqtt.url, the broker"), ("connections", "lines by name")]


def _section(report: Report, top: Part, key: str) -> Part | None:
    """A section of the file, empty when nothing is written under its key; None (told) when it is no mapping."""
    value = top.table.get(key)
    if value is not None and not isinstance(value, Table):
        report.add(top.value(key), "is no mapping", shown_under((key,), value), "keys with values")
        return None
    return top.part(key)


def _checked(report: Report, model: type[Model], top: Part, key: str) -> Model | None:
    part = _section(report, top, key)
    return report.checked(model, part) if part else None


def _agent(report: Report, top: Part) -> AgentConfig | None:
    about = _checked(report, words.AgentFile, top, "agent") if "agent" in top.table else None
    if about is None:
        return None
    part = top.part("agent")
    return AgentConfig(about.id, about.site, about.language, about.timezone, _data_dir(part, about.data_dir))


def _data_dir(part: Part, written: str | None) -> Path:
    if written is not None:
        return _path(part.value("data_dir"), written)
    if service := os.environ.get(STATE_DIRECTORY, "").split(":")[0]:
        return Path(service).absolute()
    return _path(part.spot, "data")


def _path(spot: Spot | None, written: str) -> Path:
    """A path relative to the file in which it stands."""
    folder = Path(spot.place.file).absolute().parent if spot else Path.cwd()
    return Path(os.path.normpath(folder / written))


def _export(part: Part, written: str | None) -> str | None:
    return written if written is None or "://" in written else str(_path(part.value("export"), written))


def _web(report: Report, top: Part) -> WebConfig | None:
    if "web" in top.table and top.table["web"] is None:
        return None
    about = _checked(report, words.WebFile, top, "web")
    if about is None:
        return None
    host, _, port = about.listen.rpartition(":")
    return WebConfig(host.strip("[]"), int(port))


def _mqtt(report: Report, top: Part, agent: AgentConfig | None) -> MqttConfig | None:
    about = _checked(report, words.MqttFile, top, "mqtt")
    if about is None:
        return None
    site, name = (agent.site, agent.id) if agent else ("site", "agent")
    return MqttConfig(
        url=about.url,
        version=about.version,
        username=about.username,
        password=SecretRef(about.password.secret) if about.password else None,
        tls=_tls(report, top.part("mqtt").part("tls"), about),
        urls=tuple(about.urls),
        root=about.root.replace("{site}", site).replace("{agent}", name),
    )


def _tls(report: Report, part: Part, mqtt: words.MqttFile) -> TlsConfig | None:
    about = mqtt.tls
    if about is None:
        return None
    if not any(urlsplit(url).scheme == "mqtts" for url in (mqtt.url, *mqtt.urls)):
        report.add(part.spot, "has no effect without a url that begins with mqtts://", mqtt.url, "mqtts://HOST[:PORT]")
    if (about.cert is None) != (about.key is None):
        lacks, has = ("cert", "key") if about.cert is None else ("key", "cert")
        report.add(part.missing(lacks), MISSING, None, f"{lacks}, which belongs to {has}")

    def path(key: str, written: str | None) -> Path | None:
        return None if written is None else _path(part.value(key), written)

    own = about.key
    key = SecretRef(own.secret) if isinstance(own, words.SecretRef) else path("key", own)
    return TlsConfig(path("ca", about.ca), path("cert", about.cert), key)
