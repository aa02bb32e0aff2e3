"""Helpers of the engine's tests: checkpoints written and read here byte by byte, and running steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from surgery_jax import Options, compile_plan, plan_of, run
from surgery_jax.execute.report import Report

Tensors = Mapping[str, np.ndarray]

CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "complex64": "C64",
}  # fmt: skip
NARROW = ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz")


def dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name)) if name in NARROW else np.dtype(name)


def bits(array: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers, so that NaN equals NaN and -0 differs from 0."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint8 if array.dtype == bool else f"u{min(array.itemsize, 8)}")


def assert_same_bits(found: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
    np.testing.assert_array_equal(bits(found), bits(expected), err_msg=what)


def assert_same_values(found: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    """The same bits, but one NaN is as good as another: their payloads are the processor's affair."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
    if found.dtype.kind in "biu":
        np.testing.assert_array_equal(found, expected, err_msg=what)
        return
    with np.errstate(all="ignore"):
        nan, other = np.asarray(found != found), np.asarray(expected != expected)
    np.testing.assert_array_equal(nan, other, err_msg=f"{what}: places of NaN")
    np.testing.assert_array_equal(np.where(nan, 0, bits(found)), np.where(nan, 0, bits(expected)), err_msg=what)


def write_checkpoint(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes],
        }  # fmt: skip
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            stream.write(np.ascontiguousarray(array).tobytes())
    return path


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file or of a directory of them, in the order of the files."""
    if path.is_dir():
        parts = [read_checkpoint(part) for part in sorted(path.glob("*.safetensors"))]
        return {name: array for part in parts for name, array in part.items()}
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    names = {code: name for name, code in CODES.items()}
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[begin:end], dtype(names[entry["dtype"]])).reshape(entry["shape"])
    return tensors


def simulated(code: str, cwd: Path, devices: int = 8) -> Any:
    """What a program says, as JSON, that sees so many devices and finds what lies here and beside the tests of runs."""
    here = Path(__file__).resolve().parent
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(here), str(here / "execute"), str(here.parent)]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


class Bench:
    """A directory with input checkpoints, in which steps are run."""

    def __init__(self, root: Path, **inputs: Tensors) -> None:
        self.root = root
        self.inputs = [f"{alias}::{write_checkpoint(root / f'{alias}.safetensors', t)}" for alias, t in inputs.items()]
        self.out = root / "out.safetensors"

    def plan(self, steps: Any, output: bool = True) -> dict[str, Any]:
        content: dict[str, Any] = {"inputs": self.inputs, "transforms": steps}
        return content | ({"output": str(self.out)} if output else {})

    def compile(self, steps: Any, output: bool = True, **options: Any) -> Any:
        return compile_plan(plan_of(self.plan(steps, output)), Options(**options))

    def report(self, steps: Any, output: bool = True, **options: Any) -> Report:
        """Run steps; the output is replaced if it is there."""
        settings = Options(**{"sync": False, "overwrite": True, **options})
        return run(plan_of(self.plan(steps, output)), settings)

    def tensors(self, steps: Any, **options: Any) -> dict[str, np.ndarray]:
        """What the output holds after some steps."""
        self.report(steps, **options)
        return read_checkpoint(self.out)

    def left(self) -> list[str]:
        """All that lies in the directory, hidden names too."""
        return sorted(path.name for path in self.root.iterdir())
