"""One document of a configuration as steps of a plan: tensors that are merged alike are one step."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..core.errors import Mark, Notice, PlanError, nearest
from ..core.specs import Spec
from ..kit.fields import fields_of
from ..language.nodes import Scalar
from ..merging.method import Method, find_method, methods, parameters
from .configuration import LayerSource, MergeDocument, Slice
from .layers import LayerStack, place_of
from .models import Model, Models, is_vocabulary
from .modules import Section
from .patterns import pattern_of
from .recipe import Recipe, Value
from .settings import Settings, resolve
from .tokens import Rows

__all__ = ["VOCABULARIES", "Planner", "check_parameters"]

VOCABULARIES = "say tokenizer: { source: union } (or base), or cut them with --unsafe-truncate-embeddings"

Parameters: TypeAlias = dict[str, Scalar]


@dataclass(frozen=True)
class Item:
    """One tensor of the output: its name, those of its sources (without the base), and of the base if it has one."""

    name: str
    sources: tuple[str, ...]
    base: str | None
    common: Parameters
    own: tuple[Parameters, ...]


@dataclass(frozen=True)
class Kind:
    """What items that go into one step have in common: slice, base, shifts of layers, and parameters."""

    part: Slice
    layer: tuple[int, ...] | None  # of the output and of every source, if these differ
    by_token: bool  # whether rows are tokens
    values: tuple[object, ...]


def check_parameters(settings: Settings, method: type[Method], notices: list[Notice]) -> None:
    """Notice parameters that no method has; those of other methods are ignored.

    Raises:
        PlanError: one is a slip of a parameter of the method.
    """
    own = fields_of(method)
    for name, where in settings.keys.items() if settings is not None else ():
        if name in own or any(name in fields_of(other) for other in methods().values()):
            continue
        near = nearest(name, own, 1, likeness=0.8)
        if near and settings is not None and near[0] not in settings.entries:
            raise PlanError(f"{method.name} has no parameter {name!r}", where=where, hint=f"did you mean {near[0]}?")
        notices.append(Notice(f"no method has a parameter {name!r}, which is ignored", where=where))


class Planner:
    """Plans the tensors of one merge. `alias` is where they go."""

    def __init__(
        self,
        merge: MergeDocument,
        models: Models,
        recipe: Recipe,
        alias: str,
        seed: int | None,
        rows: Rows,
        *,
        partial: bool = False,
    ) -> None:
        self.merge, self.models, self.recipe, self.alias, self.seed, self.rows = (
            merge,
            models,
            recipe,
            alias,
            seed,
            rows,
        )
        self.method: type[Method] = find_method(str(merge.method.value), merge.method.mark)
        self.each = parameters(self.method, of_model=True)
        self.declared = {key: field for key, (_, field) in fields_of(self.method).items()}
        self.partial = partial  # whether a tensor is merged from those models that have it
        self.made: dict[str, Spec] = {}
        self.order: dict[
            str, list[tuple[Model, int]]
        ] = {}  # of each stack made of slices: the first source's layers, by prefix
        self._layered: dict[tuple[int, str], dict[int, list[str]]] = {}

    def section(self, section: Section) -> None:
        """Steps for all tensors of a section."""
        slices = [self._with_base(part, section) for part in section.layout.slices]
        settings = section.layout.settings
        for part in slices:
            self._check(part)
        groups: dict[Kind, list[Item]] = defaultdict(list)

        def add(part: Slice, names: Sequence[str], name: str, position: float) -> None:
            self._check_names(part, names, name)
            item = self._item(part, settings, names, name, position)
            groups[self._kind(part, item)].append(item)

        for name in section.before:
            add(slices[0], [name] * len(slices[0].sources), name, 0.0)
        count = 0
        if section.stack is not None:
            order: list[tuple[Model, int]] = []
            for part in slices:
                for position, numbers in self._layers(part, section.stack):
                    order.append((self._leading(part, numbers), numbers[0]))
                    for rest in self._rests(part, section.stack, numbers):
                        name = f"{section.stack.prefix}.{count}.{rest}"
                        inside = [f"{section.stack.prefix}.{number}.{rest}" for number in numbers]
                        add(part, inside, name, position)
                    count += 1
            if not section.layout.whole:
                self.order[section.stack.prefix] = order
        for name in section.after:
            having = self._having(slices[-1], name) if self.partial else slices[-1]
            if having is not None:
                add(having, [name] * len(having.sources), name, 0.0)
        for kind, items in groups.items():
            self._step(kind, items)

    def _leading(self, part: Slice, numbers: Sequence[int]) -> Model:
        """The model whose configuration tells about a layer: that which gives config.json, if it has the layer at the
        place of the first source, else the first."""
        first = self.merge.references[0]
        same = [s.model for s, number in zip(part.sources, numbers, strict=True) if number == numbers[0]]
        return self.models.get(first if first in same else part.sources[0].model)

    # -- slices -------------------------------------------------------------------------------------------------------

    def _with_base(self, part: Slice, section: Section) -> Slice:
        """A slice of whole models, where the base is one of them also if it is not listed."""
        base = self.merge.base
        if section.layout.whole and base is not None and all(source.model != base for source in part.sources):
            return Slice((*part.sources, LayerSource(base, None, None, base.mark)), part.base, part.settings, part.mark)
        return part

    def _base(self, part: Slice) -> LayerSource | None:
        """The source that is the base, if the method has any use for one."""
        base = part.base or self.merge.base
        if self.method.base == "none" or base is None:
            return None
        return next((source for source in part.sources if source.model == base), None)

    def _check(self, part: Slice) -> None:
        """That a slice has as many models as the method takes, and a base where it needs one."""
        name, base = self.method.name, self._base(part)
        if self.method.base == "needed" and base is None:
            given = part.base or self.merge.base
            raise PlanError(
                f"{name} needs a base model",
                where=self.merge.method.mark if given is None else part.mark,
                expected="base_model: one of the models"
                if given is None
                else f"{given} among the sources of the slice",
            )
        count = len(part.sources) - (base is not None)
        most = self.method.most
        if count < self.method.fewest or (most is not None and count > most):
            least = self.method.fewest
            wanted = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
            raise PlanError(
                f"{name} cannot merge {count} models" + (" and a base" if base is not None else ""),
                where=part.mark,
                expected=f"{wanted} beside the base" if base is not None else wanted,
                found=", ".join(str(source.model) for source in part.sources),
            )

    def _layers(self, part: Slice, stack: LayerStack) -> Iterator[tuple[float, list[int]]]:
        """For every layer of a slice its position in gradients and the numbers of the sources' layers."""
        ranges = [self._range(source, stack) for source in part.sources]
        lengths = [stop - first for first, stop in ranges]
        for source, length in zip(part.sources, lengths, strict=True):
            if length != lengths[0]:
                raise PlanError(
                    "models have different numbers of layers",
                    where=source.mark,
                    expected=f"{lengths[0]}, as {part.sources[0].model} has",
                    found=f"{length} of {source.model}",
                    hint="slices: with a layer_range for each",
                )
        for number in range(lengths[0]):
            position = number / (lengths[0] - 1) if lengths[0] > 1 else 1.0
            yield position, [first + number for first, _ in ranges]

    def _range(self, source: LayerSource, stack: LayerStack) -> tuple[int, int]:
        count = next((s.count for s in self._model(source).stacks if s.prefix == stack.prefix), 0)
        first, stop = source.layers or (0, count)
        if stop > count or not count:
            raise PlanError(
                f"{source.model} has no layer {stop - 1}"
                if count
                else f"{source.model} has no layers {stack.prefix}.0",
                where=source.mark,
                expected=f"layers of 0 to {count}" if count else f"layers as {stack.prefix} of the other models",
                found=f"[{first}, {stop}]"
                if count
                else f"its layers: {[s.prefix for s in self._model(source).stacks]}",
            )
        return first, stop

    def _model(self, source: LayerSource) -> Model:
        return self.models.get(source.model)

    def _rests(self, part: Slice, stack: LayerStack, numbers: Sequence[int]) -> list[str]:
        """The names of the tensors of a layer, which all sources have."""
        found: dict[str, None] = {}
        for source, number in zip(part.sources, numbers, strict=True):
            model = self._model(source)
            for rest in self._of_layer(model, stack.prefix).get(number, ()):
                if f"{stack.prefix}.{number}.{rest}" not in model.hidden:
                    found[rest] = None
        return list(found)

    def _of_layer(self, model: Model, prefix: str) -> dict[int, list[str]]:
        key = (id(model), prefix)
        if key not in self._layered:
            table: dict[int, list[str]] = defaultdict(list)
            for name in model.specs:
                place = place_of(name)
                if place is not None and place.prefix == prefix:
                    table[place.number].append(place.rest)
            self._layered[key] = table
        return self._layered[key]

    # -- tensors ------------------------------------------------------------------------------------------------------

    def _having(self, part: Slice, name: str) -> Slice | None:
        """The slice with only the models that have a tensor; None if it is that of a single one, which is copied."""
        having = tuple(source for source in part.sources if name in self._model(source).specs)
        if len(having) > 1:
            found = Slice(having, part.base, part.settings, part.mark)
            if len(having) < len(part.sources):
                self._check(found)
            return found
        model = self._model(having[0])
        payload = {"from": f"{model.alias}::{re.escape(name)}", "to": f"{self.alias}::{name}"}
        self.recipe.step("copy", payload, having[0].mark, self.alias)
        return None

    def _check_names(self, part: Slice, names: Sequence[str], out: str) -> None:
        """That all sources have a tensor, of one shape."""
        have = [
            (source, name)
            for source, name in zip(part.sources, names, strict=True)
            if name in self._model(source).specs
        ]
        first, known = have[0]
        shape = self._model(first).specs[known].shape
        for source, name in zip(part.sources, names, strict=True):
            spec = self._model(source).specs.get(name)
            if spec is None:
                raise PlanError(
                    f"{source.model} has no tensor {name}",
                    where=source.mark,
                    expected=f"{list(shape)}, as {known} of {first.model}",
                    hint=self._similar(source, name),
                )
            if spec.shape != shape and not (self.rows.count is not None and out in self.rows.names):
                rows = is_vocabulary(out) and spec.shape[1:] == shape[1:]
                raise PlanError(
                    f"{out} has different shapes",
                    where=source.mark,
                    expected=f"{list(shape)}, as in {first.model}",
                    found=f"{list(spec.shape)} in {source.model}",
                    hint=f"the vocabularies differ: {VOCABULARIES}" if rows else None,
                )

    def _similar(self, source: LayerSource, name: str) -> str | None:
        near = nearest(name, self._model(source).specs, 1, likeness=0.8)
        return f"the most similar that it has is {near[0]}" if near else None

    def _item(self, part: Slice, settings: Settings, names: Sequence[str], out: str, position: float) -> Item:
        shared = (part.settings, settings, self.merge.settings)
        base = self._base(part)
        common: Parameters = {}
        for key, field in self.declared.items():
            if key in self.each:
                continue
            found = resolve(key, field.kind, shared, out, position)
            if found is not None:
                common[key] = found
            elif field.required:
                raise self._missing(key, out, self.merge.method.mark, "")
        sources, base_name = [], None
        own: list[Parameters] = []
        for source, name in zip(part.sources, names, strict=True):
            if source is base:
                base_name = name
                continue
            sources.append(name)
            scopes = [source.settings, *self._same(part, source), *shared]
            own.append({})
            for key in self.each:
                found = resolve(key, self.declared[key].kind, scopes, name, position)
                if found is not None:
                    own[-1][key] = found
                elif self.declared[key].required:
                    raise self._missing(key, name, source.mark, f" of {source.model}")
        return Item(out, tuple(sources), base_name, common, tuple(own))

    def _same(self, part: Slice, source: LayerSource) -> list[Settings]:
        """What other entries of the slice say of the same model."""
        return [other.settings for other in part.sources if other is not source and other.model == source.model]

    def _missing(self, key: str, tensor: str, where: Mark, whose: str) -> PlanError:
        return PlanError(
            f"{self.method.name} needs {key}{whose}",
            where=where,
            found=f"none for {tensor}",
            hint=f"parameters: {{ {key}: … }}; filters need one without `filter` for all other tensors",
        )

    # -- steps --------------------------------------------------------------------------------------------------------

    def _kind(self, part: Slice, item: Item) -> Kind:
        places = [place_of(name) for name in (item.name, *item.sources, *([item.base] if item.base else []))]
        layer = None
        if places[0] is not None and any(p is None or p.number != places[0].number for p in places):
            layer = tuple(p.number for p in places if p is not None)
        values = [
            tuple((key, type(v.value), v.value) for key, v in given.items()) for given in (item.common, *item.own)
        ]
        return Kind(part, layer, item.name in self.rows.names, tuple(values))

    def _step(self, kind: Kind, items: Sequence[Item]) -> None:
        """One step for items of a kind."""
        base = self._base(kind.part)
        sources = [source for source in kind.part.sources if source is not base]
        payload: dict[str, Value] = {"method": self.merge.method}
        lead = None
        if base is not None:
            lead = self._from(base, [item.base or "" for item in items], kind)
            payload["base"] = lead
        models: list[dict[str, Value]] = []
        for number, source in enumerate(sources):
            reference = self._from(source, [item.sources[number] for item in items], kind)
            alias, _, pattern = str(reference.value).partition("::")
            lead = lead or reference
            is_same = reference is not lead and kind.layer is None and str(lead.value).endswith(f"::{pattern}")
            models.append({alias: {**({} if is_same else {"from": reference}), **items[0].own[number]}})
        by_alias = {alias: values for entry in models for alias, values in entry.items()}
        payload["models"] = by_alias if len(by_alias) == len(models) else models
        payload["to"] = self._to(items[0].name, kind)
        payload |= {
            key: dtype.name
            for key, dtype in (("dtype", self.merge.dtype), ("out_dtype", self.merge.out_dtype))
            if dtype
        }
        if "seed" in self.declared:
            payload["seed"] = self.seed
        self.recipe.step("merge", payload | items[0].common, kind.part.mark, self.alias)
        for item in items:
            first = self._model(sources[0]).specs[item.sources[0]]
            dtype = self.merge.out_dtype or self.merge.dtype or first.dtype
            shape = first.shape
            if item.name in self.rows.names and self.rows.count is not None:
                shape = (self.rows.count, *shape[1:])
            self.made[item.name] = Spec(shape, dtype if first.dtype.is_float else first.dtype)

    def _from(self, source: LayerSource, names: Sequence[str], kind: Kind) -> Scalar:
        """The reference to what a source gives; its group is what stands for `\\1` in the names of the results."""
        model = self._model(source)
        if kind.layer is None:
            alias = self.rows.alias(model, names[0])
            among = model.specs if alias == model.alias else [name for name in model.specs if name in self.rows.names]
            return Scalar(f"{alias}::({pattern_of(names, among)})", source.mark)
        place = place_of(names[0])
        assert place is not None
        rests = [name.removeprefix(f"{place.prefix}.{place.number}.") for name in names]
        there = self._of_layer(model, place.prefix)[place.number]
        pattern = ".+" if len(rests) == len(there) else "|".join(map(re.escape, sorted(rests)))
        return Scalar(rf"{model.alias}::{re.escape(place.prefix)}\.{place.number}\.({pattern})", source.mark)

    def _to(self, name: str, kind: Kind) -> str:
        if kind.layer is None:
            return f"{self.alias}::\\1"
        place = place_of(name)
        assert place is not None
        return f"{self.alias}::{place.prefix}.{place.number}.\\1"
