"""Every operation makes the same bits on any number of devices and processes, with any budget, workers and shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import references
from pods import free_port
from registry import write_registry
from running import read_checkpoint

SCRIPT = Path(__file__).parents[1] / "registry.py"
WAYS: dict[str, tuple[int, int, dict[str, Any]]] = {  # processes, devices of each, and options
    "one": (1, 1, {}),
    "eight devices": (1, 8, {"memory": "8MiB", "workers": 1, "shard_size": "20KB"}),
    "two processes": (2, 1, {"memory": "64MiB", "workers": 2, "shard_size": "none"}),
    "four processes": (4, 1, {"memory": "16MiB", "workers": 3, "shard_size": "9KB"}),
}


def made(root: Path, way: str) -> tuple[dict[str, bytes], Any]:
    """The bytes of all results by name, and what became of the checks."""
    size, devices, options = WAYS[way]
    given = {"distributed": True, "coordinator": f"127.0.0.1:{free_port()}", "num_processes": size} if size > 1 else {}
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),  # what one way has compiled serves the others
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
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
