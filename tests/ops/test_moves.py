"""Elements that only change place, against NumPy and einops' documented meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import References, ordinary, pair
from running import Bench, assert_same_bits, dtype
from strategies import NUMBERS

from surgery_jax import Options, Problems, explain, plan_of
from surgery_jax.kit.structure import Update, View
from surgery_jax.language.slices import Indices
from surgery_jax.ops.assign import Assign
from surgery_jax.ops.concat import Concat
from surgery_jax.ops.copy import Copy
from surgery_jax.ops.permute import Permute
from surgery_jax.ops.repeat import Repeat
from surgery_jax.ops.reshape import Reshape

RNG = np.random.default_rng(31)
W = RNG.standard_normal((6, 4, 2)).astype(dtype("bfloat16"))


def repeated(op: Repeat, x: np.ndarray) -> np.ndarray:
    return np.repeat(x, op.times, op.dim) if op.each else np.concatenate([x] * op.times, op.dim)


VIEW = View(((1, 2, 2), (0, 1, 3), (2, 1, 1)), (False, False, True))
UPDATE = Update(VIEW)


CHOSEN = View((Indices((0, 1, 4)), (2, 1, 1), Indices((3, 1))), (False, True, False))


def indices(view: View) -> Any:
    chosen = (
        axis.places if isinstance(axis, Indices) else range(axis[0], axis[0] + axis[1] * axis[2], axis[1])
        for axis in view.axes
    )
    return np.ix_(*chosen)


def put(op: Update, base: np.ndarray, value: np.ndarray) -> np.ndarray:
    result = base.copy()
    result[indices(op.view)] = value.reshape(op.view.counts)
    return result


REFERENCES: References = {
    "Copy": ([(Copy(), [ordinary(n, 2, 3)]) for n in NUMBERS], lambda op, x: x, "bits"),
    "Assign": ([(Assign(), pair("float16"))], lambda op, a, b: b, "bits"),
    "Reshape": ([(Reshape((7, -1)), pair(n)[:1]) for n in ("int8", "float64")], lambda op, x: x.reshape(7, 5), "bits"),
    "Permute": ([(Permute((2, 0, 1)), [ordinary("bfloat16", 2, 2, 4)])], lambda op, x: x.transpose(2, 0, 1), "bits"),
    "Concat": (
        [(Concat(axis), [ordinary("int16", 2, 3), ordinary("int16", 2, 3)]) for axis in (0, 1, -1)],
        lambda op, *parts: np.concatenate(parts, op.dim),
        "bits",
    ),
    "View": (
        [(view, [ordinary(n, 5, 3, 4)]) for n in ("float8_e4m3fn", "float64") for view in (VIEW, CHOSEN)],
        lambda op, x: x[indices(op)].reshape(op.shape),
        "bits",
    ),
    "Update": (
        [(UPDATE, [ordinary(n, 5, 3, 4), ordinary(n, 2, 3)]) for n in ("int8", "float64")]
        + [(Update(CHOSEN), [ordinary("int16", 5, 3, 4), ordinary("int16", 3, 2)])],
        put,
        "bits",
    ),
    "Repeat": (
        [(Repeat(n, dim, each), [W[:2, :2, :1]]) for n in (1, 3) for dim in (0, 1, -1) for each in (False, True)],
        repeated,
        "bits",
    ),
}

PATTERNS = {
    "(h d) i n -> h d i n": (2, W.reshape(2, 3, 4, 2)),
    "(h d) i n -> (d h) (n i)": (2, W.reshape(2, 3, 4, 2).transpose(1, 0, 3, 2).reshape(6, 8)),
    "a (h d) n -> n 1 a (d h)": (2, W.reshape(6, 2, 2, 2).transpose(3, 0, 2, 1).reshape(2, 1, 6, 4)),
    "a b n -> (n b a)": (None, W.transpose(2, 1, 0).reshape(-1)),
    "h d i -> h d i": (None, W),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rearrange_is_what_its_pattern_says(tmp_path: Path, pattern: str) -> None:
    size, expected = PATTERNS[pattern]
    step = {"from": "w", "to": "new", "pattern": pattern} | ({"sizes": {"h": size}} if size else {})
    found = Bench(tmp_path, m={"w": W}).tensors([{"rearrange": step}])
    assert_same_bits(found["new"], expected)


@pytest.mark.parametrize(
    ("shape", "pattern", "expected"),
    [
        ((0, 4), "a b -> b a", (4, 0)),
        ((2, 0, 3), "(h d) i j -> (j h) (i d)", (6, 0)),
        ((0, 4), "(h d) i -> h d i", (2, 0, 4)),
    ],
)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int64", "bool", "float8_e4m3fn"])
def test_rearrange_takes_tensors_without_elements(
    tmp_path: Path, shape: tuple[int, ...], pattern: str, expected: tuple[int, ...], kind: str
) -> None:
    sizes = {"sizes": {"h": 2}} if "h" in pattern else {}
    steps = [{"rearrange": {"from": "w", "to": "new", "pattern": pattern, **sizes}}]
    found = Bench(tmp_path, m={"w": np.zeros(shape, dtype(kind))}).tensors(steps)
    assert found["new"].shape == expected and found["new"].dtype == dtype(kind)


def test_rearrange_puts_rows_of_rotary_embeddings_into_the_other_order(tmp_path: Path) -> None:
    q = RNG.standard_normal((16, 5)).astype("f4")  # 2 heads of 8, halves to pairs as Meta's checkpoints have them
    step = {"target": "q", "pattern": "(h two d) i -> (h d two) i", "sizes": {"two": 2, "d": 4}}
    found = Bench(tmp_path, m={"q": q}).tensors([{"rearrange_": step}])
    assert_same_bits(found["q"], q.reshape(2, 2, 4, 5).swapaxes(1, 2).reshape(16, 5))


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("a b -> b a", "another number of axes"),
        ("(a b) c d -> a b c d", "cannot both be found"),
        ("a b c -> a b", "only on one side: c"),
        ("a a b -> a b", "twice"),
        ("a b c", "one arrow"),
        ("(a b c -> a b c", "not closed"),
        ("a ... c -> c a", "has no place"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tmp_path: Path, pattern: str, problem: str) -> None:
    with pytest.raises(Problems, match=problem):
        Bench(tmp_path, m={"w": W}).compile([{"rearrange_": {"target": "w", "pattern": pattern}}])
    sizes = {"pattern": "(h d) i n -> h d i n", "sizes": {"h": 4}}
    with pytest.raises(Problems, match="does not fit an axis of length 6"):
        Bench(tmp_path, m={"w": W}).compile([{"rearrange_": {"target": "w", **sizes}}])


def test_transpose_exchanges_two_axes(tmp_path: Path) -> None:
    steps = [{"transpose": {"from": "w", "to": "last"}}, {"transpose_": {"target": "w", "dims": [0, -1]}}]
    found = Bench(tmp_path, m={"w": W}).tensors(steps)
    assert_same_bits(found["last"], W.swapaxes(-1, -2))
    assert_same_bits(found["w"], W.swapaxes(0, 2))
    with pytest.raises(Problems, match="no axis 3"):
        Bench(tmp_path, m={"w": W}).compile([{"transpose_": {"target": "w", "dims": [0, 3]}}])


@pytest.mark.parametrize(
    "step",
    [
        {"repeat": {"from": "s", "to": "more", "times": 2}},
        {"pad_": {"target": "s", "after": 1}},
        {"resize_": {"target": "s", "size": 1}},
    ],
)
def test_a_scalar_is_said_to_have_no_axis(tmp_path: Path, step: dict[str, Any]) -> None:
    with pytest.raises(Problems, match=r"a scalar has no axis[\s\S]*reshape it"):
        Bench(tmp_path, m={"s": np.float32(1)}).compile([step])


def test_what_is_repeated_is_moved_and_not_computed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": RNG.standard_normal((8, 3000)).astype("f4")})
    steps = [
        {"repeat": {"from": "w", "to": "tiled", "times": 3}},
        {"repeat": {"from": "w", "to": "each", "times": 3, "each": True}},
    ]
    found = explain(plan_of(bench.plan(steps)), Options())
    assert not found.groups
    made = bench.tensors(steps)
    assert_same_bits(made["tiled"], np.tile(made["w"], (3, 1)))
    assert_same_bits(made["each"], np.repeat(made["w"], 3, 0))
    with pytest.raises(Problems, match="times must be at least 1"):
        bench.compile([{"repeat": {"from": "w", "to": "none", "times": 0}}])


@pytest.mark.parametrize("options", [{}, {"memory": "6MiB", "workers": 1}], ids=["ample", "tight"])
def test_index_sets_are_read_and_written_whatever_their_runs_are(tmp_path: Path, options: dict[str, str]) -> None:
    stored = {
        "long": RNG.standard_normal((600, 500)).astype("f4"),
        "rows": RNG.standard_normal((40, 3000)).astype("f4"),
    }
    rows, columns = RNG.permutation(600)[:300].tolist(), RNG.permutation(500)[:40].tolist()
    steps = [
        {"copy": {"from": f"long::[{rows}, {columns}]", "to": "part"}},
        {"copy": {"from": "rows::[[7, 3, 3]]", "to": "again"}},
        {"assign": {"from": f"long::[:40, {columns}]", "to": f"rows::[:, {columns}]"}},
        {"scale_": {"target": f"long::[{rows}]", "by": 2}},
    ]
    found = Bench(tmp_path, m=stored).tensors(steps, **options)
    assert_same_bits(found["part"], stored["long"][np.ix_(rows, columns)])
    assert_same_bits(found["again"], stored["rows"][[7, 3, 3]])
    expected = stored["rows"].copy()
    expected[:, columns] = stored["long"][:40, columns]
    assert_same_bits(found["rows"], expected)
    expected = stored["long"].copy()
    expected[rows] *= 2
    assert_same_bits(found["long"], expected)
