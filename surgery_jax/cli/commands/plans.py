"""`surgery-jax plans`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ...core.errors import PlanError, listing, nearest
from ..command import Argument, Command
from ..streams import emit


class Plans(Command):
    """Show the plans that come with the package, or one with its parameters.

    `surgery-jax run plans/NAME.yaml key=value ...` runs one, wherever the package is installed.
    """

    name = "plans"
    arguments = (Argument("plan", "one of the plans; all without it", "NAME", optional=True),)

    def run(self, args: Namespace) -> int:
        from ...language.document import Mapping, parse_yaml
        from ...language.library import comment, library_file, library_names, summary
        from ...language.parameters import declarations
        from ..parameters import table

        names = library_names()
        if args.plan is None:
            texts = {name: _text(library_file(name)) for name in names}
            width = max(map(len, names), default=0)
            emit("\n".join(f"{name:{width}}  {summary(text)}" for name, text in texts.items()))
            return 0
        file = library_file(args.plan)
        if file is None:
            near = nearest(args.plan, names, 1)
            raise PlanError(
                f"no plan is called {args.plan!r}",
                expected=f"one of {listing(names)}",
                hint=f"did you mean {near[0]}?" if near else "surgery-jax plans lists them all",
            )
        text = _text(file)
        root = parse_yaml(text, str(file), interpolate=False)
        parameters = declarations(root) if isinstance(root, Mapping) else {}
        parts = [comment(text), "parameters:\n" + table(parameters) if parameters else "", f"file: {file}"]
        emit("\n\n".join(filter(None, parts)))
        return 0


def _text(file: Path | None) -> str:
    return file.read_text(encoding="utf-8") if file else ""
