"""How jobs are divided among tasks: each once, evenly, and so that few read the same."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax import plan_of
from surgery_jax.session.portions import JobLoad, cost, divide
from surgery_jax.session.sharing_out import loads_of

SIZES = {"base": 100, "a": 20, "b": 30, "c": 40, "d": 50, "e": 60}
PATHS = st.sampled_from(["base", "other", "third"])


@st.composite
def batches(draw: st.DrawFn) -> list[JobLoad]:
    sizes = {path: draw(st.integers(0, 1000)) for path in ("base", "other", "third")}
    loads = []
    for number in range(draw(st.integers(0, 30))):
        inputs = {path: sizes[path] for path in draw(st.sets(PATHS))}
        loads.append(JobLoad(inputs | {f"tuned {number}": draw(st.integers(0, 1000))}))
    return loads


def most(loads: Sequence[JobLoad], shares: Sequence[Sequence[int]]) -> int:
    return max(cost(loads[number] for number in share) for share in shares)


@given(batches(), st.integers(1, 40))
def test_every_job_is_in_exactly_one_share_and_no_task_is_idle_as_long_as_there_are_jobs(loads, count):
    shares = divide(loads, count)
    assert len(shares) == count
    assert sorted(number for share in shares for number in share) == list(range(len(loads)))
    assert sum(1 for share in shares if share) == min(count, len(loads))
    assert shares == divide(list(loads), count)


@given(batches(), st.integers(1, 12))
def test_no_share_is_larger_than_an_even_one_and_a_job(loads, count):
    if not loads:
        return
    even = -(-(sum(load.own + sum(load.inputs.values()) for load in loads)) // count)
    assert most(loads, divide(loads, count)) <= even + max(cost([load]) for load in loads)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_jobs_that_share_nothing_are_divided_nearly_as_well_as_can_be(sizes, count):
    loads = [JobLoad({str(number): size}) for number, size in enumerate(sizes)]
    best = min(
        most(loads, [[job for job, task in enumerate(tasks) if task == own] for own in range(count)])
        for tasks in product(range(count), repeat=len(sizes))
    )
    assert best <= most(loads, divide(loads, count)) <= 4 / 3 * best  # the bound of dealing out the largest first


def test_tasks_follow_the_base():
    bases = ["small", "large"] * 20
    sizes = {"small": 100, "large": 130}
    loads = [JobLoad({base: sizes[base], f"tuned {number}": 100}) for number, base in enumerate(bases)]
    shares = divide(loads, 4)
    read = [{bases[number] for number in share} for share in shares]
    assert sum(map(len, read)) <= 5  # each task one of them, but where one base ends and the other begins
    for share in shares:
        assert [bases[number] for number in share] == sorted((bases[n] for n in share), key=bases[share[0]].__ne__)


def test_equal_jobs_of_one_base_are_divided_evenly():
    loads = [JobLoad({"base": 140, f"tuned {number}": 140}) for number in range(1000)]
    lengths = sorted(map(len, divide(loads, 64)))
    assert (lengths[0] >= 15, lengths[-1], sum(lengths)) == (True, 16, 1000)


def test_a_sweep_over_the_same_inputs_is_divided_too():
    loads = [JobLoad({"base": 100, "tuned": 100})] * 12
    assert [len(share) for share in divide(loads, 4)] == [3, 3, 3, 3]
    assert [len(share) for share in divide([JobLoad({})] * 5, 4)] == [2, 1, 1, 1]


def test_what_steps_load_counts_like_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in SIZES.items():
        Path(f"{name}.safetensors").write_bytes(bytes(size))
    Path("more.yaml").write_text('{"inputs": ["e::e.safetensors"], "transforms": [{"load": "d.safetensors"}]}')
    steps = [
        {"load": "a.safetensors"},
        {"load": {"path": "safetensors:b.safetensors", "alias": "b"}},
        {"execute": {"transforms": {"load": {"path": "c.safetensors"}}, "path": "more.yaml"}},
        {"execute": {"plan-yaml": "- load: { path: a.safetensors, alias: again }", "path": "nowhere.yaml"}},
        {"load": {"path": "nowhere.safetensors"}},
        {"scale_": {"target": "load", "by": 2}},
    ]
    (load,) = loads_of([plan_of({"inputs": ["m::base.safetensors"], "transforms": steps})])
    sizes = {Path(path).name: size for path, size in load.inputs.items() if size}
    assert sizes == {f"{name}.safetensors": size for name, size in SIZES.items()}
    assert load.own == 100
