"""The best approximation of a matrix by one of lower rank: the mathematics that operations share.

Written against the kernels of `numerics.kernels`, so that a device and NumPy compute the same, but for one shortcut of
the host.

*Exact* takes the eigenvectors of the Gram matrix of the thin side, in float64: its eigenvalues are off by 1e-16 of the
largest, so singular values down to 1e-8 of the largest count, which is what float32 holds. Matrices of float64 whose
remainder is smaller than that, and ranks near the thin side, are left to a full decomposition.

*Randomized* takes a block Krylov space of fixed depth and a fixed start, and proves nothing (Musco and Musco,
"Randomized block Krylov methods for stronger and faster approximate singular value decomposition", 2015).

*Auto* is for long thin sides. On the host it tries what products alone can prove (`numerics.lanczos`); then, and at
once on other devices, which multiply large matrices at no cost to speak of, the Gram matrix in float32. It keeps the
first result that is proven to leave at most 1.001 of the least residual in Frobenius norm, or no more than a few
roundings of the matrix; else it is exact. The proof: W: [m, n] has the Gram matrix G = W'W, and V are the r orthonormal
vectors that were found. In the basis [V, rest] G is [[T, R'], [R, D]]. The squared residual of W V V' is |W|^2 less
trace T, the squared optimum is |W|^2 less the r largest eigenvalues of G. With a number d >= D these are at most those
of [[T, R'], [R, d]] (Ky Fan; Lehmann's bound in Parlett, "The Symmetric Eigenvalue Problem", chapter 10). T and R come
from products with W itself; of d the Cholesky factor or an eigenvalue of the Gram matrix shows that it is large enough,
with a bound of rounding.

Signs: in every row of vt the entry of largest magnitude is positive (of equals the first); u has the sign that follows.
"""

from __future__ import annotations

from typing import Any

from ..core.specs import Spec

__all__ = ["METHODS", "factors", "orthonormal", "singular_values", "workspace_bytes"]

METHODS = ("auto", "exact", "randomized")
LONG = 512  # thin sides up to this are exact at once: there is nothing to gain
RATIO = 1.001
EXTRA = 8  # columns of a random block beyond the rank
DEPTH = 4  # products with W'W after the first block, where nothing is proven
BLOCK = 32  # columns of a block at most, with the Gram matrix at hand: what is slow then is not the products
BEYOND = 1.05  # times the first Ritz value outside: a number that no eigenvalue there should exceed
TRUSTED = 1e-2  # of the squared norm: a remainder above it is a difference of norms
ROUNDINGS = 8 * 2.0**-24  # of the norm of a float32 matrix: a residual that needs no proof
GRAM_ROUNDING = 16 * 2.0**-24  # of the Frobenius norm of a Gram matrix of float32: more than it is ever off by
NARROW = 3e-15  # of the square of the norm: a remainder above it is known to 1e-3 from a Gram matrix of float64
LEFT = 1e-2  # of the norm of a block: where less is left of it, what is left is not orthogonal to the rest
FITTING = 16  # binary orders of magnitude from 1 in which squares of squares keep clear of the ends of float32


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
    w = k.over(w if m >= n else w.T, unit)
    u, s, v = _triplets(k, *_vectors(k, w, r, method))
    return _signed(k, u, s * unit, v.T) if m >= n else _signed(k, v, s * unit, u.T)


def workspace_bytes(x: Spec, rank: int) -> int:
    """Bytes that `factors` and `singular_values` of such a matrix need beside it and the triplets.

    The scaled matrix, and either two more of its size (what an approximation leaves, or a full decomposition) or a Gram
    matrix with its eigenvectors and a copy; and some thin matrices.
    """
    thin, item = min(x.shape), max(x.dtype.itemsize, 4)
    square = 8 * thin * thin
    beside = max(2 * x.size * item + (4 * square if item == 8 else 0), 3 * square)
    return x.size * item + beside + 4 * sum(x.shape) * min(rank + EXTRA, thin) * item


def singular_values(k: Any, x: Any) -> Any:
    """All singular values: x: float[m, n] -> float64[min(m, n)] (float32 for complex64), descending.

    From the Gram matrix in float64, where those below 1e-8 of the largest are lost; for float64 from a decomposition.
    """
    w = k.widen(x)
    if w.dtype != "float32":
        return k.svd(w)[1]
    unit = _power_of_two(k, w)
    m, n = w.shape
    w = k.over(w if m >= n else w.T, unit)
    return k.xp.sqrt(k.at_least(k.eigvalsh(k.gram(w, "float64"))[::-1], 0.0)) * unit


