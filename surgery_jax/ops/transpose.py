"""`transpose`, `transpose_`: two axes change places."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import TensorOp, integers
from ..kit.forms import InPlace, New
from ..kit.rules import check_axis
from ..kit.state import Value, Versions
from .permute import Permute


@dataclass(frozen=True)
class Transpose(TensorOp):
    """Exchange two axes, by default the last two.

    source: any dtype, at least two axes -> the lengths of the two axes exchanged; no bit changes.
    """

    kind = "composed"
    spellings = (New("transpose"), InPlace("transpose_", slices=False))
    examples = (
        "transpose: { from: 'c_attn.weight', to: 'qkv.weight' }",
        "transpose_: { target: '.+\\.kernel', dims: [0, -1] }",
    )

    dims: tuple[int, ...] = integers("the two axes; negative ones count from the end", (-2, -1))

    def __post_init__(self) -> None:
        if len(self.dims) != 2:
            raise PlanError("dims takes two axes", found=str(list(self.dims)))

    def compose(self, versions: Versions, operand: Value) -> tuple[Value, ...]:
        """The permutation that this is for a tensor."""
        source = versions.spec(operand)
        if len(source.shape) < 2:
            raise PlanError("transpose needs at least two axes", found=str(source))
        first, second = (check_axis(axis, source) for axis in self.dims)
        order = list(range(len(source.shape)))
        order[first], order[second] = second, first
        return versions.apply(Permute(tuple(order)), operand)
