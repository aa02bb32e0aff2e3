"""What `lora_extract` tells: of every module its rank and error, and what other programs get wrong with an adapter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import listing
from ..core.patterns import collapse
from .lora_factors import matrices
from .lora_fates import Modules
from .lora_kinds import Entry, one_by_one

__all__ = ["Row", "Told", "warnings"]


@dataclass(frozen=True, eq=False)
class Row:
    """One parameter with factors: their rank, and the number of rows of A, of which those beyond the rank are zero."""

    entry: Entry
    rank: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(number of matrices, out, in)."""
        return matrices(self.entry.spec, bool(self.entry.is_in_out))


class Told:
    """What the run tells of the adapter, once the norms are known."""

    def __init__(self, rows: Sequence[Row], sinks: Mapping[str, Any], modules: Modules) -> None:
        self.rows = [row for row in rows if row.rank]
        self.sinks = sinks
        self.modules = modules
        factors = sum(row.width * row.shape[0] * (row.shape[1] + row.shape[2]) for row in rows)
        self.parameters = factors + sum(entry.spec.size for entry in modules.stored)

    def figures(self, found: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
        """Rank, shape, energy kept, relative error and the norm of the change, by parameter."""
        told = {}
        for row in self.rows:
            whole, rest = (float(x) for x in found[self.sinks[row.entry.name]])
            share = rest / whole if whole else 0.0
            told[row.entry.name] = {
                "rank": row.rank,
                "width": row.width,
                "shape": list(row.entry.shape),
                "energy_kept": 1 - share,
                "relative_error": math.sqrt(share),
                "norm": math.sqrt(whole),
            }
        return told

    def as_json(self, found: Mapping[Any, Any]) -> str:
        """`extraction.json`."""
        content = {
            "modules": self.figures(found),
            "saved": [entry.name for entry in self.modules.stored],
            "left_out": self.modules.left,
            "parameters": self.parameters,
        }
        return json.dumps(content, indent=2) + "\n"

    def as_table(self, found: Mapping[Any, Any]) -> str:
        """One line for each module, and a summary."""
        told = self.figures(found)
        length = max(map(len, told), default=0)
        lines = [f"{'module'.ljust(length)}  rank  energy kept  relative error"] if told else []
        for name, row in told.items():
            lines.append(
                f"{name.ljust(length)}  {row['rank']:4d}  {row['energy_kept']:11.6f}  {row['relative_error']:14.6g}"
            )
        reasons = list(self.modules.left.values())
        counts = [f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons)]
        lines.append(
            f"adapter: {len(told)} factored, {len(self.modules.stored)} stored whole, "
            f"{self.parameters} parameters" + (f"; left out: {', '.join(counts)}" if counts else "")
        )
        return "\n".join(lines)


# What PEFT 0.21 stacks, by the names that checkpoints give to experts
_STACKED = re.compile(r"(.+\.)?mlp\.experts\.\d+\.(gate|up|down)_proj|.+\.(block_sparse_moe|mlp)\.experts\.\d+\.w[123]")
_PARTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def warnings(rows: Sequence[Row], entries: Iterable[Entry]) -> list[str]:
    """What PEFT makes of factors that are right, where it is wrong, in words."""
    experts = [entry for entry in entries if one_by_one(entry)]
    fused = [entry for entry in entries if entry.kind == "experts"]
    parts = {entry.word for entry in experts} if experts else set(_PARTS[:3]) if fused else set()
    taken = [row.entry.module for row in rows if row.entry.word in parts and not one_by_one(row.entry)]
    loose = [row.entry.module for row in rows if one_by_one(row.entry) and not _STACKED.fullmatch(row.entry.module)]
    positions = [row.entry.module for row in rows if row.entry.word == "embed_positions"]
    said = []
    if taken:
        said.append(
            f"PEFT 0.21 takes {_short(taken)} for experts where transformers 5 stacks those, and leaves the factors "
            "out; lora_merge does not, nor does PEFT with transformers 4"
        )
    if loose:
        said.append(f"PEFT 0.21 does not stack factors of experts of these names: {_short(loose)}")
    if positions:
        said.append(
            f"PEFT looks up the changes of {_short(positions)} by the inputs of that module, which in many models are "
            "no positions; embeddings: save stores the module whole"
        )
    return said


def _short(names: Iterable[str]) -> str:
    return listing(collapse(names))
