"""`einsum`: sums of products over named axes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit import base
from ..kit.base import SUMMED, BoundStep, TensorOp, text
from ..kit.forms import Several
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_arrays
from ..kit.state import State

_EQUATION = re.compile(r"([A-Za-z]*(?:,[A-Za-z]*)*)->([A-Za-z]*)")


class _OneOrMore(Several):
    """As for several operands, but `and` may be left out."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        doc = "templates of the other operands, a list of references, may be sliced"
        self.fields["and"] = ("and", base.node(doc, None, kind="list of references").metadata["field"])

    def build(self, step: BoundStep, state: State) -> None:
        if "and" in step.refs:
            super().build(step, state)
            return
        source = state.names.reference(step.refs["from"], key="from")
        dest = state.names.reference(step.refs["to"], key="to", slices=False)
        pairs = state.names.pairs(source, dest)
        state.names.expect_new(dest.alias, [new for _, new in pairs])
        for name, new in pairs:
            operand = state.versions.read(source, name)
            assert isinstance(step.thing, TensorOp)
            state.versions.create(dest.alias, new, state.versions.compute(step.thing, operand))
            state.speech.tell(f"{self.word}: {name} -> {new}")


@dataclass(frozen=True)
class Einsum(TensorOp):
    """Sum products over the axes that the right side of an equation leaves out, as numpy.einsum does.

    all: equal dtypes, as many axes as the equation has letters for them -> the axes of the right side. Floats narrower
    than 32 bits are multiplied and summed in float32 and rounded once; integers wrap.
    """

    kind = "whole"
    varies = SUMMED
    spellings = (_OneOrMore("einsum"),)
    examples = (
        "einsum: { from: '(.+)\\.lora_B', and: ['\\1.lora_A'], to: '\\1.delta', equation: 'o r, r i -> o i' }",
        "einsum: { from: heads, to: total, equation: 'h i j -> i j' }",
    )

    equation: str = text("letters of the axes of every operand -> letters of the result")

    def __post_init__(self) -> None:
        found = _EQUATION.fullmatch(self._packed)
        if found is None or len(set(found[2])) < len(found[2]) or not set(found[2]) <= set(found[1]):
            raise PlanError(
                "not an equation",
                expected="a letter for every axis, each at most once on the right, such as 'o r, r i -> o i'",
                found=repr(self.equation),
            )

    @property
    def _packed(self) -> str:
        return re.sub(r"\s", "", self.equation)

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        left, right = self._packed.split("->")
        operands = left.split(",")
        if len(operands) != len(specs):
            raise PlanError("another number of operands", expected=str(len(operands)), found=str(len(specs)))
        lengths: dict[str, int] = {}
        for letters, spec in zip(operands, specs, strict=True):
            check_arrays(spec)
            if spec.dtype is not specs[0].dtype:
                raise PlanError("dtypes differ", expected=str(specs[0]), found=str(spec), hint="cast one of them first")
            if len(letters) != len(spec.shape):
                raise PlanError(f"{letters!r} has another number of axes", expected=str(len(letters)), found=str(spec))
            for letter, length in zip(letters, spec.shape, strict=True):
                if lengths.setdefault(letter, length) != length:
                    raise PlanError(f"axis {letter} has two lengths", found=f"{lengths[letter]} and {length}")
        if specs[0].dtype.kind == "b":
            raise PlanError("booleans cannot be multiplied and summed", found=str(specs[0]))
        return (Spec(tuple(lengths[letter] for letter in right), specs[0].dtype),)

    def workspace_bytes(self, *specs: Spec) -> int:
        return sum(spec.size * max(spec.dtype.itemsize, 4) for spec in specs)

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        return k.narrow(k.einsum(self._packed, *map(k.widen, arrays)), arrays[0])
