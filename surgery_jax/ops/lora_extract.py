r"""`lora_extract`: what fine-tuning changed, as a LoRA adapter of PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core import adapters
from ..core.dtypes import BY_NAME, DType
from ..core.errors import PlanError, listing
from ..core.regexes import check_time
from ..kit.base import (
    Directive,
    boolean,
    choice,
    dtype_name,
    expressions,
    fraction,
    reference,
    text,
    texts,
)
from ..kit.base import rank as whole
from ..kit.state import State
from ..language import names as naming
from ..language.document import Node, Scalar
from ..language.names import Reference
from ..lora.arrangement import arranged
from ..lora.factors import ChangeEnergies
from ..lora.fates import Modules, Wishes, demand_equal, patterns_of, sort_modules
from ..lora.kinds import Said, Weight, one_by_one, sorted_out
from ..lora.ranks import ChangeSpectrum, RankRule, choose_ranks
from ..lora.told import AdapterRemarks, Row, warnings
from ..lora.written import AdapterWriter
from ..numerics.lowrank import METHODS

if TYPE_CHECKING:
    from ..lora.ranks import Table

TIED = "modules that share the weight of the embedding, such as lm_head; none if there is no such output layer"
TO = "a new alias for the adapter; or with :: a template of the names that parameters have in the model for PEFT"
TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION", "none")
WIDTHS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks for which vLLM reserves room (its option max_lora_rank)
JOINED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj",
          "down_proj": "down_proj", "w2": "down_proj"}  # fmt: skip


@dataclass(frozen=True)
class LoraExtract(Directive):
    """Extract what fine-tuning changed as a LoRA adapter that PEFT loads.

    For every matched weight the best approximation B @ A of tuned - base of its rank, computed in float32; scaling is 1
    (alpha = rank). Written as `output: { path: ..., format: peft }` it is a directory of `adapter_model.safetensors`,
    `adapter_config.json` and `extraction.json`, which tells for every module its rank, the energy that is kept,
    1 - |change - B A|^2 / |change|^2, and the relative error |change - B A| / |change|, in Frobenius norms, of the
    factors as they are stored; the run prints the same as a table.

    Ranks: `rank` for all; or what `energy`, `budget` and `noise_floor` say of the singular values, each at most
    `max_rank`. The experts of a layer that are stored one by one get one rank. These, and which modules did not change
    and are left out, are found in a first pass over the tensors.

    What a module is, and how its weight is stored, is told by names, shapes and biases. Where they do not tell it, the
    run asks for `embedding`, `linear`, `expert`, `fan_in_fan_out` or `experts`.
    """

    word = "lora_extract"
    computes = True
    examples = (
        "lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, rank: 16 }",
        "lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, energy: 0.9, max_rank: 64 }",
        "lora_extract: { base: 'base::(h\\..+)', tuned: 'tuned::\\1', to: 'adapter::transformer.\\1', budget: 1e6, "
        "biases: lora, norms: skip }",
    )

    base: Node = reference("parameters of the base model")
    tuned: Node = reference("template of their names in the fine-tuned model")
    to: Node = reference(TO, kind="alias or template")
    rank: int | None = whole("rank of every module", None)
    energy: float | None = fraction("least share of the squared norm of a change to keep", None)
    budget: int | None = whole("most parameters of all factors together, spent where they keep most energy", None)
    noise_floor: bool = boolean("buy no rank for what rounding to the tuned dtype alone would cause", False)
    max_rank: int | None = whole("most that a module gets; smaller ones get what they can", None)
    multiple_of: int = whole("ranks are multiples of this, where the matrix allows it", 1)
    method: str = choice("how to factor, as in phlora", METHODS, "auto")
    dtype: DType = dtype_name("of the factors", BY_NAME["float32"])
    serving: str = choice(
        "who loads it: vllm needs one rank, padded, and no module stored whole", ("peft", "vllm"), "peft"
    )
    fan_in_fan_out: bool | None = boolean("weights are stored as [in, out], as those of GPT-2 (Conv1D)", None)
    experts: str | None = choice("axes of fused experts' weights", ("out_in", "in_out"), None)
    embedding: tuple[re.Pattern[str], ...] = expressions("modules that are embeddings, where names do not tell it")
    linear: tuple[re.Pattern[str], ...] = expressions("modules that are linear, where names do not tell it")
    expert: tuple[re.Pattern[str], ...] = expressions("parameters [experts, ., .] that are a matrix for each expert")
    embeddings: str = choice(
        "embeddings, which must be equal in both unless ...", ("lora", "save", "skip", "equal"), "lora"
    )
    biases: str = choice("biases of factored modules, likewise", ("lora", "save", "skip", "equal"), "equal")
    norms: str = choice("norms and other modules of vectors alone, likewise", ("save", "skip", "equal"), "equal")
    others: str | None = choice("all else, likewise; as norms unless said", ("save", "skip", "equal"), None)
    tied: tuple[str, ...] | None = texts(TIED, None)
    modules_to_save: tuple[re.Pattern[str], ...] = expressions("modules stored whole, with all that lies in them")
    skip: tuple[re.Pattern[str], ...] = expressions("parameters left out, even where they changed")
    model: str | None = text("what PEFT is to take for the base model: a name or a path", None)
    task: str = choice("what PEFT calls the task", TASKS, TASKS[0], null="none")

    def __post_init__(self) -> None:
        by_data = [key for key in ("energy", "budget", "noise_floor") if getattr(self, key)]
        if self.rank is not None and (by_data or self.max_rank is not None):
            others = ", ".join([*by_data, *(["max_rank"] if self.max_rank is not None else [])])
            raise PlanError("rank is for all modules alike", expected="rank alone", found=f"rank and {others}")
        if self.rank is None and not by_data and self.max_rank is None:
            raise PlanError("nothing says which ranks", expected="rank, energy, budget, noise_floor or max_rank")
        if self.max_rank is not None and self.max_rank < self.multiple_of:
            raise PlanError("max_rank is below multiple_of", found=f"{self.max_rank} and {self.multiple_of}")
        if not self.dtype.is_float or self.dtype.is_small_float:
            raise PlanError(
                "factors are floating-point tensors", expected="float32, bfloat16, float16", found=str(self.dtype)
            )

    # -- building ------------------------------------------------------------------------------------------------------

    def build(self, state: State) -> None:
        found = self._entries(state)
        modules = sort_modules(state, found, self._wishes)
        rows = self._rows(state, modules, found)
        demand_equal(state, modules.equal, found, at_once=not rows)
        if not rows and state.checks.waits():
            rows = [Row(_spare(found, modules), 0, 1)]
        elif not rows:
            raise PlanError("lora_extract: nothing to extract: base and tuned do not differ", where=self.base.mark)
        alias = self._destination(state).alias
        if alias not in state.names.aliases():
            state.files.add_alias(alias)
        elif state.names.of(alias):
            raise PlanError(f"lora_extract: {alias} holds tensors already", hint="give `to` a new alias")
        writer = AdapterWriter(self, state, alias, rows, modules, found)
        sinks, tied, with_bias = writer.factors(), writer.tied(), writer.biases()
        for entry in modules.stored:
            state.versions.create(alias, adapters.PREFIX + entry.name, entry.tuned)
        config = writer.configuration(with_bias, tied)
        told = AdapterRemarks(rows, sinks, modules)
        state.files.annotate(alias, "peft", {adapters.CONFIG: json.dumps(config)}, {"extraction.json": told.as_json})
        state.speech.say_later(told.as_table)
        if self.serving == "peft" and not state.checks.waits():
            for warning in warnings(rows, found):
                state.speech.warn(f"lora_extract: {warning}", where=self.base.mark)

    def contributes(self, state: State) -> str | None:
        return self._destination(state).alias

    def _destination(self, state: State) -> Reference:
        """The template of the parameters' names in the model, with the alias of the adapter."""
        to = self.to
        if isinstance(to, Scalar) and isinstance(to.value, str) and "::" not in to.value:
            to = Scalar(f"{to.value}::\\g<0>", to.mark)
        return state.names.reference(to, key="to", slices=False, new_alias=True)

    def _entries(self, state: State) -> list[Weight]:
        """All matched parameters, and what they are.

        Raises:
            PlanError: the checkpoints do not match.
        """
        base = state.names.reference(self.base, key="base", slices=False)
        tuned = state.names.reference(self.tuned, key="tuned", slices=False)
        pairs = state.names.pairs(base, tuned, self._destination(state))
        for pattern in (*self.skip, *self.modules_to_save, *self.embedding, *self.linear, *self.expert):
            check_time(pattern, [dest for *_, dest in pairs], self.base.mark)
        triples = [(name, other, dest, self._is_skipped(dest)) for name, other, dest in pairs]
        triples = [row for row in triples if not row[3] or state.names.has(tuned.alias, row[1])]
        state.names.expect_present(tuned.alias, [row[1] for row in triples], kind="tuned")
        self._check_extra(state, base, tuned, {row[1] for row in triples})
        entries = []
        for name, other, dest, is_skipped in triples:
            if "" in dest.split("."):
                raise PlanError(f"lora_extract: {dest!r} is no name of a parameter", where=self.to.mark, found=name)
            left = state.versions.slot(base.alias, name, reads=1).node
            right = state.versions.slot(tuned.alias, other, reads=1).node
            if left.spec is None or right.spec is None:
                continue  # an earlier step that failed would have made it
            if not is_skipped:
                state.versions.check_plain(left, right)
            if left.spec.shape != right.spec.shape and not is_skipped:
                raise PlanError(
                    f"lora_extract: {name} has another shape in {tuned.alias}",
                    where=self.tuned.mark,
                    expected=str(left.spec),
                    found=f"{right.spec} ({other})",
                    hint="an adapter cannot change shapes: slice or pad one of them first, or leave it out: "
                    f"skip: {patterns_of([dest])}",
                )
            entries.append(Weight(dest, left, right))
        said = Said(self.embedding, self.linear, self.expert, self.fan_in_fan_out, self._experts_in_out)
        return arranged(sorted_out(entries, said), said)

    def _check_extra(self, state: State, base: Reference, tuned: Reference, there: set[str]) -> None:
        """Raise a PlanError if the fine-tune has tensors that the base has not, unless they are skipped."""
        known = set(state.names.of(base.alias))
        extra = [
            name
            for name in state.names.of(tuned.alias)
            if name not in there
            and name not in known
            and naming.could_produce(tuned, name)
            and not self._is_skipped(name)
        ]
        if extra and base.alias != tuned.alias:
            raise PlanError(
                f"lora_extract: {tuned.alias} has tensors that {base.alias} has not",
                where=self.tuned.mark,
                found=f"{len(extra)}: {listing(extra)}",
                hint=f"leave them out: skip: {patterns_of(extra)}, or delete them first",
            )

    def _is_skipped(self, name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in self.skip)

    @property
    def _experts_in_out(self) -> bool | None:
        return None if self.experts is None else self.experts == "in_out"

    @property
    def by_data(self) -> bool:
        """Whether ranks depend on singular values."""
        return bool(self.energy or self.budget or self.noise_floor)

    @property
    def _wishes(self) -> Wishes:
        others = self.others or self.norms
        positions = "save" if self.embeddings == "lora" else self.embeddings
        fates = {"embedding": self.embeddings, "position": positions, "bias": self.biases, "norm": self.norms}
        return Wishes(
            self.skip, self.modules_to_save, fates | {"convolution": others, "other": others}, always=self.by_data
        )

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def _rows(self, state: State, modules: Modules, found: Sequence[Weight]) -> list[Row]:
        """What gets factors; something does if anything changed.

        Raises:
            PlanError: nothing tells what a module is or how its weight is stored.
        """
        ranks = self._ranks(state, modules)
        rows = {entry.name: Row(entry, ranks[entry.name], ranks[entry.name]) for entry in modules.factored
                if ranks[entry.name]}  # fmt: skip
        for members in modules.experts.values():
            width = max((rows[entry.name].rank for entry in members if entry.name in rows), default=0)
            for entry in members if width else ():
                rows[entry.name] = Row(entry, rows[entry.name].rank if entry.name in rows else 0, width)
        if not rows and modules.saved:
            spare = _spare(found, modules)
            rows[spare.name] = Row(spare, 0, 1)
        found_rows = list(rows.values())
        if not state.checks.waits():
            _check_known([row.entry for row in found_rows])
        if self.serving == "peft" or not found_rows:
            return found_rows
        room = WIDTHS[-1] if state.checks.waits() else self._uniform_width(found_rows, modules)
        return [replace(row, width=room) for row in found_rows]

    def _uniform_width(self, rows: Sequence[Row], modules: Modules) -> int:
        """The rank that all factors are padded to for vLLM.

        Raises:
            PlanError: something that vLLM does not serve.
        """
        for kind, names in (
            ("embeddings", [row.entry.name for row in rows if row.entry.kind == "embedding"]),
            ("modules stored whole", [entry.name for entry in modules.stored]),
            ("fused experts", [row.entry.name for row in rows if row.entry.kind == "experts"]),
        ):
            if names:
                raise PlanError(
                    f"lora_extract: serving: vllm takes factors of linear modules only, not {kind}",
                    found=listing(names),
                    hint="leave them out with skip, or extract with serving: peft",
                )
        most = max(row.rank for row in rows)
        if most > WIDTHS[-1]:
            raise PlanError("lora_extract: too high a rank for vLLM", expected=f"at most {WIDTHS[-1]}", found=str(most))
        return next(width for width in WIDTHS if width >= most)

    def _ranks(self, state: State, modules: Modules) -> dict[str, int]:
        """The rank of every factored parameter; an upper bound while the data is not known."""
        possible = {entry.name: min(entry.shape[-2:]) for entry in modules.factored}
        if self.rank is not None:
            small = [name for name, most in possible.items() if most < self.rank]
            if (
                small and not state.checks.waits()
            ):  # until the data is known, modules that did not change are among them
                raise PlanError(
                    f"lora_extract: no rank {self.rank} in {small[0]}",
                    expected=f"at most {min(possible.values())}",
                    found=f"{len(small)} parameters that are smaller: {listing(small, 3)}",
                    hint=f"max_rank: {self.rank} gives smaller modules what they can have",
                )
            return {name: min(most, self.rank) for name, most in possible.items()}
        bound = {name: min(most, self.max_rank or most) for name, most in possible.items()}
        if not self.by_data:
            return bound
        asked = {entry.name: self._spectrum(state, entry, bound[entry.name]) for entry in modules.factored}
        tables = {name: table for name, table in asked.items() if table is not None}
        return self._chosen(modules, tables) if len(tables) == len(asked) else bound

    def _chosen(self, modules: Modules, tables: Mapping[str, Table]) -> dict[str, int]:
        """The ranks that the spectra of the changes ask for; 0, with the reason told, for what is left out."""
        how = RankRule(self.energy, self.budget, self.noise_floor, self.max_rank, self.multiple_of)
        measured = {entry.name: _measured(entry, tables[entry.name]) for entry in modules.factored}
        groups = [layer for layer in modules.experts.values() if any(entry.name in tables for entry in layer)]
        together = {entry.name for layer in groups for entry in layer}
        groups += [[entry] for entry in modules.factored if entry.name not in together]
        spectra = [[measured.get(entry.name) or _measured(entry, _zeros()) for entry in group] for group in groups]
        ranks: dict[str, int] = {}
        for group, members, rank in zip(groups, spectra, choose_ranks(spectra, how), strict=True):
            for entry, seen in zip(group, members, strict=True):
                needed = seen.rank(replace(how, budget=None))
                ranks[entry.name] = rank if needed else 0
                if not ranks[entry.name] and entry.name in tables:
                    above = self.noise_floor and not seen.above_noise()
                    modules.left[entry.name] = "unchanged" if not seen.total else "noise" if above else "no budget"
        return ranks

    def _spectrum(self, state: State, entry: Weight, bound: int) -> Table | None:
        if entry.base is entry.tuned:
            return _zeros()
        found: Table | None = state.checks.ask(
            state.versions.compute(ChangeEnergies(bound, self.method), entry.base, entry.tuned)
        )
        return found


