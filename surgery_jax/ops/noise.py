"""`noise`, `noise_`: normal noise on every element."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import TensorOp, integer, number, word
from ..kit.forms import InPlace, New
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_floats


@dataclass(frozen=True)
class Noise(TensorOp):
    """Add normal noise of mean 0, which depends on the seed, the name of the result and the position alone.

    source: float, any shape -> the same. The noise is made in float64 (`numerics.threefry`) and multiplied by `std`;
    the sum is that of float64 too, rounded once. Equal seeds give tensors of other names other noise.
    """

    needs_positions = True
    spellings = (New("noise"), InPlace("noise_"))
    examples = (
        "noise: { from: router.weight, to: router.noisy, std: 0.01 }",
        "noise_: { target: '.+\\.router\\.weight', std: 0.02, seed: 7 }",
    )

    std: float = number("standard deviation", traced=True)
    seed: int = integer("the same for all tensors of a step", 0)
    first: float = word()
    second: float = word()

    def __post_init__(self) -> None:
        if self.std.__class__ is float and self.std < 0:  # not what stands for it while a function is traced
            raise PlanError("std must not be negative", found=f"{self.std:g}")

    def named(self, name: str) -> TensorOp:
        from ..numerics.threefry import key_of

        first, second = key_of(self.seed, name)
        return replace(self, seed=0, first=float(first), second=float(second))

    def infer(self, source: Spec, position: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array, position: Array) -> Array:
        from ..numerics.threefry import normal

        noise = k.mul(normal(k, (self.first, self.second), position), k.xp.asarray(self.std, "float64"))
        return k.cast(source.astype("float64") + noise, k.dtype(source))

    def workspace_bytes(self, source: Spec, position: Spec) -> int:
        return 8 * source.size  # the noise, in float64

    def smallest(self, source: Bound, position: Bound) -> Bound:
        return source
