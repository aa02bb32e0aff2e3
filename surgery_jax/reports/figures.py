"""What tables and pages of spectra count in."""

from __future__ import annotations

__all__ = ["FRACTIONS", "doubling"]

FRACTIONS = (0.90, 0.95, 0.99)  # of the energy


def doubling(longest: int) -> list[int]:
    """1, 2, 4, ... and the largest rank.

    >>> doubling(12)
    [1, 2, 4, 8, 12]
    """
    ranks = [1]
    while ranks[-1] < longest:
        ranks.append(min(2 * ranks[-1], longest))
    return ranks
