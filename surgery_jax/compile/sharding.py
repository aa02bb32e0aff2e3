"""How the values of a whole component lie on several devices, and what that takes of each of them. Pure.

Every value is cut along one axis or lies on each device as a whole. A cut axis is padded with zeros to a length that
follows from shapes alone: STRANDS strands of equal length, each of so many blocks. A device holds whole strands, so
the number of devices, a power of two, decides who computes a block and never what a block is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..core.specs import Spec
from ..numerics.cuts import BLOCKS, STRANDS, Cut
from .blueprint import Blueprint

__all__ = ["Partition", "mesh_size", "partition"]

ROWS = 512  # of a block, at most, but for a few


def mesh_size(num_devices: int) -> int:
    """How many of some devices are used for one tensor: a power of two."""
    return 1 << (min(num_devices, STRANDS).bit_length() - 1)


def _rows(length: int, taken: set[int]) -> tuple[int, int]:
    """(padded length, rows of a block) of a cut axis. The padded length is none of those `taken`, so that it tells a
    cut axis from others."""
    strand = -(-length // STRANDS)
    blocks = max(-(-strand // ROWS), BLOCKS)
    rows = max(-(-strand // blocks), 1)
    while STRANDS * blocks * rows in taken:
        rows += 1
    return STRANDS * blocks * rows, rows


@dataclass(frozen=True)
class Partition:
    """Where the values of a blueprint are cut: `axes` of each value, None for a whole one on each device; `cuts` say
    what every operation takes and gives."""

    blueprint: Blueprint
    axes: tuple[int | None, ...]
    cuts: tuple[Cut, ...]

    def _operands(self) -> Iterator[tuple[int, int | None]]:
        """Every operand of every operation, and the axis along which it is wanted."""
        for eqn, cut in zip(self.blueprint.eqns, self.cuts, strict=True):
            yield from zip(eqn.args, cut.operands, strict=True)

    @cached_property
    def inputs(self) -> tuple[tuple[int, int | None], ...]:
        """The numbers of the inputs and the axes along which they are cut; some lie on the devices in several ways."""
        own = range(len(self.blueprint.specs))
        asked = (operand for operand in self._operands() if operand[0] in own)
        return tuple(dict.fromkeys([*((number, self.axes[number]) for number in own), *asked]))

    @cached_property
    def _lengths(self) -> Mapping[int, tuple[int, int]]:
        """Length of a cut axis to (padded length, rows of a block)."""
        specs = self.blueprint.value_specs()
        placed = [*zip(specs, self.axes, strict=True), *((specs[arg], axis) for arg, axis in self._operands())]
        taken = {n for spec, axis in placed for number, n in enumerate(spec.shape) if number != axis}
        return {n: _rows(n, taken) for n in sorted({spec.shape[axis] for spec, axis in placed if axis is not None})}

    @property
    def rows(self) -> dict[int, int]:
        """Padded length of a cut axis to the rows of its blocks."""
        return dict(self._lengths.values())

    def padded(self, spec: Spec, axis: int | None) -> Spec:
        """What a value becomes when it is cut along an axis."""
        if axis is None:
            return spec
        return Spec((*spec.shape[:axis], self._lengths[spec.shape[axis]][0], *spec.shape[axis + 1 :]), spec.dtype)

    def device_bytes(self, count: int) -> int:
        """The most that each of `count` devices, a power of two, holds of one component at once: inputs, all results,
        and what the most demanding operation needs beside them."""
        specs, num_inputs = self.blueprint.value_specs(), len(self.blueprint.specs)

        def part(spec: Spec, axis: int | None, narrowest: int = 1) -> int:
            padded = self.padded(spec, axis)
            return padded.size * max(spec.dtype.itemsize, narrowest) // (1 if axis is None else count)

        results = [part(*value, narrowest=4) for value in list(zip(specs, self.axes, strict=True))[num_inputs:]]
        total = sum(part(specs[number], axis) for number, axis in self.inputs) + sum(results)
        most = at = 0
        for eqn, cut in zip(self.blueprint.eqns, self.cuts, strict=True):
            operands = [self.padded(specs[arg], axis) for arg, axis in zip(eqn.args, cut.operands, strict=True)]
            space = eqn.op.cut_workspace_bytes(count, cut, *operands)
            space += sum(results[at : at + len(eqn.specs)])  # as they are before zeros are put beyond their end
            at += len(eqn.specs)
            for arg, axis in zip(eqn.args, cut.operands, strict=True):
                if arg >= num_inputs and axis != self.axes[arg]:  # it is laid out anew
                    space += part(specs[arg], axis) + part(specs[arg], None)
            most = max(most, space)
        return total + most


def partition(blueprint: Blueprint) -> Partition | None:
    """How a whole component is cut, None if one of its operations cannot be: whole operations say what they want of
    their operands, elementwise ones follow what they are between."""
    if blueprint.kind != "whole":
        return None
    specs, num_inputs = blueprint.value_specs(), len(blueprint.specs)
    given = [
        eqn.op.cut(*(specs[arg] for arg in eqn.args)) if eqn.op.kind == "whole" else None for eqn in blueprint.eqns
    ]
    if any(
        cut is None and eqn.op.kind not in ("elementwise", "check")
        for cut, eqn in zip(given, blueprint.eqns, strict=True)
    ):
        return None
    axes = _wishes(blueprint, given, specs)
    cuts: list[Cut] = []
    at = num_inputs
    for eqn, cut in zip(blueprint.eqns, given, strict=True):
        if cut is None:  # as what it is computed from; else as those want it who use it
            made = [axes[arg] for arg in eqn.args if arg >= num_inputs]
            axis = made[0] if made else axes[at]
            cut = Cut((axis,) * len(eqn.args), (axis,))
        cuts.append(cut)
        axes[at : at + len(eqn.specs)] = cut.results
        at += len(eqn.specs)
    first: dict[int, int | None] = {}  # an input lies as whoever reads it first wants it
    for eqn, cut in zip(blueprint.eqns, cuts, strict=True):
        for arg, axis in zip(eqn.args, cut.operands, strict=True):
            first.setdefault(arg, axis)
    inputs = (first.get(number, axes[number]) for number in range(num_inputs))
    return Partition(blueprint, (*inputs, *axes[num_inputs:]), tuple(cuts))


def _wishes(blueprint: Blueprint, given: Sequence[Cut | None], specs: Sequence[Spec]) -> list[int | None]:
    """The axis along which those who use a value want it; the longest where nobody says."""
    found: dict[int, int | None] = {}
    at = len(specs)
    for eqn, cut in zip(reversed(blueprint.eqns), reversed(given), strict=True):
        at -= len(eqn.specs)
        for index, arg in enumerate(eqn.args):
            found.setdefault(arg, cut.operands[index] if cut else found.get(at, _longest(specs[at])))
    return [found.get(number, _longest(spec)) for number, spec in enumerate(specs)]


def _longest(spec: Spec) -> int | None:
    """The longest axis, of equals the first; None if there is none."""
    return max(range(len(spec.shape)), key=lambda axis: spec.shape[axis], default=None)
