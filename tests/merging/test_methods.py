"""Whole steps: every method against what was published, in float64; budgets, devices, messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype, read_checkpoint, simulated

from surgery_jax import Problems
from surgery_jax.merging.method import methods

SHAPES = {"wide": (96, 130), "long": (300, 200), "short": (33,), "one": (1,), "none": (0, 4), "cube": (6, 5, 7)}
Tensors = dict[str, np.ndarray]


def models(count: int, name: str = "float32", spread: float = 0.02, shapes: Sequence[str] = ()) -> list[Tensors]:
    """A base and models near it: all magnitudes of differences are different. Of all shapes unless some are named."""
    rng = np.random.default_rng(2)
    base = {key: rng.standard_normal(SHAPES[key]) * 0.02 for key in shapes or SHAPES}
    tuned = [{key: x + rng.standard_normal(x.shape) * spread for key, x in base.items()} for _ in range(count)]
    return [{key: x.astype(dtype(name)) for key, x in tensors.items()} for tensors in (base, *tuned)]


def step(
    method: str, own: Sequence[dict[str, Any]], is_based: bool = True, to: str = r"made::\1", **more: Any
) -> dict[str, Any]:
    given: dict[str, Any] = {"abcdef"[at]: dict(values) for at, values in enumerate(own)}
    if is_based:
        more = {"base": "base::(.+)", **more}
    else:
        given["a"]["from"] = "a::(.+)"
    return {"merge": {"method": method, "models": given, "to": to, **more}}


def bench_of(tmp_path: Path, tensors: Sequence[Tensors]) -> Bench:
    return Bench(tmp_path, **dict(zip(("base", *"abcdef"), tensors, strict=False)), made={"keep": np.zeros(1, "f4")})


def merged(tmp_path: Path, tensors: Sequence[Tensors], steps: Any, **options: Any) -> Tensors:
    found = bench_of(tmp_path, tensors).tensors([steps] if isinstance(steps, dict) else steps, **options)
    return {name: found[name] for name in tensors[0]}


# ------------------------------------------------------------------------------------------------ references

Wide = list[np.ndarray]


def largest(delta: np.ndarray, density: float) -> np.ndarray:
    kept = np.zeros(delta.size, bool)
    count = max(1, int(density * delta.size)) if density > 0 else 0
    kept[np.argsort(-np.abs(delta).reshape(-1), kind="stable")[:count]] = True
    return delta * kept.reshape(delta.shape)


def middle(delta: np.ndarray, density: float, gamma: float) -> np.ndarray:
    size = delta.size
    keep = int(density * size)
    top = min(int(gamma * size), size - keep)
    kept = np.zeros(size, bool)
    kept[np.argsort(-np.abs(delta).reshape(-1), kind="stable")[top : top + keep]] = True
    return delta * kept.reshape(delta.shape)


def tasks(
    base: np.ndarray, parts: Wide, weights: Sequence[float], elects: bool, normalize: bool, factor: float = 1.0
) -> np.ndarray:
    stack = np.stack([w * part for w, part in zip(weights, parts, strict=True)])
    mask = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1) if elects else np.ones(stack.shape, bool)
    divisor = (np.reshape(weights, (-1,) + (1,) * base.ndim) * mask).sum(0)
    total = (stack * mask).sum(0)
    return base + factor * (total / np.where(np.abs(divisor) < 1e-8, 1, divisor) if normalize else total)


def arc(t: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a), np.linalg.norm(b)
    cosine = np.clip((a * b).sum() / (norms[0] * norms[1]), -1, 1) if min(norms) > 0 else 1.0
    if 1 - cosine**2 < 1e-14:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def each_row(t: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.ndim < 2:
        return arc(t, a, b)
    rows = [arc(t, x, y) for x, y in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)]
    return np.reshape(rows, a.shape)


def near_mean(base: np.ndarray, deltas: Wide) -> np.ndarray:
    count = len(deltas)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    norms = [np.linalg.norm(x) for x in deltas]
    cosine = np.mean([(deltas[i] * deltas[j]).sum() / (norms[i] * norms[j]) for i, j in pairs])
    return base + count * cosine / (1 + (count - 1) * cosine) * np.mean(deltas, axis=0)


def selected(base: np.ndarray, deltas: Wide, share: float) -> np.ndarray:
    stack = np.stack(deltas)
    variance = stack.var(0)
    kept = np.zeros(base.size, bool)
    kept[np.argsort(-variance.reshape(-1), kind="stable")[: int(np.count_nonzero(variance) * share)]] = True
    stack = stack * kept.reshape(base.shape)
    weights = np.square(stack).reshape(len(deltas), -1).mean(1)
    weights = weights / weights.sum() if weights.sum() else np.full(len(deltas), 1 / len(deltas))
    shares = weights.reshape((-1,) + (1,) * base.ndim) * (np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1))
    total = shares.sum(0)
    return base + np.where(total > 0, (shares * stack).sum(0) / np.where(total > 0, total, 1), 0)


def averaged(base: np.ndarray, deltas: Wide, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> np.ndarray:
    stack = np.stack(deltas)
    mask = np.abs(stack) > epsilon
    count = mask.sum(0)
    found = base + (stack * mask * (count > 1)).sum(0) / np.maximum(count, 1)
    for delta, own in zip(stack, mask, strict=True):
        alone, shared = own & (count == 1), own & (count > 1)
        found = found + delta * alone * (1 + r * np.clip(shared.sum() / max(alone.sum(), epsilon), 0, alpha))
    return found


def important(base: np.ndarray, model: np.ndarray) -> np.ndarray:
    def softmax(x: np.ndarray) -> np.ndarray:
        raised = np.exp(x - x.max(-1, keepdims=True))
        return raised / raised.sum(-1, keepdims=True) + 1e-8

    p, q = softmax(model), softmax(base)
    importance = np.abs(model - base) * np.abs((p * np.log(p / q)).sum(-1, keepdims=True))
    ordered = np.sort(importance.reshape(-1))
    low, half, high = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= half + 1.5 * (high - low), model, base)


def mean_direction(parts: Wide, weights: Sequence[float], eps: float) -> np.ndarray:
    norms = [np.linalg.norm(x) for x in parts]
    mean = sum(w * x / (norm + eps) for w, x, norm in zip(weights, parts, norms, strict=True))
    return mean / np.linalg.norm(mean) * np.cos(eps) * sum(w * norm for w, norm in zip(weights, norms, strict=True))


def karcher(parts: Wide, most: int, tol: float) -> np.ndarray:
    norms = [np.linalg.norm(x) for x in parts]
    units = [x / norm for x, norm in zip(parts, norms, strict=True)]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(most):
        angles = [np.arccos(np.clip((mean * unit).sum(), -1, 1)) for unit in units]
        move = sum(
            angle / np.sin(angle) * (unit - np.cos(angle) * mean) / len(units)
            for angle, unit in zip(angles, units, strict=True)
            if angle >= tol
        )
        size = np.linalg.norm(move)
        if size < tol:
            break
        mean = np.cos(size) * mean + np.sin(size) * move / size
        mean = mean / np.linalg.norm(mean)
    return mean * np.mean(norms)


W, D = (0.5, -0.2, 1.0), (0.2, 0.5, 0.7)
OWN = [{"weight": weight, "density": density} for weight, density in zip(W, D, strict=True)]
WEIGHTS = [{"weight": weight} for weight in W]
BANDS = [{**own, "gamma": gamma} for own, gamma in zip(OWN, (0.05, 0.9, 0.0), strict=True)]
NONE: list[dict[str, Any]] = [{}, {}, {}]


# (method, models, other keys, whether there is a base, what it gives)
def banded(elects: bool) -> Callable[[np.ndarray, Wide], np.ndarray]:
    def of(b: np.ndarray, x: Wide) -> np.ndarray:
        parts = [middle(y - b, own["density"], own["gamma"]) for y, own in zip(x, BANDS, strict=True)]
        return tasks(b, parts, W, elects, False)

    return of


def trimmed(b: np.ndarray, x: Wide) -> np.ndarray:
    return tasks(b, [largest(y - b, d) for y, d in zip(x, D, strict=True)], W, True, True)


Reference = Callable[[np.ndarray, Wide], np.ndarray]
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any], bool, Reference]] = [
    ("linear", WEIGHTS, {}, False, lambda b, x: sum(w * y for w, y in zip(W, x, strict=True)) / sum(W)),
    ("linear", NONE, {"weight": 0.5, "normalize": False}, False, lambda b, x: sum(x) / 2),
    ("passthrough", [{}], {}, False, lambda b, x: x[0]),
    ("passthrough", [{"scale": 0.3}], {}, False, lambda b, x: 0.3 * x[0]),
    ("slerp", [{}], {"t": 0.3}, True, lambda b, x: arc(0.3, b, x[0])),
    ("nuslerp", WEIGHTS[:2], {}, False, lambda b, x: arc(-0.2 / 0.3, x[0], x[1])),
    ("nuslerp", NONE[:2], {"weight": 1}, True, lambda b, x: b + arc(0.5, x[0] - b, x[1] - b)),
    ("nuslerp", NONE[:2], {"weight": 1, "nuslerp_flatten": False}, False, lambda b, x: each_row(0.5, x[0], x[1])),
    (
        "multislerp", WEIGHTS, {"eps": 0.01}, True,
        lambda b, x: b + mean_direction([y - b for y in x], np.array(W) / sum(W), 0.01),
    ),
    ("multislerp", [{}], {"weight": 2}, False, lambda b, x: x[0]),
    ("karcher", NONE, {}, False, lambda b, x: karcher(x, 10, 1e-5)),
    ("karcher", NONE, {"max_iter": 1}, False, lambda b, x: karcher(x, 1, 1e-5)),
    ("task_arithmetic", WEIGHTS, {"lambda": 0.7}, True,
     lambda b, x: tasks(b, [y - b for y in x], W, False, False, 0.7)),
    ("task_arithmetic", WEIGHTS, {"normalize": True}, True, lambda b, x: tasks(b, [y - b for y in x], W, False, True)),
    ("ties", OWN, {}, True, trimmed),
    ("ties", WEIGHTS, {"density": 0.0}, True, lambda b, x: b),
    ("ties", WEIGHTS, {"density": 1e-9, "normalize": False}, True,
     lambda b, x: tasks(b, [largest(y - b, 1e-9) for y in x], W, True, False)),
    (
        "ties", [{"weight": 1, "density": 0.3}], {"rescale": True}, True,
        lambda b, x: b + largest(x[0] - b, 0.3) * np.abs(x[0] - b).sum() / np.abs(largest(x[0] - b, 0.3)).sum(),
    ),
    ("breadcrumbs", BANDS, {}, True, banded(False)),
    ("breadcrumbs_ties", BANDS, {}, True, banded(True)),
    ("model_stock", NONE, {}, True, lambda b, x: near_mean(b, [y - b for y in x])),
    ("sce", NONE, {}, True, lambda b, x: selected(b, [y - b for y in x], 1.0)),
    ("sce", NONE, {"select_topk": 0.3}, True, lambda b, x: selected(b, [y - b for y in x], 0.3)),
    (
        "nearswap", [{}], {"t": 1e-3}, True,
        lambda b, x: b + (x[0] - b) * np.clip(1e-3 / np.maximum(np.abs(x[0] - b), 1e-6), 0, 1),
    ),
    ("arcee_fusion", [{}], {}, True, lambda b, x: important(b, x[0])),
    ("ram", NONE, {"epsilon": 0.02}, True, lambda b, x: averaged(b, [y - b for y in x], 0.02)),
    ("ramplus_tl", NONE, {"epsilon": 0.02, "r": 0.5, "alpha": 0.8}, True,
     lambda b, x: averaged(b, [y - b for y in x], 0.02, 0.5, 0.8)),
    *(
        (name, WEIGHTS, {"density": 1.0}, True,
         lambda b, x, elects=elects, normalize=normalize: tasks(b, [y - b for y in x], W, elects, normalize))
        for name, elects, normalize in (
            ("dare_linear", False, False), ("dare_ties", True, False),
            ("della", True, True), ("della_linear", False, False),
        )
    ),
]  # fmt: skip


def together(cases: Sequence[Any]) -> list[dict[str, Any]]:
    """One plan for many merges: the names of the results begin with the number of the case."""
    return [
        step(method, own, *is_based, to=rf"made::{number}.\1", **more)
        for number, (method, own, more, *is_based) in enumerate(case[:4] for case in cases)
    ]


def firsts(cases: Sequence[Any]) -> list[Any]:
    """One case of each method."""
    return list({case[0]: case for case in reversed(cases)}.values())[::-1]


def cases_of(
    tmp_path: Path, name: str, shapes: Sequence[str], cases: Sequence[Any]
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Case, name of the tensor, what came and what was to come in float64. Every tensor of every case is compiled for
    itself, which takes nearly all of the time."""
    tensors = models(3, name, shapes=shapes)
    found = bench_of(tmp_path, tensors).tensors(together(cases))
    for number, (method, own, more, _, reference) in enumerate(cases):
        for key in shapes:
            wide = [side[key].astype(np.float64) for side in tensors[: len(own) + 1]]
            if wide[0].size and not (key == "one" and method in ("model_stock", "arcee_fusion")):
                yield f"{method} {more} {key}", key, found[f"{number}.{key}"], reference(wide[0], wide[1:])


