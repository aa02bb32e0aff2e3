"""LAPACK as SciPy has it, called so that other threads go on: SciPy's own functions hold Python's lock for as long as
they decompose a matrix, so that workers would wait for each other.

The routines are those that SciPy offers to compiled code, which `jaxlib` calls in the same way.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

__all__ = ["is_positive", "leading"]

_PREFIX = {"float32": "s", "float64": "d"}


def is_positive(x: Any) -> bool:
    """Whether a symmetric matrix x: float[n, n] is positive definite. x is used up, and must be contiguous."""
    info = _call(x.dtype, "potrf", "U", x.shape[0], x, x.shape[0])
    return info == 0


def leading(x: Any, count: int) -> tuple[Any, Any]:
    """The `count` largest eigenvalues of a symmetric matrix x: float[n, n], ascending, and their vectors as columns;
    fewer if bisection loses some that are equal.

    Raises:
        LinAlgError: no convergence.
    """
    n, dtype = x.shape[0], x.dtype
    a = np.array(x, order="C")  # what is decomposed is used up
    found = np.zeros(1, np.intc)
    values, vectors, support = np.empty(n, dtype), np.empty((count, n), dtype), np.empty(2 * n, np.intc)
    limits = (dtype.type(0), dtype.type(0), n - count + 1, n, dtype.type(0))
    work, iwork = np.empty(1, dtype), np.empty(1, np.intc)
    for sizes in ((-1, -1), None):
        lengths = sizes or (len(work), len(iwork))
        info = _call(
            dtype, "syevr", "V", "I", "L", n, a, n, *limits, found, values, vectors, n, support,
            work, lengths[0], iwork, lengths[1],
        )  # fmt: skip
        if info:
            raise np.linalg.LinAlgError
        if sizes:
            work, iwork = np.empty(int(work[0]), dtype), np.empty(int(iwork[0]), np.intc)
    return values[: found[0]], vectors[: found[0]].T


def _call(dtype: Any, name: str, *arguments: Any) -> int:
    """Call a routine with characters, numbers and arrays, all by reference; what it says in its last argument."""
    kept = [
        np.frombuffer(given.encode(), np.uint8)
        if isinstance(given, str)
        else np.asarray(given, np.intc if isinstance(given, int) else None)
        for given in (*arguments, 0)
    ]
    _routine(_PREFIX[dtype.name] + name, len(kept))(*(array.ctypes.data for array in kept))
    return int(kept[-1])


@cache
def _routine(name: str, num_arguments: int) -> Any:
    import scipy.linalg.cython_lapack

    capsule = scipy.linalg.cython_lapack.__pyx_capi__[name]
    spell, find = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    spell.argtypes, spell.restype = [ctypes.py_object], ctypes.c_char_p
    find.argtypes, find.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * num_arguments)
    return prototype(find(capsule, spell(capsule)))  # called without Python's lock
