"""Runs that are killed, fail or are stopped at any call are gone on with."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from .harness import Mode, Point, Server, build_library
from .resuming import RESUMED, TORCH, resumed
from .scenes import RUN, with_plan
from .trial import PUBLISHING, Scene, Trial

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
KILLS, CUTS, OTHERS = 5, 5, 1  # of every scene and kind; resuming.py --long tries more


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("scene", RESUMED, ids=lambda scene: scene.name)
def test_a_run_that_was_stopped_at_any_call_is_gone_on_with(scene, library: Path, tmp_path: Path) -> None:
    draw = random.Random(f"7 {scene.name}")
    modes = [*[Mode.KILL_BEFORE, Mode.KILL_AFTER] * KILLS][:KILLS] + [Mode.FAIL, Mode.SIGNAL] * OTHERS
    modes += [Mode.CUT] * CUTS if scene.is_synced else []
    with Server(library, tmp_path) as server:
        trial = Trial(scene, tmp_path, server)
        wrong = [sentence for mode in modes for sentence in resumed(trial, draw, mode)]
    assert not wrong, "\n".join(wrong)


def test_a_receipt_beside_a_file_that_appeared_without_it_is_still_written(library: Path, tmp_path: Path) -> None:
    scene = Scene("receipt", with_plan(TORCH), (*RUN, "--receipt", "told.json"), ("out.pt",))
    with Server(library, tmp_path) as server:
        trial = Trial(scene, tmp_path, server)
        appears = next(number for number, name in enumerate(trial.calls, 1) if name in PUBLISHING)
        place = trial.copy()
        server.run(scene.command, place, Point(Mode.KILL_AFTER, appears))
        assert (place / "out.pt").exists() and not (place / "told.json").exists()
        done = server.run((*scene.command, "--resume"), place)
        assert done.code == 0 and (place / "told.json").exists(), done.stderr
        assert server.run(("verify", "out.pt", "--receipt", "told.json"), place).code == 0
