"""A batch that several processes share: the same outputs as by one, each job once, whatever becomes of a process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from running import write_checkpoint

from surgery_jax import BatchReport, Options, StorageError, batch
from surgery_jax.cli.main import main
from surgery_jax.language.jobs import load_jobs
from surgery_jax.session.finished import FinishedJobs, folder_of, key_of
from surgery_jax.session.standing import standing

PLAN = """\
tuned: none
inputs: [ "base::base.safetensors", "tuned::${tuned}" ]
transforms:
  - subtract_: { from: 'base::(.+)', to: 'tuned::\\1' }
  - add_: { from: 'base::(.+)', to: 'tuned::\\1' }
  - prefixes: { mode: remove, alias: base }
output: out
"""
JOBS = "plan: merge.yaml\nmatrix: { tuned: { glob: 'runs/*' } }\nset: { output: 'out/${job}.safetensors' }\n"
NAMES = [f"{number:02}" for number in range(12)]
FAST = Options(sync=False)
NOTES = Path("out/.surgery-jax.tasks")  # where the outputs go


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and twelve fine-tunes of it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    for path in ["base", *(f"runs/{name}" for name in NAMES)]:
        tensors = {"w": rng.normal(size=(5, 4)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}
        write_checkpoint(tmp_path / f"{path}.safetensors", tensors)
    (tmp_path / "merge.yaml").write_text(PLAN)
    (tmp_path / "jobs.yaml").write_text(JOBS)
    return tmp_path


def started(*words: str) -> subprocess.Popen[str]:
    """A batch in a process of its own."""
    command = [sys.executable, "-m", "surgery_jax", "batch", "jobs.yaml", "--no-sync", *words]
    known = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known)


def reports(processes: Sequence[subprocess.Popen[str]]) -> list[dict[str, object]]:
    """What processes with `--json` say at their end."""
    told = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        told.append(json.loads(out))
    return told


def done(report: dict[str, object], status: str = "done") -> list[str]:
    jobs = report["jobs"]
    assert isinstance(jobs, list)
    return [job["name"] for job in jobs if job["status"] == status]


def outputs(folder: str = "out") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def one_process() -> dict[str, bytes]:
    """What one process writes."""
    Path("single.yaml").write_text(JOBS.replace("out/", "single/"))
    batch("single.yaml", FAST)
    return outputs("single")


def statuses(report: BatchReport) -> dict[str, str]:
    return {job.name: job.status for job in report.jobs}


def key(name: str) -> str:
    """The key of a job's plan."""
    return next(key_of(job.plan(), FAST) for job in load_jobs("jobs.yaml") if job.name == name)


def left() -> list[str]:
    """What the tasks have left of claims."""
    return sorted(path.name for path in NOTES.glob("*claim*"))


def test_four_task_processes_write_what_one_process_writes(place):
    told = reports([started("--task", f"{number}/4", "--json") for number in range(1, 5)])
    assert sorted(name for report in told for name in done(report)) == NAMES
    assert [report["task"] for report in told] == ["1/4", "2/4", "3/4", "4/4"]
    assert [len(report["jobs"]) for report in told] == [3, 3, 3, 3]
    assert outputs() == one_process()
    assert left() == []
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys(NAMES, "skipped")


def test_a_task_reads_the_base_once(place):
    one = sum(path.stat().st_size for path in [place / "base.safetensors"]) - 8
    report = batch("jobs.yaml", FAST, task="2/4")
    assert statuses(report).keys() < set(NAMES)
    assert report.bytes_read < 4 * one  # the base, and three fine-tunes


def test_a_task_that_is_killed_is_run_again(place):
    process = started("--task", "1/2", "--together", "1")
    assert process.stderr is not None
    while "done: " not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    before = len(outputs())
    assert 1 <= before < 6
    both = reports([started("--task", f"{number}/2", "--json") for number in (1, 2)])
    assert len(done(both[0], "skipped")) >= before - 1  # one may have just ended
    assert sorted(name for report in both for name in done(report) + done(report, "skipped")) == NAMES
    assert outputs().keys() == one_process().keys()
    assert {name: data for name, data in outputs().items() if not name.startswith(".")} == one_process()
    assert left() == []


def test_two_processes_with_the_same_share_do_no_job_twice(place):
    told = reports([started("--task", "1/1", "--together", "1", "--json") for _ in range(2)])
    assert sorted(done(told[0]) + done(told[1])) == NAMES
    for report in told:
        assert sorted(done(report) + done(report, "skipped")) == NAMES
    assert outputs() == one_process()
    assert left() == []


def test_the_jobs_of_a_lost_machine_are_taken_over_when_its_lease_has_run_out(place):
    batch("jobs.yaml", FAST, task="1/2", only_check=True)
    folder = NOTES
    assert not folder.exists()
    folder.mkdir(parents=True)
    said = {"state": "held", "host": "node7", "process": 42, "boot": "another", "lease": 0.5, "why": ""}
    for name in NAMES[:3]:
        (folder / f"{key(name)}.1.claim").write_text(json.dumps(said))
    order: list[str] = []
    report = batch("jobs.yaml", FAST, task="1/1", tell=lambda job: order.append(job.name))
    assert statuses(report) == dict.fromkeys(NAMES, "done")
    assert sorted(order[-3:]) == NAMES[:3]  # the others did not wait for that
    assert left() == []


