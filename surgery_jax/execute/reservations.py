"""How much memory a piece of work reserves, for the budget that grants it and for those who predict it. Pure."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence

from ..compile.program import Component, Group, Program
from ..core.errors import BudgetError
from ..core.specs import format_bytes

__all__ = [
    "PAGE",
    "PIECE",
    "Needs",
    "check_fits",
    "default_workers",
    "footprint",
    "group_needs",
    "peak_bytes",
    "rounded",
    "tile_limit",
    "tile_needs",
    "too_large",
    "whole_needs",
]

PAGE = 4096  # buffers are whole pages, so that their memory is aligned for every device
PIECE = 1 << 20  # through which a task moves bytes to or past the page cache: a disk runs at full rate with it

Needs = tuple[list[int], int]  # sizes of buffers, and bytes that others allocate beside them


def default_workers() -> int:
    """Threads: a few per core, because they wait for the disk and the device."""
    return min(16, max(4, (os.cpu_count() or 1) * 2))


def tile_limit(memory_bytes: int, num_workers: int) -> int:
    """Bytes that one tile may take: every worker holds one, and half of the budget is for what is whole."""
    return memory_bytes // max(num_workers, 1) // 2


def rounded(size: int) -> int:
    """The size of the buffer for so many bytes."""
    return max(-(-size // PAGE) * PAGE, PAGE)


def footprint(needs: Needs) -> int:
    """Bytes that a reservation takes from the budget."""
    sizes, extra = needs
    return sum(map(rounded, sizes)) + extra


def tile_needs(group: Group, length: int) -> Needs:
    """What a tile of so many elements reserves: its inputs, a piece for writing, and every result."""
    sample = group.sample
    produced = sum(spec.dtype.itemsize * length for eqn in sample.eqns for spec in eqn.specs)
    return [*(spec.dtype.itemsize * length for spec in sample.specs), PIECE], produced


def whole_needs(component: Component) -> Needs:
    """What a whole component reserves: its inputs, a piece for writing, and every result as it is computed."""
    produced = sum(spec.size * max(spec.dtype.itemsize, 4) for eqn in component.eqns for spec in eqn.specs)
    return [*(spec.nbytes for spec in component.specs), PIECE], produced


def group_needs(group: Group, limit: int) -> Needs:
    """What the largest task of a group reserves, tiles being limited to `limit` bytes."""
    from .schedule import tile_length

    if group.flat:
        return tile_needs(group, tile_length(group, limit))
    return whole_needs(group.sample)  # all have the same shapes


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


def check_fits(program: Program, memory_bytes: int, num_workers: int) -> None:
    """Whether every task can be granted its buffers, before anything is read.

    Raises:
        BudgetError: one can not; of several the largest.
    """
    limit = tile_limit(memory_bytes, num_workers)
    sizes = [(footprint(group_needs(group, limit)), number) for number, group in enumerate(program.groups)]
    total, number = max(sizes, default=(0, 0))
    if total > memory_bytes:
        sample = program.groups[number].sample
        raise too_large(total, memory_bytes).located(sample.origins[-1] if sample.origins else None)
