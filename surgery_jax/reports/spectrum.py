"""How fast the singular values of matrices fall: of a checkpoint, or of what fine-tuning changed, so that a rank can be
chosen by looking."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.dtypes import BY_NAME
from ..core.errors import AssertionFailed, PlanError, listing
from ..core.patterns import collapse, split_numbers
from ..core.quantised import companions
from ..core.specs import Spec
from ..execute.options import Options
from ..graph.node import Graph, Node
from ..graph.roots import Sink
from ..kit.base import DECOMPOSED, TensorOp
from ..numerics.lowrank import singular_values, workspace_bytes
from ..storage.base import Checkpoint, Entry
from ..storage.identity import Identity, add_all
from .figures import FRACTIONS, doubling
from .survey import evaluate, stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ModuleSpectrum", "Spectrum", "measure"]


@dataclass(frozen=True)
class ModuleSpectrum:
    """The singular values of one matrix, or of the difference of two; the energy is the sum of their squares.

    layer: the first number in the name, None if there is none. kind: the name with `*` in its place; folded_kind: in
    the place of all numbers. values: float64[min(m, n)], descending. base_norm: the Frobenius norm of the base, None
    without a base.
    """

    name: str
    layer: int | None
    kind: str
    folded_kind: str
    shape: tuple[int, int]
    dtype: str
    values: NDArray[np.float64]
    base_norm: float | None = None

    @cached_property
    def energy(self) -> NDArray[np.float64]:
        """The fraction of the energy that each rank from 1 on keeps; ones if there is no energy."""
        scale = self.values[0] or 1.0
        kept = np.cumsum((self.values / scale) ** 2)
        return kept / kept[-1] if kept[-1] > 0 else np.ones_like(kept)

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        scale = float(self.values[0]) or 1.0
        return scale * math.sqrt(float(np.sum((self.values / scale) ** 2)))

    @property
    def stable_rank(self) -> float:
        """The energy in units of that of the largest singular value; 0 if there is none."""
        return (self.norm / float(self.values[0])) ** 2 if self.values[0] > 0 else 0.0

    def rank_for(self, fraction: float) -> int:
        """The least rank that keeps a fraction of the energy; 0 if there is none."""
        if not self.values[0] > 0:
            return 0
        # rounding must not make the last rank necessary for what all but the last bits of the others give
        return int(np.searchsorted(self.energy, fraction * (1 - 1e-12))) + 1

    def kept(self, rank: int) -> float:
        """The fraction of the energy that a rank keeps."""
        return float(self.energy[min(rank, len(self.values)) - 1])

    def as_json(self) -> dict[str, Any]:
        """For `--json`: the curves at ranks that double."""
        ranks = doubling(len(self.values))
        curve = [{"rank": r, "value": float(self.values[r - 1]), "energy": self.kept(r)} for r in ranks]
        needed = {f"{fraction:.2f}": self.rank_for(fraction) for fraction in FRACTIONS}
        plain = {"name": self.name, "layer": self.layer, "kind": self.kind, "shape": list(self.shape)}
        amounts = {"norm": self.norm, "base_norm": self.base_norm, "stable_rank": self.stable_rank}
        return plain | {"dtype": self.dtype} | amounts | {"rank_for": needed, "curve": curve}


@dataclass(frozen=True)
class Spectrum:
    """The spectra of all modules, in the order of the (tuned) checkpoint.

    base: path of the base, None if the checkpoint itself was measured. left_out: what was not measured, in words:
    names by reason.
    """

    base: str | None
    tuned: str
    modules: tuple[ModuleSpectrum, ...]
    left_out: dict[str, tuple[str, ...]]

    @property
    def subject(self) -> str:
        """What was measured, in words."""
        return self.tuned if self.base is None else f"{self.tuned} against {self.base}"

    @cached_property
    def changed(self) -> tuple[ModuleSpectrum, ...]:
        """The modules with any energy."""
        return tuple(module for module in self.modules if module.values[0] > 0)

    def kept(self, rank: int) -> tuple[float, float, float]:
        """The fractions of the energy that a rank in every module keeps: the least, the median, and of all together."""
        found = [module.kept(rank) for module in self.changed]
        scale = max((module.norm for module in self.changed), default=1.0)
        energies = [(module.norm / scale) ** 2 for module in self.changed]
        together = math.fsum(f * e for f, e in zip(found, energies, strict=True)) / (math.fsum(energies) or 1.0)
        return min(found, default=1.0), float(np.median(found)) if found else 1.0, together

    def as_html(self) -> str:
        """A self-contained page with a heat map and curves."""
        from .spectrum_page import render

        return render(self)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        longest = max((len(module.values) for module in self.modules), default=1)
        rows = [(rank, *self.kept(rank)) for rank in doubling(longest)]
        return {
            "base": self.base,
            "tuned": self.tuned,
            "modules": [module.as_json() for module in self.modules],
            "kept": [dict(zip(("rank", "least", "median", "together"), row, strict=True)) for row in rows],
            "left_out": {reason: list(names) for reason, names in self.left_out.items()},
        }


@dataclass(frozen=True)
class SingularValues(TensorOp):
    """matrix: float[m, n], and perhaps its base: float[m, n] -> singular values of (the difference to) it:
    float64[min(m, n)], and the norm of the base: float64[1]. Differences are taken in float32, or float64 for these."""

    kind = "whole"
    needs_finite = True
    varies = DECOMPOSED
    uses_lapack = True

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return 1 if self.alone else 2

    alone: bool

    def infer(self, *operands: Spec) -> tuple[Spec, ...]:
        found = Spec((min(operands[0].shape),), BY_NAME["float64"])
        return (found,) if self.alone else (found, Spec((1,), BY_NAME["float64"]))

    def workspace_bytes(self, *operands: Spec) -> int:
        wide = max(operands, key=lambda spec: spec.dtype.itemsize)
        return workspace_bytes(wide, 0) + (0 if self.alone else 3 * wide.size * max(wide.dtype.itemsize, 4))

    def apply(self, k: Any, matrix: Any, base: Any = None) -> Any:
        matrix = k.widen(matrix)
        if base is None:
            return singular_values(k, matrix).astype(np.float64)
        base = k.widen(base)
        wide = np.promote_types(matrix.dtype, base.dtype)
        matrix, base = matrix.astype(wide), base.astype(wide)
        norm = k.xp.sqrt(k.xp.sum(base.astype(np.float64) ** 2)).reshape(1)
        return singular_values(k, matrix - base).astype(np.float64), norm


def measure(
    base: Checkpoint | None,
    tuned: Checkpoint,
    wanted: Callable[[str], object],
    options: Options | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Spectrum:
    """The spectra of the matrices of `tuned`, or of its difference to `base`, whose names are `wanted`.

    Raises:
        SurgeryError: there are none, one holds NaN or infinity, a tensor cannot be read, or the work does not fit the
            budget.
    """
    left: dict[str, list[str]] = {}
    chosen = {name: entry for name, entry in tuned.entries.items() if wanted(name)}
    pairs: dict[str, tuple[Entry, ...]] = {}
    scales: dict[str, str] = {}
    for side in filter(None, (tuned, base)):
        scales |= companions((name, entry.spec.dtype) for name, entry in side.entries.items())
    known = set(scales.values())
    for name, entry in chosen.items():
        other = None if base is None else base.entries.get(name)
        reason = _obstacle(entry, base, other)
        if reason is None and name in scales:
            reason = f"quantised with scales such as {scales[name].rpartition('.')[2]}"
        elif reason is None and name in known:
            reason = "scales of quantised tensors"
        if reason is None:
            pairs[name] = (entry,) if other is None else (entry, other)
        else:
            left.setdefault(reason, []).append(name)
    if base is not None:
        missing = [name for name in base.entries if wanted(name) and name not in tuned.entries]
        if missing:
            left[f"not in {tuned.path}"] = missing
    if not pairs:
        reasons = (f"{len(names)} {reason}: {listing(collapse(names), 3)}" for reason, names in left.items())
        raise PlanError(
            "there is no matrix to look at",
            where=tuned.path,
            expected="floating-point tensors of two axes" + ("" if base is None else ", with the same shapes in both"),
            found="; ".join(reasons) or "none",
        )
    identities = dict(tuned.identities)
    add_all(identities, {} if base is None else base.identities)
    modules = _measured(pairs, identities, options or Options(), progress)
    return Spectrum(
        None if base is None else base.path,
        tuned.path,
        tuple(modules),
        {reason: tuple(names) for reason, names in left.items()},
    )


def _obstacle(entry: Entry, base: Checkpoint | None, other: Entry | None) -> str | None:
    """Why a tensor is not measured, None if it is."""
    if not _is_matrix(entry.spec):
        return "no floating-point matrix"
    if base is None:
        return None
    if other is None:
        return f"not in {base.path}"
    if other.spec.shape != entry.spec.shape:
        return "of another shape in the base"
    return None if _is_matrix(other.spec) else "no floating-point matrix in the base"


def _is_matrix(spec: Spec) -> bool:
    return len(spec.shape) == 2 and min(spec.shape) > 0 and spec.dtype.is_float and bool(spec.dtype.array)


def _measured(
    pairs: dict[str, tuple[Entry, ...]],
    identities: Mapping[str, Identity],
    options: Options,
    progress: Callable[[int, int], None] | None,
) -> list[ModuleSpectrum]:
    graph = Graph()
    sinks: dict[str, list[Sink]] = {}
    for name, entries in pairs.items():
        operands = tuple(stored(graph, number, name, entry) for number, entry in enumerate(entries))
        results: Sequence[Node] = graph.apply(SingularValues(len(operands) == 1), operands, name)
        sinks[name] = [Sink(node, "array") for node in results]
    try:
        found = evaluate((), [sink for both in sinks.values() for sink in both], options, progress, identities)
    except AssertionFailed as error:
        error.where = None  # the operation is ours, not a place of a plan
        error.problem = error.problem.replace("cannot be factored", "no singular values")
        error.hint = None
        raise
    modules = []
    for name, entries in pairs.items():
        spec = entries[0].spec
        values, *norms = (found[sink] for sink in sinks[name])
        words, numbers = split_numbers(name)
        rest = "".join(f"{number}{word}" for number, word in zip(numbers[1:], words[2:], strict=True))
        modules.append(
            ModuleSpectrum(
                name,
                numbers[0] if numbers else None,
                f"{words[0]}*{words[1]}{rest}" if numbers else name,
                "*".join(words),
                (spec.shape[0], spec.shape[1]),
                spec.dtype.name,
                values,
                float(norms[0][0]) if norms else None,
            )
        )
    return modules
