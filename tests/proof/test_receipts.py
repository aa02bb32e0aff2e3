"""Receipts: what is verified against them, replayed from them, signed with them, and what they are made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pods import Pod
from running import write_checkpoint

from surgery_jax import Options, PlanError, StorageError, SurgeryError, convert, load_plan, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.proof.lineage import lineage
from surgery_jax.proof.receipt import read_receipt
from surgery_jax.proof.verify import verify
from surgery_jax.reports.replay import replay
from surgery_jax.storage.proofs import PROOFS

GENERATOR = np.random.default_rng(1)
TENSORS = {f"h.{n}.up": GENERATOR.standard_normal((60, 100)).astype(np.float32) for n in range(4)}
TENSORS |= {"norm": np.ones(100, np.float16), "empty": np.zeros((0, 3), np.float32)}
STEPS: list[Any] = [
    {"scale_": {"target": r"h\.0\.up", "by": 0.5}},
    {"delete": {"target": r"h\.3\.up"}},
    {"assert": {"norm": {"of": "norm", "ge": 1}}},
]
QUICK = Options(sync=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGERY_JAX_CACHE", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS)
    (tmp_path / "m" / "config.json").write_text("{}")
    return tmp_path


def make(output: Any = "out", steps: Any = STEPS, source: str = "m", **options: Any) -> None:
    plan = plan_of({"inputs": [f"m::{source}"], "transforms": steps, "output": output})
    run(plan, Options(**{"sync": False, "overwrite": True} | options))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def weights(folder: str) -> Path:
    (found,) = Path(folder).glob("*.safetensors")
    return found


# ------------------------------------------------------------------------------------------------- what they say


def test_a_receipt_is_a_statement_of_in_toto_with_what_made_the_output(place: Path) -> None:
    statement_of = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    provenance_of = pytest.importorskip("in_toto_attestation.predicates.provenance.v1.provenance_pb2")
    from google.protobuf import json_format

    Path("plan.yaml").write_text(json.dumps({"inputs": ["m::m"], "transforms": STEPS, "output": "out", "by": 1}))
    run(load_plan("plan.yaml", "transforms[0].scale_.by=2"), QUICK)
    text = Path("out/surgery.receipt.json").read_text()
    told = json.loads(text)
    statement = json_format.Parse(text, statement_of.Statement())
    assert statement.predicate_type == "https://slsa.dev/provenance/v1" and len(statement.subject) == 1
    json_format.ParseDict(told["predicate"], provenance_of.Provenance())
    definition = told["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["overrides"] == ["transforms[0].scale_.by=2"]
    assert definition["externalParameters"]["plan"] == {"plan.yaml": Path("plan.yaml").read_text()}
    assert "by: 2" in definition["internalParameters"]["plan"]
    names = [(entry["name"], entry["annotations"]["kind"]) for entry in definition["resolvedDependencies"]]
    assert names == [("m/model.safetensors", "input"), ("m/config.json", "input"), ("plan.yaml", "plan")]
    table = json.loads(Path("out/surgery.tensors.json").read_text())
    assert table["accounting"] == {
        "read": 5, "moved": 4, "computed": 1, "created": 0, "dropped": 1, "untouched": []
    }  # fmt: skip
    assert [entry["holds"] for entry in table["assertions"]] == [True]
    assert "10" in table["assertions"][0]["measured"]


def test_receipts_of_batches_and_merges_have_what_their_plans_were_written_in(place: Path) -> None:
    part = "transforms: [ { scale_: { target: norm, by: 0.5 } } ]"
    plan = (
        'by: 2\ninputs: [ "m::m" ]\ntransforms: [ { include: part.yaml }, { scale_: { target: norm, by: "${by}" } } ]'
    )
    merge = "merge_method: linear\nmodels: [ { model: m, parameters: { weight: 1 } } ]\ndtype: float32\n"
    texts = {"part.yaml": part, "plan.yaml": plan, "merge.yaml": merge}
    jobs = "jobs: [ { name: a, set: { by: 3, output: a } } ]\nplan: "
    inline = json.dumps({"by": 2, "inputs": ["m::m"], "transforms": []})
    for name, text in {**texts, "jobs.yaml": f"{jobs}plan.yaml", "inline.yaml": jobs + inline}.items():
        Path(name).write_text(text)
    assert main(["batch", "inline.yaml"]) == 0 and external("a")["plan"].keys() == {"inline.yaml"}
    assert main(["batch", "jobs.yaml", "transforms[1].scale_.by=5", "--overwrite"]) == 0
    assert external("a") == {
        "plan": {"plan.yaml": plan, "part.yaml": part},
        "overrides": ["transforms[1].scale_.by=5"],
        "parameters": {"by": 3, "output": "a"},
    }
    assert main(["merge", "merge.yaml", "b"]) == 0
    assert external("b")["plan"] == {"merge.yaml": merge}
    for name, files in {"a": ["plan.yaml", "part.yaml"], "b": ["merge.yaml"]}.items():
        told = read_receipt(name).definition["resolvedDependencies"]
        plans = {one["name"]: one["digest"]["sha256"] for one in told if one["annotations"]["kind"] == "plan"}
        assert plans == {file: hashlib.sha256(texts[file].encode()).hexdigest() for file in files}
        assert replay(name).holds


def external(folder: str) -> Any:
    return read_receipt(folder).definition["externalParameters"]


def test_what_differs_between_honest_runs_is_not_comparable(place: Path) -> None:
    found = set()
    for number, options in enumerate([{}, {"memory": "8MiB", "workers": 1}, {"shard_size": "20KB"}]):
        make(f"out{number}", **options)
        found.add(read_receipt(f"out{number}").comparable)
    shutil.copytree("m", "elsewhere")
    make("out3", source="elsewhere")
    found.add(read_receipt("out3").comparable)
    assert len(found) == 1
    make("out4", [{"scale_": {"target": r"h\.0\.up", "by": 0.25}}])
    make("out5", [{"cast_": {"target": "norm", "to": "float16"}}])
    flip(Path("elsewhere/model.safetensors"), -1)
    make("out6", source="elsewhere")
    assert len({read_receipt(f"out{n}").comparable for n in (3, 4, 5, 6)}) == 4


def test_files_get_receipts_on_request_and_nothing_gets_one_without(place: Path) -> None:
    make("out.safetensors")
    assert not list(place.glob("*.json"))
    make("out.safetensors", receipt_path="proof.json")
    assert verify("out.safetensors", "proof.json").holds
    assert replay("proof.json", QUICK).holds
    for taken in ("out.safetensors", "m/model.safetensors"):
        with pytest.raises(StorageError, match="what the plan reads or writes"):
            make("out.safetensors", receipt_path=taken)
    make("quiet", receipt=False)
    assert not set(PROOFS) & {path.name for path in Path("quiet").iterdir()}
    make("out", receipt_path="second.json")
    assert verify("out").holds and verify("out", "second.json").holds


@pytest.mark.filterwarnings("ignore:out. kept")
def test_a_receipt_goes_with_its_checkpoint_and_is_no_document(place: Path) -> None:
    make("out")
    Path("out/README.md").write_text("mine")
    with pytest.raises(StorageError, match="holds a checkpoint already"):
        make("out", overwrite=False)
    make("next", [], source="out")
    assert json.loads(Path("next/surgery.receipt.json").read_text())["subject"][0]["name"] == "next"
    make("out", receipt=False)
    assert not set(PROOFS) & {path.name for path in Path("out").iterdir()}
    make("out")
    assert verify("out").holds and Path("out/README.md").read_text() == "mine"
    for file in (*Path("out").glob("model*"), Path("out/config.json")):
        file.unlink()
    with pytest.raises(StorageError, match="the receipt of another checkpoint"):
        make("out", overwrite=False)


def test_strict_refuses_what_is_neither_used_nor_dropped(place: Path) -> None:
    write_checkpoint(place / "extra.safetensors", {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    write_checkpoint(place / "never.safetensors", {"c": np.ones(3, np.float32)})
    inputs = ["m::m", "x::extra.safetensors", "n::never.safetensors"]
    content = {"inputs": inputs, "transforms": [{"copy": {"from": "x::a", "to": "m::a"}}], "output": "out"}
    run(plan_of(content), QUICK)
    untouched = json.loads(Path("out/surgery.tensors.json").read_text())["accounting"]["untouched"]
    assert untouched == ["x::b", "n::"]
    with pytest.raises(PlanError, match="the inputs hold what is neither used nor dropped") as caught:
        run(plan_of(content | {"output": "other"}), Options(strict=True))
    assert caught.value.found == "x::b, all of n" and not Path("other").exists()
    make("fine", strict=True)


# ---------------------------------------------------------------------------------------------------- verification


@pytest.mark.parametrize(
    "output",
    [{"path": "copy", "shard": "20KB"}, "copy.safetensors", "copy.pt", {"path": "copy", "format": "orbax"}],
    ids=["shards", "file", "torch", "orbax"],
)
def test_a_copy_in_any_format_is_verified_and_replayed_against(place: Path, output: Any) -> None:
    make("out")
    make(output, [], source="out")
    path = output if isinstance(output, str) else output["path"]
    found = verify(path, "out")
    assert found.holds and not found.same_files
    against = replay("out", QUICK, against=path)
    assert against.holds and against.num_tensors == 5 and not against.mismatches


def test_verify_names_what_differs_is_missing_and_is_extra(place: Path) -> None:
    make("out")
    assert verify("out").holds
    original = weights("out").read_bytes()
    at = original.index(TENSORS["h.1.up"].tobytes())
    flip(weights("out"), at + 5)
    assert verify("out").tensors_differing == ("h.1.up",)
    assert main(["verify", "out", "--quiet"]) == 1
    weights("out").write_bytes(original.replace(b'"format":"pt"', b'"format":"tp"'))
    assert verify("out").files_differing == (weights("out").name,)
    weights("out").write_bytes(b"nothing")
    assert weights("out").name in verify("out").files_differing
    weights("out").write_bytes(original)
    Path("out/config.json").write_text("[]")
    Path("out/sub").mkdir()
    Path("out/sub/more").write_text("")
    found = verify("out")
    assert (found.files_differing, found.files_extra, found.files_missing) == (("config.json",), ("sub/more",), ())
    Path("out/config.json").unlink()
    assert verify("out").files_missing == ("config.json",)
    make("less", [{"delete": {"target": "norm"}}, {"copy": {"from": r"h\.1\.up", "to": "new"}}], source="out")
    found = verify("less", "out")
    assert (found.tensors_missing, found.tensors_extra) == (("norm",), ("new",))


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("safetensors", "model.safetensors.index.json"), ("safetensors", "model-00002-of-00003.safetensors"),
        ("torch", "pytorch_model.bin.index.json"), ("torch", "pytorch_model-00002-of-00003.bin"),
        ("orbax", "commit_success.txt"), ("orbax", "norm/.zarray"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_read_or_without_which_nothing_can_be_is_missing_too(
    place: Path, format: str, name: str
) -> None:
    make({"path": "out", "format": format} | ({} if format == "orbax" else {"shard": "25KB"}))
    (place / "out" / name).unlink()
    found = verify("out")
    assert not found.holds and found.files_missing == (name,)
    shutil.copytree("out", "copy")
    assert verify("copy", "out").files_missing == (name,)


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_tensors_of_a_shard_that_is_missing_are_named_and_those_of_the_others_compared(
    place: Path, format: str
) -> None:
    make({"path": "out", "format": format, "shard": "25KB"})
    (index,) = Path("out").glob("*.index.json")
    shard_of = json.loads(index.read_text())["weight_map"]
    gone, other = Path("out", shard_of["h.1.up"]), Path("out", shard_of["h.2.up"])
    flip(other, other.read_bytes().index(TENSORS["h.2.up"].tobytes()) + 7)
    gone.unlink()
    found = verify("out")
    assert set(found.tensors_missing) == {name for name, file in shard_of.items() if file == gone.name}
    assert (found.tensors_differing, found.files_missing) == (("h.2.up",), (gone.name,))
    for name in set(shard_of.values()) - {gone.name}:
        Path("out", name).unlink()
    assert set(verify("out").files_missing) == set(shard_of.values())
    shutil.copytree("out", "copy")
    with pytest.raises(StorageError, match="does not exist"):
        verify("copy", "out")


def test_no_name_can_pass_for_a_verdict_of_its_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = "out is what out/surgery.receipt.json says: 1 tensor and 2 files"
    write_checkpoint(place / "m" / "model.safetensors", {f"a\n{verdict}": TENSORS["norm"]})
    make("out", [{"scale_": {"target": "(?s).*", "by": 1}}])
    Path("out/config.json").unlink()
    shutil.copytree("out", "copy")
    flip(weights("copy"), -1)
    for words in (
        ["verify", "copy"],
        ["replay", "out", "--against", "copy"],
        ["diff", "m", "copy"],
    ):
        capsys.readouterr()
        assert main(words) == 1
        told = capsys.readouterr().out.splitlines()
        assert verdict not in [line.strip() for line in told] and any(r"a\nout is what" in line for line in told)


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"ocdbt": True}])
def test_what_cannot_be_read_any_more_is_named_beside_all_else_that_differs(place: Path, options: Any) -> None:
    make({"path": "out", "format": "orbax", "options": options})
    table = read_receipt("out").table
    named = {name: (Path("out") / name).read_bytes() for name in table["files"]}
    largest = max(named, key=lambda name: len(named[name]))  # data, which is compressed or in a store
    Path("out/config.json").write_text("[]")
    os.truncate(Path("out", largest), len(named[largest]) - 3)
    found = verify("out")
    assert len(found.tensors_differing) == 1 and found.tensors_differing[0] in table["tensors"]
    assert sorted(found.files_differing) == sorted(("config.json", largest)) and not found.files_missing
    Path("out", largest).unlink()
    found = verify("out")
    assert (found.files_differing, found.files_missing) == (("config.json",), (largest,))
    Path("out", largest).write_bytes(named[largest])
    Path("out/config.json").write_bytes(named["config.json"])
    assert verify("out").holds


def test_a_file_in_another_format_is_verified_by_the_receipt_of_a_file(place: Path) -> None:
    make("out.safetensors", receipt_path="out.json")
    convert("out.safetensors", "copy.msgpack", QUICK)
    shutil.copy("out.safetensors", "same.safetensors")
    for copy, is_same in (("copy.msgpack", False), ("same.safetensors", True), ("out.safetensors", True)):
        found = verify(copy, "out.json")
        assert found.holds and found.same_files == is_same
    flip(Path("copy.msgpack"), 40_000)
    assert verify("copy.msgpack", "out.json").tensors_differing


def test_who_verifies_a_receipt_is_told_how_to_verify_what_it_is_of(place: Path) -> None:
    make("out")
    make("one.safetensors", receipt_path="one.json")
    for receipt in ("out/surgery.receipt.json", "one.json"):
        with pytest.raises(PlanError, match="this is a receipt") as caught:
            verify(receipt)
        assert caught.value.hint is not None
        assert main([*caught.value.hint.split()[1:], "--quiet"]) == 0


def test_without_digests_of_tensors_only_the_same_files_are_verified(place: Path) -> None:
    make("out", digest="none")
    assert verify("out").holds
    convert("out", "copy.safetensors", QUICK)
    with pytest.raises(PlanError, match="knows no tensors"):
        verify("copy.safetensors", "out")
    flip(weights("out"), -1)
    assert verify("out").files_differing == (weights("out").name,)


# ---------------------------------------------------------------------------------------------------------- replay


def test_a_replay_refuses_other_inputs_and_names_the_tensor(place: Path) -> None:
    make("out")
    shutil.copytree("m", "other")
    assert replay("out", QUICK, inputs={"m": "other"}).holds
    data = Path("other/model.safetensors").read_bytes()
    flip(Path("other/model.safetensors"), data.index(TENSORS["h.2.up"].tobytes()) + 7)
    with pytest.raises(StorageError, match="not those of the receipt") as caught:
        replay("out", QUICK, inputs={"m": "other"})
    assert "tensor h.2.up differs" in str(caught.value.found)
    with pytest.raises(PlanError, match="no input 'x'"):
        replay("out", QUICK, inputs={"x": "other"})
    shutil.rmtree("m")
    with pytest.raises(StorageError, match="the input m does not exist") as caught:
        replay("out", QUICK)
    assert "--input m=PATH" in str(caught.value.hint)


def test_without_digests_of_tensors_a_replay_compares_files_cut_as_they_were(place: Path) -> None:
    for format in ("safetensors", "orbax", "torch", "dcp"):
        make({"path": format, "format": format}, digest="none", shard_size="30KB")
        assert replay(format).holds and replay(format, against=format).holds
    Path("safetensors/of its owner").write_text("there before")
    drawn = [*STEPS, {"fill_": {"target": "norm", "mode": "rand"}}]
    make({"path": "safetensors", "format": "safetensors"}, drawn, digest="none", shard_size="30KB", overwrite=True)
    found = replay("safetensors")
    assert not found.holds and {one.why for one in found.mismatches} == {"the file has other bytes"}


def test_a_replay_does_not_judge_again_what_the_run_was_told_to_write(place: Path) -> None:
    names = {"model.layers.0.mlp.up_proj.weight": np.ones((64, 48), np.float32)}
    write_checkpoint(place / "odd" / "model.safetensors", names)
    (place / "odd/config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    make(steps=[{"scale_": {"target": ".+", "by": 1}}], source="odd", config_check=False)
    assert main(["replay", "out", "--quiet"]) == 0
    assert main(["replay", "out", "--against", "odd", "--quiet"]) == 0


def test_a_replay_writes_what_is_right_and_nothing_else(place: Path) -> None:
    make("out", [*STEPS, {"save": {"path": "middle", "alias": "m", "format": "safetensors"}}])
    before = sorted(place.rglob("*"))
    assert replay("out", QUICK).holds
    assert sorted(place.rglob("*")) == before
    assert replay("out", QUICK, output="again").output == "again"
    assert verify("again", "out").holds


def test_a_flipped_bit_is_found_by_a_replay_against_it(place: Path) -> None:
    make("out")
    shutil.copytree("out", "bad")
    at = weights("bad").read_bytes().index((TENSORS["h.0.up"] * np.float32(0.5)).tobytes())
    flip(weights("bad"), at + 4 * 345)
    found = replay("out", QUICK, against="bad")
    assert not found.holds and [(one.name, one.index) for one in found.mismatches] == [("h.0.up", (3, 45))]
    assert "the same" in found.suspects[0] and "another checkpoint" in found.suspects[0]


def test_a_receipt_that_says_otherwise_fails_the_replay_and_tells_where(place: Path) -> None:
    make("out", [*STEPS, {"scale_": {"target": "norm", "by": 3}}])
    told = json.loads(Path("out/surgery.receipt.json").read_text())
    inner = told["predicate"]["buildDefinition"]["internalParameters"]
    inner["plan"] = inner["plan"].replace("by: 3", "by: 5")
    told["predicate"]["runDetails"]["builder"]["version"]["numpy"] = "1.0"
    Path("out/surgery.receipt.json").write_text(json.dumps(told))
    found = replay("out", QUICK, output="never")
    assert [(one.name, one.index) for one in found.mismatches] == [("norm", (0,))]
    assert found.suspects[0].startswith("numpy: 1.0 then") and not Path("never").exists()
    assert main(["replay", "out", "--quiet"]) == 1


def test_the_replay_of_a_file_tells_where_it_differs(place: Path) -> None:
    make("out.safetensors", [{"scale_": {"target": "norm", "by": 3}}], receipt_path="told.json")
    told = json.loads(Path("told.json").read_text())
    inner = told["predicate"]["buildDefinition"]["internalParameters"]
    inner["plan"] = inner["plan"].replace("by: 3", "by: 5")
    Path("told.json").write_text(json.dumps(told))
    assert [(one.name, one.index) for one in replay("told.json").mismatches] == [("norm", (0,))]
    for name in ("", ".", "..", "../m", "/m", "a\0"):
        told["subject"][0]["name"] = name
        Path("told.json").write_text(json.dumps(told))
        assert [(one.name, one.index) for one in replay("told.json").mismatches] == [("norm", None)]
        with pytest.raises(StorageError, match="leads elsewhere"):
            make("again.safetensors", receipt_path="again.json", reuse="told.json")


@pytest.mark.parametrize("options", [["--devices", "3"], ["--memory", "4MiB", "--workers", "1"]])
def test_a_replay_on_other_devices_and_budgets_gives_the_same_bits(place: Path, options: list[str]) -> None:
    wide = {f"w.{n}": GENERATOR.standard_normal((130, 70)).astype(np.float32) for n in range(6)}
    write_checkpoint(place / "m" / "model.safetensors", wide)
    steps = [
        {"matmul": {"from_a": "w.0", "from_b": "w.t", "to": "square"}},
        {"phlora": {"target": r"w\.[12]", "target_a": r"\g<0>.a", "target_b": r"\g<0>.b", "rank": 4}},
        {"add_": {"from": "w.3", "to": "w.4"}},
    ]
    make("out", [{"permute": {"from": "w.5", "to": "w.t", "order": [1, 0]}}, *steps])
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "surgery_jax", "replay", "out", "--quiet", *options]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_with_several_devices_replay_what_one_has_made(place: Path) -> None:
    make("out", [*STEPS, {"scale_": {"target": "norm", "by": 3}}])
    before = {*place.iterdir(), place / "cache"}
    with Pod(2, "out", cwd=place, devices=2, verb="replay") as pod:
        first, second = pod.start().ends(60)
    assert (first.code, second.code, second.out) == (0, 0, ""), (first, second)
    assert first.out == "out/surgery.receipt.json is what the plan makes: 5 tensors\n"
    told = json.loads(Path("out/surgery.receipt.json").read_text())
    inner = told["predicate"]["buildDefinition"]["internalParameters"]
    inner["plan"] = inner["plan"].replace("by: 3", "by: 5")
    Path("out/surgery.receipt.json").write_text(json.dumps(told))
    with Pod(2, "out", "--output", "never", cwd=place, verb="replay") as pod:
        first, second = pod.start().ends(60)
    assert (first.code, second.code) == (1, 1), (first, second)
    assert first.out.startswith("norm: element [0] is the first that differs")
    assert "the output is not what the receipt says" in second.err
    with Pod(2, "out", "--against", "out", cwd=place, verb="replay") as pod:
        assert [(one.code, one.out[:5]) for one in pod.start().ends(60)] == [(1, "norm:"), (1, "")]
    assert {*place.iterdir(), place / "cache"} == before


def test_a_locked_run_refuses_another_plan_and_other_inputs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.yaml").write_text(json.dumps({"inputs": ["m::m"], "transforms": STEPS, "output": "out"}))
    call = ["run", "plan.yaml", "--no-summary", "--quiet", "--overwrite"]
    assert main(call) == 0
    assert main([*call, "--locked", "out", "output=again"]) == 0
    assert main([*call, "--locked", "out", "transforms[0].scale_.by=3"]) == 2
    assert "expected: by: 0.5" in capsys.readouterr().err
    assert main([*call, "--locked", "out", "output=out.safetensors"]) == 3
    told = capsys.readouterr().err
    assert "m/config.json: the plan reads no such file" in told and "let the output be a directory" in told
    assert main([*call, "--receipt", "file.json", "output=out.safetensors"]) == 0
    assert main([*call, "--locked", "file.json", "output=again"]) == 3
    told = capsys.readouterr().err
    assert "m/config.json: the receipt has no such file" in told and "let the output be a file" in told
    flip(Path("m/model.safetensors"), -1)
    assert main([*call, "--locked", "out"]) == 3
    told = capsys.readouterr().err
    assert "not those of the receipt" in told and "let the inputs of the plan be the right ones" in told


def test_a_locked_run_refuses_other_parameters_even_if_the_plan_is_the_same(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {
        "copies": {"type": "int", "default": 2},
        "kinds": {"type": "list of str", "default": ["a"]},
        "by": {"type": "float", "default": "${1 / copies}"},
        "source": {"type": "path", "default": "m"},
        "output": {"type": "path", "default": "out"},
    }
    steps = [{"when": "copies > 1", "scale_": {"target": "norm", "by": 0.5}}]
    content = {"params": params, "inputs": ["m::${source}"], "transforms": steps}
    Path("plan.yaml").write_text(json.dumps(content))
    Path("values.yaml").write_text("copies: 3\n")
    call = ["run", "plan.yaml", "--no-summary", "--quiet", "--overwrite"]
    assert main(call) == 0
    told = json.loads(Path("out/surgery.receipt.json").read_text())["predicate"]["buildDefinition"]
    assert told["externalParameters"]["parameters"] == {"copies": 2, "kinds": ["a"], "by": 0.5, "source": "m"}
    shutil.copytree("m", "moved")
    same = (["copies=2"], ["kinds=a", "by=0.5"], ["source=moved", "output=again"])
    for words in same:
        assert main([*call, "--locked", "out", *words]) == 0, words
    others = {"copies=3": ("2", "3"), "kinds=b": ('["a"]', '["b"]'), "by=0.25": ("0.5", "0.25")}
    capsys.readouterr()
    for word, (then, now) in others.items():
        name = word.partition("=")[0]
        assert main([*call, "--locked", "out", word]) == 2
        message = capsys.readouterr().err
        assert f"the parameter {name} is not that of the receipt" in message
        assert f"expected: {then}" in message and f"found: {now}\n" in message
    assert main([*call, "--locked", "out", "--params", "values.yaml"]) == 2
    Path("plan.yaml").write_text(json.dumps(content).replace('"default": 2', '"default": 4'))
    assert main([*call, "--locked", "out"]) == 2  # what it is without a word has changed too
    assert main([*call, "--locked", "out", "copies=2"]) == 0


def test_a_file_that_a_plan_executes_is_replayed_as_it_was_and_locked(place: Path) -> None:
    more, steps = Path("more.yaml"), "transforms: [ { scale_: { target: norm, by: %s } } ]"
    more.write_text(steps % 3)
    content = {"inputs": ["m::m"], "transforms": [{"execute": {"path": "more.yaml"}}], "output": "out"}
    Path("plan.yaml").write_text(json.dumps(content))
    command = ["run", "plan.yaml", "--quiet", "--no-summary", "--overwrite"]
    assert main(command) == 0
    more.write_text("# the same\n" + steps % 3)
    assert main([*command, "--locked", "out"]) == 0
    more.write_text(steps % 5)
    assert main([*command, "--locked", "out"]) == 2
    assert replay("out").holds and replay("out", against="out").holds
    more.unlink()
    assert replay("out").holds


def test_a_receipt_whose_subject_is_not_its_files_is_refused(place: Path) -> None:
    make()
    receipt = Path("out/surgery.receipt.json")
    told = json.loads(receipt.read_text())
    told["subject"][0]["digest"]["sha256"] = hashlib.sha256(b"another").hexdigest()
    receipt.write_text(json.dumps(told))
    for read in (verify, replay, lineage):
        with pytest.raises(StorageError, match="not that of the files in its table"):
            read("out")


@pytest.mark.parametrize("digest", [None, 5, "0" * 63])
def test_a_table_of_digests_has_one_of_every_tensor(place: Path, digest: Any) -> None:
    make()
    table, receipt = place / "out/surgery.tensors.json", place / "out/surgery.receipt.json"
    told, said = json.loads(table.read_text()), json.loads(receipt.read_text())
    told["tensors"]["norm"].pop("digest")
    told["tensors"]["norm"] |= {} if digest is None else {"digest": digest}
    table.write_text(json.dumps(told))
    for product in said["predicate"]["runDetails"]["byproducts"]:
        if product["name"] == table.name:
            product["digest"]["sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    receipt.write_text(json.dumps(said))
    with pytest.raises(StorageError, match="not a table of tensors"):
        replay("out", Options(sync=False))


def test_a_receipt_leads_nowhere_else(place: Path) -> None:
    make("deep/out")
    before = sorted(place.rglob("*"))
    receipt, table = Path("deep/out/surgery.receipt.json"), Path("deep/out/surgery.tensors.json")
    told = json.loads(receipt.read_text())
    told["subject"][0]["name"] = "../../stray"
    receipt.write_text(json.dumps(told))
    assert replay("deep/out", QUICK).holds
    assert sorted(place.rglob("*")) == before
    files = json.loads(table.read_text())
    files["files"]["../../m/model.safetensors"] = files["files"]["config.json"]
    table.write_text(json.dumps(files))
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    told["predicate"]["runDetails"]["byproducts"][0]["digest"]["sha256"] = digest
    receipt.write_text(json.dumps(told))
    with pytest.raises(StorageError, match="not a table of tensors") as caught:
        verify("deep/out")
    assert "leads elsewhere" in str(caught.value.found)


# ---------------------------------------------------------------------------------------------- signatures, lineage


@pytest.fixture
def keys(place: Path) -> Callable[[str], tuple[str, str]]:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    def made(curve: str) -> tuple[str, str]:
        key = ec.generate_private_key(getattr(ec, curve)())
        raw = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        Path(f"{curve}.pem").write_bytes(raw)
        raw = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        Path(f"{curve}.pub").write_bytes(raw)
        return f"{curve}.pem", f"{curve}.pub"

    return made


@pytest.mark.parametrize(
    ("curve", "format"),
    [
        *(("SECP256R1", format) for format in ("safetensors", "orbax", "torch", "dcp")),
        ("SECP384R1", "safetensors"),
        ("SECP521R1", "safetensors"),
    ],
)
def test_the_tool_of_openssf_accepts_what_is_signed(place: Path, keys: Any, format: str, curve: str) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    private, public = keys(curve)
    Path("out").mkdir()
    Path("out/notes").write_text("stays")
    make({"path": "out", "format": format}, sign=private)
    tool = verifying.Config().use_elliptic_key_verifier(public_key=public)
    tool.verify("out", "out/model.sig")
    assert verify("out", public_key=public).signed
    Path("out/notes").write_text("is another")
    with pytest.raises(ValueError, match="notes"):
        tool.verify("out", "out/model.sig")


def test_a_repository_of_git_is_no_part_of_what_is_signed_and_verified(place: Path, keys: Any) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    private, public = keys("SECP256R1")
    for name in (".git/objects/1", ".github/ci.yml", ".gitattributes"):
        (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "out" / name).write_text("one")
    make("out", sign=private)
    (place / "out/.git/objects/1").write_text("another")
    (place / "out/.git/objects/2").write_text("more")
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify("out", "out/model.sig")
    assert verify("out", public_key=public).holds
    assert not [name for name in read_receipt("out").table["files"] if name.startswith(".git")]


def test_what_model_signing_refuses_beside_a_signed_output_is_named(place: Path, keys: Any) -> None:
    verifying = pytest.importorskip("model_signing.verifying")
    private, public = keys("SECP256R1")
    make("out", sign=private)
    (place / "elsewhere").mkdir()
    (place / "elsewhere/code.py").write_text("one")
    (place / "out/sub").mkdir()
    for make_it in (
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(place / "elsewhere"),
        lambda path: os.mkfifo(path),
    ):
        for name in ("more", "sub/more"):
            make_it(place / "out" / name)
            with pytest.raises(ValueError):
                verifying.Config().use_elliptic_key_verifier(public_key=public).verify("out", "out/model.sig")
            assert verify("out", public_key=public).files_extra == (name,)
            (place / "out" / name).unlink()
    assert verify("out", public_key=public).holds


@pytest.mark.parametrize("target", ["../elsewhere/file", "../elsewhere", "nowhere"])
def test_symbolic_links_beside_an_output_are_named_before_it_is_signed(place: Path, keys: Any, target: str) -> None:
    private, _ = keys("SECP256R1")
    (place / "out").mkdir()
    (place / "elsewhere").mkdir()
    (place / "elsewhere/file").write_text("one")
    (place / "out/link").symlink_to(target)
    with pytest.raises(PlanError, match="covers no symbolic links") as caught:
        make("out", sign=private)
    assert caught.value.found == "link" and [*(place / "out").iterdir()] == [place / "out/link"]
    make("out")


def test_a_key_that_cannot_sign_is_told_by_its_kind(place: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption
    from cryptography.hazmat.primitives.serialization import PrivateFormat as Form

    def told(key: Any, encryption: Any) -> str:
        (place / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, Form.PKCS8, encryption))
        with pytest.raises(PlanError) as caught:
            make("out", sign="key.pem")
        return f"{caught.value.problem}: {caught.value.found}"

    assert told(rsa.generate_private_key(65537, 2048), NoEncryption()) == "a key of another kind: RSAPrivateKey"
    assert (
        told(ec.generate_private_key(ec.SECP256K1()), NoEncryption())
        == "a key of another kind: one of the curve secp256k1"
    )
    locked = told(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"word"))
    assert locked.startswith("the key is encrypted")
    with pytest.raises(PlanError, match="cannot read the key: No such file"):
        make("out", sign="nothing.pem")


def test_signatures_of_others_and_changed_receipts_are_refused(place: Path, keys: Any) -> None:
    private, public = keys("SECP256R1")
    _, other = keys("SECP384R1")
    make("out", sign=private)
    with pytest.raises(StorageError, match="not signed with this key"):
        verify("out", public_key=other)
    with pytest.raises(PlanError, match="not a public key"):
        verify("out", public_key=private)
    with pytest.raises(PlanError, match="cannot read the key"):
        make("none", sign="nothing.pem")
    with pytest.raises(PlanError, match="an output that is a directory"):
        make("out.safetensors", sign=private)
    with pytest.raises(PlanError, match="has a receipt"):
        make("none", sign=private, receipt=False)
    shutil.copytree("out", "bare")
    Path("bare/model.sig").unlink()
    with pytest.raises(StorageError, match="the files are not signed, although the receipt is"):
        verify("bare", public_key=public)
    assert verify("out", "bare", public_key=public).signed
    receipt = Path("out/surgery.receipt.json")
    receipt.write_text(receipt.read_text() + "\n")
    with pytest.raises(StorageError, match="not the one that was signed"):
        verify("out", public_key=public)


def test_a_lineage_of_three_steps_is_proven_link_by_link(place: Path, keys: Any) -> None:
    private, public = keys("SECP256R1")
    for source, target in (("m", "one"), ("one", "two"), ("two", "three")):
        make(target, [{"scale_": {"target": "norm", "by": 2}}], source=source, sign=private)
    found = lineage("three", public)
    chain = []
    while True:
        chain.append((Path(found.path).name, found.signed, found.end))
        if not found.parents:
            break
        (found,) = found.parents
    assert chain == [
        ("three", True, ""),
        ("two", True, ""),
        ("one", True, ""),
        ("m", False, "no receipt lies beside it"),
    ]
    make("one", [], source="m")
    make("four", [], source="m")
    for asked in (lineage, lambda path, key: verify(path, public_key=key)):
        with pytest.raises(StorageError, match="the receipt is not signed"):
            asked("four", public)
    (two,) = lineage("three").parents
    assert two.parents[0].end == "its receipt is of another model-00001-of-00001.safetensors than this one was made of"
    Path("one/surgery.tensors.json").unlink()
    (two,) = lineage("three").parents
    assert two.parents[0].end == "surgery.tensors.json: does not exist"  # which is not what the checkpoint does


def test_a_lineage_goes_through_every_format(place: Path) -> None:
    formats = ("dcp", "orbax", "torch", "safetensors")
    for source, format in zip(("m", *formats), formats, strict=False):
        convert(source, format, QUICK, format=format)
    found, chain = lineage("safetensors"), []
    while found.parents:
        (found,) = found.parents
        chain.append((Path(found.path).name, found.end))
    assert chain == [("torch", ""), ("orbax", ""), ("dcp", ""), ("m", "no receipt lies beside it")]


def test_a_lineage_goes_through_files_and_the_receipts_beside_them(place: Path) -> None:
    make({"path": "one.pt"}, receipt_path="first.json")
    make({"path": "two.msgpack"}, [], "one.pt", receipt_path="two.receipt.json")
    make({"path": "three.safetensors"}, [], "two.msgpack", receipt_path="three.json")
    make({"path": "four"}, [], "three.safetensors")
    for begin in ("four", "three.safetensors", "three.json"):
        found, chain = lineage(begin), []
        while found.parents:
            chain.append(Path(found.path).name)
            (found,) = found.parents
        assert chain == ["four", "three.safetensors", "two.msgpack", "one.pt"][begin != "four" :]
        assert (Path(found.path).name, found.end) == ("m", "no receipt lies beside it")
    for file, receipt in (("one.pt", "first.json"), ("two.msgpack", "two.receipt.json")):
        assert Path(verify(file).receipt).name == receipt and replay(file).holds
    make({"path": "one.pt"}, [], receipt_path="again.json", overwrite=True)
    make({"path": "two.msgpack"}, [], "one.pt", receipt_path="two.receipt.json", overwrite=True)
    (one,) = lineage("two.msgpack").parents
    assert one.end == "" and one.root == read_receipt("again.json").root  # of two receipts that of what was read
    Path("again.json").unlink()
    (one,) = lineage("two.msgpack").parents
    assert one.end == "its receipt is of another one.pt than this one was made of"
    for lost, end in (("first.json", "no receipt lies beside it"), ("one.pt", "it is not there any more")):
        Path(lost).unlink()
        (one,) = lineage("two.msgpack").parents
        assert (Path(one.path).name, one.end) == ("one.pt", end)


def test_what_lies_beside_an_orbax_checkpoint_is_no_input(place: Path) -> None:
    convert("m", "source", QUICK, format="orbax")
    make("one", [], source="source")
    convert("m", "source", Options(sync=False, overwrite=True), format="orbax")  # with a receipt of another time
    (place / "source/.git").mkdir()
    (place / "source/.git/HEAD").write_text("main")
    make("two", [], source="source")
    assert read_receipt("one").comparable == read_receipt("two").comparable
    assert replay("one").holds


@pytest.mark.parametrize("path", ["m", "m/model.safetensors", "nothing"])
def test_who_names_no_receipt_is_told_where_receipts_lie(place: Path, path: str) -> None:
    for read in (replay, lineage):
        with pytest.raises(StorageError) as caught:
            read(path)
        assert caught.value.hint == "a receipt lies in the directory that it is of, or where --receipt wrote it"
    with pytest.raises(StorageError) as caught:
        verify(path)
    assert caught.value.where == ("m/surgery.receipt.json" if path == "m" else path)


def test_a_renamed_receipt_finds_its_table_under_both_names(place: Path) -> None:
    make("out")
    for name, table in (("told.json", "surgery.tensors.json"), ("other.json", "other.tensors.json")):
        shutil.copy("out/surgery.receipt.json", name)
        with pytest.raises(StorageError) as caught:
            replay(name)
        assert caught.value.hint == "the table of a receipt lies beside it: copy surgery.tensors.json there too"
        shutil.copy("out/surgery.tensors.json", table)
        assert replay(name).holds
        Path("surgery.tensors.json").unlink(missing_ok=True)


def test_a_file_in_the_place_of_a_directory_is_told(place: Path) -> None:
    make("out", [])
    with pytest.raises(StorageError, match="not those of the receipt") as caught:
        replay("out", inputs={"m": "m/model.safetensors"})
    assert caught.value.found == "m: a directory then, and a file now"


# ------------------------------------------------------------------------------------------------- hostile contents


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in paths_of(inner, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_spoiled_receipts_tables_and_signatures_are_refused_or_told(data: st.DataObject, spoiled: Path) -> None:
    """Whatever stands in them: one of our errors, or an answer."""
    name = data.draw(st.sampled_from(["surgery.receipt.json", "surgery.tensors.json", "surgery.receipt.sig"]))
    target = spoiled / "bad" / name
    for proof in PROOFS:
        if (spoiled / "good" / proof).exists():
            shutil.copy(spoiled / "good" / proof, spoiled / "bad" / proof)
    if not target.exists():
        return
    if data.draw(st.booleans()):
        told = json.loads(target.read_text())
        target.write_text(json.dumps(put(told, data.draw(st.sampled_from(paths_of(told))), data.draw(JSON))))
    else:
        raw = bytearray(target.read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        target.write_bytes(raw)
    if name == "surgery.tensors.json":  # a table that its receipt names
        receipt = json.loads((spoiled / "good" / "surgery.receipt.json").read_text())
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        receipt["predicate"]["runDetails"]["byproducts"][0]["digest"]["sha256"] = digest
        (spoiled / "bad" / "surgery.receipt.json").write_text(json.dumps(receipt))
    before = sorted(spoiled.parent.rglob("*"))
    public = str(spoiled / "key.pub") if (spoiled / "key.pub").exists() else None
    for act in (
        lambda: verify(str(spoiled / "bad"), public_key=public if name.endswith(".sig") else None),
        lambda: lineage(str(spoiled / "bad")),
        lambda: replay(str(spoiled / "bad"), QUICK, against=str(spoiled / "good")),
    ):
        try:
            act()
        except SurgeryError:
            pass
    assert sorted(spoiled.parent.rglob("*")) == before


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a receipt, and a copy to be spoiled."""
    root = tmp_path_factory.mktemp("spoiled")
    write_checkpoint(root / "m.safetensors", {"a": np.ones((4, 5), np.float32)})
    options = Options(sync=False)
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

        key = ec.generate_private_key(ec.SECP256R1())
        (root / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        raw = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (root / "key.pub").write_bytes(raw)
        options = Options(sync=False, sign=str(root / "key"))
    except ImportError:
        pass
    steps = [{"scale_": {"target": "a", "by": 2}}, {"assert": {"norm": {"of": "a", "ge": 1}}}]
    content = {"inputs": [f"m::{root / 'm.safetensors'}"], "transforms": steps, "output": str(root / "good")}
    run(plan_of(content), options)
    shutil.copytree(root / "good", root / "bad")
    return root
