"""`dtype`: exact dtypes."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import DType
from ..kit.base import dtype_name
from ..kit.predicates import Known, Outcome
from ..kit.selecting import Selecting
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class Dtype(Selecting):
    """Every match has this dtype."""

    name = "dtype"
    examples = ("dtype: { of: '.*\\.weight', is: bfloat16 }",)

    is_: DType = dtype_name("the dtype")

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        dtype = state.versions.spec(state.versions.read(ref, name)).dtype
        return Known(dtype is self.is_, f"dtype: {name} is {dtype}, expected {self.is_}")
