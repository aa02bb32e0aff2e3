"""What every format promises. A new format is one new file, and is tested here without another line."""

import copy
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from storing import bytes_of, fill, put, sample, spec, tree, write

from surgery_jax.core.dtypes import DTYPES
from surgery_jax.core.errors import PlanError, StorageError
from surgery_jax.storage.base import Format
from surgery_jax.storage.commits import commit_all
from surgery_jax.storage.formats import (
    OutputPlan,
    formats,
    open_checkpoint,
    open_single,
    resolve_output,
    resolve_save,
    resolve_save_tensor,
)
from surgery_jax.storage.publish import Staging

pytestmark = pytest.mark.filterwarnings("ignore")  # importing PyTorch warns

PARTICULAR = {"peft"}  # formats that hold tensors of certain names only; they have tests of their own
# Every way to write a whole checkpoint.
KINDS = [
    (format.name, is_directory, shard)
    for format in formats().values()
    for is_directory, allowed in [(False, format.writes_files), (True, format.writes_directories)]
    for shard in [None, *([40] if is_directory and format.takes_shards else [])]
    if allowed and format.name not in PARTICULAR
]
TREES = {"flax", "orbax"}  # formats of nested keys


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'directory' if kind[1] else 'file'}-{kind[2]}")
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> OutputPlan:
    """An output of each kind."""
    name, is_directory, shard = request.param
    if name == "dcp":
        pytest.importorskip("torch")
    format = formats()[name]
    suffix = "" if is_directory else format.suffixes[0]
    return OutputPlan(str(tmp_path / f"out{suffix}"), format, is_directory, shard)


def holds(format: Format, plan: OutputPlan, dtype: str) -> bool:
    try:
        plan.layout([("w", spec(dtype, 4))], {})
    except StorageError as error:
        assert dtype in str(error)
        return False
    return True


def test_the_formats_of_this_package_are_found() -> None:
    assert set(formats()) == {"dcp", "flax", "numpy", "orbax", "peft", "safetensors", "torch"}
    assert all(format.name == name for name, format in formats().items())


def test_every_dtype_that_a_format_holds_comes_back_bit_for_bit(plan: OutputPlan) -> None:
    held = [dtype.name for dtype in DTYPES if holds(plan.format, plan, dtype.name)]
    assert {"float32", "bfloat16", "int64", "bool", "float8_e4m3fn"} <= set(held)
    tensors = {f"layers.{number}.{name}": sample(name, 4, 6) for number, name in enumerate(held)}
    write(plan, tensors)
    found = open_checkpoint(plan.path)
    assert found.format == plan.format.name
    assert found.path == plan.path
    assert list(found.entries) == list(tensors)
    for name, (made, data) in tensors.items():
        assert found.entries[name].spec == made
        assert bytes_of(found.entries[name]) == data


def test_every_shape_comes_back(plan: OutputPlan) -> None:
    shapes = [(), (0,), (1,), (0, 3), (3, 0), (1, 1, 1), (2, 1, 3), (7,)]
    tensors = {f"w{number}": sample("float32", *shape) for number, shape in enumerate(shapes)}
    write(plan, tensors)
    found = open_checkpoint(plan.path).entries
    assert {name: (entry.spec, bytes_of(entry)) for name, entry in found.items()} == tensors


def test_every_name_comes_back(plan: OutputPlan) -> None:
    names = [
        "",
        " ",
        "a.b",
        "a/b",
        "../a",
        "é",
        "\U0001f600",
        '"',
        "\\",
        "\n",
        "a" * 300,
        "state_dict",
        "weight_map",
        "0",
    ]
    if plan.format.name in TREES:  # the names are paths of keys: "" would be a branch here, and "\\" escapes nothing
        names = ["\\\\" if name == "\\" else name for name in names if name]
    if plan.format.name == "orbax":  # the names are those of directories
        names = [name for name in names if "/" not in name and len(name) < 256]
    tensors = {name: sample("int16", 3) for name in names}
    write(plan, tensors)
    assert list(open_checkpoint(plan.path).entries) == names


def test_places_lie_inside_of_their_files_and_do_not_overlap(plan: OutputPlan) -> None:
    specs = {f"w{number}": spec("float32", number) for number in range(9)}
    layout = plan.layout(list(specs.items()), {})
    assert set(layout.places) == set(specs)
    assert layout.is_directory == plan.is_directory
    ranges = [(file, offset, offset + specs[name].nbytes) for name, (file, offset) in layout.places.items()]
    ranges += [
        (number, offset, offset + len(data)) for number, file in enumerate(layout.files) for offset, data in file.fixed
    ]
    ranges = sorted(part for part in ranges if part[1] < part[2])
    assert all(end <= layout.files[file].size for file, _, end in ranges)
    assert all(left[0] != right[0] or left[2] <= right[1] for left, right in pairwise(ranges))


def test_the_same_output_is_written_twice_with_the_same_bytes(plan: OutputPlan, tmp_path: Path) -> None:
    tensors = {"a": sample("float32", 5), "b": sample("int8", 30)}
    write(plan, tensors, metadata={"z": "1", "a": "2"})
    first = tree(tmp_path)
    write(plan, tensors, metadata={"a": "2", "z": "1"}, overwrite=True)
    assert tree(tmp_path) == first


