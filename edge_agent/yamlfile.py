"""YAML 1.2 read fast and with the place of every key and value; several files joined by `include`.

Rule 1: what YAML 1.1 and 1.2 read differently is refused in words, never guessed.
Rule 2: every limit is kept while the events stream in, before anything of the document is used.
Rule 3: a fault that leaves the rest readable does not stop the reading: all faults come out at once.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

try:
    from yaml.cyaml import CParser as _EventParser  # type: ignore[attr-defined]
except ImportError:  # a build of PyYAML without libyaml: ten times slower, the same events
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner

    class _EventParser(Reader, Scanner, Parser):  # type: ignore[no-redef]
        def __init__(self, stream: str) -> None:
            Reader.__init__(self, stream)
            Scanner.__init__(self)
            Parser.__init__(self)


FILE_BYTES_MAX = 4_000_000
"""Bytes of one file (contract §1)."""
ALL_BYTES_MAX = 64_000_000
"""Bytes of all files together (contract §1)."""
DEPTH_MAX = 50
"""Nesting of one document, aliases followed; deeper ones only come from bombs."""
ALIASES_MAX = 100
"""Uses of anchors in one document."""
EXPANDED_MAX = 100_000
"""Values that aliases may add to a document when they are written out."""
INCLUDE_DEPTH_MAX = 20
"""Files that include each other in a chain."""


class Place(NamedTuple):
    """Where something stands: file as the user would name it, line and column from 1."""

    file: str
    line: int
    column: int


class Table(dict[Any, Any]):
    """A mapping that knows where it, its keys (text or int) and their values stand. Not changed once it is read."""

    __slots__ = ("at", "key_at", "value_at")

    def __init__(self, at: Place) -> None:
        super().__init__()
        self.at = at
        self.key_at: dict[Any, Place] = {}
        self.value_at: dict[Any, Place] = {}

    def put(self, key: Any, value: Any, key_at: Place, value_at: Place) -> None:
        self[key] = value
        self.key_at[key] = key_at
        self.value_at[key] = value_at

    def take(self, other: "Table", key: Any) -> None:
        """Set `key` to what `other` has under it, places included."""
        self.put(key, other[key], other.key_at[key], other.value_at[key])


class Items(list[Any]):
    """A list that knows where it and its values stand."""

    __slots__ = ("at", "value_at")

    def __init__(self, at: Place) -> None:
        super().__init__()
        self.at = at
        self.value_at: list[Place] = []


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where, under which keys, in words; what was found and what is allowed, where that can be said."""

    place: Place
    path: tuple[Any, ...]
    text: str
    found: str | None = None
    allowed: str | None = None
    suggestion: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One file. root: what the file holds (None when nothing), with what could be read in spite of the problems."""

    root: Any
    problems: tuple[Problem, ...]
    complete: bool = True
    """False when the rest of the file could not be read."""


@dataclass(frozen=True, slots=True)
class Tree:
    """All files joined. root: the top-level table; sha: 64 hex of sha256 over all files in the order they were read.

    names: the files as the user would name them, in that order (as in a Place). complete: False when a part is unread.
    folders: where a new file may be included.
    """

    root: Table
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    names: tuple[str, ...]
    sha: str
    complete: bool


def load(path: Path) -> Tree:
    """Read a file and all that it includes. Never raises: an unreadable file is a problem like any other."""
    reading = _Reading()
    root = reading.file(path, str(path), (), Place(str(path), 1, 1), ())
    return Tree(
        root=root,
        problems=tuple(reading.problems),
        notes=tuple(reading.notes),
        files=tuple(reading.files),
        folders=tuple(reading.folders),
        names=tuple(reading.names),
        sha=reading.sha.hexdigest(),
        complete=reading.complete,
    )


_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


def _joined_escapes(text: str) -> str:
    """JSON writes what lies beyond U+FFFF as two escapes, which YAML does not know."""
    if "\\ud" not in text and "\\uD" not in text:
        return text

    def one(pair: re.Match[str]) -> str:
        high, low = int(pair[2], 16) - 0xD800, int(pair[3], 16) - 0xDC00
        return f"{pair[1]}\\U{0x10000 + (high << 10) + low:08X}"

    return _SURROGATES.sub(one, text)


def parse(data: bytes, name: str) -> Document:
    """Read one document of at most FILE_BYTES_MAX bytes of UTF-8. Never raises."""
    builder = _Builder(name)
    try:
        builder.build(_joined_escapes(_text(data, name)))
    except _Stop as stop:
        return Document(None, (*builder.problems, stop.problem), complete=False)
    return Document(builder.root, tuple(builder.problems))


def merged(base: Table, over: Table) -> Table:
    """`over` laid upon `base`: tables key by key, all else replaced; each key keeps the place it came from."""
    result = Table(over.at)
    for key in base:
        if key not in over:
            result.take(base, key)
        elif isinstance(base[key], Table) and isinstance(over[key], Table):
            result.put(key, merged(base[key], over[key]), over.key_at[key], over.value_at[key])
        else:
            result.take(over, key)
    for key in over:
        if key not in base:
            result.take(over, key)
    return result


def shown(value: Any) -> str:
    """A value as a person would see it in the file, cut to one short line."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case None:
            return "nothing"
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 64 else text[:60] + '…"'
        case bool():
            return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a very large number"


