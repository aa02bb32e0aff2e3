"""`clamp`, `clamp_`: bounds on the values."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import BY_NAME
from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import BoundStep, TensorOp, number
from ..kit.forms import InPlace, New
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_arrays
from ..kit.state import State


class _ClampInPlace(InPlace):
    """`clamp_` keeps the dtype, so it takes floats only."""

    def build(self, step: BoundStep, state: State) -> None:
        target = state.names.reference(step.refs["target"], key="target")
        for name in state.names.select(target):
            spec = state.versions.slot(target.alias, name).node.spec
            if spec is not None and not spec.dtype.is_float:
                raise PlanError(
                    f"{self.word}: {name} would become float32", found=str(spec), hint="use clamp with a new name"
                )
        super().build(step, state)


@dataclass(frozen=True)
class Clamp(TensorOp):
    """Limit every element to [min, max]; NaN stays NaN.

    source: real, any shape -> the same shape and dtype for floats (the bounds are rounded to it first), float32 for
    integers and booleans.
    """

    spellings = (New("clamp"), _ClampInPlace("clamp_"))
    examples = ("clamp: { from: w, to: w.clamped, min: -1, max: 1 }", "clamp_: { target: '.*\\.gate', max: 0.5 }")

    min: float | None = number("lower bound", None, traced=True)
    max: float | None = number("upper bound", None, traced=True)

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise PlanError("at least one bound is needed", expected="min, max or both")
        if isinstance(self.min, float) and isinstance(self.max, float) and self.min > self.max:
            raise PlanError("min is above max", expected="min <= max", found=f"min {self.min}, max {self.max}")

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        if source.dtype.kind == "c":
            raise PlanError("complex numbers have no order", found=str(source))
        return (source if source.dtype.is_float else Spec(source.shape, BY_NAME["float32"]),)

    def apply(self, k: Kernel, source: Array) -> Array:
        if not k.is_float(source):
            source = k.cast(source, BY_NAME["float32"])
        wide = k.widen(source)
        for bound, choose in ((self.min, k.at_least), (self.max, k.at_most)):
            if bound is not None:
                wide = choose(wide, k.widen(k.narrow(k.number(bound, wide), source)))
        return k.narrow(wide, source)

    def smallest(self, source: Bound) -> Bound:
        for bound in (self.min, self.max):
            if bound is not None:
                source = source.either(source.of(bound))
        return source
