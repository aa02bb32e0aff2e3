"""What merge methods are made of, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from running import assert_same_bits, dtype

from surgery_jax.merging.drops import Drop
from surgery_jax.merging.largest import Keep, Largest, LargestOfAll, Middle, Quartiles
from surgery_jax.merging.methods.arcee_fusion import Divergence, Importance, TakeAbove
from surgery_jax.merging.methods.karcher import KarcherFactors
from surgery_jax.merging.methods.model_stock import RowStock, StockFactors
from surgery_jax.merging.methods.multislerp import MultiSlerpFactors
from surgery_jax.merging.methods.nearswap import Nearing
from surgery_jax.merging.methods.nuslerp import NuSlerpFactors, RowSlerp
from surgery_jax.merging.methods.ram import AddChanges, Shares
from surgery_jax.merging.methods.sce import AddSelected, Squares, Variance
from surgery_jax.merging.methods.slerp import SlerpFactors
from surgery_jax.merging.norms import Restore, Sizes
from surgery_jax.merging.numbers import NumberMask
from surgery_jax.merging.prunes import Prune
from surgery_jax.merging.ranks import Ranks
from surgery_jax.merging.spans import Span, SpanFactors
from surgery_jax.merging.tasks import AddTasks, Select
from surgery_jax.merging.weighted import Delta, Weighted
from surgery_jax.numerics.elementary import angle_of, cosine, exponential, logarithm, sine
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.numerics.kernels import DeviceKernel

RNG = np.random.default_rng(16)
DTYPES = ("float32", "bfloat16", "float16", "float64")


def drawn(name: str = "float32", shape: tuple[int, ...] = (5, 7)) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype(name))


def weighted(op: Weighted, *arrays: np.ndarray) -> np.ndarray:
    total = sum(w * x.astype(np.float64) for w, x in zip(op.weights, arrays, strict=True))
    return np.asarray(total / op.divisor).astype(arrays[0].dtype)


def delta(op: Delta, model: np.ndarray, base: np.ndarray) -> np.ndarray:
    made = model.astype(np.float64) - base.astype(np.float64)
    return made if base.dtype == np.float64 else made.astype(np.float32)


def added(op: AddTasks, base: np.ndarray, *deltas: np.ndarray) -> np.ndarray:
    parts = np.stack([w * x.astype(np.float64) for w, x in zip(op.weights, deltas, strict=True)])
    mask = np.sign(parts) == np.where(parts.sum(0) >= 0, 1, -1) if op.elects else np.ones(parts.shape, bool)
    total = (parts * mask).sum(0)
    if op.normalize:
        divisor = (np.reshape(op.weights, (-1,) + (1,) * base.ndim) * mask).sum(0)
        total = total / np.where(np.abs(divisor) < 1e-8, 1, divisor)
    return (base.astype(np.float64) + op.lambda_ * total).astype(base.dtype)


def ranked(op: Ranks, source: np.ndarray) -> np.ndarray:
    """By sorting, stable, from the largest."""
    flat = np.abs(source).reshape(-1)
    order = np.argsort(-flat, kind="stable")
    size = flat.size
    if isinstance(op, Middle):
        kept, top = int(op.density * size), int(op.gamma * size)
        ranks = [min(top, size - kept), min(top, size - kept) + kept]
    elif isinstance(op, Quartiles):
        ranks = [size - int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]
    elif isinstance(op, LargestOfAll):
        ranks = [int(op.share * np.count_nonzero(flat))]
    else:
        assert isinstance(op, Largest)
        ranks = [max(1, int(op.density * size)) if op.density > 0 else 0]
    found = [float(size)]
    for rank in ranks:
        if rank < 1:
            found += [2.0**31 - 1, 0.0, 1.0, -1.0, 1.0]
            continue
        value = flat[order[rank - 1]]
        raw = int(value.view(f"u{flat.itemsize}"))
        high, low = (raw >> 32, raw & 0xFFFFFFFF) if flat.itemsize == 8 else (raw, 0)
        left = rank - int((flat > value).sum())
        is_alike = left == (flat == value).sum() or not raw
        found += [high, low, left if is_alike else 1, 2.0**52 if is_alike else order[rank - 1], 1.0]
    return np.array(found, np.float64)


def kept(op: Keep, source: np.ndarray, by: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    flat = np.abs(by).reshape(-1)
    raw = flat.view(f"u{flat.itemsize}")

    def above(at: int) -> np.ndarray:
        high, low, _, last, _ = numbers[at : at + 5]
        sought = (int(high) << 32 | int(low)) if op.wide else int(high)
        return (raw > sought) | ((raw == sought) & (np.arange(raw.size) <= last))

    mask = above(6) & ~above(1) if op.is_middle else above(1)
    return np.where(mask.reshape(source.shape), source, source.dtype.type(0))


def tied(name: str = "float32") -> np.ndarray:
    """Few magnitudes, and zeros."""
    return np.round(drawn(name, (9, 11)) * 2).astype(name) / np.dtype(name).type(4)


# Of magnitudes without ties `test_methods.py` has whole merges.
RANKS: list[tuple[Ranks, np.ndarray]] = [
    (op(wide, *shares), tied(name))  # type: ignore[arg-type]
    for name, wide in (("float32", False), ("float64", True))
    for op, shares in (
        (Largest, (0.3,)),
        (Largest, (0.0,)),
        (Middle, (0.5, 0.1)),
        (LargestOfAll, (0.4,)),
        (Quartiles, ()),
    )
]


def taken(op: TakeAbove, base: np.ndarray, model: np.ndarray, importance: np.ndarray, _: np.ndarray) -> np.ndarray:
    ordered = np.sort(importance.reshape(-1)).astype(np.float64)
    q1, q2, q3 = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= q2 + 1.5 * (q3 - q1), model, base)


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True) + 1e-8


def diverging(op: Divergence, base: np.ndarray, model: np.ndarray) -> np.ndarray:
    p, q = softmax(model.astype(np.float64)), softmax(base.astype(np.float64))
    return (p * np.log(p / q)).sum(-1, keepdims=True)


def important(op: Importance, base: np.ndarray, model: np.ndarray, divergence: np.ndarray) -> np.ndarray:
    return np.abs((model.astype(np.float64) - base.astype(np.float64)) * divergence).astype(np.float32)


def dropped(op: Drop, source: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The words of JAX's generator."""
    with jax.enable_x64(True), jax.threefry_partitionable(True):
        key = jax.random.wrap_key_data(np.array([op.first, op.second], np.uint32))
        drawn = np.asarray(jax.random.bits(key, (int(position.max()) + 1,), np.uint64))[position]
    return np.where((drawn >> np.uint64(11)) * 2.0**-53 < op.density, source, source.dtype.type(0))