def test_a_job_that_another_process_has_taken_over_does_not_appear_twice(place):
    """A process that stood still while its jobs were computed."""
    folder = NOTES
    said = {"state": "held", "host": "node7", "process": 42, "boot": "another", "lease": 0.5, "why": ""}

    def lose(done: int, total: int) -> None:
        if (folder / f"{key('03')}.1.claim").exists():
            (folder / f"{key('03')}.2.claim").write_text(json.dumps(said))

    report = batch("jobs.yaml", FAST, task="1/1", progress=lose)
    assert statuses(report) == dict.fromkeys(NAMES, "done")  # the other never came to its end
    assert report.num_passes > 1
    assert outputs() == one_process()
    assert left() == []


def test_a_batch_that_is_not_shared_and_tasks_do_not_run_at_once(place):
    seen = []

    def other(task: str) -> Callable[[object], None]:
        def refused(job: object) -> None:
            with pytest.raises(StorageError, match="another batch is at work"):
                batch("jobs.yaml", FAST, task=task)
            seen.append(task)

        return refused

    batch("jobs.yaml", FAST, tell=other("1/1"))
    batch("jobs.yaml", FAST, again=True, task="1/2", tell=other("none"))
    assert len(seen) == 18


def test_a_failed_job_is_tried_again_by_the_next_run_and_tasks_see_what_one_process_has_done(place):
    good = Path("runs/04.safetensors").read_bytes()
    Path("runs/04.safetensors").write_bytes(b"nothing")
    assert statuses(batch("jobs.yaml", FAST))["04"] == "failed"
    assert statuses(batch("jobs.yaml", FAST, task="1/1")) == dict.fromkeys(NAMES, "skipped") | {"04": "failed"}
    assert left() == [f"{key('04')}.1.claim"]
    Path("runs/04.safetensors").write_bytes(good)
    assert statuses(batch("jobs.yaml", FAST, task="1/1"))["04"] == "done"
    assert left() == []


def test_shares_stay_as_they_are_when_inputs_change_between_the_starts_of_tasks(place):
    first = batch("jobs.yaml", FAST, task="1/3")
    tensors = {"w": np.zeros((500, 400), np.float32), "b": np.zeros(3, np.float32)}
    write_checkpoint(place / "runs/11.safetensors", tensors)
    others = [batch("jobs.yaml", Options(sync=False, overwrite=True), task=f"{number}/3") for number in (2, 3)]
    assert sorted(job.name for report in (first, *others) for job in report.jobs) == NAMES


def test_jobs_of_different_tasks_that_write_the_same_are_an_error_of_the_later_one(place):
    Path("jobs.yaml").write_text(JOBS.replace("${job}", "same"))
    told = [batch("jobs.yaml", FAST, task=f"{number}/3") for number in (1, 2, 3)]
    found = {job.name: job.status for report in told for job in report.jobs}
    assert found == dict.fromkeys(NAMES, "failed") | {"00": "done"}


