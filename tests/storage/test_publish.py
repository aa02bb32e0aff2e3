"""An output appears at once or not at all, whatever goes wrong."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from storing import fill, sample, spec, tree, write

from surgery_jax.core.errors import StorageError
from surgery_jax.core.notes import Note
from surgery_jax.storage.base import LaidFile, Layout
from surgery_jax.storage.clearing import clear
from surgery_jax.storage.commits import commit_all
from surgery_jax.storage.formats import OutputPlan, open_checkpoint, resolve_output, resolve_save
from surgery_jax.storage.publish import Staging, check_space, check_target

OLD = {"old": sample("uint8", 3)}
NEW = {"new": sample("float32", 5)}


def output(path: Path, shard: str | None = None) -> OutputPlan:
    return resolve_output(str(path), None, shard, "5GB")


def staged(plan: OutputPlan) -> Staging:
    layout = plan.layout([(name, made) for name, (made, _) in NEW.items()], {})
    staging = Staging(plan, layout)
    fill(staging, layout, NEW)
    return staging


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


def test_nothing_lies_at_the_place_before_the_commit(tmp_path: Path) -> None:
    staging = staged(output(tmp_path / "deep/er/a.safetensors"))
    assert not (tmp_path / "deep/er/a.safetensors").exists()
    commit_all([staging])
    assert tree(tmp_path).keys() == {"deep", "deep/er", "deep/er/a.safetensors"}


@pytest.mark.parametrize("name", ["deep/er/a.safetensors", "deep/er/directory"])
def test_abort_leaves_nothing_and_may_be_repeated(name: str, tmp_path: Path) -> None:
    staging = staged(output(tmp_path / name))
    staging.abort()
    staging.abort()
    assert tree(tmp_path) == {}


def test_abort_after_the_commit_takes_nothing_back(tmp_path: Path) -> None:
    staging = staged(output(tmp_path / "out"))
    commit_all([staging])
    staging.abort()
    assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["new"]


def test_abort_keeps_directories_that_others_use_meanwhile(tmp_path: Path) -> None:
    staging = staged(output(tmp_path / "deep/a.safetensors"))
    (tmp_path / "deep/other").write_text("x")
    staging.abort()
    assert tree(tmp_path) == {"deep": None, "deep/other": b"x"}


def test_a_process_that_dies_leaves_no_checkpoint(tmp_path: Path) -> None:
    program = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; from test_publish import *; "
        "staged(output(Path(sys.argv[1]) / 'out')); os.kill(os.getpid(), 9)"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), str(Path(__file__).parents[2])]
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path), *paths]).returncode == -9
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", NEW)
    assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["new"]


def test_files_and_directories_have_the_mode_of_the_umask(narrow_umask: None, tmp_path: Path) -> None:
    write(tmp_path / "out", NEW)
    write(tmp_path / "a.safetensors", NEW)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [*tmp_path.iterdir(), *(tmp_path / "out").iterdir()]
    }
    assert modes.pop("out") == 0o750
    assert set(modes.values()) == {0o640}


def test_a_replaced_directory_keeps_its_mode(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    (tmp_path / "out").chmod(0o770)
    write(tmp_path / "out", NEW, overwrite=True)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o770


@pytest.mark.parametrize("name", ["a.safetensors", "out"])
def test_what_exists_is_replaced_only_on_demand(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, OLD)
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="--overwrite"):
        write(tmp_path / name, NEW)
    assert tree(tmp_path) == before
    write(tmp_path / name, NEW, overwrite=True)
    assert list(open_checkpoint(str(tmp_path / name)).entries) == ["new"]


def test_other_files_of_a_directory_stay_and_old_shards_go(tmp_path: Path) -> None:
    write(tmp_path / "out", {"a": sample("uint8", 8), "b": sample("uint8", 8), "c": sample("uint8", 8)}, shard="8B")
    (tmp_path / "out/config.json").write_text("{}")
    (tmp_path / "out/sub").mkdir()
    (tmp_path / "out/sub/note").write_text("n")
    write(tmp_path / "out", NEW, overwrite=True, shard="8B")
    assert tree(tmp_path / "out").keys() == {
        "config.json",
        "sub",
        "sub/note",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_with_other_files_needs_no_permission(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    write(tmp_path / "out", NEW)
    assert "config.json" in tree(tmp_path / "out")


def test_another_format_in_the_directory_is_not_shadowed_silently(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(resolve_save(str(tmp_path / "out/pytorch_model.bin"), "torch", None), OLD)
    with pytest.raises(StorageError, match=r"pytorch_model\.bin"):
        write(tmp_path / "out", NEW, overwrite=True)


def test_the_working_directory_itself_stays_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", OLD)
    (tmp_path / "out/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "out")
    node = Path.cwd().stat().st_ino
    write(OutputPlan(".", output(tmp_path / "x").format, True, 10), NEW, overwrite=True)
    assert Path.cwd().stat().st_ino == node
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_link_at_the_place_of_a_file_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a.safetensors", OLD)
    before = tree(tmp_path / "real")
    (tmp_path / "a.safetensors").symlink_to(Path("real") / "a.safetensors")
    with pytest.raises(StorageError, match="a link is there already"):
        write(tmp_path / "a.safetensors", NEW)
    write(tmp_path / "a.safetensors", NEW, overwrite=True)
    assert not (tmp_path / "a.safetensors").is_symlink()
    assert list(open_checkpoint(str(tmp_path / "a.safetensors")).entries) == ["new"]
    assert tree(tmp_path / "real") == before


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_at_the_place_of_a_directory_is_refused_and_its_target_named(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        write(tmp_path / "real", OLD)
    (tmp_path / "out").symlink_to("real")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="writing follows none") as refused:
        write(tmp_path / "out", NEW, overwrite=True)
    assert tree(tmp_path) == before
    remedy = str(refused.value.hint).rpartition(": ")[2]
    write(remedy, NEW, overwrite=True)
    assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["new"]


def test_links_on_the_way_to_a_place_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    write(tmp_path / "runs" / "out", NEW)
    assert (tmp_path / "disk" / "out").is_dir() and (tmp_path / "runs").is_symlink()


def test_a_format_that_cannot_complete_publishes_nothing(tmp_path: Path) -> None:
    def fail(root: Path) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path / "out", OLD)
    before = tree(tmp_path)
    plan = output(tmp_path / "out")
    layout = replace(plan.layout([("new", spec("float32", 5))], {}), finish=fail)
    with pytest.raises(StorageError, match="free some space"):
        commit_all([Staging(plan, layout)])
    assert tree(tmp_path) == before


@pytest.mark.parametrize("first", ["one.safetensors", "first", "existing", "deep/new"])
def test_if_one_output_fails_the_others_are_taken_back(first: str, tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", OLD)
    write(tmp_path / "existing", OLD)
    (tmp_path / "existing/config.json").write_text("{}")
    before = tree(tmp_path)
    stagings = [staged(output(tmp_path / first)), staged(output(tmp_path / "two.safetensors"))]
    (tmp_path / "two.safetensors").mkdir()  # somebody makes a directory where the file should go
    (tmp_path / "two.safetensors/x").write_text("x")
    with pytest.raises(StorageError, match="publish"):
        commit_all(stagings, sync=False)
    assert tree(tmp_path) == before | {"two.safetensors": None, "two.safetensors/x": b"x"}


def test_several_outputs_appear_together_also_one_inside_of_another(tmp_path: Path) -> None:
    for _ in range(2):  # the second time, all of them are there already
        commit_all([staged(output(tmp_path / "deep/a.safetensors")), staged(output(tmp_path / "deep"))])
        assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
            "a.safetensors",
            "model-00001-of-00001.safetensors",
            "model.safetensors.index.json",
        ]


def test_files_that_the_old_index_does_not_name_stay(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    write(tmp_path / "out/adapter.safetensors", OLD)
    write(tmp_path / "out", NEW, overwrite=True)
    with pytest.warns(Note, match="adapter"):
        assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["new"]
    assert list(open_checkpoint(str(tmp_path / "out/adapter.safetensors")).entries) == ["old"]
    write(tmp_path / "out", OLD, overwrite=True, shard="none")
    with pytest.warns(Note, match="adapter"):
        assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["old"]


def test_a_checkpoint_is_not_written_beside_files_that_would_be_read_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("model.bin", "ema.pt", "pytorch_model.fp16.bin"):
        write(resolve_save(str(tmp_path / "out" / name), "torch", None), OLD)
    plan = resolve_output(str(tmp_path / "out"), "torch", "none", "5GB")
    with pytest.raises(StorageError, match="would be read as the checkpoint") as caught:
        write(plan, NEW, overwrite=True)
    assert caught.value.found == "model.bin"
    (tmp_path / "out/model.bin").unlink()  # the remedy
    write(plan, NEW, overwrite=True)
    with pytest.warns(Note, match=r"ema\.pt, pytorch_model\.fp16\.bin"):
        assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["new"]


@pytest.mark.parametrize("name", ["file/out.safetensors", "file/deep/out"])
def test_a_file_where_a_directory_is_needed_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError) as caught:
        check_target(output(tmp_path / name), True)
    assert caught.value.exit_code == 3


def test_a_directory_is_never_replaced_by_a_file_nor_a_file_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "out").write_text("x")
    for path in ("a.safetensors", "out"):
        with pytest.raises(StorageError):
            check_target(output(tmp_path / path), True)


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(StorageError):
        check_target(resolve_save("/dev/null", None, None), True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_place_that_may_not_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="written"):
        check_target(output(tmp_path / "locked/out"), True)


def test_impossible_paths_are_storage_errors(tmp_path: Path) -> None:
    for path in (str(tmp_path / ("x" * 300)), str(tmp_path / "a\0b")):
        with pytest.raises(StorageError):
            check_target(resolve_save(path, None, None), False)


def test_too_little_room_is_known_before_any_work(tmp_path: Path) -> None:
    plan = output(tmp_path / "out")
    with pytest.raises(StorageError, match=r"needs [0-9.e+]+ TiB"):
        check_space([(plan, Layout((LaidFile("a", 1 << 62), LaidFile("b", 1 << 62)), {}, True))])


def test_what_the_system_refuses_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    plan = output(tmp_path / "deep/out")
    with pytest.raises(StorageError):
        Staging(plan, Layout((LaidFile("a" * 300, 1),), {}, True))
    assert tree(tmp_path) == {}


def test_what_is_not_of_the_old_checkpoint_is_the_same_file_afterwards(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    (tmp_path / "out/sub").mkdir(mode=0o750)
    (tmp_path / "out/sub/tokenizer.json").write_text("{}")
    (tmp_path / "out/link").symlink_to("sub/tokenizer.json")
    node = (tmp_path / "out/sub/tokenizer.json").stat().st_ino
    write(tmp_path / "out", NEW, overwrite=True)
    assert (tmp_path / "out/sub/tokenizer.json").stat().st_ino == node
    assert (tmp_path / "out/sub/tokenizer.json").stat().st_nlink == 1
    assert (tmp_path / "out/link").readlink() == Path("sub/tokenizer.json")
    assert stat.S_IMODE((tmp_path / "out/sub").stat().st_mode) == 0o750


@pytest.mark.parametrize("name", ["a.safetensors", "out"])
def test_what_appears_during_the_run_is_not_replaced(name: str, tmp_path: Path) -> None:
    staging = staged(output(tmp_path / name))
    write(tmp_path / name, OLD)
    before = (tmp_path / name).stat().st_ino
    with pytest.raises(StorageError, match="changed by somebody else"):
        commit_all([staging])
    assert (tmp_path / name).stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.safetensors", "out"])
def test_of_two_runs_that_replace_one_output_the_second_fails(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, OLD)
    if name == "out":
        (tmp_path / "out/config.json").write_text("{}")
    first, second = staged(output(tmp_path / name)), staged(output(tmp_path / name))
    commit_all([first])
    before = tree(tmp_path / name) if name == "out" else (tmp_path / name).read_bytes()
    with pytest.raises(StorageError, match="changed by somebody else"):
        commit_all([second])
    assert (tree(tmp_path / name) if name == "out" else (tmp_path / name).read_bytes()) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_there_before_the_run_is_replaced_only_on_demand(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    plan = output(tmp_path / "out")
    with pytest.raises(StorageError, match="--overwrite"):
        Staging(plan, plan.layout([("new", spec("float32", 5))], {}), overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def killed(place: Path, code: str = "") -> None:
    """Let a process build an output at a place, do some more, and die."""
    program = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; from test_publish import *; "
        f"staging = staged(output(Path(sys.argv[1]))); {code or 'pass'}; os.kill(os.getpid(), 9)"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), str(Path(__file__).parents[2])]
    assert subprocess.run([sys.executable, "-c", program, str(place), *paths]).returncode == -9


def test_what_a_killed_process_was_building_is_named_and_removed_only_when_that_is_asked(tmp_path: Path) -> None:
    for _ in range(2):
        killed(tmp_path / "out", "staging._stage.write_head({})")
    killed(tmp_path / "other")
    staging = staged(output(tmp_path / "out"))  # at work, and not to be touched
    before = tree(tmp_path)
    named = clear(tmp_path / "out", remove=False)
    assert tree(tmp_path) == before
    assert len(named) == 2
    assert all("KiB left by a run that did not come to its end" in sentence for sentence in named)
    assert all(f"surgery-jax clean {tmp_path / 'out'} removes it" in sentence for sentence in named)
    assert clear(tmp_path / "out", remove=False, mend=True) == named
    assert tree(tmp_path) == before
    removed = clear(tmp_path / "out", remove=True)
    assert len(removed) == 2 and all(": removed, " in sentence for sentence in removed)
    left = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert left == [".other.surgery", ".out.surgery"]
    commit_all([staging])
    assert clear(tmp_path / "out", remove=True) == []


def test_what_does_not_say_whose_it_is_serves_nobody_and_goes_with_the_next_run(tmp_path: Path) -> None:
    killed(tmp_path / "out")
    (sentence,) = clear(tmp_path / "out", remove=False, mend=True)
    assert ": removed, " in sentence
    assert not list(tmp_path.iterdir())


def test_targets_whose_names_begin_alike_do_not_clear_each_other(tmp_path: Path) -> None:
    killed(tmp_path / ("x" * 60 + "1"))
    assert clear(tmp_path / ("x" * 60 + "2"), remove=True) == []
    assert len(clear(tmp_path / ("x" * 60 + "1"), remove=True)) == 1


def test_what_was_there_is_kept_if_a_process_dies_while_several_outputs_appear(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", OLD)
    killed(
        tmp_path / "one.safetensors",
        "staging.finish(); staging._stage.begin(is_together=True, sync=False); staging._publish(False, set())",
    )
    assert list(open_checkpoint(str(tmp_path / "one.safetensors")).entries) == ["new"]
    (sentence,) = clear(tmp_path / "one.safetensors", remove=True)
    assert "not all of which may be new" in sentence
    kept = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert (kept / "new").read_bytes()[8:].startswith(b'{"__metadata__":{"format":"pt"},"old"')


def test_a_stage_of_which_nobody_can_tell_is_kept(tmp_path: Path) -> None:
    killed(tmp_path / "out")
    (stage,) = tmp_path.iterdir()
    said = (stage / "lock").read_text()
    (stage / "lock").write_text(said.replace('"host": "', '"host": "elsewhere-'))
    (sentence,) = clear(tmp_path / "out", remove=True)
    assert "made on elsewhere-" in sentence
    (stage / "lock").unlink()
    (sentence,) = clear(tmp_path / "out", remove=True)
    assert "cannot be told to be dead" in sentence
    assert stage.exists()


def test_a_stage_that_is_still_empty_is_named_when_it_is_removed(tmp_path: Path) -> None:
    """Its process was killed between making it and locking it."""
    stage = tmp_path / ".out.surgery-a1b2c3d4"
    stage.mkdir()
    (sentence,) = clear(tmp_path / "out", remove=True)
    assert str(stage) in sentence and not stage.exists()


def test_a_missing_checkpoint_says_where_a_killed_run_has_put_it(tmp_path: Path) -> None:
    write(tmp_path / "out", OLD)
    killed(tmp_path / "out", "staging._final.rename(staging._stage.old)")
    with pytest.raises(StorageError) as caught:
        open_checkpoint(str(tmp_path / "out"))
    assert "a run that replaced it was killed: it is in" in str(caught.value)
    (sentence,) = clear(tmp_path / "out", remove=True)
    assert "run puts it back" in sentence
    assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_root_of_the_file_system_is_no_output() -> None:
    with pytest.raises(StorageError, match="root of the file system"):
        check_target(output(Path("/")), True)


@pytest.mark.parametrize(
    ("format", "shard", "unrelated"),
    [
        ("torch", "8B", ["tokenizer.bin", "ema.pt", "weights.pth", "pytorch_model.bin.old"]),
        ("safetensors", "8B", ["ema.safetensors", "model.safetensors.bak", "weights.pt.txt"]),
        ("torch", None, ["tokenizer.txt"]),
        ("dcp", None, ["other.distcp", "run.metadata"]),
        ("orbax", None, ["d", "array_metadata", "manifest"]),
    ],
)
def test_only_files_of_the_old_checkpoint_go(
    format: str, shard: str | None, unrelated: list[str], tmp_path: Path
) -> None:
    if format == "dcp":
        pytest.importorskip("torch")
    plan = resolve_output(str(tmp_path / "out"), format, shard, "5GB")
    tensors = {"a": sample("uint8", 8), "b": sample("uint8", 8), "c": sample("uint8", 8)}
    write(plan, tensors)
    for name in unrelated:
        (tmp_path / "out" / name).write_text("mine")
    again = resolve_output(str(tmp_path / "out"), format, shard, "5GB")
    write(again, {"a": sample("int8", 16)}, overwrite=True)
    assert {name: (tmp_path / "out" / name).read_text() for name in unrelated} == dict.fromkeys(unrelated, "mine")
    write(resolve_output(str(tmp_path / "fresh"), format, shard, "5GB"), {"a": sample("int8", 16)})
    assert tree(tmp_path / "out").keys() - set(unrelated) == tree(tmp_path / "fresh").keys()


def test_checkpoints_in_a_folder_of_them_are_not_deleted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(resolve_output(str(tmp_path / "runs" / name), "orbax", None, "5GB"), OLD)
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="the directory holds checkpoints"):
        write(resolve_output(str(tmp_path / "runs"), "orbax", None, "5GB"), NEW, overwrite=True)
    assert tree(tmp_path) == before


def test_a_checkpoint_within_another_one_stays(tmp_path: Path) -> None:
    write(resolve_output(str(tmp_path / "out"), "orbax", None, "5GB"), OLD)
    write(resolve_output(str(tmp_path / "out/ema"), "orbax", None, "5GB"), OLD)
    write(resolve_output(str(tmp_path / "out"), "orbax", None, "5GB"), NEW, overwrite=True)
    assert list(open_checkpoint(str(tmp_path / "out")).entries) == ["new"]
    assert list(open_checkpoint(str(tmp_path / "out/ema")).entries) == ["old"]


def test_files_of_nobody_knows_what_are_not_shadowed_without_permission(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("one.safetensors", "two.safetensors"):
        write(tmp_path / "out" / name, OLD if name == "one.safetensors" else NEW)
    with pytest.raises(StorageError, match=r"one\.safetensors, two\.safetensors"):
        write(tmp_path / "out", NEW)
