r"""How PEFT names the tensors of a LoRA adapter and what its configuration means, for writing, reading and merging.

An adapter of PEFT is a flat set of tensors and one JSON object. For a linear module `p` with weight [out, in] they are
`base_model.model.p.lora_A.weight` [r, in] and `….lora_B.weight` [out, r]; its change is scaling * B @ A. For an
embedding [vocabulary, width] they are `….lora_embedding_A` [r, vocabulary] and `….lora_embedding_B` [width, r]; its
change is the transpose of B @ A. For a parameter [experts, out, in] of a module of fused experts they are
`….lora_A.weight` [r * experts, in], experts first, and `….lora_B.weight` [out, r * experts], ranks first; of several
such parameters of a module, all but the last lie below as many `.base_layer`. Modules stored whole keep the names of
their parameters. Patterns of ranks and alphas are regular expressions, `(.*\.)?(KEY)$`, the first that matches counts.
Source: PEFT 0.19, `peft/tuners/lora/layer.py` and `peft/utils/other.py`, https://github.com/huggingface/peft.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from .errors import StorageError, listing
from .strict_json import read_json

__all__ = [
    "CONFIG",
    "OUTPUTS",
    "PREFIX",
    "Factored",
    "Pair",
    "check_supported",
    "configuration",
    "contents",
    "endings",
    "parse_config",
    "pattern_value",
    "rank_of",
    "scaling",
    "taken_for",
]

PREFIX = "base_model.model."
CONFIG = "adapter_config"  # the key of the configuration, as JSON, in the text metadata of an adapter
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
}
_BASE = ".base_layer"
OUTPUTS = ("lm_head", "embed_out", "output", "score", "classifier")  # names of output layers


@dataclass(frozen=True, slots=True)
class Pair:
    """The factors of one module: its path, how many wrappers lie around the factors, and the names of the tensors."""

    module: str
    depth: int
    is_embedding: bool
    a: str
    b: str
    bias: str | None = None
    times: int = 1  # how often PEFT adds the product: twice for the out_proj that lies within a MultiheadAttention


@dataclass(frozen=True, slots=True)
class Factored:
    """One module of an adapter to be written: its path, or module and parameter of fused experts; its rank."""

    module: str
    rank: int
    parameter: str = ""  # of fused experts

    @property
    def key(self) -> str:
        """What PEFT compares with patterns."""
        return f"{self.module}.{self.parameter}" if self.parameter else self.module


def contents(names: Iterable[str]) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of factors in an adapter, and by the name of a parameter of the model the tensor that replaces it.

    Raises:
        StorageError: a name that is not of a LoRA adapter, or half of a pair.
    """
    found: dict[tuple[str, int, bool], dict[str, str]] = {}
    whole: dict[str, tuple[int, str]] = {}  # by parameter, of its copies that which counts
    for name in names:
        path = name.removeprefix(PREFIX)
        if path == name:
            raise StorageError("not the name of a tensor of an adapter", expected=f"{PREFIX}...", found=repr(name))
        ending = next((ending for ending in _PARTS if path.endswith(ending)), None)
        if ending is None:
            if ".lora_" in path:
                raise _variant(name)
            order, parameter = _stored_whole(path)
            whole[parameter] = min(whole.get(parameter, (order, name)), (order, name))
            continue
        part = _PARTS[ending]
        module = path.removesuffix(ending)
        depth = 0
        while module.endswith(_BASE):
            module, depth = module.removesuffix(_BASE), depth + 1
        found.setdefault((module, depth, part.startswith("embedding")), {})[part.removeprefix("embedding_")] = name
    pairs = []
    for (module, depth, is_embedding), parts in found.items():
        if not {"a", "b"} <= parts.keys():
            there = next(iter(parts.values()))
            raise StorageError(f"{module} has only one of its two factors", expected="A and B", found=there)
        path = module.replace(_BASE + ".", ".")
        times = 1 if path == module else 2
        pairs.append(Pair(path, depth, is_embedding, parts["a"], parts["b"], parts.get("bias"), times))
    return pairs, {parameter: name for parameter, (order, name) in whole.items() if order < len(_COPIES)}