def pruned(op: Prune, source: np.ndarray, position: np.ndarray) -> np.ndarray:
    """By the ranks of all elements of a row: where they are kept."""
    with jax.enable_x64(True), jax.threefry_partitionable(True):
        key = jax.random.wrap_key_data(np.array([op.first, op.second], np.uint32))
        drawn = np.asarray(jax.random.bits(key, (int(position.max()) + 1,), np.uint64))[position]
    rows = np.abs(source).reshape(source.shape[0] if source.ndim > 1 else 1, -1)
    ranks = rows.argsort(1, kind="stable").argsort(1, kind="stable").reshape(source.shape)
    probability = op.density - op.epsilon + 2 * op.epsilon * ranks / max(rows.shape[1] - 1, 1)
    return (drawn >> np.uint64(11)) * 2.0**-53 < probability


def selected(op: AddSelected, base: np.ndarray, *given: np.ndarray) -> np.ndarray:
    *deltas, squares = given
    stack = np.stack(deltas).astype(np.float64)
    weights = (squares / squares.sum()).reshape((-1,) + (1,) * base.ndim)
    weights = weights * (np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1))
    total = weights.sum(0)
    return (base + np.where(total > 0, (weights * stack).sum(0) / np.where(total > 0, total, 1), 0)).astype(base.dtype)


def changes(op: AddChanges, base: np.ndarray, *given: np.ndarray) -> np.ndarray:
    deltas = np.stack(given[:-1] if op.limits else given).astype(np.float64)
    mask = np.abs(deltas) > op.epsilon
    count, factors = mask.sum(0), np.ones(len(deltas))
    if op.limits:
        shares = given[-1]
        ratio = shares[len(deltas) :] / np.maximum(shares[: len(deltas)], op.epsilon)
        factors = 1 + op.limits[0] * np.clip(ratio, 0, op.limits[1])
    own = (factors.reshape((-1,) + (1,) * base.ndim) * deltas * mask * (count == 1)).sum(0)
    return (base + own + (deltas * mask * (count > 1)).sum(0) / np.maximum(count, 1)).astype(base.dtype)


