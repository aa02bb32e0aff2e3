"""Helpers of the tests of Orbax: models, the trees that they are, and the ways in which Orbax loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def a_model(path: Path, rows: int = 24, has_small: bool = True) -> dict[str, np.ndarray]:
    """A safetensors file of all kinds of numbers, under nested names."""
    import ml_dtypes
    from safetensors.numpy import save_file

    rng = np.random.default_rng(5)
    dtypes = ["float32", "float64", "float16", "int8", "int64", "uint16", "bool", "complex64"]
    tensors = {
        f"params.layers.{at}.{name}": rng.integers(0, 2, (rows, 6)).astype(name) for at, name in enumerate(dtypes)
    }
    tensors["params.head.kernel"] = rng.standard_normal((rows, 50)).astype(ml_dtypes.bfloat16)
    tensors["params.head.bias"] = rng.standard_normal(50).astype(np.float32)
    if has_small:
        tensors["params.small"] = rng.standard_normal((2, 3)).astype(ml_dtypes.float8_e4m3fn)
    tensors["step"] = np.array(3, np.int32)
    save_file(tensors, path, {"format": "pt", "note": "kept"})
    return tensors


def nested(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *keys, last = name.split(".")
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = array
    return tree


def assert_equal_trees(found: Any, expected: Any) -> None:
    import jax

    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def load_v1(path: Path) -> Any:
    from orbax.checkpoint import v1 as ocp

    return ocp.load(path)


def load_v0(path: Path) -> Any:
    import orbax.checkpoint

    return orbax.checkpoint.PyTreeCheckpointer().restore(path)


def load_standard(path: Path) -> Any:
    import orbax.checkpoint

    return orbax.checkpoint.StandardCheckpointer().restore(path)
