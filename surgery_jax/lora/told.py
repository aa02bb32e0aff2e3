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
from ..kit.state import Found, Key
from .factors import matrices
from .fates import Modules
from .kinds import Weight, one_by_one

__all__ = ["AdapterRemarks", "Row", "warnings"]


@dataclass(frozen=True, eq=False)
class Row:
    """One parameter with factors: their rank, and the number of rows of A, of which those beyond the rank are zero."""

    entry: Weight
    rank: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(number of matrices, out, in)."""
        return matrices(self.entry.spec, bool(self.entry.is_in_out))


class AdapterRemarks:
    """What the run tells of the adapter, once the norms are known."""

    def __init__(self, rows: Sequence[Row], sinks: Mapping[str, Key], modules: Modules) -> None:
        self.rows = [row for row in rows if row.rank]
        self.sinks = sinks
        self.modules = modules
        factors = sum(row.width * row.shape[0] * (row.shape[1] + row.shape[2]) for row in rows)
        self.parameters = factors + sum(entry.spec.size for entry in modules.stored)

    def figures(self, found: Found) -> dict[str, dict[str, Any]]:
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

    def as_json(self, found: Found) -> str:
        """`extraction.json`."""
        content = {
            "modules": self.figures(found),
            "saved": [entry.name for entry in self.modules.stored],
            "left_out": self.modules.left,
            "parameters": self.parameters,
        }
        return json.dumps(content, indent=2) + "\n"

    def as_table(self, found: Found) -> str:
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


# What PEFT 0.21 stacks, by the names that checkpoints give to experts. It does not do so for Qwen2-MoE, which has a
# gate for the shared expert and no linear attention, and for PhiMoE, which has names of Mixtral and norms with biases.
_STACKED = re.compile(
    r"(.+\.)?mlp\.experts(\.\d+\.(gate|up|down)_proj)?|.+\.(block_sparse_moe|mlp)\.experts\.\d+\.w[123]"
)
_UNSTACKED = (("shared_expert_gate.weight", "linear_attn"), ("layernorm.bias", "mlp"))
_KIN = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


def warnings(rows: Sequence[Row], entries: Sequence[Weight]) -> list[str]:
    """What PEFT makes of factors that are right, where it is wrong, in words."""
    names = [entry.name for entry in entries]
    paths = [entry.module for entry in entries if entry.kind == "experts" or one_by_one(entry)]
    is_odd = any(
        any(n.endswith(end) for n in names) and not any(f".{no}." in n for n in names) for end, no in _UNSTACKED
    )
    is_stacked = not is_odd and any(map(_STACKED.fullmatch, paths))
    parts = {entry.word for entry in entries if one_by_one(entry)} | set(_KIN[0])
    taken = [row.entry.module for row in rows
             if is_stacked and row.entry.word in parts and not one_by_one(row.entry)]  # fmt: skip
    loose = [row.entry.module for row in rows
             if one_by_one(row.entry) and (is_odd or not _STACKED.fullmatch(row.entry.module))]  # fmt: skip
    missing = _missing(rows)
    named = [row.entry.name for row in rows if row.entry.kind == "experts" and row.entry.leaf == "weight"]
    said = []
    if taken:
        said.append(
            f"PEFT 0.21 takes {_short(taken)} for experts where transformers 5 stacks those, and leaves the factors "
            "out; lora_merge does not, nor does PEFT with transformers 4"
        )
    if loose:
        said.append(
            f"PEFT 0.21 leaves out the factors of {_short(loose)} where transformers 5 stacks experts; lora_merge does "
            "not, nor does PEFT with transformers 4"
        )
    if missing:
        said.append(
            f"PEFT 0.21 loads factors for all experts of a layer or for none; `base` does not match {_short(missing)}"
        )
    if named:
        said.append(f"transformers 5 has other names for {_short(named)}: PEFT leaves the factors out there")
    return said


def _missing(rows: Sequence[Row]) -> list[str]:
    """Modules of experts without factors in layers where others have some."""
    layers: dict[str, set[str]] = {}
    for row in rows:
        layer = one_by_one(row.entry)
        if layer is not None:
            layers.setdefault(layer[0], set()).add(row.entry.module)
    missing = []
    for path, there in layers.items():
        words = {module.rpartition(".")[2] for module in there}
        words = next((set(kin) for kin in _KIN if words <= set(kin) and words != {kin[-1]}), words)
        count = 1 + max(int(module.removeprefix(f"{path}.").partition(".")[0]) for module in there)
        wanted = {f"{path}.{number}.{word}" for number in range(count) for word in words}
        missing += sorted(wanted - there)
    return missing


def _short(names: Iterable[str]) -> str:
    return listing(collapse(names))
