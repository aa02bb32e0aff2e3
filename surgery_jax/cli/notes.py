"""What a user should know although nothing is wrong, on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..core.notes import Note
from .text import visible

__all__ = ["notes_shown"]


@contextmanager
def notes_shown(quiet: bool) -> Iterator[None]:
    """Print every note once, or none if quiet; other warnings stay what they are."""
    told: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                others(message, category, *where, **more)
            elif not quiet and str(message) not in told:
                told.add(str(message))
                print(f"note: {visible(str(message))}", file=sys.stderr)

        warnings.simplefilter("always", Note)
        warnings.showwarning = show
        yield
