"""Regular expressions over tensor names: compiling, bounding their time, and the literal text that every match begins
with.

Python tries an expression such as `(.+)+x` for ever, and cannot be stopped inside a thread. So what could take long, by
a bound that counts its repeats, is first tried: here, where one text takes little and the clock can be read after each,
or by another process, which can be stopped.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from .errors import Mark, PlanError

__all__ = ["check_time", "compile_regex", "ends_in_time", "literal_prefix", "without_warnings"]

LIMIT_S = 5  # of processor time, for one expression and all names of a checkpoint: ordinary ones take milliseconds
PATIENCE = 20  # times as long is waited for that: others may be at work
CHEAP = 1e9  # steps, some seconds at worst, that are taken without a trial
SHORT = 1e7  # steps for one text, some tenths of a second at worst

# An expression is seen as repeats, choices, and what lies between: literal characters, and _ANY for what is not one.
_ANY = "\ue000"
_WORD = re.compile(r"\\(?P<escaped>.)|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:P<\w+>|[:=!>]|<[=!])?", re.DOTALL)
_REPEAT = re.compile(r"[*+{][0-9,}]*[?+]?\)*(?P<next>[^\^$.|()?*+{](?![?*{])|$)?")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MANY_TIMES = re.compile(r"\{[0-9,]*[0-9]{4}")

_LITERALS = re.compile(r"(?:[^\\.^$*+?{}\[\]|()]|\\[^a-zA-Z0-9])*", re.DOTALL)
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?#(?:\\.|[^)\\])*\)|[()|]", re.DOTALL)
_VERBOSE = re.compile(r"\(\?[a-zA-Z-]*x")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence about odd but valid patterns, such as `[[a]`: they mean the same as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compile_regex(expr: str, mark: Mark | None, context: str = "") -> re.Pattern[str]:
    """The compiled pattern; `context` is put behind the pattern in the message.

    Raises:
        PlanError: not a valid pattern.
    """
    try:
        with without_warnings():
            return re.compile(expr)
    except (re.error, OverflowError, RecursionError) as error:
        reason = str(error) if not isinstance(error, RecursionError) else "too deeply nested"
        raise PlanError(
            f"invalid regex {expr!r}{context}: {reason}",
            where=mark,
            hint="put a backslash before a literal ( [ . * + ?",
        ) from None


def check_time(
    regex: re.Pattern[str], texts: Collection[str], where: Mark | str | None, *, is_whole: bool = False
) -> None:
    """Refuse an expression that does not end in time on these texts, whether it is matched, searched or replaced;
    `is_whole`: it is only matched with whole texts, and replaced in those that it matches.

    Raises:
        PlanError: it does not.
    """
    if not ends_in_time(regex, texts, is_whole=is_whole):
        raise PlanError(
            f"the regular expression {regex.pattern[:80]!r} takes too long",
            where=where,
            expected=f"names tried within {LIMIT_S} s, as ordinary expressions do in milliseconds",
            hint="repeat no group that repeats something itself, such as (.+)+, and use fewer .+ and .*",
        )


def ends_in_time(regex: re.Pattern[str], texts: Collection[str], *, is_whole: bool = False) -> bool:
    """Whether matching, searching and replacing an expression in all texts ends within `LIMIT_S` of processor time.

    Raises:
        PlanError: there is no process to try it in.
    """
    if not texts:
        return True
    steps = math.inf if _MANY_TIMES.search(regex.pattern) else _most_steps(regex.pattern, texts)
    if steps <= CHEAP:
        return True
    if steps <= SHORT * len(texts):
        return _tried_here(regex, texts, is_whole)
    request = json.dumps([LIMIT_S, regex.pattern, regex.flags & ~re.UNICODE, list(texts)])
    command = [sys.executable, "-I", "-S", "-c", _TRIAL]  # what is imported depends on nothing of the user's
    try:
        trial = subprocess.run(command, input=request.encode(), timeout=LIMIT_S * PATIENCE, capture_output=True)
    except subprocess.TimeoutExpired:
        return False
    except OSError as error:
        raise PlanError(f"cannot try the regular expression {regex.pattern[:80]!r}", found=str(error)) from None
    return trial.returncode == 0


def _tried_here(regex: re.Pattern[str], texts: Collection[str], is_whole: bool) -> bool:
    """The same of texts that each take a moment."""
    latest = time.thread_time() + LIMIT_S
    for text in texts:
        if regex.fullmatch(text) or (not is_whole and regex.search(text)):
            regex.sub("", text)
        if time.thread_time() > latest:
            return False
    return True


_TRIAL = """
import json, re, resource, sys, warnings
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
if hard == resource.RLIM_INFINITY or hard > 1 << 30:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
warnings.simplefilter("ignore")
limit, expr, flags, texts = json.load(sys.stdin)
hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
if hard == resource.RLIM_INFINITY or hard > limit:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
regex = re.compile(expr, flags)
for text in texts:
    if regex.fullmatch(text) or regex.search(text):
        regex.sub("", text)
