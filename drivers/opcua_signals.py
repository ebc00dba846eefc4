"""What a walk found, as a configuration: machines of folders, a signal for each variable that `read` can read. Pure.

Rule 1: the file is accepted as it is; what cannot be a signal (yet) stands in it as a comment with the reason.
Rule 2: the server's texts stand in quotes or are made printable: none of them can end a line or a comment.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drivers import opcua_status as status
from drivers.foreign_text import printable, quoted
from drivers.opcua_decode import EXACT_MAX
from drivers.opcua_found import Found, Node, NodeKind, Variable, is_number, number_words, type_words, value_words
from drivers.opcua_settings import Connection, parse_node_id
from drivers.opcua_types import TEXTS, is_numeric
from edge_agent.contract import duration_text

NAME_MAX = 64
"""Contract §6, names."""
TITLE_MAX, COMMENT_MAX, ADDRESS_MAX = 200, 120, 1000
RESERVED_MACHINES = frozenset({"agent", "status", "health", "gaps", "command"})
YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""As keys they would be no texts, but truth values and nothing."""
MEMBERS_SHOWN = 16
NAMES_MAX = 64
"""Names of one variable's values that are written."""


@dataclass(slots=True)
class Machine:
    """A folder with its own variables, or an object with all that is in it. signals: place and path below the machine."""

    place: int
    signals: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)


def config(found: Found, settings: Connection, data_dir: Path, secret: str) -> str:
    """A whole small configuration; '' when there is no number to be a signal. secret: the name of the user's password."""
    places = found.variables()
    if not any(_refusal(found.nodes[place]) == "" and _is_signal(found.nodes[place]) for place in places):
        return ""
    out = [
        f"# What {printable(found.url)} has: {_count(len(places), 'variable')}{' (there are more)' if found.cut else ''}.",
        "# Names, units and ranges are the server's: check them, leave out what nobody needs, and give the rest norms.",
    ]
    if not found.whole:
        out.append("# The walk did not come to its end: this is not all.")
    home = f", data_dir: {quoted(data_dir.resolve())}" if settings.security != "none" or settings.password else ""
    out += [
        f"agent: {{id: browsed{home}}}",
        "mqtt: {url: mqtt://127.0.0.1:1883}  # your broker; `edge-agent read` needs none",
        "connections:",
        "  server:",
        "    driver: opcua",
        f"    url: {quoted(found.url)}",
        *_connection_lines(settings, data_dir, secret),
        "machines:",
    ]
    taken: set[str] = set(RESERVED_MACHINES)
    for machine in machines(found, places):
        out += _machine_lines(found, machine, taken)
    return "\n".join(out) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _connection_lines(settings: Connection, data_dir: Path, secret: str) -> Iterator[str]:
    if settings.timeout != Connection.model_fields["timeout"].default:
        yield f"    timeout: {duration_text(settings.timeout)}"
    if settings.security != "none":
        yield f"    security: {settings.security}"
    if settings.user is not None:
        yield f"    user: {quoted(settings.user)}"
    if settings.password is not None:
        kept = printable(str(data_dir.resolve() / "secrets" / secret))
        yield f"    password: {{secret: {secret}}}  # its text stands in {kept} (mode 0600), or EDGE_AGENT_SECRET_{secret}"


def machines(found: Found, places: list[int]) -> list[Machine]:
    """The variables by machine, in the order of the tree.

    A folder only orders: its own variables are a machine, its subfolders others. An object is a thing: all below it is
    its own, unless it has no variable itself and so only holds other things.
    """
    by_place: dict[int, Machine] = {}
    for place in places:
        line = _ancestors(found, place)
        owner = next((each for each in line if _is_thing(found, each)), line[-1])
        machine = by_place.setdefault(owner, Machine(owner))
        below = found.path(place)[len(found.path(owner)) :]
        machine.signals.append((place, below or (found.nodes[place].name,)))
    return list(by_place.values())


def _ancestors(found: Found, place: int) -> list[int]:
    """The objects above a variable, the start first; of a start that is a variable, itself."""
    line = []
    while (place := found.nodes[place].parent) >= 0:
        line.append(place)
    return [each for each in reversed(line) if found.nodes[each].kind is NodeKind.OBJECT] or [0]


def _is_thing(found: Found, place: int) -> bool:
    node = found.nodes[place]
    has_own = any(found.nodes[child].kind is NodeKind.VARIABLE for child in node.below)
    return place > 0 and not node.folder and has_own


# ----------------------------------------------------------------------------------------------------------- machines


def _machine_lines(found: Found, machine: Machine, taken: set[str]) -> list[str]:
    path = found.path(machine.place)
    lines, names = [], set[str]()
    alive = False
    for place, below in machine.signals:
        node = found.nodes[place]
        name = unique(word("_".join(below)), names)
        reason = _refusal(node)
        alive |= not reason and _is_signal(node)
        lines += [(reason, line) for line in _signal_lines(node, name, below, reason)]
    name = unique(word("-".join(path) or "server", "A-Za-z0-9_-", digit_first=True), taken)
    title = printable(" / ".join(path) or "server", TITLE_MAX)
    # A machine of nothing but texts, or of comments, has nothing to judge.
    off = "" if alive else "# "
    return [
        f"  {off}{quoted(name) if not name[0].isalpha() or name.lower() in YAML_WORDS else name}:",
        f"  {off}  title: {quoted(title)}",
        f"  {off}  connection: server",
        f"  {off}  signals:",
        *(f"  {off}    {'# ' if reason and not line.startswith('#') else ''}{line}" for reason, line in lines),
    ]


