"""A group to a function: one `jax.jit` per group, numbers traced and structure static; or the same operations
in NumPy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any

import numpy as np

from ..core.specs import Spec
from ..ops.base import TensorOp
from ..ops.reshape import Reshape
from . import magnitude
from .blueprint import Blueprint
from .kernels import DeviceKernel, HostKernel
from .magnitude import Bound, has_zero
from .program import Group

__all__ = ["Functions", "GroupFunction"]

FLUSHING = ("cpu", "tpu")  # platforms whose arithmetic flushes subnormal numbers


class Functions:
    """The functions of groups, by structure: programs that share them compile what they have in common once."""

    def __init__(self) -> None:
        self._known: dict[Any, GroupFunction] = {}

    def of(self, group: Group, blueprint: Blueprint) -> GroupFunction:
        """The function of a group, made if there is none yet."""
        eqns = tuple((eqn.op.static_key(), eqn.args, eqn.specs) for eqn in blueprint.eqns)
        checked = tuple(value for value, _ in group.sample.checks)
        shape = (group.flat, group.on_host, blueprint.kind, blueprint.rows, blueprint.fused)
        key = (shape, blueprint.specs, eqns, blueprint.leaving, checked)
        if key not in self._known:
            self._known[key] = GroupFunction(group, blueprint)
        return self._known[key]

    @property
    def num_compilations(self) -> int:
        """How often any of them was traced and compiled so far."""
        return sum(function.num_traces for function in self._known.values())


class GroupFunction:
    """The compiled function of a group. It knows nothing of the components, so that they may go before it does.

    Called with the inputs of one tile or component it gives (outputs, verdicts): the arrays that leave the group, and
    for every check whether its mask is true everywhere.
    """

    def __init__(self, group: Group, blueprint: Blueprint) -> None:
        self.flat = group.flat
        self.is_on_host = group.on_host
        self.blueprint = blueprint
        sample = group.sample
        self.eqns = blueprint.eqns
        self.specs = blueprint.specs
        self.leaving = blueprint.leaving
        self.checked = [value for value, _ in sample.checks]
        # inputs of operations that are undefined on NaN and infinity
        self.guarded = [arg for eqn in self.eqns if eqn.op.needs_finite for arg in eqn.args]
        self.exact = all(eqn.op.kind != "whole" for eqn in self.eqns)
        self.uses_lapack = any(eqn.op.uses_lapack for eqn in self.eqns)
        self.num_traces = 0
        self._jitted: Any = None
        self._ready: set[Any] = set()
        self._thresholds: dict[tuple[float, ...], int | None] = {}
        self._lock = threading.Lock()

    def belongs_on_host(self, platform: str) -> bool:
        """Whether NumPy is the better way on that platform: a CPU runs the same LAPACK inside a compiled function, but
        multiplies matrices faster outside, and compiling takes longer than factoring a small one."""
        return self.is_on_host or (self.uses_lapack and platform == "cpu")

    def on_host(self, inputs: Sequence[Any], numbers: Sequence[float]) -> tuple[list[Any], list[Any]]:
        """The outputs, and the masks themselves, in NumPy.

        Raises:
            LinAlgError: an operation that needs finite operands has others, or does not converge.
        """
        with np.errstate(all="ignore"):
            values = self._evaluate(HostKernel(), list(inputs), iter(numbers))
        return [values[number] for number in self.leaving], [values[number] for number in self.checked]

    def masks(self, inputs: Sequence[Any], numbers: Sequence[float], platform: str) -> list[tuple[Any, Any]]:
        """For every check its mask and how far off every element is, as NumPy arrays; for messages. `platform` is where
        the group was computed."""
        host = HostKernel()
        with np.errstate(all="ignore"):
            if self.exact or self.belongs_on_host(platform):
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
            if self.flat and isinstance(op, Reshape):
                results: Any = values[eqn.args[0]]
            else:
                results = op.apply(kernel, *(values[arg] for arg in eqn.args))
            values += results if len(eqn.specs) > 1 else [results]
        return values

    # -- on a device --------------------------------------------------------------------------------------------

    def threshold(self, numbers: tuple[float, ...]) -> int | None:
        """The smallest exponent of input elements with which no flushed number can appear; None if there is none."""
        if numbers not in self._thresholds:
            low, high = -1100, 1100
            while low < high:
                middle = (low + high) // 2
                if self._stays_normal(middle, numbers):
                    high = middle
                else:
                    low = middle + 1
            self._thresholds[numbers] = low if low < 1100 else None
        return self._thresholds[numbers]

    def _stays_normal(self, threshold: int, numbers: tuple[float, ...]) -> bool:
        """Whether all results are normal numbers when all tested input elements are at least 2**threshold."""
        specs = self.blueprint.value_specs()
        bounds: list[Bound | None] = [magnitude.of_input(spec.dtype, threshold) for spec in self.specs]
        remaining = iter(numbers)
        for eqn in self.eqns:
            op = eqn.op.with_numbers(remaining)
            operands = [bounds[arg] for arg in eqn.args]
            if eqn.op.kind == "whole" or any(operand is None for operand in operands):
                bounds += [None] * len(eqn.specs)
                continue
            known = [operand for operand in operands if operand is not None]
            if op.by_bits(*(specs[arg] for arg in eqn.args)):
                bounds.append(reduce(Bound.either, known))
                continue
            found = _computed(op, known, [specs[arg] for arg in eqn.args], eqn.specs[0])
            if found is None:
                return False
            bounds.append(found)
        return True

    def _tested(self) -> list[int]:
        """Inputs whose elements reach arithmetic: those in which subnormal numbers matter."""
        specs = self.blueprint.value_specs()
        needed: set[int] = set()
        at = len(specs)
        for eqn in reversed(self.eqns):
            at -= len(eqn.specs)
            if not eqn.op.by_bits(*(specs[arg] for arg in eqn.args)) or needed & set(range(at, at + len(eqn.specs))):
                needed.update(eqn.args)
        return [number for number, spec in enumerate(self.specs) if number in needed and spec.dtype.is_float]

    def on_device(
        self, inputs: Sequence[Any], numbers: tuple[float, ...], device: Any
    ) -> tuple[list[Any], list[bool]] | None:
        """The outputs as device arrays; the verdicts of the checks, then of the guards; None if it would not be exact.

        `inputs` are NumPy arrays whose memory must not change until the outputs are ready, which they are on return.
        """
        import jax

        with jax.enable_x64(True):
            flushes = device.platform in FLUSHING and self.exact
            threshold = self.threshold(numbers) if flushes else -1100
            if threshold is None:
                return None
            bits = [np.array(magnitude.threshold_bits(s.dtype, threshold), _bits_dtype(s)) for s in self.specs]
            # the first device takes NumPy arrays as they are, at a tenth of what placing them costs
            arrays = [x if device.id == 0 else jax.device_put(x, device) for x in inputs]
            call = (np.int32(0), np.int64(0)), bits, [np.float64(number) for number in numbers], arrays
            function = self._function(device)
            # the first call traces and compiles: once, while the other workers read their first inputs
            with nullcontext() if device in self._ready else self._lock:
                outputs, verdicts = function(*call)
                self._ready.add(device)
            *holds, is_exact = np.asarray(verdicts).tolist()
            jax.block_until_ready(outputs)  # type: ignore[no-untyped-call]
            return (list(outputs), holds) if is_exact else None

    def _function(self, device: Any) -> Any:
        with self._lock:
            if self._jitted is None:
                import jax

                options: dict[str, Any] = {"xla_allow_excess_precision": False}
                if device.platform == "gpu":
                    options["xla_gpu_deterministic_ops"] = True
                self._jitted = jax.jit(self._traced, compiler_options=options)
        return self._jitted

    def _traced(self, zeros: Any, bits: Sequence[Any], numbers: Sequence[Any], inputs: Sequence[Any]) -> Any:
        import jax.numpy as jnp

        self.num_traces += 1
        kernel = DeviceKernel(zeros)
        exact = self._large_enough(kernel, bits, inputs)
        values = self._evaluate(kernel, list(inputs), iter(numbers))
        verdicts = [_everywhere(values[number]) for number in self.checked]
        verdicts += [jnp.all(jnp.isfinite(values[number])) for number in self.guarded]
        return [values[number] for number in self.leaving], jnp.stack([*verdicts, exact])

    def _large_enough(self, kernel: DeviceKernel, bits: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """Whether every input element is zero or at least its limit, by the bits; inputs of one dtype are tested
        together."""
        import jax.numpy as jnp

        together: dict[Any, tuple[Any, Any]] = {}
        for number in self._tested() if self.exact else ():
            spec, x, limit = self.specs[number], inputs[number], bits[number]
            raw = kernel.bits(x)
            if has_zero(spec.dtype):
                raw = raw & np.array(np.iinfo(raw.dtype).max >> 1, raw.dtype)
                above = raw - np.ones((), raw.dtype)  # zero becomes the largest
            else:
                above = raw
            key = (spec.dtype, x.shape)
            together[key] = (jnp.minimum(together[key][0], above) if key in together else above, limit)
        result = jnp.array(True)
        for above, limit in together.values():
            result &= _everywhere(above >= limit - np.ones((), limit.dtype))
        return result


def _computed(op: TensorOp, operands: Sequence[Bound], specs: Sequence[Spec], result: Spec) -> Bound | None:
    """The bound of a result, None if a subnormal number may take part or come out."""
    floats = [spec.dtype for spec in specs if spec.dtype.is_float]
    for operand, spec in zip(operands, specs, strict=True):
        if spec.dtype.is_float and operand.least < magnitude.smallest_normal(spec.dtype):
            return None
    raw: Bound | None = op.smallest(*operands)
    if raw is None:
        return None
    target = result.dtype
    if floats or target.is_float:
        limit = max(magnitude.smallest_normal(dtype) for dtype in (*floats, target))
        if raw.least < limit:
            return None
    return raw.rounded(target) if target.is_float else Bound(0, 0)


def _bits_dtype(spec: Any) -> Any:
    return f"u{max(spec.dtype.itemsize, 1)}"


def _everywhere(mask: Any) -> Any:
    """Whether a mask is true everywhere. Reduced in two steps, which XLA vectorises on CPU."""
    import jax.numpy as jnp

    if mask.ndim == 1 and mask.size % 1024 == 0 and mask.size > 1024:
        return jnp.all(jnp.min(mask.astype(jnp.uint8).reshape(-1, 1024), axis=0) != 0)
    return jnp.all(mask)
