"""Ranks of modules that must have one rank together are those of one tensor that holds them all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import PlanError
from surgery_jax.lora.ranks import ChangeSpectrum, RankRule, choose_ranks

NOISE = st.sampled_from([0.0, 0.01, 0.3])


@st.composite
def spectra(draw: st.DrawFn) -> list[list[ChangeSpectrum]]:
    """Groups of modules of one shape, with random energies that fall."""
    groups = []
    for number in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(2, 6)), draw(st.integers(2, 6)))
        group = []
        for member in range(draw(st.integers(1, 4))):
            rng = np.random.default_rng(draw(st.integers(0, 2**20)))
            energies = np.sort(rng.random(min(shape)) ** 4)[::-1] * draw(st.sampled_from([0, 1, 5]))
            table = np.concatenate([[energies.sum(), draw(NOISE)], energies])[None]
            group.append(ChangeSpectrum(f"{number}.{member}", shape, table))
        groups.append(group)
    return groups


CHOICES = st.builds(
    RankRule,
    budget=st.none() | st.integers(60, 400),
    noise_floor=st.booleans(),
    max_rank=st.none() | st.integers(2, 5),
    multiple_of=st.integers(1, 2),
)


def chosen(groups: list[list[ChangeSpectrum]], how: RankRule) -> list[int] | None:
    """The ranks; None where the budget pays for none, which must be true then."""
    try:
        return choose_ranks(groups, how)
    except PlanError:
        unpaid = choose_ranks(groups, replace(how, budget=None))
        costs = [sum(one.cost for one in group) for group in groups]
        steps = [min(how.multiple_of, rank) * cost for rank, cost in zip(unpaid, costs, strict=True)]
        assert how.budget is not None and any(steps) and all(step > how.budget for step in steps if step)
        return None


@given(spectra(), CHOICES)
def test_a_group_is_as_one_stacked_tensor(groups: list[list[ChangeSpectrum]], how: RankRule) -> None:
    stacked = [[ChangeSpectrum("", group[0].shape, np.concatenate([one.table for one in group]))] for group in groups]
    assert chosen(groups, how) == chosen(stacked, how)


@given(spectra(), st.floats(0.1, 1.0), CHOICES)
def test_every_member_keeps_its_share_and_a_budget_is_never_overdrawn(
    groups: list[list[ChangeSpectrum]], energy: float, how: RankRule
) -> None:
    ranks = choose_ranks(groups, RankRule(energy=energy))
    for group, rank in zip(groups, ranks, strict=True):
        for one in group:
            assert one.energies[:rank].sum() >= energy * one.total * (1 - 1e-9)
        assert rank == 0 or any(one.energies[: rank - 1].sum() < energy * one.total for one in group)
    bought = chosen(groups, how)
    if bought is not None and how.budget is not None:
        spent = sum(rank * one.cost for group, rank in zip(groups, bought, strict=True) for one in group)
        assert spent <= how.budget
