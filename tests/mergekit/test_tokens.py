"""One vocabulary for several models: rows by token, against NumPy, and tokenizers that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from running import read_checkpoint, write_checkpoint
from tiny_models import LETTERS, LLAMA, Tensors, llama, merged, tokenizer, write_model

from surgery_jax import PlanError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# "left" has letters, "right" fewer of them in another order, a special token, pairs, and a row of padding
LEFT = tokenizer(LETTERS[:20])
RIGHT = tokenizer([*reversed(LETTERS[4:20]), "xy", "xz"], ("</s>", "<s>", "<tool>"))


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensors]:
    monkeypatch.chdir(tmp_path)
    made = {}
    for seed, (name, body, rows) in enumerate([("left", LEFT, 22), ("right", RIGHT, 22), ("third", LEFT, 22)]):
        config = LLAMA | {"vocab_size": rows, "num_hidden_layers": 1}
        files = {"tokenizer.json": body, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
        made[name] = write_model(Path(name), llama(config, seed=seed), config, files)
    return made


def ids(folder: str | Path) -> dict[str, int]:
    body = json.loads((Path(folder) / "tokenizer.json").read_text())
    return body["model"]["vocab"] | {entry["content"]: entry["id"] for entry in body["added_tokens"]}


def average(names: str, more: str, **sides: float) -> str:
    models = ", ".join(f"{{ model: {name}, parameters: {{ weight: {weight} }} }}" for name, weight in sides.items())
    return f"models: [{models}]\nmerge_method: linear\n{more}"


def row(model: Tensors, name: str, known: dict[str, int], token: str) -> np.ndarray | None:
    return model[name][known[token]] if token in known and known[token] < len(model[name]) else None


def test_a_token_that_a_model_lacks_has_the_row_of_the_base_or_of_the_others(sides: dict[str, Tensors]) -> None:
    out = merged(average("", "base_model: left\ntokenizer_source: union", left=1, right=3))
    known, got = ids(out), read_checkpoint(out)
    assert {token: known[token] for token in ids("left")} == ids("left")
    assert set(known) == set(ids("left")) | {token for token, number in ids("right").items() if number < 22}
    for name in (EMBEDDING, HEAD):
        assert len(got[name]) == len(known)
        for token, number in known.items():
            rows = [row(sides[side], name, ids(side), token) for side in ("left", "right")]
            there = [value for value in rows if value is not None]
            left, right = (value if value is not None else there[0] for value in rows)
            np.testing.assert_allclose(got[name][number], (left + 3 * right) / 4, rtol=1e-6, atol=1e-7)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(known)


def test_without_a_base_a_missing_row_is_the_mean_of_those_that_have_it(sides: dict[str, Tensors]) -> None:
    out = merged(average("", "tokenizer: { source: union }", left=1, right=1, third=1))
    known, got = ids(out), read_checkpoint(out)
    a = [sides[side][EMBEDDING][ids(side)["a"]] for side in ("left", "third")]
    mean = (a[0] + a[1]) / 2
    np.testing.assert_allclose(got[EMBEDDING][known["a"]], (a[0] + mean + a[1]) / 3, rtol=1e-6, atol=1e-7)


def test_rows_of_single_tokens_come_from_where_the_configuration_says(sides: dict[str, Tensors]) -> None:
    out = merged(
        average(
            "",
            """base_model: left
tokenizer:
  source: base
  pad_to_multiple_of: 8
  tokens:
    <new>: { source: { kind: model_token, model: right, token: <tool> } }
    <none>: { source: { kind: zero } }
    a: { source: { kind: model_token, model: right, token_id: 5 }, force: true }
    e: { source: right, force: true }
