"""`ram`: changes of one model are added, those of several are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from ...core.specs import Spec
from ...kit.fields import number, numbers_of, word
from ...kit.kernel import Array, Bound, Kernel
from ...kit.operations import TensorOp
from ...kit.reduction import Before, Reduction
from ...kit.rules import check_floats
from ...kit.state import Value, Versions
from ..method import Method
from ..weighted import Delta, total


def changed(k: Kernel, deltas: Sequence[Array], epsilon: float) -> tuple[list[Array], Array]:
    """Where each model has changed, and how many of them have."""
    masks = [k.xp.abs(x) > k.number(epsilon, x) for x in deltas]
    return masks, reduce(lambda a, b: a + b, [mask.astype("int32") for mask in masks])


@dataclass(frozen=True)
class Shares(Reduction):
    """How many elements of each task vector are changed alone, and how many with others.

    all: float32 or float64, one size -> float64[2 n].
    """

    count: int
    epsilon: float = word()

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) * (2 * self.count)

    def terms(self, k: Kernel, stage: int, before: Before, *deltas: Array) -> tuple[Array, ...]:
        masks, number = changed(k, deltas, self.epsilon)
        alone = [(mask & (number == 1)).astype("float64") for mask in masks]
        return (*alone, *((mask & (number > 1)).astype("float64") for mask in masks))


@dataclass(frozen=True)
class AddChanges(TensorOp):
    """The base with changes: those that one model has are added, those that several have are averaged. With `limits`, a
    factor and the largest ratio, those of one model are amplified by the ratio of its shared to its own changes.

    base: float, any shape; task vectors: float32 (float64 for float64), the same shape; with limits what `Shares` give
    -> the shape and dtype of base.
    """

    limits: tuple[float, ...] = numbers_of()
    epsilon: float = word()

    def infer(self, base: Spec, *_: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (base,)

    def apply(self, k: Kernel, base: Array, *given: Array) -> Array:
        deltas = given[:-1] if self.limits else given
        masks, number = changed(k, deltas, self.epsilon)
        zero = k.xp.zeros((), deltas[0].dtype)
        own = [k.xp.where(mask & (number == 1), x, zero) for mask, x in zip(masks, deltas, strict=True)]
        if self.limits:
            own = [k.mul(x, factor) for x, factor in zip(own, self._factors(k, deltas, given[-1]), strict=True)]
        shared = total(k, [k.xp.where(mask & (number > 1), x, zero) for mask, x in zip(masks, deltas, strict=True)])
        mean = shared / k.at_least(number, 1).astype(zero.dtype)
        return k.narrow(k.add(k.widen(base), total(k, own) + mean), base)

    def _factors(self, k: Kernel, deltas: Sequence[Array], shares: Array) -> list[Array]:
        r, alpha, epsilon = (k.xp.asarray(value, "float64") for value in (*self.limits, self.epsilon))
        found = []
        for at in range(len(deltas)):
            ratio = shares[len(deltas) + at] / k.at_least(shares[at], epsilon)
            found.append((1.0 + k.mul(r, k.at_most(k.at_least(ratio, 0.0), alpha))).astype(deltas[0].dtype))
        return found

    def smallest(self, base: Bound, *bounds: Bound) -> Bound:
        return reduce(Bound.either, [base, *(bounds[:-1] if self.limits else bounds)])


@dataclass(frozen=True)
class Ram(Method):
    """Changes added to the base: at every element those W - B whose magnitude is above `epsilon`, added if it is that
    of one model, averaged if there are several.

    Any shape. All in float32 (float64 for float64), rounded once. "RAM", arXiv:2601.13572.
    """

    name = "ram"

    epsilon: float = number("magnitude above which an element is changed", 1e-5)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        deltas = [versions.compute(Delta(), model, base) for model in models]
        return versions.compute(AddChanges((), self.epsilon), base, *deltas)
