"""Plans of which some versions are stored already, so that they need not be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .node import Graph, Node
from .roots import Symbolic

__all__ = ["with_stored"]


def with_stored(
    symbolic: Symbolic, graph: Graph, stored: Mapping[Node, Node], identities: Mapping[str, Any]
) -> Symbolic:
    """The same demands, saves, checks and sinks in their order, where these versions are read instead of made; what is
    made of them is made of what is read. `identities` are those of the files that hold them."""
    known = dict(stored)

    def of(node: Node) -> Node:
        stack = [node]
        while stack:  # without recursion: plans can be long
            current = stack[-1]
            missing = [operand for operand in current.operands if operand not in known]
            if missing and current not in known:
                stack += missing
                continue
            stack.pop()
            if current not in known:
                operands = tuple(known[operand] for operand in current.operands)
                if operands == current.operands:
                    known[current] = current
                else:
                    known[current] = graph.apply(current.op, operands, current.origin)[current.index]  # type: ignore[arg-type]
        return known[node]

    return replace(
        symbolic,
        saves=[
            replace(save, tensors=tuple((name, of(node)) for name, node in save.tensors)) for save in symbolic.saves
        ],
        checks=[replace(check, node=of(check.node)) for check in symbolic.checks],
        sinks=[replace(sink, node=of(sink.node)) for sink in symbolic.sinks],
        identities={**symbolic.identities, **identities},
    )
