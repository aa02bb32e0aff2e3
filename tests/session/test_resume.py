"""A run that did not come to its end is gone on with, and gives the bits of one that was never stopped."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pods import wait_for
from rebooting import reboot
from running import write_checkpoint
from safetensors.numpy import load_file

from surgery_jax import Observer, Options, Problems, load_plan, plan_of, run
from surgery_jax.core.errors import StorageError
from surgery_jax.execute.observers import Pass
from surgery_jax.execute.report import Report
from surgery_jax.execute.tasks import Task
from surgery_jax.session.batch import batch
from surgery_jax.storage.boots import boot_of
from surgery_jax.storage.clearing import cleared
from surgery_jax.storage.journal import Finished, Journal, finished, framed, rewrite, unframed
from surgery_jax.storage.stages import Stage

DRAW = np.random.default_rng(5)
TENSORS = {f"w.{n}": DRAW.standard_normal((160 + 8 * n, 256)).astype(np.float32) for n in range(12)}
SCALE = {"scale_": {"target": r"w\.\d*[02468]", "by": 0.3}}
MOVE = {"move": {"from": r"w\.(\d+)", "to": r"layers.\1.w"}}


class Stop(Observer):
    """Breaks a run off when so many tasks are done, as somebody does who interrupts it."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.num_done = 0
        self.num_left = 0

    def pass_begins(self, work: Pass) -> None:
        self.num_left = len(work.tasks)

    def task_done(self, task: Task) -> None:
        self.num_done += 1
        if self.num_done == self.after:
            raise KeyboardInterrupt


def comparable(path: Path) -> bytes:
    """The content of a file; of a receipt the digest over all that honest runs share."""
    if path.name != "surgery.receipt.json":
        return path.read_bytes()
    products = json.loads(path.read_text())["predicate"]["runDetails"]["byproducts"]
    (found,) = (one["digest"]["sha256"] for one in products if one["name"] == "surgery.comparable")
    return str(found).encode()


