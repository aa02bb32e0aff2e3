"""Promises of expressions: Python's values, nothing that acts, and bounds on size and work."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_jax.core.errors import PlanError
from surgery_jax.language.expressions import ExpressionBudget, Named, evaluate, is_expression
from surgery_jax.language.functions import FUNCTIONS

NAMES = {"n": 3, "x": 2.5, "w": "word", "xs": [3, 1, 2], "m": {"key": 7, "deep": {"a": [1, 2]}}, "none": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + n * 2", 7), ("7 // 2", 3), ("7 % 4", 3), ("2 ** 10", 1024), ("7 / 2", 3.5), ("-n", -3),
        ("not true", False),
        ("w + '!'", "word!"), ("w * 2", "wordword"), ("xs + [4]", [3, 1, 2, 4]), ("[0] * 3", [0, 0, 0]),
        ("m.key", 7), ("m['key']", 7), ("m.deep.a[1]", 2), ("xs[-1]", 2), ("xs[1:]", [1, 2]), ("w[:2]", "wo"),
        ("'big' if n > 2 else 'small'", "big"), ("1 < n <= 3", True), ("n in xs", True), ("'key' in m", True),
        ("null is none", True), ("range(n)", [0, 1, 2]), ("range(1, 7, 2)", [1, 3, 5]), ("len(xs)", 3),
        ("max(xs)", 3), ("min(n, x)", 2.5), ("round(x)", 2), ("round(2.456, 1)", 2.5), ("sorted(xs)", [1, 2, 3]),
        ("sum(i for i in xs)", 6), ("[i * j for i in range(2) for j in xs if j != i]", [0, 0, 0, 3, 2]),
        ("f'{w}-{n}'", "word-3"), ("{'a': n}", {"a": 3}), ("n and 0 or w", "word"), ("int('12') + int(2.9)", 14),
        ("any(i > 2 for i in xs)", True), ("all(i > 2 for i in xs)", False), ("'\\\\d'", "\\d"), ("(1,\n 2)", [1, 2]),
        ("ceil(1.2) + floor(1.8)", 3), ("log2(8)", 3.0), ("[k for k in m]", ["key", "deep"]),
        ("{f'e{i}': [i] for i in xs if i > 1}", {"e3": [3], "e2": [2]}), ("join(xs, ' + ')", "3 + 1 + 2"),
    ],
)  # fmt: skip
def test_an_expression_has_the_value_that_python_gives(text, value):
    found = evaluate(text, NAMES)
    assert found == value and type(found) is type(value)


NUMBERS = st.integers(-20, 20).map(str) | st.sampled_from(["n", "x", "len(xs)", "xs[0]", "m['key']"])
ARITHMETIC = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "<", "==", "and", "or"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        )
        | st.tuples(inner, inner, inner).map(lambda parts: "({} if {} else {})".format(*parts))
        | inner.map("max([{}, 1])".format)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(ARITHMETIC)
def test_arithmetic_agrees_with_python(text):
    try:
        expected = eval(text, {"__builtins__": {}, "max": max, "len": len} | NAMES)
    except ArithmeticError:
        with pytest.raises(PlanError):
            evaluate(text, NAMES)
    else:
        assert evaluate(text, NAMES) == expected


@settings(max_examples=300)
@given(st.text(alphabet="nxw_.()[]{}:,+-*/%<>=! '\"0123456789abdefilrst\\\n#@", max_size=40))
def test_any_text_has_a_value_or_is_refused_with_a_message(text):
    try:
        value = evaluate(text, NAMES)
    except PlanError as error:
        assert error.problem
    else:
        assert isinstance(value, bool | int | float | str | list | dict | None) and is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "().__class__", "w.upper()", "xs.append(1)", "m.keys()", "(lambda: 1)()", "[y := 1]", "len",
        "open('x')", "f'{w!r}'", "f'{n:99999}'", "'%s' % n", "print(1)", "max(*xs)", "max(xs, key=len)", "{**m}", "~n",
        "n @ n", "n << 9", "{1, 2}", "b'x'", "...", "await x", "[i async for i in xs]", "[i for i, j in xs]", "1j",
        "(-1) ** 0.5", "eval('1')", "getattr(m, 'key')", "FUNCTIONS", "__builtins__", "w.__len__", "m.key.real",
    ],
)  # fmt: skip
def test_what_would_act_or_reach_into_objects_is_refused(text):
    with pytest.raises(PlanError):
        evaluate(text, NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "range(10 ** 30)", "range(10 ** 9)", "'x' * 10 ** 9", "[0] * 10 ** 9", "10 ** 10 ** 10", "9 ** 9 ** 9",
        "str([[0] * 90000] * 90000)", "[[0] * 90000] * 90000", "round(10, -10 ** 9)", "sum([[0]] * 9, [])",
        "[i for i in range(9999) for j in range(9999)]", "[x in xs * 9000 for x in range(99)]",
        "[[0] * 9000 for i in range(999)]", "[2 ** 4000] * 99999", "int('9' * 99999)", "sorted([[0] * 49999] * 2)",
        "(" * 4000, "[" * 4000, "-" * 4000 + "1", "not " * 1000 + "1", "+".join(["1"] * 2000), "1" * 4096,
        "max([0] * 99999 == [0] * 99999 for i in range(99))", "x" * 5000, "2 ** 4095 * 2 ** 4095", "f'{xs}' * 99999",
        "join(['x' * 9999] * 99)", "join([''] * 99999, 'xx')", "{i: [0] * 9000 for i in range(999)}",
    ],
)  # fmt: skip
def test_what_would_be_large_or_take_long_is_refused_soon(text):
    began = time.process_time()
    with ThreadPoolExecutor(1) as pool, pytest.raises(PlanError):  # whose stack may be smaller
        pool.submit(evaluate, text, NAMES).result()
    assert time.process_time() - began < 5


def test_several_expressions_share_what_they_may_do():
    work = ExpressionBudget(steps=100)
    with pytest.raises(PlanError, match="too many steps"):
        for _ in range(100):
            evaluate("1 + 1", {}, work)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wrd", "unknown name 'wrd'; did you mean w"), ("m.kex", "unknown key 'kex'; did you mean key"),
        ("c.hiden", "unknown key 'hiden' of model/config.json; did you mean hidden"), ("xs[9]", "no place 9 among 3"),
        ("foo(1)", "'foo' is no function; there are abs"), ("1 +", "not an expression: '1 \\+'"),
        ("n / 0", "division by zero"), ("w + n", "in the expression 'w \\+ n': can only concatenate"),
        ("max([])", "empty"), ("len(n)", "no len"), ("10 ** 400 * 1.0", "too large"),
        ("join(xs, n)", "join takes a list, and the text"), ("join([xs])", "a list of numbers and texts"),
    ],
)  # fmt: skip
def test_an_error_names_the_expression_and_the_cause(text, words):
    with pytest.raises(PlanError, match=words):
        evaluate(text, NAMES | {"c": Named({"hidden": 1}, "model/config.json")})


def test_the_functions_are_those_that_are_documented():
    assert set(FUNCTIONS) == set(
        "abs all any bool ceil float floor int join len log2 max min range round sorted sqrt str sum".split()
    )
