"""What a user should know although nothing is wrong."""

from __future__ import annotations

import warnings

__all__ = ["Note", "note"]


class Note(UserWarning):
    """A remark about what is read or done. Programs may filter it like any warning; the command line prints it."""


def note(text: str) -> None:
    """Tell the user, once for each text."""
    warnings.warn(Note(text), stacklevel=2)
