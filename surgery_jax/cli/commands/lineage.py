"""`surgery-jax lineage`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..command import JSON, PUBLIC_KEY, Argument, Command
from ..streams import emit
from ..text import json_text, listed

if TYPE_CHECKING:
    from ...proof.lineage import Ancestor


class Lineage(Command):
    """Where a checkpoint comes from: the chain of receipts, as far as they lie beside the inputs."""

    name = "lineage"
    arguments = (
        Argument("checkpoint", "checkpoint with a receipt", "CHECKPOINT", completes="file"),
        PUBLIC_KEY,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...proof.lineage import lineage

        found = lineage(args.checkpoint, args.public_key)
        emit(json_text(found.as_json()) if args.json else listed(_lines(found, 0)))
        return 0


def _lines(found: Ancestor, depth: int) -> Iterator[str]:
    alias = f"{found.alias}: " if found.alias else ""
    root = f"  sha256:{found.root[:16]}" if found.root else ""
    made = f"  {found.made}" if found.made else ""
    end = f"  ({found.end})" if found.end else ""
    signed = "  signed" if found.signed else ""
    yield f"{'  ' * depth}{alias}{found.path}{root}{made}{signed}{end}"
    for parent in found.parents:
        yield from _lines(parent, depth + 1)
