"""`karcher`: the mean on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...kit.fields import integer, number, word
from ...kit.kernel import Array, Kernel
from ...kit.state import Value, Versions
from ...numerics.angles import angle_of, cosine, sine
from ..method import Method
from ..spans import Gram, Products, Span, length


@dataclass(frozen=True)
class KarcherSpan(Span):
    """The mean direction of some vectors, with the mean of their lengths."""

    max_iter: int = 10
    tol: float = word()

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        xp, every = k.xp, range(products.count)
        tol = xp.asarray(self.tol, "float64")
        norms = [length(k, products(i, i)) for i in every]
        takes_part = [norm > tol for norm in norms]
        safe = [xp.where(is_there, norm, 1.0) for is_there, norm in zip(takes_part, norms, strict=True)]
        near = [[products(i, j) / k.mul(safe[i], safe[j]) for j in every] for i in every]
        there = [xp.where(mask, 1.0, 0.0) for mask in takes_part]
        alpha = 1.0 / k.at_least(sum(there[1:], there[0]), 1.0)

        def with_unit(c: Sequence[Array], j: int) -> Array:
            """The product of a sum of unit vectors with unit vector j."""
            parts = [k.mul(c[i], near[i][j]) for i in every]
            return sum(parts[1:], parts[0])

        def norm_of(c: Sequence[Array]) -> Array:
            parts = [k.mul(c[j], with_unit(c, j)) for j in every]
            return length(k, sum(parts[1:], parts[0]))

        def divided(c: Sequence[Array], by: Array) -> list[Array]:
            return [part / xp.where(by > 0, by, 1.0) for part in c]

        def step(_: Any, state: Any) -> Any:
            c, is_done = state
            inner = [k.at_most(k.at_least(with_unit(c, j), -1.0), 1.0) for j in every]
            angles = [angle_of(k, x) for x in inner]
            moves = [
                xp.where(
                    angle >= tol, k.mul(k.mul(alpha, mask), angle) / xp.where(angle >= tol, sine(k, angle), 1.0), 0.0
                )
                for angle, mask in zip(angles, there, strict=True)
            ]
            back = [k.mul(move, x) for move, x in zip(moves, inner, strict=True)]
            total = sum(back[1:], back[0])
            tangent = [move - k.mul(total, part) for move, part in zip(moves, c, strict=True)]
            size = norm_of(tangent)
            ends = is_done | (size < tol)
            ahead, aside = cosine(k, size), sine(k, size) / xp.where(size > 0, size, 1.0)
            new = [k.mul(ahead, part) + k.mul(aside, turn) for part, turn in zip(c, tangent, strict=True)]
            new = divided(new, norm_of(new))
            return tuple(xp.where(ends, old, part) for old, part in zip(c, new, strict=True)), ends

        mean = [k.mul(alpha, mask) for mask in there]
        size = norm_of(mean)
        first, seen = [], xp.zeros((), "float64")  # the first unit vector that there is
        for mask in there:
            first.append(xp.where(seen > 0, 0.0, mask))
            seen = seen + mask
        start = [xp.where(size >= tol, a, b) for a, b in zip(divided(mean, size), first, strict=True)]
        c, _ = k.repeat(self.max_iter, step, (tuple(start), xp.zeros((), bool)))
        whole = sum(norms[1:], norms[0]) / float(products.count)
        return [k.mul(whole, part) / norm for part, norm in zip(c, safe, strict=True)]


@dataclass(frozen=True)
class Karcher(Method):
    """The Karcher mean of the directions of all models, with the mean of their lengths: u is turned to the mean of the
    directions as seen from u, at most `max_iter` times, until less than `tol` is missing.

    Any shape, taken as one vector. Inner products in one pass in float64; as u stays in the span of the models, all
    that follows is arithmetic on these few numbers; the sum is in float64 too, rounded once. Models whose length is at
    most `tol` have no direction. Karcher, "Riemannian center of mass and mollifier smoothing", 1977.
    """

    name = "karcher"
    base = "none"

    max_iter: int = integer("most steps", 10)
    tol: float = number("angle below which it is done", 1e-5)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        if len(models) == 1:
            return models[0]
        products = versions.compute(Gram(len(models), False), *models)
        return versions.compute(KarcherSpan(False, self.max_iter, self.tol), *models, products)
