"""What a walk found in a server: nodes and variables; as a tree for people and as facts for scripts. Pure.

Rule 1: nothing is left out without a word: what was cut, refused or only counted is said where it is missing.
Rule 2: the server's texts are not trusted: they are made printable before they stand in a line.
"""

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from drivers import opcua_status as status
from drivers.foreign_text import cells, fitted, padded, printable
from drivers.opcua_types import TEXTS, Kind, Plain, is_numeric
from edge_agent.contract import Quality

VAST = 100_000
"""Elements: an array of more is never read as a whole."""
ALIKE_MAX = 40
"""Variables of one node in the tree for people; JSON and the configuration have all."""
NAME_MAX, VALUE_MAX, UNIT_MAX, TYPE_MAX = 48, 24, 10, 24
"""Columns of the tree, at most."""
NARROW = (
    ("value", 14), ("address", 24), ("type", 15), ("address", 18), ("type", 10), ("name", 30), ("value", 9),
    ("name", 12), ("unit", 4), ("type", 4), ("address", 0), ("name", 4), ("value", 4),
)  # fmt: skip
"""What is taken from which column on a narrow screen, and what it is left, until all fits."""
GAP = "  "
WIDE = 100
"""Columns from which on ranges are shown, too."""
FLOAT, FLOAT_DIGITS, DOUBLE_DIGITS = 10, 7, 10
DOTS = "…"
LEVELS_SHOWN = 10
"""Levels that a line is set in, at most; of a deeper one the first are left away."""

Lines = list[tuple[str, str]]


class NodeKind(StrEnum):
    """Property: it says what the node above is (a serial number) and changes seldom."""

    OBJECT = "object"
    VARIABLE = "variable"
    PROPERTY = "property"


@dataclass(slots=True)
class Variable:
    """What a variable is and holds. type: its data type. wire: the built-in type that its value came with, 0: none.

    rank: 1 and up: an array of so many dimensions. is_read: the server was asked for its value. value: plain; of an array
    its first elements. members: numbers of a structure, by the path that `member` takes. range: EURange. instrument:
    InstrumentRange. names: of its values.
    """

    type: Kind = field(default_factory=Kind)
    rank: int = -1
    dimensions: tuple[int, ...] = ()
    readable: bool = True
    history: bool = False
    description: str = ""
    is_read: bool = False
    value: Plain = None
    status: int = 0
    wire: int = 0
    is_array: bool = False
    members: dict[str, float] = field(default_factory=dict)
    unit: str = ""
    range: tuple[float, float] | None = None
    instrument: tuple[float, float] | None = None
    names: dict[int, str] = field(default_factory=dict)

    @property
    def is_vast(self) -> bool:
        return math.prod(self.dimensions) > VAST if self.dimensions else False

    @property
    def built_in(self) -> int:
        """What it holds on the wire: by its value, else by its type."""
        return self.wire or self.type.built_in

    @property
    def of_array(self) -> bool:
        return self.is_array or self.rank >= 1

    @property
    def value_names(self) -> dict[int, str]:
        return self.names or self.type.names

    @property
    def valid(self) -> tuple[float, float] | None:
        """The range outside which a value cannot be right, as far as the server says so."""
        for pair in (self.instrument, self.range):
            if pair is not None and all(map(math.isfinite, pair)) and pair[0] < pair[1]:
                return pair
        return None


@dataclass(slots=True)
class Node:
    """A node below the start. address: as `nsu=URI;…`, which a configuration takes; short: with the server's own number.

    parent: its place, -1 of the start. below: the places of what hangs below. folder: it only orders others. more: what
    hangs below was not looked at (--depth). note: why the server does not tell what hangs below.
    """

    address: str
    short: str
    name: str
    display: str
    parent: int
    depth: int
    kind: NodeKind
    folder: bool = False
    more: bool = False
    note: str = ""
    below: list[int] = field(default_factory=list)
    variable: Variable | None = None


