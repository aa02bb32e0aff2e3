"""Predicates that look at every matching tensor: what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import PlanError
from ..language.document import Node, Scalar
from ..language.names import Reference
from . import base
from .fields import reference
from .predicates import Known, Outcome, Predicate, settle_all
from .state import State

__all__ = ["Bounds", "Selecting", "bound"]


@dataclass(frozen=True)
class Selecting(Predicate):
    """A predicate over every match of `of`; no match is a failure."""

    of: Node = reference("the tensors, may be sliced")

    def evaluate(self, state: State) -> Outcome:
        ref = state.names.reference(self.of, key="of")
        names = state.names.match(ref)
        if not names:
            return Known(False, f"{self.name}: matched zero tensors: {ref.text}")
        return settle_all("all", [self.test(state, ref, name) for name in names])

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        """The outcome of one tensor."""
        raise NotImplementedError


def _parse_bound(value: Node) -> int:
    found = (
        base.parse_int(value) if not (isinstance(value, Scalar) and isinstance(value.value, bool)) else int(value.value)
    )
    if found < 0:
        raise PlanError("not a bound", where=value.mark, expected="an integer that is not negative", found=str(found))
    return found


def bound(doc: str) -> Any:
    """A non-negative integer; null means absent."""
    return base.declare(base.Field("integer", doc, _parse_bound, None, null_is_absent=True))


@dataclass(frozen=True)
class Bounds(Selecting):
    """Bounds on a count: all given ones must hold."""

    is_: int | None = bound("exactly")
    ge: int | None = bound("at least")
    gt: int | None = bound("more than")
    le: int | None = bound("at most")
    lt: int | None = bound("less than")

    def __post_init__(self) -> None:
        low = max([self.ge or 0, (self.gt + 1) if self.gt is not None else 0])
        highs = [b for b in (self.le, self.lt - 1 if self.lt is not None else None) if b is not None]
        given = [self.is_, self.ge, self.gt, self.le, self.lt]
        if all(entry is None for entry in given):
            raise PlanError(f"{self.name}: at least one bound is needed", expected="is, ge, gt, le or lt")
        if (highs and low > min(highs)) or (self.is_ is not None and not self.holds(self.is_)):
            raise PlanError(f"{self.name}: nothing satisfies these bounds", found=self.described())

    def holds(self, count: int) -> bool:
        """Whether a count satisfies every bound."""
        return (
            (self.is_ is None or count == self.is_)
            and (self.ge is None or count >= self.ge)
            and (self.gt is None or count > self.gt)
            and (self.le is None or count <= self.le)
            and (self.lt is None or count < self.lt)
        )

    def described(self) -> str:
        """The bounds in words."""
        given = {"is": self.is_, "ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        return ", ".join(f"{word} {value}" for word, value in given.items() if value is not None)
