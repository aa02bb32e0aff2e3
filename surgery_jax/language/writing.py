"""Plans written as YAML, so that reading them gives the same again."""

from __future__ import annotations

from typing import Any

from .nodes import Unresolved, plain
from .plan import Plan
from .scalars import parse_plain

__all__ = ["plan_text", "yaml_text"]


def plan_text(plan: Plan) -> str:
    """A plan as it is after files are merged, and expressions and loops expanded."""
    document: dict[str, Any] = {"inputs": [f"{entry.alias}::{entry.path}" for entry in plan.inputs]}
    if plan.steps is not None:
        document["transforms"] = plain(plan.steps)
    if plan.output is not None:
        out = plan.output
        output: dict[str, Any] = {"path": out.path, "format": out.format, "shard": out.shard}
        output["options"] = dict(out.options) or None
        if out.documents is not None:
            output["documents"] = list(out.documents) or "none"
        document["output"] = {key: value for key, value in output.items() if value is not None}
    return yaml_text(document)


def yaml_text(document: dict[str, Any]) -> str:
    """A document of ordinary values; texts that plans would read as something else are quoted, and `${` is escaped."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Repeats what is there twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None if parse_plain(value) == value else "'"
        written = value if isinstance(value, Unresolved) else value.replace("${", "\\${")
        return dumper.represent_scalar("tag:yaml.org,2002:str", written, style=style)

    Dumper.add_representer(str, text)
    Dumper.add_representer(Unresolved, text)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
