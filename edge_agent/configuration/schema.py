"""The JSON Schema of the file, with the keys of the drivers that are installed: editors complete and check with it.

Rule: no section is required here, since a file may be one that another includes; `check` knows what the whole needs.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from edge_agent.configuration import words
from edge_agent.contract import Detector, Driver

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
NAMES = {
    "File": {"connections": words.NAME, "types": words.NAME, "machines": words.NAME},
    "TypeFile": {"signals": words.WORD, "states": words.WORD, "groups": words.WORD},
    "MachineFile": {"signals": words.WORD, "states": words.WORD, "groups": words.WORD},
}
"""Where keys are names that the user gives, and their form."""


def json_schema(drivers: Mapping[str, Driver], detectors: Mapping[str, Detector]) -> Schema:
    """The schema (draft 2020-12). drivers: by kind; their keys stand at connections, machines and signals.

    detectors: by the key in a norm under which their settings stand.
    """
    schema = words.File.model_json_schema()
    parts: dict[str, Schema] = schema["$defs"]
    parts["ConnectionFile"] = {"oneOf": [{"$ref": f"#/$defs/{kind}.Connection"} for kind in drivers]}
    for kind, driver in drivers.items():
        parts.update(_connection(kind, driver))
    addresses = {kind: _address(parts, kind, driver) for kind, driver in drivers.items()}
    _add(parts["SignalFile"], addresses, lambda key: key == "address" or key not in words.SignalFile.model_fields)
    inherited = {
        kind: {key: value for key, value in addresses[kind].items() if key in driver.inherited}
        for kind, driver in drivers.items()
    }
    for machine in ("TypeFile", "MachineFile"):
        _add(parts[machine], inherited, lambda _key: True)
    for norm in ("NormFile", "StateNormFile"):
        for key, detector in detectors.items():
            if detector.Settings is not None:
                parts[norm]["properties"][key] = _rule(parts, key, detector.Settings)
        parts[norm]["additionalProperties"] = False
    for machine in ("TypeFile", "MachineFile"):
        states = parts[machine]["properties"]["states"]
        states["additionalProperties"] = {"anyOf": [{"type": "string"}, states["additionalProperties"]]}
    for name, keys in NAMES.items():
        for key, pattern in keys.items():
            _name_keys(parts.get(name, schema)["properties"][key], pattern)
    schema["properties"]["machines"]["propertyNames"]["not"] = {"enum": sorted(words.RESERVED_MACHINES)}
    del schema["required"]
    _tidy(schema)
    return {"$schema": DIALECT, "title": "edge-agent", **{key: schema[key] for key in schema if key != "title"}}


def _connection(kind: str, driver: Driver) -> dict[str, Schema]:
    """The definitions for a connection of this kind."""
    parts: dict[str, Schema] = {}
    properties = _properties(parts, f"{kind}.parts", driver.Connection)
    required = [key for key, field in driver.Connection.model_fields.items() if field.is_required()]
    parts[f"{kind}.Connection"] = {
        "type": "object",
        "description": (driver.Connection.__doc__ or f"A connection of the driver {kind}.").splitlines()[0],
        "properties": {"driver": {"const": kind, "description": "the kind of device"}, **properties},
        "required": ["driver", *required],
        "additionalProperties": False,
    }
    return parts


def _address(parts: dict[str, Schema], kind: str, driver: Driver) -> dict[str, Schema]:
    """The properties that the driver adds to a signal; what it inherits is described where the connection has it."""
    properties = _properties(parts, f"{kind}.Address", driver.Address)
    line = parts[f"{kind}.Connection"]["properties"]
    for key in driver.inherited & set(properties) & set(line):
        properties[key] = {"description": line[key].get("description", ""), **properties[key]}
    return properties


def _rule(parts: dict[str, Schema], key: str, model: type[BaseModel]) -> Schema:
    """What may stand under a detector's key: its settings, `true` for all defaults, null or false for none of it."""
    properties = _properties(parts, f"{key}.parts", model)
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    whole: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    several: list[Schema] = [{**whole, "required": required} if required else whole]
    short = getattr(model, "short", None)
    if short is not None:
        several.append(properties[short])
    several.append({"const": False} if required else {"type": "boolean"})
    about = (model.__doc__ or key).splitlines()[0]
    return {"description": about, "anyOf": [*several, {"type": "null"}], "default": None}


def _properties(parts: dict[str, Schema], prefix: str, model: type[BaseModel]) -> dict[str, Schema]:
    """The properties of a driver's model; what they refer to goes to `parts` under names of their own."""
    own = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    parts.update({f"{prefix}.{name}": part for name, part in own.get("$defs", {}).items()})
    properties: dict[str, Schema] = own.get("properties", {})
    optional = {key for key, field in model.model_fields.items() if not field.is_required()}
    for key, default in model.model_construct().model_dump(mode="json", include=optional).items():
        if "default" in properties.get(key, {}):
            properties[key]["default"] = default  # as written in the file: so drivers dump their settings
    return properties


def _add(part: Schema, by_kind: Mapping[str, Mapping[str, Schema]], wanted: Any) -> None:
    """Put the drivers' keys beside the common ones; a key of several drivers may be what any of them takes."""
    found: dict[str, list[Schema]] = {}
    for properties in by_kind.values():
        for key, value in properties.items():
            if wanted(key) and value not in found.setdefault(key, []):
                found[key].append(value)
    for key, values in found.items():
        about = part["properties"].get(key, {}).get("description") or values[0].get("description", "")
        several = {"description": about, "anyOf": copy.deepcopy(values)}
        part["properties"][key] = copy.deepcopy(values[0]) if len(values) == 1 else several


def _name_keys(section: Schema, pattern: str) -> None:
    for branch in section.get("anyOf", [section]):
        if branch.get("type") == "object":
            branch["propertyNames"] = {"pattern": f"^{pattern}$"}


def _tidy(node: Any) -> None:
    """Drop titles that only repeat a name, and say plainly what is not available yet."""
    if isinstance(node, list):
        children: Iterable[Any] = node
    elif isinstance(node, dict):
        if node.pop("x-off", None) is not None:
            node["x-available"] = False
        for key, value in node.items():
            if key in ("properties", "$defs") and isinstance(value, dict):
                for one in value.values():
                    if isinstance(one, dict) and isinstance(one.get("title"), str):
                        del one["title"]
        children = node.values()
    else:
        return
    for child in children:
        _tidy(child)
