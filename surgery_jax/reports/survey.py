"""What a checkpoint holds: names, shapes and dtypes from its headers, and on request statistics of the values."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..core.specs import Spec
from ..execute.options import Options
from ..graph.node import Graph, Node, Source
from ..graph.roots import Check, Sink, Symbolic
from ..session.compiled import Compiled
from ..session.listening import showing
from ..session.run import Session, Transaction
from ..storage.base import Checkpoint, Entry
from ..storage.identity import Identity

__all__ = ["CheckpointInfo", "Statistics", "TensorInfo", "evaluate", "survey"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of all elements of a tensor, in float64; NaN spreads, and an empty tensor has none (None)."""

    min: float | None
    max: float | None
    mean: float | None


class TensorInfo(NamedTuple):  # many: tuples are made four times as fast as frozen dataclasses
    """One tensor of a checkpoint; `file` is where its bytes lie, if it can be told."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    size: int
    file: str | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint: its format, its files, its text metadata, its tensors in their order, what is left out, and the
    paths of the documents beside it by name."""

    path: str
    format: str
    files: tuple[str, ...]
    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    left_out: tuple[str, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def dtypes(self) -> Mapping[str, int]:
        """How many tensors have each dtype, the most frequent first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors).most_common())

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        counts = {"num_parameters": self.num_parameters, "nbytes": self.nbytes, "dtypes": self.dtypes}
        tensors = []
        for tensor in self.tensors:
            told = {key: value for key, value in tensor._asdict().items() if value is not None}
            if tensor.statistics is not None:
                told["statistics"] = dataclasses.asdict(tensor.statistics)
            tensors.append(told)
        return {
            "path": self.path,
            "format": self.format,
            "files": list(self.files),
            "metadata": dict(self.metadata),
            "left_out": list(self.left_out),
            "documents": dict(self.documents),
            **counts,
            "tensors": tensors,
        }


def survey(
    checkpoint: Checkpoint,
    wanted: Callable[[str], object],
    options: Options | None = None,
    *,
    stats: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CheckpointInfo:
    """The account of the tensors whose names are `wanted`; with `stats` their values are read in bounded memory.

    Raises:
        SurgeryError: they cannot be read.
    """
    chosen = {name: entry for name, entry in checkpoint.entries.items() if wanted(name)}
    found = _statistics(chosen, checkpoint.identities, options or Options(), progress) if stats else {}
    tensors = tuple(
        TensorInfo(
            name,
            entry.spec.shape,
            entry.spec.dtype.name,
            entry.spec.nbytes,
            entry.spec.size,
            entry.extent.path if entry.extent is not None else None,
            found.get(name),
        )
        for name, entry in chosen.items()
    )
    return CheckpointInfo(
        checkpoint.path,
        checkpoint.format,
        checkpoint.files,
        dict(checkpoint.metadata),
        tensors,
        checkpoint.left_out,
        dict(checkpoint.documents),
    )


def _statistics(
    entries: Mapping[str, Entry],
    identities: Mapping[str, Identity],
    options: Options,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Statistics]:
    graph = Graph()
    sinks = {
        name: Sink(stored(graph, 0, name, entry), "stat") for name, entry in entries.items() if entry.spec.dtype.array
    }
    found = evaluate((), tuple(sinks.values()), options, progress, identities)
    return {name: Statistics(**found[sink]) for name, sink in sinks.items()}


def stored(graph: Graph, number: int, name: str, entry: Entry, spec: Spec | None = None) -> Node:
    """A tensor of a checkpoint as a node; its bytes may be seen under another shape and dtype."""
    return graph.read(Source(number, name, entry), spec or entry.spec, None)


def evaluate(
    checks: Sequence[Check],
    sinks: Sequence[Sink],
    options: Options,
    progress: Callable[[int, int], None] | None = None,
    identities: Mapping[str, Identity] | None = None,
) -> Mapping[Any, Any]:
    """What checks and sinks come to: a program that writes nothing. `identities` are those of the files that it reads.

    Raises:
        SurgeryError: a tensor cannot be read, or the work does not fit the budget.
    """
    symbolic = Symbolic((), checks, sinks, (), (), (), False, identities=identities or {})
    session = Session(options, observers=showing(progress))
    (outcome,) = session.run([Transaction(Compiled(symbolic, ()))])
    return outcome.findings