def test_a_task_that_nobody_asked_for_by_number_is_told_of(place, monkeypatch, capsys):
    for name, value in {"ID": "11", "MIN": "10", "MAX": "13", "STEP": "1", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert main(["batch", "jobs.yaml", "--no-sync", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == "task 2/4, by SLURM_ARRAY_TASK_*: 3 of 12 jobs; --task none takes all\n"
    assert out.endswith("task 2/4, 3 jobs: 3 done\n")
    assert main(["batch", "jobs.yaml", "--no-sync", "--quiet", "--task", "none"]) == 0
    out, err = capsys.readouterr()
    assert (err, out.splitlines()[-1]) == ("", "12 jobs: 9 done, 3 skipped")


def test_an_indexed_job_must_say_how_many_there_are(place, monkeypatch, capsys):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert main(["batch", "jobs.yaml"]) == 2
    assert "--task auto/N" in capsys.readouterr().err
    assert main(["batch", "jobs.yaml", "--check", "--task", "auto/4"]) == 0
    out, err = capsys.readouterr()
    assert err == "task 4/4, by JOB_COMPLETION_INDEX: 3 of 12 jobs; --task none takes all\n"
    assert out.endswith("task 4/4, 3 jobs: 3 ready\n")
    assert not Path("jobs.yaml.done").exists()


def test_who_waits_says_for_whom(place):
    folder, said = NOTES, []
    folder.mkdir(parents=True)
    claim = folder / f"{key('05')}.1.claim"
    held = {"state": "held", "host": "node7", "process": 42, "boot": "another", "lease": 60, "why": ""}
    claim.write_text(json.dumps(held))

    def hear(text: str) -> None:
        said.append(text)
        claim.write_text(json.dumps(held | {"state": "left"}))

    assert not batch("jobs.yaml", FAST, task="1/1", notify=hear).has_failed
    assert said == ["waiting for jobs that others are at work on: 05, by process 42 on node7"]


def test_a_record_folder_of_something_else_is_refused(place):
    NOTES.mkdir(parents=True)
    (NOTES / f"{key('00')}.done").write_text("nothing")
    with (
        FinishedJobs("jobs.yaml.done", is_shared=True) as finished,
        pytest.raises(StorageError, match="not a record of finished jobs"),
    ):
        finished.of(NOTES / key("00"))


def test_the_summary_tells_what_is_done_failed_running_and_left(place):
    Path("runs/00.safetensors").write_bytes(b"nothing")
    seen = []

    def look(done: int, total: int) -> None:
        seen.append(standing("jobs.yaml").counts)
        if seen[-1]["done"]:
            raise KeyboardInterrupt

    assert standing("jobs.yaml").counts == {"done": 0, "failed": 0, "running": 0, "left": 12}
    with pytest.raises(KeyboardInterrupt):
        batch("jobs.yaml", FAST, task="1/1", together=4, progress=look)
    assert seen[0] == {"done": 0, "failed": 1, "running": 4, "left": 7}
    said = {"state": "held", "host": "node7", "process": 42, "boot": "another", "lease": 60, "why": ""}
    claim = NOTES / f"{key('11')}.1.claim"
    claim.write_text(json.dumps(said))
    told = standing("jobs.yaml")
    assert told.counts == {"done": 4, "failed": 1, "running": 1, "left": 6}
    jobs = {job.name: job for job in told.jobs}
    assert "runs/00.safetensors" in jobs["00"].why
    assert (jobs["01"].status, jobs["01"].outputs) == ("done", ("out/01.safetensors",))
    assert (jobs["11"].status, jobs["11"].by) == ("running", "process 42 on node7")
    os.utime(claim, (0, 0))
    assert (standing("jobs.yaml").jobs[-1].status, standing("jobs.yaml").jobs[-1].by) == ("left", "process 42 on node7")


def test_tasks_with_records_of_their_own_see_each_other_where_the_outputs_go(place):
    """Each has the job file, and so its record, on a disk of its own."""
    elsewhere = place / "local" / "run.done"
    elsewhere.parent.mkdir()
    seen: list[dict[str, str]] = []

    def other(job: object) -> None:
        if not seen:  # while the first half of the jobs is claimed, and has not ended
            seen.append({})
            found = standing("jobs.yaml", FAST, record=str(elsewhere)).counts
            assert found == {"done": 1, "failed": 0, "running": 5, "left": 6}
            seen[0] = statuses(batch("jobs.yaml", FAST, task="2/2", record=str(elsewhere)))

    first = statuses(batch("jobs.yaml", FAST, task="1/2", tell=other))
    assert first.keys() == set(NAMES[:6]) and set(first.values()) == {"done"}
    assert seen == [dict.fromkeys(NAMES[6:], "done")]
    again = [statuses(batch("jobs.yaml", FAST, task=f"{number}/2", record=str(elsewhere))) for number in (1, 2)]
    assert again[0] | again[1] == dict.fromkeys(NAMES, "skipped")
    assert outputs() == one_process()
    assert left() == []


@pytest.mark.parametrize(
    ("record", "outputs", "folder"),
    [
        ("run.done", ["out/a", "other/b"], "out/.surgery-jax.tasks"),
        ("run.done", ["a"], ".surgery-jax.tasks"),
        ("run.done", ["/a"], "/.surgery-jax.tasks"),
        ("run.done", ["gs://bucket/a"], "gs://bucket/.surgery-jax.tasks"),
        ("run.done", ["s3://bucket"], "run.done.tasks"),
        ("run.done", ["https://host/a", "out/b"], "out/.surgery-jax.tasks"),  # that place can only be read
        ("run.done", [], "run.done.tasks"),
        ("s3://bucket/run.done", ["out/a"], "s3://bucket/run.done.tasks"),
    ],
)
def test_tasks_meet_where_all_of_them_see(record, outputs, folder):
    assert str(folder_of(record, outputs)) == folder


def test_jobs_without_outputs_are_claimed_beside_the_record(place):
    steps = "transforms: [ { assert: { shape: { of: w, is: ['${rows}', 4] } } } ]"
    Path("merge.yaml").write_text(f"inputs: [ 'base::base.safetensors' ]\nrows: 0\n{steps}\n")
    Path("jobs.yaml").write_text("plan: merge.yaml\nmatrix: { rows: [5, 6] }\n")
    assert statuses(batch("jobs.yaml", FAST, task="1/1")) == {"5": "done", "6": "failed"}
    assert len(list(Path("jobs.yaml.done.tasks").glob("*.claim"))) == 1
    assert standing("jobs.yaml").counts["failed"] == 1
