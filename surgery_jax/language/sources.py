"""What expressions may know of a plan's inputs: their configurations, and the names of their tensors.

The language opens no file of a checkpoint: `Reading` is how its caller answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from collections.abc import Mapping as AnyMapping
from typing import Any, Protocol

from ..core.errors import Mark, PlanError, nearest
from .expressions import Named
from .plan import Input

__all__ = ["CONFIG", "Reading", "Sources"]

CONFIG = "config"


class Reading(Protocol):
    """Reads of a checkpoint what expressions ask for."""

    def config(self, path: str) -> Named | None:
        """The `config.json` of the model at a path; None if there is none.

        Raises:
            SurgeryError: it cannot be read, or is no JSON.
        """

    def names(self, path: str) -> Collection[str]:
        """The names of all tensors of the checkpoint at a path.

        Raises:
            SurgeryError: it cannot be read.
        """


class Sources(AnyMapping[str, Any]):
    """Names of expressions: `config` and `ALIAS.config`, each read when it is first used.

    `config` is that of the only input; of several inputs it is a mapping by alias.
    """

    def __init__(self, reading: Reading | None, inputs: Callable[[], tuple[Input, ...]]) -> None:
        self._reading = reading
        self._ask = inputs
        self._inputs: dict[str, Input] | None = None
        self._is_asking = False
        self._configs: dict[str, Named] = {}

    def __getitem__(self, name: str) -> Any:
        inputs = self._known()
        if name != CONFIG:
            return _Lazy(lambda key: self._config(inputs[name]), (CONFIG,))
        if self._is_asking:
            raise PlanError("the inputs cannot depend on the config of an input", hint="use a parameter")
        if len(inputs) == 1:
            (entry,) = inputs.values()
            return self._config(entry)
        if not inputs:
            raise PlanError("there is no input that could have a config")
        return _Lazy(lambda alias: self._config(inputs[alias]), tuple(inputs))

    def __contains__(self, name: object) -> bool:
        return name == CONFIG or name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter((CONFIG, *self._known()))

    def __len__(self) -> int:
        return 1 + len(self._known())

    @property
    def only(self) -> str | None:
        """The alias of the only input."""
        aliases = tuple(self._known())
        return aliases[0] if len(aliases) == 1 else None

    def names(self, alias: str, mark: Mark) -> Collection[str]:
        """The names of all tensors of an input.

        Raises:
            SurgeryError: there is no such input, or it cannot be read.
        """
        inputs = self._known()
        if self._is_asking:
            raise PlanError("the inputs cannot depend on the names of their tensors", where=mark)
        if alias not in inputs:
            near = nearest(alias, inputs, 1)
            raise PlanError(
                f"no input has the alias {alias!r}",
                where=mark,
                expected="one of " + (", ".join(inputs) or "none"),
                hint=f"did you mean {near[0]}?" if near else "the names are those of inputs, before any step",
            )
        return self._reader().names(inputs[alias].path)

    def _known(self) -> dict[str, Input]:
        """The inputs by alias; none while they are being found out."""
        if self._inputs is None:
            if self._is_asking:
                return {}
            self._is_asking = True
            try:
                self._inputs = {entry.alias: entry for entry in self._ask()}
            finally:
                self._is_asking = False
        return self._inputs

    def _config(self, entry: Input) -> Named:
        if entry.path not in self._configs:
            found = self._reader().config(entry.path)
            if found is None:
                raise PlanError(
                    f"the input {entry.alias}::{entry.path} has no config.json",
                    hint="name the directory of the model, or give the value as a parameter",
                )
            self._configs[entry.path] = found
        return self._configs[entry.path]

    def _reader(self) -> Reading:
        if self._reading is None:
            raise PlanError("no checkpoint can be read here")
        return self._reading


class _Lazy(AnyMapping[str, Any]):
    """A mapping whose values are read when they are used."""

    def __init__(self, read: Callable[[str], Any], keys: tuple[str, ...]) -> None:
        self._read, self._keys = read, keys

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
