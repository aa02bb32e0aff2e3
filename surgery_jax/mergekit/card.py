"""The model card of a merge."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["card_of"]


def card_of(method: str, models: Sequence[str], text: str) -> str:
    """A README in Markdown: what was merged how, and the configuration word for word; nothing about
    where it lies, so that a run to another place makes the same bytes."""
    fence = "```"
    while fence in text:
        fence += "`"
    lines = ["---", "tags:", "- merge", "- mergekit", "---", f"# Merge: {method}", ""]
    lines += [f"A merge by the method {method}, made with surgery_jax from a configuration of mergekit.", ""]
    lines += ["## Models", "", *(f"* {model}" for model in models), ""]
    lines += ["## Configuration", "", f"{fence}yaml", text.rstrip("\n"), fence, ""]
    return "\n".join(lines)
