"""`finite`, `range`, `close`, `same_bits`, `cosine`, `energy`: what holds and what does not, against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Bench, bits, dtype, simulated
from strategies import FLOATS, NUMBERS, array_of

from surgery_jax import Options, Problems, explain, plan_of
from surgery_jax.asserts.close import CloseMask
from surgery_jax.asserts.cosine import CosineSums
from surgery_jax.asserts.energy import Remainder
from surgery_jax.asserts.finite import FiniteMask
from surgery_jax.asserts.range import RangeMask
from surgery_jax.asserts.same_bits import SameBits

RNG = np.random.default_rng(3)
NAN, INF = float("nan"), float("inf")


def pair(name: str) -> list[np.ndarray]:
    a = array_of(name, (5, 7), 3)
    return [a, np.where(np.arange(35).reshape(5, 7) % 2, a, array_of(name, (5, 7), 6))]


def within(op: RangeMask, x: np.ndarray) -> np.ndarray:
    low, high = (-INF if op.low is None else op.low), (INF if op.high is None else op.high)
    exact = x.astype(object) if x.dtype.kind in "iub" else x.astype(np.float64)
    return np.array((exact >= low) & (exact <= high), bool)


def products(op: CosineSums, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = (v.astype(np.float64).reshape(-1) / np.abs(v.astype(np.float64)).max() for v in (a, b))
    return np.array([x @ y, x @ x, y @ y])


def remainder(op: Remainder, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    largest = max(np.abs(v.astype(np.float64)).max() for v in (a, b))
    x, y = (v.astype(np.float64).reshape(-1) / largest for v in (a, b))
    return np.array([x @ x, np.square(x - op.factor * y).sum()])


def normal_pair(name: str) -> list[np.ndarray]:
    return [RNG.standard_normal((50, 7)).astype(dtype(name)) for _ in range(2)]


REFERENCES = {
    "FiniteMask": (
        [(FiniteMask(), pair(name)[:1]) for name in FLOATS],
        lambda op, x: np.isfinite(x.astype(np.float64)),
        "bits",
    ),
    "RangeMask": (
        [
            (RangeMask(*bounds), pair(name)[:1])
            for name in NUMBERS
            if not name.startswith("complex")
            for bounds in ((-0.5, 1.5), (None, 0.5), (3.0, None))
        ],
        within,
        "bits",
    ),
    "SameBits": (
        [(SameBits(), pair(name)) for name in NUMBERS],
        lambda op, a, b: (bits(a) == bits(b)).reshape(a.shape),
        "bits",
    ),
    "CloseMask": (
        [(CloseMask(0.1, 1e-3, nan), pair(name)) for name in FLOATS for nan in (False, True)],
        lambda op, a, b: np.isclose(a.astype(float), b.astype(float), op.rtol, op.atol, op.equal_nan),
        "bits",
    ),
    "CosineSums": (
        [(CosineSums(), normal_pair(name)) for name in ("float32", "bfloat16", "float64")],
        products,
        "single",
    ),
    "Remainder": (
        [(Remainder(0.5), normal_pair(name)) for name in ("float32", "bfloat16", "float64")],
        remainder,
        "single",
    ),
}


def failure(bench: Bench, expression: dict[str, Any], **options: Any) -> str | None:
    """What an assertion says if it does not hold."""
    try:
        bench.report([{"assert": expression}], output=False, **options)
    except Problems as failed:
        assert "assertion failed" in str(failed)
        return str(failed)
    return None


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_finite_finds_each_nan_and_infinity_and_names_its_place(tmp_path: Path, name: str, bad: float) -> None:
    stored = RNG.standard_normal((30, 40)).astype(dtype(name))
    stored[0, 0] = np.finfo(np.float32).tiny / 4  # subnormal numbers are finite
    bench = Bench(tmp_path, w={"w": stored, "n": np.arange(4)})
    assert failure(bench, {"finite": ".+"}) is None
    stored[7, 9] = bad
    is_finite = bool(np.isfinite(stored[7, 9].astype(np.float32)))
    said = failure(Bench(tmp_path / "bad", m={"w": stored}), {"finite": ".+"})
    assert is_finite or (
        said is not None and "1 of 1200 elements are off; the worst by NaN or infinite at [7, 9]" in said
    )


def test_finite_is_checked_in_the_pass_that_computes_and_in_little_memory(tmp_path: Path) -> None:
    stored = RNG.standard_normal((1100, 1000)).astype("f4")
    stored[-1, -1] = 3e38
    bench = Bench(tmp_path, m={"w": stored})
    steps = [{"scale_": {"target": "w", "by": 2}}, {"assert": {"finite": "w"}}]
    groups = explain(plan_of(bench.plan(steps)), Options()).groups
    assert [(group.kind, group.num_tasks) for group in groups] == [("tiles", groups[0].num_tasks)]
    with pytest.raises(Problems, match=r"1 of 1100000 elements are off; the worst by NaN or infinite at \[1099, 999\]"):
        bench.report(steps, memory="3MiB", workers=1)
    bench.report(steps[1:], memory="3MiB", workers=1)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64", "int8", "uint8", "int64", "uint64", "bool"])
def test_range_holds_exactly_from_the_smallest_to_the_largest_element(tmp_path: Path, name: str) -> None:
    stored = RNG.integers(0, 100, (20, 30)).astype(dtype(name))
    low, high = float(stored.min()), float(stored.max())
    bench = Bench(tmp_path, m={"w": stored})
    assert failure(bench, {"range": {"of": "w", "ge": low, "le": high}}) is None
    assert failure(bench, {"range": {"of": "w", "ge": low - 0.5, "le": INF}}) is None
    assert "elements are off" in str(failure(bench, {"range": {"of": "w", "ge": low + 0.5}}))
    assert "the worst by 0.5" in str(failure(bench, {"range": {"of": "w", "le": high - 0.5}}))


def test_range_takes_large_integers_as_they_are_and_nan_is_within_no_bound(tmp_path: Path) -> None:
    large = np.array([2**53 + 1, -(2**63)])
    bench = Bench(tmp_path, m={"n": large, "u": np.array([2**64 - 1], np.uint64), "x": np.array([1.0, NAN], "f4")})
    assert failure(bench, {"range": {"of": "n", "le": 2**53}}) is not None
    assert failure(bench, {"range": {"of": "n", "le": 2**53 + 2, "ge": -(2**63)}}) is None
    assert failure(bench, {"range": {"of": "n", "ge": 2**63}}) is not None
    assert failure(bench, {"range": {"of": "n", "le": 1e30, "ge": -1e30}}) is None
    assert failure(bench, {"range": {"of": "u", "le": -1}}) is not None
    assert failure(bench, {"range": {"of": "u", "ge": -1, "le": 2.0**64}}) is None
    assert "NaN or infinite at [1]" in str(failure(bench, {"range": {"of": "x", "ge": -5}}))
    for bounds in ({}, {"ge": NAN}, {"ge": 2, "le": 1}):
        with pytest.raises(Problems, match="range: "):
            bench.compile([{"assert": {"range": {"of": "x", **bounds}}}])


VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.00001, 1.1, -3.0, 1e-9, NAN, INF, -INF, 1e30])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), st.sampled_from([0, 1e-5, 0.2]), st.booleans())
def test_close_is_what_numpy_calls_close(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[float, float]], rtol: float, equal_nan: bool
) -> None:
    a, b = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        expected = np.isclose(a.astype(float), b.astype(float), rtol, 1e-8, equal_nan).all()
    bench = Bench(tmp_path_factory.mktemp("close"), m={"a": a, "b": b})
    given_ = {"left": "a", "right": "b", "rtol": rtol, "equal_nan": equal_nan}
    assert (failure(bench, {"close": given_}) is None) == expected


def test_close_compares_dtypes_that_differ_and_no_shapes_that_do(tmp_path: Path) -> None:
    wide = RNG.standard_normal((6, 5)).astype("f4")
    bench = Bench(tmp_path, m={"w": wide, "n": wide.astype(dtype("bfloat16")), "t": wide.T.copy()})
    assert failure(bench, {"close": {"left": "n", "right": "w", "rtol": 2**-8}}) is None
    assert "n and m::w" in str(failure(bench, {"close": {"left": "n", "right": "w", "rtol": 1e-4}}))
    assert "against" in str(failure(bench, {"close": {"left": "t", "right": "w"}}))
    assert "does not exist" in str(failure(bench, {"close": {"left": "t", "right": "x"}}))


@pytest.mark.parametrize(
    "name", ["float32", "float64", "float16", "bfloat16", "float8_e5m2", "complex64", "int16", "bool"]
)
def test_same_bits_tells_every_bit(tmp_path: Path, name: str) -> None:
    kind = dtype(name)
    size = min(kind.itemsize, 8)
    stored = np.arange(64).astype(kind) if name != "bool" else np.arange(64) % 2 == 0
    special = stored.copy()
    if kind.kind not in "ib":
        special.view(np.uint8)[: 8 * kind.itemsize] = 0xFF  # NaN with a payload
        special[9] = -special[8] * 0
    other = special.copy()
    bench = Bench(tmp_path, m={"a": special, "b": other})
    assert failure(bench, {"same_bits": {"left": "a", "right": "b"}}) is None
    other.view(f"u{min(size, 4) if name == 'complex64' else size}")[5] ^= 1
    bench = Bench(tmp_path / "other", m={"a": special, "b": other})
    said = str(failure(bench, {"same_bits": {"left": "a", "right": "b"}}))
    assert "1 of 64 elements are off" in said


def test_same_bits_tells_signed_zeros_and_subnormal_numbers(tmp_path: Path) -> None:
    tiny = np.array([1e-42, 0.0, 1.0], "f4")
    bench = Bench(
        tmp_path, m={"a": tiny, "b": np.array([1e-42, -0.0, 1.0], "f4"), "c": np.array([2e-42, 0.0, 1.0], "f4")}
    )
    for other, place in (("b", 1), ("c", 0)):
        assert f"at [{place}]" in str(failure(bench, {"same_bits": {"left": "a", "right": other}}))
    assert failure(bench, {"equal": {"left": "a", "right": "b"}}) is None


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_a_cosine_is_that_of_long_vectors(tmp_path: Path, name: str) -> None:
    a = RNG.standard_normal((300, 100)).astype(dtype(name))
    b = (a.astype("f8") + RNG.standard_normal((300, 100)) * 0.5).astype(dtype(name))
    if name == "float64":
        a, b = a * 1e200, b * 1e-200
    x, y = ((v / np.abs(v).max()).astype(np.longdouble).reshape(-1) for v in (a.astype("f8"), b.astype("f8")))
    exact = float(x @ y / np.sqrt((x @ x) * (y @ y)))
    bench = Bench(tmp_path, m={"a": a, "b": b, "zero": np.zeros_like(a)})
    assert failure(bench, {"cosine": {"left": "a", "right": "b", "ge": exact - 1e-12}}) is None
    said = str(failure(bench, {"cosine": {"left": "a", "right": "b", "ge": exact + 1e-9}}))
    assert f"the cosine is {exact:.9g}"[:22] in said
    tight = failure(bench, {"cosine": {"left": "a", "right": "b", "ge": 1}}, memory="3MiB", workers=1)
    assert tight == failure(bench, {"cosine": {"left": "a", "right": "b", "ge": 1}})
    assert "no direction" in str(failure(bench, {"cosine": {"left": "a", "right": "zero", "ge": -1}}))
    with pytest.raises(Problems, match="from -1 to 1"):
        bench.compile([{"assert": {"cosine": {"left": "a", "right": "b", "ge": 2}}}])


def test_energy_is_the_share_of_the_squared_norm_that_is_kept(tmp_path: Path) -> None:
    delta = RNG.standard_normal((30, 20))
    u, s, vt = np.linalg.svd(delta)
    left, right = u[:, :4] * s[:4], vt[:4]
    exact = float(np.square(s[:4]).sum() / np.square(s).sum())
    stored = {"delta": delta, "approx": left @ right, "zero": delta * 0, "B": left, "A": right / 2}
    bench = Bench(tmp_path, m={name: array.astype("f4") for name, array in stored.items()})
    by = {"energy": {"of": "delta", "by": "approx", "ge": exact - 1e-6}}
    product = {"energy": {"of": "delta", "by": "B", "and": "A", "scale": 2, "ge": exact - 1e-6}}
    for expression in (by, product):
        assert failure(bench, expression) is None
        expression["energy"]["ge"] = exact + 1e-6
        said = str(failure(bench, expression))
        assert f": {exact:.9g}"[:7] in said and "of the squared norm is kept" in said
    assert failure(bench, {"energy": {"of": "delta", "by": "delta", "ge": 1}}) is None
    assert failure(bench, {"energy": {"of": "delta", "by": "zero", "ge": 0}}) is None
    assert failure(bench, {"energy": {"of": "zero", "by": "zero", "ge": 1}}) is None
    assert failure(bench, {"energy": {"of": "zero", "by": "delta", "ge": 0.5}}) is not None
    assert "against" in str(failure(bench, {"energy": {"of": "delta", "by": "A", "ge": 0}}))


def test_nothing_of_all_of_that_holds_for_no_tensors(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": np.ones(2, "f4")})
    for expression in [
        {"finite": "x"},
        {"range": {"of": "x", "ge": 0}},
        {"close": {"left": "x", "right": "w"}},
        {"same_bits": {"left": "x", "right": "w"}},
        {"cosine": {"left": "x", "right": "w", "ge": 0}},
        {"energy": {"of": "x", "by": "w", "ge": 0}},
        {"all_consumed": "x"},
    ]:
        assert "matched zero tensors" in str(failure(bench, expression))


def test_all_consumed_knows_what_is_read_and_written_before_and_after(tmp_path: Path) -> None:
    stored = {name: np.ones(2, "f4") for name in ("used", "moved", "forgotten", "dropped")}
    bench = Bench(tmp_path, a=stored, b={"w": np.ones(2, "f4")})
    steps: list[Any] = [
        {"assert": {"all_consumed": "a::.+"}},
        {"add_": {"from": "a::used", "to": "b::w"}},
        {"move": {"from": "a::moved", "to": "b::moved"}},
        {"delete": {"target": "a::dropped"}},
        {"prefixes": {"mode": "remove", "alias": "a"}},
    ]
    with pytest.raises(Problems, match="2 of 4 are not used: dropped, forgotten"):
        bench.compile(steps)
    steps[0] = {"assert": {"all_consumed": "a::(?!dropped).+"}}
    with pytest.raises(Problems, match="1 of 3 are not used: forgotten"):
        bench.compile(steps)
    steps.insert(1, {"copy": {"from": "a::forgotten", "to": "b::kept"}})
    bench.report(steps)
    steps[0] = {"assert": {"not": {"all_consumed": "a::.+"}}}
    bench.report(steps)
    whole = Bench(tmp_path / "one", m=stored)
    whole.report([{"assert": {"all_consumed": ".+"}}])
    with pytest.raises(Problems, match="4 of 4 are not used"):
        whole.compile([{"assert": {"all_consumed": ".+"}}], output=False)


PROGRAM = """
import json
import numpy as np, jax
from pathlib import Path
from running import Bench, bits
from surgery_jax import Problems
tensors = {f"w.{i}": np.random.default_rng(i).standard_normal((300, 400)).astype("f4") for i in range(12)}
bench = Bench(Path("devices"), m=tensors)
steps = [
    {"reinit_": {"target": ".+", "ratio": 0.5, "dim": 1}},
    {"compute_": {"target": "(w\\\\.).+", "with": {"b": "w.0"}, "value": "b + 0.3 * (target - b)"}},
    {"resize_": {"target": ".+", "size": 301, "init": "mean"}},
]
said = []
for devices in (1, 3):
    found = bench.tensors(steps, devices=devices)
    made = [int(bits(array).astype(np.uint64).sum()) for array in found.values()]
    texts = []
    for check in ({"cosine": {"left": "w.1", "right": "w.0", "ge": 1}}, {"energy": {"of": ".+", "by": "w.0", "ge": 1}}):
        try:
            bench.report([*steps, {"assert": check}], devices=devices)
        except Problems as failed:
            texts.append(str(failed))
    said.append([made, texts])
print(json.dumps([jax.device_count(), said]))
"""


def test_all_of_it_is_the_same_on_one_device_and_on_three(tmp_path: Path) -> None:
    count, said = simulated(PROGRAM, tmp_path, devices=3)
    assert count == 3 and said[0] == said[1]
    assert len(said[0][0]) == 12 and len(said[0][1]) == 2
