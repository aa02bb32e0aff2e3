"""Mixtures of experts from dense models: attention and norms of the base, experts from others, and a router."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ..core.dtypes import BY_NAME, DType
from ..core.errors import Notice, PlanError, StorageError, listing
from ..core.model_config import CONFIG, DEFAULTS
from ..language.nodes import Mapping, Scalar, shown
from .card import card_of
from .configuration import given_in
from .experts import Expert, Mixture, mixture_of
from .models import Model, Models, embedding_of
from .options import MergeOptions
from .patterns import pattern_of
from .prompts import token_lists
from .recipe import OUT, Recipe, Value
from .sidecars import OWN, TOKENIZER_FILES, copy_documents_of
from .targets import TARGETS, MixtureTarget

__all__ = ["merge_experts"]

NORMAL = 0.02  # deviation of random routers where the base does not say with what it was initialised


def merge_experts(node: Mapping, text: str, recipe: Recipe, options: MergeOptions, notices: list[Notice]) -> None:
    """Steps for a mixture.

    Raises:
        SurgeryError: what is wrong with the configuration or the models.
    """
    mixture = mixture_of(node, notices)
    models = Models(recipe, options)
    base = models.get(mixture.base)
    found = {expert: models.get(expert.model) for expert in mixture.all}
    target = _target(node, mixture, base, found)
    _check_prompts(mixture, target, options)
    names = _feed_forward(base, found, mixture)
    _copy_dense(base, names, target, mixture, recipe)
    for number, expert in enumerate(mixture.experts):
        for part, new in target.parts.items():
            _copy_expert(found[expert], expert, part, f"{target.block}.experts.{number}.{new}", recipe, options)
    for expert in mixture.shared:
        for part in target.parts:
            _copy_expert(found[expert], expert, part, f"{target.shared_block}.{part}", recipe, options)
    _route(mixture, base, target, recipe, options)
    dtype = mixture.dtype or _own_dtype(base)
    if dtype is not None:
        recipe.step("cast_", {"target": f"{OUT}::.+", "to": dtype.name, "where": {"dtype": "float"}}, mixture.mark)
    _documents(mixture, base, target, dtype, recipe, options)
    if options.model_card:
        card = card_of(f"mixture of experts ({target.name})", [base.name, *(m.name for m in found.values())], text)
        recipe.step("document", {"write": "README.md", "text": card, "alias": OUT}, mixture.mark)
        recipe.step("document", {"write": "mergekit_moe_config.yml", "text": text, "alias": OUT}, mixture.mark)


def _target(node: Mapping, mixture: Mixture, base: Model, found: dict[Expert, Model]) -> MixtureTarget:
    """The architecture of the output.

    Raises:
        PlanError: there is none for these models.
    """
    named = given_in(node, "architecture")
    candidates = list(TARGETS)
    if named is not None:
        word = str(named.value).lower() if isinstance(named, Scalar) else ""
        candidates = [target for target in TARGETS if target.name.lower().startswith(word) and word]
        if not candidates:
            known = ", ".join(target.name for target in TARGETS)
            raise PlanError(
                "no architecture of mixtures is called so", where=named.mark, expected=known, found=shown(named)
            )
    kinds = {model.config.get("model_type"): model.name for model in (base, *found.values())}
    reasons = []
    for target in candidates:
        least, most = target.shared
        if len(kinds) > 1 or not set(kinds) <= set(target.sources):
            reasons.append(f"{target.name} is made of models that are all one of {', '.join(target.sources)}")
        elif not least <= len(mixture.shared) <= most:
            wanted = f"{least}" if least == most else f"{least} or {most}"
            reasons.append(f"{target.name} has {wanted} shared experts")
        elif most and not target.shared_gate and any(expert.positive or expert.negative for expert in mixture.shared):
            reasons.append(f"the shared expert of {target.name} has no prompts")
        else:
            return target
    told = ", ".join(f"{kind} ({name})" for kind, name in kinds.items())
    raise PlanError(
        "no architecture of mixtures fits these models",
        where=mixture.mark if named is None else named.mark,
        expected="; ".join(reasons),
        found=f"{told}; {len(mixture.shared)} shared experts",
    )


def _check_prompts(mixture: Mixture, target: MixtureTarget, options: MergeOptions) -> None:
    """That experts have prompts where routers are made of them, and are not all alike."""
    if mixture.mode in ("random", "uniform_random"):
        return
    for expert in mixture.all if target.shared_gate else mixture.experts:
        if not expert.positive:
            raise PlanError(
                f"gate_mode {mixture.mode} needs positive_prompts",
                where=expert.mark,
                found=f"none for {expert.model}",
                hint="or gate_mode: random",
            )
    prompts = {(expert.positive, expert.negative) for expert in mixture.experts}
    if len(mixture.experts) > 1 and (len(prompts) == 1 or (_are_same(mixture) and not options.allow_same)):
        what = "prompts" if len(prompts) == 1 else "models"
        raise PlanError(
            f"all experts have the same {what}",
            where=mixture.experts[0].mark,
            hint=None if len(prompts) == 1 else "--i-understand-this-is-not-useful-without-training allows it",
        )


def _are_same(mixture: Mixture) -> bool:
    return len({expert.model for expert in mixture.experts}) == 1


# ---------------------------------------------------------------------------------------------------------- tensors

_MATRIX = re.compile(r"(.+\.layers\.\d+)\.mlp\.(.+)")
_LAYERS = r"(.+\.layers\.\d+)"


def _feed_forward(base: Model, found: dict[Expert, Model], mixture: Mixture) -> list[str]:
    """The names of the feed-forward layers, which all models have, of the shapes of the base."""
    names = [name for name in base.specs if _MATRIX.fullmatch(name)]
    inner = set(names)
    for name in names:
        match = _MATRIX.fullmatch(name)
        if match is None or match[2] not in ("gate_proj.weight", "up_proj.weight", "down_proj.weight"):
            raise PlanError(
                "a feed-forward layer that experts have no place for",
                where=mixture.base.mark,
                found=f"{name} of {base.name}",
                expected="gate_proj, up_proj and down_proj without biases",
            )
    if not names:
        raise PlanError(f"{base.name} has no feed-forward layers", where=mixture.base.mark, found=listing(base.specs))
    for expert, model in found.items():
        for name in names:
            spec = model.specs.get(name)
            if spec is None or spec.shape != base.specs[name].shape:
                raise PlanError(
                    f"{model.name} does not fit {base.name}",
                    where=expert.mark,
                    expected=f"{name} of {list(base.specs[name].shape)}",
                    found="no such tensor" if spec is None else str(list(spec.shape)),
                )
        more = [name for name in model.specs if _MATRIX.fullmatch(name) and name not in inner]
        if more:
            raise PlanError(
                f"{model.name} does not fit {base.name}",
                where=expert.mark,
                expected="the same feed-forward layers, and no others",
                found=listing(more),
            )
    return names


def _copy_dense(base: Model, names: Sequence[str], target: MixtureTarget, mixture: Mixture, recipe: Recipe) -> None:
    """All but the feed-forward layers, and zeros for biases that only the target has."""
    inner = set(names)
    rest = [name for name in base.specs if name not in inner and not name.endswith("rotary_emb.inv_freq")]
    biases = [name for name in rest if name.endswith("_proj.bias")]
    allowed = tuple(f"{x}_proj.bias" for x in "qkv") if target.zero_biases else ()
    wrong = [name for name in biases if not name.endswith(allowed or ("?",))]
    if wrong:
        raise PlanError(f"{target.name} has no place for biases", where=mixture.base.mark, found=listing(wrong))
    pattern = pattern_of(rest, base.specs)
    recipe.step("copy", {"from": f"{base.alias}::({pattern})", "to": f"{OUT}::\\1"}, mixture.mark)
    if target.zero_biases and not biases:
        # a column of the weights has the shape, and times 0 the values
        source = rf"{base.alias}::{_LAYERS}\.self_attn\.([qkv])_proj\.weight::[:, 0]"
        payload = {"from": source, "to": f"{OUT}::\\1.self_attn.\\2_proj.bias", "by": 0}
        recipe.step("scale", payload, mixture.mark)


def _copy_expert(model: Model, expert: Expert, part: str, place: str, recipe: Recipe, options: MergeOptions) -> None:
    """One matrix of an expert, in all layers."""
    payload: dict[str, Value] = {
        "from": rf"{model.alias}::{_LAYERS}\.mlp\.{part}\.weight",
        "to": rf"{OUT}::\1.{place}.weight",
    }
    if expert.noise:
        recipe.step("noise", payload | {"std": expert.noise, "seed": options.seed}, expert.mark)
    else:
        recipe.step("copy", payload, expert.mark)
    if part == "down_proj" and expert.scale is not None:
        target = rf"{OUT}::.+\.{re.escape(place)}\.weight"
        recipe.step("scale_", {"target": target, "by": expert.scale}, expert.mark)


def _own_dtype(base: Model) -> DType | None:
    """What `config.json` says of the dtype, which experts of other dtypes take."""
    told = base.config.get("dtype") or base.config.get("torch_dtype")
    return BY_NAME.get(str(told).removeprefix("torch."))


# ---------------------------------------------------------------------------------------------------------- routers


def _route(mixture: Mixture, base: Model, target: MixtureTarget, recipe: Recipe, options: MergeOptions) -> None:
    """The routers, and the gate of the shared expert where there is one."""
    gated = mixture.shared if target.shared_gate else ()
    places = [(f"{target.block}.gate", mixture.experts), (target.shared_gate, gated)]
    if mixture.mode in ("random", "uniform_random"):
        for place, experts in places:
            if experts:
                _draw(mixture, base, place, len(experts), recipe, options)
        return
    vectors = _vectors(mixture, [experts for _, experts in places if experts], base, recipe, options)
    for (place, experts), source in zip([entry for entry in places if entry[1]], vectors, strict=True):
        if isinstance(source, str):
            for prefix in _prefixes(base):
                recipe.step("copy", {"from": source, "to": f"{OUT}::{prefix}.{place}.weight"}, mixture.mark)
        else:
            first, stop, alias = source
            payload = {"from": rf"{alias}::(.+)::[{first}:{stop}]", "to": rf"{OUT}::\1.{place}.weight"}
            recipe.step("copy", payload, experts[0].mark)


def _prefixes(base: Model) -> list[str]:
    """The layers, as names begin."""
    return list(dict.fromkeys(match[1] for name in base.specs if (match := _MATRIX.fullmatch(name))))


def _draw(mixture: Mixture, base: Model, place: str, count: int, recipe: Recipe, options: MergeOptions) -> None:
    """Random rows: the first rows of a matrix with as many columns give the shape."""
    payload: dict[str, Value] = {
        "from": rf"{base.alias}::{_LAYERS}\.mlp\.gate_proj\.weight::[:{count}]",
        "to": rf"{OUT}::\1.{place}.weight",
        "dtype": "float32",
        "seed": options.seed,
    }
    if mixture.mode == "uniform_random":
        width = next(spec.shape[1] for name, spec in base.specs.items() if name.endswith("mlp.gate_proj.weight"))
        recipe.step("uniform", payload | {"low": -(width**-0.5), "high": width**-0.5}, mixture.mark)
    else:
        told = base.config.get("initializer_range")
        std = NORMAL if told is None else told
        if isinstance(std, bool) or not isinstance(std, int | float) or not 0 <= std < math.inf:
            raise StorageError(
                f"{CONFIG} of {base.name} gives no deviation for random routers",
                where=mixture.base.mark,
                expected="initializer_range: a number",
                found=repr(std)[:80],
            )
        recipe.step("normal", payload | {"std": float(std)}, mixture.mark)


def _vectors(
    mixture: Mixture, groups: Sequence[Sequence[Expert]], base: Model, recipe: Recipe, options: MergeOptions
) -> list[Any]:
    """Where the rows of each group of experts come from: a reference to one tensor for all layers, or rows of a file
    with a tensor for each layer."""
    if mixture.mode != "cheap_embed":
        return _from_file(mixture, groups, recipe, options)
    alias = recipe.alias("gates")
    recipe.step("prefixes", {"mode": "add", "alias": alias}, mixture.mark, alias)
    embedding = embedding_of(base)
    if embedding is None:
        raise PlanError(f"{base.name} has no embedding of tokens", where=mixture.base.mark)
    found = []
    for number, experts in enumerate(groups):
        positive = token_lists(base, [expert.positive for expert in experts], mixture.mark)
        negative = token_lists(base, [expert.negative for expert in experts], mixture.mark)
        payload: dict[str, Value] = {
            "from": f"{base.alias}::{re.escape(embedding)}",
            "to": f"{alias}::rows_{number}",
            "positive": positive,
            "negative": negative if any(negative) else None,
        }
        recipe.step("gates", payload, mixture.mark, alias)
        found.append(f"{alias}::rows_{number}")
    return found


def _from_file(
    mixture: Mixture, groups: Sequence[Sequence[Expert]], recipe: Recipe, options: MergeOptions
) -> list[Any]:
    if options.gates is None:
        raise PlanError(
            f"gate_mode {mixture.mode} runs the base model on the prompts, which this program does not",
            where=mixture.mark,
            hint="make the vectors with: python scripts/gate_vectors.py CONFIG gates.safetensors; then --gates "
            "gates.safetensors",
        )
    alias = recipe.input(options.gates, mixture.mark, "gates")
    found, first = [], 0
    for experts in groups:
        found.append((first, first + len(experts), alias))
        first += len(experts)
    return found


# -------------------------------------------------------------------------------------------------------- documents


def _documents(
    mixture: Mixture, base: Model, target: MixtureTarget, dtype: DType | None, recipe: Recipe, options: MergeOptions
) -> None:
    patterns = [*OWN, *(() if options.copy_tokenizer else (f"!{pattern}" for pattern in TOKENIZER_FILES))]
    names = copy_documents_of(base, recipe, OUT, mixture.mark, patterns)
    if CONFIG not in names:
        return
    config, kind = base.config, str(base.config.get("model_type"))
    sets = {
        "architectures": [target.architecture],
        "model_type": target.model_type,
        target.experts: len(mixture.experts),
        "num_experts_per_tok": mixture.per_token,
        **{key: config.get("intermediate_size") for key in target.widths},
        **target.sets,
    }
    if target.model_type == "deepseek":
        sets["n_shared_experts"] = len(mixture.shared) or None
    if dtype is not None:
        sets["dtype" if "dtype" in config else "torch_dtype"] = dtype.name
    payload: dict[str, Value] = {"set": sets, "alias": OUT, "defaults_of": kind if kind in DEFAULTS else None}
    recipe.step("config", payload, mixture.mark)
