"""What belongs to a merged model beside its tensors: configuration, tokenizer, template, card."""

from __future__ import annotations

import glob
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..core import json_text
from ..core.errors import Mark, PlanError
from ..core.specs import Spec
from ..core.strict_json import at, read_json
from .chat_templates import NAMED
from .configuration import MergeDocument
from .layers import LayerStack, place_of
from .models import Model
from .planning import Planner
from .positions import check_kinds, lists_of, numbers_of
from .recipe import Recipe

__all__ = ["AROUND_TOKENIZER", "OWN", "TOKENIZER_FILES", "changed", "changes_of", "copy_documents_of", "write_template"]

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
OWN = ("*", "!README*", "!adapter_config.json", "!mergekit_*")  # all but what speaks of the donor alone
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "*.model",
    "*.spm",
    "*.bpe",
    "chat_template*",
    "additional_chat_templates/*",
)
# What tells how to use a tokenizer; the rest would contradict one that was made here.
AROUND_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template*", "additional_chat_templates/*")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches the last of the patterns that says something about it."""
    found = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            found = not pattern.startswith("!")
    return found


def copy_documents_of(donor: Model, recipe: Recipe, alias: str, mark: Mark, patterns: Sequence[str]) -> tuple[str, ...]:
    """Copy those of the documents of a model whose names match one of the patterns, a pattern with `!` none; the names
    of what was copied."""
    names = [name for name in donor.documents if _matches(name, patterns)]
    for name in names:
        recipe.step("document", {"copy": glob.escape(name), "from": donor.alias, "alias": alias}, mark, alias)
    return tuple(names)


# ------------------------------------------------------------------------------------------------------- config.json


def changes_of(
    merge: MergeDocument, donor: Model, planner: Planner, rows: int | None, *, strict: bool
) -> dict[str, Any]:
    """What must be different in `config.json` of the donor, by the path of the key; `rows` is the size of the
    vocabulary if it is another one.

    Raises:
        PlanError: nothing there tells what the layers are, and `strict` demands it.
    """
    changes: dict[str, Any] = {}
    for stack in donor.stacks:
        order = planner.order.get(stack.prefix)
        if order is not None and order != [(donor, number) for number in range(stack.count)]:
            changes |= dict(_of_layers(merge, donor, stack, planner, strict=strict))
    dtype = merge.out_dtype or merge.dtype
    if dtype is not None:
        changes["dtype" if "dtype" in donor.config else "torch_dtype"] = dtype.name
    if donor.untied:
        changes[_path(donor.config, "tie_word_embeddings")] = False
    elif "feed_forward_proj" in donor.config and donor.is_tied is False:
        # T5: newer classes of transformers scale what goes into the output layer unless this says no, and call all
        # weights tied, which a file with a tensor for each overrides
        changes |= {"scale_decoder_outputs": False, "tie_word_embeddings": True}
    if rows is not None:
        changes[_path(donor.config, "vocab_size")] = rows
    return changes


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what is different, given by the path of the key."""
    found = dict(config)
    for path, value in changes.items():
        first, _, rest = path.partition(".")
        found[first] = changed(found.get(first, {}), {rest: value}) if rest else value
    return found


def _path(config: Mapping[str, Any], key: str) -> str:
    """Where a key is: at the top, or in a part such as `text_config`."""
    if key not in config:
        for part, value in config.items():
            if isinstance(value, Mapping) and key in value:
                return f"{part}.{key}"
    return key


def _part(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        config = config.get(key, {})
    return config


def _of_layers(
    merge: MergeDocument, donor: Model, stack: LayerStack, planner: Planner, *, strict: bool
) -> Iterator[tuple[str, Any]]:
    """What `config.json` says of the layers of a stack, where they are in another order: how many there are, lists, and
    numbers that tell which are special."""
    order = planner.order[stack.prefix]
    if not stack.keys:
        raise PlanError(
            f"config.json of {donor.name} does not say how many layers {stack.prefix} has",
            where=merge.mark,
            expected=f"num_hidden_layers: {stack.count}",
        )
    own, made = (_kinds(specs, stack.prefix, donor.hidden) for specs in (donor.specs, planner.made))
    for *place, key in stack.keys:
        config = _part(donor.config, place)
        layers = [(_part(model.config, place), number) for model, number in order]
        said = numbers_of(config, layers, merge.mark, strict=strict) | lists_of(config, layers, stack.count)
        for word, value in ({key: len(order)} | said).items():
            if config.get(word) != value:
                yield ".".join((*place, word)), value
        if strict:
            check_kinds(config, layers, own, made, merge.mark)


def _kinds(specs: Mapping[str, Spec], prefix: str, hidden: set[str]) -> list[object]:
    """What tells layers of several kinds apart: the names and shapes of their tensors."""
    found: dict[int, set[tuple[str, tuple[int, ...]]]] = defaultdict(set)
    for name, spec in specs.items():
        place = place_of(name)
        if place is not None and place.prefix == prefix and name not in hidden:
            found[place.number].add((place.rest, spec.shape))
    return [found[number] for number in sorted(found)]


# ---------------------------------------------------------------------------------------------------- chat templates


def template_of(merge: MergeDocument, models: Sequence[Model]) -> str | None:
    """The chat template that a configuration asks for; None if it leaves it open.

    Raises:
        PlanError: it is neither a template nor the name of one.
    """
    if merge.template is None:
        return None
    given = str(merge.template.value)
    if given == "auto":
        found = Counter(template.strip() for model in models if (template := _own_template(model)))
        return found.most_common(1)[0][0] if found else None
    if given in NAMED:
        return NAMED[given]
    if "{" not in given or len(given) < 20:
        raise PlanError(
            "chat_template is no template",
            where=merge.template.mark,
            expected=f"auto, one of {', '.join(NAMED)}, or the text of a template",
            found=repr(given[:80]),
        )
    return given


def _own_template(model: Model) -> str | None:
    if (text := model.text(TEMPLATE)) is not None:
        return text
    told = model.text(TOKENIZER_CONFIG)
    try:
        found = at(read_json(told or "{}"), "chat_template")
    except (ValueError, LookupError, TypeError):
        return None
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def write_template(
    merge: MergeDocument, models: Sequence[Model], tokenizer: Model, recipe: Recipe, alias: str
) -> dict[str, str]:
    """Give the output the chat template that the configuration asks for, where the tokenizer has its own; what was
    written, by the name of the document."""
    template = template_of(merge, models)
    if template is None or merge.template is None:
        return {}
    told = tokenizer.text(TOKENIZER_CONFIG)
    texts = {}
    if told is None or TEMPLATE in tokenizer.documents:
        texts[TEMPLATE] = template
    if told is not None:
        tokenizer.table(TOKENIZER_CONFIG, merge.template.mark)
        texts[TOKENIZER_CONFIG] = json_text.put(told, ["chat_template"], template)
    for name, text in texts.items():
        mark = merge.template.mark
        recipe.step("document", {"write": name, "text": text, "alias": alias}, mark, alias)
    return texts
