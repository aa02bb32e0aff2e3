"""What operations compute with on several devices at once: matrices cut into blocks of rows, added in a fixed order.

A function is traced for all devices together: arrays have their global shapes, and a long axis (`compile.sharding`) is
spread over the devices. What rounds in an order of its own, sums and products, is computed here under `shard_map`:
every device goes over its blocks one after the other, so that a block is the same small product whatever the number of
devices. Elementwise operations have no order, and are left to the compiler.

Sums over a long axis: the blocks of a strand are added one after the other, strands in pairs, pairs of pairs, and so
on. A device holds whole strands and adds its own; then devices exchange sums with their neighbours, with theirs in
turn, and so on, which is the upper part of the same tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .cuts import STRANDS
from .kernels import DeviceKernel

__all__ = ["AXIS", "MeshKernel"]

AXIS = "devices"


class MeshKernel(DeviceKernel):
    """`rows` gives the rows of a block for every length of a cut axis; `mesh` has one axis, of a power of two
    devices."""

    def __init__(self, zeros: tuple[Any, Any], mesh: Any, rows: Mapping[int, int]) -> None:
        super().__init__(zeros)
        self.mesh, self.rows = mesh, rows
        self.count = mesh.size

    # -- products -----------------------------------------------------------------------------------------------

    def matmul(self, a: Any, b: Any) -> Any:
        """a: [..., m, k] or [k], b: [..., k, n] or [k] -> [..., m, n], as numpy.matmul."""
        if b.ndim == 1:
            return self.matmul(a, b[:, None])[..., 0]
        if a.ndim == 1:
            return self.matmul(a[None], b)[..., 0, :]
        if a.ndim == b.ndim == 2:
            return self._product(a, b)
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        numbers = [
            np.broadcast_to(np.arange(np.prod(x.shape[:-2], dtype=int)).reshape(x.shape[:-2]), batch).reshape(-1)
            for x in (a, b)
        ]
        left, right = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
        made = self.jax.lax.map(lambda pair: self._product(left[pair[0]], right[pair[1]]), tuple(numbers))
        return made.reshape(*batch, *made.shape[1:])

    def _product(self, a: Any, b: Any) -> Any:
        (m, k), n = a.shape, b.shape[1]
        if k in self.rows:
            return self._inner(a.T, b)
        if m in self.rows and n in self.rows:
            return self._on_each(self._of_blocks, (a, b), (0, 1), 0, self.rows[m], self.rows[n])
        if m in self.rows:
            return self._on_each(self._of_rows, (a, b), (0, None), 0, self.rows[m])
        if n in self.rows:
            return self._on_each(self._of_columns, (a, b), (None, 1), 1, self.rows[n])
        return self._alone(super().matmul, a, b)

    def _of_rows(self, a: Any, b: Any, rows: int) -> Any:
        """The product of the rows that a device has."""
        made = self.jax.lax.map(lambda block: super(MeshKernel, self).matmul(block, b), a.reshape(-1, rows, a.shape[1]))
        return made.reshape(a.shape[0], b.shape[1])

    def _of_columns(self, a: Any, b: Any, columns: int) -> Any:
        def column(number: Any) -> Any:
            return super(MeshKernel, self).matmul(a, self._part(b, number * columns, columns, 1))

        made = self.jax.lax.map(column, np.arange(b.shape[1] // columns))
        return self.xp.moveaxis(made, 0, 1).reshape(a.shape[0], b.shape[1])

    def _of_blocks(self, a: Any, b: Any, rows: int, columns: int) -> Any:
        """Rows of a: [m, k] by all columns of b: [k, n], of which each device holds some and gives a block at a time to
        the others."""
        lax = self.jax.lax

        def block(number: Any) -> Any:
            given = lax.all_gather(self._part(b, number * columns, columns, 1), AXIS)
            return lax.map(lambda part: self._of_rows(a, part, rows), given)

        made = lax.map(block, np.arange(b.shape[1] // columns))  # [blocks, devices, m, columns]
        return made.transpose(2, 1, 0, 3).reshape(a.shape[0], -1)

    def _inner(self, x: Any, y: Any) -> Any:
        """x'y for x: [m, n], y: [m, b] with long m."""

        def partial(x: Any, y: Any) -> Any:
            return super(MeshKernel, self).matmul(x.T, y)

        return self._sum(partial, x, y)

    def gram(self, x: Any, dtype: Any) -> Any:
        """x'x: [n, n] for x: [m, n], converted to a dtype and multiplied in it, a block at a time."""

        def partial(part: Any) -> Any:
            wide = part.astype(dtype)
            return super(MeshKernel, self).matmul(wide.T, wide)

        return self._sum(partial, x) if x.shape[0] in self.rows else self._alone(partial, x)

    def square(self, x: Any) -> Any:
        """The sum of the squares of x: [m, n] in float64."""
        if x.shape[0] not in self.rows and x.shape[-1] in self.rows:
            x = x.T
        square = super().square
        return self._sum(square, x) if x.shape[0] in self.rows else self._alone(square, x)

    # -- decompositions -----------------------------------------------------------------------------------------

    def qr(self, x: Any) -> Any:
        """Of a long matrix by strands: each of them, then the triangles that are left of them, by every device."""
        m, n = x.shape
        if m not in self.rows or m // STRANDS < n:
            return self._alone(super().qr, x)
        one, lax = super().qr, self.jax.lax

        def strands(x: Any) -> Any:
            q, r = lax.map(one, x.reshape(-1, m // STRANDS, n))
            top, r = one(lax.all_gather(r, AXIS).reshape(-1, n))
            own = self._part(top, lax.axis_index(AXIS) * q.shape[0] * n, q.shape[0] * n, 0).reshape(-1, n, n)
            made = lax.map(lambda pair: super(MeshKernel, self).matmul(*pair), (q, own))
            return made.reshape(x.shape), r

        return self._spread(strands, (x,), (0,), (0, None))

    def svd(self, x: Any) -> Any:
        """Of a long matrix by way of its triangle."""
        m, n = x.shape
        if m in self.rows and m // STRANDS >= n:
            q, r = self.qr(x)
            u, s, vt = self._alone(super().svd, r)
            return self.matmul(q, u), s, vt
        if n in self.rows and n // STRANDS >= m:
            u, s, vt = self.svd(x.T)
            return vt.T, s, u.T
        return self._alone(super().svd, x)

    # -- how devices share --------------------------------------------------------------------------------------

    def _spread(self, function: Any, arrays: tuple[Any, ...], axes: tuple[int | None, ...], made: Any) -> Any:
        """A function of what each device has of arrays that are cut along these axes; `made` says so of the results."""
        place: Any = self.jax.sharding.PartitionSpec

        def spec(axis: int | None) -> Any:
            return place() if axis is None else place(*(None,) * axis, AXIS)

        outs = tuple(map(spec, made)) if isinstance(made, tuple) else spec(made)
        return self.jax.shard_map(
            function, mesh=self.mesh, in_specs=tuple(map(spec, axes)), out_specs=outs, check_vma=False
        )(*arrays)

    def _on_each(self, function: Any, arrays: tuple[Any, ...], axes: Any, made: int, *sizes: int) -> Any:
        return self._spread(lambda *parts: function(*parts, *sizes), arrays, axes, made)

    def _alone(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """Computed by every device for itself: the compiler must not cut it."""
        made = self.jax.eval_shape(function, *arrays)
        whole = (None,) * len(made) if isinstance(made, tuple) else None
        return self._spread(lambda *x: _plain(function(*x)), arrays, (None,) * len(arrays), whole)

    def _part(self, x: Any, start: Any, size: int, axis: int) -> Any:
        return self.jax.lax.dynamic_slice_in_dim(x, start, size, axis)

    def _sum(self, partial: Callable[..., Any], *arrays: Any) -> Any:
        """What a function makes of the blocks of rows of arrays: [m, ...], added."""
        lax, rows = self.jax.lax, self.rows[arrays[0].shape[0]]
        blocks = arrays[0].shape[0] // rows // STRANDS

        def total(*parts: Any) -> Any:
            def block(number: Any) -> Any:
                return partial(*(self._part(part, number * rows, rows, 0) for part in parts))

            shape = self.jax.eval_shape(block, 0)
            zeros = self.xp.zeros(shape.shape, shape.dtype)

            def strands(first: Any, count: int) -> Any:
                """The sum of so many strands: that of the first half and that of the second; of one, block by block."""
                if count == 1:
                    return lax.fori_loop(0, blocks, lambda i, acc: acc + block(first * blocks + i), zeros)
                half = count // 2
                return lax.fori_loop(0, 2, lambda i, acc: acc + strands(first + i * half, half), zeros)

            found = strands(0, STRANDS // self.count)
            step = 1
            while step < self.count:
                found = found + lax.ppermute(found, AXIS, [(i, i ^ step) for i in range(self.count)])
                step *= 2
            return found

        return self._spread(total, arrays, (0,) * len(arrays), None)


def _plain(made: Any) -> Any:
    return tuple(made) if isinstance(made, tuple) else made
