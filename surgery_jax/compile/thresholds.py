"""How small the elements that a function reads may be if no number that a device would flush is to appear."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from ..core.specs import Spec
from ..kit.base import TensorOp
from ..numerics import magnitude
from ..numerics.magnitude import Bound
from .blueprint import Blueprint

__all__ = ["threshold"]


def threshold(plan: Blueprint, numbers: tuple[float, ...]) -> int | None:
    """The smallest exponent of input elements with which no subnormal number can appear; None if there is none."""
    low, high = -1100, 1100
    while low < high:
        middle = (low + high) // 2
        if _stays_normal(plan, middle, numbers):
            high = middle
        else:
            low = middle + 1
    return low if low < 1100 else None


def _stays_normal(plan: Blueprint, threshold: int, numbers: tuple[float, ...]) -> bool:
    """Whether all results are normal numbers when all tested input elements are at least 2**threshold."""
    specs = plan.value_specs()
    bounds: list[Bound | None] = [magnitude.of_input(spec.dtype, threshold) for spec in plan.specs]
    remaining = iter(numbers)
    for eqn in plan.eqns:
        op = eqn.op.with_numbers(remaining)
        operands = [bounds[arg] for arg in eqn.args]
        is_by_bits = op.by_bits(*(specs[arg] for arg in eqn.args))
        if (eqn.op.kind == "whole" and not is_by_bits) or any(operand is None for operand in operands):
            bounds += [None] * len(eqn.specs)
            continue
        known = [operand for operand in operands if operand is not None]
        if is_by_bits:
            bounds.append(reduce(Bound.either, known))
            continue
        found = _computed(op, known, [specs[arg] for arg in eqn.args], eqn.specs[0])
        if found is None:
            return False
        bounds.append(found)
    return True


def _computed(op: TensorOp, operands: Sequence[Bound], specs: Sequence[Spec], result: Spec) -> Bound | None:
    """The bound of a result, None if a subnormal number may take part or come out."""
    floats = [spec.dtype for spec in specs if spec.dtype.is_float]
    for operand, spec in zip(operands, specs, strict=True):
        if spec.dtype.is_float and operand.least < magnitude.smallest_normal(spec.dtype):
            return None
    raw: Bound | None = op.smallest(*operands)
    if raw is None:
        return None
    target = result.dtype
    if floats or target.is_float:
        limit = max(magnitude.smallest_normal(dtype) for dtype in (*floats, target))
        if raw.least < limit:
            return None
    return raw.rounded(target) if target.is_float else Bound(0, 0)
