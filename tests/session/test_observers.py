"""What observers are told is what happens: every byte, every task, every step, in order, whoever uses a session."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from listener import Listener
from pods import free_port
from running import Bench, simulated, write_checkpoint

import surgery_jax
from surgery_jax import Observer, Options, Problems, SurgeryError, plan_of, run
from surgery_jax.execute.observers import Appearing
from surgery_jax.hosts.cluster import meet
from surgery_jax.hosts.meeting import MeetingPlace, Patience

GENERATOR = np.random.default_rng(8)
TENSORS = {
    **{f"h.{i}.w": GENERATOR.standard_normal((48, 40)).astype(np.float32) for i in range(4)},
    "long": GENERATOR.integers(0, 9, 300_000).astype(np.int32),
    "odd": GENERATOR.standard_normal(777).astype(np.float32),
}
STEPS = [
    {"scale_": {"target": r"h\..+", "by": 0.5}},
    {"assert": {"iszero": {"of": "long", "eps": 9}}},
    {"assert": {"norm": {"of": "odd", "gt": 0}}},
]
ORDER = ["last pass", "done", "step 2: True", "step 3: True", "1 appearing", "appeared"]
QUICK = Options(sync=False, overwrite=True)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, m=TENSORS)


def check_digests(listener: Listener, root: Path, *, is_completed: bool = False) -> None:
    """What was told of a file is in it, and all of it was told; the format may have added files of its own."""
    files = {path for path in root.rglob("*") if path.is_file()} if root.is_dir() else {root}
    if is_completed:
        files &= {Path(name) for name, _ in listener.digests}
    for path in files:
        raw = bytearray(path.read_bytes())
        told = {at: found for (name, at), found in listener.digests.items() if Path(name) == path}
        assert sum(nbytes for nbytes, _ in told.values()) == len(raw), path
        for at, (nbytes, digest) in told.items():
            assert hashlib.sha256(raw[at : at + nbytes]).hexdigest() == digest, (path, at)
        for at, (nbytes, _) in told.items():
            raw[at : at + nbytes] = bytes(nbytes)
        assert not any(raw), path
    assert {Path(name) for name, _ in listener.digests} == files


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(
    "output",
    [
        {"path": "out.safetensors"},
        {"path": "out", "shard": "500KB"},
        {"path": "out", "format": "orbax", "options": {"compression": "zstd"}},
        {"path": "out", "format": "orbax"},
    ],
    ids=str,
)
def test_an_observer_digests_every_byte_and_sees_everything_in_order(
    bench: Bench, output: dict[str, Any], sync: bool
) -> None:
    listener = Listener()
    plan = plan_of(bench.plan(STEPS, output=False) | {"output": output})
    run(plan, Options(sync=sync, memory="8MiB"), observers=[listener])
    assert listener.events == ORDER
    assert (
        sorted(listener.keys) == sorted(listener.work.schedule.keys)
        and len(set(listener.keys)) == len(listener.keys) > 1
    )
    assert listener.bytes[0] == listener.bytes[1] > 0
    check_digests(listener, Path(output["path"]), is_completed=output.get("format") == "orbax")


def test_the_keys_of_tasks_are_the_same_when_a_plan_is_run_again(bench: Bench) -> None:
    listeners = [Listener(), Listener()]
    for listener in listeners:
        run(plan_of(bench.plan(STEPS)), QUICK, observers=[listener])
    assert sorted(listeners[0].keys) == sorted(listeners[1].keys)


def test_notes_beside_an_output_and_passes_that_ask_are_told(bench: Bench) -> None:
    change = np.outer(np.arange(48), np.arange(40)).astype(np.float32)
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(4)]
    base = {name: TENSORS[f"h.{number}.w"] for number, name in enumerate(names)}
    write_checkpoint(Path("base.safetensors"), base)
    write_checkpoint(Path("tuned.safetensors"), {name: array + change for name, array in base.items()})
    extract = {"base": "base::(.+)", "tuned": r"tuned::\1", "to": "adapter", "energy": 0.9, "max_rank": 4}
    content = {
        "inputs": ["base::base.safetensors", "tuned::tuned.safetensors"],
        "transforms": [{"lora_extract": extract}],
        "output": {"path": "adapter", "format": "peft"},
    }
    listener = Listener()
    run(plan_of(content), QUICK, observers=[listener])
    assert listener.events == ["first pass", "done", "last pass", "done", "1 appearing", "appeared"]
    assert Path("adapter/extraction.json").exists()
    check_digests(listener, Path("adapter"))


def test_documents_beside_the_tensors_are_told(bench: Bench) -> None:
    Path("config.json").write_text('{ "hidden_size": 40 }')
    listener = Listener()
    content = bench.plan(STEPS, output=False) | {"output": {"path": "out", "shard": "500KB"}}
    run(plan_of(content), QUICK, observers=[listener])
    assert Path("out/config.json").exists()
    check_digests(listener, Path("out"))


def test_outputs_are_complete_when_they_are_about_to_appear_and_there_when_they_have(bench: Bench) -> None:
    class Looks(Observer):
        def appearing(self, plans: Sequence[Appearing]) -> None:
            (plan,) = plans
            ((path, files),) = plan.files().items()
            assert path == str(bench.out) and not bench.out.exists()
            (self.before,) = [place.read_bytes() for place in files.values()]

        def appeared(self, plan: Appearing) -> None:
            self.after = bench.out.read_bytes()

    looks = Looks()
    run(plan_of(bench.plan(STEPS)), QUICK, observers=[looks])
    assert looks.before == looks.after == bench.out.read_bytes()


def test_what_an_observer_raises_ends_the_run_and_nothing_appears(bench: Bench) -> None:
    def refuse(self: Observer, *_: Any) -> None:
        raise SurgeryError("the journal is full")

    for event in ("pass_begins", "tick", "advanced", "written", "task_done", "settled", "appearing"):
        refusing = type("Refusing", (Observer,), {event: refuse})()
        with pytest.raises(SurgeryError, match="the journal is full"):
            run(plan_of(bench.plan(STEPS)), QUICK, observers=[refusing])
        assert bench.left() == ["m.safetensors"], event


def test_a_pass_that_fails_ends_too(bench: Bench) -> None:
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        run(plan_of(bench.plan(STEPS)), QUICK, progress=stop, observers=[listener])
    assert listener.events == ["last pass", "failed"]


def test_an_assertion_that_fails_is_told_and_nothing_appears(bench: Bench) -> None:
    listener = Listener()
    with pytest.raises(Problems, match="has norm"):
        run(plan_of(bench.plan([{"assert": {"norm": {"of": "odd", "lt": 0}}}])), QUICK, observers=[listener])
    assert listener.events == ["last pass", "done", "step 1: False"]


def test_conversions_batches_and_trees_in_memory_tell_the_same(bench: Bench) -> None:
    listener = Listener()
    surgery_jax.convert(bench.root / "m.safetensors", "copy.safetensors", QUICK, observers=[listener])
    assert listener.events == ["last pass", "done", "1 appearing", "appeared"]
    check_digests(listener, Path("copy.safetensors"))

    listener = Listener()
    memory = plan_of(bench.plan([*STEPS, {"save": {"target": "odd", "path": "odd.npy", "format": "numpy"}}], False))
    surgery_jax.apply(memory, None, QUICK, observers=[listener])
    assert listener.events == ORDER
    assert {Path(name).name for name, _ in listener.digests} == {"odd.npy", "<memory>"}

    listener = Listener()
    Path("plan.yaml").write_text("""
