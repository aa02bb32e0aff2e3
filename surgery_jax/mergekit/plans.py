"""Files of configurations to plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..core.errors import Mark, Notice, PlanError, Problems
from ..core.model_config import CONFIG
from ..core.tokenizer_json import TOKENIZER
from ..language.document import parse_documents_file
from ..language.nodes import Mapping, Node
from ..language.plan import Origin, Plan
from ..merging.method import find_method
from .card import card_of
from .configuration import MergeDocument, check_names, merge_of
from .files import merge_files
from .models import Model, Models, align, check_architectures, is_vocabulary
from .modules import sections_of
from .options import MergeOptions
from .planning import VOCABULARIES, Planner, check_parameters
from .recipe import OUT, Recipe
from .references import ModelReference
from .sidecars import (
    AROUND_TOKENIZER,
    OWN,
    TOKENIZER_FILES,
    changed,
    changes_of,
    copy_documents_of,
    write_template,
)
from .tokens import Rows, common_rows, cut_rows

__all__ = ["each_once", "plan_of_file"]


@contextmanager
def each_once() -> Iterator[None]:
    """Tell what is wrong at a place of the configuration once: many steps may come from it. What steps advise is for
    steps, of which a configuration has none."""
    try:
        yield
    except Problems as error:
        first = {str(problem.where): problem for problem in reversed(error.single)}
        kept = [problem for problem in error.single if first[str(problem.where)] is problem]
        for problem in kept:
            if isinstance(problem, PlanError) and isinstance(problem.where, Mark) and problem.hint:
                problem.hint += " (in the plan that --print-plan prints, which runs by itself)"
        raise (kept[0] if len(kept) == 1 else Problems(kept)) from None


def plan_of_file(path: str | Path, out: str | Path, options: MergeOptions) -> tuple[Plan, list[Notice]]:
    """The plan that a file of configurations becomes, and what of the file is ignored. `out` is the directory that the
    plan writes.

    Raises:
        SurgeryError: what is wrong with the file, or with the models that it names.
    """
    notices: list[Notice] = []
    text, documents = parse_documents_file(path, notices)
    where = Mark(str(path), 1, 1)
    if not documents:
        raise PlanError("the file has no configuration", where=where, expected="merge_method, models, …")
    recipe = Recipe()
    recipe.step("prefixes", {"mode": "add", "alias": OUT}, documents[-1].mark)
    if len(documents) == 1:
        _one(documents[0], text, recipe, options, notices)
    else:
        _several(documents, text, recipe, options, notices)
    plan = recipe.plan(str(out), options, documents[-1].mark)
    return replace(plan, origin=Origin({str(path): text})), notices


def _one(node: Node, text: str, recipe: Recipe, options: MergeOptions, notices: list[Notice]) -> None:
    if isinstance(node, Mapping) and "experts" in node.entries:
        from .mixtures import merge_experts

        merge_experts(node, text, recipe, options, notices)
        return
    merge = _merge_of(node, notices)
    if _is_of_files(merge):
        merge_files(merge, recipe, options)
    else:
        _merge(merge, Models(recipe, options), recipe, OUT, options)
        _write_card(merge, text, recipe, options)


def _merge_of(node: Node, notices: list[Notice]) -> MergeDocument:
    """A document as a merge, whose parameters are those of its method, or are known to be ignored."""
    merge = merge_of(node, notices)
    method = find_method(str(merge.method.value), merge.method.mark)
    for settings in merge.all_settings:
        check_parameters(settings, method, notices)
    return merge


def _several(
    documents: Sequence[Node], text: str, recipe: Recipe, options: MergeOptions, notices: list[Notice]
) -> None:
    """Merges that build on each other: one without a name, or the last one, is what is written."""
    merges = [_merge_of(node, notices) for node in documents]
    check_names(merges)
    last = next((merge for merge in merges if merge.name is None), merges[-1])
    models = Models(recipe, options)
    needed = _in_order(merges, last)
    for merge in merges:
        if merge not in needed:
            notices.append(Notice(f"no other merge needs {merge.name!r}, which is not made", where=merge.mark))
    for merge in needed:
        alias = OUT if merge is last else recipe.alias(str(merge.name))
        if merge is not last:
            recipe.step("prefixes", {"mode": "add", "alias": alias}, merge.mark, alias)
        model = _merge(merge, models, recipe, alias, options)
        if merge.name is not None:
            models.made[merge.name] = model
    _write_card(last, text, recipe, options)


def _in_order(merges: Sequence[MergeDocument], last: MergeDocument) -> list[MergeDocument]:
    """The merges that the last one needs, each after those that it needs."""
    named = {merge.name: merge for merge in merges if merge.name is not None}
    order: list[MergeDocument] = []
    open_: list[MergeDocument] = []

    def visit(merge: MergeDocument) -> None:
        if merge in open_:
            names = " needs ".join(str(each.name) for each in [*open_[open_.index(merge) :], merge])
            raise PlanError("merges need each other", where=merge.mark, found=names)
        if merge in order:
            return
        open_.append(merge)
        tokenizer = merge.tokens.source if merge.tokens is not None else None
        for reference in (*merge.references, *((tokenizer,) if isinstance(tokenizer, ModelReference) else ())):
            if reference.path in named:
                visit(named[reference.path])
        open_.pop()
        order.append(merge)

    visit(last)
    return order


def _is_of_files(merge: MergeDocument) -> bool:
    """Whether all models are files of tensors, and not directories."""
    return all(Path(reference.path).is_file() for reference in merge.references)


def _merge(merge: MergeDocument, models: Models, recipe: Recipe, alias: str, options: MergeOptions) -> Model:
    """The steps of one merge, and the model that it makes."""
    references = merge.references
    found = [models.get(reference) for reference in references]
    if not options.allow_crimes:
        check_architectures(found, [reference.mark for reference in references])
    align(found, recipe, merge.mark)
    donor = found[0]
    changes, documents = {}, _documents(merge, models, donor, recipe, alias, options)
    texts = {name: model.texts[name] for name, model in documents.items() if name in model.texts}
    files = {name: model.files[name] for name, model in documents.items() if name in model.files}
    rows = _rows(merge, models, found, recipe, alias, options)
    planner = Planner(merge, models, recipe, alias, options.seed, rows)
    for section in sections_of(merge, found):
        planner.section(section)
    if not options.allow_crimes:
        _check_vocabulary(donor, planner)
    if rows.tokenizer is not None:
        texts[TOKENIZER] = rows.tokenizer
    if merge.tokens is not None or options.copy_tokenizer:
        texts |= write_template(merge, found, _tokenizer_donor(merge, models), recipe, alias)
    if CONFIG in documents:
        changes = changes_of(merge, donor, planner, rows.count, strict=not options.allow_crimes)
        if changes:
            recipe.step("config", {"set": changes, "alias": alias}, merge.mark, alias)
    names = tuple(dict.fromkeys((*documents, *texts)))
    return Model(merge.name or OUT, alias, planner.made, changed(donor.config, changes), names, files, texts=texts)


def _check_vocabulary(donor: Model, planner: Planner) -> None:
    """That embedding and output layer have the same tokens, if they have them in the model that gives config.json.

    Raises:
        PlanError: they come from models with different vocabularies.
    """
    counts = {name: spec.shape[0] for name, spec in planner.made.items() if is_vocabulary(name) and spec.shape}
    before = {donor.specs[name].shape[0] for name in counts if name in donor.specs}
    if len(set(counts.values())) > 1 and len(before) == 1:
        raise PlanError(
            "embedding and output layer have different vocabularies",
            where=planner.merge.mark,
            found=", ".join(f"{count} rows of {name}" for name, count in counts.items()),
            hint=VOCABULARIES,
        )


def _rows(
    merge: MergeDocument, models: Models, found: Sequence[Model], recipe: Recipe, alias: str, options: MergeOptions
) -> Rows:
    if merge.tokens is not None:
        return common_rows(merge, merge.tokens, models, recipe, alias)
    return cut_rows(found, recipe, merge.mark) if options.truncate else Rows()


def _tokenizer_donor(merge: MergeDocument, models: Models) -> Model:
    """The model whose tokenizer the output has, or grows from."""
    source = merge.tokens.source if merge.tokens is not None else ""
    return models.get(source if isinstance(source, ModelReference) else merge.references[0])


def _documents(
    merge: MergeDocument, models: Models, donor: Model, recipe: Recipe, alias: str, options: MergeOptions
) -> dict[str, Model]:
    """Copy what lies beside the donor, and what belongs to the tokenizer; where each of the documents comes from."""
    patterns = [*OWN]
    if merge.tokens is not None or not options.copy_tokenizer:
        patterns += [f"!{pattern}" for pattern in TOKENIZER_FILES]
    names = dict.fromkeys(copy_documents_of(donor, recipe, alias, merge.mark, patterns), donor)
    if merge.tokens is not None:
        tokenizer = _tokenizer_donor(merge, models)
        names |= dict.fromkeys(copy_documents_of(tokenizer, recipe, alias, merge.mark, AROUND_TOKENIZER), tokenizer)
    return names


def _write_card(merge: MergeDocument, text: str, recipe: Recipe, options: MergeOptions) -> None:
    if options.model_card:
        card = card_of(str(merge.method.value), list(map(str, merge.references)), text)
        recipe.step("document", {"write": "README.md", "text": card, "alias": OUT}, merge.mark)
        recipe.step("document", {"write": "mergekit_config.yml", "text": text, "alias": OUT}, merge.mark)
