"""Byte geometry: chains of structural operations as byte ranges are what NumPy makes of the arrays."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_jax.compile.grouping import spread
from surgery_jax.compile.pieces import Geometry, Piece, cut
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.ranges import ranges
from surgery_jax.core.specs import Spec
from surgery_jax.graph.node import Graph, Node, Source
from surgery_jax.kit.structure import MAX_RUNS, MIN_RUN_BYTES, Update, View
from surgery_jax.ops.concat import Concat
from surgery_jax.ops.copy import Copy
from surgery_jax.ops.permute import Permute
from surgery_jax.ops.reshape import Reshape

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPES = ("int8", "int16", "float32", "float64")


class World:
    """A graph beside the arrays that its nodes stand for."""

    def __init__(self, name: str) -> None:
        self.graph = Graph()
        self.dtype = BY_NAME[name]
        self.arrays: dict[Node, np.ndarray] = {}
        self.made = 0

    def source(self, shape: tuple[int, ...]) -> Node:
        size = math.prod(shape)
        array = (np.arange(self.made, self.made + size) % 251).astype(self.dtype.numpy).reshape(shape)
        self.made += size
        node = self.graph.read(Source(0, f"s{self.made}", None), Spec(shape, self.dtype), None)
        self.arrays[node] = array
        return node

    def apply(self, op: Any, array: np.ndarray, *operands: Node) -> Node:
        (node,) = self.graph.apply(op, operands, None)
        self.arrays[node] = array
        return node

    def materialize(self, pieces: tuple[Piece, ...] | list[Piece]) -> bytes:
        parts = []
        for piece in pieces:
            raw = np.ascontiguousarray(self.arrays[piece.node]).tobytes()
            assert 0 <= piece.start <= piece.start + piece.nbytes <= len(raw) and piece.nbytes > 0
            parts.append(raw[piece.start : piece.start + piece.nbytes])
        return b"".join(parts)


def draw_view(draw: Any, shape: tuple[int, ...]) -> tuple[View, tuple[Any, ...]]:
    axes, removed, index = [], [], []
    for length in shape:
        if length and draw(st.booleans()):
            at = draw(st.integers(0, length - 1))
            axes.append((at, 1, 1))
            removed.append(True)
            index.append(at)
        else:
            start, step = draw(st.integers(0, length)), draw(st.integers(1, 3))
            stop = draw(st.integers(start, length))
            axes.append((start, step, len(range(start, stop, step))))
            removed.append(False)
            index.append(slice(start, stop, step))
    return View(tuple(axes), tuple(removed)), tuple(index)


def draw_step(draw: Any, world: World, nodes: list[Node]) -> Node:
    node = draw(st.sampled_from(nodes))
    array = world.arrays[node]
    kind = draw(st.sampled_from(["view", "reshape", "permute", "concat", "update", "copy"]))
    if kind == "view":
        view, index = draw_view(draw, array.shape)
        return world.apply(view, np.asarray(array[index]), node)
    if kind == "reshape" and array.size:
        shape = draw(st.sampled_from([(-1,), (1, *array.shape), array.shape[::-1] or (1,)]))
        return world.apply(Reshape(shape), array.reshape(shape), node)
    if kind == "permute" and array.ndim:
        order = tuple(draw(st.permutations(range(array.ndim))))
        return world.apply(Permute(order), array.transpose(order), node)
    if kind == "concat" and array.ndim:
        twins = [other for other in nodes if world.arrays[other].shape == array.shape]
        other, axis = draw(st.sampled_from(twins)), draw(st.integers(-array.ndim, array.ndim - 1))
        return world.apply(Concat(axis), np.concatenate([array, world.arrays[other]], axis), node, other)
    if kind == "update":
        view, index = draw_view(draw, array.shape)
        value = world.source(view.shape)
        changed = array.copy()
        changed[index] = world.arrays[value]
        return world.apply(Update(view), changed, node, value)
    return world.apply(Copy(), array, node)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(DTYPES), st.lists(shapes, min_size=1, max_size=3), st.integers(1, 7))
def test_the_pieces_of_a_chain_of_structural_operations_are_its_bytes(
    data: st.DataObject, name: str, start: list[tuple[int, ...]], length: int
) -> None:
    world = World(name)
    nodes = [world.source(shape) for shape in start]
    for _ in range(length):
        nodes.append(draw_step(data.draw, world, nodes))
    geometry = Geometry()
    for node in nodes:
        array = world.arrays[node]
        assert node.spec == Spec(array.shape, world.dtype)
        pieces = geometry.pieces(node)
        whole = np.ascontiguousarray(array).tobytes()
        assert world.materialize(pieces) == whole
        for left, right in pairwise(pieces):
            assert left.node is not right.node or left.start + left.nbytes != right.start, "neighbours are one piece"
        if whole:
            a, b = sorted([data.draw(st.integers(0, len(whole))) for _ in range(2)])
            assert world.materialize(cut(pieces, a, b - a)) == whole[a:b]


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(st.data(), shapes)
def test_the_runs_of_a_slice_and_of_its_replacement_cover_every_element_once(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    view, index = draw_view(data.draw, shape)
    spec = Spec(shape, BY_NAME["int32"])
    elements = np.arange(spec.size).reshape(shape)
    taken = view.runs(spec)
    if taken is not None:
        covered = [at for operand, start, count in taken for at in range(start, start + count) if operand == 0]
        assert covered == elements[index].reshape(-1).tolist()
        assert all(count > 0 for _, _, count in taken)
    runs = Update(view).runs(spec, Spec(view.shape, spec.dtype))
    if runs is not None:
        sources = [elements.reshape(-1), -1 - np.arange(math.prod(view.shape))]
        found = np.concatenate([np.zeros(0, int), *(sources[o][start : start + count] for o, start, count in runs)])
        elements[index] = sources[1].reshape(view.shape)
        assert found.tolist() == elements.reshape(-1).tolist()


def test_long_contiguous_slices_are_one_run() -> None:
    spec = Spec((1000, 300, 20), BY_NAME["float32"])
    view = View(((100, 1, 800), (0, 1, 300), (0, 1, 20)), (False,) * 3)
    assert view.runs(spec) == [(0, 100 * 6000, 800 * 6000)]
    assert Update(view).runs(spec, Spec((800, 300, 20), spec.dtype)) == [
        (0, 0, 600000), (1, 0, 4800000), (0, 5400000, 600000),
    ]  # fmt: skip


def test_the_number_of_runs_is_bounded_and_short_runs_are_gathered() -> None:
    long = MIN_RUN_BYTES // 4
    for rows in (MAX_RUNS, MAX_RUNS + 1):
        spec = Spec((rows, 2 * long), BY_NAME["float32"])
        runs = View(((0, 1, rows), (0, 1, long)), (False, False)).runs(spec)
        assert (runs is not None) == (rows <= MAX_RUNS)
        assert runs is None or len(runs) == rows
    spec = Spec((1000, 8), BY_NAME["float32"])
    assert View(((0, 1, 1000), (0, 1, 4)), (False, False)).runs(spec) is None
    assert Permute((1, 0)).runs(spec) is None
    assert Permute((1, 0)).runs(Spec((1000, 1), spec.dtype)) == [(0, 0, 1000)]


def test_pieces_of_deep_chains_stay_bounded() -> None:
    world = World("int8")
    node = world.source((2, 2))
    for _ in range(3000):  # deeper than Python recurses
        node = world.apply(Concat(1), np.concatenate([world.arrays[node][:, :1]] * 2, 1), *[
            world.apply(View(((0, 1, 2), (0, 1, 1)), (False, False)), world.arrays[node][:, :1], node)
        ] * 2)  # fmt: skip
    pieces = Geometry().pieces(node)
    assert len(pieces) <= 2 * MAX_RUNS
    assert world.materialize(pieces) == world.arrays[node].tobytes()


def test_a_tensor_packed_below_a_byte_is_never_cut_inside_a_byte() -> None:
    graph = Graph()
    four = Spec((3, 3), BY_NAME["float4_e2m1fn"])
    node = graph.read(Source(0, "w", None), four, None)
    (part,) = graph.apply(View(((1, 1, 1), (0, 1, 3)), (True, False)), (node,), None)
    assert [(piece.node, piece.start) for piece in Geometry().pieces(part)] == [(part, 0)]


@given(st.data())
def test_blocks_that_are_spread_over_parts_of_files_land_where_they_belong(data: st.DataObject) -> None:
    blocks = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    step, count = sum(blocks), data.draw(st.integers(1, 6))
    total, begin = step * count, data.draw(st.integers(0, 3))
    cuts = sorted(data.draw(st.sets(st.integers(1, total + 3), max_size=5)))
    rest = tuple((cut, number % 3, 1000 * (number + 1)) for number, cut in enumerate(cuts))
    place = {
        begin + byte: (file, offset)
        for byte in range(total)
        for file, offset, _ in ranges(7, 50, rest, begin + byte, 1)
    }
    at = begin
    for block in blocks:
        dests = spread(7, 50, rest, at, block, step, count)
        found = {}
        for start in range(0, block * count, 3):  # as tiles ask for them
            for dest in dests:
                for byte, offset, nbytes in dest.parts(start, min(3, block * count - start)):
                    assert byte not in found and nbytes > 0
                    found.update({byte + i: (dest.file, offset + i) for i in range(nbytes)})
        assert found == {
            number * block + i: place[at + number * step + i] for number in range(count) for i in range(block)
        }
        at += block


def test_a_layer_of_a_stack_is_read_by_itself_where_all_of_it_would_be_read_many_times() -> None:
    stacked = Spec((14336, 32, 64), BY_NAME["bfloat16"])
    layer = View(((0, 1, 14336), (3, 1, 1), (0, 1, 64)), (False, True, False))
    assert layer.runs(stacked) is None  # runs of 128 bytes
    stacked = Spec((14336, 32, 4096), BY_NAME["bfloat16"])
    layer = View(((0, 1, 14336), (3, 1, 1), (0, 1, 4096)), (False, True, False))
    runs = layer.runs(stacked)
    assert runs is not None and runs[:2] == [(0, 3 * 4096, 4096), (0, 35 * 4096, 4096)] and len(runs) == 14336
