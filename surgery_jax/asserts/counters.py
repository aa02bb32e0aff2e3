"""Access counters: bounds with the spellings `at_least` and `at_most`."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.selecting import Bounds, bound

__all__ = ["Counter"]


@dataclass(frozen=True)
class Counter(Bounds):
    """Bounds on a counter; at_least is ge, at_most is le."""

    at_least: int | None = bound("at least")
    at_most: int | None = bound("at most")

    def __post_init__(self) -> None:
        for short, long in (("ge", "at_least"), ("le", "at_most")):
            one, other = getattr(self, short), getattr(self, long)
            if one is not None and other is not None and one != other:
                raise PlanError(f"{self.name}: {short} and {long} differ", found=f"{one} and {other}")
            object.__setattr__(self, short, one if one is not None else other)
        super().__post_init__()
