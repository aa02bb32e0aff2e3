"""Configurations merged on tiny models, against NumPy: layouts, sources, documents, files, adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from running import read_checkpoint, write_checkpoint
from tiny_models import (
    LETTERS,
    LINEAR,
    LLAMA,
    Tensors,
    command,
    configuration,
    llama,
    merged,
    planned,
    tokenizer,
    write_model,
)

from surgery_jax import Options, PlanError, StorageError, SurgeryError, load_plan, merge_plan, run


def close(found: Path, expected: Tensors) -> None:
    got = read_checkpoint(found)
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def layer_of(name: str) -> int:
    return int(name.split(".")[2]) if ".layers." in name else 0


def test_a_gradient_runs_over_the_layers_and_begins_outside_of_them(models: dict[str, Tensors]) -> None:
    one, two = models["one"], models["two"]
    expected = {name: 0.25 * one[name] + 0.75 * layer_of(name) / 3 * two[name] for name in one}
    close(merged(LINEAR), expected)


def test_tensors_that_are_merged_alike_are_one_step(models: dict[str, Tensors]) -> None:
    steps = planned(LINEAR.replace("[0, 0.75]", "0.75"))
    assert [step["merge"] for step in steps if "merge" in step] == [
        {
            "method": "linear",
            "models": {"one": {"from": "one::(.+)", "weight": 0.25}, "two": {"weight": 0.75}},
            "to": "out::\\1",
            "normalize": False,
        }
    ]


def test_layers_of_several_models_are_stacked_and_lists_follow(models: dict[str, Tensors]) -> None:
    kinds = {"a": ["full", "sliding", "full", "sliding"], "b": ["w", "x", "y", "z"]}
    config = LLAMA | {"mlp_only_layers": [1, 3]}
    for name, seed in (("a", 5), ("b", 6)):
        write_model(Path(name), llama(seed=seed), config | {"layer_types": kinds[name]})
    out = merged("""
        slices:
          - sources: [{ model: a, layer_range: [0, 3] }]
          - sources: [{ model: b, layer_range: [1, 4] }]
        merge_method: passthrough
    """)
    a, b, got = llama(seed=5), llama(seed=6), read_checkpoint(out)
    for number, (model, source) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        for name in (name for name in model if f".layers.{source}." in name):
            np.testing.assert_array_equal(got[name.replace(f".{source}.", f".{number}.", 1)], model[name])
    np.testing.assert_array_equal(got["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    np.testing.assert_array_equal(got["lm_head.weight"], b["lm_head.weight"])
    told = config_of(out)
    assert (told["num_hidden_layers"], told["layer_types"]) == (6, ["full", "sliding", "full", "x", "y", "z"])
    assert told["mlp_only_layers"] == [1, 3, 5]


def test_whole_numbers_may_be_text(models: dict[str, Tensors]) -> None:
    stack = "slices: [{ sources: [{ model: one, layer_range: RANGE }] }]\nmerge_method: passthrough"
    mixture = "base_model: base\ngate_mode: random\nexperts_per_token: COUNT\n"
    mixture += "experts: [{ source_model: one }, { source_model: two }]"
    for text, word, number, spellings in (
        (stack, "RANGE", "[1, 3]", ("['1', '3']", "[1.0, 3.0]")),
        (mixture, "COUNT", "1", ("'1'", "1.0")),
    ):
        expected = merged_files(text.replace(word, number))
        for spelling in spellings:
            assert merged_files(text.replace(word, spelling)) == expected


def merged_files(text: str) -> dict[str, bytes]:
    """What a merge writes that depends on the meaning of the configuration alone."""
    shutil.rmtree("out", ignore_errors=True)
    out = merged(text, model_card=False)
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("surgery.")}


def test_one_model_may_give_two_layers_of_a_slice(models: dict[str, Tensors]) -> None:
    out = merged("""
        slices:
          - sources:
              - { model: one, layer_range: [0, 2], parameters: { weight: 0.5 } }
              - { model: one, layer_range: [2, 4], parameters: { weight: 0.5 } }
        merge_method: linear
    """)
    one = models["one"]
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_allclose(
        read_checkpoint(out)[name.format(1)], (one[name.format(1)] + one[name.format(3)]) / 2, rtol=1e-6
    )
    assert config_of(out)["num_hidden_layers"] == 2


def test_merges_of_one_file_build_on_each_other_in_any_order(models: dict[str, Tensors]) -> None:
    out = merged("""
        models: [{ model: mean, parameters: { weight: 1 } }, { model: two, parameters: { weight: -1 } }]
        merge_method: task_arithmetic
        base_model: base
        ---
        name: mean
        models: [{ model: one }, { model: two }]
        merge_method: linear
        parameters: { weight: 1 }
    """)
    base, one, two = models["base"], models["one"], models["two"]
    close(out, {name: base[name] + (one[name] + two[name]) / 2 - two[name] for name in base})


def style() -> tuple[str, np.ndarray, np.ndarray]:
    """An adapter in the folder `style`, scaled by 3: the module that it changes, and its factors."""
    name, rng = "model.layers.1.self_attn.q_proj", np.random.default_rng(3)
    a, b = (rng.standard_normal(shape).astype("f4") for shape in ((2, 16), (16, 2)))
    Path("style").mkdir()
    key = f"base_model.model.{name}"
    write_checkpoint(Path("style/adapter_model.safetensors"), {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b})
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    Path("style/adapter_config.json").write_text(json.dumps(told))
    return name, a, b


def test_an_adapter_is_applied_while_the_plan_runs(models: dict[str, Tensors]) -> None:
    name, a, b = style()
    out = merged("""
        models: [{ model: base+style, parameters: { weight: 0.5 } }]
        merge_method: task_arithmetic
        base_model: base
    """)
    base = models["base"]
    close(out, base | {f"{name}.weight": base[f"{name}.weight"] + 0.5 * 3 * b @ a})
    assert sorted(Path().iterdir()) == sorted(map(Path, ["base", "config.yml", "one", "out", "style", "two"]))


def test_an_adapter_is_applied_to_a_merge_of_the_same_file(models: dict[str, Tensors]) -> None:
    name, a, b = style()
    out = merged("""
        name: mean
        models: [{ model: one }, { model: two }]
        merge_method: linear
        parameters: { weight: 1 }
        ---
        models: [{ model: mean+style }]
        merge_method: passthrough
    """)
    mean = {name: (models["one"][name] + models["two"][name]) / 2 for name in models["one"]}
    close(out, mean | {f"{name}.weight": mean[f"{name}.weight"] + 3 * b @ a})
    assert (out / "generation_config.json").read_bytes() == Path("one/generation_config.json").read_bytes()


def test_a_merge_that_no_other_needs_is_told(models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]) -> None:
    text = "name: spare\nmodels: [{ model: one }]\nmerge_method: passthrough\n---\n"
    text += "models: [{ model: two }]\nmerge_method: passthrough\n"
    assert command(configuration(text), "out", "--quiet", "--no-sync") == 0
    assert "config.yml:1:1: no other merge needs 'spare', which is not made" in capsys.readouterr().err


def test_advice_for_steps_can_be_followed_in_the_plan_that_it_names(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]
) -> None:
    base, rng = models["base"], np.random.default_rng(3)
    both = base | {"lm_head.weight": base["model.embed_tokens.weight"]}
    write_model(Path("both"), both, LLAMA | {"tie_word_embeddings": True})
    rows, columns = (rng.standard_normal(shape).astype("f4") for shape in ((40, 2), (2, 16)))
    place = "base_model.model.model.embed_tokens.lora_embedding"
    Path("style").mkdir()
    held = {f"{place}_A": rows.T.copy(), f"{place}_B": columns.T.copy()}
    write_checkpoint(Path("style/adapter_model.safetensors"), held)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "ensure_weight_tying": True}
    Path("style/adapter_config.json").write_text(json.dumps(told))
    text = "models: [{ model: both+style }]\nmerge_method: passthrough"
    assert command(configuration(text), "out", "--no-sync") == 2
    advice = r"delete: { target: 'both_style::lm_head\.weight' } (in the plan that --print-plan prints"
    assert advice in capsys.readouterr().err
    assert command("config.yml", "out", "--print-plan") == 0
    plan = capsys.readouterr().out.replace("- lora_merge:", f"- {advice.partition(' (')[0]}\n- lora_merge:")
    Path("plan.yaml").write_text(plan)
    run(load_plan("plan.yaml"), Options(sync=False))
    kept = {name: value for name, value in base.items() if name != "lm_head.weight"}
    close(Path("out"), kept | {"model.embed_tokens.weight": base["model.embed_tokens.weight"] + rows @ columns})


@pytest.mark.parametrize("text", ["", "tokenizer: { source: union }", "flag"])
def test_layers_of_models_with_different_vocabularies_need_one(models: dict[str, Tensors], text: str) -> None:
    larger = LLAMA | {"vocab_size": 48}
    write_model(Path("more"), llama(larger, seed=4), larger, {"tokenizer.json": tokenizer(LETTERS[:46])})
    stack = """
        slices:
          - sources: [{ model: one, layer_range: [0, 2] }]
          - sources: [{ model: more, layer_range: [2, 4] }]
        merge_method: passthrough
    """
    if text:
        out = merged(f"{stack}    {text}\n" if text != "flag" else stack, truncate=text == "flag")
        shapes = {read_checkpoint(out)[name].shape for name in ("model.embed_tokens.weight", "lm_head.weight")}
        assert shapes == {(config_of(out)["vocab_size"], 16)}
        return
    with pytest.raises(PlanError, match="embedding and output layer have different vocabularies") as error:
        merged(stack)
    assert "found: 40 rows of model.embed_tokens.weight, 48 rows of lm_head.weight" in str(error.value)
    assert "tokenizer: { source: union }" in str(error.value) and "--unsafe-truncate-embeddings" in str(error.value)


@pytest.mark.parametrize("name", ["Some-7B-v0.1", "some.slerp", "some.slerp/", ".some"])
def test_the_output_is_a_directory_whatever_its_name(models: dict[str, Tensors], name: str) -> None:
    assert command(configuration(LINEAR), name, "--no-sync", "--quiet") == 0
    assert {"config.json", "tokenizer.json", "mergekit_config.yml"} <= {path.name for path in Path(name).iterdir()}


def test_an_adapter_may_bring_the_weights_that_lie_below_it(models: dict[str, Tensors]) -> None:
    name, key = "model.embed_tokens.weight", "base_model.model.model.embed_tokens"
    rng = np.random.default_rng(3)
    below, a, b = (rng.standard_normal(shape).astype("f4") for shape in ((40, 16), (2, 40), (16, 2)))
    Path("style").mkdir()
    held = {f"{key}.base_layer.weight": below, f"{key}.lora_embedding_A": a, f"{key}.lora_embedding_B": b}
    write_checkpoint(Path("style/adapter_model.safetensors"), held)
    Path("style/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    out = merged("""
        models: [{ model: base+style, parameters: { weight: 1 } }, { model: two, parameters: { weight: 1 } }]
        merge_method: linear
    """)
    base, two = models["base"] | {name: below + (b @ a).T}, models["two"]
    close(out, {name: (base[name] + two[name]) / 2 for name in base})


@pytest.mark.parametrize("changed", ["factors of the embedding", "factors of the head", "a head", "both alike"])
def test_an_adapter_for_one_of_two_that_share_a_weight_changes_that_one(
    models: dict[str, Tensors], changed: str
) -> None:
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    told: dict[str, object] = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    base, two = ({n: v for n, v in models[name].items() if n != head} for name in ("base", "two"))
    for name, tensors in (("tied", base), ("tied_two", two)):
        write_model(Path(name), tensors, LLAMA | {"tie_word_embeddings": True})
    rng = np.random.default_rng(3)
    rows, columns, whole = (rng.standard_normal(shape).astype("f4") for shape in ((40, 2), (2, 16), (40, 16)))
    expected = base | {head: base[embedding]}
    prefix = "base_model.model"
    if changed == "factors of the head":
        held = {f"{prefix}.lm_head.lora_A.weight": columns, f"{prefix}.lm_head.lora_B.weight": rows}
        expected[head] = base[embedding] + rows @ columns
    elif changed == "a head":
        held = {f"{prefix}.lm_head.weight": whole}
        expected[head] = whole
    else:
        place = f"{prefix}.model.embed_tokens.lora_embedding"
        held = {f"{place}_A": rows.T.copy(), f"{place}_B": columns.T.copy()}
        expected[embedding] = base[embedding] + rows @ columns
    if changed == "both alike":
        told["ensure_weight_tying"] = True
        del expected[head]
    Path("style").mkdir()
    write_checkpoint(Path("style/adapter_model.safetensors"), held)
    Path("style/adapter_config.json").write_text(json.dumps(told))
    out = merged("models: [{ model: tied+style }]\nmerge_method: passthrough")
    close(out, expected)
    assert config_of(out)["tie_word_embeddings"] is (changed == "both alike")
    mixed = merged(
        """
        models: [{ model: tied+style, parameters: { weight: 1 } }, { model: tied_two, parameters: { weight: 1 } }]
        merge_method: linear
        """,
        "mixed",
    )
    full = two | {head: two[embedding]}
    close(mixed, {name: (expected[name] + full[name]) / 2 for name in expected})
    assert config_of(mixed)["tie_word_embeddings"] is (changed == "both alike")


def test_an_adapter_alone_is_no_model(models: dict[str, Tensors]) -> None:
    Path("style").mkdir()
    write_checkpoint(
        Path("style/adapter_model.safetensors"), {"base_model.model.a.lora_A.weight": np.ones((2, 2), "f4")}
    )
    Path("style/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    with pytest.raises(PlanError, match="style is an adapter and no model") as error:
        merged("models: [{ model: style }]\nmerge_method: passthrough")
    assert str(error.value.where) == "config.yml:1:19"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--out-path out", "surgery-jax merge CONFIG out"),
        ("--out-shard-size 5GB", "'5GB' is no size; expected bytes, such as 5B"),
        ("--lora-merge-dtype float31", "'float31' is no floating dtype; expected float32"),
        ("--random-seed x", "'x' is no number"),
    ],
)
def test_values_of_flags_that_cannot_be_are_told(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("config.yml", "out", *flags.split()) == 2
    assert words in capsys.readouterr().err


def test_embeddings_stand_for_an_output_layer_that_only_the_others_have(models: dict[str, Tensors]) -> None:
    tied = {name: value for name, value in models["one"].items() if name != "lm_head.weight"}
    write_model(Path("tied"), tied, LLAMA | {"tie_word_embeddings": True})
    out = merged("""
        models: [{ model: tied, parameters: { weight: 1 } }, { model: two, parameters: { weight: 3 } }]
        merge_method: linear
    """)
    full = tied | {"lm_head.weight": tied["model.embed_tokens.weight"]}
    close(out, {name: (full[name] + 3 * models["two"][name]) / 4 for name in full})
    assert config_of(out)["tie_word_embeddings"] is False


def test_buffers_that_one_model_lacks_are_left_out(models: dict[str, Tensors]) -> None:
    extra = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(4, "f4") for n in range(4)}
    write_model(Path("old"), models["one"] | extra)
    out = merged("""
        models: [{ model: old }, { model: two }]
        merge_method: linear
        parameters: { weight: 1 }
    """)
    close(out, {name: (models["one"][name] + models["two"][name]) / 2 for name in models["one"]})


def test_files_of_tensors_are_merged_by_what_they_have(models: dict[str, Tensors]) -> None:
    Path("files").mkdir()
    a, b, extra = (np.full((2, 3), value, "f4") for value in (1, 3, 9))
    write_checkpoint(Path("files/a.safetensors"), {"w": a, "only": extra})
    write_checkpoint(Path("files/b.safetensors"), {"w": b})
    text = """
        models: [{ model: files/a.safetensors }, { model: files/b.safetensors }]
        merge_method: linear
        parameters: { weight: 1 }
    """
    close(merged(text, "common", tensors="intersection"), {"w": (a + b) / 2})
    close(merged(text, "all", tensors="union"), {"w": (a + b) / 2, "only": extra})
    with pytest.raises(PlanError, match=r"files/b\.safetensors has no tensor only"):
        merged(text, "none")


def test_documents_come_from_the_base_and_the_card_has_the_configuration(models: dict[str, Tensors]) -> None:
    out = merged(LINEAR.replace("false }", "false, weight: 1 }") + "    base_model: base\n    dtype: bfloat16\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (Path("base") / name).read_bytes()
    assert (out / "mergekit_config.yml").read_text() == Path("config.yml").read_text()
    assert Path("config.yml").read_text() in (out / "README.md").read_text()
    assert config_of(out)["torch_dtype"] == "bfloat16"
    assert {value.dtype.name for value in read_checkpoint(out).values()} == {"bfloat16"}


def test_a_chat_template_goes_where_the_tokenizer_has_its_own(models: dict[str, Tensors]) -> None:
    out = merged(LINEAR + "    chat_template: chatml\n")
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in told["chat_template"]
    assert not (out / "chat_template.jinja").exists()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_chat_template_has_no_place_in_what_is_no_configuration(models: dict[str, Tensors], text: str) -> None:
    Path("one/tokenizer_config.json").write_text(text)
    with pytest.raises(StorageError, match=r"tokenizer_config\.json of one cannot be read") as error:
        merged(LINEAR + "    chat_template: chatml\n")
    assert str(error.value.where) == "config.yml:6:16"


def test_the_command_takes_the_flags_of_mergekit(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]
) -> None:
    path = configuration(LINEAR)
    flags = "--cuda --lora-merge-cache x --no-copy-tokenizer --lazy-unpickle -v --out-shard-size 4K --quiet --no-sync"
    assert command(path, "out", *flags.split()) == 0
    assert not Path("out/tokenizer.json").exists()
    assert len(list(Path("out").glob("*.safetensors"))) > 2
    assert capsys.readouterr().out == ""


def test_every_flag_of_mergekit_is_taken(models: dict[str, Tensors]) -> None:
    pairs = (
        "quiet lazy cuda multi-gpu read-to-gpu low-cpu-memory lazy-unpickle clone-tensors async-write copy-tokenizer"
    )
    pairs += " write-model-card safe-serialization allow-crimes unsafe-truncate-embeddings trust-remote-code"
    flags = [word for pair in pairs.split() for word in (f"--no-{pair}", f"--{pair}")]
    flags += "--gpu-rich -vv -j 2 --write-threads 1 -I between --lora-merge-cache x --lora-merge-dtype float16".split()
    flags += (
        "--transformers-cache x --device cpu --random-seed 1 --out-shard-size 5B --load-in-4bit --load-in-8bit".split()
    )
    assert command(configuration(LINEAR), "out", *flags, "--no-sync") == 0
    assert not Path("between").exists()
    both = command("config.yml", "again", "-i", "-u", "--no-sync")
    assert both == 2 and not Path("again").exists()


def test_files_of_torch_are_written_where_safetensors_are_not_wanted(models: dict[str, Tensors]) -> None:
    import torch

    wanted = read_checkpoint(merged(LINEAR))
    assert command("config.yml", "old", "--no-safe-serialization", "--no-sync", "--quiet") == 0
    files = list(Path("old").glob("*.bin"))
    assert [file.name for file in files] == ["pytorch_model-00001-of-00001.bin"] and not list(
        Path("old").glob("*.safetensors")
    )
    assert Path("old/config.json").exists()
    for name, tensor in torch.load(files[0], weights_only=True).items():
        np.testing.assert_array_equal(tensor.numpy(), wanted[name])


def test_an_adapter_is_applied_in_the_dtype_that_is_asked_for(models: dict[str, Tensors]) -> None:
    import ml_dtypes

    name = "model.layers.1.self_attn.q_proj"
    half = {key: value.astype(ml_dtypes.bfloat16) for key, value in models["base"].items()}
    write_model(Path("half"), half, LLAMA)
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(shape).astype("f4") for shape in ((2, 16), (16, 2)))
    Path("style").mkdir()
    key = f"base_model.model.{name}"
    write_checkpoint(Path("style/adapter_model.safetensors"), {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b})
    Path("style/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    text = "models: [{ model: half+style }]\nmerge_method: passthrough\ndtype: float32\n"
    exact = half[f"{name}.weight"].astype("f4") + b @ a
    wide = read_checkpoint(merged(text, lora_dtype="float32"))[f"{name}.weight"]
    np.testing.assert_allclose(wide, exact, rtol=1e-6, atol=1e-7)
    narrow = read_checkpoint(merged(text, "narrow"))[f"{name}.weight"]
    np.testing.assert_array_equal(narrow, exact.astype(ml_dtypes.bfloat16).astype("f4"))


def test_keys_that_mean_nothing_are_told_and_slips_are_errors(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(configuration(LINEAR + "    license: mit\n"), "out", "--quiet", "--no-sync") == 0
    assert "config.yml:6:1: the configuration: 'license' means nothing here" in capsys.readouterr().err
    assert command(configuration(LINEAR.replace("false", "false, mask: 8, t: 1")), "more", "--quiet", "--no-sync") == 0
    said = capsys.readouterr().err
    assert "config.yml:5:33: no method has a parameter 'mask'" in said and said.count("\n") == 1
    with pytest.raises(PlanError, match="did you mean base_model") as error:
        merged(LINEAR + "    base_modle: base\n", "again")
    assert str(error.value.where) == "config.yml:6:1"


def test_of_a_key_that_comes_twice_the_last_one_counts_and_is_told(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str]
) -> None:
    text = LINEAR.replace("{ weight: 0.25 }", "{ weight: 0.5, weight: 0.25 }")
    assert command(configuration(text), "out", "--quiet", "--no-sync") == 0
    assert "config.yml:2:46: 'weight' is also at config.yml:2:33: this one counts" in capsys.readouterr().err
    one, two = models["one"], models["two"]
    close(Path("out"), {name: 0.25 * one[name] + 0.75 * layer_of(name) / 3 * two[name] for name in one})


VISUAL = """
    merge_method: linear
    modules:
      text_decoder:
        slices:
          - sources: [{ model: a, layer_range: [0, 2] }, { model: b, layer_range: [1, 3] }]
        parameters: { weight: 1 }
      vision_tower:
        models: [{ model: a, parameters: { weight: [1, 3] } }, { model: b, parameters: { weight: 1 } }]
      multi_modal_projector:
        models: [{ model: a, parameters: { weight: 3 } }, { model: b, parameters: { weight: 1 } }]