@dataclass(slots=True)
class Found:
    """It grows while the walk goes on. nodes: the first one is the start. above: the path of the start, its own name last.

    cut: there was more than --max. whole: the walk came to its end. read_us: UTC, when values were last read.
    """

    url: str
    search: str = ""
    nodes: list[Node] = field(default_factory=list)
    above: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    server: str = ""
    cut: bool = False
    whole: bool = False
    requests: int = 0
    took_us: int = 0
    read_us: int = 0
    warnings: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    """The securities that the server offers."""

    def path(self, place: int) -> tuple[str, ...]:
        """Names from below Objects down to the node."""
        names = []
        while place > 0:
            names.append(self.nodes[place].name)
            place = self.nodes[place].parent
        return (*self.above, *reversed(names))

    def variables(self) -> list[int]:
        """The places of all variables that are wanted, in the order of the tree."""
        wanted = self.wanted()
        return [place for place, _ in self.tree() if self.nodes[place].variable is not None and place in wanted]

    def wanted(self) -> AbstractSet[int]:
        """Places of nodes that have the text that is looked for; all, when none is."""
        if not self.search:
            return set(range(len(self.nodes)))
        text = self.search.casefold()
        return {place for place in range(len(self.nodes)) if text in self._words(place)}

    def _words(self, place: int) -> str:
        node = self.nodes[place]
        about = node.variable.description if node.variable is not None else ""
        return "\n".join(("/".join(self.path(place)), node.name, node.display, about)).casefold()

    def shown(self) -> AbstractSet[int]:
        """What is wanted, and all that it hangs below."""
        found = set(self.wanted())
        for place in sorted(found, reverse=True):
            while (place := self.nodes[place].parent) >= 0 and place not in found:
                found.add(place)
        return found

    def tree(self) -> Iterator[tuple[int, tuple[bool, ...]]]:
        """Each place with whether it and each one above it is the last of its siblings; parents before children."""
        shown = self.shown()
        todo: list[tuple[int, tuple[bool, ...]]] = [(0, ())] if shown else []
        while todo:
            place, lasts = todo.pop()
            yield place, lasts
            below = [child for child in self.nodes[place].below if child in shown]
            todo += [(child, (*lasts, child == below[-1])) for child in reversed(below)]


# ------------------------------------------------------------------------------------------------------- for people


@dataclass(frozen=True, slots=True)
class _Row:
    style: str
    name: str
    value: str = ""
    unit: str = ""
    type: str = ""
    address: str = ""


def lines(found: Found, columns: int = 0) -> Lines:
    """(style, text): the whole report. columns: of the terminal; 0: nothing needs to be cut."""
    told: Lines = [("head", _head(found))]
    if found.offered:
        told.append(("weak", f"  security: {printable(', '.join(found.offered))}"))
    told += [("warn", f"  {printable(words)}") for words in found.warnings]
    if not found.whole and found.nodes:
        told.append(("warn", "  The walk did not come to its end: this is what was found until then."))
    if found.cut:
        told.append(
            ("warn", f"  There is more: it was cut after {len(found.nodes) - 1} nodes (--max, or --under a part).")
        )
    rows = _rows(found, wide=not columns or columns >= WIDE)
    told = _wrapped(told, columns)
    if rows:
        told += [("", ""), *_laid_out(rows, columns), ("", "")]
    return told + _wrapped(_summary(found), columns)


def _wrapped(told: Lines, columns: int) -> Lines:
    if not columns:
        return told
    return [
        (style, line)
        for style, text in told
        for line in textwrap.wrap(text, columns, subsequent_indent="  ", drop_whitespace=True) or [""]
    ]


def _head(found: Found) -> str:
    server = f"{printable(found.server, 100)}, " if found.server else ""
    when = datetime.fromtimestamp(found.read_us / 1e6, UTC).astimezone()
    read = f", values of {when:%H:%M:%S}" if found.read_us else ""
    return f"{found.url}: {server}{found.requests} requests in {found.took_us / 1e6:.1f} s{read}"


def _rows(found: Found, *, wide: bool) -> list[_Row]:
    rows: list[_Row] = []
    shown, told = found.shown(), dict[int, int]()
    for place, lasts in found.tree():
        node = found.nodes[place]
        if _is_leaf(node) and node.parent > 0:
            told[node.parent] = told.get(node.parent, 0) + 1
            if told[node.parent] > ALIKE_MAX:
                if told[node.parent] == ALIKE_MAX + 1:
                    rows.append(_rest(found, [each for each in found.nodes[node.parent].below if each in shown], lasts))
                continue
        rows.append(_row(found, place, lasts, wide=wide))
        has_more = any(each in shown for each in node.below)
        rows += _member_rows(node, lasts, has_more=has_more or bool(node.note) or node.more)
        if node.note or node.more:
            words = f"{DOTS} not told: {node.note}" if node.note else f"{DOTS} goes on (--depth, --max, --under)"
            rows.append(_Row("warn" if node.note else "weak", _branches((*lasts, not has_more)) + words))
    return rows


def _is_leaf(node: Node) -> bool:
    return node.variable is not None and not node.below


