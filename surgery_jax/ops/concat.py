"""`concat`: join along an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit import base
from ..kit.base import BoundStep, integer
from ..kit.forms import Form
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_arrays, check_axis
from ..kit.state import State
from ..kit.structure import Run, Structure, worthwhile
from ..language.document import Node, Sequence


class _Join(Form):
    """`from` (a list), `to`: one new tensor."""

    selects = False

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.fields = {
            "from": (
                "from",
                base.node("at least two references, each to one tensor", kind="list of references").metadata["field"],
            ),
            "to": ("to", base.reference("name of the result, must be new").metadata["field"]),
        }

    def build(self, step: BoundStep, state: State) -> None:
        assert isinstance(step.thing, Concat)
        sources = [state.names.reference(node, key="from") for node in _at_least_two(step.refs["from"], "from")]
        dest = state.names.reference(step.refs["to"], key="to", slices=False, literal=True)
        assert isinstance(dest.expr, str)
        names = [state.names.one(source) for source in sources]
        state.names.expect_new(dest.alias, [dest.expr])
        parts = [state.versions.read(source, name) for source, name in zip(sources, names, strict=True)]
        state.versions.create(dest.alias, dest.expr, state.versions.compute(step.thing, *parts))
        state.speech.tell(f"{self.word}: {', '.join(names)} -> {dest.expr}")


def _at_least_two(node: Node, key: str) -> tuple[Node, ...]:
    if not isinstance(node, Sequence) or len(node.items) < 2:
        raise PlanError(f"{key} is a list of at least two references", where=node.mark)
    return node.items


@dataclass(frozen=True)
class Concat(Structure):
    """Join tensors along an existing axis.

    parts: equal dtype, rank and other axes -> the lengths along `dim` summed.
    """

    spellings = (_Join("concat"),)
    examples = ("concat: { from: [q, k, v], to: qkv, dim: 0 }",)

    dim: int = integer("the axis; negative counts from the end", 0)

    def infer(self, *parts: Spec) -> tuple[Spec, ...]:
        first = parts[0]
        if not first.shape:
            raise PlanError("scalars cannot be joined", hint="reshape them to [1] first")
        axis = check_axis(self.dim, first)
        for part in parts[1:]:
            same = len(part.shape) == len(first.shape) and all(
                i == axis or m == n for i, (m, n) in enumerate(zip(part.shape, first.shape, strict=True))
            )
            if not same or part.dtype is not first.dtype:
                raise PlanError(
                    f"parts differ in more than axis {axis}", expected=str(first), found=", ".join(map(str, parts[1:]))
                )
        if math.prod(first.shape[:axis]) > 1:
            check_arrays(first)  # parts of packed bytes can only follow one another
        length = sum(part.shape[axis] for part in parts)
        return (Spec((*first.shape[:axis], length, *first.shape[axis + 1 :]), first.dtype),)

    def runs(self, *parts: Spec) -> list[Run] | None:
        axis = check_axis(self.dim, parts[0])
        outer = math.prod(parts[0].shape[:axis])
        sizes = [math.prod(part.shape[axis:]) for part in parts]
        if not worthwhile(outer * len(parts), sum(part.nbytes for part in parts)):
            return None
        return [(i, row * size, size) for row in range(outer) for i, size in enumerate(sizes) if size]

    def interleaved(self, *parts: Spec) -> list[int]:
        axis = check_axis(self.dim, parts[0])
        return [math.prod(part.shape[axis:]) for part in parts]

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> Concat | None:
        return self if check_axis(self.dim, result) > 0 else None

    def apply(self, k: Kernel, *parts: Array) -> Array:
        return k.xp.concatenate(parts, axis=self.dim)
