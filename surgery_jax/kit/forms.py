"""The spellings of tensor operations: which reference keys a step has and what they do to the namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.dtypes import DType
from ..core.errors import PlanError
from ..core.specs import Spec
from ..language.document import Sequence
from . import base
from .base import BoundStep, Field, TensorOp

if TYPE_CHECKING:
    from .state import State

__all__ = ["Accumulate", "Create", "Form", "InPlace", "New", "Several", "Ternary", "reference_field"]


def reference_field(doc: str, key: str, default: Any = base.REQUIRED) -> tuple[str, Field]:
    """The field of a reference, as a spelling has it."""
    return key, base.reference(doc, default).metadata["field"]


def _sliced(name: str, ref: Any) -> str:
    return name if ref.slice is None else f"{name}::{ref.text.rsplit('::', 1)[-1]}"


class Form:
    """One spelling: a plan word, its reference keys, and how its operands and destinations are found.

    `selects`: the step works on all tensors that its first reference matches, so it has the key `where`.
    """

    selects = True

    def __init__(self, word: str, *, renamed: dict[str, str] | None = None) -> None:
        self.word = word
        self.renamed = renamed or {}
        self.fields: dict[str, tuple[str, Field]] = {}

    def own_fields(self, op: type[TensorOp]) -> dict[str, tuple[str, Field]]:
        """The operation's own keys as this spelling writes them."""
        declared = base.fields_of(op)
        return {self.renamed.get(key, key): entry for key, entry in declared.items()}

    def build(self, step: BoundStep, state: State) -> None:
        """Find operands, compute, and bind the results."""
        raise NotImplementedError

    def contributes(self, step: BoundStep, state: State) -> str | None:
        """The alias written to."""
        key = "to" if "to" in step.refs else "target"
        return state.names.reference(step.refs[key], key=key).alias


class New(Form):
    """`from`, `to`: a new tensor for every match of `from`."""

    def __init__(self, word: str, **options: Any) -> None:
        super().__init__(word, **options)
        self.fields = {
            "from": reference_field("tensors to read, may be sliced", "from"),
            "to": reference_field("names of the results, must be new", "to"),
        }

    def build(self, step: BoundStep, state: State) -> None:
        """Compute every pair."""
        assert isinstance(step.thing, TensorOp)
        source = state.names.reference(step.refs["from"], key="from")
        dest = state.names.reference(step.refs["to"], key="to", slices=False)
        pairs = state.names.pairs(source, dest)
        state.names.expect_new(dest.alias, [name for _, name in pairs])
        for name, new in pairs:
            operand = state.versions.read(source, name)
            state.versions.create(dest.alias, new, state.versions.compute(step.thing.named(new), operand))
            state.speech.tell(f"{self.word}: {_sliced(name, source)} -> {new}")


class InPlace(Form):
    """`target`: every match gets a new version; with a slice only that part of it changes."""

    def __init__(self, word: str, *, slices: bool = True, **options: Any) -> None:
        super().__init__(word, **options)
        self.slices = slices
        self.fields = {"target": reference_field("tensors to change" + (", may be sliced" if slices else ""), "target")}

    def build(self, step: BoundStep, state: State) -> None:
        """Compute every match."""
        assert isinstance(step.thing, TensorOp)
        target = state.names.reference(step.refs["target"], key="target", slices=self.slices)
        for name in state.names.select(target):
            before = state.versions.slot(target.alias, name, reads=1).node
            value = state.versions.compute(step.thing.named(name), state.versions.view(before, target))
            if target.slice is not None:
                self._check_keeps(state.versions.spec(before).dtype, state.versions.spec(value).dtype, name)
            state.versions.rebind(target.alias, name, state.versions.store(before, target, value))
            state.speech.tell(f"{self.word}: {_sliced(name, target)}")

    def _check_keeps(self, before: DType, value: DType, name: str) -> None:
        if value is not before:
            raise PlanError(
                f"{self.word}: a slice of {name} cannot change its dtype", expected=str(before), found=str(value)
            )


class Accumulate(Form):
    """`from`, `to`: the existing `to` becomes `to` combined with `from`."""

    def __init__(self, word: str, **options: Any) -> None:
        super().__init__(word, **options)
        self.fields = {
            "from": reference_field("tensors to read, may be sliced", "from"),
            "to": reference_field("existing tensors that change, may be sliced", "to"),
        }

    def build(self, step: BoundStep, state: State) -> None:
        """Compute every pair."""
        assert isinstance(step.thing, TensorOp)
        source = state.names.reference(step.refs["from"], key="from")
        dest = state.names.reference(step.refs["to"], key="to")
        pairs = state.names.pairs(source, dest)
        state.names.expect_present(dest.alias, [name for _, name in pairs])
        for name, changed in pairs:
            operand = state.versions.read(source, name)
            before = state.versions.slot(dest.alias, changed, reads=2).node
            value = state.versions.compute(step.thing, state.versions.view(before, dest), operand)
            state.versions.rebind(dest.alias, changed, state.versions.store(before, dest, value))
            state.speech.tell(f"{self.word}: {_sliced(name, source)} -> {_sliced(changed, dest)}")


