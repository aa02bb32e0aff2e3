"""`nearswap`: towards a model where it is near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.specs import Spec
from ...kit.fields import number, word
from ...kit.kernel import Array, Bound, Kernel
from ...kit.operations import TensorOp
from ...kit.rules import check_same
from ...kit.state import Value, Versions
from ..method import Method

LEAST = 1e-6  # distances below it are taken for it


@dataclass(frozen=True)
class Nearing(TensorOp):
    """From the base to the model by the share t / |B - W|, at most 1.

    base, model: float, one shape and dtype -> the same; in float32 (float64 for float64), rounded once.
    """

    t: float = word()

    def infer(self, base: Spec, model: Spec) -> tuple[Spec, ...]:
        check_same(base, model)
        return (base,)

    def apply(self, k: Kernel, base: Array, model: Array) -> Array:
        one, other = k.widen(base), k.widen(model)
        distance = k.at_least(k.xp.abs(one - other), k.number(LEAST, one))
        share = k.at_most(k.at_least(k.number(self.t, one) / distance, 0.0), 1.0)
        return k.narrow(k.mul(share, other) + k.mul(1.0 - share, one), base)

    def smallest(self, base: Bound, model: Bound) -> Bound:
        return base.either(model)


@dataclass(frozen=True)
class NearSwap(Method):
    """The only model where it is near the base, else the base: a W + (1 - a) B with a = t / max(|B - W|, 1e-6), at most
    1, at every element.

    Any shape. All in float32 (float64 for float64), rounded once. A method of mergekit, without a paper.
    """

    name = "nearswap"
    most = 1

    t: float = number("distance up to which an element is that of the model")

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        return versions.compute(Nearing(self.t), base, models[0])
