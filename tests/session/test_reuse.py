"""What an earlier output holds is taken over by a later plan, and what comes out is that of a run without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pods import Pod
from running import write_checkpoint

from surgery_jax import Observer, Options, PlanError, Problems, StorageError, convert, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.execute.observers import Pass
from surgery_jax.execute.report import Account, Report
from surgery_jax.execute.tasks import Tile
from surgery_jax.proof.receipt import read_receipt
from surgery_jax.session.batch import batch

DRAW = np.random.default_rng(3)
TENSORS = {f"h.{n}.w": DRAW.standard_normal((40, 50)).astype(np.float32) for n in range(8)}
HALVE = {"scale_": {"target": r"h\.[0-5]\.w", "by": 0.3}}
QUICK: dict[str, Any] = {"sync": False, "overwrite": True, "memory": "8MiB"}


@dataclass
class Counts(Observer):
    """How many components are computed, and how many of these are written."""

    num_computed: int = 0

    def pass_begins(self, work: Pass) -> None:
        self.num_computed += sum(len(task.segments) for task in work.tasks if isinstance(task, Tile))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGERY_JAX_CACHE", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS)
    return tmp_path


def made(steps: Sequence[Any], output: Any = "out", source: str = "m", **options: Any) -> tuple[Report, int]:
    counts = Counts()
    plan = plan_of({"inputs": [f"m::{source}"], "transforms": list(steps), "output": output})
    return run(plan, Options(**QUICK | options), observers=[counts]), counts.num_computed


def is_as_made_anew(steps: Sequence[Any], output: str, source: str = "m") -> bool:
    made(steps, "anew", source)
    return read_receipt(output).comparable == read_receipt("anew").comparable


EDITED = [
    {"scale_": {"target": r"h\.[0-4]\.w", "by": 0.3}},  # a pattern that matches less makes the others no other ones
    {"scale_": {"target": r"h\.5\.w", "by": 0.7}},
    {"move": {"from": r"h\.(.+)", "to": r"layers.\1"}},
]


@pytest.mark.parametrize("format", ["safetensors", "torch", "orbax", "dcp"])
def test_what_one_edited_step_does_not_reach_is_taken_over_from_any_format(format: str) -> None:
    made([HALVE], {"path": "old", "format": format})
    report, num_computed = made(EDITED, reuse="old")
    assert (report.tensors_reused, report.bytes_reused, num_computed) == (5, 5 * 8000, 1)
    assert report.reused == ("taken over from old: 5 of 6 computed tensors, 39.1 KiB",)
    assert is_as_made_anew(EDITED, "out")
    assert made(EDITED, "again", reuse="out")[1] == 0


@pytest.mark.parametrize("how", ["moved", "converted"])
def test_inputs_are_known_by_their_bytes_wherever_they_are(how: str) -> None:
    made([HALVE], "old")
    if how == "moved":
        shutil.move("m", "elsewhere")
    else:  # to a file with other bytes before the same tensors
        convert("m", "elsewhere", Options(sync=False, shard_size="20KB"))
    report, _ = made([HALVE], source="elsewhere", reuse="old")
    assert report.tensors_reused == (6 if how == "moved" else 0)
    assert is_as_made_anew([HALVE], "out", "elsewhere")


def test_a_changed_input_takes_along_only_what_comes_from_its_files() -> None:
    made([HALVE], {"path": "m", "shard": "20KB"})
    made([HALVE], "old")
    (first, *_) = sorted(Path("m").glob("*00001-of*"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    report, num_computed = made([HALVE], reuse="old")
    assert report.tensors_reused == 6 - num_computed and 0 < num_computed < 6
    assert is_as_made_anew([HALVE], "out")


def test_assertions_and_prints_see_what_is_taken_over_and_say_the_same() -> None:
    steps = [
        HALVE,
        {"assert": {"norm": {"of": ".+", "gt": 1}}},
        {"assert": {"finite": ".+"}},
        {"dump": {"target": r"h\.3\.w::[:1, :2]", "verbosity": "full"}},
        {"cast_": {"target": r"h\.7\.w", "to": "float16"}},
    ]
    made(steps, "old")
    report, _ = made(steps, reuse="old")
    assert report.tensors_reused == 7 and report.bytes_computed == 0
    plain, _ = made(steps, "anew")
    assert report.printed == plain.printed and "0." in plain.printed
    assert is_as_made_anew(steps, "out")
    wrong = [*steps, {"assert": {"range": {"of": r"h\.3\.w", "le": 0.0}}}]
    told = []
    for reuse in ("old", None):
        with pytest.raises(Problems) as failed:
            made(wrong, "never", reuse=reuse)
        told.append(str(failed.value))
    assert told[0] == told[1] and not Path("never").exists()


def test_what_comes_from_a_saved_version_that_is_there_is_made_of_it() -> None:
    steps: list[Any] = [HALVE, {"save": {"path": "middle", "alias": "m", "format": "safetensors", "shard": "1MB"}}]
    later = {"scale_": {"target": r"h\.0\.w", "by": 3.0}}
    made([*steps, later], "old")
    report, _ = made([*steps, {"scale_": {"target": r"h\.0\.w", "by": 5.0}}], "out", reuse="middle")
    assert report.tensors_reused == 6 + 5
    assert report.bytes_read == 8000
    made([*steps, {"scale_": {"target": r"h\.0\.w", "by": 5.0}}], "anew")
    assert read_receipt("out").comparable == read_receipt("anew").comparable


def test_what_is_drawn_without_a_seed_is_drawn_again() -> None:
    steps = [
        {"fill_": {"target": r"h\.0\.w", "mode": "rand"}},
        {"fill_": {"target": r"h\.1\.w", "mode": "rand", "seed": 3}},
    ]
    made(steps, "old")
    report, _ = made(steps, reuse="old")
    assert report.tensors_reused == 1


def test_an_output_takes_over_from_the_one_that_it_replaces_and_a_file_from_a_file() -> None:
    made([HALVE], "out")
    report, num_computed = made(EDITED, "out", reuse="out")
    assert (report.tensors_reused, num_computed) == (5, 1) and is_as_made_anew(EDITED, "out")
    made([HALVE], "one.safetensors", receipt_path="one.json")
    report, _ = made([HALVE], "two.safetensors", reuse="one.json")
    assert report.tensors_reused == 6
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


@pytest.mark.parametrize("output", ["fresh", "fresh.safetensors"])
def test_what_is_not_what_its_receipt_says_never_appears(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    made([HALVE], "old")
    (weights,) = Path("old").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4  # of h.7.w, which is copied from the input
    weights.write_bytes(data)
    made([HALVE], output, reuse="old")
    data[-2 * 8000 - 5] ^= 4
    weights.write_bytes(data)
    shutil.rmtree(output) if Path(output).is_dir() else Path(output).unlink()
    Path("plan.yaml").write_text(json.dumps({"inputs": ["m::m"], "transforms": [HALVE], "output": "fresh"}))
    assert main(["run", "plan.yaml", f"output={output}", "--reuse", "old", "--quiet", "--no-summary"]) == 3
    told = capsys.readouterr().err
    assert "1 of the tensors that were taken over are not what the receipt says" in told and "h.5.w" in told
    assert "surgery-jax verify old" in told and not list(Path().glob("*fresh*"))
    assert "--resume" not in told


class Broken(Observer):
    """Somebody breaks a run off that has written all."""

    def pass_ends(self, account: Account | None) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["same", "other", "none"])
def test_who_goes_on_takes_over_the_same_or_nothing(how: str) -> None:
    made([HALVE], "old")
    shutil.copytree("old", "other")
    (weights,) = Path("old").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-2 * 8000 - 5] ^= 4  # of h.5.w
    weights.write_bytes(data)
    plan = plan_of({"inputs": ["m::m"], "transforms": [HALVE], "output": "out"})
    with pytest.raises(KeyboardInterrupt):
        run(plan, Options(**QUICK, reuse="old"), observers=[Broken()])
    assert list(Path().glob(".out.surgery-*"))
    again = {"same": "old", "other": "other", "none": None}[how]
    if how == "same":
        with pytest.raises(StorageError, match="taken over are not what the receipt says"):
            run(plan, Options(**QUICK, resume=True, reuse=again))
        assert not list(Path().glob("*out*"))
        return
    report = run(plan, Options(**QUICK, resume=True, reuse=again))
    assert any("it takes over tensors from an earlier output" in told for told in report.leftovers)
    assert report.bytes_resumed == 0 and is_as_made_anew([HALVE], "out")


def test_what_was_taken_over_before_a_run_broke_off_is_not_read_again() -> None:
    made([HALVE], "old")
    plan = plan_of({"inputs": ["m::m"], "transforms": [HALVE], "output": "out"})
    with pytest.raises(KeyboardInterrupt):
        run(plan, Options(**QUICK, reuse="old"), observers=[Broken()])
    report = run(plan, Options(**QUICK, resume=True, reuse="old"))
    assert report.bytes_resumed > 60_000 and is_as_made_anew([HALVE], "out")


def test_what_cannot_be_taken_over_from_is_an_error_that_says_what_can() -> None:
    made([HALVE], "old")
    for missing in ("nothing", "m", "m/model.safetensors"):
        with pytest.raises(StorageError) as refused:
            made([HALVE], reuse=missing)
        assert "a receipt lies in the directory" in str(refused.value.hint)
    for options in ({"receipt": False}, {"digest": "none"}):
        with pytest.raises(PlanError, match="proven by its digests"):
            made([HALVE], reuse="old", **options)
    made([HALVE], "bare", digest="none")
    assert made([HALVE], reuse="bare")[0].reused == (
        "nothing is taken over from bare: its receipt has no keys of tensors",
    )
    made([HALVE], "one.safetensors", receipt_path="one.json")
    Path("one.safetensors").unlink()
    with pytest.raises(StorageError, match="does not lie beside it"):
        made([HALVE], reuse="one.json")


def test_other_versions_and_other_processors_make_it_again() -> None:
    product = {"einsum": {"from": "h.6.w", "and": ["h.7.w"], "to": "product", "equation": "i j, k j -> i k"}}
    steps = [HALVE, product]
    made(steps, "old")
    assert made(steps, reuse="old")[0].tensors_reused == 7
    for change, taken in (({"processor": "another"}, 6), ({"numpy": "1.0"}, 0), ({"surgery_jax": "0.0"}, 0)):
        edit_versions(Path("old"), change)
        report, _ = made(steps, reuse="old")
        assert report.tensors_reused == taken
        if taken:
            assert "; 1 more may differ between processors" in report.reused[0]
        else:
            assert f"other versions of {next(iter(change))}" in report.reused[0]


NO_JAX = """
import json, os, sys
import surgery_jax
from surgery_jax.proof.environment import device_kinds