def shares(op: Shares, *deltas: np.ndarray) -> np.ndarray:
    mask = np.abs(np.stack(deltas)) > op.epsilon
    count = mask.sum(0)
    parts = [(mask & (count == 1)), (mask & (count > 1))]
    return np.concatenate([part.reshape(len(deltas), -1).sum(1) for part in parts]).astype(np.float64)


def nearer(op: Nearing, base: np.ndarray, model: np.ndarray) -> np.ndarray:
    a, b = base.astype(np.float64), model.astype(np.float64)
    share = np.clip(op.t / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    return (share * b + (1 - share) * a).astype(base.dtype)


def spanned(op: Span, *arrays: np.ndarray) -> np.ndarray:
    *tensors, factors = arrays
    wide = [x.astype(np.float64) for x in tensors]
    base = wide.pop() if op.is_based else np.zeros(())
    made = base + sum(factor * (x - base) for factor, x in zip(factors, wide, strict=True))
    return np.asarray(made).astype(tensors[0].dtype)


def factored(op: SpanFactors, *arrays: np.ndarray) -> np.ndarray:
    """Those with which the vectors come to what the reference of the whole method does."""
    wide = [x.astype(np.float64).reshape(-1) for x in arrays]
    base = wide.pop() if op.is_based else np.zeros(())
    deltas = [x - base for x in wide]
    return np.linalg.lstsq(np.stack(deltas, 1), directed(op, deltas))[0]


def row_spanned(op: Any, *arrays: np.ndarray) -> np.ndarray:
    wide = [x.astype(np.float64) for x in arrays]
    base = wide.pop() if op.is_based else np.zeros(wide[0].shape)
    deltas = [np.moveaxis(x - base, 0, -1) if op.along_first else x - base for x in wide]
    made = np.stack([directed(op, [x[row] for x in deltas]) for row in range(deltas[0].shape[0])])
    return np.asarray(base + (np.moveaxis(made, -1, 0) if op.along_first else made)).astype(arrays[0].dtype)


def directed(op: Any, vectors: list[np.ndarray]) -> np.ndarray:
    norms = np.array([np.linalg.norm(x) for x in vectors])
    units = [x / norm for x, norm in zip(vectors, norms, strict=True)]
    if isinstance(op, SlerpFactors | NuSlerpFactors | RowSlerp):
        angle = np.arccos((units[0] * units[1]).sum())
        return (np.sin((1 - op.t) * angle) * vectors[0] + np.sin(op.t * angle) * vectors[1]) / np.sin(angle)
    if isinstance(op, MultiSlerpFactors):
        mean = sum(w * x / (norm + op.eps) for w, x, norm in zip(op.weights, vectors, norms, strict=True))
        return mean / np.linalg.norm(mean) * np.cos(op.eps) * (np.array(op.weights) @ norms)
    if isinstance(op, KarcherFactors):
        return karcher_mean(units, op.max_iter, op.tol) * norms.mean()
    count = len(vectors)
    cosines = [(units[i] * units[j]).sum() for i in range(count) for j in range(i + 1, count)]
    cosine = np.mean(cosines)
    return count * cosine / (1 + (count - 1) * cosine) * np.mean(vectors, axis=0)


def karcher_mean(units: list[np.ndarray], most: int, tol: float) -> np.ndarray:
    mean = np.mean(units, axis=0)
    mean = mean / np.linalg.norm(mean)
    for _ in range(most):
        move = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip((mean * unit).sum(), -1, 1)
            angle = np.arccos(cosine)
            move += angle / np.sin(angle) * (unit - cosine * mean) / len(units) if angle >= tol else 0
        size = np.linalg.norm(move)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) * move / size
        mean /= np.linalg.norm(mean)
    return mean


def vectors_of(op: SpanFactors, name: str) -> tuple[SpanFactors, list[np.ndarray]]:
    return op, [drawn(name) for _ in range(op.count + op.is_based)]


def with_nan(name: str) -> np.ndarray:
    array = drawn(name)
    array[1, 2:4] = np.nan
    return array


