"""Shape-and-dtype rules that several operations share."""

from __future__ import annotations

from ..core.errors import PlanError
from ..core.specs import Spec

__all__ = ["check_arrays", "check_axis", "check_floats", "check_matrix", "check_same"]


def check_same(left: Spec, right: Spec) -> None:
    """Equal shape and dtype; there is no broadcasting and no promotion."""
    if left.shape != right.shape:
        raise PlanError(
            "shapes differ", expected=str(left), found=str(right), hint="slice or reshape one of them first"
        )
    if left.dtype is not right.dtype:
        raise PlanError("dtypes differ", expected=str(left), found=str(right), hint="cast one of them first")


def check_arrays(spec: Spec) -> None:
    """A dtype of whole bytes, which arrays can hold."""
    if not spec.dtype.array:
        raise PlanError(
            f"{spec.dtype.name} can be moved, copied and deleted, not computed with",
            expected="a dtype of whole bytes",
            found=str(spec),
        )


def check_floats(spec: Spec, complex_too: bool = False) -> None:
    """A floating-point (or complex) dtype."""
    check_arrays(spec)
    if not (spec.dtype.is_float or (complex_too and spec.dtype.kind == "c")):
        raise PlanError("needs a floating-point tensor", found=str(spec), hint="cast it to float32 first")


def check_matrix(spec: Spec) -> None:
    """Two axes, both longer than 0."""
    if len(spec.shape) != 2 or 0 in spec.shape:
        raise PlanError("needs a matrix", expected="two axes, none of length 0", found=str(spec))


def check_axis(axis: int, spec: Spec) -> int:
    """The axis counted from the front."""
    if not spec.shape:
        raise PlanError("a scalar has no axis", hint="reshape it to [1] first")
    if not -len(spec.shape) <= axis < len(spec.shape):
        raise PlanError(f"no axis {axis}", expected=f"-{len(spec.shape)} to {len(spec.shape) - 1}", found=str(spec))
    return axis % len(spec.shape)
