"""`resize`, `resize_`: another length of an axis."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import integer
from ..kit.forms import InPlace, New
from ..kit.rules import check_arrays, check_axis
from ..kit.state import Value, Versions
from ..kit.structure import View
from .pad import Filling


@dataclass(frozen=True)
class Resize(Filling):
    """Give an axis another length: places at its end go, or come as `pad` makes them.

    source: any dtype, at least one axis -> the axis of length `size`, or of the next multiple of `multiple_of`.
    """

    spellings = (New("resize"), InPlace("resize_", slices=False))
    examples = (
        "resize: { from: lm_head.weight, to: lm_head.larger, size: 32064, init: mean }",
        "resize_: { target: '(.+embed_tokens|lm_head)\\.weight', multiple_of: 128, init: normal, std: like }",
    )

    size: int | None = integer("the new length", None)
    multiple_of: int | None = integer("of what the new length is the next multiple", None)

    def __post_init__(self) -> None:
        given = [n for n in (self.size, self.multiple_of) if n is not None]
        if len(given) != 1 or given[0] < 1:
            raise PlanError(
                "needs one of size and multiple_of, positive", found=", ".join(map(str, given)) or "neither"
            )

    def compose(self, versions: Versions, source: Value) -> tuple[Value, ...]:
        """A slice, or what `pad` makes."""
        spec = versions.spec(source)
        check_arrays(spec)
        axis = check_axis(self.dim, spec)
        length = spec.shape[axis]
        size = self.size if self.multiple_of is None else -(-length // self.multiple_of) * self.multiple_of
        assert size is not None
        if size > length:
            return self.lengthened(versions, source, axis, 0, size - length)
        axes = [(0, 1, count) for count in spec.shape]
        axes[axis] = (0, 1, size)
        return versions.apply(View(tuple(axes), (False,) * len(axes)), source)
