"""`rearrange`, `rearrange_`: axes split, joined and put in another order, by a pattern."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit import base
from ..kit.base import Field, TensorOp, text
from ..kit.forms import InPlace, New
from ..kit.made import Constant
from ..kit.state import Value, Versions
from ..language import document
from ..language.document import Node
from .permute import Permute
from .reshape import Reshape

Axes = tuple[tuple[str, ...], ...]  # of a side: the names that stand in one pair of brackets, or a single one

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9_]*|1|[()]|\S")


def _parse_sizes(value: Node) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, document.Mapping):
        raise base.wrong(value, "a mapping of names of axes to lengths")
    return tuple((name, base.parse_int(length)) for name, length in value.entries.items())


def _side(side: str, pattern: str) -> Axes:
    """The axes of one side of a pattern."""
    found: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for token in _TOKEN.findall(side):
        if token == "(" and group is None:
            group = []
        elif token == ")" and group is not None:
            found.append(tuple(group))
            group = None
        elif token == "1" or token.isidentifier():
            names = () if token == "1" else (token,)
            if group is None:
                found.append(names)
            else:
                group.extend(names)
        else:
            raise _error(pattern, f"{token!r} has no place there")
    if group is not None:
        raise _error(pattern, "a bracket is not closed")
    return tuple(found)


def _error(pattern: str, reason: str) -> PlanError:
    return PlanError(
        f"not a pattern: {reason}",
        expected="the names of all axes before and after, such as '(h d) i -> h d i'",
        found=repr(pattern),
    )


@dataclass(frozen=True)
class Rearrange(TensorOp):
    """Split, join and reorder axes as einops.rearrange does; elements are moved and no bit changes.

    source: any dtype, as many axes as the left side of the pattern has -> those of the right side. `(a b)` is one axis
    that holds both, b running faster; `1` is an axis of length 1. One length of each bracket may be left to be found.
    """

    kind = "composed"
    spellings = (New("rearrange"), InPlace("rearrange_", slices=False))
    examples = (
        "rearrange: { from: qkv.weight, to: heads, pattern: '(n h d) i -> n h d i', sizes: { n: 3, h: 12 } }",
        "rearrange_: { target: '.+\\.q_proj\\.weight', pattern: '(h n d) i -> (h d n) i', sizes: { n: 2, d: 32 } }",
    )

    pattern: str = text("axes before -> axes after")
    sizes: tuple[tuple[str, int], ...] = base.declare(
        Field("mapping of names to lengths", "lengths that the shape does not tell", _parse_sizes, ())
    )

    def __post_init__(self) -> None:
        before, after = self.sides
        for side in (before, after):
            names = [name for axis in side for name in axis]
            if len(set(names)) < len(names):
                raise _error(self.pattern, "a name comes twice on one side")
        left, right = ({name for axis in side for name in axis} for side in (before, after))
        if left != right:
            raise _error(self.pattern, f"only on one side: {', '.join(sorted(left ^ right))}")
        if not after:
            raise _error(self.pattern, "no axis is left")
        unknown = [name for name, length in self.sizes if name not in left or length < 1]
        if unknown:
            raise PlanError("sizes are positive lengths of axes of the pattern", found=", ".join(unknown))

    @property
    def sides(self) -> tuple[Axes, Axes]:
        """The axes before and after."""
        sides = self.pattern.split("->")
        if len(sides) != 2:
            raise _error(self.pattern, "one arrow stands between the axes before and after")
        return _side(sides[0], self.pattern), _side(sides[1], self.pattern)

    def lengths(self, source: Spec) -> Mapping[str, int]:
        """The length of every name of the pattern.

        Raises:
            PlanError: they do not fit the shape, or the shape does not tell them.
        """
        before, _ = self.sides
        if len(before) != len(source.shape):
            raise PlanError(
                "the pattern has another number of axes", expected=f"{len(source.shape)} axes", found=repr(self.pattern)
            )
        found = dict(self.sizes)
        for axis, length in zip(before, source.shape, strict=True):
            unknown = [name for name in axis if name not in found]
            known = math.prod(found[name] for name in axis if name in found)
            if len(unknown) > 1:
                raise PlanError(
                    f"the lengths of {' and '.join(unknown)} cannot both be found", hint="give one of them in `sizes`"
                )
            if length % known or (not unknown and length != known):
                raise PlanError(
                    f"({' '.join(axis)}) does not fit an axis of length {length}",
                    expected=f"{'a multiple of ' if unknown else ''}{known}",
                    found=str(source),
                )
            found |= {name: length // known for name in unknown}
        return found

    def compose(self, versions: Versions, operand: Value) -> tuple[Value, ...]:
        """Split, reorder, join; what changes nothing falls away."""
        source = versions.spec(operand)
        lengths = self.lengths(source)
        before, after = ([name for axis in side for name in axis] for side in self.sides)
        split = tuple(lengths[name] for name in before) or (1,)
        joined = tuple(math.prod(lengths[name] for name in axis) for axis in self.sides[1])
        if not source.size:
            return (versions.compute(Constant(Spec(joined, source.dtype), 0.0)),)
        order = tuple(before.index(name) for name in after) or (0,)
        for op in (Reshape(split), Permute(order), Reshape(joined)):
            operand = versions.compute(op, operand)
        return (operand,)
