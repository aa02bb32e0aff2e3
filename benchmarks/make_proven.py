"""Writes a copy of a checkpoint with a receipt beside it.

make_proven.py OUT SOURCE
"""

from __future__ import annotations

import argparse

import surgery_jax


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("source")
    options = parser.parse_args()
    surgery_jax.run(surgery_jax.plan_of({"inputs": [f"model::{options.source}"], "output": options.out}))


if __name__ == "__main__":
    main()
