"""Whether a plan that replaces its own input has been applied already, as the receipt beside its output tells."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import SurgeryError
from ..language.plan import Plan
from ..language.writing import plan_text
from ..storage.formats import place_of_input
from ..storage.places.found import is_local, locate, place_of
from ..storage.proofs import RECEIPT
from .inputs import InputDigests
from .receipt import Receipt, read_receipt

__all__ = ["is_applied"]


def is_applied(plan: Plan) -> bool:
    """Whether the output of a plan, which is one of its inputs too, is what it has made: its receipt has this plan, its
    files are those of the receipt, and all other inputs still those that the receipt names. Whatever cannot be found
    out is not so."""
    if plan.output is None or not is_local(plan.output.path):
        return False
    output = Path(os.path.realpath(locate(plan.output.path)))
    places = {entry.alias: place_of_input(entry.path) for entry in plan.inputs}
    own = {alias for alias, place in places.items() if Path(os.path.realpath(place)).is_relative_to(output)}
    if not own or not (output / RECEIPT).is_file():
        return False
    try:
        known = read_receipt(str(output))
        if known.expanded != plan_text(plan):
            return False
        wanted = {str(output / name): facts["sha256"] for name, facts in known.table["files"].items()}
        wanted |= _others(known, {alias: place for alias, place in places.items() if alias not in own})
        return _have(wanted)
    except (SurgeryError, OSError):
        return False


def _others(known: Receipt, places: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of the files of inputs in these places, by path."""
    found = {}
    for name, entry in known.inputs.items():
        alias, _, rest = name.partition("/")
        if alias in places:
            place = locate(places[alias])
            above = place if place.is_dir() else place.parent
            found[str(above / rest) if rest else places[alias]] = entry["digest"]["sha256"]
    return found


def _have(wanted: dict[str, str]) -> bool:
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
