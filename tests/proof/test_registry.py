"""Every operation makes the same bits on any number of devices and processes, with any budget, workers and shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import all_ops, references
from pods import free_port
from registry import write_registry
from running import read_checkpoint, write_checkpoint

from surgery_jax import Options, explain, plan_of, run
from surgery_jax.kit.base import TensorOp
from surgery_jax.kit.operations import SUMMED
from surgery_jax.reports.replay import replay

SCRIPT = Path(__file__).parents[1] / "registry.py"
WAYS: dict[str, tuple[int, int, dict[str, Any]]] = {  # processes, devices of each, and options
    "one": (1, 1, {}),
    "three devices": (1, 3, {"memory": "12MiB", "workers": 1, "shard_size": "20KB"}),
    "three processes": (3, 1, {"memory": "16MiB", "workers": 3, "shard_size": "9KB"}),
}


def made(root: Path, way: str) -> tuple[dict[str, bytes], Any]:
    """The bytes of all results by name, and what became of the checks."""
    size, devices, options = WAYS[way]
    given = {"distributed": True, "coordinator": f"127.0.0.1:{free_port()}", "num_processes": size} if size > 1 else {}
    kept = {  # what one way has compiled serves the others
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = kept | os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), way, json.dumps(options | given | ({"process_id": rank} if given else {}))],
            cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    files = sorted((root / way).glob("*.safetensors"))
    found = {name: array for file in files for name, array in read_checkpoint(file).items()}
    return {name: array.tobytes() for name, array in found.items()}, json.loads(said[0][0])


def test_every_operation_makes_the_same_bits_however_the_work_is_divided(tmp_path: Path) -> None:
    names = write_registry(tmp_path, references())
    expected, verdicts = made(tmp_path, "one")
    assert {name.partition(".")[0] for name in expected} | set(verdicts) == set(names)
    for way in list(WAYS)[1:]:
        found, told = made(tmp_path, way)
        assert [name for name in expected if found.get(name) != expected[name]] == [], way
        assert found.keys() == expected.keys() and told == verdicts, way


def test_what_may_differ_between_processors_is_said_and_compared_within_what_the_operation_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(2)
    write_checkpoint(Path("m.safetensors"), {name: draw.standard_normal((9, 20)).astype("f4") for name in "ab"})
    product = {"einsum": {"from": "a", "and": ["b"], "to": "product", "equation": "i j, k j -> i k"}}
    plan = plan_of({"inputs": ["m.safetensors"], "transforms": [product], "output": "out"})
    run(plan, Options(sync=False))
    ((told,),) = (group.varies for group in explain(plan).groups)
    assert told == f"{SUMMED.why}; by at most {SUMMED.tolerance:g} of the largest magnitude"
    (weights,) = Path("out").glob("*.safetensors")
    tensors = read_checkpoint(weights)
    largest = np.abs(tensors["product"]).max()
    for name, part, holds in (("near", 0.5, True), ("far", 3.0, False)):
        changed = tensors["product"].copy()
        changed[3, 4] += part * SUMMED.tolerance * largest
        write_checkpoint(Path(f"{name}.safetensors"), tensors | {"product": changed})
        found = replay("out", against=f"{name}.safetensors")
        (mismatch,) = found.mismatches
        assert (found.holds, mismatch.within, mismatch.index) == (holds, holds, (3, 4))
        assert f"by {SUMMED.tolerance:g} of the largest magnitude at most" in mismatch.why


@pytest.mark.parametrize("cls", [cls for cls in all_ops() if cls.uses_lapack], ids=lambda cls: cls.__name__)
def test_what_lapack_finds_says_that_it_may_differ(cls: type[TensorOp]) -> None:
    assert cls.varies is not None and 0 < cls.varies.tolerance < 1
