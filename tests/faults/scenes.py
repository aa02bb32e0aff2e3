"""The kinds of run that faults are tried on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from running import write_checkpoint

from .trial import Scene

__all__ = ["BATCH", "DOCUMENTS", "JOBS", "SCENES", "batch", "model", "plan", "tensors"]


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


TORCH_DIRECTORY = r"""
inputs: [ "model::model" ]
transforms:
  - move: { from: 'a\.(.+)', to: 'layers.0.\1' }
output: { path: old, format: torch, shard: 700KB }
"""
DOCUMENTS = r"""
inputs: [ "model::model", "other::other" ]
transforms:
  - config: { set: { hidden_size: 32, deep: { er: [1, 2] } }, rename: { seed: from_seed }, alias: model }
  - document: { write: NOTICE, text: "made of ${config.model.hidden_size}", alias: model }
  - document: { copy: 'tokenizer*', from: other, alias: model }
  - assert: { config: { 'model::hidden_size': 32 } }
  - save: { path: told, alias: model, format: safetensors, shard: 2MB, documents: [config.json, NOTICE, 'tokenizer*'] }
  - delete: { target: 'other::.+' }
output: { path: out, documents: [NOTICE] }
"""
EXTRACT = r"""
inputs: [ "base::model", "tuned::other" ]
transforms:
  - lora_extract: { base: 'base::(.\.weight)', tuned: 'tuned::\1', to: adapter, energy: 0.5, max_rank: 8 }
output: { path: adapter, format: peft }
"""


def with_plan(text: str):
    def build(root: Path) -> None:
        model(root)
        plan(root, text)

    return build


def replacing(root: Path) -> None:
    with_plan(REPLACE)(root)
    model(root, "old", seed=2)


def replacing_two(root: Path) -> None:
    with_plan(TWO)(root)
    write_checkpoint(root / "first", tensors(2))
    model(root, "second", seed=3)


def beside_strangers(root: Path) -> None:
    """A plan for a directory that holds files of its owner."""
    two_models(TORCH_DIRECTORY)(root)
    (root / "old").mkdir()
    for name in STRANGERS:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(name.encode())


def two_models(text: str):
    def build(root: Path) -> None:
        with_plan(text)(root)
        model(root, "other", seed=3)

    return build


def batch(root: Path) -> None:
    two_models(BATCH)(root)
    plan(root, JOBS, "jobs.yaml")
    plan(root, "\n".join(JOBS.splitlines()[:-1]), "first.yaml")


RUN = ("run", "plan.yaml", "--no-summary", "--workers", "2")
STRANGERS = ("old/ema.pt", "old/tokenizer.bin", "old/notes/scheduler.pth")
RECORD = "jobs.yaml.done"
RECEIPTS = ("model/surgery.receipt.json", "model/surgery.tensors.json")  # those of the second time tell of other inputs
SCENES = (
    Scene("move", with_plan(MOVE), RUN, ("out",)),
    Scene("compute", with_plan(COMPUTE), (*RUN, "--no-sync"), ("out.safetensors",)),
    Scene("torch", with_plan(TORCH), RUN, ("out.pt",)),
    Scene("orbax", with_plan(ORBAX), (*RUN, "--no-sync"), ("out",)),
    Scene("two", with_plan(TWO), RUN, ("first", "second")),
    Scene("replace", replacing, (*RUN, "--overwrite"), ("old",)),
    Scene("itself", with_plan(ITSELF), (*RUN, "--overwrite"), ("model",), volatile=RECEIPTS),
    Scene("convert", with_plan(MOVE), ("convert", "model", "out.msgpack"), ("out.msgpack",)),
    Scene(
        "batch", batch, ("batch", "jobs.yaml"), ("one", "two"), again=("batch", "jobs.yaml"), volatile=(RECORD,),
        keeps=True,
    ),
    Scene(
        "batch again", batch, ("batch", "jobs.yaml"), ("one", "two"), first=("batch", "first.yaml", "--record", RECORD),
        again=("batch", "jobs.yaml"), volatile=(RECORD,), keeps=True,
    ),
    Scene(
        "replace torch", beside_strangers, (*RUN, "--overwrite"), ("old",), strangers=STRANGERS,
        first=("convert", "other", "old", "--format", "torch", "--overwrite"),
    ),
    Scene(
        "replace orbax", with_plan(MOVE), ("convert", "model", "old", "--format", "orbax", "--overwrite"), ("old",),
        first=("convert", "model/model.safetensors", "old", "--format", "orbax"),
    ),
    Scene("replace two", replacing_two, (*RUN, "--overwrite"), ("first", "second")),
    Scene("documents", two_models(DOCUMENTS), RUN, ("told", "out")),
    Scene("extract", two_models(EXTRACT), (*RUN, "--no-sync"), ("adapter",)),
    Scene("summary", with_plan(MOVE), (*RUN[:2], "--summary", "summary.yaml"), ("out", "summary.yaml")),
)  # fmt: skip
