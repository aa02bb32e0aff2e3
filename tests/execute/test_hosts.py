"""Several processes that share a run: the same bits as one, every byte read once, and one end for all."""

import hashlib
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pods import Pod, free_port, wait_for, write_endless
from running import Bench, read_checkpoint, write_checkpoint

from surgery_jax import (
    AssertionFailed,
    Options,
    PlanError,
    StorageError,
    SurgeryError,
    compile_plan,
    explain,
    load_plan,
    plan_of,
    run,
)
from surgery_jax.cli.main import main
from surgery_jax.compile.program import ByteMove, Program
from surgery_jax.core.errors import Problems
from surgery_jax.execute.reservations import Limits
from surgery_jax.execute.schedule import schedule
from surgery_jax.execute.shares import shares
from surgery_jax.execute.tasks import MoveTask
from surgery_jax.hosts.agreement import compare, facts_of_sources
from surgery_jax.hosts.cluster import join, meet
from surgery_jax.hosts.links import SILENCE_S
from surgery_jax.hosts.meeting import MeetingPlace, Patience
from surgery_jax.hosts.peers import ALONE
from surgery_jax.hosts.sharing import OwnTasks, together
from surgery_jax.io.needs import PAGE
from surgery_jax.language.document import parse_plan_file
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.publish import Staging

ANY = schedule(Program(None, [], [], []), Limits(1 << 30, 1))  # type: ignore[arg-type]
GENERATOR = np.random.default_rng(5)
TENSORS = {
    **{f"h.{i}.w": GENERATOR.standard_normal((96, 40)).astype(np.float32) for i in range(9)},
    **{f"h.{i}.b": GENERATOR.standard_normal(3001).astype(np.float32) for i in range(9)},
    "wide": GENERATOR.standard_normal((700, 300)).astype(np.float32),
    "long": GENERATOR.integers(0, 9, 1_500_000).astype(np.int32),
}
STEPS = [
    {"scale_": {"target": r"h\.\d+\.b", "by": 0.3}},
    {"phlora": {"target": r"(h\.\d+)\.w", "target_a": r"\1.a", "target_b": r"\1.b2", "rank": 3}},
    {"permute": {"from": "wide", "to": "turned", "order": [1, 0]}},
    {"assign": {"from": "wide::[:300, :]", "to": "wide::[400:, :]"}},
    {"dump": {"target": r"h\.[02]\.b", "verbosity": "stat", "format": "json"}},
    {"dump": {"target": r"h\.1\.b::[:4]", "verbosity": "full", "format": "json"}},
    {"assert": {"iszero": {"of": "long", "eps": 9}}},
    {"save": {"target": "turned", "path": "turned.npy", "format": "numpy"}},
]


def stars(size):
    """So many processes as threads of this one, connected."""
    port = free_port()
    places = [MeetingPlace(rank, size, "127.0.0.1", port, b"secret") for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda place: meet(place, Patience(place, 30)), places))


def on_all(peers, act):
    """What `act` gives or raises on each of them, as if each were a process."""

    def one(star):
        try:
            with star:
                return act(star)
        except SurgeryError as error:
            return error

    with ThreadPoolExecutor(len(peers)) as pool:
        return list(pool.map(one, peers))


def digests(root):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.glob("*") if path.is_file()}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, model=TENSORS)


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_give_the_bits_of_one_and_read_every_byte_once(bench, size):
    alone = bench.report(STEPS, memory="8MiB")
    expected = digests(bench.root)
    options = Options(memory="8MiB", overwrite=True, sync=size == 2)
    found = on_all(stars(size), lambda star: run(plan_of(bench.plan(STEPS)), options, peers=star))
    report = found[0]
    assert digests(bench.root) == expected and len(expected) == 3
    assert report.printed == alone.printed and "mean" in report.printed
    assert [share.process.split()[1] for share in report.processes] == [str(rank) for rank in range(size)]
    read = sum(share.bytes_read for share in report.processes)
    assert read <= 1.05 * alone.processes[0].bytes_read
    written = [share.bytes_written for share in report.processes]
    assert sum(written) == alone.processes[0].bytes_written == alone.bytes_moved + alone.bytes_computed
    assert sum(share.bytes_read > 0 for share in report.processes) >= 2


