"""What a step can be: a `TensorOp`, a pure function from arrays to arrays, or a `Directive`, which acts on the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..core.exact import exact
from ..core.specs import Spec
from .fields import Field, fields_of
from .kernel import Kernel

if TYPE_CHECKING:
    from ..language.document import Node
    from ..numerics.cuts import Cut
    from .forms import Form
    from .state import State

__all__ = ["DECOMPOSED", "NO_ARITHMETIC", "SUMMED", "Directive", "TensorOp", "Varies"]

NO_ARITHMETIC = ("structure", "check", "make", "template", "composed")  # kinds that compute with no numbers of operands


class Varies(NamedTuple):
    """Why the results of an operation may have other bits on another processor or backend, and by how much they may be
    off: a part of the largest magnitude in the tensor."""

    why: str
    tolerance: float


SUMMED = Varies("it sums in the order of the library and the processor", 1e-5)
DECOMPOSED = Varies("the library and the processor decide the last bits of a decomposition", 1e-3)

_TRACED: dict[type, tuple[str, ...]] = {}


class TensorOp:
    """A pure function from arrays to arrays. Subclasses are frozen dataclasses whose fields are static or traced.

    kind:
        `elementwise`: every output element depends on the input elements of the same position only; all of one shape.
        `check`: elementwise, the output is a mask that must be true everywhere.
        `structure`: moves elements and changes no bit of them.
        `whole`: needs whole tensors.
        `make`: no inputs; `put` gives the elements on the host.
        `composed`: stands for others, which `compose` applies.
        `reduce`: a few numbers about all elements of operands of one size (`kit.reduction`).
    """

    kind: ClassVar[str] = "elementwise"
    needs_finite: ClassVar[bool] = False  # NaN or infinity in an operand is an error
    uses_lapack: ClassVar[bool] = False  # which a CPU runs as well without a compiled function around it
    is_fast_on_host: ClassVar[bool] = False  # NumPy does it rather than a compiled function on a CPU
    sorts: ClassVar[bool] = False  # rows: only for that NumPy is better, which can do it between compiled functions
    host_below: ClassVar[int] = 0  # with fewer elements NumPy is done before a function for a CPU is compiled
    # the result is worth being held where the elements are gone over again; of a mask that takes a bit an element
    is_remembered: ClassVar[bool] = False
    needs_positions: ClassVar[bool] = False  # the last operand is the number of every element, uint64
    # the last argument of `apply`, beside the operands, tells where their elements are (`kit.numbering`); it is left
    # out where the operands are whole tensors. Only together with statistics of the same tensor.
    needs_places: ClassVar[bool] = False
    varies: ClassVar[Varies | None] = None  # None: the same bits on every processor and backend
    outputs: ClassVar[int] = 1
    spellings: ClassVar[tuple[Form, ...]] = ()
    examples: ClassVar[tuple[str, ...]] = ()

    def infer(self, *specs: Any, **_: Any) -> tuple[Spec, ...]:
        """Shapes and dtypes of the results.

        Raises:
            PlanError: the operation is not defined on these operands.
        """
        raise NotImplementedError

    def apply(self, k: Kernel, *arrays: Any, **_: Any) -> Any:
        """The results. `k` computes exactly, on a device or in NumPy (`numerics.kernels`); traced fields of `self` are
        scalars of float64 while a device function is traced."""
        raise NotImplementedError

    def compose(self, versions: Any, *operands: Any) -> tuple[Any, ...]:
        """What it comes to if it is composed, by other operations that `versions.apply` and `versions.compute` apply.

        Raises:
            PlanError: the operation is not defined on these operands.
        """
        raise NotImplementedError

    def smallest(self, *bounds: Any, **_: Any) -> Any:
        """How small non-zero results can be, given that of the operands (`numerics.magnitude`); None: not to
        be bounded."""
        return None

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        """The same operation on `rows` rows of every operand; None if rows of the result need more than theirs."""
        return self if self.kind in ("elementwise", "check") else None

    def workspace_bytes(self, *operands: Any) -> int:
        """Bytes that computing needs beside operands and results."""
        return 0

    def cut(self, *operands: Any) -> Cut | None:
        """How one call of a whole operation is spread over devices when it is too large for one; None if it cannot be.

        A cut operand is padded with zeros at the end of its axis: results may be longer for it, but must be the same in
        front; and `apply` must leave every sum along that axis to the kernel (`numerics.mesh_kernel`)."""
        return None

    def cut_workspace_bytes(self, count: int, cut: Cut, *operands: Any) -> int:
        """Bytes that each of `count` devices needs beside its parts of the padded operands and of the results."""
        return 0

    def widens(self, *operands: Any) -> bool:
        """Whether it only puts zeros after the bits of every element, which NumPy does as fast as memory goes."""
        return False

    def by_bits(self, *operands: Spec) -> bool:
        """Whether a device only moves or compares the bits of these operands, so that subnormal numbers are safe."""
        return self.kind == "structure"

    @classmethod
    def traced_fields(cls) -> tuple[str, ...]:
        """Attributes that are run-time arguments of the compiled function."""
        if cls not in _TRACED:
            declared = [attribute for attribute, field in fields_of(cls).values() if field.traced]
            hidden = [entry.name for entry in dataclasses.fields(cls) if entry.metadata.get("traced")]  # type: ignore[arg-type]
            _TRACED[cls] = (*declared, *hidden)
        return _TRACED[cls]

    def named(self, name: str) -> TensorOp:
        """The operation for the tensor of a name, where it depends on that, as random streams do."""
        return self

    def numbers(self) -> tuple[float, ...]:
        """Values of the traced fields that are present, those of a tuple one after the other."""
        values = [getattr(self, name) for name in self.traced_fields()]
        return tuple(number for value in values if value is not None for number in _each(value))

    def with_numbers(self, numbers: Iterator[Any]) -> TensorOp:
        """This operation with its present traced fields replaced, in order."""
        present = {name: getattr(self, name) for name in self.traced_fields() if getattr(self, name) is not None}
        given = {
            name: tuple(next(numbers) for _ in value) if isinstance(value, tuple) else next(numbers)
            for name, value in present.items()
        }
        return dataclasses.replace(self, **given) if present else self  # type: ignore[type-var]

    def static_key(self) -> tuple[Any, ...]:
        """What of this operation belongs to the compiled structure."""
        traced = set(self.traced_fields())
        rest = []
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if entry.name not in traced:
                rest.append(exact(value))
            else:
                rest.append(len(value) if isinstance(value, tuple) else value is None)
        return (type(self).__name__, *rest)


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


class Directive:
    """A step that acts on the namespace, prints, or adds a root. Subclasses are frozen dataclasses.

    `selects`: it works on all tensors that its first reference matches, so it has the key `where`. `computes`: with
    their numbers, so it has the key `raw`.
    """

    word: ClassVar[str]
    selects: ClassVar[bool] = False
    computes: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""  # attribute that a payload which is no mapping fills

    def build(self, state: State) -> None:
        """Run on the symbolic state."""
        raise NotImplementedError

    def contributes(self, state: State) -> str | None:
        """The alias that this step offers as the plan's output, None if it offers none."""
        return None

    @classmethod
    def further(cls, payload: Node) -> Mapping[str, tuple[str, Field]]:
        """Keys that this payload may have beside the attributes; the step gets their values by `with_further`.

        Raises:
            PlanError: the payload does not say which.
        """
        return {}

    def with_further(self, values: Mapping[str, Any]) -> Directive:
        """This step with the values of its further keys, by the names that `further` gives."""
        return self
