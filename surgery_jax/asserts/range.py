"""`range`: bounds on the elements of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import number
from ..kit.kernel import Array, Bound, Kernel
from ..kit.predicates import Mask, Outcome, Pending
from ..kit.rules import check_arrays
from ..kit.selecting import Selecting
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class RangeMask(Mask):
    """Where low <= x <= high, in float64, or in integers for those; NaN never is."""

    low: float | None = number("smallest", None, traced=True)
    high: float | None = number("largest", None, traced=True)

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        if source.dtype.kind == "c":
            raise PlanError("complex numbers have no order", found=str(source))
        return (source,)

    def apply(self, k: Kernel, source: Array) -> Array:
        holds = k.xp.ones(source.shape, bool)
        exact = k.dtype(source).is_integer and k.dtype(source).bits == 64  # more digits than float64 has
        for bound, side in ((self.low, 1), (self.high, -1)):
            if bound is None:
                continue
            limit = k.xp.asarray(bound, "float64")
            if exact:
                limit = k.xp.ceil(limit) if side > 0 else k.xp.floor(limit)
                whole = k.truncate(limit, k.dtype(source))
                # a bound that no integer of these reaches became the nearest one that there is
                reached = whole.astype("float64") >= limit if side > 0 else whole.astype("float64") <= limit
                holds &= (source >= whole if side > 0 else source <= whole) & reached
            else:
                wide = source.astype("float64")
                holds &= wide >= limit if side > 0 else wide <= limit
        return holds

    def measure(self, k: Kernel, source: Array) -> Array:
        wide = source.astype("float64")
        off = k.xp.zeros(source.shape, "float64")
        if self.low is not None:
            off = k.xp.maximum(off, self.low - wide)
        return off if self.high is None else k.xp.maximum(off, wide - self.high)

    def smallest(self, source: Bound) -> Bound:
        return source


@dataclass(frozen=True)
class Range(Selecting):
    """Every element of every match is within the bounds that are given, at least one; NaN is within none."""

    name = "range"
    examples = ("range: { of: '.*norm\\.weight', ge: 0, le: 20 }",)

    ge: float | None = number("at least", None)
    le: float | None = number("at most", None)

    def __post_init__(self) -> None:
        given = [bound for bound in (self.ge, self.le) if bound is not None]
        if not given or any(map(math.isnan, given)):
            raise PlanError("range: at least one bound is needed", expected="ge or le, which are numbers")
        if len(given) == 2 and given[0] > given[1]:
            raise PlanError("range: nothing satisfies these bounds", found=f"ge {self.ge:g}, le {self.le:g}")

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        node = state.versions.read(ref, name)
        return Pending(state.checks.check(RangeMask(self.ge, self.le), (node,), f"range: {name}"))
