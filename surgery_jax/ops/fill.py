"""`fill`, `fill_`: constants, given values or random numbers in the shape and dtype of a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import TensorOp, Values, choice, integer, number, values
from ..kit.forms import InPlace, New
from ..kit.made import Constant, Given, check_distribution, drawn
from ..kit.rules import check_arrays, check_floats


@dataclass(frozen=True)
class Fill(TensorOp):
    """Fill with a constant, with given values, or with random numbers.

    template: any shape and dtype -> the same shape and dtype. A seed is used afresh for every tensor.
    """

    kind = "template"
    spellings = (New("fill"), InPlace("fill_"))
    examples = (
        "fill: { from: gate, to: gate_noise, mode: rand, distribution: normal, std: 0.02, seed: 7 }",
        "fill_: { target: 'w::[:, 2:4]', mode: constant, value: 7 }",
        "fill_: { target: w, mode: tensor, values: [1, 2, 3] }",
    )

    mode: str = choice("what to fill with", ("constant", "tensor", "rand"), folded=True)
    value: float | None = number("the constant, for mode constant", None)
    values: Values | None = values("number or nested list that broadcasts to the shape, for mode tensor", None)
    distribution: str = choice("for mode rand", ("uniform", "normal"), "uniform", folded=True)
    low: float = number("lower end of uniform numbers", 0.0)
    high: float = number("upper end of uniform numbers", 1.0)
    mean: float = number("mean of normal numbers", 0.0)
    std: float = number("standard deviation of normal numbers", 1.0)
    seed: int | None = integer("seed of the numbers", None)

    def __post_init__(self) -> None:
        if self.mode == "constant" and self.value is None:
            raise PlanError("value is required for mode constant")
        if self.mode == "tensor" and self.values is None:
            raise PlanError("values is required for mode tensor")
        if self.mode == "rand":
            check_distribution(self.distribution, self.low, self.high, self.std)

    def made(self, template: Spec) -> TensorOp:
        """The operation without inputs that makes the numbers."""
        check_arrays(template)
        if self.mode == "constant":
            assert self.value is not None
            _check_fits(self.value, template)
            return Constant(template, self.value)
        if self.mode == "tensor":
            made = Given(template, self.values)
            made.check()
            return made
        check_floats(template)
        return drawn(template, self.distribution, (self.low, self.high), (self.mean, self.std), self.seed)


def _check_fits(value: float, spec: Spec) -> None:
    if spec.dtype.is_integer:
        low, high = (
            (0, 2**spec.dtype.bits - 1)
            if spec.dtype.kind == "u"
            else (-(2 ** (spec.dtype.bits - 1)), 2 ** (spec.dtype.bits - 1) - 1)
        )
        # float(2**63 - 1) is 2**63, which does not fit although it compares equal
        if not math.isfinite(value) or not low <= int(value) <= high:
            raise PlanError(f"{value:g} does not fit {spec.dtype}", expected=f"{low} to {high}")
    elif spec.dtype.is_float and math.isfinite(value):
        limit = largest(spec)
        if abs(value) > limit:
            raise PlanError(f"{value:g} does not fit {spec.dtype}", expected=f"at most {limit:g}")


def largest(spec: Spec) -> float:
    """Largest finite value of a float dtype."""
    import ml_dtypes

    return float(ml_dtypes.finfo(spec.dtype.numpy).max)  # type: ignore[no-untyped-call]
