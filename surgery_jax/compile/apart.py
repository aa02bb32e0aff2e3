"""What a CPU computes where rows are sorted: two compiled functions, and NumPy between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from ..core.freed import give_back
from ..numerics.sorting_kernel import SortingKernel
from .blueprint import Blueprint

__all__ = ["SortedApart"]

# Elements that are worked on at once: what they come to stays near a core, and next to it a call costs nothing.
AT_ONCE = 1 << 17


class SortedApart:
    """A traced function in two halves: the first gives what is to be sorted, and the second, which is given the same
    sorted, what the whole gives. A tile is worked on a part after the other, a power of two of its rows each.

    Elements are first sorted by 32 bits. A part in which these do not decide is worked on once more with 64, and if
    that happens often, all that follow are with these only. The result has the same bits.
    """

    def __init__(self, traced: Callable[..., Any], options: Mapping[str, Any], plan: Blueprint) -> None:
        """`traced` is given a kernel, and the other arguments of the function of a group."""
        self._traced, self._options = traced, dict(options)
        self._rows, self._step = plan.rows, 1 << max(AT_ONCE // plan.width, 1).bit_length() - 1
        self._functions: dict[bool, tuple[Any, Any]] = {}
        self._ready: set[Any] = set()
        self._num_parts = self._num_unsure = 0
        self._lock = threading.Lock()

    def on_device(
        self, inputs: Sequence[Any], numbers: Callable[[int, int], Sequence[float]], bits: Sequence[Any], device: Any
    ) -> tuple[list[Any], list[bool]] | None:
        """What the function of a group gives, for a tile. `numbers(begin, end)` are those of some of its rows."""
        outputs, verdicts = [], []
        for begin in range(0, self._rows, self._step):
            end = min(begin + self._step, self._rows)
            own = [np.float64(number) for number in numbers(begin, end)]
            call = (np.int32(0), np.int64(0)), bits, own, [x[begin:end] for x in inputs]
            made, (*holds, was_exact) = self._of_part(device, call)
            if not was_exact:
                return None
            outputs.append(made)
            verdicts.append(holds)
        joined = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
        return joined, [all(each) for each in zip(*verdicts, strict=True)]

    def _of_part(self, device: Any, call: Sequence[Any]) -> tuple[list[Any], list[bool]]:
        """The outputs and the verdicts of a call."""
        is_narrow = 8 * self._num_unsure <= self._num_parts + 8
        outputs, verdicts, is_sure = self._called(is_narrow, device, call)
        self._num_parts += is_narrow
        self._num_unsure += not is_sure
        return (outputs, verdicts) if is_sure else self._called(False, device, call)[:2]

    def _called(self, is_narrow: bool, device: Any, call: Sequence[Any]) -> tuple[list[Any], list[bool], bool]:
        """The same, and whether it is so; by 32 bits if `is_narrow`."""
        import jax

        first, second = self._halves(is_narrow)
        key = device, is_narrow, len(call[1])
        # the first call traces and compiles: once, while the other workers read their first inputs
        with jax.default_device(device), nullcontext() if key in self._ready else self._lock:
            found = second(*call, [np.sort(np.asarray(x), axis=1) for x in first(*call)])
            if key not in self._ready:
                give_back()  # what compiling has freed: no budget counts it
            self._ready.add(key)
        outputs, verdicts, is_sure = found
        return [np.asarray(x) for x in outputs], np.asarray(verdicts).tolist(), bool(is_sure)

    def _halves(self, is_narrow: bool) -> tuple[Any, Any]:
        import jax

        with self._lock:
            if is_narrow not in self._functions:
                halves = (partial(half, is_narrow) for half in (self._first, self._second))
                first, second = (jax.jit(half, compiler_options=self._options) for half in halves)
                self._functions[is_narrow] = first, second
            return self._functions[is_narrow]

    def _first(self, is_narrow: bool, zeros: Any, *rest: Any) -> list[Any]:
        kernel = SortingKernel(zeros, is_narrow)
        self._traced(kernel, *rest)
        return kernel.wanted

    def _second(self, is_narrow: bool, zeros: Any, *rest: Any) -> tuple[Any, Any, Any]:
        *call, ordered = rest
        kernel = SortingKernel(zeros, is_narrow, ordered)
        outputs, verdicts = self._traced(kernel, *call)
        return outputs, verdicts, kernel.is_sure()
