"""Block Lanczos in NumPy that ends as soon as its result is proven good: the leading right singular vectors of long
matrices.

Of W: [m, n] it looks at G = W'W through products alone. A *phase* has V: [n, c], orthonormal vectors found so far, and
builds the Krylov space of D, which is G outside V, from D's factor times a random block. It ends in one of three ways:
what was found is proven good; the vectors that have converged become the V of another phase; or there is no hope that
products prove it sooner than the Gram matrix does.

The proof needs a number d that no eigenvalue of D exceeds. D = F'F, F being W without V, and the random block O: [m, b]
begins the space as F'O = S_1 R. Let S: [n, k b] be the Krylov basis, T = S'DS, and D S = S T + X B E', with X the next
block and E' the last b rows of the identity. An eigenvector u of D with eigenvalue t has f = S'u = (t - T)^-1 E B'g
with g = X'u, where |f|^2 + |g|^2 <= 1; and F u = sqrt(t) p with |p| = 1, so that O'p = R'E_1'f / sqrt(t). Above the
Ritz values the largest |O'p|^2 that this allows falls steeply with t. But O'p is a vector of b independent normal
numbers, since the block was drawn without regard to p; that its squared length is below a quantile q of its
distribution is as good as impossible. So d is the t down to which the largest one is below q. With d, Lehmann's bound
says how large the r leading eigenvalues of G can be (see `numerics.lowrank`). Where r values stand out, the energy of
all that is outside their Ritz vectors does for d. How far the first Ritz value can lie below the first eigenvalue was
bounded for random starts by Kuczynski and Wozniakowski, "Estimating the largest eigenvalue by the power and Lanczos
algorithms with a random start", 1992, for the worst spectrum; here the space that was built is asked.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .lowrank import orthonormal

__all__ = ["quantile", "search"]

Array = npt.NDArray[Any]

FAILURE = 1e-9  # probability that d of one phase is too small
PHASES = 6
NARROW, WIDE = 16, 32  # columns of a block: a product with fewer than 16 takes as long
FEW, MANY = 16, 32  # ranks up to which blocks are narrow; from which on flat spectra are left to the Gram matrix
SPENT = 6  # products with n / 6 vectors take as long as what proves it for certain
TRUSTED = 1e-2  # of the squared norm: a remainder above it is known well enough from products with the matrix
UNTRUSTED = 1e-3  # of it: what hides the remainder, and is taken out to see it
MARGIN = 0.8  # of what may be lost: rounding loses something too
REACHED = 1.1  # of the first Ritz value: where d comes to lie in a few products
LADDER = (64.0, 8.0, 2.0, 1.7, 1.4, 1.2, 1.1)  # where it is asked how large an eigenvalue can be
ROWS = 256  # of the matrix that are multiplied at once, so that they are in a cache for the second product


class _Space:
    """What has been multiplied: s: [n, size] orthonormal, image = W s in float64, y = G s, and t = s'G s."""

    def __init__(self, m: int, n: int, most: int, dtype: Any) -> None:
        self.size = 0
        self._s, self._y = (np.empty((n, most), dtype, order="F") for _ in range(2))
        self._image = np.empty((m, most), np.float64, order="F")
        self._t = np.zeros((most, most))

    @property
    def s(self) -> Array:
        return self._s[:, : self.size]

    @property
    def y(self) -> Array:
        return self._y[:, : self.size]

    @property
    def image(self) -> Array:
        return self._image[:, : self.size]

    @property
    def t(self) -> Array:
        return self._t[: self.size, : self.size]

    def grow(self, x: Array, image: Array, y: Array) -> None:
        """Add columns that are orthonormal to those that there are."""
        old, new = slice(self.size), slice(self.size, self.size + x.shape[1])
        self._s[:, new], self._image[:, new], self._y[:, new] = x, image, y
        self.size = new.stop
        self._t[: self.size, new] = self.image.T @ self._image[:, new]
        self._t[new, old] = self._t[old, new].T

    def rotate(self, u: Array, values: Array) -> None:
        """Keep the Ritz vectors of these coefficients alone."""
        narrow = u.astype(self._s.dtype)
        s, y, image = self.s @ narrow, self.y @ narrow, self.image @ u
        self.size = len(values)
        self._s[:, : self.size], self._y[:, : self.size], self._image[:, : self.size] = s, y, image
        self._t[: self.size, : self.size] = np.diag(values)