def test_what_the_caller_gave_is_not_changed(plan: OutputPlan) -> None:
    tensors = [("b", spec("float32", 3)), ("a", spec("int8", 50))]
    metadata = {"z": "1", "a": "2"}
    given = copy.deepcopy((tensors, metadata))
    plan.layout(tensors, metadata)
    assert (tensors, metadata) == given


def test_a_truncated_checkpoint_is_refused(plan: OutputPlan) -> None:
    tensors = {"a": sample("float32", 5), "b": sample("int8", 30)}
    write(plan, tensors)
    files = [path for path in [Path(plan.path), *Path(plan.path).rglob("*")] if path.is_file() and path.stat().st_size]
    for path in (path for path in files if path.name != "commit_success.txt"):  # which says by being there
        whole = path.read_bytes()
        for length in {0, 1, 7, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 2}:  # a last line end may go
            path.write_bytes(whole[:length])
            with pytest.raises(StorageError) as caught:
                for entry in open_checkpoint(plan.path).entries.values():
                    bytes_of(entry)
            assert caught.value.exit_code == 3
            assert caught.value.where is not None
        path.unlink()
        path.write_bytes(whole)
    assert len(open_checkpoint(plan.path).entries) == 2


def test_garbage_is_refused(plan: OutputPlan) -> None:
    write(plan, {"a": sample("float32", 5)})
    path = Path(plan.path)
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.write_bytes(b"\x80\x02" + bytes(range(256)) * 9)
    with pytest.raises(StorageError):
        open_checkpoint(plan.path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(error: type[BaseException], plan: OutputPlan, tmp_path: Path) -> None:
    tensors = {"a": sample("float32", 5), "b": sample("int8", 30)}
    layout = plan.layout([(name, made) for name, (made, _) in tensors.items()], {})
    with pytest.raises(error):
        staging = Staging(plan, layout)
        try:
            fill(staging, layout, tensors)
            assert not Path(plan.path).exists()
            raise error
        finally:
            staging.abort()
    assert tree(tmp_path) == {}


def test_an_interrupted_overwrite_leaves_the_old_checkpoint(plan: OutputPlan, tmp_path: Path) -> None:
    write(plan, {"old": sample("float32", 5)})
    before = tree(tmp_path)
    staging = Staging(plan, plan.layout([("new", spec("int8", 3))], {}))
    put(staging, 0, b"x", 0)
    staging.abort()
    assert tree(tmp_path) == before


def test_a_checkpoint_is_replaced_while_it_is_read(plan: OutputPlan) -> None:
    write(plan, {"a": sample("float32", 5), "b": sample("int8", 30)})
    old = open_checkpoint(plan.path).entries["a"]
    made, data = sample("float32", 5)
    layout = plan.layout([("c", made)], {})
    staging = Staging(plan, layout)
    put(staging, layout.places["c"][0], bytes_of(old), layout.places["c"][1])
    commit_all([staging], sync=False)
    assert {name: bytes_of(entry) for name, entry in open_checkpoint(plan.path).entries.items()} == {"c": data}


@pytest.mark.parametrize("name", [name for name, format in formats().items() if format.writes_tensors])
def test_a_file_of_one_tensor_comes_back(name: str, tmp_path: Path) -> None:
    plan = resolve_save_tensor(str(tmp_path / "deep/w"), name)
    for made, data in [sample("float64", 2, 3), sample("bool"), sample("int32", 0)]:
        write(plan, {"w": (made, data)}, overwrite=True)
        found, entry, _ = open_single(plan.path, name)
        assert found in (None, "w")
        assert (entry.spec, bytes_of(entry)) == (made, data)


def test_the_storage_layer_is_imported_without_numpy_torch_and_jax() -> None:
    program = (
        "import sys; from surgery_jax.storage.formats import formats; import surgery_jax.storage.publish; formats(); "
        "assert not {'torch', 'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


# --- which format a path is


@pytest.mark.parametrize(
    ("path", "format", "shard", "expected"),
    [
        ("a.safetensors", None, None, ("safetensors", False, None)),
        ("A.SafeTensors", None, None, ("safetensors", False, None)),
        ("a.safetensors", "safetensors", "none", ("safetensors", False, None)),
        ("a.pt", None, None, ("torch", False, None)),
        ("a.pth", "torch", "none", ("torch", False, None)),
        ("a.BIN", None, None, ("torch", False, None)),
        ("out", None, None, ("safetensors", True, 5 << 30)),
        ("out", "safetensors", "1MB", ("safetensors", True, 1 << 20)),
        ("out", None, "none", ("safetensors", True, None)),
        ("runs/v1.5", None, None, ("safetensors", True, 5 << 30)),
        ("runs/v1.5", "dcp", None, ("dcp", True, None)),
        ("out.d/", None, None, ("safetensors", True, 5 << 30)),
        (".hidden", None, None, ("safetensors", True, 5 << 30)),
        ("out", "dcp", None, ("dcp", True, None)),
        ("out", "dcp", "none", ("dcp", True, None)),
    ],
)
def test_the_words_of_an_output_decide_what_is_written(
    path: str, format: str | None, shard: str | None, expected: tuple[str, bool, int | None]
) -> None:
    plan = resolve_output(path, format, shard, "5GB")
    assert (plan.format.name, plan.is_directory, plan.shard_bytes) == expected


@pytest.mark.parametrize(
    ("path", "format", "shard"),
    [
        ("out.txt", None, None),
        ("out.npy", None, None),
        ("out.pt", "safetensors", None),
        ("out.bin", "safetensors", None),
        ("out.safetensors", "torch", None),
        ("out.pt", "dcp", None),
        ("out.safetensors", "Safetensors", None),
        ("out", "numpy", None),
        ("out", "zarr", None),
        ("out.safetensors", None, "5GB"),
        ("out.pt", None, "5GB"),
        ("out", "dcp", "5GB"),
        ("out", None, "5"),
        ("out", None, "0B"),
        ("out", None, "1.5GB"),
        ("out", None, "None"),
        ("out.safetensors", None, "5 GiB"),
    ],
)
def test_words_that_do_not_go_together_are_errors_of_the_plan(path: str, format: str | None, shard: str | None) -> None:
    with pytest.raises(PlanError) as caught:
        resolve_output(path, format, shard, "5GB")
    assert caught.value.exit_code == 2


def test_an_existing_directory_may_have_any_suffix(tmp_path: Path) -> None:
    (tmp_path / "out.txt").mkdir()
    assert resolve_output(str(tmp_path / "out.txt"), None, None, "none").is_directory


@pytest.mark.parametrize(
    ("path", "format", "shard", "expected"),
    [
        ("a.pt", None, None, ("safetensors", False, None)),
        ("out", None, None, ("safetensors", False, None)),
        ("out", None, "1KB", ("safetensors", True, 1024)),
        ("out", "torch", None, ("torch", False, None)),
        ("out", "dcp", None, ("dcp", True, None)),
    ],
)
def test_save_ignores_suffixes(
    path: str, format: str | None, shard: str | None, expected: tuple[str, bool, int | None]
) -> None:
    plan = resolve_save(path, format, shard)
    assert (plan.format.name, plan.is_directory, plan.shard_bytes) == expected


@pytest.mark.parametrize(
    ("path", "format", "shard"),
    [
        ("a.safetensors", None, "1KB"),
        ("a", "numpy", None),
        ("a.pt", "dcp", None),
        ("a", None, "x"),
    ],
)
def test_save_refuses_what_does_not_go_together(path: str, format: str | None, shard: str | None) -> None:
    with pytest.raises(PlanError):
        resolve_save(path, format, shard)


def test_one_tensor_has_formats_of_its_own() -> None:
    assert resolve_save_tensor("a.pt", None).format.name == "safetensors"
    assert resolve_save_tensor("a", "numpy").path == "a.npy"
    assert resolve_save_tensor("a.npy", "numpy").path == "a.npy"
    for word in ("dcp", "Torch", "auto"):
        with pytest.raises(PlanError):
            resolve_save_tensor("a", word)


def test_what_is_missing_is_reported_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for call in (open_checkpoint, lambda path: open_single(path, "auto")):
        with pytest.raises(StorageError, match=r"(?s)does not exist.*model\.safetensors"):
            call(str(tmp_path / "modell.safetensors"))
    with pytest.raises(StorageError, match="directory"):
        open_checkpoint(str(tmp_path / "absent/model.safetensors"))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("empty", "notes.txt", "pipe.safetensors", ".", "a\0b", "x" * 300):
        with pytest.raises(StorageError):
            open_checkpoint(f"{tmp_path}/{name}")
    with pytest.raises(StorageError):
        open_single(str(tmp_path / "empty"), "auto")
    with pytest.raises(PlanError):
        open_single(str(tmp_path / "notes.txt"), "text")


def test_a_file_with_an_unknown_suffix_is_recognised_by_its_content(tmp_path: Path) -> None:
    for word in ("safetensors", "torch"):
        write(resolve_save(str(tmp_path / f"{word}.ckpt"), word, None), {"w": sample("float32", 3)})
        assert open_checkpoint(str(tmp_path / f"{word}.ckpt")).format == word


def test_a_file_that_is_named_like_another_format_says_so(tmp_path: Path) -> None:
    write(resolve_save(str(tmp_path / "a.pt"), None, None), {"w": sample("float32", 3)})
    with pytest.raises(StorageError, match=r"a\.safetensors"):
        open_checkpoint(str(tmp_path / "a.pt"))


def test_a_marked_directory_is_what_its_mark_says(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write(resolve_output(str(tmp_path / "out"), "dcp", None, "none"), {"w": sample("float32", 3)})
    write(tmp_path / "out/model.safetensors", {"v": sample("float32", 3)})
    assert open_checkpoint(str(tmp_path / "out")).format == "dcp"
