"""Results do not depend on how many devices there are, and devices have budgets."""

from pathlib import Path

import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint, simulated

from surgery_jax import BudgetError, Options, PlanError, Problems, check, explain, plan_of

# Every operation of the contract, on 3 simulated devices, through the engine: what one gives alone on one of them, and
# what many copies give, which are computed in a stack over all of them.
EVERY_OPERATION = """
import json
from pathlib import Path
import numpy as np
from ops.test_contract import COMPUTED, REFERENCES
from running import CODES, write_checkpoint
from surgery_jax import Options
from surgery_jax.reports.survey import evaluate, stored
from surgery_jax.graph.node import Graph
from surgery_jax.graph.roots import Sink
from surgery_jax.storage.formats import open_checkpoint

COPIES = 20
tensors, calls = {}, []
for name in COMPUTED:
    op, arrays = REFERENCES[name][0][0]
    if op.kind not in ("check", "template") and all(array.dtype.name in CODES for array in arrays):
        for copy in range(COPIES):
            names = [f"{name}.{copy}.{index}" for index in range(len(arrays))]
            tensors |= dict(zip(names, arrays))
            calls.append((name, copy, op, names))
path = write_checkpoint(Path("inputs.safetensors"), tensors)
entries = open_checkpoint(str(path)).entries
found = []
for devices, copies in ((1, 1), (3, COPIES)):
    graph, sinks = Graph(), []
    for name, copy, op, names in calls:
        if copy < copies:
            nodes = graph.apply(op, tuple(stored(graph, 0, key, entries[key]) for key in names), None)
            sinks += [((name, index), Sink(node, "full")) for index, node in enumerate(nodes)]
    values = evaluate((), [sink for _, sink in sinks], Options(devices=devices))
    given = {}
    for what, sink in sinks:
        given.setdefault(what, set()).add(np.asarray(values[sink]).tobytes())
    found.append(given)
import jax
different = {name for given in found for (name, _), said in given.items() if given != found[0] or len(said) > 1}
print(json.dumps([jax.local_device_count(), sorted({name for name, *_ in calls}), sorted(different)]))
"""


def test_every_operation_gives_the_same_bits_alone_and_in_a_stack_over_3_devices(tmp_path: Path) -> None:
    count, names, different = simulated(EVERY_OPERATION, tmp_path, devices=3)
    assert count == 3 and different == []
    assert {"Add", "Cast", "Matmul", "LowRank", "Permute", "Scale"} <= set(names)


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
    assert "--device-memory of at least 704 KiB" in str(refused.value)
    assert check(plan, Options(device_memory="704KiB", devices=1))


def test_what_fits_no_device_and_cannot_be_spread_is_computed_on_the_host(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((300, 200)).astype(np.float32)
    bench = Bench(tmp_path, m={"x": x})
    turned = [{"permute": {"from": "x", "to": "y", "order": [1, 0]}}, {"scale_": {"target": "y", "by": 1 / 3}}]
    product = [*turned, {"matmul": {"from_a": "x", "from_b": "y", "to": "z"}}]
    small = {"device_memory": "200KiB"}
    for steps in (turned, product):
        kinds = [group.kind for group in explain(plan_of(bench.plan(steps)), Options(**small)).groups]
        assert kinds == ["whole on host"]
        report = bench.report(steps, **small)
        assert report.num_compilations == 0
        found = read_checkpoint(bench.out)
        assert_same_bits(found["y"], x.T * np.float32(1 / 3))
    np.testing.assert_allclose(found["z"], x.astype(np.float64) @ (x.T / 3), rtol=1e-5, atol=1e-4)
    wrong = [*turned, {"assert": {"iszero": "y"}}]
    with pytest.raises(Problems, match="60000 of 60000 elements"):
        bench.report(wrong, **small)


def test_more_devices_than_there_are_is_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(5, np.float32)})
    before = bench.left()
    with pytest.raises(PlanError, match="there are no 99 devices") as refused:
        bench.report([{"scale_": {"target": "x", "by": 3}}], devices=99)
    assert "at most" in str(refused.value.expected)
    assert bench.left() == before
