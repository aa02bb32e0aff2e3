"""The words of the plan language: what each builds, found by importing the files that declare them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.discover import check_single, import_all, own_file, subclasses
from ..core.errors import Mark, PlanError, listing, nearest
from ..language import document
from ..language.document import Node, Scalar
from .fields import Field, fields_of, parse_bool, parse_fields
from .operations import NO_ARITHMETIC, Directive, TensorOp
from .where import Where, parse_where

if TYPE_CHECKING:
    from .forms import Form
    from .state import State

__all__ = ["BoundStep", "Word", "find_word", "known_word", "operation", "words"]

WHERE = Field("condition", "only tensors of these dtypes, such as { dtype: float }", parse_where, None)
RAW = Field("boolean", "compute with the stored numbers of quantised tensors, without their scales", parse_bool, False)


@dataclass(frozen=True, slots=True)
class Word:
    """One step word: what it builds."""

    name: str
    cls: type[TensorOp] | type[Directive]
    form: Form | None
    fields: Mapping[str, tuple[str, Field]]

    @property
    def shared(self) -> Mapping[str, tuple[str, Field]]:
        """The keys that it has in common with other steps."""
        chooser = self.cls if self.form is None else self.form
        computes = self.cls.computes if issubclass(self.cls, Directive) else self.cls.kind not in NO_ARITHMETIC
        known = {"where": (chooser.selects, WHERE), "raw": (computes, RAW)}  # type: ignore[union-attr]
        return {key: (key, field) for key, (is_taken, field) in known.items() if is_taken}

    @property
    def doc(self) -> str:
        """First paragraph of the class's docstring."""
        return " ".join((self.cls.__doc__ or "").split("\n\n")[0].split())

    @property
    def examples(self) -> tuple[str, ...]:
        """The examples that use this word."""
        return tuple(text for text in self.cls.examples if text.split(":")[0].strip() == self.name)

    def parse(self, payload: Node, mark: Mark) -> BoundStep:
        """A step of this word.

        Raises:
            PlanError: unknown or missing keys, or values of the wrong kind.
        """
        directive = None if self.form else self.cls
        if directive is not None and getattr(directive, "takes", None):
            absent = isinstance(payload, Scalar) and payload.value is None
            if not absent and (len(self.fields) == 1 or not isinstance(payload, document.Mapping)):
                key = next(key for key, (attribute, _) in self.fields.items() if attribute == directive.takes)  # type: ignore[union-attr]
                payload = document.Mapping({key: payload}, {key: payload.mark}, payload.mark)
        further = directive.further(payload) if directive is not None else {}  # type: ignore[union-attr]
        keys = fields_of(self.cls) if directive is not None else self.fields
        parsed = parse_fields(self.name, payload, {**keys, **further, **self.shared})
        where, raw = parsed.pop("where", None), parsed.pop("raw", False)
        own = {attribute for attribute, _ in fields_of(self.cls).values()}
        refs = {key: value for key, value in parsed.items() if key not in own}
        try:
            thing = self.cls(**{key: value for key, value in parsed.items() if key in own})
            thing = thing.with_further(refs) if further and isinstance(thing, Directive) else thing
        except PlanError as error:
            error.problem = f"{self.name}: {error.problem}"
            raise error.located(mark) from None
        return BoundStep(self, thing, refs, mark, where, raw)


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A parsed step: the operation or directive and the YAML nodes of its references."""

    word: Word
    thing: TensorOp | Directive
    refs: Mapping[str, Node]
    mark: Mark
    where: Where | None = None
    raw: bool = False

    def build(self, state: State) -> None:
        """Run on the symbolic state."""
        if self.word.form is not None:
            self.word.form.build(self, state)
        else:
            self.thing.build(state)  # type: ignore[union-attr]

    def contributes(self, state: State) -> str | None:
        """The alias that this step offers as the plan's output."""
        if self.word.form is not None:
            return self.word.form.contributes(self, state)
        return self.thing.contributes(state)  # type: ignore[union-attr]


@cache
def words() -> Mapping[str, Word]:
    """Every step word, sorted; found by importing the files of `surgery_jax.ops`, and what entry points name.

    Raises:
        PlanError: two of one name, or what an entry point names fails.
    """
    import_all("surgery_jax.ops")
    found: dict[str, Word] = {}
    for word in _declared():
        check_single("transforms", word.name, found.setdefault(word.name, word).cls, word.cls)
    return dict(sorted(found.items()))


def _declared() -> Iterator[Word]:
    """The words of all classes that have been imported."""
    for op in subclasses(TensorOp):
        for form in op.__dict__.get("spellings", ()):
            yield Word(form.word, op, form, {**form.fields, **form.own_fields(op)})
    for directive in subclasses(Directive):
        yield Word(directive.word, directive, None, fields_of(directive))


@cache
def known_word(name: str) -> Word | None:
    """The step word of that name, None if there is none. Of ours no more is imported than the file that is called as
    the word, but for a `_` at the end.

    Raises:
        PlanError: as `words`.
    """
    for file in dict.fromkeys((name, name.rstrip("_"), f"{name}_")):
        module = own_file("surgery_jax.ops", file)
        own = () if module is None else (word for word in _declared() if word.cls.__module__ == module.__name__)
        found = next((word for word in own if word.name == name), None)
        if found is not None:
            return found
    return words().get(name)


def operation(word: str, **fields: Any) -> TensorOp:
    """The operation that a word of the plan language stands for, for others to build on."""
    found = find_word(word).cls
    assert issubclass(found, TensorOp)
    return found(**fields)


def find_word(name: str, where: Mark | None = None) -> Word:
    """The step word of that name.

    Raises:
        PlanError: there is none.
    """
    found = known_word(name)
    if found is None:
        near = nearest(name, words(), likeness=0.65)
        raise PlanError(
            f"unknown transform {name!r}",
            where=where,
            expected="one of the transforms of `surgery-jax ops`",
            hint=f"did you mean {listing(near)}?" if near else "one step works on all tensors that a pattern matches",
        )
    return found
