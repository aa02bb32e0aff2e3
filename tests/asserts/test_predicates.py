"""What every assertion expression accepts, by tables; and that an oracle agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from cases import References, pair
from oracle import Oracle
from running import Bench, dtype
from strategies import NUMBERS

from surgery_jax import SurgeryError
from surgery_jax.asserts.iszero import ZeroMask
from surgery_jax.kit.masks import EqualMask


def half_equal(name: str) -> list[np.ndarray]:
    a, b = pair(name)
    return [a, np.where(np.arange(35).reshape(5, 7) % 2, a, b)]


def equal(op: EqualMask, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = oracle.real(a), oracle.real(b)
    return (x == y if a.dtype.kind not in "iu" else a == b) if op.eps is None else np.abs(x - y) <= op.eps


REFERENCES: References = {
    "EqualMask": ([(EqualMask(eps), half_equal(n)) for n in NUMBERS for eps in (None, 0.5)], equal, "bits"),
    "ZeroMask": (
        [(ZeroMask(eps), pair(n)[:1]) for n in NUMBERS for eps in (None, 0.5)],
        lambda op, x: np.abs(oracle.real(x)) <= (op.eps or 0),
        "bits",
    ),
}

NAN, INF = float("nan"), float("inf")
MODEL = {
    "h.0.w": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    "h.1.w": np.array([[1, 2, 3], [4, 5, 6.5]], np.float32),
    "zero": np.zeros((2, 3), np.float32),
    "minus": -np.zeros((2, 3), np.float32),
    "nan": np.array([[0, NAN, 0], [0, 0, 0]], np.float32),
    "inf": np.array([INF, -INF, 1], np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(0.5, np.float32),
    "yes": np.array([True, True]),
    "big": np.array([2**53, 2**53 + 1]),
    "other": np.array([2**53 + 1, 2**53 + 1]),
    "f8": np.array([0.5, -0.0, 448]).astype(dtype("float8_e4m3fn")),
    "half": np.array([1e-3, 0, 0], np.float16),
}

HOLD: list[Any] = [
    {"exists": "zero"},
    {"exists": r"h\..*"},
    {"exists": ["h", "$i", "w"]},
    {"count": {"of": r"h\..*", "is": 2}},
    {"count": {"of": "zero", "is": True}},
    {"shape": {"of": r"h\..*", "is": [2, 3]}},
    {"shape": {"of": "scalar", "is": []}},
    {"shape": {"of": "m::h.0.w::[0]", "is": [3]}},
    {"dtype": {"of": "half", "is": " FP16 "}},
    {"dtype": {"of": r"h\..*", "is": "float"}},
    {"dimensions": {"of": ".*", "lt": 3}},
    {"dimensions": {"of": "scalar", "is": 0}},
    {"dimensions": {"of": "zero", "ge": 1, "gt": 1, "le": 2, "lt": 3}},
    {"iszero": "zero"},
    {"iszero": "minus"},
    {"iszero": "empty"},
    {"iszero": "m::nan::[1]"},
    {"iszero": {"of": "half", "eps": 0.00101}},
    {"iszero": {"of": "inf", "eps": INF}},
    {"equal": {"left": "zero", "right": "minus"}},
    {"equal": {"left": r"h\.(\d)\.w", "right": r"h.\1.w"}},
    {"equal": {"left": "h.0.w", "right": "h.1.w", "eps": 0.5}},
    {"equal": {"left": "inf", "right": "inf"}},
    {"equal": {"left": "f8", "right": "f8"}},
    {"equal": {"left": "big", "right": "other", "eps": 0}},  # equal in float64
    {"equal": {"left": "m::h.0.w::[1, :2]", "right": "m::h.1.w::[1, :2]"}},
    {"all": [{"exists": "zero"}, {"iszero": "zero"}]},
    {"any": [{"exists": "nothing"}, {"iszero": "nothing"}, {"iszero": "zero"}]},
    {"reads": {"of": "zero", "is": 0, "le": 4}},
    {"writes": {"of": ".*", "at_least": 1, "at_most": 1}},
]
FAIL: list[Any] = [
    {"exists": "nothing"},
    {"exists": "h.0"},
    {"count": {"of": "nothing", "is": 0}},
    {"count": {"of": r"h\..*", "is": 1}},
    {"shape": {"of": "zero", "is": [2, -1]}},
    {"shape": {"of": ".*", "is": [2, 3]}},
    {"dtype": {"of": ".*", "is": "float32"}},
    {"dimensions": {"of": ".*", "ge": 1}},
    {"iszero": "nan"},
    {"iszero": {"of": "nan", "eps": INF}},
    {"iszero": "yes"},
    {"iszero": "half"},
    {"iszero": {"of": "half", "eps": 0.0009}},
    {"iszero": "nothing"},
    {"equal": {"left": "nan", "right": "nan"}},
    {"equal": {"left": "inf", "right": "inf", "eps": 0}},
    {"equal": {"left": "h.0.w", "right": "h.1.w"}},
    {"equal": {"left": "h.0.w", "right": "h.1.w", "eps": 0.4999}},
    {"equal": {"left": "big", "right": "other"}},
    {"equal": {"left": "zero", "right": "nothing"}},
    {"equal": {"left": "zero", "right": "half", "eps": 10}},
    {"equal": {"left": "m::zero::[0]", "right": "zero"}},
    {"equal": {"left": r"h\.\d\.w", "right": "zero"}},  # both map to one name
    {"all": [{"exists": "zero"}, {"iszero": "yes"}]},
    {"any": [{"exists": "nothing"}, {"iszero": "yes"}]},
    {"reads": {"of": "zero", "ge": 1}},
    {"writes": {"of": "zero", "lt": 1}},
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("predicates"), m=MODEL)


def test_expressions_that_hold_pass_all_in_one_plan(bench: Bench) -> None:
    state = Oracle.of(m=MODEL)
    # counters first: the others read
    ordered = sorted(HOLD, key=lambda expression: not {"reads", "writes"} & expression.keys())
    assert [expression for expression in ordered if not state._attempt(expression)] == []
    bench.report([{"assert": expression} for expression in ordered], output=False)
    bench.report([{"assert": {"all": ordered}}], output=False)
    bench.report([{"assert": {"not": {"not": expression}}} for expression in ordered], output=False)


def test_expressions_that_fail_pass_inside_not(bench: Bench) -> None:
    ordered = sorted(FAIL, key=lambda expression: not {"reads", "writes"} & expression.keys())
    state = Oracle.of(m=MODEL)
    assert [expression for expression in ordered if state._attempt(expression)] == []
    bench.report([{"assert": {"not": expression}} for expression in ordered], output=False)
    bench.report([{"assert": {"not": {"any": ordered}}}], output=False)


@pytest.mark.parametrize("number", range(len(FAIL)))
def test_an_expression_that_fails_ends_the_plan_with_one_error_of_exit_code_1(bench: Bench, number: int) -> None:
    with pytest.raises(SurgeryError) as failed:
        bench.report([{"assert": FAIL[number]}], output=False)
    assert failed.value.exit_code == 1 and "assertion failed: " in str(failed.value)


WRONG: list[Any] = [
    ["exists", "zero"],
    "exists",
    None,
    {"exists": "zero", "iszero": "zero"},
    {"exist": "zero"},
    {"exists": {"of": "zero"}},
    {"count": {"of": "zero"}},
    {"count": {"of": "zero", "is": 1.0}},
    {"count": {"of": "zero", "ge": 1}},
    {"shape": {"of": "zero", "is": "2,3"}},
    {"dtype": {"of": "zero", "is": "float31"}},
    {"dimensions": {"of": "zero"}},
    {"dimensions": {"of": "zero", "ge": 3, "le": 2}},
    {"dimensions": {"of": "zero", "is": 2, "lt": 2}},
    {"dimensions": {"of": "zero", "ge": -1}},
    {"reads": {"of": "zero", "ge": 1, "at_least": 2}},
    {"iszero": {"of": "zero", "eps": -1}},
    {"iszero": {"of": "zero", "eps": True}},
    {"equal": {"left": "zero", "right": "minus", "eps": "1"}},
    {"equal": {"left": "zero"}},
    {"all": []},
    {"any": {"exists": "zero"}},
    {"not": [{"exists": "zero"}]},
    {"not": {"exist": "zero"}},
    {"exists": "other_alias::zero"},
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_an_expression_of_the_wrong_form_is_an_error_of_the_plan(bench: Bench, number: int) -> None:
    with pytest.raises(SurgeryError) as refused:
        bench.compile([{"assert": WRONG[number]}], output=False)
    assert refused.value.exit_code == 2


def test_assertions_decided_by_headers_read_no_tensor(bench: Bench) -> None:
    steps = [{"assert": e} for e in HOLD if next(iter(e)) in ("exists", "count", "shape", "dtype", "dimensions")]
    report = bench.report(steps, output=False)
    assert report.bytes_read == report.num_compilations == 0


def test_a_false_header_assertion_is_found_without_running(bench: Bench) -> None:
    with pytest.raises(SurgeryError) as failed:
        bench.compile([{"assert": {"shape": {"of": "zero", "is": [3]}}}], output=False)
    assert failed.value.exit_code == 1 and "zero is [2, 3], expected [3]" in str(failed.value)


def test_an_assertion_inside_any_names_every_reason(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"none of any holds: .*match nothing.*; .*yes: 2 of 2"):
        bench.report([{"assert": {"any": [{"exists": "nothing"}, {"iszero": "yes"}]}}], output=False)
