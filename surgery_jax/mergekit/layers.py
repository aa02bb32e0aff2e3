"""Where the layers of a model are, found from the names of its tensors and from the counts in its configuration."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["LayerName", "LayerStack", "counts_of", "is_buffer", "is_entrance", "place_of", "stacks_of"]

_INDEX = re.compile(r"(.+?)\.(\d+)\.(.+)", re.DOTALL)
_COUNT = re.compile(
    r"(num_|n_)((hidden|transformer|\w*encoder|\w*decoder)_)?(layers?|blocks?)|\w*(encoder|decoder)_layers|layers|depth"
)
_SIDES = ("encoder", "decoder", "vis", "text", "audio")  # parts of models that have layers: vision and visual are one
_ENTRANCE = re.compile(
    r"(^|[._])(wte|wpe|tok|pos|patch|cls)(_|[.]|$)|(^|[._])\w*emb(d|edding)?s?(_|[.]|$)|embed|project_in"
)
_EXIT = re.compile(r"embed_out|unembed|output_embed|lm_head")
# What classes of older releases saved and today's compute: models may lack it.
_BUFFER = re.compile(r"(.*\.)?(inv_freq|masked_bias|position_ids)")
_MASK = re.compile(r"(.*\.)?(attn|attention)\.bias")


class LayerName(NamedTuple):
    """A name as a tensor of a layer: `prefix.number.rest`."""

    prefix: str
    number: int
    rest: str

    def __str__(self) -> str:
        return f"{self.prefix}.{self.number}.{self.rest}"


@dataclass(frozen=True)
class LayerStack:
    """The layers whose tensors are called `prefix.0.…` to `prefix.(count - 1).…`, and the keys of the configuration, as
    paths, that hold this count."""

    prefix: str
    count: int
    keys: tuple[tuple[str, ...], ...] = ()


@lru_cache(maxsize=1 << 18)
def place_of(name: str) -> LayerName | None:
    """The layer of a tensor by the first number in its name, if there is one."""
    found = _INDEX.fullmatch(name)
    return None if found is None else LayerName(found[1], int(found[2]), found[3])


def stacks_of(names: Iterable[str], config: Mapping[str, Any]) -> list[LayerStack]:
    """The stacks of layers, in order of names: those whose length the configuration knows, or if it knows none, all."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for place in map(place_of, names):
        if place is not None:
            numbers[place.prefix].add(place.number)
    counts = list(counts_of(config))
    found = []
    for prefix, seen in sorted(numbers.items()):
        if seen == set(range(len(seen))):
            keys = tuple(_keys_for(prefix, [path for path, count in counts if count == len(seen)], counts))
            found.append(LayerStack(prefix, len(seen), keys))
    known = [stack for stack in found if stack.keys]
    return known or found


def counts_of(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The numbers of layers that a configuration and its parts, such as `text_config`, give: (keys, count)."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from counts_of(value, (*path, key))
        elif isinstance(value, int) and not isinstance(value, bool) and _COUNT.fullmatch(key) and value > 0:
            yield (*path, key), value


def _keys_for(
    prefix: str, equal: list[tuple[str, ...]], counts: list[tuple[tuple[str, ...], int]]
) -> Iterator[tuple[str, ...]]:
    """Of the keys with the right count those that speak of this stack: of an encoder and a decoder each has its own."""
    sides = [side for side in _SIDES if side in prefix]
    own = [path for path in equal if any(side in word for side in sides for word in path)]
    others = [path for path in equal if not any(side in word for side in _SIDES if side != "text" for word in path)]
    yield from own or others or (equal if len({path for path, _ in counts}) == 1 else ())


def is_entrance(name: str) -> bool:
    """Whether a tensor outside the layers is used before them, as embeddings are; norms and heads come after."""
    return not _EXIT.search(name) and _ENTRANCE.search(name) is not None


def is_buffer(name: str, dimensions: int) -> bool:
    """Whether a tensor is one that models may lack: frequencies, positions, or a mask that was saved with them."""
    return _BUFFER.fullmatch(name) is not None or (_MASK.fullmatch(name) is not None and dimensions != 1)
