"""Every plan of the repository is right: all that headers can tell holds on a checkpoint of its shapes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from surgery_jax import check, load_plan

PLANS = Path(__file__).parent.parent.parent / "plans"
Shapes = Iterator[tuple[str, str, tuple[int, ...]]]


def minilm() -> Shapes:
    yield "embeddings.position_ids", "I64", (1, 512)
    for part, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        yield f"embeddings.{part}_embeddings.weight", "F32", (rows, 384)
    norms = ["embeddings.LayerNorm"]
    linear = {"pooler.dense": (384, 384)}
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
        linear |= {f"{name}.attention.self.{part}": (384, 384) for part in ("query", "key", "value")}
        linear |= {f"{name}.attention.output.dense": (384, 384)}
        linear |= {f"{name}.intermediate.dense": (1536, 384), f"{name}.output.dense": (384, 1536)}
    for name in norms:
        yield f"{name}.weight", "F32", (384,)
        yield f"{name}.bias", "F32", (384,)
    for name, shape in linear.items():
        yield f"{name}.weight", "F32", shape
        yield f"{name}.bias", "F32", shape[:1]


# plan -> where it reads, and the tensors that lie there
SHAPES = {"demo_minilm.yaml": {"demo/all-MiniLM-L6-v2/model.safetensors": minilm}}


def write_hollow(path: Path, shapes: Shapes) -> None:
    """A checkpoint whose elements are a hole in the file."""
    header, at = {}, 0
    for name, code, shape in shapes:
        size = {"F32": 4, "BF16": 2, "I64": 8}[code]
        for length in shape:
            size *= length
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)


@pytest.mark.parametrize("name", sorted(path.name for path in PLANS.glob("*.yaml")))
def test_a_plan_of_the_repository_fits_the_shapes_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert name in SHAPES, f"tests/plans/test_plans.py does not know what {name} reads"
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLANS / name, tmp_path)
    for path, shapes in SHAPES[name].items():
        write_hollow(tmp_path / path, shapes())
    compiled = check(load_plan(name))
    assert compiled.outputs and compiled.program.groups
