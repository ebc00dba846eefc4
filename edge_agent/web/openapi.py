"""The API described for tools: OpenAPI 3.1, kept beside the routes and compared with them by a test."""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
TIME: Schema = {"type": "string", "format": "date-time"}
TIME_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
VERDICT: Schema = {"type": "string", "enum": ["alarm", "warning", "bad", "normal", "none"]}


def description(version: str) -> Schema:
    """The whole document; version: the agent's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edge-agent",
            "version": version or "0",
            "description": "What the agent knows of its machines now. A script on the same host needs no token.",
        },
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }


def _paths() -> Schema:
    machine = {"name": "machine", "in": "path", "required": True, "schema": TEXT}
    warning = {"name": "id", "in": "path", "required": True, "schema": TEXT}
    active = {
        "name": "active",
        "in": "query",
        "description": "true: only those that are not back to normal, most urgent first; false: the past as well.",
        "schema": {"type": "string", "enum": ["true", "false", "1", "0"], "default": "false"},
    }
    refusals = {
        "400": _refusal("The body is not what it should be."),
        "403": _refusal("A browser asks, and it is not our own page."),
        "404": _refusal("No active warning has this id."),
        "408": _refusal("The body did not arrive in time."),
        "409": _refusal("The warning's state does not allow it."),
        "413": _refusal("The body is too long."),
        "415": _refusal("The content type is not application/json."),
    }
    return {
        "/api/v1/machines": {"get": _get("Every machine, worst first", _list_of("machines", "Machine"))},
        "/api/v1/machines/{machine}": {
            "parameters": [machine],
            "get": _get("One machine with its signals", _ref("Machine"), {"404": _refusal("No such machine.")}),
        },
        "/api/v1/machines/{machine}/signals/{signal}/trend": {
            "parameters": [machine, {**machine, "name": "signal"}, *_period()],
            "get": _get(
                "The trend of a signal over a period, from the history",
                _ref("Trend"),
                {
                    "400": _refusal("The period or the number of points cannot be."),
                    "404": _refusal("No such machine or signal."),
                    "503": _refusal("There is no history, or it cannot be read now."),
                },
            ),
        },
        "/api/v1/warnings": {
            "parameters": [active],
            "get": _get(
                "The last event of each warning",
                _list_of("warnings", "Warning"),
                {"400": _refusal("active is neither true nor false.")},
            ),
        },
        "/api/v1/warnings/{id}/acknowledge": {
            "parameters": [warning],
            "post": {
                "summary": "Acknowledge a warning",
                "requestBody": {"required": True, "content": _json(_ref("Acknowledgement"))},
                "responses": {"200": _answer("The warning's new event", _ref("Warning")), **refusals},
            },
        },
        "/api/v1/status": {"get": _get("The agent itself", _ref("Status"))},
        "/api/v1/openapi.json": {"get": _get("This description", {"type": "object"})},
    }


def _period() -> list[Schema]:
    def one(name: str, description: str, schema: Schema) -> Schema:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    return [
        one("from", "The first instant; by default a day before `to`.", TIME),
        one("to", "Up to, and without, this instant; by default now. At most 3700 days after `from`.", TIME),
        one(
            "points",
            "At most so many buckets, and one; their length is a round one.",
            {"type": "integer", "minimum": 10, "maximum": 2000, "default": 600},
        ),
    ]


def _schemas() -> Schema:
    band = _object({"low": {"type": "number"}, "high": {"type": "number"}}, required=())
    signal = {
        "name": TEXT,
        "title": TEXT,
        "unit": TEXT,
        "value": NUMBER_OR_NULL,
        "quality": {"type": "string", "description": "good, or why the value is missing or doubtful"},
        "quality_since": TIME_OR_NULL,
        "ts": TIME_OR_NULL,
        "every": {"type": "number", "description": "seconds between two polls"},
        "verdict": VERDICT,
        "outside": {"type": ["string", "null"], "description": "the limits the value is beyond right now"},
        "limits": _object({"warning": band, "alarm": band}),
        "warnings": {"type": "array", "items": TEXT},
        "advice": TEXT,
    }
    machine = {
        "name": TEXT,
        "title": TEXT,
        "area": TEXT,
        "state": {"type": ["string", "null"]},
        "verdict": VERDICT,
        "ts": TIME_OR_NULL,
        "signals": {"type": "array", "items": _ref("Signal")},
    }
    warning = {
        "id": TEXT,
        "event": TEXT,
        "ts": TIME,
        "since": TIME,
        "machine": TEXT,
        "signal": TEXT,
        "kind": TEXT,
        "severity": {"type": "string", "enum": ["warning", "alarm"]},
        "state": TEXT,
        "value": NUMBER_OR_NULL,
        "unit": TEXT,
        "limit": NUMBER_OR_NULL,
        "message": TEXT,
        "advice": TEXT,
    }
    text_of = {"by": {**TEXT, "minLength": 1, "maxLength": 100}, "comment": {**TEXT, "maxLength": 1000}}
    return {
        "Signal": _object(signal),
        "Machine": _object(machine),
        "Warning": _object(warning, required=("id", "event", "machine", "signal", "kind", "severity", "state")),
        "Trend": _trend(band),
        "Acknowledgement": {**_object(text_of, required=("by",)), "additionalProperties": False},
        "Status": _object(
            {"state": TEXT, "version": TEXT, "config": TEXT, "now": TIME, "health": {"type": "object"}},
            required=("now", "health"),
        ),
        "Error": _object({"error": TEXT}),
    }


def _trend(band: Schema) -> Schema:
    """Columns have one entry for each bucket."""
    numbers: Schema = {"type": "array", "items": NUMBER_OR_NULL, "description": "null: no reading in this bucket"}
    counts: Schema = {"type": "array", "items": {"type": "integer"}}
    warning = {
        "id": TEXT,
        "kind": TEXT,
        "severity": {**TEXT, "description": "the worst it reached"},
        "from": TIME,
        "to": {**TIME_OR_NULL, "description": "null: it stands, or its end lies a week after the period or later"},
        "ended": {"type": "boolean"},
        "limit": NUMBER_OR_NULL,
        "message": TEXT,
    }
    return _object(
        {
            "machine": TEXT,
            "signal": TEXT,
            "title": TEXT,
            "unit": TEXT,
            "every": {"type": "number", "description": "seconds between two polls"},
            "limits": {**_object({"warning": band, "alarm": band}), "description": "as they are in force now"},
            "from": TIME,
            "to": TIME,
            "now": TIME,
            "begin": {**TIME_OR_NULL, "description": "where the first bucket begins"},
            "step": {"type": "number", "description": "seconds of a bucket"},
            "count": {**counts, "description": "readings, good or uncertain"},
            "bad": {**counts, "description": "rows in which there was none"},
            "low": numbers,
            "high": numbers,
            "mean": numbers,
            "held": {
                "type": "array",
                "items": {"type": "boolean"},
                "description": "nothing new came while the machine was watched: the last value stood; never after a bad "
                "row, until the next reading",
            },
            "before": {**NUMBER_OR_NULL, "description": "the value that stood at `begin`, where the first bucket held"},
            "warnings": {"type": "array", "items": _object(warning)},
            "warnings_whole": {
                "type": "boolean",
                "description": "false: there may be more than are told; ask for less or later time",
            },
        }
    )


def _object(properties: Schema, required: tuple[str, ...] | None = None) -> Schema:
    needed = tuple(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": list(needed)}


def _list_of(key: str, schema: str) -> Schema:
    return _object({key: {"type": "array", "items": _ref(schema)}})


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _answer(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": _json(schema)}


def _refusal(text: str) -> Schema:
    return _answer(text, _ref("Error"))


def _get(summary: str, schema: Schema, refusals: Schema | None = None) -> Schema:
    return {"summary": summary, "responses": {"200": _answer(summary, schema), **(refusals or {})}}
