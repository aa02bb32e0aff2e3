"""`sum`: any number of tensors added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from ..core.specs import Spec
from ..kit.base import TensorOp
from ..kit.forms import Several
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_arrays, check_same


@dataclass(frozen=True)
class Sum(TensorOp):
    """Add any number of tensors elementwise, in their order: `to` = a + b + c, rounded to their dtype at the end.

    all: any dtype, equal shapes -> the same. Floats narrower than 32 bits are widened to float32, in which every
    addition is rounded; integers wrap, booleans are ored.
    """

    spellings = (Several("sum"),)
    examples = ("sum: { from: 'base::(.+)', and: ['first::\\1', 'second::\\1'], to: 'merged::\\1' }",)

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        for other in specs[1:]:
            check_same(specs[0], other)
        check_arrays(specs[0])
        return (specs[0],)

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        return k.narrow(reduce(k.add, map(k.widen, arrays)), arrays[0])

    def smallest(self, *bounds: Bound) -> Bound:
        return reduce(lambda a, b: a.plus(b), bounds)
