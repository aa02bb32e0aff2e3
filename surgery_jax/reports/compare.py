"""What differs between two checkpoints: names, shapes, dtypes from headers, values by the engine's checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.dtypes import BY_NAME
from ..core.specs import Spec
from ..execute.options import Options
from ..graph.node import Graph
from ..graph.roots import Check
from ..kit.masks import EqualMask
from ..storage.base import Checkpoint, Entry
from ..storage.identity import add_all
from .survey import evaluate, stored

__all__ = ["Change", "Difference", "compare"]


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor of both sides that differs. kind: `shape`, `dtype` or `values`; the rest is about values.

    worst: the largest absolute difference, infinite where one side is NaN or infinite; index: where it is.
    """

    name: str
    kind: str
    left: str
    right: str
    num_differing: int | None = None
    size: int | None = None
    worst: float | None = None
    index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Difference:
    """All that differs between two checkpoints.

    missing: names that only the left one has. added: names that only the right one has. changed: shapes first, then
    dtypes, then values with the largest difference first.
    """

    left: str
    right: str
    missing: tuple[str, ...]
    added: tuple[str, ...]
    changed: tuple[Change, ...]
    num_equal: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.added or self.changed)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _SameMask(EqualMask):
    """As `equal`, but NaN equals NaN: a checkpoint does not differ from its copy."""

    def apply(self, k: Any, a: Any, b: Any) -> Any:
        return super().apply(k, a, b) | (_is_nan(k, a) & _is_nan(k, b))

    def measure(self, k: Any, a: Any, b: Any) -> Any:
        return k.xp.where(_is_nan(k, a) & _is_nan(k, b), 0.0, k.distance(a, b))


def _is_nan(k: Any, x: Any) -> Any:
    return k.is_nan(x) if k.is_float(x) else x != x  # complex numbers; of others, never


def compare(
    left: Checkpoint,
    right: Checkpoint,
    wanted: Callable[[str], object],
    eps: float | None = None,
    options: Options | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Difference:
    """What differs between the tensors whose names are `wanted`, within an absolute tolerance if one is given.

    Raises:
        SurgeryError: a tensor cannot be read, or the work does not fit the budget.
    """
    names = [{name: entry for name, entry in side.entries.items() if wanted(name)} for side in (left, right)]
    shared = [name for name in names[0] if name in names[1]]
    changed: list[Change] = []
    checks: dict[str, Check] = {}
    graph = Graph()
    for name in shared:
        a, b = names[0][name], names[1][name]
        for kind, one, other in (("shape", a.spec.shape, b.spec.shape), ("dtype", a.spec.dtype, b.spec.dtype)):
            if one != other:
                changed.append(Change(name, kind, str(a.spec), str(b.spec)))
                break
        else:
            checks[name] = _check(graph, name, a, b, eps)
    identities = dict(left.identities)
    add_all(identities, right.identities)
    found = evaluate(tuple(checks.values()), (), options or Options(), progress, identities)
    for name, check in checks.items():
        verdict = found[check]
        if not verdict[0]:
            spec = str(names[0][name].spec)
            size = check.node.spec.size
            changed.append(Change(name, "values", spec, spec, verdict.num_off, size, verdict.worst, verdict.place))
    changed.sort(key=_rank)
    return Difference(
        left.path,
        right.path,
        tuple(name for name in names[0] if name not in names[1]),
        tuple(name for name in names[1] if name not in names[0]),
        tuple(changed),
        len(shared) - len(changed),
    )


def _check(graph: Graph, name: str, a: Entry, b: Entry, eps: float | None) -> Check:
    spec = a.spec
    if not spec.dtype.array:  # packed below a byte: there is nothing to compute with, so the bytes are compared
        spec, eps = Spec((spec.nbytes,), BY_NAME["uint8"]), None
    sides = tuple(stored(graph, number, name, entry, spec) for number, entry in enumerate((a, b)))
    return Check(graph.apply(_SameMask(eps), sides, None)[0], name)


def _rank(change: Change) -> tuple[int, float]:
    worst = change.worst if change.worst is not None and not math.isnan(change.worst) else math.inf
    return ("shape", "dtype", "values").index(change.kind), -worst
