"""Texts that a device sent, made fit for a terminal and for a file. Pure.

Rule: such a text is never trusted: what cannot be printed (line ends, escape sequences, marks that turn the direction of
writing) is shown as its number, wherever the text goes.
"""

import json
import unicodedata

SURROGATES = range(0xD800, 0xE000)
"""Halves of characters: no text that is written as UTF-8 has one."""


def printable(text: str, most: int = 0) -> str:
    r"""On one line, `\n` and `\x1b` written out. most: characters; what is longer ends in `…` (0: no limit)."""
    if most and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def quoted(text: object) -> str:
    """A double-quoted YAML scalar that means exactly this text. JSON's are, but for what YAML wants written as a number."""
    told = json.dumps(str(text), ensure_ascii=False)
    return told if told.isprintable() else "".join(map(_in_yaml, told))


def _in_yaml(char: str) -> str:
    number = ord(char)
    if char.isprintable():
        return char
    if number in SURROGATES:
        return "\\ufffd"
    return f"\\u{number:04x}" if number < 0x1_0000 else f"\\U{number:08x}"


def cells(text: str) -> int:
    """Columns that a printable text takes on a terminal: letters of East Asia two, accents that are set on others none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fitted(text: str, columns: int) -> str:
    """Cut to so many columns, `…` in place of the rest."""
    if cells(text) <= columns:
        return text
    while text and cells(text) >= columns:
        text = text[:-1]
    return text + "…" if columns > 0 else ""


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """Cut or filled with blanks to exactly so many columns."""
    text = fitted(text, columns)
    blanks = " " * (columns - cells(text))
    return blanks + text if right else text + blanks
