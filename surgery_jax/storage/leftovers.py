"""What of a file is not read, in words: it is told, for nothing may be lost without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..core.dtypes import BY_NAME
from ..core.errors import listing
from ..core.patterns import collapse

__all__ = ["foreign_dtype", "in_words"]

_MANY = 1000  # names of one kind that are looked at for what they have in common
_FEW = 3  # names with one parent that are written out


def in_words(others: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """One sentence with at most a dozen names about values that are no tensors; `others` are names and what they are.

    >>> in_words([("step", "a number"), ("h.0._extra_state", "None"), ("h.1._extra_state", "None")])
    ('no tensors: step (a number), h.{0-1}._extra_state (None)',)
    """
    kinds: dict[str, list[str]] = {}
    for name, kind in others:
        kinds.setdefault(kind, []).append(name)
    words = [f"{name[:120]} ({kind})" for kind, names in kinds.items() for name in _folded(names[:_MANY])]
    more = sum(max(len(names) - _MANY, 0) for names in kinds.values())
    if not words:
        return ()
    return (f"no tensors: {listing(words, 12)}" + (f", and {more} like these" if more else ""),)


def _folded(names: Sequence[str]) -> Iterator[str]:
    """Patterns for the names: equal numbers are folded, and many names with one parent are `parent.*`."""
    parents: dict[str, list[str]] = {}
    for name in collapse(names):
        parents.setdefault(name.rpartition(".")[0], []).append(name)
    for parent, below in parents.items():
        yield from below if len(below) <= _FEW or not parent else [f"{parent}.*"]


def foreign_dtype(word: str) -> str | None:
    """The name of a dtype of NumPy or JAX that `word` spells, although there are no tensors of it here; None if it
    spells none."""
    import ml_dtypes
    import numpy as np

    try:
        name = np.dtype(getattr(ml_dtypes, word, word)).name
    except (TypeError, ValueError, SyntaxError):
        return None
    return None if name in BY_NAME and BY_NAME[name].array else name
