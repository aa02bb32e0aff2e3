"""`pad`, `pad_`: more places at the ends of an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..core.dtypes import BY_NAME
from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import TensorOp, choice, integer
from ..kit.draws import Moments, number_or_like
from ..kit.forms import InPlace, New
from ..kit.kernel import Array, Kernel
from ..kit.made import Constant, Positions
from ..kit.rules import check_arrays, check_axis, check_floats
from ..kit.state import Value, Versions
from .concat import Concat
from .normal import Normal
from .repeat import Repeat

INITS = ("zeros", "mean", "normal")


@dataclass(frozen=True)
class Average(TensorOp):
    """The mean along an axis, which keeps the length 1.

    source: float, the axis not empty -> the same, of length 1 there. Added in float64 from the first place to the last,
    divided, and rounded once.
    """

    kind = "whole"
    axis: int = 0

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        if not source.shape[self.axis]:
            raise PlanError("there is no mean of nothing", found=str(source))
        return (Spec((*source.shape[: self.axis], 1, *source.shape[self.axis + 1 :]), source.dtype),)

    def workspace_bytes(self, source: Spec) -> int:
        return 16 * source.size // max(source.shape[self.axis], 1)

    def apply(self, k: Kernel, source: Array) -> Array:
        shape, count = source.shape, source.shape[self.axis]
        outer, inner = math.prod(shape[: self.axis]), math.prod(shape[self.axis + 1 :])
        rows = source.reshape(outer, count, inner)

        def add(number: Array, total: Array) -> Array:
            return total + k.widen(k.row(rows, number)).astype("float64")

        total = k.repeat(count, add, k.xp.zeros((outer, inner), "float64"))
        return k.cast(k.div(total, float(count)), k.dtype(source)).reshape(
            *shape[: self.axis], 1, *shape[self.axis + 1 :]
        )


@dataclass(frozen=True)
class Filling(TensorOp):
    """What operations that add places to an axis have in common: what these are."""

    kind = "composed"

    dim: int = integer("the axis; negative counts from the end", 0)
    init: str = choice("what the new places are", INITS, "zeros")
    mean: float | None = number_or_like("mean of normal numbers", 0.0)
    std: float | None = number_or_like("standard deviation of normal numbers", 0.02)
    seed: int = integer("of normal numbers, the same for all tensors of a step", 0)
    name: str = ""

    def named(self, name: str) -> TensorOp:
        return replace(self, name=name)

    def lengthened(self, versions: Versions, source: Value, axis: int, before: int, after: int) -> tuple[Value, ...]:
        """The source with so many new places at the ends of an axis."""
        parts = [source]
        if before:
            parts.insert(0, self._filler(versions, source, axis, before, " before"))
        if after:
            parts.append(self._filler(versions, source, axis, after, ""))
        return versions.apply(Concat(axis), *parts) if len(parts) > 1 else (source,)

    def _filler(self, versions: Versions, source: Value, axis: int, count: int, place: str) -> Value:
        spec = versions.spec(source)
        filler = Spec((*spec.shape[:axis], count, *spec.shape[axis + 1 :]), spec.dtype)
        if self.init == "zeros":
            return versions.compute(Constant(filler, 0.0))
        if self.init == "mean":
            return versions.compute(Repeat(count, axis), *versions.apply(Average(axis), source))
        drawn = Normal(mean=self.mean, std=self.std)
        statistics = versions.apply(Moments(), source) if drawn.is_like else ()
        positions = versions.compute(Positions(Spec(filler.shape, BY_NAME["uint64"])))
        return versions.compute(drawn.of(self.name + place, self.seed, spec.dtype), positions, *statistics)


@dataclass(frozen=True)
class Pad(Filling):
    """Add places at the beginning or the end of an axis: of zeros, of the mean of those that are there, or of normal
    numbers.

    source: any dtype (`mean` and `normal`: float), at least one axis -> the axis longer by `before` + `after`; what was
    there keeps its bits. The mean is computed in float64 and rounded once. Normal numbers depend on the seed, the name
    of the result and the position; `like` takes mean or deviation from the whole tensor.
    """

    spellings = (New("pad"), InPlace("pad_", slices=False))
    examples = (
        "pad: { from: wte.weight, to: wte.padded, after: 47 }",
        "pad_: { target: '.+\\.wte\\.weight', after: 8, init: normal, std: like }",
    )

    before: int = integer("places at the beginning", 0)
    after: int = integer("places at the end", 0)

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 0:
            raise PlanError("before and after must not be negative", found=f"{self.before} and {self.after}")

    def compose(self, versions: Versions, source: Value) -> tuple[Value, ...]:
        """What is added, joined to what is there."""
        spec = versions.spec(source)
        check_arrays(spec)
        return self.lengthened(versions, source, check_axis(self.dim, spec), self.before, self.after)
