"""Operations without inputs: their elements are made on the host while the plan runs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import PlanError
from ..core.specs import Spec
from .base import TensorOp
from .rules import check_floats

if TYPE_CHECKING:
    import numpy

__all__ = ["Constant", "Given", "Made", "Random", "check_distribution", "check_shape", "drawn"]

MAX_ELEMENTS = 1 << 60  # no file is so long


@dataclass(frozen=True)
class Made(TensorOp):
    """Elements of a known shape and dtype."""

    kind = "make"
    sequential = False  # whether elements can only be made from the first on
    spec: Spec

    def infer(self, *specs: Any, **_: Any) -> tuple[Spec, ...]:
        return (self.spec,)

    def produce(self, start: int, count: int) -> numpy.ndarray:
        """`count` elements from number `start` on, in row-major order."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Made):
    """One number everywhere; integers truncate toward zero."""

    value: float

    def produce(self, start: int, count: int) -> numpy.ndarray:
        import numpy as np

        dtype = self.spec.dtype
        value: Any = int(self.value) if dtype.is_integer else self.value != 0 if dtype.kind == "b" else self.value
        wide = np.asarray(value, np.float32) if dtype.is_float and dtype.bits < 32 else np.asarray(value)
        return np.full(count, wide.astype(dtype.numpy))


@dataclass(frozen=True)
class Given(Made):
    """Nested values, broadcast to the shape from the right."""

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

    def produce(self, start: int, count: int) -> numpy.ndarray:
        import numpy as np

        dtype = self.spec.dtype
        with np.errstate(all="ignore"):
            # as torch.tensor(values, dtype): every number is converted by itself, narrow floats by way of float32
            given = np.array(self.values)
            if dtype.is_float and dtype.bits < 32:
                given = given.astype(np.float32)
            given = (given != 0) if dtype.kind == "b" else given.astype(dtype.numpy)
        return np.broadcast_to(given, self.spec.shape).reshape(-1)[start : start + count]


@dataclass(frozen=True)
class Random(Made):
    """A seeded stream of the plan language: it depends on the seed, the shape and the dtype alone."""

    sequential = True
    distribution: str
    first: float
    second: float
    seed: int

    def produce(self, start: int, count: int) -> numpy.ndarray:
        from ..core import streams

        draw = streams.uniform if self.distribution == "uniform" else streams.normal
        flat: numpy.ndarray = draw(self.seed, self.spec.shape, self.spec.dtype, self.first, self.second).reshape(-1)
        return flat[start : start + count]


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


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise a PlanError unless every length is positive, and the bytes of the tensor can be counted."""
    if not shape or min(shape) < 1:
        raise PlanError("not a shape", expected="a list of positive lengths", found=str(list(shape))[:120])
    if math.prod(shape) >= MAX_ELEMENTS:
        raise PlanError("the shape is too large", expected="fewer than 2^60 elements", found=str(list(shape))[:120])
