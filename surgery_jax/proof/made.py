"""Whether outputs that are there are what a plan has made of its inputs, as the receipts in or beside them tell."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..core.errors import SurgeryError
from ..execute.options import Options
from ..language.plan import Plan
from ..language.writing import plan_text
from ..storage.files import read_text
from ..storage.formats import is_whole, place_of_input
from ..storage.places.found import is_local, locate, place_of
from ..storage.proofs import RECEIPT, RECEIPT_SIGNATURE, SIGNATURE
from .inputs import InputDigests
from .receipt import Receipt, read_receipt

__all__ = ["is_made", "replaces_input"]


def replaces_input(plan: Plan) -> bool:
    """Whether the output of a plan lies where one of its inputs does."""
    return plan.output is not None and bool(_own(plan, [plan.output.path]))


def is_made(plan: Plan, outputs: Sequence[str], options: Options | None, known: Collection[str] = ()) -> bool:
    """Whether outputs of a plan, the last of which is its own, are what it has made: each but those that are `known` to
    be has its receipts, all that options ask for, which say so; its files are those of the receipts, and all inputs
    that no output replaces still those that the receipts name. Whatever cannot be found out is not so. Without options
    it is whatever they were."""
    if not outputs:
        return False
    own = _own(plan, outputs)
    places = {entry.alias: place_of_input(entry.path) for entry in plan.inputs if entry.alias not in own}
    wanted: dict[str, str] = {}
    try:
        for path in [path for path in outputs if path not in known]:
            receipts = _receipts(path, options, is_last=path == outputs[-1])
            if not receipts or not is_whole(locate(path)):
                return False
            for receipt in map(read_receipt, receipts):
                if not _is_of(receipt, plan, path, options):
                    return False
                wanted |= _files(receipt, locate(path)) | _inputs(receipt, places)
        return _have(wanted)
    except (SurgeryError, OSError):
        return False


def _own(plan: Plan, outputs: Sequence[str]) -> set[str]:
    """The aliases of inputs that lie where an output does."""
    real = [_real(path) for path in outputs]
    places = {entry.alias: _real(place_of_input(entry.path)) for entry in plan.inputs}
    return {
        alias
        for alias, place in places.items()
        if any(is_local(place) == is_local(output) and place.is_relative_to(output) for output in real)
    }


def _real(path: str) -> Path:
    """Where a path leads to; only on this machine are there links."""
    return Path(os.path.realpath(path)) if is_local(path) else locate(path)


def _receipts(path: str, options: Options | None, *, is_last: bool) -> list[str]:
    """The receipts that an output has, if it has all that are wanted."""
    within = locate(path) / RECEIPT
    found = [str(within)] if within.is_file() else []
    if options is None:
        return found
    signatures = (SIGNATURE, RECEIPT_SIGNATURE) if options.sign is not None else ()
    if not all((locate(path) / name).is_file() for name in signatures):
        return []
    return found + ([options.receipt_path] if is_last and options.receipt_path is not None else [])


def _is_of(known: Receipt, plan: Plan, path: str, options: Options | None) -> bool:
    """Whether a receipt is that of this output of a plan, with the same texts of all files that the plan executes.

    Raises:
        StorageError: one of these cannot be read.
    """
    is_same = known.expanded == plan_text(plan) and known.name == locate(path).absolute().name
    shard = known.definition["internalParameters"].get("shardSize")
    executed = {file: text for file, text in known.plan_files.items() if file not in plan.origin.files}
    return (
        is_same
        and (options is None or shard == options.shard_size)
        and all(read_text(Path(file), "a file of the plan") == text for file, text in executed.items())
    )


def _files(known: Receipt, output: Path) -> dict[str, str]:
    """The SHA-256 of the files of an output, by path."""
    return {str(output / name): facts["sha256"] for name, facts in known.table["files"].items()}


def _inputs(known: Receipt, places: Mapping[str, str]) -> dict[str, str]:
    """The SHA-256 of the files of inputs in these places, by path."""
    found = {}
    for name, entry in known.inputs.items():
        alias, _, rest = name.partition("/")
        if alias in places:
            place = locate(places[alias])
            above = place if place.is_dir() else place.parent
            found[str(above / rest) if rest else places[alias]] = entry["digest"]["sha256"]
    return found


def _have(wanted: Mapping[str, str]) -> bool:
    """Whether files have these digests.

    Raises:
        SurgeryError: one cannot be read.
        OSError: one is not there.
    """
    digests = InputDigests()
    try:
        digests.begin({path: place_of(path).identity(path) for path in wanted}, {})
        return all(digests.of(path).sha256 == sha256 for path, sha256 in wanted.items())
    finally:
        digests.close()
