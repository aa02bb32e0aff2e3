"""Whether the work of a program fits its budgets, before anything is read. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..compile.sharding import mesh_size, partition
from ..core.errors import BudgetError
from ..core.specs import format_bytes
from ..io.needs import footprint, no_less, too_large
from ..numerics.cuts import STRANDS
from .reservations import decode_needs, device_bytes, move_needs
from .schedule import GroupSchedule, Schedule, schedule

__all__ = ["check_fits"]


def _too_large_for_devices(work: GroupSchedule, limit: int, devices: int | None) -> tuple[int, BudgetError] | None:
    """Bytes that one of some devices would need for a task of a group, and the error that says so; None if it fits."""
    if work.place != "mesh":
        return None
    plan, spread = work.blueprint, partition(work.blueprint)
    assert spread is not None
    found = f"--device-memory {format_bytes(limit)}"
    count = mesh_size(devices or STRANDS)
    total = min(device_bytes(plan), spread.device_bytes(count))
    if total <= limit:
        return None
    enough = [n for n in (2, 4, 8, STRANDS) if n > count and spread.device_bytes(n) <= limit]
    return total, BudgetError(
        "one piece of work does not fit the devices",
        where=_where(work),
        expected=f"--device-memory of at least {no_less(total)}"
        + (f" for each of {count} devices" if count > 1 else "")
        + (f", or --devices {enough[0]}" if enough else ""),
        found=f"{found}, --devices {devices or 'as many as are of use'}",
        hint=f"a power of two of devices share such work, at most {STRANDS}",
    )


def _where(work: GroupSchedule) -> Any:
    """The place of the plan to name for a group."""
    origins = work.group.sample.origins
    return origins[-1] if origins else None


class _Largest(NamedTuple):
    """The piece of work that needs most, with what all of them share: bytes, and what a message says of it."""

    nbytes: int
    where: Any = None
    hint: str | None = None


def check_fits(work: Schedule, devices: int | None = None) -> None:
    """Whether every task can be granted its buffers, and devices are large enough, before anything is read. Without a
    number of devices there may be as many as the limits say, or as are of use.

    Raises:
        BudgetError: one can not; of several the largest.
    """
    limits = work.limits
    largest = _largest(work)
    if largest.nbytes > limits.memory:
        enough = largest.nbytes
        # with a larger budget tiles, pieces and the cache are larger too
        while (more := _largest(schedule(work.program, limits._replace(memory=enough))).nbytes) > enough:
            enough = more
        error = too_large(enough, limits.memory).located(largest.where)
        error.hint = largest.hint
        raise error
    found = (_too_large_for_devices(group, limits.device, devices or limits.devices) for group in work.groups)
    errors = [error for error in found if error is not None]
    if errors:
        raise max(errors, key=lambda error: error[0])[1]


def _largest(work: Schedule) -> _Largest:
    program, cached = work.program, work.cached + work.parted  # what tasks cannot reserve
    found = [_Largest(footprint((move_needs(work.moving), 0)))] if program.moves else []
    found += [_Largest(group.least, _where(group)) for group in work.groups]
    for decode in program.decodes:
        hint = f"{decode.source.name} is stored in blocks that can only be decoded as a whole"
        found.append(_Largest(footprint(decode_needs(decode.source.entry, work.piece)), None, hint))
    for path, needs in work.encodings:
        hint = f"{path} is encoded as a whole: choose smaller chunks with the option chunk"
        found.append(_Largest(footprint(needs), None, hint))
    if not found:
        return _Largest(0)
    largest = max(found, key=lambda one: one.nbytes)
    # moved bytes belong to no step: the place is that of a step which does not fit either
    placed = [one for one in found if one.where is not None and one.nbytes + cached > work.limits.memory]
    where = max(placed, key=lambda one: one.nbytes).where if placed and largest.hint is None else largest.where
    return _Largest(largest.nbytes + cached, where, largest.hint)
