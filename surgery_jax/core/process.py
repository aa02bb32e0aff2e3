"""Whose process this is.

The command line has its process for itself and sets it up as suits the work: what JAX keeps on the disk, how the C
library hands out memory, what the collector of cycles looks at, how NumPy sorts. A call from Python is a guest there,
and leaves all that as it is.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from contextlib import suppress

__all__ = ["is_own", "own", "set_aside", "sorts_slowly", "take_back"]

UNUSED = "NPY_DISABLE_CPU_FEATURES"  # of NumPy's environment
MANY = 100_000  # objects; by default Python looks for cycles whenever there are 700 more

_is_own = False


def own() -> None:
    """This process is there for one command. Importing and planning make many objects that stay, and hardly a cycle:
    looking for some takes a good part of what importing JAX does."""
    global _is_own
    _is_own = True
    gc.set_threshold(MANY)
    if "numpy" not in sys.modules and UNUSED not in os.environ:
        if sorts_slowly(_processor()):
            os.environ[UNUSED] = _wide_instructions()


def sorts_slowly(processor: str) -> bool:
    """Whether NumPy sorts faster without AVX-512 on a processor that Linux describes so: on Zen 4, where instructions
    that write to memory what they have compressed are microcode, it took three to four times as long with it."""
    found = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", processor, re.MULTILINE))
    is_zen_4 = found.get("vendor_id") == "AuthenticAMD" and found.get("cpu family") == "25"
    return is_zen_4 and "avx512f" in found.get("flags", "").split()


def _processor() -> str:
    """What Linux says of the first core."""
    with suppress(OSError), open("/proc/cpuinfo", "rb", buffering=0) as file:  # noqa: PTH123 (pathlib takes long)
        return file.read(4096).decode(errors="replace")
    return ""


def _wide_instructions() -> str:
    """What NumPy calls them: since 2.4 by the level of the architecture."""
    from importlib.metadata import version

    return "X86_V4" if tuple(map(int, version("numpy").split(".")[:2])) >= (2, 4) else "AVX512F"


def is_own() -> bool:
    """Whether settings of the process may be changed for good."""
    return _is_own


def set_aside() -> None:
    """Let the collector look no more at what there is now, which stays: compiling makes millions of small objects."""
    if _is_own:
        gc.freeze()


def take_back() -> None:
    """Let the collector look at everything again."""
    if _is_own:
        gc.unfreeze()