def test_chunks_of_an_orbax_checkpoint_are_written_by_several_processes(bench):
    def act(star=ALONE, **options):
        output = {"path": "out", "format": "orbax", "options": options}
        plan = {**bench.plan(STEPS[:3]), "output": output}
        return run(plan_of(plan), Options(memory="8MiB", overwrite=True, receipt=False), peers=star)

    for settings, least in (
        ({"chunk": "20KB"}, 100),
        ({"ocdbt": "true", "zarr": "3"}, 5),
        ({"compression": "zstd", "chunk": "100KB"}, 50),
        ({"mesh": {"x": 2, "y": 2}, "shard": {r"wide|turned|h\..\.w": ["x", "y"]}}, 20),
        ({"mesh": {"x": 2}, "shard": {"wide": [None, "x"]}, "ocdbt": "true", "zarr": "3"}, 5),
    ):
        act(**settings)
        expected = {path: path.read_bytes() for path in bench.root.glob("out/**/*") if path.is_file()}
        on_all(stars(2), lambda star, settings=settings: act(star, **settings))
        assert {path: path.read_bytes() for path in bench.root.glob("out/**/*") if path.is_file()} == expected
        assert len(expected) > least


def test_an_assertion_that_fails_in_one_share_stops_all_and_leaves_nothing(bench):
    before = bench.left()
    steps = [*STEPS[:-1], {"assert": {"iszero": {"of": "long::[1499000:]", "eps": 7}}}]
    found = on_all(stars(3), lambda star: run(plan_of(bench.plan(steps)), Options(sync=False), peers=star))
    assert isinstance(found[0], Problems) and isinstance(found[0].errors[0], AssertionFailed)
    assert "elements are off" in str(found[0])
    for error in found[1:]:
        assert error.exit_code == 1 and "process 0" in str(error) and "assertion failed" in str(error)
    assert bench.left() == before


def differences(act):
    """What three processes come to, of which the last differs: the error of process 0, which the others hear of."""
    found = on_all(stars(3), act)
    assert isinstance(found[0], PlanError) and all(error.exit_code == 2 for error in found)
    first = str(found[0]).splitlines()[0]
    assert first.startswith("process 2 on ") and all(first in str(error) for error in found)
    assert not re.search("[0-9a-f]{32}", str(found[0]))  # nobody understands a digest
    return str(found[0])


def test_an_option_that_differs_is_named(bench):
    before = bench.left()

    def act(star):
        options = Options(sync=False, memory="1GiB" if star.rank == 2 else "2GiB")
        return run(plan_of(bench.plan(STEPS)), options, peers=star)

    text = differences(act)
    assert "differs in --memory" in text and f"{1 << 31} bytes, as in process 0" in text and f"{1 << 30} bytes" in text
    assert bench.left() == before


def test_a_plan_that_differs_is_named_with_the_place(bench):
    for name, factor in (("a.yaml", 0.3), ("b.yaml", 0.31)):
        steps = [{"scale_": {"by": factor, "target": r"h\.\d+\.b"}}, *STEPS[1:]]
        (bench.root / name).write_text(yaml.safe_dump(bench.plan(steps)))
    before = bench.left()

    def act(words, others):
        plans = {False: load_plan(*words), True: load_plan(*others)}
        return differences(lambda star: run(plans[star.rank == 2], Options(sync=False), peers=star))

    text = act(["a.yaml"], ["b.yaml"])
    assert re.search(r"differs in the plan, at b.yaml:\d+:\d+$", text.splitlines()[0])
    assert (
        re.search(r"by: 0.3, as in process 0 at a.yaml:\d+:\d+$", text, re.M)
        and "found: " in text
        and "by: 0.31" in text
    )
    text = act(["a.yaml"], ["a.yaml", "transforms[0].scale_.by=7"])
    assert "at transforms[0].scale_.by=7" in text and "scale_.by: 0.3" in text and "scale_.by: 7" in text
    text = act(["a.yaml"], ["a.yaml", "output=elsewhere.safetensors"])
    assert "output.path: elsewhere.safetensors" in text
    text = act(["a.yaml", "inputs[0]=a.yaml"], ["a.yaml"])
    assert "input model: a.yaml, as in process 0" in text and "model.safetensors" in text
    assert bench.left() == before


