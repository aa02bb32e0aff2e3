"""Many tensor names in a few words: numbers that vary become ranges, `model.layers.{0-15}.mlp.up_proj.weight`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["collapse", "spell_ranges", "spell_runs", "split_numbers"]

# A number of its own, not the 2 of `w2`; one with leading zeros is a word, because ranges would lose the zeros.
_NUMBER = re.compile(r"(?<![A-Za-z0-9])(0|[1-9][0-9]{0,8})(?![A-Za-z0-9])")
_MAX_RUNS = 4  # of one range: more is noise


def collapse(names: Iterable[str]) -> list[str]:
    """Patterns that cover the names, in order of appearance.

    >>> collapse(["h.0.w", "h.1.w", "h.2.w", "h.4.w", "ln.w", "h.7.b"])
    ['h.{0-2,4}.w', 'ln.w', 'h.7.b']
    """
    found: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
    for name in names:
        words, numbers = split_numbers(name)
        found[words].append(numbers)
    return [spell_ranges(words, rows) for words, rows in found.items()]


def split_numbers(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of a name, and the numbers that stand between them.

    >>> split_numbers("h.3.mlp.w2")
    (('h.', '.mlp.w2'), (3,))
    """
    parts = _NUMBER.split(name)
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))


def spell_ranges(words: Sequence[str], rows: Iterable[tuple[int, ...]]) -> str:
    """The words with what the numbers of all rows cover between them."""
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    holes = [str(column[0]) if len(column) == 1 else "{" + spell_runs(column, _MAX_RUNS) + "}" for column in columns]
    return "".join(part for pair in zip(words, [*holes, ""], strict=True) for part in pair)


def spell_runs(numbers: Iterable[int], most: int | None = None) -> str:
    """Whole numbers with neighbours joined; more runs than `most` are only counted.

    >>> spell_runs([3, 4, 5, 9])
    '3-5,9'
    """
    ordered = sorted(set(numbers))
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if most is not None and len(runs) > most:
        return f"{len(ordered)} of {ordered[0]}-{ordered[-1]}"
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
