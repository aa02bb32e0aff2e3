"""The only dtype table: plan spelling, safetensors code, array type, width.

Imports neither NumPy nor JAX, so that a plan can be checked without them; `DType.numpy` imports on first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from .errors import PlanError, nearest

if TYPE_CHECKING:
    import numpy

__all__ = ["BY_CODE", "BY_NAME", "DTYPES", "DType", "by_numpy", "parse_dtype"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    `kind` is `f` float, `i` signed, `u` unsigned, `b` bool, `c` complex. `array` names the NumPy or ml_dtypes type,
    empty where there is none (packed types below 8 bits): such tensors can be moved, not computed with.
    """

    name: str
    code: str
    bits: int
    kind: str
    array: str
    aliases: tuple[str, ...] = ()

    @property
    def itemsize(self) -> int:
        """Bytes per element; only for types of whole bytes."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def is_small_float(self) -> bool:
        """Eight bits or fewer: stored, cast from and compared, but without arithmetic of its own."""
        return self.kind == "f" and self.bits <= 8

    @property
    def numpy(self) -> numpy.dtype:
        """The NumPy dtype (of ml_dtypes where NumPy has none)."""
        return _numpy_dtype(self.array)

    def __str__(self) -> str:
        return self.name


DTYPES: tuple[DType, ...] = (
    DType("bool", "BOOL", 8, "b", "bool"),
    DType("float4_e2m1fn", "F4", 4, "f", ""),
    DType("float6_e2m3fn", "F6_E2M3", 6, "f", ""),
    DType("float6_e3m2fn", "F6_E3M2", 6, "f", ""),
    DType("uint8", "U8", 8, "u", "uint8"),
    DType("int8", "I8", 8, "i", "int8"),
    DType("float8_e5m2", "F8_E5M2", 8, "f", "float8_e5m2"),
    DType("float8_e4m3fn", "F8_E4M3", 8, "f", "float8_e4m3fn"),
    DType("float8_e8m0fnu", "F8_E8M0", 8, "f", "float8_e8m0fnu"),
    DType("float8_e4m3fnuz", "F8_E4M3FNUZ", 8, "f", "float8_e4m3fnuz"),
    DType("float8_e5m2fnuz", "F8_E5M2FNUZ", 8, "f", "float8_e5m2fnuz"),
    DType("int16", "I16", 16, "i", "int16", ("short",)),
    DType("uint16", "U16", 16, "u", "uint16"),
    DType("float16", "F16", 16, "f", "float16", ("half", "fp16")),
    DType("bfloat16", "BF16", 16, "f", "bfloat16", ("bf16",)),
    DType("int32", "I32", 32, "i", "int32", ("int",)),
    DType("uint32", "U32", 32, "u", "uint32"),
    DType("float32", "F32", 32, "f", "float32", ("float", "fp32")),
    DType("complex64", "C64", 64, "c", "complex64"),
    DType("float64", "F64", 64, "f", "float64", ("double", "fp64")),
    DType("int64", "I64", 64, "i", "int64", ("long",)),
    DType("uint64", "U64", 64, "u", "uint64"),
)
BY_CODE: dict[str, DType] = {dtype.code: dtype for dtype in DTYPES}
BY_NAME: dict[str, DType] = {word: dtype for dtype in DTYPES for word in (dtype.name, *dtype.aliases)}


def parse_dtype(word: str) -> DType:
    """The dtype of a plan's spelling: case and surrounding blanks do not matter.

    Raises:
        PlanError: no dtype of that name, or one that arrays cannot hold.
    """
    found = BY_NAME.get(word.strip().lower())
    if found is None or not found.array:
        names = [name for name, dtype in BY_NAME.items() if dtype.array]
        near = nearest(word.strip().lower(), names)
        raise PlanError(
            f"unknown dtype {word!r}",
            expected="one of " + ", ".join(dict.fromkeys(d.name for d in DTYPES if d.array)),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return found


@cache
def by_numpy(dtype: numpy.dtype) -> DType | None:
    """The dtype of a NumPy dtype, None if the table has none."""
    return next((entry for entry in DTYPES if entry.array and entry.numpy == dtype), None)


@cache
def _numpy_dtype(name: str) -> numpy.dtype:
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(np, name) if hasattr(np, name) and name != "bool" else getattr(ml_dtypes, name, bool))
