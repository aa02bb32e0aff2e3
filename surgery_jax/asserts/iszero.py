"""`iszero`: every element is zero."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.base import epsilon, number
from ..kit.kernel import Array, Bound, Kernel
from ..kit.predicates import Mask, Outcome, Pending
from ..kit.rules import check_arrays
from ..kit.selecting import Selecting
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class ZeroMask(Mask):
    """Where |x| is 0, or at most eps in float64; NaN never is."""

    eps: float | None = number("tolerance", None, traced=True)

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        return (source,)

    def apply(self, k: Kernel, source: Array) -> Array:
        return k.is_zero(source) if self.eps is None else k.magnitude(source) <= self.eps

    def measure(self, k: Kernel, source: Array) -> Array:
        return k.magnitude(source)

    def by_bits(self, *operands: Spec) -> bool:
        return self.eps is None and operands[0].dtype.bits >= 16

    def smallest(self, source: Bound) -> Bound:
        return source


@dataclass(frozen=True)
class IsZero(Selecting):
    """Every element of every match is zero; with eps, its absolute value is at most eps."""

    name = "iszero"
    takes = "of"
    examples = ("iszero: 'pad.weight'", "iszero: { of: 'pad::[100:, :]', eps: 0.001 }")

    eps: float | None = epsilon("absolute tolerance, in float64")

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        node = state.versions.read(ref, name)
        return Pending(state.checks.check(ZeroMask(self.eps), (node,), f"iszero: {name}"))
