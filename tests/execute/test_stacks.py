"""Many small components are computed in one call, spread over the devices, and each as if it were alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint, simulated

from surgery_jax import AssertionFailed, Options, Problems, explain, plan_of
from surgery_jax.reports.simulate import Machines, simulate

__all__ = ["Bench", "read_checkpoint"]  # what the program below takes from here
MANY = 75  # components: no multiple of what a stack holds
ALONE = "300KiB"  # of memory for devices: enough for one of the components below, not for 32 of them
PRODUCTS = [{"matmul": {"from_a": r"a\.(\d+)", "from_b": r"b.\1", "to": r"c.\1"}}]
TURNED = [
    {"permute": {"from": r"a\.(\d+)", "to": r"t.\1", "order": [1, 0]}},
    {"scale_": {"target": r"t\.\d*[02468]", "by": 1 / 3}},
    {"scale_": {"target": r"t\.\d*[13579]", "by": 3e-3}},
]
FACTORS = [{"phlora": {"target": r"a\.(\d+)", "target_a": r"down.\1", "target_b": r"up.\1", "rank": 3}}]
STEPS = {"products": PRODUCTS, "turned": TURNED, "factors": FACTORS}


def tensors(count: int, m: int = 24, k: int = 40, n: int = 16) -> dict[str, np.ndarray]:
    generator = np.random.default_rng([count, m, k, n])
    a = {f"a.{i}": generator.standard_normal((m, k)).astype(np.float32) for i in range(count)}
    return a | {f"b.{i}": generator.standard_normal((k, n)).astype(np.float32) for i in range(count)}


def kinds(bench: Bench, steps: list[Any], **options: Any) -> list[tuple[str, int]]:
    found = explain(plan_of(bench.plan(steps)), Options(**options))
    return [(group.kind, group.num_tasks) for group in found.groups]


@pytest.mark.parametrize("name", STEPS)
def test_a_component_has_the_same_bits_in_a_stack_and_alone(tmp_path: Path, name: str) -> None:
    steps, small = STEPS[name], {"device_memory": ALONE}
    bench = Bench(tmp_path, m=tensors(MANY))
    assert ("stacks", 1) in kinds(bench, steps) and ("whole", MANY) in kinds(bench, steps, **small)
    stacked, alone = bench.tensors(steps), bench.tensors(steps, **small)
    assert stacked.keys() == alone.keys()
    for key, array in alone.items():
        assert_same_bits(stacked[key], array, key)


@pytest.mark.parametrize("shape", [(1, 4000, 1), (3, 1500, 4), (60, 2, 60), (1, 1, 1), (130, 20, 130), (31, 33, 29)])
def test_a_product_has_the_same_bits_in_a_stack_and_alone_whatever_its_shape(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    stored = tensors(20, *shape)
    many, one = Bench(tmp_path / "many", m=stored), Bench(tmp_path / "one", m={k: stored[k] for k in ("a.7", "b.7")})
    assert kinds(many, PRODUCTS) == [("stacks", 1)] and kinds(one, PRODUCTS) == [("whole", 1)]
    found = many.tensors(PRODUCTS)
    assert_same_bits(found["c.7"], one.tensors(PRODUCTS)["c.7"])
    for i in range(20):
        wanted = stored[f"a.{i}"].astype(np.float64) @ stored[f"b.{i}"].astype(np.float64)
        np.testing.assert_allclose(found[f"c.{i}"], wanted, rtol=1e-5, atol=1e-5 * np.sqrt(shape[1]))


def test_the_factors_of_a_stack_are_the_best_of_their_rank(tmp_path: Path) -> None:
    stored = tensors(MANY)
    found = Bench(tmp_path, m=stored).tensors(FACTORS)
    for i in range(MANY):
        matrix = stored[f"a.{i}"].astype(np.float64)
        least = np.sqrt(np.square(np.linalg.svd(matrix, compute_uv=False)[3:]).sum())
        error = np.linalg.norm(matrix - found[f"up.{i}"].astype(np.float64) @ found[f"down.{i}"])
        assert least * (1 - 1e-6) <= error <= least * (1 + 1e-5), i


def test_each_component_of_a_stack_is_computed_with_its_own_numbers(tmp_path: Path) -> None:
    stored = tensors(MANY)
    found = Bench(tmp_path, m=stored).tensors(TURNED)
    for i in range(MANY):
        by = np.float32(3e-3 if i % 2 else 1 / 3)
        assert_same_bits(found[f"t.{i}"], stored[f"a.{i}"].T * by, str(i))


def test_a_stack_with_subnormal_numbers_is_computed_exactly(tmp_path: Path) -> None:
    stored = tensors(MANY)
    stored["a.41"][3, 5] = 1e-37
    bench = Bench(tmp_path, m=stored)
    assert bench.report(TURNED).num_host_fallbacks == 1
    assert_same_bits(read_checkpoint(bench.out)["t.41"], stored["a.41"].T * np.float32(3e-3))


# What all plans give with 1, 3 and 8 devices; each device must have had its part of a stack.
ON_DEVICES = """
import json, sys
from pathlib import Path
import numpy as np
from test_stacks import MANY, STEPS, Bench, tensors
from running import bits
import jax

