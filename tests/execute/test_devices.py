"""Results do not depend on how many devices there are, and devices have budgets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint

from surgery_jax import BudgetError, Options, PlanError, check, plan_of

# Every operation of the contract, on 8 simulated devices, through the engine: what it gives with 1, 2 and 8 of them.
EVERY_OPERATION = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import numpy as np
from ops.test_contract import COMPUTED, REFERENCES
from running import CODES, write_checkpoint
from surgery_jax import Options
from surgery_jax.execute.survey import evaluate, stored
from surgery_jax.graph.node import Graph
from surgery_jax.graph.roots import Check, Sink
from surgery_jax.storage.formats import open_checkpoint

tensors, calls = {}, []
for name in COMPUTED:
    op, arrays = REFERENCES[name][0][0]
    if op.kind not in ("check", "template") and all(array.dtype.name in CODES for array in arrays):
        names = [f"{name}.{index}" for index in range(len(arrays))]
        tensors |= dict(zip(names, arrays))
        calls.append((name, op, names))
path = write_checkpoint(Path("inputs.safetensors"), tensors)
entries = open_checkpoint(str(path)).entries
found = []
for devices in (1, 2, 8):
    graph, sinks = Graph(), []
    for number, (name, op, names) in enumerate(calls):
        nodes = graph.apply(op, tuple(stored(graph, 0, key, entries[key]) for key in names), None)
        sinks += [(f"{name} {number}", Sink(node, "full")) for node in nodes]
    values = evaluate((), [sink for _, sink in sinks], Options(devices=devices))
    found.append([(what, repr(values[sink])) for what, sink in sinks])
import jax
assert jax.local_device_count() == 8
assert found[0] == found[1] == found[2], [a for a, b, c in zip(*found) if not a == b == c]
print(sorted({name for name, _, _ in calls}))
"""


def simulated(code: str, *arguments: str, cwd: Path) -> str:
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_operation_gives_the_same_bits_on_1_2_and_8_devices(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parent.parent
    said = simulated(EVERY_OPERATION, str(tests), str(tests.parent), cwd=tmp_path)
    assert {"Add", "Cast", "Matmul", "LowRank", "Permute", "Scale"} <= set(json.loads(said.replace("'", '"')))


def test_a_device_budget_cuts_what_can_be_cut_and_changes_no_bit(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((3000, 500)).astype(np.float32)
    bench = Bench(tmp_path, m={"x": x})
    steps = [{"scale": {"from": "x", "to": "y", "by": 1 / 3}}, {"multiply": {"from_a": "x", "from_b": "y", "to": "x"}}]
    wanted = bench.tensors(steps)
    report = bench.report(steps, device_memory="300KiB")
    assert report.num_compilations > 0
    for name, array in wanted.items():
        assert_same_bits(read_checkpoint(bench.out)[name], array, name)


def test_work_that_cannot_be_cut_to_a_device_is_refused_with_the_budget_it_needs(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((300, 300)).astype(np.float32)
    bench = Bench(tmp_path, m={"x": x})
    plan = plan_of(bench.plan([{"matmul": {"from_a": "x", "from_b": "x", "to": "y"}}]))
    with pytest.raises(BudgetError, match="does not fit the devices") as refused:
        check(plan, Options(device_memory="500KiB", devices=1))
    assert "--device-memory of at least 703 KiB" in str(refused.value)
    assert check(plan, Options(device_memory="704KiB", devices=1))


def test_more_devices_than_there_are_is_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(5, np.float32)})
    before = bench.left()
    with pytest.raises(PlanError, match="there are no 99 devices") as refused:
        bench.report([{"scale_": {"target": "x", "by": 3}}], devices=99)
    assert "at most" in str(refused.value.expected)
    assert bench.left() == before
