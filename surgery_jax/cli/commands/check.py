"""`surgery-jax check`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..command import BUDGETS, JSON, OVERWRITE, PLANS, SHARD_SIZE, Command, options_of
from ..text import count, json_text


class Check(Command):
    """Check a plan without reading a tensor.

    Names, shapes, dtypes, assertions on them, outputs and budgets are checked from the headers of the checkpoints. All
    errors are reported together.
    """

    name = "check"
    arguments = (PLANS, *BUDGETS, SHARD_SIZE, OVERWRITE, JSON)

    def run(self, args: Namespace) -> int:
        from ...api import check, explain, load_plan
        from ...core.specs import format_bytes

        options = options_of(args)
        compiled = check(load_plan(*args.items), options)
        account = explain(compiled, options)
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
        through = account.bytes_moved + account.bytes_read
        if args.json:
            read = {"num_tensors_read": account.num_tensors_read, "bytes_read": through}
            print(json_text({"ok": True, "num_steps": steps, **read, "outputs": outputs}))
            return 0
        tensors = count(account.num_tensors_read, "tensor")
        parts = [count(steps, "step"), f"{tensors} read ({format_bytes(through)})"]
        parts += [f"{o['num_tensors']} written to {o['path']} ({format_bytes(o['nbytes'])})" for o in outputs]
        print("ok: " + ", ".join(parts))
        return 0
