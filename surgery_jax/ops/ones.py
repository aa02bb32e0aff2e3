"""`ones`: a new tensor of ones."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import BY_NAME
from ..core.specs import Spec
from ..kit.base import TensorOp, integers
from ..kit.forms import Create
from ..kit.made import Constant, check_shape


@dataclass(frozen=True)
class Ones(TensorOp):
    """Make a new float32 tensor of ones.

    -> float32 of `shape`.
    """

    kind = "template"
    spellings = (Create("ones"),)
    examples = ("ones: { target: head.bias, shape: [768] }",)

    shape: tuple[int, ...] = integers("positive lengths")

    def __post_init__(self) -> None:
        check_shape(self.shape)

    def made(self) -> TensorOp:
        """The operation that makes the numbers."""
        return Constant(Spec(self.shape, BY_NAME["float32"]), 1.0)
