"""`arcee_fusion`: the important changes of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.dtypes import BY_NAME
from ...core.specs import Spec
from ...kit.kernel import Array, Kernel
from ...kit.operations import TensorOp
from ...kit.rules import check_floats
from ...kit.state import Value, Versions
from ...numerics.elementary import exponential, logarithm
from ..largest import Quartiles, magnitudes
from ..method import Method
from ..rows import row_sums

LEAST = 1e-8  # added to every probability
OUTLYING = 1.5  # distances of quartiles above the median


@dataclass(frozen=True)
class Divergence(TensorOp):
    """KL(p || q) with p and q the softmax of the model and the base along the last axis.

    base, model: float, one shape -> float64, the same shape but for the last axis, which has length 1.
    """

    kind = "whole"
    host_below = 1 << 18
    is_remembered = True

    def infer(self, base: Spec, model: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (Spec((*base.shape[:-1], 1) if base.shape else (), BY_NAME["float64"]),)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        return self if len(result.shape) > 1 else None

    def workspace_bytes(self, base: Spec, model: Spec) -> int:
        return 8 * 8 * base.size

    def apply(self, k: Kernel, base: Array, model: Array) -> Array:
        wide = (k.widen(x).astype("float64") for x in (base, model))
        q, p = (self._softmax(k, x if x.ndim else x.reshape(1)) for x in wide)
        found: Array = row_sums(k, k.mul(p, logarithm(k, p / q)))
        return found if base.ndim else found.reshape(())

    def _softmax(self, k: Kernel, x: Array) -> Array:
        raised: Array = exponential(k, x - k.xp.max(x, axis=-1, keepdims=True))
        return raised / row_sums(k, raised) + LEAST


@dataclass(frozen=True)
class Importance(TensorOp):
    """|W - B| times the divergence of its row at every element.

    base, model: float, one shape; what `Divergence` gives of them -> the same shape, float32; in float64, rounded once.
    """

    kind = "whole"
    host_below = 1 << 18

    def infer(self, base: Spec, *_: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (Spec(base.shape, BY_NAME["float32"]),)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        return self if len(result.shape) > 1 else None

    def workspace_bytes(self, base: Spec, *_: Spec) -> int:
        return 8 * 3 * base.size

    def apply(self, k: Kernel, base: Array, model: Array, divergence: Array) -> Array:
        one, other = (k.widen(x).astype("float64") for x in (base, model))
        return k.xp.abs(k.mul(other - one, divergence)).astype("float32")


@dataclass(frozen=True)
class TakeAbove(TensorOp):
    """The model where its importance is at least the median and 1.5 times the distance of the third quartile to the
    first one, else the base.

    base, model: float, one shape and dtype; importance: float32, the same shape; its quartiles -> that of base.
    """

    def infer(self, base: Spec, *_: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (base,)

    def apply(self, k: Kernel, base: Array, model: Array, importance: Array, numbers: Array) -> Array:
        first, median, third = (x.astype("float64") for x in magnitudes(k, numbers))
        least = median + k.mul(third - first, k.xp.asarray(OUTLYING, "float64"))
        return k.xp.where(importance.astype("float64") >= least, model, base)

    def by_bits(self, *operands: Spec) -> bool:
        return True


@dataclass(frozen=True)
class ArceeFusion(Method):
    """The only model where its change is important, else the base: where |W - B| KL(p || q) is at least the median of
    all and 1.5 times the distance from the first quartile to the third one; p and q are the softmax of W and B along
    the last axis, over which the divergence is summed.

    Any shape, which must fit the memory as a whole. In float64, importances compared in float32; quartiles are those of
    all elements. A method of mergekit, without a paper.
    """

    name = "arcee_fusion"
    most = 1

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        divergence = versions.compute(Divergence(), base, models[0])
        importance = versions.compute(Importance(), base, models[0], divergence)
        return versions.compute(TakeAbove(), base, models[0], importance, *versions.apply(Quartiles(), importance))