def test_every_method_gives_what_was_published(tmp_path: Path) -> None:
    for what, _, found, expected in cases_of(tmp_path, "float64", ("wide",), CASES):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12, err_msg=what)


def test_every_method_takes_tensors_of_every_shape(tmp_path: Path) -> None:
    by_row = [case for case in CASES if case[2].get("nuslerp_flatten") is False]
    shapes = ("wide", "short", "one", "none", "cube")
    for what, _, found, expected in cases_of(tmp_path, "float32", shapes, [*firsts(CASES), *by_row]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7, err_msg=what)


def test_a_case_stands_for_every_method() -> None:
    assert {case[0] for case in CASES} == set(methods())


def test_half_precision_is_computed_wider_and_rounded_once(tmp_path: Path) -> None:
    plain = ("task_arithmetic", "linear", "slerp", "karcher", "model_stock", "nuslerp", "nearswap")
    some = [case for case in firsts(CASES) if case[0] in plain]
    for what, key, found, wide in cases_of(tmp_path, "bfloat16", ("wide", "short", "cube"), some):
        expected = wide.astype(np.float32).astype(dtype("bfloat16"))
        one_step = np.abs(np.spacing(expected.astype(np.float32))) * 2**16 + 1e-8  # of what cancels in float32
        off = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        assert (off <= one_step).all() and (off > 0).mean() < 0.05, (what, key)