""",
            left=1,
            right=1,
        )
    )
    known, got, right = ids(out), read_checkpoint(out)[EMBEDDING], sides["right"][EMBEDDING]
    assert (known["<new>"], known["<none>"], len(got)) == (22, 23, 24)
    for token, wanted in (
        ("<new>", right[2]),
        ("<none>", 0 * right[0]),
        ("a", right[5]),
        ("e", right[ids("right")["e"]]),
    ):
        np.testing.assert_allclose(got[known[token]], wanted, rtol=1e-6, atol=1e-7)


def test_rows_of_padding_are_the_mean_of_the_others(sides: dict[str, Tensors]) -> None:
    out = merged(average("", "tokenizer: { source: left, pad_to_multiple_of: 10 }", left=1))
    got, before = read_checkpoint(out)[HEAD], sides["left"][HEAD]
    assert len(got) == 30
    np.testing.assert_array_equal(got[:22], before)
    np.testing.assert_allclose(got[22:], np.tile(before.mean(0, dtype=np.float64), (8, 1)), rtol=1e-6)


def test_transformers_reads_the_tokenizer_of_the_union(sides: dict[str, Tensors]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = merged(average("", "base_model: left\ntokenizer_source: union", left=1, right=3))
    read, left = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained("left")
    assert read("abcdef")["input_ids"] == left("abcdef")["input_ids"]
    assert read("a<tool>b")["input_ids"][1] == ids(out)["<tool>"]
    assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().num_embeddings == len(read)


def test_a_merge_that_others_build_on_has_the_tokenizer_that_it_made(sides: dict[str, Tensors]) -> None:
    both = average("", "name: both\ntokenizer_source: union", left=1, right=1)
    out = merged(
        both
        + "\n---\n"
        + average("", "base_model: third\ntokenizer_source: union\nchat_template: chatml", both=1, third=1)
    )
    assert ids(out) == ids(merged(average("", "base_model: left\ntokenizer_source: union", left=1, right=1), "union"))
    assert "<|im_start|>" in (out / "tokenizer_config.json").read_text()


def test_a_named_model_gives_its_tokens_and_their_numbers(sides: dict[str, Tensors]) -> None:
    out = merged(average("", "base_model: left\ntokenizer_source: right", left=1, right=1))
    assert ids(out) == {token: number for token, number in ids("right").items() if number < 22}


def test_a_token_of_zeros_leaves_all_other_rows_and_tensors_as_they_are(sides: dict[str, Tensors]) -> None:
    for name in ("left", "third"):  # in the order of names, as many files are
        write_checkpoint(Path(name) / "model.safetensors", dict(sorted(sides[name].items())))
    more = "tokenizer: { source: base, tokens: { new: { source: { kind: zero } } } }"
    got = read_checkpoint(merged(average("", more, left=1, third=1)))
    known = ids("out")
    for name, found in got.items():
        mean = (sides["left"][name] + sides["third"][name]) / 2
        expected = np.concatenate([mean[: known["new"]], np.zeros((1, 16))]) if name in (EMBEDDING, HEAD) else mean
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_model_that_is_not_merged_may_give_its_tokens(sides: dict[str, Tensors]) -> None:
    out = merged(average("", "base_model: left\ntokenizer_source: right", left=1, third=3))
    known, got = ids(out), read_checkpoint(out)
    assert known == {token: number for token, number in ids("right").items() if number < 22}
    for name in (EMBEDDING, HEAD):
        assert len(got[name]) == len(known)
        for token, number in known.items():
            rows = [row(sides[side], name, ids(side), token) for side in ("left", "third")]
            expected = np.zeros(16) if rows[0] is None else (rows[0] + 3 * rows[1]) / 4
            np.testing.assert_allclose(got[name][number], expected, rtol=1e-6, atol=1e-7)
    built = merged(
        "models: [{ model: left }]\nmerge_method: passthrough\ntokenizer_source: words\n---\n"
        "models: [{ model: right }]\nmerge_method: passthrough\nname: words\n",
        "built",
    )
    assert ids(built) == known


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("x: { source: nowhere }", "nowhere is no model of the merge"),
        ("x: { source: { kind: model_token, model: left } }", "either token or token_id"),
        ("x: { source: { kind: model_token, model: left, token: zz } }", "left has no token 'zz'"),
        ("x: { source: { kind: model_token, model: left, token_id: 99 } }", "left has no row 99"),
        ("x: { source: { kind: model_token, model: left, token_id: [9] } }", "token 'x': not an integer"),
        ("x: { source: { kind: model_token, model: left, token_id: 1.5 } }", "token 'x': not an integer"),
        ("x: { source: { kind: model_token, model: left, token: { a: b } } }", "token 'x': not a string"),
        ("x: { source: left, force: maybe }", "token 'x': not true or false"),
        ("x: { force: true }", "token 'x' has no source"),
        ("x: 3", "token 'x' is a mapping"),
    ],
)
def test_rows_that_there_are_not_are_errors(sides: dict[str, Tensors], tokens: str, words: str) -> None:
    with pytest.raises(PlanError) as error:
        merged(average("", f"base_model: left\ntokenizer:\n  tokens:\n    {tokens}\n", left=1, right=1))
    assert words in str(error.value)
    assert str(error.value.where).startswith("config.yml:6:")


def test_numbers_and_truth_of_tokens_may_be_text(sides: dict[str, Tensors]) -> None:
    def tokens(number: str, force: str, multiple: str) -> str:
        source = f"{{ kind: model_token, model: third, token: null, token_id: {number} }}"
        wish = f"a: {{ source: {source}, force: {force} }}"
        return f"tokenizer: {{ source: base, pad_to_multiple_of: {multiple}, tokens: {{ {wish} }} }}"

    for force in ("true", "false"):
        plain = merged(average("", tokens("3", force, "8"), left=1, third=1), f"plain_{force}")
        words = merged(average("", tokens("'3'", f"'{force}'", "'8'"), left=1, third=1), f"words_{force}")
        floats = merged(average("", tokens("3.0", force, "8.0"), left=1, third=1), f"floats_{force}")
        expected = read_checkpoint(plain)
        for name in (EMBEDDING, HEAD):
            row = sides["third"][name][3] if force == "true" else (sides["left"][name] + sides["third"][name])[2] / 2
            np.testing.assert_allclose(expected[name][ids(plain)["a"]], row, rtol=1e-6, atol=1e-7)
            for out in (words, floats):
                np.testing.assert_array_equal(read_checkpoint(out)[name], expected[name])


def test_a_model_without_a_tokenizer_is_an_error_only_if_it_is_the_first(sides: dict[str, Tensors]) -> None:
    (Path("left") / "tokenizer.json").unlink()
    with pytest.raises(PlanError, match=r"left has no tokenizer\.json"):
        merged(average("", "tokenizer: { source: base }", left=1, right=1))
    merged(average("", "tokenizer: { source: base }", right=1, left=1))


def test_a_model_without_embeddings_cannot_be_given_a_vocabulary(sides: dict[str, Tensors]) -> None:
    bare = {name: tensor for name, tensor in sides["right"].items() if name not in (EMBEDDING, HEAD)}
    write_model(Path("bare"), bare, LLAMA, {"tokenizer.json": RIGHT})
    with pytest.raises(PlanError, match="bare has no matrix with a row for each token"):
        merged(average("", "tokenizer_source: union", left=1, bare=1))
