"""How much memory a piece of work reserves, for the budget that grants it and for those who predict it. Pure."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from typing import NamedTuple

from ..compile.blueprint import Blueprint
from ..compile.program import Group, Program
from ..compile.sharding import layout, mesh_size
from ..core.errors import BudgetError
from ..core.specs import format_bytes
from ..ops.cuts import STRANDS
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


def task_needs(plan: Blueprint, piece: int) -> Needs:
    """What a task of a blueprint reserves: its inputs, a piece for writing, and every result."""
    return [*(spec.nbytes for spec in plan.specs), piece], plan.produced_bytes


def decode_needs(entry: Entry, piece: int) -> Needs:
    """What a task reserves that decodes a block of a tensor: a piece for writing, and what decoding takes."""
    return [piece], block_bytes(entry)


def peak_bytes(footprints: Sequence[int], memory_bytes: int, num_workers: int) -> int:
    """The most that tasks of these footprints can hold at once: one for every worker, within the budget."""
    return min(memory_bytes, sum(heapq.nlargest(max(num_workers, 1), footprints)))


def too_large(total: int, limit: int) -> BudgetError:
    """The error of a reservation that can never be granted."""
    return BudgetError(
        "one piece of work does not fit the memory budget",
        expected=f"--memory of at least {format_bytes(total)}",
        found=f"--memory {format_bytes(limit)}",
    )


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
        expected=f"--device-memory of at least {format_bytes(total)}"
        + (f" for each of {count} devices" if count > 1 else "")
        + (f", or --devices {enough[0]}" if enough else ""),
        found=f"{found}, --devices {limits.devices or 'as many as are of use'}",
        hint=f"a power of two of devices share such work, at most {STRANDS}",
    )


def check_fits(program: Program, limits: Limits) -> None:
    """Whether every task can be granted its buffers, and devices are large enough, before anything is read. Without a
    number of devices there may be as many as are of use.

    Raises:
        BudgetError: one can not; of several the largest.
    """
    from .schedule import blueprints

    memory_bytes = limits.memory
    cached = cache_bytes(program, memory_bytes)
    plans = blueprints(program, limits)
    piece = piece_bytes(memory_bytes, limits.workers)
    sizes = [(footprint(task_needs(plan, piece)), number) for number, plan in enumerate(plans)]
    total, number = max(sizes, default=(0, 0))
    if total + cached > memory_bytes:
        sample = program.groups[number].sample
        raise too_large(total + cached, memory_bytes).located(sample.origins[-1] if sample.origins else None)
    errors = [_too_large_for_devices(group, plan, limits) for group, plan in zip(program.groups, plans, strict=True)]
    total, number = max(((found[0], n) for n, found in enumerate(errors) if found is not None), default=(0, 0))
    if total:
        raise errors[number][1]  # type: ignore[index]
    total, name = max(
        ((footprint(decode_needs(d.source.entry, piece)), d.source.name) for d in program.decodes), default=(0, "")
    )
    if total > memory_bytes - cached:
        error = too_large(total + cached, memory_bytes)
        error.hint = f"{name} is stored in blocks that can only be decoded as a whole"
        raise error