class Found(NamedTuple):
    """Orthonormal v: [n, r] and image = w v: [m, r] if `is_proven`; else fewer, or none, that are as good as
    eigenvectors of w'w. `rest` is w, or w without those."""

    v: Array
    image: Array
    rest: Array
    is_proven: bool


def search(k: Any, w: Array, r: int, ratio: float, rounding: float) -> Found:
    """Vectors v so that w v v' leaves of w: float32[m, n], m >= n, at most `ratio` of the least residual of rank r in
    Frobenius norm, or `rounding` of the norm of w; or what was found before it became plain that products alone will
    not prove that soon. The elements of w must be finite, and neither they nor their squares so small or large that
    float32 ends. `k` computes in NumPy.
    """
    m, n = w.shape
    width = NARROW if r <= FEW else WIDE
    space = _Space(m, n, n // SPENT, w.dtype)
    random = np.random.RandomState(int(w.view(np.uint32).sum(dtype=np.uint32)))  # a stream that never changes
    whole = _square(w)
    rest, energy, removed = w, whole, 0  # what products are taken with, its squared norm, vectors that it is without
    spent = 0
    for _ in range(PHASES):
        kept = space.size
        values = np.diag(space.t).copy()
        coupling = _root(_left(space, values, np.eye(kept)))
        x, start = orthonormal(k, space.s, rest.T @ random.standard_normal((m, width)).astype(w.dtype))
        while (spent := spent + width) * SPENT <= n:
            image, y = _both(rest, x)
            if removed:  # products with what is left lack the part in the vectors that were taken out
                y += space.s[:, :removed] @ (space.image[:, :removed].T @ image).astype(y.dtype)
            space.grow(x, image, y)
            x, step = orthonormal(k, space.s, y)
            if space.size < r + NARROW // 2:
                continue
            ritz, u = _descending(space.t)
            outside = max(energy - float(np.trace(space.t[removed:, removed:])), 0.0)
            residual = outside + float(np.maximum(ritz[r:], 0.0).sum())
            if removed and residual <= rounding**2 * whole:
                return _proven(space, u, r, rest)
            is_trusted = outside > TRUSTED * energy
            slack = MARGIN * (1 - ratio**-2) * max(residual, TRUSTED * energy)
            captured = float(ritz[:r].sum())
            if is_trusted:
                if residual < ritz[r - 1]:  # they stand out
                    most = _most(ritz[:r], _root(_left(space, ritz[:r], u[:, :r])), residual, r)
                    if most - captured <= slack:
                        return _proven(space, u, r, rest)
                inner = (ritz, u) if kept == 0 else _descending(space.t[kept:, kept:])
                if _most(values, coupling, float(inner[0][0]), r) - captured <= slack:  # d is no less
                    limit = min(_limit(*inner, start, step, quantile(width)), outside + float(inner[0].sum()))
                    if _most(values, coupling, limit, r) - captured <= slack:
                        return _proven(space, u, r, rest)
                if np.maximum(np.pad(values, (0, r))[:r], inner[0][0]).sum() - captured <= slack * 0.7:
                    continue  # d comes down to it sooner or later
                if r - kept >= MANY and r + width <= space.size < r + 2 * width:
                    if ritz[r - 1] * (n - space.size) < r / 8 * outside:
                        return _unproven(space, removed, rest)
                count = _converged(space, ritz, u, r, slack / 4, slack / 2)
            else:  # whatever hides the remainder, if it is known so well that it will not do so again
                count = _converged(space, ritz, u, r, slack / 1000, math.inf)
                count = min(count, int((ritz > UNTRUSTED * energy).sum()))
            if count > kept:
                break
        else:
            break
        space.rotate(u[:, :count], ritz[:count])
        if removed or not is_trusted:
            rest, removed = _without(w, space), count
            energy = _square(rest)
    return _unproven(space, removed, rest)


def quantile(width: int) -> float:
    """What the squared length of so many independent normal numbers does not fall below, but for `FAILURE`.

    The distribution function of chi-squared at q is at most (q / 2)**(b / 2) / gamma(b / 2 + 1).
    """
    return float(2 * (FAILURE * math.gamma(width / 2 + 1)) ** (2 / width))


def _proven(space: _Space, u: Array, r: int, rest: Array) -> Found:
    space.rotate(u[:, :r], np.zeros(r))
    return Found(space.s, space.image.astype(space.s.dtype), rest, True)


def _unproven(space: _Space, removed: int, rest: Array) -> Found:
    """The vectors that the rest is without."""
    space.size = removed
    return Found(space.s, space.image.astype(space.s.dtype), rest, False)


def _descending(t: Array) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh(t)
    return values[::-1], vectors[:, ::-1]


def _both(w: Array, x: Array) -> tuple[Array, Array]:
    """w x and w'(w x): the rows are read once."""
    image = np.empty((w.shape[0], x.shape[1]), w.dtype)
    y = np.zeros_like(x)
    for start in range(0, w.shape[0], ROWS):
        rows = w[start : start + ROWS]
        part = np.matmul(rows, x, out=image[start : start + ROWS])
        y += rows.T @ part
    return image, y


def _square(w: Array) -> float:
    return sum(float(np.vdot(w[i : i + ROWS], w[i : i + ROWS])) for i in range(0, w.shape[0], ROWS))


def _without(w: Array, space: _Space) -> Array:
    """w less what the vectors explain, as it is: a difference of norms would lose a small one."""
    rest = np.empty_like(w)
    image, across = space.image.astype(w.dtype), space.s.T
    for start in range(0, w.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        np.subtract(w[rows], image[rows] @ across, out=rest[rows])
    return rest


def _left(space: _Space, ritz: Array, u: Array) -> Array:
    """What G v - v theta is for Ritz vectors of these values and coefficients: [n, count], in float64."""
    dtype = space.y.dtype
    left: Array = space.y @ u.astype(dtype) - space.s @ (u * ritz).astype(dtype)
    return left.astype(np.float64)


def _root(left: Array) -> Array:
    """A square root of Z'Z: [count, count] for Z: [n, count]."""
    squares, vectors = np.linalg.eigh(left.T @ left)
    root: Array = np.sqrt(np.maximum(squares, 0.0))[:, None] * vectors.T
    return root


def _limit(values: Array, vectors: Array, start: Array, step: Array, least: float) -> float:
    """The number d of the module's first lines."""
    width = len(start)
    first, last = start.T.astype(np.float64) @ vectors[:width], vectors[-width:].T @ step.T

    def largest(limit: float) -> float:
        f = last / (limit - values)[:, None]
        inside = np.linalg.cholesky(f.T @ f + np.eye(width))
        return float(np.linalg.norm(np.linalg.solve(inside, (first @ f).T), 2) ** 2) / limit

    low, high = 1.0, math.inf  # times the first Ritz value
    for rung in LADDER:  # from above, since nothing says that it falls all the way
        if largest(rung * values[0]) >= least:
            low = rung
            break
        high = rung
    for _ in range(8 if math.isfinite(high) else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if largest(middle * values[0]) >= least else (low, middle)
    return high * float(values[0])


def _most(values: Array, coupling: Array, limit: float, r: int) -> float:
    """The most that the r leading eigenvalues of G sum up to, by Lehmann's bound: those inside are `values`, none
    outside exceeds the limit."""
    count = len(values)
    if not math.isfinite(limit):
        return math.inf
    bordered = np.block([[np.diag(values), coupling.T], [coupling, limit * np.eye(count)]])
    found = np.concatenate([np.linalg.eigvalsh(bordered), np.full(r, limit)])
    return float(np.sort(found)[::-1][:r].sum())


def _converged(space: _Space, ritz: Array, u: Array, r: int, coupled: float, lost: float) -> int:
    """How many Ritz vectors, the first ones, are so close to eigenvectors that no more than `coupled` can hide behind
    them, and that d, which becomes a little more than the next Ritz value, leaves no more than `lost` unproven."""
    squares = np.square(_left(space, ritz, u)).sum(axis=0)
    is_before = np.arange(len(ritz))[:, None] < np.arange(len(ritz))  # [vector, how many there are]
    gaps = ritz[:, None] - ritz
    hidden = np.where(is_before, squares[:, None] / np.where(gaps > 0, gaps, np.inf), 0.0).sum(axis=0)
    over = REACHED * np.maximum(ritz, 0.0) - ritz[:r, None]
    above = np.where(is_before[:r], np.maximum(over, 0.0), over).sum(axis=0)
    is_apart = np.append(False, ritz[:-1] > ritz[1:])
    return int(np.max(np.flatnonzero(is_apart & (hidden <= coupled) & (above <= lost)), initial=0))
