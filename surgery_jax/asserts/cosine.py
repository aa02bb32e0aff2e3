"""`cosine`: how alike the directions of tensors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import number
from ..kit.comparing import Comparing
from ..kit.kernel import Array, Kernel
from ..kit.predicates import Known, Measured, Outcome
from ..kit.reduction import ScaledSums
from ..kit.state import State, Value


@dataclass(frozen=True)
class CosineSums(ScaledSums):
    """Sums of a b, a a and b b, in float64.

    a, b: float, of one size -> float64[3]; each is divided by its largest magnitude first.
    """

    num_sums = 3

    def products(self, k: Kernel, x: Array, y: Array) -> tuple[Array, ...]:
        return k.mul(x, y), k.mul(x, x), k.mul(y, y)


@dataclass(frozen=True)
class Cosine(Comparing):
    """The cosine of the angle between every match of `left` and the tensor that `right` names for it, each as one long
    vector, is at least `ge`; a tensor of zeros has no direction and fails.

    It is computed in float64, in an order that depends on the number of elements alone; dtypes may differ.
    """

    name = "cosine"
    examples = ("cosine: { left: 'merged::(.+)', right: 'base::\\1', ge: 0.98 }",)

    ge: float = number("at least, from -1 to 1")

    def __post_init__(self) -> None:
        if not -1 <= self.ge <= 1:
            raise PlanError("cosine.ge is from -1 to 1", found=f"{self.ge:g}")

    def test(self, state: State, a: Value, b: Value, label: str) -> Outcome:
        one, other = state.versions.spec(a), state.versions.spec(b)
        if one.shape != other.shape:
            return Known(False, f"{label}: {one} against {other}")
        found = state.versions.compute(CosineSums(), a, b)

        def judge(sums: Sequence[float]) -> tuple[bool, str]:
            both, left, right = map(float, sums)
            if not left or not right:
                return False, f"{label}: a tensor of zeros has no direction"
            value = both / (left**0.5 * right**0.5)
            return value >= self.ge, f"{label}: the cosine is {value:.9g}, expected at least {self.ge:g}"

        return Measured(state.checks.sink(found, "array"), judge)