SECRET_KEYS = re.compile(r"password|secret|token|passphrase|heartbeat|^key$|^pin$|^to$", re.IGNORECASE)
"""Keys whose values are never repeated in a message (a heartbeat's or a route's address is a secret by itself)."""
URL_WITH_USER = re.compile(r"://\S*@")
HIDDEN = "a value that is not shown"


def shown_under(keys: Iterable[Any], value: Any) -> str:
    """A value for a message that stands under these keys; hidden when it may be a secret."""
    secret = any(isinstance(key, str) and SECRET_KEYS.search(key) for key in keys)
    if secret and value is not None and not isinstance(value, bool | dict | list):
        return HIDDEN
    if isinstance(value, str) and URL_WITH_USER.search(value):
        return "an address with a user that is not shown"
    return shown(value)


# --- plain scalars: the core schema of YAML 1.2 (section 10.3.2), and what must not be guessed ---

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+([eE][-+][0-9]+)?|[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?)")
_TRUTH_1_1 = re.compile(r"(yes|no|on|off)", re.IGNORECASE)
_LEADING_ZERO = re.compile(r"([-+]?)0[0-9]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?")
_NUMBER_LIKE = re.compile(
    r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+"
    r"|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?)"
)
_SPECIAL_STARTS = frozenset("~nNtTfFyYoO.-+0123456789<=")
_INT_DIGITS_MAX = 20
"""Digits of a whole number: enough for 64 bits, and far below the length at which int() is slow."""


class _Trap(NamedTuple):
    text: str
    allowed: str


def _plain(text: str) -> Any:
    """The value of an unquoted scalar, or a _Trap that says why it is refused."""
    if text and text[0] not in _SPECIAL_STARTS:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= _INT_DIGITS_MAX else _Trap("the number is too long", "at most 64 bits")
    if trap := _trap(text):
        return trap
    if _BASED.fullmatch(text):
        return int(text, 0) if len(text) <= _INT_DIGITS_MAX else _Trap("the number is too long", "at most 64 bits")
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NUMBER_LIKE.fullmatch(text):
        return _Trap(
            "is a number in one YAML and a text in another", f'digits without _ or prefix, or "{text}" in quotes'
        )
    return text


def _trap(text: str) -> _Trap | None:
    """What YAML 1.1 would have read as something else, in the words of what to write instead."""
    if _TRUTH_1_1.fullmatch(text):
        truth = "true" if text.lower() in ("yes", "on") else "false"
        return _Trap(f"{text} means {truth} to YAML 1.1 and is a text in YAML 1.2", f'{truth}, or "{text}" in quotes')
    if zero := _LEADING_ZERO.fullmatch(text):
        number = zero[1] + (text.lstrip("+-").lstrip("0") or "0")
        octal = text.lstrip("+-").lstrip("0") or "0"
        hint = f"{number} or 0o{octal}" if not zero[1] and set(octal) <= set("01234567") else number
        return _Trap("a leading zero means octal to YAML 1.1 and nothing in YAML 1.2", f'{hint}, or "{text}" in quotes')
    if _SEXAGESIMAL.fullmatch(text):
        return _Trap(
            "digits with colons are a number to base 60 in YAML 1.1", f'"{text}" in quotes, or a duration such as 90s'
        )
    if _DATE.fullmatch(text):
        return _Trap("is a date to YAML 1.1 and a text in YAML 1.2", f'"{text}" in quotes')
    if text in ("<<", "="):
        return _Trap(f"{text} has a special meaning in YAML 1.1", f'"{text}" in quotes')
    return None