"""


def _most_steps(expr: str, texts: Collection[str]) -> float:
    """A bound on the steps of trying an expression at texts, or any number beyond those that are tried elsewhere: all
    ways of its repeats and choices, from every place. A repeat before a literal can only end where that is."""
    length = max(map(len, texts))
    seen = _WORD.sub(_spelled, expr)
    ways = seen.count("?") + (length if _REPEATED_GROUP.search(seen) else 0)  # powers of two
    total = float(len(texts)) * length * length * 2.0 ** min(ways, 500) * min(_choices(seen), 1e200)
    has_literals = not _VERBOSE.search(expr)  # where blanks mean nothing, nothing is known of what comes next
    following = [found["next"] for found in _REPEAT.finditer(seen)]
    if total * (1.0 + length) ** min(sum(after != "" for after in following), 100) <= CHEAP:
        return total
    for after in following:
        if after and after != _ANY and has_literals:
            letter = chr(ord(after) - ord(_ANY)) if after > _ANY else after
            total *= (
                1 + max(text.count(letter) for text in texts) + max(text.count(letter.swapcase()) for text in texts)
            )
        elif after != "":
            total *= 1 + length
        if total > max(CHEAP, SHORT * len(texts)):
            break
    return total


def _choices(seen: str) -> int:
    """In how many ways the choices of an expression can be made together: those of every group, and outside of all."""
    total, open_groups = 1, [1]
    for letter in seen:
        if letter == "|":
            open_groups[-1] += 1
        elif letter == "(":
            open_groups.append(1)
        elif letter == ")" and len(open_groups) > 1:
            total *= open_groups.pop()
    return total * math.prod(open_groups)


def _spelled(found: re.Match[str]) -> str:
    """A word of an expression as one character: what is escaped beyond _ANY, the beginning of a group as a bracket."""
    escaped = found["escaped"]
    if escaped is not None:
        return _ANY if escaped.isalnum() or ord(escaped) > 127 else chr(ord(_ANY) + ord(escaped))
    return "(" if found[0][0] == "(" else _ANY


def literal_prefix(expr: str) -> tuple[str, bool]:
    """The text with which every full match of a VALID pattern begins, and whether that is the whole pattern."""
    end = _LITERALS.match(expr)
    raw = end[0] if end else ""
    if len(raw) == len(expr):
        return _unescaped(raw), True
    if expr[len(raw)] in "*+?{":  # the quantifier may drop the last literal
        raw = _without_last(raw)
    if _has_alternatives(expr):
        return "", False
    return _unescaped(raw), False


def _without_last(raw: str) -> str:
    pieces = re.findall(r"\\.|.", raw, re.DOTALL)
    return "".join(pieces[:-1])


def _unescaped(raw: str) -> str:
    return re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)


def _has_alternatives(expr: str) -> bool:
    """Whether `|` may stand outside all groups; yes, if in doubt."""
    if "|" not in expr:
        return False
    if _VERBOSE.search(expr):  # its comments may hold lone brackets
        return True
    depth = 0
    for token in _TOKENS.findall(expr):
        if token == "|" and depth == 0:
            return True
        depth += {"(": 1, ")": -1}.get(token, 0)
    return False
