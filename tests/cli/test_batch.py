"""The command `batch`: exit codes, what is told where, JSON."""

import json

import pytest

from surgery_jax.cli.main import main

PLAN = """\
which: a
inputs: [ "model::${which}.safetensors" ]
transforms:
  - scale_: { target: 'h\\.0\\.up', by: 2 }
  - assert: { shape: { of: norm, is: [6] } }
output: out
"""
JOBS = "plan: plan.yaml\nmatrix: { which: [a, b, c] }\nset: { output: 'out/${job}' }\n"


@pytest.fixture
def here(place, plan, monkeypatch):
    monkeypatch.chdir(place)
    plan(PLAN)
    plan(JOBS, "jobs.yaml")
    return place


def test_a_failed_job_is_1_its_error_names_it_and_the_table_has_every_job(here, surgery):
    done = surgery("batch", "jobs.yaml", "--no-sync")
    assert done.returncode == 1
    assert (
        done.stdout.splitlines()
        == [
            "job  status  output  tensors  bytes",
            "a    done    out/a         7  1.05 KiB",
            "b    failed",
            "c    failed",
            "3 jobs: 1 done, 2 failed",
        ]
        or done.stdout.splitlines()[-1] == "3 jobs: 1 done, 2 failed"
    )
    assert "error: job b: plan.yaml:5:5: assertion failed: shape: norm" in done.stderr
    assert "error: job c: plan.yaml:2:11: c.safetensors: does not exist" in done.stderr
    assert "done: a\n1 pass: " in done.stderr
    assert sorted(path.name for path in here.iterdir() if path.is_dir()) == ["out"]


def test_jobs_that_all_succeed_or_are_finished_are_0_and_quiet_is_quiet(here, capsys):
    for status in ("done", "skipped"):
        assert main(["batch", "jobs.yaml", "transforms[1].assert.shape.of=h.0.up", "which=a", "--quiet", "--no-sync",
                     "transforms[1].assert.shape.is=[4, 6]"]) == 0  # fmt: skip
        printed = capsys.readouterr()
        assert printed.out.endswith(f"3 jobs: 3 {status}\n")
        assert printed.err == ""


def test_json_is_one_object_with_every_job_and_its_problems(here, capsys):
    assert main(["batch", "jobs.yaml", "--json", "--quiet", "--no-sync"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"done": 1, "failed": 2}
    assert [job["status"] for job in told["jobs"]] == ["done", "failed", "failed"]
    assert told["jobs"][0]["parameters"] == {"which": "a", "output": "out/a"}
    (problem,) = told["jobs"][1]["problems"]
    assert (problem["kind"], problem["file"], problem["line"]) == ("AssertionFailed", "plan.yaml", 5)
    assert told["bytes_read"] == 96


@pytest.mark.parametrize(
    "words",
    [
        ("batch",),
        ("batch", "missing.yaml"),
        ("batch", "jobs.yaml", "plan.yaml"),
        ("batch", "jobs.yaml", "nothing"),
        ("batch", "jobs.yaml", "--together", "-1"),
        ("batch", "wrong.yaml"),
    ],
)
def test_a_wrong_command_line_or_job_file_is_2_and_leaves_nothing(words, here, plan, capsys):
    plan("plan: plan.yaml\nmatirx: {}\n", "wrong.yaml")
    before = sorted(here.rglob("*"))
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert sorted(here.rglob("*")) == before


def test_a_record_that_cannot_be_is_3_and_says_where_it_could_be(here, capsys):
    assert main(["batch", "jobs.yaml", "--record", "missing/run.done"]) == 3
    assert "cannot open the record" in (said := capsys.readouterr().err) and "--record PATH" in said


def test_stopping_on_failure_tells_what_was_not_run(here, capsys):
    assert main(["batch", "jobs.yaml", "--stop-on-failure", "--together", "1", "--no-sync"]) == 1
    assert capsys.readouterr().out.endswith("3 jobs: 1 done, 1 failed, 1 not run\n")


def test_a_name_cannot_steer_the_terminal(here, plan, capsys):
    (here / "runs").mkdir()
    (here / "runs" / "\x1b[2Jx").write_bytes(b"nothing")
    plan("plan: plan.yaml\nmatrix: { which: { glob: 'runs/*' } }\n", "jobs.yaml")
    assert main(["batch", "jobs.yaml"]) == 2
    plan("plan: plan.yaml\nname: x\nmatrix: { which: { glob: 'runs/*' } }\n", "jobs.yaml")
    assert main(["batch", "jobs.yaml"]) == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err


def test_the_summary_is_a_table_or_json_and_runs_nothing(here, capsys):
    main(["batch", "jobs.yaml", "--task", "1/1", "--quiet", "--no-sync"])
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert main(["batch", "jobs.yaml", "--summary"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "a    done    out/a"
    assert lines[2].startswith("b    failed  process ")
    assert "c.safetensors: does not exist" in lines[3]
    assert lines[-1] == "3 jobs: 1 done, 2 failed, 0 running, 0 left"
    assert main(["batch", "jobs.yaml", "--summary", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"done": 1, "failed": 2, "running": 0, "left": 0}
    assert [job["status"] for job in told["jobs"]] == ["done", "failed", "failed"]
    assert sorted(here.rglob("*")) == before
    assert main(["batch", "jobs.yaml", "--summary", "--check"]) == 2


def test_a_batch_is_predicted_from_headers(here, plan, capsys):
    plan("plan: plan.yaml\nmatrix: { n: [1, 2, 3] }\nset: { output: 'out/${job}-${n}' }\n", "three.yaml")
    before = sorted(here.rglob("*"))
    machines = "hosts=2,storage=1MB/s,startup=5s"
    assert main(["batch", "three.yaml", "--simulate", machines, "--json", "transforms[1].assert.shape.is=[6]"]) == 0
    told = json.loads(capsys.readouterr().out)
    (one,) = told["passes"]
    written = sorted(host["bytes_written"] for host in one["hosts"])
    assert written[1] == 2 * written[0] > 0
    assert told["wall_s"] == 5 + max(host["wall_s"] for host in one["hosts"])
    assert main(["batch", "three.yaml", "--simulate", machines, "transforms[1].assert.shape.is=[6]"]) == 0
    assert capsys.readouterr().out.startswith("predicted: ")
    assert main(["batch", "jobs.yaml", "--simulate", machines]) == 1
    assert main(["batch", "three.yaml", "--simulate", "host=2"]) == 2
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("words", [("--task", "0/2"), ("--task", "x"), ("--lease", "0"), ("--lease", "nan")])
def test_a_task_or_lease_that_cannot_be_is_2_and_leaves_nothing(words, here, capsys):
    before = sorted(here.rglob("*"))
    assert main(["batch", "jobs.yaml", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{words[0]} " in printed.err
    assert sorted(here.rglob("*")) == before