class Place:
    """A folder with a checkpoint, and plans that are run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        write_checkpoint(root / "m.safetensors", TENSORS)

    def plan(self, steps: Sequence[Any], **output: Any) -> Any:
        path = str(self.root / output.pop("path", "out"))
        inputs = [f"model::{self.root / 'm.safetensors'}"]
        return plan_of({"inputs": inputs, "transforms": list(steps), "output": {"path": path, **output}})

    def stop(self, plan: Any, after: int, **options: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(plan, Options(**{"workers": 2, "memory": "2MiB", **options}), observers=[Stop(after)])
        assert len(self.hidden) == 1

    def resume(self, plan: Any, **options: Any) -> tuple[Report, Stop]:
        counts = Stop()
        report = run(plan, Options(**{"workers": 2, "resume": True, **options}), observers=[counts])
        assert not self.hidden
        return report, counts

    @property
    def hidden(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if ".surgery-" in path.name)

    def files(self, name: str = "out") -> dict[str, bytes]:
        """Of an output, which is removed: of receipts only what two runs must have in common."""
        out = self.root / name
        paths = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.root)): comparable(path) for path in paths}
        subprocess.run(["rm", "-r", str(out)], check=True)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


OUTPUTS: dict[str, dict[str, Any]] = {
    "shards": {"shard": "600KB"},
    "file": {"path": "out.safetensors"},
    "torch": {"path": "out.pt"},
    "flax": {"path": "out.msgpack"},
    "orbax": {"format": "orbax"},
    "orbax-zstd": {"format": "orbax", "options": {"compression": "zstd", "chunk": "128KB"}},
    "orbax-mesh": {
        "format": "orbax",
        "options": {"mesh": {"x": 4}, "shard": {".*": [None, "x"]}, "chunk": "32KB", "item": "items"},
    },
    "orbax-store": {"format": "orbax", "options": {"ocdbt": True, "zarr": 3}},
}
ENCODED = ("orbax-zstd", "orbax-mesh")


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_run_that_was_stopped_is_gone_on_with_under_other_budgets(place: Place, kind: str, after: int) -> None:
    plan = place.plan([SCALE, MOVE], **OUTPUTS[kind])
    name = OUTPUTS[kind].get("path", "out")
    whole = run(plan, Options(workers=2))
    expected = {path: data for path, data in place.files(name).items() if "_CHECKPOINT_METADATA" not in path}
    place.stop(plan, after, memory="3MiB", sync=after == 1)
    report, _ = place.resume(plan, workers=1, memory="64MiB")
    found = {path: data for path, data in place.files(name).items() if "_CHECKPOINT_METADATA" not in path}
    assert found == expected
    again, once = (one.bytes_moved + one.bytes_computed for one in (report, whole))
    assert again + report.bytes_resumed == once
    assert 0 < report.bytes_resumed or kind in ENCODED  # a compressed chunk counts when it is whole


@pytest.mark.parametrize("seed", range(6))
def test_what_was_finished_is_not_done_again(place: Place, seed: int) -> None:
    draw = random.Random(seed)
    plan = place.plan([SCALE, MOVE], shard="600KB")
    run(plan, Options())
    expected = place.files()
    total = done = 0
    for _ in range(2):  # stopped again and again
        stop = Stop(draw.randrange(1, 3))
        with pytest.raises(KeyboardInterrupt):
            run(plan, Options(workers=2, memory="2MiB", resume=True), observers=[stop])
        total = total or stop.num_left
        assert stop.num_left <= total - done  # those in flight are finished, too
        done = total - stop.num_left + stop.num_done
    _, counts = place.resume(plan, memory="2MiB", overwrite=True)
    assert counts.num_left <= total - done
    assert place.files() == expected


def test_a_plan_that_has_replaced_its_own_input_is_applied_again_only_without_resume(place: Place) -> None:
    write_checkpoint(place.root / "own" / "model.safetensors", TENSORS)
    other = str(place.root / "m.safetensors")
    content = {
        "inputs": [f"own::{place.root / 'own'}", f"other::{other}"],
        "transforms": [{"scale_": {"target": r"own::w\.3", "by": 0.5}}, {"delete": {"target": "other::.+"}}],
        "output": str(place.root / "own"),
    }
    plan, again = plan_of(content), {"resume": True, "overwrite": True}

    def factor() -> float:
        (found,) = (place.root / "own").glob("model-*.safetensors")
        return float(np.abs(load_file(found)["w.3"] / TENSORS["w.3"]).max())

    run(plan, Options(overwrite=True))
    for _ in range(2):
        report = run(plan, Options(**again))
        assert factor() == 0.5 and report.num_tensors == 0 and "was applied to it" in report.leftovers[0]
    run(plan, Options(overwrite=True))
    assert factor() == 0.25
    write_checkpoint(Path(other), {name: array + 1 for name, array in TENSORS.items()})
    run(plan, Options(**again))
    assert factor() == 0.125  # with another input it is another run
    (weights,) = (place.root / "own").glob("model-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    run(plan, Options(**again))
    assert factor() == 0.0625  # somebody has put another model there
    run(plan_of(content | {"transforms": content["transforms"][:1]}), Options(**again))
    assert factor() == 0.03125


def test_what_was_asked_for_beside_a_plan_that_was_applied_is_not_passed_over(place: Place) -> None:
    write_checkpoint(place.root / "own" / "model.safetensors", TENSORS)
    own = str(place.root / "own")
    plan = plan_of({"inputs": [f"own::{own}"], "transforms": [SCALE], "output": own})
    run(plan, Options(overwrite=True))
    made = comparable(place.root / "own" / "surgery.receipt.json")
    for more in ({"receipt_path": str(place.root / "told.json")}, {"shard_size": "500KB"}):
        with pytest.raises(StorageError, match="applied to it already, but not with this receipt"):
            run(plan, Options(overwrite=True, resume=True, **more))
    assert comparable(place.root / "own" / "surgery.receipt.json") == made


@pytest.mark.parametrize("save", [[], [{"save": {"path": "first", "alias": "model", "shard": "1MB"}}]])
def test_what_receipts_prove_to_be_made_is_not_made_again_with_resume(
    place: Place, save: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    plan = place.plan([*save, SCALE])
    told = str(place.root / "told.json")
    run(plan, Options(receipt_path=told))
    before = {path: path.stat().st_ino for path in place.root.rglob("*") if path.is_file()}
    report = run(plan, Options(receipt_path=told, resume=True))
    assert "its receipt says that this plan made it" in report.leftovers[0] and not report.accounting
    assert {path: path.stat().st_ino for path in place.root.rglob("*") if path.is_file()} == before
    for name in ("out/surgery.tensors.json", "told.json"):
        kept = (place.root / name).read_bytes()
        (place.root / name).unlink()
        with pytest.raises((StorageError, Problems), match="already"):
            run(plan, Options(receipt_path=told, resume=True))
        (place.root / name).write_bytes(kept)
    with pytest.raises((StorageError, Problems), match="already"):
        run(place.plan([*save, SCALE, MOVE]), Options(receipt_path=told, resume=True))
    write_checkpoint(place.root / "m.safetensors", {name: array + 1 for name, array in TENSORS.items()})
    with pytest.raises((StorageError, Problems), match="already"):
        run(plan, Options(receipt_path=told, resume=True))


LOOKED_AT = [SCALE, {"assert": {"norm": {"of": r"w\.\d+", "gt": 1}}}, {"assert": {"finite": ".+"}}, MOVE]


def test_what_assertions_have_measured_is_not_lost(place: Place) -> None:
    wrong = [SCALE, {"assert": {"range": {"of": r"w\.\d+", "le": 3.0}}}, {"dump": {"target": r"w\.5::[:1,:3]"}}, MOVE]
    for steps in (LOOKED_AT, wrong):
        plan = place.plan(steps)
        told: list[str] = []
        for stops in (False, True):
            if stops:
                place.stop(plan, 9)
            try:
                report = run(plan, Options(workers=2, resume=stops))
                assert bool(report.bytes_resumed) == stops
                told.append(report.printed)
                place.files()
            except Problems as error:
                told.append(str(error))
        assert told[0] == told[1]
        assert not place.hidden


def test_what_a_first_pass_has_found_is_not_asked_again(place: Place) -> None:
    for name, by in (("base", 0.0), ("tuned", 1.0)):
        matrices = {f"l.{n}.q_proj.weight": DRAW.standard_normal((32, 24)).astype("f4") * by + n for n in range(20)}
        write_checkpoint(place.root / f"{name}.safetensors", matrices)
    steps = [{"lora_extract": {"base": "base::(.+)", "tuned": r"tuned::\1", "to": "lora", "energy": 0.9}}]
    inputs = [f"{name}::{place.root / name}.safetensors" for name in ("base", "tuned")]
    plan = plan_of({"inputs": inputs, "transforms": steps, "output": str(place.root / "lora")})
    passes: list[bool] = []

    class Listening(Stop):
        def pass_begins(self, work: Pass) -> None:
            passes.append(work.is_last)
            self.num_done = 0 if work.is_last else -1000

    run(plan, Options(workers=1))
    expected = place.files("lora")
    with pytest.raises(KeyboardInterrupt):
        run(plan, Options(workers=1), observers=[Listening(1)])
    run(plan, Options(workers=2, resume=True), observers=[Listening()])
    assert passes == [False, True, True]
    assert place.files("lora") == expected


def test_bytes_that_are_not_what_was_written_are_written_again(place: Place) -> None:
    """As after a power cut, from which only what no mark speaks of has come back."""
    plan = place.plan([SCALE, MOVE], path="out.safetensors")
    run(plan, Options())
    expected = place.files("out.safetensors")
    for sync in (True, False):
        place.stop(plan, 5, sync=sync)
        built = place.hidden[0] / "new"
        content = built.read_bytes()
        built.write_bytes(content[:20_000] + bytes(len(content) - 20_000))
        if sync:  # all was brought to the disk: to lose it is not what a power cut does
            built.write_bytes(content)
        for journal in place.hidden[0].glob("done-*"):
            reboot(journal)
        report, _ = place.resume(plan)
        assert (report.bytes_resumed > 0) == sync
        assert place.files("out.safetensors") == expected


def test_a_journal_that_is_damaged_anywhere_does_no_harm(place: Place) -> None:
    plan = place.plan([*LOOKED_AT], path="out.safetensors")
    run(plan, Options())
    expected = place.files("out.safetensors")
    draw = random.Random(3)
    for number in range(12):
        place.stop(plan, 6, sync=False)
        name = draw.choice(["done-0", "done-0", "head"])
        path = place.hidden[0] / name
        data = bytearray(path.read_bytes())
        at = draw.randrange(len(data))
        path.write_bytes(bytes(data[:at]) if number % 2 else bytes([*data[:at], data[at] ^ 8, *data[at + 1 :]]))
        run(plan, Options(resume=True))
        assert place.files("out.safetensors") == expected
        for one in place.hidden:
            assert all(gone.is_removed for gone in cleared(str(one)))


def test_a_changed_plan_or_input_begins_anew_and_says_so(place: Place) -> None:
    plan = place.plan([SCALE, MOVE], path="out.safetensors")
    place.stop(plan, 4)
    other = run(place.plan([MOVE], path="out.safetensors"), Options(resume=True))
    assert other.bytes_resumed == 0
    assert any(
        "it is of another plan, or of another --shard-size; surgery-jax clean" in told for told in other.leftovers
    )
    write_checkpoint(place.root / "m.safetensors", {name: array + 1 for name, array in TENSORS.items()})
    report = run(plan, Options(resume=True, overwrite=True))
    assert report.bytes_resumed == 0
    assert any("inputs have changed since: " in told and "m.safetensors" in told for told in report.leftovers)
    (told,) = cleared(str(place.root / "out.safetensors"))
    assert told.is_removed and not place.hidden


def test_without_resume_what_was_left_is_named_and_left_alone(place: Place) -> None:
    plan = place.plan([SCALE, MOVE], path="out.safetensors")
    place.stop(plan, 4)
    left = place.hidden
    report = run(plan, Options())
    assert place.hidden == left
    assert "--resume goes on with it" in report.leftovers[0]


def test_a_run_at_work_is_neither_gone_on_with_nor_cleaned_away(place: Place) -> None:
    plan = place.plan([SCALE, MOVE], path="out.safetensors")
    told: list[str] = []

    class Meanwhile(Observer):
        def pass_begins(self, work: Pass) -> None:
            told.extend(one.told for one in cleared(str(place.root)))
            with pytest.raises(Exception, match="a run is at work on it"):
                run(plan, Options(resume=True))

    run(plan, Options(), observers=[Meanwhile()])
    assert len(told) == 1 and "a run is at work there" in told[0]


def test_a_limit_on_the_length_of_files_is_told_with_what_helps(place: Place) -> None:
    plan = place.plan([SCALE], path="out.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large") as caught:
            run(plan, Options(resume=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in (caught.value.hint or "")
    place.resume(plan)


KILLED = """
import os, signal, sys
from surgery_jax import Observer, Options, load_plan, run

