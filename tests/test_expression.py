"""The expression language against a plain twin, and everything that it must refuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.expression import Expression, ExpressionError, parse

NAMES = ("a", "b", "inlet")
UNKNOWN = None


def known(x: float) -> float | None:
    return None if math.isnan(x) else x


def twin(text: str, values: dict[str, float]) -> float:
    """The rules in spoken words: None is not known; Kleene for and/or/not; everything else needs all its inputs."""
    import ast

    def walk(node: ast.expr) -> float | None:
        match node:
            case ast.Constant(value):
                return float(value)  # type: ignore[arg-type]
            case ast.Name(name):
                return known(values[name])
            case ast.UnaryOp(ast.Not(), operand):
                v = walk(operand)
                return None if v is None else float(v == 0)
            case ast.UnaryOp(ast.USub(), operand):
                v = walk(operand)
                return None if v is None else -v
            case ast.BoolOp(ast.And(), operands):
                found = [walk(o) for o in operands]
                return 0.0 if any(f == 0 for f in found) else None if None in found else 1.0
            case ast.BoolOp(ast.Or(), operands):
                found = [walk(o) for o in operands]
                return 1.0 if any(f is not None and f != 0 for f in found) else None if None in found else 0.0
            case ast.BinOp(left, op, right):
                x, y = walk(left), walk(right)
                if x is None or y is None:
                    return None
                return x + y if isinstance(op, ast.Add) else x - y if isinstance(op, ast.Sub) else x * y
            case ast.Compare(left, [op], [right]):
                x, y = walk(left), walk(right)
                if x is None or y is None:
                    return None
                return float(x > y if isinstance(op, ast.Gt) else x <= y)
        raise AssertionError(node)

    result = walk(ast.parse(text, mode="eval").body)
    return math.nan if result is None else result


leaf = st.sampled_from(["a", "b", "inlet", "1", "0", "2.5"])
expressions = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", ">", "<=", "and", "or"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda t: f"(not {t})"),
        inner.map(lambda t: f"(-{t})"),
    ),
    max_leaves=8,
)
number = st.sampled_from([math.nan, 0.0, 1.0, -3.0, 2.5])


@given(expressions, number, number, number)
def test_every_expression_gives_what_its_plain_twin_gives(text: str, a: float, b: float, inlet: float) -> None:
    values = {"a": a, "b": b, "inlet": inlet}
    try:
        expression = parse(text, NAMES)
    except ExpressionError as error:
        assert "uses no signal" in error.text
        return
    got = expression.evaluate({name: np.array([value, value]) for name, value in values.items()})
    assert got.tolist() == pytest.approx([twin(text, values)] * 2, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os').system('x')", "calls something"),
        ("a.real", "not allowed"),
        ("a[0]", "not allowed"),
        ("lambda: a", "not an expression"),
        ("[a for a in b]", "not an expression"),
        ("a if b else 1", "not an expression"),
        ("a // b", "operator that is not allowed"),
        ("a @ b", "operator that is not allowed"),
        ("a is b", "not an expression"),
        ("'text' + a", "not a number"),
        ("True", 'uses "True", which is no signal'),
        ("1j * a", "not a number"),
        ("a +", "not an expression"),
        ("", "not an expression"),
        ("inlt - a", 'did you mean "inlet"'),
        ("sin(a)", "functions: abs"),
        ("min(a)", "takes 2 to 20"),
        ("abs(a, b)", "takes 1 values"),
        ("max(a, b=1)", "calls something"),
        ("(" * 200 + "a" + ")" * 200, ""),
        ("-" * 100 + "a", "nested too deeply"),
        ("a" + "+a" * 400, "nested too deeply"),
        ("a+" * 600 + "a", "longer than"),
        ("1 + 2", "uses no signal"),
        ("a * 1" + "0" * 400, "too large"),
        ("(a := 1)", "not allowed"),
        ("a\0", ""),
    ],
)
def test_what_is_not_in_the_language_is_refused_with_words(text: str, says: str) -> None:
    try:
        parse(text, NAMES)
    except ExpressionError as error:
        assert says in error.text
    else:
        assert says == "", "was accepted"


def test_the_position_points_at_the_guilty_part() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse("  a + inlt", NAMES)
    assert caught.value.position == 6


def one(text: str, **values: float) -> float:
    expression: Expression = parse(text, NAMES)
    return float(expression.evaluate({name: np.float64(v) for name, v in values.items()}))  # type: ignore[misc]


def test_an_unknown_input_stays_unknown_even_where_ieee_says_one() -> None:
    assert math.isnan(one("a ** 0", a=math.nan))
    assert math.isnan(one("min(a, 1)", a=math.nan))
    assert math.isnan(one("max(1, a)", a=math.nan))


def test_arithmetic_chains_and_functions() -> None:
    assert one("0 < a <= 5", a=5) == 1
    assert one("0 < a <= 5", a=0) == 0
    assert one("sqrt(a ** 2) + abs(-b) % 3", a=4, b=5) == 6
    assert one("a / b", a=1, b=0) == math.inf
    assert math.isnan(one("sqrt(a)", a=-1))
    assert one("min(a, b, 3) + max(a, b)", a=7, b=2) == 9


@pytest.mark.parametrize("word", ["in", "from", "class", "is", "if", "lambda", "None", "True", "min", "async"])
def test_the_words_of_python_are_names_like_any_other(word: str) -> None:
    expression = parse(f"{word} * 2 > 3 and {word} < 9", (word,))
    assert expression.names == (word,)
    assert expression.evaluate({word: np.array([1.0, 2.0, 10.0])}).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ExpressionError, match=f'uses "{word}"'):
        parse(f"a > {word}", ("a",))


@pytest.mark.parametrize(
    ("text", "position"),
    [("a >", 3), ("a + * b", 4), ("  (a", 2), ("from + foo", 7), ("a + в", 4), ("a in b", 2), ("a +\n  wrong", 6)],
)
def test_what_is_wrong_is_told_at_its_character(text: str, position: int) -> None:
    with pytest.raises(ExpressionError) as error:
        parse(text, ("a", "b", "from"))
    assert error.value.position == position


def test_a_long_formula_may_stand_on_several_lines() -> None:
    assert parse("a +\n  b\n", ("a", "b")).names == ("a", "b")


def test_without_a_list_of_names_any_name_may_stand() -> None:
    assert parse("x > 1 and y < 2", None).names == ("x", "y")
