"""Which rank each module of a model gets, from the spectra of its changes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import PlanError

if TYPE_CHECKING:
    import numpy

    Table = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]

__all__ = ["ChangeSpectrum", "RankRule", "choose_ranks", "threshold"]


@dataclass(frozen=True, eq=False)
class ChangeSpectrum:
    """The spectrum of the change of one module: float64[experts, 2 + count] as of `lora_factors.ChangeEnergies`; and
    the shape [out, in] of its matrices."""

    name: str
    shape: tuple[int, int]
    table: Table

    @property
    def energies(self) -> Table:
        """Squared singular values, summed over experts: what each rank adds."""
        return self.table[:, 2:].sum(axis=0)  # type: ignore[no-any-return]

    @property
    def total(self) -> float:
        """The square of the norm of the change."""
        return math.fsum(self.table[:, 0])

    @property
    def noise(self) -> float:
        """The energy of rounding."""
        return math.fsum(self.table[:, 1])

    def above_noise(self) -> int:
        """How many ranks stand out of the rounding noise, in the expert where most do."""
        limits = [threshold(self.shape, row[1]) for row in self.table]
        return max(int((row[2:] > limit).sum()) for row, limit in zip(self.table, limits, strict=True))

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return len(self.table) * sum(self.shape)

    def rank(self, how: RankRule) -> int:
        """What the module gets where parameters cost nothing."""
        possible = min(*self.shape, how.max_rank or min(self.shape))
        most = min(possible, self.above_noise()) if how.noise_floor else possible
        if self.total == 0 or most == 0:
            return 0
        if how.energy is not None:
            whole = self.total - (self.noise if how.noise_floor else 0.0)
            kept, wanted = 0.0, how.energy * whole * (1 - 1e-12)
            for count, energy in enumerate(self.energies[:most], 1):
                kept += float(energy)
                if kept >= wanted:
                    most = count
                    break
        return min(-(-most // how.multiple_of) * how.multiple_of, possible)


@dataclass(frozen=True)
class RankRule:
    """How ranks are chosen; the fields are those of `lora_extract`."""

    energy: float | None = None
    budget: int | None = None
    noise_floor: bool = False
    max_rank: int | None = None
    multiple_of: int = 1


def threshold(shape: tuple[int, int], noise: float) -> float:
    """The squared singular value below which white noise of this energy is not to be told from a change.

    The optimal hard threshold for noise of known level of Gavish and Donoho (IEEE Trans. Inf. Theory 60(8), 2014,
    eq. 11): lambda(b) * sqrt(n) * sigma, with n the longer side, b = shorter / longer, sigma**2 = noise / (m * n) and
    lambda(b) = sqrt(2 (b + 1) + 8 b / (b + 1 + sqrt(b**2 + 14 b + 1))).
    """
    short, long = sorted(shape)
    b = short / long
    squared = 2 * (b + 1) + 8 * b / (b + 1 + math.sqrt(b * b + 14 * b + 1))
    return squared * long * noise / (short * long)


def choose_ranks(groups: Sequence[Sequence[ChangeSpectrum]], how: RankRule) -> list[int]:
    """The rank of every group of modules that must have one rank, most of them alone; 0: their changes are zero, or
    none of it stands out of the noise, or the budget is spent.

    Ranks that `energy` asks for are rounded up to multiples, as far as the matrix and `max_rank` allow; of a group the
    largest counts. A budget is spent greedily in steps of `multiple_of` ranks, always where a parameter buys most
    energy.

    Raises:
        PlanError: the budget pays for no rank at all.
    """
    ranks = [max(entry.rank(how) for entry in group) for group in groups]
    return ranks if how.budget is None else _spend(groups, ranks, how)


def _spend(groups: Sequence[Sequence[ChangeSpectrum]], most: Sequence[int], how: RankRule) -> list[int]:
    """Blocks of ranks, best energy for a parameter first; a group whose next block is too dear gets no more."""
    assert how.budget is not None
    ranks = [0] * len(groups)
    costs = [sum(entry.cost for entry in group) for group in groups]
    left = how.budget
    heap: list[tuple[float, int]] = []

    def offer(number: int) -> None:
        count = min(how.multiple_of, most[number] - ranks[number])
        if count > 0:
            start = ranks[number]
            gain = math.fsum(float(entry.energies[start : start + count].sum()) for entry in groups[number])
            heapq.heappush(heap, (-gain / (count * costs[number]), number))

    for number in range(len(groups)):
        offer(number)
    while heap:
        _, number = heapq.heappop(heap)
        count = min(how.multiple_of, most[number] - ranks[number])
        if count * costs[number] <= left:
            left -= count * costs[number]
            ranks[number] += count
            offer(number)
    if not any(ranks) and any(most):
        least = min(cost * min(how.multiple_of, top) for cost, top in zip(costs, most, strict=True) if top)
        raise PlanError("the budget pays for no rank", expected=f"budget of at least {least}", found=str(how.budget))
    return ranks