report = surgery_jax.run(surgery_jax.load_plan("plan.yaml"), surgery_jax.Options(reuse="old", overwrite=True))
is_imported = "jax" in sys.modules
os.environ["JAX_PLATFORMS"] = "cpu,cpu"  # which JAX must be asked about
known = sorted(device_kinds())
print(json.dumps([report.tensors_reused, is_imported, known, "jax" in sys.modules]))
"""


def test_jax_is_not_asked_for_devices_where_there_can_only_be_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it for what is better done in NumPy there."""
    product = {"einsum": {"from": "h.6.w", "and": ["h.7.w"], "to": "product", "equation": "i j, k j -> i k"}}
    low = {"phlora_": {"target": r"h\.5\.w", "rank": 3}}
    made([HALVE, product], "old")
    plan = {"inputs": ["m::m"], "transforms": [HALVE, low, product], "output": "out"}
    Path("plan.yaml").write_text(json.dumps(plan))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    done = subprocess.run([sys.executable, "-c", NO_JAX], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [6, False, ["cpu cpu"], True]
    assert read_receipt("out").versions["devices"] == "1 × cpu cpu"
    assert is_as_made_anew([HALVE, low, product], "out")


def edit_versions(output: Path, change: dict[str, str]) -> None:
    told = json.loads((output / "surgery.receipt.json").read_text())
    told["predicate"]["runDetails"]["builder"]["version"] |= change
    (output / "surgery.receipt.json").write_text(json.dumps(told))


def test_jobs_of_a_batch_take_over_each_from_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [{"scale_": {"target": r"h\.[0-3]\.w", "by": 0.3}}, {"scale_": {"target": r"h\.4\.w", "by": "${by}"}}]
    jobs = {"plan": {"inputs": ["m::m"], "transforms": steps, "by": 1}, "set": {"output": "old/${job}"}}
    Path("jobs.yaml").write_text(json.dumps({**jobs, "matrix": {"by": [0.5, 0.7]}}))
    batch("jobs.yaml", Options(**QUICK))
    names = sorted(path.name for path in Path("old").iterdir())
    more = {**jobs, "matrix": {"by": [0.5, 0.7, 0.9]}, "set": {"output": "new/${job}"}}
    Path("more.yaml").write_text(json.dumps(more))
    assert main(["batch", "more.yaml", "--reuse", "old/${job}", "--overwrite", "--no-sync"]) == 0
    told = capsys.readouterr().err
    for name in names:
        assert f"taken over from old/{name}: 5 of 5 computed tensors" in told
        assert read_receipt(f"new/{name}").comparable == read_receipt(f"old/{name}").comparable
    assert told.count("it is not there") == 1


def test_processes_take_over_together(place: Path) -> None:
    made([HALVE], "old")
    plan = {"inputs": ["m::m"], "transforms": EDITED, "output": {"path": "out", "shard": "20KB"}}
    Path("plan.yaml").write_text(json.dumps(plan))
    with Pod(2, "plan.yaml", "--reuse", "old", cwd=place) as pod:
        pod.start()
        assert [ended.code for ended in pod.ends(within_s=90)] == [0, 0]
        assert "taken over from old: 5 of 6 computed tensors" in pod.said(0)
    assert is_as_made_anew(EDITED, "out")
