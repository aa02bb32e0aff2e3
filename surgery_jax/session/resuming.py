"""What earlier runs have left of the outputs of a plan: found, tried, and gone on with.

A run leaves, in the hidden directory of each output, what it has built and journals of what of that is finished.
Another run goes on there if it is the same: the same plan, the same versions of the program, the same inputs, the same
files to be written. Of what the journals say is taken what is there for certain, and what is a copy that is read and
found to be true.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import StorageError, listing
from ..execute.left import Done
from ..storage.continued import BegunUpload, begun_uploads
from ..storage.files import File, storage_error
from ..storage.journal import Finished, Range
from ..storage.places.found import is_local, locate
from ..storage.stages import Begun, Stage, is_at_work, stages_of, take
from ..storage.targets import final_place
from .run_keys import answers_key

if TYPE_CHECKING:
    from ..compile.program import ByteMove, Program
    from ..execute.verdicts import Findings
    from ..graph.roots import Symbolic
    from ..storage.base import Layout
    from ..storage.formats import OutputPlan
    from ..storage.publish import Staging

__all__ = ["Resumption", "dead_stages", "understood"]

_PART = 4 << 20  # bytes that are compared at once


def understood(symbolic: Symbolic, packed: bytes) -> Findings | None:
    """What was found by an earlier run of the same plan; None if that says nothing."""
    from ..execute.verdicts import Findings  # with NumPy, which what only checks a plan does without

    found = Findings()
    try:
        found.unpack(symbolic, packed)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return found


# -------------------------------------------------------------------------------------------- what runs have left


def dead_stages(path: str) -> Iterator[Stage]:
    """The dead stages of an output, each locked."""
    if is_local(path):
        target = final_place(path)
        for place in stages_of(target):
            stage = take(place, target)
            if stage is not None:
                yield stage


@dataclass(eq=False)
class Resumption:
    """What is taken over in one session. `told` gets a sentence for each stage that is not."""

    told: dict[str, None]

    def answers(self, outputs: Iterable[str], program: Program) -> bytes | None:
        """What a first pass of an earlier run found."""
        key = answers_key(program)
        for path in outputs:
            for stage in dead_stages(path):
                packed = stage.read_head().get("answers", {})
                stage.close()
                if isinstance(packed, dict) and isinstance(packed.get(key), str):
                    try:
                        return base64.b85decode(packed[key])
                    except (ValueError, binascii.Error):
                        continue
        return None

    def begun(
        self, output: OutputPlan, layout: Layout, head: Mapping[str, Any]
    ) -> tuple[Begun | BegunUpload, list[Finished]] | None:
        """The stage of an output in which the most is finished of those that fit, and what is finished there; at other
        places, uploads that fit, of which the store says what is finished.

        Raises:
            StorageError: somebody is at work on it, or the store does not say what there is.
        """
        if not is_local(output.path):
            upload = self._begun_upload(output.path, head)
            return None if upload is None else (upload, [])
        best: tuple[int, Stage, list[Finished]] | None = None
        sizes = [file.size for file in layout.files]
        for stage in dead_stages(output.path):
            why = _unfit(stage, head)
            if why is not None:
                self._leave(stage, output.path, why)
                continue
            try:
                finished = stage.finished(sizes)
            except OSError as error:
                self._leave(stage, output.path, error.strerror or "it cannot be read")
                continue
            amount = sum(nbytes for done in finished for _, _, nbytes in done.ranges)
            if best is not None and best[0] >= amount:
                self._leave(stage, output.path, "more is finished in another one")
                continue
            if best is not None:
                self._leave(best[1], output.path, "more is finished in another one")
            best = amount, stage, finished
        if best is None:
            self._check_idle(output.path)
            return None
        _, stage, finished = best
        return Begun(stage, _sealed(stage, layout, finished)), finished

    def _begun_upload(self, path: str, head: Mapping[str, Any]) -> BegunUpload | None:
        found = None
        try:
            for upload in begun_uploads(path):
                why = _unlike(upload.head, head) if found is None else "another one is gone on with"
                if why is None:
                    found = upload
                else:
                    self.told[f"{upload.stage}: not gone on with: {why}; surgery-jax clean {path} removes it"] = None
        except OSError as error:
            raise storage_error(error, path, "see what is begun there") from None
        return found

    def _check_idle(self, path: str) -> None:
        working = [stage for stage in stages_of(final_place(path)) if is_at_work(stage)] if is_local(path) else []
        if working:
            raise StorageError(
                "a run is at work on it, so there is nothing to go on with",
                where=path,
                found=str(working[0]),
                hint="wait until it has ended, or leave out --resume",
            )

    def _leave(self, stage: Stage, path: str, why: str) -> None:
        """Leave a stage as it is; one in which nothing was finished is of no use to anybody."""
        if stage.is_worth_keeping:
            self.told[f"{stage.path}: not gone on with: {why}; surgery-jax clean {path} removes it"] = None
            stage.close()
        else:
            stage.remove()

    def done(self, program: Program, parts: Iterable[tuple[Staging, int, Sequence[Finished]]], *, is_one: bool) -> Done:
        """What of it counts: outputs with the number of their first file in a program, and what is finished of them.
        What was found about tensors counts only if the program is that of one plan.

        Raises:
            StorageError: an input cannot be read, or has changed, or what is finished cannot be noted.
        """
        ranges: list[Range] = []
        found: dict[str, bytes] = {}
        moves = _Moves(program.moves)
        for staging, first, finished in parts:
            with ThreadPoolExecutor() as pool:
                truths = pool.map(partial(_is_true, staging, first, moves), finished)
                known = [done for done, is_true in zip(finished, truths, strict=True) if is_true]
            for done in known:
                for number, offset, nbytes in done.ranges:
                    file = staging.layout.files[number]
                    ranges.append((first + number, *((offset, nbytes) if file.encode is None else (0, file.size))))
                if done.key and is_one and understood(program.symbolic, done.found) is not None:
                    found[done.key] = done.found
            try:
                if staging.stage is not None:
                    staging.stage.rewrite(known)
            except OSError as error:
                raise storage_error(error, staging.plan.path, "note what is finished of it") from None
        return Done(ranges, found)


def _is_true(staging: Staging, first: int, moves: _Moves, done: Finished) -> bool:
    """Whether what a record speaks of is there for certain, or is a copy that is read and found to be true."""
    if any(number in staging.renewed for number, _, _ in done.ranges):
        return False
    if done.is_sure:
        return True

    def read(number: int, offset: int, nbytes: int) -> bytes:
        with Path(staging.place(number)).open("rb") as stream:
            stream.seek(offset)
            return stream.read(nbytes)

    try:
        return all(
            moves.gave((first + number, offset, nbytes), partial(read, number))
            for number, offset, nbytes in done.ranges
        )
    except OSError:
        return False


class _Moves:
    """What a program copies, by where it goes."""

    def __init__(self, moves: Iterable[ByteMove]) -> None:
        self._moves = sorted(moves, key=lambda move: (move.file, move.offset))
        self._places = [(move.file, move.offset) for move in self._moves]

    def gave(self, place: Range, read: Callable[[int, int], bytes]) -> bool:
        """Whether the bytes of a range, which `read` reads, are those that are copied there.

        Raises:
            OSError: they cannot be read.
            StorageError: an input cannot be read, or has changed.
        """
        file, at, nbytes = place
        end = at + nbytes
        while at < end:
            found = bisect_right(self._places, (file, at)) - 1
            if found < 0:
                return False
            move = self._moves[found]
            count = min(end, move.offset + move.nbytes, at + _PART) - at
            if move.file != file or count <= 0:
                return False
            with File(locate(move.path)) as source:
                if source.at(move.source + at - move.offset, count) != read(at, count):
                    return False
            at += count
        return True


def _sealed(stage: Stage, layout: Layout, finished: Sequence[Finished]) -> dict[int, int]:
    """The sizes of the files that were encoded."""
    found = {}
    for done in finished:
        for number, offset, nbytes in done.ranges:
            if layout.files[number].encode is not None and offset == 0:
                found[number] = nbytes
    return found


def _unfit(stage: Stage, head: Mapping[str, Any]) -> str | None:
    """Why a run cannot go on in a stage."""
    return _unlike(stage.read_head(), head) or (None if stage.is_whole else "what was built there is gone")


def _unlike(found: Mapping[str, Any], head: Mapping[str, Any]) -> str | None:
    """How the run that one head speaks of differs from that of another."""
    if not found:
        return "nothing says of which plan it is"
    if found.get("plan") != head["plan"]:
        return "it is of another plan, or of another --shard-size"
    if found.get("versions") != head["versions"]:
        return "it is of other versions of " + listing(_different(found.get("versions"), head["versions"]))
    if found.get("inputs") != head["inputs"]:
        return "inputs have changed since: " + listing(_different(found.get("inputs"), head["inputs"]))
    if found.get("taken", "") not in ("", head["taken"]):
        return "it takes over tensors from an earlier output that --reuse does not name now, or that has changed"
    if found.get("key") != head["key"]:
        return "it has drawn other random numbers, or was to be written otherwise"
    return None


def _different(found: Any, expected: Mapping[str, Any]) -> list[str]:
    found = found if isinstance(found, dict) else {}
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
