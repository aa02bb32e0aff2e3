"""Many jobs of one plan: the same outputs as single runs, shared reading, isolation, and what is skipped on a rerun."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint, write_checkpoint

import surgery_jax
from surgery_jax import BatchReport, Options, StorageError, batch, load_plan, run
from surgery_jax.storage.proofs import PROOFS

MERGE = """\
tuned: none
weight: 0.5
inputs: [ "base::base.safetensors", "tuned::${tuned}" ]
transforms:
  - subtract_: { from: 'base::(.+)', to: 'tuned::\\1' }
  - scale_: { target: 'tuned::.+', by: '${weight}' }
  - add_: { from: 'base::(.+)', to: 'tuned::\\1' }
  - prefixes: { mode: remove, alias: base }
output: out
"""
FACTOR = """\
tuned: none
inputs: [ "base::base.safetensors", "tuned::${tuned}" ]
transforms:
  - subtract_: { from: 'base::(.+\\.weight)', to: 'tuned::\\1' }
  - phlora_: { target: 'tuned::.+\\.weight', rank: 2 }
  - prefixes: { mode: remove, alias: base }
output: out
"""
JOBS = "plan: merge.yaml\nmatrix: { tuned: { glob: 'runs/*' } }\nset: { output: 'out/${job}.safetensors' }\n"
FAST = Options(sync=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and four fine-tunes of it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    shapes = {"h.0.weight": (6, 5), "h.1.weight": (6, 5), "b": (7,)}
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_checkpoint(tmp_path / "base.safetensors", base)
    for name in "abcd":
        tuned = {key: value + rng.normal(size=value.shape).astype(np.float32) for key, value in base.items()}
        write_checkpoint(tmp_path / f"runs/{name}.safetensors", tuned)
    (tmp_path / "merge.yaml").write_text(MERGE)
    (tmp_path / "factor.yaml").write_text(FACTOR)
    (tmp_path / "jobs.yaml").write_text(JOBS)
    return tmp_path


def tensors(name: str) -> dict[str, np.ndarray]:
    return read_checkpoint(Path(name))


def spoil(name: str, value: float = np.nan) -> None:
    """Put a number into a fine-tune."""
    held = {key: array.copy() for key, array in tensors(f"runs/{name}.safetensors").items()}
    held["h.1.weight"][2, 3] = value
    write_checkpoint(Path(f"runs/{name}.safetensors"), held)


def statuses(report: BatchReport) -> dict[str, str]:
    return {job.name: job.status for job in report.jobs}


def outputs() -> list[str]:
    return sorted(path.name for path in Path("out").glob("[!.]*")) if Path("out").exists() else []


@pytest.mark.parametrize("together", [1, 3, 16])
def test_every_job_writes_what_a_single_run_of_the_plan_writes(place, together):
    report = batch("jobs.yaml", FAST, together=together)
    assert statuses(report) == dict.fromkeys("abcd", "done")
    assert report.num_passes == -(-4 // together)
    for name in "abcd":
        run(
            load_plan("merge.yaml", f"tuned=runs/{name}.safetensors", "output=single.safetensors"),
            Options(overwrite=True),
        )
        single = tensors("single.safetensors")
        found = tensors(f"out/{name}.safetensors")
        assert list(found) == list(single)
        for key, array in single.items():
            assert_same_bits(found[key], array, key)


def test_what_several_jobs_read_is_read_once_and_compiled_once(place):
    one = sum(array.nbytes for array in tensors("base.safetensors").values())
    assert batch("jobs.yaml", FAST).bytes_read == 5 * one
    report = batch("jobs.yaml", Options(sync=False, overwrite=True), again=True, together=1)
    assert (report.num_passes, report.bytes_read, report.num_compilations) == (4, 8 * one, 1)
    assert batch("jobs.yaml", Options(sync=False, overwrite=True), again=True).num_compilations == 1


def test_factorisations_of_many_jobs_are_compiled_once(place):
    write(place, JOBS.replace("merge", "factor"))
    report = batch("jobs.yaml", FAST)
    assert statuses(report) == dict.fromkeys("abcd", "done")
    assert report.num_compilations <= 1  # none where NumPy factors them
    base = tensors("base.safetensors")
    for name in "abcd":
        for key in ("h.0.weight", "h.1.weight"):
            u, s, vh = np.linalg.svd((tensors(f"runs/{name}.safetensors")[key] - base[key]).astype(np.float64))
            np.testing.assert_allclose(tensors(f"out/{name}.safetensors")[key], u[:, :2] * s[:2] @ vh[:2], atol=1e-5)


def test_jobs_whose_numbers_only_compare_equal_get_their_own(place):
    (place / "scale.yaml").write_text(
        'by: 1\ninputs: [ "base.safetensors" ]\noutput: o\ntransforms:\n'
        "  - scale_: { target: 'h.+', by: '${by}' }\n  - fill_: { target: b, mode: constant, value: '${by}' }\n"
    )
    write(place, "plan: scale.yaml\nmatrix: { by: ['0.0', '-0.0'] }\nset: { output: 'out/${job}.safetensors' }\n")
    batch("jobs.yaml", FAST)
    base = tensors("base.safetensors")
    for by in ("0.0", "-0.0"):
        found = tensors(f"out/{by}.safetensors")
        assert_same_bits(found["h.0.weight"], base["h.0.weight"] * np.float32(by))
        assert_same_bits(found["b"], np.full_like(base["b"], float(by)))


def write(place: Path, text: str) -> None:
    (place / "jobs.yaml").write_text(text)


@pytest.mark.parametrize("together", [1, 16])
def test_a_job_that_fails_does_not_stop_the_others(place, together):
    write(place, JOBS.replace("merge", "factor"))
    spoil("b")
    report = batch("jobs.yaml", FAST, together=together)
    assert statuses(report) == {"a": "done", "b": "failed", "c": "done", "d": "done"}
    assert report.has_failed
    (failed,) = (job for job in report.jobs if job.status == "failed")
    assert "NaN or infinity" in str(failed.error)
    assert (failed.outputs, failed.num_tensors, failed.bytes_written) == ((), 0, 0)
    assert failed.as_json()["problems"][0]["kind"] == "AssertionFailed"
    assert outputs() == [f"{name}.safetensors" for name in "acd"]


def test_a_failed_assertion_is_that_of_its_job_alone_and_costs_no_second_pass(place):
    first = "transforms:\n  - dump: { target: 'tuned::b' }\n"
    first += "  - assert: { equal: { left: 'tuned::.+', right: 'base::\\g<0>', eps: 50 } }\n"
    steps = MERGE.replace("transforms:\n", first)
    (place / "merge.yaml").write_text(steps)
    spoil("c", 1000.0)
    report = batch("jobs.yaml", FAST)
    assert statuses(report) == {"a": "done", "b": "done", "c": "failed", "d": "done"}
    assert report.num_passes == 1
    assert "at [2, 3]" in str(report.jobs[2].error)
    assert [job.printed for job in report.jobs] == ["└── b  shape=[7]"] * 4


def test_a_job_that_headers_refuse_fails_before_the_others_run(place):
    write_checkpoint(place / "runs/b.safetensors", {"other": np.zeros(3, np.float32)})
    (place / "runs/c.safetensors").write_bytes(b"not a checkpoint")
    report = batch("jobs.yaml", FAST)
    assert statuses(report) == {"a": "done", "b": "failed", "c": "failed", "d": "done"}
    assert [type(job.error).__name__ for job in report.jobs[1:3]] == ["Problems", "Problems"]


def test_with_stop_on_failure_nothing_more_is_started(place):
    (place / "runs/b.safetensors").write_bytes(b"not a checkpoint")
    report = batch("jobs.yaml", FAST, stop_on_failure=True)
    assert statuses(report) == {"a": "not run", "b": "failed", "c": "not run", "d": "not run"}
    report = batch("jobs.yaml", FAST, stop_on_failure=True, together=1)
    assert statuses(report) == {"a": "done", "b": "failed", "c": "not run", "d": "not run"}


def test_only_checking_runs_nothing_and_leaves_nothing(place):
    (place / "runs/b.safetensors").write_bytes(b"not a checkpoint")
    before = sorted(place.rglob("*"))
    assert statuses(batch("jobs.yaml", FAST, only_check=True)) == {
        "a": "ready",
        "b": "failed",
        "c": "ready",
        "d": "ready",
    }
    assert sorted(place.rglob("*")) == before


def test_adapters_whose_ranks_depend_on_the_data_are_extracted_as_by_single_runs(place):
    (place / "extract.yaml").write_text(
        'tuned: none\ninputs: [ "base::base.safetensors", "tuned::${tuned}" ]\ntransforms:\n'
        "  - lora_extract: { base: 'base::(h.+)', tuned: 'tuned::\\1', to: adapter, energy: 0.8 }\n"
        "output: { path: out, format: peft }\n"
    )
    text = JOBS.replace("merge", "extract").replace("output: 'out/${job}.safetensors'", "output.path: 'out/${job}'")
    write(place, text)
    spoil("d", 1e6)
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys("abcd", "done")
    for name in "abcd":
        run(load_plan("extract.yaml", f"tuned=runs/{name}.safetensors", "output.path=one"), Options(overwrite=True))
        files, own = (
            {path.name: path.read_bytes() for path in Path(place).iterdir() if path.name not in PROOFS}
            for place in ("one", f"out/{name}")
        )
        assert own == files
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys("abcd", "skipped")
    spoil("b")
    again = Options(sync=False, overwrite=True)
    assert statuses(batch("jobs.yaml", again)) == {"a": "skipped", "b": "failed", "c": "skipped", "d": "skipped"}
    assert statuses(batch("jobs.yaml", again, again=True)) == {"a": "done", "b": "failed", "c": "done", "d": "done"}


# ---------------------------------------------------------------------------------------------------------- reruns


def test_a_rerun_runs_only_what_is_not_finished(place):
    spoil("b")
    write(place, JOBS.replace("merge", "factor"))
    assert statuses(batch("jobs.yaml", FAST))["b"] == "failed"
    times = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    spoil("b", 1.0)
    assert statuses(batch("jobs.yaml", FAST)) == {"a": "skipped", "b": "done", "c": "skipped", "d": "skipped"}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys("abcd", "skipped")


def test_a_job_whose_input_plan_or_output_changed_is_not_finished(place):
    batch("jobs.yaml", FAST)
    spoil("a", 2.0)
    os.utime("out/b.safetensors", ns=(0, 0))
    Path("out/c.safetensors").unlink()
    again = Options(sync=False, overwrite=True)
    assert statuses(batch("jobs.yaml", again)) == {"a": "done", "b": "done", "c": "done", "d": "skipped"}
    os.utime("base.safetensors", ns=(0, 0))
    assert statuses(batch("jobs.yaml", again)) == dict.fromkeys("abcd", "done")
    (place / "merge.yaml").write_text(MERGE.replace("0.5", "0.25"))
    assert statuses(batch("jobs.yaml", again)) == dict.fromkeys("abcd", "done")
    (place / "merge.yaml").write_text("# a comment\n" + MERGE.replace("0.5", "0.25"))
    assert statuses(batch("jobs.yaml", again)) == dict.fromkeys("abcd", "skipped")


def test_a_nested_plan_belongs_to_the_job(place):
    (place / "steps.yaml").write_text("- scale_: { target: 'tuned::.+', by: 2 }\n")
    (place / "merge.yaml").write_text(MERGE.replace("  - scale_", "  - execute: { path: steps.yaml }\n  - scale_"))
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys("abcd", "done")
    (place / "steps.yaml").write_text("- scale_: { target: 'tuned::.+', by: 31 }\n")
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys("abcd", "failed")


def test_an_output_that_is_there_is_not_replaced_unless_that_is_asked_for(place):
    batch("jobs.yaml", FAST, record="elsewhere.done")
    report = batch("jobs.yaml", FAST)
    assert statuses(report) == dict.fromkeys("abcd", "failed")
    assert "--overwrite" in str(report.jobs[0].error)
    assert statuses(batch("jobs.yaml", FAST, record="elsewhere.done")) == dict.fromkeys("abcd", "skipped")


def test_a_job_that_changes_its_input_in_place_is_not_applied_twice(place):
    write(place, "plan: { inputs: ['model::x'], transforms: [{ scale_: { target: b, by: 2 } }] }\n"
        "jobs: [ { set: { 'inputs[0]': 'model::runs/a.safetensors', output: runs/a.safetensors } } ]\n")  # fmt: skip
    before = tensors("runs/a.safetensors")["b"]
    options = Options(sync=False, overwrite=True)
    assert [batch("jobs.yaml", options).jobs[0].status for _ in range(3)] == ["done", "skipped", "skipped"]
    np.testing.assert_array_equal(tensors("runs/a.safetensors")["b"], before * 2)


def test_jobs_may_be_renamed_and_moved_in_the_file_and_stay_finished(place):
    one, two = (
        "{ name: a, set: { tuned: runs/a.safetensors, output: x } }",
        "{ set: { tuned: runs/b.safetensors, output: y } }",
    )
    write(place, f"plan: merge.yaml\njobs: [ {one}, {two} ]\n")
    batch("jobs.yaml", FAST)
    write(place, f"plan: merge.yaml\njobs: [ {two}, {one.replace('name: a', 'name: first')} ]\n")
    assert [job.status for job in batch("jobs.yaml", FAST).jobs] == ["skipped", "skipped"]


def test_a_new_shard_in_an_input_directory_is_noticed(place):
    write_checkpoint(place / "runs/e/one.safetensors", tensors("runs/a.safetensors"))
    write(place, "plan: { inputs: [ 'model::runs/e' ], output: x }\njobs: [ {} ]\n")
    assert [batch("jobs.yaml", FAST).jobs[0].status for _ in range(2)] == ["done", "skipped"]
    write_checkpoint(place / "runs/e/two.safetensors", {"more": np.zeros(2, np.float32)})
    assert batch("jobs.yaml", FAST).jobs[0].status == "failed"


def test_a_line_that_a_killed_batch_did_not_finish_is_forgotten(place):
    batch("jobs.yaml", FAST)
    record = place / "jobs.yaml.done"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:3]) + lines[3][:30])
    Path("out/d.safetensors").unlink()
    assert statuses(batch("jobs.yaml", FAST)) == {"a": "skipped", "b": "skipped", "c": "skipped", "d": "done"}
    assert [json.loads(line)["name"] for line in record.read_text().splitlines()] == list("abcd")


@pytest.mark.parametrize(
    "content",
    [b"x", b"[]\n", b"{}\n", b'{"job": 3, "inputs": [], "outputs": {}}\n', b'{"job": "a", "inputs": {"x": [[1, 2]]}}\n',
     b"\x80\x02}q\x00.", b"[" * 10**5 + b"\n", b'{"job": "a", "inputs": {}, "outputs": {"x": [["y", 1]]}}\n'],
)  # fmt: skip
def test_a_record_that_is_something_else_is_refused_and_stays_as_it_is(place, content):
    record = place / "mine"
    record.write_bytes(content)
    with pytest.raises(StorageError, match="not a record of finished jobs"):
        batch("jobs.yaml", FAST, record="mine")
    assert record.read_bytes() == content
    assert outputs() == []


def test_a_record_in_a_place_that_cannot_be_written_is_refused_before_anything_runs(place):
    for record in ("nowhere/record", str(place)):
        with pytest.raises(StorageError):
            batch("jobs.yaml", FAST, record=record)
    assert outputs() == []


def test_jobs_that_cannot_be_recorded_fail_and_leave_nothing(place):
    write(place, "plan: { tuned: x, inputs: [ '${tuned}' ] }\n" + JOBS.partition("\n")[2])
    record = place / "jobs.yaml.done"
    record.write_text(json.dumps({"job": "old", "name": "x" * 5000, "inputs": {}, "outputs": {}}) + "\n")
    before, limits = record.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        report = batch("jobs.yaml", FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert statuses(report) == dict.fromkeys("abcd", "failed")
    assert "cannot write the record of finished jobs" in str(report.jobs[0].error)
    assert not Path("out").exists()
    assert statuses(batch("jobs.yaml", FAST)) == dict.fromkeys("abcd", "done")


def test_two_batches_of_one_record_do_not_run_at_once(place):
    seen = []

    def second(job: surgery_jax.JobReport) -> None:
        with pytest.raises(StorageError, match="another batch is at work"):
            batch("jobs.yaml", FAST)
        seen.append(job.name)

    batch("jobs.yaml", FAST, tell=second)
    assert len(seen) == 4


# ----------------------------------------------------------------------------------------------- jobs and each other


def test_jobs_that_write_the_same_output_are_an_error_of_the_later_one(place):
    write(place, JOBS.replace("${job}", "same"))
    report = batch("jobs.yaml", FAST)
    assert statuses(report) == {"a": "done", "b": "failed", "c": "failed", "d": "failed"}
    assert "job 'b' writes what job 'a' writes: out/same.safetensors" in str(report.jobs[1].error)


def test_jobs_that_read_what_others_write_are_an_error(place):
    entry = "{{ name: {}, set: {{ tuned: {}, output: {} }} }}"
    first = entry.format("first", "runs/a.safetensors", "runs/b.safetensors")
    second = entry.format("second", "runs/b.safetensors", "x")
    for order in ([first, second], [second, first]):
        write(place, f"plan: merge.yaml\njobs: [ {', '.join(order)} ]\n")
        report = batch("jobs.yaml", Options(sync=False, overwrite=True), only_check=True)
        assert [job.status for job in report.jobs] == ["ready", "failed"]
        assert "hint" not in str(report.jobs[1].error)
        assert ("reads what" if order[0] is first else "writes what") in str(report.jobs[1].error)


def test_an_interrupted_batch_leaves_nothing_half_written_and_keeps_what_is_finished(place):
    def interrupt(done: int, total: int) -> None:
        if len(outputs()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch("jobs.yaml", FAST, together=2, progress=interrupt)
    left = sorted(path.name for path in Path("out").iterdir())
    hidden = [name for name in left if ".surgery-" in name]  # what is finished of the others, for --resume
    assert [name.split(".surgery-")[0] for name in hidden] == [".c.safetensors", ".d.safetensors"]
    assert outputs() == ["a.safetensors", "b.safetensors"] == [name for name in left if name not in hidden]
    assert statuses(batch("jobs.yaml", FAST)) == {"a": "skipped", "b": "skipped", "c": "done", "d": "done"}
