"""Sizes of buffers, and what a reservation takes of a budget."""

from __future__ import annotations

from ..core.errors import BudgetError
from ..core.specs import format_bytes, parse_size

__all__ = [
    "FAR_PIECE",
    "LEAST_PIECE",
    "PAGE",
    "PIECE",
    "UNLIMITED",
    "Needs",
    "footprint",
    "no_less",
    "rounded",
    "too_large",
]

PAGE = 4096  # buffers are whole pages, so that their memory is aligned for every device
PIECE, LEAST_PIECE = 4 << 20, 512 << 10  # through which bytes go past the page cache: disks are fast from 4 MiB on
FAR_PIECE = 32 << 20  # the same where bytes come by requests, several of which are under way for one piece
UNLIMITED = 1 << 62

Needs = tuple[list[int], int]  # sizes of buffers, and bytes that others allocate beside them


def rounded(size: int) -> int:
    """The size of the buffer for so many bytes."""
    return max(-(-size // PAGE) * PAGE, PAGE)


def footprint(needs: Needs) -> int:
    """Bytes that a reservation takes from the budget."""
    sizes, extra = needs
    return sum(map(rounded, sizes)) + extra


def too_large(total: int, limit: int) -> BudgetError:
    """The error of a reservation that can never be granted."""
    return BudgetError(
        "one piece of work does not fit the memory budget",
        expected=f"--memory of at least {no_less(total)}",
        found=f"--memory {format_bytes(limit)}",
    )


def no_less(nbytes: int) -> str:
    """A size for people that is enough when it is given as a budget."""
    shown = max(nbytes, 1 << 10)
    while (parse_size(format_bytes(shown), binary=True) or UNLIMITED) < nbytes:
        shown += shown // 5000 + 1
    return format_bytes(shown)
