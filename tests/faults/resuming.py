"""Runs that are stopped again and again, and cuts of power: `--resume` must come to the end that nothing disturbs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from running import write_checkpoint

from .harness import Mode, Point
from .scenes import RUN, batch, model, plan, with_plan
from .trial import Scene, Trial, difference, tree

__all__ = ["RESUMED", "resumed"]

NORM = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: 'a.+|big', by: 0.5 }
  - assert: { norm: { of: '.+weight|big', gt: 0 } }
  - dump: { target: 'a\.weight::[:1,:2]' }
  - move: { from: 'b\.(.+)', to: 'c.\1' }
output: { path: out, format: safetensors, shard: 700KB }
"""
LOW_RANK = r"""
inputs: [ "base::base", "tuned::tuned" ]
transforms:
  - lora_extract: { base: 'base::(.+)', tuned: 'tuned::\1', to: lora, energy: 0.9 }
output: lora
"""
MERGE = r"""
inputs: [ "model::model", "other::other" ]
transforms:
  - scale_: { target: 'model::.+weight|big', by: 0.25 }
  - add_: { from: 'other::(.+weight|big)', to: 'model::\1' }
output: merged
"""
ORBAX = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: 'a.+', by: 0.5 }
output: { path: out, format: orbax, options: { compression: zstd, chunk: 256KB } }
"""
TORCH = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: 'a.+', by: 0.5 }
output: { path: out.pt }
"""
SAVE = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: 'a.+', by: 0.5 }
  - save: { path: first, alias: model, format: safetensors }
  - scale_: { target: 'b.+', by: 0.5 }
output: second
"""
ITSELF = r"""
inputs: [ "model::model" ]
transforms:
  - scale_: { target: '.+', by: 0.5 }  # done twice it gives something else
output: model
"""


def _pair(root: Path) -> None:
    draw = np.random.default_rng(6)
    for name, by in (("base", 0.0), ("tuned", 1.0)):
        matrices = {f"l.{n}.q_proj.weight": draw.standard_normal((24, 16), np.float32) * by for n in range(20)}
        write_checkpoint(root / name / "model.safetensors", matrices)
    plan(root, LOW_RANK)


def _two(root: Path) -> None:
    model(root, "other", seed=2)
    with_plan(MERGE)(root)


LAST = 60  # calls, in which outputs are brought to the disk and appear: there more depends on the order
KILLS = (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.CUT)
FINE = (*RUN, "--memory", "3MiB")  # many tasks
BATCH = ("batch", "jobs.yaml", "--memory", "3MiB", "--no-receipt")
RESUMED = (
    Scene("resume-norm", with_plan(NORM), FINE, ("out",), volatile=("out/surgery.receipt.json",)),
    Scene("resume-low-rank", _pair, RUN, ("lora",), volatile=("lora/surgery.receipt.json",)),
    Scene("resume-merge", _two, (*FINE, "--no-sync", "--no-receipt"), ("merged",)),
    Scene("resume-orbax", with_plan(ORBAX), (*RUN, "--no-receipt"), ("out",)),
    Scene("resume-torch", with_plan(TORCH), FINE, ("out.pt",)),
    Scene("resume-save", with_plan(SAVE), (*FINE, "--no-receipt"), ("first", "second")),
    Scene("resume-itself", with_plan(ITSELF), (*FINE, "--overwrite"), ("model",)),
    Scene("resume-batch", batch, BATCH, ("one", "two"), volatile=("jobs.yaml.done",)),
)


def resumed(trial: Trial, draw: random.Random, mode: Mode) -> Iterator[str]:
    """What is wrong after a run that is stopped at a call, gone on with under other budgets, stopped once more, and
    gone on with to its end."""
    scene = trial.scene
    place = trial.copy()
    points = [_point(trial, draw, mode, is_first) for is_first in (True, False)]
    where = f"{scene.name} {mode.name} at {points}"
    command = scene.command
    for number, point in enumerate(points):
        done = trial.server.run(command, place, point, goes_on=number > 0)
        if done.code is None or done.code == 0 or (done.code > 0 and point.mode in KILLS):
            break
        command = (*scene.retry, "--workers", str(draw.choice([1, 3])))
    yield from (f"{where}: {wrong}" for wrong in _end(trial, place))


def _point(trial: Trial, draw: random.Random, mode: Mode, is_first: bool) -> Point:
    """A fault at any call. Before the power is cut a run may have been killed or asked to stop, which brings what it
    has finished to the disk."""
    if mode == Mode.CUT and is_first:
        mode = draw.choice([Mode.CUT, Mode.KILL_AFTER, Mode.SIGNAL])
    count = len(trial.calls)
    first = max(1, count - LAST) if mode == Mode.CUT and draw.random() < 0.5 else 1
    value = {Mode.FAIL: 5, Mode.FULL: 28, Mode.SIGNAL: 15, Mode.CUT: draw.randrange(1 << 30)}.get(mode, 0)
    return Point(mode, draw.randrange(first, count + 1), value)


def _end(trial: Trial, place: Path) -> Iterator[str]:
    again = trial.server.run(trial.scene.retry, place)
    now, hidden = tree(place, trial.scene.volatile)
    if again.code != 0:
        yield f"--resume ends with {again.code}: {again.stderr[-300:]}"
    elif dict(now) != dict(trial.after):
        yield f"--resume gives other files: {difference(now, trial.after)}: {again.stderr[-300:]}"
    elif [name for name in hidden if name not in again.stderr]:
        yield f"--resume leaves {hidden}: {again.stderr[-300:]}"
    shutil.rmtree(place)
