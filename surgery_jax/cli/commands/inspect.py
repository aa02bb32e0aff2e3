"""`surgery-jax inspect`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..command import BUDGETS, FILTER, JSON, QUIET, Argument, Command, options_of
from ..streams import emit
from ..text import count, json_text, listed, table, visible

if TYPE_CHECKING:
    from ...reports.survey import CheckpointInfo, TensorInfo


class Inspect(Command):
    """Show what a checkpoint holds.

    Reads headers only, unless statistics are asked for.
    """

    name = "inspect"
    arguments = (
        Argument("checkpoint", "file or directory", "CHECKPOINT", completes="file"),
        Argument(
            "--format",
            "tree (default; equal layers folded), table or json",
            "LAYOUT",
            choices=("tree", "table", "json"),
            default="tree",
        ),
        FILTER,
        Argument("--stats", "also the smallest, largest and mean value of every tensor"),
        Argument("--metadata", "also the text metadata"),
        Argument("--documents", "also the files beside it that tell of the model"),
        *BUDGETS,
        QUIET,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        from ...api import inspect
        from ...storage.files import paused_gc
        from ..progress import shown

        with paused_gc(), shown(args.quiet or not args.stats) as display:
            info = inspect(args.checkpoint, options_of(args), filter=args.filter, stats=args.stats, progress=display)
            as_json = args.json or args.format == "json"
            text = json_text(info.as_json()) if as_json else "\n".join(_lines(info, args))
        emit(text)
        return 0


def _lines(info: CheckpointInfo, args: Namespace) -> Iterator[str]:
    from ...core.specs import format_bytes
    from ...core.trees import render_tree

    dtypes = ", ".join(f"{name} x {number}" for name, number in info.dtypes.items())
    matching = f" matching {args.filter}" if args.filter else ""
    yield (
        f"{info.format}: {count(len(info.files), 'file')}, {count(len(info.tensors), 'tensor')}{matching}, "
        f"{info.num_parameters:,} parameters, {format_bytes(info.nbytes)}" + (f"; {dtypes}" if dtypes else "")
    )
    if args.metadata:
        yield from (f"metadata {visible(key)}: {visible(value)}" for key, value in info.metadata.items())
    if args.documents:
        yield from (f"document {listed([name])}: {_size(path)}" for name, path in info.documents.items())
    if not info.tensors:
        return
    if args.format == "tree":
        yield render_tree({tensor.name: _leaf(tensor) for tensor in info.tensors}, fold=True)
        return
    head = ("name", "dtype", "shape", "bytes", *(("min", "max", "mean") if args.stats else ()))
    rows = [
        (listed([t.name]), t.dtype, str(list(t.shape)), str(t.nbytes), *(_statistics(t) if args.stats else ()))
        for t in info.tensors
    ]
    yield from table([head, *rows], right=(3, 4, 5, 6))


def _size(path: str) -> str:
    from ...core.specs import format_bytes
    from ...storage.places.found import locate

    try:
        return format_bytes(locate(path).stat().st_size)
    except OSError as error:  # a link that leads nowhere
        return error.strerror or str(error)


def _leaf(tensor: TensorInfo) -> str:
    shape = f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"
    if tensor.statistics is None:
        return shape
    numbers = zip(("min", "max", "mean"), _statistics(tensor), strict=True)
    return " ".join([shape, *(f"{name}={number}" for name, number in numbers)])


def _statistics(tensor: TensorInfo) -> tuple[str, str, str]:
    from ...core.trees import format_number

    found = tensor.statistics
    numbers = (None, None, None) if found is None else (found.min, found.max, found.mean)
    low, high, mean = ("-" if number is None else format_number(number) for number in numbers)
    return low, high, mean
