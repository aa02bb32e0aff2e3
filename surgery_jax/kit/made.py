"""Operations without inputs: their elements are made on the host while the plan runs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.errors import PlanError
from ..core.specs import Spec
from .operations import TensorOp
from .rules import check_floats

if TYPE_CHECKING:
    import numpy

__all__ = ["Constant", "Given", "Made", "Positions", "Random", "check_distribution", "check_shape", "drawn"]


AT_ONCE = 1 << 16  # elements that are copied at once where they are not in a row

MAX_ELEMENTS = 1 << 60  # no file is so long


@dataclass(frozen=True)
class Made(TensorOp):
    """Elements of a known shape and dtype."""

    kind = "make"
    scratch_bytes: ClassVar[int] = 0  # that making elements takes beside them, at most
    spec: Spec

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        return (self.spec,)

    def put(self, start: int, out: numpy.ndarray) -> None:
        """Fill a flat array with the elements from number `start` on, in row-major order."""
        raise NotImplementedError


@dataclass(frozen=True)
class Positions(Made):
    """The number of every element, in row-major order."""

    scratch_bytes: ClassVar[int] = 8 * AT_ONCE

    def put(self, start: int, out: numpy.ndarray) -> None:
        import numpy as np

        first = np.arange(min(out.size, AT_ONCE), dtype=np.uint64)  # once: while it is made no other thread runs
        for at in range(0, out.size, AT_ONCE):
            part = out[at : at + AT_ONCE]
            np.add(first[: part.size], np.uint64(start + at), out=part)


@dataclass(frozen=True)
class Constant(Made):
    """One number everywhere; integers truncate toward zero."""

    value: float

    def put(self, start: int, out: numpy.ndarray) -> None:
        import numpy as np

        dtype = self.spec.dtype
        value: Any = int(self.value) if dtype.is_integer else self.value != 0 if dtype.kind == "b" else self.value
        wide = np.asarray(value, np.float32) if dtype.is_float and dtype.bits < 32 else np.asarray(value)
        out[:] = wide.astype(dtype.numpy)


@dataclass(frozen=True)
class Given(Made):
    """Nested values, broadcast to the shape from the right."""

    scratch_bytes: ClassVar[int] = 8 * AT_ONCE  # beside the values, which the plan holds as well
    values: Any

    def check(self) -> None:
        """Raise a PlanError unless the values broadcast to the shape."""
        shape: list[int] = []
        level = self.values
        while isinstance(level, tuple):
            shape.append(len(level))
            level = level[0] if level else None
        padded = [1] * (len(self.spec.shape) - len(shape)) + shape
        if len(padded) != len(self.spec.shape) or any(
            m not in (1, n) for m, n in zip(padded, self.spec.shape, strict=True)
        ):
            raise PlanError(
                "the values do not broadcast to the tensor", expected=str(self.spec), found=f"values of shape {shape}"
            )

    def put(self, start: int, out: numpy.ndarray) -> None:
        import numpy as np

        dtype = self.spec.dtype
        with np.errstate(all="ignore"):
            # as torch.tensor(values, dtype): every number is converted by itself, narrow floats by way of float32
            given = np.array(self.values)
            if dtype.is_float and dtype.bits < 32:
                given = given.astype(np.float32)
            given = (given != 0) if dtype.kind == "b" else given.astype(dtype.numpy)
        flat = given.reshape(-1) if given.size == self.spec.size else np.broadcast_to(given, self.spec.shape).flat
        for at in range(0, out.size, AT_ONCE):
            end = min(at + AT_ONCE, out.size)
            out[at:end] = flat[start + at : start + end]


@dataclass(frozen=True)
class Random(Made):
    """A seeded stream of the plan language: it depends on the seed, the shape and the dtype alone."""

    scratch_bytes: ClassVar[int] = 1 << 20  # of the blocks of `numerics.streams`
    distribution: str
    first: float
    second: float
    seed: int

    def put(self, start: int, out: numpy.ndarray) -> None:
        from ..numerics import streams

        draw = streams.uniform if self.distribution == "uniform" else streams.normal
        draw(self.seed, self.spec.size, self.spec.dtype, self.first, self.second, start, out)


def check_distribution(distribution: str, low: float, high: float, std: float) -> None:
    """Raise a PlanError for bounds that give no distribution."""
    if distribution == "uniform" and not low < high:
        raise PlanError("low must be below high", found=f"low {low:g}, high {high:g}")
    if distribution == "normal" and not std > 0:
        raise PlanError("std must be positive", found=f"{std:g}")


def drawn(
    spec: Spec, distribution: str, uniform: tuple[float, float], normal: tuple[float, float], seed: int | None
) -> Random:
    """Random numbers; without a seed, one is taken from the operating system now, so that the plan's steps agree
    on it."""
    check_floats(spec)
    if spec.dtype.is_small_float:
        raise PlanError(f"random numbers are not defined for {spec.dtype}", hint="fill a float32 tensor and cast it")
    first, second = uniform if distribution == "uniform" else normal
    chosen = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    return Random(spec, distribution, first, second, chosen)


def check_shape(shape: tuple[int, ...], *, least: int = 1) -> None:
    """Raise a PlanError unless every length is at least `least`, and the bytes of the tensor can be counted. A shape
    without axes is one where lengths of 0 are."""
    if (least and not shape) or min(shape, default=1) < least:
        expected = "a list of positive lengths" if least else "a list of lengths, none below 0"
        raise PlanError("not a shape", expected=expected, found=str(list(shape))[:120])
    if math.prod(shape) >= MAX_ELEMENTS:
        raise PlanError("the shape is too large", expected="fewer than 2^60 elements", found=str(list(shape))[:120])
