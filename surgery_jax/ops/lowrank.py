"""The best approximation of a matrix by one of lower rank: the mathematics that operations share.

Written against the kernels of `compile.kernels`, so that a device and NumPy compute the same. Everything rests on the
eigenvectors of the Gram matrix of the thin side, in float64: its eigenvalues are off by 1e-16 of the largest, so
singular values down to 1e-8 of the largest count, which is what float32 holds. Matrices of float64 whose kept part is
smaller than that, and ranks near the thin side, are left to a full decomposition.

Signs: in every row of vt the entry of largest magnitude is positive (of equals the first); u has the sign that follows.
"""

from __future__ import annotations

from typing import Any

from ..core.specs import Spec

__all__ = ["METHODS", "factors", "singular_values", "workspace_bytes"]

METHODS = ("auto", "exact", "randomized")
NARROW = 3e-15  # of the square of the norm: a remainder above it is known to 1e-3 from a Gram matrix of float64


def factors(k: Any, x: Any, rank: int, method: str = "auto") -> tuple[Any, Any, Any]:
    """The leading singular triplets of a matrix.

    x: float[m, n] -> u: [m, r], s: [r] descending, vt: [r, n] with r = min(rank, m, n), in float32, or in float64 and
    complex64 for these; u and vt have orthonormal columns and rows, also where s is zero.
    """
    w = k.widen(x)
    m, n = w.shape
    r = min(rank, m, n)
    if w.dtype.kind == "c" or 2 * r > min(m, n):
        return _signed(k, *_cut(k.svd(w), r))
    unit = _power_of_two(k, w)
    tall = (w if m >= n else w.T) / unit
    u, s, v = _exact(k, tall, r)
    return _signed(k, u, s * unit, v.T) if m >= n else _signed(k, v, s * unit, u.T)


def workspace_bytes(x: Spec, rank: int) -> int:
    """Bytes that `factors` and `singular_values` of such a matrix need beside it and the triplets.

    The matrix in float32 and, scaled, in float64; the Gram matrix, its vectors, and what LAPACK takes for them.
    """
    thin, item = min(x.shape), max(x.dtype.itemsize, 4)
    return x.size * (2 * item + 8) + 4 * thin * thin * 8 + 3 * sum(x.shape) * min(rank, thin) * item


def singular_values(k: Any, x: Any) -> Any:
    """All singular values: x: float[m, n] -> float64[min(m, n)] (float32 for complex64), descending.

    From the Gram matrix in float64, where those below 1e-8 of the largest are lost; for float64 from a decomposition.
    """
    w = k.widen(x)
    if w.dtype != "float32":
        return k.svd(w)[1]
    unit = _power_of_two(k, w)
    m, n = w.shape
    tall = ((w if m >= n else w.T) / unit).astype("float64")
    return k.xp.sqrt(k.at_least(k.eigvalsh(k.matmul(tall.T, tall))[::-1], 0.0)) * unit


def _exact(k: Any, w: Any, r: int) -> tuple[Any, Any, Any]:
    """By the Gram matrix. w: [m, n], m >= n -> u: [m, r], s: [r], v: [n, r]."""
    wide = w.astype("float64")
    gram = k.matmul(wide.T, wide)
    values, vectors = k.leading(gram, r)

    def by_gram() -> tuple[Any, Any, Any]:
        return _triplets(k, w, vectors.astype(w.dtype))

    def by_svd() -> tuple[Any, Any, Any]:
        u, s, vh = _cut(k.svd(w), r)
        return u, s, vh.T

    if w.dtype == "float32":
        return by_gram()
    whole = k.xp.trace(gram)
    return k.choose(whole - k.xp.sum(values) > NARROW * whole, by_gram, by_svd)  # type: ignore[no-any-return]


def _triplets(k: Any, w: Any, v: Any) -> tuple[Any, Any, Any]:
    """The decomposition of w v v' for orthonormal v: [n, r]; u is orthonormal even where s is zero."""
    q, t = k.qr(k.matmul(w, v))
    u, s, vh = k.svd(t)
    return k.matmul(q, u), s, k.matmul(v, vh.T)


def _cut(triplets: tuple[Any, Any, Any], r: int) -> tuple[Any, Any, Any]:
    u, s, vh = triplets
    return u[:, :r], s[:r], vh[:r]


def _power_of_two(k: Any, w: Any) -> Any:
    """A power of two near the largest magnitude: to divide by it is exact, and squares do not overflow."""
    _, exponent = k.xp.frexp(k.xp.max(k.xp.abs(w), initial=0.0))
    limit = 126 if w.dtype == "float32" else 1022
    return k.xp.ldexp(k.xp.ones((), w.dtype), k.xp.clip(exponent, -limit, limit))


def _signed(k: Any, u: Any, s: Any, vh: Any) -> tuple[Any, Any, Any]:
    """The stated convention; of complex matrices the phase of the largest entry becomes zero."""
    largest = k.xp.take_along_axis(vh, k.xp.argmax(k.xp.abs(vh), axis=1)[:, None], axis=1)[:, 0]
    size = k.xp.abs(largest)
    phase = k.xp.where(size > 0, largest / k.xp.where(size > 0, size, 1), 1).astype(vh.dtype)
    return u * phase, s, vh * k.xp.conj(phase)[:, None]
