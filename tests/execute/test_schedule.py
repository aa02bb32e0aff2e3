"""The order and the size of tasks, without a byte of data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Bench, write_checkpoint

from surgery_jax import Options, plan_of
from surgery_jax.compile.blueprint import SMALLEST_TILE, blueprint
from surgery_jax.compile.program import ByteMove, Group, Program
from surgery_jax.execute.reservations import Limits
from surgery_jax.execute.schedule import Schedule, schedule
from surgery_jax.execute.tasks import MOVE_BYTES, DecodeTask, MoveTask, Tile, plan_tasks
from surgery_jax.graph.node import Graph
from surgery_jax.session.compiled import StorageOutside, compile_with, joined


def group_of(root: Path, sizes: list[tuple[int, float]]) -> Group:
    """The group that scaling tensors of some sizes by some numbers makes."""
    tensors = {f"x{at}": np.ones(size, np.float32) for at, (size, _) in enumerate(sizes)}
    steps = [{"scale_": {"target": f"x{at}", "by": number}} for at, (_, number) in enumerate(sizes)]
    (group,) = Bench(root, m=tensors).compile(steps).program.groups
    assert group.flat
    return group


def scheduled(group: Group, tile: int) -> Schedule:
    """The work of one group with tiles of at most so many bytes."""
    one_output: Any = SimpleNamespace(saves=(None,))
    return schedule(Program(one_output, [], [group], []), Limits(2 * tile, 1))


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 5000), st.sampled_from([1.0, 2.0])), min_size=1, max_size=20))
def test_tiles_cover_every_element_once_and_mix_no_numbers(drawn: list[tuple[int, float]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        group = group_of(Path(root), drawn)
    work = scheduled(group, 1 << 12)
    (plan,) = work.blueprints
    covered: dict[int, list[int]] = {id(entry): [] for entry in group.components}
    for tile in work.tasks:
        assert isinstance(tile, Tile)
        assert sum(count for _, _, count in tile.segments) <= plan.rows
        assert len({entry.numbers for entry, _, _ in tile.segments}) == 1
        for entry, start, count in tile.segments:
            covered[id(entry)] += range(start, start + count)
    assert sorted(map(len, covered.values())) == sorted(size for size, _ in drawn)
    assert all(sorted(elements) == list(range(len(elements))) for elements in covered.values())


@settings(derandomize=True, database=None, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=9), st.integers(1, 20))
def test_tiles_that_processes_share_cover_every_element_once(sizes: list[int], count: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        group = group_of(Path(root), [(size, 2.0) for size in sizes])
    work = scheduled(group, 1 << 16)
    (plan,) = work.blueprints
    found = work.shares(count)
    covered: dict[int, list[int]] = {id(entry): [] for entry in group.components}
    for task in (entry.task for share in found for entry in share):
        assert isinstance(task, Tile)
        assert 0 < sum(number for _, _, number in task.segments) <= plan.rows
        for entry, start, number in task.segments:
            covered[id(entry)] += range(start, start + number)
    assert sorted(map(len, covered.values())) == sorted(sizes)
    assert all(elements == list(range(len(elements))) for elements in covered.values())
    loads = [sum(entry.weight for entry in share) for share in found]
    assert sum(loads) == 8 * sum(sizes)
    assert max(loads) <= (1 + 2 / 64) * sum(loads) / count + 16


def test_tiles_shrink_with_the_budget_and_with_the_work(tmp_path: Path) -> None:
    big = group_of(tmp_path / "big", [(10**6, 2)])
    assert blueprint(big, 1 << 40).rows > blueprint(big, 1 << 16).rows >= SMALLEST_TILE
    assert blueprint(group_of(tmp_path / "small", [(3, 2)]), 1 << 40).rows == SMALLEST_TILE


def test_tasks_follow_the_bytes_of_the_files() -> None:
    moves = [ByteMove("b", 0, 0, 0, 5), ByteMove("a", 700, 0, 50, 5), ByteMove("a", 3, 0, 100, 2 * MOVE_BYTES + 1)]
    tasks = plan_tasks(Program(None, moves, [], []), [])  # type: ignore[arg-type]
    places = [(task.moves[0].path, task.moves[0].source) for task in tasks if isinstance(task, MoveTask)]
    assert places == sorted(places) and len(places) == 5
    assert sum(task.nbytes for task in tasks if isinstance(task, MoveTask)) == 2 * MOVE_BYTES + 11


def test_tasks_follow_the_files_that_are_written_where_these_are_hashed(tmp_path: Path) -> None:
    tensors = {f"h.{n}": np.ones(20_000, np.float32) for n in range(4)}
    steps = [
        {"copy": {"from": r"h\.(\d)", "to": r"a.\1"}},
        {"copy": {"from": r"h\.(\d)", "to": r"b.\1"}},
        {"scale": {"from": r"h\.(\d)", "to": r"aa.\1", "by": 2}},
    ]
    program = Bench(tmp_path, m=tensors).compile(steps).program

    def places(in_order: bool) -> list[int]:
        tasks = schedule(program, Limits(80_000, 1, in_order=in_order)).tasks
        return [
            task.moves[0].offset
            if isinstance(task, MoveTask)
            else task.segments[0][0].outputs[0].dests[0].offset + 4 * task.segments[0][1]
            for task in tasks
            if not isinstance(task, DecodeTask)
        ]

    assert places(True) == sorted(places(False)) != places(False)


def test_short_moves_to_neighbouring_places_are_written_together() -> None:
    order = [*range(0, 600, 2), *range(1, 600, 2)]
    moves = [ByteMove("a", place * 100, 0, at * 100, 100) for at, place in enumerate(order)]
    away = ByteMove("a", 60000, 0, 70000, 100)
    tasks = plan_tasks(Program(None, [*moves, away], [], []), [])  # type: ignore[arg-type]
    assert sorted(len(task.moves) for task in tasks if isinstance(task, MoveTask)) == [1, 600]


def test_gathered_moves_arrive_in_their_places(tmp_path: Path) -> None:
    tensors = {
        f"layer.{n}.{part}": np.full(7, n + 1000 * (part == "b"), np.float32) for n in range(500) for part in "ab"
    }
    steps = [{"move": {"from": rf"layer\.(\d+)\.{part}", "to": rf"{part}.\1"}} for part in "ab"]
    found = Bench(tmp_path, m=tensors).tensors(steps)
    assert found.keys() == {f"{part}.{n}" for n in range(500) for part in "ab"}
    assert all((array == int(name[2:]) + 1000 * (name[0] == "b")).all() for name, array in found.items())


def test_adjacent_moves_are_one(tmp_path: Path) -> None:
    tensors = {f"h.{n}": np.ones(100, np.float32) for n in range(50)}
    program = Bench(tmp_path, m=tensors).compile([{"move": {"from": r"h\.(\d+)", "to": r"g.\1"}}]).program
    assert sum(move.nbytes for move in program.moves) == 20000
    assert len(program.moves) <= 50


def test_rows_are_worked_on_in_equal_parts_that_cover_every_row(tmp_path: Path) -> None:
    """A strided slice changes in place: not elementwise as a whole, but every row is its own affair."""
    steps = [{"scale_": {"target": "w::[:, 1:3]", "by": 2}}]
    (group,) = Bench(tmp_path, m={"w": np.ones((1001, 64), np.float32)}).compile(steps).program.groups
    work = scheduled(group, 100_000)
    (plan,) = work.blueprints
    assert plan.kind == "rows" and 1 < plan.rows < 1001
    fresh: list[int] = []
    for tile in work.tasks:
        assert isinstance(tile, Tile)
        ((_, first, count),) = tile.segments
        assert count == plan.rows
        fresh += range(first + tile.seen, first + count)
    assert sorted(fresh) == list(range(1001))


def test_a_tensor_larger_than_the_budget_is_cut_along_its_leading_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((6001, 8, 64)).astype(np.float32)  # 12 MB
    bench = Bench(tmp_path, m={"w": w})
    steps = [
        {"scale_": {"target": "w::[:, 2:5, 0:60:3]", "by": 0.5}},
        {"permute": {"from": "w", "to": "t", "order": [0, 2, 1]}},
        {"assert": {"not": {"equal": {"left": "w::[:, 1]", "right": "w::[:, 2]"}}}},
        {"concat": {"from": ["w::[:, 7]", "w::[:, 0]"], "to": "c", "dim": 1}},
    ]
    got = bench.tensors(steps, memory="8MiB", workers=2)
    want = w.copy()
    want[:, 2:5, 0:60:3] *= np.float32(0.5)
    np.testing.assert_array_equal(got["w"], want)
    np.testing.assert_array_equal(got["t"], want.transpose(0, 2, 1))
    np.testing.assert_array_equal(got["c"], np.concatenate([want[:, 7], want[:, 0]], axis=1))


def test_tasks_that_share_a_tensor_of_a_base_come_together(tmp_path: Path) -> None:
    """Matrices of three fine-tunes are factored with one base: its tensors are read in turn, each by all three."""
    tensors = {f"h.{layer}.w": np.ones((4, 4), np.float32) for layer in range(3)}
    base = write_checkpoint(tmp_path / "z.safetensors", tensors)
    graph, parts = Graph(), []
    for name in "abc":
        tuned = write_checkpoint(tmp_path / f"{name}.safetensors", tensors)
        steps = [
            {"subtract_": {"from": "base::(.+)", "to": "tuned::\\1"}},
            {"phlora_": {"target": "tuned::.+", "rank": 1}},
            {"prefixes": {"mode": "remove", "alias": "base"}},
        ]
        plan = plan_of(
            {
                "inputs": [f"base::{base}", f"tuned::{tuned}"],
                "transforms": steps,
                "output": str(tmp_path / f"{name}-out.safetensors"),
            }
        )
        parts.append(compile_with(plan, StorageOutside(Options()), graph))
    program = joined(parts).program
    tasks = plan_tasks(program, [blueprint(group, 1 << 20) for group in program.groups])
    labels = [task.segments[0][0].labels[0] for task in tasks if isinstance(task, Tile)]
    assert labels == [f"h.{layer}.w" for layer in range(3) for _ in range(3)]


@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(st.integers(17, 300), st.integers(1, 20))
def test_stacks_that_processes_share_hold_every_component_once(number: int, count: int) -> None:
    ones = {f"{side}{at}": np.ones((8, 8), np.float32) for side in "ab" for at in range(number)}
    with tempfile.TemporaryDirectory() as root:
        product = {"matmul": {"from_a": r"a(\d+)", "from_b": r"b\1", "to": r"c\1"}}
        (group,) = Bench(Path(root), m=ones).compile([product]).program.groups
    work = scheduled(group, 1 << 16)
    (plan,) = work.blueprints
    assert plan.kind == "stack"
    found = [entry.task for share in work.shares(count) for entry in share]
    assert all(isinstance(task, Tile) and 0 < len(task.segments) <= plan.rows for task in found)
    held = [segment for task in found if isinstance(task, Tile) for segment in task.segments]
    assert {id(component) for component, _, _ in held} == {id(component) for component in group.components}
    assert len(held) == number and all(segment[1:] == (0, 1) for segment in held)
