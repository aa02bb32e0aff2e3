"""`config`: values of `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import json_text
from ..core.errors import MOST_NAMES, PlanError, listing
from ..core.model_config import CONFIG
from ..kit.base import node
from ..kit.predicates import Known, Outcome, Predicate
from ..kit.state import State
from ..language.document import Mapping, Node, plain
from ..language.nodes import shown


@dataclass(frozen=True)
class ConfigIs(Predicate):
    """`config.json` has these values.

    A dot in a key leads into an object; `alias::key` speaks of another checkpoint.
    """

    name = "config"
    takes = "values"
    examples = ("config: { model_type: llama, num_hidden_layers: 2 }",)

    values: Node = node("keys and their values", kind="mapping")

    def evaluate(self, state: State) -> Outcome:
        if not isinstance(self.values, Mapping):
            raise PlanError("config takes keys and values", where=self.values.mark, found=shown(self.values))
        wrong = []
        for key, value in self.values.entries.items():
            alias, _, key = key.rpartition("::")
            there, found = _at(_config(state, alias), key)
            expected = plain(value)
            if not there:
                wrong.append(f"{key} is missing")
            elif found != expected or isinstance(found, bool) is not isinstance(expected, bool):
                wrong.append(f"{key} is {found!r}, not {expected!r}")
        return Known(not wrong, f"config: {listing(wrong, MOST_NAMES) if wrong else 'all is as expected'}")


def _config(state: State, alias: str) -> dict[str, object]:
    """The config of an alias, or of the one that is meant.

    Raises:
        PlanError: it is not clear which, or has none.
    """
    aliases = state.names.aliases()
    alias = alias or state.default_alias or (aliases[0] if len(aliases) == 1 else "")
    if alias not in aliases:
        raise PlanError("config: of which checkpoint?", expected="alias::key, with one of " + ", ".join(aliases))
    text = state.files.document(alias, CONFIG)
    if text is None:
        raise PlanError(
            f"config: {alias} has no {CONFIG}", found=listing(state.files.documents(alias)) or "no documents"
        )
    try:
        return json_text.parsed(text)
    except ValueError as error:
        raise PlanError(f"config: {CONFIG} of {alias} is no JSON object", found=str(error)[:120]) from None


def _at(config: dict[str, object], key: str) -> tuple[bool, object]:
    """Whether a key is there, and its value."""
    if key in config:
        return True, config[key]
    found: object = config
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return False, None
        found = found[part]
    return True, found