# Copies of one module stored whole, those that count most first. PEFT reads the plain name; `original_module` is what
# the base had.
_COPIES = ("", ".modules_to_save.", _BASE + ".")
_ORIGINAL = ".original_module."


def _stored_whole(path: str) -> tuple[int, str]:
    """How much a tensor of a module stored whole counts, the lowest number most, and the parameter that it is for."""
    if _ORIGINAL in path:
        return len(_COPIES), path.replace(_ORIGINAL, ".")
    order = next((order for order, words in enumerate(_COPIES) if order and words in path), 0)
    return order, path.replace(_COPIES[order], ".") if order else path


def _variant(name: str) -> StorageError:
    """The error of a name that has `lora_` in it, but is not one of those of a plain adapter."""
    is_dora = "lora_magnitude_vector" in name
    return StorageError(
        f"{name} is of DoRA" if is_dora else f"{name} is not of a plain LoRA adapter",
        expected="names ending in " + ", ".join(_PARTS) + ", or modules stored whole",
        hint="DoRA and other variants are not read: merge them with PEFT, model.merge_and_unload()",
    )


# ------------------------------------------------------------------------------------------------- configurations


def parse_config(text: str, where: str | None = None) -> dict[str, Any]:
    """The configuration of an adapter.

    Raises:
        StorageError: no JSON object, or not that of a LoRA adapter whose meaning is known.
    """
    try:
        config = read_json(text)
    except ValueError as error:
        raise StorageError(
            "the configuration of the adapter is not JSON", where=where, found=str(error)[:120]
        ) from None
    if not isinstance(config, dict):
        raise StorageError("the configuration of the adapter is not an object", where=where, found=repr(config)[:80])
    check_supported(config, where)
    return config


_REFUSED = {
    "use_dora": "DoRA also scales the rows of the whole weight",
    "use_qalora": "QALoRA pools the inputs",
    "layer_replication": "layers are repeated by it",
    "trainable_token_indices": "rows of the embedding are replaced by it",
    "alora_invocation_tokens": "aLoRA changes some tokens only",
    "enable_lora": "its factors are of parts of a weight",
    "kasa_config": "KaSA has singular values between the factors, and another base",
    "monteclora_config": "its factors are drawn at random",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "several adapters are routed by it",
    "megatron_config": "its layers are those of Megatron",
}
_ALTERS_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_supported(config: Mapping[str, Any], where: str | None = None) -> None:
    """Raise a StorageError unless the adapter is a plain LoRA: its change is scaling * B @ A and nothing else."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise StorageError("not a LoRA adapter", where=where, expected="peft_type LORA", found=f"{kind!r}")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise StorageError(
                f"adapters with {key} are not supported: {why}",
                where=where,
                found=f"{key}: {config[key]!r}"[:120],
                hint="merge it with PEFT: model.merge_and_unload()",
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_ALTERS_BASE):
        raise StorageError(
            f"the adapter was started with {init}, which changes the weights of the base model",
            where=where,
            hint="save it as plain LoRA with PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
    for key in ("r", "lora_alpha"):
        _check_number(config.get(key, 8), key, where)
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise StorageError(f"{key} is not an object", where=where, found=repr(patterns)[:80])
        for pattern, value in patterns.items():
            _check_number(value, f"{key} of {pattern!r}", where)
            _check_pattern(pattern, key, where)


def _check_number(value: Any, what: str, where: str | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise StorageError(f"{what} is not a positive number", where=where, found=repr(value)[:80])


def _check_pattern(pattern: str, what: str, where: str | None) -> None:
    """Expressions come from a file of somebody else: none that could take for ever is tried."""
    repeats = re.sub(r"\\.", "", pattern)
    if len(pattern) > 1000 or len(re.findall(r"[*+{]", repeats)) > 4 or re.search(r"\)[*+{]", repeats):
        raise StorageError(f"a pattern of {what} is too complicated", where=where, found=repr(pattern)[:120])
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise StorageError(
            f"a pattern of {what} is no regular expression: {error}", where=where, found=pattern
        ) from None


def pattern_value(patterns: Mapping[str, Any], key: str, default: Any) -> Any:
    """What PEFT finds for a module among patterns."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", key):
            return value
    return default


