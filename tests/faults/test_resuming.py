"""Runs that are killed, fail or are stopped at any call are gone on with."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from .harness import Mode, Point, Server, build_library
from .resuming import NORM, RESUMED, TORCH, resumed
from .scenes import RUN, model, with_plan
from .trial import PUBLISHING, Scene, Trial, tree

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
KILLS, CUTS, OTHERS = 5, 5, 1  # of every scene and kind; run_resuming.py --long tries more
EVERY = 4  # of the calls from when an output appears


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("scene", RESUMED, ids=lambda scene: scene.name)
def test_a_run_that_was_stopped_at_any_call_is_gone_on_with(scene, library: Path, tmp_path: Path) -> None:
    draw = random.Random(f"7 {scene.name}")
    modes = [*[Mode.KILL_BEFORE, Mode.KILL_AFTER] * KILLS][:KILLS] + [Mode.FAIL, Mode.FULL, Mode.SIGNAL] * OTHERS
    modes += [Mode.CUT] * CUTS if scene.is_synced else []
    with Server(library, tmp_path) as server:
        trial = Trial(scene, tmp_path, server)
        wrong = [sentence for mode in modes for sentence in resumed(trial, draw, mode)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "more", "output", "receipt"),
    [(TORCH, ("--receipt", "told.json"), "out.pt", "told.json"), (NORM, (), "out", "out/surgery.receipt.json")],
    ids=["a file", "a directory"],
)
def test_from_when_an_output_appears_resume_only_writes_the_receipt_that_is_owed(
    library: Path, tmp_path: Path, text: str, more: tuple[str, ...], output: str, receipt: str
) -> None:
    """Without --overwrite: what is there is known as the run's own."""
    scene = Scene("receipt", with_plan(text), (*RUN, *more), (output,))
    with Server(library, tmp_path) as server:
        trial = Trial(scene, tmp_path, server)
        appears = next(number for number, name in enumerate(trial.calls, 1) if name in PUBLISHING)
        owed = 0
        for number in range(appears, len(trial.calls) + 1, EVERY):
            place = trial.copy()
            server.run(scene.command, place, Point(Mode.KILL_AFTER, number))
            owed += (place / output).exists() and not (place / receipt).exists()
            done = server.run((*scene.command, "--resume"), place)
            assert done.code == 0 and (place / receipt).exists(), (trial.calls[number - 1], done.stderr)
            assert [path.name for path in place.iterdir() if ".surgery-" in path.name] == []
        assert server.run(("verify", output, "--receipt", receipt), place).code == 0
        assert bool(owed) == bool(more)
        assert server.run((*scene.command, "--resume", "--shard-size", "100KB"), place).code == 3


ITSELF = r"""
inputs: [ "model::model/model.safetensors", "other::other" ]
transforms:
  - scale_: { target: 'model::.+', by: 0.5 }  # done twice it gives something else
  - add_: { from: 'other::(.+)', to: 'model::\1' }
output: model/model.safetensors
"""
FILES = r"""
inputs: [ "model::model" ]
transforms:
  - save: { path: first.msgpack, alias: model }
  - scale_: { target: 'a.+', by: 0.5 }
output: second.pt
"""


@pytest.mark.parametrize(
    ("text", "more", "outputs"),
    [(ITSELF, ("--overwrite",), ("model/model.safetensors",)), (FILES, (), ("first.msgpack", "second.pt"))],
    ids=["its own input", "two files"],
)
def test_from_when_files_appear_resume_knows_them_as_its_own_without_a_receipt(
    library: Path, tmp_path: Path, text: str, more: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    def build(root: Path) -> None:
        model(root, "other", seed=2)
        with_plan(text)(root)

    scene = Scene("files", build, (*RUN, *more), outputs)
    with Server(library, tmp_path) as server:
        trial = Trial(scene, tmp_path, server)
        appears = next(number for number, name in enumerate(trial.calls, 1) if name in PUBLISHING)
        for number in range(appears, len(trial.calls) + 1, EVERY):
            place = trial.copy()
            server.run(scene.command, place, Point(Mode.KILL_AFTER, number))
            done = server.run((*scene.command, "--resume"), place)
            now, hidden = tree(place)
            assert (done.code, hidden) == (0, []), (trial.calls[number - 1], done.stderr)
            assert dict(now) == dict(trial.after), trial.calls[number - 1]
