"""Runs that had come to their end when they were killed, or whose receipts or labels say so: there is nothing to go on
with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import StorageError, SurgeryError, listing
from ..proof.made import is_made, replaces_input
from ..storage.continued import begun_uploads
from ..storage.files import read_text, storage_error
from ..storage.labels import labelled
from ..storage.places.found import is_local, locate, place_of
from ..storage.stages import Stage
from ..storage.targets import final_place
from .finished import key_of
from .passes import output_paths
from .resuming import dead_stages
from .run_keys import state, text_digest, versions

if TYPE_CHECKING:
    from ..execute.options import Options
    from ..language.plan import Plan
    from .compiled import Outputs

__all__ = ["look_back"]

_THERE = "a run had come to its end when it was killed; all is there"
_MADE = "its {said} says that this plan made it of these inputs, so nothing is left to do"
_APPLIED = "its {said} says that this plan was applied to it; without --resume it is applied once more"


def look_back(plan: Plan, outputs: Outputs, options: Options) -> tuple[list[str], list[str]]:
    """The outputs of a run of this plan that has come to its end, and sentences about it; none if there was no such
    run. To be called without outputs before inputs are read, which may be among what is put back or was replaced, and
    again when all outputs of the plan are known.

    Raises:
        StorageError: something cannot be put back, or the plan was applied to its own input without what options want.
    """
    paths, is_own = output_paths(plan, outputs), replaces_input(plan)
    there, why = _appeared(plan, paths, options), _THERE
    if not there and is_own != bool(outputs) and (said := _made_by(plan, paths, options, is_own)):
        there, why = paths, (_APPLIED if is_own else _MADE).format(said=said)
    return there, [f"{listing(there)}: {why}", *_unneeded(there)] if there else []


def _unneeded(paths: Iterable[str]) -> Iterator[str]:
    """What is to be said of the stages and uploads that lie beside outputs that are there.

    Raises:
        StorageError: a store refuses to tell.
    """
    for path in paths:
        for stage in dead_stages(path):
            if stage.is_worth_keeping:
                stage.close()
                yield f"{stage.path}: left by another run; surgery-jax clean {path} removes it"
            else:
                stage.remove()
        try:
            uploads = [] if is_local(path) else [*begun_uploads(path)]
        except OSError as error:
            raise storage_error(error, path, "see what is begun there") from None
        for upload in uploads:
            yield f"{upload.stage}: left by another run; surgery-jax clean {path} removes it"


def _appeared(plan: Plan, paths: Iterable[str], options: Options) -> list[str]:
    """The outputs of a run of this plan that was killed when all of them were there: nothing is left to do. If only
    some had appeared, or a receipt beside them is not there yet, what they replaced is put back, and a run can go on as
    if none had. To be done before inputs are read, which may be among what is put back.

    Raises:
        StorageError: it cannot be put back.
    """
    for path in paths:
        for stage in dead_stages(path):
            head = stage.read_head()
            appeared = _is_of(head, plan, options) and stage.has_appeared(final_place(path))
            stage.close()
            if appeared and (there := _recover(head, plan, options)):
                return there
    return []


def _recover(head: Mapping[str, Any], plan: Plan, options: Options) -> list[str]:
    """All outputs of a run, if all are there and that is all of it; else what they replaced is put back."""
    outputs = [path for path in head.get("outputs", ()) if isinstance(path, str)]
    found: list[tuple[Path, Stage]] = []
    for path in outputs:
        for stage in dead_stages(path):
            if stage.read_head().get("run") == head.get("run"):
                found.append((final_place(path), stage))
            else:
                stage.close()
    try:
        appeared = [stage.has_appeared(target) for target, stage in found]
        is_owed = options.receipt_path is not None and not is_made(plan, outputs[-1:], options)
        if not all(appeared) or is_owed:
            for (target, stage), has_appeared in zip(found, appeared, strict=True):
                if has_appeared:
                    stage.take_back(target)
            return []
        if not _is_unchanged(head.get("inputs"), [final_place(path) for path in outputs]):
            return []
        for _, stage in found:
            stage.remove()
        return outputs
    except OSError as error:
        raise storage_error(error, outputs[0], "put back what was there before") from None
    finally:
        for _, stage in found:
            stage.close()


def _is_unchanged(inputs: Any, outputs: Sequence[Path]) -> bool:
    """Whether the files that a run has read are still the same, but for those that it has replaced itself."""
    if not isinstance(inputs, dict):
        return False
    for path, known in inputs.items():
        try:
            real = Path(os.path.realpath(path)) if is_local(path) else None
            if real is not None and any(real.is_relative_to(output) for output in outputs):
                continue
            if state(path, place_of(path).identity(path)) != known:
                return False
        except (SurgeryError, OSError, ValueError):
            return False
    return True


def _made_by(plan: Plan, paths: Sequence[str], options: Options, is_own: bool) -> str | None:
    """What says that outputs are what a plan has made and that all is there that options want, in a word; None if
    nothing does.

    Raises:
        StorageError: it was applied to its own input, and something is missing that cannot be made up for.
    """
    known = [path for path in paths if _is_labelled(path, plan, options)]
    sufficient = [path for path in known if not _wants_more(path, options, is_last=path == paths[-1])]
    if is_made(plan, paths, options, sufficient):
        return "label" if len(sufficient) == len(paths) else "receipt"
    if (is_own or not options.overwrite) and is_made(plan, paths, None, known):
        lacking = [path for path in known if path not in sufficient]
        raise _made_otherwise(lacking or paths, options, is_own=is_own, is_lacking=bool(lacking))
    return None


def _made_otherwise(paths: Sequence[str], options: Options, *, is_own: bool, is_lacking: bool) -> StorageError:
    """What to say of outputs that a plan has made, but not as options want it; is_lacking: a receipt or signature."""
    how = "was applied to it" if is_own else "made it of these inputs"
    again = "leave out --resume, to apply the plan once more" if is_own else "add --overwrite, to make it again"
    but, other = "not with this receipt, signature or shard size", "leave these options out"
    if is_lacking and options.sign is not None:
        but, other = "without a signature", "leave out --sign"
    elif is_lacking:
        but, other = "without a receipt", "leave out --receipt" if options.receipt_path else "add --no-receipt"
    return StorageError(f"this plan {how} already, but {but}", where=listing(paths), hint=f"{other}; or {again}")


def _wants_more(path: str, options: Options, *, is_last: bool) -> bool:
    """Whether an output that has a label should have what nobody sees beside it: a receipt, or a signature, also where
    nothing can be signed."""
    if options.sign is not None or (options.receipt_path is not None and is_last):
        return True
    return options.receipt and final_place(path).is_dir()


def _is_labelled(path: str, plan: Plan, options: Options) -> bool:
    """Whether an output says of itself that a run of this plan has made it of what its inputs are, and it was not
    changed since."""
    if not is_local(path):
        return False
    head = labelled(final_place(path))
    outputs = head.get("outputs")
    if not isinstance(outputs, list) or not _is_of(head, plan, options):
        return False
    try:
        places = [final_place(str(output)) for output in outputs]
    except SurgeryError:
        return False
    return _is_unchanged(head.get("inputs"), places)


def _is_of(head: Mapping[str, Any], plan: Plan, options: Options) -> bool:
    """Whether a head is that of a run of this plan, with these versions and the same texts of what it executes."""
    executed = head.get("texts")
    return (
        head.get("plan") == key_of(plan, options)
        and head.get("versions") == versions()
        and isinstance(executed, dict)
        and all(_has_text(path, known) for path, known in executed.items())
    )


def _has_text(path: str, known: object) -> bool:
    try:
        return text_digest(read_text(locate(path), "a plan")) == known
    except (SurgeryError, OSError, ValueError):
        return False