def _rest(found: Found, siblings: Sequence[int], lasts: Sequence[bool]) -> _Row:
    """In place of the variables of one node that are too many to be told."""
    count = sum(_is_leaf(found.nodes[each]) for each in siblings) - ALIKE_MAX
    branches = _branches((*lasts[:-1], _is_leaf(found.nodes[siblings[-1]])))
    return _Row(
        "",
        f"{branches}{DOTS} and {count} more: --under {printable('/'.join(found.path(found.nodes[siblings[0]].parent)))}",
    )


def _row(found: Found, place: int, lasts: Sequence[bool], *, wide: bool) -> _Row:
    node = found.nodes[place]
    name = _branches(lasts) + (printable(node.name) if place else printable("/".join(found.above) or "Objects"))
    if node.variable is None:
        return _Row("head", name)
    about = node.variable
    extent = f", {number_words(about.valid[0])}…{number_words(about.valid[1])}" if about.valid and wide else ""
    words = type_words(about) + extent + (", history" if about.history else "")
    return _Row(_style(node), name, value_words(about), about.unit, words, printable(node.short))


def _member_rows(node: Node, lasts: tuple[bool, ...], *, has_more: bool) -> Iterator[_Row]:
    """The numbers of a structure, with the key that a signal of it takes."""
    members = node.variable.members if node.variable is not None else {}
    for at, (path, value) in enumerate(members.items()):
        is_last = at == len(members) - 1 and not has_more
        words = str(value).lower() if isinstance(value, bool) else number_words(value)
        yield _Row(
            "weak", _branches((*lasts, is_last)) + printable(path), words, "", "member", f"member: {printable(path)}"
        )


def _style(node: Node) -> str:
    about = node.variable
    if about is None:
        return "head"
    if about.readable and about.status & status.BAD:
        return "warn"
    return "weak" if not about.readable or node.kind is NodeKind.PROPERTY else ""


def _branches(lasts: Sequence[bool]) -> str:
    if not lasts:
        return ""
    if len(lasts) > LEVELS_SHOWN:
        return f"{DOTS} {_branches(lasts[1 - LEVELS_SHOWN :])}"
    return "".join("  " if last else "│ " for last in lasts[:-1]) + ("└ " if lasts[-1] else "├ ")


def _laid_out(rows: Sequence[_Row], columns: int) -> Lines:
    """As aligned columns; the address is the last one and takes what is left."""
    told = [row for row in rows if row.type]
    widths = {
        "name": min(NAME_MAX, max((cells(row.name) for row in told), default=0)),
        "value": min(VALUE_MAX, max((cells(row.value) for row in told), default=0)),
        "unit": min(UNIT_MAX, max((cells(row.unit) for row in told), default=0)),
        "type": min(TYPE_MAX, max((cells(row.type) for row in told), default=0)),
    }
    address = max((cells(row.address) for row in told), default=0)
    if columns:
        address = _narrowed(widths, address, columns)
    return [(row.style, _line(row, widths, address if columns else 0, columns)) for row in rows]


def _narrowed(widths: dict[str, int], address: int, columns: int) -> int:
    """Take from the columns what is too much, a step at a time; returns the address's width."""
    all_widths = {**widths, "address": address}
    over = sum(all_widths.values()) + len(GAP) * 3 + 1 - columns
    for key, least in NARROW:
        taken = max(0, min(over, all_widths[key] - least))
        all_widths[key], over = all_widths[key] - taken, over - taken
    widths.update({key: all_widths[key] for key in widths})
    return all_widths["address"]


def _line(row: _Row, widths: dict[str, int], address: int, columns: int) -> str:
    if not row.type:  # an object or a note: nothing stands in the columns beside it
        return fitted(row.name, columns) if columns else row.name
    cell = {key: padded(getattr(row, key), width, right=key == "value") for key, width in widths.items()}
    text = shortened(row.address, address) if columns else row.address
    line = f"{cell['name']}{GAP}{cell['value']} {cell['unit']}{GAP}{cell['type']}{GAP}{text}".rstrip()
    return fitted(line, columns) if columns else line