"""


def test_parts_of_a_model_that_sees_are_found_by_their_names(models: dict[str, Tensors]) -> None:
    names = [f"model.layers.{number}.w" for number in range(3)] + [f"visual.blocks.{number}.w" for number in range(2)]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "visual.patch_embed.weight"]
    names += ["visual.merger.mlp.0.weight"]
    config = {"num_hidden_layers": 3, "vision_config": {"depth": 2}}
    made = {}
    for seed, model in enumerate(("a", "b")):
        rng = np.random.default_rng(seed)
        drawn = {name: rng.standard_normal(3 if "norm" in name else (2, 3)).astype("f4") for name in names}
        made[model] = write_model(Path(model), drawn, config)
    a, b = made["a"], made["b"]
    expected = {name: (a[name] + b[name]) / 2 for name in names if name.startswith(("model.", "lm_head"))}
    del expected["model.layers.2.w"]
    expected |= {f"model.layers.{n}.w": (a[f"model.layers.{n}.w"] + b[f"model.layers.{n + 1}.w"]) / 2 for n in (0, 1)}
    weights = {"visual.blocks.0.w": 1, "visual.blocks.1.w": 3, "visual.patch_embed.weight": 1}
    weights["visual.merger.mlp.0.weight"] = 3
    expected |= {name: (w * a[name] + b[name]) / (w + 1) for name, w in weights.items()}
    out = merged(VISUAL)
    close(out, expected)
    assert config_of(out)["num_hidden_layers"] == 2


def test_integers_that_differ_are_told(models: dict[str, Tensors]) -> None:
    Path("files").mkdir()
    for name, count in (("a", 1), ("b", 2)):
        write_checkpoint(Path(f"files/{name}.safetensors"), {"count": np.array([count]), "w": np.ones(2, "f4")})
    with pytest.raises(SurgeryError, match="count of b"):
        merged("""
            models: [{ model: files/a.safetensors }, { model: files/b.safetensors }]
            merge_method: linear
            parameters: { weight: 1 }
        """)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("old", "new", "where", "words"),
    [
        ("linear", "linaer", "4:15", "unknown merge method 'linaer'"),
        ("weight: 0.25", "density: 0.25", "2:5", "linear needs weight of one"),
        ("weight: 0.25", "weight: { filter: mlp, value: 1 }", "2:5", "linear needs weight of one"),
        ("model: two", "model: nowhere", "3:14", "the model nowhere does not exist"),
        ("model: two", "model: one", "3:5", "the model one is listed twice"),
        ("weight: 0.25", "weight: much", "2:41", "weight"),
        ("weight: 0.25", "weight: .nan", "2:41", "expected: a finite number"),
        ("weight: [0, 0.75]", "weight: [0, .inf]", "3:41", "expected: a finite number"),
        ("merge_method: linear", "merge_method: slerp", "4:15", "slerp needs a base model"),
        ("merge_method: linear", "merge_method: linear\n    dtype: float31", "5:8", "dtype is no floating dtype"),
        ("models:", "slices:", "2:5", "a slice has no sources"),
        ("normalize: false", "nromalize: false", "5:15", "did you mean normalize?"),
        ("weight: [0, 0.75]", "wieght: 0.75", "3:33", "did you mean weight?"),
        ("models:", "mdoels:", "1:1", "unknown key 'mdoels'"),
        ("normalize: false", "normalize: perhaps", "5:26", "normalize"),
        ("normalize: false", "normalize: 2.0", "5:26", "normalize"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_nothing_is_written(
    models: dict[str, Tensors], capsys: pytest.CaptureFixture[str], old: str, new: str, where: str, words: str
) -> None:
    text = LINEAR.replace(old, new)
    code = command(configuration(text), "out", "--no-sync")
    told = capsys.readouterr().err
    assert (code, told.count("error:")) == (3 if "nowhere" in new else 2, 1)
    assert words in told
    assert f"config.yml:{where}:" in told
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slices: [{ sources: [{ model: one, layer_range: [2, 6] }] }]", "one has no layer 5"),
        ("slices: [{ sources: [{ model: one, layer_range: [2] }] }]", "layer_range is two numbers"),
        ("slices: [{ sources: [{ model: one, layer_range: [2, 2] }] }]", "layer_range is two numbers"),
        ("models: [{ model: one }]\nslices: []", "models and slices at once"),
        ("models: []", "models is a list"),
        ("models: [{ model: one }, { model: two }]", "passthrough"),
        ("modules: { vision: { models: [{ model: one }] } }", "no tensor belongs to the module vision"),
        ("models: [{ model: one }]\nchat_template: nonsense", "chat_template is no template"),
        ("models: [{ model: one }]\ntokenizer: { source: tow }", "the model tow does not exist"),
        ("models: [{ model: one }]\ntokenizer: { pad_to_multiple_of: 0 }", "pad_to_multiple_of"),
        ("models: [{ model: one }]\n---\nmodels: [{ model: two }]", "two configurations have no name"),
        ("models: [{ model: x }]\nname: y\n---\nmodels: [{ model: y }]\nname: x", "merges need each other"),
        ("models: [", "not valid YAML"),
    ],
)
def test_layouts_that_cannot_be_are_errors(models: dict[str, Tensors], text: str, words: str) -> None:
    documents = [f"merge_method: passthrough\n{part}" for part in text.split("\n---\n")]
    Path("config.yml").write_text("\n---\n".join(documents))
    with pytest.raises(SurgeryError) as error:
        merge_plan("config.yml", "out")
        run(merge_plan("config.yml", "out")[0])
    assert words in str(error.value)
    assert "config.yml:" in str(error.value)


def test_models_that_do_not_fit_are_told_with_what_would_allow_it(models: dict[str, Tensors]) -> None:
    write_model(Path("wide"), llama(LLAMA | {"intermediate_size": 32}), LLAMA | {"intermediate_size": 32})
    write_model(Path("more"), llama(LLAMA | {"vocab_size": 48}), LLAMA | {"vocab_size": 48})
    write_model(Path("other"), llama(), LLAMA | {"architectures": ["MistralForCausalLM"]})
    for name, words in (
        ("wide", "mlp.down_proj.weight has different shapes"),
        ("more", "--unsafe-truncate-embeddings"),
        ("other", "--allow-crimes"),
    ):
        with pytest.raises(PlanError) as error:
            merged(LINEAR.replace("two", name))
        assert words in str(error.value)
    out = merged(LINEAR.replace("two", "more").replace("[0, 0.75]", "0.75"), truncate=True)
    assert read_checkpoint(out)["lm_head.weight"].shape == (40, 16)
    assert merged(LINEAR.replace("two", "other"), "mixed", allow_crimes=True).exists()
