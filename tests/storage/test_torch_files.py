"""Torch files and distributed checkpoints: against PyTorch itself."""

import argparse
import io
import json
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from storing import bytes_of, sample, spec, write

from surgery_jax import Options, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.dtypes import DTYPES
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint, open_single, resolve_output, resolve_save_tensor
from surgery_jax.storage.torch.pickles import Built, PickleRefused, read_pickle
from surgery_jax.storage.torch.tensors import STORAGES, UNTYPED
from surgery_jax.storage.torch.zips import lay_zip

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch warns about itself

HELD = [*STORAGES, *UNTYPED]
TENSORS = {name: sample(name, 3, 5) for name in HELD} | {
    "empty": sample("float32", 0, 4),
    "scalar": sample("bfloat16"),
    "é.\U0001f600": sample("int64", 1),
    "": sample("int8", 2),
}


def raw(tensor: Any) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor(name: str) -> Any:
    made, data = TENSORS[name]
    flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, made.dtype.name)) if data else torch.empty(0)
    return flat.reshape(made.shape)


def read(path: Path) -> dict[str, bytes]:
    return {name: bytes_of(entry) for name, entry in open_checkpoint(str(path)).entries.items()}


def refusal(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        open_checkpoint(str(path))
    assert caught.value.exit_code == 3
    return str(caught.value)


# --- files


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_we_write_safely_and_mapped(mapped: bool, tmp_path: Path) -> None:
    write(tmp_path / "a.pt", TENSORS)
    found = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
    assert list(found) == list(TENSORS)
    for name, (made, data) in TENSORS.items():
        assert tuple(found[name].shape) == made.shape
        assert found[name].dtype == getattr(torch, made.dtype.name)
        assert raw(found[name]) == data


def test_written_archives_have_true_checksums_and_aligned_tensors(tmp_path: Path) -> None:
    layout = write(tmp_path / "a.pt", TENSORS)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
    assert all(offset % 64 == 0 for _, offset in layout.places.values())


@pytest.mark.parametrize("is_zip", [True, False])
def test_we_read_what_torch_writes_without_reading_data(is_zip: bool, tmp_path: Path) -> None:
    torch.save({name: tensor(name) for name in TENSORS}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    found = open_checkpoint(str(tmp_path / "a.pt"))
    assert {name: entry.spec for name, entry in found.entries.items()} == {n: made for n, (made, _) in TENSORS.items()}
    assert all(entry.extent is not None for entry in found.entries.values())
    assert read(tmp_path / "a.pt") == {name: data for name, (_, data) in TENSORS.items()}


def test_reading_and_writing_torch_files_does_not_need_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3)}, tmp_path / "a.pt")
    program = (
        "import sys; from surgery_jax.storage.formats import *; "
        "c = open_checkpoint(sys.argv[1]); resolve_output('o.pt', None, None, '5GB')"
        ".layout([(n, e.spec) for n, e in c.entries.items()], {}); "
        "assert not {'torch', 'jax', 'numpy'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.pt")], cwd=root, check=True)


