"""`reinit`, `reinit_`: some places of an axis are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit import base
from ..kit.base import BoundStep, TensorOp, integer, number, word
from ..kit.draws import Moments, number_or_like
from ..kit.forms import Form, reference_field
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_axis, check_floats
from ..kit.state import State


class _Reinit(Form):
    """`from` and `to`, or `target`; `share` is a template of what the choice of places depends on."""

    def __init__(self, word: str, *, new: bool) -> None:
        super().__init__(word)
        self.new = new
        share = "template; tensors for which it gives the same have the same places chosen; by default their own names"
        self.fields = (
            {
                "from": reference_field("tensors to read, may be sliced", "from"),
                "to": reference_field("names of the results, must be new", "to"),
            }
            if new
            else {"target": reference_field("tensors to change, may be sliced", "target")}
        )
        self.fields["share"] = ("share", base.reference(share, None, kind="template").metadata["field"])

    def build(self, step: BoundStep, state: State) -> None:
        assert isinstance(step.thing, Reinit)
        key = "from" if self.new else "target"
        source = state.names.reference(step.refs[key], key=key)
        templates = []
        if self.new:
            dest = state.names.reference(step.refs["to"], key="to", slices=False)
            state.names.expect_new(dest.alias, [name for _, name in state.names.pairs(source, dest)])
            templates.append(dest)
        if "share" in step.refs:
            templates.append(state.names.reference(step.refs["share"], key="share", slices=False))
        for name, *given in state.names.rows(source, *templates):
            new = given[0] if self.new else name
            before = state.versions.slot(source.alias, name, reads=1).node
            like = state.versions.view(before, source)
            share = given[-1] if "share" in step.refs else new
            part = "" if self.new or source.slice is None else f"::{','.join(map(str, source.slice))}"
            op = step.thing.of(new + part, share, state.versions.spec(like))
            statistics = state.versions.apply(Moments(), like) if step.thing.is_like else ()
            value = state.versions.compute(op, like, *statistics)
            if self.new:
                state.versions.create(dest.alias, new, value)
            else:
                state.versions.rebind(source.alias, name, state.versions.store(before, source, value))
            state.speech.tell(f"{self.word}: {new}")


@dataclass(frozen=True)
class Reinit(TensorOp):
    """Draw a share of the places of an axis anew, from the normal distribution that has the mean and the standard
    deviation of the whole tensor.

    source: float, any shape -> the same. Of an axis of length n, round(ratio n) places, half to even, are chosen by the
    seed and by what `share` gives for the name: tensors for which it gives the same have the same places drawn anew.
    The numbers depend on the seed, the name of the result (with its slice) and the position.
    """

    needs_positions = True
    spellings = (_Reinit("reinit", new=True), _Reinit("reinit_", new=False))
    examples = (
        "reinit: { from: '(.+)\\.up\\.weight', to: '\\1.experts.0.up.weight', ratio: 0.5, share: '\\1.experts.0' }",
        "reinit_: { target: '(.+)\\.down_proj\\.weight', ratio: 0.5, dim: 1, share: '\\1' }",
    )

    ratio: float = number("share of the places, from 0 to 1")
    dim: int = integer("the axis whose places are chosen; negative counts from the end", 0)
    seed: int = integer("the same for all tensors of a step", 0)
    mean: float | None = number_or_like("mean", None)
    std: float | None = number_or_like("standard deviation", None)
    first: float = word()
    second: float = word()
    chosen_first: float = word()
    chosen_second: float = word()
    count: float = word()  # how many places are chosen
    high: float = word()  # the largest random words of a place that is chosen, as the generator gives them; found when
    low: float = word()  # the numbers are asked for, since that takes the words of all places
    length: float = word()
    inner: float = word()  # elements of a place of the axis

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise PlanError("ratio is from 0 to 1", found=f"{self.ratio:g}")
        if self.std.__class__ is float and self.std < 0:
            raise PlanError("std must not be negative", found=f"{self.std:g}")

    @property
    def is_like(self) -> bool:
        """Whether mean or deviation are those of the tensor."""
        return self.mean is None or self.std is None

    def of(self, name: str, share: str, spec: Spec) -> Reinit:
        """The operation for a tensor: its random streams, and what is chosen."""
        from ..numerics.threefry import key_of

        check_floats(spec)
        axis = check_axis(self.dim, spec)
        length, inner = spec.shape[axis], _size(spec.shape[axis + 1 :])
        keys = *key_of(self.seed, name), *key_of(self.seed, f"places of {share}")
        numbers = [float(x) for x in (*keys, round(self.ratio * length), max(length, 1), max(inner, 1))]
        names = ("first", "second", "chosen_first", "chosen_second", "count", "length", "inner")
        return replace(self, dim=0, seed=0, ratio=0.0, **dict(zip(names, numbers, strict=True)))

    def numbers(self) -> tuple[float, ...]:
        high, low = self._bounds()
        return super(Reinit, replace(self, high=high, low=low)).numbers()

    def _bounds(self) -> tuple[float, float]:
        """The largest words of a place that is chosen."""
        if self.length.__class__ is not float:
            return self.high, self.low  # while a function is traced they are its arguments
        return _bound((self.chosen_first, self.chosen_second), int(self.length), int(self.count))

    def infer(self, source: Spec, *_: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array, *rest: Array) -> Array:
        from ..numerics.threefry import normal, words

        *statistics, position = rest
        mean = statistics[0][0] if self.mean is None else k.xp.asarray(self.mean, "float64")
        std = statistics[0][1] if self.std is None else k.xp.asarray(self.std, "float64")
        inner, length = (k.xp.asarray(x, "float64").astype("uint64") for x in (self.inner, self.length))
        high, low = (k.xp.asarray(x, "float64").astype("int64") for x in self._bounds())
        a, b = (
            x.astype("int64") for x in words(k, (self.chosen_first, self.chosen_second), position // inner % length)
        )
        is_chosen = (a < high) | ((a == high) & (b <= low))
        drawn = k.mul(normal(k, (self.first, self.second), position), std) + mean
        return k.xp.where(is_chosen, k.cast(drawn, k.dtype(source)), source)

    def smallest(self, source: Bound, *_: Bound) -> Bound:
        return source


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@lru_cache(maxsize=1 << 16)  # the matrices of an expert share theirs
def _bound(key: tuple[float, float], length: int, count: int) -> tuple[float, float]:
    """The largest two words of the `count` places with the smallest ones; (-1, -1) if there are none."""
    import numpy as np

    from ..numerics.host_kernel import HostKernel
    from ..numerics.threefry import words

    if not count:
        return -1.0, -1.0
    a, b = words(HostKernel(), key, np.arange(length, dtype=np.uint64))
    last = int(np.partition(a.astype(np.uint64) << np.uint64(32) | b, count - 1)[count - 1])
    return float(last >> 32), float(last & 0xFFFFFFFF)
