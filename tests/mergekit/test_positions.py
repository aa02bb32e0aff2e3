"""Layers that are special by their position, in another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import command, configuration, merged, write_model

from surgery_jax import PlanError

ATTENTION, MAMBA = "self_attn.q_proj.weight", "mamba.in_proj.weight"


def write_hybrid(name: str, special: list[int], count: int, **config: Any) -> None:
    """A model that has attention in some layers, and something else in the others."""
    tensors = {f"model.layers.{i}.{ATTENTION if i in special else MAMBA}": np.ones((2, 2), "f4") for i in range(count)}
    tensors["model.embed_tokens.weight"] = np.ones((3, 2), "f4")
    told = {"architectures": ["HybridForCausalLM"], "model_type": "hybrid", "num_hidden_layers": count, **config}
    write_model(Path(name), tensors, told)


def stacked(*ranges: tuple[int, int], model: str = "hybrid") -> str:
    slices = [{"sources": [{"model": model, "layer_range": list(part)}]} for part in ranges]
    return json.dumps({"slices": slices, "merge_method": "passthrough"})


def config_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("said", "special", "ranges", "wanted"),
    [
        ({"attn_layer_period": 4, "attn_layer_offset": 2}, [2, 6], [(0, 8), (4, 8)], (4, 2)),
        ({"attn_layer_period": 4, "attn_layer_offset": 2}, [2, 6], [(1, 8)], (4, 1)),
        ({"attn_layer_period": 4, "attn_layer_offset": 2}, [2, 6], [(1, 3), (5, 7), (1, 3)], (2, 1)),
        ({"first_k_dense_replace": 2}, [0, 1], [(0, 2), (1, 8)], (3,)),
        ({"first_k_dense_replace": 2}, [0, 1], [(0, 8), (5, 8)], (2,)),
        ({"full_attention_interval": 4}, [3, 7], [(2, 4), (6, 8)], (2,)),
        ({"max_window_layers": 3, "use_sliding_window": True}, [0, 1, 2], [(1, 8)], (2, True)),
        (
            {"max_window_layers": 3, "use_sliding_window": False, "layer_types": [*"aaabbbbb"]},
            [0, 1, 2],
            [(1, 8)],
            (3,),
        ),
    ],
)
def test_numbers_that_tell_special_layers_follow_them(
    said: dict[str, Any], special: list[int], ranges: list[tuple[int, int]], wanted: tuple[int, ...]
) -> None:
    write_hybrid("hybrid", special, 8, **said)
    told = config_of(merged(stacked(*ranges)))
    assert tuple(told[key] for key in said)[: len(wanted)] == wanted


def test_layers_that_no_numbers_tell_are_refused_unless_crimes_are_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    write_hybrid("hybrid", [2, 6], 8, attn_layer_period=4, attn_layer_offset=2)
    path = configuration(stacked((0, 7), (1, 8)))
    assert command(path, "out", "--no-sync") == 2
    said = capsys.readouterr().err
    assert "attn_layer_period and attn_layer_offset" in said and "layers 2, 6, 8, 12" in said
    assert not Path("out").exists()
    assert command(path, "out", "--no-sync", "--allow-crimes") == 0
    assert config_of(Path("out"))["attn_layer_period"] == 4


def test_layers_of_another_kind_than_the_configuration_can_tell_are_refused() -> None:
    write_hybrid("hybrid", [0], 4)
    with pytest.raises(PlanError, match="layer 0 of the output has other tensors"):
        merged(stacked((1, 4)))
    with pytest.raises(PlanError, match="layer 3 of the output has other tensors"):
        merged(stacked((0, 3), (0, 2)))
    assert config_of(merged(stacked((0, 3), (1, 4))))["num_hidden_layers"] == 6


def test_a_list_tells_layers_of_several_kinds_wherever_they_are() -> None:
    write_hybrid("hybrid", [1], 4, layer_types=["b", "a", "b", "b"], sparse_layers=[1])
    told = config_of(merged(stacked((1, 4), (0, 2))))
    assert told["layer_types"] == ["a", "b", "b", "b", "a"]
    assert told["sparse_layers"] == [0, 4]


def test_slices_of_other_models_bring_their_lists() -> None:
    write_hybrid("hybrid", [0], 4, layer_types=["a", "b", "b", "b"])
    write_hybrid("other", [2], 4, layer_types=["b", "b", "a", "b"])
    slices = [{"sources": [{"model": m, "layer_range": part}]} for m, part in (("hybrid", [0, 2]), ("other", [2, 4]))]
    out = merged(json.dumps({"slices": slices, "merge_method": "passthrough"}))
    assert config_of(out)["layer_types"] == ["a", "b", "a", "b"]


def test_a_configuration_that_does_not_count_its_layers_is_told() -> None:
    write_hybrid("hybrid", [], 4)
    told = config_of(Path("hybrid"))
    del told["num_hidden_layers"]
    Path("hybrid/config.json").write_text(json.dumps(told))
    with pytest.raises(PlanError, match=r"does not say how many layers model\.layers has"):
        merged(stacked((0, 4), (2, 4)))