class Kill(Observer):
    num_done = 0
    def task_done(self, task):
        Kill.num_done += 1
        if Kill.num_done == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

run(load_plan("plan.yaml"), Options(workers=2, memory="2MiB"), observers=[Kill()])
"""


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_that_was_killed_is_gone_on_with(place: Place, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    content = {"inputs": ["model::m.safetensors"], "transforms": LOOKED_AT, "output": {"path": "out", "shard": "600KB"}}
    (place.root / "plan.yaml").write_text(json.dumps(content))
    plan = load_plan("plan.yaml")
    run(plan, Options())
    expected = place.files()
    done = subprocess.run([sys.executable, "-c", KILLED, str(after)], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == -signal.SIGKILL
    place.resume(plan)
    assert place.files() == expected


def test_a_batch_goes_on_inside_its_jobs(place: Place) -> None:
    (place.root / "plan.json").write_text("{}")
    steps = [{"scale_": {"target": "w.+", "by": "${by}"}}]
    jobs = {
        "plan": {"inputs": [f"model::{place.root / 'm.safetensors'}"], "transforms": steps, "by": 1},
        "set": {"output": f"{place.root}/out/${{job}}.safetensors"},
        "matrix": {"by": [0.5, 0.7]},
    }
    (place.root / "jobs.yaml").write_text(json.dumps(jobs))
    whole = Stop()
    batch(str(place.root / "jobs.yaml"), Options(workers=2, memory="1MiB"), observers=[whole])
    expected = place.files()
    (place.root / "jobs.yaml.done").unlink()
    with pytest.raises(KeyboardInterrupt):
        batch(str(place.root / "jobs.yaml"), Options(workers=2, memory="1MiB"), observers=[Stop(2)])
    assert len(place.hidden) == 2
    counts = Stop()
    report = batch(str(place.root / "jobs.yaml"), Options(resume=True, workers=2, memory="1MiB"), observers=[counts])
    assert report.counts == {"done": 2}
    assert counts.num_left <= whole.num_left - 2
    assert place.files() == expected and not place.hidden


# ----------------------------------------------------------------------------------------------- the file of a journal


def test_a_record_that_was_not_written_whole_is_cut_off_and_what_follows_counts(tmp_path: Path) -> None:
    first = Finished(((0, 0, 10), (0, 20, 10), (0, 40, 10)), True, "k" * 32, b"found")
    second = Finished(((1, 5, 3),), False, "", b"")
    journal = Journal(tmp_path / "done-0")
    journal.add(first)
    journal.mark(journal.length)
    journal.add(second)
    journal.close()
    reboot(tmp_path / "done-0")
    whole = (tmp_path / "done-0").read_bytes()
    later = second._replace(is_sure=boot_of(tmp_path) != b"")
    for length in range(len(whole)):
        (tmp_path / "done-0").write_bytes(whole[:length])
        found = finished(tmp_path / "done-0", [100, 100])
        assert found in ([], [first._replace(is_sure=False)], [first])
        again = Journal(tmp_path / "done-0")
        again.add(second)
        again.close()
        assert finished(tmp_path / "done-0", [100, 100]) == [*found, later]
    assert finished(tmp_path / "done-0", [100, 4]) == [first]  # beyond the end of a file
    with pytest.raises(BlockingIOError):
        open_twice = [Journal(tmp_path / "done-0"), Journal(tmp_path / "done-0")]
        assert not open_twice


def test_a_mark_speaks_of_what_its_own_process_has_noted(tmp_path: Path) -> None:
    old, new = (Finished(((0, at, 10),), False, "", b"") for at in (0, 50))
    for done in (old, new):
        journal = Journal(tmp_path / "done-0")
        journal.add(done)
        if done is new:
            journal.mark(journal.length)
        journal.close()
    reboot(tmp_path / "done-0")
    assert finished(tmp_path / "done-0", [100]) == [old, new._replace(is_sure=True)]


def test_what_was_written_is_there_while_the_system_runs_that_it_was_given_to(tmp_path: Path) -> None:
    path, done = tmp_path / "done-0", Finished(((0, 0, 10),), False, "", b"")
    journal = Journal(path)
    journal.add(done)
    journal.close()
    is_kept = boot_of(path) != b""  # not by every file system
    assert finished(path, [100]) == [done._replace(is_sure=is_kept)]
    reboot(path)
    assert finished(path, [100]) == [done]
    rewrite(path, [], [done])  # as it has been compared
    assert finished(path, [100]) == [done._replace(is_sure=is_kept)]


def test_a_journal_of_a_stranger_speaks_only_of_bytes_that_there_are(tmp_path: Path) -> None:
    """Records whose checksum is right, and whose content is anything."""
    draw = random.Random(1)
    sizes = [100, 40]
    bodies = [bytes(draw.randrange(256) for _ in range(draw.randrange(90))) for _ in range(500)]
    honest = Journal(tmp_path / "done-0")
    honest.add(Finished(((0, 0, 10), (0, 20, 10), (1, 30, 10)), False, "k" * 32, b"found"))
    honest.mark(honest.length)
    honest.close()
    bodies += [body for _, body in unframed((tmp_path / "done-0").read_bytes())]
    for _ in range(3000):
        body = bytearray(draw.choice(bodies))
        for _ in range(draw.randrange(4) if body else 0):
            body[draw.randrange(len(body))] = draw.choice([0, 1, 255, ord("T"), ord("S"), draw.randrange(256)])
        (tmp_path / "done-0").write_bytes(framed(bytes(body)))
        for done in finished(tmp_path / "done-0", sizes):
            assert all(0 <= at and 0 < nbytes and at + nbytes <= sizes[file] for file, at, nbytes in done.ranges)
        (tmp_path / "head").write_bytes(framed(bytes(body)))
        assert isinstance(Stage(tmp_path).read_head(), dict)
        assert not Stage(tmp_path).is_whole


def test_a_long_run_brings_to_the_disk_what_it_has_finished_and_says_so(place: Place) -> None:
    plan = place.plan([SCALE, MOVE], path="out.safetensors")
    seen: list[list[bytes]] = []

    class Waiting(Observer):
        def task_done(self, task: Task) -> None:
            if not seen:
                seen.append(wait_for(lambda: self.marks(), 60))

        def marks(self) -> list[bytes]:
            journals = place.root.glob(".out*/done-0")
            return [body for path in journals for _, body in unframed(path.read_bytes()) if body[:1] == b"S"]

    run(plan, Options(workers=1, memory="2MiB"), observers=[Waiting()])
    assert len(seen[0]) >= 1
    assert not place.hidden
