"""Names of tensors while a plan runs symbolically: what references match, and what templates make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..core.errors import PlanError, listing, nearest
from ..core.regexes import compile_regex, ends_in_time
from ..core.specs import Spec
from ..kit.where import Where
from ..language import names as naming
from ..language.document import Node as YamlNode
from ..language.names import Reference, Selector
from .files import GraphFiles
from .frame import BROKEN, Consequence, Frame
from .namespace import SymbolicModel
from .speech import GraphSpeech

__all__ = ["GraphNames"]


class GraphNames:
    """See `kit.state.Names` for the promises of the methods."""

    def __init__(self, frame: Frame, files: GraphFiles, speech: GraphSpeech) -> None:
        self.frame, self.files, self.speech = frame, files, speech
        self._selectors: dict[Any, Selector] = {}

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
        where = f"{self.frame.word}.{key}"
        try:
            ref = naming.parse_reference(node, default or self.frame.default_alias)
            if ref.slice is not None and not slices:
                raise PlanError("takes no slice", found=ref.text)
            if literal:
                naming.literal(ref)
        except PlanError as error:
            error.problem = f"{where}: {error.problem}"
            raise error.located(node.mark) from None
        if ref.alias not in self.frame.space.models and not new_alias:
            near = nearest(ref.alias, self.frame.space.models, 1)
            raise PlanError(
                f"{where}: unknown model alias: {ref.alias!r}",
                where=node.mark,
                expected="one of " + (", ".join(self.frame.space.models) or "(none: the plan has no inputs)"),
                hint=f"did you mean {near[0]}?" if near else "add it with prefixes or load first",
            )
        return ref

    def _selector(self, ref: Reference) -> Selector:
        found = self._selectors.get(ref.expr)
        if found is None:
            try:
                found = self._selectors[ref.expr] = Selector(ref)
            except PlanError as error:
                raise error.located(ref.mark) from None
        return found

    def match(self, ref: Reference) -> list[str]:
        model = self.files.model(ref.alias)
        found = self._selector(ref).match(model.index)
        if not found:
            self._check_follows(ref)
        return found if self.frame.where is None else self._of_dtype(model, found, self.frame.where, ref)

    def _of_dtype(self, model: SymbolicModel, names: list[str], where: Where, ref: Reference) -> list[str]:
        """Those that `where` takes; of a tensor that an earlier step failed to make nothing is known, so it stays."""
        specs: dict[str, Spec | None] = {name: model.slots[name].node.spec for name in names}
        found = [name for name, spec in specs.items() if spec is None or where.takes(spec.dtype)]
        if names and not found:
            dtypes = dict.fromkeys(spec.dtype.name for spec in specs.values() if spec is not None)
            raise PlanError(
                f"{self.frame.word}: of {len(names)} tensors that match {ref.text} none is of dtype {where.text}",
                where=ref.mark,
                found=listing(dtypes),
            )
        return found

    def select(self, ref: Reference) -> list[str]:
        found = self.match(ref)
        if not found:
            self._nothing_matches(ref, f"{self.frame.word} matched zero tensors: {ref.alias}::{ref.expr}")
        return found

    def one(self, ref: Reference) -> str:
        found = self.select(ref)
        if len(found) != 1:
            raise PlanError(
                f"{self.frame.word}: {ref.text} must match exactly one tensor", where=ref.mark, found=listing(found)
            )
        return found[0]

    def pairs(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        rows = self.rows(source, *templates)
        seen: dict[str, str] = {}
        for row in rows:
            if row[-1] in seen:
                raise PlanError(
                    f"{self.frame.word} destination collision: {templates[-1].alias}::{row[-1]}",
                    where=templates[-1].mark,
                    expected="another name for every source",
                    found=f"both {seen[row[-1]]} and {row[0]} give it",
                    hint="use groups: from: '...(\\d+)...', to: '...\\1...'",
                )
            seen[row[-1]] = row[0]
        return rows

    def captured(self, ref: Reference) -> list[tuple[str, tuple[object, ...]]]:
        selector = self._selector(ref)
        return [(name, selector.captured(name)) for name in self.select(ref)]

    def numbered(self, source: Reference, template: Reference) -> list[tuple[str, str, int]]:
        rows = self.rows(source, template)
        try:
            return [(name, new, self._selector(source).number(name)) for name, new in rows]
        except PlanError as error:
            error.problem = f"{self.frame.word}: {error.problem}"
            raise

    def numberable(self, source: Reference, template: Reference) -> list[tuple[str, Callable[[int], str]]]:
        try:
            open_template, fill = naming.numbered_by(template)
        except PlanError as error:
            error.problem = f"{self.frame.word}: {error.problem}"
            raise
        return [(name, partial(fill, new)) for name, new in self.pairs(source, open_template)]

    def rows(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        found = self.match(source)
        if not found:
            name = f"{source.alias}::{source.expr}"
            self._nothing_matches(source, f"{self.frame.word} source matched zero tensors: {name}")
        selector = self._selector(source)
        rows = []
        try:
            for name in found:
                rows.append((name, *(selector.rewrite(name, template) for template in templates)))
        except PlanError as error:
            error.problem = f"{self.frame.word}: {error.problem}"
            raise error.located(templates[-1].mark) from None
        for template in templates:
            odd = selector.oddity(template)
            if odd is not None:
                self.speech.warn(f"{self.frame.word}: {odd.problem}", where=source.mark, hint=odd.hint)
        return rows

    def has(self, alias: str, name: str) -> bool:
        found = name in self.files.model(alias).slots
        if not found and self.frame.word == "assert" and self.is_ghost(alias, name):
            raise Consequence
        return found

    def expect_new(self, alias: str, names: Sequence[str]) -> None:
        existing = [name for name in names if self.has(alias, name)]
        if existing:
            if any(self.files.model(alias).slots[name].node is BROKEN for name in existing):
                raise Consequence
            raise PlanError(
                f"{self.frame.word} destination already exists: {alias}::{existing[0]}",
                where=self.frame.mark,
                found=f"{len(existing)} of {len(names)} destinations exist",
                hint="delete or move it first, or choose another name",
            )
        self.frame.pending += [(alias, name) for name in names]

    def expect_present(self, alias: str, names: Sequence[str], kind: str = "destination") -> None:
        missing = [name for name in names if not self.has(alias, name)]
        if missing:
            if alias in self.frame.space.broken or self.is_ghost(alias, missing[0]):
                raise Consequence
            near = nearest(missing[0], self.files.model(alias).slots)
            raise PlanError(
                f"{self.frame.word} {kind} missing: {alias}::{missing[0]}",
                where=self.frame.mark,
                expected="an existing tensor",
                found=f"{len(missing)} of {len(names)} do not exist"
                + (f"; nearest: {', '.join(near)}" if near else ""),
                hint="this is a template, not a pattern: write its dots as they are" if "\\" in missing[0] else None,
            )

    def aliases(self) -> list[str]:
        return list(self.frame.space.models)

    def is_empty(self, alias: str) -> bool:
        found = self.frame.space.models.get(alias)
        return found is not None and not found.slots

    def of(self, alias: str) -> list[str]:
        if alias not in self.frame.space.models:
            raise PlanError(
                f"{self.frame.word}: unknown model alias: {alias!r}",
                where=self.frame.mark,
                expected=listing(self.frame.space.models),
            )
        return list(self.files.model(alias).slots)

    def _check_follows(self, ref: Reference) -> None:
        """That nothing matches may only follow from an earlier failed step."""
        if ref.alias in self.frame.space.broken:
            raise Consequence
        ghosts = naming.NameIndex()
        for alias, template in self.frame.space.ghosts:
            if alias == ref.alias:
                ghosts.add(naming.placeholder(template))
        if len(ghosts) and self._selector(ref).match(ghosts):
            raise Consequence

    def is_ghost(self, alias: str, name: str) -> bool:
        """Whether an earlier failed step could have made a name."""
        return any(
            alias == known and naming.could_produce(template, name) for known, template in self.frame.space.ghosts
        )

    def _nothing_matches(self, ref: Reference, problem: str) -> None:
        model = self.files.model(ref.alias)
        wanted = ref.expr if isinstance(ref.expr, str) else ".".join(ref.expr)
        near = nearest(wanted.replace("\\", ""), model.slots)
        shown = near or list(model.slots)[:5]
        raise PlanError(
            problem,
            where=ref.mark,
            found=f"{len(model.slots)} tensors in {ref.alias}"
            + (f"; {'nearest' if near else 'among them'}: {', '.join(shown)}" if shown else ""),
            hint=_matching_hint(ref, model.slots, near),
        )


def _matching_hint(ref: Reference, names: Mapping[str, Any], near: Sequence[str]) -> str | None:
    """What may have been meant by a pattern that matches nothing."""
    if isinstance(ref.expr, str):
        try:
            inside = compile_regex(ref.expr, ref.mark)
        except PlanError:
            return None
        if not ref.expr.isprintable():
            return "in double quotes YAML reads the backslashes: put the pattern in single quotes"
        found = next(filter(inside.search, names), None) if ends_in_time(inside, names) else None
        if found is not None:
            return f"a pattern must match a whole name; it matches a part of {found}: add .* at its ends"
    return f"did you mean {near[0]}?" if near else None
