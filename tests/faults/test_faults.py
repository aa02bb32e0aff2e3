"""Killed, refused, cut short or interrupted at any call: nothing partial appears, nothing is lost, nothing stays."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from .account import Account
from .campaign import damaged, serving, struck
from .harness import MEMORY, Mode, build_library
from .resuming import RESUMED
from .scenes import SCENES

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results/faults.json"
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
    modes = [mode for mode in Mode if mode not in (Mode.OFF, Mode.COUNT, Mode.CUT)]
    struck(servers, tmp_path, scene, dict.fromkeys(modes, EACH), 7, account)
    assert sum(account.tried[mode.name.lower()] for mode in modes) > 4 * EACH
    assert not account.wrong, "\n".join(account.wrong)


def test_damaged_inputs_are_read_or_refused_with_one_error(library, tmp_path):
    account = Account("damaged")
    damaged(library, tmp_path, range(300), 7, account)
    codes = Counter(kind.rpartition(", ")[2] for kind in account.tried.elements())
    assert codes["exit 3"] > 50 and codes["exit 0"] > 20
    assert not account.wrong, "\n".join(account.wrong)


def test_the_committed_counts_are_those_of_a_long_campaign_that_found_nothing_wrong():
    """The calls of each kind of run change from version to version; what they must amount to does not."""
    parts = json.loads(RESULTS.read_text())
    machine, pods, inputs = (parts.pop(name) for name in ("machine", "pods", "damaged"))
    resumed = [parts.pop(scene.name) for scene in RESUMED]
    assert not {str(value) for value in machine.values() if "/" in str(value)}
    assert all(part["complete"] and not part["wrong"] for part in (*parts.values(), pods, inputs))
    tried: Counter[str] = sum((Counter(part["tried"]) for part in parts.values()), Counter())
    assert sum(tried[f"kill_{when}"] for when in ("before", "after", "again")) >= 500
    assert tried["signal"] >= 500
    assert all(part["complete"] and not part["wrong"] for part in resumed)
    for kind in ("kill", "cut", "fail", "signal"):
        assert sum(part["tried"].get(kind, 0) for part in resumed) >= 500
    assert len(parts) >= 7 and all(part["tried"]["fail"] > 100 for part in parts.values())
    assert pods["total"] >= 50 and inputs["total"] >= 20_000
    proofs = [count for kind, count in inputs["tried"].items() if kind.split()[0] in ("receipt", "signed", "stage")]
    assert sum(proofs) >= 10_000
    assert max(part["peak_bytes"] for part in (*parts.values(), inputs)) < MEMORY
