"""What `lora_extract` writes: factors, biases and modules stored whole under PEFT's names, and their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import adapters
from ..core.dtypes import BY_NAME
from ..core.errors import PlanError, StorageError, listing
from ..core.specs import Spec
from ..kit.base import operation
from ..kit.made import Constant
from ..kit.state import Key, State, Value
from .factors import ExtractFactors
from .fates import Modules, first, is_unchanged
from .kinds import Weight, is_token_embedding, names_embedding, one_by_one
from .told import Row

if TYPE_CHECKING:
    from ..ops.lora_extract import LoraExtract

__all__ = ["AdapterWriter"]

JOINED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj",
          "down_proj": "down_proj", "w2": "down_proj"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class AdapterWriter:
    """Binds the tensors of an adapter: `rows` get factors, `found` are all parameters of the model."""

    step: LoraExtract
    state: State
    alias: str
    rows: Sequence[Row]
    modules: Modules
    found: Sequence[Weight]

    def factors(self) -> dict[str, Key]:
        """Bind the factors of every module; gives the sinks of their norms."""
        below = _wrappers([row.entry for row in self.rows])
        sinks = {}
        for row in self.rows:
            entry = row.entry
            a, b, norms = self._factors(row)
            path = adapters.PREFIX + entry.module + ".base_layer" * below.get(entry.name, 0)
            kind, end = ("lora_embedding", "") if entry.kind == "embedding" else ("lora", ".weight")
            self.state.versions.create(self.alias, f"{path}.{kind}_A{end}", a)
            self.state.versions.create(self.alias, f"{path}.{kind}_B{end}", b)
            if norms is not None:
                sinks[entry.name] = self.state.checks.sink(norms, "array")
                self.state.speech.tell(f"lora_extract: {entry.name} -> rank {row.rank}")
        return sinks

    def _factors(self, row: Row) -> tuple[Value, Value, Value | None]:
        """A, B and, unless they are zero, the norms of the change and of what they miss."""
        many, out, inner = row.shape
        if not row.rank:
            shapes = ((row.width * many, inner), (out, row.width * many))
            a, b = (self.state.versions.compute(Constant(Spec(shape, self.step.dtype), 0.0)) for shape in shapes)
            return a, b, None
        room = row.width
        if self.step.by_data and row.entry.kind != "experts":  # few rooms for many ranks: each is compiled
            room = max(row.width, min(1 << (row.rank - 1).bit_length(), out, inner))
        op = ExtractFactors(
            room, self.step.method, self.step.dtype, bool(row.entry.is_in_out), float(row.rank), float(row.width)
        )
        rows_of_a, packed, norms = self.state.versions.apply(op, row.entry.base, row.entry.tuned)
        a = self.state.versions.compute(first(row.width * many, self.state.versions.spec(rows_of_a)), rows_of_a)
        b = self.state.versions.compute(first(out * row.width * many, self.state.versions.spec(packed)), packed)
        b = self.state.versions.compute(operation("reshape", shape=(out, row.width * many)), b)
        return a, b, norms

    def tied(self) -> dict[str, Weight]:
        """Bind for the modules that share an embedding what it got; gives the embedding by their paths.

        Raises:
            PlanError: the checkpoint has no output layer, and the plan does not say what that means.
        """
        held = [*(row.entry for row in self.rows if row.rank), *self.modules.stored]
        shared = next((e for e in held if e.kind == "embedding" and is_token_embedding(e)), None)
        if shared is None or self.state.checks.waits():
            return {}
        has_output = any(entry.word in adapters.OUTPUTS for entry in self.found)
        if self.step.tied is None and not has_output:
            raise PlanError(
                f"lora_extract: {shared.name} was changed, and the model may compute its outputs with it",
                found="no " + ", ".join(f"{name}.weight" for name in adapters.OUTPUTS),
                hint="tied: lm_head if tie_word_embeddings is true in config.json, else tied: none",
            )
        there = {entry.module for entry in self.found}
        others = [*_shares(shared, there), *(name for name in self.step.tied or () if name != "none")]
        wanted = {name: shared for name in others if name not in there}
        for other in wanted:
            if shared in self.modules.stored:
                self.state.versions.create(self.alias, f"{adapters.PREFIX}{other}.weight", shared.tuned)
            else:
                self._share(shared, other)
        return wanted

    def _share(self, shared: Weight, other: str) -> None:
        """Bind for a module the factors of the embedding whose weight it uses; an output layer uses its transpose."""
        path, other = adapters.PREFIX + shared.module, adapters.PREFIX + other
        for side, opposite in (("A", "B"), ("B", "A")):
            if not names_embedding(other):
                factor = self.state.versions.slot(self.alias, f"{path}.lora_embedding_{opposite}").node
                self.state.versions.create(
                    self.alias,
                    f"{other}.lora_{side}.weight",
                    self.state.versions.compute(operation("permute", order=(1, 0)), factor),
                )
            else:
                factor = self.state.versions.slot(self.alias, f"{path}.lora_embedding_{side}").node
                self.state.versions.create(self.alias, f"{other}.lora_embedding_{side}", factor)

    def biases(self) -> bool:
        """Bind the changes of biases if there are any: then PEFT wants one for every module, zero if there is none."""
        changed = {entry.module: entry for entry in self.modules.biases if not is_unchanged(self.state, entry)}
        if self.state.checks.waits():
            return False
        alone = sorted(changed.keys() - {row.entry.module for row in self.rows})
        if alone:
            raise PlanError(
                f"lora_extract: the bias of {alone[0]} was changed, but not its weight",
                found=listing(alone),
                hint="biases: save stores such modules whole",
            )
        if not changed:
            return False
        self._check_biases()
        wide = operation("cast", dtype=self.step.dtype)
        for row in self.rows:
            bias = changed.get(row.entry.module)
            if bias is None:
                value = self.state.versions.compute(Constant(Spec((row.shape[1],), self.step.dtype), 0.0))
            else:
                sides = [
                    self.state.versions.compute(operation("cast", dtype=BY_NAME["float32"]), side)
                    for side in (bias.tuned, bias.base)
                ]
                value = self.state.versions.compute(wide, self.state.versions.compute(operation("subtract"), *sides))
            self.state.versions.create(self.alias, f"{adapters.PREFIX}{row.entry.module}.lora_B.bias", value)
        return True

    def _check_biases(self) -> None:
        """Raise a PlanError unless all modules with factors can have biases beside them, for PEFT has one switch."""
        if self.step.serving == "vllm":
            raise PlanError("lora_extract: vLLM takes no biases", hint="biases: skip, or serving: peft")
        hint = "biases: save stores the modules whose biases changed whole, biases: skip leaves the biases out"
        odd = [row.entry.name for row in self.rows if row.entry.kind != "linear"]
        if odd:
            raise PlanError(
                "lora_extract: PEFT takes no biases beside embeddings and experts", found=listing(odd), hint=hint
            )
        with_bias = {entry.module for entry in self.found if entry.kind == "bias"}
        without = [row.entry.module for row in self.rows if row.entry.module not in with_bias]
        if without:
            raise PlanError(
                "lora_extract: PEFT takes biases for all modules of an adapter or for none, and cannot merge one into "
                "a module without a bias",
                found=f"no bias in {listing(without)}",
                hint=hint,
            )

    def configuration(self, with_bias: bool, tied: Mapping[str, Weight]) -> dict[str, Any]:
        """The configuration of the adapter.

        Raises:
            PlanError: PEFT would take another module for one that is stored whole.
        """
        is_served = self.step.serving == "vllm"  # which has linear modules alone
        factored = [
            adapters.Factored(row.entry.module, row.width, "" if is_served else row.entry.parameter)
            for row in self.rows
        ]
        widths = {row.entry: row.width for row in self.rows}
        factored += [adapters.Factored(name, widths[shared]) for name, shared in tied.items() if shared in widths]
        saved = [*self.modules.saved, *(name for name, shared in tied.items() if shared not in widths)]
        others = {entry.module for entry in self.found} - {entry.module for entry in factored}
        if self.state.checks.waits():
            saved = []  # what did not change may be among them
        is_in_out = any(row.entry.kind == "linear" and row.entry.is_in_out for row in self.rows)
        try:
            config = adapters.configuration(
                factored,
                sorted(saved),
                others,
                fan_in_fan_out=is_in_out and not any(entry.parameter for entry in factored),
                lora_bias=with_bias,
                base=self.step.model,
                task=None if self.step.task == "none" else self.step.task,
                stacked=_stacked(self.rows),
            )
        except StorageError as error:
            raise PlanError(f"lora_extract: {error.problem}", found=error.found, hint=error.hint) from None
        # PEFT ties the factors of these two, and of no others, if it is told to
        is_usual = tied.keys() == {"lm_head"} and next(iter(tied.values())).word == "embed_tokens"
        return config | ({"ensure_weight_tying": True} if is_usual else {})


def _shares(shared: Weight, there: set[str]) -> list[str]:
    """The embeddings of encoder and decoder that use the weight of `shared`, as T5 and BART do."""
    if shared.word != "shared":
        return []
    start = f"{shared.parent}." if shared.parent else ""
    stacks = [f"{start}{stack}." for stack in ("encoder", "decoder")]
    return [f"{stack}embed_tokens" for stack in stacks if any(module.startswith(stack) for module in there)]


def _stacked(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """Patterns of what PEFT makes of experts that are stored one by one, and of routers beside them: their rank, and
    how many modules are joined."""
    found: dict[str, tuple[int, int]] = {}
    layers = {layer[0] for row in rows if (layer := one_by_one(row.entry))}
    for row in rows:
        layer = one_by_one(row.entry)
        if layer is not None and layer[1] in JOINED:
            name = JOINED[layer[1]]
            found[rf"{_renamed(layer[0])}\.{name}"] = row.width, list(JOINED.values()).count(name) // 2
        elif f"{row.entry.parent}.experts" in layers and row.entry.word == "gate":
            found[rf"{_renamed(row.entry.module)}\.weight"] = row.width, 1
    return found


def _renamed(path: str) -> str:
    """A pattern of a path and of what transformers 5 calls it."""
    return re.escape(path).replace("block_sparse_moe", "(block_sparse_moe|mlp)")


def _wrappers(entries: Sequence[Weight]) -> dict[str, int]:
    """How many wrappers of PEFT lie around that of each parameter of fused experts: it wraps a module's parameters one
    after the other, in the order in which the module declares them, which is up before down in all known models."""
    modules: dict[str, list[Weight]] = {}
    for entry in entries:
        if entry.kind == "experts":
            modules.setdefault(entry.module, []).append(entry)
    below = {}
    for group in modules.values():
        ordered = sorted(group, key=lambda entry: "down" in entry.leaf)
        below.update({entry.name: len(group) - 1 - number for number, entry in enumerate(ordered)})
    return below
