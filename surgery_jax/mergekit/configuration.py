"""Configurations of merges: what their YAML says, with the place of every value. Knows no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..core.dtypes import BY_NAME, DType
from ..core.errors import Mark, Notice, PlanError, listing, nearest
from ..language import nodes
from ..language.nodes import Mapping, Node, Scalar, shown
from .references import ModelReference, reference
from .settings import Settings, check_settings, whole_of

__all__ = [
    "LayerSource",
    "MergeDocument",
    "ModuleSlices",
    "Slice",
    "Tokens",
    "check_known",
    "check_names",
    "dtype_of",
    "given_in",
    "merge_of",
]

KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
LAYOUTS = ("models", "slices", "modules")
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LayerSource:
    """A model of a slice: its layers from `first` to before `stop`, or all where they are None."""

    model: ModelReference
    layers: tuple[int, int] | None
    settings: Settings
    mark: Mark


@dataclass(frozen=True, eq=False)
class Slice:
    """Consecutive layers of the output, each merged from one layer of every source."""

    sources: tuple[LayerSource, ...]
    base: ModelReference | None
    settings: Settings
    mark: Mark


@dataclass(frozen=True, eq=False)
class ModuleSlices:
    """The slices of a module, or of the whole model."""

    slices: tuple[Slice, ...]
    settings: Settings
    whole: bool  # whether its models are merged with all their layers
    mark: Mark


@dataclass(frozen=True)
class Tokens:
    """What the tokenizer of the output is: `source` is union, base, or a model; `tokens` are rows of single tokens."""

    source: str | ModelReference
    tokens: Mapping | None
    multiple_of: int
    mark: Mark


@dataclass(frozen=True, eq=False)
class MergeDocument:
    """One document. `modules` has one layout, under the empty name, unless the document has several."""

    method: Scalar
    modules: dict[str, ModuleSlices]
    base: ModelReference | None
    dtype: DType | None
    out_dtype: DType | None
    settings: Settings
    tokens: Tokens | None
    template: Scalar | None
    name: str | None
    mark: Mark

    @property
    def references(self) -> list[ModelReference]:
        """Every model once: the base, then the others in the order of the document."""
        found = [self.base] if self.base else []
        for layout in self.modules.values():
            for part in layout.slices:
                found += [source.model for source in part.sources] + ([part.base] if part.base else [])
        return list(dict.fromkeys(found))

    @property
    def all_settings(self) -> list[Settings]:
        """Every section `parameters`."""
        found = [self.settings]
        for layout in self.modules.values():
            found.append(layout.settings)
            for part in layout.slices:
                found += [part.settings, *(source.settings for source in part.sources)]
        return found


def check_known(node: Mapping, allowed: Sequence[str], what: str, notices: list[Notice]) -> None:
    """Notice keys that mean nothing: configurations in use have them, and they have always been ignored.

    Raises:
        PlanError: one is a slip of a key that means something.
    """
    for key in node.entries:
        if key in allowed:
            continue
        near = nearest(key, allowed, 1, likeness=0.8)
        if near and near[0] not in node.entries:
            raise PlanError(f"{what} has an unknown key {key!r}", where=node.keys[key], hint=f"did you mean {near[0]}?")
        notices.append(Notice(f"{what}: {key!r} means nothing here and is ignored", where=node.keys[key]))


def merge_of(node: Node, notices: list[Notice]) -> MergeDocument:
    """A document as a merge; what is ignored is added to `notices`.

    Raises:
        PlanError: what is wrong with it.
    """
    if not isinstance(node, Mapping):
        raise PlanError("a configuration is a mapping", where=node.mark, expected=listing(KEYS), found=shown(node))
    check_known(node, KEYS, "the configuration", notices)
    method = given_in(node, "merge_method")
    if not isinstance(method, Scalar) or not isinstance(method.value, str):
        where = node.mark if method is None else method.mark
        raise PlanError("the configuration names no merge_method", where=where, expected="merge_method: linear, …")
    template = given_in(node, "chat_template")
    if template is not None and not (isinstance(template, Scalar) and isinstance(template.value, str)):
        raise PlanError("chat_template is a text", where=template.mark, found=shown(template))
    name = given_in(node, "name")
    if name is not None and not (isinstance(name, Scalar) and isinstance(name.value, str) and name.value):
        raise PlanError("name is a word", where=name.mark, found=shown(name))
    return MergeDocument(
        method,
        _modules(node, notices),
        _reference(node, "base_model"),
        dtype_of(node, "dtype"),
        dtype_of(node, "out_dtype"),
        check_settings(node.entries.get("parameters"), "parameters"),
        _tokens(node, notices),
        template,
        None if name is None else str(name.value),
        node.mark,
    )


def check_names(merges: Sequence[MergeDocument]) -> None:
    """That several documents have different names, and one at most none.

    Raises:
        PlanError: they have not.
    """
    seen: dict[str | None, MergeDocument] = {}
    for merge in merges:
        if merge.name in seen:
            what = "two configurations have no name" if merge.name is None else f"two merges are called {merge.name!r}"
            raise PlanError(what, where=merge.mark, found=f"the other at {seen[merge.name].mark}", hint="name: …")
        seen[merge.name] = merge


def given_in(node: Mapping, key: str) -> Node | None:
    """The value of a key, if it is there and not null."""
    found = node.entries.get(key)
    return None if isinstance(found, Scalar) and found.value is None else found


def _reference(node: Mapping, key: str) -> ModelReference | None:
    found = given_in(node, key)
    return None if found is None else reference(found, key)


def dtype_of(node: Mapping, key: str) -> DType | None:
    """The floating dtype that a key names, if it is there.

    Raises:
        PlanError: there is no such dtype.
    """
    found = given_in(node, key)
    if found is None:
        return None
    name = str(found.value).removeprefix("torch.") if isinstance(found, Scalar) else ""
    known = BY_NAME.get(name)
    if known is None or not known.is_float:
        floats = [word for word, dtype in BY_NAME.items() if dtype.is_float and dtype.bits >= 16]
        near = nearest(name, floats, 1)
        raise PlanError(
            f"{key} is no floating dtype",
            where=found.mark,
            expected=", ".join(floats),
            found=shown(found),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return known


# ------------------------------------------------------------------------------------------------------------ layouts


def _modules(node: Mapping, notices: list[Notice]) -> dict[str, ModuleSlices]:
    given = [key for key in LAYOUTS if given_in(node, key) is not None]
    if len(given) != 1:
        raise PlanError(
            "the configuration has nothing to merge" if not given else f"{' and '.join(given)} at once",
            where=node.mark if not given else node.keys[given[1]],
            expected="one of models, slices and modules",
        )
    if given[0] != "modules":
        return {"": _layout(node, None, notices)}
    modules = node.entries["modules"]
    if not isinstance(modules, Mapping) or not modules.entries:
        raise PlanError("modules is a mapping", where=modules.mark, expected="names and models or slices")
    found = {}
    for name, module in modules.entries.items():
        if not isinstance(module, Mapping):
            raise PlanError(f"the module {name} is a mapping", where=module.mark, found=shown(module))
        check_known(module, ("models", "slices", "parameters"), f"the module {name}", notices)
        if len([key for key in ("models", "slices") if given_in(module, key) is not None]) != 1:
            raise PlanError(f"the module {name} has either models or slices", where=module.mark)
        settings = check_settings(module.entries.get("parameters"), "parameters")
        found["" if name == "default" else name] = _layout(module, settings, notices)
    return found


def _layout(node: Mapping, settings: Settings, notices: list[Notice]) -> ModuleSlices:
    models, slices = given_in(node, "models"), given_in(node, "slices")
    if models is not None:
        sources = _each(models, "models", partial(_model, notices))
        _check_twice(sources)
        return ModuleSlices((Slice(sources, None, None, models.mark),), settings, True, models.mark)
    assert slices is not None
    return ModuleSlices(_each(slices, "slices", partial(_slice, notices)), settings, False, slices.mark)


def _each(node: Node, what: str, parse: Callable[[Mapping], T]) -> tuple[T, ...]:
    if not isinstance(node, nodes.Sequence) or not node.items:
        raise PlanError(f"{what} is a list", where=node.mark, expected="at least one entry", found=shown(node))
    found = []
    for item in node.items:
        if not isinstance(item, Mapping):
            raise PlanError(f"an entry of {what} is a mapping", where=item.mark, found=shown(item))
        found.append(parse(item))
    return tuple(found)


def _model(notices: list[Notice], node: Mapping) -> LayerSource:
    check_known(node, ("model", "parameters"), "an entry of models", notices)
    return LayerSource(_named(node), None, check_settings(node.entries.get("parameters"), "parameters"), node.mark)


def _named(node: Mapping) -> ModelReference:
    if "model" not in node.entries:
        raise PlanError("an entry names no model", where=node.mark, expected="model: a path", found=shown(node))
    return reference(node.entries["model"], "model")


def _check_twice(sources: Sequence[LayerSource]) -> None:
    seen: dict[ModelReference, LayerSource] = {}
    for source in sources:
        if source.model in seen:
            raise PlanError(
                f"the model {source.model} is listed twice",
                where=source.mark,
                found=f"first at {seen[source.model].mark}",
                hint="add up their weights",
            )
        seen[source.model] = source


def _slice(notices: list[Notice], node: Mapping) -> Slice:
    check_known(node, ("sources", "base_model", "residual_weight", "parameters"), "a slice", notices)
    if "sources" not in node.entries:
        raise PlanError("a slice has no sources", where=node.mark, expected="sources: a list", found=shown(node))
    sources = _each(node.entries["sources"], "sources", partial(_source, notices))
    lengths = [stop - first for source in sources if source.layers for first, stop in [source.layers]]
    for source, length in zip(sources, lengths, strict=True):
        if length != lengths[0]:
            raise PlanError(
                "the sources of a slice have different numbers of layers",
                where=source.mark,
                expected=f"{lengths[0]}, as {sources[0].model} has",
                found=f"{length} of {source.model}",
            )

    settings = check_settings(node.entries.get("parameters"), "parameters")
    return Slice(sources, _reference(node, "base_model"), settings, node.mark)


def _source(notices: list[Notice], node: Mapping) -> LayerSource:
    check_known(node, ("model", "layer_range", "parameters"), "a source", notices)
    given = node.entries.get("layer_range")
    layers = [whole_of(item) for item in given.items] if isinstance(given, nodes.Sequence) else []
    first, stop = layers if len(layers) == 2 else (None, None)
    if first is None or stop is None or not 0 <= first < stop:
        raise PlanError(
            "layer_range is two numbers",
            where=node.mark if given is None else given.mark,
            expected="[first, stop], where stop is not included",
            found="no layer_range" if given is None else shown(given),
        )
    settings = check_settings(node.entries.get("parameters"), "parameters")
    return LayerSource(_named(node), (first, stop), settings, given.mark if given is not None else node.mark)


# ---------------------------------------------------------------------------------------------------------- tokenizer


def _tokens(node: Mapping, notices: list[Notice]) -> Tokens | None:
    old, new = given_in(node, "tokenizer_source"), given_in(node, "tokenizer")
    if old is not None and new is not None:
        raise PlanError(
            "tokenizer_source and tokenizer at once", where=node.keys["tokenizer_source"], hint="leave one out"
        )
    if old is not None:
        return Tokens(_tokenizer_source(old, "tokenizer_source"), None, 1, old.mark)
    if new is None:
        return None
    if not isinstance(new, Mapping):
        raise PlanError("tokenizer is a mapping", where=new.mark, expected="source, tokens, pad_to_multiple_of")
    check_known(new, ("source", "tokens", "pad_to_multiple_of"), "tokenizer", notices)
    tokens, multiple, source = (given_in(new, key) for key in ("tokens", "pad_to_multiple_of", "source"))
    if tokens is not None and not isinstance(tokens, Mapping):
        raise PlanError("tokenizer.tokens is a mapping", where=tokens.mark, expected="tokens and { source, force }")
    count = 1 if multiple is None else whole_of(multiple)
    if count is None or count < 1:
        where = new.mark if multiple is None else multiple.mark
        raise PlanError("pad_to_multiple_of is a whole number of at least 1", where=where)
    return Tokens("union" if source is None else _tokenizer_source(source, "source"), tokens, count, new.mark)


def _tokenizer_source(node: Node, what: str) -> str | ModelReference:
    if isinstance(node, Scalar) and node.value in ("union", "base"):
        return str(node.value)
    return reference(node, what)
