"""`where`: of the tensors that a reference matches, a step takes only those of some dtypes."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import DTYPES, DType, parse_dtype
from ..core.errors import PlanError
from ..language.document import Mapping, Node, Scalar, Sequence, check_keys
from ..language.nodes import shown

__all__ = ["Where", "parse_where"]

# `float` and `int` are dtypes elsewhere, float32 and int32; who selects means all of a kind.
KINDS = {"float": "f", "int": "iu", "complex": "c", "bool": "b"}


@dataclass(frozen=True)
class Where:
    """The dtypes that are taken, and the words that say so."""

    dtypes: frozenset[DType]
    text: str

    def takes(self, dtype: DType) -> bool:
        """Whether tensors of this dtype are taken."""
        return dtype in self.dtypes


def parse_where(value: Node) -> Where:
    """A condition on dtypes: kinds or names, one or a list.

    Raises:
        PlanError: no such condition.
    """
    if not isinstance(value, Mapping) or "dtype" not in value.entries:
        raise PlanError(
            "not a condition",
            where=value.mark,
            expected="for example { dtype: float }, or { dtype: [float32, bfloat16] }",
            found=shown(value),
        )
    check_keys(value, ("dtype",), "where")
    given = value.entries["dtype"]
    items = given.items if isinstance(given, Sequence) else (given,)
    words = [str(item.value) if isinstance(item, Scalar) else "" for item in items]
    found: set[DType] = set()
    for item, word in zip(items, words, strict=True):
        found |= _dtypes(word, item)
    if not found:
        raise PlanError("no dtype is named", where=given.mark, expected=", ".join(KINDS) + ", or names of dtypes")
    return Where(frozenset(found), " or ".join(words))


def _dtypes(word: str, item: Node) -> set[DType]:
    kind = KINDS.get(word.strip().lower())
    if kind is not None:
        return {dtype for dtype in DTYPES if dtype.kind in kind}
    try:
        return {parse_dtype(word)}
    except PlanError as error:
        error.expected = f"{', '.join(KINDS)}, which stand for all of a kind, or {error.expected}"
        raise error.located(item.mark) from None
