"""The order and the size of tasks, without a byte of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Bench

from surgery_jax.compile.program import Component, Group, Move, Program
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.specs import Spec
from surgery_jax.execute.schedule import MOVE_BYTES, SMALLEST_TILE, MoveTask, Tile, plan_tasks, tile_length


def component(size: int, numbers: tuple[float, ...]) -> Component:
    spec = Spec((size,), BY_NAME["float32"])
    return Component((), ((),), (spec,), [], [], numbers, (), ())


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 5000), st.sampled_from([1.0, 2.0])), min_size=1, max_size=20))
def test_tiles_cover_every_element_once_and_mix_no_numbers(drawn: list[tuple[int, float]]) -> None:
    group = Group(True, False, [component(size, (number,)) for size, number in drawn])
    tasks = plan_tasks(Program(None, [], [group], []), 1 << 12)  # type: ignore[arg-type]
    covered: dict[int, list[int]] = {id(entry): [] for entry in group.components}
    for tile in tasks:
        assert isinstance(tile, Tile)
        assert sum(count for _, _, count in tile.segments) <= tile.length
        assert len({entry.numbers for entry, _, _ in tile.segments}) == 1
        for entry, start, count in tile.segments:
            covered[id(entry)] += range(start, start + count)
    assert all(sorted(covered[id(entry)]) == list(range(entry.size)) for entry in group.components)
    assert len({tile.length for tile in tasks}) == 1  # type: ignore[union-attr]


def test_tiles_shrink_with_the_budget_and_with_the_work() -> None:
    big = Group(True, False, [component(10**7, ())])
    assert tile_length(big, 1 << 40) > tile_length(big, 1 << 16) >= SMALLEST_TILE
    assert tile_length(Group(True, False, [component(3, ())]), 1 << 40) == SMALLEST_TILE


def test_tasks_follow_the_bytes_of_the_files() -> None:
    moves = [Move("b", 0, 0, 0, 5), Move("a", 700, 0, 5, 5), Move("a", 3, 0, 10, 2 * MOVE_BYTES + 1)]
    tasks = plan_tasks(Program(None, moves, [], []), 1 << 20)  # type: ignore[arg-type]
    places = [(task.move.path, task.move.source) for task in tasks if isinstance(task, MoveTask)]
    assert places == sorted(places) and len(places) == 5
    assert sum(task.move.nbytes for task in tasks if isinstance(task, MoveTask)) == 2 * MOVE_BYTES + 11


def test_adjacent_moves_are_one(tmp_path: Path) -> None:
    tensors = {f"h.{n}": np.ones(100, np.float32) for n in range(50)}
    program = Bench(tmp_path, m=tensors).compile([{"move": {"from": r"h\.(\d+)", "to": r"g.\1"}}]).program
    assert sum(move.nbytes for move in program.moves) == 20000
    assert len(program.moves) <= 50
