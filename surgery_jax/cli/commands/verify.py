"""`surgery-jax verify`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..command import JSON, PUBLIC_KEY, QUIET, WORKERS, Argument, Command
from ..streams import emit
from ..text import count, json_text, listed

if TYPE_CHECKING:
    from ...proof.verify import Verification


class Verify(Command):
    """Compare a checkpoint with its receipt: every tensor, whatever stores it, and every file if files are cut alike.

    The receipt is the one beside it, or that of --receipt. The exit code is 1 if anything differs.
    """

    name = "verify"
    arguments = (
        Argument("checkpoint", "checkpoint", "CHECKPOINT", completes="file"),
        Argument("--receipt", "the receipt, or the directory in which it lies", "PATH", completes="file"),
        PUBLIC_KEY,
        Argument("--limit", "names of each kind; 0: all (default: 20)", "N", default=20, parse=int),
        WORKERS,
        QUIET,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...proof.verify import verify
        from ..progress import shown

        with shown(args.quiet) as display:
            found = verify(args.checkpoint, args.receipt, args.public_key, workers=args.workers or 0, progress=display)
        emit(json_text(found.as_json()) if args.json else listed(_lines(found, args.limit)))
        return 0 if found.holds else 1


def _lines(found: Verification, limit: int) -> Iterator[str]:
    for kind in ("tensors", "files"):
        for what, title in (("differing", "differ"), ("missing", "missing"), ("extra", "not in the receipt")):
            names = getattr(found, f"{kind}_{what}")
            if names:
                yield f"{kind}, {title}: {len(names)}"
                shown = names[: limit or None]
                yield from (f"  {name}" for name in shown)
                if len(names) > len(shown):
                    yield f"  and {len(names) - len(shown)} more"
    if found.holds:
        files = f" and {count(found.num_files, 'file')}" if found.same_files else "; its files are cut otherwise"
        signed = "; the signature is of that key" if found.signed else ""
        yield f"{found.path} is what {found.receipt} says: {count(found.num_tensors, 'tensor')}{files}{signed}"
