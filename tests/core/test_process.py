"""What the command line sets up in its own process, and a call from Python does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from surgery_jax.core.process import sorts_slowly

ZEN_4 = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu avx2 avx512f avx512bw\n"
)
FOUND = "from numpy._core._multiarray_umath import __cpu_features__ as f; print(f.get('X86_V4', f['AVX512F']))"


@pytest.mark.parametrize(
    ("processor", "is_slow"),
    [
        (ZEN_4, True),
        (ZEN_4.replace("25", "26"), False),  # Zen 5
        (ZEN_4.replace(" avx512f avx512bw", ""), False),  # Zen 3
        (ZEN_4.replace("AuthenticAMD", "GenuineIntel"), False),
        ("processor : 0\nBogoMIPS : 50\nFeatures : fp asimd\n", False),
        ("", False),
    ],
)
def test_only_processors_that_compress_by_microcode_go_without_wide_instructions(processor: str, is_slow: bool) -> None:
    assert sorts_slowly(processor) == is_slow


def features(first: str, **variables: str) -> str:
    given = {name: value for name, value in os.environ.items() if name != "NPY_DISABLE_CPU_FEATURES"} | variables
    program = [sys.executable, "-W", "error", "-c", f"{first}; {FOUND}"]
    return subprocess.run(program, env=given, capture_output=True, text=True, check=True).stdout.strip()


def test_numpy_sorts_with_what_is_fast_in_a_process_of_ones_own_and_as_it_likes_in_that_of_others() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    is_slow = cpuinfo.exists() and sorts_slowly(cpuinfo.read_text())
    usual = features("pass")
    assert features("import surgery_jax.core.process") == usual
    assert features("from surgery_jax.core.process import own; own()") == ("False" if is_slow else usual)
    chosen = features("from surgery_jax.core.process import own; own()", NPY_DISABLE_CPU_FEATURES="")
    assert chosen == usual  # who has set the variable is obeyed
