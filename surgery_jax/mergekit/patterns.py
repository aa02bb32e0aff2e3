"""Sets of names as regular expressions that plans can show."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

from .layers import place_of

__all__ = ["pattern_of"]


def pattern_of(names: Collection[str], among: Collection[str]) -> str:
    """A regular expression that of the names `among` matches exactly `names`, which belong to them. It has no groups.

    >>> pattern_of(["l.0.a", "l.1.a", "end"], ["l.0.a", "l.1.a", "l.0.b", "l.1.b", "end"])
    'end|l\\\\.[01]\\\\.a'
    """
    wanted = set(names)
    if len(wanted) == len(among):
        return ".+"
    loose, layers = _sorted_out(wanted)
    _, all_layers = _sorted_out(among)
    parts = [re.escape(name) for name in sorted(loose)]
    by_numbers: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (prefix, rest), seen in sorted(layers.items()):
        by_numbers[prefix, tuple(sorted(seen))].append(rest)
    for (prefix, numbers), rests in sorted(by_numbers.items()):
        there = {rest for (other, rest), all_ in all_layers.items() if other == prefix and all_ & set(numbers)}
        is_all = there == set(rests) and len(rests) > 1
        parts.append(rf"{re.escape(prefix)}\.{_numbers(numbers)}\.{'.+' if is_all else _any(map(re.escape, rests))}")
    return "|".join(parts)


def _sorted_out(names: Iterable[str]) -> tuple[list[str], dict[tuple[str, str], set[int]]]:
    """Names outside of layers, and the numbers of those inside by prefix and rest."""
    loose: list[str] = []
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in names:
        place = place_of(name)
        if place is None or str(place) != name:  # a number with zeros before it
            loose.append(name)
        else:
            layers[place.prefix, place.rest].add(place.number)
    return loose, layers


def _numbers(numbers: Collection[int]) -> str:
    words = [str(number) for number in numbers]
    if len(words) > 1 and all(len(word) == 1 for word in words):
        return f"[{''.join(words)}]"
    return _any(words)


def _any(words: Iterable[str]) -> str:
    found = list(words)
    return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"
