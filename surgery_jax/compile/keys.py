"""Keys of what is computed: the same in every process and in every run of the same plan on the same inputs.

A key covers operations, with their fields and numbers to the last bit, and the stored tensors that these come from: the
path of the checkpoint as the plan names it, name, shape and dtype. It covers neither what the files of a checkpoint
hold nor which program computes: who compares keys of different runs compares `Symbolic.identities` and the versions of
the program too. A tensor that is drawn without a seed has another key in every run, as it has other elements.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.digests import digest, encoded
from ..graph.node import Node, Source
from .program import Component

__all__ = ["ComputationKeys", "stored_key"]


def stored_key(source: Source) -> bytes:
    """What stands for a stored tensor in every process: links may lead each of them elsewhere."""
    return encoded(("stored", source.path or source.checkpoint, source.name))


class ComputationKeys:
    """The keys of nodes and of components of one graph, each found once. `stored` gives what stands for a stored
    tensor."""

    def __init__(self, stored: Callable[[Source], bytes] = stored_key) -> None:
        self._stored = stored
        self._nodes: dict[Node, bytes] = {}
        self._ops: dict[int, tuple[object, bytes]] = {}  # by identity: one operation makes many nodes
        self._specs: dict[tuple[tuple[int, ...], str], bytes] = {}

    def of(self, node: Node) -> bytes:
        """The key of one version of a tensor: of its elements, wherever they are written."""
        found = self._nodes.get(node)
        if found is not None:
            return found
        stack = [node]
        while stack:  # without recursion: plans can be long
            current = stack[-1]
            missing = [operand for operand in current.operands if operand not in self._nodes]
            if missing:
                stack += missing
                continue
            stack.pop()
            if current not in self._nodes:
                self._nodes[current] = self._key(current)
        return self._nodes[node]

    def of_component(self, component: Component) -> bytes:
        """The key of all that leaves a component: values that are written, looked at or checked."""
        leaving = [
            digest(self.of(output.node), encoded(tuple(sorted(sink.wants for sink in output.sinks))))
            for output in component.outputs
            if output.node is not None
        ]
        checked = [self.of(check.node) for _, checks in component.checks for check in checks]
        return digest(b"component", *sorted(leaving), b"checked", *sorted(checked))

    def _key(self, node: Node) -> bytes:
        if isinstance(node.op, Source):
            return digest(self._stored(node.op), self._spec(node))
        known = self._ops.get(id(node.op))
        if known is None:
            known = self._ops[id(node.op)] = node.op, encoded(node.op)
        return digest(
            known[1], b"%d" % node.index, self._spec(node), *(self._nodes[operand] for operand in node.operands)
        )

    def _spec(self, node: Node) -> bytes:
        key = node.spec.shape, node.spec.dtype.name
        found = self._specs.get(key)
        if found is None:
            found = self._specs[key] = encoded(key)
        return found
