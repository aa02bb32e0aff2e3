"""What a step may do while the graph is built, in parts, each a narrow interface. `graph` implements them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..core.errors import Mark
from ..core.specs import Spec
from ..language.document import Node
from ..language.names import Reference
from .operations import TensorOp

__all__ = ["Checks", "Control", "Files", "Found", "Key", "Names", "Slot", "Speech", "State", "Value", "Versions"]

Key = object  # stands for what a check or a sink comes to once the data is known
Found = Mapping[Any, Any]  # what they came to, by key: of a check (holds, why, ...), of a sink what was asked for


class Value(Protocol):
    """A version of a tensor."""

    @property
    def spec(self) -> Spec | None:
        """Shape and dtype; None if an earlier step failed to make it."""


class Slot(Protocol):
    """A name of a checkpoint: the version it holds now, and how often it was read and written."""

    @property
    def node(self) -> Value: ...

    @property
    def reads(self) -> int: ...

    @property
    def writes(self) -> int: ...


class Names(Protocol):
    """Names of tensors: which there are, which a reference matches, which a step makes."""

    def reference(
        self,
        node: Node,
        *,
        key: str,
        slices: bool = True,
        default: str | None = None,
        literal: bool = False,
        new_alias: bool = False,
    ) -> Reference:
        """A parsed reference whose alias is known (or may be new); a literal one is a plain name."""

    def match(self, ref: Reference) -> list[str]:
        """Matching names, sorted; possibly none."""

    def select(self, ref: Reference) -> list[str]:
        """Matching names, sorted; nothing matching is an error."""

    def one(self, ref: Reference) -> str:
        """The only matching name; another number of matches is an error."""

    def pairs(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        """For every match of `source`: its name and the name each template gives; the last template must
        not collide."""

    def rows(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        """For every match of `source`: its name and the name each template gives, which may come again."""

    def captured(self, ref: Reference) -> list[tuple[str, tuple[object, ...]]]:
        """Matching names, sorted, each with what its groups or variables stand for; nothing matching is an error."""

    def numbered(self, source: Reference, template: Reference) -> list[tuple[str, str, int]]:
        """For every match of `source`: its name, the name that the template gives, and the number that its group or
        variable `index` stands for."""

    def numberable(self, source: Reference, template: Reference) -> list[tuple[str, Callable[[int], str]]]:
        """For every match of `source`: its name, and the names that the template gives for values of `index`."""

    def has(self, alias: str, name: str) -> bool:
        """Whether the name exists now."""

    def expect_new(self, alias: str, names: Sequence[str]) -> None:
        """Names this step creates: none may exist."""

    def expect_present(self, alias: str, names: Sequence[str], kind: str = "destination") -> None:
        """Names this step needs."""

    def of(self, alias: str) -> list[str]:
        """The names of an alias, in its order."""

    def aliases(self) -> list[str]:
        """All aliases, in order of appearance."""

    def is_empty(self, alias: str) -> bool:
        """Whether a known alias holds no tensor; an input that was not touched is not empty."""


class Versions(Protocol):
    """Versions of tensors: which a name holds, and new ones, computed from others."""

    def read(self, ref: Reference, name: str, reads: int = 1) -> Value:
        """What a name of the reference's alias holds, or the slice of it that the reference selects; counts reads."""

    def slot(self, alias: str, name: str, reads: int = 0) -> Slot:
        """The slot of an existing name; counts reads."""

    def spec(self, node: Value) -> Spec:
        """Shape and dtype of a version; a step that needs them ends here if an earlier one failed to make it."""

    def create(self, alias: str, name: str, node: Value, reads: int = 0) -> None:
        """Add a name that does not exist yet."""

    def rebind(self, alias: str, name: str, node: Value, reads: int = 0) -> None:
        """Give an existing name a new version; its place in the order stays."""

    def drop(self, alias: str, name: str) -> None:
        """Remove a name."""

    def apply(self, op: TensorOp, *operands: Value) -> tuple[Value, ...]:
        """New versions computed from others; shapes and dtypes are checked."""

    def compute(self, op: TensorOp, *operands: Value) -> Value:
        """The version that an operation with one result gives."""

    def view(self, node: Value, ref: Reference) -> Value:
        """The slice of a version that a reference selects."""

    def store(self, base: Value, ref: Reference, value: Value) -> Value:
        """The version `base` with the slice that a reference selects replaced by `value`."""

    def check_plain(self, *nodes: Value) -> None:
        """Refuse versions that are quantised, unless the step says `raw`: their numbers mean something only with
        scales. What `apply` computes with is checked there."""


