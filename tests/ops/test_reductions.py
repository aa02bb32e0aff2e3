"""Numbers about whole tensors: right, and the same bits for every tile, budget, worker and device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Bench, dtype, simulated

from surgery_jax import Options, Problems, explain, plan_of
from surgery_jax.asserts.norm import Norm2
from surgery_jax.graph.node import Graph, Source
from surgery_jax.graph.roots import Sink
from surgery_jax.kit.reduction import BLOCK, combined
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.reports.survey import evaluate
from surgery_jax.storage.formats import open_checkpoint

RNG = np.random.default_rng(2)
STORED = {
    "long": RNG.standard_normal((1100, 1000)).astype("f4"),
    "narrow": RNG.standard_normal((130, 129)).astype(dtype("bfloat16")),
    "huge": RNG.standard_normal((200, 90)) * 1e200,
    "tiny": (RNG.standard_normal(50) * 1e-42).astype("f4"),
    "none": np.zeros((0, 3), "f4"),
    "scalar": np.array(-3.0, "f4"),
}


def norm(op: Norm2, source: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(source.astype(np.longdouble).reshape(-1))]).astype(np.float64)


REFERENCES = {
    "Norm2": (
        [
            (Norm2(array.dtype.itemsize == 8), [array])
            for name, array in STORED.items()
            if array.size < 20_000 and name != "tiny"
        ],
        norm,
        "single",
    )
}


def told(bench: Bench, steps: list[Any], **options: Any) -> str:
    with pytest.raises(Problems) as failed:
        bench.report([*steps, {"assert": {"norm": {"of": ".+", "lt": -1}}}], **options)
    return str(failed.value)


@pytest.mark.parametrize("name", STORED)
def test_a_norm_is_that_of_extended_precision(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, m={name: STORED[name]})
    exact = float(np.linalg.norm(STORED[name].astype(np.longdouble).reshape(-1)))
    assert f"norm {exact:.9g}, expected less than -1" in told(bench, [])
    near = {"of": name, "ge": exact * (1 - 1e-13), "le": exact * (1 + 1e-13)}
    bench.report([{"assert": {"norm": near}}], output=False)


def test_a_norm_has_the_same_bits_for_every_budget_and_number_of_workers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": STORED["long"]})
    (stored,) = open_checkpoint(str(tmp_path / "m.safetensors")).entries.values()
    graph = Graph()
    (node,) = graph.apply(Norm2(), (graph.read(Source(0, "w", stored), stored.spec, None),), None)
    sink = Sink(node, "array")
    budgets = (Options(), Options(memory="3MiB", workers=1), Options(memory="9MiB", workers=2))
    found = {float(evaluate((), (sink,), options)[sink][0]) for options in budgets}
    found.add(float(Norm2().apply(HostKernel(), STORED["long"])[0]))
    assert len(found) == 1
    assert bench.left() == ["m.safetensors"]


def test_a_norm_of_what_is_computed_is_taken_in_the_pass_that_writes_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": STORED["long"]})
    steps = [{"scale_": {"target": "w", "by": 2.0}}, {"assert": {"norm": {"of": "w", "gt": 1}}}]
    found = explain(plan_of(bench.plan(steps)), Options())
    assert [(group.kind, group.num_tasks) for group in found.groups] == [("reductions", 1)]
    np.testing.assert_array_equal(bench.tensors(steps)["w"], STORED["long"] * 2)


def test_nan_is_within_no_bound(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": np.array([1.0, np.nan], "f4")})
    with pytest.raises(Problems, match="w has norm nan"):
        bench.report([{"assert": {"norm": {"of": "w", "ge": 0}}}])
    with pytest.raises(Problems, match="at least one bound"):
        bench.compile([{"assert": {"norm": {"of": "w"}}}])


@given(st.integers(1, 3 * BLOCK // 128), st.integers(1, 5))
def test_blocks_are_combined_in_an_order_of_their_own(count: int, columns: int) -> None:
    parts = np.random.default_rng(count).standard_normal((count, columns))

    def tree(values: list[float]) -> float:
        while len(values) > 1:
            pairs = [sum(values[at : at + 2]) for at in range(0, len(values), 2)]
            values = pairs
        return values[0]

    found = combined(HostKernel(), parts, ("sum",) * columns)
    assert found == [tree(list(parts[:, number])) for number in range(columns)]


PROGRAM = """
import json, sys
import numpy as np, jax
from pathlib import Path
from running import Bench
from surgery_jax import Problems
tensors = {f"w.{i}": np.random.default_rng(i).standard_normal((300, 400)).astype("f4") for i in range(12)}
bench = Bench(Path("devices"), m=tensors)
said = []
for devices in (1, 3):
    try:
        bench.report([{"assert": {"norm": {"of": ".+", "lt": -1}}}], devices=devices)
    except Problems as failed:
        said.append(str(failed))
print(json.dumps([jax.device_count(), said]))
"""


def test_a_norm_is_the_same_on_one_device_and_on_three(tmp_path: Path) -> None:
    count, said = simulated(PROGRAM, tmp_path, devices=3)
    assert count == 3 and len(said) == 2 and len(set(said)) == 1
