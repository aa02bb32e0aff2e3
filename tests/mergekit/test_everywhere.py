"""Every method by the command line: the same files on any number of devices and processes, under any budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pods import Pod
from running import write_checkpoint
from tiny_models import Tensors

from surgery_jax.merging.method import methods

PARAMETERS: dict[str, dict[str, Any]] = {
    "nuslerp": {"nuslerp_flatten": False},
    "karcher": {"max_iter": 4},
    "breadcrumbs": {"gamma": 0.1},
    "della": {"epsilon": 0.2},
    "model_stock": {"filter_wise": True},
    "sce": {"select_topk": 0.4},
    "nearswap": {"t": 0.05},
    "slerp": {"t": 0.3},
}


def write_configurations(folder: Path) -> list[str]:
    """Files of tensors, and a configuration for each method; their names."""
    rng = np.random.default_rng(0)
    shapes = {"wide": (24, 40), "norm": (17,)}
    base: Tensors = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    for model in ("base", "one", "two"):
        near = {n: v + np.float32(0.1) * rng.standard_normal(v.shape).astype("f4") for n, v in base.items()}
        write_checkpoint(folder / f"{model}.safetensors", base if model == "base" else near)
    for name, method in methods().items():
        count = 2 if method.most is None else method.most
        models = [("base", "one", "two")[number + (method.base != "none")] for number in range(count)]
        own = {"weight": 0.4, "density": 0.6}
        told = {"merge_method": name, "parameters": PARAMETERS.get(name, {}), "dtype": "float32"}
        told["models"] = [{"model": f"{model}.safetensors", "parameters": own} for model in models]
        if method.base != "none":
            told["base_model"] = "base.safetensors"
        (folder / f"{name}.yml").write_text(json.dumps(told))
    return [f"{name}.yml" for name in methods()]


def test_every_method_gives_the_same_files_on_devices_and_processes_and_under_a_budget(tmp_path: Path) -> None:
    configs = write_configurations(tmp_path)
    settings = {"alone": (1, 1, "none"), "spread": (1, 8, "64MiB"), "shared": (2, 1, "64MiB")}
    for out, (processes, devices, memory) in settings.items():
        words = (*configs, out, "--memory", memory)
        with Pod(processes, *words, cwd=tmp_path, devices=devices, verb="merge") as pod:
            ends = pod.start().ends(within_s=240)
        assert {end.code for end in ends} == {0}, [end.err for end in ends]
    for name in methods():
        made = [_files(tmp_path / out / name) for out in settings]
        assert made[0] and made.count(made[0]) == len(settings), name


def _files(folder: Path) -> dict[str, bytes]:
    """The files of tensors in a directory."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
