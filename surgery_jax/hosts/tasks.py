"""Which part of a batch is this process's: `--task` says it, or the variables that clusters set.

Nobody is asked and nobody waits: a task knows only its number and how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import PlanError

__all__ = ["BatchTask", "find_task"]

_EXPECTED = "--task I/N with I from 1 to N, auto, auto/N, or none"
_SLURM = "SLURM_ARRAY_TASK_"
_INDEX = "JOB_COMPLETION_INDEX"
_MOST = 100_000  # tasks


@dataclass(frozen=True, slots=True)
class BatchTask:
    """One of several processes that share a batch: `number` counts from 1; `source` are the variables that say so,
    empty if the caller does."""

    number: int
    count: int
    source: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True)
class _Found:
    """What a kind of cluster says: an index from 0, and of how many if it tells."""

    source: str
    index: int
    count: int | None


def find_task(word: str, environ: Mapping[str, str]) -> BatchTask | None:
    """The task that `word` means: `I/N`, which counts from 1; `auto`, what the variables of a Slurm array, an indexed
    Job of Kubernetes or the workers of a Cloud TPU say; `auto/N`, the same where only N says how many there are;
    `none`. None: the batch is not shared.

    Raises:
        PlanError: the word is none of these, or what the variables say is not enough, or contradicts.
    """
    if word == "none":
        return None
    match = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", word)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise PlanError("not a task", expected=_EXPECTED, found=word[:40])
    count = None if match[2] is None else int(match[2])
    if match[1] == "auto":
        return _automatic(environ, count)
    number = int(match[1])
    if count is None or not 1 <= number <= count <= _MOST:
        raise PlanError(
            f"no task {number} of {count}", expected=_EXPECTED, hint="tasks are counted from 1: the first is 1/N"
        )
    return BatchTask(number, count)


def _automatic(environ: Mapping[str, str], count: int | None) -> BatchTask | None:
    given = {name: value for name, value in environ.items() if value}
    if count == 0:
        raise PlanError("no tasks", expected=_EXPECTED, found="auto/0")
    found = [one for one in (_slurm(given), _tpu(given), _kubernetes(given)) if one is not None and one.count != 1]
    if count == 1:
        return BatchTask(1, 1)
    if not found:
        if count is None:
            return None
        raise PlanError(
            f"nothing says which of {count} tasks this is",
            expected=f"{_SLURM}ID, {_INDEX}, or TPU_WORKER_ID with TPU_WORKER_HOSTNAMES, in the environment",
            hint=f"say it: --task I/{count}",
        )
    told = [_counted(one, count) for one in found]
    if len({(one.number, one.count) for one in told}) > 1:
        raise PlanError(
            "the environment says of two tasks that they are this one",
            found=", ".join(f"{one} by {one.source}" for one in told),
            hint="say which: --task I/N, or --task none for all jobs",
        )
    return told[0]


def _counted(found: _Found, count: int | None) -> BatchTask:
    total = found.count or count
    if total is None:
        raise PlanError(
            f"{found.source}={found.index} says which task this is, but nothing says of how many",
            expected="--task auto/N, where N is the number of completions of the Job",
            hint="--task none runs all jobs here",
        )
    if count not in (None, total):
        raise PlanError(
            f"{found.source} say that there are {total} tasks",
            found=f"--task auto/{count}",
            hint="start as many as --task says, or write --task auto",
        )
    if not 0 <= found.index < total:
        raise PlanError(
            f"{found.source} says that this is number {found.index}, counted from 0, of {total} tasks",
            hint="write --task auto/N, where N is the number of completions of the Job, or --task I/N",
        )
    return BatchTask(found.index + 1, total, found.source)


def _number(given: Mapping[str, str], name: str) -> int:
    """A variable that should be a number.

    Raises:
        PlanError: it is none.
    """
    if not re.fullmatch(r"\d{1,9}", given[name]):
        raise PlanError(
            f"{name} is no number", found=given[name][:40], hint="say which task this is: --task I/N, or --task none"
        )
    return int(given[name])


def _slurm(given: Mapping[str, str]) -> _Found | None:
    """One of an array, whose numbers go from MIN to MAX in steps."""
    if f"{_SLURM}ID" not in given:
        return None
    if missing := [name for name in ("MIN", "MAX") if _SLURM + name not in given]:
        raise PlanError(
            f"{_SLURM}ID says that this is one of an array, but nothing says of which",
            found=" and ".join(f"no {_SLURM}{name}" for name in missing),
            hint="say which task this is: --task I/N, or --task none",
        )
    number, first, last = (_number(given, _SLURM + name) for name in ("ID", "MIN", "MAX"))
    step = _number(given, f"{_SLURM}STEP") if f"{_SLURM}STEP" in given else 1
    step = max(step, 1)
    count = _number(given, f"{_SLURM}COUNT") if f"{_SLURM}COUNT" in given else (last - first) // step + 1
    index, rest = divmod(number - first, step)
    if first + (count - 1) * step != last or rest or not 0 <= index < count:
        raise PlanError(
            "the numbers of the Slurm array do not follow one another, so which share is whose cannot be told",
            expected="an array such as --array=0-15, or 0-30:2",
            found=f"{count} numbers from {first} to {last}, of which this is {number}",
            hint="say which task this is: --task I/N",
        )
    return _Found(f"{_SLURM}*", index, count)


def _tpu(given: Mapping[str, str]) -> _Found | None:
    """A worker of a slice, or of several slices that work together."""
    if "TPU_WORKER_ID" not in given or not given.get("TPU_WORKER_HOSTNAMES", "").strip(", "):
        return None
    workers = len([name for name in given["TPU_WORKER_HOSTNAMES"].split(",") if name.strip()])
    index = _number(given, "TPU_WORKER_ID")
    if "MEGASCALE_NUM_SLICES" not in given or "MEGASCALE_SLICE_ID" not in given:
        return _Found("TPU_WORKER_ID and TPU_WORKER_HOSTNAMES", index, workers)
    slices, own = _number(given, "MEGASCALE_NUM_SLICES"), _number(given, "MEGASCALE_SLICE_ID")
    source = "TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and MEGASCALE_SLICE_ID"
    return _Found(source, own * workers + index, slices * workers)


def _kubernetes(given: Mapping[str, str]) -> _Found | None:
    """A pod of an indexed Job. In a slice of TPUs these are the workers, who know more; then this says nothing new."""
    if _INDEX not in given:
        return None
    index = _number(given, _INDEX)
    is_worker = given.get("TPU_WORKER_ID") == given[_INDEX] and "," in given.get("TPU_WORKER_HOSTNAMES", "")
    return None if is_worker else _Found(_INDEX, index, None)
