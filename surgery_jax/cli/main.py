"""Entry point: finds the command, runs it, and maps what goes wrong to messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

TYPE_CHECKING = False  # as in typing, which takes long to import
if TYPE_CHECKING:
    from ..core.interrupts import Watch

__all__ = ["entry", "main"]


def entry() -> None:
    """Be the program of a process: run its command line, and end with the exit code.

    A signal that comes before the command has begun, or while Python shuts down, ends the process at once.
    """
    import atexit
    import signal

    code: int | None = None

    def end(number: int, frame: object) -> None:
        if code is None:
            os.write(2, b"interrupted\n")
        os._exit(128 + number if code is None else code)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, end)

    def leave() -> None:
        if code is not None:  # else main has failed
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(code)

    # The last that is called at exit, when all threads have ended: taking every module and object apart after that
    # takes time and is of no use to anybody. Where others wait for the exit already, they come after it.
    if not atexit._ncallbacks():
        atexit.register(leave)
    code = main()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, without `argv` that of this process; gives the exit code. May be called many times in one
    process, which it changes only if it is the process's own command line."""
    # Here and not above: what is imported before somebody listens to signals is quickly done.
    from .notes import notes_shown
    from .signals import interruptible

    if argv is None:
        from ..core.process import own

        own()
    words = list(sys.argv[1:] if argv is None else argv)
    watch: Watch | None = None
    try:
        with interruptible() as watch, notes_shown():
            try:
                from .streams import flush, open_closed

                open_closed()
                code = _dispatch(words)
                flush()
                if watch.kept:  # by jobs that failed
                    from .failures import tell_kept

                    tell_kept(watch.kept)
                return code
            except SystemExit as end:  # of argparse, after help
                return end.code if isinstance(end.code, int) else 0
            except BaseException as error:
                return _report(_first(error), words, watch)
    except KeyboardInterrupt as error:  # on the way into the command, or out of it
        return _report(error, words, watch)


def _first(error: BaseException) -> BaseException:
    """An interrupt, where something failed only since it was broken off, as the parser of the standard library does."""
    from ..core.errors import SurgeryError
    from ..core.interrupts import Interrupted

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (Interrupted, SurgeryError)):
        cause = cause.__context__
    return cause if isinstance(cause, Interrupted) else error


def _report(error: BaseException, words: Sequence[str], watch: Watch | None) -> int:
    from ..core.interrupts import held
    from .failures import report

    with held():
        is_whole = words[:1] != ["batch"]  # whose jobs appear one by one
        outputs, kept = (watch.outputs, watch.kept) if watch is not None else ((), ())
        return report(error, as_json="--json" in words, outputs=outputs, kept=kept, is_whole=is_whole)


def _dispatch(words: list[str]) -> int:
    from ..core.errors import PlanError, nearest
    from .command import PROGRAM, commands, parse
    from .streams import emit, note

    if not words or words[0] in ("-h", "--help"):
        (emit if words else note)(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from .. import __version__

        emit(f"{PROGRAM} {__version__}")
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
    from .command import PROGRAM, commands

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
            "line is wrong; 3 a checkpoint cannot be read or written; 4 it does not fit the budgets; 5 the outputs are",
            "there, but the result could not be printed.",
        ]
    )


if __name__ == "__main__":
    entry()
