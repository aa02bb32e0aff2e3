"""The kinds of run that faults are tried on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from running import write_checkpoint

from .harness import Scene

__all__ = ["SCENES"]


def tensors(seed: int) -> dict[str, np.ndarray]:
    """A few tensors: one longer than what is written at once past the page cache, short ones, an empty one."""
    draw = np.random.default_rng(seed)
    shapes = {"big": (300, 1024), "a.weight": (64, 32), "a.bias": (64,), "b.weight": (32, 64), "none": (0,)}
    return {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def model(root: Path, name: str = "model", seed: int = 1) -> Path:
    """A model directory: tensors, configuration, tokenizer."""
    folder = root / name
    write_checkpoint(folder / "model.safetensors", tensors(seed))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "seed": seed}))
    (folder / "tokenizer.json").write_text(json.dumps({"words": list(range(100))}))
    return folder


def plan(root: Path, text: str, name: str = "plan.yaml") -> None:
    (root / name).write_text(text)


MOVE = r"""
inputs: [ "model::model" ]
transforms:
  - move: { from: 'a\.(.+)', to: 'layers.0.\1' }
output: { path: out, format: safetensors, shard: 700KB }
"""
COMPUTE = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: '.+weight|big', by: 0.5 }
  - assert: { not: { iszero: big } }
output: out.safetensors
"""
TORCH = r"""
inputs: [ "model::model" ]
transforms:
  - move: { from: 'b\.(.+)', to: 'c.\1' }
output: { path: out.pt }
"""
ORBAX = r"""
inputs: [ "model::model" ]
transforms:
  - move: { from: 'b\.(.+)', to: 'c.\1' }
output: { path: out, format: orbax }
"""
TWO = r"""
inputs: [ "model::model" ]
transforms:
  - save: { path: first, alias: model, format: safetensors }
  - move: { from: 'a\.(.+)', to: 'layers.0.\1' }
output: second
"""
REPLACE = r"""
inputs: [ "model::model" ]
transforms:
  - move: { from: 'a\.(.+)', to: 'layers.0.\1' }
output: old
"""
ITSELF = r"""
inputs: [ "model::model" ]
transforms:
  - cast_: { target: '.+', to: float16 }  # done twice it gives the same
output: model
"""
JOBS = r"""
plan: plan.yaml
jobs:
  - { name: one, set: { model: model, to: one } }
  - { name: two, set: { model: other, to: two } }
"""
BATCH = r"""
model: model
to: one
inputs: [ "model::${model}" ]
transforms:
  - move: { from: 'a\.(.+)', to: 'layers.0.\1' }
output: ${to}
"""


def with_plan(text: str):
    def build(root: Path) -> None:
        model(root)
        plan(root, text)

    return build


def replacing(root: Path) -> None:
    with_plan(REPLACE)(root)
    model(root, "old", seed=2)


def batch(root: Path) -> None:
    model(root)
    model(root, "other", seed=3)
    plan(root, BATCH)
    plan(root, JOBS, "jobs.yaml")


RUN = ("run", "plan.yaml", "--no-summary", "--workers", "2")
SCENES = (
    Scene("move", with_plan(MOVE), RUN, ("out",)),
    Scene("compute", with_plan(COMPUTE), (*RUN, "--no-sync"), ("out.safetensors",), computes=True),
    Scene("torch", with_plan(TORCH), RUN, ("out.pt",)),
    Scene("orbax", with_plan(ORBAX), (*RUN, "--no-sync"), ("out",), computes=True),
    Scene("two", with_plan(TWO), RUN, ("first", "second")),
    Scene("replace", replacing, (*RUN, "--overwrite"), ("old",)),
    Scene("itself", with_plan(ITSELF), (*RUN, "--overwrite"), ("model",), computes=True),
    Scene("convert", with_plan(MOVE), ("convert", "model", "out.msgpack"), ("out.msgpack",)),
    Scene("batch", batch, ("batch", "jobs.yaml"), ("one", "two"), volatile=("jobs.yaml.done",)),
)
