"""How a predicate is declared, and what its evaluation gives: known from headers, or to be settled by values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..core.discover import named, own_named
from ..core.errors import MOST_NAMES, PlanError, listing, nearest
from ..language.document import Mapping as YamlMapping
from ..language.document import Node
from ..language.nodes import shown
from . import fields
from .kernel import Array, Kernel
from .operations import TensorOp

if TYPE_CHECKING:
    from .state import State

__all__ = ["AtEnd", "Combined", "Known", "Measured", "Outcome", "Pending", "Predicate", "parse_predicate", "predicates"]


PACKAGE = "surgery_jax.asserts"


class Outcome(Protocol):
    """What an expression came to. `settle` gives whether it holds, and why not (or why, for `not`)."""

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]: ...

    def known(self) -> bool: ...


@dataclass(frozen=True)
class Known:
    """Decided by headers alone."""

    holds: bool
    why: str

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]:
        return self.holds, self.why

    def known(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Pending:
    """Decided by the values of tensors: `check` is a key of the verdicts, which say (holds, why)."""

    check: Any

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]:
        holds, why, *_ = verdicts[self.check]
        return holds, why

    def known(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class Measured:
    """Decided by numbers about a tensor: `sink` is their key, `judge` says whether they will do, and why."""

    sink: Any
    judge: Callable[[Any], tuple[bool, str]]

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]:
        return self.judge(verdicts[self.sink])

    def known(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class AtEnd:
    """Decided by `judge` when all steps of the plan are known, which `is_there` says."""

    judge: Callable[[], tuple[bool, str]]
    is_there: Callable[[], bool]

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]:
        return self.judge()

    def known(self) -> bool:
        return self.is_there()


@dataclass(frozen=True, eq=False)
class Combined:
    """`all`, `any` or `not` of outcomes."""

    how: str
    parts: tuple[Outcome, ...]

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]:
        settled = [part.settle(verdicts) for part in self.parts]
        if self.how == "not":
            return not settled[0][0], f"not: {settled[0][1]}"
        if self.how == "all":
            holds = (True, f"all {len(settled)} hold: {listing((why for _, why in settled), 3)}")
            return next((entry for entry in settled if not entry[0]), holds)
        found = next((entry for entry in settled if entry[0]), None)
        return found or (False, "none of any holds: " + "; ".join(why for _, why in settled[:MOST_NAMES]))

    def known(self) -> bool:
        return all(part.known() for part in self.parts)


class Predicate:
    """One assertion expression; subclasses are frozen dataclasses with fields as in `kit.base`."""

    name: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""  # attribute that a payload which is no mapping fills

    def evaluate(self, state: State) -> Outcome:
        """The outcome at this place of the plan.

        Raises:
            PlanError: a reference that cannot be resolved; `not` and `any` count it as a failure.
        """
        raise NotImplementedError


@cache
def predicates() -> Mapping[str, type[Predicate]]:
    """Every predicate by name, sorted; found by importing the files of `surgery_jax.asserts`, and what entry points
    name.

    Raises:
        PlanError: two of one name, or what an entry point names fails.
    """
    return named(Predicate, PACKAGE, "assertions")


def parse_predicate(expression: Node) -> Predicate:
    """A predicate from its YAML.

    Raises:
        PlanError: not a mapping with exactly one known name, or bad fields.
    """
    if not isinstance(expression, YamlMapping) or len(expression.entries) != 1:
        raise PlanError(
            "an assertion is a mapping with exactly one expression",
            where=expression.mark,
            expected="for example { exists: name }",
            found=shown(expression),
        )
    ((name, payload),) = expression.entries.items()
    cls = own_named(Predicate, PACKAGE, name) or predicates().get(name)
    if cls is None:
        near = nearest(name, predicates(), 1)
        raise PlanError(
            f"unknown assertion {name!r}",
            where=expression.keys[name],
            expected="one of " + ", ".join(predicates()),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    declared = fields.fields_of(cls)
    if cls.takes and (len(declared) == 1 or not isinstance(payload, YamlMapping)):
        key = next(key for key, (attribute, _) in declared.items() if attribute == cls.takes)
        payload = YamlMapping({key: payload}, {key: payload.mark}, payload.mark)
    try:
        return cls(**fields.parse_fields(name, payload, declared))
    except PlanError as error:
        raise error.located(expression.keys[name]) from None


def settle_all(how: str, parts: list[Outcome]) -> Outcome:
    """`all` of outcomes, decided now as far as it can be."""
    return parts[0] if len(parts) == 1 else Combined(how, tuple(parts))


class Mask(TensorOp):
    """An elementwise test. `apply` gives a mask that must be true everywhere; `measure` how far off each element is."""

    kind = "check"

    def measure(self, k: Kernel, *arrays: Any, **_: Any) -> Array:
        """How far off every element is, in float64; for messages."""
        raise NotImplementedError
