"""Writes what a plan makes, by default a copy of a checkpoint, with a receipt beside it.

make_proven.py OUT SOURCE [--plan NAME]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import surgery_jax

HERE = Path(__file__).resolve().parent


def write(out: str, source: str, plan: str | None) -> None:
    """The output of a plan of plans/ whose only input is `source`; None: of a plan without steps."""
    inputs = f"model::{source}"
    if plan is None:
        surgery_jax.run(surgery_jax.plan_of({"inputs": [inputs], "output": out}))
    else:
        surgery_jax.run(surgery_jax.load_plan(HERE / "plans" / plan, f"inputs[0]={inputs}", f"output={out}"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("source")
    parser.add_argument("--plan", metavar="NAME", help="a file of plans/ with one input")
    options = parser.parse_args()
    write(options.out, options.source, options.plan)


if __name__ == "__main__":
    main()