def _zeros() -> Table:
    """The spectrum of no change."""
    import numpy as np

    return np.zeros((1, 3))


def _measured(entry: Weight, table: Table) -> ChangeSpectrum:
    first, second = entry.shape[-2:]
    return ChangeSpectrum(entry.name, (first, second), table)


def _spare(found: Sequence[Weight], modules: Modules) -> Weight:
    """A small linear module that gets factors of zero, because PEFT loads no adapter without any.

    Raises:
        PlanError: there is none.
    """
    stored = {entry.name for entry in modules.stored}
    linear = [e for e in found if e.kind == "linear" and e.is_in_out is not None and e.name not in stored]
    if not linear:
        raise PlanError(
            "lora_extract: PEFT loads no adapter without factors, and no linear module is left to have some",
            found=f"stored whole: {listing(sorted(stored))}",
            hint="let the pattern of `base` match a linear module too",
        )
    return min(linear, key=lambda entry: (one_by_one(entry) is not None, entry.spec.size))


def _check_known(entries: Sequence[Weight]) -> None:
    """Raise a PlanError if something about modules that get factors is not told by names and shapes."""
    unknown = [entry.module for entry in entries if entry.kind == "unknown"]
    if unknown:
        patterns = patterns_of(unknown)
        raise PlanError(
            "lora_extract: names and shapes do not tell whether modules that changed are embeddings",
            found=listing(unknown, 12),
            hint=f"embedding: {patterns} for those that are, else linear: {patterns}",
        )
    for kind, keys in (("linear", "fan_in_fan_out: true or fan_in_fan_out: false"),
                       ("experts", "experts: in_out or experts: out_in")):  # fmt: skip
        either = [entry for entry in entries if entry.kind == kind and entry.is_in_out is None]
        if either:
            raise PlanError(
                "lora_extract: neither shapes nor biases tell whether weights are stored as [in, out] or [out, in]",
                found=listing(f"{entry.name} {entry.spec}" for entry in either),
                hint=keys,
            )
