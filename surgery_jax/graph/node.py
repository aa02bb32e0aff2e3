"""Nodes of the graph: immutable versions of tensors, shared when they are the same."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, cast

from ..core.errors import PlanError
from ..core.exact import exact
from ..core.quantised import can_be_quantised
from ..core.specs import Spec
from ..kit.operations import TensorOp
from ..kit.state import Value

__all__ = ["Graph", "Node", "Source", "node_of"]

MAX_BYTES = 2**63 - 1  # of a tensor: no file is longer


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A stored tensor: the checkpoint's key, the name there, the storage layer's entry (opaque here), the name of its
    scales if it is quantised, and the path by which the plan names the checkpoint: another process has it too.
    """

    checkpoint: Hashable
    name: str
    entry: Any
    companion: str = ""
    path: str = ""


class Node:
    """One version of a tensor: a stored tensor, or result number `index` of an operation on other versions.

    `kind` is `read` for stored tensors, else that of the operation; `origin` is the plan position that made it first.
    `quantised` is the stored tensor whose numbers these are, wherever they were moved to, if they mean something only
    with its companion. Nodes are compared by identity; `Graph` makes the same one once.
    """

    __slots__ = ("index", "kind", "number", "op", "operands", "origin", "quantised", "spec")

    def __init__(
        self, number: int, op: TensorOp | Source, operands: tuple[Node, ...], index: int, spec: Spec, origin: Any
    ) -> None:
        self.number = number
        self.op = op
        self.kind = "read" if isinstance(op, Source) else op.kind
        self.operands = operands
        self.index = index
        self.spec = spec
        self.origin = origin
        self.quantised = self._quantised()

    def _quantised(self) -> Source | None:
        if isinstance(self.op, Source):
            return self.op if self.op.companion else None
        if not can_be_quantised(self.spec.dtype):
            return None
        from_ = (operand.quantised for operand in self.operands if operand.spec.dtype is self.spec.dtype)
        return next((source for source in from_ if source is not None), None)

    def __repr__(self) -> str:
        what = self.op.name if isinstance(self.op, Source) else type(self.op).__name__
        return f"<{self.number} {what}({', '.join(str(o.number) for o in self.operands)}) {self.spec}>"


def node_of(version: Value) -> Node:
    """What a step holds as a version, of which it knows no more than shape and dtype."""
    return cast(Node, version)


class Graph:
    """All nodes of a plan, or of several plans whose work is shared. Operations that are the same to the last bit of
    their numbers, on the same operands, are one node, and so is a stored tensor, however often it is read.

    `needs_whole`: whether some operation is not elementwise, or a stored tensor must be decoded.
    """

    def __init__(self) -> None:
        self.size = 0
        self.needs_whole = False
        self._known: dict[Any, tuple[Node, ...]] = {}
        self._reads: dict[Any, Node] = {}
        self._keys: dict[int, tuple[TensorOp, Hashable]] = {}  # by identity: one operation makes many nodes

    def read(self, source: Source, spec: Spec, origin: Any) -> Node:
        """A stored tensor; the key of a checkpoint must always stand for the same headers."""
        key = (source.checkpoint, source.name, spec)
        found = self._reads.get(key)
        if found is None:
            self.size += 1
            found = self._reads[key] = Node(self.size, source, (), 0, spec, origin)
        return found

    def apply(self, op: TensorOp, operands: tuple[Node, ...], origin: Any) -> tuple[Node, ...]:
        """The results of an operation.

        Raises:
            PlanError: its shape-and-dtype rule refuses the operands.
        """
        if id(op) not in self._keys:
            self._keys[id(op)] = op, exact(op)
        key = (self._keys[id(op)][1], tuple(operand.number for operand in operands))
        known = self._known.get(key)
        if known is not None:
            return known
        if op.kind not in ("elementwise", "check", "make"):
            self.needs_whole = True
        specs = op.infer(*(operand.spec for operand in operands))
        for spec in specs:
            if spec.nbytes > MAX_BYTES:
                raise PlanError("larger than any file can be", expected=f"at most {MAX_BYTES} bytes", found=str(spec))
        made = []
        for index, spec in enumerate(specs):
            self.size += 1
            made.append(Node(self.size, op, operands, index, spec, origin))
        self._known[key] = tuple(made)
        return tuple(made)
