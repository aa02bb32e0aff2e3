"""`diff`: print what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.trees import format_number
from ..kit.base import Directive, choice, epsilon, reference, text
from ..kit.masks import EqualMask
from ..kit.state import Found, Key, State, Value
from ..language.document import Node

KEYS = {"refs": ("left", "right"), "aliases": ("left_alias", "right_alias")}


@dataclass(frozen=True)
class Diff(Directive):
    """Print the names that only one side has and the shared names that differ; a difference is no failure.

    Shapes are compared first, then dtypes, then values: exactly, or within eps in float64. NaN always differs.
    """

    word = "diff"
    examples = (
        "diff: { left: 'a::.*', right: 'b::.*' }",
        "diff: { mode: aliases, left_alias: a, right_alias: b, eps: 1e-6 }",
    )

    mode: str = choice("what the sides are", tuple(KEYS), "refs")
    left: Node | None = reference("tensors of one side, may be sliced", None)
    right: Node | None = reference("tensors of the other side, may be sliced", None)
    left_alias: str | None = text("one checkpoint", None)
    right_alias: str | None = text("the other checkpoint", None)
    eps: float | None = epsilon("absolute tolerance")

    def __post_init__(self) -> None:
        given = {key for keys in KEYS.values() for key in keys if getattr(self, key) is not None}
        if given != set(KEYS[self.mode]):
            raise PlanError(
                f"diff mode {self.mode} takes other keys",
                expected=" and ".join(KEYS[self.mode]),
                found=", ".join(sorted(given)) or "none",
            )

    def build(self, state: State) -> None:
        sides = [self._side(state, key) for key in KEYS[self.mode]]
        shared = [name for name in sides[0] if name in sides[1]]
        lines: dict[str, Key] = {}  # or what is known of headers
        for name in shared:
            a, b = sides[0][name], sides[1][name]
            if a.spec is None or b.spec is None:
                continue
            if a.spec.shape != b.spec.shape:
                lines[name] = f"{name}: shape {list(a.spec.shape)} != {list(b.spec.shape)}"
            elif a.spec.dtype is not b.spec.dtype:
                lines[name] = f"{name}: dtype {a.spec.dtype} != {b.spec.dtype}"
            else:
                lines[name] = state.checks.check(EqualMask(self.eps), (a, b), name)
        missing = [[name for name in sides[1 - i] if name not in sides[i]] for i in (0, 1)]
        state.speech.say_later(lambda found: self._render(missing, lines, found))

    def _side(self, state: State, key: str) -> dict[str, Value]:
        if self.mode == "aliases":
            alias = getattr(self, key)
            return {name: state.versions.slot(alias, name, reads=1).node for name in sorted(state.names.of(alias))}
        ref = state.names.reference(getattr(self, key), key=key)
        return {name: state.versions.read(ref, name) for name in state.names.match(ref)}

    def _render(self, missing: list[list[str]], lines: Mapping[str, Key], found: Found) -> str:
        differing = []
        for name, line in lines.items():
            if isinstance(line, str):
                differing.append(line)
            elif not found[line][0]:
                worst = f", max_abs_diff {format_number(found[line].worst)}" if self.eps is not None else ""
                differing.append(f"{name}: values differ{worst}")
        report = ["diff:"]
        for title, rows in (
            ("missing on left", missing[0]),
            ("missing on right", missing[1]),
            ("different", differing),
        ):
            report += [f"  {title}:", *(f"    {row}" for row in (rows or ["(none)"]))]
        if not any((*missing, differing)):
            report.append("  No differences found.")
        return "\n".join(report)