class Ternary(Form):
    """`from_a`, `from_b`, `to`: two operands; `to` exists and keeps its identity, or is new."""

    def __init__(self, word: str, *, new: bool = False, **options: Any) -> None:
        super().__init__(word, **options)
        self.new = new
        self.fields = {
            "from_a": reference_field("first operands, may be sliced", "from_a"),
            "from_b": reference_field("template of the second operands, may be sliced", "from_b"),
            "to": reference_field(
                "names of the results, " + ("must be new" if new else "must exist, may be sliced"), "to"
            ),
        }

    def build(self, step: BoundStep, state: State) -> None:
        """Compute every triple."""
        assert isinstance(step.thing, TensorOp)
        first = state.names.reference(step.refs["from_a"], key="from_a")
        second = state.names.reference(step.refs["from_b"], key="from_b")
        dest = state.names.reference(step.refs["to"], key="to", slices=not self.new)
        triples = state.names.pairs(first, second, dest)
        (state.names.expect_new if self.new else state.names.expect_present)(
            dest.alias, [names[2] for names in triples]
        )
        state.names.expect_present(second.alias, [names[1] for names in triples], kind="from_b")
        for a, b, name in triples:
            left = state.versions.read(first, a)
            right = state.versions.read(second, b, reads=2)
            value = state.versions.compute(step.thing, left, right)
            if self.new:
                state.versions.create(dest.alias, name, value)
            else:
                before = state.versions.slot(dest.alias, name, reads=2).node
                self._check_fits(state.versions.view(before, dest).spec, value.spec, _sliced(name, dest))
                state.versions.rebind(dest.alias, name, state.versions.store(before, dest, value))
            state.speech.tell(f"{self.word}: {_sliced(a, first)}, {_sliced(b, second)} -> {_sliced(name, dest)}")

    def _check_fits(self, there: Spec | None, value: Spec | None, name: str) -> None:
        """What exists keeps its shape and dtype; None: an earlier step that failed would have made it."""
        if there is not None and value is not None and there != value:
            raise PlanError(
                f"{self.word}: {name} has another {'shape' if there.shape != value.shape else 'dtype'} than the result",
                expected=str(there),
                found=str(value),
                hint="slice, reshape or cast the operands first, or copy one to a new name and write there",
            )


class Several(Form):
    """`from`, `and`, `to`: any number of operands; `to` is new."""

    def __init__(self, word: str, **options: Any) -> None:
        super().__init__(word, **options)
        doc = "templates of the other operands, a list of references, may be sliced"
        self.fields = {
            "from": reference_field("first operands, may be sliced", "from"),
            "and": ("and", base.node(doc, kind="list of references").metadata["field"]),
            "to": reference_field("names of the results, must be new", "to"),
        }

    def build(self, step: BoundStep, state: State) -> None:
        """Compute every match of the first operand with the others that belong to it."""
        assert isinstance(step.thing, TensorOp)
        others = step.refs["and"]
        if not isinstance(others, Sequence) or not others.items:
            raise PlanError(
                f"{self.word}.and: not a list of references", where=others.mark, expected="[ 'a::\\1', 'b::\\1' ]"
            )
        refs = [state.names.reference(step.refs["from"], key="from")]
        refs += [state.names.reference(item, key="and") for item in others.items]
        dest = state.names.reference(step.refs["to"], key="to", slices=False)
        rows = state.names.pairs(refs[0], *refs[1:], dest)
        state.names.expect_new(dest.alias, [row[-1] for row in rows])
        for ref, found in zip(refs[1:], list(zip(*rows, strict=True))[1:-1], strict=True):
            state.names.expect_present(ref.alias, found, kind="and")
        for *names, new in rows:
            operands = [
                state.versions.read(ref, name, reads=1 if ref is refs[0] else 2)
                for ref, name in zip(refs, names, strict=True)
            ]
            state.versions.create(dest.alias, new, state.versions.compute(step.thing, *operands))
            state.speech.tell(f"{self.word}: {', '.join(map(_sliced, names, refs))} -> {new}")


class Create(Form):
    """`target`: one new tensor of a literal name."""

    selects = False

    def __init__(self, word: str, **options: Any) -> None:
        super().__init__(word, **options)
        self.fields = {"target": reference_field("literal name of the new tensor", "target")}

    def build(self, step: BoundStep, state: State) -> None:
        """Make the tensor."""
        assert isinstance(step.thing, TensorOp)
        target = state.names.reference(step.refs["target"], key="target", slices=False, literal=True)
        assert isinstance(target.expr, str)
        state.names.expect_new(target.alias, [target.expr])
        state.versions.create(target.alias, target.expr, state.versions.compute(step.thing))
        state.speech.tell(f"{self.word}: {target.expr}")