def word(text: str, allowed: str = "A-Za-z0-9_", *, digit_first: bool = False) -> str:
    """A name as the contract has it (§6): letters without accents, `_` for what else there is, no digit first."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss").replace("µ", "u"))
    plain = re.sub(f"[^{allowed}]+", "_", "".join(char for char in plain if not unicodedata.combining(char)))
    plain = plain.strip("_-") or "signal"
    return (plain if digit_first or not plain[0].isdigit() else f"_{plain}")[:NAME_MAX]


def unique(name: str, taken: set[str]) -> str:
    """The name, or with `_2`, `_3` … when it is taken; it is then."""
    number, found = 1, name
    while found in taken:
        number += 1
        ending = f"_{number}"
        found = name[: NAME_MAX - len(ending)] + ending
    taken.add(found)
    return found


# ------------------------------------------------------------------------------------------------------------ signals


def _refusal(node: Node) -> str:
    """Why it cannot be read as a signal or a text as it is; '' when it can."""
    about = node.variable
    assert about is not None
    if not _is_writable(node.address):
        return "its NodeId cannot be written in a configuration"
    if not about.readable:
        return "this user may not read it"
    if not about.is_read:
        return "its value was not read"
    if about.status & status.BAD:
        return f"bad now: {status.name(about.status)}"
    if about.of_array:
        return f"an array of {printable(about.type.name, 60)}"
    if _is_text(about):
        return "" if about.value else "empty now"
    if about.members:
        return "a structure"
    if not is_number(about):
        return f"a {printable(about.type.name or 'value', 60)}, no number and no text"
    if node.kind is NodeKind.PROPERTY:
        return "a property: it describes its object and is no measurement"
    return _unfit(about.value)


def _is_writable(address: str) -> bool:
    try:
        parse_node_id(address)
    except ValueError:
        return False
    return len(address) <= ADDRESS_MAX and "\0" not in address


def _unfit(value: object) -> str:
    if not isinstance(value, int | float):
        return "no value now"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{number_words(value)} now"
    return "an integer beyond 2^53, which would be rounded" if abs(value) > EXACT_MAX else ""


def _is_text(about: Variable) -> bool:
    return about.built_in in TEXTS


def _is_signal(node: Node) -> bool:
    return node.variable is not None and not _is_text(node.variable)


def _signal_lines(node: Node, name: str, below: tuple[str, ...], reason: str) -> Iterator[str]:
    """The signal; of an array or a structure what an element or a member of it would be, as comments."""
    about = node.variable
    assert about is not None
    key = f'"{name}"' if name.lower() in YAML_WORDS else name
    said = printable(value_words(about), COMMENT_MAX)
    if about.of_array and not reason.startswith(("bad", "this", "its")) and not about.members:
        hint = "`index` chooses an element" if _has_numbers(about) else "no numbers"
        first = ",".join("0" * max(1, about.rank))
        index = f"index: {first}" if about.rank < 2 else f'index: "{first}"'
        yield f"# {key}: {{{_keys(node, below, index)}}}  # {printable(type_words(about), 80)} {said}; {hint}"
        return
    for path, value in list(about.members.items())[:MEMBERS_SHOWN] if reason == "a structure" else ():
        member = word(f"{name}_{path}")
        yield f"# {member}: {{{_keys(node, below, f'member: {quoted(path)}')}}}  # {number_words(value)}"
    if reason == "a structure":
        return
    comment = f"{said}, {printable(type_words(about), 80)}" + (f"; {reason}" if reason else _outside(about))
    if about.description.strip() and about.description not in (node.display, node.name):
        comment += f"; {printable(about.description.strip(), COMMENT_MAX)}"
    yield f"{key}: {{{_keys(node, below)}}}  # {comment}"


def _has_numbers(about: Variable) -> bool:
    return is_numeric(about.built_in)


def _outside(about: Variable) -> str:
    valid, value = about.valid, about.value
    if valid is None or not isinstance(value, int | float) or valid[0] <= value <= valid[1]:
        return ""
    return f"; outside the server's range {number_words(valid[0])} … {number_words(valid[1])}, which is left out"


def _keys(node: Node, below: tuple[str, ...], chosen: str = "") -> str:
    about = node.variable
    assert about is not None
    keys = []
    title = printable(node.display or node.name, TITLE_MAX).strip()
    title = title if len(below) < 2 else printable(" ".join((*below[:-1], title)), TITLE_MAX)
    if title and title != word("_".join(below)):
        keys.append(f"title: {quoted(title)}")
    keys.append(f"address: {quoted(node.address)}")
    if chosen:
        return ", ".join([*keys, chosen])
    if _is_text(about):
        return ", ".join([*keys, "type: string"])
    if about.unit.strip():
        keys.append(f"unit: {quoted(about.unit)}")
    if about.valid is not None and not _outside(about):
        low, high = about.valid
        keys.append(f"valid: {{low: {_number(low)}, high: {_number(high)}}}")
    names = {at: printable(text, 100).strip() for at, text in sorted(about.value_names.items())}
    if any(names.values()) and len(names) <= NAMES_MAX:
        keys.append(
            "map: {" + ", ".join(f"{at}: {quoted(text)}" for at, text in names.items() if text and _fits(at)) + "}"
        )
    return ", ".join(keys)


def _fits(number: int) -> bool:
    return abs(number) <= EXACT_MAX


def _number(value: float) -> str:
    """As YAML reads exactly this number again."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else _with_point(repr(value))


def _with_point(text: str) -> str:
    """YAML 1.1 takes 1e+16 for a text."""
    mantissa, e, exponent = text.partition("e")
    return mantissa + ("" if "." in mantissa or not e else ".0") + e + exponent
