"""How the matrices of a model are stored, as far as their shapes and those of their neighbours tell.

`Conv1D` of GPT-2 stores its weight as [in, out], `Linear` as [out, in]; experts come both ways.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..core import adapters
from ..core.errors import PlanError, listing
from ..core.specs import Spec
from .kinds import IN_OUT, OUT_IN, ROUTERS, Said, Weight, is_token_embedding, matches

__all__ = ["arranged"]

_CONV1D = ("c_attn", "c_fc", "c_proj", "q_attn")  # transformers' Conv1D, in models that were made after GPT-2
_WIDENS = ("c_attn", "c_fc")  # of these, the ones that have more outputs than inputs
_UP = re.compile(r"(gate_up|gate|up|w1|w3|input)(_proj|_linear)?")
_DOWN = re.compile(r"(down|w2|output)(_proj|_linear)?")


def arranged(entries: Sequence[Weight], said: Said) -> list[Weight]:
    """The entries with how their matrices are stored; None where nothing tells it.

    Raises:
        PlanError: what the plan says of it is contradicted.
    """
    specs = {entry.name: entry.spec for entry in entries}
    widths = {entry.shape[1] for entry in entries if entry.kind == "embedding" and is_token_embedding(entry)}
    width = widths.pop() if len(widths) == 1 else None
    linear = _linear(entries, specs, width, said)
    fused = _fused(entries, specs, width, said.experts_in_out)
    turned = {**linear, **fused}
    return [
        replace(entry, is_in_out=turned.get(entry.name, IN_OUT if entry.kind == "embedding" else OUT_IN))
        for entry in entries
    ]


def _linear(
    entries: Sequence[Weight], specs: Mapping[str, Spec], width: int | None, said: Said
) -> dict[str, bool | None]:
    """How the weights of linear modules are stored: what a module itself shows, else others of the same name, else
    others of Conv1D's names, else what the plan says. Modules of other names are Linear unless something denies it,
    output layers always."""
    linear = [entry for entry in entries if entry.kind == "linear" and not matches(said.linear, entry.module)]
    shown = {entry.name: _shown(entry, specs.get(f"{entry.module}.bias"), width) for entry in linear}
    _check_said(linear, shown, said.fan_in_fan_out)
    by_word: dict[str, set[bool]] = defaultdict(set)
    for entry in linear:
        seen = shown[entry.name]
        if seen is not None:
            by_word[entry.word].add(seen)
    family = set().union(*(by_word[word] for word in _CONV1D))
    some = any(IN_OUT in seen for word, seen in by_word.items() if word not in _CONV1D)
    found: dict[str, bool | None] = {}
    for entry in linear:
        is_conv1d = entry.word in _CONV1D
        sure = shown[entry.name]
        for others in (by_word[entry.word], family if is_conv1d else set()):
            sure = next(iter(others)) if sure is None and len(others) == 1 else sure
        if sure is None and entry.word not in adapters.OUTPUTS:
            sure = said.fan_in_fan_out
            found[entry.name] = OUT_IN if sure is None and not is_conv1d and not some else sure
        else:
            found[entry.name] = bool(sure)
    return found


def _shown(entry: Weight, bias: Spec | None, width: int | None) -> bool | None:
    """How a weight is stored by its own shape: a bias is as long as the outputs are many, output layers take what
    embeddings give, and some have more outputs than inputs."""
    first, second = entry.shape
    if first == second:
        return None
    if bias is not None and bias.shape in ((first,), (second,)):
        return bias.shape == (second,)
    if entry.word in adapters.OUTPUTS and width in (first, second):
        return width == first
    if entry.word in _WIDENS:
        return second > first
    return None


def _check_said(linear: Sequence[Weight], shown: Mapping[str, bool | None], said: bool | None) -> None:
    """Some modules of a model with Conv1D may be Linear, but not the other way round."""
    wrong = [entry for entry in linear if said is not None and shown[entry.name] == (not said)]
    if wrong and (said is False or not any(seen is said for seen in shown.values())):
        layout = "in, out" if said is False else "out, in"
        raise PlanError(
            f"lora_extract: {wrong[0].name} looks stored as [{layout}]",
            expected=f"what fan_in_fan_out: {str(said).lower()} says",
            found=f"{len(wrong)} such weights: {listing(f'{e.name} {e.spec}' for e in wrong)}",
            hint=f"fan_in_fan_out: {str(not said).lower()}, or leave it out",
        )


def _fused(
    entries: Sequence[Weight], specs: Mapping[str, Spec], width: int | None, said: bool | None
) -> dict[str, bool | None]:
    """How the matrices of fused experts are stored, the same for all of a layer."""
    layers: dict[str, list[Weight]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "experts":
            layers[entry.parent if entry.leaf == "weight" else entry.module].append(entry)
    shown = {path: _layout(path, group, specs, width) for path, group in layers.items() if not _is_llama4(path)}
    everywhere = {seen for seen in shown.values() if seen is not None}
    wrong = [path for path, seen in shown.items() if said is not None and seen == (not said)]
    if wrong:
        word, other = ("in_out", "out_in") if said else ("out_in", "in_out")
        raise PlanError(
            f"lora_extract: the experts of {wrong[0]} do not look stored as experts: {word} says",
            found=listing(f"{entry.name} {entry.spec}" for entry in layers[wrong[0]]),
            hint=f"experts: {other}, or leave it out",
        )
    alike = everywhere.pop() if len(everywhere) == 1 else None
    found: dict[str, bool | None] = {}
    for path, group in layers.items():
        seen = shown.get(path) if shown.get(path) is not None else alike
        known = OUT_IN if _is_llama4(path) else seen if seen is not None else said
        found.update({entry.name: known for entry in group})
    return found


def _is_llama4(path: str) -> bool:
    """Whether experts are those of Llama 4: stored as [in, out], but PEFT takes them for [out, in], because their class
    does not say it."""
    return path.endswith("feed_forward.experts")


def _layout(path: str, group: Sequence[Weight], specs: Mapping[str, Spec], width: int | None) -> bool | None:
    """How the experts of one layer are stored: by their biases, by the width of the model, by each other."""
    routers = [specs.get(f"{path.rpartition('.')[0]}.{word}.weight") for word in ROUTERS]
    width = next((spec.shape[1] for spec in routers if spec is not None and len(spec.shape) == 2), width)
    votes = set()
    parts: dict[str, Weight] = {}
    for entry in group:
        word = entry.word if entry.leaf == "weight" else entry.leaf
        side = "up" if _UP.fullmatch(word) else "down" if _DOWN.fullmatch(word) else ""
        parts.setdefault(side, entry)
        _, first, second = entry.shape
        bias = specs.get(f"{entry.name}_bias")
        if first != second and bias is not None and bias.shape[1:] in ((first,), (second,)):
            votes.add(bias.shape[1:] == (second,))
        elif first != second and side and width in (first, second):
            votes.add((width == first) == (side == "up"))
    if not votes and {"up", "down"} <= parts.keys():
        votes |= _by_each_other(parts["up"].shape, parts["down"].shape)
    return votes.pop() if len(votes) == 1 else None


def _by_each_other(up: tuple[int, ...], down: tuple[int, ...]) -> set[bool]:
    """What gives the experts' inner width must fit what takes it: as it is, or twice as many where two are joined."""
    fits = set()
    for turned in (IN_OUT, OUT_IN):
        (out, inner), (width, narrow) = (shape[1:][:: -1 if turned else 1] for shape in (up, down))
        if inner == width and out in (narrow, 2 * narrow):
            fits.add(turned)
    return fits if len(fits) == 1 else set()
