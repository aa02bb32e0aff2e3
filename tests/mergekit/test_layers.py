"""Layers found in names, and names as patterns."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.mergekit.layers import LayerStack, is_buffer, is_entrance, stacks_of
from surgery_jax.mergekit.patterns import pattern_of


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{number}.w" for number in range(count)]


@pytest.mark.parametrize(
    ("found", "config", "stacks"),
    [
        (
            names("model.layers", 3),
            {"num_hidden_layers": 3},
            [LayerStack("model.layers", 3, (("num_hidden_layers",),))],
        ),
        (names("transformer.h", 2), {"n_layer": 2}, [LayerStack("transformer.h", 2, (("n_layer",),))]),
        (
            [*names("language_model.layers", 3), *names("vision_tower.blocks", 2), *names("projector", 2)],
            {"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 2}},
            [
                LayerStack("language_model.layers", 3, (("text_config", "num_hidden_layers"),)),
                LayerStack("vision_tower.blocks", 2, (("vision_config", "depth"),)),
            ],
        ),
        (
            [*names("model.layers", 3), *names("visual.blocks", 2), *names("visual.merger.mlp", 1)],
            {"num_hidden_layers": 3, "vision_config": {"depth": 2}},
            [
                LayerStack("model.layers", 3, (("num_hidden_layers",),)),
                LayerStack("visual.blocks", 2, (("vision_config", "depth"),)),
            ],
        ),
        (
            [*names("encoder.block", 2), *names("decoder.block", 2)],
            {"num_layers": 2, "num_decoder_layers": 2},
            [
                LayerStack("decoder.block", 2, (("num_decoder_layers",),)),
                LayerStack("encoder.block", 2, (("num_layers",),)),
            ],
        ),
        (names("model.layers", 3), {}, [LayerStack("model.layers", 3)]),
        ([*names("model.layers", 2), "mlp.3.w"], {"num_hidden_layers": 2, "max_window_layers": 2}, None),
        (["model.layers.0.experts.0.w", "model.layers.0.experts.1.w"], {"num_hidden_layers": 1}, None),
        (["model.layers.1.w", "model.layers.2.w"], {}, []),
    ],
)
def test_stacks_are_found_by_names_and_counts(found: list[str], config: dict, stacks: list[LayerStack] | None) -> None:
    expected = stacks
    if expected is None:
        expected = [LayerStack("model.layers", config["num_hidden_layers"], (("num_hidden_layers",),))]
    assert stacks_of(found, config) == expected


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("transformer.wpe.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("bert.embeddings.LayerNorm.weight", True),
        ("tok_embeddings.weight", True),
        ("model.norm.weight", False),
        ("transformer.ln_f.bias", False),
        ("lm_head.weight", False),
        ("embed_out.weight", False),
        ("output.weight", False),
        ("score.weight", False),
    ],
)
def test_embeddings_come_before_the_layers_and_heads_after_them(name: str, first: bool) -> None:
    assert is_entrance(name) is first


def test_masks_and_frequencies_are_buffers_and_biases_are_not() -> None:
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq", 1)
    assert is_buffer("h.0.attn.bias", 4)
    assert not is_buffer("h.0.attn.bias", 1)
    assert not is_buffer("h.0.attn.c_attn.bias", 1)


WORDS = st.sampled_from(["norm", "mlp.up", "mlp.a+b", "attn.q", "x(1"])
NAMES = st.builds("l.{}.{}".format, st.integers(0, 12), WORDS) | st.builds("{}.w".format, WORDS) | st.just("l.07.norm")


@given(
    st.sets(NAMES, min_size=1).flatmap(
        lambda all_: st.tuples(st.just(sorted(all_)), st.sets(st.sampled_from(sorted(all_)), min_size=1))
    )
)
def test_a_pattern_matches_exactly_the_names_that_it_was_made_of(case: tuple[list[str], set[str]]) -> None:
    among, wanted = case
    pattern = re.compile(f"({pattern_of(wanted, among)})")
    assert {name for name in among if pattern.fullmatch(name)} == wanted
    assert pattern.groups == 1


def test_patterns_of_whole_layers_are_short() -> None:
    among = [f"model.layers.{n}.{rest}" for n in range(40) for rest in ("a", "b", "c")] + ["norm"]
    assert pattern_of(among, among) == ".+"
    assert pattern_of([n for n in among if n.endswith(".a")][:3], among) == r"model\.layers\.[012]\.a"
    assert pattern_of([f"model.layers.7.{rest}" for rest in "abc"], among) == r"model\.layers\.7\..+"
