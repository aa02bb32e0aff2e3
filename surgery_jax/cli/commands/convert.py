"""`surgery-jax convert`."""

from __future__ import annotations

from argparse import Namespace

from ..command import (
    BUDGETS,
    CONFIG_CHECK,
    JSON,
    OVERWRITE,
    PROOF,
    QUIET,
    RESUME,
    REUSE,
    SYNC,
    Argument,
    Command,
    options_of,
    shard_size,
    words,
)
from .run import tell_report


class Convert(Command):
    """Write a checkpoint in another storage format, or cut into other shards.

    The suffix of the target decides the format, as for the output of a plan.
    """

    name = "convert"
    arguments = (
        Argument("source", "checkpoint", "SOURCE", completes="file"),
        Argument("target", "file or directory to write", "TARGET", completes="file"),
        Argument("--format", "the format to write, where the suffix does not say", "FORMAT"),
        Argument(
            "--shard-size", "largest shard of a directory, such as 5GB (default), or none", "SIZE", parse=shard_size
        ),
        Argument("--options", "of the format, such as compression=zstd,chunk=64MB", "KEY=VALUE,...", parse=words),
        OVERWRITE,
        CONFIG_CHECK,
        *BUDGETS,
        SYNC,
        RESUME,
        REUSE,
        *PROOF,
        QUIET,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...api import convert
        from ..progress import shown

        shard, args.shard_size = args.shard_size, None
        settings, args.options = args.options, None
        with shown(args.quiet) as display:
            report = convert(
                args.source,
                args.target,
                options_of(args),
                format=args.format,
                shard=shard,
                settings=settings,
                progress=display,
            )
        tell_report(report, args)
        return 0