def _vectors(k: Any, w: Any, r: int, method: str) -> tuple[Any, Any]:
    """The r leading right singular vectors v: [n, r], or ones that do as well, and w v. w: [m, n], m >= n."""
    if method == "exact" or w.shape[1] <= LONG or w.dtype != "float32":
        return _exact(k, w, r)
    if method == "randomized":
        return _krylov(k, w, r) if 4 * (DEPTH + 1) * (r + EXTRA) <= min(w.shape) else _exact(k, w, r)
    return _proven(k, w, r)


def _exact(k: Any, w: Any, r: int) -> tuple[Any, Any]:
    """By the Gram matrix in float64, or for float64 by a full decomposition where that is not enough."""
    gram = k.gram(w, "float64")
    values, vectors = k.leading(gram, r)
    if w.dtype == "float32":
        v = vectors.astype(w.dtype)
    else:
        whole = k.xp.trace(gram)
        is_enough = whole - k.xp.sum(values) > NARROW * whole
        v = k.choose(is_enough, lambda: vectors, lambda: k.svd(w)[2][:r].T)
    return v, k.matmul(w, v)


def _proven(k: Any, w: Any, r: int) -> tuple[Any, Any]:
    """By products alone or by the Gram matrix in float32, if that is proven good, else exact."""
    known, missing, rest = None, r, w  # what is as good as eigenvectors of w'w: [n, c], and w without it
    found = k.search(w, r, RATIO, ROUNDINGS)
    if found is not None:
        if found.is_proven:
            return found.v, found.image
        if 0 < found.v.shape[1] < r:
            known, missing, rest = found.v, r - found.v.shape[1], found.rest
        del found
    gram = k.gram(rest, w.dtype)
    del rest  # it may be as large as w
    noise = GRAM_ROUNDING * k.xp.sqrt(k.square(gram))
    if _size(missing) <= gram.shape[0] // 3:
        values, v = _krylov_of_gram(k, gram, missing)
        limit = BEYOND * values[missing]
        is_limit = _is_limit(k, gram, v, limit)
    else:
        values, vectors = k.leading(gram, missing + 1)
        v, limit, is_limit = vectors[:, :missing], values[missing], True
    del gram  # before another is made
    if known is not None:
        v = k.xp.concatenate([known, orthonormal(k, known, v)[0]], axis=1)
    image = k.matmul(w, v)
    whole, inside = k.square(w), k.gram(image, "float64")
    outside = whole - k.xp.trace(inside)
    # a difference of norms would lose a small one
    is_clear = outside > TRUSTED * whole
    residual = k.choose(is_clear, lambda: outside, lambda: k.square(w - k.matmul(image, v.T)))
    is_good = is_limit & _is_good(k, w, v, image, inside, residual, limit + noise)
    is_good = is_good | (residual <= ROUNDINGS**2 * whole)
    chosen: tuple[Any, Any] = k.choose(is_good, lambda: (v, image), lambda: _exact(k, w, r))
    return chosen


def _is_limit(k: Any, gram: Any, v: Any, limit: Any) -> Any:
    """Whether no eigenvalue of a Gram matrix outside v: [n, r] is larger: what it lacks has a Cholesky factor."""
    image = k.matmul(gram, v)
    inside = k.matmul(v.T, image)
    # (1 - VV') G (1 - VV') = G - V image' - (image - V inside) V'
    rest = k.matmul(v, image.T) + k.matmul(image - k.matmul(v, inside), v.T) - gram
    return k.is_positive(rest + limit.astype(gram.dtype) * k.xp.eye(gram.shape[0], dtype=gram.dtype))


def _is_good(k: Any, w: Any, v: Any, image: Any, inside: Any, residual: Any, limit: Any) -> Any:
    """Whether w v v' is as good as promised, for v: [n, r] with image = w v, inside = image'image and that squared
    residual, if no eigenvalue of w'w outside v is larger than `limit`."""
    r = v.shape[1]
    rest = k.matmul(w.T, image)
    rest = rest - k.matmul(v, k.matmul(v.T, rest))
    values, vectors = k.xp.linalg.eigh(k.gram(rest, "float64"))
    root = k.xp.sqrt(k.at_least(values, 0.0))[:, None] * vectors.T  # root'root = rest'rest
    corner = limit * k.xp.eye(r, dtype="float64")
    bordered = [k.xp.concatenate(row, axis=1) for row in ([inside, root.T], [root, corner])]
    gain = k.xp.sum(k.eigvalsh(k.xp.concatenate(bordered, axis=0))[r:]) - k.xp.trace(inside)
    return gain <= (1 - RATIO**-2) * residual


