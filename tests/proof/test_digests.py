"""Digests of tensors and files, found while bytes pass, against what the finished files give."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import write_checkpoint

from surgery_jax import Options, plan_of, run
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.specs import Spec
from surgery_jax.proof.tree import LEAF, tensor_digest
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.stored import blocks_of

GENERATOR = np.random.default_rng(0)
TENSORS = {
    "h.0.up": GENERATOR.standard_normal((700, 999)).astype(np.float32),  # not whole leaves
    "h.1.up": GENERATOR.standard_normal((1024, 512)).astype(np.float32),  # two leaves
    "norm": np.arange(7, dtype=np.float16),
    "half": GENERATOR.standard_normal((333, 1001)).astype(ml_dtypes.bfloat16),
    "count": np.array(3, np.int64),
    "none": np.zeros((0, 4), np.float32),
}
OUTPUTS: dict[str, Any] = {
    "whole": "out",
    "shards": {"path": "out", "shard": "1MB"},
    "torch": {"path": "out", "format": "torch"},
    "dcp": {"path": "out", "format": "dcp"},
    "orbax": {"path": "out", "format": "orbax", "options": {"chunk": "300KB"}},
}


def defined(array: np.ndarray) -> str:
    """The digest of an array as the documentation defines it, by itself."""
    data, dtype = np.ascontiguousarray(array).tobytes(), array.dtype.name
    leaves = [hashlib.sha256(data[at : at + 2**20]).digest() for at in range(0, len(data), 2**20)]
    head = f"surgery_jax tensor 1 {dtype} {','.join(map(str, array.shape))}\n"
    return hashlib.sha256(head.encode() + b"".join(leaves)).hexdigest()


@given(st.lists(st.integers(0, 3 * LEAF // 2), max_size=6))
def test_a_digest_does_not_depend_on_how_the_bytes_are_cut(sizes: list[int]) -> None:
    data = bytes(range(256)) * (sum(sizes) // 256 + 1)
    spec = Spec((sum(sizes),), BY_NAME["uint8"])
    blocks, at = [], 0
    for size in sizes:
        blocks.append(data[at : at + size])
        at += size
    assert tensor_digest(spec, blocks) == defined(np.frombuffer(data[:at], np.uint8))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS).parent


def table(path: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path, "surgery.tensors.json").read_text())
    return found


STEPS = [
    {"scale_": {"target": r"h\..*", "by": 2}},
    {"concat": {"from": ["h.0.up", "h.0.up"], "to": "wide", "dim": 1}},
    {"move": {"from": "norm", "to": "ln"}},
]


@pytest.mark.parametrize("options", [{}, {"memory": "8MiB", "workers": 3, "sync": False}], ids=["plain", "small"])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_every_tensor_and_file_has_the_digest_of_what_is_there(source: Path, output: Any, options: Any) -> None:
    run(plan_of({"inputs": [f"m::{source}"], "transforms": STEPS, "output": output}), Options(**options))
    twice = TENSORS["h.0.up"] * 2
    wanted = {
        "h.0.up": twice,
        "h.1.up": TENSORS["h.1.up"] * 2,
        "wide": np.concatenate([twice, twice], 1),
        "ln": TENSORS["norm"],
        "half": TENSORS["half"],
        "count": TENSORS["count"],
        "none": TENSORS["none"],
    }
    found = table()
    assert {name: told["digest"] for name, told in found["tensors"].items()} == {
        name: defined(array) for name, array in wanted.items()
    }
    entries = open_checkpoint("out").entries
    assert {name: tensor_digest(entry.spec, blocks_of(entry)) for name, entry in entries.items()} == {
        name: told["digest"] for name, told in found["tensors"].items()
    }
    files = {path.relative_to("out").as_posix(): path for path in Path("out").rglob("*") if path.is_file()}
    own = {name: files.pop(name) for name in ("surgery.receipt.json", "surgery.tensors.json")}
    assert {name: told["sha256"] for name, told in found["files"].items()} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    statement = json.loads(own["surgery.receipt.json"].read_text())
    ordered = sorted(files, key=Path)
    root = hashlib.sha256(b"".join(hashlib.sha256(files[name].read_bytes()).digest() for name in ordered))
    assert statement["subject"] == [{"name": "out", "digest": {"sha256": root.hexdigest()}}]
    assert found["tensors"]["wide"]["from"] == ["m::h.0.up"]


def test_digests_of_tensors_can_be_left_out(source: Path) -> None:
    plan = plan_of({"inputs": [f"m::{source}"], "output": "out"})
    run(plan, Options(digest="none"))
    assert not any("digest" in told for told in table()["tensors"].values())
    assert table()["files"]["model-00001-of-00001.safetensors"]["sha256"]
