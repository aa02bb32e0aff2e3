"""Factors of what fine-tuning changed, and their merging, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import oracle
from cases import References, gaussian, gaussian_pair

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.lora.factors import AddFactors, ChangeEnergies, ExtractFactors


def change(base: np.ndarray, tuned: np.ndarray, turned: bool) -> np.ndarray:
    """[experts, out, in] in float64."""
    made = tuned.astype(np.float64) - base.astype(np.float64)
    made = made.reshape(-1, *made.shape[-2:])
    return made.swapaxes(1, 2) if turned else made


def extracted(op: ExtractFactors, base: np.ndarray, tuned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best approximation of every matrix, and the squared norms of the change and of the remainder."""
    made = change(base, tuned, op.transposed)
    u, s, vt = np.linalg.svd(made, full_matrices=False)
    rank = int(op.rank)
    best = (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]
    return best, np.array([np.square(s).sum(), np.square(s[:, rank:]).sum()])


def spectrum(count: int, base: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    made = change(base, tuned, False)
    wide = tuned.astype(np.float64).reshape(made.shape)
    step = np.spacing(np.abs(tuned)).astype(np.float64).reshape(made.shape)
    assert (wide != 0).all()
    noise = (np.square(step) / 12 * (made != 0)).sum(axis=(1, 2))
    energies = np.square(np.linalg.svd(made, compute_uv=False))
    return np.concatenate([np.square(made).sum(axis=(1, 2))[:, None], noise[:, None], energies[:, :count]], axis=1)


def added(name: str, experts: int, turned: bool, adapters: int) -> list[np.ndarray]:
    base = gaussian(name, 1, *([experts] if experts else []), *((5, 6) if turned else (6, 5)))
    many = max(experts, 1)
    return [base] + [
        gaussian("float32", seed, *shape)
        for seed, rank in ((5, 2), (7, 4))[:adapters]
        for shape in ((rank * many, 5), (6, rank * many))
    ]


def merged(op: AddFactors, base: np.ndarray, *given: np.ndarray) -> np.ndarray:
    """As PEFT says it (`get_delta_weight`): experts first in A, ranks first in B."""
    many = base.shape[0] if base.ndim == 3 else 1
    total = base.astype(np.float64).reshape(many, *base.shape[-2:])
    for a, b, turned, scale in zip(given[::2], given[1::2], op.transposed, op.scales, strict=True):
        left = b.astype(np.float64).reshape(b.shape[0], -1, many)
        right = a.astype(np.float64).reshape(many, -1, a.shape[1])
        total = total + scale * np.einsum("ore,eri->eio" if turned else "ore,eri->eoi", left, right)
    return oracle.round_float(total, base.dtype).reshape(base.shape)


def assert_extracted(found: Sequence[np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
    a, b, norms = (array.astype(np.float64) for array in found)
    best, wanted = expected
    width = 3  # of all cases
    many, out, _ = best.shape
    parts = b[: out * width * many].reshape(out, width, many), a[: many * width].reshape(many, width, -1)
    np.testing.assert_allclose(np.einsum("ore,eri->eoi", *parts), best, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)


REFERENCES: References = {
    "ExtractFactors": (
        [
            (ExtractFactors(room, "auto", BY_NAME["float32"], turned, 2.0, width), gaussian_pair(n, *shape))
            for n, shape, room, width, turned in (
                ("bfloat16", (6, 5), 4, 3.0, True),
                ("float32", (3, 6, 5), 3, 3.0, False),
            )
        ],
        extracted,
        assert_extracted,
    ),
    "ChangeEnergies": (
        [
            (ChangeEnergies(2, "auto"), gaussian_pair("bfloat16", 6, 5)),
            (ChangeEnergies(5, "auto"), gaussian_pair("float32", 3, 6, 5)),
        ],
        lambda op, base, tuned: spectrum(op.count, base, tuned),
        "single",
    ),
    "AddFactors": (
        [
            (AddFactors((turned,) * adapters, (0.5, -2.0)[:adapters]), added(n, experts, turned, adapters))
            for n, experts in (("bfloat16", 0), ("float32", 3))
            for turned in (False, True)
            for adapters in (1, 2)
        ]
        + [
            (  # square, and of two opinions
                AddFactors((True, False), (0.5, -2.0)),
                [gaussian("float32", seed, *shape) for seed, shape in enumerate([(3, 6, 6), *[(6, 6)] * 4], 1)],
            )
        ],
        merged,
        "close",
    ),
}
