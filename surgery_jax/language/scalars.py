"""What an unquoted word of a plan means: YAML 1.1 as plans use it.

Differences from PyYAML's safe loader: `1e-6` is a float, dates stay text, `=` and `<<` are text.
"""

from __future__ import annotations

import re

__all__ = ["MAX_BITS", "parse_bool", "parse_float", "parse_int", "parse_plain"]

_NULLS = frozenset(["", "~", "null", "Null", "NULL"])
_BOOLS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_PLAIN_BOOLS = {form: value for word, value in _BOOLS.items() for form in (word, word.capitalize(), word.upper())}

_INT = re.compile(
    r"""[-+]?0b[01_]+ | [-+]?0[0-7_]+ | [-+]?(?:0|[1-9][0-9_]*) | [-+]?0x[0-9a-fA-F_]+
      | [-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+""",
    re.VERBOSE,
)
_FLOAT = re.compile(
    r"""[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)? | [-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
      | \.[0-9][0-9_]*(?:[eE][-+][0-9]+)? | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
      | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)

# Python converts no longer ones either, because the time grows with the square of the length.
_MAX_DIGITS = 4300
MAX_BITS = 14_000  # a little fewer than so many digits have


def parse_plain(text: str) -> bool | int | float | str | None:
    """The value of an unquoted word; what is no number, truth value or null is the word itself."""
    if text in _NULLS:
        return None
    if text in _PLAIN_BOOLS:
        return _PLAIN_BOOLS[text]
    try:
        if text[0] in "-+0123456789" and _INT.fullmatch(text):
            return parse_int(text)
        if text[0] in "-+.0123456789" and _FLOAT.fullmatch(text):
            return parse_float(text)
    except ValueError:  # only underscores where digits belong, or too many digits
        pass
    return text


def parse_bool(text: str) -> bool:
    """The truth value that a word marked `!!bool` stands for.

    Raises:
        ValueError: another word.
    """
    value = _BOOLS.get(text.lower())
    if value is None:
        raise ValueError(f"no truth value: {text!r}")
    return value


def parse_int(text: str) -> int:
    """The integer: decimal, `0b`, `0x`, octal with a leading zero, or in base 60 with colons.

    Raises:
        ValueError: not an integer, or one of too many digits.
    """
    sign, digits = _sign(text)
    if digits.startswith("0b"):
        return sign * int(digits[2:], 2)
    if digits.startswith("0x"):
        value = int(digits[2:], 16)
        if value.bit_length() > MAX_BITS:
            raise ValueError("a number of too many digits")
        return sign * value
    if digits.startswith("0") and digits != "0":
        return sign * int(digits, 8)
    value = 0
    for part in digits.split(":"):
        value = 60 * value + int(part)
    return sign * value


def parse_float(text: str) -> float:
    """The float: with point or exponent, `.inf`, `.nan`, or in base 60 with colons.

    Raises:
        ValueError: not a float, or one of too many digits.
    """
    sign, digits = _sign(text.lower())
    if digits in (".inf", ".nan"):
        return sign * float(digits[1:])
    value = 0.0
    for part in digits.split(":"):
        value = 60 * value + float(part)
    return sign * value


def _sign(text: str) -> tuple[int, str]:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number of too many digits")
    digits = text.replace("_", "")
    return (-1 if digits.startswith("-") else 1), digits[1:] if digits[:1] in ("-", "+") else digits