def shortened(text: str, columns: int) -> str:
    """The begin and the end of it: a node is told apart by its end."""
    if cells(text) <= columns or columns < 3:
        return text if cells(text) <= columns else text[:columns]
    head = min(7, (columns - 1) // 2)  # `ns=3;s=`
    tail = text[head:]
    while cells(text[:head]) + 1 + cells(tail) > columns:
        tail = tail[1:]
    return text[:head] + DOTS + tail


def _summary(found: Found) -> Lines:
    abouts = [about for place in found.variables() if (about := found.nodes[place].variable) is not None]
    if not abouts:
        words = f"No variable has {printable(found.search)!r} in its path, name or description." if found.search else ""
        return [("", words or "There is no variable here. Look elsewhere with --under, or at all of it with --all.")]
    unread = sum(about.readable and not about.is_read for about in abouts)
    closed = sum(not about.readable for about in abouts)
    bad = sum(about.readable and bool(about.status & status.BAD) for about in abouts)
    numbers = sum(is_number(about) for about in abouts)
    parts = [f"{len(abouts)} variable{'s' * (len(abouts) != 1)}", f"{numbers} of them numbers"]
    parts += [f"{closed} not readable"] if closed else []
    parts += [f"{unread} not read"] if unread else []
    parts += [f"{bad} bad now"] if bad else []
    told: Lines = [("", ", ".join(parts) + ".")]
    used = sorted({int(n) for node in found.nodes[1:] if (n := node.short.partition(";")[0][3:]).isdigit()})
    told += [("weak", f"ns={n} is {printable(found.uris[n])}") for n in used if 0 < n < len(found.uris)]
    told.append(("", "Next: --search TEXT or --under PATH for a part; --yaml > first.yaml for a configuration of it."))
    return told


def is_number(about: Variable) -> bool:
    """A single number that is readable, whether it is good now or not."""
    return about.readable and not about.of_array and is_numeric(about.built_in)


def type_words(about: Variable) -> str:
    """`Double`, `Float[256]`, `PumpMode`."""
    name = printable(about.type.name, 60) or "?"
    if not about.of_array:
        return name
    sizes = about.dimensions or (0,) * max(1, about.rank)
    return f"{name}[{','.join(str(size) if size else '' for size in sizes)}]"


def value_words(about: Variable) -> str:
    """The value as people read it, or why there is none."""
    if not about.readable:
        return "not readable"
    if not about.is_read:
        return "not read yet"
    if about.status & status.BAD:
        return status.name(about.status)
    words = _plain_words(about)
    return f"{words} ({status.name(about.status)})" if status.quality(about.status) is Quality.UNCERTAIN else words


def _plain_words(about: Variable) -> str:
    value = about.value
    if isinstance(value, list):
        return "[" + ", ".join(_element(each, about.built_in) for each in value) + "]"
    name = about.value_names.get(int(value)) if isinstance(value, int) else None
    number = _element(value, about.built_in)
    return (
        f"{number} {printable(name, 60)}"
        if name and not isinstance(value, bool)
        else printable(name or "", 60) or number
    )


def _element(value: Plain, built_in: int) -> str:
    match value:
        case None:
            return "no value"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return number_words(value, FLOAT_DIGITS if built_in == FLOAT else DOUBLE_DIGITS)
        case list():
            return "[" + ", ".join(_element(each, built_in) for each in value) + "]"
        case _ if built_in in TEXTS:  # in quotes, so that "12.5" is seen to be none
            return printable(json.dumps(value, ensure_ascii=False), 80)
        case _:
            return printable(value, 80)


def number_words(value: float, digits: int = DOUBLE_DIGITS) -> str:
    """For people: a whole number in full, another to the digits that its type knows."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.{digits}g}"


# -------------------------------------------------------------------------------------------------------- for scripts


def facts(found: Found) -> dict[str, Any]:
    """All of it as JSON can hold it."""
    return {
        "url": found.url,
        "server": found.server,
        "namespaces": list(found.uris),
        "security": list(found.offered),
        "whole": found.whole and not found.cut,
        "cut": found.cut,
        "requests": found.requests,
        "seconds": round(found.took_us / 1e6, 3),
        "nodes": [_node_facts(found, place) for place, _ in found.tree() if place],
    }


def _node_facts(found: Found, place: int) -> dict[str, Any]:
    node = found.nodes[place]
    told: dict[str, Any] = {
        "path": list(found.path(place)),
        "address": node.address,
        "kind": node.kind.value,
        "display_name": node.display,
    }
    if node.note:
        told["note"] = node.note
    return told | (_variable_facts(node.variable) if node.variable is not None else {})


def _variable_facts(about: Variable) -> dict[str, Any]:
    return {
        "description": about.description,
        "type": about.type.name,
        "array": list(about.dimensions) if about.of_array else None,
        "readable": about.readable,
        "history": about.history,
        "value": _for_json(about.value),
        "status": status.name(about.status) if about.is_read else None,
        "unit": about.unit,
        "range": _pair(about.range),
        "instrument_range": _pair(about.instrument),
        "names": {str(number): name for number, name in sorted(about.value_names.items())},
        "members": about.members,
    }


def _pair(pair: tuple[float, float] | None) -> list[Any] | None:
    return None if pair is None else [_for_json(each) for each in pair]


def _for_json(value: Plain) -> Any:
    if isinstance(value, list):
        return [_for_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
