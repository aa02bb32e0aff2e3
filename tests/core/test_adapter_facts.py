"""What a model's configuration and the version of PEFT tell of the axes of weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from surgery_jax.lora.facts import axis_of_inputs, describe, is_in_declared_order, ties_factors

TEXTS: dict[str, tuple[Any, bool | None, bool | None, bool | None]] = {  # Conv1D, is_transposed, tied
    "nothing": (None, None, None, None),
    "no json": ("{", None, None, None),
    "a list": ("[1]", None, None, None),
    "deep": ("[" * 100_000, None, None, None),
    "gpt2": ({"model_type": "gpt2", "tie_word_embeddings": True}, True, False, True),
    "llama": ({"model_type": "llama", "tie_word_embeddings": False}, False, False, False),
    "gpt-oss": ({"model_type": "gpt_oss"}, False, True, None),
    "a part": ({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}}, True, False, None),
    "classes of its own": ({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}, None, None, None),
    "no text": ({"model_type": 3, "tie_word_embeddings": "yes"}, None, None, None),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_configuration_tells_the_classes_of_a_model_or_nothing(what: str) -> None:
    given, *wanted = TEXTS[what]
    model = describe(json.dumps(given) if isinstance(given, dict) else given)
    assert [model.has_conv1d, model.is_transposed, model.tied] == wanted


@pytest.mark.parametrize(
    ("version", "axes"),  # of a class without is_transposed, with it, unknown
    [
        ("0.17.1", (1, 1, 1)),
        ("0.18.1", (1, 1, 1)),
        ("0.19.0", (1, 2, None)),
        ("0.19.1", (2, 1, None)),
        ("1.0.0", (2, 1, None)),
        ("0.19.1.dev0", (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_the_version_tells_the_axis_of_the_inputs(version: str | None, axes: tuple[int | None, ...]) -> None:
    config = {} if version is None else {"peft_version": version}
    assert tuple(axis_of_inputs(config, flag) for flag in (False, True, None)) == axes


def test_factors_are_tied_since_a_release_that_can_do_it() -> None:
    versions = {"0.18.1": False, "0.19.0": True, "0.21.2": True, None: True}
    found = {version: ties_factors({"ensure_weight_tying": True, "peft_version": version}) for version in versions}
    assert found == versions and not ties_factors({"peft_version": "0.21.2"})


def test_down_is_declared_last() -> None:
    assert is_in_declared_order(["gate_up_proj", "down_proj"]) and not is_in_declared_order(["down_proj", "up_proj"])
