"""`norm`: bounds on the Euclidean length of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import number
from ..kit.kernel import Array, Kernel
from ..kit.predicates import Measured, Outcome
from ..kit.reduction import Before, Reduction, divisor
from ..kit.rules import check_floats
from ..kit.selecting import Selecting
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class Norm2(Reduction):
    """The square root of the sum of squares, in float64; NaN if an element is NaN.

    source: float, any shape -> float64[1]. Elements of float64 are divided by the largest first, so that no square
    overflows.
    """

    ignores_zeros = True
    scaled: bool = False

    @property
    def stages(self) -> int:
        return 2 if self.scaled else 1

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        check_floats(specs[0])
        return super().infer(*specs)

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) if stage == self.stages - 1 else ("max",)

    def terms(self, k: Kernel, stage: int, before: Before, source: Array) -> tuple[Array, ...]:
        wide = k.magnitude(source)
        if stage < self.stages - 1:
            return (wide,)
        if before is not None:
            wide = wide / divisor(k, before[0])
        return (k.mul(wide, wide),)

    def finish(self, k: Kernel, stage: int, totals: Sequence[Array], before: Before) -> tuple[Array, ...]:
        if stage < self.stages - 1:
            return tuple(totals)
        root = k.xp.sqrt(totals[0])
        return (root if before is None else k.mul(root, divisor(k, before[0])),)


@dataclass(frozen=True)
class Norm(Selecting):
    """The Euclidean norm of every match, in float64, is within all bounds that are given; NaN is within none.

    It is added in an order that depends on the number of elements alone, so it is the same number everywhere.
    """

    name = "norm"
    examples = ("norm: { of: '.+\\.weight', ge: 0.01, le: 1000 }",)

    ge: float | None = number("at least", None)
    gt: float | None = number("more than", None)
    le: float | None = number("at most", None)
    lt: float | None = number("less than", None)

    def __post_init__(self) -> None:
        if all(bound is None for bound in (self.ge, self.gt, self.le, self.lt)):
            raise PlanError("norm: at least one bound is needed", expected="ge, gt, le or lt")

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        node = state.versions.read(ref, name)
        found = state.versions.compute(Norm2(state.versions.spec(node).dtype.bits == 64), node)

        def judge(measured: Sequence[float]) -> tuple[bool, str]:
            value = float(measured[0])
            return self._holds(value), f"norm: {name} has norm {value:.9g}, expected {self._described()}"

        return Measured(state.checks.sink(found, "array"), judge)

    def _holds(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def _described(self) -> str:
        given = {"at least": self.ge, "more than": self.gt, "at most": self.le, "less than": self.lt}
        return ", ".join(f"{word} {bound:g}" for word, bound in given.items() if bound is not None)