REFERENCES: dict[str, tuple[list[Any], Callable[..., Any], str]] = {
    "Weighted": ([(Weighted((0.3, -2.0, 1.5), 0.7), [drawn(n) for _ in "abc"]) for n in DTYPES], weighted, "close"),
    "Delta": ([(Delta(), [drawn(n), drawn(n)]) for n in DTYPES], delta, "bits"),
    "AddTasks": (
        [
            (AddTasks(elects, normalize, (0.5, 0.25, 1.5), 1.25), [drawn(n), *(drawn(wide) for _ in "abc")])
            for n, wide in (("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64"))
            for elects in (False, True)
            for normalize in (False, True)
        ],
        added,
        "close",
    ),
    "Span": (
        [
            (Span(based), [*(drawn(n) for _ in range(3 + based)), np.array([0.7, -0.2, 1.5])])
            for n in DTYPES
            for based in (False, True)
        ],
        spanned,
        "close",
    ),
    "SlerpFactors": ([vectors_of(SlerpFactors(2, False, 0.3), n) for n in DTYPES], factored, "close"),
    **{
        kind.__name__: ([(op, [x]) for op, x in RANKS if type(op) is kind], ranked, "bits")
        for kind in (Largest, Middle, LargestOfAll, Quartiles)
    },
    "Keep": (
        [
            (Keep(op.wide, isinstance(op, Middle)), [drawn(x.dtype.name, x.shape), x, ranked(op, x)])
            for op, x in RANKS
            if not isinstance(op, Quartiles)
        ],
        kept,
        "bits",
    ),
    "Sizes": (
        [(Sizes(2), [drawn(n), drawn(n)]) for n in DTYPES],
        lambda op, *arrays: np.array([np.abs(x.astype(np.float64)).sum() for x in arrays]),
        "close",
    ),
    "Restore": (
        [(Restore(), [drawn(), np.array(sizes)]) for sizes in ((3.0, 1.5), (0.0, 0.0))],
        lambda op, x, sizes: x * np.float32(2 if sizes[0] else 1),
        "close",
    ),
    "Drop": (
        [
            (Drop(0.6, 17.0, 4e9), [drawn(n), np.arange(35, dtype=np.uint64).reshape(5, 7)])
            for n in ("float32", "float64")
        ],
        dropped,
        "bits",
    ),
    "Prune": (
        [
            (Prune(0.5, epsilon, 17.0, 4e9), [source, np.arange(source.size, dtype=np.uint64).reshape(source.shape)])
            for epsilon in (0.3, 0.0)
            for source in (
                drawn(),
                drawn("float32", (9,)),
                drawn("float32", (4, 3, 5)),
                drawn("float32", (4, 1)),
                tied(),
                np.round(drawn("float32", (300, 257)), 1),  # more than are drawn at once, and sorted
            )
        ],
        pruned,
        "bits",
    ),
    "Select": (
        [(Select(), [drawn(n), drawn() > 0]) for n in DTYPES],
        lambda _, source, mask: np.where(mask, source, source.dtype.type(0)),
        "bits",
    ),
    "Variance": (
        [(Variance(), [drawn(n) for _ in range(count)]) for n in ("float32", "float64") for count in (2, 3)],
        lambda op, *arrays: np.stack(arrays).astype(np.float64).var(0).astype(np.float32),
        "close",
    ),
    "Squares": (
        [(Squares(2), [drawn(n), drawn(n)]) for n in DTYPES],
        lambda op, *arrays: np.array([np.square(x.astype(np.float64)).sum() for x in arrays]),
        "close",
    ),
    "AddSelected": (
        [(AddSelected(), [drawn(n), drawn(), drawn(), np.array([0.3, 0.9])]) for n in ("float32", "bfloat16")],
        selected,
        "close",
    ),
    "Shares": ([(Shares(3, 0.5), [drawn(n) for _ in "abc"]) for n in ("float32", "float64")], shares, "bits"),
    "AddChanges": (
        [(AddChanges((), 0.5), [drawn(), *(drawn() for _ in "abc")])]
        + [(AddChanges((0.1, 0.9), 0.5), [drawn(n), drawn(), drawn(), np.array([3.0, 9, 2, 1])]) for n in DTYPES[:2]],
        changes,
        "close",
    ),
    "Nearing": ([(Nearing(0.5), [drawn(n), drawn(n)]) for n in DTYPES], nearer, "close"),
    "Divergence": ([(Divergence(), [drawn(n), drawn(n)]) for n in DTYPES], diverging, "close"),
    "Importance": (
        [(Importance(), [drawn(n), drawn(n), np.abs(drawn("float64"))[..., :1]]) for n in DTYPES],
        important,
        "bits",
    ),
    "TakeAbove": (
        [
            (TakeAbove(), [drawn(n), drawn(n), np.abs(x), ranked(Quartiles(), np.abs(x))])
            for n in DTYPES
            for x in [drawn()]
        ],
        taken,
        "bits",
    ),
    "NuSlerpFactors": (
        [vectors_of(NuSlerpFactors(2, based, 0.3), n) for n in DTYPES for based in (False, True)],
        factored,
        "close",
    ),
    "MultiSlerpFactors": (
        [vectors_of(MultiSlerpFactors(3, based, (0.2, 0.5, 0.4), 0.01), n) for n in DTYPES for based in (False, True)],
        factored,
        "close",
    ),
    "KarcherFactors": ([vectors_of(KarcherFactors(3, False, 10, 1e-5), n) for n in DTYPES], factored, "close"),
    "StockFactors": (
        [vectors_of(StockFactors(count, True), n) for n in DTYPES for count in (2, 3)],
        factored,
        "close",
    ),
    "RowStock": ([(RowStock(True), [drawn(n) for _ in range(4)]) for n in DTYPES], row_spanned, "close"),
    "RowSlerp": (
        [
            (RowSlerp(based, first, 0.3), [drawn(n) for _ in range(2 + based)])
            for n in DTYPES
            for based in (False, True)
            for first in ((False, True) if n == "float32" else (based,))
        ],
        row_spanned,
        "close",
    ),
    "NumberMask": (
        [(NumberMask(), [with_nan(n), *(drawn(n) for _ in range(more))]) for n in DTYPES for more in (0, 1)],
        lambda op, model, *base: ~np.isnan(model.astype(np.float64)),
        "bits",
    ),
}


