"""`lora_merge`: adapters into the weights that they change."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..core import adapters
from ..core.dtypes import BY_NAME
from ..core.errors import PlanError, StorageError, listing, nearest
from ..core.model_config import CONFIG
from ..core.regexes import check_time
from ..core.specs import Spec
from ..kit.base import Directive, boolean, choice, expressions, pattern, reference, text
from ..kit.base import node as any_node
from ..kit.state import State, Value
from ..language import document
from ..language.document import Node, Scalar
from ..language.names import Reference
from ..lora import facts as adapter_facts
from ..lora.axes import Asked, Axes
from ..lora.experts import ExpertPart, factors_of, fused, with_fused
from ..lora.factors import AddFactors
from ..lora.outputs import Outputs
from ..lora.targets import Adapter, Places, Target, targets_of
from .add import Add
from .cast import Cast
from .reshape import Reshape
from .scale import Scale
from .subtract import Subtract

WIDE = BY_NAME["float32"]


@dataclass(frozen=True)
class StoredPair:
    """A pair of factors, the evidence of how its weight is stored, its scale, and if the base holds that weight as one
    of a fused parameter, which."""

    axes: Axes
    target: Target
    scale: float
    piece: ExpertPart | None = None


@dataclass(eq=False)
class Changes:
    """What the adapters do to one parameter of the base, in their order."""

    factors: list[StoredPair] = field(default_factory=list)
    added: list[tuple[Adapter, str, float]] = field(default_factory=list)  # changes of a bias, with the scale
    replaced: list[tuple[Adapter, str]] = field(default_factory=list)  # the whole parameter
    start: Value | None = None  # what it begins as if the base has it not


@dataclass(frozen=True)
class LoraMerge(Directive):
    """Merge LoRA adapters of PEFT into the weights they change.

    Every changed weight becomes base + sum of weight * scaling * B @ A, computed in float32 (float64 for float64) and
    rounded once to the dtype it has; alpha, the patterns of ranks and alphas, rsLoRA, the axes of the layer's class,
    embeddings, convolutions and fused experts are respected. Of a module stored whole the difference to the base is
    added, with the weight; one adapter of weight 1 replaces it, also by another number of rows, and adds it where the
    base has none. Factors for what the base has not, and adapters that are no plain LoRA, are errors. Where shapes do
    not tell how a square weight is stored, files beside the adapter and the base must, or the step.
    """

    word = "lora_merge"
    computes = True
    examples = (
        "lora_merge: { adapters: style, to: base }",
        "lora_merge: { adapters: { style: 0.7, task: 1.0 }, to: base }",
        "lora_merge: { adapters: style, from: 'transformer\\.(.+)', to: 'base::\\1' }",
        "lora_merge: { adapters: style, to: base, tied: lm_head }",
    )

    adapters: Node = any_node(
        "aliases of adapters: one, a list, or a mapping to weights", kind="alias, list or mapping"
    )
    to: Node = reference("alias to change; or with :: a template of the names there", kind="alias or template")
    names: re.Pattern[str] = pattern(
        "of the adapters' parameters, for a template in `to`", re.compile("(.+)"), key="from"
    )
    fan_in_fan_out: bool | None = boolean("square weights are stored as [in, out] (Conv1D), where nothing tells", None)
    experts: str | None = choice("axes of fused experts' weights, where nothing tells", ("out_in", "in_out"), None)
    order: tuple[re.Pattern[str], ...] = expressions(
        "parameters of fused experts as their class declares them, where nothing tells"
    )
    tied: str | None = text("output layer of the base that shares the weight of the embedding; none if none does", None)

    def build(self, state: State) -> None:
        base = self._base(state)
        places = Places(
            base.alias,
            lambda parameter: self._renamed(base, parameter),
            dict.fromkeys(state.names.of(base.alias)),
            _specs(state, base.alias),
        )
        model = adapter_facts.describe(state.files.document(base.alias, CONFIG))
        changes: dict[str, Changes] = {}
        outputs = Outputs(places, self.tied, model)
        for alias, weight in self._weights().items():
            self._check_alias(state, alias)
            text, names = state.files.metadata(alias).get(adapters.CONFIG), state.names.of(alias)
            with self._located(alias):
                adapter = Adapter.read(alias, weight, text, names, _specs(state, alias))
                self._collect(adapter, places, model, outputs, changes)
        self._rebind(state, base.alias, outputs, changes)

    def _rebind(self, state: State, base: str, outputs: Outputs, changes: dict[str, Changes]) -> None:
        """Give every changed parameter its new version, and those that are new their first."""
        with self._located(base):
            untied = outputs.untied()
        if untied:
            name, source = untied
            changes.setdefault(name, Changes()).start = state.versions.slot(base, source, reads=1).node
        for line in outputs.told():
            state.speech.say(f"lora_merge: {line}")
        for name, change in changes.items():
            node = change.start
            if node is None and state.names.has(base, name):
                node = state.versions.slot(base, name, reads=1).node
            node = self._changed(state, node, name, change)
            if state.names.has(base, name):
                state.versions.rebind(base, name, node)
            else:
                state.versions.create(base, name, node)
            state.speech.tell(f"lora_merge: {name}")
        if untied:
            self._check_rows(state, base, *untied)
        told = state.files.document(base, CONFIG)
        shapes = {
            name: spec.shape for name in changes if (spec := state.versions.slot(base, name).node.spec) is not None
        }
        if told is not None and (follows := outputs.followed(told, shapes)) != told:
            state.files.put_document(base, CONFIG, follows)
            state.speech.say(f"lora_merge: {CONFIG} says now what the embedding and the output layer have become")

    def _check_rows(self, state: State, base: str, layer: str, embedding: str) -> None:
        """Raise a PlanError if an adapter gave new rows to an embedding, but not to the output layer that shared it."""
        one, other = (state.versions.slot(base, name).node.spec for name in (layer, embedding))
        if one is not None and other is not None and one.shape != other.shape:
            raise PlanError(
                f"lora_merge: {embedding} gets another number of rows, but {layer}, which shares it, does not",
                where=self.adapters.mark,
                expected=str(other),
                found=str(one),
                hint="give the base as many rows first, as the model for the adapter was given",
            )

    def contributes(self, state: State) -> str | None:
        return self._base(state).alias

    @contextmanager
    def _located(self, what: str) -> Iterator[None]:
        """Errors of what adapters say, at the place of the plan that names them."""
        try:
            yield
        except StorageError as error:
            raise PlanError(
                f"lora_merge: {what}: {error.problem}",
                where=self.adapters.mark,
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            ) from None

    def _base(self, state: State) -> Reference:
        """The template of the parameters' names, with the alias that changes."""
        to = self.to
        if isinstance(to, Scalar) and isinstance(to.value, str) and "::" not in to.value:
            to = Scalar(f"{to.value}::\\g<0>", to.mark)
        return state.names.reference(to, key="to", slices=False)

    def _renamed(self, base: Reference, parameter: str) -> str | None:
        """The name that a parameter of an adapter has in the base; None if `from` does not match it.

        Raises:
            PlanError: `from` and `to` do not go together.
        """
        if not isinstance(base.expr, str):
            raise PlanError("lora_merge: to is a string here", where=self.to.mark)
        try:
            match = self.names.fullmatch(parameter)
            return match.expand(base.expr) if match else None
        except (re.error, IndexError) as error:
            raise PlanError(f"lora_merge: from and to do not fit: {error}", where=self.to.mark) from None

    def _check_alias(self, state: State, alias: str) -> None:
        if alias not in state.names.aliases():
            near = nearest(alias, state.names.aliases(), 1)
            raise PlanError(
                f"lora_merge.adapters: unknown model alias: {alias!r}",
                where=self.adapters.mark,
                expected="one of " + ", ".join(state.names.aliases()),
                hint=f"did you mean {near[0]}?" if near else "name the adapter's directory in inputs",
            )

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

    def _collect(
        self,
        adapter: Adapter,
        places: Places,
        model: adapter_facts.ModelFacts,
        outputs: Outputs,
        changes: dict[str, Changes],
    ) -> None:
        """Note what an adapter does to each parameter.

        Raises:
            StorageError: it does not agree with itself, or with the base.
        """
        check_time(self.names, [*(pair.module for pair in adapter.pairs), *adapter.whole], self.to.mark)
        made = fused(places.names, places.spec) if adapter.config.get("target_parameters") else {}
        known = outputs.with_tied(with_fused(places, made))
        adapter = outputs.of_one_kind(adapter)
        targets, missing = targets_of(adapter, known, self.order, model)
        outputs.check_tied(adapter, missing)
        if missing:
            raise known.missing(adapter.alias, missing)
        axes = Axes(adapter, targets, known, model, Asked(self.fan_in_fan_out, self.experts))
        for target in targets:
            scale = adapter.weight * target.pair.times
            if target.rank:  # else its factors do not fit, which is told where they are added
                scale *= adapters.scaling(adapter.config, target.key, target.rank)
            for piece in made[target.place][1] if target.place in made else (None,):
                place = target.place if piece is None else piece.place
                changes.setdefault(place, Changes()).factors.append(StoredPair(axes, target, scale, piece))
            outputs.note(adapter, target.place, target.pair.is_embedding)
            if target.pair.bias is not None:
                bias = known.find(f"{target.pair.module}.bias")
                if bias is None:
                    raise known.missing(adapter.alias, [f"{target.pair.module}.bias"])
                changes.setdefault(bias, Changes()).added.append((adapter, target.pair.bias, scale))
        for parameter, held in adapter.whole.items():
            place = known.find(parameter) or outputs.new(adapter, parameter)
            if place in made:
                raise places.missing(adapter.alias, [parameter])
            changes.setdefault(place, Changes()).replaced.append((adapter, held))
            outputs.note(adapter, place, False)

    # -- what becomes of a parameter ----------------------------------------------------------------------------

    def _changed(self, state: State, node: Value | None, name: str, change: Changes) -> Value:
        """The new version of a parameter."""
        if node is not None and node.spec is None:
            return node
        if node is not None:
            state.versions.check_plain(node)
        if change.replaced:
            node = self._replaced(state, node, name, change.replaced)
        assert node is not None  # what the base has not is stored whole in an adapter
        if node.spec is not None and change.factors:
            node = self._with_factors(state, node, change)
        if node.spec is not None and change.added:
            dtype = node.spec.dtype
            total = state.versions.compute(Cast(WIDE), node)
            for adapter, held, scale in change.added:
                part = state.versions.slot(adapter.alias, held, reads=1).node
                scaled = state.versions.compute(Scale(scale), state.versions.compute(Cast(WIDE), part))
                total = state.versions.compute(Add(), total, scaled)
            node = state.versions.compute(Cast(dtype), total)
        return node

    def _with_factors(self, state: State, node: Value, change: Changes) -> Value:
        """A weight with the products of factors; those of a convolution are of its weight as a matrix."""
        shape = state.versions.spec(node).shape
        turned, scales, parts = [], [], []
        for one in change.factors:
            alias, target = one.axes.adapter.alias, one.target
            with self._located(alias):
                turned.append(one.axes.is_transposed(target, target.base.shape if one.piece else shape))
            scales.append(one.scale)
            pair = [state.versions.slot(alias, held, reads=1).node for held in (target.pair.a, target.pair.b)]
            if one.piece is not None:
                pair = factors_of(state, one.piece, target, turned[-1], *pair)
            if len(target.a.shape) > 2:
                pair = [state.versions.compute(Reshape(_matrix(state.versions.spec(part))), part) for part in pair]
            parts += pair
        op = AddFactors(tuple(turned), tuple(scales))
        if len(change.factors[0].target.a.shape) == 2:
            return state.versions.compute(op, node, *parts)
        flat = state.versions.compute(Reshape(_matrix(state.versions.spec(node))), node)
        return state.versions.compute(Reshape(shape), state.versions.compute(op, flat, *parts))

    def _replaced(self, state: State, node: Value | None, name: str, given: list[tuple[Adapter, str]]) -> Value:
        """The base with the differences to modules stored whole."""
        parts = [(adapter, state.versions.slot(adapter.alias, held, reads=1).node) for adapter, held in given]
        broken = next((part for _, part in parts if part.spec is None), None)
        if broken is not None:
            return broken
        specs = [(adapter, state.versions.spec(part)) for adapter, part in parts]
        (first, part), *more = parts
        if node is None:
            self._check_alone(None, name, specs)
            return part
        shape, spec = specs[0][1].shape, state.versions.spec(node)
        if shape != spec.shape or (first.weight == 1.0 and not more):
            self._check_alone(spec, name, specs)
            if shape != spec.shape:
                state.speech.say(
                    f"lora_merge: {name} is that of {first.alias}, {list(shape)} for {list(spec.shape)}"
                    + (f": vocab_size is {shape[0]}" if len(shape) == 2 else "")
                )
            return state.versions.compute(Cast(spec.dtype), part)
        if any(other.shape != spec.shape for _, other in specs):
            self._check_alone(spec, name, specs)
        base = total = state.versions.compute(Cast(WIDE), node)
        for adapter, part in parts:
            change = state.versions.compute(Subtract(), state.versions.compute(Cast(WIDE), part), base)
            total = state.versions.compute(Add(), total, state.versions.compute(Scale(adapter.weight), change))
        return state.versions.compute(Cast(spec.dtype), total)

    def _check_alone(self, spec: Spec | None, name: str, parts: list[tuple[Adapter, Spec]]) -> None:
        """Raise a PlanError unless one adapter, of weight 1, gives a tensor that cannot be mixed with the base's, and
        differs from it in no more than its rows."""
        adapter, part = parts[0]
        fits = spec is None or (len(spec.shape) == len(part.shape) and spec.shape[1:] == part.shape[1:])
        if len(parts) == 1 and adapter.weight == 1.0 and fits:
            return
        listed = listing(f"{one.alias} (weight {one.weight:g}): {held}" for one, held in parts)
        raise PlanError(
            f"lora_merge: {name} is stored whole in {adapter.alias}, and cannot be mixed with that of the base",
            where=self.adapters.mark,
            expected="one adapter, of weight 1, with the same lengths but for the rows"
            if spec is not None
            else "one adapter, of weight 1",
            found=f"{'none in the base' if spec is None else f'{spec} in the base'}; {listed}",
            hint="give the base as many rows first, as the model for the adapter was given" if fits and spec else None,
        )


def _specs(state: State, alias: str) -> Callable[[str], Spec | None]:
    """Shape and dtype of every tensor of an alias; None of one that an earlier step failed to make."""
    return lambda name: state.versions.slot(alias, name).node.spec


def _matrix(spec: Spec) -> tuple[int, int]:
    """The shape of a convolution's weight as a matrix."""
    return spec.shape[0], math.prod(spec.shape[1:])
