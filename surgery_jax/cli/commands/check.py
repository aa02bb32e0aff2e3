"""`surgery-jax check`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..command import BUDGETS, CONFIG_CHECK, JSON, OVERWRITE, PLAN, SHARD_SIZE, PlanCommand, options_of
from ..streams import emit, name_leftovers
from ..text import count, json_text


class CheckCommand(PlanCommand):
    """Check a plan without reading a tensor.

    Names, shapes, dtypes, assertions on them, outputs and budgets are checked from the headers of the checkpoints. All
    errors are reported together.
    """

    name = "check"
    arguments = (*PLAN, *BUDGETS, SHARD_SIZE, OVERWRITE, CONFIG_CHECK, JSON)

    def run(self, args: Namespace) -> int:
        from ...api import check
        from ...core.specs import format_bytes
        from ...session.passes import leftovers, output_paths
        from ..failures import warn

        options = options_of(args)
        plan = self.plan(args)
        name_leftovers(named := leftovers(output_paths(plan)))
        compiled = check(plan, options)
        warn(compiled.symbolic.warnings)
        left = leftovers(output_paths(plan, compiled.outputs))
        read = compiled.symbolic.stored()
        steps = len(compiled.symbolic.executed)
        outputs: list[dict[str, Any]] = [
            {
                "path": output.path,
                "num_tensors": len(save.tensors),
                "nbytes": sum(node.spec.nbytes for _, node in save.tensors),
                "files": len(layout.files),
            }
            for save, (output, layout) in zip(compiled.symbolic.saves, compiled.outputs, strict=True)
        ]
        nbytes = sum(node.spec.nbytes for node in read)
        asked = len(compiled.symbolic.questions)
        if args.json:
            amounts = {"num_tensors_read": len(read), "bytes_read": nbytes, "num_questions": asked}
            told = {"outputs": outputs, "leftovers": left}
            told["warnings"] = [warning.as_json() for warning in compiled.symbolic.warnings]
            emit(json_text({"ok": True, "num_steps": steps, **amounts, **told}))
            return 0
        parts = [count(steps, "step"), f"{count(len(read), 'tensor')} read ({format_bytes(nbytes)})"]
        parts += [f"{o['num_tensors']} written to {o['path']} ({format_bytes(o['nbytes'])})" for o in outputs]
        if asked:
            parts.append(
                f"{count(asked, 'question')} that the data answers in a first pass; until then sizes are bounds"
            )
        name_leftovers([sentence for sentence in left if sentence not in named])
        emit("ok: " + ", ".join(parts))
        return 0
