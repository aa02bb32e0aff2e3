"""`lora_merge`: adapters into the weights that they change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..core import adapters
from ..core.adapters import Pair
from ..core.dtypes import BY_NAME
from ..core.errors import PlanError, StorageError, listing, nearest
from ..core.specs import Spec
from ..language import document
from ..language.document import Node, Scalar
from ..language.names import Reference
from ..language.regexes import check_time
from .add import Add
from .base import Directive, choice, pattern, reference
from .base import node as any_node
from .cast import Cast
from .lora_factors import AddFactors
from .scale import Scale
from .state import State
from .subtract import Subtract

WIDE = BY_NAME["float32"]


@dataclass(eq=False)
class Changes:
    """What the adapters do to one parameter of the base, in their order."""

    factors: list[tuple[Any, Any, float]] = field(default_factory=list)  # A, B, scale
    added: list[tuple[Any, float]] = field(default_factory=list)  # changes of a bias, scale
    replaced: list[tuple[Any, float]] = field(default_factory=list)  # the whole parameter, weight
    is_embedding: bool = False
    fan_in_fan_out: bool = False


@dataclass(frozen=True)
class LoraMerge(Directive):
    """Merge LoRA adapters of PEFT into the weights they change.

    Every changed weight becomes base + sum of weight * scaling * B @ A, computed in float32 (float64 for float64) and
    rounded once to the dtype it has; alpha, the patterns of ranks and alphas, rsLoRA, fan_in_fan_out, embeddings and
    fused experts are respected. Of a module stored whole the difference to the base is added, with the weight; one
    adapter of weight 1 replaces it. Parameters that the base has not, and adapters that are no plain LoRA, are errors.
    """

    word = "lora_merge"
    computes = True
    examples = (
        "lora_merge: { adapters: style, to: base }",
        "lora_merge: { adapters: { style: 0.7, task: 1.0 }, to: base }",
        "lora_merge: { adapters: style, from: 'transformer\\.(.+)', to: 'base::\\1' }",
    )

    adapters: Node = any_node(
        "aliases of adapters: one, a list, or a mapping to weights", kind="alias, list or mapping"
    )
    to: Node = reference("alias to change; or with :: a template of the names there", kind="alias or template")
    names: re.Pattern[str] = pattern(
        "of the adapters' parameters, for a template in `to`", re.compile("(.+)"), key="from"
    )
    experts: str = choice("axes of fused experts' weights, where both would fit", ("out_in", "in_out"), "out_in")

    def build(self, state: State) -> None:
        changes: dict[str, Changes] = {}
        base = self._base(state)
        for alias, weight in self._weights().items():
            if alias not in state.aliases():
                near = nearest(alias, state.aliases(), 1)
                raise PlanError(
                    f"lora_merge.adapters: unknown model alias: {alias!r}",
                    where=self.adapters.mark,
                    expected="one of " + ", ".join(state.aliases()),
                    hint=f"did you mean {near[0]}?" if near else "name the adapter's directory in inputs",
                )
            try:
                self._collect(state, alias, weight, base.alias, changes)
            except StorageError as error:
                raise PlanError(
                    f"lora_merge: {alias}: {error.problem}",
                    where=self.adapters.mark,
                    expected=error.expected,
                    found=error.found,
                    hint=error.hint,
                ) from None
        for name, change in changes.items():
            state.rebind(
                base.alias, name, self._changed(state, state.slot(base.alias, name, reads=1).node, name, change)
            )
            state.tell(f"lora_merge: {name}")

    def contributes(self, state: State) -> str | None:
        return self._base(state).alias

    def _base(self, state: State) -> Reference:
        """The template of the parameters' names, with the alias that changes."""
        to = self.to
        if isinstance(to, Scalar) and isinstance(to.value, str) and "::" not in to.value:
            to = Scalar(f"{to.value}::\\g<0>", to.mark)
        return state.reference(to, key="to", slices=False)

    def _weights(self) -> dict[str, float]:
        """The weight of each adapter, by alias.

        Raises:
            PlanError: not an alias, a list of them, or a mapping to numbers.
        """
        given = document.plain(self.adapters)
        if isinstance(given, str) and given:
            return {given: 1.0}
        if isinstance(given, list) and given and all(isinstance(alias, str) for alias in given):
            if len(set(given)) == len(given):
                return dict.fromkeys(given, 1.0)
        elif isinstance(given, dict) and given:
            with suppress(TypeError, ValueError):  # a variable may be spelled as text
                weights = {alias: float(weight) for alias, weight in given.items()}
                if all(map(math.isfinite, weights.values())):
                    return weights
        raise PlanError(
            "lora_merge.adapters: not adapters",
            where=self.adapters.mark,
            expected="an alias, a list of different aliases, or a mapping of aliases to finite weights",
            found=f"{given!r}",
        )

    # -- what the adapters say ----------------------------------------------------------------------------------

    def _collect(self, state: State, alias: str, weight: float, base: str, changes: dict[str, Changes]) -> None:
        """Note what an adapter does to each parameter.

        Raises:
            StorageError: it is no plain LoRA adapter, or does not agree with itself.
        """
        names = state.names(alias)
        check_time(self.names, names, self.to.mark)
        text = state.metadata(alias).get(adapters.CONFIG)
        if text is None:
            raise StorageError(
                "not an adapter", expected="a directory with adapter_config.json", found=listing(names, 3)
            )
        config = adapters.parse_config(text)
        pairs, whole = adapters.contents(names)
        if config.get("ensure_weight_tying"):  # the output layer gets what the embedding gets
            pairs = [pair for pair in pairs if pair.is_embedding or not _is_output(pair.module)]
            whole = {name: held for name, held in whole.items() if not _is_output(name.rpartition(".")[0])}

        def held(name: str) -> Any:
            return state.slot(alias, name, reads=1).node

        def at(parameter: str) -> Changes:
            return changes.setdefault(self._place(state, parameter, alias), Changes())

        for pair, key, parameter in self._parameters(state, config, pairs, alias):
            a, b = held(pair.a), held(pair.b)
            if a.spec is None or b.spec is None:
                continue  # an earlier step that failed would have made them
            rank = a.spec.shape[0] if a.spec.shape else 0
            place = self._place(state, parameter, alias)
            spec = state.slot(base, place).node.spec
            if spec is not None and len(spec.shape) == 3:
                rank //= spec.shape[0]
            scale = adapters.scaling(config, key, rank) * weight
            change = at(parameter)
            change.factors.append((a, b, scale))
            change.is_embedding = pair.is_embedding
            change.fan_in_fan_out |= bool(config.get("fan_in_fan_out"))
            if pair.bias is not None:
                at(f"{pair.module}.bias").added.append((held(pair.bias), scale))
        for parameter, name in whole.items():
            at(parameter).replaced.append((held(name), weight))

    def _parameters(
        self, state: State, config: Mapping[str, Any], pairs: list[Pair], alias: str
    ) -> list[tuple[Pair, str, str]]:
        """Every pair with its key for patterns and the parameter that it changes."""
        found = []
        modules: dict[str, list[Pair]] = {}
        for pair in pairs:
            modules.setdefault(pair.module, []).append(pair)
        for module, own in modules.items():
            leaves = _targeted(config, module)
            if not leaves and len(own) == 1 and not own[0].depth:
                found.append((own[0], module, f"{module}.weight"))
                continue
            if sorted(pair.depth for pair in own) != list(range(len(leaves))):
                raise StorageError(
                    f"the factors of {module} are not those of its target_parameters",
                    expected=f"{len(leaves)} pairs: {listing(leaves)}",
                    found=f"{len(own)} pairs",
                )
            for pair in own:
                leaf = leaves[len(leaves) - 1 - pair.depth]
                found.append((pair, f"{module}.{leaf}", f"{module}.{leaf}"))
        return found

    def _place(self, state: State, parameter: str, alias: str) -> str:
        """The name that a parameter has in the base.

        Raises:
            PlanError: there is none.
        """
        base = self._base(state)
        if not isinstance(base.expr, str):
            raise PlanError("lora_merge: to is a string here", where=self.to.mark)
        try:
            match = self.names.fullmatch(parameter)
            name = match.expand(base.expr) if match else None
        except (re.error, IndexError) as error:
            raise PlanError(f"lora_merge: from and to do not fit: {error}", where=self.to.mark) from None
        if name is None:
            raise PlanError(
                f"lora_merge: {alias} changes {parameter}, which `from` does not match",
                where=self.adapters.mark,
                found=self.names.pattern,
            )
        if not state.has(base.alias, name):
            near = nearest(name, state.names(base.alias))
            raise PlanError(
                f"lora_merge: {alias} changes {parameter}, but there is no {base.alias}::{name}",
                where=self.to.mark,
                found=f"nearest: {listing(near)}" if near else None,
                hint="give from and to as patterns if the names differ",
            )
        return name

    # -- what becomes of a parameter ----------------------------------------------------------------------------

    def _changed(self, state: State, node: Any, name: str, change: Changes) -> Any:
        """The new version of a parameter."""
        spec = node.spec
        if spec is None:
            return node
        state.check_plain(node)
        if change.replaced:
            node = self._replaced(state, node, change.replaced)
        if change.factors:
            a, b, _ = change.factors[0]
            op = AddFactors(self._is_transposed(spec, a.spec, b.spec, change), tuple(s for _, _, s in change.factors))
            node = state.apply(op, node, *(part for a, b, _ in change.factors for part in (a, b)))[0]
        if change.added:
            total = state.apply(Cast(WIDE), node)[0]
            for part, scale in change.added:
                scaled = state.apply(Scale(scale), state.apply(Cast(WIDE), part)[0])[0]
                total = state.apply(Add(), total, scaled)[0]
            node = state.apply(Cast(spec.dtype), total)[0]
        return node

    def _is_transposed(self, spec: Spec, a: Spec, b: Spec, change: Changes) -> bool:
        """Whether the weight is stored as [in, out]: its shape tells, unless it is square."""
        if change.is_embedding:
            return True
        out, inner = b.shape[0], a.shape[-1]
        fits = [spec.shape[-2:] == (out, inner), spec.shape[-2:] == (inner, out)]
        if all(fits):
            return self.experts == "in_out" if len(spec.shape) == 3 else change.fan_in_fan_out
        return fits[1]

    def _replaced(self, state: State, node: Any, parts: list[tuple[Any, float]]) -> Any:
        """The base with the differences to modules stored whole."""
        spec = node.spec
        if len(parts) == 1 and parts[0][1] == 1.0 and parts[0][0].spec.shape == spec.shape:
            return state.apply(Cast(spec.dtype), parts[0][0])[0]
        base = total = state.apply(Cast(WIDE), node)[0]
        for part, weight in parts:
            change = state.apply(Subtract(), state.apply(Cast(WIDE), part)[0], base)[0]
            total = state.apply(Add(), total, state.apply(Scale(weight), change)[0])[0]
        return state.apply(Cast(spec.dtype), total)[0]


def _is_output(module: str) -> bool:
    return module.rpartition(".")[2] in adapters.OUTPUTS


def _targeted(config: Mapping[str, Any], module: str) -> list[str]:
    """The parameters of a module that are targets themselves, in the order in which PEFT wraps them: as the module
    declares them, up before down."""
    given = config.get("target_parameters") or []
    if not isinstance(given, list) or not all(isinstance(target, str) for target in given):
        raise StorageError("target_parameters is not a list of names", found=repr(given)[:80])
    leaves = []
    for target in given:
        owner, _, leaf = target.rpartition(".")
        if owner == module or module.endswith(f".{owner}"):
            leaves.append(leaf)
    return sorted(dict.fromkeys(leaves), key=lambda leaf: "down" in leaf)
