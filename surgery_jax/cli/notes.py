"""What a user should know although nothing is wrong, on stderr."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..core.notes import Note
from .streams import note
from .text import visible

__all__ = ["notes_shown"]


@contextmanager
def notes_shown() -> Iterator[None]:
    """Print every note once; other warnings stay what they are."""
    told: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, Note):
                others(message, category, *where, **more)
            elif str(message) not in told:
                told.add(str(message))
                note(f"note: {visible(str(message))}")

        warnings.simplefilter("always", Note)
        warnings.showwarning = show
        yield
