"""`${oc.env:NAME,default}`: the value of an environment variable."""

from __future__ import annotations

import os
import re

from ..core.errors import Mark, PlanError
from .nodes import check_text

__all__ = ["environment"]

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")


def environment(inner: str, mark: Mark) -> str | None:
    """The value of `oc.env:NAME` or `oc.env:NAME,default`; always text, or null for the default `null`."""
    function, _, arguments = inner.partition(":")
    if function.strip() != "oc.env":
        raise PlanError(
            f"unknown function {function.strip()!r} in ${{{inner}}}", where=mark, expected="${oc.env:VARIABLE,default}"
        )
    name, comma, default = arguments.partition(",")
    name = _unquoted(name.strip())
    if not name:
        raise PlanError(f"no variable named in ${{{inner}}}", where=mark)
    if name in os.environ:
        return check_text(os.environ[name], mark)
    if not comma:
        raise PlanError(
            f"environment variable {name!r} is not set",
            where=mark,
            hint=f"set it, or give a default: ${{oc.env:{name},default}}",
        )
    return _default(default.strip())


def _default(text: str) -> str | None:
    """A default as OmegaConf prints it, so that plans written for it mean the same."""
    word = text.lower()
    if word == "null":
        return None
    if word in ("true", "false"):
        return word.capitalize()
    if len(text) < 300 and _INT.fullmatch(text):
        return str(int(text))
    if len(text) < 300 and _FLOAT.fullmatch(text):
        return str(float(text))
    return _unquoted(text)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("\\" + text[0], text[0])
    return text