RANDOM = [
    ("dare_linear", {}, lambda b, part, w: b + w * part),
    ("dare_ties", {}, lambda b, part, w: b + w * part),
    ("della_linear", {"epsilon": 0.2}, lambda b, part, w: b + w * part),
    ("della", {"epsilon": 0.2}, lambda b, part, w: b + part),
]


@pytest.mark.parametrize(("method", "more", "one"), RANDOM, ids=[case[0] for case in RANDOM])
def test_dropped_task_vectors_are_scaled_to_their_norms(
    tmp_path: Path, method: str, more: dict[str, Any], one: Callable[..., np.ndarray]
) -> None:
    tensors = models(1)
    found = merged(tmp_path, tensors, step(method, [{"weight": 2.0, "density": 0.6}], seed=3, **more))
    for key in ("wide", "long", "cube"):
        base, model = (side[key].astype(np.float64) for side in tensors)
        delta = model - base
        kept = np.abs(found[key] - base) > 1e-12
        assert abs(kept.mean() - 0.6) < 5 * np.sqrt(0.24 / kept.size)
        part = np.where(kept, delta, 0) * np.abs(delta).sum() / np.abs(delta[kept]).sum()
        np.testing.assert_allclose(found[key], one(base, part, 2.0), rtol=0, atol=1e-6)
        if "epsilon" in more:  # from 0.4 to 0.8 by rank in a row
            ranks = np.abs(delta).reshape(len(delta), -1).argsort(1).argsort(1).reshape(delta.shape)
            upper = ranks > np.median(ranks)
            assert abs(kept[upper].mean() - 0.7) < 0.06 and abs(kept[~upper].mean() - 0.5) < 0.06


