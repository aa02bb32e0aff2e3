"""Layers that are special by their position: what `config.json` says of them for layers in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..core.errors import Mark, PlanError

__all__ = ["Layers", "check_kinds", "lists_of", "numbers_of"]

Layers: TypeAlias = Sequence[tuple[Mapping[str, Any], int]]  # of each layer: its configuration, and its number there


@dataclass(frozen=True)
class Placing:
    """Numbers of a configuration that say which layers are special.

    keys: what they are called. has: whether a layer is special. candidates: all numbers that make a difference for so
    many layers. lists: what says the same layer by layer, and counts if it is there; needs: what must be on.
    """

    keys: tuple[str, ...]
    has: Callable[[tuple[int, ...], int], bool]
    candidates: Callable[[int], Iterator[tuple[int, ...]]]
    lists: tuple[str, ...] = ()
    needs: str = ""

    def applies(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration says it so."""
        said = all(isinstance(config.get(key), int) and not isinstance(config[key], bool) for key in self.keys)
        return (
            said and not any(config.get(key) for key in self.lists) and (not self.needs or bool(config.get(self.needs)))
        )

    def of(self, config: Mapping[str, Any], number: int) -> bool | None:
        """Whether a layer is special there; None if nothing says."""
        return self.has(tuple(config[key] for key in self.keys), number) if self.applies(config) else None


def _every(key: str, *lists: str) -> Placing:
    """Every so many layers the last one is special."""
    return Placing((key,), lambda n, i: n[0] > 0 and (i + 1) % n[0] == 0, lambda count: _ones(1, count + 2), lists)


def _first(key: str, *lists: str, needs: str = "") -> Placing:
    """So many layers at the beginning are special."""
    return Placing((key,), lambda n, i: i < n[0], lambda count: _ones(0, count + 1), lists, needs)


def _period(word: str) -> Placing:
    """One in every period is special: that with the offset."""
    return Placing((f"{word}_period", f"{word}_offset"), lambda n, i: n[0] > 0 and i % n[0] == n[1], _pairs)


def _ones(first: int, stop: int) -> Iterator[tuple[int]]:
    return ((number,) for number in range(first, stop))


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((period, offset) for period in range(1, count + 2) for offset in range(period))


RULES = (
    _period("attn_layer"),
    _period("expert_layer"),
    _every("decoder_sparse_step"),
    _every("interleave_moe_layer_step", "moe_layers"),
    _every("full_attention_interval", "layer_types"),
    _every("sliding_window_pattern", "layer_types"),
    _every("no_rope_layer_interval", "no_rope_layers"),
    _first("first_k_dense_replace", "mlp_layer_types"),
    _first("num_dense_layers", "mlp_layer_types"),
    _first("max_window_layers", "layer_types", needs="use_sliding_window"),
)


def numbers_of(config: Mapping[str, Any], layers: Layers, where: Mark, *, strict: bool) -> dict[str, int]:
    """What must be different in a configuration so that it says of the layers what theirs say, as far as there are
    such numbers, or if it is `strict` altogether.

    Raises:
        PlanError: there are no such numbers.
    """
    found: dict[str, int] = {}
    for rule in RULES:
        wanted = [rule.of(own, number) for own, number in layers]
        if not rule.applies(config) or None in wanted or wanted == [rule.of(config, i) for i in range(len(wanted))]:
            continue
        numbers = next(
            (n for n in rule.candidates(len(wanted)) if [rule.has(n, i) for i in range(len(wanted))] == wanted), None
        )
        if numbers is not None:
            found |= dict(zip(rule.keys, numbers, strict=True))
        elif strict:
            special = ", ".join(str(i) for i, one in enumerate(wanted) if one)
            raise PlanError(
                f"config.json cannot say which layers are special: {' and '.join(rule.keys)} have no values for it",
                where=where,
                found=f"layers {special} of the output",
                hint="choose layer ranges that keep the distances of these layers, or --allow-crimes",
            )
    return found


def lists_of(config: Mapping[str, Any], layers: Layers, count: int) -> dict[str, list[Any]]:
    """Lists with an entry for each of `count` layers, and lists of numbers of layers, for layers in another order."""
    found: dict[str, list[Any]] = {}
    for key, value in config.items():
        if not isinstance(value, list) or not value:
            continue
        lists = [own[key] if isinstance(own.get(key), list) else value for own, _ in layers]
        if len(value) == count:
            found[key] = [
                (its if number < len(its) else value)[number] for its, (_, number) in zip(lists, layers, strict=True)
            ]
        elif key.endswith(("_layers", "_indices")) and all(isinstance(n, int) and 0 <= n < count for n in value):
            found[key] = [out for out, (_, number) in enumerate(layers) if number in lists[out]]
    return found


def check_kinds(
    config: Mapping[str, Any], layers: Layers, own: Sequence[object], made: Sequence[object], where: Mark
) -> None:
    """That layers of several kinds, which their tensors tell, are where a configuration has them: `own` are the kinds
    of its own layers, `made` those of the layers in another order. Kinds that nothing in the configuration tells from
    each other go by position.

    Raises:
        PlanError: a layer is where one of another kind is expected.
    """
    labels = [_label(config, number, len(own)) for number in range(len(own))]
    new = [_label(its, number, len(own)) for its, number in layers]
    kinds: dict[str, list[object]] = {}
    for label, kind in (*zip(labels, own, strict=True), *zip(new, made, strict=True)):
        seen = kinds.setdefault(label, [])
        seen += [] if kind in seen else [kind]
    for number, (label, kind) in enumerate(zip(new, made, strict=True)):
        if len(kinds[label]) > 1 and kind != own[min(number, len(own) - 1)]:
            raise PlanError(
                f"layer {number} of the output has other tensors than config.json asks for there",
                where=where,
                found=f"layer {layers[number][1]} of its model, and nothing in config.json that tells the two apart",
                hint="choose layer ranges that keep layers of each kind at their places, or --allow-crimes",
            )


def _label(config: Mapping[str, Any], number: int, count: int) -> str:
    """All that a configuration says of one layer."""
    said: list[tuple[str, object]] = [(str(rule.keys), rule.of(config, number)) for rule in RULES]
    for key, value in sorted(config.items()):
        if isinstance(value, list) and len(value) == count > number:
            said.append((key, value[number]))
        elif isinstance(value, list) and key.endswith(("_layers", "_indices")):
            said.append((key, number in value))
    return repr(said)
