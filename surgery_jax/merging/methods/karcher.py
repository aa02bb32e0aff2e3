"""`karcher`: the mean on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kit.fields import integer, number, word
from ...kit.kernel import Array, Kernel
from ...kit.state import Value, Versions
from ...numerics.elementary import angle_of, cosine, sine
from ..method import Method
from ..spans import Products, Span, SpanFactors, length
from ..weighted import total


@dataclass(frozen=True)
class KarcherFactors(SpanFactors):
    """To the mean direction of some vectors, with the mean of their lengths."""

    max_iter: int = 10
    tol: float = word()

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        xp, every = k.xp, range(products.count)

        def added(x: Array) -> Array:
            return total(k, [x[i] for i in every])

        tol = xp.asarray(self.tol, "float64")
        norms = xp.stack([length(k, products(i, i)) for i in every])
        takes_part = norms > tol
        safe = xp.where(takes_part, norms, 1.0)
        # of every unit vector its products with all of them
        near = [xp.stack([products(i, j) for j in every]) / k.mul(safe[i], safe) for i in every]
        there = xp.where(takes_part, 1.0, 0.0)
        alpha = 1.0 / k.at_least(added(there), 1.0)

        def with_units(c: Array) -> Array:
            """The products of a sum of unit vectors with each of them."""
            return total(k, [k.mul(c[i], near[i]) for i in every])

        def norm_of(c: Array) -> Array:
            return length(k, added(k.mul(c, with_units(c))))

        def divided(c: Array, by: Array) -> Array:
            return c / xp.where(by > 0, by, 1.0)

        def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
            c, is_done = state
            inner = k.at_most(k.at_least(with_units(c), -1.0), 1.0)
            angles = angle_of(k, inner)
            is_turned = angles >= tol
            moves = k.mul(k.mul(alpha, there), angles) / xp.where(is_turned, sine(k, angles), 1.0)
            moves = xp.where(is_turned, moves, 0.0)
            tangent = moves - k.mul(added(k.mul(moves, inner)), c)
            size = norm_of(tangent)
            ends = is_done | (size < tol)
            ahead, aside = cosine(k, size), sine(k, size) / xp.where(size > 0, size, 1.0)
            new = k.mul(ahead, c) + k.mul(aside, tangent)
            return xp.where(ends, c, divided(new, norm_of(new))), ends

        mean = k.mul(alpha, there)
        size = norm_of(mean)
        first = xp.where((xp.cumsum(there) == 1.0) & takes_part, 1.0, 0.0)  # the first unit vector that there is
        start = xp.where(size >= tol, divided(mean, size), first)
        c, _ = k.settled(self.max_iter, step, (start, xp.zeros((), bool)))
        whole = added(norms) / float(products.count)
        made = k.mul(whole, c) / safe
        return [made[i] for i in every]


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
        factors = versions.compute(KarcherFactors(len(models), False, self.max_iter, self.tol), *models)
        return versions.compute(Span(False), *models, factors)