# --- one document ---


class _Stop(Exception):
    """The rest of the document cannot be read."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


_NOT_UTF8 = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML 1.2 forbids in a stream, and the line ends of YAML 1.1 (NEL, LS, PS), on which readers disagree."""
_LINE_END = re.compile(r"\r\n?|\n")


def _text(data: bytes, name: str) -> str:
    """The characters of a file, without a byte order mark. Raises _Stop at what is not UTF-8 or not printable."""
    for mark, encoding in _NOT_UTF8.items():
        if data.startswith(mark):
            raise _Stop(Problem(Place(name, 1, 1), (), f"the file is not UTF-8 but {encoding}", None, "UTF-8"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(data[: error.start].decode("utf-8-sig"), name)
        raise _Stop(Problem(place, (), "the file is not UTF-8", f"byte 0x{data[error.start]:02x}", "UTF-8")) from error
    if odd := _UNPRINTABLE.search(text):
        place = _place(text[: odd.start()], name)
        raise _Stop(
            Problem(
                place, (), "a character that cannot be printed", f"U+{ord(odd[0]):04X}", 'an escape such as "\\u2028"'
            )
        )
    return text


def _place(before: str, name: str) -> Place:
    """The place right after this text."""
    ends = list(_LINE_END.finditer(before))
    return Place(name, len(ends) + 1, len(before) - (ends[-1].end() if ends else 0) + 1)


_NO_KEY: Any = object()


class _Open:
    """A container that is still being read. size: its values so far, height: its levels, aliases written out."""

    __slots__ = ("anchor", "height", "key", "key_at", "merge", "node", "size", "skip")

    def __init__(self, node: Table | Items, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: Any = _NO_KEY
        self.key_at = node.at
        self.skip = False
        self.merge = False
        self.size = 1
        self.height = 1


class _Anchored(NamedTuple):
    value: Any
    at: Place
    size: int
    height: int


class _Builder:
    """Turns the events of one document into tables, lists and scalars; an explicit stack, so depth costs nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Any = None
        self.problems: list[Problem] = []
        self.stack: list[_Open] = []
        self.anchors: dict[str, _Anchored] = {}
        self.aliases = 0
        self.expanded = 0
        self.documents = 0

    def build(self, text: str) -> None:
        for event in self._events(text):
            kind = type(event)
            mark = event.start_mark
            at = Place(self.name, mark.line + 1, mark.column + 1)
            if kind is yaml.ScalarEvent:
                self._scalar(event, at)
            elif kind is yaml.MappingStartEvent:
                self._open(Table(at), event)
            elif kind is yaml.SequenceStartEvent:
                self._open(Items(at), event)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._close()
            elif kind is yaml.AliasEvent:
                self._alias(event.anchor, at)
            elif kind is yaml.DocumentStartEvent:
                self._document(event, at)

    def _events(self, text: str) -> Iterator[Any]:
        parser = _EventParser(text)
        try:
            while not isinstance(event := parser.get_event(), yaml.StreamEndEvent):
                yield event
        except yaml.MarkedYAMLError as error:
            raise _Stop(self._syntax(error, text)) from error
        except yaml.YAMLError as error:
            raise _Stop(self._problem(Place(self.name, 1, 1), f"not YAML: {error}".splitlines()[0])) from error
        finally:
            parser.dispose()

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> Problem:
        mark = error.problem_mark or error.context_mark
        at = Place(self.name, mark.line + 1, mark.column + 1) if mark else Place(self.name, 1, 1)
        words = f"not YAML: {error.problem or error.context}"
        if error.context and error.context_mark and error.problem:
            words += f" ({error.context} of line {error.context_mark.line + 1})"
        line = text.splitlines()[at.line - 1] if at.line <= len(text.splitlines()) else ""
        rest = line[at.column - 1 :]
        if rest.startswith("\t"):
            return self._problem(at, "a tab cannot indent", "a tab", "spaces")
        if rest.startswith(("@", "`", "%")):
            return self._problem(at, f"a text cannot start with {rest[0]}", None, "the text in quotes")
        if "escape code" in words:
            return self._problem(at, "this escape is no character", None, "the character itself")
        return self._problem(at, words)

    def _problem(self, at: Place, text: str, found: str | None = None, allowed: str | None = None) -> Problem:
        path = tuple(part for part in (self._step(open_) for open_ in self.stack) if part is not None)
        return Problem(at, path, text, found, allowed)

    @staticmethod
    def _step(open_: _Open) -> Any:
        if isinstance(open_.node, Items):
            return len(open_.node)
        return None if open_.key is _NO_KEY else open_.key

    def _stop(self, at: Place, text: str, found: str | None = None, allowed: str | None = None) -> _Stop:
        return _Stop(self._problem(at, text, found, allowed))

    def _document(self, event: Any, at: Place) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self._stop(at, "a second document begins here", "---", "one document in a file")
        if event.version not in (None, (1, 2)):
            raise self._stop(at, "the file asks for another YAML", "%YAML 1.1", "%YAML 1.2, or no such line")

    def _scalar(self, event: Any, at: Place) -> None:
        value = event.value
        if event.tag is not None:
            self._refuse_tag(event.tag, at)
        elif event.implicit[0]:
            value = _plain(value)
            if type(value) is _Trap:
                self._trapped(event.value, value, at)
                return
        if self._wants_key():
            self._key(value, event.value, at)
            return
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchored(value, at, 1, 0)
        self._put(value, at, 1, 0)

    def _trapped(self, text: str, trap: _Trap, at: Place) -> None:
        """A trap is told once and then read as a text, so that the rest of the file is checked too."""
        is_key = self._wants_key()
        if is_key:
            self._key(text, text, at)
            trap = _Trap(trap.text, f'"{text}" in quotes')
            if text == "<<":
                trap = _Trap("merge keys are not part of YAML 1.2", "`type:` for what many machines share")
                self.stack[-1].skip = self.stack[-1].merge = True
        problem = self._problem(at, trap.text, text, trap.allowed)
        if not is_key and shown_under(problem.path, text) == HIDDEN:
            problem = self._problem(at, "a password is never written in plain", HIDDEN, "{secret: NAME}")
        self.problems.append(problem)
        if not is_key:
            self._put(text, at, 1, 0)

    def _refuse_tag(self, tag: str, at: Place) -> None:
        self.problems.append(self._problem(at, "tags are not used here", tag, "the plain value"))

    def _wants_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node, Table) and self.stack[-1].key is _NO_KEY

    def _key(self, value: Any, text: str, at: Place) -> None:
        top = self.stack[-1]
        good = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
        top.key = value if good else text
        top.key_at = at
        top.skip = top.key in top.node
        if not good:
            self.problems.append(self._problem(at, "a key is a text or a whole number", text, f'"{text}" in quotes'))
        elif top.skip:
            first = top.node.key_at[top.key]  # type: ignore[union-attr]
            self.problems.append(
                self._problem(at, f"the key stands twice (first in line {first.line})", str(value), "once")
            )

    def _put(self, value: Any, at: Place, size: int, height: int) -> None:
        if not self.stack:
            self.root = value
            return
        top = self.stack[-1]
        top.size += size
        top.height = max(top.height, height + 1)
        if isinstance(top.node, Items):
            top.node.append(value)
            top.node.value_at.append(at)
            return
        if not top.skip:
            top.node.put(top.key, value, top.key_at, at)
        elif top.merge and isinstance(value, Table):
            # Refused already; followed all the same, so that nothing is called missing that was meant to be there.
            for key in value:
                if key not in top.node:
                    top.node.take(value, key)
        top.key = _NO_KEY
        top.skip = top.merge = False

    def _open(self, node: Table | Items, event: Any) -> None:
        if self._wants_key():
            raise self._stop(
                node.at, "a key is a text, not a mapping or a list", "{ or [", "quotes around texts with braces"
            )
        if len(self.stack) >= DEPTH_MAX:
            raise self._stop(node.at, "nested too deep", None, f"at most {DEPTH_MAX} levels")
        if event.tag is not None:
            self._refuse_tag(event.tag, node.at)
        self.stack.append(_Open(node, event.anchor))

    def _close(self) -> None:
        done = self.stack.pop()
        if done.anchor is not None:
            self.anchors[done.anchor] = _Anchored(done.node, done.node.at, done.size, done.height)
        self._put(done.node, done.node.at, done.size, done.height)

    def _alias(self, anchor: str, at: Place) -> None:
        if self._wants_key():
            raise self._stop(at, "a key is a text, not an alias", f"*{anchor}", "the text itself")
        if anchor not in self.anchors:
            raise self._stop(at, "an alias of what is not (yet) complete", f"*{anchor}", "an anchor that ends before")
        target = self.anchors[anchor]
        self.aliases += 1
        self.expanded += target.size
        if self.aliases > ALIASES_MAX:
            raise self._stop(at, "too many aliases", f"{self.aliases}", f"at most {ALIASES_MAX} in a file")
        if self.expanded > EXPANDED_MAX or len(self.stack) + target.height > DEPTH_MAX:
            raise self._stop(
                at, "the aliases make the document too large", None, f"{EXPANDED_MAX} values, {DEPTH_MAX} levels"
            )
        self._put(
            target.value, at if not isinstance(target.value, dict | list) else target.at, target.size, target.height
        )


# --- several files ---


def _meant(path: Path, pattern: str) -> bool:
    """As in a shell, a pattern means no hidden files (an editor's lock, a copy's other half) unless it says so."""
    return not path.name.startswith(".") or Path(pattern).name.startswith(".")


def _standing(folder: Path, pattern: str) -> Path:
    """The folder of a pattern, as far as it is plain."""
    for part in Path(pattern).parts[:-1]:
        if any(char in part for char in "*?["):
            break
        folder /= part
    return folder


def _content(path: Path) -> tuple[bytes | None, str, str | None]:
    """The bytes of a regular file; None with what is wrong and what is allowed."""
    try:
        if not path.exists():
            return None, "there is no such file", None
        if not path.is_file():
            return None, "is not a regular file", "a file"
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        return None, f"the file cannot be read: {error.strerror}", None
    except ValueError as error:
        return None, f"the file cannot be read: {error}", None
    if len(data) > FILE_BYTES_MAX:
        return None, "the file is too large", f"at most {FILE_BYTES_MAX // 1_000_000} MB"
    return data, "", None


@dataclass(slots=True)
class _Reading:
    """What has been read so far, over all files."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    complete: bool = True
    seen: set[Path] = field(default_factory=set)
    total: int = 0
    sha: Any = field(default_factory=hashlib.sha256)

    def file(
        self, path: Path, name: str, chain: tuple[Path, ...], asked_at: Place, asked_path: tuple[Any, ...]
    ) -> Table:
        """The table of one file with its includes joined in; empty when it cannot be read."""
        empty = Table(Place(name, 1, 1))
        data = self._bytes(path, asked_at, asked_path)
        if data is None:
            self.complete = False
            return empty
        real = path.resolve()
        self.seen.add(real)
        self.names.append(name)
        document = parse(data, name)
        self.problems += document.problems
        self.complete = self.complete and document.complete
        if document.root is None:
            return empty
        if not isinstance(document.root, Table):
            at = document.root.at if isinstance(document.root, Items) else Place(name, 1, 1)
            self.problems.append(
                Problem(at, (), "the file is no mapping", shown(document.root), "keys with values, such as agent:")
            )
            self.complete = False
            return empty
        joined = self._joinable(document.root)
        self._include(joined, path, name, (*chain, real))
        return joined

    def _bytes(self, path: Path, at: Place, asked_path: tuple[Any, ...]) -> bytes | None:
        """The content of a file within the limits; None (told where the file was asked for) when it cannot be had."""
        data, text, allowed = _content(path)
        if data is not None and self.total + len(data) > ALL_BYTES_MAX:
            data, text, allowed = None, "the files together are too large", f"at most {ALL_BYTES_MAX // 1_000_000} MB"
        if data is None:
            self.problems.append(Problem(at, asked_path, text, str(path), allowed))
            return None
        self.total += len(data)
        self.sha.update(len(data).to_bytes(8, "big") + data)
        self.files.append(path)
        return data

    @staticmethod
    def _joinable(root: Table) -> Table:
        """A copy two levels deep, into which other files may be joined (what was read may be shared by aliases)."""
        result = Table(root.at)
        for key in root:
            result.take(root, key)
            if isinstance(root[key], Table):
                section = Table(root[key].at)
                for name in root[key]:
                    section.take(root[key], name)
                result.put(key, section, root.key_at[key], root.value_at[key])
        return result

    def _include(self, root: Table, path: Path, name: str, chain: tuple[Path, ...]) -> None:
        patterns = root.get("include")
        if patterns is None:
            return
        if not isinstance(patterns, Items):
            at = root.value_at["include"]
            self.problems.append(Problem(at, ("include",), "is no list", shown(patterns), "a list: [machines/*.yaml]"))
            return
        for index, pattern in enumerate(patterns):
            at = patterns.value_at[index]
            where = ("include", index)
            if not isinstance(pattern, str) or not pattern or "\0" in pattern:
                self.problems.append(
                    Problem(at, where, "is no pattern for files", shown(pattern), "such as machines/*.yaml")
                )
                continue
            for match, match_name in self._matches(path, name, pattern, at, where):
                self._join_file(root, match, match_name, chain, at, where)

    def _matches(
        self, path: Path, name: str, pattern: str, at: Place, where: tuple[Any, ...]
    ) -> list[tuple[Path, str]]:
        """The files that a pattern means, sorted, each with the name that the user would give it."""
        folder, shown_folder = (Path(pattern).anchor or str(path.parent)), str(Path(name).parent)
        relative = str(Path(pattern).relative_to(Path(pattern).anchor)) if Path(pattern).anchor else pattern
        self.folders.append(_standing(Path(folder), relative))
        try:
            found = sorted(one for one in Path(folder).glob(relative) if _meant(one, relative))
        except (ValueError, NotImplementedError, OSError, re.error, RecursionError) as error:
            self.problems.append(
                Problem(at, where, f"is no pattern for files: {error}", shown(pattern), "such as machines/*.yaml")
            )
            return []
        if not found:
            self.notes.append(f"{at.file}:{at.line}:{at.column}: include: {pattern} matches no file")
        absolute = bool(Path(pattern).anchor)
        return [(one, str(one if absolute else Path(shown_folder) / one.relative_to(folder))) for one in found]

    def _join_file(
        self, root: Table, path: Path, name: str, chain: tuple[Path, ...], at: Place, where: tuple[Any, ...]
    ) -> None:
        real = path.resolve()
        if real in chain:
            self.problems.append(
                Problem(
                    at, where, "the files include each other in a circle", name, "files that include no file above them"
                )
            )
        elif len(chain) > INCLUDE_DEPTH_MAX:
            self.problems.append(
                Problem(at, where, "files include each other too deep", name, f"at most {INCLUDE_DEPTH_MAX}")
            )
        elif real in self.seen:
            self.notes.append(f"{at.file}:{at.line}:{at.column}: include: {name} is included already")
        else:
            self._join(root, self.file(path, name, chain, at, where))

    def _join(self, root: Table, other: Table) -> None:
        """Add what another file says; what stands in both is told at its second place."""
        for key in other:
            if key == "include":
                continue
            if key not in root:
                root.take(other, key)
            elif isinstance(root[key], Table) and isinstance(other[key], Table):
                for name in other[key]:
                    if name not in root[key]:
                        root[key].take(other[key], name)
                    else:
                        self._twice((key, name), other[key].key_at[name], root[key].key_at[name])
            else:
                self._twice((key,), other.key_at[key], root.key_at[key])

    def _twice(self, path: tuple[Any, ...], at: Place, first: Place) -> None:
        self.problems.append(
            Problem(at, path, f"stands twice (first at {first.file}:{first.line})", str(path[-1]), "once")
        )
