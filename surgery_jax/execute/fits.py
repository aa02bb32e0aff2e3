"""Whether the work of a program fits its budgets, before anything is read. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..compile.blueprint import Blueprint
from ..compile.program import Group, Program
from ..compile.sharding import layout, mesh_size
from ..core.errors import BudgetError
from ..core.specs import format_bytes
from ..io.decoded import cache_bytes
from ..io.needs import footprint, no_less, too_large
from ..numerics.cuts import STRANDS
from .reservations import (
    Limits,
    decode_needs,
    device_bytes,
    encode_needs,
    is_sharded,
    move_needs,
    piece_bytes,
    task_needs,
)
from .schedule import blueprints

__all__ = ["check_fits"]


def _too_large_for_devices(group: Group, plan: Blueprint, limits: Limits) -> tuple[int, BudgetError] | None:
    """Bytes that one device would need for a task of a group, and the error that says so; None if it fits."""
    if not is_sharded(group, plan, limits):
        return None
    spread = layout(plan)
    assert spread is not None
    where = group.sample.origins[-1] if group.sample.origins else None
    found = f"--device-memory {format_bytes(limits.device)}"
    count = mesh_size(limits.devices or STRANDS)
    total = min(device_bytes(plan), spread.device_bytes(count))
    if total <= limits.device:
        return None
    enough = [n for n in (2, 4, 8, STRANDS) if n > count and spread.device_bytes(n) <= limits.device]
    return total, BudgetError(
        "one piece of work does not fit the devices",
        where=where,
        expected=f"--device-memory of at least {no_less(total)}"
        + (f" for each of {count} devices" if count > 1 else "")
        + (f", or --devices {enough[0]}" if enough else ""),
        found=f"{found}, --devices {limits.devices or 'as many as are of use'}",
        hint=f"a power of two of devices share such work, at most {STRANDS}",
    )


class _Largest(NamedTuple):
    """The piece of work that needs most, with what all of them share: bytes, and what a message says of it."""

    nbytes: int
    where: Any = None
    hint: str | None = None


def check_fits(program: Program, limits: Limits) -> None:
    """Whether every task can be granted its buffers, and devices are large enough, before anything is read. Without a
    number of devices there may be as many as are of use.

    Raises:
        BudgetError: one can not; of several the largest.
    """
    largest = _largest(program, limits)
    if largest.nbytes > limits.memory:
        enough = largest.nbytes
        # with a larger budget tiles, pieces and the cache are larger too
        while (more := _largest(program, limits._replace(memory=enough)).nbytes) > enough:
            enough = more
        error = too_large(enough, limits.memory).located(largest.where)
        error.hint = largest.hint
        raise error
    plans = blueprints(program, limits)
    errors = [_too_large_for_devices(group, plan, limits) for group, plan in zip(program.groups, plans, strict=True)]
    total, number = max(((found[0], n) for n, found in enumerate(errors) if found is not None), default=(0, 0))
    if total:
        raise errors[number][1]  # type: ignore[index]


def _largest(program: Program, limits: Limits) -> _Largest:
    cached = cache_bytes(program, limits.memory)
    piece = piece_bytes(limits.memory, limits.workers)
    found = [_Largest(footprint((move_needs(piece), 0)))] if program.moves else []
    for group, plan in zip(program.groups, blueprints(program, limits), strict=True):
        where = group.sample.origins[-1] if group.sample.origins else None
        found.append(_Largest(footprint(task_needs(group, plan, piece)), where))
    for decode in program.decodes:
        hint = f"{decode.source.name} is stored in blocks that can only be decoded as a whole"
        found.append(_Largest(footprint(decode_needs(decode.source.entry, piece)), None, hint))
    for path, size, workspace in program.encoded:
        hint = f"{path} is compressed as a whole: choose smaller chunks, or no compression"
        found.append(_Largest(footprint(encode_needs(size, workspace)), None, hint))
    if not found:
        return _Largest(0)
    largest = max(found, key=lambda one: one.nbytes)
    # moved bytes belong to no step: the place is that of a step which does not fit either
    placed = [one for one in found if one.where is not None and one.nbytes + cached > limits.memory]
    where = max(placed, key=lambda one: one.nbytes).where if placed and largest.hint is None else largest.where
    return _Largest(largest.nbytes + cached, where, largest.hint)
