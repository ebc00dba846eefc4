"""The small language of formulas and operating states: a closed list of syntax nodes, compiled to numpy calls.

Rule 1: nothing is evaluated that is not in this file's tables; Python's parser is used, its evaluator never.
Rule 2: NaN means "not known". A comparison with it is not known either; `and`, `or`, `not` follow Kleene's strong
logic, so `known_false and unknown` is false and `known_true or unknown` is true.
"""

import ast
import difflib
import keyword
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from edge_agent.contract import Bools, Floats

TEXT_MAX = 1000
"""Characters in one expression: longer ones belong into several formulas."""
NODES_MAX = 300
DEPTH_MAX = 40

Values = Mapping[str, Floats]
Node = Callable[[Values], Floats]


class ExpressionError(Exception):
    """The text is no expression of this language. `position` is the 0-based column in it."""

    def __init__(self, text: str, position: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.position = position


def _power(a: Floats, b: Floats) -> Floats:
    # IEEE says nan ** 0 == 1 and 1 ** nan == 1: an unknown input must stay unknown.
    return np.where(np.isnan(a) | np.isnan(b), np.nan, np.power(a, b))


def _compared(operation: Callable[[Floats, Floats], Bools]) -> Callable[[Floats, Floats], Floats]:
    def compare(a: Floats, b: Floats) -> Floats:
        return np.where(np.isnan(a) | np.isnan(b), np.nan, operation(a, b).astype(np.float64))

    return compare


def _truth(a: Floats) -> Floats:
    """1 for any known number but 0, else 0; NaN stays."""
    return np.where(np.isnan(a), np.nan, (a != 0.0).astype(np.float64))


def _both(a: Floats, b: Floats) -> Floats:
    a, b = _truth(a), _truth(b)
    return np.where((a == 0.0) | (b == 0.0), 0.0, a * b)


def _either(a: Floats, b: Floats) -> Floats:
    a, b = _truth(a), _truth(b)
    return np.where((a == 1.0) | (b == 1.0), 1.0, a + b)


BINARY: dict[type[ast.operator], Callable[[Floats, Floats], Floats]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Mod: np.mod,
    ast.Pow: _power,
}
COMPARE: dict[type[ast.cmpop], Callable[[Floats, Floats], Floats]] = {
    ast.Lt: _compared(np.less),
    ast.LtE: _compared(np.less_equal),
    ast.Gt: _compared(np.greater),
    ast.GtE: _compared(np.greater_equal),
    ast.Eq: _compared(np.equal),
    ast.NotEq: _compared(np.not_equal),
}
UNARY: dict[type[ast.unaryop], Callable[[Floats], Floats]] = {
    ast.USub: np.negative,
    ast.UAdd: np.positive,
    ast.Not: lambda a: 1.0 - _truth(a),
}
FUNCTIONS: dict[str, tuple[Callable[..., Floats], int, int]] = {
    "abs": (np.abs, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "log": (np.log, 1, 1),
    "exp": (np.exp, 1, 1),
    "min": (np.minimum, 2, 20),
    "max": (np.maximum, 2, 20),
}
"""Name → (numpy function, fewest, most arguments). min and max are folded pairwise and stay NaN with a NaN."""
ALLOWED = "numbers, signal names, + - * / ** %, comparisons, and or not, abs min max sqrt log exp, ( )"


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression. names: the signals it uses, in order of appearance."""

    text: str
    names: tuple[str, ...]
    _evaluate: Node

    def evaluate(self, values: Values) -> Floats:
        """values: an array of one shape for each of `names`, NaN where not known. Returns that shape; NaN: not known.

        The result may be infinite (a division by zero); the caller decides what that means.
        """
        with np.errstate(all="ignore"):
            return np.asarray(self._evaluate(values), dtype=np.float64)


_STRANGE = re.compile(r"[^\x20-\x7e\s]")
_BREAK = re.compile(r"\s")
_WORD = re.compile(r"(?<![A-Za-z0-9_.])[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = frozenset(keyword.kwlist) - {"and", "or", "not"}
_DISGUISE = 0x410
"""Cyrillic А: Python's own words (`in`, `from`, `class` …) are good names for signals, and reach its parser in disguise."""


def parse(text: str, names: Collection[str] | None) -> Expression:
    """Compile `text`, which may use the signals in `names` (None: any). Raises ExpressionError: its place, what is allowed."""
    if len(text) > TEXT_MAX:
        raise ExpressionError(f"is longer than {TEXT_MAX} characters: split it into several formulas")
    if strange := _STRANGE.search(text):
        raise ExpressionError(f"has the character {strange[0]!r}; allowed: {ALLOWED}", strange.start())
    body = _BREAK.sub(" ", text).strip()  # a long formula may stand on several lines
    shift = len(text) - len(text.lstrip())
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(_WORD.sub(_disguised, body), mode="eval").body
    except SyntaxError as error:
        # Without an offset it is the end that is missing. An offset counts characters from 1.
        position = error.offset - 1 if error.offset else len(body)
        raise ExpressionError(
            f"is not an expression ({error.msg}); allowed: {ALLOWED}", shift + min(position, len(body))
        ) from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError(f"cannot be read; allowed: {ALLOWED}") from None
    compiler = _Compiler(names, shift, body)
    evaluate = compiler.node(tree, 0)
    if not compiler.used:
        raise ExpressionError("uses no signal: it would never change")
    return Expression(text, tuple(compiler.used), evaluate)


def _disguised(word: re.Match[str]) -> str:
    found = word[0]
    return chr(_DISGUISE + ord(found[0]) - ord("A")) + found[1:] if found in _TAKEN else found


def _plain(name: str) -> str:
    return name if name[0].isascii() else chr(ord(name[0]) - _DISGUISE + ord("A")) + name[1:]


class _Compiler:
    """Walks the syntax tree once; every node not named here is refused."""

    def __init__(self, names: Collection[str] | None, shift: int, text: str) -> None:
        self.names = names
        self.shift = shift
        self.bytes = _WORD.sub(_disguised, text).encode()
        self.used: dict[str, None] = {}
        self.nodes = 0

    def refuse(self, node: ast.expr, text: str) -> ExpressionError:
        # Python counts bytes.
        return ExpressionError(text, self.shift + len(self.bytes[: node.col_offset].decode()))

    def node(self, node: ast.expr, depth: int) -> Node:
        self.nodes += 1
        if depth > DEPTH_MAX or self.nodes > NODES_MAX:
            raise self.refuse(node, "is nested too deeply or too long: split it into several formulas")
        match node:
            case ast.Constant():
                return self.number(node)
            case ast.Name():
                return self.name(node)
            case ast.BinOp(left, operator, right):
                return self.binary(node, BINARY.get(type(operator)), left, right, depth)
            case ast.UnaryOp(unary, operand):
                return self.unary(node, UNARY.get(type(unary)), operand, depth)
            case ast.BoolOp(operator, operands):
                return self.logic(operator, operands, depth)
            case ast.Compare():
                return self.compare(node, depth)
            case ast.Call():
                return self.call(node, depth)
        raise self.refuse(node, f"has a part that is not allowed here; allowed: {ALLOWED}")

    def number(self, node: ast.Constant) -> Node:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise self.refuse(node, f"{node.value!r} is not a number; allowed: {ALLOWED}")
        try:
            value = np.float64(node.value)
        except OverflowError:
            raise self.refuse(node, "has a number that is too large") from None
        return lambda _values: value  # type: ignore[return-value]  # a scalar broadcasts against the columns

    def name(self, node: ast.Name) -> Node:
        name = _plain(node.id)
        if self.names is not None and name not in self.names:
            near = difflib.get_close_matches(name, [*self.names, *FUNCTIONS], 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise self.refuse(node, f'uses "{name}", which is no signal of this machine{hint}')
        self.used[name] = None
        return lambda values: values[name]

    def binary(
        self,
        node: ast.expr,
        operation: Callable[[Floats, Floats], Floats] | None,
        left: ast.expr,
        right: ast.expr,
        depth: int,
    ) -> Node:
        if operation is None:
            raise self.refuse(node, f"has an operator that is not allowed; allowed: {ALLOWED}")
        a, b = self.node(left, depth + 1), self.node(right, depth + 1)
        return lambda values: operation(a(values), b(values))

    def unary(
        self, node: ast.expr, operation: Callable[[Floats], Floats] | None, operand: ast.expr, depth: int
    ) -> Node:
        if operation is None:
            raise self.refuse(node, f"has an operator that is not allowed; allowed: {ALLOWED}")
        a = self.node(operand, depth + 1)
        return lambda values: operation(a(values))

    def logic(self, operator: ast.boolop, operands: list[ast.expr], depth: int) -> Node:
        operation = _both if isinstance(operator, ast.And) else _either
        first, *others = [self.node(operand, depth + 1) for operand in operands]

        def evaluate(values: Values) -> Floats:
            result = first(values)
            for other in others:
                result = operation(result, other(values))
            return result

        return evaluate

    def compare(self, node: ast.Compare, depth: int) -> Node:
        operations = [COMPARE.get(type(operator)) for operator in node.ops]
        terms = [self.node(term, depth + 1) for term in (node.left, *node.comparators)]
        if any(operation is None for operation in operations):
            raise self.refuse(node, f"has a comparison that is not allowed; allowed: {ALLOWED}")
        pairs = [(c, a, b) for c, a, b in zip(operations, terms, terms[1:], strict=False) if c is not None]

        def evaluate(values: Values) -> Floats:
            c, a, b = pairs[0]
            result = c(a(values), b(values))
            for c, a, b in pairs[1:]:
                result = _both(result, c(a(values), b(values)))
            return result

        return evaluate

    def call(self, node: ast.Call, depth: int) -> Node:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            raise self.refuse(node, f"calls something that is not allowed; functions: {' '.join(FUNCTIONS)}")
        name = node.func.id
        function, fewest, most = FUNCTIONS[name]
        if not fewest <= len(node.args) <= most:
            wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise self.refuse(node, f"{name}() takes {wanted} values, not {len(node.args)}")
        terms = [self.node(term, depth + 1) for term in node.args]

        def evaluate(values: Values) -> Floats:
            result = terms[0](values)
            if len(terms) == 1:
                return function(result)
            for term in terms[1:]:
                result = function(result, term(values))
            return result

        return evaluate
