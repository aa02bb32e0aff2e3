"""Versions of tensors while a plan runs symbolically: the slots of names, and new versions computed from others."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.dtypes import BY_NAME
from ..core.errors import PlanError, SurgeryError, listing
from ..core.specs import Spec
from ..kit.made import Positions
from ..kit.operations import NO_ARITHMETIC, TensorOp
from ..kit.state import Value
from ..kit.structure import Structure, Update, View
from ..language import names as naming
from ..language.names import Reference
from .files import GraphFiles
from .frame import BROKEN, Consequence, Frame
from .names import GraphNames
from .namespace import Binding
from .node import Node, node_of

__all__ = ["GraphVersions"]


class GraphVersions:
    """See `kit.state.Versions` for the promises of the methods."""

    def __init__(self, frame: Frame, files: GraphFiles, names: GraphNames) -> None:
        self.frame, self.files, self.names = frame, files, names

    def read(self, ref: Reference, name: str, reads: int = 1) -> Node:
        return self.view(self.slot(ref.alias, name, reads).node, ref)

    def slot(self, alias: str, name: str, reads: int = 0) -> Binding:
        found = self.files.model(alias).slots.get(name)
        if found is None:
            raise PlanError(f"{self.frame.word}: no tensor {alias}::{name}", where=self.frame.mark)
        if self.frame.word == "assert" and found.node is BROKEN:
            raise Consequence  # nothing can be said of what a failed step would have made
        self.frame.recent.append(name)
        if found.node is not BROKEN and found.node.kind == "read":
            self.frame.met.add(found.node)
        if reads:
            self.frame.note_read(alias, name, found.node)
        return self.frame.space.count(alias, name, reads)

    def create(self, alias: str, name: str, node: Value, reads: int = 0) -> None:
        if self.names.has(alias, name):
            raise PlanError(f"{self.frame.word} destination already exists: {alias}::{name}", where=self.frame.mark)
        if not name:
            raise PlanError(f"{self.frame.word}: a destination has an empty name", where=self.frame.mark)
        self.frame.space.writable(alias).add(name, Binding(node_of(node), reads, 1))
        self.frame.recent.clear()
        self.frame.touched["created"].append(f"{alias}::{name}")

    def rebind(self, alias: str, name: str, node: Value, reads: int = 0) -> None:
        self.slot(alias, name, reads)
        self.frame.space.rebind(alias, name, node_of(node))
        self.frame.recent.clear()
        self.frame.touched["changed"].append(f"{alias}::{name}")

    def drop(self, alias: str, name: str) -> None:
        self.slot(alias, name)
        self.frame.space.writable(alias).drop(name)
        self.frame.touched["deleted"].append(f"{alias}::{name}")

    def spec(self, node: Value) -> Spec:
        if node is BROKEN:
            raise Consequence
        return node_of(node).spec

    def apply(self, op: TensorOp, *versions: Value) -> tuple[Node, ...]:
        operands = tuple(map(node_of, versions))
        if any(operand is BROKEN for operand in operands):
            return (BROKEN,) * op.outputs
        if op.kind == "composed":
            return self._composed(op, operands)
        if op.needs_positions:
            places = Spec(operands[0].spec.shape, BY_NAME["uint64"])
            operands = (*operands, *self.frame.graph.apply(Positions(places), (), self.frame.mark))
        try:
            if op.kind == "template":
                op, operands = op.made(*(operand.spec for operand in operands)), ()  # type: ignore[attr-defined]
            elif hasattr(op, "is_identity") or isinstance(op, Structure):
                op.infer(*(operand.spec for operand in operands))
                source = _passes_through(op, operands)
                if source is not None:
                    return (source,)
        except PlanError as error:
            raise self._told(error) from None
        if op.kind not in NO_ARITHMETIC:
            self.check_plain(*operands)
        try:
            return self.frame.graph.apply(op, operands, self.frame.mark)
        except PlanError as error:
            raise self._told(error) from None

    def _composed(self, op: TensorOp, operands: Sequence[Node]) -> tuple[Node, ...]:
        """What an operation comes to that stands for others."""
        try:
            return tuple(map(node_of, op.compose(self, *operands)))
        except PlanError as error:
            raise self._told(error) if error.where is None else error from None

    def compute(self, op: TensorOp, *versions: Value) -> Node:
        (found,) = self.apply(op, *versions)
        return found

    def _told(self, error: PlanError) -> SurgeryError:
        """An error of an operation with the step and the tensors that it works on."""
        error.problem = ": ".join([self.frame.word, *self._recently_read(), error.problem])
        return error.located(self.frame.mark)

    def check_plain(self, *nodes: Value) -> None:
        found = next((node.quantised for node in map(node_of, nodes) if node.quantised is not None), None)
        if found is not None and not self.frame.raw:
            raise PlanError(
                f"{self.frame.word}: {found.name} is quantised: its numbers mean nothing without {found.companion}",
                where=self.frame.mark,
                expected="a tensor whose numbers are its values",
                found=str(found.entry.spec),
                hint="dequantise the checkpoint first; with raw: true this step computes with the stored numbers",
            )

    def _recently_read(self) -> list[str]:
        """The tensors that the step is working on, for messages."""
        names = list(dict.fromkeys(self.frame.recent))
        return [" and ".join(names) if len(names) <= 3 else listing(names, 3)] if names else []

    def view(self, node: Value, ref: Reference) -> Node:
        if ref.slice is None or node is BROKEN:
            return node_of(node)
        return self.apply(self._view(self.spec(node), ref), node)[0]

    def store(self, base: Value, ref: Reference, value: Value) -> Node:
        if ref.slice is None or base is BROKEN or value is BROKEN:
            return node_of(value)
        view = self._view(self.spec(base), ref)
        if view.is_identity(self.spec(base)):
            return node_of(value)
        return self.apply(Update(view), base, value)[0]

    def _view(self, spec: Spec, ref: Reference) -> View:
        assert ref.slice is not None
        try:
            axes, _, removed = naming.resolve_slice(ref.slice, spec.shape)
            view = View(axes, removed)
            if spec.dtype.bits % 8 and not view.is_identity(spec):
                raise PlanError(f"{spec.dtype} is packed below a byte and cannot be sliced")
        except PlanError as error:
            error.problem = f"{self.frame.word}: {ref.text}: {error.problem}"
            error.found = error.found or str(spec)
            raise error.located(ref.mark) from None
        return view


def _passes_through(op: TensorOp, operands: Sequence[Node]) -> Node | None:
    """The operand that an operation returns unchanged, if it does."""
    if isinstance(op, Structure) and op.passes is not None:
        return operands[op.passes]
    identity = getattr(op, "is_identity", None)
    if identity is not None and identity(operands[0].spec):
        return operands[0]
    return None
