"""`config`: change what `config.json` says of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core import json_text
from ..core.errors import PlanError, listing, nearest
from ..core.model_config import CONFIG, DEFAULTS, defaults_of
from ..kit.base import Directive, node, text
from ..kit.state import State
from ..language.document import Mapping, Node, Scalar, Sequence, plain
from ..language.expressions import Named
from ..language.interpolate import Resolver
from ..language.nodes import Unresolved, shown


@dataclass(frozen=True)
class Config(Directive):
    """Set, delete and rename values of the config of a checkpoint; order and spelling of all others stay.

    A dot in a key leads into an object, unless the config has a key that is spelled so. First the defaults of
    `defaults_of` are written out where the config leaves them open, then keys are renamed, deleted and set. What
    expressions in the values call `config` is the config as it is before, with these defaults.
    """

    word = "config"
    examples = (
        "config: { set: { model_type: mixtral, num_local_experts: 8 }, defaults_of: llama }",
        "config: { delete: [quantization_config], rename: { n_head: num_attention_heads } }",
    )

    set: Node | None = node("keys and their new values", None, kind="mapping")
    delete: Node | None = node("keys that must be there", None, kind="string or list of strings")
    rename: Node | None = node("old and new names of keys", None, kind="mapping")
    defaults_of: str | None = text("a model type, such as llama: what it takes for granted is written out", None)
    alias: str | None = text("which checkpoint", None)

    def build(self, state: State) -> None:
        alias = _alias(state, self.alias)
        if all(part is None for part in (self.set, self.delete, self.rename, self.defaults_of)):
            raise PlanError("config: nothing to do", expected="set, delete, rename or defaults_of")
        told = state.files.document(alias, CONFIG)
        if told is None and (self.delete is not None or self.rename is not None or self.defaults_of is not None):
            found = listing(state.files.documents(alias)) or "no documents"
            raise PlanError(f"config: {alias} has no {CONFIG}", found=found)
        told = "{\n}\n" if told is None else told
        try:
            config = json_text.parsed(told)
        except ValueError as error:
            raise PlanError(f"config: {CONFIG} of {alias} is no JSON object", found=str(error)[:120]) from None
        if self.defaults_of is not None:
            for name, known in _defaults(self.defaults_of, config).items():
                told = json_text.put(told, [name], known)
        given = _given(self.set, alias, json_text.parsed(told))
        for old, new in _pairs(self.rename, "rename"):
            told = _renamed(told, old, new)
        for key in _keys(self.delete):
            told = _removed(told, key)
        for key, value in _pairs(given, "set"):
            told = json_text.put(told, _path(told, key.value), plain(value))
        state.files.put_document(alias, CONFIG, told)
        state.speech.tell(f"config: {alias}")

    def contributes(self, state: State) -> str | None:
        return self.alias or state.default_alias


def _alias(state: State, given: str | None) -> str:
    """The checkpoint that is meant.

    Raises:
        PlanError: it is not clear which.
    """
    aliases = state.names.aliases()
    alias = given or state.default_alias or (aliases[0] if len(aliases) == 1 else None)
    if alias is None:
        raise PlanError(f"{state.word} needs an alias", expected="one of " + ", ".join(aliases))
    return alias


def _defaults(kind: str, config: dict[str, object]) -> dict[str, object]:
    if kind not in DEFAULTS:
        near = nearest(kind, DEFAULTS, 1)
        raise PlanError(
            f"config.defaults_of: the defaults of {kind!r} are not known here",
            expected="one of " + ", ".join(DEFAULTS),
            hint=f"did you mean {near[0]}?" if near else "set the values that the source leaves open",
        )
    return defaults_of(kind, config)


def _given(node: Node | None, alias: str, config: dict[str, object]) -> Node | None:
    """The values that are set, with what the config at this place says in them."""
    if isinstance(node, Sequence):
        return Sequence(tuple(_given(item, alias, config) or item for item in node.items), node.mark)
    if isinstance(node, Mapping):
        entries = {key: _given(item, alias, config) or item for key, item in node.entries.items()}
        return Mapping(entries, node.keys, node.mark)
    if not isinstance(node, Scalar) or not isinstance(node.value, Unresolved):
        return node
    known = Resolver(Mapping({}, {}, node.mark), {"config": Named(config, f"{CONFIG} of {alias}")})
    return known.resolve(Scalar(str(node.value), node.mark), (), 0)


def _pairs(given: Node | None, key: str) -> Iterator[tuple[Scalar, Node]]:
    """Keys with their places, and their values."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise PlanError(f"config.{key} is a mapping", where=given.mark, expected="keys and values", found=shown(given))
    for name, value in given.entries.items():
        yield Scalar(name, given.keys[name]), value


def _keys(given: Node | None) -> Iterator[Scalar]:
    items = given.items if isinstance(given, Sequence) else () if given is None else (given,)
    for item in items:
        if not isinstance(item, Scalar) or not isinstance(item.value, str):
            raise PlanError("config.delete is a list of keys", where=item.mark, found=shown(item))
        yield item


def _path(told: str, key: object) -> list[str]:
    """The keys that lead to a value."""
    return [str(key)] if key in json_text.parsed(told) else str(key).split(".")


def _missing(told: str, key: Scalar, step: str) -> PlanError:
    known = json_text.parsed(told)
    near = nearest(str(key.value), known)
    return PlanError(
        f"config.{step}: {CONFIG} has no {key.value}",
        where=key.mark,
        found=f"the most similar keys: {listing(near)}" if near else listing(known),
    )


def _removed(told: str, key: Scalar) -> str:
    try:
        return json_text.removed(told, _path(told, key.value))
    except KeyError:
        raise _missing(told, key, "delete") from None


def _renamed(told: str, old: Scalar, new: Node) -> str:
    if not isinstance(new, Scalar) or not isinstance(new.value, str):
        raise PlanError("config.rename gives new names", where=new.mark, expected="a string", found=shown(new))
    try:
        return json_text.renamed(told, _path(told, old.value), new.value)
    except KeyError:
        raise _missing(told, old, "rename") from None
    except ValueError:
        raise PlanError(f"config.rename: {CONFIG} has {new.value} already", where=new.mark, hint="delete it") from None