def test_a_plan_means_the_same_wherever_its_files_lie_and_its_keys_stand(bench):
    (bench.root / "a.yaml").write_text(yaml.safe_dump(bench.plan(STEPS[:1])))
    turned = json.dumps(bench.plan([{"scale_": dict(reversed(STEPS[0]["scale_"].items()))}]))
    (bench.root / "b.yaml").write_text("# by hand\n" + turned)
    plans = [load_plan("a.yaml"), load_plan("b.yaml")]
    found = on_all(stars(2), lambda star: run(plans[star.rank], Options(sync=False), peers=star))
    assert [error for error in found if isinstance(error, SurgeryError)] == []


def test_a_file_that_differs_is_named(bench):
    """One of a sharded checkpoint, the text in one, and a plan that the plan executes."""
    parts = {"weights-1.safetensors": {"a": np.zeros((2, 3), np.float32)}, "weights-2.safetensors": {"b": np.ones(5)}}
    weight_map = {"a": "weights-1.safetensors", "b": "weights-2.safetensors"}
    for place in ("here", "there"):
        for name, tensors in parts.items():
            write_checkpoint(bench.root / place / name, tensors, {"format": place if "1" in name else "pt"})
        (bench.root / place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (bench.root / f"{place}.yaml").write_text(f"- scale_: {{ target: a, by: {len(place)} }}\n")
    sources = [{"it": open_checkpoint(str(bench.root / place))} for place in ("here", "there")]
    text = differences(lambda star: compare(star, facts_of_sources(sources[star.rank == 2])))
    assert "differs in the header of it, at " in text and "metadata format: here, as in process 0" in text
    write_checkpoint(bench.root / "there" / "weights-1.safetensors", parts["weights-1.safetensors"], {"format": "here"})
    write_checkpoint(bench.root / "there" / "weights-2.safetensors", {"b": np.ones(6)}, {"format": "pt"})
    sources[1] = {"it": open_checkpoint(str(bench.root / "there"))}
    text = differences(lambda star: compare(star, facts_of_sources(sources[star.rank == 2])))
    assert text.splitlines()[0].endswith("there/weights-2.safetensors") and "here/weights-2.safetensors" in text
    assert "b: float64[5]" in text and "b: float64[6]" in text
    plans = [{"it": parse_plan_file(bench.root / f"{place}.yaml")} for place in ("here", "there")]
    text = differences(lambda star: compare(star, facts_of_sources(plans[star.rank == 2])))
    assert re.search(r"differs in the plan it, at .*there.yaml:1:\d+", text) and "scale_.by: 4, as" in text


def test_what_differs_is_named_though_only_one_process_fails_for_it(bench):
    """In a directory of its own the last process finds another checkpoint, without the tensor of the plan."""
    write_checkpoint(bench.root / "other" / "model.safetensors", {"v": np.zeros(3)})
    (bench.root / "plan.yaml").write_text(
        "inputs: [ model.safetensors ]\ntransforms:\n  - scale_: { target: wide, by: 2 }\noutput: out.safetensors\n"
    )
    with Pod(2, bench.root / "plan.yaml", cwd=bench.root) as pod:
        ended = pod.start(0).start(1, cwd=bench.root / "other").ends(60)
    for process in ended:
        assert process.code == 2 and "process 1 on" in process.err
        assert "differs in the header of model.safetensors, at model.safetensors" in process.err
    assert "found: v: float64[3]" in ended[0].err and "no tensor" not in ended[0].err


def test_process_0_that_is_lost_after_all_was_handed_over_may_have_published():
    first, second = stars(2)
    with pytest.raises(StorageError, match="is lost") as lost, second:
        second.hand_over()
        first._closed.set()
        first._links[1].close()
        second.share()
    assert "are there if it could still publish" in str(lost.value)


def test_a_process_that_leaves_while_another_waits_for_it_ends_the_wait():
    def act(star):
        return star.gather() if star.rank == 0 else None

    found = on_all(stars(3), act)
    assert re.search("process [12] ", str(found[0])) and "left before the end" in str(found[0])


def test_a_process_that_gives_up_for_another_is_no_clean_end_for_that(bench):
    """Process 0 stood still, the others went without it: it must not wait for what they would have said."""

    def act(star):
        if star.rank:
            star._fail(StorageError("process 0 is lost"), 0)
            star.check()
        return star.gather()

    found = on_all(stars(3), act)
    assert "is lost" in str(found[0]) and found[0].exit_code == 3


def test_a_process_that_does_not_see_the_directory_of_the_first_is_an_error(bench):
    ((output, layout),) = bench.compile(STEPS[:1]).outputs
    first = Staging(output, layout)
    told = first.tell()
    second = Staging(output, layout, told)
    second.release()
    second.abort()
    assert Path(told["stage"]).exists()
    first.abort()
    with pytest.raises(StorageError, match="not the same here") as refused:
        Staging(output, layout, told)
    assert "a file system that all of them share" in str(refused.value)


def test_an_error_in_one_process_is_an_error_of_all():
    def act(star):
        def make():
            if star.rank == 1:
                raise PlanError("no such thing")
            return 5

        return together(star, make)

    found = on_all(stars(3), act)
    assert "process 1" in str(found[0]) and "no such thing" in str(found[0])
    for error in found[1:]:
        assert str(error).startswith("process 0") and "process 1" in str(error) and error.exit_code == 2


@pytest.mark.parametrize("cause", [0, 1])
def test_what_fails_because_another_process_has_removed_the_files_names_that_process(cause):
    def act(star):
        if star.rank == cause:
            time.sleep(0.2)
            error = PlanError("no such thing")
            star.stop(error)  # before anything is removed
            raise error
        error = StorageError("out: cannot write: No such file or directory")
        star.stop(error)
        raise error

    for rank, error in enumerate(on_all(stars(3), act)):
        assert rank == cause or f"process {cause}" in str(error)
        assert "no such thing" in str(error) and error.exit_code == 2


def test_what_fails_by_itself_is_told_as_it_is():
    def act(star):
        if star.rank == 1:
            error = StorageError("out: cannot write: No space left on device")
            star.stop(error)
            raise error
        return star.gather(), star.share()

    found = on_all(stars(3), act)
    assert str(found[1]) == "out: cannot write: No space left on device"
    for error in (found[0], found[2]):
        assert "process 1" in str(error) and "No space left" in str(error)


def test_a_lost_process_is_named_to_all_others():
    peers = stars(4)

    def act(star):
        if star.rank == 2:  # a killed process closes its connections without a word
            star._closed.set()
            for link in star._links.values():
                link.close()
            return None
        return star.gather(), star.share()

    started = time.monotonic()
    found = on_all(peers, act)
    for rank in (0, 1, 3):
        assert "process 2" in str(found[rank]) and "is lost" in str(found[rank]) and found[rank].exit_code == 3
    assert time.monotonic() - started < SILENCE_S / 2  # it is not silence that tells


@pytest.mark.parametrize(("count", "number"), [(1, 5), (3, 100), (64, 1000), (8, 3), (64, 2)])
def test_shares_are_contiguous_complete_and_even(count, number):
    lengths = np.random.default_rng(number).integers(1, 32 << 20, number).tolist()
    ends = np.cumsum(lengths).tolist()
    tasks = [
        MoveTask((ByteMove("a", 9 + end - length, 0, 5 + end - length, length),))
        for length, end in zip(lengths, ends, strict=True)
    ]
    found = shares(tasks, count, ANY.sized, ())
    at, totals = 0, []
    for share in found:
        for entry in share:
            (move,) = entry.task.moves
            assert (move.source, move.offset) == (9 + at, 5 + at) and entry.read == entry.written == move.nbytes > 0
            at += move.nbytes
        totals.append(sum(entry.weight for entry in share))
    assert at == sum(lengths) and len(found) == count
    assert max(totals) <= 1.04 * sum(totals) / count
    cuts = {share[0].task.moves[0].offset for share in found[1:]} - {5 + end for end in ends}
    assert all(cut % PAGE == 0 for cut in cuts)  # no page is written by two processes


def test_tasks_that_differ_are_told_before_any_begins(bench):
    """Plans are compared before; should the work of equal ones differ all the same, nothing is written."""
    steps = [{"scale_": {"target": "wide", "by": 0.5}}]
    other = [{"scale_": {"target": "wide", "by": np.nextafter(0.5, 1).item()}}]
    options = Options()
    works = [compile_plan(plan_of(bench.plan(one)), options).last(options.limits) for one in (steps, steps, other)]
    found = on_all(stars(3), lambda star: OwnTasks(star, works[star.rank], works[star.rank].tasks).tasks())
    assert isinstance(found[0], PlanError) and all(isinstance(error, SurgeryError) for error in found)
    assert "differs in the tasks" in str(found[0]) and "process 2" in str(found[0]) and "bytes, into" in str(found[0])


def test_what_cannot_be_cut_belongs_to_the_share_of_its_middle():
    tasks = [MoveTask((ByteMove("a", at, 0, at, 7), ByteMove("a", at + 50, 0, at + 7, 3))) for at in range(0, 100, 10)]
    found = shares(tasks, 3, ANY.sized, ())
    assert [entry.task for share in found for entry in share] == tasks
    assert [len(share) for share in found] == [3, 4, 3]


def test_a_small_model_is_shared_evenly_by_many_processes(bench):
    """Its tasks are fewer than the processes: those that tiles and moves are cut into give the same bits."""
    steps = [{"scale_": {"target": "wide", "by": 0.3}}, {"assert": {"iszero": {"of": "wide", "eps": 9}}}]
    bench.report(steps, memory="64MiB")
    expected = digests(bench.root)
    options = Options(memory="64MiB", overwrite=True, sync=False)
    found = on_all(stars(16), lambda star: run(plan_of(bench.plan(steps)), options, peers=star))
    assert digests(bench.root) == expected
    loads = [share.bytes_read + share.bytes_written for share in found[0].processes]
    assert len(loads) == 16 and max(loads) < 1.2 * sum(loads) / 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_processes": 2}, "without --distributed"),
        ({"distributed": True, "coordinator": "host:1"}, "no --num-processes and no --process-id"),
        ({"distributed": True, "coordinator": "host", "num_processes": 2, "process_id": 0}, "not an address"),
        ({"distributed": True, "coordinator": "host:99999", "num_processes": 2, "process_id": 0}, "not an address"),
        ({"distributed": True, "coordinator": "host:1", "num_processes": 2, "process_id": 2}, "no process 2 of 2"),
    ],
)
def test_wrong_options_are_clear_errors(options, words):
    with pytest.raises(PlanError) as refused:
        join(Options(**options))
    assert words in str(refused.value)


