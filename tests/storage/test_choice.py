"""Which files of a directory are the checkpoint, and how a path says so."""

import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from storing import bytes_of, sample, write

from surgery_jax.core.errors import StorageError
from surgery_jax.core.notes import Note
from surgery_jax.storage.formats import open_checkpoint

WHOLE = ("model", "diffusion_pytorch_model", "adapter_model", "consolidated")


def file(path: Path, *names: str) -> Path:
    """A checkpoint of small tensors, in the format of its suffix."""
    write(path, {name: sample("uint8", 3) for name in names})
    return path


def index(path: Path, files: Mapping[str, str]) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": files}))
    return path


def read(path: Path | str, told: str | None = None) -> list[str]:
    """The names of the tensors; `told` is what must be said to be left out, by default nothing."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", Note)
        found = list(open_checkpoint(str(path)).entries)
    said = [str(note.message).rpartition(": ")[2] for note in notes]
    assert said == ([] if told is None else [told])
    return found


def refusal(path: Path | str) -> str:
    with pytest.raises(StorageError) as caught:
        open_checkpoint(str(path))
    assert caught.value.exit_code == 3
    return str(caught.value)


def remedies(path: Path | str) -> list[str]:
    """The paths that a refusal says to write."""
    return refusal(path).rpartition("say which: ")[2].split(" or ")


# --- one family


def test_files_of_two_libraries_are_one_checkpoint_and_not_two(tmp_path: Path) -> None:
    file(tmp_path / "model.safetensors", "model.a")
    file(tmp_path / "consolidated.safetensors", "a")
    assert read(tmp_path, "consolidated.safetensors") == ["model.a"]
    assert read(tmp_path / "consolidated*") == ["a"]


@pytest.mark.parametrize(("first", "second"), [pair for pair in product(range(4), range(4)) if pair[0] < pair[1]])
def test_the_order_of_the_names_of_libraries_does_not_depend_on_shards_or_the_alphabet(
    first: int, second: int, tmp_path: Path
) -> None:
    for number in (1, 2):
        file(tmp_path / f"{WHOLE[first]}-0000{number}-of-00002.safetensors", f"first{number}")
    file(tmp_path / f"{WHOLE[second]}.safetensors", "second")
    assert read(tmp_path, f"{WHOLE[second]}.safetensors") == ["first1", "first2"]


def test_safetensors_beside_torch_files_are_the_checkpoint(tmp_path: Path) -> None:
    file(tmp_path / "model.safetensors", "w")
    file(tmp_path / "pytorch_model.bin", "w")
    assert read(tmp_path, "pytorch_model.bin") == ["w"]
    assert open_checkpoint(f"{tmp_path}/*.bin").format == "torch"
    file(tmp_path / "two/diffusion_pytorch_model.bin", "w")
    file(tmp_path / "two/diffusion_pytorch_model.safetensors", "w")
    with pytest.warns(Note, match=r"diffusion_pytorch_model\.bin"):
        assert open_checkpoint(f"{tmp_path}/two").format == "safetensors"


def test_names_of_libraries_count_more_than_the_format(tmp_path: Path) -> None:
    file(tmp_path / "extra.safetensors", "x")
    file(tmp_path / "pytorch_model.bin", "w")
    assert read(tmp_path, "extra.safetensors") == ["w"]


def test_a_flax_directory_is_read_and_comes_last(tmp_path: Path) -> None:
    file(tmp_path / "flax_model.msgpack", "params.w")
    assert read(tmp_path) == ["params.w"]
    file(tmp_path / "pytorch_model.bin", "w")
    assert read(tmp_path, "flax_model.msgpack") == ["w"]


def test_a_variant_is_read_if_there_is_no_other_and_left_out_if_there_is(tmp_path: Path) -> None:
    file(tmp_path / "model.fp16.safetensors", "half")
    assert read(tmp_path) == ["half"]
    file(tmp_path / "model.safetensors", "full")
    assert read(tmp_path, "model.fp16.safetensors") == ["full"]
    assert read(tmp_path / "model.fp16.safetensors") == ["half"]


def test_of_two_variants_the_path_says_which(tmp_path: Path) -> None:
    for variant, number in product(["fp16", "bf16"], [1, 2]):
        file(tmp_path / f"model.{variant}-0000{number}-of-00002.safetensors", f"{variant}{number}")
    found = remedies(tmp_path)
    assert len(found) == 2
    assert [read(path) for path in found] == [["bf161", "bf162"], ["fp161", "fp162"]]


def test_files_whose_names_say_nothing_are_all_read(tmp_path: Path) -> None:
    file(tmp_path / "part_a.safetensors", "a")
    file(tmp_path / "part_b.safetensors", "b")
    file(tmp_path / ".hidden.safetensors", "c")
    assert read(tmp_path) == ["a", "b"]


def test_names_that_say_nothing_in_two_formats_are_unclear_unless_they_are_the_same(tmp_path: Path) -> None:
    file(tmp_path / "a.safetensors", "a")
    file(tmp_path / "a.pt", "a")
    assert read(tmp_path, "a.pt") == ["a"]
    file(tmp_path / "b.pt", "b")
    assert [read(path) for path in remedies(tmp_path)] == [["a"], ["a"], ["b"]]


# --- halves


@pytest.mark.parametrize("numbers", [(1, 3), (2, 3), (1, 2), (0, 1)])
def test_a_missing_shard_is_missed(numbers: Iterable[int], tmp_path: Path) -> None:
    for number in numbers:
        file(tmp_path / f"model-0000{number}-of-00003.safetensors", f"w{number}")
    told = refusal(tmp_path)
    assert "a shard is missing" in told
    assert f"no number {({0, 1, 2} if 0 in numbers else {1, 2, 3}).difference(numbers).pop()}" in told
    assert "a shard is missing" in refusal(tmp_path / "*.safetensors")
    for number in numbers:
        assert read(tmp_path / f"model-0000{number}-of-00003.safetensors") == [f"w{number}"]


def test_a_name_that_promises_any_number_of_shards_takes_no_memory(tmp_path: Path) -> None:
    file(tmp_path / f"model-1-of-{10**200}.safetensors", "w")
    assert "no number 2, 3, 4" in refusal(tmp_path)


@pytest.mark.parametrize("first", [0, 1])
def test_shards_are_counted_from_one_or_from_zero(first: int, tmp_path: Path) -> None:
    for number in (first, first + 1):
        file(tmp_path / f"pytorch_model-{number}-of-2.bin", f"w{number}")
    assert read(tmp_path) == [f"w{first}", f"w{first + 1}"]


@pytest.mark.parametrize("more", ["model-00003-of-00002", "model-00000-of-00002", "model-2-of-2"])
def test_a_shard_too_many_is_noticed(more: str, tmp_path: Path) -> None:
    for name in ("model-00001-of-00002", "model-00002-of-00002", more):
        file(tmp_path / f"{name}.safetensors", name)
    assert more in refusal(tmp_path)
    (tmp_path / f"{more}.safetensors").unlink()
    assert read(tmp_path) == ["model-00001-of-00002", "model-00002-of-00002"]


def test_shards_of_two_ways_to_cut_are_not_mixed(tmp_path: Path) -> None:
    for number, total in [(1, 1), (1, 2), (2, 2)]:
        file(tmp_path / f"model-0000{number}-of-0000{total}.safetensors", f"w{number}{total}")
    assert [read(path) for path in remedies(tmp_path)] == [["w11"], ["w12", "w22"]]
    file(tmp_path / "model.safetensors", "whole")
    assert [read(path) for path in remedies(tmp_path)] == [["w11"], ["w12", "w22"], ["whole"]]


def test_a_shard_that_the_index_forgets_is_missed(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        file(tmp_path / f"model-0000{number}-of-00003.safetensors", f"w{number}")
    index(tmp_path / "model.safetensors.index.json", {f"w{n}": f"model-0000{n}-of-00003.safetensors" for n in (1, 2)})
    assert "model-00003-of-00003.safetensors" in refusal(tmp_path)
    assert read(tmp_path / "model.safetensors.index.json") == ["w1", "w2"]
    assert read(tmp_path / "model-*.safetensors") == ["w1", "w2", "w3"]


def test_what_an_index_does_not_name_is_left_out(tmp_path: Path) -> None:
    file(tmp_path / "model-00001-of-00001.safetensors", "w")
    file(tmp_path / "model.safetensors", "old")
    file(tmp_path / "model-00001-of-00002.safetensors", "older")
    index(tmp_path / "model.safetensors.index.json", {"w": "model-00001-of-00001.safetensors"})
    assert read(tmp_path, "model-00001-of-00002.safetensors, model.safetensors") == ["w"]


# --- indexes


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("model.safetensors.index.json", "model-{}-of-2.safetensors"),
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.fp16.safetensors.index.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model-0000{}-of-00002.bin"),
        ("consolidated.safetensors.index.json", "consolidated-{}-of-2.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
        ("pytorch_model.bin.index.bf16.json", "pytorch_model.bf16-0000{}-of-00002.bin"),
        ("weights.pth.index.json", "weights{}.pth"),
        ("some.safetensors.index.json", "shards/{}.safetensors"),
    ],
)
def test_an_index_is_found_under_any_name_and_may_be_the_input(name: str, shard: str, tmp_path: Path) -> None:
    for number in (1, 2):
        file(tmp_path / "m" / shard.format(number), f"w{number}")
    where = index(tmp_path / "m" / name, {f"w{number}": shard.format(number) for number in (1, 2)})
    assert read(tmp_path / "m") == ["w1", "w2"]
    assert read(where) == ["w1", "w2"]
    (tmp_path / "m" / shard.format(2)).unlink()
    assert "does not exist" in refusal(tmp_path / "m")


def test_an_index_of_flax_has_slashes_between_keys(tmp_path: Path) -> None:
    for number in (1, 2):
        file(tmp_path / f"flax_model-0000{number}-of-00002.msgpack", rf"layer.{number}.w\.x")
    names = {f"layer/{number}/w.x": f"flax_model-0000{number}-of-00002.msgpack" for number in (1, 2)}
    index(tmp_path / "flax_model.msgpack.index.json", names)
    assert read(tmp_path) == [r"layer.1.w\.x", r"layer.2.w\.x"]


def test_two_indexes_are_told_apart_by_the_same_rule(tmp_path: Path) -> None:
    for stem, suffix in [("model", "safetensors"), ("model.fp16", "safetensors"), ("pytorch_model", "bin")]:
        file(tmp_path / f"{stem}-00001-of-00001.{suffix}", stem)
        index(tmp_path / f"{stem}.{suffix}.index.json", {stem: f"{stem}-00001-of-00001.{suffix}"})
    assert read(tmp_path, "model.fp16-00001-of-00001.safetensors, pytorch_model-00001-of-00001.bin") == ["model"]
    assert read(tmp_path / "pytorch_model.bin.index.json") == ["pytorch_model"]


def test_of_two_indexes_of_other_names_the_path_says_which(tmp_path: Path) -> None:
    for stem in "ab":
        file(tmp_path / f"{stem}/1.safetensors", stem)
        index(tmp_path / f"{stem}.safetensors.index.json", {stem: f"{stem}/1.safetensors"})
    assert [read(path) for path in sorted(remedies(tmp_path))] == [["a"], ["b"]]


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"weight_map": {"a": "x.txt"}}', '{"weight_map": {"a": "x.npz"}}'])
def test_another_json_file_is_no_checkpoint(text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "config.json").write_text(text)
    assert "config.json" in refusal(tmp_path / "config.json")


def test_an_index_of_two_formats_is_refused(tmp_path: Path) -> None:
    file(tmp_path / "a.safetensors", "a")
    file(tmp_path / "b.pt", "b")
    where = index(tmp_path / "x.index.json", {"a": "a.safetensors", "b": "b.pt"})
    assert "a.safetensors, b.pt" in refusal(where)


# --- what the path says


def test_a_pattern_means_exactly_the_files_that_match(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b[1]"):
        file(tmp_path / f"{name}.safetensors", name)
    (tmp_path / "a3.json").write_text("{}")
    assert read(tmp_path / "a*") == ["a1", "a2"]
    assert read(tmp_path / "[ab]*1*") == ["a1", "b[1]"]
    assert read(tmp_path / "b[1].safetensors") == ["b[1]"]  # a file of that name comes first
    assert "a1.safetensors" in refusal(tmp_path / "c*")
    assert "does not exist" in refusal(tmp_path / "none/*")
    assert open_checkpoint(f"{tmp_path}/a?.safetensors").path == f"{tmp_path}/a?.safetensors"


def test_a_pattern_goes_with_a_part(tmp_path: Path) -> None:
    file(tmp_path / "a.safetensors", "x.w", "y.w")
    assert read(f"{tmp_path}/*.safetensors#x") == ["w"]
    assert read(f"{tmp_path}/a.safetensors#y") == ["w"]


def test_a_pattern_of_two_formats_is_unclear(tmp_path: Path) -> None:
    file(tmp_path / "a.safetensors", "a")
    file(tmp_path / "a.pt", "b")
    assert [read(path) for path in remedies(f"{tmp_path}/a*")] == [["a"], ["b"]]


def test_a_format_before_the_path_chooses_of_several(tmp_path: Path) -> None:
    from surgery_jax import Options, convert

    source = file(tmp_path / "s.safetensors", "w.x")
    convert(source, tmp_path / "both", Options(sync=False), format="orbax")
    file(tmp_path / "both/model.safetensors", "v.x")
    found = remedies(tmp_path / "both")
    assert found == [f"orbax:{tmp_path}/both", f"safetensors:{tmp_path}/both"]
    assert [read(path) for path in found] == [["w.x"], ["v.x"]]
    assert read(f"{found[0]}#w") == ["x"]
    assert "no checkpoint of the format torch" in refusal(f"torch:{tmp_path}/both")
    assert "no file of a checkpoint matches" in refusal(f"torch:{tmp_path}/both/*.safetensors")


def test_files_beside_an_adapter_are_left_out(tmp_path: Path) -> None:
    file(tmp_path / "model.safetensors", "w")
    file(tmp_path / "adapter_model.safetensors", "base_model.model.a.lora_A.weight")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 3}')
    assert read(tmp_path, "model.safetensors") == ["base_model.model.a.lora_A.weight"]
    told = "adapter_model.safetensors"
    assert read(f"safetensors:{tmp_path}", told) == ["w"]


def test_a_format_before_the_path_chooses_among_the_files_of_a_directory(tmp_path: Path) -> None:
    file(tmp_path / "model.safetensors", "w")
    file(tmp_path / "pytorch_model.bin", "v")
    file(tmp_path / "pytorch_model.fp16.bin", "u")
    assert read(f"torch:{tmp_path}", "pytorch_model.fp16.bin") == ["v"]
    assert read(f"torch:{tmp_path}/*16*") == ["u"]
    assert read(f"torch:{tmp_path}/pytorch_model.bin") == ["v"]


def test_a_format_before_the_path_of_a_file_is_taken_at_its_word(tmp_path: Path) -> None:
    shutil.copy(file(tmp_path / "a.safetensors", "w"), tmp_path / "a.bin")
    told = refusal(tmp_path / "a.bin")
    assert read(told.rpartition("or write ")[2]) == ["w"]
    assert "not a torch file" in refusal(f"torch:{tmp_path}/a.bin")


def test_a_path_that_only_looks_like_it_has_a_format_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path / "torch:a/model.safetensors", "w")
    assert read("torch:a") == ["w"]
    assert "does not exist" in refusal("other:a")


# --- links


def test_the_links_of_a_cache_are_followed_at_any_depth(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    for number, folder in enumerate([snapshot, snapshot / "text_encoder", snapshot / "a/b/c"]):
        folder.mkdir(parents=True)
        up = "../" * (2 + len(folder.relative_to(snapshot).parts))
        blobs = tmp_path / "models--a--b/blobs"
        blobs.mkdir(exist_ok=True)
        file(tmp_path / "x.safetensors", f"w{number}").rename(blobs / f"{number}")
        index(blobs / f"i{number}", {f"w{number}": "model-1-of-1.safetensors"})
        (folder / "model-1-of-1.safetensors").symlink_to(f"{up}blobs/{number}")
        assert read(folder) == [f"w{number}"]
        (folder / "model.safetensors.index.json").symlink_to(f"{up}blobs/i{number}")
        assert read(folder) == [f"w{number}"]


@pytest.mark.parametrize("has_index", [False, True])
def test_links_that_the_user_made_are_followed_with_and_without_an_index(has_index: bool, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file(tmp_path / "elsewhere/w.safetensors", "w")
    (tmp_path / "m/model.safetensors").symlink_to(tmp_path / "elsewhere/w.safetensors")
    if has_index:
        index(tmp_path / "m/model.safetensors.index.json", {"w": "model.safetensors"})
    assert read(tmp_path / "m") == ["w"]
    found = open_checkpoint(str(tmp_path / "m"))
    assert bytes_of(found.entries["w"]) == sample("uint8", 3)[1]
    assert found.files == (str(tmp_path / "m/model.safetensors"),)
    (tmp_path / "elsewhere/w.safetensors").unlink()
    told = refusal(tmp_path / "m")
    assert "model.safetensors" in told


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_that_leads_nowhere_is_not_taken_for_nothing(name: str, tmp_path: Path) -> None:
    file(tmp_path / "pytorch_model.bin", "w")
    (tmp_path / name).symlink_to("blobs/0123")
    assert name in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path)


def test_a_link_to_a_directory_is_the_directory(tmp_path: Path) -> None:
    file(tmp_path / "real/model.safetensors", "w")
    (tmp_path / "link").symlink_to("real")
    assert read(tmp_path / "link") == ["w"]


# --- distributed saves


@pytest.mark.filterwarnings("ignore")
def test_files_of_ranks_are_refused_and_the_remedy_works(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

    whole = np.arange(32, dtype=np.float32).reshape(8, 4)
    for rank in (0, 1):
        told = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [4 * rank, 0]}}), "DCP_VERSION": "1.0"}
        name = f"shard-0000{rank + 1}-model-00001-of-00001.safetensors"
        (tmp_path / "sharded").mkdir(exist_ok=True)
        rows = np.ascontiguousarray(whole[4 * rank : 4 * rank + 4])
        safetensors.numpy.save_file({"w": rows}, tmp_path / "sharded" / name, told | {"format": "pt"})
        assert "one rank's part" in refusal(tmp_path / "sharded" / name)
        assert "one rank's part" in refusal(tmp_path / "sharded")
        shutil.copy(tmp_path / "sharded" / name, tmp_path / "renamed.safetensors")
        assert "one rank's part" in refusal(tmp_path / "renamed.safetensors")
    (tmp_path / "whole").mkdir()
    consolidate_safetensors_files(str(tmp_path / "sharded"), str(tmp_path / "whole"), {"w": 1})
    assert bytes_of(open_checkpoint(str(tmp_path / "whole")).entries["w"]) == whole.tobytes()


@pytest.mark.filterwarnings("ignore")
def test_a_save_of_one_process_is_whole_and_its_own_metadata_stay_behind(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    dcp.save({"w": torch.arange(6.0)}, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "m")), no_dist=True)
    found = open_checkpoint(str(tmp_path / "m"))
    assert bytes_of(found.entries["w"]) == np.arange(6, dtype=np.float32).tobytes()
    assert found.metadata == {"format": "pt"}
