"""The detailed table of a receipt: every output tensor and where it comes from, every file, input and assertion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..graph.node import Node, Source
from ..graph.roots import Save, Symbolic
from .accounting import Ancestors, account_for
from .rolling import FileDigest, FileFacts

__all__ = ["table_of", "table_text"]

VERSION = 1
MARK = 16  # hexadecimal digits of a mark, which only tells where files differ of which it is known that they do


def table_of(
    symbolic: Symbolic,
    save: Save,
    kind: str,
    digests: Mapping[str, str] | None,
    keys: Mapping[str, str],
    files: Mapping[str, FileFacts],
    inputs: Mapping[str, tuple[FileDigest, tuple[int, ...]]],
    assertions: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The table of one output. `digests` are those of its tensors, of this kind, None where they are left out, and
    `keys` stand for what made them; `inputs` are the digests of files by name, with the offsets of their marks."""
    ancestors = Ancestors()
    named = _names(symbolic)
    tensors = {}
    for name, node in save.tensors:
        facts: dict[str, Any] = {"dtype": node.spec.dtype.name, "shape": list(node.spec.shape)}
        if digests is not None:
            facts |= {"digest": digests[name], "key": keys[name]}
        tensors[name] = facts | {"from": sorted(_named(source, named) for source in ancestors.of(node))}
    return {
        "version": VERSION,
        "digest": kind,
        "tensors": tensors,
        "files": {name: _facts(facts) for name, facts in files.items()},
        "documents": sorted(save.documents),
        "inputs": {
            name: {"marks": [[at, mark[:MARK]] for at, mark in zip(offsets, found.marks, strict=True)]}
            for name, (found, offsets) in inputs.items()
        },
        "assertions": list(assertions),
        "accounting": account_for(symbolic, ancestors).as_json(),
    }


def _facts(facts: FileFacts) -> dict[str, Any]:
    told: dict[str, Any] = {"sha256": facts.sha256, "size": facts.size}
    return told if facts.rest is None else told | {"rest": facts.rest}


def _names(symbolic: Symbolic) -> dict[Node, str]:
    """What stored tensors are called by the first alias that has them."""
    found: dict[Node, str] = {}
    for alias, nodes in symbolic.given.items():
        for name, node in nodes.items():
            found.setdefault(node, f"{alias}::{name}")
    return found


def _named(node: Node, known: Mapping[Node, str]) -> str:
    if node in known:
        return known[node]
    assert isinstance(node.op, Source)
    return f"{node.op.path}::{node.op.name}"


def table_text(table: Mapping[str, Any]) -> bytes:
    """A table as text: JSON, with a line for each tensor and each file."""
    parts = []
    for key, value in table.items():
        if isinstance(value, dict) and key in ("tensors", "files", "inputs"):
            lines = (f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in value.items())
            parts.append(f'"{key}": {{\n' + ",\n".join(lines) + "\n}")
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return ("{" + ",\n".join(parts) + "}\n").encode()
