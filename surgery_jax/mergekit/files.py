"""Merges of bare files of tensors, which have no layers, no configuration and no tokenizer."""

from __future__ import annotations

from ..core.errors import PlanError
from .configuration import MergeDocument
from .models import Models
from .modules import Section
from .options import MergeOptions
from .planning import Planner
from .recipe import OUT, Recipe
from .tokens import Rows

__all__ = ["merge_files"]


def merge_files(merge: MergeDocument, recipe: Recipe, options: MergeOptions) -> None:
    """Steps that merge every tensor of the files; of those that some lack, what the options say.

    Raises:
        SurgeryError: a file cannot be read, or lacks a tensor.
    """
    layout = merge.modules.get("")
    if layout is None or not layout.whole or merge.tokens is not None:
        raise PlanError(
            "files of tensors are merged by models: alone", where=merge.mark, hint="or name the directories"
        )
    models = Models(recipe, options)
    found = [models.get(reference) for reference in merge.references]
    names = dict.fromkeys(name for model in found for name in model.specs)
    if options.tensors == "intersection":
        names = {name: None for name in names if all(name in model.specs for model in found)}
    planner = Planner(merge, models, recipe, OUT, options.seed, Rows(), partial=options.tensors == "union")
    planner.section(Section(layout, None, [], list(names)))
