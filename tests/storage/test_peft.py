"""Adapters come back as they were written, and what is not to be trusted in them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import Options, convert
from surgery_jax.core.adapter_names import spelled
from surgery_jax.core.adapters import Factored, configuration, contents, pattern_value, scaling
from surgery_jax.core.errors import StorageError, SurgeryError
from surgery_jax.storage.formats import open_checkpoint

PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "of_a_later_release": [1]}


def adapter(path: Path, tensors: dict[str, np.ndarray] | None = None, config: Any = CONFIG) -> Path:
    if tensors is None:
        tensors = {
            f"{PREFIX}m.q.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
            f"{PREFIX}m.q.lora_B.weight": np.ones((4, 2), np.float16),
        }
    write_checkpoint(path / "adapter_model.safetensors", tensors)
    (path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def test_an_adapter_is_copied_with_all_of_its_configuration(tmp_path: Path) -> None:
    source = adapter(tmp_path / "one")
    for _ in range(2):  # also over itself
        convert(source, tmp_path / "two", Options(overwrite=True, sync=False, receipt=False), format="peft")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "two" / "adapter_config.json").read_text()) == CONFIG
    wanted, found = read_checkpoint(source), read_checkpoint(tmp_path / "two")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_same_bits(found[name], array, name)
    assert open_checkpoint(str(source)).format == "peft"


def test_what_is_no_adapter_is_not_written_as_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors", {"w": np.ones(3, np.float32)})
    with pytest.raises(SurgeryError, match="these tensors are no adapter"):
        convert(tmp_path / "model.safetensors", tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


HOSTILE: dict[str, tuple[Any, str]] = {
    "no json": ("{", "is not JSON"),
    "a key twice": (json.dumps(CONFIG).replace("{", '{"r": 1, ', 1), "is not JSON.*the key 'r' twice"),
    "a list": ("[]", "is not an object"),
    "deep": ("[" * 100_000, "is not JSON"),
    "another kind": (CONFIG | {"peft_type": "IA3"}, "not a LoRA adapter"),
    "dora": (CONFIG | {"use_dora": True}, "use_dora"),
    "between the factors": (CONFIG | {"kasa_config": {"beta": 1}}, "kasa_config"),
    "parts": (CONFIG | {"enable_lora": [True, False, True]}, "enable_lora"),
    "replicated layers": (CONFIG | {"layer_replication": [[0, 2]]}, "layer_replication"),
    "another base": (CONFIG | {"init_lora_weights": "pissa_niter_4"}, "changes the weights of the base model"),
    "rank": (CONFIG | {"r": -1}, "r is not a positive number"),
    "alpha": (CONFIG | {"lora_alpha": True}, "lora_alpha is not a positive number"),
    "patterns": (CONFIG | {"rank_pattern": [3]}, "rank_pattern is not an object"),
    "pattern": (CONFIG | {"rank_pattern": {"(": 3}}, "no regular expression"),
    "slow pattern": (CONFIG | {"alpha_pattern": {"(a+)+": 3}}, "too complicated"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_configurations_that_cannot_be_honoured_are_refused(tmp_path: Path, what: str) -> None:
    config, message = HOSTILE[what]
    path = adapter(tmp_path / "one", config=config)
    with pytest.raises(StorageError, match="(?s)" + message) as refused:
        open_checkpoint(str(path))
    assert str(path / "adapter_config.json") in str(refused.value)


def test_names_say_what_a_tensor_is() -> None:
    pairs, whole = contents(
        PREFIX + name
        for name in (
            "m.q.lora_A.weight", "m.q.lora_B.weight", "m.q.lora_B.bias", "e.lora_embedding_A", "e.lora_embedding_B",
            "x.base_layer.lora_A.weight", "x.base_layer.lora_B.weight", "x.lora_A.weight", "x.lora_B.weight",
            "n.weight",
        )
    )  # fmt: skip
    found = [(pair.module, pair.depth, pair.is_embedding, pair.bias is not None) for pair in pairs]
    assert found == [("m.q", 0, False, True), ("e", 0, True, False), ("x", 1, False, False), ("x", 0, False, False)]
    assert whole == {"n.weight": PREFIX + "n.weight"}
    for names in (["m.q.weight"], [PREFIX + "q.lora_A.weight"], [PREFIX + "q.lora_magnitude_vector"]):
        with pytest.raises(StorageError):
            contents(names)


def test_scaling_follows_rank_alpha_and_patterns() -> None:
    config = {"r": 4, "lora_alpha": 8, "rank_pattern": {r"b\.q": 2}, "alpha_pattern": {"v": 3}}
    assert scaling(config, "a.q", 4) == 2 and scaling(config, "a.b.q", 2) == 4 and scaling(config, "v", 4) == 0.75
    assert scaling(config | {"use_rslora": True}, "a.q", 4) == 4
    with pytest.raises(StorageError, match="not of the rank"):
        scaling(config, "a.q", 2)


def test_peft_finds_the_rank_and_only_the_modules_that_were_meant() -> None:
    peft = pytest.importorskip("peft")
    ranks = {"q": 2, "a.q": 3, "a.b.q": 2, "a.xq": 4, "b.v": 3}
    config = configuration([Factored(name, rank) for name, rank in ranks.items()], [], ["c.v", "b.v.q", "z"])
    made = peft.LoraConfig(**config)
    for name, rank in ranks.items():
        key = peft.utils.other.get_pattern_key(config["rank_pattern"], name)
        assert (
            config["rank_pattern"].get(key, config["r"])
            == rank
            == pattern_value(config["rank_pattern"], name, config["r"])
        )
    exists = peft.tuners.tuners_utils.check_target_module_exists
    assert [name for name in (*ranks, "c.v", "b.v.q", "z") if exists(made, name)] == list(ranks)
    with pytest.raises(StorageError, match="PEFT would take other modules"):
        configuration([], ["norm"], ["layers.0.norm"])


def test_copies_of_a_module_stored_whole_count_in_the_order_of_peft() -> None:
    names = [PREFIX + f"{module}.{middle}weight" for module, middle in (
        ("a", "original_module."), ("a", "modules_to_save."), ("a", ""), ("b", "original_module."),
        ("b", "modules_to_save."), ("c", "base_layer."), ("d", "original_module."),
    )]  # fmt: skip
    _, whole = contents(names)
    assert whole == {
        "a.weight": PREFIX + "a.weight",
        "b.weight": PREFIX + "b.modules_to_save.weight",
        "c.weight": PREFIX + "c.base_layer.weight",
    }


WORDS = st.text("abcdefghij_", min_size=1, max_size=6).filter(lambda word: not word.startswith("lora_"))
MODULES = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=4, unique=True)
ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_embedding_A", ".modules_to_save.weight")


@given(MODULES, WORDS, st.lists(st.sampled_from(["_orig_mod", "_fsdp_wrapped_module"]), max_size=2))
def test_names_are_spelled_as_peft_spells_them_whatever_was_put_into_them(
    modules: list[str], adapter_name: str, wrappers: list[str]
) -> None:
    wanted = [f"{PREFIX}{module}{ending}" for module in modules for ending in ENDINGS]
    assert list(spelled(wanted).values()) == wanted
    inside = "".join(f"{word}." for word in wrappers)
    given_names = [
        "module." + name.replace(PREFIX, PREFIX + inside)
        .replace(".modules_to_save.", f".modules_to_save.{adapter_name}.")
        .replace(".lora_A", f".lora_A.{adapter_name}")
        .replace(".lora_B", f".lora_B.{adapter_name}")
        .replace(".lora_embedding_A", f".lora_embedding_A.{adapter_name}")
        for name in wanted
    ]  # fmt: skip
    assert list(spelled(given_names).values()) == wanted
    assert list(spelled(name.removeprefix(PREFIX) for name in wanted).values()) == wanted


def test_what_torch_saved_is_an_adapter_too_and_is_replaced_by_the_new_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = adapter(tmp_path / "one")
    tensors = read_checkpoint(source)
    (source / "adapter_model.safetensors").unlink()
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, source / "adapter_model.bin")
    convert(source, source, Options(overwrite=True, sync=False, receipt=False), format="peft")
    assert sorted(path.name for path in source.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for name, array in read_checkpoint(source).items():
        assert_same_bits(tensors[name], array, name)


def test_a_checkpoint_knows_the_texts_that_lie_beside_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors", {"a.w": np.ones(3, np.float32)})
    assert open_checkpoint(str(tmp_path)).documents == {}
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "model.safetensors", f"{tmp_path}#a"):
        assert open_checkpoint(str(path)).documents == {"config.json": str(tmp_path / "config.json")}