most: 1
inputs: [ "m::m.safetensors" ]
transforms: [ { assert: { norm: { of: odd, lt: "${most}" } } } ]
output: out.safetensors
""")
    Path("jobs.yaml").write_text("""
plan: plan.yaml
jobs:
  - { name: a, set: { most: 0, output: a.safetensors } }
  - { name: b, set: { most: 99, output: b.safetensors } }
""")
    report = surgery_jax.batch("jobs.yaml", QUICK, observers=[listener])
    assert [job.status for job in report.jobs] == ["failed", "done"]
    assert listener.events == ["last pass", "done", "step 1: False", "step 1: True", "1 appearing", "appeared"]


def test_each_of_several_processes_tells_what_it_does_and_the_first_what_appears(bench: Bench) -> None:
    alone = Listener()
    run(plan_of(bench.plan(STEPS)), QUICK, observers=[alone])
    port = free_port()
    places = [MeetingPlace(rank, 2, "127.0.0.1", port, b"secret") for rank in range(2)]
    listeners = [Listener(), Listener()]

    def share(rank: int) -> None:
        with meet(places[rank], Patience(places[rank], 30)) as star:
            run(plan_of(bench.plan(STEPS)), QUICK, peers=star, observers=[listeners[rank]])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(share, range(2)))
    assert listeners[0].events == ORDER and listeners[1].events == ["last pass", "done"]
    assert not set(listeners[0].keys) & set(listeners[1].keys)
    assert all(listener.bytes[0] == listener.bytes[1] > 0 for listener in listeners)
    alone.digests = listeners[0].digests | listeners[1].digests
    assert len(alone.digests) == sum(len(listener.digests) for listener in listeners)
    check_digests(alone, bench.out)


TOO_LARGE = """
import json
import numpy as np
from surgery_jax import BudgetError, Options, apply, batch, plan_of, run
from running import write_checkpoint
write_checkpoint(__import__("pathlib").Path("m.safetensors"), {n: np.ones((501, 501), "f4") for n in "xz"})
content = {"inputs": ["m::m.safetensors"], "transforms": [{"matmul": {"from_a": "x", "from_b": "z", "to": "y"}}]}
options = Options(device_memory="2MiB", sync=False)
said = []
for verb in (run, apply):
    try:
        verb(plan_of(content | {"output": "out.safetensors"}), options=options)
    except BudgetError as error:
        said.append(str(error).split(":", 1)[1])
print(json.dumps(said))
"""


def test_a_tree_in_memory_is_held_to_the_devices_that_there_are_as_a_run_is(tmp_path: Path) -> None:
    said = simulated(TOO_LARGE, tmp_path, devices=2)
    assert len(said) == 2 and said[0] == said[1] and "does not fit the devices" in said[0]
