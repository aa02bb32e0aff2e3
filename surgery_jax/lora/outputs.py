"""Output layers that share the weight of the embedding, and modules that only an adapter has.

A checkpoint whose outputs are computed with the embedding holds one tensor for both. PEFT changes one of the two, so
that the merged model needs a tensor for each, and `config.json` must no longer say `tie_word_embeddings`; or both, if
the adapter was made with `ensure_weight_tying`. A checkpoint does not tell that there is such a layer: the plan must.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..core import json_text
from ..core.errors import StorageError, listing
from ..core.model_rules import TEXT
from . import facts as adapter_facts
from .targets import Adapter, Places, is_output

__all__ = ["Outputs", "parted_by"]

_POSITIONS = re.compile(r"(wpe|w?pos(ition)?_?.*|.*position.*|.*token_type.*|.*relative.*)")
_HEADS = ("score", "classifier")  # outputs of tasks, of which an adapter brings its own
_TOKENS = frozenset({"embed_tokens", "wte", "embed_in", "tok_embeddings", "word_embeddings", "shared"})


class Outputs:
    """What one step finds out of output layers of its base."""

    def __init__(self, places: Places, tied: str | None, model: adapter_facts.ModelFacts) -> None:
        """`tied` is what the plan says: a module, `none`, or nothing."""
        self.places, self.tied, self.model = places, tied, model
        self.has_output = any(is_output(name.rpartition(".")[0]) for name in places.names)
        self.embeddings: dict[str, None] = {}  # those that change
        self.alone: dict[str, None] = {}  # adapters that change an embedding or the layer that shares it alone
        self.together: dict[str, None] = {}  # adapters that change both alike
        self.added: dict[str, str] = {}  # parameters that only an adapter has, with its alias

    @property
    def layer(self) -> str | None:
        """The parameter of an output layer that the base holds as its embedding only."""
        name = None if self.tied in (None, "none") else f"{self.tied}.weight"
        return name if name is not None and name not in self.places.names else None

    def with_tied(self, places: Places) -> Places:
        """The base with the output layer that it shares."""
        if self.layer is None:
            return places
        layer, source = self.layer, self._embedding()

        def rename(parameter: str) -> str | None:
            return parameter if parameter == layer else places.rename(parameter)

        return replace(
            places,
            rename=rename,
            names={*places.names, layer},
            spec=lambda name: places.spec(source if name == layer else name),
        )

    def of_one_kind(self, adapter: Adapter) -> Adapter:
        """The adapter; if it changes embedding and outputs alike and the base has one tensor for both, without outputs.

        Raises:
            StorageError: the base has a tensor for each, and the adapter does not.
        """
        if not _is_tying(adapter):
            return adapter
        pairs = [pair for pair in adapter.pairs if pair.is_embedding or not is_output(pair.module)]
        whole = {name: held for name, held in adapter.whole.items() if not is_output(name.rpartition(".")[0])}
        if not self.has_output or self.layer is not None:
            return replace(adapter, pairs=pairs, whole=whole)
        if len(pairs) == len(adapter.pairs) and len(whole) == len(adapter.whole):
            raise StorageError(
                "it was made with ensure_weight_tying, but the base has an output layer of its own",
                expected="a base without it, or an adapter with factors for it",
                hint=f"delete the output layer first if it equals the embedding: delete: {{ target: "
                f"'{self.places.alias}::lm_head\\.weight' }}",
            )
        return adapter

    def check_tied(self, adapter: Adapter, missing: Sequence[str]) -> None:
        """Raise a StorageError if what the base lacks is an output layer that it may share with its embedding."""
        whole = [name for name in adapter.whole if self.places.find(name) is None]
        for name in [*missing, *whole]:
            module = name.rpartition(".")[0]
            if self.layer is None and is_output(module) and module.rpartition(".")[2] not in _HEADS:
                held = self._embeddings()
                if held and not self.has_output:
                    raise StorageError(
                        f"it changes {name}, which the base has not: tied to the embedding, it would share {held[0]}",
                        expected=f"tied: {module} if tie_word_embeddings is true in config.json",
                        hint=f"tied: {module} makes it a tensor of its own, with what the adapter changes",
                    )

    def new(self, adapter: Adapter, parameter: str) -> str:
        """The name of a parameter that the adapter holds whole and the base has not: it becomes one of the base.

        Raises:
            StorageError: the base has one that may be meant.
        """
        name = self.places.rename(parameter)
        ends = [] if name is None else [found for found in self.places.names if _is_end(found, name)]
        if name is None or ends:
            raise self.places.missing(adapter.alias, [parameter])
        self.added[name] = adapter.alias
        return name

    def note(self, adapter: Adapter, place: str, is_embedding: bool) -> None:
        """Note that a parameter is changed."""
        leaf = place.rpartition(".")[0].rpartition(".")[2]
        is_shared = (is_embedding and not _POSITIONS.fullmatch(leaf)) or leaf in _TOKENS
        if is_shared:
            self.embeddings[place] = None
        if is_shared or place == self.layer:
            kind = self.together if _is_tying(adapter) else self.alone
            kind[adapter.alias] = None

    def untied(self) -> tuple[str, str] | None:
        """The output layer that becomes a tensor of its own, and the embedding whose values it begins with.

        Raises:
            StorageError: an embedding changes, and outputs may be computed with it; or adapters differ in that.
        """
        if not self.alone or (self.has_output and self.layer is None):
            return None
        if self.together:
            raise StorageError(
                f"{listing(self.together)} changes embedding and outputs alike, {listing(self.alone)} does not",
                expected="adapters with ensure_weight_tying, or without it",
                hint=f"merge them in two steps, {listing(self.alone)} first",
            )
        if self.layer is not None:
            return self.layer, self._embedding()
        if self.tied is None and self.model.tied is not False:
            raise StorageError(
                f"{next(iter(self.embeddings))} changes, and the model may compute its outputs with it "
                "(tie_word_embeddings)",
                expected="an output layer such as lm_head.weight, or tied: in the step",
                hint="tied: lm_head gives the output layer a tensor of its own with the old values, as PEFT computes; "
                "tied: none if there is no such layer",
            )
        return None

    def told(self) -> Iterator[str]:
        """What the user must know of the merged model."""
        for name, alias in self.added.items():
            yield f"{name} is new: only {alias} has it"
        untied = self.untied()
        if untied:
            yield f"{untied[0]} is a tensor of its own now: tie_word_embeddings must be false in config.json"
        elif self.model.tied and self.has_output and self.alone:
            yield "the embedding no longer equals the output layer: tie_word_embeddings must be false in config.json"

    def followed(self, text: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """What `config.json` says once parameters of these shapes have changed: of the rows of the vocabulary, and that
        embedding and output layer are two, where each has a tensor. Text that is no JSON object stays as it is."""
        try:
            config = json_text.parsed(text)
        except ValueError:
            return text
        shared = [name for name in shapes if _is_shared(name.rpartition(".")[0])]
        tables = [([], config), *(([key], part) for key, part in config.items() if isinstance(part, Mapping))]
        for path, table in tables:
            if shared and (self.has_output or self.layer) and table.get("tie_word_embeddings") is True:
                text = json_text.put(text, [*path, "tie_word_embeddings"], False)
            rows = {shapes[name][0] for name in shared if len(shapes[name]) == 2}
            if len(rows) == 1 and table.get("vocab_size", *rows) not in rows and (not path or path[0] in TEXT):
                text = json_text.put(text, [*path, "vocab_size"], *rows)
        return text

    def _embeddings(self) -> list[str]:
        return [name for name in self.places.names if re.fullmatch(rf"(.+\.)?({'|'.join(_TOKENS)})\.weight", name)]

    def _embedding(self) -> str:
        """The embedding that the output layer shares.

        Raises:
            StorageError: it is not clear which.
        """
        found = list(self.embeddings) or self._embeddings()
        if len(found) != 1:
            raise StorageError(
                f"it is not clear whose weight {self.tied} shares",
                expected=f"one embedding: {', '.join(sorted(_TOKENS))}",
                found=listing(found),
                hint=f"copy it first: copy: {{ from: '{self.places.alias}::<embedding>.weight', "
                f"to: '{self.places.alias}::{self.tied}.weight' }}",
            )
        return found[0]


def parted_by(adapter: Adapter) -> str | None:
    """The output layer that no longer equals the embedding whose weight it shares, once an adapter has changed one of
    the two; None if it changes neither, or both alike. What only changes the embedding does not name the layer, which
    then is called as in all classes that share it by default."""
    modules = [pair.module for pair in adapter.pairs] + [name.rpartition(".")[0] for name in adapter.whole]
    leaves = {module: module.rpartition(".")[2] for module in modules}
    outputs = [module for module, leaf in leaves.items() if is_output(module) and leaf not in _HEADS]
    if _is_tying(adapter) or not (outputs or _TOKENS.intersection(leaves.values())):
        return None
    return outputs[0] if outputs else "lm_head"


def _is_tying(adapter: Adapter) -> bool:
    """Whether an adapter changes embedding and outputs alike."""
    if any(pair.is_embedding for pair in adapter.pairs):
        return adapter_facts.ties_factors(adapter.config)
    whole = [name.rpartition(".")[0].rpartition(".")[2] for name in adapter.whole]
    return bool(adapter.config.get("ensure_weight_tying")) and not _TOKENS.isdisjoint(whole)


def _is_shared(module: str) -> bool:
    """Whether a module has a row for every token of the vocabulary."""
    leaf = module.rpartition(".")[2]
    return leaf in _TOKENS or (is_output(module) and leaf not in _HEADS)


def _is_end(one: str, other: str) -> bool:
    """Whether one name is the other with words before it."""
    return one.endswith(f".{other}") or other.endswith(f".{one}")
