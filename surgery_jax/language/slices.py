"""Slices of tensors: `[1, :4, ::2]` to numbers, with NumPy's basic indexing and positive steps, and index sets, as in
`[[3, 7, 9], :]`, each of which chooses along its own axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..core.errors import PlanError

__all__ = ["Axis", "Indices", "Slice", "Stride", "check_not_clamped", "parse_slice", "resolve_slice"]

MAX_INDICES = 1 << 16  # of a set that a plan spells out


@dataclass(frozen=True, slots=True)
class Stride:
    """`start:stop:step`, each part None where it was left out; step is positive."""

    start: int | None
    stop: int | None
    step: int | None

    def __str__(self) -> str:
        start, stop = ("" if part is None else str(part) for part in (self.start, self.stop))
        return f"{start}:{stop}" + ("" if self.step is None else f":{self.step}")


@dataclass(frozen=True, slots=True)
class Indices:
    """Places along an axis, in this order, of which some may come again; negative ones count from the end."""

    places: tuple[int, ...]

    def __str__(self) -> str:
        return f"[{','.join(map(str, self.places))}]"


Slice: TypeAlias = tuple[int | Stride | Indices, ...]
Axis: TypeAlias = tuple[int, int, int] | Indices  # (start, step, count), or places that follow no such rule


def parse_slice(text: str) -> Slice:
    """The components of a slice; `text` includes the brackets, `[]` selects everything.

    Raises:
        PlanError: not a slice, or a step that is not positive.
    """
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        raise _error(text, "a slice stands in brackets")
    inner = text[1:-1].strip()
    return tuple(_component(part.strip(), text) for part in _split(inner, text)) if inner else ()


def _split(inner: str, text: str) -> list[str]:
    """The components; a comma inside brackets separates none."""
    parts, depth = [""], 0
    for sign in inner:
        depth += (sign == "[") - (sign == "]")
        if depth not in (0, 1):
            raise _error(text, "brackets stand around one list of indices")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    if depth:
        raise _error(text, "a bracket is not closed")
    return parts


def resolve_slice(parts: Slice, shape: tuple[int, ...]) -> tuple[tuple[Axis, ...], tuple[int, ...], tuple[bool, ...]]:
    """What a slice selects from a tensor of this shape, as NumPy indexing would; index sets each by themselves, as
    numpy.ix_ puts them together.

    Returns, for ALL axes of `shape`: (start, step, count) per axis, or the places of a set without such a rule; the
    shape of the result, without the axes that an integer removed; and for each axis whether it was removed.

    Raises:
        PlanError: an index out of range, or more components than axes.
    """
    if len(parts) > len(shape):
        raise PlanError(
            f"too many slice components: {len(parts)} for a tensor of {len(shape)} axes",
            expected=f"at most {len(shape)} components for shape {list(shape)}",
        )
    axes: list[Axis] = []
    for axis in range(len(shape)):
        part = parts[axis] if axis < len(parts) else Stride(None, None, None)
        if isinstance(part, int):
            axes.append((_place(part, axis, shape), 1, 1))
        elif isinstance(part, Indices):
            axes.append(_by_rule(tuple(_place(place, axis, shape) for place in part.places)))
        else:
            start, stop, step = slice(part.start, part.stop, part.step).indices(shape[axis])
            axes.append((start, step, len(range(start, stop, step))))
    removed = tuple(axis < len(parts) and isinstance(parts[axis], int) for axis in range(len(shape)))
    counts = tuple(len(axis.places) if isinstance(axis, Indices) else axis[2] for axis in axes)
    return tuple(axes), tuple(count for count, gone in zip(counts, removed, strict=True) if not gone), removed


def check_not_clamped(parts: Slice, shape: tuple[int, ...]) -> None:
    """Refuse a slice that ends beyond an axis: where it says how large something new is to be, less than what is
    written would come of it.

    Raises:
        PlanError: such a slice.
    """
    for axis, part in enumerate(parts):
        ends = (part.start, part.stop) if isinstance(part, Stride) else ()
        beyond = next((end for end in ends if end is not None and not -shape[axis] <= end <= shape[axis]), None)
        if beyond is not None:
            raise PlanError(
                f"the slice ends at {beyond}, beyond axis {axis} of shape {list(shape)}, and a shape is taken from it",
                expected=f"at most {shape[axis]}",
                hint="give the shape itself with `shape`, or a slice that the tensor has",
            )


def _place(place: int, axis: int, shape: tuple[int, ...]) -> int:
    """An index counted from the front."""
    size = shape[axis]
    if not -size <= place < size:
        raise PlanError(
            f"slice index {place} is out of range for axis {axis} of shape {list(shape)}",
            expected=f"an index from {-size} to {size - 1}" if size else "no index: the axis has length 0",
        )
    return place % size


def _by_rule(places: tuple[int, ...]) -> Axis:
    """Places as start, step and count if these say the same."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and places == tuple(range(places[0], places[-1] + 1, step)):
        return places[0], step, len(places)
    return Indices(places)


def _component(part: str, text: str) -> int | Stride | Indices:
    if not part:
        raise _error(text, "an empty component")
    if part[0] == "[" and part[-1] == "]":
        places = tuple(_integer(word.strip(), text) for word in part[1:-1].split(","))
        if len(places) > MAX_INDICES:
            raise _error(text, f"{len(places)} indices are more than a plan may spell out")
        return Indices(places)
    words = part.split(":")
    if len(words) > 3:
        raise _error(text, f"{part!r} has more than three parts")
    numbers = [_integer(word, text) if word else None for word in words]
    if len(numbers) == 1:
        return numbers[0] or 0
    step = numbers[2] if len(numbers) == 3 else None
    if step is not None and step < 1:
        raise _error(text, f"the step {step} is not positive")
    return Stride(numbers[0], numbers[1], step)


def _integer(word: str, text: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise _error(text, f"{word!r} is not an integer") from None


def _error(text: str, reason: str) -> PlanError:
    return PlanError(
        f"invalid slice {text!r}: {reason}",
        expected="integers, ranges start:stop:step and lists of integers, such as [0, 1:4, ::2] or [[3, 7, 9], :]",
    )
