"""`einsum`: as NumPy's, in float32 for narrow floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from running import Bench, dtype

from surgery_jax import Problems
from surgery_jax.ops.einsum import Einsum

RNG = np.random.default_rng(12)


def normal(name: str, *shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype(name))


SHAPES = {"B": (6, 2), "A": (2, 5)}


def reference(op: Einsum, *arrays: np.ndarray) -> np.ndarray:
    wide = [x if x.dtype.kind in "iu" else x.astype(np.float64) for x in arrays]
    return np.einsum(op.equation, *wide).astype(arrays[0].dtype)


REFERENCES = {
    "Einsum": (
        [(Einsum("ij,jk->ik"), [normal(name, 3, 4), normal(name, 4, 5)]) for name in ("float32", "bfloat16", "float64")]
        + [
            (Einsum("e o r, e r i -> e i o"), [normal("float32", 2, 3, 4), normal("float32", 2, 4, 5)]),
            (Einsum("hij->ij"), [normal("float32", 2, 3, 4)]),
            (Einsum("a,b,c->cab"), [normal("float32", n) for n in (2, 3, 4)]),
            (Einsum("ii->i"), [np.arange(9, dtype=np.int32).reshape(3, 3)]),
        ],
        reference,
        "close",
    )
}


def test_einsum_of_several_tensors_of_every_module(tmp_path: Path) -> None:
    stored = {f"{n}.{side}": normal("float32", *shape) for n in range(2) for side, shape in SHAPES.items()}
    step = {"from": "(\\d)\\.B", "and": ["\\1.A"], "to": "\\1.delta", "equation": "o r, r i -> i o"}
    found = Bench(tmp_path, m=stored).tensors([{"einsum": step}])
    for n in range(2):
        expected = torch.einsum("or,ri->io", *(torch.tensor(stored[f"{n}.{side}"]) for side in "BA"))
        np.testing.assert_allclose(found[f"{n}.delta"], expected, rtol=1e-6)
    alone = Bench(tmp_path, m=stored).tensors([{"einsum": {"from": "0.A", "to": "t", "equation": "ri->r"}}])
    np.testing.assert_allclose(alone["t"], stored["0.A"].sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("equation", "problem"),
    [
        ("ij,jk", "not an equation"),
        ("ij,jk->il", "not an equation"),
        ("ij,jk->ii", "not an equation"),
        ("...i,ij->j", "not an equation"),
        ("ij->ji", "another number of operands"),
        ("ijk,jk->i", "another number of axes"),
        ("ij,kj->ik", "axis j has two lengths"),
    ],
)
def test_an_equation_that_does_not_fit_is_refused(tmp_path: Path, equation: str, problem: str) -> None:
    bench = Bench(tmp_path, m={"a": np.ones((3, 4), "f4"), "b": np.ones((4, 5), "f4")})
    with pytest.raises(Problems, match=problem):
        bench.compile([{"einsum": {"from": "a", "and": ["b"], "to": "c", "equation": equation}}])
