"""`surgery-jax clean`."""

from __future__ import annotations

from argparse import Namespace

from ..command import JSON, Argument, Command
from ..streams import emit
from ..text import json_text, listed


class Clean(Command):
    """Remove what runs that did not come to their end have left beside outputs.

    PATH is an output, a folder, or one of the hidden directories themselves. Those in which a run is at work stay, and
    so do those of which nobody can tell. What may be the only copy of an output is put back in its place.
    """

    name = "clean"
    arguments = (
        Argument("paths", "outputs, or folders in which they are", "PATH", completes="file", many=True),
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...storage.clearing import cleared

        found = [one for path in args.paths for one in cleared(path)]
        left = [one.told for one in found if not one.is_removed]
        if args.json:
            emit(json_text({"removed": [one.told for one in found if one.is_removed], "left": left}))
        else:
            emit(listed([one.told for one in found] or ["nothing is left"]))
        return 3 if left else 0
