"""Parts of the file laid against their models: what is wrong is noted with its place, and the checking goes on.

Rule 1: an unknown key is told at the key, a wrong value at its first character, a missing key at its parent's key.
Rule 2: what may be a secret is never repeated in a message.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from edge_agent import yamlfile
from edge_agent.configuration.words import FORMS
from edge_agent.contract import WrongKey
from edge_agent.yamlfile import Items, Place, Problem, Table, shown_under

Keys = tuple[Any, ...]
"""Keys (and list positions) from the top of the file downwards."""
Model = TypeVar("Model", bound=BaseModel)

MISSING = "the key is missing"
LISTED_MAX = 40
"""Allowed words that one message names."""

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
    "tuple_type": ("is no list", "a list: [a, b]"),
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


class Spot(NamedTuple):
    """What a fault is told of: the place in the file, and the keys that lead there."""

    place: Place
    keys: Keys


@dataclass(frozen=True, slots=True)
class Part:
    """A table of the file, the keys that lead to it, and where the key that holds it stands.

    origins: the keys that lead to what was inherited from elsewhere. whole: where to tell what is wrong with all of it.
    """

    table: Table
    keys: Keys
    at: Place
    origins: Mapping[Any, Keys] = field(default_factory=dict)
    whole: Place | None = None

    @property
    def spot(self) -> Spot:
        """The key that holds this part."""
        return Spot(self.at, self.keys)

    def missing(self, key: Any) -> Spot:
        """Where to tell that a key is not there."""
        return Spot(self.at, (*self.keys, key))

    def key(self, key: Any) -> Spot:
        """The key itself."""
        return Spot(self.table.key_at[key], (*self.keys, key))

    def value(self, *keys: Any) -> Spot | None:
        """The value under these keys; None when it is not there."""
        node: Any = self.table
        place = self.at
        for key in keys:
            if not isinstance(node, Table) or key not in node:
                return None
            node, place = node[key], node.value_at[key]
        return Spot(place, (*self.keys, *keys))

    def part(self, key: Any) -> "Part":
        """The table under this key; an empty one when there is none."""
        value = self.table.get(key)
        at = self.table.key_at.get(key, self.at)
        return Part(value if isinstance(value, Table) else Table(at), (*self.keys, key), at)

    def without(self, left_out: Iterable[Any]) -> "Part":
        """The same part without these keys."""
        left_out = set(left_out)
        table = Table(self.table.at)
        for key in self.table:
            if key not in left_out:
                table.take(self.table, key)
        return Part(table, self.keys, self.at, self.origins, self.whole)


class Report:
    """What has been found so far. problems: what makes the file invalid. notes: what a person may want to know."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def add(
        self,
        spot: Spot | None,
        text: str,
        found: str | None = None,
        allowed: str | None = None,
        near: str | None = None,
    ) -> None:
        """Note a fault. spot: None is one that has been told already, at what should have been there."""
        if spot is not None:
            self.problems.append(Problem(*spot, text, found, allowed, near))

    def note(self, spot: Spot, text: str) -> None:
        place = spot.place
        self.notes.append(f"{place.file}:{place.line}:{place.column}: {'.'.join(map(str, spot.keys))}: {text}")

    def unknown_key(self, spot: Spot, known: Iterable[Any], near: str | None = None) -> None:
        """near: what was probably meant, when that is not one of the known keys."""
        key, words = str(spot.keys[-1]), sorted(map(str, known))
        self.add(spot, "unknown key", yamlfile.shown(key), listed(words), near or near_word(key, words))

    def unknown_word(self, spot: Spot | None, text: str, value: Any, known: Iterable[Any]) -> None:
        """A value that should have been one of `known`."""
        words = [str(word) for word in known]
        self.add(spot, text, yamlfile.shown(value), listed(words) or "none is there", near_word(value, words))

    def named(self, name: Any, holder: Part, pattern: str, what: str) -> Part | None:
        """The part under a name that the user gave, when the name is well formed and the part a mapping (or empty)."""
        if not isinstance(name, str) or not re.fullmatch(pattern, name):
            quotes = "" if isinstance(name, str) else f'; "{name}" in quotes'
            self.add(holder.key(name), f"is no name for a {what}", yamlfile.shown(name), FORMS[pattern] + quotes)
            return None
        value = holder.table[name]
        if value is not None and not isinstance(value, Table):
            self.add(holder.value(name), "is no mapping", shown_under((*holder.keys, name), value), "keys with values")
            return None
        return holder.part(name)

    def checked(self, model: type[Model], part: Part) -> Model | None:
        """The part as its model, faults noted: what fits of it, so that the rest is checked too; None when nothing does."""
        self.refuse_later(model, part)
        try:
            return model.model_validate(part.table)
        except ValidationError as errors:
            found: list[dict[str, Any]] = [
                dict(error) for error in errors.errors(include_url=False, include_input=False)
            ]
        for error in found:
            self._translate(model, part, error)
        wrong = {error["loc"][0] for error in found if error["loc"]}
        try:
            return model.model_validate(part.without(wrong).table) if wrong else None
        except ValidationError:
            return None

    def refuse_later(self, model: type[BaseModel], part: Part) -> None:
        """Note every use of a key that a later version brings."""
        for key, (off, whole, inner, named) in _of_later(model).items():
            if key not in part.table:
                continue
            value = part.table[key]
            if off is not None:
                if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in off):
                    allowed = (
                        "nothing" if whole else f"only {off[0] if isinstance(off[0], str) else json.dumps(off[0])}"
                    )
                    spot = part.key(key) if whole else part.value(key)
                    self.add(spot, "is not available yet", shown_under((key,), value), allowed)
            elif isinstance(value, Table) and inner is not None:
                for one in [part.part(key).part(name) for name in value] if named else [part.part(key)]:
                    self.refuse_later(inner, one)

    def _translate(self, model: type[BaseModel], part: Part, error: dict[str, Any]) -> None:
        """One error of pydantic at its place in the file. Members of unions in its location are not in the file."""
        node: Any = part.table
        key_at, value_at = part.at, part.whole or part.at
        keys: Keys = ()
        for key in error["loc"]:
            if isinstance(node, Table) and key in node:
                key_at, value_at, node = node.key_at[key], node.value_at[key], node[key]
            elif isinstance(node, Items) and isinstance(key, int) and key < len(node):
                key_at, value_at, node = node.value_at[key], node.value_at[key], node[key]
            else:
                continue
            keys = (*keys, key)
        path = (*part.origins.get(keys[0], (*part.keys, keys[0])), *keys[1:]) if keys else part.keys
        last = error["loc"][-1] if error["loc"] else None
        match error["type"]:
            case "extra_forbidden":
                holder = _model_at(model, keys[:-1])
                self.unknown_key(Spot(key_at, path), holder.model_fields if holder else (), deeper(holder, last))
            case "missing":
                holder = _model_at(model, keys)
                about = holder.model_fields[last].description if holder and last in holder.model_fields else None
                self.add(Spot(key_at, (*path, last)), MISSING, None, about)
            case _:
                self._wrong_value(part, Spot(value_at, path), node, error)

    def _wrong_value(self, part: Part, spot: Spot, value: Any, error: dict[str, Any]) -> None:
        context = error.get("ctx", {})
        fault = context.get("error")
        if isinstance(fault, WrongKey) and error["loc"] and isinstance(value, Table) and fault.key in value:
            spot, value = Spot(value.key_at[fault.key], (*spot.keys, fault.key)), fault.key
        elif isinstance(fault, WrongKey) and fault.key in part.table:
            # An inherited key stands elsewhere in the file.
            keys = part.origins.get(fault.key, (*spot.keys, fault.key))
            spot, value = Spot(part.table.value_at[fault.key], keys), part.table[fault.key]
        if error["type"] == "refused":
            text, allowed = context["text"], context["allowed"]
        elif error["type"] in WORDS:
            text, allowed = WORDS[error["type"]]
            allowed = allowed.format_map(context)
        else:
            text, allowed = str(error["msg"]).removeprefix("Value error, "), None
            if isinstance(value, str) and value in text and shown_under(spot.keys, value) != yamlfile.shown(value):
                text = "is not right"  # a driver's words may repeat what must not be shown
        words = re.findall(r"'([^']*)'", allowed or "") if error["type"] in ("literal_error", "enum") else ()
        near = context.get("near") if error["type"] == "refused" else near_word(value, words)
        self.add(spot, text, shown_under(spot.keys, value), allowed, near)


