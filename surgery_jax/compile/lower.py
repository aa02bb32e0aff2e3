"""A group to a function: one `jax.jit` per group, numbers traced and structure static; or the same operations
in NumPy."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, reduce
from operator import and_
from typing import Any

import numpy as np

from ..core.exact import exact
from ..core.freed import give_back
from ..core.specs import Spec
from ..kit.base import TensorOp
from ..numerics import magnitude
from ..numerics.host_kernel import HostKernel
from ..numerics.kernels import DeviceKernel
from ..numerics.magnitude import has_zero
from .blueprint import Blueprint, stack_size
from .meshed import MeshFunction
from .program import Eqn, Group, keeps_order
from .sharding import Partition, partition
from .thresholds import threshold

__all__ = ["GroupFunction", "raw"]

FLUSHING = ("cpu", "tpu")  # platforms whose arithmetic flushes subnormal numbers


class GroupFunction:
    """The compiled function of a group. It knows nothing of the components, so that they may go before it does.

    Called with the inputs of one tile or component it gives (outputs, verdicts): the arrays that leave the group, and
    for every check whether its mask is true everywhere.
    """

    def __init__(self, group: Group, blueprint: Blueprint) -> None:
        self.flat = group.flat
        self.blueprint = blueprint
        sample = group.sample
        self.eqns = blueprint.eqns
        self.specs = blueprint.specs
        self.leaving = blueprint.leaving
        self.checked = [value for value, _ in sample.checks]
        # inputs of operations that are undefined on NaN and infinity
        self.guarded = [arg for eqn in self.eqns if eqn.op.needs_finite for arg in eqn.args]
        self.exact = all(eqn.op.kind != "whole" or self._is_by_bits(eqn) for eqn in self.eqns)
        self.uses_lapack = any(eqn.op.uses_lapack for eqn in self.eqns)
        self.is_fast_on_host = any(eqn.op.is_fast_on_host for eqn in self.eqns) or self._only_widens()
        self._num_traces = 0
        self._jitted: Any = None
        self._telling: Any = None  # compiled when something is not as it should be
        self._ready: set[Any] = set()
        self._thresholds: dict[Hashable, int | None] = {}
        self._lock = threading.Lock()

    @property
    def num_traces(self) -> int:
        """How often it was traced and compiled so far."""
        return self._num_traces + (self.spread.num_traces if "spread" in self.__dict__ else 0)

    def _only_widens(self) -> bool:
        specs = [*self.specs, *(spec for eqn in self.eqns for spec in eqn.specs)]
        return all(eqn.op.widens(*(specs[arg] for arg in eqn.args)) for eqn in self.eqns)

    def belongs_on_host(self, platform: str) -> bool:
        """Whether NumPy is the better way on that platform: a CPU runs the same LAPACK inside a compiled function, but
        multiplies matrices faster outside, and compiling takes longer than factoring a small one; it counts and sorts
        faster in NumPy, and what only widens floats is done there before JAX is imported."""
        return (self.uses_lapack or self.is_fast_on_host) and platform == "cpu"

    def on_host(self, inputs: Sequence[Any], numbers: Sequence[float]) -> tuple[list[Any], list[Any]]:
        """The outputs, and the masks themselves, in NumPy.

        Raises:
            LinAlgError: an operation that needs finite operands has others, or does not converge.
        """
        with np.errstate(all="ignore"):
            values = self._evaluate(HostKernel(), list(inputs), iter(numbers))
        return [values[number] for number in self.leaving], [values[number] for number in self.checked]

    def masks(
        self, inputs: Sequence[Any], numbers: Sequence[float], on_host: bool, mesh: Sequence[Any] = ()
    ) -> list[tuple[Any, Any]]:
        """For every check its mask and how far off every element is, as NumPy arrays; for messages. It was computed in
        NumPy if `on_host`, or spread over the devices `mesh`."""
        host = HostKernel()
        with np.errstate(all="ignore"):
            if mesh:
                values = self.spread.called(inputs, numbers, mesh, range(len(self.blueprint.value_specs())))[0]
            elif self.exact or on_host:
                values = self._evaluate(host, list(inputs), iter(numbers))
            else:
                values = self._eagerly(inputs, numbers)
            found = []
            remaining = iter(numbers)
            at = len(self.specs)
            for eqn in self.eqns:
                op = eqn.op.with_numbers(remaining)
                if at in self.checked:
                    found.append((values[at], op.measure(host, *(values[arg] for arg in eqn.args))))  # type: ignore[attr-defined]
                at += len(eqn.specs)
        return found

    def _eagerly(self, inputs: Sequence[Any], numbers: Sequence[float]) -> list[Any]:
        """All values, computed one operation after the other as the device does."""
        import jax
        import jax.numpy as jnp

        with jax.enable_x64(True):
            kernel = DeviceKernel((jnp.zeros((), np.int32), jnp.zeros((), np.int64)))
            values = self._evaluate(kernel, [jnp.asarray(x) for x in inputs], iter(numbers))
            return [np.asarray(value) for value in values]

    def _evaluate(self, kernel: Any, values: list[Any], numbers: Iterator[Any]) -> list[Any]:
        for eqn in self.eqns:
            op = eqn.op.with_numbers(numbers)
            if op.needs_finite:
                kernel.expect_finite(*(values[arg] for arg in eqn.args))
            values += self._results(kernel, op, [values[arg] for arg in eqn.args], len(eqn.specs))
        return values

    def _results(self, kernel: Any, op: TensorOp, arrays: Sequence[Any], count: int) -> Sequence[Any]:
        """The results of one operation, of which there are so many."""
        if self.flat and keeps_order(op):
            return [arrays[0]]
        results = op.apply(kernel, *arrays)
        return results if count > 1 else [results]

    # -- on several devices --------------------------------------------------------------------------------------

    @cached_property
    def partition(self) -> Partition | None:
        """How one call is spread over devices; None if it cannot be."""
        return partition(self.blueprint)

    @cached_property
    def spread(self) -> MeshFunction:
        """The function that is spread over devices, where it can be."""
        assert self.partition is not None
        return MeshFunction(self.blueprint, self.partition, self.checked, self.guarded, self.compiler_options)

    def on_mesh(
        self, inputs: Sequence[Any], numbers: tuple[float, ...], devices: Sequence[Any]
    ) -> tuple[list[Any], list[bool]]:
        """The outputs as NumPy arrays, and verdicts as those of `on_device`, computed by several devices together."""
        return self.spread.called(inputs, numbers, devices, self.leaving)

    # -- on a device --------------------------------------------------------------------------------------------

    def threshold(self, numbers: tuple[float, ...]) -> int | None:
        """The smallest exponent of input elements with which no flushed number can appear; None if there is none."""
        key = exact(numbers)
        if key not in self._thresholds:
            self._thresholds[key] = threshold(self.blueprint, numbers)
        return self._thresholds[key]

    def limits(self, numbers: Sequence[tuple[float, ...]], platform: str) -> list[Any] | None:
        """For every input the bits of the smallest elements that it may have, for each of some tuples of numbers: []
        arrays; None if subnormal numbers may appear with one of these tuples whatever the inputs are."""
        flushes = platform in FLUSHING and self.exact
        found = [self.threshold(own) if flushes else -1100 for own in numbers]
        thresholds = [threshold for threshold in found if threshold is not None]
        if len(thresholds) < len(found):
            return None
        return [
            np.array([magnitude.threshold_bits(spec.dtype, threshold) for threshold in thresholds], _bits_dtype(spec))
            for spec in self.specs
        ]

    def _bits(self, numbers: tuple[float, ...], platform: str) -> list[Any] | None:
        """The same for one tuple of numbers: scalars."""
        limits = self.limits([numbers], platform)
        return None if limits is None else [column[0] for column in limits]

    def compiler_options(self, platform: str) -> dict[str, Any]:
        """What the compiler is told."""
        options: dict[str, Any] = {"xla_allow_excess_precision": False}
        if platform == "gpu":
            options["xla_gpu_deterministic_ops"] = True
        if platform == "cpu" and any(eqn.op.kind == "reduce" for eqn in self.eqns):
            options["xla_cpu_prefer_vector_width"] = (
                512  # bits: sums in float64 take a quarter less where there are such
            )
        if platform == "cpu" and not self.exact and stack_size(self.blueprint) > 1:
            # it may be computed in a stack or by itself: the threads of a product must not divide it
            options["xla_cpu_multi_thread_eigen"] = False
        return options

    def _is_by_bits(self, eqn: Eqn) -> bool:
        specs = self.blueprint.value_specs()
        return eqn.op.by_bits(*(specs[arg] for arg in eqn.args))

    def _tested(self) -> list[int]:
        """Inputs whose elements reach arithmetic: those in which subnormal numbers matter."""
        needed: set[int] = set()
        at = len(self.blueprint.value_specs())
        for eqn in reversed(self.eqns):
            at -= len(eqn.specs)
            if not self._is_by_bits(eqn) or needed & set(range(at, at + len(eqn.specs))):
                needed.update(eqn.args)
        return [number for number, spec in enumerate(self.specs) if number in needed and spec.dtype.is_float]

    def on_device(
        self, inputs: Sequence[Any], numbers: tuple[float, ...], device: Any, is_exact: bool = False
    ) -> tuple[list[Any], list[bool]] | None:
        """The outputs as device arrays; the verdicts of the checks, then of the guards; None if it would not be exact,
        which is not asked where it is known to be.

        `inputs` are NumPy arrays whose memory must not change until the outputs are ready, which they are on return.
        """
        import jax

        with jax.enable_x64(True):
            bits = [] if is_exact else self._bits(numbers, device.platform)
            if bits is None:
                return None
            # the first device takes NumPy arrays as they are, at a tenth of what placing them costs
            arrays = [x if device.id == 0 else jax.device_put(x, device) for x in raw(inputs, self.specs)]
            call = (np.int32(0), np.int64(0)), bits, [np.float64(number) for number in numbers], arrays
            function = self._function(device)
            # the first call traces and compiles: once, while the other workers read their first inputs
            with nullcontext() if (device, is_exact) in self._ready else self._lock:
                outputs, is_fine = function(*call)
                if (device, is_exact) not in self._ready:
                    give_back()  # what compiling has freed: no budget counts it
                self._ready.add((device, is_exact))
            jax.block_until_ready(outputs)  # type: ignore[no-untyped-call]
            *holds, was_exact = [True] * self._num_verdicts if is_fine else self._told(device, call)
            return (list(outputs), holds) if was_exact else None

    def _function(self, device: Any) -> Any:
        with self._lock:
            if self._jitted is None:
                import jax

                self._jitted = jax.jit(self.traced_at_once, compiler_options=self.compiler_options(device.platform))
        return self._jitted

    def _told(self, device: Any, call: Sequence[Any]) -> list[bool]:
        """The verdicts about a call of which not all are true."""
        with self._lock:
            if self._telling is None:
                import jax

                def verdicts(zeros: Any, *given: Any) -> Any:
                    return self.traced(DeviceKernel(zeros), *given)[1]

                self._telling = jax.jit(verdicts, compiler_options=self.compiler_options(device.platform))
        return np.asarray(self._telling(*call)).tolist()  # type: ignore[no-any-return]

    @property
    def _num_verdicts(self) -> int:
        return len(self.checked) + len(self.guarded) + 1

    def traced_at_once(self, zeros: Any, bits: Sequence[Any], numbers: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """The outputs, and whether all verdicts are true: all masks of one shape are looked at together."""
        import jax.numpy as jnp

        kernel = DeviceKernel(zeros)
        inputs, values = self._valued(kernel, numbers, inputs)
        together: dict[tuple[int, ...], Any] = {}
        for mask in (*(values[number] for number in self.checked), *self._large(kernel, bits, inputs)):
            together[mask.shape] = together[mask.shape] & mask if mask.shape in together else mask
        found = [*map(_everywhere, together.values()), *self._finite(values)]
        return [values[number] for number in self.leaving], reduce(and_, found, jnp.array(True))

    def _valued(self, kernel: Any, numbers: Sequence[Any], inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The inputs as they are meant, and all values."""
        self._num_traces += 1
        own = [
            kernel.from_bits(x, spec.dtype.numpy) if spec.dtype.name == "bfloat16" else x
            for x, spec in zip(inputs, self.specs, strict=False)
        ]
        inputs = [*own, *inputs[len(own) :]]
        return inputs, self._evaluate(kernel, list(inputs), iter(numbers))

    def traced(self, kernel: Any, bits: Sequence[Any], numbers: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """The outputs, and verdicts: of the checks, of the guards, and whether all this is exact."""
        import jax.numpy as jnp

        inputs, values = self._valued(kernel, numbers, inputs)
        holding = self._holding(values)
        exact = reduce(and_, map(_everywhere, self._large(kernel, bits, inputs)), jnp.array(True))
        return [values[number] for number in self.leaving], jnp.stack([*holding, *self._finite(values), exact])

    def _finite(self, values: Sequence[Any]) -> list[Any]:
        """For every guard whether it is finite everywhere."""
        import jax.numpy as jnp

        return [jnp.all(jnp.isfinite(values[number])) for number in self.guarded]

    def _holding(self, values: Sequence[Any]) -> list[Any]:
        """For every check whether its mask is true everywhere, as are all others of its shape: they are looked at
        together, and where one is not, `masks` tells which."""
        together: dict[tuple[int, ...], Any] = {}
        for mask in (values[number] for number in self.checked):
            together[mask.shape] = together[mask.shape] & mask if mask.shape in together else mask
        found = {shape: _everywhere(mask) for shape, mask in together.items()}
        return [found[values[number].shape] for number in self.checked]

    def _large(self, kernel: DeviceKernel, bits: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Where input elements are zero or at least their limit, by the bits: a mask for all inputs of one dtype and
        shape. Without limits it is known."""
        import jax.numpy as jnp

        together: dict[Any, tuple[Any, Any]] = {}
        for number in self._tested() if self.exact and bits else ():
            spec, x, limit = self.specs[number], inputs[number], bits[number]
            raw = kernel.bits(x)
            if has_zero(spec.dtype):
                raw = raw & np.array(np.iinfo(raw.dtype).max >> 1, raw.dtype)
                above = raw - np.ones((), raw.dtype)  # zero becomes the largest
            else:
                above = raw
            key = (spec.dtype, x.shape)
            together[key] = (jnp.minimum(together[key][0], above) if key in together else above, limit)
        return [above >= limit - np.ones((), limit.dtype) for above, limit in together.values()]


def raw(inputs: Sequence[np.ndarray], specs: Sequence[Spec]) -> list[np.ndarray]:
    """What a compiled function is given for its inputs: of bfloat16 the bits, which XLA takes apart on a CPU without
    converting them to float32 and back. What comes after the inputs stays as it is."""
    own = [x.view(np.uint16) if spec.dtype.name == "bfloat16" else x for x, spec in zip(inputs, specs, strict=False)]
    return [*own, *inputs[len(own) :]]


def _bits_dtype(spec: Any) -> Any:
    return f"u{max(spec.dtype.itemsize, 1)}"


def _everywhere(mask: Any) -> Any:
    """Whether a mask is true everywhere. Reduced in two steps, which XLA vectorises on CPU."""
    import jax.numpy as jnp

    if mask.ndim == 1 and mask.size % 1024 == 0 and mask.size > 1024:
        return jnp.all(jnp.min(mask.astype(jnp.uint8).reshape(-1, 1024), axis=0) != 0)
    return jnp.all(mask)
