"""What is gone over several times is read once where it fits, and the memory for that is reserved."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from running import Bench, assert_same_bits

from surgery_jax import Options, explain, plan_of
from surgery_jax.compile.blueprint import blueprint
from surgery_jax.compile.functions import Functions
from surgery_jax.compile.reduced import ReducedFunction
from surgery_jax.compile.totals import Totals
from surgery_jax.execute.filling import Inputs, shaped
from surgery_jax.execute.recalled import Recalled
from surgery_jax.execute.schedule import schedule
from surgery_jax.io.buffers import aligned
from surgery_jax.io.held import HeldRanges
from surgery_jax.kit.reduction import combined
from surgery_jax.numerics.host_kernel import HostKernel

MIB = 1 << 20
LONG = np.random.default_rng(4).standard_normal(
    (1500, 1000)
)  # 12 MB; its norm is found in two passes, as of any float64
TWICE: list[Any] = [{"assert": {"norm": {"of": "w", "gt": 1}}}]
LIKE: list[Any] = [
    {"normal_": {"target": "w", "mean": "like", "std": "like"}}
]  # three passes, the last of which writes


def work(bench: Bench, steps: list[Any], output: bool = False, **options: Any) -> Any:
    compiled = bench.compile(steps, output=output, **options)
    return schedule(compiled.passes[-1], Options(**options).limits)


@pytest.mark.parametrize(("steps", "passes"), [(TWICE, 2), (LIKE, 3)])
def test_what_fits_is_read_once_and_what_does_not_in_every_pass(tmp_path: Path, steps: list[Any], passes: int) -> None:
    bench = Bench(tmp_path, m={"w": LONG if passes == 2 else LONG.astype("f4")})
    stored = (8 if passes == 2 else 4) * LONG.size
    writes = passes == 3
    ample, tight = {"memory": "256MiB", "workers": 1}, {"memory": "4MiB", "workers": 2}
    for options, times in ((ample, 1), (tight, passes)):
        (share,) = bench.report(steps, output=writes, **options).processes
        assert share.bytes_read == times * stored
        (foretold,) = work(bench, steps, writes, **options).shares(1)
        assert sum(entry.read for entry in foretold) == share.bytes_read


def test_what_is_held_gives_the_bits_of_what_is_read_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": LONG.astype("f4")})
    held = bench.tensors(LIKE, memory="256MiB", workers=1)["w"]
    assert_same_bits(bench.tensors(LIKE, memory="4MiB", workers=2)["w"], held)


def test_many_small_tensors_are_each_read_once(tmp_path: Path) -> None:
    tensors = {f"w.{n}": LONG[n, : n + 1] for n in range(40)}
    bench = Bench(tmp_path, m=tensors)
    (share,) = bench.report([{"assert": {"norm": {"of": ".+", "ge": 0}}}], output=False, memory="2MiB").processes
    assert share.bytes_read == sum(array.nbytes for array in tensors.values())


@pytest.mark.parametrize(("memory", "is_held"), [("64MiB", True), ("32MiB", True), ("16MiB", False), ("6MiB", False)])
def test_memory_for_what_is_held_is_reserved_and_told(tmp_path: Path, memory: str, is_held: bool) -> None:
    bench = Bench(tmp_path, m={"w": LONG})
    account = explain(plan_of(bench.plan(TWICE, output=False)), Options(memory=memory, workers=1))
    taken = bench.report(TWICE, output=False, memory=memory, workers=1).peak_buffer_bytes
    assert taken == account.peak_buffer_bytes == account.groups[0].task_bytes <= account.memory_bytes
    assert (taken > LONG.nbytes) == is_held


SETS: dict[str, list[Any]] = {
    "norm": TWICE,
    "like": LIKE,
    "scaled": [{"scale_": {"target": "w", "by": 2}}, *TWICE],
    "sum": [{"add_": {"from": "w", "to": "v"}}, {"assert": {"norm": {"of": "[vw]", "gt": 1}}}],
    "narrow": [{"cast_": {"target": "w", "to": "bfloat16"}}, {"scale_": {"target": "w", "by": 2}}, *TWICE],
    "noise": [{"noise_": {"target": "w", "std": 2}}],
    "normal": [{"normal_": {"target": "w", "std": 2}}],
}


@pytest.mark.parametrize("memory", ["64MiB", "1MiB"])
@pytest.mark.parametrize("name", SETS)
def test_a_function_takes_no_more_beside_its_inputs_than_is_reserved(tmp_path: Path, name: str, memory: str) -> None:
    """The compiler tells what a function takes, and knows nothing of our rules."""
    bench = Bench(tmp_path, m={"w": LONG.astype("f4"), "v": LONG.astype("f4")})
    (group, *_) = work(bench, SETS[name], True, memory=memory, workers=1).groups
    plan, numbers = group.blueprint, group.group.sample.numbers
    function = Functions().of(group.group, plan)
    before = {value: [1.0] * len(op.how(0)) for value, op in plan.reductions.items()}
    bits = [np.zeros((), f"u{spec.dtype.itemsize}") for spec in plan.specs]
    for once in getattr(function, "passes", [function]):
        given = once.arguments(numbers, 0, 1, before) if plan.kind == "reduced" else numbers
        with jax.enable_x64(True):
            arrays = [jax.ShapeDtypeStruct(spec.shape, spec.dtype.numpy) for spec in plan.specs]
            made = jax.jit(once.traced_at_once, compiler_options=once.compiler_options("cpu"))
            taken = made.lower((np.int32(0), np.int64(0)), bits, given, arrays).compile().memory_analysis()
        assert taken.temp_size_in_bytes + taken.output_size_in_bytes <= plan.produced_bytes


@drawn(st.integers(0, 40), st.integers(0, 3), st.integers(1, 3))
def test_tiles_are_brought_together_as_all_their_blocks_would_be(blocks: int, height: int, terms: int) -> None:
    rows = np.random.default_rng(blocks).standard_normal((blocks, terms)) * 10.0 ** np.arange(terms)
    how = ("sum", "max", "min")[:terms]
    totals = Totals(lambda rows: combined(HostKernel(), rows, how), terms)
    for start in range(0, blocks, 1 << height):
        totals.add(rows[start : start + (1 << height)])
    assert list(totals.result()) == combined(HostKernel(), rows, how)
    assert len(totals._branches) <= blocks.bit_length()


def test_of_counts_one_table_is_held_however_many_tiles_there_are() -> None:
    tables = np.random.default_rng(7).integers(0, 99, (13, 5)).astype(float)
    totals = Totals(lambda parts: parts.sum(0), 5, are_counts=True)
    for table in tables:
        totals.add(table[None])
        assert len(totals._branches) == 1
    assert list(totals.result()) == list(tables.sum(0))


def test_of_threads_that_want_a_range_one_reads_it_and_it_is_held_until_others_need_the_room() -> None:
    held, reads = HeldRanges(25), []
    began, go = threading.Event(), threading.Event()

    def take(key: int, size: int = 10) -> np.ndarray:
        target = np.zeros(size, np.uint8)

        def read() -> None:
            reads.append(key)
            began.set()
            assert go.wait(10)
            target[:] = key

        held.fill(key, target, read)
        return target

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(take, 1) for _ in range(4)]
        assert began.wait(10)
        go.set()
        assert [set(done.result()) for done in waiting] == [{1}] * 4
    assert reads == [1]
    for key in (2, 1, 3, 1, 2):  # 3 takes the place of 2, which was used least recently, and 2 that of 3
        assert set(take(key)) == {key}
    assert reads == [1, 2, 3, 2]
    take(4, 26), take(4, 26)  # larger than what may be held
    assert (reads[4:], held.peak) == ([4, 4], 20)


def test_a_range_whose_reading_failed_is_read_by_the_next_and_nobody_waits_after_the_end() -> None:
    held, target = HeldRanges(8), np.zeros(4, np.uint8)
    with pytest.raises(OSError):
        held.fill("w", target, lambda: Path("missing").stat())
    held.fill("w", target, lambda: target.fill(7))
    assert set(target) == {7}
    held.stop()
    with pytest.raises(InterruptedError):
        held.fill("w", target, lambda: None)


def test_inputs_that_are_held_take_a_part_of_the_budget_together(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={f"w.{n}": LONG for n in range(8)})
    steps = [{"assert": {"norm": {"of": "w.+", "gt": 1}}}]
    options: dict[str, Any] = {"memory": "64MiB", "workers": 4}
    planned = work(bench, steps, **options)
    held = [planned.holding(task) for task in planned.tasks]
    assert (
        planned.held_inputs == 24 * MIB
        and min(held) > LONG.nbytes
        and 2 * max(held) <= planned.held_inputs < 3 * min(held)
    )
    assert bench.report(steps, output=False, **options).peak_buffer_bytes <= 2 * planned.groups[0].most


PRUNED = {
    "method": "della",
    "base": "a::(.+)",
    "models": {"b": {}, "c": {"density": 1}, "d": {"epsilon": 0.2}},
    "weight": 0.4,
    "density": 0.6,
    "to": "a::new.\\1",
}


def in_passes(function: ReducedFunction, inputs: Sequence[np.ndarray], numbers: Sequence[float]) -> list[np.ndarray]:
    """What leaves the only tile of a component, by NumPy."""
    known: dict[int, Any] = {}
    masks, leaving, rows = Recalled(), [], function.blueprint.rows
    for number, once in enumerate(function.passes):
        totals = function.totals(number, known, rows)
        given = once.arguments(numbers, 0, rows, known)
        found = once.on_host([*inputs, *masks.recall(once.recalled, 0)], given)[0]
        outputs = dict(zip(once.leaving, found, strict=True))
        for value in once.remembered:
            masks.remember(value, 0, outputs.pop(value))
        for value in totals:
            totals[value].add(outputs.pop(value))
        known = function.finished(number, totals, known, numbers)
        leaving += [array for value, array in outputs.items() if value not in function.reductions]
    return leaving


def test_masks_that_are_remembered_are_computed_once_and_change_no_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    base = rng.standard_normal((32, 40)).astype("f4")
    tuned = {alias: {"w": base + rng.standard_normal(base.shape).astype("f4") / 8} for alias in "bcd"}
    (group,) = work(Bench(tmp_path, a={"w": base}, **tuned), [{"merge": PRUNED}], True).groups
    plan, (component,) = group.blueprint, group.group.components
    assert len(plan.remembered) == 2  # of the model whose density is 1 all is kept
    assert plan.remembered_bytes(component) == 2 * base.size // 8
    assert group.needs(component)[1] == group.beside + plan.remembered_bytes(component)
    first, last = ReducedFunction(group.group, plan).passes
    assert first.remembered == last.recalled == list(plan.remembered)
    positions = [number for number, spec in enumerate(plan.specs) if spec.dtype.name == "uint64"]
    assert first.needed.issuperset(positions) and last.needed.isdisjoint(positions)  # the last one draws nothing

    assert blueprint(group.group, 300).remembered == ()  # they would not fit
    buffers = [aligned(spec.nbytes) for spec in plan.specs]
    assert plan.rows == len(base)
    inputs = shaped(plan, Inputs(0).of(plan, [(component, 0, plan.rows)], [*buffers, aligned(MIB)]))
    found = [
        in_passes(ReducedFunction(group.group, one), inputs, component.numbers)
        for one in (plan, replace(plan, remembered=()))
    ]
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


def test_what_others_have_freed_is_given_back_before_buffers_take_its_place() -> None:
    """The C library of the command line keeps what is freed."""
    program = (
        "import ctypes, numpy as np; from surgery_jax.io.buffers import Budget; mallopt = ctypes.CDLL(None).mallopt\n"
        "for parameter, value in ((-3, 32 << 20), (-1, 256 << 20), (-8, 1)): mallopt(parameter, value)\n"
        "def taken(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "budget, before = Budget(96 << 20), taken()\n"
        "with budget.reserve([], 64 << 20): [np.ones(1 << 17) for _ in range(64)]\n"
        "after = taken()\n"
        "with budget.reserve([80 << 20]) as (buffer,): buffer[:] = 1; held = taken()\n"
        "del buffer\n"
        "print(after - before, held - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, held = map(int, done.stdout.split())
    assert kept > 60 * MIB and held < 96 * MIB
