r"""`lora_extract`: what fine-tuning changed, as a LoRA adapter of PEFT."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core import adapters
from ..core.dtypes import BY_NAME, DType
from ..core.errors import PlanError, StorageError, listing
from ..core.specs import Spec
from ..language import names as naming
from ..language.document import Node, Scalar
from ..language.names import Reference
from ..language.regexes import check_time
from .base import Directive, boolean, choice, dtype_name, expressions, fraction, reference, text
from .base import rank as whole
from .cast import Cast
from .lora_factors import ExtractFactors, Spectrum, matrices
from .lowrank import METHODS
from .made import Constant
from .permute import Permute
from .ranks import Choice, Measured, choose_ranks
from .reshape import Reshape
from .state import State
from .structure import View
from .subtract import Subtract

EMBEDDINGS = r"(.+\.)?(embed_tokens|embed_positions|wte|wpe|embed_in|tok_embeddings|\w+_embeddings)"
TOKENS = ("embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings")  # embeddings that outputs may share
TIED = "output layer that shares the weight of the embedding, such as lm_head; none if there is no such layer"
TO = "a new alias for the adapter; or with :: a template of the names that parameters have in the model for PEFT"
WIDTHS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks for which vLLM reserves room (its option max_lora_rank)
HEAD = 1 << 16  # elements that are compared first: a module that was trained differs there


@dataclass(eq=False)
class Entry:
    """One parameter of the model, `name`, in both checkpoints."""

    name: str
    base: Any
    tuned: Any

    @property
    def spec(self) -> Spec:
        return self.base.spec  # type: ignore[no-any-return]

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def is_experts(self) -> bool:
        return self.leaf != "weight"


@dataclass(eq=False)
class Modules:
    """Parameters by what becomes of them."""

    factored: list[Entry] = field(default_factory=list)
    embeddings: list[Entry] = field(default_factory=list)  # those of `factored` that are embeddings
    biases: list[Entry] = field(default_factory=list)
    saved: list[Entry] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # name -> why it is not in the adapter


@dataclass(frozen=True)
class LoraExtract(Directive):
    """Extract what fine-tuning changed as a LoRA adapter that PEFT loads.

    For every matched weight the best approximation B @ A of tuned - base of its rank, computed in float32; scaling is 1
    (alpha = rank). Written as `output: { path: ..., format: peft }` it is a directory of `adapter_model.safetensors`,
    `adapter_config.json` and `extraction.json`, which tells for every module its rank, the energy that is kept,
    1 - |change - B A|^2 / |change|^2, and the relative error |change - B A| / |change|, in Frobenius norms, of the
    factors as they are stored; the run prints the same as a table.

    Ranks: `rank` for all; or what `energy`, `budget` and `noise_floor` say of the singular values, each at most
    `max_rank`. These, and which modules did not change and are left out, are found in a first pass over the tensors.
    """

    word = "lora_extract"
    computes = True
    examples = (
        "lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, rank: 16 }",
        "lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, energy: 0.9, max_rank: 64 }",
        "lora_extract: { base: 'base::(h\\..+)', tuned: 'tuned::\\1', to: 'adapter::transformer.\\1', budget: 1e6, "
        "fan_in_fan_out: true, biases: lora, norms: skip }",
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
    fan_in_fan_out: bool = boolean("weights are stored as [in, out], as those of GPT-2 (Conv1D)", False)
    experts: str = choice("axes of fused experts' weights", ("out_in", "in_out"), "out_in")
    embeddings: str = choice(
        "embeddings, which must be equal in both unless ...", ("lora", "save", "skip", "equal"), "lora"
    )
    biases: str = choice("biases of factored modules, likewise", ("lora", "skip", "equal"), "equal")
    norms: str = choice("norms and all else that is no matrix, likewise", ("save", "skip", "equal"), "equal")
    tied: str | None = text(TIED, None)
    modules_to_save: tuple[re.Pattern[str], ...] = expressions("modules stored whole")
    skip: tuple[re.Pattern[str], ...] = expressions("parameters left out, even where they changed")
    model: str | None = text("what PEFT is to take for the base model: a name or a path", None)
    task: str | None = text("what PEFT calls the task", "CAUSAL_LM")

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
        modules = self._sort(state, found)
        ranks = self._ranks(state, modules)
        alias = self._destination(state).alias
        if alias not in state.aliases():
            state.add_alias(alias)
        elif state.names(alias):
            raise PlanError(f"lora_extract: {alias} holds tensors already", hint="give `to` a new alias")
        width = self._uniform_width(state, modules, ranks) if self.serving == "vllm" else None
        rows = [
            (entry, ranks[entry.name], width or ranks[entry.name]) for entry in modules.factored if ranks[entry.name]
        ]
        sinks = self._write_factors(state, alias, rows, modules)
        is_tied = self._write_tied(state, alias, rows, modules, found)
        with_bias = self._write_biases(state, alias, rows, modules)
        for entry in modules.saved:
            state.create(alias, adapters.PREFIX + entry.name, entry.tuned)
        if not rows and not modules.saved:
            raise PlanError("lora_extract: nothing to extract: base and tuned do not differ", where=self.base.mark)
        config = self._configuration(rows, modules, found, with_bias) | (
            {"ensure_weight_tying": True} if is_tied else {}
        )
        told = _Told(self, rows, sinks, modules)
        state.annotate(alias, "peft", {adapters.CONFIG: json.dumps(config)}, {"extraction.json": told.as_json})
        state.say_later(told.as_table)

    def _uniform_width(self, state: State, modules: Modules, ranks: Mapping[str, int]) -> int:
        """The rank that all factors are padded to for vLLM.

        Raises:
            PlanError: something that vLLM does not serve.
        """
        if state.waits():
            return WIDTHS[-1]
        for kind, entries in (
            ("embeddings", [entry for entry in modules.embeddings if ranks[entry.name]]),
            ("modules stored whole", modules.saved),
            ("fused experts", [entry for entry in modules.factored if entry.is_experts and ranks[entry.name]]),
        ):
            if entries:
                raise PlanError(
                    f"lora_extract: serving: vllm takes factors of linear modules only, not {kind}",
                    found=listing(entry.name for entry in entries),
                    hint="leave them out with skip, or extract with serving: peft",
                )
        most = max(ranks.values(), default=1)
        if most > WIDTHS[-1]:
            raise PlanError("lora_extract: too high a rank for vLLM", expected=f"at most {WIDTHS[-1]}", found=str(most))
        return next(width for width in WIDTHS if width >= most)

    def contributes(self, state: State) -> str | None:
        return self._destination(state).alias

    def _destination(self, state: State) -> Reference:
        """The template of the parameters' names in the model, with the alias of the adapter."""
        to = self.to
        if isinstance(to, Scalar) and isinstance(to.value, str) and "::" not in to.value:
            to = Scalar(f"{to.value}::\\g<0>", to.mark)
        return state.reference(to, key="to", slices=False, new_alias=True)

    def _entries(self, state: State) -> list[Entry]:
        """All matched parameters.

        Raises:
            PlanError: the checkpoints do not match.
        """
        base = state.reference(self.base, key="base", slices=False)
        tuned = state.reference(self.tuned, key="tuned", slices=False)
        triples = state.pairs(base, tuned, self._destination(state))
        state.expect_present(tuned.alias, [names[1] for names in triples], kind="tuned")
        there, known = {names[1] for names in triples}, set(state.names(base.alias))
        extra = [
            name
            for name in state.names(tuned.alias)
            if name not in there and name not in known and naming.could_produce(tuned, name)
        ]
        if extra and base.alias != tuned.alias:
            raise PlanError(
                f"lora_extract: {tuned.alias} has tensors that {base.alias} has not",
                where=self.tuned.mark,
                found=f"{len(extra)}: {listing(extra)}",
                hint="delete them first, or make the pattern of `tuned` narrower",
            )
        entries = []
        for name, other, dest in triples:
            left = state.slot(base.alias, name, reads=1).node
            right = state.slot(tuned.alias, other, reads=1).node
            if left.spec is None or right.spec is None:
                continue  # an earlier step that failed would have made it
            if left.spec.shape != right.spec.shape:
                raise PlanError(
                    f"lora_extract: {name} has another shape in {tuned.alias}",
                    where=self.tuned.mark,
                    expected=str(left.spec),
                    found=f"{right.spec} ({other})",
                    hint="an adapter cannot change shapes: slice or pad one of them first",
                )
            entries.append(Entry(dest, left, right))
        return entries

    # -- what becomes of each parameter --------------------------------------------------------------------------------

    def _sort(self, state: State, entries: Sequence[Entry]) -> Modules:
        found = Modules()
        for regex in (*self.skip, *self.modules_to_save):
            check_time(regex, [entry.name for entry in entries], self.base.mark)
        weights = {entry.module: entry for entry in entries if entry.leaf == "weight"}
        kinds = {entry.name: self._kind(entry, weights.get(entry.module)) for entry in entries}
        for entry in entries:
            self._check_axes(entry, weights, kinds)
        whole = self._unchanged_modules(state, [e for e in entries if kinds[e.name][1] == "save"])
        for entry in entries:
            kind, fate = kinds[entry.name]
            if kind != "skip":
                state.check_plain(entry.base, entry.tuned)
            if fate == "lora" and kind == "biases":
                found.biases.append(entry)
            elif fate == "lora":
                if self._by_data or not self._is_unchanged(state, entry):
                    found.factored.append(entry)
                    found.embeddings += [entry] if kind == "embeddings" else []
                else:
                    found.left[entry.name] = "unchanged"
            elif fate == "save" and entry.module not in whole:
                found.saved.append(entry)
            elif fate == "skip":
                found.left[entry.name] = "skipped"
            elif fate == "equal" and entry.base is not entry.tuned:
                self._demand_equal(state, entry, kind)
        return found

    def _kind(self, entry: Entry, weight: Entry | None) -> tuple[str, str]:
        """The key that decides about a parameter, and what it says."""
        if any(pattern.fullmatch(entry.name) for pattern in self.skip):
            return "skip", "skip"
        if any(pattern.fullmatch(entry.module) for pattern in self.modules_to_save):
            return "modules_to_save", "save"
        if _is_matrix(entry):
            if not entry.is_experts and re.fullmatch(EMBEDDINGS, entry.module):
                return "embeddings", self.embeddings
            return "weights", "lora"
        if entry.leaf == "bias" and weight is not None and _is_matrix(weight):
            return "biases", self.biases
        return "norms", self.norms

    @property
    def _by_data(self) -> bool:
        """Whether ranks depend on singular values."""
        return bool(self.energy or self.budget or self.noise_floor)

    def _check_axes(self, entry: Entry, weights: Mapping[str, Entry], kinds: Mapping[str, tuple[str, str]]) -> None:
        """The bias of a linear module is as long as its outputs are many: that tells how its weight is stored."""
        weight = weights.get(entry.module)
        if entry.leaf != "bias" or weight is None or kinds[weight.name] != ("weights", "lora"):
            return
        out, inner = weight.spec.shape[:: -1 if self.fan_in_fan_out else 1]
        if entry.spec.shape == (inner,) and inner != out:
            raise PlanError(
                f"lora_extract: {weight.name} looks stored as [{'out, in' if self.fan_in_fan_out else 'in, out'}]",
                found=f"{weight.spec} with a bias of {inner}",
                hint=f"fan_in_fan_out: {str(not self.fan_in_fan_out).lower()}",
            )

    def _demand_equal(self, state: State, entry: Entry, kind: str) -> None:
        """Left out of the adapter, so the run fails if it changed."""
        from ..asserts.base import Pending
        from ..asserts.equal import EqualMask  # the predicates build on this package

        options = " or ".join(f"{kind}: {word}" for word in ("lora", "save", "skip") if word in _FATES[kind])
        label = f"lora_extract: {entry.name} is not extracted but was changed (decide with {options})"
        if entry.base.spec != entry.tuned.spec:
            raise PlanError(label, expected=str(entry.base.spec), found=str(entry.tuned.spec))
        state.assert_(Pending(state.check(EqualMask(), (entry.base, entry.tuned), label)), label)

    def _unchanged_modules(self, state: State, entries: Sequence[Entry]) -> set[str]:
        """Modules to be stored whole of which nothing was changed."""
        changed: dict[str, bool] = {}
        for entry in entries:
            changed[entry.module] = changed.get(entry.module, False) or not self._is_unchanged(state, entry)
        return {module for module, is_changed in changed.items() if not is_changed}

    def _is_unchanged(self, state: State, entry: Entry) -> bool:
        """Whether the elements are the same in both; asked of the data, first of the beginning alone."""
        from ..asserts.equal import EqualMask

        if entry.base is entry.tuned or 0 in entry.spec.shape:
            return True
        if entry.base.spec != entry.tuned.spec or not entry.spec.dtype.array:
            return False
        pair = (entry.base, entry.tuned)
        head = _head(entry.spec)
        if head is not None:
            same = state.ask(state.apply(EqualMask(), *(state.apply(head, side)[0] for side in pair))[0])
            if not same:
                return False
        return bool(state.ask(state.apply(EqualMask(), *pair)[0]))

    # -- ranks ---------------------------------------------------------------------------------------------------------

    def _ranks(self, state: State, modules: Modules) -> dict[str, int]:
        """The rank of every factored parameter; an upper bound while the data is not known."""
        entries = modules.factored
        possible = {entry.name: min(matrices(entry.spec, False)[1:]) for entry in entries}
        if self.rank is not None:
            small = [name for name, most in possible.items() if most < self.rank]
            if small:
                raise PlanError(
                    f"lora_extract: no rank {self.rank} in {small[0]}",
                    expected=f"at most {min(possible.values())}",
                    found=f"{len(small)} parameters that are smaller: {listing(small, 3)}",
                    hint=f"max_rank: {self.rank} gives smaller modules what they can have",
                )
            return dict.fromkeys(possible, self.rank)
        bound = {name: min(most, self.max_rank or most) for name, most in possible.items()}
        if not self._by_data:
            return bound
        tables = {entry.name: self._spectrum(state, entry, bound[entry.name]) for entry in entries}
        if any(table is None for table in tables.values()):
            return bound
        how = Choice(self.energy, self.budget, self.noise_floor, self.max_rank, self.multiple_of)
        measured = [Measured(e.name, matrices(e.spec, False)[1:], tables[e.name]) for e in entries]
        ranks = dict(zip(tables, choose_ranks(measured, how), strict=True))
        for entry, seen in zip(measured, [ranks[entry.name] for entry in measured], strict=True):
            if not seen:
                above = self.noise_floor and not entry.above_noise()
                modules.left[entry.name] = "unchanged" if not entry.total else "noise" if above else "no budget"
        return ranks

    def _spectrum(self, state: State, entry: Entry, bound: int) -> Any:
        if entry.base is entry.tuned:
            import numpy as np

            return np.zeros((1, 3))
        return state.ask(state.apply(Spectrum(bound, self.method), entry.base, entry.tuned)[0])

    # -- what is written -----------------------------------------------------------------------------------------------

    def _is_transposed(self, entry: Entry, modules: Modules) -> bool:
        if entry.is_experts:
            return self.experts == "in_out"
        return entry in modules.embeddings or self.fan_in_fan_out

    def _write_factors(
        self, state: State, alias: str, rows: Sequence[tuple[Entry, int, int]], modules: Modules
    ) -> dict[str, Any]:
        """Bind the factors of every module; gives the sinks of their norms."""
        below = _wrappers([entry for entry, _, _ in rows])
        sinks = {}
        for entry, count, width in rows:
            is_embedding = entry in modules.embeddings
            turned = self._is_transposed(entry, modules)
            many, out, inner = matrices(entry.spec, turned)
            room = width
            if self._by_data and not entry.is_experts:  # few rooms for many ranks: each is compiled
                room = max(width, min(1 << (count - 1).bit_length(), out, inner))
            op = ExtractFactors(room, self.method, self.dtype, turned, float(count), float(width))
            rows_of_a, packed, norms = state.apply(op, entry.base, entry.tuned)
            (a,) = state.apply(_first(width * many, rows_of_a.spec), rows_of_a)
            (b,) = state.apply(_first(out * width * many, packed.spec), packed)
            (b,) = state.apply(Reshape((out, width * many)), b)
            path = adapters.PREFIX + entry.module + ".base_layer" * below.get(entry.name, 0)
            kind, end = ("lora_embedding", "") if is_embedding else ("lora", ".weight")
            state.create(alias, f"{path}.{kind}_A{end}", a)
            state.create(alias, f"{path}.{kind}_B{end}", b)
            sinks[entry.name] = state.sink(norms, "array")
            state.tell(f"lora_extract: {entry.name} -> rank {count}")
        return sinks

    def _write_tied(
        self,
        state: State,
        alias: str,
        rows: Sequence[tuple[Entry, int, int]],
        modules: Modules,
        found: Sequence[Entry],
    ) -> bool:
        """Bind for an output layer that shares the embedding what the embedding got; whether there is one.

        Raises:
            PlanError: the checkpoint has no output layer, and the plan does not say what that means.
        """
        held = [entry for entry, _, _ in rows] + modules.saved
        shared = [entry for entry in held if entry.module.rpartition(".")[2] in TOKENS]
        has_output = any(entry.module.rpartition(".")[2] in adapters.OUTPUTS for entry in found)
        if self.tied == "none" or not shared or (self.tied is None and has_output):
            return False
        if self.tied is None:
            if state.waits():
                return False
            raise PlanError(
                f"lora_extract: {shared[0].name} was changed, and the model may compute its outputs with it",
                found="no " + ", ".join(f"{name}.weight" for name in adapters.OUTPUTS),
                hint="tied: lm_head if tie_word_embeddings is true in config.json, else tied: none",
            )
        path, other = adapters.PREFIX + shared[0].module, adapters.PREFIX + self.tied
        if shared[0] in modules.saved:
            state.create(alias, f"{other}.weight", shared[0].tuned)
        else:
            for side, opposite in (("A", "B"), ("B", "A")):
                factor = state.slot(alias, f"{path}.lora_embedding_{opposite}").node
                state.create(alias, f"{other}.lora_{side}.weight", state.apply(Permute((1, 0)), factor)[0])
        return True

    def _write_biases(self, state: State, alias: str, rows: Sequence[tuple[Entry, int, int]], modules: Modules) -> bool:
        """Bind the changes of biases if there are any: then PEFT wants one for every module, zero if there is none."""
        changed = {entry.module: entry for entry in modules.biases if not self._is_unchanged(state, entry)}
        if state.waits():
            return False
        alone = changed.keys() - {entry.module for entry, _, _ in rows}
        if alone:
            raise PlanError(
                f"lora_extract: the bias of {min(alone)} was changed, but not its weight",
                hint="modules_to_save can hold the module whole",
            )
        if not changed:
            return False
        if self.serving == "vllm":
            raise PlanError("lora_extract: vLLM takes no biases", hint="biases: skip, or serving: peft")
        wide = Cast(self.dtype)
        for entry, _, _ in rows:
            if entry.is_experts or entry in modules.embeddings:
                raise PlanError("lora_extract: PEFT takes no biases beside embeddings and experts", found=entry.name)
            bias = changed.get(entry.module)
            out = matrices(entry.spec, self._is_transposed(entry, modules))[1]
            if bias is None:
                value = state.apply(Constant(Spec((out,), self.dtype), 0.0))[0]
            else:
                sides = [state.apply(Cast(BY_NAME["float32"]), side)[0] for side in (bias.tuned, bias.base)]
                value = state.apply(wide, state.apply(Subtract(), *sides)[0])[0]
            state.create(alias, f"{adapters.PREFIX}{entry.module}.lora_B.bias", value)
        return True

    def _configuration(
        self, rows: Sequence[tuple[Entry, int, int]], modules: Modules, found: Sequence[Entry], with_bias: bool
    ) -> dict[str, Any]:
        factored = [
            adapters.Factored(entry.module, width, entry.leaf if entry.is_experts else "") for entry, _, width in rows
        ]
        saved = sorted({entry.module for entry in modules.saved})
        taken = {entry.module for entry, _, _ in rows}
        others = {entry.module for entry in found} - taken
        try:
            return adapters.configuration(
                factored,
                saved,
                others,
                fan_in_fan_out=self.fan_in_fan_out,
                lora_bias=with_bias,
                base=self.model,
                task=self.task,
            )
        except StorageError as error:
            raise PlanError(f"lora_extract: {error.problem}", found=error.found, hint=error.hint) from None