def test_angles_and_their_functions_equal_those_of_the_library() -> None:
    kernel, c, a = HostKernel(), np.linspace(-1, 1, 20001), np.linspace(-np.pi, np.pi, 20001)
    np.testing.assert_allclose(angle_of(kernel, c), np.arccos(c), rtol=0, atol=1e-15)
    np.testing.assert_allclose(sine(kernel, a), np.sin(a), rtol=0, atol=2e-15)
    np.testing.assert_allclose(cosine(kernel, a), np.cos(a), rtol=0, atol=2e-15)
    small = 10.0 ** -np.arange(1, 8)
    np.testing.assert_allclose(angle_of(kernel, np.cos(small)), np.arccos(np.cos(small)), rtol=1e-14)
    assert angle_of(kernel, np.float64(-1)) == pytest.approx(np.pi, abs=1e-15)


RISING = np.concatenate([-np.geomspace(708, 1e-300, 20001), np.linspace(-708, 0, 20001), [0.0, -0.0]])
NEAR_ONE = 1 + 10.0 ** -np.arange(1, 16)
POSITIVE = np.concatenate([np.geomspace(1e-307, 1e308, 20001), np.linspace(0.5, 2, 20001), NEAR_ONE])


def test_exponentials_and_logarithms_are_those_of_the_library_to_two_units_in_the_last_place() -> None:
    kernel = HostKernel()
    np.testing.assert_allclose(exponential(kernel, RISING), np.exp(RISING), rtol=4.5e-16, atol=0)
    np.testing.assert_allclose(logarithm(kernel, POSITIVE), np.log(POSITIVE), rtol=4.5e-16, atol=0)
    assert exponential(kernel, np.array([-709.0, -1e300, -np.inf])).tolist() == [0, 0, 0]
    assert exponential(kernel, np.float64(0)) == 1 and logarithm(kernel, np.float64(1)) == 0


def test_exponentials_and_logarithms_have_the_same_bits_compiled() -> None:
    """Those of a library depend on the instructions that a processor has."""
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for function, numbers in ((exponential, RISING), (logarithm, POSITIVE)):
            given = np.concatenate([numbers, [np.nan]])
            compiled = jax.jit(lambda zeros, x, of=function: of(DeviceKernel(zeros), x))
            found = np.asarray(compiled((np.int32(0), np.int64(0)), given))
            assert_same_bits(found, function(HostKernel(), given), function.__name__)
