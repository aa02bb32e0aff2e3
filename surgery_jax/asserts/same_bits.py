"""`same_bits`: equal shapes, dtypes and bits."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.comparing import Comparing
from ..kit.kernel import Array, Bound, Kernel
from ..kit.predicates import Known, Mask, Outcome, Pending
from ..kit.rules import check_arrays
from ..kit.state import State, Value


@dataclass(frozen=True)
class SameBits(Mask):
    """Where a has the bits of b: NaN with its payload, and -0 is not 0."""

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_arrays(a)
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        kind = k.dtype(a).kind
        if kind == "c":
            return (k.bits(a.real) == k.bits(b.real)) & (k.bits(a.imag) == k.bits(b.imag))
        return k.bits(a) == k.bits(b) if kind == "f" else a == b

    def measure(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.distance(a, b)

    def by_bits(self, *operands: Spec) -> bool:
        return True

    def smallest(self, a: Bound, b: Bound) -> Bound:
        return a.either(b)


@dataclass(frozen=True)
class HaveSameBits(Comparing):
    """Every match of `left` has shape, dtype and bits of the tensor that `right` names for it: NaN equals itself if its
    payload does, and -0 differs from 0."""

    name = "same_bits"
    examples = ("same_bits: { left: 'copied::(.+)', right: 'source::\\1' }",)

    def test(self, state: State, a: Value, b: Value, label: str) -> Outcome:
        if a.spec != b.spec:
            return Known(False, f"{label}: {a.spec} against {b.spec}")
        return Pending(state.checks.check(SameBits(), (a, b), label))
