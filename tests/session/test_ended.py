"""Runs that are over are known as such, by the receipts of their outputs or by what files say of themselves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import read_checkpoint, write_checkpoint

from surgery_jax import Options, PlanError, StorageError, load_plan, plan_of, run
from surgery_jax.execute.report import Report
from surgery_jax.storage.clearing import cleared

TENSORS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(4, np.float32)}
HALF: list[Any] = [{"scale_": {"target": "w", "by": 0.5}}]
AGAIN = Options(resume=True)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files say nothing of themselves elsewhere")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "m.safetensors", TENSORS)
    if not _keeps_attributes(tmp_path / "m.safetensors"):
        pytest.skip("a file system without extended attributes")
    return tmp_path


def _keeps_attributes(path: Path) -> bool:
    try:
        os.setxattr(path, "user.test", b"kept")
        os.removexattr(path, "user.test")
    except OSError:
        return False
    return True


def make(options: Options = AGAIN, output: Any = "out.safetensors", steps: Any = HALF) -> Report:
    return run(plan_of({"inputs": ["m::m.safetensors"], "transforms": steps, "output": output}), options)


@pytest.mark.parametrize("output", ["out.safetensors", "out.pt", "out.msgpack"])
def test_a_file_without_a_receipt_is_known_as_what_the_plan_has_made(place: Path, output: str) -> None:
    assert make(output=output).num_tensors == 2
    before = (place / output).stat()
    report = make(output=output)
    assert (report.num_tensors, report.outputs) == (0, (output,))
    assert report.leftovers == (
        f"{output}: its label says that this plan made it of these inputs, so nothing is left to do",
    )
    assert (place / output).stat() == before


def test_a_plan_is_applied_to_a_file_once(place: Path) -> None:
    over = Options(resume=True, overwrite=True)
    for _ in range(3):
        report = make(over, "m.safetensors")
        np.testing.assert_array_equal(read_checkpoint(place / "m.safetensors")["w"], TENSORS["w"] / 2)
    assert "its label says that this plan was applied to it; without --resume" in report.leftovers[0]
    with pytest.raises(StorageError, match="applied to it already, but without a receipt"):
        make(Options(resume=True, overwrite=True, receipt_path="told.json"), "m.safetensors")
    make(Options(overwrite=True), "m.safetensors")
    np.testing.assert_array_equal(read_checkpoint(place / "m.safetensors")["w"], TENSORS["w"] / 4)


def _write_to(place: Path) -> None:
    with (place / "out.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")


def _replace_input(place: Path) -> None:
    write_checkpoint(place / "other.safetensors", {name: array + 1 for name, array in TENSORS.items()})
    (place / "other.safetensors").replace(place / "m.safetensors")


def _lose_label(place: Path) -> None:
    shutil.copyfile(place / "out.safetensors", place / "copy.safetensors")
    (place / "copy.safetensors").replace(place / "out.safetensors")


def _spoil_label(place: Path) -> None:
    os.setxattr(place / "out.safetensors", "user.surgery_jax.run", b"anything")


@pytest.mark.parametrize("change", [_write_to, _replace_input, _lose_label, _spoil_label])
def test_what_is_not_certain_is_in_the_way(place: Path, change: Any) -> None:
    make()
    change(place)
    with pytest.raises(StorageError, match="exists already"):
        make()
    assert make(Options(resume=True, overwrite=True)).num_tensors == 2


def test_a_file_of_another_plan_is_in_the_way(place: Path) -> None:
    make()
    with pytest.raises(StorageError, match="exists already"):
        make(steps=[{"scale_": {"target": "w", "by": 0.25}}])


def test_a_plan_that_executes_another_text_has_made_something_else(place: Path) -> None:
    (place / "more.yaml").write_text("transforms: [ { scale_: { target: w, by: 0.5 } } ]")
    (place / "plan.yaml").write_text(
        "inputs: [ 'm::m.safetensors' ]\ntransforms: [ { execute: { path: more.yaml } } ]\noutput: out.safetensors\n"
    )
    run(load_plan("plan.yaml"), AGAIN)
    assert run(load_plan("plan.yaml"), AGAIN).num_tensors == 0
    (place / "more.yaml").write_text("transforms: [ { scale_: { target: w, by: 0.25 } } ]")
    with pytest.raises(StorageError, match="exists already"):
        run(load_plan("plan.yaml"), AGAIN)


def test_files_and_directories_of_one_plan_are_known_together(place: Path) -> None:
    steps = [{"save": {"path": "first.safetensors", "alias": "m"}}, *HALF]
    make(output="second", steps=steps)
    report = make(output="second", steps=steps)
    assert report.outputs == ("first.safetensors", "second") and "its receipt says" in report.leftovers[0]
    (place / "first.safetensors").unlink()
    with pytest.raises(StorageError, match="second"):
        make(output="second", steps=steps)


def test_what_is_asked_for_beside_a_file_is_owed_still(place: Path) -> None:
    make()
    with pytest.raises(StorageError, match="made it of these inputs already, but without a receipt") as told:
        make(Options(resume=True, receipt_path="told.json"))
    assert told.value.hint == "leave out --receipt; or add --overwrite, to make it again"
    make(Options(resume=True, receipt_path="told.json", overwrite=True))
    assert "its receipt says" in make(Options(resume=True, receipt_path="told.json")).leftovers[0]
    with pytest.raises(PlanError, match="signing needs an output that is a directory"):
        make(Options(resume=True, overwrite=True, sign=str(_key(place))))


def _key(place: Path) -> Path:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    raw = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (place / "key.pem").write_bytes(raw)
    return place / "key.pem"


def test_a_file_system_without_attributes_only_knows_less(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    make()
    with pytest.raises(StorageError, match="exists already"):
        make()


BARE = Options(resume=True, receipt=False)


@pytest.mark.parametrize("form", ["safetensors", "torch", "orbax"])
def test_a_directory_without_a_receipt_is_known_as_what_the_plan_has_made(place: Path, form: str) -> None:
    (place / "out").mkdir()
    (place / "out" / "README").write_text("mine")
    make(BARE, {"path": "out", "format": form})
    (place / "out" / "README").write_text("what others write there does not matter")
    report = make(BARE, {"path": "out", "format": form})
    assert report.leftovers == ("out: its label says that this plan made it of these inputs, so nothing is left to do",)


def test_a_plan_is_applied_once_to_the_working_directory_and_to_a_directory_without_a_receipt(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "m").mkdir()
    write_checkpoint(place / "m" / "model.safetensors", TENSORS)
    over = Options(resume=True, receipt=False, overwrite=True)

    def halve(where: str, options: Options = over) -> Report:
        return run(plan_of({"inputs": [f"m::{where}"], "transforms": HALF, "output": where}), options)

    for _ in range(2):
        report = halve("m")
    assert "its label says that this plan was applied to it" in report.leftovers[0]
    monkeypatch.chdir(place / "m")  # whose files are exchanged one by one
    for _ in range(2):
        report = halve(".")
    assert "its label says that this plan was applied to it" in report.leftovers[0]
    with pytest.raises(StorageError, match="applied to it already, but without a receipt"):
        halve(".", Options(resume=True, overwrite=True))
    (made,) = (place / "m").glob("*.safetensors")
    np.testing.assert_array_equal(read_checkpoint(made)["w"], TENSORS["w"] / 4)


def _change_time(file: Path) -> None:
    os.utime(file)


@pytest.mark.parametrize("change", [Path.unlink, _change_time, lambda file: file.write_bytes(b"")])
def test_a_directory_in_which_a_file_is_another_one_is_in_the_way(place: Path, change: Any) -> None:
    make(BARE, "out")
    assert make(BARE, "out").num_tensors == 0
    change(next((place / "out").glob("*.safetensors")))
    with pytest.raises(StorageError, match="out: "):
        make(BARE, "out")


def test_a_directory_is_told_apart_that_has_no_receipt_but_should_have_one(place: Path) -> None:
    make(BARE, "out")
    with pytest.raises(StorageError, match="made it of these inputs already, but without a receipt") as told:
        make(AGAIN, "out")
    assert told.value.hint == "add --no-receipt; or add --overwrite, to make it again"
    with pytest.raises(StorageError, match="already, but without a signature"):
        make(Options(resume=True, sign=str(_key(place))), "out")
    make(Options(resume=True, overwrite=True), "out")
    assert "its receipt says" in make(AGAIN, "out").leftovers[0]
    assert "user.surgery_jax.run" not in os.listxattr(place / "out")


@pytest.mark.parametrize(
    "said", [{"names": []}, {"names": None}, {"names": [1]}, {"names": ["\0"]}, {"state": ""}], ids=repr
)
def test_a_label_of_a_directory_by_a_stranger_proves_nothing(place: Path, said: dict[str, Any]) -> None:
    make(BARE, "out")
    path, name = place / "out", "user.surgery_jax.run"
    told = json.loads(zlib.decompress(os.getxattr(path, name)))
    assert told.keys() >= said.keys()
    os.setxattr(path, name, zlib.compress(json.dumps(told | said).encode()))
    with pytest.raises(StorageError, match="holds a checkpoint already"):
        make(BARE, "out")


@pytest.mark.parametrize("name", ["head", "lock"])
def test_nobody_waits_for_a_pipe_in_the_place_of_what_a_run_has_left(place: Path, name: str) -> None:
    stage = place / ".out.safetensors.surgery-abcdefgh"
    stage.mkdir()
    for made in ("head", "lock"):
        (stage / made).write_bytes(b"")
    (stage / name).unlink()
    os.mkfifo(stage / name)
    assert make().num_tensors == 2
    assert all(stage.name in one.told for one in cleared("out.safetensors"))


STRANGE: list[dict[str, Any]] = [
    {"outputs": ["\0"]}, {"outputs": {}}, {"inputs": {"\0": []}},
    {"inputs": {"nowhere://x": []}}, {"inputs": {"\ud800": [1]}}, {"inputs": {"m.safetensors": {}}}, {"inputs": []},
    {"texts": {"\0": ""}}, {"texts": {".": None}}, {"texts": []}, {"versions": None}, {"plan": 1}, {"state": None},
]  # fmt: skip


@pytest.mark.parametrize("said", STRANGE, ids=repr)
def test_a_label_of_a_stranger_proves_nothing(place: Path, said: dict[str, Any]) -> None:
    make()
    path, name = place / "out.safetensors", "user.surgery_jax.run"
    told = json.loads(zlib.decompress(os.getxattr(path, name)))
    assert told.keys() >= said.keys()
    os.setxattr(path, name, zlib.compress(json.dumps(told | said).encode()))
    with pytest.raises(StorageError, match="exists already"):
        make()
