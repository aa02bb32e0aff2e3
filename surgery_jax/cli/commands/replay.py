"""`surgery-jax replay`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..command import BUDGETS, CLUSTER, JSON, OVERWRITE, QUIET, SYNC, Argument, Command, options_of
from ..streams import emit, note
from ..text import count, json_text, listed

if TYPE_CHECKING:
    from ...reports.replayed import Replay as Replayed


class ReplayCommand(Command):
    """Run the plan of a receipt again, and compare every tensor with what the receipt says of it.

    Inputs must have the bytes that they had. The exit code is 1 if a tensor differs: then nothing is written.
    """

    name = "replay"
    arguments = (
        Argument("receipt", "receipt, or the directory in which it lies", "RECEIPT", completes="file"),
        Argument("--input", "where an input lies now", "ALIAS=PATH", many=True),
        Argument(
            "--output", "write what the plan makes, if it is right; otherwise it is removed", "PATH", completes="file"
        ),
        Argument(
            "--against",
            "compare this checkpoint with what the plan makes, and write nothing",
            "CHECKPOINT",
            completes="file",
        ),
        *BUDGETS,
        OVERWRITE,
        SYNC,
        QUIET,
        JSON,
        *CLUSTER,
    )

    def run(self, args: Namespace) -> int:
        from ...api import join
        from ...core.errors import PlanError
        from ...reports.replay import replay
        from ..progress import shown

        inputs = {}
        for word in args.input:
            alias, separator, path = word.partition("=")
            if not (separator and alias and path):
                raise PlanError("--input takes an alias and a path", expected="--input base=PATH", found=word[:80])
            inputs[alias] = path
        options = options_of(args)
        with join(options, note) as peers, shown(args.quiet or peers.rank > 0) as display:
            found = replay(
                args.receipt,
                options,
                inputs=inputs,
                output=args.output,
                against=args.against,
                progress=display,
                peers=peers,
            )
            if peers.rank:
                return 0 if found.holds else 1
        emit(json_text(found.as_json()) if args.json else listed(_lines(found)))
        return 0 if found.holds else 1


def _lines(found: Replayed) -> Iterator[str]:
    shown = found.mismatches[:20]
    for mismatch in shown:
        within = " (within its tolerance)" if mismatch.within else ""
        yield f"{mismatch.name}: {mismatch.why}{within}"
    if len(found.mismatches) > len(shown):
        yield f"and {len(found.mismatches) - len(shown)} more"
    yield from (f"suspect: {cause}" for cause in found.suspects)
    if found.holds:
        written = f"; wrote {found.output}" if found.output is not None else ""
        yield f"{found.compared} is what the plan makes: {count(found.num_tensors, 'tensor')}{written}"
    else:
        number = sum(not mismatch.within for mismatch in found.mismatches)
        yield f"{found.compared} is not what the plan makes: {number} of {count(found.num_tensors, 'tensor')} differ"
