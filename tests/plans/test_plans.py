"""Every plan of the repository does on a synthetic checkpoint what a slow interpreter says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from oracle import Oracle, is_float
from running import assert_same_bits, assert_same_values, dtype, read_checkpoint, write_checkpoint

from surgery_jax import Options, check, load_plan, run

PLANS = Path(__file__).parent.parent.parent / "plans"
Shapes = dict[str, tuple[int, ...]]


def llama(layers: int = 2) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (24, 8), "model.norm.weight": (8,), "lm_head.weight": (24, 8)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (8, 8) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (12, 8) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (8, 12), f"{name}.self_attn.rotary_emb.inv_freq": (2,)}
    return shapes


def gpt2() -> Shapes:
    shapes: Shapes = {"wte.weight": (10, 768), "wpe.weight": (6, 768), "ln_f.weight": (768,), "ln_f.bias": (768,)}
    matrices = {"attn.c_attn": (768, 2304), "attn.c_proj": (768, 768), "mlp.c_fc": (768, 96), "mlp.c_proj": (96, 768)}
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{norm}.weight": (768,), f"h.0.{norm}.bias": (768,)}
    for name, shape in matrices.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape[1:]}
    return shapes


# plan -> its checkpoints: path, shapes, dtype
SYNTHETIC: dict[str, list[tuple[str, Callable[[], Shapes], str]]] = {
    "rename_gpt2.yaml": [("gpt2", gpt2, "float16")],
    "task_arithmetic.yaml": [("base", llama, "bfloat16"), ("a", llama, "bfloat16"), ("b", llama, "bfloat16")],
}
LIBRARY = {  # tests/plans/test_library.py and tests/plans/test_maxtext.py run them on models
    "cast.yaml", "depth_upscale.yaml", "extend_vocab.yaml", "fuse_experts.yaml", "fuse_qkv.yaml",
    "llama_to_maxtext.yaml", "maxtext_to_llama.yaml", "prune_layers.yaml", "split_experts.yaml", "split_qkv.yaml",
    "tie.yaml", "untie.yaml",
}  # fmt: skip
ADAPTERS = {"lora_extract.yaml", "lora_merge.yaml"}  # tests/plans/test_lora.py runs them on models
UPCYCLING = {  # tests/plans/test_upcycling.py runs them on models
    "branch_train_mix.yaml", "low_rank_expert.yaml", "low_rank_factors.yaml", "two_experts.yaml", "upcycle_drop.yaml",
    "upcycle_flex_olmo.yaml", "upcycle_mixtral.yaml", "upcycle_qwen2_moe.yaml", "upcycle_qwen3_moe.yaml",
}  # fmt: skip
CHECKED_ONLY = {"demo_minilm.yaml"}  # its assertions hold for the values of one real model


def interpolated(text: str) -> dict:
    """A plan whose variables are replaced, as far as the plans of the repository need it."""
    plan = yaml.safe_load(text)

    def look_up(found: re.Match[str]) -> str:
        value = plan
        for key in found[1].split("."):
            value = value[key]
        return str(value)

    text = re.sub(r"'\$\{([\w.]+)\}'", look_up, text)  # alone: with its type
    return yaml.safe_load(re.sub(r"\$\{([\w.]+)\}", look_up, text))


def test_every_plan_of_the_repository_is_tried() -> None:
    found = {path.name for path in PLANS.glob("*.yaml")}
    assert found == SYNTHETIC.keys() | LIBRARY | ADAPTERS | UPCYCLING | CHECKED_ONLY, (
        "tell tests/plans/test_plans.py what the plan reads"
    )


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_plan_of_the_repository_gives_what_step_by_step_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLANS / name, tmp_path)
    rng = np.random.default_rng(6)
    models = {}
    for path, shapes, kind in SYNTHETIC[name]:
        tensors = {key: rng.standard_normal(shape).astype(dtype(kind)) for key, shape in shapes().items()}
        write_checkpoint(tmp_path / path / "model.safetensors", tensors)
        models[path] = tensors
    plan = interpolated(Path(name).read_text())
    aliases = [entry.partition("::")[::2] for entry in plan["inputs"]]
    state = Oracle.of(**{alias: models[path] for alias, path in aliases})
    expected = state.run(yaml.safe_dump(plan))
    run(load_plan(name), Options(sync=False))
    output = plan["output"]
    found = read_checkpoint(tmp_path / (output["path"] if isinstance(output, dict) else output))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if tensor.quality == "close":
            np.testing.assert_allclose(found[key], tensor.array, rtol=1e-4, atol=1e-6, err_msg=key)
        elif tensor.quality == "values" and is_float(tensor.array.dtype):
            assert_same_values(found[key], tensor.array, key)
        else:
            assert_same_bits(found[key], tensor.array, key)


def minilm() -> Iterator[tuple[str, str, tuple[int, ...]]]:
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


def test_the_demonstration_fits_the_shapes_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLANS / "demo_minilm.yaml", tmp_path)
    header, at = {}, 0
    for name, code, shape in minilm():
        size = int(np.prod(shape)) * {"F32": 4, "I64": 8}[code]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = tmp_path / "demo" / "all-MiniLM-L6-v2" / "model.safetensors"
    path.parent.mkdir(parents=True)
    with path.open("wb") as stream:  # the elements are a hole in the file
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    compiled = check(load_plan("demo_minilm.yaml"))
    assert len(compiled.symbolic.saves) == 1
