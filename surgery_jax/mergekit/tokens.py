"""The vocabulary of a merge: one for all models, or cut to the smallest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..core.errors import Mark, PlanError, listing
from ..core.tokenizer_json import TOKENIZER, Vocabulary, additions, grown, vocabulary_of
from ..language.nodes import Mapping as MappingNode
from ..language.nodes import Node, Scalar, check_keys, shown
from .configuration import MergeDocument, Tokens, given_in
from .models import Model, Models, is_vocabulary
from .patterns import pattern_of
from .recipe import Recipe, Value
from .references import ModelReference, reference
from .settings import read_as

__all__ = ["Rows", "common_rows", "cut_rows"]


class Rows:
    """Where the merge finds the tensors whose rows are tokens: an alias for each model that has others than before.
    `count` is how many rows there are, None if as many as before; `tokenizer` the text of a new one."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self.aliases: dict[Model, str] = {}
        self.count: int | None = None
        self.tokenizer: str | None = None

    def alias(self, model: Model, name: str) -> str:
        """The alias under which a tensor of a model is merged."""
        return self.aliases.get(model, model.alias) if name in self.names else model.alias


def _vocabulary_names(models: Sequence[Model]) -> list[str]:
    return list(dict.fromkeys(name for model in models for name in model.specs if is_vocabulary(name)))


def cut_rows(models: Sequence[Model], recipe: Recipe, mark: Mark) -> Rows:
    """Cut embeddings to the number of rows that all models have."""
    rows = Rows(_vocabulary_names(models))
    counts = [model.specs[name].shape[0] for model in models for name in rows.names if name in model.specs]
    if len(set(counts)) < 2:
        return rows
    rows.count = least = min(counts)
    for model in models:
        names = [name for name in rows.names if name in model.specs]
        if all(model.specs[name].shape[0] == least for name in names):
            continue
        alias = rows.aliases[model] = _beside(model, recipe, mark)
        payload = {"from": f"{model.alias}::({pattern_of(names, model.specs)})::[:{least}]", "to": f"{alias}::\\1"}
        recipe.step("copy", payload, mark, alias)
    return rows


def _beside(model: Model, recipe: Recipe, mark: Mark) -> str:
    alias = recipe.alias(f"{model.alias}_rows")
    recipe.step("prefixes", {"mode": "add", "alias": alias}, mark, alias)
    return alias


def common_rows(merge: MergeDocument, tokens: Tokens, models: Models, recipe: Recipe, out: str) -> Rows:
    """A step that gives all models one vocabulary."""
    references = merge.references
    found = {each: models.get(each) for each in references}
    rows = Rows(_vocabulary_names(list(found.values())))
    for model in found.values():
        rows.aliases.setdefault(model, _beside(model, recipe, tokens.mark))
    source: Value = tokens.source
    members = list(found.values())
    donor = models.get(source) if isinstance(source, ModelReference) else members[0]
    if isinstance(source, ModelReference):
        source = donor.alias
    readers = members if donor in members else [*members, donor]
    rows.tokenizer, rows.count = _made(readers, rows, donor.alias, tokens)
    recipe.step(
        "tokenizer",
        {
            "models": {model.alias: rows.aliases[model] for model in found.values()},
            "rows": "|".join(map(re.escape, sorted(rows.names))),
            "to": out,
            "source": source,
            "base": found[merge.base].alias if merge.base is not None else None,
            "tokens": _tokens(tokens.tokens, found),
            "multiple_of": tokens.multiple_of if tokens.multiple_of > 1 else None,
            "dtype": merge.dtype.name if merge.dtype is not None else None,
        },
        tokens.mark,
        out,
    )
    return rows


def _made(models: Sequence[Model], rows: Rows, donor: str, tokens: Tokens) -> tuple[str, int]:
    """The common tokenizer, and how many rows it asks for."""
    known: dict[str, Vocabulary] = {}
    told: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for model in models:
        text = model.text(TOKENIZER) or next(iter(told.values()), None)
        if text is None:
            raise PlanError(
                f"{model.name} has no {TOKENIZER}",
                where=tokens.mark,
                found=", ".join(model.documents) or "no documents",
                hint="write one with AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers",
            )
        heights = [model.specs[name].shape[0] for name in rows.names if name in model.specs]
        if not heights:
            raise PlanError(
                f"{model.name} has no matrix with a row for each token",
                where=tokens.mark,
                found=listing(model.specs),
                hint="leave out what is said of the tokenizer",
            )
        sizes[model.alias] = min(heights)
        told[model.alias] = text
        try:
            known[model.alias] = vocabulary_of(text, sizes[model.alias])
        except (ValueError, KeyError, TypeError) as error:
            where = tokens.mark
            raise PlanError(
                f"{TOKENIZER} of {model.name} cannot be read", where=where, found=str(error)[:120]
            ) from None
    wanted = tokens.tokens.entries if tokens.tokens is not None else ()
    union = tokens.source == "union"
    try:
        text = grown(told[donor], sizes[donor], additions(known, donor, wanted, union=union))
    except ValueError as error:
        raise PlanError(f"{TOKENIZER} cannot be merged", where=tokens.mark, found=str(error)) from None
    count = max(vocabulary_of(text).ids.values(), default=-1) + 1
    return text, count + -count % tokens.multiple_of


def _tokens(node: MappingNode | None, models: Mapping[ModelReference, Model]) -> Node | None:
    """Wishes for single tokens with aliases in the place of models."""
    if node is None:
        return None
    found: dict[str, Node] = {}
    for token, value in node.entries.items():
        if not isinstance(value, MappingNode):
            raise PlanError(
                f"token {token!r} is a mapping", where=value.mark, expected="source and force", found=shown(value)
            )
        check_keys(value, ("source", "force"), f"token {token!r}")
        source = value.entries.get("source")
        if source is None:
            raise PlanError(
                f"token {token!r} has no source", where=value.mark, expected="a model, kind: zero, or kind: model_token"
            )
        entries = _source(token, source, models)
        if "force" in value.entries:
            entries["force"] = _as(value.entries["force"], "boolean")
        found[token] = MappingNode(entries, dict.fromkeys(entries, value.mark), value.mark)
    return MappingNode(found, node.keys, node.mark)


def _source(token: str, node: Node, models: Mapping[ModelReference, Model]) -> dict[str, Node]:
    kind = node.entries.get("kind") if isinstance(node, MappingNode) else None
    if not isinstance(node, MappingNode) or kind is None:
        return {"model": _alias(node, models)}
    word = kind.value if isinstance(kind, Scalar) else None
    if word == "zero":
        return {"zero": Scalar(True, node.mark)}
    given = [key for key in ("token", "token_id") if given_in(node, key) is not None]
    if word != "model_token" or len(given) != 1 or "model" not in node.entries:
        raise PlanError(
            f"token {token!r}: not a source",
            where=node.mark,
            expected="kind: zero, or kind: model_token with model and either token or token_id",
            found=shown(node),
        )
    key = given[0]
    value = _as(node.entries[key], "integer") if key == "token_id" else node.entries[key]
    return {"model": _alias(node.entries["model"], models), key.removeprefix("token_"): value}


def _as(node: Node, kind: str) -> Node:
    """A value as the kind of what it is for has it, if it is one at all."""
    return read_as(node, kind) if isinstance(node, Scalar) else node


def _alias(node: Node, models: Mapping[ModelReference, Model]) -> Scalar:
    wanted = reference(node, "source")
    if wanted not in models:
        raise PlanError(f"{wanted} is no model of the merge", where=node.mark, expected=", ".join(map(str, models)))
    return Scalar(models[wanted].alias, node.mark)
