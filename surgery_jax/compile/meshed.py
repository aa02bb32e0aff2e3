"""The function of a group whose components are spread over several devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..core.specs import Spec
from .blueprint import Blueprint
from .sharding import Partition, mesh_size

__all__ = ["MeshFunction"]

PATIENCE = 1 << 20  # seconds that simulated devices wait for each other


class MeshFunction:
    """One component computed by several devices together. No device holds more than `partition.device_bytes` says; the
    bits do not depend on how many there are."""

    def __init__(
        self,
        blueprint: Blueprint,
        partition: Partition,
        checked: Sequence[int],
        guarded: Sequence[int],
        options: Callable[[str], Mapping[str, Any]],
    ) -> None:
        """`checked` and `guarded`: values that must be true, and finite, everywhere. `options`: what the compiler is
        told for a platform."""
        self.blueprint, self.partition = blueprint, partition
        self.eqns, self.specs = blueprint.eqns, blueprint.specs
        self.checked, self.guarded = checked, guarded
        self.num_traces = 0
        self._options = options
        self._compiled: dict[Any, Any] = {}  # by devices and the values that leave
        self._lock = threading.Lock()

    def called(
        self, inputs: Sequence[Any], numbers: Sequence[float], devices: Sequence[Any], leaving: Sequence[int]
    ) -> tuple[list[Any], list[bool]]:
        """The values that are `leaving`, as NumPy arrays, and the verdicts of the checks, then of the guards."""
        import jax

        used = tuple(devices[: mesh_size(len(devices))])
        with jax.enable_x64(True):
            function, places = self.compiled(used, tuple(leaving))
            arrays = [
                _placed(inputs[number], *place)
                for (number, _), place in zip(self.partition.inputs, places, strict=True)
            ]
            call = (np.int32(0), np.int64(0)), [np.float64(number) for number in numbers], arrays
            made, verdicts = function(*call)
            specs = self.blueprint.value_specs()
            outputs = [
                np.asarray(array)[tuple(map(slice, specs[value].shape))]
                for array, value in zip(made, leaving, strict=True)
            ]
            return outputs, np.asarray(verdicts).tolist()

    def compiled(self, devices: tuple[Any, ...], leaving: tuple[int, ...]) -> tuple[Any, list[Any]]:
        """The compiled function for some devices, and where it wants its inputs: padded shapes and shardings."""
        import jax

        from ..numerics.mesh_kernel import AXIS

        mesh = jax.sharding.Mesh(np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))

        def sharding(axis: int | None) -> Any:
            names = () if axis is None else (*(None,) * axis, AXIS)
            place: Any = jax.sharding.PartitionSpec
            return jax.sharding.NamedSharding(mesh, place(*names))

        with self._lock:
            if (devices, leaving) not in self._compiled:
                options = dict(self._options(devices[0].platform))
                if devices[0].platform == "cpu":
                    # threads within a product would divide it by their number; and devices wait for the slowest
                    options["xla_cpu_multi_thread_eigen"] = False
                    options["xla_cpu_collective_call_terminate_timeout_seconds"] = PATIENCE
                traced = partial(self._traced_on_mesh, mesh, [sharding(axis) for axis in self.partition.axes], leaving)
                self._compiled[devices, leaving] = jax.jit(traced, compiler_options=options)
            function = self._compiled[devices, leaving]
        return function, [
            (self.partition.padded(self.specs[number], axis).shape, sharding(axis))
            for number, axis in self.partition.inputs
        ]

    def _traced_on_mesh(
        self, mesh: Any, shardings: Sequence[Any], leaving: Sequence[int], zeros: Any, numbers: Any, inputs: Any
    ) -> Any:
        import jax.numpy as jnp
        from jax.lax import with_sharding_constraint

        from ..numerics.mesh_kernel import MeshKernel

        constrain: Any = with_sharding_constraint
        self.num_traces += 1
        specs, axes = self.blueprint.value_specs(), self.partition.axes
        kernel = MeshKernel(zeros, mesh, self.partition.rows)
        remaining = iter(numbers)
        placed = dict(zip(self.partition.inputs, inputs, strict=True))
        values = [placed[number, axes[number]] for number in range(len(self.specs))]

        def operand(number: int, axis: int | None) -> Any:
            if (number, axis) in placed:
                return placed[number, axis]
            found = values[number]
            return found if axis == axes[number] else self._fitted(found, specs[number], axis)

        for eqn, cut in zip(self.eqns, self.partition.cuts, strict=True):
            operands = [operand(*wanted) for wanted in zip(eqn.args, cut.operands, strict=True)]
            results = eqn.op.with_numbers(remaining).apply(kernel, *operands)
            for result in results if len(eqn.specs) > 1 else [results]:
                at = len(values)
                fitted = self._fitted(result, specs[at], axes[at])
                values.append(constrain(fitted, shardings[at]))
        # beyond its end a mask is false, as everything is zero there
        verdicts = [jnp.sum(values[number], dtype=np.int64) == specs[number].size for number in self.checked]
        verdicts += [jnp.all(jnp.isfinite(values[number])) for number in self.guarded]
        return [values[number] for number in leaving], jnp.stack(verdicts) if verdicts else jnp.zeros(0, bool)

    def _fitted(self, x: Any, spec: Spec, axis: int | None) -> Any:
        """A value, padded or not, as it is when it is cut along an axis: padded there and nowhere else, with zeros."""
        import jax
        import jax.numpy as jnp

        padded = self.partition.padded(spec, axis).shape
        if axis is not None and x.shape[axis] == padded[axis]:
            x = x[tuple(map(slice, padded))]
        else:
            x = x[tuple(map(slice, spec.shape))]
            if padded != spec.shape:
                x = jnp.pad(x, [(0, more - count) for more, count in zip(padded, x.shape, strict=True)])
        if axis is None or padded == spec.shape:
            return x
        place = jax.lax.broadcasted_iota(np.int32, padded, axis)
        return jnp.where(place < spec.shape[axis], x, jnp.zeros((), x.dtype))


def _placed(x: Any, shape: tuple[int, ...], sharding: Any) -> Any:
    """An array in parts on the devices that are to have them, padded with zeros; no device ever has more."""
    import jax

    def part(index: Any) -> Any:
        own = x[index]
        wanted = [len(range(*where.indices(length))) for where, length in zip(index, shape, strict=True)]
        if own.shape == tuple(wanted):
            return own
        return np.pad(own, [(0, more - count) for more, count in zip(wanted, own.shape, strict=True)])

    return jax.make_array_from_callback(shape, sharding, part)
