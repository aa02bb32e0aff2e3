"""Killed, refused, cut short or interrupted at any call: nothing partial appears, nothing is lost, nothing stays."""

from __future__ import annotations

import shutil
import sys
from collections import Counter

import pytest

from .account import Account
from .campaign import damaged, serving, struck
from .harness import Mode, build_library
from .scenes import SCENES

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
EACH = 2  # calls of every scene for each kind of fault; run.py --long tries hundreds


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def servers(library, tmp_path_factory):
    with serving(library, tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_fault_at_any_call_leaves_the_old_or_the_new(scene, servers, tmp_path):
    account = Account(scene.name)
    modes = [mode for mode in Mode if mode not in (Mode.OFF, Mode.COUNT)]
    struck(servers, tmp_path, scene, dict.fromkeys(modes, EACH), 7, account)
    assert sum(account.tried[mode.name.lower()] for mode in modes) > 4 * EACH
    assert not account.wrong, "\n".join(account.wrong)


def test_damaged_inputs_are_read_or_refused_with_one_error(library, tmp_path):
    account = Account("damaged")
    damaged(library, tmp_path, range(300), 7, account)
    codes = Counter(kind.rpartition(", ")[2] for kind in account.tried.elements())
    assert codes["exit 3"] > 50 and codes["exit 0"] > 20
    assert not account.wrong, "\n".join(account.wrong)