class Checks(Protocol):
    """Questions to the data, and what must be true of it."""

    def check(self, op: TensorOp, operands: tuple[Value, ...], label: str) -> Key:
        """Demand that a mask is true everywhere; gives the key of its verdict."""

    def sink(self, node: Value, wants: str) -> Key:
        """Ask for the elements (`full`, or `array` of NumPy) or statistics (`stat`) of a version; gives the key of what
        comes."""

    def ask(self, node: Value) -> Any:
        """The elements of a version that decide how the plan goes on, or of a mask whether it is true everywhere; None
        while that is not known: then the step goes on with an upper bound, and the plan is built again when a first
        pass over the data has found it."""

    def waits(self) -> bool:
        """Whether answers are missing: then what the plan makes is a bound, and may break rules that only the final
        plan must keep."""

    def is_used(self, alias: str, name: str, node: Value) -> bool:
        """Whether a step so far has read a version under this name, or something that was saved holds it as it is."""

    def assert_(self, outcome: Any, text: str) -> None:
        """An outcome (`kit.predicates.Outcome`) that must hold."""


class Files(Protocol):
    """Checkpoints and what lies beside them: aliases that come and go, what is read, what is written."""

    def add_alias(self, alias: str, path: str | None = None) -> None:
        """A new alias, empty or the checkpoint at a path."""

    def remove_alias(self, alias: str) -> None:
        """Forget an alias."""

    def rename_alias(self, alias: str, new: str) -> None:
        """Give an alias another name."""

    def metadata(self, alias: str) -> Mapping[str, str]:
        """The text metadata of an alias."""

    def document(self, alias: str, name: str) -> str | None:
        """What a document of an alias says, such as `config.json`, if there is one."""

    def documents(self, alias: str) -> list[str]:
        """The names of the documents of an alias."""

    def put_document(self, alias: str, name: str, text: str | None, *, path: str = "") -> None:
        """Give an alias a document: a text, or, if that is None, the file at a path as it is."""

    def copy_document(self, source: str, name: str, alias: str, new: str) -> None:
        """Give an alias a document of another one."""

    def drop_document(self, alias: str, name: str) -> None:
        """Forget a document."""

    def annotate(
        self, alias: str, format: str, metadata: Mapping[str, str], notes: Mapping[str, Callable[[Found], str]]
    ) -> None:
        """How an alias is written where the plan does not say it, its text metadata, and texts that are written beside
        it, by file name, once the verdicts and sinks they speak of are known."""

    def read_one(self, path: str, format: str) -> Value:
        """The version that a file with exactly one tensor holds."""

    def save(
        self,
        path: str,
        format: str | None,
        shard: str | None,
        alias: str,
        name: str | None,
        options: Mapping[str, str],
        documents: tuple[str, ...] | None = None,
    ) -> None:
        """Demand that a whole alias, or one tensor of it, is written; `documents` are patterns of the names of those
        that come along, None stands for all where the output is a directory."""


class Speech(Protocol):
    """What is told to the user."""

    def say(self, line: str) -> None:
        """Print, at this place of the plan."""

    def say_later(self, render: Callable[[Found], str]) -> None:
        """Print, at this place of the plan, what depends on verdicts and sinks."""

    def tell(self, line: str) -> None:
        """Print if verbose."""

    def warn(self, problem: str, *, where: Mark | None = None, hint: str | None = None) -> None:
        """Tell the user, on stderr and once, of something at this place of the plan that is no error."""


class Control(Protocol):
    """How the plan goes on."""

    def run_nested(self, sources: Sequence[tuple[str, Node]]) -> None:
        """Run the steps of `execute`."""

    def flag(self, flag: str) -> bool:
        """The state of a flag."""

    def set_flag(self, flag: str, on: bool) -> None:
        """Change dry-run, preview or verbose."""

    def is_at_end(self) -> bool:
        """Whether all steps have run, and what is written is known."""

    def stop(self) -> None:
        """End the plan here, successfully."""


class State(Protocol):
    """A plan at one step."""

    @property
    def word(self) -> str:
        """The word of the step."""

    @property
    def mark(self) -> Mark:
        """Its place in the plan."""

    @property
    def default_alias(self) -> str | None:
        """What references without an alias speak of."""

    @property
    def names(self) -> Names: ...

    @property
    def versions(self) -> Versions: ...

    @property
    def checks(self) -> Checks: ...

    @property
    def files(self) -> Files: ...

    @property
    def speech(self) -> Speech: ...

    @property
    def control(self) -> Control: ...