def test_random_masks_know_seed_name_and_model_alone(tmp_path: Path) -> None:
    tensors = models(2)
    twins = [tensors[0], tensors[1], tensors[1]]
    own = [{"weight": 1.0, "density": 0.5}, {"weight": 10.0, "density": 0.5}]
    base = step("dare_linear", own, rescale=False)
    found = merged(tmp_path / "all", twins, base)
    kept = np.round((found["long"] - twins[0]["long"]) / (twins[1]["long"] - twins[0]["long"]))
    assert {0.0, 1.0, 10.0, 11.0} == set(np.unique(kept))  # two models draw for themselves
    alone = step("dare_linear", own, rescale=False, base="base::(long)")
    again = bench_of(tmp_path / "alone", twins).tensors([alone])
    assert_same_bits(again["long"], found["long"])
    other = merged(tmp_path / "seed", twins, step("dare_linear", own, rescale=False, seed=1))
    assert not np.array_equal(other["long"], found["long"])


# ------------------------------------------------------------------------------------------------ where it runs

EVERYWHERE = [
    ("ties", OWN, {"rescale": True}),
    ("breadcrumbs_ties", BANDS, {}),
    ("dare_ties", OWN, {}),
    ("della", OWN, {"epsilon": 0.1, "density": 0.5}),
    ("sce", NONE, {"select_topk": 0.4}),
    ("model_stock", NONE, {}),
    ("model_stock", NONE, {"filter_wise": True}),
    ("arcee_fusion", NONE[:1], {}),
    ("slerp", NONE[:1], {"t": 0.3}),
    ("ramplus_tl", NONE, {"epsilon": 0.01}),
    ("nuslerp", WEIGHTS[:2], {"nuslerp_flatten": False}),
]


