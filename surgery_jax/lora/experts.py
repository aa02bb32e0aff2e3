"""Experts that a base holds one by one, and an adapter's model in one tensor.

Checkpoints hold `experts.0.gate_proj.weight` and so on. Models that compute with all experts at once fuse them when
they load them: gate above up, experts first. Factors of what is fused, [experts, out, in], are cut into those of each.
Source: transformers 5, `conversion_mapping.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from ..core.specs import Spec
from ..kit.state import State, Value
from ..kit.structure import View
from .targets import Places, Target

__all__ = ["ExpertPart", "factors_of", "fused", "with_fused"]

_FUSED = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
_FIRST = re.compile(r"(.+)\.0\.(gate_proj|down_proj|w1|w2)\.weight")


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """The weight of one expert within a fused parameter: its number, and of how many parts it is which."""

    place: str
    expert: int
    part: int
    parts: int


def fused(names: Collection[str], spec: Callable[[str], Spec | None]) -> dict[str, tuple[Spec, list[ExpertPart]]]:
    """The parameters that a model fuses and the base has not: what they would be, and the weights they consist of."""
    found = {}
    for name in names:
        match = _FIRST.fullmatch(name)
        if match is None:
            continue
        leaf, words = next((leaf, words) for leaf, kinds in _FUSED.items() for words in kinds if match[2] == words[0])
        pieces = list(_pieces(match[1], words, names))
        specs = {spec(piece.place) for piece in pieces}
        one = specs.pop()
        if not specs and one is not None and len(one.shape) == 2 and f"{match[1]}.{leaf}" not in names:
            shape = (len(pieces) // len(words), len(words) * one.shape[0], one.shape[1])
            found[f"{match[1]}.{leaf}"] = Spec(shape, one.dtype), pieces
    return found


def _pieces(module: str, words: tuple[str, ...], names: Collection[str]) -> Iterable[ExpertPart]:
    expert = 0
    while all(f"{module}.{expert}.{word}.weight" in names for word in words):
        for part, word in enumerate(words):
            yield ExpertPart(f"{module}.{expert}.{word}.weight", expert, part, len(words))
        expert += 1


def with_fused(places: Places, made: dict[str, tuple[Spec, list[ExpertPart]]]) -> Places:
    """The base with the parameters that a model makes of others."""
    if not made:
        return places
    return replace(
        places,
        names={*places.names, *made},
        spec=lambda name: made[name][0] if name in made else places.spec(name),
    )


def factors_of(state: State, piece: ExpertPart, target: Target, is_transposed: bool, a: Value, b: Value) -> list[Value]:
    """A and B of one expert's weight, cut from those of the fused parameter; `is_transposed`: A belongs to its rows."""
    rank, out = target.rank, target.b.shape[0]
    rows, inner = (piece.expert * rank, 1, rank), target.a.shape[1]
    columns = (piece.expert, target.many, rank)
    side = inner if is_transposed else out
    length = side // piece.parts
    cut = (piece.part * length, 1, length)
    views = (rows, cut if is_transposed else (0, 1, inner)), ((0, 1, out) if is_transposed else cut, columns)
    return [state.versions.compute(View(view, (False, False)), node) for view, node in zip(views, (a, b), strict=True)]
