"""What a job file means, and what is wrong with one, with its place."""

from pathlib import Path

import pytest

from surgery_jax import PlanError
from surgery_jax.language.jobs import MAX_JOBS, Job, load_jobs

PLAN = """\
tuned: somewhere
rank: 8
inputs: [ "base::base", "tuned::${tuned}" ]
transforms:
  - scale_: { target: 'tuned::.+', by: '${rank}' }
output: out
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def load(place: Path, text: str, *overrides: str) -> tuple[Job, ...]:
    (place / "jobs.yaml").write_text(text)
    return load_jobs("jobs.yaml", overrides)


def names(jobs: tuple[Job, ...]) -> list[str]:
    return [job.name for job in jobs]


def test_a_matrix_is_every_combination_in_order_and_names_are_made_of_what_differs(place):
    jobs = load(
        place, "plan: plan.yaml\nmatrix: { tuned: [x/a.pt, x/v1.5], rank: [8, 16] }\nset: { output: 'o/${job}' }\n"
    )
    assert names(jobs) == ["a-8", "a-16", "v1.5-8", "v1.5-16"]
    plan = jobs[2].plan()
    assert plan.inputs[1].path == "x/v1.5"
    assert plan.output.path == "o/v1.5-8"
    assert jobs[3].parameters == {"output": "o/v1.5-16", "tuned": "x/v1.5", "rank": 16}


def test_a_value_that_does_not_differ_is_not_in_the_name(place):
    jobs = load(place, "plan: plan.yaml\nmatrix: { tuned: [a, b], rank: [8] }\n")
    assert names(jobs) == ["a", "b"]


def test_a_path_that_a_glob_finds_is_named_by_what_its_wildcards_stand_for(place):
    for name in ("code", "chat-v1.5", ".hidden"):
        (place / "runs" / name).mkdir(parents=True)
        (place / "runs" / name / "model.safetensors").touch()
    jobs = load(place, "plan: plan.yaml\nmatrix: { tuned: { glob: 'runs/*/model.safetensors' } }\n")
    assert names(jobs) == ["chat-v1.5", "code"]
    assert jobs[1].plan().inputs[1].path == "runs/code/model.safetensors"
    jobs = load(place, "plan: plan.yaml\nmatrix: { tuned: { glob: ['**/mo[dx]el.safe*', 'runs/c?de'] } }\n")
    assert names(jobs) == ["runs-chat-v1.5-d-tensors", "runs-code-d-tensors", "o"]
    (place / "runs" / "last.safetensors").touch()
    assert names(load(place, "plan: plan.yaml\nmatrix: { tuned: { glob: 'runs/*' } }\n")) == [
        "chat-v1.5",
        "code",
        "last",
    ]


def test_listed_jobs_set_what_they_like_and_are_numbered_unless_they_are_named(place):
    jobs = load(
        place,
        "plan: plan.yaml\nset: { rank: 4, output: '${job}' }\njobs:\n"
        "  - set: { tuned: a, output.path: elsewhere }\n  - { name: second, set: { tuned: b, rank: 5 } }\n",
    )
    assert names(jobs) == ["1", "second"]
    assert [job.plan().output.path for job in jobs] == ["elsewhere", "second"]
    assert [job.parameters["rank"] for job in jobs] == [4, 5]


def test_listed_jobs_are_crossed_with_the_matrix(place):
    entries = ", ".join(f"{{ name: {name}, set: {{ tuned: {name} }} }}" for name in "ab")
    text = f"plan: plan.yaml\njobs: [ {entries} ]\nmatrix: {{ rank: [1, 2] }}\n"
    assert names(load(place, text)) == ["a-1", "a-2", "b-1", "b-2"]
    assert names(load(place, text + "name: '${name}_${rank}_${tuned}'\n")) == ["a_1_a", "a_2_a", "b_1_b", "b_2_b"]


def test_a_parameter_may_only_be_spoken_of(place):
    (place / "bare.yaml").write_text("inputs: [ 'model::x' ]\noutput: out\n")
    jobs = load(
        place,
        "plan: bare.yaml\nmatrix: { who: [a, b] }\nset: { 'inputs[0]': 'model::runs/${who}', output: '${who}' }\n",
    )
    assert [(job.plan().inputs[0].path, job.plan().output.path) for job in jobs] == [("runs/a", "a"), ("runs/b", "b")]


def test_a_plan_with_a_variable_job_gets_the_name_of_the_job(place):
    (place / "named.yaml").write_text("job: trial\ninputs: [ x ]\noutput: out/${job}\n")
    (job,) = load(place, "plan: named.yaml\njobs: [ { name: night } ]\n")
    assert job.plan().output.path == "out/night"


def test_the_plan_may_stand_in_the_job_file_or_be_several_files(place):
    (job,) = load(place, "plan: { rank: 1, inputs: [ x ], output: 'r${rank}' }\njobs: [ { set: { rank: 3 } } ]\n")
    assert job.plan().output.path == "r3"
    (place / "more.yaml").write_text("output: elsewhere\n")
    (job,) = load(place, "plan: [ plan.yaml, more.yaml ]\njobs: [ {} ]\n")
    assert job.plan().output.path == "elsewhere"


def test_overrides_of_the_command_line_are_for_every_job_and_win(place):
    jobs = load(place, "plan: plan.yaml\nmatrix: { rank: [1, 2], tuned: [a] }\n", "output=here", "tuned=b")
    assert {(job.plan().output.path, job.plan().inputs[1].path) for job in jobs} == {("here", "b")}
    with pytest.raises(PlanError, match="beside a job file"):
        load(place, "plan: plan.yaml\njobs: [ {} ]\n", "plan.yaml")


def test_nothing_in_the_name_of_a_file_is_a_reference(place, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    (place / "runs").mkdir()
    for name in ("${oc.env:SECRET}", r"\${rank}", "{a}"):
        (place / "runs" / name).touch()
    jobs = load(place, "plan: plan.yaml\nmatrix: { tuned: { glob: 'runs/*' } }\nset: { output: 'o/${job}' }\n")
    assert names(jobs) == ["${oc.env:SECRET}", r"\${rank}", "{a}"]
    for job in jobs:
        plan = job.plan()
        assert (plan.inputs[1].path, plan.output.path) == (f"runs/{job.name}", f"o/{job.name}")


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("[]", 1, 1, "a job file is a mapping"),
        ("plan: plan.yaml\nmatirx: { rank: [1] }\n", 2, 1, "unknown key 'matirx'.*did you mean matrix"),
        (
            "plan: plan.yaml\njobs:\n  - set: {}\n    nmae: x\n",
            4,
            5,
            "a job has an unknown key 'nmae'.*did you mean name",
        ),
        ("plan: plan.yaml\nmatrix: { tuned: { golb: x } }\n", 2, 20, "unknown key 'golb'.*did you mean glob"),
        ("plan: plan.yaml\nmatrix: { rank: 8 }\n", 2, 17, "gives no values"),
        ("plan: plan.yaml\nmatrix: { rank: [] }\n", 2, 17, "gives no values"),
        ("plan: plan.yaml\nmatrix: { tuned: { glob: 'none/*' } }\n", 2, 26, "nothing matches 'none"),
        ('plan: plan.yaml\nmatrix: { tuned: { glob: "a\\0b*" } }\n', 2, 26, "glob|nothing matches|not a pattern"),
        ("plan: plan.yaml\nmatrix: []\n", 2, 9, "matrix is a mapping"),
        ("plan: plan.yaml\njobs: {}\n", 2, 7, "jobs is a list"),
        ("plan: plan.yaml\njobs: [ 3 ]\n", 2, 9, "a job is a mapping"),
        ("plan: plan.yaml\njobs: [ { set: 3 } ]\n", 2, 16, "set is a mapping"),
        ("plan: plan.yaml\njobs: [ { name: a }, { name: a } ]\n", 2, 22, "two jobs are called 'a'.*2:9"),
        ("plan: plan.yaml\nname: x\nmatrix: { rank: [1, 2] }\n", 1, 1, "two jobs are called 'x'"),
        ("plan: plan.yaml\nname: '${rnk}'\nmatrix: { rank: [1, 2] }\n", 1, 1, "unknown reference.*did you mean rank"),
        ('plan: plan.yaml\nname: "a\\nb"\nmatrix: { rank: [1] }\n', 1, 1, "not a name of a job"),
        ("plan: plan.yaml\nset: { job: x }\njobs: [ {} ]\n", 2, 8, "stands for the name"),
        ("plan: plan.yaml\nset: { 'a b': x }\njobs: [ {} ]\n", 2, 8, "is not a path"),
        (
            "plan: plan.yaml\nmatrix: { rank: [1] }\njobs: [ { set: { rank: 2 } } ]\n",
            3,
            9,
            "set by the job and by matrix",
        ),
        ("plan: plan.yaml\n", 1, 1, "the file has no jobs"),
        ("jobs: [ {} ]\n", 1, 1, "names no plan"),
        ("plan: [ 3.5, true ]\njobs: [ {} ]\n", 1, 9, "neither a plan file"),
        ("plan: plan.yml\njobs: [ {} ]\n", 1, 7, "plan file does not exist"),
        ("plan: plan.yaml\njobs: [ {} ]\njobs: [ {} ]\n", 3, 1, "duplicate key"),
        ("plan: plan.yaml\njobs: [ *x ]\n", 2, 9, r"unknown alias \*x"),
    ],
)
def test_a_wrong_job_file_is_told_with_its_line_and_column(place, text, line, column, words):
    with pytest.raises(PlanError, match=f"(?s){words}") as caught:
        load(place, text)
    where = caught.value.where
    assert (where.file, where.line, where.column) == ("jobs.yaml", line, column), str(caught.value)


def test_a_key_that_the_plan_has_not_is_told_with_its_place(place):
    (job,) = load(place, "plan: plan.yaml\nset:\n  rnak: 3\njobs: [ {} ]\n")
    with pytest.raises(PlanError, match=r"jobs\.yaml:3:3: no plan file has a variable 'rnak'[^$]*did you mean rank"):
        job.plan()


def test_references_in_a_circle_are_an_error_of_the_job(place):
    (job,) = load(place, "plan: plan.yaml\nset: { tuned: '${rank}', rank: '${tuned}' }\njobs: [ {} ]\n")
    with pytest.raises(PlanError, match="circle"):
        job.plan()


def test_values_that_grow_beyond_all_bounds_are_an_error_of_the_job(place):
    doubled = ", ".join(f"x{n}: '${{x{n - 1}}}${{x{n - 1}}}'" for n in range(1, 40))
    (job,) = load(place, f"plan: plan.yaml\nset: {{ x0: aaaa, {doubled}, tuned: '${{x39}}' }}\njobs: [ {{}} ]\n")
    with pytest.raises(PlanError, match="references make more than"):
        job.plan()
    (job,) = load(place, f"plan: plan.yaml\nset: {{ tuned: {'a' * 60_000}, output: '${{tuned}}' }}\njobs: [ {{}} ]\n")
    with pytest.raises(PlanError, match="longer than 100000 characters"):
        job.plan()


def test_more_jobs_than_anybody_means_are_refused_before_they_are_made(place):
    row = "[" + ",".join(map(str, range(101))) + "]"
    with pytest.raises(PlanError, match=f"10201 jobs[^$]*at most {MAX_JOBS}"):
        load(place, f"plan: plan.yaml\nmatrix: {{ rank: {row}, tuned: {row} }}\n")


@pytest.mark.parametrize("name", ["../../evil", "..", "a/../../b", "/etc", "a//b", "a/", "./a"])
def test_a_name_that_leads_out_of_a_folder_is_refused(place, name):
    with pytest.raises(PlanError, match=r"not a name of a job[^$]*lead out of a folder"):
        load(place, f"plan: plan.yaml\njobs: [ {{ name: '{name}', set: {{ output: 'o/${{job}}' }} }} ]\n")


def test_a_name_may_lie_in_folders(place):
    (job,) = load(place, "plan: plan.yaml\nset: { output: 'o/${job}' }\njobs: [ { name: a/b } ]\n")
    assert job.plan().output.path == "o/a/b"


def test_a_pattern_with_many_wildcards_gives_names_soon(place):
    (place / ("a" * 60)).write_text("")
    (job,) = load(place, f"plan: plan.yaml\nmatrix: {{ tuned: {{ glob: '{'*a' * 12}*' }} }}\n")
    assert job.parameters["tuned"] == "a" * 60
    with pytest.raises(PlanError, match="longer than any path"):
        load(place, f"plan: plan.yaml\nmatrix: {{ tuned: {{ glob: '{'[' * 50_000}' }} }}\n")