def large(name: str) -> list[Tensors]:
    """Several tiles, and many equal magnitudes."""
    rng = np.random.default_rng(5)
    base = {
        "w": rng.standard_normal((230, 700)).astype(dtype(name)),
        "v": rng.standard_normal(33001).astype(dtype(name)),
    }
    tuned = [
        {key: (x + (np.round(rng.standard_normal(x.shape) * 2) / 64).astype(x.dtype)) for key, x in base.items()}
        for _ in range(3)
    ]
    return [base, *tuned]


def everywhere(case: tuple[str, list[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """The matrix, and by those methods that take it in another way the vector. In a plan of its own: to compile and
    compute many together takes twice as long."""
    method, own, more = case
    return together([case if method in ("ties", "della", "slerp") else (method, own, {"base": "base::(w)", **more})])


def test_budgets_and_tiles_change_no_bit(tmp_path: Path) -> None:
    for name, some in (("float32", EVERYWHERE), ("bfloat16", EVERYWHERE[:1])):
        bench = bench_of(tmp_path / name, large(name))
        for case in some:
            wanted = bench.tensors(everywhere(case))
            bench.report(everywhere(case), memory="36MiB", workers=1, device_memory="2MiB")
            for key, array in read_checkpoint(bench.out).items():
                assert_same_bits(array, wanted[key], f"{case[0]} {key}")


ON_DEVICES = """
import hashlib, json, sys
from pathlib import Path
sys.path.insert(0, str(Path({here!r})))
from test_methods import EVERYWHERE, bench_of, everywhere, large
bench, different, count = bench_of(Path("."), large("float32")), [], 0
for case in EVERYWHERE:
    found = []
    for devices in (1, 3):
        tensors = bench.tensors(everywhere(case), devices=devices)
        found.append({{key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in tensors.items()}})
    count += len(found[0]) - 1
    different += [(case[0], key) for key in found[0] if found[0][key] != found[1][key]]
print(json.dumps([count, different]))
"""


def test_3_devices_give_the_bits_of_one(tmp_path: Path) -> None:
    count = len(EVERYWHERE) + 3  # three by vectors too
    assert simulated(ON_DEVICES.format(here=str(Path(__file__).parent)), tmp_path, devices=3) == [count, []]


def test_equal_magnitudes_are_told_apart_by_position(tmp_path: Path) -> None:
    base = {"w": np.zeros((40, 500), np.float32)}
    model = {"w": np.tile(np.array([1, -1, 0.5, 0], np.float32), (40, 125))}
    found = merged(tmp_path, [base, model], step("ties", [{"weight": 1, "density": 0.3}]))["w"].reshape(-1)
    ones = np.flatnonzero(np.abs(model["w"].reshape(-1)) == 1)
    assert np.array_equal(np.flatnonzero(found), ones[: int(0.3 * found.size)])


def test_a_copy_computes_nothing(tmp_path: Path) -> None:
    report = bench_of(tmp_path, models(1, "bfloat16")).report([step("passthrough", [{}], False)])
    assert report.num_compilations == 0 and report.bytes_computed == 0


# ------------------------------------------------------------------------------------------------ what is merged


def test_a_model_may_come_twice_with_other_layers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a = {f"layers.{n}.w": rng.standard_normal((4, 5)).astype("f4") for n in range(3)}
    bench = Bench(tmp_path, a=a, made={"keep": np.zeros(1, "f4")})
    given = [{"a": {"from": r"a::layers\.1\.(.+)"}}, {"a": {"from": r"a::layers\.2\.(.+)", "weight": 3}}]
    found = bench.tensors([{"merge": {"method": "linear", "weight": 1, "models": given, "to": r"made::layers.0.\1"}}])
    expected = (a["layers.1.w"].astype("f8") + 3 * a["layers.2.w"].astype("f8")) / 4
    np.testing.assert_allclose(found["layers.0.w"], expected, atol=1e-6)
    lists = [{"merge": {"method": "karcher", "models": [{"a": {"from": ["layers", "0", "$x"]}}], "to": ["out", "$x"]}}]
    with pytest.raises(Problems):
        bench.compile(lists)  # a list names no alias for the results here


def test_dtypes_are_promoted_or_those_that_the_step_names(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    tensors: list[Tensors] = [{"w": x.astype("f2")}, {"w": x.astype(dtype("bfloat16"))}, {"w": x}]
    own = [{"weight": 1.0}, {"weight": 1.0}]
    assert merged(tmp_path / "a", tensors, step("task_arithmetic", own))["w"].dtype == np.float32
    both = step("task_arithmetic", own, dtype="bfloat16", out_dtype="float16")
    found = merged(tmp_path / "b", tensors, both)["w"]
    rounded = [side["w"].astype(dtype("bfloat16")).astype("f8") for side in tensors]
    expected = rounded[0] + (rounded[1] - rounded[0]) + (rounded[2] - rounded[0])
    assert_same_bits(found, expected.astype("f4").astype(dtype("bfloat16")).astype("f2"))


def test_integers_must_be_the_same_and_are_taken(tmp_path: Path) -> None:
    tensors: list[Tensors] = [{"n": np.arange(4)}, {"n": np.arange(4)}]
    assert_same_bits(merged(tmp_path / "a", tensors, step("ties", [{"weight": 1}]))["n"], np.arange(4))
    tensors[1]["n"] = np.array([0, 1, 2, 4])
    with pytest.raises(Problems, match=r"n of a is that of the base.*1 of 4"):
        merged(tmp_path / "b", tensors, step("ties", [{"weight": 1}]))


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "slerp", "della"])
def test_nan_in_what_a_model_changes_is_an_error_that_names_it(tmp_path: Path, method: str) -> None:
    tensors = models(2)
    tensors[2]["wide"][3, 5:8] = np.nan
    own = [{"weight": 1, "density": 0.5}] * 2 if method in ("ties", "della") else [{"weight": 1}] * 2
    given = step("slerp", [{}], t=0.5) if method == "slerp" else step(method, own)
    if method == "slerp":
        tensors[1] = tensors[2]
    with pytest.raises(Problems, match=r"no NaN in wide of [ab] less wide of the base.*3 of 12480"):
        merged(tmp_path, tensors, given)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "b.safetensors",
        "base.safetensors",
        "made.safetensors",
    ]


def test_what_is_wrong_is_said_at_its_place(tmp_path: Path) -> None:
    tensors = models(2)
    bench = bench_of(tmp_path, [*tensors, {"wide": np.zeros((90, 130), "f4")}, {"other": np.zeros(3, "f4")}])
    two = [{"weight": 1.0}] * 2

    def said(given: dict[str, Any]) -> str:
        with pytest.raises(Problems) as refused:
            bench.compile([given])
        return str(refused.value)

    assert "unknown merge method 'tie'" in said(step("tie", two)) and "did you mean ties?" in said(step("tie", two))
    wrong = said(step("ties", two, densety=0.5))
    assert "unknown keys: ['densety']" in wrong and "did you mean density?" in wrong and "nuslerp" not in wrong
    own = said(step("ties", [{"weigth": 1.0}, {}]))
    assert "merge.models.a received unknown keys: ['weigth']" in own and "from, weight, density" in own
    assert "ties needs weight of b" in said(step("ties", [{"weight": 1}, {}]))
    assert "slerp.t is required" in said(step("slerp", [{}])) or "merge.t is required" in said(step("slerp", [{}]))
    assert "slerp takes 1 model beside the base" in said(step("slerp", [{}, {}], t=0.5))
    assert "model_stock takes 2 or more models" in said(step("model_stock", [{}]))
    assert "ties needs a base" in said(step("ties", two, False))
    assert "karcher takes no base" in said(step("karcher", [{}, {}]))
    assert "add up to 0" in said(step("linear", [{"weight": 1}, {"weight": -1}], False))
    assert "density 0.1, epsilon 0.15" in said(step("della", two, density=0.1))
    shapes = said(
        step("linear", [{"weight": 1}, {}, {"weight": 1, "from": "c::(wide)"}][::2], False, weight=1)
        | {
            "merge": {
                "method": "linear",
                "weight": 1,
                "to": "made::x",
                "models": {"a": {"from": "a::wide"}, "c": {"from": "c::wide"}},
            }
        }
    )
    assert "wide of c has another shape than wide of a" in shapes and "resize, pad or a slice" in shapes
    assert "model d missing: d::" in said(
        step("linear", [{"weight": 1}], False)
        | {"merge": {"method": "linear", "weight": 1, "to": r"made::\1", "models": {"a": {"from": "a::(.+)"}, "d": {}}}}
    )
    more = {
        "method": "linear",
        "weight": 1,
        "to": r"made::\1",
        "models": {"c": {"from": "c::(.+)"}, "a": {"from": "a::(.+)"}},
    }
    assert "c has no counterpart of" in said({"merge": more})
    assert "unknown model alias: 'z'" in said({"merge": {**more, "models": {"c": {"from": "c::(.+)"}, "z": {}}}})
    assert "nothing says which tensors" in said({"merge": {**more, "models": {"a": {}, "b": {}}}})
