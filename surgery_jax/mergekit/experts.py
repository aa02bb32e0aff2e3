"""Configurations of mixtures of experts: what their YAML says, with the place of every value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.dtypes import DType
from ..core.errors import Mark, Notice, PlanError
from ..language import nodes
from ..language.nodes import Mapping, Scalar, shown
from .configuration import check_known, dtype_of, given_in
from .references import ModelReference, reference
from .settings import whole_of

__all__ = ["Expert", "Mixture", "mixture_of"]

KEYS = (
    "base_model",
    "experts",
    "shared_experts",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "architecture",
)
MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")


@dataclass(frozen=True, eq=False)
class Expert:
    """A model whose feed-forward layers become an expert."""

    model: ModelReference
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    noise: float | None
    scale: float | None
    mark: Mark


@dataclass(frozen=True, eq=False)
class Mixture:
    """What the configuration says."""

    base: ModelReference
    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...]
    mode: str
    dtype: DType | None
    per_token: int
    mark: Mark

    @property
    def all(self) -> tuple[Expert, ...]:
        return (*self.experts, *self.shared)


def mixture_of(node: Mapping, notices: list[Notice]) -> Mixture:
    """A document as a mixture; what is ignored is added to `notices`.

    Raises:
        PlanError: what is wrong with it.
    """
    check_known(node, KEYS, "the configuration", notices)
    if given_in(node, "base_model") is None:
        raise PlanError("a mixture needs a base_model", where=node.mark, expected="base_model: a path")
    mode = node.entries.get("gate_mode", Scalar("hidden", node.mark))
    if not isinstance(mode, Scalar) or mode.value not in MODES:
        raise PlanError("gate_mode is none", where=mode.mark, expected=", ".join(MODES), found=shown(mode))
    experts = _experts(node, "experts", notices)
    if not experts:
        raise PlanError("a mixture needs experts", where=node.mark)
    count = node.entries.get("experts_per_token", Scalar(2, node.mark))
    per_token = whole_of(count)
    if per_token is None or not 1 <= per_token <= len(experts):
        raise PlanError(
            "experts_per_token is no number of experts",
            where=count.mark,
            expected=f"1 to {len(experts)}, of as many experts",
            found=shown(count),
        )
    base = reference(node.entries["base_model"], "base_model")
    shared = _experts(node, "shared_experts", notices)
    return Mixture(base, experts, shared, str(mode.value), dtype_of(node, "dtype"), per_token, node.mark)


def _experts(node: Mapping, key: str, notices: list[Notice]) -> tuple[Expert, ...]:
    given = given_in(node, key)
    if given is None:
        return ()
    if not isinstance(given, nodes.Sequence):
        raise PlanError(f"{key} is a list", where=given.mark, expected="{ source_model, … }", found=shown(given))
    found = []
    for item in given.items:
        if not isinstance(item, Mapping) or "source_model" not in item.entries:
            raise PlanError(f"an entry of {key} has no source_model", where=item.mark, found=shown(item))
        known = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")
        check_known(item, known, f"an entry of {key}", notices)
        found.append(
            Expert(
                reference(item.entries["source_model"], "source_model"),
                _prompts(item, "positive_prompts"),
                _prompts(item, "negative_prompts"),
                _number(item, "noise_scale"),
                _number(item, "residual_scale"),
                item.mark,
            )
        )
    return tuple(found)


def _prompts(node: Mapping, key: str) -> tuple[str, ...]:
    given = given_in(node, key)
    if given is None:
        return ()
    items = given.items if isinstance(given, nodes.Sequence) else ()
    words = [str(item.value) for item in items if isinstance(item, Scalar) and item.value is not None]
    if not isinstance(given, nodes.Sequence) or len(words) != len(items):
        raise PlanError(f"{key} is a list of texts", where=given.mark, found=shown(given))
    return tuple(words)


def _number(node: Mapping, key: str) -> float | None:
    given = given_in(node, key)
    if given is None:
        return None
    value = given.value if isinstance(given, Scalar) else None
    try:
        found = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        expected = "one that is finite"
        raise PlanError(f"{key} is a number", where=given.mark, expected=expected, found=shown(given))
    return found
