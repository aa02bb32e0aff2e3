"""Killed, refused, cut short or interrupted at any call: nothing partial appears, nothing is lost, nothing stays."""

from __future__ import annotations

import shutil
import sys

import pytest

from .campaign import damaged, struck
from .harness import Mode, build_library
from .scenes import SCENES

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
EACH = 6  # calls of every scene for each kind of fault; run.py --long tries all


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_fault_at_any_call_leaves_the_old_or_the_new(scene, library, tmp_path):
    modes = (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.FAIL, Mode.SHORT, Mode.SIGNAL)
    tried, wrong = struck(library, tmp_path, dict.fromkeys(modes, EACH), seed=7, scenes=[scene])
    assert tried.total() > 3 * EACH
    assert not wrong, "\n".join(wrong)


def test_damaged_inputs_are_read_or_refused_with_one_error(library, tmp_path):
    codes, wrong, _ = damaged(library, tmp_path, 300, seed=7)
    assert codes["exit 3"] > 50 and codes["exit 0"] > 20
    assert not wrong, "\n".join(wrong)
