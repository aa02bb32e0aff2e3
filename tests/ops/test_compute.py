"""`compute`: formulas as NumPy computes them in float32 or float64, operation by operation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Bench, assert_same_bits, dtype
from strategies import FLOATS, array_of

from surgery_jax import Options, Problems, explain, plan_of
from surgery_jax.ops.compute import Divide, Everywhere, Quotient

RNG = np.random.default_rng(5)
NORMAL = ("float32", "bfloat16", "float16", "float64")


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return (wide(a) / wide(b)).astype(a.dtype)


def pair(name: str) -> list[np.ndarray]:
    return [array_of(name, (5, 7), 3), array_of(name, (5, 7), 6)]


REFERENCES = {
    "Everywhere": (
        [(Everywhere(0.1), pair(name)[:1]) for name in FLOATS],
        lambda op, x: np.full(x.shape, wide(x).dtype.type(op.value)).astype(x.dtype),
        "values",
    ),
    "Divide": ([(Divide(), pair(name)) for name in FLOATS], lambda op, a, b: divided(a, b), "values"),
    "Quotient": (
        [(Quotient(3.1), pair(name)[:1]) for name in FLOATS],
        lambda op, x: divided(x, np.full(x.shape, op.by, wide(x).dtype)).astype(x.dtype),
        "values",
    ),
}


@pytest.mark.parametrize("name", NORMAL)
@pytest.mark.parametrize("divisor", [3, 49, 0.1])
def test_a_division_by_a_number_is_rounded_once(tmp_path: Path, name: str, divisor: float) -> None:
    stored = RNG.standard_normal((40, 50)).astype(dtype(name))
    step = {"target": "x", "value": f"target / {divisor}"}
    found = Bench(tmp_path, m={"x": stored}).tensors([{"compute_": step}])["x"]
    number = np.full(stored.shape, divisor, wide(stored).dtype)
    assert_same_bits(found, (wide(stored) / number).astype(stored.dtype))


@pytest.mark.parametrize("name", NORMAL)
def test_a_formula_is_computed_as_it_is_written_and_rounded_once(tmp_path: Path, name: str) -> None:
    stored = {key: RNG.standard_normal((40, 50)).astype(dtype(name)) for key in ("base", "a", "b")}
    bench = Bench(tmp_path, m=stored)
    formula = "base + 0.5 * (a - base) - b / 3 + -b * (1 / 7 + a / b)"
    step = {"from": {"base": "base", "a": "a", "b": "b"}, "to": "new", "value": formula}
    base, a, b = (wide(stored[key]) for key in ("base", "a", "b"))
    kind = base.dtype.type
    t = base + kind(0.5) * (a - base) - b / kind(3) + (-b) * (kind(1 / 7) + a / b)
    assert t.dtype == base.dtype
    assert_same_bits(bench.tensors([{"compute": step}])["new"], t.astype(dtype(name)))


def test_a_formula_changes_tensors_or_slices_of_them_in_one_fused_group(tmp_path: Path) -> None:
    tuned = {f"w.{i}": RNG.standard_normal((30, 20)).astype("f4") for i in range(3)}
    base = {name: RNG.standard_normal((30, 20)).astype("f4") for name in tuned}
    steps = [
        {"compute_": {"target": "t::(.+)", "with": {"base": "b::\\1"}, "value": "base + 0.3 * (target - base)"}},
        {"compute_": {"target": "t::w.0::[[1, 4], :]", "value": "2 - target"}},
        {"prefixes": {"mode": "remove", "alias": "b"}},
    ]
    bench = Bench(tmp_path, t=tuned, b=base)
    groups = explain(plan_of(bench.plan([steps[0], steps[2]])), Options()).groups
    assert [group.kind for group in groups] == ["tiles"]
    found = bench.tensors(steps)
    for name, array in tuned.items():
        expected = base[name] + np.float32(0.3) * (array - base[name])
        if name == "w.0":
            expected[[1, 4]] = 2 - expected[[1, 4]]
        assert_same_bits(found[name], expected, name)


def test_a_formula_without_the_target_replaces_it(tmp_path: Path) -> None:
    tensors = {name: RNG.standard_normal((3, 2)).astype(dtype("bfloat16")) for name in "abc"}
    bench = Bench(tmp_path, m=tensors)
    step = {"compute_": {"target": "a", "with": {"one": "b", "two": "c"}, "value": "(one + two) / 2"}}
    mean = (wide(tensors["b"]) + wide(tensors["c"])) / np.float32(2)
    assert_same_bits(bench.tensors([step])["a"], mean.astype(dtype("bfloat16")))
    step["compute_"]["value"] = "one / 2"
    with pytest.raises(Problems, match="the formula has no two"):
        bench.compile([step])


REFUSED = {
    "a +": "not a formula",
    "a ** 2": "not a formula",
    "f(a)": "not a formula",
    "a.b": "not a formula",
    "'a' + a": "not a formula",
    "a[0]": "not a formula",
    "a + c": "does not say what c is",
    "1 + 2": "has no a",
    "a / (1 - 1)": "divides by zero",
    "a * 1e400": "not finite",
    "(" * 250 + "a" + ")" * 250: "formula",
    "a" + " + a" * 2000: "too long",
    "-" * 150 + "a": "too deep",
}


@pytest.mark.parametrize("formula", REFUSED)
def test_what_is_no_formula_is_refused(tmp_path: Path, formula: str) -> None:
    bench = Bench(tmp_path, m={"a": np.ones(3, "f4")})
    with pytest.raises(Problems) as refused:
        bench.compile([{"compute": {"from": {"a": "a"}, "to": "new", "value": formula}}])
    assert REFUSED[formula] in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_operands_of_other_shapes_and_dtypes_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"a": np.ones(3, "f4"), "b": np.ones(4, "f4"), "n": np.ones(3, "i4")})
    for other, problem in [("b", "shapes differ"), ("n", "dtypes differ"), ("absent", "missing")]:
        with pytest.raises(Problems, match=problem):
            bench.compile([{"compute": {"from": {"a": "a", "b": other}, "to": "new", "value": "a + b"}}])


@settings(max_examples=25, deadline=None)
@given(st.recursive(st.sampled_from(["a", "b", "2", "0.3"]), lambda x: st.tuples(x, st.sampled_from("+-*"), x)))
def test_formulas_drawn_at_random_are_those_of_numpy(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    def text(part: object) -> str:
        return part if isinstance(part, str) else f"({text(part[0])} {part[1]} {text(part[2])})"  # type: ignore[index]

    formula = f"({text(tree)}) + a * b"
    stored = {"a": RNG.standard_normal(64).astype("f4"), "b": RNG.standard_normal(64).astype("f4")}

    def value(part: object) -> object:
        if isinstance(part, str):
            return stored[part] if part in stored else float(part)
        left, right = value(part[0]), value(part[2])  # type: ignore[index]
        if not (isinstance(left, float) and isinstance(right, float)):
            left, right = (np.float32(x) if isinstance(x, float) else x for x in (left, right))
        return {"+": np.add, "-": np.subtract, "*": np.multiply}[part[1]](left, right)  # type: ignore[index]

    whole = value(tree)
    whole = np.float32(whole) if not isinstance(whole, np.ndarray) else whole
    step = {"from": {"a": "a", "b": "b"}, "to": "new", "value": formula}
    found = Bench(tmp_path_factory.mktemp("f"), m=stored).tensors([{"compute": step}])
    np.testing.assert_array_equal(found["new"], whole + stored["a"] * stored["b"])
