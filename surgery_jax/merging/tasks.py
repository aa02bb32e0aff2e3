"""Task arithmetic: what models have that their base has not, added to it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

from ..core.specs import Spec
from ..kit.fields import boolean, number, numbers_of, word
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.rules import check_floats
from ..kit.state import Value, Versions
from .largest import Keep, Largest, Middle
from .method import Method, each
from .norms import Restore, Sizes
from .ranks import Ranks
from .weighted import Delta, total

__all__ = ["AddTasks", "Select", "SparseMethod", "TaskMethod"]

LEAST = 1e-8  # divisors below it are taken for 1


@dataclass(frozen=True)
class AddTasks(TensorOp):
    """The base and lambda times the sum of weight * task vector.

    base: float, any shape; task vectors: float32 (float64 for float64), the same shape -> that of base. With `elects`
    an element takes part only where its sign is that of the sum, which counts as positive at 0; with `normalize` the
    sum is divided by the weights that took part. Every operation is rounded to the dtype of the task vectors, the
    result once more.
    """

    elects: bool = False
    normalize: bool = False
    weights: tuple[float, ...] = numbers_of()
    lambda_: float = word()

    def infer(self, base: Spec, *deltas: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (base,)

    def apply(self, k: Kernel, base: Array, *deltas: Array) -> Array:
        one = deltas[0]
        weights = [k.number(weight, one) for weight in self.weights]
        parts = [k.mul(x, weight) for x, weight in zip(deltas, weights, strict=True)]
        summed, divisor = total(k, parts), reduce(lambda a, b: a + b, weights)
        if self.elects:
            zero = k.xp.zeros((), one.dtype)
            is_positive = summed >= zero
            takes_part = [k.xp.where(is_positive, part > zero, part < zero) for part in parts]
            summed = total(k, [k.xp.where(mask, part, zero) for mask, part in zip(takes_part, parts, strict=True)])
            divisor = total(
                k, [k.xp.where(mask, weight, zero) for mask, weight in zip(takes_part, weights, strict=True)]
            )
        if self.normalize:
            is_small = k.xp.abs(divisor) < k.number(LEAST, one)
            summed = summed / k.xp.where(is_small, k.xp.ones((), one.dtype), divisor)
        return k.narrow(k.add(k.widen(base), k.mul(summed, k.number(self.lambda_, one))), base)

    def smallest(self, base: Bound, *deltas: Bound) -> Bound:
        parts = [bound.times(bound.of(w)) for bound, w in zip(deltas, self.weights, strict=True)]
        return reduce(Bound.either, [base, *deltas, *parts])


@dataclass(frozen=True)
class Select(TensorOp):
    """A tensor where a mask is true, and 0 elsewhere.

    source: float, any shape; mask: bool, the same -> the shape and dtype of source.
    """

    host_below = 1 << 18

    def infer(self, source: Spec, mask: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array, mask: Array) -> Array:
        return k.masked(source, mask)

    def smallest(self, source: Bound, mask: Bound) -> Bound:
        return source


@dataclass(frozen=True)
class TaskMethod(Method):
    """What methods have in common that add task vectors to the base; `sparse` says what becomes of each of these."""

    elects: ClassVar[bool] = False

    weight: tuple[float, ...] = each(number("factor of the model's task vector"))
    normalize: bool = boolean("divide by the sum of the weights that take part", False)
    lambda_: float = number("factor of the sum of all task vectors", 1.0)
    int8_mask: bool = boolean("accepted for configurations of others; masks take no memory here", False)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        parts = []  # one model after the other: what is known of one is soon used
        for at, (key, model) in enumerate(zip(keys, models, strict=True)):
            parts.append(self.sparse(versions, key, at, versions.compute(Delta(), model, base)))
        op = AddTasks(self.elects, self.normalize, self.weight, self.lambda_)
        return versions.compute(op, base, *parts)

    def sparse(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        """What is left of the task vector of one model; `key` is what its random numbers depend on."""
        return delta


@dataclass(frozen=True)
class SparseMethod(TaskMethod):
    """Methods that drop elements of task vectors; `sparsified` says which are left of those with a density below 1."""

    rescale: bool = boolean("restore the L1 norm of what is left of the task vectors", False)
    density: tuple[float, ...] = each(number("share of the elements that is kept", 1.0))

    def sparse(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        if self.density[number] >= 1:
            return delta
        kept = self.sparsified(versions, key, number, delta)
        if not self.rescale:
            return kept
        return versions.compute(Restore(), kept, *versions.apply(Sizes(), delta, kept))

    def sparsified(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        """What is kept of the task vector of one model, and 0 elsewhere."""
        raise NotImplementedError

    def largest(self, versions: Versions, density: float, delta: Value) -> Value:
        """The largest elements of a task vector."""
        return self._kept(versions, Largest(_is_wide(versions, delta), density), delta, False)

    def middle(self, versions: Versions, density: float, gamma: float, delta: Value) -> Value:
        """A task vector without the largest and the smallest elements."""
        return self._kept(versions, Middle(_is_wide(versions, delta), density, gamma), delta, True)

    def _kept(self, versions: Versions, ranks: Ranks, delta: Value, is_middle: bool) -> Value:
        return versions.compute(Keep(ranks.wide, is_middle), delta, delta, *versions.apply(ranks, delta))


def _is_wide(versions: Versions, value: Value) -> bool:
    return versions.spec(value).dtype.bits == 64
