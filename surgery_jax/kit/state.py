"""What a step may do to the symbolic namespace while the graph is built. `graph.build` implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..core.errors import Mark
from ..core.specs import Spec
from ..language.document import Node as YamlNode
from ..language.names import Reference
from .base import TensorOp

__all__ = ["Slot", "State", "Value"]


class Value(Protocol):
    """A version of a tensor: a node of the graph."""

    @property
    def spec(self) -> Spec: ...


class Slot(Protocol):
    """A name of a checkpoint and the version it holds now, with its access counters."""

    node: Any
    reads: int
    writes: int


class State(Protocol):
    """The namespace of a plan at one step: aliases, names, versions."""

    word: str
    mark: Mark
    default_alias: str | None

    def reference(
        self,
        node: YamlNode,
        *,
        key: str,
        slices: bool = True,
        default: str | None = None,
        literal: bool = False,
        new_alias: bool = False,
    ) -> Reference:
        """A parsed reference whose alias is known (or may be new); a literal one is a plain name."""

    def select(self, ref: Reference) -> list[str]:
        """Matching names, sorted; nothing matching is an error."""

    def one(self, ref: Reference) -> str:
        """The only matching name; another number of matches is an error."""

    def pairs(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        """For every match of `source`: its name and the name each template gives; the last template must
        not collide."""

    def rows(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        """For every match of `source`: its name and the name each template gives, which may come again."""

    def numbered(self, source: Reference, template: Reference) -> list[tuple[str, str, int]]:
        """For every match of `source`: its name, the name that the template gives, and the number that its group or
        variable `index` stands for."""

    def numberable(self, source: Reference, template: Reference) -> list[tuple[str, Callable[[int], str]]]:
        """For every match of `source`: its name, and the names that the template gives for values of `index`."""

    def spec(self, node: Any) -> Spec:
        """Shape and dtype of a version; a step that needs them ends here if an earlier one failed to make it."""

    def has(self, alias: str, name: str) -> bool:
        """Whether the name exists now."""

    def slot(self, alias: str, name: str, reads: int = 0) -> Slot:
        """The slot of an existing name; counts reads."""

    def create(self, alias: str, name: str, node: Any, reads: int = 0) -> None:
        """Add a name that does not exist yet."""

    def rebind(self, alias: str, name: str, node: Any, reads: int = 0) -> None:
        """Give an existing name a new version; its place in the order stays."""

    def drop(self, alias: str, name: str) -> None:
        """Remove a name."""

    def expect_new(self, alias: str, names: Sequence[str]) -> None:
        """Names this step creates: none may exist."""

    def expect_present(self, alias: str, names: Sequence[str], kind: str = "destination") -> None:
        """Names this step needs."""

    def apply(self, op: TensorOp, *operands: Any) -> tuple[Any, ...]:
        """New versions computed from others; shapes and dtypes are checked."""

    def check_plain(self, *nodes: Any) -> None:
        """Refuse versions that are quantised, unless the step says `raw`: their numbers mean something only with
        scales. What `apply` computes with is checked there."""

    def view(self, node: Any, ref: Reference) -> Any:
        """The slice of a version that a reference selects."""

    def store(self, base: Any, ref: Reference, value: Any) -> Any:
        """The version `base` with the slice that a reference selects replaced by `value`."""

    def warn(self, problem: str, *, where: Mark | None = None, hint: str | None = None) -> None:
        """Tell the user, on stderr and once, of something at this place of the plan that is no error."""

    def say(self, line: str) -> None:
        """Print, at this place of the plan."""

    def tell(self, line: str) -> None:
        """Print if verbose."""

    def match(self, ref: Reference) -> list[str]:
        """Matching names, sorted; possibly none."""

    def check(self, op: TensorOp, operands: tuple[Any, ...], label: str) -> Any:
        """Demand that a mask is true everywhere; gives the key of its verdict."""

    def sink(self, node: Any, wants: str) -> Any:
        """Ask for the elements (`full`) or statistics (`stat`) of a version; gives the key of what comes."""

    def ask(self, node: Any) -> Any:
        """The elements of a version that decide how the plan goes on, or of a mask whether it is true everywhere; None
        while that is not known: then the step goes on with an upper bound, and the plan is built again when a first
        pass over the data has found it."""

    def waits(self) -> bool:
        """Whether answers are missing: then what the plan makes is a bound, and may break rules that only the final
        plan must keep."""

    def say_later(self, render: Callable[[Mapping[Any, Any]], str]) -> None:
        """Print, at this place of the plan, what depends on verdicts and sinks."""

    def assert_(self, outcome: Any, text: str) -> None:
        """An outcome that must hold."""

    def is_at_end(self) -> bool:
        """Whether all steps have run, and what is written is known."""

    def is_written(self, node: Any) -> bool:
        """Whether something that was saved so far holds this version as it is."""

    def aliases(self) -> list[str]:
        """All aliases, in order of appearance."""

    def is_empty(self, alias: str) -> bool:
        """Whether a known alias holds no tensor; an input that was not touched is not empty."""

    def names(self, alias: str) -> list[str]:
        """The names of an alias, in its order."""

    def add_alias(self, alias: str, path: str | None = None) -> None:
        """A new alias, empty or the checkpoint at a path."""

    def metadata(self, alias: str) -> Mapping[str, str]:
        """The text metadata of an alias."""

    def document(self, alias: str, name: str) -> str | None:
        """A text about the model beside the checkpoint of an alias, such as `config.json`, if there is one."""

    def annotate(
        self,
        alias: str,
        format: str,
        metadata: Mapping[str, str],
        notes: Mapping[str, Callable[[Mapping[Any, Any]], str]],
    ) -> None:
        """How an alias is written where the plan does not say it, its text metadata, and texts that are written beside
        it, by file name, once the verdicts and sinks they speak of are known."""

    def remove_alias(self, alias: str) -> None:
        """Forget an alias."""

    def rename_alias(self, alias: str, new: str) -> None:
        """Give an alias another name."""

    def read_one(self, path: str, format: str) -> Any:
        """The version that a file with exactly one tensor holds."""

    def save(
        self,
        path: str,
        format: str | None,
        shard: str | None,
        alias: str,
        name: str | None,
        options: Mapping[str, str],
    ) -> None:
        """Demand that a whole alias, or one tensor of it, is written."""

    def run_nested(self, sources: Sequence[tuple[str, YamlNode]]) -> None:
        """Run the steps of `execute`."""

    def set_flag(self, flag: str, on: bool) -> None:
        """Change dry-run, preview or verbose."""

    def flag(self, flag: str) -> bool:
        """The state of a flag."""

    def stop(self) -> None:
        """End the plan here, successfully."""
