"""Inputs that change between their header and the end of the work: nothing comes of them but an error."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running import Bench, read_checkpoint, write_checkpoint
from storing import sample, write

from surgery_jax import Options, batch, compile_plan, convert, diff, inspect, plan_of, run, spectrum
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # importing PyTorch warns

QUICK = Options(sync=False)
RNG = np.random.default_rng(7)
TENSORS = {name: RNG.standard_normal((48, 64)).astype(np.float32) for name in ("a", "b", "c.d")}


def replaced(path: Path) -> None:
    """Another file of the same bytes: as a program saves that writes beside and renames."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def overwritten(path: Path) -> None:
    """Other bytes in the same file, with the old time of change."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x3f")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def longer(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


def gone(path: Path) -> None:
    path.unlink()


WAYS = [replaced, overwritten, longer, gone]


def refused(work: Callable[[], object], path: Path) -> str:
    with pytest.raises(StorageError, match="after its header was read") as caught:
        work()
    how = "changed" if path.exists() else "was lost"
    assert f"{how} after its header was read" in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(path)
    return str(caught.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [[], [{"scale_": {"target": ".+", "by": 2}}]], ids=["moved", "computed"])
def test_an_input_that_changed_before_its_data_were_read_is_refused(
    way: Callable[[Path], None], steps: list[object], tmp_path: Path
) -> None:
    bench = Bench(tmp_path, m=TENSORS)
    plan = plan_of(bench.plan(steps))
    compiled = compile_plan(plan, QUICK)
    way(tmp_path / "m.safetensors")
    told = refused(lambda: run(plan, QUICK, compiled=compiled), tmp_path / "m.safetensors")
    assert {replaced: "another file", overwritten: "same file", longer: "bytes, after", gone: "No such file"}[
        way
    ] in told
    assert ("bring it back" in told) == (way is gone)
    assert not any("out" in name for name in bench.left())


@pytest.mark.parametrize("way", WAYS)
def test_an_input_that_changes_while_it_is_read_is_refused(way: Callable[[Path], None], tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=TENSORS)
    changed: list[int] = []

    def change(done: int, total: int) -> None:
        if done == total and not changed:  # all has been read, and nothing has appeared yet
            changed.append(done)
            way(tmp_path / "m.safetensors")

    plan = plan_of(bench.plan([{"scale_": {"target": "a", "by": 2}}]))
    refused(lambda: run(plan, QUICK, progress=change), tmp_path / "m.safetensors")
    assert changed
    # one that is gone may come back, and then a run goes on with what was made of it
    assert [name for name in bench.left() if "out" in name and not (way is gone and ".surgery-" in name)] == []


def test_an_output_may_still_be_written_over_its_own_input(tmp_path: Path) -> None:
    bench = Bench(tmp_path, out=TENSORS)
    for factor in (2, 4):
        bench.report([{"scale_": {"target": "a", "by": 2}}])
        np.testing.assert_array_equal(read_checkpoint(bench.out)["a"], TENSORS["a"] * factor)


def test_a_plan_that_was_compiled_before_its_own_output_replaced_its_input_does_not_run_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, out=TENSORS)
    plan = plan_of(bench.plan([{"scale_": {"target": "a", "by": 2}}]))
    options = Options(sync=False, overwrite=True)
    compiled = compile_plan(plan, options)
    run(plan, options, compiled=compiled)
    refused(lambda: run(plan, options, compiled=compiled), bench.out)
    np.testing.assert_array_equal(read_checkpoint(bench.out)["a"], TENSORS["a"] * 2)


def test_the_pass_that_answers_questions_and_the_last_one_see_the_same_files(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base.safetensors", {"q_proj.weight": TENSORS["a"]})
    tuned = write_checkpoint(tmp_path / "tuned.safetensors", {"q_proj.weight": TENSORS["a"] + TENSORS["b"]})
    steps = [{"lora_extract": {"base": "base::(.+)", "tuned": r"tuned::\1", "to": "lora", "energy": 0.9}}]
    plan = plan_of({"inputs": [f"base::{base}", f"tuned::{tuned}"], "transforms": steps, "output": str(tmp_path / "o")})
    passes: list[int] = []

    def change(done: int, total: int) -> None:
        if done == total and not passes:  # the first pass has read all
            passes.append(done)
            overwritten(tuned)

    refused(lambda: run(plan, QUICK, progress=change), tuned)
    assert not (tmp_path / "o").exists()


def test_checks_and_tables_of_changed_files_are_refused(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / f"{name}.safetensors", TENSORS) for name in "lr"]
    left, right = (open_checkpoint(str(path)) for path in paths)
    overwritten(paths[1])
    refused(lambda: diff(left, right, QUICK), paths[1])
    refused(lambda: inspect(right, QUICK, stats=True), paths[1])
    refused(lambda: spectrum(left, right, QUICK), paths[1])
    refused(lambda: diff(right, open_checkpoint(str(paths[1])), QUICK), paths[1])
    assert inspect(left, QUICK, stats=True).num_parameters == 3 * 48 * 64


def test_a_job_whose_input_changes_fails_and_the_others_are_done(tmp_path: Path) -> None:
    for name in "ab":
        write_checkpoint(tmp_path / f"{name}.safetensors", TENSORS)
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text(
        "plan: { transforms: [{ scale_: { target: a, by: 2 } }] }\n"
        f"set: {{ output: '{tmp_path}/out/${{job}}.safetensors' }}\n"
        f"jobs: [{{ name: a, set: {{ inputs: ['{tmp_path}/a.safetensors'] }} }},"
        f" {{ name: b, set: {{ inputs: ['{tmp_path}/b.safetensors'] }} }}]\n"
    )
    changed: list[int] = []

    def change(done: int, total: int) -> None:
        if not changed:
            changed.append(done)
            overwritten(tmp_path / "b.safetensors")

    found = {job.name: job for job in batch(str(jobs), QUICK, progress=change).jobs}
    assert (found["a"].status, found["b"].status) == ("done", "failed")
    assert "b.safetensors: the file changed" in str(found["b"].error)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.safetensors"]


def directory_of(path: Path, suffix: str) -> Path:
    return max((file for file in path.rglob("*") if file.is_file() and file.name.endswith(suffix)), key=str)


@pytest.mark.parametrize(
    ("output", "format", "changes"),
    [
        ("m.pt", None, ".pt"),
        ("m.msgpack", None, ".msgpack"),
        ("m", "torch", ".bin"),
        ("m", "dcp", ".distcp"),
        ("m", "dcp", ".metadata"),
        ("m", "orbax", "0.0"),
        ("m", "orbax", ".zarray"),
        ("m", "orbax", "_METADATA"),
        ("m", "safetensors", ".index.json"),
    ],
)
def test_the_files_of_every_format_are_remembered(
    output: str, format: str | None, changes: str, tmp_path: Path
) -> None:
    if format == "dcp":
        pytest.importorskip("torch")
    source = write_checkpoint(tmp_path / "source.safetensors", TENSORS)
    convert(source, tmp_path / output, QUICK, format=format)
    found = open_checkpoint(str(tmp_path / output))
    file = directory_of(tmp_path / output, changes) if (tmp_path / output).is_dir() else tmp_path / output
    longer(file)
    refused(lambda: inspect(found, QUICK, stats=True), file)


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_what_is_decoded_is_the_file_whose_header_was_read(kind: str, tmp_path: Path) -> None:
    arrays = {"w": np.asfortranarray(TENSORS["a"]), "v": TENSORS["b"]}
    path = tmp_path / f"m.{'npz' if kind == 'npz' else 'pt'}"
    if kind == "npz":
        np.savez_compressed(path, **arrays)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(array).T for name, array in arrays.items()}, path)
    found = open_checkpoint(str(path))
    assert inspect(found, QUICK, stats=True).num_parameters == 2 * 48 * 64
    path.write_bytes(b"PK")  # what a reader says of this is not the cause
    refused(lambda: inspect(found, QUICK, stats=True), path)


def test_a_single_tensor_of_a_file_is_remembered(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(TENSORS["a"]))
    bench = Bench(tmp_path, m=TENSORS)
    plan = plan_of(bench.plan([{"load": {"path": str(tmp_path / "x.npy"), "to": "x"}}]))
    compiled = compile_plan(plan, QUICK)
    overwritten(tmp_path / "x.npy")
    refused(lambda: run(plan, QUICK, compiled=compiled), tmp_path / "x.npy")


def test_arrays_of_a_changed_file_are_not_given_out(tmp_path: Path) -> None:
    from surgery_jax import to_flax

    write(tmp_path / "m.safetensors", {"w": sample("float32", 3)})
    found = open_checkpoint(str(tmp_path / "m.safetensors"))
    overwritten(tmp_path / "m.safetensors")
    refused(lambda: to_flax(found), tmp_path / "m.safetensors")