def _krylov(k: Any, w: Any, r: int) -> tuple[Any, Any]:
    """The r best vectors of the space of B, G B, ..., G^depth B with G = w'w and B = w'X for a fixed X: [n, r], and
    their images."""
    block = k.qr(k.matmul(w.T, _scattered(k, w.shape[0], r + EXTRA, w.dtype)))[0]
    basis, image = block, k.matmul(w, block)
    images = image
    for _ in range(DEPTH):
        block = orthonormal(k, basis, k.matmul(w.T, image))[0]
        image = k.matmul(w, block)
        basis, images = (k.xp.concatenate(pair, axis=1) for pair in ((basis, block), (images, image)))
    u = k.leading(k.gram(images, "float64"), r)[1].astype(w.dtype)
    return k.matmul(basis, u), k.matmul(images, u)


def _size(r: int) -> int:
    """Vectors of a Krylov space of a Gram matrix from which r come out well enough of any spectrum that was tried."""
    return 8 * r + BLOCK


def _krylov_of_gram(k: Any, gram: Any, r: int) -> tuple[Any, Any]:
    """The r + 1 largest Ritz values of a Krylov space, descending, and the first r vectors: [n, r]."""
    width = min(r + EXTRA, BLOCK)
    block = k.qr(k.matmul(gram, _scattered(k, gram.shape[0], width, gram.dtype)))[0]
    basis, image = block, k.matmul(gram, block)
    images = image
    for _ in range(-(-_size(r) // width) - 1):
        block = orthonormal(k, basis, image)[0]
        image = k.matmul(gram, block)
        basis, images = (k.xp.concatenate(pair, axis=1) for pair in ((basis, block), (images, image)))
    values, u = k.leading(k.matmul(basis.T, images).astype("float64"), r + 1)
    return values, k.matmul(basis, u[:, :r].astype(gram.dtype))


def orthonormal(k: Any, s: Any, x: Any) -> tuple[Any, Any]:
    """A basis of x: [n, b] without its part in s: [n, q], orthonormal to s even where nothing is left, and the
    coefficients of that part: [b, b]."""
    norm = k.xp.max(k.xp.sum(k.xp.square(x), axis=0))
    for _ in range(2):
        x = x - k.matmul(s, k.matmul(s.T, x))
    q, coefficients = k.qr(x)
    is_lost = k.xp.min(k.xp.square(k.xp.diagonal(coefficients))) <= LEFT**2 * norm
    q = k.choose(is_lost, lambda: k.qr(q - k.matmul(s, k.matmul(s.T, q)))[0], lambda: q)
    return q, coefficients


def _scattered(k: Any, m: int, n: int, dtype: Any) -> Any:
    """Fixed numbers in [-1, 1) without a pattern, [m, n]: a hash of their index (the finisher of MurmurHash3)."""
    x = k.xp.arange(1, m * n + 1, dtype="uint32")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> shift)) * k.xp.asarray(factor, "uint32")
    return ((x >> 8).astype(dtype) * 2.0**-23 - 1).reshape(m, n)


def _triplets(k: Any, v: Any, image: Any) -> tuple[Any, Any, Any]:
    """The decomposition of w v v' for orthonormal v: [n, r] and image = w v; u is orthonormal even where s is zero."""
    q, t = k.qr(image)
    u, s, vh = k.svd(t)
    return k.matmul(q, u), s, k.matmul(v, vh.T)


def _cut(triplets: tuple[Any, Any, Any], r: int) -> tuple[Any, Any, Any]:
    u, s, vh = triplets
    return u[:, :r], s[:r], vh[:r]


def _power_of_two(k: Any, w: Any) -> Any:
    """A power of two near the largest magnitude if that is far from 1: to divide by it is exact, and squares do not
    overflow."""
    _, exponent = k.xp.frexp(k.at_least(k.xp.max(w, initial=0.0), -k.xp.min(w, initial=0.0)))
    limit = 126 if w.dtype == "float32" else 1022
    exponent = k.xp.where(k.xp.abs(exponent) <= FITTING, 0, k.xp.clip(exponent, -limit, limit))
    return k.xp.ldexp(k.xp.ones((), w.dtype), exponent)


def _signed(k: Any, u: Any, s: Any, vh: Any) -> tuple[Any, Any, Any]:
    """The stated convention; of complex matrices the phase of the largest entry becomes zero."""
    largest = k.xp.take_along_axis(vh, k.xp.argmax(k.xp.abs(vh), axis=1)[:, None], axis=1)[:, 0]
    size = k.xp.abs(largest)
    phase = k.xp.where(size > 0, largest / k.xp.where(size > 0, size, 1), 1).astype(vh.dtype)
    return u * phase, s, vh * k.xp.conj(phase)[:, None]