# ------------------------------------------------------------------------------------------------ real processes


def test_the_command_runs_on_two_processes(bench):
    bench.report(STEPS)
    expected = digests(bench.root)
    plan = bench.root / "plan.yaml"
    plan.write_text(json.dumps(bench.plan(STEPS)))
    with Pod(2, plan, "--overwrite", "--json", cwd=bench.root) as pod:
        ended = pod.start().ends(60)
    assert [process.code for process in ended] == [0, 0], ended
    plan.unlink()
    assert digests(bench.root) == expected
    assert len(json.loads(ended[0].out)["processes"]) == 2 and ended[1].out == ""
    assert all("waiting" in line for line in ended[1].err.splitlines())


def test_processes_with_several_devices_each_give_the_same_bits(bench):
    """A stack over all devices of a process, and a product that is too large for one of them."""
    many = {f"{side}.{i}": GENERATOR.standard_normal((24, 24)).astype(np.float32) for side in "ab" for i in range(90)}
    tall = {"tall": GENERATOR.standard_normal((300, 700)).astype(np.float32)}
    write_checkpoint(bench.root / "model.safetensors", TENSORS | many | tall)
    steps = [
        {"matmul": {"from_a": r"a\.(\d+)", "from_b": r"b.\1", "to": r"c.\1"}},
        {"matmul": {"from_a": "wide", "from_b": "tall", "to": "square"}},
    ]
    kinds = [group.kind for group in explain(plan_of(bench.plan(steps)), Options(device_memory="3MiB")).groups]
    assert kinds == ["stacks", "sharded"]
    plan = bench.root / "plan.yaml"
    plan.write_text(json.dumps(bench.plan(steps)))
    found = []
    for size, devices in ((1, 4), (2, 8)):
        with Pod(size, plan, "--overwrite", "--device-memory", "3MiB", cwd=bench.root, devices=devices) as pod:
            ended = pod.start().ends(60)
        assert not any(process.code for process in ended), ended
        found.append(bench.out.read_bytes())
    assert found[0] == found[1]
    made, stored = read_checkpoint(bench.out), TENSORS | many | tall
    pairs = {"square": ("wide", "tall")} | {f"c.{i}": (f"a.{i}", f"b.{i}") for i in range(90)}
    for name, (left, right) in pairs.items():
        wanted = stored[left].astype(np.float64) @ stored[right].astype(np.float64)
        np.testing.assert_allclose(made[name], wanted, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_stops_the_others_and_what_is_kept_is_told(tmp_path, killed):
    with Pod(2, write_endless(tmp_path), cwd=tmp_path) as pod:
        pod.start()
        wait_for(lambda: list(tmp_path.glob(".out*")), 60)
        time.sleep(0.5)
        pod.signal(killed, signal.SIGKILL)
        other = pod.end(1 - killed, within_s=20)
    assert other.code == 3 and f"process {killed}" in other.err and "is lost" in other.err
    assert "Traceback" not in other.err
    kept = list(tmp_path.glob(".out*"))  # none if the small tensor had not been written by then
    assert ("of out.safetensors is kept" in other.err) == bool(kept) and not (tmp_path / "out.safetensors").exists()
    assert main(["clean", str(tmp_path / "out.safetensors")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.safetensors", "plan.yaml"]


@pytest.mark.parametrize("size", [2, 3])
def test_what_is_asked_of_the_data_is_answered_alike_in_all_processes(bench, size):
    """The ranks of an extraction follow from spectra that the processes find in shares of a first pass."""
    tuned = {
        name: array + np.outer(array[:, 0], array[0]) if array.ndim == 2 else array for name, array in TENSORS.items()
    }
    write_checkpoint(bench.root / "tuned.safetensors", {f"{name}.weight": array for name, array in tuned.items()})
    write_checkpoint(bench.root / "base.safetensors", {f"{name}.weight": array for name, array in TENSORS.items()})
    step = {"lora_extract": {"base": "base::(.+)", "tuned": r"tuned::\1", "to": "adapter", "energy": 0.9}}
    plan = {"inputs": ["base::base.safetensors", "tuned::tuned.safetensors"], "transforms": [step]}
    plan["output"] = {"path": "adapter", "format": "peft"}

    def act(star=ALONE):
        return run(plan_of(plan), Options(overwrite=True, sync=False, receipt=False), peers=star)

    alone = act()
    expected = digests(bench.root / "adapter")
    found = on_all(stars(size), act)
    assert found[0].printed == alone.printed and "10 factored" in alone.printed
    assert digests(bench.root / "adapter") == expected
    for share in found[0].processes:
        assert share.bytes_read > 0


def test_what_is_read_once_more_reaches_the_disk_from_every_process(bench, monkeypatch):
    output = {"path": "out", "format": "torch", "shard": "1MB"}
    plan = plan_of({**bench.plan(STEPS[:3]), "output": output})
    run(plan, Options(memory="8MiB", receipt=False))
    expected = {path: path.read_bytes() for path in bench.root.glob("out/*")}
    fsync, synced = os.fsync, set()

    def noted(descriptor):
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    options = Options(overwrite=True, sync=False, memory="8MiB", receipt=False)
    on_all(stars(2), lambda star: run(plan, options, peers=star))
    assert any(name.endswith(".bin") for name in synced), "process 0 sums up what the other has written"
    assert {path: path.read_bytes() for path in expected} == expected


@given(st.lists(st.tuples(st.integers(1, 50), st.sets(st.integers(0, 8), max_size=3)), max_size=25), st.integers(1, 6))
def test_files_that_are_encoded_as_a_whole_are_written_by_one_process(wanted, count):
    tasks = [MoveTask((ByteMove("in", 0, number, 0, PAGE * size),)) for number, (size, _) in enumerate(wanted)]
    files = {task.moves[0].file: wanted[task.moves[0].file][1] for task in tasks}
    found = shares(tasks, count, ANY.sized, (), lambda task: files[task.moves[0].file])
    writers = [{file for entry in share for file in files[entry.task.moves[0].file]} for share in found]
    for one, own in enumerate(writers):
        assert not any(own & other for other in writers[one + 1 :])
    moved = sorted(move for share in found for entry in share for move in entry.task.moves)
    joined = {}
    for move in moved:
        assert move.offset == joined.get(move.file, 0)
        joined[move.file] = move.offset + move.nbytes
        assert not files[move.file] or move.offset == 0
    assert joined == {number: PAGE * size for number, (size, _) in enumerate(wanted)}
