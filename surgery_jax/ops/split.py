"""`split`: cut along an axis."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, integer, integers, node, reference
from ..kit.rules import check_axis
from ..kit.state import State
from ..kit.structure import View
from ..language.document import Node
from .concat import _at_least_two


@dataclass(frozen=True)
class Split(Directive):
    """Cut one tensor into consecutive parts along an axis.

    from: one tensor, any dtype, may be sliced -> one new tensor per size; the sizes sum to the length of the axis.
    """

    word = "split"
    examples = ("split: { from: qkv, to: [q, k, v], sizes: [64, 64, 64], dim: 0 }",)

    source: Node = reference("the tensor to cut", key="from")
    to: Node = node("literal names of the parts, at least two, must be new", kind="list of references")
    sizes: tuple[int, ...] = integers("length of every part along the axis")
    dim: int = integer("the axis; negative counts from the end", 0)

    def build(self, state: State) -> None:
        source = state.names.reference(self.source, key="from")
        parts = [
            state.names.reference(part, key="to", slices=False, literal=True) for part in _at_least_two(self.to, "to")
        ]
        names = [(part.alias, str(part.expr)) for part in parts]
        if len(self.sizes) != len(parts) or min(self.sizes) < 1:
            raise PlanError(
                "split.sizes does not fit split.to",
                expected=f"{len(parts)} positive sizes",
                found=str(list(self.sizes)),
            )
        if len(set(names)) != len(names):
            raise PlanError(
                "split destination collision: every part needs its own name", found=", ".join(n for _, n in names)
            )
        for alias, name in names:
            state.names.expect_new(alias, [name])
        name = state.names.one(source)
        whole = state.versions.read(source, name)
        if whole.spec is not None:
            axis = check_axis(self.dim, whole.spec)
            if sum(self.sizes) != whole.spec.shape[axis]:
                raise PlanError(
                    "split.sizes do not sum to the axis",
                    expected=f"a sum of {whole.spec.shape[axis]}",
                    found=f"{sum(self.sizes)} from {list(self.sizes)}",
                )
        start = 0
        for (alias, part), size in zip(names, self.sizes, strict=True):
            if whole.spec is not None:
                axes = [(0, 1, count) for count in whole.spec.shape]
                axes[axis] = (start, 1, size)
                state.versions.create(
                    alias, part, state.versions.compute(View(tuple(axes), (False,) * len(axes)), whole)
                )
            else:
                state.versions.create(alias, part, whole)
            start += size
        state.speech.tell(f"split: {name} -> {', '.join(n for _, n in names)}")

    def contributes(self, state: State) -> str | None:
        first = _at_least_two(self.to, "to")[0]
        return state.names.reference(first, key="to", slices=False, literal=True).alias