_FATES = {
    "embeddings": ("lora", "save", "skip"),
    "biases": ("lora", "skip"),
    "norms": ("save", "skip"),
}


def _is_matrix(entry: Entry) -> bool:
    """Whether a parameter is a weight that can be factored: a matrix, or one for each of fused experts."""
    spec = entry.spec
    if not (spec.dtype.is_float and spec.dtype.array and entry.tuned.spec.dtype.is_float) or 0 in spec.shape:
        return False
    return len(spec.shape) == (2 if entry.leaf == "weight" else 3)


def _first(count: int, spec: Spec) -> View:
    """The first slices along the leading axis."""
    axes = ((0, 1, count), *((0, 1, length) for length in spec.shape[1:]))
    return View(axes, (False,) * len(axes))


def _head(spec: Spec) -> View | None:
    """The first rows of a tensor; None if it is small."""
    if spec.size <= 2 * HEAD:
        return None
    return _first(max(1, HEAD // (spec.size // spec.shape[0])), spec)


def _wrappers(entries: Iterable[Entry]) -> dict[str, int]:
    """How many wrappers of PEFT lie around that of each parameter of fused experts: it wraps a module's parameters one
    after the other, in the order in which the module declares them, which is up before down in all known models."""
    modules: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.is_experts:
            modules.setdefault(entry.module, []).append(entry)
    below = {}
    for group in modules.values():
        ordered = sorted(group, key=lambda entry: "down" in entry.leaf)
        below.update({entry.name: len(group) - 1 - number for number, entry in enumerate(ordered)})
    return below


class _Told:
    """What the run tells of the adapter, once the norms are known."""

    def __init__(
        self, step: LoraExtract, rows: Sequence[tuple[Entry, int, int]], sinks: Mapping[str, Any], modules: Modules
    ) -> None:
        self.rows = rows
        self.sinks = sinks
        self.modules = modules
        self.embeddings = {entry.name for entry in modules.embeddings}

    def figures(self, found: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
        """Rank, shape, energy kept, relative error and the norm of the change, by parameter."""
        told = {}
        for entry, count, width in self.rows:
            whole, rest = (float(x) for x in found[self.sinks[entry.name]])
            share = rest / whole if whole else 0.0
            told[entry.name] = {
                "rank": count,
                "width": width,
                "shape": list(entry.spec.shape),
                "energy_kept": 1 - share,
                "relative_error": math.sqrt(share),
                "norm": math.sqrt(whole),
            }
        return told

    def as_json(self, found: Mapping[Any, Any]) -> str:
        """`extraction.json`."""
        content = {
            "modules": self.figures(found),
            "saved": [entry.name for entry in self.modules.saved],
            "left_out": self.modules.left,
            "parameters": self._parameters(),
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
            f"adapter: {len(told)} factored, {len(self.modules.saved)} stored whole, "
            f"{self._parameters()} parameters" + (f"; left out: {', '.join(counts)}" if counts else "")
        )
        return "\n".join(lines)

    def _parameters(self) -> int:
        factors = sum(width * number * (out + inner) for width, number, out, inner in self._shapes())
        return factors + sum(entry.spec.size for entry in self.modules.saved)

    def _shapes(self) -> Iterable[tuple[int, int, int, int]]:
        for entry, _, width in self.rows:
            yield width, *matrices(entry.spec, False)
