"""`dtype`: exact dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    is_: Any = dtype_name("the dtype", key="is")

    def __post_init__(self) -> None:
        assert isinstance(self.is_, DType)

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        dtype = state.view(state.slot(ref.alias, name, reads=1).node, ref).spec.dtype
        return Known(dtype is self.is_, f"dtype: {name} is {dtype}, expected {self.is_}")
