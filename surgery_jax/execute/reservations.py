"""How much memory a piece of work reserves, for the budget that grants it and for those who predict it. Pure."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..compile.blueprint import Blueprint
from ..compile.program import Group, Program
from ..compile.sharding import layout, mesh_size
from ..core.errors import BudgetError
from ..core.specs import format_bytes, parse_size
from ..ops.cuts import STRANDS
from ..ops.made import Made
from ..storage.base import Entry
from .decoded import block_bytes, cache_bytes

__all__ = [
    "DEVICE_BYTES",
    "LEAST_PIECE",
    "PAGE",
    "PROCESS_BYTES",
    "UNLIMITED",
    "Limits",
    "Needs",
    "check_fits",
    "decode_needs",
    "default_workers",
    "device_bytes",
    "device_limit",
    "encode_needs",
    "footprint",
    "is_on_host",
    "is_sharded",
    "move_needs",
    "peak_bytes",
    "piece_bytes",
    "rounded",
    "task_needs",
    "tile_limit",
    "too_large",
]

PAGE = 4096  # buffers are whole pages, so that their memory is aligned for every device
PIECE, LEAST_PIECE = 4 << 20, 512 << 10  # through which bytes go past the page cache: disks are fast from 4 MiB on

# What a process takes before its buffers, by measurement (Linux, x86-64, Python 3.11, jax 0.10.2 on CPU).
PROCESS_BYTES = 34 << 20
DEVICE_BYTES = 180 << 20  # more, once something is computed with JAX

UNLIMITED = 1 << 62

Needs = tuple[list[int], int]  # sizes of buffers, and bytes that others allocate beside them


class Limits(NamedTuple):
    """Bytes of host buffers, threads, bytes of each device, and devices, that a run may take; without a number of
    devices all that there are."""

    memory: int
    workers: int
    device: int = UNLIMITED
    devices: int | None = None


def default_workers() -> int:
    """Threads: a few per core, because they wait for the disk and the device."""
    return min(16, max(4, (os.cpu_count() or 1) * 2))


def tile_limit(memory_bytes: int, num_workers: int) -> int:
    """Bytes that one tile may take: every worker holds one, and half of the budget is for what is whole."""
    return memory_bytes // max(num_workers, 1) // 2


def device_limit(limits: Limits) -> int:
    """Bytes that one tile may take of a device: one is computed while another comes or goes."""
    return limits.device // 2


def device_bytes(plan: Blueprint) -> int:
    """What a task of a blueprint takes of a device: its inputs and every result."""
    return sum(spec.nbytes for spec in plan.specs) + plan.produced_bytes


def is_sharded(group: Group, plan: Blueprint, limits: Limits) -> bool:
    """Whether a task of a group is too large for one device, and is spread over several."""
    return not group.on_host and device_bytes(plan) > limits.device and layout(plan) is not None


def is_on_host(group: Group, plan: Blueprint, limits: Limits) -> bool:
    """Whether NumPy computes the tasks of a group wherever there are devices: they only move elements or are complex,
    or one is too large for a device and cannot be spread over several."""
    return group.on_host or (device_bytes(plan) > limits.device and layout(plan) is None)


def rounded(size: int) -> int:
    """The size of the buffer for so many bytes."""
    return max(-(-size // PAGE) * PAGE, PAGE)


def footprint(needs: Needs) -> int:
    """Bytes that a reservation takes from the budget."""
    sizes, extra = needs
    return sum(map(rounded, sizes)) + extra


def piece_bytes(memory_bytes: int, num_workers: int) -> int:
    """The size of the buffer through which a task moves bytes; smaller where a sixteenth of a worker's share of the
    budget is."""
    return min(PIECE, max(LEAST_PIECE, rounded(memory_bytes // max(num_workers, 1) // 16)))


def move_needs(piece: int) -> list[int]:
    """The buffers of a task that moves bytes: one to write from, and one to read through past the page cache."""
    return [piece, piece // 4]


def task_needs(group: Group, plan: Blueprint, piece: int) -> Needs:
    """What a task of a group reserves: its inputs and what making them takes, a piece for writing, and every result."""
    nodes = (piece.node for component in group.components for pieces in component.inputs for piece in pieces)
    making = max((node.op.scratch_bytes for node in nodes if isinstance(node.op, Made)), default=0)
    return [*(spec.nbytes for spec in plan.specs), piece], plan.produced_bytes + making


def decode_needs(entry: Entry, piece: int) -> Needs:
    """What a task reserves that decodes a block of a tensor: a piece for writing, and what decoding takes."""
    return [piece], block_bytes(entry)


def encode_needs(size: int, workspace: int) -> Needs:
    """What is reserved to encode a file of so many bytes: these, and what encoding takes."""
    return [size], workspace


def peak_bytes(footprints: Sequence[int], memory_bytes: int, num_workers: int) -> int:
    """The most that tasks of these footprints can hold at once: one for every worker, within the budget."""
    return min(memory_bytes, sum(heapq.nlargest(max(num_workers, 1), footprints)))


def too_large(total: int, limit: int) -> BudgetError:
    """The error of a reservation that can never be granted."""
    return BudgetError(
        "one piece of work does not fit the memory budget",
        expected=f"--memory of at least {_no_less(total)}",
        found=f"--memory {format_bytes(limit)}",
    )


def _no_less(nbytes: int) -> str:
    """A size for people that is enough when it is given as a budget."""
    shown = max(nbytes, 1 << 10)
    while (parse_size(format_bytes(shown), binary=True) or UNLIMITED) < nbytes:
        shown += shown // 5000 + 1
    return format_bytes(shown)


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
        expected=f"--device-memory of at least {_no_less(total)}"
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
    from .schedule import blueprints

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
    from .schedule import blueprints

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
