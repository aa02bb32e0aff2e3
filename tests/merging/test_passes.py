"""Ranks that are found in passes over tiles: what is kept is what sorting all elements would keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits

RNG = np.random.default_rng(77)
Drawn = Callable[[int], np.ndarray]


def _alternating(size: int) -> np.ndarray:
    """Two magnitudes, each half of the elements."""
    return np.where(np.arange(size) % 2 == 0, np.float32(1), np.float32(-2))


KINDS: dict[str, Drawn] = {
    "few magnitudes": lambda size: np.round(RNG.standard_normal(size) * 4) / 4,
    "two magnitudes whose limit is the rank": _alternating,
    "neighbours": lambda size: np.where(RNG.random(size) < 0.5003, 1, np.nextafter(np.float32(1), np.float32(2))),
    "one magnitude": lambda size: np.full(size, -0.375),
    "mostly zeros": lambda size: RNG.standard_normal(size) * (RNG.random(size) < 0.2),
    "continuous": lambda size: RNG.standard_normal(size),
    "of all sizes": lambda size: RNG.standard_normal(size) * 2.0 ** RNG.integers(-60, 60, size),
    "large at the end": lambda size: np.where(np.arange(size) > 0.9 * size, 9, RNG.standard_normal(size)),
}


def kept(delta: np.ndarray, first: int, end: int) -> np.ndarray:
    """The elements from one rank to another, from 0, of the largest magnitudes; of equal ones the first."""
    order = np.argsort(-np.abs(delta).reshape(-1), kind="stable")[first:end]
    result = np.zeros_like(delta).reshape(-1)
    result[order] = delta.reshape(-1)[order]
    return result.reshape(delta.shape)


@pytest.mark.parametrize("size", [70_001, 1_200_000])  # in tiles in NumPy, and in tiles on a device
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_sorting_would_keep(tmp_path: Path, kind: str, size: int) -> None:
    delta = KINDS[kind](size).astype("f4")
    steps: list[Any] = [
        {"merge": {"method": method, "base": "b::w", "models": {"m": own}, "weight": 1, "to": f"b::{method}"}}
        for method, own in (("ties", {"density": 0.5}), ("breadcrumbs", {"density": 0.3, "gamma": 0.13}))
    ]
    bench = Bench(tmp_path, b={"w": np.zeros(size, "f4")}, m={"w": delta})
    made = bench.tensors(steps, memory="24MiB" if size < 100_000 else "96MiB", workers=1)
    assert_same_bits(made["ties"] + 0.0, kept(delta, 0, size // 2) + 0.0)
    top = int(0.13 * size)
    assert_same_bits(made["breadcrumbs"] + 0.0, kept(delta, top, top + int(0.3 * size)) + 0.0)
