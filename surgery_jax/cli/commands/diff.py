"""`surgery-jax diff`."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..command import BUDGETS, FILTER, JSON, QUIET, Argument, Command, options_of, whole
from ..streams import emit
from ..text import count, json_text, listed

if TYPE_CHECKING:
    from ...reports.compare import Change, Difference


class DiffCommand(Command):
    """Compare two checkpoints: missing, added and changed tensors.

    Values are compared exactly, or within an absolute tolerance; NaN equals NaN. The exit code is 1 if anything
    differs.
    """

    name = "diff"
    arguments = (
        Argument("left", "checkpoint", "LEFT", completes="file"),
        Argument("right", "checkpoint", "RIGHT", completes="file"),
        Argument("--eps", "largest absolute difference that counts as equal", "X", parse=float),
        FILTER,
        Argument("--limit", "lines of each kind; 0: all (default: 20)", "N", default=20, parse=whole),
        *BUDGETS,
        QUIET,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...api import diff
        from ..progress import shown

        with shown(args.quiet) as display:
            found = diff(args.left, args.right, options_of(args), eps=args.eps, filter=args.filter, progress=display)
        emit(json_text(found.as_json()) if args.json else listed(_lines(found, args.limit)))
        return 0 if found.is_empty else 1


def _lines(found: Difference, limit: int) -> Iterator[str]:
    sections = (
        (f"only in {found.left}", found.missing),
        (f"only in {found.right}", found.added),
        ("changed", [_change(change) for change in found.changed]),
    )
    for title, rows in sections:
        if rows:
            yield f"{title}: {count(len(rows), 'tensor')}"
            shown = rows[: limit or None]
            yield from (f"  {row}" for row in shown)
            if len(rows) > len(shown):
                yield f"  and {len(rows) - len(shown)} more"
    if found.is_empty:
        yield "no differences: " + count(found.num_equal, "equal tensor")
    else:
        missing, added = len(found.missing), len(found.added)
        yield f"{found.num_equal} equal, {len(found.changed)} changed, {missing} missing, {added} added"


def _change(change: Change) -> str:
    from ...core.trees import format_number

    if change.kind != "values":
        return f"{change.name}: {change.kind}: {change.left} against {change.right}"
    assert change.worst is not None
    worst = "NaN or infinite" if math.isinf(change.worst) else format_number(change.worst)
    place = f" at {list(change.index)}" if change.index else ""
    return f"{change.name}: {change.num_differing} of {change.size} elements differ, the most by {worst}{place}"