def rank_of(config: Mapping[str, Any], key: str) -> Any:
    """The rank that the configuration tells for a module."""
    return pattern_value(config.get("rank_pattern") or {}, key, config.get("r", 8))


def scaling(config: Mapping[str, Any], key: str, rank: int) -> float:
    """The factor of B @ A for a module whose factors have this rank.

    Raises:
        StorageError: the configuration tells another rank.
    """
    told = rank_of(config, key)
    if told != rank:
        raise StorageError(f"the factors of {key} are not of the rank that the configuration tells",
                           expected=f"rank {told}", found=f"rank {rank}")  # fmt: skip
    alpha = float(pattern_value(config.get("alpha_pattern") or {}, key, config.get("lora_alpha", 8)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def configuration(
    factored: Sequence[Factored],
    saved: Sequence[str],
    others: Iterable[str],
    *,
    fan_in_fan_out: bool = False,
    lora_bias: bool = False,
    base: str | None = None,
    task: str | None = None,
    stacked: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """The configuration of an adapter whose factors hold the whole change: alpha is the rank, so that scaling is 1.

    `stacked` says of tensors that a program makes by stacking modules, by their patterns, which rank the modules have,
    and how many are joined beside each other.

    `saved` are modules stored whole, `others` the paths of all other modules of the model. Targets are full paths;
    where PEFT, which compares endings, would take others for them too, they are one regular expression instead.

    Raises:
        StorageError: PEFT would take another module for one that is stored whole.
    """
    ranks = [entry.rank for entry in factored]
    usual = max(sorted(set(ranks)), key=ranks.count, default=1)
    patterns = _patterns({entry.key: entry.rank for entry in factored}, usual)
    patterns |= {key: rank * joined for key, (rank, joined) in (stacked or {}).items() if rank != usual}
    targets: list[str] | str = [entry.module for entry in factored if not entry.parameter]
    known, taken = {*others, *saved}, set(targets)
    if any(other not in taken and not taken.isdisjoint(endings(other)) for other in known):
        targets = "|".join(re.escape(target) for target in targets)
    alike = taken_for(saved, {*known, *(entry.module for entry in factored)})
    if alike:
        name, others = next(iter(alike.items()))
        raise StorageError(
            f"{name} cannot be stored whole: PEFT would take other modules for it",
            found=listing(others),
            hint=f"leave it out: skip: ['{re.escape(name)}\\..+']",
        )
    parameters = [entry.key for entry in factored if entry.parameter]
    return {
        "alpha_pattern": patterns,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_bias": lora_bias,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved) or None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": patterns,
        "target_modules": targets,
        "task_type": task,
        "use_dora": False,
        "use_rslora": False,
        # axes of experts are those of PEFT from this version on
        **({"target_parameters": parameters, "peft_version": "0.19.1"} if parameters else {}),
    }


def taken_for(saved: Iterable[str], paths: Iterable[str]) -> dict[str, list[str]]:
    """By the path of a module to be stored whole, the others that PEFT would store for it because their paths, or
    those of modules around them, end in the same letters; without those of which that is not so."""
    around = {path.rsplit(".", count)[0] for path in paths for count in range(path.count(".") + 1)}
    mirrored = sorted(path[::-1] for path in around)  # equal ends come together
    found = {}
    for name in saved:
        end, head = name[::-1], itemgetter(slice(len(name)))
        first, last = (find(mirrored, end, key=head) for find in (bisect_left, bisect_right))
        near = sorted(path[::-1] for path in mirrored[first:last] if path != end)
        if near:
            found[name] = near
    return found


def endings(path: str) -> list[str]:
    """What follows each dot of a path: the endings for which PEFT takes it. A model has many modules, and to compare
    each with all targets would take minutes."""
    words = path.split(".")
    return [".".join(words[start:]) for start in range(1, len(words))]


def _patterns(ranks: Mapping[str, int], usual: int) -> dict[str, int]:
    """Ranks by escaped full path, for those that are not usual; longer paths first, because shorter ones match their
    ends as well, and with those that would be matched wrongly."""
    keys = sorted(ranks, key=lambda key: (-len(key), key))
    unusual = {key for key in keys if ranks[key] != usual}
    return {re.escape(key): ranks[key] for key in keys if key in unusual or not unusual.isdisjoint(endings(key))}
