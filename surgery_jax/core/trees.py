"""Tensor names laid out as a tree, for `dump` and `inspect`.

Names are split at dots. A segment of digits is an index: in text it is shown as `[3]`, and runs of equal items can be
folded into `[0-11]`; in JSON, siblings that are all indices become a list with null for holes. Any set of names has a
layout:

- Beside words, and at the top, indices come first; in JSON such siblings are a mapping, as is a list of mostly holes.
- A name that is also a prefix of others (`a` beside `a.b`) is a line with text and with children; in JSON the longer
  name stands beside the shorter one under its joined key: `{"a": ..., "a.b": ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["format_number", "render_json", "render_tree"]

# Segments beyond this many stay in one piece: no model nests so deep, and the recursions below need a bound.
MAX_DEPTH = 64
# More null items than this make a list unreadable; the indices of real lists (layers, experts) end in the hundreds.
MAX_HOLES = 1024

_NOTHING = object()


@dataclass(slots=True)
class _Node:
    value: object = _NOTHING
    children: dict[str, _Node] = field(default_factory=dict)
    same: int = 0  # once numbered: the same for equal subtrees


def render_tree(entries: Mapping[str, str], *, fold: bool, root: str | None = None) -> str:
    """The names as a tree drawn with lines, each leaf with its text; no final line break.

    `fold` joins neighbouring list items whose subtrees, with all texts, are equal. `root`, such as an alias, becomes
    one common line above all names.

        >>> print(render_tree({"h.0.w": "shape=[4]", "h.1.w": "shape=[4]", "ln": "shape=[4]"}, fold=True))
        ├── h
        │   └── [0-1]
        │       └── w  shape=[4]
        └── ln  shape=[4]
    """
    top = _grow(entries)
    if fold:
        _number(top, {})
    lines: list[str] = []
    _draw(_groups(top, fold) if root is None else [(_printable(root), top)], "", fold, lines)
    return "\n".join(lines)


def render_json(entries: Mapping[str, object], *, root: str | None = None) -> str:
    """The names as nested JSON on one line with sorted keys; always an object, with the one key `root` if given.

    >>> render_json({"h.0.w": {"shape": [4]}, "h.2.w": {"shape": []}})
    '{"h":[{"w":{"shape":[4]}},null,{"w":{"shape":[]}}]}'
    """
    tree: object = _mapping(_grow(entries))
    return json.dumps(tree if root is None else {root: tree}, separators=(",", ":"), sort_keys=True)


def format_number(x: float) -> str:
    """A number with six significant digits.

    >>> format_number(0.1 + 0.2), format_number(1234567.0)
    ('0.3', '1.23457e+06')
    """
    return f"{x:.6g}"


def _grow(entries: Mapping[str, object]) -> _Node:
    top = _Node()
    for name in sorted(entries):
        node = top
        for segment in name.split(".", MAX_DEPTH - 1):
            child = node.children.get(segment)
            if child is None:
                child = node.children[segment] = _Node()
            node = child
        node.value = entries[name]
    return top


def _number(node: _Node, known: dict[tuple[object, ...], int]) -> int:
    """Number the subtree so that equal ones share a number; each is compared by its children's numbers, hence once."""
    children = sorted((segment, _number(child, known)) for segment, child in node.children.items())
    node.same = known.setdefault((node.value, *children), len(known))
    return node.same


def _indices(segments: Iterable[str]) -> dict[str, int]:
    """The segments that are indices. Where spellings clash (`7` and `07`), only the plain one is, the other a word."""
    found = {word: int(word) for word in segments if word.isdigit() and word.isascii() and len(word) < 10}
    if len(found) > 1 and len(set(found.values())) < len(found):
        found = {word: index for word, index in found.items() if str(index) == word}
    return found


def _groups(node: _Node, fold: bool) -> list[tuple[str, _Node]]:
    """Labels and nodes below a node: indices in order, folded if wanted, then words in the order of the names."""
    found = _indices(node.children)
    words = [(_printable(word), child) for word, child in node.children.items() if word not in found]
    runs: list[tuple[int, int, _Node]] = []
    for index, word in sorted((index, word) for word, index in found.items()):
        child = node.children[word]
        if fold and runs and runs[-1][1] == index - 1 and runs[-1][2].same == child.same:
            runs[-1] = (runs[-1][0], index, child)
        else:
            runs.append((index, index, child))
    return [(f"[{first}]" if first == last else f"[{first}-{last}]", child) for first, last, child in runs] + words


def _draw(groups: list[tuple[str, _Node]], indent: str, fold: bool, lines: list[str]) -> None:
    for at, (label, node) in enumerate(groups, 1):
        branch, below = ("└── ", "    ") if at == len(groups) else ("├── ", "│   ")
        lines.append(f"{indent}{branch}{label}" + (f"  {node.value}" if node.value is not _NOTHING else ""))
        if node.children:
            _draw(_groups(node, fold), indent + below, fold, lines)


def _printable(segment: str) -> str:
    """The segment on one line: what would break the drawing or steer a terminal is escaped."""
    if segment.isprintable():
        return segment
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in segment)


def _mapping(node: _Node) -> dict[str, object]:
    result: dict[str, object] = {}
    pending = list(node.children.items())
    while pending:
        key, child = pending.pop()
        if child.value is _NOTHING:
            result[key] = _list_or_mapping(child)
        else:
            result[key] = child.value
            # A joined key contains a dot, so it is no other segment's key.
            pending.extend((f"{key}.{segment}", grandchild) for segment, grandchild in child.children.items())
    return result


def _list_or_mapping(node: _Node) -> object:
    found = _indices(node.children)
    leaves_or_inner = all(child.value is _NOTHING or not child.children for child in node.children.values())
    length = 1 + max(found.values(), default=0)
    if not leaves_or_inner or len(found) < len(node.children) or length - len(found) > MAX_HOLES:
        return _mapping(node)
    items: list[object] = [None] * length
    for word, index in found.items():
        child = node.children[word]
        items[index] = _list_or_mapping(child) if child.value is _NOTHING else child.value
    return items
