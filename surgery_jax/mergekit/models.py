"""The models of a merge by their headers and documents, brought to the same names."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core import json_text
from ..core.adapters import CONFIG as ADAPTER_CONFIG
from ..core.adapters import PREFIX
from ..core.dtypes import BY_NAME
from ..core.errors import Mark, PlanError, StorageError, SurgeryError
from ..core.model_config import CONFIG
from ..core.specs import Spec
from ..core.strict_json import read_json
from ..lora.outputs import parted_by
from ..lora.targets import Adapter, is_output
from ..storage import formats
from ..storage.base import Checkpoint
from ..storage.files import read_text
from .layers import LayerStack, is_buffer, place_of, stacks_of
from .options import MergeOptions
from .patterns import pattern_of
from .recipe import Recipe, Value
from .references import ModelReference

__all__ = ["Model", "Models", "align", "check_architectures", "embedding_of", "is_vocabulary"]

_GENERATES = re.compile(r"CausalLM|LMHead|ConditionalGeneration")
_TOKENS = frozenset({"embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings", "shared"})


@dataclass(eq=False)
class Model:
    """A model as the steps so far have made it, under an alias: its tensors, what `config.json` says, its documents.

    `files` are those of its documents that can be read now, by name; the others are what steps have made.
    """

    name: str
    alias: str
    specs: dict[str, Spec]
    config: dict[str, Any]
    documents: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    is_file: bool = False
    hidden: set[str] = field(default_factory=set)  # tensors that the merge leaves out
    texts: dict[str, str] = field(default_factory=dict)  # documents that steps have written
    untied: bool = False  # whether its outputs share the embedding, and got a tensor of their own

    @property
    def stacks(self) -> list[LayerStack]:
        return stacks_of(self.specs, self.config)

    @property
    def is_tied(self) -> bool | None:
        """Whether the outputs share the embedding; None if nothing tells."""
        for part in (self.config, *self.config.values()):
            if isinstance(part, Mapping) and isinstance(part.get("tie_word_embeddings"), bool):
                return bool(part["tie_word_embeddings"])
        return None

    @property
    def shares_output(self) -> bool:
        """Whether it has an output layer that is not stored since it is the embedding: what the configuration leaves
        open is the default of classes that generate text."""
        kinds = self.config.get("architectures") or ()
        return any(map(_GENERATES.search, map(str, kinds))) if self.is_tied is None else self.is_tied

    def text(self, name: str) -> str | None:
        """What a document says; None if there is none."""
        if name in self.texts:
            return self.texts[name]
        return read_text(Path(self.files[name]), "the document") if name in self.files else None

    def table(self, name: str, where: Mark) -> Mapping[str, Any]:
        """A document of JSON as a mapping; an empty one if there is none.

        Raises:
            StorageError: it is no such document, at the place that asks for it.
        """
        try:
            return json_text.parsed(self.text(name) or "{}")
        except ValueError as error:
            found = str(error)[:120]
            raise StorageError(f"{name} of {self.name} cannot be read", where=where, found=found) from None


class Models:
    """Opens every model once, and knows those that earlier merges of the file have made by their names."""

    def __init__(self, recipe: Recipe, options: MergeOptions) -> None:
        self.recipe, self.options = recipe, options
        self.made: dict[str, Model] = {}
        self._known: dict[ModelReference, Model] = {}

    def get(self, reference: ModelReference) -> Model:
        """The model, with its adapter applied.

        Raises:
            SurgeryError: it cannot be read, at the place that names it.
        """
        if reference not in self._known:
            if reference.lora is not None:
                self._known[reference] = self._with_adapter(reference)
            elif reference.path in self.made:
                self._known[reference] = self.made[reference.path]
            else:
                self._known[reference] = self._open(reference, "")
        return self._known[reference]

    def _open(self, reference: ModelReference, word: str) -> Model:
        checkpoint = _opened(reference.path, reference.mark)
        alias = self.recipe.input(reference.path, reference.mark, word)
        specs = {name: entry.spec for name, entry in checkpoint.entries.items()}
        config = _config(checkpoint, reference.mark)
        is_adapter = any(name.startswith(PREFIX) and ".lora_" in name for name in specs)
        if is_adapter and Path(reference.path).is_dir():  # a file of them is merged like others
            raise PlanError(
                f"{reference.path} is an adapter and no model",
                where=reference.mark,
                expected=f"the model that it is for, and the adapter: BASE+{reference.path}",
            )
        files = checkpoint.documents
        return Model(str(reference), alias, specs, config, tuple(files), files, Path(reference.path).is_file())

    def _with_adapter(self, reference: ModelReference) -> Model:
        """A second sight of the model, into which the adapter is merged while the plan runs."""
        assert reference.lora is not None
        if reference.path in self.made:
            model = self._copied(self.made[reference.path], reference)
        else:
            model = self._open(reference, f"{Path(reference.path).name}+{Path(reference.lora).name}")
        adapter = _opened(reference.lora, reference.mark)
        lora = self.recipe.input(reference.lora, reference.mark)
        if dtype := self.options.lora_dtype:
            wider = {"target": f"{model.alias}::.+", "to": dtype, "where": {"dtype": "float"}}
            self.recipe.step("cast_", wider, reference.mark, model.alias)
            model.specs |= {n: replace(s, dtype=BY_NAME[dtype]) for n, s in model.specs.items() if s.dtype.is_float}
        payload: dict[str, Value] = {"adapters": lora, "to": model.alias}
        with suppress(StorageError):  # the step tells what is wrong with an adapter
            read = Adapter.read(lora, 1.0, adapter.metadata.get(ADAPTER_CONFIG), adapter.entries, lambda _: None)
            payload["tied"] = _part_output(model, read)
            model.specs |= {parameter: adapter.entries[name].spec for parameter, name in read.whole.items()}
        self.recipe.step("lora_merge", payload, reference.mark, model.alias)
        return model

    def _copied(self, made: Model, reference: ModelReference) -> Model:
        alias = self.recipe.alias(f"{made.alias}+{Path(str(reference.lora)).name}")
        step, mark = self.recipe.step, reference.mark
        step("prefixes", {"mode": "add", "alias": alias}, mark, alias)
        step("copy", {"from": f"{made.alias}::(.+)", "to": f"{alias}::\\1"}, mark, alias)
        for name in made.documents:
            step("document", {"copy": glob.escape(name), "from": made.alias, "alias": alias}, mark, alias)
        return replace(made, name=str(reference), alias=alias, specs=dict(made.specs), hidden=set())


def _part_output(model: Model, adapter: Adapter) -> str | None:
    """The output layer that gets a tensor of its own, since an adapter changes it or the embedding that it shares, but
    not the other; the model has it from then on."""
    output, source = parted_by(adapter), embedding_of(model)
    if output is None or source is None or any(is_output(name.rpartition(".")[0]) for name in model.specs):
        return None
    if not model.shares_output:
        return None
    model.specs[f"{output}.weight"] = model.specs[source]
    model.untied = True
    return output


def _opened(path: str, mark: Mark) -> Checkpoint:
    try:
        return formats.open_checkpoint(path)
    except SurgeryError as error:
        if error.where is not None:
            error.problem = f"{error.where}: {error.problem}"
        if not Path(path).exists():
            error.problem = f"the model {path} does not exist"
            error.hint = (
                "models are read from the disk: download it, and name its folder" if "/" in path else error.hint
            )
        error.where = mark
        raise


def _config(checkpoint: Checkpoint, mark: Mark) -> dict[str, Any]:
    if CONFIG not in checkpoint.documents:
        return {}
    try:
        found = read_json(read_text(Path(checkpoint.documents[CONFIG]), "the configuration"))
    except ValueError as error:
        raise StorageError(f"{checkpoint.documents[CONFIG]} is no JSON", where=mark, found=str(error)) from None
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------------------------------------------------- the names


def _leaf(name: str) -> str:
    """The last word of the module that a parameter belongs to."""
    return name.rpartition(".")[0].rpartition(".")[2]


def is_vocabulary(name: str) -> bool:
    """Whether the first axis of a tensor are tokens: that of embeddings, and of the output layer."""
    return place_of(name) is None and (_leaf(name) in _TOKENS or is_output(name.rpartition(".")[0]))


def embedding_of(model: Model) -> str | None:
    """The embedding of tokens of a model."""
    found = [name for name in model.specs if place_of(name) is None and _leaf(name) in _TOKENS]
    return min(found, key=len, default=None)


def align(models: Sequence[Model], recipe: Recipe, mark: Mark) -> None:
    """Give the models of a merge the same names: a prefix that some lack, and the weights that some share with their
    embeddings. Buffers that some lack are forgotten."""
    _prefix(models, recipe, mark)
    names = Counter(name for model in models for name in model.specs if place_of(name) is None)
    for name, count in names.items():
        if count < len(models) and is_vocabulary(name):
            for model in models:
                _untie(model, name, recipe, mark)
    skeletons = [{_skeleton(name) for name in model.specs} for model in models]
    for model in models:
        for name in model.specs:
            if is_buffer(name, len(model.specs[name].shape)) and not all(_skeleton(name) in one for one in skeletons):
                model.hidden.add(name)


def _skeleton(name: str) -> str:
    """The name without the number of its layer."""
    place = place_of(name)
    return name if place is None else f"{place.prefix}.#.{place.rest}"


def _untie(model: Model, name: str, recipe: Recipe, mark: Mark) -> None:
    """Let the embedding stand for a weight that the model shares with it."""
    source = embedding_of(model)
    if name in model.specs or source is None or model.is_tied is False or not name.endswith(".weight"):
        return
    recipe.step(
        "copy", {"from": f"{model.alias}::{re.escape(source)}", "to": f"{model.alias}::{name}"}, mark, model.alias
    )
    model.specs[name] = model.specs[source]
    model.untied |= is_output(name.rpartition(".")[0])


def _prefix(models: Sequence[Model], recipe: Recipe, mark: Mark) -> None:
    """Names of models that were saved without the name of their outer module get it."""
    first = models[0]
    for model in models[1:]:
        if _missing_prefix(first.specs, model.specs):
            first = model
    for model in models:
        prefix = _missing_prefix(model.specs, first.specs)
        if prefix:
            known = {_skeleton(name) for name in first.specs}
            bare = [name for name in model.specs if _skeleton(name) not in known]
            pattern = pattern_of(bare, model.specs)
            payload = {"from": f"{model.alias}::({pattern})", "to": f"{model.alias}::{prefix}\\1"}
            recipe.step("move", payload, mark, model.alias)
            gone = set(bare)
            model.specs = {prefix + name if name in gone else name: spec for name, spec in model.specs.items()}


def _missing_prefix(names: Iterable[str], others: Iterable[str]) -> str:
    """What must stand before those of `names` that `others` lack, so that they have them; nothing if that is not so."""
    own, known = {_skeleton(name) for name in names}, {_skeleton(name) for name in others}
    lacking = sorted(own - known)
    if not lacking:
        return ""
    longer = [name for name in known if name.endswith(f".{lacking[0]}")]
    for name in longer:
        prefix = name.removesuffix(lacking[0])
        if all(prefix + one in known for one in lacking):
            return prefix
    return ""


def check_architectures(models: Sequence[Model], marks: Sequence[Mark]) -> None:
    """That all models are of one architecture.

    Raises:
        PlanError: they are not.
    """
    first: tuple[str, Model] | None = None
    for model, mark in zip(models, marks, strict=True):
        kind = model.config.get("architectures") or model.config.get("model_type")
        word = str(kind[0]) if isinstance(kind, list) and kind else str(kind) if kind else ""
        if word and first is not None and word != first[0]:
            raise PlanError(
                "the models have different architectures",
                where=mark,
                expected=f"{first[0]}, as {first[1].name} has",
                found=f"{word} of {model.name}",
                hint="--allow-crimes merges them all the same, if their tensors have the same names and shapes",
            )
        if word and first is None:
            first = word, model
