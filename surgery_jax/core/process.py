"""Whose process this is.

The command line has its process for itself and sets it up as suits the work: what JAX keeps on the disk, how the C
library hands out memory, what the collector of cycles looks at. A call from Python is a guest there, and leaves all
that as it is.
"""

from __future__ import annotations

import gc

__all__ = ["is_own", "own", "set_aside", "take_back"]

MANY = 100_000  # objects; by default Python looks for cycles whenever there are 700 more

_is_own = False


def own() -> None:
    """This process is there for one command. Importing and planning make many objects that stay, and hardly a cycle:
    looking for some takes a good part of what importing JAX does."""
    global _is_own
    _is_own = True
    gc.set_threshold(MANY)


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
