"""What tensors drawn at random share: their spellings, and the statistics of a tensor that they are to resemble.

Every element depends on the seed, the name of the tensor and its own position, so that equal seeds give tensors of
other names other numbers, and nothing depends on order, tiles or devices (`numerics.threefry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.dtypes import BY_NAME, DType
from ..core.errors import PlanError
from ..core.specs import Spec
from ..language.document import Scalar
from ..language.slices import check_not_clamped
from . import base
from .base import BoundStep, TensorOp, word
from .forms import Form, reference_field
from .kernel import Array, Bound, Kernel
from .made import Positions, check_shape
from .reduction import Before, Reduction
from .rules import check_floats

if TYPE_CHECKING:
    from ..language.document import Node
    from .state import State

__all__ = ["Draw", "Drawn", "Moments", "Redraw", "number_or_like"]

LIKE = "like"


@dataclass(frozen=True)
class Moments(Reduction):
    """Mean and standard deviation of all elements, in float64; the deviation is that of the population.

    source: float, any shape -> float64[2].
    """

    @property
    def stages(self) -> int:
        return 2

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum", "sum")

    def terms(self, k: Kernel, stage: int, before: Before, source: Array) -> tuple[Array, ...]:
        wide = k.widen(source).astype("float64")
        off = wide if before is None else wide - before[0]
        return (wide if before is None else k.mul(off, off)), k.xp.ones(wide.shape, "float64")

    def finish(self, k: Kernel, stage: int, totals: Sequence[Array], before: Before) -> tuple[Array, ...]:
        average = totals[0] / totals[1]
        return (average, totals[1]) if before is None else (before[0], k.xp.sqrt(average))


def number_or_like(doc: str, default: Any) -> Any:
    """A number, or the word `like` (None): the same of the tensor that is named. Traced."""

    def parse(value: Node) -> float | None:
        is_like = isinstance(value, Scalar) and value.value == LIKE
        return None if is_like else base.parse_number(value)

    return base.declare(base.Field("number or `like`", doc, parse, default, traced=True))


@dataclass(frozen=True)
class Drawn(TensorOp):
    """Random numbers; a subclass says which.

    position: uint64, any shape; and where a parameter is `like`, what `Moments` gives -> `dtype`, the same shape.
    """

    dtype: DType = BY_NAME["float32"]
    first: float = word()
    second: float = word()

    @property
    def is_like(self) -> bool:
        """Whether parameters are those of a tensor."""
        return False

    def of(self, name: str, seed: int, dtype: DType) -> TensorOp:
        """The operation for a tensor of this name and dtype."""
        from ..numerics.threefry import key_of

        first, second = key_of(seed, name)
        return replace(self, dtype=dtype, first=float(first), second=float(second))

    def infer(self, position: Spec, *statistics: Spec) -> tuple[Spec, ...]:
        made = Spec(position.shape, self.dtype)
        check_floats(made)
        return (made,)

    def workspace_bytes(self, position: Spec, *statistics: Spec) -> int:
        return 8 * position.size  # the numbers, in float64

    def smallest(self, position: Bound, *statistics: Bound) -> Bound:
        return position


class _Drawing(Form):
    """A form that draws tensors."""

    def _draw(self, step: BoundStep, state: State, name: str, spec: Spec, like: Any) -> Any:
        """The version that is drawn for a name; `like` is the one whose statistics count, None if there is none."""
        assert isinstance(step.thing, Drawn)
        if not step.thing.is_like:
            statistics: tuple[Any, ...] = ()
        elif like is None:
            raise PlanError(f"{self.word}: `like` needs a tensor", where=step.mark, hint="name it with `from`")
        else:
            statistics = state.versions.apply(Moments(), like)
        positions = state.versions.compute(Positions(Spec(spec.shape, BY_NAME["uint64"])))
        op = step.thing.of(name, step.refs.get("seed", 0), spec.dtype)  # type: ignore[arg-type]
        return state.versions.compute(op, positions, *statistics)


_SEED = base.integer("of all tensors of the step, whose names make them differ", 0).metadata["field"]


class Draw(_Drawing):
    """`to` with `from`, whose matches give names, dtypes and, unless `shape` says otherwise, shapes; or the one tensor
    that `shape` and `dtype` describe: new tensors."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        dtype = base.dtype_name("a float dtype; by default that of `from`, or float32", None).metadata["field"]
        self.fields = {
            "from": reference_field("tensors that give shape and dtype, may be sliced", "from", None),
            "to": reference_field("names of the results, must be new", "to"),
            "shape": (
                "shape",
                base.integers("the lengths, [] for a scalar; by default those of `from`", None).metadata["field"],
            ),
            "dtype": ("dtype", dtype),
            "seed": ("seed", _SEED),
        }

    def build(self, step: BoundStep, state: State) -> None:
        """Draw every tensor."""
        given: Any = step.refs
        if "from" not in given and "shape" not in given:
            raise PlanError(f"{self.word} needs `from` or `shape`", where=step.mark)
        is_single = "from" not in given
        dest = state.names.reference(given["to"], key="to", slices=False, literal=is_single)
        if "shape" in given:
            check_shape(given["shape"], least=0)
        if is_single:
            assert isinstance(dest.expr, str)
            state.names.expect_new(dest.alias, [dest.expr])
            spec = Spec(given["shape"], given.get("dtype", BY_NAME["float32"]))
            state.versions.create(dest.alias, dest.expr, self._draw(step, state, dest.expr, spec, None))
            return
        source = state.names.reference(given["from"], key="from")
        pairs = state.names.pairs(source, dest)
        state.names.expect_new(dest.alias, [new for _, new in pairs])
        for name, new in pairs:
            stored = state.versions.slot(source.alias, name, reads=1).node
            if source.slice is not None:
                check_not_clamped(source.slice, state.versions.spec(stored).shape)
            like = state.versions.view(stored, source)
            spec = state.versions.spec(like)
            spec = Spec(given.get("shape", spec.shape), given.get("dtype", spec.dtype))
            state.versions.create(dest.alias, new, self._draw(step, state, new, spec, like))
            state.speech.tell(f"{self.word}: {new}")


class Redraw(_Drawing):
    """`target`: every match gets other numbers; with a slice only that part of it."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.fields = {
            "target": reference_field("tensors to draw anew, may be sliced", "target"),
            "seed": ("seed", _SEED),
        }

    def build(self, step: BoundStep, state: State) -> None:
        """Draw every match."""
        target = state.names.reference(step.refs["target"], key="target")
        for name in state.names.select(target):
            before = state.versions.slot(target.alias, name, reads=1).node
            like = state.versions.view(before, target)
            value = self._draw(step, state, name, state.versions.spec(like), like)
            state.versions.rebind(target.alias, name, state.versions.store(before, target, value))
            state.speech.tell(f"{self.word}: {name}")
