"""One growing document from several plan files and overrides."""

from __future__ import annotations

import re
from itertools import zip_longest

from ..core.errors import Mark, PlanError
from .interpolate import escape
from .nodes import Mapping, Node, Scalar, Sequence

__all__ = ["is_override", "merge", "merged", "nested", "parse_path"]

# Longer lists or deeper paths are a slip of the finger; the gap before an index is filled with nulls.
_MAX_INDEX = 100_000
_MAX_STEPS = 100

_PATH = re.compile(r"[^ .\[\]]+(?:\.[^ .\[\]]+|\[[0-9]+\])*")
_STEP = re.compile(r"\[([0-9]+)\]|([^ .\[\]]+)")


def merge(earlier: Mapping, later: Mapping) -> Mapping:
    """`earlier` with everything that `later` says.

    Mappings are merged by key, lists by index; any other later value replaces. A null replaces in a mapping and keeps
    the earlier item in a list. Each value keeps the mark of the file it came from.
    """
    if earlier.expand is not None and later.expand is None:
        later = escape(later)  # which is resolved already
    entries = dict(earlier.entries)
    keys = dict(earlier.keys)
    for key, value in later.entries.items():
        before = entries.get(key)
        entries[key] = value if before is None else merged(before, value)
        if entries[key] is value:
            keys[key] = later.keys[key]
    return Mapping(entries, keys, earlier.mark, earlier.fault or later.fault, earlier.expand or later.expand)


def merged(earlier: Node, later: Node) -> Node:
    """One value after another, by the rules of `merge`."""
    if isinstance(earlier, Mapping) and isinstance(later, Mapping):
        return merge(earlier, later)
    if isinstance(earlier, Sequence) and isinstance(later, Sequence):
        pairs = zip_longest(earlier.items, later.items)
        return Sequence(tuple(_item(before, after) for before, after in pairs), earlier.mark)
    return later


def _item(earlier: Node | None, later: Node | None) -> Node:
    if earlier is None or later is None:
        found = later if earlier is None else earlier
        assert found is not None  # zip_longest ends with the longer list
        return found
    if isinstance(later, Scalar) and later.value is None:
        return earlier
    return merged(earlier, later)


def is_override(token: str) -> bool:
    """Whether the token is `key.path=value`."""
    path, equals, _ = token.partition("=")
    return bool(equals) and _PATH.fullmatch(path) is not None


def parse_path(token: str) -> tuple[str | int, ...]:
    """The keys and list indices on the left of `key[0].key=value`.

    Raises:
        PlanError: no such path, or an absurd one.
    """
    path = token.partition("=")[0]
    if _PATH.fullmatch(path) is None:
        raise PlanError(
            f"invalid override {token!r}: {path!r} is not a path",
            expected="keys separated by dots, list items as [0], beginning with a key",
            hint="transforms[0].scale_.by=3",
        )
    words = _STEP.findall(path)
    if len(words) > _MAX_STEPS or any(len(index) > 6 or int(index or 0) > _MAX_INDEX for index, _ in words):
        raise PlanError(
            f"invalid override {token[:80]!r}",
            expected=f"at most {_MAX_STEPS} keys, list items up to {_MAX_INDEX}",
        )
    return tuple(int(index) if index else key for index, key in words)


def nested(path: tuple[str | int, ...], value: Node, mark: Mark) -> Node:
    """The document that has `value` at `path` and nothing else: what an override merges."""
    for step in reversed(path):
        if isinstance(step, int):
            value = Sequence((*(Scalar(None, mark) for _ in range(step)), value), mark)
        else:
            value = Mapping({step: value}, {step: mark}, mark)
    return value
