"""Keys of tasks and of what is computed: the same in every process, and different where anything that counts is."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import write_checkpoint

from surgery_jax import Options, compile_plan, plan_of
from surgery_jax.core.digests import encoded
from surgery_jax.core.exact import exact
from surgery_jax.execute.schedule import Schedule
from surgery_jax.execute.tasks import DecodeTask, MoveTask, Tile

RNG = np.random.default_rng(8)
TENSORS = {
    **{f"h.{n}.w": RNG.standard_normal((24, 16)).astype("f4") for n in range(20)},
    **{f"h.{n}.b": RNG.standard_normal(16).astype("f4") for n in range(20)},
    "long": RNG.standard_normal(300_000).astype("f4"),
    "wide": RNG.standard_normal((600, 1000)).astype("f4"),
    "kept": RNG.standard_normal(4000).astype("f4"),
}
STEPS: list[Any] = [
    {"scale_": {"target": r"h\.\d+\.b", "by": 0.3}},
    {"matmul": {"from_a": r"h\.(\d+)\.w", "from_b": "square", "to": r"h.\1.p"}},
    {"permute": {"from": r"h\.(\d+)\.w", "to": r"h.\1.t", "order": [1, 0]}},
    {"clamp_": {"target": "long", "min": -1, "max": 1}},
    {"noise_": {"target": "kept", "std": 0.5, "seed": 3}},
    {"ones": {"target": "made", "shape": [7]}},
    {"assert": {"norm": {"of": "long", "gt": 1}}},
    {"scale_": {"target": "wide", "by": 3}},
]


def work(root: Path, steps: list[Any] = STEPS, **options: Any) -> Schedule:
    """The schedule of steps on the tensors of a directory, which are written there if they are not."""
    if not (root / "m.safetensors").exists():
        write_checkpoint(root / "m.safetensors", TENSORS | {"square": np.ones((16, 8), "f4")})
    plan = {
        "inputs": [f"m::{root / 'm.safetensors'}"], "transforms": steps, "output": str(root / "out.safetensors"),
    }  # fmt: skip
    settings = Options(**options)
    return compile_plan(plan_of(plan), settings).last(settings.limits)


PROGRAM = """
import json, sys
from pathlib import Path
from test_keys import work
found = work(Path(sys.argv[1]), workers=3)
print(json.dumps([found.keys, [dict(reversed(keys.items())) for keys in found.tensor_keys]]))
"""


@pytest.mark.parametrize("seed", ["0", "1", "77"])
def test_keys_are_the_same_in_every_process(tmp_path: Path, seed: str) -> None:
    """Python hashes texts anew in every process, unless it is told a seed; sets and tables follow it."""
    own = work(tmp_path, workers=3)
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parent.parent)])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [list(own.keys), list(own.tensor_keys)]
    assert len(set(own.keys)) == len(own.tasks) > 3
    assert all(len(key) == 32 for key in own.keys)


def test_what_is_cut_alike_has_its_key_under_any_budget(tmp_path: Path) -> None:
    """Moves, what is computed whole, and what is reduced; tiles are as long as the budget allows."""
    ample, tight = work(tmp_path, workers=1), work(tmp_path, memory="6MiB", workers=4)
    assert ample.tensor_keys == tight.tensor_keys
    same = set(ample.keys) & set(tight.keys)
    for found in (ample, tight):
        for task, key in zip(found.tasks, found.keys, strict=True):
            is_free = isinstance(task, MoveTask | DecodeTask) or found.blueprints[task.group].kind == "reduced"
            assert key in same or not is_free
    assert same and set(ample.keys) - same


def changed(steps: list[Any], number: int, **keys: Any) -> list[Any]:
    """Steps of which one has other values."""
    ((word, fields),) = steps[number].items()
    return [*steps[:number], {word: fields | keys}, *steps[number + 1 :]]


def key_of_tensor(found: Schedule, name: str) -> str:
    return found.tensor_keys[0][name]


CHANGES: list[tuple[str, list[Any], str]] = [
    ("the last bit of a number", changed(STEPS, 0, by=math.nextafter(0.3, 1)), "h.3.b"),
    ("the sign of zero", changed(STEPS, 3, min=-0.0), "long"),
    ("a bound", changed(STEPS, 3, max=2), "long"),
    ("a seed", changed(STEPS, 4, seed=4), "kept"),
    ("an order of axes", changed(STEPS, 2, order=[0, 1]), "h.3.t"),
    ("a shape", changed(STEPS, 5, shape=[8]), "made"),
    ("an operation", [{"clamp_": {"target": r"h\.\d+\.b", "max": 0.3}}, *STEPS[1:]], "h.3.b"),
    ("a source", changed(STEPS, 1, from_a=r"h\.1(\d)\.w", to=r"h.\1.p"), "h.3.p"),
]


@pytest.mark.parametrize(("what", "steps", "name"), CHANGES, ids=[what for what, *_ in CHANGES])
def test_a_key_differs_where_what_is_computed_does(tmp_path: Path, what: str, steps: list[Any], name: str) -> None:
    before, after = work(tmp_path), work(tmp_path, steps)
    assert key_of_tensor(before, name) != key_of_tensor(after, name)
    assert key_of_tensor(before, "h.3.w") == key_of_tensor(after, "h.3.w")
    assert set(before.keys) != set(after.keys)


def test_a_key_differs_where_the_place_of_what_is_written_does(tmp_path: Path) -> None:
    steps: list[Any] = [{"scale_": {"target": "kept", "by": 2}}, {"delete": {"target": "h.+"}}]
    here = work(tmp_path, steps)
    elsewhere = work(
        tmp_path, [*steps, {"move": {"from": "kept", "to": "a.kept"}}, {"copy": {"from": "long", "to": "a"}}]
    )
    assert key_of_tensor(here, "kept") == key_of_tensor(elsewhere, "a.kept")
    tiles = [
        {key for task, key in zip(found.tasks, found.keys, strict=True) if isinstance(task, Tile)}
        for found in (here, elsewhere)
    ]
    assert tiles[0] and not tiles[0] & tiles[1]


def test_the_same_computation_has_one_key_whatever_words_it_is_written_in(tmp_path: Path) -> None:
    once = work(tmp_path, [{"scale_": {"target": "kept", "by": 2}}])
    again = work(tmp_path, [{"scale": {"from": "kept", "to": "b", "by": 2}}, {"move": {"from": "b", "to": "c"}}])
    assert key_of_tensor(once, "kept") == key_of_tensor(again, "c")


def test_links_that_lead_elsewhere_in_another_process_are_in_no_key(tmp_path: Path) -> None:
    """Each host may have a copy of its own behind the path that all of them know."""
    steps: list[Any] = [*STEPS[:5], {"save": {"target": "kept", "path": str(tmp_path / "kept.npy"), "format": "numpy"}}]
    here = work(tmp_path, steps)
    (tmp_path / "disk").mkdir()
    (tmp_path / "m.safetensors").rename(tmp_path / "disk" / "m.safetensors")
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "disk" / "m.safetensors")
    there = work(tmp_path, steps)
    assert (here.keys, here.tensor_keys) == (there.keys, there.tensor_keys)


# ------------------------------------------------------------------------------------------------------ shares


def bytes_of(found: Schedule, task: Any) -> Iterator[tuple[int, int, int]]:
    """(file, first byte, end) of what a task writes."""
    if isinstance(task, MoveTask):
        for move in task.moves:
            yield move.file, move.offset, move.offset + move.nbytes
        return
    plan = found.blueprints[task.group]
    values = plan.value_specs()
    for component, first, count in task.segments:
        for number, output in zip(plan.leaving, component.outputs, strict=True):
            width = values[number].nbytes // plan.rows
            for dest in output.dests:
                for _, offset, nbytes in dest.parts((first + task.seen) * width, (count - task.seen) * width):
                    yield dest.file, offset, offset + nbytes


@settings(derandomize=True, database=None, deadline=None, max_examples=25)
@given(count=st.integers(1, 70), memory=st.sampled_from(["2GiB", "64MiB", "6MiB"]))
def test_shares_of_any_number_of_hosts_are_all_tasks_and_write_every_byte_once(
    tmp_path_factory: Any, count: int, memory: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "shared"
    root.mkdir(exist_ok=True)
    found = work(root, memory=memory, workers=2)
    own = found.shares(count)
    assert len(own) == count
    ranges = sorted(part for share in own for entry in share for part in bytes_of(found, entry.task))
    assert ranges == sorted(ranges) and all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(ranges))
    whole = sorted(part for task in found.tasks for part in bytes_of(found, task))
    assert sum(end - begin for _, begin, end in ranges) == sum(end - begin for _, begin, end in whole)
    assert sum(entry.written for share in own for entry in share) == sum(end - begin for _, begin, end in whole)
    keys = [found.key(entry.task) for share in own for entry in share]
    assert len(set(keys)) == len(keys)
    if count == 1:
        assert keys == list(found.keys)


# ---------------------------------------------------------------------------------------------------- encoding

FLAT = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers(),
)  # fmt: skip
VALUES = st.recursive(FLAT, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


@given(VALUES, VALUES)
def test_two_values_are_one_in_bytes_if_they_are_one_in_tables(one: Any, other: Any) -> None:
    assert (encoded(one) == encoded(other)) == (exact(one) == exact(other))


@given(st.dictionaries(st.text(), st.integers()), st.sets(st.text()), st.randoms())
def test_no_order_of_a_table_or_a_set_is_in_bytes(table: dict[str, int], words: set[str], random: Any) -> None:
    pairs = list(table.items())
    random.shuffle(pairs)
    assert encoded(dict(pairs)) == encoded(table)
    assert encoded(frozenset(sorted(words))) == encoded(frozenset(words))
    assert encoded(sorted(words)) != encoded(set(words))


@given(st.floats(allow_nan=True))
def test_a_number_is_encoded_to_the_last_bit(number: float) -> None:
    bits = struct.unpack("<q", struct.pack("<d", number))[0]
    (other,) = struct.unpack("<d", struct.pack("<q", bits ^ 1))
    assert encoded(number) != encoded(other)
    assert encoded(0.0) != encoded(-0.0) and encoded(1) != encoded(1.0) != encoded(True)


def test_what_has_no_name_in_another_process_has_no_key() -> None:
    with pytest.raises(TypeError, match="object has no digest"):
        encoded((1, object()))
