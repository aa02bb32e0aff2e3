"""`surgery-jax ops`."""

from __future__ import annotations

from argparse import Namespace

from ..command import Argument, Command
from ..streams import emit


class Ops(Command):
    """Help on transforms and assertions, from their own definitions."""

    name = "ops"
    arguments = (
        Argument(
            "operation",
            "a transform, an assertion or a merge method; all without it",
            "NAME",
            completes="operation",
            optional=True,
        ),
    )

    def run(self, args: Namespace) -> int:
        from ...ops.describe import describe

        emit(describe(args.operation))
        return 0