class _Later(NamedTuple):
    """A key under which something of a later version may stand. off: the only values that may be written, None: any.

    whole: nothing may be written. inner: the model of what stands under it; named: of each name there.
    """

    off: list[Any] | None
    whole: bool
    inner: type[BaseModel] | None
    named: bool


@cache
def _of_later(model: type[BaseModel]) -> dict[str, _Later]:
    """The keys of a model that have to be looked at. A file has thousands of signals, and a model few such keys."""
    found = {}
    for key, about in model.model_fields.items():
        extra = about.json_schema_extra if isinstance(about.json_schema_extra, dict) else {}
        off, inner = extra.get("x-off"), _model_in(about.annotation)
        if isinstance(off, list):
            found[key] = _Later(off, about.default is None, None, named=False)
        elif inner is not None and _of_later(inner):
            found[key] = _Later(None, False, inner, named=get_origin(about.annotation) is dict)
    return found


def near_word(word: Any, words: Iterable[str]) -> str | None:
    """The word that was probably meant."""
    if not isinstance(word, str):
        return None
    lower = {one.lower(): one for one in words}
    found = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[found[0]] if found else None


def listed(words: Iterable[str]) -> str:
    """Words for a message, cut when there are many."""
    names = list(words)
    return ", ".join(names[:LISTED_MAX]) + (f", … ({len(names)} in all)" if len(names) > LISTED_MAX else "")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None`, `dict[str, Model]`, `list[Model]`, …; None when there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, UnionType, dict, list, tuple):
        for part in get_args(annotation):
            if part is not NoneType and (found := _model_in(part)):
                return found
    return None


def deeper(model: type[BaseModel] | None, key: Any) -> str | None:
    """Where one level below this key would be right: `warning.low` for a `low`."""
    for name, field_ in model.model_fields.items() if model else ():
        inner = _model_in(field_.annotation)
        if inner is not None and get_origin(field_.annotation) is not dict and key in inner.model_fields:
            return f"{name}.{key}"
    return None


def _model_at(model: type[BaseModel], keys: Keys) -> type[BaseModel] | None:
    """The model of the part under these keys."""
    found: type[BaseModel] | None = model
    for key in keys:
        if found is not None and key in found.model_fields:
            found = _model_in(found.model_fields[key].annotation)
    return found
