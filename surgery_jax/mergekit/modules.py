"""Which tensors of a model each layout of a configuration is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.errors import PlanError, listing, nearest
from .configuration import MergeDocument, ModuleSlices
from .layers import LayerStack, is_entrance, place_of
from .models import Model, is_vocabulary

__all__ = ["Section", "sections_of"]

# Names that configurations have for parts of models, and how tensors are called there.
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "text_decoder": ("language_model", "text_model", "decoder", "model"),
    "language_model": ("text_model", "decoder", "model"),
    "vision_model": ("vision_tower", "visual", "vision_encoder"),
    "vision_tower": ("vision_model", "visual", "vision_encoder"),
    "multi_modal_projector": ("connector", "projector", "modality_projection", "merger"),
}


@dataclass(frozen=True)
class Section:
    """A part of a model that one layout makes: a stack of layers, or none, and the names of tensors outside of it.

    What is used before the layers comes from the first slice of the layout, what comes after from the last.
    """

    layout: ModuleSlices
    stack: LayerStack | None
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def sections_of(merge: MergeDocument, models: Sequence[Model]) -> list[Section]:
    """All sections of a merge, by the names of its models together.

    Raises:
        PlanError: it is not known what a layout is about.
    """
    stacks = models[0].stacks
    loose = _loose(models, stacks)
    if "" in merge.modules:
        layout = merge.modules[""]
        if not layout.whole and len(stacks) != 1:
            raise PlanError(
                "the model has several stacks of layers" if stacks else "the model has no layers",
                where=layout.mark,
                expected="modules: with slices for each of them" if stacks else "models",
                found=listing(stack.prefix for stack in stacks) if stacks else models[0].name,
            )
        if len(merge.modules) > 1:
            raise PlanError("the module default stands for all of the model", where=layout.mark, hint="leave it out")
        sections = [Section(layout, stack) for stack in stacks] or [Section(layout, None)]
        for name in loose:
            (sections[0].before if is_entrance(name) else sections[0].after).append(name)
        return sections
    return _named(merge, stacks, loose)


def _loose(models: Iterable[Model], stacks: Sequence[LayerStack]) -> list[str]:
    """Names outside of the stacks, of any of the models."""
    prefixes = {stack.prefix for stack in stacks}
    found: dict[str, None] = {}
    for model in models:
        for name in model.specs:
            place = place_of(name)
            if (place is None or place.prefix not in prefixes) and name not in model.hidden:
                found[name] = None
    return list(found)


def _named(merge: MergeDocument, stacks: Sequence[LayerStack], loose: Sequence[str]) -> list[Section]:
    """The sections of `modules`, whose names are parts of the tensors' names."""
    everything = [*(stack.prefix for stack in stacks), *loose]
    claims = _claims(merge, everything)
    sections = {module: [] for module in merge.modules}  # type: dict[str, list[Section]]
    for stack in stacks:
        if stack.prefix in claims:
            module = claims[stack.prefix]
            sections[module].append(Section(merge.modules[module], stack))
    for module, layout in merge.modules.items():
        if not sections[module]:
            sections[module].append(Section(layout, None))
    _share_out(merge, sections, claims, everything, loose)
    return [section for found in sections.values() for section in found]


def _claims(merge: MergeDocument, everything: Sequence[str]) -> dict[str, str]:
    """The module that each name belongs to, of those that one claims: that whose word comes last in it. An output
    layer that none claims belongs to the embedding."""
    claims: dict[str, tuple[int, str]] = {}  # where the module's word is in a name, and the module
    for module, layout in merge.modules.items():
        for word in (module, *_SYNONYMS.get(module, ())):
            mine = {name: name.split(".").index(word) for name in everything if word in name.split(".")}
            if mine:
                break
        else:
            known = dict.fromkeys(part for name in everything for part in name.split(".")[:3] if not part.isdigit())
            raise PlanError(
                f"no tensor belongs to the module {module}",
                where=layout.mark,
                expected=f"a part of names, such as {listing(nearest(module, known) or known)}",
            )
        for name, place in mine.items():
            claims[name] = max(claims.get(name, (-1, "")), (place, module), key=lambda claim: claim[0])
    found = {name: module for name, (_, module) in claims.items()}
    embedded = [found[name] for name in found if is_vocabulary(name) and is_entrance(name)]
    outputs = [name for name in everything if name not in found and is_vocabulary(name)]
    return found | (dict.fromkeys(outputs, embedded[0]) if embedded else {})


def _share_out(
    merge: MergeDocument,
    sections: Mapping[str, Sequence[Section]],
    claims: dict[str, str],
    everything: Sequence[str],
    loose: Sequence[str],
) -> None:
    """Give every tensor outside of stacks to its section; what no module claims belongs to the one without layers."""
    without = [module for module, found in sections.items() if found[0].stack is None]
    rest = [name for name in everything if name not in claims]
    if rest and (len(without) != 1 or any(name not in loose for name in rest)):
        raise PlanError(
            "tensors belong to no module",
            where=next(iter(merge.modules.values())).mark,
            found=listing(rest),
            hint="name a module for them, by a part of their names",
        )
    claims |= dict.fromkeys(rest, without[0] if without else "")
    for name in loose:
        section = sections[claims[name]][0]
        (section.before if is_entrance(name) else section.after).append(name)
