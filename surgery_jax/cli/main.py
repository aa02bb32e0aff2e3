"""Entry point: finds the command, runs it, and maps what goes wrong to messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..core.errors import PlanError, nearest
from .command import PROGRAM, commands, parse
from .failures import report
from .notes import notes_shown
from .signals import interruptible

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; gives the exit code. May be called many times in one process."""
    words = list(sys.argv[1:] if argv is None else argv)
    with interruptible(), notes_shown(quiet="--quiet" in words):
        try:
            code = _dispatch(words)
            sys.stdout.flush()
            return code
        except SystemExit as end:  # of argparse, after help
            return end.code if isinstance(end.code, int) else 0
        except BaseException as error:
            return report(error, as_json="--json" in words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        from .. import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    known = commands()
    if words[0] not in known:
        near = nearest(words[0], known, 1)
        raise PlanError(
            f"unknown command {words[0]!r}",
            expected="one of " + ", ".join(known),
            hint=f"did you mean {PROGRAM} {near[0]}?" if near else f"{PROGRAM} --help",
        )
    command = known[words[0]]
    return command.run(parse(command, words[1:]))


def _overview() -> str:
    known = commands()
    width = max(map(len, known))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [ARGUMENT ...]",
            "",
            "Runs declarative plans that edit the weights of neural networks.",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.summary}" for name, command in known.items()),
            "",
            f"{PROGRAM} COMMAND --help says more about one; {PROGRAM} --version gives the version.",
            "exit codes: 0 done; 1 an assertion or a job failed, or diff found differences; 2 the plan or the command",
            "line is wrong; 3 a checkpoint cannot be read or written; 4 it does not fit the budgets.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
