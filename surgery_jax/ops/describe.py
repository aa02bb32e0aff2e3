"""Help texts, made from the declarations of transforms and assertions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.errors import PlanError, nearest
from ..kit.base import REQUIRED, Field, fields_of, find_word, words
from ..merging.method import methods, told

__all__ = ["describe"]


def describe(word: str | None = None, assertion: str | None = None) -> str:
    """What there is, what a transform takes, or what an assertion expression or a merge method takes.

    Raises:
        PlanError: no such name.
    """
    from ..kit.predicates import predicates  # the predicates build on this package

    if word is None:
        table = {name: entry.doc for name, entry in words().items()}
        return "\n".join(["transforms:", *_table(table), "", "assertions (in assert):", *_table(_predicate_docs())])
    if assertion is not None or (word not in words() and word in predicates()):
        name = assertion or word
        if (assertion is not None and word != "assert") or name not in predicates():
            near = nearest(name, predicates(), 1)
            raise PlanError(
                f"no help on {name!r}",
                expected="one of " + ", ".join(predicates()),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        cls = predicates()[name]
        doc = " ".join((cls.__doc__ or "").split())
        declared = {} if cls.takes and len(fields_of(cls)) == 1 else fields_of(cls)
        return _page(f"assert: {name}", doc, declared, [f"assert: {{ {text} }}" for text in cls.examples])
    if word not in words() and word in methods():
        return _page(f"merge: {word}", "\n".join(_paragraphs(methods()[word].__doc__ or "")), told(methods()[word]), ())
    entry = find_word(word)
    page = _page(
        word, "\n".join(_paragraphs(entry.cls.__doc__ or "")), {**entry.fields, **entry.shared}, entry.examples
    )
    if word == "merge":
        docs = {name: " ".join((cls.__doc__ or "").split("\n\n")[0].split()) for name, cls in methods().items()}
        return "\n".join([page, "", "methods:", *_table(docs)])
    return page if word != "assert" else "\n".join([page, "", "expressions:", *_table(_predicate_docs())])


def _predicate_docs() -> dict[str, str]:
    from ..kit.predicates import predicates

    return {name: " ".join((cls.__doc__ or "").split("\n\n")[0].split()) for name, cls in predicates().items()}


def _paragraphs(doc: str) -> Iterable[str]:
    return (" ".join(part.split()) for part in doc.split("\n\n"))


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(len(name) for name in rows)
    return [f"  {name:{width}}  {doc}" for name, doc in rows.items()]


def _page(title: str, doc: str, declared: Mapping[str, tuple[str, Field]], examples: Iterable[str]) -> str:
    lines = [title, "", doc]
    if declared:
        lines += ["", "keys:"]
        for key, (_, field) in declared.items():
            default = "required" if field.default is REQUIRED else f"default {_shown(field.default)}"
            lines.append(f"  {key}: {field.kind}, {default}; {field.doc}")
    shown = list(examples)
    if shown:
        lines += ["", "examples:", *(f"  - {text}" for text in shown)]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
