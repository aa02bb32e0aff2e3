"""`close`: equal within a relative and an absolute tolerance."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit import base
from ..kit.base import Field, boolean, number
from ..kit.comparing import Comparing
from ..kit.kernel import Array, Bound, Kernel
from ..kit.predicates import Known, Mask, Outcome, Pending
from ..kit.rules import check_arrays
from ..kit.state import State, Value


@dataclass(frozen=True)
class CloseMask(Mask):
    """Where |a - b| <= atol + rtol |b| in float64 for finite numbers; an infinity is close to itself, and NaN too if
    `equal_nan`."""

    rtol: float = number("relative tolerance", traced=True)
    atol: float = number("absolute tolerance", traced=True)
    equal_nan: bool = False

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_arrays(a)
        check_arrays(b)
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        xp = k.xp
        size = k.magnitude(b)
        rtol, atol = (xp.asarray(x, "float64") for x in (self.rtol, self.atol))
        close = (k.distance(a, b) <= atol + k.mul(size, rtol)) & xp.isfinite(size)
        close = close | (a == b)
        return close | ((a != a) & (b != b)) if self.equal_nan else close

    def measure(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.distance(a, b)

    def smallest(self, a: Bound, b: Bound) -> Bound:
        return a.either(b)


def _tolerance(doc: str, default: float) -> float:
    declared: float = base.declare(Field("number", doc, base.parse_epsilon, default))
    return declared


@dataclass(frozen=True)
class Close(Comparing):
    """Every match of `left` has the shape of the tensor that `right` names for it, and its values within tolerances:
    |left - right| <= atol + rtol |right|, in float64, as numpy.isclose says it; dtypes may differ."""

    name = "close"
    examples = ("close: { left: 'new::(.+)', right: 'old::\\1', rtol: 1e-3, atol: 1e-6 }",)

    rtol: float = _tolerance("relative to `right`", 1e-5)
    atol: float = _tolerance("absolute", 1e-8)
    equal_nan: bool = boolean("whether NaN is close to NaN", False)

    def test(self, state: State, a: Value, b: Value, label: str) -> Outcome:
        one, other = state.versions.spec(a), state.versions.spec(b)
        if one.shape != other.shape:
            return Known(False, f"{label}: {one} against {other}")
        if "c" in (one.dtype.kind, other.dtype.kind) and one.dtype is not other.dtype:
            raise PlanError("close: complex numbers are compared with their own kind", found=f"{one} and {other}")
        return Pending(state.checks.check(CloseMask(self.rtol, self.atol, self.equal_nan), (a, b), label))
