"""The real command, in a process of its own, in a directory with two tiny checkpoints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    tensors = {f"h.{i}.{word}": rng.normal(size=(4, 6)).astype(np.float32) for i in range(3) for word in ("up", "down")}
    tensors["norm"] = np.arange(6, dtype=np.float32)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"made": "here"})
    tensors["h.1.up"] = tensors["h.1.up"] + np.eye(4, 6, dtype=np.float32) * 0.25
    tensors["norm"] = np.arange(5, dtype=np.float32)
    tensors["new"] = np.array([1.0, np.nan], np.float32)
    del tensors["h.2.down"]
    save_file(tensors, tmp_path / "b.safetensors")
    return tmp_path


@pytest.fixture
def surgery(place: Path) -> Command:
    """Run `surgery-jax` with these arguments."""

    def call(*words: object, python: tuple[str, ...] = (), **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, "-m", "surgery_jax", *map(str, words)]
        settings = {"cwd": place, "env": environment(), "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run(command, **(settings | options))

    return call


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("SURGERY_JAX_")}


@pytest.fixture
def plan(place: Path) -> Callable[..., str]:
    """Write a plan file; gives its name."""

    def write(text: str, name: str = "plan.yaml") -> str:
        (place / name).write_text(text, encoding="utf-8")
        return name

    return write
