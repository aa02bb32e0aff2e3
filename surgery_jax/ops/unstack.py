"""`unstack`: one tensor becomes many, along an axis that goes."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, integer, reference
from ..kit.rules import check_axis
from ..kit.state import State
from ..kit.structure import View
from ..language.document import Node


@dataclass(frozen=True)
class Unstack(Directive):
    """Make a tensor of every place of an axis, numbered from 0 on: the opposite of `stack`.

    from: any dtype, may be sliced -> as many new tensors as the axis is long, each with one axis less.
    """

    word = "unstack"
    selects = True
    examples = (
        "unstack: { from: 'model\\.layers\\.(.+)', to: 'model.layers.\\g<index>.\\1' }",
        "unstack: { from: [decoder, layers, '*rest'], to: [model, layers, $index, '*rest'], dim: 1 }",
    )

    source: Node = reference("tensors to take apart", key="from")
    to: Node = reference("names of the results, `index` stands for the number; must be new")
    dim: int = integer("the axis; negative counts from the end", 0)

    def build(self, state: State) -> None:
        source = state.names.reference(self.source, key="from")
        dest = state.names.reference(self.to, key="to", slices=False)
        for name, numbered in state.names.numberable(source, dest):
            whole = state.versions.read(source, name)
            spec = state.versions.spec(whole)
            axis = check_axis(self.dim, spec)
            names = [numbered(number) for number in range(spec.shape[axis])]
            if not names:
                raise PlanError(f"unstack: {name} has nothing along axis {axis}", where=source.mark, found=str(spec))
            state.names.expect_new(dest.alias, names)
            axes = [(0, 1, count) for count in spec.shape]
            for number, new in enumerate(names):
                axes[axis] = (number, 1, 1)
                removed = tuple(other == axis for other in range(len(axes)))
                state.versions.create(dest.alias, new, state.versions.compute(View(tuple(axes), removed), whole))
            state.speech.tell(f"unstack: {name} -> {len(names)} tensors, {names[0]} to {names[-1]}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.to, key="to", slices=False).alias
