"""What a check says of the memory budget is what a run does; and all that a task makes counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint

from surgery_jax import BudgetError, Options, batch, check, compile_plan, explain, plan_of, run
from surgery_jax.core.specs import parse_size
from surgery_jax.reports.simulate import Machines, simulate

MIB = 1 << 20
NOISE = np.random.default_rng(0).integers(0, 256, 24 * MIB, np.uint8).view(np.float32)  # cannot be compressed
RANDOM = {"fill": {"from": "x", "to": "y", "mode": "rand", "distribution": "normal", "seed": 3}}
SOME = {"fill": {"from": "x", "to": "y", "mode": "tensor", "values": [[1], [2], [3]]}}


def compressed(chunk: str) -> dict[str, Any]:
    return {"path": "out", "format": "orbax", "options": {"compression": "zstd", "chunk": chunk}}


# Steps, output, and a budget that some piece of the work does not fit.
TOO_SMALL: dict[str, tuple[list[Any], Any, str]] = {
    "moved bytes": ([{"copy": {"from": "x", "to": "y"}}], "out.safetensors", "300KiB"),
    "random numbers": ([RANDOM], "out.safetensors", "1200KiB"),
    "compressed chunks": ([], compressed("24MB"), "16MiB"),
    "compressed chunks beside random numbers": ([RANDOM], compressed("3MB"), "6MiB"),
    "a whole matrix": ([{"matmul": {"from_a": "a", "from_b": "a", "to": "y"}}], "out.safetensors", "2MiB"),
    "a blocked matrix": ([{"phlora_": {"target": "a", "rank": 3}}], "out.safetensors", "2MiB"),
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, m={"x": NOISE.reshape(3, -1), "a": np.eye(700, dtype=np.float32)})


@pytest.mark.parametrize("name", TOO_SMALL)
def test_a_check_refuses_what_a_run_would_and_names_a_budget_that_is_enough(bench: Bench, name: str) -> None:
    steps, output, memory = TOO_SMALL[name]
    plan = plan_of(bench.plan(steps, output=False) | {"output": output})
    before = bench.left()
    said = []
    for act in (check, run):
        with pytest.raises(BudgetError) as refused:
            act(plan, Options(memory=memory, workers=3))
        assert refused.value.exit_code == 4
        said.append(str(refused.value))
        assert bench.left() == before, "nothing was begun"
    assert said[0] == said[1]
    found = re.search(r"--memory of at least ([\d.]+ \w+)", said[0])
    assert found is not None
    enough = Options(memory=found[1], workers=3, sync=False)
    check(plan, enough)
    report = run(plan, enough)
    assert report.peak_buffer_bytes <= enough.memory_bytes
    less = (parse_size(found[1], binary=True) or 0) * 97 // 100 >> 10
    too_little = Options(memory=f"{less}KiB", workers=3, overwrite=True)
    with pytest.raises(BudgetError):
        check(plan, too_little)


def test_checking_a_batch_refuses_jobs_that_do_not_fit(bench: Bench) -> None:
    (bench.root / "plan.yaml").write_text(json.dumps(bench.plan([], output=False) | {"output": compressed("24MB")}))
    (bench.root / "jobs.yaml").write_text("plan: plan.yaml\njobs: [ { name: a } ]\n")
    for only_check in (True, False):
        (job,) = batch("jobs.yaml", Options(memory="16MiB"), only_check=only_check).jobs
        assert isinstance(job.error, BudgetError)


def test_random_tensors_and_given_values_larger_than_the_budget_are_made_in_tiles(bench: Bench) -> None:
    steps: list[Any] = [RANDOM, {"scale": {"from": "y", "to": "z", "by": 3}}]
    whole = bench.tensors(steps, memory="2GiB")
    report = bench.report(steps, memory="6MiB", workers=4)
    assert report.peak_buffer_bytes <= 6 * MIB < NOISE.nbytes
    found = read_checkpoint(bench.out)
    for name in ("y", "z"):
        assert_same_bits(found[name], whole[name], name)
    given = np.repeat(np.array([[1], [2], [3]], np.float32), NOISE.size // 3, 1)
    assert_same_bits(bench.tensors([SOME], memory="6MiB")["y"], given)


MEASURED = """
import json, sys
from pathlib import Path
from surgery_jax import Options, load_plan, run
run(load_plan("small.yaml"), Options(memory=sys.argv[1], workers=4, sync=False, overwrite=True))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
def memory(key): return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024
before = memory("VmRSS")
run(load_plan("large.yaml"), Options(memory=sys.argv[1], workers=4, sync=False, overwrite=True))
print(json.dumps(memory("VmHWM") - before))
"""


@pytest.mark.parametrize(
    ("steps", "output", "memory"),
    [([RANDOM, {"delete": {"target": "x"}}], "out.safetensors", "16MiB"), ([SOME], "out.safetensors", "16MiB")],
    ids=["random numbers", "given values"],
)
def test_a_process_takes_no_more_than_its_budget_for_what_it_makes(
    bench: Bench, steps: list[Any], output: Any, memory: str
) -> None:
    shapes = {"small": 30, "large": 32 * MIB}
    spelled = json.loads(json.dumps(steps).replace('"x"', '"m::x"').replace('"y"', '"m::y"'))
    for name, count in shapes.items():
        base = [{"prefixes": {"mode": "add", "alias": "m"}}, {"zeroes": {"target": "m::x", "shape": [3, count // 3]}}]
        content = {"inputs": [], "transforms": [*base, *spelled], "output": output}
        (bench.root / f"{name}.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-c", MEASURED, memory]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.root, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 1.5 * (parse_size(memory, binary=True) or 0)


ENCODED = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.specs import Spec
from surgery_jax.storage.orbax.chunks import encode_bytes, encode_chunk
from surgery_jax.storage.orbax.zarr import chunk_key, describe
def memory(key): return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) * 1024
def encode(spec, data):
    described = describe(spec, spec.shape, "zstd")
    with ThreadPoolExecutor(1) as pool:
        return len(pool.submit(encode_chunk, "zarr", described, chunk_key((0,), 2), data).result())
noise = np.random.default_rng(0).integers(0, 256, 36_000_000, np.uint8)
few, spec = (Spec((count,), BY_NAME["float32"]) for count in (1000, 9_000_000))
encode(few, noise[:4000])  # what the library needs once does not count
size = int(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
length = encode(spec, noise[:size])
print(json.dumps([length, memory("VmHWM") - before, encode_bytes(spec.nbytes, size)]))
"""


@pytest.mark.parametrize("size", [36_000_000, 20_000_000])
def test_what_encoding_takes_is_what_is_reserved_for_it(size: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENCODED, str(size)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    length, taken, reserved = json.loads(done.stdout)
    assert length > size - (1 << 16) and reserved / 2.5 < taken <= reserved


def test_the_predicted_peak_counts_the_files_that_are_compressed(bench: Bench) -> None:
    plan = plan_of(bench.plan([], output=False) | {"output": compressed("8MB")})
    options = Options(memory="256MiB", workers=1, sync=False)
    predicted = explain(plan, options).peak_buffer_bytes
    (imagined,) = simulate(compile_plan(plan).passes, options, Machines()).passes[0].hosts
    assert 16 * MIB < run(plan, options).peak_buffer_bytes <= predicted
    assert 16 * MIB < imagined.peak_buffer_bytes <= predicted
