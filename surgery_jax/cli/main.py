"""Entry point: parses the command line and maps errors to exit codes."""

from __future__ import annotations
import argparse, sys

def main(argv=None):
    args = list(sys.argv[1:] if argv is None else argv)
    from ..api import load_plan, run, check, Options
    from ..core.errors import SurgeryError
    try:
        plan = load_plan(*args[1:])
        if args[0] == "check":
            check(plan); return 0
        report = run(plan, Options(overwrite=False))
        if report.printed: print(report.printed)
    except SurgeryError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0