bench = Bench(Path.cwd(), m=tensors(MANY))
same = {}
for name, steps in STEPS.items():
    found = [bench.tensors(steps, devices=count) for count in (1, 3, 8)]
    same[name] = all(
        one.keys() == found[0].keys() and all(np.array_equal(bits(one[k]), bits(found[0][k])) for k in one)
        for one in found
    )
print(json.dumps([jax.local_device_count(), same]))
"""


def test_the_bits_of_a_stack_do_not_depend_on_the_number_of_devices(tmp_path: Path) -> None:
    assert simulated(ON_DEVICES, tmp_path) == [8, dict.fromkeys(STEPS, True)]


def test_a_stack_is_divided_evenly_among_the_devices(tmp_path: Path) -> None:
    code = """
import json
import numpy as np
from test_stacks import PRODUCTS, Bench, tensors
from pathlib import Path
from surgery_jax.compile.functions import Functions
from surgery_jax.compile.blueprint import blueprint
import jax

program = Bench(Path.cwd(), m=tensors(64)).compile(PRODUCTS).program
(group,) = program.groups
plan = blueprint(group, 1 << 30)
function = Functions().of(group, plan)
inputs = [np.ones(spec.shape, spec.dtype.numpy) for spec in plan.specs]
function.on_mesh(inputs, [()] * 64, jax.devices())
made = function.called(inputs, [()] * 64, jax.devices())[0][0]
print(json.dumps([[shard.device.id, list(shard.data.shape)] for shard in made.addressable_shards]))
"""
    assert sorted(simulated(code, tmp_path)) == [[device, [8, 24, 16]] for device in range(8)]


def test_a_check_that_fails_in_a_stack_names_the_component(tmp_path: Path) -> None:
    stored = tensors(MANY)
    d = {f"d.{i}": (stored[f"a.{i}"].astype(np.float64) @ stored[f"b.{i}"]).astype(np.float32) for i in range(MANY)}
    steps = [*PRODUCTS, {"assert": {"equal": {"left": r"c\.(\d+)", "right": r"d.\1", "eps": 1e-3}}}]
    bench = Bench(tmp_path, m=stored | d)
    assert ("stacks", 1) in kinds(bench, steps)
    bench.report(steps)
    d["d.41"][7, 3] += 1
    with pytest.raises(Problems) as caught:
        Bench(tmp_path / "wrong", m=stored | d).report(steps)
    said = str(caught.value)
    assert "c.41" in said and "[7, 3]" in said and "c.40" not in said


@pytest.mark.parametrize("which", [0, 41, MANY - 1])
def test_nan_in_a_stack_is_an_error_that_names_its_tensor(tmp_path: Path, which: int) -> None:
    stored = tensors(MANY)
    stored[f"a.{which}"][1, 2] = np.nan
    with pytest.raises(AssertionFailed, match=rf"a\.{which} holds NaN"):
        Bench(tmp_path, m=stored).report(FACTORS)


def test_devices_share_the_time_of_a_stack_in_a_simulation(tmp_path: Path) -> None:
    program = Bench(tmp_path, m=tensors(64)).compile(PRODUCTS).program
    one, eight = (simulate([program], Options(), Machines(1, n, whole=1e6)).wall_s for n in (1, 8))
    assert eight == pytest.approx(one / 8)
