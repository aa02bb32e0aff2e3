"""Which task of a batch a process is: by its command line, or by what clusters say in the environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import PlanError
from surgery_jax.hosts.tasks import BatchTask, find_task


def slurm(number: int, first: int, last: int, step: int = 1, count: int | None = None) -> dict[str, str]:
    count = (last - first) // step + 1 if count is None else count
    values = {"ID": number, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


TPU = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}
SLICES = TPU | {"MEGASCALE_SLICE_ID": "1", "MEGASCALE_NUM_SLICES": "3"}


@pytest.mark.parametrize(
    ("word", "environ", "expected"),
    [
        ("none", slurm(3, 0, 7), None),
        ("auto", {}, None),
        ("auto", {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ("auto", {"JOB_COMPLETION_INDEX": ""}, None),
        ("auto", slurm(5, 5, 5), None),
        ("3/8", {}, (3, 8)),
        ("3/8", slurm(0, 0, 1), (3, 8)),
        ("1/1", TPU, (1, 1)),
        ("auto/1", {"JOB_COMPLETION_INDEX": "0"}, (1, 1)),
        ("auto", slurm(3, 0, 7), (4, 8)),
        ("auto", slurm(16, 10, 20, 2), (4, 6)),
        ("auto", slurm(16, 10, 21, 2, 6) | {"SLURM_ARRAY_TASK_MAX": "20"}, (4, 6)),
        ("auto/8", slurm(3, 0, 7), (4, 8)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "15"}, (16, 16)),
        ("auto", TPU, (3, 4)),
        ("auto", TPU | {"JOB_COMPLETION_INDEX": "2"}, (3, 4)),
        ("auto", SLICES, (7, 12)),
        ("auto", SLICES | {"JOB_COMPLETION_INDEX": "2"}, (7, 12)),
        ("auto", slurm(2, 0, 3) | TPU, (3, 4)),
        ("auto", TPU | {"TPU_WORKER_HOSTNAMES": "a, b,c,d,"}, (3, 4)),
        ("auto", {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": ","}, None),
        # a program that is one of several may itself start a batch that is not shared
        ("auto", {"RANK": "0", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8"}, None),
        ("auto/4", {"JOB_COMPLETION_INDEX": "1", "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "me"}, (2, 4)),
    ],
)
def test_a_task_is_what_the_word_and_the_environment_say(word, environ, expected):
    found = find_task(word, environ)
    assert (None if found is None else (found.number, found.count)) == expected
    assert found is None or (found.source != "") == (word.startswith("auto") and found.count > 1)


@pytest.mark.parametrize(
    ("word", "environ", "problem"),
    [
        ("0/4", {}, "no task 0 of 4"),
        ("5/4", {}, "no task 5 of 4"),
        ("1/0", {}, "no task 1 of 0"),
        ("auto/0", {}, "no tasks"),
        ("3", {}, "not a task"),
        ("-1/4", {}, "not a task"),
        ("a/b", {}, "not a task"),
        ("", {}, "not a task"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "nothing says of how many"),
        ("auto/3", {"JOB_COMPLETION_INDEX": "3"}, "number 3, counted from 0, of 3 tasks"),
        ("auto/4", {}, "nothing says which of 4 tasks"),
        ("auto/4", {"SLURM_ARRAY_TASK_ID": "0"}, "nothing says of which"),
        ("auto/4", slurm(0, 0, 7), "say that there are 8 tasks"),
        ("auto", slurm(7, 1, 7, 1, 3), "do not follow one another"),
        ("auto", slurm(4, 1, 7, 2), "do not follow one another"),
        ("auto", slurm(2, 0, 7) | TPU, "two tasks"),
        ("auto", TPU | {"JOB_COMPLETION_INDEX": "3"}, "nothing says of how many"),
        ("auto", TPU | {"TPU_WORKER_ID": "4"}, "number 4, counted from 0, of 4 tasks"),
        ("auto", TPU | {"TPU_WORKER_ID": "x"}, "TPU_WORKER_ID is no number"),
    ],
)
def test_what_does_not_say_which_task_is_an_error(word, environ, problem):
    with pytest.raises(PlanError, match=problem) as caught:
        find_task(word, environ)
    assert "--task" in str(caught.value)


@given(st.integers(0, 50), st.integers(1, 40), st.integers(1, 5))
def test_the_tasks_of_a_slurm_array_are_all_numbers_each_once(first, count, step):
    last = first + (count - 1) * step
    found = [find_task("auto", slurm(number, first, last, step)) for number in range(first, last + 1, step)]
    assert found == ([None] if count == 1 else [BatchTask(i, count, "SLURM_ARRAY_TASK_*") for i in range(1, count + 1)])
