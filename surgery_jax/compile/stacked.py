"""Small components by the stack: one call computes many of them, each in the way in which it is computed alone.

What a call costs by itself exceeds the work on a small matrix. A stack is divided evenly among the devices, each of
which goes over its part one component after the other (`lax.map`), so that nothing about a component depends on what is
beside it or on how many devices there are.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..numerics.kernels import DeviceKernel
from .blueprint import Blueprint
from .lower import GroupFunction, raw

__all__ = ["AXIS", "StackFunction"]

AXIS = "components"


class StackFunction:
    """The function of a group for stacks of its components. `one` computes a single component.

    Inputs and outputs have the components as their leading axis; `numbers` are those of each component, which may be
    fewer than there is room for.
    """

    def __init__(self, one: GroupFunction, blueprint: Blueprint) -> None:
        self.one = one
        self.blueprint = blueprint
        self.specs = blueprint.specs
        self.checked = one.checked
        self.uses_lapack = one.uses_lapack
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._ready: set[tuple[Any, ...]] = set()
        self._lock = threading.Lock()

    def belongs_on_host(self, platform: str) -> bool:
        """Whether NumPy is the better way on that platform."""
        return self.one.belongs_on_host(platform)

    def on_host(self, inputs: Sequence[Any], numbers: Sequence[Sequence[float]]) -> tuple[list[Any], list[Any]]:
        """The outputs, and for every check the masks of all components, in NumPy.

        Raises:
            LinAlgError: an operation that needs finite operands has others, or does not converge.
        """
        values = self.blueprint.value_specs()
        outputs = [np.zeros(values[value].shape, values[value].dtype.numpy) for value in self.blueprint.leaving]
        masks: list[list[Any]] = [[] for _ in self.checked]
        for index, own in enumerate(numbers):
            made, found = self.one.on_host([x[index] for x in inputs], own)
            for output, array in zip(outputs, made, strict=True):
                output[index] = array
            for known, mask in zip(masks, found, strict=True):
                known.append(mask)
        return outputs, masks

    def first_broken(self, inputs: Sequence[Any], numbers: Sequence[Sequence[float]]) -> int:
        """The first component that has NaN or infinity where an operation needs finite numbers; 0 if none has."""
        for index, own in enumerate(numbers):
            try:
                self.one.on_host([x[index] for x in inputs], own)
            except np.linalg.LinAlgError:
                return index
        return 0

    def masks(self, inputs: Sequence[Any], numbers: Sequence[Sequence[float]], on_host: bool) -> list[tuple[Any, Any]]:
        """For every check its mask and how far off every element is, with as many components as there is room for;
        what is beyond the last of them means nothing."""
        found = [self.one.masks([x[index] for x in inputs], own, on_host) for index, own in enumerate(numbers)]
        found += [found[-1]] * (self.blueprint.rows - len(found))
        return [
            (np.stack([mask for mask, _ in each]), np.stack([off for _, off in each]))
            for each in zip(*found, strict=True)
        ]

    def device_bytes(self, count: int) -> int:
        """The most that each of `count` devices holds of a stack."""
        return -(-(sum(spec.nbytes for spec in self.specs) + self.blueprint.produced_bytes) // count)

    def on_mesh(
        self, inputs: Sequence[Any], numbers: Sequence[tuple[float, ...]], devices: Sequence[Any]
    ) -> tuple[list[Any], list[bool]] | None:
        """The outputs as NumPy arrays, and the verdicts of the checks, then of the guards, over all components,
        computed by a power of two of devices; None if it would not be exact."""
        found = self.called(inputs, numbers, devices)
        if found is None:
            return None
        *holds, is_exact = np.all(np.asarray(found[1])[: len(numbers)], axis=0).tolist()
        arrays = [np.asarray(output) for output in found[0]]
        return (arrays, holds) if is_exact else None

    def called(
        self, inputs: Sequence[Any], numbers: Sequence[tuple[float, ...]], devices: Sequence[Any]
    ) -> tuple[list[Any], Any] | None:
        """The outputs where the devices made them, and verdicts: [components, checks and guards, and 1 for whether it
        is exact]; None if it cannot be exact whatever the inputs are."""
        import jax

        with jax.enable_x64(True):
            bits = self.one.limits(numbers, devices[0].platform)
            if bits is None:
                return None
            missing = self.blueprint.rows - len(numbers)
            filled = [np.concatenate([x, np.repeat(x[-1:], missing)]) for x in bits]
            columns = np.array([*numbers, *[numbers[-1]] * missing], np.float64).T
            call = (np.int32(0), np.int64(0)), filled, list(columns), raw(inputs, self.specs)
            used = tuple(devices)
            function = self._function(used)
            # the first call traces and compiles: once, while the other workers read their first inputs
            with nullcontext() if used in self._ready else self._lock:
                found: tuple[list[Any], Any] = function(*call)
                self._ready.add(used)
            jax.block_until_ready(found)  # type: ignore[no-untyped-call]
            return found

    def _function(self, devices: tuple[Any, ...]) -> Any:
        import jax

        with self._lock:
            if devices not in self._compiled:
                options = self.one.compiler_options(devices[0].platform)
                if len(devices) == 1:
                    self._compiled[devices] = jax.jit(self._traced, compiler_options=options)
                else:
                    kind = jax.sharding.AxisType.Auto
                    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(kind,))
                    place: Any = jax.sharding.PartitionSpec
                    split, everywhere = place(AXIS), place()
                    spread = jax.shard_map(
                        self._traced,
                        mesh=mesh,
                        in_specs=(everywhere, split, split, split),
                        out_specs=split,
                        check_vma=False,
                    )
                    self._compiled[devices] = jax.jit(spread, compiler_options=options)
            return self._compiled[devices]

    def _traced(self, zeros: Any, bits: Any, numbers: Any, inputs: Any) -> Any:
        import jax

        return jax.lax.map(lambda own: self.one.traced(DeviceKernel(zeros), *own), (bits, numbers, inputs))