def test_views_are_read_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "base": base,
        "transposed": base.T,
        "rows": base[1:3],
        "columns": base[:, 2:4],
        "steps": base[::2, ::3],
        "one": base[3, 5],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "nothing": base[4:],
        "parameter": torch.nn.Parameter(base[2]),
    }
    expected = {name: raw(view) for name, view in views.items()}
    for is_zip in (True, False):
        torch.save(views, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
        assert read(tmp_path / "a.pt") == expected
    extents = {name for name, entry in open_checkpoint(str(tmp_path / "a.pt")).entries.items() if entry.extent}
    assert extents == {"base", "rows", "one", "nothing", "parameter"}


def test_packed_archives_are_read_too(tmp_path: Path) -> None:
    torch.save({name: tensor(name) for name in TENSORS}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert read(tmp_path / "b.pt") == {name: data for name, (_, data) in TENSORS.items()}


def test_the_state_dict_of_a_module_is_a_checkpoint(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.bin")
    assert read(tmp_path / "a.bin") == {name: raw(value) for name, value in module.state_dict().items()}


def test_beside_a_state_dict_of_its_own_key_anything_may_lie_unexecuted(tmp_path: Path) -> None:
    inner = OrderedDict(w=torch.arange(3))
    torch.save({"state_dict": inner, "epoch": 3, "args": argparse.Namespace(a=1)}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth") == {"w": raw(inner["w"])}


@pytest.mark.parametrize(
    "value",
    [3, "text", None, [1], [torch.ones(1)], {"w": 1}, {"inner": {"w": 1}}, argparse.Namespace(a=1), {}, {1: 2}],
)
def test_what_is_no_table_of_tensors_is_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


def left_out(path: Path | str) -> str:
    return "\n".join(open_checkpoint(str(path)).left_out)


def test_a_value_that_is_no_tensor_is_left_out_and_told(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "step": 5, "args": argparse.Namespace(a=1)}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt")) == ["w"]
    assert left_out(tmp_path / "a.pt") == "no tensors: step (a number), args (an object argparse.Namespace)"
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    assert left_out(tmp_path / "a.pt") == ""


def test_what_is_left_out_is_told_once_also_quietly_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"w": torch.ones(1), "step": 5}, tmp_path / "a.pt")
    command = ["convert", str(tmp_path / "a.pt"), str(tmp_path / "o.safetensors"), "--overwrite"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("left out: no tensors: step (a number)") == 1
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["inspect", str(tmp_path / "a.pt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["no tensors: step (a number)"]


@pytest.mark.parametrize("is_zip", [True, False])
def test_states_of_modules_that_are_bytes_or_nothing_are_left_out(is_zip: bool, tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    for layer in range(40):
        state[f"layers.{layer}.weight"] = torch.ones(2)
        state[f"layers.{layer}._extra_state"] = io.BytesIO(b"scales") if layer % 2 else None
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    assert list(read(tmp_path / "a.pt")) == [f"layers.{layer}.weight" for layer in range(40)]
    assert "_extra_state (an object _io.BytesIO)" in left_out(tmp_path / "a.pt")
    assert len(left_out(tmp_path / "a.pt")) < 300


class Doubled(torch.Tensor):
    """A tensor of a class of its own, with its bytes."""


def test_tensors_that_are_more_than_bytes_are_left_out_and_told(tmp_path: Path) -> None:
    kinds = {
        "sparse": torch.ones(2, 2).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
        "wide": torch.ones(2, dtype=torch.complex128),
        "meta": torch.ones(2, device="meta"),
    }
    own = torch.ones(2).as_subclass(Doubled)
    torch.save({"w": torch.ones(2), "own": own, **kinds}, tmp_path / "a.pt")
    assert set(read(tmp_path / "a.pt")) == {"w", "own"}
    told = left_out(tmp_path / "a.pt")
    assert "wide (a tensor in a torch.ComplexDoubleStorage)" in told
    assert "conjugate (a tensor that is stored conjugated or negated)" in told
    assert all(f"{name} (" in told for name in kinds)


def training_state() -> dict[str, Any]:
    """A model and an optimizer that has seen a step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("is_zip", [True, False])
def test_nested_tables_become_dotted_names(is_zip: bool, tmp_path: Path) -> None:
    state = training_state()
    kept = {**state, "model_args": {"n_layer": 2}, "iter_num": 3, "config": {"lr": 0.1}}
    torch.save(kept, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=is_zip)
    expected = {f"model.{name}": raw(value) for name, value in state["model"].items()}
    for number, held in state["optimizer"]["state"].items():
        expected |= {f"optimizer.state.{number}.{name}": raw(value) for name, value in held.items()}
    assert read(tmp_path / "ckpt.pt") == expected
    told = left_out(tmp_path / "ckpt.pt")
    assert "model_args (a table without tensors)" in told
    assert "optimizer.param_groups (a table without tensors)" in told
    assert "iter_num (a number)" in told
    model = {name: raw(value) for name, value in state["model"].items()}
    assert read(Path(f"{tmp_path}/ckpt.pt#model")) == model
    assert left_out(f"{tmp_path}/ckpt.pt#model") == ""
    assert len(read(Path(f"{tmp_path}/ckpt.pt#optimizer.state.1"))) == 3


@pytest.mark.parametrize("key", ["model", "module", "model_state_dict", "params_ema"])
def test_the_only_table_of_tensors_is_the_model(key: str, tmp_path: Path) -> None:
    state = training_state()["model"]
    torch.save({key: state, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "a.pt")
    expected = {name: raw(value) for name, value in state.items()}
    assert read(tmp_path / "a.pt") == expected == read(Path(f"{tmp_path}/a.pt#{key}"))
    assert "epoch (a number)" in left_out(tmp_path / "a.pt")
    torch.save({"encoder": state}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt")) == [f"encoder.{name}" for name in state]


def test_one_of_two_sets_of_weights_is_chosen(tmp_path: Path) -> None:
    torch.save({"params": {"w": torch.zeros(2)}, "params_ema": {"w": torch.ones(2)}}, tmp_path / "net.pth")
    assert list(read(tmp_path / "net.pth")) == ["params.w", "params_ema.w"]
    assert read(Path(f"{tmp_path}/net.pth#params_ema")) == {"w": raw(torch.ones(2))}


def test_beside_a_state_dict_other_tensors_are_told_and_can_be_chosen(tmp_path: Path) -> None:
    state = training_state()
    lightning = {
        "state_dict": {"model.weight": torch.ones(2)},
        "optimizer_states": [state["optimizer"]],
        "hyper_parameters": argparse.Namespace(a=1),
        "epoch": 2,
    }
    torch.save(lightning, tmp_path / "last.ckpt")
    assert list(read(tmp_path / "last.ckpt")) == ["model.weight"]
    assert "tensors, read with a part such as #optimizer_states" in left_out(tmp_path / "last.ckpt")
    assert "hyper_parameters (an object argparse.Namespace)" in left_out(tmp_path / "last.ckpt")
    assert read(Path(f"{tmp_path}/last.ckpt#model")) == {"weight": raw(torch.ones(2))}
    assert list(read(Path(f"{tmp_path}/last.ckpt#state_dict"))) == ["model.weight"]
    held = read(Path(f"{tmp_path}/last.ckpt#optimizer_states.0.state"))
    assert held["1.exp_avg"] == raw(state["optimizer"]["state"][1]["exp_avg"])


def test_a_part_is_chosen_before_anything_is_refused(tmp_path: Path) -> None:
    content = {
        "good": {"w": torch.ones(2)},
        "twice": {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
    }
    torch.save(content, tmp_path / "a.pt")
    assert "two tensors are named 'twice.a.b'" in refusal(tmp_path / "a.pt")
    assert list(read(Path(f"{tmp_path}/a.pt#good"))) == ["w"]
    assert "no part 'god'" in refusal(Path(f"{tmp_path}/a.pt#god"))


def test_a_table_in_itself_is_left_out(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["self"] = loop
    ring: list[Any] = [torch.ones(1)]
    ring.append((ring,))
    torch.save({"loop": loop, "ring": ring}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt")) == ["loop.w", "ring.0"]
    assert "loop.self (a table that is in itself)" in left_out(tmp_path / "a.pt")


def test_programs_and_whole_models_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    assert "TorchScript" in refusal(tmp_path / "a.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "Linear" in refusal(tmp_path / "a.pt")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


PRINTS = {f"no tensors: b (an object {module}.print)" for module in ("builtins", "__builtin__")}


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_not_executed(is_zip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.ones(1), "b": Bomb()}, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    assert left_out(tmp_path / "a.pt") in PRINTS
    torch.save(Bomb(), tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    assert "print" in refusal(tmp_path / "a.pt")
    assert capsys.readouterr().out == ""


def test_single_tensors_are_read_bare_or_alone_in_a_table(tmp_path: Path) -> None:
    value = torch.arange(3)
    for content, name in [(value, None), ({"w": value, "step": 3}, "w"), ({"state_dict": {"v": value}}, "v")]:
        torch.save(content, tmp_path / "w.dat")
        found, entry, _ = open_single(str(tmp_path / "w.dat"), "auto")
        assert (found, bytes_of(entry)) == (name, raw(value))
    torch.save({"a": value, "b": value}, tmp_path / "w.dat")
    with pytest.raises(StorageError, match=r"(?s)exactly one tensor.*2: a, b"):
        open_single(str(tmp_path / "w.dat"), "torch")


@pytest.mark.parametrize("name", ["float32", "float8_e4m3fn", "scalar", "empty"])
def test_one_tensor_is_saved_bare(name: str, tmp_path: Path) -> None:
    write(resolve_save_tensor(str(tmp_path / "w"), "torch"), {name: TENSORS[name]})
    assert raw(torch.load(tmp_path / "w", weights_only=True)) == TENSORS[name][1]


@pytest.mark.parametrize("dtype", [dtype.name for dtype in DTYPES if dtype.name not in HELD])
def test_dtypes_that_torch_does_not_have_are_refused(dtype: str, tmp_path: Path) -> None:
    plan = resolve_output(str(tmp_path / "a.pt"), None, None, "5GB")
    with pytest.raises(StorageError, match=dtype):
        plan.layout([("w", spec(dtype, 4))], {})


def test_places_beyond_four_gigabytes_are_laid_out_as_zip_demands(tmp_path: Path) -> None:
    plan = resolve_output(str(tmp_path / "a.pt"), None, None, "5GB")
    layout = plan.layout(
        [("small", spec("uint8", 8)), ("large", spec("uint8", 5 << 30)), ("last", spec("int16", 3))], {}
    )
    with (tmp_path / "a.pt").open("wb") as stream:  # a sparse file: no checksums, little disk
        stream.truncate(layout.files[0].size)
        for offset, data in layout.files[0].fixed:
            stream.seek(offset)
            stream.write(data)
        stream.seek(layout.places["last"][1])
        stream.write(b"\1\0\2\0\3\0")
    assert torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)["last"].tolist() == [1, 2, 3]
    found = open_checkpoint(str(tmp_path / "a.pt")).entries
    assert found["large"].spec == spec("uint8", 5 << 30)
    assert bytes_of(found["last"]) == b"\1\0\2\0\3\0"


def test_archives_of_more_than_65535_members_are_laid_out_as_zip_demands(tmp_path: Path) -> None:
    laid = lay_zip([(f"archive/{number}", b"x") for number in range(66_000)])
    with (tmp_path / "a.zip").open("wb") as stream:
        for offset, data in laid.fixed:
            stream.seek(offset)
            stream.write(data)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 66_000


def test_directories_of_files_leave_out_what_is_no_weights(tmp_path: Path) -> None:
    for number, name in enumerate(["b.pt", "a.bin", "c.pth"]):
        torch.save({f"w{number}": torch.tensor(number)}, tmp_path / name)
    torch.save({"lr": 0.1}, tmp_path / "optimizer.pt")
    torch.save(argparse.Namespace(), tmp_path / "training_args.bin")
    assert list(open_checkpoint(str(tmp_path)).entries) == ["w0", "w2", "w1"]


def test_an_index_says_which_files_of_a_directory_count(tmp_path: Path) -> None:
    torch.save({"w": torch.tensor(1)}, tmp_path / "pytorch_model-00001-of-00001.bin")
    torch.save({"lr": 0.1}, tmp_path / "other.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}')
    assert list(open_checkpoint(str(tmp_path)).entries) == ["w"]
    index.write_text('{"weight_map": {"w": "../pytorch_model-00001-of-00001.bin"}}')
    refusal(tmp_path)


def test_a_directory_of_two_formats_is_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", {"w": sample("uint8", 1)})
    write(tmp_path / "b.safetensors", {"w": sample("uint8", 1)})
    told = refusal(tmp_path)
    assert f"say which: {tmp_path}/b.safetensors or {tmp_path}/a.pt" in told


# --- pickles that are no data


def test_deeply_nested_keys_are_refused_and_do_not_crash() -> None:
    with pytest.raises(PickleRefused):
        read_pickle(b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.", {}, lambda pid: pid)


def test_huge_memo_numbers_take_no_memory() -> None:
    assert read_pickle(b"\x80\x02Nr\xff\xff\xff\xff.", {}, lambda pid: pid)[0] is None


def test_unknown_names_stay_names() -> None:
    value, end = read_pickle(b"\x80\x02cos\nsystem\nX\2\0\0\0ls\x85R.rest", {}, lambda pid: pid)
    assert isinstance(value, Built)
    assert (str(value.symbol), value.args, end) == ("os.system", ("ls",), 23)


LONG = b"\x8e" + struct.pack("<Q", 2**63)


@pytest.mark.parametrize(
    "text",
    [b"", b".", b"\x80\x02", b"}0.", b"X\xff\xff\xff\xff.", LONG, b"h\1.", b"t.", b"NNs.", b"Na.", b"i.", b"NNR."],
)
def test_broken_pickles_are_refused(text: bytes) -> None:
    with pytest.raises(PickleRefused):
        read_pickle(text, {}, lambda pid: pid)


# --- distributed checkpoints


def dcp() -> Any:
    import torch.distributed.checkpoint

    return torch.distributed.checkpoint


def test_a_distributed_checkpoint_of_ours_is_loaded_by_torch(tmp_path: Path) -> None:
    write(resolve_output(str(tmp_path / "out"), "dcp", None, "5GB"), TENSORS)
    state = {
        name: torch.zeros(made.shape, dtype=getattr(torch, made.dtype.name)) for name, (made, _) in TENSORS.items()
    }
    dcp().load(state, checkpoint_id=tmp_path / "out", no_dist=True)
    assert {name: raw(value) for name, value in state.items()} == {name: data for name, (_, data) in TENSORS.items()}
    assert read(tmp_path / "out") == {name: data for name, (_, data) in TENSORS.items()}


def test_a_distributed_checkpoint_of_torch_is_read(tmp_path: Path) -> None:
    dcp().save({name: tensor(name) for name in TENSORS}, checkpoint_id=tmp_path / "out", no_dist=True)
    assert read(tmp_path / "out") == {name: data for name, (_, data) in TENSORS.items()}


def test_other_values_are_left_out_only_beside_a_state_dict(tmp_path: Path) -> None:
    dcp().save({"state_dict": {"a.b": torch.ones(2)}, "epoch": 3}, checkpoint_id=tmp_path / "a", no_dist=True)
    assert list(open_checkpoint(str(tmp_path / "a")).entries) == ["a.b"]
    assert "epoch (a pickled value)" in left_out(tmp_path / "a")
    dcp().save({"w": torch.ones(2), "epoch": 3}, checkpoint_id=tmp_path / "b", no_dist=True)
    assert list(open_checkpoint(str(tmp_path / "b")).entries) == ["w"]
    assert left_out(tmp_path / "b") == "no tensors: epoch (a pickled value)"


def test_a_whole_training_state_in_a_distributed_checkpoint_is_read(tmp_path: Path) -> None:
    state = training_state()
    state["model"]["0._extra_state"] = io.BytesIO(b"scales")
    state["optimizer"]["state"] = {str(number): held for number, held in state["optimizer"]["state"].items()}
    kept = {**state, "step": 3, "wide": torch.ones(2, dtype=torch.complex128)}
    dcp().save(kept, checkpoint_id=tmp_path / "a", no_dist=True)
    expected = {f"model.{name}": raw(value) for name, value in state["model"].items() if "extra" not in name}
    for number, held in state["optimizer"]["state"].items():
        expected |= {f"optimizer.state.{number}.{name}": raw(value) for name, value in held.items()}
    assert read(tmp_path / "a") == expected
    told = left_out(tmp_path / "a")
    for words in (
        "step (a pickled value)",
        "model.0._extra_state",
        "optimizer.param_groups.0.* (",
        "wide (a tensor of complex128)",
    ):
        assert words in told
    assert set(read(Path(f"{tmp_path}/a#model"))) == {"0.weight", "0.bias", "1.weight"}
    assert left_out(f"{tmp_path}/a#model") == "no tensors: 0._extra_state (a pickled value)"
    assert set(read(Path(f"{tmp_path}/a#optimizer.state.1"))) == {"step", "exp_avg", "exp_avg_sq"}
    assert "no part 'modle'" in refusal(Path(f"{tmp_path}/a#modle"))


def test_a_distributed_checkpoint_without_tensors_says_what_it_has(tmp_path: Path) -> None:
    dcp().save({"step": 3}, checkpoint_id=tmp_path / "a", no_dist=True)
    assert "step (a pickled value)" in refusal(tmp_path / "a")


def write_chunks(path: Path, sizes: list[tuple[tuple[int, ...], tuple[int, ...]]], table: Any = None) -> Any:
    """A tensor, of 7 × 5 if none is given, in chunks, as the ranks of a training run leave it; what it holds."""
    from torch.distributed.checkpoint import filesystem, metadata

    table = torch.arange(35.0).reshape(7, 5) if table is None else table
    path.mkdir()
    chunks, places = [], {}
    for rank, (corner, shape) in enumerate(sizes):
        stream = io.BytesIO()
        torch.save(table[tuple(slice(a, a + n) for a, n in zip(corner, shape, strict=True))].clone(), stream)
        (path / f"__{rank}_0.distcp").write_bytes(b"before" + stream.getvalue() + b"after")
        chunks.append(metadata.ChunkStorageMetadata(torch.Size(corner), torch.Size(shape)))
        info = filesystem._StorageInfo(f"__{rank}_0.distcp", 6, len(stream.getvalue()))
        places[metadata.MetadataIndex("w", torch.Size(corner), rank)] = info
    properties = metadata.TensorProperties(dtype=torch.float32)
    contents = {"w": metadata.TensorStorageMetadata(properties, table.shape, chunks)}
    (path / ".metadata").write_bytes(pickle.dumps(metadata.Metadata(contents, {"w": ("w",)}, places)))
    return table


ROWS, COLUMNS = [((0, 0), (4, 5)), ((4, 0), (3, 5))], [((0, 0), (7, 3)), ((0, 3), (7, 2))]
SOME_EMPTY = [((6, 0), (1, 5)), ((3, 0), (3, 5)), ((7, 0), (0, 5)), ((0, 0), (3, 5))]
MORE_IN_THE_LAST, MORE_IN_THE_FIRST = [((0, 0), (2, 5)), ((2, 0), (5, 5))], [((0, 0), (4, 5)), *ROWS[1:]]


@pytest.mark.parametrize("sizes", [ROWS, COLUMNS, SOME_EMPTY, MORE_IN_THE_LAST, MORE_IN_THE_FIRST])
def test_tensors_in_several_chunks_are_put_together(sizes: list[Any], tmp_path: Path) -> None:
    table = write_chunks(tmp_path / "out", sizes)
    state = {"w": torch.zeros(7, 5)}
    dcp().load(state, checkpoint_id=tmp_path / "out", no_dist=True)
    assert torch.equal(state["w"], table)  # so that it is a checkpoint to torch, too
    assert read(tmp_path / "out") == {"w": raw(table)}
    (tmp_path / "out/__1_0.distcp").write_bytes((tmp_path / "out/__1_0.distcp").read_bytes()[:-20])
    assert "cut off" in refusal(tmp_path / "out")


def test_a_tensor_in_shards_of_its_rows_takes_the_memory_of_one(tmp_path: Path) -> None:
    """As FSDP leaves it: read, computed and written within a budget that the whole would not fit."""
    table = torch.randn(8, 1 << 18)
    write_chunks(tmp_path / "m", [((row, 0), (1, 1 << 18)) for row in range(8)], table)
    blocks = open_checkpoint(str(tmp_path / "m")).entries["w"].blocks
    assert blocks is not None and (blocks.length, blocks.period) == (1 << 18, 8 << 18)
    steps = [{"scale_": {"target": "w", "by": 2}}]
    plan = plan_of({"inputs": [str(tmp_path / "m")], "transforms": steps, "output": str(tmp_path / "o.safetensors")})
    report = run(plan, Options(sync=False, memory="6MB", workers=1))
    assert report.peak_buffer_bytes < table.nbytes
    assert torch.equal(load_file(tmp_path / "o.safetensors")["w"], 2 * table)


@pytest.mark.parametrize(
    "sizes", [ROWS[:1], [*ROWS, ((0, 0), (1, 5))], [((0, 0), (4, 5)), ((3, 0), (3, 5))], [((0, 0), (7, 6))]]
)
def test_chunks_that_do_not_make_up_the_tensor_are_refused(sizes: list[Any], tmp_path: Path) -> None:
    write_chunks(tmp_path / "out", sizes)
    assert "make up" in refusal(tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\x80\x04}.", b"garbage"])
def test_a_broken_table_is_refused(content: bytes, tmp_path: Path) -> None:
    write(resolve_output(str(tmp_path / "out"), "dcp", None, "5GB"), TENSORS)
    (tmp_path / "out/.metadata").write_bytes(content)
    refusal(tmp_path / "out")


def test_a_table_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    write(resolve_output(str(tmp_path / "out"), "dcp", None, "5GB"), {"w": TENSORS["float32"]})
    table = (tmp_path / "out/.metadata").read_bytes()
    assert table.count(b"__0_0.distcp") == 1
    (tmp_path / "out/.metadata").write_bytes(table.replace(b"__0_0.distcp", b"../out/x.dis"))
    assert "inside" in refusal(tmp_path / "out")


def test_every_mutilated_archive_is_refused_or_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.arange(3), "v": torch.ones(2, 2).T}, stream)
    whole = stream.getvalue()
    for at in range(0, len(whole), 3):
        (tmp_path / "a.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        try:
            for entry in open_checkpoint(str(tmp_path / "a.pt")).entries.values():
                bytes_of(entry)
        except StorageError:
            pass


def test_shards_of_torch_files_have_an_index_and_load_in_torch(tmp_path):
    """A directory as other tools write it: every file loads by itself, and the index says the truth."""

    import surgery_jax

    tensors = {f"h.{n}.w": torch.randn(50, 7) for n in range(9)}
    torch.save(tensors, tmp_path / "whole.pt")
    surgery_jax.convert(
        tmp_path / "whole.pt", tmp_path / "parts", surgery_jax.Options(shard_size="3KB"), format="torch"
    )
    index = json.loads((tmp_path / "parts/pytorch_model.bin.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"pytorch_model-{n:05d}-of-00005.bin" for n in range(1, 6)]
    assert index["metadata"]["total_size"] == 9 * 50 * 7 * 4
    found = {}
    for file in files:
        part = torch.load(tmp_path / "parts" / file, weights_only=True)
        assert all(index["weight_map"][name] == file for name in part)
        found |= part
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert not surgery_jax.diff(tmp_path / "parts", tmp_path / "whole.pt").changed


@pytest.mark.parametrize("table", [dict, OrderedDict])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_name_that_is_twice_in_a_table_is_refused(
    table: type[dict[str, object]], is_old: bool, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    tensors = table({"aa": torch.ones(2), "ab": torch.zeros(2)})
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=not is_old)
    whole = (tmp_path / "a.pt").read_bytes()
    assert list(open_checkpoint(str(tmp_path / "a.pt")).entries) == ["aa", "ab"]
    assert whole.count(b"X\2\0\0\0ab") == 1
    (tmp_path / "a.pt").write_bytes(whole.replace(b"X\2\0\0\0ab", b"X\2\0\0\0aa"))
    assert "twice" in refusal(tmp_path / "a.pt")
